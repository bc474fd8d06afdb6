"""Evaluate checkpoints on tasks: texts first, each picture decoded once for all, tasks scored as they end.

All sets are indexed before the first picture is decoded, so wrong files stop their task at once. The
distinct texts of all tasks are encoded together. Chunks of pictures then form one queue, the largest
set first; what is encoded is kept, so a killed run goes on where it stopped.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dbp.errors import ConfigError, WorldError
from evaluation.metrics.measures import metric_intervals
from evaluation.results import Failure, Result
from evaluation.running.devices import Job, encode_on
from evaluation.running.encode import Chunk, Encoded, Towers, chunk_size, require_whole
from evaluation.running.prepare import Asked, Prepared, prepare
from evaluation.sets.crops import Crops
from evaluation.sets.data import set_digest
from evaluation.sets.kept import Kept
from evaluation.sets.pixels import Pictures, Transform
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.suites import resolve_suite

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")

# As `dbp.engine.progress.progress`: from (what, total, unit) to a block that shows its `advance` calls.
ShowProgress = Callable[[str, int, str], AbstractContextManager[Any]]


def encode_for(
    towers: Sequence[Towers],
    suite: str | Sequence[str],
    root: str | Path,
    asked: Asked,
    keep: Path,
    *,
    crops: Path | None = None,
    devices: Sequence[str] = (),
    progress: ShowProgress | None = None,
) -> None:
    """Encode what `evaluate_checkpoints` will ask for, and keep it; each of the models may be evaluated apart.

    Args:
        towers: Models of one architecture: one transform serves all.
        suite: As `suites.resolve_suite` takes it.
        root: Folder that holds the sets; what is wrong with one, the evaluation says.
        asked: Which samples.
        keep: Folder for vectors.
        crops: Folder for cropped pictures, if they are to be kept.
        devices: Those that share the pictures, if there are several.
        progress: Shows the pictures of each task, as `dbp.engine.progress.progress` does.
    """
    ready = prepare(resolve_suite(suite), Path(root), asked, [])
    run = SuiteRun(towers, ready, asked, keep, crops, (), devices)
    try:
        run.encode_texts(progress)
        for _ in run.encode_in_turn(progress):
            pass
    finally:
        for this in ready:
            this.set.close()


def evaluate_checkpoints(
    towers: Sequence[Towers],
    suite: str | Sequence[str],
    root: str | Path,
    asked: Asked | None = None,
    *,
    keep: Path | None = None,
    crops: Path | None = None,
    known: Sequence[Result] = (),
    devices: Sequence[str] = (),
    progress: ShowProgress | None = None,
    failures: list[Failure] | None = None,
    on_results: Callable[[list[Result]], object] = lambda results: None,
) -> list[Result]:
    """Evaluate models on every task of a suite; a failed task does not stop the others.

    Args:
        towers: Models of one architecture: one transform serves all.
        suite: As `suites.resolve_suite` takes it.
        root: Folder that holds the sets.
        asked: Protocols, seed, limit; all pictures under both protocols when not given.
        keep: Folder for vectors, so that a rerun encodes only what is missing; none keeps nothing.
        crops: Folder for cropped pictures, so that the next checkpoint decodes nothing.
        known: Results of earlier runs; a task that has all of its results there, from the same files,
            is not done again.
        devices: Those that share the pictures, if there are several.
        progress: Shows the pictures of each task, as `dbp.engine.progress.progress` does.
        failures: Filled with the tasks that failed.
        on_results: Called with the results of each task as it ends.

    Returns:
        For each task, model and protocol, in the order of the suite.

    Raises:
        ConfigError: An unknown suite, or models whose transforms differ.
        WorldError: Tasks failed and no `failures` was given; after the others have ended.
    """
    asked, failed = asked or Asked(), [] if failures is None else failures
    tasks = resolve_suite(suite)
    before = len(failed)
    ready = prepare(tasks, Path(root), asked, failed)
    run = SuiteRun(towers, ready, asked, keep, crops, known, devices)
    try:
        run.encode_texts(progress)
        for done in run.score_in_turn(progress, failed):
            on_results(done)
    finally:
        for ready in run.ready:
            ready.set.close()
    if failures is None and failed[before:]:
        reasons = "\n".join(f"  {failure.task}: {failure.reason}" for failure in failed)
        raise WorldError(f"{len(failed)} of {len(tasks)} tasks failed:\n{reasons}")
    order = {task.key: i for i, task in enumerate(tasks)}
    return sorted(run.results, key=lambda result: order[result.task])


class SuiteRun:
    """One call of `evaluate_checkpoints`."""

    def __init__(
        self,
        towers: Sequence[Towers],
        ready: Sequence[Prepared],
        asked: Asked,
        keep: Path | None,
        crops: Path | None,
        known: Sequence[Result],
        devices: Sequence[str],
    ) -> None:
        self.towers, self.asked, self.ready = towers, asked, list(ready)
        self.devices = devices or [towers[0].device]
        transform = Transform(towers[0].preprocess)
        for other in towers[1:]:
            if repr(other.preprocess) != repr(towers[0].preprocess):
                raise ConfigError(
                    f"checkpoints {towers[0].name} and {other.name} take pictures of different sizes "
                    "or colours, so they cannot share decoded ones. Evaluate them apart."
                )
        self.keeps = [_kept(model, keep, transform) for model in towers]
        self.size = chunk_size(towers[0].batch_size)
        self.crops = [
            Crops(crops / this.name / hashlib.sha256(transform.name.encode()).hexdigest()[:16], self.size)
            for this in ready
            if crops is not None and transform.name is not None
        ]  # fmt: skip
        rows = [this.scorer.rows for this in ready]
        self.pictures = Pictures([this.set for this in ready], rows, transform, self.crops)
        earlier = {_done(result): result for result in known}
        self.results: list[Result] = []
        # Of each task, the models that lack a result of it.
        self.lacking: list[list[int]] = []
        for this in ready:
            lacking = []
            for i, model in enumerate(towers):
                blanks = [self.blank(this, model, protocol) for protocol in asked.protocols]
                found = [earlier.get(_done(blank)) for blank in blanks]
                whole = [result for result in found if result is not None and result.outcomes]
                if len(whole) == len(blanks) and model.digest is not None:
                    self.results += whole
                else:
                    lacking.append(i)
            self.lacking.append(lacking)

    def encode_texts(self, progress: ShowProgress | None) -> None:
        """Encode the distinct texts of all tasks that are not done; keep them."""
        for i, (model, kept) in enumerate(zip(self.towers, self.keeps, strict=True)):
            mine = [t for t, lacking in zip(self.ready, self.lacking, strict=True) if i in lacking]
            texts = list(dict.fromkeys(text for this in mine for text in this.texts()))
            if kept is not None:
                model.known_texts.update(kept.load_texts())
            missing = sum(text not in model.known_texts for text in texts)
            if not missing:
                continue
            with ExitStack() as stack:
                bar = stack.enter_context(progress("texts", missing, "texts")) if progress else None
                try:
                    model.prepare_texts(texts, bar.advance if bar else lambda count: None)
                except EvaluationDataError:
                    continue  # each task says it when it asks for its texts
            if kept is not None:
                kept.save_texts(model.known_texts)

    def score_in_turn(self, progress: ShowProgress | None, failed: list[Failure]) -> Iterator[list[Result]]:
        """Score one task after the other, as its pictures are encoded."""
        for which, gathered in self.encode_in_turn(progress):
            try:
                found = self.score(which, gathered, failed)
            except EvaluationDataError as error:
                failed.append(Failure(self.ready[which].task.key, str(error)))
                continue
            self.results += found
            yield found

    def encode_in_turn(self, progress: ShowProgress | None) -> Iterator[tuple[int, "_Gathered"]]:
        """Encode the pictures of one task after the other, the largest first."""
        order = [which for which, lacking in enumerate(self.lacking) if lacking]
        order.sort(key=lambda which: -_num_bytes(self.ready[which]))
        ends = {w: len(self.ready[w].scorer.rows) for w in order}
        chunks = [
            Chunk(which, start, min(start + self.size, ends[which]))
            for which in order
            for start in range(0, ends[which], self.size)
        ]
        jobs = [
            Job(chunk, models, self.ready[chunk.which].scorer.is_halved)
            for chunk in chunks
            if (models := self.wanted(chunk))
        ]
        with ExitStack() as bars:
            shown: dict[int, Any] = {}

            def advance(chunk: Chunk, count: int) -> None:
                if progress is None:
                    return
                if chunk.which not in shown:
                    bars.close()
                    shown.clear()
                    this = self.ready[chunk.which]
                    total = len(this.scorer.rows)
                    shown[chunk.which] = bars.enter_context(progress(this.task.name, total, "pictures"))
                shown[chunk.which].advance(count)

            stream = encode_on(self.devices, self.towers, self.pictures, jobs, advance)
            for which in order:
                gathered = _Gathered(len(self.towers))
                for chunk in (chunk for chunk in chunks if chunk.which == which):
                    self.gather(chunk, stream, gathered)
                yield which, gathered

    def wanted(self, chunk: Chunk) -> tuple[int, ...]:
        """The models whose vectors of a chunk are not kept."""
        name = self.ready[chunk.which].name
        return tuple(
            i
            for i in self.lacking[chunk.which]
            if (kept := self.keeps[i]) is None or not kept.holds(name, chunk.start, chunk.stop)
        )

    def gather(self, chunk: Chunk, stream: Iterator[Encoded], gathered: "_Gathered") -> None:
        """Take a chunk's vectors from what is kept, and from the stream what is not."""
        name, wanted = self.ready[chunk.which].name, self.wanted(chunk)
        for i in set(self.lacking[chunk.which]) - set(wanted):
            kept = self.keeps[i]
            assert kept is not None
            try:
                vectors = kept.load(name, chunk.start, chunk.stop)
            except EvaluationDataError as error:
                gathered.damaged = str(error)
                continue
            gathered.features[i].append(vectors.features)
            gathered.digests[chunk.start] = vectors.digests
        if not wanted:
            return
        found = next(stream)
        assert found.chunk == chunk, (found.chunk, chunk)
        gathered.broken += found.broken
        gathered.not_finite |= found.not_finite
        gathered.digests[chunk.start] = found.digests
        for i in wanted:
            if (vectors := found.vectors(i)) is not None:
                gathered.features[i].append(vectors.features)
                if (kept := self.keeps[i]) is not None:
                    kept.save(name, chunk.start, chunk.stop, vectors)

    def score(self, which: int, gathered: "_Gathered", failed: list[Failure]) -> list[Result]:
        """The results of a task whose pictures are all encoded."""
        this, asked = self.ready[which], self.asked
        if gathered.damaged:
            raise EvaluationDataError(gathered.damaged)
        require_whole(gathered.broken, len(this.scorer.rows))
        digests = [digest for start in sorted(gathered.digests) for digest in gathered.digests[start]]
        digest = set_digest(this.set, this.scorer.rows, digests)
        results: list[Result] = []
        for i in self.lacking[which]:
            model = self.towers[i]
            try:
                if i in gathered.not_finite:
                    raise EvaluationDataError(gathered.not_finite[i])
                features = np.concatenate(gathered.features[i])
                for protocol in asked.protocols:
                    scored = this.scorer.measure(features, model.encode_texts, protocol, model.logit_scale)
                    intervals = metric_intervals(this.task, scored.metrics, scored.outcomes, seed=asked.seed)
                    results.append(
                        replace(
                            self.blank(this, model, protocol),
                            metrics=scored.metrics,
                            intervals=intervals,
                            outcomes=scored.outcomes,
                            set_digest=digest,
                        )
                    )
            except EvaluationDataError as error:
                if len(self.towers) == 1:
                    raise
                failed.append(Failure(this.task.key, f"{model.label}: {error}"))
        return results

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
        )


class _Gathered:
    """What is known of a task's pictures so far."""

    def __init__(self, num_models: int) -> None:
        self.features: list[list[np.ndarray]] = [[] for _ in range(num_models)]
        self.digests: dict[int, list[bytes]] = {}
        self.broken: list[str] = []
        self.not_finite: dict[int, str] = {}
        self.damaged = ""


def _done(result: Result) -> tuple[str, ...]:
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


def _kept(model: Towers, root: Path | None, transform: Transform) -> Kept | None:
    """Where a model's vectors are kept; nowhere for what cannot be named in another process."""
    if root is None or model.digest is None or transform.name is None:
        return None
    kind = model.device.partition(":")[0]
    identity = (
        model.digest, model.config_digest, repr(model.preprocess), model.precision, kind,
        library_versions(),
    )  # fmt: skip
    return Kept.of(root, *identity)


def _num_bytes(this: Prepared) -> int:
    return sum(this.set.samples[row].length for row in this.scorer.rows)
