"""A curation that is killed at any moment leaves the store readable, and the next one goes on."""

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dbp.engine.store import Store

NUM_SHARDS, PER_SHARD = 24, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Many small shards, so that a run has many moments, and the vectors of their rows."""
    folder = tmp_path_factory.mktemp("pool")
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                out = io.BytesIO()
                Image.new("RGB", (4, 4), (row % 256, row // 256, 0)).save(out, "PNG")
                for name, content in ((f"{row}.png", out.getvalue()), (f"{row}.txt", b"a caption")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    made = np.random.default_rng(0)
    images = made.normal(size=(NUM_SHARDS * PER_SHARD, 64)).astype(np.float32)
    images[100:140] = images[:40]
    np.save(folder / "images.npy", images)
    np.save(folder / "texts.npy", images + made.normal(size=images.shape).astype(np.float32))
    return folder


def start(folder, store):
    """Begin a curation; a session of its own, so that nothing outlives the kill."""
    vectors = [f"encoder.{use}.images={folder}/images.npy" for use in ("dedup", "cluster", "score")]
    command = [
        sys.executable, "-m", "dbp", "curate", "pool=webdataset", f"pool.shards={folder}/*.tar",
        "encoder=precomputed", *vectors, f"encoder.score.texts={folder}/texts.npy",
        "filter=top_fraction", "filter.fraction=0.8", "cluster.num_clusters=20",
        "budget.keep_fraction=0.3", f"paths.store={store}",
    ]  # fmt: skip
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def finish(process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def wait_for(store, process):
    """Wait until the run begins to write, past its imports."""
    while not store.exists() and process.poll() is None:
        time.sleep(0.002)
    return time.monotonic()


def keep_list(store):
    """The one keep list in a store: its key, its rows as bytes, the reason of every row."""
    (made,) = (store / "select").iterdir()
    return made.name, (made / "keep.npy").read_bytes(), pq.read_table(made / "reason.parquet")


def assert_whole(store):
    """Everything that is listed is complete, to the byte."""
    listed = list(Store(store).entries())
    for entry in listed:
        for name, size in entry.manifest["files"].items():
            assert (entry.folder / name).stat().st_size == size, f"{entry.folder / name} is half-written"
    said = subprocess.run(
        [sys.executable, "-m", "dbp", "ls", f"paths.store={store}"],
        text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert f"{len(listed)} artifacts" in said
    return {entry.stage for entry in listed}


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """The keep list of a run that nobody disturbs, and the seconds that it writes for."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    process = start(folder, store)
    began = wait_for(store, process)
    finish(process)
    return keep_list(store), time.monotonic() - began


def survives(folder, store, moment, undisturbed, after=0):
    """Kill a run at a moment (a fraction of its writing), look at the store, and run again.

    The moment counts from the time at which so many artifacts are complete; a slow machine is slow
    between them.
    """
    (key, rows, reasons), seconds = undisturbed
    process = start(folder, store)
    wait_for(store, process)
    while len(list(store.glob("*/*/manifest.json"))) < after and process.poll() is None:
        time.sleep(0.01)
    time.sleep(moment * seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    complete = assert_whole(store)
    finish(start(folder, store))
    assert keep_list(store)[:2] == (key, rows)
    assert keep_list(store)[2] == reasons
    assert not list(store.glob(".tmp/*")), "what the killed run left is swept"
    assert_whole(store)
    return process.returncode == -signal.SIGKILL, complete


def test_a_run_killed_at_either_of_two_moments_ends_in_the_same_keep_list(folder, tmp_path, undisturbed):
    chance = random.Random(0)
    hits = []
    for part, after in enumerate((0, 7)):
        moment = chance.random() / 20
        home = tmp_path / str(part) / "store"
        hits.append(survives(folder, home, moment, undisturbed, after))
    assert any(was_running for was_running, _ in hits), "no kill came in time"
    stages = {len(complete) for _, complete in hits}
    assert len(stages) > 1, f"all kills hit one stage: {hits}"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_run_killed_at_a_random_moment_ends_in_the_same_keep_list(folder, tmp_path, undisturbed, part):
    moment = (part + random.Random(part).random()) / 10
    survives(folder, tmp_path / "store", moment, undisturbed)


@pytest.mark.slow
def test_one_store_survives_many_kills_in_a_row(folder, tmp_path, undisturbed):
    store = tmp_path / "store"
    (key, rows, reasons), seconds = undisturbed
    for part in range(5):
        process = start(folder, store)
        wait_for(store, process)
        time.sleep((0.5 + random.Random(part).random()) * max(seconds / 5, 1.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert_whole(store)
    finish(start(folder, store))
    assert keep_list(store)[:2] == (key, rows)
    assert keep_list(store)[2] == reasons


@pytest.mark.slow
def test_two_runs_of_one_thing_at_once_both_end_well(folder, tmp_path, undisturbed):
    store = tmp_path / "store"
    both = [start(folder, store) for _ in range(2)]
    for process in both:
        finish(process)
    assert keep_list(store)[:2] == undisturbed[0][:2]
    assert_whole(store)
    assert not list(store.glob(".tmp/*"))
    assert not list(store.glob(".partial/*"))
