"""clip_benchmark's own code beside ours: its data set, its loader, its metrics, on the same model.

Nothing is shared but the model, its transform and its tokenizer. Where both agree to a tolerance, our numbers are
its numbers; where they do not, the table says by how much.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError, DbpError
from evaluation.kinds.registry import find_kind
from evaluation.results import Result
from evaluation.running.encode import Towers, inference
from evaluation.sets.benchmark import Built
from evaluation.sets.built import build, nothing_fetched
from evaluation.sets.data import TYPE_FILE
from evaluation.sets.folders import find_set
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.tasks import Task, find_task

NAME = "clip_benchmark"


@dataclass(frozen=True)
class Compared:
    """One metric by both; `theirs` and `ours` are none where it has no value."""

    task: str  # key
    metric: str
    ours: float | None
    theirs: float | None

    @property
    def difference(self) -> float:
        """0 if neither has a value, infinite if one has."""
        if self.ours is None or self.theirs is None:
            return 0.0 if self.ours is self.theirs else math.inf
        return abs(self.ours - self.theirs)


def require_exact(check: str | None, precision: str, limit: int | None, tolerance: float) -> None:
    """Refuse a check whose outcome would say nothing.

    Raises:
        ConfigError: Unknown check, another precision than fp32, a limit, or a tolerance below 0.
    """
    if check is None:
        return
    if check != NAME:
        raise ConfigError(f"check={check} is unknown. It can be: {NAME}.")
    if precision != "fp32" or limit is not None:
        raise ConfigError(
            f"check={NAME} compares whole sets in fp32, and precision={precision}, evaluate.limit={limit}. "
            "Leave both out, or leave check out."
        )
    if not tolerance >= 0:
        raise ConfigError(f"check_tolerance={tolerance} must be 0 or more: 1e-6 for fp32 on a CPU.")


def check_results(model: Towers, results: Sequence[Result], root: Path, tolerance: float) -> int:
    """Run clip_benchmark on the tasks of some results, print both numbers of each metric, and count what is wrong.

    Args:
        model: The one that the results are of.
        results: Under one protocol, of whole sets.
        root: Where the sets lie.
        tolerance: Largest difference of a metric that counts as none.

    Returns:
        Metrics that differ by more, and tasks on which its code failed. Tasks of kinds that it does not have are
        named and not counted.
    """
    found: list[Compared] = []
    failed: list[str] = []
    without: list[str] = []
    for result in results:
        task = find_task(result.task)
        if find_kind(task.kind).clip_benchmark is None:
            without.append(task.name)
            continue
        try:
            found += compare(result, their_metrics(model, task, root, result.metrics))
        except DbpError as error:
            failed.append(f"{task.name}: {error}")
    print(f"\n{format_check(found, tolerance)}")
    for line in failed:
        print(f"not checked: {line}")
    if without:
        print(f"of kinds that {NAME} does not have: {', '.join(without)}")
    num_different = sum(one.difference > tolerance for one in found)
    print(
        f"{len(found)} metrics checked: {num_different} differ by more than {tolerance:g}; "
        f"{len(failed)} tasks could not be checked"
    )
    return num_different + len(failed)


def compare(result: Result, theirs: Mapping[str, float]) -> list[Compared]:
    """Put its metrics beside those of a result; NaN is its word for no value."""
    return [
        Compared(result.task, name, result.metrics.get(name), None if math.isnan(value) else value)
        for name, value in theirs.items()
    ]


def format_check(found: Sequence[Compared], tolerance: float) -> str:
    """Lay both numbers of each metric out as text; those that differ are marked."""
    lines = [f"{'task':<32} {'metric':<26} {'ours':>10} {NAME:>14} {'difference':>11}"]
    for one in found:
        mark = "  DIFFERS" if one.difference > tolerance else ""
        numbers = f"{_number(one.ours):>10} {_number(one.theirs):>14} {one.difference:>11.1e}"
        lines.append(f"{find_task(one.task).name:<32} {one.metric:<26} {numbers}{mark}")
    return "\n".join(lines)


def their_metrics(model: Towers, task: Task, root: Path, ours: Mapping[str, float | None]) -> dict[str, float]:
    """What clip_benchmark's own `evaluate` gives for a task.

    Args:
        model: Its transform, tokenizer and batch size are used.
        task: Of a kind that clip_benchmark has.
        root: Where its set lies.
        ours: Which recalls have a value: its code fails for k above the number of candidates.

    Raises:
        DbpError: The set is not there, or its code fails on it.
    """
    folder = find_set(root, task)
    dataset = _their_dataset(task, folder, model.preprocess)
    try:
        with nothing_fetched(), _its_metrics() as metrics, inference(model):
            loader = _loader(task, dataset, model)
            given = (model.model, loader, model.tokenizer)
            kind = find_kind(task.kind).clip_benchmark
            assert kind is not None
            if kind[0] == "image_caption_selection":
                return metrics[kind[0]].evaluate(*given, model.device, amp=False)
            if kind[0] == "zeroshot_retrieval":
                names = [name for name, value in ours.items() if "@" in name and value is not None]
                ks = sorted({int(name.split("@")[1]) for name in names if name.startswith("image")})
                ks = [k for k in ks if f"text_retrieval_recall@{k}" in names]
                return metrics[kind[0]].evaluate(*given, model.device, amp=False, recall_k_list=ks)
            names, templates = (
                getattr(dataset, said) if lines is None else list(lines)
                for said, lines in (("classes", task.class_names), ("templates", task.templates))
            )
            return metrics[kind[0]].evaluate(*given, names, templates, model.device, amp=False)
    except Exception as error:  # its code raises many kinds
        raise EvaluationDataError(
            f"clip_benchmark fails on {folder}: {type(error).__name__}: {error}. Is the set in a layout of its own?"
        ) from error


def _their_dataset(task: Task, folder: Path, transform: Any) -> Any:
    if task.is_built and task.built is not None:
        return build(folder, task.built, transform)
    if task.built is not None and task.built.dataset == "winoground":
        return _winoground(task, folder, transform)
    if not (folder / task.split / "nshards.txt").is_file():
        raise EvaluationDataError(
            f"{folder} is a folder of the Hub, which clip_benchmark does not read. Fetch its own set, "
            f"{task.clip_benchmark or 'wds/…'}, to check this task."
        )
    if task.kind != "classification" and not (folder / TYPE_FILE).is_file():
        raise EvaluationDataError(
            f"{folder / TYPE_FILE} is missing, without which clip_benchmark takes the set for classification. "
            f"Write {'multilabel' if task.kind == 'multilabel' else 'retrieval'} into it."
        )
    kind = find_kind(task.kind).clip_benchmark
    return build(folder, Built(f"wds/{task.key}", split=task.split), transform, kind and kind[0])


def _winoground(task: Task, folder: Path, transform: Any) -> Any:
    """clip_benchmark's own reader over the rows that we read: its constructor would ask the Hub for them."""
    import io

    from clip_benchmark.datasets.winoground import WinoGround
    from PIL import Image

    opened = find_kind(task.kind).open(folder)

    class Rows:
        def __len__(self) -> int:
            return len(opened.choices)

        def __getitem__(self, number: int) -> dict[str, Any]:
            one = opened.choices[number]
            images = [Image.open(io.BytesIO(opened.read_picture(row))) for row in one.pictures]
            return {"image_0": images[0], "image_1": images[1]} | dict(
                zip(("caption_0", "caption_1"), one.captions, strict=True)
            )

    found = WinoGround.__new__(WinoGround)
    found.ds, found.transform = Rows(), transform
    return found


