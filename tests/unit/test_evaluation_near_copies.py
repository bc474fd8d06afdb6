"""Near copies of test pictures in what a real run was trained on: curated, trained, evaluated."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from miniature import write_set
from PIL import Image

import training.train
from dbp.config import compose
from dbp.data.keep_list import everything
from dbp.engine.store import Store
from dbp.errors import ConfigError, StoreError
from dbp.lineage import lineage
from dbp.verbs.command_line import overrides
from evaluation.checks.near_copies import find_trained, trained_rows
from evaluation.results import load_results
from evaluation.verbs.evaluate import run
from training.feed.weights import Mixture

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NUM_ROWS, NUM_KEPT = 30, 16
EPSILON = 0.002


def encoded(picture: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def drawn(generator: np.random.Generator) -> Image.Image:
    """A picture of soft colours that survives JPEG."""
    colours = generator.integers(256, size=(4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((40, 36), Image.Resampling.BICUBIC)


def write_encoder(folder: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**CONFIG)
    # So that vectors tell pictures apart: others than copies have cosines below 0.996.
    model.visual.class_embedding.data *= 0
    model.visual.positional_embedding.data *= 0.1
    for block in model.visual.transformer.resblocks:
        block.attn.in_proj_weight.data *= 2
    torch.save(model.state_dict(), folder / "encoder.pt")
    (folder / "config.json").write_text(json.dumps({"model_cfg": CONFIG}))


class World:
    """A pool of 30 pictures, a run on 16 of them, and a test set of 12 pictures."""

    def __init__(self, home: Path) -> None:
        self.home = home
        generator = np.random.default_rng(0)
        self.pictures = [drawn(generator) for _ in range(NUM_ROWS)]
        with tarfile.open(home / "00000.tar", "w") as tar:
            for row, picture in enumerate(self.pictures):
                members = (("png", encoded(picture)), ("txt", f"thing {row}".encode()))
                for name, content in members:
                    info = tarfile.TarInfo(f"{row:05d}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        write_encoder(home)
        self.train = self.trained(
            "dedup.num_clusters=2", "dedup.epsilon=0.0001", "select=uniform",
            f"budget.num_kept={NUM_KEPT}",
        )  # fmt: skip
        rows = self.found().is_trained.nonzero()[0].tolist()
        self.exact, self.again, *_ = rows
        self.pruned = next(row for row in range(NUM_ROWS) if row not in rows)
        test = [drawn(generator) for _ in range(12)]
        files = [encoded(picture) for picture in test]
        files[3] = encoded(self.pictures[self.exact])
        files[7] = encoded(self.pictures[self.again], "JPEG", quality=97, subsampling=0)
        files[9] = encoded(self.pictures[self.pruned])
        samples = [{"jpg" if i == 7 else "png": file, "cls": str(i % 3).encode()} for i, file in enumerate(files)]
        write_set(home / "sets/wds_mnist_test", samples, class_names="abc", templates=["a {c}"])

    def trained(self, *settings: str) -> Any:
        made = training.train.run(compose("train", overrides([*self.of_pool(), *settings])))
        assert made is not None
        return made

    def of_pool(self) -> list[str]:
        home = self.home
        return [
            "pool=webdataset", f"pool.shards={home}/00000.tar", f"model.config={home}/config.json",
            "train=glyphs", "train.samples_seen=16", "train.batch_size=8", "train.device=cpu",
            "train.cache=false", "encoder@encoder.dedup=local_clip",
            f"encoder.dedup.checkpoint={home}/encoder.pt", f"encoder.dedup.config={home}/config.json",
            *self.paths(),
        ]  # fmt: skip

    def paths(self) -> list[str]:
        return [f"paths.store={self.home}/store", f"paths.runs={self.home}/runs"]

    def found(self, key: str = "") -> Any:
        return find_trained(self.store(), key or self.train.key)

    def store(self) -> Store:
        return Store(self.home / "store", self.home / "runs")

    def evaluate(self, *settings: str) -> int:
        given = [
            f"root={self.home}/sets", "suite=mnist", "name=here", "evaluate.device=cpu",
            f"contamination={EPSILON}", *self.paths(), *settings,
        ]  # fmt: skip
        return run(compose("evaluate", overrides(given)))

    @property
    def results(self) -> Path:
        return self.home / "runs/evaluations/here"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = World(tmp_path_factory.mktemp("world"))
    torch.set_num_threads(before)
    return made


def test_a_copy_and_a_reencoded_copy_are_flagged_and_a_pruned_picture_is_not(world, capsys):
    assert world.evaluate(f"checkpoint={world.train.key}") == 0
    with (world.results / "contamination.csv").open() as file:
        pairs = list(csv.DictReader(file))
    folder = "wds_mnist_test/test/0.tar"
    assert [(pair["picture"], pair["uid"]) for pair in pairs] == [
        (f"{folder}: s0000003.png", f"{world.exact:05d}"),
        (f"{folder}: s0000007.jpg", f"{world.again:05d}"),
    ]
    assert {(pair["run"], pair["task"]) for pair in pairs} == {(world.train.key, "mnist")}
    assert float(pairs[0]["cosine"]) == 1
    assert 1 - EPSILON < float(pairs[1]["cosine"]) < 1

    (told,) = json.loads((world.results / "contamination.json").read_text())
    assert (told["num_trained"], told["num_compared"], told["epsilon"]) == (16, 16, EPSILON)
    assert told["checkpoint"] == world.train.digest
    results = load_results(world.results / "results.jsonl")
    result = next(one for one in results if one.checkpoint == world.train.digest)
    right = result.outcomes["rank"] < 1
    clean = right[[i for i in range(12) if i not in (3, 7)]].mean()
    accuracy = told["metrics"][0]
    assert (accuracy["metric"], accuracy["num_flagged"]) == ("acc1", 2)
    assert accuracy["every"] == pytest.approx(right.mean())
    assert accuracy["clean"] == pytest.approx(clean)

    out = capsys.readouterr().out.splitlines()
    (heading,) = [line for line in out if line.startswith("near copies (")]
    assert "cosine above 0.998) among 16 training pictures" in heading
    row = next(line for line in out if "2 (16.7%)" in line)
    assert f"{100 * right.mean():.1f} ±" in row
    assert f"{100 * clean:.1f} ±" in row


def test_the_picture_of_a_pruned_row_is_flagged_where_nothing_is_pruned(world):
    # Its curation compares nothing, so the vectors are those that another run's dedup compared.
    whole = world.trained("dedup=none", "select=none")
    assert world.found(whole.key).embeddings.key == world.found().embeddings.key
    assert world.evaluate(f"checkpoint=[{whole.key},{world.train.key}]") == 0
    with (world.results / "contamination.csv").open() as file:
        pairs = [(pair["run"], pair["uid"]) for pair in csv.DictReader(file)]
    mine = [f"{row:05d}" for row in (world.exact, world.again, world.pruned)]
    assert [uid for run, uid in pairs if run == whole.key] == mine
    assert [uid for run, uid in pairs if run == world.train.key] == mine[:2]


def test_another_epsilon_encodes_no_picture_again(world, monkeypatch):
    assert world.evaluate(f"checkpoint={world.train.key}") == 0

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a picture is encoded")

    monkeypatch.setattr("evaluation.checks.near_copies._Pictures.encode_image", refuse)
    assert world.evaluate(f"checkpoint={world.train.key}", "contamination=1.0") == 0
    (told,) = json.loads((world.results / "contamination.json").read_text())
    assert told["metrics"][0]["num_flagged"] > 2


@pytest.mark.parametrize("epsilon", ["0", "1.5", "-0.1", "true", "much"])
def test_an_epsilon_outside_0_to_1_is_refused(world, epsilon):
    with pytest.raises(ConfigError, match=r"contamination=.*: it must be above 0 and at most 1"):
        world.evaluate(f"checkpoint={world.train.key}", f"contamination={epsilon}")


def test_a_checkpoint_that_is_no_run_of_ours_is_refused(world):
    file = world.home / "encoder.pt"
    with pytest.raises(ConfigError, match=r"encoder\.pt' is no run of ours in .*dbp ls stage=train"):
        world.evaluate(f"checkpoint={file}", f"model.config={world.home}/config.json")
    with pytest.raises(ConfigError, match="'openai' is no run of ours"):
        world.evaluate("model.name=ViT-B-32", "pretrained=openai")
    key = next(entry.key for entry in world.store().entries() if entry.stage == "embed")
    with pytest.raises(ConfigError, match=f"{key}' is no run of ours"):
        world.found(key)


def test_a_run_is_found_by_its_folder_and_by_the_weights_in_it_but_not_by_a_copy(world, tmp_path):
    for named in (world.train.folder, world.train.weights):
        assert world.found(str(named)).run.key == world.train.key
    copy = tmp_path / world.train.key
    copy.mkdir()
    (copy / "weights.pt").write_bytes(b"others")
    with pytest.raises(ConfigError, match="is no run of ours"):
        world.found(str(copy / "weights.pt"))


def test_vectors_that_were_removed_are_told_with_the_command_that_makes_them_again(world, monkeypatch):
    kept = world.found().embeddings
    away = world.home / "away"
    kept.folder.rename(away)
    try:
        with pytest.raises(StoreError, match=rf"vectors {kept.key} .*dbp curate … until=embed, with"):
            world.found()
        manifest = world.train.folder / "manifest.json"
        before = manifest.read_text()
        said = json.loads(before) | {"command": ["/bin/dbp", "train", "pool.shards={0..1}.tar"]}
        manifest.write_text(json.dumps(said))
        with pytest.raises(StoreError, match=r"dbp curate 'pool\.shards=\{0\.\.1\}\.tar' until=embed"):
            world.evaluate(f"checkpoint={world.train.key}")
        manifest.write_text(before)
    finally:
        away.rename(kept.folder)


def test_a_pool_without_vectors_and_one_whose_vectors_were_read_are_told(world, tmp_path):
    shutil.copytree(world.home / "store", tmp_path / "store")
    shutil.copytree(world.home / "runs", tmp_path / "runs")
    store = Store(tmp_path / "store", tmp_path / "runs")
    entry = store.find(world.found().embeddings.key)
    manifest = entry.folder / "manifest.json"
    said = json.loads(manifest.read_text())
    read = {"_target_": "dbp.encoders.precomputed.Precomputed", "label": "x", "images": "i.npy", "texts": None}
    said["made_by"]["encoder"] = read
    manifest.write_text(json.dumps(said))
    with pytest.raises(StoreError, match=r"were read from files.*Embed the pool with a network: dbp"):
        find_trained(store, world.train.key)
    for one in lineage(store, store.find(world.train.key)):
        if one.stage in ("embed", "similar", "cluster", "centroids"):
            shutil.rmtree(one.folder)
    with pytest.raises(StoreError, match="no image vectors of its pool are in"):
        find_trained(store, world.train.key)


def test_weights_that_have_changed_since_are_refused(world):
    file = world.home / "encoder.pt"
    before = file.read_bytes()
    try:
        weights = torch.load(file)
        torch.save({name: value + 1 for name, value in weights.items()}, file)
        with pytest.raises(ConfigError, match="weights of OpenClip have changed since they made"):
            world.found()
    finally:
        file.write_bytes(before)


class Weighted(Mixture):
    def weights(self, pool: Any, rows: np.ndarray) -> np.ndarray:
        return (rows % 2).astype(np.float32)


def test_rows_that_are_held_out_or_of_no_weight_were_not_trained_on(world):
    pool = world.found().pool
    keep = everything(pool.digest, pool.is_valid)
    stage = SimpleNamespace(held_out=0.0, mixture=None)
    assert trained_rows(stage, pool, keep).all()
    stage.held_out = 0.4
    some = trained_rows(stage, pool, keep)
    assert 0 < some.sum() < NUM_ROWS
    stage.mixture = Weighted()
    both = trained_rows(stage, pool, keep)
    assert both.tolist() == (some & (np.arange(NUM_ROWS) % 2 == 1)).tolist()
