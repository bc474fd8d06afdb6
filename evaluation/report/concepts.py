"""What pruning did to a concept, beside what it did to the concept's test pictures.

A concept is a class of a task. Its training pairs are those whose caption holds the class name, or,
in a glyphs pool, those that show one of its characters. Two arms are compared class by class: how much
more of a concept's pairs the second arm kept, and how much more of its test pictures it got right.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dbp.data.pool import Pool
from dbp.engine.store import Entry, Store
from dbp.errors import StoreError
from dbp.lineage import lineage, open_keep_list, open_pool_of
from dbp.pools.glyph_tasks import TASKS, class_names, script
from evaluation.results import Result
from evaluation.sets.data import NAMES_FILE
from evaluation.statistics.comparison import why_not_comparable
from evaluation.tasks import find_task

_WORD = re.compile(r"\w+")
# With fewer classes no order of ranks is rare enough to tell anything.
MIN_CLASSES = 5
# They are read out of their tars one by one.
MOST_CAPTIONS = 1_000_000


@dataclass(frozen=True)
class Concept:
    """One class of a task in two arms."""

    name: str  # as in the set's names
    pairs: int  # of it in the pool
    kept: tuple[int, int]  # of these, by each arm
    # Share of its test pictures that each arm got right; none without test pictures
    recall: tuple[float, float] | None


@dataclass(frozen=True)
class Concepts:
    """All classes of a task in two arms."""

    classes: tuple[Concept, ...]  # in the order of the labels
    # Spearman's rank correlation, over classes with pairs and test pictures, of the difference in the share of
    # pairs kept and the difference in recall, both second - first; none where there are fewer than 5 such classes,
    # or one of the two is the same for all
    rho: float | None
    p: float | None  # of no correlation
    num_ranked: int  # how many classes that rests on

    def line(self) -> str:
        """Say it in one sentence."""
        if self.rho is None:
            return (
                f"{self.num_ranked} classes have pairs and test pictures: no correlation of pairs "
                "kept and recall can be told"
            )
        return (
            "classes of which more pairs were kept, against recall: Spearman's rho "
            f"{self.rho:+.2f} (p {self.p:.2g}, {self.num_ranked} classes)"
        )


def class_recalls(outcomes: Mapping[str, np.ndarray], num_classes: int) -> Float[np.ndarray, " k"]:
    """Share of each class's test pictures that are predicted right; NaN where there are none.

    Args:
        outcomes: With `label` and `predicted`.
        num_classes: k.
    """
    labels = outcomes["label"]
    sizes = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[outcomes["predicted"] == labels], minlength=num_classes)
    return np.divide(right, sizes, out=np.full(num_classes, np.nan), where=sizes > 0)


def count_named(
    class_names: Sequence[str], captions: Iterable[str], kept: Bool[np.ndarray, "a n"]
) -> Int[np.ndarray, "a+1 k"]:
    """Count the pairs whose caption holds the name of each class, in the pool and in each arm.

    A name is found as whole words in their order, in any case, whatever stands between them that is
    no letter or digit. A caption counts once for a class; equal names count alike; a name without a
    word counts nothing.

    Args:
        class_names: k.
        captions: One a row of the pool.
        kept: Of each arm, which rows it kept.

    Returns:
        Counts in the pool, then in each arm.

    Raises:
        ValueError: Captions and rows are not equally many.
    """
    by_first: dict[str, list[tuple[list[str], int]]] = defaultdict(list)
    for number, name in enumerate(class_names):
        if words := _words(name):
            by_first[words[0]].append((words, number))
    rows: list[int] = []
    numbers: list[int] = []
    count = 0
    for row, caption in enumerate(captions):
        count += 1
        found: set[int] = set()
        words = _words(caption)
        for start, word in enumerate(words):
            for name, number in by_first.get(word, ()):
                if words[start : start + len(name)] == name:
                    found.add(number)
        rows += [row] * len(found)
        numbers += found
    if count != kept.shape[1]:
        raise ValueError(f"{count:,} captions for {kept.shape[1]:,} rows: give one a row.")
    return _count(np.array(rows, np.int64), np.array(numbers, np.int64), kept, len(class_names))


def count_labelled(
    labels: Int[np.ndarray, " n"], kept: Bool[np.ndarray, "a n"], num_classes: int
) -> Int[np.ndarray, "a+1 k"]:
    """Count the pairs of each class by known labels, in the pool and in each arm.

    Args:
        labels: Of each row of the pool; -1 for none.
        kept: Of each arm, which rows it kept.
        num_classes: k.
    """
    rows = np.flatnonzero(labels >= 0)
    return _count(rows, labels[rows], kept, num_classes)


def glyph_labels(truth: Any, task: str) -> Int[np.ndarray, " n"]:
    """The class of a glyphs task that each row of the pool shows; -1 for none.

    A row whose caption was swapped teaches no class.

    Args:
        truth: The pool's table of what was planted, one row a sample.
        task: As `glyphs/letters`.
    """
    from dbp.pools.glyph_fonts import base_letter

    number = {name: i for i, name in enumerate(class_names(task))}
    class_of = base_letter if "letters" in task else script
    characters = truth["character"].to_numpy()
    distinct, place = np.unique(characters, return_inverse=True)
    labels = np.array([number.get(class_of(int(one)) or "", -1) for one in distinct])[place]
    return np.where(truth["caption_swapped"].to_numpy(zero_copy_only=False), -1, labels)


def join(
    class_names: Sequence[str],
    counts: Int[np.ndarray, "3 k"],
    first: Float[np.ndarray, " k"],
    second: Float[np.ndarray, " k"],
) -> Concepts:
    """Lay pairs kept and recall side by side, class by class, and correlate their differences.

    Args:
        class_names: k.
        counts: Pairs in the pool, kept by the first arm, kept by the second.
        first: Recall of each class, a mean over seeds if there are several; NaN for none.
        second: The same of the second arm.
    """
    from scipy.stats import spearmanr

    has_test = np.isfinite(first) & np.isfinite(second)
    classes = tuple(
        Concept(
            name,
            int(counts[0, i]),
            (int(counts[1, i]), int(counts[2, i])),
            (float(first[i]), float(second[i])) if has_test[i] else None,
        )
        for i, name in enumerate(class_names)
    )
    ranked = has_test & (counts[0] > 0)
    pairs, kept = counts[0, ranked], counts[1:, ranked]
    share = (kept[1] - kept[0]) / pairs
    recall = (second - first)[ranked]
    num_ranked = int(ranked.sum())
    # Rounded: differences of shares that are equal in truth must tie.
    share, recall = np.round(share, 12), np.round(recall, 12)
    if num_ranked < MIN_CLASSES or len(set(share)) < 2 or len(set(recall)) < 2:
        return Concepts(classes, None, None, num_ranked)
    found: Any = spearmanr(share, recall)
    return Concepts(classes, float(found.statistic), float(found.pvalue), num_ranked)


def concepts_of_runs(
    store: Store,
    evaluations: tuple[Entry, Entry],
    results: tuple[Sequence[Result], Sequence[Result]],
    *,
    limited: bool = True,
) -> dict[str, Concepts]:
    """Join pairs kept and recall, for each classification task that two runs of the store share.

    Args:
        store: Holds the keep lists and the pool.
        evaluations: Of two checkpoints that were trained on one pool.
        results: Of each, with outcomes.
        limited: Whether to leave out what reads more than a million captions.

    Returns:
        By task; nothing where the two were trained on different pools, or on captions too many.

    Raises:
        StoreError: The pool or a keep list is no longer in the store.
    """
    keeps = [open_keep_list(store, _keep_key(store, entry)) for entry in evaluations]
    (entry, first), (_, second) = keeps
    if first.pool_digest != second.pool_digest:
        return {}
    pool = open_pool_of(store, entry)
    truth = _truth(store, entry, pool.num_rows)
    kept = np.stack([first.mask, second.mask])
    shared = [
        (one, other, names)
        for one in results[0]
        for other in results[1]
        if one.task == other.task and why_not_comparable(one, other) is None
        if "predicted" in one.outcomes and (names := _class_names(store, evaluations[0], one.task))
    ]
    by_caption = {one.task: names for one, _, names in shared if truth is None or one.task not in TASKS}
    counts: dict[str, np.ndarray] = {}
    if by_caption and not (limited and pool.num_rows > MOST_CAPTIONS):
        # The captions of a pool are read once for the classes of all tasks.
        every = count_named([n for names in by_caption.values() for n in names], _captions(pool), kept)
        ends = np.cumsum([len(names) for names in by_caption.values()])
        counts |= zip(by_caption, np.split(every, ends[:-1], axis=1), strict=True)
    found: dict[str, Concepts] = {}
    for one, other, names in shared:
        if truth is not None and one.task in TASKS:
            counts[one.task] = count_labelled(glyph_labels(truth, one.task), kept, len(names))
        if one.task in counts:
            recalls = [class_recalls(side.outcomes, len(names)) for side in (one, other)]
            found[one.task] = join(names, counts[one.task], *recalls)
    return found


def _keep_key(store: Store, evaluation: Entry) -> str:
    """The key of the keep list that the evaluated checkpoint was trained on."""
    trained = [one for one in lineage(store, evaluation) if one.stage == "train"]
    inputs = trained[-1].manifest["inputs"] if trained else {}
    if "keep" not in inputs:
        raise StoreError(
            f"{evaluation.key} does not say which keep list its checkpoint was trained on: its run is "
            "no longer in the store, or was no run of ours."
        )
    return inputs["keep"]["key"]


def _truth(store: Store, keep: Entry, num_rows: int) -> Any:
    """What was planted in a glyphs pool; none for other pools."""
    import pyarrow.parquet as pq

    for upstream in lineage(store, keep):
        if upstream.stage == "render":
            return pq.read_table(upstream.folder / "truth.parquet").slice(0, num_rows)
    return None


def _class_names(store: Store, evaluation: Entry, task: str) -> tuple[str, ...]:
    """The names of a task's classes; none where its set is no longer there."""
    if task in TASKS:
        return class_names(task)
    if found := find_task(task).class_names:
        return found
    sets = store.open(evaluation.manifest["inputs"]["sets"]["key"])
    file = sets.folder / find_task(task).folder / NAMES_FILE
    return tuple(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else ()


def _captions(pool: Pool) -> Iterator[str]:
    for start in range(0, pool.num_rows, 1 << 16):
        yield from pool.captions(np.arange(start, min(start + (1 << 16), pool.num_rows)))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _count(
    rows: np.ndarray, numbers: np.ndarray, kept: Bool[np.ndarray, "a n"], num_classes: int
) -> Int[np.ndarray, "a+1 k"]:
    masks = [np.ones(len(rows), bool), *(arm[rows] for arm in kept)]
    return np.stack([np.bincount(numbers[mask], minlength=num_classes) for mask in masks])
