"""Where everything came from: the artifacts that the arms rest on, and what they cost."""

from collections.abc import Iterable, Mapping
from typing import Any

from dbp.engine.store import Entry
from evaluation.report.ledger import Ledger, item_of, ledger_json, ledger_lines
from evaluation.report.page.roster import Roster, ancestors


def artifacts(entries: Iterable[Entry]) -> dict[str, Any]:
    """Each artifact once with what made it; versions and commands, which repeat, once each."""
    versions: list[Any] = []
    commands: list[str] = []
    rows = []
    for entry in entries:
        made = entry.manifest
        rows.append(
            {
                "key": made["key"],
                "stage": made["stage"],
                "created": made.get("created", ""),
                "seconds": made["seconds"],
                "bytes": entry.bytes,
                "commit": made.get("commit"),
                "machine": made.get("machine"),
                "gpu": made.get("gpu"),
                "parameters": made["parameters"],
                "counts": made["counts"],
                "inputs": {name: above["key"] for name, above in made["inputs"].items()},
                "versions": _place(versions, made.get("versions", {})),
                "command": _place(commands, " ".join(map(str, made.get("command", [])))),
            }
        )
    return {"artifacts": rows, "versions": versions, "commands": commands}


def _place(known: list[Any], value: Any) -> int:
    if value not in known:
        known.append(value)
    return known.index(value)


def ledger_of(roster: Roster, found: Mapping[str, Entry]) -> Ledger:
    """What the evaluated runs of a roster cost, each artifact once."""
    ledger = Ledger()
    above = {e.key: e for key in roster.encoders if key in found for e in ancestors(found, found[key])}
    encoder = [item_of(entry.manifest, "encoder") for entry in above.values()]
    for arm in roster.arms:
        for run in arm.runs:
            if last := found.get(run.evaluate or ""):
                ledger.add(arm.name, [item_of(entry.manifest) for entry in ancestors(found, last)], encoder)
    return ledger


def cost(ledger: Ledger) -> dict[str, Any]:
    """The ledger's sums by arm, when curation has paid, and the same as text."""
    if not ledger.items:
        return {"arms": {}, "lines": ledger_lines(ledger)}
    said = ledger_json(ledger)
    baseline = ledger.baseline()
    for name, arm in said["arms"].items():
        pays = "baseline" if name == baseline else str(ledger.payback(name, baseline or name))
        arm["pays_after"] = pays
    return {"arms": said["arms"], "baseline": baseline, "lines": ledger_lines(ledger)}
