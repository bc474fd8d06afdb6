"""VERB. Evaluate a checkpoint on a suite of tasks: load it once, save each task as it ends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    config: str | None = None,
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
