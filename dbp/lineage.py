"""What an artifact in the store rests on, found again from manifests."""

from dbp.data.index import Index
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.errors import StoreError
from dbp.store import Entry, Store


def lineage(store: Store, entry: Entry) -> list[Entry]:
    """The artifacts that one rests on, inputs first, itself last; those that are gone are left out."""
    found: dict[str, Entry] = {}

    def visit(current: Entry) -> None:
        for upstream in current.manifest["inputs"].values():
            if upstream["key"] not in found:
                try:
                    visit(store.find(upstream["key"]))
                except StoreError:
                    continue
        found[current.key] = current

    visit(entry)
    return list(found.values())


def open_keep_list(store: Store, key: str) -> tuple[Entry, KeepList]:
    """Load the keep list that a key names.

    Raises:
        StoreError: The artifact is no keep list.
    """
    entry = store.find(key)
    if not (entry.folder / "decisions.parquet").exists():
        raise StoreError(
            f"{key} is the artifact of stage {entry.stage}, no keep list. `dbp ls stage=select` "
            "lists keep lists."
        )
    return entry, KeepList.load(entry.folder)


def open_pool_of(store: Store, entry: Entry) -> Pool:
    """The pool that an artifact rests on.

    Raises:
        StoreError: Its index is no longer in the store.
    """
    for upstream in lineage(store, entry):
        if upstream.stage == Index.name:
            made = upstream.manifest
            shards = made["runtime"].get("shards") or ""
            rendered = made["inputs"].get("folder")
            if rendered:
                home = store.find(rendered["key"]).folder
                paths = [str(path) for path in sorted((home / "shards").glob("*.tar"))]
            else:
                from dbp.paths import expand_shards

                try:
                    paths = expand_shards(shards)
                except Exception:  # the index answers although the shards are away
                    paths = [str(shards)]
            parameters = made["parameters"]
            return Pool.load(
                upstream.folder, paths, parameters["caption"], parameters["max_pixels"]
            )
    raise StoreError(
        f"the index that {entry.key} rests on is no longer in {store.root}. Index the pool again "
        "with dbp curate … until=index."
    )
