"""The tasks of WILDS: iWildCam (macro F1), Camelyon17 (slides), FMoW (years and regions).

Source:
    DataComp, `wilds_eval.py`, on WILDS 2.0.0. Departure: labels and metadata come with one sample,
    and must agree; there they are matched by order alone.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float32

from evaluation.kinds.base import EncodeTexts, Kind, Outcomes, Scored
from evaluation.kinds.classification import Classification
from evaluation.metrics import groups, zero_shot
from evaluation.metrics.groups import Measure
from evaluation.sets.data import EvaluationSet, open_set
from evaluation.sets.metadata import read_fields
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.statistics.significance import mean_replicates


class WithMetadata(Classification):
    """A classification whose pictures come with metadata.

    `fields` names the columns, up to `num_more` may follow; those of `needed` are read, and `y`
    among them must be the label.
    """

    fields: ClassVar[tuple[str, ...]]
    needed: ClassVar[tuple[str, ...]]
    num_more: ClassVar[int] = 0

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        *,
        limit: int | None = None,
        seed: int = 0,
        max_templates: int | None = None,
    ) -> None:
        super().__init__(evaluation_set, limit=limit, seed=seed, max_templates=max_templates)
        self.columns = read_fields(evaluation_set, self.rows, self.fields, self.needed, num_more=self.num_more)
        if "y" not in self.columns:
            return
        y = self.columns.pop("y")
        differs = np.flatnonzero(y != self.labels)
        if differs.size:
            i = int(differs[0])
            raise EvaluationDataError(
                f"{differs.size:,} of {len(y):,} labels of {evaluation_set.folder} disagree with y "
                f"in their metadata; the first is {self.labels[i]} in .cls and {y[i]} in .npy of "
                f"{evaluation_set.where(self.rows[i])}. The two come from different versions: fetch "
                "or write the set again."
            )


class InGroups(WithMetadata):
    """A classification with shares of hits in groups of pictures."""

    measures: ClassVar[tuple[Measure, ...]]

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        scored = super().score(features, encode_texts, protocol)
        is_corrected = np.array(protocol == "corrected")
        outcomes = {**scored.outcomes, **self.columns, "is_corrected": is_corrected}
        metrics = dict(scored.metrics)
        for measure in self.measures:
            metrics |= groups.metrics(measure, outcomes)
        return Scored(outcomes, metrics)


def is_right(outcomes: Outcomes) -> Bool[np.ndarray, " n"]:
    """Whether the best class is the right one. By argmax, unlike DataComp's acc1."""
    return outcomes["predicted"] == outcomes["label"]


class IWildCam(WithMetadata):
    """Animals of camera traps; pictures without one are a class like any other."""

    fields = ("location", "sequence", "year", "month", "day", "hour", "minute", "second", "y")
    needed = ("y",)
    num_more = 1  # WILDS adds whether a picture is of the source domain

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        scored = super().score(features, encode_texts, protocol)
        label, predicted = scored.outcomes["label"], scored.outcomes["predicted"]
        more = {
            "acc_avg": float((predicted == label).mean()),
            "recall-macro_all": zero_shot.mean_per_class_recall(predicted, label),
            "F1-macro_all": float(groups.macro_f1(label, predicted, np.ones((1, len(label))))[0]),
        }
        return Scored(scored.outcomes, {**scored.metrics, **more})


class Camelyon17(InGroups):
    """Patches of tissue with and without tumour, by slide."""

    fields = ("hospital", "slide", "y")
    needed = ("slide", "y")
    num_more = 1
    measures = (Measure("acc", ("slide",), is_right, "acc_wg"),)


class FMoW(InGroups):
    """Buildings and land use from above, by year and by region of the world.

    DataComp means to leave the region Other out of the worst, and does not: it looks for the word
    in names that are numbers. The corrected protocol leaves it out.
    """

    fields = ("region", "year", "y")
    needed = ("region", "year", "y")
    num_more = 1
    measures = (
        Measure("acc", ("year",), is_right, "acc_worst_year"),
        Measure("acc", ("region",), is_right, "acc_worst_region", not_in_worst=5),
    )


def replicates(
    measures: Sequence[Measure],
    outcomes: Outcomes,
    metric: str,
    *,
    num_resamples: int,
    generator: np.random.Generator,
) -> Float[np.ndarray, " r"]:
    """Compute a metric of measures, or of plain classification, on resampled pictures."""
    measure = groups.find_measure(measures, metric)
    if measure is None:
        return zero_shot.replicates(outcomes, metric, num_resamples=num_resamples, generator=generator)
    return groups.replicates(measure, outcomes, metric, num_resamples=num_resamples, generator=generator)


def on_draws(
    measures: Sequence[Measure],
    outcomes: Outcomes,
    metric: str,
    drawn: Float32[np.ndarray, "r n"],
) -> Float[np.ndarray, " r"]:
    """Compute a metric of measures, or of plain classification, on given draws."""
    measure = groups.find_measure(measures, metric)
    if measure is None:
        return zero_shot.on_draws(outcomes, metric, drawn)
    return groups.on_draws(measure, outcomes, metric, drawn)


def iwildcam_replicates(
    outcomes: Outcomes, metric: str, *, num_resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, " r"]:
    """Compute a metric of iWildCam on resampled pictures."""
    if metric == "F1-macro_all":
        label, predicted = outcomes["label"], outcomes["predicted"]
        return groups.macro_f1_replicates(label, predicted, num_resamples=num_resamples, generator=generator)
    if metric == "acc_avg":
        return mean_replicates(is_right(outcomes), num_resamples=num_resamples, generator=generator)
    name = "mean_per_class_recall" if metric == "recall-macro_all" else metric
    return zero_shot.replicates(outcomes, name, num_resamples=num_resamples, generator=generator)


def iwildcam_on_draws(
    outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """Compute a metric of iWildCam on given draws."""
    if metric == "F1-macro_all":
        return groups.macro_f1(outcomes["label"], outcomes["predicted"], drawn)
    if metric == "acc_avg":
        return (drawn @ is_right(outcomes).astype(np.float32)).astype(np.float64) / drawn.sum(axis=1)
    name = "mean_per_class_recall" if metric == "recall-macro_all" else metric
    return zero_shot.on_draws(outcomes, name, drawn)


def in_groups(scorer: type[InGroups]) -> Kind:
    """Make the kind of a classification with groups."""
    return Kind(
        partial(open_set, kind="classification"),
        scorer,
        partial(replicates, scorer.measures),
        partial(on_draws, scorer.measures),
    )


KINDS: dict[str, Kind] = {
    "iwildcam": Kind(partial(open_set, kind="classification"), IWildCam, iwildcam_replicates, iwildcam_on_draws),
    "camelyon17": in_groups(Camelyon17),
    "fmow": in_groups(FMoW),
}
