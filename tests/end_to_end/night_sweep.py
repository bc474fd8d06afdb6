"""A small glyphs sweep for tests that run it on a real SLURM, and what they see of it from outside."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.append(str(HERE))
runs: Any = importlib.import_module("training_runs")

BATCH, STEPS = 32, 128
EXPERIMENT = """\
# @package _global_
defaults:
  - override /pool: glyphs
  - override /encoder@encoder.dedup: local_clip
  - override /encoder@encoder.cluster: local_clip
  - override /encoder@encoder.score: local_clip
  - override /dedup: semdedup_smoke
  - override /train: glyphs
pool: {{plan: {{num_pairs: 600, task_pictures: 60}}}}
model: {{name: null, config: {model}}}
train:
  samples_seen: {samples}
  batch_size: {batch}
  log_every_samples: {batch}
  checkpoint_every_samples: {often}
cluster: {{num_clusters: 4}}
budget: {{keep_fraction: 0.4, of: dedup}}
suite: [glyphs/letters, glyphs/retrieval]
root: glyphs
evaluate: {{limit: 40, max_templates: 1}}
sweep:
  name: night
  encoder:
    select: uniform
    dedup: none
    seed: 1000
    budget: {{keep_fraction: 0.5}}
    train: {{samples_seen: {encoder}}}
  arms:
    uniform: {{select: uniform}}
    ssp: {{select: ssp}}
    dbp: {{select: dbp}}
  axes:
    budget.keep_fraction: [0.3, 0.5]
    select.temperature: [0.1, 0.0001]
    seed: [0, 1]
  plots: false
  workers: 1
"""


def write_configs(folder: Path) -> Path:
    """A folder of configs outside of the clone, with the experiment."""
    (folder / "experiment").mkdir()
    (folder / "vit.json").write_text(json.dumps(runs.VIT))
    text = EXPERIMENT.format(
        model=folder / "vit.json", samples=BATCH * STEPS, batch=BATCH, often=8 * BATCH,
        encoder=8 * BATCH,
    )  # fmt: skip
    (folder / "experiment" / "night.yaml").write_text(text)
    return folder


@dataclass(frozen=True)
class Home:
    """A store with its runs, and where the sweep's config lies."""

    folder: Path
    configs: Path

    @property
    def out(self) -> Path:
        return self.folder / "runs" / "sweeps" / "night"

    def sweep(self, *words: str, status: int = 0) -> str:
        """What `dbp sweep` says; it must end with this status."""
        verb = [words[0]] if words and "=" not in words[0] else []
        command = [
            sys.executable, "-m", "dbp", "sweep", *verb, "--config-dir", str(self.configs),
            "experiment=night", f"paths.store={self.folder}/store", f"paths.runs={self.folder}/runs",
            *words[len(verb) :],
        ]  # fmt: skip
        done = subprocess.run(command, text=True, capture_output=True, timeout=1200)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.out / "slurm" / "manifest.json").read_text())

    def logs(self, role: str = "*") -> str:
        files = sorted((self.out / "slurm" / "logs").glob(f"{role}-*.log"))
        return "\n".join(f"{file.name}:\n{file.read_text()}" for file in files)

    def artifacts(self) -> set[tuple[str, str]]:
        """Stage and key of all that is complete."""
        found = [*self.folder.glob("store/[!.]*/*/manifest.json")]
        found += self.folder.glob("runs/[!.]*/*/manifest.json")
        return {(path.parent.parent.name, path.parent.name) for path in found}

    def results(self) -> list[dict[str, Any]]:
        """The lines of the table's file, but for what the clock has a part in."""
        lines = [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]
        for line in lines:
            del line["seconds"]
            del line["result"]["index_digest"]  # of the times of the sets' files
        return lines

    def keep_lists(self) -> dict[str, str]:
        return {
            file.parent.name: json.loads(file.read_text())["digest"]
            for file in self.folder.glob("store/select/*/keep.json")
        }

    def half_written(self) -> list[Path]:
        return [*self.folder.glob("*/.tmp/*"), *self.folder.glob("*/.partial/*")]


