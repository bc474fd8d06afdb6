"""Retrieval between a set's pictures and their captions, both ways."""

import numpy as np
from jaxtyping import Float

from evaluation.kinds.base import EncodeTexts, Outcomes, Scored, Scorer, choose_rows
from evaluation.metrics import fine, retrieval, zero_shot
from evaluation.sets.data import EvaluationSet


class Retrieval(Scorer):
    """Recall at 1, 5 and 10 of captions by pictures and of pictures by captions."""

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        *,
        limit: int | None = None,
        seed: int = 0,
        max_templates: int | None = None,
    ) -> None:
        self.rows = choose_rows(len(evaluation_set), limit, seed)
        self.num_samples, self.num_available = len(self.rows), len(evaluation_set)
        every = evaluation_set.captions()
        captions = [every[row] for row in self.rows]
        self.captions = [text for lines in captions for text in lines]
        self.owner = np.repeat(np.arange(len(captions)), [len(lines) for lines in captions])

    def texts(self, protocol: str) -> list[str]:
        return self.captions

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        zero_shot.check_protocol(protocol)
        outcomes = retrieval.outcomes(features, encode_texts(self.captions), self.owner)
        return Scored(outcomes, retrieval.metrics(outcomes))

    def fine(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, logit_scale: float) -> Outcomes:
        found = retrieval.outcomes(features, encode_texts(self.captions), self.owner)
        ranks = fine.reciprocal_ranks(found["text_rank"], found["image_rank"], self.owner)
        return {fine.RECIPROCAL_RANK: ranks}
