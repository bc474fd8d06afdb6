"""Arms compared, and what was planted scored, against hand-made cases and scikit-learn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import ndtri
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from dbp.errors import ConfigError
from evaluation.checks.injected import area_under_roc, duplicate_quality
from evaluation.kinds import retrieval
from evaluation.metrics import zero_shot
from evaluation.results import Result
from evaluation.statistics.analysis import analyse, compare
from evaluation.statistics.arms import family_level, pooled_variance, seed_share
from evaluation.statistics.comparison import MEAN, Arm, Cell, Run, mean_pair, pair
from evaluation.statistics.significance import picture_draws


def result(correct: np.ndarray, task: str = "glyphs/letters", digest: str = "d") -> Result:
    labels = np.zeros(len(correct), np.int64)
    logits = np.where(correct[:, None], [[1.0, 0.0]], [[0.0, 1.0]]).astype(np.float32)
    return Result(
        task=task, protocol="corrected", metrics={"acc1": float(correct.mean())}, intervals={},
        num_samples=len(correct), limit=None, checkpoint=None, model="m", samples_seen=1,
        precision="fp32", versions={}, set_digest=digest, seed=0,
        outcomes=zero_shot.outcomes(logits, labels, "corrected"),
    )  # fmt: skip


def arm(name: str, rates: list[float], n: int = 2000) -> Arm:
    runs = []
    for seed, rate in enumerate(rates):
        correct = np.arange(n) < rate * n
        runs.append(Run(seed, [result(correct)], {}))
    return Arm(name, runs, control="uniform")


def test_an_arm_equal_to_its_control_differs_by_nothing_and_is_not_separate():
    cells = compare([arm("uniform", [0.5, 0.52, 0.48]), arm("twin", [0.5, 0.52, 0.48])])
    cell = cells["twin"]["glyphs/letters"]
    assert cell.difference == 0
    assert not cell.is_separate
    low, high = cell.difference_interval
    assert low < 0 < high


def test_a_difference_far_outside_the_seeds_is_separate_and_one_inside_them_is_not():
    control = arm("uniform", [0.50, 0.52, 0.49])
    cells = compare([control, arm("far", [0.70, 0.71, 0.69]), arm("near", [0.505, 0.515, 0.49])])
    assert cells["far"]["glyphs/letters"].is_separate
    assert cells["far"]["glyphs/letters"].control == "uniform"
    assert cells["far"]["glyphs/letters"].difference == pytest.approx(0.7 - 1.51 / 3, abs=1e-3)
    assert not cells["near"]["glyphs/letters"].is_separate


@pytest.mark.parametrize("control", [[0.5], [0.5, 0.51], [0.5, 0.51, 0.49]])
def test_fewer_than_three_seeds_give_a_difference_and_no_verdict(control):
    cells = compare([arm("uniform", control), arm("far", [0.9, 0.91])])
    cell = cells["far"][MEAN]
    assert cell.difference == pytest.approx(0.905 - np.mean(control), abs=1e-3)
    assert cell.difference_interval is None
    assert cell.p is None
    assert not cell.is_separate


def table(spread: float = 0.01, num_seeds: int = 3, **rates: float) -> list[Arm]:
    """Arms on two tasks, whose residuals by seed are drawn; each task counts 2,000 samples."""
    chance = np.random.default_rng(0)

    def run(rate: float, seed: int) -> Run:
        found = [np.arange(2000) < (rate + chance.normal(0, spread)) * 2000 for _ in range(2)]
        return Run(seed, [result(found[0]), result(found[1], "glyphs/letters_shift")], {})

    every = {"uniform": 0.5, **rates}
    return [Arm(name, [run(rate, seed) for seed in range(num_seeds)], "uniform") for name, rate in every.items()]


def test_verdicts_hold_for_all_tasks_and_arms_and_for_all_means_apart():
    cells = compare(table(a=0.525, b=0.55, c=0.7))
    tasks = [cell for name in "abc" for key, cell in cells[name].items() if key != MEAN]
    means = [cells[name][MEAN] for name in "abc"]
    for family in (tasks, means):
        for cell in family:
            assert cell.p is not None
            assert cell.difference_interval is not None
            low, high = cell.difference_interval
            assert cell.adjusted_p == pytest.approx(1 - (1 - cell.p) ** len(family))
            assert cell.is_separate == (low > 0 or high < 0) == (cell.adjusted_p <= 0.05)
    # What is significant alone need not be among six.
    assert any(cell.p <= 0.05 < cell.adjusted_p for cell in tasks if cell.p and cell.adjusted_p)
    assert cells["c"][MEAN].is_separate


def test_what_a_seed_does_to_all_arms_is_in_no_interval():
    rates = {"uniform": [0.30, 0.52, 0.61], "a": [0.41, 0.62, 0.715], "b": [0.315, 0.52, 0.605]}
    cells = compare([arm(name, found) for name, found in rates.items()])
    assert reach(cells["a"]["glyphs/letters"]) < 0.1
    assert cells["a"]["glyphs/letters"].is_separate
    assert not cells["b"]["glyphs/letters"].is_separate


def test_the_interval_is_the_paired_t_where_there_are_two_arms():
    from scipy.stats import t, ttest_rel

    rates = [[0.50, 0.53, 0.49, 0.52], [0.60, 0.68, 0.61, 0.60]]
    cells = compare([arm("uniform", rates[0], 20_000), arm("a", rates[1], 20_000)])
    theirs = ttest_rel(rates[1], rates[0]).confidence_interval(0.95)
    gain = 20_000 * (np.array(rates[1]) - rates[0]).mean()
    by_samples = 1.96 * np.sqrt(gain - gain**2 / 20_000) / 20_000
    expected = np.hypot((theirs.high - theirs.low) / 2, by_samples)
    assert reach(cells["a"]["glyphs/letters"]) == pytest.approx(expected, rel=0.01)
    assert t.isf(0.025, 3) == pytest.approx(3.182, abs=1e-3), "three degrees of freedom"


def test_the_pooled_residual_is_that_of_a_two_way_layout_worked_by_hand():
    # Grand mean 4; arms 3, 5; seeds 3, 4, 5; residuals -1/2, 1, -1/2 and their negatives: 3 over 2 degrees.
    values = np.array([[1.5, 4.0, 3.5], [4.5, 4.0, 6.5]])
    assert pooled_variance(values) == pytest.approx(1.5)
    shifted = values + np.array([10.0, -20.0, 3.0]) + np.array([[7.0], [-2.0]])
    assert pooled_variance(shifted) == pytest.approx(1.5), "neither arms nor seeds count"


def test_seeds_explain_what_all_arms_share():
    shift = np.array([-1.0, 0.0, 1.0])
    noise = np.array([[0.1, -0.2, 0.1], [-0.1, 0.2, -0.1]])
    assert seed_share(np.stack([shift, shift])) == pytest.approx(1.0)
    assert seed_share(noise) == 0
    assert 0.9 < seed_share(shift + noise) < 1


def analysed(*arms: Arm) -> str:
    return " ".join(analyse(arms).notes)


def test_what_a_table_can_tell_is_said_beside_it():
    found = analyse(table(num_seeds=5, a=0.52, b=0.6))
    said = " ".join(found.notes)
    assert "Sidak" in said
    assert "seeds explain" in said
    assert "power of 80 %" in said
    assert "half a point takes" in said


def test_seeds_that_differ_in_part_are_compared_unpaired_and_named():
    arms = table(a=0.55, b=0.6)
    moved = replace(arms[2], runs=[replace(run, seed=run.seed + 1) for run in arms[2].runs])
    found = analyse([*arms[:2], moved])
    assert "unpaired" in " ".join(found.notes)
    assert "seeds differ from those of the others: b" in " ".join(found.notes)
    assert found.cells["b"][MEAN].difference_interval is not None


def test_an_arm_with_a_failed_seed_has_no_verdict_and_is_named():
    arms = table(a=0.55, b=0.6)
    broken = replace(arms[2], runs=arms[2].runs[:2], failures=["seed 2: killed"])
    found = analyse([*arms[:2], broken])
    assert "no verdict: b" in " ".join(found.notes)
    assert found.cells["b"][MEAN].difference_interval is None
    assert not found.cells["b"][MEAN].is_separate
    assert found.cells["a"][MEAN].difference_interval is not None


def test_equal_values_in_all_seeds_bear_no_verdict():
    found = analyse([arm("uniform", [0.5] * 3), arm("a", [0.9] * 3)])
    assert "equal values" in " ".join(found.notes)
    assert not any(cell.is_separate for row in found.cells.values() for cell in row.values())


def test_two_arms_of_one_name_are_refused_and_one_seed_and_a_missing_task_are_said():
    with pytest.raises(ConfigError, match="'a'"):
        analyse([arm("a", [0.5]), arm("a", [0.6])])
    assert "Fewer than 3 seeds" in analysed(arm("uniform", [0.5]), arm("a", [0.6]))
    assert "A single arm" in analysed(arm("uniform", [0.5]))
    arms = table(a=0.55)
    part = replace(arms[1], runs=[replace(run, results=run.results[:1]) for run in arms[1].runs])
    assert "a (letters_shift)" in analysed(arms[0], part)


def test_a_further_mean_is_of_its_tasks_and_in_the_family_of_means():
    arms = table(a=0.55, b=0.6)
    found = analyse(arms, means={"mean of one": ["glyphs/letters"]}).cells
    assert found["a"]["mean of one"].value == found["a"]["glyphs/letters"].value
    for name in ("a", "b"):
        cell = found[name][MEAN]
        assert cell.adjusted_p == pytest.approx(1 - (1 - cell.p) ** 4)


def seeds(name: str, *corrects: np.ndarray, digest: str = "d") -> Arm:
    runs = [Run(i, [result(c, digest=digest)], {}) for i, c in enumerate(corrects)]
    return Arm(name, runs, control="uniform")


def reach(cell: Cell) -> float:
    low, high = cell.difference_interval or (0, 0)
    return (high - low) / 2


def test_arms_are_compared_on_the_same_pictures():
    # Seeds differ by one sample, so that nearly all of the interval is the noise of the samples.
    n = 20_000
    first = np.arange(n) < n // 2
    less = np.arange(n) < n // 2 - 1
    control = seeds("uniform", first, first, first)
    cells = compare([control, seeds("same", less, first, first), seeds("other", ~first, ~less, ~first)])
    level = ndtri(1 - family_level(2) / 2)
    # Hits minus misses are 1 or -1 on every sample: standard error 1 / sqrt(n).
    assert reach(cells["other"]["glyphs/letters"]) == pytest.approx(level / np.sqrt(n), rel=0.1)
    assert reach(cells["same"]["glyphs/letters"]) < 0.1 * level / np.sqrt(n)
    apart = compare([control, seeds("other", less, first, first, digest="other pictures")])
    # Other samples share no luck: the errors of two rates of one half add.
    assert reach(apart["other"]["glyphs/letters"]) == pytest.approx(1.96 * np.sqrt(2 * 0.25 / n), rel=0.1)


def test_seeds_that_err_on_other_pictures_steady_the_mean():
    n = 2000
    first = np.arange(n) < n // 2
    cells = compare([seeds("alike", first, first), seeds("apart", first, ~first)])
    low, high = cells["alike"]["glyphs/letters"].interval
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.25 / n), rel=0.1)
    assert cells["apart"]["glyphs/letters"].interval == (0.5, 0.5)


def test_welch_intervals_of_seeds_are_scipys():
    from scipy.stats import ttest_ind

    n, rates = 10_000, ([0.50, 0.53, 0.49, 0.52], [0.60, 0.68, 0.61])
    hits = [[np.arange(n) < round(rate * n) for rate in side] for side in rates]
    cells = compare([seeds("uniform", *hits[0]), seeds("few", *hits[1])])
    theirs = ttest_ind(rates[1], rates[0], equal_var=False).confidence_interval(0.95)
    by_seeds = (theirs.high - theirs.low) / 2
    paired = np.mean(hits[1], axis=0) - np.mean(hits[0], axis=0)
    by_pictures = 1.96 * paired.std() / np.sqrt(n)
    assert reach(cells["few"]["glyphs/letters"]) == pytest.approx(np.hypot(by_seeds, by_pictures), rel=1e-3)


def test_an_arm_that_lacks_a_task_has_no_mean():
    hits = np.arange(100) < 50
    both = [result(hits), result(hits, "glyphs/letters_shift")]
    whole = Arm("uniform", [Run(0, both, {})], "uniform")
    cells = compare([whole, Arm("part", [Run(0, both[:1], {})], "uniform")])
    assert MEAN in cells["uniform"]
    assert set(cells["part"]) == {"glyphs/letters"}


def test_two_checkpoints_are_paired_on_samples_and_means_over_tasks():
    generator = np.random.default_rng(1)
    pairs = []
    for task, n in (("glyphs/letters", 500), ("glyphs/letters_shift", 900)):
        first = generator.random(n) < 0.5
        second = first ^ (generator.random(n) < 0.1)
        found = pair("acc1", result(first, task), result(second, task), seed=0, num_exchanges=999)
        gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
        assert found.difference == pytest.approx((gained - lost) / n)
        assert found.p == pytest.approx(binomtest(gained, gained + lost).pvalue)
        assert found.exchanged.std() == pytest.approx(np.sqrt(gained + lost) / n, rel=0.1)
        assert found.replicates.std() == pytest.approx((second.astype(float) - first).std() / np.sqrt(n), rel=0.1)
        pairs.append(found)
    mean = mean_pair(pairs)
    assert mean.difference == pytest.approx(np.mean([one.difference for one in pairs]))
    spread = np.hypot(*(one.replicates.std() for one in pairs)) / 2
    assert mean.replicates.std() == pytest.approx(spread, rel=0.1)


def test_the_quick_way_for_mean_recall_is_the_way_of_every_metric(monkeypatch):
    import evaluation.statistics.comparison

    generator = np.random.default_rng(2)
    sides = []
    for _ in range(2):
        labels = np.sort(np.random.default_rng(3).choice(6, 400, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05]))
        logits = generator.normal(size=(400, 6)) + 2 * np.eye(6)[labels]
        outcomes = zero_shot.outcomes(logits.astype(np.float32), labels)
        values = zero_shot.metrics(outcomes, 6)
        sides.append(replace(result(labels < 9), metrics=values, outcomes=outcomes))
    asked: dict[str, Any] = {"seed": 0, "num_exchanges": 4_000, "num_resamples": 4_000}
    quick = pair("mean_per_class_recall", *sides, **asked)
    monkeypatch.setattr(evaluation.statistics.comparison, "_weights", lambda *_: None)
    slow = pair("mean_per_class_recall", *sides, **asked)
    assert quick.difference == slow.difference
    assert quick.p == pytest.approx(slow.p, abs=0.03)
    assert quick.interval == pytest.approx(slow.interval, abs=0.005)
    assert quick.exchanged.std() == pytest.approx(slow.exchanged.std(), rel=0.05)


@pytest.mark.parametrize("metric", ["acc1", "mean_per_class_recall", "mean_recall@1"])
def test_a_metric_on_the_draw_of_every_picture_once_is_the_metric(metric):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(300, 7)).astype(np.float32)
    module: Any = zero_shot
    outcomes = zero_shot.outcomes(logits, generator.choice([0, 2, 5], 300))
    values = zero_shot.metrics(outcomes, 7)
    if metric == "mean_recall@1":
        module, owner = retrieval, np.sort(np.r_[np.arange(300), generator.integers(300, size=90)])
        pictures = logits / np.linalg.norm(logits, axis=1, keepdims=True)
        captions = pictures[owner] + 0.3 * generator.normal(size=(390, 7)).astype(np.float32)
        outcomes = retrieval.outcomes(pictures, captions, owner)
        values = retrieval.metrics(outcomes)
    once = np.ones((2, 300), np.float32)
    assert module.on_draws(outcomes, metric, once) == pytest.approx([values[metric]] * 2)
    picks = np.random.default_rng(1)
    drawn = np.concatenate(list(picture_draws(300, num_resamples=2000, generator=picks)))
    assert (drawn.sum(axis=1) == 300).all()
    paired = module.on_draws(outcomes, metric, drawn)
    quick = module.replicates(outcomes, metric, num_resamples=2000, generator=picks)
    assert paired.mean() == pytest.approx(quick.mean(), abs=0.003)
    assert paired.std() == pytest.approx(quick.std(), rel=0.1)


def test_the_control_has_no_difference_to_itself():
    cells = compare([arm("uniform", [0.5, 0.6])])
    assert cells["uniform"][MEAN].difference is None


def test_the_area_under_the_curve_is_scikit_learns():
    generator = np.random.default_rng(0)
    scores = np.round(generator.normal(size=500), 1)  # with ties
    positive = generator.random(500) < 0.3
    assert area_under_roc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_the_area_is_not_a_number_where_one_kind_is_missing():
    assert np.isnan(area_under_roc(np.array([1.0, 2.0]), np.array([True, True])))


def test_duplicate_quality_of_a_pool_counted_by_hand():
    # rows: 0 a, 1 exact copy of 0, 2 b, 3 re-encoded copy of 2, 4 homoglyph of 0, 5 a in another face,
    # 6 unrelated
    truth = pa.table({
        "uid": list("abcdefg"),
        "kind": ["original", "exact", "original", "reencoded", "original", "original", "original"],
        "source_uid": [None, "a", None, "c", None, None, None],
        "same_picture": [0, 0, 1, 1, 0, 2, 3],
        "same_character": [0, 0, 1, 1, 2, 0, 3],
    })  # fmt: skip
    removed = np.array([False, True, True, False, True, False, True])
    twin = np.array([-1, 0, 3, -1, 0, -1, 5])
    rows = {r["kind"]: r for r in duplicate_quality(truth, removed, twin, np.ones(7, bool))}
    assert (rows["exact"]["removed"], rows["exact"]["to remove"]) == (1, 1)
    assert (rows["re-encoded"]["removed"], rows["re-encoded"]["to remove"]) == (1, 1)
    assert (rows["same picture"]["removed"], rows["same picture"]["to remove"]) == (1, 1)
    assert (rows["other face"]["removed"], rows["other face"]["to remove"]) == (0, 1)
    assert rows["unrelated"]["removed rows by twin"] == 1
    assert rows["all equal pictures"]["recall"] == 1
    assert rows["all equal pictures"]["share of removed"] == 0.75


def test_rows_that_the_encoder_has_seen_do_not_count():
    truth = pa.table({
        "uid": ["a", "b"], "kind": ["original", "exact"], "source_uid": [None, "a"],
        "same_picture": [0, 0], "same_character": [0, 0],
    })  # fmt: skip
    unseen = np.array([True, False])
    rows = duplicate_quality(truth, np.array([False, True]), np.array([-1, 0]), unseen)
    assert all(row["to remove"] == 0 for row in rows)


def test_a_copy_whose_original_was_cut_off_asks_for_nothing():
    truth = pa.table({
        "uid": ["a", "b"], "kind": ["original", "exact"], "source_uid": [None, "z"],
        "same_picture": [0, 1], "same_character": [0, 1],
    })  # fmt: skip
    rows = duplicate_quality(truth, np.zeros(2, bool), np.array([-1, -1]), np.ones(2, bool))
    assert all(row["to remove"] == 0 for row in rows)


def test_a_picture_that_stays_as_its_homoglyph_does_not_count_as_another_face_that_went():
    # rows: 0 a, 1 its homoglyph, 2 a in another face; 0 went, its picture stays as row 1.
    truth = pa.table({
        "uid": list("abc"), "kind": ["original"] * 3, "source_uid": [None] * 3,
        "same_picture": [0, 0, 1], "same_character": [0, 1, 0],
    })  # fmt: skip
    removed, twin = np.array([True, False, False]), np.array([1, -1, -1])
    rows = {r["kind"]: r for r in duplicate_quality(truth, removed, twin, np.ones(3, bool))}
    assert (rows["same picture"]["removed"], rows["same picture"]["to remove"]) == (1, 1)
    assert (rows["other face"]["removed"], rows["other face"]["to remove"]) == (0, 1)
