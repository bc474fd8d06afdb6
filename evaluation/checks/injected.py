"""How well curation found what was injected into the glyphs pool, on rows that the encoder has not seen."""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata


def area_under_roc(scores: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]) -> float:
    """The chance that a positive scores above a negative, ties counted half; NaN without both kinds.

    Source: Mann-Whitney U over n_positive * n_negative.
    """
    positives = int(is_positive.sum())
    negatives = len(scores) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def duplicate_quality(
    truth: pa.Table, removed: Bool[np.ndarray, " n"], twin: Int[np.ndarray, " n"], unseen: Bool[np.ndarray, " n"]
) -> list[dict[str, Any]]:
    """Precision and recall of duplicate removal, by what relates a row to its twin.

    Kinds, each row with the nearest that applies: `exact` and `re-encoded` injected copies; `same picture`
    for homoglyphs and faces that share a drawing; `other face` for one character in another face.

    Recall of a kind: among unseen rows whose group (rows related by that kind) has g members, g - 1
    must go; the share that did go, at most g - 1 a group. Precision: among unseen removed rows, the share
    whose twin is related to them by each kind; `unrelated` twins are mistakes.

    Args:
        truth: The pool's `truth.parquet`, in row order.
        removed: Whether dedup removed the row.
        twin: The row that a removed row is a duplicate of; -1 for none.
        unseen: Rows that the encoder was not trained on.
    """
    kind = np.array(truth["kind"].to_pylist())
    uids = {uid: row for row, uid in enumerate(truth["uid"].to_pylist())}
    source = np.array(
        # A pool that is cut from the front may hold a copy without its original.
        [uids.get(s, row) for row, s in enumerate(truth["source_uid"].to_pylist())]
    )
    picture = truth["same_picture"].to_numpy()
    character = truth["same_character"].to_numpy()

    def relation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        found = np.full(len(a), "unrelated", object)
        found[character[a] == character[b]] = "other face"
        found[picture[a] == picture[b]] = "same picture"
        family = source[a] == source[b]
        either = {
            "exact": (kind[a] == "exact") | (kind[b] == "exact"),
            "re-encoded": (kind[a] == "reencoded") | (kind[b] == "reencoded"),
        }
        for name, holds in either.items():
            found[family & holds] = name
        return found

    def recall(name: str) -> tuple[int, int]:
        """Rows of a kind that went, and that should have gone: all but one of each group."""
        if name in ("exact", "re-encoded"):
            member = kind == {"exact": "exact", "re-encoded": "reencoded"}[name]
            has_original = source != np.arange(len(source))
            copies = np.flatnonzero(member & has_original & unseen & unseen[source])
            # Either end of the pair may stay; the copy is found if one of them went.
            return int((removed[copies] | removed[source[copies]]).sum()), len(copies)
        originals = np.flatnonzero((kind == "original") & unseen)
        if name == "unrelated":
            return 0, 0
        group = picture if name == "same picture" else character
        is_gone = removed[originals]
        if name == "other face":
            # One row a picture, gone when all of its rows are, so that equal pictures do not count again.
            _, first, at = np.unique(picture[originals], return_index=True, return_inverse=True)
            is_gone = np.bincount(at, ~is_gone, len(first)) == 0
            originals = originals[first]
        numbers, at, sizes = np.unique(group[originals], return_inverse=True, return_counts=True)
        went = np.bincount(at, is_gone, len(numbers))
        return int(np.minimum(went, sizes - 1).sum()), int((sizes - 1).sum())

    gone = np.flatnonzero(removed & unseen & (twin >= 0))
    related = relation(gone, twin[gone])
    kinds = ("exact", "re-encoded", "same picture", "other face", "unrelated")
    # Of each kind: rows removed, rows to remove, and which removed rows have a twin so related.
    found = {name: (*recall(name), related == name) for name in kinds}
    equal = kinds[:3]
    went, wanted = (sum(found[name][i] for name in equal) for i in range(2))
    found["all equal pictures"] = (went, wanted, np.isin(related, equal))
    return [
        {
            "kind": name,
            "to remove": wanted,
            "removed": went,
            "recall": went / wanted if wanted else float("nan"),
            "removed rows by twin": int(by_twin.sum()),
            "share of removed": float(by_twin.mean()) if len(gone) else float("nan"),
        }
        for name, (went, wanted, by_twin) in found.items()
    ]
