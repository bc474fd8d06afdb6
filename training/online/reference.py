"""The frozen reference of an online method: its vectors of the kept rows, its scale, and what they cost."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float32, Int64

from dbp.data.embeddings import Embeddings
from dbp.encoders.base import Encoder
from dbp.encoders.openclip import OpenClip, load_openclip
from dbp.engine.stage import Node, Stage
from dbp.engine.work import Work
from dbp.errors import ConfigError
from training.account.cost import forward_flops

ABOUT = "reference.json"


@dataclass(frozen=True)
class Reference:
    """A frozen CLIP, as its vectors of rows.

    Args:
        scale: What its cosines are multiplied by.
        flops: Operations that its vectors took; none where they are not known.
    """

    image: Embeddings
    text: Embeddings
    scale: float
    flops: int | None

    def of(
        self, rows: Int64[np.ndarray, " b"]
    ) -> tuple[Float32[np.ndarray, "b d"], Float32[np.ndarray, "b d"], Bool[np.ndarray, " b"]]:
        """Unit vectors of images and captions, and which rows have both; zeros for the others."""
        order = np.argsort(rows, kind="stable")
        has_both = np.empty(len(rows), bool)
        has_both[order] = self.image.has(rows[order]) & self.text.has(rows[order])
        sides = [np.zeros((len(rows), self.image.width), np.float32) for _ in range(2)]
        for found, side in zip(sides, (self.image, self.text), strict=True):
            found[has_both] = side.unit(rows[has_both])
        return sides[0], sides[1], has_both


@dataclass(frozen=True)
class MakeReference(Stage):
    """Note what a loss needs of the reference beside its vectors: its scale; and what a row cost.

    Args:
        encoder: A CLIP of open_clip, or vectors that another tool made.
        scale: What its cosines are multiplied by; null for what its weights say.
    """

    name: ClassVar[str] = "reference"
    needs: ClassVar[tuple[str, ...]] = ("image", "text")
    makes: ClassVar[type] = Reference
    opens_with: ClassVar[tuple[str, ...]] = ("image", "text")

    encoder: Encoder
    scale: float | None

    def lacks(self, inputs: Any) -> Iterator[ConfigError]:
        """A text tower, or a scale."""
        yield from problems(self.encoder, self.scale)

    def run(self, work: Work, image: Embeddings, text: Embeddings) -> dict[str, Any]:
        if image.width != text.width:
            raise ConfigError(
                f"online.reference: its vectors of images have {image.width} numbers and those of captions "
                f"{text.width}, so they cannot be multiplied. Give vectors of one CLIP model."
            )
        rows = min(len(image.rows), len(text.rows))
        about: dict[str, Any] = {"scale": self.scale, "flops": None}
        if isinstance(self.encoder, OpenClip):
            own = self.encoder
            loaded = load_openclip(
                own.model, checkpoint=own.checkpoint, config=own.config, pretrained=own.pretrained,
                random_weights=own.random_weights,
            )  # fmt: skip
            size = loaded.model.visual.preprocess_cfg["size"]
            count = forward_flops(loaded.model, size if isinstance(size, int) else int(size[0]))
            each = count(loaded.model.context_length)
            about["flops"] = None if each is None else each * rows
            about["scale"] = self.scale or float(loaded.model.logit_scale.detach().exp())
        (work.folder / ABOUT).write_text(json.dumps(about) + "\n")
        return {"rows": rows, "scale": about["scale"], "reference_flops": about["flops"]}

    def open(self, home: Path, **inputs: Any) -> Reference:
        about = json.loads((home / ABOUT).read_text())
        return Reference(inputs["image"], inputs["text"], about["scale"], about["flops"])


def problems(encoder: Encoder, scale: float | None) -> Iterator[ConfigError]:
    """Why an encoder cannot be a reference."""
    if not isinstance(encoder, OpenClip) and not encoder.reads:
        yield ConfigError(
            f"online.reference: {type(encoder).__name__} has no captions' side. Name a CLIP model, such as "
            "encoder@online.reference=openclip_b32."
        )
    if encoder.reads and scale is None:
        yield ConfigError(
            f"online.reference: {type(encoder).__name__} has vectors and no scale. Set online.reference_scale: "
            "what the cosines of that model are multiplied by (100 where CLIP's limit was reached)."
        )


def reference_node(encoder: Encoder, scale: float | None, image: Node, text: Node) -> Node:
    """The reference bound to its vectors."""
    return MakeReference(encoder, scale).bind(image=image, text=text)
