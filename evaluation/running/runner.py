"""Evaluate checkpoints on tasks: texts first, each picture decoded once for all, tasks scored as they end.

All sets are indexed before the first picture is decoded, so wrong files stop their task at once. The
distinct texts of all tasks are encoded together. Chunks of pictures then form one queue, the largest
set first; what is encoded is kept, so a killed run goes on where it stopped.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dbp.errors import WorldError
from evaluation.metrics.measures import metric_intervals
from evaluation.results import Failure, Result
from evaluation.running.devices import encode_on
from evaluation.running.encode import Chunk, Encoded, Towers, chunk_size, require_whole
from evaluation.running.prepare import Asked, Prepared, prepare
from evaluation.sets.cache import CropCache, VectorCache
from evaluation.sets.data import set_digest
from evaluation.sets.pixels import Pictures, Transform
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.suites import resolve_suite
from evaluation.tasks import own_facts

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")

# As `dbp.engine.progress.progress`: from (what, total, unit) to a block that shows its `advance` calls.
ShowProgress = Callable[[str, int, str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Encoding:
    """Where pictures are encoded and what is kept of them; no number depends on it.

    Args:
        keep: Folder for vectors, so that a rerun encodes only what is missing; none keeps nothing.
        crops: Folder for cropped pictures, so that the next checkpoint decodes nothing.
        devices: Those that share the pictures; without any, the models' own.
        progress: Shows the pictures of each task, as `dbp.engine.progress.progress` does.
    """

    keep: Path | None = None
    crops: Path | None = None
    devices: Sequence[str] = ()
    progress: ShowProgress | None = None


def by_transform(towers: Sequence[Towers]) -> list[list[int]]:
    """The numbers of models by their transform: those of one share each decoded picture."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, model in enumerate(towers):
        found[repr(model.preprocess)].append(i)
    return list(found.values())


def encode_for(
    towers: Sequence[Towers], suite: str | Sequence[str], root: Path, asked: Asked, encoding: Encoding
) -> None:
    """Encode and keep what `evaluate_checkpoints` will ask for; each of the models may be evaluated apart.

    The arguments are those of `evaluate_checkpoints`; what is wrong with a set, the evaluation says.
    """
    ready = prepare(resolve_suite(suite), root, asked, [])
    for numbers in by_transform(towers):
        run = SuiteRun([towers[i] for i in numbers], ready, asked, encoding)
        run.encode_texts()
        for _ in run.encode_in_turn():
            pass


def evaluate_checkpoints(
    towers: Sequence[Towers],
    suite: str | Sequence[str],
    root: Path,
    asked: Asked | None = None,
    encoding: Encoding = Encoding(),
    *,
    known: Sequence[Result] = (),
    failures: list[Failure] | None = None,
    on_results: Callable[[list[Result]], object] = lambda results: None,
) -> list[Result]:
    """Evaluate models on every task of a suite; a failed task does not stop the others.

    Args:
        towers: Models of any architectures.
        suite: As `suites.resolve_suite` takes it.
        root: Folder that holds the sets.
        asked: Protocols, seed, limit; all pictures under both protocols when not given.
        encoding: Where, and what is kept.
        known: Results of earlier runs; a task that has all of its results there, from the same files,
            is not done again.
        failures: Filled with the tasks that failed.
        on_results: Called with the results of each task as it ends.

    Returns:
        For each task, model and protocol, in the order of the suite.

    Raises:
        ConfigError: An unknown suite.
        WorldError: Tasks failed and no `failures` was given; after the others have ended.
    """
    asked, failed = asked or Asked(), [] if failures is None else failures
    tasks = resolve_suite(suite)
    ready = prepare(tasks, root, asked, failed)
    results: list[Result] = []
    for numbers in by_transform(towers):
        run = SuiteRun([towers[i] for i in numbers], ready, asked, encoding, known)
        run.encode_texts()
        for done in run.score_in_turn(failed):
            on_results(done)
        results += run.results
    if failures is None and failed:
        reasons = "\n".join(f"  {failure.task}: {failure.reason}" for failure in failed)
        raise WorldError(f"{len(failed)} of {len(tasks)} tasks failed:\n{reasons}")
    order = {task.key: i for i, task in enumerate(tasks)}
    return sorted(results, key=lambda result: order[result.task])


