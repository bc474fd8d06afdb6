"""Free space in the store.

    dbp gc                              list what may go, what is in use, what can be resumed; remove nothing
    dbp gc delete=true                  remove half-written work of dead processes
    dbp gc delete=true name=NAME[,NAME] also unfinished work that could be resumed: parts, checkpoints of runs
    dbp gc delete=true keep=KEY[,KEY]   also every artifact that none of these keys, and no live run, rests on

NAME is a folder as listed (`train-3fa94c…`), or the beginning of its key. What a live run writes stays, whether it
runs on this machine or on another one that sees the store; one on another machine counts as dead when it gave no
sign of life for an hour. `paths.store=FOLDER` and `paths.runs=FOLDER` say which store.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dbp.config import require
from dbp.engine.signs import BEAT, disk_time, is_live
from dbp.engine.store import Store
from dbp.engine.work import PART
from dbp.errors import StoreError, nearest
from dbp.lineage import lineage
from dbp.verbs.show import STORES, no_words, read_arguments

SETTINGS = ("delete", "keep", "name", *STORES)
MAY_GO, IN_USE, RESUMABLE = "may go", "in use", "can be resumed"


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp gc`."""
    settings, words = read_arguments(arguments, SETTINGS)
    no_words(verb, words, SETTINGS)
    delete = settings.get("delete", "false")
    require(delete in ("true", "false"), "delete", delete, "true or false")
    keep, names = (list(filter(None, settings.get(name, "").split(","))) for name in ("keep", "name"))
    gc(Store(settings["paths.store"], settings["paths.runs"]), delete == "true", keep, names)


def gc(store: Store, delete: bool, keep: list[str], names: list[str]) -> None:
    """List what may go, and remove it when told to.

    Args:
        keep: Keys; other artifacts may go. None: all artifacts stay.
        names: Of unfinished work that may go, although it could be resumed.

    Raises:
        StoreError: A name is that of nothing unfinished, or of a live run's work; nothing is removed then.
    """
    found = {path: what for home in (store.root, store.runs) for path, what in _under_way(home)}
    for name in names:
        found |= dict.fromkeys(_named(found, name), MAY_GO)
    if keep:
        needed = {e.key for key in keep for e in lineage(store, store.find(key))}
        in_use = _read_by_live_runs(found)
        for entry in store.entries():
            if entry.key not in needed:
                found[entry.folder] = IN_USE if entry.key in in_use else MAY_GO
    count: dict[str, tuple[int, int]] = dict.fromkeys((MAY_GO, IN_USE, RESUMABLE), (0, 0))
    for path, what in found.items():
        size = sum(sizes_under(path))
        count[what] = count[what][0] + 1, count[what][1] + size
        said = "removed" if delete and what == MAY_GO else what
        print(f"{said:<14}  {size / 1e6:>10,.1f} MB  {path}{_content(path) if what == RESUMABLE else ''}")
        if delete and what == MAY_GO:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            path.with_name(path.name + BEAT).unlink(missing_ok=True)
    (folders, freed), (live, _), (left, unfinished) = count.values()
    done = "removed" if delete else "may go (say delete=true to remove)"
    print(f"{folders} folders, {freed / 1e6:,.1f} MB {done}")
    if live:
        print(f"{live} folders of live runs stay")
    if left:
        print(f"{left} folders, {unfinished / 1e6:,.1f} MB can be resumed: name=NAME names those that may go")


def sizes_under(folder: Path) -> Iterator[int]:
    """Bytes of the files under a folder that somebody may be writing, or of a file."""
    for place, _, files in os.walk(folder) if folder.is_dir() else [(folder.parent, (), (folder.name,))]:
        for file in files:
            with contextlib.suppress(OSError):
                yield os.stat(os.path.join(place, file)).st_size


def _under_way(home: Path) -> Iterator[tuple[Path, str]]:
    """The folders of a store's work under way: in use, left by dead processes, or to be resumed."""
    now, live = disk_time(home), set[str]()
    writers = {path.with_name(path.name.removesuffix(BEAT)) for path in home.glob(".tmp/*")}
    for path in sorted(writers):
        if is_live(path, now):
            live.add(path.name.partition("-")[0])
            yield path, IN_USE
        else:
            yield path, MAY_GO
    for parts in sorted(home.glob(".partial/*")):
        stage, _, key = parts.name.rpartition("-")
        if key in live or any(is_live(desk, now) for desk in parts.glob(".*@*")):
            yield parts, IN_USE
        else:
            # Of what is complete, parts are rubbish: the writer was killed before it removed them.
            yield parts, MAY_GO if (home / stage / key / "manifest.json").exists() else RESUMABLE


def _named(found: dict[Path, str], name: str) -> list[Path]:
    """The unfinished work that a name means."""
    parts = {path: what for path, what in found.items() if path.parent.name == ".partial"}
    fits = [path for path in parts if path.name == name or path.name.rpartition("-")[2].startswith(name)]
    if len(fits) != 1:
        names = ", ".join(path.name for path in fits[:5]) or nearest(name, (path.name for path in parts))
        raise StoreError(
            f"name={name} names {len(fits)} folders of unfinished work: "
            + (names if parts else "there is none. paths.store and paths.runs say which store to look in.")
        )
    if parts[fits[0]] == IN_USE:
        raise StoreError(
            f"name={name}: {fits[0]} is in use by a live run, and nothing was removed. Stop that run first; on "
            "another machine it counts as dead an hour after its last sign of life."
        )
    return fits


def _read_by_live_runs(found: dict[Path, str]) -> set[str]:
    """Keys of the artifacts that live runs rest on."""
    keys = set[str]()
    for path, what in found.items():
        if what == IN_USE:
            with contextlib.suppress(OSError, ValueError):
                keys.update(json.loads(path.with_name(path.name + BEAT).read_text()))
    return keys


def _content(parts: Path) -> str:
    checkpoints, finished = (len(list(parts.glob(what))) for what in ("checkpoint-*.ckpt", f"[!.]*/{PART}"))
    counts = {"checkpoints": checkpoints, "finished parts": finished}
    said = ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)
    return f"  ({said})" if said else ""
