"""What the arms chose by: each method once, with its settings, its cost and its source."""

import inspect
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from dbp.engine.stage import rebuild
from dbp.engine.store import Entry
from dbp.names import name_of
from evaluation.report.page.roster import ancestors

STAGES = ("dedup", "score", "filter", "select")
SOURCE = re.compile(r"[A-Z][\w'-]+ (?:et al\.|& [A-Z]\w+),? \d{4}|arXiv \d{4}\.\d{4,5}|ICLR \d{4}")


def methods(kept: Mapping[str, Entry], found: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """Each way of choosing that keep lists rest on, in the order of the recipe.

    Args:
        kept: The keep list of an arm, by its name.
        found: All artifacts by key.

    Returns:
        For each method and its settings: the stage, its word in configs, the first sentence of its class, papers
        that the code names, the settings that decide its result, the arms, and the seconds of the artifact itself.
    """
    made: dict[str, dict[str, Any]] = {}
    for arm, entry in kept.items():
        for above in ancestors(found, entry):
            told = above.manifest.get("made_by") or {}
            stage, _, word = name_of(str(told.get("_target_", ""))).partition("/")
            if above.stage not in STAGES or word == "none":
                continue
            settings = {n: v for n, v in above.manifest["parameters"].items() if n != "seed"}
            name = json.dumps([stage, word, settings, sorted(above.manifest["inputs"])], sort_keys=True)
            one = made.setdefault(name, {"stage": above.stage, "word": word or stage, **_about(told)})
            one.setdefault("settings", ", ".join(f"{n}={_text(v)}" for n, v in settings.items()))
            one["seconds"] = max(one.get("seconds", 0.0), float(above.manifest["seconds"]))
            one.setdefault("arms", []).append(arm)
    return sorted(made.values(), key=lambda one: STAGES.index(one["stage"]))


def _about(told: Mapping[str, Any]) -> dict[str, str]:
    kind = type(rebuild(told))
    texts = [inspect.getdoc(kind) or "", inspect.getdoc(sys.modules[kind.__module__]) or ""]
    sentence = re.split(r"(?<=\.)\s", texts[0].replace("\n", " "))[0]
    return {"about": sentence, "source": ", ".join(dict.fromkeys(SOURCE.findall(" ".join(texts))))}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={inner}" for name, inner in value.items() if name != "type") or str(value)
    return json.dumps(value) if isinstance(value, list | bool) or value is None else str(value)
