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
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.errors import ConfigError
from dbp.narrowing import Narrowing
from dbp.settings import read
from dbp.verbs.command_line import overrides

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
