"""FairDeDup against a plain loop over all pairs; its laws; prototypes from texts and from files."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_semdedup import World, semdedup

from dbp.data.clusters import Clusters
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.decisions import explained
from dbp.dedup import fair
from dbp.dedup.fair import FairDeDup, remove_fairly
from dbp.dedup.prototypes import UNITS, CompareWithPrototypes, EncodePrototypes, PrototypeCosines, Prototypes
from dbp.dedup.similar import Pairs, SimilarRows
from dbp.encoders.base import Encoder, Tower
from dbp.engine.stage import describe, key_of, rebuild
from dbp.engine.work import Work
from dbp.errors import ConfigError, WorldError
from dbp.exact.order import keyed_hash

NAMES = ["a", "b", "c"]
EPSILON = 0.05


@dataclass(frozen=True)
class Letters(Encoder):
    """Counts of the letters a to e."""

    def load(self) -> Tower:
        def texts(some: list[str]) -> np.ndarray:
            return np.array([[text.count(letter) for letter in "abcde"] for text in some], np.float32)

        return Tower(lambda picture: picture, None, texts)

    def identity(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class ImagesAlone(Letters):
    """Has no text tower."""

    has_text = False


@dataclass(frozen=True)
class Read(Letters):
    """Vectors that another tool made."""

    reads = True


def fairdedup(epsilon: float | None = EPSILON, **changes: Any) -> FairDeDup:
    given = {"rule": "greedy", "floor": 0.8, "templates": ("{c}",), "encoder": Letters(), "concepts": ("a", "b")}
    return FairDeDup(**vars(semdedup(None, num_kept=1)) | {"epsilon": epsilon, "num_kept": None} | given | changes)


def fairly(world: World, prototypes: np.ndarray, epsilon: float = EPSILON, **changes: Any) -> tuple[Any, ...]:
    """Keep list, clusters, comparison and counts of the fair rule on the pool of the tests of SemDeDup."""
    file = world.store.root.parent / "prototypes.npy"
    np.save(file, prototypes)
    stage = fairdedup(epsilon, concepts=str(file), **changes)
    nodes = world.bind(semdedup(epsilon, rule="greedy", floor=0.8, **changes))
    pool, image = world.node("pool", world.pool), world.node("image", world.sides["image"])
    made = CompareWithPrototypes("cpu").bind(pool=pool, image=image, prototypes=stage.prototypes().bind())
    dedup = stage.bind(rows=nodes["dedup"].inputs["rows"], similar=nodes["similar"], pool=pool, cosines=made)
    kept, clusters, near = (world.store.get(node) for node in (dedup, nodes["clusters"], nodes["similar"]))
    return kept, clusters, near, world.store.get(made), dedup


def by_hand(
    cosine: np.ndarray, near: np.ndarray, orders: list[list[int]], epsilon: float
) -> tuple[dict[int, int], dict[int, int]]:
    """Each row's survivor and the concept that chose it, from all pairs."""
    totals, survivor, concept = [0] * near.shape[1], {}, {}
    limit = np.float32(1 - epsilon)
    for order in orders:
        for row in order:
            if row in survivor:
                continue
            group = [r for r in order if r not in survivor and (r == row or np.float32(cosine[row, r]) > limit)]
            least = totals.index(min(totals))
            best = max(group, key=lambda r, least=least: near[r, least])  # the first of equals
            for member in group:
                survivor[member], concept[member] = best, least
            totals = [total + int(value) for total, value in zip(totals, near[best], strict=True)]
    return survivor, concept


def orders(world: World, clusters: Clusters, seed: int = 0) -> list[list[int]]:
    keys = keyed_hash(world.hashes, seed).tolist()
    return [
        sorted(np.flatnonzero(clusters.assignment == j).tolist(), key=lambda row: (keys[row], row))
        for j in range(clusters.num_clusters)
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("fair"))


def prototypes(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)


# the rule


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("epsilon", [0.001, 0.05, 0.2])
def test_the_survivors_are_those_of_a_plain_loop_over_all_pairs(epsilon: float, seed: int, world: World) -> None:
    kept, clusters, _, cosine, node = fairly(world, prototypes(seed), epsilon, seed=seed)
    near = np.asarray(cosine.cosines)
    survivor, concept = by_hand(world.cosine("image"), near, orders(world, clusters, seed), epsilon)
    assert set(kept.rows.tolist()) == set(survivor.values())
    full = explained(world.store, str(world.store.key(node)))
    gone = [row for row, stays in survivor.items() if stays != row]
    assert 10 < len(gone) < 140, "the test says something"
    for row in gone:
        told = full.decision(row)
        assert told["related_row"] == survivor[row]
        assert told["reason"] == f"duplicate, less like 'concept {concept[row]}'"
        assert told["value"] > told["limit"] == pytest.approx(1 - epsilon)


