"""FairDeDup's choice of the survivor: of near duplicates stays the one nearest the least represented concept.

Clusters are taken by number, and the rows of a cluster in the order of a keyed hash of their uids. The next row
that is neither kept nor removed opens a group: itself, and the rows like it of which the same holds. Least
represented is the concept with the lowest mean cosine to the images kept so far, in all clusters; the first of
equals. The member with the highest cosine to that concept stays, the others go.

Slyman et al. 2024 (arXiv 2404.16123) published this as pseudocode, and no code; it is written here as remembered.
Departures: the order is by hash, not by place in a file, so that it does not depend on how the pool is stored; a
row that was removed cannot be chosen by a later group that it is like, too; the means run over all clusters.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, UInt64

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.dedup.prototypes import UNITS, CompareWithPrototypes, Concepts, EncodePrototypes, PrototypeCosines
from dbp.dedup.semdedup import KEPT, SemDeDup, removed
from dbp.dedup.similar import SimilarRows
from dbp.encoders.base import Encoder
from dbp.engine.stage import Node, Offered, runtime
from dbp.exact.order import keyed_hash

ROWS = 65_536  # of a block, unless one cluster has more: 26 MB of cosines to 100 concepts


@dataclass(frozen=True)
class FairDeDup(SemDeDup):
    """Of each group of near duplicates keep the row nearest the least represented concept.

    The groups and their order are those of this file, whatever `keep` says; `seed` is of the order, too.

    Args:
        rule: `greedy`: pairs above the floor are stored.
        concepts: Names, a text file with one a line, or a `.npy` of one vector a concept.
        templates: Captions of a concept, {c} in its place; the prototype is their mean.
        encoder: What encodes the captions: that of the images.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows", "similar", "pool", "cosines")

    # Runtime here: what they say enters the key of the prototypes.
    concepts: Concepts | None = runtime(None)
    templates: tuple[str, ...] = runtime(())
    encoder: Encoder | None = runtime(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rule == "greedy", "rule", self.rule, "greedy, so that all pairs are stored")
        must = "image, joint, both or either: concepts are compared with images"
        require(self.modality != "text", "modality", self.modality, must)
        self.prototypes()

    def unread(self) -> set[str]:
        return super().unread() | {"keep"}

    def upstream(self, offers: Offered) -> dict[str, Node]:
        with_prototypes = offers.beside(prototypes=offers.bind(self.prototypes()))
        return {**super().upstream(offers), "cosines": with_prototypes.bind(CompareWithPrototypes(self.device))}

    def prototypes(self) -> EncodePrototypes:
        """What encodes the concepts."""
        require(self.encoder is not None, "encoder", None, "that of the images, ${encoder.dedup}")
        assert self.encoder is not None
        return EncodePrototypes(self.encoder, self.templates, self.concepts)

    def decide(  # type: ignore[override]
        self, rows: KeepList, similar: SimilarRows, pool: Pool, cosines: PrototypeCosines
    ) -> tuple[KeepList, dict[str, Any]]:
        assert self.epsilon is not None, "the greedy rule has an epsilon"
        kept, means = remove_fairly(rows, similar, cosines, pool.uid_hashes, self.epsilon, self.seed)
        return kept, {**removed(kept), "mean cosine before and after": means}


def remove_fairly(
    rows: KeepList,
    similar: SimilarRows,
    cosines: PrototypeCosines,
    uid_hashes: UInt64[np.ndarray, " n"],
    epsilon: float,
    seed: int,
) -> tuple[KeepList, dict[str, list[float]]]:
    """Keep one row of each group.

    Args:
        similar: With the pairs above a floor of at most 1 - epsilon.
        seed: Of the order within a cluster.

    Returns:
        The keep list: of a removed row the reason names the concept, `related_row` is the row that stays, and
        `value` the similarity to the row that opened the group (of that row to the one that stays). And the mean
        cosine of all images and of kept ones to each concept.
    """
    from dbp.exact.kernels import keep_fairly

    pairs = similar.pairs
    assert pairs is not None, "the comparison stored pairs"
    over = np.flatnonzero(pairs.similarity > np.float32(1 - epsilon))
    later, earlier, alike = pairs.later[over], pairs.earlier[over], pairs.similarity[over]
    order = _order(similar, uid_hashes, seed)
    cluster = similar.cluster[order]
    at_pairs = np.searchsorted(similar.cluster[later], np.arange(cluster[-1] + 2 if len(cluster) else 1))
    n, num = rows.num_pool_rows, len(cosines.names)
    keep, concept = np.zeros(n, bool), np.zeros(n, np.uint8)
    value, twin = np.full(n, np.nan, np.float32), np.full(n, -1, np.int64)
    whole, sums = np.zeros(num, np.int64), np.zeros(num, np.int64)
    for start, stop in _blocks(cluster):
        own = order[start:stop]
        span = slice(at_pairs[cluster[start]], at_pairs[cluster[stop - 1] + 1])
        ends, others, by_pair = _neighbours(own, later[span], earlier[span], alike[span])
        near = np.asarray(cosines.cosines[own])
        whole += near.sum(axis=0, dtype=np.int64)
        kept, at, less, like = (np.empty(len(own), kind) for kind in (bool, np.int64, np.uint8, np.float32))
        keep_fairly(ends, others, by_pair, near, sums, kept, at, less, like)
        keep[own], concept[own], value[own] = kept, less, like
        twin[own] = np.where(kept, -1, own[at])
    codes, texts = similar.missing.codes_over(n, "no embedding")
    codes[similar.has_vector] = len(texts) + concept[similar.has_vector]
    left = rows.within(
        "dedup",
        keep,
        (codes, [*texts, *(f"duplicate, less like {name!r}" for name in cosines.names)]),
        KEPT,
        value=value,
        limit=lambda: np.full(n, 1 - epsilon),
        related_row=twin,
        cluster=similar.cluster,
    )
    means = [part / max(count, 1) / UNITS for part, count in ((whole, len(order)), (sums, int(keep.sum())))]
    told = {name: [round(float(mean[at]), 6) for mean in means] for at, name in enumerate(cosines.names)}
    return left, told


def _order(similar: SimilarRows, uid_hashes: np.ndarray, seed: int) -> Int[np.ndarray, " m"]:
    """The rows with vectors, by cluster and then by keyed hash."""
    rows = np.flatnonzero(similar.has_vector)
    return rows[np.lexsort((rows, keyed_hash(uid_hashes[rows], seed), similar.cluster[rows]))]


def _blocks(cluster: np.ndarray) -> list[tuple[int, int]]:
    """Where runs of whole clusters begin and end, of at most `ROWS` rows unless one has more."""
    ends = [*(np.flatnonzero(np.diff(cluster)) + 1).tolist(), len(cluster)] if len(cluster) else []
    found, start, before = [], 0, 0
    for end in ends:
        if end - start > ROWS and before > start:
            found.append((start, before))
            start = before
        before = end
    return [*found, (start, len(cluster))] if len(cluster) else []


def _neighbours(
    own: np.ndarray, later: np.ndarray, earlier: np.ndarray, alike: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place in `own` where its neighbours end, their places, and how alike they are."""
    by_row = np.argsort(own, kind="stable")
    a, b = (by_row[np.searchsorted(own, side, sorter=by_row)] for side in (later, earlier))
    one, other = np.concatenate([a, b]), np.concatenate([b, a])
    by = np.argsort(one, kind="stable")
    ends = np.cumsum(np.bincount(one, minlength=len(own)))
    return ends, other[by], np.concatenate([alike, alike])[by]
