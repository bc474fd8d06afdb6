"""Soft and hard cap: what keyed clocks draw, beside drawing one by one, and what a keep list with counts says."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from test_selection import pool_of

from dbp.data.keep_list import everything
from dbp.data.missing import Missing
from dbp.data.scores import Scores
from dbp.errors import BudgetError, ConfigError
from dbp.exact import clocks
from dbp.exact.clocks import Rounds
from dbp.exact.order import keyed_hash
from dbp.selection.capped import HardCap, SoftCap

KEYS = np.random.default_rng(5).integers(0, 2**64, 300, dtype=np.uint64)
LOGITS = np.random.default_rng(6).normal(0, 2, 300)


def soft(**changes: Any) -> SoftCap:
    return SoftCap(**{"draws": 3000, "temperature": 1.0, "seed": 3, "penalty": 0.15, "round_size": 40} | changes)


def hard(**changes: Any) -> HardCap:
    return HardCap(**{"draws": 900, "temperature": 1.0, "seed": 3, "most": 7} | changes)


def exponential(key: np.uint64, word: np.uint64) -> float:
    """A row's exponential number in a round, by Python's integers and library logarithm."""
    state = int(key) ^ int(word)
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return -math.log(((state >> 11) + 0.5) / 2**53)


def one_by_one(stage: SoftCap, keys: np.ndarray, logits: np.ndarray) -> list[int]:
    """Each round by sorting the clocks of all rows."""
    draws, size = stage.draws, stage.round_size
    assert draws
    assert size
    times = [0] * len(keys)
    for word in keyed_hash(np.arange(-(-draws // size), dtype=np.uint64), stage.seed):
        rings = sorted(
            range(len(keys)),
            key=lambda i: math.log(exponential(keys[i], word)) - (logits[i] - stage.penalty * times[i]),
        )
        for row in rings[: min(size, draws - sum(times))]:
            times[row] += 1
    return times


@pytest.mark.parametrize(
    "changes",
    [{}, {"round_size": 300}, {"penalty": 0.0}, {"penalty": 5.0}, {"draws": 2_990, "round_size": 7}, {"seed": 4}],
)
def test_a_soft_cap_draws_what_sorting_all_clocks_draws(changes: dict[str, Any]) -> None:
    stage = soft(**changes)
    times, counts = stage.times(KEYS, LOGITS, stage.draws or 0)
    assert times.tolist() == one_by_one(stage, KEYS, LOGITS)
    assert times.sum() == stage.draws
    assert counts["rounds"] == -(-(stage.draws or 0) // counts["round size"])


def test_a_hard_cap_draws_what_ordering_all_rings_draws() -> None:
    stage = hard()
    words = keyed_hash(np.arange(7, dtype=np.uint64), 3)
    rings = []
    for i in range(300):
        spent = 0.0
        for word in words:
            spent += exponential(KEYS[i], word)
            rings.append((math.log(spent) - LOGITS[i], i))
    found = Counter(i for _, i in sorted(rings)[:900])
    assert stage.times(KEYS, LOGITS, 900)[0].tolist() == [found[i] for i in range(300)]


@pytest.mark.parametrize("stage", [soft(), hard()], ids=["soft", "hard"])
def test_neither_the_order_nor_the_company_of_rows_changes_a_draw(stage: Any) -> None:
    order = np.random.default_rng(0).permutation(300)
    times, _ = stage.times(KEYS, LOGITS, stage.draws)
    assert np.array_equal(stage.times(KEYS[order], LOGITS[order], stage.draws)[0], times[order])
    # Rows that cannot win are no company.
    with_losers = stage.times(np.r_[KEYS, KEYS + np.uint64(1)], np.r_[LOGITS, LOGITS - 1e6], stage.draws)[0]
    assert np.array_equal(with_losers, np.r_[times, np.zeros(300, np.int64)])


def test_by_hand_a_huge_penalty_takes_every_row_once_before_any_twice() -> None:
    times, _ = soft(draws=8, round_size=1, penalty=1e6).times(KEYS[:3], np.array([9.0, 0.0, -9.0]), 8)
    assert sorted(times.tolist()) == [2, 3, 3]
    times, _ = soft(draws=12, round_size=3, penalty=0.0).times(KEYS[:3], np.array([9.0, 0.0, -9.0]), 12)
    assert times.tolist() == [4, 4, 4]  # a round of all rows takes all


def test_first_draws_have_the_probabilities_of_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2]))
    first = np.zeros(3)
    for key in range(4000):
        keys = keyed_hash(np.arange(3, dtype=np.uint64) + np.uint64(3 * key), 99)
        first[Rounds(keys, logits.copy(), 1).draw(np.uint64(1))] += 1
    assert np.abs(first / 4000 - [0.5, 0.3, 0.2]).max() < 4 * np.sqrt(0.25 / 4000)


def test_a_better_score_is_drawn_no_less_often() -> None:
    times, _ = hard().times(KEYS, LOGITS, 900)
    for row in (0, 17, 123):
        better = LOGITS.copy()
        better[row] += 0.5
        assert hard().times(KEYS, better, 900)[0][row] >= times[row]


def test_our_logarithm_is_the_library_s_within_its_last_bits() -> None:
    rng = np.random.default_rng(1)
    values = np.r_[rng.random(5000), 1 - 2.0 ** -np.arange(1, 54), 2.0 ** np.arange(-60, 7)]
    for value in values.tolist():
        assert abs(clocks._log(value) - math.log(value)) <= 1e-15 * max(1.0, abs(math.log(value)))


@pytest.mark.parametrize("size", [1e3, 1e12, 1e15, 9e15])
def test_a_hard_cap_makes_all_draws_also_where_the_rings_of_a_row_tie(size: float) -> None:
    """Between floats near 1e15 lies 0.125, so that clocks of one row are equal."""
    for draws in (1, 3, 7, 1000, 2099):
        times, _ = hard().times(KEYS, np.full(300, size), draws)
        assert times.sum() == draws
        assert times.max() <= 7


def decide(stage: Any, values: np.ndarray) -> Any:
    n = len(values)
    rows = everything("pool", np.arange(n) != 2)
    scores = Scores(values.astype(np.float32), Missing.of({4: "no image"}))
    return stage.decide(rows=rows, pool=pool_of([f"u{i}" for i in range(n)]), scores=scores)


def test_a_keep_list_holds_the_draws_and_the_reasons_of_the_others() -> None:
    values = np.random.default_rng(2).normal(0, 2, 60)
    values[4] = np.nan
    kept, counts = decide(soft(draws=200, round_size=10), values)
    assert kept.num_draws == counts["draws"] == 200
    assert counts["most draws of a row"] == kept.weights.max()
    assert not kept.mask[[2, 4]].any()
    assert kept.decision(4)["reason"] == "no image"
    never = [row for row in kept.decisions.to_pylist() if row["reason"] == "never drawn"]
    assert len(never) == 58 - kept.num_kept
    assert all(row["weight"] is None for row in never)


@pytest.mark.parametrize(
    ("stage", "error", "facts"),
    [
        (soft(draws=None), ConfigError, ["select.draws", "train.samples_seen"]),
        (soft(round_size=59), BudgetError, ["select.round_size=59", "58 rows"]),
        (hard(draws=1000), BudgetError, ["select.most=7", "58 rows", "406", "select.draws=1,000"]),
        (soft(temperature=1e-308, round_size=5), ConfigError, ["select.temperature=1e-308", "not finite"]),
        (soft(temperature=1e-16, round_size=5), ConfigError, ["select.temperature=1e-16", "adding 1", "u0"]),
        (hard(draws=50, temperature=1e-16), ConfigError, ["select.temperature=1e-16", "adding 1", "u0"]),
    ],
)
def test_what_cannot_be_drawn_is_said_with_the_way_out(
    stage: Any, error: type[Exception], facts: list[str]
) -> None:
    values = np.linspace(-3, 3, 60)
    values[4] = np.nan
    with pytest.raises(error) as caught:
        decide(stage, values)
    assert all(fact in str(caught.value) for fact in facts), caught.value


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"penalty": -1.0}, {"round_size": 0}, {"draws": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        soft(**wrong)
