"""A vision transformer that looks at smaller images: the same weights, its positions interpolated."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from dbp.errors import ConfigError


def smaller(model: Any, size: int) -> Any:
    """A copy of a CLIP model for images of `size` pixels.

    Raises:
        ConfigError: Its image tower is not a plain ViT, or the size is not a smaller one of whole patches.
    """
    visual: Any = model.visual
    grid: Any = getattr(visual, "grid_size", None)
    patch: Any = getattr(visual, "patch_size", None)
    positions: Any = getattr(visual, "positional_embedding", ())
    is_plain = grid and patch and len(positions) and positions.shape[0] == grid[0] * grid[1] + 1
    if not is_plain or size % patch[0] or size // patch[0] >= grid[0]:
        fits = (
            f"a multiple of {patch[0]} below {patch[0] * grid[0]}"
            if is_plain
            else "null: this image tower is no ViT"
        )
        raise ConfigError(f"online.score_size={size} does not fit the model that is trained. Give {fits}.")
    made = copy.deepcopy(model)
    count = (size // patch[0]) ** 2
    made.visual.positional_embedding = torch.nn.Parameter(positions.new_empty(count + 1, positions.shape[1]))
    refresh(made, model)
    return made


def refresh(made: Any, model: Any) -> None:
    """Bring a copy, of smaller images or not, to the weights of the model."""
    state = model.state_dict()
    name = "visual.positional_embedding"
    if name in state and made.state_dict()[name].shape != state[name].shape:
        state[name] = shrunk_positions(state[name], made.state_dict()[name].shape[0])
    made.load_state_dict(state)


def shrunk_positions(positions: Float[Tensor, "n w"], count: int) -> Float[Tensor, "m w"]:
    """Positions of a smaller square of patches, interpolated; the first, of the class token, stays."""
    old, new = round((len(positions) - 1) ** 0.5), round((count - 1) ** 0.5)
    square = positions[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    small = F.interpolate(square, (new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], small.permute(0, 2, 3, 1).reshape(new * new, -1)])


def shrunk(images: UInt8[Tensor, "b 3 s s"], size: int) -> UInt8[Tensor, "b 3 t t"]:
    """Images at a smaller size, in bytes."""
    made = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return made.round_().clamp_(0, 255).to(torch.uint8)
