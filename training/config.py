"""What a training run is made of, typed and checked: model, optimiser, schedule.

Values have no default here; configs hold them, with the table that they come from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from dbp.config import require
from dbp.encoders.openclip import read_model_config
from dbp.encoders.weights import openclip_lacks
from dbp.errors import ConfigError, MissingError, nearest

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Model:
    """The architecture that is trained, from random weights.

    Args:
        name: open_clip's name of the model; null with a config of your own.
        config: The model's config as open_clip's JSON has it (embed_dim, vision_cfg, text_cfg), or
            the path of such a JSON; its content, not its path, enters the key.
    """

    name: str | None = None
    config: dict[str, Any] | str | None = None

    def __post_init__(self) -> None:
        if self.name is None and self.config is None:
            raise ConfigError(
                "name=null and model.config=null: give open_clip's name of a "
                "model as model.name, or its config as model.config=FILE"
            )
        if isinstance(self.config, str):
            read_model_config(self.config)
        elif isinstance(self.config, dict):
            has_all = {"embed_dim", "text_cfg", "vision_cfg"} <= set(self.config)
            must = "an open_clip model config with embed_dim, text_cfg, vision_cfg"
            require(has_all, "config", sorted(self.config), must)
        elif self.name not in (known := openclip_names()):
            raise ConfigError(
                f"name={self.name!r} is no model of open_clip. {nearest(str(self.name), known)}"[:2000]
            )

    def identity(self) -> dict[str, Any]:
        return {} if self.config is None else {"config": self.described()}

    def lacks(self, inputs: Any) -> Iterator[MissingError]:
        """The files of its tokenizer, if it has one of the hub's, and they are neither here nor can be fetched."""
        yield from openclip_lacks(self.name, None, self.described())

    def described(self) -> dict[str, Any] | None:
        """The config of its own, read; None for a model that open_clip lists."""
        return read_model_config(self.config) if isinstance(self.config, str) else self.config


@cache
def openclip_names() -> tuple[str, ...]:
    """The models that open_clip lists, found without importing it (which takes seconds)."""
    found = find_spec("open_clip")
    folders = found.submodule_search_locations if found else None
    return tuple(sorted(f.stem for f in Path((folders or ["."])[0]).glob("model_configs/*.json")))


@dataclass(frozen=True)
class Optimiser:
    """AdamW and its schedule.

    Args:
        lr: Peak learning rate.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, on the parameters that `decay_groups` names.
        decay_groups: `openclip3`: none for parameters of fewer than 2 dimensions, norms, biases and
            the logit scale.
        schedule: After the warm-up: `cosine` to zero at the end of the budget, or `constant`.
        warmup_samples: Samples seen while the rate rises linearly; rounded up to whole steps.
        grad_clip: Largest norm of the whole gradient; null for no clipping.
        fused: One pass over the parameters instead of several: the same update but for the last
            bits, 8 times faster on a CPU with the glyphs model.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decay_groups: Literal["openclip3"]
    schedule: Literal["cosine", "constant"]
    warmup_samples: int
    grad_clip: float | None = None
    fused: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        for name in ("weight_decay", "warmup_samples"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        clip = self.grad_clip
        require(clip is None or clip > 0, "grad_clip", clip, "above 0, or null for no clipping")


def resolve_precision(precision: Precision, device: str) -> Literal["fp32", "bf16"]:
    """What `auto` means on a device: bf16 where its hardware multiplies bf16, fp32 elsewhere.

    Precision changes the weights, so what this returns is part of the key. A plan made on a machine
    without the GPU would name another key: presets for clusters say `bf16`.
    """
    if precision != "auto":
        return precision
    from dbp.device import pick_device

    if not pick_device(device).startswith("cuda"):
        return "fp32"  # bf16 is emulated, and slower, on most CPUs
    import torch

    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
