"""Bring in what another tool made.

    dbp import keep FILE pool=…                      a keep list: uid file, one name a line, or parquet
    dbp import embeddings FILE-OR-FOLDER pool=…      vectors: .npy, raw map, clip-retrieval's folder, DataComp's
    dbp import clusters FOLDER [pool=…]              SemDeDup's sorted clusters; its pool may be theirs

Each is a front to settings of `dbp curate`, which it prints, so that a curation may use them; further
settings are handed on. `keep` takes select.join=uid|key, select.column=NAME, select.repeats=error|once|keep.
`embeddings` takes use=cluster|dedup|score (which of the three encoders they are), side=image|text, and
the encoder's own settings, such as encoder.cluster.join=uid; a raw map needs encoder.cluster.width=N.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from dbp.config import require
from dbp.errors import ConfigError, nearest

KINDS = ("keep", "embeddings", "clusters")
Use = Literal["cluster", "dedup", "score"]
SIDES = {"image": "images", "text": "texts"}


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp import`."""
    if not arguments or arguments[0] not in KINDS:
        kind = arguments[0] if arguments else ""
        raise ConfigError(f"dbp import {kind}: {nearest(kind, KINDS)}")
    if len(arguments) < 2:
        raise ConfigError(f"dbp import {arguments[0]} takes a file or folder; see dbp import --help")
    kind, path, *rest = arguments
    if not Path(path).exists():
        raise ConfigError(f"dbp import {kind}: {path} does not exist. Give its path.")
    front = {"keep": keep, "embeddings": embeddings, "clusters": clusters}[kind]
    front(path, rest)


def keep(path: str, rest: list[str]) -> None:
    """Make a keep list of the pool from another tool's list."""
    _curate(["select=imported", f"select.file={path}"], rest)


def clusters(path: str, rest: list[str]) -> None:
    """Make a clustering of the pool from SemDeDup's sorted clusters."""
    pool = [] if _names(rest, "pool") else ["pool=sorted_clusters", f"pool.path={path}"]
    _curate(["cluster=imported", f"cluster.path={path}", "until=cluster"], rest, pool)


def embeddings(path: str, rest: list[str]) -> None:
    """Make embeddings of the pool's rows from another tool's vectors."""
    use, side = _taken(rest, "use", "cluster"), _taken(rest, "side", "image")
    require(use in get_args(Use), "use", use, f"one of {', '.join(get_args(Use))}")
    require(side in SIDES, "side", side, f"one of {', '.join(SIDES)}")
    given = [word for word in rest if word.partition("=")[0] not in ("use", "side")]
    said = [*_encoder(Path(path), use, side, given), *given]

    from dbp.config import build, compose
    from dbp.curate import open_store
    from dbp.encoders.embed import Embed
    from dbp.verbs.command_line import overrides

    config: Any = compose("curate", overrides(said))
    encoder = build(config.encoder[use], path=f"encoder.{use}")
    node = Embed(encoder, side).bind(pool=build(config.pool, path="pool").node())  # type: ignore[arg-type]
    store = open_store(config)
    made = store.get(node)
    print(
        f"embeddings {store.key(node)} in {store.folder(node)}: {len(made.rows):,} vectors of "
        f"{made.width:,} numbers ({store.work_done()})"
    )
    print(f"to curate with them: {_spelt(said)}")


def _encoder(path: Path, use: str, side: str, given: list[str]) -> list[str]:
    """The settings that name an encoder for a file or folder of vectors."""
    if _names(given, f"encoder.{use}"):
        return []
    setting = f"encoder.{use}"
    if path.is_dir():
        if (path / "metadata").is_dir():
            return [f"{setting}=laion", f"{setting}.folder={path}"]
        if any(path.glob("[!.]*.npz")):
            return [f"{setting}=datacomp_l14", f"{setting}.metadata={path}"]
        raise ConfigError(
            f"{path} holds neither metadata/ and img_emb/, as clip-retrieval writes, nor DataComp's .npz "
            "files. Give a file, or such a folder."
        )
    with open(path, "rb") as handle:
        is_npy = handle.read(6) == b"\x93NUMPY"
    kind = "precomputed" if is_npy else "memmap"
    return [f"{setting}={kind}", f"{setting}.{SIDES[side]}={path}"]


def _curate(own: list[str], rest: list[str], pool: Sequence[str] = ()) -> None:
    from dbp.config import compose
    from dbp.curate import run
    from dbp.verbs.command_line import overrides

    defaults = [word for word in ("dedup=none", "filter=none") if not _names(rest, word.partition("=")[0])]
    said = [*pool, *defaults, *own, *rest]
    run(compose("curate", overrides(said)))
    print(f"the same as: dbp curate {_spelt(said)}")


def _names(rest: list[str], setting: str) -> bool:
    return any(word.partition("=")[0] == setting for word in rest)


def _taken(rest: list[str], setting: str, default: str) -> str:
    """The last value of a setting that is ours and not curate's."""
    found = [word.partition("=")[2] for word in rest if word.partition("=")[0] == setting]
    return found[-1] if found else default


def _spelt(said: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in said)
