"""From a person's words to checked dataclasses: build, quoting, short forms, shard patterns."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dbp.config import build, close, compose, groups, require
from dbp.engine.paths import expand_shards
from dbp.errors import BudgetError, ConfigError, PoolError, nearest
from dbp.selection.budget import Budget
from dbp.verbs.command_line import multirun, overrides, short_forms, to_hydra

# build


@dataclass(frozen=True)
class Engine:
    power: float
    fuel: Literal["petrol", "diesel"] = "petrol"

    def __post_init__(self) -> None:
        require(self.power > 0, "power", self.power, "above 0")


@dataclass(frozen=True)
class Car:
    wheels: int
    engine: Engine
    name: str = "car"
    is_new: bool = False
    doors: int | None = None
    colours: tuple[str, ...] = ()
    mirrors: int | Literal["auto"] = "auto"
    places: str | list[str] = ""
    path: Path = Path()
    extras: dict[str, Any] = field(default_factory=dict)


GOOD: dict[str, Any] = {"wheels": 4, "engine": {"power": 90.0}}


def test_a_mapping_becomes_the_dataclass_it_describes() -> None:
    car = build(GOOD | {"colours": ["red", "blue"], "path": "a/b", "places": ["x"]}, Car)
    assert car == Car(4, Engine(90.0), colours=("red", "blue"), path=Path("a/b"), places=["x"])


def test_a_target_names_the_class_itself() -> None:
    node = {"_target_": "dbp.selection.budget.Budget", "num_kept": 3}
    assert build(node, path="budget") == Budget(num_kept=3)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"wheels": 4.0}, 4),
        ({"wheels": "4"}, 4),
        ({"wheels": "12_800_000"}, 12_800_000),
        ({"wheels": "12,800,000"}, 12_800_000),
        ({"wheels": "-3"}, -3),
    ],
)
def test_whole_numbers_may_be_written_in_several_ways(given: dict[str, Any], made: int) -> None:
    found = build(GOOD | given, Car).wheels
    assert found == made
    assert type(found) is int


def test_numbers_take_the_type_of_their_field_so_that_keys_agree() -> None:
    whole = build(GOOD | {"engine": {"power": 90}}, Car)
    assert type(whole.engine.power) is float
    assert build(GOOD | {"engine": {"power": "9e1"}}, Car) == whole
    assert build(GOOD | {"name": 7}, Car).name == "7"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wheel": 4}, "car.wheel=4 is not a setting of Car. Did you mean 'wheels'?"),
        (
            {"zzz": 4},
            "car.zzz=4 is not a setting of Car. It can be: colours, doors, engine, extras, is_new, "
            "mirrors, name, path, places, wheels.",
        ),
        (
            {"engine": {"power": 9, "fule": "diesel"}},
            "car.engine.fule='diesel' is not a setting of Engine. Did you mean 'fuel'?",
        ),
        ({"engine": {"power": 9, "fuel": "desel"}}, "car.engine.fuel='desel': Did you mean 'diesel'?"),
        ({"engine": {"power": -1}}, "car.engine.power=-1.0: it must be above 0"),
        ({"engine": {}}, "car.engine.power is not set, and Engine needs it"),
        ({"wheels": "four"}, "car.wheels='four': it must be a whole number"),
        ({"wheels": 4.5}, "car.wheels=4.5: it must be a whole number"),
        ({"wheels": True}, "car.wheels=True: it must be a whole number"),
        ({"wheels": None}, "car.wheels=None: it must be a whole number"),
        ({"wheels": "1,2"}, "car.wheels='1,2': it must be a whole number"),
        ({"engine": {"power": "much"}}, "car.engine.power='much': it must be a finite number"),
        ({"engine": {"power": True}}, "car.engine.power=True: it must be a finite number"),
        ({"engine": {"power": float("inf")}}, "car.engine.power=inf: it must be a finite number"),
        ({"is_new": "yes"}, "car.is_new='yes': it must be true or false"),
        ({"is_new": 1}, "car.is_new=1: it must be true or false"),
        ({"name": True}, "car.name=True: it must be text"),
        ({"name": ["a"]}, "car.name=['a']: it must be text"),
        ({"doors": "two"}, "car.doors='two': it must be a whole number"),
        ({"colours": "red"}, "car.colours='red': it must be a list"),
        ({"colours": ["red", True]}, "car.colours[1]=True: it must be text"),
        ({"extras": 3}, "car.extras=3: it must be a mapping of names to values"),
    ],
)
def test_a_wrong_setting_is_named_in_full_with_what_it_must_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(GOOD | given, Car, "car")
    assert str(refusal.value) == said


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^car\.wheels is not set, and Car needs it$"):
        build({"engine": {"power": 9}}, Car, "car")


def test_fields_given_as_objects_are_not_read_from_the_config() -> None:
    engine = Engine(1.0)
    assert build({"wheels": 4}, Car, "car", engine=engine).engine is engine
    with pytest.raises(ConfigError, match="colours, doors, extras"):
        build({"wheels": 4, "qqqq": 1}, Car, "car", engine=engine)


def test_an_error_keeps_its_kind() -> None:
    with pytest.raises(BudgetError, match=r"^budget\.keep_fraction=1\.7: it must be above 0"):
        build({"keep_fraction": 1.7}, Budget, "budget")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("dbp.nowhere.Thing", "No module named 'dbp.nowhere'"),
        ("dbp.errors.Thing", "has no attribute 'Thing'"),
        ("Thing", "Empty module name"),
        ("dbp.errors.nearest", "is no dataclass"),
    ],
)
def test_a_target_that_is_no_dataclass_is_named(target: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build({"_target_": target}, path="select")
    assert str(refusal.value).startswith(f"select._target_='{target}'")
    assert said in str(refusal.value)


def test_a_node_without_a_target_says_so() -> None:
    with pytest.raises(ConfigError, match="select names no _target_"):
        build({"seed": 1}, path="select")


def test_the_nearest_spelling_or_all_of_them() -> None:
    assert nearest("temprature", ["temperature", "seed"]) == "Did you mean 'temperature'?"
    assert nearest("x", ["b", "a"]) == "It can be: a, b."


# quoting

TYPED = (int, float, bool, type(None))


def arrives(value: str) -> Any:
    """What Hydra makes of `key=value` after our quoting."""
    override = OverridesParser.create().parse_override(to_hydra(f"key={value}"))
    assert not override.is_sweep_override(), "a value never becomes several"
    return override.value()


def is_meant_as_typed(value: str) -> bool:
    """Whether a person writes a list, a mapping, a quoted text or an interpolation on purpose."""
    return value[:1] + value[-1:] in ("[]", "{}", "''", '""') or value.startswith("${")


UGLY = st.text(st.sampled_from("{}[](),=:;'\"\\$#&*?!~%@|<>^ \t\né世🙂ab01._-+/"), max_size=12)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example("pool {00..09}.tar")
@example("~/pool")
@example("a\n")
@example("'a','b'")
@example("it's")
@example("a\\")
@example("\\'")
@example("a,b")
@example("\\\n")
@example("range(1,3)")
@given(st.one_of(UGLY, st.text(max_size=12)))
def test_any_text_arrives_unchanged(value: str) -> None:
    found = arrives(value)
    if isinstance(found, TYPED):
        # A number, true, false or null: Hydra's own reading, which `build` then checks.
        assert to_hydra(f"key={value}") == f"key={value}"
        assert value.lower().lstrip("+-").replace("_", "")[:1] in set("0123456789.intf")
    elif not is_meant_as_typed(value):
        assert found == value


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("[1,2]", [1, 2]),
        ("[a, 'b c']", ["a", "b c"]),
        ("{a: 1}", {"a": 1}),
        ("'a b'", "a b"),
        ('"1"', "1"),
        ("''", ""),
        ("", ""),
        ("${seed}", "${seed}"),
        ("${paths.store}/x y", "${paths.store}/x y"),
        ("5", 5),
        ("-0.5", -0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("{a}", "{a}"),
        ("{00..09}", "{00..09}"),
        ("[a", "[a"),
    ],
)
def test_what_is_written_as_a_literal_stays_one(value: str, found: Any) -> None:
    assert arrives(value) == found


@pytest.mark.parametrize(
    "value",
    [
        "/data/a b/{00000..00099}.tar",
        "/data/a=b/x.tar",
        "/data/(old)/x.tar",
        "/data/[old]/x.tar",
        "/data/a,b/x.tar",
        "/données/été/x.tar",
        "s3://bucket/{0..3}.tar?x=1&y=2",
        "pipe:aws s3 cp s3://b/{0..3}.tar -",
        "C:\\data\\x.tar",
    ],
)
def test_paths_arrive_unchanged_through_the_whole_composition(value: str) -> None:
    config = compose("curate", overrides([f"pool.shards={value}"]))
    assert config.pool.shards == value


def test_a_closed_config_reads_as_before_however_often_it_is_closed_or_written() -> None:
    said = {
        "a": {"one": r"/p/\${x}/0.tar", "three": r"/p/\\\${y}", "two": r"q\\${z}", "both": r"\${x}${z}"},
        "z": "Z",
        "text": "${a.one}/q",
        "list": ["${a}", r"\${w}", None],
        "node": "${a}",
        "missing": "???",
        "none": None,
        "number": 3,
    }
    config = OmegaConf.create(said)
    OmegaConf.set_struct(config, True)
    meant = OmegaConf.to_container(config, resolve=True)
    assert meant["a"] == {"one": "/p/${x}/0.tar", "three": r"/p/\${y}", "two": r"q\Z", "both": "${x}Z"}  # type: ignore
    for _ in range(2):
        close(config)
        assert OmegaConf.to_container(config, resolve=True) == meant
        assert OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(config)), resolve=True) == meant
        assert config.text == "/p/${x}/0.tar/q"
    assert OmegaConf.is_struct(config)


def test_an_argument_without_a_value_is_left_to_hydra() -> None:
    assert to_hydra("~select") == "~select"
    assert to_hydra("+a.b=c") == "+a.b=c"


def test_short_forms_of_the_encoder_are_spelled_out() -> None:
    name = groups()["encoder"][0]
    assert short_forms(f"encoder={name}") == [
        f"encoder@encoder.{use}={name}" for use in ("dedup", "cluster", "score")
    ]
    assert short_forms(f"encoder.score={name}") == [f"encoder@encoder.score={name}"]
    assert short_forms("encoder.score.batch_size=4") == ["encoder.score.batch_size=4"]
    assert short_forms("select=dbp") == ["select=dbp"]


def test_an_encoder_is_chosen_for_one_use_or_for_all() -> None:
    config = compose("curate", overrides(["encoder=local_clip", "encoder.score=openclip_l14"]))
    assert config.encoder.dedup._target_ == config.encoder.cluster._target_
    assert "checkpoint" in config.encoder.dedup
    assert config.encoder.score.model == "ViT-L-14-quickgelu"
    assert config.encoder.dedup.model is None


# shards


def touch(folder: Path, *names: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [str(folder / name) for name in names]


FOLDERS = ["plain", "{a}", "{0..1}", "a=b", "(old)", "[old]", "a,b", "a b", "été 世", "{a,b} [c]*"]


@pytest.mark.parametrize("name", FOLDERS)
def test_shards_in_a_folder_of_any_name_are_found(name: str, tmp_path: Path) -> None:
    shards = touch(tmp_path / name, "00.tar", "01.tar", "02.tar")
    assert expand_shards(f"{tmp_path}/{name}/{{00..02}}.tar") == shards
    assert expand_shards(f"{tmp_path}/{name}/*.tar") == shards
    assert expand_shards(f"{tmp_path}/{name}/0[12].tar") == shards[1:]
    assert expand_shards(f"{tmp_path}/{name}/01.tar") == shards[1:2]
    assert expand_shards(shards) == shards


@pytest.mark.parametrize("name", [f"{folder}.tar" for folder in FOLDERS])
def test_a_shard_of_any_name_is_found_as_it_is_written(name: str, tmp_path: Path) -> None:
    (shard,) = touch(tmp_path, name)
    assert expand_shards(shard) == [shard]


def test_relative_patterns_are_found_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a b", "0.tar", "1.tar")
    monkeypatch.chdir(tmp_path)
    assert expand_shards("a b/{0..1}.tar") == ["a b/0.tar", "a b/1.tar"]
    assert expand_shards("*/1.tar") == ["a b/1.tar"]


def test_several_patterns_and_folders_keep_their_order(tmp_path: Path) -> None:
    b, a = touch(tmp_path / "b", "0.tar"), touch(tmp_path / "a", "0.tar", "1.tar")
    assert expand_shards([f"{tmp_path}/b/0.tar", f"{tmp_path}/a/{{0..1}}.tar"]) == b + a
    assert expand_shards(f"{tmp_path}/{{b,a}}/0.tar") == [b[0], a[0]]


def test_braces_and_wildcards_go_together(tmp_path: Path) -> None:
    a, b = touch(tmp_path / "a", "0.tar", "1.tar"), touch(tmp_path / "b", "7.tar")
    assert expand_shards(f"{tmp_path}/{{a,b}}/*.tar") == a + b


def test_remote_shards_are_expanded_and_not_looked_for() -> None:
    assert expand_shards("https://host/{0..1}.tar?a=b") == ["https://host/0.tar?a=b", "https://host/1.tar?a=b"]
    assert expand_shards("pipe:cat {0..1}.tar") == ["pipe:cat 0.tar", "pipe:cat 1.tar"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{0..3}.tar", "2 of 4 shards are missing; the first is {}/2.tar. Correct pool.shards"),
        ("9.tar", "1 of 1 shards are missing; the first is {}/9.tar."),
        ("x*.tar", "no shard matches pool.shards='{}/x*.tar'."),
        ("{0..1.tar", "pool.shards: '{{0..1.tar' has a brace without its partner"),
        ("{0,0}.tar", "pool.shards names {}/0.tar more than once. Name each shard once."),
    ],
)
def test_what_is_missing_is_named(pattern: str, said: str, tmp_path: Path) -> None:
    touch(tmp_path, "0.tar", "1.tar")
    with pytest.raises(PoolError) as refusal:
        expand_shards(f"{tmp_path}/{pattern}")
    assert str(refusal.value).startswith(said.format(tmp_path))


def test_an_empty_list_of_shards_is_refused() -> None:
    with pytest.raises(PoolError, match=r"pool\.shards is an empty list"):
        expand_shards([])


def test_a_long_list_in_braces_is_expanded_although_no_file_may_have_such_a_name(tmp_path: Path) -> None:
    names = [f"{number:05d}" for number in range(100)]
    shards = touch(tmp_path, *(f"{name}.tar" for name in names))
    assert expand_shards(f"{tmp_path}/{{{','.join(names)}}}.tar") == shards
    assert len(",".join(names)) > os.pathconf(tmp_path, "PC_NAME_MAX")


# files of a config folder


def refusal(folder: Path, text: str, *more: str) -> str:
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(ConfigError) as refused:
        compose("sweep", overrides(["experiment=mine", *more]), [str(folder)])
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("swep: {name: x}", "swep", "'sweep'"),
        ("trainx: {seed: 1}", "trainx", "'train'"),
        ("rot: SETS", "rot", "'root'"),
        ("export: {datacmp: x}", "export.datacmp", "'datacomp'"),
    ],
)
def test_a_key_that_is_misspelt_at_the_root_of_a_file_is_refused(
    text: str, wrong: str, right: str, tmp_path: Path
) -> None:
    said = refusal(tmp_path, text)
    assert f"{wrong} is not a setting" in said
    assert "experiment=mine" in said
    assert f"Did you mean {right}" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("defaults: [{override /pool: webdatset}]", "experiment=mine sets pool=webdatset: there is no such pool."),
        (
            "defaults: [{/score@scores.x: clipscore}]",
            "experiment=mine sets score=clipscore: there is no such score.",
        ),
    ],
)
def test_what_an_experiment_chooses_wrongly_is_not_called_a_wrong_experiment(
    text: str, said: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, text).startswith(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pool=webdatset"], "pool=webdatset: there is no such pool. Did you mean 'webdataset'?"),
        (["encoder=opnclip_b32"], "encoder@encoder.dedup=opnclip_b32: there is no such encoder."),
        (["experiment=glyps"], "experiment=glyps: there is no such experiment. Did you mean 'glyphs'?"),
    ],
)
def test_an_option_that_is_not_there_is_named_with_the_nearest(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose("curate", overrides(words))
    assert str(refused.value).startswith(said)


def test_words_of_a_multirun_are_quoted_but_for_its_lists() -> None:
    words = ["-m", "pool.shards=a b/{00..09}.tar", "select.temperature=0.1,0.2", "encoder.score=openclip_b32"]
    assert multirun(words) == [
        "-m",
        "pool.shards='a b/{00..09}.tar'",
        "select.temperature=0.1,0.2",
        "encoder@encoder.score=openclip_b32",
    ]


@pytest.mark.slow
def test_an_error_of_a_multirun_is_no_trace_and_its_braces_are_one_value(tmp_path: Path) -> None:
    shards = f"pool.shards={tmp_path}/{{00000..00099}}.tar"
    words = ["pool=webdataset", shards, "encoder=openclip_b32", "budget.keep_fraction=0.2,0.3", "dry_run=true"]
    done = subprocess.run(
        [sys.executable, "-m", "dbp", "curate", "-m", *words, f"hydra.sweep.dir={tmp_path}/runs"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("PoolError: 100 of 100 shards are missing")
    assert "Launching 2 jobs" in done.stdout
