"""Curation's speed and memory beside the machine's own limits and the published methods, in one run.

    python tests/benchmarks/bench_curation.py assign --rows 1000000
    python tests/benchmarks/bench_curation.py chain --rows 1000000
    python tests/benchmarks/bench_curation.py triangle --members 16000
    python tests/benchmarks/bench_curation.py quotas
    python tests/benchmarks/bench_curation.py temperature --rows 100000000

Data are made once in --folder (default: a folder of the system's for temporary files) and used again. Rates
stand beside the same machine's fp32 matrix product, taken in turn with the work; memory is what the process has at
its peak above what it has after imports. `--cold` drops the files from the page cache first.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from dbp.clustering import lloyd
from dbp.clustering.kmeans import assign_rows, write_run
from dbp.data.embeddings import Embeddings, save_part
from dbp.data.vectors import Vectors
from dbp.dedup.pairs import nearest_earlier
from dbp.exact.products import BLOCK, side_by_side
from dbp.pools.rehearsal import RehearsalPool
from dbp.selection.quotas import allocate

Say = Callable[..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["assign", "chain", "triangle", "quotas", "temperature"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--members", type=int, default=16_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-curation")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--rivals", action="store_true", help="the published methods on the same data, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, "
          f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")  # fmt: skip
    {"assign": assign, "chain": chain, "triangle": triangle, "quotas": quotas, "temperature": temperature}[
        options.what
    ](options)


# measuring


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Seconds, and the peak of memory above what the process had before."""
    found: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, began = _memory("VmRSS"), time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - began
    found["megabytes"] = (_memory("VmHWM") - before) / 1e6


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def products(width: int, columns: int, threads: int, seconds: float, rows: int = BLOCK) -> tuple[float, float]:
    """Plain fp32 products of blocks, on so many threads, for some time: operations, and seconds that they took."""

    def share(_: int) -> int:
        a, b, out = (torch.randn(rows, width), torch.randn(columns, width), torch.empty(rows, columns))
        began, times = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            torch.mm(a, b.T, out=out)
            times += 1
        return times

    began = time.perf_counter()
    times = sum(side_by_side(share, list(range(threads)), threads))
    return 2.0 * rows * width * columns * times, time.perf_counter() - began


class Beside:
    """Work and plain products in turn, so that what else the machine does falls on both."""

    def __init__(self, width: int, columns: int, threads: int, rows: int = BLOCK) -> None:
        self.shape = (width, columns, threads)
        self.rows = rows
        self.operations = self.seconds = self.own_operations = self.own_seconds = 0.0
        products(*self.shape, 0.2, rows)

    def do(self, work: Callable[[], Any], operations: float) -> Any:
        """Time a piece of work, then products for as long, at most a second."""
        began = time.perf_counter()
        found = work()
        took = time.perf_counter() - began
        self.own_operations += operations
        self.own_seconds += took
        plain, seconds = products(*self.shape, min(max(took, 0.1), 1.0), self.rows)
        self.operations += plain
        self.seconds += seconds
        return found

    @property
    def limit(self) -> float:
        return self.operations / self.seconds

    @property
    def share(self) -> float:
        return self.own_operations / self.own_seconds / self.limit


def embeddings_of(options: Any) -> Embeddings:
    """Vectors on disk, made once: 32,768 rows a part, concepts of unequal size, a fifth near duplicates."""
    folder = options.folder / f"vectors-{options.rows}-{options.width}"
    plan = RehearsalPool(options.rows, 32_768, options.width, 1000, 1.2, 0.2, 0.2, 0)
    for part in plan.parts():
        home = folder / part.name
        if (home / "failed.parquet").exists():
            continue
        home.mkdir(parents=True, exist_ok=True)
        span = plan.span(part.number)
        save_part(home, np.arange(span.start, span.stop), plan.vectors(part.number, "image"), {})
    if options.cold:
        drop_cache(folder)
    return Embeddings.load(folder)


def drop_cache(folder: Path) -> None:
    """Write what is not on disk yet, and forget every file of a folder."""
    os.sync()
    for file in folder.rglob("*.npy"):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


