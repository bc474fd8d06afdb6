"""Bad input: counted by its reason and told in the decision table, or an error that says the way out."""

import gzip
import io
import json
import resource
import struct
import tarfile
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from dbp.clustering.kmeans import KMeans
from dbp.curate import ValidRows
from dbp.data.images import Undecodable, decode_rgb, header
from dbp.dedup.semdedup import SemDeDup
from dbp.encoders.base import Encoder, Tower
from dbp.encoders.embed import Embed
from dbp.encoders.precomputed import Precomputed
from dbp.engine.store import Store
from dbp.errors import ConfigError, PoolError, WorldError
from dbp.pools.index import DAMAGED, DOTTED, Index
from dbp.scoring.clip_score import ClipScore
from evaluation.sets.tar_index import scan_tar

LIMIT = 178_956_970


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width=32, height=24, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def png_bomb(width, height):
    """A valid PNG, all black, a thousandth of its pixels in size."""

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    lines = zlib.compressobj(9, zlib.DEFLATED, -15)
    some = lines.compress(bytes((width + 1) * 100)) + lines.flush(zlib.Z_FULL_FLUSH)
    check = struct.pack(">HH", (width + 1) * height % 65_521, 1)  # Adler-32 of so many zeros
    content = b"\x78\xda" + some * (height // 100) + lines.flush() + check
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content)
            + chunk(b"IEND", b""))  # fmt: skip


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(noise(), "JPEG", exif=exif)


