import io
import zlib

import numpy as np
import pytest
import torch
from miniature import write_set
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from evaluation.kinds import wilds
from evaluation.kinds.registry import KINDS
from evaluation.metrics import groups, zero_shot
from evaluation.sets.tar_index import EvaluationDataError

PROTOCOLS = ("corrected", "datacomp")
FIELDS = {
    "iwildcam": ["location", "sequence", "year", "month", "day", "hour", "minute", "second", "y"],
    "camelyon17": ["hospital", "slide", "y"],
    "fmow": ["region", "year", "y"],
    "dollar_street": ["income_ds", "income_meta", "region"],
    "geode": ["region", "country"],
}
NUM_NAMES = {"iwildcam": 30, "camelyon17": 2, "fmow": 12, "dollar_street": 11, "geode": 8}


def vector(text):
    values = np.random.default_rng(zlib.crc32(text.encode())).normal(size=12)
    return (values / np.linalg.norm(values)).astype(np.float32)


def encode(texts):
    return np.stack([vector(text) for text in texts])


def npy(values):
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def names_of(kind):
    names = [f"thing {i}" for i in range(NUM_NAMES[kind])]
    # Twin names, as in iWildCam: the later one can never win.
    return [*names[:-1], names[3]] if len(names) > 4 else names


def made_up(kind, num_samples=240, seed=0, num_columns=None):
    """Labels without one class, and metadata with an empty group and a group of one sample."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(NUM_NAMES[kind], size=num_samples)
    if NUM_NAMES[kind] > 2:
        labels[labels == 1] = 0
    columns = {field: generator.integers(5, size=num_samples) for field in FIELDS[kind]}
    for values in columns.values():
        values[values == 2] = 3
        values[num_samples // 2] = 5
    columns["y"] = labels
    table = np.stack([columns[field] for field in FIELDS[kind]], axis=1)
    if num_columns is not None:
        table = np.pad(table, ((0, 0), (0, num_columns - table.shape[1])))
    return labels, table


def write(folder, kind, labels, table):
    samples = [
        {"png": b"never decoded", "cls": str(label).encode(), "npy": npy(row)}
        for label, row in zip(labels, table, strict=True)
    ]
    write_set(folder, samples, class_names=names_of(kind), templates=["a {c}.", "{c}!"])
    return folder


def features_of(kind, labels):
    """Pictures near their class, more or less. Of FMoW, the one that is alone in its group is wrong."""
    names = names_of(kind)
    near = np.array(labels)
    alone = len(labels) // 2
    near[alone] += kind == "fmow"
    towards = np.stack([vector(f"a {names[k]}.") + vector(f"{names[k]}!") for k in near])
    noise = np.random.default_rng(0).normal(size=towards.shape)
    noise[alone] = 0
    features = (towards + noise).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def scored(folder, kind, labels, protocol):
    scorer = KINDS[kind](KINDS[kind].open(folder))
    return scorer.score(features_of(kind, labels), encode, protocol)


def in_groups(name, hits, columns, worst, *, left_out=()):
    """WILDS' definition, one group after the other; the fields' values in the order of the names."""
    expected = {f"{name}_avg": np.mean(hits)}
    shares = []
    for value in range(max(columns[1]) + 1):
        inside = [hit for hit, other in zip(hits, columns[1], strict=True) if other == value]
        share = sum(inside) / len(inside) if inside else None
        expected[f"{name}_{columns[0]}:{value}"] = share
        expected[f"count_{columns[0]}:{value}"] = len(inside)
        if inside and value not in left_out:
            shares.append(share)
    return expected | {worst: min(shares)}


def expected_metrics(kind, label, predicted, top5, table, protocol):
    """What DataComp's evaluators compute, beside accuracy and recall of the classes."""
    column = dict(zip(FIELDS[kind], table.T, strict=False))
    right = predicted == label
    if kind == "iwildcam":
        macro = {"average": "macro", "labels": np.unique(label)}
        return {
            "acc_avg": right.mean(),
            "recall-macro_all": recall_score(label, predicted, **macro),
            "F1-macro_all": f1_score(label, predicted, **macro),
        }
    if kind == "camelyon17":
        return in_groups("acc", right, ("slide", column["slide"]), "acc_wg")
    if kind == "dollar_street":
        in_top5 = [k in top for k, top in zip(label, top5, strict=True)]
        income = ("income_ds", column["income_ds"])
        return in_groups("acc_top5", in_top5, income, "acc_top5_wg")
    if kind == "geode":
        return in_groups("acc", right, ("region", column["region"]), "acc_wg")
    left_out = (5,) if protocol == "corrected" else ()
    region = ("region", column["region"])
    return in_groups("acc", right, ("year", column["year"]), "acc_worst_year") | in_groups(
        "acc", right, region, "acc_worst_region", left_out=left_out
    )


