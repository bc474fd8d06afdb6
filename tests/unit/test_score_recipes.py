"""Scores in a recipe: what they need is made for them, and what they make is read under its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scoring import made, pool_of
from test_datacomp import write_folder

from dbp.config import compose
from dbp.curate import recipe
from dbp.data.embeddings import Embeddings
from dbp.data.pool import Pool, hash_64
from dbp.encoders.base import Encoder, Tower
from dbp.encoders.embed import Embed
from dbp.engine.runners import Processes
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.errors import ConfigError
from dbp.lineage import score_name
from dbp.offers import Offers
from dbp.planning import preflight
from dbp.scoring.flipped_clip import FlippedClip
from dbp.settings import read
from dbp.verbs.command_line import overrides

SMALL = (
    "pool=rehearsal", "encoder=rehearsal", "pool.rows=600", "pool.rows_per_file=250", "pool.width=16",
    "pool.concepts=10", "dedup=none", "select=top_score", "budget.num_kept=100", "parts.device=cpu",
)  # fmt: skip
TARGETS = ("score=norm_sim", "score.target_name=train")


def graph(*settings: str) -> dict[str, Node]:
    return recipe(read(compose("curate", overrides([*SMALL, *settings]))))


def test_s_clip_loss_then_norm_sim_keeps_the_best_by_one_among_the_best_by_the_other(tmp_path: Path) -> None:
    targets = np.random.default_rng(0).normal(size=(30, 16))
    np.save(tmp_path / "targets.npy", targets)
    nodes = graph(
        "score=clip_loss", "score.num_passes=2", "score.batch_size=128",
        "filter=top_fraction", "filter.fraction=0.5",
        "+score@scores.near=norm_sim", "scores.near.target_name=train",
        f"scores.near.targets={tmp_path}/targets.npy", "select.score=near",
    )  # fmt: skip
    store = Store(tmp_path / "store")
    loss, near = store.get(nodes["score"]), store.get(nodes["scores.near"])
    kept = store.get(nodes["select"])
    half = np.argsort(-loss.values, kind="stable")[:300]
    assert set(kept.rows.tolist()) == set(half[np.argsort(-near.values[half], kind="stable")[:100]].tolist())
    reasons = set(kept.decisions["reason"].to_pylist())
    assert any("s-CLIPLoss" in reason for reason in reasons)
    assert any("NormSim-max to train" in reason for reason in reasons)
    names = {score_name(entry) for entry in store.entries() if entry.stage == "score"}
    assert names == {"clip_loss", "norm_sim"}


@pytest.mark.slow
@pytest.mark.parametrize("score", ["clip_loss", "norm_sim"])
def test_worker_processes_give_the_bits_of_one(score: str, tmp_path: Path) -> None:
    np.save(tmp_path / "targets.npy", np.random.default_rng(1).normal(size=(9, 16)))
    own = ("score.num_passes=3", "score.batch_size=128")
    if score == "norm_sim":
        own = ("score.target_name=train", f"score.targets={tmp_path}/targets.npy", "parts.rows_per_part=100")
    alone, shared = Store(tmp_path / "one"), Store(tmp_path / "two", runner=Processes(2))
    one, two = (store.get(graph(f"score={score}", *own)["score"]) for store in (alone, shared))
    np.testing.assert_array_equal(one.values, two.values)
    assert not np.isnan(one.values).any()


def test_the_second_moment_is_made_for_norm_2_and_for_it_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "targets.npy", np.eye(16))
    given = (*TARGETS, f"score.targets={tmp_path}/targets.npy")
    assert set(graph(*given, "score.norm=2")["score"].inputs) == {"pool", "image", "moment"}
    assert set(graph(*given, "score.norm=max")["score"].inputs) == {"pool", "image"}
    found = Store(tmp_path / "store").get(graph(*given, "score.norm=2")["score"])
    np.testing.assert_allclose(found.values, 0.25, rtol=1e-5)


def test_targets_that_hold_a_test_set_are_refused_where_score_and_selection_are_there(tmp_path: Path) -> None:
    targets = np.random.default_rng(0).normal(size=(30, 16))
    np.save(tmp_path / "targets.npy", targets)
    (tmp_path / "kept/cifar10").mkdir(parents=True)
    unit = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    np.savez(tmp_path / "kept/cifar10/0.npz", features=unit.astype(np.float32))
    given, checked = (*TARGETS, f"score.targets={tmp_path}/targets.npy"), f"score.test_sets=[{tmp_path}/kept]"
    store = Store(tmp_path / "store")
    with pytest.raises(ConfigError, match="cifar10"):
        preflight.require(store, [graph(*given, checked)["select"]])
    assert not list(store.entries()), "before anything is made"
    store.get(graph(*given)["select"])
    for wanted in ("score", "select"):
        with pytest.raises(ConfigError, match="cifar10"):
            store.get(graph(*given, checked)[wanted])
    assert store.get(graph(*given, "score.test_sets=[]")["select"]).num_kept == 100


def test_elimination_among_the_best_reads_their_score_and_else_none(tmp_path: Path) -> None:
    named = ("score=clip_score", "+score@scores.d=norm_sim_dynamic", "scores.d.num_steps=3")
    assert set(graph(*named)["scores.d"].inputs) == {"pool", "valid", "image"}
    node = graph(*named, "scores.d.among=0.3")["scores.d"]
    assert set(node.inputs) == {"pool", "valid", "image", "scores"}
    found = Store(tmp_path / "store").get(node)
    assert int((~np.isnan(found.values)).sum()) == 180
    assert int((found.values > 0).sum()) == 36


def test_the_rows_of_a_rehearsal_are_found_by_their_uids(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    pool = store.get(graph()["index"])
    assert pool.uid_hashes.tolist() == [hash_64(uid.encode()) for uid in pool.uids(np.arange(600))]
    pq.write_table(pa.table({"uid": pool.uids(np.arange(600)), "x": np.arange(600.0)}), tmp_path / "x.parquet")
    found = store.get(graph("score=from_file", f"score.file={tmp_path}/x.parquet", "score.column=x")["score"])
    assert found.values.tolist() == list(range(600))


@pytest.mark.parametrize("score", ["clip_loss", "norm_sim_dynamic"])
def test_a_score_that_compares_rows_does_not_see_held_out_ones(score: str, tmp_path: Path) -> None:
    own = {"clip_loss": ("score.num_passes=1", "score.batch_size=128"), "norm_sim_dynamic": ("score.num_steps=3",)}
    given = (f"score={score}", *own[score])
    store = Store(tmp_path / "store")
    pool = store.get(graph()["index"])
    out = np.arange(5, 600, 7)
    (tmp_path / "out.txt").write_text("\n".join(pool.uids(out)) + "\n")
    nodes = graph(*given, f"hold_out={tmp_path}/out.txt")
    found, whole = store.get(nodes["score"]), store.get(graph(*given)["score"])
    assert np.flatnonzero(np.isnan(found.values)).tolist() == out.tolist()
    assert not np.isnan(whole.values).any()
    assert store.key(nodes["score"]) != store.key(graph(*given)["score"])


def metadata(folder: Path, *settings: str) -> tuple[list[str], dict[str, Node]]:
    """The uids of a pool of DataComp's metadata, 80 rows in two files, and a graph over it."""
    rows, _ = write_folder(folder / "metadata", 2, 40)
    home = ("pool=datacomp", f"pool.metadata={folder}/metadata", "encoder=datacomp_l14", "dedup=none")
    nodes = recipe(read(compose("curate", overrides([*settings, *home, "budget.num_kept=20"]))))
    return [row["uid"] for row in rows], nodes


