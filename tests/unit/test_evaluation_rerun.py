"""What a second evaluation does not do again, and what sharing work must not change."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from miniature import write_classification, write_retrieval
from torchvision.transforms import Compose, Normalize

from dbp.encoders.openclip import load_openclip
from evaluation.results import Failure, Result, load_results, save_results
from evaluation.running.encode import Towers
from evaluation.running.prepare import Asked
from evaluation.running.runner import Encoding, evaluate_checkpoints

FLICKR = "retrieval/flickr_1k_test_image_text_retrieval"
SUITE = f"mnist,stl10,{FLICKR}"
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, key in enumerate(("mnist", "stl10")):
        folder = tmp_path / "sets" / f"wds_{key}_test"
        write_classification(folder, class_names=list("abcdef"), num_samples=70, seed=seed)
    captions = [[f"a {i}", f"the {i * 7}"][: 1 + i % 2] for i in range(40)]
    write_retrieval(tmp_path / "sets" / f"wds_{FLICKR.replace('/', '-')}_test", captions=captions, seed=3)
    return tmp_path / "sets"


def towers(folder: Path, seed: int = 0, **settings: Any) -> Towers:
    """A model with random weights that were saved and loaded, so that it has a digest."""
    torch.manual_seed(seed)
    file = folder / f"weights{seed}.pt"
    if not file.exists():
        torch.save(open_clip.model.CLIP(**CONFIG).state_dict(), file)
    loaded = load_openclip(None, checkpoint=file, config=CONFIG)
    return Towers(
        loaded.model, loaded.preprocess, loaded.tokenizer, loaded.name, loaded.digest,
        config=loaded.config, **({"batch_size": 16} | settings),
    )  # fmt: skip


def counted(model: Towers) -> list[int]:
    """How many pictures go through a model from now on, batch by batch."""
    seen: list[int] = []
    encode = model.model.encode_image

    def count(images: Any) -> Any:
        seen.append(len(images))
        return encode(images)

    model.model.encode_image = count
    return seen


def numbers(results: list[Result]) -> list[Any]:
    return [(r.task, r.protocol, r.checkpoint, dict(r.metrics), dict(r.intervals), r.set_digest) for r in results]


def test_kept_vectors_are_not_encoded_again_and_give_the_same_results(root, tmp_path):
    first = evaluate_checkpoints([towers(tmp_path)], SUITE, root, encoding=Encoding(tmp_path / "vectors"))
    again = towers(tmp_path)
    seen = counted(again)
    second = evaluate_checkpoints([again], SUITE, root, encoding=Encoding(tmp_path / "vectors"))
    assert seen == []
    assert numbers(second) == numbers(first)
    for one, two in zip(first, second, strict=True):
        assert all(np.array_equal(one.outcomes[k], two.outcomes[k]) for k in one.outcomes)


def test_another_precision_config_or_checkpoint_uses_none_of_the_kept_vectors(root, tmp_path):
    keep = tmp_path / "vectors"
    evaluate_checkpoints([towers(tmp_path)], "mnist", root, encoding=Encoding(keep))
    others = [
        towers(tmp_path, seed=1),
        towers(tmp_path, precision="bf16"),
        replace(towers(tmp_path), config=CONFIG | {"quick_gelu": True}),
    ]
    for other in others:
        seen = counted(other)
        evaluate_checkpoints([other], "mnist", root, encoding=Encoding(keep))
        assert sum(seen) == 70


def test_a_task_whose_results_stand_is_not_done_again_unless_its_files_changed(root, tmp_path):
    known = evaluate_checkpoints([towers(tmp_path)], SUITE, root)
    again = towers(tmp_path)
    seen = counted(again)
    assert numbers(evaluate_checkpoints([again], SUITE, root, known=known)) == numbers(known)
    assert seen == []
    folder = root / "wds_stl10_test"
    write_classification(folder, class_names=list("abcdef"), num_samples=70, seed=9)
    found = evaluate_checkpoints([again], SUITE, root, known=known)
    assert sum(seen) == 70
    assert [a == b for a, b in zip(numbers(found), numbers(known), strict=True)] == [
        True, True, False, False, True, True,
    ]  # fmt: skip


def test_a_rehearsal_with_few_prompts_does_not_stand_for_one_with_all(root, tmp_path):
    few = Asked(limit=20, max_templates=1)
    known = evaluate_checkpoints([towers(tmp_path)], "mnist", root, few)
    again = towers(tmp_path)
    seen = counted(again)
    evaluate_checkpoints([again], "mnist", root, Asked(limit=20), known=known)
    assert sum(seen) == 20


def test_cropped_pictures_serve_the_next_checkpoint_without_decoding(root, tmp_path, monkeypatch):
    plain = evaluate_checkpoints([towers(tmp_path, seed=1)], SUITE, root)
    crops = tmp_path / "crops"
    evaluate_checkpoints([towers(tmp_path)], SUITE, root, encoding=Encoding(crops=crops))
    from PIL import Image

    def refuse(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Image, "open", refuse)
    from_crops = evaluate_checkpoints([towers(tmp_path, seed=1)], SUITE, root, encoding=Encoding(crops=crops))
    assert numbers(from_crops) == numbers(plain)


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one(root, tmp_path):
    models = [towers(tmp_path), towers(tmp_path, seed=1)]
    alone = evaluate_checkpoints(models, SUITE, root)
    shared = evaluate_checkpoints(models, SUITE, root, encoding=Encoding(devices=["cpu", "cpu"]))
    assert numbers(shared) == numbers(alone)


def test_checkpoints_together_have_the_numbers_of_each_alone(root, tmp_path):
    models = [towers(tmp_path, seed=seed) for seed in range(3)]
    together = evaluate_checkpoints(models, SUITE, root)
    for model in models:
        alone = evaluate_checkpoints([model], SUITE, root)
        assert numbers([r for r in together if r.checkpoint == model.digest]) == numbers(alone)


def test_one_diverged_checkpoint_fails_alone_and_is_named(root, tmp_path):
    good, bad = towers(tmp_path), towers(tmp_path, seed=1)
    with torch.no_grad():
        bad.model.visual.proj.fill_(float("nan"))
    failures: list[Failure] = []
    found = evaluate_checkpoints([good, bad], "mnist", root, failures=failures)
    assert {result.checkpoint for result in found} == {good.digest}
    assert [f.task for f in failures] == ["mnist"]
    assert failures[0].reason.startswith(f"{bad.label}: The model gives a vector with NaN")


def test_models_that_see_other_pictures_do_not_share_them(root, tmp_path):
    model, other = towers(tmp_path), towers(tmp_path, seed=1)
    *steps, normalise = other.preprocess.transforms
    other.preprocess = Compose([*steps, Normalize((0.5,) * 3, normalise.std)])
    together = evaluate_checkpoints([model, other, towers(tmp_path, seed=2)], SUITE, root)
    for one in (model, other):
        alone = evaluate_checkpoints([one], SUITE, root)
        assert numbers([r for r in together if r.checkpoint == one.digest]) == numbers(alone)


def test_a_damaged_file_of_vectors_fails_its_task_alone_and_says_what_to_do(root, tmp_path):
    keep, failures = tmp_path / "vectors", []
    evaluate_checkpoints([towers(tmp_path)], SUITE, root, encoding=Encoding(keep))
    [file] = keep.rglob("mnist-*/0*.npz")
    file.write_bytes(file.read_bytes()[:100])
    found = evaluate_checkpoints([towers(tmp_path)], SUITE, root, encoding=Encoding(keep), failures=failures)
    assert {r.task for r in found} == {"stl10", FLICKR}
    assert [f.task for f in failures] == ["mnist"]
    assert str(file) in failures[0].reason
    assert "Remove it and run again" in failures[0].reason


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {unit!r})
from test_evaluation_rerun import SUITE, towers
from evaluation.running import encode
from evaluation.results import save_results
from evaluation.running.runner import Encoding, evaluate_checkpoints
encode.CHUNK = 16
model = towers(Path({folder!r}))
forward = model.model.encode_image
def slowly(images):
    time.sleep(0.15)
    return forward(images)
model.model.encode_image = slowly
home = Path({folder!r})
evaluate_checkpoints([model], SUITE, home / "sets", encoding=Encoding(home / "vectors"),
                     on_results=lambda found: save_results(home / "results.jsonl", found))
"""


