"""s-CLIPLoss against the machine's plain product on the same operations, in the same run.

    python tests/benchmarks/bench_scores.py --rows 1000000 --width 768 --batch 32768 --threads 2

Synthetic vectors are written as stored parts first; then one pass goes over some batches: gathering, widening,
products, exponentials and sums. After each batch the plain products of the same tiles are timed. Rates are by
processor time, since a shared machine gives a process what is left.
Goals: 75 % of the plain product's rate on the work's own operations (2 n B d a pass), below 1 GB. `--batches` says
how many batches are done; the time of the whole pass follows from them. Memory is the peak of a process that does
nothing else.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from dbp.data.columns import Columns
from dbp.data.embeddings import Embeddings, save_part
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.exact.products import one_thread, side_by_side
from dbp.scoring.clip_loss import TILES, ClipLoss, log_shares, unit

PART = 32_768


def write(home: Path, rows: int, width: int) -> None:
    """Images and captions that scatter about them, in parts."""
    for number, start in enumerate(range(0, rows, PART)):
        rng, own = np.random.default_rng(number), np.arange(start, min(start + PART, rows))
        image = rng.standard_normal((len(own), width), np.float32)
        for side, vectors in (("image", image), ("text", image + 2 * rng.standard_normal(image.shape, np.float32))):
            folder = home / side / f"part-{number:07d}"
            folder.mkdir(parents=True)
            save_part(folder, own, vectors, {})


def pool_of(rows: int) -> Pool:
    hashes = np.random.default_rng(0).integers(0, 1 << 63, rows).astype(np.uint64)
    return Pool(Columns(pa.table({"uid_hash": hashes})), [], "pool", "txt", 10**6)


def plain(sides: tuple[np.ndarray, np.ndarray], threads: int) -> float:
    """The processor's seconds of the plain products of a batch's tiles."""
    a, b = map(torch.from_numpy, sides)
    height, width = TILES["cpu"]

    def strip(top: int) -> None:
        room, own = torch.empty(height * width), a[top : top + height]
        for left in range(0, len(b), width):
            other = b[left : left + width]
            torch.mm(own, other.T, out=room[: len(own) * len(other)].view(len(own), len(other)))

    began = time.process_time()
    with one_thread(threads) as lanes:
        side_by_side(strip, list(range(0, len(a), height)), lanes)
    return time.process_time() - began


def stage_of(args: argparse.Namespace) -> ClipLoss:
    return ClipLoss(args.batch, 1, 0.01, "pool", "smaller", 0, args.threads, "cpu")


def work(args: argparse.Namespace, home: str, batches: int, compare: bool, found: list[float]) -> None:
    """Do some batches; put the seconds of gathering, scoring and plain products, operations, and the peak in GB."""
    image, text = (Embeddings.load(Path(home) / side) for side in ("image", "text"))
    stage, pool = stage_of(args), pool_of(args.rows)
    gathering = scoring = products = operations = 0.0
    present = stage.present(KeepList("pool", np.ones(args.rows, bool)), image, text)
    for _, rows in zip(range(batches), stage.batches(0, pool, present), strict=False):
        began = time.process_time()
        sides = unit(image, rows, 1 / stage.temperature), unit(text, rows)[:]
        gathered = time.process_time()
        log_shares(*sides, "cpu", args.threads)
        gathering, scoring = gathering + gathered - began, scoring + time.process_time() - gathered
        products += plain((sides[0][:], sides[1]), args.threads) if compare else 0
        operations += 2.0 * len(rows) ** 2 * args.width
    found[:] = [gathering, scoring, products, operations, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1_000_000), ("width", 768), ("batch", 32_768), ("threads", 2), ("batches", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as home:
        write(Path(home), args.rows, args.width)
        found: list[float] = []
        work(args, home, args.batches, True, found)
        gathering, scoring, products, operations, _ = found
        with multiprocessing.get_context("spawn").Manager() as manager:
            alone = manager.list()
            process = multiprocessing.get_context("spawn").Process(target=work, args=(args, home, 1, False, alone))
            process.start()
            process.join()
            peak = alone[4]
    whole = (gathering + scoring) * 2 * args.rows * args.batch * args.width / operations
    print(f"{args.rows:,} rows of width {args.width}, batches of {args.batch:,}, {args.threads} threads")
    print(f"measured: gathering {gathering:.1f} s, scoring {scoring:.1f} s, the plain products {products:.1f} s")
    print(
        f"rate: {operations / (gathering + scoring) / 1e9:.0f} GFLOP/s of one core; "
        f"plain {operations / products / 1e9:.0f} GFLOP/s"
    )
    print(
        f"share of the plain product: {products / (gathering + scoring):.0%} (goal 75 %); "
        f"scoring alone {products / scoring:.0%}"
    )
    print(f"a pass over all rows: {whole:,.0f} s of one core; peak of a process: {peak:.2f} GB (goal 1 GB)")


if __name__ == "__main__":
    main()
