"""The examples of docs/extending.md, run as a reader would: in a folder of their own, and inside the repository."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forty import write_model
from miniature import write_classification
from PIL import Image

from dbp.engine.store import Store

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`((?:methods|configs)/[\w/.]+)`\n\n```\w+\n(.*?)^```$", DOC, re.M | re.S))
NUM_ROWS, WIDTH = 240, 16
SIDES = ("images", "texts")
# Where a module of each kind lies in the repository.
ROOMS = {"median": "selection", "margin": "scoring", "signs": "clustering", "captioned_folder": "pools"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with captions, and the vectors of an encoder: ten concepts, captions of some swapped."""
    folder = tmp_path_factory.mktemp("photos")
    chance = np.random.default_rng(0)
    centres = chance.normal(size=(10, WIDTH))
    concept = chance.integers(0, 10, NUM_ROWS)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        for row in range(NUM_ROWS):
            Image.new("RGB", (8, 8), (row, concept[row] * 20, 0)).save(folder / f"{row}.png")
            writer.writerow([f"{row}.png", f"a photo of {concept[row]}" if row % 6 else "photo"])
    for side, noise in zip(SIDES, (0.3, 0.6), strict=True):
        vectors = centres[concept] + noise * chance.normal(size=(NUM_ROWS, WIDTH))
        np.save(folder / f"{side}.npy", vectors.astype(np.float32))
    return folder


def write(home: Path, inside: bool = False) -> None:
    """Write the examples' files: into a folder of one's own, or where the repository has its like."""
    for name, text in FILES.items():
        for stem, room in ROOMS.items() if inside else ():
            text = text.replace(f"methods.{stem}.", f"dbp.{room}.{stem}.")
        if inside and name.startswith("methods/"):
            name = f"dbp/{ROOMS[Path(name).stem]}/{Path(name).name}"
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)


