"""Registered names: every class that a manifest may name has one, and stores of before are opened."""

import dataclasses
import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

from dbp import names
from dbp.config import locate
from dbp.engine.stage import Stage, describe, key_of, rebuild
from dbp.selection.density import Density

ROOT = Path(__file__).resolve().parents[2]
# Written at commit d4aafc1 by the demo, one for each class: what made it, by dotted path, its inputs and its key.
OLD: list[dict[str, Any]] = json.loads((Path(__file__).parent / "old_manifests.json").read_text())


def stages() -> set[str]:
    """The dotted paths of all stages of the four packages that are no base of others."""
    found = {}
    for package in ("dbp", "training", "evaluation", "slurm"):
        top = importlib.import_module(package)
        for module in pkgutil.walk_packages(top.__path__, f"{package}."):
            if module.name.endswith("__main__"):
                continue
            for kind in vars(importlib.import_module(module.name)).values():
                if isinstance(kind, type) and issubclass(kind, Stage):
                    found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    bases = {base for kind in found.values() for base in kind.__mro__[1:]}
    return {path for path, kind in found.items() if kind not in bases}


def test_every_stage_and_every_target_of_a_config_has_a_name() -> None:
    targets = set()
    for file in (ROOT / "configs").rglob("*.yaml"):
        targets |= set(re.findall(r"_target_: *([\w.]+)", file.read_text()))
    for path in stages() | targets:
        assert names.name_of(path) in names.PLACES, path


@pytest.mark.parametrize("name", sorted(names.PLACES))
def test_a_name_leads_to_its_class_and_back(name: str) -> None:
    kind = locate(name, "x")
    assert dataclasses.is_dataclass(kind)
    assert names.name_of(kind) == name


@pytest.mark.parametrize("made", OLD, ids=lambda made: made["made_by"]["_target_"])
def test_what_an_older_store_holds_is_rebuilt_under_its_key(made: dict[str, Any]) -> None:
    stage = rebuild(made["made_by"])
    # The index has another version since: a pool is read again, and has the digest, and so later keys, as before.
    assert (key_of(stage, made["inputs"]) == made["key"]) is (stage.name != "index")
    again = describe(stage)
    assert "." not in again["_target_"]
    assert rebuild(again) == stage


@dataclasses.dataclass(frozen=True)
class Moved(Density):
    """What stands where a class has moved to."""


def test_a_class_that_moved_opens_what_it_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    old = next(m for m in OLD if m["made_by"]["_target_"].endswith(".Density"))
    here = f"{Moved.__module__}.{Moved.__qualname__}"
    monkeypatch.setitem(names.PLACES, "select/dbp", here)
    monkeypatch.setitem(names._NAMES, here, "select/dbp")
    stage = rebuild(old["made_by"])
    assert type(stage) is Moved
    assert key_of(stage, old["inputs"]) == old["key"]
    assert describe(stage)["_target_"] == "select/dbp"


def test_a_class_of_other_people_goes_by_its_path() -> None:
    assert names.name_of("mine.methods.Best") == "mine.methods.Best"
    assert names.place_of("mine.methods.Best") == "mine.methods.Best"
