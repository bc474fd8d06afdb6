"""A part of a set, or one with other names or templates, never passes for the task's own set."""

import gzip
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from evaluating import evaluate_one
from miniature import TEMPLATES, write_classification
from test_evaluation_evaluate import CONFIG

from dbp.errors import ConfigError
from evaluation import tasks as tasks_module
from evaluation.exports import export_clip_benchmark, export_datacomp
from evaluation.report.run_table import average, format_results
from evaluation.results import Result, load_results, save_results
from evaluation.sets.data import open_set
from evaluation.sets.folders import set_files
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.sets.verify import verify_set
from evaluation.statistics.analysis import analyse
from evaluation.statistics.comparison import Arm, Run
from evaluation.tasks import departures, find_task, register

TEN = [f"class {i}" for i in range(10)]
EIGHTEEN = [f"photo {i} of a {{c}}." for i in range(18)]


def cifar(root: Path, names: list[str] = TEN, templates: Any = EIGHTEEN, num_samples: int = 20) -> Path:
    """CIFAR-10 with its names and templates, and so many samples in tars of 4."""
    folder = root / "wds_cifar10_test"
    write_classification(
        folder, class_names=names, templates=templates, num_samples=num_samples, seed=0, size=8, samples_per_shard=4
    )
    return folder


def evaluated(root: Path, **given: Any) -> list[Result]:
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**CONFIG).eval()
    transform = open_clip.image_transform(16, is_train=False)
    return evaluate_one(
        model, transform, open_clip.SimpleTokenizer(context_length=12), given.pop("suite", "cifar10"), root,
        name="m", digest="a" * 64, **given,
    )  # fmt: skip


