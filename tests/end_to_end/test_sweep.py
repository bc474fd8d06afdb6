"""A whole sweep on a small glyphs pool: the real stages, a few steps each."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from dbp.errors import ConfigError
from slurm.sweep import divide, main

SMALL = [
    "experiment=glyphs_methods",
    "pool.plan.num_pairs=600",
    "pool.plan.task_pictures=60",
    "sweep.encoder.train.samples_seen=128",
    "train.samples_seen=64",
    "train.batch_size=32",
    "train.log_every_samples=32",
    "cluster.num_clusters=4",
    "dedup=semdedup_smoke",
    "sweep.workers=1",
    "suite=[glyphs/letters,glyphs/retrieval]",
    "evaluate.limit=40",
    "evaluate.max_templates=1",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def swept(home):
    """The folder of tables after one sweep of five arms with one seed."""
    assert sweep(home) == 0
    return home / "runs" / "sweeps" / "glyphs_methods"


def sweep(home: Path, *more: str) -> int:
    seed = [] if any(a.startswith("sweep.seed=") for a in more) else ["sweep.seed=[0]"]
    return main([*SMALL, *seed, f"paths.store={home}/store", f"paths.runs={home}/runs", *more], [])


def manifests(home: Path) -> set[str]:
    return {str(path) for path in home.rglob("manifest.json")}


def test_every_arm_sees_equally_many_samples_in_equally_many_steps(swept):
    lines = [json.loads(line) for line in (swept / "results.jsonl").read_text().splitlines()]
    assert {line["arm"] for line in lines} == {"unpruned", "uniform", "clip score", "ssp", "dbp"}
    assert {(line["samples_seen"], line["steps"], line["batch_size"]) for line in lines} == {(64, 2, 32)}


def test_the_methods_keep_equally_many_rows_and_the_unpruned_arm_keeps_all(swept):
    lines = [json.loads(line) for line in (swept / "results.jsonl").read_text().splitlines()]
    kept = {line["arm"]: line["kept"] for line in lines}
    assert kept.pop("unpruned") == 600
    assert set(kept.values()) == {int(0.333 * 600)}


def test_the_csv_and_the_json_lines_hold_the_same_numbers(swept):
    lines = [json.loads(line) for line in (swept / "results.jsonl").read_text().splitlines()]
    for row in csv.DictReader((swept / "table.csv").open()):
        if row["task"] == "mean":
            continue
        values = [
            line["result"]["metrics"][row["metric"]]
            for line in lines
            if line["arm"] == row["arm"] and line["result"]["task"] == row["task"]
        ]
        assert len(values) == 1
        assert float(row["value"]) == pytest.approx(np.mean(values), abs=1e-12)


def test_the_table_says_what_was_planted_and_that_rankings_do_not_transfer(swept):
    text = (swept / "table.md").read_text()
    assert "10% exact copies, 15% re-encoded copies, 20% swapped captions" in text
    assert "do not transfer" in text
    assert "encoder" in text.split("Cost, each artifact once")[1]


def test_the_plots_are_pictures(swept):
    from PIL import Image

    for name in ("accuracy", "clusters", "sizes", "pictures"):
        with Image.open(swept / f"{name}.png") as image:
            assert min(image.size) > 300


def test_a_second_sweep_makes_nothing_and_a_new_axis_value_makes_only_its_arm(home, swept):
    before = manifests(home)
    assert sweep(home) == 0
    assert manifests(home) == before
    # The keep lists of DBP differ by temperature only where the quotas do; 1e-4 makes them differ.
    assert sweep(home, "sweep.select.temperature=[0.1,0.0001]", "sweep.name=axis") == 0
    new = [Path(path).parent.parent.name for path in manifests(home) - before]
    assert sorted(new) == ["evaluate", "select", "train"]


def test_an_axis_that_no_arm_reads_is_refused(home, swept):
    with pytest.raises(ConfigError, match="no arm of the sweep reads the axis select\\.sharpness"):
        sweep(home, "sweep.select.sharpness=[1,2]")


def test_arms_of_unequal_compute_are_refused(home, swept):
    with pytest.raises(ConfigError, match="not compute-matched: train\\.samples_seen is 64 and 128"):
        sweep(home, "sweep.train.samples_seen=[64,128]")


def test_arms_of_unequal_evaluation_are_refused(home, swept):
    with pytest.raises(ConfigError, match="not compute-matched: evaluate\\.limit is 40 and 20"):
        sweep(home, "sweep.evaluate.limit=[40,20]")


def test_an_arm_that_fails_is_in_the_table_and_the_others_go_on(home, swept, capsys):
    greedy = "+sweep.arms.greedy={select:uniform,budget:{num_kept:10000,keep_fraction:null}}"
    assert sweep(home, greedy, "sweep.name=greedy", "sweep.plots=false") == 1
    assert "finished, with failures in greedy" in capsys.readouterr().out
    table = (home / "runs" / "sweeps" / "greedy" / "table.md").read_text()
    assert "| greedy | 0 | no result: BudgetError: cannot keep 10,000 rows" in table
    assert "With failures: greedy." in table
    lines = (home / "runs" / "sweeps" / "greedy" / "results.jsonl").read_text().splitlines()
    assert {json.loads(line)["arm"] for line in lines} == {
        "unpruned", "uniform", "clip score", "ssp", "dbp"
    }  # fmt: skip


@pytest.mark.slow
def test_a_pool_cut_from_the_front_is_summed_up(home, swept):
    assert sweep(home, "pool.max_samples=300", "sweep.name=cut") == 0


def test_an_axis_on_the_command_line_needs_a_list():
    assert divide(["sweep.seed=[0,1]", "seed=3"]) == (["seed=3"], {"seed": [0, 1]})
    with pytest.raises(ConfigError, match="an axis takes a list of values"):
        divide(["sweep.seed=3"])


def test_a_checkpoint_loads_in_plain_open_clip_with_the_same_embeddings(home, swept):
    import open_clip
    import torch

    from dbp.encoders.openclip import load_openclip

    folder = next((home / "runs" / "train").iterdir())
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (home / "tiny-from-file.json").write_text(json.dumps(config))
    open_clip.add_model_config(home / "tiny-from-file.json")
    theirs = open_clip.create_model("tiny-from-file", pretrained=str(folder / "weights.pt")).eval()
    ours = load_openclip(checkpoint=folder / "weights.pt").model
    pictures = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(theirs.encode_image(pictures), ours.encode_image(pictures))
