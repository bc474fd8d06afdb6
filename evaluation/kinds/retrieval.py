"""Retrieval between a set's pictures and their captions, both ways."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from evaluation.kinds.base import EncodeTexts, Kind, Outcomes, Scored
from evaluation.metrics import fine, retrieval, zero_shot
from evaluation.sets.data import EvaluationSet
from evaluation.sets.hub import open_captioned


class Retrieval(Kind):
    """Recall at 1, 5 and 10 of captions by pictures and of pictures by captions."""

    name, truth = "retrieval", ("caption_picture",)
    owner, per_owner = "caption_picture", ("caption_picture", "image_rank")
    is_halved = True
    clip_benchmark = ("zeroshot_retrieval", ("image_retrieval_recall@", "text_retrieval_recall@"))
    replicates, on_draws = staticmethod(retrieval.replicates), staticmethod(retrieval.on_draws)

    @classmethod
    def open(cls, folder: Path) -> EvaluationSet:
        return open_captioned(folder)

    def read(self) -> None:
        every = self.set.captions()
        captions = [every[row] for row in self.rows]
        self.captions = [text for lines in captions for text in lines]
        self.picture_of = np.repeat(np.arange(len(captions)), [len(lines) for lines in captions])

    def texts(self, protocol: str) -> list[str]:
        return self.captions

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        zero_shot.check_protocol(protocol)
        outcomes = retrieval.outcomes(features, encode_texts(self.captions), self.picture_of)
        return Scored(outcomes, retrieval.metrics(outcomes))

    def fine(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, logit_scale: float) -> Outcomes:
        found = retrieval.outcomes(features, encode_texts(self.captions), self.picture_of)
        ranks = fine.reciprocal_ranks(found["text_rank"], found["image_rank"], self.picture_of)
        return {fine.RECIPROCAL_RANK: ranks}
