"""A process that may open few files reads pools and sets of many shards."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_init import pairs, picture, write_tar

from dbp.data import pool as pools
from dbp.engine.store import Store
from dbp.pools.index import Index

SHARDS = 300

# What a user does with a pool, in one process; the shards lie in the folder of the first argument.
WORK = """
import resource, sys
from pathlib import Path
home = Path(sys.argv[1])
import torch, lightning, open_clip, sklearn, webdataset  # what is loaded keeps no file open
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np
from dbp.__main__ import main
from dbp.engine.store import Store
from dbp.lineage import open_keep_list, open_pool_of
from training.feed.data import read_pairs
from training.feed.subset import Subset
from evaluation.sets.data import open_set

made = [f"pool.shards={home}/pool/*.tar", "dedup=semdedup", "dedup.num_clusters=4", "select=dbp"]
made += ["cluster.num_clusters=4", "parts.rows_per_part=2", "budget.keep_fraction=0.8", "captioner=none"]
for use in ("cluster", "dedup", "score"):
    made += [f"encoder.{use}=precomputed", *(f"encoder.{use}.{side}={home}/v.npy" for side in ("images", "texts"))]
assert main(["curate", *made]) == 0
store = Store("store", "runs")
key = next(e.key for e in store.entries() if e.stage == "select")
for form in ("txt", "parquet", "decisions", "webdataset"):
    assert main(["export", f"keep={key}", f"format={form}", f"out={form}"]) == 0, form
entry, keep = open_keep_list(store, key)
pool = open_pool_of(store, entry)
subset = Subset.of(pool, keep)
rows = np.random.default_rng(0).permutation(subset.rows)
for batch in np.array_split(rows, 5):
    assert len(read_pairs(pool, batch).pictures) == len(batch)
for row in rows:
    pool.image(int(row))
opened = open_set(home / "set", kind="classification")
for row in np.random.default_rng(1).permutation(len(opened)):
    opened.read_picture(int(row))
print("done", len(rows), len(opened))
"""


def test_a_dropped_pool_closes_its_shards(tmp_path):
    for shard in range(9):
        write_tar(tmp_path / f"{shard}.tar", pairs(2, 10 * shard))
    node = Index(uid="key", caption="txt", max_pixels=10**7, shards=f"{tmp_path}/*.tar").node()

    def shards_open() -> int:
        links = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
        targets = [os.readlink(link) for link in links if link.is_symlink()]  # the listing itself is closed
        return sum(target.endswith(".tar") and target.startswith(str(tmp_path)) for target in targets)

    Store(tmp_path / "store").get(node)
    for _ in range(3):
        pool = Store(tmp_path / "store").get(node)
        assert len({pool.image_bytes(row) for row in range(pool.num_rows)}) == 18
        assert shards_open() == 9
        del pool
        gc.collect()
        assert shards_open() == 0


def test_a_pool_keeps_few_shards_open_and_reads_the_same(tmp_path):
    for shard in range(9):
        write_tar(tmp_path / f"{shard}.tar", pairs(2, 10 * shard))
    node = Index(uid="key", caption="txt", max_pixels=10**7, shards=f"{tmp_path}/*.tar").node()
    pool = Store(tmp_path / "store").get(node)
    there = [pool.image_bytes(row) for row in range(18)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "MOST_OPEN", 3)
        again = Store(tmp_path / "store").get(node)
        for row in np.random.default_rng(0).integers(0, 18, 200):
            assert again.image_bytes(int(row)) == there[row]
            assert len([number for number in again._handles if number >= 0]) <= 3


@pytest.mark.slow
def test_many_shards_are_curated_exported_trained_on_and_evaluated_with_256_open_files(tmp_path):
    for shard in range(SHARDS):
        write_tar(tmp_path / f"pool/{shard:05d}.tar", pairs(1, shard))
        write_tar(
            tmp_path / f"set/test/{shard}.tar", {f"s{shard:07d}": {"webp": picture(shard, "webp"), "cls": b"0"}}
        )
    (tmp_path / "set/classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "set/zeroshot_classification_templates.txt").write_text("a {c}\n")
    (tmp_path / "set/test/nshards.txt").write_text(f"{SHARDS}\n")
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(SHARDS, 8)).astype(np.float32))
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(tmp_path)],
        cwd=tmp_path / "home",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1].startswith("done 2")
