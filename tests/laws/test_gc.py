"""`dbp gc`: what a live run needs stays, what can be resumed goes by name, the rest of dead writers goes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dbp.__main__ import main
from dbp.engine.signs import LAPSE_SECONDS, disk_time, host, writer
from dbp.engine.stage import Stage
from dbp.engine.store import Store
from dbp.engine.work import Work
from dbp.errors import StoreError
from dbp.verbs.gc import gc

DEAD = 2**22 + 1  # above the largest process number of Linux

RUN = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from dbp.engine.stage import Stage
from dbp.engine.store import Store
from dbp.errors import StoreError

class Text:
    load = classmethod(lambda cls, folder: (folder / "word.txt").read_text())

@dataclass(frozen=True)
class Base(Stage):
    name: ClassVar[str] = "base"
    makes: ClassVar[type] = Text
    def run(self, work):
        (work.folder / "word.txt").write_text("base")
        return {}

@dataclass(frozen=True)
class Slow(Stage):
    name: ClassVar[str] = "slow"
    makes: ClassVar[type] = Text
    needs: ClassVar[tuple[str, ...]] = ("base",)
    def run(self, work, base):
        work.part("part-0", lambda folder: (folder / "a").write_text("a") and {})
        print("begun", flush=True)
        while not Path(sys.argv[2]).exists():
            time.sleep(0.02)
        work.part("part-1", lambda folder: (folder / "b").write_text("b") and {})
        (work.folder / "word.txt").write_text("slow")
        return {}

try:
    print(Store(sys.argv[1]).get(Slow().bind(base=Base().bind())))
except StoreError as error:
    print("StoreError:", error)
"""


@dataclass(frozen=True)
class Word(Stage):
    name: ClassVar[str] = "word"
    makes: ClassVar[type] = Path
    word: str

    def run(self, work: Work) -> dict[str, Any]:
        (work.folder / "word.txt").write_text(self.word)
        return {}

    def open(self, folder: Path, **needed: Any) -> str:
        return (folder / "word.txt").read_text()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store")


