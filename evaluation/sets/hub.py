"""Flickr, MSCOCO and WinoGAViL as their Hub repositories hold them, read offline and never run.

    FOLDER/test_1k_flickr.csv           columns filename, raw (a list of captions)
    FOLDER/images_flickr_1k_test.zip    pictures by file name; or the folder that was unpacked from it

    FOLDER/winogavil_dataset.csv        columns candidates, cue, associations
    FOLDER/winogavil_images.zip         pictures by the candidates' names

or tables (`.parquet`, or `.arrow` as the `datasets` library caches them) with columns image and caption,
or candidates, candidate_images, cue and associations, or (Winoground) image_0, image_1, caption_0 and caption_1;
Winoground's images may also be a zip beside `examples.jsonl`, which names them. WinoGAViL may lie as tars as well:
the pictures in DataComp's layout, with the candidates' names as keys, and the CSV beside `test/`.

Names of files do not matter, columns do. A caption is one line here: runs of white space become one
space, as CLIP's tokenizer makes them.

Source:
    The repositories nlphuji/flickr_1k_test_image_text_retrieval,
    nlphuji/mscoco_2014_5k_test_image_text_retrieval and nlphuji/winogavil.
"""

import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluation.sets.data import Choice, EvaluationSet, Instance, open_set
from evaluation.sets.hub_files import (
    Cell,
    Packed,
    Picture,
    by_name,
    find_picture,
    parse_list,
    pictures_beside,
    plain,
    read_csv,
    read_lines,
)
from evaluation.sets.hub_tables import pictured, read_rows, read_tables
from evaluation.sets.tar_index import EvaluationDataError, Sample

_ZIP_HEADER = 30
# WinoGAViL's columns of lists.
_LISTS = ("candidates", "associations")
# Winoground's columns.
_PAIRS = ("image_0", "image_1", "caption_0", "caption_1")


@dataclass(frozen=True)
class HubSet(EvaluationSet):
    """Samples whose pictures lie in zips, tables or files of their own.

    Args:
        places: How to read each sample's picture.
    """

    places: tuple[Packed | Cell | None, ...] = ()
    # The rows of each column that were read last: number of the file, column, first row, end, values.
    _rows: list[tuple[int, str, int, int, Any]] = field(default_factory=list, repr=False, compare=False)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_rows": []}

    def where(self, row: int) -> str:
        place, sample = self.places[row], self.samples[row]
        file = self.shards[sample.shard]
        if isinstance(place, Cell):
            return f"{file}, row {place.row + 1}: {sample.key}"
        return str(file) if place is None else super().where(row)

    def read_picture(self, row: int) -> bytes:
        """Read the bytes of one picture, from any process.

        A table is read a row group at a time, and the last one is kept: read rows in their order.

        Raises:
            EvaluationDataError: The file is damaged there, or has changed since it was indexed.
        """
        place, file = self.places[row], self.shards[self.samples[row].shard]
        try:
            if isinstance(place, Packed):
                return self._unpack(row, place)
            return file.read_bytes() if place is None else self._cell(row, place)
        except (OSError, struct.error, zlib.error) as error:
            raise EvaluationDataError(f"{self.where(row)} cannot be read: {error}. Fetch the set again.") from error

    def close(self) -> None:
        super().close()
        self._rows.clear()

    def _unpack(self, row: int, place: Packed) -> bytes:
        sample = self.samples[row]
        file = self.file(sample.shard)
        header = os.pread(file, _ZIP_HEADER, sample.offset)
        start = sample.offset + _ZIP_HEADER + sum(struct.unpack("<HH", header[26:]))
        data = os.pread(file, place.length, start)
        if place.is_deflated:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        if zlib.crc32(data) != place.crc:
            raise EvaluationDataError(
                f"{self.where(row)} is damaged: its checksum is not the one in the zip's directory. "
                "Fetch the set again."
            )
        return data

    def _cell(self, row: int, place: Cell) -> bytes:
        shard, column = self.samples[row].shard, place.column
        kept = [one for one in self._rows if one[1] == column]
        if not any(of == shard and first <= place.row < end for of, _, first, end, _ in kept):
            self._rows[:] = [one for one in self._rows if one[1] != column]
            kept = [(shard, column, *read_rows(self.shards[shard], column, place.row))]
            self._rows.extend(kept)
        _, _, first, _, values = kept[0]
        value = values[place.row - first]
        data = (value if place.item is None else value[place.item])["bytes"].as_py()
        if data is None:
            raise EvaluationDataError(
                f"{self.where(row)} has no bytes in column {place.column}. Export the table again with "
                "its pictures embedded, or fetch the CSV and the zip."
            )
        return data


