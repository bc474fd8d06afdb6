"""Duplicates: nearest earlier rows against all pairs in float64, both rules by plain loops, exact copies."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from dbp.curate import ValidRows
from dbp.data.clusters import Clusters
from dbp.data.columns import Columns
from dbp.data.embeddings import Embeddings, save_part
from dbp.data.keep_list import KeepList, everything
from dbp.data.missing import Missing
from dbp.data.pool import Pool, digest_16, hash_64
from dbp.data.scores import Scores
from dbp.decisions import explained
from dbp.dedup import pairs as pairs_module
from dbp.dedup import similar as similar_module
from dbp.dedup.exact import ExactContent, first_equal
from dbp.dedup.pairs import nearest_earlier, similar_pairs
from dbp.dedup.semdedup import SemDeDup, keep_exactly, remove_greedily, remove_similar
from dbp.dedup.similar import NearestEarlier, Pairs, SimilarRows, cluster_ranges
from dbp.engine.stage import Node, Stage
from dbp.engine.store import Store
from dbp.engine.work import Work
from dbp.errors import BudgetError, ConfigError
from dbp.exact.order import keyed_hash

TILES = [(3, 7), (8, 5), (1024, 4096)]


@pytest.fixture(params=TILES, ids=lambda tile: f"{tile[0]}x{tile[1]}")
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of several shapes; the small ones are read from the stored vectors, one by one."""
    monkeypatch.setattr(pairs_module, "ROWS", request.param[0])
    monkeypatch.setattr(pairs_module, "COLUMNS", request.param[1])
    if request.param != TILES[-1]:
        monkeypatch.setattr(pairs_module, "IN_MEMORY", 0)


def cosines(vectors: np.ndarray) -> np.ndarray:
    """All pairs, each cosine summed alone in float64."""
    precise = vectors.astype(np.float32).astype(np.float64)
    products = (precise[:, None] * precise[None]).sum(axis=2)
    norms = np.sqrt((precise**2).sum(axis=1))
    return np.minimum(products / np.outer(norms, norms), 1.0)


def all_pairs(cosine: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every earlier row of every row; ties to the earliest."""
    best, twin = np.full(len(order), -np.inf), np.full(len(order), -1)
    for place, row in enumerate(order):
        for earlier in order[:place]:
            if cosine[row, earlier] > best[row]:
                best[row], twin[row] = cosine[row, earlier], earlier
    return best, twin


def check(vectors: np.ndarray, order: np.ndarray, threads: int = 1) -> None:
    similarity, twin = nearest_earlier(vectors, order, threads=threads)
    expected, expected_twin = all_pairs(cosines(vectors), order)
    np.testing.assert_array_equal(twin, expected_twin)
    np.testing.assert_allclose(similarity, expected, rtol=0, atol=1e-14)


def stored(vectors: np.ndarray) -> np.ndarray:
    """Unit length, rounded to fp16."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


# the nearest earlier row


@pytest.mark.parametrize("threads", [1, 2])
def test_the_nearest_earlier_row_is_that_of_all_pairs(tile: None, threads: int) -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(40, 6)) * rng.lognormal(0, 2, (40, 1))
        for order in (np.arange(40), np.arange(40)[::-1], rng.permutation(40)):
            check(vectors.astype(np.float32), order, threads)
        check(stored(vectors), order, threads)


@pytest.mark.parametrize("combine", ["min", "max"])
@pytest.mark.parametrize("threads", [1, 2])
def test_two_sides_are_as_alike_as_their_least_or_most_alike_side(tile: None, threads: int, combine: Any) -> None:
    rng = np.random.default_rng(2)
    sides = [stored(rng.normal(size=(60, width))) for width in (3, 9)]
    sides[0][20:30] = sides[0][:10]  # pictures that are equal, with captions that are not
    sides[1][25:35] = sides[1][5:15]
    order = rng.permutation(60)
    together = {"min": np.minimum, "max": np.maximum}[combine]
    expected, expected_twin = all_pairs(together(*map(cosines, sides)), order)
    similarity, twin = nearest_earlier(sides, order, combine, threads)
    np.testing.assert_array_equal(twin, expected_twin)
    np.testing.assert_allclose(similarity, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("combine", ["min", "max"])
def test_a_side_beside_itself_is_that_side_alone(tile: None, combine: Any) -> None:
    rng = np.random.default_rng(3)
    side = stored(rng.normal(size=(50, 8)))
    side[30:40] = side[:10]
    order = rng.permutation(50)
    alone, twice = nearest_earlier(side, order), nearest_earlier([side, side], order, combine)
    for one, other in zip(alone, twice, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("width", [3, 33, 128])
def test_of_exact_ties_the_earliest_in_the_order_is_named(width: int, tile: None) -> None:
    rng = np.random.default_rng(width)
    # Of three equal rows, a matrix product can give one another last bit.
    originals = stored(rng.normal(size=(15, width)))
    vectors = originals[rng.integers(0, 15, 60)]
    order = rng.permutation(60)
    _, twin = nearest_earlier(vectors, order)
    place = np.argsort(order)
    for row in range(60):
        equal = np.flatnonzero((vectors == vectors[row]).all(axis=1))
        first = equal[place[equal].argmin()]
        assert first == row or twin[row] == first


def test_copies_of_another_length_tie_with_their_original(tile: None) -> None:
    lengths = np.float32(2) ** np.arange(-10, 11, dtype=np.float32)[:, None]
    for seed in range(20):  # rounding takes the cosine of some of these above 1
        vector = np.random.default_rng(seed).normal(size=(1, 128)).astype(np.float32)
        similarity, twin = nearest_earlier(vector * lengths, np.arange(21))
        assert twin.tolist() == [-1] + [0] * 20
        assert (np.abs(similarity[1:] - 1) < 1e-15).all()
        assert similarity.max() <= 1


def test_rivals_that_fp32_cannot_tell_apart_are_told_apart(tile: None) -> None:
    rng = np.random.default_rng(4)
    centre = rng.normal(size=48)
    centre /= np.linalg.norm(centre)
    # Apart by less than 2 parts in a million, so that fp32 sees all of them as near to the best.
    vectors = (centre + rng.normal(scale=1e-4, size=(60, 48))).astype(np.float16)
    check(vectors, rng.permutation(60))
    whole = vectors.astype(np.float32)
    in_fp32 = np.where(np.tri(60, k=-1) > 0, whole @ whole.T, -np.inf).argmax(axis=1)
    assert (in_fp32[1:] != nearest_earlier(vectors, np.arange(60))[1][1:]).any()


def test_fp16_vectors_are_compared_as_stored() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(50, 12)).astype(np.float16)
    vectors[20:30] = vectors[:10]
    check(vectors, rng.permutation(50))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_none_one_and_two_rows(n: int) -> None:
    vectors = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)[:n]
    similarity, twin = nearest_earlier(vectors, np.arange(n)[::-1])
    # In reverse order the last row comes first, so row 0 has row 1 before it.
    assert twin.tolist() == [[], [-1], [1, -1]][n]
    np.testing.assert_allclose(similarity, [[], [-np.inf], [0.6, -np.inf]][n], atol=1e-7)
    later, earlier, similar = similar_pairs(vectors, np.arange(n)[::-1], -2.0)
    assert list(zip(later.tolist(), earlier.tolist(), strict=True)) == [[], [], [(0, 1)]][n]
    assert len(similar) == max(0, n - 1)


