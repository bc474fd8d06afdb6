"""WinoGAViL on a set: its distinct pictures are encoded once, instances look their vectors up."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from evaluation.kinds.base import EncodeTexts, Kind, Scored
from evaluation.metrics import winogavil
from evaluation.sets.data import EvaluationSet
from evaluation.sets.hub import open_winogavil


class Winogavil(Kind):
    """Jaccard index of the candidates nearest to a cue; a limit chooses instances, not pictures."""

    name, truth = "winogavil", ("instance",)
    is_halved = True
    replicates, on_draws = staticmethod(winogavil.replicates), staticmethod(winogavil.on_draws)

    @classmethod
    def open(cls, folder: Path) -> EvaluationSet:
        return open_winogavil(folder)

    def read(self) -> None:
        self.instances = [self.set.instances[number] for number in self.chosen]
        self.rows = list(dict.fromkeys(row for one in self.instances for row in one.candidates))
        self.sizes = np.array([len(one.candidates) for one in self.instances])
        place = {row: i for i, row in enumerate(self.rows)}
        # Of the candidates of all instances: which of the pictures it is.
        self.picture = np.array([place[row] for one in self.instances for row in one.candidates])

    def texts(self, protocol: str) -> list[str]:
        return [winogavil.prompt(one.cue) for one in self.instances]

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        instance = np.repeat(np.arange(len(self.sizes)), self.sizes)
        truth = np.array([true for one in self.instances for true in one.is_association])
        cues = encode_texts(self.texts(protocol))
        similarity = np.einsum("pd,pd->p", features[self.picture], cues[instance])
        scores = winogavil.jaccard_scores(similarity, truth, instance, protocol)
        outcomes = winogavil.outcomes(scores, self.sizes, np.array(self.chosen))
        return Scored(outcomes, winogavil.metrics(outcomes))

    def flag_samples(self, is_flagged: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " n"]:
        return np.logical_or.reduceat(is_flagged[self.picture], np.cumsum(self.sizes) - self.sizes)
