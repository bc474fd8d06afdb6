"""A stage's desk: where it writes, and the parts of its work that survive a kill."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbp.disk import sizes_of, sync, write_json

PART = "part.json"


@dataclass
class Work:
    """A stage's desk: `folder` becomes the artifact; parts survive a kill."""

    folder: Path
    shared: Path
    key: str
    parts: list[str] = field(default_factory=list)

    def part(self, name: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Make one part, unless an earlier try finished it; return the counts that `make` returned.

        `make` writes into a folder of its own, which is renamed when it is on disk, its record last.
        """
        home = self.shared / name
        self.parts.append(name)
        if (counts := _finished_part(home)) is not None:
            return counts
        beside = self.shared / f".{name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        beside.mkdir(parents=True)
        counts = make(beside)
        record = {"counts": counts, "files": sizes_of(beside)}
        write_json(beside / PART, record)
        sync(beside)
        try:
            beside.rename(home)
        except OSError:
            if _finished_part(home) is None:  # damaged
                shutil.rmtree(home, ignore_errors=True)
                beside.rename(home)
            else:  # another writer's equal one, which it may be reading
                shutil.rmtree(beside, ignore_errors=True)
        return counts

    def collect(self) -> None:
        """Bring the finished parts into the artifact, without copying where links are possible."""
        for name in self.parts:
            (self.folder / name).mkdir(exist_ok=True)
            for file in (self.shared / name).iterdir():
                if file.name == PART:
                    continue
                try:
                    os.link(file, self.folder / name / file.name)
                except OSError:
                    shutil.copy2(file, self.folder / name / file.name)


def _finished_part(home: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((home / PART).read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    sizes = {name: size for name, size in sizes_of(home).items() if name != PART}
    return record["counts"] if sizes == record["files"] else None
