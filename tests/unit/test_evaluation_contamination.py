"""Near copies of test pictures in a training subset, and metrics without them, against plain loops."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dbp.data.embeddings import Embeddings, save_part
from dbp.errors import ConfigError
from evaluation.checks import contamination
from evaluation.checks.contamination import HEADING, find_matches, only, table_rows, with_and_without
from evaluation.kinds import retrieval, winogavil
from evaluation.kinds.classification import Classification
from evaluation.kinds.retrieval import Retrieval
from evaluation.kinds.wilds import FMoW
from evaluation.kinds.winogavil import Winogavil
from evaluation.metrics import groups, zero_shot
from evaluation.results import Result
from evaluation.sets.data import EvaluationSet, Instance
from evaluation.sets.tar_index import EvaluationDataError


def write_pool(folder, vectors, rows, ends=()):
    """Embeddings in parts that end at some of the places; rows without a vector are NaN."""
    starts = [0, *ends, len(rows)]
    for number, (start, stop) in enumerate(pairwise(starts)):
        part = folder / f"part-{number:05d}"
        part.mkdir()
        save_part(part, rows[start:stop], vectors[start:stop], {})
    return Embeddings.load(folder)


def naive(test, pool, subset):
    """Best cosine and row, one pair at a time, in float64 over the stored numbers."""

    def stored(vector):
        length = np.linalg.norm(vector.astype(np.float64))
        return (vector / length).astype(np.float32).astype(np.float16).astype(np.float64)

    found = []
    for vector in test:
        own, best, at = stored(vector), -np.inf, -1
        for row in pool.rows:
            if subset[row]:
                other = pool.gather(np.array([row]))[0].astype(np.float64)
                cosine = own @ other / (np.linalg.norm(own) * np.linalg.norm(other))
                if cosine > best + 1e-12:
                    best, at = cosine, int(row)
        found.append((best, at))
    return found


@pytest.fixture
def world(tmp_path):
    """60 pool rows, of which 6 have no vector; 25 test pictures, 4 of them copies or nearly."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 12)).astype(np.float32)
    vectors[[5, 17, 18, 40, 41, 59]] = np.nan
    vectors[30] = vectors[20]  # a tie, for whatever is near both
    test = generator.normal(size=(25, 12)).astype(np.float32)
    test[3] = vectors[7]
    test[8] = 3 * vectors[55]
    test[9] = vectors[20] + 0.01 * generator.normal(size=12)
    test[10] = vectors[2]
    pool = write_pool(tmp_path, vectors, np.arange(60), ends=(23, 47))
    subset = np.ones(60, bool)
    subset[[2, 4, 40]] = False
    return pool, test, subset


@pytest.mark.parametrize(("test_block", "pool_block"), [(4_096, 16_384), (7, 5), (1, 1)])
def test_the_nearest_training_pictures_are_those_of_a_plain_loop(world, test_block, pool_block, monkeypatch):
    monkeypatch.setattr(contamination, "TEST_BLOCK", test_block)
    monkeypatch.setattr(contamination, "POOL_BLOCK", pool_block)
    pool, test, subset = world
    found = find_matches(test, pool, subset)
    expected = naive(test, pool, subset)
    assert found.row.tolist() == [row for _, row in expected]
    np.testing.assert_allclose(found.similarity, [best for best, _ in expected], atol=1e-12)
    assert (found.num_compared, found.num_without) == (60 - 6 - 2, 5)


def test_copies_have_cosine_one_and_near_ones_are_flagged_by_dedups_rule(world):
    pool, test, subset = world
    found = find_matches(test, pool, subset)
    assert found.row[[3, 8, 9]].tolist() == [7, 55, 20]
    assert found.similarity[[3, 8]].tolist() == [1, 1]
    assert np.flatnonzero(found.flags(1e-9)).tolist() == [3, 8]
    assert np.flatnonzero(found.flags(0.05)).tolist() == [3, 8, 9]
    edge = found.similarity[9]
    assert not found.flags(float(1 - edge) - 1e-9)[9]
    assert found.flags(float(1 - edge) + 1e-9)[9]
    # The twin of picture 10 was not trained on.
    assert found.row[10] != 2
    with pytest.raises(ConfigError, match="epsilon"):
        found.flags(0.0)


def test_a_subset_without_a_vector_has_no_match(world):
    pool, test, _ = world
    subset = np.zeros(60, bool)
    subset[[5, 59]] = True
    found = find_matches(test, pool, subset)
    assert not found.flags(1.0).any()
    assert set(found.row) == {-1}
    assert (found.num_compared, found.num_without) == (0, 2)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda test: test[:, :7], r"vectors have width 7, the pool's 12"),
        (lambda test: np.where(np.arange(25)[:, None] == 4, 0, test), r"1 of 25 .* is picture 4"),
        (lambda test: np.where(np.arange(25)[:, None] > 22, np.nan, test), r"2 of 25 .* picture 23"),
    ],
)
def test_vectors_that_cannot_be_compared_are_told(world, change, error):
    pool, test, subset = world
    with pytest.raises(EvaluationDataError, match=error):
        find_matches(change(test).astype(np.float32), pool, subset)


KEEP = np.random.default_rng(1).random(40) < 0.6


def once(outcomes_of, metric, outcomes):
    return float(outcomes_of(outcomes, metric, np.ones((1, int(KEEP.sum())), np.float32))[0])


def classified(generator):
    return zero_shot.outcomes(generator.normal(size=(40, 7)), generator.integers(4, size=40))


def test_classification_without_some_pictures_is_that_of_the_others():
    outcomes = classified(np.random.default_rng(2))
    rest = only(Classification, outcomes, KEEP)
    expected = zero_shot.metrics({name: values[KEEP] for name, values in outcomes.items()}, 7)
    for metric, value in expected.items():
        assert once(zero_shot.on_draws, metric, rest) == pytest.approx(value)


