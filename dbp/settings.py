"""What curation reads of a composed config, built and checked before any work."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from dbp.captioning.best import BestText
from dbp.captioning.texts import ReadTexts
from dbp.config import build, locate, require
from dbp.data.captions import holds_lists
from dbp.data.clusters import Clusters
from dbp.data.scores import Scores
from dbp.encoders.base import Encoder
from dbp.encoders.places import settled
from dbp.engine.runners import PartsSettings
from dbp.engine.stage import Node, Stage
from dbp.errors import ConfigError, nearest
from dbp.narrowing import Narrowing
from dbp.pools.values import ReadColumn
from dbp.selection.base import NoSelection

NO_CAPTIONER = (
    "and captioner=none makes none. Say captioner=paper to train one (captioner=glyphs on the glyphs pool), or "
    "captioner=local captioner.folder=FOLDER."
)
PLACES = {  # of a pool
    "shards": "Name the tars: pool.shards='folder/{00000..00099}.tar'.",
    "files": "Name the Parquet files: pool.files='folder/*.parquet'.",
    "folder": "Name the folder of images: pool.folder=FOLDER.",
}
ORDERS = (("dedup", "filter", "select"), ("filter", "dedup", "select"), ("dedup", "select", "filter"))
COLUMN = (
    "the captions' column: json:FIELD, parquet:FIELD, pool:NAME, file:PATH:COLUMN (a Parquet file of uids), or a "
    "name under columns"
)
WAYS = ("prune_ratio", "keep_fraction", "num_kept")


@dataclass(frozen=True)
class Encoders:
    """The encoder of each use; they may differ."""

    dedup: Encoder
    cluster: Encoder
    score: Encoder


@runtime_checkable
class PoolFormat(Protocol):
    """Where a pool lies, and as what."""

    def node(self) -> Node:
        """The stage that indexes it, bound to what names it; `dbp.data.pool.Pool` is what it opens."""
        ...


@dataclass(frozen=True)
class Curation:
    """What curation reads of the config: a slot each."""

    pool: PoolFormat
    encoder: Encoders
    dedup: Stage
    score: Stage
    scores: Mapping[str, Stage]
    filter: Stage
    cluster: Any  # a stage that makes `Clusters`, with `on`: rows of the pool, left by dedup, or filtered
    select: Stage
    base: Literal["pool", "dedup", "filtered"]
    columns: Mapping[str, Stage] = field(default_factory=dict)
    rows_per_part: int = 32_768
    captioner: Stage | None = None  # makes one
    refine: Stage | None = None  # writes captions with it, or reads them from a column
    device: str = "auto"
    hold_out: str | None = None  # a list of uids that no arm may have
    order: tuple[str, ...] = ORDERS[0]  # of the stages that remove rows


def read(config: Any) -> Curation:
    """Build and check what curation reads of a composed config.

    Raises:
        ConfigError: A setting is wrong; it names the full key.
    """
    select: Any = None
    given = config.get("budget") or {}
    if config.until != "select" and not any(given.get(name) for name in WAYS):
        budget, base, select = None, "dedup", NoSelection()  # what stops earlier needs no budget
    elif "budget" in config and not takes_budget(config.select):
        budget, base = None, "dedup"
    else:
        from dbp.selection.budget import Budget

        budget = build(config.budget, Budget, "budget")
        base = budget.of
    pool, runs = pool_of(config), str(config.paths.runs)

    def component(node: Any, path: str, kind: type, **extra: Any) -> Any:
        return _component(settled(node, runs, path), path, kind, **extra)

    parts = build(config.parts, PartsSettings, "parts")
    captioner, refine = _captioning(config, runs)
    texts, caption = _caption_column(config)
    own = {use: settled(node, runs, f"encoder.{use}") for use, node in config.encoder.items()}
    encoders = {use: build(node, path=f"encoder.{use}") for use, node in own.items()}
    return Curation(
        pool=pool,
        encoder=Encoders(**encoders),
        dedup=component(config.dedup, "dedup", Narrowing),
        score=component(config.score, "score", Scores),
        scores={str(n): component(one, f"scores.{n}", Scores) for n, one in (config.get("scores") or {}).items()},
        filter=component(config.filter, "filter", Narrowing),
        cluster=component(config.cluster, "cluster", Clusters),
        select=select or component(config.select, "select", Narrowing, **({"budget": budget} if budget else {})),
        base=base,
        columns={name: stage for name, stage in _columns(config).items() if name != caption},
        rows_per_part=parts.rows_per_part,
        captioner=captioner,
        refine=texts or refine,
        device=parts.device,
        hold_out=_list_of(config.get("hold_out")),
        order=_order(config.get("order") or ORDERS[0]),
    )


def pool_of(config: Any) -> PoolFormat:
    """The pool that a composed config names.

    Raises:
        ConfigError: It names no shards, or a setting of it is wrong.
    """
    from omegaconf import OmegaConf

    for name, way in PLACES.items():
        if OmegaConf.is_missing(config.pool, name):
            raise ConfigError(
                f"pool.{name} is not set. {way} To see the tool work without data of your own: pool=glyphs."
            )
    return build(config.pool, path="pool")


def _order(said: Sequence[Any]) -> tuple[str, ...]:
    """The stages that remove rows, in their order.

    Raises:
        ConfigError: It is no order that a curation can have.
    """
    order = tuple(map(str, said)) if not isinstance(said, str) else (said,)
    require(order in ORDERS, "order", list(order), " or ".join(f"[{','.join(one)}]" for one in ORDERS))
    return order


def _list_of(said: Any) -> str | None:
    """The file of `hold_out`; none where it is null.

    Raises:
        ConfigError: It is not there.
    """
    if said is not None and not Path(str(said)).is_file():
        raise ConfigError(
            f"hold_out={str(said)!r}: there is no such file. Give its path; dbp sets with out=FOLDER writes it as "
            "FOLDER/held_out.parquet."
        )
    return None if said is None else str(said)


def _columns(config: Any) -> dict[str, Stage]:
    said = config.get("columns") or {}
    return {str(name): ReadColumn.of(str(one), f"columns.{name}") for name, one in said.items()}


def _component(node: Any, path: str, kind: type, **extra: Any) -> Any:
    """The component of a slot, which is of a kind or makes one.

    Raises:
        ConfigError: It is not.
    """
    stage = build(node, path=path, **extra)
    fits = isinstance(stage, kind) or (
        isinstance(stage, Stage) and issubclass(getattr(stage, "makes", object), kind)
    )
    must = f"{'a' if issubclass(kind, Stage) else 'a stage that makes'} {kind.__name__}"
    require(fits, f"{path}._target_", type(stage).__name__, f"{must} (dbp/offers.py; docs/extending.md)")
    return stage


def takes_budget(select: Any) -> bool:
    """Whether the class of a selection has a budget; what others keep is said otherwise."""
    made = locate(select.get("_target_", ""), "select")
    return any(field.name == "budget" for field in dataclasses.fields(made))


def _caption_column(config: Any) -> tuple[Stage | None, str]:
    """What reads training's captions from a column of the pool, and its name under `columns`, where it has one.

    Raises:
        ConfigError: There is no such column.
    """
    from omegaconf import OmegaConf

    caption = config.get("caption")
    if caption is None or caption.rule == "original" or caption.get("refine") is not None:
        return None, ""
    if OmegaConf.is_missing(caption, "file") or caption.get("file") is not None:
        return None, ""
    if OmegaConf.is_missing(caption, "column"):
        raise ConfigError(f"caption.column is not set. Name {COLUMN}.")
    said, columns = str(caption.column), {str(n): str(one) for n, one in (config.get("columns") or {}).items()}
    name = said if ":" not in said else ""
    if name and name not in columns:
        known = nearest(name, columns) if columns else "This config names no columns."
        raise ConfigError(f"caption.column={name!r}: there is no column of this name. {known} Name {COLUMN}.")
    read = ReadTexts.of(columns.get(name, said), f"columns.{name}" if name else "caption.column")
    if read.file is not None:
        holds_lists(read.file, read.field)  # refuses what is not there before any work
    return BestText(read) if caption.get("pick") == "best" else read, name


def _captioning(config: Any, runs: str) -> tuple[Stage | None, Stage | None]:
    """What makes the captioner, and what writes captions with it; none where the config names none.

    Raises:
        ConfigError: A captioner is needed and none is named.
    """
    wanted = (config.get("caption") or {}).get("refine")
    captioner = config.get("captioner")
    if captioner is None:
        if wanted is not None:
            raise ConfigError(f"caption=refined writes captions, {NO_CAPTIONER}")
        return None, None
    refine = None if wanted is None else build(wanted, path="caption.refine")
    return build(settled(captioner, runs, "captioner"), path="captioner"), refine