def test_opposite_rows_have_similarity_minus_one_and_still_name_each_other() -> None:
    similarity, twin = nearest_earlier(np.array([[1.0], [-1.0]], np.float32), np.arange(2))
    assert similarity[1] == -1
    assert twin[1] == 0


@pytest.mark.parametrize("order", [[0, 1, 1], [1, 2, 3]])
def test_an_order_that_is_no_permutation_is_refused(order: list[int]) -> None:
    for compare in (nearest_earlier, lambda v, o: similar_pairs(v, o, 0.5)):
        with pytest.raises(ValueError, match=r"order must hold each of 0\.\.2 once"):
            compare(np.eye(3, dtype=np.float32), np.array(order))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_named_by_its_row(bad: float) -> None:
    vectors = np.eye(4, dtype=np.float32)
    vectors[2] = bad
    with pytest.raises(ValueError, match="vector 2 is zero or not finite"):
        nearest_earlier(vectors, np.array([3, 2, 1, 0]))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("floor", [-2.0, 0.0, 0.3, 0.9, 1.0])
def test_pairs_above_a_floor_are_those_of_all_pairs(tile: None, threads: int, floor: float) -> None:
    rng = np.random.default_rng(6)
    vectors = stored(rng.normal(size=(40, 4)))
    vectors[30:] = vectors[:10]
    order = rng.permutation(40)
    cosine = cosines(vectors)
    expected = [
        (row, earlier)
        for place, row in enumerate(order)
        for earlier in order[:place]
        if cosine[row, earlier] > floor
    ]
    later, earlier, similarity = similar_pairs(vectors, order, floor, threads=threads)
    assert list(zip(later.tolist(), earlier.tolist(), strict=True)) == expected
    np.testing.assert_allclose(similarity, cosine[later, earlier], rtol=0, atol=1e-14)


@pytest.mark.parametrize("combine", ["min", "max"])
def test_pairs_of_two_sides_are_those_of_all_pairs(tile: None, combine: Any) -> None:
    rng = np.random.default_rng(7)
    sides = [stored(rng.normal(size=(40, width))) for width in (3, 5)]
    together = {"min": np.minimum, "max": np.maximum}[combine](*map(cosines, sides))
    later, earlier, similarity = similar_pairs(sides, np.arange(40), 0.2, combine)
    assert set(zip(later.tolist(), earlier.tolist(), strict=True)) == {
        (i, j) for i in range(40) for j in range(i) if together[i, j] > 0.2
    }
    np.testing.assert_allclose(similarity, together[later, earlier], rtol=0, atol=1e-14)


# the chain rule


def all_rows(n: int) -> KeepList:
    return everything("pool", np.ones(n, bool))


def found(similarity: Any, twin: Any = None, **more: Any) -> SimilarRows:
    """Stored similarities of one cluster."""
    values = np.asarray(similarity, np.float32)
    twins = np.full(len(values), -1) if twin is None else np.asarray(twin)
    return SimilarRows(values, twins, np.zeros(len(values), np.int32), **more)


def similar(order: Any, vectors: np.ndarray) -> SimilarRows:
    return found(*nearest_earlier(vectors, np.asarray(order)))


