"""Checkpoints that others wrote: real files of each kind are read, or called what they are."""

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dbp.encoders.openclip import load_openclip
from dbp.encoders.state_dicts import read_weights
from dbp.encoders.timm import Timm
from dbp.errors import ConfigError

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_openclip(config=VIT, random_weights=True).model.state_dict()


def renamed(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in tensors.items()}


def is_read(path: Path, tensors: dict[str, Any]) -> None:
    found = load_openclip(config=VIT, checkpoint=path).model.state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


PREFIXES = ["module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_around_the_names_are_taken_off_in_any_order(
    tmp_path: Path, tensors: dict[str, Any], prefix: str
) -> None:
    torch.save({"state_dict": renamed(tensors, prefix)}, tmp_path / "weights.pt")
    is_read(tmp_path / "weights.pt", tensors)


def test_a_tower_that_was_compiled_alone_has_plain_names(tmp_path: Path, tensors: dict[str, Any]) -> None:
    inner = {name.replace("visual.", "visual._orig_mod."): value for name, value in tensors.items()}
    torch.save(inner, tmp_path / "weights.pt")
    is_read(tmp_path / "weights.pt", tensors)


@pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model", "module"])
def test_plain_values_of_a_training_script_do_not_stand_in_the_way(
    tmp_path: Path, tensors: dict[str, Any], nest: str
) -> None:
    beside = {
        "args": argparse.Namespace(lr=np.float64(1e-3), epochs=np.int64(3), path=Path("data"), amp=np.bool_(True)),
        "best": np.float32(0.5),
        "epoch": 3,
    }
    torch.save({**beside, nest: renamed(tensors, "module.")}, tmp_path / "weights.pt")
    is_read(tmp_path / "weights.pt", tensors)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin"])
def test_safetensors_are_read_under_any_name(tmp_path: Path, tensors: dict[str, Any], name: str) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / name)
    is_read(tmp_path / name, tensors)


def test_a_torch_file_is_read_under_the_name_of_safetensors(tmp_path: Path, tensors: dict[str, Any]) -> None:
    torch.save(tensors, tmp_path / "weights.safetensors")
    is_read(tmp_path / "weights.safetensors", tensors)


