"""Write what the store holds for other tools.

    dbp export keep=KEY format=FORMAT out=FILE

datacomp     a sorted `<u8,u8` .npy of 128-bit uids
txt          a uid a line
parquet      row, uid, shard, key of what is kept
removed      the same, of what is not kept
decisions    parquet: for every row of the pool: its uid, which stage decided, why, what was compared with what
webdataset   out=FOLDER: shards of the kept samples, copied byte for byte; also shard_size=10000, seed=0,
             shuffle=true, workers=1, verify=true

    dbp export embeddings=KEY format=FORMAT out=FOLDER

laion        img_emb/*.npy and metadata/*.parquet, as clip-retrieval and embedding-reader have them; encoder=laion
             reads it as it is. embeddings=KEY,KEY of both sides writes img_emb and text_emb

    dbp export clusters=KEY format=FORMAT out=FOLDER

semdedup     cluster_0.npy and on: text cells of uid, row, distance, cluster, farthest first; centroids
parquet      row, uid, cluster, distance of every clustered row, and centroids.npy
"""

from pathlib import Path
from typing import Any

from dbp.config import require
from dbp.engine.store import Store
from dbp.errors import ConfigError, nearest
from dbp.formats.exports import export_clusters, export_embeddings, export_keep
from dbp.formats.write_shards import write_shards
from dbp.lineage import open_keep_list, open_pool_of
from dbp.verbs.show import STORES, read_arguments

FORMATS = {
    "keep": ("datacomp", "txt", "parquet", "removed", "decisions", "webdataset"),
    "embeddings": ("laion",),
    "clusters": ("semdedup", "parquet"),
}
SHARDS = {"shard_size": "10000", "seed": "0", "shuffle": "true", "workers": "1", "verify": "true"}


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp export`."""
    settings, words = read_arguments(arguments, (*FORMATS, *SHARDS, "format", "out", *STORES))
    if words:
        raise ConfigError(f"dbp export takes keep=KEY format=FORMAT out=FILE; {words[0]!r} is none of them")
    kinds = [kind for kind in FORMATS if kind in settings]
    if len(kinds) != 1:
        raise ConfigError("dbp export needs one of keep=KEY, embeddings=KEY, clusters=KEY; see --help")
    for name in ("format", "out"):
        if name not in settings:
            raise ConfigError(f"dbp export needs {name}=…; see dbp export --help")
    kind, form = kinds[0], settings["format"]
    if form not in FORMATS[kind]:
        raise ConfigError(f"format={form}: {nearest(form, FORMATS[kind])}")
    if form != "webdataset" and (extra := next((name for name in SHARDS if name in settings), None)):
        raise ConfigError(f"{extra}={settings[extra]} belongs to format=webdataset")
    store = Store(settings["paths.store"], settings["paths.runs"])
    out = Path(settings["out"])
    if not out.parent.is_dir():
        raise ConfigError(f"out={str(out)!r}: the folder {out.parent} does not exist. Make it first.")
    if form == "webdataset":
        print(_write_shards(store, settings[kind], out, SHARDS | settings))
    else:
        export = {"keep": export_keep, "embeddings": export_embeddings, "clusters": export_clusters}[kind]
        print(export(store, settings[kind], form, out))


def _write_shards(store: Store, key: str, out: Path, settings: dict[str, str]) -> str:
    numbers, switches = ("shard_size", "seed", "workers"), ("shuffle", "verify")
    for name in numbers:
        require(settings[name].isdecimal(), name, settings[name], "a whole number")
    for name in switches:
        require(settings[name] in ("true", "false"), name, settings[name], "true or false")
    values: dict[str, Any] = {name: int(settings[name]) for name in numbers}
    values |= {name: settings[name] == "true" for name in switches}
    entry, keep = open_keep_list(store, key)
    counts = write_shards(open_pool_of(store, entry), keep, out, **values)
    said = ", ".join(f"{name} {value:,}" for name, value in counts.items() if isinstance(value, int))
    return f"wrote keep list {keep.digest} to {out}: {said}"
