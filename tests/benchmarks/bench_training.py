"""Feeding and training beside open_clip_train: pairs a second of both, in turn, on one machine.

    python -m venv rival
    rival/bin/pip install open_clip_torch==3.3.0 webdataset==0.2.86 pandas braceexpand ftfy regex timm
    python tests/benchmarks/bench_training.py --rival rival/bin/python --pairs 5120 --rounds 5 --workers 2

Makes JPEGs of 512 x 384 at quality 85 (noise of a natural spectrum, 73 KiB each) with captions and
uids in tars, then trains one network by both programs, a process each, as many workers for both. The
rival streams the tars; at a keep fraction it drops by uid before it decodes (`dbp/formats/contains.py` in its
pipeline, as docs/loaders.md says) or reads tars that hold the kept pairs alone. The network is tiny
(width 64, two layers a tower, 16 patches at 224 px), so that feeding is measured; since even that costs a
core some milliseconds a pair, feeding is measured without any network, too. Then ViT-B/32. `trimmed` cuts
captions behind the longest of a batch (`train.trim_captions`), with the same features and gradients.

A rate is taken from the end of a run's first step to the end of its last, so imports and the start of
workers do not count. Ratios are taken round by round, since the machine's speed wanders.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
SIZE, PATCH, BATCH = 224, 56, 128
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIZE, "patch_size": PATCH, "width": 64, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
WORDS = ["a", "photo", "of", "one", "old", "red", "bus", "tree", "river", "dog", "in", "a", "town"]
GOALS = {
    "unpruned, reference": ("unpruned", 1.3),
    "kept 0.2, reference": ("kept 0.2, streamed", 2.0),
    "kept 0.2, reference ": ("kept 0.2, resharded", 1.3),
    "unpruned, fast": ("unpruned", None),
    "kept 0.2, fast": ("kept 0.2, streamed", 3.0),
    "kept 0.2, fast, trimmed": ("kept 0.2, streamed", 3.0),
    "feeding alone, unpruned, reference": ("feeding alone, unpruned", None),
    "feeding alone, kept 0.2, reference": ("feeding alone, kept 0.2, streamed", None),
    "feeding alone, kept 0.2, fast": ("feeding alone, kept 0.2, streamed", None),
    "ViT-B/32, reference": ("ViT-B/32", 0.98),
    "ViT-B/32, trimmed": ("ViT-B/32", None),
}


def picture(rng: np.random.Generator, width: int = 512, height: int = 384) -> np.ndarray:
    """Noise whose power falls with the frequency as in photographs; JPEG finds it as hard."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1

    def field() -> np.ndarray:
        noise = np.fft.rfft2(rng.standard_normal((height, width)))
        made = np.fft.irfft2(noise / frequency**1.2, (height, width))
        return made / made.std()

    light = field()
    colours = [128 + 52 * (light + 0.15 * field()) for _ in range(3)]
    return np.clip(np.stack(colours, -1), 0, 255).astype(np.uint8)


