"""Every command that README and docs show is run, at reduced size, or its settings are composed."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forty import write_model
from miniature import write_classification

from dbp.config import compose
from dbp.verbs.command_line import overrides

ROOT = Path(__file__).parents[2]
APART = {"extending.md", "own-encoder.md"}  # test_extending.py and test_own_encoder.py run them as they stand
DOCS = sorted(file for file in (ROOT / "docs").glob("*.md") if file.name not in APART)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
COMMAND = re.compile(r"^(?:    )?((?:dbp|torchrun|srun|LAUNCHER=\w+ slurm/studies/\w+\.sh) ?.*)$")
COMPOSED = {"curate", "train", "evaluate", "sweep", "prefetch", "sets"}

# What cannot be run here as it stands -> why; its settings are composed all the same.
ONLY_COMPOSED = {
    "encoder.cluster=dinov2_l14": "weights must be fetched; debug=smoke runs the models with random ones",
    "encoder=run:KEY": "test_own_encoder.py trains a run and curates with it",
    "experiment=temperature": "test_studies.py runs every study with debug=smoke",
    "launcher=slurm": "test_slurm_sweep.py runs sweeps on a real SLURM",
    "caption=column": "test_caption_columns.py and test_training_captions.py train on captions of a column",
    "--config-dir": "a folder of the reader's own; test_init.py composes what dbp init writes",
    "report SWEEP": "test_report.py makes the page of a sweep",
    "paper=dbp": "test_paper.py prints each paper's tables beside real runs",
    "experiment=datacomp_dbp_l14": "test_datacomp.py runs it on a metadata folder in its format",
    "pool=sorted_clusters": "test_sorted_clusters.py and test_compat.py run it on such a folder",
    "compat compute": "test_compat.py runs the four steps of the original README",
    "compat prune --num": "test_compat.py runs the four steps of the original README",
    "suite=datacomp38": "test_evaluate_cli.py runs it, as it stands, on the forty sets in miniature",
    "sweep experiment=glyphs": "test_sweep.py runs this experiment at reduced size",
    "parts=slurm": "test_slurm_parts.py runs it on a real SLURM",
    "parts run": "test_slurm_parts.py and test_parts.py run it",
    "+columns.": "fields that the reader's pool has; test_columns_of_pools.py runs them on one that has them",
    "torchrun": "test_training_ranks.py runs several processes",
    "srun": "test_slurm_training.py runs it on a real SLURM",
    "bench ": "it measures; test_bench_verb.py runs it",
    "slurm/studies/temperature.sh": "test_studies.py runs the scripts",
}
TINY_ENCODER = [
    "encoder=local_clip",
    *(f"encoder.{use}.checkpoint=tiny.pt" for use in ("dedup", "cluster", "score")),
    *(f"encoder.{use}.config=tiny.json" for use in ("dedup", "cluster", "score")),
]
CURATE = ["cluster.num_clusters=4", "dedup=semdedup_smoke"]
TRAIN = [
    "train.samples_seen=16", "train.batch_size=8", "train.num_workers=0", "train.precision=fp32",
    "train.log_every_samples=8", "train.optimiser.warmup_samples=8",
]  # fmt: skip


def commands() -> Iterator[str]:
    """The commands of every block of code; lines that end in a backslash are joined."""
    for page in PAGES:
        is_fenced = False
        for line in page.read_text().replace("\\\n", " ").splitlines():
            if line.startswith("```"):
                is_fenced = not is_fenced
            found = COMMAND.match(line)
            if found and (is_fenced or line.startswith("    ")):
                yield re.sub(r"\s+", " ", found[1].partition(" #")[0]).strip()


EVERY = list(dict.fromkeys(commands()))
RUN = [said for said in EVERY if not any(part in said for part in ONLY_COMPOSED)]


def words_of(command: str) -> list[str]:
    """Verb and settings; an ellipsis, and what is said behind it, are no settings."""
    words = shlex.split(command.partition(" …")[0] if command.startswith("dbp sweep") else command)
    return [word for word in words[1:] if word not in ("…", "[KEY", "…]")]


def test_the_pages_show_commands() -> None:
    assert len(EVERY) > 25
    assert len(RUN) > 10


def test_each_reason_to_leave_a_command_out_is_still_needed() -> None:
    for part in ONLY_COMPOSED:
        assert any(part in said for said in EVERY), f"{part!r} stands in no page"


@pytest.mark.parametrize("command", EVERY)
def test_a_command_that_is_shown_has_settings_that_exist(command: str) -> None:
    from slurm.sweep import divide

    verb, *words = [command, *words_of(command)][1:] or [""]
    if verb not in COMPOSED or "=…" in command:
        words = [word for word in words if "…" not in word]
    if verb in COMPOSED:
        while words and "=" not in words[0]:  # a verb of the sweep; --config-dir and its folder
            words = words[1:]
        mine = [word for word in words if "mysite" not in word and "experiment=FOLDER" not in word]
        compose(verb, overrides(divide(mine)[0]))


class House:
    """A folder with what the pages take for granted, and `dbp` run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_model(folder)
        write_classification(
            folder / "SETS" / "wds_vtab-dtd_test", class_names=["cat", "dog"], num_samples=20, seed=0
        )
        self.dbp("curate", "pool=glyphs", "pool.plan.num_pairs=200", "dedup=none", "select=none")
        listed = self.dbp("ls")
        key = re.findall(r"select +([0-9a-f]{12,})", listed)[0]
        self.dbp("export", f"keep={key}", "format=webdataset", "out=data", "shard_size=50")
        self.shards = sorted((folder / "data").glob("*.tar"))
        rng = np.random.default_rng(0)
        np.save(folder / "VECTORS.npy", rng.normal(size=(200, 16)).astype(np.float32))
        width = json.loads((folder / "tiny.json").read_text())["embed_dim"]
        np.save(folder / "TARGETS.npy", rng.normal(size=(20, width)).astype(np.float32))
        said = self.dbp("curate", *self.pool(), "select=dbp", "budget.keep_fraction=0.5", *CURATE, *TINY_ENCODER)
        self.key = re.findall(r"keep list ([0-9a-f]{12,})", said)[0]
        self.dbp("export", f"keep={self.key}", "format=txt", "out=uids.txt")
        self.uid = (folder / "uids.txt").read_text().split()[0]
        for seed in (0, 1):
            self.dbp(
                "evaluate", "checkpoint=tiny.pt", "model.config=tiny.json", "suite=[vtab/dtd]", "root=SETS",
                f"name={'AB'[seed]}", "evaluate.num_workers=0",
            )  # fmt: skip

    def pool(self) -> list[str]:
        return ["pool=webdataset", f"pool.shards={self.folder}/data/{{00000000..{len(self.shards) - 1:08d}}}.tar"]

    def dbp(self, *words: str) -> str:
        """Run the command line; return what it printed, after its exit status is checked."""
        done = subprocess.run(
            [sys.executable, "-m", "dbp", *words, *self.paths(words)], cwd=self.folder, text=True,
            capture_output=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{words}\n{said}"
        assert "Traceback" not in said, said
        return said

    def paths(self, words: tuple[str, ...]) -> list[str]:
        if words[0] in ("compat", "uids", "compare") or "--help" in words:
            return []
        return [f"paths.store={self.folder}/store", f"paths.runs={self.folder}/runs"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


def reduced(house: House, command: str) -> list[str]:
    """The words of a command with the house's files in place of the reader's, and small sizes."""
    names = {
        "KEY": house.key, "FOLDER": "data", "000120001": house.uid, "RESULTS_A": "runs/evaluations/A/results.jsonl",
        "RESULTS_B": "runs/evaluations/B/results.jsonl", "A/results.jsonl": "runs/evaluations/A/results.jsonl",
        "B/results.jsonl": "runs/evaluations/B/results.jsonl",
    }  # fmt: skip
    files = {"checkpoint": "tiny.pt", "model.config": "tiny.json", "root": "SETS"}
    said: dict[str, str] = {}
    plain: list[str] = []
    for word in words_of(command):
        name, equals, value = word.partition("=")
        if not equals:
            plain.append(names.get(word, word))
        elif name.startswith("pool.shards"):
            continue
        elif "FILE" in value or "FOLDER" in value:
            said[name] = files.get(name.rpartition("encoder.")[2].rpartition("score.")[2], "")
            own = {"encoder.cluster.images": "VECTORS.npy", "scores.near.targets": "TARGETS.npy"}
            own["out"] = f"out-{RUN.index(command)}"
            said[name] = said[name] or own[name]
        else:
            said[name] = names.get(value, value)
    if plain[0] in ("curate", "train"):
        more = [*house.pool(), *CURATE, *(TRAIN if plain[0] == "train" else [])]
        more += ["select=uniform", "budget.keep_fraction=0.5"]
        if said.get("encoder") == "precomputed":
            images = [f"encoder.{use}.images=VECTORS.npy" for use in ("dedup", "cluster", "score")]
            more += [*images, "encoder.score.texts=VECTORS.npy"]
        else:
            more += TINY_ENCODER
        said = {**dict(word.split("=", 1) for word in more), **said}
        said |= {"model": "glyphs"} if "model" in said else {}
        if said.get("encoder.cluster") == "precomputed":  # which has no checkpoint
            own = ("encoder.cluster", "encoder.cluster.images")
            said = {n: v for n, v in said.items() if n in own or not n.startswith("encoder.cluster")}
    if plain[0] == "sets":
        said |= dict(word.split("=", 1) for word in [*house.pool(), "sets.share=0.5", "sets.labels=format"])
    return [*plain, *(f"{name}={value}" for name, value in said.items())]


@pytest.mark.nightly
@pytest.mark.parametrize("command", RUN)
def test_a_command_that_is_shown_does_what_is_said(house: House, command: str) -> None:
    house.dbp(*reduced(house, command))
