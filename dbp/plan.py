"""What a run would do: every stage, whether it is there, and what sets it apart from one that is."""

from typing import Any

from dbp.data.keep_list import KeepList
from dbp.errors import BudgetError, StoreError
from dbp.stage import Node, parameters
from dbp.store import Entry, Store


def print_plan(store: Store, wanted: Node) -> None:
    """Print one line per stage: key, reused or to build, rows, expected seconds and bytes."""
    with store.steady():
        for node in wanted.lineage():
            print(describe(store, node))
        missing = [node for node in wanted.lineage() if store.entry(node) is None]
    print(f"{len(missing)} to build, {len(wanted.lineage()) - len(missing)} reused in {store.root}")


def describe(store: Store, node: Node) -> str:
    """One line of a plan."""
    key = store.key(node)
    name = _label(node)
    if key is None:
        return f"{name:<14} {'key known after index':<24} to build"
    entry = store.entry(node)
    if entry is not None:
        rows = entry.manifest["counts"].get("rows")
        size = f"{entry.bytes / 1e6:,.1f} MB"
        return f"{name:<14} {key:<24} reused    {rows or 0:>12,} rows  {size}"
    like = nearest_like(store, node)
    if like is None:
        return f"{name:<14} {key:<24} to build  nothing like it yet: seconds and bytes not known"
    other, differences = like
    seconds, size = other.manifest["seconds"], other.bytes / 1e6
    return (
        f"{name:<14} {key:<24} to build  about {seconds:,.1f} s and {size:,.1f} MB, as {other.key[:12]}, "
        f"which differs in {'; '.join(differences)}"
    )


def nearest_like(store: Store, node: Node) -> tuple[Entry, list[str]] | None:
    """The artifact of the same stage that differs in the fewest fields, and those fields."""
    best: tuple[Entry, list[str]] | None = None
    ours: dict[str, Any] = {
        f"{node.stage.name}.{k}": v for k, v in flat(parameters(node.stage)).items()
    }
    ours |= {f"input {n}": store.identity(up) for n, up in node.inputs.items()}
    for entry in store.entries():
        if entry.stage != node.stage.name:
            continue
        theirs = {f"{entry.stage}.{k}": v for k, v in flat(entry.manifest["parameters"]).items()}
        theirs |= {f"input {n}": i["identity"] for n, i in entry.manifest["inputs"].items()}
        found = [
            f"{name}: {_short(theirs.get(name))} there, {_short(ours.get(name))} here"
            for name in sorted(set(ours) | set(theirs))
            if ours.get(name) != theirs.get(name)
        ]
        if entry.manifest["version"] != node.stage.version:
            found.append(f"version: {entry.manifest['version']} there, {node.stage.version} here")
        if not found:
            found = ["source: the shards' names, sizes or times have changed"]
        if best is None or len(found) < len(best[1]):
            best = (entry, found)
    return best


def require_upstream(store: Store, wanted: Node) -> None:
    """Stop if anything that the wanted artifact rests on is missing.

    Raises:
        StoreError: It names the first missing stage.
    """
    for node in wanted.lineage()[:-1]:
        if store.entry(node) is None:
            raise StoreError(
                f"{_label(node)} {store.key(node) or ''} is missing in {store.root} and "
                "upstream=require. Build it first, or set upstream=build."
            )


def check_budget(store: Store, nodes: dict[str, Node]) -> None:
    """Stop before the costly stages if budget.num_kept is above what can be left.

    Only the pool is indexed, and its valid rows are counted; a filter that keeps a fixed share of the
    rows lowers the bound.

    Raises:
        BudgetError: More rows are asked for than the pool or the filter can give.
    """
    budget = getattr(nodes["select"].stage, "budget", None)
    if budget is None or budget.num_kept is None or store.entry(nodes["select"]) is not None:
        return
    rows: KeepList = store.get(nodes["valid"])
    most, said = (
        rows.num_kept,
        f"the pool has {rows.num_kept:,} valid rows of {rows.num_pool_rows:,}",
    )
    at_most = getattr(nodes["filter"].stage, "at_most", None)
    if at_most is not None and at_most(most) < most:
        most = at_most(most)
        said += f", and the filter leaves at most {most:,} of them"
    if budget.num_kept > most:
        raise BudgetError(
            f"cannot keep budget.num_kept={budget.num_kept:,} rows: {said}. Lower budget.num_kept, give a "
            "budget.keep_fraction instead, or let more rows through."
        )


def _label(node: Node) -> str:
    side = getattr(node.stage, "side", None)
    return f"{node.stage.name} {side}" if side else node.stage.name


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested values by full key: {train: {seed: 1}} and {train.seed: 1} mean the same."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{path}{name}"
        found |= flat(value, f"{full}.") if isinstance(value, dict) else {full: value}
    return found


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "…"
