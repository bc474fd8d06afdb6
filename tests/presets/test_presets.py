"""Every preset builds, and says what it is."""

import pytest

from dbp.config import build, compose, groups
from dbp.engine.paths import config_folder
from dbp.verbs.command_line import overrides

CHOICES = [(group, option) for group, options in groups().items() for option in options]


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_a_preset_is_composed_and_its_target_builds(group, option):
    choice = f"encoder.cluster={option}" if group == "encoder" else f"{group}={option}"
    more = ["pool.shards=nothing.tar"] if group == "pool" and option == "webdataset" else []
    more += ["captioner.folder=nothing"] if (group, option) == ("captioner", "local") else []
    weights = {"by_column": ["mixture.values={a: 1}"], "by_source": ["mixture.sources={a: 1}"]}
    more += weights.get(option, []) if group == "mixture" else []
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
