import io
import zlib

import numpy as np
import pytest
import torch
from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class
from miniature import write_set
from sklearn.metrics import average_precision_score

from evaluation.kinds import multilabel
from evaluation.kinds.multilabel import METRIC, average_precision
from evaluation.sets.tar_index import EvaluationDataError

KIND = multilabel.MultiLabel
NAMES = ["cat", "dog", "", "horse", "bird"]
TEMPLATES = ["a {c}.", "{c}!"]


def vector(text):
    values = np.random.default_rng(zlib.crc32(text.encode())).normal(size=8)
    return (values / np.linalg.norm(values)).astype(np.float32)


def encode(texts):
    return np.stack([vector(text) for text in texts])


def npy(values):
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def write(folder, labels):
    samples = [{"png": b"never decoded", "npy": npy(row)} for row in labels]
    write_set(folder, samples, class_names=NAMES, templates=TEMPLATES)
    (folder / "dataset_type.txt").write_text("multilabel\n")
    return folder


def made_up(num_samples=200, seed=0):
    """Labels without a bird, and pictures that know a little of them."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((num_samples, len(NAMES))) < [0.5, 0.1, 0.3, 0.02, 0]).astype(int)
    labels[0, 3] = 1
    towards = np.stack([vector(f"a {name}.") + vector(f"{name}!") for name in NAMES])
    features = labels @ towards + generator.normal(size=(num_samples, 8))
    return labels, (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def reference(scores, labels):
    return average_precision_per_class(torch.tensor(scores), torch.tensor(labels)).numpy()


@pytest.mark.parametrize("protocol", ["corrected", "datacomp"])
def test_the_mean_average_precision_is_clip_benchmarks(protocol, tmp_path):
    labels, features = made_up()
    scorer = KIND(KIND.open(write(tmp_path, labels)))
    found = scorer.score(features, encode, protocol)
    scores, is_positive = found.outcomes["score"], found.outcomes["is_positive"]
    np.testing.assert_array_equal(is_positive, labels)
    expected = reference(scores, labels)
    assert expected[4] == 0
    assert list(found.metrics) == [METRIC]
    assert found.metrics[METRIC] == pytest.approx(expected.mean(), abs=1e-6)
    # Without ties it is also scikit-learn's, in float64.
    plain = [average_precision_score(labels[:, k], scores[:, k]) for k in range(4)]
    assert found.metrics[METRIC] == pytest.approx(sum(plain) / 5, abs=1e-12)


def test_equal_scores_keep_the_order_of_the_set():
    generator = np.random.default_rng(1)
    scores = generator.integers(4, size=400).astype(np.float32)
    is_positive = generator.random(400) < 0.3
    found, shares = 0, []
    for place, i in enumerate(sorted(range(400), key=lambda i: (-scores[i], i)), start=1):
        if is_positive[i]:
            found += 1
            shares.append(found / place)
    value = average_precision(scores, is_positive, np.ones((400, 1)))
    assert value == pytest.approx([np.mean(shares)], abs=1e-12)
    # By hand: the order is b, a, c, d; a and d are positives: (1/2 + 2/4) / 2.
    scores, is_positive = np.array([2.0, 3.0, 2.0, 1.0]), np.array([True, False, False, True])
    assert average_precision(scores, is_positive, np.ones((4, 1))).tolist() == [0.5]


def test_a_draw_counts_as_a_set_in_which_pictures_are_repeated():
    generator = np.random.default_rng(2)
    scores = generator.normal(size=60).astype(np.float32)
    is_positive = generator.random(60) < 0.2
    taken = generator.integers(60, size=(5, 60))
    drawn = np.stack([np.bincount(rows, minlength=60) for rows in taken], axis=1)
    found = average_precision(scores, is_positive, drawn)
    for column, rows in enumerate(taken):
        rows = np.sort(rows)  # copies stand one after the other
        expected = reference(scores[rows, None], is_positive[rows, None].astype(int))
        assert found[column] == pytest.approx(expected[0], abs=1e-6)
    # Three copies of a positive above one negative and another positive: (1 + 1 + 1 + 4/5) / 4.
    drawn = np.array([[3], [1], [1]])
    found = average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]), drawn)
    assert found[0] == pytest.approx((3 + 4 / 5) / 4, abs=1e-15)


def test_without_a_positive_that_is_drawn_a_class_counts_nothing():
    scores, is_positive = np.array([3.0, 2.0, 1.0]), np.array([False, True, False])
    drawn = np.array([[1, 2], [1, 0], [1, 1]])
    assert average_precision(scores, is_positive, drawn).tolist() == [0.5, 0]
    assert average_precision(scores, np.zeros(3, bool), drawn).tolist() == [0, 0]


def test_replicates_spread_as_a_loop_over_resamples_does(tmp_path):
    labels, features = made_up(100)
    scorer = KIND(KIND.open(write(tmp_path, labels)))
    outcomes = scorer.score(features, encode, "corrected").outcomes
    replicates = KIND.replicates(outcomes, METRIC, num_resamples=4_000, generator=np.random.default_rng(3))
    generator = np.random.default_rng(2)
    loop = []
    for _ in range(400):
        rows = np.sort(generator.integers(100, size=100))
        loop.append(reference(outcomes["score"][rows], labels[rows]).mean())
    # 400 resamples know their mean to 0.05 of a spread, and the spread to 4 %.
    assert replicates.shape == (4_000,)
    assert replicates.mean() == pytest.approx(np.mean(loop), abs=0.2 * float(np.std(loop)))
    assert replicates.std() == pytest.approx(np.std(loop), rel=0.15)


def test_it_scores_the_chosen_rows_by_every_name_also_a_blank_one(tmp_path):
    labels, features = made_up()
    scorer = KIND(KIND.open(write(tmp_path, labels)), limit=30, max_templates=1)
    assert scorer.texts("datacomp") == ["a cat.", "a dog.", "a .", "a horse.", "a bird."]
    found = scorer.score(features[scorer.rows], encode, "datacomp")
    assert found.outcomes["score"].shape == (30, 5)
    np.testing.assert_array_equal(found.outcomes["is_positive"], labels[scorer.rows])


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (np.eye(4), r"has shape \(4,\); it must hold 5 numbers: 0 or 1 for each of the 5 names"),
        (np.eye(5) * 2, r"s0000000\.png holds other numbers than 0 and 1"),
        (np.where(np.eye(5), np.nan, 0), r"s0000000\.png holds other numbers than 0 and 1"),
    ],
)
def test_labels_that_are_no_yes_or_no_for_each_name_are_refused(labels, error, tmp_path):
    with pytest.raises(EvaluationDataError, match=error):
        KIND(KIND.open(write(tmp_path, labels)))
