"""DataComp's formats and filters on a small metadata folder in the real schema, held against plain Python."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dbp.config import build, compose
from dbp.data.keep_list import everything
from dbp.data.pool import digest_16, hash_64
from dbp.encoders.embed import Embed
from dbp.encoders.features import Laion, Npz
from dbp.encoders.precomputed import MemoryMap, Precomputed, content_digest
from dbp.engine.stage import key_of
from dbp.engine.store import Store
from dbp.errors import ConfigError, PoolError, WorldError
from dbp.filtering import datacomp as filters
from dbp.filtering import near_targets
from dbp.filtering.combine import All
from dbp.filtering.language import Language, NamesObject
from dbp.filtering.rules import COUNT, Rules
from dbp.formats import metadata_rows
from dbp.formats.uid_pairs import uids_to_pairs
from dbp.pools.datacomp import Metadata
from dbp.scoring.column import ColumnScore
from dbp.selection.imported import ImportedList
from dbp.verbs import importing
from dbp.verbs.command_line import overrides

FILES, PER_FILE = 4, 200
WORDS = ["a", "photo", "of", "the", "red", "dog", "cat", "on", "big", "small", "table", "near"]
WORDS += ["house", "in", "rain", "über"]
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
        ("clip_b32_similarity_score", pa.float32()),
        ("clip_l14_similarity_score", pa.float32()),
        ("face_bboxes", pa.list_(pa.list_(pa.float64()))),
        ("sha256", pa.string()),
        ("language", pa.string()),  # not DataComp's: a further column
    ]
)
L14 = "clip_l14_similarity_score"


def rows_of(number, per_file=PER_FILE):
    """The rows of one file as Python values, and the vectors beside."""
    made = np.random.default_rng(number)
    rows = []
    for at in range(per_file):
        uid = made.bytes(16).hex()
        text = " ".join(made.choice(WORDS, made.integers(1, 9)))
        rows.append(
            {
                "uid": uid,
                "url": f"http://example.com/{uid}.jpg",
                "text": text,
                "original_width": int(made.integers(100, 900)),
                "original_height": int(made.integers(100, 900)),
                "clip_b32_similarity_score": float(np.float32(made.normal(0.25, 0.05))),
                L14: float(np.float32(made.integers(0, 40) / 100)),  # many ties
                "face_bboxes": [[0.1, 0.2, 0.3, 0.4]] if at % 7 == 0 else [],
                "sha256": hashlib.sha256(uid.encode()).hexdigest(),
                "language": str(made.choice(["en", "de"])),
            }
        )
    vectors = {}
    for name, width in (("b32_img", 16), ("b32_txt", 16), ("l14_img", 24), ("l14_txt", 24)):
        unit = made.normal(size=(per_file, width))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        vectors[name] = unit.astype(np.float16)
    return rows, vectors


def write_file(folder, number, rows, vectors, save=np.savez, **how):
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, folder / f"{number:032x}.parquet", **how)
    save(folder / f"{number:032x}.npz", **vectors)


def write_folder(folder, files=FILES, per_file=PER_FILE):
    """A metadata folder; its rows and vectors in the pool's order."""
    rows, vectors = [], []
    for number in range(files):
        some, beside = rows_of(number, per_file)
        write_file(folder, number, some, beside)
        rows += some
        vectors.append(beside)
    return rows, {name: np.concatenate([part[name] for part in vectors]) for name in vectors[0]}


def stage_of(folder, **more):
    return Metadata("txt", 10**6, metadata=str(folder), **more)


def counts_of(store, stage):
    return store.find(store.key(stage.node())).manifest["counts"]


class House:
    def __init__(self, folder):
        self.folder = folder / "metadata"
        self.rows, self.vectors = write_folder(self.folder)
        self.store = Store(folder / "store")
        self.stage = stage_of(self.folder, columns=("language",))
        self.pool = self.store.get(self.stage.node())
        self.everything = everything(self.pool.digest, self.pool.is_valid)

    def kept(self, stage, rows=None, **inputs):
        """What a filter keeps, as a set of rows; and its keep list."""
        needed = {"rows": rows or self.everything, "pool": self.pool, **inputs}
        keep, _ = stage.decide(**{name: needed[name] for name in stage.needs})
        return set(keep.rows.tolist()), keep

    def where(self, holds):
        return {at for at, row in enumerate(self.rows) if holds(row)}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


# the pool