# the assignment pass


def assign(options: Any) -> None:
    """Every row to its nearest of k centroids: reading, product, exact decision, distance."""
    vectors = Vectors.of(embeddings_of(options))
    rows = vectors.part_rows(0)
    sample = np.ascontiguousarray(vectors.gather(rows[: options.clusters * 16]))
    fitted = lloyd.fit(sample, options.clusters, 5, 0, threads=options.threads)
    if options.cold:
        drop_cache(options.folder)
    else:
        for part in range(vectors.num_parts):  # warm: every page once
            np.asarray(vectors.gather(vectors.part_rows(part)))[::64].sum()
    labels: dict[int, np.ndarray] = {}

    def some(parts: range) -> None:
        for part in parts:
            own = vectors.part_rows(part)
            labels[part], _ = assign_rows(vectors, own, fitted.centroids, options.threads)

    for turn in range(1 if options.cold else options.repeat):
        beside = Beside(options.width, options.clusters, options.threads)
        with measured() as found:
            for start in range(0, vectors.num_parts, 4):
                parts = range(start, min(start + 4, vectors.num_parts))
                count = sum(len(vectors.part_rows(part)) for part in parts)
                work = 2.0 * count * options.width * options.clusters
                beside.do(lambda parts=parts: some(parts), work)
        seconds = beside.own_seconds
        print(f"assign {options.rows:,} x {options.width}, k={options.clusters}, "
              f"{'cold' if options.cold else 'warm'}, turn {turn}: {seconds:.2f} s, "
              f"{options.rows / seconds / 1e6:.3f} M rows/s, {1e6 * seconds / options.rows:.3f} s a million, "
              f"{beside.share:.0%} of the matrix product ({beside.limit / 1e9:.0f} GFLOP/s in turn with it), "
              f"peak {found['megabytes']:.0f} MB")  # fmt: skip
    with measured() as found:
        for part in range(vectors.num_parts):
            home = options.folder / "runs" / f"{part:07d}"
            home.mkdir(parents=True, exist_ok=True)
            write_run(home, vectors, vectors.part_rows(part), labels[part], options.clusters)
        os.sync()
    size = options.rows * options.width * 2 / 1e9
    print(f"runs sorted by cluster: {found['seconds']:.2f} s for {size:.1f} GB ({size / found['seconds']:.2f} GB/s "
          f"with sync), peak {found['megabytes']:.0f} MB")  # fmt: skip
    shutil.rmtree(options.folder / "runs")
    if options.rivals:
        faiss_assign(options, vectors, fitted.centroids, labels)


def faiss_assign(options: Any, vectors: Vectors, centroids: np.ndarray, labels: dict[int, np.ndarray]) -> None:
    """What the published code does: one search of an exact inner-product index over fp32 vectors."""
    import faiss

    faiss.omp_set_num_threads(options.threads)
    index = faiss.IndexFlatIP(options.width)
    index.add(centroids)
    whole = np.concatenate([vectors.gather(vectors.part_rows(p)) for p in range(vectors.num_parts)])
    with measured() as found:
        _, nearest = index.search(whole.astype(np.float32), 1)
    ours = np.concatenate([labels[part] for part in range(vectors.num_parts)])
    differ = int((nearest[:, 0] != ours).sum())
    print(f"faiss search, fp16 to fp32 included, everything in memory: {found['seconds']:.2f} s, "
          f"{options.rows / found['seconds'] / 1e6:.3f} M rows/s, peak {found['megabytes']:.0f} MB; "
          f"{differ:,} of {options.rows:,} labels differ (near ties in fp32)")  # fmt: skip


# from vectors to keep lists


