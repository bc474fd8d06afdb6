"""What a run would do: every stage, whether it is there, and what sets it apart from one that is."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.engine.stage import Node, parameters
from dbp.engine.store import Entry, Store
from dbp.errors import BudgetError, StoreError
from dbp.planning.advice import advice
from dbp.planning.amounts import bytes_text, count_text, flops_text, seconds_text
from dbp.planning.effort import Effort, Timing, vector_bytes
from dbp.planning.outlook import Outlook, makes, needed_for, same_once

HEAD = ("stage", "key", "state", "rows", "read", "written", "FLOP", "time", "memory", "bound by")
LEFT = ("stage", "key", "state", "bound by")  # columns of words; those of amounts are aligned to the right
WIDTH = 100  # columns of a terminal that the plan fits into
TOGETHER = "\N{NO-BREAK SPACE}"  # a difference is not broken into two lines


@dataclass(frozen=True)
class Line:
    """One stage of a plan; `like` is the artifact that is nearest to it, and in what they differ."""

    node: Node
    key: str | None
    entry: Entry | None
    is_to_build: bool
    rows: str
    effort: Effort | None = None
    timing: Timing | None = None
    like: tuple[Entry, list[str]] | None = None

    def cells(self) -> tuple[str, ...]:
        """What the table says of it."""
        head = (_label(self.node), self.key[:12] if self.key else "after index")
        if not self.is_to_build:
            size = bytes_text(self.entry.bytes) if self.entry else "-"
            return (*head, "reused" if self.entry else "not used", self.rows, "-", size, "-", "-", "-", "")
        head = (*head, "build", self.rows)
        effort, timing = self.effort, self.timing
        if effort is not None and timing is not None:
            return (
                *head,
                bytes_text(effort.bytes_read),
                bytes_text(effort.bytes_written),
                flops_text(effort.flops) if effort.flops else "-",
                "-" if timing.seconds is None else seconds_text(timing.seconds),
                bytes_text(effort.memory),
                timing.bound_by + ("?" if timing.seconds is None else ""),
            )
        if not self.like:
            return (*head, "-", "-", "-", "-", "-", "not known")
        entry, _ = self.like
        seconds = seconds_text(entry.manifest["seconds"])
        return (*head, "-", bytes_text(entry.bytes), "-", seconds, "-", f"as {entry.key[:12]}")


def print_plan(store: Store, *wanted: Node) -> None:
    """Print what a run would do, stage by stage, and what it would cost on this machine.

    Bytes, operations and memory follow from rows, width and k; seconds from the machine's rates, measured
    now. What is not known is not guessed. Nothing is written into the store.
    """
    with store.steady():
        outlook = Outlook(store)
        lines = plan(outlook, wanted)
        to_build = [line for line in lines if line.is_to_build]
        rows = [HEAD, *(line.cells() for line in lines), *([total(to_build)] if to_build else [])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (
                cell.ljust(width) if name in LEFT else cell.rjust(width)
                for name, cell, width in zip(HEAD, row, widths, strict=True)
            )
            print(" ".join(cells).rstrip())
        for note in notes(outlook, to_build):
            wrapped = textwrap.fill(
                note, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
            )
            print(wrapped.replace(TOGETHER, " "))
    reused = sum(line.entry is not None for line in lines)
    print(f"{len(to_build)} to build, {reused} reused in {store.root}")


def plan(outlook: Outlook, wanted: Sequence[Node]) -> list[Line]:
    """A line for each artifact that some nodes rest on, inputs first."""
    store, lines = outlook.store, []
    wanted = same_once(wanted)
    needed = needed_for(store, wanted)
    in_memory: set[Node] = set()  # vectors that were read or written just before
    for node in dict.fromkeys(up for last in wanted for up in last.lineage()):
        key, entry = store.key(node), store.entry(node)
        line = Line(node, key, entry, node in needed and entry is None, _rows(outlook, node, entry))
        if line.is_to_build:
            line = replace(line, like=nearest_like(outlook, node) if key else None)
            if (effort := outlook.effort(node)) is not None:
                machine = outlook.machine(node)
                vectors = {up for up in node.inputs.values() if makes(up) is Embeddings}
                timing = effort.on(machine, bool(vectors) and vectors <= in_memory)
                line = replace(line, effort=effort, timing=timing)
                held = [found for up in vectors | {node} if (found := outlook.outcome(up))]
                if sum(vector_bytes(found.rows, found.width) for found in held) < machine.memory_free / 2:
                    in_memory |= vectors | {node}
        lines.append(line)
    return lines


def notes(outlook: Outlook, to_build: Sequence[Line]) -> Iterator[str]:
    """What sets stages apart from those that are there, what was assumed, and advice."""
    nodes = {line.node for line in to_build}
    for line in to_build:
        if line.like:
            other, found = line.like
            # What an input differs in stands at that input's own line, if it is to be built, too.
            follow = tuple(f"input {name}:" for name, up in line.node.inputs.items() if up in nodes)
            if own := [item.replace(" ", TOGETHER) for item in found if not item.startswith(follow)]:
                took = seconds_text(other.manifest["seconds"])
                yield f"{_label(line.node)}: {other.key[:12]} ({took}) differs in {'; '.join(own)}"
    if unknown := {line.timing.bound_by for line in to_build if line.timing and line.timing.seconds is None}:
        yield (
            f"?: how long {' and '.join(sorted(unknown))} will take is not known: the store holds no such run "
            "to go by, or its disk cannot be tried"
        )
    efforts = {line.node: line.effort for line in to_build if line.effort}
    most = max(efforts, key=lambda node: efforts[node].flops, default=None)
    yield from advice(outlook, efforts, outlook.machine(most) if most else None)


def total(to_build: Sequence[Line]) -> tuple[str, ...]:
    """The table's last row: sums, and the largest memory of one process."""
    known = [line.timing.seconds for line in to_build if line.timing and line.timing.seconds is not None]
    efforts = [line.effort for line in to_build if line.effort]
    flops, seconds = sum(effort.flops for effort in efforts), sum(known)
    least = "" if len(known) == len(to_build) else "> "
    return (
        "total", "", "", "",
        bytes_text(sum(effort.bytes_read for effort in efforts)),
        bytes_text(sum(effort.bytes_written for effort in efforts)),
        flops_text(flops) if flops else "-",
        "-" if not known or (least and seconds < 0.1) else least + seconds_text(seconds),
        bytes_text(max((effort.memory for effort in efforts), default=0.0)),
        "",
    )  # fmt: skip


