"""What curation reads of a composed config, built and checked before any work."""

from dataclasses import dataclass
from typing import Any, Literal

from dbp.config import build
from dbp.encoders.base import Encoder
from dbp.errors import ConfigError
from dbp.runners import PartsSettings
from dbp.selection.base import NoSelection
from dbp.stage import Stage

NO_BUDGET = ("NoSelection", "ImportedList")  # what they keep is said otherwise
WAYS = ("prune_ratio", "keep_fraction", "num_kept")


@dataclass(frozen=True)
class Encoders:
    """The encoder of each use; they may differ."""

    dedup: Encoder
    cluster: Encoder
    score: Encoder


@dataclass(frozen=True)
class Curation:
    """What curation reads of the config: a slot each."""

    pool: Any
    encoder: Encoders
    dedup: Stage
    score: Stage
    filter: Stage
    cluster: Any
    select: Stage
    base: Literal["pool", "dedup", "filtered"]
    rows_per_part: int = 32_768


def read(config: Any) -> Curation:
    """Build and check what curation reads of a composed config.

    Raises:
        ConfigError: A setting is wrong; it names the full key.
    """
    from omegaconf import OmegaConf

    select: Any = None
    given = config.get("budget") or {}
    if config.until != "select" and not any(given.get(name) for name in WAYS):
        budget, base, select = None, "dedup", NoSelection()  # what stops earlier needs no budget
    elif "budget" in config and config.select.get("_target_", "").endswith(NO_BUDGET):
        budget, base = None, "dedup"
    else:
        from dbp.selection.budget import Budget

        budget = build(config.budget, Budget, "budget")
        base = budget.of
    if OmegaConf.is_missing(config.pool, "shards"):
        raise ConfigError(
            "pool.shards is not set. Name the tars: pool.shards='folder/{00000..00099}.tar'. "
            "To see the tool work without data of your own: pool=glyphs."
        )
    encoders = {use: build(node, path=f"encoder.{use}") for use, node in config.encoder.items()}
    return Curation(
        pool=build(config.pool, path="pool"),
        encoder=Encoders(**encoders),
        dedup=build(config.dedup, path="dedup"),
        score=build(config.score, path="score"),
        filter=build(config.filter, path="filter"),
        cluster=build(config.cluster, path="cluster"),
        select=select
        or build(config.select, path="select", **({"budget": budget} if budget else {})),
        base=base,
        rows_per_part=build(config.parts, PartsSettings, "parts").rows_per_part,
    )
