"""One training step: open_clip's own numbers, bit by bit."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.account.horizon import Horizon
from training.config import Model, Optimiser
from training.step.fit import fresh_model, make_trainer, quiet
from training.step.loss import clip_loss
from training.step.module import Contrastive, Diverged
from training.step.optim import learning_rate, make_optimiser, openclip3_groups
from training.step.trimming import can_trim, groups_of, lengths_of, run_trimmed

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small steps are slower on several threads, by far where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(**change: Any) -> Optimiser:
    given = {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "weight_decay": 0.2,
        "decay_groups": "openclip3",
        "schedule": "cosine",
        "warmup_samples": 24,
    }
    return Optimiser(**given | change)


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [
        {
            "images": torch.randint(0, 256, (8, 3, 32, 32), generator=draw, dtype=torch.uint8),
            "tokens": torch.randint(0, 49408, (8, 16), generator=draw),
        }
        for _ in range(count)
    ]


def trained(model: Any, folder: Path, fed: list[Any], precision: str = "fp32", **change: Any) -> Any:
    module = Contrastive(model, settings(**change), Horizon(96, 8, len(fed)), 0, MEAN, STD)
    with quiet():
        loader = torch.utils.data.DataLoader(fed, batch_size=None)  # type: ignore[arg-type]
        make_trainer(folder, len(fed), "cpu", precision, []).fit(module, loader)
    return module


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twelve_steps_are_bit_identical_with_open_clip_s_own_loop(precision: str, tmp_path: Path) -> None:
    train = pytest.importorskip("open_clip_train.train")
    scheduler = pytest.importorskip("open_clip_train.scheduler")
    from open_clip import ClipLoss

    ours = fresh_model(Model(config=TINY), seed=5).model
    theirs = copy.deepcopy(ours)
    theirs.output_dict = True
    fed = batches(12)
    module = trained(ours, tmp_path, fed, precision)

    loader = [(module.normalise(b["images"]), b["tokens"]) for b in fed]
    data = SimpleNamespace(set_epoch=lambda epoch: None, dataloader=Listed(loader))
    optimiser = make_optimiser(theirs, settings())
    args = SimpleNamespace(
        device="cpu", precision="amp_bf16" if precision == "bf16" else "fp32", distill=False,
        accum_freq=1, skip_scheduler=False, horovod=False, grad_clip_norm=None, rank=0,
        local_rank=0, world_size=1, log_every_n_steps=100, wandb=False, batch_size=8,
        distributed=False,
    )  # fmt: skip
    train.train_one_epoch(
        theirs, {"train": data}, ClipLoss(), 0, optimiser, None,
        scheduler.cosine_lr(optimiser, 1e-3, 3, 12), None, args,
    )  # fmt: skip
    start = fresh_model(Model(config=TINY), seed=5).model.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert not torch.equal(start["visual.proj"], ours.state_dict()["visual.proj"])


class Listed(list):
    """A list of batches as open_clip's loop expects its loader."""

    @property
    def num_batches(self) -> int:
        return len(self)

    @property
    def num_samples(self) -> int:
        return 8 * len(self)


