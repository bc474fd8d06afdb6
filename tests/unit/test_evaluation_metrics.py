import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from dbp.errors import ConfigError
from evaluation.kinds import retrieval
from evaluation.metrics import zero_shot
from evaluation.metrics.similarity import distinct_rows, score
from evaluation.sets.tar_index import EvaluationDataError


def unit(generator, n, d):
    vectors = generator.normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 5, 60])
def test_accuracy_and_recall_equal_scikit_learn(num_classes):
    generator = np.random.default_rng(num_classes)
    logits = generator.normal(size=(9_000, num_classes)).astype(np.float32)
    labels = generator.integers(num_classes, size=9_000)
    logits[np.arange(9_000), labels] += 1
    outcomes = zero_shot.outcomes(logits, labels)
    metrics = zero_shot.metrics(outcomes, num_classes)
    predicted = logits.argmax(axis=1)
    assert metrics["acc1"] == pytest.approx((predicted == labels).mean(), abs=1e-12)
    assert metrics["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    if num_classes > 5:
        expected = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(num_classes))
        assert metrics["acc5"] == pytest.approx(expected, abs=1e-12)
    else:
        assert metrics["acc5"] == (1.0 if num_classes == 5 else None)


@pytest.mark.parametrize("num_classes", [3, 5, 40])
def test_without_ties_both_protocols_agree(num_classes):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, num_classes)).astype(np.float32)
    labels = generator.integers(num_classes, size=500)
    for k in (1, 5) if num_classes >= 5 else (1,):
        corrected = zero_shot.accuracy(logits, labels, k=k)
        assert corrected == zero_shot.accuracy(logits, labels, k=k, protocol="datacomp")


def test_datacomp_accuracy_is_that_of_topk_with_its_ties():
    generator = np.random.default_rng(0)
    logits = generator.integers(3, size=(400, 50)).astype(np.float32)
    labels = generator.integers(50, size=400)
    top = torch.from_numpy(logits).topk(5, 1, True, True)[1].numpy()
    ranks = zero_shot.label_ranks(logits, labels, "datacomp")
    assert (ranks < 1).mean() == (top[:, 0] == labels).mean()
    assert (ranks < 5).mean() == (top == labels[:, None]).any(axis=1).mean()


def test_a_tie_goes_to_the_lower_class():
    logits = np.array([[1, 3, 3, 2]] * 3, dtype=np.float32)
    labels = np.array([1, 2, 3])
    assert zero_shot.label_ranks(logits, labels).tolist() == [0, 1, 2]


def test_classes_without_test_pictures_are_left_out_of_the_recall():
    labels = np.array([0, 0, 3, 3, 3, 3])
    predicted = np.array([0, 1, 3, 3, 3, 2])
    assert zero_shot.mean_per_class_recall(predicted, labels) == (1 / 2 + 3 / 4) / 2


def test_a_label_beyond_the_columns_is_never_right():
    logits = np.eye(5, dtype=np.float32)
    labels = np.array([0, 1, 2, 3, 5])
    for protocol in zero_shot.PROTOCOLS:
        outcomes = zero_shot.outcomes(logits, labels, protocol)
        metrics = zero_shot.metrics(outcomes, 5)
        assert (metrics["acc1"], metrics["acc5"]) == (0.8, 0.8)
        assert metrics["mean_per_class_recall"] == 0.8


def test_each_distinct_prompt_is_encoded_once_in_one_call():
    calls = []

    def encode(texts):
        calls.append(list(texts))
        return unit(np.random.default_rng(0), len(texts), 4)

    classifier = zero_shot.build_classifier(["a", "b", "a"], ["one {c}", "{c} {c}"], encode)
    assert calls == [["one a", "a a", "one b", "b b"]]
    assert classifier.shape == (4, 3)
    np.testing.assert_array_equal(classifier[:, 0], classifier[:, 2])
    np.testing.assert_allclose(np.linalg.norm(classifier, axis=0), 1, rtol=1e-6)


@pytest.mark.parametrize("num_classes", [5, 7, 113, 1_003])
def test_twin_names_tie_exactly(num_classes):
    # A plain matrix product fails here: OpenBLAS rounds the last columns differently.
    generator = np.random.default_rng(1)
    vectors = unit(generator, num_classes, 33)
    vectors[-1] = vectors[3]
    logits = zero_shot.compute_logits(unit(generator, 50, 33), vectors.T)
    np.testing.assert_array_equal(logits[:, 3], logits[:, -1])
    distinct, column = distinct_rows(vectors)
    assert len(distinct) == num_classes - 1
    np.testing.assert_array_equal(distinct[column], vectors)


