"""The engine: a long stage is a map over parts, then a small reduction.

A stage says which parts it has, makes one, and joins them. Parts are fixed by the data, results are pure
functions of the stage and its inputs, and a part is done when its record lies beside files of the recorded
sizes. So any number of workers, in any order, on any machine that sees the store, before and after a
crash, give the same bytes; and a part that is made twice does no harm.

Who makes them is a runner: this process, a pool of spawned ones, or a SLURM job array. All but the first
read a job file in the stage's folder of parts, which says what to make of which artifacts; `dbp parts run`
does the same for any other scheduler.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dbp.engine.progress import progress
from dbp.engine.stage import Stage
from dbp.engine.work import Part, Work


@dataclass(frozen=True)
class Parted(Stage):
    """A stage that is done in parts."""

    unit: ClassVar[str] = "parts"
    keeps_parts: ClassVar[bool] = False  # whether the artifact consists of its parts

    @property
    def in_one_piece(self) -> bool:
        """Whether `run` makes the parts itself, in their order, since what is in one decides the next."""
        return False

    @abstractmethod
    def parts(self, **inputs: Any) -> list[Part]:
        """The parts, fixed by the inputs."""

    @abstractmethod
    def make(self, part: Part, folder: Path, /, **inputs: Any) -> dict[str, Any]:
        """Write one part into a folder; return counts."""

    @abstractmethod
    def finish(self, work: Work, counts: Mapping[str, dict[str, Any]], **inputs: Any) -> dict[str, Any]:
        """Join the parts, which lie in `work.shared`, into the artifact; return counts."""

    def run(self, work: Work, **inputs: Any) -> dict[str, Any]:
        parts = self.parts(**inputs)
        assert len({part.name for part in parts}) == len(parts), "names of parts are unique"
        make_parts(self, work, parts, inputs)
        counts = {part.name: work.counts(part.name, part.cost) for part in parts}
        assert all(count is not None for count in counts.values()), "the runner made every part"
        found = self.finish(work, counts, **inputs)  # type: ignore[arg-type]
        work.kept[:] = [part.name for part in parts] if self.keeps_parts else []
        return found


def unfinished(work: Work, parts: Sequence[Part]) -> list[Part]:
    """Those of some parts that are still to be made."""
    return [part for part in parts if work.counts(part.name, part.cost) is None]


def make_parts(stage: Parted, work: Work, parts: Sequence[Part], inputs: Mapping[str, Any]) -> None:
    """Make the parts that are not finished, by the work's runner or here."""
    if left := unfinished(work, parts):
        (work.runner or make_here)(work, stage, left, inputs)


def make_here(work: Work, stage: Parted, parts: Sequence[Part], inputs: Mapping[str, Any]) -> None:
    """Make parts in this process, one after the other."""
    with progress(stage.name, len(parts), stage.unit) as bar:
        for part in parts:
            make_one(stage, work, part, inputs)
            bar.advance()


def make_one(stage: Parted, work: Work, part: Part, inputs: Mapping[str, Any]) -> None:
    """Make one part in this process."""
    work.part(part.name, lambda folder: stage.make(part, folder, **inputs), part.cost)


def share_out(parts: Sequence[Part], count: int) -> list[list[Part]]:
    """Parts in `count` groups of about equal cost, costliest first to the lightest group."""
    groups: list[list[Part]] = [[] for _ in range(max(1, min(count, len(parts))))]
    loads = [0.0] * len(groups)
    for part in sorted(parts, key=lambda part: (-part.cost, part.number)):
        at = loads.index(min(loads))
        groups[at].append(part)
        loads[at] += part.cost
    return groups
