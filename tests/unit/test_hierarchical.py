"""Hierarchical sampling: shares by hand and by brute force, and whole trees."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_selection import World

from dbp.clustering.hierarchy import Hierarchy, Levels, nearest_of_each
from dbp.data.clusters import Clusters
from dbp.engine.work import Work
from dbp.errors import BudgetError, ConfigError
from dbp.selection.budget import Budget
from dbp.selection.hierarchical import Hierarchical, fair_shares, quotas


def plain_shares(sizes: list[int], target: int) -> int:
    """The largest x with sum of min(x, size) at most the target, by trying all."""
    return max(x for x in range(max(sizes) + 1) if sum(min(x, size) for size in sizes) <= target)


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_those_of_trying_every_level(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 9, rng.integers(1, 8))
    keys = rng.integers(0, 2**64, len(sizes), dtype=np.uint64)
    for target in range(int(sizes.sum()) + 1):
        found = fair_shares(sizes, target, keys)
        level = plain_shares(sizes.tolist(), target)
        assert found.sum() == target
        more = found - np.minimum(sizes, level)
        assert set(more.tolist()) <= {0, 1}
        assert (sizes[more == 1] > level).all()
        larger = np.flatnonzero(sizes > level)
        first = larger[np.argsort(keys[larger])][: int(more.sum())]
        assert sorted(first.tolist()) == np.flatnonzero(more).tolist()


def test_by_hand_a_tree_of_three_levels() -> None:
    # Tops A = {a, b}, B = {c}; a = clusters 0, 1; b = cluster 2; c = clusters 3, 4; cluster 5 has no rows.
    parents = (np.array([0, 0, 1, 2, 2, -1]), np.array([0, 0, 1]))
    sizes = np.array([10, 2, 4, 1, 2, 0])
    # Of 12, A and B would have 6 each; B holds 3, so A has 9. b gives its 4, a 5: 2 of cluster 1, 3 of 0.
    assert quotas(sizes, parents, 12, 0).tolist() == [3, 2, 4, 1, 2, 0]
    assert quotas(sizes, parents, 19, 0).tolist() == sizes.tolist()
    assert quotas(sizes, parents, 0, 0).sum() == 0


def clusters_of(num_points: int, seed: int = 0) -> Clusters:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 8)).repeat(num_points // 4, axis=0) + 0.2 * rng.normal(size=(num_points, 8))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    assignment = np.arange(num_points, dtype=np.int32)
    assignment[-1] = 0  # the last cluster is empty
    return Clusters(centres.astype(np.float32), assignment, np.zeros(num_points, np.float32))


def build(tmp_path: Path, clusters: Clusters, **changes: Any) -> Levels:
    settings = {"levels": [8, 4], "nearest": [3, 2], "num_resamplings": 3, "num_iterations": 20, "seed": 0}
    Hierarchy(**settings | changes).run(Work(tmp_path, tmp_path, "key"), clusters=clusters)
    return Levels.load(tmp_path)


def test_a_hierarchy_puts_what_lies_together_under_one_top(tmp_path: Path) -> None:
    levels = build(tmp_path, clusters_of(40))
    tops = levels.parents[1][levels.parents[0][:39]]
    assert levels.parents[0][39] == -1
    groups = [set(tops[at : at + 10].tolist()) for at in range(0, 40, 10)]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) == 4


def test_a_hierarchy_is_the_same_on_every_run(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    one, two = (build(folder, clusters_of(40, 3)) for folder in folders)
    assert all(np.array_equal(a, b) for a, b in zip(one.parents, two.parents, strict=True))


def test_the_nearest_points_of_each_cluster_are_resampled_ties_going_to_the_lower() -> None:
    label = np.array([0, 1, 0, 0, 1, 2], np.int32)
    distance = np.array([0.3, 0.1, 0.1, 0.1, 0.0, 0.5], np.float32)
    assert nearest_of_each(label, distance, 1).tolist() == [2, 4, 5]
    assert nearest_of_each(label, distance, 2).tolist() == [1, 2, 3, 4, 5]


def test_more_clusters_than_there_are_below_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="level 2 cannot have 40 clusters of the 39"):
        build(tmp_path, clusters_of(40), levels=[40, 4])
    with pytest.raises(ConfigError, match="levels"):
        Hierarchy([4, 8], [1, 1], 1, 1, 0)
    with pytest.raises(ConfigError, match="nearest"):
        Hierarchy([8, 4], [1], 1, 1, 0)


SELECT = Hierarchical(
    budget=Budget(num_kept=41), seed=0, levels=[3, 2], nearest=[2, 2], num_resamplings=1, num_iterations=5,
    cluster_seed=0, members="easy", most=1,
)  # fmt: skip


def chosen(world: World, stage: Hierarchical, tmp_path: Path) -> Any:
    levels = tmp_path / json.dumps(stage.levels)
    levels.mkdir(exist_ok=True)
    stage.hierarchy().run(Work(levels, levels, "key"), clusters=world.clusters)
    inputs = {"rows": world.rows, "base": world.base, "pool": world.pool, "clusters": world.clusters}
    return stage.decide(**inputs, levels_above=Levels.load(levels))


@pytest.mark.parametrize("num_kept", [1, 41, 100])
@pytest.mark.parametrize("members", ["easy", "random"])
def test_a_selection_keeps_its_budget_and_the_nearest_members(tmp_path: Path, num_kept: int, members: Any) -> None:
    world = World(np.arange(200))
    kept, counts = chosen(world, replace(SELECT, budget=Budget(num_kept=num_kept), members=members), tmp_path)
    assert kept.num_kept == kept.num_draws == counts["draws"] == num_kept
    assert set(kept.rows) <= set(world.rows.rows)
    distance, own = world.clusters.distance_to_centroid, world.clusters.assignment
    for cluster in np.unique(own[kept.rows]) if members == "easy" else ():
        inside = world.rows.mask & (own == cluster)
        taken = kept.mask & (own == cluster)
        assert distance[taken].max() <= distance[inside & ~taken].min(initial=np.inf)


def test_repeats_are_whole_tiles_and_a_remainder(tmp_path: Path) -> None:
    world = World(np.arange(200))
    kept, counts = chosen(world, replace(SELECT, budget=Budget(num_kept=190), most=3), tmp_path)
    assert kept.num_draws == 190
    assert 1 < counts["most draws of a row"] <= 3
    own = world.clusters.assignment
    times = kept.over(kept.weights, 0)
    for cluster in np.unique(own[kept.rows]):
        inside = times[world.rows.mask & (own == cluster)]
        assert inside.max() - inside.min() <= 1


def test_a_budget_above_what_rows_may_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        chosen(World(np.arange(200)), replace(SELECT, budget=Budget(num_kept=199)), tmp_path)
