"""Selection: laws that every preset keeps, and each method by hand."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from dbp.clustering.hierarchy import Levels
from dbp.config import build
from dbp.data.clusters import Clusters
from dbp.data.column import Column
from dbp.data.columns import Columns
from dbp.data.keep_list import KeepList, everything
from dbp.data.matches import Matches
from dbp.data.missing import Missing
from dbp.data.pool import Pool, hash_64
from dbp.data.scores import Scores
from dbp.engine.paths import config_folder
from dbp.engine.work import Work
from dbp.errors import BudgetError, ConfigError
from dbp.narrowing import Narrowing
from dbp.selection.budget import Budget
from dbp.selection.density import Density
from dbp.selection.prototypes import Prototypes
from dbp.selection.top_score import TopScore
from dbp.selection.uniform import Uniform

PRESETS = sorted(file.stem for file in (config_folder() / "select").glob("*.yaml"))
KEPT = 41


class World:
    """A pool of made-up rows with clusters and scores, some rows gone before selection."""

    def __init__(self, order: np.ndarray, seed: int = 0) -> None:
        """Lay the samples out in an order; what belongs to a sample goes with it."""
        n = len(order)
        rng = np.random.default_rng(seed)
        self.uids = [f"sample-{i}" for i in range(n)]
        centroids = rng.normal(size=(6, 4))
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        cluster = rng.choice([0, 1, 2, 3, 5], n, p=[0.5, 0.3, 0.1, 0.05, 0.05])  # 4 is empty
        distance = rng.permutation(n) / n * (0.2 + cluster / 5)  # no two alike
        score = rng.permutation(n) / n
        gone = rng.random(n) < 0.2
        lost = rng.random(n) < 0.05  # no embedding, so no cluster and no score
        score[lost], distance[lost], cluster[lost] = np.nan, np.nan, -1

        self.uids = [self.uids[i] for i in order]
        self.pool = pool_of(self.uids)
        self.base = everything("pool", np.ones(n, bool))
        self.rows = self.base.narrow("dedup", ~gone[order], "duplicate", "no earlier duplicate")
        why = {int(row): "cut" for row in np.flatnonzero(lost[order]) if order[row] % 2}
        self.clusters = Clusters(
            centroids.astype(np.float32),
            cluster[order].astype(np.int32),
            distance[order].astype(np.float32),
            Missing.of(why),
        )
        self.levels_above = Levels((np.array([0, 0, 1, 1, 2, 2], np.int32), np.array([0, 0, 1], np.int32)))
        self.scores = Scores(score[order].astype(np.float32), Missing.of(why))
        spoken = np.where(rng.random(n) < 0.3, 1, 0).astype(np.int32)
        self.language = Column(codes=spoken[order], texts=("en", "de"))
        held = [[e for e in range(9) if rng.random() < 0.5 / (e + 1)] for _ in range(n)]
        self.matches = Matches.of_rows([held[i] for i in order], [f"entry{e}" for e in range(9)])

    def inputs(self, stage: Narrowing) -> dict[str, Any]:
        return {name: getattr(self, name) for name in stage.needs if name not in stage.unneeded()}

    def decide(self, stage: Narrowing) -> KeepList:
        """The keep list with the values behind its decisions."""
        return stage.decide(**self.inputs(stage))[0]

    def select(self, stage: Narrowing, folder: Path) -> KeepList:
        """Run a selection as the store does, and load what it wrote."""
        folder.mkdir(parents=True, exist_ok=True)
        stage.run(Work(folder, folder, "key"), **self.inputs(stage))
        return KeepList.load(folder)

    def names(self, kept: KeepList) -> set[str]:
        return {self.uids[row] for row in kept.rows}


def pool_of(uids: list[str]) -> Pool:
    hashes = pa.array([hash_64(uid.encode()) for uid in uids], pa.uint64())
    return Pool(Columns(pa.table({"uid": uids, "uid_hash": hashes})), [], "pool", "txt", 10**6)


NEEDED = {"coverage": {"share": 0.5}}  # what has no default


def preset(name: str, budget: Budget | None = None, **changes: Any) -> Any:
    """The selection that a preset describes."""
    file = OmegaConf.load(config_folder() / "select" / f"{name}.yaml")
    around = {"seed": 7, "parts": {"threads": 1, "device": "cpu"}}
    node = OmegaConf.merge({"select": file, **around}, {"select": NEEDED.get(name, {}) | changes}).select
    budget = budget or Budget(num_kept=KEPT)
    takes = {} if name in LISTS else {"budget": budget}
    return build(node, path="select", **takes)


def takes_budget(name: str) -> bool:
    target = OmegaConf.load(config_folder() / "select" / f"{name}.yaml")["_target_"]
    module, _, cls = target.rpartition(".")
    found = getattr(__import__(module, fromlist=[cls]), cls)
    return "budget" in {field.name for field in dataclasses.fields(found)}


# What bounds a method beside the budget, set so that it does not.
UNBOUND: dict[str, dict[str, Any]] = {"dbp": {"min_per_cluster": 0}, "tldr": {"matching_fraction": 1.0}}
# Their budget is a sum of weights; laws of their own are in test_cluster_power and test_hierarchical.
WEIGHTED = ["dynamics", "hierarchical"]
METHODS = [name for name in PRESETS if takes_budget(name) and name not in WEIGHTED]
LISTS = [name for name in PRESETS if not takes_budget(name)]


def what_it_needs(name: str, folder: Path) -> dict[str, Any]:
    """Settings without which a preset does not run: the list that another tool made, the draws of a run."""
    if name in ("soft_cap", "hard_cap"):
        return {"draws": 150, "temperature": 0.5} | ({"round_size": 15} if name == "soft_cap" else {})
    if name != "imported":
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "list.txt").write_text("".join(f"sample-{i}\n" for i in range(0, 200, 5)))
    return {"file": str(folder / "list.txt")}


@pytest.fixture
def world() -> World:
    return World(np.arange(200))


# laws of every preset


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("num_kept", [1, 41, 100])
def test_a_selection_keeps_exactly_its_budget_of_the_rows_at_hand(
    name: str, num_kept: int, world: World, tmp_path: Path
) -> None:
    settings = UNBOUND.get(name, {})
    kept = world.select(preset(name, Budget(num_kept=num_kept), **settings), tmp_path)
    assert kept.num_kept == num_kept
    assert set(kept.rows) <= set(world.rows.rows)


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_of_the_pool_has_one_decision_that_says_whether_it_stays(
    name: str, world: World, tmp_path: Path
) -> None:
    kept = world.decide(preset(name, **what_it_needs(name, tmp_path)))
    table = kept.decisions
    assert table["row"].to_pylist() == list(range(200))
    flags = np.array(table["kept"].to_pylist())
    assert np.flatnonzero(flags).tolist() == kept.rows.tolist()
    assert all(table["reason"].to_pylist())
    before = np.setdiff1d(np.arange(200), world.rows.rows)
    assert {kept.decision(int(row))["stage"] for row in before} == {"dedup"}
    assert sum(kept.counts().values()) == 200


@pytest.mark.parametrize("name", METHODS)
def test_a_row_stays_exactly_where_its_rank_is_below_its_quota(name: str, world: World) -> None:
    kept = world.decide(preset(name, **UNBOUND.get(name, {})))
    decided = [row for row in kept.decisions.to_pylist() if row["stage"] == "select"]
    assert len(decided) == world.rows.num_kept
    ranked = [row for row in decided if row["rank"] is not None]
    assert {row["row"] for row in decided if row["kept"]} <= {row["row"] for row in ranked}
    for row in ranked:
        assert row["kept"] == (row["rank"] < row["quota"])
    groups: dict[Any, list[int]] = {}
    for row in ranked:
        groups.setdefault(row["cluster"], []).append(row["rank"])
    assert all(sorted(found) == list(range(len(found))) for found in groups.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_selection_is_repeatable(name: str, world: World, tmp_path: Path) -> None:
    stage = preset(name, **what_it_needs(name, tmp_path))
    first, again = world.decide(stage), World(np.arange(200)).decide(stage)
    assert first.digest == again.digest
    assert first.decisions.equals(again.decisions)
    stored = world.select(stage, tmp_path / "stored")
    assert stored.digest == first.digest
    same = ["row", "kept", "stage", "reason"]
    assert stored.decisions.select(same).equals(first.decisions.select(same))


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_kept_does_not_depend_on_the_order_of_the_pool(name: str, world: World, tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [what_it_needs(name, tmp_path)]
    if name in ("ssp", "dbp"):
        settings = [{"members": members} for members in ("hard", "easy", "random")]
    if name == "ssp":
        settings += [{"members": "random", "scope": "cluster"}]
    moved = World(np.random.default_rng(1).permutation(200))
    for changes in settings:
        here, there = world.decide(preset(name, **changes)), moved.decide(preset(name, **changes))
        assert world.names(here) == moved.names(there), changes
        why = [
            {at.uids[d["row"]]: (d["reason"], d["value"]) for d in kept.decisions.to_pylist()}
            for at, kept in ((world, here), (moved, there))
        ]
        assert why[0] == why[1], changes


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_above_the_rows_at_hand_is_refused(name: str, world: World) -> None:
    with pytest.raises(BudgetError, match=r"cannot keep 201 rows \(budget.num_kept=201\): 1\d\d "):
        world.decide(preset(name, Budget(num_kept=201)))


@pytest.mark.parametrize("name", [n for n in METHODS if n != "uniform" and not n.startswith("metaclip")])
def test_rows_without_an_embedding_are_never_chosen_and_say_why(name: str, world: World) -> None:
    usable = world.rows.mask & world.clusters.is_clustered
    with_vector = int(usable.sum())
    settings = UNBOUND.get(name, {})
    kept = world.decide(preset(name, Budget(num_kept=with_vector), **settings))
    assert kept.rows.tolist() == np.flatnonzero(usable).tolist()
    lost = np.flatnonzero(world.rows.mask & ~usable).tolist()
    reasons = {row: kept.decision(row)["reason"] for row in lost}
    unknown = "no score" if name == "top_score" else "no embedding"
    assert reasons == {row: "cut" if row % 2 else unknown for row in lost}
    assert set(reasons.values()) == {"cut", unknown}
    with pytest.raises(BudgetError, match=f"cannot keep {with_vector + 1} rows: {with_vector} of"):
        world.decide(preset(name, Budget(num_kept=with_vector + 1), **settings))


# methods by hand

# Twelve rows in three clusters, four each; rows 0 to 3 are cluster 0, and so on.
DISTANCE = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.2, 0.1, 0.05])


def twelve(sizes: tuple[int, ...] = (4, 4, 4)) -> tuple[KeepList, Clusters, Pool]:
    """Orthogonal centroids, so that d_inter is 1 for every cluster."""
    n = sum(sizes)
    rows = everything("pool", np.ones(n, bool))
    cluster = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    centroids = np.eye(len(sizes), dtype=np.float32)
    clusters = Clusters(centroids, cluster, DISTANCE[:n].astype(np.float32))
    return rows, clusters, pool_of([str(i) for i in range(n)])


def chosen(stage: Any, sizes: tuple[int, ...] = (4, 4, 4)) -> list[int]:
    rows, clusters, pool = twelve(sizes)
    budget = stage.budget.resolve(rows.num_kept, rows.num_kept)
    return stage.choose(rows, budget, pool, clusters=clusters)[0].rows.tolist()


@pytest.mark.parametrize(
    ("members", "scope", "balance", "kept"),
    [
        # No floor: the six farthest, whatever their cluster.
        ("hard", "global", 0.0, [0, 1, 2, 3, 4, 5]),
        ("easy", "global", 0.0, [6, 7, 8, 9, 10, 11]),
        # Floor 0.5 * 6 / 3 = 1 of each cluster (0, 4, 8), then the three farthest of the rest.
        ("hard", "global", 0.5, [0, 1, 2, 3, 4, 8]),
        ("easy", "global", 0.5, [3, 7, 8, 9, 10, 11]),
        # Floor 2 of each cluster: nothing is left to choose overall.
        ("hard", "global", 1.0, [0, 1, 4, 5, 8, 9]),
        # One rate for every cluster: half.
        ("hard", "cluster", 0.0, [0, 1, 4, 5, 8, 9]),
        ("easy", "cluster", 0.0, [2, 3, 6, 7, 10, 11]),
    ],
)
def test_ssp_on_twelve_rows(members: str, scope: str, balance: float, kept: list[int]) -> None:
    assert chosen(Prototypes(Budget(num_kept=6), 0, members, scope, balance)) == kept


def test_the_floor_of_ssp_is_rounded_down() -> None:
    # 0.9 * 6 / 3 = 1.8, so one row of each cluster.
    assert chosen(Prototypes(Budget(num_kept=6), 0, "hard", "global", 0.9)) == [0, 1, 2, 3, 4, 8]


def test_ssp_takes_all_of_a_cluster_that_is_smaller_than_its_floor() -> None:
    # Floor 1.0 * 6 / 3 = 2: both of cluster 0's, two of cluster 1's, the one of cluster 2; then row 4.
    found = chosen(Prototypes(Budget(num_kept=6), 0, "hard", "global", 1.0), (2, 9, 1))
    assert found == [0, 1, 2, 3, 4, 11]


def test_ssp_by_cluster_rounds_to_the_budget() -> None:
    # Rates of 5 / 12: targets 0.83, 3.75 and 0.42, so 1, 4 and 0.
    found = chosen(Prototypes(Budget(num_kept=5), 0, "hard", "cluster", 0.0), (2, 9, 1))
    assert found == [0, 2, 3, 4, 5]


def test_random_members_of_ssp_keep_the_floor_of_each_cluster() -> None:
    found = chosen(Prototypes(Budget(num_kept=6), 3, "random", "global", 1.0))
    assert np.bincount(np.array(found) // 4).tolist() == [2, 2, 2]


def density(num_kept: int, members: str = "hard", **changes: Any) -> Density:
    settings = {"temperature": 0.1, "num_neighbours": 20, "complexity": "product"}
    settings |= {"min_per_cluster": 1, "members": members} | changes
    return Density(Budget(num_kept=num_kept), 0, **settings)


@pytest.mark.parametrize(("members", "kept"), [("hard", [0, 1, 2, 3, 6, 7]), ("easy", [0, 3, 4, 5, 10, 11])])
def test_dbp_takes_each_quota_from_its_end_of_the_cluster(members: str, kept: list[int]) -> None:
    # Equal complexities wish for 2 rows of each cluster. Cluster 0 has 1, the others share 5 as 3, 2.
    found = chosen(density(6, members, complexity="equal"), (1, 5, 6))
    assert found == kept


def test_random_members_of_dbp_keep_the_quotas() -> None:
    found = chosen(density(6, "random", complexity="equal"), (1, 5, 6))
    assert [sum(a <= row < b for row in found) for a, b in ((0, 1), (1, 6), (6, 12))] == [1, 3, 2]


def test_the_quotas_of_dbp_follow_the_paper_s_equations() -> None:
    rows, clusters, _ = twelve()
    table = density(6, temperature=0.5).cluster_table(clusters, rows.mask, 6)
    intra = np.array([0.75, 0.425, 0.1625])  # means of four distances each
    np.testing.assert_allclose(table["d_intra"], intra, rtol=1e-6)
    np.testing.assert_allclose(table["d_inter"], 1, rtol=1e-12)
    shares = np.exp(intra / 0.5)
    targets = 6 * shares / shares.sum()  # 3.40, 1.77, 0.83
    np.testing.assert_allclose(table["target"], targets, rtol=1e-5)
    assert table["quota"].tolist() == [3, 2, 1]


def test_a_sharp_temperature_fills_the_most_complex_cluster_after_one_row_of_each() -> None:
    assert chosen(density(6, temperature=1e-3)) == [0, 1, 2, 3, 4, 8]
    assert chosen(density(4, temperature=1e-3, min_per_cluster=0)) == [0, 1, 2, 3]


def test_a_flat_temperature_gives_equal_quotas() -> None:
    assert chosen(density(6, temperature=1e6)) == [0, 1, 4, 5, 8, 9]


def test_sizes_as_complexity_favour_large_clusters() -> None:
    rows, clusters, _ = twelve((1, 3, 8))
    by_size = density(6, complexity="size", temperature=0.1)
    assert by_size.cluster_table(clusters, rows.mask, 6)["quota"].tolist() == [1, 1, 4]


def test_one_cluster_keeps_its_hardest_members() -> None:
    assert chosen(density(5), (12,)) == [0, 1, 2, 3, 4]


def test_empty_clusters_get_no_quota_and_do_not_count_as_neighbours() -> None:
    rows, clusters, _ = twelve()
    near = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    assignment = np.repeat([0, 2, 3], 4).astype(np.int32)
    moved = Clusters(near, assignment, clusters.distance_to_centroid)
    table = density(6, temperature=0.5).cluster_table(moved, rows.mask, 6)
    plain = density(6, temperature=0.5).cluster_table(clusters, rows.mask, 6)
    assert table["quota"].tolist() == [3, 0, 2, 1]
    assert table["probability"][1] == 0
    assert np.isnan(table["d_inter"][1])
    np.testing.assert_allclose(table["d_inter"][[0, 2, 3]], plain["d_inter"])


def test_a_cluster_that_a_filter_emptied_is_as_one_that_never_had_members() -> None:
    _, clusters, _ = twelve()
    without_second = np.arange(12) // 4 != 1
    table = density(6, temperature=0.5).cluster_table(clusters, without_second, 6)
    fewer = Clusters(
        clusters.centroids[[0, 2]],
        np.repeat([0, 1], 4).astype(np.int32),
        clusters.distance_to_centroid[without_second],
    )
    alone = density(6, temperature=0.5).cluster_table(fewer, np.ones(8, bool), 6)
    for name, values in table.items():
        np.testing.assert_array_equal(values[[0, 2]], alone[name])
    assert (table["size"][1], table["quota"][1], table["probability"][1]) == (0, 0, 0)


def test_complexities_are_those_of_the_rows_that_are_left() -> None:
    _, clusters, _ = twelve()
    mask = np.array([1, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 1], bool)
    table = density(5).cluster_table(clusters, mask, 5)
    assert table["size"].tolist() == [2, 2, 3]
    expected = [DISTANCE[mask & (np.arange(12) // 4 == j)].mean() for j in range(3)]
    np.testing.assert_allclose(table["d_intra"], expected, rtol=1e-6)
    np.testing.assert_allclose(table["complexity"], table["d_intra"] * table["d_inter"])
    np.testing.assert_allclose(table["target"], 5 * table["probability"])
    assert table["quota"].sum() == 5


@pytest.mark.parametrize(
    ("balance", "min_per_cluster", "quotas"),
    [
        (0.0, 0, [6, 0, 0]),
        (0.0, 1, [4, 1, 1]),
        (0.5, 0, [4, 1, 1]),  # floor 0.5 * 6 / 3
        (0.9, 0, [4, 1, 1]),  # 1.8, rounded down
        (1.0, 0, [2, 2, 2]),
        (0.5, 2, [2, 2, 2]),  # the larger floor holds
    ],
)
def test_a_balance_is_a_floor_under_every_cluster_s_quota(
    balance: float, min_per_cluster: int, quotas: list[int]
) -> None:
    rows, clusters, _ = twelve((6, 3, 3))
    stage = density(6, temperature=1e-3, balance=balance, min_per_cluster=min_per_cluster)
    assert stage.cluster_table(clusters, rows.mask, 6)["quota"].tolist() == quotas


def test_a_cluster_smaller_than_the_floor_keeps_all_it_has() -> None:
    rows, clusters, _ = twelve((1, 5, 6))
    table = density(6, temperature=1e6, balance=1.0).cluster_table(clusters, rows.mask, 6)
    assert table["quota"].tolist() == [1, 3, 2]


def test_the_spread_of_the_shares_is_told_as_entropy() -> None:
    rows, clusters, pool = twelve()
    _, flat = density(6, complexity="equal").choose(rows, 6, pool, clusters=clusters)
    assert flat["entropy"] == pytest.approx(np.log(3), abs=1e-6)
    assert flat["effective clusters"] == 3
    _, sharp = density(6, temperature=1e-3).choose(rows, 6, pool, clusters=clusters)
    assert sharp["effective clusters"] == 1
    assert sharp["clusters at their size"] == 1
    rows, clusters, pool = twelve((2, 4, 6))
    for budget, full in ((3, 0), (6, 1), (12, 3)):
        _, counts = density(budget, complexity="equal").choose(rows, budget, pool, clusters=clusters)
        assert counts["clusters at their size"] == full


def test_fewer_rows_than_clusters_are_refused_with_the_way_out() -> None:
    with pytest.raises(BudgetError, match=r"cannot keep only 2 rows: the floors .* sum to 3 .*"):
        chosen(density(2))


def test_dbp_writes_its_cluster_table_beside_the_keep_list(world: World, tmp_path: Path) -> None:
    kept = world.select(preset("dbp"), tmp_path)
    table = pq.read_table(tmp_path / "clusters.parquet").to_pydict()
    chosen_of = [int((world.clusters.assignment[kept.rows] == j).sum()) for j in range(6)]
    assert table["quota"] == chosen_of
    assert sum(table["quota"]) == KEPT
    assert table["size"][4] == 0
    assert np.isnan(table["d_intra"][4])
    assert all(kept <= size for kept, size in zip(table["quota"], table["size"], strict=True))


def test_a_decision_of_dbp_gives_cluster_rank_distance_and_quota() -> None:
    rows, clusters, pool = twelve((1, 5, 6))
    kept, _ = density(6, complexity="equal").choose(rows, 6, pool, clusters=clusters)
    stays, goes = kept.decision(3), kept.decision(4)
    assert (stays["cluster"], stays["rank"], stays["quota"]) == (1, 2, 3)
    assert (goes["cluster"], goes["rank"], goes["quota"]) == (1, 3, 3)
    assert goes["reason"] == "beyond the cluster's quota"
    assert goes["value"] == pytest.approx(DISTANCE[4])


def test_a_smaller_uniform_budget_is_a_subset_of_a_larger_one(world: World) -> None:
    kept = [world.decide(Uniform(Budget(num_kept=n), 7)) for n in (1, 20, 21, 130)]
    for smaller, larger in itertools.pairwise(kept):
        assert set(smaller.rows) < set(larger.rows)


def test_a_row_drawn_uniformly_stays_drawn_when_other_rows_leave(world: World) -> None:
    first = world.decide(Uniform(Budget(num_kept=60), 7))
    without = np.setdiff1d(world.rows.rows, first.rows)[:30]
    world.rows = world.rows.narrow("filter", ~np.isin(world.rows.rows, without), "low", "high")
    again = world.decide(Uniform(Budget(num_kept=60), 7))
    assert first.rows.tolist() == again.rows.tolist()


def test_uniform_seeds_draw_apart_and_every_row_equally_often() -> None:
    n = 60
    rows, pool = everything("pool", np.ones(n, bool)), pool_of([str(i) for i in range(n)])
    times = np.zeros(n)
    for seed in range(200):
        kept, _ = Uniform(Budget(num_kept=20), seed).choose(rows, 20, pool)
        times[kept.rows] += 1
    # Each count is binomial, mean 66.7, deviation 6.7: five deviations either way.
    assert times.min() > 33
    assert times.max() < 100


def test_top_score_keeps_the_best_and_breaks_ties_by_uid() -> None:
    values = np.array([0.3, 0.1, 0.3, np.nan, 0.3, 0.9], np.float32)
    pool = pool_of(list("ghijkl"))
    tied = sorted([0, 2, 4], key=lambda row: hash_64("ghijkl"[row].encode()))
    assert tied[2] != 4, "the order by uid is not the order by row"
    rows = everything("pool", np.ones(6, bool))
    stage = TopScore(Budget(num_kept=3), 0)
    kept, counts = stage.choose(rows, 3, pool, scores=Scores(values))
    assert kept.rows.tolist() == sorted([5, *tied[:2]])
    assert counts["lowest kept score"] == 0.3
    assert kept.decision(tied[2])["reason"] == "worse score"
    assert kept.decision(3)["reason"] == "no score"


# settings out of range


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("dbp", {"temperature": 0.0}, "select.temperature=0.0: it must be above 0"),
        ("dbp", {"num_neighbours": 0}, "select.num_neighbours=0: it must be at least 1"),
        ("dbp", {"min_per_cluster": -1}, "select.min_per_cluster=-1: it must be at least 0"),
        ("dbp", {"members": "hardest"}, "select.members='hardest': Did you mean 'hard'?"),
        ("dbp", {"complexity": "produkt"}, "select.complexity='produkt': Did you mean 'product'?"),
        ("dbp", {"balance": 1.5}, "select.balance=1.5: it must be in [0, 1]"),
        ("ssp", {"balance": 1.5}, "select.balance=1.5: it must be in [0, 1]"),
        ("ssp", {"scope": "globl"}, "select.scope='globl': Did you mean 'global'?"),
    ],
)
def test_a_setting_out_of_range_is_named_in_full(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        preset(name, **changes)
    assert str(refusal.value) == said


# the budget


@pytest.mark.parametrize(
    ("budget", "num_of", "num_kept"),
    [
        (Budget(keep_fraction=0.29), 100, 29),  # 0.29 * 100 is 28.999999999999996 in binary
        (Budget(keep_fraction=0.3), 10, 3),
        (Budget(keep_fraction=0.7), 10, 7),
        (Budget(prune_ratio=0.7), 10, 3),  # (1 - 0.7) * 10 is 3.0000000000000004
        (Budget(prune_ratio=0.9), 10, 1),  # (1 - 0.9) * 10 is 0.9999999999999998
        (Budget(prune_ratio=0.71), 100, 29),
        (Budget(keep_fraction=0.333), 1_000, 333),
        (Budget(keep_fraction=0.3), 99, 29),
        (Budget(keep_fraction=1e-7), 30_000_000, 3),
        (Budget(keep_fraction=0.1), 12_800_000_007, 1_280_000_000),
        (Budget(keep_fraction=1.0), 17, 17),
        (Budget(prune_ratio=0.0), 17, 17),
        (Budget(num_kept=5), 17, 5),
    ],
)
def test_a_budget_is_the_floor_of_the_exact_decimal_product(budget: Budget, num_of: int, num_kept: int) -> None:
    assert budget.resolve(num_of, num_of) == num_kept


def test_a_ratio_pruned_and_the_fraction_kept_beside_it_agree() -> None:
    for percent in range(1, 100):
        kept = Budget(keep_fraction=percent / 100).resolve(12_345, 12_345)
        assert Budget(prune_ratio=(100 - percent) / 100).resolve(12_345, 12_345) == kept


@pytest.mark.parametrize(("of", "num_kept"), [("pool", 30), ("dedup", 24), ("filtered", 18)])
def test_a_fraction_refers_to_the_rows_that_the_budget_names(of: str, num_kept: int, tmp_path: Path) -> None:
    pool = everything("pool", np.ones(100, bool))
    dedup = pool.narrow("dedup", np.arange(100) < 80, "duplicate", "no earlier duplicate")
    filtered = dedup.narrow("filter", np.arange(80) < 60, "low", "high")
    base = {"pool": pool, "dedup": dedup, "filtered": filtered}[of]
    Uniform(Budget(keep_fraction=0.3, of=of), 0).run(
        Work(tmp_path, tmp_path, "key"), rows=filtered, base=base, pool=pool_of([str(i) for i in range(100)])
    )
    assert KeepList.load(tmp_path).num_kept == num_kept


def test_a_fraction_of_more_rows_than_are_left_is_refused_with_its_base() -> None:
    with pytest.raises(BudgetError) as refusal:
        Budget(keep_fraction=0.5, of="pool").resolve(1_000_000, 400_000)
    assert str(refusal.value).startswith(
        "cannot keep 500,000 rows (budget.keep_fraction=0.5 of 1,000,000 rows (budget.of=pool)): "
        "400,000 are left after dedup and filter."
    )


def test_a_budget_of_no_row_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"budget.keep_fraction=0.01 of 99 rows .* keeps no row"):
        Budget(keep_fraction=0.01).resolve(99, 99)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "given: none of them"),
        ({"prune_ratio": 0.7, "keep_fraction": 0.3}, "given: budget.prune_ratio=0.7 and budget.keep_fraction=0.3"),
        ({"keep_fraction": 1.7}, "keep_fraction=1.7: it must be above 0 and at most 1"),
        ({"keep_fraction": 0.0}, "keep_fraction=0.0: it must be above 0 and at most 1"),
        ({"prune_ratio": 1.0}, "prune_ratio=1.0: it must be at least 0 and below 1"),
        ({"prune_ratio": -0.1}, "prune_ratio=-0.1: it must be at least 0 and below 1"),
        ({"num_kept": 0}, "num_kept=0: it must be at least 1"),
        ({"keep_fraction": float("nan")}, "keep_fraction=nan"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BudgetError) as refusal:
        Budget(**given)
    assert said in str(refusal.value)
