"""Test pictures that lie in the training subset, or nearly, and what metrics are without them.

Pictures are compared by the vectors that deduplication uses: a test picture is a near copy of a training
picture if their cosine is above 1 - epsilon, dedup's own rule. Every test picture is compared with every
training picture that has a vector: 2 t n d operations for t test pictures, in blocks, each vector of the
pool read once. The fp32 product only says which pairs are worth an exact look (`dbp/exact/kernels.py`),
so flags and best rows are the same for any block and device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from dbp.config import require
from dbp.data.embeddings import Embeddings
from dbp.data.vectors import in_blocks
from evaluation.kinds.base import Kind, Outcomes
from evaluation.kinds.registry import find_kind
from evaluation.metrics.measures import metric_replicates, on_draws
from evaluation.results import Result
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.statistics.significance import percentile_interval
from evaluation.tasks import find_task

TEST_BLOCK = 4_096
# 4,096 x 16,384 products in fp32 are 268 MB.
POOL_BLOCK = 16_384


@dataclass(frozen=True)
class Matches:
    """The training picture nearest to each test picture.

    Args:
        similarity: Cosine of the two, exact; -inf where the subset has no vector at all.
        row: In the pool; -1 for none. Of equally near ones the earliest.
        num_compared: Training pictures that have a vector.
        num_without: Training pictures that have none, so that their copies cannot be seen.
    """

    similarity: Float64[np.ndarray, " t"]
    row: Int[np.ndarray, " t"]
    num_compared: int
    num_without: int

    def flags(self, epsilon: float) -> Bool[np.ndarray, " t"]:
        """Which test pictures have a near copy.

        Args:
            epsilon: In (0, 1]; as `dedup.epsilon`.

        Raises:
            ConfigError: It is outside.
        """
        require(0 < epsilon <= 1, "epsilon", epsilon, "above 0 and at most 1")
        return self.similarity > 1 - epsilon


@dataclass(frozen=True)
class Clean:
    """One metric of one task with all test samples, and without those that are contaminated.

    Args:
        num_flagged: Left out.
        every: With all, in [0, 1].
        every_interval: 95 %, over test samples.
        clean: Without; none where no sample is left.
        clean_interval: 95 %; none where no sample is left.
    """

    task: str
    metric: str
    num_samples: int
    num_flagged: int
    every: float
    every_interval: tuple[float, float]
    clean: float | None
    clean_interval: tuple[float, float] | None


def find_matches(
    test: Float[np.ndarray, "t d"], pool: Embeddings, subset: Bool[np.ndarray, " n"], *, device: str = "cpu"
) -> Matches:
    """Find the nearest training picture of each test picture.

    Args:
        test: Vectors of the test pictures from the encoder of `pool`, of any length but nought.
        pool: Vectors of the pool's pictures.
        subset: Over all rows of the pool: which of them were trained on.
        device: As torch names it, for the products.

    Raises:
        EvaluationDataError: A test vector is not finite or zero, or of another width than the pool's.
    """
    rows, norms = _as_stored(test, pool.width)
    best = np.full(len(rows), -np.inf)
    partner = np.full(len(rows), -1, np.int64)
    num_compared = 0
    for part in range(len(pool.parts)):
        own = pool.part_rows(part)
        own = own[subset[own]]
        num_compared += len(own)
        for _, block in in_blocks(own, POOL_BLOCK):
            _improve(rows, norms, pool.gather(block), pool.norms(block), block, best, partner, device)
    return Matches(best, partner, num_compared, int(subset.sum()) - num_compared)


def _as_stored(
    test: Float[np.ndarray, "t d"], width: int
) -> tuple[Float32[np.ndarray, "t d"], Float64[np.ndarray, " t"]]:
    """Test vectors rounded as `Embeddings` rounds its own, so that a copy has cosine 1; their lengths."""
    if width and test.shape[1] != width:
        raise EvaluationDataError(
            f"The test pictures' vectors have width {test.shape[1]}, the pool's {width}. Encode both "
            "with one encoder: the one of dedup."
        )
    lengths = np.linalg.norm(test.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if wrong.size:
        raise EvaluationDataError(
            f"{wrong.size:,} of {len(test):,} test pictures have a vector that is zero or not finite; "
            f"the first is picture {wrong[0]:,}. Encode them again."
        )
    stored = (test / lengths[:, None]).astype(np.float32).astype(np.float16)
    return stored.astype(np.float32), np.sqrt(np.square(stored.astype(np.float64)).sum(axis=1))


def _improve(
    test: np.ndarray,
    test_norms: np.ndarray,
    vectors: np.ndarray,
    norms: np.ndarray,
    rows: np.ndarray,
    best: np.ndarray,
    partner: np.ndarray,
    device: str,
) -> None:
    """Raise the best similarity of every test picture by one block of the pool, in place."""
    import torch

    from dbp.exact.kernels import UNDECIDED, improve
    from dbp.exact.products import widened

    torch.backends.cuda.matmul.allow_tf32 = False
    columns = widened(vectors)
    inverse = (1 / norms).astype(np.float32)
    on_device = columns.to(device).T
    scale = torch.from_numpy(inverse).to(device)
    for start in range(0, len(test), TEST_BLOCK):
        span = slice(start, start + TEST_BLOCK)
        products = torch.from_numpy(test[span]).to(device) @ on_device
        top = ((products * scale).amax(1).cpu().numpy()) / test_norms[span]
        # Few pictures find something nearer in a late block, so little is looked at again.
        near = np.flatnonzero(top >= best[span] - UNDECIDED)
        if not len(near):
            continue
        at = start + near
        some_best, some_partner = best[at], np.full(len(at), -1, np.int64)
        improve(
            products[torch.from_numpy(near).to(device)].cpu().numpy(), test[at], columns.numpy(),
            test_norms[at], norms, inverse, 0, some_best, some_partner, len(columns),
        )  # fmt: skip
        is_nearer = some_partner >= 0
        best[at[is_nearer]] = some_best[is_nearer]
        partner[at[is_nearer]] = rows[some_partner[is_nearer]]


def only(kind: type[Kind], outcomes: Outcomes, keep: Bool[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """Outcomes of some of the samples.

    Of retrieval, samples are asked for and not sought among: a picture that is left out takes its
    captions' questions with it, and stays among the pictures that other captions are compared with,
    since ranks were counted among all.

    Args:
        kind: Says which outcomes have several rows a sample, as those of captions.
        outcomes: As in `Result.outcomes`; the others have one row a sample, or are one number for the whole set.
        keep: Which samples.

    Raises:
        ValueError: An array is none of these.
    """
    owner = outcomes[kind.owner] if kind.owner else None
    found = {}
    for name, values in outcomes.items():
        if values.ndim == 0:
            found[name] = values
        elif owner is not None and name in kind.per_owner:
            found[name] = values[keep[owner]]
        elif len(values) != len(keep):
            raise ValueError(
                f"outcomes[{name!r}] has {len(values):,} rows for {len(keep):,} samples: it cannot "
                "be told which of them belong to which sample."
            )
        else:
            found[name] = values[keep]
    if kind.owner:
        found[kind.owner] = (np.cumsum(keep) - 1)[found[kind.owner]]
    return found


def with_and_without(result: Result, is_flagged: Bool[np.ndarray, " n"]) -> list[Clean]:
    """Compute each metric of a result again without the flagged samples.

    Metrics of single groups (`acc_region:2`) are left out, since a group may have no sample left; the
    worst group's and the averages stay. A class or group without a sample left drops out of means and of
    the worst, so that the two columns may be of different classes.

    Args:
        result: With outcomes.
        is_flagged: Of each of its samples.

    Raises:
        EvaluationDataError: There are no outcomes, or other samples than flags.
    """
    if not result.outcomes or len(is_flagged) != result.num_samples:
        raise EvaluationDataError(
            f"{result.task} has {result.num_samples:,} samples, {len(is_flagged):,} flags and "
            f"{len(result.outcomes)} arrays of outcomes. Flags must be of the pictures that were "
            "evaluated, with the outcomes beside the results file."
        )
    task, found = find_task(result.task), []
    kept = only(find_kind(task.kind), result.outcomes, ~is_flagged)
    num_flagged = int(is_flagged.sum())
    for metric, value in result.metrics.items():
        if value is None or ":" in metric or metric.startswith("count_"):
            continue
        clean, interval = None, None
        if num_flagged < len(is_flagged):
            once = np.ones((1, len(is_flagged) - num_flagged), np.float32)
            clean = float(on_draws(task, metric)(kept, metric, once)[0])
            interval = percentile_interval(metric_replicates(task, metric, kept, seed=result.seed))
        every = (value, result.intervals[metric])
        found.append(Clean(result.task, metric, result.num_samples, num_flagged, *every, clean, interval))
    return found


HEADING = ("task", "metric", "samples", "near copies", "all", "without them", "change")


def table_rows(found: Sequence[Clean]) -> list[list[str]]:
    """Lay main metrics out as cells of text, in percent with half their intervals."""
    return [
        [
            find_task(one.task).name, one.metric, f"{one.num_samples:,}",
            f"{one.num_flagged:,} ({one.num_flagged / one.num_samples:.1%})",
            _percent(one.every, one.every_interval), _percent(one.clean, one.clean_interval),
            "-" if one.clean is None else f"{100 * (one.clean - one.every):+.1f}",
        ]
        for one in found
        if one.metric == find_task(one.task).main_metric
    ]  # fmt: skip


def _percent(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{100 * value:.1f} ±{100 * (interval[1] - interval[0]) / 2:.1f}"