def open_captioned(folder: Path) -> EvaluationSet:
    """Index a retrieval set: tars, a CSV with pictures, or tables.

    Raises:
        EvaluationDataError: Files are missing, damaged or have other columns; the row is named.
    """
    if _is_tars(folder):
        return open_set(folder, kind="retrieval")
    pictures: list[Picture] = []
    annotations: list[dict[str, bytes]] = []
    if not any(folder.glob("[!.]*.csv")):
        for file, rows in read_tables(folder, ("caption",), "image"):
            for number, (where, row) in enumerate(rows):
                place = Cell("image", number)
                pictures.append(pictured(file, row["image"], place, len(rows), where))
                annotations.append(_captions(parse_list(row["caption"], where, "caption"), where))
        return _make(folder, pictures, annotations)
    table, rows = read_csv(folder, ("filename", "raw"))
    found = by_name(pictures_beside(folder), "name")
    for where, row in rows:
        pictures.append(find_picture(row["filename"], found, where, folder))
        annotations.append(_captions(parse_list(row["raw"], where, "raw"), where))
    return _make(folder, pictures, annotations, table)


def open_choices(folder: Path) -> EvaluationSet:
    """Index a set of caption choices: tars (one image, its own caption first), or Winoground's two by two.

    Raises:
        EvaluationDataError: Files are missing, damaged or have other columns; the row is named.
    """
    if _is_tars(folder):
        return open_set(folder, kind="caption_choice")
    pictures: list[Picture] = []
    captions: list[tuple[str, ...]] = []
    lines = next(
        (file for file in (folder / "examples.jsonl", folder / "data/examples.jsonl") if file.is_file()), None
    )
    if lines is not None:
        found = by_name(pictures_beside(lines.parent), "key")
        for where, row in read_lines(lines, _PAIRS):
            pictures += [find_picture(Path(row[name]).stem, found, where, folder) for name in _PAIRS[:2]]
            captions.append(_pair(row, where))
    else:
        columns = [list(read_tables(folder, _PAIRS[2:], name)) for name in _PAIRS[:2]]
        for (file, rows), (_, others) in zip(*columns, strict=True):
            for number, ((where, row), (_, other)) in enumerate(zip(rows, others, strict=True)):
                for name, image in (("image_0", row["image_0"]), ("image_1", other["image_1"])):
                    one = pictured(file, image, Cell(name, number), 2 * len(rows), where)
                    pictures.append(replace(one, name=f"{len(captions):07d}-{name}{Path(one.name).suffix}"))
                captions.append(_pair(row, where))
    opened = _make(folder, pictures, [{}] * len(pictures), *([lines] if lines else []))
    return replace(opened, choices=tuple(Choice((2 * i, 2 * i + 1), pair) for i, pair in enumerate(captions)))


def _pair(row: Mapping[str, str], where: str) -> tuple[str, ...]:
    pair = tuple(" ".join(str(row[name]).split()) for name in _PAIRS[2:])
    if not all(pair):
        raise EvaluationDataError(f"{where} has an empty caption: {pair}. Fetch the set again.")
    return pair


