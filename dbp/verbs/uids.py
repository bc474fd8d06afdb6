"""Set algebra of lists of samples.

    dbp uids union|intersection|difference A B … out=FILE    the samples of any; of all; of A and no other
    dbp uids overlap A B …                                   how many samples each two share, and their Jaccard

A list is a DataComp uid file (.npy, or raw), a text of one name a line, a Parquet file with a column
`uid`, or `keep:KEY`, a keep list of the store. `out` is a uid file (.npy), a text (.txt) or Parquet
(.parquet). `repeats=error|once|keep` says what a repeated uid means: `keep` counts each, as DataComp does
(union: the larger count, intersection: the smaller, difference: what is left); overlap counts samples once.
`paths.store=FOLDER` and `paths.runs=FOLDER` say which store.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from dbp.config import require
from dbp.engine.store import Store
from dbp.errors import ConfigError, nearest
from dbp.formats.uid_sets import OPERATIONS, overlap, write_combined
from dbp.verbs.show import STORES, read_arguments

FORMATS = (".npy", ".txt", ".parquet")


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp uids`."""
    settings, words = read_arguments(arguments, ("out", "repeats", *STORES))
    allowed = (*OPERATIONS, "overlap")
    if not words or words[0] not in allowed:
        raise ConfigError(f"dbp uids {words[0] if words else ''}: {nearest((words or [''])[0], allowed)}")
    operation, *names = words
    require(len(names) >= 2, "lists", names, "at least two; see dbp uids --help")
    repeats = settings.get("repeats", "error")
    require(repeats in ("error", "once", "keep"), "repeats", repeats, "error, once or keep")
    store = Store(settings["paths.store"], settings["paths.runs"])
    if operation == "overlap":
        print(overlap_table(names, *overlap(store, names)))
        return
    if "out" not in settings:
        raise ConfigError(f"dbp uids {operation} needs out=FILE ({', '.join(FORMATS)})")
    out = Path(settings["out"])
    require(out.suffix in FORMATS, "out", str(out), f"a file that ends with {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise ConfigError(f"out={str(out)!r}: the folder {out.parent} does not exist. Make it first.")
    written, lists = write_combined(store, names, operation, repeats, out)
    sizes = ", ".join(f"{found.label} {len(found.pairs):,}" for found in lists)
    print(f"wrote {written:,} uids to {out}: {operation} of {sizes}")


def overlap_table(names: Sequence[str], shared: Int[np.ndarray, "k k"], notes: list[str]) -> str:
    """The matrix as aligned text: shared samples, and the share of those that either has (Jaccard)."""
    sizes = np.diag(shared)
    union = np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)
    width = max(len(name) for name in names)
    heads = [f"[{at + 1}]" for at in range(len(names))]
    lines = [" " * (width + 5) + "".join(f"{head:>24}" for head in heads)]
    for at, name in enumerate(names):
        cells = (f"{shared[at, b]:,} ({shared[at, b] / union[at, b]:.4f})" for b in range(len(names)))
        lines.append(f"{heads[at]:<4} {name:<{width}}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join([*lines, *notes, "samples in both (Jaccard: of those in either)"])
