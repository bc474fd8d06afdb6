"""AdamW as open_clip 3 sets it up, and the learning rate at each step."""

import math
from typing import Any

import torch

from training.account.horizon import Horizon
from training.config import Optimiser


def openclip3_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters without and with weight decay, in the model's order; frozen ones are left out.

    Source: open_clip_train 3.3.0, main.py. open_clip 4 also exempts the positional embeddings: a
    silent change of the recipe, which this rule does not follow.
    """
    bare, decayed = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or any(w in name for w in ("bn", "ln", "bias", "logit_scale"))
        (bare if exempt else decayed).append(parameter)
    return [{"params": bare, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def make_optimiser(model: Any, settings: Optimiser) -> Any:
    """torch's AdamW over the decay groups of a model."""
    return torch.optim.AdamW(
        openclip3_groups(model, settings.weight_decay),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=settings.fused or None,
    )


def set_learning_rate(optimiser: Any, settings: Optimiser, step: int, horizon: Horizon) -> None:
    """Give all groups the rate of a step, 0-based; the warm-up is rounded up to whole steps."""
    warmup_steps = -(-settings.warmup_samples // horizon.batch_size)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(settings, step, horizon.steps, warmup_steps)


def learning_rate(settings: Optimiser, step: int, steps: int, warmup_steps: int) -> float:
    """The rate of a step, 0-based; set before the step, from nothing but its number.

    Source: open_clip_train 3.3.0, scheduler.py: (step + 1) / warm-up, then half a cosine to zero.
    """
    if step < warmup_steps:
        return settings.lr * (step + 1) / warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    done, rest = step - warmup_steps, steps - warmup_steps
    return 0.5 * (1 + math.cos(math.pi * done / rest)) * settings.lr
