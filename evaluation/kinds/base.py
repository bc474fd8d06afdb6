"""What a kind of task must be able to do: choose its pictures, name its texts, score vectors.

A kind never runs a model. It says which pictures and texts it needs; the runner encodes those of all
tasks together, each distinct text and each picture once, and hands the vectors back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

from evaluation.sets.data import EvaluationSet

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


class Scorer(ABC):
    """One task on one set, its annotations read and checked before any picture is decoded.

    Args:
        rows: The pictures of the set that it needs, in the order in which `score` takes vectors.
        num_samples: What a metric averages over: pictures, or instances of WinoGAViL.
        num_available: How many there are without a limit.
    """

    rows: list[int]
    num_samples: int
    num_available: int

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
        self,
        features: Float[np.ndarray, "n d"],
        encode_texts: EncodeTexts,
        protocol: str,
        logit_scale: float,
    ) -> Scored:
        """Score, with the finer measures beside under `corrected`; they are of no published protocol."""
        scored = self.score(features, encode_texts, protocol)
        if protocol != "corrected":
            return scored
        finer = self.fine(features, encode_texts, logit_scale)
        means = {name: float(values.mean()) for name, values in finer.items()}
        return Scored({**scored.outcomes, **finer}, {**scored.metrics, **means})


@runtime_checkable
class Prepare(Protocol):
    """From a set on disk to its scorer.

    Args:
        evaluation_set: The set.
        limit: Only so many samples, chosen by chance; none for all.
        seed: Of that choice.
        max_templates: Only the first prompts of each class; none for all.

    Raises:
        EvaluationDataError: Annotations are missing or wrong.
    """

    def __call__(
        self,
        evaluation_set: EvaluationSet,
        *,
        limit: int | None = None,
        seed: int = 0,
        max_templates: int | None = None,
    ) -> Scorer: ...


@runtime_checkable
class Replicates(Protocol):
    """A metric on resampled test samples, from outcomes, one value a resample."""

    def __call__(
        self,
        outcomes: Outcomes,
        metric: str,
        *,
        num_resamples: int,
        generator: np.random.Generator,
    ) -> Float[np.ndarray, " r"]: ...


@dataclass(frozen=True)
class Kind:
    """How the tasks of one kind are opened and scored, and where their intervals come from.

    Args:
        open: From the set's folder to the set.
        prepare: As `Prepare`.
        replicates: As `Replicates`.
        on_draws: A metric on given draws, `drawn[r, i]` times sample i in resample r; the same draws
            serve several checkpoints, so that what they share in luck cancels.
    """

    open: Callable[[Path], EvaluationSet]
    prepare: Prepare
    replicates: Replicates
    on_draws: Callable[[Outcomes, str, Float32[np.ndarray, "r n"]], Float[np.ndarray, " r"]]


def choose_rows(num_rows: int, limit: int | None, seed: int) -> list[int]:
    """Choose `limit` rows by chance, in order; all of them without a limit.

    Chance, since sets are often sorted by class.
    """
    if limit is None or limit >= num_rows:
        return list(range(num_rows))
    generator = np.random.default_rng(seed)
    return sorted(generator.choice(num_rows, limit, replace=False).tolist())
