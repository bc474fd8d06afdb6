"""Shares of hits in groups of samples and in the worst group, and macro F1, as pure functions.

The values that occur decide which groups there are: a field has as many as its largest value plus
one, and several fields make every combination. A group without samples has no share and is left
out of the worst.

Two protocols differ in what the worst is; outcomes say with `is_corrected` which one they follow:

- `corrected`: a share of harm is worst where it is highest, and a group that is no real group may
  be left out of the worst.
- `datacomp`: the worst is the lowest share of all groups, of whatever.

Source:
    WILDS 2.0.0, `common/grouper.py` and `common/metrics`; DataComp, `wilds_eval.py` and
    `fairness_eval.py`. Departure: means in float64, not float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

from evaluation.kinds.base import Outcomes
from evaluation.statistics.significance import resample_counts


@dataclass(frozen=True)
class Measure:
    """A share of hits: over all samples, in each group, and in the worst group.

    Args:
        name: What its metrics begin with, as `acc`.
        fields: Names of the outcomes whose values make the groups; the first counts fastest.
        hits: From outcomes to whether each sample is a hit.
        worst: Name of the worst group's metric.
        is_harm: Whether hits are bad, so that the corrected worst is the highest share.
        not_in_worst: Number of the group that the corrected worst leaves out.
    """

    name: str
    fields: tuple[str, ...]
    hits: Callable[[Outcomes], Bool[np.ndarray, " n"]]
    worst: str
    is_harm: bool = False
    not_in_worst: int | None = None

    def owns(self, metric: str) -> bool:
        """Whether a metric is one of this measure."""
        group = f"{self.name}_{self.fields[-1]}:"
        return metric in (f"{self.name}_avg", self.worst) or metric.startswith(group)


def number_groups(columns: Mapping[str, Int[np.ndarray, " n"]]) -> tuple[np.ndarray, list[str]]:
    """Give each combination of fields a number, the first field fastest.

    Args:
        columns: Values of each field, from 0.

    Returns:
        The group of each sample, and the name of every group, as `race:2_gender:1` (the last field
        first), whether or not it has samples.
    """
    group, names = np.zeros(len(next(iter(columns.values()))), dtype=np.int64), [""]
    for field, values in columns.items():
        group = group + len(names) * values
        names = [
            f"{field}:{value}" + (f"_{name}" if name else "")
            for value in range(int(values.max()) + 1)
            for name in names
        ]
    return group, names


def metrics(measure: Measure, outcomes: Outcomes) -> dict[str, float | None]:
    """Compute every metric of a measure, in DataComp's order and by its names.

    Returns:
        `NAME_avg`, `NAME_GROUP` and `count_GROUP` for each group (none and 0 where it has no
        samples), and the worst group's.
    """
    cells, names = _cells(measure, outcomes)
    counts = np.bincount(cells, minlength=2 * len(names))[None]
    wanted = [f"{measure.name}_avg", *(f"{measure.name}_{name}" for name in names), measure.worst]
    values: dict[str, float | None] = {}
    for metric in wanted:
        value = float(_value(measure, metric, outcomes, names, counts)[0])
        values[metric] = None if np.isnan(value) else value
        group = metric.removeprefix(f"{measure.name}_")
        if group in names:
            values[f"count_{group}"] = float(counts[0].reshape(-1, 2)[names.index(group)].sum())
    return values


def replicates(
    measure: Measure, outcomes: Outcomes, metric: str, *, num_resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, " r"]:
    """Compute a metric on resampled samples.

    A resample in which the metric has no value, since nobody of a small group is in it, is drawn
    again; the worst group is the worst of those that are drawn.
    """
    cells, names = _cells(measure, outcomes)
    counts = np.bincount(cells, minlength=2 * len(names))

    def statistic(drawn: Int[np.ndarray, "r u"]) -> Float[np.ndarray, " r"]:
        return _value(measure, metric, outcomes, names, drawn)

    assert not np.isnan(statistic(counts[None])[0]), f"{metric} has no value, so no replicates"
    values = np.full(num_resamples, np.nan)
    while (is_missing := np.isnan(values)).any():
        values[is_missing] = resample_counts(
            counts, statistic, num_resamples=int(is_missing.sum()), generator=generator
        )
    return values


def on_draws(
    measure: Measure, outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """Compute a metric on given draws: how often each sample is taken in each.

    NaN where nobody of the groups that it is about is drawn.
    """
    cells, names = _cells(measure, outcomes)
    return _value(measure, metric, outcomes, names, sum_cells(drawn, cells, 2 * len(names)))


def macro_f1(
    labels: Int[np.ndarray, " u"], predicted: Int[np.ndarray, " u"], drawn: Shaped[np.ndarray, "r u"]
) -> Float[np.ndarray, " r"]:
    """Mean over the classes that occur in the labels of F1, in each of r draws.

    A wrong prediction of a class that does not occur costs the right class's recall and nothing else.

    Args:
        labels: Right classes.
        predicted: Predicted classes.
        drawn: How often each sample, or each distinct pair of the two, is taken.

    Source:
        scikit-learn's `f1_score(average="macro", labels=unique(labels))`, as WILDS calls it.
    """
    classes, number = np.unique(labels, return_inverse=True)
    place = np.searchsorted(classes, predicted).clip(max=len(classes) - 1)
    occurs = classes[place] == predicted
    is_right = labels == predicted
    sizes = sum_cells(drawn, number, len(classes))
    guesses = sum_cells(drawn[:, occurs], place[occurs], len(classes))
    right = sum_cells(drawn[:, is_right], number[is_right], len(classes))
    # The floor keeps a class that is not drawn from a division by nought; it is left out.
    f1 = np.where(sizes > 0, 2 * right / np.maximum(sizes + guesses, 1), 0)
    return f1.sum(axis=1) / (sizes > 0).sum(axis=1)


def macro_f1_replicates(
    labels: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    *,
    num_resamples: int,
    generator: np.random.Generator,
) -> Float[np.ndarray, " r"]:
    """Compute macro F1 on resampled samples; a class that is not drawn is left out."""
    # All predictions of classes that do not occur count alike; fewer outcomes are drawn faster.
    predicted = np.where(np.isin(predicted, labels), predicted, -1)
    pairs, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
    return resample_counts(
        counts, lambda drawn: macro_f1(pairs[0], pairs[1], drawn), num_resamples=num_resamples, generator=generator
    )


def sum_cells(
    drawn: Shaped[np.ndarray, "r n"], cells: Int[np.ndarray, " n"], num_cells: int
) -> Float[np.ndarray, "r c"]:
    """Sum how often samples are taken over those of each cell, 0..num_cells-1."""
    order = np.argsort(cells, kind="stable")
    occurs, starts = np.unique(cells[order], return_index=True)
    sums = np.zeros((len(drawn), num_cells))
    if len(order):
        sums[:, occurs] = np.add.reduceat(drawn[:, order], starts, axis=1)
    return sums


def find_measure(measures: Sequence[Measure], metric: str) -> Measure | None:
    """Find the measure that a metric belongs to, if any."""
    return next((measure for measure in measures if measure.owns(metric)), None)


def _cells(measure: Measure, outcomes: Outcomes) -> tuple[np.ndarray, list[str]]:
    """Number each sample by its group and, within it, 0 for a miss and 1 for a hit."""
    group, names = number_groups({field: outcomes[field] for field in measure.fields})
    return 2 * group + measure.hits(outcomes), names


def _value(
    measure: Measure, metric: str, outcomes: Outcomes, names: list[str], drawn: Shaped[np.ndarray, "r c"]
) -> Float[np.ndarray, " r"]:
    """A metric from how many samples of each cell are drawn; NaN where it has no value."""
    cells = drawn.reshape(len(drawn), len(names), 2)
    hits, sizes = cells[:, :, 1].astype(np.float64), cells.sum(axis=2)
    if metric == f"{measure.name}_avg":
        return hits.sum(axis=1) / sizes.sum(axis=1)
    shares = np.divide(hits, sizes, out=np.full(hits.shape, np.nan), where=sizes > 0)
    if metric != measure.worst:
        return shares[:, names.index(metric.removeprefix(f"{measure.name}_"))]
    is_corrected = bool(outcomes["is_corrected"])
    if is_corrected and measure.not_in_worst is not None:
        shares[:, measure.not_in_worst : measure.not_in_worst + 1] = np.nan
    # fmin and fmax skip NaN.
    return (np.fmax if is_corrected and measure.is_harm else np.fmin).reduce(shares, axis=1)
