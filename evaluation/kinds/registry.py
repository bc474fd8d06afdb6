"""The kinds of tasks by name. A new kind is one module, and one line here."""

from functools import partial

from evaluation.kinds import fairness, multilabel, wilds
from evaluation.kinds.base import Kind
from evaluation.kinds.classification import Classification
from evaluation.kinds.retrieval import Retrieval
from evaluation.kinds.winogavil import Winogavil
from evaluation.metrics import retrieval, winogavil, zero_shot
from evaluation.sets.data import open_set
from evaluation.sets.hub import open_captioned, open_winogavil

KINDS: dict[str, Kind] = {
    "classification": Kind(
        partial(open_set, kind="classification"),
        Classification,
        zero_shot.replicates,
        zero_shot.on_draws,
    ),
    "retrieval": Kind(open_captioned, Retrieval, retrieval.replicates, retrieval.on_draws),
    "winogavil": Kind(open_winogavil, Winogavil, winogavil.replicates, winogavil.on_draws),
    **wilds.KINDS,
    **fairness.KINDS,
    **multilabel.KINDS,
}
