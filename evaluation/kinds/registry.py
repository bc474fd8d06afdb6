"""The kinds of tasks by name. A new kind is one module with a `Kind`, and its name here."""

from evaluation.kinds.base import Kind
from evaluation.kinds.classification import Classification
from evaluation.kinds.fairness import DollarStreet, Faces, GeoDE
from evaluation.kinds.multilabel import MultiLabel
from evaluation.kinds.retrieval import Retrieval
from evaluation.kinds.wilds import Camelyon17, FMoW, IWildCam
from evaluation.kinds.winogavil import Winogavil

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        Classification, Retrieval, Winogavil, MultiLabel, IWildCam, Camelyon17, FMoW, DollarStreet, GeoDE, Faces,
    )
}  # fmt: skip
