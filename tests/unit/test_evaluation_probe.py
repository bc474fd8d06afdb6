"""The linear probe against scikit-learn's logistic regression."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from evaluation.checks import logistic
from evaluation.checks.logistic import PENALTIES, Part, fit, hold_out, search
from evaluation.sets.tar_index import EvaluationDataError


def made_up(num_samples, seed, num_classes=6, width=16, noise=1.0):
    """Unit vectors around class centres that are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(num_classes, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=num_samples)
    features = centres[labels] + noise * generator.normal(size=(num_samples, width))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Part(features.astype(np.float32), labels)


def loss(weights, intercept, part, penalty):
    """The objective, in float64, written out."""
    logits = part.features.astype(np.float64) @ weights + intercept
    logits -= logits.max(axis=1, keepdims=True)
    right = logits[np.arange(len(logits)), part.labels]
    entropy = np.log(np.exp(logits).sum(axis=1)) - right
    return entropy.mean() + penalty / 2 * np.square(weights).sum() / len(logits)


@pytest.mark.parametrize("penalty", [1e-3, 1e-2, 0.3, 10.0, 1e4])
def test_the_optimum_is_scikit_learns(penalty, monkeypatch):
    monkeypatch.setattr(logistic, "_BLOCK", 130)  # several blocks, the last one short
    part = made_up(500, 0)
    ours = fit(part, 6, penalty)
    theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5_000)
    theirs.fit(part.features.astype(np.float64), part.labels)
    best = loss(theirs.coef_.T, theirs.intercept_, part, penalty)
    assert ours.loss == pytest.approx(best, abs=1e-5)
    assert loss(ours.weights.astype(float), ours.intercept, part, penalty) == pytest.approx(best, abs=1e-5)
    chances = np.exp(ours.logits(part.features))
    chances /= chances.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(chances, theirs.predict_proba(part.features), atol=5e-3)
    assert ours.num_iterations < logistic.MAX_ITERATIONS


def test_two_classes_and_a_class_without_a_sample_are_no_special_cases():
    part = made_up(300, 1, num_classes=2, width=5)
    ours = fit(part, 3, 1.0)
    assert set(ours.logits(part.features).argmax(axis=1)) == {0, 1}
    # Two columns of weights with half the penalty each are one column of scikit-learn's.
    theirs = LogisticRegression(C=2.0, tol=1e-10).fit(part.features, part.labels)
    margin = ours.logits(part.features) @ np.array([-1, 1, 0])
    np.testing.assert_allclose(margin, theirs.decision_function(part.features), atol=2e-3)


def test_the_same_numbers_come_out_every_time():
    part = made_up(200, 2)
    first, second = fit(part, 6, 0.1), fit(part, 6, 0.1)
    assert np.array_equal(first.weights, second.weights)
    assert first.loss == second.loss


def test_the_grid_has_96_steps_from_a_millionth_to_a_million():
    assert len(PENALTIES) == 97
    assert PENALTIES[0] == pytest.approx(1e-6)
    assert PENALTIES[-1] == pytest.approx(1e6)
    np.testing.assert_allclose(np.diff(np.log10(PENALTIES)), 1 / 8)


@pytest.mark.parametrize("peak", [0, 5, 41, 62, 96])
def test_halving_finds_the_peak_of_an_accuracy_that_has_one(peak, monkeypatch):
    tried = []

    class Known:
        def __init__(self, penalty):
            self.penalty = penalty

        def logits(self, features):
            at = PENALTIES.index(self.penalty)
            hits = np.arange(len(features)) < 97 - abs(at - peak)
            return np.stack([hits, ~hits], axis=1).astype(np.float32)

    def known_fit(train, num_classes, penalty, *, device="cpu"):
        tried.append(penalty)
        return Known(penalty)

    monkeypatch.setattr(logistic, "fit", known_fit)
    part = Part(np.zeros((97, 2), np.float32), np.zeros(97, np.int64))
    searched = search(part, part, 2)
    assert max(searched, key=lambda penalty: searched[penalty]) == PENALTIES[peak]
    assert len(tried) == len(set(tried)) == len(searched) <= 15


def test_of_equal_accuracies_the_largest_penalty_is_taken():
    assert logistic._best({1.0: 0.5, 100.0: 0.7, 0.1: 0.7}) == 100


def test_the_probe_is_refitted_on_train_and_validation_and_scored_on_test():
    train, validation, test = (made_up(n, seed, noise=1.5) for n, seed in ((300, 3), (150, 4), (400, 5)))
    found = logistic.probe(train, validation, test, 6, seed=0)
    both = Part(
        np.concatenate([train.features, validation.features]), np.concatenate([train.labels, validation.labels])
    )
    theirs = LogisticRegression(C=1 / found.penalty, tol=1e-8, max_iter=5_000)
    theirs.fit(both.features, both.labels)
    assert found.fit.loss == pytest.approx(loss(theirs.coef_.T, theirs.intercept_, both, found.penalty), abs=1e-4)
    predicted = theirs.predict(test.features)
    np.testing.assert_array_equal(found.outcomes["predicted"], predicted)
    assert found.metrics == {
        "lp_acc1": pytest.approx((predicted == test.labels).mean()),
        "lp_acc5": pytest.approx(top_k_accuracy_score(test.labels, theirs.decision_function(test.features), k=5)),
        "lp_mean_per_class_recall": pytest.approx(balanced_accuracy_score(test.labels, predicted)),
    }
    assert set(found.intervals) == set(found.metrics)
    for name, (low, high) in found.intervals.items():
        assert low < found.metrics[name] < high
    candidates = {
        penalty: (fit(train, 6, penalty).logits(validation.features).argmax(1) == validation.labels).mean()
        for penalty in found.searched
    }  # fmt: skip
    assert found.searched == pytest.approx(candidates)
    assert candidates[found.penalty] == max(candidates.values())


def test_below_five_classes_there_is_no_accuracy_at_five():
    parts = [made_up(60, seed, num_classes=3) for seed in range(3)]
    found = logistic.probe(*parts, 3, seed=0, num_resamples=50)
    assert found.metrics["lp_acc5"] is None
    assert "lp_acc5" not in found.intervals


def test_a_validation_part_takes_the_same_share_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 3, 11])
    held = hold_out(labels, 0.2, np.random.default_rng(0))
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 10, 0, 2]
    assert np.array_equal(held, hold_out(labels, 0.2, np.random.default_rng(0)))
    assert not np.array_equal(held, hold_out(labels, 0.2, np.random.default_rng(1)))


def with_nan(features, row):
    features = features.copy()
    features[row, 3] = np.nan
    return features


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (lambda p: Part(p.features[:0], p.labels[:0]), "The test part of the linear probe is empty"),
        (lambda p: Part(p.features[:, :9], p.labels), r"test part .* have width 9, those of train 16"),
        (lambda p: Part(with_nan(p.features, 7), p.labels), r"Vector 7 of the test part .* finite"),
        (
            lambda p: Part(p.features, p.labels + 1),
            r"labels of the test part .* outside the 6 classes; the first is 6",
        ),
    ],
)
def test_a_part_that_is_wrong_is_told(broken, error):
    part = made_up(60, 6)
    with pytest.raises(EvaluationDataError, match=error):
        logistic.probe(part, part, broken(part), 6, seed=0)


def test_one_class_is_not_enough():
    part = made_up(60, 7)
    one = Part(part.features, np.full(60, 4))
    with pytest.raises(EvaluationDataError, match=r"All 60 training samples .* of class 4"):
        logistic.probe(one, part, part, 6, seed=0)