@pytest.mark.parametrize(
    ("column", "name"), [("clip_loss", "clip_loss"), ("clip_l14_similarity_score", "clip_score")]
)
def test_a_column_whose_name_holds_clip_is_not_always_the_clip_score(
    column: str, name: str, tmp_path: Path
) -> None:
    read_it = ("score=from_file", f"score.file={tmp_path}/x.parquet", f"score.column={column}")
    uids, nodes = metadata(tmp_path, *read_it, "select=top_score")
    pq.write_table(pa.table({"uid": uids, column: np.arange(80.0)}), tmp_path / "x.parquet")
    store = Store(tmp_path / "store")
    assert store.get(nodes["select"]).rows.tolist() == list(range(60, 80))
    assert score_name(store.find(str(store.key(nodes["score"])))) == name


def test_m_flyt_mixes_the_twelve_published_columns_by_uid(tmp_path: Path) -> None:
    config = compose("curate", ["experiment=m_flyt"], resolve=False)
    columns = {name: score.column for name, score in config.scores.items() if name != "m_flyt"}
    weights = dict(config.scores.m_flyt.weights)
    assert len(columns) == 12
    assert set(weights) == set(columns)
    given = ("experiment=m_flyt", "budget.keep_fraction=null", f"scores.vit_b32.file={tmp_path}/scores")
    uids, nodes = metadata(tmp_path, *given)
    rng = np.random.default_rng(5)
    values = {column: rng.normal(size=80) for column in columns.values()}
    order = rng.permutation(80)[:70]
    (tmp_path / "scores").mkdir()
    for number, rows in enumerate(np.array_split(order, 3)):
        table = {"uid": [uids[row] for row in rows], **{c: v[rows] for c, v in values.items()}}
        pq.write_table(pa.table(table), tmp_path / "scores" / f"{number}.parquet")
    store = Store(tmp_path / "store")
    found = store.get(nodes["scores.m_flyt"])
    expected = np.array([weights[name] * values[column] for name, column in columns.items()]).sum(axis=0)
    np.testing.assert_allclose(found.values[order], expected[order], atol=1e-5)
    assert np.isnan(found.values).sum() == 10
    assert found.label == "M-FLYT"
    best = order[np.argsort(-expected[order])[:20]]
    assert set(store.get(nodes["select"]).rows.tolist()) == set(best.tolist())