def dbp(words: list[str], cwd: Path, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dbp", *words],
        cwd=cwd, text=True, capture_output=True, timeout=300, env={**os.environ, "PYTHONPATH": str(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def settings(photos: Path, store: Path) -> list[str]:
    pool = ["pool=captioned_folder", f"pool.folder={photos}", "encoder=precomputed", "parts.device=cpu"]
    uses = [f"encoder.{use}.{side}={photos}/{side}.npy" for use in ("dedup", "cluster", "score") for side in SIDES]
    score = ["+score@scores.margin=margin", "filter=top_fraction", "filter.score=margin", "filter.fraction=0.5"]
    chosen = ["dedup=exact", "cluster=signs", "select=median", "budget.num_kept=50"]
    return [*pool, *uses, *score, *chosen, f"paths.store={store}", f"paths.runs={store}-runs"]


def check(store: Store, photos: Path) -> str:
    """What was kept is what the examples' texts say, worked out again here from the vectors."""
    found = {(entry.stage, entry.manifest["made_by"]["_target_"]): entry for entry in store.entries()}
    at = {stage: entry for (stage, _), entry in found.items()}
    scores, kept = store.open(at["score"].key), store.open(at["select"].key)
    assert scores.label == "margin"
    image, text = (np.load(photos / f"{side}.npy").astype(np.float64) for side in SIDES)
    image, text = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text))
    short = np.arange(NUM_ROWS) % 6 == 0
    expected = (image * text).sum(axis=1) - image @ text.mean(axis=0) - 0.1 * short
    assert np.abs(scores.values - expected).max() < 5e-3, "vectors are stored in fp16"
    clusters, left = store.open(at["cluster"].key), store.open(at["filter"].key).mask
    assert left.sum() == NUM_ROWS // 2
    assert scores.values[left].min() >= scores.values[~left].max()
    distance = 1 - (image * clusters.centroids[clusters.assignment]).sum(axis=1)
    assert np.abs(distance - clusters.distance_to_centroid).max() < 5e-3
    assert 2 <= clusters.num_clusters <= 8
    off = np.full(NUM_ROWS, np.inf)
    for cluster in range(clusters.num_clusters):
        own = left & (clusters.assignment == cluster)
        off[own] = np.abs(clusters.distance_to_centroid[own] - np.median(clusters.distance_to_centroid[own]))
    assert kept.num_kept == 50
    assert off[kept.mask].max() <= off[left & ~kept.mask].min()
    assert {"near the median", "far from the median", "margin below the limit"} <= set(
        kept.decisions["reason"].to_pylist()
    )
    return kept.digest


def test_the_examples_of_extensions_work_from_a_folder_outside(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "mine"
    write(home)
    monkeypatch.syspath_prepend(home)
    words = ["--config-dir", str(home / "configs"), *settings(photos, tmp_path / "store")]
    path = Path(os.pathsep.join([str(home), str(ROOT)]))
    assert "select" in dbp(["curate", *words, "dry_run=true"], tmp_path, path)
    assert "kept 50 of 240 rows" in dbp(["curate", *words], tmp_path, path)
    check(Store(tmp_path / "store", tmp_path / "store-runs"), photos)


def test_a_task_of_ones_own_is_evaluated_and_compared_under_its_name(tmp_path: Path) -> None:
    home = tmp_path / "mine"
    write(home)
    write_model(tmp_path)
    sets = tmp_path / "SETS"
    write_classification(sets / "wds_cats_test", class_names=["cat", "dog"], num_samples=20, seed=0)
    weights = [
        f"checkpoint={tmp_path}/tiny.pt",
        f"model.config={tmp_path}/tiny.json",
        f"paths.runs={tmp_path}/runs",
    ]
    words = ["evaluate", "--config-dir", str(home / "configs"), *weights, "suite=[cats]", f"root={sets}"]
    for name in ("A", "B"):
        said = dbp([*words, f"name={name}", "evaluate.num_workers=0"], tmp_path, ROOT)
        assert "Cats or dogs" in said
    files = [str(tmp_path / "runs" / "evaluations" / name / "results.jsonl") for name in ("A", "B")]
    line = json.loads(Path(files[0]).read_text().splitlines()[0])
    assert line["task"] == "cats"
    assert line["own_task"]["main_metric"] == "acc1"
    assert "Cats or dogs" in dbp(["compare", *files], tmp_path, ROOT), "without the config folder"


@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        ("cifar10", "kind: classification\nmain_metric: acc1", "tasks.cifar10"),
        ("mine", "kind: clasification\nmain_metric: acc1", "classification"),
        ("mine", "kind: classification\nmain_metrik: acc1", "main_metric"),
    ],
)
def test_a_task_that_is_wrong_is_refused_before_any_work(name: str, facts: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / f"{name}.yaml").write_text(facts)
    words = ["--config-dir", str(tmp_path), f"suite=[{name}]", "checkpoint=none.pt", f"root={tmp_path}"]
    with pytest.raises(AssertionError, match=f"ConfigError.*{said}"):
        dbp(["evaluate", *words], tmp_path, ROOT)


@pytest.mark.slow
def test_the_same_files_work_inside_the_repository(photos: Path, tmp_path: Path) -> None:
    """In a copy of it, with a registered name for each class; the keep list is the same, and has the same key."""
    copy = tmp_path / "copy"
    for folder in ("dbp", "training", "evaluation", "slurm", "configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    write(copy, inside=True)
    names = {
        "select/median": "dbp.selection.median.Median",
        "score/margin": "dbp.scoring.margin.Margin",
        "cluster/signs": "dbp.clustering.signs.Signs",
        "pool/captioned_folder": "dbp.pools.captioned_folder.CaptionedFolder",
    }
    table = copy / "dbp" / "names.py"
    lines = "".join(f'    "{name}": "{place}",\n' for name, place in names.items())
    table.write_text(table.read_text().replace("PLACES = {\n", "PLACES = {\n" + lines, 1))
    dbp(["curate", *settings(photos, tmp_path / "inside")], copy, copy)
    inside = Store(tmp_path / "inside", tmp_path / "inside-runs")
    made = {entry.manifest["made_by"]["_target_"] for entry in inside.entries()}
    assert {"select/median", "score/margin", "cluster/signs"} <= made
    home = tmp_path / "mine"
    write(home)
    path = Path(os.pathsep.join([str(home), str(ROOT)]))
    words = ["--config-dir", str(home / "configs"), *settings(photos, tmp_path / "outside")]
    dbp(["curate", *words], tmp_path, path)
    outside = Store(tmp_path / "outside", tmp_path / "outside-runs")
    assert {entry.key for entry in inside.entries()} == {entry.key for entry in outside.entries()}
