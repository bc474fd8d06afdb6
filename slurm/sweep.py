"""Run a grid of arms and print one table.

    dbp sweep experiment=glyphs                       plan and run what is missing
    dbp sweep plan experiment=glyphs                  print the plan and stop
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
from dbp.command_line import USES
from dbp.command_line import overrides as spelled_out
from dbp.config import build, compose
from dbp.curate import open_store
from dbp.errors import ConfigError, DbpError, nearest
from dbp.planning.plan import flat
from dbp.stage import Node
from dbp.store import Store
from slurm.local import attempt, run_points
from slurm.plan import Composer, Plan, check_compute, distinct, expand, stages
from slurm.settings import Grid, SweepSettings
from slurm.summary import write_summary

VERBS = ("plan", "run")


def main(arguments: list[str], config_dirs: list[str], print_only: bool = False) -> int:
    """Do what `dbp sweep` does; return 1 if an arm, or a task of one, failed."""
    from omegaconf import OmegaConf

    verb = "run"
    if arguments and "=" not in arguments[0]:
        verb, *arguments = arguments
        if verb not in VERBS:
            raise ConfigError(f"dbp sweep {verb}: {nearest(verb, VERBS)}")
    base, axes_said = divide(arguments)
    began = time.monotonic()
    config = compose("sweep", spelled_out(base), config_dirs, resolve=not print_only)
    if print_only:
        print(OmegaConf.to_yaml(config))
        return 0
    composer = Composer(spelled_out(base), config_dirs)
    settings: SweepSettings = build(config.sweep, SweepSettings, "sweep")
    settings.check()
    grid = Grid.of(settings, axes_said, base, _name_of(config))
    store = open_store(config, say=print if verb == "run" else lambda line: None)
    if verb == "plan" or config.dry_run:
        return _print_plan(composer, settings, grid, store)
    encoder = _train_encoder(composer, settings, grid, store)
    points = expand(composer, grid.arms, grid.axes, encoder)
    for point in points:
        store.get(point.nodes["index"])
    plan = distinct(points, store)
    check_compute(plan, settings.unequal_compute)
    missing = sum(store.entry(p.last) is None for p in plan.points)
    print(
        f"{len(plan.points)} runs of {len(plan.labels)} arms; {missing} to do, "
        f"{len(plan.points) - missing} reused"
    )
    _cluster_together(plan, store)
    failures = _build_shared(plan, store)
    ready = [p for p in plan.points if store.key(p.last) not in failures]
    failures |= run_points(ready, store, settings.num_workers(), print)
    out = Path(config.paths.runs) / "sweeps" / settings.name
    out.mkdir(parents=True, exist_ok=True)
    store.say = lambda line: None  # what follows only reads
    arms = write_summary(plan, store, settings, failures, encoder, out)
    broken = ", ".join(arm.name for arm in arms if arm.failures)
    print(
        f"finished{f', with failures in {broken}' if broken else ''}, in "
        f"{time.monotonic() - began:.0f} s; table, plots and results in {out}"
    )
    return 1 if broken else 0


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
        if not (key.startswith("sweep.") and equals) or (
            name.split(".")[0] in own and not is_encoder_axis
        ):
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


def _train_encoder(
    composer: Composer, settings: SweepSettings, grid: Grid, store: Store
) -> dict[str, str]:
    """Train the encoder that the arms use; return its checkpoint and config."""
    if not settings.encoder:
        return {}
    node = _encoder_node(composer, settings)
    if store.entry(node) is None:  # a wrong setting of an arm stops before minutes are spent
        expand(composer, grid.arms, grid.axes, _files(Path("untrained")))
    store.get(node)
    return _files(store.folder(node))


def _encoder_node(composer: Composer, settings: SweepSettings) -> Node:
    return stages(composer.config(flat(settings.encoder or {})))["train"]


def _files(folder: Path | None) -> dict[str, str]:
    assert folder is not None
    return {
        "checkpoint": str(folder / "weights.pt"),
        "config": str(folder / "open_clip_config.json"),
    }


def _build_shared(plan: Plan, store: Store) -> dict[str, str]:
    """Build here, once, what several points rest on; arms then run apart.

    Returns:
        Key of the evaluation of each point that cannot be built -> why.
    """
    failures: dict[str, str] = {}
    for point in plan.points:
        if store.entry(point.last) is None:
            sets = point.nodes["evaluate"].inputs["sets"]
            if reason := attempt(store, point.nodes["select"], sets):
                failures[str(store.key(point.last))] = reason
                print(f"{point.label} seed {point.seed}: {reason}")
    return failures


def _print_plan(composer: Composer, settings: SweepSettings, grid: Grid, store: Store) -> int:
    """Print every point, and of each stage whether it is there; build nothing."""
    encoder, is_known = {}, True
    if settings.encoder:
        node = _encoder_node(composer, settings)
        is_known = store.entry(node) is not None
        encoder = _files(store.folder(node) if is_known else Path("untrained"))
        print(
            f"{'encoder':<40} train {store.key(node) or 'key known after index'} "
            f"{'reused' if is_known else 'to build'}"
        )
    points = expand(composer, grid.arms, grid.axes, encoder)
    if not is_known or any(store.key(point.last) is None for point in points):
        before = "the pool is indexed" if is_known else "the encoder is trained"
        print(f"{len(points)} points before collapsing; keys are known once {before}")
        for point in points:
            print(f"  {point.arm} {json.dumps(point.axes)}")
        return 0
    plan = distinct(points, store)
    check_compute(plan, settings.unequal_compute)
    for point in plan.points:
        state = {
            name: "reused" if store.entry(point.nodes[name]) else "to build"
            for name in ("select", "train", "evaluate")
        }
        print(
            f"{point.label:<40} seed {point.seed}  "
            + "  ".join(f"{n} {s}" for n, s in state.items())
        )
    print(f"{len(plan.points)} runs of {len(plan.labels)} arms, from {len(points)} points")
    return 0


def _name_of(config: Any) -> str:
    return str(config.select.get("_target_", "arm")).rpartition(".")[2].lower()
