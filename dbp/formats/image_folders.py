"""Folders of image files: img2dataset's `files` output, and Hugging Face's `imagefolder` with its metadata file.

| a folder that holds | its samples |
|---|---|
| `metadata.csv`, `.jsonl` or `.parquet` with a column `file_name` | one per line: the image, and the line as json |
| image files | one per stem: the image, and `.txt` and `.json` of the same stem |

Folders are read in the order of their names, each in the order of its names, or of its metadata's lines.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dbp.data.images import IMAGE_FORMATS
from dbp.errors import PoolError
from dbp.formats.parquet_images import NOT_IMAGE, as_json

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
PART = 10_000  # samples
OTHER = "files of other kinds"
UNNAMED = "images that no line of the metadata names"
OUTSIDE = "file names that lead out of the folder"


@dataclass(frozen=True)
class Unit:
    """Some samples of one folder: `first` to `last`, by line of its metadata or by stem."""

    folder: Path
    metadata: Path | None
    first: int
    last: int


def units(root: Path) -> list[Unit]:
    """The folders with samples below a folder, in pieces of `PART` samples.

    Raises:
        PoolError: It is not a folder, cannot be read, or holds no image.
    """
    if not root.is_dir():
        raise PoolError(f"pool.folder={str(root)!r} is not a folder. Name the folder that holds the images.")
    found = []
    for folder, metadata in _folders(root):
        count = len(lines_of(metadata, *_state(metadata))) if metadata else len(stems_of(folder, *_state(folder)))
        found += [Unit(folder, metadata, at, min(at + PART, count)) for at in range(0, count, PART)]
    if not found:
        raise PoolError(
            f"pool.folder={str(root)!r} holds no image ({', '.join(IMAGE_FORMATS)}) and no {', '.join(METADATA)}, "
            "in it or below. Name the folder that holds them; pool=webdataset reads tars, pool=parquet Parquet."
        )
    return found


def files_of(root: Path) -> Iterator[tuple[str, int, int]]:
    """Name below the root, bytes and time of each file that samples may be read from."""
    for folder, metadata in _folders(root):
        own = _images_below(folder) if metadata else sorted(_names(folder))
        for path in [*([metadata] if metadata else []), *(folder / name for name in own)]:
            stat = path.stat()
            yield str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns


def read_samples(unit: Unit, counts: Counter[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a unit: a key, and members by extension, as they lie in their files.

    A key is the image's path below the unit's folder without its extension, with dots as `%2E`, since a key in a
    tar ends at the first dot.

    Raises:
        PoolError: A file cannot be read, or metadata is damaged; it names the file and the line.
    """
    if unit.metadata is None:
        stems = stems_of(unit.folder, *_state(unit.folder))[unit.first : unit.last]
        for stem, names in stems:
            yield escaped(stem), {extension(name): _read(unit.folder / name) for name in names}
        return
    lines = lines_of(unit.metadata, *_state(unit.metadata))
    top = os.path.realpath(unit.folder)
    for fields in lines[unit.first : unit.last]:
        name = str(fields[FILE_NAME])
        path = Path(os.path.realpath(unit.folder / name))
        members = {"json": as_json(fields)}
        if not path.is_relative_to(top):
            counts[OUTSIDE] += 1
        elif not path.is_file():
            counts[NOT_IMAGE] += 1
        else:
            members = {extension(name): _read(path), **members}
        yield escaped(os.path.splitext(name)[0]), members


def _images_below(folder: Path) -> list[str]:
    """The image files in a folder and below, by their path below it, in order."""
    found = []
    for place, _, files in os.walk(folder, followlinks=True):
        found += [os.path.relpath(os.path.join(place, n), folder) for n in files if extension(n) in IMAGE_FORMATS]
    return sorted(found)


def escaped(stem: str) -> str:
    """A key that a tar can hold: dots and control characters as percent signs and two digits."""
    return "".join(quote(c, safe="") if c in "%\\" or ord(c) < 32 else "%2E" if c == "." else c for c in stem)


