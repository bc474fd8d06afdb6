"""Pruned shards: each kept sample once, byte for byte, in equal shards, after any accident."""

import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest
import webdataset
from PIL import Image

from dbp.data.keep_list import KeepList
from dbp.data.pool import hash_64
from dbp.engine.store import Store
from dbp.errors import ConfigError, PoolError, WorldError
from dbp.formats import range_copy
from dbp.formats import write_shards as verb
from dbp.formats.exchange import read_uid_file
from dbp.formats.shard_folder import alone_in
from dbp.formats.shard_order import arrange, set_apart
from dbp.formats.tar_headers import Damaged, spans
from dbp.formats.write_shards import write_shards
from dbp.pools.index import Index

FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
LONG = "k" * 150


def png(shade):
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (shade % 256, shade // 256, 7)).save(out, "PNG")
    return out.getvalue()


def write_tar(path, members, kind="pax", **settings):
    """Write members, (name or TarInfo, bytes) pairs, in order."""
    with tarfile.open(path, "w", format=FORMATS[kind], **settings) as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key, shade=0, extras=()):
    return [
        (f"{key}.png", png(shade)),
        (f"{key}.txt", f"caption of {key}".encode()),
        (f"{key}.json", json.dumps({"uid": f"{shade:032x}", "key": key}).encode()),
        *((f"{key}.{extra}", f"{extra} of {key}".encode() * 50) for extra in extras),
    ]


def keep_of(pool, rows):
    mask = np.zeros(pool.num_rows, bool)
    mask[np.asarray(rows)] = True
    return KeepList(pool.digest, mask)


def index(store, shards, **settings):
    settings = {"uid": "key", "caption": "txt", "max_pixels": 10**6} | settings
    return store.get(Index(shards=[str(shard) for shard in shards], **settings).node())


@pytest.fixture
def open_pool(tmp_path):
    store = Store(tmp_path / "store")
    return lambda *shards, **settings: index(store, shards, **settings)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """Three tars of 20 samples each, in the three formats of Python's tarfile."""
    folder = tmp_path_factory.mktemp("pool")
    tars = []
    for number, kind in enumerate(FORMATS):
        keys = [f"{number:02d}{i:04d}" for i in range(20)]
        members = [m for i, key in enumerate(keys) for m in sample(key, 20 * number + i, ["cls"])]
        tars.append(write_tar(folder / f"in-{number}.tar", members, kind))
    return index(Store(folder / "store"), tars)


@pytest.fixture
def pool(indexed, tmp_path):
    """That pool, with tars that a test may spoil."""
    return replace(indexed, shards=[str(shutil.copy(shard, tmp_path)) for shard in indexed.shards])


