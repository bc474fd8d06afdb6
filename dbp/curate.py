"""Curate a pool: pool -> index -> embed -> dedup -> cluster -> filter -> select -> keep list.

    dbp curate pool=webdataset pool.shards='pool/{00000..00099}.tar' \\
        select=dbp select.temperature=0.1 budget.keep_fraction=0.3

`recipe` is the whole method, read top to bottom. Each line binds a stage to what it needs; nothing runs
until the store is asked for a result, and then only what is missing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dbp.captioning.codes import Encode
from dbp.clustering.together import assign_together, with_others
from dbp.config import build, require
from dbp.data.keep_list import KeepList
from dbp.dedup.borders import BorderLoss
from dbp.encoders.base import Encoder
from dbp.encoders.embed import Embed
from dbp.engine.runners import PartsSettings
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.errors import ConfigError
from dbp.offers import Made, Offers
from dbp.planning.rate import rate
from dbp.pools.rates import column_nodes, rates_by_column
from dbp.pools.valid import ValidRows
from dbp.selection.base import NoSelection
from dbp.selection.held_out import HoldOut
from dbp.settings import NO_CAPTIONER, Curation, read


def recipe(curation: Curation) -> dict[str, Node]:
    """The graph of stages, by what each makes. `select` is the keep list.

    Raises:
        ConfigError: A component needs what a curation does not offer (`dbp/offers.py`).
    """
    pool = curation.pool.node()
    valid = ValidRows().bind(pool=pool)
    if curation.hold_out is not None:
        valid = HoldOut(curation.hold_out).bind(rows=valid, pool=pool)
    captioner = codes = None
    there: dict[str, Made] = {"pool": pool, "valid": valid, "rows": valid, "codes": _no_codes}
    if curation.captioner is not None:
        captioner = Offers("captioner", there).bind(curation.captioner)
        codes = Encode(curation.rows_per_part, device=curation.device).bind(pool=pool, captioner=captioner)
        there |= {"captioner": captioner, "codes": codes}

    def vectors(encoder: Encoder) -> dict[str, Made]:
        """Both sides; what is not asked for is not embedded."""
        return {side: Embed(encoder, side, curation.rows_per_part).bind(pool=pool) for side in ("image", "text")}

    columns = {f"columns.{name}": Offers(f"columns.{name}", there).bind(s) for name, s in curation.columns.items()}
    there |= columns
    use = curation.encoder
    scores = Offers("score", {**there, **vectors(use.score)}).bind(curation.score)
    there |= {"scores": scores}
    named: dict[str, Node] = {}
    for name, stage in curation.scores.items():
        named[f"scores.{name}"] = Offers(f"scores.{name}", {**there, **vectors(use.score), **named}).bind(stage)
    there |= named

    def filtered_from(rows: Node) -> Node:
        return Offers("filter", {**there, **vectors(use.score), "rows": rows}).bind(curation.filter)

    filter_at = curation.order.index("filter")  # 0: before dedup; 2: after selection
    early = filtered_from(valid) if filter_at == 0 else valid
    deduped, of_dedup = Offers("dedup", {**there, **vectors(use.dedup), "rows": early}).bound(curation.dedup)
    there |= {"rows": deduped, "deduped": deduped}

    def clustered(rows: Node) -> tuple[Node, Mapping[str, Node | None]]:
        have = {**there, **vectors(use.cluster), "rows": rows}
        return Offers("cluster", have).bound(curation.cluster)

    before = {"pool": valid, "dedup": deduped}.get(curation.cluster.on)
    fitted = clustered(before) if before else None
    if fitted:  # a filter may read the clusters, if they are not of its own rows
        there |= {"clusters": fitted[0]}
    filtered = filtered_from(deduped) if filter_at == 1 else deduped
    there |= {"rows": filtered, "filtered": filtered}
    clusters, of_clusters = fitted or clustered(filtered)
    there |= {"clusters": clusters}

    base = {"pool": valid, "dedup": deduped, "filtered": filtered}[curation.base]
    keep = Offers("select", {**there, **vectors(use.cluster), "base": base}).bind(curation.select)
    if filter_at == 2:
        filtered = filtered_from(keep)
        keep = NoSelection().bind(rows=filtered)
    captions = curation.refine and Offers("caption", {**there, **vectors(use.score), "rows": keep}).bind(
        curation.refine
    )
    optional = {
        "centroids": of_clusters.get("centroids"), "borders": of_dedup.get("borders"),
        "captioner": captioner, "codes": codes, "captions": captions,
    }  # fmt: skip
    return {
        "index": pool,
        "valid": valid,
        "dedup": deduped,
        **columns,
        "score": scores,
        **named,
        "filter": early if filter_at == 0 else filtered,
        **{name: node for name, node in optional.items() if node},
        "cluster": clusters,
        "select": keep,
    }


def _no_codes() -> Node:
    raise ConfigError(f"select=tldr clusters codes, {NO_CAPTIONER}")


def open_store(config: Any, say: Any = print) -> Store:
    """The store that a config names."""
    runner = build(config.parts, PartsSettings, "parts").build() if "parts" in config else None
    return Store(config.paths.store, config.paths.runs, say, runner, rate)


def _clusterings(nodes: dict[str, Node], until: str) -> list[Node]:
    """The coarse clustering and those that `cluster.also` asks for; none where it asks for none."""
    others = getattr(nodes["cluster"].stage, "also", ())
    if not others or until not in ("cluster", "select"):
        return []
    return with_others(nodes["cluster"], others, nodes["centroids"])


def run(config: Any) -> KeepList | None:
    """Do what `dbp curate` does with a composed config."""
    from dbp.planning import preflight
    from dbp.planning.plan import check_budget, print_plan, require_upstream
    from dbp.planning.wanted import UNTIL, can_stop_at, wanted_nodes

    require(
        can_stop_at(config.until), "until", config.until, f"one of {', '.join(UNTIL)}, scores.NAME or columns.NAME"
    )
    require(config.upstream in ("build", "require"), "upstream", config.upstream, "build or require")
    nodes = recipe(read(config))
    store = open_store(config)
    *before, wanted = wanted_nodes(nodes, config.until)
    if config.until == "select":  # kept rates are told by columns; one that cannot be read is known first of all
        before += column_nodes(nodes).values()
    if config.dry_run:
        print_plan(store, *before, *_clusterings(nodes, config.until), wanted)
        return None
    if config.upstream == "require":
        require_upstream(store, wanted)
    preflight.require(store, [*before, *_clusterings(nodes, config.until), wanted])
    if config.until == "select":
        check_budget(store, nodes)
    for node in before:
        store.get(node)
    assign_together(store, _clusterings(nodes, config.until))
    result = store.get(wanted)
    where = store.folder(wanted)
    if isinstance(result, BorderLoss):
        for line in result.lines():
            print(line)
    if not isinstance(result, KeepList):
        print(f"{config.until} {store.key(wanted)} in {where} ({store.work_done()})")
        return None
    for reason, count in result.counts().items():
        print(f"  {count:>12,}  {reason}")
    share, draws = result.num_kept / max(result.num_pool_rows, 1), ""
    if result.weights is not None:
        most = int(np.ceil(result.weights.max(initial=0)))
        draws = f", {result.num_draws:,.0f} draws in an epoch, at most {most:,} of a row"
    print(
        f"kept {result.num_kept:,} of {result.num_pool_rows:,} rows ({share:.1%}){draws}: keep list "
        f"{store.key(wanted)} in {where} ({store.work_done()})"
    )
    for line in rates_by_column(store, nodes, result):
        print(line)
    return result


if __name__ == "__main__":
    from dbp.verbs.command_line import hydra_main

    hydra_main("curate", run)
