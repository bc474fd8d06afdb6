import numpy as np
import pytest
from scipy.stats import binom, norm, ttest_ind

from evaluation.kinds import retrieval
from evaluation.metrics import groups, zero_shot
from evaluation.metrics.measures import metric_intervals, metric_replicates
from evaluation.statistics.significance import (
    ALPHA,
    TwoNoises,
    class_recall_replicates,
    exchange_p,
    exchanged_differences,
    exchanged_hits,
    holm,
    mean_replicates,
    percentile_interval,
    sign_test,
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
        replicates = class_recall_replicates(is_right, labels, num_resamples=400, generator=generator)
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
    counted = class_recall_replicates(predicted == labels, labels, num_resamples=4_000, generator=generator)
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
    counted = retrieval.replicates(outcomes, "mean_recall@1", num_resamples=4_000, generator=generator)
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


def test_exchanges_see_a_difference_that_two_intervals_do_not():
    generator = np.random.default_rng(7)
    difficulty = generator.random(2_000)
    first, second = difficulty < 0.50, difficulty < 0.52
    apart = [percentile_interval(mean_replicates(hits, generator=generator)) for hits in (first, second)]
    assert apart[0][1] > apart[1][0]
    assert sign_test(first, second) < 1e-6


def test_the_sign_test_is_the_binomial_sum_by_hand():
    first = np.array([True] * 2 + [False] * 8 + [True] * 30 + [False] * 5)
    second = np.array([False] * 2 + [True] * 8 + [True] * 30 + [False] * 5)
    assert sign_test(first, second) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(second, first) == sign_test(first, second)
    assert sign_test(first, first) == 1


def test_holm_is_the_step_down_rule_by_hand():
    given = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(given), [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert len(holm(np.zeros(0))) == 0


def test_holm_is_a_naive_loop_over_ordered_p_values():
    generator = np.random.default_rng(10)
    for size in (1, 2, 9, 40):
        given = np.round(generator.random(size) ** 3, 2)  # with ties
        largest, naive = 0.0, {}
        for rank, at in enumerate(sorted(range(size), key=lambda i: given[i])):
            largest = max(largest, min(1.0, (size - rank) * given[at]))
            naive[at] = largest
        np.testing.assert_allclose(holm(given), [naive[i] for i in range(size)])


def classified(generator, recall, labels, num_classes):
    """Outcomes of one checkpoint that gets each sample right with its own probability."""
    is_right = generator.random(len(labels)) < recall
    predicted = np.where(is_right, labels, (labels + 1) % num_classes)
    return {"label": labels, "predicted": predicted, "rank": np.where(is_right, 0, 5)}


def retrieved(generator, text, image, owner):
    return {
        "text_rank": np.where(generator.random(len(text)) < text, 0, 9),
        "image_rank": np.where(generator.random(len(image)) < image, 0, 9),
        "caption_picture": owner,
    }


def recall_on_draws(outcomes, drawn):
    return zero_shot.on_draws(outcomes, "mean_per_class_recall", drawn)


def retrieval_on_draws(outcomes, drawn):
    return retrieval.on_draws(outcomes, "mean_recall@1", drawn)


def owner_of(outcomes):
    return "caption_picture" if "caption_picture" in outcomes else None


WORST = groups.Measure("acc", ("region",), lambda outcomes: outcomes["rank"] < 1, "acc_worst_region")


def worst_on_draws(outcomes, drawn):
    return groups.on_draws(WORST, outcomes, WORST.worst, drawn)


def two_of_each(generator, num_samples):
    """Two checkpoints' outcomes of each metric, equally good on every sample."""
    labels = np.sort(generator.integers(6, size=num_samples) % 5)
    ease = generator.beta(1, 1, size=num_samples)
    owner = np.sort(np.r_[np.arange(num_samples), generator.integers(num_samples, size=num_samples // 2)])
    image = generator.beta(1, 1, size=len(owner))
    region = {"region": generator.integers(3, size=num_samples), "is_corrected": np.array(True)}
    pairs = [
        [classified(generator, ease, labels, 5) for _ in range(2)],
        [retrieved(generator, ease, image, owner) for _ in range(2)],
        [classified(generator, ease, labels, 5) | region for _ in range(2)],
    ]
    return dict(zip((recall_on_draws, retrieval_on_draws, worst_on_draws), pairs, strict=True))


def swapped_by_hand(first, second, places):
    """Outcomes with those of some samples exchanged, sample by sample."""
    changed = [{k: v.copy() for k, v in side.items()} for side in (first, second)]
    owner = first.get("caption_picture")
    for name in first:
        if first[name].ndim == 0:
            continue
        for row in range(len(first[name])):
            sample = owner[row] if name in ("image_rank", "caption_picture") else row
            if sample in places:
                changed[0][name][row], changed[1][name][row] = second[name][row], first[name][row]
    return changed


@pytest.mark.parametrize("at", range(3))
def test_random_exchanges_are_all_exchanges_equally_often(at):
    generator = np.random.default_rng(21)
    on_draws, (first, second) = list(two_of_each(generator, 8).items())[at]
    once = np.ones((1, 8), np.float32)

    def difference(sides):
        return float(on_draws(sides[1], once)[0] - on_draws(sides[0], once)[0])

    exact = [
        difference(swapped_by_hand(first, second, [i for i in range(8) if number >> i & 1]))
        for number in range(256)
    ]
    assert len(set(exact)) > 4
    observed, exchanged = exchanged_differences(
        first, second, on_draws, 8, owner=owner_of(first), num_exchanges=20_000, generator=generator
    )
    assert observed == pytest.approx(exact[0])
    assert set(np.round(exchanged, 9)) == set(np.round(exact, 9))
    for value in set(np.round(exact, 9)):
        share = np.mean(np.round(exact, 9) == value)
        assert abs(np.mean(np.round(exchanged, 9) == value) - share) < 5 * binomial_error(share, 20_000)
    as_far = np.mean(np.abs(exact) >= abs(observed) - 1e-9)
    assert exchange_p(observed, exchanged) == pytest.approx(as_far, abs=0.02)


def plain(hits):
    """The weight of each sample in a mean over them."""
    return np.full(len(hits[0]), 1 / len(hits[0]))


@pytest.mark.parametrize("metric", ["acc1", "mean_per_class_recall"])
def test_exchanged_hits_are_the_exchanges_of_any_metric(metric):
    generator = np.random.default_rng(12)
    first, second = two_of_each(generator, 60)[recall_on_draws]
    hits = [side["rank"] < 1 for side in (first, second)]
    weights = plain(hits)
    if metric != "acc1":
        sizes = np.bincount(first["label"])
        weights = 1 / (len(sizes) * sizes[first["label"]])
    quick = exchanged_hits(*hits, weights, num_exchanges=20_000, generator=generator)
    observed, slow = exchanged_differences(
        first, second, lambda o, drawn: zero_shot.on_draws(o, metric, drawn), 60,
        num_exchanges=20_000, generator=generator,
    )  # fmt: skip
    assert observed == pytest.approx((hits[1].astype(float) - hits[0]) @ weights)
    levels = [0.025, 0.25, 0.75, 0.975]
    np.testing.assert_allclose(np.quantile(quick, levels), np.quantile(slow, levels), atol=0.04)
    assert quick.std() == pytest.approx(slow.std(), rel=0.03)
    if metric == "acc1":
        assert exchange_p(observed, quick) == pytest.approx(sign_test(*hits), abs=0.02)


@pytest.fixture(scope="module")
def null_p():
    """1,000 times the p-value of each of four tests of equally good checkpoints, and of their mean."""
    generator = np.random.default_rng(13)
    found = []
    for _ in range(1_000):
        p, observed, exchanged = [], [], []
        for on_draws, (first, second) in two_of_each(generator, 60).items():
            difference, values = exchanged_differences(
                first, second, on_draws, 60, owner=owner_of(first), num_exchanges=99, generator=generator
            )
            p.append(exchange_p(difference, values))
            observed.append(difference)
            exchanged.append(values)
        hits = generator.random((2, 300)) < generator.beta(1, 1, size=300)
        p.append(sign_test(*hits))
        observed.append(hits[1].mean() - hits[0].mean())
        exchanged.append(exchanged_hits(*hits, plain(hits), num_exchanges=99, generator=generator))
        mean = exchange_p(float(np.mean(observed)), np.mean(exchanged, axis=0))
        found.append([*p, mean])
    return np.array(found)


@pytest.mark.slow
def test_equally_good_checkpoints_are_called_different_at_the_stated_rate(null_p):
    names = ("mean recall", "retrieval", "worst group", "accuracy", "mean of tasks")
    rates = dict(zip(names, (null_p <= ALPHA).mean(axis=0).tolist(), strict=True))
    error = 4 * binomial_error(ALPHA, 1_000)
    assert all(rate < ALPHA + error for rate in rates.values()), rates
    # Values that are many and fine leave the rate where it is stated; hits and groups lie below.
    assert min(rates["retrieval"], rates["mean recall"], rates["mean of tasks"]) > ALPHA - error
    assert min(rates.values()) > 0.01, rates


def test_after_holm_one_false_verdict_in_a_family_of_tasks_is_as_rare_as_stated(null_p):
    adjusted = np.array([holm(row) for row in null_p[:, :4]])
    family = (adjusted <= ALPHA).any(axis=1).mean()
    assert family < ALPHA + 4 * binomial_error(ALPHA, 1_000)
    assert (null_p[:, :4] <= ALPHA).any(axis=1).mean() > 2 * ALPHA  # what the correction is for


def test_a_planted_difference_of_accuracy_is_found_at_the_computed_power():
    lost, gained, n, trials = 0.06, 0.11, 400, 600
    decided = np.arange(n + 1)
    # The test rejects on either side: from the binomial tails alone, for each number of decided samples.
    power = 0.0
    for m in decided:
        wins = np.arange(m + 1)
        tails = np.minimum(binom.cdf(wins, m, 0.5), binom.sf(wins - 1, m, 0.5))
        rejects = 2 * tails <= ALPHA
        chance = binom.pmf(wins, m, gained / (gained + lost))[rejects].sum()
        power += binom.pmf(m, n, gained + lost) * chance
    assert 0.5 < power < 0.8
    generator = np.random.default_rng(14)
    found = []
    for _ in range(trials):
        draw = generator.random(n)
        first = (draw < lost) | (draw > 0.5)
        second = ((draw >= lost) & (draw < lost + gained)) | (draw > 0.5)
        found.append(sign_test(first, second) <= ALPHA)
    assert abs(np.mean(found) - power) < 4 * binomial_error(power, trials)


def test_a_planted_difference_of_a_mean_is_found_at_the_computed_power():
    shift, trials, sizes = 0.05, 600, (200, 400, 300)
    # Hits are independent given the sample; ease 0.2 or 0.8, so their variances are 0.16 or nearly so.
    variance = sum(
        np.mean([e * (1 - e) + (e + shift) * (1 - e - shift) for e in (0.2, 0.8 - shift)]) / n for n in sizes
    )
    power = norm.sf(1.959964 - len(sizes) * shift / np.sqrt(variance))
    assert 0.5 < power < 0.95
    generator = np.random.default_rng(15)
    found = []
    for _ in range(trials):
        observed, exchanged = [], []
        for n in sizes:
            ease = generator.choice([0.2, 0.8 - shift], size=n)
            hits = generator.random((2, n)) < np.stack([ease, ease + shift])
            observed.append(hits[1].mean() - hits[0].mean())
            exchanged.append(exchanged_hits(*hits, plain(hits), num_exchanges=399, generator=generator))
        found.append(exchange_p(float(np.mean(observed)), np.mean(exchanged, axis=0)) <= ALPHA)
    assert abs(np.mean(found) - power) < 4 * binomial_error(power, trials) + 0.02


@pytest.mark.parametrize("seeds", [(3, 3), (3, 5), (5, 5)])
@pytest.mark.parametrize("spreads", [(1, 1), (1, 0.2)])
def test_the_interval_of_two_methods_holds_its_level_with_few_seeds(seeds, spreads):
    generator = np.random.default_rng(16)
    trials, wrong = 1_000, 0
    for _ in range(trials):
        arms = [generator.normal(0, s, size=n) for n, s in zip(seeds, spreads, strict=True)]
        difference = arms[0].mean() - arms[1].mean() + generator.normal(0, 0.5)
        noise = TwoNoises.of(arms[0], arms[1], 0.25)
        wrong += abs(difference) > noise.reach(ALPHA)
    assert wrong / trials < ALPHA + 4 * binomial_error(ALPHA, trials)
    assert wrong / trials > 0.01


def test_without_noise_of_samples_the_interval_of_two_methods_is_welchs():
    first, second = np.array([0.50, 0.53, 0.49]), np.array([0.60, 0.68, 0.61, 0.66])
    noise = TwoNoises.of(second, first, 0.0)
    theirs = ttest_ind(second, first, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert noise.reach(ALPHA) == pytest.approx((interval.high - interval.low) / 2)
    assert noise.p(second.mean() - first.mean()) == pytest.approx(theirs.pvalue, rel=1e-6)


def test_the_p_value_of_two_methods_is_where_the_interval_touches_nil():
    noise = TwoNoises(of_seeds=0.01, freedom=3.1, of_samples=0.02)
    for difference in (0.001, 0.03, -0.2):
        assert noise.reach(noise.p(difference)) == pytest.approx(abs(difference), rel=1e-6)
    assert noise.p(0.0) == 1
    assert TwoNoises(0.0, np.inf, 0.02).p(0.0392) == pytest.approx(0.05, rel=1e-3)
    assert TwoNoises(0.0, np.inf, 0.0).p(0.1) < 1e-9
    assert TwoNoises(0.0, np.inf, 0.0).p(0.0) == 1


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
    draws = [metric_replicates(t, "acc1", outcomes, seed=s) for t, s in ((task, 3), (other, 3), (task, 4))]
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    for name, (low, high) in first.items():
        assert low <= metrics[name] <= high
