"""Captions of a column of the pool, and several of an image: read, picked, compared with the image, trained on."""

import io
import json
import logging
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_training_runs import TRAIN, Chosen, World, batches
from test_write_shards import png

from dbp.captioning.best import NO_VECTOR, BestText
from dbp.captioning.texts import SEVERAL, WITHOUT, ReadTexts
from dbp.config import build, compose
from dbp.curate import recipe
from dbp.data.caption_text import SEVERAL as FIRST_OF_SEVERAL
from dbp.data.caption_text import caption_from, read_caption
from dbp.data.captions import UNUSABLE, Captions, import_captions, write_lists
from dbp.data.pool import Pool
from dbp.encoders.base import Encoder, Tower
from dbp.encoders.embed import Embed
from dbp.engine.stage import Node, runtime
from dbp.engine.store import Store
from dbp.errors import ConfigError, DbpError, WorldError
from dbp.offers import Offers
from dbp.pools.index import Index
from dbp.settings import read
from dbp.verbs.command_line import overrides
from slurm.task import shared_nodes
from training.feed.captions import CaptionMix, MixedCaptions
from training.feed.data import Pairs, read_pairs
from training.feed.order import copy_keys
from training.feed.subset import Subset
from training.resume.ranks import Ranks
from training.train import node_of

# What the field of each sample's json holds, and the captions that are in it.
FIRST = {
    "two": (["a cat", "a tabby"], ["a cat", "a tabby"]),
    "text": ("one text", ["one text"]),
    "empty": ([], []),
    "nothing": (None, []),
    "numbers": ([1, 2.5], []),
    "some": ([None, " ", "nan", "a dog", 3, "a hound", "a pet"], ["a dog", "a hound", "a pet"]),
    "number": (7, []),
    "mapping": ({"a": "b"}, []),
}
UNUSABLE_OF_FIRST = 2 + 4 + 1 + 1


