"""Columns: read from json, Parquet, metadata and files; filters, scores and kept rates by them."""

import io
import json
import re
import shlex
import shutil
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest
from test_selection import pool_of
from test_write_shards import png

from dbp.__main__ import main
from dbp.data.column import Column
from dbp.data.columns import Columns
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.store import Store
from dbp.engine.work import Part
from dbp.errors import ConfigError, DbpError, PoolError, WorldError
from dbp.pools import values
from dbp.pools.datacomp import Metadata
from dbp.pools.index import Index
from dbp.pools.rates import kept_rates, lines_of
from dbp.pools.values import ReadColumn

POOL = ["pool.shards=*.tar", "dedup=none", "select=uniform", "budget.keep_fraction=0.5"]


def write(path: Path, contents: list[Any], start: int = 0) -> None:
    """A tar of samples, each with the json of a mapping; none where it is None."""
    with tarfile.open(path, "w") as tar:
        for number, content in enumerate(contents, start):
            members = {"png": png(number), "txt": b"a caption"}
            if content is not None:
                members["json"] = json.dumps(content).encode()
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:05d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards of eight samples: languages, numbers, some missing; a Parquet beside the first."""
    first = [{"lang": "de" if i % 2 else "en", "size": {"width": i * 1.5}, "mixed": i} for i in range(8)]
    first[3]["lang"], first[4]["size"]["width"] = None, float("nan")
    second = [{"lang": "fr", "size": {"width": 100 + i}, "mixed": "text"} for i in range(7)]
    write(tmp_path / "00000.tar", first)
    write(tmp_path / "00001.tar", [*second, None], 8)
    beside = {"key": [f"{i:05d}" for i in (5, 1, 0)], "similarity": [0.5, 0.1, None]}
    pq.write_table(pa.table(beside), tmp_path / "00000.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pool(here: Path) -> Pool:
    shards = [str(here / f"{i:05d}.tar") for i in (0, 1)]
    return Store(here / "store").get(Index("key", "txt", 10**6, shards=shards).node())


def read(here: Path, said: str) -> Column:
    shards = [str(here / f"{i:05d}.tar") for i in (0, 1)]
    index = Index("key", "txt", 10**6, shards=shards).node()
    return Store(here / "store").get(ReadColumn.of(said, "columns.x").bind(pool=index))


def texts(column: Column) -> list[str | None]:
    assert column.codes is not None
    return [None if code < 0 else column.texts[code] for code in column.codes.tolist()]


def test_a_field_of_the_json_is_a_column_with_missing_values_explicit(here: Path) -> None:
    found = texts(read(here, "json:lang"))
    assert found == ["en", "de", "en", None, "en", "de", "en", "de", *["fr"] * 7, None]


def test_a_nested_field_of_numbers_is_reached_by_its_path_and_nan_is_no_value(here: Path) -> None:
    numbers = read(here, "json:size.width").numbers
    assert numbers is not None
    expected = [0, 1.5, 3, 4.5, None, 7.5, 9, 10.5, *range(100, 107), None]
    assert [None if np.isnan(x) else x for x in numbers.tolist()] == expected


def test_the_parquet_beside_a_tar_is_joined_by_key(here: Path) -> None:
    numbers = read(here, "parquet:similarity").numbers
    assert numbers is not None
    assert {row: x for row, x in enumerate(numbers.tolist()) if not np.isnan(x)} == {5: 0.5, 1: 0.1}


def test_a_column_of_the_index_and_a_file_joined_by_uid_are_columns(here: Path) -> None:
    assert set(texts(read(here, "pool:format"))) == {"png"}
    table = {"uid": ["00009", "other", "00002"], "topic": ["cats", "dogs", "birds"]}
    pq.write_table(pa.table(table), here / "topics.parquet")
    found = texts(read(here, "file:topics.parquet:topic"))
    assert {row: text for row, text in enumerate(found) if text} == {9: "cats", 2: "birds"}


@pytest.mark.parametrize(
    ("said", "error", "facts"),
    [
        ("json:mixed", PoolError, ["numbers", "00000.tar", "texts", "00001.tar", "file:PATH:COLUMN"]),
        ("json:nothing", ConfigError, ["json:nothing", "16 rows"]),
        ("json:size", ConfigError, ["size", "dict", "exif.make"]),
        ("pool:langage", ConfigError, ["pool:langage", "no such column"]),
        ("csv:lang", ConfigError, ["columns.x", "csv:lang", "json:FIELD"]),
        ("file:lang", ConfigError, ["columns.x", "file:PATH:COLUMN"]),
        ("parquet:similarty", ConfigError, ["similarty", "similarity"]),
        ("file:00000.parquet:similarity", ConfigError, ["uid", "key"]),
    ],
)
def test_what_is_no_column_is_said_with_the_way_out(
    here: Path, said: str, error: type[DbpError], facts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        read(here, said)
    assert all(fact in str(caught.value) for fact in facts), caught.value


def test_a_file_that_names_no_sample_of_the_pool_is_refused(here: Path) -> None:
    pq.write_table(pa.table({"uid": ["a", "b"], "x": [1, 2]}), here / "x.parquet")
    with pytest.raises(WorldError, match="2 names"):
        read(here, "file:x.parquet:x")


def test_a_column_added_later_leaves_the_pool_as_it_is(here: Path, pool: Pool) -> None:
    digest = pool.digest
    read(here, "json:lang")
    again = Store(here / "store").get(Index("key", "txt", 10**6, shards=pool.shards).node())
    assert again.digest == digest


def test_filters_and_scores_read_columns_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["+columns.lang=json:lang", "+columns.width=json:size.width"]
    every = ["budget.keep_fraction=1", "budget.of=filtered"]
    words = ["filter=column", "filter.column=lang", "filter.values=[en,fr]"]
    assert main(["curate", *POOL, *named, *words, *every]) == 0
    output = capsys.readouterr().out
    assert "kept 11 of 16 rows" in output
    assert "kept by lang" in output
    assert "kept by width" in output
    assert main(["curate", *POOL, *named, "filter=column", "filter.column=lang", *every]) == 0
    assert "kept 14 of 16 rows" in capsys.readouterr().out
    limits = ["filter=column", "filter.column=width", "filter.minimum=7.5", "filter.maximum=101"]
    assert main(["curate", *POOL, *named, *limits, *every]) == 0
    assert "kept 5 of 16 rows" in capsys.readouterr().out
    top = ["score=from_column", "score.column=width", "select=top_score"]
    assert main(["curate", *POOL, *named, *top, "budget.num_kept=3", "budget.keep_fraction=null"]) == 0
    assert "kept 3 of 16 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["filter=column", "filter.column=land", "filter.values=[en]"], ["filter.column='land'", "'lang'"]),
        (["filter=column", "filter.column=lang", "filter.values=[ne]"], ["'ne'", "lang"]),
        (["filter=column", "filter.column=lang", "filter.minimum=1"], ["lang", "texts", "values"]),
        (["filter=column", "filter.column=lang", "filter.values=[en]", "filter.minimum=1"], ["values", "minimum"]),
        (["score=from_column", "score.column=lang", "select=top_score"], ["lang", "texts"]),
    ],
)
def test_a_column_that_does_not_fit_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], facts: list[str]
) -> None:
    assert main(["curate", *POOL, "+columns.lang=json:lang", *words]) == 1
    said = capsys.readouterr().err
    assert all(fact in said for fact in facts), said


# what changes, what cannot be held, and how much


def test_a_column_is_read_again_when_the_json_or_the_parquet_changes(here: Path) -> None:
    assert texts(read(here, "json:lang"))[0] == "en"
    first = [{"lang": "nl"} for _ in range(8)]
    write(here / "00000.tar", first)  # images and captions are equal, and so is the pool's digest
    assert texts(read(here, "json:lang"))[:8] == ["nl"] * 8
    assert read(here, "parquet:similarity").numbers[5] == 0.5  # type: ignore[index]
    pq.write_table(pa.table({"key": ["00005"], "similarity": [0.75]}), here / "00000.parquet")
    assert read(here, "parquet:similarity").numbers[5] == 0.75  # type: ignore[index]
    pq.write_table(pa.table({"key": ["00009"], "similarity": [0.25]}), here / "00001.parquet")
    assert read(here, "parquet:similarity").numbers[9] == 0.25  # type: ignore[index]


def test_tars_that_are_joined_with_metadata_have_no_columns_of_their_own(here: Path) -> None:
    rows = [{"uid": f"{i:032x}", "lang": "en"} for i in range(4)]
    write(here / "a.tar", rows[:2])
    write(here / "b.tar", rows[2:], 2)
    (here / "metadata").mkdir()
    for name, own in (("0", (0, 2)), ("1", (1, 3))):  # each part has rows of both tars
        table = {"uid": [rows[i]["uid"] for i in own], "text": ["a caption"] * 2, "lang": ["en", "de"]}
        sizes = {"original_width": [8] * 2, "original_height": [8] * 2}
        pq.write_table(pa.table(table | sizes), here / f"metadata/{name}.parquet")
    shards = [str(here / "a.tar"), str(here / "b.tar")]
    node = Metadata("txt", 10**6, ("lang",), metadata=str(here / "metadata"), shards=shards).node()
    store = Store(here / "store")
    for kind in ("json", "parquet"):
        with pytest.raises(ConfigError, match=r"pool:NAME.*file:PATH:COLUMN"):
            store.get(ReadColumn.of(f"{kind}:lang", "columns.x").bind(pool=node))
    assert texts(store.get(ReadColumn.of("pool:lang", "columns.x").bind(pool=node))) == ["en", "de"] * 2


@pytest.mark.parametrize("held", [[[1], [2]], [{"a": 1}, {"a": 2}]])
def test_lists_and_structs_of_a_file_are_refused(here: Path, held: list[Any]) -> None:
    pq.write_table(pa.table({"uid": ["00000", "00001"], "x": held}), here / "x.parquet")
    with pytest.raises(ConfigError, match=r"x holds (list|dict) values.*numbers or texts"):
        read(here, "file:x.parquet:x")


@pytest.mark.parametrize(("good", "bad"), [(1.5, 10**400), ("en", "half \ud83d")])
def test_values_that_cannot_be_held_are_counted_as_none(here: Path, good: Any, bad: Any) -> None:
    write(here / "00000.tar", [{"x": bad}, {"x": good}, *[None] * 6])
    node = Index("key", "txt", 10**6, shards=[str(here / "00000.tar")]).node()
    store = Store(here / "store")
    node = ReadColumn.of("json:x", "columns.x").bind(pool=node)
    assert store.get(node).has_value.tolist() == [False, True, *[False] * 6]
    entry = store.entry(node)
    assert entry is not None
    assert [n for name, n in entry.manifest["counts"].items() if "cannot be held" in name] == [1]


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize(
    "said", ["json:lang", "json:size.width", "parquet:similarity", "pool:uid", "file:t.parquet:x"]
)
def test_a_column_does_not_depend_on_the_rows_read_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, block: int, said: str
) -> None:
    table = {"uid": [f"{i:05d}" for i in (9, 2, 4)], "x": [None, "b", "a"]}
    pq.write_table(pa.table(table), here / "t.parquet")
    monkeypatch.setattr(values, "BATCH", 7)
    expected = read(here, said)
    monkeypatch.setattr(values, "BATCH", block)
    shards = [str(here / f"{i:05d}.tar") for i in (0, 1)]
    index = Index("key", "txt", 10**6, shards=shards).node()
    found = Store(here / "other").get(ReadColumn.of(said, "columns.x").bind(pool=index))
    assert found.texts == expected.texts
    for one, same in ((found.codes, expected.codes), (found.numbers, expected.numbers)):
        assert (one is None) == (same is None)
        assert one is None or same is None or np.array_equal(one, same, equal_nan=True)


@pytest.mark.parametrize("said", ["pool:uid", "file:t.parquet:x", "json:many"])
def test_a_column_of_too_many_texts_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    pq.write_table(pa.table({"uid": [f"{i:05d}" for i in range(6)], "x": list("abcdef")}), here / "t.parquet")
    write(here / "00000.tar", [{"many": f"text {i}"} for i in range(8)])
    monkeypatch.setattr(values, "MOST_TEXTS", 5)
    with pytest.raises(ConfigError) as caught:
        read(here, said)
    assert all(fact in str(caught.value) for fact in (said.split(":")[0], " 5 ", "file:PATH:COLUMN")), caught.value
    assert any(f" {n} different" in str(caught.value) for n in (6, 8, 16)), caught.value


def test_the_memory_of_reading_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "BATCH", 1024)
    num = 100_000
    names = pa.array([f"text {i % 7}" for i in range(num)])
    pool = Pool(Columns(pa.table({"uid": names})), [], "pool", "txt", 10**6)
    stage = ReadColumn.of("pool:uid", "columns.x")
    tracemalloc.start()
    try:
        stage.make(Part("whole", 0, 1.0), tmp_path, pool)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * num, "a list of all texts takes 60 bytes a row"


# who is pruned


def test_kept_rates_are_those_of_counting_with_wilson_s_interval() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 4, 2000).astype(np.int32)
    valid = rng.random(2000) < 0.9
    kept = valid & (rng.random(2000) < np.array([0.5, 0.5, 0.1, 0.9, 0.5])[codes])
    rates = kept_rates(Column(codes=codes, texts=("a", "b", "c", "d")), valid, kept.astype(float), None).told
    assert {rate.value for rate in rates} == {"a", "b", "c", "d", "(no value)"}
    for rate in rates:
        own = valid & (
            codes == ("a", "b", "c", "d", "(no value)").index(rate.value) if rate.value in "abcd" else codes < 0
        )
        test = binomtest(int(kept[own].sum()), int(own.sum())).proportion_ci(method="wilson")
        assert (rate.rows, rate.kept) == (own.sum(), kept[own].sum())
        assert (rate.low, rate.high) == pytest.approx((test.low, test.high), abs=1e-6)
        assert rate.ratio == pytest.approx(rate.rate / (kept.sum() / valid.sum()))
    assert {rates[0].value, rates[1].value} == {"c", "d"}  # the injected imbalance comes first


def test_draws_count_in_the_ratio_and_numbers_are_cut_into_fifths() -> None:
    column = Column(numbers=np.r_[np.arange(100.0), np.nan])
    weights = np.r_[np.zeros(80), np.full(20, 3.0), 0.0]
    rates = {rate.value: rate for rate in kept_rates(column, np.ones(101, bool), weights, None).told}
    assert len(rates) == 6
    last = next(rate for rate in rates.values() if rate.kept)
    assert (last.kept, last.rate) == (60, 1.0)
    assert last.ratio == pytest.approx(3 / (60 / 101))
    assert sum(rate.rows for rate in rates.values()) == 101


@pytest.mark.parametrize("distinct", [[0, 1], [0.5, 1.5, 2.5, 1e6, 1e6 + 1], list(range(12))])
def test_each_of_few_numbers_is_a_value(distinct: list[float]) -> None:
    numbers = np.repeat(np.array(distinct, float), np.arange(len(distinct)) + 1)
    kept = numbers == distinct[0]
    rates = kept_rates(Column(numbers=numbers), np.ones(len(numbers), bool), kept.astype(float), None).told
    assert {(rate.rows, rate.rate) for rate in rates} == {(n + 1, float(n == 0)) for n in range(len(distinct))}
    assert len({rate.value for rate in rates}) == len(distinct)


@pytest.mark.parametrize("frequent", [0.0, 50.5, 200.0])
def test_a_frequent_number_among_many_is_a_group_of_its_own(frequent: float) -> None:
    numbers = np.r_[np.full(900, frequent), np.arange(1.0, 101)]
    rates = kept_rates(Column(numbers=numbers), np.ones(1000, bool), (numbers == frequent).astype(float), None).told
    assert {rate.rows: rate.rate for rate in rates} == {900: 1.0, 25: 0.0}
    assert next(rate.value for rate in rates if rate.rows == 900) == f"{frequent:g}"
    assert len(rates) == 5


def test_with_weights_values_are_ranked_by_draws_and_the_table_shows_them() -> None:
    column = Column(codes=np.repeat(np.arange(3, dtype=np.int32), [100, 100, 100]), texts=("a", "b", "c"))
    weights = np.repeat([0.5, 2.0, 0.75], 100)  # every row is kept
    rates = kept_rates(column, np.ones(300, bool), weights, 2).told
    assert [(rate.value, rate.draws, rate.rate) for rate in rates] == [("b", 2.0, 1.0), ("a", 0.5, 1.0)]
    first, *lines = lines_of("lang", rates, 1.0, 325 / 300)
    assert "1.083 draws a row" in first
    assert "2 draws a row" in lines[0]
    assert not any("draws" in line for line in lines_of("lang", rates, 1.0))


def test_a_pool_of_made_up_rows_has_no_tars_to_read_from() -> None:
    with pytest.raises(ConfigError, match="pool:NAME"):
        ReadColumn.of("json:x", "columns.x").parts(pool=pool_of(["a", "b"]))


# what the documentation shows, as it stands there


WIDTHS = [800, 150, 400, 900, None, 300, 640, 640]  # pairs of equal vectors: rows 0 and 1, 2 and 3, …


@pytest.fixture
def originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight images of equal size with the sizes of their originals; each two neighbours have equal vectors."""
    contents = [{"original_width": w, "original_height": 199 if w == 900 else 600} for w in WIDTHS]
    write(tmp_path / "00000.tar", [{**one, "language": "en"} for one in contents])
    vectors = np.repeat(np.eye(4, 6, dtype=np.float32), 2, axis=0)
    np.save(tmp_path / "v.npy", vectors)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(part: str) -> list[str]:
    """The settings of the command of the documentation that holds some words."""
    text = (Path(__file__).parents[2] / "docs/curation.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("    dbp curate … ") and part in line]
    return shlex.split(line)[3:]


def kept_by(words: list[str]) -> list[int]:
    vectors = [f"encoder.{use}.images=v.npy" for use in ("dedup", "cluster", "score")]
    few = ["encoder=precomputed", *vectors, "dedup.num_clusters=1"] if "dedup=semdedup" in words else ["dedup=none"]
    assert main(["curate", "pool.shards=*.tar", "select=none", *few, *words]) == 0
    (folder,) = Path("store/select").glob("*")
    return KeepList.load(folder).rows.tolist()


def test_the_smaller_side_of_the_original_filters_as_the_documentation_says(originals: Path) -> None:
    assert kept_by(shown("filter=original_size")) == [0, 2, 5, 6, 7]


def test_any_column_chooses_which_of_near_duplicates_stays(originals: Path) -> None:
    assert kept_by(shown("dedup.keep=score")) == [0, 3, 5, 6]  # no width loses to one, and ties go to the lower row
    shutil.rmtree("store")
    narrow = [*shown("dedup.keep=score"), "scores.wide.higher_is_better=false"]
    assert kept_by(narrow) == [1, 2, 5, 6]


def test_without_the_column_the_size_filter_says_what_to_name(
    originals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in shown("filter=original_size") if "columns.height" not in word]
    assert main(["curate", *POOL, *words]) == 1
    said = capsys.readouterr().err
    assert all(fact in said for fact in ("'height'", "It can be: width", "+columns.height=json:height")), said


# what is wrong is said before any work


@pytest.mark.parametrize(
    ("said", "facts"),
    [
        ("json:langg", ["json:langg", "16 rows", "Did you mean 'lang'?"]),
        ("json:size.widht", ["json:size.widht", "Did you mean 'size.width'?"]),
        ("json:mixed", ["numbers", "texts"]),
        ("parquet:similarty", ["Did you mean 'similarity'?"]),
        ("file:gone.parquet:topic", ["gone.parquet", "no such file"]),
        ("pool:widht", ["Did you mean 'width'?"]),
    ],
)
def test_a_column_that_cannot_be_read_stops_a_curation_before_it_chooses(
    here: Path, capsys: pytest.CaptureFixture[str], said: str, facts: list[str]
) -> None:
    assert main(["curate", *POOL, f"+columns.x={said}"]) == 1
    message = capsys.readouterr().err
    assert all(fact in message for fact in facts), message
    assert not (here / "store/select").exists()


def test_a_shard_without_the_field_is_counted_and_not_an_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here / "00001.tar", [{"other": 1}] * 8, 8)
    assert main(["curate", *POOL, "+columns.lang=json:lang"]) == 0
    said = capsys.readouterr().out
    assert "rows 7, without value 9, values 2" in said
    assert re.search(r"\(no value\) +9 rows", said)


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["filter.column=lang", "filter.values=[]"], ["filter.values=[]", "null"]),
        (["filter.column=lang", "filter.minimum=5", "filter.maximum=2"], ["filter.maximum=2", "minimum=5"]),
        ([], ["filter.column is not set", "It can be: lang", "+columns.NAME="]),
    ],
)
def test_limits_that_nothing_can_meet_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], facts: list[str]
) -> None:
    assert main(["curate", *POOL, "+columns.lang=json:lang", "filter=column", *words]) == 1
    said = capsys.readouterr().err
    assert all(fact in said for fact in facts), said
    assert not (here / "store").exists()


def test_a_mixture_that_does_not_fit_its_column_stops_a_run_before_it_curates(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = ["mixture=by_column", "mixture.column=lang", "mixture.values={en: 2, ger: 1}", "model=glyphs"]
    assert (
        main(["train", *POOL, "+columns.lang=json:lang", *mixture, "train.samples_seen=8", "train.batch_size=4"])
        == 1
    )
    said = capsys.readouterr().err
    assert all(fact in said for fact in ("mixture.values", "'ger'", "column lang")), said
    assert not (here / "store/select").exists()
