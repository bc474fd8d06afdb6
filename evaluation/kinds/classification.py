"""Zero-shot classification of a set's pictures by the names of its classes."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from evaluation.kinds.base import EncodeTexts, Outcomes, Scored, Scorer, choose_rows
from evaluation.metrics import fine, zero_shot
from evaluation.sets.data import EvaluationSet


class Classification(Scorer):
    """Accuracy at 1 and 5 and mean recall of the classes; other kinds add to it."""

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        *,
        limit: int | None = None,
        seed: int = 0,
        max_templates: int | None = None,
    ) -> None:
        self.set = replace(evaluation_set, templates=evaluation_set.templates[:max_templates])
        self.rows = choose_rows(len(evaluation_set), limit, seed)
        self.num_samples, self.num_available = len(self.rows), len(evaluation_set)
        self.labels = evaluation_set.labels()[self.rows]

    def texts(self, protocol: str) -> list[str]:
        names, templates = self.names_and_templates(protocol)
        return [text for texts in zero_shot.prompts(names, templates) for text in texts]

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        names, templates = self.names_and_templates(protocol)
        logits = zero_shot.compute_logits(features, zero_shot.build_classifier(names, templates, encode_texts))
        outcomes = zero_shot.outcomes(logits, self.labels, protocol)
        return Scored(outcomes, zero_shot.metrics(outcomes, len(names)))

    def fine(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, logit_scale: float) -> Outcomes:
        names, templates = self.names_and_templates("corrected")
        if self.labels.ndim != 1 or self.labels.max(initial=0) >= len(names):
            return {}  # a label without a class has no likelihood
        classifier = zero_shot.build_classifier(names, templates, encode_texts)
        cosines = zero_shot.compute_logits(features, classifier) / zero_shot.LOGIT_SCALE
        is_even = fine.has_even_hash([self.set.samples[row].key for row in self.rows])
        return {
            fine.LOG_LIKELIHOOD: fine.log_likelihoods(cosines, self.labels, logit_scale),
            fine.FITTED: fine.cross_fitted(cosines, self.labels, is_even),
        }

    def names_and_templates(self, protocol: str) -> tuple[list[str], list[str]]:
        """The lines of both text files that count under a protocol."""
        return (
            zero_shot.kept_lines(self.set.class_names, protocol),
            zero_shot.kept_lines(self.set.templates, protocol),
        )