@contextmanager
def live_run(store: Store) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run in the middle of its work, and the file that lets it go on."""
    go = store.root.parent / "go"
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(store.root), str(go)], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "begun\n"
        yield run, go
    finally:
        run.kill()
        run.communicate()


def finished(run: subprocess.Popen[str], go: Path) -> str:
    go.touch()
    return run.communicate(timeout=60)[0]


def folder(store: Store, name: str, age: float = 0.0, beat: float | None = None) -> Path:
    """A folder with a file, both changed so many seconds ago, and its sign of life."""
    made = store.root / name
    made.mkdir(parents=True)
    (made / "file").write_text("four")
    now = disk_time(store.root)
    for path in (made / "file", made):
        os.utime(path, (now - age, now - age))
    if beat is not None:
        sign = made.with_name(made.name + ".live")
        sign.write_text("[]")
        os.utime(sign, (now - beat, now - beat))
    return made


def test_a_live_run_of_this_machine_ends_well_while_everything_else_is_removed(store: Store, capsys: Any) -> None:
    other = store.get(Word("other").bind())
    key = next(store.entries()).key
    store.get(Word("more").bind())
    assert other == "other"
    with live_run(store) as (run, go):
        gc(store, delete=True, keep=[key], names=[])
        said = capsys.readouterr().out
        assert finished(run, go) == "slow\n"
    assert "live runs" in said
    stages = sorted(entry.stage for entry in store.entries())
    assert stages == ["base", "slow", "word"], "what the run rests on stayed, too"


def test_a_run_of_another_machine_lives_while_it_gives_signs(store: Store) -> None:
    """Neither its process number nor its clock counts: files are as old as the disk says."""
    late, soon = 2 * LAPSE_SECONDS, LAPSE_SECONDS / 2
    beating = folder(store, f".tmp/k1-node7-{DEAD}-0123abcd", age=late, beat=soon)
    silent = folder(store, f".tmp/k2-node7-{os.getpid()}-0123abcd", age=late, beat=late)
    writing = folder(store, f".tmp/k3-node7-{DEAD}-0123abcd", age=soon)  # an older version: no sign of its own
    parts = folder(store, ".partial/embed-k1", age=late)
    desk = folder(store, f".partial/embed-k4/.part-0@node-7-{DEAD}-0123abcd", age=soon)
    gc(store, delete=True, keep=[], names=[])
    assert [path.exists() for path in (beating, silent, writing, parts, desk)] == [True, False, True, True, True]
    assert not silent.with_name(silent.name + ".live").exists()
    for name in ("embed-k1", "embed-k4"):
        with pytest.raises(StoreError, match=rf"name={name}.*in use by a live run"):
            gc(store, delete=True, keep=[], names=[name])
    assert parts.exists()


@pytest.mark.parametrize("name", ["vm", "vm-999999", "vm-999999-12345678", "node7.cluster-a.org"])
def test_the_process_in_each_name_that_is_made_is_found_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    from dbp.engine import signs

    monkeypatch.setattr(signs.socket, "gethostname", lambda: name)
    monkeypatch.setattr(signs.os, "getpid", lambda: DEAD)
    desk = Work(tmp_path / "a" / "b", tmp_path / ".partial" / "embed-0a1b", "0a1b")._beside("part-0000001")
    for made in (desk.name, f"0a1b-{writer()}", f"0a1b-{writer()}.live"):
        assert signs.is_here(made) is False, made
        assert signs.is_here(made.replace(str(DEAD), str(os.getppid()))) is True
        assert signs.is_here(made.replace(name, f"other-{name}", 1)) is None


def test_a_dead_desk_of_this_machine_blocks_nothing(store: Store) -> None:
    desk = folder(store, f".partial/embed-k4/.part-0000001@{host()}-{DEAD}-0123abcd", age=1.0)
    gc(store, delete=True, keep=[], names=["embed-k4"])
    assert not desk.exists()


def test_a_stray_file_goes_when_it_is_old(store: Store, capsys: Any) -> None:
    (store.root / ".tmp").mkdir(parents=True)
    old, new = store.root / ".tmp/old.txt", store.root / ".tmp/new.txt"
    for path, age in ((old, 2 * LAPSE_SECONDS), (new, 1.0)):
        path.write_bytes(bytes(3_000_000))
        then = disk_time(store.root) - age
        os.utime(path, (then, then))
    gc(store, delete=True, keep=[], names=[])
    assert [path.exists() for path in (old, new)] == [False, True]
    assert "1 folders, 3.0 MB removed" in capsys.readouterr().out


def test_a_host_whose_name_ends_like_ours_is_another_one(store: Store) -> None:
    """Its process numbers are not ours."""
    theirs = folder(store, f".tmp/k1-my-{host()}-{DEAD}-0123abcd", age=1.0, beat=1.0)
    Store(store.root).sweep()
    gc(store, delete=True, keep=[], names=[])
    assert theirs.exists()


def test_what_can_be_resumed_is_listed_apart_and_goes_by_name_alone(store: Store, capsys: Any) -> None:
    run = folder(store, ".partial/train-abcdef", age=3 * LAPSE_SECONDS)
    (run / "checkpoint-000000000064.ckpt").write_bytes(bytes(8))
    stage = folder(store, ".partial/embed-fedcba", age=0.0)
    (stage / "part-0").mkdir()
    (stage / "part-0" / "part.json").write_text("{}")
    gc(store, delete=True, keep=[], names=[])
    said = capsys.readouterr().out
    assert run.exists()
    assert stage.exists()
    assert "1 checkpoints" in next(line for line in said.splitlines() if "train-abcdef" in line)
    assert "1 finished parts" in next(line for line in said.splitlines() if "embed-fedcba" in line)
    gc(store, delete=False, keep=[], names=["abc"])
    assert run.exists()
    gc(store, delete=True, keep=[], names=["abc"])
    assert not run.exists()
    assert stage.exists()
    gc(store, delete=True, keep=[], names=["embed-fedcba"])
    assert not stage.exists()


def test_a_wrong_name_removes_nothing(store: Store, capsys: Any) -> None:
    stage = folder(store, ".partial/embed-fedcba")
    dead = folder(store, f".tmp/k1-{host()}-{DEAD}-0123abcd")
    place = f"paths.store={store.root}"
    assert main(["gc", "delete=true", "name=embed-fedcbb", place]) == 1
    assert "embed-fedcba" in capsys.readouterr().err, "what is there is named"
    assert stage.exists()
    assert dead.exists()
    assert main(["gc", "delete=true", place]) == 0
    assert not dead.exists()


def test_parts_of_a_complete_artifact_are_rubbish(store: Store) -> None:
    store.get(Word("ab").bind())
    left = folder(store, f".partial/word-{next(store.entries()).key}")
    gc(store, delete=True, keep=[], names=[])
    assert not left.exists()


@pytest.mark.parametrize("which", [".tmp", ".partial"])
def test_a_run_whose_folder_was_removed_ends_with_one_clear_line(store: Store, which: str) -> None:
    with live_run(store) as (run, go):
        shutil.rmtree(store.root / which)
        said = finished(run, go)
    assert said.count("\n") == 1
    assert said.startswith("StoreError: slow ")
    assert "was removed while it ran" in said
    assert "Run the same command again" in said
    assert list(store.root.glob(".tmp/*")) == []


def test_a_writer_gives_signs_of_life_and_takes_them_away(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dbp.engine import signs

    monkeypatch.setattr(signs, "BEAT_SECONDS", 0.01)
    (tmp_path / "home").mkdir()
    with signs.at_work(tmp_path / "home/.partial/embed-abc", ["key"]):
        (sign,) = (tmp_path / "home/.tmp").iterdir()
        assert json.loads(sign.read_text()) == ["key"]
        os.utime(sign, (0, 0))
        until = time.monotonic() + 30
        while sign.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert sign.stat().st_mtime > 0
    assert list((tmp_path / "home/.tmp").iterdir()) == []