def expected_of(kind, outcomes, labels, table, protocol):
    names = names_of(kind)
    classifier = zero_shot.build_classifier(names, ["a {c}.", "{c}!"], encode)
    logits = zero_shot.compute_logits(features_of(kind, labels), classifier)
    top5 = torch.from_numpy(logits).topk(min(5, len(names)), 1)[1].numpy()
    if protocol == "corrected":
        top5 = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    predicted = logits.argmax(axis=1)
    acc1 = (top5[:, 0] == labels).mean()
    base = {
        "acc1": acc1,
        "acc5": (top5 == labels[:, None]).any(axis=1).mean() if len(names) > 4 else None,
        "mean_per_class_recall": balanced_accuracy_score(labels, predicted),
    }
    return base | expected_metrics(kind, labels, predicted, top5, table, protocol)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", FIELDS)
def test_every_metric_equals_a_plain_computation(kind, protocol, tmp_path):
    labels, table = made_up(kind)
    found = scored(write(tmp_path, kind, labels, table), kind, labels, protocol)
    expected = expected_of(kind, found.outcomes, labels, table, protocol)
    assert list(found.metrics) == list(expected)
    for name, value in expected.items():
        if value is None:
            assert found.metrics[name] is None, name
        else:
            assert found.metrics[name] == pytest.approx(value, abs=1e-12), name
    assert 0.2 < (found.metrics["acc1"] or 0) < 0.9


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", FIELDS)
def test_a_metric_on_draws_is_the_metric_of_the_samples_that_are_drawn(kind, protocol, tmp_path):
    labels, table = made_up(kind)
    found = scored(write(tmp_path, kind, labels, table), kind, labels, protocol)
    generator = np.random.default_rng(1)
    n = len(labels)
    few_classes = generator.choice(np.flatnonzero(labels < 5), n)
    taken = [np.arange(n), *generator.integers(n, size=(2, n)), few_classes, np.full(n, 9)]
    drawn = np.stack([np.bincount(rows, minlength=n) for rows in taken]).astype(np.float32)
    rank, predicted = found.outcomes["rank"], found.outcomes["predicted"]
    for rows, draw in zip(taken, drawn, strict=True):
        # Five places that hold the label where its rank is below five.
        top5 = np.where(rank < 5, labels, -1)[rows, None]
        expected = expected_metrics(kind, labels[rows], predicted[rows], top5, table[rows], protocol)
        for name, value in expected.items():
            if name.startswith("count_") or value is None:
                continue
            values = KINDS[kind].on_draws(found.outcomes, name, draw[None])
            assert values.shape == (1,)
            assert values[0] == pytest.approx(value, abs=1e-7), name
    alone = KINDS[kind].on_draws(found.outcomes, "mean_per_class_recall", drawn[:1])
    assert alone[0] == pytest.approx(found.metrics["mean_per_class_recall"], abs=1e-7)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("iwildcam", "F1-macro_all"),
        ("camelyon17", "acc_wg"),
        ("camelyon17", "acc_avg"),
        ("fmow", "acc_worst_region"),
        ("fmow", "acc_region:3"),
        ("dollar_street", "acc_top5_wg"),
    ],
)
def test_replicates_spread_as_a_loop_over_resamples_does(kind, metric, tmp_path):
    labels, table = made_up(kind, num_samples=150)
    outcomes = scored(write(tmp_path, kind, labels, table), kind, labels, "corrected").outcomes
    replicates, again = [
        KINDS[kind].replicates(outcomes, metric, num_resamples=4_000, generator=np.random.default_rng(3))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(replicates, again)
    generator = np.random.default_rng(2)
    loop = []
    for _ in range(300):
        rows = generator.integers(150, size=150)
        top5 = np.where(outcomes["rank"] < 5, labels, -1)[rows, None]
        predicted = outcomes["predicted"][rows]
        values = expected_metrics(kind, labels[rows], predicted, top5, table[rows], "corrected")
        loop.append(values[metric])
    # 300 resamples know their mean to 0.06 of a spread, and the spread to 4 %.
    assert np.std(loop) > 0.01
    assert replicates.mean() == pytest.approx(np.mean(loop), abs=0.25 * float(np.std(loop)))
    assert replicates.std() == pytest.approx(np.std(loop), rel=0.2)


def test_the_other_metrics_of_iwildcam_resample_as_what_they_equal(tmp_path):
    labels, table = made_up("iwildcam")
    found = scored(write(tmp_path, "iwildcam", labels, table), "iwildcam", labels, "datacomp")
    values = {
        metric: wilds.IWildCam.replicates(
            found.outcomes, metric, num_resamples=4_000, generator=np.random.default_rng(0)
        )
        for metric in ("acc_avg", "recall-macro_all", "mean_per_class_recall")
    }
    np.testing.assert_array_equal(values["recall-macro_all"], values["mean_per_class_recall"])
    share = found.metrics["acc_avg"] or 0
    assert values["acc_avg"].mean() == pytest.approx(share, abs=0.003)
    assert values["acc_avg"].std() == pytest.approx((share * (1 - share) / 240) ** 0.5, rel=0.05)


def in_regions(is_corrected, regions, num_right):
    """Outcomes of FMoW with some right answers in each region of a size."""
    region = np.repeat(np.arange(len(regions)), regions)
    right = np.concatenate([np.arange(size) < good for size, good in zip(regions, num_right, strict=True)])
    return {
        "label": np.ones(len(region), dtype=np.int64),
        "predicted": right.astype(np.int64),
        "region": region,
        "year": np.zeros(len(region), dtype=np.int64),
        "is_corrected": np.array(is_corrected),
    }


def test_the_region_other_is_the_worst_in_datacomp_and_left_out_when_corrected():
    sizes, right = [20, 40, 0, 20, 20, 4], [17, 36, 0, 18, 20, 1]
    region = wilds.FMoW.measures[1]
    datacomp = groups.metrics(region, in_regions(False, sizes, right))
    corrected = groups.metrics(region, in_regions(True, sizes, right))
    assert (datacomp["acc_worst_region"], corrected["acc_worst_region"]) == (0.25, 0.85)
    assert datacomp["acc_region:5"] == corrected["acc_region:5"] == 0.25
    assert (corrected["acc_region:2"], corrected["count_region:2"]) == (None, 0)
    assert corrected["count_region:5"] == 4
    # Without the region, both agree.
    fewer = [groups.metrics(region, in_regions(c, sizes[:5], right[:5])) for c in (True, False)]
    assert fewer[0] == fewer[1]


def test_where_only_the_region_other_is_left_the_corrected_worst_has_no_value():
    region = wilds.FMoW.measures[1]
    metrics = groups.metrics(region, in_regions(True, [0, 0, 0, 0, 0, 4], [0, 0, 0, 0, 0, 3]))
    assert (metrics["acc_worst_region"], metrics["acc_region:5"]) == (None, 0.75)


def test_replicates_of_a_small_group_are_of_resamples_that_have_it():
    outcomes = in_regions(True, [50, 2], [20, 1])
    region = wilds.FMoW.measures[1]
    values = groups.replicates(
        region, outcomes, "acc_region:1", num_resamples=6_000, generator=np.random.default_rng(0)
    )
    # Two samples drawn from 52, given that one is: mostly one, or both alike.
    assert set(values) >= {0.0, 0.5, 1.0}
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    alone = np.zeros((1, 52), np.float32)
    alone[0, 0] = 52
    assert np.isnan(groups.on_draws(region, outcomes, "acc_region:1", alone)[0])


def test_groups_count_the_first_field_fastest_and_are_named_last_field_first():
    group, names = groups.number_groups({"gender": np.array([0, 1, 1, 0]), "race": np.array([2, 0, 1, 1])})
    assert group.tolist() == [4, 1, 3, 2]
    assert [names[i] for i in group] == ["race:2_gender:0", "race:0_gender:1", "race:1_gender:1", "race:1_gender:0"]
    assert len(names) == 6


@pytest.mark.parametrize(
    ("kind", "num_columns", "is_fine"),
    [
        ("iwildcam", 9, True),
        ("iwildcam", 10, True),
        ("iwildcam", 11, False),
        ("camelyon17", 4, True),
        ("fmow", 4, True),
        ("fmow", 5, False),
        ("dollar_street", 4, False),
        ("geode", 3, False),
    ],
)
def test_metadata_of_another_number_of_columns_is_refused(kind, num_columns, is_fine, tmp_path):
    labels, table = made_up(kind, num_samples=12, num_columns=num_columns)
    evaluation_set = KINDS[kind].open(write(tmp_path, kind, labels, table))
    if is_fine:
        KINDS[kind](evaluation_set)
        return
    wanted = r"0\.tar: s0000000\.png has shape \(\d+,\); it must hold .* numbers: "
    with pytest.raises(EvaluationDataError, match=wanted + ", ".join(FIELDS[kind])):
        KINDS[kind](evaluation_set)


@pytest.mark.parametrize("kind", ["iwildcam", "camelyon17", "fmow"])
def test_a_label_that_disagrees_with_the_metadata_is_refused(kind, tmp_path):
    labels, table = made_up(kind, num_samples=12)
    y = FIELDS[kind].index("y")
    labels[5], table[5, y] = 1, 0
    evaluation_set = KINDS[kind].open(write(tmp_path, kind, labels, table))
    error = r"1 of 12 labels .* disagree with y .* first is 1 in \.cls and 0 in \.npy of .*s0000005"
    with pytest.raises(EvaluationDataError, match=error):
        KINDS[kind](evaluation_set)


def test_metadata_follow_the_choice_of_samples(tmp_path):
    labels, table = made_up("geode")
    folder = write(tmp_path, "geode", labels, table)
    scorer = KINDS["geode"](KINDS["geode"].open(folder), limit=40, seed=1)
    found = scorer.score(features_of("geode", labels)[scorer.rows], encode, "corrected")
    np.testing.assert_array_equal(found.outcomes["region"], table[scorer.rows, 0])
    np.testing.assert_array_equal(found.outcomes["label"], labels[scorer.rows])


def test_accuracy_at_five_of_fewer_than_five_names_is_refused(tmp_path):
    labels, table = made_up("dollar_street", num_samples=6)
    folder = write(tmp_path, "dollar_street", labels % 4, table)
    (folder / "classnames.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(EvaluationDataError, match=r"names 4 classes.*accuracy at 5"):
        KINDS["dollar_street"](KINDS["dollar_street"].open(folder))
