"""Text settings that look like numbers, truth values or null: taken as the text they are, or refused clearly."""

import os
import typing
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from dbp.__main__ import main
from dbp.config import build, compose, groups, locate
from dbp.engine.paths import config_folder
from dbp.engine.stage import Stage, parameters
from dbp.errors import DbpError
from dbp.verbs.command_line import overrides

ODD = ("2024", "null", "true", "1e5")
CURATE = ("pool=glyphs", "select=uniform", "budget.keep_fraction=0.5", "dry_run=true")
ROOT = (
    "name", "until", "upstream", "root", "protocol", "precision", "suite", "checkpoint", "pretrained",
    "export.datacomp", "export.clip_benchmark", "paths.store", "paths.runs", "parts.device", "parts.runner",
    "evaluate.device", "evaluate.devices", "evaluate.crops", "contamination", "sweep.name", "sweep.control",
)  # fmt: skip
SLOTS = ("pool", "dedup", "cluster", "score", "filter", "select", "budget", "model", "train", "encoder", "launcher")


def text_fields() -> list[tuple[str, str, str]]:
    """Group, option and field of every setting in the config groups whose class says text."""
    found = []
    for group, options in groups().items():
        for option in options:
            said = OmegaConf.load(config_folder() / group / f"{option}.yaml")
            if not isinstance(said, DictConfig) or not isinstance(said.get("_target_"), str):
                continue
            hints = typing.get_type_hints(locate(said["_target_"], group))
            found += [(group, option, name) for name, hint in hints.items() if name in said and is_text(hint)]
    return found


def is_text(hint: Any) -> bool:
    return str in (typing.get_args(hint) or (hint,))


@pytest.mark.parametrize(("group", "option", "field"), text_fields())
def test_a_text_field_takes_what_looks_like_something_else_or_says_why_not(
    group: str, option: str, field: str
) -> None:
    read: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{option}.yaml"), resolve=False)
    said = {name: value for name, value in read.items() if not any(mark in str(value) for mark in ("${", "???"))}
    for odd in (2024, None, True, 1e5):
        try:
            made = build(said | {field: odd}, path=group)
            assert getattr(made, field) is None or isinstance(getattr(made, field), str)
            if isinstance(made, Stage):
                parameters(made)
        except DbpError as error:
            refusal = str(error)
        else:
            continue
        assert f"{group}." in refusal, (odd, refusal)  # this field, or one that its YAML leaves open


def ends_without_a_trace(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command; its message, which names the setting, where it is refused."""
    status = main(words)
    said = capsys.readouterr()
    assert status in (0, 1)
    return said.err if status else ""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("odd", ODD)
def test_an_option_that_looks_like_something_else_is_missing(
    slot: str, odd: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ends_without_a_trace(["curate", *CURATE, f"{slot}={odd}", "--cfg"], capsys)
    assert f"there is no such {slot}" in said
    assert odd in said


@pytest.mark.slow
@pytest.mark.parametrize("key", ROOT)
@pytest.mark.parametrize("verb", ["curate", "train", "evaluate"])
def test_a_setting_at_the_root_ends_no_verb_with_a_trace(
    verb: str, key: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"curate": CURATE, "train": (*CURATE, "train=glyphs"), "evaluate": ("checkpoint=x.pt", "suite=cifar10")}
    for odd in ODD:
        words = [word for word in more[verb] if not word.startswith(f"{key}=")]
        ends_without_a_trace([verb, *words, f"{key}={odd}"], capsys)


@pytest.mark.parametrize("odd", ["2024", "1e5", "true", "0012", "1_000", "12e345"])
def test_text_stays_as_it_was_typed(odd: str) -> None:
    """A folder may be called 1e5, and a shortened key of an artifact be 12e345."""
    config = compose(
        "curate",
        overrides(["pool=webdataset", f"pool.shards={odd}", f"name={odd}", f"checkpoint={odd}", f"root={odd}"]),
    )
    assert [config.pool.shards, config.name, config.checkpoint, config.root] == [odd] * 4
    assert compose("curate", overrides(["seed=1_000", "pool=glyphs"])).seed == 1000, "a number stays a number"


def test_a_missing_export_is_null_and_a_folder_called_5_is_one() -> None:
    assert compose("evaluate", overrides(["export.datacomp=5"])).export.datacomp == "5"
    assert compose("evaluate", overrides(["export.datacomp=null"])).export.datacomp is None
    assert os.fspath(compose("curate", overrides(["paths.store=2024"])).paths.store) == "2024"
