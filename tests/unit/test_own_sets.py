"""Evaluation sets from a pool: who is held out, what is written, and that no arm has it."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from hypothesis import given
from hypothesis import strategies as st
from miniature import noise_png

from dbp.__main__ import main
from dbp.curate import ValidRows, read, recipe
from dbp.data.pool import Pool, hash_64
from dbp.engine.disk import sizes_of
from dbp.engine.stage import Node, key_of
from dbp.engine.store import Store
from dbp.errors import ConfigError, PoolError, WorldError
from dbp.pools.index import Index
from dbp.selection.held_out import HoldOut
from evaluation import suites, tasks
from evaluation.checks.held_out import rows_of
from evaluation.kinds.classification import Classification
from evaluation.kinds.retrieval import Retrieval
from evaluation.running.prepare import check_own
from evaluation.sets import drawn as drawing
from evaluation.sets.drawn import UIDS_FILE, SetsSettings, draw, is_drawn, write_sets

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
NUM_ROWS = 240
BROKEN = "p0007"  # its pixels are cut short; its header is sound


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has met no task and no suite of the user."""
    monkeypatch.setattr(tasks, "_own", {})
    monkeypatch.setattr(tasks, "_facts", {})
    monkeypatch.setattr(suites, "_own", {})


def colour_of(number: int) -> str:
    return list(COLOURS)[number % len(COLOURS)]


