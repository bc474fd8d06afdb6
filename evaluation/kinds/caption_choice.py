"""Choice of captions: which caption fits an image, and where there are several images, which image fits a caption.

An instance has images and captions; the first image fits the first caption, the second the second. SugarCrepe has
one image with two captions, Winoground two images with two.

- `text_acc`: every image that has a caption of its own is most similar to that one.
- `image_acc`: every caption that has an image of its own is most similar to that one (always, with one image).
- `acc`: both. These are Winoground's text, image and group scores.

Two protocols differ in ties, which only equal vectors make:

- `corrected` (default): a tie is wrong, as in the definitions of both papers (the right one scores *higher*).
- `datacomp`: the first wins, as from clip_benchmark's `argmax`. The right caption of SugarCrepe is the first, so a
  model with one vector for everything would always be right.

Source:
    clip_benchmark 1.6.2, `metrics/image_caption_selection.py`; Thrush et al. 2022 (Winoground); Hsieh et al. 2023
    (SugarCrepe).
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32

from evaluation.kinds.base import EncodeTexts, Kind, Outcomes, Scored
from evaluation.metrics import fine
from evaluation.metrics.similarity import distinct_rows, score
from evaluation.metrics.zero_shot import check_protocol
from evaluation.sets.data import Choice, EvaluationSet
from evaluation.sets.hub import open_choices
from evaluation.statistics.significance import mean_replicates

# A metric and the outcome that it is the mean of.
METRICS = {"image_acc": "image_is_right", "text_acc": "text_is_right", "acc": "is_right"}


def similarities(
    pictures: Float[np.ndarray, "i d"], captions: Float[np.ndarray, "c d"]
) -> Float[np.ndarray, "i c"]:
    """Cosines of the images and captions of one instance; equal vectors get bit-equal ones."""
    images, row = distinct_rows(pictures)
    return score(images, *distinct_rows(captions))[row]


def chooses_right(cosines: Float[np.ndarray, "q o"], protocol: str = "corrected") -> bool:
    """Whether the i-th query is most similar to the i-th option, for each query that has one.

    Args:
        cosines: Of queries with options.
        protocol: Whether a tie is wrong (`corrected`) or the first option wins (`datacomp`).

    Raises:
        ConfigError: Unknown protocol.
    """
    check_protocol(protocol)
    paired = np.arange(min(cosines.shape))
    if protocol == "datacomp":
        return bool((cosines.argmax(axis=1)[paired] == paired).all())
    own = cosines[paired, paired]
    return bool(((cosines[paired] >= own[:, None]).sum(axis=1) == 1).all())


class CaptionChoice(Kind):
    """Shares of instances whose images, captions, or both find their own; a limit chooses instances."""

    name, truth = "caption_choice", ("instance",)
    is_halved = True
    clip_benchmark = ("image_caption_selection", tuple(METRICS))

    @classmethod
    def open(cls, folder: Path, **given: Any) -> EvaluationSet:
        return open_choices(folder)

    def read(self) -> None:
        choices = self.set.choices or [Choice((i,), tuple(lines)) for i, lines in enumerate(self.set.captions())]
        self.choices = [choices[number] for number in self.chosen]
        self.rows = list(dict.fromkeys(row for one in self.choices for row in one.pictures))
        place = {row: i for i, row in enumerate(self.rows)}
        self.pictures = [[place[row] for row in one.pictures] for one in self.choices]

    def texts(self, protocol: str) -> list[str]:
        return [caption for one in self.choices for caption in one.captions]

    def cosines(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts) -> list[np.ndarray]:
        """Of each instance, its images with its captions."""
        texts = list(dict.fromkeys(self.texts("corrected")))
        vectors, place = encode_texts(texts), {text: i for i, text in enumerate(texts)}
        return [
            similarities(features[rows], vectors[[place[caption] for caption in one.captions]])
            for rows, one in zip(self.pictures, self.choices, strict=True)
        ]

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        every = self.cosines(features, encode_texts)
        text = np.array([chooses_right(cosines, protocol) for cosines in every])
        image = np.array([chooses_right(cosines.T, protocol) for cosines in every])
        found = {
            "image_is_right": image,
            "text_is_right": text,
            "is_right": image & text,
            "instance": np.array(self.chosen),
        }
        return Scored(found, {metric: float(found[name].mean()) for metric, name in METRICS.items()})

    def fine(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, logit_scale: float) -> Outcomes:
        """Log-likelihood of the right caption of each image, and of the right image of each caption, averaged.

        None where instances have different numbers of images or captions, or more of one than of the other.
        """
        every = self.cosines(features, encode_texts)
        images, captions = every[0].shape
        if any(cosines.shape != (images, captions) for cosines in every) or images not in (1, captions):
            return {}
        ways = every if images == 1 else [np.concatenate([cosines, cosines.T]) for cosines in every]
        each = len(ways[0])  # choices of an instance
        cosines, labels = np.concatenate(ways), np.tile(np.arange(images), len(ways) * each // images)
        names = [self.set.samples[one.pictures[0]].key for one in self.choices]
        is_even = np.repeat(fine.has_even_hash(names), each)

        def of_instance(values: Float[np.ndarray, " c"]) -> Float[np.ndarray, " n"]:
            return values.reshape(-1, each).mean(axis=1)

        return {
            fine.LOG_LIKELIHOOD: of_instance(fine.log_likelihoods(cosines, labels, logit_scale)),
            fine.FITTED: of_instance(fine.cross_fitted(cosines, labels, is_even)),
        }

    def flag_samples(self, is_flagged: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " n"]:
        return np.array([is_flagged[rows].any() for rows in self.pictures])

    @staticmethod
    def replicates(
        outcomes: Outcomes, metric: str, *, num_resamples: int, generator: np.random.Generator
    ) -> Float[np.ndarray, " r"]:
        return mean_replicates(outcomes[METRICS[metric]], num_resamples=num_resamples, generator=generator)

    @staticmethod
    def on_draws(outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        hits = outcomes[METRICS[metric]].astype(np.float32)
        return (drawn @ hits).astype(np.float64) / drawn.shape[1]
