"""A small pool and a small ViT for tests that start `dbp train` as a user does, and disturb it."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_SHARDS, PER_SHARD, BATCH, STEPS = 4, 60, 16, 90
VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_pool(folder: Path) -> None:
    """240 pairs of noise, and the model's config."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                out = io.BytesIO()
                pixels = chance.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(out, "PNG")
                caption = f"sample number {row}".encode()
                for name, content in ((f"{row:05d}.png", out.getvalue()), (f"{row:05d}.txt", caption)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (folder / "vit.json").write_text(json.dumps(VIT))


def arguments(pool: Path, home: Path, *more: str) -> list[str]:
    """`dbp train` on 120 kept pairs: 90 steps of 16 pairs, 12 passes."""
    return [
        "-m", "dbp", "train", "pool=webdataset", f"pool.shards={pool}/*.tar", "dedup=none",
        "select=uniform", "budget=of_pool", "budget.keep_fraction=0.5", "model.name=null",
        f"model.config={pool}/vit.json", "train=glyphs", f"train.samples_seen={BATCH * STEPS}",
        f"train.batch_size={BATCH}", "train.cache=false", "train.device=cpu",
        f"train.log_every_samples={BATCH}", f"train.checkpoint_every_samples={4 * BATCH}",
        f"paths.store={home}/store", f"paths.runs={home}/runs", *more,
    ]  # fmt: skip


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """Begin a run in a session of its own, so that nothing outlives a kill."""
    return subprocess.Popen(
        [sys.executable, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    """All that a process said; it must end with this status."""
    said, _ = process.communicate(timeout=600)
    assert process.returncode == status, said
    return said


def last_step(home: Path) -> int:
    """The last step that the record of the unfinished run tells of."""
    for metrics in home.glob("runs/.partial/train-*/metrics.jsonl"):
        with contextlib.suppress(OSError, IndexError, ValueError, KeyError):
            return json.loads(metrics.read_text().splitlines()[-1])["step"]
    return 0


def wait_for_step(home: Path, step: int, is_over: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until the record of the unfinished run tells of a step."""
    until = time.monotonic() + seconds
    while last_step(home) < step:
        assert not is_over(), "it ended before"
        assert time.monotonic() < until, f"step {step} was not reached in {seconds:.0f} s"
        time.sleep(0.005)


def manifest(home: Path) -> dict[str, Any]:
    """What the one finished run left."""
    (found,) = home.glob("runs/train/*/manifest.json")
    return json.loads(found.read_text()) | {"folder": found.parent}
