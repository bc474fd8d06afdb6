"""A bounded folder of shards that are fetched from object storage, HTTP or pipes.

    00000012.tar        a whole shard, by its number in the pool
    .00000012.part      one on its way; its size is the room that it has reserved
    .00000012.lock      held while it is fetched
    reader-*            shards that a process wants to stay; locked for as long as it lives
    .lock               held while room is given out

Processes of one machine share the folder: each shard comes once. All files together never exceed the
bound. A process that dies leaves no lock behind, and what it wanted may go.
"""

import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int64

from dbp.data.pool import Pool, digest_16
from dbp.errors import PoolError
from dbp.formats.tars import open_shard

log = logging.getLogger("dbp")

BLOCK = 1 << 20  # bytes read at a time
PATIENCE = 60.0  # seconds to wait for room while other processes still read


class NoRoom(Exception):
    """The bound is reached, and all that lies there is wanted."""


@dataclass(eq=False)
class ShardCache:
    """Whole shards of a pool on this disk, as many as fit."""

    folder: Path  # on a local disk; of one pool
    shards: list[str]  # where they come from: URLs, pipes or paths
    least_bytes: Int64[np.ndarray, " s"]  # what each shard has at least, by the index
    most_bytes: int  # the bound of all files together
    tries: int  # how often a transfer is begun before it counts as failed
    pause: float = 1.0  # seconds before the second try; doubled before each further one
    check: Callable[[int, Path], str | None] = lambda number, path: None  # what is wrong with a new shard

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._reader: Any = None

    def path(self, number: int) -> Path:
        """Where a shard lies when it is here."""
        return self.folder / f"{number:08d}.tar"

    def want(self, numbers: Iterable[int]) -> None:
        """Say which shards shall stay for this process; those that it named before may go."""
        with _locked(self.folder / ".lock"):
            if self._reader is None:
                name = self.folder / f"reader-{uuid.uuid4().hex}"
                self._reader = open(name, "w+")  # noqa: SIM115
                fcntl.flock(self._reader, fcntl.LOCK_EX)
            self._reader.seek(0)
            self._reader.truncate()
            self._reader.write(json.dumps(sorted(numbers)))
            self._reader.flush()

    def leave(self) -> None:
        """Want nothing any more."""
        if self._reader is not None:
            Path(self._reader.name).unlink(missing_ok=True)
            self._reader.close()
            self._reader = None

    def fetch(self, number: int, patience: float = PATIENCE) -> Path:
        """Bring a shard here, unless it is; several processes and threads may ask at once.

        Args:
            patience: Seconds to wait for room while other processes read.

        Raises:
            PoolError: It cannot be fetched, in so many tries, or is not the shard of the index.
            NoRoom: The bound is reached by what is wanted.
        """
        path = self.path(number)
        if path.exists():
            return path
        with _locked(self.folder / f".{number:08d}.lock"):
            for left in reversed(range(self.tries)):
                if path.exists():
                    return path
                try:
                    self._transfer(number, time.monotonic() + patience)
                    return path
                except (OSError, ValueError) as problem:
                    said = " ".join(str(problem).split()) or type(problem).__name__
                    if left == 0:
                        raise PoolError(
                            f"shard {self.shards[number]} cannot be fetched in {self.tries} tries: "
                            f"{said}. Restore it or the network; the run then goes on from its "
                            "last checkpoint. streaming.tries gives it more tries."
                        ) from problem
                    log.warning("shard %s: %s; trying again", self.shards[number], said)
                    time.sleep(self.pause * 2 ** (self.tries - 1 - left))
        raise AssertionError("the last try returns or raises")

    def _transfer(self, number: int, until: float) -> None:
        part = self.folder / f".{number:08d}.part"
        written, is_full = 0, False
        try:
            with open(part, "wb") as handle:
                reserved = int(self.least_bytes[number])
                self._reserve(part, reserved, until)
                try:
                    with open_shard(self.shards[number]) as source:
                        while block := source.read(BLOCK):
                            if (more := written + len(block) - reserved) > 0:
                                is_full = True  # until there is room
                                self._reserve(part, more, until)
                                reserved, is_full = reserved + more, False
                            handle.write(block)
                            written += len(block)
                except OSError:
                    if is_full:  # the source complains that it was left in the middle
                        raise NoRoom from None
                    raise
                handle.flush()
                os.ftruncate(handle.fileno(), written)
            if written < self.least_bytes[number]:
                raise OSError(
                    f"it ends after {written:,} bytes, and the index has samples up to byte "
                    f"{self.least_bytes[number]:,}"
                )
            if (wrong := self.check(number, part)) is not None:
                raise OSError(wrong)
            with _locked(self.folder / ".lock"):  # who counts meets one name, and not both or none
                part.rename(self.path(number))
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path, more: int, until: float) -> None:
        """Make a file on its way larger by so many bytes, when all files have room for them.

        Raises:
            NoRoom: They do not, and what lies here stays wanted.
        """
        while True:
            with _locked(self.folder / ".lock"):
                files = self._files()
                total = sum(size for _, size, _ in files)
                wanted, others = self._wanted()
                for path, size, _ in sorted(files, key=lambda file: file[2]):  # oldest first
                    if total + more <= self.most_bytes:
                        break
                    if self._may_go(path, wanted):
                        path.unlink(missing_ok=True)
                        total -= size
                if total + more <= self.most_bytes:
                    os.truncate(part, part.stat().st_size + more)
                    return
            if others == 0 or time.monotonic() >= until:
                raise NoRoom
            time.sleep(0.2)

    def _may_go(self, path: Path, wanted: set[int]) -> bool:
        """Whether nobody wants a shard, or nobody is left who was fetching it."""
        if path.suffix == ".tar":
            return int(path.stem) not in wanted
        with open(path.with_suffix(".lock"), "a") as handle:
            return _is_free(handle)

    def _files(self) -> list[tuple[Path, int, int]]:
        """Shards here and on their way: path, bytes, and when they were changed."""
        found = []
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part"):
                with suppress(FileNotFoundError):  # renamed or gone meanwhile
                    stat = path.stat()
                    found.append((path, stat.st_size, stat.st_mtime_ns))
        return found

    def _wanted(self) -> tuple[set[int], int]:
        """What living processes want, and how many of them are not this one."""
        wanted: set[int] = set()
        others = 0
        for path in self.folder.glob("reader-*"):
            with suppress(FileNotFoundError), open(path) as handle:
                if _is_free(handle):  # its process is gone
                    path.unlink(missing_ok=True)
                else:
                    wanted.update(json.loads(handle.read() or "[]"))
                    others += self._reader is None or Path(self._reader.name) != path
        return wanted, others

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


