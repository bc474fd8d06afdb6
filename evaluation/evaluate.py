"""Evaluate a checkpoint on a suite of tasks: load it once, save each task as it ends.

    dbp evaluate checkpoint=FILE model.config=FILE suite=datacomp38 root=FOLDER
    dbp evaluate checkpoint=KEY suite=glyphs root=glyphs          KEY: of a run of ours
    dbp evaluate model.name=ViT-B-32 pretrained=openai suite=vtab root=FOLDER

`checkpoint` is any open_clip state dict; its model comes from model.config (a JSON, bare or under
`model_cfg`), from `open_clip_config.json` beside it, or from model.name. `root` holds a folder for each set in
DataComp's layout: wds_<task>_test/{classnames.txt, zeroshot_classification_templates.txt, test/nshards.txt,
test/0.tar, …}. DataComp's download_evalsets.py fetches them. Results go to paths.runs/evaluations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError
from evaluation.results import Failure, Result, save_results
from evaluation.runner import evaluate_checkpoint
from evaluation.suites import resolve_suite

__all__ = ["evaluate_checkpoint", "run_suite"]


def run_suite(
    model: str | None,
    suite: str | Sequence[str],
    root: str | Path,
    *,
    checkpoint: str | None = None,
    config: str | dict[str, Any] | None = None,
    pretrained: str | None = None,
    random_weights: bool = False,
    device: str = "cpu",
    results_file: Path | None = None,
    **settings: Any,
) -> tuple[list[Result], list[Failure]]:
    """Load a model by name and evaluate it, saving each task's results as it ends.

    `settings` are those of `evaluate_checkpoint`.
    """
    resolve_suite(suite)
    from dbp.encoders.openclip import load_openclip

    loaded = load_openclip(
        model, checkpoint=checkpoint, config=config, pretrained=pretrained,
        random_weights=random_weights, device=device,
    )  # fmt: skip
    # Published weights have no file of ours to hash, so the tag is part of the name.
    name = f"{loaded.name}:{pretrained}" if pretrained else loaded.name
    failures: list[Failure] = []
    results = evaluate_checkpoint(
        loaded.model, loaded.preprocess, loaded.tokenizer, suite, root,
        device=device, model_name=name, checkpoint=loaded.digest, failures=failures,
        on_results=lambda found: results_file and save_results(results_file, found),
        **settings,
    )  # fmt: skip
    return results, failures


def run(config: Any) -> int:
    """Do what `dbp evaluate` does with a composed config; return 1 if a task failed."""
    from dbp.config import build
    from dbp.curate import open_store
    from dbp.device import pick_device
    from dbp.progress import progress
    from evaluation.stage import Evaluate, sets_node
    from evaluation.table import format_results
    from training.config import Model

    settings: Evaluate = build(config.evaluate, Evaluate, "evaluate")
    model: Model = build(config.model, Model, "model")
    checkpoint = find_checkpoint(config)
    beside = checkpoint.parent / "open_clip_config.json" if checkpoint else None
    described = model.described() or (str(beside) if beside and beside.exists() else None)
    if config.dry_run:
        print("\n".join(task.key for task in resolve_suite(settings.suite)))
        return 0
    sets = open_store(config).get(sets_node(config))
    home = Path(config.paths.runs) / "evaluations" / (config.name or _name(checkpoint, config))
    results, failures = run_suite(
        None if described else model.name,
        settings.suite,
        sets.folder,
        checkpoint=str(checkpoint) if checkpoint else None,
        config=described,
        pretrained=config.pretrained,
        device=pick_device(settings.device),
        results_file=home / "results.jsonl",
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        limit=settings.limit,
        max_templates=settings.max_templates,
        seed=settings.seed,
        precision=settings.precision,
        protocols=(settings.protocol,),
        progress=progress,
    )
    print(format_results(results, failures))
    print(f"{len(results)} tasks evaluated, {len(failures)} failed: {home / 'results.jsonl'}")
    return 1 if failures else 0


def find_checkpoint(config: Any) -> Path | None:
    """The weights that a config names: a file, a folder, or the key of a run of ours.

    Raises:
        ConfigError: No weights are named, or there are none by that name.
    """
    from dbp.errors import StoreError
    from dbp.store import Store

    named = config.checkpoint
    if named is None:
        if config.pretrained:
            return None
        raise ConfigError(
            "no weights to evaluate: give checkpoint=FILE (an open_clip state dict), checkpoint=KEY "
            "(a run of ours), or model.name=NAME pretrained=TAG"
        )
    if config.pretrained:
        raise ConfigError(
            f"checkpoint={named!r} and pretrained={config.pretrained!r} name two sets of weights. Give one."
        )
    path = Path(str(named))
    if path.is_dir():
        path = path / "weights.pt"
    if path.is_file():
        return path
    try:
        entry = Store(config.paths.store, config.paths.runs).find(str(named))
    except StoreError:
        entry = None
    if entry is None or not (entry.folder / "weights.pt").is_file():
        raise ConfigError(
            f"checkpoint={named!r} is no file, and no run in {config.paths.runs} has that key. Give the "
            "path of a state dict, or a key that `dbp ls stage=train` lists."
        )
    return entry.folder / "weights.pt"


def _name(checkpoint: Path | None, config: Any) -> str:
    from dbp.encoders.base import file_digest

    if checkpoint is None:
        return f"{config.model.name}-{config.pretrained}"
    return file_digest(checkpoint, "checkpoint")[:16]


if __name__ == "__main__":
    from dbp.command_line import hydra_main

    hydra_main("evaluate", run)
