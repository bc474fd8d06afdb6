"""Several processes that train one model: the gradient, the order and the weights of one process."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.append(str(HERE))
runs: Any = importlib.import_module("training_runs")


def launch(ranks: int, *command: object, **environment: str) -> str:
    """Start processes as a user does, with torchrun; all output."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), *map(str, command)],
        capture_output=True, text=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def worst(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Largest difference of a parameter's gradient, relative to its largest entry."""
    assert some.keys() == others.keys()
    return max(
        float((some[n] - others[n]).abs().max() / others[n].abs().max())
        for n in some
        if others[n].abs().max() > 1e-7  # a bias before a softmax has no gradient but rounding
    )


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    script = HERE / "rank_step.py"
    launch(1, script, tmp_path)
    launch(2, script, tmp_path)
    launch(2, script, tmp_path, 3)  # 8 pairs a rank, in chunks of 3, 3 and 2
    one = torch.load(tmp_path / "1-None.pt")["gradients"]
    for name in ("2-None.pt", "2-3.pt"):
        two = torch.load(tmp_path / name)
        assert two["equal"]  # both ranks hold the same weights after three steps
        assert worst(two["gradients"][0], one[0]) < 1e-5
        # Later steps start from weights that differ by rounding, which AdamW enlarges.
        assert all(worst(two["gradients"][i], one[i]) < 1e-2 for i in (1, 2))


# the command line


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "pool"
    runs.write_pool(folder)
    return folder


def torchrun(pool: Path, home: Path, *more: str, ranks: int = 2) -> list[str]:
    """The command of several ranks on this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return launcher + runs.arguments(pool, home, *more)


@pytest.mark.slow
def test_two_ranks_train_one_model_and_leave_together_when_one_is_asked_to(pool: Path, tmp_path: Path) -> None:
    homes = {name: tmp_path / name for name in ("one", "two")}
    runs.finish(runs.start(runs.arguments(pool, homes["one"])))
    cut = "train.trim_captions=true"  # the lengths of the ranks' captions differ
    process = runs.start(torchrun(pool, homes["two"], cut))
    runs.wait_for_step(homes["two"], 20, lambda: process.poll() is not None)
    # One rank alone gets the signal, and it is not the first one.
    os.kill(rank_process(process.pid, 1), signal.SIGUSR1)
    said = " ".join(runs.finish(process, 1).split())
    assert "training left after step" in said
    assert len(list(homes["two"].glob("runs/.partial/train-*/checkpoint-*.ckpt"))) == 2
    said = runs.finish(runs.start(torchrun(pool, homes["two"], cut, "train.num_workers=1")))
    assert "going on after step" in said
    assert said.count("trained ") == 1  # the first rank alone tells the result
    same_up_to_rounding(homes["two"], homes["one"])
    assert runs.manifest(homes["two"])["counts"]["num_devices"] == 2
    # A checkpoint of two ranks is one of any number: the run is complete, so nothing is trained.
    assert "0 made" in runs.finish(runs.start(torchrun(pool, homes["two"])))


def rank_process(parent: int, rank: int) -> int:
    """The process of a rank, below torchrun's own."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            is_child = (folder / "stat").read_text().rsplit(")")[-1].split()[1] == str(parent)
            if is_child and f"RANK={rank}".encode() in variables:
                return int(folder.name)
    raise AssertionError(f"no process of rank {rank} below {parent}")


def same_up_to_rounding(some: Path, other: Path) -> None:
    """Equal samples in equal order, and weights that differ as sums of another order do."""
    one, two = runs.manifest(some), runs.manifest(other)
    assert one["key"] == two["key"]
    assert one["counts"]["consumed"] == two["counts"]["consumed"]
    weights = [torch.load(m["folder"] / "weights.pt", weights_only=True)["state_dict"] for m in (one, two)]
    start = float(weights[0]["visual.proj"].abs().max())
    for name in weights[0]:
        assert float((weights[0][name] - weights[1][name]).abs().max()) < 2e-2 * max(start, 1)
    losses = [json.loads(line)["loss"] for line in (one["folder"] / "metrics.jsonl").open()]
    others = [json.loads(line)["loss"] for line in (two["folder"] / "metrics.jsonl").open()]
    assert len(losses) == len(others) == runs.STEPS
    assert losses[:5] == pytest.approx(others[:5], rel=1e-4)
    assert losses[-1] == pytest.approx(others[-1], rel=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", pytest.param("softmax", marks=pytest.mark.nightly)])
def test_two_ranks_choose_what_one_chooses_and_share_it(pool: Path, tmp_path: Path, loss: str) -> None:
    more = [
        "online=jest", "online.filter_ratio=0.5", "online.chunks=4", f"online.loss={loss}", "train.score_batch=3",
        "encoder.score.model=null", f"encoder.score.config={pool}/vit.json", "encoder.score.pretrained=null",
        "encoder.score.random_weights=true", f"train.samples_seen={20 * runs.BATCH}",
    ]  # fmt: skip
    homes = {name: tmp_path / name for name in ("one", "two")}
    runs.finish(runs.start(runs.arguments(pool, homes["one"], *more)))
    runs.finish(runs.start(torchrun(pool, homes["two"], *more, "train.trim_captions=true")))
    one, two = (runs.manifest(home) for home in homes.values())
    assert one["key"] == two["key"]
    rows = [list(map(json.loads, (made["folder"] / "metrics.jsonl").open())) for made in (one, two)]
    for mine, theirs in zip(rows[0][:6], rows[1][:6], strict=True):  # later, last bits may turn a choice
        assert mine["consumed"] == theirs["consumed"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    for name in ("candidates", "samples_decoded", "samples_scored", "scoring_flops", "samples_seen"):
        assert one["counts"][name] == two["counts"][name]
    assert one["counts"]["samples_scored"] == 2 * 20 * runs.BATCH


@pytest.mark.slow
def test_a_rank_whose_first_rank_cannot_curate_says_so(pool: Path, tmp_path: Path) -> None:
    wrong = torchrun(pool, tmp_path, "pool.shards=/nowhere/00000.tar")
    said = " ".join(runs.finish(runs.start(wrong), 1).split())
    # torchrun may end the other rank before it has said its line.
    assert "rank 1 of 2 stops: the first rank stopped" in said or "SIGTERM" in said
    assert "/nowhere/00000.tar" in said


@pytest.mark.slow
def test_a_batch_that_ranks_cannot_share_is_refused(pool: Path, tmp_path: Path) -> None:
    said = " ".join(runs.finish(runs.start(torchrun(pool, tmp_path, ranks=3)), 1).split())
    assert "train.batch_size=16 cannot be split evenly over 3 processes" in said
