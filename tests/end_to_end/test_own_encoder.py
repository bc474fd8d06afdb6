"""docs/own-encoder.md, typed as it stands: from a folder of tars, without weights and network, to the page."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from signs import write_signs

from dbp.engine.store import Store
from dbp.lineage import open_pool_of

pytestmark = pytest.mark.slow  # an encoder, five arms, and another encoder
ROOT = Path(__file__).parents[2]
COMMANDS = re.findall(r"^    dbp (.*)$", (ROOT / "docs/own-encoder.md").read_text(), re.M)
TINY = ["train.samples_seen=128", "train.batch_size=32", "train.log_every_samples=64", "evaluate.num_workers=0"]
ALIKE = "dedup=semdedup_smoke"  # to an encoder of four steps everything is alike
# What is added to a command, so that it takes seconds; all else is as the page has it.
SMALL = {
    "train": TINY[:3],
    "sweep": [
        *TINY,
        "sweep.encoder.train.samples_seen=128",
        "sweep.workers=1",
        "sweep.plots=false",
        "sweep.seed=[0]",
        ALIKE,
    ],
    "curate": [ALIKE],
    "evaluate": ["evaluate.num_workers=0"],
}


class Reader:
    """A person in a folder that holds `pets`, who types what the page says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, dict[str, str]()
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.env |= {"HF_HOME": str(folder / "empty"), "HOME": str(folder / "empty"), "CUDA_VISIBLE_DEVICES": ""}

    def type(self, command: str, status: int = 0) -> str:
        words = shlex.split(command)
        done = subprocess.run(
            [sys.executable, "-m", "dbp", *words, *SMALL.get(words[0], [])], cwd=self.folder, text=True,
            capture_output=True, timeout=3000, env=self.env,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == status, f"{words}\n{said}"
        assert "Traceback" not in said, said
        self.said[words[0]] = said
        return said

    @property
    def store(self) -> Store:
        return Store(self.folder / "store", self.folder / "runs")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The first four commands of the page are done."""
    reader = Reader(tmp_path_factory.mktemp("stranger"))
    write_signs(reader.folder / "pets", 300, shards=2, sides=(48, 64))
    assert [command.split()[0] for command in COMMANDS[:4]] == ["init", "sets", "sweep", "report"]
    for command in COMMANDS[:4]:
        reader.type(command)
    return reader


def test_the_commands_that_init_prints_are_those_of_the_page(reader):
    printed = re.findall(r"^  dbp (.*)$", reader.said["init"], re.M)
    home = f"{reader.folder}"
    plain = [line.replace(f"{home}/", "").replace(f"--config-dir {home}", "--config-dir .") for line in printed]
    assert plain == COMMANDS[1:4]
    assert "neither" in reader.said["init"]


def test_the_sweep_trains_an_own_encoder_and_all_arms_and_tasks_are_in_the_table(reader):
    runs = [entry for entry in reader.store.entries() if entry.stage == "train"]
    assert len(runs) == 1 + 5
    rows = list(csv.DictReader((reader.folder / "runs/sweeps/pets/table.csv").open()))
    assert {row["task"] for row in rows} == {"pets_labels", "pets_retrieval", "mean"}
    arms = {"unpruned", "uniform", "clip score", "ssp", "dbp"}
    assert arms <= {next(iter(row.values())) for row in rows} | {row.get("arm", row.get("method")) for row in rows}
    page = (reader.folder / "runs/reports/pets/report.html").read_text()
    assert "pets_labels" in page
    assert "source" in page, "kept rates by a field of the json"


def test_no_encoder_and_no_arm_was_trained_on_a_held_out_sample(reader):
    held = set(pq.read_table(reader.folder / "pets_sets/held_out.parquet")["uid"].to_pylist())
    assert held
    for run in (entry for entry in reader.store.entries() if entry.stage == "train"):
        keep = reader.store.open(run.manifest["inputs"]["keep"]["key"])
        assert not held & set(open_pool_of(reader.store, run).uids(keep.rows))


def test_single_commands_train_curate_and_evaluate_by_the_key_that_training_prints(reader):
    said = reader.type("curate --config-dir . experiment=pets encoder=own", status=1)
    (told,) = re.findall(r"^  dbp (train .*)$", said, re.M)
    assert told == COMMANDS[4]
    said = reader.type(COMMANDS[4])
    key = re.search(r"encoder=run:(\w+)", said)
    assert key
    assert f"dbp evaluate checkpoint=run:{key[1]}" in said
    said = reader.type(COMMANDS[5].replace("KEY", key[1]))
    assert "keep list" in said
    again = reader.type(f"curate --config-dir . experiment=pets encoder=run:{key[1][:6]}")
    assert "0 made" in again
    said = reader.type(COMMANDS[6].replace("KEY", key[1]))
    assert "2 tasks evaluated, 0 failed" in said
    assert len(COMMANDS) == 7, "every command of the page is run here"
