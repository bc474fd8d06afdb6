"""Linear probe: multinomial logistic regression on stored vectors, with the penalty chosen on validation.

    minimise over W, b:  sum over samples of the cross-entropy of x W + b  +  penalty / 2 * |W|^2

The intercept b is not penalised. The penalty is 1 / C of scikit-learn's `LogisticRegression`. It is
strictly convex for any penalty above 0, so there is one optimum (in W), which full-batch L-BFGS finds without
chance: the same numbers on every run of one machine.

Its metrics begin with `lp_`, so that they never share a column with zero-shot numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from evaluation.metrics import zero_shot
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.statistics.significance import NUM_RESAMPLES, percentile_interval

# 96 steps between 97 penalties, 8 a decade.
PENALTIES = tuple(10.0 ** (-6 + step / 8) for step in range(97))
_COARSE = 16  # steps of the first search: 1e-6, 1e-4, ..., 1e6
MAX_ITERATIONS = 1_000
# Of the largest entry of the gradient of the mean loss.
TOLERANCE = 1e-7
PREFIX = "lp_"
# Rows whose logits are held at once: 8,192 x 1,000 classes in float32 are 33 MB.
_BLOCK = 8_192


@dataclass(frozen=True)
class Part:
    """Unit vectors with labels 0..k-1."""

    features: Float32[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Fit:
    """A fitted probe.

    Args:
        weights: One column a class.
        intercept: One number a class.
        loss: Mean cross-entropy plus the penalty over n; natural logarithm.
        num_iterations: Of L-BFGS; `MAX_ITERATIONS` if it was stopped before the optimum.
    """

    weights: Float32[np.ndarray, "d k"]
    intercept: Float32[np.ndarray, " k"]
    loss: float
    num_iterations: int

    def logits(self, features: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n k"]:
        """Score every class for every vector."""
        return features @ self.weights + self.intercept


@dataclass(frozen=True)
class Probe:
    """What a linear probe found on a test set.

    Args:
        metrics: `lp_acc1`, `lp_acc5` (none below five classes), `lp_mean_per_class_recall`.
        intervals: 95 %, over test samples, of each metric that has a value.
        outcomes: `label`, `predicted`, `rank` of each test sample, as in zero-shot classification.
        penalty: The chosen one.
        searched: Accuracy on validation of every penalty that was tried.
        fit: On train and validation together.
    """

    metrics: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]]
    outcomes: Mapping[str, np.ndarray]
    penalty: float
    searched: Mapping[float, float]
    fit: Fit


def probe(
    train: Part,
    validation: Part,
    test: Part,
    num_classes: int,
    *,
    seed: int,
    device: str = "cpu",
    num_resamples: int = NUM_RESAMPLES,
) -> Probe:
    """Choose the penalty, fit on train and validation, score on test.

    Args:
        train: What the candidates are fitted on.
        validation: What the penalty is chosen on.
        test: Looked at once, at the end.
        num_classes: k; of the set's names.
        seed: Of the intervals alone; nothing else is random.

    Raises:
        EvaluationDataError: A part is empty, not finite, of another width, or has a label outside the
            classes; or train shows one class alone.

    Source:
        Radford et al. 2021, A.3: L-BFGS with at most 1,000 iterations, the penalty searched on 96
        steps from 1e-6 to 1e6 by halving around the best, then a fit on train and validation.
    """
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        _check(name, part, num_classes, train.features.shape[1])
    both = Part(
        np.concatenate([train.features, validation.features]), np.concatenate([train.labels, validation.labels])
    )
    if len(np.unique(train.labels)) < 2:
        raise EvaluationDataError(
            f"All {len(train.labels):,} training samples of the linear probe are of class "
            f"{train.labels[0]}. A probe needs two classes or more; is the train split cut?"
        )
    searched = search(train, validation, num_classes, device=device)
    penalty = _best(searched)
    found = fit(both, num_classes, penalty, device=device)
    outcomes = zero_shot.outcomes(found.logits(test.features), test.labels)
    values = zero_shot.metrics(outcomes, num_classes)
    generator = np.random.default_rng(seed)
    intervals = {
        PREFIX + name: percentile_interval(
            zero_shot.replicates(outcomes, name, num_resamples=num_resamples, generator=generator)
        )
        for name, value in values.items()
        if value is not None
    }
    metrics = {PREFIX + name: value for name, value in values.items()}
    return Probe(metrics, intervals, outcomes, penalty, searched, found)


def search(train: Part, validation: Part, num_classes: int, *, device: str = "cpu") -> dict[float, float]:
    """Try penalties: every 16th of the grid, then the neighbours of the best at half the step, to 1.

    Returns:
        Accuracy on validation of each penalty that was tried: 15 of 97 at most.
    """
    searched: dict[float, float] = {}
    tried, step = PENALTIES[::_COARSE], _COARSE
    while step:
        for penalty in tried:
            if penalty not in searched:
                logits = fit(train, num_classes, penalty, device=device).logits(validation.features)
                searched[penalty] = zero_shot.accuracy(logits, validation.labels)
        step //= 2
        best = PENALTIES.index(_best(searched))
        tried = [PENALTIES[at] for at in (best - step, best + step) if 0 <= at < len(PENALTIES)]
    return searched


def _best(searched: Mapping[float, float]) -> float:
    """The penalty of the highest accuracy; of equal ones the largest, the simplest model."""
    return max(searched, key=lambda penalty: (searched[penalty], penalty))


def fit(train: Part, num_classes: int, penalty: float, *, device: str = "cpu") -> Fit:
    """Find the optimum for one penalty by full-batch L-BFGS from zero.

    Args:
        train: Samples.
        num_classes: k; one without a sample gets a low intercept and no weights of its own.
        penalty: Of the squared weights, against the summed loss.
        device: As torch names it.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    features = torch.from_numpy(np.ascontiguousarray(train.features)).to(device)
    labels = torch.from_numpy(train.labels.astype(np.int64)).to(device)
    num_samples, width = features.shape
    # The last row is the intercept.
    theta = torch.zeros(width + 1, num_classes, device=device, requires_grad=True)

    def closure() -> Any:
        """Loss and gradient, in blocks of rows: never n x k numbers at once."""
        weights, intercept = theta.detach()[:-1], theta.detach()[-1]
        gradient = torch.zeros_like(theta)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, num_samples, _BLOCK):
            rows = features[start : start + _BLOCK]
            own = labels[start : start + _BLOCK, None]
            chances = torch.log_softmax(rows @ weights + intercept, dim=1)
            total -= chances.gather(1, own).double().sum()
            error = chances.exp_().scatter_add_(1, own, -torch.ones_like(own, dtype=chances.dtype))
            gradient[:-1] += rows.T @ error
            gradient[-1] += error.sum(0)
        gradient[:-1] += penalty * weights
        theta.grad = gradient / num_samples
        total += penalty / 2 * weights.double().square().sum()
        return total / num_samples

    optimiser = torch.optim.LBFGS(
        [theta], max_iter=MAX_ITERATIONS, max_eval=2 * MAX_ITERATIONS, tolerance_grad=TOLERANCE,
        tolerance_change=0.0, history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip
    optimiser.step(closure)
    loss = float(closure())
    found = theta.detach().cpu().numpy()
    return Fit(found[:-1], found[-1], loss, int(optimiser.state[theta]["n_iter"]))


def hold_out(labels: Int[np.ndarray, " n"], share: float, generator: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """Choose, at random, which samples of a train split are for validation, where a set has no such part.

    Of each class the same share, rounded down, so that a class of few samples stays in train.
    """
    is_held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        is_held[generator.permutation(rows)[: int(share * len(rows))]] = True
    return is_held


def _check(name: str, part: Part, num_classes: int, width: int) -> None:
    features, labels = part.features, part.labels
    if not len(labels):
        raise EvaluationDataError(f"The {name} part of the linear probe is empty.")
    if features.shape[1] != width:
        raise EvaluationDataError(
            f"The vectors of the {name} part of the linear probe have width {features.shape[1]}, those "
            f"of train {width}. Encode all parts with one checkpoint."
        )
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise EvaluationDataError(
            f"Vector {row:,} of the {name} part of the linear probe is not finite. Encode it again; "
            "if that gives the same, the checkpoint has diverged."
        )
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        raise EvaluationDataError(
            f"{int(outside.sum()):,} labels of the {name} part of the linear probe are outside the "
            f"{num_classes} classes; the first is {labels[outside][0]}. Are the parts of one set?"
        )
