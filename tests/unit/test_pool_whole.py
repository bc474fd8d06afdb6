"""Shards that are missing, counts that disagree, files that are not samples: each is reported and adds up."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_init import pairs, picture, write_tar

from dbp.__main__ import main
from dbp.engine.store import Store
from dbp.errors import PoolError
from dbp.pools.index import DAMAGED, DOTTED, Index
from dbp.pools.looking import lines_of, look
from dbp.pools.suggestion import suggest
from dbp.pools.whole import counts_beside, found_again, gaps


def index(shards, **settings):
    settings = {"uid": "key", "caption": "txt", "max_pixels": 10**7} | settings
    return Index(shards=shards if isinstance(shards, list) else str(shards), **settings).node()


def counts(store: Store, node) -> dict:
    store.get(node)
    return store.entry(node).manifest["counts"]  # type: ignore[union-attr]


def img2dataset(folder: Path, shard: int, number: int, failed: int = 2) -> Path:
    """A tar of some samples with the two files that img2dataset writes beside it."""
    tar = write_tar(folder / f"{shard:05d}.tar", pairs(number, 100 * shard))
    stats = {"count": number + failed, "successes": number, "failed_to_download": failed}
    tar.with_name(f"{tar.stem}_stats.json").write_text(json.dumps(stats))
    status = ["success"] * number + ["failed_to_download"] * failed
    pq.write_table(
        pa.table({"key": [str(n) for n in range(number + failed)], "status": status}), tar.with_suffix(".parquet")
    )
    return tar


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path) -> Path:
    for shard in range(5):
        img2dataset(tmp_path / "pool", shard, 5)
    return tmp_path / "pool"


def said_by(caplog) -> str:
    return "\n".join(r.getMessage() for r in caplog.records)


# what is missing


def test_a_whole_folder_of_img2dataset_gives_no_warning(store, folder, caplog):
    assert look(folder).warnings == []
    found = counts(store, index(folder / "*.tar"))
    assert found["rows"] == 25
    assert not [name for name in found if "differ" in name or "missing" in name]
    assert said_by(caplog) == ""


def test_a_shard_that_was_lost_is_named_by_init_and_by_the_index(store, folder, caplog):
    (folder / "00003.tar").unlink()
    found = look(folder)
    assert any("00003.tar" in line for line in found.warnings)
    assert "00003.tar" in "\n".join(lines_of(found))
    node = index(folder / "*.tar")
    assert counts(store, node)["folders with missing shards"] == 2  # by its number, and by its stats
    assert "00003.tar" in said_by(caplog)


def test_the_last_shard_is_missed_by_its_stats(folder):
    (folder / "00004.tar").unlink()
    (line,) = look(folder).warnings
    assert "00004.tar" in line


def test_shards_that_a_range_names_on_purpose_are_not_called_missing(store, folder, caplog):
    shards = [str(folder / name) for name in ("00000.tar", "00004.tar")]
    assert counts(store, index(shards))["rows"] == 10
    assert said_by(caplog) == ""


@pytest.mark.parametrize("pattern", ["0000[0-1].tar", "0000[024].tar"])
def test_shards_that_lie_there_and_are_not_named_are_not_called_missing(store, folder, caplog, pattern):
    found = counts(store, index(folder / pattern))
    assert found["rows"] == 5 * len(list(folder.glob(pattern)))
    assert "folders with missing shards" not in found
    assert said_by(caplog) == ""


def test_gaps_are_counted_in_each_folder_and_kind_of_name():
    assert gaps(["/p/0.tar", "/p/1.tar", "/q/0.tar", "/q/1.tar"]) == []
    assert gaps(["/p/a-00.tar", "/p/b-05.tar", "/p/pets.tar", "https://x/1.tar", "https://x/9.tar"]) == []
    (line,) = gaps(["/p/a-00.tar", "/p/a-03.tar", "/p/b-07.tar"])
    assert "2 numbers" in line
    assert "a-01.tar, a-02.tar" in line
    (line,) = gaps(["/p/20240101.tar", "/p/20250101.tar"])
    assert "9,999 numbers" in line
    assert line.count("2024010") == 6
    assert "9,994 more" in line


def test_counts_that_disagree_name_the_shard_and_both_counts(store, folder, caplog):
    write_tar(folder / "00002.tar", pairs(3, 200))  # lost two samples; both files say five
    node = index(folder / "*.tar")
    assert counts(store, node)["counts that differ beside shards"] == 2
    for said in ("\n".join(look(folder).warnings), said_by(caplog)):
        for name in ("00002_stats.json", "00002.parquet"):
            assert f"{folder}/00002.tar has 3 samples, and {name} beside it says 5" in said


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"successes": "5"}', b'{"samples": 5}', b"\xff\xfe"])
def test_a_file_of_another_kind_beside_a_shard_says_nothing(tmp_path, content):
    tar = write_tar(tmp_path / "0.tar", pairs(1))
    (tmp_path / "0_stats.json").write_bytes(content)
    (tmp_path / "0.parquet").write_bytes(content)
    assert counts_beside(str(tar)) == {}
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "0.parquet")
    assert counts_beside(str(tar)) == {}


# pool.expect


def test_expect_pins_the_number_of_samples_and_enters_no_key(store, folder):
    plain, pinned = index(folder / "*.tar"), index(folder / "*.tar", expect=25)
    assert store.key(plain) == store.key(pinned)
    assert store.get(pinned).num_rows == 25


@pytest.mark.parametrize("is_indexed", [False, True])
def test_another_number_than_expected_is_an_error_with_both(store, folder, is_indexed):
    if is_indexed:
        store.get(index(folder / "*.tar"))
    wrong = index(folder / "*.tar", expect=30)
    with pytest.raises(PoolError, match=r"25 samples.*pool\.expect=30.*Restore.*pool\.expect=25"):
        store.get(wrong)
    assert (store.entry(index(folder / "*.tar")) is not None) == is_indexed
    assert store.get(index(folder / "*.tar", expect=25)).num_rows == 25


def test_expect_stops_a_curation_whose_keep_list_is_there_already(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"pool.shards={folder}/*.tar", "dedup=none", "select=uniform", "budget.keep_fraction=0.4"]
    assert main(["curate", *words]) == 0
    assert main(["curate", *words, "pool.expect=25"]) == 0
    assert main(["curate", *words, "pool.expect=24"]) == 1
    assert "pool.expect=24" in capsys.readouterr().err


# one listing, one reader


def raw_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder with what is found on disks: macOS' files, keys with dots, folders below and hidden ones."""
    home = tmp_path / "odd"
    write_tar(home / "0.tar", pairs(20))
    jpeg = picture(50)
    raw_tar(
        home / "1.tar",
        [("a.jpg", jpeg), ("a.txt", b"x"), ("._a.jpg", b"mac"), (".DS_Store", b"mac"), ("v1.2.jpg", jpeg),
         ("v1.2.txt", b"x"), ("b.jpg", b"no image"), ("b.txt", b"x"), ("c.txt", b"alone"), ("d.jpg", jpeg),
         ("e.jpg", jpeg), ("e.txt", b" "), ("notes.md", b"x"), ("noextension", b"x"), ("sub/._f.jpg", b"mac")],
    )  # fmt: skip
    write_tar(home / "below/2.tar", pairs(10, 300))
    write_tar(home / "below/deeper/3.tar", pairs(5, 400))
    (home / "._0.tar").write_bytes(b"mac")
    (home / ".DS_Store").write_bytes(b"mac")
    write_tar(home / ".hidden/9.tar", pairs(5, 900))
    return home


