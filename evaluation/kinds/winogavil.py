"""WinoGAViL on a set: its distinct pictures are encoded once, instances look their vectors up."""

import numpy as np
from jaxtyping import Float

from evaluation.kinds.base import EncodeTexts, Scored, Scorer, choose_rows
from evaluation.metrics import winogavil
from evaluation.sets.data import EvaluationSet


class Winogavil(Scorer):
    """Jaccard index of the candidates nearest to a cue; a limit chooses instances, not pictures."""

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        *,
        limit: int | None = None,
        seed: int = 0,
        max_templates: int | None = None,
    ) -> None:
        every = evaluation_set.instances
        self.chosen = choose_rows(len(every), limit, seed)
        self.instances = [every[number] for number in self.chosen]
        self.rows = list(dict.fromkeys(row for one in self.instances for row in one.candidates))
        self.num_samples, self.num_available = len(self.instances), len(every)

    def texts(self, protocol: str) -> list[str]:
        return [winogavil.prompt(one.cue) for one in self.instances]

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        place = {row: i for i, row in enumerate(self.rows)}
        sizes = np.array([len(one.candidates) for one in self.instances])
        instance = np.repeat(np.arange(len(sizes)), sizes)
        picture = np.array([place[row] for one in self.instances for row in one.candidates])
        truth = np.array([true for one in self.instances for true in one.is_association])
        cues = encode_texts(self.texts(protocol))
        similarity = np.einsum("pd,pd->p", features[picture], cues[instance])
        scores = winogavil.jaccard_scores(similarity, truth, instance, protocol)
        outcomes = winogavil.outcomes(scores, sizes, np.array(self.chosen))
        return Scored(outcomes, winogavil.metrics(outcomes))
