"""A pool of coloured pictures, a captioner small enough to train in seconds, and a store with both."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dbp.captioning.captioner import Network
from dbp.captioning.codes import Encode
from dbp.captioning.refine import Refine
from dbp.curate import ValidRows
from dbp.encoders.openclip import OpenClip
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.pools.index import Index
from training.captioner import TrainCaptioner
from training.config import Optimiser
from training.feed.augmentation import Shift

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 220), "white": (240,) * 3}
SHAPES = ("disc", "bar")
BROKEN = 5  # its picture has a sound header and no pixels
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
NETWORK = Network(
    num_codes=16, code_width=16, commitment=0.25, decay=0.9, revive_below=0.03, decoder_width=32,
    decoder_layers=1, decoder_heads=2, length=8,
)  # fmt: skip
GREEDY = Refine(temperature=0.0, top_p=1.0, seed=0, device="cpu")


def picture(colour: str, shape: str, rng: np.random.Generator) -> Image.Image:
    """A shape of a colour on black, moved and with noise."""
    pixels = rng.integers(0, 30, (32, 32, 3))
    down, across = rng.integers(4, 12, 2)
    if shape == "bar":
        pixels[down : down + 4, 2:30] = COLOURS[colour]
    else:
        y, x = np.mgrid[:32, :32]
        pixels[(y - down - 6) ** 2 + (x - across - 6) ** 2 < 36] = COLOURS[colour]
    return Image.fromarray(pixels.astype(np.uint8))


def write_shards(folder: Path, num_rows: int, per_shard: int = 32) -> list[str]:
    """A pool of coloured shapes in tars; row BROKEN cannot be decoded."""
    rng = np.random.default_rng(0)
    paths = []
    for start in range(0, num_rows, per_shard):
        paths.append(str(folder / f"{start // per_shard:05d}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for row in range(start, min(start + per_shard, num_rows)):
                colour, shape = words(row)
                content = io.BytesIO()
                picture(colour, shape, rng).save(content, "png")
                png = content.getvalue()[:90] if row == BROKEN else content.getvalue()
                text = f"A {colour} {shape}."
                for name, member in (("png", png), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{row:05d}.{name}")
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))
    return paths


def words(row: int) -> tuple[str, str]:
    return list(COLOURS)[row % 4], SHAPES[row // 4 % 2]


def encoder(folder: Path) -> OpenClip:
    """A CLIP of random weights as a file, as a sweep's own encoder is."""
    import torch

    from dbp.encoders.openclip import load_openclip

    checkpoint, config = folder / "clip.pt", folder / "clip.json"
    if not checkpoint.exists():
        import json

        config.write_text(json.dumps(CLIP))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = load_openclip(config=config, random_weights=True)
        torch.save(made.model.state_dict(), checkpoint)
    return OpenClip(None, checkpoint=str(checkpoint), config=str(config), batch_size=8, device="cpu")


def training(folder: Path, **changed: Any) -> TrainCaptioner:
    """A captioner that learns the pool of coloured shapes."""
    given: dict[str, Any] = {
        "encoder": encoder(folder), "layer": 2, "network": NETWORK, "vocabulary_size": None,
        "batch_size": 32, "samples_seen": 3200, "held_out": 0.0, "seed": 0, "precision": "fp32",
        "optimiser": Optimiser(5e-3, 0.9, 0.98, 1e-6, 0.01, "openclip3", "cosine", 128, 1.0),
        "augmentation": Shift(2), "device": "cpu", "cache": True, "log_every_samples": 640,
    }  # fmt: skip
    return TrainCaptioner(**{**given, **changed})


class House:
    """A store over a pool of coloured shapes, with the nodes of the captioning chain."""

    def __init__(self, folder: Path, num_rows: int = 96) -> None:
        self.folder = folder
        shards = write_shards(folder, num_rows)
        self.store = Store(folder / "store", folder / "runs")
        index = Index(uid="key", caption="txt", max_pixels=10**6, shards=shards)
        self.pool: Node = index.bind(folder=None)
        self.rows: Node = ValidRows().bind(pool=self.pool)

    def captioner(self, **changed: Any) -> Node:
        return training(self.folder, **changed).bind(pool=self.pool, rows=self.rows)

    def codes(self, captioner: Node, **runtime: Any) -> Node:
        stage = Encode(**{"rows_per_part": 1, "device": "cpu", **runtime})
        return stage.bind(pool=self.pool, captioner=captioner)

    def captions(self, captioner: Node, refine: Refine = GREEDY, rows: Node | None = None) -> Node:
        return refine.bind(pool=self.pool, rows=rows or self.rows, captioner=captioner, codes=self.codes(captioner))
