"""Zero-shot classification: pictures against captions of the classes, as pure functions.

Two protocols differ where the reference is at odds with itself:

- `corrected` (default): argmax everywhere, a tie goes to the lower class; blank names are classes.
- `datacomp`: accuracy from `topk`, whose ties on a CPU are arbitrary; blank names are dropped, as
  DataComp's pinned reader does, so that later labels are read one off.

Source:
    clip_benchmark 1.6.2, `metrics/zeroshot_classification.py`; DataComp, `wds_eval.py`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from dbp.errors import ConfigError, nearest
from evaluation.kinds.base import EncodeTexts, Outcomes
from evaluation.metrics.similarity import distinct_rows, score
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.statistics.significance import class_recall_replicates, mean_replicates

PROTOCOLS = ("corrected", "datacomp")
# The reference multiplies by this, not by the learned temperature.
LOGIT_SCALE = np.float32(100.0)
# The mean recall of the classes by its two names; the second is WILDS'.
RECALLS = ("mean_per_class_recall", "recall-macro_all")


def check_protocol(protocol: str) -> None:
    """Refuse a protocol that does not exist.

    Raises:
        ConfigError: Names the nearest one.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol={protocol} is unknown. {nearest(protocol, PROTOCOLS)}")


def kept_lines(lines: Sequence[str], protocol: str) -> list[str]:
    """Choose the lines of a names or templates file that count under a protocol."""
    check_protocol(protocol)
    return [line for line in lines if line or protocol == "corrected"]


def prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Fill every template with every name, class by class.

    Raises:
        EvaluationDataError: A template takes more than `{c}`.
    """
    return [[_fill(template, name) for template in templates] for name in class_names]


def build_classifier(
    class_names: Sequence[str], templates: Sequence[str], encode_texts: EncodeTexts
) -> Float[np.ndarray, "d k"]:
    """Average each class's prompts into one unit vector.

    Args:
        class_names: k names, in the order of the labels.
        templates: Prompts with `{c}` where the name goes.
        encode_texts: Unit vectors of texts; called once, with the distinct prompts of all classes.

    Raises:
        EvaluationDataError: No name or template, or a template takes more than `{c}`.
    """
    if not class_names or not templates:
        raise EvaluationDataError(
            f"{len(class_names)} class names and {len(templates)} templates: there is nothing to "
            "compare a picture with. Fetch the two text files of the set again."
        )
    filled = prompts(class_names, templates)
    place = {text: i for i, text in enumerate(dict.fromkeys(t for ts in filled for t in ts))}
    features = encode_texts(list(place))
    means = np.stack([features[[place[text] for text in texts]].mean(axis=0) for texts in filled])
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).T


def compute_logits(
    features: Float[np.ndarray, "n d"], classifier: Float[np.ndarray, "d k"]
) -> Float[np.ndarray, "n k"]:
    """Multiply unit vectors of pictures with the classifier, times 100, in float32.

    Classes with equal vectors, as twin names have, get bit-equal logits.
    """
    scaled = LOGIT_SCALE * features.astype(np.float32)
    return score(scaled, *distinct_rows(classifier.T.astype(np.float32)))


def label_ranks(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], protocol: str = "corrected"
) -> Int[np.ndarray, " n"]:
    """Count the classes that come before the right one; 0 is a right answer.

    Args:
        logits: Any scale.
        labels: Right classes. One outside the columns ranks last: it can never be right.
        protocol: `datacomp` looks only at the first five (or first, below five classes) of
            `torch.topk`; what is not among them ranks last.

    Raises:
        ConfigError: Unknown protocol.
    """
    check_protocol(protocol)
    num_classes = logits.shape[1]
    ranks = np.full(len(labels), num_classes, dtype=np.int64)
    if protocol == "datacomp":
        import torch

        k = 5 if num_classes >= 5 else 1
        top = torch.from_numpy(logits).topk(k, 1, True, True)[1].numpy()
        found, position = np.nonzero(top == labels[:, None])
        ranks[found] = position
        return ranks
    classes = np.arange(num_classes)
    for start in range(0, len(labels), 8192):
        block, right = logits[start : start + 8192], labels[start : start + 8192]
        inside = np.flatnonzero(right < num_classes)
        block, right = block[inside], right[inside, None]
        own = np.take_along_axis(block, right, axis=1)
        before = (block > own) | ((block == own) & (classes < right))
        ranks[start + inside] = before.sum(axis=1)
    return ranks


def accuracy(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], *, k: int = 1, protocol: str = "corrected"
) -> float:
    """Share of pictures whose class is among the k best."""
    return float((label_ranks(logits, labels, protocol) < k).mean())


def mean_per_class_recall(predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Mean of the recalls of the classes that occur in the labels.

    Source:
        scikit-learn's balanced accuracy: a class without test pictures is left out, and
        predicting it is just wrong.
    """
    sizes = np.bincount(labels)
    right = np.bincount(labels[predicted == labels], minlength=len(sizes))
    occurs = sizes > 0
    return float((right[occurs] / sizes[occurs]).mean())