def animated(kind):
    frames = [noise(seed=i) for i in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


JPEG = encoded(noise(), "JPEG")
EXIF = with_orientation(6)
# name -> (content, reason at the index, what the pixels say)
PICTURES = {
    "good": (JPEG, "", None),
    "grey": (encoded(noise().convert("L"), "JPEG"), "", None),
    "cmyk": (encoded(noise().convert("CMYK"), "JPEG"), "", None),
    "palette": (encoded(noise().convert("P")), "", None),
    "alpha": (encoded(noise().convert("RGBA")), "", None),
    "grey alpha": (encoded(noise().convert("LA")), "", None),
    "one bit": (encoded(noise().convert("1")), "", None),
    "16 bit": (encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16))), "", None),
    "animated gif": (animated("GIF"), "", None),
    "animated webp": (animated("WEBP"), "", None),
    "turned by EXIF": (EXIF, "", None),
    "EXIF of nonsense": (with_orientation(300), "", None),
    "damaged EXIF": (EXIF.replace(b"Exif\0\0MM", b"Exif\0\0??").replace(b"Exif\0\0II", b"Exif\0\0??"),
                     "", None),
    "1 pixel": (encoded(Image.new("RGB", (1, 1))), "", None),
    "20,000 x 1": (encoded(Image.new("RGB", (20_000, 1))), "", None),
    "20,000 x 20,000": (png_bomb(20_000, 20_000), "too many pixels", "too many pixels"),
    "no bytes": (b"", "empty image", "empty image"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image",
                   "not an image"),
    "broken JPEG": (encoded(noise(200, 200), "JPEG")[:3000], "", "undecodable image"),
    "cut PNG": (encoded(noise(200, 200))[:3000], "", "undecodable image"),
    "cut header": (JPEG[:30], "not an image", "not an image"),
    "only a signature": (b"\x89PNG\r\n\x1a\n", "not an image", "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_read_or_refused_with_a_reason(name):
    content, at_index, at_decoding = PICTURES[name]
    if at_index:
        with pytest.raises(Undecodable) as refused:
            header(content, LIMIT)
        assert str(refused.value) in {at_index, "not an image", "broken image header"}
    else:
        kind, width, height, orientation, *_ = header(content, LIMIT)
        assert kind in {"jpeg", "png", "gif", "webp"}
        assert min(width, height) >= 1
        assert orientation == (6 if name == "turned by EXIF" else 1)
    if at_decoding:
        with pytest.raises(Undecodable):
            decode_rgb(content, LIMIT)
    else:
        image = decode_rgb(content, LIMIT)
        assert image.mode == "RGB"
        assert image.size == (width, height)


def test_a_small_file_that_expands_to_gigabytes_is_never_decoded():
    bomb = png_bomb(60_000, 60_000)
    assert len(bomb) < 10_000_000
    assert decode_rgb(png_bomb(300, 300), LIMIT).getextrema() == ((0, 0),) * 3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for refuse in (header, decode_rgb):
        with pytest.raises(Undecodable, match="too many pixels"):
            refuse(bomb, LIMIT)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64_000, f"{grown} kB more for a picture that is refused"


def write_tar(path, members):
    with tarfile.open(path, "w", errors="surrogateescape") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(keys):
    return [
        m for key in keys for m in ((f"{key}.jpg", JPEG), (f"{key}.txt", f"of {key}".encode("utf-8", "replace")))
    ]


def index(shards, **settings):
    settings = {"uid": "key", "caption": "txt", "max_pixels": LIMIT} | settings
    return Index(shards=str(shards), **settings).node()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def counts(store, node):
    return store.entry(node).manifest["counts"]


def test_every_bad_picture_stands_in_the_manifest_and_in_the_decision_table(store, tmp_path):
    members = []
    for name, (content, _, _) in PICTURES.items():
        members += [(f"{name}.png", content), (f"{name}.txt", name.encode())]
    shard = write_tar(tmp_path / "a.tar", members)
    node = index(shard)
    pool = store.get(node)
    expected = {name: told[1] for name, told in PICTURES.items() if told[1]}
    kept = store.get(ValidRows().bind(pool=node))
    assert kept.num_kept == len(PICTURES) - len(expected)
    for row, uid in enumerate(pool.uids()):
        decision = kept.decision(row)
        assert decision["kept"] == (uid not in expected)
        if uid in expected:
            assert decision["stage"] == "pool"
            assert pool.table["reason"][row].as_py() == decision["reason"] != ""
    told = counts(store, node)
    assert told["too many pixels"] == 1
    assert told["empty image"] == 1
    assert told["turned by EXIF"] == 1
    reasons = {r for r in kept.decisions["reason"].to_pylist() if r != "valid"}
    assert sum(told[reason] for reason in reasons) == len(expected)


CAPTIONS = {
    "empty": (b"", "empty caption", ""),
    "blank": (b" \n\t ", "empty caption", " \n\t "),
    "long": (b"word " * 2000, "", "word " * 2000),
    "broken": (b"caf\xe9 \xff", "undecodable caption", ""),
    "unicode": ("日本語 é 😀".encode(), "", "日本語 é 😀"),
    "zero byte": (b"a\0b", "", "a\0b"),
}


def test_captions_are_read_as_text_whatever_their_bytes(store, tmp_path):
    members = [m for key, (text, _, _) in CAPTIONS.items() for m in ((f"{key}.jpg", JPEG), (f"{key}.txt", text))]
    node = index(write_tar(tmp_path / "a.tar", [*members, ("none.jpg", JPEG), ("alone.txt", b"no picture")]))
    pool = store.get(node)
    rows = dict(zip(pool.uids(), range(pool.num_rows), strict=True))
    for key, (_, reason, text) in CAPTIONS.items():
        assert pool.caption(rows[key]) == text
        assert pool.table["reason"][rows[key]].as_py() == reason
        assert pool.column("caption_length")[rows[key]] == len(text)
    assert pool.table["reason"][rows["none"]].as_py() == "no caption"
    assert pool.table["reason"][rows["alone"]].as_py() == "no image"
    told = counts(store, node)
    assert (told["empty caption"], told["no caption"], told["no image"]) == (2, 1, 1)


def test_names_are_data_and_never_paths(store, tmp_path):
    names = ["../../up", "/srv/key", "./here", "a/../b", "é日", "q" * 300, "new\nline", "*?[x]", "C:\\x",
             b"bad\xff\xfe".decode("utf-8", "surrogateescape")]  # fmt: skip
    before = set(tmp_path.rglob("*"))
    shard = write_tar(tmp_path / "a.tar", pairs(names))
    pool = store.get(index(shard))
    assert pool.table["key"].to_pylist() == [*names[:-1], "bad\\xff\\xfe"]
    assert pool.is_valid.all()
    assert [pool.caption(i) for i in range(9)] == [f"of {name}" for name in names[:-1]]
    made = {p for p in tmp_path.rglob("*") if "store" not in str(p)} - before
    assert made == {shard}


def test_folders_and_links_and_odd_extensions_are_no_samples(store, tmp_path):
    odd = []
    for kind, name in ((tarfile.DIRTYPE, "d.jpg"), (tarfile.SYMTYPE, "s.jpg"), (tarfile.LNKTYPE, "l.jpg"),
                       (tarfile.FIFOTYPE, "f.jpg"), (tarfile.CHRTYPE, "c.jpg")):  # fmt: skip
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "a.jpg"
        odd.append((info, b""))
    more = [("notes.md", b"x"), ("noextension", b"x"), (".jpg", JPEG), ("v1.2.jpg", JPEG), ("v1.2.txt", b"x"),
            ("U.JPG", JPEG), ("U.TXT", b"upper")]  # fmt: skip
    node = index(write_tar(tmp_path / "a.tar", [*pairs("a"), *odd, *more]))
    pool = store.get(node)
    assert pool.uids() == ["a", "U"]
    assert pool.caption(1) == "upper"
    assert counts(store, node)[DOTTED] == 1


def test_a_tar_whose_keys_all_hold_dots_is_told_so(store, tmp_path):
    shard = write_tar(tmp_path / "a.tar", pairs(["v1.2", "v1.3"]))
    with pytest.raises(PoolError, match=r"no sample .*first dot. pictures not read: a dot in the key: 2"):
        store.get(index(shard))


# whole shards


def cut_at(path, size):
    content = path.read_bytes()[:size]
    path.write_bytes(content)
    return path


def offsets(path):
    with tarfile.open(path) as tar:
        return {m.name: (m.offset, m.offset_data, m.size) for m in tar}


def damaged(path, how):
    write_tar(path, pairs(["a", "b", "c"]))
    where = offsets(path)
    if how == "cut in data":
        return cut_at(path, where["c.jpg"][1] + 100)
    if how == "cut in the caption":
        return cut_at(path, where["c.txt"][1] + 2)
    if how == "cut in a header":
        return cut_at(path, where["c.jpg"][0] + 300)
    if how == "cut at a member":
        return cut_at(path, where["c.jpg"][0])
    if how == "cut before the end mark":
        return cut_at(path, where["c.txt"][0] + 1024)
    assert how == "garbled header"
    content = bytearray(path.read_bytes())
    content[where["c.jpg"][0] : where["c.jpg"][0] + 512] = b"\xa5" * 512
    path.write_bytes(content)
    return path


CUTS = {
    "cut in data": ("b.txt", ["a"]),
    "cut in the caption": ("c.jpg", ["a", "b"]),
    "cut in a header": ("b.txt", ["a"]),
    "cut at a member": ("b.txt", ["a"]),
    "cut before the end mark": ("c.txt", ["a", "b"]),
    "garbled header": ("b.txt", ["a"]),
}


@pytest.mark.parametrize("how", CUTS)
def test_a_damaged_shard_is_an_error_that_names_it_its_last_member_and_the_way_out(store, tmp_path, how):
    shard = damaged(tmp_path / "bad.tar", how)
    with pytest.raises(PoolError) as error:
        store.get(index(shard))
    said = str(error.value)
    assert f"{shard} cannot be read after member {CUTS[how][0]!r}" in said
    assert "Fetch it again, or set pool.broken_shards=keep_readable" in said


@pytest.mark.parametrize("how", CUTS)
def test_of_a_damaged_shard_the_samples_before_the_damage_can_be_kept_and_are_counted(store, tmp_path, how):
    write_tar(tmp_path / "a.tar", pairs(["x"]))
    damaged(tmp_path / "b.tar", how)
    write_tar(tmp_path / "c.tar", pairs(["y"]))
    node = index(f"{tmp_path}/*.tar", broken_shards="keep_readable")
    assert store.get(node).uids() == ["x", *CUTS[how][1], "y"]
    assert counts(store, node)[DAMAGED] == 1


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 99, b"\x1f\x8b" + b"x" * 2000])
def test_a_file_that_is_no_tar_is_named_or_counted(store, tmp_path, content):
    write_tar(tmp_path / "a.tar", pairs(["x"]))
    (tmp_path / "b.tar").write_bytes(content)
    with pytest.raises(PoolError, match=r"b\.tar cannot be read at its first member: .*Fetch it again"):
        store.get(index(f"{tmp_path}/*.tar"))
    node = index(f"{tmp_path}/*.tar", broken_shards="keep_readable")
    assert store.get(node).uids() == ["x"]
    assert counts(store, node)[DAMAGED] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"x" * 2000, mtime=0), "gunzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html>" + b"x" * 2000, "HTML"),
    ],
    ids=["gzip", "pointer", "page"],  # names that hold no bytes: workers must collect equal ones
)
def test_a_shard_that_is_another_kind_of_file_is_called_what_it_is(store, tmp_path, content, said):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(PoolError, match=rf"a\.tar cannot be read at its first member: it is .*{said}"):
        store.get(index(tmp_path / "a.tar"))


