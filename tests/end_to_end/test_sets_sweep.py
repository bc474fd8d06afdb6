"""Evaluation sets from the glyphs pool, a sweep on them, and all that shows its results."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from dbp.__main__ import main
from dbp.config import compose
from dbp.engine.stage import parameters
from dbp.engine.store import Store
from dbp.lineage import open_pool_of
from dbp.verbs.command_line import overrides
from slurm.composer import stages
from slurm.sweep import divide

pytestmark = pytest.mark.slow  # an encoder, three arms and another run
ROOT = Path(__file__).parents[2]
POOL = ["pool=glyphs", "pool.plan.num_pairs=600", "pool.plan.task_pictures=60"]
TRAIN = [
    "model=glyphs", "train=glyphs", "train.samples_seen=64", "train.batch_size=32", "train.log_every_samples=32",
]  # fmt: skip
SWEEP = [
    "experiment=glyphs_methods", "sweep.encoder.train.samples_seen=128", "cluster.num_clusters=4",
    "dedup=semdedup_smoke", "sweep.workers=1", "sweep.seed=[0]", "sweep.plots=false", "evaluate.num_workers=0",
    "~sweep.arms.unpruned", "~sweep.arms.ssp", "suite=mine", *POOL, *TRAIN,
]  # fmt: skip


class Home:
    """A store, sets made from its pool, and the words that name both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sets = folder, folder / "mine"
        self.store = Store(folder / "store", folder / "runs", lambda line: None)
        self.where = [f"paths.store={folder}/store", f"paths.runs={folder}/runs"]
        self.own = ["--config-dir", f"{self.sets}/configs", f"root={self.sets}"]
        self.held = f"hold_out={self.sets}/held_out.parquet"

    def run(self, *words: str) -> int:
        return main([*words, *self.where])

    def entries(self, stage: str) -> list:
        return [entry for entry in self.store.entries() if entry.stage == stage]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Sets of glyphs by whether their caption names a Latin letter, and of captions."""
    home = Home(tmp_path_factory.mktemp("sets"))
    assert home.run("curate", *POOL, "until=index") == 0
    pool = home.store.open(home.entries("index")[0].key)
    captions = [pool.caption(row) for row in range(pool.num_rows)]
    labels = home.folder / "labels.csv"
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("uid", "label"))
        for uid, caption in zip(pool.uids(), captions, strict=True):
            writer.writerow((uid, "latin" if "latin" in caption else "other script"))
    words = ["sets.name=mine", "sets.share=0.2", f"sets.labels={labels}", f"out={home.sets}"]
    assert home.run("sets", *POOL, *words) == 0
    return home


@pytest.fixture(scope="module")
def swept(home: Home) -> Path:
    assert home.run("sweep", *home.own, home.held, *SWEEP) == 0
    return home.folder / "runs" / "sweeps" / "glyphs_methods"


def test_a_sweep_that_could_train_on_its_evaluation_sets_stops_before_any_training(home, capsys) -> None:
    before = len(home.entries("train"))
    assert home.run("sweep", *home.own, *SWEEP, "sweep.name=unheld") == 1
    said = capsys.readouterr().err
    assert re.search(r"hold_out=null: \d+ of the \d+ samples of the task mine_labels", said), said
    assert len(home.entries("train")) == before


def test_no_arm_has_a_held_out_sample_and_all_keep_equally_many(home, swept) -> None:
    held = set(pq.read_table(home.sets / "held_out.parquet")["uid"].to_pylist())
    kept = []
    for run in home.entries("train"):
        keep = home.store.open(run.manifest["inputs"]["keep"]["key"])
        uids = open_pool_of(home.store, run).uids(keep.rows)
        assert not held & set(uids)
        kept.append(len(uids))
    assert len(kept) == 4, "the sweep's encoder and three arms"
    lines = [json.loads(line) for line in (swept / "results.jsonl").read_text().splitlines()]
    assert len({line["kept"] for line in lines}) == 1


def test_tables_and_the_page_show_the_tasks_by_their_names_with_the_level_of_chance(home, swept) -> None:
    size = pq.read_metadata(home.sets / "wds_mine_retrieval_test/uids.parquet").num_rows
    heading = next(line for line in (swept / "table.md").read_text().splitlines() if line.startswith("| method"))
    assert "mine_labels (chance 50)" in heading
    assert f"mine_retrieval (chance {100 / size:.2g})" in heading
    rows = list(csv.DictReader((swept / "table.csv").open()))
    assert {row["task"] for row in rows} == {"mine_labels", "mine_retrieval", "mean"}
    lines = [json.loads(line) for line in (swept / "results.jsonl").read_text().splitlines()]
    assert all(line["result"]["intervals"] for line in lines)
    assert home.run("report", "glyphs_methods") == 0
    page = (home.folder / "runs/reports/glyphs_methods/report.html").read_text()
    assert "(chance 50)" in page
    assert "mine_labels" in page
    assert "sample of an evaluation set" in page


def test_two_runs_are_compared_on_the_tasks_without_their_config(home, swept, capsys) -> None:
    files = [str(entry.folder / "results.jsonl") for entry in home.entries("evaluate")]
    assert main(["compare", *files[:2]]) == 0
    said = capsys.readouterr().out
    assert "mine_labels" in said
    assert "mine_retrieval" in said


def test_a_job_that_has_the_config_alone_finds_the_same_keys(home, swept) -> None:
    """As a task of SLURM gets its points: without the folder of configs."""
    words, _ = divide([*SWEEP, home.held, f"root={home.sets}", *home.where])
    config = compose("sweep", overrides(words), [f"{home.sets}/configs"])
    text = json.dumps(OmegaConf.to_container(config, resolve=True))
    code = (
        "import json, sys\nfrom omegaconf import OmegaConf\nfrom slurm.composer import stages\n"
        "stage = stages(OmegaConf.create(json.load(sys.stdin)))['evaluate'].stage\n"
        "from dbp.engine.stage import parameters\nprint(json.dumps(parameters(stage)))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, text=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    here = parameters(stages(config)["evaluate"].stage)
    assert json.loads(done.stdout) == json.loads(json.dumps(here))
    assert here["suites"] == {"mine": ["mine_labels", "mine_retrieval"]}


def test_a_checkpoint_that_was_trained_on_samples_of_a_set_is_told_with_their_number(home, swept, capsys) -> None:
    words = ["experiment=glyphs_methods", *POOL, "select=none", "dedup=none", *TRAIN]
    assert home.run("train", *words) == 0
    runs = {entry.key: entry.manifest["inputs"]["keep"]["key"] for entry in home.entries("train")}
    [unheld] = [run for run, keep in runs.items() if home.store.open(keep).num_kept == 600]
    capsys.readouterr()
    size = pq.read_metadata(home.sets / "wds_mine_labels_test/uids.parquet").num_rows
    for run in runs:
        evaluate = ["evaluate", *home.own, "suite=mine", f"checkpoint={run}", "evaluate.num_workers=0", *POOL]
        assert home.run(*evaluate) == 0
        told = r"warning: run (\w+) was trained on ([\d,]+) of the ([\d,]+) .* mine_labels"
        said = re.findall(told, capsys.readouterr().out)
        assert said == ([(unheld[:12], str(size), str(size))] if run == unheld else [])