def test_a_pool_is_its_metadata_row_by_row(house):
    pool, rows = house.pool, house.rows
    assert (pool.num_rows, pool.shards) == (800, [])
    assert pool.uids() == [row["uid"] for row in rows]
    assert pool.uid_hashes.tolist() == [hash_64(row["uid"].encode()) for row in rows]
    assert pool.captions(np.arange(800)) == [row["text"] for row in rows]
    assert pool.column("caption_length").tolist() == [len(row["text"]) for row in rows]
    for ours, theirs in (("width", "original_width"), ("height", "original_height"), (L14, L14)):
        assert pool.column(ours).tolist() == [row[theirs] for row in rows]
    content = [bytes.fromhex(row["sha256"])[:16] for row in rows]
    assert pool.column("content_hash").tolist() == content
    captions = [digest_16(row["text"].encode()) for row in rows]
    assert pool.column("caption_hash").tolist() == captions
    assert pool.column("shard").tolist() == [at // PER_FILE for at in range(800)]
    assert pool.is_valid.all()
    assert pool.row_of(rows[333]["uid"]) == 333


def test_rows_that_cannot_be_used_are_invalid_with_their_reason(tmp_path, store):
    rows, vectors = rows_of(0, 8)
    rows[1]["text"], rows[2]["text"] = None, " \t "
    rows[3]["uid"], rows[4]["uid"] = "not a uid", rows[0]["uid"]
    rows[5]["sha256"], rows[6]["original_width"], rows[7][L14] = None, None, None
    write_file(tmp_path / "m", 0, rows, vectors)
    stage = stage_of(tmp_path / "m")
    pool = store.get(stage.node())
    assert pool.column("reason").tolist() == [
        *("", "no caption", "empty caption", "uid not 32 hex digits", "", "", "", "")
    ]
    assert counts_of(store, stage) == {
        "rows": 8,
        "shards": 1,
        "repeated uids": 1,
        "no caption": 1,
        "empty caption": 1,
        "uid not 32 hex digits": 1,
    }
    assert pool.column("content_hash")[5] == digest_16(rows[5]["uid"].encode())
    assert pool.column("width")[6] == 0
    assert np.isnan(pool.column(L14)[7])


def test_the_digest_is_of_the_content_and_not_of_its_place_or_blocks(tmp_path, monkeypatch):
    rows, vectors = rows_of(0, 60)

    def digest(name, rows, **how):
        write_file(tmp_path / name, 0, rows, vectors, **how)
        return Store(tmp_path / f"store {name}").get(stage_of(tmp_path / name).node()).digest

    plain = digest("plain", rows)
    assert digest("moved", rows, row_group_size=7) == plain
    monkeypatch.setattr(metadata_rows, "BATCH", 11)
    assert digest("blocks", rows, row_group_size=13) == plain
    others = {
        "uid": "f" * 32, "text": "another", "original_width": 5, L14: 0.5, "sha256": "0" * 64
    }  # fmt: skip
    found = {plain}
    for name, value in others.items():
        changed = [dict(row) for row in rows]
        changed[17][name] = value
        found.add(digest(f"changed {name}", changed))
    assert len(found) == 1 + len(others)


def test_the_digest_tells_where_a_text_ends(tmp_path):
    rows, vectors = rows_of(0, 2)
    digests = set()
    for name, texts in (("a", ("en", "de")), ("b", ("end", "e")), ("c", (None, "ende"))):
        for row, text in zip(rows, texts, strict=True):
            row["language"] = text
        write_file(tmp_path / name, 0, rows, vectors)
        stage = stage_of(tmp_path / name, columns=("language",))
        digests.add(Store(tmp_path / f"store {name}").get(stage.node()).digest)
    assert len(digests) == 3


def test_only_so_many_samples_are_used_when_asked(tmp_path, store):
    rows, _ = write_folder(tmp_path / "m", files=3, per_file=10)
    for limit in (1, 10, 15, 20, 99):
        pool = store.get(stage_of(tmp_path / "m", max_samples=limit).node())
        assert pool.uids() == [row["uid"] for row in rows[:limit]]


def test_bad_metadata_is_named_with_the_way_out(tmp_path, store):
    with pytest.raises(ConfigError, match=r"pool\.metadata names no folder"):
        Metadata("txt", 1).node()
    with pytest.raises(ConfigError, match="there is no such folder"):
        stage_of(tmp_path / "none").node()
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigError, match=r"holds no \.parquet file"):
        stage_of(tmp_path / "m").node()
    file = tmp_path / "m" / "0.parquet"
    pq.write_table(pa.table({"uid": ["0" * 32], "caption": ["a"]}), file)
    with pytest.raises(PoolError, match=r"0\.parquet has no column 'text'"):
        store.get(stage_of(tmp_path / "m").node())
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(PoolError, match=r"0\.parquet cannot be read as Parquet"):
        store.get(stage_of(tmp_path / "m").node())
    write_folder(tmp_path / "n", files=1, per_file=3)
    with pytest.raises(ConfigError, match=r"columns='langage'.*Did you mean 'language'"):
        store.get(stage_of(tmp_path / "n", columns=("langage",)).node())
    with pytest.raises(ConfigError, match="columns='uid': it must be a column that is not read"):
        stage_of(tmp_path / "n", columns=("uid",))
    with pytest.raises(ConfigError, match="which a stream cannot do"):
        stage_of(tmp_path / "n", shards="http://example.com/{0..1}.tar").node()


# joined with tars


