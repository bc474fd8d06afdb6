"""Run a grid of arms and print one table.

    dbp sweep experiment=glyphs                       plan and run what is missing
    dbp sweep plan experiment=glyphs                  print the plan and stop
    dbp sweep experiment=glyphs launcher=slurm        hand what is missing to SLURM; again for the table
    dbp sweep status experiment=glyphs launcher=slurm [watch=true]
    dbp sweep cancel experiment=glyphs launcher=slurm
    dbp sweep experiment=glyphs sweep.select.temperature=[0.05,0.1,0.2] sweep.seed=[0,1,2]

An experiment is a grid: `sweep.arms` (name -> settings) at every point of `sweep.axes` (key -> values); on
the command line `sweep.KEY=[…]` makes any key an axis. Axes that a method does not read collapse. Everything
upstream of what varies is made once. `debug=smoke` runs the same grid with real models on a handful of pairs.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from dbp.clustering.together import assign_together
from dbp.config import build, compose
from dbp.curate import open_store
from dbp.engine.store import Store
from dbp.errors import ConfigError, DbpError, nearest
from dbp.names import word_of
from dbp.verbs.command_line import USES
from dbp.verbs.command_line import overrides as spelled_out
from slurm.cluster.jobs import Sweep
from slurm.cluster.launcher import Launcher
from slurm.composer import Composer
from slurm.encoder import encoder_points, known_encoders, train_encoders, untrained
from slurm.local import run_here
from slurm.plan import Plan, check_compute, distinct, expand, require_sets
from slurm.results.arms import write_arms
from slurm.results.summary import tell
from slurm.settings import Grid, SweepSettings
from slurm.task import leave_on_signals

VERBS = ("plan", "run", "status", "cancel")
OF_JOBS = ("prepare", "resume")  # what jobs of a sweep call


def main(arguments: list[str], config_dirs: list[str], print_only: bool = False) -> int:
    """Do what `dbp sweep` does; return 1 if an arm, or a task of one, failed."""
    from omegaconf import OmegaConf

    verb, arguments, watches = _verb(arguments)
    base, axes_said = divide(arguments)
    began = time.monotonic()
    config = compose("sweep", spelled_out(base), config_dirs, resolve=not print_only)
    if print_only:
        print(OmegaConf.to_yaml(config))
        return 0
    composer = Composer(spelled_out(base), config_dirs)
    settings: SweepSettings = build(config.sweep, SweepSettings, "sweep")
    settings.check()
    launcher: Launcher = build(config.launcher, Launcher, "launcher")
    grid = Grid.of(settings, axes_said, base, _name_of(config))
    store = open_store(config, say=print if verb in ("run", *OF_JOBS) else lambda line: None)
    out = Path(config.paths.runs).absolute() / "sweeps" / settings.name
    if verb == "plan" or config.dry_run:
        return _print_plan(composer, settings, grid, store)
    sweep = Sweep(composer, settings, launcher, grid, store, out, arguments, config_dirs)
    if verb == "cancel":
        return sweep.cancel()
    if verb == "status":
        return sweep.status(watches)
    if launcher.kind == "slurm" and verb != "prepare":
        return sweep.hand_in(by_person=verb == "run")
    if verb == "prepare":
        leave_on_signals()
    encoders = train_encoders(composer, settings, grid, store)
    points = expand(composer, grid.arms, grid.axes, encoders)
    require_sets(points)
    for point in points:
        store.get(point.nodes["index"])
    if verb == "prepare":
        return 0
    plan = distinct(points, store, grid.controls)
    check_compute(plan, settings.unequal_compute)
    missing = sum(store.entry(p.last) is None for p in plan.points)
    print(
        f"{len(plan.points)} runs of {len(plan.labels)} arms; {missing} to do, {len(plan.points) - missing} reused"
    )
    # So that a report knows what is not finished.
    write_arms(plan, store, settings, out, encoders=encoders)
    _cluster_together(plan, store)
    workers = settings.num_workers() if missing else 1
    failures = run_here(plan, store, workers, out / "vectors")
    return tell(plan, store, settings, failures, encoders, out, began)


def _verb(arguments: list[str]) -> tuple[str, list[str], bool]:
    """The verb of a command, its settings, and whether it is to go on watching."""
    verb = "run"
    if arguments and "=" not in arguments[0]:
        verb, *arguments = arguments
        if verb not in (*VERBS, *OF_JOBS):
            raise ConfigError(f"dbp sweep {verb}: {nearest(verb, VERBS)}")
    watches = verb == "status" and "watch=true" in arguments
    if watches:
        arguments = [word for word in arguments if word != "watch=true"]
    return verb, arguments, watches


def _cluster_together(plan: Plan, store: Store) -> None:
    """Make clusterings that differ in k in one reading of the vectors; what fails, its arm will say."""
    left = [point.nodes for point in plan.points if store.entry(point.last) is None]
    used = [nodes["cluster"] for nodes in left if nodes["cluster"] in nodes["select"].lineage()]
    with contextlib.suppress(DbpError):
        assign_together(store, used)


def divide(arguments: list[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Part `sweep.KEY=[…]`, an axis, from ordinary settings.

    Raises:
        ConfigError: An axis has no list of values.
    """
    from omegaconf import OmegaConf

    own = set(SweepSettings.__dataclass_fields__)
    # sweep.encoder is a setting; a list of choices of encoders is an axis all the same.
    encoders = {"encoder", *(f"encoder.{use}" for use in USES)}
    base: list[str] = []
    axes: dict[str, list[Any]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        name = key.removeprefix("sweep.")
        is_encoder_axis = name in encoders and value.startswith("[")
        if not (key.startswith("sweep.") and equals) or (name.split(".")[0] in own and not is_encoder_axis):
            base.append(argument)
            continue
        values = OmegaConf.to_container(OmegaConf.create(f"v: {value}"))["v"]  # type: ignore[index]
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"{argument}: an axis takes a list of values, as sweep.{name}=[0.1,0.2]. The "
                f"sweep's own settings are {', '.join(sorted(own))}."
            )
        axes[name] = values
    return base, axes


def _print_plan(composer: Composer, settings: SweepSettings, grid: Grid, store: Store) -> int:
    """Print every point, and of each stage whether it is there; build nothing."""
    own = encoder_points(composer, settings, grid)
    encoders = known_encoders(own, store)
    is_known = encoders is not None
    for node in dict.fromkeys(point.nodes["train"] for point in own.values()):
        print(
            f"{'encoder':<40} train {store.key(node) or 'key known after index'} "
            f"{'reused' if store.entry(node) else 'to build'}"
        )
    points = expand(composer, grid.arms, grid.axes, untrained(own) if encoders is None else encoders)
    if not is_known or any(store.key(point.last) is None for point in points):
        before = "the pool is indexed" if is_known else "the encoder is trained"
        print(f"{len(points)} points before collapsing; keys are known once {before}")
        for point in points:
            print(f"  {point.arm} {json.dumps(point.axes)}")
        return 0
    plan = distinct(points, store, grid.controls)
    check_compute(plan, settings.unequal_compute)
    for point in plan.points:
        state = {
            name: "reused" if store.entry(point.nodes[name]) else "to build"
            for name in ("select", "train", "evaluate")
        }
        print(f"{point.label:<40} seed {point.seed}  " + "  ".join(f"{n} {s}" for n, s in state.items()))
    print(f"{len(plan.points)} runs of {len(plan.labels)} arms, from {len(points)} points")
    return 0


def _name_of(config: Any) -> str:
    return word_of(str(config.select.get("_target_", "arm")))
