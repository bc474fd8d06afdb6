"""Samples of two runs with the same keys: what names them apart, and what is refused where nothing does."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_init import Sample, pairs, picture, write_tar

from dbp.__main__ import main
from dbp.curate import ValidRows
from dbp.data.keep_list import KeepList
from dbp.data.pool import hash_64
from dbp.engine.paths import relative_names
from dbp.engine.store import Store
from dbp.errors import ConfigError, PoolError
from dbp.formats.exports import export_keep
from dbp.formats.uid_sets import overlap, write_combined
from dbp.pools import identity
from dbp.pools.identity import Joined, joined, uid_by, warn_of_twins
from dbp.pools.index import Index
from dbp.selection.imported import ImportedList


def index(folder: Path, uid: str, pattern: str = "*/*.tar"):
    return Index(uid=uid, caption="txt", max_pixels=10**7, shards=f"{folder}/{pattern}").node()


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two runs of img2dataset: the same keys in tars of the same names, other images and captions."""
    first, second = pairs(20), pairs(20, 100)
    write_tar(tmp_path / "runs/runA/00000.tar", first)
    write_tar(tmp_path / "runs/runB/00000.tar", dict(zip(first, second.values(), strict=True)))
    return tmp_path / "runs"


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


# rules


@pytest.mark.parametrize(("rule", "distinct"), [("key", 20), ("hash", 20), ("path", 40), ("content", 40)])
def test_path_and_content_part_two_runs_and_the_other_rules_do_not(store, runs, rule, distinct):
    pool = store.get(index(runs, rule))
    assert len({*pool.uids()}) == distinct
    counts = store.entry(index(runs, rule)).manifest["counts"]
    assert counts["repeated uids"] == 40 - distinct
    assert counts.get("samples that share their uid", 0) == (0 if distinct == 40 else 40)


@pytest.mark.parametrize("rule", ["path", "content"])
def test_uids_of_a_pool_that_is_moved_stay(store, runs, rule, tmp_path):
    before = store.get(index(runs, rule)).digest
    runs.rename(tmp_path / "elsewhere")
    assert store.get(index(tmp_path / "elsewhere", rule)).digest == before


def test_content_stays_where_the_folders_are_renamed_and_the_path_does_not(tmp_path, runs):
    def uids(rule: str, store: str) -> list[str]:
        return Store(tmp_path / store).get(index(runs, rule)).uids()

    before = {rule: uids(rule, "a") for rule in ("path", "content")}
    (runs / "runA").rename(runs / "run1")
    assert set(uids("content", "b")) == set(before["content"])
    assert set(uids("path", "b")) != set(before["path"])


def test_equal_samples_stay_twins_by_content_and_not_by_path(store, tmp_path):
    for run in ("a", "b"):
        write_tar(tmp_path / f"{run}/0.tar", pairs(5))
    assert len({*store.get(index(tmp_path, "content")).uids()}) == 5
    assert len({*store.get(index(tmp_path, "path")).uids()}) == 10


def test_a_caption_parts_samples_of_one_image(store, tmp_path):
    same: Sample = {"jpg": picture(0)}
    write_tar(tmp_path / "a/0.tar", {"k": {**same, "txt": b"one"}})
    write_tar(tmp_path / "b/0.tar", {"k": {**same, "txt": b"two"}})
    assert len({*store.get(index(tmp_path, "content")).uids()}) == 2


@pytest.mark.parametrize("rule", ["hash", "path", "content"])
def test_made_uids_are_what_datacomps_tools_take(store, runs, rule):
    assert all(len(bytes.fromhex(uid)) == 16 for uid in store.get(index(runs, rule)).uids())


def test_names_below_the_common_folder():
    assert relative_names(["/a/b/x.tar"]) == ["x.tar"]
    assert relative_names(["/a/b/x.tar", "/a/b/y.tar"]) == ["x.tar", "y.tar"]
    assert relative_names(["/a/b/x.tar", "/a/c/x.tar"]) == ["b/x.tar", "c/x.tar"]
    assert relative_names(["/a/x.tar", "/a/c/x.tar"]) == ["x.tar", "c/x.tar"]
    assert relative_names(["/ab/x.tar", "/ac/x.tar"]) == ["ab/x.tar", "ac/x.tar"]
    assert relative_names(["s3://b/one/0.tar", "s3://b/two/0.tar"]) == ["one/0.tar", "two/0.tar"]
    assert relative_names([]) == []


# what an index says


