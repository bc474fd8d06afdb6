"""Results as the files of other tools: DataComp's `eval_results.jsonl`, CLIP_benchmark's JSON.

Both hold one checkpoint under one protocol, and only whole test sets: a reader of those files could not
tell an estimate from the number.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dbp.engine.disk import replacing
from dbp.errors import ConfigError, WorldError
from evaluation.kinds.registry import find_kind
from evaluation.metrics import fine
from evaluation.results import Result, not_whole
from evaluation.tasks import find_task, load_tasks

GENERIC = ("weights", "checkpoint", "model", "open_clip_model", "open_clip_pytorch_model", "pytorch_model")


def export_datacomp(file: Path, results: Sequence[Result]) -> tuple[str, ...]:
    """Write results as DataComp's `evaluate.py` does, which its `aggregate_scores.py` reads.

    One line a task, in the order of DataComp's list; tasks outside it are left out. A metric without a
    value is NaN, as of an empty group, and acc5 of fewer than five classes is null, as there.

    Returns:
        The tasks of DataComp's list that have no result, so no line. Its aggregation refuses a file
        that lacks one of the 38.

    Raises:
        ConfigError: Results of several checkpoints or protocols, estimates, or none of DataComp's.
        WorldError: The main metric of a task that has one is without value.
    """
    found = _by_task(results, "export.datacomp")
    tasks = [task for task in load_tasks().values() if task.in_datacomp]
    lines: list[str] = []
    for task in tasks:
        if task.key not in found:
            continue
        metrics = {
            name: math.nan if value is None and name != "acc5" else value
            for name, value in found[task.key].metrics.items()
            if name not in fine.NAMES
        }
        main = None if task.main_metric is None else found[task.key].metrics.get(task.main_metric)
        if main is None and task.main_metric is not None:
            raise WorldError(
                f"Cannot write {file}: {task.key} has no value of its main metric {task.main_metric}. "
                "Check its set with verify=true."
            )
        line = {"key": task.key, "dataset": task.name, "metrics": metrics | {"main_metric": main}}
        lines.append(json.dumps(line) + "\n")
    if not lines:
        raise ConfigError(
            f"export.datacomp={file}: none of the tasks {', '.join(found)} is in DataComp's list. "
            "Evaluate suite=datacomp38, or leave export.datacomp out."
        )
    _write(file, "".join(lines))
    return tuple(task.key for task in tasks if task.key not in found)


def export_clip_benchmark(
    folder: Path, results: Sequence[Result], named: str = "", config: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Write results as `clip_benchmark eval` does, a file for each task; `build` joins them to a CSV.

    A metric without a value is NaN, as there. Files are named by its default template; `pretrained` is `named` with
    the first digits of the weights' digest, `model` an architecture.

    Args:
        named: The weights, for people; without it their digest alone.
        config: The model's, for one that open_clip does not list.

    Returns:
        The tasks that CLIP_benchmark does not have, so no file: WILDS, fairness, WinoGAViL, ours.

    Raises:
        ConfigError: Results of several checkpoints or protocols, estimates, or none that it has.
    """
    found = _by_task(results, "export.clip_benchmark")
    left_out = tuple(key for key in found if find_task(key).clip_benchmark is None)
    if len(left_out) == len(found):
        raise ConfigError(
            f"export.clip_benchmark={folder}: CLIP_benchmark has none of the tasks {', '.join(found)}. "
            "Evaluate others, or leave export.clip_benchmark out."
        )
    for key in found.keys() - set(left_out):
        task, result = find_task(key), found[key]
        name, known = find_kind(task.kind).clip_benchmark or ("", ())
        language = task.built.language if task.built else "en"
        model, pretrained = result.model, result.checkpoint
        if pretrained is not None:
            model, pretrained = _architecture(model, config), f"{named}-{pretrained[:8]}" if named else pretrained
        else:  # published weights: their tag is part of the name
            model, _, pretrained = result.model.rpartition(":")
        line = {
            "dataset": task.clip_benchmark,
            "model": model,
            "pretrained": pretrained,
            "task": name,
            "metrics": {
                metric: math.nan if value is None else value
                for metric, value in result.metrics.items()
                if metric.startswith(known)
            },
            "language": language,
        }
        dataset = str(task.clip_benchmark).removeprefix("wds/")
        words = (dataset, pretrained, model, language, name)
        file = "_".join(word.replace("/", "_") for word in words) + ".json"
        _write(folder / file, json.dumps(line))
    return left_out


def weights_name(file: Path) -> str:
    """A name for weights, from that of their file, of its folder where the file's says nothing, or of our run."""
    name = file.stem
    if file.parent.parent.name == "train" and name == "weights":
        name = f"run-{file.parent.name[:12]}"
    elif name in GENERIC:
        folder = file.absolute().parent
        in_cache = folder.parent.name == "snapshots"  # of the hub
        name = folder.parent.parent.name.removeprefix("models--") if in_cache else folder.name
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


def _architecture(model: str, config: Mapping[str, Any] | None) -> str:
    """The name of a model, or of what its config builds where it has none of open_clip's."""
    if not model.startswith("local-") or not config:
        return model
    vision = config["vision_cfg"]
    layers, width = vision.get("layers", 12), vision.get("width", 768)  # open_clip's own values
    if timm := vision.get("timm_model_name"):
        kind = str(timm)
    elif isinstance(layers, int):
        kind = f"ViT-{width}x{layers}-p{vision.get('patch_size', 16)}"
    else:
        kind = f"RN-{'.'.join(map(str, layers))}-w{width}"
    return f"{kind}-{vision.get('image_size', 224)}px"


def _by_task(results: Sequence[Result], setting: str) -> dict[str, Result]:
    """The results by task, in the order given, if one file may hold them."""
    several = dict.fromkeys(
        f"{r.checkpoint or 'no file'} ({r.model}, samples_seen={r.samples_seen}, "
        f"precision={r.precision}, protocol={r.protocol})"
        for r in results
    )
    if len(several) > 1:
        raise ConfigError(
            f"{setting} takes one checkpoint under one protocol, and there are results of "
            f"{' and '.join(several)}. Export them apart."
        )
    for result in results:
        if result.limit is not None:
            raise ConfigError(
                f"{setting} takes whole test sets, and {result.task} is an estimate from "
                f"limit={result.limit}. Evaluate without a limit, or leave {setting} out."
            )
    if parts := not_whole(results):
        raise ConfigError(
            f"{setting} takes the test sets of the tasks, and other numbers were measured: {'; '.join(parts)}. "
            f"Fetch these sets again and evaluate them, leave them out of suite, or leave {setting} out."
        )
    found = {result.task: result for result in results}
    if len(found) < len(results):
        keys = [result.task for result in results]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"{setting} takes one result of each task; {twice} has several.")
    return found


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
