"""Choice of captions: scores by hand, ties, finer measures, intervals, and comparisons."""

import numpy as np
import pytest

from dbp.errors import ConfigError
from evaluation.kinds.caption_choice import CaptionChoice, chooses_right, similarities
from evaluation.sets.data import Choice, EvaluationSet, open_set
from evaluation.sets.tar_index import Sample


def by_loops(cosines, protocol):
    """Winoground's and SugarCrepe's definitions, and clip_benchmark's argmax, written out."""
    for query in range(min(cosines.shape)):
        row = list(cosines[query])
        if protocol == "datacomp" and row.index(max(row)) != query:
            return False
        if protocol == "corrected" and any(value >= row[query] for i, value in enumerate(row) if i != query):
            return False
    return True


@pytest.mark.parametrize("protocol", ["corrected", "datacomp"])
@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (1, 5), (3, 3), (2, 4), (4, 2)])
def test_a_choice_equals_loops_with_ties(shape, protocol):
    generator = np.random.default_rng(0)
    cases = generator.integers(3, size=(200, *shape)) / 3
    answers = [chooses_right(case, protocol) for case in cases]
    assert answers == [by_loops(case, protocol) for case in cases]
    assert len(set(answers)) == 2


def test_a_tie_is_wrong_unless_the_protocol_is_datacomps():
    tied = np.array([[0.5, 0.5]])
    assert not chooses_right(tied)
    assert chooses_right(tied, "datacomp")
    assert chooses_right(np.array([[0.6, 0.5]]))
    with pytest.raises(ConfigError, match="protocol=datacmp"):
        chooses_right(tied, "datacmp")


def test_equal_captions_tie_exactly_whatever_their_number():
    generator = np.random.default_rng(1)
    for width in (24, 131, 512):
        vectors = generator.normal(size=(3, width)).astype(np.float32)
        captions = np.repeat(vectors[2:], 7, axis=0)
        cosines = similarities(vectors[:2], captions)
        assert (cosines == cosines[:, :1]).all()
        assert not chooses_right(cosines)


def made(choices, num_pictures):
    samples = tuple(Sample(f"s{i}", 0, "png", 0, 0, {}) for i in range(num_pictures))
    from pathlib import Path

    return CaptionChoice(EvaluationSet(Path("none"), (), samples, choices=tuple(choices)))


def winoground(num=50, seed=2):
    """A scorer of pairs, vectors of its images, and an encoder of its captions."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(2 * num, 8))
    texts = {f"caption {i}": vector for i, vector in enumerate(images + generator.normal(size=images.shape) * 2)}
    names = list(texts)
    scorer = made([Choice((2 * i, 2 * i + 1), (names[2 * i], names[2 * i + 1])) for i in range(num)], 2 * num)

    def encode(asked):
        found = np.stack([texts[text] for text in asked])
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return scorer, images / np.linalg.norm(images, axis=1, keepdims=True), encode


def test_the_three_scores_are_winogrounds_text_image_and_group_scores():
    scorer, images, encode = winoground()
    text = image = group = 0
    for number, one in enumerate(scorer.choices):
        (a, b), (x, y) = images[[2 * number, 2 * number + 1]], encode(one.captions)
        text_right = a @ x > a @ y and b @ y > b @ x
        image_right = a @ x > b @ x and b @ y > a @ y
        text, image, group = text + text_right, image + image_right, group + (text_right and image_right)
    metrics = scorer.score(images, encode, "corrected").metrics
    assert metrics == pytest.approx({"text_acc": text / 50, "image_acc": image / 50, "acc": group / 50})
    assert 0 < group < min(text, image) < 50


def test_the_finer_measure_is_the_mean_log_likelihood_of_both_directions():
    scorer, images, encode = winoground()
    found = scorer.fine(images, encode, 7.0)
    expected = []
    for number, one in enumerate(scorer.choices):
        logits = 7.0 * images[[2 * number, 2 * number + 1]] @ encode(one.captions).T
        shares = [np.exp(table) / np.exp(table).sum(axis=1, keepdims=True) for table in (logits, logits.T)]
        expected.append(np.mean([np.log(share[i, i]) for share in shares for i in (0, 1)]))
    np.testing.assert_allclose(found["log_likelihood"], expected, atol=1e-12)
    assert found["log_likelihood_fitted"].shape == (50,)
    assert found["log_likelihood_fitted"].mean() > -np.log(2)  # better than a guess


def test_with_one_image_only_the_captions_count_and_uneven_instances_have_no_finer_measure():
    scorer, images, encode = winoground(4)
    one = made([Choice((0,), scorer.choices[0].captions), Choice((1,), scorer.choices[1].captions)], 2)
    cosines = images[:1] @ encode(one.choices[0].captions).T
    log_likelihood = cosines[0, 0] - np.log(np.exp(cosines[0]).sum())
    assert one.fine(images[:2], encode, 1.0)["log_likelihood"][0] == pytest.approx(log_likelihood)
    uneven = made([Choice((0,), scorer.choices[0].captions), scorer.choices[1]], 4)
    assert uneven.fine(images[:3], encode, 1.0) == {}
    assert uneven.score(images[:3], encode, "corrected").metrics["acc"] in (0, 0.5, 1)


def test_resamples_and_draws_are_means_over_instances():
    scorer, images, encode = winoground()
    found = scorer.score(images, encode, "corrected")
    drawn = np.random.default_rng(0).multinomial(50, np.full(50, 1 / 50), size=20).astype(np.float32)
    for metric, name in (("acc", "is_right"), ("text_acc", "text_is_right"), ("image_acc", "image_is_right")):
        means = [np.repeat(found.outcomes[name], row.astype(int)).mean() for row in drawn]
        np.testing.assert_allclose(scorer.on_draws(found.outcomes, metric, drawn), means, atol=1e-6)
        draws = scorer.replicates(found.outcomes, metric, num_resamples=4000, generator=np.random.default_rng(1))
        value = found.metrics[metric]
        assert draws.mean() == pytest.approx(value, abs=0.01)
        assert draws.std() == pytest.approx(np.sqrt(value * (1 - value) / 50), rel=0.1)


def test_a_limit_takes_whole_instances_and_a_flagged_image_flags_its_instance():
    scorer, *_ = winoground()
    some = CaptionChoice(scorer.set, limit=10)
    assert (some.num_samples, some.num_available, len(some.rows)) == (10, 50, 20)
    flagged = np.zeros(20, bool)
    flagged[[4, 5, 9]] = True
    assert np.flatnonzero(some.flag_samples(flagged)).tolist() == [2, 4]


def test_tars_of_images_with_their_own_caption_first_are_a_set_of_choices(tmp_path):
    from miniature import write_retrieval

    folder = tmp_path / "wds_mine_test"
    write_retrieval(folder, captions=[["a cat", "a dog"], ["a red tree", "a tree"]], seed=0)
    (folder / "dataset_type.txt").write_text("retrieval")
    scorer = CaptionChoice(CaptionChoice.open(folder))
    assert [one.captions for one in scorer.choices] == [("a cat", "a dog"), ("a red tree", "a tree")]
    assert scorer.texts("corrected") == ["a cat", "a dog", "a red tree", "a tree"]
    assert len(open_set(folder, kind="caption_choice")) == 2