@pytest.mark.parametrize("name", ["BZhang", "<b>", "version https:"])
def test_a_tar_whose_first_name_looks_like_another_kind_of_file_is_a_tar(store, tmp_path, name):
    shard = write_tar(tmp_path / "a.tar", pairs([name, "x"]))
    assert store.get(index(shard)).uids() == [name, "x"]


@pytest.mark.parametrize("zeros", [0, 512, 1 << 17])
@pytest.mark.parametrize("address", ["{}", "pipe:cat {}"])
def test_tars_put_one_behind_the_other_are_read_to_the_last(store, tmp_path, address, zeros):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", pairs([f"{name}{i}" for i in range(3)]))
    both = tmp_path / "both.tar"
    both.write_bytes((tmp_path / "a.tar").read_bytes() + b"\0" * zeros + (tmp_path / "b.tar").read_bytes())
    pool = store.get(index(address.format(both)))
    assert pool.uids() == ["a0", "a1", "a2", "b0", "b1", "b2"]
    if address == "{}":
        alone = Store(tmp_path / "alone").get(index(f"{tmp_path}/[ab].tar"))
        assert [pool.image_bytes(row) for row in range(6)] == [alone.image_bytes(row) for row in range(6)]
        assert pool.captions(np.arange(6)) == alone.captions(np.arange(6))
        found = scan_tar(both, 0)
        assert [sample.key for sample in found] == pool.uids()


