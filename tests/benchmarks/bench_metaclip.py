"""MetaCLIP's matching and balancing: captions a second, against a scan over all entries; 100 million rows.

    python tests/benchmarks/bench_metaclip.py match --captions 1000000 --entries 500000
    python tests/benchmarks/bench_metaclip.py balance --rows 100000000

`match`: words of 3 to 9 letters, half of the entries single words, half pairs; captions of 20 words, drawn
by Zipf's law. One process. Goal: 20,000 captions a second after the automaton is built, under 2 GB. The scan
tries each padded entry in turn, as MetaCLIP's published code does: 42 ms a caption were measured of it.

`balance`: 3.5 entries a row of 500,000, very unequal; written as parts first. It finds the threshold that
keeps a quarter, keeps exactly so many, and counts what each entry keeps. The memory told is what the process
holds itself, without the pages of files that the system keeps for it.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from dbp.data.columns import Columns
from dbp.data.entries import Entries
from dbp.data.keep_list import everything
from dbp.data.matches import Matches
from dbp.data.pool import Pool
from dbp.metadata.matching import ROWS, Finder, Matching, finder
from dbp.metadata.rules import entry_text, spaced
from dbp.selection.balance import Balance, Languages, counted

LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", "S1")


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct words of 3 to 9 letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        sizes = rng.integers(3, 10, count)
        letters = b"".join(rng.choice(LETTERS, int(sizes.sum())).tolist()).decode()
        ends = np.cumsum(sizes).tolist()
        found |= {letters[end - size : end]: None for end, size in zip(ends, sizes, strict=True)}
    return list(found)[:count]


def pool_of(captions: list[str], rng: np.random.Generator) -> Pool:
    hashes = pa.array(rng.integers(0, 1 << 63, len(captions)).astype(np.uint64))
    table = pa.table({"uid_hash": hashes, "text": pa.array(captions, pa.large_string())})
    return Pool(Columns(table), [], "pool", "txt", 10**6)


def match(num_captions: int, num_entries: int, scanned: int) -> None:
    """Print captions a second under both rules, the memory, and the time of a scan."""
    rng = np.random.default_rng(0)
    single = words(rng, num_entries // 2)
    pairs = rng.integers(0, len(single), (num_entries - len(single), 2)).tolist()
    entries = Entries([*single, *(f"{single[a]} {single[b]}" for a, b in pairs)])
    captions = []
    for _ in range(num_captions // 10_000):
        chosen = np.minimum(rng.zipf(1.2, (10_000, 20)), len(single)) - 1
        captions += [" ".join([single[n] for n in own]) for own in chosen.tolist()]
    size = sum(map(len, captions)) / len(captions)
    print(f"{len(captions):,} captions of {size:.0f} characters, {len(entries):,} entries")
    few = captions[:scanned]
    pool = pool_of(captions, rng)
    del captions
    rows = everything("pool", np.ones(pool.num_rows, bool))
    for rule in ("reference", "folded"):
        began = time.process_time()
        finder(entries, rule)
        print(f"{rule}: automaton built in {time.process_time() - began:.1f} s")
        stage, wall, cpu = Matching(rule), time.perf_counter(), time.process_time()
        found = 0
        for part in stage.parts(pool=pool):
            with tempfile.TemporaryDirectory() as folder:
                made = stage.make(part, Path(folder), rows=rows, pool=pool, entries=entries)
                found += made["matches"]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{rule}: {pool.num_rows / cpu:,.0f} captions/s of processor time, {pool.num_rows / wall:,.0f} of wall "
            f"time, {found / pool.num_rows:.1f} entries a caption; peak of the process {peak:.2f} GB"
        )
    padded = [entry_text(entry, "reference") or "" for entry in entries.texts]
    began = time.process_time()
    by_scan = []
    for caption in map(spaced, few):
        by_scan.append([n for n, entry in enumerate(padded) if entry in caption])
    each = (time.process_time() - began) / len(few)
    same = Finder(entries, "reference")
    assert by_scan == [same.find(caption) for caption in few]
    print(f"scan over all entries: {each * 1e3:.0f} ms a caption; the same entries found in {len(few)}")


def held() -> float:
    """Gigabytes that this process holds itself."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e6 for line in lines if line.startswith("RssAnon"))


def balance(num_rows: int, num_entries: int) -> None:
    """Print the seconds and the memory of balancing to a quarter of the rows."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as home:
        counts = np.zeros(num_entries, np.int64)
        for number, start in enumerate(range(0, num_rows, ROWS)):
            folder = Path(home) / f"part-{number:07d}"
            folder.mkdir()
            sizes = rng.integers(0, 8, min(ROWS, num_rows - start))
            numbers = (num_entries * rng.random(int(sizes.sum())) ** 6).astype(np.uint32)
            counts += np.bincount(numbers, minlength=num_entries)
            np.save(folder / "ends.npy", np.concatenate([[0], np.cumsum(sizes)]))
            np.save(folder / "numbers.npy", numbers)
        entries = Entries([f"entry{n}" for n in range(num_entries)])
        matches = Matches(counts, entries, sorted(Path(home).glob("part-*")))
        hashes = rng.integers(0, 1 << 63, num_rows).astype(np.uint64) * np.uint64(2)
        mask = np.ones(num_rows, bool)
        before = held()
        size = counts.sum() * 4 + num_rows * 8
        print(f"{num_rows:,} rows, {counts.sum():,} matches, {size / 1e9:.1f} GB of files")
        languages = Languages(np.zeros(num_rows, np.uint16), ("",))
        own = Balance(matches, mask, counts, languages, hashes, 0, "independent")
        passes = [0]
        plain = Balance.lots

        def lots(self, threshold):  # type: ignore[no-untyped-def]
            passes[0] += 1
            return plain(self, threshold)

        Balance.lots = lots  # type: ignore[method-assign]
        began, cpu = time.perf_counter(), time.process_time()
        threshold, keep = own.solve(num_rows // 4)
        took, used = time.perf_counter() - began, time.process_time() - cpu
        kept = counted(matches, keep, languages)
        print(
            f"threshold {threshold:,.3f} keeps {np.count_nonzero(keep):,} in {passes[0]} passes: {took:.0f} s, "
            f"{used:.0f} s of processor time; {kept.sum():,} matches kept; {held() - before:.2f} GB more than the "
            f"columns' {before:.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["match", "balance"])
    parser.add_argument("--captions", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--scanned", type=int, default=20)
    parser.add_argument("--rows", type=int, default=100_000_000)
    given = parser.parse_args()
    if given.what == "match":
        match(given.captions, given.entries, given.scanned)
    else:
        balance(given.rows, given.entries)
