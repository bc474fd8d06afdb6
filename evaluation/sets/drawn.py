"""Evaluation sets made from a pool: which samples are held out, and how they are written.

Whether a sample is held out is a function of its uid and a seed, and so is its place in a set: not of the order
of shards, of workers, or of the rest of the pool. Images are copied byte for byte.
"""

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from jaxtyping import Bool, Int, UInt64

from dbp.config import require
from dbp.data.column import Column
from dbp.data.images import EVALUATION_FORMATS, Undecodable
from dbp.data.pool import Pool
from dbp.engine.disk import write_json
from dbp.errors import ConfigError, PoolError, WorldError, nearest
from dbp.exact.order import keyed_hash
from dbp.formats.tars import write_members
from evaluation.sets.data import NAMES_FILE, TEMPLATES_FILE, TYPE_FILE
from evaluation.tasks import lines_of

UIDS_FILE = "uids.parquet"  # beside the tars of a set: the uid of each of its samples, in their order
HELD_OUT_FILE = "held_out.parquet"
SHARD_SIZE = 1_000  # samples of a tar, as DataComp's sets have about
BLOCK = 1 << 20  # rows looked at together
_STREAM = int.from_bytes(b"dbp sets")  # so that the draw is independent of others by the same seed
_EXTENSIONS = {"jpeg": "jpg", "mpo": "jpg"}  # the format of an image -> its extension in a set, where they differ


@dataclass(frozen=True)
class SetsSettings:
    """What `dbp sets` makes of a pool.

    Args:
        name: Of the suite; its tasks are `NAME_labels` and `NAME_retrieval`.
        share: Of the pool's uids, in (0, 1): each is held out with this probability.
        labels: A column of the index, `json:FIELD` and its kin (as `columns` takes them), or a CSV or Parquet file
            with the columns `uid` and `label`; null: no labels.
        class_names: Classes in the order of the labels, or a text file of them; null: those that occur, sorted.
        templates: Prompts with `{c}` for the name of the class, or a text file of them.
        retrieval: Whether a set of images with their captions is made.
        seed: Of the draw and of the order of samples.
    """

    name: str
    share: float
    labels: str | None
    class_names: list[str] | str | None
    templates: list[str] | str
    retrieval: bool
    seed: int

    def __post_init__(self) -> None:
        plain = self.name.replace("_", "").replace("-", "")
        require(plain.isascii() and plain.isalnum(), "name", self.name, "letters, digits, _ and -")
        require(0 < self.share < 1, "share", self.share, "above 0 and below 1")
        if self.labels is None and not self.retrieval:
            raise ConfigError("labels=None: without labels and with retrieval=false there is no set to make.")
        object.__setattr__(self, "templates", lines_of(self.templates, "templates"))
        object.__setattr__(self, "class_names", lines_of(self.class_names, "class_names"))
        for template in self.templates:
            require("{c}" in template, "templates", template, "a text with {c} where the name of the class goes")
        twins = [name for name, times in Counter(self.class_names or ()).items() if times > 1]
        require(not twins, "class_names", ", ".join(twins), "the name of one class alone")


@dataclass(frozen=True)
class Drawn:
    """What is held out.

    Args:
        rows: The samples of the sets, in their order.
        copies: Rows that are held out since they have the image bytes, or the uid, of a drawn one; ascending.
        labels: The name of the class of each of `rows`; none where it has no label, or no labels are asked for.
        captions: Of each of `rows`, on one line.
        class_names: In the order of the labels.
        counts: Rows by what became of them.
    """

    rows: Int[np.ndarray, " m"]
    copies: Int[np.ndarray, " c"]
    labels: tuple[str | None, ...]
    captions: tuple[str, ...]
    class_names: tuple[str, ...]
    counts: Mapping[str, int]


