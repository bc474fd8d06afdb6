"""Coverage: greedy choice beside trying every row in every step, and by hand."""

import math
from typing import Any

import numpy as np
import pytest
from test_selection import World

from dbp.data.column import Column
from dbp.data.keep_list import KeepList
from dbp.errors import BudgetError, ConfigError
from dbp.exact.order import keyed_hash
from dbp.metadata.base import Numbers
from dbp.selection.budget import Budget
from dbp.selection.coverage import Coverage, bins_of


def stage(**changes: Any) -> Coverage:
    settings: dict[str, Any] = {"concepts": "clusters", "target": "uniform", "share": 0.5, "seed": 0}
    settings |= {"bins": [0.0, 0.2, 0.8], "budget": Budget(num_kept=41)}
    return Coverage(**settings | changes)


@pytest.fixture
def world() -> World:
    return World(np.arange(200))


def decide(world: World, made: Coverage, **others: Any) -> tuple[KeepList, dict[str, Any]]:
    inputs = {"rows": world.rows, "base": world.base, "pool": world.pool}
    named = {"clusters": world.clusters} if made.concepts == "clusters" else {}
    named |= {"scores": world.scores} if made.share < 1 else {}
    return made.decide(**inputs, **named, **others)


def value_of(made: Coverage, rows: list[int], held: list[list[int]], p: np.ndarray, bins: Any) -> float:
    counts = np.bincount([c for row in rows for c in held[row]], minlength=len(p))
    in_bin = np.bincount([bins[row] for row in rows], minlength=len(made.bins))
    covered = sum(p[i] * math.log1p(m) for i, m in enumerate(counts))
    by_bin = sum(u * math.log1p(n) for u, n in zip(made.bins, in_bin, strict=True))
    return made.share * covered + (1 - made.share) * by_bin


def step_by_step(world: World, made: Coverage, budget: int, held: list[list[int]], p: np.ndarray) -> float:
    """The value of greedy choice that tries every row in every step."""
    mask = world.rows.mask & np.array([bool(own) for own in held])
    bins = np.zeros(200, int)
    if made.share < 1:
        mask &= ~np.isnan(world.scores.values)
        order = sorted(np.flatnonzero(mask), key=lambda r: world.scores.values[r])
        for place, row in enumerate(order):  # equal parts, the worst first
            bins[row] = next(b for b in (2, 1, 0) if place >= len(order) * b // 3)
        assert np.array_equal(bins[mask], bins_of(world.scores, mask, 3, world.pool)[mask])
    chosen: list[int] = []
    left = set(np.flatnonzero(mask).tolist())
    for _ in range(budget):
        best = max(left, key=lambda r: (round(value_of(made, [*chosen, r], held, p, bins), 11), -r))
        chosen.append(best)
        left.remove(best)
    return value_of(made, chosen, held, p, bins)


@pytest.mark.parametrize(
    "changes", [{}, {"share": 1.0}, {"target": "pool"}, {"share": 0.9, "bins": [1.0, 1.0, 1.0]}]
)
def test_the_choice_is_as_good_as_trying_every_row_in_every_step(world: World, changes: dict[str, Any]) -> None:
    made = stage(budget=Budget(num_kept=15), **changes)
    held = [[] if c < 0 else [c] for c in world.clusters.assignment.tolist()]
    mask = world.rows.mask & world.clusters.is_clustered & (~np.isnan(world.scores.values) | (made.share == 1))
    sizes = world.clusters.sizes_of(mask)
    p = sizes / sizes.sum() if made.target == "pool" else (sizes > 0) / (sizes > 0).sum()
    kept, counts = decide(world, made)
    assert kept.num_kept == 15
    assert counts["objective"] == pytest.approx(step_by_step(world, made, 15, held, p), abs=1e-7)


def test_entries_of_captions_are_concepts_and_a_row_may_hold_several(world: World) -> None:
    made = stage(concepts="entries", metadata=Numbers(100), share=1.0, target="pool", budget=Budget(num_kept=12))
    kept, counts = decide(world, made, matches=world.matches)
    held = [[int(world.matches.entries.texts.index(e)) for e in world.matches.of(row)] for row in range(200)]
    each = np.bincount([c for row in world.rows.rows for c in held[row]], minlength=9)
    assert counts["objective"] == pytest.approx(step_by_step(world, made, 12, held, each / each.sum()), abs=1e-7)
    assert all(held[row] for row in kept.rows)


def test_by_hand_two_concepts_of_equal_weight_are_taken_in_turn(world: World) -> None:
    column = Column(codes=(np.arange(200) % 4 == 0).astype(np.int32), texts=("common", "rare"))
    made = stage(concepts="column", column="topic", share=1.0, budget=Budget(num_kept=20))
    kept, counts = decide(world, made, columns=column)
    assert sum(row % 4 == 0 for row in kept.rows.tolist()) == 10
    assert counts["concepts covered"] == 2
    assert counts["objective"] == pytest.approx(2 * 0.5 * math.log(11))


def test_rows_alike_go_by_the_keyed_hash_of_their_uid_whatever_their_order() -> None:
    order = np.random.default_rng(1).permutation(200)
    made = stage(budget=Budget(num_kept=30))
    one, two = World(np.arange(200)), World(order)
    assert one.names(decide(one, made)[0]) == two.names(decide(two, made)[0])
    other = stage(budget=Budget(num_kept=30), seed=1)
    assert one.names(decide(one, made)[0]) != one.names(decide(one, other)[0])
    kept = decide(one, stage(share=1.0, budget=Budget(num_kept=30)))[0]
    keys = keyed_hash(one.pool.uid_hashes, 0)
    for cluster in range(6):
        inside = one.rows.mask & (one.clusters.assignment == cluster)
        taken = kept.mask & inside
        assert keys[taken].max(initial=0) < keys[inside & ~taken].min(initial=2**64 - 1) or not taken.any()


def test_more_rows_than_hold_a_concept_are_refused(world: World) -> None:
    with pytest.raises(BudgetError, match=r"clusters\) and have a score"):
        decide(world, stage(budget=Budget(num_kept=158)))


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"bins": []}, {"bins": [-1.0, 2.0]}, {"concepts": "column"}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="column" if "concepts" in wrong else next(iter(wrong))):
        stage(**wrong)