def write(path: Path, contents: dict[str, Any]) -> None:
    """A tar of samples: an image, a txt, and the json of a mapping; none where it is None."""
    with tarfile.open(path, "w") as tar:
        for number, (key, content) in enumerate(contents.items()):
            members = {"png": png(number), "txt": f"original of {key}".encode()}
            if content is not None:
                members["json"] = content if isinstance(content, bytes) else json.dumps(content).encode()
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards: of the first some samples have captions in the json's field; of the second none has."""
    first = {key: {"texts": value, "nested": {"raw": value}} for key, (value, _) in FIRST.items()}
    first["two"]["sentences"] = [{"raw": "a cat"}, {"raw": "a tabby", "id": 3}, {"id": 4}]
    write(tmp_path / "00000.tar", first)
    write(tmp_path / "00001.tar", {"bare": None, "other": {"x": "y"}, "broken": b"{"})
    beside = {"key": ["two", "text", "empty"], "texts": [["a", "", "b"], ["c"], None], "size": [1, 2, 3]}
    pq.write_table(pa.table(beside), tmp_path / "00000.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def index(here: Path, caption: str = "txt") -> Node:
    shards = [str(here / f"{i:05d}.tar") for i in (0, 1)]
    return Index("key", caption, 10**6, shards=shards).node()


def store_of(here: Path) -> Store:
    return Store(here / "store")


def read_texts(here: Path, said: str) -> tuple[Captions, dict[str, Any]]:
    store, node = store_of(here), ReadTexts.of(said, "caption.column").bind(pool=index(here))
    found = store.get(node)
    entry = store.entry(node)
    assert entry is not None
    return found, entry.manifest["counts"]


def every(captions: Captions) -> list[list[str]]:
    first, counts = captions.places(np.arange(captions.num_rows))
    return [captions.at(np.arange(a, a + n)) for a, n in zip(first.tolist(), counts.tolist(), strict=True)]


# reading


@pytest.mark.parametrize("field", ["texts", "nested.raw"])
def test_a_field_of_texts_or_of_lists_gives_each_row_its_captions_and_counts_the_rest(
    here: Path, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="dbp"):
        found, counts = read_texts(here, f"json:{field}")
    assert every(found) == [*(texts for _, texts in FIRST.values()), [], [], []]
    assert counts == {
        "rows": 3, WITHOUT: 8, SEVERAL: 2, UNUSABLE: UNUSABLE_OF_FIRST, "shards without": 1
    }  # fmt: skip
    for fact in ("1 of 2 shards", field, "00001.tar"):
        assert fact in caplog.text
    assert found.of(np.array([5, 0, 2]), np.array([2, 1, 0])) == ["a pet", "a tabby", None]


def test_a_path_through_a_list_gives_the_list_of_what_it_leads_to(here: Path) -> None:
    found, _ = read_texts(here, "json:sentences.raw")
    assert every(found)[:2] == [["a cat", "a tabby"], []]


def test_lists_beside_the_tars_and_in_a_file_of_uids_are_captions_too(here: Path) -> None:
    found, counts = read_texts(here, "parquet:texts")
    assert every(found)[:4] == [["a", "b"], ["c"], [], []]
    assert (counts["rows"], counts[UNUSABLE]) == (2, 1)
    table = {"uid": ["some", "elsewhere", "two"], "t": [["ä", "b"], ["no"], ["", "c"]], "s": ["nan", "x", "y"]}
    pq.write_table(pa.table(table), here / "file.parquet", row_group_size=1)
    found, counts = read_texts(here, "file:file.parquet:t")
    assert {row: texts for row, texts in enumerate(every(found)) if texts} == {5: ["ä", "b"], 0: ["c"]}
    assert (counts["rows"], counts[SEVERAL], counts[UNUSABLE]) == (2, 1, 1)
    found, _ = read_texts(here, "file:file.parquet:s")
    assert {row: texts for row, texts in enumerate(every(found)) if texts} == {0: ["y"]}
    assert every(read_texts(here, "pool:key")[0]) == [[key] for key in [*FIRST, "bare", "other", "broken"]]


def test_parts_of_any_size_give_the_same_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = read_texts(here, "json:texts")
    monkeypatch.setattr("dbp.pools.values.BATCH", 2)
    other, _ = read_texts(here / ".", "json:texts")
    again = Store(here / "again").get(ReadTexts.of("json:texts", "x").bind(pool=index(here)))
    for name in ("ends.npy", "rows.npy", "texts.bin", "captions.json"):
        assert (found.folder / name).read_bytes() == (again.folder / name).read_bytes()
    assert other.folder == found.folder


@pytest.mark.parametrize(
    ("said", "facts"),
    [
        ("json:tets", ["caption.column=json:tets", "11 rows", "'texts'"]),
        ("json:x", []),
        ("json:number", ["json:number", "11 rows", "7"]),
        ("parquet:size", ["parquet:size", "int64", "texts"]),
        ("parquet:text", ["'text'", "'texts'"]),
        ("pool:width", ["pool:width", "int32", "texts"]),
        ("pool:kei", ["pool:kei", "'key'"]),
        ("csv:texts", ["caption.column", "csv:texts", "json:FIELD"]),
        ("file:others.parquet:t", ["'t'", "11 samples", "'two'"]),
        ("file:others.parquet:n", ["'n'", "int64"]),
        ("file:others.parquet:tt", ["'tt'", "'t'"]),
    ],
)
def test_a_column_without_captions_is_refused_with_the_way_out(here: Path, said: str, facts: list[str]) -> None:
    pq.write_table(pa.table({"uid": ["a"], "t": ["text"], "n": [1]}), here / "others.parquet")
    write(here / "00001.tar", {"bare": None, "other": {"number": 7}, "x": {"x": "one"}})
    if not facts:
        assert read_texts(here, said)[1]["rows"] == 1
        return
    with pytest.raises(DbpError) as refused:
        read_texts(here, said)
    assert all(fact in str(refused.value) for fact in facts), refused.value


def test_a_file_of_lists_that_repeats_a_uid_is_refused(here: Path) -> None:
    pq.write_table(pa.table({"uid": ["two", "two"], "t": [["a"], ["b"]]}), here / "twice.parquet")
    with pytest.raises(WorldError, match="'two' stands there more than once"):
        read_texts(here, "file:twice.parquet:t")


# the pool's own caption


LISTS = {
    '["a cat", "a tabby"]': ("a cat", "", FIRST_OF_SEVERAL),
    '["", "nan", 3, "a cat"]': ("a cat", "", ""),
    '["one"]': ("one", "", ""),
    "[]": (None, "no caption", ""),
    "[1, null]": (None, "no caption", ""),
    '[" "]': (" ", "empty caption", ""),
}


@pytest.mark.parametrize("value", LISTS)
def test_of_a_list_the_first_caption_is_the_pool_s(value: str) -> None:
    content = f'{{"caption": {value}, "a": [{{"b": {value}}}]}}'.encode()
    assert read_caption(content, "json:caption") == LISTS[value]
    assert read_caption(content, "json:a.b") == LISTS[value]
    assert caption_from(content, "json:caption") == (LISTS[value][0] or "")


def test_a_dot_in_a_field_s_name_goes_before_a_path() -> None:
    content = b'{"a.b": "named", "a": {"b": "nested", "c": "deep"}}'
    assert [caption_from(content, f"json:{name}") for name in ("a.b", "a.c", "a.d")] == ["named", "deep", ""]


def test_index_and_training_read_the_same_first_caption_and_the_index_counts_lists(here: Path) -> None:
    store, node = store_of(here), index(here, "json:texts")
    pool = store.get(node)
    entry = store.entry(node)
    assert entry is not None
    assert pool.is_valid.tolist() == [bool(texts) for _, texts in FIRST.values()] + [False] * 3
    rows = np.flatnonzero(pool.is_valid)
    assert pool.captions(rows) == read_pairs(pool, rows).captions == ["a cat", "one text", "a dog"]
    counts = entry.manifest["counts"]
    assert (counts[FIRST_OF_SEVERAL], counts["usable"]) == (2, 3)


# picking


NUMBERS = np.arange(400) % 5  # texts of each row; a fifth of the rows has none


@pytest.fixture
def mixed(tmp_path: Path) -> MixedCaptions:
    from test_captions import a_pool

    pool = a_pool([f"{row:04d}" for row in range(400)])
    lists = [[f"{row}.{number}" for number in range(count)] for row, count in enumerate(NUMBERS.tolist())]
    return MixedCaptions(pool, write_lists(tmp_path, pool.digest, lists), a_mix("random"), 3)


def a_mix(pick: str, rule: str = "replace", **more: Any) -> CaptionMix:
    given = {"ratio": None, "separator": None, "column": "json:x", "pick": pick} | more
    return CaptionMix(rule, **given)  # type: ignore[arg-type]


def asked(mixed: MixedCaptions, epoch: int, pick: str | None = None) -> list[str]:
    mixed = mixed if pick is None else replace(mixed, rule=a_mix(pick))
    return mixed.captions(np.arange(400), np.full(400, epoch), mixed.pool.uid_hashes)


@pytest.mark.parametrize("pick", ["first", "random", "in_turn", "best"])
def test_each_row_has_one_of_its_own_captions_or_its_original(mixed: MixedCaptions, pick: str) -> None:
    for row, text in enumerate(asked(mixed, 7, pick)):
        own = [f"{row}.{number}" for number in range(NUMBERS[row])]
        assert text in (own or [f"original {row:04d} {row}"])
        assert pick in ("random", "in_turn") or text == (own or [text])[0]
    assert mixed.about(np.arange(400)) == {WITHOUT: 80, SEVERAL: 240}
    assert mixed.about(np.arange(0, 400, 5)) == {WITHOUT: 80}


def test_in_turn_gives_each_caption_once_in_as_many_epochs_and_starts_differ(mixed: MixedCaptions) -> None:
    epochs = [asked(mixed, epoch, "in_turn") for epoch in range(5, 17)]  # 12 epochs: 1, 2, 3 and 4 divide it
    for row, count in enumerate(NUMBERS.tolist()):
        seen = Counter(epoch[row] for epoch in epochs)
        assert set(seen.values()) == {12 // max(count, 1)}
        assert len(seen) == max(count, 1)
        if count:  # in the order of the list
            numbers = [int(epoch[row].split(".")[1]) for epoch in epochs]
            assert all((a + 1) % count == b for a, b in pairwise(numbers))
    first = Counter(text.split(".")[1] for row, text in enumerate(epochs[0]) if NUMBERS[row] == 4)
    assert len(first) == 4


def test_random_takes_each_caption_equally_often(mixed: MixedCaptions) -> None:
    rows = np.flatnonzero(NUMBERS == 4)
    texts = [asked(mixed, epoch) for epoch in range(50)]
    seen = Counter(epoch[row].split(".")[1] for epoch in texts for row in rows)
    total = 50 * len(rows)
    assert all(abs(seen[str(n)] - total / 4) < 4 * np.sqrt(total * 3 / 16) for n in range(4))


@pytest.mark.parametrize("pick", ["random", "in_turn"])
def test_a_pick_depends_on_seed_epoch_uid_and_copy_alone(mixed: MixedCaptions, pick: str) -> None:
    mixed = replace(mixed, rule=a_mix(pick))
    rows, keys = np.arange(400), mixed.pool.uid_hashes
    whole = asked(mixed, 3)
    some = np.array([399, 4, 4, 120])
    assert mixed.captions(some, np.full(4, 3), keys[some]) == [whole[row] for row in some]
    copies = copy_keys(keys, np.ones(400, np.int64))
    assert mixed.captions(rows, np.full(400, 3), copies) != whole
    assert asked(replace(mixed, seed=4), 3) != whole
    assert asked(mixed, 4) != whole


def test_a_pick_is_drawn_apart_from_the_probability_of_the_mix(mixed: MixedCaptions) -> None:
    half = replace(mixed, rule=a_mix("random", "alternate", ratio=0.5))
    both = replace(mixed, rule=a_mix("random", "concatenate", separator="; "))
    whole, found, joined = (asked(one, 2) for one in (mixed, half, both))
    rows = np.flatnonzero(NUMBERS == 4)
    taken = [row for row in rows if found[row] == whole[row]]
    assert 15 < len(taken) < 65
    assert len({whole[row].split(".")[1] for row in taken}) == 4
    assert all(found[row] == f"original {row:04d} {row}" for row in rows if row not in taken)
    assert all(joined[row] == f"original {row:04d} {row}; {whole[row]}" for row in rows)


def test_tokens_are_kept_where_no_epoch_picks_anew() -> None:
    assert [a_mix(pick).is_fixed for pick in ("first", "best", "random", "in_turn")] == [True, True, False, False]
    assert a_mix("random", "alternate", ratio=0.0).is_fixed
    assert a_mix("random", "original").is_fixed
    assert not a_mix("in_turn", "alternate", ratio=1.0).is_fixed


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"pick": "firts"}, ["caption.pick='firts'", "'first'"]),
        ({"pick": "best", "file": "f.parquet"}, ["caption.pick='best'", "caption.column=file:PATH:COLUMN"]),
        ({"rule": "alternate", "ratio": -0.1}, ["caption.ratio=-0.1", "from 0 to 1"]),
        ({"rule": "alternate", "ratio": 1.01}, ["caption.ratio=1.01", "from 0 to 1"]),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], facts: list[str]) -> None:
    given = {"rule": "replace", "ratio": None, "separator": None, "column": "json:x"} | settings
    with pytest.raises(ConfigError) as refused:
        build(given, CaptionMix, "caption")
    assert all(fact in str(refused.value) for fact in facts), refused.value


