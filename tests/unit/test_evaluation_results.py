import json
from dataclasses import replace

import numpy as np
import pytest

from dbp.errors import WorldError
from evaluation.metrics import zero_shot
from evaluation.metrics.measures import metric_intervals
from evaluation.report.run_table import average, format_results, group_means
from evaluation.results import Failure, Result, load_results, outcomes_path, save_results
from evaluation.suites import groups
from evaluation.tasks import find_task


def make_result(key="mnist", hits=0.5, num_samples=400, seed=0, **changes):
    generator = np.random.default_rng(seed)
    labels = generator.integers(6, size=num_samples)
    logits = generator.normal(size=(num_samples, 6)).astype(np.float32)
    right = np.flatnonzero(generator.random(num_samples) < hits)
    logits[right, labels[right]] += 20
    outcomes = zero_shot.outcomes(logits, labels)
    metrics = zero_shot.metrics(outcomes, 6)
    values = {
        "task": key,
        "protocol": "corrected",
        "metrics": metrics,
        "intervals": metric_intervals(find_task(key), metrics, outcomes, seed=0),
        "num_samples": num_samples,
        "limit": None,
        "checkpoint": "ab" * 32,
        "model": "ViT-B-32",
        "samples_seen": 128,
        "precision": "fp32",
        "versions": {"torch": "2"},
        "set_digest": "cd" * 32,
        "seed": 0,
        "set_counts": {"samples": find_task(key).test_size},
        "outcomes": outcomes,
    }
    return Result(**(values | changes))


def test_a_result_comes_back_as_it_was_saved_with_its_outcomes(tmp_path):
    path = tmp_path / "run" / "results.jsonl"
    saved = [make_result(), make_result("vtab/dtd", seed=1)]
    save_results(path, saved)
    loaded = load_results(path)
    assert loaded == saved
    for one, two in zip(loaded, saved, strict=True):
        assert one.outcomes.keys() == two.outcomes.keys()
        for name in one.outcomes:
            np.testing.assert_array_equal(one.outcomes[name], two.outcomes[name])
    assert load_results(path, with_outcomes=False)[0].outcomes == {}


def test_nan_and_missing_values_are_written_as_null(tmp_path):
    path = tmp_path / "results.jsonl"
    result = make_result(metrics={"acc1": 0.25, "acc5": None, "worst": float("nan")})
    save_results(path, [result])
    text = path.read_text()

    def refuse(token):
        raise AssertionError(token)

    metrics = json.loads(text, parse_constant=refuse)["metrics"]
    assert metrics == {"acc1": 0.25, "acc5": None, "worst": None}
    assert "NaN" not in text


def test_saving_again_replaces_the_line_and_keeps_the_others(tmp_path):
    path = tmp_path / "results.jsonl"
    save_results(path, [make_result(), make_result(protocol="datacomp")])
    save_results(path, [make_result(hits=0.9)])
    loaded = load_results(path)
    assert [result.protocol for result in loaded] == ["corrected", "datacomp"]
    assert loaded[0].metrics == make_result(hits=0.9).metrics


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "ef" * 32},
        {"model": "other"},
        {"samples_seen": 256},
        {"task": "cifar10"},
        {"protocol": "datacomp"},
        {"precision": "bf16"},
        {"limit": 7},
    ],
)
def test_what_makes_another_measurement_changes_the_identity(change):
    assert make_result(**change).identity != make_result().identity


def test_versions_and_numbers_leave_the_identity_alone():
    assert make_result(versions={}, seed=4, metrics={}).identity == make_result().identity