def chain(options: Any) -> None:
    """The command that a person types, stage by stage, vectors made before."""
    store = options.folder / f"store-{options.rows}-{options.width}"
    command = [
        sys.executable, "-m", "dbp", "rehearse", f"rows={options.rows}", f"pool.width={options.width}",
        f"cluster.num_clusters={options.clusters}", "cluster.points_per_centroid=256", "cluster.num_iterations=20",
        f"parts.threads={options.threads}", f"paths.store={store}", f"paths.runs={store}-runs",
    ]  # fmt: skip
    subprocess.run([*command, "until=embed"], check=True, stdout=subprocess.DEVNULL)
    for stage in ("centroids", "cluster", "similar", "dedup", "filter", "select", "valid"):
        shutil.rmtree(store / stage, ignore_errors=True)
    began = time.perf_counter()
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - began
    print(said)
    manifests = [json.loads(file.read_text()) for file in store.glob("*/*/manifest.json")]
    for made in sorted(manifests, key=lambda made: made["created"]):
        print(f"  {made['stage']:<10} {made['seconds']:8.1f} s  {made['cpu_seconds']:8.1f} CPU s  "
              f"peak of the process {made['peak_memory_bytes'] / 1e6:,.0f} MB")  # fmt: skip
    print(f"from vectors to keep list, {options.rows:,} rows: {seconds:.1f} s in all")
    if options.rivals:
        text_clusters(options, store)


def text_clusters(options: Any, store: Path) -> None:
    """The published interchange: one file of text cells a cluster, written and read again for d_intra."""
    folder = next(iter((store / "cluster").iterdir()))
    label, distance = np.load(folder / "assignment.npy"), np.load(folder / "distance.npy")
    out = options.folder / "text-clusters"
    out.mkdir(exist_ok=True)
    with measured() as found:
        rows = np.flatnonzero(label >= 0)
        rows = rows[np.argsort(label[rows], kind="stable")]
        for cluster, own in enumerate(np.split(rows, np.cumsum(np.bincount(label[rows]))[:-1])):
            own = own[np.argsort(-distance[own], kind="stable")]
            cells = [(f"{r:032x}", str(r), str(float(distance[r])), str(cluster)) for r in own]
            np.save(out / f"cluster_{cluster}.npy", np.array(cells, dtype="<U32").reshape(-1, 4))
    size = sum(file.stat().st_size for file in out.iterdir())
    with measured() as read:
        for file in out.iterdir():
            np.load(file)[:, 2].astype(np.float32).mean()
    ours = sum((folder / name).stat().st_size for name in ("assignment.npy", "distance.npy"))
    print(f"text cluster files: {found['seconds']:.1f} s to write {size / 1e6:,.0f} MB, {read['seconds']:.1f} s "
          f"to read the distances again; ours {ours / 1e6:,.0f} MB, mapped")  # fmt: skip
    shutil.rmtree(out)


# the triangle of one cluster


