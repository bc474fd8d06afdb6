"""Zero-shot classification of a set's pictures by the names of its classes."""

import numpy as np
from jaxtyping import Float

from evaluation.kinds.base import EncodeTexts, Kind, Outcomes, Scored
from evaluation.metrics import fine, zero_shot


class Classification(Kind):
    """Accuracy at 1 and 5 and mean recall of the classes; other kinds add to it."""

    name, truth = "classification", ("label",)
    clip_benchmark = ("zeroshot_classification", ("acc1", "acc5", "mean_per_class_recall"))
    replicates, on_draws = staticmethod(zero_shot.replicates), staticmethod(zero_shot.on_draws)

    def read(self) -> None:
        self.labels = self.set.labels()[self.rows]

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
        templates = self.set.templates[: self.max_templates]
        return zero_shot.kept_lines(self.set.class_names, protocol), zero_shot.kept_lines(templates, protocol)