def test_init_and_the_index_find_the_same_shards_and_counts(store, odd):
    found = look(odd)
    suggested = suggest(found, odd, 0.5)
    node = index(suggested.shards, uid=suggested.uid, broken_shards=suggested.broken_shards)
    pool, told = store.get(node), counts(store, node)
    assert [str(shard) for shard in found.shards] == pool.shards
    assert {shard.name for shard in found.shards} == {"0.tar", "1.tar", "2.tar", "3.tar"}
    assert found.rows == told["rows"] == 20 + 5 + 10 + 5
    assert found.usable == told["usable"] == 20 + 1 + 10 + 5
    assert dict(found.problems) == {name: told[name] for name in found.problems}
    assert found.problems.total() == told["rows"] - told["usable"]
    assert found.dotted == told[DOTTED] == 1
    assert f"{DOTTED}: 1" in "\n".join(lines_of(found))


def test_the_counts_of_an_index_add_up_to_the_files_in_the_tars(store, odd):
    node = index([f"{odd}/*.tar", f"{odd}/*/*.tar"])
    told = counts(store, node)
    in_tars = 0
    for tar in store.get(node).shards:
        with tarfile.open(tar) as opened:
            in_tars += len([member for member in opened if member.isfile()])
    parts = {name: count for name, count in told.items() if name.startswith("files ")}
    assert told["files"] == sum(parts.values()) == in_tars == 60 + 15 + 30
    assert parts == {
        "files in samples": 60 + 8 + 30,
        "files not read: dotted pictures": 1,
        "files not read: other kinds": 6,
    }
    reasons = ("no image", "not an image", "no caption", "empty caption")
    assert told["usable"] + sum(told[reason] for reason in reasons) == told["rows"]


