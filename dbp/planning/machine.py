"""What this machine can do, measured in a few seconds: its matrix product, memory, columns and disk.

Measured once in a process, when a plan or a rate is asked for, and kept nowhere else: a shared machine is
another one tomorrow, and a plan must leave nothing behind. The disk is tried with a file that has no name,
beside the store, so that nothing stays even after a kill.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

MOST = 256 << 20  # bytes that the disk is tried with
SHAPE = (8192, 512, 512)  # of the products that are timed: a block of rows, a width, some centroids


@dataclass(frozen=True)
class Machine:
    """Rates of this machine under its present load.

    Args:
        product: fp32 operations of a matrix product per second.
        memory: Numbers of a product looked through per second, as for its largest.
        columns: Rows of plain columns passed over per second: sorted, counted, masked, a third each.
        reading: Bytes a second from the store's disk, not from memory; None where that cannot be tried.
        writing: Bytes a second to it, until they are safe.
        sending: Bytes a second to the GPU; None where the processor computes.
        disk_free: Bytes free on the store's disk.
        memory_free: Bytes that a process can have.
    """

    product: float
    memory: float
    columns: float
    reading: float | None
    writing: float | None
    sending: float | None
    disk_free: float
    memory_free: float

    def times(self, machines: int) -> "Machine":
        """As many such machines that share one disk."""
        rates = {name: getattr(self, name) for name in ("product", "memory", "columns", "sending")}
        return replace(self, **{name: rate and rate * machines for name, rate in rates.items()})


@cache
def probe(folder: Path, lanes: int | None = None, device: str = "cpu", seconds: float = 1.0) -> Machine:
    """Measure this machine; the answer is kept while the process lives.

    Args:
        folder: Where the store lies or will lie; the disk is that of its nearest folder that exists.
        lanes: Matrix products side by side, each with one thread; None for one product with the threads
            that torch takes.
        device: `cpu`, or a CUDA device that computes products.
        seconds: About how long it may take, a third of it for the disk's writing; a quarter of a second is
            enough for a first figure.
    """
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    reading, writing = _disk(there, seconds / 3)
    product, memory = _products(lanes, seconds / 6)
    sending = None
    if device != "cpu":
        product, sending = _gpu(device, seconds / 6)
    disk_free = float(shutil.disk_usage(there).free)
    return Machine(product, memory, _columns(seconds / 12), reading, writing, sending, disk_free, memory_free())


def memory_free() -> float:
    """Bytes that a process can have: what the system says is free, or what its group of processes may."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(int(line.split()[1]) * 1024.0 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        group = Path("/sys/fs/cgroup")
        limit = float((group / "memory.max").read_text())
        return min(found, limit - float((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return found


def _repeat(work: Callable[[], object], seconds: float) -> float:
    """Calls per second, after one that is not counted."""
    work()
    began, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or not calls:
        work()
        calls += 1
    return calls / spent


@cache
def _products(lanes: int | None, seconds: float) -> tuple[float, float]:
    """Operations per second of a matrix product, and numbers per second of looking through one."""
    import torch

    n, d, k = SHAPE

    def lane(_: int) -> tuple[float, float]:
        rows, columns, products = torch.rand(n, d), torch.rand(d, k), torch.empty(n, k)
        rate = _repeat(lambda: torch.mm(rows, columns, out=products), seconds)
        return rate * 2 * n * d * k, _repeat(lambda: products.amax(1), seconds / 4) * n * k

    if lanes is None:
        return lane(0)
    before = torch.get_num_threads()
    with ThreadPoolExecutor(lanes, initializer=lambda: torch.set_num_threads(1)) as pool:
        found = list(pool.map(lane, range(lanes)))
    torch.set_num_threads(before)
    return sum(product for product, _ in found), sum(memory for _, memory in found)


@cache
def _columns(seconds: float) -> float:
    """Rows of plain columns per second: a sort, a count and a mask of 64-bit numbers."""
    n = 1 << 18
    keys = np.random.default_rng(0).integers(0, 1 << 62, n, dtype=np.uint64)
    cluster = (keys % np.uint64(500)).astype(np.int32)

    def mix() -> None:
        np.sort(keys)
        np.bincount(cluster, minlength=500)
        np.where(keys > np.uint64(1 << 61), cluster, -1)

    return _repeat(mix, seconds) * n * 3


@cache
def _disk(folder: Path, seconds: float) -> tuple[float | None, float | None]:
    """Bytes per second of reading past the system's cache, and of writing until all is on disk."""
    block = np.random.default_rng(0).bytes(4 << 20)  # no file system makes it smaller
    most = min(MOST, shutil.disk_usage(folder).free // 10)
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            began, size = time.perf_counter(), 0
            while size == 0 or (size < most and time.perf_counter() - began < seconds):
                for _ in range(1 if size < len(block) * 4 else 4):
                    size += file.write(block)
                os.fsync(file.fileno())
            writing = size / (time.perf_counter() - began)
            if not hasattr(os, "posix_fadvise"):  # then it would be read from memory
                return None, writing
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            began, size = time.perf_counter(), 0
            while time.perf_counter() - began < seconds and (read := file.read(len(block))):
                size += len(read)
            return size / (time.perf_counter() - began), writing
    except OSError:  # a folder that may not be written, or a full disk
        return None, None


@cache
def _gpu(device: str, seconds: float) -> tuple[float, float]:
    """Operations per second of a GPU's fp32 product, and bytes per second sent to it."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    here = torch.rand(4096, 4096)
    there = here.to(device)

    def product() -> None:
        torch.mm(there, there)
        torch.cuda.synchronize()

    def send() -> None:
        here.to(device)
        torch.cuda.synchronize()

    return _repeat(product, seconds) * 2 * 4096**3, _repeat(send, seconds) * here.nbytes
