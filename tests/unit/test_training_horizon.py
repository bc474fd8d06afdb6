"""Budgets: samples, steps, epochs, and what is said when they do not fit."""

import pytest

from dbp.config import build
from dbp.errors import ConfigError
from training.account.horizon import Budget, whole_steps
from training.stage import Train

TRAIN = {
    "model": {"name": "ViT-B-32"},
    "batch_size": 128,
    "optimiser": {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "weight_decay": 0.2,
        "decay_groups": "openclip3",
        "schedule": "cosine",
        "warmup_samples": 1280,
    },
    "augmentation": {"_target_": "training.feed.augmentation.Shift", "pixels": 2},
    "seed": 0,
    "precision": "fp32",
    "samples_seen": 12_800,
}


@pytest.mark.parametrize(
    ("samples", "batch", "steps"),
    [
        (128_000, 1024, 125),  # DataComp's scales, research/training.md 2.1
        (12_800_000, 4096, 3125),
        (128_000_000, 4096, 31_250),
        (1_280_000_000, 8192, 156_250),
    ],
)
def test_datacomp_s_scales_are_whole_numbers_of_steps(samples: int, batch: int, steps: int) -> None:
    assert whole_steps(samples, batch) == steps


def test_a_remainder_is_refused_with_the_nearest_budgets_that_fit() -> None:
    with pytest.raises(ConfigError) as refusal:
        build(TRAIN | {"samples_seen": 30_000}, Train, "train")
    assert str(refusal.value) == (
        "train.samples_seen=30,000 is no whole number of batches of train.batch_size=128: it makes "
        "234.38 steps. Give train.samples_seen=29,952 (234 steps) or 30,080 (235 steps), "
        "another train.batch_size, or train.round_budget=true."
    )


def test_a_budget_below_one_batch_names_the_only_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"Give train\.samples_seen=128 \(1 step\), another"):
        whole_steps(100, 128)


@pytest.mark.parametrize(
    ("samples", "epochs", "said"),
    [
        (None, None, "train.samples_seen=null and train.epochs=null: exactly one must be set."),
        (12_800, 3.0, "train.samples_seen=12,800 and train.epochs=3.0: exactly one must be set."),
    ],
)
def test_exactly_one_kind_of_budget_is_given(samples: int, epochs: float, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(TRAIN | {"samples_seen": samples, "epochs": epochs}, Train, "train")
    assert str(refusal.value).startswith(said)


def test_fewer_kept_samples_than_a_batch_are_refused_naming_both() -> None:
    with pytest.raises(ConfigError) as refusal:
        Budget(batch_size=128, samples_seen=12_800).horizon(100)
    assert "100 kept samples with train.batch_size=128" in str(refusal.value)


def test_epochs_are_cut_to_whole_batches_and_never_lengthened() -> None:
    horizon = Budget(batch_size=128, epochs=3.0).horizon(1000)
    assert (horizon.steps, horizon.samples_seen) == (23, 2944)
    assert horizon.passes == 2.944


def test_a_fraction_of_an_epoch_is_the_decimal_as_written() -> None:
    assert Budget(batch_size=10, epochs=0.29).horizon(1000).steps == 29  # 0.29 * 1000 is 289.99… in binary


def test_less_than_one_batch_of_epochs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs=0\.1 over 1,000 .* less than one batch"):
        Budget(batch_size=128, epochs=0.1).horizon(1000)


def test_passes_are_samples_seen_over_the_kept_set() -> None:
    horizon = Budget(batch_size=100, samples_seen=10_000).horizon(2000)
    assert (horizon.steps, horizon.passes) == (100, 5.0)
    assert horizon.steps_for(250) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 1}, "train.batch_size=1: it must be at least 2, for negatives"),
        ({"model": {}}, "train.model.name=null and model.config=null: give"),
        ({"model": {"name": "ViT-B32"}}, "Did you mean 'ViT-B-32'?"),
        ({"precision": "fp16"}, "train.precision='fp16'"),
        ({"sampels_seen": 1}, "Did you mean 'samples_seen'?"),
        (
            {"augmentation": {"_target_": "training.feed.augmentation.Shift", "pixels": -1}},
            "train.augmentation.pixels=-1: it must be 0 or more",
        ),
    ],
)
def test_wrong_settings_stop_before_any_work(change: dict, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(TRAIN | change, Train, "train")
    assert said in str(refusal.value)


def test_runtime_settings_stay_out_of_the_key_and_auto_is_resolved_into_it() -> None:
    from dbp.engine.stage import key_of

    def key(**change: object) -> str:
        return key_of(build(TRAIN | change, Train), {"pool": "p", "keep": "k"})

    same = {"device": "cpu", "num_workers": 2, "cache": True, "checkpoint_every_samples": 128}
    assert key(**same) == key() == key(precision="auto", device="cpu")
    others = [key(seed=1), key(samples_seen=25_600), key(precision="bf16"), key(batch_size=256)]
    assert len({key(), *others}) == 5


def test_the_settings_are_importable_without_torch_or_lightning() -> None:
    import subprocess
    import sys

    code = (
        "import sys, training.train, training.config, training.resume.checkpoint, training.account.metrics\n"
        "heavy = {'torch', 'lightning', 'open_clip', 'torchvision', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("samples", "steps"), [(12_800_000_000, 142_045), (90_112 + 45_055, 1), (90_112 + 45_056, 2), (5, 1)]
)
def test_a_budget_is_rounded_to_the_nearest_batches_when_asked(samples: int, steps: int) -> None:
    # 12.8 B samples in batches of 90,112 are 142,045.45 steps: DataComp xlarge.
    assert whole_steps(samples, 90_112, rounds=True) == steps
    with pytest.raises(ConfigError, match="no whole number of batches"):
        whole_steps(samples, 90_112)
