"""The tasks of WILDS: iWildCam (macro F1), Camelyon17 (slides), FMoW (years and regions).

Source:
    DataComp, `wilds_eval.py`, on WILDS 2.0.0. Departure: labels and metadata come with one sample,
    and must agree; there they are matched by order alone.
"""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float32

from evaluation.kinds.base import EncodeTexts, Kind, Outcomes, Scored
from evaluation.kinds.classification import Classification
from evaluation.metrics import groups, zero_shot
from evaluation.metrics.groups import Measure
from evaluation.metrics.zero_shot import is_right
from evaluation.sets.metadata import read_fields
from evaluation.sets.tar_index import EvaluationDataError


class WithMetadata(Classification):
    """A classification whose pictures come with metadata.

    `fields` names the columns, up to `num_more` may follow; those of `needed` are read, and `y`
    among them must be the label.
    """

    fields: ClassVar[tuple[str, ...]]
    needed: ClassVar[tuple[str, ...]]
    num_more: ClassVar[int] = 0
    clip_benchmark = None

    def read(self) -> None:
        super().read()
        self.columns = read_fields(self.set, self.rows, self.fields, self.needed, num_more=self.num_more)
        if "y" not in self.columns:
            return
        y = self.columns.pop("y")
        differs = np.flatnonzero(y != self.labels)
        if differs.size:
            i = int(differs[0])
            raise EvaluationDataError(
                f"{differs.size:,} of {len(y):,} labels of {self.set.folder} disagree with y "
                f"in their metadata; the first is {self.labels[i]} in .cls and {y[i]} in .npy of "
                f"{self.set.where(self.rows[i])}. The two come from different versions: fetch "
                "or write the set again."
            )


class Measured(Kind):
    """A kind with shares of hits in groups of pictures, beside the metrics of the class that follows, if any."""

    measures: ClassVar[tuple[Measure, ...]]

    def measured(self, outcomes: Outcomes, metrics: dict[str, float | None], protocol: str) -> Scored:
        """Outcomes and metrics with those of `measures` added."""
        outcomes = {**outcomes, "is_corrected": np.array(protocol == "corrected")}
        for measure in self.measures:
            metrics |= groups.metrics(measure, outcomes)
        return Scored(outcomes, metrics)

    @classmethod
    def replicates(cls, outcomes: Outcomes, metric: str, **drawing: Any) -> Float[np.ndarray, " r"]:
        if (measure := groups.find_measure(cls.measures, metric)) is None:
            return super().replicates(outcomes, metric, **drawing)
        return groups.replicates(measure, outcomes, metric, **drawing)

    @classmethod
    def on_draws(
        cls, outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]
    ) -> Float[np.ndarray, " r"]:
        if (measure := groups.find_measure(cls.measures, metric)) is None:
            return super().on_draws(outcomes, metric, drawn)
        return groups.on_draws(measure, outcomes, metric, drawn)


class InGroups(Measured, WithMetadata):
    """A classification with shares of hits in groups of pictures."""

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        scored = super().score(features, encode_texts, protocol)
        return self.measured({**scored.outcomes, **self.columns}, dict(scored.metrics), protocol)


class IWildCam(WithMetadata):
    """Animals of camera traps; pictures without one are a class like any other."""

    name = "iwildcam"
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

    @staticmethod
    def replicates(
        outcomes: Outcomes, metric: str, *, num_resamples: int, generator: np.random.Generator
    ) -> Float[np.ndarray, " r"]:
        if metric != "F1-macro_all":
            return zero_shot.replicates(outcomes, metric, num_resamples=num_resamples, generator=generator)
        label, predicted = outcomes["label"], outcomes["predicted"]
        return groups.macro_f1_replicates(label, predicted, num_resamples=num_resamples, generator=generator)

    @staticmethod
    def on_draws(outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        if metric != "F1-macro_all":
            return zero_shot.on_draws(outcomes, metric, drawn)
        return groups.macro_f1(outcomes["label"], outcomes["predicted"], drawn)


class Camelyon17(InGroups):
    """Patches of tissue with and without tumour, by slide."""

    name, truth = "camelyon17", ("label", "slide", "is_corrected")
    fields = ("hospital", "slide", "y")
    needed = ("slide", "y")
    num_more = 1
    measures = (Measure("acc", ("slide",), is_right, "acc_wg"),)


class FMoW(InGroups):
    """Buildings and land use from above, by year and by region of the world.

    DataComp means to leave the region Other out of the worst, and does not: it looks for the word
    in names that are numbers. The corrected protocol leaves it out.
    """

    name, truth = "fmow", ("label", "region", "year", "is_corrected")
    fields = ("region", "year", "y")
    needed = ("region", "year", "y")
    num_more = 1
    measures = (
        Measure("acc", ("year",), is_right, "acc_worst_year"),
        Measure("acc", ("region",), is_right, "acc_worst_region", not_in_worst=5),
    )
