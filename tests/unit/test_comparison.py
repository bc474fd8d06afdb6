"""Arms compared, and what was planted scored, against hand-made cases and scikit-learn."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.comparison import MEAN, Arm, Run, compare
from evaluation.planted import area_under_roc, duplicate_quality
from evaluation.results import Result


def result(correct: np.ndarray, task: str = "glyphs/letters") -> Result:
    from evaluation import zero_shot

    outcomes = {
        "label": np.zeros(len(correct), np.int64),
        "predicted": np.where(correct, 0, 1),
        "label_rank": np.where(correct, 0, 7),
    }
    made = zero_shot.outcomes(
        np.where(correct[:, None], [[1.0, 0.0]], [[0.0, 1.0]]).astype(np.float32),
        np.zeros(len(correct), np.int64),
        "corrected",
    )
    assert set(made) >= set(outcomes) & set(made)
    return Result(
        task=task, protocol="corrected", metrics={"acc1": float(correct.mean())}, intervals={},
        num_samples=len(correct), limit=None, checkpoint=None, model="m", samples_seen=1,
        precision="fp32", versions={}, set_digest="d", seed=0, outcomes=made,
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
    control = arm("uniform", [0.50, 0.51, 0.49])
    cells = compare([control, arm("far", [0.70, 0.71, 0.69]), arm("near", [0.505, 0.515, 0.485])])
    assert cells["far"]["glyphs/letters"].is_separate
    assert cells["far"]["glyphs/letters"].difference == pytest.approx(0.2, abs=1e-3)
    assert not cells["near"]["glyphs/letters"].is_separate


def test_one_seed_gives_a_difference_and_no_verdict():
    cells = compare([arm("uniform", [0.5]), arm("far", [0.9])])
    cell = cells["far"][MEAN]
    assert cell.difference == pytest.approx(0.4, abs=1e-3)
    assert cell.difference_interval is None
    assert not cell.is_separate


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
