"""How fast a stage ran, and how near to what bounds it: said after each stage that took its time."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace

from dbp.engine.runners import Slurm
from dbp.engine.stage import Node
from dbp.engine.store import Entry, Store
from dbp.errors import DbpError
from dbp.planning.amounts import Number, bytes_text
from dbp.planning.effort import PRODUCT, READING, SENDING, WRITING, Effort
from dbp.planning.outlook import Outlook

LONG = 2.0  # seconds from which a stage's rate is worth a measurement
PROBE = 0.6  # seconds that measuring the machine may take, once in a process
LEAST = 0.05  # share below which a resource is not what bounds the stage
OF = {
    PRODUCT: "this machine's matrix product",
    READING: "this disk's reading",
    WRITING: "this disk's writing",
    SENDING: "what can be sent to this GPU",
}


def rate(store: Store, node: Node, entry: Entry, was_begun: bool) -> str:
    """The rate of a stage that was just made, as the end of the line that says so.

    Such as `, 0.26 M rows/s, 73 % of this machine's matrix product`. Empty for a short stage, for one whose
    effort is not known, and for one whose first parts an earlier run had made (`was_begun`). Without a share where
    what bounds it has no rate here: Python, an encoder's network, other machines.
    """
    seconds = entry.manifest["seconds"]
    if was_begun or seconds < LONG:
        return ""
    with contextlib.suppress(DbpError, OSError):  # the artifact is made, whatever becomes of this line
        outlook = Outlook(store, PROBE)
        effort = outlook.effort(node)
        if effort is None or not effort.rows:
            return ""
        said = f", {per_second(effort.rows / seconds)}"
        if isinstance(store.runner, Slurm) and outlook.workers(node) > 1:
            return said
        timing = replace(effort, elsewhere=None).on(outlook.machine(node))
        return share(effort, timing.by, seconds) or said
    return ""


def share(effort: Effort, by: Mapping[str, Number], seconds: Number) -> str:
    """The rate with the share of the limit that is nearest; empty where none is near.

    `by` has the least seconds that each resource needs for the effort.
    """
    handled = {READING: effort.bytes_read, WRITING: effort.bytes_written}
    shares = {name: least / seconds for name, least in by.items() if name in OF}
    # Faster than the disk: then it came from memory, or went there.
    shares = {name: part for name, part in shares.items() if part <= 1 or name not in handled}
    name = max(shares, key=lambda name: shares[name], default="")
    if not name or shares[name] < LEAST:
        return ""
    is_disk = name in handled
    amount = f"{bytes_text(handled[name] / seconds)}/s" if is_disk else per_second(effort.rows / seconds)
    return f", {amount}, {100 * shares[name]:.0f} % of {OF[name]}"


def per_second(rows: Number) -> str:
    """A rate: `830 rows/s`, `0.26 M rows/s`."""
    return f"{rows:,.0f} rows/s" if rows < 1e5 else f"{rows / 1e6:,.2f} M rows/s"
