"""s-CLIPLoss: the CLIP score of a pair, less how well its image and its caption fit those of other pairs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int

from dbp.config import require
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.data.vectors import Vectors
from dbp.device import pick_device
from dbp.engine.parts import Parted
from dbp.engine.stage import runtime
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError
from dbp.exact.order import at_places, keyed_hash
from dbp.exact.products import Scaled, one_thread, side_by_side

ROWS = 1 << 18  # of a part: about two minutes of two cores
# Rows and columns of the products held at once: 2 MB stay in a core's cache, a GPU wants few large ones.
TILES = {"cpu": (512, 1024), "cuda": (4096, 8192)}
LEAST = 1e-25  # a sum of exponentials below this has lost terms to the underflow of fp32 (1e-38)


@dataclass(frozen=True)
class ClipLoss(Parted):
    """Minus the temperature times the symmetric CLIP loss of each pair, averaged over random batches.

    In a batch of B pairs with cosines s_ij of image i and caption j,

        score_i = s_ii - temperature / 2 * (log sum_j exp(s_ij / temperature) + log sum_j exp(s_ji / temperature)).

    The order of a pass is that of a hash of seed, pass and uid, so that neither the rows' order nor parts or shards
    matter. Equal bits for any number of workers and threads on one machine; processors differ in the last bits of
    fp32. Missing where a row has no image or no text vector, is invalid, or is held out: such rows are in no batch.
    Cost: 2 n B d operations a pass.

    Args:
        batch_size: B.
        num_passes: K, batches that each pair is in.
        temperature: That of the encoder's training.
        within: Batches of the whole `pool`, or of one `shard` (a file of metadata), as in the released code.
        last: The last batch is `smaller`, or all are `even` in size. A smaller batch has fewer negatives and gives
            higher scores: by temperature * log(B / its size) on average.
        seed: Of the orders.
        threads: Strips of a batch's products worked on at once.

    Source: Wang et al. 2024 (arXiv 2405.19547), negCLIPLoss.
    """

    name: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("pool", "valid", "image", "text")
    makes: ClassVar[type] = Scores
    unit: ClassVar[str] = "runs of batches"

    batch_size: int
    num_passes: int
    temperature: float
    within: Literal["pool", "shard"]
    last: Literal["smaller", "even"]
    seed: int
    threads: int = runtime(1)
    device: str = runtime("auto")

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_passes", "threads"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")

    def parts(self, pool: Pool, valid: KeepList, image: Embeddings, text: Embeddings) -> list[Part]:
        """One for each pass and run of batches, or of shards, of about 262,144 rows."""
        if image.width != text.width and image.width and text.width:
            raise ConfigError(
                f"encoder.score gives image vectors of {image.width} numbers and text vectors of {text.width}, so "
                "they have no cosine. Take both from one model."
            )
        runs = self.runs(pool, self.present(valid, image, text))
        sizes = [sum(stop - start for _, start, stop in run) for run in runs]
        return [
            Part(f"pass-{number // len(sizes):03d}-{number % len(sizes):05d}", number, float(size))
            for number, size in enumerate(sizes * self.num_passes)
        ]

    @staticmethod
    def present(valid: KeepList, image: Embeddings, text: Embeddings) -> np.ndarray:
        """Which valid rows have both vectors."""
        return Vectors.of(image, text).present(valid.num_pool_rows) & valid.mask

    def runs(self, pool: Pool, present: np.ndarray) -> list[list[tuple[slice, int, int]]]:
        """The batches of a pass, run by run: the rows that a batch is drawn from, and its places in their order."""
        edges = [0, pool.num_rows] if self.within == "pool" else pool.index.starts.tolist()
        runs: dict[int, list[tuple[slice, int, int]]] = {}
        before = 0
        for start, stop in pairwise(edges):
            n = int(np.count_nonzero(present[start:stop]))
            count = -(-n // self.batch_size)
            cuts = [n * i // count if self.last == "even" else i * self.batch_size for i in range(count)]
            for first, end in pairwise([*cuts, n]):
                run = runs.setdefault((before + first) // max(ROWS, self.batch_size), [])
                run.append((slice(start, stop), first, end))
            before += n
        return list(runs.values())

    def batches(self, number: int, pool: Pool, present: np.ndarray) -> Iterator[Int[np.ndarray, " b"]]:
        """The rows of each batch of a part, in the order of its pass."""
        runs = self.runs(pool, present)
        turn, at = divmod(number, len(runs))
        seed = int(keyed_hash(np.array([turn], np.uint64), self.seed)[0])
        own, (span, low, _), (last, _, high) = runs[at], runs[at][0], runs[at][-1]
        if span == last:  # one look at the hashes for all batches of the run
            rows = at_places(pool.uid_hashes[span], present[span], seed, low, high) + span.start
            yield from (rows[start - low : stop - low] for _, start, stop in own)
        else:
            for one, start, stop in own:
                yield at_places(pool.uid_hashes[one], present[one], seed, start, stop) + one.start

    def make(  # type: ignore[override]
        self, part: Part, folder: Path, pool: Pool, valid: KeepList, image: Embeddings, text: Embeddings
    ) -> dict[str, Any]:
        device, rows, score, small = pick_device(self.device), [], [], 0
        for batch in self.batches(part.number, pool, self.present(valid, image, text)):
            sides = unit(image, batch, 1 / self.temperature), unit(text, batch)[:]
            score.append(self.temperature * log_shares(*sides, device, self.threads))
            rows.append(batch)
            small += len(batch) if len(batch) < self.batch_size else 0
        np.save(folder / "rows.npy", np.concatenate(rows))
        np.save(folder / "score.npy", np.concatenate(score))
        return {"batches": len(rows), "small": small}

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, Any], valid: KeepList, image: Embeddings, text: Embeddings, **_: Pool
    ) -> dict[str, Any]:
        sums = np.full(valid.num_pool_rows, np.nan)
        for name in sorted(counts):  # pass after pass, so that sums have one order
            rows = np.load(work.shared / name / "rows.npy")
            sums[rows] = np.nan_to_num(sums[rows]) + np.load(work.shared / name / "score.npy")
        values = (sums / self.num_passes).astype(np.float32)
        Scores(values, Vectors.of(image, text).missing, "s-CLIPLoss").save(work.folder)
        scored = int(np.count_nonzero(~np.isnan(values)))
        return {
            "rows": scored,
            "without score": len(values) - scored,
            "batches": sum(found["batches"] for found in counts.values()),
            "rows in smaller batches": sum(found["small"] for found in counts.values()),
        }


def unit(side: Embeddings, rows: Int[np.ndarray, " b"], length: float = 1.0) -> Scaled:
    """The vectors of rows at a length."""
    return Scaled.of(side.scattered(rows), length)


def log_shares(
    image: Scaled | Float32[np.ndarray, "b d"],
    text: Float32[np.ndarray, "b d"],
    device: str = "cpu",
    threads: int = 1,
) -> Float64[np.ndarray, " b"]:
    """The mean log probability of each pair's own partner: of its caption given its image, and the other way round.

    Args:
        image: Unit vectors over the temperature; on a processor each row is widened once.
        text: Unit vectors.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    there = None if device == "cpu" else torch.from_numpy(image[:]).to(device)
    b = torch.from_numpy(text).to(device)
    n, (height, width) = len(b), TILES["cpu" if device == "cpu" else "cuda"]
    tops, lefts = range(0, n, height), range(0, n, width)
    own, by_row, by_column = (torch.empty(k, n, dtype=torch.float64) for k in (1, 1, len(tops)))

    def strip(number: int) -> None:
        rows = slice(tops[number], tops[number] + height)
        a, room = (
            torch.from_numpy(image[rows]) if there is None else there[rows],
            torch.empty(height * width, device=device),
        )
        own[0, rows] = (a.double() * b[rows].double()).sum(1).cpu()
        along = torch.empty(len(lefts), len(a), dtype=torch.float64)
        for at, left in enumerate(lefts):
            columns = slice(left, left + width)
            along[at], by_column[number, columns] = (found.cpu() for found in log_sums(a, b[columns], room))
        by_row[0, rows] = along.logsumexp(0)

    with one_thread(threads) as lanes:
        side_by_side(strip, list(range(len(tops))), lanes if device == "cpu" else 1)
        down = torch.cat([by_column[:, left : left + width].logsumexp(0) for left in lefts])
        return (own[0] - (by_row[0] + down) / 2).numpy()


def log_sums(a: Any, b: Any, room: Any) -> tuple[Any, Any]:
    """The log of the sums of exp(a @ b.T) over its columns, and over its rows, in float64.

    One exponential an entry, relative to the largest of the tile, serves both. Where a row or a column lies so far
    below it that fp32 loses its terms, each is summed relative to its own largest.
    """
    import torch

    products = torch.mm(a, b.T, out=room[: len(a) * len(b)].view(len(a), len(b)))
    top = products.max()
    shares = products.sub_(top).exp_()
    sums = shares.sum(1), shares.sum(0)
    if min(found.min() for found in sums) >= LEAST:
        return sums[0].double().log() + top, sums[1].double().log() + top
    products = torch.mm(a, b.T, out=products)
    return products.logsumexp(1).double(), products.logsumexp(0).double()
