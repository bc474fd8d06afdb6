"""Curate a pool: pool -> index -> embed -> dedup -> cluster -> filter -> select -> keep list.

    dbp curate pool=webdataset pool.shards='pool/{00000..00099}.tar' \\
        select=dbp select.temperature=0.1 budget.keep_fraction=0.3

`recipe` is the whole method, read top to bottom. Each line binds a stage to what it needs; nothing runs
until the store is asked for a result, and then only what is missing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dbp.config import build, require
from dbp.data.keep_list import KeepList, everything
from dbp.data.pool import Pool
from dbp.encoders.base import Encoder, Modality
from dbp.encoders.embed import Embed
from dbp.errors import ConfigError
from dbp.selection.base import NoSelection
from dbp.stage import Node, Stage
from dbp.store import Store
from dbp.work import Work

WAYS = ("prune_ratio", "keep_fraction", "num_kept")
UNTIL = ("index", "dedup", "score", "filter", "cluster", "select")


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


@dataclass(frozen=True)
class ValidRows(Stage):
    """The rows with a caption and an image of sound header; the others go with their reason."""

    name: ClassVar[str] = "valid"
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = KeepList

    def run(self, work: Work, pool: Pool) -> dict[str, Any]:
        rows = everything(pool.digest, pool.is_valid, pool.column("reason"))
        rows.save(work.folder)
        return {"rows": pool.num_rows, "kept": rows.num_kept}


def recipe(curation: Curation) -> dict[str, Node]:
    """The graph of stages, by what each makes. `select` is the keep list."""
    pool = curation.pool.node()
    rows = ValidRows().bind(pool=pool)

    def vectors(encoder: Encoder, modality: Modality) -> dict[str, Node | None]:
        sides: tuple[Literal["image", "text"], ...] = ("image", "text")
        return {
            side: Embed(encoder, side).bind(pool=pool) if modality in (side, "joint") else None
            for side in sides
        }

    use = curation.encoder
    similar = None
    if "similar" in curation.dedup.needs:
        dedup: Any = curation.dedup
        similar = _bind(
            dedup.comparison(), rows=rows, pool=pool, **vectors(use.dedup, dedup.modality)
        )
    deduped = _bind(curation.dedup, rows=rows, pool=pool, similar=similar)

    scores = _bind(curation.score, pool=pool, **vectors(use.score, "joint"))
    filtered = _bind(curation.filter, rows=deduped, pool=pool, scores=scores)

    survivors = {"pool": rows, "dedup": deduped, "filtered": filtered}
    clusters = _bind(
        curation.cluster,
        rows=survivors[curation.cluster.on],
        **vectors(use.cluster, curation.cluster.modality),
    )

    keep = _bind(
        curation.select,
        rows=filtered,
        base=survivors[curation.base],
        pool=pool,
        scores=scores,
        clusters=clusters,
    )
    return {
        "index": pool,
        "valid": rows,
        "dedup": deduped,
        "score": scores,
        "filter": filtered,
        "cluster": clusters,
        "select": keep,
    }


def _bind(stage: Stage, **have: Node | None) -> Node:
    """Bind a stage to those of its needs that are at hand; what it does not need is never built."""
    return stage.bind(**{name: have[name] for name in stage.needs})


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
    elif "budget" in config and config.select.get("_target_", "").endswith("NoSelection"):
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
    )


def open_store(config: Any, say: Any = print) -> Store:
    """The store that a config names."""
    return Store(config.paths.store, config.paths.runs, say)


def run(config: Any) -> KeepList | None:
    """Do what `dbp curate` does with a composed config."""
    from dbp.plan import check_budget, print_plan, require_upstream

    require(config.until in UNTIL, "until", config.until, f"one of {', '.join(UNTIL)}")
    require(
        config.upstream in ("build", "require"), "upstream", config.upstream, "build or require"
    )
    nodes = recipe(read(config))
    store = open_store(config)
    wanted = nodes[config.until]
    if config.dry_run:
        print_plan(store, wanted)
        return None
    if config.upstream == "require":
        require_upstream(store, wanted)
    if config.until == "select":
        check_budget(store, nodes)
    result = store.get(wanted)
    where = store.folder(wanted)
    if not isinstance(result, KeepList):
        print(f"{config.until} {store.key(wanted)} in {where} ({store.work_done()})")
        return None
    for reason, count in result.counts().items():
        print(f"  {count:>12,}  {reason}")
    share = result.num_kept / max(result.num_pool_rows, 1)
    print(
        f"kept {result.num_kept:,} of {result.num_pool_rows:,} rows ({share:.1%}): keep list "
        f"{store.key(wanted)} in {where} ({store.work_done()})"
    )
    return result


if __name__ == "__main__":
    from dbp.command_line import hydra_main

    hydra_main("curate", run)