class SuiteRun:
    """Models of one transform on the sets of some tasks."""

    def __init__(
        self,
        towers: Sequence[Towers],
        ready: Sequence[Prepared],
        asked: Asked,
        encoding: Encoding,
        known: Sequence[Result] = (),
    ) -> None:
        self.towers, self.asked, self.ready, self.encoding = towers, asked, ready, encoding
        transform = Transform(towers[0].preprocess, towers[0].background)
        self.caches = [_cache(model, encoding.keep, transform) for model in towers]
        self.size = chunk_size(towers[0].batch_size)
        crops: list[CropCache] = []
        if encoding.crops is not None and transform.name is not None:
            name = hashlib.sha256(transform.name.encode()).hexdigest()[:16]
            crops = [CropCache(encoding.crops / this.name / name, self.size) for this in ready]
        rows = [this.scorer.rows for this in ready]
        self.pictures = Pictures([this.set for this in ready], rows, transform, crops)
        earlier = {same_work(result): result for result in known}
        self.results: list[Result] = []
        # Of each task, the models that lack a result of it.
        self.lacking: list[list[int]] = [[] for _ in ready]
        for this, lacking in zip(ready, self.lacking, strict=True):
            for i, model in enumerate(towers):
                blanks = [self.blank(this, model, protocol) for protocol in asked.protocols]
                found = [earlier.get(same_work(blank)) for blank in blanks]
                # An earlier version did not count, and what is counted is of the same files.
                whole = [replace(result, set_counts=this.counts) for result in found if result and result.outcomes]
                if len(whole) == len(blanks) and model.digest is not None:
                    self.results += whole
                else:
                    lacking.append(i)

    def show(self, bars: ExitStack, what: str, total: int, unit: str) -> Callable[[int], object]:
        """Begin a bar; what is returned moves it on."""
        if self.encoding.progress is None:
            return lambda count: None
        return bars.enter_context(self.encoding.progress(what, total, unit)).advance

    def encode_texts(self) -> None:
        """Encode the distinct texts of all tasks that are not done; keep them."""
        for i, (model, cache) in enumerate(zip(self.towers, self.caches, strict=True)):
            mine = [t for t, lacking in zip(self.ready, self.lacking, strict=True) if i in lacking]
            texts = list(dict.fromkeys(text for this in mine for text in this.texts()))
            if cache is not None:
                model.known_texts.update(cache.load_texts())
            missing = sum(text not in model.known_texts for text in texts)
            if not missing:
                continue
            with ExitStack() as bars:
                try:
                    model.prepare_texts(texts, self.show(bars, "texts", missing, "texts"))
                except EvaluationDataError:
                    continue  # each task says it when it asks for its texts
            if cache is not None:
                cache.save_texts(model.known_texts)

    def score_in_turn(self, failed: list[Failure]) -> Iterator[list[Result]]:
        """Score one task after the other, as its pictures are encoded."""
        for which, gathered in self.encode_in_turn():
            task, found = gathered.this.task.key, list[Result]()
            try:
                gathered.require_whole()
            except EvaluationDataError as error:
                failed.append(Failure(task, str(error)))
                continue
            for i in self.lacking[which]:
                try:
                    vectors = gathered.vectors(i)
                    found += [self.score(gathered, i, vectors, protocol) for protocol in self.asked.protocols]
                except EvaluationDataError as error:
                    label = f"{self.towers[i].label}: " if len(self.towers) > 1 else ""
                    failed.append(Failure(task, f"{label}{error}"))
            if found:
                self.results += found
                yield found

    def score(self, gathered: "Gathered", i: int, vectors: Float[np.ndarray, "n d"], protocol: str) -> Result:
        """The result of a task by the vectors of one model."""
        this, model = gathered.this, self.towers[i]
        scored = this.scorer.measure(vectors, model.encode_texts, protocol, model.logit_scale)
        return replace(
            self.blank(this, model, protocol),
            metrics=scored.metrics,
            intervals=metric_intervals(this.task, scored.metrics, scored.outcomes, seed=self.asked.seed),
            outcomes=scored.outcomes,
            set_digest=gathered.digest,
        )

    def encode_in_turn(self) -> Iterator[tuple[int, "Gathered"]]:
        """Encode the pictures of one task after the other, the largest first; at the end close all sets."""
        order = [which for which, lacking in enumerate(self.lacking) if lacking]
        order.sort(key=lambda which: -_num_bytes(self.ready[which]))
        chunks = {which: self.chunks(which) for which in order}
        with ExitStack() as bars:
            for this in self.ready:
                bars.callback(this.set.close)
            shown: dict[int, Callable[[int], object]] = {}
            bar = bars.enter_context(ExitStack())

            def advance(chunk: Chunk, count: int) -> None:
                if chunk.which not in shown:
                    bar.close()
                    this = self.ready[chunk.which]
                    shown[chunk.which] = self.show(bar, this.task.name, len(this.scorer.rows), "pictures")
                shown[chunk.which](count)

            missing = [chunk for which in order for chunk in chunks[which] if chunk.models]
            devices = self.encoding.devices or [self.towers[0].device]
            stream = encode_on(devices, self.towers, self.pictures, missing, advance)
            for which in order:
                gathered = Gathered(self.ready[which])
                for chunk in chunks[which]:
                    self.gather(chunk, stream, gathered)
                yield which, gathered

    def chunks(self, which: int) -> list[Chunk]:
        """The chunks of a task's pictures, each with the models whose vectors of it are not kept."""
        this = self.ready[which]
        found: list[Chunk] = []
        for start in range(0, len(this.scorer.rows), self.size):
            stop = min(start + self.size, len(this.scorer.rows))
            caches = {i: self.caches[i] for i in self.lacking[which]}
            missing = [i for i, c in caches.items() if c is None or not c.file(this.name, start, stop).exists()]
            found.append(Chunk(which, start, stop, tuple(missing), this.scorer.is_halved))
        return found

    def gather(self, chunk: Chunk, stream: Iterator[Encoded], gathered: "Gathered") -> None:
        """Take a chunk's vectors from what is kept, and from the stream what is not."""
        at = (self.ready[chunk.which].name, chunk.start, chunk.stop)
        for i in set(self.lacking[chunk.which]) - set(chunk.models):
            cache = self.caches[i]
            assert cache is not None
            try:
                features, gathered.digests[chunk.start] = cache.load(*at)
            except EvaluationDataError as error:
                gathered.damaged = str(error)
                continue
            gathered.features[i].append(features)
        if not chunk.models:
            return
        found = next(stream)
        assert found.chunk == chunk, (found.chunk, chunk)
        gathered.broken += found.broken
        gathered.not_finite |= found.not_finite
        gathered.digests[chunk.start] = found.digests
        for i, features in found.features.items():
            gathered.features[i].append(features)
            if (cache := self.caches[i]) is not None:
                cache.save(*at, features, found.digests)

    def blank(self, this: Prepared, model: Towers, protocol: str) -> Result:
        """A result with all but what was measured."""
        scorer = this.scorer
        return Result(
            task=this.task.key,
            protocol=protocol,
            metrics={},
            intervals={},
            num_samples=scorer.num_samples,
            limit=self.asked.limit if scorer.num_samples < scorer.num_available else None,
            checkpoint=model.digest,
            model=model.name,
            samples_seen=model.samples_seen,
            precision=model.precision,
            versions=library_versions(),
            set_digest="",
            seed=self.asked.seed,
            config_digest=model.config_digest,
            index_digest=this.digest,
            set_counts=this.counts,
            own_task=own_facts([this.task.key]).get(this.task.key),
        )


