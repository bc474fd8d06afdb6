"""Every script of slurm/ says what it does, and what it says is what its experiment does."""

import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dbp.config import build, compose, groups
from dbp.dedup.semdedup import SemDeDup
from dbp.engine.store import Store
from dbp.selection.base import NoSelection
from dbp.selection.uniform import Uniform
from dbp.verbs.command_line import overrides
from slurm.plan import SEED, Composer, Plan, Point, check_compute, distinct, expand
from slurm.settings import Grid, SweepSettings

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm" / "studies").glob("*.sh"))
NAMES = [script.stem for script in SCRIPTS]
FIELDS = ["Reproduces", "Bring", "Runs", "Cost (estimate)", "Expect", "Assumed"]

# Forward and backward of a pair, in GFLOP; the slow test counts them.
GFLOP = {"ViT-S-32-alt": 10.6, "ViT-B-32": 44.1, "ViT-B-16": 123.0, "ViT-L-14": 525.7}
RATE = 989.4e12 * 0.25
COST = re.compile(r"#\s+(\d+) x +([\d,.]+) M (\w+) x ([\d.]+) GFLOP = ([\d,.]+) h")

# Composing takes a third of a second for each choice of presets, so most studies are for make test-all.
FAST = {"laion", "datacomp_medium", "encoders", "semdedup_iterations", "field_datacomp_small"}
STUDIES = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]

# A pool at hand, so that keys are known: which rows an arm has must not matter here.
POOL = ["pool=rehearsal", "pool.rows=64", "pool.rows_per_file=64", "pool.concepts=4"]


def header(script: Path) -> dict[str, str]:
    """The fields of a script's comments, each as one line."""
    comments = [line[1:].strip() for line in script.read_text().splitlines()[1:] if line[:1] == "#"]
    found: dict[str, str] = {}
    for line in comments:
        name = next((field for field in FIELDS if re.match(re.escape(field) + "[:,]", line)), None)
        if name:
            found[name] = line[len(name) + 1 :].strip()
        else:
            found[list(found)[-1]] += f" {line}"
    return found


def costs(script: Path) -> list[tuple[int, float, str, float, str]]:
    """The lines of a script's cost: how often, millions of what, GFLOP each, hours."""
    return [
        (int(n), number(millions), unit, float(gflop), hours)
        for n, millions, unit, gflop, hours in COST.findall(script.read_text())
    ]


def number(text: str) -> float:
    return float(text.replace(",", ""))


