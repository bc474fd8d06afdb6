"""The contract for extensions: what components of other people may ask of a curation, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from dbp.config import compose
from dbp.curate import recipe
from dbp.data.clusters import Clusters
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.stage import Node, Stage
from dbp.engine.store import Entry, Store
from dbp.engine.work import Work
from dbp.errors import ConfigError
from dbp.lineage import score_name
from dbp.narrowing import Narrowing
from dbp.settings import read
from dbp.verbs.command_line import overrides
from evaluation.report.page.roster import from_keys
from evaluation.report.paper.runs import _steps

SMALL = (
    "pool=rehearsal", "encoder=rehearsal", "pool.rows=600", "pool.rows_per_file=300", "pool.width=16",
    "pool.concepts=10", "dedup=none", "cluster.num_iterations=2", "cluster.num_clusters=6",
    "cluster.points_per_centroid=50",
)  # fmt: skip


@dataclass(frozen=True)
class Evens(Narrowing):
    """A selection without a budget: rows of even number."""

    name: ClassVar[str] = "select"
    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def decide(self, rows: KeepList) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        mask = rows.mask & (np.arange(rows.num_pool_rows) % 2 == 0)
        return rows.within("select", mask, "an odd row", "an even row"), {}


@dataclass(frozen=True)
class BothSides(Narrowing):
    """A filter that reads the vectors of pictures and of captions, and the clusters of the pool."""

    name: ClassVar[str] = "filter"
    needs: ClassVar[tuple[str, ...]] = ("rows", "image", "text", "clusters")

    def decide(  # type: ignore[override]
        self, rows: KeepList, image: Embeddings, text: Embeddings, clusters: Clusters
    ) -> tuple[KeepList, dict[str, Any]]:
        assert image.width == text.width == 16
        assert clusters.num_clusters == 6
        mask = rows.mask & (clusters.assignment != 0)
        return rows.within("filter", mask, "in cluster 0", "not in cluster 0"), {}


@dataclass(frozen=True)
class OwnVectors(Evens):
    """A selection that reads the vectors of the clusters' encoder."""

    needs: ClassVar[tuple[str, ...]] = ("rows", "image", "filtered", "deduped", "valid")

    def decide(  # type: ignore[override]
        self, rows: KeepList, image: Embeddings, **others: KeepList
    ) -> tuple[KeepList, dict[str, Any]]:
        assert set(others) == {"filtered", "deduped", "valid"}
        return super().decide(rows)


@dataclass(frozen=True)
class Dreams(Evens):
    """A selection that asks for what nobody has."""

    needs: ClassVar[tuple[str, ...]] = ("rows", "centrods")


@dataclass(frozen=True)
class RowNumber(Stage):
    """A score of which less is better: the number of the row."""

    name: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = Scores

    def run(self, work: Work, pool: Pool) -> dict[str, Any]:
        Scores(np.arange(pool.num_rows, dtype=np.float32), label="row number", higher_is_better=False).save(
            work.folder
        )
        return {"rows": pool.num_rows}


@dataclass(frozen=True)
class Mix(Stage):
    """A score that is made of two others."""

    name: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("scores", "scores.number")
    makes: ClassVar[type] = Scores

    def run(self, work: Work, **scores: Scores) -> dict[str, Any]:
        one, other = scores["scores"], scores["scores.number"]
        Scores(one.values + other.values, label="mix").save(work.folder)
        return {"rows": len(one.values)}


def graph(*settings: str) -> dict[str, Node]:
    return recipe(read(compose("curate", overrides([*SMALL, *settings]))))


def own(slot: str, name: str) -> str:
    return f"{slot}._target_=test_offers.{name}"


def names(node: Node) -> set[str]:
    return {upstream.stage.name for upstream in node.lineage()}


def test_a_selection_without_a_budget_is_asked_for_none(tmp_path: Path) -> None:
    nodes = graph("select=none", own("select", "Evens"))
    assert names(nodes["select"]) == {"index", "valid", "dedup", "filter", "select"}
    kept = Store(tmp_path / "store").get(nodes["select"])
    assert kept.rows.tolist() == list(range(0, 600, 2))


