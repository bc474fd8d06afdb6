"""Pairs for the page: duplicates around the threshold, extreme scores, entries, rewritten captions."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dbp.data.captions import Captions
from dbp.data.pool import Pool
from dbp.dedup.semdedup import SemDeDup
from dbp.engine.stage import rebuild
from dbp.engine.store import Entry, Store
from dbp.errors import DbpError
from evaluation.report.page.pictures import Pictures, sample

NUM_PAIRS, NUM_SCORES, NUM_ENTRIES, NUM_CAPTIONS = 12, 12, 25, 16
Problems = list[str]


def duplicates(store: Store, entry: Entry, pool: Pool, pictures: Pictures) -> dict[str, Any] | None:
    """Rows with their nearest earlier twin, nearest to the threshold on both sides of it.

    None where the artifact is not SemDeDup's.
    """
    stage = rebuild(entry.manifest["made_by"])
    if not isinstance(stage, SemDeDup):
        return None
    keep = store.open(entry.key)
    similar = store.open(entry.manifest["inputs"]["similar"]["key"])
    similarity, twin = np.asarray(similar.similarity), np.asarray(similar.twin)
    before = store.open(entry.manifest["inputs"]["rows"]["key"]).mask
    has_twin = before & (twin >= 0) & np.isfinite(similarity)
    gone, stayed = has_twin & ~keep.mask, has_twin & keep.mask
    if stage.epsilon is not None:
        threshold = 1 - stage.epsilon
    else:
        threshold = float(similarity[gone].min()) if gone.any() else None
    # Of those that went the least similar, of those that stayed the most: what lies at the threshold.
    rows = [*_ends(gone, similarity, NUM_PAIRS), *_ends(stayed, -similarity, NUM_PAIRS)]
    rows.sort(key=lambda row: -float(similarity[row]))
    return {
        "threshold": threshold,
        "epsilon": stage.epsilon,
        "removed": int(np.count_nonzero(gone)),
        "rows": int(np.count_nonzero(before)),
        "key": entry.key,
        "pairs": [
            {
                "row": sample(pool, pictures, int(row)),
                "twin": sample(pool, pictures, int(twin[row])),
                "similarity": round(float(similarity[row]), 6),
                "removed": bool(gone[row]),
            }
            for row in rows
        ],
    }


def extreme_scores(store: Store, entry: Entry, pool: Pool, pictures: Pictures) -> dict[str, Any]:
    """The rows with the lowest and with the highest scores."""
    scores = store.open(entry.key)
    values = np.asarray(scores.values)
    scored = np.isfinite(values)

    def samples(rows: list[int]) -> list[dict[str, Any]]:
        return [{**sample(pool, pictures, row), "score": round(float(values[row]), 4)} for row in rows]

    return {
        "key": entry.key,
        "label": scores.label,
        "rows": int(np.count_nonzero(scored)),
        "lowest": samples(_ends(scored, values, NUM_SCORES)),
        "highest": samples(_ends(scored, -values, NUM_SCORES)),
    }


def _ends(mask: np.ndarray, values: np.ndarray, count: int) -> list[int]:
    """The rows of a mask with the smallest values, rising; of equal values the lower row first."""
    rows = np.flatnonzero(mask)
    if len(rows) > count:
        limit = np.partition(values[rows], count - 1)[count - 1]
        below, at = rows[values[rows] < limit], rows[values[rows] == limit]
        rows = np.concatenate([below, at[: count - len(below)]])
    return rows[np.argsort(values[rows], kind="stable")].tolist()


def entries(entry: Entry) -> dict[str, Any] | None:
    """The most and the least frequent entries of a MetaCLIP selection, with what was kept of each."""
    file = entry.folder / "entries.parquet"
    if not file.exists():
        return None
    columns = [n for n in ("entry", "count", "probability", "kept") if n in pq.read_schema(file).names]
    table = pq.read_table(file, columns=columns)
    counts = table["count"].to_numpy()
    matched = np.flatnonzero(counts > 0)
    order = matched[np.argsort(-counts[matched], kind="stable")]
    head, tail = order[:NUM_ENTRIES], order[NUM_ENTRIES:][-NUM_ENTRIES:]
    return {
        "key": entry.key,
        "entries": len(counts),
        "matched": len(matched),
        "columns": columns,
        "head": [list(row.values()) for row in table.take(head).to_pylist()],
        "tail": [list(row.values()) for row in table.take(tail).to_pylist()],
    }


def rewritten(store: Store, entry: Entry, pool: Pool, pictures: Pictures) -> dict[str, Any] | None:
    """Captions before and after refinement, evenly over the rows that have a new one."""
    made = entry.manifest.get("made_by")
    if not made or getattr(type(rebuild(made)), "makes", None) is not Captions:
        return None
    captions: Captions = store.open(entry.key)
    refined = captions.refined
    if not len(refined):
        return None
    rows = refined[np.linspace(0, len(refined) - 1, min(NUM_CAPTIONS, len(refined))).astype(int)]
    after = captions.of(rows)
    return {
        "key": entry.key,
        "rows": len(refined),
        "captions": [
            {**sample(pool, pictures, int(row)), "refined": text} for row, text in zip(rows, after, strict=True)
        ],
    }


def gather_pairs(
    store: Store,
    entries_by_key: Mapping[str, Entry],
    pool_of: Callable[[Entry], Pool],
    pictures: Pictures,
    problems: Problems,
) -> dict[str, list[dict[str, Any]]]:
    """Each kind of pair, from the artifacts that the arms rest on; what cannot be read is a problem."""
    found: dict[str, list[dict[str, Any]]] = {
        "duplicates": [], "scores": [], "entries": [], "captions": []
    }  # fmt: skip
    for entry in entries_by_key.values():
        try:
            one: dict[str, Any] | None = None
            kind = ""
            if entry.stage == "dedup":
                kind, one = "duplicates", duplicates(store, entry, pool_of(entry), pictures)
            elif entry.stage == "score":
                kind, one = "scores", extreme_scores(store, entry, pool_of(entry), pictures)
            elif entry.stage == "select":
                kind, one = "entries", entries(entry)
            elif entry.stage not in ("train", "evaluate"):
                kind = "captions"
                one = _captions(store, entry, pool_of, pictures)
            if one:
                found[kind].append(one)
        except (DbpError, OSError, KeyError, ValueError) as error:
            problems.append(f"pairs of {entry.stage} {entry.key[:12]}: {error}")
        store.loaded.clear()
    return found


def _captions(
    store: Store, entry: Entry, pool_of: Callable[[Entry], Pool], pictures: Pictures
) -> dict[str, Any] | None:
    if not (entry.folder / "captions.json").exists():
        return None
    return rewritten(store, entry, pool_of(entry), pictures)