def samples() -> list[tuple[str, bytes, str]]:
    """uid, image and caption of each sample; every tenth image is that of the sample before."""
    rng = np.random.default_rng(0)
    found: list[tuple[str, bytes, str]] = []
    for number in range(NUM_ROWS):
        uid = f"p{number:04d}"
        image = noise_png(rng, 12, np.array(COLOURS[colour_of(number)]))
        if number % 10 == 9:
            image = found[-1][1]
        if uid == BROKEN:
            image = image[: len(image) // 2]
        found.append((uid, image, f"a {colour_of(number)}\n patch, number {number}"))
    return found


def write_tars(folder: Path, wanted: list[tuple[str, bytes, str]], per_shard: int) -> str:
    folder.mkdir(parents=True)
    for start in range(0, len(wanted), per_shard):
        with tarfile.open(folder / f"{start // per_shard:05d}.tar", "w") as tar:
            for uid, image, caption in wanted[start : start + per_shard]:
                for name, content in ((f"{uid}.png", image), (f"{uid}.txt", caption.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return f"{folder}/*.tar"


def indexed(folder: Path, wanted: list[tuple[str, bytes, str]], per_shard: int = 50) -> tuple[Store, Node]:
    shards = write_tars(folder / "tars", wanted, per_shard)
    store = Store(folder / "store", folder / "runs", lambda line: None)
    return store, Index(uid="key", caption="txt", max_pixels=10**6, shards=shards).node()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    store, node = indexed(tmp_path_factory.mktemp("pool"), samples())
    return store.get(node)


def write_labels(path: Path, labels: dict[str, str]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("uid", "label"), *labels.items()])
    return str(path)


def all_labels() -> dict[str, str]:
    return {uid: colour_of(number) for number, (uid, _, _) in enumerate(samples())}


def asked(**changed: object) -> SetsSettings:
    given = {"name": "mine", "share": 0.25, "labels": None, "class_names": None, "retrieval": True, "seed": 0}
    return SetsSettings(**{**given, "templates": ["a patch of {c}."], **changed})  # type: ignore[arg-type]


def written(pool: Pool, settings: SetsSettings, out: Path, workers: int = 1) -> dict[str, dict]:
    return write_sets(pool, settings, draw(pool, settings, workers), out)


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.glob("test/*.tar"):
        with tarfile.open(path) as tar:
            found |= {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sizes_of(folder)}


# who is held out


@given(st.lists(st.text(min_size=1), unique=True, max_size=30), st.integers(0, 9), st.floats(0.01, 0.99))
def test_whether_a_sample_is_held_out_hangs_on_its_uid_and_the_seed_alone(uids, seed, share):
    hashes = np.array([hash_64(uid.encode()) for uid in uids], np.uint64)
    together = is_drawn(hashes, share, seed)
    for at in range(len(uids)):
        assert is_drawn(hashes[at : at + 1], share, seed)[0] == together[at]
    assert not (together & ~is_drawn(hashes, min(share * 1.01, 0.999), seed)).any(), "a larger share adds samples"


def test_about_the_share_is_held_out_and_another_seed_holds_out_others():
    hashes = np.array([hash_64(str(n).encode()) for n in range(20_000)], np.uint64)
    first, second = is_drawn(hashes, 0.1, 0), is_drawn(hashes, 0.1, 1)
    assert abs(first.mean() - 0.1) < 0.01
    assert abs((first & second).mean() - 0.01) < 0.005, "the draws are independent"


def test_other_shards_in_another_order_give_the_same_files(pool, tmp_path):
    labels = write_labels(tmp_path / "labels.csv", all_labels())
    settings = asked(labels=labels)
    written(pool, settings, tmp_path / "a")
    other = samples()
    at = 9  # of two equal images the order of the set decides, not that of the pool
    other[at - 1], other[at] = other[at], other[at - 1]
    store, node = indexed(tmp_path / "other", other[120:] + other[:120], per_shard=13)
    written(store.get(node), settings, tmp_path / "b")
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    about = [json.loads(found.pop("sets.json")) for found in (a, b)]
    assert a == b
    assert about[0].pop("pool") != about[1].pop("pool")
    assert about[0] == about[1]


def test_the_same_files_for_any_number_of_workers(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "SHARD_SIZE", 16)
    written(pool, asked(), tmp_path / "one")
    written(pool, asked(), tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert int((tmp_path / "one/wds_mine_retrieval_test/test/nshards.txt").read_text()) > 2


def test_equal_images_are_in_a_set_once_and_all_of_them_are_held_out(pool, tmp_path):
    drawn = draw(pool, asked())
    images = {uid: image for uid, image, _ in samples()}
    chosen, copies = pool.uids(drawn.rows), pool.uids(drawn.copies)
    own = [images[uid] for uid in chosen]
    assert len(set(own)) == len(own)
    written(pool, asked(), tmp_path / "out")
    held = set(pq.read_table(tmp_path / "out/held_out.parquet")["uid"].to_pylist())
    assert held == {*chosen, *copies}
    bytes_held = {images[uid] for uid in chosen}
    assert {uid for uid, image in images.items() if image in bytes_held} <= held
    drawn_uids = {uid for uid in images if is_drawn(np.array([hash_64(uid.encode())], np.uint64), 0.25, 0)[0]}
    assert drawn_uids <= held
    assert drawn.counts["same image bytes as a held-out sample, in no set"] > 0


def test_an_image_that_cannot_be_decoded_is_held_out_and_in_no_set(pool):
    drawn = draw(pool, asked(share=0.99))
    assert BROKEN in pool.uids(drawn.copies)
    assert drawn.counts["undecodable image, in no set"] == 1


def test_a_repeated_uid_is_held_out_and_in_no_set(tmp_path):
    twice = [*samples(), ("p0003", noise_png(np.random.default_rng(9), 12), "another one of this name")]
    store, node = indexed(tmp_path, twice)
    pool = store.get(node)
    drawn = draw(pool, asked(share=0.99))
    assert drawn.counts["repeated uid, in no set"] == 2
    assert "p0003" not in pool.uids(drawn.rows)
    assert pool.uids(drawn.copies).count("p0003") == 2


def test_labels_are_read_from_a_field_of_the_json_and_by_the_name_of_a_column(tmp_path, capsys):
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number, (uid, image, caption) in enumerate(samples()):
            told = {"look": {"ink": colour_of(number)}, "group": number % 4} if number % 5 else {}
            for kind, content in (("png", image), ("txt", caption.encode()), ("json", json.dumps(told).encode())):
                info = tarfile.TarInfo(f"{uid}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    words = [
        f"pool.shards={folder}/*.tar",
        "sets.share=0.4",
        f"paths.store={tmp_path}/s",
        f"paths.runs={tmp_path}/r",
    ]
    expected = {uid: colour_of(number) for number, (uid, _, _) in enumerate(samples()) if number % 5}
    for name, more in {
        "a": ["sets.labels=json:look.ink"],
        "b": ["+columns.ink=json:look.ink", "sets.labels=ink"],
    }.items():
        assert main(["sets", *words, *more, f"sets.name={name}", f"out={tmp_path}/{name}"]) == 0
        home = tmp_path / name / f"wds_{name}_labels_test"
        names = (home / "classnames.txt").read_text().split()
        uids = pq.read_table(home / UIDS_FILE)["uid"].to_pylist()
        truths = [names[int(value)] for key, value in sorted(members(home).items()) if key.endswith(".cls")]
        assert dict(zip(uids, truths, strict=True)) == {uid: expected[uid] for uid in uids}
        assert set(uids) <= set(expected)
    assert main(["sets", *words, "sets.labels=json:group", "sets.name=c", f"out={tmp_path}/c"]) == 0
    assert (tmp_path / "c/wds_c_labels_test/classnames.txt").read_text().split() == ["0", "1", "2", "3"]
    capsys.readouterr()
    assert main(["sets", *words, "sets.labels=look", "sets.name=d", f"out={tmp_path}/d"]) == 1
    assert "json:FIELD" in capsys.readouterr().err


# what is written


def test_images_are_copied_byte_for_byte_with_the_labels_of_the_file(pool, tmp_path):
    known = {uid: label for uid, label in all_labels().items() if int(uid[1:]) % 7}
    found = written(pool, asked(labels=write_labels(tmp_path / "l.csv", known)), tmp_path / "out")
    folder = tmp_path / "out/wds_mine_labels_test"
    names = (folder / "classnames.txt").read_text().splitlines()
    assert names == sorted(COLOURS)
    uids = pq.read_table(folder / UIDS_FILE)["uid"].to_pylist()
    there, images = members(folder), {uid: image for uid, image, _ in samples()}
    assert len(there) == 2 * len(uids) == 2 * found["mine_labels"]["test_size"]
    for number, uid in enumerate(uids):
        assert there[f"s{number:07d}.png"] == images[uid]
        assert names[int(there[f"s{number:07d}.cls"])] == known[uid]
    assert not [uid for uid in uids if int(uid[1:]) % 7 == 0]


def test_a_caption_is_one_line_and_its_level_of_chance_is_one_in_the_number_of_images(pool, tmp_path):
    found = written(pool, asked(), tmp_path / "out")["mine_retrieval"]
    assert found["chance"] == 1 / found["test_size"]
    there = members(tmp_path / "out/wds_mine_retrieval_test")
    texts = [content.decode() for name, content in there.items() if name.endswith(".txt")]
    assert len(texts) == found["test_size"]
    assert all(text.startswith("a ") and "\n" not in text and "  " not in text for text in texts)


def test_repeated_captions_are_in_the_retrieval_set_once(tmp_path):
    store, node = indexed(tmp_path / "pool", [(uid, image, f"a {uid[-1]}") for uid, image, _ in samples()])
    pool = store.get(node)
    drawn = draw(pool, asked())
    facts = written(pool, asked(), tmp_path / "out")["mine_retrieval"]
    assert facts["test_size"] == len(set(drawn.captions)) < len(drawn.rows)
    assert drawn.counts["repeated caption, not in the retrieval set"] == len(drawn.rows) - facts["test_size"]


def test_clip_benchmark_reads_the_sets(pool, tmp_path):
    import torch

    labels = write_labels(tmp_path / "l.csv", all_labels())
    found = written(pool, asked(labels=labels), tmp_path / "out")
    to_tensor = lambda image: torch.tensor(np.array(image.resize((8, 8))))  # noqa: E731
    for key, kind in (("mine_labels", Classification), ("mine_retrieval", Retrieval)):
        folder = tmp_path / "out" / found[key]["folder"]
        dataset = build_wds_dataset("any", to_tensor, data_dir=str(folder))
        ours = kind.open(folder)
        theirs = list(dataset)
        assert len(theirs) == len(ours) == found[key]["test_size"]
        if key == "mine_labels":
            assert dataset.classes == list(ours.class_names)
            assert [int(label) for _, label in theirs] == ours.labels().tolist()
        else:
            _, captions = image_captions_collate_fn(theirs)
            assert [list(texts) for texts in captions] == ours.captions()


def test_the_written_tasks_and_suite_are_those_of_their_yaml_files(pool, tmp_path):
    from dbp.config import compose
    from evaluation.stage import Evaluate

    labels = write_labels(tmp_path / "l.csv", all_labels())
    written(pool, asked(labels=labels), tmp_path / "out")
    config = compose("evaluate", ["suite=mine"], [str(tmp_path / "out/configs")])
    stage = Evaluate("mine", None, 0, "fp32", tasks=dict(config.tasks), suites=dict(config.suites))
    held = suites.resolve_suite("mine")
    assert [task.key for task in held] == ["mine_labels", "mine_retrieval"] == list(stage.tasks)
    assert held[0].chance == 1 / 3
    check_own(held, tmp_path / "out")


def test_labels_come_from_a_column_of_the_pool(tmp_path):
    from PIL import Image

    mixed = []
    for number, (uid, _, caption) in enumerate(samples()):
        file = io.BytesIO()
        size = (10 + number % 2, 10)
        Image.new("RGB", size, (number, 0, 0)).save(file, "png")
        mixed.append((uid, file.getvalue(), caption))
    store, node = indexed(tmp_path, mixed)
    drawn = draw(store.get(node), asked(labels="width"))
    assert drawn.class_names == ("10", "11")
    assert drawn.labels == tuple(str(10 + int(uid[1:]) % 2) for uid in store.get(node).uids(drawn.rows))
    numbered = draw(store.get(node), asked(labels="width", class_names=[f"{n} wide" for n in range(12)]))
    assert set(numbered.labels) == {"10 wide", "11 wide"}, "whole numbers count the given names"


def test_a_label_of_digits_is_the_text_that_stands_in_the_csv(pool, tmp_path):
    codes = {"red": "01", "green": "02", "blue": "10"}
    file = write_labels(tmp_path / "l.csv", {uid: codes[label] for uid, label in all_labels().items()})
    drawn = draw(pool, asked(labels=file))
    assert drawn.class_names == ("01", "02", "10")
    named = draw(pool, asked(labels=file, class_names=["10", "02", "01"]))
    assert named.labels == drawn.labels == tuple(codes[all_labels()[uid]] for uid in pool.uids(drawn.rows))
    with pytest.raises(ConfigError, match="'01'"):
        draw(pool, asked(labels=file, class_names=["02", "10", *"abcdefghij"]))
    with pytest.raises(ConfigError, match="'01'"):
        draw(pool, asked(labels=file, class_names=list("abcdefghijkl")))


def test_labels_of_a_parquet_file_may_be_in_any_order_and_name_others(pool, tmp_path):
    table = dict(reversed(all_labels().items())) | {"not in the pool": "grey"}
    file = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"uid": list(table), "label": list(table.values())}), file)
    drawn = draw(pool, asked(labels=str(file)))
    assert drawn.labels == tuple(table[uid] for uid in pool.uids(drawn.rows))