def test_retrieval_without_some_pictures_asks_less_and_seeks_among_all():
    generator = np.random.default_rng(3)
    owner = np.sort(np.r_[np.arange(40), generator.integers(40, size=30)])
    outcomes = {
        "text_rank": generator.integers(3, size=40),
        "image_rank": generator.integers(3, size=70),
        "caption_picture": owner,
    }
    text = [outcomes["text_rank"][i] < 1 for i in range(40) if KEEP[i]]
    image = [outcomes["image_rank"][c] < 1 for c in range(70) if KEEP[owner[c]]]
    rest = only(Retrieval, outcomes, KEEP)
    assert once(retrieval.on_draws, "text_retrieval_recall@1", rest) == pytest.approx(np.mean(text))
    assert once(retrieval.on_draws, "image_retrieval_recall@1", rest) == pytest.approx(np.mean(image))
    assert once(retrieval.on_draws, "mean_recall@1", rest) == pytest.approx((np.mean(text) + np.mean(image)) / 2)
    # Every caption still belongs to its picture, so resamples draw both.
    kept = np.flatnonzero(KEEP)
    assert kept[rest["caption_picture"]].tolist() == [o for o in owner if KEEP[o]]


def test_groups_and_instances_without_some_samples_are_those_of_the_others():
    generator = np.random.default_rng(4)
    region = generator.integers(3, size=40)
    outcomes = classified(generator) | {"region": region, "is_corrected": np.array(True)}
    worst = groups.Measure("acc", ("region",), lambda o: o["rank"] < 1, "acc_worst_region")
    hits = outcomes["rank"] < 1
    expected = min(hits[KEEP & (region == r)].mean() for r in range(3))
    rest = only(FMoW, outcomes, KEEP)
    on_draws = lambda o, metric, drawn: groups.on_draws(worst, o, metric, drawn)  # noqa: E731
    assert once(on_draws, "acc_worst_region", rest) == pytest.approx(expected)
    scores, sizes = generator.random(40), generator.choice([5, 10, 12], size=40)
    rest = only(Winogavil, winogavil.outcomes(scores, sizes, np.arange(40)), KEEP)
    assert once(winogavil.on_draws, "jaccard_score_10-12", rest) == pytest.approx(
        scores[KEEP & (sizes >= 10)].mean()
    )


def test_outcomes_of_unknown_shape_are_refused():
    with pytest.raises(ValueError, match=r"outcomes\['odd'\] has 41 rows for 40 samples"):
        only(Classification, {"odd": np.zeros(41)}, KEEP)


def test_a_sample_of_several_pictures_is_flagged_by_any_of_them():
    pictures = [(0, 2), (0, 1, 3), (1,), (3,)]
    instances = tuple(Instance("cue", rows, (True,) * len(rows)) for rows in pictures)
    scorer = Winogavil(EvaluationSet(Path(), (), (), instances=instances))
    flagged = np.array([row == 1 for row in scorer.rows])
    assert scorer.flag_samples(flagged).tolist() == [False, True, True, False]


def result(outcomes, task="mnist"):
    values = zero_shot.metrics(outcomes, 7)
    return Result(
        task=task, protocol="corrected", metrics=values | {"acc_region:1": 0.3, "count_x": 4.0},
        intervals=dict.fromkeys(values, (0.1, 0.2)), num_samples=40, limit=None, checkpoint="c",
        model="m", samples_seen=None, precision="fp32", versions={}, set_digest="d", seed=0,
        outcomes=outcomes,
    )  # fmt: skip


def test_metrics_with_and_without_near_copies_stand_in_one_table():
    outcomes = classified(np.random.default_rng(5))
    found = with_and_without(result(outcomes), ~KEEP)
    assert [one.metric for one in found] == ["acc1", "acc5", "mean_per_class_recall"]
    accuracy = found[0]
    clean = (outcomes["rank"][KEEP] < 1).mean()
    assert accuracy.every == (outcomes["rank"] < 1).mean()
    assert accuracy.every_interval == (0.1, 0.2)
    assert accuracy.clean == pytest.approx(clean)
    low, high = accuracy.clean_interval
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(clean * (1 - clean) / KEEP.sum()), rel=0.25)
    flagged = int((~KEEP).sum())
    (row,) = table_rows(found)
    assert dict(zip(HEADING, row, strict=True)) == {
        "task": "MNIST",
        "metric": "acc1",
        "samples": "40",
        "near copies": f"{flagged} ({flagged / 40:.1%})",
        "all": f"{100 * accuracy.every:.1f} ±5.0",
        "without them": f"{100 * clean:.1f} ±{50 * (high - low):.1f}",
        "change": f"{100 * (clean - accuracy.every):+.1f}",
    }


def test_a_set_that_is_all_copies_has_no_clean_value():
    outcomes = classified(np.random.default_rng(6))
    found = with_and_without(result(outcomes), np.ones(40, bool))
    assert found[0].clean is None
    assert table_rows(found)[0][-2:] == ["-", "-"]
    untouched = with_and_without(result(outcomes), np.zeros(40, bool))
    assert untouched[0].clean == untouched[0].every


def test_flags_of_other_samples_are_refused():
    outcomes = classified(np.random.default_rng(7))
    with pytest.raises(EvaluationDataError, match="mnist has 40 samples, 39 flags and 3 arrays"):
        with_and_without(result(outcomes), np.zeros(39, bool))
    with pytest.raises(EvaluationDataError, match="40 flags and 0 arrays of outcomes"):
        with_and_without(Result(**(vars(result(outcomes)) | {"outcomes": {}})), np.zeros(40, bool))