def triangle(options: Any) -> None:
    """Each member of one cluster against the earlier ones."""
    n, width = options.members, options.width
    rng = np.random.default_rng(0)
    vectors = np.empty((n, width), np.float16)
    for at in range(0, n, BLOCK):
        block = rng.standard_normal((min(BLOCK, n - at), width), np.float32) + 1
        vectors[at : at + BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    order = rng.permutation(n)
    nearest_earlier(vectors[:3000], np.arange(3000))  # compiled, threads started
    best = np.zeros(n)

    def once() -> None:
        best[:], _ = nearest_earlier(vectors, order, threads=options.threads)

    for turn in range(options.repeat):
        beside = Beside(width, 2048, options.threads, rows=1024)
        with measured() as found:
            beside.do(once, float(width) * n * n)
        print(f"triangle of {n:,} x {width}, turn {turn}: {beside.own_seconds:.2f} s, {beside.share:.0%} of the "
              f"matrix product on the triangle's operations ({beside.limit / 1e9:.0f} GFLOP/s in turn with it), "
              f"peak {found['megabytes']:.0f} MB")  # fmt: skip
    if options.rivals:
        torch.set_num_threads(options.threads)
        with measured() as found:
            ordered = torch.from_numpy(vectors[order]).float()
            ordered = torch.nn.functional.normalize(ordered, dim=1)
            theirs = torch.triu(ordered @ ordered.T, diagonal=1).max(dim=0)[0]
        torch.set_num_threads(1)
        ours = torch.from_numpy(np.maximum(best[order], 0)).float()
        print(f"full product, triu, max: {found['seconds']:.2f} s, peak {found['megabytes']:,.0f} MB, "
              f"largest difference {float((ours - theirs).abs().max()):.1e}")  # fmt: skip


# scalar columns


def quotas(options: Any) -> None:
    """The projection at k = 50,000, beside a general solver at its default tolerance."""
    rng = np.random.default_rng(0)
    for k, total in ((500, 280_000_000), (50_000, 1_280_000_000)):
        sizes = rng.lognormal(0, 1, k)
        sizes = np.maximum((sizes / sizes.sum() * total).astype(np.int64), 1)
        shares = np.exp(rng.lognormal(-2.5, 0.4, k) / 0.1)
        targets, budget = 0.3 * total * shares / shares.sum(), int(0.3 * total)
        allocate(targets, budget, np.minimum(1, sizes), sizes)
        with measured() as found:
            ours = allocate(targets, budget, np.minimum(1, sizes), sizes)
        assert ours.sum() == budget
        print(f"quotas, k={k:,}: {found['seconds'] * 1e3:.1f} ms, sum exact")
        if options.rivals:
            osqp_quotas(targets, budget, sizes, ours)


def osqp_quotas(targets: np.ndarray, budget: int, sizes: np.ndarray, ours: np.ndarray) -> None:
    try:
        import osqp
        from scipy import sparse
    except ImportError:
        print("  osqp is not installed: not compared")
        return
    k = len(targets)
    with measured() as found:
        solver = osqp.OSQP()
        rows = sparse.vstack([sparse.csc_matrix(np.ones((1, k))), sparse.identity(k)], format="csc")
        lower, upper = np.r_[budget, np.minimum(1, sizes)], np.r_[budget, sizes]
        solver.setup(
            sparse.identity(k, format="csc"),
            -targets,
            rows,
            lower.astype(float),
            upper.astype(float),
            verbose=False,
        )
        theirs = np.rint(solver.solve().x)
    print(f"  osqp, default tolerance, sparse identity: {found['seconds'] * 1e3:.1f} ms; its rounded sum misses by "
          f"{int(theirs.sum()) - budget:+,}, its largest difference in a cluster is "
          f"{int(np.abs(theirs - ours).max()):,}")  # fmt: skip


def temperature(options: Any) -> None:
    """A new temperature on scalar columns: DBP's whole stage, files written, as `dbp curate` does it."""
    from dbp.data.clusters import Clusters
    from dbp.data.keep_list import KeepList, everything
    from dbp.engine.work import Work
    from dbp.selection.budget import Budget
    from dbp.selection.density import Density

    n, k = options.rows, options.clusters
    folder = options.folder / f"scalars-{n}"
    if not (folder / "rows" / "keep.json").exists():
        rng = np.random.default_rng(0)
        (folder / "clusters").mkdir(parents=True, exist_ok=True)
        (folder / "rows").mkdir(exist_ok=True)
        centroids = lloyd.on_grid(rng.standard_normal((k, 512)))
        label = np.minimum((rng.random(n, np.float32) ** 2 * k).astype(np.int32), k - 1)
        distance = (0.3 + 0.3 * rng.random(n, np.float32) + label / k / 5).astype(np.float32)
        Clusters(centroids, label, distance).save(folder / "clusters")
        kept = rng.random(n, np.float32) > 0.3
        everything("rehearsal", np.ones(n, bool)).within("dedup", kept, "duplicate", "no earlier duplicate").save(
            folder / "rows"
        )
        del label, distance, kept
    for value in (0.1, 0.2):
        out = folder / f"select-{value}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        with measured() as found:
            rows = KeepList.load(folder / "rows")
            clusters = Clusters.load(folder / "clusters")
            stage = Density(Budget(keep_fraction=0.3), 0, value, 20, "product", 1, "hard")
            pool: Any = None  # hard members need no uid
            stage.run(Work(out, out, "key"), rows=rows, base=rows, pool=pool, clusters=clusters)
        print(
            f"temperature {value} on {n:,} rows, k={k}: {found['seconds']:.1f} s, peak {found['megabytes']:,.0f} MB"
        )
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
