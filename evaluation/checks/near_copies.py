"""Near copies of a suite's test pictures among the pictures that a run of ours was trained on.

    dbp evaluate checkpoint=KEY suite=… root=… contamination=0.05

KEY of a run says, by lineage, which rows of which pool it was trained on and which image vectors its
deduplication compared (else its clustering; else any of that pool in the store, as for an unpruned run).
Test pictures go through the same encoder in the same way. Beside the results, each time anew:

contamination.json  per run: what was compared, and every metric with and without near copies
contamination.csv   the pairs: test picture, uid of the nearest training pair, cosine
"""

import contextlib
import csv
import hashlib
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32

from dbp.config import require
from dbp.data.column import Column
from dbp.data.embeddings import Embeddings
from dbp.data.images import background_key
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.encoders.base import Encoder, Tower
from dbp.engine.disk import replace_json, replacing
from dbp.engine.stage import canonical, describe, plain, rebuild
from dbp.engine.store import Entry, Store
from dbp.errors import ConfigError, StoreError
from dbp.lineage import lineage, open_keep_list, open_pool_of
from evaluation.checks import contamination
from evaluation.checks.contamination import Clean, Matches
from evaluation.results import Failure, Result, without_nan
from evaluation.running.encode import Towers
from evaluation.running.prepare import Asked, Prepared, prepare
from evaluation.running.runner import Encoding, SuiteRun
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.stage import count_workers
from evaluation.tasks import find_task

# Stages that read image vectors, in the order in which theirs are preferred.
READERS = ("similar", "cluster", "centroids")
COLUMNS = ("run", "task", "picture", "uid", "cosine")


@dataclass(frozen=True)
class Trained:
    """What a run was trained on, and the vectors of its pool's pictures.

    Args:
        is_trained: Of each row of the pool, whether it could be drawn in training.
        vectors: Of the pool's pictures.
        embeddings: Where they lie in the store.
        encoder: What made them.
    """

    run: Entry
    pool: Pool
    is_trained: Bool[np.ndarray, " n"]
    vectors: Embeddings
    embeddings: Entry
    encoder: Encoder


def find_runs(config: Any, named: Sequence[str]) -> list[Trained]:
    """Find the runs to check, before anything is evaluated; none where no check is asked for.

    Raises:
        ConfigError, StoreError: `contamination` is not in (0, 1], or as of `find_trained`.
    """
    if (epsilon := config.contamination) is None:
        return []
    is_number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    must = "above 0 and at most 1: a near copy has a cosine above 1 - contamination. null: no check"
    require(is_number and 0 < epsilon <= 1, "contamination", epsilon, must)
    store = Store(config.paths.store, config.paths.runs)
    return [find_trained(store, name) for name in named or [str(config.pretrained)]]


def find_trained(store: Store, named: str) -> Trained:
    """Find what a run was trained on, and image vectors of its pool that more pictures can be compared with.

    Args:
        store: Holds the run.
        named: The run's key, its folder, or the weights in it.

    Raises:
        ConfigError: It is no run of ours, or its vectors were read or made by other weights, so that no
            picture can be encoded as the pool's were.
        StoreError: The keep list, the index or the vectors are no longer in the store.
    """
    run = find_run(store, named)
    stage: Any = rebuild(run.manifest["made_by"])
    entry, keep = open_keep_list(store, run.manifest["inputs"]["keep"]["key"])
    pool = open_pool_of(store, run)
    embeddings = _find_embeddings(store, run, entry)
    encoder = rebuild(embeddings.manifest["made_by"]).encoder
    made_with = embeddings.manifest["parameters"]["encoder"]
    if plain(encoder) != made_with:
        raise ConfigError(
            f"the weights of {type(encoder).__name__} have changed since they made the vectors "
            f"{embeddings.key}, so test pictures would not be encoded as the pool's were. Put those weights "
            "back where they were."
        )
    rows = trained_rows(stage, pool, keep, column_of(store, run))
    return Trained(run, pool, rows, store.open(embeddings.key), embeddings, encoder)


def column_of(store: Store, run: Entry) -> Column | None:
    """The column that a run's mixture read; none where it read none."""
    made = run.manifest["inputs"].get("column")
    return None if made is None else store.open(made["key"])


def trained_rows(stage: Any, pool: Pool, keep: KeepList, column: Column | None = None) -> Bool[np.ndarray, " n"]:
    """The kept rows that a run's `Train` draws from: without those held out, and those of no weight."""
    from training.feed.subset import is_held_out
    from training.feed.weights import weights_of

    rows = keep.rows
    if stage.held_out:
        rows = rows[~is_held_out(pool.uid_hashes[rows], stage.held_out)]
    if stage.mixture is not None:
        rows = rows[weights_of(stage.mixture, pool, rows, column) > 0]
    found = np.zeros(pool.num_rows, bool)
    found[rows] = True
    return found


