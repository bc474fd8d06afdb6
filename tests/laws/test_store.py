"""The laws of the store: complete or absent, harmless to do twice, and honest about the disk."""

import dataclasses
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from dbp.curate import ValidRows
from dbp.engine.signs import host
from dbp.engine.stage import Node, Stage
from dbp.engine.store import Store
from dbp.engine.work import Work
from dbp.errors import StoreError
from dbp.pools.index import Index

DEAD = 2**22 + 1  # above the largest process number of Linux


@dataclass(frozen=True)
class Text:
    """What the toy stages make."""

    text: str

    @classmethod
    def load(cls, folder: Path) -> "Text":
        return cls("".join(file.read_text() for file in sorted(folder.glob("**/*.txt"))))


@dataclass(frozen=True)
class Write(Stage):
    """Write a word, or do what a test asks for."""

    name: ClassVar[str] = "write"
    makes: ClassVar[type] = Text

    act: ClassVar[Callable[[Work], Any] | None] = None  # no field: a function has no text

    word: str

    def run(self, work: Work) -> dict[str, Any]:
        (work.folder / "word.txt").write_text(self.word)
        if self.act:
            self.act(work)
        return {"rows": len(self.word), "by": threading.get_ident()}


@dataclass(frozen=True)
class Parts(Stage):
    """Write one part for each letter of a word."""

    name: ClassVar[str] = "parts"
    makes: ClassVar[type] = Text

    before: ClassVar[Callable[[int, Path], Any] | None] = None

    word: str

    def run(self, work: Work) -> dict[str, Any]:
        for number, letter in enumerate(self.word):

            def make(beside: Path, number: int = number, letter: str = letter) -> dict[str, Any]:
                if self.before:
                    self.before(number, beside)
                (beside / "letter.txt").write_text(letter)
                return {"rows": 1}

            assert work.part(f"part-{number}", make) == {"rows": 1}
            assert (work.shared / f"part-{number}" / "letter.txt").read_text() == letter
        return {"rows": len(self.word)}


def doing(stage: Stage, **acts: Callable[..., Any]) -> Stage:
    """The same stage, that does something more while it runs."""
    for name, act in acts.items():
        object.__setattr__(stage, name, act)
    return stage


