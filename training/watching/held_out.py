"""The contrastive loss, and recall at 1, on pairs that no arm trains on."""

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from dbp.data.images import Undecodable
from dbp.data.pool import Pool
from training.resume.workers import Loader, loading
from training.step.loss import clip_loss
from training.watching.watched import Watched


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss and recall on fixed batches of held-out pairs, each batch computed whole on one rank.

    So the numbers do not depend on ranks or workers, to the last bit. Images come as evaluation
    prepares them, without augmentation. A pair that cannot be decoded is left out of its batch.
    """

    run: Watched
    batches: Int64[np.ndarray, "k b"]
    num_workers: int

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        ranks = self.run.ranks
        mine = range(ranks.rank, len(self.batches), ranks.size)
        loader = Loader(
            self.batches,
            batch_size=None,
            sampler=mine,
            collate_fn=partial(_prepared, self.run.pool, self.run.preprocess, self.run.tokenizer),
            num_workers=min(self.num_workers, len(mine)),
        )
        with loading(f"num_workers={self.num_workers} of watch.evaluators"):
            found = [
                (number, *self._measure(images, tokens))
                for number, (images, tokens) in zip(mine, loader, strict=True)
                if len(images)
            ]
        # In the order of the batches, since a sum of floats depends on its order.
        every = sorted(row for rows in ranks.gather(found) for row in rows)
        pairs = sum(row[1] for row in every)
        return {
            "held_out/loss": math.fsum(row[1] * row[2] for row in every) / max(pairs, 1),
            "held_out/image_to_text_recall@1": sum(row[3] for row in every) / max(pairs, 1),
            "held_out/text_to_image_recall@1": sum(row[4] for row in every) / max(pairs, 1),
            "held_out/pairs": pairs,
        }

    def _measure(self, images: Tensor, tokens: Tensor) -> tuple[int, float, int, int]:
        """Pairs, mean loss, and hits of pictures and of captions in a batch."""
        model, device = self.run.model, self.run.device
        pictures = model.encode_image(images.to(device), normalize=True).float()
        texts = model.encode_text(tokens.to(device), normalize=True).float()
        loss = clip_loss(pictures, texts, model.logit_scale.exp().float())
        logits = (pictures @ texts.T).cpu().numpy()
        return len(logits), float(loss), num_hits(logits), num_hits(logits.T)


def num_hits(scores: Float[np.ndarray, "b b"]) -> int:
    """Queries (rows) whose own item, of the same number, comes first; a tie goes to the earlier."""
    return int((scores.argmax(axis=1) == np.arange(len(scores))).sum())


def _prepared(pool: Pool, preprocess: Any, tokenizer: Any, batch: Int[np.ndarray, " b"]) -> tuple[Tensor, Tensor]:
    """Images and tokens of those pairs of a batch that can be decoded."""
    images, rows = [], []
    for row in batch.tolist():
        with suppress(Undecodable):
            images.append(preprocess(pool.image(row)))
            rows.append(row)
    if not rows:
        return torch.zeros(0), torch.zeros(0, dtype=torch.long)
    return torch.stack(images), tokenizer(pool.captions(np.array(rows)))
