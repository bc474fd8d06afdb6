"""One model on a suite, as the tests of evaluation ask for it."""

from typing import Any

from evaluation.results import Result
from evaluation.running.encode import Towers
from evaluation.running.prepare import Asked
from evaluation.running.runner import evaluate_checkpoints

OF_ASKED = ("protocols", "seed", "limit", "max_templates")
OF_RUN = ("encoding", "failures", "on_results", "known")


def evaluate_one(model: Any, preprocess: Any, tokenizer: Any, suite: Any, root: Any, **given: Any) -> list[Result]:
    """Results under `corrected`, or under the protocols that are given."""
    asked = {name: given.pop(name) for name in OF_ASKED if name in given}
    of_run = {name: given.pop(name) for name in OF_RUN if name in given}
    towers = Towers(model, preprocess, tokenizer, **given)
    asked = Asked(**({"protocols": ("corrected",)} | asked))
    return evaluate_checkpoints([towers], suite, root, asked, **of_run)
