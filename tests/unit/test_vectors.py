"""Stored vectors: found again at any row, whatever the parts, the gaps and the order asked for."""

import gc
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dbp.data.embeddings import Embeddings, save_part
from dbp.data.missing import Missing
from dbp.data.vectors import Vectors, in_blocks
from dbp.errors import WorldError

NOTHING = np.zeros(0, np.int64)


def write(
    folder: Path, parts: list[np.ndarray], vectors: np.ndarray, failed: dict[int, str] | None = None
) -> Embeddings:
    """Parts that hold the vectors of some rows; `vectors` is over the whole pool."""
    for number, rows in enumerate(parts):
        home = folder / f"part-{number:07d}"
        home.mkdir(parents=True)
        own = {r: why for r, why in (failed or {}).items() if r % len(parts) == number}
        save_part(home, rows, vectors[rows], own)
    return Embeddings.load(folder)


def as_stored(vectors: np.ndarray) -> np.ndarray:
    """Unit length in fp32, then rounded to fp16."""
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return (vectors / lengths).astype(np.float32).astype(np.float16)


def layout(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Ascending rows in parts of very unequal size, some of them empty, with gaps within and between."""
    rows = np.sort(rng.choice(n, rng.integers(1, n), replace=False))
    cuts = np.sort(rng.integers(0, len(rows) + 1, rng.integers(0, 12)))
    return np.split(rows, cuts)


def questions(rng: np.random.Generator, rows: np.ndarray) -> list[np.ndarray]:
    """Rows as callers ask for them: all, a run, a few, one, none, out of order."""
    begin, stop = np.sort(rng.integers(0, len(rows) + 1, 2))
    some = rows[rng.random(len(rows)) < 0.4]
    return [rows, rows[begin:stop], some, rows[:1], NOTHING, rng.permutation(some), rows[::-1]]


@pytest.fixture(params=range(6))
def laid_out(request: pytest.FixtureRequest, tmp_path: Path) -> tuple:
    rng = np.random.default_rng(request.param)
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    parts = layout(rng, 60)
    return rng, parts, vectors, write(tmp_path, parts, vectors)


def test_any_rows_give_their_stored_vectors_in_the_order_asked_for(laid_out: tuple) -> None:
    rng, parts, vectors, made = laid_out
    stored = as_stored(vectors)
    for rows in questions(rng, np.concatenate(parts)):
        found = made.gather(rows)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, stored[rows])
        np.testing.assert_array_equal(made.scattered(rows), stored[rows])


def test_lengths_are_those_of_the_stored_vectors_and_not_of_the_given(laid_out: tuple) -> None:
    rng, parts, vectors, made = laid_out
    exact = np.sqrt(np.square(as_stored(vectors).astype(np.float64)).sum(axis=1))
    assert (exact != 1).any()
    for rows in questions(rng, np.concatenate(parts)):
        np.testing.assert_array_equal(made.norms(rows), exact[rows])
        np.testing.assert_allclose(np.linalg.norm(made.unit(rows), axis=1), 1, atol=1e-6)


def test_which_rows_have_a_vector_is_known_for_every_row_of_the_pool(laid_out: tuple) -> None:
    rng, parts, _, made = laid_out
    there = np.concatenate(parts)
    for asked in (np.arange(60), np.flatnonzero(rng.random(60) < 0.5), NOTHING, np.array([59])):
        np.testing.assert_array_equal(made.has(asked), np.isin(asked, there))


def test_each_part_has_its_rows_and_together_they_are_all(laid_out: tuple) -> None:
    _, parts, _, made = laid_out
    for number, rows in enumerate(parts):
        np.testing.assert_array_equal(made.part_rows(number), rows)
    np.testing.assert_array_equal(made.rows, np.concatenate(parts))


def test_a_row_without_a_vector_is_named_and_never_guessed(laid_out: tuple) -> None:
    rng, parts, _, made = laid_out
    there = np.concatenate(parts)
    absent = np.setdiff1d(np.arange(-1, 61), there)
    for row in absent:
        with_it = np.sort(np.append(there, row))
        for asked in (np.array([row]), with_it, rng.permutation(with_it)):
            with pytest.raises(KeyError, match=f"row {row} has no embedding"):
                made.gather(asked)
            with pytest.raises(KeyError, match=f"row {row} has no embedding"):
                made.norms(asked)


def test_a_row_asked_for_twice_is_given_twice(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    made = write(tmp_path, [np.arange(4), np.arange(4, 9)], vectors)
    stored = as_stored(vectors)
    # 3, 3, 5 spans as many rows as it is long, as 3, 4, 5 does.
    for asked in ([1, 1], [5, 5, 7], [5, 7, 7], [7, 5, 5], [3, 3, 4, 4], [0, 0, 8, 8]):
        np.testing.assert_array_equal(made.gather(np.array(asked)), stored[asked], f"{asked}")


def test_rows_side_by_side_in_one_part_are_not_copied(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    made = write(tmp_path, [np.arange(2, 12), np.arange(12, 20)], vectors)
    base = made.gather(made.part_rows(0))
    assert np.shares_memory(made.gather(np.arange(4, 9)), base)
    assert not np.shares_memory(made.gather(np.array([4, 6])), base)
    across = made.gather(np.arange(10, 14))
    assert not np.shares_memory(across, base)
    np.testing.assert_array_equal(across, as_stored(vectors)[10:14])


def test_more_parts_than_stay_open_are_read_again(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    made = write(tmp_path, np.array_split(np.arange(40), 20), vectors)
    for _ in range(2):
        np.testing.assert_array_equal(made.gather(np.arange(40)), as_stored(vectors))
        for row in range(0, 40, 7):
            np.testing.assert_array_equal(made.gather(np.array([row]))[0], as_stored(vectors)[row])
    assert len(made._open) <= 8


def test_more_parts_than_files_that_may_be_open_are_read(tmp_path: Path) -> None:
    vectors = np.random.default_rng(6).normal(size=(60, 3)).astype(np.float32)
    write(tmp_path, np.array_split(np.arange(60), 60), vectors)
    gc.collect()  # what earlier tests left open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 30, hard))
    try:
        found = Embeddings.load(tmp_path).gather(np.arange(60))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(found, as_stored(vectors))


class Forgetful(dict):
    """Parts that stay open for no time, as when another thread closes them to open its own."""

    def __setitem__(self, part: int, content: tuple) -> None:
        pass


def test_a_part_that_another_thread_closes_is_read_all_the_same(tmp_path: Path) -> None:
    vectors = np.random.default_rng(5).normal(size=(9, 4)).astype(np.float32)
    made = write(tmp_path, [np.arange(4), np.arange(4, 9)], vectors)
    alone = Embeddings(made.parts, made.width, Forgetful())
    np.testing.assert_array_equal(alone.gather(np.arange(9)), as_stored(vectors))


def test_rows_that_lie_far_apart_are_read_one_by_one(tmp_path: Path) -> None:
    vectors = np.random.default_rng(7).normal(size=(900, 5)).astype(np.float32)
    made = write(tmp_path, [np.arange(2, 500), np.arange(500, 900)], vectors)
    rows = np.array([880, 3, 499, 500, 3, 700])
    np.testing.assert_array_equal(made.scattered(rows), as_stored(vectors)[rows])
    with pytest.raises(KeyError, match="row 1 has no embedding"):
        made.scattered(np.array([700, 1]))
    file = made.parts[1] / "vectors.npy"
    made.gather(rows)  # it is mapped, and then cut
    os.truncate(file, 2 * file.stat().st_size // 3)
    with pytest.raises(WorldError, match="cut short"):
        made.scattered(np.array([880]))


def test_embeddings_travel_to_another_process_without_their_vectors(tmp_path: Path) -> None:
    vectors = np.random.default_rng(2).normal(size=(3_000, 32)).astype(np.float32)
    made = write(tmp_path, [np.arange(3_000)], vectors)
    made.gather(np.arange(3_000))
    sent = pickle.dumps(made)
    assert len(sent) < 2_000
    again = pickle.loads(sent)
    np.testing.assert_array_equal(again.gather(np.arange(5)), as_stored(vectors)[:5])


def test_the_width_is_that_of_the_first_part_that_has_vectors(tmp_path: Path) -> None:
    vectors = np.ones((4, 7), np.float32)
    assert write(tmp_path / "a", [NOTHING, np.arange(4)], vectors).width == 7
    save = tmp_path / "b" / "part-0000000"
    save.mkdir(parents=True)
    save_part(save, NOTHING, np.zeros((0, 0), np.float32), {3: "undecodable image"})
    none = Embeddings.load(tmp_path / "b")
    assert none.width == 0
    assert none.rows.tolist() == []
    assert none.missing.rows.tolist() == [3]


def test_where_no_row_has_a_vector_every_answer_is_no(tmp_path: Path) -> None:
    made = write(tmp_path, [NOTHING, NOTHING], np.ones((4, 7), np.float32), {1: "cut", 2: "cut"})
    assert made.gather(NOTHING).shape == (0, 7)
    assert made.has(NOTHING).tolist() == []
    with pytest.raises(KeyError, match="row 2 has no embedding"):
        made.gather(np.array([2]))
    assert made.has(np.arange(4)).tolist() == [False] * 4


def test_vectors_are_written_with_both_lengths_and_what_has_no_direction_is_set_apart(tmp_path: Path) -> None:
    vectors = np.array([[3, 4], [0, 0], [np.nan, 1], [1e30, 1e30], [1e-30, 0]], np.float32)
    counts = save_part(tmp_path, np.array([2, 4, 5, 8, 9]), vectors, {7: "undecodable image"})
    assert counts == {"rows": 3, "zero embedding": 1, "embedding not finite": 1, "undecodable image": 1}
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table["row"].to_pylist() == [2, 8, 9]
    np.testing.assert_allclose(table["norm"], [5, np.sqrt(2) * 1e30, 1e-30], rtol=1e-6)
    stored = np.load(tmp_path / "vectors.npy").astype(np.float64)
    np.testing.assert_array_equal(table["stored_norm"].to_numpy(), np.sqrt((stored**2).sum(axis=1)))
    assert table.schema.field("stored_norm").type == "double"
    failed = Missing.read([tmp_path / "failed.parquet"])
    assert dict(zip(failed.rows, (failed.texts[c] for c in failed.codes), strict=True)) == {
        4: "zero embedding",
        5: "embedding not finite",
        7: "undecodable image",
    }


# two sides


def two_sides(folder: Path) -> tuple[Vectors, np.ndarray, np.ndarray]:
    """Images of rows 0..11 but 3 and 7 in parts of three; captions of all but 5 and 7 in other parts."""
    rng = np.random.default_rng(3)
    images, texts = rng.normal(size=(12, 4)), rng.normal(size=(12, 6))
    rows = [np.setdiff1d(part, [3, 7]) for part in np.split(np.arange(12), 4)]
    image = write(folder / "image", rows, images, {3: "undecodable image", 7: "cut"})
    others = [np.setdiff1d(np.arange(8), [5, 7]), NOTHING, np.arange(8, 12)]
    text = write(folder / "text", others, texts, {5: "empty caption", 7: "no tokens"})
    return Vectors.of(image, text), as_stored(images), as_stored(texts)


def test_with_two_sides_a_vector_is_both_side_by_side(tmp_path: Path) -> None:
    vectors, images, texts = two_sides(tmp_path)
    assert vectors.width == 10
    for asked in ([0, 1, 2], [11, 0, 6], [8, 9, 10, 11], []):
        rows = np.array(asked, np.int64)
        both = np.concatenate([images[rows], texts[rows]], axis=1)
        np.testing.assert_array_equal(vectors.gather(rows), both)
        exact = np.sqrt(np.square(both.astype(np.float64)).sum(axis=1))
        np.testing.assert_allclose(vectors.norms(rows), exact, rtol=1e-15)


def test_rows_that_lack_a_side_are_left_out(tmp_path: Path) -> None:
    vectors, _, _ = two_sides(tmp_path)
    assert np.flatnonzero(~vectors.present(12)).tolist() == [3, 5, 7]
    assert [vectors.part_rows(part).tolist() for part in range(vectors.num_parts)] == [
        [0, 1, 2],
        [4],
        [6, 8],
        [9, 10, 11],
    ]
    odd = np.arange(12) % 2 == 1
    assert [vectors.part_rows(part, odd).tolist() for part in range(4)] == [[1], [], [], [9, 11]]


def test_of_a_row_that_lacks_both_sides_the_first_side_s_reason_holds(tmp_path: Path) -> None:
    vectors, _, _ = two_sides(tmp_path)
    found = vectors.missing
    said = {int(r): found.texts[c] for r, c in zip(found.rows, found.codes, strict=True)}
    assert said == {3: "undecodable image", 5: "empty caption", 7: "cut"}


def test_one_side_alone_is_that_side(tmp_path: Path) -> None:
    vectors, images, _ = two_sides(tmp_path)
    alone = Vectors.of(vectors.sides[0], None)
    rows = np.array([0, 5, 6])
    np.testing.assert_array_equal(alone.gather(rows), images[rows])
    np.testing.assert_array_equal(alone.norms(rows), vectors.sides[0].norms(rows))
    assert alone.present(12).sum() == 10


def test_a_side_without_any_vector_leaves_no_row(tmp_path: Path) -> None:
    images = np.random.default_rng(4).normal(size=(4, 3)).astype(np.float32)
    image = write(tmp_path / "image", [np.arange(4)], images)
    text = write(tmp_path / "text", [NOTHING], images, dict.fromkeys(range(4), "no tokens"))
    vectors = Vectors.of(image, text)
    assert not vectors.present(4).any()
    assert vectors.missing.rows.tolist() == [0, 1, 2, 3]


def test_the_cosine_of_two_sides_is_the_mean_of_image_and_caption_cosine(tmp_path: Path) -> None:
    vectors, _, _ = two_sides(tmp_path)
    rows = np.array([0, 1, 2, 4, 6, 8, 9, 10, 11])
    unit = vectors.gather(rows).astype(np.float64) / vectors.norms(rows)[:, None]
    sides = [side.unit(rows).astype(np.float64) for side in vectors.sides]
    mean = sum(side @ side.T for side in sides) / 2
    np.testing.assert_allclose(unit @ unit.T, mean, rtol=0, atol=5e-4)


@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_blocks_cover_each_row_once_and_say_where_they_begin(size: int) -> None:
    rows = np.arange(100, 110)
    blocks = list(in_blocks(rows, size))
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), rows)
    for start, block in blocks:
        assert rows[start] == block[0]
        assert len(block) <= size
    assert list(in_blocks(rows[:0], size)) == []


# why rows have no vector


def test_reasons_are_written_and_read_again(tmp_path: Path) -> None:
    reasons = {9: "cut", 2: "zero embedding", 5: "cut"}
    Missing.of(reasons).save(tmp_path)
    found = Missing.load(tmp_path)
    assert found.rows.tolist() == [2, 5, 9]
    assert [found.texts[code] for code in found.codes] == ["zero embedding", "cut", "cut"]


def test_no_reasons_and_no_file_are_nothing_missing(tmp_path: Path) -> None:
    assert Missing.load(tmp_path).rows.tolist() == []
    Missing.of({}).save(tmp_path)
    assert Missing.load(tmp_path).rows.tolist() == []
    codes, texts = Missing.load(tmp_path).codes_over(3, "no embedding")
    assert codes.tolist() == [0, 0, 0]
    assert texts == ["no embedding"]


def test_reasons_of_parts_that_number_them_differently_are_gathered(tmp_path: Path) -> None:
    parts = [{4: "b", 8: "a"}, {}, {1: "c", 2: "a"}, {6: "b"}]
    for number, reasons in enumerate(parts):
        (tmp_path / str(number)).mkdir()
        Missing.of(reasons).save(tmp_path / str(number))
    found = Missing.read(tmp_path / str(number) / "missing.parquet" for number in range(4))
    assert found.rows.tolist() == [1, 2, 4, 6, 8]
    assert [found.texts[code] for code in found.codes] == ["c", "a", "b", "b", "a"]


def test_of_two_reasons_for_a_row_the_first_holds() -> None:
    both = Missing.of({1: "a", 3: "b"}) | Missing.of({3: "c", 4: "a", 0: "c"})
    assert both.rows.tolist() == [0, 1, 3, 4]
    assert [both.texts[code] for code in both.codes] == ["c", "a", "b", "a"]


def test_every_row_of_the_pool_has_the_number_of_its_reason_or_the_other_one() -> None:
    codes, texts = Missing.of({1: "a", 3: "b"}).codes_over(5, "no score")
    assert [texts[code] for code in codes] == ["no score", "a", "no score", "b", "no score"]