@pytest.fixture
def with_20_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 as a task of 20 samples, so that a small set is its whole set."""
    published = dict(tasks_module._published())
    published["cifar10"] = replace(published["cifar10"], test_size=20)
    monkeypatch.setattr(tasks_module, "_published", lambda: published)


@pytest.mark.usefixtures("with_20_samples")
def test_two_of_five_tars_are_marked_everywhere_and_exported_nowhere(tmp_path):
    folder = cifar(tmp_path)
    [whole] = evaluated(tmp_path)
    (folder / "test" / "nshards.txt").write_text("2")
    [part] = evaluated(tmp_path)
    assert (whole.departs, part.departs) == ("", "8 of 20 samples")
    export_datacomp(tmp_path / "whole.jsonl", [whole])
    export_clip_benchmark(tmp_path / "whole", [whole])
    for export in (export_datacomp, export_clip_benchmark):
        with pytest.raises(ConfigError, match=r"CIFAR-10: 8 of 20 samples"):
            export(tmp_path / "part", [part])
    assert not (tmp_path / "part").exists()
    assert "8 (8 of 20 samples)" in format_results([part])
    assert "of 20 samples" not in format_results([whole])
    assert average([whole], "one", ["cifar10"]).is_complete
    assert not average([part], "one", ["cifar10"]).is_complete
    sweep = [Arm("one", [Run(0, [part], {})], "one")]
    assert any("CIFAR-10: 8 of 20 samples" in note for note in analyse(sweep).notes)
    assert not any(
        "samples" in note and "CIFAR-10" in note for note in analyse([Arm("a", [Run(0, [whole], {})])]).notes
    )


@pytest.mark.usefixtures("with_20_samples")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": TEN[:9]}, "9 of 10 class names"),
        ({"names": [*TEN, "eleven"]}, "11 class names, not 10"),
        ({"templates": TEMPLATES}, "3 of 18 templates"),
        (
            {"names": TEN[:9], "templates": TEMPLATES, "num_samples": 5},
            "5 of 20 samples, 9 of 10 class names, 3 of 18",
        ),
    ],
)
def test_other_numbers_of_names_and_templates_are_no_results_of_the_task(tmp_path, change, said):
    cifar(tmp_path, **change)
    [result] = evaluated(tmp_path)
    assert said in result.departs
    with pytest.raises(ConfigError, match="CIFAR-10: ") as error:
        export_datacomp(tmp_path / "a.jsonl", [result])
    assert said in str(error.value)


@pytest.mark.usefixtures("with_20_samples")
def test_a_limit_is_an_estimate_of_a_whole_set_and_of_a_part_both(tmp_path):
    folder = cifar(tmp_path)
    [result] = evaluated(tmp_path, limit=6)
    assert (result.departs, result.part) == ("", "estimate")
    (folder / "test" / "nshards.txt").write_text("2")
    [result] = evaluated(tmp_path, limit=6)
    assert (result.num_samples, result.part) == (6, "estimate, 8 of 20 samples")


def test_results_of_earlier_versions_are_compared_by_the_samples_that_took_part(tmp_path):
    cifar(tmp_path)
    [result] = evaluated(tmp_path)
    save_results(tmp_path / "results.jsonl", [replace(result, set_counts={})])
    [old] = load_results(tmp_path / "results.jsonl")
    assert old.departs == "20 of 10,000 samples"
    assert replace(old, limit=20).departs == ""  # how many there were, nobody wrote down
    [again] = evaluated(tmp_path, known=[old])
    assert again.set_counts == {"samples": 20, "class names": 10, "templates": 18}


def test_a_task_of_the_user_may_state_its_numbers(tmp_path):
    facts = {"kind": "classification", "main_metric": "acc1", "num_classes": 3, "test_size": 12, "num_templates": 3}
    register({"cats": facts, "free": {"kind": "classification", "main_metric": "acc1"}})
    for key in ("cats", "free"):
        write_classification(tmp_path / f"wds_{key}_test", class_names="ab", num_samples=7, seed=0, size=8)
    cats, free = evaluated(tmp_path, suite=["cats", "free"])
    assert (cats.departs, free.departs) == ("7 of 12 samples, 2 of 3 class names", "")


def test_only_what_both_sides_count_is_compared():
    task = find_task("cifar10")
    assert departures(task, {"samples": 10_000, "class names": 10}) == ""
    assert departures(task, {"samples": 10_001}) == "10,001 samples, not 10,000"
    assert departures(find_task("glyphs/letters"), {"samples": 3}) == ""


def test_files_of_macos_are_no_part_of_a_set(tmp_path):
    folder = cifar(tmp_path, num_samples=4)
    before, files = open_set(folder, kind="classification"), set_files(tmp_path)
    tar = folder / "test" / "0.tar"
    with tarfile.open(tar) as old:
        members = {info.name: old.extractfile(info).read() for info in old}  # type: ignore[union-attr]
    litter = ("._s0000000.png", ".DS_Store", "d/._s0000000.cls", "d/.DS_Store", "._.DS_Store", "__MACOSX/._s0.png")
    with tarfile.open(tar, "w") as new:
        for name, content in {**dict.fromkeys(litter, b"not yours"), **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    for name in ("._0.tar", "._nshards.txt", ".DS_Store"):
        (folder / "test" / name).write_bytes(b"not yours")
    after = open_set(folder, kind="classification")
    assert [(s.key, s.annotations) for s in after.samples] == [(s.key, s.annotations) for s in before.samples]
    assert set_files(tmp_path) == files
    task = replace(find_task("cifar10"), test_size=4)
    assert verify_set(task, folder).problems == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda tar: gzip.compress(tar), "compressed by gzip"),
        (lambda tar: b"<!DOCTYPE html><html>404</html>", "an HTML or XML page"),
        (lambda tar: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n", "git lfs pull"),
    ],
)
def test_another_file_in_place_of_a_tar_or_a_text_is_called_what_it_is(tmp_path, content, said):
    folder = cifar(tmp_path, num_samples=4)
    tar = folder / "test" / "0.tar"
    whole = tar.read_bytes()
    tar.write_bytes(content(whole))
    with pytest.raises(EvaluationDataError, match=said) as error:
        open_set(folder, kind="classification")
    assert str(tar) in str(error.value)
    assert "damaged" not in str(error.value)
    tar.write_bytes(whole)
    if said != "compressed by gzip":
        (folder / "classnames.txt").write_bytes(content(whole))
        with pytest.raises(EvaluationDataError, match=rf"classnames\.txt .*{said}"):
            open_set(folder, kind="classification")
