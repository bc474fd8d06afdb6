"""Check sets on disk before a long run: counts, names, templates, annotations, every picture, a hash.

The hash is the `set_digest` that a result on the whole set carries, so two machines, or two days, can be
known to have measured on the same pictures. Every picture is read and its header parsed; a few are
decoded whole.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dbp.engine.disk import replace_json
from dbp.errors import WorldError
from evaluation.kinds.registry import find_kind, open_task
from evaluation.metrics import zero_shot
from evaluation.running.encode import require_whole
from evaluation.running.runner import ShowProgress
from evaluation.sets.data import EvaluationSet, set_digest
from evaluation.sets.folders import find_set
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.tasks import Task

# Pictures that are decoded whole.
NUM_DECODED = 16
# Faults of published sets, which every number in the field carries: said, and no reason to stop.
KNOWN_BLANKS = {"vtab/clevr_closest_object_distance": (3,)}
_IMAGENET_TWINS = ("missile", "sunglasses")
KNOWN_TWINS = {
    "imagenet1k": _IMAGENET_TWINS,
    "imagenet_sketch": _IMAGENET_TWINS,
    "imagenetv2": _IMAGENET_TWINS,
    "wilds/iwildcam": ("central american red brocket", "jaguarundi", "lowland paca", "unknown bird"),
}


@dataclass(frozen=True)
class Checked:
    """What was found in one set.

    Args:
        task: Whose set it is.
        folder: Where it lies; none if it was not found.
        num_samples: What its metrics average over, where the set could be read.
        problems: What is wrong, each with the way out; none for a set that can be evaluated.
        notes: Known faults of the published set.
        digest: Of the set; none if it could not be read whole.
    """

    task: Task
    folder: Path | None
    num_samples: int | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str | None = None

    def line(self) -> str:
        """Say it in one line."""
        if self.problems:
            return f"WRONG {self.task.key}: {' '.join(self.problems)}"
        size = f"{self.num_samples:,} samples, {str(self.digest)[:16]}, {self.folder}"
        return f"ok    {self.task.key}: {size}" + "".join(f" ({note})" for note in self.notes)


def verify_suite(
    tasks: Sequence[Task],
    root: Path,
    *,
    hashes: Path | None = None,
    say: Callable[[str], object] = print,
    progress: ShowProgress | None = None,
) -> list[Checked]:
    """Check the sets of some tasks; a set that is wrong does not stop the others.

    Args:
        tasks: Whose sets.
        root: Folder that holds them.
        hashes: A JSON file from task to hash. A set must have the one that stands there; sets without
            one that are right are added.
        say: Told a line for each set.
        progress: Shows the pictures of each set.

    Raises:
        WorldError: The file of hashes is something else.
    """
    recorded = {} if hashes is None else _read_hashes(hashes)
    found: list[Checked] = []
    for task in tasks:
        try:
            checked = verify_set(task, find_set(root, task), progress=progress)
        except EvaluationDataError as error:
            checked = Checked(task, None, problems=(str(error),))
        known = recorded.get(task.key)
        if checked.digest is not None and known not in (None, checked.digest):
            problem = (
                f"Its hash is {checked.digest[:16]} and {hashes} has {str(known)[:16]}: names, annotations or "
                f"pictures have changed. Fetch the set again, or remove {task.key} from that file."
            )
            checked = replace(checked, problems=(*checked.problems, problem))
        if not checked.problems:
            recorded[task.key] = str(checked.digest)
        say(checked.line())
        found.append(checked)
    if hashes is not None:
        replace_json(hashes, recorded)
    return found


def verify_set(
    task: Task, folder: Path, *, num_decoded: int = NUM_DECODED, progress: ShowProgress | None = None
) -> Checked:
    """Check the set of one task; `num_decoded` of its pictures, chosen at random, are decoded whole."""
    kind, problems, notes = find_kind(task.kind), list[str](), list[str]()
    try:
        opened = open_task(task, folder)
        _check_names(task, opened.class_names, problems, notes)
        _check_templates(task, opened.templates, problems)
        _check_tars(opened, problems)
        scorer = kind(opened)
    except EvaluationDataError as error:
        return Checked(task, folder, None, (*problems, str(error)), tuple(notes))
    if task.test_size not in (None, scorer.num_available):
        problems.append(
            f"It has {scorer.num_available:,} samples and the test set has {task.test_size:,}. Fetch "
            f"{folder} again, and nshards.txt with it."
        )
    with nullcontext() if progress is None else progress(task.name, len(scorer.rows), "pictures") as bar:
        advance = bar.advance if bar is not None else lambda count: None
        broken, digests = _read_pictures(opened, scorer.rows, num_decoded, advance)
    try:
        require_whole(broken, len(scorer.rows))
        digest = set_digest(opened, scorer.rows, digests)
    except EvaluationDataError as error:
        problems.append(str(error))
        digest = None
    return Checked(task, folder, scorer.num_available, tuple(problems), tuple(notes), digest)


def _check_names(task: Task, names: Sequence[str], problems: list[str], notes: list[str]) -> None:
    if task.num_classes is not None and len(names) != task.num_classes:
        problems.append(
            f"classnames.txt has {len(names)} names and the task has {task.num_classes} classes. Fetch "
            "that file again."
        )
    blanks = tuple(number for number, name in enumerate(names) if not name)
    if blanks:
        said = f"class {', '.join(map(str, blanks))} has an empty name"
        if blanks == KNOWN_BLANKS.get(task.key):
            notes.append(f"{said}, as published; protocol=datacomp drops it")
        else:
            problems.append(f"In classnames.txt {said}. Fetch that file again.")
    twins = sorted(name for name, times in Counter(filter(None, names)).items() if times > 1)
    if twins:
        said = f"twin names: {', '.join(twins)}"
        # The names of a data set of clip_benchmark are the package's, as the field uses them.
        if task.is_built or {name.lower() for name in twins} <= set(KNOWN_TWINS.get(task.key, ())):
            notes.append(f"{said}, as published")
        else:
            problems.append(f"classnames.txt has {said}. Fetch that file again.")


def _check_templates(task: Task, templates: Sequence[str], problems: list[str]) -> None:
    if task.num_templates not in (None, len(templates)):
        problems.append(
            f"zeroshot_classification_templates.txt has {len(templates)} templates and the task has "
            f"{task.num_templates}. Fetch that file again."
        )
    if without := [template for template in templates if "{c}" not in template]:
        problems.append(
            f"{len(without)} of {len(templates)} templates have no {{c}} for the name, such as "
            f"{without[0]!r}. Fetch zeroshot_classification_templates.txt again."
        )
    try:
        zero_shot.prompts(["x"], templates)
    except EvaluationDataError as error:
        problems.append(str(error))


def _check_tars(opened: EvaluationSet, problems: list[str]) -> None:
    """Find tars that nshards.txt does not count; a missing one has failed before."""
    counted = {path for path in opened.shards if path.suffix == ".tar"}
    beside = {path for folder in {path.parent for path in counted} for path in folder.glob("[!.]*.tar")}
    if extra := sorted(beside - counted):
        problems.append(
            f"nshards.txt counts {len(counted)} tars and {len(extra)} more lie beside them, such as "
            f"{extra[0].name}. Fetch nshards.txt again, or remove them."
        )


def _read_pictures(
    opened: EvaluationSet, rows: Sequence[int], num_decoded: int, advance: Callable[[int], object]
) -> tuple[list[str], list[bytes]]:
    """What is wrong with which pictures, and the hash of each one's bytes."""
    from PIL import Image

    chosen = np.random.default_rng(0).choice(len(rows), min(num_decoded, len(rows)), replace=False)
    decoded = set(chosen.tolist())
    broken: list[str] = []
    digests: list[bytes] = []
    try:
        for place, row in enumerate(rows):
            try:
                data = opened.read_picture(row)
                digests.append(hashlib.sha256(data).digest())
                with Image.open(io.BytesIO(data)) as picture:
                    if place in decoded:
                        picture.load()
            except Exception as error:  # Pillow raises many kinds for damaged files
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                broken.append(f"{opened.where(row)} ({reason})")
            advance(1)
    finally:
        opened.close()
    return broken, digests


def _read_hashes(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorldError(
            f"{path} is no JSON ({error}). It should hold the hash of each set; move it away, and a new "
            "one is written."
        ) from error
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise WorldError(f"{path} does not hold a hash for each task. Move it away, and a new one is written.")
    return values
