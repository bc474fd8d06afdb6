"""WinoGAViL: which of 5 to 12 pictures a cue was given for; its distinct pictures are encoded once.

An instance has a cue, candidates, and K associations among them. A model takes the K candidates most
similar to the cue's prompt; its score is the Jaccard index of those and the associations.

Two protocols differ in ties, which only pictures of equal vectors make:

- `corrected` (default): the candidate that is named first wins.
- `datacomp`: the last one wins, as from the end of a stable `argsort`. (The reference's `argsort` is
  not stable in every version of NumPy.)

Source:
    DataComp, `eval_utils/wino_eval.py`; Bitton et al. 2022.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from evaluation.kinds.base import EncodeTexts, Kind, Outcomes, Scored
from evaluation.metrics.zero_shot import check_protocol
from evaluation.sets.data import EvaluationSet
from evaluation.sets.hub import open_winogavil
from evaluation.statistics.significance import resample_counts

# Smallest and largest number of candidates of the instances that a metric averages over.
METRICS = {
    "avg_jaccard_score": (0, 2**31),
    "jaccard_score_5": (5, 5),
    "jaccard_score_6": (6, 6),
    "jaccard_score_10": (10, 10),
    "jaccard_score_12": (12, 12),
    "jaccard_score_5-6": (0, 6),
    "jaccard_score_10-12": (10, 2**31),
}


def prompt(cue: str) -> str:
    """Write the text whose vector stands for a cue.

    >>> prompt("Eclipse"), prompt("hour")
    ('An eclipse', 'A hour')
    """
    cue = cue.lower()
    return f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"


def jaccard_scores(
    similarity: Float[np.ndarray, " p"],
    is_association: Bool[np.ndarray, " p"],
    instance: Int[np.ndarray, " p"],
    protocol: str = "corrected",
) -> Float[np.ndarray, " n"]:
    """Score the candidates of all instances at once.

    Args:
        similarity: Of each candidate to the cue of its instance.
        is_association: The truth.
        instance: 0..n-1, ascending; each has one association at least.
        protocol: Who wins a tie.

    Returns:
        For each instance, |taken and true| / |taken or true|, in [0, 1].

    Raises:
        ConfigError: Unknown protocol.
    """
    check_protocol(protocol)
    num_instances = int(instance[-1]) + 1
    place = np.arange(len(instance)) * (1 if protocol == "corrected" else -1)
    order = np.lexsort((place, -similarity, instance))
    starts = np.searchsorted(instance, np.arange(num_instances))
    # The instances stay where they were, so a place in the order is a rank inside its instance.
    rank = np.arange(len(instance)) - starts[instance]
    num_true = np.bincount(instance[is_association], minlength=num_instances)
    is_hit = is_association[order] & (rank < num_true[instance])
    hits = np.bincount(instance[is_hit], minlength=num_instances)
    return hits / (2 * num_true - hits)


def outcomes(
    scores: Float[np.ndarray, " n"], num_candidates: Int[np.ndarray, " n"], number: Int[np.ndarray, " n"]
) -> dict[str, np.ndarray]:
    """Keep of each instance what the metrics, intervals and paired tests need; `number`: which of the set it is."""
    return {"jaccard": scores, "num_candidates": num_candidates, "instance": number}


def metrics(outcomes: Outcomes) -> dict[str, float | None]:
    """Average the Jaccard indices of the instances of each metric; none where it has no instance."""
    values: dict[str, float | None] = {}
    for name in METRICS:
        scores = outcomes["jaccard"][_takes_part(outcomes, name)]
        values[name] = float(scores.mean()) if len(scores) else None
    return values


def replicates(
    outcomes: Outcomes, metric: str, *, num_resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, " r"]:
    """Compute a metric on resampled instances of the whole set, of every number of candidates."""
    values, counts = np.unique(_terms(outcomes, metric), axis=0, return_counts=True)
    whole = float(_means(counts[None] @ values, 0.0)[0])
    return resample_counts(
        counts, lambda drawn: _means(drawn @ values, whole), num_resamples=num_resamples, generator=generator
    )


def on_draws(outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
    """Compute a metric on given draws: how often each instance is taken in each."""
    terms = _terms(outcomes, metric)
    whole = float(_means(terms.sum(axis=0, keepdims=True), 0.0)[0])
    return _means(drawn.astype(np.float64) @ terms, whole)


def _takes_part(outcomes: Outcomes, metric: str) -> Bool[np.ndarray, " n"]:
    low, high = METRICS[metric]
    return (outcomes["num_candidates"] >= low) & (outcomes["num_candidates"] <= high)


def _terms(outcomes: Outcomes, metric: str) -> Float[np.ndarray, "n 2"]:
    """For each instance: its score and 1 if it takes part, else nothing."""
    takes_part = _takes_part(outcomes, metric).astype(np.float64)
    return np.stack([outcomes["jaccard"] * takes_part, takes_part], axis=1)


def _means(sums: Float[np.ndarray, "r 2"], otherwise: float) -> Float[np.ndarray, " r"]:
    """Divide; a draw without any instance of the metric says nothing, and counts as `otherwise`."""
    has_any = sums[:, 1] > 0
    return np.where(has_any, sums[:, 0] / np.where(has_any, sums[:, 1], 1.0), otherwise)


class Winogavil(Kind):
    """Jaccard index of the candidates nearest to a cue; a limit chooses instances, not pictures."""

    name, truth = "winogavil", ("instance",)
    is_halved = True
    replicates, on_draws = staticmethod(replicates), staticmethod(on_draws)

    @classmethod
    def open(cls, folder: Path, **given: Any) -> EvaluationSet:
        return open_winogavil(folder)

    def read(self) -> None:
        self.instances = [self.set.instances[number] for number in self.chosen]
        self.rows = list(dict.fromkeys(row for one in self.instances for row in one.candidates))
        self.sizes = np.array([len(one.candidates) for one in self.instances])
        place = {row: i for i, row in enumerate(self.rows)}
        # Of the candidates of all instances: which of the pictures it is.
        self.picture = np.array([place[row] for one in self.instances for row in one.candidates])

    def texts(self, protocol: str) -> list[str]:
        return [prompt(one.cue) for one in self.instances]

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        instance = np.repeat(np.arange(len(self.sizes)), self.sizes)
        truth = np.array([true for one in self.instances for true in one.is_association])
        cues = encode_texts(self.texts(protocol))
        similarity = np.einsum("pd,pd->p", features[self.picture], cues[instance])
        scores = jaccard_scores(similarity, truth, instance, protocol)
        found = outcomes(scores, self.sizes, np.array(self.chosen))
        return Scored(found, metrics(found))

    def flag_samples(self, is_flagged: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " n"]:
        return np.logical_or.reduceat(is_flagged[self.picture], np.cumsum(self.sizes) - self.sizes)
