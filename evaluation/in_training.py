"""The suite as a run's evaluator: the final evaluation's numbers, while training goes on.

The same code in the same batches as `dbp evaluate`, so a checkpoint's last row equals its final
result, digit for digit (with the same batch size, device and precision). Ranks share the work by
whole batches of pictures and of prompts, so their number does not matter either. What goes over the
network is the vectors: 4 bytes x width a picture, 100 MB for ImageNet at width 512.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from dbp.config import require
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, DbpError
from dbp.pools.glyphs import GlyphPlan
from evaluation.results import Failure
from evaluation.running.encode import Towers, encode_pictures
from evaluation.running.prepare import Asked, Prepared, check_own, prepare
from evaluation.sets.at_hand import sets_lack
from evaluation.sets.data import EvaluationSet
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.suites import own_parts, resolve_suite
from evaluation.tasks import departures
from training.resume.ranks import Ranks
from training.watching.watch import Evaluator
from training.watching.watched import Measure, Watched

log = logging.getLogger("dbp")

NO_ROOT = (
    "root is not set, and train.watch evaluates a suite. Give the folder that holds the evaluation sets in "
    "DataComp's layout, or root=glyphs for the rendered ones."
)


@dataclass(frozen=True)
class Suite(Evaluator):
    """Zero-shot classification and retrieval, as `dbp evaluate` scores them, without intervals.

    Args:
        suite: A suite, a task, or a list of them.
        tasks: Tasks of the user by key, as `evaluation.tasks.OwnTask` describes them.
        suites: Suites of the user: name -> members.
        root: The folder that holds the sets in DataComp's layout; `glyphs` renders them.
        protocol: `corrected`, or `datacomp` bug for bug.
        limit: Only so many samples of each set, chosen at random; null for all.
        seed: Of that choice.
        precision: `fp32`, or `bf16` for autocast.
        plan: The glyphs pool's plan, for `root=glyphs`.
        batch_size: Pictures at a time; last bits depend on it, so give the final evaluation's.
        num_workers: Processes that decode, on each rank.
    """

    suite: str | list[str]
    root: str | None
    protocol: Literal["corrected", "datacomp"]
    limit: int | None
    seed: int
    precision: Literal["fp32", "bf16"]
    plan: GlyphPlan | None = None
    batch_size: int = runtime(128)
    num_workers: int = runtime(0)
    tasks: dict[str, Any] = runtime(default_factory=dict)
    suites: dict[str, Any] = runtime(default_factory=dict)

    def __post_init__(self) -> None:
        for name, own in zip(("tasks", "suites"), own_parts(self.tasks, self.suites, self.suite), strict=True):
            object.__setattr__(self, name, own)
        require(self.limit is None or self.limit > 0, "limit", self.limit, "above 0, or null for all")
        require(self.batch_size > 0, "batch_size", self.batch_size, "above 0")
        require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")

    def titles(self) -> list[str]:
        return [task.key for task in resolve_suite(self.suite)]

    def lacks(self, inputs: Any) -> Iterator[DbpError | str]:
        """The folder of sets, or all of its sets; those that will be left out, as a text."""
        tasks = resolve_suite(self.suite)
        if self.root is None:
            yield ConfigError(NO_ROOT)
        elif self.root != "glyphs":
            found = list(sets_lack(tasks, Path(self.root)))
            gone = [one for one in found if isinstance(one, DbpError)]
            yield from gone if len(gone) == len(tasks) else map(str, found)

    def open(self, run: Watched) -> Measure:
        """Index the sets and read their labels; a task that is not there is named and left out.

        Raises:
            ConfigError: No folder is named, or it lacks all tasks of the suite, or one of the user.
        """
        root = self._folder(run)
        failures: list[Failure] = []
        check_own(resolve_suite(self.suite), root)
        asked = Asked((self.protocol,), self.seed, self.limit)
        prepared = prepare(resolve_suite(self.suite), root, asked, failures)
        if not prepared:
            first = failures[0]
            raise ConfigError(
                f"suite={self.suite!r}: no task of it can be evaluated in {root}. {first.task}: {first.reason}"
            )
        for failure in failures if run.ranks.is_first else []:
            log.warning("in-training evaluation leaves out %s: %s", failure.task, failure.reason)
        for this in prepared if run.ranks.is_first else []:
            if said := departures(this.task, this.counts):
                log.warning("in-training evaluation: the set of %s has %s", this.task.key, said)
        return lambda: self._measure(run, prepared)

    def _folder(self, run: Watched) -> Path:
        if self.root is None:
            raise ConfigError(NO_ROOT)
        if self.root != "glyphs":
            return Path(self.root)
        folder = run.folder / "glyphs"
        if run.ranks.is_first and not folder.exists():
            from dbp.pools.glyph_tasks import render_tasks

            beside = run.folder / f".glyphs-{id(self)}"
            render_tasks(self.plan or GlyphPlan(), beside)
            beside.rename(folder)
        run.ranks.gather(None)  # the others wait until it is there
        return folder

    def _measure(self, run: Watched, prepared: Sequence["Prepared"]) -> dict[str, float]:
        towers = SharedTowers(
            run.model,
            run.preprocess,
            run.tokenizer,
            device=run.device,
            precision=self.precision,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            ranks=run.ranks,
        )
        values: dict[str, float] = {}
        with suppress(EvaluationDataError):  # each task says it below
            towers.prepare_texts([text for this in prepared for text in this.texts()])
        for this in prepared:
            try:
                features = towers.encode_set(this.set, this.scorer.rows)
                metrics = this.scorer.measure(
                    features, towers.encode_texts, self.protocol, towers.logit_scale
                ).metrics
            except EvaluationDataError as error:  # on all ranks alike
                if run.ranks.is_first:
                    log.warning("in-training evaluation: no %s this time: %s", this.task.key, error)
                continue
            values |= {f"{this.task.key}/{name}": value for name, value in metrics.items() if value is not None}
        return values


@dataclass
class SharedTowers(Towers):
    """A model that several ranks have alike, and that they run over shares of the work.

    Shares are whole batches: a batch has the same members as on a single rank, so its vectors have
    the same bits.
    """

    ranks: Ranks = field(default_factory=Ranks)

    def prepare_texts(self, texts: Sequence[str], advance: Callable[[int], object] = lambda count: None) -> None:
        """Encode those of the texts that were not encoded yet, each on one of the ranks.

        Raises:
            EvaluationDataError: As in `Towers`; on all ranks alike.
        """
        missing = [text for text in dict.fromkeys(texts) if text not in self.known_texts]
        if not missing or self.ranks.size == 1:
            super().prepare_texts(missing, advance)
            return
        prepare_mine = super().prepare_texts

        def encode(mine: list[int]) -> Float[np.ndarray, "m d"]:
            prepare_mine([missing[i] for i in mine], advance)
            return np.stack([self.known_texts[missing[i]] for i in mine])

        vectors = self._shared(len(missing), self.text_batch_size, encode)
        self.known_texts.update(zip(missing, vectors, strict=True))

    def encode_set(self, evaluation_set: EvaluationSet, rows: Sequence[int]) -> Float[np.ndarray, "n d"]:
        """Unit vectors of pictures, each encoded on one of the ranks.

        Raises:
            EvaluationDataError: As in `encode_pictures`; on all ranks alike.
        """

        def encode(mine: list[int]) -> Float[np.ndarray, "m d"]:
            return encode_pictures(self, evaluation_set, [rows[i] for i in mine])

        return self._shared(len(rows), self.batch_size, encode)

    def _shared(
        self, num: int, batch_size: int, encode: Callable[[list[int]], Float[np.ndarray, "m d"]]
    ) -> Float[np.ndarray, "n d"]:
        """The vectors of things 0..num-1, every batch of them encoded on the next rank."""
        rank_of = np.arange(num) // batch_size % self.ranks.size
        mine = np.flatnonzero(rank_of == self.ranks.rank)
        part: np.ndarray | str | None = None
        try:
            part = encode(mine.tolist()) if len(mine) else None
        except EvaluationDataError as error:  # the others wait below and must hear of it
            part = str(error)
        parts = self.ranks.gather(part)
        if failed := [part for part in parts if isinstance(part, str)]:
            raise EvaluationDataError(failed[0])
        whole = np.empty((num, parts[0].shape[1]), np.float32)  # the first rank has a batch
        for rank, vectors in enumerate(parts):
            if vectors is not None:
                whole[rank_of == rank] = vectors
        return whole