@dataclass
class Gathered:
    """What is known of a task's pictures so far, as in `Encoded`; features and digests chunk by chunk.

    `damaged`: what to say of a file of kept vectors that is damaged.
    """

    this: Prepared
    features: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    digests: dict[int, list[bytes]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    not_finite: dict[int, str] = field(default_factory=dict)
    damaged: str = ""

    def require_whole(self) -> None:
        """Refuse broken pictures.

        Raises:
            EvaluationDataError: A picture is broken, or a file of kept vectors damaged.
        """
        if self.damaged:
            raise EvaluationDataError(self.damaged)
        require_whole(self.broken, len(self.this.scorer.rows))

    def vectors(self, model: int) -> Float[np.ndarray, "n d"]:
        """The unit vectors of all pictures by one model.

        Raises:
            EvaluationDataError: As `require_whole`, or a vector is not finite.
        """
        self.require_whole()
        if model in self.not_finite:
            raise EvaluationDataError(self.not_finite[model])
        return np.concatenate(self.features[model])

    @cached_property
    def digest(self) -> str:
        """As `set_digest`, of all pictures."""
        digests = [digest for start in sorted(self.digests) for digest in self.digests[start]]
        return set_digest(self.this.set, self.this.scorer.rows, digests)


def same_work(result: Result) -> tuple[str, ...]:
    """What must be equal for a result of an earlier run to stand."""
    return result.identity, result.index_digest, repr(sorted(result.versions.items()))


def library_versions() -> dict[str, str]:
    """List the versions of the libraries that the numbers may depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cache(model: Towers, root: Path | None, transform: Transform) -> VectorCache | None:
    """Where a model's vectors are kept; nowhere for what cannot be named in another process."""
    if root is None or model.digest is None or transform.name is None:
        return None
    kind = model.device.partition(":")[0]
    transform_name, versions = repr(model.preprocess), library_versions()
    return VectorCache(root, model.digest, model.config_digest, transform_name, model.precision, kind, versions)


def _num_bytes(this: Prepared) -> int:
    return sum(this.set.samples[row].length for row in this.scorer.rows)
