"""What training costs: arithmetic counted and not guessed, and what the device says of itself."""

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.step.trimming import can_trim, features_of, run_short

CountFlops = Callable[[int], int | None]  # of one pair, by the length of its caption in tokens


def hardware_flops(model: Any, size: int, grad_cache: bool = False) -> CountFlops:
    """Operations that a device makes for one pair, forward and backward, by its caption's length.

    A multiply-add counts as two. ViT-B/32 at 224 px and 77 tokens: 44.10 GFLOP; 53.88 with all blocks recomputed,
    58.88 with GradCache, which makes the whole forward twice. Counted by torch on tensors without storage, so it
    costs no arithmetic. The matrix of similarities is left out: under 0.1 % at batch 4096 (ViT-B/32).

    Args:
        model: As it stands: with recomputation switched on, what is recomputed is counted exactly. A
            block is then repeated up to the last value that its backward needs, so its last product
            is not made again. The model is left as it is.
        size: Side of the picture, in pixels.
        grad_cache: Whether the features are made once before, without a gradient.

    Returns:
        A function from tokens of a caption; None for a model that cannot be traced in this way.
    """

    return _counted(model, lambda traced, length: (
        (_trace(traced, size, length, backward=False) if grad_cache else 0) + _trace(traced, size, length)
    ))  # fmt: skip


def forward_flops(model: Any, size: int) -> CountFlops:
    """The same of a forward pass alone, without a gradient; the model is left as it is."""
    return _counted(model, lambda traced, length: _trace(traced, size, length, backward=False))


def _counted(model: Any, count: Callable[[Any, int], int]) -> CountFlops:
    @cache
    def traced() -> Any:
        return copy.deepcopy(model).to("meta").train()

    @cache
    def counted(length: int) -> int | None:
        try:
            return count(traced(), length)
        except (NotImplementedError, RuntimeError):
            return None

    return counted


def at_any_length(count: CountFlops, context_length: int) -> CountFlops:
    """The same count for captions of at most `context_length`, at least 3, without further tracing.

    Three lengths decide, since it is quadratic in the length.
    """
    known = {length: count(length) for length in (1, context_length // 2, context_length)}

    @cache
    def interpolated(length: int) -> int | None:
        total = Fraction(0)
        for at, flops in known.items():
            if flops is None:
                return None
            total += flops * math.prod(Fraction(length - other, at - other) for other in known if other != at)
        return round(total)

    return interpolated


def _trace(model: Any, size: int, context_length: int, backward: bool = True) -> int:
    pairs = 2
    images = torch.zeros(pairs, 3, size, size, device="meta")
    tokens = torch.zeros(pairs, context_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        run = partial(run_short, model) if can_trim(model) else model
        features, texts = features_of(run(images, tokens))
        if backward:
            (features.sum() + texts.sum()).backward()
    return counter.get_total_flops() // pairs


class Peak(NamedTuple):
    """Dense rates of a device in FLOP/s; none where its sheet gives none."""

    bf16: float | None  # tensor cores, fp32 accumulation, no sparsity
    fp32: float | None  # without tensor cores: TF32 is off in our fp32


# By the name that torch.cuda.get_device_name gives; a name that is not here, such as a slice of a
# GPU, has no peak. Source: NVIDIA's data sheets; bf16 is half of what they print with sparsity. Not
# looked up again for this table: V100, T4, A100, L4, H100 SXM and PCIe, and H200 (whose row counts
# sparsity and is halved) agree with Lightning 2.6's own; nothing else checks H100 NVL, L40S, GH200
# and B200. H100 SXM: 132 x 4096 x 1.83 GHz, PCIe: 114 x 4096 x 1.62 GHz.
PEAKS = {
    "Tesla V100-SXM2-16GB": Peak(None, 15.7e12),  # Tesla V100 data sheet, 2020
    "Tesla V100-SXM2-32GB": Peak(None, 15.7e12),
    "Tesla T4": Peak(None, 8.1e12),  # T4 data sheet
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 19.5e12),  # A100 data sheet, 2021
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 19.5e12),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 19.5e12),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 19.5e12),
    "NVIDIA L4": Peak(121e12, 30.3e12),  # L4 data sheet: 242 with sparsity
    "NVIDIA L40S": Peak(362e12, 91.6e12),  # L40S data sheet
    "NVIDIA H100 80GB HBM3": Peak(989.4e12, 66.9e12),  # H100 paper 1.04: SXM5; sheet: 1,979
    "NVIDIA H100 PCIe": Peak(756e12, 51.2e12),  # H100 paper 1.04: PCIe; sheet: 1,513
    "NVIDIA H100 NVL": Peak(835.5e12, 60e12),  # H100 data sheet, one card: 1,671 with sparsity
    "NVIDIA GH200 480GB": Peak(989.4e12, 66.9e12),  # GH200 data sheet: 990 and 67
    "NVIDIA H200": Peak(989.4e12, 66.9e12),  # H200 data sheet, SXM: 1,979; the chip of the H100
    "NVIDIA H200 NVL": Peak(835.5e12, 60e12),  # H200 data sheet, NVL: 1,671 with sparsity
    "NVIDIA B200": Peak(2250e12, 75e12),  # HGX B200 data sheet: 4.5 PFLOPS with sparsity
}


class Gauge:
    """What the device of a run says of itself, asked for without making it wait."""

    def __init__(self, device: str, precision: str) -> None:
        self.device, self.is_gpu = device, device.startswith("cuda")
        self.name = torch.cuda.get_device_name(device) if self.is_gpu else device
        peak = PEAKS.get(self.name)
        self.peak_flops = peak and (peak.bf16 if precision == "bf16" else peak.fp32)
        self.energy = energy_counter(device)

    def begin(self) -> None:
        """Forget the memory that was held before."""
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> int | None:
        """Most bytes that tensors held on the device since `begin`; none on the CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.is_gpu else None


def energy_counter(device: str) -> Callable[[], float] | None:
    """A function that gives the joules that a GPU has used since its driver was loaded.

    Returns:
        None without a GPU, without NVIDIA's library for Python (nvidia-ml-py), or for a card that
        does not count. The whole card is counted, whoever else uses it.
    """
    if not device.startswith("cuda"):
        return None
    try:
        import pynvml  # type: ignore[import-not-found]
    except ImportError:
        return None
    # By its own name: torch's numbers leave out the cards that CUDA_VISIBLE_DEVICES hides.
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
