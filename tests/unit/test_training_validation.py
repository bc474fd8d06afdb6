"""Evaluations on the way: they equal the final ones, for any number of ranks, and change nothing."""

import copy
import io
import json
import math
import random
import tarfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluating import evaluate_one
from lightning.pytorch import LightningModule, Trainer
from miniature import write_classification, write_retrieval, write_set
from PIL import Image
from torch import nn
from torch.nn.functional import normalize
from torchvision.transforms.functional import pil_to_tensor

from dbp.config import build
from dbp.data.pool import Pool
from dbp.engine.store import Store
from dbp.errors import ConfigError
from dbp.pools.index import Index
from evaluation.in_training import SharedTowers, Suite
from evaluation.running.encode import Towers, encode_pictures
from evaluation.sets.data import open_set
from training.account.horizon import Horizon
from training.feed.subset import held_out_rows, is_held_out
from training.resume.ranks import Ranks
from training.watching.held_out import HeldOutLoss, num_hits
from training.watching.validation import Validation, observing
from training.watching.watch import Evaluator, HeldOut, Watch
from training.watching.watched import Measure, Watched

NUM_ROWS, BROKEN = 60, 7


class TinyClip(nn.Module):
    """Mean colours of a 4 x 4 picture and counts of letters, with what training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(48, 8, bias=False), nn.Linear(128, 8, bias=False)
        generator = torch.Generator().manual_seed(0)
        for weight in (self.image.weight, self.text.weight):
            nn.init.normal_(weight, generator=generator)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.context_length = 128

    def encode_image(self, pictures: Any, normalize: bool = False) -> Any:
        return unit(self.drop(self.norm(self.image(pictures.flatten(1)))), normalize)

    def encode_text(self, tokens: Any, normalize: bool = False) -> Any:
        return unit(self.drop(self.text(tokens.float())), normalize)


def unit(vectors: Any, wanted: bool) -> Any:
    return normalize(vectors, dim=-1) if wanted else vectors


def preprocess(picture: Any) -> Any:
    return pil_to_tensor(picture.resize((4, 4))).float() / 255


def tokenizer(texts: Sequence[str]) -> Any:
    return torch.from_numpy(np.stack([np.bincount([*t.encode()], minlength=128) for t in texts]))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """60 pairs; the picture of row 7 has a sound header and no pixels."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for row in range(NUM_ROWS):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(content, "png")
            picture = content.getvalue()[:100] if row == BROKEN else content.getvalue()
            words = "".join(rng.choice(list("abcdefgh"), 12))
            for name, member in (("png", picture), ("txt", words.encode())):
                info = tarfile.TarInfo(f"{row:05d}.{name}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    index = Index(uid="key", caption="txt", max_pixels=10**8, shards=[str(folder / "00000.tar")])
    return Store(folder / "store").get(index.bind(folder=None))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for key, classes, num in (("mnist", "abcdef", 50), ("stl10", "xyz", 37)):
        write_classification(folder / f"wds_{key}_test", class_names=list(classes), num_samples=num, seed=1, size=6)
    captions = [[f"caption {i} {j}" for j in range(1 + i % 3)] for i in range(40)]
    write_retrieval(
        folder / "wds_retrieval-flickr_1k_test_image_text_retrieval_test", captions=captions, seed=2, size=6
    )
    return folder


def a_run(pool: Pool, folder: Path, held_out: float = 0.0, **changes: Any) -> Watched:
    given = {"model": TinyClip().eval().requires_grad_(False), "ranks": Ranks()} | changes
    return Watched(
        preprocess=preprocess, tokenizer=tokenizer, device="cpu", pool=pool, held_out=held_out,
        folder=folder, **given,
    )  # fmt: skip


class Meeting:
    """Ranks as threads of this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.values: list[Any] = [None] * size

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait(timeout=30)
        found = list(self.values)
        self.barrier.wait(timeout=30)
        return found

    def all(self, make: Callable[[Ranks], Any]) -> list[Any]:
        """What each rank makes."""
        found: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            found[rank] = make(ThreadRank(rank, self.size, rank, meeting=self))

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


@dataclass
class ThreadRank(Ranks):
    meeting: Any = None

    def gather(self, value: Any) -> list[Any]:
        return self.meeting.gather(self.rank, value)


class Tiny(LightningModule):
    """A training step whose dropout draws from torch's global state."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyClip().train()
        self.model.text.eval()  # a part that is frozen in its mode

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, tokens = batch
        scores = self.model.encode_image(images, True) @ self.model.encode_text(tokens, True).T
        return nn.functional.cross_entropy(scores, torch.arange(len(images)))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def train(run: Watched, watch: Watch | None, steps: int = 6, **settings: Any) -> tuple[Tiny, list]:
    """Six steps of 8 pairs, from one state of torch's generator."""
    torch.manual_seed(5)
    module, rows = Tiny(), []
    batches = [(torch.rand(8, 3, 4, 4), torch.randint(0, 3, (8, 128))) for _ in range(steps)]
    callbacks: list[Any] = []
    if watch is not None:
        run = Watched(**{**vars(run), "model": module.model})
        callbacks = [Validation(watch, run, Horizon(64, 8, steps), [rows.append], **settings)]
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return module, rows


@dataclass(frozen=True)
class Norm(Evaluator):
    """Draws from every generator, and says the norm of a weight."""

    def titles(self) -> list[str]:
        return ["norm"]

    def open(self, run: Watched) -> Measure:
        def measure() -> dict[str, float]:
            assert not any(part.training for part in run.model.modules())
            assert not torch.is_grad_enabled()
            torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
            return {"norm/image": float(run.model.image.weight.norm())}

        return measure


def test_watching_changes_no_bit_of_the_weights(pool: Pool, root: Path, tmp_path: Path) -> None:
    suite = Suite("mnist", str(root), "corrected", None, 0, "fp32")
    watch = Watch(16, (Norm(), HeldOut(8, 16), suite))
    run = a_run(pool, tmp_path, held_out=0.5)
    watched, rows = train(run, watch)
    alone, _ = train(run, None)
    assert [row["samples_seen"] for row in rows] == [16, 32, 48]
    assert rows[0]["norm/image"] != rows[1]["norm/image"]
    for name, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name
    assert watched.model.training
    assert not watched.model.text.training


@pytest.mark.parametrize(("every", "marks"), [(16, [16, 32, 48]), (20, [24, 48]), (32, [32, 48]), (None, [48])])
def test_rows_stand_at_the_marks_and_at_the_end(
    pool: Pool, tmp_path: Path, every: int | None, marks: list[int]
) -> None:
    checked: list[int] = []
    watch = Watch(every, (Norm(),))
    _, rows = train(a_run(pool, tmp_path), watch, check=lambda: checked.append(1))
    assert [row["samples_seen"] for row in rows] == marks
    assert [row["step"] * 8 for row in rows] == marks
    assert len(checked) == len(marks)  # a run that diverged stops before it is measured
    assert train(a_run(pool, tmp_path), Watch(every, ()))[1] == []


class TrainerAt(Trainer):
    """A trainer that stands at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    @property
    def global_step(self) -> int:
        return self.step


def test_a_resumed_run_makes_up_for_the_row_at_its_checkpoint(pool: Pool, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    past = [{"samples_seen": 16, "norm/image": 1.0}]
    for step, first, expected in ((4, past, [32]), (2, past, []), (3, past, []), (0, [], [])):
        rows.clear()
        validation = Validation(
            Watch(16, (Norm(),)), a_run(pool, tmp_path), Horizon(64, 8, 6), [rows.append], first
        )
        validation.on_train_start(TrainerAt(step), Tiny())
        assert [row["samples_seen"] for row in rows] == expected


def test_only_the_first_rank_writes_and_it_says_what_is_done(pool: Pool, tmp_path: Path) -> None:
    def measure(ranks: Ranks) -> tuple[set[int], list[Any]]:
        rows: list[Any] = []
        past = [{"samples_seen": 16}] if ranks.is_first else []
        run = a_run(pool, tmp_path, ranks=ranks)
        validation = Validation(Watch(16, (Norm(),)), run, Horizon(64, 8, 6), [rows.append], past)
        assert validation.done == {16}
        for step in (2, 4):
            validation.on_train_start(TrainerAt(step), Tiny())
        return validation.done, [row["samples_seen"] for row in rows]

    assert Meeting(2).all(measure) == [({16, 32}, [32]), ({16, 32}, [])]


def test_observing_leaves_every_generator_and_flag_as_it_was() -> None:
    model = TinyClip().train()
    model.norm.eval()
    torch.set_float32_matmul_precision("high")
    try:
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        with observing(model, "cpu"):
            assert not model.training
            assert torch.get_float32_matmul_precision() == "highest"
            torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
        assert random.getstate() == states[2]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)


FLICKR = "retrieval/flickr_1k_test_image_text_retrieval"


def test_the_suite_s_numbers_are_those_of_the_final_evaluation(pool: Pool, root: Path, tmp_path: Path) -> None:
    tasks = f"mnist,stl10,{FLICKR}"
    for limit, protocol in ((None, "corrected"), (20, "datacomp")):
        model = TinyClip().eval()
        final = evaluate_one(
            model, preprocess, tokenizer, tasks, root, batch_size=16, seed=3, limit=limit,
            protocols=(protocol,),
        )  # fmt: skip
        suite = Suite(tasks, str(root), protocol, limit, 3, "fp32", batch_size=16)
        found = suite.open(a_run(pool, tmp_path, model=model))()
        expected = {
            f"{result.task}/{name}": value
            for result in final
            for name, value in result.metrics.items()
            if value is not None
        }
        assert found == expected
        assert len(found) == 3 + 2 + 7 + (5 if protocol == "corrected" else 0)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_work_and_get_the_numbers_of_one(pool: Pool, root: Path, tmp_path: Path, size: int) -> None:
    suite = Suite(f"mnist,{FLICKR}", str(root), "corrected", None, 0, "fp32", batch_size=16)
    for evaluator in (suite, HeldOut(4, 24)):
        alone = evaluator.open(a_run(pool, tmp_path, 0.5))()

        def measure(ranks: Ranks, evaluator: Evaluator = evaluator) -> dict[str, float]:
            return evaluator.open(a_run(pool, tmp_path, 0.5, ranks=ranks))()

        assert Meeting(size).all(measure) == [alone] * size


def test_shared_vectors_have_the_bits_of_a_single_rank_and_each_is_made_once(root: Path) -> None:
    opened = open_set(root / "wds_mnist_test", kind="classification")
    rows, texts = list(range(len(opened))), [f"text {i % 70}" for i in range(100)]
    alone = Towers(TinyClip().eval(), preprocess, tokenizer, batch_size=8, text_batch_size=16)
    decoded: list[int] = []

    def counted(picture: Any) -> Any:
        decoded.append(1)
        return preprocess(picture)

    def encode(ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
        again = open_set(root / "wds_mnist_test", kind="classification")
        shared = SharedTowers(
            copy.deepcopy(alone.model), counted, tokenizer, batch_size=8, text_batch_size=16,
            ranks=ranks,
        )  # fmt: skip
        return shared.encode_set(again, rows), shared.encode_texts(texts)

    pictures = encode_pictures(alone, opened, rows)
    for found in Meeting(3).all(encode):
        assert np.array_equal(found[0], pictures)
        assert np.array_equal(found[1], alone.encode_texts(texts))
    assert len(decoded) == len(rows)


def test_a_broken_picture_leaves_its_task_out_on_all_ranks_and_training_goes_on(
    pool: Pool, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wds_mnist_test").symlink_to(root / "wds_mnist_test")
    samples = [{"png": b"no picture", "cls": b"0"}]
    write_set(tmp_path / "wds_stl10_test", samples, class_names=["a"], templates=["{c}"])
    suite = Suite("mnist,stl10", str(tmp_path), "corrected", None, 0, "fp32", batch_size=16)
    found = Meeting(2).all(lambda ranks: suite.open(a_run(pool, tmp_path, ranks=ranks))())
    assert found[0] == found[1]
    assert {name.split("/")[0] for name in found[0]} == {"mnist"}
    assert caplog.text.count("no stl10 this time: 1 of 1 pictures cannot be read") == 1


def test_a_missing_set_is_named_at_the_start(
    pool: Pool, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = a_run(pool, tmp_path)
    Suite("mnist,cifar10,wilds/fmow", str(root), "corrected", None, 0, "fp32").open(run)
    assert "leaves out cifar10: There is no set of CIFAR-10" in caplog.text
    assert "leaves out wilds/fmow: There is no set of FMoW" in caplog.text
    with pytest.raises(ConfigError, match=r"no task of it can be evaluated in .*There is no set"):
        Suite("cifar10", str(root), "corrected", None, 0, "fp32").open(run)
    with pytest.raises(ConfigError, match=r"root is not set, and train\.watch evaluates a suite"):
        Suite("mnist", None, "corrected", None, 0, "fp32").open(run)


def test_held_out_rows_are_a_share_of_the_uids_and_of_nothing_else(pool: Pool) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    held = is_held_out(hashes, 0.02)
    assert abs(held.mean() - 0.02) < 4 * math.sqrt(0.02 * 0.98 / 100_000)
    assert np.array_equal(held[500:900], is_held_out(hashes[500:900], 0.02))
    assert not is_held_out(hashes, 0.0).any()
    assert (is_held_out(hashes, 0.03) >= held).all()  # a larger share holds the smaller one
    rows = held_out_rows(pool, 0.5)
    assert np.array_equal(np.sort(rows), np.flatnonzero(is_held_out(pool.uid_hashes, 0.5)))
    assert not np.array_equal(rows, np.sort(rows))
    assert held_out_rows(pool, 0.9)[: len(rows)].tolist() == rows.tolist()


def test_the_held_out_loss_is_the_mean_over_pairs_of_fixed_batches(pool: Pool, tmp_path: Path) -> None:
    run = a_run(pool, tmp_path, 0.9)
    batches = np.array([[3, 9, 12, BROKEN], [20, 21, 22, 23]])
    found = HeldOutLoss(run, batches, 0)()
    losses, hits = [], np.zeros(2)
    for rows in ([3, 9, 12], [20, 21, 22, 23]):  # worked again, in float64
        pictures = torch.stack([preprocess(pool.image(row)) for row in rows])
        with torch.no_grad():
            images = run.model.encode_image(pictures, True).double().numpy()
            texts = run.model.encode_text(tokenizer(pool.captions(np.array(rows))), True)
        scores = images @ texts.double().numpy().T
        for at, s in enumerate((scores, scores.T)):
            p = np.exp(s * math.exp(2.0))
            losses += list(-np.log(np.diag(p) / p.sum(axis=1)))
            hits[at] += (s.argmax(axis=1) == np.arange(len(s))).sum()
    assert found["held_out/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["held_out/image_to_text_recall@1"] == hits[0] / 7
    assert found["held_out/text_to_image_recall@1"] == hits[1] / 7
    assert found["held_out/pairs"] == 7
    assert HeldOutLoss(run, batches, 2)() == found


def test_a_tie_is_a_hit_for_the_earlier_item_alone() -> None:
    assert num_hits(np.array([[1.0, 1.0], [1.0, 1.0]])) == 1
    assert num_hits(np.array([[0.2, 0.1], [0.3, 0.4]])) == 2


def test_a_held_out_loss_without_pairs_is_refused_at_the_start(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.held_out=0, and a HeldOut evaluator"):
        HeldOut(8, 16).open(a_run(pool, tmp_path))
    with pytest.raises(ConfigError, match=r"held_out=0\.01 of 60 rows is less than one batch of 8"):
        HeldOut(8, 16).open(a_run(pool, tmp_path, 0.01))


def test_evaluators_are_named_in_the_config_and_checked() -> None:
    node = {
        "_target_": "training.watching.watch.Watch",
        "every_samples": 100,
        "evaluators": [
            {"_target_": "training.watching.watch.HeldOut", "batch_size": 8, "num_samples": 16},
            {"_target_": "evaluation.in_training.Suite", "suite": "mnist", "root": None,
             "protocol": "corrected", "limit": None, "seed": 0, "precision": "fp32"},
        ],
    }  # fmt: skip
    assert build(node, Watch).evaluators[0] == HeldOut(8, 16)
    node["evaluators"].append(copy.deepcopy(node["evaluators"][1]))
    with pytest.raises(ConfigError, match="mnist would be measured twice under one name"):
        build(node, Watch)
    with pytest.raises(ConfigError, match="every_samples=0: it must be above 0"):
        Watch(0, ())


def test_rendered_glyphs_are_made_once_by_the_first_rank(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    rendered = []

    def render(plan: Any, folder: Path) -> None:
        rendered.append(plan)
        folder.mkdir()
        for name in ("wds_mnist_test", "wds_stl10_test"):
            (folder / name).symlink_to(root / name)

    monkeypatch.setattr("dbp.pools.glyph_tasks.render_tasks", render)
    suite = Suite("mnist", "glyphs", "corrected", 10, 0, "fp32")
    found = Meeting(2).all(lambda ranks: suite.open(a_run(pool, tmp_path, ranks=ranks))())
    again = suite.open(a_run(pool, tmp_path))()
    assert found == [again, again]
    assert len(rendered) == 1
    assert json.dumps(again)
    assert not list(tmp_path.glob(".glyphs*"))
