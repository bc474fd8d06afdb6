"""One evaluation set on disk, in the layout that DataComp and CLIP_benchmark share.

    FOLDER/classnames.txt                         one name a line, blank names count
    FOLDER/zeroshot_classification_templates.txt  one template a line, with {c} for the name
    FOLDER/test/nshards.txt                       number of tars
    FOLDER/test/0.tar ...                         s0000000.webp, s0000000.cls or .txt, ...

Labels come from `.cls` (an integer), captions from `.txt` (one a line). Only headers and small
members are read here; a picture is read when it is asked for. CLIP_benchmark's folders have a
`dataset_type.txt` beside, which says retrieval or multilabel. `evaluation.sets.hub` reads other layouts.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from dbp.data.pool import MOST_OPEN
from dbp.formats.tar_headers import other_kind
from evaluation.sets.tar_index import EvaluationDataError, Sample, scan_tar

NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
TYPE_FILE = "dataset_type.txt"


@dataclass(frozen=True)
class Instance:
    """One question of WinoGAViL.

    Args:
        cue: As a person wrote it, not empty.
        candidates: Rows of the set, each once.
        is_association: Whether the cue was given for the candidate; for one at least.
    """

    cue: str
    candidates: tuple[int, ...]
    is_association: tuple[bool, ...]


@dataclass(frozen=True)
class Choice:
    """Images and captions of which the first image fits the first caption, the second the second, and so on.

    Args:
        pictures: Rows of the set.
        captions: One or more; those beyond the images fit none.
    """

    pictures: tuple[int, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationSet:
    """The samples of one set, in the order of its tars.

    Args:
        folder: Where it lies.
        shards: The files that hold its samples: tars, or what else its layout has.
        samples: n of them.
        class_names: In the order of the labels; may hold blanks and twins. Empty for retrieval.
        templates: Prompts with `{c}` for the name. Empty for retrieval.
        instances: Of WinoGAViL; they name samples by row.
        choices: Of a set where several images share captions, as Winoground; they name samples by row.
    """

    folder: Path
    shards: tuple[Path, ...]
    samples: tuple[Sample, ...]
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    instances: tuple[Instance, ...] = ()
    choices: tuple[Choice, ...] = ()
    _files: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getstate__(self) -> dict:
        # A spawned worker opens files of its own.
        return self.__dict__ | {"_files": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    def where(self, row: int) -> str:
        """Name a picture for people: tar and member."""
        sample = self.samples[row]
        return f"{self.shards[sample.shard]}: {sample.key}.{sample.extension}"

    def read_picture(self, row: int) -> bytes:
        """Read the bytes of one picture, from any process.

        Raises:
            EvaluationDataError: The tar is shorter than when it was indexed.
        """
        sample = self.samples[row]
        data = os.pread(self.file(sample.shard), sample.length, sample.offset)
        if len(data) != sample.length:
            raise EvaluationDataError(f"{self.where(row)} was cut while it was being read.")
        return data

    def file(self, shard: int) -> int:
        """An open file of a shard, for `os.pread`; few are open together."""
        if shard not in self._files:
            while len(self._files) >= MOST_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._files[shard]

    def close(self) -> None:
        """Close the tars that this process opened; they open again when needed."""
        while self._files:
            os.close(self._files.popitem()[1])

    def labels(self) -> Int[np.ndarray, " n"]:
        """Read the class number of every sample.

        Raises:
            EvaluationDataError: One has no `.cls`, no integer in it, or one outside the names.
        """
        labels = np.array([self._label(row) for row in range(len(self))], dtype=np.int64)
        outside = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if outside.size:
            row = int(outside[0])
            raise EvaluationDataError(
                f"{outside.size:,} of {len(self):,} labels in {self.folder} are outside the "
                f"{len(self.class_names)} names of {NAMES_FILE}; the first is {labels[row]} at "
                f"{self.where(row)}. Names and tars come from different versions: fetch both again."
            )
        return labels

    def captions(self) -> list[list[str]]:
        """Read the captions of every sample, at least one each.

        Raises:
            EvaluationDataError: One has none, or they are not UTF-8.
        """
        found: list[list[str]] = []
        for row in range(len(self)):
            try:
                found.append(self._annotation(row, "txt").decode("utf-8").splitlines())
            except UnicodeDecodeError as error:
                raise EvaluationDataError(f"The captions of {self.where(row)} are not UTF-8: {error}.") from error
            if not found[-1]:
                raise EvaluationDataError(
                    f"{self.where(row)} has an empty .txt member: recall needs a caption for each "
                    "picture. Leave the picture out, or give it one."
                )
        return found

    def _label(self, row: int) -> int:
        text = self._annotation(row, "cls")
        try:
            return int(text)
        except ValueError:
            raise EvaluationDataError(
                f"The label of {self.where(row)} is {text[:40]!r}, not an integer. "
                "A .cls member holds the class number as text."
            ) from None

    def _annotation(self, row: int, extension: str) -> bytes:
        annotations = self.samples[row].annotations
        if extension not in annotations:
            raise EvaluationDataError(
                f"{self.where(row)} has no .{extension} member beside it. Is this the right kind "
                "of set for the task? Otherwise fetch or write it again."
            )
        return annotations[extension]


def open_set(
    folder: Path,
    *,
    kind: str,
    split: str = "test",
    class_names: tuple[str, ...] | None = None,
    templates: tuple[str, ...] | None = None,
) -> EvaluationSet:
    """Index one set.

    Args:
        folder: As in the module's docstring.
        kind: The task's; all but retrieval, caption_choice and winogavil need names and templates.
        split: Which sub-folder holds the tars.
        class_names: In place of those of the folder.
        templates: Likewise.

    Raises:
        EvaluationDataError: A folder, file or tar is missing or damaged, the set is empty, or made
            for another kind of task.
    """
    if not folder.is_dir():
        raise EvaluationDataError(
            f"There is no folder {folder}. Put the set there, or set root to the folder that holds {folder.name}."
        )
    _check_type(folder, kind)
    shards = tuple(folder / split / f"{i}.tar" for i in range(num_shards(folder / split)))
    samples = tuple(s for i, path in enumerate(shards) for s in scan_tar(path, i))
    if not samples:
        raise EvaluationDataError(f"The set in {folder} is empty: {len(shards)} tars, no picture.")
    key, times = Counter(sample.key for sample in samples).most_common(1)[0]
    if times > 1:
        raise EvaluationDataError(
            f"Key {key!r} occurs in {times} tars of {folder / split}. Keys name samples, so they "
            "must be unique; are two sets mixed in one folder?"
        )
    make = partial(EvaluationSet, folder=folder, shards=shards, samples=samples)
    if kind in ("retrieval", "caption_choice", "winogavil"):
        return make()
    return make(
        class_names=class_names or read_lines(folder / NAMES_FILE),
        templates=templates or read_lines(folder / TEMPLATES_FILE),
    )


def _check_type(folder: Path, kind: str) -> None:
    """Refuse a set whose `dataset_type.txt` names another kind; without the file any may be."""
    path = folder / TYPE_FILE
    if not path.is_file():
        return
    said = _read_text(path).strip().lower()
    special = ("retrieval", "multilabel")
    wanted = "retrieval" if kind == "caption_choice" else kind if kind in special else "classification"
    if (said if said in special else "classification") != wanted:
        raise EvaluationDataError(
            f"{path} says {said!r}, and the task is of kind {kind}. Is it the folder of another set? "
            f"{folder.name} must hold the task's own."
        )


def num_shards(folder: Path) -> int:
    """The number of tars that a folder says it holds.

    Raises:
        EvaluationDataError: `nshards.txt` is missing, or holds something else.
    """
    path = folder / "nshards.txt"
    text = _read_text(path)
    if not text.strip().isdigit():
        raise EvaluationDataError(f"{path} holds {text[:40]!r}; it must hold the number of tars beside it.")
    return int(text)


def read_lines(path: Path) -> tuple[str, ...]:
    """Read one entry a line, stripped; a blank line is an entry.

    Source:
        CLIP_benchmark 1.6.x. (1.4.0, which DataComp pins, drops blank lines: see
        `zero_shot.kept_lines`.)
    """
    lines = tuple(line.strip() for line in _read_text(path).splitlines())
    if not lines:
        raise EvaluationDataError(f"{path} is empty; it must hold one entry a line.")
    return lines


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        head = text[:32].lower()  # a name or a template may begin with "<", too
        if head.startswith(("version https://git-lfs", "<!doctype", "<html", "<?xml")):
            other = other_kind(head.encode())
            raise EvaluationDataError(f"{path} is not the set's own file: it is {other}. Fetch it again.")
        return text
    except FileNotFoundError:
        raise EvaluationDataError(
            f"{path} is missing. The set is incomplete or in another layout; fetch it again."
        ) from None
    except UnicodeDecodeError as error:
        raise EvaluationDataError(f"{path} is not UTF-8: {error}.") from error


def set_digest(evaluation_set: EvaluationSet, rows: list[int], pictures: list[bytes]) -> str:
    """Hash what a result on some rows depends on: names, templates, labels, captions, instances, picture bytes.

    `pictures` is the hash of the bytes of each of the rows, in the same order.
    """
    digest = hashlib.sha256()
    for lines in (evaluation_set.class_names, evaluation_set.templates):
        digest.update(repr(lines).encode())
    for one in evaluation_set.instances:
        keys = [evaluation_set.samples[row].key for row in one.candidates]
        digest.update(repr((one.cue, keys, one.is_association)).encode())
    for one in evaluation_set.choices:
        digest.update(repr(([evaluation_set.samples[row].key for row in one.pictures], one.captions)).encode())
    for row, picture in zip(rows, pictures, strict=True):
        annotations = evaluation_set.samples[row].annotations
        digest.update(picture + repr(sorted(annotations.items())).encode())
    return digest.hexdigest()
