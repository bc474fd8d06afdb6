"""Less memory for the same gradient: parts of a batch, and blocks computed twice."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dbp.errors import ConfigError
from training.account.horizon import Horizon
from training.config import Model, Optimiser
from training.resume.ranks import Ranks
from training.run import check_norms
from training.step.fit import fresh_model, make_trainer, quiet
from training.step.loss import clip_loss
from training.step.module import Contrastive
from training.step.recompute import recompute_blocks

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 499, "width": 64, "heads": 2, "layers": 3},
}
PATCHES_DROPPED = TINY | {"vision_cfg": TINY["vision_cfg"] | {"patch_dropout": 0.5}}
RESNET = TINY | {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 32}}
OPTIMISER = Optimiser(1e-3, 0.9, 0.98, 1e-6, 0.2, "openclip3", "cosine", 8)


def batches(count: int, size: int = 8) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [
        {
            "images": torch.randint(0, 256, (size, 3, 32, 32), generator=draw, dtype=torch.uint8),
            "tokens": torch.randint(0, 499, (size, 16), generator=draw),
        }
        for _ in range(count)
    ]


def gradients(
    model: Any, folder: Path, chunk: int | None = None, precision: str = "fp32", steps: int = 1
) -> dict[str, torch.Tensor]:
    """The gradients of the last of some real steps."""
    fed = batches(steps)
    module = Contrastive(model, OPTIMISER, Horizon(96, 8, steps), 0, [0.5] * 3, [0.5] * 3, chunk)
    loader = torch.utils.data.DataLoader(fed, batch_size=None)  # type: ignore[arg-type]
    with quiet():
        make_trainer(folder, steps, "cpu", precision, []).fit(module, loader)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def worst(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Largest difference of a parameter's gradient, relative to its largest entry."""
    assert some.keys() == others.keys()
    assert len(some) > 20
    return max(
        float((some[n] - others[n]).abs().max() / others[n].abs().max().clamp_min(1e-12))
        for n in some
        if others[n].abs().max() > 1e-7  # a bias before a softmax has no gradient but rounding
    )


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_chunks_give_the_gradient_of_the_whole_batch(tmp_path: Path, chunk: int) -> None:
    model = fresh_model(Model(config=TINY), 0).model
    whole = gradients(copy.deepcopy(model), tmp_path)
    assert worst(gradients(copy.deepcopy(model), tmp_path, chunk), whole) < 1e-5
    # Adding up the losses of parts is another objective: their pairs have fewer negatives.
    plain = copy.deepcopy(model).train()
    module = Contrastive(plain, OPTIMISER, Horizon(96, 8, 1), 0, [0.5] * 3, [0.5] * 3)
    for start in (0, 4):
        f, g = module.features(batches(1)[0], slice(start, start + 4))
        (clip_loss(f, g, plain.logit_scale.exp()) / 2).backward()
    parts = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert worst(parts, whole) > 0.1


def test_what_a_model_draws_is_the_same_in_both_passes(tmp_path: Path) -> None:
    # Each chunk draws anew, so the law is this: gradients of a fixed function, by finite differences.
    model = fresh_model(Model(config=PATCHES_DROPPED), 0).model
    module = Contrastive(model, OPTIMISER, Horizon(96, 8, 1), 0, [0.5] * 3, [0.5] * 3, 4)
    batch = batches(1)[0]
    first = module.chunk_features(batch, slice(4, 8))
    torch.rand(3)
    again = module.chunk_features(batch, slice(4, 8))
    other = module.chunk_features(batch, slice(0, 4))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    with pytest.raises(AssertionError):  # the draws matter: another seed gives other features
        torch.testing.assert_close(module.features(batch, slice(4, 8))[0], first[0])


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_recomputed_blocks_change_nothing_but_memory(tmp_path: Path, share: float) -> None:
    model = fresh_model(Model(config=TINY), 0).model
    once, twice = copy.deepcopy(model), copy.deepcopy(model)
    blocks = {0.3: (2, 6), 0.5: (4, 6), 1.0: (6, 6)}[share]
    assert recompute_blocks(twice, share) == blocks
    assert once.state_dict().keys() == twice.state_dict().keys()
    wanted, found = gradients(once, tmp_path, steps=3), gradients(twice, tmp_path, steps=3)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name])
    assert saved_bytes(twice) < saved_bytes(once) * (1 - 0.5 * share)


def saved_bytes(model: Any) -> int:
    """What the forward pass keeps for the backward pass, parameters left out."""
    kept: dict[int, int] = {}
    ours = {p.data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in ours:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    module = Contrastive(model, OPTIMISER, Horizon(96, 8, 1), 0, [0.5] * 3, [0.5] * 3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = module.features(batches(1)[0])
    return sum(kept.values()) + 0 * len(made)


def test_a_resnet_is_refused_where_its_batch_would_be_cut() -> None:
    model = fresh_model(Model(config=RESNET), 0).model
    check_norms(model, None, Ranks(), "cpu")
    with pytest.raises(ConfigError, match=r"train\.chunk_size=4: CLIP normalises over the batch"):
        check_norms(model, 4, Ranks(), "cpu")
    with pytest.raises(ConfigError, match="2 processes on the CPU: CLIP normalises"):
        check_norms(model, None, Ranks(1, 2), "cpu")
    with pytest.raises(ConfigError, match=r"train\.recompute=0\.5: a tower of CLIP has no list"):
        recompute_blocks(model, 0.5)


@pytest.mark.nightly
def test_a_compiled_model_takes_the_steps_of_an_eager_one(tmp_path: Path) -> None:
    eager = fresh_model(Model(config=TINY), 0).model
    compiled = copy.deepcopy(eager)
    compiled.compile()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # One step: AdamW makes much of the last bits of small gradients, so later ones drift apart.
    wanted, found = gradients(eager, tmp_path, steps=1), gradients(compiled, tmp_path, steps=1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was compiled, in fact
    for name, slope in wanted.items():
        assert (found[name] - slope).norm() <= 1e-4 * slope.norm() + 1e-7, name
    # A checkpoint of it loads in a model that is not compiled.
    assert compiled.state_dict().keys() == eager.state_dict().keys()
