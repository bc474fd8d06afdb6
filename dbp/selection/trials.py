"""What a finished DBP keep list would be at other temperatures, and over other numbers of clusters."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from dbp.engine.stage import rebuild
from dbp.engine.store import Entry, Store
from dbp.errors import ConfigError, StoreError
from dbp.selection.density import Density, temperature_for

TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
HEAD = ("entropy", "effective clusters", "kept whole", "at their floor", "kept rows", "overlap")


@dataclass(frozen=True)
class Trial:
    """A keep list that another temperature or clustering would make."""

    value: float | int  # the temperature, or k
    is_own: bool  # whether it is that of the list itself
    entropy: float  # of P, in nats; at most the logarithm of the filled clusters
    effective: float  # its exponential: so many equally large shares have this entropy
    at_cap: int  # clusters whose quota is their size
    at_floor: int  # clusters whose quota is their floor, those that are no larger included
    num_kept: int  # rows of the list: the budget
    overlap: float | None  # rows shared with the trial before over the rows in either; None for the first


def open_selection(store: Store, key: str) -> tuple[Density, dict[str, Any]]:
    """The stage that made a DBP keep list, and its inputs.

    Raises:
        ConfigError: Another stage made the artifact.
        StoreError: Something that it rests on is no longer in the store.
    """
    entry = store.find(key)
    made = entry.manifest.get("made_by")
    stage = rebuild(made) if entry.stage == "select" and made else None
    if not isinstance(stage, Density):
        what = type(stage).__name__ if stage else f"the stage {entry.stage}"
        raise ConfigError(
            f"keep={key}: it was made by {what}, and only select=dbp has a temperature. `dbp ls stage=select` "
            "lists keep lists."
        )
    try:
        return stage, {n: store.open(up["key"]) for n, up in entry.manifest["inputs"].items()}
    except StoreError as error:
        raise StoreError(
            f"keep={key}: what the list rests on cannot be opened ({error}). Make it again with dbp curate."
        ) from error


def clusterings(store: Store, entry: Entry) -> dict[int, str]:
    """The keys by k of the clusterings that differ from a list's own in k alone, its own included."""
    own = store.find(entry.manifest["inputs"]["clusters"]["key"])

    def means(entry: Entry) -> tuple[Any, ...]:
        fixed = {n: v for n, v in entry.manifest["parameters"].items() if n != "num_clusters"}
        inputs = entry.manifest["inputs"]
        fed = {n: inputs[n]["identity"] for n in ("rows", "image", "text") if n in inputs}
        return entry.stage, entry.manifest["version"], fixed, fed

    found = {e.manifest["counts"]["clusters"]: e.key for e in store.entries() if means(e) == means(own)}
    found[own.manifest["counts"]["clusters"]] = own.key
    return dict(sorted(found.items()))


def by_temperature(stage: Density, inputs: dict[str, Any], values: Sequence[float]) -> Iterator[Trial]:
    """A trial for each temperature and for the list's own, rising."""
    every = sorted({*values, stage.temperature})
    return _trials((t, t == stage.temperature, replace(stage, temperature=t), inputs) for t in every)


def by_clustering(store: Store, stage: Density, inputs: dict[str, Any], keys: dict[int, str]) -> Iterator[Trial]:
    """A trial for each clustering, at the list's own temperature."""
    own = inputs["clusters"].num_clusters
    return _trials((k, k == own, stage, {**inputs, "clusters": store.open(key)}) for k, key in keys.items())


def _trials(variants: Iterable[tuple[float | int, bool, Density, dict[str, Any]]]) -> Iterator[Trial]:
    before = None
    for value, is_own, stage, inputs in variants:
        kept, counts = stage.decide(**inputs)
        clusters = inputs["clusters"]
        table = stage.cluster_table(clusters, inputs["rows"].mask & clusters.is_clustered, kept.num_kept)
        size, quota = table["size"], table["quota"]
        floor = max(stage.min_per_cluster, int(stage.balance * kept.num_kept / len(size)))
        yield Trial(
            value,
            is_own,
            counts["entropy"],
            counts["effective clusters"],
            at_cap=int(np.count_nonzero((size > 0) & (quota == size))),
            at_floor=int(np.count_nonzero((size > 0) & (quota == np.minimum(floor, size)))),
            num_kept=kept.num_kept,
            overlap=None if before is None else jaccard(before, kept.mask),
        )
        before = kept.mask


def jaccard(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " n"]) -> float:
    """Rows in both over rows in either, in [0, 1]; 1 for two empty lists."""
    either = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / either if either else 1.0


def lines_of(name: str, trials: Iterable[Trial]) -> list[str]:
    """An aligned table; the overlap is with the line above, `*` marks the list itself."""
    rows: list[tuple[str, ...]] = [(name, *HEAD)]
    for t in trials:
        overlap = "" if t.overlap is None else f"{100 * t.overlap:.1f} %"
        counts = (f"{count:,}" for count in (t.at_cap, t.at_floor, t.num_kept))
        own = f"{t.value:,g}{'*' if t.is_own else ' '}"
        rows.append((own, f"{t.entropy:.4f}", f"{t.effective:,.1f}", *counts, overlap))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def advice(stage: Density, inputs: dict[str, Any], share: float) -> str:
    """Which temperature spreads the quotas so that a share of the clusters is effective, as a sentence."""
    rows, clusters = inputs["rows"], inputs["clusters"]
    chosen = stage.decide(**inputs)[0].num_kept
    table = stage.cluster_table(clusters, rows.mask & clusters.is_clustered, chosen)
    complexity = table["complexity"][table["size"] > 0]
    found = temperature_for(complexity, share)
    told = f"at temperature {found:g}" if found else "at no temperature: their complexities are too equal"
    return f"{share:.0%} of the {len(complexity):,} filled clusters are effective {told} (effective={share:g})."
