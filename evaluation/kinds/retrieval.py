"""Retrieval between a set's pictures and their captions, both ways.

`image_retrieval_recall@k` is the share of captions whose picture is among the k best pictures;
`text_retrieval_recall@k` the share of pictures with at least one own caption among the k best
captions (not the share of captions found). Pictures may have different numbers of captions.

Departure: the reference leaves ties to `topk`; here a tie goes to what comes first in the set,
under both protocols.

Source:
    clip_benchmark 1.6.2, `metrics/zeroshot_retrieval.py`; DataComp, `retr_eval.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from evaluation.kinds.base import EncodeTexts, Kind, Outcomes, Scored
from evaluation.metrics import fine, zero_shot
from evaluation.metrics.similarity import distinct_rows, score
from evaluation.sets.data import EvaluationSet
from evaluation.sets.hub import open_captioned
from evaluation.statistics.significance import resample_counts

RECALL_AT = (1, 5, 10)
_BLOCK_ROWS = 512


def own_ranks(
    queries: Float[np.ndarray, "q d"],
    items: Float[np.ndarray, "m d"],
    query_owner: Int[np.ndarray, " q"],
    item_owner: Int[np.ndarray, " m"],
) -> Int[np.ndarray, " q"]:
    """Count the items that come before a query's first own item; 0 is a right answer.

    Args:
        queries: Unit vectors.
        items: Unit vectors. Equal ones get bit-equal scores.
        query_owner: The picture that each query is of.
        item_owner: The picture that each item is of; every query has an item of its owner.
    """
    distinct, column = distinct_rows(items)
    columns = np.arange(len(items))
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        scores = score(queries[rows], distinct, column)
        is_own = query_owner[rows, None] == item_owner
        assert is_own.any(axis=1).all(), "a query without an item of its own"
        # The first of the best own items; argmax takes the first.
        best = np.where(is_own, scores, -np.inf).argmax(axis=1)[:, None]
        own = np.take_along_axis(scores, best, axis=1)
        before = (scores > own) | ((scores == own) & (columns < best))
        ranks[rows] = before.sum(axis=1)
    return ranks


def outcomes(
    pictures: Float[np.ndarray, "n d"], captions: Float[np.ndarray, "m d"], caption_picture: Int[np.ndarray, " m"]
) -> dict[str, np.ndarray]:
    """Keep of each picture and caption what the metrics, intervals and paired tests need.

    Args:
        pictures, captions: Unit vectors.
        caption_picture: The picture, 0..n-1, that each caption is of; each picture has one or more.

    Returns:
        `text_rank` (per picture, of its first own caption), `image_rank` (per caption, of its
        picture) and `caption_picture`.
    """
    number = np.arange(len(pictures))
    return {
        "text_rank": own_ranks(pictures, captions, number, caption_picture),
        "image_rank": own_ranks(captions, pictures, caption_picture, number),
        "caption_picture": caption_picture,
    }


def metrics(outcomes: Outcomes) -> dict[str, float | None]:
    """Compute both recalls at 1, 5 and 10, and the mean of both at 1.

    A recall is none where k exceeds the number of candidates (the reference fails there).
    """
    text_rank, image_rank = outcomes["text_rank"], outcomes["image_rank"]
    values: dict[str, float | None] = {}
    for k in RECALL_AT:
        image, text = float((image_rank < k).mean()), float((text_rank < k).mean())
        values[f"image_retrieval_recall@{k}"] = image if k <= len(text_rank) else None
        values[f"text_retrieval_recall@{k}"] = text if k <= len(image_rank) else None
    mean = 0.5 * float((text_rank < 1).mean()) + 0.5 * float((image_rank < 1).mean())
    return values | {"mean_recall@1": mean}


def replicates(
    outcomes: Outcomes, metric: str, *, num_resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, " r"]:
    """Compute a metric on resampled pictures, each drawn with all its captions.

    Captions of one picture are not independent, so they are never drawn apart.
    """
    weights, counts = np.unique(_hits(outcomes, metric), axis=0, return_counts=True)
    return resample_counts(
        counts,
        lambda drawn: _recall(metric, drawn @ weights, len(outcomes["text_rank"])),
        num_resamples=num_resamples,
        generator=generator,
    )


def on_draws(outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
    """Compute a metric on given draws: how often each picture is taken in each."""
    sums = drawn @ _hits(outcomes, metric).astype(np.float32)
    return _recall(metric, sums.astype(np.float64), drawn.shape[1])


def _hits(outcomes: Outcomes, metric: str) -> Int[np.ndarray, "n 3"]:
    """For each picture: whether it is a hit, how many of its captions are, how many it has."""
    k = int(metric.split("@")[1])
    owner = outcomes["caption_picture"]
    num_pictures = len(outcomes["text_rank"])
    image_hits = np.bincount(owner[outcomes["image_rank"] < k], minlength=num_pictures)
    captions = np.bincount(owner, minlength=num_pictures)
    text_hit = (outcomes["text_rank"] < k).astype(np.int64)
    return np.stack([text_hit, image_hits, captions], axis=1)


def _recall(metric: str, sums: np.ndarray, num_pictures: int) -> Float[np.ndarray, " r"]:
    text, image = sums[:, 0] / num_pictures, sums[:, 1] / sums[:, 2]
    return {"text_retrieval_recall": text, "image_retrieval_recall": image, "mean_recall": (text + image) / 2}[
        metric.split("@")[0]
    ]


class Retrieval(Kind):
    """Recall at 1, 5 and 10 of captions by pictures and of pictures by captions."""

    name, truth = "retrieval", ("caption_picture",)
    owner, per_owner = "caption_picture", ("caption_picture", "image_rank")
    is_halved = True
    clip_benchmark = ("zeroshot_retrieval", ("image_retrieval_recall@", "text_retrieval_recall@"))
    replicates, on_draws = staticmethod(replicates), staticmethod(on_draws)

    @classmethod
    def open(cls, folder: Path, **given: Any) -> EvaluationSet:
        return open_captioned(folder)

    def read(self) -> None:
        every = self.set.captions()
        captions = [every[row] for row in self.rows]
        self.captions = [text for lines in captions for text in lines]
        self.picture_of = np.repeat(np.arange(len(captions)), [len(lines) for lines in captions])

    def texts(self, protocol: str) -> list[str]:
        return self.captions

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        zero_shot.check_protocol(protocol)
        found = outcomes(features, encode_texts(self.captions), self.picture_of)
        return Scored(found, metrics(found))

    def fine(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, logit_scale: float) -> Outcomes:
        found = outcomes(features, encode_texts(self.captions), self.picture_of)
        ranks = fine.reciprocal_ranks(found["text_rank"], found["image_rank"], self.picture_of)
        return {fine.RECIPROCAL_RANK: ranks}