# what is wrong


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("colour", ["sets.labels='colour'", "no such column", "CSV"]),
        ("content_hash", ["sets.labels='content_hash'", "whole number"]),
        ("format", ["sets.labels", "'png'", "two"]),
        ({"p0000x": "red"}, ["none of", "uids of this pool"]),
    ],
)
def test_labels_that_give_no_classes_are_refused(pool, tmp_path, labels, said):
    named = labels if isinstance(labels, str) else write_labels(tmp_path / "l.csv", labels)
    with pytest.raises(ConfigError) as refused:
        draw(pool, asked(labels=named))
    assert all(word in str(refused.value) for word in said), refused.value


def test_a_label_outside_the_class_names_and_two_labels_of_one_sample_are_refused(pool, tmp_path):
    labels = write_labels(tmp_path / "l.csv", all_labels())
    with pytest.raises(ConfigError, match="'green'"):
        draw(pool, asked(labels=labels, class_names=["red", "blue"]))
    uid = pool.uids(draw(pool, asked()).rows)[0]
    with Path(labels).open("a") as file:
        file.write(f"{uid},violet\n")
    with pytest.raises(WorldError, match=f"{uid}.*violet"):
        draw(pool, asked(labels=labels))
    (tmp_path / "bad.csv").write_text("name,label\na,b\n")
    with pytest.raises(WorldError, match="uid"):
        draw(pool, asked(labels=str(tmp_path / "bad.csv")))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"name": "a/b"}, "name"),
        ({"templates": ["a patch"]}, "{c}"),
        ({"class_names": ["red", "red"]}, "red"),
        ({"retrieval": False}, "retrieval=false"),
    ],
)
def test_settings_that_make_no_sets_are_refused(changed, said):
    with pytest.raises(ConfigError) as refused:
        asked(**changed)
    assert said in str(refused.value)


