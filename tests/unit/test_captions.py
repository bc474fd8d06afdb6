"""Refined captions: imported by uid, mixed by a keyed rule, originals never lost."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dbp.config import build
from dbp.data.captions import Captions, import_captions, write_captions
from dbp.data.columns import Columns
from dbp.data.pool import Pool, hash_64
from dbp.engine.stage import parameters
from dbp.errors import ConfigError, StoreError, WorldError
from training.feed.captions import CaptionMix, MixedCaptions
from training.feed.order import copy_keys
from training.resume.ranks import Ranks

UIDS = ["a", "b", "c", "d", "e", "c", "f"]  # two rows share a uid
REFINED = {"c": "a red cat", "a": "Zürich 東京", "x": "of another pool", "e": "", "f": None}


def a_pool(uids: list[str], digest: str = "0" * 64) -> Pool:
    hashes = pa.array([hash_64(uid.encode()) for uid in uids], pa.uint64())
    texts = [f"original {uid} {row}" for row, uid in enumerate(uids)]
    table = pa.table({"uid": uids, "uid_hash": hashes, "text": texts})
    return Pool(Columns(table), [], digest, "txt", 10**6)


@pytest.fixture
def pool() -> Pool:
    return a_pool(UIDS)


def table_of(path: Path, uids: list[str], texts: list[Any]) -> str:
    pq.write_table(pa.table({"uid": uids, "refined": texts}), path, row_group_size=2)
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return table_of(tmp_path / "refined.parquet", [*REFINED], [*REFINED.values()])


def imported(folder: Path, pool: Pool, file: str) -> Captions:
    folder.mkdir(exist_ok=True)
    return import_captions(folder, pool, file, "refined")


def test_captions_come_by_uid_in_the_order_of_the_rows_asked_for(
    tmp_path: Path, pool: Pool, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ["Zürich 東京", None, "a red cat", None, None, "a red cat", None]
    monkeypatch.setattr("dbp.data.captions.BLOCK", 2)
    found = imported(tmp_path / "made", pool, file)
    assert found.of(np.arange(7)) == expected
    assert found.of(np.array([5, 0, 0, 3])) == ["a red cat", "Zürich 東京", "Zürich 東京", None]
    assert (found.num_rows, found.num_refined) == (7, 3)
    assert pickle.loads(pickle.dumps(found)).of(np.arange(7)) == expected
    assert len(pickle.dumps(found)) < 500  # a worker maps the files, it does not get a copy


def test_what_is_written_row_by_row_is_read_again(tmp_path: Path) -> None:
    texts = ["one", None, "", "två", "x" * 100_000, "half a pair \ud800"]
    found = write_captions(tmp_path, "0" * 64, texts)
    assert found.of(np.arange(6)) == ["one", None, None, "två", "x" * 100_000, "half a pair ?"]
    assert write_captions(tmp_path, "0" * 64, [None, ""]).of(np.arange(2)) == [None, None]


def test_captions_that_were_cut_short_are_refused(tmp_path: Path, pool: Pool, file: str) -> None:
    imported(tmp_path / "made", pool, file)
    texts = tmp_path / "made" / "texts.bin"
    os.truncate(texts, texts.stat().st_size - 1)
    with pytest.raises(StoreError, match="7 rows and 31 bytes do not fit it"):
        Captions.load(tmp_path / "made")
    with pytest.raises(StoreError, match=r"holds no whole captions.*Make or import them again"):
        Captions.load(tmp_path)


def test_a_file_that_does_not_fit_is_named(tmp_path: Path, pool: Pool) -> None:
    path = tmp_path / "bad.parquet"
    with pytest.raises(WorldError, match="uid 'c' stands there more than once"):
        imported(tmp_path, pool, table_of(path, ["c", "b", "a", "c"], ["1", "2", "3", "4"]))
    with pytest.raises(WorldError, match="uid 'b' stands there more than once"):
        imported(tmp_path, pool, table_of(path, ["c", "b", "b"], ["1", "2", "3"]))
    with pytest.raises(ConfigError, match=r"no caption in column 'refined' for any of .*7 samples"):
        imported(tmp_path, pool, table_of(path, ["z"], ["text"]))
    with pytest.raises(ConfigError, match=r"no column 'refind'\. Did you mean 'refined'\?"):
        import_captions(tmp_path, pool, str(path), "refind")
    path.write_text("uid\n")
    with pytest.raises(WorldError, match=r"bad\.parquet cannot be read as Parquet"):
        imported(tmp_path, pool, str(path))


def opened(folder: Path, pool: Pool, file: str | None, rule: str, **settings: Any) -> MixedCaptions:
    given = {"ratio": None, "separator": None, "column": "refined", "file": file} | settings
    return CaptionMix(rule, **given).open(pool, folder, 3, Ranks())  # type: ignore[arg-type]


def asked(mixed: MixedCaptions, rows: list[int], epoch: int = 0) -> list[str]:
    at = np.array(rows)
    return mixed.captions(at, np.full(len(at), epoch), mixed.pool.uid_hashes[at])


def test_each_rule_gives_its_text_and_the_original_where_none_is_refined(
    tmp_path: Path, pool: Pool, file: str
) -> None:
    rows = [5, 1, 2]
    originals = ["original c 5", "original b 1", "original c 2"]
    assert asked(opened(tmp_path, pool, None, "original"), rows) == originals
    assert asked(opened(tmp_path, pool, file, "original"), rows) == originals
    replaced = ["a red cat", "original b 1", "a red cat"]
    assert asked(opened(tmp_path, pool, file, "replace"), rows) == replaced
    joined = asked(opened(tmp_path, pool, file, "concatenate", separator=". "), rows)
    assert joined == ["original c 5. a red cat", "original b 1", "original c 2. a red cat"]
    assert asked(opened(tmp_path, pool, file, "alternate", ratio=1.0), rows) == replaced
    assert asked(opened(tmp_path, pool, file, "alternate", ratio=0.0), rows) == originals


@pytest.fixture
def many(tmp_path: Path) -> MixedCaptions:
    uids = [f"{i:04d}" for i in range(2000)]
    file = table_of(tmp_path / "many.parquet", uids, ["refined"] * 2000)
    return opened(tmp_path, a_pool(uids), file, "alternate", ratio=0.3)


def test_alternating_takes_the_share_it_is_told_anew_in_each_epoch(many: MixedCaptions) -> None:
    rows = list(range(2000))
    taken = np.array([[text == "refined" for text in asked(many, rows, e)] for e in (0, 1)])
    assert np.abs(taken.mean(axis=1) - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 2000)
    assert abs((taken[0] & taken[1]).mean() - 0.09) < 4 * np.sqrt(0.09 * 0.91 / 2000)


def test_a_draw_depends_on_epoch_key_and_seed_and_on_nothing_else(many: MixedCaptions) -> None:
    rows = list(range(2000))
    whole = asked(many, rows, 1)
    some = [1999, 5, 800, 5]
    assert asked(many, some, 1) == [whole[row] for row in some]
    at = np.arange(2000)
    epochs, keys = np.ones(2000, np.int64), many.pool.uid_hashes
    assert many.captions(at, epochs, copy_keys(keys, epochs)) != whole  # a copy draws for itself
    other = MixedCaptions(many.pool, many.refined, many.rule, 4)
    assert asked(other, rows, 1) != whole


def test_the_file_is_imported_once_and_again_when_its_content_changes(
    tmp_path: Path, pool: Pool, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(folder: Path, *rest: Any) -> Captions:
        calls.append(folder.name)
        return import_captions(folder, *rest)

    monkeypatch.setattr("training.feed.captions.import_captions", counted)
    for _ in range(2):
        assert asked(opened(tmp_path, pool, file, "replace"), [2]) == ["a red cat"]
    table_of(Path(file), ["c"], ["a blue dog"])
    assert asked(opened(tmp_path, pool, file, "replace"), [2]) == ["a blue dog"]
    assert len(calls) == 2


def test_captions_of_another_pool_are_refused(tmp_path: Path, pool: Pool, file: str) -> None:
    captions = imported(tmp_path / "made", pool, file)
    rule = CaptionMix("replace", None, None, "refined", file)
    with pytest.raises(ConfigError, match="the pool with digest 000000000000, and this pool has 1"):
        MixedCaptions(a_pool(UIDS, "1" * 64), captions, rule, 0)


def test_only_what_decides_the_text_enters_the_key(tmp_path: Path, file: str) -> None:
    def key(rule: str, path: str | None = file, **settings: Any) -> dict[str, Any]:
        given = {"ratio": None, "separator": None, "column": "refined"} | settings
        return parameters(CaptionMix(rule, **given, file=path))  # type: ignore[arg-type]

    copied = tmp_path / "copied.parquet"
    copied.write_bytes(Path(file).read_bytes())
    assert key("replace") == key("replace", str(copied))
    assert key("replace") != key("replace", table_of(copied, ["c"], ["other"]))
    assert key("original") == key("original", None, column="other")
    assert key("alternate", ratio=0.3) != key("alternate", ratio=0.4)
    with pytest.raises(ConfigError, match=r"caption\.file='gone': it must be a Parquet"):
        key("replace", "gone")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "alternate"}, r"ratio=None: it must be from 0 to 1 for rule=alternate"),
        ({"rule": "alternate", "ratio": 1.2}, r"ratio=1\.2: it must be from 0 to 1"),
        ({"rule": "replace", "ratio": 0.5}, r"ratio=0\.5: it must be null for rule=replace"),
        ({"rule": "concatenate"}, r"separator=None: it must be text for rule=concatenate"),
        ({"rule": "replace", "separator": " "}, r"separator=' ': it must be null"),
        ({"rule": "replaced"}, r"caption\.rule='replaced': Did you mean 'replace'\?"),
    ],
)
def test_settings_that_contradict_the_rule_are_refused(settings: dict[str, Any], message: str) -> None:
    given = {"ratio": None, "separator": None, "column": "refined", "file": "f.parquet"} | settings
    with pytest.raises(ConfigError, match=message):
        build(given, CaptionMix, "caption")


def test_tokens_may_be_kept_where_each_row_has_one_caption() -> None:
    assert CaptionMix("replace", None, None, "refined", "f").is_fixed
    assert not CaptionMix("alternate", 0.5, None, "refined", "f").is_fixed
