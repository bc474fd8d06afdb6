"""TL;DR's selection: an equal share of each cluster of codes, among the better half by score."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dbp.config import build, compose
from dbp.curate import recipe
from dbp.data.clusters import Clusters
from dbp.data.columns import Columns
from dbp.data.keep_list import KeepList, everything
from dbp.data.pool import Pool, hash_64
from dbp.data.scores import Scores
from dbp.engine.stage import parameters
from dbp.errors import BudgetError, ConfigError
from dbp.selection.budget import Budget
from dbp.selection.codebook import Tldr
from dbp.settings import read
from dbp.verbs.command_line import overrides
from training.train import node_of

RNG = np.random.default_rng(0)


def tldr(**changed: Any) -> Tldr:
    given: dict[str, Any] = {
        "budget": Budget(num_kept=6), "seed": 0, "vectors": "histogram", "num_clusters": 3,
        "num_iterations": 5, "points_per_centroid": 256, "cluster_seed": 0, "on": "dedup",
        "members": "random", "matching_fraction": 1.0,
    }  # fmt: skip
    return Tldr(**{**given, **changed})


def pool_of(n: int) -> Pool:
    hashes = pa.array([hash_64(str(row).encode()) for row in range(n)], pa.uint64())
    return Pool(Columns(pa.table({"uid_hash": hashes})), [], "0" * 64, "txt", 10**6)


def clusters_of(assignment: list[int], distance: list[float] | None = None) -> Clusters:
    cluster = np.array(assignment, np.int32)
    far = np.array(distance or RNG.random(len(cluster)), np.float32)
    far[cluster < 0] = np.nan
    k = int(cluster.max()) + 1
    return Clusters(np.eye(k, 8, dtype=np.float32), cluster, far)


def chosen(
    stage: Tldr, rows: KeepList, clusters: Clusters, scores: Scores | None, budget: int
) -> tuple[KeepList, dict[str, Any]]:
    more = {} if scores is None else {"scores": scores}
    return stage.choose(rows, budget, pool_of(rows.num_pool_rows), clusters=clusters, **more)


def all_rows(n: int) -> KeepList:
    return everything("0" * 64, np.ones(n, bool))


def test_each_cluster_keeps_an_equal_share() -> None:
    clusters = clusters_of([0] * 30 + [1] * 60 + [2] * 10)
    kept, counts = chosen(tldr(), all_rows(100), clusters, None, 30)
    assert clusters.sizes_of(kept.mask).tolist() == [9, 18, 3]
    assert counts == {"matching": 100, "clusters": 3, "fraction of each cluster": 0.3}


@pytest.mark.parametrize("budget", [0, 1, 7, 50, 96, 97])
def test_the_budget_is_kept_exactly_and_no_share_is_off_by_a_row(budget: int) -> None:
    cluster = RNG.integers(0, 9, 97)
    clusters = clusters_of(cluster.tolist())
    kept, _ = chosen(tldr(), all_rows(97), clusters, None, budget)
    assert kept.num_kept == budget
    share = clusters.sizes * budget / 97
    assert (np.abs(clusters.sizes_of(kept.mask) - share) < 1).all()


def test_members_are_by_chance_nearest_or_farthest() -> None:
    distance = [0.1, 0.5, 0.3, 0.9, 0.2, 0.4, 0.6, 0.8]
    clusters = clusters_of([0, 0, 0, 0, 1, 1, 1, 1], distance)

    def rows(members: str, seed: int = 0) -> list[int]:
        stage = tldr(members=members, seed=seed)
        return chosen(stage, all_rows(8), clusters, None, 4)[0].rows.tolist()

    assert rows("easy") == [0, 2, 4, 5]
    assert rows("hard") == [1, 3, 6, 7]
    assert rows("random") == rows("random")
    assert len({tuple(rows("random", seed)) for seed in range(20)}) > 5


def test_clusters_are_filled_from_the_better_half_alone() -> None:
    # In each cluster the odd rows are the better ones; nine of the ten best lie in cluster 1.
    scores = Scores(np.array([0.1, 0.9] * 10, np.float32))
    clusters = clusters_of([0, 0] + [1] * 18)
    kept, counts = chosen(tldr(matching_fraction=0.5), all_rows(20), clusters, scores, 5)
    assert counts["matching"] == 10
    assert (kept.rows % 2 == 1).all()
    assert clusters.sizes_of(kept.mask).sum() == 5
    assert kept.counts() == {
        "matching: worse matching score": 10,
        "select: within the share": 5,
        "select: beyond the cluster's share": 5,
    }


def test_rows_without_a_score_or_a_cluster_go_with_that_reason() -> None:
    values = np.array([0.5, np.nan, 0.4, 0.3, 0.2, 0.1], np.float32)
    clusters = clusters_of([0, 0, -1, 0, 0, 0])
    kept, _ = chosen(tldr(matching_fraction=0.8), all_rows(6), clusters, Scores(values), 3)
    reasons = kept.decisions.to_pylist()
    assert kept.rows.tolist() == [0, 3, 4]
    assert [reasons[row]["reason"] for row in (1, 2, 5)] == [
        "no score", "no embedding", "worse matching score",
    ]  # fmt: skip


def test_a_half_smaller_than_the_budget_is_refused_with_a_way_out() -> None:
    scores = Scores(np.linspace(0, 1, 10, dtype=np.float32))
    message = r"cannot keep 6 rows: select\.matching_fraction=0\.5 leaves 5 of the 10 rows at hand\. Raise"
    with pytest.raises(BudgetError, match=message):
        chosen(tldr(matching_fraction=0.5), all_rows(10), clusters_of([0] * 10), scores, 6)
    exact = tldr(matching_fraction=0.29)  # 0.29 * 100 is 28.999… in binary
    many = Scores(np.linspace(0, 1, 100, dtype=np.float32))
    assert chosen(exact, all_rows(100), clusters_of([0] * 100), many, 29)[0].num_kept == 29


def test_more_rows_than_are_clustered_cannot_be_kept() -> None:
    with pytest.raises(BudgetError, match=r"cannot keep 3 rows: 2 of the 4 rows at hand are in a"):
        chosen(tldr(), all_rows(4), clusters_of([0, 0, -1, -1]), None, 3)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    message = rf"matching_fraction={share}: it must be above 0 and at most 1"
    with pytest.raises(ConfigError, match=message):
        tldr(matching_fraction=share)


def test_the_seed_matters_where_something_is_drawn() -> None:
    assert "seed" in parameters(tldr())
    assert parameters(tldr(members="easy")) == parameters(tldr(members="easy", seed=1))
    assert parameters(tldr(vectors="mean")) != parameters(tldr())


# the recipe

GLYPHS = ["pool=glyphs", "budget.keep_fraction=0.2", "experiment=none"]


def nodes_of(*choices: str) -> dict[str, Any]:
    return recipe(read(compose("curate", overrides([*GLYPHS, *choices]))))


def test_select_tldr_rests_on_clusters_of_codes_and_not_on_the_coarse_ones() -> None:
    nodes = nodes_of("select=tldr", "captioner=smoke", "select.vectors=mean")
    names = [node.stage.name for node in nodes["select"].lineage()]
    order = ["captioner", "codes", "codevectors", "centroids", "cluster", "select"]
    assert [name for name in names if name in order][-6:] == order
    assert nodes["select"].inputs["clusters"] is not nodes["cluster"]
    assert "score" in names
    without = nodes_of("select=tldr", "captioner=smoke", "select.matching_fraction=1")
    assert "score" not in [node.stage.name for node in without["select"].lineage()]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("select=tldr", r"select=tldr clusters codes, and captioner=none makes none\. Say captioner="),
        ("caption=refined", r"caption=refined writes captions, and captioner=none makes none"),
    ],
)
def test_what_needs_a_captioner_says_so(choice: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        nodes_of(choice)


def trained(*choices: str) -> Any:
    config = compose("train", overrides([*GLYPHS, "model=glyphs", "train=glyphs", *choices]))
    return node_of(config, recipe(read(config)))


def test_a_run_reads_what_the_captioner_wrote_and_others_are_as_before() -> None:
    plain, with_captioner = trained("select=uniform"), trained("select=uniform", "captioner=smoke")
    assert set(plain.inputs) == set(with_captioner.inputs) == {"pool", "keep"}
    assert parameters(plain.stage) == parameters(with_captioner.stage)
    refined = trained("select=uniform", "captioner=smoke", "caption=refined")
    assert refined.inputs["refined"].inputs["rows"] is refined.inputs["keep"]
    hot = trained("select=uniform", "captioner=smoke", "caption=refined", "caption.refine.temperature=1")
    assert parameters(hot.stage) == parameters(refined.stage)
    assert parameters(hot.inputs["refined"].stage) != parameters(refined.inputs["refined"].stage)


@pytest.mark.parametrize(
    ("option", "rule"),
    [("refined", "concatenate"), ("refined_alternate", "alternate"), ("refined_replace", "replace")],
)
def test_the_mixing_rules_of_refined_captions(option: str, rule: str, tmp_path: Path) -> None:
    from dbp.data.captions import write_captions
    from training.feed.captions import CaptionMix
    from training.resume.ranks import Ranks

    config = compose("train", overrides([f"caption={option}", "pool.shards=x.tar", "captioner=smoke"]))
    mix: CaptionMix = build(config.caption, path="caption")
    assert mix.rule == rule
    table = pa.table({"uid": ["a", "b"], "text": ["an A", "a B"]})
    pool = Pool(Columns(table), [], "0" * 64, "txt", 10**6)
    made = write_captions(tmp_path, pool.digest, ["letter a", None])
    mixed = mix.open(pool, tmp_path, 0, Ranks(), made)
    rows, keys = np.array([0, 1] * 50), np.arange(100, dtype=np.uint64)
    found = mixed.captions(rows, np.zeros(100, np.int64), keys)
    assert set(found[1::2]) == {"a B"}
    expected = {"concatenate": {"an A; letter a"}, "alternate": {"an A", "letter a"}, "replace": {"letter a"}}
    assert set(found[::2]) == expected[rule]
    with pytest.raises(ConfigError, match=f"caption.rule={rule} takes captions of a captioner"):
        mix.open(pool, tmp_path, 0, Ranks())
    with pytest.raises(ConfigError, match="file='f': it must be null where the captioner writes"):
        replace(mix, file="f")
