import io
import zlib

import numpy as np
import pytest
from miniature import write_set

from dbp.errors import ConfigError
from evaluation.kinds import fairness
from evaluation.sets.tar_index import EvaluationDataError

FACES = fairness.Faces
COUNTS = {"race": 7, "gender": 2, "age": 9, "toxic": 21}
TEMPLATES = [f"{question}:{text}" for question in COUNTS for text in ("a {c}.", " the {c}")]
NUM = 300


def vector(text):
    values = np.random.default_rng(zlib.crc32(text.encode())).normal(size=12)
    return (values / np.linalg.norm(values)).astype(np.float32)


def encode(texts):
    return np.stack([vector(text) for text in texts])


def names():
    # Mixed, as the order of the questions in a file means nothing.
    lines = [f"{question}:{question} no {i}" for question, n in COUNTS.items() for i in range(n)]
    return [*lines[5:], *lines[:5]] if lines[4].startswith("race") else lines


def made_up(seed=0):
    """Metadata in which no one has race 2, and one alone has race 6."""
    generator = np.random.default_rng(seed)
    race = generator.integers(5, size=NUM)
    race[race == 2] = 1
    race[NUM // 2] = 6
    age, gender = generator.integers(9, size=NUM), generator.integers(2, size=NUM)
    return np.stack([age, gender, race, race != 1], axis=1)


def write(folder, table, lines=None, templates=TEMPLATES):
    samples = []
    for row in table:
        file = io.BytesIO()
        np.save(file, row)
        samples.append({"png": b"never decoded", "npy": file.getvalue()})
    write_set(folder, samples, class_names=lines or names(), templates=templates)
    return folder


def pictures(table, seed=0):
    """Vectors that know a little of gender and age."""
    towards = np.stack([vector(f"a gender no {gender}.") + vector(f"a age no {age}.") for age, gender, *_ in table])
    features = towards + np.random.default_rng(seed).normal(size=towards.shape) * 0.4
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def answers(features):
    """The best answer of each question, one picture and one name after the other."""
    order = {question: [] for question in COUNTS}
    for line in names():
        order[line.split(":", 1)[0]].append(line.split(":", 1)[1])
    best = {}
    for question, texts in order.items():
        classifier = []
        for name in texts:
            mean = (vector(f"a {name}.") + vector(f" the {name}")) / 2
            classifier.append(mean / np.linalg.norm(mean))
        best[question] = np.array([np.argmax([picture @ c for c in classifier]) for picture in features])
    return best


def expected_metrics(best, table, protocol):
    """DataComp's six tables of a face set, one group after the other."""
    age, gender, race, binary = table.T
    expected = {}

    def group(name, hits, groups, worst):
        expected[f"{name}_avg"] = np.mean(hits)
        shares = []
        for group_name, inside in groups:
            found = [hit for hit, is_in in zip(hits, inside, strict=True) if is_in]
            expected[f"{name}_{group_name}"] = np.mean(found) if found else None
            expected[f"count_{group_name}"] = len(found)
            shares += [np.mean(found)] if found else []
        expected[f"{name}_wg"] = worst(shares)

    of_binary = [(f"race_binary:{i}", binary == i) for i in range(binary.max() + 1)]
    of_race = [(f"race:{i}", race == i) for i in range(race.max() + 1)]
    of_both = [
        (f"race:{i}_gender:{j}", (race == i) & (gender == j))
        for i in range(race.max() + 1)
        for j in range(gender.max() + 1)
    ]
    group("acc_race", (best["race"] != 1).astype(int) == binary, of_binary, min)
    group("acc_gender", best["gender"] == gender, of_binary, min)
    group("acc_age", best["age"] == age, of_binary, min)
    group("acc_gender_x", best["gender"] == gender, of_both, min)
    worst = max if protocol == "corrected" else min
    group("toxicity_crime", np.isin(best["toxic"], [18, 19, 20]), of_race, worst)
    group("toxicity_nonhuman", np.isin(best["toxic"], [14, 15, 16, 17]), of_race, worst)
    return expected


@pytest.fixture
def table():
    return made_up()


@pytest.mark.parametrize("protocol", ["corrected", "datacomp"])
def test_every_metric_equals_a_plain_computation(protocol, tmp_path, table):
    scorer = FACES(FACES.open(write(tmp_path, table)))
    found = scorer.score(pictures(table), encode, protocol)
    expected = expected_metrics(answers(pictures(table)), table, protocol)
    assert list(found.metrics) == list(expected)
    for name, value in expected.items():
        if value is None:
            assert found.metrics[name] is None, name
        else:
            assert found.metrics[name] == pytest.approx(value, abs=1e-12), name
    assert found.metrics["acc_gender_x_race:6_gender:0"] in (None, 0, 1)
    assert found.metrics["toxicity_crime_race:2"] is None
    assert found.metrics["count_race:2"] == 0
    assert 0.05 < (found.metrics["toxicity_crime_avg"] or 0) < 0.5
    assert all(len(values) == NUM for name, values in found.outcomes.items() if values.ndim)


def test_the_worst_group_of_a_harm_is_the_highest_rate_only_when_corrected(tmp_path, table):
    scorer = FACES(FACES.open(write(tmp_path, table)))
    corrected, datacomp = [
        scorer.score(pictures(table), encode, protocol).metrics for protocol in ("corrected", "datacomp")
    ]
    differ = {name for name in corrected if corrected[name] != datacomp[name]}
    assert differ == {"toxicity_crime_wg", "toxicity_nonhuman_wg"}
    rates = [corrected[f"toxicity_crime_race:{i}"] or 0.0 for i in (0, 1, 3, 4, 6)]
    assert corrected["toxicity_crime_wg"] == max(rates) > min(rates)
    assert datacomp["toxicity_crime_wg"] == min(rates)


@pytest.mark.parametrize("protocol", ["corrected", "datacomp"])
def test_a_metric_on_draws_is_the_metric_of_the_faces_that_are_drawn(protocol, tmp_path, table):
    scorer = FACES(FACES.open(write(tmp_path, table)))
    found = scorer.score(pictures(table), encode, protocol)
    best = answers(pictures(table))
    generator = np.random.default_rng(1)
    for rows in (np.arange(NUM), generator.integers(NUM, size=NUM)):
        drawn = np.bincount(rows, minlength=NUM)[None].astype(np.float32)
        of_drawn = {question: found[rows] for question, found in best.items()}
        expected = expected_metrics(of_drawn, table[rows], protocol)
        for name, value in expected.items():
            if value is not None and not name.startswith("count_"):
                values = FACES.on_draws(found.outcomes, name, drawn)
                assert values == pytest.approx([value], abs=1e-12), name


@pytest.mark.parametrize("metric", ["toxicity_crime_wg", "acc_gender_x_wg", "acc_race_avg"])
def test_replicates_spread_as_a_loop_over_resamples_does(metric, tmp_path, table):
    table[NUM // 2, 2] = 4
    scorer = FACES(FACES.open(write(tmp_path, table)))
    outcomes = scorer.score(pictures(table), encode, "corrected").outcomes
    replicates = FACES.replicates(outcomes, metric, num_resamples=4_000, generator=np.random.default_rng(3))
    best = answers(pictures(table))
    generator = np.random.default_rng(2)
    loop = []
    for _ in range(300):
        rows = generator.integers(NUM, size=NUM)
        of_drawn = {question: found[rows] for question, found in best.items()}
        loop.append(expected_metrics(of_drawn, table[rows], "corrected")[metric])
    # 300 resamples know their mean to 0.06 of a spread, and the spread to 4 %.
    assert np.std(loop) > 0.01
    assert replicates.mean() == pytest.approx(np.mean(loop), abs=0.25 * float(np.std(loop)))
    assert replicates.std() == pytest.approx(np.std(loop), rel=0.2)


def test_it_names_the_texts_that_it_asks_for(tmp_path, table):
    scorer = FACES(FACES.open(write(tmp_path, table)), limit=20, seed=4, max_templates=1)
    asked = []

    def listen(texts):
        asked.extend(texts)
        return encode(texts)

    found = scorer.score(pictures(table)[scorer.rows], listen, "corrected")
    assert sorted(asked) == sorted(scorer.texts("corrected"))
    assert len(asked) == sum(COUNTS.values())
    assert "a toxic no 20." in asked
    np.testing.assert_array_equal(found.outcomes["race"], table[scorer.rows, 2])
    with pytest.raises(ConfigError, match="datacmp is unknown"):
        scorer.score(pictures(table)[scorer.rows], encode, "datacmp")


def test_a_blank_line_belongs_to_no_question(tmp_path, table):
    lines = [*names()[:3], "", *names()[3:]]
    scorer = FACES(FACES.open(write(tmp_path, table, lines)))
    assert len(scorer.texts("corrected")) == 2 * sum(COUNTS.values())


@pytest.mark.parametrize(
    ("lines", "templates", "error"),
    [
        ([*names(), "weight:heavy"], TEMPLATES, r"classnames\.txt has the line 'weight:heavy'"),
        ([*names(), "a face"], TEMPLATES, r"begins with the question .* race:, gender:, age:, "),
        (names()[1:], TEMPLATES, r"classnames\.txt has \d+ lines for \w+:, and must have \d+:"),
        ([*names(), "age:old"], TEMPLATES, r"has 10 lines for age:, and must have 9"),
        (names(), TEMPLATES[:-2], r"templates\.txt has 0 lines for toxic:, and must have at least"),
    ],
)
def test_lines_that_fit_no_question_are_refused(lines, templates, error, tmp_path, table):
    folder = write(tmp_path, table[:5], lines, templates)
    with pytest.raises(EvaluationDataError, match=error):
        FACES(FACES.open(folder))


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        (1, 2, r"1 of 300 values of gender .* outside 0\.\.1; the first is 2 at .*s0000003\.png"),
        (3, 2, r"values of race_binary .* outside 0\.\.1"),
        (2, -1, r"race of .*s0000003\.png is -1"),
    ],
)
def test_values_outside_the_answers_are_refused(column, value, error, tmp_path, table):
    table[3, column] = value
    with pytest.raises(EvaluationDataError, match=error):
        FACES(FACES.open(write(tmp_path, table)))


def test_an_age_that_is_no_answer_is_never_right(tmp_path, table):
    features = pictures(table)
    table[:, 0] = answers(features)["age"]
    table[3, 0] = 35
    scorer = FACES(FACES.open(write(tmp_path, table)))
    found = scorer.score(features, encode, "corrected")
    assert found.metrics["acc_age_avg"] == (NUM - 1) / NUM


def test_another_number_of_columns_is_refused(tmp_path, table):
    folder = write(tmp_path, table[:, :3])
    with pytest.raises(EvaluationDataError, match=r"hold 4 numbers: age, gender, race, race_bin"):
        FACES(FACES.open(folder))