def least_bytes(pool: Pool) -> Int64[np.ndarray, " s"]:
    """The bytes that each shard has at least: up to the end of the last member that a row names."""
    shard, sizes = pool.column("shard"), np.zeros(len(pool.shards), np.int64)
    for name in ("image", "caption"):
        np.maximum.at(sizes, shard, pool.column(f"{name}_offset") + pool.column(f"{name}_bytes"))
    return sizes


def what_is_wrong(pool: Pool, shard: int, path: Path) -> str | None:
    """Whether a shard that has arrived is the one of the index: its last picture has the same bytes."""
    rows = np.arange(*np.searchsorted(pool.column("shard"), [shard, shard + 1]))
    rows = rows[pool.column("image_bytes")[rows] > 0][-1:]
    if len(rows) == 0:
        return None
    with open(path, "rb") as handle:
        handle.seek(int(pool.column("image_offset")[rows[0]]))
        content = handle.read(int(pool.column("image_bytes")[rows[0]]))
    if digest_16(content) == pool.column("content_hash", rows)[0]:
        return None
    return (
        f"the picture of {pool.uids(rows)[0]!r} is not the one that was indexed; the shard was "
        "written anew since. Index the pool again"
    )


def _is_free(handle: IO[str]) -> bool:
    """Whether no process holds the lock of an open file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among processes and threads while the block runs; a dead process holds none."""
    with open(path, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:  # closing alone leaves it locked while a process forked meanwhile has the file open
            fcntl.flock(handle, fcntl.LOCK_UN)