def _loader(task: Task, dataset: Any, model: Towers) -> Any:
    """As clip_benchmark's command line makes it, in this process: its readers of tars fail with more workers."""
    from clip_benchmark.datasets.builder import image_captions_collate_fn
    from torch.utils.data import DataLoader, default_collate

    captioned = task.kind in ("retrieval", "caption_choice")
    if not task.is_built and hasattr(dataset, "batched") and not captioned:
        return DataLoader(dataset.batched(model.batch_size), batch_size=None)
    collate = image_captions_collate_fn if captioned else default_collate
    return DataLoader(dataset, batch_size=model.batch_size, collate_fn=collate)


@contextmanager
def _its_metrics() -> Iterator[dict[str, Any]]:
    """Its modules of metrics by name, without their bars, and able to run with NumPy 2.4.

    Its `accuracy` calls `float` on an array of one element, which NumPy refuses since 2.4.
    """
    from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval

    modules: list[Any] = [image_caption_selection, zeroshot_classification, zeroshot_retrieval]
    bars = [module.tqdm for module in modules]
    try:
        for module in modules:
            module.tqdm = lambda items, *said, **more: items
        zeroshot_classification.float = lambda value: float(value.item() if hasattr(value, "item") else value)  # pyright: ignore
        yield {module.__name__.rpartition(".")[2]: module for module in modules}
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar
        zeroshot_classification.__dict__.pop("float", None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"