@pytest.mark.parametrize(("rule", "says"), [("key", True), ("hash", True), ("path", False), ("content", False)])
def test_an_index_warns_of_shared_uids_with_their_number_and_the_rule_that_parts_them(
    store, runs, caplog, rule, says
):
    store.get(index(runs, rule))
    said = [r.getMessage() for r in caplog.records if "share their uid" in r.getMessage()]
    assert bool(said) == says
    if says:
        assert "40 samples" in said[0]
        assert "20 uids" in said[0]
        assert f"pool.uid={rule}" in said[0]
        assert "pool.uid=path parts them all" in said[0]
        assert "hash leaves 40" in said[0]


# finding a row


def test_a_row_of_two_runs_is_named_by_its_folder_too(store, runs):
    pool = store.get(index(runs, "key"))
    assert pool.shard_names == ["runA/00000.tar", "runB/00000.tar"]
    assert pool.row_of("runA/00000/000000003") == 3
    assert pool.row_of("runB/00000/000000003") == 23
    for name in ("000000003", "00000/000000003"):
        with pytest.raises(
            PoolError, match=r"2 samples .*runA/00000/000000003 \(row:3\), runB/00000/000000003 \(row:23\)"
        ):
            pool.row_of(name)


# lists of names


class FirstRun(ImportedList):
    """The rows of the first shard."""

    def decide(self, rows: KeepList, pool):
        return rows.within("select", pool.column("shard") == 0, "second run", "first run"), {}


def first_run(store: Store, node) -> str:
    """The key of a keep list of the first run."""
    made = FirstRun(join="uid", column="uid", repeats="error").bind(rows=ValidRows().bind(pool=node), pool=node)
    assert store.get(made).num_kept == 20
    return str(store.key(made))


def imported(store: Store, node, file: Path, repeats: str = "error"):
    made = ImportedList(join="uid", column="uid", repeats=repeats, file=str(file))  # type: ignore[arg-type]
    return made.bind(rows=ValidRows().bind(pool=node), pool=node)


@pytest.mark.parametrize(("rule", "form"), [("path", "txt"), ("content", "txt"), ("path", "datacomp")])
def test_what_is_exported_by_name_and_imported_again_keeps_the_same_rows(store, runs, tmp_path, rule, form):
    node = index(runs, rule)
    export_keep(store, first_run(store, node), form, tmp_path / "list")
    assert store.get(imported(store, node, tmp_path / "list")).rows.tolist() == list(range(20))


@pytest.mark.parametrize(("rule", "form"), [("key", "txt"), ("hash", "txt"), ("hash", "datacomp")])
def test_a_list_of_names_that_would_keep_others_is_refused_with_their_number(store, runs, tmp_path, rule, form):
    key = first_run(store, index(runs, rule))
    with pytest.raises(
        ConfigError, match=r"20 of its samples .* 20 that it does not keep \(20 uids.*pool.uid=path"
    ):
        export_keep(store, key, form, tmp_path / "list")
    assert not (tmp_path / "list").exists()
    with pytest.raises(ConfigError, match=r"20 of its samples share their uid with 20"):
        write_combined(store, [f"keep:{key}", f"keep:{key}"], "union", "once", tmp_path / "list.txt")


def test_a_table_of_rows_names_the_folder_of_a_shard_where_names_repeat(store, runs, tmp_path):
    import pyarrow.parquet as pq

    key = first_run(store, index(runs, "key"))
    export_keep(store, key, "parquet", tmp_path / "kept")
    export_keep(store, key, "removed", tmp_path / "removed")
    assert set(pq.read_table(tmp_path / "kept")["shard"].to_pylist()) == {"runA/00000.tar"}
    assert set(pq.read_table(tmp_path / "removed")["shard"].to_pylist()) == {"runB/00000.tar"}
    assert pq.read_table(tmp_path / "removed")["row"].to_pylist() == list(range(20, 40))


def test_names_of_samples_that_are_all_kept_are_written_and_counted(store, runs, tmp_path):
    node = index(runs, "key")
    key = str(store.key(ValidRows().bind(pool=node))) if store.get(ValidRows().bind(pool=node)) else ""
    said = export_keep(store, key, "txt", tmp_path / "list")
    assert "wrote 40 uids" in said
    assert "20 uids stand there more than once" in said
    assert store.get(imported(store, node, tmp_path / "list", "once")).num_kept == 40


def test_an_unusable_sample_of_the_same_name_is_not_brought_in_and_refuses_nothing(store, tmp_path):
    write_tar(tmp_path / "runs/a/0.tar", pairs(4))
    write_tar(tmp_path / "runs/b/0.tar", {"000000000": {"jpg": b"", "txt": b"x"}})
    node = index(tmp_path / "runs", "key")
    store.get(valid := ValidRows().bind(pool=node))
    assert "wrote 4 uids" in export_keep(store, str(store.key(valid)), "txt", tmp_path / "list")
    assert store.get(imported(store, node, tmp_path / "list")).num_kept == 4


