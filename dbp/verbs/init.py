"""Look at a folder of tars and write an experiment for it.

    dbp init FOLDER                     writes experiment/NAME.yaml, NAME from the folder's name
    dbp init FOLDER out=my/experiment/pets.yaml
    dbp init FOLDER keep_fraction=0.3

The folder holds webdataset tars, as img2dataset writes them or others. The file says what was found, and
suggests where captions stand, encoders, numbers of clusters, a budget and the length of training, each with
its reason; every value is there to be changed. What it would cost on this machine is printed. Where the store
holds clusters of this pool, the file tells what temperatures would do. A file that exists is not replaced.
`paths.store=FOLDER` and `paths.runs=FOLDER` say which store.
"""

import contextlib
import datetime
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.config import require
from dbp.errors import ConfigError, DbpError, WorldError, nearest
from dbp.names import name_of
from dbp.verbs.looking import Look, lines_of, look

SETTINGS = ("out", "keep_fraction", "paths.store", "paths.runs")
# DBP's number of clusters on 280 M pairs; fewer pairs, fewer clusters.
MOST_CLUSTERS = 500
# DataComp's batch; smaller where the kept set would fill it less than four times.
MOST_BATCH = 4096
DEFAULT_KEEP = 0.3


@dataclass(frozen=True)
class Suggestion:
    """What an experiment for a pool begins with.

    Args:
        shards: Pattern, for `pool.shards`.
        caption: For `pool.caption`.
        uid: For `pool.uid`.
        broken_shards: For `pool.broken_shards`.
        rows: Usable rows, for the numbers below.
        cluster_encoder: Preset.
        num_clusters: Of the coarse clustering.
        num_dedup_clusters: Of SemDeDup.
        keep_fraction: Of what dedup leaves.
        batch_size: Of training.
        samples_seen: Of training: one pass over the pool, in whole batches.
    """

    shards: str
    caption: str
    uid: str
    broken_shards: str
    rows: int
    cluster_encoder: str
    num_clusters: int
    num_dedup_clusters: int
    keep_fraction: float
    batch_size: int
    samples_seen: int


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp init`."""
    from dbp.verbs.show import read_arguments

    settings, words = read_arguments(arguments, SETTINGS)
    if bad := next((word for word in words if word.partition("=")[0].isidentifier() and "=" in word), None):
        raise ConfigError(
            f"{bad.partition('=')[0]} is not a setting here. {nearest(bad.partition('=')[0], SETTINGS)}"
        )
    if len(words) != 1:
        raise ConfigError(f"dbp init takes one FOLDER of tars; given: {words or 'none'}")
    folder = Path(words[0]).expanduser().absolute()
    keep = _keep_fraction(settings.get("keep_fraction"))
    require(0 < keep <= 1, "keep_fraction", keep, "above 0 and at most 1")
    out = place(folder, settings.get("out"))
    found = look(folder)
    for line in lines_of(found):
        print(line)
    suggested = suggest(found, folder, keep)
    stores = {n: settings[n] for n in ("paths.store", "paths.runs") if n in settings}
    text = experiment(suggested, out, folder, lines_of(found), trials(found, stores))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if out.exists():
            raise _exists(out) from None  # written meanwhile by another
        raise WorldError(
            f"cannot write {out}: {error.strerror or error}. Give another place with out=FILE."
        ) from error
    for line in cost(out, stores):
        print(line)
    print(f"wrote {out}; next: {command(out)} dry_run=true")


def _keep_fraction(text: str | None) -> float:
    try:
        return DEFAULT_KEEP if text is None else float(text)
    except ValueError:
        raise ConfigError(f"keep_fraction={text!r}: it must be a number") from None


def place(folder: Path, out: str | None) -> Path:
    """Where the experiment goes.

    Raises:
        ConfigError: It exists, or could not be found as an experiment there.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", folder.name).strip("_") or "pool"
    path = Path(out).expanduser() if out else Path("experiment") / f"{name}.yaml"
    path = path.absolute()
    if path.suffix != ".yaml" or path.parent.name != "experiment":
        raise ConfigError(
            f"out={out}: an experiment is found by its name in a folder called experiment, so name a file like "
            f"{path.parent / 'experiment' / path.with_suffix('.yaml').name}"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", path.stem):
        raise ConfigError(f"out={out}: its name may have letters, digits, and _ . -")
    if path.exists():
        raise _exists(path)
    return path


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} exists and is not replaced. Give another name with out=experiment/NAME.yaml, or move it away."
    )


def command(out: Path) -> str:
    """The command that curates by an experiment."""
    home = str(out.parent.parent)
    quoted = f"'{home}'" if re.search(r"[^A-Za-z0-9_./-]", home) else home
    return f"dbp curate --config-dir {quoted} experiment={out.stem}"


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
        shards=_pattern(found, folder),
        caption=found.captions or "txt",
        uid=_uid(found),
        broken_shards="keep_readable" if found.broken else "error",
        rows=rows,
        cluster_encoder="dinov2_l14" if visible_gpus() else "openclip_b32",
        num_clusters=min(MOST_CLUSTERS, fine),
        num_dedup_clusters=fine,
        keep_fraction=keep_fraction,
        batch_size=batch,
        samples_seen=max(math.ceil(rows / batch), 1) * batch,
    )


def _uid(found: Look) -> str:
    if found.has_uids:
        return "json:uid"
    return "hash" if found.repeated_keys else "key"


def _pattern(found: Look, folder: Path) -> str:
    """A wildcard that names the tars, and nothing else."""
    depth = len(found.shards[0].relative_to(folder).parts)
    return str(folder / "/".join(["*"] * (depth - 1) + ["*.tar"]))


def trials(found: Look, stores: dict[str, str]) -> list[str]:
    """What temperatures would do, from the newest DBP keep list of this pool; none without one."""
    from dbp.engine.store import Store
    from dbp.verbs.tune import TEMPERATURES, by_temperature, open_selection, table

    store = Store(stores.get("paths.store", "./store"), stores.get("paths.runs", "./runs"))
    for key in _lists_of(store, found):
        with contextlib.suppress(DbpError):
            stage, inputs = open_selection(store, key)
            return [
                f"What temperatures would do to keep list {key} (* is its own), as `dbp tune keep={key[:12]}`:",
                *table("temperature", by_temperature(stage, inputs, TEMPERATURES)),
            ]
    return []


def _lists_of(store: Any, found: Look) -> Iterator[str]:
    """The keys of DBP's keep lists of these shards, the newest first."""
    from dbp.engine.paths import expand_shards
    from dbp.lineage import lineage

    entries = [e for e in store.entries() if e.stage == "select"]
    for entry in sorted(entries, key=lambda e: e.manifest["created"], reverse=True):
        if name_of(entry.manifest.get("made_by", {}).get("_target_", "")) != "select/dbp":
            continue
        for upstream in lineage(store, entry):
            shards = upstream.manifest.get("made_by", {}).get("shards")
            if upstream.stage == "index" and shards:
                with contextlib.suppress(DbpError):
                    paths = {Path(shard).absolute() for shard in expand_shards(shards)}
                    # A wildcard may name more today than it did.
                    counts = upstream.manifest["counts"]
                    is_same = counts["shards"] == len(found.shards) and (
                        not found.is_whole or counts["rows"] == found.rows
                    )
                    if is_same and paths == set(found.shards):
                        yield entry.key


def experiment(suggested: Suggestion, out: Path, folder: Path, lines: Sequence[str], tried: Sequence[str]) -> str:
    """The text of an experiment."""
    s = suggested
    when = datetime.date.today().isoformat()
    said = [f"{folder}, looked at on {when} by dbp init:", *(f"  {line}" for line in lines)]
    said += ["", f"Curate: {command(out)}"]
    said += [f"Train and compare: {command(out).replace('dbp curate', 'dbp sweep')} root=SETS"]
    said += ["", *(tried or ["What temperatures do: dbp tune keep=KEY, once a keep list is made."])]
    head = "\n".join(f"# {line}".rstrip() for text in said for line in (text.splitlines() or [""]))
    # In a config `${` begins an interpolation, in a path it may be a name.
    shards = json.dumps(s.shards.replace("${", "\\${"), ensure_ascii=False)
    share = "one pass over the pool; every arm sees as many, so a smaller set is repeated"
    why = (
        "DBP's encoder (Abbas et al. 2024)"
        if s.cluster_encoder == "dinov2_l14"
        else "no GPU here: dinov2_l14, DBP's encoder, costs 18 times as much a picture"
    )
    return f"""# @package _global_
{head}
defaults:
  - override /pool: webdataset
  - override /encoder@encoder.dedup: openclip_b32
  - override /encoder@encoder.cluster: {s.cluster_encoder}   # {why}
  - override /encoder@encoder.score: openclip_b32
  - override /dedup: semdedup
  - override /score: clip_score
  - override /select: dbp
  - override /model: vit_b32
  - override /train: datacomp_small
pool:
  shards: {shards}
  caption: {json.dumps(s.caption)}
  uid: {json.dumps(s.uid)}              # key | json:FIELD | hash (where keys repeat)
  broken_shards: {s.broken_shards}      # keep_readable: the samples before the damage are used
# dedup.epsilon is 0.05: a row goes above cosine 0.95 to an earlier one; look at the pairs, then change it.
# Its clusters are sqrt(0.75 n), {s.num_dedup_clusters:,} of about {s.rows:,} usable rows. Settings of a method
# stand in an arm or on the command line (dedup.epsilon=0.03): an arm without the method has none.
cluster:
  num_clusters: {s.num_clusters}   # sqrt(0.75 n), at most {MOST_CLUSTERS}, which DBP took for 280 M
budget:
  keep_fraction: {s.keep_fraction:g}     # of what dedup leaves
  of: dedup
train:
  batch_size: {s.batch_size}
  samples_seen: {s.samples_seen}    # {share}
  optimiser:
    warmup_samples: {min(2_048_000, max(s.samples_seen // 10, 1))}   # a tenth, or DataComp's 500 steps
sweep:
  name: {out.stem}
  arms:
    unpruned: {{dedup: none, select: none}}
    uniform: {{select: uniform}}
    clip score: {{select: top_score}}
    ssp: {{select: ssp}}
    dbp: {{select: dbp}}   # temperature 0.1; sweep.select.temperature=[0.05,0.1,0.2] tries several
  axes:
    seed: [0, 1, 2]        # fewer than three tell checkpoints apart, and no methods
"""


def cost(out: Path, stores: dict[str, str]) -> list[str]:
    """What curating would cost on this machine, by the plan of the written experiment.

    It is tried as a person would: so a file that does not compose is found here.
    """
    from dbp.config import compose
    from dbp.curate import run
    from dbp.verbs.command_line import overrides

    given = [f"experiment={out.stem}", "dry_run=true", *(f"{n}={v}" for n, v in stores.items())]
    config = compose("curate", overrides(given), [str(out.parent.parent)])
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run(config)
    except (DbpError, ImportError, OSError) as error:
        why = str(error).splitlines()[0]
        return [f"What curating costs is not known yet: {why}", "Weights are fetched by dbp prefetch."]
    return ["What curating would cost here:", *said.getvalue().splitlines()]
