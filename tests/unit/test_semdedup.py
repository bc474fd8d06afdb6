"""Duplicates: nearest earlier rows against all pairs in float64, the chain rule, exact copies."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dbp.clustering.order import member_order
from dbp.data.index import digest_16, hash_64
from dbp.data.keep_list import KeepList, everything
from dbp.data.pool import Pool
from dbp.dedup import semdedup
from dbp.dedup.exact import ExactContent
from dbp.dedup.semdedup import SemDeDup, SimilarRows, nearest_earlier, remove_similar
from dbp.errors import ConfigError
from dbp.work import Work


def all_pairs(vectors: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every earlier row of every row, each cosine summed alone in float64; ties to the earliest."""
    precise = vectors.astype(np.float32).astype(np.float64)
    norms = np.sqrt((precise**2).sum(axis=1))
    best, twin = np.full(len(vectors), -np.inf), np.full(len(vectors), -1)
    for place, row in enumerate(order):
        for earlier in order[:place]:
            cosine = (precise[row] * precise[earlier]).sum() / (norms[row] * norms[earlier])
            if min(cosine, 1.0) > best[row]:
                best[row], twin[row] = min(cosine, 1.0), earlier
    return best, twin


def check(vectors: np.ndarray, order: np.ndarray) -> None:
    similarity, twin = nearest_earlier(vectors, order)
    expected, expected_twin = all_pairs(vectors, order)
    np.testing.assert_array_equal(twin, expected_twin)
    np.testing.assert_allclose(similarity, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("tile", [1, 7, 64, 2048])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_nearest_earlier_row_is_that_of_all_pairs(
    seed: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semdedup, "TILE", tile)
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(75, 6)).astype(np.float32) * rng.lognormal(0, 2, (75, 1))
    for order in (np.arange(75), np.arange(75)[::-1], rng.permutation(75)):
        check(vectors.astype(np.float32), order)


@pytest.mark.parametrize("tile", [5, 16, 2048])
@pytest.mark.parametrize("width", [3, 33, 128])
def test_of_exact_ties_the_earliest_in_the_order_is_named(
    width: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semdedup, "TILE", tile)
    rng = np.random.default_rng(width)
    # Of three equal rows, a matrix product in float64 can give one another last bit.
    originals = rng.normal(size=(15, width)).astype(np.float32)
    vectors = originals[rng.integers(0, 15, 60)]
    order = rng.permutation(60)
    _, twin = nearest_earlier(vectors, order)
    place = np.argsort(order)
    for row in range(60):
        equal = np.flatnonzero((vectors == vectors[row]).all(axis=1))
        first = equal[place[equal].argmin()]
        assert first == row or twin[row] == first


@pytest.mark.parametrize("tile", [8, 2048])
def test_copies_of_another_length_tie_with_their_original(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semdedup, "TILE", tile)
    lengths = np.float32(2) ** np.arange(-10, 11, dtype=np.float32)[:, None]
    for seed in range(20):  # rounding takes the cosine of some of these above 1
        vector = np.random.default_rng(seed).normal(size=(1, 128)).astype(np.float32)
        similarity, twin = nearest_earlier(vector * lengths, np.arange(21))
        assert twin.tolist() == [-1] + [0] * 20
        assert (np.abs(similarity[1:] - 1) < 1e-15).all()
        assert similarity.max() <= 1


@pytest.mark.parametrize("tile", [4, 2048])
def test_rivals_that_fp32_cannot_tell_apart_are_told_apart(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semdedup, "TILE", tile)
    rng = np.random.default_rng(3)
    centre = rng.normal(size=48)
    vectors = (centre + rng.normal(scale=1e-4, size=(60, 48))).astype(np.float32)
    check(vectors, rng.permutation(60))


def test_fp16_vectors_are_compared_as_stored() -> None:
    rng = np.random.default_rng(4)
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