def test_a_filter_may_read_both_sides_and_the_clusters_of_the_pool(tmp_path: Path) -> None:
    nodes = graph("select=none", own("filter", "BothSides"), "cluster.on=pool")
    store = Store(tmp_path / "store")
    kept = store.get(nodes["select"])
    assert (store.get(nodes["cluster"]).assignment[kept.rows] != 0).all()
    assert 0 < kept.num_kept < 600


def test_a_filter_cannot_read_clusters_of_its_own_rows() -> None:
    with pytest.raises(ConfigError) as refused:
        graph("select=none", own("filter", "BothSides"), "cluster.on=filtered")
    assert "filter" in str(refused.value)
    assert "'clusters'" in str(refused.value)


def test_a_selection_may_read_vectors_and_the_rows_of_every_stage_before(tmp_path: Path) -> None:
    nodes = graph("select=none", own("select", "OwnVectors"))
    assert Store(tmp_path / "store").get(nodes["select"]).num_kept == 300


def test_what_is_not_offered_is_refused_with_what_is() -> None:
    with pytest.raises(ConfigError) as refused:
        graph("select=none", own("select", "Dreams"))
    said = str(refused.value)
    assert "select" in said
    assert "'centrods'" in said
    assert "rows" in said or "clusters" in said


def test_what_parameters_do_not_read_is_not_built() -> None:
    budget = "budget.keep_fraction=0.3"
    both = ("dedup=semdedup", "dedup.num_clusters=4")
    image = graph("select=uniform", *both, "dedup.modality=image", budget)["dedup"]
    joint = graph("select=uniform", *both, "dedup.modality=joint", budget)["dedup"]
    scored = graph("select=uniform", *both, "dedup.keep=score", budget)["dedup"]
    sides = [
        {node.stage.side for node in graph_of.lineage() if node.stage.name == "embed"}  # type: ignore[attr-defined]
        for graph_of in (image, joint, scored)
    ]
    assert sides == [{"image"}, {"image", "text"}, {"image", "text"}]
    assert "score" not in names(joint)
    assert "score" in names(scored)


NUMBER = "+scores.number._target_=test_offers.RowNumber"


def test_filter_and_selection_each_read_the_score_that_they_name(tmp_path: Path) -> None:
    top = ("select=top_score", "select.score=number", "budget.num_kept=100")
    nodes = graph(NUMBER, "filter=top_fraction", "filter.fraction=0.5", *top)
    store = Store(tmp_path / "store")
    kept, clip = store.get(nodes["select"]), store.get(nodes["score"]).values
    half = np.sort(np.argsort(-clip, kind="stable")[:300])
    assert kept.rows.tolist() == half[:100].tolist(), "of the better half by CLIP score, the lowest row numbers"
    reasons = set(kept.decisions["reason"].to_pylist())
    assert reasons == {"CLIP score below the limit", "worse row number", "best row number"}
    alone = store.get(graph(NUMBER, *top)["select"])
    assert alone.rows.tolist() == list(range(100))


def test_a_score_keeps_its_name_and_direction_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    nodes = graph(NUMBER, "select=uniform", "budget.num_kept=10")
    store.get(nodes["scores.number"])
    store.loaded.clear()
    found = store.get(nodes["scores.number"])
    assert (found.label, found.higher_is_better) == ("row number", False)
    assert found.goodness.tolist() == (-found.values).tolist()


def test_a_maximum_keeps_what_is_at_most_as_high(tmp_path: Path) -> None:
    bounds = ("filter=threshold", "filter.minimum=null", "filter.maximum=41.0", "filter.score=number")
    kept = Store(tmp_path / "store").get(graph(NUMBER, *bounds, "select=none")["select"])
    assert kept.rows.tolist() == list(range(42))
    assert kept.decision(42)["reason"] == "row number above the limit"


def test_filters_of_one_chain_read_several_scores(tmp_path: Path) -> None:
    kind = "dbp.filtering.threshold"
    steps = (
        f"{{_target_: {kind}.TopFraction, fraction: 0.5}}",
        f"{{_target_: {kind}.Threshold, minimum: null, maximum: 299.0, score: number}}",
    )
    chain = ("filter._target_=dbp.filtering.combine.All", f"+filter.filters=[{', '.join(steps)}]")
    nodes = graph(NUMBER, *chain, "select=none")
    store = Store(tmp_path / "store")
    kept, clip = store.get(nodes["select"]), store.get(nodes["score"]).values
    best = set(np.argsort(-clip, kind="stable")[:300].tolist())
    assert set(kept.rows.tolist()) == best & set(range(300))


