"""Long stages as job arrays on a real SLURM, one node of which is lost on the way."""

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbp.engine.runners import Slurm
from dbp.engine.store import Store
from dbp.errors import WorldError

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "unit"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # where tasks find the stages, too
graph: Any = importlib.import_module("identity_graph")
toys: Any = importlib.import_module("parted_toys")

pytestmark = pytest.mark.slow

SETTINGS = {"partition": "main", "timeout_min": 10, "cpus_per_task": 1, "poll_seconds": 0.5}
NUM_SHARDS, PER_SHARD, SIDE = 20, 50, 32
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def slurm(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let this process and what it starts know the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return cluster


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in 20 shards, one in ten nearly a copy, and the random weights of a small CLIP."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("slurm") / "pool"
    folder.mkdir()
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (NUM_SHARDS * PER_SHARD, 4, 4, 3), np.uint8)
    coarse[10::10] = coarse[9:-1:10]
    coarse[10::10, 0, 0, 0] ^= 8
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                out = io.BytesIO()
                Image.fromarray(coarse[row]).resize((SIDE, SIDE)).save(out, "PNG")
                for name, content in ((f"{row:05d}.png", out.getvalue()), (f"{row:05d}.txt", b"a")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    torch.manual_seed(0)
    model = open_clip.model.CLIP(CLIP["embed_dim"], CLIP["vision_cfg"], CLIP["text_cfg"])  # type: ignore[arg-type]
    torch.save(model.state_dict(), folder / "weights.pt")
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP))
    return folder


def settings(pool: Path, store: Path) -> list[str]:
    uses = [f"encoder.{use}.checkpoint={pool}/weights.pt" for use in ("dedup", "cluster", "score")]
    return [
        "pool=webdataset", f"pool.shards={pool}/*.tar", "encoder=local_clip", *uses, "parts.device=cpu",
        "dedup.epsilon=0.001", "dedup.num_clusters=12", "cluster.num_clusters=10",
        "budget.keep_fraction=0.4", f"paths.store={store}", f"paths.runs={store}-runs",
    ]  # fmt: skip


