"""Look into the store.

    dbp show KEY                  an artifact's manifest, lineage and counts
    dbp why UID keep=KEY          why a sample stayed or went
    dbp ls [stage=NAME]           what the store holds

`paths.store=FOLDER` and `paths.runs=FOLDER` say which store; keys may be shortened.
"""

import json
from typing import Any

import numpy as np

from dbp.decisions import explained
from dbp.engine.store import Store
from dbp.errors import ConfigError, nearest
from dbp.lineage import lineage, open_keep_list, open_pool_of

STORES = {"paths.store": "./store", "paths.runs": "./runs"}
SETTINGS = {"show": (*STORES,), "why": ("keep", *STORES), "ls": ("stage", *STORES)}


def main(verb: str, arguments: list[str]) -> None:
    """Run one of the verbs show, why, ls."""
    settings, words = read_arguments(arguments, SETTINGS[verb])
    store = Store(settings["paths.store"], settings["paths.runs"])
    if verb == "ls":
        no_words(verb, words, SETTINGS[verb])
    if verb in ("show", "why") and len(words) != 1:
        raise ConfigError(f"dbp {verb} takes one {'KEY' if verb == 'show' else 'UID'}; given: {words}")
    if verb == "show":
        show(store, words[0])
    elif verb == "why":
        if "keep" not in settings:
            raise ConfigError("dbp why needs keep=KEY, the key of a keep list; `dbp ls stage=select` lists them")
        why(store, words[0], settings["keep"])
    else:
        ls(store, settings.get("stage"))


def read_arguments(arguments: list[str], known: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Divide `key=value` settings from plain words; a word with an unknown key is a word.

    `paths.store` and `paths.runs` have the defaults of the config.
    """
    settings = {name: value for name, value in STORES.items() if name in known}
    words: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in known:
            settings[name] = value
        elif equals and "/" not in name and not words and len(arguments) > 1 and " " not in name:
            raise ConfigError(f"{name} is not a setting here. {nearest(name, known)}")
        else:
            words.append(argument)
    return settings, words


def no_words(verb: str, words: list[str], known: tuple[str, ...]) -> None:
    """Refuse words where a verb has settings alone."""
    if words:
        name = words[0].partition("=")[0]
        raise ConfigError(f"{name} is not a setting of dbp {verb}. {nearest(name, known)}")


def show(store: Store, key: str) -> None:
    """Print an artifact's manifest and what it rests on."""
    entry = store.find(key)
    print(json.dumps(entry.manifest, indent=2))
    print("\nlineage, inputs first:")
    for upstream in lineage(store, entry):
        made = upstream.manifest
        print(f"  {made['stage']:<10} {made['key']}  {made['seconds']:>8.1f} s  {_counts(made['counts'])}")
    print(f"{entry.stage} {entry.key} in {entry.folder}")


def why(store: Store, uid: str, keep: str) -> None:
    """Print why a sample stayed or went."""
    entry, _ = open_keep_list(store, keep)
    pool = open_pool_of(store, entry)
    row = pool.row_of(uid)
    found = explained(store, entry.key).decision(row)
    verdict = "stayed" if found["kept"] else "went"
    print(f"{uid} (row {row:,}) {verdict} at {found['stage']}: {found['reason']}")
    if found["weight"] not in (None, 1):
        mean = " on average" if found["weight"] % 1 else ""
        print(f"  stands in an epoch of training {found['weight']:g} times{mean}")
    twin = found["related_row"]
    if twin is not None and found["stage"] == "dedup":
        name = pool.uids(np.array([twin]))[0]
        similar = f" at similarity {found['value']:.6f}, above {found['limit']:.6f}" if found["value"] else ""
        print(
            f"  duplicate of {name} (row {twin:,}){similar}"
            if not found["kept"]
            else f"  nearest earlier row: {name} (row {twin:,}){similar.replace(', above', ', not above')}"
        )
    elif found["value"] is not None:
        limit = f", limit {found['limit']:.6f}" if found["limit"] is not None else ""
        what = "distance to centroid" if found["cluster"] is not None else "value"
        print(f"  {what} {found['value']:.6f}{limit}")
    if found["cluster"] is not None and found["rank"] is not None:
        print(f"  cluster {found['cluster']}, rank {found['rank']:,} (0 is taken first), quota {found['quota']:,}")
    elif found["rank"] is not None:
        print(f"  rank {found['rank']:,} (0 is taken first), {found['quota']:,} kept")


def ls(store: Store, stage: str | None) -> None:
    """Print a line for each artifact."""
    every = list(store.entries())
    entries = [e for e in every if stage is None or e.stage == stage]
    if every and not entries:
        print(f"no artifact of stage {stage}. {nearest(str(stage), {e.stage for e in every})}")
    for entry in entries:
        made = entry.manifest
        print(
            f"{made['stage']:<10} {made['key']}  {made['created'][:16]}  {entry.bytes / 1e6:>10,.1f} MB  "
            f"{_counts(made['counts'])}"
        )
    total = sum(entry.bytes for entry in entries)
    print(f"{len(entries)} artifacts, {total / 1e6:,.1f} MB, in {store.root} and {store.runs}")


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(
        f"{n} {v:,}" if isinstance(v, int) else f"{n} {v}" for n, v in counts.items() if not isinstance(v, dict)
    )[:160]
