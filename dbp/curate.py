"""Curate a pool: pool -> index -> embed -> dedup -> cluster -> filter -> select -> keep list.

    dbp curate pool=webdataset pool.shards='pool/{00000..00099}.tar' \\
        select=dbp select.temperature=0.1 budget.keep_fraction=0.3

`recipe` is the whole method, read top to bottom. Each line binds a stage to what it needs; nothing runs
until the store is asked for a result, and then only what is missing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dbp.captioning.codes import CodeVectors, Encode
from dbp.clustering.kmeans import KMeans
from dbp.clustering.together import assign_together, with_others
from dbp.config import build, require
from dbp.data.keep_list import KeepList, everything
from dbp.data.pool import Pool
from dbp.dedup.borders import BorderLoss, Borders
from dbp.dedup.semdedup import SemDeDup
from dbp.encoders.base import Encoder
from dbp.encoders.embed import Embed
from dbp.narrowing import Narrowing
from dbp.planning.rate import rate
from dbp.runners import PartsSettings
from dbp.selection.codebook import Tldr
from dbp.selection.metadata import Balancing
from dbp.settings import Curation, read
from dbp.stage import Node, Stage
from dbp.store import Store
from dbp.until import UNTIL, wanted_nodes


@dataclass(frozen=True)
class ValidRows(Narrowing):
    """The rows with a caption and an image of sound header; the others go with their reason."""

    name: ClassVar[str] = "valid"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("pool",)

    def decide(self, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        return everything(pool.digest, pool.is_valid, pool.index.codes("reason")), {}


def recipe(curation: Curation) -> dict[str, Node]:
    """The graph of stages, by what each makes. `select` is the keep list."""
    pool = curation.pool.node()
    rows = ValidRows().bind(pool=pool)
    use = curation.encoder

    def vectors(encoder: Encoder, modality: str) -> dict[str, Node | None]:
        sides: tuple[Literal["image", "text"], ...] = ("image", "text")
        wanted = sides if modality not in sides else (modality,)
        return {
            side: Embed(encoder, side, curation.rows_per_part).bind(pool=pool)
            if side in wanted
            else None
            for side in sides
        }

    def clustered(stage: Stage, rows: Node, encoder: Encoder) -> tuple[Node | None, Node]:
        """A clustering's centroids, where it fits them itself, and the clustering."""
        have = {"rows": rows, "pool": pool, **vectors(encoder, getattr(stage, "modality", "image"))}
        centroids = _bind(stage.fitting(), **have) if isinstance(stage, KMeans) else None
        return centroids, _bind(stage, centroids=centroids, **have)

    scores = _bind(curation.score, pool=pool, **vectors(use.score, "joint"))

    similar = borders = None
    dedup = curation.dedup
    if isinstance(dedup, SemDeDup):
        _, fine = clustered(dedup.clustering(), rows, use.dedup)
        similar = _bind(
            dedup.comparison(),
            rows=rows,
            pool=pool,
            clusters=fine,
            scores=scores if dedup.keep == "score" else None,
            **vectors(use.dedup, dedup.modality),
        )
        borders = _bind(
            Borders(),
            rows=rows,
            pool=pool,
            clusters=fine,
            **vectors(use.dedup, dedup.clustering().modality),
        )
    deduped = _bind(dedup, rows=rows, pool=pool, similar=similar)

    filtered = _bind(
        curation.filter, rows=deduped, pool=pool, scores=scores, **vectors(use.score, "image")
    )

    survivors = {"pool": rows, "dedup": deduped, "filtered": filtered}
    centroids, clusters = clustered(curation.cluster, survivors[curation.cluster.on], use.cluster)

    # TL;DR's own chain: pictures as codes, codes clustered.
    captioner = codes = coded = None
    if curation.captioner is not None:
        captioner = _bind(curation.captioner, pool=pool, rows=rows)
        encode = Encode(curation.rows_per_part, device=curation.device)
        codes = encode.bind(pool=pool, captioner=captioner)
    select = curation.select
    if isinstance(select, Tldr) and codes is not None:
        vectors_of_codes = CodeVectors(select.vectors).bind(codes=codes)
        own = {"rows": survivors[select.on], "pool": pool, "image": vectors_of_codes, "text": None}
        fitted = _bind(select.clustering().fitting(), **own)
        coded = _bind(select.clustering(), centroids=fitted, **own)

    keep = _bind(
        select,
        rows=filtered,
        base=survivors[curation.base],
        pool=pool,
        scores=None if isinstance(select, Tldr) and not select.needs_scores else scores,
        clusters=coded or clusters,
        matches=select.matched(rows, pool) if isinstance(select, Balancing) else None,
    )
    captions = curation.refine and _bind(
        curation.refine, pool=pool, rows=keep, codes=codes, captioner=captioner
    )
    optional = {
        "centroids": centroids, "borders": borders,
        "captioner": captioner, "codes": codes, "captions": captions,
    }  # fmt: skip
    return {
        "index": pool,
        "valid": rows,
        "dedup": deduped,
        "score": scores,
        "filter": filtered,
        **{name: node for name, node in optional.items() if node},
        "cluster": clusters,
        "select": keep,
    }


def _bind(stage: Stage, **have: Node | None) -> Node:
    """Bind a stage to those of its needs that are at hand; what it does not need is never built."""
    return stage.bind(**{name: have[name] for name in stage.needs})


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
    from dbp.planning.plan import check_budget, print_plan, require_upstream

    require(config.until in UNTIL, "until", config.until, f"one of {', '.join(UNTIL)}")
    require(
        config.upstream in ("build", "require"), "upstream", config.upstream, "build or require"
    )
    nodes = recipe(read(config))
    store = open_store(config)
    *before, wanted = wanted_nodes(nodes, config.until)
    if config.dry_run:
        print_plan(store, *before, *_clusterings(nodes, config.until), wanted)
        return None
    if config.upstream == "require":
        require_upstream(store, wanted)
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
    share = result.num_kept / max(result.num_pool_rows, 1)
    print(
        f"kept {result.num_kept:,} of {result.num_pool_rows:,} rows ({share:.1%}): keep list "
        f"{store.key(wanted)} in {where} ({store.work_done()})"
    )
    return result


if __name__ == "__main__":
    from dbp.command_line import hydra_main

    hydra_main("curate", run)