def outcomes(
    logits: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], protocol: str = "corrected"
) -> dict[str, np.ndarray]:
    """Keep of each picture what the metrics, intervals and paired tests need.

    Returns:
        `label`, `predicted` (argmax) and `rank` (of the right class), one number a picture each.
    """
    return {"label": labels, "predicted": logits.argmax(axis=1), "rank": label_ranks(logits, labels, protocol)}


def metrics(outcomes: Outcomes, num_classes: int) -> dict[str, float | None]:
    """Compute acc1, acc5 (none below five classes) and mean_per_class_recall from outcomes."""
    rank = outcomes["rank"]
    return {
        "acc1": float((rank < 1).mean()),
        "acc5": float((rank < 5).mean()) if num_classes >= 5 else None,
        "mean_per_class_recall": mean_per_class_recall(outcomes["predicted"], outcomes["label"]),
    }


def replicates(
    outcomes: Outcomes, metric: str, *, num_resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, " r"]:
    """Compute a metric on resampled pictures."""
    hits, draws = _hits(outcomes, metric), {"num_resamples": num_resamples, "generator": generator}
    if metric in RECALLS:
        return class_recall_replicates(hits, outcomes["label"], **draws)
    return mean_replicates(hits, **draws)


def on_draws(outcomes: Outcomes, metric: str, drawn: Float32[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
    """Compute a metric on given draws: how often each picture is taken in each."""
    hits = _hits(outcomes, metric)
    if metric not in RECALLS:
        return (drawn @ hits.astype(np.float32)).astype(np.float64) / drawn.shape[1]
    labels = outcomes["label"]
    order = np.argsort(labels, kind="stable")
    starts = np.unique(labels[order], return_index=True)[1]
    sizes = np.add.reduceat(drawn[:, order], starts, axis=1)
    right = np.add.reduceat(drawn[:, order] * hits[order].astype(np.float32), starts, axis=1)
    recalls = right.astype(np.float64) / np.maximum(sizes, 1)
    return recalls.sum(axis=1) / (sizes > 0).sum(axis=1)


def _hits(outcomes: Outcomes, metric: str) -> Bool[np.ndarray, " n"]:
    """Whether each picture is one: by its rank, or, for WILDS' accuracy and for recalls, by argmax."""
    if metric in ("acc1", "acc5"):
        return outcomes["rank"] < int(metric.removeprefix("acc"))
    assert metric in ("acc_avg", *RECALLS), metric
    return is_right(outcomes)


def is_right(outcomes: Outcomes) -> Bool[np.ndarray, " n"]:
    """Whether the best class of each picture is the right one. By argmax, unlike DataComp's acc1."""
    return outcomes["predicted"] == outcomes["label"]


def _fill(template: str, name: str) -> str:
    try:
        return template.format(c=name)
    except (KeyError, IndexError, ValueError) as error:
        raise EvaluationDataError(
            f"The template {template!r} cannot take a class name: {error!r}. It may hold {{c}} and no other braces."
        ) from error
