"""MetaCLIP's balancing: by hand, against another implementation, and its laws."""

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dbp.data.columns import Columns
from dbp.data.keep_list import KeepList, everything
from dbp.data.matches import MatchedRows, Matches
from dbp.data.pool import Pool, hash_64
from dbp.engine.work import Work
from dbp.errors import BudgetError, ConfigError
from dbp.exact.balancing import keyed_number
from dbp.exact.order import keyed_hash
from dbp.metadata.matching import Finder
from dbp.metadata.sources import Given
from dbp.selection import balance
from dbp.selection.budget import Budget
from dbp.selection.metadata import MetaClip, MetaClipThreshold

# a pool worked by hand: 30 captions, 12 entries

ENTRIES = [
    *("cat", "dog", "a", "red", "New York", "photo of"),
    *("bird", "zebra", "Dog", "U.S.", "blue sky", "the"),
]
CAPTIONS = [
    *["a cat"] * 8,  # 0-7: cat, a
    *["a dog"] * 6,  # 8-13: dog, a
    *["photo of a red cat"] * 4,  # 14-17: cat, a, red, photo of
    *["New York, New York"] * 3,  # 18-20: New York, once
    *["Dog", "dog!", "hot dogs"],  # 21: Dog; 22: dog; 23: none
    *["the U.S. army", "a blue sky", '"bird"'],  # 24: the; 25: a, blue sky; 26: none
    *["a red bird", "zebra\tcrossing", ""],  # 27: a, red, bird; 28: zebra; 29: none
]
HELD = {
    **{row: [0, 2] for row in range(8)},
    **{row: [1, 2] for row in range(8, 14)},
    **{row: [0, 2, 3, 5] for row in range(14, 18)},
    **{row: [4] for row in range(18, 21)},
    21: [8],
    22: [1],
    23: [],
    24: [11],
    25: [2, 10],
    26: [],
    27: [2, 3, 6],
    28: [7],
    29: [],
}
#         cat dog  a  red  NY photo bird zebra Dog U.S. sky the
COUNTS = [12, 7, 20, 5, 3, 4, 1, 1, 1, 0, 1, 1]
# t = 4: p = 4/12, 4/7, 4/20, 4/5, and 1 for the others that occur.
PROBABILITY = {
    **{row: 1 - Fraction(8, 12) * Fraction(16, 20) for row in range(8)},  # 7/15
    **{row: 1 - Fraction(3, 7) * Fraction(16, 20) for row in range(8, 14)},  # 23/35
    **{row: Fraction(1) for row in (*range(14, 21), 21, 24, 25, 27, 28)},
    22: Fraction(4, 7),
    23: Fraction(0),
    26: Fraction(0),
    29: Fraction(0),
}


def pool_of(captions: list[str], uids: list[str] | None = None, **columns: Any) -> Pool:
    uids = uids or [f"sample-{row}" for row in range(len(captions))]
    hashes = pa.array([hash_64(uid.encode()) for uid in uids], pa.uint64())
    table = {"uid": uids, "uid_hash": hashes, "text": captions, **columns}
    return Pool(Columns(pa.table(table)), [], "pool", "txt", 10**6)


def luck(uid: str, seed: int) -> Fraction:
    """The random number of a uid and a seed, in whole numbers of Python."""
    most = (1 << 64) - 1
    state = hash_64(uid.encode()) ^ (seed * 0x9E3779B97F4A7C15 & most)
    for _ in range(2):
        state = state + 0x9E3779B97F4A7C15 & most
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & most
        state = (state ^ state >> 27) * 0x94D049BB133111EB & most
        state ^= state >> 31
    return Fraction(state >> 11, 1 << 53)


def matches_of(captions: list[str], entries: list[str], rule: Any = "reference") -> Matches:
    empty = Matches.of_rows([], entries)
    find = Finder(empty.entries, rule).find
    found = {caption: find(caption) for caption in set(captions)}
    return Matches.of_rows([found[caption] for caption in captions], entries)


SETTINGS: dict[str, Any] = {
    "metadata": Given(),
    "rule": "reference",
    "combine": "independent",
    "counts": "pool",
    "seed": 0,
}


def at(threshold: float, **changes: Any) -> MetaClipThreshold:
    return MetaClipThreshold(**{**SETTINGS, **changes, "threshold": float(threshold)})


def to(budget: int, **changes: Any) -> MetaClip:
    return MetaClip(budget=Budget(num_kept=budget), **{**SETTINGS, **changes})


def decide(
    stage: Any, pool: Pool, matches: Matches, rows: KeepList | None = None
) -> tuple[KeepList, dict[str, Any]]:
    every = everything("pool", np.ones(pool.num_rows, bool))
    return stage.decide(rows=rows or every, base=every, pool=pool, matches=matches)


