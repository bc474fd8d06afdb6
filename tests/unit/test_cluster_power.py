"""Cluster power: shares by a power of the size, drawn anew or once; and centroids that stand apart."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_selection import World

from dbp.__main__ import main
from dbp.clustering.kmeans import FitCentroids, KMeans
from dbp.clustering.separate import apart
from dbp.data.keep_list import KeepList
from dbp.engine.stage import parameters
from dbp.errors import BudgetError, ConfigError
from dbp.selection.budget import Budget
from dbp.selection.cluster_power import ClusterPower, shares
from training.feed.mixture import MixedOrder


def power(**changes: Any) -> ClusterPower:
    settings = {"power": 0.5, "per_epoch": True, "clip": False, "seed": 0, "budget": Budget(num_kept=60)}
    return ClusterPower(**settings | changes)


@pytest.fixture
def world() -> World:
    return World(np.arange(200))


def of_clusters(world: World, kept: KeepList) -> tuple[np.ndarray, np.ndarray]:
    """Rows at hand and the sum of the weights, by cluster."""
    own = world.clusters.assignment
    sizes = world.clusters.sizes_of(world.rows.mask & world.clusters.is_clustered)
    assert kept.weights is None or len(kept.weights) == kept.num_kept
    weights = kept.weights if kept.weights is not None else np.ones(kept.num_kept)
    return sizes, np.bincount(own[kept.rows], weights=weights, minlength=len(sizes))


def test_by_hand_clusters_of_16_and_4_rows_share_an_epoch_as_two_to_one_at_power_one_half() -> None:
    found = shares(np.array([16, 0, 4]), 0.5)
    assert found.tolist() == [2 / 3, 0, 1 / 3]
    assert shares(np.array([16, 0, 4]), 0.0).tolist() == [0.5, 0, 0.5]
    assert shares(np.array([16, 0, 4]), 1.0).tolist() == [0.8, 0, 0.2]


def test_per_epoch_weights_sum_to_the_budget_and_are_alike_within_a_cluster(world: World) -> None:
    kept = world.decide(power())
    sizes, sums = of_clusters(world, kept)
    assert sums == pytest.approx(60 * shares(sizes, 0.5), rel=1e-6)
    assert kept.num_draws == pytest.approx(60, rel=1e-6)
    for cluster in np.unique(world.clusters.assignment[kept.rows]):
        assert len(set(kept.weights[world.clusters.assignment[kept.rows] == cluster].tolist())) == 1


def test_clipping_reads_no_row_twice_and_fewer_than_the_budget(world: World) -> None:
    free, clipped = (world.decide(power(power=0.0, clip=c, budget=Budget(num_kept=100))) for c in (False, True))
    assert free.weights.max() > 1
    assert clipped.weights.max() == 1
    assert np.array_equal(clipped.weights, np.minimum(free.weights, 1))
    assert clipped.num_draws < 100


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("num", [1, 59, 60, 120])
def test_a_static_list_holds_exactly_the_budget_and_copies_differ_by_one_within_a_cluster(
    world: World, clip: bool, num: int
) -> None:
    kept = world.decide(power(per_epoch=False, clip=clip, power=0.2, budget=Budget(num_kept=num)))
    assert kept.num_draws == num
    sizes, sums = of_clusters(world, kept)
    assert (sums <= sizes).all() or not clip
    spread = world.rows.mask & world.clusters.is_clustered
    times = kept.over(kept.weights, 0) if kept.weights is not None else kept.mask.astype(float)
    for cluster in range(len(sizes)):
        own = times[spread & (world.clusters.assignment == cluster)]
        assert len(own) == 0 or own.max() - own.min() <= 1


def test_a_static_list_without_repeats_cannot_hold_more_than_the_rows_at_hand(world: World) -> None:
    with pytest.raises(BudgetError, match="158"):
        world.decide(power(per_epoch=False, clip=True, budget=Budget(num_kept=200)))
    assert world.decide(power(per_epoch=False, clip=False, budget=Budget(num_kept=200))).num_draws == 200


def test_power_one_takes_all_rows_equally_often(world: World) -> None:
    kept = world.decide(power(power=1.0))
    assert len(set(kept.weights.tolist())) == 1
    assert kept.num_kept == int((world.rows.mask & world.clusters.is_clustered).sum())


def test_training_draws_each_row_with_the_probability_that_the_list_says(world: World) -> None:
    kept = world.decide(power(power=0.2, clip=True))
    keys = world.pool.uid_hashes[kept.rows]
    order = MixedOrder(keys, 0, kept.weights)
    mean = np.mean([order.counts(epoch) for epoch in range(400)], axis=0)
    error = np.sqrt(np.maximum(kept.weights * (1 - kept.weights), 1e-12) / 400)
    assert (np.abs(mean - kept.weights) <= 5 * error).all()


def test_curate_prints_the_draws_of_an_epoch_beside_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "pool=rehearsal",
        "encoder=rehearsal",
        "pool.rows=300",
        "pool.width=16",
        "dedup=none",
        "parts.device=cpu",
    ]
    words += ["cluster.num_clusters=4", "cluster.num_iterations=1", f"paths.store={tmp_path}/store"]
    assert main(["curate", *words, "select=dynamics", "budget.keep_fraction=0.5"]) == 0
    said = capsys.readouterr().out
    assert "kept 300 of 300 rows (100.0%), 150 draws in an epoch, at most 1 of a row" in said
    assert main(["curate", *words, "select=uniform", "budget.keep_fraction=0.5"]) == 0
    assert "in an epoch" not in capsys.readouterr().out


def test_the_seed_is_part_of_a_static_list_alone(tmp_path: Path) -> None:
    for per_epoch, differ in ((True, False), (False, True)):
        one, two = (json.dumps(parameters(power(per_epoch=per_epoch, seed=seed))) for seed in (0, 1))
        assert (one != two) is differ


def plain(centroids: np.ndarray, limit: float) -> list[int]:
    """Greedy by exact fractions."""
    kept: list[int] = []
    exact = [[Fraction(float(x)) for x in row] for row in centroids]
    for at, row in enumerate(exact):
        if all(sum(a * b for a, b in zip(row, exact[k], strict=True)) < Fraction(limit) for k in kept):
            kept.append(at)
    return kept


@pytest.mark.parametrize("block", [1, 7, 512])
def test_centroids_stand_apart_as_exact_arithmetic_decides(block: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 5))
    values = (np.round(values / np.linalg.norm(values, axis=1, keepdims=True) * 2**24) / 2**24).astype(np.float32)
    values[10] = values[3]
    for limit in (0.3, 0.7, float(values[0].astype(np.float64) @ values[1].astype(np.float64)), 1.0):
        assert np.array_equal(apart(values, limit, block), values[plain(values, limit)])


def test_the_setting_is_no_part_of_old_keys() -> None:
    fit = FitCentroids(5, 2, 10, 0, "image")
    assert "most_cosine" not in parameters(fit)
    assert parameters(replace(fit, most_cosine=0.7))["most_cosine"] == 0.7
    with pytest.raises(ConfigError, match="most_cosine"):
        KMeans(5, 2, 10, 0, "image", "dedup", most_cosine=2.0)
