"""`dbp curate` and the verbs around it, as a person calls them, on vectors that are given."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dbp.decisions import explained
from dbp.engine.store import Store

NUM_ROWS = 90
FOLDER = "pool {0..3} = [a,b] (é), ü"
STORE = "my {store} = [x], (ö)"


def picture(shade):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 0)).save(out, "PNG")
    return out.getvalue()


def write_pool(folder, num_rows=NUM_ROWS, per_shard=30):
    """Shards of one picture and one caption a sample; sample 7 is no picture."""
    folder.mkdir(parents=True)
    for start in range(0, num_rows, per_shard):
        with tarfile.open(folder / f"{start // per_shard:05d}.tar", "w") as tar:
            for row in range(start, min(start + per_shard, num_rows)):
                content = b"<html>" if row == 7 else picture(row)
                for name, data in ((f"s{row:04d}.png", content), (f"s{row:04d}.txt", f"row {row}".encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def write_vectors(folder, num_rows=NUM_ROWS):
    """Rows 20 to 24 are copies of rows 10 to 14; row 30 has no direction; captions fit by chance."""
    made = np.random.default_rng(0)
    images = made.normal(size=(num_rows, 16)).astype(np.float32)
    images[20:25] = images[10:15]
    images[30] = 0
    np.save(folder / "images.npy", images)
    np.save(folder / "texts.npy", images + made.normal(size=images.shape).astype(np.float32))


def precomputed(folder):
    said = [f"encoder.{use}.images={folder}/images.npy" for use in ("dedup", "cluster", "score")]
    return ["encoder=precomputed", *said, f"encoder.score.texts={folder}/texts.npy"]


class House:
    """A folder with a pool, its vectors and a store, and `dbp` run in it."""

    def __init__(self, folder):
        self.folder = folder
        self.store = folder / STORE
        write_pool(folder / FOLDER)
        write_vectors(folder)

    def dbp(self, *arguments, status=0):
        """Run the command line; return what it printed, after its exit status is checked."""
        command = [sys.executable, "-m", "dbp", *map(str, arguments)]
        if arguments[0] != "--help":
            command.append(f"paths.store={self.store}")
        done = subprocess.run(command, cwd=self.folder, text=True, capture_output=True, timeout=300,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        assert "Traceback" not in said, said
        return said

    def curate(self, *arguments, status=0):
        pool = ["pool=webdataset", f"pool.shards={FOLDER}/{{00000..00002}}.tar"]
        few = ["cluster.num_clusters=5", "dedup.num_clusters=2"]
        return self.dbp("curate", *pool, *precomputed(self.folder), *few, *arguments, status=status)

    def key(self, said):
        return said.split("keep list ")[1].split()[0]


KEEP = ("filter=top_fraction", "filter.fraction=0.8", "budget.num_kept=40")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def first(house):
    """What the first curation said; the house notes what it left in the folder."""
    before = set(os.listdir(house.folder))
    said = house.curate(*KEEP)
    house.added = set(os.listdir(house.folder)) - before
    return said


def decisions(house, said):
    return explained(Store(house.store), house.key(said)).decisions.to_pylist()


def test_a_plan_is_printed_and_nothing_is_made(tmp_path):
    house = House(tmp_path)
    said = house.curate(*KEEP, "dry_run=true")
    assert re.search(r"^valid +after index +build +~90 ", said, re.M), "its key is known then"
    assert re.search(r"^index +[0-9a-f]{12} +build .* decoding$", said, re.M)
    assert re.search(r"^total .*\d", said, re.M)
    assert max(map(len, said.splitlines()[:-1])) <= 100
    assert "to build, 0 reused" in said
    assert not house.store.exists()


def test_the_numbers_of_a_curation_add_up(house, first):
    assert "kept 40 of 90 rows" in first
    assert (house.folder / STORE / "select").is_dir()
    assert house.added <= {STORE}
    reasons = [(row["stage"], row["reason"]) for row in decisions(house, first)]
    assert len(reasons) == NUM_ROWS
    assert reasons.count(("pool", "not an image")) == 1
    assert reasons.count(("dedup", "duplicate")) == 5
    assert reasons.count(("dedup", "zero embedding")) == 1
    left = int(0.8 * (NUM_ROWS - 7))
    assert reasons.count(("filter", "CLIP score below the limit")) == NUM_ROWS - 7 - left
    assert reasons.count(("select", "beyond the cluster's quota")) == left - 40
    assert reasons.count(("select", "within the quota")) == 40


def test_a_second_run_makes_nothing(house, first):
    again = house.curate(*KEEP)
    assert "(0 made, " in again
    assert house.key(again) == house.key(first)
    plan = house.curate(*KEEP, "dry_run=true")
    assert "\n0 to build" in plan


def test_a_plan_names_the_field_that_differs(house, first):
    plan = house.curate(*KEEP, "select.temperature=0.2", "dry_run=true")
    assert "select.temperature: 0.1 there, 0.2 here" in plan
    assert "\n1 to build" in plan


@pytest.mark.slow
def test_why_answers_for_every_kind_of_row(house, first):
    key = house.key(first)
    rows = decisions(house, first)
    kinds = {
        "duplicate": r"went at dedup: duplicate\n  duplicate of s\d{4} \(row [\d,]+\) at similarity",
        "zero embedding": "went at dedup: zero embedding",
        "not an image": "went at pool: not an image",
        "CLIP score below the limit": r"went at filter: CLIP score below the limit\n  value .*, limit ",
        "beyond the cluster's quota": r"went at select: beyond the cluster's quota\n  distance .*\n"
                                      r"  cluster \d, rank \d+ \(0 is taken first\), quota \d+",
        "within the quota": "stayed at select: within the quota",
    }  # fmt: skip
    for reason, said in kinds.items():
        row = next(row["row"] for row in rows if row["reason"] == reason)
        answer = house.dbp("why", f"s{row:04d}", f"keep={key[:8]}")
        assert answer.startswith(f"s{row:04d} (row {row})")
        import re

        assert re.search(said, answer), answer
    assert "Give a uid as pool.uid makes it" in house.dbp("why", "nobody", f"keep={key}", status=1)
    assert house.dbp("why", "00001/s0040", f"keep={key}").startswith("00001/s0040 (row 40)")


def test_why_answers_when_the_shards_are_away(house, first):
    away = house.folder / "away"
    (house.folder / FOLDER).rename(away)
    try:
        assert "(row 40)" in house.dbp("why", "s0040", f"keep={house.key(first)}")
    finally:
        away.rename(house.folder / FOLDER)


def test_show_prints_manifest_and_lineage(house, first):
    said = house.dbp("show", house.key(first)[:10])
    manifest = json.loads(said.split("\n\nlineage")[0])
    assert manifest["counts"]["kept"] == 40
    assert manifest["parameters"]["temperature"] == 0.1
    lineage = said.split("lineage, inputs first:\n")[1]
    stages = [line.split()[0] for line in lineage.splitlines()]
    assert stages[0] == "index"
    assert {"valid", "embed", "similar", "dedup", "score", "filter", "cluster"} <= set(stages)
    assert "names 0 artifacts" in house.dbp("show", "ffff0000ffff", status=1)
    assert "names 0 artifacts" in house.dbp("show", "**", status=1)


def test_ls_and_gc_say_what_is_there_and_remove_only_when_told(house, first):
    house.dbp("gc", f"keep={house.key(first)}", "delete=true")  # what other tests made
    listed = house.dbp("ls")
    assert "0 artifacts" not in listed
    assert len(house.dbp("ls", "stage=select").splitlines()) == 2
    made = house.curate(*KEEP, "select=uniform")
    key = house.key(made)
    assert "may go (say delete=true" in house.dbp("gc", f"keep={house.key(first)}")
    assert key in house.dbp("ls")
    assert str(house.store / "select" / key) in house.dbp("gc", f"keep={house.key(first)}", "delete=true")
    assert house.dbp("ls") == listed


@pytest.mark.parametrize("format_", ["txt", "parquet"])
def test_a_keep_list_is_exported(house, first, format_):
    out = house.folder / "out, = {é}"
    out.mkdir(exist_ok=True)
    file = out / f"keep.{format_}"
    house.dbp("export", f"keep={house.key(first)}", f"format={format_}", f"out={file}")
    kept = [f"s{row['row']:04d}" for row in decisions(house, first) if row["kept"]]
    if format_ == "txt":
        assert file.read_text().splitlines() == kept
    else:
        table = pq.read_table(file)
        assert table["uid"].to_pylist() == table["key"].to_pylist() == kept
        assert set(table["shard"].to_pylist()) <= {f"{i:05d}.tar" for i in range(3)}


def test_an_export_to_datacomp_needs_uids_of_128_bits(house, first):
    out = house.folder / "keep.npy"
    refused = house.dbp("export", f"keep={house.key(first)}", "format=datacomp", f"out={out}", status=1)
    assert "is not 32 hexadecimal digits" in refused
    assert "pool.uid=hash" in refused
    said = house.curate(*KEEP, "pool.uid=hash")
    house.dbp("export", f"keep={house.key(said)}", "format=datacomp", f"out={out}")
    pairs = np.load(out)
    assert pairs.dtype == np.dtype("<u8,<u8")
    assert len(pairs) == 40
    assert sorted(pairs.tolist()) == pairs.tolist()


def test_a_run_stops_after_the_stage_that_is_named_and_then_needs_no_budget(house, first):
    said = house.curate("until=cluster", "cluster.num_clusters=4")
    assert said.splitlines()[-1].startswith("cluster ")
    assert "select" not in said
    assert "index " in house.curate("until=index").splitlines()[-1]


def test_a_budget_above_the_pool_stops_before_anything_is_embedded(house, tmp_path):
    fresh = House(tmp_path / "fresh")
    said = fresh.curate("budget.num_kept=90", status=1)
    assert "cannot keep budget.num_kept=90 rows: the pool has 89 valid rows of 90" in said
    said = fresh.curate("budget.num_kept=80", "filter=top_fraction", "filter.fraction=0.5", status=1)
    assert "the filter leaves at most 44 of them" in said
    assert sorted(p.name for p in fresh.store.glob("[!.]*")) == ["index", "valid"]


def test_a_budget_above_what_dedup_left_names_both_numbers(house, first):
    said = house.curate("budget.num_kept=88", status=1)
    assert "BudgetError: cannot keep 88 rows (budget.num_kept=88): 83 are left after dedup" in said


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (["select=dbpp"], "there is no such select. Did you mean 'dbp'?"),
        (["select.temprature=0.1"], "Did you mean 'select.temperature'?"),
        (["budget.keep_fraction=1.7"], "budget.keep_fraction=1.7"),
        (["budget.keep_fraction=0.3", "budget.prune_ratio=0.3"], "give exactly one of"),
        (["budget.num_kept=3", "until=clusters"], "until='clusters': it must be one of index"),
        (["budget.num_kept=3", "encoder.cluster.images=nowhere.npy"], "there is no such file"),
    ],
)
def test_a_wrong_setting_stops_before_any_work(tmp_path_factory, house, setting, said):
    made_before = sorted(house.store.rglob("*"))
    assert said in house.curate(*setting, status=1)
    assert sorted(house.store.rglob("*")) == made_before


@pytest.mark.parametrize("store", ["2024", "[new]", "it's"])
def test_a_store_may_have_any_name(tmp_path, store):
    house = House(tmp_path / "house")
    house.store = store
    house.curate("until=index")
    assert (tmp_path / "house" / store / "index").is_dir()