def test_the_entries_of_thirty_captions_and_their_counts_are_those_found_by_hand() -> None:
    matches = matches_of(CAPTIONS, ENTRIES)
    (block,) = matches.blocks()
    assert {row: block.of(row).tolist() for row in range(30)} == HELD
    assert matches.counts.tolist() == COUNTS
    assert matches.of(27) == ["a", "red", "bird"]


@pytest.mark.parametrize("seed", [0, 1, 2, 7])
def test_probabilities_and_kept_rows_at_a_threshold_are_those_worked_by_hand(seed: int) -> None:
    pool, matches = pool_of(CAPTIONS), matches_of(CAPTIONS, ENTRIES)
    kept, counts = decide(at(4, seed=seed), pool, matches)
    by_hand = [row for row in range(30) if luck(f"sample-{row}", seed) < PROBABILITY[row]]
    assert kept.rows.tolist() == by_hand
    for row in range(30):
        decision = kept.decision(row)
        assert decision["value"] == pytest.approx(float(PROBABILITY[row]), abs=1e-15)
        assert decision["limit"] == float(luck(f"sample-{row}", seed))
        drawn = "drawn" if row in by_hand else "not drawn"
        assert decision["reason"] == (drawn if PROBABILITY[row] else "no entry matches")
    assert counts["no entry matches"] == 3
    # 8 x 7/15 + 6 x 23/35 + 12 sure ones + 4/7
    assert counts["expected"] == pytest.approx(20.25, abs=0.005)
    assert (counts["entries in the head"], counts["entries in the tail"]) == (4, 7)
    assert counts["tail's share of matches"] == pytest.approx(12 / 56, abs=1e-6)


def test_the_sum_of_the_probabilities_is_the_other_form_and_never_below() -> None:
    pool, matches = pool_of(CAPTIONS), matches_of(CAPTIONS, ENTRIES)
    table = decide(at(4, combine="sum"), pool, matches)[0].decisions.to_pylist()
    expected = {0: 4 / 12 + 4 / 20, 8: 4 / 7 + 4 / 20, 14: 1.0, 22: 4 / 7, 23: 0.0}
    assert {row: table[row]["value"] for row in expected} == pytest.approx(expected)
    assert all(row["value"] >= float(PROBABILITY[row["row"]]) - 1e-12 for row in table)


def test_counts_can_be_those_of_the_rows_that_are_left() -> None:
    pool, matches = pool_of(CAPTIONS), matches_of(CAPTIONS, ENTRIES)
    every = everything("pool", np.ones(30, bool))
    rows = every.within("dedup", np.arange(30) % 8 == 0, "duplicate", "no duplicate")  # 0 8 16 24
    table = decide(at(1, counts="rows"), pool, matches, rows)[0].decisions.to_pylist()
    # cat 2 (0, 16), a 3 (0, 8, 16), dog 1, red 1, photo of 1, the 1
    assert table[0]["value"] == pytest.approx(1 - Fraction(1, 2) * Fraction(2, 3))
    assert [table[row]["value"] for row in (8, 16, 24)] == [1, 1, 1]
    whole = decide(at(1), pool, matches, rows)[0].decisions.to_pylist()
    assert whole[0]["value"] == pytest.approx(1 - Fraction(11, 12) * Fraction(19, 20))


@pytest.mark.parametrize("budget", range(1, 28))
def test_a_budget_is_kept_exactly_and_its_threshold_keeps_the_same_rows(budget: int) -> None:
    pool, matches = pool_of(CAPTIONS), matches_of(CAPTIONS, ENTRIES)
    kept, counts = decide(to(budget), pool, matches)
    assert kept.num_kept == budget
    if counts["threshold"] >= 1:
        again, _ = decide(at(counts["threshold"]), pool, matches)
        assert again.rows.tolist() == kept.rows.tolist()


# laws on random captions


