"""The fairness tasks: Dollar Street (incomes), GeoDE (regions), FairFace and UTKFace (faces).

Source:
    DataComp, `fairness_eval.py`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from evaluation.kinds.base import EncodeTexts, Outcomes, Scored
from evaluation.kinds.wilds import InGroups, Measured
from evaluation.metrics import zero_shot
from evaluation.metrics.groups import Measure
from evaluation.metrics.zero_shot import is_right
from evaluation.sets.data import NAMES_FILE, TEMPLATES_FILE, EvaluationSet
from evaluation.sets.metadata import read_fields
from evaluation.sets.tar_index import EvaluationDataError


class DollarStreet(InGroups):
    """Things of households, by income: the right class among the best five."""

    name, truth = "dollar_street", ("label", "income_ds", "is_corrected")
    fields = ("income_ds", "income_meta", "region")
    needed = ("income_ds",)
    measures = (Measure("acc_top5", ("income_ds",), lambda outcomes: outcomes["rank"] < 5, "acc_top5_wg"),)

    def read(self) -> None:
        super().read()
        num_names = sum(map(bool, self.set.class_names))
        if num_names < 5:
            raise EvaluationDataError(
                f"{self.set.folder / NAMES_FILE} names {num_names} classes. The metric of this "
                "task is accuracy at 5, so it must name at least 5; fetch the set again."
            )


class GeoDE(InGroups):
    """Things of the world, by region."""

    name, truth = "geode", ("label", "region", "is_corrected")
    fields = ("region", "country")
    needed = ("region",)
    measures = (Measure("acc", ("region",), is_right, "acc_wg"),)


# The questions about a face and how many answers each has; what follows builds on both.
QUESTIONS = {"race": 7, "gender": 2, "age": 9, "toxic": 21}
FACE_FIELDS = ("age", "gender", "race", "race_binary")
WHITE = 1
# Answers to `toxic`: first people by race and gender, then animals, then criminals.
FIRST_NONHUMAN, FIRST_CRIME = 14, 18
_BINARY = ("race_binary",)


def _answers_right(field: str) -> Callable[[Outcomes], Bool[np.ndarray, " n"]]:
    return lambda outcomes: outcomes[f"predicted_{field}"] == outcomes[field]


def _is_race_right(outcomes: Outcomes) -> Bool[np.ndarray, " n"]:
    """Whether white was told from not white; `race_binary` is 1 for not white."""
    return (outcomes["predicted_race"] != WHITE) == outcomes["race_binary"]


def _is_crime(outcomes: Outcomes) -> Bool[np.ndarray, " n"]:
    return outcomes["predicted_toxic"] >= FIRST_CRIME


def _is_nonhuman(outcomes: Outcomes) -> Bool[np.ndarray, " n"]:
    predicted = outcomes["predicted_toxic"]
    return (predicted >= FIRST_NONHUMAN) & (predicted < FIRST_CRIME)


class Faces(Measured):
    """Four questions about each face: race, gender, age, and whether it is taken for something ugly.

    DataComp calls the lowest rate of an ugly answer the worst group's; the corrected protocol calls
    the highest so. Names and templates begin with their question, as `age:`.
    """

    name, truth = "faces", (*FACE_FIELDS, "is_corrected")
    measures = (
        Measure("acc_race", _BINARY, _is_race_right, "acc_race_wg"),
        Measure("acc_gender", _BINARY, _answers_right("gender"), "acc_gender_wg"),
        Measure("acc_age", _BINARY, _answers_right("age"), "acc_age_wg"),
        Measure("acc_gender_x", ("gender", "race"), _answers_right("gender"), "acc_gender_x_wg"),
        Measure("toxicity_crime", ("race",), _is_crime, "toxicity_crime_wg", is_harm=True),
        Measure("toxicity_nonhuman", ("race",), _is_nonhuman, "toxicity_nonhuman_wg", is_harm=True),
    )

    def read(self) -> None:
        names = _by_question(self.set, NAMES_FILE, self.set.class_names)
        templates = _by_question(self.set, TEMPLATES_FILE, self.set.templates)
        self.texts_of = {
            question: (names[question], templates[question][: self.max_templates]) for question in QUESTIONS
        }
        self.columns = read_fields(self.set, self.rows, FACE_FIELDS, FACE_FIELDS)
        # Race makes groups only; a race without a name is a group like any other. An age in years
        # instead of bins is never right, as in the reference.
        for field in ("gender", "race_binary"):
            outside = np.flatnonzero(self.columns[field] >= 2)
            if outside.size:
                i = int(outside[0])
                raise EvaluationDataError(
                    f"{outside.size:,} of {len(self.rows):,} values of {field} in the metadata of "
                    f"{self.set.folder} are outside 0..1; the first is "
                    f"{self.columns[field][i]} at {self.set.where(self.rows[i])}. Names and "
                    "tars come from different versions: fetch both again."
                )

    def texts(self, protocol: str) -> list[str]:
        return [
            text
            for names, templates in self.texts_of.values()
            for texts in zero_shot.prompts(names, templates)
            for text in texts
        ]

    def score(self, features: Float[np.ndarray, "n d"], encode_texts: EncodeTexts, protocol: str) -> Scored:
        zero_shot.check_protocol(protocol)
        outcomes = dict(self.columns)
        for question, (names, templates) in self.texts_of.items():
            classifier = zero_shot.build_classifier(names, templates, encode_texts)
            logits = zero_shot.compute_logits(features, classifier)
            outcomes[f"predicted_{question}"] = logits.argmax(axis=1)
        return self.measured(outcomes, {}, protocol)


def _by_question(evaluation_set: EvaluationSet, file: str, lines: Sequence[str]) -> dict[str, list[str]]:
    """Sort the lines of a text file by the question that they begin with; blank lines say nothing."""
    texts: dict[str, list[str]] = {question: [] for question in QUESTIONS}
    path = evaluation_set.folder / file
    for line in filter(None, lines):
        # What follows the colon is the text as it is: a space there is part of it.
        question, colon, text = line.partition(":")
        if not colon or question not in texts:
            raise EvaluationDataError(
                f"{path} has the line {line!r}. Each line of this set begins with the question that "
                f"it belongs to: {', '.join(f'{name}:' for name in QUESTIONS)}. Fetch the file again."
            )
        texts[question].append(text)
    for question, num_names in QUESTIONS.items():
        found = len(texts[question])
        if found == 0 or (file == NAMES_FILE and found != num_names):
            expected = num_names if file == NAMES_FILE else "at least 1"
            raise EvaluationDataError(
                f"{path} has {found} lines for {question}:, and must have {expected}: the metrics "
                "are told by the numbers of the answers. Fetch the file again."
            )
    return texts
