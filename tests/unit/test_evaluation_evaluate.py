import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from evaluating import evaluate_one
from miniature import write_classification
from omegaconf import OmegaConf

from dbp.config import compose
from dbp.errors import ConfigError
from dbp.verbs.command_line import overrides
from evaluation.results import Result, load_results
from evaluation.verbs.evaluate import run

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def weights_of(tmp_path: Path, name: str, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**CONFIG)
    torch.save(model.state_dict(), tmp_path / name)
    return tmp_path / name


def said(tmp_path: Path, *given: str) -> list[str]:
    (tmp_path / "config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    return overrides([
        f"model.config={tmp_path}/config.json", f"root={tmp_path}/sets", "name=here",
        f"paths.runs={tmp_path}/runs", f"paths.store={tmp_path}/store", *given,
    ])  # fmt: skip


def results_of(tmp_path: Path) -> list[Result]:
    return load_results(tmp_path / "runs" / "evaluations" / "here" / "results.jsonl")


def test_a_suite_runs_on_a_checkpoint_file_and_saves_each_task_with_the_files_digest(tmp_path, capsys):
    weights = weights_of(tmp_path, "a {b}=c.pt")
    folder = tmp_path / "sets" / "wds_mnist_test"
    write_classification(folder, class_names=list("abcdefg"), num_samples=30, seed=0)
    given = said(tmp_path, f"checkpoint={weights}", "suite=[mnist,cifar10]")
    assert run(compose("evaluate", given)) == 1
    results = results_of(tmp_path)
    assert [result.protocol for result in results] == ["corrected", "datacomp"]
    assert results[0].checkpoint == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert set(results[0].versions) >= {"torch", "open_clip_torch", "numpy"}
    said_last = capsys.readouterr().out.splitlines()
    assert said_last[-1].startswith("1 tasks evaluated, 1 failed: ")
    assert any(line.startswith("failed: CIFAR-10: There is no ") for line in said_last)
    # The other task arrives; the rerun does that one.
    write_classification(tmp_path / "sets" / "wds_cifar10_test", class_names=list("abc"), num_samples=9, seed=1)
    assert run(compose("evaluate", given)) == 0
    assert {result.task for result in results_of(tmp_path)} == {"mnist", "cifar10"}


def test_several_checkpoints_stand_in_one_file_and_one_table_each(tmp_path, capsys):
    files = [weights_of(tmp_path, f"w{seed}.pt", seed) for seed in range(2)]
    folder = tmp_path / "sets" / "wds_mnist_test"
    write_classification(folder, class_names=list("abcdefg"), num_samples=30, seed=0)
    given = said(tmp_path, f"checkpoint=[{files[0]},{files[1]}]", "suite=mnist")
    assert run(compose("evaluate", given)) == 0
    results = results_of(tmp_path)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert [r.checkpoint for r in results] == [digests[0]] * 2 + [digests[1]] * 2
    out = capsys.readouterr().out
    assert out.index(digests[0][:12]) < out.index(digests[1][:12])
    assert sum(line.startswith("MNIST ") for line in out.splitlines()) == 2


def test_an_unknown_suite_stops_before_a_file_is_read(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'glyphs'"):
        run(compose("evaluate", said(tmp_path, "checkpoint=nowhere.pt", "suite=gliphs")))


def test_the_verb_reads_evaluate_settings_and_a_model_that_a_preset_describes(tmp_path):
    composed = compose("evaluate", ["model=glyphs"]).model.config
    described: Any = OmegaConf.to_container(composed)
    model = open_clip.model.CLIP(**described)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    folder = tmp_path / "sets" / "wds_mnist_test"
    write_classification(folder, class_names=list("abcdefg"), num_samples=10, seed=0)
    given = overrides([
        "model=glyphs", f"checkpoint={tmp_path}/weights.pt", f"root={tmp_path}/sets", "name=here",
        "evaluate.suite=mnist", "evaluate.limit=7",
        f"paths.runs={tmp_path}/runs", f"paths.store={tmp_path}/store",
    ])  # fmt: skip
    assert run(compose("evaluate", given)) == 0
    assert [(r.task, r.num_samples) for r in results_of(tmp_path)] == [("mnist", 7)] * 2


def test_two_sets_of_weights_and_prompts_without_a_limit_are_refused(tmp_path):
    (tmp_path / "weights.pt").touch()
    both = [f"checkpoint={tmp_path}/weights.pt", "pretrained=openai", "suite=mnist"]
    with pytest.raises(ConfigError, match="name two sets of weights"):
        run(compose("evaluate", both))
    with pytest.raises(ConfigError, match=r"evaluate\.max_templates=1: it must be above 0 and beside"):
        run(compose("evaluate", ["evaluate.max_templates=1", "suite=mnist"]))


def test_pictures_are_seen_as_the_models_own_file_says(tmp_path):
    weights = weights_of(tmp_path, "w.pt")
    folder = tmp_path / "sets" / "wds_mnist_test"
    write_classification(folder, class_names=list("abcdefg"), num_samples=30, seed=0)
    given = said(tmp_path, f"checkpoint={weights}", "suite=mnist", "evaluate.keep_vectors=false")
    assert run(compose("evaluate", given)) == 0
    own = {"mean": [0.5] * 3, "std": [0.1] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": own}))
    assert run(compose("evaluate", given)) == 0
    plain, other = results_of(tmp_path)[0], results_of(tmp_path)[2]
    assert plain.config_digest != other.config_digest  # neither stands for the other
    # The same through open_clip's own reading of such a folder.
    home = tmp_path / "local"
    home.mkdir()
    (home / "open_clip_config.json").write_text((tmp_path / "config.json").read_text())
    (home / "open_clip_pytorch_model.bin").write_bytes(weights.read_bytes())
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{home}")
    assert "Normalize(mean=[0.5, 0.5, 0.5]" in repr(preprocess).replace("(0.5, 0.5, 0.5)", "[0.5, 0.5, 0.5]")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{home}")
    [theirs] = evaluate_one(model.eval(), preprocess, tokenizer, "mnist", tmp_path / "sets")
    assert theirs.metrics == other.metrics
    assert np.array_equal(theirs.outcomes["predicted"], other.outcomes["predicted"])


def test_an_unknown_word_of_the_preprocess_is_named(tmp_path):
    weights = weights_of(tmp_path, "w.pt")
    given = said(tmp_path, f"checkpoint={weights}", "suite=mnist")
    write_classification(tmp_path / "sets" / "wds_mnist_test", class_names=list("ab"), num_samples=4, seed=0)
    config = {"model_cfg": CONFIG, "preprocess_cfg": {"maen": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"preprocess_cfg\.maen is unknown. Did you mean 'mean'"):
        run(compose("evaluate", given))
