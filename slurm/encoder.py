"""What a sweep is asked for, and the encoders that it trains before any key that rests on them is known.

An encoder is half trained and its weights differ by processor, so it is a part of the noise: with
`sweep.encoder_by_seed` each seed of the arms has an encoder, and so a curation, of its own.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dbp.engine.store import Store
from dbp.errors import DbpError, WorldError
from dbp.planning import preflight
from dbp.planning.plan import flat
from slurm.composer import Composer, stages
from slurm.local import run_points
from slurm.plan import SEED, Plan, Point, check_compute, distinct, expand, require_unseen
from slurm.settings import Grid, SweepSettings

Encoders = Mapping[int, Mapping[str, str]]  # seed of an arm -> checkpoint and config of its encoder


@dataclass(frozen=True)
class Asked:
    """What a sweep is asked for, and the store that it fills."""

    composer: Composer
    settings: SweepSettings
    grid: Grid
    store: Store

    def points(self, encoders: Encoders) -> list[Point]:
        """Every arm at every point of the axes."""
        return expand(self.composer, self.grid.arms, self.grid.axes, encoders)

    def plan(self, points: list[Point]) -> Plan:
        """The points, each once; their keys are known."""
        plan = distinct(points, self.store, self.grid.controls)
        check_compute(plan, self.settings.unequal_compute)
        return plan

    def outlook(self) -> tuple[list[Point], Plan | None, Encoders | None]:
        """All points; the plan, once their keys are known; the sweep's encoders, once they are trained."""
        own = self.encoder_points()
        encoders = self.known_encoders(own)
        points = self.points(_untrained(own) if encoders is None else encoders)
        is_known = encoders is not None and all(self.store.key(point.last) for point in points)
        return points, self.plan(points) if is_known else None, encoders

    def checked(self) -> list[Point] | None:
        """Stop if the sweep needs what is not at hand; all points, if their encoders are known.

        Raises:
            DbpError: All that is missing.
        """
        own, encoders = self.encoder_points(), None
        with contextlib.suppress(DbpError):  # said below, with all else that is missing
            encoders = self.known_encoders(own)
        points = self.points(_untrained(own) if encoders is None else encoders)
        to_come = () if encoders is not None else [files["checkpoint"] for files in _untrained(own).values()]
        trained = [point.nodes["train"] for point in own.values()]
        preflight.require(self.store, [*trained, *(point.last for point in points)], to_come)
        require_unseen(points, self.store)
        return points if encoders is not None else None

    def encoder_points(self) -> dict[int, Point]:
        """Seed of the arms -> the training of its encoder; one for all seeds, or one each."""
        settings, grid = self.settings, self.grid
        if not settings.encoder:
            return {}
        base = int(self.composer.config({}).seed)
        given = [arm[SEED] for arm in grid.arms.values() if SEED in arm]
        asked = flat(settings.encoder)
        found = {}
        for seed in dict.fromkeys(int(seed) for seed in [*grid.axes.get(SEED, [base]), *given]):
            own = {SEED: int(asked.get(SEED, base)) + seed} if settings.encoder_by_seed else {}
            config = self.composer.config(asked | own)
            found[seed] = Point("encoder", {}, config, stages(config), "encoder", int(config.seed))
        return found

    def known_encoders(self, points: Mapping[int, Point]) -> dict[int, dict[str, str]] | None:
        """The files of all encoders; none as long as one is to be trained."""
        entries = {seed: self.store.entry(point.nodes["train"]) for seed, point in points.items()}
        found = {seed: encoder_files(entry.folder) for seed, entry in entries.items() if entry}
        return found if len(found) == len(points) else None

    def train_encoders(
        self, check: Callable[[list[Point]], object] = lambda points: None
    ) -> dict[int, dict[str, str]]:
        """Train the encoders that the arms use; return their checkpoints and configs.

        `check` is called with the points of the arms before any is trained.

        Raises:
            WorldError: One could not be trained.
        """
        points, store = self.encoder_points(), self.store
        if (found := self.known_encoders(points)) is not None:
            return found
        check(self.points(_untrained(points)))  # a wrong setting stops before minutes are spent
        each = list({repr(point.config): point for point in points.values()}.values())
        for point in each:
            store.get(point.nodes["select"])
        if len(each) == 1:
            store.get(each[0].nodes["train"])
        elif failures := run_points(each, store, self.settings.num_workers(), print, last="train"):
            raise WorldError(f"an encoder could not be trained: {next(iter(failures.values()))}")
        found = self.known_encoders(points)
        assert found is not None, "all encoders are trained"
        return found


def _untrained(points: Mapping[int, Point]) -> dict[int, dict[str, str]]:
    """What stands for encoders that are to be trained, so that arms can be composed and checked."""
    return {seed: encoder_files(Path(f"untrained-{seed}")) for seed in points}


def encoder_files(folder: Path) -> dict[str, str]:
    """What an arm's config has of its encoder: weights and the model's config."""
    return {"checkpoint": str(folder / "weights.pt"), "config": str(folder / "open_clip_config.json")}


def encoder_keys(encoders: Encoders) -> tuple[str, ...]:
    """The keys of the runs that trained them, each once."""
    keys = [Path(found["checkpoint"]).parent.name for found in encoders.values() if found]
    return tuple(dict.fromkeys(keys))