def at_degrees(*degrees: float) -> np.ndarray:
    turned = np.radians(degrees)
    return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def test_in_a_chain_b_and_c_go_although_c_is_only_like_b() -> None:
    # a, b and c lie 10 degrees apart; cos 10 is 0.985 and cos 20 is 0.940. At epsilon 0.03, a is like
    # b, and b like c, but a is not like c. The chain rule compares c with b, although b goes.
    vectors = at_degrees(0, 10, 20)
    kept = remove_similar(all_rows(3), similar([0, 1, 2], vectors), 0.03)
    assert kept.rows.tolist() == [0]
    gone = [kept.decision(row) for row in (1, 2)]
    assert [d["related_row"] for d in gone] == [0, 1]
    assert [d["reason"] for d in gone] == ["duplicate", "duplicate"]
    assert gone[0]["value"] == pytest.approx(np.cos(np.radians(10)), abs=1e-7)
    assert gone[0]["limit"] == pytest.approx(0.97)
    assert kept.decision(0)["value"] is None


def test_the_order_decides_which_row_of_a_chain_stays() -> None:
    vectors = at_degrees(0, 10, 20)
    middle_first = remove_similar(all_rows(3), similar([1, 0, 2], vectors), 0.03)
    assert middle_first.rows.tolist() == [1]
    ends_first = remove_similar(all_rows(3), similar([0, 2, 1], vectors), 0.03)
    assert ends_first.rows.tolist() == [0, 2]


def test_a_larger_epsilon_keeps_a_subset() -> None:
    rng = np.random.default_rng(8)
    near = similar(rng.permutation(200), rng.normal(size=(200, 4)).astype(np.float32))
    kept = [remove_similar(all_rows(200), near, e) for e in (0.0, 0.01, 0.05, 0.3, 1.0, 2.0)]
    for smaller, larger in zip(kept[1:], kept, strict=False):
        assert set(smaller.rows) <= set(larger.rows)
    assert kept[0].num_kept == 200
    assert kept[-1].num_kept == 1, "only the first row has none before it"


@pytest.mark.parametrize("epsilon", [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.3])
def test_the_threshold_itself_stays_and_is_compared_in_fp32(epsilon: float) -> None:
    # 1 - epsilon is no binary fraction: as published, both sides are rounded to fp32 first.
    limit = 1 - epsilon
    near = found([-np.inf, limit, limit + 1e-10, limit + 1e-6, limit - 1e-6], [-1, 0, 0, 0, 0])
    assert remove_similar(all_rows(5), near, epsilon).rows.tolist() == [0, 1, 2, 4]


def test_exact_copies_stay_at_epsilon_nought_and_go_just_above() -> None:
    near = similar([0, 1], np.array([[0.6, 0.8], [0.6, 0.8]], np.float32))
    assert remove_similar(all_rows(2), near, 0.0).num_kept == 2
    assert remove_similar(all_rows(2), near, 1e-6).num_kept == 1


def test_rows_without_a_vector_go_for_their_reason() -> None:
    near = found(
        [np.nan, -np.inf, np.nan, 0.2, np.nan], [-1, -1, -1, 1, -1],
        missing=Missing.of({2: "undecodable image", 4: "zero embedding"}),
    )  # fmt: skip
    kept = remove_similar(all_rows(5), near, 0.05)
    assert kept.rows.tolist() == [1, 3]
    reasons = [kept.decision(row)["reason"] for row in (0, 2, 4)]
    assert reasons == ["no embedding", "undecodable image", "zero embedding"]
    for row in (0, 2, 4):
        assert kept.decision(row)["related_row"] is kept.decision(row)["value"] is None


def test_where_no_row_has_a_vector_no_row_is_kept() -> None:
    kept = remove_similar(all_rows(3), found([np.nan] * 3), 0.05)
    assert kept.num_kept == 0
    assert kept.counts() == {"dedup: no embedding": 3}


def test_rows_that_are_gone_already_keep_their_own_reason() -> None:
    near = found([-np.inf, 0.1, 0.99, 0.2], [-1, 0, 1, 0])
    narrower = all_rows(4).narrow("pool", np.array([True, False, True, True]), "no caption", "valid")
    kept = remove_similar(narrower, near, 0.05)
    assert kept.rows.tolist() == [0, 3]
    assert kept.decision(1)["reason"] == "no caption"


# exactly so many rows


def test_every_number_between_those_that_come_first_and_all_can_be_kept() -> None:
    rng = np.random.default_rng(9)
    near = similar(rng.permutation(60), rng.normal(size=(60, 3)).astype(np.float32))
    near.similarity[[5, 9]] = np.nan  # two rows without a vector
    rows = everything("pool", np.arange(60) != 11)
    usable = np.flatnonzero(rows.mask & near.has_vector)
    in_order = usable[np.argsort(near.similarity[usable], kind="stable")]
    least = int(np.isneginf(near.similarity[usable]).sum())
    before: set[int] = set()
    for count in range(least, len(usable) + 1):
        kept, _ = keep_exactly(rows, near, count)
        assert kept.rows.tolist() == sorted(in_order[:count])
        assert before < set(kept.rows.tolist()) or count == least
        before = set(kept.rows.tolist())


def test_of_equally_similar_rows_the_lower_ones_are_kept() -> None:
    near = found([-np.inf, 0.9, 0.9, 0.9, 0.5], [-1, 0, 0, 0, 0])
    kept = [keep_exactly(all_rows(5), near, count)[0].rows.tolist() for count in (1, 2, 3, 4, 5)]
    assert kept == [[0], [0, 4], [0, 1, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]]