def test_chains_whose_steps_read_each_other_s_scores_have_keys_of_their_own(tmp_path: Path) -> None:
    kind = "dbp.filtering.threshold"
    store, keys = Store(tmp_path / "store"), set()
    for first, second in (("number", "other"), ("other", "number"), ("number", ""), ("", "number")):
        steps = (
            f"{{_target_: {kind}.TopFraction, fraction: 0.5, score: '{first}'}}",
            f"{{_target_: {kind}.TopFraction, fraction: 0.2, score: '{second}'}}",
        )
        chain = ("filter._target_=dbp.filtering.combine.All", f"+filter.filters=[{', '.join(steps)}]")
        other = "+scores.other._target_=test_offers.Mix"
        node = graph(NUMBER, other, *chain, "select=none")["select"]
        store.get(node)
        keys.add(store.key(node))
    assert len(keys) == 4


def test_a_score_may_be_made_of_those_before_it_and_of_none_after(tmp_path: Path) -> None:
    mix = "+scores.mix._target_=test_offers.Mix"
    nodes = graph(NUMBER, mix, "select=top_score", "select.score=mix", "budget.num_kept=5")
    store = Store(tmp_path / "store")
    assert store.get(nodes["select"]).rows.tolist() == [595, 596, 597, 598, 599]
    with pytest.raises(ConfigError) as refused:
        graph(mix, NUMBER, "select=top_score", "budget.num_kept=5")
    assert "scores.mix" in str(refused.value)


def test_a_score_of_no_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        graph(NUMBER, "select=top_score", "select.score=numbr", "budget.num_kept=5")
    said = str(refused.value)
    assert "select.score='numbr'" in said
    assert "'number'" in said


def test_the_name_of_a_score_is_not_part_of_a_key(tmp_path: Path) -> None:
    """The score itself is: an equal score under another name gives an equal keep list."""
    top = ("select=top_score", "budget.num_kept=5")
    store = Store(tmp_path / "store")

    def key(name: str, *read: str) -> str | None:
        node = graph(f"+scores.{name}._target_=test_offers.RowNumber", *top, *read)["select"]
        store.get(node)
        return store.key(node)

    by_number, by_position = key("number", "select.score=number"), key("position", "select.score=position")
    assert by_number == by_position != key("number")


@pytest.mark.parametrize(("slot", "name"), [("filter", "RowNumber"), ("select", "RowNumber"), ("score", "Evens")])
def test_a_component_that_does_not_make_what_its_slot_holds_is_refused(slot: str, name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        graph("select=none", f"~{slot}", f"+{slot}._target_=test_offers.{name}")
    assert f"{slot}._target_='{name}'" in str(refused.value)


COLUMNS = ("+score@scores.wide=datacomp_l14", "scores.wide.column=width", "+score@scores.high=datacomp_l14",
           "scores.high.column=height")  # fmt: skip


def entry_of(store: Store, *settings: str) -> Entry:
    node = graph(*COLUMNS, "budget.num_kept=50", *settings)["select"]
    store.get(node)
    return store.find(str(store.key(node)))


def test_arms_that_read_other_scores_are_other_arms_of_a_report(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    half = ("filter=top_fraction", "filter.fraction=0.5")
    named = [
        entry_of(store, "select=top_score", *half, "filter.score=wide"),
        entry_of(store, "select=top_score", *half, "filter.score=high"),
        entry_of(store, "select=top_score", "select.score=wide"),
        entry_of(store, "select=top_score"),
    ]
    roster = from_keys({entry.key: entry for entry in store.entries()}, named)
    assert [len(arm.runs) for arm in roster.arms] == [1, 1, 1, 1]
    assert [arm.method.split()[:2] for arm in roster.arms] == [["clip", "score"]] * 2 + [
        ["top", "width"],
        ["clip", "score"],
    ]


def test_a_paper_s_clip_score_is_no_other_score(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wide = entry_of(store, "select=top_score", "select.score=wide")
    clip = entry_of(store, "select=top_score")
    steps = []
    for entry in (wide, clip):
        scorers = {"scores": score_name(store.find(entry.manifest["inputs"]["scores"]["key"]))}
        steps.append(_steps(entry.manifest["made_by"], scorers))
    assert steps == [("width",), ("clip_score",)]
