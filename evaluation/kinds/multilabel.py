"""Classification of pictures that show several classes at once: mean average precision.

Source:
    clip_benchmark 1.6.2, `metrics/zeroshot_classification.py`. No task of DataComp's, so both
    protocols agree. Departure: equal scores keep the order of the set; the reference's sort leaves
    them to chance.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from evaluation.kinds.base import EncodeTexts, Kind, Outcomes, Scored
from evaluation.metrics import zero_shot
from evaluation.sets.metadata import read_vectors
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.statistics.significance import picture_draws

METRIC = "mean_average_precision"


class MultiLabel(Kind):
    """A `.npy` member of each picture says of each class, 0 or 1, whether it is there."""

    name, truth = "multilabel", ("is_positive",)
    clip_benchmark = ("zeroshot_classification", (METRIC,))

    def read(self) -> None:
        self.templates = self.set.templates[: self.max_templates]
        holds = f"0 or 1 for each of the {len(self.set.class_names)} names"
        labels = read_vectors(self.set, self.rows, [len(self.set.class_names)], holds)
        wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(axis=1))
        if wrong.size:
            raise EvaluationDataError(
                f"The .npy member of {self.set.where(self.rows[int(wrong[0])])} holds other numbers than "
                f"0 and 1; it must hold {holds}. Fetch or write the set again."
            )
        self.is_positive = labels.astype(bool)

    def texts(self, protocol: str) -> list[str]:
        filled = zero_shot.prompts(self.set.class_names, self.templates)
        return [text for texts in filled for text in texts]

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        zero_shot.check_protocol(protocol)
        classifier = zero_shot.build_classifier(self.set.class_names, self.templates, encode_texts)
        scores = zero_shot.compute_logits(features, classifier)
        outcomes = {"score": scores, "is_positive": self.is_positive}
        every = np.ones((1, len(scores)), np.float32)
        return Scored(outcomes, {METRIC: float(self.on_draws(outcomes, METRIC, every)[0])})

    @staticmethod
    def replicates(
        outcomes: Outcomes, metric: str, *, num_resamples: int, generator: np.random.Generator
    ) -> Float[np.ndarray, " r"]:
        blocks = picture_draws(len(outcomes["score"]), num_resamples=num_resamples, generator=generator)
        return np.concatenate([MultiLabel.on_draws(outcomes, metric, drawn) for drawn in blocks])

    @staticmethod
    def on_draws(outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        """Mean over classes; one without positives counts 0."""
        assert metric == METRIC, metric
        scores, is_positive = outcomes["score"], outcomes["is_positive"]
        by_picture = np.ascontiguousarray(drawn.T)
        num_classes = scores.shape[1]
        total = sum(average_precision(scores[:, k], is_positive[:, k], by_picture) for k in range(num_classes))
        return total / num_classes


def average_precision(
    scores: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"], drawn: Shaped[np.ndarray, "n r"]
) -> Float[np.ndarray, " r"]:
    """Mean over the positives of the share of positives among what scores no less, in each draw.

    Args:
        scores: Of one class.
        is_positive: Whether the class is in the picture.
        drawn: How often each picture is taken in each of r draws, a whole number. The copies of a
            picture stand one after the other.

    Returns:
        In [0, 1]; 0 where no positive is drawn.
    """
    order = np.argsort(-scores, kind="stable")
    at = np.flatnonzero(is_positive[order])
    if not len(at):
        return np.zeros(drawn.shape[1])
    taken = drawn[order[at]].astype(np.int64)
    # Pictures from after one positive up to and with the next; what follows the last counts nowhere.
    starts = np.concatenate([[0], at[:-1] + 1])
    between = np.add.reduceat(drawn[order[: at[-1] + 1]], starts, axis=0).astype(np.int64)
    # How many positives, and how many pictures, come before each positive.
    positives = np.cumsum(taken, axis=0) - taken
    pictures = np.cumsum(between, axis=0) - taken
    precision = np.where(taken > 0, (positives + 1) / (pictures + 1), 0)
    for copy in range(2, int(taken.max()) + 1):
        has = np.nonzero(taken >= copy)
        precision[has] += (positives[has] + copy) / (pictures[has] + copy)
    return precision.sum(axis=0) / np.maximum(taken.sum(axis=0), 1)
