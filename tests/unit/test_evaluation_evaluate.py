import json

import open_clip
import pytest
import torch

from dbp.errors import ConfigError
from evaluation.evaluate import run_suite
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
