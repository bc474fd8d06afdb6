"""The contract for extensions: what a curation offers to its components by name.

| name | what it is | made by |
|---|---|---|
| `pool` | the pool with its index | `pool=` |
| `valid` | rows with a caption and a picture of sound header | the pool |
| `rows` | rows at hand: valid ones for score and dedup, else those that the stage before left | the recipe |
| `deduped`, `filtered` | rows that dedup left, that the filter left | `dedup=`, `filter=` |
| `base` | rows that the budget is a share of (selection alone) | `budget.of` |
| `image`, `text` | vectors of a side, by the encoder of the slot (*) | `encoder.*` |
| `scores` | a score of each row | `score=` |
| `scores.NAME` | further scores; each may read those before it | `scores: {NAME: …}` |
| `columns.NAME` | a column: numbers or texts of each row | `columns: {NAME: json:FIELD}` |
| `clusters` | a clustering; for a filter where `cluster.on` is not `filtered` | `cluster=` |
| `captioner`, `codes` | a captioner, and its codes of each picture | `captioner=` |

(*) A filter takes encoder.score, a selection encoder.cluster.

A component names what it needs in `needs`. What its parameters do not read of that it says in `unneeded`, and
what it makes for itself (a fine clustering, matches of entries) in `upstream`; no other file has to know. What is
not needed is never built; what is not offered is refused before any work.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dbp.engine.stage import Node, Stage
from dbp.errors import ConfigError, nearest

Made = Node | Callable[[], Node] | None  # none for what is known and left out here


class ReadsScore:
    """A component that reads a score, by the name in its setting `score`."""

    score: str

    def offered_as(self, need: str) -> str:
        return f"scores.{self.score}" if need == "scores" and self.score else need


class ReadsColumn:
    """A component that reads a column, by the name in its setting `column`."""

    column: str

    def offered_as(self, need: str) -> str:
        return f"columns.{self.column}" if need == "columns" else need


@dataclass(frozen=True)
class Offers:
    """Named nodes at one place of the recipe.

    Args:
        slot: The config group whose component takes them, for messages.
        made: The nodes by name, or what makes them when they are asked for.
    """

    slot: str
    made: Mapping[str, Made]

    def __getitem__(self, name: str) -> Node | None:
        """What is offered under a name.

        Raises:
            ConfigError: There is nothing of this name here.
        """
        if name not in self.made and self.slot == "score" and name.split(".")[0] == "scores":
            raise ConfigError(
                f"score= is made before scores, and cannot read {name!r}. Name what combines or reads scores under "
                "scores, after them, as in +score@scores.mix=mix scores.mix.weights={score: 1, l14: 1} (`score` is "
                "the one of score=), and read it by its name, as in select.score=mix."
            )
        if name not in self.made and name.startswith("scores."):
            raise ConfigError(
                self._unnamed("score", name) + " A score gets a name under scores, as in "
                "+score@scores.NAME=clip_score; empty is the one of score=."
            )
        if name not in self.made and name.startswith("columns."):
            own = name.removeprefix("columns.").replace("???", "NAME")
            raise ConfigError(
                self._unnamed("column", name)
                + f" A column gets a name under columns, as in +columns.{own}=json:{own}."
            )
        if name not in self.made:
            raise ConfigError(
                f"{self.slot}: its component needs {name!r}, and a curation offers here "
                f"{', '.join(sorted(self.made))}. Name one of these in needs, or make it in upstream "
                "(dbp/offers.py)."
            )
        found = self.made[name]
        return found() if callable(found) else found

    def named(self, group: str) -> list[str]:
        """The names that the user gave to `columns`, or to `scores`."""
        return [name.removeprefix(f"{group}.") for name in self.made if name.startswith(f"{group}.")]

    def _unnamed(self, kind: str, name: str) -> str:
        """That no score or column (`kind`) has this name, with the names there are."""
        named, own = self.named(f"{kind}s"), name.removeprefix(f"{kind}s.")
        known = nearest(own, named) if named else f"This curation names no {kind}s."
        if own == "???":
            return f"{self.slot}.{kind} is not set: say which {kind} is read. {known}"
        return f"{self.slot}.{kind}={own!r}: there is no {kind} of this name. {known}"

    def at(self, slot: str, **made: Made) -> "Offers":
        """The same for another slot, with other nodes of some names."""
        return replace(self, slot=slot, made={**self.made, **made})

    def beside(self, **made: Made) -> "Offers":
        """The same with other nodes of some names."""
        return self.at(self.slot, **made)

    def bound(self, stage: Stage) -> tuple[Node, Mapping[str, Node | None]]:
        """A component bound to what it needs, and what it makes for itself.

        Raises:
            ConfigError: It needs what is not offered.
        """
        own = stage.upstream(self)
        have, left_out = self.beside(**own), stage.unneeded()
        return stage.bind(**{n: None if n in left_out else have[stage.offered_as(n)] for n in stage.needs}), own

    def bind(self, stage: Stage) -> Node:
        """A component bound to what it needs."""
        return self.bound(stage)[0]


def other_side(modality: str) -> set[str]:
    """The side whose vectors a stage of one modality does not need; nothing for joint ones."""
    return {"image": {"text"}, "text": {"image"}}.get(modality, set())