def wait_until_empty(slurm: Any, home: Home, seconds: float = 1800) -> None:
    """Wait for the last job; a task that is put back leaves the queue for a moment."""
    until, empty = time.monotonic() + seconds, 0
    while empty < 2:
        assert time.monotonic() < until, (slurm.queue(), home.logs())
        empty = empty + 1 if not slurm.queue() else 0
        time.sleep(1)


@dataclass(frozen=True)
class Training:
    """A process that trains now, and what SLURM knows it by."""

    pid: int
    job: str
    task: str
    node: str
    partial: Path


def training(home: Home, step: int, but: set[Path] = frozenset(), seconds: float = 600) -> Training:  # type: ignore[assignment]
    """Wait until a run that is none of some others has passed a step."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for metrics in home.folder.glob("runs/.partial/train-*/metrics.jsonl"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                last = json.loads(metrics.read_text().splitlines()[-1])["step"]
                is_wanted = step <= last < STEPS and metrics.parent not in but
                if is_wanted and (found := writer(metrics)):
                    return found
        time.sleep(0.05)
    raise AssertionError(f"no run passed step {step}: {home.logs()}")


def writer(metrics: Path) -> Training | None:
    """The process that has the record of a run open."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, KeyError):
            if any(os.readlink(handle) == str(metrics) for handle in (folder / "fd").iterdir()):
                pairs = (folder / "environ").read_text().split("\0")
                known = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                return Training(
                    int(folder.name), known["SLURM_ARRAY_JOB_ID"], known["SLURM_ARRAY_TASK_ID"],
                    known["SLURMD_NODENAME"], metrics.parent,
                )  # fmt: skip
    return None


def expected(slurm: Any, home: Home, finished: Home) -> Counter[str]:
    """What is true of each point now, from squeue and the folders, without any of our code.

    Args:
        slurm: The cluster.
        home: Of the sweep.
        finished: Where its points are done: there stands what each evaluation rests on.
    """
    folder = home.out / "slurm"
    said = slurm.call("squeue", "--noheader", "--array", "--format=%F|%K|%T").splitlines()
    queue = {tuple(line.split("|")[:2]): line.split("|")[2] for line in said}
    rounds = [json.loads(file.read_text()) for file in sorted(folder.glob("round-*.json"))]
    found: dict[str, str] = {}
    for key in {key for said in rounds for key in said["keys"]}:
        mine = [
            (job["role"], queue.get((job["number"], str(number))))
            for job in home.manifest()["jobs"]
            for number, keys in enumerate(job["elements"])
            if key in keys
        ]
        made = json.loads((finished.folder / "runs/evaluate" / key / "manifest.json").read_text())
        trained = home.folder / "runs/train" / made["inputs"]["checkpoint"]["key"]
        states = {state for role, state in mine if role != "evaluate" or trained.exists()}
        if (home.folder / "runs" / "evaluate" / key / "manifest.json").exists():
            found[key] = "done"
        elif states & {"RUNNING", "COMPLETING"}:
            found[key] = "running"
        elif states & {"PENDING", "REQUEUED"}:
            found[key] = "waiting"
        else:
            found[key] = "failed"
    return Counter(found.values())


def tell_truth(slurm: Any, home: Home, finished: Home, *words: str) -> str:
    """What `status` says, compared with what was true both before and after it said so."""
    for _ in range(8):
        before = expected(slurm, home, finished)
        said = home.sweep("status", *words)
        if before == expected(slurm, home, finished):
            counts = said.splitlines()[-1].split(", ")
            told = {word: int(n) for n, word in (count.split(" ", 1) for count in counts)}
            assert told == before, said
            return said
    raise AssertionError("nothing stood still long enough to be told")
