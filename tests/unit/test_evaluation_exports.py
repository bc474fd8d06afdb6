import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dbp.errors import ConfigError, WorldError
from evaluation.exports import export_clip_benchmark, export_datacomp, weights_name
from evaluation.report.run_table import average
from evaluation.results import Result
from evaluation.suites import groups
from evaluation.tasks import find_task, load_tasks

FLICKR = "retrieval/flickr_1k_test_image_text_retrieval"


def make_result(key, metrics=None, **changes):
    task = find_task(key)
    if metrics is None:
        value = float(np.random.default_rng(len(key) * 7 + ord(key[-1])).random())
        metrics = {"acc1": 0.5, task.main_metric or "acc_race_avg": value}
    given = {
        "task": key, "protocol": "datacomp", "metrics": metrics, "intervals": {},
        "num_samples": task.test_size or 10, "limit": None, "checkpoint": "a" * 64, "model": "ViT-B-32",
        "samples_seen": None, "precision": "fp32", "versions": {}, "set_digest": "", "seed": 0,
    }  # fmt: skip
    return Result(**(given | changes))


def datacomp_results():
    return [make_result(task.key) for task in load_tasks().values() if task.in_datacomp]


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def datacomps_groups(lines):
    """`aggregate_scores.py`, written out: by display name, unweighted, and exactly 38."""
    scores = {x["dataset"]: x["metrics"]["main_metric"] for x in lines}
    scores = {name: score for name, score in scores.items() if score is not None}
    assert len(scores) == 38
    shifts = ["Sketch", "v2"]
    members = {
        "ImageNet": ["ImageNet 1k"],
        "ImageNet dist. shifts": [
            *(f"ImageNet {name}" for name in shifts), "ImageNet-A", "ImageNet-O", "ImageNet-R",
            "ObjectNet",
        ],
        "VTAB": [
            "Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures",
            "EuroSAT", "KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet",
            "PatchCamelyon", "RESISC45", "SVHN", "SUN397",
        ],
        "Retrieval": ["Flickr", "MSCOCO", "WinoGAViL"],
        "Average": list(scores),
    }  # fmt: skip
    return {group: sum(scores[n] for n in names) / len(names) for group, names in members.items()}


def test_datacomps_aggregation_of_the_file_gives_our_group_means(tmp_path):
    results = datacomp_results()
    assert export_datacomp(tmp_path / "new" / "eval_results.jsonl", results[::-1]) == ()
    theirs = datacomps_groups(read_lines(tmp_path / "new" / "eval_results.jsonl"))
    ours = {name: average(results, name, groups()[name]).value for name in theirs}
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_lines_stand_in_the_order_of_datacomps_list_with_raw_metrics(tmp_path):
    results = datacomp_results()
    export_datacomp(tmp_path / "a.jsonl", results[::-1])
    lines = read_lines(tmp_path / "a.jsonl")
    assert [line["key"] for line in lines] == [result.task for result in results]
    for line, result in zip(lines, results, strict=True):
        assert list(line) == ["key", "dataset", "metrics"]
        assert line["dataset"] == find_task(result.task).name
        main = line["metrics"].pop("main_metric")
        assert line["metrics"] == result.metrics
        assert main == result.metrics.get(find_task(result.task).main_metric or "none")


def test_only_the_face_sets_have_no_main_metric(tmp_path):
    export_datacomp(tmp_path / "a.jsonl", datacomp_results())
    lines = read_lines(tmp_path / "a.jsonl")
    without = [line["key"] for line in lines if line["metrics"]["main_metric"] is None]
    assert without == ["fairness/fairface", "fairness/utkface"]


def test_a_metric_of_an_empty_group_is_nan_and_acc5_of_few_classes_is_null(tmp_path):
    metrics = {"acc1": 0.5, "acc5": None, "acc_slide:0": None, "count_slide:0": 0.0}
    export_datacomp(tmp_path / "a.jsonl", [make_result("wilds/camelyon17", metrics)])
    [line] = read_lines(tmp_path / "a.jsonl")
    assert line["metrics"]["acc5"] is None
    assert math.isnan(line["metrics"]["acc_slide:0"])
    assert (line["metrics"]["count_slide:0"], line["metrics"]["main_metric"]) == (0.0, 0.5)


def test_tasks_without_a_line_are_told_and_tasks_of_other_lists_have_none(tmp_path):
    results = [make_result("imagenet1k"), make_result("glyphs/letters")]
    missing = export_datacomp(tmp_path / "a.jsonl", results)
    assert [line["key"] for line in read_lines(tmp_path / "a.jsonl")] == ["imagenet1k"]
    assert len(missing) == 39
    assert "imagenet1k" not in missing