def lose_while_running(slurm: Any, node: str, stage: str, lost: list[int]) -> threading.Thread:
    """A thread that loses a node when it works at a stage, and brings it back three seconds later."""

    def watch() -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            running = slurm.call("squeue", "--noheader", f"--name=dbp-{stage}", "--states=RUNNING", "--format=%N")
            if node in running.split() and len(pids := slurm.processes(node)) > 2:
                time.sleep(1)
                slurm.lose(node)
                lost.extend(pids)
                time.sleep(3)
                slurm.revive(node)
                return
            time.sleep(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.nightly
def test_arrays_over_two_nodes_each_lost_once_make_the_keep_list_of_one_process(
    pool: Path, tmp_path: Path, slurm: Any
) -> None:
    reference = graph.curate(settings(pool, tmp_path / "here"), rows=4 * PER_SHARD)
    duplicates = [e.manifest["counts"]["duplicate"] for e in reference["store"].entries() if e.stage == "dedup"]
    assert 80 <= duplicates[0] <= 99, "as planted, but for those that the clusters part"

    on_slurm = [
        "parts=slurm", "parts.workers=2", "parts.slurm.partition=main", "parts.slurm.cpus_per_task=1",
        "parts.slurm.timeout_min=10", "parts.slurm.poll_seconds=0.5",
    ]  # fmt: skip
    said = settings(pool, tmp_path / "slurm")
    stores = [
        graph.open_store(graph.compose("curate", graph.overrides([*said, *more])), lambda line: None)
        for more in ([], on_slurm)
    ]
    config = graph.compose("curate", graph.overrides(said))
    node = graph.in_small_parts(graph.recipe(graph.read(config))["select"], rows=4 * PER_SHARD)
    lost: dict[str, list[int]] = {"embed": [], "similar": []}
    for one in node.lineage():
        if one.stage.name not in lost or stores[0].entry(one) is not None:
            stores[0].get(one)
            continue
        thread = lose_while_running(
            slurm, {"embed": "n1", "similar": "n2"}[one.stage.name], one.stage.name, lost[one.stage.name]
        )
        stores[1].get(one)
        thread.join()
    assert all(lost.values()), f"a node was lost at each of the two stages: {lost}"
    record = json.loads((stores[0].folder(node) / "keep.json").read_text())
    assert record["digest"] == reference["digest"]
    assert slurm.queue() == [], "no task is left"
    assert not list(stores[1].root.glob(".*/*"))


def test_a_partition_that_does_not_exist_is_named_with_the_setting(tmp_path: Path) -> None:
    runner = Slurm(2, SETTINGS | {"partition": "nosuch"})
    with pytest.raises(WorldError) as refusal:
        Store(tmp_path / "store", runner=runner).get(toys.Spell().bind(word=toys.Write("abc").bind()))
    said = str(refusal.value)
    assert said.startswith("SLURM took no jobs for spell: sbatch: error: invalid partition specified: nosuch")
    assert "Settings are under parts.slurm (partition=nosuch, timeout_min=10, cpus_per_task=1)" in said
    assert said.endswith("parts.runner=processes works on this machine.")


def test_a_task_that_always_fails_ends_after_its_rounds_with_the_last_line_of_its_log(
    tmp_path: Path, slurm: Any
) -> None:
    store = Store(tmp_path / "store", runner=Slurm(2, SETTINGS | {"rounds": 2}))
    with pytest.raises(WorldError) as failure:
        store.get(toys.Spell(act="fail", at=1).bind(word=toys.Write("abc").bind()))
    said = str(failure.value)
    assert said.startswith(
        "1 of 3 parts of spell were not made in 3 submissions, the first of them part-01. The last log "
        "says: ZeroDivisionError: the letter b cannot be doubled. The logs are in "
    )
    assert said.endswith("Finished parts are kept: the same command submits what is missing.")
    assert len(list(store.root.glob(".partial/*/part-*"))) == 2
    assert slurm.queue() == []
    assert store.get(toys.Spell().bind(word=toys.Write("abc").bind())).text == "aabbcc"


def test_more_tasks_than_an_array_may_have_go_into_several_arrays(tmp_path: Path, slurm: Any) -> None:
    word = "abcdefgh"
    runner = Slurm(2, SETTINGS | {"max_array": 3})
    store = Store(tmp_path / "store", runner=runner)
    assert store.get(toys.Spell().bind(word=toys.Write(word).bind())).text == "aabbccddeeffgghh"
    assert slurm.queue() == []


def drive(slurm: Any, tmp_path: Path, word: str) -> "subprocess.Popen[str]":
    """A process that has slow letters spelt by SLURM."""
    script = tmp_path / "drive.py"
    script.write_text(
        "import sys\n"
        f"sys.path.append({str(HERE.parent / 'unit')!r})\n"
        "from parted_toys import Spell, Write\n"
        "from dbp.engine.runners import Slurm\n"
        "from dbp.engine.store import Store\n"
        "node = Spell(act='wait', seconds=3.0).bind(word=Write(sys.argv[1]).bind())\n"
        f"print(Store(sys.argv[2], runner=Slurm(2, {SETTINGS!r})).get(node).text)\n"
    )
    process = subprocess.Popen(
        [sys.executable, script, word, tmp_path / "store"], env=os.environ | slurm.env,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not slurm.queue() and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    return process


def test_what_a_killed_driver_left_in_the_queue_is_waited_for_and_not_submitted_again(
    tmp_path: Path, slurm: Any
) -> None:
    killed = drive(slurm, tmp_path, "abcdef")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert slurm.queue(), "the tasks are still there"
    next_one = drive(slurm, tmp_path, "abcdef")
    time.sleep(1)
    (logs,) = (tmp_path / "store").glob(".partial/*/slurm")
    assert len(list(logs.glob("*_submission.sh"))) == 1
    said, trouble = next_one.communicate(timeout=300)
    assert said.strip() == "aabbccddeeff", trouble
    assert slurm.queue() == []


def test_an_interrupted_driver_takes_its_tasks_out_of_the_queue(tmp_path: Path, slurm: Any) -> None:
    driver = drive(slurm, tmp_path, "abcdef")
    time.sleep(1)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    until = time.monotonic() + 30
    while slurm.queue() and time.monotonic() < until:
        time.sleep(0.2)
    assert slurm.queue() == []