def open_winogavil(folder: Path) -> EvaluationSet:
    """Index WinoGAViL: its distinct pictures, and instances that name them.

    Raises:
        EvaluationDataError: Files are missing, damaged or have other columns; the row is named.
    """
    if not _is_tars(folder) and not any(folder.glob("[!.]*.csv")):
        return _winogavil_tables(folder)
    table, rows = read_csv(folder, ("candidates", "cue", "associations"))
    said: list[tuple[str, str, list[str], list[str]]] = []
    for where, row in rows:
        candidates, associations = (parse_list(row[name], where, name) for name in _LISTS)
        said.append((where, row["cue"], candidates, associations))
    if _is_tars(folder):
        opened = open_set(folder, kind="winogavil")
        opened = replace(opened, shards=(*opened.shards, table))
    else:
        found = by_name(pictures_beside(folder), "key")
        named = {plain(name): where for where, _, names, _ in said for name in names}
        pictures = [find_picture(name, found, where, folder) for name, where in named.items()]
        opened = _make(folder, pictures, [{}] * len(pictures), table)
    row_of = {plain(sample.key): row for row, sample in enumerate(opened.samples)}
    return replace(opened, instances=tuple(_instance(*one, row_of) for one in said))


def _winogavil_tables(folder: Path) -> EvaluationSet:
    said: list[tuple[str, str, list[str], list[str]]] = []
    found: dict[str, Picture] = {}
    for file, rows in read_tables(folder, ("cue", *_LISTS), "candidate_images"):
        for number, (where, row) in enumerate(rows):
            names, associations = (parse_list(row[column], where, column) for column in _LISTS)
            images = row["candidate_images"]
            if len(names) != len(images):
                raise EvaluationDataError(
                    f"{where} has {len(names)} candidates and {len(images)} candidate_images. Fetch the set again."
                )
            for item, (name, image) in enumerate(zip(names, images, strict=True)):
                if plain(name) not in found:
                    place = Cell("candidate_images", number, item)
                    picture = pictured(file, image, place, len(rows) * len(names), where)
                    found[plain(name)] = replace(picture, name=f"{name}.jpg")
            said.append((where, row["cue"], names, associations))
    opened = _make(folder, list(found.values()), [{}] * len(found))
    row_of = {name: row for row, name in enumerate(found)}
    return replace(opened, instances=tuple(_instance(*one, row_of) for one in said))


def _instance(
    where: str, cue: str, candidates: Sequence[str], associations: Sequence[str], row_of: Mapping[str, int]
) -> Instance:
    rows = [row_of.get(plain(name)) for name in candidates]
    problem = None
    if not isinstance(cue, str) or not cue.strip():
        problem = "has no cue"
    elif None in rows:
        problem = f"names the candidate {candidates[rows.index(None)]!r}, which has no picture"
    elif len(set(candidates)) < len(candidates):
        problem = f"names a candidate twice: {', '.join(candidates)}"
    elif not associations or set(associations) - set(candidates):
        problem = f"has associations {list(associations)} that are not among {list(candidates)}"
    if problem is not None:
        raise EvaluationDataError(f"{where} {problem}. Fetch the set again.")
    true = tuple(name in set(associations) for name in candidates)
    return Instance(cue, tuple(row for row in rows if row is not None), true)


def _captions(captions: Sequence[str], where: str) -> dict[str, bytes]:
    lines = [" ".join(caption.split()) for caption in captions]
    if not lines or not all(lines):
        raise EvaluationDataError(
            f"{where} has {len(lines)} captions, {lines.count('')} of them empty; recall needs one or "
            "more for each picture. Fetch the set again."
        )
    return {"txt": "\n".join(lines).encode()}


def _make(
    folder: Path, pictures: Sequence[Picture], annotations: Sequence[dict[str, bytes]], *sources: Path
) -> HubSet:
    """Join pictures, in the order of the rows that name them, into a set."""
    files = {path: i for i, path in enumerate(dict.fromkeys(picture.file for picture in pictures))}
    samples = [
        Sample(
            picture.key, files[picture.file], Path(picture.name).suffix[1:], picture.offset, picture.length, said
        )
        for picture, said in zip(pictures, annotations, strict=True)
    ]
    keys = [sample.key for sample in samples]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise EvaluationDataError(
            f"{folder} names the picture {twice!r} in {keys.count(twice)} rows; a picture has one row "
            "with all its captions. Fetch the set again."
        )
    places = tuple(picture.place for picture in pictures)
    return HubSet(folder, (*files, *sources), tuple(samples), places=places)


def _is_tars(folder: Path) -> bool:
    return (folder / "test" / "nshards.txt").is_file() or folder.name.startswith("wds_")
