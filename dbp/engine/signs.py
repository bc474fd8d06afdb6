"""Who writes into a store, here or on another machine that sees it.

    .tmp/KEY-HOST-PID-1a2b3c4d              a writer's folder
    .tmp/KEY-HOST-PID-1a2b3c4d.live         its sign of life: a file that it touches once a minute
    .partial/STAGE-KEY/.NAME@HOST-PID-…     where one part is being written

A process of this machine is asked for by its number. One of another machine counts as dead when its sign is an hour
old by the clock of the disk, so clocks of machines do not matter.
"""

import contextlib
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dbp.engine.disk import write_json

BEAT_SECONDS = 60.0
LAPSE_SECONDS = 3600.0  # a node, or a file system, may hang for minutes
BEAT = ".live"
# A key has no dash; a part's name has, and host names do.
WRITER = re.compile(r"(?:[^-@.][^-@]*-|\..+@)(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}")


def host() -> str:
    """This machine, as far as its process numbers go: a container that counts its own is another one."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return socket.gethostname()
    return socket.gethostname() if space == 0xEFFFFFFC else f"{socket.gethostname()}.{space}"  # Linux' first


def writer() -> str:
    """A name that says which process writes something, unlike any other."""
    return f"{host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def begin_beating(desk: Path, rests_on: Iterable[str]) -> Callable[[], None]:
    """Give signs of life beside a writer's folder until the returned function is called.

    The sign is the time of a file, set by the machine that holds the disk: clocks of writers do not matter.

    Args:
        desk: The folder, in `.tmp`; it need not exist.
        rests_on: Keys of artifacts that the writer reads, kept in the file.
    """
    sign, is_over = desk.with_name(desk.name + BEAT), threading.Event()
    write_json(sign, sorted(rests_on))

    def beat() -> None:
        while not is_over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # removed by hand, or a disk that hangs: the writer finds out itself
                os.utime(sign)

    threading.Thread(target=beat, name="signs-of-life", daemon=True).start()

    def stop() -> None:
        is_over.set()
        with contextlib.suppress(OSError):
            sign.unlink(missing_ok=True)

    return stop


def is_here(name: str) -> bool | None:
    """Whether the process that a name of `writer` tells of lives on this machine; None for another machine's."""
    found = WRITER.fullmatch(name.removesuffix(BEAT))
    if found is None or found["host"] != host():
        return None
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def silence(path: Path, now: float) -> float:
    """Seconds since a writer's folder, what is in it, or its sign of life last changed; also of a stray file."""
    inside = (os.path.join(place, name) for place, _, names in os.walk(path) for name in ("", *names))
    times = []
    for file in (path.with_name(path.name.removesuffix(BEAT) + BEAT), path, *inside):
        with contextlib.suppress(OSError):  # it goes away meanwhile
            times.append(os.stat(file).st_mtime)
    return now - max(times, default=now)


def is_live(path: Path, now: float) -> bool:
    """Whether somebody writes into a folder of `.tmp` or a part's desk: by its process here, else by its signs."""
    lives = is_here(path.name)
    return silence(path, now) < LAPSE_SECONDS if lives is None else lives


def disk_time(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder; this machine's where nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


@contextlib.contextmanager
def at_work(shared: Path, rests_on: Iterable[str]) -> Iterator[None]:
    """Give signs of life for who makes parts of an artifact, while the block runs.

    Args:
        shared: Where the parts lie, `.partial/STAGE-KEY`.
        rests_on: Keys of artifacts that are read.
    """
    beside = shared.parents[1] / ".tmp"
    beside.mkdir(parents=True, exist_ok=True)
    stop = begin_beating(beside / f"{shared.name.rpartition('-')[2]}-{writer()}", rests_on)
    try:
        yield
    finally:
        stop()