def captions(lengths: list[int], context: int = 16) -> torch.Tensor:
    """Tokens of captions that end, with CLIP's last token, after so many."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.zeros((len(lengths), context), dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length - 1] = torch.randint(1, 49407, (length - 1,), generator=draw)
        row[length - 1] = 49407
    return tokens


@pytest.mark.parametrize(("longest", "kept"), [(3, 8), (8, 8), (9, 16), (17, 20)])
def test_a_small_batch_is_cut_behind_its_longest_caption(longest: int, kept: int) -> None:
    (group,) = groups_of(lengths_of(captions([2, longest, 2], context=20)), 20)
    assert group.length == kept
    assert sorted(group.rows.tolist()) == [0, 1, 2]


def test_one_long_caption_among_thousands_costs_its_group_alone() -> None:
    lengths = torch.randint(3, 17, (4096,), generator=torch.Generator().manual_seed(0))
    lengths[77] = 77
    groups = groups_of(lengths, 77)
    assert [len(group.rows) for group in groups] == [512] * 8
    assert max(group.length for group in groups[:-1]) <= 16
    assert groups[-1].length == 77
    assert sorted(torch.cat([group.rows for group in groups]).tolist()) == list(range(4096))
    assert all(int(lengths[group.rows].max()) <= group.length for group in groups)


def test_places_behind_a_caption_move_no_feature_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.step.trimming.GROUP", 2)
    model = fresh_model(Model(config=TINY), seed=2).model.double()
    assert can_trim(model)
    images = torch.randn((7, 3, 32, 32), dtype=torch.double)
    tokens = captions([4, 16, 2, 8, 6, 3, 7])
    groups = groups_of(lengths_of(tokens), 16)
    assert [group.length for group in groups] == [8, 8, 16]
    found = []
    for run in (model, lambda *given: run_trimmed(model, *given, groups)):
        model.zero_grad()
        image, text, *_ = run(images, tokens)
        clip_loss(image, text, model.logit_scale.exp()).backward()
        grown = {n: p.grad.clone() for n, p in model.named_parameters()}
        found.append((image.detach(), text.detach(), grown))
    (image, text, gradients), (same_image, same_text, same_gradients) = found
    assert torch.allclose(image, same_image, rtol=0, atol=1e-12)
    assert torch.allclose(text, same_text, rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, same_gradients[name], rtol=0, atol=1e-12), name
    assert gradients["positional_embedding"].abs().min() > 0


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("group", [2, 256])
def test_a_run_on_trimmed_captions_ends_where_the_whole_ones_do(
    chunk: int | None, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.step.trimming.GROUP", group)
    fed = [b | {"tokens": captions([3, 5, 4, 7, 2, 3, 6, 8])} for b in batches(6)]
    ends, multiplied = [], []
    for trims in (False, True):
        model = fresh_model(Model(config=TINY), seed=5).model.double()
        module = Contrastive(model, settings(), Horizon(96, 8, 6), 0, MEAN, STD, chunk, trims=trims).double()
        module.normalise = lambda images: images.double() / 255  # type: ignore[method-assign]
        shapes: set[tuple[int, ...]] = set()
        model.transformer.register_forward_pre_hook(
            lambda _, given, shapes=shapes: shapes.add(tuple(given[0].shape[:2]))
        )
        with quiet():
            loader = torch.utils.data.DataLoader(fed, batch_size=None)  # type: ignore[arg-type]
            make_trainer(tmp_path, 6, "cpu", "fp32", []).fit(module, loader)
        ends.append(model.state_dict())
        batch = module.transfer_batch_to_device(fed[0], torch.device("cpu"), 0)
        multiplied.append(module.multiplied(batch))
        assert shapes == set(multiplied[-1]), "what is counted is what went through the tower"
    assert multiplied[0] == [(8, 16)] if chunk is None else [(4, 16)] * 2
    assert {length for _, length in multiplied[1]} == {8}
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], rtol=0, atol=1e-9), name


def test_a_text_tower_that_sees_ahead_is_left_alone() -> None:
    for change in ({"no_causal_mask": True}, {"pool_type": "last"}):
        config = TINY | {"text_cfg": TINY["text_cfg"] | change}
        assert not can_trim(fresh_model(Model(config=config), seed=0).model)
    config = TINY | {"custom_text": True}  # another class of open_clip's
    assert not can_trim(fresh_model(Model(config=config), seed=0).model)


def test_clipping_takes_the_norm_in_the_model_s_order(tmp_path: Path) -> None:
    ours = fresh_model(Model(config=TINY), seed=5).model
    theirs = copy.deepcopy(ours)
    fed = batches(3)
    module = trained(ours, tmp_path, fed, grad_clip=0.5)
    optimiser = make_optimiser(theirs.train(), settings())
    for step, batch in enumerate(fed):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings(), step, 3, 3)
        image = theirs.encode_image(module.normalise(batch["images"]), normalize=True)
        text = theirs.encode_text(batch["tokens"], normalize=True)
        optimiser.zero_grad()
        clip_loss(image, text, theirs.logit_scale.exp()).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimiser.step()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_decay_groups_are_those_of_open_clip_3() -> None:
    model = fresh_model(Model(config=TINY), seed=0).model
    names = {id(p): n for n, p in model.named_parameters()}
    bare, decayed = ([names[id(p)] for p in group["params"]] for group in openclip3_groups(model, 0.2))
    assert sorted(bare + decayed) == sorted(names.values())
    assert {"logit_scale", "visual.class_embedding", "ln_final.weight"} <= set(bare)
    # Two dimensions: decayed in 3.3, exempt in open_clip 4.
    assert {"positional_embedding", "visual.positional_embedding", "text_projection"} <= set(decayed)
    assert not [n for n in decayed if "ln_" in n or n.endswith("bias")]


def test_the_schedule_is_open_clip_s() -> None:
    scheduler = pytest.importorskip("open_clip_train.scheduler")
    group = SimpleNamespace(param_groups=[{}])
    for name, make in (("cosine", scheduler.cosine_lr), ("constant", scheduler.const_lr)):
        theirs = make(group, 1e-3, 5, 40)
        ours = settings(schedule=name)
        assert [learning_rate(ours, s, 40, 5) for s in range(40)] == [theirs(s) for s in range(40)]


def test_the_loss_is_open_clip_s_and_the_mean_of_what_ranks_compute() -> None:
    from open_clip import ClipLoss

    draw = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(12, 5, generator=draw), dim=1) for _ in range(2))
    scale = torch.tensor(10.0)
    whole = clip_loss(images, texts, scale)
    assert torch.equal(whole, ClipLoss()(images, texts, scale))
    parts = []
    for rank, rows in enumerate(torch.arange(12).chunk(3)):
        given = iter([images, texts])
        parts.append(clip_loss(images[rows], texts[rows], scale, lambda _, g=given: next(g), rank))
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-6)


def test_the_logit_scale_stays_between_zero_and_the_logarithm_of_a_hundred(tmp_path: Path) -> None:
    for start, bound in ((10.0, math.log(100)), (-3.0, 0.0)):
        model = fresh_model(Model(config=TINY), seed=0).model
        with torch.no_grad():
            model.logit_scale.fill_(start)
        trained(model, tmp_path, batches(1), lr=1e-6)
        assert model.logit_scale.item() == pytest.approx(bound, abs=1e-6)


def test_a_loss_that_is_not_finite_names_its_first_step(tmp_path: Path) -> None:
    model = fresh_model(Model(config=TINY), seed=0).model
    module = trained(model, tmp_path, batches(2))
    module.check_finite()
    with torch.no_grad():
        model.text_projection.fill_(math.nan)
    module = trained(model, tmp_path, batches(2))
    with pytest.raises(Diverged, match=r"the loss of step 0 \(after 0 samples seen\)") as stop:
        module.check_finite()
    assert "train.optimiser.lr=0.001" in str(stop.value)


def test_weights_depend_on_the_seed_and_leave_torch_s_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, again, other = (fresh_model(Model(config=TINY), seed=s).model for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.visual.proj, again.visual.proj)
    assert not torch.equal(one.visual.proj, other.visual.proj)
