"""Configs that a sweep makes in memory are those that Hydra composes."""

import subprocess
import sys
from typing import Any

import pytest

from dbp.config import compose
from dbp.verbs.command_line import overrides
from slurm.composer import Composer


@pytest.mark.parametrize(
    "settings",
    [
        {"select": "dbp", "seed": 7, "select.temperature": 0.5, "cluster.num_clusters": 9},
        {"select": "ssp", "seed": 3, "train.seed": 11},  # fixed, so that it follows the seed no more
        {"select": "uniform", "protocol": "datacomp", "parts.threads": 3, "dedup": "none"},
        {"select": "dbp", "select.seed": "${cluster.num_clusters}", "cluster.num_clusters": 12},
        {"encoder.cluster": "dinov2_l14", "model": "vit_s32", "suite": ["glyphs/letters"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_made_in_memory_is_the_one_that_hydra_composes(settings: dict[str, Any]) -> None:
    base = ["experiment=glyphs_methods", "train.batch_size=64"]
    made = Composer(overrides(base), []).config(settings)
    said = [f"{key}={'[' + ','.join(v) + ']' if isinstance(v, list) else v}" for key, v in settings.items()]
    assert made == compose("sweep", overrides([*base, *said]))


def test_a_text_that_holds_a_setting_follows_it() -> None:
    composer = Composer(["experiment=glyphs_methods", "sweep.notes=['seed ${seed}']"], [])
    notes = [composer.config({"seed": seed}).sweep.notes for seed in (3, 4)]
    assert notes == [["seed 3"], ["seed 4"]]


def test_what_is_linked_to_a_link_follows_too() -> None:
    links = ["cluster.num_clusters=${seed}", "dedup.num_clusters=${cluster.num_clusters}"]
    composer = Composer(["experiment=glyphs_methods", *links], [])
    assert [composer.config({"seed": n}).dedup.num_clusters for n in (3, 4)] == [3, 4]


def test_the_encoder_that_a_sweep_trains_reaches_components_that_hold_one() -> None:
    composer = Composer(overrides(["experiment=field"]), [])
    encoder = {"checkpoint": "weights.pt", "config": "model.json"}
    config = composer.config({"dedup": "fairdedup_glyphs"}, encoder=encoder)
    held = [config.dedup.encoder, config.scores.flipped.encoder, config.captioner.encoder, config.encoder.score]
    assert [one.checkpoint for one in held] == ["weights.pt"] * 4


def test_points_with_equal_settings_share_their_config_and_their_stages() -> None:
    composer = Composer(overrides(["experiment=glyphs_methods"]), [])
    one = composer.config({"select": "ssp", "select.temperature": 0.1}, ["select.temperature"])
    assert composer.config({"select": "ssp", "select.temperature": 0.2}, ["select.temperature"]) is one


def test_a_sweep_is_planned_without_what_trains() -> None:
    code = "import sys, slurm.sweep; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"
