"""Which run of ours may stand beside a row of a paper, and at which scale.

The method must be the same at any scale: what the rows went through, and the settings that define it.
What belongs to the scale (pool, model, samples seen, number of clusters, encoders, whole test sets) may
differ; then the run stands there as one at another scale, with what differs, and nothing is subtracted.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.paper.runs import OurRun
from evaluation.report.paper.tables import Want
from evaluation.results import not_whole

# A fraction kept further off than this, relative to the paper's, is another row.
OTHER_FRACTION = 0.15
# Tolerances of the same scale: points of the fraction kept; links of a pool die; budgets are rounded.
FRACTION, POOL, SAMPLES = 0.01, 0.2, 0.02


@dataclass(frozen=True)
class Arm:
    """Runs of ours that differ in the seed alone."""

    runs: tuple[OurRun, ...]

    @property
    def first(self) -> OurRun:
        return self.runs[0]

    @property
    def ground(self) -> tuple[Any, ...]:
        """What two arms must share before they are compared with each other."""
        return self.first.pool, self.first.model, self.first.limit

    def kept(self, of: str) -> float:
        """The fraction kept, in [0, 1], of the pool or of what dedup left."""
        whole = self.first.pool_rows if of == "pool" else self.first.num_dedup
        return self.first.num_kept / whole if whole else 1.0


def arms_of(runs: Iterable[OurRun]) -> list[Arm]:
    """Runs gathered by all but the seed; of several with one seed the last one counts."""
    found: dict[str, dict[int, OurRun]] = {}
    for run in runs:
        found.setdefault(run.alike, {})[run.seed] = run
    return [Arm(tuple(by_seed[seed] for seed in sorted(by_seed))) for by_seed in found.values()]


def candidates(want: Want, arms: Sequence[Arm]) -> list[tuple[Arm, tuple[str, ...]]]:
    """The arms of a method with what differs from the paper's scale, the nearest first."""
    found = [(arm, departures(want, arm)) for arm in arms if is_method(want, arm)]
    return sorted(found, key=lambda pair: (len(pair[1]), _distance(want, pair[0]), -len(pair[0].runs)))


def is_method(want: Want, arm: Arm) -> bool:
    """Whether an arm does what a row asks for, at any scale."""
    steps = arm.first.steps
    if want.is_loose and steps[:1] == ("semdedup",) and len(steps) > 1:
        steps = steps[1:]
    if steps != want.steps:
        return False
    if want.steps == ("published",):
        return arm.first.model in want.weights
    if not want.is_loose and _distance(want, arm) > OTHER_FRACTION:
        return False
    return not _differing(want.settings, arm.first.settings)


def departures(want: Want, arm: Arm) -> tuple[str, ...]:
    """What of an arm is not at the paper's scale, in words; nothing where all is."""
    run, found = arm.first, []
    if run.limit is not None:
        found.append(f"{run.limit} samples of each test set")
    found += not_whole(result for result, _ in run.results.values())
    if run.pool_kind == "published":
        return tuple(found)
    if run.pool_kind != "web":
        found.append(f"{run.pool_kind} pool, not web data")
    if run.steps != want.steps:
        found.append(f"{' + '.join(run.steps)}, not {' + '.join(want.steps)}")
    if want.pool_rows and not math.isclose(run.pool_rows, want.pool_rows, rel_tol=POOL):
        found.append(f"pool of {run.pool_rows:,}, not {_short(want.pool_rows)}")
    if want.keep is not None and abs(arm.kept(want.keep_of) - want.keep) > FRACTION:
        found.append(f"{arm.kept(want.keep_of):.1%} kept, not {want.keep:.0%}")
    if want.model and run.model != want.model:
        found.append(f"{run.model}, not {want.model}")
    if want.samples_seen and not math.isclose(run.samples_seen or 0, want.samples_seen, rel_tol=SAMPLES):
        found.append(f"{run.samples_seen or 0:,} samples seen, not {_short(want.samples_seen)}")
    found += _differing(want.at_scale, run.settings)
    return tuple(found)


def scale_of(arm: Arm) -> str:
    """Pool, rows kept, model and samples seen, in words."""
    run = arm.first
    if run.pool_kind == "published":
        return f"published weights {run.model}"
    return (
        f"{run.pool_kind} pool of {run.pool_rows:,}, {run.num_kept:,} kept, {run.model}, "
        f"{run.samples_seen or 0:,} samples seen"
        + (f", {run.limit} samples of each test set" if run.limit is not None else "")
    )


def _distance(want: Want, arm: Arm) -> float:
    """How far the fraction kept is from the paper's, relative to it."""
    return 0.0 if not want.keep else abs(arm.kept(want.keep_of) - want.keep) / want.keep


def _differing(wanted: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The settings that are not as wanted; a name need only be a part of what is set."""
    found = []
    for name, value in wanted.items():
        mine = settings.get(name)
        # A model is one model: ViT-B-32 is a part of ViT-B-32-quickgelu's name, and another model.
        is_same = (
            _letters(value) in _letters(mine)
            if isinstance(value, str) and isinstance(mine, str) and name != "model"
            else mine == value
        )
        if not is_same:
            found.append(f"{name} {'unset' if mine is None else mine}, not {value}")
    return found


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _short(number: float) -> str:
    for unit, factor in (("B", 1e9), ("M", 1e6)):
        if number >= factor:
            return f"{number / factor:,.3g} {unit}"
    return f"{number:,.0f}"
