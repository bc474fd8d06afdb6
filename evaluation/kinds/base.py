"""What a kind of task is: how its sets are opened, which pictures and texts it needs, how vectors are scored.

A kind never runs a model. It says which pictures and texts it needs; the runner encodes those of all
tasks together, each distinct text and each picture once, and hands the vectors back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float32

from evaluation.sets.data import EvaluationSet, open_set

Outcomes = Mapping[str, np.ndarray]
EncodeTexts = Callable[[Sequence[str]], Float[np.ndarray, "t d"]]


@dataclass(frozen=True)
class Scored:
    """One task of one model under one protocol.

    Args:
        outcomes: Arrays by name, enough for every metric, interval and paired test.
        metrics: Shares in [0, 1] by name, as DataComp names them, none where one has no value. A name
            that begins with `count_` is a number of samples.
    """

    outcomes: Outcomes
    metrics: Mapping[str, float | None]


class Kind(ABC):
    """Class: one kind of task. Object: a task of it on one set, annotations checked before any picture is decoded.

    A class declares:
        name: As in `tasks.csv`.
        truth: The outcomes that are of the set and not of a checkpoint: equal in results that are compared.
        owner: The outcome that says which sample a row belongs to, where some outcomes have several rows a sample.
        per_owner: Those outcomes.
        is_halved: Whether DataComp encodes its pictures under float16 autocast on a GPU: its functions' defaults.
        clip_benchmark: What CLIP_benchmark calls its tasks, and the metrics that it reports, by their beginning.

    An object has:
        chosen: The samples that take part: pictures, or instances of WinoGAViL and Winoground.
        rows: The pictures that it needs, in the order in which `score` takes their vectors.
        num_samples, num_available: What a metric averages over; how many there are without a limit.
    """

    name: ClassVar[str]
    truth: ClassVar[tuple[str, ...]]
    owner: ClassVar[str | None] = None
    per_owner: ClassVar[tuple[str, ...]] = ()
    is_halved: ClassVar[bool] = False
    clip_benchmark: ClassVar[tuple[str, tuple[str, ...]] | None] = None

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        *,
        limit: int | None = None,
        seed: int = 0,
        max_templates: int | None = None,
    ) -> None:
        """Choose samples and read their annotations.

        Args:
            evaluation_set: As `open` gives it.
            limit: Only so many samples, chosen at random; none for all.
            seed: Of that choice.
            max_templates: Only the first prompts of each class; none for all.

        Raises:
            EvaluationDataError: Annotations are missing or wrong.
        """
        self.set, self.max_templates = evaluation_set, max_templates
        self.num_available = len(evaluation_set.instances or evaluation_set.choices or evaluation_set)
        self.rows = self.chosen = choose_rows(self.num_available, limit, seed)
        self.num_samples = len(self.chosen)
        self.read()

    @classmethod
    def open(cls, folder: Path, **given: Any) -> EvaluationSet:
        """The set in a folder; `given` are class names and templates in place of the folder's (`Task.given`).

        Raises:
            EvaluationDataError: It is not there, damaged, or of another kind.
        """
        return open_set(folder, kind=cls.name, **given)

    @abstractmethod
    def read(self) -> None:
        """Read and check the annotations of the chosen samples."""

    @abstractmethod
    def texts(self, protocol: str) -> list[str]:
        """Every text whose vector `score` asks for; some may be named twice."""

    @abstractmethod
    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        """Score the unit vectors of the pictures `rows`.

        Raises:
            EvaluationDataError: Names or templates cannot be used.
        """

    def fine(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, logit_scale: float) -> Outcomes:
        """Finer measures of each sample, by the names of `evaluation/metrics/fine.py`; none for most kinds."""
        return {}

    def measure(
        self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str, logit_scale: float
    ) -> Scored:
        """Score, with the finer measures beside under `corrected`; they are of no published protocol."""
        scored = self.score(features, encode_texts, protocol)
        if protocol != "corrected":
            return scored
        finer = self.fine(features, encode_texts, logit_scale)
        means = {name: float(values.mean()) for name, values in finer.items()}
        return Scored({**scored.outcomes, **finer}, {**scored.metrics, **means})

    def flag_samples(self, is_flagged: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " n"]:
        """Which samples have a picture that is flagged; `is_flagged` is of the pictures `rows`."""
        return is_flagged

    @staticmethod
    @abstractmethod
    def replicates(
        outcomes: Outcomes, metric: str, *, num_resamples: int, generator: np.random.Generator
    ) -> Float[np.ndarray, " r"]:
        """A metric on resampled test samples, one value a resample."""

    @staticmethod
    @abstractmethod
    def on_draws(outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        """A metric on given draws, `drawn[r, i]` times sample i in resample r.

        The same draws serve several checkpoints, so that what they share in luck cancels.
        """


def choose_rows(num_rows: int, limit: int | None, seed: int) -> list[int]:
    """Choose `limit` rows at random, in order, since sets are often sorted by class; all without a limit."""
    if limit is None or limit >= num_rows:
        return list(range(num_rows))
    generator = np.random.default_rng(seed)
    return sorted(generator.choice(num_rows, limit, replace=False).tolist())