def test_a_suite_killed_in_the_middle_of_a_task_goes_on_to_the_results_of_an_undisturbed_run(
    root, tmp_path, monkeypatch
):
    monkeypatch.setattr("evaluation.running.encode.CHUNK", 16)
    undisturbed = evaluate_checkpoints([towers(tmp_path)], SUITE, root)
    unit = str(Path(__file__).parent)
    program = CHILD.format(unit=unit, folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program])
    vectors, results = tmp_path / "vectors", tmp_path / "results.jsonl"
    deadline = time.monotonic() + 120
    # After the first task, in the middle of the second: five chunks of 16 pictures a task.
    while len(list(vectors.rglob("0*.npz"))) < 7 or not results.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = load_results(results)
    assert {r.task for r in done} < {r.task for r in undisturbed}
    kept = sum(int(file.stem.split("-")[1]) - int(file.stem.split("-")[0]) for file in vectors.rglob("0*.npz"))
    again = towers(tmp_path)
    seen = counted(again)
    found = evaluate_checkpoints(
        [again], SUITE, root, encoding=Encoding(vectors), known=done,
        on_results=lambda mine: save_results(results, mine),
    )  # fmt: skip
    assert sum(seen) == 70 + 70 + 40 - kept
    assert numbers(found) == numbers(undisturbed)
    assert sorted(map(repr, numbers(load_results(results)))) == sorted(map(repr, numbers(found)))
