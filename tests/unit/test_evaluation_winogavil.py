import numpy as np
import pytest
from miniature import noise_png, write_set
from sklearn.metrics import jaccard_score

from dbp.errors import ConfigError
from evaluation.kinds import winogavil
from evaluation.kinds.winogavil import METRICS, Winogavil, jaccard_scores, metrics, on_draws, prompt, replicates
from evaluation.sets.hub import open_winogavil

SIZES = (5, 6, 10, 12)


def naive_jaccard(similarity, truth, protocol):
    """The reference, written out: the K last of an ascending order, ties by place."""
    k = sum(truth)
    places = sorted(range(len(truth)), key=lambda i: (similarity[i], i))
    if protocol == "corrected":
        places = sorted(range(len(truth)), key=lambda i: (similarity[i], -i))
    taken = set(places[-k:])
    true = {i for i, is_true in enumerate(truth) if is_true}
    return len(taken & true) / len(taken | true)


def random_instances(seed, num_instances=60, num_values=6):
    """Few distinct similarities, so that ties are many."""
    generator = np.random.default_rng(seed)
    cases = []
    for _ in range(num_instances):
        size = int(generator.choice(SIZES))
        truth = generator.permutation(np.arange(size) < generator.integers(1, 5))
        cases.append((generator.integers(num_values, size=size) / 7, truth))
    similarity, truth = (np.concatenate(parts) for parts in zip(*cases, strict=True))
    return cases, similarity, truth, np.repeat(np.arange(num_instances), [len(t) for _, t in cases])


def random_outcomes(seed, num_instances=200):
    cases, similarity, truth, instance = random_instances(seed, num_instances)
    scores = jaccard_scores(similarity, truth, instance)
    return winogavil.outcomes(scores, np.array([len(t) for _, t in cases]), np.arange(len(cases)))


@pytest.mark.parametrize(
    ("cue", "text"), [("Eclipse", "An eclipse"), ("hour", "A hour"), ("usual", "An usual"), ("X-ray", "A x-ray")]
)
def test_the_article_goes_by_the_first_letter_and_the_cue_is_lower_case(cue, text):
    assert prompt(cue) == text


@pytest.mark.parametrize("protocol", ["corrected", "datacomp"])
@pytest.mark.parametrize("seed", range(3))
def test_jaccard_scores_equal_a_loop_over_instances_with_ties(protocol, seed):
    cases, similarity, truth, instance = random_instances(seed)
    naive = [naive_jaccard(s, t, protocol) for s, t in cases]
    np.testing.assert_allclose(jaccard_scores(similarity, truth, instance, protocol), naive, atol=0)


def test_without_ties_both_protocols_equal_scikit_learn_on_the_references_choice():
    generator = np.random.default_rng(3)
    cases, _, truth, instance = random_instances(3)
    similarity = generator.normal(size=len(truth))
    ends = np.cumsum([len(t) for _, t in cases])
    expected = []
    for end, (_, true) in zip(ends, cases, strict=True):
        values = similarity[end - len(true) : end]
        taken = np.isin(np.arange(len(true)), np.argsort(values)[-true.sum() :])
        expected.append(jaccard_score(true, taken))
    for protocol in ("corrected", "datacomp"):
        np.testing.assert_allclose(jaccard_scores(similarity, truth, instance, protocol), expected, atol=1e-15)


def test_an_instance_worked_by_hand():
    # Two of five are true; the best two are places 1 and 3, one of them true: 1 / (2 + 2 - 1).
    similarity = np.array([0.1, 0.9, 0.3, 0.8, 0.2])
    truth = np.array([False, True, True, False, False])
    assert jaccard_scores(similarity, truth, np.zeros(5, int)) == pytest.approx(1 / 3)


def test_among_equal_candidates_the_first_wins_and_under_datacomp_the_last():
    similarity, truth = np.array([0.5, 0.5, 0.1]), np.array([True, False, False])
    instance = np.zeros(3, int)
    assert jaccard_scores(similarity, truth, instance, "corrected") == 1.0
    assert jaccard_scores(similarity, truth, instance, "datacomp") == 0.0


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'datacomp'"):
        jaccard_scores(np.ones(1), np.ones(1, bool), np.zeros(1, int), "datacom")


def test_metrics_are_means_over_instances_by_their_number_of_candidates():
    outcomes = random_outcomes(5)
    by_size = {size: [] for size in SIZES}
    for score, size in zip(outcomes["jaccard"], outcomes["num_candidates"], strict=True):
        by_size[size].append(score)
    expected = {"avg_jaccard_score": np.mean(outcomes["jaccard"])}
    expected |= {f"jaccard_score_{size}": np.mean(by_size[size]) for size in SIZES}
    expected["jaccard_score_5-6"] = np.mean(by_size[5] + by_size[6])
    expected["jaccard_score_10-12"] = np.mean(by_size[10] + by_size[12])
    assert metrics(outcomes) == pytest.approx(expected, abs=1e-12)


