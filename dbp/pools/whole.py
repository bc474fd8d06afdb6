"""Whether the shards of a pool are all there, and where they lie when an index is opened again.

A wildcard names what is there, so a shard that was lost from a folder is missed by nobody. Three things tell:
a gap in the numbers of the shards, the counts that img2dataset writes beside each tar, and `pool.expect`.
"""

import glob
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dbp.engine.disk import write_json
from dbp.engine.paths import is_remote, listed_shards, relative_names
from dbp.errors import PoolError

NUMBERED = re.compile(r"(.*?)(\d+)")  # of a shard's stem
NAMES = "shards.json"  # in the artifact of an index
MOST_NAMED = 5


def has_wildcard(shards: str | Sequence[str]) -> bool:
    """Whether a pattern takes what happens to be there."""
    return any(glob.has_magic(pattern) for pattern in ([shards] if isinstance(shards, str) else shards))


def gaps(shards: Sequence[str]) -> list[str]:
    """What is missing in the folders of shards: numbers between others, and tars whose counts are there.

    One sentence for each folder and kind of name. A tar that lies there is not missing, named or not.
    """
    local = [Path(shard) for shard in shards if not is_remote(shard)]
    listed = {folder: _listed(folder) for folder in {shard.parent for shard in local}}
    present = {*local, *(folder / name for folder in listed for name in listed[folder] if name.endswith(".tar"))}
    on_disk, said = _numbered(present), []
    for (folder, start, width), own in _numbered(local).items():
        least, most = min(own), max(own)
        there = {n for n in on_disk[folder, start, width] if least <= n <= most}
        if count := most - least + 1 - len(there):
            # Dates as numbers have wide gaps: few are named.
            missing = islice((n for n in range(least, most) if n not in there), MOST_NAMED)
            named = ", ".join(f"{start}{n:0{width}d}.tar" for n in missing)
            between = f"{start}{least:0{width}d}.tar and {start}{most:0{width}d}.tar"
            said.append(f"{folder}: {count:,} numbers are missing between {between}: {named}{_more(count)}")
    for folder in sorted(listed):
        counted = [found[1] for name in listed[folder] if (found := re.fullmatch(r"(\d+)_stats\.json", name))]
        without = sorted(stem for stem in counted if folder / f"{stem}.tar" not in present)
        if without:
            named = ", ".join(f"{stem}.tar" for stem in without[:MOST_NAMED]) + _more(len(without))
            said.append(f"{folder}: {len(without):,} tars are missing whose _stats.json is there: {named}")
    return said


def _numbered(shards: Iterable[Path]) -> dict[tuple[str, str, int], set[int]]:
    """The numbers of shards, by folder, what stands before the number, and its digits."""
    numbers: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for shard in shards:
        if found := NUMBERED.fullmatch(shard.stem):
            numbers[str(shard.parent), found[1], len(found[2])].add(int(found[2]))
    return numbers


def _more(count: int) -> str:
    return f" and {count - MOST_NAMED:,} more" if count > MOST_NAMED else ""


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def counts_beside(shard: str) -> dict[str, int]:
    """The samples of a shard by `NAME_stats.json` and `NAME.parquet` beside it, as img2dataset writes them.

    The Parquet file has a row for each URL that was tried; those of the status `success` are samples. Files of
    another kind say nothing.
    """
    found: dict[str, int] = {}
    if is_remote(shard):
        return found
    stats, rows = Path(shard).with_name(f"{Path(shard).stem}_stats.json"), Path(shard).with_suffix(".parquet")
    try:
        said = json.loads(stats.read_text())
        if isinstance(said, dict) and isinstance(said.get("successes"), int):
            found[stats.name] = said["successes"]
    except (OSError, ValueError):
        pass
    try:
        if "status" in pq.read_schema(rows).names:
            status = pq.read_table(rows, columns=["status"])["status"].cast(pa.string())
            is_there = pc.fill_null(pc.call_function("equal", [status, pa.scalar("success")]), False)
            found[rows.name] = int(pc.call_function("sum", [is_there]).as_py() or 0)
    except (OSError, pa.ArrowException):
        pass
    return found


def disagreements(shard: str, num_samples: int, beside: Mapping[str, int]) -> list[str]:
    """A sentence for each file beside a shard that counts other samples than lie in it."""
    return [
        f"shard {shard} has {num_samples:,} samples, and {name} beside it says {count:,}"
        for name, count in beside.items()
        if count != num_samples
    ]


def check_expected(num_rows: int, expect: int | None) -> None:
    """Compare the samples of a pool with the number that a config pins.

    Raises:
        PoolError: They differ.
    """
    if expect is not None and num_rows != expect:
        raise PoolError(
            f"the pool has {num_rows:,} samples, and pool.expect={expect} pins {expect:,}. Restore the shards that "
            "are missing (gaps in their numbers are reported), correct pool.shards, or set pool.expect="
            f"{num_rows}, or null to take what is there."
        )


# where shards lie when an index is opened again


def write_names(folder: Path, shards: Sequence[str]) -> None:
    """Keep the names of an index' shards beside it, without the folders that all have in common."""
    write_json(folder / NAMES, relative_names(list(shards)))


def found_again(folder: Path, patterns: str | list[str]) -> list[str]:
    """The shards of an index in its order, although some or all may be gone or others may have come.

    A shard is known by its name, with the folders that part it from the others. A folder that was renamed changes
    no key: where others have come, as many as are gone, the shards are taken in their order if their files' names
    agree, and what they hold is compared when it is read. One that is not found keeps its place, with the path
    where it should be: reading from it is then an error that names it.
    """
    try:
        now = listed_shards(patterns)
    except PoolError:  # a folder with a brace in its name is gone
        now = []
    try:
        names = json.loads((folder / NAMES).read_text())
    except (OSError, ValueError):
        # An older index did not keep names: only their number tells whether these are the shards.
        count = _num_shards(folder)
        return now if len(now) >= count else [f"{patterns} (number {n})" for n in range(count)]
    if len(now) == len(names) and relative_names(now) == names:
        return now
    by_end: dict[int, dict[str, str | None]] = {}
    for depth in {name.count("/") for name in names}:
        ends = by_end[depth] = {}
        for path in now:
            end = "/".join(path.split("/")[-depth - 1 :])
            ends[end] = None if end in ends else path  # two of one end: neither is known
    found = [by_end[name.count("/")].get(name) for name in names]
    if len(now) == len(names) and all(
        Path(path).name == Path(name).name and known in (None, path)
        for path, name, known in zip(now, names, found, strict=True)
    ):
        return now
    first = patterns if isinstance(patterns, str) else patterns[0]
    parent = re.split(r"[*?\[{]", first)[0].rpartition("/")[0]
    return [path or f"{parent}/{name}" for path, name in zip(found, names, strict=True)]


def _num_shards(folder: Path) -> int:
    """One more than the highest number of a shard in an index."""
    most = -1
    for file in folder.glob("part-*/index.parquet"):
        about = pq.read_metadata(file)
        at = about.schema.names.index("shard")
        for group in range(about.num_row_groups):
            found = about.row_group(group).column(at).statistics
            most = max(most, found.max if found is not None and found.has_min_max else -1)
    return most + 1
