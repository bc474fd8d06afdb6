"""Where curation stops, if not at the keep list."""

from dbp.encoders.embed import Embed
from dbp.errors import ConfigError
from dbp.stage import Node

UNTIL = (
    *("index", "embed", "dedup", "score", "filter", "centroids", "cluster", "borders", "select"),
    "matches",
    *("captioner", "codes", "captions"),
)


def wanted_nodes(nodes: dict[str, Node], until: str) -> list[Node]:
    """The nodes that `until` names; for `embed` every encoding that the keep list rests on.

    Raises:
        ConfigError: This recipe makes no such artifact.
    """
    if until == "embed":
        every = [*nodes["select"].lineage(), *nodes["cluster"].lineage()]
        return list(dict.fromkeys(node for node in every if isinstance(node.stage, Embed)))
    if until == "matches" and until in nodes["select"].inputs:
        return [nodes["select"].inputs[until]]
    if until not in nodes:
        raise ConfigError(
            f"until={until}: this recipe makes none. centroids need cluster=kmeans, borders dedup=semdedup, "
            "codes captioner=paper, captions caption=refined beside, matches select=metaclip with a budget."
        )
    return [nodes[until]]