def is_drawn(uid_hashes: UInt64[np.ndarray, " n"], share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Whether samples are held out, by their uids and the seed alone."""
    return places(uid_hashes, seed) < np.uint64(int(share * 2**64))


def places(uid_hashes: UInt64[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """A random number for each uid: below the share it is held out, and samples stand in this order."""
    return keyed_hash(keyed_hash(uid_hashes, _STREAM), seed)


def draw(pool: Pool, settings: SetsSettings, workers: int = 1, column: Column | None = None) -> Drawn:
    """Choose the samples to hold out, and find their labels.

    `column` holds the labels where they are read from the tars. A repeated uid is held out and in no set; of equal
    images the first in the order of the set is in the sets. What cannot be decoded is held out and in no set.

    Raises:
        PoolError: The pool has no shards, or nothing is drawn.
        ConfigError, WorldError: The labels cannot be read, or one is not among the class names.
    """
    if not pool.shards:
        raise PoolError("dbp sets copies images, and this pool is metadata alone. Give the tars with pool.shards.")
    drawn = np.flatnonzero(is_drawn(pool.uid_hashes, settings.share, settings.seed) & pool.is_valid)
    if not len(drawn):
        valid = int(pool.is_valid.sum())
        raise PoolError(f"sets.share={settings.share:g} holds out none of the {valid:,} valid samples. Raise it.")
    hashes = pool.uid_hashes[drawn]
    drawn = drawn[np.lexsort((np.array(pool.uids(drawn)), places(hashes, settings.seed)))]
    counts: Counter[str] = Counter()
    _, inverse, times = np.unique(pool.uid_hashes[drawn], return_inverse=True, return_counts=True)
    is_once = times[inverse] == 1
    counts["repeated uid, in no set"] = int(np.count_nonzero(~is_once))
    rows, again = drawn[is_once], drawn[~is_once]
    contents = _contents(pool, rows)
    first = np.zeros(len(rows), bool)
    first[np.unique(contents, return_index=True)[1]] = True
    copies = _rows_of(pool, np.unique(contents), is_taken=rows[first])
    counts["same image bytes as a held-out sample, in no set"] = len(copies)
    rows = rows[first]
    is_sound = decodable(pool, rows, workers)
    counts["undecodable image, in no set"] = int(np.count_nonzero(~is_sound))
    copies = np.unique(np.concatenate([copies, again, rows[~is_sound]]))
    rows = rows[is_sound]
    counts["sample of the sets"] = len(rows)
    found: list[str | None] = [None] * len(rows)
    if settings.labels and column is not None:
        found = _texts(column.values(rows), f"sets.labels={settings.labels!r}")
    elif settings.labels:
        found = labels_of(pool, rows, settings.labels)
    names, labels = _classes(found, settings.class_names) if settings.labels else ((), found)
    if settings.labels:
        counts["without a label, not in the set of labels"] = labels.count(None)
    captions = tuple(" ".join(text.split()) for text in pool.captions(rows))  # a line of a set is a caption
    if settings.retrieval:
        counts["repeated caption, not in the retrieval set"] = len(captions) - len(set(captions))
    return Drawn(rows, copies, tuple(labels), captions, names, {name: n for name, n in counts.items() if n})


def _contents(pool: Pool, rows: Int[np.ndarray, " m"]) -> np.ndarray:
    """The content hashes of rows, in their order, as 16 bytes each."""
    order = np.argsort(rows)
    found = np.empty((len(rows), 2), np.uint64)
    found[order] = pool.hash_words("content_hash", rows[order])
    return _bytes(found)


def _bytes(words: UInt64[np.ndarray, "m 2"]) -> np.ndarray:
    return np.ascontiguousarray(words).view([("f0", "<u8"), ("f1", "<u8")]).ravel()


def _rows_of(pool: Pool, contents: np.ndarray, is_taken: Int[np.ndarray, " m"]) -> Int[np.ndarray, " c"]:
    """The valid rows whose image has one of some contents, but for those that are taken; ascending."""
    found = []
    for start in range(0, pool.num_rows, BLOCK):
        block = np.arange(start, min(start + BLOCK, pool.num_rows))
        own = _bytes(pool.hash_words("content_hash", block))
        found.append(block[np.isin(own, contents) & pool.is_valid[block]])
    return np.setdiff1d(np.concatenate(found), is_taken)


def decodable(pool: Pool, rows: Int[np.ndarray, " m"], workers: int = 1) -> Bool[np.ndarray, " m"]:
    """Whether the pixels of images can be read; several processes share the rows."""
    blocks = [rows[start : start + SHARD_SIZE] for start in range(0, len(rows), SHARD_SIZE)]
    check = partial(_decodable, replace(pool))  # without what the pool keeps in memory
    if workers == 1 or len(blocks) == 1:
        found = list(map(check, blocks))
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
            found = list(processes.map(check, blocks))
    return np.concatenate([np.zeros(0, bool), *found])


def _decodable(pool: Pool, rows: Int[np.ndarray, " m"]) -> Bool[np.ndarray, " m"]:
    found = np.zeros(len(rows), bool)
    for at in np.argsort(rows):  # each shard is read forward
        try:
            pool.image(int(rows[at]))
            found[at] = True
        except Undecodable:
            continue
    return found


# labels


def labels_of(pool: Pool, rows: Int[np.ndarray, " m"], named: str) -> list[str | None]:
    """The label of each row as text, from a column of the pool or a file by uid; none where there is none.

    Raises:
        ConfigError: There is no such column or file, or it does not hold classes.
        WorldError: The file cannot be read, or gives one sample two labels.
    """
    if named.endswith((".csv", ".parquet")) or Path(named).is_file():
        return _labels_of_file(Path(named).expanduser(), pool.uids(rows))
    columns = pool.index.names
    if named not in columns:
        raise ConfigError(
            f"sets.labels={named!r}: the pool has no such column, and there is no such file. "
            f"{nearest(named, columns)} Or name a field of the json (json:FIELD), or a CSV or Parquet file with "
            "the columns uid and label."
        )
    return _texts(pool.index.at(named, rows), f"sets.labels={named!r}")


def _labels_of_file(path: Path, uids: Sequence[str]) -> list[str | None]:
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path, columns=["uid", "label"])
        else:
            plain = pa_csv.ConvertOptions(  # as text: "01" is not 1
                column_types={"uid": pa.string(), "label": pa.string()}, include_columns=["uid", "label"]
            )
            table = pa_csv.read_csv(path, convert_options=plain)
    except (OSError, pa.ArrowException) as error:
        raise WorldError(
            f"sets.labels={str(path)!r} cannot be read as a table with the columns uid and label: {error}"
        ) from error
    among = pc.SetLookupOptions(pa.array(uids, pa.string()))
    wanted = table.filter(pc.call_function("is_in", [table["uid"].cast(pa.string())], among))
    found: dict[str, str] = {}
    labels = _texts(wanted["label"], f"sets.labels={str(path)!r}")
    for uid, label in zip(wanted["uid"].cast(pa.string()).to_pylist(), labels, strict=True):
        if label is not None and found.setdefault(uid, label) != label:
            raise WorldError(
                f"sets.labels={str(path)!r} gives {uid!r} two labels, {found[uid]!r} and {label!r}. Keep one."
            )
    return [found.get(uid) for uid in uids]


def _texts(column: Any, setting: str) -> list[str | None]:
    """Labels as text without blanks around; an empty one is none."""
    if not (pa.types.is_integer(column.type) or _is_text(column.type)):
        raise ConfigError(
            f"{setting}: the column holds {column.type}, and a label is a text or a whole number. Give classes."
        )
    return [str(value).strip() or None if value is not None else None for value in column.to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def _classes(labels: Sequence[str | None], given: Sequence[str] | None) -> tuple[tuple[str, ...], list[str | None]]:
    """The names of the classes, and labels by name; whole numbers that are not names count the given names.

    Raises:
        ConfigError: A label is not among the given names, or fewer than two classes occur.
    """
    occurring = sorted({label for label in labels if label is not None})
    if not occurring:
        raise ConfigError(
            f"sets.labels: none of the {len(labels):,} samples that are held out has a label. Give labels by the "
            "uids of this pool (pool.uid), or raise sets.share."
        )
    if given is None:
        if len(occurring) < 2:
            raise ConfigError(
                f"sets.labels: all samples that are held out have the label {occurring[0]!r}, and a task needs two "
                "classes at least. Name another column, or raise sets.share."
            )
        return tuple(occurring), list(labels)
    by_number = {str(number): name for number, name in enumerate(given)}
    known = {name: name for name in given}
    if not set(occurring) & set(known) and all(label.isdecimal() for label in occurring):
        known = by_number
    if outside := [label for label in occurring if label not in known]:
        raise ConfigError(
            f"sets.labels: {len(outside):,} labels are not among the {len(given):,} of sets.class_names, such as "
            f"{outside[0]!r}. Add them to sets.class_names, or take their samples out of the labels."
        )
    return tuple(given), [None if label is None else known[label] for label in labels]


# writing


def write_sets(pool: Pool, settings: SetsSettings, drawn: Drawn, out: Path) -> dict[str, dict[str, Any]]:
    """Write the sets, their tasks, the suite and the list of held-out uids; return what each task's YAML says.

    Raises:
        PoolError: A set has no sample, or an image has a format that no set can hold.
    """
    out.mkdir(parents=True)
    tasks: dict[str, dict[str, Any]] = {}
    if settings.labels:
        key = f"{settings.name}_labels"
        at = [i for i, label in enumerate(drawn.labels) if label is not None]
        number = {name: str(i).encode() for i, name in enumerate(drawn.class_names)}
        truths = [number[str(drawn.labels[i])] for i in at]
        folder = _write_set(pool, out, key, drawn.rows[at], "cls", truths)
        for file, lines in ((NAMES_FILE, drawn.class_names), (TEMPLATES_FILE, settings.templates)):
            (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        sizes = {"num_classes": len(drawn.class_names), "num_templates": len(settings.templates)}
        tasks[key] = {"kind": "classification", "main_metric": "acc1", "test_size": len(at), **sizes}
    if settings.retrieval:
        key = f"{settings.name}_retrieval"
        at = sorted({text: i for i, text in reversed(list(enumerate(drawn.captions)))}.values())
        folder = _write_set(pool, out, key, drawn.rows[at], "txt", [drawn.captions[i].encode() for i in at])
        (folder / TYPE_FILE).write_text("retrieval")
        chance = {"chance": 1 / len(at)}
        tasks[key] = {"kind": "retrieval", "main_metric": "mean_recall@1", "test_size": len(at), **chance}
    for key, facts in tasks.items():
        facts["folder"] = _folder_name(key)
        _write_yaml(out / "configs" / "task" / f"{key}.yaml", facts, settings)
    _write_yaml(out / "configs" / "suites" / f"{settings.name}.yaml", {"tasks": list(tasks)}, settings)
    _write_uids(out / HELD_OUT_FILE, sorted({*pool.uids(drawn.rows), *pool.uids(drawn.copies)}))
    write_json(out / "sets.json", _about(pool, settings, drawn, tasks))
    return tasks


def _folder_name(key: str) -> str:
    return f"wds_{key}_test"


def _write_set(
    pool: Pool, out: Path, key: str, rows: Int[np.ndarray, " m"], kind: str, truths: Sequence[bytes]
) -> Path:
    if not len(rows):
        raise PoolError(
            f"the set {key} would have no sample. Raise sets.share, or give labels for more of the pool."
        )
    folder = out / _folder_name(key)
    (folder / "test").mkdir(parents=True)
    starts = range(0, len(rows), SHARD_SIZE)
    for shard, start in enumerate(starts):
        span = slice(start, start + SHARD_SIZE)
        members = _members(pool, rows[span], start, kind, truths[span])
        write_members(folder / "test" / f"{shard}.tar", members)
    (folder / "test" / "nshards.txt").write_text(str(len(starts)))
    _write_uids(folder / UIDS_FILE, pool.uids(rows))
    return folder


def _members(
    pool: Pool, rows: Int[np.ndarray, " m"], start: int, kind: str, truths: Sequence[bytes]
) -> Iterator[tuple[str, bytes]]:
    formats = pool.column("format", rows)
    for number, (row, format_, truth) in enumerate(zip(rows.tolist(), formats, truths, strict=True), start):
        extension = _EXTENSIONS.get(format_, format_)
        if extension not in EVALUATION_FORMATS:
            extension = "png"  # readers go by the content; the layout has no extension for this format
        yield f"s{number:07d}.{extension}", pool.image_bytes(row)
        yield f"s{number:07d}.{kind}", truth


def _write_uids(path: Path, uids: Sequence[str]) -> None:
    pq.write_table(pa.table({"uid": pa.array(uids, pa.string())}), path, compression="zstd")


def _write_yaml(path: Path, values: Mapping[str, Any], settings: SetsSettings) -> None:
    from omegaconf import OmegaConf

    path.parent.mkdir(parents=True, exist_ok=True)
    said = " ".join(f"sets.{name}={getattr(settings, name)}" for name in ("name", "share", "seed"))
    path.write_text(
        f"# Written by dbp sets {said}\n" + OmegaConf.to_yaml(OmegaConf.create(dict(values))), encoding="utf-8"
    )


def _about(pool: Pool, settings: SetsSettings, drawn: Drawn, tasks: Mapping[str, Any]) -> dict[str, Any]:
    uids = "\n".join(pool.uids(drawn.rows))
    return {
        "pool": pool.digest,
        "share": settings.share,
        "seed": settings.seed,
        "samples": hashlib.sha256(uids.encode()).hexdigest(),
        "counts": dict(drawn.counts),
        "tasks": {key: dict(facts) for key, facts in tasks.items()},
    }
