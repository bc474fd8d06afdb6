"""Write a keep list for other tools.

    dbp export keep=KEY format=datacomp|txt|parquet out=FILE

`datacomp` is a sorted `<u8,u8` .npy of 128-bit uids; `txt` a uid a line; `parquet` row, uid, shard, key.
"""

from pathlib import Path

from dbp.data.exchange import write_uid_file
from dbp.errors import ConfigError, nearest
from dbp.lineage import open_keep_list, open_pool_of
from dbp.show import read_arguments
from dbp.store import Store

FORMATS = ("datacomp", "txt", "parquet")


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp export`."""
    settings, words = read_arguments(
        arguments, ("keep", "format", "out", "paths.store", "paths.runs")
    )
    if words:
        raise ConfigError(
            f"dbp export takes keep=KEY format=FORMAT out=FILE; {words[0]!r} is none of them"
        )
    for name in ("keep", "format", "out"):
        if name not in settings:
            raise ConfigError(f"dbp export needs {name}=…; see dbp export --help")
    if settings["format"] not in FORMATS:
        raise ConfigError(f"format={settings['format']}: {nearest(settings['format'], FORMATS)}")
    store = Store(settings.get("paths.store", "./store"), settings.get("paths.runs", "./runs"))
    entry, keep = open_keep_list(store, settings["keep"])
    pool = open_pool_of(store, entry)
    out = Path(settings["out"])
    if not out.parent.is_dir():
        raise ConfigError(
            f"out={str(out)!r}: the folder {out.parent} does not exist. Make it first."
        )
    uids = pool.uids(keep.rows)
    beside = out.with_name(f".{out.name}.tmp")
    if settings["format"] == "datacomp":
        write_uid_file(out, uids)
    elif settings["format"] == "txt":
        if broken := next((uid for uid in uids if "\n" in uid or "\r" in uid), None):
            raise ConfigError(
                f"uid {broken!r} holds a line break, so a list of one uid a line cannot "
                "hold it. Export format=parquet."
            )
        beside.write_text("".join(f"{uid}\n" for uid in uids), encoding="utf-8")
        beside.rename(out)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        chosen = pool.table.take(pa.array(keep.rows)).select(["uid", "shard", "key"])
        shards = pa.array(
            [
                Path(pool.shards[s]).name if s < len(pool.shards) else str(s)
                for s in chosen["shard"].to_pylist()
            ]
        )
        pq.write_table(
            pa.table(
                {"row": keep.rows, "uid": chosen["uid"], "shard": shards, "key": chosen["key"]}
            ),
            beside,
        )
        beside.rename(out)
    print(f"wrote {len(uids):,} uids of keep list {entry.key} to {out}")