def test_a_file_of_lists_at_run_time_is_picked_from_and_a_text_stays_what_it_was(tmp_path: Path) -> None:
    from test_captions import a_pool

    pool, file = a_pool(["a", "b", "c"]), tmp_path / "f.parquet"
    table = {"uid": ["c", "a"], "lists": [["x", "y"], ["z"]], "texts": ["nan", "z"], "n": [1, 2]}
    pq.write_table(pa.table(table), file)
    rule = a_mix("in_turn", column="lists", file=str(file))
    opened = rule.open(pool, tmp_path, 0, Ranks())
    found = [opened.captions(np.arange(3), np.full(3, e), pool.uid_hashes) for e in (0, 1)]
    assert [{epoch[row] for epoch in found} for row in range(3)] == [{"z"}, {"original b 1"}, {"x", "y"}]
    plain = replace(rule, column="texts", pick="first").open(pool, tmp_path, 0, Ranks())
    assert plain.captions(np.arange(3), np.zeros(3, np.int64), pool.uid_hashes) == ["z", "original b 1", "nan"]
    with pytest.raises(ConfigError, match=r"'n' holds int64.*column of\s+texts"):
        import_captions(tmp_path, pool, str(file), "n")


# the best of several


@dataclass(frozen=True)
class Angles(Encoder):
    """An image is at 0 degrees; a text is at as many degrees as its first number says, and long by its length."""

    batch_size: int = runtime(3)

    def identity(self) -> dict[str, Any]:
        return {}

    def load(self) -> Tower:
        def texts(batch: list[str]) -> np.ndarray:
            degrees = np.array([float(re.findall(r"-?[\d.]+", text)[0]) for text in batch])
            lengths = np.array([len(text) for text in batch])
            turned = np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1)
            return (turned * lengths[:, None]).astype(np.float32)

        return Tower(
            preprocess=lambda image: torch.tensor([1.0, 0.0]),
            encode_images=lambda batch: batch.numpy().astype(np.float32),
            encode_texts=texts,
        )


