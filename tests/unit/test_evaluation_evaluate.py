import json
from typing import Any

import open_clip
import pytest
import torch
from omegaconf import OmegaConf

from dbp.command_line import overrides
from dbp.config import compose
from dbp.errors import ConfigError
from evaluation.evaluate import run, run_suite
from evaluation.miniature import write_classification
from evaluation.results import load_results

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_a_suite_runs_on_a_checkpoint_file_and_saves_each_task_with_the_files_digest(tmp_path):
    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        CONFIG["embed_dim"], vision_cfg=CONFIG["vision_cfg"], text_cfg=CONFIG["text_cfg"]
    )
    weights, config = tmp_path / "a {b}=c.pt", tmp_path / "config.json"
    torch.save(model.state_dict(), weights)
    config.write_text(json.dumps(CONFIG))
    folder = tmp_path / "sets" / "wds_mnist_test"
    write_classification(folder, class_names=list("abcdefg"), num_samples=30, seed=0)
    file = tmp_path / "results.jsonl"
    results, failures = run_suite(
        None,
        "mnist,cifar10",
        tmp_path / "sets",
        checkpoint=str(weights),
        config=str(config),
        results_file=file,
        protocols=("corrected", "datacomp"),
    )
    assert [failure.task for failure in failures] == ["cifar10"]
    assert load_results(file) == results
    assert [result.protocol for result in results] == ["corrected", "datacomp"]
    assert len(results[0].checkpoint) == 64
    assert set(results[0].versions) >= {"torch", "open_clip_torch", "numpy"}


def test_a_misspelt_suite_stops_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'glyphs'"):
        run_suite("no such model", "gliphs", tmp_path)


def test_the_verb_reads_evaluate_settings_and_a_model_that_a_preset_describes(tmp_path):
    composed = compose("evaluate", ["model=glyphs"]).model.config
    described: Any = OmegaConf.to_container(composed)
    model = open_clip.model.CLIP(**described)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    folder = tmp_path / "sets" / "wds_mnist_test"
    write_classification(folder, class_names=list("abcdefg"), num_samples=10, seed=0)
    said = overrides([
        "model=glyphs", f"checkpoint={tmp_path}/weights.pt", f"root={tmp_path}/sets", "name=here",
        "evaluate.suite=mnist", "evaluate.protocol=datacomp",
        f"paths.runs={tmp_path}/runs", f"paths.store={tmp_path}/store",
    ])  # fmt: skip
    assert run(compose("evaluate", said)) == 0
    (result,) = load_results(tmp_path / "runs" / "evaluations" / "here" / "results.jsonl")
    assert (result.task, result.protocol) == ("mnist", "datacomp")


def test_two_sets_of_weights_and_prompts_without_a_limit_are_refused(tmp_path):
    (tmp_path / "weights.pt").touch()
    both = [f"checkpoint={tmp_path}/weights.pt", "pretrained=openai", "suite=mnist"]
    with pytest.raises(ConfigError, match="name two sets of weights"):
        run(compose("evaluate", both))
    with pytest.raises(
        ConfigError, match=r"evaluate\.max_templates=1: it must be above 0 and beside"
    ):
        run(compose("evaluate", ["evaluate.max_templates=1", "suite=mnist"]))