def test_a_mix_in_the_place_of_score_is_sent_to_the_named_scores() -> None:
    with pytest.raises(ConfigError) as refused:
        graph("score=mix", "score.weights={l14: 1}", "+score@scores.l14=clip_score")
    for fact in ("'scores.l14'", "+score@scores.mix=mix", "select.score=mix"):
        assert fact in str(refused.value)
    assert "no named scores" not in str(refused.value)
    assert graph("+score@scores.mix=mix", "scores.mix.weights={score: 1}", "select.score=mix")["select"]


# mirrored images


@Encoder.register  # not a subclass: the project's own encoders are counted elsewhere
@dataclass(frozen=True)
class LeftHalf:
    """An encoder of the left half of an image, and of captions by their first letter."""

    reads: ClassVar[bool] = False
    batch_size: int = 4

    def identity(self) -> dict[str, Any]:
        return {}

    def load(self) -> Tower:
        import torch

        def seen(image: Image.Image) -> Any:
            own = np.asarray(image, np.float32)
            return torch.tensor(own[:, : own.shape[1] // 2].mean((0, 1)) + 1)

        colours = {"r": [1, 0, 0], "g": [0, 1, 0], "b": [0, 0, 1]}
        texts = lambda captions: np.array([colours[c[0]] for c in captions], np.float32)  # noqa: E731
        return Tower(seen, lambda batch: batch.numpy(), texts)


@dataclass(frozen=True)
class Painted(Pool):
    """A pool of images whose left half is red and whose right half is blue, with their captions in memory."""

    def _read(self, row: int, what: str) -> bytes:
        import io

        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:, :4, 0], pixels[:, 4:, 2] = 250, 250
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


def test_the_mirrored_score_is_that_of_the_mirrored_image(tmp_path: Path) -> None:
    plain = pool_of(tmp_path / "pool", ["a", "b"])
    table = pa.table(
        {
            "uid": ["a", "b"],
            "uid_hash": plain.uid_hashes,
            "text": ["red", "blue"],
            "reason": ["", ""],
            "key": ["a", "b"],
        }
    )
    pool = Painted(type(plain.index)(table), ["one.tar"], "pool", "txt", 10**6)
    sides = {}
    for name, stage in {
        "image": Embed(LeftHalf(), "image"),  # type: ignore[arg-type]
        "mirrored": Embed(LeftHalf(), "image", mirrored=True),  # type: ignore[arg-type]
        "text": Embed(LeftHalf(), "text"),  # type: ignore[arg-type]
    }.items():
        home = tmp_path / name / "part-0000000"
        home.mkdir(parents=True)
        stage.make(stage.parts(pool)[0], home, pool)
        sides[name] = Embeddings.load(tmp_path / name)
    score = FlippedClip(LeftHalf())  # type: ignore[arg-type]
    as_it_is, _ = made(score, tmp_path / "a", pool=pool, image=sides["image"], text=sides["text"])
    mirrored, _ = made(score, tmp_path / "b", pool=pool, image=sides["mirrored"], text=sides["text"])
    assert as_it_is.values[0] > 0.99 > 0.1 > as_it_is.values[1], "the left half is red"
    assert mirrored.values[1] > 0.99 > 0.1 > mirrored.values[0], "and blue in the mirror"
    assert "mirrored" in mirrored.label


def test_mirrored_vectors_take_the_place_of_the_images() -> None:
    score = FlippedClip(LeftHalf())  # type: ignore[arg-type]
    plain = Embed(LeftHalf(), "image")  # type: ignore[arg-type]
    node = Offers("score", {"pool": None, "image": plain.bind(pool=None), "text": None}).bind(score)
    assert node.inputs["image"].stage.mirrored


def test_vectors_that_are_read_cannot_be_mirrored() -> None:
    with pytest.raises(ConfigError) as refused:
        graph("score=flipped_clip")
    assert "score.encoder='RehearsalVectors'" in str(refused.value)
    assert "encoder.score" in str(refused.value)
