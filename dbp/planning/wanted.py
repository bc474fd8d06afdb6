"""Where a curation may stop, and which stages that asks for."""

from dbp.engine.stage import Node
from dbp.errors import ConfigError

UNTIL = ("index", "embed", "dedup", "score", "filter", "centroids", "cluster", "borders", "select", "matches")
UNTIL += ("captioner", "codes", "captions")
NAMED = ("scores.", "columns.")


def can_stop_at(until: object) -> bool:
    """Whether a setting, of whatever type a person typed, names a stage of some recipe."""
    return until in UNTIL or str(until).startswith(NAMED)


def wanted_nodes(nodes: dict[str, Node], until: str) -> list[Node]:
    """The nodes that `until` names; for `embed` every encoding that the keep list rests on.

    Raises:
        ConfigError: This recipe makes no such artifact.
    """
    if until == "embed":
        every = [*nodes["select"].lineage(), *nodes["cluster"].lineage()]
        return list(dict.fromkeys(node for node in every if node.stage.name == "embed"))
    if until == "matches" and until in nodes["select"].inputs:
        return [nodes["select"].inputs[until]]
    if until.startswith(NAMED) and until not in nodes:
        there = ", ".join(name for name in nodes if name.startswith(NAMED)) or "none"
        raise ConfigError(f"until={until}: this recipe makes nothing of this name; it has {there}.")
    if until not in nodes:
        raise ConfigError(
            f"until={until}: this recipe makes none. centroids need cluster=kmeans, borders dedup=semdedup, "
            "codes captioner=paper, captions caption=refined beside or caption=column, "
            "matches select=metaclip with a budget."
        )
    return [nodes[until]]