def test_the_epsilon_that_a_number_implies_is_that_of_the_last_row_to_go() -> None:
    near = found([-np.inf, 0.75, 0.5, 0.25], [-1, 0, 0, 0])
    implied = {count: keep_exactly(all_rows(4), near, count)[1] for count in (1, 2, 3, 4)}
    assert implied == {1: 0.75, 2: 0.5, 3: 0.25, 4: 0.0}
    # A row goes above 1 - epsilon, so a little more than the implied one gives the same rows.
    for count, epsilon in implied.items():
        again = remove_similar(all_rows(4), near, epsilon + 1e-6)
        assert again.digest == keep_exactly(all_rows(4), near, count)[0].digest


def test_of_the_rows_that_go_each_says_what_it_is_like_and_what_the_limit_was() -> None:
    near = found([-np.inf, 0.75, 0.5, 0.25], [-1, 0, 1, 2])
    kept, _ = keep_exactly(all_rows(4), near, 2)
    gone = kept.decision(2)
    assert (gone["reason"], gone["value"], gone["related_row"]) == ("duplicate", 0.5, 1)
    assert gone["limit"] == 0.5


@pytest.mark.parametrize("count", [-1, 0, 1, 5, 6])
def test_a_number_that_cannot_be_kept_is_refused_with_the_way_out(count: int) -> None:
    near = found([-np.inf, 0.9, -np.inf, 0.5, np.nan], [-1, 0, -1, 2, -1])
    with pytest.raises(BudgetError) as refusal:
        keep_exactly(all_rows(5), near, count)
    assert str(refusal.value) == (
        f"cannot keep dedup.num_kept={count:,} rows: 4 have a vector, and 2 of them come first in their "
        "cluster, so nothing removes them. Give a number between, or fewer clusters."
    )


# both rules on whole clusterings


def chain_by_hand(cosine: np.ndarray, orders: list[list[int]], epsilon: float) -> set[int]:
    """The published rule: each row against every earlier one, in fp32."""
    limit = np.float32(1 - epsilon)
    return {
        row
        for order in orders
        for place, row in enumerate(order)
        if not any(np.float32(cosine[row, earlier]) > limit for earlier in order[:place])
    }


def greedy_by_hand(
    cosine: np.ndarray, orders: list[list[int]], epsilon: float
) -> tuple[set[int], dict[int, tuple[int, float]]]:
    """Each row against earlier rows that stay; and of those that go, the most similar one that removes it."""
    limit = np.float32(1 - epsilon)
    stays: set[int] = set()
    gone: dict[int, tuple[int, float]] = {}
    for order in orders:
        kept: list[int] = []
        for row in order:
            removes = [e for e in kept if np.float32(cosine[row, e]) > limit]
            if removes:
                best = max(removes, key=lambda e, row=row: np.float32(cosine[row, e]))
                gone[row] = (best, float(np.float32(cosine[row, best])))
            else:
                kept.append(row)
        stays |= set(kept)
    return stays, gone


def test_the_greedy_rule_keeps_c_because_b_goes() -> None:
    vectors = at_degrees(0, 10, 20)
    pairs = Pairs(*similar_pairs(vectors, np.arange(3), 0.9)[:2],
                  similar_pairs(vectors, np.arange(3), 0.9)[2].astype(np.float32))  # fmt: skip
    near = found(*nearest_earlier(vectors, np.arange(3)), pairs=pairs)
    kept = remove_greedily(all_rows(3), near, 0.03)
    assert kept.rows.tolist() == [0, 2]
    assert kept.decision(1)["related_row"] == 0
    assert kept.decision(2)["related_row"] is kept.decision(2)["value"] is None


HELD: dict[str, Any] = {}  # artifacts that tests put into a store, by name


@dataclass(frozen=True)
class Given(Stage):
    """Something that is there already."""

    name: ClassVar[str] = "given"
    makes: ClassVar[type] = object

    label: str

    def run(self, work: Work) -> dict[str, Any]:
        (work.folder / "given").touch()
        return {}

    def open(self, home: Path, **inputs: Any) -> Any:
        return HELD[self.label]