def test_what_is_no_tar_behind_the_end_of_one_is_said(store, tmp_path):
    shard = write_tar(tmp_path / "a.tar", pairs(["x", "y"]))
    shard.write_bytes(shard.read_bytes() + b"signed by someone" * 99)
    with pytest.raises(PoolError, match=r"after member 'y\.txt': the header at byte \d[\d,]*, behind the mark"):
        store.get(index(shard))


def test_a_size_beyond_all_memory_is_damage_and_asks_for_none(store, tmp_path):
    """The header's checksum holds; its size of 2 ** 45 bytes does not."""
    shard = write_tar(tmp_path / "a.tar", pairs(["x"]))
    content = bytearray(shard.read_bytes())
    content[124:136] = b"\x80" + (1 << 45).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    shard.write_bytes(content)
    with pytest.raises(PoolError, match=r"a\.tar cannot be read at its first member"):
        store.get(index(shard))


def test_a_missing_shard_stops_before_any_work(store, tmp_path):
    write_tar(tmp_path / "0.tar", pairs(["x"]))
    with pytest.raises(PoolError, match=r"2 of 3 shards are missing; the first is .*1\.tar"):
        store.get(index(f"{tmp_path}/{{0..2}}.tar"))
    assert not (tmp_path / "store").exists()


def test_an_empty_tar_is_no_harm_beside_others_and_an_error_alone(store, tmp_path):
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(PoolError, match=r"no sample in 1 shards, the first being .*0\.tar\. A sample is"):
        store.get(index(tmp_path / "0.tar"))
    write_tar(tmp_path / "1.tar", pairs(["x"]))
    assert store.get(index(f"{tmp_path}/*.tar")).uids() == ["x"]


def test_a_pool_whose_images_are_missing_is_not_told_to_set_its_caption(store, tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("0.txt", b"a caption"), ("1.txt", b"another"), ("1.psd", b"II")])
    with pytest.raises(PoolError, match=r"without image: 2, without caption: 0\).*an image is a member") as refused:
        store.get(index(shard))
    assert "set pool.caption" not in str(refused.value)


def test_a_caption_field_that_is_set_already_asks_for_another_field(store, tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("0.jpg", JPEG), ("0.json", b'{"text": "x"}')])
    with pytest.raises(PoolError, match=r"pool.caption=json:caption;.*lie in another field of the json"):
        store.get(index(shard, caption="json:caption"))


def test_a_pool_without_captions_is_told_where_captions_may_lie(store, tmp_path):
    told = json.dumps({"caption": "in the json"}).encode()
    shard = write_tar(tmp_path / "a.tar", [("0.jpg", JPEG), ("0.json", told), ("1.jpg", JPEG)])
    with pytest.raises(PoolError, match=r"without caption: 2\)\..* set pool.caption=json:FIELD"):
        store.get(index(shard))
    assert store.get(index(shard, caption="json:caption")).caption(0) == "in the json"


def test_pictures_and_captions_that_stand_apart_are_told_so(store, tmp_path):
    shard = write_tar(tmp_path / "a.tar", sorted(pairs("abc"), key=lambda member: member[0][-3:]))
    with pytest.raises(PoolError, match=r"image: 3, without caption: 3.* must stand side by side"):
        store.get(index(shard))


