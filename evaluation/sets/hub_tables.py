"""Tables that hold pictures: parquet, and arrow files as the `datasets` library caches them.

A picture is `{"bytes": ..., "path": ...}`. Bytes are not read when a set is indexed; later they are read
a row group at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.sets.hub_files import Cell, Picture
from evaluation.sets.tar_index import EvaluationDataError

# Where the `datasets` library unpacks zips. A cache that was moved is looked through for it.
_UNPACKED = "downloads/extracted/"


def read_tables(
    folder: Path, columns: Sequence[str], pictures: str
) -> Iterator[tuple[Path, list[tuple[str, dict[str, Any]]]]]:
    """Read columns of the tables in a folder, without the bytes of their pictures.

    Args:
        folder: Its parquet or arrow files, in any sub-folder. Those named test, if any is.
        columns: Of texts or lists of texts.
        pictures: The column of pictures or lists of pictures, as the `datasets` library writes them.

    Yields:
        Each file with its rows. A picture is `{"path": its name or none, "is_inside": bool}`.

    Raises:
        EvaluationDataError: There is no table, several versions of one, a damaged one, or one of other
            columns.
    """
    import pyarrow as pa

    for file in _table_files(folder):
        try:
            if file.suffix == ".arrow":
                table, inside = _open_arrow(file), None
            else:
                table, inside = _parquet_texts(file, columns, pictures), True
            texts = table.select(list(columns)).to_pylist()
            values = table.column(pictures)
            images = [_describe(value, inside) for value in values]
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise EvaluationDataError(
                f"Cannot read the columns {', '.join((*columns, pictures))} of {file}: {error}. It is "
                "damaged or another table; fetch it again."
            ) from error
        rows = [row | {pictures: image} for row, image in zip(texts, images, strict=True)]
        yield file, [(f"{file}, row {i}", row) for i, row in enumerate(rows, start=1)]


def pictured(file: Path, image: Mapping[str, Any], place: Cell, num_pictures: int, where: str) -> Picture:
    """Say where a picture of a table lies: in the table, or in the file that it names.

    Raises:
        EvaluationDataError: It is in neither.
    """
    path = image["path"]
    if image["is_inside"]:
        name = Path(path).name if path else f"{place.row:07d}.jpg"
        return Picture(file, name, 0, file.stat().st_size // num_pictures, place)
    tail = (path or "").rpartition(_UNPACKED)[2]
    tried = [Path(path)] if path else []
    tried += [parent / _UNPACKED / tail for parent in file.parents if tail]
    for found in tried:
        if found.is_file():
            return Picture(found, found.name, 0, found.stat().st_size)
    raise EvaluationDataError(
        f"{where} has no picture: the table holds none there, and its file {path!r} is gone. Fetch the "
        "CSV and the zip of the set, or tables with the pictures in them."
    )


def read_rows(file: Path, column: str, row: int) -> tuple[int, int, Any]:
    """Read the row group of a table that has a row, one column of it.

    Returns:
        Its first row, its end, and its values; those of an arrow file stay on disk.
    """
    import pyarrow.parquet as pq

    if file.suffix == ".arrow":
        values = _open_arrow(file).column(column)
        return 0, len(values), values
    with pq.ParquetFile(file) as opened:
        start = 0
        for group in range(opened.num_row_groups):
            stop = start + opened.metadata.row_group(group).num_rows
            if row < stop:
                table = opened.read_row_group(group, [column], use_threads=False)
                return start, stop, table.column(column)
            start = stop
    raise EvaluationDataError(f"{file} has {start:,} rows, fewer than when it was indexed.")


def _table_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("[!.]*") if p.suffix in (".parquet", ".arrow"))
    test = [p for p in files if "test" in "/".join(p.relative_to(folder).parts[-2:]).lower()]
    files = test or files
    if len({path.parent for path in files}) != 1:
        raise EvaluationDataError(
            f"{folder} must hold a CSV with a zip of pictures, or one folder of parquet or arrow files; "
            f"found {len(files)} tables in {len({path.parent for path in files})} folders. Fetch the "
            "set again, or remove the others."
        )
    return files


def _open_arrow(file: Path) -> Any:
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_stream(source).read_all()


def _parquet_texts(file: Path, columns: Sequence[str], pictures: str) -> Any:
    """Read the texts and, of the pictures, only their names."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        schema = opened.schema
        leaves = [schema.column(i).path for i in range(len(schema.names))]
        names = [leaf for leaf in leaves if leaf.startswith(f"{pictures}.") and leaf.endswith(".path")]
        return opened.read([*columns, *names], use_threads=False)


def _describe(value: Any, inside: bool | None) -> Any:
    """Say of a picture in a table, or of each of a list, its name and whether its bytes are there."""
    import pyarrow as pa

    if isinstance(value, pa.ListScalar | pa.LargeListScalar):
        return [_describe(item, inside) for item in value]
    has_bytes = value["bytes"].is_valid if inside is None else inside
    return {"path": value["path"].as_py(), "is_inside": has_bytes}
