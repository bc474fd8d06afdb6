"""What a sweep runs: axes that collapse, controls, overrides, arms that fail or die."""

import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dbp.config import build, compose
from dbp.engine.stage import Node, Stage
from dbp.engine.store import Store
from dbp.errors import ConfigError
from dbp.verbs.command_line import overrides
from slurm.local import DIED, run_points
from slurm.plan import Composer, Plan, Point, check_compute, distinct, expand
from slurm.settings import Grid, SweepSettings, add_controls
from slurm.sweep import divide, main

GLYPHS = ["experiment=glyphs_methods"]


@dataclass(frozen=True)
class Named(Stage):
    """A stage that is its key."""

    key: str


class Keys(Store):
    """A store in which nothing is built yet, and keys are names."""

    def __init__(self) -> None:
        super().__init__("store", "runs")

    def key(self, node: Node) -> str:
        assert isinstance(node.stage, Named)
        return node.stage.key

    def entry(self, node: Any) -> None:
        return None


def point(arm: str, key: str, seed: int = 0, **axes: Any) -> Point:
    nodes = {"evaluate": Named(key).bind()}
    return Point(arm, axes, None, nodes, "", seed, tuple(map(str, axes.values())))


def grid(*arguments: str) -> Grid:
    base, said = divide(list(arguments))
    config = compose("sweep", overrides(base))
    settings = build(config.sweep, SweepSettings, "sweep")
    return Grid.of(settings, said, base, "dbp")


# which arms are compared


def test_a_control_that_collapses_over_an_axis_serves_every_value_of_it():
    points = [point("uniform", "u", k=50), point("uniform", "u", k=100)]
    points += [point("dbp", "d50", k=50), point("dbp", "d100", k=100)]
    plan = distinct(points, Keys())
    assert plan.labels == ["uniform", "dbp k=50", "dbp k=100"]
    assert {plan.control_of(label, "uniform") for label in plan.labels} == {"uniform"}


def test_an_arm_that_collapses_where_the_control_does_not_has_no_control():
    points = [point("unpruned", "all", f=0.2), point("unpruned", "all", f=0.6)]
    points += [point("uniform", "u2", f=0.2), point("uniform", "u6", f=0.6)]
    plan = distinct(points, Keys())
    assert plan.control_of("unpruned", "uniform") is None
    assert plan.control_of("uniform f=0.6", "uniform") == "uniform f=0.6"


def test_two_arms_that_come_to_the_same_keep_a_row_each():
    plan = distinct([point("uniform", "u"), point("chance", "u")], Keys())
    assert plan.labels == ["uniform", "chance"]


def test_axes_that_end_alike_are_named_in_full():
    points = [point("dbp", f"{a}{b}", **{"dedup.seed": a, "cluster.seed": b}) for a in (0, 1) for b in (0, 1)]
    plan = distinct(points, Keys())
    assert plan.labels[1] == "dbp dedup.seed=0 cluster.seed=1"


def test_two_runs_of_one_name_and_seed_are_refused():
    points = [point("dbp", "a", k=1), point("dbp", "b", k=2), point("dbp k=1", "c", k=1)]
    with pytest.raises(ConfigError, match="two different runs are called 'dbp k=1' with seed 0"):
        distinct(points, Keys())


def test_budgets_in_epochs_are_not_compute_matched():
    config = OmegaConf.create({"train": {"epochs": 1.0}})
    points = [Point(arm, {}, config, {}, arm) for arm in ("uniform", "dbp")]
    with pytest.raises(ConfigError, match="train\\.epochs=1 gives each arm as many steps as its"):
        check_compute(Plan(points), unequal=False)
    check_compute(Plan(points), unequal=True)


# settings


@pytest.mark.parametrize(
    "value",
    [
        "a b/{00..09}.tar", "it's.tar", "*.tar", "@x", "%x", "?", "-", "pipe:cat", "x:", "1:30", "yes",
        "off", "~/x", "a #b", "C:/a: b", "{x}", "a=b,c", "'quoted'", "[a,b]", "[]", "null", "010", "é",
    ],
)  # fmt: skip
def test_a_sweep_reads_a_value_as_the_other_verbs_do(value):
    said = overrides([f"pool.shards={value}", "cluster.num_clusters=7"])
    config = Composer(said, []).config({"select": "uniform"})
    assert config.pool.shards == compose("sweep", said).pool.shards
    assert config.cluster.num_clusters == 7
    assert config.select._target_.endswith("Uniform")


