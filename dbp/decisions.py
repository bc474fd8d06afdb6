"""The decision table on demand: what was compared with what, worked out again from the stage's inputs.

A keep list in the store says which stage let each row go and for which reason. The values behind that are
a pure function of the stage and its inputs, which the store holds, so nobody pays for them until they ask.
"""

from typing import Any

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.engine.stage import rebuild
from dbp.engine.store import Store
from dbp.errors import StoreError
from dbp.lineage import open_keep_list
from dbp.narrowing import Narrowing


def explained(store: Store, key: str) -> KeepList:
    """The keep list of a key, with the values behind the decisions of every stage before it.

    Where an artifact that a decision rests on is gone, its stage, the reason alone is left.

    Raises:
        StoreError: The key names no keep list.
    """
    entry, plain = open_keep_list(store, key)
    stage = rebuild(entry.manifest["made_by"])
    if not isinstance(stage, Narrowing):
        return plain
    try:
        inputs: dict[str, Any] = {
            name: explained(store, up["key"]) if name == "rows" else store.open(up["key"])
            for name, up in entry.manifest["inputs"].items()
        }
        found, _ = stage.decide(**inputs)
    except StoreError:
        return plain
    assert np.array_equal(found.mask, plain.mask), "a decision is a pure function of its inputs"
    return found