@dataclass(frozen=True)
class Double(Stage):
    name: ClassVar[str] = "double"
    needs: ClassVar[tuple[str, ...]] = ("text",)
    makes: ClassVar[type] = Text

    def run(self, work: Work, text: Text) -> dict[str, Any]:
        (work.folder / "doubled.txt").write_text(2 * text.text)
        return {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def hidden(store: Store) -> list[str]:
    """What is left of work under way."""
    return [f.name for home in (store.root, store.runs) for f in home.glob(".*/*")]


def test_an_artifact_is_made_once_and_then_reused(store: Store) -> None:
    node = Double().bind(text=Write("ab").bind())
    assert store.get(node).text == "abab"
    again = Store(store.root)
    assert again.get(node).text == "abab"
    # What a finished artifact rests on is not even looked at.
    assert (len(store.built), len(again.built), len(again.reused)) == (2, 0, 1)
    assert hidden(store) == []


def test_a_finished_artifact_outlives_what_it_rests_on(store: Store) -> None:
    upstream = Write("ab").bind()
    node = Double().bind(text=upstream)
    store.get(node)
    shutil.rmtree(str(store.folder(upstream)))
    again = Store(store.root)
    assert again.get(node).text == "abab"
    assert again.built == []


def test_a_folder_without_a_manifest_is_no_artifact_and_is_made_again(store: Store) -> None:
    node = Write("ab").bind()
    store.get(node)
    folder = store.folder(node)
    assert folder is not None
    (folder / "manifest.json").unlink()
    assert store.entry(node) is None
    assert list(store.entries()) == []
    with pytest.raises(StoreError):
        store.find(folder.name[:6])
    again = Store(store.root)
    assert again.get(node).text == "ab"
    assert len(again.built) == 1


def test_a_manifest_that_is_cut_short_is_no_artifact_and_is_made_again(store: Store) -> None:
    node = Write("ab").bind()
    store.get(node)
    manifest = store.folder(node) / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    assert store.entry(node) is None
    assert Store(store.root).get(node).text == "ab"
    assert store.entry(node) is not None


def test_nothing_stands_under_its_name_until_all_of_it_is_written(store: Store) -> None:
    seen = []

    def look(work: Work) -> None:
        seen.append((list(store.entries()), (store.root / "write").exists()))

    store.get(doing(Write("ab"), act=look).bind())
    assert seen == [([], False)]


def test_a_stage_that_fails_leaves_no_artifact_and_the_next_try_succeeds(store: Store) -> None:
    def fail(work: Work) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        store.get(doing(Write("ab"), act=fail).bind())
    assert list(store.entries()) == []
    assert hidden(store) == []
    assert store.get(Write("ab").bind()).text == "ab"


def test_the_manifest_says_what_made_the_artifact(store: Store) -> None:
    upstream = Write("ab").bind()
    node = Double().bind(text=upstream)
    store.get(node)
    made = store.entry(node).manifest
    assert made["key"] == store.key(node)
    assert made["inputs"]["text"]["key"] == store.key(upstream)
    assert made["files"] == {"doubled.txt": 4}
    wanted = {"parameters", "counts", "seconds", "peak_memory_bytes", "versions", "command"}
    assert wanted <= set(made)
    first = store.entry(upstream).manifest
    assert first["parameters"] == {"word": "ab"}
    assert first["counts"]["rows"] == 2


# parts


def test_finished_parts_are_not_made_again_after_a_failure(store: Store) -> None:
    made: list[int] = []

    def fail_at_two(number: int, beside: Path) -> None:
        made.append(number)
        if number == 2 and made.count(2) == 1:
            raise OSError("the network went away")

    node = doing(Parts("abcd"), before=fail_at_two).bind()
    with pytest.raises(OSError, match="network"):
        store.get(node)
    assert store.get(node).text == "abcd"
    assert made == [0, 1, 2, 2, 3]
    assert hidden(store) == []


@pytest.mark.parametrize("damage", ["longer", "shorter", "gone", "more", "no record"])
def test_a_damaged_part_is_made_again(store: Store, damage: str) -> None:
    made: list[int] = []

    def fail_at_two(number: int, beside: Path) -> None:
        made.append(number)
        if made == [0, 1, 2]:
            raise OSError("the network went away")

    node = doing(Parts("abc"), before=fail_at_two).bind()
    with pytest.raises(OSError, match="network"):
        store.get(node)
    part = store.root / ".partial" / f"parts-{store.key(node)}" / "part-0"
    if damage in ("longer", "shorter"):
        (part / "letter.txt").write_text({"longer": "zz", "shorter": ""}[damage])
    elif damage == "gone":
        (part / "letter.txt").unlink()
    elif damage == "more":
        (part / "another.txt").write_text("zz")
    else:
        (part / "part.json").write_text("{")
    assert store.get(node).text == "abc"
    assert made == [0, 1, 2, 0, 2]


def test_parts_of_another_key_are_never_used(store: Store) -> None:
    def fail_at_two(number: int, beside: Path) -> None:
        if number == 2:
            raise OSError

    with pytest.raises(OSError):
        store.get(doing(Parts("abc"), before=fail_at_two).bind())
    assert store.get(Parts("xyz").bind()).text == "xyz"


# two writers of one key


def in_threads(*tasks: Callable[[], Any]) -> list[Any]:
    """Run tasks at the same time; the result of each, or what it raised."""
    results: list[Any] = [None] * len(tasks)

    def call(number: int) -> None:
        try:
            results[number] = tasks[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def test_two_writers_of_one_key_both_end_well_with_one_result(store: Store) -> None:
    barrier = threading.Barrier(2, timeout=10)
    nodes = [doing(Write("ab"), act=lambda work: barrier.wait()).bind() for _ in range(2)]
    found = in_threads(*[lambda n=n: Store(store.root).get(n) for n in nodes])
    assert found == [Text("ab"), Text("ab")]
    assert len(list(store.entries())) == 1
    assert hidden(store) == []


def test_two_writers_of_the_same_parts_both_end_well(store: Store) -> None:
    barrier = threading.Barrier(2, timeout=10)
    nodes = [doing(Parts("abc"), before=lambda number, beside: barrier.wait()).bind() for _ in range(2)]
    found = in_threads(*[lambda n=n: Store(store.root).get(n) for n in nodes])
    assert found == [Text("abc"), Text("abc")]
    assert len(list(store.entries())) == 1


@pytest.mark.parametrize("late_at", [0, 1, 2])
def test_a_writer_whose_parts_another_one_took_away_ends_with_the_other_s_result(
    store: Store, late_at: int
) -> None:
    other_is_done = threading.Event()
    started = threading.Event()

    def wait(number: int, beside: Path) -> None:
        if number == late_at:
            started.set()
            assert other_is_done.wait(10)

    def fast() -> Text:
        started.wait(10)
        try:
            return Store(store.root).get(Parts("abc").bind())
        finally:
            other_is_done.set()

    slow = Store(store.root)
    found = in_threads(lambda: slow.get(doing(Parts("abc"), before=wait).bind()), fast)
    assert found == [Text("abc"), Text("abc")]
    assert len(list(store.entries())) == 1


WRITER = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from dbp.engine.stage import Stage, runtime
from dbp.engine.store import Store
from dbp.engine.work import Work

@dataclass(frozen=True)
class Made:
    letters: str

    @classmethod
    def load(cls, folder):
        return cls("".join(f.read_text() for f in sorted(folder.glob("part-*/letter.txt"))))

@dataclass(frozen=True)
class Slow(Stage):
    name: ClassVar[str] = "slow"
    makes: ClassVar[type] = Made
    word: str
    seconds: float = runtime(0.0)

    def run(self, work: Work) -> dict[str, Any]:
        for number, letter in enumerate(self.word):
            def make(beside: Path) -> dict[str, Any]:
                (beside / "letter.txt").write_text(letter)
                time.sleep(self.seconds)
                return {"rows": 1}
            work.part(f"part-{number:02d}", make)
            print(number, flush=True)
        return {}

print(Store(sys.argv[1]).get(Slow(sys.argv[2], float(sys.argv[3])).bind()).letters)
"""


def start_writer(store: Store, word: str, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.root), word, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_processes_that_write_one_key_at_the_same_time_all_end_well(store: Store) -> None:
    writers = [start_writer(store, "abcdef", 0.01) for _ in range(3)]
    for writer in writers:
        out, err = writer.communicate(timeout=30)
        assert writer.returncode == 0, err
        assert out.splitlines()[-1] == "abcdef"
    assert len(list(store.entries())) == 1


def test_a_writer_that_is_killed_leaves_the_store_readable_and_its_parts_to_the_next(store: Store) -> None:
    killed = start_writer(store, "abcdef", 0.05)
    assert killed.stdout is not None
    while killed.stdout.readline().strip() != "2":
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(store.entries()) == []
    assert len([left for left in store.root.glob(".tmp/*") if left.is_dir()]) == 1
    out, err = start_writer(store, "abcdef", 0.0).communicate(timeout=30)
    assert out.splitlines()[-1] == "abcdef", err
    assert hidden(store) == []
    parts = store.root.glob("slow/*/part-*/letter.txt")
    untouched = [p for p in parts if p.stat().st_mtime < time.time() - 0.05]
    assert len(untouched) >= 3


# sweeping


def test_only_what_dead_writers_of_this_machine_left_is_swept(store: Store) -> None:
    here, mine = host(), os.getpid()
    names = {
        f"k1-{here}-{DEAD}-0123abcd": False,
        f"k2-{here}-{mine}-0123abcd": True,  # alive
        f"k3-another-machine-{DEAD}-0123abcd": True,
        "what-is-this": True,
        "README": True,
    }
    for name in names:
        (store.root / ".tmp" / name).mkdir(parents=True)
        (store.root / ".tmp" / name / "file").write_text("four")
    assert store.sweep() == 4
    assert {f.name: True for f in store.root.glob(".tmp/*")} == {n: True for n in names if names[n]}


def test_building_sweeps_first(store: Store) -> None:
    dead = store.root / ".tmp" / f"k-{host()}-{DEAD}-0123abcd"
    dead.mkdir(parents=True)
    store.get(Write("ab").bind())
    assert not dead.exists()


# finding


def test_an_artifact_is_found_by_the_beginning_of_its_key(store: Store) -> None:
    node = Write("ab").bind()
    store.get(node)
    key = store.key(node)
    assert store.find(key).key == key
    assert store.find(key[:5]).key == key


def test_a_beginning_that_names_several_artifacts_lists_them(store: Store) -> None:
    keys = set()
    for number in range(17):  # 16 first digits: two keys share theirs
        node = Write(str(number)).bind()
        store.get(node)
        keys.add(store.key(node))
    first = [key[0] for key in keys]
    common = max(first, key=first.count)
    with pytest.raises(StoreError) as refusal:
        store.find(common)
    said = str(refusal.value)
    assert said.startswith(f"key {common!r} names {first.count(common)} artifacts in {store.root}")
    assert f"write/{common}" in said
    assert said.endswith("Give more of the key.")


@pytest.mark.parametrize("key", ["feedfeed", "", "*", "**", "..", "[", "/"])
def test_a_key_that_names_nothing_says_where_to_look(store: Store, key: str) -> None:
    with pytest.raises(StoreError) as refusal:
        store.find(key)
    said = str(refusal.value)
    assert said.startswith(f"key {key!r} names 0 artifacts in {store.root}")
    assert "`dbp ls`" in said
    assert "paths.store" in said


# the disk


def test_a_full_disk_says_so_and_what_may_go(store: Store) -> None:
    def fill(work: Work) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError) as refusal:
        store.get(doing(Write("ab"), act=fill).bind())
    said = str(refusal.value)
    assert said.startswith(f"the disk of {store.root} is full: write could not be written.")
    assert "`dbp gc`" in said
    assert "paths.store=FOLDER" in said
    assert hidden(store) == []


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError) as refusal:
        store.get(Write("ab").bind())
    said = str(refusal.value)
    assert said.startswith(f"cannot write to the store {store.root}: Not a directory.")
    assert "paths.store=FOLDER" in said


def test_a_read_only_disk_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=r"cannot write to the store .*: Read-only file system\."):
        store.get(Write("ab").bind())


def test_results_of_runs_are_kept_apart_from_curation(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Run(Write):
        name: ClassVar[str] = "run"
        home: ClassVar[str] = "runs"

    store = Store(tmp_path / "store", tmp_path / "elsewhere")
    node = Run("ab").bind()
    store.get(node)
    assert store.folder(node).parents[1] == tmp_path / "elsewhere"
    assert store.find(store.key(node)).stage == "run"


# content-named artifacts


def write_shards(folder: Path, captions: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(captions):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            picture = io.BytesIO()
            Image.new("RGB", (4, 4), (number, 0, 0)).save(picture, "PNG")
            for name, content in (("png", picture.getvalue()), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{number}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def pool_node(folder: Path) -> Node:
    return Index(uid="key", caption="txt", max_pixels=100, shards=str(folder / "*.tar")).node()


def test_keys_downstream_of_a_pool_follow_its_content_and_not_its_place_or_time(
    store: Store, tmp_path: Path
) -> None:
    write_shards(tmp_path / "here", ("a cat", "a dog"))
    pool = pool_node(tmp_path / "here")
    rows = ValidRows().bind(pool=pool)
    assert store.key(rows) is None, "nobody knows the content before the index is read"
    store.get(rows)
    key, index_key = store.key(rows), store.key(pool)
    assert store.identity(pool) == store.entry(pool).manifest["digest"] != index_key

    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = pool_node(tmp_path / "there")
    assert store.key(there) == index_key, "moved shards need not be read again"

    for shard in (tmp_path / "there").glob("*.tar"):
        os.utime(shard, ns=(0, 0))
    touched = ValidRows().bind(pool=there)
    assert store.key(there) != index_key, "touched shards are read again"
    again = Store(store.root)
    again.get(touched)
    assert again.key(touched) == key, "and found to hold the same"
    assert again.built == [again.key(there)]

    write_shards(tmp_path / "there", ("a cat", "a cow"))
    again.get(touched)
    assert again.key(touched) != key


def test_a_pool_that_moved_is_read_where_it_is_now(store: Store, tmp_path: Path) -> None:
    write_shards(tmp_path / "here", ("a cat", "a dog"))
    store.get(pool_node(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Store(store.root)
    assert moved.get(pool_node(tmp_path / "there")).caption(1) == "a dog"
    assert moved.built == []


def test_entries_lists_each_artifact_once_by_stage(store: Store) -> None:
    for word in ("a", "b"):
        store.get(Double().bind(text=Write(word).bind()))
    assert [entry.stage for entry in store.entries()] == ["double"] * 2 + ["write"] * 2
    for entry in store.entries():
        manifest = json.loads((entry.folder / "manifest.json").read_text())
        assert manifest["key"] == entry.key == entry.folder.name
        assert entry.bytes == sum(manifest["files"].values()) > 0


def test_an_input_that_a_stage_does_not_need_or_lacks_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match=r"Double needs \['text'\]"):
        Double().bind()
    with pytest.raises(TypeError, match=r"Write has no input \['text'\]"):
        Write("a").bind(text=Write("b").bind())
    assert dataclasses.is_dataclass(Double().bind(text=None))