ANGLES = {
    "plain": ["40", "-10 long", "20"],
    "tie": ["30", "-30", "30 again"],
    "one": ["77"],
    "none": [],
    "last": ["9", "8", "7"],
    "broken": ["9", "8"],
}


def best_of(here: Path, angles: dict[str, list[str]] = ANGLES, rows_per_part: int = 1) -> Node:
    """The best of the captions of two shards of three samples."""
    keys = list(angles)
    for number in (0, 1):
        write(here / f"{number:05d}.tar", {k: {"texts": angles[k]} for k in keys[3 * number : 3 * number + 3]})
    pool = index(here)
    sides: Any = {
        side: Embed(Angles(), side, rows_per_part).bind(pool=pool)  # type: ignore[arg-type]
        for side in ("image", "text")
    }
    return Offers("caption", {"pool": pool, **sides}).bind(BestText(ReadTexts.of("json:texts", "x")))


def test_the_best_caption_has_the_highest_cosine_and_of_equal_ones_the_first(here: Path) -> None:
    node = best_of(here)
    store = store_of(here)
    found = store.get(node)
    assert found.of(np.arange(6)) == ["-10 long", "30", "77", None, "7", "8"]
    entry = store.entry(node)
    assert entry is not None
    assert entry.manifest["counts"] == {
        "rows": 5, WITHOUT: 1, SEVERAL: 4, "not the first": 3
    }  # fmt: skip
    assert found.num_several == 0
    vectors = store.get(node.inputs["vectors"])
    assert len(vectors.rows) == 11  # a row of one caption has nothing to compare


