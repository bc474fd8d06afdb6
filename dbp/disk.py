"""Files that are surely on disk: what the store writes with."""

import json
import os
import shutil
from pathlib import Path
from typing import Any


def sizes_of(folder: Path) -> dict[str, int]:
    """The files under a folder, by relative name, and their bytes."""
    return {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, one item a line."""
    path.write_text(json.dumps(value, indent=1, default=str) + "\n")


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
