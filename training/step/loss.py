"""The contrastive loss: local rows against the columns of all ranks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def clip_loss(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "b d"],
    scale: Float[Tensor, "*one"],
    gather: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of finding each picture's caption and each caption's picture.

    With several ranks each computes its own rows against all columns. The gather's backward must
    sum over ranks; under DDP's mean the gradient is then that of one process with the whole batch,
    with no further factor (to 1e-6). Without a gradient through the gather it is silently wrong.

    Args:
        image_features: Unit vectors of this rank's pictures.
        text_features: Unit vectors of this rank's captions, in the same order.
        scale: What cosines are multiplied by: the exponential of the logit scale.
        gather: From this rank's features to those of all ranks, in rank order, with a gradient;
            none on a single rank.

    Returns:
        The mean over this rank's rows; its mean over ranks is the loss of the global batch.

    Source: Radford et al. 2021; open_clip's ClipLoss with local_loss and gather_with_grad.
    """
    all_images = image_features if gather is None else gather(image_features)
    all_texts = text_features if gather is None else gather(text_features)
    logits_per_image = scale * image_features @ all_texts.T
    logits_per_text = scale * text_features @ all_images.T
    labels = torch.arange(len(image_features), device=image_features.device)
    labels = labels + rank * len(image_features)
    images = F.cross_entropy(logits_per_image, labels)
    return (images + F.cross_entropy(logits_per_text, labels)) / 2
