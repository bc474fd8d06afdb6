"""Pools: what the index says is where the tar has it, and other readers see the same samples."""

import http.server
import io
import json
import tarfile
import threading
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from dbp.data.images import IMAGE_FORMATS
from dbp.data.keep_list import KeepList
from dbp.encoders.base import Encoder, Tower
from dbp.encoders.embed import Embed
from dbp.encoders.precomputed import Precomputed
from dbp.engine.paths import expand_shards
from dbp.engine.store import Store
from dbp.errors import PoolError
from dbp.filtering.rules import Rules
from dbp.pools.index import Index

TARS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def picture(shade=0, kind="PNG", size=(8, 6)):
    out = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256, 7)).save(out, kind)
    return out.getvalue()


def cut_picture():
    """A picture with a sound header whose pixels end too early."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(out, "JPEG")
    return out.getvalue()[:3000]


def write_tar(path, members, kind="pax"):
    """Write members, (name or TarInfo, bytes) pairs, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=TARS[kind], errors="surrogateescape") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(keys, first=0):
    """A picture and a caption for each key."""
    return [
        member
        for i, key in enumerate(keys, first)
        for member in ((f"{key}.png", picture(i)), (f"{key}.txt", f"caption of {key}".encode()))
    ]


def index(shards, **settings):
    settings = {"uid": "key", "caption": "txt", "max_pixels": 10**7} | settings
    return Index(shards=str(shards) if not isinstance(shards, list) else shards, **settings).node()


def open_pool(store, shards, **settings):
    return store.get(index(shards, **settings))


def manifest(store, shards, **settings):
    return store.entry(index(shards, **settings)).manifest


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


LONG = "k" * 300
ODD_KEYS = ["plain", f"folder/{LONG}", "ключ/日本語-é", "with blank = and {braces}", "UPPER", "n/n"]


@pytest.mark.parametrize("kind", TARS)
def test_every_row_reads_the_bytes_that_python_reads_in_the_tar(store, tmp_path, kind):
    shards = [
        write_tar(tmp_path / "a.tar", pairs(ODD_KEYS), kind),
        write_tar(tmp_path / "b.tar", pairs([f"{i:05d}" for i in range(9)], 100), kind),
    ]
    pool = open_pool(store, f"{tmp_path}/*.tar")
    row = 0
    for number, shard in enumerate(shards):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            for image, caption in zip(members[::2], members[1::2], strict=True):
                assert pool.column("shard")[row] == number
                assert pool.table["key"][row].as_py() == image.name.removesuffix(".png")
                assert pool.image_bytes(row) == tar.extractfile(image).read()
                assert pool.caption(row) == tar.extractfile(caption).read().decode()
                assert pool.column("image_offset")[row] == image.offset_data
                row += 1
    assert row == pool.num_rows == 15
    assert pool.is_valid.all()


