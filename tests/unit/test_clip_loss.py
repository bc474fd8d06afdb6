"""s-CLIPLoss: its definition on tables small enough to check by hand, and the laws of its batches."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scoring import embeddings_of, made, pool_of, stored, valid_of

from dbp.errors import ConfigError
from dbp.exact.order import at_places, keyed_hash
from dbp.scoring import clip_loss
from dbp.scoring.clip_loss import ClipLoss, log_shares

ONE = ClipLoss(batch_size=1000, num_passes=1, temperature=0.05, within="pool", last="smaller", seed=3)


def pairs(n: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, and captions that scatter about them."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, width))
    return image.astype(np.float32), (image + rng.normal(size=(n, width))).astype(np.float32)


def by_definition(image: np.ndarray, text: np.ndarray, temperature: float) -> np.ndarray:
    """The score of each pair of one batch, from the whole table of cosines in float64."""
    cosine = image @ text.T
    shares = np.exp(cosine / temperature)
    normaliser = np.log(shares.sum(axis=1)) + np.log(shares.sum(axis=0))
    return np.diag(cosine) - temperature / 2 * normaliser


def setting(folder: Path, n: int = 90, width: int = 8, **layout: Any) -> dict[str, Any]:
    image, text = pairs(n, width, 0)
    uids = [f"u{i}" for i in range(n)]
    pool = pool_of(folder / "pool", uids, layout.get("shards"))
    return {
        "pool": pool,
        "valid": valid_of(pool),
        "image": embeddings_of(folder / "image", image, layout.get("parts", 1), layout.get("without", ())),
        "text": embeddings_of(folder / "text", text, layout.get("text_parts", 1)),
    }


def test_three_pairs_have_the_scores_that_pencil_and_paper_give() -> None:
    # Cosines [[1, 0, 0], [0, 1, 0], [0, 1, 0]]: captions are the axes, and the third image is the second again.
    image = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]], np.float32)
    text = np.eye(3, dtype=np.float32)
    e = math.e
    one = 1 - (math.log(e + 2) + math.log(e + 2)) / 2  # row and column 1 hold e, 1, 1
    two = 1 - (math.log(e + 2) + math.log(2 * e + 1)) / 2  # the column holds 1, e, e
    three = 0 - (math.log(e + 2) + math.log(3)) / 2  # the column holds 1, 1, 1
    np.testing.assert_allclose(log_shares(image, text), [one, two, three], atol=1e-6)


@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.07, 1.0])
@pytest.mark.parametrize("n", [1, 2, 511, 1300])
def test_tiles_give_what_the_whole_table_gives(n: int, temperature: float) -> None:
    image, text = (stored(side) for side in pairs(n, 24, n))
    found = temperature * log_shares((image / temperature).astype(np.float32), text.astype(np.float32))
    np.testing.assert_allclose(found, by_definition(image, text, temperature), atol=3e-6)


@pytest.mark.parametrize("side", [0, 1])
def test_rows_far_below_the_best_of_their_tile_lose_nothing(side: int) -> None:
    """Cosines from -1 to 1 at temperature 0.01 span 87 orders of magnitude, and fp32 holds 38."""
    rng = np.random.default_rng(1)
    one = stored(np.eye(1, 6) + 0.1 * rng.normal(size=(700, 6)))
    other = one.copy()
    other[350:] = stored(-np.eye(1, 6) + 0.1 * rng.normal(size=(350, 6)))  # far from everything
    image, text = (one, other) if side else (other, one)
    found = 0.01 * log_shares((image / 0.01).astype(np.float32), text.astype(np.float32))
    np.testing.assert_allclose(found, by_definition(image, text, 0.01), atol=3e-6)


def test_a_pool_of_one_batch_has_the_scores_of_the_definition(tmp_path: Path) -> None:
    inputs = setting(tmp_path, 90)
    image, text = (stored(side) for side in pairs(90, 8, 0))
    found, counts = made(ONE, tmp_path / "a", **inputs)
    np.testing.assert_allclose(found.values, by_definition(image, text, 0.05), atol=2e-6)
    assert counts["rows"] == 90
    assert found.label == "s-CLIPLoss"
    assert found.higher_is_better


def test_the_score_is_the_mean_over_passes_and_batches_of_the_keyed_order(tmp_path: Path) -> None:
    """An independent implementation: sort all rows by the key of each pass, cut, and average."""
    inputs = setting(tmp_path, 90, without=[4, 50])
    image, text = (stored(side) for side in pairs(90, 8, 0))
    there = np.setdiff1d(np.arange(90), [4, 50])
    sums = np.full(90, np.nan)
    sums[there] = 0
    for turn in range(3):
        seed = int(keyed_hash(np.array([turn], np.uint64), 3)[0])
        order = there[np.argsort(keyed_hash(inputs["pool"].uid_hashes[there], seed), kind="stable")]
        for start in range(0, 88, 20):
            batch = order[start : start + 20]
            sums[batch] += by_definition(image[batch], text[batch], 0.05)
    found, counts = made(replace(ONE, num_passes=3, batch_size=20), tmp_path / "a", **inputs)
    np.testing.assert_allclose(found.values, sums / 3, atol=2e-6)
    assert np.flatnonzero(np.isnan(found.values)).tolist() == [4, 50]
    assert counts["batches"] == 15
    assert counts["without score"] == 2
    assert counts["rows in smaller batches"] == 3 * 8
    assert found.missing.rows.tolist() == [4, 50]


def test_each_pass_has_its_own_batches(tmp_path: Path) -> None:
    inputs = setting(tmp_path, 60)
    stage, present = replace(ONE, num_passes=2, batch_size=20), np.ones(60, bool)
    first, second = (list(stage.batches(turn, inputs["pool"], present)) for turn in (0, 1))
    assert [len(batch) for batch in first] == [20, 20, 20]
    for batches in (first, second):
        assert sorted(np.concatenate(batches).tolist()) == list(range(60))
    assert set(first[0].tolist()) != set(second[0].tolist())


def test_even_batches_differ_by_one_row_at_most(tmp_path: Path) -> None:
    inputs = setting(tmp_path, 90)
    sizes = [len(b) for b in replace(ONE, batch_size=40, last="even").batches(0, inputs["pool"], np.ones(90, bool))]
    assert sizes == [30, 30, 30]
    sizes = [len(b) for b in replace(ONE, batch_size=40).batches(0, inputs["pool"], np.ones(90, bool))]
    assert sizes == [40, 40, 10]


def test_batches_of_a_shard_hold_rows_of_that_shard_alone(tmp_path: Path) -> None:
    inputs = setting(tmp_path, 90, shards=[50, 0, 33, 7])
    stage = replace(ONE, within="shard", batch_size=20)
    batches = list(stage.batches(0, inputs["pool"], np.ones(90, bool)))
    assert [len(batch) for batch in batches] == [20, 20, 10, 20, 13, 7]
    for batch, (low, high) in zip(batches, [(0, 50)] * 3 + [(50, 83)] * 2 + [(83, 90)], strict=True):
        assert ((batch >= low) & (batch < high)).all()
    image, text = (stored(side) for side in pairs(90, 8, 0))
    expected = np.full(90, np.nan)
    for batch in batches:
        expected[batch] = by_definition(image[batch], text[batch], 0.05)
    found, _ = made(stage, tmp_path / "a", **inputs)
    np.testing.assert_allclose(found.values, expected, atol=2e-6)


def test_neither_the_order_of_rows_nor_parts_nor_shards_change_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = replace(ONE, num_passes=2, batch_size=20)
    whole, _ = made(stage, tmp_path / "a", **setting(tmp_path / "one", 90))
    monkeypatch.setattr(clip_loss, "ROWS", 40)
    split = setting(tmp_path / "many", 90, parts=7, text_parts=3, shards=[10, 80])
    assert len(stage.parts(**split)) == 6
    again, _ = made(stage, tmp_path / "b", **split)
    np.testing.assert_array_equal(again.values, whole.values)

    order = np.random.default_rng(8).permutation(90)
    image, text = pairs(90, 8, 0)
    pool = pool_of(tmp_path / "pool", [f"u{i}" for i in order])
    shuffled = {
        "pool": pool,
        "valid": valid_of(pool),
        "image": embeddings_of(tmp_path / "image", image[order], 4),
        "text": embeddings_of(tmp_path / "text", text[order], 2),
    }
    other, _ = made(stage, tmp_path / "c", **shuffled)
    np.testing.assert_array_equal(other.values, whole.values[order])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads: int) -> None:
    image, text = pairs(1700, 64, 5)
    sides = (stored(image) / 0.01).astype(np.float32), stored(text).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = log_shares(*sides)
        torch.set_num_threads(threads)
        np.testing.assert_array_equal(log_shares(*sides, threads=threads), alone)
        assert torch.get_num_threads() == threads, "as it was"
    finally:
        torch.set_num_threads(before)


def test_more_of_the_same_negatives_lower_a_score_by_the_log_of_their_number(tmp_path: Path) -> None:
    """Doubling a batch row by row adds temperature x log 2 to each normaliser."""
    image, text = pairs(40, 8, 2)
    once = log_shares(*((stored(image) / 0.1).astype(np.float32), stored(text).astype(np.float32)))
    sides = [np.concatenate([side, side]) for side in (stored(image) / 0.1, stored(text))]
    twice = log_shares(*(side.astype(np.float32) for side in sides))
    np.testing.assert_allclose(twice[:40], once - math.log(2), atol=1e-5)
    np.testing.assert_allclose(twice[40:], once - math.log(2), atol=1e-5)


def test_of_two_pairs_of_one_cosine_the_one_whose_caption_fits_every_image_scores_lower() -> None:
    image = np.zeros((30, 31))
    image[:, :30] = stored(np.eye(30) + 0.3)
    text = image.copy()
    text[0, :30] = stored(np.ones((1, 30)))[0]
    cosine = image[0] @ text[0]
    text[1] = cosine * image[1]
    text[1, 30] = math.sqrt(1 - cosine**2)  # where no image points
    scores = 0.05 * log_shares((image / 0.05).astype(np.float32), text.astype(np.float32))
    np.testing.assert_allclose((image * text).sum(axis=1)[:2], cosine, atol=1e-3)
    assert scores[0] < scores[1] - 0.01


def test_no_row_with_both_vectors_is_no_score_and_no_error(tmp_path: Path) -> None:
    inputs = setting(tmp_path, 6, without=range(6))
    found, counts = made(ONE, tmp_path / "a", **inputs)
    assert np.isnan(found.values).all()
    assert counts["rows"] == 0


def test_rows_that_are_not_valid_are_nobody_s_negatives_and_have_no_score(tmp_path: Path) -> None:
    inputs = setting(tmp_path, 90)
    out = [0, 17, 18, 89]
    held_out, counts = made(ONE, tmp_path / "a", **inputs | {"valid": valid_of(inputs["pool"], out)})
    absent, _ = made(ONE, tmp_path / "b", **inputs | {"image": setting(tmp_path / "c", 90, without=out)["image"]})
    np.testing.assert_array_equal(held_out.values, absent.values)
    assert np.flatnonzero(np.isnan(held_out.values)).tolist() == out
    assert counts["without score"] == 4


def test_sides_of_two_widths_are_refused(tmp_path: Path) -> None:
    inputs = setting(tmp_path, 6)
    inputs["text"] = embeddings_of(tmp_path / "other", pairs(6, 5, 0)[1])
    with pytest.raises(ConfigError) as refused:
        ONE.parts(**inputs)
    assert "8" in str(refused.value)
    assert "5" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("num_passes", 0), ("temperature", 0.0), ("threads", 0)]
)
def test_a_setting_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(ONE, **{name: value})


@pytest.mark.parametrize("seed", range(4))
def test_places_of_the_keyed_order_are_those_of_a_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes, mask = rng.integers(0, 1 << 63, 500).astype(np.uint64), rng.random(500) < 0.7
    hashes[100:140] = hashes[0]  # rows of one uid
    rows = np.flatnonzero(mask)
    order = rows[np.argsort(keyed_hash(hashes[rows], seed), kind="stable")]
    for start, stop in ((0, 0), (0, 1), (0, len(rows)), (17, 230), (len(rows) - 3, len(rows))):
        assert at_places(hashes, mask, seed, start, stop).tolist() == order[start:stop].tolist()
