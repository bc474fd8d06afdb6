"""Where artifacts live: key -> folder, committed by rename, the manifest written last.

    store/embed/3fa94c…/manifest.json, 00000.npy, …      complete, read-only by convention
    store/.partial/embed-3fa94c…/part-00007/             finished parts of work that was cut short
    store/.tmp/…                                         being written; a dead writer's is swept
    store/.tmp/….live                                    a writer's sign of life: its time, and what it rests on

A folder is an artifact if and only if it lies under its stage's name, because the rename comes after
everything in it is on disk. Two writers of one key both succeed: results are functions of the key, so
the one that comes second throws its own away. No locks.
"""

import contextlib
import datetime
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.engine.disk import sizes_of, sync, sync_folder, write_json
from dbp.engine.provenance import commit, gpu, peak_memory, versions
from dbp.engine.signs import BEAT, begin_beating, is_here, writer
from dbp.engine.stage import Node, Stage, describe, key_of, parameters, rebuild, runtime_parameters
from dbp.engine.work import Runner, Work
from dbp.errors import DbpError, StoreError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """A complete artifact as the store holds it."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def bytes(self) -> int:
        return sum(self.manifest["files"].values())


class Store:
    """Finds, builds and loads artifacts by what made them."""

    def __init__(
        self,
        root: Path | str,
        runs: Path | str | None = None,
        say: Callable[[str], None] = lambda line: None,
        runner: Runner | None = None,
        rate: "Callable[[Store, Node, Entry, bool], str] | None" = None,
    ) -> None:
        """Open a store.

        Args:
            root: Folder of curation's artifacts; made when something is first built.
            runs: Folder of training and evaluation results; beside the store when not given.
            say: Receives one line for each artifact that is reused or made.
            runner: Makes the parts of long stages; this process when there is none.
            rate: Says how fast a stage was made, for the end of its line.
        """
        self.root = Path(root).absolute()
        self.runs = Path(runs).absolute() if runs else self.root.parent / "runs"
        self.say = say
        self.runner = runner
        self.rate = rate
        self.loaded: dict[str, Any] = {}
        self._keys: dict[Node, str] | None = None
        self.built, self.reused = list[str](), list[str]()

    # names

    def identity(self, node: Node) -> str | None:
        """What downstream keys call this node: its key, or its content digest where it has one.

        None while a content-named artifact upstream has not been built.
        """
        key = self.key(node)
        if key is None or not node.stage.content_named:
            return key
        entry = self.entry(node)
        if entry is None:
            return None
        node.stage.accept(entry.manifest["counts"])
        return entry.manifest["digest"]

    def key(self, node: Node) -> str | None:
        """The node's key; None while the content it depends on is not known."""
        with self.steady() as keys:
            if node not in keys and (key := self._key(node)) is not None:
                keys[node] = key
            return keys.get(node)

    @contextlib.contextmanager
    def steady(self) -> Iterator[dict[Node, str]]:
        """Find each key once while the block runs.

        A key looks at every shard of the pool, which takes seconds for many; and a shard that changes
        under a run must not rename what the run makes.
        """
        outermost = self._keys is None
        self._keys = {} if self._keys is None else self._keys
        try:
            yield self._keys
        finally:
            if outermost:
                self._keys = None

    def _key(self, node: Node) -> str | None:
        inputs: dict[str, str] = {}
        for name, upstream in node.inputs.items():
            identity = self.identity(upstream)
            if identity is None:
                return None
            inputs[name] = identity
        return key_of(node.stage, inputs)

    def folder(self, node: Node) -> Path | None:
        """Where the node's artifact lies or would lie."""
        key = self.key(node)
        return None if key is None else self._home(node) / node.stage.name / key

    def _home(self, node: Node) -> Path:
        return self.runs if node.stage.home == "runs" else self.root

    # reading

    def entry(self, node: Node) -> Entry | None:
        """The node's artifact, if it is complete."""
        folder = self.folder(node)
        return _entry(folder) if folder else None

    def _accept(self, node: Node) -> None:
        """Let every stage that a finished artifact rests on refuse its own."""
        for up in node.lineage():
            if type(up.stage).accept is not Stage.accept and (entry := self.entry(up)) is not None:
                up.stage.accept(entry.manifest["counts"])

    def entries(self) -> Iterator[Entry]:
        """All complete artifacts, by stage and time."""
        for home in (self.root, self.runs):
            for manifest in sorted(home.glob(f"[!.]*/*/{MANIFEST}")):
                if entry := _entry(manifest.parent):
                    yield entry

    def find(self, key: str) -> Entry:
        """The artifact whose key begins with `key`.

        Raises:
            StoreError: None or several do; the message lists them.
        """
        found = [
            folder
            for home in (self.root, self.runs)
            for folder in home.glob("[!.]*/*")
            if folder.name.startswith(key) and (folder / MANIFEST).exists()
        ]
        if len(found) != 1 or not key:
            several = ", ".join(f"{f.parent.name}/{f.name}" for f in found[:5])
            raise StoreError(
                f"key {key!r} names {len(found)} artifacts in {self.root}"
                + (
                    f": {several}. Give more of the key."
                    if found
                    else ". `dbp ls` lists what is there; paths.store says which store to look in."
                )
            )
        entry = _entry(found[0])
        if entry is None:
            raise StoreError(f"{found[0] / MANIFEST} cannot be read. Remove that folder and rebuild.")
        return entry

    def open(self, key: str) -> Any:
        """Load a complete artifact by its key alone.

        Raises:
            StoreError: There is none, or this version cannot read it.
        """
        entry = self.find(key)
        if entry.key not in self.loaded:
            made = entry.manifest
            if "made_by" not in made:
                raise StoreError(
                    f"{entry.folder} was made by an older version, which did not record how to open it. "
                    "Build it again."
                )
            stage = rebuild(made["made_by"])
            needed = {
                name: self.open(made["inputs"][name]["key"]) for name in stage.opens_with if name in made["inputs"]
            }
            self.loaded[entry.key] = stage.open(entry.folder, **needed)
        return self.loaded[entry.key]

    def work_done(self) -> str:
        """How many artifacts were made and how many reused, for a verb's last line."""
        return f"{len(self.built)} made, {len(self.reused)} reused"

    # building

    def get(self, node: Node) -> Any:
        """The node's artifact; built, with what it rests on, where it is missing.

        What a complete artifact rests on is neither built nor read, so that embeddings may be deleted
        once the keep lists are made.
        """
        with self.steady():
            return self._get(node)

    def _get(self, node: Node) -> Any:
        key, entry = self.key(node), self.entry(node)
        if entry is not None:
            self._accept(node)
        if key in self.loaded:
            return self.loaded[key]
        if entry is None:
            inputs = {name: self._get(upstream) for name, upstream in node.inputs.items()}
            key = self.key(node)
            assert key is not None, "inputs are built, so their identities are known"
            entry = self.entry(node)  # an index built just now may name what is there already
        assert key is not None, "a complete artifact has a key"
        if entry is None:
            was_begun = self.shared(node, key).exists()
            entry = self._build(node, key, inputs)
            self.built.append(key)
            rate = self.rate(self, node, entry, was_begun) if self.rate else ""
            self.say(
                f"{node.stage.name:<10} {key[:12]}  made in {entry.manifest['seconds']:.1f} s{rate}  "
                f"{_short(entry.manifest['counts'])}"
            )
        else:
            self.reused.append(key)
            self.say(f"{node.stage.name:<10} {key[:12]}  reused")
        needed = {name: self._get(node.inputs[name]) for name in node.stage.opens_with if name in node.inputs}
        artifact = node.stage.open(entry.folder, **needed)
        self.loaded[key] = artifact
        return artifact

    def _build(self, node: Node, key: str, inputs: dict[str, Any]) -> Entry:
        stage, home = node.stage, self._home(node)
        final = home / stage.name / key
        beside = home / ".tmp" / f"{key}-{writer()}"
        shared = self.shared(node, key)
        try:
            self.sweep()
            beside.mkdir(parents=True)
            stop = self.live(node, beside)
        except OSError as error:
            raise StoreError(
                f"cannot write to the store {home}: {error.strerror or error}. Give a folder that "
                "can be written with paths.store=FOLDER (and paths.runs=FOLDER)."
            ) from error
        work = Work(beside, shared, key, self.runner, self.job(node, key))
        began, cpu = time.time(), time.process_time()
        try:
            counts = stage.run(work, **inputs)
            stage.accept(counts)
            work.collect()
            digest = counts.pop("digest", None)
            write_json(
                beside / MANIFEST,
                {
                    "key": key,
                    "stage": stage.name,
                    "version": stage.version,
                    "parameters": parameters(stage),
                    "made_by": describe(stage),
                    "source": stage.source(),
                    "runtime": runtime_parameters(stage),
                    "inputs": {
                        name: {"stage": up.stage.name, "key": self.key(up), "identity": self.identity(up)}
                        for name, up in node.inputs.items()
                    },
                    "digest": digest,
                    "counts": counts,
                    "seconds": round(time.time() - began, 3),
                    "cpu_seconds": round(time.process_time() - cpu, 3),
                    "peak_memory_bytes": peak_memory(),
                    "files": sizes_of(beside),
                    "crc32": work.checksums(),
                    "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "command": sys.argv,
                    "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
                    "gpu": gpu(),
                    "versions": versions(),
                    "commit": commit(),
                },
            )
            sync(beside)
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                beside.rename(final)
            except OSError:
                if _entry(final) is not None:
                    shutil.rmtree(beside, ignore_errors=True)  # another writer was first
                elif final.exists():  # damaged by hand: no manifest
                    shutil.rmtree(final)
                    beside.rename(final)
                else:
                    raise
            sync_folder(final.parent)
        except Exception as error:
            was_removed = work.was_removed
            shutil.rmtree(beside, ignore_errors=True)
            if (entry := _entry(final)) is not None:
                return entry  # another writer was first, and took the shared parts away
            if was_removed and not isinstance(error, DbpError):
                raise StoreError(
                    f"{stage.name} {key[:12]} stopped: its working folder ({beside}, or {shared}) was removed "
                    "while it ran. Run the same command again; parts and checkpoints that are left are reused. "
                    "`dbp gc` leaves the folders of live runs alone."
                ) from error
            if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
                raise StoreError(
                    f"the disk of {home} is full: {stage.name} could not be written. Free space "
                    "(`dbp gc` says what may go) or give another folder with paths.store=FOLDER."
                ) from error
            raise
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        finally:
            stop()
        with contextlib.suppress(OSError):
            # At once, so that a slower writer cannot end with half of its parts.
            shared.rename(beside)
            shutil.rmtree(beside, ignore_errors=True)
        entry = _entry(final)
        assert entry is not None
        return entry

    def shared(self, node: Node, key: str) -> Path:
        """Where the finished parts of a node's unfinished artifact lie."""
        return self._home(node) / ".partial" / f"{node.stage.name}-{key}"

    def live(self, node: Node, desk: Path) -> Callable[[], None]:
        """Give signs of life for who makes a node, until the returned function is called."""
        return begin_beating(desk, {str(self.key(up)) for up in node.lineage()} | self.loaded.keys())

    def job(self, node: Node, key: str) -> dict[str, Any]:
        """What another process needs to make parts of a node's artifact."""
        return {
            "store": str(self.root),
            "runs": str(self.runs),
            "stage": describe(node.stage),
            "key": key,
            "inputs": {name: self._opening(up) for name, up in node.inputs.items()},
        }

    def _opening(self, node: Node) -> dict[str, Any]:
        """How another process opens an artifact: as this one does, since a pool may have moved."""
        up = {n: self._opening(node.inputs[n]) for n in node.stage.opens_with if n in node.inputs}
        return {"key": self.key(node), "stage": describe(node.stage), "inputs": up}

    def sweep(self) -> int:
        """Remove what dead writers on this machine left half-written; return the bytes freed."""
        freed = 0
        for home in (self.root, self.runs):
            for left in home.glob(".tmp/*"):
                if is_here(left.name) is False:
                    with contextlib.suppress(OSError):  # another process sweeps, too
                        freed += sum(sizes_of(left).values())
                    shutil.rmtree(left, ignore_errors=True)
                    if left.name.endswith(BEAT):
                        left.unlink(missing_ok=True)
            for parts in home.glob(".partial/*"):  # of what is complete: its writer was killed then
                stage, _, key = parts.name.rpartition("-")
                if (home / stage / key / MANIFEST).exists():
                    shutil.rmtree(parts, ignore_errors=True)
        return freed


def _entry(folder: Path) -> Entry | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return Entry(folder, manifest)


def _short(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items() if isinstance(n, int))
