"""A stage's desk: where it writes, and the parts of its work that survive a kill."""

import contextlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbp.engine.disk import link_or_copy, sizes_of, sync, write_json
from dbp.engine.signs import writer

PART = "part.json"


@dataclass(frozen=True)
class Part:
    """A piece of a stage's work, fixed by the data and never by the number of workers.

    Args:
        name: Its folder's name; unique within the stage.
        number: What the stage knows it by.
        cost: Work in any unit, to share parts out evenly.
    """

    name: str
    number: int
    cost: float = 1.0


Runner = Callable[["Work", Any, Sequence[Part], Mapping[str, Any]], None]


@dataclass
class Work:
    """A stage's desk: `folder` becomes the artifact; parts survive a kill.

    Args:
        folder: Where the artifact is written; empty at first.
        shared: Where finished parts lie until the artifact is complete; several workers write here.
        key: The artifact's key.
        runner: Makes parts elsewhere; in this process when there is none.
        job: What another process needs to know to make a part: stage and inputs.
        kept: Parts that go into the artifact.
        begun: Whether `shared` is there.
    """

    folder: Path
    shared: Path
    key: str
    runner: Runner | None = None
    job: dict[str, Any] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    begun: bool = False

    def begin(self) -> None:
        """Make `shared`, once: if it is gone later, who completed the artifact took the parts away."""
        if not self.begun:
            self.shared.mkdir(parents=True, exist_ok=True)
            self.begun = True

    def part(self, name: str, make: Callable[[Path], dict[str, Any]], cost: float | None = None) -> dict[str, Any]:
        """Make one part, unless an earlier try finished it; return the counts that `make` returned.

        `make` writes into a folder of its own, which is renamed when it is on disk, its record last. A part of this
        name that cost something else had other bounds.

        Raises:
            FileNotFoundError: The folder of parts was taken away.
        """
        home = self.shared / name
        self.kept.append(name)
        if (counts := self.counts(name, cost)) is not None:
            return counts
        self.begin()
        beside = self._beside(name)
        beside.mkdir()
        try:
            counts = make(beside)
            files, crc32 = sizes_of(beside), checksums(beside)
            write_json(beside / PART, {"counts": counts, "cost": cost, "files": files, "crc32": crc32})
            sync(beside)
            self._put(beside, home, lambda: self.counts(name, cost) is not None)
            return counts
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _put(self, beside: Path, home: Path, is_there: Callable[[], bool]) -> None:
        """Give a written part its name, unless another writer's equal one bears it."""
        for tries_left in reversed(range(8)):
            try:
                beside.rename(home)
                return
            except OSError:
                if is_there():
                    return
                if not tries_left or not beside.exists():
                    raise
            # What stands there is damaged, or has other bounds. It is renamed and not removed in place:
            # a second writer who found it so, too, must never remove files of the new one.
            damaged = self._beside(home.name)
            with contextlib.suppress(OSError):  # the second writer was first
                home.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)

    def _beside(self, name: str) -> Path:
        return self.shared / f".{name}@{writer()}"

    @property
    def was_removed(self) -> bool:
        """Whether somebody else removed what this desk writes into."""
        return not self.folder.exists() or (self.begun and not self.shared.exists())

    def counts(self, name: str, cost: float | None = None) -> dict[str, Any] | None:
        """What making a part returned; None while it is not finished, or if its known `cost` was another."""
        home = self.shared / name
        try:
            record = json.loads((home / PART).read_text())
            sizes = {name: size for name, size in sizes_of(home).items() if name != PART}
            same = cost is None or record["cost"] in (None, cost)
            return record["counts"] if same and sizes == record["files"] else None
        except (OSError, ValueError, KeyError, TypeError):  # absent, cut short, taken away meanwhile
            return None

    def collect(self) -> None:
        """Bring the kept parts into the artifact, without copying where links are possible."""
        for name in self.kept:
            (self.folder / name).mkdir(exist_ok=True)
            for file in (self.shared / name).iterdir():
                if file.name != PART:
                    link_or_copy(file, self.folder / name / file.name)

    def checksums(self) -> dict[str, int]:
        """The checksums of the artifact's files; those of its parts were taken when they were made."""
        records = {name: json.loads((self.shared / name / PART).read_text()) for name in self.kept}
        found = {f"{name}/{file}": crc for name, said in records.items() for file, crc in said["crc32"].items()}
        rest = [file for file in sizes_of(self.folder) if file not in found]
        return found | checksums(self.folder, rest)


def checksums(folder: Path, names: Iterable[str] | None = None) -> dict[str, int]:
    """The CRC-32 of files under a folder, by relative name; those that are gone are left out."""
    found = {}
    for name in sizes_of(folder) if names is None else names:
        if not (folder / name).is_file():
            continue
        crc = 0
        with open(folder / name, "rb") as handle:
            while block := handle.read(1 << 22):
                crc = zlib.crc32(block, crc)
        found[name] = crc
    return found