def test_a_failed_save_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    save_results(path, [make_result()])
    before = path.read_bytes()

    def crash(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        save_results(path, [make_result("cifar10", outcomes={})])
    assert path.read_bytes() == before


def test_a_line_that_is_no_result_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    save_results(path, [make_result()])
    with path.open("a") as file:
        file.write('{"key": "mnist"}\n')
    with pytest.raises(WorldError, match=r"Line 2 of .*results.jsonl is not a result of ours"):
        load_results(path)
    with pytest.raises(WorldError, match="There is no results file"):
        load_results(tmp_path / "other.jsonl")


def test_outcomes_of_equal_tasks_do_not_overwrite_each_other(tmp_path):
    path = tmp_path / "results.jsonl"
    first, second = make_result("vtab/dtd"), make_result("vtab/dtd", checkpoint="00")
    assert outcomes_path(path, first) != outcomes_path(path, second)
    assert outcomes_path(path, first).parent == tmp_path / "results.outcomes"


def test_a_mean_is_plain_and_its_interval_that_of_independent_tasks():
    members = ["mnist", "cifar10", "stl10", "gtsrb"]
    results = [
        make_result(key, hits=0.2 * (i + 1), num_samples=300 + 100 * i, seed=i) for i, key in enumerate(members)
    ]
    mean = average(results, "four", members, num_resamples=8_000)
    shares = [result.metrics["acc1"] for result in results]
    assert mean.is_complete
    assert mean.value == pytest.approx(np.mean(shares), abs=1e-12)
    variances = [p * (1 - p) / (300 + 100 * i) for i, p in enumerate(shares)]
    error = np.sqrt(np.sum(variances)) / 4
    assert mean.interval == pytest.approx((mean.value - 1.96 * error, mean.value + 1.96 * error), abs=0.1 * error)


def test_a_mean_with_missing_members_names_them_and_is_not_complete():
    results = [make_result("vtab/dtd"), make_result("vtab/eurosat", seed=1)]
    [vtab, overall] = group_means(results)
    assert (vtab.group, overall.group) == ("VTAB", "Average")
    assert not vtab.is_complete
    assert set(vtab.missing) == set(groups()["VTAB"]) - {"vtab/dtd", "vtab/eurosat"}
    text = format_results(results)
    assert "VTAB (INCOMPLETE)" in text
    assert "2 of 13" in text
    assert "  missing: Caltech-101, CIFAR-100, CLEVR Counts" in text


def test_a_whole_group_is_shown_with_its_members():
    results = [make_result(key, seed=i) for i, key in enumerate(groups()["ImageNet dist. shifts"])]
    text = format_results(results)
    line = next(line for line in text.splitlines() if line.startswith("ImageNet dist. shifts"))
    assert "INCOMPLETE" not in line
    assert "6 of 6" in line
    assert "  mean of: ImageNet Sketch, ImageNet v2, ImageNet-A, ImageNet-O, ImageNet-R" in text


def test_a_limited_member_makes_the_mean_an_estimate():
    [mean, _] = group_means([make_result("imagenet1k", limit=400)])
    assert mean.missing == ()
    assert mean.limited == ("imagenet1k",)
    assert not mean.is_complete
    assert "400 (estimate)" in format_results([make_result("imagenet1k", limit=400)])


def test_a_null_main_metric_counts_as_missing():
    result = replace(make_result("imagenet1k"), metrics={"acc1": None})
    mean = average([result], "ImageNet", ["imagenet1k"])
    assert (mean.value, mean.interval, mean.missing) == (None, None, ("imagenet1k",))


def test_without_outcomes_a_mean_has_no_interval():
    mean = average([make_result("imagenet1k", outcomes={})], "ImageNet", ["imagenet1k"])
    assert mean.value is not None
    assert mean.interval is None


def test_results_of_two_checkpoints_cannot_be_averaged():
    results = [make_result(), make_result(checkpoint="00")]
    with pytest.raises(ValueError, match="Cannot average: mnist has 2 results"):
        group_means(results)


def test_failures_stand_below_the_table():
    text = format_results([make_result()], [Failure("cars", "There is no folder x.")])
    assert text.splitlines()[-1] == "failed: Stanford Cars: There is no folder x."