def lumps(n: int, width: int, seed: int) -> np.ndarray:
    """Vectors among which many are near others, some equal to others, at all scales of similarity.

    Those of all seeds agree in who is near whom, and differ in how near.
    """
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    lump, copies = shared.integers(0, n // 6, n), shared.choice(n, (2, n // 8), replace=False)
    vectors = own.normal(size=(n // 6, width))[lump]
    vectors = vectors + own.normal(size=(n, width)) * own.choice([0.02, 0.1, 0.3, 1], (n, 1))
    vectors[copies[0]] = vectors[copies[1]]
    return vectors


class World:
    """A small pool in a store, with vectors of both sides in parts and all that orders rows."""

    def __init__(self, root: Path, lacks_text: bool = False) -> None:
        rng = np.random.default_rng(10)
        self.n = n = 160
        self.valid = rng.random(n) < 0.95
        self.size = rng.integers(1, 4, (2, n)) * 100
        score = rng.integers(0, 20, n).astype(np.float32) / 20
        score[rng.random(n) < 0.1] = np.nan
        self.uids = [f"sample-{i}" for i in range(n)]
        self.hashes = np.array([hash_64(uid.encode()) for uid in self.uids], np.uint64)
        self.pool = Pool(
            Columns(pa.table({
                "uid": self.uids, "uid_hash": self.hashes,
                "reason": ["" if valid else "no caption" for valid in self.valid],
                "width": pa.array(self.size[0], pa.int32()),
                "height": pa.array(self.size[1], pa.int32()),
            })), [], "pool", "txt", 10**6,
        )  # fmt: skip
        self.scores = Scores(score)
        self.vectors = {"image": lumps(n, 5, 1), "text": lumps(n, 7, 2)}
        self.without = {7: "undecodable image", 90: "zero embedding"}
        self.sides = {}
        for side, vectors in self.vectors.items():
            for number, rows in enumerate(np.split(np.arange(n), [50, 50, 120])):
                folder = root / side / f"part-{number}"
                folder.mkdir(parents=True)
                failed = {r: why for r, why in self.without.items() if r in rows}
                if lacks_text and side == "text" and number == 0:
                    failed[3] = "no tokens"
                own = np.setdiff1d(rows, list(failed))
                save_part(folder, own, vectors[own].astype(np.float32), failed)
            self.sides[side] = Embeddings.load(root / side)
        self.store = Store(root / "store")

    def node(self, label: str, held: Any) -> Node:
        HELD[f"{self.store.root}/{label}"] = held
        return Given(f"{self.store.root}/{label}").bind()

    def bind(self, stage: SemDeDup) -> dict[str, Node]:
        """The nodes of a dedup, as the recipe binds them."""
        pool = self.node("pool", self.pool)
        rows = ValidRows().bind(pool=pool)
        wanted = {"image": ["image"], "text": ["text"]}.get(stage.modality, ["image", "text"])
        sides: dict[str, Node | None] = {
            side: self.node(side, self.sides[side]) if side in wanted else None for side in ("image", "text")
        }
        clustering = stage.clustering()
        own: dict[str, Node | None] = {
            side: node if side == clustering.modality or clustering.modality == "joint" else None
            for side, node in sides.items()
        }
        centroids = clustering.fitting().bind(rows=rows, pool=pool, **own)
        clusters = clustering.bind(rows=rows, centroids=centroids, **own)
        scores = self.node("scores", self.scores) if stage.keep == "score" else None
        similar = stage.comparison().bind(rows=rows, pool=pool, clusters=clusters, scores=scores, **sides)
        return {"clusters": clusters, "similar": similar, "dedup": stage.bind(rows=rows, similar=similar)}

    def dedup(self, stage: SemDeDup) -> tuple[KeepList, Clusters, SimilarRows]:
        nodes = self.bind(stage)
        kept, clusters, near = (self.store.get(nodes[n]) for n in ("dedup", "clusters", "similar"))
        assert isinstance(kept, KeepList)
        return kept, clusters, near

    def cosine(self, match: str) -> np.ndarray:
        """Similarity of all pairs from the stored vectors, by what rows must share."""
        sides = {}
        for side, made in self.sides.items():
            whole = np.full((self.n, made.width), np.nan)
            whole[made.rows] = made.gather(made.rows)
            sides[side] = whole
        if match == "joint":
            return cosines(np.concatenate([sides["image"], sides["text"]], axis=1))
        if match in sides:
            return cosines(sides[match])
        together = np.minimum if match == "both" else np.maximum
        return together(cosines(sides["image"]), cosines(sides["text"]))

    def orders(self, clusters: Clusters, keep: str, seed: int = 0) -> list[list[int]]:
        """The rows of each cluster in the order in which they stay; ties to the lower row."""
        distance = clusters.distance_to_centroid
        score = np.where(np.isnan(self.scores.values), -1, self.scores.values)
        values: dict[str, Any] = {
            "hard": -distance,
            "easy": distance,
            "random": keyed_hash(self.hashes, seed).tolist(),
            "score": -score,
            "largest": -(self.size[0] * self.size[1]),
        }
        return [
            sorted(np.flatnonzero(clusters.assignment == j).tolist(), key=lambda r: (values[keep][r], r))
            for j in range(clusters.num_clusters)
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One store for all tests that only read what stages make."""
    return World(tmp_path_factory.mktemp("world"))


def semdedup(epsilon: float | None = 0.05, **changes: Any) -> SemDeDup:
    settings: dict[str, Any] = {
        "num_clusters": 8, "num_iterations": 5, "points_per_centroid": 100, "keep": "hard",
        "seed": 0, "modality": "image", "device": "cpu",
    }  # fmt: skip
    return SemDeDup(epsilon, **(settings | changes))


@pytest.mark.parametrize("keep", ["hard", "easy", "random", "score", "largest"])
def test_the_chain_rule_is_that_of_a_plain_loop_in_every_order_of_keeping(keep: str, world: World) -> None:
    kept, clusters, _ = world.dedup(semdedup(keep=keep, seed=3))
    orders, cosine = world.orders(clusters, keep, seed=3), world.cosine("image")
    assert set(kept.rows.tolist()) == chain_by_hand(cosine, orders, 0.05)
    assert 0.3 < kept.num_kept / 160 < 0.9, "the test says something"


@pytest.mark.parametrize("modality", ["image", "text", "joint", "both", "either"])
def test_both_rules_are_those_of_plain_loops_whatever_rows_must_share(modality: Any, world: World) -> None:
    cosine = world.cosine(modality)
    for epsilon in (0.001, 0.05):
        chain, clusters, _ = world.dedup(semdedup(epsilon, modality=modality))
        orders = world.orders(clusters, "hard")
        assert set(chain.rows.tolist()) == chain_by_hand(cosine, orders, epsilon)
        greedy, _, _ = world.dedup(semdedup(epsilon, modality=modality, rule="greedy"))
        stays, gone = greedy_by_hand(cosine, orders, epsilon)
        assert set(greedy.rows.tolist()) == stays
        assert set(chain.rows) <= set(greedy.rows), "a chain removes at least as many"
        full = explained(world.store, str(world.store.key(world.bind(
            semdedup(epsilon, modality=modality, rule="greedy"))["dedup"])))  # fmt: skip
        told = {row: full.decision(row) for row in gone}
        assert {row: (d["related_row"], d["value"]) for row, d in told.items()} == gone
        assert {d["reason"] for d in told.values()} == {"duplicate"}
    assert len(stays) < 140


def test_every_epsilon_and_every_number_of_rows_use_one_stored_comparison(tmp_path: Path) -> None:
    world = World(tmp_path)
    kept = [world.dedup(semdedup(e))[0].num_kept for e in (0.001, 0.02, 0.1)]
    exact = [world.dedup(semdedup(None, num_kept=n))[0].num_kept for n in kept]
    assert kept == exact == sorted(kept, reverse=True)
    greedy = [world.dedup(semdedup(e, rule="greedy", floor=0.8))[0].num_kept for e in (0.01, 0.1, 0.2)]
    assert greedy == sorted(greedy, reverse=True)
    made = [entry.stage for entry in world.store.entries()]
    assert made.count("similar") == 2, "one for the chain rule, one with pairs above the floor"
    assert made.count("dedup") == 9
    assert semdedup(0.1).comparison() == semdedup(0.2).comparison()


def test_the_stored_comparison_is_that_of_all_pairs_of_each_cluster(world: World) -> None:
    _, clusters, near = world.dedup(semdedup(0.05, rule="greedy", floor=0.7))
    cosine = world.cosine("image")
    assert near.pairs is not None
    pairs = set(zip(near.pairs.later.tolist(), near.pairs.earlier.tolist(), strict=True))
    expected = set()
    for j, order in enumerate(world.orders(clusters, "hard")):
        for place, row in enumerate(order):
            earlier = order[:place]
            assert near.cluster[row] == j
            if not earlier:
                assert np.isneginf(near.similarity[row])
                assert near.twin[row] == -1
                continue
            best = max(earlier, key=lambda e, row=row: cosine[row, e])
            assert near.similarity[row] == np.float32(cosine[row, best])
            assert near.twin[row] == best
            expected |= {(row, e) for e in earlier if cosine[row, e] > 0.7}
    assert pairs == expected
    lost = ~world.valid | np.isin(np.arange(160), list(world.without))
    np.testing.assert_array_equal(near.has_vector, ~lost)


@pytest.mark.parametrize(
    ("way", "parts"),
    [({"threads": 2}, "many"), ({"runs": "yes"}, "one"), ({"runs": "yes", "threads": 2}, "many")],
    ids=str,
)
def test_threads_parts_tiles_and_sorted_runs_change_nothing_that_is_stored(
    way: dict[str, Any], parts: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _, near = world.dedup(semdedup(0.05, rule="greedy"))
    if parts == "many":
        monkeypatch.setattr(similar_module, "PART_COST", 1.0)
        monkeypatch.setattr(pairs_module, "ROWS", 3)
        monkeypatch.setattr(pairs_module, "COLUMNS", 5)
    again, clusters, same = World(tmp_path).dedup(semdedup(0.05, rule="greedy", **way))
    assert bool(clusters.runs) == ("runs" in way)
    assert again.digest == kept.digest
    for name in ("similarity", "twin", "cluster"):
        np.testing.assert_array_equal(getattr(same, name), getattr(near, name))
    for name in ("later", "earlier", "similarity"):
        np.testing.assert_array_equal(getattr(same.pairs, name), getattr(near.pairs, name))


def test_what_was_compared_is_worked_out_again_from_the_store(world: World) -> None:
    nodes = world.bind(semdedup(0.05))
    plain, _, near = world.dedup(semdedup(0.05))
    full = explained(Store(world.store.root), str(world.store.key(nodes["dedup"])))
    assert full.digest == plain.digest
    row = int(np.flatnonzero(near.similarity > 0.96)[0])
    assert plain.decision(row)["value"] is None
    told = full.decision(row)
    assert told["value"] == near.similarity[row]
    assert told["limit"] == 0.95
    assert told["related_row"] == near.twin[row]
    assert told["cluster"] == near.cluster[row]
    assert full.decision(7)["reason"] == plain.decision(7)["reason"] == "undecodable image"
    invalid = int(np.flatnonzero(~world.valid)[0])
    assert full.decision(invalid)["reason"] == "no caption"


def test_the_manifest_counts_what_went_for_each_reason(world: World) -> None:
    kept, _, _ = world.dedup(semdedup(None, num_kept=100))
    entry = world.store.entry(world.bind(semdedup(None, num_kept=100))["dedup"])
    assert entry is not None
    counts = entry.manifest["counts"]
    assert (counts["rows"], counts["kept"]) == (int(world.valid.sum()), 100)
    assert counts["undecodable image"] == counts["zero embedding"] == 1
    assert counts["duplicate"] == counts["rows"] - 102
    assert counts["keep list"] == kept.digest
    assert 0 < counts["epsilon"] < 2


@pytest.mark.parametrize("floor", [-1.0, 0.0, 0.5])
def test_the_manifest_counts_the_pairs_whatever_the_floor(floor: float, world: World) -> None:
    stage = semdedup(0.05, rule="greedy", floor=floor)
    _, _, near = world.dedup(stage)
    entry = world.store.entry(world.bind(stage)["similar"])
    assert entry is not None
    assert near.pairs is not None
    assert entry.manifest["counts"]["pairs"] == len(near.pairs.later) > 0


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("lacking"), lacks_text=True)


@pytest.mark.parametrize("rule", ["chain", "greedy"])
@pytest.mark.parametrize("modality", ["joint", "both", "either"])
def test_a_row_that_lacks_its_caption_s_vector_goes_for_that_reason(
    modality: Any, rule: Any, lacking: World
) -> None:
    world = lacking
    assert world.valid[3]
    kept, _, _ = world.dedup(semdedup(0.05, modality=modality, rule=rule))
    assert kept.decision(3)["reason"] == "no tokens"


# clusters of size nought, one and two; ranges of clusters


def test_clusters_of_size_nought_one_and_two_are_compared_within(tmp_path: Path) -> None:
    rows = {0: [0.0], 1: [], 2: [90.0, 91.0], 3: [180.0, 200.0], 4: [0.1]}
    degrees = np.concatenate([np.array(own) for own in rows.values()])
    cluster = np.repeat(list(rows), [len(own) for own in rows.values()]).astype(np.int32)
    (tmp_path / "part-0").mkdir()
    save_part(tmp_path / "part-0", np.arange(6), at_degrees(*degrees), {})
    centroids = np.tile(np.array([[1.0, 0.0]], np.float32), (5, 1))
    clusters = Clusters(centroids, cluster, np.linspace(0.6, 0.1, 6, dtype=np.float32))
    stage = semdedup(0.01, rule="greedy").comparison()
    (tmp_path / "made").mkdir()
    work = Work(tmp_path / "made", tmp_path / "shared", "key")
    pool = Pool(Columns(pa.table({"uid": list("abcdef")})), [], "pool", "txt", 1)
    counts = stage.run(work, rows=all_rows(6), pool=pool, clusters=clusters, image=Embeddings.load(tmp_path))
    near = SimilarRows.load(tmp_path / "made")
    assert near.twin.tolist() == [-1, -1, 1, -1, 3, -1]
    assert remove_similar(all_rows(6), near, 0.01).rows.tolist() == [0, 1, 3, 4, 5]
    assert remove_greedily(all_rows(6), near, 0.01).rows.tolist() == [0, 1, 3, 4, 5]
    assert (counts["rows"], counts["largest cluster"], counts["pairs"]) == (6, 2, 2)


@pytest.mark.parametrize("seed", range(6))
def test_ranges_cover_each_cluster_once_and_keep_their_bounds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.choice([0, 0, 1, 2, 10, 50, 400], rng.integers(1, 60))
    width, work, most_rows = (16, float(rng.choice([1, 500, 20_000, 1e9])), int(rng.choice([1, 60, 10**6])))
    monkeypatch.setattr(similar_module, "PART_COST", work)
    monkeypatch.setattr(similar_module, "PART_ROWS", most_rows)
    bounds, costs = cluster_ranges(sizes, width)
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    assert (np.diff(bounds) > 0).all()
    each = sizes.astype(float) ** 2 * width / 2 + 1
    work = max(work, each.sum() / similar_module.MOST_PARTS)
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        assert costs[number] == pytest.approx(each[low:high].sum())
        alone = high - low == 1
        assert alone or (each[low:high].sum() <= work and sizes[low:high].sum() <= most_rows)
        if high < len(sizes):  # no range ends before it must
            more = slice(low, high + 1)
            assert each[more].sum() > work or sizes[more].sum() > most_rows


def test_ranges_are_no_more_than_a_scheduler_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar_module, "MOST_PARTS", 10)
    monkeypatch.setattr(similar_module, "PART_COST", 1.0)
    bounds, _ = cluster_ranges(np.full(1_000, 5), 8)
    assert len(bounds) - 1 <= 11


# settings


@pytest.mark.parametrize(("copies", "is_said"), [(4, False), (7, True)])
def test_dedup_that_removes_more_than_half_says_so_and_the_way_out(
    copies: int, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = everything("pool", np.ones(10, bool))
    similarity = np.where(np.arange(10) < copies, 0.99, 0.5).astype(np.float32)
    similar = SimilarRows(similarity, np.zeros(10, np.int64), np.zeros(10, np.int32), None, Missing())
    stage = SemDeDup(0.05, 2, 1, 8, "hard", 0, "image")
    work = Work(tmp_path, tmp_path, "key")
    stage.run(work, rows=rows, similar=similar)
    assert ("removed 7 of 10 rows" in caplog.text and "dedup.epsilon" in caplog.text) == is_said


@pytest.mark.parametrize(("copies", "is_said"), [(5, False), (6, True)])
def test_exact_dedup_that_removes_more_than_half_says_so_with_a_way_out_of_its_own(
    copies: int, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of([(str(max(number, copies)), "a caption") for number in range(10)])
    ExactContent(False).run(Work(tmp_path, tmp_path, "key"), rows=all_rows(10), pool=pool)
    assert (f"removed {copies} of 10 rows" in caplog.text and "dedup.with_caption" in caplog.text) == is_said
    assert "epsilon" not in caplog.text


@pytest.mark.parametrize("epsilon", [-0.1, 2.1, float("nan")])
def test_an_epsilon_outside_of_cosine_distance_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match=r"^epsilon=.*in \[0, 2\]: 1 - cosine"):
        semdedup(epsilon)


def test_exactly_one_of_epsilon_and_a_number_of_rows_is_given() -> None:
    for epsilon, num_kept in ((None, None), (0.05, 100)):
        with pytest.raises(ConfigError) as refusal:
            semdedup(epsilon, num_kept=num_kept)
        assert str(refusal.value) == (
            f"epsilon={epsilon}, num_kept={num_kept}: give exactly one of dedup.epsilon and dedup.num_kept; "
            "null unsets the other."
        )


def test_the_greedy_rule_takes_no_number_and_needs_a_floor_below_its_threshold() -> None:
    with pytest.raises(ConfigError, match=r"^num_kept=100: it must be null with rule=greedy"):
        semdedup(None, num_kept=100, rule="greedy")
    with pytest.raises(ConfigError, match=r"^floor=0.96: it must be at most 1 - dedup.epsilon = 0.95, "):
        semdedup(0.05, rule="greedy", floor=0.96)
    assert semdedup(0.05, rule="greedy", floor=0.95).comparison().floor == 0.95
    assert semdedup(0.05, floor=0.99).comparison().floor is None, "the chain rule reads no floor"


def test_what_is_compared_belongs_to_the_order_and_not_to_the_threshold() -> None:
    stages: list[NearestEarlier] = [
        semdedup(0.05, keep=keep, modality=modality).comparison()
        for keep in ("hard", "easy", "random", "score", "largest")
        for modality in ("image", "both")
    ]
    assert len(set(stages)) == 10
    assert semdedup(modality="both").clustering() == semdedup(modality="image").clustering()


# exact copies


def pool_of(samples: list[tuple[str, str]]) -> Pool:
    """A pool of (image content, caption) pairs."""
    table = pa.table(
        {
            "uid": [str(i) for i in range(len(samples))],
            "content_hash": pa.array([digest_16(i.encode()) for i, _ in samples], pa.binary(16)),
            "caption_hash": pa.array([digest_16(c.encode()) for _, c in samples], pa.binary(16)),
        }
    )
    return Pool(Columns(table), [], "pool", "txt", 10**6)


@pytest.mark.parametrize(
    ("with_caption", "kept", "twins"), [(False, [0, 1], {2: 0, 3: 0, 4: 1}), (True, [0, 1, 2], {3: 0, 4: 1})]
)
def test_the_first_of_equal_contents_stays_and_is_named(
    with_caption: bool, kept: list[int], twins: dict[int, int], tmp_path: Path
) -> None:
    pool = pool_of([("cat", "a"), ("dog", "b"), ("cat", "c"), ("cat", "a"), ("dog", "b")])
    decided, counts = ExactContent(with_caption).decide(rows=all_rows(5), pool=pool)
    assert decided.rows.tolist() == kept
    assert {row: decided.decision(row)["related_row"] for row in twins} == twins
    assert {decided.decision(row)["related_row"] for row in kept} == {None}
    assert counts["exact copies"] == len(twins)
    told = ExactContent(with_caption).run(Work(tmp_path, tmp_path, "key"), rows=all_rows(5), pool=pool)
    again = KeepList.load(tmp_path)
    assert again.digest == decided.digest == told["keep list"]
    assert {again.decision(row)["reason"] for row in twins} == {"exact copy"}


def test_a_copy_of_a_row_that_is_gone_already_stays() -> None:
    pool = pool_of([("cat", "a"), ("cat", "b"), ("cat", "c")])
    rows = all_rows(3).narrow("pool", np.array([False, True, True]), "no caption", "valid")
    kept, _ = ExactContent(False).decide(rows=rows, pool=pool)
    assert kept.rows.tolist() == [1]
    assert kept.decision(2)["related_row"] == 1


@pytest.mark.parametrize("words", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_first_equal_row_is_that_of_a_dictionary_also_where_first_words_agree(seed: int, words: int) -> None:
    rng = np.random.default_rng(seed)
    # Three values a word, so that many rows agree in the first word and not in the others.
    rows = rng.choice(np.array([0, 1, 2**64 - 1], np.uint64), (int(rng.integers(0, 80)), words))
    first: dict[tuple[int, ...], int] = {}
    expected = [first.setdefault(tuple(row.tolist()), i) for i, row in enumerate(rows)]
    assert first_equal(rows).tolist() == expected


def test_the_mathematics_is_there_for_a_notebook_under_its_names() -> None:
    from dbp.clustering.geometry import complexity, d_inter, d_intra
    from dbp.dedup import semdedup
    from dbp.selection.quotas import allocate, project

    eye = np.eye(3, dtype=np.float32)
    spread = d_intra(np.array([0.1, 0.3, 0.2, 0.4]), np.array([0, 0, 1, 2]), num_clusters=3)
    assert spread == pytest.approx([0.2, 0.2, 0.4])
    between = d_inter(eye, num_neighbours=2)
    assert complexity(between, spread) == pytest.approx(between * spread)
    targets, lower, upper = np.array([0.6, 0.4]) * 5, np.zeros(2), np.array([2.0, 9.0])
    assert project(targets, 5, lower, upper) == pytest.approx([2, 3])
    assert allocate(targets, 5, lower.astype(int), upper.astype(int)).tolist() == [2, 3]
    similarity, twin = semdedup.nearest_earlier(eye[[0, 1, 0]], np.arange(3))
    assert similarity[1:].tolist() == [0, 1]
    assert twin.tolist() == [-1, 0, 0]
