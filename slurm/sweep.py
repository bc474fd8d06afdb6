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
from dbp.errors import ConfigError, DbpError, nearest
from dbp.names import word_of
from dbp.pools.rates import column_nodes
from dbp.verbs.command_line import USES
from dbp.verbs.command_line import overrides as spelled_out
from slurm.cluster.jobs import Sweep
from slurm.cluster.launcher import Launcher
from slurm.composer import Composer
from slurm.encoder import Asked
from slurm.local import run_here
from slurm.plan import Point, require_unseen
from slurm.results.arms import write_arms
from slurm.results.summary import tell
from slurm.settings import Grid, SweepSettings
from slurm.task import leave_on_signals

VERBS = ("plan", "run", "status", "cancel")
OF_JOBS = ("prepare", "resume")  # what jobs of a sweep call


def main(arguments: list[str], config_dirs: list[str], print_only: bool = False) -> int:
    """Do what `dbp sweep` does; return 1 if an arm, or a task of one, failed."""
    from omegaconf import OmegaConf

    verb = "run"
    if arguments and "=" not in arguments[0]:
        verb, *arguments = arguments
        if verb not in (*VERBS, *OF_JOBS):
            raise ConfigError(f"dbp sweep {verb}: {nearest(verb, VERBS)}")
    watches = verb == "status" and "watch=true" in arguments
    if watches:
        arguments = [word for word in arguments if word != "watch=true"]
    base, axes_said = divide(arguments)
    began = time.monotonic()
    config = compose("sweep", spelled_out(base), config_dirs, resolve=not print_only)
    if print_only:
        print(OmegaConf.to_yaml(config))
        return 0
    settings: SweepSettings = build(config.sweep, SweepSettings, "sweep")
    launcher: Launcher = build(config.launcher, Launcher, "launcher")
    grid = Grid.of(settings, axes_said, base, word_of(str(config.select.get("_target_", "arm"))))
    store = open_store(config, say=print if verb in ("run", *OF_JOBS) else lambda line: None)
    asked = Asked(Composer(spelled_out(base), config_dirs), settings, grid, store)
    out = Path(config.paths.runs).absolute() / "sweeps" / settings.name
    if verb == "plan" or config.dry_run:
        return _print_plan(asked)
    sweep = Sweep(asked, launcher, out, arguments, config_dirs)
    if verb == "cancel":
        return sweep.cancel()
    if verb == "status":
        return sweep.status(watches)
    if launcher.kind == "slurm" and verb != "prepare":
        with store.steady():
            return sweep.hand_in(by_person=verb == "run")
    if verb == "prepare":
        leave_on_signals()

    def check(points: list[Point]) -> None:
        for point in points:
            store.get(point.nodes["index"])
            for column in column_nodes(point.nodes).values():
                store.get(column)
        require_unseen(points, store)

    checked = None if verb == "prepare" else asked.checked()  # what a job submits was checked before
    encoders = asked.train_encoders(check)
    check(points := checked or asked.points(encoders))
    if verb == "prepare":
        return 0
    plan = asked.plan(points)
    left = [point.nodes for point in plan.points if store.entry(point.last) is None]
    missing = len(left)
    print(
        f"{len(plan.points)} runs of {len(plan.labels)} arms; {missing} to do, {len(plan.points) - missing} reused"
    )
    # So that a report knows what is not finished.
    write_arms(plan, store, settings, out, encoders=encoders)
    # Clusterings that differ in k are made in one reading of the vectors; what fails, its arm will say.
    used = [nodes["cluster"] for nodes in left if nodes["cluster"] in nodes["select"].lineage()]
    with contextlib.suppress(DbpError):
        assign_together(store, used)
    failures = run_here(plan, store, settings.num_workers() if missing else 1, out / "vectors")
    return tell(plan, store, settings, failures, encoders, out, began)


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


def _print_plan(asked: Asked) -> int:
    """Print every point, and of each stage whether it is there; build nothing."""
    store = asked.store
    for node in dict.fromkeys(point.nodes["train"] for point in asked.encoder_points().values()):
        print(
            f"{'encoder':<40} train {store.key(node) or 'key known after index'} "
            f"{'reused' if store.entry(node) else 'to build'}"
        )
    points, plan, encoders = asked.outlook()
    if plan is None:
        before = "the encoder is trained" if encoders is None else "the pool is indexed"
        print(f"{len(points)} points before collapsing; keys are known once {before}")
        for point in points:
            print(f"  {point.arm} {json.dumps(point.axes)}")
        return 0
    for point in plan.points:
        state = {
            name: "reused" if store.entry(point.nodes[name]) else "to build"
            for name in ("select", "train", "evaluate")
        }
        print(f"{point.label:<40} seed {point.seed}  " + "  ".join(f"{n} {s}" for n, s in state.items()))
    print(f"{len(plan.points)} runs of {len(plan.labels)} arms, from {len(points)} points")
    return 0
