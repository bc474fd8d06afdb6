import numpy as np
import pytest

from evaluation import retrieval, zero_shot
from evaluation.measures import metric_intervals, metric_replicates
from evaluation.significance import (
    class_recall_replicates,
    mean_replicates,
    paired_interval,
    percentile_interval,
)
from evaluation.tasks import find_task


def binomial_error(rate, trials):
    return np.sqrt(rate * (1 - rate) / trials)


def test_the_interval_of_an_accuracy_covers_the_truth_in_95_of_100_sets():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(1_000):
        hits = generator.random(800) < 0.3
        replicates = mean_replicates(hits, num_resamples=600, generator=generator)
        low, high = percentile_interval(replicates)
        covered.append(low <= 0.3 <= high)
    assert abs(np.mean(covered) - 0.95) < 4 * binomial_error(0.95, 1_000)


def test_the_interval_of_a_class_recall_covers_the_truth_in_95_of_100_sets():
    generator = np.random.default_rng(1)
    share = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    recall = np.array([0.9, 0.5, 0.3, 0.7, 0.2])
    covered = []
    for _ in range(500):
        labels = generator.choice(5, size=1_500, p=share)
        is_right = generator.random(1_500) < recall[labels]
        replicates = class_recall_replicates(
            is_right, labels, num_resamples=400, generator=generator
        )
        low, high = percentile_interval(replicates)
        covered.append(low <= recall.mean() <= high)
    assert abs(np.mean(covered) - 0.95) < 4 * binomial_error(0.95, 500)


def test_the_interval_of_recall_covers_the_truth_when_captions_of_a_picture_agree():
    generator = np.random.default_rng(2)
    covered = []
    for _ in range(500):
        # All five captions of a picture hit or miss together: 300 independent samples, not 1,500.
        hit = generator.random(300) < 0.4
        outcomes = {
            "text_rank": np.where(generator.random(300) < 0.6, 0, 9),
            "image_rank": np.where(np.repeat(hit, 5), 0, 9),
            "caption_picture": np.repeat(np.arange(300), 5),
        }
        replicates = retrieval.replicates(
            outcomes, "image_retrieval_recall@1", num_resamples=400, generator=generator
        )
        low, high = percentile_interval(replicates)
        covered.append(low <= 0.4 <= high)
    assert abs(np.mean(covered) - 0.95) < 4 * binomial_error(0.95, 500)


def test_counting_outcomes_equals_drawing_samples_one_by_one():
    generator = np.random.default_rng(3)
    values = generator.integers(-1, 2, size=50)
    counted = mean_replicates(values, num_resamples=40_000, generator=generator)
    drawn = generator.choice(values, size=(40_000, 50)).mean(axis=1)
    levels = [0.025, 0.25, 0.5, 0.75, 0.975]
    np.testing.assert_allclose(np.quantile(counted, levels), np.quantile(drawn, levels), atol=0.021)
    assert counted.std() == pytest.approx(drawn.std(), rel=0.02)


def test_class_recall_over_samples_equals_drawing_samples_one_by_one():
    generator = np.random.default_rng(4)
    labels = generator.integers(4, size=60)
    predicted = np.where(generator.random(60) < 0.6, labels, (labels + 1) % 4)
    counted = class_recall_replicates(
        predicted == labels, labels, num_resamples=4_000, generator=generator
    )
    rows = generator.integers(60, size=(4_000, 60))
    drawn = [zero_shot.mean_per_class_recall(predicted[r], labels[r]) for r in rows]
    assert counted.mean() == pytest.approx(np.mean(drawn), abs=0.005)
    assert counted.std() == pytest.approx(np.std(drawn), rel=0.06)


def test_mean_recall_over_pictures_equals_drawing_pictures_one_by_one():
    generator = np.random.default_rng(5)
    sizes = generator.integers(1, 6, size=40)
    owner = np.repeat(np.arange(40), sizes)
    outcomes = {
        "text_rank": generator.integers(3, size=40),
        "image_rank": generator.integers(2, size=len(owner)),
        "caption_picture": owner,
    }
    counted = retrieval.replicates(
        outcomes, "mean_recall@1", num_resamples=4_000, generator=generator
    )
    drawn = []
    for pictures in generator.integers(40, size=(4_000, 40)):
        captions = np.concatenate([np.flatnonzero(owner == p) for p in pictures])
        text = (outcomes["text_rank"][pictures] < 1).mean()
        drawn.append((text + (outcomes["image_rank"][captions] < 1).mean()) / 2)
    assert counted.mean() == pytest.approx(np.mean(drawn), abs=0.005)
    assert counted.std() == pytest.approx(np.std(drawn), rel=0.06)


def test_many_distinct_values_are_drawn_in_blocks():
    generator = np.random.default_rng(6)
    values = generator.normal(size=20_000)
    replicates = mean_replicates(values, num_resamples=300, generator=generator)
    assert len(replicates) == 300
    assert replicates.std() == pytest.approx(1 / np.sqrt(20_000), rel=0.2)


def test_pairing_sees_a_difference_that_two_intervals_do_not():
    generator = np.random.default_rng(7)
    difficulty = generator.random(2_000)
    first, second = difficulty < 0.52, difficulty < 0.50
    apart = [
        percentile_interval(mean_replicates(hits, generator=generator)) for hits in (first, second)
    ]
    assert apart[1][1] > apart[0][0]
    low, high = paired_interval(first, second, generator=generator)
    assert 0 < low < (first.mean() - second.mean()) < high


def test_pairing_under_a_true_null_errs_at_the_stated_rate():
    generator = np.random.default_rng(8)
    wrong = []
    for _ in range(1_000):
        probability = generator.beta(0.5, 0.5, size=500)
        first, second = generator.random((2, 500)) < probability
        low, high = paired_interval(first, second, generator=generator, num_resamples=500)
        wrong.append(not low <= 0 <= high)
    assert np.mean(wrong) < 0.05 + 4 * binomial_error(0.05, 1_000)


def test_outcomes_of_different_samples_cannot_be_paired():
    with pytest.raises(ValueError, match="Cannot pair 3 outcomes with 4: both must be of the same"):
        paired_interval(np.ones(3), np.ones(4), generator=np.random.default_rng(0))


def test_intervals_repeat_with_the_seed_and_differ_between_tasks():
    generator = np.random.default_rng(9)
    labels = generator.integers(7, size=300)
    logits = generator.normal(size=(300, 7))
    outcomes = zero_shot.outcomes(logits, labels)
    metrics = zero_shot.metrics(outcomes, 7)
    task, other = find_task("mnist"), find_task("cifar10")
    first = metric_intervals(task, metrics, outcomes, seed=3)
    assert set(first) == {"acc1", "acc5", "mean_per_class_recall"}
    assert first == metric_intervals(task, metrics, outcomes, seed=3)
    draws = [
        metric_replicates(t, "acc1", outcomes, seed=s)
        for t, s in ((task, 3), (other, 3), (task, 4))
    ]
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    for name, (low, high) in first.items():
        assert low <= metrics[name] <= high