def test_a_metric_without_an_instance_has_no_value():
    values = metrics(winogavil.outcomes(np.array([1.0]), np.array([6]), np.array([0])))
    assert values["jaccard_score_6"] == values["jaccard_score_5-6"] == 1.0
    assert [name for name, value in values.items() if value is None] == [
        "jaccard_score_5", "jaccard_score_10", "jaccard_score_12", "jaccard_score_10-12",
    ]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_replicates_spread_as_a_plain_bootstrap_over_instances(metric):
    outcomes = random_outcomes(1)
    generator = np.random.default_rng(0)
    fast = replicates(outcomes, metric, num_resamples=1_000, generator=generator)
    plain = []
    for _ in range(1_000):
        rows = generator.integers(200, size=200)
        plain.append(metrics({name: values[rows] for name, values in outcomes.items()})[metric])
    assert fast.mean() == pytest.approx(np.mean(plain), abs=0.005)
    assert fast.std() == pytest.approx(np.std(plain), rel=0.1)


@pytest.mark.parametrize("metric", METRICS)
def test_on_draws_takes_each_instance_as_often_as_it_is_drawn(metric):
    outcomes = random_outcomes(2)
    rows = np.random.default_rng(0).integers(200, size=(3, 200))
    drawn = np.stack([np.bincount(row, minlength=200) for row in rows]).astype(np.float32)
    expected = [metrics({k: v[row] for k, v in outcomes.items()})[metric] for row in rows]
    np.testing.assert_allclose(on_draws(outcomes, metric, drawn), expected, atol=1e-12)
    once = on_draws(outcomes, metric, np.ones((1, 200), np.float32))
    assert once[0] == pytest.approx(metrics(outcomes)[metric], abs=1e-12)


def test_a_draw_without_any_instance_of_a_metric_changes_nothing():
    outcomes = winogavil.outcomes(np.array([0.25, 1.0]), np.array([12, 5]), np.arange(2))
    drawn = np.array([[0.0, 2.0], [1.0, 1.0]], np.float32)
    np.testing.assert_array_equal(on_draws(outcomes, "jaccard_score_12", drawn), [0.25, 0.25])
    spread = replicates(outcomes, "jaccard_score_12", num_resamples=50, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(spread, np.full(50, 0.25))


@pytest.fixture
def opened(tmp_path):
    """Four pictures with keys s0000000 to s0000003; three instances."""
    generator = np.random.default_rng(0)
    write_set(tmp_path, [{"png": noise_png(generator, 4)} for _ in range(4)])
    names = [f"s{i:07d}" for i in range(4)]
    lines = ["candidates,cue,associations"]
    for order, cue, true in (((2, 0, 1), "Ant", (0,)), ((1, 2), "bee", (2,)), ((2, 1), "Ant", (1,))):
        candidates = "[" + ", ".join(f'""{names[i]}""' for i in order) + "]"
        associations = "[" + ", ".join(f'""{names[i]}""' for i in true) + "]"
        lines.append(f'"{candidates}",{cue},"{associations}"')
    (tmp_path / "instances.csv").write_text("\n".join(lines))
    return open_winogavil(tmp_path)


def test_pictures_are_asked_for_once_and_only_those_that_an_instance_needs(opened):
    scorer = Winogavil(opened)
    assert len(opened) == 4
    assert scorer.rows == [2, 0, 1]
    assert (scorer.num_samples, scorer.num_available) == (3, 3)
    assert scorer.texts("corrected") == ["An ant", "A bee", "An ant"]


def of_seed(opened, seed):
    return Winogavil(opened, limit=1, seed=seed).chosen


def test_a_limit_chooses_instances(opened):
    chosen = {tuple(of_seed(opened, seed)) for seed in range(20)}
    assert chosen == {(0,), (1,), (2,)}
    scorer = Winogavil(opened, limit=2, seed=0)
    assert (scorer.num_samples, scorer.num_available) == (2, 3)
    last = Winogavil(opened, limit=1, seed=next(n for n in range(20) if of_seed(opened, n) == [2]))
    scored = last.score(np.eye(2, dtype=np.float32), lambda texts: np.ones((1, 2)), "corrected")
    np.testing.assert_array_equal(scored.outcomes["instance"], [2])


def test_a_score_looks_up_vectors_by_picture_and_cue(opened):
    scorer = Winogavil(opened)
    vectors = {2: [1.0, 0.0], 0: [0.6, 0.8], 1: [0.0, 1.0]}
    cues = {"An ant": [0.0, 1.0], "A bee": [1.0, 0.0]}

    def encode(texts):
        return np.array([cues[text] for text in texts], np.float32)

    features = np.array([vectors[row] for row in scorer.rows], np.float32)
    scored = scorer.score(features, encode, "corrected")
    # ant: 1 is nearer than the true 0; bee: the true 2 is nearest; ant: the true 1 is nearest.
    np.testing.assert_allclose(scored.outcomes["jaccard"], [0.0, 1.0, 1.0])
    np.testing.assert_array_equal(scored.outcomes["instance"], [0, 1, 2])
    assert scored.metrics["avg_jaccard_score"] == pytest.approx(2 / 3)