def picture(number):
    out = io.BytesIO()
    Image.new("RGB", (6, 4), (number % 256, number // 256, 7)).save(out, "PNG")
    return out.getvalue()


def write_tars(folder, samples, per_shard=30):
    """Tars as the downloader writes them: picture, caption, json with the uid."""
    folder.mkdir(parents=True)
    for start in range(0, len(samples), per_shard):
        with tarfile.open(folder / f"{start // per_shard:08d}.tar", "w") as tar:
            for at, (uid, text, content) in enumerate(samples[start : start + per_shard]):
                key = f"{start + at:012d}"
                record = json.dumps({"uid": uid, "caption": text}).encode()
                for extension, data in (("png", content), ("txt", text.encode()), ("json", record)):
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def test_tars_are_joined_by_uid_and_what_is_not_there_is_invalid(tmp_path, store):
    rows, _ = write_folder(tmp_path / "m", files=2, per_file=50)
    order = np.random.default_rng(0).permutation(100)
    samples = [(rows[at]["uid"], rows[at]["text"], picture(at)) for at in order if at % 10]
    samples[0] = (samples[0][0], "another caption", samples[0][2])
    samples[1] = (*samples[1][:2], b"no picture")
    samples.append(("e" * 32, "a stranger", picture(1)))
    write_tars(tmp_path / "t", samples)
    stage = stage_of(tmp_path / "m", shards=str(tmp_path / "t" / "*.tar"))
    pool = store.get(stage.node())
    assert pool.uids() == [row["uid"] for row in rows]
    counts = counts_of(store, stage)
    assert counts["not downloaded"] == 10
    assert counts["not an image"] == 1
    assert counts["caption differs"] == 1
    assert counts["in tars, not in the metadata"] == 1
    absent = {at for at in range(100) if at % 10 == 0}
    assert set(np.flatnonzero(pool.column("reason") == "not downloaded").tolist()) == absent
    by_uid = {uid: (text, content) for uid, text, content in samples}
    for at in set(range(100)) - absent:
        text, content = by_uid[rows[at]["uid"]]
        assert pool.image_bytes(at) == content
        assert pool.caption(at) == text
        assert pool.column("content_hash")[at] == digest_16(content)
        assert pool.column("width")[at] == rows[at]["original_width"]
    assert everything(pool.digest, pool.is_valid).num_kept == 89
    assert store.find(store.key(stage.node().inputs["tars"])).stage == "tars"


def test_tars_are_read_where_a_folder_of_them_was_renamed(tmp_path, store):
    rows, _ = write_folder(tmp_path / "m", files=1, per_file=8)
    samples = [(row["uid"], row["text"], picture(at)) for at, row in enumerate(rows)]
    for name, own in (("a", samples[:4]), ("b", samples[4:])):
        write_tars(tmp_path / "t" / name, own)
    stage = stage_of(tmp_path / "m", shards=str(tmp_path / "t/*/*.tar"))
    store.get(stage.node())
    (tmp_path / "t/a").rename(tmp_path / "t/a_new")
    pool = Store(store.root).get(stage.node())
    assert [pool.image_bytes(row) for row in range(8)] == [picture(row) for row in range(8)]


def test_features_of_joined_rows_are_embedded_in_the_metadatas_order(tmp_path, store):
    rows, vectors = write_folder(tmp_path / "m", files=3, per_file=20)
    order = np.random.default_rng(0).permutation(60)[:50]
    samples = [(rows[at]["uid"], rows[at]["text"], picture(at)) for at in order]
    write_tars(tmp_path / "t", samples, per_shard=9)
    node = stage_of(tmp_path / "m", shards=str(tmp_path / "t" / "*.tar")).node()
    image = store.get(Embed(l14(tmp_path / "m"), "image", rows_per_part=1).bind(pool=node))
    assert image.rows.tolist() == sorted(order.tolist())
    plain = vectors["l14_img"][image.rows].astype(np.float64)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(image.gather(image.rows) - plain).max() < 1e-3


def test_tars_of_another_pool_are_refused(tmp_path, store):
    write_folder(tmp_path / "m", files=1, per_file=5)
    write_tars(tmp_path / "t", [("e" * 32, "a stranger", picture(1))])
    with pytest.raises(PoolError, match=f"none of the 5 uids.*the first of which has the uid '{'e' * 32}'"):
        store.get(stage_of(tmp_path / "m", shards=str(tmp_path / "t" / "*.tar")).node())


# features


def read(encoder, pool, side="image", rows=None):
    rows = np.arange(pool.num_rows) if rows is None else np.asarray(rows)
    return np.asarray(encoder.read_part(side, pool, 0, rows))


def l14(folder):
    return Npz("l14", "l14_img", "l14_txt", str(folder))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_features_are_those_of_the_rows(tmp_path, store, save):
    for number in range(2):
        write_file(tmp_path / "m", number, *rows_of(number, 30), save=save)
    pool = store.get(stage_of(tmp_path / "m").node())
    for side, name in (("image", "l14_img"), ("text", "l14_txt")):
        plain = np.concatenate([np.load(file)[name] for file in sorted((tmp_path / "m").glob("*.npz"))])
        assert np.array_equal(read(l14(tmp_path / "m"), pool, side), plain)
        some = [3, 4, 29, 30, 59]
        assert np.array_equal(read(l14(tmp_path / "m"), pool, side, some), plain[some])
    cut = store.get(stage_of(tmp_path / "m", max_samples=40).node())
    assert read(l14(tmp_path / "m"), cut).shape == (40, 24)


def test_features_are_known_by_their_content_without_being_read(tmp_path):
    write_folder(tmp_path / "a", files=2, per_file=5)
    write_folder(tmp_path / "b" / "elsewhere", files=2, per_file=5)
    assert l14(tmp_path / "a").identity() == l14(tmp_path / "b" / "elsewhere").identity()
    rows, vectors = rows_of(1, 5)
    vectors["l14_txt"][3, 3] += 1
    write_file(tmp_path / "a", 1, rows, vectors)
    assert l14(tmp_path / "a").identity() != l14(tmp_path / "b" / "elsewhere").identity()
    b32 = [Npz("b", "b32_img", "b32_txt", str(tmp_path / name)) for name in ("a", "b/elsewhere")]
    assert b32[0].identity() == b32[1].identity()


def test_features_that_do_not_align_are_refused_with_both_counts(tmp_path, store):
    rows, vectors = rows_of(0, 20)
    write_file(tmp_path / "m", 0, rows, vectors)
    pool = store.get(stage_of(tmp_path / "m").node())
    encoder = l14(tmp_path / "m")

    def refused(rows, vectors, save=np.savez):
        write_file(tmp_path / "m", 0, rows, vectors, save=save)
        with pytest.raises(WorldError) as error:
            read(encoder, pool)
        return str(error.value)

    short = {name: array[:19] for name, array in vectors.items()}
    assert "holds 19 vectors and" in (said := refused(rows, short))
    assert "20 rows" in said
    assert "other samples" in refused(rows[::-1], vectors)
    assert "no array 'l14_img'. It can be: b32_img" in refused(
        rows, {name: array for name, array in vectors.items() if name != "l14_img"}
    )
    assert "one float vector a row" in refused(rows, vectors | {"l14_img": np.arange(20)})
    objects = vectors | {"l14_img": np.array([[{}]], object)}
    assert "one float vector a row" in refused(rows, objects)
    (npz,) = (tmp_path / "m").glob("*.npz")
    npz.write_bytes(npz.read_bytes()[:-100])
    with pytest.raises(WorldError, match=r"no whole \.npz archive"):
        read(encoder, pool)
    npz.unlink()
    with pytest.raises(WorldError, match=r"no whole \.npz|is missing"):
        read(encoder, pool)
    with pytest.raises(WorldError, match=r"\.npz is missing"):
        encoder.identity()


def test_vectors_without_a_direction_are_set_apart_and_others_get_unit_length(tmp_path, store):
    rows, vectors = rows_of(0, 20)
    images = vectors["l14_img"] * np.float16(3)
    images[4], images[7, 2], images[9, 0] = 0, np.nan, np.inf
    write_file(tmp_path / "m", 0, rows, vectors | {"l14_img": images})
    pool = stage_of(tmp_path / "m").node()
    image = store.get(Embed(l14(tmp_path / "m"), "image").bind(pool=pool))
    assert set(range(20)) - set(image.rows.tolist()) == {4, 7, 9}
    assert image.missing.rows.tolist() == [4, 7, 9]
    reasons = [image.missing.texts[code] for code in image.missing.codes]
    assert reasons == ["zero embedding", "embedding not finite", "embedding not finite"]
    assert np.abs(image.norms(image.rows) - 1).max() < 1e-3


def write_laion(folder, rows, images, name, sizes):
    """Files numbered without zeros before them, so that their names do not sort as numbers."""
    for kind in ("img_emb", "metadata"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    start = 0
    for number, size in enumerate(sizes):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", images[start : start + size])
        some = [row["uid"] for row in rows[start : start + size]]
        table = pa.table({name: some, "caption": ["c"] * len(some)})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
        start += size


def test_a_folder_of_clip_retrieval_is_joined_by_name_with_its_files_in_numeric_order(tmp_path, house):
    order = np.random.default_rng(0).permutation(800)[:700]
    images = house.vectors["l14_img"]
    sizes = [50] * 14  # so that img_emb_10 stands between img_emb_1 and img_emb_2 by name
    rows = [house.rows[at] for at in order]
    write_laion(tmp_path, rows, images[order], "image_path", sizes)
    found = read(Laion("laion", "uid", "image_path", str(tmp_path)), house.pool)
    there = np.zeros(800, bool)
    there[order] = True
    assert np.array_equal(found[there], images[there])
    assert np.isnan(found[~there]).all()
    by_key = Laion("laion", "key", "image_path", str(tmp_path))  # of metadata alone, the key is the uid
    assert np.array_equal(read(by_key, house.pool, rows=order[:9]), images[order[:9]])
    with pytest.raises(ConfigError, match=r"column='imagepath'.*Did you mean 'image_path'"):
        read(Laion("laion", "uid", "imagepath", str(tmp_path)), house.pool)
    with pytest.raises(WorldError, match="700 image vectors and the pool 800"):
        read(Laion("laion", "position", "", str(tmp_path)), house.pool)
    write_laion(tmp_path, rows, np.where(np.arange(700)[:, None] == 5, np.nan, images[order]), "image_path", sizes)
    stage = Embed(Laion("laion", "uid", "image_path", str(tmp_path)), "image")
    stored = house.store.get(stage.bind(pool=house.stage.node()))
    reasons = dict(
        zip(
            stored.missing.rows.tolist(), (stored.missing.texts[code] for code in stored.missing.codes), strict=True
        )
    )
    assert reasons.pop(int(order[5])) == "embedding not finite"
    assert set(reasons) == set(np.flatnonzero(~there).tolist())
    assert set(reasons.values()) == {"no vector in the folder"}
    np.save(tmp_path / "img_emb" / "img_emb_13.npy", images[:49])
    with pytest.raises(WorldError, match="do not align: 699 vectors in 14 files, 700 rows in 14"):
        read(Laion("laion", "uid", "image_path", str(tmp_path)), house.pool)
    with pytest.raises(ConfigError, match="has no text vectors"):
        read(by_key, house.pool, "text")


def test_vectors_by_position_are_those_of_the_rows(tmp_path, house):
    images = house.vectors["b32_img"]
    write_laion(tmp_path, house.rows, images, "key", [50] * 16)
    laion = Laion("laion", "position", "", str(tmp_path))
    np.save(tmp_path / "v.npy", images)
    plain = Precomputed("mine", images=str(tmp_path / "v.npy"))
    images.astype(np.float32).tofile(tmp_path / "map")
    mapped = MemoryMap("semdedup", 16, "float32", images=str(tmp_path / "map"))
    for encoder in (laion, plain, mapped):
        assert encoder.reads
        assert np.array_equal(read(encoder, house.pool, rows=[7, 499, 500]), images[[7, 499, 500]])
        with pytest.raises(ConfigError, match="text"):
            read(encoder, house.pool, "text")


def test_a_raw_map_of_another_shape_or_kind_is_refused(tmp_path, house):
    vectors = house.vectors["b32_img"]
    path = tmp_path / "map"
    vectors.tofile(path)

    def refused(rows=800, width=16, dtype="float16", error=ConfigError):
        with pytest.raises(error) as found:
            read(MemoryMap("m", width, dtype, rows, images=str(path)), house.pool)
        return str(found.value)

    assert "Correct rows (800 at this width)" in refused(rows=801)
    assert "800 x 17 numbers of float16 are 27,200" in refused(width=17)
    assert "That is the size of float16: set dtype=float16." in refused(dtype="float32")
    assert "width is not set" in refused(width=None)
    vectors.astype(np.float32).tofile(path)
    assert "That is the size of float32: set dtype=float32." in refused()
    vectors[:400].tofile(path)
    assert "holds 400 vectors and the pool 800 rows" in refused(rows=400, error=WorldError)
    with open(path, "wb") as handle:
        np.save(handle, vectors)
    assert "is a .npy file, not a raw map" in refused()


def test_the_digest_of_a_large_file_is_remembered_and_never_stale(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dbp.encoders.precomputed.REMEMBERED", 1)
    monkeypatch.setattr("dbp.encoders.precomputed.SETTLED", -1e9)
    path = tmp_path / "v.npy"
    path.write_bytes(b"one")
    assert content_digest(path, "x") == hashlib.sha256(b"one").hexdigest()
    (record,) = (tmp_path / "cache" / "dbp" / "digests").iterdir()
    record.write_text("f" * 64)
    assert content_digest(path, "x") == "f" * 64, "the record answers"
    path.write_bytes(b"two")
    os.utime(path, (1e9, 1e9))
    assert content_digest(path, "x") == hashlib.sha256(b"two").hexdigest()
    monkeypatch.setattr("dbp.encoders.precomputed.SETTLED", 1e9)
    path.write_bytes(b"just written")
    content_digest(path, "x")
    assert len(list(record.parent.iterdir())) == 2, "a file that still changes is not remembered"


# scores and filters


def test_a_score_is_a_column_of_the_metadata(house):
    node = ColumnScore(L14).bind(pool=house.stage.node())
    scores = house.store.get(node)
    assert scores.values.tolist() == [np.float32(row[L14]) for row in house.rows]
    with pytest.raises(ConfigError, match=r"score\.column='clip_l14'"):
        house.store.get(ColumnScore("clip_l14").bind(pool=house.stage.node()))
    with pytest.raises(ConfigError, match="holds no numbers"):
        house.store.get(ColumnScore("language").bind(pool=house.stage.node()))


def test_the_basic_filter_is_datacomps(house):
    stage = filters.Basic(3, 6, 200, 3.0, "column:language")
    found, keep = house.kept(stage)

    def passes(row):
        small, large = sorted((row["original_width"], row["original_height"]))
        words = row["text"].split()
        basic = len(words) > 2 and len(row["text"]) > 5 and small >= 200 and large / small <= 3.0
        return basic and row["language"] == "en"

    assert found == house.where(passes)
    assert 0 < len(found) < len(house.kept(filters.Basic(3, 6, 200, 3.0))[0])
    reasons = {name.partition(": ")[2] for name in keep.counts()}
    assert {"picture too small", "caption not in language en", "too few words"} <= reasons


def test_a_score_filter_keeps_by_threshold_or_an_exact_fraction(house):
    minimum = filters.ScoreColumn(L14, 0.2, None)
    assert house.kept(minimum)[0] == house.where(lambda row: np.float32(row[L14]) >= np.float32(0.2))
    found, _ = house.kept(filters.ScoreColumn(L14, None, 0.3))
    assert len(found) == 240
    border = sorted((row[L14] for row in house.rows), reverse=True)[239]
    assert found >= house.where(lambda row: row[L14] > border)
    assert found <= house.where(lambda row: row[L14] >= border)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.333, 0.9])
def test_the_reference_fraction_keeps_one_row_more_and_all_ties(house, fraction):
    found, _ = house.kept(filters.ScoreColumn(L14, None, fraction, reference=True))
    border = sorted((row[L14] for row in house.rows), reverse=True)[int(800 * fraction)]
    assert found == house.where(lambda row: row[L14] >= border)
    assert len(found) > int(800 * fraction)


def test_the_reference_fraction_says_where_it_fails(house):
    values = np.array([0.3, np.nan, 0.2, 0.1], np.float32)
    assert filters.reference_limit(values, 0.5) == np.float32(0.1)
    for fraction in (0.75, 1.0):
        with pytest.raises(ConfigError, match="1 rows have no score, so it keeps nothing or fails"):
            filters.reference_limit(values, fraction)
    with pytest.raises(ConfigError, match="given, or fraction, and not both"):
        filters.ScoreColumn(L14, 0.1, 0.3)


def test_the_laion_2b_filter_is_a_score_and_a_language(house):
    found, _ = house.kept(filters.Laion2B("clip_b32_similarity_score", 0.28, "column:language"))
    assert found == house.where(lambda row: row["clip_b32_similarity_score"] >= 0.28 and row["language"] == "en")


@pytest.mark.parametrize(
    ("caption", "blanks", "fasttext"),
    [
        # The last column is what the package fasttext 0.9.2 gives; 200,000 random texts agreed, too.
        ("", 0, 0), ("a b", 2, 2), ("  a  ", 1, 1), ("a\nb", 2, 3), ("a\n", 1, 2), ("\n\n", 0, 2), ("\n a", 1, 2),
        ("a\u00a0b", 2, 1), ("a\u2028b", 2, 1), ("a\x85b", 2, 1), ("a\x1cb", 2, 1),
        ("a\vb\fc\rd\0e\tf", 5, 6), ("é\n日本", 2, 3),
    ],
)  # fmt: skip
def test_words_are_counted_by_blanks_or_as_fasttext_does(caption, blanks, fasttext):
    assert (COUNT["blanks"](caption), COUNT["fasttext"](caption)) == (blanks, fasttext)


def test_the_image_based_filter_alone_counts_words_as_fasttext_does():
    """DataComp's code: `len(x.split()) > 2` in its basic filter, `len(fasttext.tokenize(x)) > 1` in this one."""
    caption = next(s for s in filters.ImageBased(2, 6, None).steps() if isinstance(s, Rules))
    assert caption.words == "fasttext"
    assert filters.Basic(3, 6, 200, 3.0).steps()[0].words == "blanks"
    assert key_of(Rules(3, 6, 200, 3.0, "blanks"), {}) == key_of(Rules(3, 6, 200, 3.0), {}), "its key stays"


def best(vectors, centroids):
    """The best centroid by the largest inner product, one vector at a time in float64."""
    return [int(np.argmax([np.dot(v, c) for c in centroids])) for v in vectors.astype(np.float64)]


def test_the_image_based_filter_keeps_what_shares_its_best_centroid_with_a_target(house, tmp_path, monkeypatch):
    made = np.random.default_rng(1)
    centroids = (made.normal(size=(30, 24)) * made.uniform(0.5, 2, (30, 1))).astype(np.float32)
    centroids[7] = centroids[3]  # a tie, which goes to the first
    targets = made.normal(size=(5, 24)).astype(np.float32)
    np.save(tmp_path / "c.npy", centroids)
    np.save(tmp_path / "t.npy", targets)
    files = (str(tmp_path / "c.npy"), str(tmp_path / "t.npy"))
    node = Embed(l14(house.folder), "image").bind(pool=house.stage.node())
    image = house.store.get(node)
    wanted = set(best(targets, centroids.astype(np.float64)))
    assert 7 not in set(best(image.gather(image.rows), centroids.astype(np.float64)))
    near = [j in wanted for j in best(image.gather(image.rows), centroids.astype(np.float64))]
    expected = house.where(lambda row: len(row["text"].split()) > 1 and len(row["text"]) > 5)
    expected &= set(np.flatnonzero(near).tolist())
    for products in (1 << 24, 31, 1000):
        monkeypatch.setattr(near_targets, "PRODUCTS", products)
        found, _ = house.kept(filters.ImageBased(2, 6, None, *files), image=image)
        assert found == expected
    assert 0 < len(found) < 800
    both = All((filters.ScoreColumn(L14, None, 0.3), filters.ImageBased(2, 6, None, *files)))
    top, _ = house.kept(filters.ScoreColumn(L14, None, 0.3))
    found, keep = house.kept(both, image=image)
    assert found == expected & top
    reasons = set(keep.counts())
    assert {f"filter: {L14} below the limit", "filter: far from ImageNet"} <= reasons
    for wrong, said in (
        ((None, files[1]), r"filter\.centroids is not set"),
        ((files[0], None), r"filter\.targets is not set"),
    ):
        with pytest.raises(ConfigError, match=said):
            house.kept(near_targets.NearTargets(*wrong), image=image)
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04N.")
    with pytest.raises(WorldError, match="is a pickle, which is never read"):
        house.kept(near_targets.NearTargets(str(tmp_path / "pickle.npy"), files[1]), image=image)
    np.save(tmp_path / "w.npy", targets[:, :23])
    with pytest.raises(WorldError, match="image vectors have 24 numbers"):
        house.kept(near_targets.NearTargets(str(tmp_path / "w.npy"), files[1]), image=image)


def test_rows_near_two_centroids_are_decided_in_float64():
    centroids = np.array([[1, 0], [1, 1e-7], [0, 1]], np.float32)
    vectors = np.array([[1, 1e-4], [1, -1e-4], [1, 0]], np.float32)
    assert near_targets.best_centroids(vectors, centroids).tolist() == [1, 0, 0]


def test_a_text_based_filter_looks_for_the_first_sense_among_the_ids(house, tmp_path, monkeypatch):
    (tmp_path / "ids.txt").write_text("n02084071\nn02121620 cat\n")
    (tmp_path / "words.tsv").write_text("dog\t2084071\nCat\t2121620\nred\t4962784\n")
    ids, words = str(tmp_path / "ids.txt"), str(tmp_path / "words.tsv")
    expected = house.where(lambda row: {"dog", "cat"} & set(row["text"].split()))
    found, keep = house.kept(filters.TextBased(None, ids, words))
    assert found == expected
    assert "filter: caption names no object of ImageNet" in keep.counts()
    with pytest.raises(ConfigError, match=r"filter\.ids is not set"):
        house.kept(NamesObject(None, words))
    (tmp_path / "bad.txt").write_text("n02084071\ndog\n")
    with pytest.raises(WorldError, match=r"bad\.txt, line 2: 'dog' is no ImageNet id"):
        house.kept(NamesObject(str(tmp_path / "bad.txt"), words))
    with pytest.raises(WorldError, match=r"ids\.txt, line 1: 'n02084071' is no word<TAB>offset"):
        house.kept(NamesObject(ids, ids))
    asked = []

    class Sense:
        def __init__(self, offset):
            self.offset = lambda: offset

    def synsets(word):
        asked.append(word)
        return [Sense(2084071), Sense(1)] if word == "dog" else [Sense(2)] if word == "cat" else []

    corpus = types.SimpleNamespace(wordnet=types.SimpleNamespace(synsets=synsets, ensure_loaded=lambda: None))
    monkeypatch.setitem(sys.modules, "nltk", types.ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)
    found, _ = house.kept(NamesObject(ids))
    assert found == house.where(lambda row: "dog" in row["text"].split())
    assert len(asked) == len(set(asked)), "a word is asked for once"


def test_a_language_is_told_by_what_is_there_and_what_is_missing_is_named(house, tmp_path, monkeypatch):
    english = house.where(lambda row: row["language"] == "en")
    assert house.kept(Language("column:language"))[0] == english
    assert house.kept(Language("column:language", "de"))[0] == set(range(800)) - english
    with pytest.raises(ConfigError, match=r"pool\.columns=\[lang\] carries it"):
        house.kept(Language("column:lang"))
    with pytest.raises(ConfigError, match="Did you mean 'langid'"):
        Language("langit")
    with pytest.raises(ConfigError, match=r"by='fasttext': it must be one of"):
        Language("fasttext")
    for by, name in (("langid", "langid"), ("cld3", "gcld3")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=rf"needs the package {name}.*pip install {name}"):
            house.kept(Language(by))
    model = tmp_path / "lid.176.bin"
    model.write_bytes(b"model")
    moved = tmp_path / "moved.bin"
    moved.write_bytes(b"model")
    keys = {key_of(Language(f"fasttext:{path}"), {}) for path in (model, moved)}
    assert len(keys) == 1
    moved.write_bytes(b"another model")
    assert key_of(Language(f"fasttext:{moved}"), {}) not in keys
    with pytest.raises(ConfigError, match="there is no such file"):
        key_of(Language(f"fasttext:{tmp_path}/none.bin"), {})

    is_long = house.where(lambda row: len(row["text"].split()) > 4)

    class Inner:
        def predict(self, text, k, threshold, on_unicode_error):
            assert text.endswith("\n")
            assert text.count("\n") == 1
            return [(0.9, "__label__en" if len(text.split()) > 4 else "__label__de")]

    loaded = []
    fake = types.SimpleNamespace(load_model=lambda path: loaded.append(path) or types.SimpleNamespace(f=Inner()))
    monkeypatch.setitem(sys.modules, "fasttext", fake)
    assert house.kept(Language(f"fasttext:{model}"))[0] == is_long
    assert loaded == [str(model)]
    fake = types.SimpleNamespace(classify=lambda text: ("en", -1.0))
    monkeypatch.setitem(sys.modules, "langid", fake)
    assert len(house.kept(Language("langid"))[0]) == 800


def test_filters_in_a_chain_see_what_is_left_and_change_the_key(house):
    words, score = Rules(3, 0, 0, 99.0), filters.ScoreColumn(L14, None, 0.5)
    found, keep = house.kept(All((words, score)))
    enough = house.where(lambda row: len(row["text"].split()) >= 3)
    assert len(found) == len(enough) // 2
    assert found < enough
    assert keep.counts()["filter: too few words"] == 800 - len(enough)
    assert len({key_of(All(steps), {}) for steps in ((words, score), (score, words), (words,))}) == 3
    assert All((words, score)).at_most(100) == 50
    assert All((words, score)).needs == ("rows", "pool")
    with pytest.raises(ConfigError, match="it must be a list of filters"):
        All(())
    with pytest.raises(ConfigError, match=r"filters\[0\]='ColumnScore': it must be a filter"):
        All((ColumnScore(L14),))


def test_the_presets_build_what_they_say():
    config = compose("curate", overrides(["filter=image_based_and_clip_l14", "pool=datacomp"]))
    stage = build(config.filter, path="filter")
    assert [type(step).__name__ for step in stage.steps()] == ["ScoreColumn", "ImageBased"]
    assert stage.needs == ("rows", "pool", "image")
    said = ["filter=image_based_and_clip_l14", "filter.filters.1.centroids=c.npy"]
    stage = build(compose("curate", overrides(said)).filter, path="filter")
    assert stage.filters[1].centroids == "c.npy"
    said = ["pool=datacomp", "pool.metadata=a {b}", "encoder=datacomp_l14"]
    config = compose("curate", overrides(said))
    assert {config.encoder[use].metadata for use in config.encoder} == {"a {b}"}


# keep lists of others


def imported(path, join="uid", column="uid", repeats="error"):
    return ImportedList(join, column, repeats, str(path))


def test_a_keep_list_is_imported_from_every_format(house, tmp_path):
    chosen = [5, 17, 333, 799]
    uids = [house.rows[at]["uid"] for at in reversed(chosen)]
    strangers = ["f" * 32, "0" * 32]
    pairs = uids_to_pairs(sorted([*uids, *strangers]))
    np.save(tmp_path / "a.npy", pairs)
    pairs.tofile(tmp_path / "a.raw")
    (tmp_path / "a.txt").write_text("\n".join([*uids, *strangers]))
    pq.write_table(pa.table({"name": [*uids, *strangers]}), tmp_path / "a.parquet")
    some = house.kept(Rules(3, 0, 0, 99.0))[1]
    gone = len(set(chosen) - set(some.rows.tolist()))
    for path, column in (("a.npy", "uid"), ("a.raw", ""), ("a.txt", ""), ("a.parquet", "name")):
        stage = imported(tmp_path / path, column=column)
        keep, counts = stage.decide(rows=house.everything, pool=house.pool)
        assert keep.rows.tolist() == chosen
        assert counts == {
            "listed": 6, "repeated": 0, "listed, not in the pool": 2, "listed, gone before": 0
        }  # fmt: skip
        keep, counts = stage.decide(rows=some, pool=house.pool)
        assert (keep.num_kept, counts["listed, gone before"]) == (4 - gone, gone)
    by_key = imported(tmp_path / "a.txt", join="key")
    assert by_key.decide(rows=house.everything, pool=house.pool)[0].num_kept == 4


def test_repeated_names_are_an_error_or_taken_once(house, tmp_path):
    uid = house.rows[4]["uid"]
    np.save(tmp_path / "a.npy", uids_to_pairs([uid, uid]))
    (tmp_path / "a.txt").write_text(f"{uid}\n{uid}\n")
    for name in ("a.npy", "a.txt"):
        with pytest.raises(WorldError, match=r"repeats 1 .*repeats=once"):
            imported(tmp_path / name).decide(rows=house.everything, pool=house.pool)
        once = imported(tmp_path / name, repeats="once")
        keep, counts = once.decide(rows=house.everything, pool=house.pool)
        assert (keep.rows.tolist(), counts["listed"], counts["repeated"]) == ([4], 1, 1)


def test_a_row_without_a_uid_is_not_the_uid_of_zeros(tmp_path, store):
    rows, vectors = rows_of(0, 3)
    rows[1]["uid"] = "no uid"
    write_file(tmp_path / "m", 0, rows, vectors)
    pool = store.get(stage_of(tmp_path / "m").node())
    np.save(tmp_path / "a.npy", uids_to_pairs(sorted(["0" * 32, rows[2]["uid"]])))
    every = everything(pool.digest, np.ones(3, bool))
    keep, counts = imported(tmp_path / "a.npy").decide(rows=every, pool=pool)
    assert (keep.rows.tolist(), counts["listed, not in the pool"]) == ([2], 1)


def test_lists_that_cannot_be_meant_are_refused(house, tmp_path):
    (tmp_path / "a.txt").write_text("somebody\nelse\n")
    first = house.rows[0]["uid"]
    said = f"none of the 2 names.*list begins with 'somebody', the pool with '{first}'.*select.join=key"
    with pytest.raises(WorldError, match=said):
        imported(tmp_path / "a.txt").decide(rows=house.everything, pool=house.pool)
    import pickle

    (tmp_path / "trie.txt").write_bytes(pickle.dumps(dict.fromkeys("abc", 1)))
    with pytest.raises(WorldError, match=r"looks like a pickle.*runs whatever code it names"):
        imported(tmp_path / "trie.txt").decide(rows=house.everything, pool=house.pool)
    with pytest.raises(ConfigError, match=r"select\.file is not set"):
        ImportedList("uid", "uid", "error").decide(rows=house.everything, pool=house.pool)
    np.save(tmp_path / "a.npy", uids_to_pairs(["0" * 32]))
    with pytest.raises(ConfigError, match="join='key': it must be uid"):
        imported(tmp_path / "a.npy", join="key").decide(rows=house.everything, pool=house.pool)


# the whole road


def dbp(folder, *arguments):
    """Run the command line in this process; return what it printed."""
    from dbp.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    assert status == 0, out.getvalue() + err.getvalue()
    return out.getvalue()


def dbp_apart(folder, *arguments):
    """Run the command line in a process of its own, where numba compiles what types are not checked of."""
    command = [sys.executable, "-m", "dbp", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=120,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def key_in(said):
    return said.split("keep list ")[-1].split()[0]


def read_as_datacomp(path):
    """As DataComp's resharder takes a subset: plain numpy, two unnamed 64-bit halves, sorted."""
    subset = np.load(path, mmap_mode="r")
    assert subset.dtype == np.dtype("u8,u8")
    assert subset.ndim == 1
    assert np.array_equal(np.sort(subset), subset)
    return subset


def resharder_copies(subset, uid):
    """How often the resharder would write a sample: by binary search, left and right."""
    wanted = np.array([divmod(int(uid, 16), 2**64)], np.dtype("u8,u8"))[0]
    left, right = (np.searchsorted(subset, wanted, side) for side in ("left", "right"))
    return int(right - left)


def test_a_metadata_folder_is_curated_and_its_uid_file_read_back(house, tmp_path):
    small = ["dedup.num_clusters=4", "cluster.num_clusters=8", "filter.fraction=0.5"]
    said = dbp_apart(tmp_path, "curate", "experiment=datacomp_dbp_l14", f"pool.metadata={house.folder}", *small)
    assert "kept 160 of 800 rows" in said
    key = key_in(said)
    dbp(tmp_path, "export", f"keep={key}", "format=datacomp", "out=uids.npy")
    subset = read_as_datacomp(tmp_path / "uids.npy")
    store = Store(tmp_path / "store")
    keep = store.open(store.find(key).key)
    kept = {house.rows[at]["uid"] for at in keep.rows}
    assert len(kept) == len(subset) == 160
    for row in house.rows:
        assert resharder_copies(subset, row["uid"]) == (row["uid"] in kept)
    again = dbp(tmp_path, "import", "keep", "uids.npy", "pool=datacomp",
                f"pool.metadata={house.folder}")  # fmt: skip
    assert "kept 160 of 800 rows" in again
    said = dbp(tmp_path, "uids", "overlap", f"keep:{key}", f"keep:{key_in(again)}", "uids.npy")
    assert said.count("160 (1.0000)") == 9
    assert "stayed at select" in dbp(tmp_path, "why", next(iter(kept)), f"keep={key}")


def test_the_clip_score_baseline_needs_no_vector(house, tmp_path):
    for file in Path(house.folder).glob("*.parquet"):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    said = dbp(tmp_path, "curate", "experiment=datacomp_clip_l14_30", "pool.metadata=m")
    assert "kept 240 of 800 rows (30.0%)" in said
    said = dbp(tmp_path, "curate", "experiment=datacomp_clip_l14_30", "pool.metadata=m",
               "filter.reference=true")  # fmt: skip
    border = sorted((row[L14] for row in house.rows), reverse=True)[240]
    assert f"kept {sum(row[L14] >= border for row in house.rows)} of 800 rows" in said


def test_vectors_are_imported_by_a_front_that_says_what_it_did(house, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pool = ("pool=datacomp", f"pool.metadata={house.folder}")

    def imported(*arguments):
        importing.main("import", [str(argument) for argument in arguments])
        return capsys.readouterr().out

    np.save("v.npy", house.vectors["b32_img"])
    said = imported("embeddings", "v.npy", *pool)
    assert "800 vectors of 16 numbers" in said
    assert "encoder.cluster=precomputed encoder.cluster.images=v.npy" in said
    assert "800 vectors of 24" in imported("embeddings", house.folder, *pool, "use=score", "side=text")
    house.vectors["b32_img"].tofile("map")
    raw = ("encoder.cluster.width=16", "encoder.cluster.dtype=float16")
    assert "800 vectors of 16" in imported("embeddings", "map", *pool, *raw)
    np.save("u.npy", uids_to_pairs(sorted(row["uid"] for row in house.rows[:9])))
    said = imported("keep", "u.npy", *pool, "filter=datacomp_basic", "filter.min_words=0",
                    "filter.min_characters=0", "filter.min_side=0", "filter.max_aspect_ratio=99")  # fmt: skip
    assert "kept 9 of 800 rows" in said
    assert "the same as: dbp curate dedup=none select=imported select.file=u.npy" in said
    (tmp_path / "sc").mkdir()
    for cluster in range(2):  # SemDeDup's: key, row, distance, cluster as text; the farthest first
        own = [[house.rows[at]["uid"], str(at), f"0.{9 - at // 2}", str(cluster)]
               for at in range(cluster, 10, 2)]  # fmt: skip
        np.save(tmp_path / "sc" / f"cluster_{cluster}.npy", np.array(own, "<U32"))
    np.save(tmp_path / "sc" / "kmeans_centroids.npy", np.eye(2, 8, dtype=np.float32))
    said = imported("clusters", "sc", *pool)
    assert "members not in the pool 0" in said
    assert "not in the cluster files 790" in said
    assert "the same as: dbp curate dedup=none filter=none cluster=imported" in said
    assert "rows 10, not in the cluster files 0" in imported("clusters", "sc")
    with pytest.raises(ConfigError, match="dbp import keeps: Did you mean 'keep'"):
        imported("keeps", "u.npy")
    with pytest.raises(ConfigError, match=r"none\.npy does not exist"):
        imported("keep", "none.npy", *pool)
    with pytest.raises(ConfigError, match="neither metadata/ and img_emb/"):
        imported("embeddings", tmp_path, *pool)
    with pytest.raises(ConfigError, match="side='sound': it must be one of image, text"):
        imported("embeddings", "v.npy", *pool, "side=sound")