def test_a_share_that_draws_nothing_is_refused(pool):
    with pytest.raises(PoolError, match=r"sets\.share"):
        draw(pool, asked(share=1e-9))


def test_a_folder_that_exists_is_not_replaced_and_nothing_is_half_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tars(tmp_path / "tars", samples(), 50)
    words = ["sets", "pool.shards=tars/*.tar", "paths.store=store", "paths.runs=runs", "sets.share=0.25"]
    assert main([*words, "out=mine"]) == 0
    before = contents(tmp_path / "mine")
    assert main([*words, "out=mine"]) == 1
    assert "out='mine' exists" in capsys.readouterr().err
    assert contents(tmp_path / "mine") == before
    assert main([*words, "out=other", "sets.labels=format"]) == 1
    assert main([*words, "out=other", "sets.name=glyphs"]) == 1
    assert "sets.name='glyphs'" in capsys.readouterr().err
    assert main(words) == 1
    assert "out=FOLDER" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "store", "tars"]


# what arms are without


def curated(folder: Path, shards: str, *words: str) -> dict[str, Node]:
    from dbp.config import compose

    plain = [f"pool.shards='{shards}'", "dedup=exact", "select=uniform", "budget.num_kept=40", "cluster.on=dedup"]
    return recipe(read(compose("curate", [*plain, *words])))


