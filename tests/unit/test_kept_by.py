"""Kept rates by the values of columns: against counting, in every place that shows them."""

import csv
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_toys import EVIL, RIGHT_TO_LEFT, shown, synthetic
from test_columns_of_pools import write

from dbp.__main__ import main
from dbp.data.column import Column
from dbp.data.keep_list import KeepList, everything
from dbp.engine.stage import describe
from dbp.engine.store import Entry, Store
from dbp.pools.rates import kept_rates
from dbp.pools.values import ReadColumn
from evaluation.report.page import kept_by
from evaluation.report.page.kept_by import Tables, columns_of
from evaluation.report.page.roster import Roster, joined
from evaluation.report.page.write import page

LANGUAGES = ["en"] * 30 + ["de"] * 12 + [RIGHT_TO_LEFT] * 6 + [EVIL] * 4 + [None] * 4
SOURCES = [f"source {n % 35:02d}" for n in range(56)]  # more than a page shows
CURATE = ["curate", "pool.shards=*.tar", "dedup=none", "+columns.lang=json:lang", "+columns.source=json:source"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool whose json has languages and sources, two keep lists of it, and their report."""
    home = tmp_path_factory.mktemp("kept")
    rows = [{"lang": lang, "source": source} for lang, source in zip(LANGUAGES, SOURCES, strict=True)]
    write(home / "0.tar", rows[:28])
    write(home / "1.tar", rows[28:], 28)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main([*CURATE, "select=uniform", "budget.num_kept=20"]) == 0
        only = ["filter=column", "filter.column=lang", "filter.values=[en]", "select=none"]
        assert main([*CURATE, *only]) == 0
        assert main(["report", "figures=false", "out=out"]) == 0
    return home


def data_of(file: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', file.read_text(), re.S)
    assert found
    return json.loads(found.group(1))


def keep_list(home: Path, key: str) -> KeepList:
    return KeepList.load(home / "store/select" / key)


def test_the_page_and_the_csv_say_what_counting_says(made: Path) -> None:
    data = data_of(made / "out/report.html")
    sheet = list(csv.DictReader((made / "out/kept_by.csv").open()))
    arms = {arm["name"]: keep_list(made, arm["keep"]).mask for arm in data["arms"]}
    assert set(arms) == {"uniform", "no selection"}
    columns = {column["name"]: column for column in data["kept_by"]}
    assert set(columns) == {"json:lang", "json:source"}
    for name, values in (("json:lang", LANGUAGES), ("json:source", SOURCES)):
        texts = [value or "(no value)" for value in values]
        pool = Counter(texts)
        for arm, mask in arms.items():
            kept = Counter(text for text, stays in zip(texts, mask.tolist(), strict=True) if stays)
            lines = [row for row in sheet if (row["column"], row["arm"]) == (name, arm)]
            assert {row["value"]: (int(row["pool"]), int(row["kept"])) for row in lines} == {
                value: (pool[value], kept[value]) for value in pool
            }
            for row in lines:
                n, k = pool[row["value"]], kept[row["value"]]
                assert float(row["kept_rate"]) == pytest.approx(k / n)
                assert float(row["ratio"]) == pytest.approx((k / mask.sum()) / (n / 56))
                assert float(row["share_of_kept"]) == pytest.approx(k / mask.sum())
                assert float(row["share_of_pool"]) == pytest.approx(n / 56)
            (on_page,) = [one for one in columns[name]["arms"] if one["arms"] == [arm]]
            first = lines[: len(on_page["values"])]
            assert [row["value"] for row in first] == [line["value"] for line in on_page["values"]]
            assert len(on_page["values"]) == min(len(pool), 30)
            assert on_page["others"] == max(len(pool) - 30, 0)


def test_the_tables_beside_the_page_and_the_terminal_show_the_surest_first(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    assert main(["report", "figures=false", "out=again"]) == 0
    said = capsys.readouterr().out
    text = (made / "again/table.md").read_text()
    start = text.index("## Kept by json:lang: no selection")
    first, second = text[start:].splitlines()[4:6]
    assert first.startswith("| en | 30 | 53.6% | 30 | 100.0% | 100.0% [")
    assert second.startswith("| de | 12 | 21.4% | 0 | 0.0% | 0.0% [")
    assert " 1.87 | over |" in first
    assert " 0.00 | under |" in second
    assert "no selection: kept by json:lang" in said
    assert re.search(r"  en +30 rows  100\.0%", said)


@pytest.mark.parametrize("most", [0, 1, 7, 40, None])
def test_values_that_are_not_told_stand_in_the_line_of_the_others(most: int | None) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 40, 900).astype(np.int32)
    valid, weights = rng.random(900) < 0.9, rng.integers(0, 4, 900).astype(float)
    column = Column(codes=codes, texts=tuple(f"v{n}" for n in range(40)))
    every = kept_rates(column, valid, weights * valid, None)
    some = kept_rates(column, valid, weights * valid, most)
    assert some.told == every.told[:most]
    left = every.told[len(some.told) :]
    assert some.num_others == len(left)
    if some.others is not None:
        assert some.others.rows == sum(one.rows for one in left)
        assert some.others.kept == pytest.approx(sum(one.kept for one in left))
    else:
        assert not left
    assert every.draws == pytest.approx((weights * valid).sum() / valid.sum())


def test_a_value_is_marked_where_its_interval_leaves_out_the_rate_of_all() -> None:
    codes = np.repeat(np.arange(3, dtype=np.int32), 100)
    weights = np.r_[np.arange(100) < 45, np.arange(100) < 30, np.arange(100) < 15].astype(float)
    rates = kept_rates(Column(codes=codes, texts=("a", "b", "c")), np.ones(300, bool), weights)
    assert {one.value: one.against(rates.overall) for one in rates.told} == {"a": "over", "b": "", "c": "under"}


def test_rows_that_are_invalid_or_held_out_are_not_in_the_pool_and_other_pools_have_no_table(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    folder = tmp_path / "column" / ("c" * 24)
    folder.mkdir(parents=True)
    Column(codes=np.zeros(10, np.int32), texts=("x",)).save(folder)
    made_by = describe(ReadColumn("json", "lang"))
    manifest = {
        "key": "c" * 24, "stage": "column", "parameters": {"kind": "json", "field": "lang"}, "made_by": made_by,
        "inputs": {"pool": {"key": "p", "identity": "pool"}}, "files": {}, "counts": {}, "created": "2024",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = {"c" * 24: Entry(folder, manifest)}
    tables = Tables(store, {"c" * 24: "lang", "gone": "other"}, found)
    keep = everything("pool", np.arange(10) != 9, "no caption")
    keep = keep.within("held out", np.arange(10) != 8, "held out", "not held out")
    keep = keep.within("select", np.arange(10) < 4, "not drawn", "drawn")
    tables.add("mine", "k", keep)
    tables.add("same list", "k", keep)
    tables.add("other", "o", replace(keep, pool_digest="another"))
    ((said,),) = [column["arms"] for column in tables.data()]
    assert (said["arms"], said["baseline_rate"]) == (["mine", "same list"], 0.5)
    assert [(line["pool"], line["kept"]) for line in said["values"]] == [(8, 4)]
    assert [row["arm"] for row in tables.long_rows()] == ["mine", "same list"]


def entry(key: str, kind: str, field: str, created: str, **more: Any) -> Entry:
    inputs = {"pool": {"key": "p", "identity": "pool"}}
    parameters = {"kind": kind, "field": field, **more}
    return Entry(
        Path(key), {"key": key, "stage": "column", "created": created, "inputs": inputs, "parameters": parameters}
    )


def test_of_a_column_that_was_read_twice_the_last_stands_and_equal_names_are_told_apart() -> None:
    every = [
        entry("a" * 24, "json", "lang", "2024-01-01"),
        entry("b" * 24, "json", "lang", "2024-02-01"),
        entry("c" * 24, "file", "topic", "2024-01-01", file="1"),
        entry("d" * 24, "file", "topic", "2024-01-01", file="2"),
    ]
    named = columns_of({one.key: one for one in every})
    assert named == {"b" * 24: "json:lang", "c" * 24: "file:topic (cccccccc)", "d" * 24: "file:topic (dddddddd)"}


def test_the_names_of_a_sweep_s_columns_come_back_and_old_sweeps_have_none(tmp_path: Path) -> None:
    roster = Roster("one", (), columns={"k" * 24: "language"})
    roster.save(tmp_path)
    assert Roster.load(tmp_path) == roster
    assert joined([roster, Roster("two", (), columns={"j" * 24: "source"})]).columns == {
        "k" * 24: "language", "j" * 24: "source",
    }  # fmt: skip
    said = json.loads((tmp_path / "arms.json").read_text())
    del said["columns"]
    (tmp_path / "arms.json").write_text(json.dumps(said))
    assert Roster.load(tmp_path).columns == {}


def test_lines_that_do_not_fit_the_terminal_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept_by, "LINES", 2)
    tables = Tables(Store(tmp_path), {"c": "lang"}, {})
    rates = kept_rates(
        Column(codes=np.arange(4, dtype=np.int32), texts=tuple("abcd")), np.ones(4, bool), np.ones(4)
    )
    tables.made["c", "k"] = kept_by.KeptBy("lang", entry("c", "json", "lang", ""), "k", rates, 4, False, ["arm"])
    assert list(tables.printed())[-1] == "… 3 more lines in kept_by.csv"


def test_the_groups_of_the_page_show_all_arms_and_each_in_full(tmp_path: Path) -> None:
    data = synthetic(9, 3, 2)
    for sample in data["clusterings"][0]["samples"]:
        sample["picture"] = None
    (tmp_path / "report.html").write_text(page(data, []))
    with shown(tmp_path / "report.html", 1280) as (tab, wrongs):
        assert "By language (json:lang), 6,340 valid rows" in tab.locator("#groups h3").inner_text()
        heading = tab.locator("#groups thead th").all_inner_texts()
        assert len(heading) == 3 + 8
        values = tab.locator("#groups tbody td:first-child").all_inner_texts()
        assert set(values) == {"en", EVIL, RIGHT_TO_LEFT}
        assert values[0] == "en", "the surest difference"
        assert tab.locator("#groups td.of-over").count() == tab.locator("#groups td.of-under").count() == 7
        tab.locator("#groups select").select_option("3")
        first = tab.locator("#groups tbody tr").first.inner_text()
        assert all(part in first for part in ("en", "6,000", "39.0 %", "38.0 % to 40.0 %", "1.30", "over"))
        assert "7 other values" in tab.locator("#groups").inner_text()
        assert tab.locator("#groups td script").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") == 1280
        assert wrongs == []
    data["kept_by"] = []
    (tmp_path / "none.html").write_text(page(data, []))
    with shown(tmp_path / "none.html") as (tab, wrongs):
        assert tab.locator("#groups").count() == 0
        assert wrongs == []