def random_matches(
    num_rows: int, num_entries: int, seed: int = 0, most: int = 6
) -> tuple[list[list[int]], list[str]]:
    """Entries of very unequal frequency, none to six in a row or to another number."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, num_entries + 1) ** 1.1
    sizes = rng.integers(0, most + 1, num_rows)
    drawn = rng.choice(num_entries, int(sizes.sum()), p=share / share.sum())
    parts = np.split(drawn, np.cumsum(sizes)[:-1])
    return [np.unique(own).tolist() for own in parts], [f"entry{n}" for n in range(num_entries)]


def in_parts(rows: list[list[int]], entries: list[str], count: int) -> Matches:
    whole = Matches.of_rows(rows, entries)
    edges = np.linspace(0, len(rows), count + 1).astype(int).tolist()
    parts = []
    for start, stop in itertools.pairwise(edges):
        own = Matches.of_rows(rows[start:stop], entries)
        (block,) = own.blocks()
        parts.append(MatchedRows(start, block.ends, block.numbers))
    return Matches(whole.counts, whole.entries, parts)


def test_of_a_hundred_thousand_captions_each_entry_keeps_its_share_within_chance() -> None:
    n, t = 100_000, 1500
    rows, entries = random_matches(n, 60, most=3)
    captions = [" ".join(entries[number] for number in own) for own in rows]
    matches = matches_of(captions, entries)
    kept, counts = decide(at(t, seed=5), pool_of(captions), matches)
    row = np.repeat(np.arange(n), [len(own) for own in rows])
    entry = np.concatenate(rows).astype(int)
    tally = np.bincount(entry, minlength=60)
    assert matches.counts.tolist() == tally.tolist()
    p = t / np.maximum(tally, t)
    missed = np.ones(n)
    np.multiply.at(missed, row, 1 - p[entry])
    probability, variance = 1 - missed, missed * (1 - missed)
    assert counts["expected"] == pytest.approx(probability.sum(), abs=0.01)
    assert abs(kept.num_kept - probability.sum()) < 4.5 * np.sqrt(variance.sum())
    expected, spread, found = (
        np.bincount(entry, weights=values[row], minlength=60)
        for values in (probability, variance, kept.mask.astype(float))
    )
    assert (np.abs(found - expected) <= 4.5 * np.sqrt(spread) + 1e-6).all()
    assert (found[tally <= t] == tally[tally <= t]).all()
    assert not kept.mask[np.setdiff1d(np.arange(n), row)].any()


@pytest.mark.parametrize("stage", [at(40), to(700), to(700, combine="sum"), to(5)])
def test_what_is_kept_is_the_same_for_one_and_seven_parts_and_for_shuffled_rows(stage: Any) -> None:
    rows, entries = random_matches(3000, 120)
    uids = [f"uid {row}" for row in range(3000)]
    pool = pool_of([""] * 3000, uids)
    one, said = decide(stage, pool, Matches.of_rows(rows, entries))
    seven, _ = decide(stage, pool, in_parts(rows, entries, 7))
    assert one.digest == seven.digest
    order = np.random.default_rng(3).permutation(3000)
    moved = pool_of([""] * 3000, [uids[row] for row in order])
    shuffled, also = decide(stage, moved, in_parts([rows[row] for row in order], entries, 7))
    assert {uids[row] for row in one.rows} == {uids[order[row]] for row in shuffled.rows}
    assert also["threshold"] == said["threshold"]


def test_a_larger_threshold_or_budget_keeps_all_that_a_smaller_one_keeps() -> None:
    rows, entries = random_matches(2000, 60)
    pool, matches = pool_of([""] * 2000), Matches.of_rows(rows, entries)
    for make, sizes in ((at, (1, 2, 5, 30, 31, 500)), (to, (1, 2, 3, 100, 101, 900, 1500))):
        masks = [decide(make(size), pool, matches)[0].mask for size in sizes]  # type: ignore[operator]
        for small, large in itertools.pairwise(masks):
            assert not (small & ~large).any()


def test_rows_that_come_and_go_together_are_taken_from_the_front() -> None:
    matches = Matches.of_rows([[0]] * 10, ["dog"])
    pool = pool_of([""] * 10, ["the same"] * 10)
    assert decide(to(4), pool, matches)[0].rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", [0, 3, -1, 2**40])
def test_a_row_s_random_number_is_the_keyed_hash_that_every_selection_uses(seed: int) -> None:
    hashes = np.random.default_rng(0).integers(0, 1 << 63, 500).astype(np.uint64) * np.uint64(2)
    found = [keyed_number(key, np.uint64(seed & (1 << 64) - 1)) for key in hashes]
    assert found == ((keyed_hash(hashes, seed) >> np.uint64(11)) * 2.0**-53).tolist()


@pytest.mark.parametrize("few", [0, 50, 400])
def test_how_many_rows_are_held_in_memory_changes_nothing(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, entries = random_matches(2000, 60)
    pool, matches = pool_of([""] * 2000), in_parts(rows, entries, 7)
    kept, counts = decide(to(500), pool, matches)
    monkeypatch.setattr(balance, "FEW", few)
    again, other = decide(to(500), pool, matches)
    assert again.digest == kept.digest
    assert other["threshold"] == counts["threshold"]


def test_another_seed_keeps_other_rows() -> None:
    rows, entries = random_matches(2000, 60)
    pool, matches = pool_of([""] * 2000), Matches.of_rows(rows, entries)
    one, other = (decide(to(500, seed=seed), pool, matches)[0] for seed in (0, 1))
    assert one.digest != other.digest


def test_tiny_probabilities_keep_their_digits() -> None:
    # 1 - (1 - 1e-9)^2 by subtraction would be off in the eighth digit.
    matches = Matches(np.array([10**9, 10**9]), Matches.of_rows([], ["a", "b"]).entries,
                      Matches.of_rows([[0, 1]], ["a", "b"]).parts)  # fmt: skip
    (decision,) = decide(at(1), pool_of([""]), matches)[0].decisions.to_pylist()
    assert decision["value"] == pytest.approx(2e-9 - 1e-18, rel=1e-15)


# languages


def languages() -> tuple[Pool, Matches]:
    """In English entries of 1, 2, 3 and 6 rows; in German the same counts times ten, and a null."""
    rows, language = [], []
    for times, name in ((1, "en"), (10, "de")):
        for entry, count in enumerate((1, 2, 3, 6)):
            rows += [[entry]] * (count * times)
            language += [name] * (count * times)
    rows, language = [*rows, [0], []], [*language, None, "en"]
    pool = pool_of([""] * len(rows), language=language)
    return pool, Matches.of_rows(rows, ["one", "two", "three", "six"])


def test_each_language_has_the_threshold_of_an_equal_share_of_tail() -> None:
    pool, matches = languages()
    kept, counts = decide(at(2, language="language"), pool, matches)
    # English: c = 1, 2, 3, 6, and 3 of 12 matches on entries with at most 2; so German has 20.
    assert counts["thresholds"] == pytest.approx({"en": 2, "de": 20, "(none)": 0.25})
    table = kept.decisions.to_pylist()
    english, german = ([row["value"] for row in table[a:b]] for a, b in ((0, 12), (12, 132)))
    assert english == pytest.approx([1, 1, 1, 2 / 3, 2 / 3, 2 / 3, *[2 / 6] * 6])
    assert german == pytest.approx(np.repeat(english, 10).tolist())
    assert table[133]["reason"] == "no entry matches"
    together = decide(at(2), pool, matches)[0].decisions.to_pylist()
    assert together[3]["value"] == pytest.approx(2 / 33)


@pytest.mark.parametrize("budget", [1, 20, 77, 132, 133])
def test_a_budget_is_kept_exactly_over_several_languages(budget: int) -> None:
    pool, matches = languages()
    kept, _ = decide(to(budget, language="language"), pool, matches)
    assert kept.num_kept == budget


# bad input


def test_too_few_rows_with_an_entry_are_said_with_the_way_out() -> None:
    pool, matches = pool_of(CAPTIONS), matches_of(CAPTIONS, ENTRIES)
    message = r"cannot keep 28 rows: 27 of the 30 rows at hand hold one of the 12 entries. .*metadata"
    with pytest.raises(BudgetError, match=message):
        decide(to(28), pool, matches)


@pytest.mark.parametrize("threshold", [0.5, 0, -3])
def test_a_threshold_below_one_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=rf"threshold={float(threshold)}: it must be at least 1"):
        at(threshold)


def test_a_language_that_no_row_has_and_a_column_that_is_not_there_are_named() -> None:
    pool, matches = languages()
    with pytest.raises(ConfigError, match=r"reference_language=fr: no row .* It can be: \(none\), de, en"):
        decide(at(2, language="language", reference_language="fr"), pool, matches)
    with pytest.raises(ConfigError, match=r"language=langage: .* Did you mean 'language'\?"):
        decide(at(2, language="langage"), pool, matches)
    none = Matches.of_rows([[]] * pool.num_rows, ["dog"])
    with pytest.raises(ConfigError, match=r"no row in the reference language en .*counts=pool"):
        decide(at(2, language="language"), pool, none)


# what is written


def test_the_table_of_entries_is_that_by_hand(tmp_path: Path) -> None:
    pool, matches = pool_of(CAPTIONS), matches_of(CAPTIONS, ENTRIES)
    every = everything("pool", np.ones(30, bool))
    stage = at(4, seed=1)
    counts = stage.run(Work(tmp_path, tmp_path, "key"), rows=every, base=every, pool=pool, matches=matches)
    kept = KeepList.load(tmp_path)
    assert counts["kept"] == kept.num_kept
    table = pq.read_table(tmp_path / "entries.parquet").to_pylist()
    assert [row["entry"] for row in table] == ENTRIES
    for row in table:
        number = ENTRIES.index(row["entry"])
        assert row["count"] == COUNTS[number]
        assert row["probability"] == pytest.approx(4 / max(COUNTS[number], 4))
        assert row["kept"] == sum(number in HELD[int(kept_row)] for kept_row in kept.rows)