def test_all_broken_tars_are_reported_by_init(odd):
    whole = (odd / "0.tar").read_bytes()
    for name, content in {
        "4.tar": b"",
        "5.tar": whole[: len(whole) // 1024 * 512 + 7],
        "6.tar": gzip.compress(whole),
    }.items():
        (odd / name).write_bytes(content)
    for patience in (30.0, 0.0):
        found = look(odd, patience=patience)
        said = "\n".join(lines_of(found))
        assert {shard.name for shard in found.broken} == {"4.tar", "5.tar", "6.tar"}
        assert all(f"{odd}/{name}.tar" in said for name in "456")
        assert "compressed by gzip" in said


def test_compressed_tars_are_counted_as_what_they_are(odd, store):
    whole = (odd / "0.tar").read_bytes()
    (odd / "7.tar").write_bytes(gzip.compress(whole, 0))
    (odd / "8.tar.gz").write_bytes(gzip.compress(whole))
    (odd / "below/9.tgz").write_bytes(gzip.compress(whole))
    found = look(odd)
    assert len(found.packed) == 2
    assert "2 compressed tars are a pool of their own" in "\n".join(lines_of(found))
    assert found.rows == 40  # and none by the bytes of 7.tar
    partly = look(odd, patience=0.0)
    assert not partly.is_whole
    assert (
        partly.total_bytes == found.total_bytes == sum(s.stat().st_size for s in found.shards if s.name != "7.tar")
    )
    told = counts(store, index(suggest(found, odd, 0.5).shards, broken_shards="keep_readable"))
    assert (told["rows"], told[DAMAGED]) == (40, 1)


def test_a_folder_of_compressed_tars_says_so(tmp_path):
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(PoolError, match=r"no tar lies in .*pool\.shards=.*\.tar\.gz"):
        look(tmp_path)


# an index whose shards moved, went, or got company


def test_a_shard_that_is_gone_shifts_no_other_and_is_named(store, folder):
    node = index(folder / "*.tar")
    pool, key = store.get(node), str(store.key(node))
    there = [pool.image_bytes(row) for row in range(25)]
    (folder / "00001.tar").unlink()
    again = Store(store.root).open(key)
    assert [again.image_bytes(row) for row in (0, 12, 24)] == [there[0], there[12], there[24]]
    with pytest.raises(PoolError, match=r"00001\.tar cannot be opened .* although the index knows it"):
        again.image_bytes(7)


def test_a_shard_that_came_later_shifts_no_other(store, folder):
    node = index(folder / "*.tar")
    pool, key = store.get(node), str(store.key(node))
    there = [pool.image_bytes(row) for row in range(25)]
    write_tar(folder / "00000a.tar", pairs(5, 900))
    again = Store(store.root).open(key)
    assert [again.image_bytes(row) for row in range(25)] == there


@pytest.mark.parametrize("pattern", ["*.tar", "{00000..00004}.tar", "*/*.tar"])
def test_a_pool_that_is_gone_keeps_its_index_and_names_what_is_missing(store, folder, pattern):
    node = index(f"{folder if '/' not in pattern else folder.parent}/{pattern}")
    rows, key = store.get(node).num_rows, str(store.key(node))
    (folder.parent / "far/off").mkdir(parents=True)
    folder.rename(folder.parent / "far/off/pool")
    again = Store(store.root).open(key)
    assert again.num_rows == rows
    assert len(again.shards) == 5
    for row in (0, 24):
        with pytest.raises(PoolError, match=rf"0000{row // 6}\.tar cannot be opened"):
            again.image_bytes(row)
    assert again.row_of("00004/000000402") == 22


def test_of_two_runs_the_one_that_is_left_is_found(tmp_path, store):
    for run in "ab":
        write_tar(tmp_path / f"runs/{run}/0.tar", pairs(3, ord(run)))
    node = index(f"{tmp_path}/runs/*/*.tar")
    pool, key = store.get(node), str(store.key(node))
    content = pool.image_bytes(4)
    (tmp_path / "runs/a/0.tar").unlink()
    again = Store(store.root).open(key)
    assert again.image_bytes(4) == content
    with pytest.raises(PoolError, match=r"a/0\.tar cannot be opened"):
        again.image_bytes(1)


@pytest.mark.parametrize("uid", ["key", "hash", "path"])
def test_an_index_is_read_where_a_folder_of_its_shards_was_renamed(tmp_path, store, uid):
    for run in "ab":
        write_tar(tmp_path / f"runs/{run}/0.tar", pairs(3, ord(run)))
    node = index(f"{tmp_path}/runs/*/*.tar", uid=uid)
    pool, key = store.get(node), store.key(node)
    there, uids = [pool.image_bytes(row) for row in range(6)], pool.uids()
    (tmp_path / "runs/a").rename(tmp_path / "runs/a_new")
    again = Store(store.root).get(node)
    assert [again.image_bytes(row) for row in range(6)] == there
    assert (Store(store.root).key(node) == key) == (uid != "path")
    assert (again.uids() == uids) == (uid != "path"), "a key stands for one set of uids"


def test_a_shard_that_came_in_the_place_of_another_shifts_none(tmp_path, store):
    for run in "ab":
        write_tar(tmp_path / f"runs/{run}/0.tar", pairs(3, ord(run)))
    node = index(f"{tmp_path}/runs/*/*.tar")
    pool, key = store.get(node), str(store.key(node))
    content = pool.image_bytes(4)
    (tmp_path / "runs/a").rename(tmp_path / "runs/c")  # behind b: another order
    again = Store(store.root).open(key)
    assert again.image_bytes(4) == content
    with pytest.raises(PoolError, match=r"a/0\.tar cannot be opened"):
        again.image_bytes(1)


def test_an_index_of_an_older_version_takes_no_other_shards_for_its_own(store, folder):
    node = index(folder / "*.tar")
    home = store.get(node) and store.folder(node)
    (home / "shards.json").unlink()
    assert [Path(path).name for path in found_again(home, f"{folder}/*.tar")] == [f"0000{n}.tar" for n in range(5)]
    (folder / "00001.tar").unlink()
    again = Store(store.root).open(str(store.find(home.name).key))
    with pytest.raises(PoolError, match="cannot be opened"):
        again.image_bytes(24)


def test_what_is_told_of_a_curation_needs_no_shard(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["curate", f"pool.shards={folder}/*.tar", "dedup=none", "select=uniform", "budget.num_kept=9"]) == 0
    key = next(entry.key for entry in Store("store").entries() if entry.stage == "select")
    folder.rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["show", key]) == 0
    assert main(["why", "000000402", f"keep={key}"]) == 0
    assert main(["why", "00004/000000402", f"keep={key}"]) == 0
    for form in ("txt", "parquet", "removed", "decisions"):
        assert main(["export", f"keep={key}", f"format={form}", f"out={form}"]) == 0
    assert set(pq.read_table("parquet")["shard"].to_pylist()) <= {f"0000{n}.tar" for n in range(5)}
    assert main(["export", f"keep={key}", "format=webdataset", "out=tars"]) == 1
    assert f"{folder}/0000" in capsys.readouterr().err