def test_a_choice_of_an_arm_replaces_that_of_the_command_line():
    composer = Composer(overrides(["encoder=openclip_b32", "select=ssp"]), [])
    config = composer.config({"encoder.cluster": "dinov2_l14", "select": "dbp"})
    assert config.encoder.cluster._target_.endswith("Timm")
    assert config.encoder.score._target_.endswith("OpenClip")
    assert config.select._target_.endswith("Density")


def test_the_trained_encoder_goes_only_where_no_weights_are_named():
    composer = Composer(overrides([*GLYPHS, "encoder.score.checkpoint=mine.pt"]), [])
    trained = {"checkpoint": "weights.pt", "config": "config.json"}
    config = composer.config({"encoder.cluster": "dinov2_l14"}, encoder=trained)
    assert config.encoder.dedup.checkpoint == "weights.pt"
    assert config.encoder.score.checkpoint == "mine.pt"
    assert config.encoder.cluster.checkpoint is None


def test_a_list_of_encoders_is_an_axis_and_a_setting_of_the_encoder_is_not():
    arguments = ["sweep.encoder.cluster=[local_clip,dinov2_l14]", "sweep.encoder.seed=5"]
    assert divide(arguments) == (["sweep.encoder.seed=5"], {"encoder.cluster": ["local_clip", "dinov2_l14"]})


def test_an_arm_with_nothing_in_it_is_refused_and_told_how_to_say_so() -> None:
    with pytest.raises(ConfigError) as refused:
        SweepSettings(name="x", arms={"uniform": None}, axes={}, encoder=None, control="uniform")
    assert "sweep.arms.uniform" in str(refused.value)
    assert "{}" in str(refused.value)


def test_an_axis_of_methods_makes_an_arm_of_each():
    assert grid("sweep.select=[uniform,dbp]", "sweep.seed=[0,1]") == Grid(
        {"uniform": {"select": "uniform"}, "dbp": {"select": "dbp"}}, {"seed": [0, 1]}, {"dbp": "uniform"}
    )


def test_an_arm_that_selects_gets_a_control_of_equal_size_from_the_same_rows():
    made = grid("sweep.select=[dbp,ssp]", "sweep.seed=[0]")
    assert made.arms["uniform"] == {"select": "uniform"}
    assert made.controls == {"dbp": "uniform", "ssp": "uniform"}
    # Rows that were chosen from others need others by chance.
    arms = {"dbp": {"select": "dbp", "select.temperature": 0.2}, "raw": {"select": "ssp", "dedup": "none"}}
    controls = add_controls(arms, "uniform")
    assert controls == {"dbp": "uniform", "raw": "uniform (raw)"}
    assert arms["uniform (raw)"] == {"dedup": "none", "select": "uniform"}
    assert len(arms) == 4
    assert grid("sweep.select=[dbp]", "sweep.seed=[0]", "sweep.add_controls=false").controls == {}


def test_a_setting_that_the_sweep_overrules_is_refused():
    with pytest.raises(ConfigError, match=r"seed is an axis of this sweep, with values \[0, 1, 2\]"):
        grid(*GLYPHS, "seed=5")
    with pytest.raises(ConfigError, match="select has no effect: every arm of this sweep sets it"):
        grid(*GLYPHS, "select=dbp")
    assert grid(*GLYPHS, "sweep.seed=[5]").axes == {"seed": [5]}


def test_arms_that_are_no_mappings_are_refused():
    with pytest.raises(ConfigError, match=r"sweep\.arms\.a='ssp': it must be a mapping"):
        grid("+sweep.arms.a=ssp")


def test_a_rehearsal_takes_every_arm_at_one_point_and_leaves_its_own_settings_alone():
    rehearsed = grid("experiment=glyphs_full", "debug=smoke")
    assert rehearsed.axes == {"seed": [0], "pool": ["glyphs"], "select.temperature": [0.02]}
    assert len(rehearsed.arms) == 9
    assert rehearsed.arms["unpruned"] == {"select": "none"}
    composer = Composer(overrides(["experiment=glyphs_full", "debug=smoke"]), [])
    points = expand(composer, rehearsed.arms, rehearsed.axes, {})
    assert {p.config.budget.num_kept for p in points} == {8}


# failures


