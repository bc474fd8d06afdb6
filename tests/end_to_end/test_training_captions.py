"""Several captions of an image, through kills, ranks, streaming and evaluation on the way: the same captions."""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.append(str(HERE))
runs: Any = importlib.import_module("training_runs")

pytestmark = pytest.mark.slow
ALONE, SEVERAL = "original alone", "several captions"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pool, and beside it three captions for two of three samples."""
    folder = tmp_path_factory.mktemp("captions") / "pool"
    runs.write_pool(folder)
    rows = [row for row in range(runs.NUM_SHARDS * runs.PER_SHARD) if row % 3]
    texts = [[f"{word} {row} of these" for word in ("image", "picture", "photo of number")] for row in rows]
    pq.write_table(pa.table({"uid": [f"{row:05d}" for row in rows], "texts": texts}), folder / "texts.parquet")
    return folder


def command(pool: Path, home: Path, *more: str, pick: str = "random") -> list[str]:
    mixed = ["caption=column", f"caption.column=file:{pool}/texts.parquet:texts", f"caption.pick={pick}"]
    mixed += ["caption.rule=alternate", "caption.ratio=0.8", "watch=held_out", "train.held_out=0.1"]
    held_out = "{_target_: training.watching.watch.HeldOut, batch_size: 8, num_samples: 16, num_workers: 0}"
    mixed += [f"watch.evaluators=[{held_out}]", "watch.every_samples=240"]
    return runs.arguments(pool, home, *mixed, "train.samples_seen=720", *more)


@pytest.fixture(scope="module")
def undisturbed(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("undisturbed")
    said = runs.finish(runs.start(command(pool, home, "train.num_workers=0")))
    found = runs.manifest(home)
    counts = found["counts"]
    assert counts[ALONE] + counts[SEVERAL] == counts["kept"] < 120
    assert f"{counts[ALONE]} of {counts['kept']} kept rows" in " ".join(said.split())
    return found


def test_a_killed_run_goes_on_with_the_captions_that_it_would_have_had(
    pool: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    process = runs.start(command(pool, tmp_path, "train.num_workers=2"))
    runs.wait_for_step(tmp_path, 20, lambda: process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    runs.finish(process, -signal.SIGKILL)
    assert "going on after step" in runs.finish(runs.start(command(pool, tmp_path, "train.num_workers=1")))
    resumed = runs.manifest(tmp_path)
    assert (resumed["key"], resumed["digest"]) == (undisturbed["key"], undisturbed["digest"])
    assert resumed["counts"][ALONE] == undisturbed["counts"][ALONE]


def losses(manifest: dict[str, Any]) -> list[float]:
    lines = (manifest["folder"] / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_two_ranks_and_captions_that_are_cut_change_last_bits_alone(
    pool: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    runs.finish(runs.start(launcher + command(pool, tmp_path, "train.trim_captions=true")))
    found = runs.manifest(tmp_path)
    assert found["key"] == undisturbed["key"]
    assert found["counts"]["consumed"] == undisturbed["counts"]["consumed"]
    assert found["counts"][ALONE] == undisturbed["counts"][ALONE]
    assert losses(found)[:10] == pytest.approx(losses(undisturbed)[:10], rel=1e-4)


def test_a_streamed_pool_gives_the_same_captions(pool: Path, tmp_path: Path) -> None:
    found = []
    for name, shards in (
        ("local", f"{pool}/{{00000..00003}}.tar"),
        ("piped", f"pipe:cat {pool}/{{00000..00003}}.tar"),
    ):
        streaming = [
            "streaming=cache",
            "streaming.window_shards=2",
            "streaming.cache_gigabytes=1",
            f"streaming.folder={tmp_path}/cache-{name}",
        ]
        made = command(pool, tmp_path / name, f"pool.shards='{shards}'", *streaming, pick="in_turn")
        runs.finish(runs.start(made))
        found.append(runs.manifest(tmp_path / name))
    assert found[0]["digest"] == found[1]["digest"]
