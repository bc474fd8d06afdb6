"""Captions cut behind their longest neighbours: the same features for less arithmetic.

A caption of a dozen words fills 16 of CLIP's 77 places. A causal text tower reads its vector at the
end-of-text token, and no place looks at a later one, so what stands behind that token moves neither a
feature nor a gradient. A batch is sorted by length into groups, and each is cut behind its longest
caption: one long caption among thousands costs its own group alone. At 24 tokens a step of ViT-B/32 has
72 % of its arithmetic. Sums over other lengths are rounded differently, in their last bits.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import functional_call

MULTIPLE = 8  # tensor cores like it, and few lengths are few shapes
GROUP, MOST_GROUPS = 256, 8  # captions of a group at least: smaller ones leave a device idle


class Group(NamedTuple):
    """Captions that go through the text tower together."""

    rows: Int64[Tensor, " g"]  # their places in the batch, on the host
    length: int  # tokens that are looked at


def can_trim(model: Any) -> bool:
    """Whether the text tower is causal and read at its largest token, the end of the text."""
    places = getattr(model, "positional_embedding", None)
    return (
        getattr(model, "attn_mask", None) is not None
        and getattr(model, "text_pool_type", None) == "argmax"
        and isinstance(places, Tensor)
        and places.shape[0] == model.context_length
    )


def lengths_of(tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, " b"]:
    """Tokens up to the end of each text: the largest number, wherever the text tower reads."""
    return tokens.argmax(dim=-1) + 1


def groups_of(lengths: Int64[Tensor, " b"], context_length: int) -> list[Group]:
    """Captions by length in groups of equal size; a batch below 512 is one.

    Args:
        lengths: As `lengths_of` gives them, on the host: they are read.
        context_length: Of the model: no group is longer.
    """
    count = min(MOST_GROUPS, max(1, len(lengths) // GROUP))
    return [
        Group(rows, min(-(-int(lengths[rows[-1]]) // MULTIPLE) * MULTIPLE, context_length))
        for rows in lengths.argsort(stable=True).chunk(count)
    ]


def run_short(model: Any, images: Tensor | None, tokens: Int64[Tensor, "b t"]) -> Any:
    """What the model makes of pictures and captions whose length may be below its own."""
    length = tokens.shape[1]
    if length == model.context_length:
        return model(images, tokens)
    # open_clip's own forward, with fewer places: gradients reach the whole table through its slice.
    fewer = {
        "positional_embedding": model.positional_embedding[:length],
        "attn_mask": model.attn_mask[:length, :length],
    }
    return functional_call(model, fewer, (images, tokens))


def features_of(made: Any) -> tuple[Any, Any]:
    """Of pictures and of captions, from what open_clip's forward returns."""
    return (made["image_features"], made["text_features"]) if isinstance(made, dict) else made[:2]


def run_trimmed(
    model: Any, images: Tensor, tokens: Int64[Tensor, "b l"], groups: list[Group]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Unit vectors of pictures and captions, each group of captions as long as it must be."""
    if len(groups) == 1:
        return features_of(run_short(model, images, tokens[:, : groups[0].length]))
    images = model.encode_image(images, normalize=True)
    texts = [
        features_of(run_short(model, None, tokens[group.rows.to(tokens.device), : group.length]))[1]
        for group in groups
    ]
    back = torch.cat([group.rows for group in groups]).argsort().to(tokens.device)
    return images, torch.cat(texts)[back]
