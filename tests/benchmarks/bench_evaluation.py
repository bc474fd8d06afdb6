"""Evaluation beside `clip_benchmark eval`, and beside its own bound, in one run.

    python -m venv rival
    rival/bin/pip install clip-benchmark==1.6.2 "numpy<2.4" webdataset==0.2.86
    python tests/benchmarks/bench_evaluation.py tree --rival rival/bin/python
    python tests/benchmarks/bench_evaluation.py pictures --pictures 2000 --checkpoints 1 10

`tree` writes 35 of DataComp's sets in miniature (those that the rival can do) and evaluates one checkpoint on
all of them by both programs, a process each, fp32, as many workers for both; it also says whether the numbers
agree. `pictures` measures decoding and encoding apart, with the same workers and threads, and then evaluations
of N checkpoints; the bound is what sharing decoded pictures can give: (decode + encode) / (decode / N + encode).
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SPLIT = "test"
NAMES = ["cat", "dog", "bus", "tree", "river", "house", "moon", "boat", "lamp", "fish"]
TEMPLATES = ["a photo of a {c}.", "a drawing of a {c}.", "art of the {c}.", "a blurry {c}.", "the {c}."]


def jpeg(rng: np.random.Generator, width: int, height: int, colour: np.ndarray) -> bytes:
    """A picture whose detail falls with frequency, as in photographs, of about one colour."""
    from PIL import Image

    coarse = rng.normal(0, 50, (height // 8, width // 8, 3)) + colour
    picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((width, height), 3)
    fine = np.asarray(picture, np.float64) + rng.normal(0, 9, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
    return file.getvalue()


def write(folder: Path, num: int, seed: int, size: tuple[int, int]) -> None:
    """One set of classification in DataComp's layout, in two tars."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
    from miniature import write_set

    rng = np.random.default_rng(seed)
    colours = rng.integers(256, size=(len(NAMES), 3))
    labels = rng.integers(len(NAMES), size=num)
    samples = [{"jpg": jpeg(rng, *size, colours[label]), "cls": str(label).encode()} for label in labels]
    write_set(folder, samples, class_names=NAMES, templates=TEMPLATES, samples_per_shard=-(-num // 2))


def make_checkpoint(folder: Path, model: str, seed: int) -> Path:
    """Random weights of an open_clip model, as a file."""
    import open_clip
    import torch

    path = folder / f"{model}-{seed}.pt"
    torch.manual_seed(seed)
    torch.save(open_clip.create_model(model).state_dict(), path)
    return path


def seconds(command: list[str]) -> float:
    """Wall time of a program."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[:4]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.perf_counter() - start


def tree(options: argparse.Namespace, folder: Path) -> None:
    """Both programs on the same small sets."""
    from evaluation.results import load_results
    from evaluation.tasks import load_tasks

    tasks = [
        task for task in load_tasks().values()
        if task.test_size and task.num_classes and task.group != "Glyphs"
    ]  # fmt: skip
    tasks += [
        task for key, task in load_tasks().items() if key in ("fairness/dollar_street", "fairness/geode")
    ]  # fmt: skip
    tasks = list({task.key: task for task in tasks}.values())
    for number, task in enumerate(tasks):
        # As plain classification under a name of its own, so that both programs do the same work.
        write(folder / "sets" / task.folder, options.pictures, number, (120, 90))
    weights = make_checkpoint(folder, options.model, 0)
    keys = [task.key for task in tasks if task.kind == "classification"]
    (folder / "names.txt").write_text("".join(f"wds/{key}\n" for key in keys))
    ours: list[float] = []
    rival: list[float] = []
    for number in range(options.rounds):
        home = folder / f"ours{number}"
        run_ours = [
            sys.executable, "-m", "dbp", "evaluate", f"checkpoint={weights}",
            f"model.name={options.model}", f"suite=[{','.join(keys)}]", f"root={folder / 'sets'}",
            f"paths.runs={home}", f"paths.store={home}", "evaluate.batch_size=64", "name=tree",
            f"evaluate.num_workers={options.workers}", "evaluate.device=cpu",
        ]  # fmt: skip
        run_rival = [
            options.rival, "-m", "clip_benchmark.cli", "eval", "--dataset", str(folder / "names.txt"),
            "--dataset_root", str(folder / "sets" / "wds_{dataset_cleaned}_test"), "--no_amp",
            "--model", options.model, "--pretrained", str(weights),
            "--output", str(folder / f"rival{number}" / "{dataset}.json"),
            "--num_workers", str(options.workers), "--batch_size", "64",
        ]  # fmt: skip
        (folder / f"rival{number}").mkdir()
        turns = [(ours, run_ours), (rival, run_rival)]
        for times, command in turns if number % 2 == 0 else turns[::-1]:
            times.append(seconds(command))
        print(f"round {number + 1}: ours {ours[-1]:.0f} s, clip_benchmark {rival[-1]:.0f} s", flush=True)
    found = load_results(folder / "ours0" / "evaluations" / "tree" / "results.jsonl", with_outcomes=False)
    mine = {r.task: r.metrics for r in found if r.protocol == "datacomp"}
    worst = 0.0
    for key in keys:
        theirs = json.loads((folder / "rival0" / f"{key.replace('/', '_')}.json").read_text())["metrics"]
        for name in ("acc1", "acc5", "mean_per_class_recall"):
            worst = max(worst, abs(theirs[name] - (mine[key][name] or 0.0)))
    ratios = ", ".join(f"{b / a:.2f}" for a, b in zip(ours, rival, strict=True))
    print(f"\n{len(keys)} tasks of {options.pictures} pictures, {options.model}, {options.workers} workers")
    print(f"ratio, each round: {ratios}; largest difference of a metric: {worst:.2g}")


def pictures(options: argparse.Namespace, folder: Path) -> None:
    """The bound, and what is reached of it."""
    import torch

    from dbp.encoders.openclip import load_openclip
    from evaluation.running.encode import Chunk, Towers, encode_chunks
    from evaluation.running.prepare import Asked
    from evaluation.running.runner import evaluate_checkpoints
    from evaluation.sets.data import open_set
    from evaluation.sets.pixels import Pictures, Transform

    write(folder / "sets" / "wds_food101_test", options.pictures, 0, (500, 375))
    most = max(options.checkpoints)
    towers = []
    for seed in range(most):
        loaded = load_openclip(options.model, checkpoint=make_checkpoint(folder, options.model, seed))
        towers.append(
            Towers(
                loaded.model, loaded.preprocess, loaded.tokenizer, loaded.name, loaded.digest,
                batch_size=64, num_workers=options.workers,
            )
        )  # fmt: skip
    opened = open_set(folder / "sets" / "wds_food101_test", kind="classification")
    everything = Pictures([opened], [range(len(opened))], Transform(towers[0].preprocess))

    def run(num: int) -> float:
        start = time.perf_counter()
        if num:
            evaluate_checkpoints(towers[:num], "food101", folder / "sets", Asked(("corrected",)))
        else:
            whole = [Chunk(0, 0, len(opened), models=())]
            list(encode_chunks(towers, everything, whole))
        return time.perf_counter() - start

    def encode() -> float:
        batch = torch.zeros(64, 3, towers[0].model.visual.image_size[0], towers[0].model.visual.image_size[0])
        times = []
        with torch.no_grad():
            for _ in range(12):
                start = time.perf_counter()
                towers[0].model.encode_image(batch)
                times.append(time.perf_counter() - start)
        return float(np.median(times)) / 64 * len(opened)

    for model in towers:  # texts are not what is measured here
        model.prepare_texts([t.format(c=name) for name in NAMES for t in TEMPLATES])
    for number in range(options.rounds):
        decode, forward = run(0), encode()
        print(f"round {number + 1}: decode {decode:.1f} s, encode {forward:.1f} s for {len(opened):,} pictures")
        for num in options.checkpoints:
            took = run(num)
            bound = (decode + forward) / (decode / num + forward)
            reached = num * (decode + forward) / took
            print(
                f"  {num:2d} checkpoints: {took:.1f} s, {reached:.2f} times one after the other without "
                f"overlap; bound {bound:.2f}; {reached / bound:.0%} of it",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("tree", "pictures"))
    parser.add_argument("--rival", help="a Python that has clip_benchmark and numpy below 2.4")
    parser.add_argument("--pictures", type=int, help="of a set: 30 for tree, as in the tests, 2000 for pictures")
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--model", help="ViT-B-32 for tree, ViT-S-32 for pictures")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="of each side")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options.model = options.model or ("ViT-B-32" if options.what == "tree" else "ViT-S-32")
    options.pictures = options.pictures or (30 if options.what == "tree" else 2000)
    if options.what == "tree" and not options.rival:
        parser.error("--rival is needed: the Python of an environment with clip_benchmark")
    with tempfile.TemporaryDirectory() as folder:
        (tree if options.what == "tree" else pictures)(options, Path(folder))


if __name__ == "__main__":
    main()
