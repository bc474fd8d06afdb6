"""Run a grid of arms and print one table.

    dbp sweep experiment=glyphs                       plan and run what is missing
    dbp sweep plan experiment=glyphs                  print the plan and stop
    dbp sweep experiment=glyphs sweep.select.temperature=[0.05,0.1,0.2] sweep.seed=[0,1,2]

An experiment is a grid: `sweep.arms` (name -> settings) at every point of `sweep.axes` (key -> values); on
the command line `sweep.KEY=[…]` makes any key an axis. Axes that a method does not read collapse. Everything
upstream of what varies is made once. `debug=smoke` runs the same grid with real models on a handful of pairs.
"""

import json
import time
from pathlib import Path
from typing import Any

from dbp.command_line import overrides as spelled_out
from dbp.config import build, compose
from dbp.curate import open_store
from dbp.errors import ConfigError, nearest
from dbp.stage import Node
from dbp.store import Store
from slurm.local import run_points
from slurm.plan import Composer, Plan, check_compute, distinct, expand, stages
from slurm.settings import SweepSettings, flat
from slurm.summary import write_summary

VERBS = ("plan", "run")


def main(arguments: list[str], config_dirs: list[str]) -> int:
    """Do what `dbp sweep` does; return 1 if an arm failed."""
    verb = "run"
    if arguments and "=" not in arguments[0]:
        verb = arguments.pop(0)
        if verb not in VERBS:
            raise ConfigError(f"dbp sweep {verb}: {nearest(verb, VERBS)}")
    base, axes_said = divide(arguments)
    began = time.monotonic()
    composer = Composer(spelled_out(base), config_dirs)
    config = compose("sweep", spelled_out(base), config_dirs)
    settings: SweepSettings = build(config.sweep, SweepSettings, "sweep")
    settings.check()
    axes = {k: list(v) for k, v in flat(settings.axes).items()} | axes_said
    arms = {name: flat(given) for name, given in settings.arms.items()} or {_name_of(config): {}}
    store = open_store(config, say=print if verb == "run" else lambda line: None)
    if verb == "plan" or config.dry_run:
        return _print_plan(composer, settings, arms, axes, store)
    common = _train_encoder(composer, settings, store)
    points = expand(composer, arms, axes, common)
    for point in points:
        store.get(point.nodes["index"])
    plan = distinct(points, store)
    check_compute(plan, store, settings.unequal_compute)
    missing = sum(store.entry(p.last) is None for p in plan.points)
    print(
        f"{len(plan.points)} runs of {len(plan.labels)} arms; {missing} to do, "
        f"{len(plan.points) - missing} reused"
    )
    _build_shared(plan, store)
    failures = run_points(plan.points, store, settings.num_workers(), print)
    out = Path(config.paths.runs) / "sweeps" / settings.name
    out.mkdir(parents=True, exist_ok=True)
    write_summary(plan, store, settings, failures, common, out)
    print(
        f"{'finished' if not failures else f'{len(failures)} runs failed'} in "
        f"{time.monotonic() - began:.0f} s; table, plots and results in {out}"
    )
    return 1 if failures else 0


def divide(arguments: list[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Part `sweep.KEY=[…]`, an axis, from ordinary settings.

    Raises:
        ConfigError: An axis has no list of values.
    """
    from omegaconf import OmegaConf

    own = set(SweepSettings.__dataclass_fields__)
    base: list[str] = []
    axes: dict[str, list[Any]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        name = key.removeprefix("sweep.")
        if not (key.startswith("sweep.") and equals) or name.split(".")[0] in own:
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


def _train_encoder(composer: Composer, settings: SweepSettings, store: Store) -> dict[str, Any]:
    """Train the encoder that the arms use, and the settings that hand it to them."""
    if not settings.encoder:
        return {}
    node = stages(composer.config(flat(settings.encoder)))["train"]
    store.get(node)
    return encoder_settings(store, node)


def encoder_settings(store: Store, trained: Node) -> dict[str, Any]:
    """The settings that make a trained checkpoint the encoder of every use."""
    folder = store.folder(trained)
    assert folder is not None
    files = {"checkpoint": "weights.pt", "config": "open_clip_config.json"}
    return {
        f"encoder.{use}.{what}": str(folder / file)
        for use in ("dedup", "cluster", "score")
        for what, file in files.items()
    }


def _build_shared(plan: Plan, store: Store) -> None:
    """Build here, once, what several points rest on; arms then run apart."""
    for point in plan.points:
        if store.entry(point.last) is None:
            store.get(point.nodes["select"])
            store.get(point.nodes["evaluate"].inputs["sets"])
    store.loaded.clear()


def _print_plan(
    composer: Composer,
    settings: SweepSettings,
    arms: dict[str, dict[str, Any]],
    axes: dict[str, list[Any]],
    store: Store,
) -> int:
    """Print every point, and of each stage whether it is there; build nothing."""
    if settings.encoder:
        node = stages(composer.config(flat(settings.encoder)))["train"]
        entry = store.entry(node)
        print(
            f"{'encoder':<40} train {store.key(node) or 'key known after index'} "
            f"{'reused' if entry else 'to build'}"
        )
        if entry is None:
            print("the arms' keys are known once the encoder is trained")
            for name in arms:
                print(f"  arm {name}")
            for axis, values in axes.items():
                print(f"  axis {axis}: {values}")
            return 0
    common = encoder_settings(store, node) if settings.encoder else {}
    points = expand(composer, arms, axes, common)
    if store.key(points[0].last) is None:
        print(f"{len(points)} points before collapsing; keys are known once the pool is indexed")
        for point in points:
            print(f"  {point.arm} {json.dumps(point.axes)}")
        return 0
    plan = distinct(points, store)
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