def extension(name: str) -> str:
    """A file's extension in lower case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()


def left_out(root: Path) -> Counter[str]:
    """Files that no sample is made of, by kind."""
    counts: Counter[str] = Counter()
    for folder, metadata in _folders(root):
        if metadata:
            named = {str(fields[FILE_NAME]) for fields in lines_of(metadata, *_state(metadata))}
            counts[UNNAMED] += sum(name not in named for name in _images_below(folder))
        else:
            known = {name for _, names in stems_of(folder, *_state(folder)) for name in names}
            counts[OTHER] += sum(name not in known for name in _names(folder))
    return counts


@lru_cache(maxsize=4)
def stems_of(folder: Path, *state: int) -> list[tuple[str, list[str]]]:
    """The stems of a folder's image files, texts and json, with their files in order; none if it has no image.

    Args:
        state: What changes when the folder does.
    """
    wanted = sorted(n for n in _names(folder) if extension(n) in (*IMAGE_FORMATS, "txt", "json"))
    if not any(extension(name) in IMAGE_FORMATS for name in wanted):
        return []
    groups = groupby(sorted(wanted, key=lambda n: (os.path.splitext(n)[0], n)), lambda n: os.path.splitext(n)[0])
    return [(stem, list(names)) for stem, names in groups]


@lru_cache(maxsize=4)
def lines_of(metadata: Path, *state: int) -> "Lines":
    """The lines of a metadata file, each as fields.

    Raises:
        PoolError: It is damaged, or has no column `file_name`.
    """
    try:
        if metadata.suffix == ".jsonl":
            return _jsonl(metadata)
        table = pq.read_table(metadata) if metadata.suffix == ".parquet" else _csv(metadata)
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise PoolError(f"{metadata} cannot be read: {error}. Repair it, or move it away.") from error
    if FILE_NAME not in table.column_names:
        raise _unnamed(metadata, table.column_names)
    return Lines(table)


@dataclass(frozen=True)
class Lines:
    """A metadata file's lines: those of a table, or a list of mappings."""

    source: Any

    def __len__(self) -> int:
        return self.source.num_rows if isinstance(self.source, pa.Table) else len(self.source)

    def __getitem__(self, span: slice) -> list[dict[str, Any]]:
        if isinstance(self.source, list):
            return self.source[span]
        return self.source.slice(span.start, span.stop - span.start).to_pylist()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for at in range(0, len(self), PART):
            yield from self[slice(at, min(at + PART, len(self)))]


def _jsonl(metadata: Path) -> Lines:
    found: list[dict[str, Any]] = []
    with open(metadata, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise PoolError(f"{metadata} line {number:,} is not JSON: {error}. Repair it.") from error
            if not isinstance(fields, dict) or not isinstance(fields.get(FILE_NAME), str):
                raise _unnamed(metadata, list(fields) if isinstance(fields, dict) else [], f" line {number:,}")
            found.append(fields)
    return Lines(found)


def _csv(metadata: Path) -> pa.Table:
    """A CSV file; a column is numbers only where each value reads back as it was written."""
    with open(metadata, newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file), [])
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    table = pyarrow.csv.read_csv(metadata, parse_options=parse, convert_options=convert)
    for at, name in enumerate(table.column_names):
        if name != FILE_NAME and (numbers := _as_numbers(table[name])) is not None:
            table = table.set_column(at, name, numbers)
    return table


def _as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Texts as numbers, empty ones as null; none where a text is not a number, or would lose zeros or digits."""
    is_empty = pc.call_function("equal", [column, ""])
    given = pc.call_function("if_else", [is_empty, pa.scalar(None, pa.string()), column])
    if given.null_count == len(given):
        return None
    for kind in (pa.int64(), pa.float64()):
        try:
            found = given.cast(kind)
        except pa.ArrowException:
            continue
        loses = pc.call_function(
            "match_substring_regex", [given], pc.MatchSubstringOptions(r"^[+-]?0\d|^\+|^-?\d{16,}$")
        )
        return None if pc.call_function("any", [loses]).as_py() else found
    return None


def _unnamed(metadata: Path, names: list[str], where: str = "") -> PoolError:
    return PoolError(
        f"{metadata}{where} has no {FILE_NAME!r} with text, which names each image; it has "
        f"{', '.join(names) or 'nothing'}. Call that column {FILE_NAME}."
    )


def _folders(root: Path) -> Iterator[tuple[Path, Path | None]]:
    """Folders with samples, in order; a folder's metadata speaks for all below it."""
    left, seen = [root], set[tuple[int, int]]()
    while left:
        folder = left.pop()
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in seen:  # a link that leads back
            continue
        seen.add((stat.st_dev, stat.st_ino))
        metadata = [folder / name for name in METADATA if (folder / name).is_file()]
        if len(metadata) > 1:
            raise PoolError(f"{folder} has {' and '.join(p.name for p in metadata)}. Move one of them away.")
        if metadata or stems_of(folder, *_state(folder)):
            yield folder, next(iter(metadata), None)
        if not metadata:
            left += sorted((folder / name for name in _names(folder, folders=True)), reverse=True)


def _names(folder: Path, folders: bool = False) -> list[str]:
    """The files of a folder, or its folders; hidden ones are left out."""
    try:
        with os.scandir(folder) as found:
            return [e.name for e in found if e.name[0] != "." and (e.is_dir() if folders else e.is_file())]
    except OSError as error:
        raise PoolError(f"{folder} cannot be read: {error.strerror or error}.") from error


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PoolError(
            f"{path} cannot be read: {error.strerror or error}. Restore it, or take it out of the folder."
        ) from error