def test_opposite_rows_have_similarity_minus_one_and_still_name_each_other() -> None:
    similarity, twin = nearest_earlier(np.array([[1.0], [-1.0]], np.float32), np.arange(2))
    assert similarity[1] == -1
    assert twin[1] == 0


@pytest.mark.parametrize("order", [[0, 1, 1], [1, 2, 3]])
def test_an_order_that_is_no_permutation_is_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match=r"order must hold each of 0\.\.2 once"):
        nearest_earlier(np.eye(3, dtype=np.float32), np.array(order))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_named_by_its_row(bad: float) -> None:
    vectors = np.eye(4, dtype=np.float32)
    vectors[2] = bad
    with pytest.raises(ValueError, match="vector 2 is zero or not finite"):
        nearest_earlier(vectors, np.array([3, 2, 1, 0]))


# the chain rule


def similar(order: list[int], vectors: np.ndarray) -> SimilarRows:
    similarity, twin = nearest_earlier(vectors, np.array(order))
    n = len(vectors)
    return SimilarRows(np.arange(n), similarity, twin, np.zeros(n, np.int64))


def at_degrees(*degrees: float) -> np.ndarray:
    turned = np.radians(degrees)
    return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def all_rows(n: int) -> KeepList:
    return everything("pool", np.ones(n, bool))


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
    rng = np.random.default_rng(5)
    found = similar(rng.permutation(200).tolist(), rng.normal(size=(200, 4)).astype(np.float32))
    kept = [remove_similar(all_rows(200), found, e) for e in (0.0, 0.01, 0.05, 0.3, 1.0, 2.0)]
    for smaller, larger in zip(kept[1:], kept, strict=False):
        assert set(smaller.rows) <= set(larger.rows)
    assert kept[0].num_kept == 200
    assert kept[-1].num_kept == 1, "only the first row has none before it"


@pytest.mark.parametrize("epsilon", [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.3])
def test_the_threshold_itself_stays_and_is_compared_in_fp32(epsilon: float) -> None:
    # 1 - epsilon is no binary fraction: as published, both sides are rounded to fp32 first.
    limit = 1 - epsilon
    similarity = np.array([-np.inf, limit, limit + 1e-10, limit + 1e-6, limit - 1e-6])
    found = SimilarRows(np.arange(5), similarity, np.array([-1, 0, 0, 0, 0]), np.zeros(5, int))
    assert remove_similar(all_rows(5), found, epsilon).rows.tolist() == [0, 1, 2, 4]


def test_exact_copies_stay_at_epsilon_nought_and_go_just_above() -> None:
    found = similar([0, 1], np.array([[0.6, 0.8], [0.6, 0.8]], np.float32))
    assert remove_similar(all_rows(2), found, 0.0).num_kept == 2
    assert remove_similar(all_rows(2), found, 1e-6).num_kept == 1


def test_rows_without_a_vector_go_for_that_reason() -> None:
    found = SimilarRows(
        np.array([1, 3]), np.array([-np.inf, 0.2]), np.array([-1, 1]), np.array([0, 0])
    )
    kept = remove_similar(all_rows(5), found, 0.05)
    assert kept.rows.tolist() == [1, 3]
    for row in (0, 2, 4):
        decision = kept.decision(row)
        assert decision["reason"] == "no embedding"
        assert decision["related_row"] is decision["cluster"] is decision["value"] is None