def test_a_shard_that_is_gone_from_a_folder_of_ours_shifts_no_other(tmp_path):
    from dbp.data.pool import ShardFolder

    for shard in range(3):
        write_tar(tmp_path / f"made/shards/{shard}.tar", pairs(2, 10 * shard))
    node = index(str(tmp_path / "made/shards/*.tar"))
    store = Store(tmp_path / "store")
    content, home = store.get(node).image_bytes(5), store.folder(node)
    (tmp_path / "made/shards/0.tar").unlink()
    assert home is not None
    again = Index("key", "txt", 10**7).open(home, ShardFolder(tmp_path / "made"))
    assert again.image_bytes(5) == content
    with pytest.raises(PoolError, match=r"0\.tar cannot be opened"):
        again.image_bytes(0)


def test_a_page_leaves_out_the_images_of_shards_that_are_gone_and_counts_them(store, folder):
    from evaluation.report.page.pictures import Pictures, sample

    node = index(folder / "*.tar")
    key = str(store.get(node) and store.key(node))
    (folder / "00001.tar").unlink()
    pool, pictures = Store(store.root).open(key), Pictures(most=100)
    shown = [sample(pool, pictures, row) for row in range(25)]
    assert [one["row"] for one in shown if one["picture"] is None] == list(range(5, 10))
    assert [one["row"] for one in shown if one["caption"] is None] == list(range(5, 10))
    assert pictures.problems.total() == 5
    assert all("00001.tar" in problem for problem in pictures.problems)