def test_a_wrong_setting_stops_before_the_encoder_is_trained(tmp_path):
    home = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]
    with pytest.raises(ConfigError, match="no arm of the sweep reads the axis select\\.sharpness"):
        main([*GLYPHS, "sweep.select.sharpness=[1]", *home], [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "way_out"),
    [
        ("sweep.select.temprature=[0.1]", "Did you mean 'select.temperature'?"),
        ("sweep.seeds=[0,1]", "Did you mean 'seed'?"),
        ("sweep.select.temperature=[0.1,0.2]", "tenth set it to one value. Take it out of there."),
    ],
)
def test_an_axis_that_no_arm_reads_is_told_its_way_out(said, way_out, tmp_path):
    home = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]
    fixed = ["~sweep.arms.dbp", "+sweep.arms.tenth={select: dbp, select.temperature: 0.1}"]
    with pytest.raises(ConfigError, match="no arm of the sweep reads the axis") as stop:
        main([*GLYPHS, said, *fixed, *home], [])
    assert way_out in str(stop.value)


def test_a_plan_builds_nothing_and_says_that_the_encoder_comes_first(tmp_path, capsys):
    home = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]
    assert main(["plan", *GLYPHS, *home], []) == 0
    assert "15 points before collapsing; keys are known once the encoder is trained" in (capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


def test_cfg_prints_the_config_of_a_sweep_and_runs_nothing(tmp_path, monkeypatch, capsys):
    from dbp.__main__ import main as dbp

    monkeypatch.chdir(tmp_path)
    assert dbp(["sweep", *GLYPHS, "sweep.seed=[0]", "--cfg"]) == 0
    assert "num_clusters: 50" in capsys.readouterr().out
    assert dbp(["sweep", *GLYPHS, "-m"]) == 1
    assert "-m is no option here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def fatal(tmp_path, monkeypatch):
    """A pool that kills the process that reads it, fails with a message, or takes for ever."""
    (tmp_path / "fatal_pool.py").write_text(
        textwrap.dedent("""
            import os, pathlib, signal, time
            from dataclasses import dataclass
            from dbp.errors import ConfigError

            @dataclass(frozen=True)
            class Fatal:
                does: str

                def __post_init__(self):
                    if self.does == "die":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if self.does == "wait":
                        pathlib.Path(__file__).with_name(f"{os.getpid()}.pid").touch()
                        time.sleep(300)
                    raise ConfigError(self.does)
            """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def point_that(does: str) -> Point:
    config = OmegaConf.create(
        {
            "until": "select",
            "select": {"_target_": "dbp.selection.base.NoSelection"},
            "budget": {},
            "encoder": {},
            "pool": {"_target_": "fatal_pool.Fatal", "does": does},
        }
    )
    nodes = {"evaluate": Named(does).bind()}
    return Point("arm", {}, config, nodes)


def test_a_process_that_is_killed_fails_its_own_point_and_no_other(fatal):
    points = [point_that(does) for does in ("fail early", "die", "fail late", "fail last")]
    lines: list[str] = []
    failures = run_points(points, Keys(), 2, lines.append)
    assert failures.pop("die") == DIED
    assert all("ConfigError" in failures[f"fail {when}"] for when in ("early", "late", "last"))
    assert len(lines) == 4


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_behind(fatal):
    script = fatal / "run.py"
    script.write_text(
        textwrap.dedent(f"""
            import sys
            sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(fatal)!r}]
            if __name__ == "__main__":
                from test_sweep_plan import Keys, point_that, run_points
                run_points([point_that("wait"), point_that("wait ")], Keys(), 2, print)
            """)
    )
    sweep = subprocess.Popen([sys.executable, script], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    try:
        pid = wait_for(lambda: next((int(f.stem) for f in fatal.glob("*.pid")), None), 60)
    finally:
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    assert pid is not None
    assert wait_for(lambda: not is_alive(pid), 20)


def wait_for(found: Any, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.1)
    return value


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_setting_of_all_arms_that_one_arm_lacks_names_the_arm_and_a_way_out_that_works(tmp_path):
    mine, arms = tmp_path / "experiment" / "mine.yaml", {"one": {"select": "dbp"}, "raw": {"dedup": "none"}}
    mine.parent.mkdir()
    chosen = "# @package _global_\ndefaults: [glyphs_methods]\n"

    mine.write_text(chosen + "dedup: {epsilon: 0.07}\n")
    with pytest.raises(ConfigError) as refused:
        expand(Composer(overrides(["experiment=mine"]), [str(tmp_path)]), arms, {}, {})
    said = str(refused.value)
    for fact in ("arm raw", "dedup=none", "dedup.epsilon=0.07", "sweep.arms.one.dedup.epsilon=0.07"):
        assert fact in said

    mine.write_text(chosen)
    arms["one"]["dedup.epsilon"] = 0.07
    points = expand(Composer(overrides(["experiment=mine"]), [str(tmp_path)]), arms, {}, {})
    assert points[0].config.dedup.epsilon == 0.07
