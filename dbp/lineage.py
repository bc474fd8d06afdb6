"""What an artifact in the store rests on, found again from manifests."""

import re

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.store import Entry, Store
from dbp.errors import StoreError
from dbp.names import name_of, word_of


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


def score_name(entry: Entry) -> str:
    """What a score is, by its artifact: `clip_score`, also of a column of CLIP scores; else its column or word."""
    made = entry.manifest["made_by"]
    column = str(made.get("column", ""))
    if name_of(made["_target_"]) == "score/clip" or re.search(r"clip.*similarity", column):
        return "clip_score"
    return column or word_of(made["_target_"])


def open_keep_list(store: Store, key: str) -> tuple[Entry, KeepList]:
    """Load the keep list that a key names.

    Raises:
        StoreError: The artifact is no keep list.
    """
    entry = store.find(key)
    keep = store.open(entry.key)
    if not isinstance(keep, KeepList):
        raise StoreError(
            f"{key} is the artifact of stage {entry.stage}, no keep list. `dbp ls stage=select` lists keep lists."
        )
    return entry, keep


def open_pool_of(store: Store, entry: Entry) -> Pool:
    """The pool that an artifact rests on.

    Raises:
        StoreError: Its index is no longer in the store.
    """
    for upstream in lineage(store, entry):
        if upstream.stage == "index":
            return store.open(upstream.key)
    raise StoreError(
        f"the index that {entry.key} rests on is no longer in {store.root}. Index the pool again "
        "with dbp curate … until=index."
    )
