"""`dbp evaluate check=clip_benchmark`: its own code beside ours, on miniatures, agreeing and not."""

import re

import pytest
from benchmark_sets import write_sugar_crepe
from forty import FLICKR, _write_classes, folder_of, write_model
from miniature import write_retrieval

from dbp.__main__ import main
from evaluation import tasks
from evaluation.kinds.classification import Classification

OF_DATACOMP = ["cifar10", "vtab/dtd", "vtab/pcam", "voc2007_multilabel", FLICKR]
NUM_METRICS = 3 + 3 + 3 + 1 + 4  # five images have no recall at 10


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Five of DataComp's sets, one that clip_benchmark lacks, one of SugarCrepe's, weights, and a task's YAML."""
    folder = tmp_path_factory.mktemp("house")
    for key in (*OF_DATACOMP[:4], "wilds/camelyon17"):
        _write_classes(folder / "sets" / folder_of(key), key, 30, 40)
    captions = [
        [f"a {colour} {thing}" for colour in ("red", "old")] for thing in ("cat", "dog", "tree", "house", "car")
    ]
    flickr = folder / "sets" / folder_of(FLICKR)
    write_retrieval(flickr, captions=captions, seed=3)
    (flickr / "dataset_type.txt").write_text("retrieval")
    write_sugar_crepe(folder / "sets" / "sugar_crepe", "add_obj")
    write_model(folder)
    (folder / "configs" / "task").mkdir(parents=True)
    (folder / "configs" / "task" / "crepe.yaml").write_text(
        "name: SugarCrepe, objects added\nsource: clip_benchmark\ndataset: sugar_crepe/add_obj\n"
    )
    return folder


@pytest.fixture
def said(house, capsys, monkeypatch):
    """Evaluate in the house; the exit status and what was printed. Tasks of the user are forgotten afterwards."""
    monkeypatch.chdir(house)
    monkeypatch.setattr(tasks, "_own", {})
    monkeypatch.setattr(tasks, "_facts", {})

    def run(*words):
        given = {word.partition("=")[0] for word in words}
        status = main([
            "evaluate", "--config-dir", "configs", "checkpoint=tiny.pt", "model.config=tiny.json",
            *([] if "root" in given else ["root=sets"]), "paths.store=store", "paths.runs=runs",
            "evaluate.num_workers=0", *words,
        ])  # fmt: skip
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out + err

    return run


def table(text):
    """Of each metric that was checked: both numbers and the mark."""
    pattern = r"^(.{32}) (\S+) +([\d.-]+) +([\d.-]+) +(\S+?)(  DIFFERS)?$"
    return {(m[1].strip(), m[2]): (m[3], m[4], m[6]) for m in re.finditer(pattern, text, re.MULTILINE)}


@pytest.mark.slow
def test_five_of_datacomps_tasks_and_one_of_clip_benchmarks_agree(said):
    suite = ",".join([*OF_DATACOMP, "crepe", "wilds/camelyon17"])
    status, text = said(f"suite=[{suite}]", "check=clip_benchmark")
    assert status == 0, text
    found = table(text)
    assert len({name for name, _ in found}) == 6
    assert all(ours == theirs and not mark for ours, theirs, mark in found.values()), text
    assert f"{NUM_METRICS + 3} metrics checked: 0 differ by more than 1e-06; 0 tasks could not be checked" in text
    assert "clip_benchmark does not have: Camelyon17" in text
    assert found["SugarCrepe, objects added", "acc"][0] not in ("0.000000", "1.000000")
    assert found["PatchCamelyon", "acc5"][:2] == ("-", "-")


def test_other_templates_are_found_by_the_check_and_a_tolerance_may_allow_them(said, monkeypatch):
    real = Classification.names_and_templates

    def other(self, protocol):
        names, _ = real(self, protocol)
        return names, ["{c}"]

    monkeypatch.setattr(Classification, "names_and_templates", other)
    words = ["suite=[cifar10,voc2007_multilabel]", "check=clip_benchmark", "name=broken"]
    status, text = said(*words)
    assert status == 1
    assert re.search(r"CIFAR-10 +acc1 .*DIFFERS$", text, re.MULTILINE), text
    assert not table(text)["Pascal VOC 2007 (multi-label)", "mean_average_precision"][2]
    number = re.search(r"(\d+) differ by more than 1e-06", text)
    assert number is not None
    assert int(number[1]) == text.count("DIFFERS") > 0
    assert said(*words, "check_tolerance=1")[0] == 0


def test_a_set_that_clip_benchmark_cannot_read_is_named_and_is_no_pass(said, house):
    file = house / "sets" / folder_of(FLICKR) / "dataset_type.txt"
    file.unlink()
    status, text = said(f"suite=[{FLICKR}]", "check=clip_benchmark", "name=untyped")
    file.write_text("retrieval")
    assert status == 1
    assert re.search(
        r"^not checked: Flickr: .*dataset_type\.txt is missing.*Write retrieval into it", text, re.MULTILINE
    )
    assert "1 tasks could not be checked" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["check=clipbench"], ("check=clipbench", "clip_benchmark")),
        (["check=clip_benchmark", "precision=bf16"], ("precision=bf16", "fp32")),
        (["check=clip_benchmark", "evaluate.limit=5"], ("evaluate.limit=5", "whole sets")),
        (["check=clip_benchmark", "check_tolerance=-1"], ("check_tolerance=-1", "0 or more")),
    ],
)
def test_a_check_that_would_say_nothing_is_refused_before_any_work(said, words, named):
    status, text = said("suite=[cifar10]", "name=refused", *words)
    assert status == 1
    assert all(word in text for word in named), text
    assert "tasks evaluated" not in text


def test_a_set_that_is_not_there_fails_its_task_with_the_files_and_the_command(said, tmp_path):
    status, text = said("suite=[crepe]", f"root={tmp_path}", "name=absent")
    assert status == 1
    for words in (
        "sugar_crepe/add_obj",
        str(tmp_path / "sugar_crepe-add_obj"),
        "val2017",
        "add_obj.json",
        "python -c",
    ):
        assert words in text, text
    assert list(tmp_path.iterdir()) == []