def test_the_best_is_that_of_a_plain_loop_over_stored_vectors_for_parts_of_any_size(here: Path) -> None:
    rng = np.random.default_rng(0)
    near = {key: rng.uniform(20, 70) + rng.uniform(0, 0.03, 60) for key in ANGLES}
    angles = {key: [f"{angle:.4f}" for angle in own] for key, own in near.items()}

    def stored(text: str) -> tuple[float, float]:
        x, y = (float(np.float16(np.float32(f(np.deg2rad(float(text)))))) for f in (np.cos, np.sin))
        return x, y

    def cosine(text: str) -> float:
        """Of what is left of a text's direction in fp16."""
        return stored(text)[0] / float(np.hypot(*stored(text)))

    expected = [max(texts, key=cosine) for texts in angles.values()]
    assert expected != [max(texts, key=lambda text: stored(text)[0]) for texts in angles.values()]
    for rows_per_part in (1, 1000):
        found = Store(here / f"store-{rows_per_part}").get(best_of(here, angles, rows_per_part)).of(np.arange(6))
        assert [cosine(str(text)) for text in found] == [cosine(text) for text in expected]


def test_where_the_image_has_no_vector_the_first_caption_is_taken_and_counted(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = best_of(here)
    from dbp.data.images import Undecodable

    decode = Pool.decode

    def half(pool: Pool, content: bytes) -> Any:
        if content == png(2) and half.count:  # the last image of a shard
            raise Undecodable("no pixels")
        return decode(pool, content)

    half.count = 1  # type: ignore[attr-defined]
    monkeypatch.setattr(Pool, "decode", half)
    store = store_of(here)
    assert store.get(node).of(np.arange(6)) == ["-10 long", "30", "77", None, "7", "9"]
    entry = store.entry(node)
    assert entry is not None
    assert entry.manifest["counts"][NO_VECTOR] == 1


# the command line's config, and training


GLYPHS = ["pool=webdataset", "pool.shards=*.tar", "model=glyphs", "train=glyphs", "select=uniform", "dedup=none"]
GLYPHS += ["budget.keep_fraction=0.5"]


def trained(*choices: str) -> tuple[Node, dict[str, Node]]:
    config = compose("train", overrides([*GLYPHS, *choices]))
    nodes = recipe(read(config))
    return node_of(config, nodes), nodes


def test_a_run_names_its_column_by_what_it_says_or_by_its_name(here: Path) -> None:
    store = store_of(here)
    spec, _ = trained("caption=column", "caption.column=json:texts")
    named, nodes = trained("caption=column", "caption.column=captions", "+columns.captions=json:texts")
    others, _ = trained("caption=column", "caption.column=json:nested.raw")
    store.get(nodes["index"])
    assert store.key(spec) == store.key(named)
    assert store.key(spec) != store.key(others)
    assert "columns.captions" not in nodes  # no table of kept rates by caption
    assert isinstance(spec.inputs["refined"].stage, ReadTexts)
    for pick in ("random", "in_turn"):
        other, _ = trained("caption=column", "caption.column=json:texts", f"caption.pick={pick}")
        assert store.key(other) != store.key(spec)
        assert store.key(other.inputs["refined"]) == store.key(spec.inputs["refined"])  # read once for all
    assert spec.inputs["refined"] in shared_nodes(trained_nodes(spec))


def trained_nodes(train: Node) -> dict[str, Node]:
    return {"train": train, "select": train.inputs["keep"]}


def test_the_best_needs_a_network_and_reuses_the_images_of_encoder_score(here: Path) -> None:
    choices = ["caption=column", "caption.column=json:texts", "caption.pick=best"]
    node, nodes = trained(*choices)
    made = node.inputs["refined"]
    assert isinstance(made.stage, BestText)
    store = store_of(here)
    store.get(nodes["index"])
    assert store.key(made.inputs["image"]) == store.key(nodes["score"].inputs["image"])
    with pytest.raises(ConfigError) as refused:
        trained(*choices, "encoder@encoder.score=datacomp_l14")
    assert all(fact in str(refused.value) for fact in ("caption.pick=best", "encoder.score", "caption.pick=first"))


@pytest.mark.parametrize(
    ("choices", "facts"),
    [
        ([], ["caption.column is not set", "json:FIELD"]),
        (["caption.column=texs", "+columns.texts=json:texts"], ["caption.column='texs'", "'texts'"]),
        (["caption.column=texts"], ["caption.column='texts'", "no columns", "json:FIELD"]),
        (["caption.column=jsn:texts"], ["caption.column='jsn:texts'", "json:FIELD"]),
        (["caption.column=file:gone.parquet:x"], ["gone.parquet", "cannot be read"]),
        (["caption.column=file:00000.parquet:texts"], ["'uid'", "key, size"]),
    ],
)
def test_a_column_that_is_not_there_is_refused_before_any_work(
    here: Path, choices: list[str], facts: list[str]
) -> None:
    with pytest.raises(DbpError) as refused:
        trained("caption=column", *choices)
    assert all(fact in str(refused.value) for fact in facts), refused.value


class Lettered(World):
    """The pool of test_training_runs, with three captions in a file for every other row."""

    def __init__(self, root: Path, shard: Path) -> None:
        super().__init__(root, shard)
        uids = [f"{row:05d}" for row in range(0, 40, 2)]
        file = root / "captions.parquet"
        pq.write_table(pa.table({"uid": uids, "texts": [[f"{u} {n} word" for n in "abc"] for u in uids]}), file)
        self.texts = ReadTexts.of(f"file:{file}:texts", "caption.column").bind(pool=self.pool)

    def run(self, pick: str, **settings: Any) -> dict[str, Any]:
        stage = replace(TRAIN, captions=a_mix(pick), **settings)
        node = stage.bind(pool=self.pool, keep=self.keep(), refined=self.texts)
        return self.manifest(self.store.get(node))

    def mixed_pairs(self, pick: str, cache: bool = False) -> Pairs:
        pairs = self.pairs(cache=False)
        made = a_mix(pick).open(pairs.subset.pool, Path(), 3, Ranks(), self.store.get(self.texts))
        return replace(pairs, captions=made, cache=cache)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lettered") / "00000.tar"
    write(path, {f"{row:05d}": None for row in range(40)})
    return path


@pytest.mark.parametrize("pick", ["random", "in_turn"])
def test_batches_have_the_same_captions_for_any_ranks_and_workers(tmp_path: Path, shard: Path, pick: str) -> None:
    world = Lettered(tmp_path, shard)
    alone = batches(world.mixed_pairs(pick))
    other = batches(world.mixed_pairs(pick), num_workers=2)
    assert all(torch.equal(one["tokens"], same["tokens"]) for one, same in zip(alone, other, strict=True))
    epochs = [torch.cat([b["tokens"][b["rows"].argsort()] for b in alone[at : at + 5]]) for at in (0, 5)]
    assert not torch.equal(*epochs)
    with pytest.raises(ConfigError, match=rf"train\.cache=true: with caption\.pick={pick}.*train\.cache=false"):
        world.mixed_pairs(pick, cache=True)


def test_tokens_of_the_first_caption_are_kept_as_they_would_be_read(tmp_path: Path, shard: Path) -> None:
    world = Lettered(tmp_path, shard)
    plain, cached = batches(world.mixed_pairs("first")), batches(world.mixed_pairs("first", cache=True))
    assert all(torch.equal(one["tokens"], same["tokens"]) for one, same in zip(plain, cached, strict=True))


def test_a_run_counts_the_rows_that_keep_their_original_and_says_so(
    tmp_path: Path, shard: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = Lettered(tmp_path, shard)
    with caplog.at_level(logging.INFO, logger="dbp"):
        made = world.run("random")
    assert (made["counts"][WITHOUT], made["counts"][SEVERAL]) == (20, 20)
    assert "20 of 40 kept rows have no other caption and keep their original" in caplog.text
    assert made["parameters"]["captions"]["pick"] == "random"


def test_a_kept_subset_and_a_subset_of_it_meet_the_same_captions(tmp_path: Path, shard: Path) -> None:
    world = Lettered(tmp_path, shard)
    pool = world.store.get(world.pool)
    made = a_mix("random").open(pool, tmp_path, 3, Ranks(), world.store.get(world.texts))

    def captions(rows: tuple[int, ...]) -> dict[int, str]:
        subset = Subset.of(pool, world.store.get(Chosen(rows).bind(pool=world.pool)))
        texts = made.captions(subset.rows, np.full(len(subset), 5), subset.keys)
        return dict(zip(subset.rows.tolist(), texts, strict=True))

    many, few = captions(tuple(range(0, 40, 1))), captions((2, 6, 7, 30))
    assert few == {row: many[row] for row in few}
