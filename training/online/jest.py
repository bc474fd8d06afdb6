"""Joint example selection (JEST): the batch that the learner can learn most from, chosen by a forward pass.

Evans et al. 2024 (arXiv 2406.17711). With l(T) the contrastive loss of a set of pairs, summed over them, the score
of a candidate i is its learnability, given T:

    s_i(T) = l(T + i) - l(T) of the learner, less the same of a frozen reference

The batch is drawn in `chunks` parts of b / chunks candidates each, without replacement, P ~ exp(s_i / temperature);
T is what earlier parts drew. Pairwise (`loss=sigmoid`, as published) s_i = L_ii + sum over j in T of (L_ij + L_ji).
`loss=softmax` takes the same difference of CLIP's loss; we found no published form of it, so this one is ours: the
first part is a uniform draw, since a single pair has no negatives. `joint=false` is the diagonal, RHO-loss
(Mindermann et al. 2022, arXiv 2206.07137), in one draw: L_ii, or with softmax the loss of i among all candidates.

Floating-point arithmetic of the device decides, so a choice repeats as exactly as weights do.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dbp.config import require
from dbp.encoders.base import Encoder
from dbp.encoders.embed import Embed
from dbp.engine.stage import Node, runtime
from dbp.errors import ConfigError
from dbp.offers import Offers
from training.feed.order import GOLDEN, ONLINE, mix, stream
from training.online.base import Online
from training.online.reference import problems, reference_node

BLOCK = 4096  # candidates whose similarities are held at once
UNSCORED = -1e30  # of candidates without a vector of the reference: they come last


class Scored(NamedTuple):
    """Unit vectors of candidates, as one model has them, and its scale."""

    images: Float[Tensor, "s d"]
    texts: Float[Tensor, "s d"]
    scale: Float[Tensor, ""] | float


@dataclass(frozen=True, kw_only=True)
class Jest(Online):
    """Learnability against a frozen reference, jointly or by the diagonal.

    Args:
        joint: Draw in parts, each given those before it; false: by each pair's own loss, in one draw (RHO-loss).
        loss: The pairwise `sigmoid` loss, or CLIP's `softmax`.
        chunks: Parts in which a batch is drawn; they divide it.
        temperature: Divides the scores; 0 takes the best.
        bias: Added to scaled cosines by the sigmoid loss.
        reference: The frozen model; its vectors of the kept rows, of the pool's own captions, are made once.
        reference_scale: What its cosines are multiplied by; null for what its weights say.
        runs: Runs that share the cost of the reference's vectors, in a budget of FLOPs.
        refresh_steps: The learner that scores is the one of the last step that this divides; 1 for this step's own.
        score_size: Side of the images that the learner scores, in pixels, below its own; null for its own. A ViT's
            positions are interpolated.
        rows_per_part: Fewest rows of a part of the vectors.
    """

    scores: ClassVar[bool] = True

    joint: bool
    loss: Literal["sigmoid", "softmax"]
    chunks: int
    temperature: float
    bias: float
    reference: Encoder = runtime()
    reference_scale: float | None = runtime(None)
    runs: int = 1
    refresh_steps: int = 1
    score_size: int | None = None
    rows_per_part: int = runtime(32_768)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunks", "runs", "refresh_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        scale = self.reference_scale
        require(scale is None or scale > 0, "reference_scale", scale, "above 0, or null for what the weights say")
        for problem in problems(self.reference, scale):
            raise problem

    def unread(self) -> set[str]:
        """Fields that do not matter beside the others."""
        return ({"bias"} if self.loss == "softmax" else set()) | (set() if self.joint else {"chunks"})

    def check(self, batch_size: int) -> None:
        super().check(batch_size)
        if self.joint and batch_size % self.chunks:
            raise ConfigError(
                f"online.chunks={self.chunks} does not divide train.batch_size={batch_size:,}: each part draws an "
                "equal share of the batch. Give a divisor."
            )

    def inputs(self, offers: Offers) -> dict[str, Node]:
        def vectors(side: Literal["image", "text"]) -> Node:
            return Embed(self.reference, side, self.rows_per_part).bind(pool=offers["pool"], rows=offers["rows"])

        sides = vectors("image"), vectors("text")
        return {"reference": reference_node(self.reference, self.reference_scale, *sides)}

    def choose(
        self, learner: Scored, reference: Scored, is_scored: Bool[Tensor, " s"], count: int, seed: int, step: int
    ) -> Int64[Tensor, " b"]:
        """The places of the batch, ascending; on the device of the vectors.

        Args:
            is_scored: Candidates that have vectors of the reference.
        """
        size, chunks = len(is_scored), self.chunks if self.joint else 1
        sides = Sums(learner, self), Sums(reference, self)
        chosen = torch.zeros(0, dtype=torch.long, device=is_scored.device)
        for chunk in range(chunks):
            scores = (sides[0].scores() - sides[1].scores()).masked_fill(~is_scored, UNSCORED)
            noise = torch.from_numpy(gumbel(seed, step, chunk, size)).to(scores)
            drawn = (
                (scores + self.temperature * noise).index_fill(0, chosen, -torch.inf).topk(count // chunks).indices
            )
            chosen = torch.cat([chosen, drawn])
            for side in sides if chunk + 1 < chunks else ():
                side.add(drawn)
        return chosen.sort().values


class Sums:
    """What each candidate would add to the loss of those that are chosen so far, for one model."""

    def __init__(self, scored: Scored, how: Jest) -> None:
        self.images, self.texts = scored.images * scored.scale, scored.texts
        self.how, self.own = how, (self.images * self.texts).sum(1)
        self.chosen = torch.zeros(0, dtype=torch.long, device=self.own.device)
        self.pairs = F.softplus(-self.own - how.bias)  # sigmoid: L_ii, and what each chosen pair adds to it

    def add(self, drawn: Int64[Tensor, " c"]) -> None:
        """Count some candidates among those chosen."""
        if self.how.loss == "sigmoid":
            for part, rows, columns in self._similarities(drawn):
                self.pairs[part] += F.softplus(rows + self.how.bias).sum(1) + F.softplus(
                    columns + self.how.bias
                ).sum(1)
        self.chosen = torch.cat([self.chosen, drawn])

    def scores(self) -> Float[Tensor, " s"]:
        """The loss that each candidate adds."""
        if self.how.loss == "sigmoid":
            return self.pairs
        found = torch.zeros_like(self.own)
        if not self.how.joint:
            every = torch.arange(len(found), device=found.device)
            for part, rows, columns in self._similarities(every):
                found[part] = (rows.logsumexp(1) + columns.logsumexp(1)) / 2 - self.own[part]
            return found
        if len(self.chosen) == 0:
            return found
        among = self.images[self.chosen] @ self.texts[self.chosen].T
        of_images, of_texts = among.logsumexp(1), among.logsumexp(0)
        for part, rows, columns in self._similarities(self.chosen):
            own = self.own[part]
            new = [torch.logaddexp(own, one.logsumexp(1)) - own for one in (rows, columns)]
            more = F.softplus(columns - of_images).sum(1) + F.softplus(rows - of_texts).sum(1)
            found[part] = (new[0] + new[1] + more) / 2
        return found

    def _similarities(self, others: Int64[Tensor, " c"]):  # type: ignore[no-untyped-def]
        """Block by block of candidates: of their images to the captions of others, of their captions to images."""
        images, texts = self.images[others], self.texts[others]
        for start in range(0, len(self.own), BLOCK):
            part = slice(start, start + BLOCK)
            yield part, self.images[part] @ texts.T, self.texts[part] @ images.T


def gumbel(seed: int, step: int, chunk: int, size: int) -> Float64[np.ndarray, " s"]:
    """Noise whose largest sums with logits are a draw without replacement; by seed, step, part and place."""
    start = mix(stream(seed, np.array([step], np.int64), ONLINE) + np.uint64(chunk))
    words = mix(start + np.arange(size, dtype=np.uint64) * GOLDEN)
    return -np.log(-np.log(((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53))
