"""CLIP score of the mirrored image: text in an image cannot be read there, so it does not raise the score."""

from dataclasses import dataclass
from typing import ClassVar

from dbp.config import require
from dbp.encoders.base import Encoder
from dbp.encoders.embed import Embed
from dbp.engine.stage import Node, Offered
from dbp.scoring.clip_score import ClipScore


@dataclass(frozen=True)
class FlippedClip(ClipScore):
    """Cosine of the mirrored image and the caption; missing where either has no vector.

    Images are encoded once more.

    Its mean with the CLIP score, or the difference, is a mix (`score=mix`).

    Args:
        encoder: What encodes the mirrored images: that of the captions.

    Source: Yu et al. 2023 (arXiv 2309.15954).
    """

    version: ClassVar[int] = 1
    label: ClassVar[str] = "CLIP score of the mirrored image"

    encoder: Encoder

    def __post_init__(self) -> None:
        must = "one that computes, such as openclip_b32 (encoder.score): vectors that are read cannot be mirrored"
        require(not self.encoder.reads, "encoder", type(self.encoder).__name__, must)

    def upstream(self, offers: Offered) -> dict[str, Node]:
        return {"image": offers.bind(Embed(self.encoder, "image", mirrored=True))}
