"""Finer measures of a checkpoint: log-likelihood of the right class, reciprocal rank of the right match.

Accuracy of a small run is coarse: most samples are far from the border. These measures move with every sample, so
they separate small runs better. They enter no published average.

Source: Magnusson et al. 2025 (DataDecide), which find that continuous measures predict large-scale rankings better.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from evaluation.kinds.base import Outcomes

LOG_LIKELIHOOD, FITTED, RECIPROCAL_RANK = (
    "log_likelihood", "log_likelihood_fitted", "reciprocal_rank",
)  # fmt: skip
NAMES = {
    LOG_LIKELIHOOD: "mean log-likelihood of the right class at the checkpoint's logit scale (nats)",
    FITTED: "the same with a logit scale fitted on the other half of the samples (nats)",
    RECIPROCAL_RANK: "mean reciprocal rank, of captions by image and of images by caption",
}
_BLOCK = 8_192
_LARGEST_SCALE = 1e4


def log_likelihoods(
    cosines: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], scale: float
) -> Float[np.ndarray, " n"]:
    """Log-probability of each sample's right class under softmax(scale x cosine), in nats, at most 0.

    Args:
        cosines: Of samples with classes.
        labels: Right classes, below k.
        scale: What the cosines are multiplied by (CLIP's logit scale).
    """
    found = np.empty(len(labels))
    for start in range(0, len(labels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        logits = scale * cosines[rows].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        own = np.take_along_axis(logits, labels[rows, None], axis=1)[:, 0]
        found[rows] = own - np.log(np.exp(logits).sum(axis=1))
    return found


def fitted_scale(cosines: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> float:
    """The scale at which the mean log-likelihood is largest, in [0, 10,000].

    The mean is concave in the scale, so Newton's steps, kept between bounds, find it.
    """
    low, high, scale = 0.0, _LARGEST_SCALE, 50.0
    for _ in range(60):
        slope = curvature = 0.0
        for start in range(0, len(labels), _BLOCK):
            rows = slice(start, start + _BLOCK)
            block = cosines[rows].astype(np.float64)
            weights = np.exp(scale * (block - block.max(axis=1, keepdims=True)))
            weights /= weights.sum(axis=1, keepdims=True)
            mean = (weights * block).sum(axis=1)
            slope += float((np.take_along_axis(block, labels[rows, None], axis=1)[:, 0] - mean).sum())
            curvature += float(((weights * block**2).sum(axis=1) - mean**2).sum())
        low, high = (scale, high) if slope > 0 else (low, scale)
        step = scale + slope / curvature if curvature > 0 else high
        step = step if low < step < high else (low + high) / 2
        if abs(step - scale) <= 1e-6 * max(scale, 1.0):
            return step
        scale = step
    return scale


def cross_fitted(
    cosines: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], is_even: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Log-likelihoods with a scale that is fitted on one half and used on the other, both ways."""
    found = np.empty(len(labels))
    for side in (is_even, ~is_even):
        if side.any() and (~side).any():
            scale = fitted_scale(cosines[~side], labels[~side])
            found[side] = log_likelihoods(cosines[side], labels[side], scale)
        elif side.any():
            found[side] = log_likelihoods(cosines[side], labels[side], 100.0)
    return found


def has_even_hash(keys: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Whether the hash of a sample's name is even: halves that depend on nothing but the names."""
    return np.array([hashlib.sha256(key.encode()).digest()[-1] % 2 == 0 for key in keys], bool)


def reciprocal_ranks(
    text_rank: Int[np.ndarray, " n"], image_rank: Int[np.ndarray, " m"], owner: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    """Of each image: the mean of the reciprocal rank of its first own caption, and of it by its captions.

    Args:
        text_rank: 0-based rank of the first own caption.
        image_rank: 0-based rank of the image, of each caption.
        owner: The image of each caption.
    """
    by_caption = np.bincount(owner, 1 / (image_rank + 1), minlength=len(text_rank))
    captions = np.bincount(owner, minlength=len(text_rank))
    return (1 / (text_rank + 1) + by_caption / captions) / 2


def on_draws(outcomes: Outcomes, measure: str, drawn: Float32[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
    """The mean of a measure on given draws: how often each sample is taken in each."""
    return drawn @ outcomes[measure] / drawn.shape[1]