def find_run(store: Store, named: str) -> Entry:
    """The run of ours that a key, a folder or the weights in it name.

    Raises:
        ConfigError: It is not one.
    """
    path = Path(named)
    where = path if path.is_dir() else path.parent
    with contextlib.suppress(StoreError):
        entry = store.find(where.resolve().name if path.exists() else named)
        is_there = not path.exists() or entry.folder.resolve() == where.resolve()
        if entry.stage == "train" and is_there:
            return entry
    raise ConfigError(
        f"contamination needs the training pictures, and checkpoint={named!r} is no run of ours in "
        f"{store.runs}. Give the key of a run that `dbp ls stage=train` lists, or contamination=null."
    )


def _find_embeddings(store: Store, run: Entry, keep: Entry) -> Entry:
    """Image vectors of the run's pool whose encoder can encode more pictures, its own before others."""
    upstream = [one for one in lineage(store, keep) if "image" in one.manifest["inputs"]]
    readers = [one for stage in READERS for one in upstream if one.stage == stage]
    has_any = bool(readers)
    for key in dict.fromkeys(one.manifest["inputs"]["image"]["key"] for one in readers):
        try:
            found = store.find(key)
        except StoreError:
            raise StoreError(
                f"the image vectors {key} that the curation of run {run.key} compared are no longer in "
                f"{store.root}. Make them again: {_command(run)}"
            ) from None
        if not rebuild(found.manifest["made_by"]).encoder.reads:
            return found
    identity = run.manifest["inputs"]["pool"]["identity"]
    for found in store.entries():
        if found.stage == "embed" and found.manifest["inputs"]["pool"]["identity"] == identity:
            stage: Any = rebuild(found.manifest["made_by"])
            has_any |= stage.side == "image"
            if stage.side == "image" and not stage.encoder.reads:
                return found
    reason = (
        f"all image vectors of its pool in {store.root} were read from files, so no test picture can be "
        "encoded like them"
        if has_any
        else f"no image vectors of its pool are in {store.root}"
    )
    raise StoreError(
        f"run {run.key} cannot be checked for near copies: {reason}. Embed the pool with a network: "
        "dbp curate pool=… encoder.dedup=openclip_b32 dedup=semdedup until=embed"
    )


def _command(run: Entry) -> str:
    """What makes the vectors of a run's curation again."""
    said = run.manifest["command"]
    if len(said) > 1 and said[1] == "train":
        return shlex.join(["dbp", "curate", *said[2:], "until=embed"])
    return f"dbp curate … until=embed, with the settings that `dbp show {run.key}` lists"


def check_near_copies(
    runs: Sequence[Trained],
    results: Sequence[Result],
    root: Path,
    asked: Asked,
    encoding: Encoding,
    *,
    epsilon: float,
    num_workers: int | Literal["auto"],
    folder: Path,
) -> list[Failure]:
    """Find near copies of the test pictures of results, print metrics with and without, and write both files.

    Args:
        runs: What to compare with.
        results: With outcomes, of the runs' checkpoints under one protocol.
        root, asked: As of the results.
        encoding: As of `evaluate_checkpoints`; the encoder runs on the first of its devices, and with kept
            vectors another epsilon encodes nothing.
        epsilon: A near copy has a cosine above 1 - epsilon; in (0, 1].
        num_workers: Processes that decode.
        folder: For the two files.

    Returns:
        The tasks that could not be compared.
    """
    from evaluation.report.table import Table, aligned

    device = (encoding.devices or ("cpu",))[0].partition(":")[0]  # encoders take no number
    failures: list[Failure] = []
    tasks = [find_task(key) for key in dict.fromkeys(result.task for result in results)]
    ready = prepare(tasks, root, asked, failures)
    encoded: dict[str, dict[int, Float32[np.ndarray, "t d"]]] = {}
    about: list[dict[str, Any]] = []
    pairs: list[tuple[Any, ...]] = []
    for one in runs:
        model = _as_towers(one.encoder, one.pool.background, device, num_workers)
        assert model.digest is not None
        if model.digest not in encoded:
            run = SuiteRun([model], ready, asked, replace(encoding, devices=[device]))
            encoded[model.digest] = _encode(run, failures)
        matches = _match(encoded[model.digest], one, device)
        found: list[Clean] = []
        for which, match in matches.items():
            this, is_flagged = ready[which], match.flags(epsilon)
            for result in results:
                if (result.checkpoint, result.task) == (one.run.manifest["digest"], this.task.key):
                    found += contamination.with_and_without(result, this.scorer.flag_samples(is_flagged))
            pairs += _pairs(one, this, match, is_flagged, root)
        about.append(_describe(one, epsilon, results, matches, found))
        print(
            f"\nnear copies (cosine above {1 - epsilon:g}) among {one.is_trained.sum():,} training pictures "
            f"of run {one.run.key[:12]}, by {model.name} ({one.embeddings.key[:12]})"
        )
        if missing := about[-1]["num_without_vector"]:
            print(f"{missing:,} training pictures have no vector: copies of them are not seen")
        print(aligned(Table("", contamination.HEADING, contamination.table_rows(found))))
    replace_json(folder / "contamination.json", without_nan(about))
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([COLUMNS, *pairs])
    with replacing(folder / "contamination.csv") as file:
        file.write(lines.getvalue().encode())
    for one in failures:
        print(f"failed: {find_task(one.task).name}: {one.reason}")
    print(f"{len(pairs):,} pairs: {folder / 'contamination.csv'}")
    return failures


