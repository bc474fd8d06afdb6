"""One training step of CLIP, as a LightningModule around an open_clip model."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from lightning.pytorch import LightningModule
from torch import Tensor

from dbp.errors import WorldError
from training.config import Optimiser
from training.horizon import Horizon
from training.loss import clip_loss
from training.optim import learning_rate, make_optimiser
from training.order import step_seed

MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5


class Diverged(WorldError):
    """The loss is no number any more."""


class Contrastive(LightningModule):
    """Trains both towers on batches of uint8 pictures and tokens.

    Bit-identical to open_clip_train's loop when fed the same batches (fp32, no clipping): its decay
    groups, schedule, loss and clamp, in the same order of operations.
    """

    def __init__(
        self,
        model: Any,
        optimiser: Optimiser,
        horizon: Horizon,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Wrap a model.

        Args:
            model: open_clip's model, with random weights or those to go on from.
            optimiser: AdamW's settings and schedule.
            horizon: The length of the run.
            seed: Of what the model itself draws (dropout), with the step.
            mean: Of each colour channel, for pictures in [0, 1].
            std: Likewise.
        """
        super().__init__()
        self.model = model.train()
        self.settings, self.horizon, self.seed = optimiser, horizon, seed
        self.warmup_steps = -(-optimiser.warmup_samples // horizon.batch_size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.register_buffer("first_bad_step", torch.tensor(-1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.first_bad_step: Tensor

    def configure_optimizers(self) -> Any:
        return make_optimiser(self.model, self.settings)

    def normalise(self, images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
        """From bytes to the model's mean and spread, on the device: fewer bytes to move."""
        return images.float().div(255).sub(self.mean).div(self.std)

    def features(
        self, images: Float[Tensor, "b 3 s s"], tokens: Int[Tensor, "b l"]
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors `Float[b d]` of pictures and captions."""
        return (
            self.model.encode_image(images, normalize=True),
            self.model.encode_text(tokens, normalize=True),
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rate = learning_rate(self.settings, self.global_step, self.horizon.steps, self.warmup_steps)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        torch.manual_seed(step_seed(self.seed, self.global_step))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Float[Tensor, ""]:
        images, texts = self.features(self.normalise(batch["images"]), batch["tokens"])
        gather = self.gather if self.trainer.world_size > 1 else None
        loss = clip_loss(images, texts, self.model.logit_scale.exp(), gather, self.global_rank)
        # Kept on the device: reading it each step would make a GPU wait.
        is_first = ~torch.isfinite(loss.detach()) & (self.first_bad_step < 0)
        self.first_bad_step.masked_fill_(is_first, self.global_step)
        return loss

    def gather(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "global_b d"]:
        """The features of all ranks, in rank order; the backward sums over ranks."""
        return self.all_gather(features, sync_grads=True).flatten(0, 1)  # type: ignore[union-attr]

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        if self.settings.grad_clip is not None:
            # In the model's order, as open_clip: the sum's last bits depend on the order.
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def check_finite(self) -> None:
        """Stop a run whose loss is no number any more.

        Raises:
            Diverged: The message names the first such step.
        """
        if (step := int(self.first_bad_step)) >= 0:
            samples = step * self.horizon.batch_size
            raise Diverged(
                f"training stopped: the loss of step {step:,} (after {samples:,} samples seen) is "
                f"not finite. Lower train.optimiser.lr={self.settings.lr:g}, lengthen "
                f"train.optimiser.warmup_samples={self.settings.warmup_samples:,}, or set "
                "train.optimiser.grad_clip; with train.precision=bf16, try fp32."
            )