def test_blocks_of_clusters_change_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _, near, cosine, _ = fairly(world, prototypes())
    for size in (1, 20, 60):
        monkeypatch.setattr(fair, "ROWS", size)
        again, _ = remove_fairly(kept_before(world), near, cosine, world.hashes, EPSILON, 0)
        np.testing.assert_array_equal(again.mask, kept.mask)


def kept_before(world: World) -> KeepList:
    return KeepList("pool", world.valid)


def test_the_order_of_rows_in_the_pool_changes_nothing(world: World) -> None:
    kept, _, near, cosine, _ = fairly(world, prototypes())
    order = np.random.default_rng(1).permutation(world.n)
    place = np.argsort(order)
    pairs = near.pairs
    turned = SimilarRows(
        near.similarity[order], near.twin, near.cluster[order], Pairs(place[pairs.later], place[pairs.earlier],
        pairs.similarity),
    )  # fmt: skip
    moved = PrototypeCosines(cosine.names, np.asarray(cosine.cosines)[order])
    again, _ = remove_fairly(KeepList("pool", world.valid[order]), turned, moved, world.hashes[order], EPSILON, 0)
    np.testing.assert_array_equal(again.mask, kept.mask[order])


def test_each_group_keeps_one_row_so_as_many_stay_whatever_the_concepts_of_separate_groups() -> None:
    # Three groups of equal rows, none like another.
    cluster, n = np.zeros(9, np.int32), 9
    pairs = [(later, earlier) for later in range(n) for earlier in range(later) if later // 3 == earlier // 3]
    later, earlier = np.array(pairs).T
    near = SimilarRows(
        np.zeros(n, np.float32), np.zeros(n, np.int64), cluster, Pairs(later, earlier, np.ones(9, np.float32))
    )
    for seed in range(5):
        values = np.random.default_rng(seed).integers(-(2**30), 2**30, (n, 3)).astype(np.int32)
        held = PrototypeCosines(NAMES, values)
        kept, _ = remove_fairly(
            KeepList("p", np.ones(n, bool)), near, held, np.arange(9).astype(np.uint64), 0.05, 0
        )
        assert [int(kept.mask[at : at + 3].sum()) for at in (0, 3, 6)] == [1, 1, 1]


def test_the_concept_that_was_served_least_chooses_next() -> None:
    # Two groups of two rows. At first no concept has anything, so `a` chooses, and takes the row nearest to it;
    # `b` is then behind and takes, of the second group, the row nearest to `b`.
    near = SimilarRows(
        np.zeros(4, np.float32), np.zeros(4, np.int64), np.array([0, 0, 1, 1], np.int32),
        Pairs(np.array([1, 3]), np.array([0, 2]), np.ones(2, np.float32)),
    )  # fmt: skip
    half = int(UNITS / 2)
    values = np.array([[half, 0], [0, half], [half, 0], [0, half]], np.int32)
    hashes = np.arange(4).astype(np.uint64)
    kept, told = remove_fairly(
        KeepList("p", np.ones(4, bool)), near, PrototypeCosines(["a", "b"], values), hashes, 0.05, 0
    )
    assert kept.rows.tolist() == [0, 3]
    assert told == {"a": [0.25, 0.25], "b": [0.25, 0.25]}


def test_a_row_that_was_removed_is_not_chosen_by_a_later_group_that_it_is_like() -> None:
    # a is like b, and b like c. `one` keeps a of a and b; c opens the next group, in which b would suit `two` best.
    hashes = np.arange(3).astype(np.uint64)
    a, b, c = np.argsort(keyed_hash(hashes, 0)).tolist()
    values = np.zeros((3, 2), np.int32)
    values[a], values[b] = (10, 0), (5, 100)
    pairs = Pairs(np.array([b, c]), np.array([a, b]), np.ones(2, np.float32))
    near = SimilarRows(np.zeros(3, np.float32), np.zeros(3, np.int64), np.zeros(3, np.int32), pairs)
    held = PrototypeCosines(["one", "two"], values)
    kept, _ = remove_fairly(KeepList("p", np.ones(3, bool)), near, held, hashes, 0.05, 0)
    assert set(kept.rows.tolist()) == {a, c}


def test_without_pairs_every_row_with_a_vector_stays(world: World) -> None:
    _, _, near, cosine, _ = fairly(world, prototypes())
    alone = replace(near, pairs=Pairs(*(column[:0] for column in vars(near.pairs).values())))
    kept, _ = remove_fairly(kept_before(world), alone, cosine, world.hashes, EPSILON, 0)
    np.testing.assert_array_equal(kept.mask, near.has_vector)
    assert kept.decision(7)["reason"] == "undecodable image"


# prototypes


def test_a_prototype_is_the_mean_direction_of_its_captions(tmp_path: Path) -> None:
    stage = EncodePrototypes(Letters(), ("{c}", "{c} dd"), ("a", "bb"))
    stage.run(Work(tmp_path, tmp_path, "key"))
    made = Prototypes.load(tmp_path)
    second = np.array([1, 0, 0, 2, 0]) / np.sqrt(5)
    expected = np.array([1, 0, 0, 0, 0]) + second
    np.testing.assert_allclose(made.vectors[0], expected / np.linalg.norm(expected), atol=1e-7)
    assert made.names == ["a", "bb"]


def test_names_in_a_file_are_those_in_the_settings_and_have_their_key(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("  a \n\nb\n")
    given, read = (
        EncodePrototypes(Letters(), ("{c}",), names) for names in (("a", "b"), str(tmp_path / "names.txt"))
    )
    assert read.names() == ["a", "b"]
    assert key_of(given, {}) == key_of(read, {})
    assert key_of(given, {}) != key_of(EncodePrototypes(Letters(), ("{c}",), ("b", "a")), {})


def test_cosines_are_those_of_float64_rounded_once(world: World) -> None:
    _, _, _, made, _ = fairly(world, prototypes())
    image: Embeddings = world.sides["image"]
    stored = image.gather(image.rows).astype(np.float64)
    unit = prototypes().astype(np.float64)
    unit = np.rint(unit / np.linalg.norm(unit, axis=1, keepdims=True) * 2**24) / 2**24
    both = np.concatenate([stored, unit])
    expected = (both @ both.T / np.outer(*[np.linalg.norm(both, axis=1)] * 2))[: len(stored), len(stored) :]
    np.testing.assert_allclose(np.asarray(made.cosines)[image.rows] / UNITS, expected, atol=2e-9)


# what can be set wrongly


SETTINGS: list[tuple[dict[str, Any], str, str]] = [
    ({"encoder": None}, "encoder", "encoder.dedup"),
    ({"encoder": ImagesAlone()}, "ImagesAlone", "text tower"),
    ({"encoder": Read()}, "Read", "FILE.npy"),
    ({"templates": ()}, "templates", "{c}"),
    ({"templates": ("a photo",)}, "a photo", "{c}"),
    ({"modality": "text"}, "modality", "images"),
    ({"rule": "chain"}, "rule", "greedy"),
    ({"epsilon": None, "num_kept": 3}, "num_kept", "null"),
]


@pytest.mark.parametrize(("changes", "named", "way_out"), SETTINGS, ids=str)
def test_settings_that_cannot_be_are_refused_with_the_way_out(
    changes: dict[str, Any], named: str, way_out: str
) -> None:
    with pytest.raises(ConfigError) as problem:
        fairdedup(**changes)
    assert named in str(problem.value)
    assert way_out in str(problem.value)


def few(tmp_path: Path) -> str:
    (tmp_path / "names.txt").write_text("one\n")
    return str(tmp_path / "names.txt")


def latin1(tmp_path: Path) -> str:
    (tmp_path / "names.txt").write_bytes(b"caf\xe9\nb\n")
    return str(tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("concepts", "kind", "fact"),
    [
        (lambda home: ("a", "a"), ConfigError, "'a' occurs twice"),
        (lambda home: None, ConfigError, "a text file"),
        (few, ConfigError, "it has 1"),
        (lambda home: str(home / "none.txt"), ConfigError, "none.txt"),
        (latin1, WorldError, "UTF-8"),
    ],
)
def test_lists_of_concepts_that_cannot_be_used_are_refused(
    concepts: Callable[[Path], Any], kind: type[Exception], fact: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as problem:
        EncodePrototypes(Letters(), ("{c}",), concepts(tmp_path)).names()
    assert fact in str(problem.value)


def test_prototypes_of_another_width_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match=r"5 numbers.*they have 4"):
        fairly(world, np.eye(4, dtype=np.float32))


def test_a_stage_with_the_fair_rule_is_rebuilt_from_its_manifest(world: World) -> None:
    *_, node = fairly(world, prototypes())
    assert rebuild(describe(node.stage)) == node.stage
