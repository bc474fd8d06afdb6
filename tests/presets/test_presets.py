"""Every preset builds, says what it is, and every command of the README is composed."""

import re
import shlex
from pathlib import Path

import pytest

from dbp.command_line import overrides
from dbp.config import build, compose, groups
from dbp.paths import config_folder

ROOT = Path(__file__).parents[2]
CHOICES = [(group, option) for group, options in groups().items() for option in options]


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_a_preset_is_composed_and_its_target_builds(group, option):
    choice = f"encoder.cluster={option}" if group == "encoder" else f"{group}={option}"
    more = ["pool.shards=nothing.tar"] if group == "pool" and option == "webdataset" else []
    more += ["pool=rehearsal"] if (group, option) == ("encoder", "rehearsal") else []
    config = compose("curate", overrides([choice, *more]))
    node = config.encoder.cluster if group == "encoder" else config.get(group)
    if node is not None and "_target_" in node and group not in ("select", "train"):
        assert build(node, path=group) is not None


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_a_preset_begins_by_saying_what_it_is(group, option):
    text = (config_folder() / group / f"{option}.yaml").read_text()
    if option != "none" or group in ("dedup", "filter", "select"):
        assert text.startswith("# "), f"{group}/{option}.yaml"


def commands() -> list[str]:
    text = "\n".join(
        (ROOT / name).read_text().replace("\\\n", " ") for name in ("README.md", "CONTRIBUTING.md")
    )
    return sorted(
        set(re.findall(r"^ {4}(dbp (?:curate|train|evaluate|sweep) [^\n#]*)", text, re.M))
    )


def test_the_readme_shows_commands():
    assert len(commands()) >= 6


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_is_composed(command):
    from slurm.sweep import divide

    _, verb, *arguments = shlex.split(command)
    arguments, _ = divide([a for a in arguments if a != "…"])
    compose(verb, overrides(arguments))