@pytest.mark.parametrize("form", ["txt", "npy"])
def test_an_import_says_how_many_samples_each_name_hit(store, runs, tmp_path, caplog, form):
    parted = index(runs, "hash")
    uids = store.get(parted).uids()
    names = tmp_path / f"list.{form}"
    if form == "txt":
        names.write_text("".join(f"{uid}\n" for uid in uids[:7]))
    else:
        from dbp.formats.exchange import write_uid_file

        write_uid_file(names, uids[:7])
    node = imported(store, parted, names)
    caplog.clear()
    assert store.get(node).num_kept == 14
    counts = store.entry(node).manifest["counts"]
    assert (counts["listed"], counts["listed names of several samples"], counts["samples of those names"]) == (
        7,
        7,
        14,
    )
    said = "".join(r.getMessage() for r in caplog.records)
    assert "7 of the 7 names" in said
    assert "7 name 2 samples each" in said


def test_lists_of_one_pool_overlap_by_their_rows(store, runs):
    key = first_run(store, index(runs, "key"))
    shared, _ = overlap(store, [f"keep:{key}", f"keep:{key}"])
    assert shared.tolist() == [[20, 20], [20, 20]]


def test_init_writes_the_rule_that_curate_then_needs_no_warning_for(runs, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(runs), "keep_fraction=0.5", "own_encoder=false"]) == 0
    assert main(["curate", "--config-dir", str(tmp_path), "experiment=runs", "until=index"]) == 0
    out = capsys.readouterr().out
    assert "40 samples share their key with another one: pool.uid=path parts them all" in out
    assert "rows 40, shards 2, repeated uids 0" in out
    assert not [r for r in caplog.records if "share their uid" in r.getMessage()]


def test_twins_have_places_of_their_own_in_the_order_of_training(store, runs):
    import numpy as np

    from training.feed.order import sample_keys

    pool = store.get(index(runs, "key"))
    keys = sample_keys(pool.uid_hashes, np.arange(40))
    assert len(np.unique(keys)) == 40


def index_of(tmp_path, names: list[list[int]]) -> Joined:
    """The parts of an index: one for each shard, with the hashes of its uids."""
    for number, own in enumerate(names):
        (tmp_path / f"part-{number}").mkdir()
        keys, contents = [str(n) for n in own], [b"%016d" % (number * 1000 + at) for at in range(len(own))]
        table = {
            "uid": keys,
            "uid_hash": pa.array([hash_64(key.encode()) for key in keys], pa.uint64()),
            "key": keys,
            "shard": [number] * len(own),
            "content_hash": contents,
            "caption_hash": contents,
        }
        pq.write_table(pa.table(table), tmp_path / f"part-{number}/index.parquet")
    return joined(tmp_path, {f"part-{number}": {"digest": "00"} for number in range(len(names))})


def test_twins_are_all_counted_and_the_rules_are_tried_on_few_of_them(tmp_path, monkeypatch, caplog):
    """Each of 50 names is in each of 20 shards, in shuffled order."""
    order = [list(map(int, np.random.default_rng(shard).permutation(50))) for shard in range(20)]
    tried = []
    monkeypatch.setattr(identity, "MOST_TRIED", 100)
    monkeypatch.setattr(identity, "uid_by", lambda *said: tried.append(said) or uid_by(*said))
    shards = [f"/p/{shard % 2}/{shard // 2}.tar" for shard in range(20)]  # each file name twice
    index = index_of(tmp_path, order)
    assert warn_of_twins(index, "pool.uid=key", shards) == 1000
    assert len(tried) == 4 * 100  # by each of four rules
    assert "pool.uid=path parts them all; key leaves 100, hash leaves 100" in caplog.text
    assert "100 of them" in caplog.text


def test_one_name_of_all_samples_is_tried_on_few_of_them(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(identity, "MOST_TRIED", 100)
    monkeypatch.setattr(identity, "uid_by", lambda *said: tried.append(said) or uid_by(*said))
    index = index_of(tmp_path, [[7] * 50 for _ in range(20)])
    assert warn_of_twins(index, "pool.uid=key", [f"/p/{shard}.tar" for shard in range(20)]) == 1000
    assert len(tried) == 4 * 100


def test_repeated_uids_are_found_as_by_plain_membership(tmp_path):
    made = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    known = np.sort(made[::3])
    assert (identity.among(made, known) == np.isin(made, known)).all()
    assert not identity.among(np.array([2**64 - 1, 0], np.uint64), known).any()
