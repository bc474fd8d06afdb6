"""Evaluate checkpoints on a suite of tasks: each picture decoded once, each task saved as it ends.

    dbp evaluate checkpoint=FILE model.config=FILE suite=datacomp38 root=FOLDER
    dbp evaluate checkpoint=[run:KEY1,run:KEY2] suite=glyphs root=glyphs     runs of ours, by their keys
    dbp evaluate model.name=ViT-B-32 pretrained=openai suite=vtab root=FOLDER export.datacomp=FILE

`checkpoint` is any open_clip state dict, a folder as open_clip and the hub have them (also local-dir:FOLDER), a run
of ours (run:KEY), or a list of these; the model comes from model.config (a JSON, bare
or under `model_cfg`), from `open_clip_config.json` beside the weights, or from model.name. `root` holds a
folder for each set in DataComp's layout: wds_<task>_test/{classnames.txt,
zeroshot_classification_templates.txt, test/nshards.txt, test/0.tar, …}. DataComp's download_evalsets.py
fetches them; Flickr, MSCOCO and WinoGAViL may lie there as the Hub's own folders. Results go to
paths.runs/evaluations; a killed run goes on where it stopped, a finished task is not done again.
probe=true adds linear probes (where train/ lies beside test/), contamination=EPSILON near copies;
check=clip_benchmark runs clip_benchmark's own code beside ours and prints the differences.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbp.encoders.places import CONFIG_FILE, LOCAL_DIR, RUN, Weights, find_weights
from dbp.errors import ConfigError
from evaluation.results import Failure, load_results, save_results
from evaluation.running.encode import Towers
from evaluation.running.runner import evaluate_checkpoints
from evaluation.suites import missing_members, resolve_suite


def run(config: Any) -> int:
    """Do what `dbp evaluate` does with a composed config; return 1 if a task failed."""
    from dbp.config import build
    from dbp.curate import open_store
    from dbp.engine.progress import progress
    from evaluation.checks import held_out
    from evaluation.checks.against_benchmark import check_results, require_exact
    from evaluation.checks.at_hand import require_at_hand
    from evaluation.checks.linear_probes import probe_suite
    from evaluation.checks.near_copies import check_near_copies, find_runs
    from evaluation.exports import export_clip_benchmark, weights_name
    from evaluation.report.run_table import format_results
    from evaluation.running.prepare import check_own
    from evaluation.sets.verify import verify_suite
    from evaluation.stage import Evaluate, sets_node

    settings: Evaluate = build(config.evaluate, Evaluate, "evaluate")
    tolerance = float(config.check_tolerance)
    require_exact(config.check, settings.precision, settings.limit, tolerance)
    tasks = resolve_suite(settings.suite)
    weights = [find_checkpoint(config, name) for name in _named(config)]
    names = [str(one.file) for one in weights]
    missing = missing_members(settings.suite)
    if config.dry_run:
        print("\n".join(task.key for task in tasks))
        print(*(f"missing, no loader: {name}" for name in missing), sep="\n")
        return 0
    exports = _exports(config, settings, weights)
    trained = find_runs(config, names)
    store = open_store(config)
    require_at_hand(config, store, tasks, bool(exports))
    root = store.get(sets_node(config)).folder
    check_own(tasks, root)
    folder = Path(config.paths.runs) / "evaluations"
    if config.verify:
        checked = verify_suite(tasks, root, hashes=folder / "set_hashes.json", progress=progress)
        if any(one.problems for one in checked):
            print("Mend or leave out the sets that are not right; nothing was evaluated.")
            return 1
    towers = [load_towers(config, settings, path) for path in weights or [None]]
    file = folder / (config.name or towers[0].label[:16]) / "results.jsonl"
    keep = folder / "vectors" if settings.keep_vectors else None
    failures: list[Failure] = []
    work = (settings.asked(), settings.encoding(keep))
    known = load_results(file) if file.exists() else []
    results = evaluate_checkpoints(
        towers, settings.suite, root, *work, known=known, failures=failures,
        on_results=lambda found: save_results(file, found),
    )  # fmt: skip
    shown = [result for result in results if result.protocol == settings.protocol]
    num_different = 0
    for model in towers:
        mine = [result for result in results if result.checkpoint == model.digest]
        if len(towers) > 1:
            print(f"\n{model.label}")
        print(format_results(mine, failures, settings.protocol))
        if config.check:
            under = [result for result in mine if result.protocol == settings.protocol]
            num_different += check_results(model, under, root, tolerance)
    for line in held_out.warnings(store, names, tasks, root):
        print(line)
    if config.probe:
        failures += probe_suite(towers, settings.suite, root, *work, file=file)
    if trained:
        failures += check_near_copies(
            trained, shown, root, *work, epsilon=float(config.contamination), num_workers=settings.num_workers,
            folder=file.parent,
        )  # fmt: skip
    for export, target in exports.items():
        named = config.name or weights_name(weights[0].file) if weights else ""
        about = {"named": named, "config": towers[0].config} if export is export_clip_benchmark else {}
        if shown and (left_out := export(target, shown, **about)):
            print(f"{target} is without: {', '.join(left_out)}")
    for name in missing:
        print(f"missing in this suite, no loader for it: {name}")
    print(f"{len({r.task for r in shown})} tasks evaluated, {len(failures)} failed: {file}")
    return 1 if failures or num_different else 0


def load_towers(config: Any, settings: Any, weights: Weights | None) -> Towers:
    """The model of a checkpoint (none: published weights), ready for the `Evaluate` stage `settings`."""
    from dbp.config import build
    from training.config import Model

    model: Model = build(config.model, Model, "model")
    described = model.config or (weights and weights.config and str(weights.config))
    return settings.towers(
        None if described else model.name,
        checkpoint=str(weights.file) if weights else None,
        config=described,
        pretrained=config.pretrained,
    )


def _exports(config: Any, settings: Any, weights: Sequence[Weights]) -> dict[Callable[..., tuple[str, ...]], Path]:
    """What writes results for other tools, and where; refused for several checkpoints, or with a limit."""
    from evaluation.exports import export_clip_benchmark, export_datacomp

    said = config.export
    named = {export_datacomp: said.datacomp, export_clip_benchmark: said.clip_benchmark}
    found = {export: Path(target) for export, target in named.items() if target is not None}
    if found and (len(weights) > 1 or settings.limit is not None):
        raise ConfigError(
            f"export.datacomp={said.datacomp} and export.clip_benchmark={said.clip_benchmark} hold one checkpoint "
            f"on whole sets, but there are {max(1, len(weights))} and evaluate.limit={settings.limit}. Export one "
            "at a time, without a limit."
        )
    return found


def _named(config: Any) -> list[str]:
    """The checkpoints that a config names."""
    from omegaconf import ListConfig

    if config.checkpoint is None and config.pretrained:
        return []
    if isinstance(config.checkpoint, ListConfig):
        return [str(name) for name in config.checkpoint] or [""]
    return ["" if config.checkpoint is None else str(config.checkpoint)]


def find_checkpoint(config: Any, named: str) -> Weights:
    """The weights of one name: a file, a folder, or a run of ours, by its key with or without `run:`.

    Raises:
        ConfigError: No weights are named, or there are none by that name.
    """
    if not named:
        raise ConfigError(
            "no weights to evaluate: give checkpoint=FILE (an open_clip state dict), checkpoint=FOLDER (as "
            "open_clip and the hub have them), checkpoint=run:KEY (of ours), or model.name=NAME pretrained=TAG"
        )
    if config.pretrained:
        raise ConfigError(
            f"checkpoint={named!r} and pretrained={config.pretrained!r} name two sets of weights. Give one."
        )
    try:
        is_place = named.startswith((RUN, LOCAL_DIR)) or Path(named).exists()
        found = find_weights(named if is_place else f"{RUN}{named}", config.paths.runs, "checkpoint")
    except ConfigError as error:
        said = "" if is_place else f"checkpoint={named!r} is no file and no folder, and as the key of a run, "
        raise ConfigError(f"{said}{error}") from None
    beside = found.file.parent / CONFIG_FILE
    return found if found.config or not beside.exists() else replace(found, config=beside)


if __name__ == "__main__":
    from dbp.verbs.command_line import hydra_main

    hydra_main("evaluate", run)
