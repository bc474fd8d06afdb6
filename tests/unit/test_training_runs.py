"""Whole runs on a small pool: what is read, what is made, what a resume changes (nothing)."""

import io
import json
import logging
import resource
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from dbp.data.keep_list import KeepList, everything
from dbp.data.pool import Pool
from dbp.engine.stage import Node, Stage
from dbp.engine.store import Store
from dbp.engine.work import Work
from dbp.errors import ConfigError, PoolError, StoreError
from dbp.pools.index import Index
from training.account.horizon import Horizon
from training.account.metrics import Csv, Logger, Wandb, read_metrics
from training.config import Model, Optimiser
from training.feed.augmentation import RandomResizedCrop, Shift
from training.feed.data import Pairs, make_loader
from training.feed.order import Batches, Order, Slice
from training.feed.subset import Subset
from training.resume.checkpoint import Checkpoint
from training.stage import Train

NUM_ROWS, BROKEN = 40, 7
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
OPTIMISER = Optimiser(1e-3, 0.9, 0.98, 1e-6, 0.2, "openclip3", "cosine", 24)
TRAIN = Train(
    model=Model(config=TINY), batch_size=8, optimiser=OPTIMISER, augmentation=Shift(2), seed=3,
    precision="fp32", samples_seen=80, device="cpu", log_every_samples=16,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pairs; the picture of row 7 has a sound header and no pixels."""
    path = tmp_path_factory.mktemp("pool") / "00000.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for row in range(NUM_ROWS):
            content = io.BytesIO()
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(content, "png")
            picture = content.getvalue()[:100] if row == BROKEN else content.getvalue()
            for name, member in (("png", picture), ("txt", f"letter number {row}".encode())):
                info = tarfile.TarInfo(f"{row:05d}.{name}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    return path


@dataclass(frozen=True)
class Chosen(Stage):
    """A keep list of given rows; all when none are given."""

    name: ClassVar[str] = "chosen"
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = KeepList

    rows: tuple[int, ...] = ()
    times: tuple[int, ...] = ()  # how often each is taken; () for once

    def run(self, work: Work, pool: Pool) -> dict[str, Any]:
        every = everything(pool.digest, pool.is_valid)
        keep = np.isin(every.rows, self.rows) if self.rows else np.ones(every.num_kept, bool)
        kept = every.narrow("chosen", keep, "not chosen", "chosen")
        (kept.weighted(np.array(self.times)) if self.times else kept).save(work.folder)
        return {}


class World:
    """A store with the pool in it."""

    def __init__(self, root: Path, shard: Path) -> None:
        self.store = Store(root / "store")
        index = Index(uid="key", caption="txt", max_pixels=10**8, shards=[str(shard)])
        self.pool = index.bind(folder=None)

    def keep(self, rows: tuple[int, ...] = ()) -> Node:
        return Chosen(rows).bind(pool=self.pool)

    def train(self, stage: Train, rows: tuple[int, ...] = ()) -> Checkpoint:
        return self.store.get(stage.bind(pool=self.pool, keep=self.keep(rows)))

    def pairs(self, augmentation: Any = None, cache: bool = False, rows: tuple[int, ...] = ()) -> Pairs:
        import open_clip

        subset = Subset.of(self.store.get(self.pool), self.store.get(self.keep(rows)))
        tokenizer = open_clip.SimpleTokenizer(context_length=16)
        return Pairs(subset, augmentation or Shift(2), 32, tokenizer, 0, cache)

    def manifest(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return json.loads((checkpoint.folder / "manifest.json").read_text())


@pytest.fixture
def world(tmp_path: Path, shard: Path) -> World:
    return World(tmp_path, shard)


def batches(pairs: Pairs, steps: int = 10, num_workers: int = 0) -> list[dict[str, torch.Tensor]]:
    sampler = Batches(Order(pairs.subset.keys, 0), Horizon(len(pairs), 8, steps))
    return list(make_loader(pairs, sampler, num_workers))


@pytest.mark.parametrize("augmentation", [Shift(2), RandomResizedCrop(0.9, 1.0)])
def test_batches_do_not_depend_on_workers_or_cache(world: World, augmentation: Any) -> None:
    alone = batches(world.pairs(augmentation))
    others = [batches(world.pairs(augmentation), num_workers=2)]
    if not augmentation.is_fit_random:
        others += [batches(world.pairs(augmentation, cache=True), num_workers=w) for w in (0, 2)]
    for other in others:
        for one, same in zip(alone, other, strict=True):
            assert one.keys() == same.keys()
            assert all(torch.equal(one[name], same[name]) for name in one)


def test_a_run_over_draws_counts_them_and_each_copy_is_a_sample_seen(world: World) -> None:
    times = (1, 3, 2, 5, 1, 8, 4, 16)
    keep = Chosen((0, 1, 2, 3, 4, 5, 8, 9), times).bind(pool=world.pool)
    checkpoint = world.store.get(TRAIN.bind(pool=world.pool, keep=keep))
    counts = world.manifest(checkpoint)["counts"]
    expected = {
        "kept": 8, "draws": 40.0, "most_draws_of_a_sample": 16.0, "samples_seen": 80, "passes": 2.0,
        "unique_samples": 8,
    }  # fmt: skip
    assert {name: counts[name] for name in expected} == expected


def test_global_batches_are_the_same_for_any_ranks_and_workers(world: World) -> None:
    pairs = world.pairs(RandomResizedCrop(0.9, 1.0))
    order, horizon = Order(pairs.subset.keys, 0), Horizon(len(pairs), 8, 10)

    def fed(ranks: int, num_workers: int) -> dict[str, torch.Tensor]:
        """What all ranks take, step by step, put together in rank order."""
        loaders = [
            make_loader(pairs, Batches(order, horizon, 0, rank, ranks), num_workers) for rank in range(ranks)
        ]
        steps = [[batch[name] for batch in step] for step in zip(*loaders, strict=True)
                 for name in ("images", "tokens", "rows")]  # fmt: skip
        return {
            name: torch.cat([torch.cat(shares) for shares in steps[at::3]])
            for at, name in enumerate(("images", "tokens", "rows"))
        }

    alone = fed(1, 0)
    for ranks in (1, 2, 4):
        for num_workers in (0, 1, 3):
            other = fed(ranks, num_workers)
            assert all(torch.equal(other[name], alone[name]) for name in alone)
    for epoch in alone["rows"].view(2, NUM_ROWS):  # the next row stands in for the broken one
        wanted = [BROKEN + 1 if row == BROKEN else row for row in range(NUM_ROWS)]
        assert sorted(epoch.tolist()) == wanted


def test_a_broken_picture_is_replaced_with_its_caption_by_the_next_kept_pair(world: World) -> None:
    pairs = world.pairs(Shift(0), rows=(2, BROKEN, 20, *range(27, 40)))
    epoch = batches(pairs, steps=2)
    assert torch.cat([b["undecodable"] for b in epoch]).tolist() == [BROKEN]
    order = np.concatenate([taken.indices for taken in Batches(
        Order(pairs.subset.keys, 0), Horizon(len(pairs), 8, 2))])  # fmt: skip
    images = torch.cat([b["images"] for b in epoch])
    tokens = torch.cat([b["tokens"] for b in epoch])
    broken, after = (int(np.flatnonzero(order == index)[0]) for index in (1, 2))
    assert torch.equal(images[broken], images[after])
    assert torch.equal(tokens[broken], tokens[after])


def test_substitutes_are_counted_in_the_manifest(world: World) -> None:
    counts = world.manifest(world.train(TRAIN))["counts"]
    assert (counts["substitutes"], counts["undecodable"]) == (2, 1)  # two epochs, one row
    assert (counts["kept"], counts["passes"], counts["unique_samples"]) == (40, 2.0, 39)
    assert (counts["steps"], counts["batch_size"], counts["samples_seen"]) == (10, 8, 80)
    assert counts["train_flops"] > 0


def test_pictures_that_all_fail_stop_the_run(world: World) -> None:
    with pytest.raises(PoolError, match=r"none of 1 kept pictures from row 7 .*uid '00007'"):
        _ = world.pairs(rows=(BROKEN,))[Slice(0, np.zeros(1, np.int64), np.zeros(1, np.int64))]


def test_a_cache_is_refused_where_each_picture_is_cut_anew(world: World) -> None:
    with pytest.raises(ConfigError, match=r"train\.cache=true: RandomResizedCrop"):
        world.pairs(RandomResizedCrop(0.9, 1.0), cache=True)


class Killed(BaseException):
    """A stand-in for SIGKILL that nothing catches."""


@dataclass(frozen=True)
class Killer(Logger):
    """Ends the run when so many samples have been seen."""

    samples: int

    @contextmanager
    def open(self, folder: Path, key: str, settings: Any, past: list[Any]) -> Iterator[Any]:
        def write(row: dict[str, Any]) -> None:
            if row["samples_seen"] >= self.samples:
                raise Killed

        yield write


@pytest.mark.parametrize("average", [None, 48])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    tmp_path: Path, shard: Path, caplog: pytest.LogCaptureFixture, average: int | None
) -> None:
    undisturbed, killed = World(tmp_path / "one", shard), World(tmp_path / "two", shard)
    stage = replace(TRAIN, log_every_samples=32, average_last_samples=average)
    expected = undisturbed.train(stage)
    saving = replace(stage, checkpoint_every_samples=24)
    with pytest.raises(Killed):
        killed.train(replace(saving, loggers=(Killer(64),)))
    partial = sorted((tmp_path / "two").rglob("checkpoint-*.ckpt"))
    assert [path.name for path in partial] == ["checkpoint-000000000024.ckpt", "checkpoint-000000000048.ckpt"]
    with caplog.at_level(logging.INFO, "dbp"):
        resumed = killed.train(replace(saving, num_workers=2, cache=True, loggers=(Csv(),)))
    assert "going on after step 6 of 10" in caplog.text
    assert resumed.key == expected.key
    assert resumed.digest == expected.digest
    rows, same = (read_metrics(c.folder / "metrics.jsonl") for c in (resumed, expected))
    assert [row["samples_seen"] for row in rows] == [32, 64, 80]
    assert [row["loss"] for row in rows] == [row["loss"] for row in same]
    assert (resumed.folder / "metrics.csv").read_text().count("\n") == 4
    assert killed.manifest(resumed)["counts"]["substitutes"] == 2
    assert not partial[0].exists()


def stopped(world: World, samples: int = 40, **change: Any) -> Path:
    """A run of which a kill left checkpoints at 8, 16, 24 and 32 samples seen; their folder."""
    saving = replace(SAVING, loggers=(Killer(samples),), **change)
    with pytest.raises(Killed):
        world.train(saving)
    return next((world.store.root.parent).rglob("checkpoint-*.ckpt")).parent


SAVING = replace(TRAIN, checkpoint_every_samples=8, log_every_samples=8, keep_checkpoints=9)


def names(folder: Path) -> list[int]:
    return [int(path.stem.partition("-")[2]) for path in sorted(folder.glob("*.ckpt"))]


@pytest.mark.parametrize(
    "damage",
    [
        "one bit",
        "no record",
        pytest.param("truncated", marks=pytest.mark.slow),
        pytest.param("half a record", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, shard: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    expected = World(tmp_path / "one", shard).train(TRAIN)
    world = World(tmp_path / "two", shard)
    folder = stopped(world)
    assert names(folder) == [8, 16, 24, 32]
    last = folder / "checkpoint-000000000032.ckpt"
    content, record = bytearray(last.read_bytes()), last.with_suffix(".json")
    if damage == "truncated":
        last.write_bytes(content[:1000])
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:50])
    with caplog.at_level(logging.INFO, "dbp"):
        assert world.train(SAVING).digest == expected.digest
    assert "checkpoint-000000000032.ckpt is damaged" in caplog.text
    assert "going on after step 3 of 10" in caplog.text


def test_only_so_many_checkpoints_stay(tmp_path: Path, shard: Path) -> None:
    folder = stopped(World(tmp_path, shard), keep_checkpoints=2)
    assert names(folder) == [24, 32]
    assert len(list(folder.glob("checkpoint-*"))) == 4


def test_checkpoints_come_by_minutes_too(tmp_path: Path, shard: Path) -> None:
    change = {"checkpoint_every_samples": None, "checkpoint_every_minutes": 1e-9}
    assert names(stopped(World(tmp_path, shard), **change)) == [8, 16, 24, 32]


def test_a_checkpoint_of_another_budget_is_refused(tmp_path: Path, shard: Path) -> None:
    world = World(tmp_path, shard)
    folder = stopped(world)
    longer = replace(SAVING, samples_seen=160)
    key = world.store.key(longer.bind(pool=world.pool, keep=world.keep()))
    folder.rename(folder.with_name(f"train-{key}"))
    with pytest.raises(ConfigError, match=r"is of another run: .*samples_seen 80, here 160\."):
        world.train(longer)


def test_a_full_disk_leaves_the_old_checkpoint_and_the_run_goes_on(
    tmp_path: Path, shard: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = World(tmp_path / "one", shard).train(TRAIN)
    world = World(tmp_path / "two", shard)
    folder = stopped(world, 24)
    assert names(folder) == [8, 16]
    size = (folder / "checkpoint-000000000016.ckpt").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(Killed):
            world.train(replace(SAVING, loggers=(Killer(48),)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "checkpoint-000000000024.ckpt could not be written" in caplog.text
    assert names(folder) == [8, 16]
    assert not list(folder.glob(".checkpoint*"))
    assert world.train(SAVING).digest == expected.digest


def test_two_runs_of_one_seed_are_the_same_and_leave_torch_s_state_alone(tmp_path: Path, shard: Path) -> None:
    short = replace(TRAIN, samples_seen=24)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one = World(tmp_path / "one", shard).train(short)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(10)
    again = World(tmp_path / "two", shard).train(short)
    other = World(tmp_path / "two", shard).train(replace(short, seed=4))
    assert one.digest == again.digest != other.digest


def test_plain_open_clip_loads_the_checkpoint_with_the_same_embeddings(world: World, tmp_path: Path) -> None:
    import open_clip

    from dbp.encoders.openclip import load_openclip

    checkpoint = world.train(replace(TRAIN, samples_seen=16))
    saved = torch.load(checkpoint.weights, weights_only=True)
    assert saved.keys() == {"epoch", "name", "state_dict"}
    assert (saved["name"], saved["epoch"]) == (checkpoint.name, 0)
    (tmp_path / "my-tiny.json").write_text(json.dumps(checkpoint.config))
    open_clip.add_model_config(tmp_path / "my-tiny.json")
    models = [
        open_clip.create_model("my-tiny", pretrained=str(checkpoint.weights)),
        open_clip.create_model(f"local-dir:{checkpoint.folder}"),
        load_openclip(checkpoint=checkpoint.weights).model,
    ]
    images = torch.rand(3, 3, 32, 32)
    tokens = open_clip.get_tokenizer("my-tiny")(["a", "letter", "number 3"])
    embedded = [(m.eval().encode_image(images), m.encode_text(tokens)) for m in models]
    for image, text in embedded[1:]:
        assert torch.equal(image, embedded[0][0])
        assert torch.equal(text, embedded[0][1])
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, saved["state_dict"][name])


def test_a_checkpoint_says_what_made_it(world: World) -> None:
    checkpoint = world.train(replace(TRAIN, samples_seen=16))
    assert checkpoint.samples_seen == 16
    assert checkpoint.subset == {"pool": world.store.key(world.pool), "keep": world.store.key(world.keep())}
    assert checkpoint.settings["optimiser"]["lr"] == 1e-3
    assert not list(checkpoint.folder.rglob("*lightning*"))
    with pytest.raises(StoreError, match="is no finished run of ours"):
        Checkpoint.load(checkpoint.folder.parent)


def test_a_keep_list_of_another_pool_is_refused(world: World) -> None:
    pool, keep = world.store.get(world.pool), world.store.get(world.keep())
    with pytest.raises(ConfigError, match="it was made for the pool with digest 000000000000, and"):
        Subset.of(pool, replace(keep, pool_digest="0" * 64))


def test_fewer_kept_samples_than_a_batch_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match=r"5 kept samples with train\.batch_size=8"):
        world.train(TRAIN, rows=(1, 2, 3, 4, 5))


def test_wandb_records_a_run_without_a_network(world: World) -> None:
    pytest.importorskip("wandb")
    mirror = Wandb(project="dbp-tests", mode="offline")
    checkpoint = world.train(replace(TRAIN, samples_seen=16, loggers=(mirror,)))
    assert list(checkpoint.folder.glob("wandb/offline-run-*/*.wandb"))


def test_a_run_ends_in_the_mean_of_its_last_weights_and_resumes_to_it(tmp_path: Path, shard: Path) -> None:
    def weights(name: str, **change: Any) -> dict[str, torch.Tensor]:
        made = World(tmp_path / name, shard).train(replace(TRAIN, **change))
        found = torch.load(made.weights, weights_only=True)["state_dict"]
        return {key: value for key, value in found.items() if value.is_floating_point()}

    # A constant rate makes shorter runs the first steps of longer ones.
    steady = replace(OPTIMISER, schedule="constant")
    last = [weights(f"{n}", samples_seen=8 * n, optimiser=steady) for n in (8, 9, 10)]
    mean = weights("mean", optimiser=steady, average_last_samples=24)
    for name, value in mean.items():
        expected = sum(one[name].double() for one in last) / 3
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(mean["logit_scale"], last[2]["logit_scale"])
    with pytest.raises(ConfigError, match=r"average_last_samples=88 .* 80 samples"):
        weights("long", average_last_samples=88)


def test_channels_last_changes_the_order_of_sums_and_nothing_else(tmp_path: Path, shard: Path) -> None:
    made = []
    for name in ("plain", "last"):
        stage = replace(TRAIN, samples_seen=16, channels_last=name == "last")
        made.append(World(tmp_path / name, shard).train(stage))
    plain, last = (torch.load(m.weights, weights_only=True)["state_dict"] for m in made)
    assert made[0].folder.name == made[1].folder.name  # the key
    for key, value in last.items():
        assert value.is_contiguous(), key
        torch.testing.assert_close(value, plain[key], rtol=2e-3, atol=2e-3)
