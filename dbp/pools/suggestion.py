"""An experiment for a folder of tars: settings that follow from what lies there, each with its reason."""

import datetime
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError
from dbp.pools.looking import Look

# DBP's number of clusters on 280 M pairs; fewer pairs, fewer clusters.
MOST_CLUSTERS = 500
# DataComp's batch; smaller where the kept set would fill it less than four times.
MOST_BATCH = 4096
TEMPLATE = Path(__file__).with_name("suggestion.yaml")  # of `dbp init`, filled by `str.format`


@dataclass(frozen=True)
class Suggestion:
    """What an experiment for a pool begins with; the first four as `pool` takes them."""

    shards: str | list[str]
    caption: str
    uid: str
    broken_shards: str
    rows: int  # usable ones
    cluster_encoder: str
    num_clusters: int
    num_dedup_clusters: int
    keep_fraction: float  # of what dedup leaves
    batch_size: int
    samples_seen: int  # one pass over the pool, in whole batches


def suggest(found: Look, folder: Path, keep_fraction: float) -> Suggestion:
    """Settings for a pool.

    Raises:
        ConfigError: Fewer usable samples than two batches can be made of.
    """
    from dbp.engine.processes import visible_gpus

    rows = found.usable
    kept = int(rows * keep_fraction)
    if kept < 4:
        raise ConfigError(
            f"keep_fraction={keep_fraction:g} of about {rows:,} usable samples keeps {kept}: too few to train "
            "on. Name a folder with more tars, or a larger keep_fraction."
        )
    batch = min(MOST_BATCH, 2 ** int(math.log2(max(kept / 4, 2))))
    fine = max(round(math.sqrt(0.75 * rows)), 1)
    return Suggestion(
        shards=found.patterns[0] if len(found.patterns) == 1 else found.patterns,
        caption=found.captions or "txt",
        uid=found.uid,
        broken_shards="keep_readable" if found.broken else "error",
        rows=rows,
        cluster_encoder="dinov2_l14" if visible_gpus() else "openclip_b32",
        num_clusters=min(MOST_CLUSTERS, fine),
        num_dedup_clusters=fine,
        keep_fraction=keep_fraction,
        batch_size=batch,
        samples_seen=max(math.ceil(rows / batch), 1) * batch,
    )


def command(out: Path) -> str:
    """The command that curates by an experiment."""
    return f"dbp curate --config-dir {shlex.quote(str(out.parent.parent))} experiment={out.stem}"


def header(folder: Path, lines: Sequence[str], commands: Sequence[str], tried: Sequence[str]) -> str:
    """The comment at the front of an experiment: what was found, and what to type."""
    when = datetime.date.today().isoformat()
    said = [f"{folder}, looked at on {when} by dbp init:", *(f"  {line}" for line in lines), "", *commands]
    said += ["", *(tried or ["What temperatures do: dbp tune keep=KEY, once a keep list is made."])]
    return "\n".join(f"# {line}".rstrip() for text in said for line in (text.splitlines() or [""]))


def as_yaml(value: Any) -> str:
    """Texts of a config: `${` begins an interpolation there, in a path it may be a name."""
    return json.dumps(value, ensure_ascii=False).replace("${", "\\\\${")


def values_of(suggested: Suggestion) -> dict[str, Any]:
    """A suggestion as templates take it."""
    texts = {name: as_yaml(getattr(suggested, name)) for name in ("shards", "caption", "uid")}
    return {**vars(suggested), **texts, "most_clusters": MOST_CLUSTERS}


def experiment(suggested: Suggestion, out: Path, folder: Path, lines: Sequence[str], tried: Sequence[str]) -> str:
    """The text of an experiment with pretrained encoders."""
    commands = [f"Curate: {command(out)}"]
    commands += [f"Train and compare: {command(out).replace('dbp curate', 'dbp sweep')} root=SETS"]
    why = "no GPU here: dinov2_l14, DBP's encoder, costs 18 times as much a picture"
    if suggested.cluster_encoder == "dinov2_l14":
        why = "DBP's encoder (Abbas et al. 2024)"
    values = values_of(suggested)
    warmup = min(2_048_000, max(suggested.samples_seen // 10, 1))
    head = header(folder, lines, commands, tried)
    return TEMPLATE.read_text(encoding="utf-8").format(head=head, why=why, name=out.stem, warmup=warmup, **values)
