"""Captions cut behind the longest of a batch: the same features for less arithmetic.

A caption of a dozen words fills 16 of CLIP's 77 places. A causal text tower reads its vector at the
end-of-text token, and no place looks at a later one, so what stands behind the longest caption of
a batch moves neither a feature nor a gradient. ViT-B/32 at 24 tokens needs two thirds of the
arithmetic of a step. Sums of other lengths are rounded differently: weights agree but for last bits.
"""

from typing import Any

from jaxtyping import Int64
from torch import Tensor

MULTIPLE = 8  # tensor cores like it, and few lengths are few shapes


def can_trim(model: Any) -> bool:
    """Whether the text tower is causal and read at its largest token, the end of the text."""
    return (
        getattr(model, "attn_mask", None) is not None
        and getattr(model, "text_pool_type", None) == "argmax"
        and isinstance(getattr(model, "positional_embedding", None), Tensor)
    )


def trim(tokens: Int64[Tensor, "b l"]) -> Int64[Tensor, "b t"]:
    """Tokens without the places behind the longest caption's end, a multiple of eight if there are.

    The end-of-text token is the largest number of a vocabulary, and stands last in a caption that was
    cut. To be called where tokens lie on the host, since it reads them.
    """
    length = int(tokens.argmax(dim=-1).max()) + 1
    return tokens[:, : -(-length // MULTIPLE) * MULTIPLE]


def run_trimmed(model: Any, images: Tensor, tokens: Int64[Tensor, "b t"]) -> Any:
    """What the model makes of pictures and captions whose length may be below its own."""
    from torch.func import functional_call

    length = tokens.shape[1]
    if length == model.positional_embedding.shape[0]:
        return model(images, tokens)
    # open_clip's own forward, with fewer places: gradients reach the whole table through its slice.
    fewer = {
        "positional_embedding": model.positional_embedding[:length],
        "attn_mask": model.attn_mask[:length, :length],
    }
    return functional_call(model, fewer, (images, tokens))
