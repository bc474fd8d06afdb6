"""Files that are surely on disk: what the store writes with."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def sizes_of(folder: Path) -> dict[str, int]:
    """The files under a folder, by relative name, and their bytes."""
    return {
        str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()
    }


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, one item a line."""
    path.write_text(json.dumps(value, indent=1, default=str) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that takes the place of `path` when it is whole and on disk; folders are made.

    A reader sees the old one or the new one, never half of one; of two writers the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def replace_json(path: Path, value: Any) -> None:
    """Write a value as JSON in place of what is there."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=1, default=str) + "\n").encode())


def sync(folder: Path) -> None:
    """Wait until everything under a folder is on disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's own list of names is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where links are not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