def test_a_held_out_sample_is_gone_before_anything_else_is_decided(pool, tmp_path):
    written(pool, asked(), tmp_path / "out")
    file = tmp_path / "out/held_out.parquet"
    shards = write_tars(tmp_path / "tars", samples(), 50)
    store = Store(tmp_path / "store", tmp_path / "runs", lambda line: None)
    nodes = curated(tmp_path, shards, f"hold_out={file}", "budget.of=pool")
    held = set(pq.read_table(file)["uid"].to_pylist())
    here: Pool = store.get(nodes["index"])
    for name in ("valid", "dedup", "select"):
        kept = store.get(nodes[name])
        assert not held & set(here.uids(kept.rows)), name
    assert store.get(nodes["select"]).num_kept == 40
    kept = store.get(nodes["select"])
    row = here.row_of(sorted(held)[0])
    assert store.get(nodes["valid"]).decision(row)["stage"] == "held out"
    assert store.get(nodes["valid"]).num_kept == NUM_ROWS - len(held)
    assert store.entry(nodes["valid"]).manifest["counts"]["held out"] == len(held)  # type: ignore[union-attr]
    assert not len(rows_of(here, tmp_path / "out/wds_mine_retrieval_test" / UIDS_FILE, kept.mask))


def test_without_a_list_every_key_is_as_it_was_and_with_one_it_is_that_of_its_content(tmp_path):
    shards = write_tars(tmp_path / "tars", samples(), 50)
    assert isinstance(curated(tmp_path, shards)["valid"].stage, ValidRows)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("p0001\np0002\n")
    (tmp_path / "c.txt").write_text("p0001\n")
    keys = [
        key_of(HoldOut(str(tmp_path / name)), {"rows": "r", "pool": "p"}) for name in ("a.txt", "b.txt", "c.txt")
    ]
    assert keys[0] == keys[1] != keys[2]


def test_a_list_of_another_pool_is_refused_and_a_missing_one_before_any_work(tmp_path):
    shards = write_tars(tmp_path / "tars", samples(), 50)
    with pytest.raises(ConfigError, match="hold_out"):
        curated(tmp_path, shards, f"hold_out={tmp_path}/none.txt")
    (tmp_path / "other.txt").write_text("another\n")
    store = Store(tmp_path / "store", tmp_path / "runs", lambda line: None)
    with pytest.raises(WorldError, match=r"hold_out=.*'p0000'"):
        store.get(curated(tmp_path, shards, f"hold_out={tmp_path}/other.txt")["valid"])