def raw_members(path):
    """Key -> every member's name with its headers, data and padding, as Python's tarfile finds them."""
    content = path.read_bytes()
    found = {}
    with tarfile.open(path) as tar:
        for info in tar:
            end = info.offset_data + -(-info.size // 512) * 512
            if info.isfile():
                key = info.name.rpartition("/")[2].partition(".")[0]
                found.setdefault(key, []).append((info.name, content[info.offset : end]))
    return found


def contents_of(path):
    """Key -> extension -> content."""
    found = {}
    with tarfile.open(path) as tar:
        for info in tar:
            folder, _, name = info.name.rpartition("/")
            key, _, extension = name.partition(".")
            found.setdefault(f"{folder}/{key}" if folder else key, {})[extension] = tar.extractfile(info).read()
    return found


def tars_in(folder):
    return sorted(folder.glob("*.tar"))


def keys_in(path):
    with tarfile.open(path) as tar:
        return list(dict.fromkeys(name.partition(".")[0] for name in tar.getnames()))


# headers


def odd_tar(path, kind):
    """Folders, links, empty files, names of every length, old and large headers."""
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        for length in (1, 99, 100, 101, 150, 199, 254)[: 6 if kind == "ustar" else 7]:
            name = "/".join("n" * part for part in (length // 2, length - length // 2 - 1) if part)
            info = tarfile.TarInfo(name)
            info.size = length * 7 % 1030
            tar.addfile(info, io.BytesIO(b"\xff" * info.size))
        for kind_of, name in ((tarfile.DIRTYPE, "folder"), (tarfile.SYMTYPE, "s"), (tarfile.LNKTYPE, "l")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind_of, "n" * (99 if kind == "ustar" else 300)
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("empty"))
        old = tarfile.TarInfo("old")
        old.type, old.size = tarfile.AREGTYPE, 3
        tar.addfile(old, io.BytesIO(b"abc"))
        if kind != "ustar":
            big = tarfile.TarInfo("schön/" + "é" * 90)
            big.size, big.uid, big.mtime = 5, 1 << 40, 1.5
            tar.addfile(big, io.BytesIO(b"large"))
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_headers_are_read_as_python_reads_them(tmp_path, kind):
    path = odd_tar(tmp_path / "odd.tar", kind)
    with tarfile.open(path) as tar:
        expected = [
            (i.name.encode(), i.offset, i.offset_data, i.size, i.offset_data + -(-i.size // 512) * 512)
            for i in tar
            if i.isfile()
        ]
    with open(path, "rb") as handle:
        assert list(spans(handle.fileno())) == expected
    assert len(expected) >= 8


def test_a_size_in_base_256_and_a_signed_checksum_are_understood(tmp_path):
    content = bytearray(write_tar(tmp_path / "a.tar", [("é.txt", b"x" * 700)], "gnu").read_bytes())
    content[124:136] = b"\x80" + (700).to_bytes(11, "big")
    content[148:156] = b" " * 8
    signed = sum(byte - 256 * (byte > 127) for byte in content[:512])
    content[148:156] = b"%06o\0 " % signed
    (tmp_path / "a.tar").write_bytes(content)
    with open(tmp_path / "a.tar", "rb") as handle:
        assert list(spans(handle.fileno())) == [("é.txt".encode(), 0, 512, 700, 1536)]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getmembers()[0].size == 700


@pytest.mark.parametrize("place", [0, 100, 124, 130, 148, 156, 300, 511])
def test_a_flipped_bit_in_a_header_is_found(tmp_path, place):
    content = bytearray(write_tar(tmp_path / "a.tar", sample("one")).read_bytes())
    content[place] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with open(tmp_path / "a.tar", "rb") as handle, pytest.raises(Damaged, match="garbled"):
        list(spans(handle.fileno()))


@pytest.mark.parametrize("cut", [100, 512, 600, 1024, 1536, 2000])
def test_a_tar_that_is_cut_anywhere_is_damaged(tmp_path, cut):
    path = write_tar(tmp_path / "a.tar", [(f"{LONG}.txt", b"x" * 600)], "pax")
    assert path.stat().st_size > 2048 + 1024
    os.truncate(path, cut)
    found = []
    with open(path, "rb") as handle, pytest.raises(Damaged):
        found.extend(spans(handle.fileno()))
    assert not found


def test_the_outer_of_two_long_names_counts(tmp_path):
    outer = write_tar(tmp_path / "pax.tar", [(f"outer/{LONG}", b"")], "pax").read_bytes()
    inner = write_tar(tmp_path / "gnu.tar", [(f"inner/{LONG}", b"x")], "gnu").read_bytes()
    (tmp_path / "both.tar").write_bytes(outer[:1024] + inner)
    with tarfile.open(tmp_path / "both.tar") as tar:
        expected = [(i.name.encode(), i.offset, i.offset_data, i.size) for i in tar]
    with open(tmp_path / "both.tar", "rb") as handle:
        assert [span[:4] for span in spans(handle.fileno())] == expected
    assert [name[:5] for name, *_ in expected] == [b"outer"]


# whole samples


def test_kept_samples_have_every_byte_of_their_members(tmp_path, pool):
    rows = [0, 1, 5, 19, 20, 21, 39, 40, 58, 59]
    counts = write_shards(pool, keep_of(pool, rows), tmp_path / "out", shard_size=4)
    source = {k: v for shard in pool.shards for k, v in raw_members(tmp_path / shard).items()}
    written = [item for tar in tars_in(tmp_path / "out") for item in raw_members(tar).items()]
    assert dict(written) == {key: source[key] for key in pool.column("key", np.array(rows))}
    assert all(len(members) == 4 for _, members in written)
    assert len(written) == counts["samples"] == 10
    assert counts["bytes"] == sum(tar.stat().st_size for tar in tars_in(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["pax", "gnu"])
def test_long_names_travel_with_their_samples(tmp_path, open_pool, kind):
    keys = [f"folder/{LONG}{i}" for i in range(6)]
    members = [m for i, key in enumerate(keys) for m in sample(key, i)]
    pool = open_pool(write_tar(tmp_path / "in.tar", members, kind))
    write_shards(pool, keep_of(pool, [1, 4]), tmp_path / "out")
    with tarfile.open(tmp_path / "out/00000000.tar") as tar:
        found = {info.name: tar.extractfile(info).read() for info in tar}
    assert found == {name: content for name, content in members if name[-5:-4] in "14" or name[-6:-5] in "14"}


def test_members_that_do_not_stand_together_are_gathered(tmp_path, open_pool):
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    a, b = sample("a", 1), sample("b", 2)
    members = [
        ("a.cls", b"before its picture"),
        a[0],
        (folder, b""),
        ("b.cls", b"of the next"),
        a[1],
        ("lost.npy", b"of no sample"),
        a[2],
        *b,
        ("b.seg", b"after"),
        *sample("c", 3),
    ]
    pool = open_pool(write_tar(tmp_path / "in.tar", members))
    assert pool.num_rows == 3
    write_shards(pool, keep_of(pool, [0, 1]), tmp_path / "out", shuffle=False)
    with tarfile.open(tmp_path / "out/00000000.tar") as tar:
        assert tar.getnames() == ["a.cls", "a.png", "a.txt", "a.json", "b.cls", "b.png", "b.txt", "b.json", "b.seg"]
        assert tar.extractfile("b.cls").read() == b"of the next"


def test_any_order_of_members_gives_each_sample_its_own(tmp_path, open_pool):
    """Against the slow way: the pool's own reader for what a sample is, tarfile for what was written."""
    rng = random.Random(5)
    for trial in range(12):
        members = []
        for key in "abcdef":
            parts = [(f"{key}.{e}", f"{trial}{key}{e}".encode() * rng.randrange(1, 300)) for e in ("cls", "n.npy")]
            parts = rng.sample(parts, rng.randrange(3)) + sample(key, trial)
            if rng.random() < 0.5:
                rng.shuffle(parts)
            members += parts
        path = write_tar(tmp_path / f"{trial}.tar", members, rng.choice(list(FORMATS)))
        pool = open_pool(path)
        rows = np.flatnonzero(np.array([rng.random() < 0.5 for _ in range(6)]) | (np.arange(6) == trial % 6))
        write_shards(pool, keep_of(pool, rows), tmp_path / f"out{trial}")
        with tarfile.open(tmp_path / f"out{trial}/00000000.tar") as tar:
            found = {info.name: tar.extractfile(info).read() for info in tar}
        kept = set(pool.column("key", rows))
        assert found == {name: content for name, content in members if name[0] in kept}


def test_a_global_header_stays_behind_unless_it_names_or_sizes_files(tmp_path, open_pool):
    plain = write_tar(tmp_path / "a.tar", sample("a"), pax_headers={"comment": "made by hand"})
    pool = open_pool(plain)
    write_shards(pool, keep_of(pool, [0]), tmp_path / "out")
    assert raw_members(tmp_path / "out/00000000.tar") == raw_members(plain)
    with tarfile.open(tmp_path / "out/00000000.tar") as tar:
        assert (len(tar.getmembers()), tar.pax_headers) == (3, {})
    odd = write_tar(tmp_path / "b.tar", sample("b"), pax_headers={"path": "all.png"})
    with open(odd, "rb") as handle, pytest.raises(Damaged, match="names or sizes all files"):
        list(spans(handle.fileno()))


@pytest.mark.parametrize("fails", [18, 22, 38, 95, 0])
def test_where_the_kernel_cannot_copy_a_buffer_does(tmp_path, pool, monkeypatch, fails):
    expected = write_shards(pool, keep_of(pool, range(0, 60, 7)), tmp_path / "kernel", verify=False)
    calls = []

    def cannot(*arguments):
        calls.append(arguments)
        if fails:
            raise OSError(fails, os.strerror(fails))
        return 0

    monkeypatch.setattr(os, "copy_file_range", cannot)
    assert write_shards(pool, keep_of(pool, range(0, 60, 7)), tmp_path / "buffer", verify=False) == expected
    assert calls
    for one, other in zip(tars_in(tmp_path / "kernel"), tars_in(tmp_path / "buffer"), strict=True):
        assert one.read_bytes() == other.read_bytes()


# order, sizes, lists


@pytest.mark.parametrize(("num", "size"), [(1, 10), (10, 10), (11, 10), (29, 10), (60, 7), (60, 1)])
def test_shards_are_full_equal_and_none_is_empty(tmp_path, pool, num, size):
    counts = write_shards(pool, keep_of(pool, range(num)), tmp_path / "out", shard_size=size)
    sizes = json.loads((tmp_path / "out/sizes.json").read_text())
    assert list(sizes) == [f"{i:08d}.tar" for i in range(-(-num // size))]
    assert [len(keys_in(tmp_path / "out" / name)) for name in sizes] == list(sizes.values())
    assert sum(sizes.values()) == num
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert max(sizes.values()) <= size
    assert counts["shards"] == len(sizes)
    for name, samples in sizes.items():
        stats = json.loads((tmp_path / "out" / f"{name[:8]}_stats.json").read_text())
        assert stats == {"successes": samples}


def splitmix(key, seed):
    """The keyed hash, in Python's integers."""
    state = (key ^ (seed * 0x9E3779B97F4A7C15)) % 2**64
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


def test_the_shuffle_is_a_keyed_hash_over_the_whole_output(tmp_path, pool):
    rows = np.arange(1, 60, 2)
    write_shards(pool, keep_of(pool, rows), tmp_path / "out", shard_size=8, seed=3)
    order = sorted(rows, key=lambda row: splitmix(int(pool.uid_hashes[row]), 3))
    expected = [pool.column("key", np.array([row]))[0] for row in order]
    assert [key for tar in tars_in(tmp_path / "out") for key in keys_in(tar)] == expected


def test_without_shuffle_samples_keep_their_order(tmp_path, pool):
    rows = np.arange(0, 60, 4)
    write_shards(pool, keep_of(pool, rows), tmp_path / "out", shard_size=6, shuffle=False)
    keys = [key for tar in tars_in(tmp_path / "out") for key in keys_in(tar)]
    assert keys == pool.column("key", rows).tolist()


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, pool):
    keep = keep_of(pool, np.arange(0, 60, 2))
    one = write_shards(pool, keep, tmp_path / "one", shard_size=7)
    assert write_shards(pool, keep, tmp_path / "two", shard_size=7, workers=2) == one
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(names) == 2 * 5 + 2
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_uids_of_128_bits_are_listed_as_datacomp_does(tmp_path, open_pool):
    members = [m for i in (9, 3, 7, 1, 5) for m in sample(f"k{i}", i)]
    pool = open_pool(write_tar(tmp_path / "in.tar", members), uid="json:uid")
    write_shards(pool, keep_of(pool, [0, 1, 4]), tmp_path / "out")
    pairs = np.load(tmp_path / "out/sample_ids.npy")
    assert pairs.dtype == [("f0", "<u8"), ("f1", "<u8")]
    assert pairs.tolist() == [(0, 3), (0, 5), (0, 9)]
    assert not (tmp_path / "in/sample_ids.npy").exists()


def test_uids_of_another_kind_make_no_uid_file(tmp_path, pool):
    write_shards(pool, keep_of(pool, [3]), tmp_path / "out")
    assert not (tmp_path / "out/sample_ids.npy").exists()


def test_a_row_that_is_taken_often_is_written_as_often_under_names_of_its_own(tmp_path, open_pool):
    members = [m for i in range(12) for m in sample(f"k{i:02d}", i)]
    pool = open_pool(write_tar(tmp_path / "in.tar", members), uid="json:uid")
    rows, repeats = np.array([1, 4, 5, 8, 11]), np.array([1, 3, 2, 1, 1])
    keep = keep_of(pool, rows).weighted(repeats)
    for shuffle in (True, False):
        out = tmp_path / f"out-{shuffle}"
        counts = write_shards(pool, keep, out, 4, shuffle=shuffle)
        assert counts["samples"] == 8
        assert counts["samples whose key repeats in their shard"] == 0
        uids = read_uid_file(out / "sample_ids.npy", allow_repeats=True)
        assert uids["f1"].tolist() == [1, 4, 4, 4, 5, 5, 8, 11]
        found = {key: content for tar in tars_in(out) for key, content in contents_of(tar).items()}
        uid = "{:032x}".format
        copies = [f"{uid(4)}-0", f"{uid(4)}-1", f"{uid(4)}-2", f"{uid(5)}-0", f"{uid(5)}-1"]
        assert set(found) == {"k01", "k08", "k11", *copies}
        source = contents_of(tmp_path / "in.tar")
        assert all(found[f"{uid(i)}-{j}"] == source[f"k{i:02d}"] for i, n in ((4, 3), (5, 2)) for j in range(n))


def test_names_of_copies_are_made_tar_by_tar_and_not_held_for_all_draws(pool):
    keep, draws = keep_of(pool, [3, 7]), 100_000
    samples = verb._locate_all(pool, keep, 1)
    tracemalloc.start()
    entries = verb._entries(pool, samples, np.array([draws, draws]))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * draws * 30
    assert peak < 2 * draws * 45 + verb.BLOCK * 500
    stem = pool.uids(np.array([7]))[0]
    assert entries.names(np.array([5, draws + 70_000])) == {
        0: f"{pool.uids(np.array([3]))[0]}-5",
        1: f"{stem}-70000",
    }
    assert entries.key_hashes[draws + 70_000] == hash_64(f"{stem}-70000".encode())


@pytest.mark.parametrize("kind", FORMATS)
def test_copies_get_their_names_in_every_format_of_tar_whatever_the_name_was(tmp_path, open_pool, kind):
    keys = ["a", "folder/" + "n" * 80 if kind == "ustar" else "folder/" + "n" * 200]
    keys += [] if kind == "ustar" else ["übung" * 30]
    write_tar(tmp_path / "in.tar", [m for i, key in enumerate(keys) for m in sample(key, i)], kind)
    pool = open_pool(tmp_path / "in.tar", uid="json:uid")
    keep = keep_of(pool, np.arange(len(keys))).weighted(np.full(len(keys), 2))
    write_shards(pool, keep, tmp_path / "out")
    source, found = contents_of(tmp_path / "in.tar"), contents_of(tmp_path / "out/00000000.tar")
    assert found == {f"{i:032x}-{j}": source[key] for i, key in enumerate(keys) for j in (0, 1)}
    read = list(webdataset.WebDataset(str(tmp_path / "out/00000000.tar"), shardshuffle=False, empty_check=False))
    assert sorted(one["__key__"] for one in read) == sorted(found)


def test_a_uid_that_cannot_be_a_file_name_leaves_the_key_to_name_copies(tmp_path, open_pool):
    members = [("k1.png", png(1)), ("k1.json", json.dumps({"uid": "https://x.org/a.png", "caption": "c"}).encode()),
               ("k1.txt", b"c")]  # fmt: skip
    pool = open_pool(write_tar(tmp_path / "in.tar", members), uid="json:uid")
    write_shards(pool, keep_of(pool, [0]).weighted(np.array([2])), tmp_path / "out")
    assert set(contents_of(tmp_path / "out/00000000.tar")) == {"k1-0", "k1-1"}


def test_a_key_too_long_for_a_header_leaves_the_row_to_name_copies(tmp_path, open_pool):
    pool = open_pool(write_tar(tmp_path / "in.tar", [*sample("a"), *sample(LONG, 1)]))
    write_shards(pool, keep_of(pool, [0, 1]).weighted(np.array([1, 2])), tmp_path / "out")
    found, source = contents_of(tmp_path / "out/00000000.tar"), contents_of(tmp_path / "in.tar")
    assert found == {"a": source["a"], "row-1-0": source[LONG], "row-1-1": source[LONG]}


def test_weights_that_are_drawn_anew_in_each_epoch_cannot_be_shards(tmp_path, pool):
    keep = keep_of(pool, [0, 1]).weighted(np.array([0.5, 2]))
    with pytest.raises(ConfigError, match="1 fractional weights"):
        write_shards(pool, keep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_list_without_some_samples_keeps_the_others_in_their_order(tmp_path, pool):
    write_shards(pool, keep_of(pool, range(60)), tmp_path / "all", 1000, seed=1)
    write_shards(pool, keep_of(pool, range(0, 60, 3)), tmp_path / "some", 1000, seed=1)
    everything, some = (keys_in(tmp_path / name / "00000000.tar") for name in ("all", "some"))
    assert some == [key for key in everything if key in set(some)]


# samples with one key


def test_samples_with_one_key_are_no_neighbours_and_all_are_read(tmp_path, open_pool):
    tars = [
        write_tar(tmp_path / f"{t}.tar", [m for i in range(4) for m in sample(f"{i}", 4 * t + i)])
        for t in range(10)
    ]
    pool = open_pool(*tars, uid="json:uid")
    counts = write_shards(pool, keep_of(pool, range(40)), tmp_path / "out", shard_size=20)
    assert counts["samples whose key repeats in their shard"] == 40 - 2 * 4
    urls = [str(tar) for tar in tars_in(tmp_path / "out")]
    read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert len(read) == 40
    assert {json.loads(s["json"])["uid"] for s in read} == {f"{i:032x}" for i in range(40)}
    assert all(one["__key__"] != two["__key__"] for one, two in pairwise(read[:20]))


def test_one_key_for_more_than_half_of_a_shard_is_refused(tmp_path, open_pool):
    tars = [write_tar(tmp_path / f"{t}.tar", sample("same", t)) for t in range(3)]
    pool = open_pool(*tars, write_tar(tmp_path / "z.tar", sample("other", 9)), uid="json:uid")
    with pytest.raises(ConfigError, match=r"00000000.tar would hold 3 samples of one key among 4"):
        write_shards(pool, keep_of(pool, range(4)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    counts = write_shards(pool, keep_of(pool, [0, 1, 3]), tmp_path / "out")
    assert keys_in(tmp_path / "out/00000000.tar") == ["same", "other"]
    assert counts["samples"] == 3


@pytest.mark.parametrize("keys", ["aab", "aabb", "bbaaa", "abcaabca", "aaabbb", "aaaabcd", "aabbccdd"])
def test_equal_keys_are_set_apart_wherever_that_is_possible(keys):
    """Against trying all orders."""
    numbers = np.array([ord(key) for key in keys], np.uint64)
    possible = any(all(a != b for a, b in pairwise(order)) for order in set(permutations(keys)))
    assert possible == (max(Counter(keys).values()) <= (len(keys) + 1) // 2)
    for order in {tuple(np.random.default_rng(i).permutation(len(keys))) for i in range(20)}:
        edges = np.array([0, len(keys)])
        found = set_apart(np.array(order), numbers, edges)
        assert sorted(found) == list(range(len(keys)))
        assert all(a != b for a, b in pairwise(numbers[found]))


def test_few_samples_move_to_part_equal_keys():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 300, 3000).astype(np.uint64)
    order, edges = arrange(rng.permutation(len(keys)).astype(np.uint64), keys, 1000)
    plain = np.argsort(np.random.default_rng(0).permutation(3000))  # not what arrange drew; for length only
    assert sorted(order) == sorted(plain)
    for start, end in pairwise(edges):
        part = keys[order[start:end]]
        assert (part[1:] != part[:-1]).all()
    untouched = np.arange(3000)
    met = int((keys[untouched[1:]] == keys[untouched[:-1]]).sum())
    moved = set_apart(untouched, keys, np.array([0, 3000])) != untouched
    assert met > 0
    assert 0 < moved.sum() <= 2 * met


# accidents


def test_what_is_finished_is_not_written_again(tmp_path, pool):
    keep = keep_of(pool, range(0, 60, 2))
    first = write_shards(pool, keep, tmp_path / "out", shard_size=7)
    assert first["shards found finished"] == 0
    tars = tars_in(tmp_path / "out")
    before = {tar: (tar.stat().st_mtime_ns, tar.read_bytes()) for tar in tars}
    tars[2].unlink()
    for left in (".00000001.tar.tmp", ".00000002.tar.tmp", ".sizes.json.tmp"):
        (tmp_path / "out" / left).write_bytes(b"left by a killed process")
    (tmp_path / "out/sizes.json").unlink()
    again = write_shards(pool, keep, tmp_path / "out", shard_size=7)
    assert again == first | {"shards found finished": 4}
    for tar in tars:
        assert tar.read_bytes() == before[tar][1]
        assert (tar == tars[2]) != (tar.stat().st_mtime_ns == before[tar][0])
    assert not list((tmp_path / "out").glob(".*"))
    assert (tmp_path / "out/sizes.json").exists()


@pytest.mark.parametrize("verify", [True, False])
def test_a_finished_shard_with_other_headers_is_written_again_when_verified(tmp_path, pool, verify):
    keep = keep_of(pool, range(30))
    write_shards(pool, keep, tmp_path / "out", shard_size=10)
    tar = tmp_path / "out/00000001.tar"
    good = tar.read_bytes()
    tar.write_bytes(bytes(512) + good[512:])
    counts = write_shards(pool, keep, tmp_path / "out", shard_size=10, verify=verify)
    assert counts["shards found finished"] == (2 if verify else 3)
    assert (tar.read_bytes() == good) == verify


def test_a_failure_midway_leaves_whole_shards_only(tmp_path, pool, monkeypatch):
    keep = keep_of(pool, range(60))
    whole = write_shards(pool, keep, tmp_path / "whole", shard_size=10)
    real, calls = range_copy.read_at, []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 25:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(range_copy, "read_at", fails)
    with pytest.raises(WorldError, match=r"00000002.tar cannot be written: No space left on device"):
        write_shards(pool, keep, tmp_path / "out", shard_size=10)
    assert [tar.name for tar in tars_in(tmp_path / "out")] == ["00000000.tar", "00000001.tar"]
    assert not list((tmp_path / "out").glob(".*.tar.tmp"))
    assert not (tmp_path / "out/sizes.json").exists()
    monkeypatch.undo()
    again = write_shards(pool, keep, tmp_path / "out", shard_size=10)
    assert again == whole | {"shards found finished": 2}


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from dbp.formats import range_copy
from dbp.formats.write_shards import write_shards

real, calls = range_copy.read_at, []

def dies(*arguments):
    calls.append(arguments)
    if len(calls) == 35:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

range_copy.read_at = dies
with open(sys.argv[1], "rb") as handle:
    pool, keep = pickle.load(handle)
write_shards(pool, keep, Path(sys.argv[2]), shard_size=10)
"""


def test_a_killed_export_goes_on_where_it_was(tmp_path, pool):
    keep = keep_of(pool, range(60))
    whole = write_shards(pool, keep, tmp_path / "whole", shard_size=10)
    (tmp_path / "given").write_bytes(pickle.dumps((pool, keep)))
    run = [sys.executable, "-c", KILLED, str(tmp_path / "given"), str(tmp_path / "out")]
    assert subprocess.run(run, timeout=60).returncode == -signal.SIGKILL
    assert (tmp_path / "out/.00000003.tar.tmp").exists()
    again = write_shards(pool, keep, tmp_path / "out", shard_size=10)
    assert again == whole | {"shards found finished": 3}
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("damage", ["swap", "shift"])
def test_a_shard_that_is_not_as_planned_is_not_given_out(tmp_path, pool, monkeypatch, damage):
    real = range_copy.copy_checked

    def wrong(shard, target, plan, at, places):
        if damage == "swap" and len(at) > 1:
            at = np.r_[at[1], at[0], at[2:]]
        real(shard, target, plan, at, places + 512 * (damage == "shift"))

    monkeypatch.setattr(range_copy, "copy_checked", wrong)
    with pytest.raises(WorldError, match="was not written as planned"):
        write_shards(pool, keep_of(pool, range(0, 60, 3)), tmp_path / "out")
    assert not tars_in(tmp_path / "out")


def test_samples_of_another_length_are_a_fault(tmp_path):
    """What the headers of the tar say is compared with the plan, place by place."""
    path = write_tar(tmp_path / "in.tar", [*sample("a"), *sample("b", extras=["cls"])])
    with tarfile.open(path) as tar:
        starts = [info.offset for info in tar if info.name.endswith("png")]
        end = tar.offset
    lengths = np.diff([*starts, end])
    hashes = np.array([hash_64(key) for key in (b"a", b"b")], np.uint64)
    plan = range_copy.TarPlan(path, [str(path)], np.zeros(2, int), np.array(starts), lengths, np.arange(2), hashes)
    assert range_copy.fault_of(path, plan) == ""
    for wrong, said in (
        ({"lengths": lengths[::-1].copy()}, "sample 1 is 'b' at byte"),
        ({"key_hashes": hashes[::-1].copy()}, "sample 0 is 'a' at byte 0"),
        ({"key_hashes": hashes[:1], "first_range": np.arange(1)}, "2 samples instead of 1"),
    ):
        assert range_copy.fault_of(path, replace(plan, **wrong)).startswith(said)


@pytest.mark.parametrize(
    "change", [{"rows": [0, 1]}, {"shard_size": 3}, {"seed": 1}, {"shuffle": False}, {"repeats": [2, 1, 1]}]
)
def test_shards_of_another_list_or_setting_are_not_mixed(tmp_path, pool, change):
    settings = {"rows": [0, 1, 25], "shard_size": 2, "seed": 0, "shuffle": True}

    def write(rows, repeats=None, **settings):
        keep = keep_of(pool, rows)
        keep = keep if repeats is None else keep.weighted(np.array(repeats))
        write_shards(pool, keep, tmp_path / "out", **settings)

    write(**settings)
    before = [tar.read_bytes() for tar in tars_in(tmp_path / "out")]
    with pytest.raises(ConfigError, match="holds the shards of another export"):
        write(**settings | change)
    assert [tar.read_bytes() for tar in tars_in(tmp_path / "out")] == before


def test_the_message_says_which_keep_list_is_there(tmp_path, pool):
    there, here = keep_of(pool, [0, 1]), keep_of(pool, [0, 2])
    write_shards(pool, there, tmp_path / "out")
    with pytest.raises(ConfigError) as caught:
        write_shards(pool, here, tmp_path / "out")
    assert str(caught.value) == (
        f"out={str(tmp_path / 'out')!r} holds the shards of another export (keep={there.digest!r} there, "
        f"{here.digest!r} here). Give an empty folder, or delete that one."
    )


def test_tars_of_others_are_not_touched(tmp_path, pool):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/00000.tar").write_bytes(b"precious")
    (tmp_path / "out/.work.tmp").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"holds 00000.tar, which is not of this export"):
        write_shards(pool, keep_of(pool, [0]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".work.tmp", "00000.tar"]


def test_two_processes_do_not_write_into_one_folder(tmp_path, pool):
    (tmp_path / "out").mkdir()
    refused = pytest.raises(WorldError, match="another process is writing shards into")
    with alone_in(tmp_path / "out"), refused:
        write_shards(pool, keep_of(pool, [0]), tmp_path / "out")
    assert write_shards(pool, keep_of(pool, [0]), tmp_path / "out")["samples"] == 1


def test_a_disk_that_is_too_small_is_said_first(tmp_path, pool, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 1000})())
    with pytest.raises(WorldError, match=r"the shards need 0.00 GB more, and 0.00 GB are free there"):
        write_shards(pool, keep_of(pool, [0]), tmp_path / "out")
    assert not tars_in(tmp_path / "out")


# sources that are not as they were


def test_missing_shards_are_named_and_nothing_is_written(tmp_path, pool):
    os.unlink(pool.shards[1])
    os.unlink(pool.shards[2])
    with pytest.raises(PoolError, match=r"2 of 3 shards that hold kept samples are missing.*in-1.tar"):
        write_shards(pool, keep_of(pool, range(0, 60, 5)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert write_shards(pool, keep_of(pool, range(20)), tmp_path / "out")["samples"] == 20


def test_a_shard_that_became_shorter_is_found_before_anything_is_written(tmp_path, pool):
    os.truncate(pool.shards[2], os.path.getsize(pool.shards[2]) * 2 // 3)
    with pytest.raises(PoolError, match=r"in-2.tar lacks \d of 20 kept samples.*it ends"):
        write_shards(pool, keep_of(pool, range(60)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sample_whose_last_members_are_cut_off_is_not_taken(tmp_path, open_pool):
    path = write_tar(tmp_path / "in.tar", [*sample("a", 1), *sample("b", 2, ["cls"])])
    pool = open_pool(path)
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmember("b.cls").offset)
    with pytest.raises(PoolError, match=r"lacks 1 of 2 kept samples, the first being 'b'"):
        write_shards(pool, keep_of(pool, [0, 1]), tmp_path / "out")
    assert write_shards(pool, keep_of(pool, [0]), tmp_path / "out")["samples"] == 1


def test_another_file_under_the_shards_name_is_found(tmp_path, open_pool):
    path = write_tar(tmp_path / "in.tar", [*sample("a", 1), *sample("b", 2)])
    pool = open_pool(path)
    write_tar(path, [*sample("a", 1), *sample("c", 2)])
    with pytest.raises(PoolError, match=r"where the index knows 'b' lies 'c.png'"):
        write_shards(pool, keep_of(pool, [0, 1]), tmp_path / "out")


def test_a_shard_that_shrinks_while_it_is_copied_is_named(tmp_path, pool, monkeypatch):
    keep = keep_of(pool, range(60))
    real = verb._write_all

    def shrink_first(*arguments):
        os.truncate(pool.shards[0], 4096)
        return real(*arguments)

    monkeypatch.setattr(verb, "_write_all", shrink_first)
    with pytest.raises(PoolError, match=r"in-0.tar ends at byte .* became shorter while it was copied"):
        write_shards(pool, keep, tmp_path / "out")
    assert not tars_in(tmp_path / "out")


def overwrite(path, name, content):
    """Other bytes of equal size in place of a member's; the time of the file is set back."""
    with tarfile.open(path) as tar:
        info = tar.getmember(name)
    before = os.stat(path)
    with open(path, "r+b") as handle:
        handle.seek(info.offset_data)
        handle.write(content.ljust(info.size)[: info.size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("workers", [1, 2])
def test_other_bytes_of_equal_size_are_found_and_counted_and_not_given_out(tmp_path, pool, workers):
    """An image, a caption, and both of one sample, in one shard; the tars before stay, this one is not there."""
    for name in ("010003.png", "010005.txt", "010007.png", "010007.txt"):
        overwrite(pool.shards[1], name, b"something else")
    keep = keep_of(pool, range(60))
    with pytest.raises(PoolError, match=r"in-1.tar holds other bytes.* of 20 samples for 00000001.tar, 3 have"):
        write_shards(pool, keep, tmp_path / "out", shard_size=20, shuffle=False, workers=workers)
    assert not (tmp_path / "out/00000001.tar").exists()
    assert not (tmp_path / "out/sizes.json").exists()
    assert keys_in(tmp_path / "out/00000000.tar") == [f"00{i:04d}" for i in range(20)]
    others = keep_of(pool, [row for row in range(60) if row not in (23, 25, 27)])
    assert write_shards(pool, others, tmp_path / "others")["samples"] == 57, "what is not kept does not matter"
    assert write_shards(pool, keep, tmp_path / "unseen", verify=False)["samples"] == 60


def test_a_caption_in_a_json_is_compared_and_its_other_fields_are_not(tmp_path, open_pool):
    path = write_tar(tmp_path / "in.tar", [m for i in range(4) for m in sample(f"k{i}", i)])
    pool = open_pool(path, caption="json:key")
    overwrite(path, "k1.json", json.dumps({"uid": "f" * 32, "key": "k1"}).encode())
    overwrite(path, "k1.txt", b"no part of this pool")
    assert write_shards(pool, keep_of(pool, range(4)), tmp_path / "one")["samples"] == 4
    overwrite(path, "k2.json", json.dumps({"uid": "f" * 32, "key": "k3"}).encode())
    with pytest.raises(PoolError, match=r"of 4 samples for 00000000.tar, 1 have another image or caption"):
        write_shards(pool, keep_of(pool, range(4)), tmp_path / "two")


def test_the_readable_part_of_a_damaged_shard_can_be_written(tmp_path, open_pool):
    path = write_tar(tmp_path / "in.tar", [m for i in range(4) for m in sample(f"k{i}", i)])
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmember("k3.txt").offset)
    pool = open_pool(path, broken_shards="keep_readable")
    write_shards(pool, keep_of(pool, np.arange(pool.num_rows)), tmp_path / "out", shuffle=False)
    assert keys_in(tmp_path / "out/00000000.tar") == ["k0", "k1", "k2"]


def test_remote_shards_and_metadata_are_refused_with_a_way_out(tmp_path, pool):
    keep = keep_of(pool, [0])
    remote = replace(pool, shards=["s3://bucket/0.tar", *pool.shards[1:]])
    with pytest.raises(PoolError, match=r"s3://bucket/0\.tar is streamed, and byte ranges cannot"):
        write_shards(remote, keep, tmp_path / "out")
    with pytest.raises(ConfigError, match="metadata alone, without tars to copy from"):
        write_shards(replace(pool, shards=[]), keep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lists_and_settings_that_cannot_be_are_refused(tmp_path, pool):
    keep = keep_of(pool, [0, 1])
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    for expected, arguments in {
        "shard_size=0: it must be above 0": (pool, keep, out, 0),
        "keeps a row": (pool, KeepList(pool.digest, np.zeros(60, bool)), out),
        "the keep list is of pool 0000": (pool, replace(keep, pool_digest="0000"), out),
        "is a file": (pool, keep, tmp_path / "file"),
    }.items():
        with pytest.raises(ConfigError, match=expected):
            write_shards(*arguments)
    assert not out.exists()


def test_rows_that_do_not_stand_in_the_order_of_the_shards_are_found(tmp_path, pool):
    """As in a pool of metadata that is joined with tars."""
    from dbp.data.columns import Columns

    shuffled = pool.table.take(np.random.default_rng(2).permutation(60))
    mixed = replace(pool, index=Columns(shuffled))
    rows = np.arange(0, 60, 3)
    write_shards(mixed, keep_of(mixed, rows), tmp_path / "out")
    expected = sorted(shuffled["key"].take(rows).to_pylist())
    assert sorted(keys_in(tmp_path / "out/00000000.tar")) == expected