def test_no_similar_row_at_all_removes_every_row_without_a_vector() -> None:
    nothing = SimilarRows(np.zeros(0, int), np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    assert remove_similar(all_rows(3), nothing, 0.05).num_kept == 0


def test_stored_similarities_of_more_rows_than_are_left_are_read_by_row() -> None:
    found = SimilarRows(
        np.arange(4), np.array([-np.inf, 0.1, 0.99, 0.2]), np.array([-1, 0, 1, 0]), np.zeros(4, int)
    )
    narrower = all_rows(4).narrow(
        "pool", np.array([True, False, True, True]), "no caption", "valid"
    )
    kept = remove_similar(narrower, found, 0.05)
    assert kept.rows.tolist() == [0, 3]
    assert kept.decision(1)["reason"] == "no caption"


# the order of members


def test_members_come_hardest_easiest_or_at_random_first() -> None:
    distance = np.array([0.2, 0.5, 0.1, 0.5, 0.3], np.float32)
    rows = np.array([3, 9, 4, 6, 8])
    hashes = np.array([hash_64(str(r).encode()) for r in rows], np.uint64)
    orders = {m: member_order(m, distance, rows, hashes, 0) for m in ("hard", "easy", "random")}
    assert rows[orders["hard"]].tolist() == [6, 9, 8, 3, 4], "a tie goes to the lower row"
    assert rows[orders["easy"]].tolist() == [4, 3, 8, 6, 9]
    assert sorted(orders["random"].tolist()) == [0, 1, 2, 3, 4]


def test_a_random_order_belongs_to_the_uids_and_the_seed() -> None:
    rng = np.random.default_rng(6)
    rows, distance = np.arange(100), rng.random(100).astype(np.float32)
    hashes = rng.integers(0, 2**63, 100).astype(np.uint64)
    order = member_order("random", distance, rows, hashes, 1)
    moved = rng.permutation(100)
    again = member_order("random", distance[moved], rows, hashes[moved], 1)
    np.testing.assert_array_equal(hashes[order], hashes[moved][again])
    other = member_order("random", distance, rows, hashes, 2)
    assert (order != other).mean() > 0.9


def test_random_orders_are_uniform() -> None:
    hashes = np.array([hash_64(str(i).encode()) for i in range(1_000)], np.uint64)
    place = np.empty(1_000)
    order = member_order("random", np.zeros(1_000, np.float32), np.arange(1_000), hashes, 0)
    place[order] = np.arange(1_000)
    assert abs(np.corrcoef(place, np.arange(1_000))[0, 1]) < 0.1


@pytest.mark.parametrize("epsilon", [-0.1, 2.1, float("nan")])
def test_an_epsilon_outside_of_cosine_distance_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match=r"^epsilon=.*in \[0, 2\]: 1 - cosine"):
        SemDeDup(epsilon, 4, 5, 10, "hard", 0, "image")


def test_epsilon_is_applied_later_so_that_all_values_share_one_comparison() -> None:
    loose, tight = (SemDeDup(e, 4, 5, 10, "hard", 0, "image") for e in (0.1, 0.2))
    assert loose.comparison() == tight.comparison()


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
    return Pool(table, [], "pool", "txt", 10**6)


@pytest.mark.parametrize(
    ("with_caption", "kept", "twins"),
    [(False, [0, 1], {2: 0, 3: 0, 4: 1}), (True, [0, 1, 2], {3: 0, 4: 1})],
)
def test_the_first_of_equal_contents_stays_and_is_named(
    with_caption: bool, kept: list[int], twins: dict[int, int], tmp_path: Path
) -> None:
    pool = pool_of([("cat", "a"), ("dog", "b"), ("cat", "c"), ("cat", "a"), ("dog", "b")])
    counts = ExactContent(with_caption).run(
        Work(tmp_path, tmp_path, "key"), rows=all_rows(5), pool=pool
    )
    found = KeepList.load(tmp_path)
    assert found.rows.tolist() == kept
    assert {row: found.decision(row)["related_row"] for row in twins} == twins
    assert counts["exact copies"] == len(twins)


def test_a_copy_of_a_row_that_is_gone_already_stays(tmp_path: Path) -> None:
    pool = pool_of([("cat", "a"), ("cat", "b"), ("cat", "c")])
    rows = all_rows(3).narrow("pool", np.array([False, True, True]), "no caption", "valid")
    ExactContent(False).run(Work(tmp_path, tmp_path, "key"), rows=rows, pool=pool)
    found = KeepList.load(tmp_path)
    assert found.rows.tolist() == [1]
    assert found.decision(2)["related_row"] == 1
