"""Log-likelihood and reciprocal rank, against scipy and cases worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from test_comparison import result

from evaluation.metrics import fine
from evaluation.statistics.analysis import analyse
from evaluation.statistics.comparison import MEAN, Arm, Run


def sample(seed: int, n: int = 400, k: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Cosines in which the right class stands out a little, and the labels."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(k, size=n)
    return 0.1 * chance.normal(size=(n, k)) + 0.08 * np.eye(k)[labels], labels


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_log_likelihoods_are_scipys(scale):
    cosines, labels = sample(0)
    found = fine.log_likelihoods(cosines, labels, scale)
    theirs = log_softmax(scale * cosines, axis=1)[np.arange(len(labels)), labels]
    assert found == pytest.approx(theirs)
    assert (found <= 0).all()


def test_log_likelihoods_by_hand():
    # Two classes, cosines 0.5 and 0.1, scale 10: logits 5 and 1, p = 1 / (1 + e^-4).
    found = fine.log_likelihoods(np.array([[0.5, 0.1], [0.5, 0.1]]), np.array([0, 1]), 10.0)
    assert found == pytest.approx([-np.log1p(np.exp(-4)), -4 - np.log1p(np.exp(-4))])


@given(st.integers(0, 200))
def test_the_fitted_scale_is_scipys(seed):
    cosines, labels = sample(seed, n=120)

    def loss(scale: float) -> float:
        return -float(fine.log_likelihoods(cosines, labels, scale).mean())

    theirs = minimize_scalar(loss, bounds=(0, 1e4), method="bounded", options={"xatol": 1e-6})
    assert loss(fine.fitted_scale(cosines, labels)) <= theirs.fun + 1e-9


def test_a_scale_without_a_largest_likelihood_stays_within_its_bounds():
    right = np.eye(3)[[0, 1, 2, 0]]
    assert fine.fitted_scale(right, np.array([0, 1, 2, 0])) <= 1e4
    assert fine.fitted_scale(right, np.array([1, 2, 0, 1])) == pytest.approx(0, abs=1e-3)
    assert np.isfinite(fine.fitted_scale(np.zeros((4, 3)), np.array([0, 1, 2, 0])))


def test_no_sample_is_scored_with_a_scale_that_it_was_fitted_on():
    cosines, labels = sample(3)
    is_even = fine.has_even_hash([f"{i:05d}" for i in range(len(labels))])
    assert 0.4 < is_even.mean() < 0.6
    found = fine.cross_fitted(cosines, labels, is_even)
    changed = cosines.copy()
    changed[is_even] *= 3  # moves the scale of the odd half alone, and the even half's own values
    moved = fine.cross_fitted(changed, labels, is_even)
    own = fine.fitted_scale(cosines[~is_even], labels[~is_even])
    expected = fine.log_likelihoods(changed[is_even], labels[is_even], own)
    assert moved[is_even] == pytest.approx(expected)
    assert not np.allclose(moved[~is_even], found[~is_even])


def test_one_half_alone_is_scored_at_the_scale_of_the_metrics():
    cosines, labels = sample(4, n=5)
    found = fine.cross_fitted(cosines, labels, np.ones(5, bool))
    assert found == pytest.approx(fine.log_likelihoods(cosines, labels, 100.0))


def test_reciprocal_ranks_by_hand():
    # Image 0 has captions of ranks 0 and 3, image 1 one of rank 1; first own captions at 0 and 4.
    found = fine.reciprocal_ranks(np.array([0, 4]), np.array([0, 3, 1]), np.array([0, 0, 1]))
    assert found == pytest.approx([(1 + (1 + 1 / 4) / 2) / 2, (1 / 5 + 1 / 2) / 2])


def test_finer_measures_have_differences_of_their_own_and_enter_no_mean():
    chance = np.random.default_rng(0)
    luck = chance.normal(-2, 0.3, 500)  # of a sample, in every run

    def run(seed: int, level: float) -> Run:
        values = luck + level + 0.01 * chance.normal() + 0.02 * chance.normal(size=500)
        one = result(np.arange(500) < 250 + seed)
        metrics = {**one.metrics, fine.FITTED: float(values.mean())}
        outcomes = {**one.outcomes, fine.FITTED: values}
        return Run(seed, [replace(one, metrics=metrics, outcomes=outcomes)], {})

    arms = [
        Arm(name, [run(seed, level) for seed in range(3)], "uniform")
        for name, level in (("uniform", 0.0), ("better", 0.2), ("same", 0.0))
    ]
    found = analyse(arms)
    column = f"glyphs/letters {fine.FITTED}"
    better, same = (found.finer[name][column] for name in ("better", "same"))
    assert better.difference == pytest.approx(0.2, abs=0.05)
    assert better.is_separate
    assert not same.is_separate
    assert set(found.cells["better"]) == {"glyphs/letters", MEAN}
