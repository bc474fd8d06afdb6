"""What other temperatures, and other numbers of clusters, would do to a finished DBP keep list.

    dbp tune keep=KEY [temperature=0.02,0.05,0.1,0.2,0.5,1] [effective=0.8]

For the clustering that the list used, at its budget: entropy of P and the clusters that it amounts to,
clusters that are kept whole or stand at their floor, and how much neighbouring keep lists share. A temperature
means little by itself, since complexities differ from pool to pool and encoder to encoder, so the last line
says which temperature makes the effective clusters that share of the filled ones. No vector is read.

Where the store holds clusterings of the same rows with another k, they are compared at the list's temperature,
too. `paths.store=FOLDER` and `paths.runs=FOLDER` say which store; keys may be shortened.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.engine.stage import rebuild
from dbp.engine.store import Entry, Store
from dbp.errors import ConfigError, StoreError
from dbp.selection.density import Density, temperature_for

SETTINGS = ("keep", "temperature", "effective", "paths.store", "paths.runs")
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
EFFECTIVE = "0.8"
HEAD = ("entropy", "effective clusters", "kept whole", "at their floor", "kept rows", "overlap")


@dataclass(frozen=True)
class Trial:
    """A keep list that another temperature or clustering would make.

    Args:
        value: The temperature, or k.
        is_own: Whether it is that of the list itself.
        entropy: Of P, in nats; at most the logarithm of the filled clusters.
        effective: Its exponential: so many equally large shares have this entropy.
        at_cap: Clusters whose quota is their size.
        at_floor: Clusters whose quota is their floor, those that are no larger included.
        num_kept: Rows of the list: the budget.
        overlap: Rows shared with the trial before over the rows in either; None for the first.
    """

    value: float | int
    is_own: bool
    entropy: float
    effective: float
    at_cap: int
    at_floor: int
    num_kept: int
    overlap: float | None


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp tune`."""
    from dbp.verbs.show import read_arguments

    settings, words = read_arguments(arguments, SETTINGS)
    if "keep" not in settings or words:
        raise ConfigError(
            "dbp tune needs keep=KEY, the key of a keep list of select=dbp; `dbp ls stage=select` lists keep "
            "lists" + (f". Not a setting: {words[0]}" if words else "")
        )
    wanted = temperatures(settings["temperature"]) if "temperature" in settings else TEMPERATURES
    share = share_of(settings.get("effective", EFFECTIVE))
    store = Store(settings.get("paths.store", "./store"), settings.get("paths.runs", "./runs"))
    stage, inputs = open_selection(store, settings["keep"])
    print("\n".join(table("temperature", by_temperature(stage, inputs, wanted))))
    print(advice(stage, inputs, share))
    others = clusterings(store, store.find(settings["keep"]))
    if len(others) > 1:
        print("\n".join(["", *table("clusters", by_clustering(store, stage, inputs, others))]))


def temperatures(text: str) -> tuple[float, ...]:
    """Temperatures as a person lists them.

    Raises:
        ConfigError: One is no number above 0.
    """
    found = []
    for word in text.strip("[]").split(","):
        value = float("nan")
        with contextlib.suppress(ValueError):
            value = float(word)
        require(0 < value < float("inf"), "temperature", text, "numbers above 0, divided by commas")
        found.append(value)
    return tuple(found)


def share_of(text: str) -> float:
    """The share of clusters that a person asks for.

    Raises:
        ConfigError: It is no number between 0 and 1.
    """
    value = float("nan")
    with contextlib.suppress(ValueError):
        value = float(text)
    require(0 < value < 1, "effective", text, "a number between 0 and 1")
    return value


def advice(stage: Density, inputs: dict[str, Any], share: float) -> str:
    """Which temperature spreads the quotas so that a share of the clusters is effective, as a sentence."""
    rows, clusters = inputs["rows"], inputs["clusters"]
    chosen = stage.decide(**inputs)[0].num_kept
    table = stage.cluster_table(clusters, rows.mask & clusters.is_clustered, chosen)
    complexity = table["complexity"][table["size"] > 0]
    found = temperature_for(complexity, share)
    told = f"at temperature {found:g}" if found else "at no temperature: their complexities are too equal"
    return f"{share:.0%} of the {len(complexity):,} filled clusters are effective {told} (effective={share:g})."


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


def by_temperature(stage: Density, inputs: dict[str, Any], values: Sequence[float]) -> Iterator[Trial]:
    """A trial for each temperature and for the list's own, rising."""
    before = None
    for value in sorted({*values, stage.temperature}):
        tried = dataclasses.replace(stage, temperature=value)
        trial, before = _trial(tried, inputs, value, value == stage.temperature, before)
        yield trial


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


def by_clustering(store: Store, stage: Density, inputs: dict[str, Any], keys: dict[int, str]) -> Iterator[Trial]:
    """A trial for each clustering, at the list's own temperature."""
    own: Clusters = inputs["clusters"]
    before = None
    for k, key in keys.items():
        fed = {**inputs, "clusters": store.open(key)}
        trial, before = _trial(stage, fed, k, k == own.num_clusters, before)
        yield trial


def _trial(
    stage: Density, inputs: dict[str, Any], value: float | int, is_own: bool, before: Bool[np.ndarray, " n"] | None
) -> tuple[Trial, Bool[np.ndarray, " n"]]:
    rows: KeepList = inputs["rows"]
    clusters: Clusters = inputs["clusters"]
    kept, counts = stage.decide(**inputs)
    table = stage.cluster_table(clusters, rows.mask & clusters.is_clustered, kept.num_kept)
    size, quota = table["size"], table["quota"]
    filled = size > 0
    floor = max(stage.min_per_cluster, int(stage.balance * kept.num_kept / len(size)))
    return Trial(
        value=value,
        is_own=is_own,
        entropy=counts["entropy"],
        effective=counts["effective clusters"],
        at_cap=int(np.count_nonzero(filled & (quota == size))),
        at_floor=int(np.count_nonzero(filled & (quota == np.minimum(floor, size)))),
        num_kept=kept.num_kept,
        overlap=None if before is None else jaccard(before, kept.mask),
    ), kept.mask


def jaccard(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " n"]) -> float:
    """Rows in both over rows in either, in [0, 1]; 1 for two empty lists."""
    either = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / either if either else 1.0


def table(name: str, trials: Iterator[Trial]) -> list[str]:
    """Aligned lines; the overlap is with the line above, `*` marks the list itself."""
    rows: list[tuple[str, ...]] = [(name, *HEAD)]
    for trial in trials:
        rows.append(
            (
                f"{trial.value:,g}{'*' if trial.is_own else ' '}",
                f"{trial.entropy:.4f}",
                f"{trial.effective:,.1f}",
                f"{trial.at_cap:,}",
                f"{trial.at_floor:,}",
                f"{trial.num_kept:,}",
                "" if trial.overlap is None else f"{100 * trial.overlap:.1f} %",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
