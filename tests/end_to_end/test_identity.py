"""The keep list is the same, bit for bit, whoever makes it, in whatever pieces, and however often it is killed."""

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dbp.engine.store import Store

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)  # where processes of the pool and of submitit find the stages, too
graph: Any = importlib.import_module("identity_graph")
portable: Any = importlib.import_module("portable")
RUNS, environment = portable.RUNS, portable.environment

FEW = graph.NUM_ROWS // 2  # rows of a part of which there are two
LOCAL = ["parts.runner=slurm", "+parts.slurm.cluster=local", "+parts.slurm.poll_seconds=0.2"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity") / "pool"
    graph.write_pool(folder)
    return folder


@pytest.fixture(scope="module")
def reference(pool: Path) -> dict[str, Any]:
    """The keep list of one process, one thread."""
    return graph.curate(graph.settings(pool, pool.parent / "reference"))


def num_parts(made: dict[str, Any], stage: str) -> int:
    """The parts of the first stage of that name."""
    node = next(node for node in made["node"].lineage() if node.stage.name == stage)
    return len(node.stage.parts(**{n: made["store"].get(up) for n, up in node.inputs.items()}))


def test_the_pool_is_worth_the_comparison(pool: Path, reference: dict[str, Any]) -> None:
    assert num_parts(reference, "index") == graph.NUM_SHARDS
    assert num_parts(reference, "embed") == 8
    assert num_parts(reference, "similar") >= 6
    counts = {e.stage: e.manifest["counts"] for e in reference["store"].entries()}
    # Planted: a third equal, a third within 1e-4, a third within 1e-2 of another row.
    assert counts["dedup"]["duplicate"] == pytest.approx(graph.NUM_COPIES, abs=10)
    assert reference["kept"] == int(0.4 * counts["dedup"]["kept"])


def test_threads_blocks_and_runs_sorted_by_cluster_change_nothing(
    pool: Path, tmp_path: Path, reference: dict[str, Any]
) -> None:
    settings = graph.settings(pool, tmp_path / "store")
    made = graph.curate([*settings, "parts.threads=2", "dedup.runs=yes"], block=1000, rows=FEW)
    assert num_parts(made, "cluster") == 2, "so that each has two blocks, one for each thread"
    assert made["digest"] == reference["digest"]
    assert_same_values(made, reference)


@pytest.mark.slow
def test_two_workers_change_nothing(pool: Path, tmp_path: Path, reference: dict[str, Any]) -> None:
    settings = graph.settings(pool, tmp_path / "store")
    made = graph.curate([*settings, "parts.runner=processes", "parts.workers=2"])
    assert made["digest"] == reference["digest"]
    assert_same_values(made, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "block", "rows"),
    [
        (["parts.runner=processes", "parts.workers=1", "dedup.runs=yes"], 8192, graph.ROWS_OF_VECTORS),
        (["parts.runner=processes", "parts.workers=5", "parts.threads=2"], 1000, FEW),
        ([*LOCAL, "parts.workers=2", "parts.threads=2"], 1000, FEW),
        pytest.param(
            [*LOCAL, "parts.workers=5", "dedup.runs=yes"], 8192, graph.ROWS_OF_VECTORS, marks=pytest.mark.nightly
        ),
    ],
)
def test_no_runner_changes_anything(
    pool: Path, tmp_path: Path, reference: dict[str, Any], runner: list[str], block: int, rows: int
) -> None:
    made = graph.curate([*graph.settings(pool, tmp_path / "store"), *runner], block, rows)
    assert made["digest"] == reference["digest"]
    assert_same_values(made, reference)


def assert_same_values(made: dict[str, Any], reference: dict[str, Any]) -> None:
    """Every array of every stage is equal, and the reason of every row, not the end alone."""
    ours, theirs = (values(one["store"].root) for one in (made, reference))
    assert ours.keys() == theirs.keys()
    for name, file in ours.items():
        if file.suffix == ".npy":
            np.testing.assert_array_equal(np.load(file), np.load(theirs[name]), err_msg=name)
        else:
            assert pq.read_table(file) == pq.read_table(theirs[name]), name


def values(store: Path) -> dict[str, Path]:
    """The arrays of all stages but the parts that some keep, whose bounds may differ; and the reasons."""
    return {
        str(file.relative_to(store)): file
        for file in store.glob("[!.]*/*/*.*")
        if file.suffix == ".npy" or file.name == "reason.parquet"
    }


# other processors

ORDER = """
import hashlib
import numpy as np
from training.feed.order import Order, mix
order = Order(mix(np.arange(5000, dtype=np.uint64)), 7)
print(hashlib.sha256(np.concatenate([order.epoch(n) for n in range(3)]).tobytes()).hexdigest())
"""


@pytest.mark.parametrize(
    "kernels",
    [
        pytest.param("oldest kernels, one thread", marks=pytest.mark.slow),
        pytest.param("AVX2 kernels, two threads", marks=pytest.mark.slow),
        "numpy and numba without AVX, four threads",
    ],
)
def test_the_kernels_of_other_processors_change_no_row_no_quota_and_no_order(
    pool: Path, tmp_path: Path, reference: dict[str, Any], kernels: str
) -> None:
    there = environment(RUNS[kernels][0])
    store = tmp_path / "store"
    said = [f"{HERE}/identity_graph.py", *graph.settings(pool, store)]
    made = subprocess.run([sys.executable, *said], env=there, text=True, capture_output=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == reference["digest"]
    assert_same_values({"store": Store(store)}, reference)
    orders = {
        subprocess.run([sys.executable, "-c", ORDER], env=env, text=True, capture_output=True).stdout
        for env in (there, dict(os.environ))
    }
    assert len(orders) == 1
    assert len(orders.pop().strip()) == 64


# killed


def start(pool: Path, store: Path) -> "subprocess.Popen[str]":
    """Begin a curation with two workers, all of them in a process group of their own."""
    said = [*graph.settings(pool, store), "parts.runner=processes", "parts.workers=2"]
    return subprocess.Popen(
        [sys.executable, f"{HERE}/identity_graph.py", *said],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def progress(store: Path) -> int:
    """How much there is: complete artifacts, and finished parts of others."""
    return len([*store.glob("[!.]*/*/manifest.json"), *store.glob(".partial/*/*/part.json")])


@pytest.mark.nightly
def test_ten_kills_at_random_moments_change_nothing(pool: Path, tmp_path: Path, reference: dict[str, Any]) -> None:
    chance, kills, ends = random.Random(0), [], 0
    while len(kills) < 10:
        store = tmp_path / f"store-{ends}"
        process, before = start(pool, store), progress(store)
        # Past its imports, and some work further.
        while progress(store) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills.append(progress(store))
        else:
            finish(process, store, reference)
            ends += 1
        assert ends <= 3, f"runs end before they are killed: {kills}"
    assert len(set(kills)) >= 5, f"the kills met the same moment: {kills}"
    store = tmp_path / f"store-{ends}"
    finish(start(pool, store), store, reference)


def finish(process: "subprocess.Popen[str]", store: Path, reference: dict[str, Any]) -> None:
    said, trouble = process.communicate(timeout=600)
    assert process.returncode == 0, trouble
    assert said.strip() == reference["digest"]
    assert not list(store.glob(".tmp/*")), "what killed runs left is swept"
    assert_same_values({"store": Store(store)}, reference)
