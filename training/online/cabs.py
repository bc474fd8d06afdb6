"""Concept-aware batch sampling (CABS): batches that cover concepts, chosen by tags before an image is read.

CVPR 2026 (arXiv 2511.20643), with b rows to choose, n_c of them chosen so far that hold concept c, F_c candidates
that hold it, and t_c = b over the number of concepts among candidates, from 1 to `most_per_concept`, scaled down
where their sum exceeds b:

    diversity: add the row with the largest mean over its concepts of
                   (t_c - n_c) / t_c + 1 / F_c    while n_c < t_c
                   -1/2                           from then on;
               a row with a concept at n_c = most_per_concept is out; what is then missing is drawn at random
    frequency: the b rows with most concepts

Departures from the released code (bethgelab/cabs@222b2c2):
- One choice for the global batch, where theirs chooses on each GPU: n_c and its limit are of the whole batch.
  `released_ranks=4` chooses in four equal parts, with targets and F_c of all, as theirs does on four GPUs.
- The random fill draws from all rows that are left, so that a batch is never short; theirs leaves out rows that are
  out. With `released_ranks` these come behind the others.
- Draws are keyed by seed, step and uid. Gains are float64. Concepts of the smallest numbers share the remainder of
  b, in theirs the first by alphabet. Tags are read before images: what is not chosen is never decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from dbp.config import require
from dbp.engine.stage import Node, runtime
from dbp.errors import ConfigError
from dbp.metadata.base import EntrySource
from dbp.metadata.matching import Matching
from dbp.metadata.rules import Rule
from dbp.offers import Offers
from dbp.selection.concepts import Concepts
from training.feed.order import Slice
from training.feed.subset import Subset
from training.online.base import ByRow, Choose, luck
from training.online.diversity import diverse


@dataclass(frozen=True, kw_only=True)
class Cabs(ByRow):
    """Batches that balance concepts (diversity), or whose rows hold many (frequency).

    Args:
        form: `diversity` or `frequency`.
        concepts: `clusters` of the curation, texts of a `column`, or `entries` that captions hold.
        most_per_concept: Largest target of a concept, and how often it is chosen before rows that hold it are out.
        released_ranks: Choose in so many equal parts, as the released code on as many GPUs; null for one choice.
        separator: What stands between the concepts of a column's text; null for one concept each.
        column: For concepts=column, a name of `columns`.
        metadata: For concepts=entries, where they come from.
        rule: For concepts=entries, when a caption holds one.
    """

    form: Literal["diversity", "frequency"]
    concepts: Literal["clusters", "column", "entries"]
    most_per_concept: int
    released_ranks: int | None = None
    separator: str | None = None
    column: str = runtime("")
    metadata: EntrySource | None = runtime(None)
    rule: Rule = runtime("reference")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.most_per_concept >= 1, "most_per_concept", self.most_per_concept, "at least 1")
        ranks = self.released_ranks
        require(ranks is None or ranks >= 1, "released_ranks", ranks, "at least 1, or null for one choice")
        require(self.separator != "", "separator", self.separator, "not empty; null for one concept each")
        of_column = self.concepts == "column"
        require(not of_column or bool(self.column), "column", self.column, "a name of columns: it holds the tags")
        require(self.concepts != "entries" or self.metadata is not None, "metadata", None, "a source of entries")

    def unread(self) -> set[str]:
        """Fields that do not matter beside the others."""
        left = set() if self.concepts == "column" else {"separator"}
        return left | ({"most_per_concept"} if self.form == "frequency" else set())

    def check(self, batch_size: int) -> None:
        super().check(batch_size)
        if self.released_ranks is not None and batch_size % self.released_ranks:
            raise ConfigError(
                f"online.released_ranks={self.released_ranks} does not divide train.batch_size={batch_size:,}. "
                "Give a divisor, or null for one choice of the whole batch."
            )

    def inputs(self, offers: Offers) -> dict[str, Node]:
        if self.concepts == "entries":
            assert self.metadata is not None
            over = offers.beside(rows=offers["valid"])
            return {"matches": over.beside(entries=over.bind(self.metadata)).bind(Matching(self.rule))}
        name = {"clusters": "clusters", "column": f"columns.{self.column}"}[self.concepts]
        found = offers[name]
        assert found is not None
        return {"clusters" if self.concepts == "clusters" else "columns": found}

    def chooser(
        self, subset: Subset, seed: int, batch_size: int, beside: Mapping[str, Any]
    ) -> tuple[Choose, dict[str, Any]]:
        inputs = [beside.get(name) for name in ("clusters", "columns", "matches")]
        held = Concepts(*inputs, slot="online", separator=self.separator)
        without = int(np.count_nonzero(~held.has_any(subset.pool.num_rows)[subset.rows]))
        if without == len(subset):
            raise ConfigError(
                f"online.concepts={self.concepts}: none of {without:,} kept samples has a concept. Name tags that "
                "the kept samples have (online.concepts, online.column, online.metadata)."
            )
        keys, parts = subset.keys, self.released_ranks or 1

        def choose(offered: Slice) -> Int64[np.ndarray, " b"]:
            ends, concepts = held.of(subset.rows[offered.indices])
            if self.form == "frequency":
                many = (-np.diff(ends)).reshape(parts, -1)
                order = np.argsort(many, axis=1, kind="stable")[:, : batch_size // parts]
                return np.sort((order + np.arange(parts)[:, None] * many.shape[1]).ravel())
            return diverse(ends, concepts, luck(seed, offered, keys), batch_size, self.most_per_concept, parts)

        return choose, {"without_concepts": without}
