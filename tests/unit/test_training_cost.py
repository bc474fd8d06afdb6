"""Arithmetic counted against hand counts and the known figures, and what a device says of itself."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from training.account.cost import PEAKS, Gauge, at_any_length, energy_counter, hardware_flops
from training.step.recompute import recompute_blocks

GIGA = 1e9


SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 99, "width": 64, "heads": 2, "layers": 4},
}


def clip(config: dict[str, Any]) -> Any:
    """A model of open_clip without storage."""
    from open_clip import CLIP

    with torch.device("meta"):
        return CLIP(**config)


def vit_b_32() -> Any:
    from open_clip import get_model_config

    return clip(get_model_config("ViT-B-32") or {})


def by_hand(width: int, tokens: int, layers: int) -> float:
    """Forward of a tower's blocks: four projections, the attention's two products, and the MLP."""
    return layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)


# ViT-B/32: 49 patches and a class token through 12 layers of 768; 77 tokens through 12 of 512.
BLOCKS = by_hand(768, 50, 12) + by_hand(512, 77, 12)
PATCHES, ENDS = 2 * 49 * 768 * 3 * 32**2, 2 * (768 * 512 + 512 * 512)
FORWARD = BLOCKS + PATCHES + ENDS
# The backward is twice the forward, but for the gradient of the pictures, which nobody needs.
STEP = 3 * FORWARD - PATCHES


def test_vit_b_32_costs_what_its_layers_multiply() -> None:
    assert hardware_flops(vit_b_32(), 224)(77) == STEP
    assert pytest.approx(14.78, abs=0.005) == FORWARD / GIGA
    assert pytest.approx(44.10, abs=0.005) == STEP / GIGA


def test_recomputing_and_gradcache_cost_what_they_do_twice() -> None:
    model = vit_b_32()
    assert hardware_flops(model, 224, grad_cache=True)(77) == STEP + FORWARD
    recompute_blocks(model, 1.0)
    # A block's last product, 8 of the 24 units of width squared, is not made again.
    repeated = BLOCKS - 12 * 2 * 4 * (50 * 768**2 + 77 * 512**2)
    assert hardware_flops(model, 224)(77) == STEP + repeated
    assert hardware_flops(model, 224, grad_cache=True)(77) == STEP + repeated + FORWARD
    assert (STEP + repeated) / GIGA == pytest.approx(53.88, abs=0.005)
    assert pytest.approx(58.88, abs=0.005) == (STEP + FORWARD) / GIGA


def test_a_share_of_the_blocks_is_counted_as_it_is_recomputed() -> None:
    counted = {}
    for share in (0.0, 0.3, 1.0):
        model = clip(SMALL)
        done, total = recompute_blocks(model, share)
        assert total == (8 if share else 0)
        counted[done] = hardware_flops(model, 32)(16) or 0
    assert counted[4] - counted[0] == (counted[8] - counted[0]) / 2 > 0


@pytest.mark.slow
def test_a_shorter_caption_costs_what_its_tokens_multiply() -> None:
    count = hardware_flops(clip(SMALL), 32)
    whole, half = count(16), count(8)
    assert whole is not None
    assert half is not None
    assert whole - half == 3 * (by_hand(64, 16, 4) - by_hand(64, 8, 4))
    for grad_cache in (False, True):
        traced = hardware_flops(clip(SMALL), 32, grad_cache)
        quick = at_any_length(traced, 16)
        assert [quick(length) for length in range(1, 17)] == [traced(n) for n in range(1, 17)]


def test_counting_leaves_the_model_as_it_is() -> None:
    model = clip(SMALL).eval()
    assert hardware_flops(model, 32)(8)
    assert not model.training
    assert model.positional_embedding.shape == (16, 64)
    assert all(parameter.grad is None for parameter in model.parameters())


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return images * float(images.sum()), tokens * self.weight


def test_a_model_that_cannot_be_traced_has_no_count() -> None:
    assert hardware_flops(Untraceable(), 8)(8) is None
    assert at_any_length(hardware_flops(Untraceable(), 8), 8)(5) is None


def gauge(monkeypatch: pytest.MonkeyPatch, name: str, precision: str) -> Gauge:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    monkeypatch.setattr("training.account.cost.energy_counter", lambda device: None)
    return Gauge("cuda:1", precision)


def test_peaks_go_by_the_exact_name_and_are_never_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {
        name: gauge(monkeypatch, name, "bf16").peak_flops
        for name in (
            "NVIDIA H200", "NVIDIA H200 NVL", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe",
            "NVIDIA H100 NVL", "Tesla V100-SXM2-16GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
            "NVIDIA H300",
        )
    }  # fmt: skip
    assert list(peaks.values()) == [989.4e12, 835.5e12, 989.4e12, 756e12, 835.5e12, None, None, None]
    assert gauge(monkeypatch, "NVIDIA H200", "fp32").peak_flops == 66.9e12
    assert gauge(monkeypatch, "NVIDIA H300", "fp32").name == "NVIDIA H300"


@pytest.mark.parametrize(
    ("name", "processors", "tensor", "tensor_clock", "plain", "plain_clock"),
    [
        ("NVIDIA H100 80GB HBM3", 132, 4096, 1.83, 256, 1.98),
        ("NVIDIA H100 PCIe", 114, 4096, 1.62, 256, 1.755),
        ("NVIDIA A100-SXM4-80GB", 108, 2048, 1.41, 128, 1.41),
    ],
)
def test_peaks_are_processors_times_operations_times_clock(
    name: str, processors: int, tensor: int, tensor_clock: float, plain: int, plain_clock: float
) -> None:
    assert PEAKS[name].bf16 == pytest.approx(processors * tensor * tensor_clock * GIGA, rel=1e-3)
    assert PEAKS[name].fp32 == pytest.approx(processors * plain * plain_clock * GIGA, rel=2e-3)


def test_a_cpu_has_no_peak_no_device_memory_and_no_energy() -> None:
    cpu = Gauge("cpu", "fp32")
    cpu.begin()
    assert (cpu.name, cpu.is_gpu, cpu.peak_flops, cpu.energy) == ("cpu", False, None, None)
    assert cpu.peak_memory() is None


class Library(ModuleType):
    """NVIDIA's library for one card; it counts millijoules."""

    class NVMLError(Exception):
        pass

    def __init__(self, counts: bool) -> None:
        super().__init__("pynvml")
        self.counts, self.asked = counts, 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "GPU-1234"
        if not self.counts:
            raise self.NVMLError("not supported")
        self.asked += 1
        return 5000 * self.asked


def test_energy_is_read_in_joules_of_the_card_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    monkeypatch.setitem(sys.modules, "pynvml", Library(counts=True))
    read = energy_counter("cuda:0")
    assert read is not None
    assert (read(), read()) == (10.0, 15.0)
    monkeypatch.setitem(sys.modules, "pynvml", Library(counts=False))
    assert energy_counter("cuda:0") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert energy_counter("cuda:0") is None