@pytest.mark.parametrize("told", [b"{}", b"no json", b'{"uid": ""}', b'{"uid": ["x"]}', None])
def test_a_sample_without_the_uid_that_was_asked_for_is_named(store, tmp_path, told):
    members = pairs(["k0"]) + ([("k0.json", told)] if told is not None else [])
    shard = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(PoolError, match=r"sample 'k0' of shard .*a\.tar has no field 'uid'.*pool.uid=key"):
        store.get(index(shard, uid="json:uid"))


def test_a_shard_that_shrinks_or_goes_after_the_index_is_named(store, tmp_path):
    shard = write_tar(tmp_path / "a.tar", pairs("abc"))
    pool = store.get(index(shard))
    cut_at(shard, offsets(shard)["c.txt"][1])
    with pytest.raises(PoolError, match=r"a\.tar ends before the caption of 'c'.*Restore the shard"):
        pool.caption(2)
    gone = Store(store.root).get(index(write_tar(tmp_path / "b.tar", pairs("abc"))))
    (tmp_path / "b.tar").unlink()
    with pytest.raises(PoolError, match=r"b\.tar cannot be opened .*Restore the shard, or correct"):
        gone.caption(0)


# embeddings


@Encoder.register  # not a subclass: the project's own encoders are counted elsewhere
@dataclass(frozen=True)
class Brightness:
    """An encoder that needs no weights."""

    reads: ClassVar[bool] = False
    batch_size: int = 4

    def identity(self):
        return {}

    def load(self):
        import torch

        return Tower(
            lambda image: torch.tensor(np.asarray(image, np.float32).mean((0, 1)) + 1),
            lambda batch: batch.numpy(), None,
        )  # fmt: skip


def test_pictures_that_do_not_decode_are_counted_by_embed_and_told_in_the_decision_table(store, tmp_path):
    broken = PICTURES["broken JPEG"][0]
    cut = [m for i in range(3) for m in ((f"{i}.jpg", broken), (f"{i}.txt", b"cut"))]
    write_tar(tmp_path / "a.tar", cut)  # a whole shard without a vector
    write_tar(tmp_path / "b.tar", [*pairs("abcd"), *cut])
    write_tar(tmp_path / "c.tar", [("z.txt", b"no picture")])
    pool = index(f"{tmp_path}/*.tar")
    node = Embed(Brightness(), "image").bind(pool=pool)
    made = store.get(node)
    assert made.rows.tolist() == [3, 4, 5, 6]
    assert made.gather(made.rows).shape == (4, 3)
    assert made.width == 3
    assert counts(store, node) == {"rows": 4, "undecodable image": 6}
    kept = deduplicated(store, pool, node)
    assert [kept.decision(row)["reason"] for row in (0, 7, 10)] == ["undecodable image"] * 2 + ["no image"]


def deduplicated(store, pool, images, texts=None):
    stage = SemDeDup(0.05, 1, 5, 256, "hard", 0, "image" if texts is None else "joint")
    rows = ValidRows().bind(pool=pool)
    clusters = clustered(stage.clustering(), rows, pool, images, texts)
    similar = stage.comparison().bind(
        rows=rows, pool=pool, clusters=clusters, scores=None, image=images, text=texts
    )
    return store.get(stage.bind(rows=rows, similar=similar))


def clustered(stage, rows, pool, image, text):
    centroids = stage.fitting().bind(rows=rows, pool=pool, image=image, text=text)
    return stage.bind(rows=rows, centroids=centroids, image=image, text=text)


def precomputed(tmp_path, vectors, side="image", name="v.npy"):
    np.save(tmp_path / name, vectors)
    told = {"images" if side == "image" else "texts": str(tmp_path / name)}
    return Embed(Precomputed("test", **told), side)


def test_zero_and_nan_vectors_are_set_apart_with_their_reason(store, tmp_path):
    pool = index(write_tar(tmp_path / "a.tar", pairs(map(str, range(10)))))
    vectors = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    vectors[2], vectors[5, 1], vectors[6, 0] = 0, np.nan, np.inf
    vectors[7] *= 1e30
    vectors[8] *= 1e-30
    node = precomputed(tmp_path, vectors).bind(pool=pool)
    made = store.get(node)
    assert made.rows.tolist() == [0, 1, 3, 4, 7, 8, 9]
    np.testing.assert_allclose(np.linalg.norm(made.unit(made.rows), axis=1), 1, atol=1e-6)
    assert counts(store, node) == {"rows": 7, "embedding not finite": 2, "zero embedding": 1}
    kept = deduplicated(store, pool, node)
    reasons = {row: kept.decision(row)["reason"] for row in (2, 5, 6)}
    assert reasons == {2: "zero embedding", 5: "embedding not finite", 6: "embedding not finite"}
    assert kept.num_kept == 7