def test_a_file_of_the_old_format_of_torch_is_read(tmp_path: Path, tensors: dict[str, Any]) -> None:
    torch.save(tensors, tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    is_read(tmp_path / "weights.pt", tensors)


class Evil:
    def __reduce__(self) -> Any:
        return eval, ("open('ran', 'w')",)


def script(path: Path) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    torch.jit.save(torch.jit.script(Two()), path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme.txt", "hi")


def cut(path: Path) -> None:
    torch.save({"a": torch.zeros(10000)}, path)
    path.write_bytes(path.read_bytes()[:5000])


def cut_at(share: float) -> Callable[[Path], Any]:
    """Write a part of a file of safetensors."""

    def write(path: Path) -> None:
        save_file({f"layer.{n}.weight": torch.zeros(100) for n in range(50)}, path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


KINDS: list[tuple[Callable[[Path], Any], list[str]]] = [
    (script, ["TorchScript", "torch.jit.load"]),
    (lambda p: p.write_text("<!DOCTYPE html><html>404</html>"), ["HTML"]),
    (lambda p: p.write_text("\n<html>"), ["HTML"]),
    (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n"), ["git lfs pull"]),
    (lambda p: p.write_bytes(b"\x1f\x8b\x08" + b"0" * 99), ["gzip"]),
    (lambda p: p.write_bytes(b""), ["empty"]),
    (zipped, ["zip archive that torch did not write"]),
    (cut, ["cut short"]),
    (cut_at(0.9), ["safetensors file of", "cut short"]),
    (cut_at(0.05), ["a safetensors file of", "cut short"]),  # within its header
    (lambda p: torch.save({"a": torch.zeros(1), "x": Evil()}, p), ["eval", "run code", "weights_only=False"]),
    (lambda p: p.write_text("lr: 0.1"), ["text"]),
    (lambda p: torch.save(torch.nn.Linear(2, 2), p), ["torch.nn.modules.linear.Linear", "state_dict()"]),
    (lambda p: torch.save([1, 2], p), ["list"]),
    (lambda p: torch.save({"epoch": 3}, p), ["'epoch'", "int"]),
    (lambda p: torch.save({}, p), ["no tensors"]),
]  # fmt: skip


@pytest.mark.parametrize(("write", "facts"), KINDS, ids=[facts[0] for _, facts in KINDS])
def test_a_file_that_is_something_else_is_called_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any], facts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    write(path)
    for read in (
        lambda: load_openclip(config=VIT, checkpoint=path),
        lambda: Timm("vit_tiny_patch16_224", 224, "token", checkpoint=str(path)).load(),
    ):
        with pytest.raises(ConfigError) as raised:
            read()
        for fact in (*facts, str(path)):
            assert fact in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_way_out_of_a_torchscript_archive_works(tmp_path: Path) -> None:
    script(tmp_path / "script.pt")
    with pytest.raises(ConfigError) as raised:
        read_weights(tmp_path / "script.pt")
    program = str(raised.value).split('python -c "')[1].split('"')[0]
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert read_weights(tmp_path / "weights.pt")["weight"].tolist() == [1, 1]


def test_numbers_that_openai_keeps_among_its_weights_are_left_out(tmp_path: Path, tensors: dict[str, Any]) -> None:
    torch.save({**tensors, "input_resolution": torch.tensor(16), "vocab_size": torch.tensor(9)}, tmp_path / "w.pt")
    is_read(tmp_path / "w.pt", tensors)


@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_a_checkpoint_of_timm_is_read_with_its_wrappers_and_without_its_head(tmp_path: Path, prefix: str) -> None:
    import timm

    torch.manual_seed(3)
    made = timm.create_model("vit_tiny_patch16_224", img_size=32)
    torch.save({"state_dict": renamed(made.state_dict(), prefix)}, tmp_path / "weights.pt")
    tower = Timm("vit_tiny_patch16_224", 32, "token", checkpoint=str(tmp_path / "weights.pt")).load()
    pixels = torch.zeros(1, 3, 32, 32)
    made.reset_classifier(0, "token")
    expected = made.eval()(pixels).detach().numpy()
    assert np.allclose(tower.encode_images(pixels), expected, atol=1e-4)


def test_a_checkpoint_of_another_model_of_timm_does_not_fit(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="does not fit model vit_tiny_patch16_224"):
        Timm("vit_tiny_patch16_224", 32, "token", checkpoint=str(tmp_path / "weights.pt")).load()


@pytest.mark.parametrize(
    ("model", "facts"),
    [("resnet18", ["resnet18", "state dict"]), ("vit_tiny_patch16_224", ["does not fit", "or is damaged"])],
)
def test_arrays_of_numpy_that_a_model_of_timm_cannot_take_are_refused_in_words(
    tmp_path: Path, model: str, facts: list[str]
) -> None:
    np.savez(tmp_path / "weights.npz", a=np.zeros(2))
    for damage in (False, True):
        if damage:
            (tmp_path / "weights.npz").write_bytes(b"PK nothing")
        with pytest.raises(ConfigError) as raised:
            Timm(model, 32, "avg", checkpoint=str(tmp_path / "weights.npz")).load()
        for fact in (*facts, str(tmp_path / "weights.npz")):
            assert fact in str(raised.value)


def test_the_config_beside_a_checkpoint_names_its_model(tmp_path: Path, tensors: dict[str, Any]) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": VIT}))
    torch.save(renamed(tensors, "module."), tmp_path / "weights.pt")
    assert load_openclip(checkpoint=tmp_path / "weights.pt").config == VIT