def test_a_main_metric_without_value_is_refused_and_an_older_file_stays(tmp_path):
    file = tmp_path / "a.jsonl"
    export_datacomp(file, [make_result("mnist")])
    before = file.read_text()
    wino = make_result("misc/winogavil", {"jaccard_score_10-12": None, "avg_jaccard_score": 0.5})
    with pytest.raises(WorldError, match=r"misc/winogavil has no value of its main metric jaccard"):
        export_datacomp(file, [make_result("mnist"), wino])
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("export", [export_datacomp, export_clip_benchmark])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"protocol": "corrected"}, ("protocol=datacomp", "protocol=corrected")),
        ({"checkpoint": "b" * 64}, ("a" * 64, "b" * 64)),
        ({"precision": "bf16"}, ("precision=fp32", "precision=bf16")),
        ({"samples_seen": 5}, ("samples_seen=None", "samples_seen=5")),
    ],
)
def test_results_of_two_measurements_are_refused_and_both_are_named(tmp_path, export, change, named):
    results = [make_result("mnist"), make_result("cifar10", **change)]
    with pytest.raises(ConfigError) as error:
        export(tmp_path / "a", results)
    assert all(name in str(error.value) for name in named)
    assert "takes one checkpoint under one protocol" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", [export_datacomp, export_clip_benchmark])
def test_estimates_twins_and_tasks_of_no_list_are_refused(tmp_path, export):
    with pytest.raises(ConfigError, match="mnist is an estimate from limit=5"):
        export(tmp_path / "a", [make_result("mnist", limit=5)])
    with pytest.raises(ConfigError, match="one result of each task; mnist has several"):
        export(tmp_path / "a", [make_result("mnist"), make_result("mnist")])
    with pytest.raises(ConfigError, match="none of the tasks glyphs/letters"):
        export(tmp_path / "a", [make_result("glyphs/letters")])


def test_clip_benchmark_has_a_file_for_each_task_that_it_knows(tmp_path):
    recalls = {f"{way}_retrieval_recall@{k}": k / 20 for way in ("image", "text") for k in (1, 5, 10)}
    results = [
        make_result("vtab/kitti_closest_vehicle_distance", {
            "acc1": 0.5, "acc5": None, "mean_per_class_recall": 0.25,
        }),
        make_result(FLICKR, recalls | {"mean_recall@1": 0.05}),
        make_result("voc2007_multilabel", {"mean_average_precision": 0.75}),
        make_result("wilds/fmow"),
    ]  # fmt: skip
    assert export_clip_benchmark(tmp_path, results) == ("wilds/fmow",)
    sha = "a" * 64
    kitti = f"vtab_kitti_closest_vehicle_distance_{sha}_ViT-B-32_en_zeroshot_classification.json"
    assert {path.name for path in tmp_path.iterdir()} == {
        kitti,
        f"flickr30k_{sha}_ViT-B-32_en_zeroshot_retrieval.json",
        f"voc2007_multilabel_{sha}_ViT-B-32_en_zeroshot_classification.json",
    }
    found = json.loads((tmp_path / kitti).read_text())
    assert math.isnan(found["metrics"].pop("acc5"))
    assert found == {
        "dataset": "wds/vtab/kitti_closest_vehicle_distance",
        "model": "ViT-B-32",
        "pretrained": sha,
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5, "mean_per_class_recall": 0.25},
        "language": "en",
    }
    flickr = next(tmp_path.glob("flickr30k*")).read_text()
    assert json.loads(flickr)["metrics"] == recalls


def test_published_weights_are_named_by_model_and_tag(tmp_path):
    result = replace(make_result("mnist"), checkpoint=None, model="hf-hub:org/ViT:openai")
    export_clip_benchmark(tmp_path, [result])
    [file] = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert (found["model"], found["pretrained"]) == ("hf-hub:org/ViT", "openai")
    assert file.name == "mnist_openai_hf-hub:org_ViT_en_zeroshot_classification.json"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("runs/train/0123456789abcdef/weights.pt", "run-0123456789ab"),
        ("hub/models--me--clip/snapshots/1f2e/open_clip_model.safetensors", "me--clip"),
        ("my clips/pets v2/open_clip_pytorch_model.bin", "pets-v2"),
        ("epoch_32.pt", "epoch-32"),
    ],
)
def test_weights_are_named_after_their_run_their_file_or_their_folder(file, name):
    assert weights_name(Path(file)) == name


@pytest.mark.parametrize(
    ("model", "config", "name"),
    [
        ("ViT-B-32", {"vision_cfg": {"layers": 12}}, "ViT-B-32"),
        ("local-1", {"vision_cfg": {"layers": [1, 1, 2, 1], "width": 16, "image_size": 64}}, "RN-1.1.2.1-w16-64px"),
        ("local-1", {"vision_cfg": {"layers": 6, "width": 256, "patch_size": 8}}, "ViT-256x6-p8-224px"),
        ("local-12ab34cd", {"vision_cfg": {"timm_model_name": "vit_x", "image_size": 96}}, "vit_x-96px"),
    ],
)  # fmt: skip
def test_clip_benchmark_gets_names_that_people_can_read(tmp_path, model, config, name):
    result = replace(make_result("mnist"), model=model)
    export_clip_benchmark(tmp_path, [result], "run-0123456789ab", config)
    [file] = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert (found["model"], found["pretrained"]) == (name, "run-0123456789ab-aaaaaaaa")
    assert file.name == f"mnist_run-0123456789ab-aaaaaaaa_{name}_en_zeroshot_classification.json"


def test_every_task_with_a_name_in_clip_benchmark_is_of_a_kind_that_it_evaluates(tmp_path):
    tasks = [task for task in load_tasks().values() if task.clip_benchmark is not None]
    results = [make_result(task.key, {str(task.main_metric): 0.5}) for task in tasks]
    export_clip_benchmark(tmp_path, results)
    assert len(list(tmp_path.iterdir())) == len(tasks) == 35