def test_scores_of_distinct_rows_are_the_scores_of_all_rows():
    generator = np.random.default_rng(1)
    items = unit(generator, 9, 5)[[0, 3, 3, 8, 0, 1]]
    queries = unit(generator, 4, 5)
    np.testing.assert_allclose(score(queries, *distinct_rows(items)), queries @ items.T, atol=1e-6)


def test_blank_names_are_classes_except_under_datacomp():
    names = ["near", "", "far"]
    assert zero_shot.kept_lines(names, "corrected") == names
    assert zero_shot.kept_lines(names, "datacomp") == ["near", "far"]
    with pytest.raises(ConfigError, match=r"=corected is unknown\. Did you mean 'corrected'\?"):
        zero_shot.kept_lines(names, "corected")


@pytest.mark.parametrize("template", ["{x} of {c}", "{} of {c}", "{c", "a {c} {0}"])
def test_a_template_with_other_braces_is_named(template):
    with pytest.raises(EvaluationDataError) as error:
        zero_shot.build_classifier(["a"], [template], lambda texts: np.ones((1, 1)))
    assert str(error.value).startswith(f"The template {template!r} cannot take a class name")


def test_a_classifier_without_templates_is_refused():
    with pytest.raises(EvaluationDataError, match="2 class names and 0 templates"):
        zero_shot.build_classifier(["a", "b"], [], lambda texts: np.ones((1, 1)))


def test_recall_of_ragged_captions_worked_by_hand():
    # Three pictures on the axes; picture 0 has one caption, 1 has three, 2 has two.
    pictures = np.eye(3, dtype=np.float32)
    captions = np.array(
        [
            [0.5, 0.8, 0.1],  # of 0; nearest picture 1, then 0
            [0.9, 0.3, 0.2],  # of 1; nearest picture 0, then 1
            [0.1, 0.7, 0.2],  # of 1; found
            [0.2, 0.6, 0.3],  # of 1; found
            [0.6, 0.5, 0.4],  # of 2; nearest 0, then 1
            [0.3, 0.2, 0.9],  # of 2; found
        ],
        dtype=np.float32,
    )
    outcomes = retrieval.outcomes(pictures, captions, np.array([0, 1, 1, 1, 2, 2]))
    assert outcomes["image_rank"].tolist() == [1, 1, 0, 0, 2, 0]
    # Picture 0 sees captions 1 (0.9) and 4 (0.6) before its own; picture 1 sees caption 0 (0.8).
    assert outcomes["text_rank"].tolist() == [2, 1, 0]
    metrics = retrieval.metrics(outcomes)
    assert metrics["image_retrieval_recall@1"] == 3 / 6
    assert metrics["text_retrieval_recall@1"] == 1 / 3
    assert metrics["mean_recall@1"] == pytest.approx((3 / 6 + 1 / 3) / 2, abs=1e-15)
    assert metrics["text_retrieval_recall@5"] == 1
    assert metrics["image_retrieval_recall@5"] is None
    assert metrics["text_retrieval_recall@10"] is None


def test_a_picture_is_found_by_any_one_of_its_captions():
    pictures = np.eye(2, dtype=np.float32)
    captions = np.array([[0.1, 0.2], [0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    outcomes = retrieval.outcomes(pictures, captions, np.array([0, 0, 1]))
    assert outcomes["text_rank"].tolist() == [0, 0]
    assert outcomes["image_rank"].tolist() == [1, 0, 0]


def test_equal_captions_of_different_pictures_tie_and_the_first_wins():
    generator = np.random.default_rng(0)
    captions = unit(generator, 40, 24)
    captions[31] = captions[7]
    outcomes = retrieval.outcomes(captions.copy(), captions, np.arange(40))
    assert outcomes["text_rank"][[7, 31]].tolist() == [0, 1]
    assert outcomes["image_rank"][[7, 31]].tolist() == [0, 1]


def test_captions_in_any_order_give_the_same_recalls_over_several_blocks():
    generator = np.random.default_rng(0)
    owner = np.sort(np.concatenate([np.arange(600), generator.integers(600, size=700)]))
    pictures, captions = unit(generator, 600, 8), unit(generator, 1_300, 8)
    captions += pictures[owner]
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    plain = retrieval.metrics(retrieval.outcomes(pictures, captions, owner))
    order = generator.permutation(1_300)
    mixed = retrieval.metrics(retrieval.outcomes(pictures, captions[order], owner[order]))
    assert plain == mixed
    scores = captions @ pictures.T
    top = np.argsort(-scores, axis=1)[:, :5]
    expected = (top == owner[:, None]).any(axis=1).mean()
    assert plain["image_retrieval_recall@5"] == pytest.approx(expected, abs=1e-12)
