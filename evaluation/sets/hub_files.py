"""The files of raw Hub repositories: CSVs, and zips of pictures.

Everything is named by file and row when it is wrong. Bytes of pictures are not read here, only where
they lie.
"""

import ast
import csv
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.sets.tar_index import EvaluationDataError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclass(frozen=True)
class Packed:
    """A member of a zip: its packed length, and the checksum of what is unpacked."""

    length: int
    is_deflated: bool
    crc: int


@dataclass(frozen=True)
class Cell:
    """A picture in a table: `{"bytes": ...}` in a row, or the item of a list in it."""

    column: str
    row: int
    item: int | None = None


@dataclass(frozen=True)
class Picture:
    """A picture on disk; without a `Packed` or a `Cell` it is a file of its own.

    Args:
        file: That holds it.
        name: Of the picture, with its ending.
        offset: In a zip, of the header before it.
        length: Bytes; in a table about so many.
        place: How it lies in the file.
    """

    file: Path
    name: str
    offset: int
    length: int
    place: Packed | Cell | None = None

    @property
    def key(self) -> str:
        """Its name without the ending."""
        return Path(self.name).stem


def read_csv(folder: Path, columns: Sequence[str]) -> tuple[Path, list[tuple[str, dict[str, str]]]]:
    """Read the one CSV of a folder that has some columns.

    Returns:
        Its path, and each row with its name for people. Rows of a split other than test are left out.

    Raises:
        EvaluationDataError: None has the columns or several have, it is not UTF-8, or a row is cut.
    """
    found = {path: _rows(path) for path in sorted(folder.glob("[!.]*.csv"))}
    fitting = [path for path, (header, _) in found.items() if set(columns) <= set(header)]
    if len(fitting) != 1:
        said = "; ".join(f"{path.name}: {', '.join(header)}" for path, (header, _) in found.items())
        raise EvaluationDataError(
            f"{len(fitting)} of the CSVs in {folder} have the columns {', '.join(columns)}; one must. "
            f"Found {said or 'no CSV'}. Fetch the set again."
        )
    path = fitting[0]
    rows = [
        (f"{path}, row {number}", row)
        for number, row in enumerate(found[path][1], start=1)
        if row.get("split", "test") == "test"
    ]
    for where, row in rows:
        if any(row[column] is None for column in columns):
            raise EvaluationDataError(f"{where} has too few fields. The file is cut; fetch it again.")
    if not rows:
        raise EvaluationDataError(f"{path} has no row of the test split. Fetch it again.")
    return path, rows


def read_lines(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Read a file of JSON lines, each with some texts by name.

    Raises:
        EvaluationDataError: It is not UTF-8, or a line is not JSON or lacks a name.
    """
    found: list[tuple[str, dict[str, str]]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise EvaluationDataError(f"{path} is not UTF-8: {error}.") from error
    for number, line in enumerate(filter(str.strip, lines), start=1):
        try:
            values = json.loads(line)
            found.append((f"{path}, row {number}", {name: values[name] for name in columns}))
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationDataError(
                f"{path}, row {number} is not a JSON object with {', '.join(columns)}: {error!r}. Fetch it again."
            ) from error
    return found


def parse_list(value: Any, where: str, column: str) -> list[str]:
    """A list of strings; a CSV holds it as JSON or as Python writes it.

    Raises:
        EvaluationDataError: It is something else.
    """
    found = value
    for parse in (json.loads, ast.literal_eval) if isinstance(value, str) else ():
        with suppress(ValueError, SyntaxError):
            found = parse(value)
            break
    if isinstance(found, list) and all(isinstance(item, str) for item in found):
        return found
    raise EvaluationDataError(
        f"{where} holds {str(value)[:60]!r} in column {column}, not a list of texts. Fetch the file again."
    )


def pictures_beside(folder: Path) -> list[Picture]:
    """List the pictures in the zips of a folder; without a zip, those in its sub-folders.

    Raises:
        EvaluationDataError: A zip is damaged, or packed in a way that is not read here.
    """
    if zips := sorted(folder.glob("[!.]*.zip")):
        return [picture for path in zips for picture in _members(path)]
    return [
        Picture(path, path.name, 0, path.stat().st_size) for path in sorted(folder.rglob("*")) if is_picture(path)
    ]


def is_picture(path: Path) -> bool:
    """Whether a name is a picture's, and not one of what macOS puts beside it."""
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return path.suffix.lower() in PICTURE_SUFFIXES and not hidden


def by_name(pictures: Iterable[Picture], name: str) -> Mapping[str, list[Picture]]:
    """Group pictures by an attribute, `name` or `key`."""
    found: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        found[plain(getattr(picture, name))].append(picture)
    return found


def plain(name: str) -> str:
    """A name as it is compared: some tools write a space of it as an underscore."""
    return name.replace("_", " ")


def find_picture(name: str, found: Mapping[str, list[Picture]], where: str, folder: Path) -> Picture:
    """Look up the picture that a row names.

    Raises:
        EvaluationDataError: There is none, or more than one.
    """
    same = found.get(plain(name), [])
    if len(same) != 1:
        raise EvaluationDataError(
            f"{where} names the picture {name!r}, and {len(same)} of the {len(found):,} pictures in "
            f"{folder} have that name. The pictures are incomplete or of another set; fetch them again."
        )
    return same[0]


def _rows(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    data = path.read_bytes()
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        return list(reader.fieldnames or ()), list(reader)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise EvaluationDataError(f"{path} is not UTF-8 in line {line}: {error}.") from error
    except csv.Error as error:
        raise EvaluationDataError(f"{path} cannot be read as a CSV: {error}. Fetch it again.") from error


def _members(path: Path) -> Iterator[Picture]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if is_picture(Path(m.filename))]
    except (zipfile.BadZipFile, OSError) as error:
        raise EvaluationDataError(
            f"Cannot read {path} as a zip: {error}. It is cut short, or a pointer of Git LFS in its "
            "place; fetch it again."
        ) from error
    for member in members:
        is_deflated = member.compress_type == zipfile.ZIP_DEFLATED
        if (not is_deflated and member.compress_type != zipfile.ZIP_STORED) or member.flag_bits & 1:
            raise EvaluationDataError(
                f"{path}: {member.filename} is encrypted, or packed by method {member.compress_type}. "
                "Pack the pictures again, stored or deflated."
            )
        yield Picture(
            path,
            Path(member.filename).name,
            member.header_offset,
            member.file_size,
            Packed(member.compress_size, is_deflated, member.CRC),
        )