def test_each_shard_is_read_once_from_front_to_back(store, tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", pairs(map(str, range(5))))
    opened = []

    class OneWay(io.FileIO):
        def seek(self, *where):
            raise AssertionError("the index seeks")

    def only_once(path, mode):
        opened.append(path)
        return OneWay(path, mode)

    monkeypatch.setattr("dbp.formats.tars.open", only_once, raising=False)
    assert open_pool(store, tmp_path / "a.tar").num_rows == 5
    assert opened == [str(tmp_path / "a.tar")]


def test_webdataset_reads_the_same_samples(store, tmp_path):
    import webdataset

    extra = [
        ("a/0.jpg", picture(1, "JPEG")), ("a/0.json", b"{}"), ("a/0.txt", b"first"),
        ("a/0.mask.png", picture(2)), (".hidden.jpg", picture(3)), ("a/1.PNG", picture(4)),
        ("a/1.txt", b"second"), ("./c.webp", picture(5, "WEBP")), ("./c.txt", b"third"),
    ]  # fmt: skip
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "a/0.jpg"
    folder = tarfile.TarInfo("folder.jpg")
    folder.type = tarfile.DIRTYPE
    shard = write_tar(tmp_path / "a.tar", [*extra, (link, b""), (folder, b""), *pairs(ODD_KEYS)])
    pool = open_pool(store, shard)
    theirs = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [s["__key__"] for s in theirs] == pool.table["key"].to_pylist()
    for row, sample in enumerate(theirs):
        assert sample[pool.column("format")[row].replace("jpeg", "jpg")] == pool.image_bytes(row)
        assert sample["txt"].decode() == pool.caption(row)


def test_the_digest_is_of_the_content_and_not_of_the_place(tmp_path):
    digests = set()
    for place in ("here", "there {0..3} = [a], é"):
        write_tar(tmp_path / place / "a.tar", pairs("abc"))
        store = Store(tmp_path / f"store {place}")
        digests.add(open_pool(store, tmp_path / place / "a.tar").digest)
    assert len(digests) == 1
    write_tar(tmp_path / "here" / "b.tar", pairs("abd"))
    assert open_pool(store, tmp_path / "here" / "b.tar").digest not in digests


def test_moving_the_shards_keeps_what_was_built(tmp_path, store):
    write_tar(tmp_path / "here" / "a.tar", pairs("abc"))
    before = index(tmp_path / "here" / "a.tar")
    store.get(before)
    (tmp_path / "here").rename(tmp_path / "there")
    after = index(tmp_path / "there" / "a.tar")
    again = Store(store.root)
    assert again.get(after).caption(0) == "caption of a"
    assert again.built == []


def test_another_limit_of_pixels_is_another_pool(store, tmp_path):
    shard = write_tar(tmp_path / "a.tar", [*pairs("ab"), ("c.png", picture(1, size=(100, 100))),
                                           ("c.txt", b"a large one")])  # fmt: skip
    everything, small = (open_pool(store, shard, max_pixels=most) for most in (10**7, 5000))
    assert everything.is_valid.tolist() == [True, True, True]
    assert small.is_valid.tolist() == [True, True, False]
    assert everything.digest != small.digest


def test_max_samples_takes_the_front_across_shards(store, tmp_path):
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", pairs([f"{name}{i}" for i in range(3)]))
    pool = open_pool(store, f"{tmp_path}/*.tar", max_samples=4)
    assert pool.uids() == ["a0", "a1", "a2", "b0"]
    assert pool.caption(3) == "caption of b0"
    assert open_pool(store, f"{tmp_path}/*.tar", max_samples=99).num_rows == 9


def test_shards_stay_in_order_beyond_a_hundred_thousand():
    from dbp.pools.index import part_name

    names = [part_name(n) for n in (0, 9, 10, 99_999, 100_000, 100_001, 1_400_000)]
    assert sorted(names) == names


@pytest.mark.parametrize(("uid", "expected"), [("key", "a/b"), ("json:uid", "00ff"), ("json:number", "7")])
def test_a_uid_is_the_key_or_a_field_of_the_json(store, tmp_path, uid, expected):
    told = json.dumps({"uid": "00ff", "number": 7}).encode()
    shard = write_tar(tmp_path / "a.tar", [*pairs(["a/b"]), ("a/b.json", told)])
    assert open_pool(store, shard, uid=uid).uids() == [expected]


def test_a_hash_uid_tells_equal_keys_of_two_shards_apart_and_suits_datacomp(store, tmp_path):
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", pairs(["0", "1"]))
    pool = open_pool(store, f"{tmp_path}/*.tar", uid="hash")
    assert len({*pool.uids()}) == 4
    assert all(len(bytes.fromhex(uid)) == 16 for uid in pool.uids())
    assert manifest(store, f"{tmp_path}/*.tar", uid="hash")["counts"]["repeated uids"] == 0


def test_repeated_keys_are_counted_and_each_row_can_still_be_named(store, tmp_path):
    write_tar(tmp_path / "a.tar", pairs(["0", "0", "1", "0"]))
    write_tar(tmp_path / "b.tar", pairs(["0", "2"], first=9))
    shards = f"{tmp_path}/*.tar"
    pool = open_pool(store, shards)
    assert pool.uids() == ["0", "0", "1", "0", "0", "2"]
    assert manifest(store, shards)["counts"]["repeated uids"] == 3
    assert pool.row_of("1") == 2
    assert pool.row_of("b/0") == 4
    assert pool.row_of("row:3") == 3
    with pytest.raises(PoolError, match=r"4 samples are named '0': a/0 \(row:0\).*Give SHARD/KEY, or"):
        pool.row_of("0")
    with pytest.raises(PoolError, match="no sample 'row:6' among its 6"):
        pool.row_of("row:6")


def test_of_several_images_under_one_key_the_first_format_is_read(store, tmp_path):
    members = [("0.png", picture(1)), ("0.jpg", picture(2, "JPEG")), ("0.txt", b"two pictures")]
    shard = write_tar(tmp_path / "a.tar", members)
    pool = open_pool(store, shard)
    assert IMAGE_FORMATS[0] == "jpg"
    assert pool.image_bytes(0) == members[1][1]
    assert manifest(store, shard)["counts"]["several images under one key"] == 1


def test_captions_may_lie_in_a_field_of_the_json(store, tmp_path):
    fields = ['{"text": "good", "n": 1}', '{"text": 5}', '{"text": null}', '{"text": ["list"]}',
              '{"other": "x"}', "[1, 2]", '"bare"', "no json", "[" * 100_000, '{"text": "\\ud800half"}',
              "\ufeff{\"text\": \"marked\"}"]  # fmt: skip
    members = [
        member
        for i, told in enumerate(fields)
        for member in ((f"{i}.png", picture(i)), (f"{i}.json", told.encode()))
    ]
    shard = write_tar(tmp_path / "a.tar", members)
    pool = open_pool(store, shard, caption="json:text")
    valid = {row: pool.caption(row) for row in np.flatnonzero(pool.is_valid).tolist()}
    assert valid == {0: "good", 3: "list", 9: "?half", 10: "marked"}
    counts = manifest(store, shard, caption="json:text")["counts"]
    assert (counts["no caption"], counts["caption is a number"]) == (6, 1)


# streams


@pytest.fixture
def address(tmp_path):
    """A local HTTP server over tmp_path."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(tmp_path), **kwargs)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@Encoder.register  # not a subclass: the project's own encoders are counted elsewhere
@dataclass(frozen=True)
class MeanColour:
    """An encoder that needs no weights: mean colour, or letters of the caption."""

    reads: ClassVar[bool] = False
    batch_size: int = 2

    def identity(self):
        return {}

    def load(self):
        import torch

        def preprocess(image):
            return torch.tensor(np.asarray(image, np.float32).mean((0, 1)) + 1)

        def texts(batch):
            return np.array([[len(t), 1, sum(map(ord, t))] for t in batch], np.float32)

        return Tower(preprocess, lambda batch: batch.numpy(), texts)


def stream_tars(folder):
    members = pairs(["a", "b"])
    only_json = [("lonely.json", b'{"no": "picture"}')]
    several = [("c.png", picture(9)), ("c.jpg", picture(70, "JPEG")), ("c.txt", b"two pictures")]
    broken = [("d.jpg", cut_picture()), ("d.txt", b"cut")]
    write_tar(folder / "s0.tar", [*members, *only_json, *several, *broken])
    write_tar(folder / "s1.tar", [*pairs(["e", "f"], 30), ("padding.bin", b"x" * 300_000)])


@pytest.mark.parametrize("way", ["pipe", "http"])
def test_streamed_shards_are_indexed_and_embedded_as_local_ones(tmp_path, address, way):
    stream_tars(tmp_path)
    remote = f"pipe:cat '{tmp_path}/s{{0..1}}.tar'" if way == "pipe" else f"{address}/s{{0..1}}.tar"
    made = {}
    for place, shards in (("local", f"{tmp_path}/s{{0..1}}.tar"), ("remote", remote)):
        store = Store(tmp_path / place)
        pool = open_pool(store, shards)
        node = index(shards)
        vectors = [store.get(Embed(MeanColour(), side).bind(pool=node)) for side in ("image", "text")]
        made[place] = pool, vectors
    (pool, here), (streamed, there) = made["local"], made["remote"]
    assert streamed.digest == pool.digest
    assert streamed.table.drop(["shard"]) == pool.table.drop(["shard"])
    for ours, theirs in zip(here, there, strict=True):
        np.testing.assert_array_equal(ours.rows, theirs.rows)
        np.testing.assert_array_equal(ours.gather(ours.rows), theirs.gather(theirs.rows))
        np.testing.assert_array_equal(ours.missing.rows, theirs.missing.rows)
        assert ours.missing.texts == theirs.missing.texts
    assert here[0].missing.rows.tolist() == [4]
    assert here[0].missing.texts == ("undecodable image",)


def test_a_stage_that_reads_at_random_names_the_streamed_shard_and_the_way_out(tmp_path):
    stream_tars(tmp_path)
    pool = open_pool(Store(tmp_path / "store"), f"pipe:cat '{tmp_path}/s0.tar'")
    with pytest.raises(PoolError, match=r"pipe:cat .*s0.tar' is streamed .* Copy the shards"):
        pool.caption(0)


def test_a_stream_may_be_left_early(tmp_path):
    stream_tars(tmp_path)
    store = Store(tmp_path / "store")
    pool = open_pool(store, f"pipe:cat '{tmp_path}/s1.tar' '{tmp_path}/s1.tar'", max_samples=1)
    assert pool.uids() == ["e"]


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        ("pipe:exit 3", "exit 3"),
        ("pipe:cat nowhere.tar", "exit 1"),
        ("{address}/nowhere.tar", "exit 22"),
        ("s3://bucket/0.tar", "no gopen handler"),
        ("pipe:head -c 1500 '{folder}/s0.tar'", "cannot be read after member 'a.png'"),
    ],
)
def test_a_stream_that_fails_is_an_error_that_names_it(tmp_path, address, shard, said):
    stream_tars(tmp_path)
    shard = shard.replace("{address}", address).replace("{folder}", str(tmp_path))
    with pytest.raises(PoolError) as error:
        open_pool(Store(tmp_path / "store"), [shard])
    assert said in str(error.value)
    assert shard in str(error.value)


def test_a_stream_that_has_changed_since_the_index_is_an_error(tmp_path):
    stream_tars(tmp_path)
    store = Store(tmp_path / "store")
    node = index(f"pipe:cat '{tmp_path}/s0.tar'")
    store.get(node)
    write_tar(tmp_path / "s0.tar", pairs(["a", "other"]))
    with pytest.raises(PoolError, match=r"does not give the image of 'b' as it did when it was indexed"):
        store.get(Embed(MeanColour(), "image").bind(pool=node))


# names of shards


@pytest.mark.parametrize(
    "folder", ["{curly}", "a=b", "(round)", "[square]", "x, y", "blank and é ü 日本", "{0..3}", "*", "a'b\"c"]
)
def test_a_folder_of_any_name_arrives_unchanged(tmp_path, folder):
    shards = [write_tar(tmp_path / folder / f"{i:05d}.tar", pairs("a")) for i in range(3)]
    for pattern in ("{00000..00002}.tar", "*.tar", "0000?.tar", "{00000,00001,00002}.tar"):
        assert expand_shards(str(tmp_path / folder / pattern)) == [str(s) for s in shards]
    assert expand_shards(str(shards[1])) == [str(shards[1])]


def test_shards_that_cannot_be_named_so_are_told_what_to_say_instead(tmp_path):
    (tmp_path / "pool").mkdir()
    for i in (0, 2):
        write_tar(tmp_path / "pool" / f"{i}.tar", pairs("a"))
    cases = {
        f"{tmp_path}/pool/{{0..3}}.tar": r"2 of 4 shards are missing; the first is .*1\.tar",
        f"{tmp_path}/pool": r"which is a folder. Name the tars in it, such as",
        f"{tmp_path}/pool/*.tgz": "no shard matches pool.shards=",
        f"{tmp_path}/pool/{{0..3.tar": "a brace without its partner",
        f"{tmp_path}/pool/{'x' * 300}.tar": "1 of 1 shards are missing",
    }
    for pattern, said in cases.items():
        with pytest.raises(PoolError, match=said):
            expand_shards(pattern)
    twice = [f"{tmp_path}/pool/0.tar", f"{tmp_path}/pool/*.tar"]
    with pytest.raises(PoolError, match=r"names .*0\.tar more than once"):
        expand_shards(twice)
    with pytest.raises(PoolError, match="names no shard"):
        open_pool(Store(tmp_path / "store"), "")


def test_a_long_list_of_shards_is_expanded_without_delay(tmp_path, monkeypatch):
    import time

    monkeypatch.setattr("os.path.isfile", lambda path: True)
    began = time.monotonic()
    assert len(expand_shards(f"{tmp_path}/{{000000..009998}}.tar")) == 9999
    assert time.monotonic() - began < 3


def test_rules_count_words_on_local_shards(store, tmp_path):
    shard = write_tar(tmp_path / "a.tar", [*pairs("ab"), ("c.png", picture(3)), ("c.txt", b"one")])
    from dbp.curate import ValidRows

    pool = index(shard)
    rules = Rules(min_words=2, min_characters=0, min_side=0, max_aspect_ratio=9.0)
    kept = store.get(rules.bind(rows=ValidRows().bind(pool=pool), pool=pool))
    assert isinstance(kept, KeepList)
    assert kept.rows.tolist() == [0, 1]
    assert kept.decision(2)["reason"] == "too few words"


def test_precomputed_vectors_follow_the_rows_of_the_pool(store, tmp_path):
    shards = [write_tar(tmp_path / f"{i}.tar", pairs([f"{i}{j}" for j in range(4)])) for i in range(3)]
    vectors = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    encoder = Precomputed("test", images=str(tmp_path / "v.npy"))
    made = store.get(Embed(encoder, "image").bind(pool=index([str(s) for s in shards])))
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(made.unit(np.arange(12)), expected, atol=1e-3)


def test_the_shards_are_looked_at_once_for_all_keys_of_a_run(store, tmp_path, monkeypatch):
    from dbp.curate import ValidRows

    looks = []
    described = Index.source
    monkeypatch.setattr(Index, "source", lambda self: looks.append(1) or described(self))
    pool = index(write_tar(tmp_path / "a.tar", pairs("abc")))
    rows = ValidRows().bind(pool=pool)
    store.get(Rules(0, 0, 0, 9.0).bind(rows=rows, pool=pool))
    assert len(looks) <= 2  # for the key, and for the manifest
