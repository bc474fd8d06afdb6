"""How often a row is taken, end to end: another tool's list with repeats in, every export and word about it out."""

import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_write_shards import sample, write_tar

from dbp.__main__ import main
from dbp.engine.store import Store
from dbp.formats.exchange import read_uid_file, write_uid_file

TIMES = {1: 1, 4: 3, 5: 2, 8: 1, 11: 45}
UIDS = [f"{i:032x}" for i, count in TIMES.items() for _ in range(count)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tar(tmp_path / "00000.tar", [m for i in range(12) for m in sample(f"k{i:02d}", i)])
    write_uid_file(tmp_path / "list.npy", UIDS)
    (tmp_path / "list.txt").write_text("".join(f"{uid}\n" for uid in reversed(UIDS)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def key_of(output: str) -> str:
    return output.split("keep list ")[1].split()[0]


@pytest.mark.parametrize("name", ["list.npy", "list.txt"])
def test_a_list_with_repeats_comes_in_and_goes_out_as_it_is(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    pool = ["pool.shards=00000.tar", "pool.uid=json:uid"]
    assert main(["import", "keep", name, "select.repeats=keep", *pool]) == 0
    output = capsys.readouterr().out
    key = key_of(output)
    assert "kept 5 of 12 rows" in output

    def export(form: str, out: str) -> Path:
        assert main(["export", f"keep={key}", f"format={form}", f"out={out}"]) == 0
        return here / out

    out = export("datacomp", "out.npy")
    assert np.array_equal(read_uid_file(out, allow_repeats=True), read_uid_file("list.npy", allow_repeats=True))
    assert export("txt", "out.txt").read_text().split() == UIDS
    table = pq.read_table(export("parquet", "out.parquet"))
    assert dict(zip(table["row"].to_pylist(), table["weight"].to_pylist(), strict=True)) == TIMES
    decided = pq.read_table(export("decisions", "decisions.parquet"))["weight"].to_pylist()
    assert decided == [TIMES.get(row) for row in range(12)]
    shards = export("webdataset", "shards")
    with tarfile.open(shards / "00000000.tar") as tar:
        pictures = sorted(member.removesuffix(".png") for member in tar.getnames() if member.endswith("png"))
    assert pictures == sorted(
        [f"k{i:02d}" for i, n in TIMES.items() if n == 1]
        + [f"{i:032x}-{j}" for i, n in TIMES.items() if n > 1 for j in range(n)]
    )
    capsys.readouterr()
    assert main(["why", UIDS[1], f"keep={key}"]) == 0
    assert "3 times" in capsys.readouterr().out
    assert main(["uids", "intersection", f"keep:{key}", "list.npy", "repeats=keep", "out=both.npy"]) == 0
    assert len(read_uid_file("both.npy", allow_repeats=True)) == len(UIDS)


def test_repeats_are_refused_until_it_is_said_what_they_mean(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = ["pool.shards=00000.tar", "pool.uid=json:uid"]
    assert main(["import", "keep", "list.txt", *pool]) == 1
    said = capsys.readouterr().err
    assert "47" in said
    assert "select.repeats=keep" in said
    assert main(["import", "keep", "list.txt", "select.repeats=once", *pool]) == 0


def imported(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["import", "keep", *words, "pool.shards=00000.tar", "pool.uid=json:uid"]) == 0
    return key_of(capsys.readouterr().out)


def weighted_list(here: Path) -> dict[int, float]:
    """A Parquet list whose weights are fractions; uid 4 stands there twice."""
    rows, weights = [1, 4, 8, 4], [0.3, 1.75, 2.0, 0.5]
    pq.write_table(pa.table({"uid": [f"{i:032x}" for i in rows], "weight": weights}), here / "list.parquet")
    return {1: np.float32(0.3).item(), 4: 2.25, 8: 2.0}


def test_weights_of_a_parquet_list_come_in_and_go_out_as_they_are(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = weighted_list(here)
    first = imported(capsys, "list.parquet", "select.repeats=keep")
    assert main(["export", f"keep={first}", "format=parquet", "out=out.parquet"]) == 0
    table = pq.read_table("out.parquet")
    assert dict(zip(table["row"].to_pylist(), table["weight"].to_pylist(), strict=True)) == expected
    again = imported(capsys, "out.parquet", "select.repeats=keep")
    store = Store("store")
    assert store.open(again).digest == store.open(first).digest


@pytest.mark.parametrize("repeats", ["error", "once"])
def test_weights_are_not_lost_where_repeats_are_not_kept(
    here: Path, capsys: pytest.CaptureFixture[str], repeats: str
) -> None:
    uids = [f"{i:032x}" for i in (1, 4)]
    words = [
        "import",
        "keep",
        "list.parquet",
        f"select.repeats={repeats}",
        "pool.shards=00000.tar",
        "pool.uid=json:uid",
    ]
    pq.write_table(pa.table({"uid": uids, "weight": [1.0, 2.0]}), "list.parquet")
    assert main(words) == 1
    said = capsys.readouterr().err
    assert all(fact in said for fact in ("list.parquet", "weight", "select.repeats=keep")), said
    pq.write_table(pa.table({"uid": uids, "weight": [1.0, 1.0]}), "list.parquet")
    assert main(words) == 0


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), None])
def test_a_weight_that_is_not_a_number_from_zero_up_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], value: float | None
) -> None:
    pq.write_table(pa.table({"uid": [f"{i:032x}" for i in (1, 4)], "weight": [1.0, value]}), "list.parquet")
    words = ["select.repeats=keep", "pool.shards=00000.tar", "pool.uid=json:uid"]
    assert main(["import", "keep", "list.parquet", *words]) == 1
    assert "weight" in capsys.readouterr().err


def test_lists_with_fractional_weights_are_compared_and_joined_where_counts_do_not_matter(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weighted_list(here)
    key = imported(capsys, "list.parquet", "select.repeats=keep")
    assert main(["uids", "intersection", f"keep:{key}", "list.npy", "repeats=once", "out=both.npy"]) == 0
    assert read_uid_file("both.npy")["f1"].tolist() == [1, 4, 8]
    assert main(["uids", "overlap", f"keep:{key}", "list.npy"]) == 0
    assert main(["uids", "union", f"keep:{key}", "list.npy", "repeats=keep", "out=any.npy"]) == 1
    assert "fractional" in capsys.readouterr().err
    assert main(["uids", "union", "list.parquet", "list.npy", "repeats=keep", "out=any.npy"]) == 1
    said = capsys.readouterr().err
    assert all(fact in said for fact in ("list.parquet", "weight", "repeats=once", "select.repeats=keep")), said
