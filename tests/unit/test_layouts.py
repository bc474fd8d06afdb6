"""Pools in other layouts are the same pools: Parquet with images, folders of files, compressed tars."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dbp.__main__ import main
from dbp.data.images import IMAGE_FORMATS, extension_of
from dbp.data.pool import Pool
from dbp.engine.store import Store
from dbp.errors import ConfigError, PoolError
from dbp.formats import image_folders, parquet_images
from dbp.pools import packed
from dbp.pools.index import Index
from dbp.pools.layouts import FolderPool, ParquetPool
from dbp.pools.packed import PackFolder, PackParquet, Unpack
from dbp.pools.values import ReadColumn

COMMON: Any = {"uid": "json:uid", "caption": "json:caption", "max_pixels": 10**7}
KINDS = ("jpg", "png", "webp")
PER = 7  # samples of a tar, a Parquet file, a folder


def image(number: int, kind: str) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(noise).save(out, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
    return out.getvalue()


def sample(number: int) -> tuple[str, str, bytes, dict[str, Any]]:
    """Key, extension, image, and what is known of it."""
    kind = KINDS[number % 3]
    known = {
        "uid": f"u{number}",
        "caption": f"caption {number}",
        "lang": ("en", "de")[number % 2],
        "side": number / 2,
    }
    return f"{number:05d}", kind, image(number, kind), known


SAMPLES = [sample(number) for number in range(3 * PER)]
GROUPS = [SAMPLES[at : at + PER] for at in range(0, len(SAMPLES), PER)]


def tar_of(samples: list[tuple[str, str, bytes, dict[str, Any]]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for key, kind, content, known in samples:
            for extension, member in ((kind, content), ("json", json.dumps(known).encode())):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    return out.getvalue()


def layout(kind: str, root: Path) -> Any:
    """Write the samples in a layout; the pool as a config names it."""
    root.mkdir()
    if kind in ("tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"):
        press = {"tar.gz": gzip.compress, "tgz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}
        for number, group in enumerate(GROUPS):
            (root / f"{number}.{kind}").write_bytes(press.get(kind, bytes)(tar_of(group)))
        return Index(shards=f"{root}/*.{kind}", **COMMON)
    if kind.startswith("parquet"):
        for number, group in enumerate(GROUPS):
            images: list[Any] = [content for _, _, content, _ in group]
            if kind == "parquet struct":  # as Hugging Face's `datasets` writes an Image
                images = [{"bytes": content, "path": None} for content in images]
            columns = {"image": images} | {name: [s[3][name] for s in group] for name in group[0][3]}
            pq.write_table(pa.table(columns), root / f"{number}.parquet", row_group_size=3)
        return ParquetPool(files=f"{root}/*.parquet", **COMMON)
    for number, group in enumerate(GROUPS):
        for key, extension, content, known in group:
            place = root / f"{number:05d}"
            place.mkdir(exist_ok=True)
            (place / f"{key}.{extension}").write_bytes(content)
            if kind == "files":
                (place / f"{key}.json").write_text(json.dumps(known))
    described = [
        {"file_name": f"{number:05d}/{key}.{extension}", **known}
        for number, group in enumerate(GROUPS)
        for key, extension, _, known in group
    ]
    if kind == "metadata.csv":
        with open(root / kind, "w", newline="") as file:
            writer = csv.DictWriter(file, described[0])
            writer.writeheader()
            writer.writerows(described)
    elif kind == "metadata.jsonl":
        (root / kind).write_text("\n".join(json.dumps(line) for line in described) + "\n\n")
    elif kind == "metadata.parquet":
        pq.write_table(pa.Table.from_pylist(described), root / kind)
    return FolderPool(folder=str(root), **COMMON)


LAYOUTS = ("tar.gz", "tgz", "tar.bz2", "tar.xz", "parquet", "parquet struct", "files")
LAYOUTS += ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def values(store: Store, field: str, pool: Any) -> list[Any]:
    """A field of the json, by row."""
    column = store.get(ReadColumn.of(f"json:{field}", f"columns.{field}").bind(pool=pool.node()))
    if column.numbers is not None:
        return column.numbers.tolist()
    return [column.texts[code] if code >= 0 else None for code in column.codes]


def opened(store: Store, pool: Any) -> Pool:
    return store.get(pool.node())


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_pool_in_any_layout_has_the_rows_images_captions_and_columns_of_the_same_samples_in_tars(
    tmp_path: Path, kind: str
) -> None:
    store = Store(tmp_path / "store")
    tars, other = layout("tar", tmp_path / "tars"), layout(kind, tmp_path / "other")
    expected, found = opened(store, tars), opened(store, other)
    assert found.uids() == expected.uids() == [f"u{number}" for number in range(len(SAMPLES))]
    every = np.arange(len(SAMPLES))
    assert found.captions(every) == expected.captions(every)
    assert [found.image_bytes(row) for row in range(len(SAMPLES))] == [content for _, _, content, _ in SAMPLES]
    for field in ("lang", "side"):
        assert values(store, field, other) == [known[field] for *_, known in SAMPLES]
    if not kind.startswith("metadata"):  # its samples stand in one part, and a pool's digest is made of its parts'
        assert found.digest == expected.digest


def test_the_same_list_is_kept_and_trained_in_the_same_order_from_every_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for kind in ("tar", "tar.gz", "parquet struct", "files", "metadata.csv"):
        pool = layout(kind, tmp_path / kind)
        name = {"Index": "webdataset", "ParquetPool": "parquet", "FolderPool": "folder"}[type(pool).__name__]
        place = {"webdataset": "shards", "parquet": "files", "folder": "folder"}[name]
        given = [
            f"pool={name}",
            f"pool.{place}={getattr(pool, place)}",
            "pool.uid=json:uid",
            "pool.caption=json:caption",
        ]
        store = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]
        assert main(["curate", *given, *store, "dedup=exact", "select=uniform", "budget.num_kept=9"]) == 0
        key = capsys.readouterr().out.rpartition("keep list ")[2].split()[0]
        out = tmp_path / f"{kind}.txt"
        assert main(["export", f"keep={key}", "format=txt", f"out={out}", *store]) == 0
        said[kind] = sorted(out.read_text().split())
        shards = tmp_path / f"exported {kind}"
        assert main(["export", f"keep={key}", "format=webdataset", f"out={shards}", "shard_size=4", *store]) == 0
        members = {}
        for tar in shards.glob("*.tar"):
            with tarfile.open(tar) as file:
                for info in file:
                    members.setdefault(info.name.partition(".")[2], []).append(file.extractfile(info).read())  # type: ignore[union-attr]
        wanted = {known["uid"]: content for _, _, content, known in SAMPLES}
        exported = [content for extension, own in members.items() if extension in IMAGE_FORMATS for content in own]
        assert sorted(exported) == sorted(wanted[uid] for uid in said[kind]), "byte for byte"
        capsys.readouterr()
    assert len(said["tar"]) == 9
    assert all(found == said["tar"] for found in said.values())


def test_compressed_tars_are_unpacked_byte_for_byte_under_their_own_names(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    pool = opened(store, layout("tar.gz", tmp_path / "gz"))
    assert [Path(shard).name for shard in pool.shards] == ["0.tar", "1.tar", "2.tar"]
    assert [Path(shard).read_bytes() for shard in pool.shards] == [tar_of(group) for group in GROUPS]


def test_a_cut_compressed_tar_is_refused_by_name_or_read_to_the_cut(tmp_path: Path) -> None:
    layout("tar.gz", tmp_path / "gz")
    cut = tmp_path / "gz" / "1.tar.gz"
    cut.write_bytes(cut.read_bytes()[:-400])
    pool = Index(shards=f"{tmp_path}/gz/*.tar.gz", **COMMON)
    with pytest.raises(PoolError, match=r"1\.tar\.gz .* pool\.broken_shards=keep_readable"):
        opened(Store(tmp_path / "store"), pool)
    readable = Index(shards=pool.shards, broken_shards="keep_readable", **COMMON)
    store = Store(tmp_path / "store")
    found = opened(store, readable)
    assert 2 * PER <= found.num_rows < 3 * PER
    assert store.entry(readable.node()).manifest["counts"]["damaged shards"] == 1  # type: ignore[union-attr]


def test_plain_and_compressed_tars_in_one_pattern_are_refused_by_name(tmp_path: Path) -> None:
    layout("tar", tmp_path / "tars")
    layout("tar.gz", tmp_path / "gz")
    with pytest.raises(ConfigError, match=r"tars/0\.tar"):
        opened(
            Store(tmp_path / "store"), Index(shards=[f"{tmp_path}/gz/*.tar.gz", f"{tmp_path}/tars/*.tar"], **COMMON)
        )


@pytest.mark.parametrize(
    ("columns", "image", "says"),
    [
        ({"url": ["http://a/b.jpg"], "text": ["a"]}, None, ("url (string)", "img2dataset", "pool=webdataset")),
        ({"image": [b"1"], "depth": [b"2"]}, None, ("pool.image", "image, depth")),
        ({"image": [b"1"], "text": ["a"]}, "imgae", ("pool.image='imgae'", "image")),
        ({"image": [b"1"], "text": ["a"]}, "text", ("pool.image='text'", "string")),
        ({"image": [{"path": "a.jpg"}]}, None, ("no column holds images", "pool=folder")),
    ],
)
def test_parquet_without_a_column_of_images_is_refused_before_any_work(
    tmp_path: Path, columns: dict[str, list[Any]], image: str | None, says: tuple[str, ...]
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    pool = ParquetPool(files=f"{tmp_path}/*.parquet", image=image, **COMMON)
    with pytest.raises(ConfigError) as error:
        Store(tmp_path / "store").key(pool.node())
    assert all(word in str(error.value) for word in (*says, "a.parquet"))


def test_a_file_that_is_no_parquet_and_one_that_is_cut_are_named(tmp_path: Path) -> None:
    layout("parquet", tmp_path / "pq")
    whole = (tmp_path / "pq" / "1.parquet").read_bytes()
    (tmp_path / "pq" / "1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PoolError, match=r"pool\.files: .*1\.parquet"):
        opened(Store(tmp_path / "store"), ParquetPool(files=f"{tmp_path}/pq/*.parquet", **COMMON))


def test_rows_without_bytes_text_that_is_not_utf8_and_further_bytes_are_counted_and_the_rest_is_kept(
    tmp_path: Path,
) -> None:
    texts = pa.array([b"a caption", b"\xff\xfe broken", b"another"]).view(pa.string())
    columns = {
        "image": pa.array([image(0, "png"), image(1, "png"), None]), "caption": texts, "uid": ["a", "b", "c"],
        "mask": pa.array([b"1", b"2", b"3"]), "score": [1.0, float("nan"), float("inf")],
        "when": pa.array([0, 1, 2], pa.timestamp("s")), "nested": [{"list": [1, 2]}] * 3,
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    store = Store(tmp_path / "store")
    pool = ParquetPool(files=str(tmp_path / "a.parquet"), image="image", **COMMON)
    found = opened(store, pool)
    assert found.is_valid.tolist() == [True, False, False]
    assert found.column("reason").tolist() == ["", "no caption", "no image"]
    counts = store.entry(pool.node().inputs["folder"]).manifest["counts"]  # type: ignore[union-attr]
    assert counts["values that are not UTF-8"] == 1
    assert counts["rows whose image is missing"] == 1
    assert counts["columns of bytes, left out"] == 1
    with tarfile.open(found.shards[0]) as tar:
        members = [name for name in tar.getnames() if name.endswith("json")]
        first, second = (json.loads(tar.extractfile(name).read()) for name in members[:2])  # type: ignore[union-attr]
    assert first["nested"] == {"list": [1, 2]}
    assert first["when"] == "1970-01-01T00:00:00"
    assert second["score"] is None


def test_one_row_group_of_any_size_is_read_in_pages(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 200_000), np.uint8)
    table = pa.table({"image": [row.tobytes() for row in noise]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=400, use_dictionary=False, write_batch_size=4)
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    del table
    before, most, counts = pa.total_allocated_bytes(), 0, Counter[str]()
    for _ in parquet_images.read_samples(tmp_path / "a.parquet", "image", counts):
        most = max(most, pa.total_allocated_bytes())
    assert most - before < 40e6, "of 80 MB"


def test_a_folder_is_read_in_order_and_odd_files_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "images"
    for name in ("b/2.PNG", "b/1.png", "a/x.y.png", "a/._x.png", "a/.hidden.png", "c/notes.txt", "a/readme.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(len(name), "png"))
        (root / name).with_suffix(".txt").write_text(f"caption of {name}")
    (root / "b" / "loop").symlink_to(root)
    (root / "00000_stats.json").write_text("{}")
    pool = FolderPool(folder=str(root), uid="key", caption="txt", max_pixels=10**7)
    store = Store(tmp_path / "store")
    found = opened(store, pool)
    # `readme.txt` is a text of no image; folder c holds no image at all.
    assert found.column("key").tolist() == ["readme", "x%2Ey", "1", "2"]
    assert found.column("reason").tolist() == ["no image", "", "", ""]
    assert found.captions(np.array([1])) == ["caption of a/x.y.png"]
    assert "files of other kinds" in caplog.text


def test_metadata_that_names_missing_images_leaves_some_out_or_leads_outside_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(image(5, "png"))
    for name in ("a.png", "b.png", "extra.png"):
        (root / name).write_bytes(image(len(name), "png"))
    lines = [
        ["file_name", "caption", "uid", "zip"],
        ["a.png", "one, two\nlines", "1", "012"],
        ["b.png", "b", "2", "7"],
    ]
    lines += [["gone.png", "c", "3", "8"], ["../secret.png", "d", "4", "9"]]
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    store = Store(tmp_path / "store")
    pool = FolderPool(folder=str(root), **COMMON)
    found = opened(store, pool)
    assert found.captions(np.array([0])) == ["one, two\nlines"]
    assert found.column("reason").tolist() == ["", "", "no image", "no image"]
    counts = store.entry(pool.node().inputs["folder"]).manifest["counts"]  # type: ignore[union-attr]
    assert counts["images that no line of the metadata names"] == 1
    assert counts["file names that lead out of the folder"] == 1
    assert values(store, "zip", pool)[:2] == ["012", "7"], "zeros are not lost"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("metadata.csv", "image,text\na.png,b\n", ("file_name", "image, text")),
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"file_name": \n', ("line 2", "JSON")),
        ("metadata.jsonl", '{"file_name": 3}\n', ("line 1", "file_name")),
        ("metadata.csv", "file_name,text\na.png,b,c\n", ("metadata.csv",)),
    ],
)
def test_damaged_metadata_is_named_with_its_line(
    tmp_path: Path, name: str, text: str, says: tuple[str, ...]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_text(text)
    with pytest.raises(PoolError) as error:
        Store(tmp_path / "store").key(FolderPool(folder=str(tmp_path / "images"), **COMMON).node())
    assert all(word in str(error.value) for word in (*says, str(tmp_path / "images" / name)))


def test_a_folder_that_is_missing_or_empty_is_refused_with_the_setting(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(PoolError, match=r"pool\.folder="):
            Store(tmp_path / "store").key(FolderPool(folder=str(folder), **COMMON).node())


def test_more_samples_than_a_part_or_a_tar_holds_go_on_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folders, "PART", 8)
    monkeypatch.setattr(packed, "SHARD_SAMPLES", 3)
    store = Store(tmp_path / "store")
    found = opened(store, layout("metadata.jsonl", tmp_path / "images"))
    assert found.uids() == [f"u{number}" for number in range(21)]
    assert [Path(shard).name for shard in found.shards][:4] == [
        "0000000-00000.tar", "0000000-00001.tar", "0000000-00002.tar", "0000001-00000.tar",
    ]  # fmt: skip
    assert len(found.shards) == 3 + 3 + 2


def test_a_part_that_is_finished_is_not_read_again_after_a_kill(tmp_path: Path) -> None:
    pool = layout("parquet", tmp_path / "pq")
    last = tmp_path / "pq" / "2.parquet"
    content, store = last.read_bytes(), Store(tmp_path / "store")
    times = last.stat().st_atime_ns, last.stat().st_mtime_ns
    last.write_bytes(content[:-50] + bytes(50))
    os.utime(last, ns=times)
    with pytest.raises(PoolError):
        opened(store, pool)
    for file in ("0.parquet", "1.parquet"):  # would fail if they were read; names, sizes and times stay
        path = tmp_path / "pq" / file
        stat, size = path.stat(), path.stat().st_size
        whole = path.read_bytes()
        schema = len(whole) // 2
        path.write_bytes(bytes(schema) + whole[schema:])
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == size
    last.write_bytes(content)
    os.utime(last, ns=times)
    assert opened(store, pool).num_rows == len(SAMPLES)


def test_a_json_field_that_changes_is_read_anew_although_images_and_captions_stay(tmp_path: Path) -> None:
    store, pool = Store(tmp_path / "store"), layout("files", tmp_path / "images")

    assert values(store, "lang", pool)[0] == "en"
    path = tmp_path / "images" / "00000" / "00000.json"
    path.write_text(path.read_text().replace('"en"', '"fr"'))
    os.utime(path, ns=(1, 1))
    assert values(store, "lang", pool)[0] == "fr"


@pytest.mark.parametrize("kind", ["bmp", "tif", "tiff", "jfif", "avif"])
def test_images_of_these_extensions_are_samples_of_tars(tmp_path: Path, kind: str) -> None:
    format_ = {"jfif": "JPEG", "tif": "TIFF", "tiff": "TIFF"}.get(kind, kind.upper())
    if format_ == "AVIF" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow reads no AVIF")
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 30, 4)).save(out, format_)
    known = {"uid": "a", "caption": "red"}
    (tmp_path / "a.tar").write_bytes(tar_of([("a", kind, out.getvalue(), known)]))
    found = opened(Store(tmp_path / "store"), Index(shards=str(tmp_path / "a.tar"), **COMMON))
    assert found.is_valid.tolist() == [True]
    assert found.image(0).getpixel((0, 0))[0] > 150  # type: ignore[index]
    assert extension_of(out.getvalue()) == {"tiff": "tif", "jfif": "jpg"}.get(kind, kind)


def test_the_key_of_a_layout_names_what_was_read_and_not_where_it_lies(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    pool = layout("files", tmp_path / "here")
    key = store.key(pool.node().inputs["folder"])
    (tmp_path / "here").rename(tmp_path / "there")
    moved = PackFolder(folder=str(tmp_path / "there"))
    assert store.key(moved.bind()) == key
    (tmp_path / "there" / "00000" / "00000.json").write_text("{}")
    image_folders.stems_of.cache_clear()
    assert store.key(moved.bind()) != key
    assert {type(stage).__name__ for stage in (moved, PackParquet(), Unpack())} == {
        "PackFolder",
        "PackParquet",
        "Unpack",
    }


def test_a_folder_is_listed_once_for_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = layout("files", tmp_path / "images")
    listed, list_all = [], image_folders.units
    monkeypatch.setattr(image_folders, "units", lambda root: listed.append(root) or list_all(root))
    found = opened(Store(tmp_path / "store"), pool)
    assert len(found.shards) == len(GROUPS) > 1
    assert len(listed) == 1