class _Pictures:
    """The image side of an encoder as `encode_chunks` asks for a model."""

    training = False

    def __init__(self, tower: Tower) -> None:
        self.tower = tower

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def encode_image(self, images: Any) -> Any:
        import torch

        assert self.tower.encode_images is not None, "it made image vectors before"
        return torch.from_numpy(self.tower.encode_images(images))


def _as_towers(encoder: Encoder, background: str, device: str, workers: int | Literal["auto"]) -> Towers:
    """An encoder of the pool as the runner takes a model, in the precision that it had there."""
    here: Any = replace(encoder, device=device) if hasattr(encoder, "device") else encoder
    tower = here.load()
    digest = hashlib.sha256(canonical(plain(encoder)) + background_key(background).encode()).hexdigest()
    # `reference` sets no precision around the encoder, as nothing did when it embedded the pool. `list`
    # stands for a tokenizer, since no text is encoded.
    return Towers(
        _Pictures(tower), tower.preprocess, list, type(encoder).__name__, digest,
        config={"encoder": plain(encoder)}, device=device, precision="reference",
        batch_size=here.batch_size, num_workers=count_workers(workers, device), background=background,
    )  # fmt: skip


def _encode(run: SuiteRun, failures: list[Failure]) -> dict[int, Float32[np.ndarray, "t d"]]:
    """The vectors of the test pictures of each task that has no broken one."""
    found: dict[int, np.ndarray] = {}
    for which, gathered in run.encode_in_turn():
        try:
            found[which] = gathered.vectors(0)
        except EvaluationDataError as error:
            failures.append(Failure(gathered.this.task.key, f"near copies: {error}"))
    return dict(sorted(found.items()))


def _match(encoded: Mapping[int, Float32[np.ndarray, "t d"]], trained: Trained, device: str) -> dict[int, Matches]:
    """Compare the pictures of all tasks at once, so that the pool's vectors are read once."""
    if not encoded:
        return {}
    every = contamination.find_matches(
        np.concatenate(list(encoded.values())), trained.vectors, trained.is_trained, device=device
    )
    ends = np.cumsum([len(vectors) for vectors in encoded.values()])[:-1]
    similarity, row = np.split(every.similarity, ends), np.split(every.row, ends)
    return {which: replace(every, similarity=similarity[i], row=row[i]) for i, which in enumerate(encoded)}


def _pairs(
    trained: Trained, this: Prepared, match: Matches, is_flagged: np.ndarray, root: Path
) -> list[tuple[Any, ...]]:
    """Lines of the file of pairs for the near copies of one task."""
    places = np.flatnonzero(is_flagged)
    uids = trained.pool.uids(match.row[places])
    pictures = [this.set.where(this.scorer.rows[place]) for place in places]
    return [
        (trained.run.key, this.task.key, picture.removeprefix(f"{root}/"), uid, f"{cosine:.6f}")
        for picture, uid, cosine in zip(pictures, uids, match.similarity[places], strict=True)
    ]


def _describe(
    trained: Trained,
    epsilon: float,
    results: Sequence[Result],
    matches: Mapping[int, Matches],
    found: Sequence[Clean],
) -> dict[str, Any]:
    """One run's part of contamination.json."""
    compared = next(iter(matches.values()), None)
    return {
        "run": trained.run.key,
        "checkpoint": trained.run.manifest["digest"],
        "keep": trained.run.manifest["inputs"]["keep"]["key"],
        "embeddings": trained.embeddings.key,
        "encoder": describe(trained.encoder),
        "epsilon": epsilon,
        "protocol": results[0].protocol if results else None,
        "num_trained": int(trained.is_trained.sum()),
        "num_compared": compared and compared.num_compared,
        "num_without_vector": compared and compared.num_without,
        "metrics": [asdict(one) for one in found],
    }
