"""Worker processes of torch's loaders: what they hand over, why they died, and that none outlives an error.

Workers ignore the signals of a scheduler, so that a run can save before it leaves. They also ignore the SIGTERM by
which Python ends its children at exit, and an error that leaves the training process would wait for them for ever.
"""

import atexit
import multiprocessing
import re
import resource
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from dbp.errors import DbpError, WorldError
from training.resume.signals import ignore_signals

SHARED_MEMORY = Path("/dev/shm")
DIED = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal|exited)")
GONE = (ConnectionError, EOFError, FileNotFoundError)  # of a batch whose worker died before it was fetched
AGAIN = "Run the same command again: a training run goes on from its last checkpoint."

_workers: set[Any] = set()  # of this process' loaders: those that live, and those that failed


@contextmanager
def loading(setting: str) -> Iterator[None]:
    """Loaders with workers are read while the block runs; an error that leaves it ends their workers first.

    Args:
        setting: What to lower, as the user knows it, such as `train.num_workers=8`.

    Raises:
        WorldError: A worker died, or memory, shared memory or file descriptors ran out.
    """
    before = set(_workers)
    try:
        yield
    except BaseException as problem:
        with _undisturbed():
            told = _cause(problem, setting, before)
            _end(before)
        if told is None:
            raise
        error = type(problem) if isinstance(problem, DbpError) else WorldError
        raise error(told) from problem


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep torch from raising what it thinks of a worker's end, which it does anywhere in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _end(before: Collection[Any] = ()) -> None:
    """Kill workers, which only read; forget those that ended, so that a later error is not blamed on them."""
    ours = [child for child in multiprocessing.active_children() if child in _workers and child not in before]
    if ours and threading.current_thread() is threading.main_thread():
        with _undisturbed():
            for worker in ours:
                worker.kill()
            for worker in ours:
                worker.join(5)
    ended = [worker for worker in _workers if worker not in before and worker.exitcode is not None]
    _workers.difference_update(ended)


def _cause(problem: BaseException, setting: str, before: Collection[Any]) -> str | None:
    """What a problem of the workers comes from, and the way out; none if it is another problem."""
    text, frames = str(problem), list(traceback.walk_tb(problem.__traceback__))
    if isinstance(problem, DbpError):  # of a worker: torch puts the trace there into the message
        own = re.compile(rf"^[\w.]*{type(problem).__name__}: ", re.MULTILINE)
        return own.split(text)[-1].strip() if text.startswith("Caught ") and own.search(text) else None
    if not isinstance(problem, Exception):
        return None
    code = _exit_code(before, wait=bool(DIED.search(text)) or isinstance(problem, GONE))
    if code is not None:
        if code == -signal.SIGBUS:
            return _shared_memory_full(setting)
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        if code == -signal.SIGKILL:
            how += ", as the kernel and schedulers end what takes too much memory"
        return (
            f"a worker process of the loader died ({how}). If memory was short, lower {setting}, or "
            f"ask for more memory (SLURM: --mem). {AGAIN}"
        )
    in_worker = text.startswith("Caught ")
    is_locks = any("multiprocessing" in frame.f_code.co_filename for frame, _ in frames)
    if "No space left on device" in text and (is_locks or "shared memory" in text or "/torch_" in text):
        return _shared_memory_full(setting)
    if ("Too many open files" in text or "ancdata" in text) and (in_worker or is_locks or "/torch_" in text):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"the loader's workers ran out of file descriptors (ulimit -n: {most:,}). Raise it, or lower {setting}."
        )
    if text.startswith("Caught MemoryError") or (is_locks and "Cannot allocate memory" in text):
        return (
            f"memory ran out in the loader's workers. Lower {setting}, or ask for more memory "
            f"(SLURM: --mem). {AGAIN}"
        )
    return None


def _exit_code(before: Collection[Any], wait: bool) -> int | None:
    """How a worker that ended by itself did; none if all live or have ended well."""
    until = time.monotonic() + (2 if wait else 0)
    while True:
        codes = [worker.exitcode for worker in _workers if worker not in before]
        if failed := [code for code in codes if code]:
            return failed[0]
        if time.monotonic() > until:
            return None
        time.sleep(0.05)


def _shared_memory_full(setting: str) -> str:
    size = f" ({shutil.disk_usage(SHARED_MEMORY).total:,} bytes)" if SHARED_MEMORY.exists() else ""
    return (
        f"{SHARED_MEMORY}{size} is full: the loader's workers hand over their batches in it. Lower {setting}, or "
        f"enlarge it (docker run --shm-size=8g; mount -o remount,size=8g {SHARED_MEMORY}); 0 "
        f"workers need none of it. {AGAIN}"
    )


class Loader(DataLoader):
    """torch's loader, whose workers end with this process and share what they hand over."""

    def __init__(self, *args: Any, **options: Any) -> None:
        collate = _Shared(options.pop("collate_fn", None))
        super().__init__(*args, collate_fn=collate, worker_init_fn=ignore_signals, **options)

    def __iter__(self) -> Any:
        made = super().__iter__()
        ended = [worker for worker in _workers if worker.exitcode == 0]
        _workers.difference_update(ended)
        _workers.update(getattr(made, "_workers", ()))
        # Functions at exit run from the last to the first: before those of torch and of multiprocessing.
        atexit.unregister(_end)
        atexit.register(_end)
        return made


@dataclass(frozen=True)
class _Shared:
    """A collate function whose tensors lie in shared memory when a worker made them.

    A queue would move them there in a thread of its own, where a full /dev/shm drops the batch, and the
    loader waits for it for ever.
    """

    collate: Callable[[Any], Any] | None

    def __call__(self, items: Any) -> Any:
        made = items if self.collate is None else self.collate(items)
        return made if get_worker_info() is None else _share(made)


def _share(made: Any) -> Any:
    if isinstance(made, torch.Tensor):
        return made.share_memory_() if made.numel() else made
    if isinstance(made, Mapping):
        return {name: _share(value) for name, value in made.items()}
    if isinstance(made, tuple):
        return tuple(_share(value) for value in made)
    return made
