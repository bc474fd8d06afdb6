"""Pruned shards and look-ups: samples a second by range copy and by Python's tarfile, look-ups a second.

    python tests/benchmarks/bench_shards.py --samples 6000 --bytes 20000 --uids 2000000

Makes tars (a picture of random bytes, a caption and a json each), keeps a third, and writes the kept
samples in both ways by turns in one run, warm; then asks a bitmap by row and a uid file by uid. Goals:
range copy at least 5 times tarfile, and over 10 million rows a second. 84 million uids take 1.3 GB of
disk. Both ways write into the page cache; what waiting for the disk adds is printed apart.
"""

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.store import Store
from dbp.formats.contains import UIDS, Keep, KeptKeys, KeptRows
from dbp.formats.range_copy import TarPlan, locate, write_tar
from dbp.formats.write_shards import write_shards
from dbp.pools.index import Index


def make_tars(folder: Path, num_samples: int, num_bytes: int, shard_size: int) -> list[Path]:
    """Tars as img2dataset writes them, but for pictures that hold noise."""
    noise = np.random.default_rng(0).bytes(2 * num_bytes)
    tars = []
    for start in range(0, num_samples, shard_size):
        tars.append(folder / f"{start // shard_size:05d}.tar")
        with tarfile.open(tars[-1], "w") as tar:
            for i in range(start, min(start + shard_size, num_samples)):
                at = i * 37 % num_bytes
                members = {
                    "jpg": noise[at : at + num_bytes],
                    "txt": b"a caption of some fifty characters, as they are here",
                    "json": b'{"caption": "a caption", "uid": "%032x", "rest": "%s"}' % (i, b"x" * 900),
                }
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{i:09d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return tars


def by_tarfile(tars: list[Path], kept: set[str], target: Path) -> None:
    """The plain way: read every member's header, and write those of kept samples."""
    with tarfile.open(target, "w") as out:
        for path in tars:
            with tarfile.open(path) as tar:
                for info in tar:
                    if info.name.partition(".")[0] in kept:
                        out.addfile(info, tar.extractfile(info))


def by_ranges(pool: Pool, rows: np.ndarray, target: Path, sync: bool) -> None:
    """The same samples in the same order, by a scan of headers and range copy, checked afterwards."""
    shard = pool.column("shard")[rows]
    offset, size = (pool.column(name)[rows] for name in ("image_offset", "image_bytes"))
    key = pool.column("key")[rows]
    found = []
    for number, path in enumerate(pool.shards):
        mine = shard == number
        found.append(locate(path, offset[mine], size[mine], key[mine].tolist()))
    starts, lengths, num, hashes = (
        np.concatenate([getattr(extents, name) for extents in found])
        for name in ("starts", "lengths", "num_ranges", "key_hashes")
    )
    plan = TarPlan(target, pool.shards, np.repeat(shard, num), starts, lengths, np.cumsum(num) - num, hashes)
    write_tar(plan, sync=sync)


def seconds(work, *arguments) -> float:
    return both_seconds(work, *arguments)[0]


def both_seconds(work, *arguments) -> tuple[float, float]:
    """By the clock, and of this process's own time, which neighbours on the machine disturb less."""
    clock, own = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.perf_counter() - clock, time.process_time() - own


def bench_writing(folder: Path, given: argparse.Namespace) -> None:
    tars = make_tars(folder, given.samples, given.bytes, given.shard_size)
    index = Index("key", "txt", 10**9, shards=[str(tar) for tar in tars])
    pool = Store(folder / "store").get(index.node())
    rows = np.flatnonzero(np.random.default_rng(1).random(pool.num_rows) < given.keep)
    kept = set(pool.column("key", rows))
    ways = {"tarfile": [], "range copy": [], "range copy, waiting for the disk": []}
    out = {name: folder / f"{name}.tar" for name in ways}
    for _ in range(given.rounds):
        for name, path in out.items():
            path.unlink(missing_ok=True)
            if name == "tarfile":
                ways[name].append(both_seconds(by_tarfile, tars, kept, path))
            else:
                ways[name].append(both_seconds(by_ranges, pool, rows, path, "disk" in name))
    with tarfile.open(out["tarfile"]) as one, tarfile.open(out["range copy"]) as other:
        assert one.getnames() == other.getnames(), "both ways wrote the same members"
    mask = np.zeros(pool.num_rows, bool)
    mask[rows] = True
    keep = KeepList(pool.digest, mask)
    whole = both_seconds(write_shards, pool, keep, folder / "out", 1000)
    total = sum(path.stat().st_size for path in tars)
    print(f"{len(rows):,} of {given.samples:,} samples kept, {total / 1e6:.0f} MB in {len(tars)} tars")
    size = out["tarfile"].stat().st_size
    for name, took in [*ways.items(), ("write_shards: shuffled, synced, verified", [whole])]:
        clock, own = (min(times) for times in zip(*took, strict=True))
        print(
            f"{name:41} {len(rows) / clock:8,.0f} kept samples/s {size / clock / 1e9:5.2f} GB/s "
            f"({len(rows) / own:8,.0f} kept samples per second of processor time)"
        )
    for what, at in (("the clock", 0), ("processor time", 1)):
        each = zip(ways["tarfile"], ways["range copy"], strict=True)
        ratios = ", ".join(f"{slow[at] / fast[at]:.1f}" for slow, fast in each)
        print(f"range copy / tarfile by {what}, round by round: {ratios} (goal: 5)")


def bench_look_ups(folder: Path, given: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "keep.npy", np.packbits(rng.random(given.rows) < 0.3))
    bits = Keep.open(folder / "keep.npy")
    assert isinstance(bits, KeptRows)
    rows = rng.integers(0, given.rows, 4_000_000)
    took = min(seconds(bits.contains_rows, rows) for _ in range(3))
    print(f"bitmap of {given.rows:,} rows: {len(rows) / took / 1e6:.1f} M rows/s at random (goal: 10)")
    pairs = np.lib.format.open_memmap(folder / "uids.npy", "w+", UIDS, (given.uids,))
    pairs["f0"] = np.sort(rng.integers(0, 2**64, given.uids, np.uint64))
    for start in range(0, given.uids, 1 << 22):
        block = pairs[start : start + (1 << 22)]
        block["f1"] = rng.integers(0, 2**64, len(block), np.uint64)
    pairs.flush()
    opened = seconds(Keep.open, folder / "uids.npy")
    keep = Keep.open(folder / "uids.npy")
    assert isinstance(keep, KeptKeys)
    asked = np.asarray(pairs)[rng.integers(0, given.uids, 1_000_000)]
    asked["f0"][::2] ^= np.uint64(1)  # half of them are not there
    took = min(seconds(keep.contains_pairs, asked) for _ in range(3))
    found = keep.contains_pairs(asked)
    assert found[1::2].all()
    assert not found[::2].any()
    names = [f"{int(high):016x}{int(low):016x}" for high, low in asked[:20_000]]
    one = min(seconds(lambda: [keep.contains(name) for name in names]) for _ in range(3))
    many = min(seconds(keep.contains_many, names) for _ in range(3))
    print(
        f"{given.uids:,} uids, {keep.pairs.nbytes / 1e9:.2f} GB mapped, opened and checked in {opened:.2f} s: "
        f"{len(asked) / took / 1e6:.2f} M pairs/s, {len(names) / many / 1e6:.2f} M texts/s together, "
        f"{len(names) / one / 1e6:.2f} M/s one by one"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--bytes", type=int, default=20_000, help="of a picture")
    parser.add_argument("--shard-size", type=int, default=2000, help="samples of a source tar")
    parser.add_argument("--keep", type=float, default=1 / 3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000_000, help="of the bitmap")
    parser.add_argument("--uids", type=int, default=2_000_000)
    parser.add_argument("--folder", help="where to work; by default the system's temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        bench_writing(Path(folder), given)
        bench_look_ups(Path(folder), given)


if __name__ == "__main__":
    main()
