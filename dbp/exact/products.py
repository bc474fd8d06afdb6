"""Matrix products of stored vectors, on the processor or on a GPU: the fast half of every decision.

Stored fp16 values are multiplied with fp32 accumulation and output; lengths are divided out after. What is
decided rests on `kernels`, which look exactly at the few candidates that fp32 leaves.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int32

T = TypeVar("T")
BLOCK = 4096  # rows multiplied at once: 4096 x 768 fp32 is 12 MB, which a processor's cache nearly holds

_SPARE: list[Any] = []  # buffers of assigners that are done; fresh memory costs a tenth of the pass
_LOCK = threading.Lock()


def side_by_side(work: Callable[[Any], T], items: Sequence[Any], threads: int) -> list[T]:
    """Do `work(item)` for all items on some threads, each with one thread of matrix product.

    Several products of one thread each leave no core idle at the ends of blocks, as one product of several
    threads does.
    """
    if threads <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    import torch

    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        return list(pool.map(work, items))


@contextmanager
def one_thread(at_least: int = 1) -> Iterator[int]:
    """Have torch compute each product with one thread, and give how many products may go side by side.

    The bits of an fp32 product can depend on how many threads share it, but not on how many products there are.

    Args:
        at_least: Threads that a setting asks for; torch's own number where that is more.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield max(at_least, before)
    finally:
        torch.set_num_threads(before)


def widened(block: Float16[np.ndarray, "b d"], into: Any = None) -> Any:
    """A block in fp32, as a tensor; `into` is reused, since fresh memory is several times slower."""
    import torch

    source = torch.from_numpy(block if block.flags.writeable else block.view())
    if into is None:
        return source.float()
    return into[: len(block)].copy_(source)


@dataclass(frozen=True)
class Scaled:
    """Stored vectors at one length, in fp32 where rows are taken: half the memory of fp32, and the same bits.

    Args:
        stored: As they lie on disk.
        factor: What brings each to the length.
    """

    stored: Float16[np.ndarray, "n d"]
    factor: Float64[np.ndarray, " n"]

    @classmethod
    def of(cls, stored: Float16[np.ndarray, "n d"], length: float = 1.0) -> "Scaled":
        """Vectors of any length but zero, brought to one."""
        import torch

        from dbp.exact.kernels import paired

        squares, room = np.empty(len(stored)), torch.empty(min(BLOCK, len(stored)), stored.shape[1])
        for start in range(0, len(stored), BLOCK):
            block = widened(stored[start : start + BLOCK], room).numpy()
            paired(block, block, squares[start : start + BLOCK])
        return cls(stored, length / np.sqrt(squares))

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "m d"]:
        found = widened(self.stored[rows]).numpy()
        return np.multiply(found, self.factor[rows, None], out=found, casting="same_kind")


def _borrowed(count: int) -> Any:
    """A buffer of at least so many fp32 numbers."""
    import torch

    with _LOCK:
        at = next((i for i, room in enumerate(_SPARE) if count <= room.numel() <= 2 * count), None)
        return torch.empty(count) if at is None else _SPARE.pop(at)


@dataclass
class Assigner:
    """Finds the nearest of k centroids for blocks of rows; one for each thread, since it owns buffers.

    Args:
        centroids: On the grid of 2^-24.
        device: `cpu` or `cuda`.
    """

    centroids: Float32[np.ndarray, "k d"]
    device: str = "cpu"

    def __post_init__(self) -> None:
        import torch

        lengths = np.sqrt(np.square(self.centroids.astype(np.float64)).sum(axis=1))
        assert np.all((np.abs(lengths - 1) < 2e-6) | (lengths == 0)), "centroids have unit length"
        self.inverse = 1 / np.where(lengths == 0, 1, lengths)
        self.columns = torch.from_numpy(self.centroids).to(self.device).T
        self.rows: Any = None
        self.products: Any = None

    def __call__(
        self, block: Float16[np.ndarray, "b d"]
    ) -> tuple[Int32[np.ndarray, " b"], Float64[np.ndarray, " b"], Float32[np.ndarray, "b d"]]:
        """The nearest centroid of each row, the exact product with its direction, and the block in fp32."""
        import torch

        from dbp.exact.kernels import nearest

        n, (k, d) = len(block), self.centroids.shape
        if self.rows is None or len(self.rows) < n:
            self.rows = _borrowed(n * d)[: n * d].reshape(n, d)
            self.products = _borrowed(n * k)[: n * k].reshape(n, k)
        label, cosine = np.empty(n, np.int32), np.empty(n)
        rows = widened(block, self.rows)
        if self.device != "cpu":
            return self.on_device(rows, label, cosine)
        products = torch.mm(rows, self.columns, out=self.products[:n])
        top = products.amax(1)
        nearest(products.numpy(), top.numpy(), rows.numpy(), self.centroids, self.inverse, label, cosine)
        return label, cosine, rows.numpy()

    def __enter__(self) -> "Assigner":
        return self

    def __exit__(self, *problem: object) -> None:
        """Leave the buffers to the next assigner; what `__call__` gave must not be read any more."""
        with _LOCK:
            _SPARE.extend(room._base for room in (self.rows, self.products) if room is not None)
            del _SPARE[:-16]
        self.rows = self.products = None

    def on_device(self, rows: Any, label: np.ndarray, cosine: np.ndarray) -> tuple[Any, Any, Any]:
        import torch

        from dbp.exact.kernels import UNDECIDED, nearest

        torch.backends.cuda.matmul.allow_tf32 = False
        x = rows.to(self.device)
        products = x @ self.columns
        top, at = products.max(1)
        # The product in float64 is exact, so it is the one that the processor finds.
        own = torch.from_numpy(self.centroids).to(self.device).double()
        exact = (x.double() * own[at]).sum(1) * torch.from_numpy(self.inverse).to(self.device)[at]
        label[:], cosine[:] = at.cpu().numpy(), exact.cpu().numpy()
        unsure = (products >= (top - UNDECIDED)[:, None]).sum(1) > 1
        if unsure.any():
            where = unsure.cpu().numpy()
            some, some_label, some_cosine = rows.numpy()[where], label[where], cosine[where]
            nearest(
                products[unsure].cpu().numpy(), top[unsure].cpu().numpy(), some, self.centroids,
                self.inverse, some_label, some_cosine,
            )  # fmt: skip
            label[where], cosine[where] = some_label, some_cosine
        return label, cosine, rows.numpy()