def shown(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


@dataclass
class Study:
    """An experiment over one seed, with the number of its seeds."""

    settings: SweepSettings
    plan: Plan
    store: Store
    seeds: int

    def runs(self) -> dict[str, Point]:
        """The points, each run once, by key."""
        return {str(self.store.key(point.last)): point for point in self.plan.points}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """An experiment by name, composed and expanded over a small pool; nothing else is built."""
    home = tmp_path_factory.mktemp("studies")
    (home / "sets").mkdir()
    made: dict[str, Study] = {}

    def of(name: str) -> Study:
        if name not in made:
            base = [f"experiment={name}", *POOL, f"root={home}/sets"]
            settings = build(compose("sweep", overrides(base)).sweep, SweepSettings, "sweep")
            grid = Grid.of(settings, {}, base, name)
            seeds = grid.axes.get(SEED, [0])
            axes = grid.axes | ({SEED: seeds[:1]} if SEED in grid.axes else {})
            points = expand(Composer(overrides(base), []), grid.arms, axes, {})
            store = Store(home / "store", home / "runs", lambda line: None)
            store.get(points[0].nodes["index"])
            plan = distinct(points, store, grid.controls)
            made[name] = Study(settings, plan, store, len(seeds))
        return made[name]

    return of


def keeps(point: Point) -> Any:
    """How many rows a point keeps, as far as the config says it; none for all."""
    select, dedup = point.nodes["select"].stage, point.nodes["dedup"].stage
    if not isinstance(select, NoSelection):
        return dict(point.config.budget)
    return dedup.num_kept if isinstance(dedup, SemDeDup) else None


def samples(point: Point) -> float:
    """Samples that a point sees, on a pool of the nominal size."""
    train, budget = point.config.train, point.config.budget
    if train.samples_seen is not None:
        return train.samples_seen
    whole = point.config.dedup.num_kept
    is_whole = isinstance(point.nodes["select"].stage, NoSelection)
    return train.epochs * whole * (1 if is_whole else budget.keep_fraction)


# scripts


def test_there_is_a_script_for_each_study():
    assert len(SCRIPTS) == 25


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_script_parses_stops_at_errors_and_hands_its_words_on(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert os.access(script, os.X_OK)
    *above, strict, last = script.read_text().splitlines()
    assert above[0] == "#!/usr/bin/env bash"
    assert all(line.startswith("#") and len(line) <= 126 for line in above)
    assert strict == "set -euo pipefail"
    assert last == (f'exec dbp sweep experiment={script.stem} launcher="${{LAUNCHER:-slurm}}" "$@"')
    assert script.stem in groups()["experiment"]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_script_says_what_it_reproduces_needs_costs_expects_and_assumes(script):
    said = header(script)
    assert list(said) == FIELDS
    assert all(len(text) > 9 for text in said.values())
    assert f"slurm/studies/{script.stem}.sh pool." in said["Bring"]
    assert "root=SETS" in said["Bring"]
    assert "not known" in said["Expect"] or re.search(r"table|figure", said["Expect"])


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_the_hours_of_a_script_are_its_arithmetic(script):
    lines = costs(script)
    made = [n * millions * 1e6 * gflop * 1e9 / RATE / 3600 for n, millions, _, gflop, _ in lines]
    assert [shown(hours) for hours in made] == [said for *_, said in lines]
    assert header(script)["Cost (estimate)"].endswith(f"in all {shown(sum(made))} h")


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_script_stands_in_the_table_of_studies_with_its_runs_and_hours(script):
    text = (ROOT / "docs" / "studies.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| `{script.stem}.sh` |"))
    said = header(script)
    runs = re.match(r"\d+", said["Runs"])
    hours = re.search(r"in all ([\d,]+) h", said["Cost (estimate)"])
    assert runs
    assert hours
    assert f"| {runs[0]} | {hours[1]} |" in row


# experiments


@pytest.mark.parametrize("name", STUDIES)
def test_an_experiment_has_the_runs_and_the_work_that_its_script_says(study, name):
    script, studied = ROOT / "slurm" / "studies" / f"{name}.sh", study(name)
    runs = studied.runs().values()
    assert header(script)["Runs"].startswith(str(len(runs) * studied.seeds))
    work = Counter(
        (round(samples(p) / 1e6, 1), GFLOP[p.config.model.name]) for p in runs for _ in range(studied.seeds)
    )
    said = Counter[tuple[float, float]]()
    for n, millions, unit, gflop, _ in costs(script):
        if unit == "samples":
            said[millions, gflop] += n
    assert work == said


@pytest.mark.parametrize("name", STUDIES)
def test_each_arm_that_selects_has_a_uniform_one_of_equal_size_from_the_same_rows(study, name):
    studied = study(name)
    plan, settings, store = studied.plan, studied.settings, studied.store
    by_label = {point.label: point for point in plan.points}
    own = {store.key(point.last) for point in plan.points if point.arm in settings.arms}
    assert own == set(studied.runs()), "the sweep had to add a control"
    selecting = 0
    for point in plan.points:
        arm, is_dedup_study = point.nodes, name.startswith("semdedup_")
        picks = not isinstance(arm["select"].stage, NoSelection | Uniform)
        dedups = is_dedup_study and keeps(point) and not isinstance(arm["select"].stage, Uniform)
        if not picks and not dedups:
            continue
        selecting += 1
        label = plan.control_of(point.label, settings.control)
        assert label, f"{point.label} has no control"
        control = by_label[label]
        assert isinstance(control.nodes["select"].stage, Uniform)
        assert samples(control) == samples(point)
        assert control.config.train.batch_size == point.config.train.batch_size
        assert control.config.model == point.config.model
        if picks:
            assert keeps(control) == keeps(point)
            assert store.key(control.nodes["filter"]) == store.key(arm["filter"])
        else:
            assert control.config.budget.num_kept == keeps(point)
            assert not isinstance(control.nodes["dedup"].stage, SemDeDup)
    assert selecting >= 2 - (name == "longer_laion")


@pytest.mark.parametrize("name", STUDIES)
def test_an_experiment_is_compute_matched_or_says_why_not(study, name):
    studied = study(name)
    check_compute(studied.plan, studied.settings.unequal_compute)
    text = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text()
    assert f"slurm/studies/{name}.sh" in text
    assert studied.settings.name == name
    if studied.settings.unequal_compute:
        assert re.search(r"unequal_compute: true +# \w+", text)
        with pytest.raises(ValueError, match="compute-matched"):
            check_compute(studied.plan, unequal=False)


SMOKED = [n if n == "encoders" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]


@pytest.mark.parametrize("name", SMOKED)
def test_a_rehearsal_has_every_arm_of_an_experiment_on_two_dozen_pairs(name, tmp_path):
    (tmp_path / "some.tar").touch()
    base = [f"experiment={name}", "debug=smoke", f"pool.shards={tmp_path}/some.tar", "root=sets"]
    config = compose("sweep", overrides(base))
    if "metadata" in config.pool:
        (tmp_path / "part.parquet").touch()
        base.append(f"pool.metadata={tmp_path}")
    settings = build(config.sweep, SweepSettings, "sweep")
    grid = Grid.of(settings, {}, base, name)
    points = expand(Composer(overrides(base), []), grid.arms, grid.axes, {})
    assert {str(arm) for arm in settings.arms} <= {point.arm for point in points}
    for point in points:
        config = point.config
        train: Any = point.nodes["train"].stage
        assert (config.pool.max_samples, config.budget.num_kept) == (24, 8)
        assert isinstance(point.nodes["dedup"].stage, SemDeDup)
        assert (train.samples_seen, train.batch_size, train.epochs) == (16, 8, None)
        assert config.model.name == "ViT-B-32"
        assert config.encoder.cluster.random_weights


@pytest.mark.slow
@pytest.mark.parametrize("model", GFLOP)
def test_the_work_of_a_pair_is_what_is_counted(model):
    import open_clip
    import torch

    from training.account.cost import hardware_flops

    with torch.device("meta"):
        towers = open_clip.CLIP(**open_clip.get_model_config(model))  # type: ignore[attr-defined]
    counted = hardware_flops(towers, 224)(77)
    assert counted
    assert GFLOP[model] == pytest.approx(counted / 1e9, abs=0.05)