def make_tars(folder: Path, num_pairs: int, num_tars: int, keep: float) -> None:
    """`all/*.tar`, `kept/*.tar` with the kept pairs alone, and `keep.txt` with their uids."""
    from PIL import Image

    rng = np.random.default_rng(0)
    # Decoding costs the same for each picture of the kind; a few hundred different ones are enough.
    pictures = []
    for _ in range(min(num_pairs, 256)):
        content = io.BytesIO()
        Image.fromarray(picture(rng)).save(content, "jpeg", quality=85)
        pictures.append(content.getvalue())
    print(f"{num_pairs:,} pairs, {np.mean([len(p) for p in pictures]) / 1024:.0f} KiB a picture")
    is_kept = np.zeros(num_pairs, bool)
    is_kept[rng.permutation(num_pairs)[: round(keep * num_pairs)]] = True
    uids = [f"{int(a):016x}{i:016x}" for i, a in enumerate(rng.integers(2**63, size=num_pairs))]
    (folder / "keep.txt").write_text("\n".join(uids[i] for i in np.flatnonzero(is_kept)))
    for name, rows in (("all", np.arange(num_pairs)), ("kept", np.flatnonzero(is_kept))):
        (folder / name).mkdir()
        for number, mine in enumerate(np.array_split(rows, num_tars)):
            with tarfile.open(folder / name / f"{number:05d}.tar", "w") as tar:
                for row in mine:
                    caption = " ".join(WORDS[k] for k in rng.integers(len(WORDS), size=12))
                    members = {
                        "jpg": pictures[row % len(pictures)],
                        "json": json.dumps({"uid": uids[row], "caption": caption}).encode(),
                        "txt": f"{caption} {row}".encode(),
                    }
                    for extension, content in members.items():
                        info = tarfile.TarInfo(f"{row:09d}.{extension}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))


def train_rival(given: dict[str, Any]) -> list[float]:
    """open_clip_train's own main; the times at which its steps end."""
    import open_clip
    import open_clip_train.data as data
    import open_clip_train.main as main
    import open_clip_train.train as loop

    if given["keep"]:
        spec = importlib.util.spec_from_file_location("contains", HERE.parents[2] / "dbp/formats/contains.py")
        assert spec is not None
        assert spec.loader is not None
        contains = importlib.util.module_from_spec(spec)
        sys.modules["contains"] = contains
        spec.loader.exec_module(contains)
        keep = contains.Keep.open(given["keep"])
        usual = data.filter_no_caption_or_no_image
        data.filter_no_caption_or_no_image = keep.sample_filter("json:uid", also=usual)
    ends: list[float] = []
    unwrap = loop.unwrap_model

    def unwrap_and_note(model: Any) -> Any:
        ends.append(time.perf_counter())  # called once a step, behind the optimiser
        return unwrap(model)

    loop.unwrap_model = unwrap_and_note

    def only_feed(model: Any, data: Any, loss: Any, epoch: int, *others: Any, **more: Any) -> None:
        data["train"].set_epoch(epoch)
        for _ in data["train"].dataloader:
            ends.append(time.perf_counter())

    if not given["network"]:
        main.train_one_epoch = only_feed
    if given["model"] == "tiny":
        open_clip.add_model_config(Path(given["folder"], "tiny.json"))
    main.main(
        [
            "--train-data", f"{given['tars']}/{{00000..{given['num_tars'] - 1:05d}}}.tar",
            "--train-num-samples", str(given["epoch"]), "--dataset-type", "webdataset",
            "--model", given["model"], "--batch-size", str(given["batch"]),
            "--epochs", str(given["epochs"]), "--workers", str(given["workers"]),
            "--precision", "fp32", "--device", "cpu", "--warmup", "5", "--lr", "1e-3",
            "--logs", str(Path(given["folder"], "logs")), "--log-every-n-steps", "1000",
        ]
    )  # fmt: skip
    return ends


def train_ours(given: dict[str, Any]) -> list[float]:
    """The parts of `dbp train`, put together; the times at which its steps end."""
    from lightning.pytorch import Callback

    from dbp.data.keep_list import everything
    from dbp.engine.store import Store
    from dbp.formats.contains import Keep
    from dbp.pools.index import Index
    from training.account.horizon import Horizon
    from training.config import Model, Optimiser
    from training.feed.augmentation import RandomResizedCrop
    from training.feed.data import Pairs, make_loader
    from training.feed.order import Batches, Order
    from training.feed.subset import Subset
    from training.step.fit import fresh_model, make_trainer
    from training.step.module import Contrastive

    shards = [str(path) for path in sorted(Path(given["tars"]).glob("*.tar"))]
    index = Index(uid="json:uid", caption="txt", max_pixels=10**9, shards=shards)
    pool = Store(Path(given["folder"], "store")).get(index.bind(folder=None))
    keep = everything(pool.digest, pool.is_valid)
    if given["keep"]:
        is_kept = np.asarray(Keep.open(given["keep"]).contains_many(pool.uids()))
        keep = keep.narrow("listed", is_kept[keep.rows], "not listed", "listed")
    subset = Subset.of(pool, keep)
    tiny = given["model"] == "tiny"
    loaded = fresh_model(Model(config=TINY) if tiny else Model(name=given["model"]), 0)
    sees = loaded.model.visual.preprocess_cfg
    steps = given["epochs"] * given["epoch"] // given["batch"]
    horizon = Horizon(len(subset), given["batch"], steps)
    optimiser = Optimiser(1e-3, 0.9, 0.98, 1e-6, 0.2, "openclip3", "cosine", 5 * given["batch"], fused=True)
    recipe = RandomResizedCrop(0.9, 1.0, decode=given["decode"])
    pairs = Pairs(subset, recipe, SIZE, loaded.tokenizer, 0)
    module = Contrastive(loaded.model, optimiser, horizon, 0, sees["mean"], sees["std"], trims=given["trims"])
    ends: list[float] = []

    class Clock(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            ends.append(time.perf_counter())

    loader = make_loader(pairs, Batches(Order(subset.keys, 0), horizon), given["workers"])
    if not given["network"]:
        for _, batch in zip(range(steps), loader, strict=False):  # its batches have no end
            module.normalise(batch["images"])  # which the rival's workers have done
            ends.append(time.perf_counter())
        return ends
    trainer = make_trainer(Path(given["folder"]), steps, "cpu", "fp32", [Clock()])
    trainer.fit(module, loader)
    return ends


def rate(python: str, side: str, given: dict[str, Any]) -> float:
    """Pairs a second of one run in a process of its own."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    command = [python, str(HERE), "--side", side, "--given", json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    ends = json.loads(done.stdout.splitlines()[-1])
    return (len(ends) - 1) * given["batch"] / (ends[-1] - ends[0])


def arms(options: argparse.Namespace, folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Each arm's side and settings."""
    whole = options.pairs // BATCH * BATCH
    few = round(options.pairs * 0.2) // BATCH * BATCH
    common = {
        "folder": str(folder), "num_tars": options.tars, "workers": options.workers, "batch": BATCH,
        "model": "tiny", "network": True, "keep": None, "tars": str(folder / "all"), "decode": "reference",
        "trims": False,
    }  # fmt: skip
    unpruned = {**common, "epoch": whole, "epochs": 1}
    epochs = max(1, whole // few)
    kept = {**common, "keep": str(folder / "keep.txt"), "epoch": few, "epochs": epochs}
    resharded = {**kept, "keep": None, "tars": str(folder / "kept")}
    vit = {
        **common, "model": "ViT-B-32", "batch": options.vit_batch, "epochs": 1,
        "epoch": options.vit_batch * options.vit_steps,
    }  # fmt: skip
    found = {
        "unpruned": ("rival", unpruned),
        "unpruned, reference": ("ours", unpruned),
        "unpruned, fast": ("ours", {**unpruned, "decode": "fast"}),
        "kept 0.2, streamed": ("rival", kept),
        "kept 0.2, resharded": ("rival", resharded),
        "kept 0.2, reference": ("ours", kept),
        "kept 0.2, fast": ("ours", {**kept, "decode": "fast"}),
        "kept 0.2, fast, trimmed": ("ours", {**kept, "decode": "fast", "trims": True}),
    }
    found |= {
        f"feeding alone, {name}": (side, {**given, "network": False})
        for name, (side, given) in found.items()
        if "resharded" not in name and "trimmed" not in name and name != "unpruned, fast"
    }
    if options.vit_steps:
        found |= {"ViT-B/32": ("rival", vit), "ViT-B/32, reference": ("ours", vit)}
        found["ViT-B/32, trimmed"] = ("ours", {**vit, "trims": True})
    return found


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run all arms in turn, round by round, and print the tables."""
    make_tars(folder, options.pairs, options.tars, 0.2)
    (folder / "tiny.json").write_text(json.dumps(TINY))
    chosen = {n: a for n, a in arms(options, folder).items() if not options.only or options.only in n}
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(options.rounds):
        # Every other round backwards, so that a machine that slows down favours nobody.
        for name in list(chosen)[:: 1 if number % 2 == 0 else -1]:
            side, given = chosen[name]
            python = options.rival if side == "rival" else sys.executable
            rates[name].append(rate(python, side, given))
            print(f"round {number + 1}: {name}: {rates[name][-1]:,.1f} pairs/s", flush=True)
    print("\n| ours | pairs/s | open_clip_train | pairs/s | ratio, each round | median | goal |")
    print("|---|---|---|---|---|---|---|")
    for ours, (rival, goal) in GOALS.items():
        if ours.strip() not in rates or rival not in rates:
            continue
        mine, other = rates[ours.strip()], rates[rival]
        ratios = np.array(mine) / np.array(other)
        print(
            f"| {ours.strip()} | {np.median(mine):,.0f} | {rival} | {np.median(other):,.0f} | "
            f"{', '.join(f'{r:.2f}' for r in ratios)} | {np.median(ratios):.2f} | {goal or ''} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rival", help="a Python that has open_clip_train and webdataset 0.2.86")
    parser.add_argument("--pairs", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of each side")
    parser.add_argument("--tars", type=int, default=16)
    parser.add_argument("--vit-steps", type=int, default=6, help="of ViT-B/32; 0 leaves it out")
    parser.add_argument("--vit-batch", type=int, default=16)
    parser.add_argument("--only", help="arms whose name holds this")
    parser.add_argument("--folder", help="where to work; by default the system's temporary folder")
    parser.add_argument("--side", choices=("ours", "rival"), help=argparse.SUPPRESS)
    parser.add_argument("--given", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        with contextlib.redirect_stdout(sys.stderr):
            train = train_ours if options.side == "ours" else train_rival
            ends = train(json.loads(options.given))
        print(json.dumps(ends))
        return
    if not options.rival:
        parser.error("--rival is needed: the Python of an environment with open_clip_train")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(options, Path(folder))


if __name__ == "__main__":
    main()
