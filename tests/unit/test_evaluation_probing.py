"""Linear probes of a suite, from folders with a train split to a file and a table of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from miniature import noise_png, write_set

from dbp.config import compose
from dbp.encoders.openclip import load_openclip
from dbp.verbs.command_line import overrides
from evaluation.checks.linear_probes import probe_suite
from evaluation.checks.logistic import Part, hold_out, probe
from evaluation.results import load_results
from evaluation.running.encode import Towers, encode_pictures
from evaluation.running.prepare import Asked
from evaluation.running.runner import Encoding
from evaluation.sets.data import open_set
from evaluation.verbs.evaluate import run

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NAMES = list("abcdef")
METRICS = {"lp_acc1", "lp_acc5", "lp_mean_per_class_recall"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def three_penalties(monkeypatch):
    """The search has tests of its own; here every fit costs time."""
    monkeypatch.setattr("evaluation.checks.logistic.PENALTIES", (1e-2, 1.0, 100.0))
    monkeypatch.setattr("evaluation.checks.logistic._COARSE", 1)


def write_split(folder: Path, split: str, num_samples: int, seed: int) -> None:
    """Write a split of a set; in every split a class has the same colour."""
    colours = np.random.default_rng(0).integers(256, size=(len(NAMES), 3))
    generator = np.random.default_rng(seed)
    samples = [
        {"png": noise_png(generator, 24, colours[label]), "cls": str(label).encode()}
        for label in generator.integers(len(NAMES), size=num_samples)
    ]
    made = folder.with_name("made")
    write_set(made, samples, class_names=NAMES, templates=["a {c}"])
    folder.mkdir(parents=True, exist_ok=True)
    (made / "test").rename(folder / split)
    for file in made.glob("*.txt"):
        file.replace(folder / file.name)
    made.rmdir()


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """mnist with train alone, stl10 with train and val, cifar10 with neither."""
    root = tmp_path / "sets"
    for number, key in enumerate(("mnist", "stl10", "cifar10")):
        folder = root / f"wds_{key}_test"
        write_split(folder, "test", 40, 10 * number)
        if key != "cifar10":
            write_split(folder, "train", 70, 10 * number + 1)
    write_split(root / "wds_stl10_test", "val", 30, 22)
    return root


def towers(folder: Path, seed: int = 0) -> Towers:
    torch.manual_seed(seed)
    file = folder / f"weights{seed}.pt"
    if not file.exists():
        torch.save(open_clip.model.CLIP(**CONFIG).state_dict(), file)
    loaded = load_openclip(None, checkpoint=file, config=CONFIG)
    return Towers(
        loaded.model, loaded.preprocess, loaded.tokenizer, loaded.name, loaded.digest,
        config=loaded.config, batch_size=16,
    )  # fmt: skip


def probed(tmp_path: Path, *models: Towers, suite: str = "mnist,stl10,cifar10", **asked: Any):
    failures = probe_suite(
        models, suite, tmp_path / "sets", Asked(**asked),
        Encoding(tmp_path / "vectors", devices=["cpu"]), file=tmp_path / "out/results.jsonl",
    )  # fmt: skip
    file = tmp_path / "out/probe.jsonl"
    return failures, load_results(file) if file.exists() else []


def part(model: Towers, folder: Path, split: str) -> Part:
    """The vectors of a split, encoded without any of the code under test."""
    opened = open_set(folder, kind="classification", split=split)
    return Part(encode_pictures(model, opened, range(len(opened))), opened.labels())


def test_a_probe_of_a_suite_is_that_of_the_splits_encoded_one_by_one(tmp_path, sets):
    model = towers(tmp_path)
    failures, results = probed(tmp_path, model)
    assert failures == []
    by_task = {result.task: result for result in results}
    assert set(by_task) == {"mnist", "stl10"}

    folder = sets / "wds_stl10_test"
    train, test, val = (part(model, folder, split) for split in ("train", "test", "val"))
    expected = probe(train, val, test, 6, seed=0)
    found = by_task["stl10"].metrics
    assert {name: found[name] for name in METRICS} == pytest.approx(expected.metrics)
    assert found["lp_penalty"] == expected.penalty
    assert found["lp_acc1"] > 0.5
    assert (found["count_train"], found["count_validation"]) == (70, 30)
    assert by_task["stl10"].intervals.keys() == METRICS
    assert (by_task["stl10"].outcomes["predicted"] == expected.outcomes["predicted"]).all()

    folder = sets / "wds_mnist_test"
    train, test = (part(model, folder, split) for split in ("train", "test"))
    held = hold_out(train.labels, 0.2, np.random.default_rng(0))
    expected = probe(
        Part(train.features[~held], train.labels[~held]),
        Part(train.features[held], train.labels[held]),
        test,
        6,
        seed=0,
    )
    found = by_task["mnist"].metrics
    assert {name: found[name] for name in METRICS} == pytest.approx(expected.metrics)
    assert (found["count_train"], found["count_held_out"]) == ((~held).sum(), held.sum())


def test_a_rerun_encodes_and_fits_nothing_and_a_new_train_split_does(tmp_path, sets, monkeypatch):
    pictures: list[str] = []
    model = towers(tmp_path)
    _, first = probed(tmp_path, model)

    def count(self: Any, *given: Any, **more: Any) -> Any:
        pictures.append("a batch")
        return encode(*given, **more)

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fit")

    encode = model.model.encode_image
    monkeypatch.setattr(type(model.model), "encode_image", count)
    monkeypatch.setattr("evaluation.checks.linear_probes.probe", refuse)
    _, again = probed(tmp_path, model)
    assert pictures == []
    assert again == first
    # Without its lines, the vectors are still there.
    (tmp_path / "out/probe.jsonl").unlink()
    with pytest.raises(RuntimeError, match="a fit"):
        probed(tmp_path, model)
    monkeypatch.setattr("evaluation.checks.linear_probes.probe", probe)
    assert probed(tmp_path, model)[1] == first
    assert pictures == []
    shutil.rmtree(sets / "wds_mnist_test" / "train")
    write_split(sets / "wds_mnist_test", "train", 60, 77)
    _, new = probed(tmp_path, model)
    assert len(pictures) == -(-60 // 16)  # the train pictures of one task
    by_task = {result.task: result for result in new}
    counts = by_task["mnist"].metrics
    assert counts["count_train"] + counts["count_held_out"] == 60


def test_several_checkpoints_share_each_picture_and_have_a_table_each(tmp_path, sets, capsys):
    models = [towers(tmp_path, seed) for seed in range(2)]
    _, together = probed(tmp_path, *models, suite="mnist")
    out = capsys.readouterr().out
    assert out.count("linear probe: never in one column with zero-shot numbers") == 2
    assert out.index(models[0].label) < out.index(models[1].label)
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "vectors")
    apart = [result for model in models for result in probed(tmp_path, model, suite="mnist")[1]]
    by_checkpoint = {result.checkpoint: result.metrics for result in apart}
    assert len(by_checkpoint) == 2
    assert {result.checkpoint: result.metrics for result in together} == by_checkpoint


def test_a_limit_cuts_every_split_and_marks_an_estimate(tmp_path, sets, capsys):
    _, (result,) = probed(tmp_path, towers(tmp_path), suite="stl10", limit=50)
    # Test has 40 pictures, so only train was cut; the number is an estimate all the same.
    assert (result.num_samples, result.limit) == (40, 50)
    assert (result.metrics["count_train"], result.metrics["count_validation"]) == (50, 30)
    assert "40 (estimate" in capsys.readouterr().out


def test_what_is_wrong_with_a_split_stops_its_task_alone(tmp_path, sets):
    (sets / "wds_mnist_test/train/nshards.txt").write_text("2")
    failures, results = probed(tmp_path, towers(tmp_path))
    assert [result.task for result in results] == ["stl10"]
    assert [failure.task for failure in failures] == ["mnist"]
    assert failures[0].reason.startswith("linear probe: The shard ")
    assert "train/1.tar is missing" in failures[0].reason


def test_two_validation_splits_are_refused(tmp_path, sets):
    shutil.copytree(sets / "wds_stl10_test/val", sets / "wds_stl10_test/validation")
    failures, _ = probed(tmp_path, towers(tmp_path), suite="stl10")
    assert "holds both val and validation" in failures[0].reason


def test_too_few_pictures_to_hold_any_out_are_told(tmp_path, sets):
    failures, results = probed(tmp_path, towers(tmp_path), suite="mnist", limit=6)
    assert results == []
    assert "gives 6 pictures, of no class 5 or more" in failures[0].reason
    assert "raise evaluate.limit" in failures[0].reason


def test_a_broken_train_picture_is_named(tmp_path, sets):
    tar = sets / "wds_mnist_test/train/0.tar"
    content = bytearray(tar.read_bytes())
    content[512 + 30 : 512 + 200] = bytes(170)
    tar.write_bytes(bytes(content))
    failures, _ = probed(tmp_path, towers(tmp_path), suite="mnist")
    assert "1 of 70 pictures cannot be read" in failures[0].reason
    assert "train/0.tar: s0000000.png" in failures[0].reason


def test_a_model_that_has_diverged_fails_and_the_other_goes_on(tmp_path, sets):
    models = [towers(tmp_path, seed) for seed in range(2)]
    torch.nn.init.constant_(models[0].model.visual.proj, float("nan"))
    failures, results = probed(tmp_path, *models, suite="mnist")
    assert [result.checkpoint for result in results] == [models[1].digest]
    (failure,) = failures
    assert failure.reason.startswith(f"linear probe: {models[0].label}: The model gives a vector")


def test_the_verb_writes_probes_beside_results_and_never_in_them(tmp_path, sets, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    towers(tmp_path)
    given = [
        f"checkpoint={tmp_path}/weights0.pt", f"model.config={tmp_path}/config.json", "name=here",
        f"root={sets}", "suite=[mnist,cifar10]", f"paths.runs={tmp_path}/runs",
        f"paths.store={tmp_path}/store", "evaluate.device=cpu", "evaluate.num_workers=0",
    ]  # fmt: skip
    folder = tmp_path / "runs/evaluations/here"
    assert run(compose("evaluate", overrides(given))) == 0
    assert not (folder / "probe.jsonl").exists()
    assert "linear probe" not in capsys.readouterr().out
    assert run(compose("evaluate", overrides([*given, "probe=true"]))) == 0
    names = {name for result in load_results(folder / "results.jsonl") for name in result.metrics}
    assert not any(name.startswith("lp_") for name in names)
    (result,) = load_results(folder / "probe.jsonl")
    assert set(result.metrics) - METRICS == {
        "lp_penalty", "lp_iterations", "count_train", "count_held_out",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert out.index("Average (INCOMPLETE)") < out.index("linear probe: never in one column")
    table = out[out.index("linear probe: never") :].splitlines()
    assert f"{result.metrics['lp_acc1']:.3f}" in table[2]
    assert "no linear probe, since there is no train split beside test: CIFAR-10" in table
    (sets / "wds_mnist_test/train/nshards.txt").write_text("3")
    assert run(compose("evaluate", overrides([*given, "probe=true"]))) == 1