def test_clusters_and_scores_leave_rows_without_a_vector_out(store, tmp_path):
    pool = index(write_tar(tmp_path / "a.tar", pairs(map(str, range(10)))))
    vectors = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    vectors[2] = 0
    image = precomputed(tmp_path, vectors).bind(pool=pool)
    vectors[3] = np.nan
    text = precomputed(tmp_path, vectors, "text", "t.npy").bind(pool=pool)
    rows = ValidRows().bind(pool=pool)
    clusters = clustered(KMeans(2, 5, 256, 0, "joint", "pool"), rows, pool, image, text)
    made = store.get(clusters)
    assert np.flatnonzero(made.is_clustered).tolist() == [0, 1, 4, 5, 6, 7, 8, 9]
    assert [made.missing.texts[code] for code in made.missing.codes] == [
        "zero embedding", "embedding not finite",
    ]  # fmt: skip
    assert counts(store, clusters)["without embedding"] == 2
    scores = store.get(ClipScore().bind(pool=pool, image=image, text=text))
    assert np.flatnonzero(np.isnan(scores.values)).tolist() == [2, 3]


def test_image_and_text_vectors_of_two_widths_have_no_score(store, tmp_path):
    pool = index(write_tar(tmp_path / "a.tar", pairs("ab")))
    image = precomputed(tmp_path, np.ones((2, 4), np.float32)).bind(pool=pool)
    text = precomputed(tmp_path, np.ones((2, 5), np.float32), "text", "t.npy").bind(pool=pool)
    with pytest.raises(ConfigError, match=r"image vectors of 4 numbers and text vectors of 5"):
        store.get(ClipScore().bind(pool=pool, image=image, text=text))


def saved(path, kind):
    if kind == "npz":
        with open(path, "wb") as handle:
            np.savez(handle, np.ones((2, 4)))
    elif kind == "pickle":
        import pickle

        path.write_bytes(pickle.dumps(np.ones((2, 4))))
    elif kind == "objects":
        np.save(path, np.array([[1, "a"], [2, "b"]], object), allow_pickle=True)
    elif kind == "raw":
        np.ones((2, 4), np.float32).tofile(path)
    elif kind == "empty":
        path.touch()
    else:
        np.save(path, np.ones((2, 400)))
        cut_at(path, 500)
    return path


@pytest.mark.parametrize("kind", ["npz", "pickle", "objects", "raw", "empty", "cut"])
def test_a_file_that_holds_no_plain_array_is_named_and_never_unpickled(store, tmp_path, kind):
    path = saved(tmp_path / "v.npy", kind)
    pool = index(write_tar(tmp_path / "a.tar", pairs("ab")))
    with pytest.raises(WorldError, match=r"v\.npy is no \.npy array .*save it with numpy.save"):
        store.get(Embed(Precomputed("test", images=str(path)), "image").bind(pool=pool))


@pytest.mark.parametrize(
    "vectors",
    [np.ones((3, 4)), np.ones(2), np.ones((2, 0)), np.ones((2, 2, 2)), np.ones((2, 4), np.int64),
     np.ones((2, 4), complex)],
    ids=lambda v: f"{v.shape} {v.dtype}",
)  # fmt: skip
def test_vectors_of_another_shape_or_type_are_refused(store, tmp_path, vectors):
    pool = index(write_tar(tmp_path / "a.tar", pairs("ab")))
    with pytest.raises(WorldError, match=r"v\.npy has shape .*; the pool has 2 rows, and one float vector"):
        store.get(precomputed(tmp_path, vectors).bind(pool=pool))


def test_vectors_that_are_not_there_are_asked_for(store, tmp_path):
    pool = index(write_tar(tmp_path / "a.tar", pairs("ab")))
    with pytest.raises(ConfigError, match=r"no text vectors: set texts=FILE\.npy"):
        store.get(Embed(Precomputed("test", images=None), "text").bind(pool=pool))
    with pytest.raises(ConfigError, match=r"'nowhere\.npy': there is no such file"):
        store.get(Embed(Precomputed("test", images="nowhere.npy"), "image").bind(pool=pool))