def nearest_like(outlook: Outlook, node: Node) -> tuple[Entry, list[str]] | None:
    """The artifact of the same stage that differs in the fewest fields, and those fields."""

    def fields(values: dict[str, Any], inputs: dict[str, str | None]) -> dict[str, Any]:
        own = {f"{node.stage.name}.{name}": value for name, value in flat(values).items()}
        return own | {f"input {name}": identity for name, identity in inputs.items()}

    found: list[tuple[Entry, list[str]]] = []
    ours = fields(parameters(node.stage), {name: outlook.store.identity(up) for name, up in node.inputs.items()})
    for entry in outlook.entries:
        if entry.stage != node.stage.name:
            continue
        made = entry.manifest
        theirs = fields(made["parameters"], {name: up["identity"] for name, up in made["inputs"].items()})
        differ = [
            f"{name}: {_short(theirs.get(name))} there, {_short(ours.get(name))} here"
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        ]
        if made["version"] != node.stage.version:
            differ.append(f"version: {made['version']} there, {node.stage.version} here")
        found.append((entry, differ or ["source: the shards' names, sizes or times have changed"]))
    return min(found, key=lambda item: len(item[1]), default=None)


def _rows(outlook: Outlook, node: Node, entry: Entry | None) -> str:
    """The rows that a stage works on, `~` before those that are estimated, or the most there can be."""
    if entry is not None:
        rows = entry.manifest["counts"].get("rows")
        return count_text(rows) if isinstance(rows, int) else "-"
    sizes = outlook.sizes(node)
    return "-" if sizes is None else ("~" if sizes.is_about else "") + count_text(sizes.rows)


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
    most, said = rows.num_kept, f"the pool has {rows.num_kept:,} valid rows of {rows.num_pool_rows:,}"
    stage: Any = nodes["filter"].stage
    if (left := stage.at_most(most)) < most:
        most = left
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
