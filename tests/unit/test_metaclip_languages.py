"""MetaCLIP over the languages of a column: each with its own list of entries and its own threshold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_columns_of_pools import write
from test_metaclip import at, decide, languages, pool_of, random_matches, to

from dbp.__main__ import main
from dbp.data.column import Column
from dbp.data.entries import Entries
from dbp.data.keep_list import everything
from dbp.data.matches import Matches
from dbp.errors import ConfigError
from dbp.metadata.matching import Finders, lists_of
from dbp.metadata.sources import ByLanguage
from dbp.selection.metadata import MetaClip, MetaClipThreshold

TALK = {"en": ["a red cat", "a cat", "a dog"], "de": ["ein Kater", "a cat"], "sw": ["paka"], None: ["paka", "chat"]}
LISTS = {"de.txt": "Kater\nHund\n", "en.txt": "cat\ndog\nred\n", "other.json": '["paka", "cat"]'}


def column_of(texts: list[str | None]) -> Column:
    known = list(dict.fromkeys(text for text in texts if text is not None))
    return Column(
        codes=np.array([-1 if t is None else known.index(t) for t in texts], np.int32), texts=tuple(known)
    )


def decided(stage: MetaClip | MetaClipThreshold, pool: Any, matches: Matches, column: Column | None) -> Any:
    every = everything("pool", np.ones(pool.num_rows, bool))
    return stage.decide(rows=every, base=every, pool=pool, matches=matches, language=column)


@pytest.mark.parametrize("stage", [at(2, language="language"), to(77, language="language")])
def test_a_named_column_decides_as_the_same_column_of_the_index(stage: Any) -> None:
    pool, matches = languages()
    column = column_of([text or None for text in pool.column("language").tolist()])
    of_index, found = decide(stage, pool, matches), decided(stage, pool, matches, column)
    assert found[0].digest == of_index[0].digest
    assert found[1] == of_index[1]


def by_list(rows: list[list[int]], spoken: list[str], names: list[str], num: int) -> Matches:
    """Matches whose entries are those of each row's language, numbered through."""
    shifted = [[n + num * names.index(name) for n in own] for own, name in zip(rows, spoken, strict=True)]
    plain = Matches.of_rows(shifted, [f"{name} {n}" for name in names for n in range(num)])
    lists = {name: (num * at, num * (at + 1)) for at, name in enumerate(names)}
    return Matches(plain.counts, Entries(plain.entries.texts, lists), plain.parts)


@pytest.mark.parametrize("counts", ["pool", "rows"])
def test_languages_with_lists_of_their_own_are_balanced_as_each_alone_at_its_threshold(counts: str) -> None:
    rows, _ = random_matches(4000, 50)
    names = ["de", "en", "sw"]
    spoken = [names[n] for n in np.random.default_rng(1).choice(3, 4000, p=[0.3, 0.6, 0.1])]
    pool, matches = pool_of([""] * 4000), by_list(rows, spoken, names, 50)
    kept, told = decided(at(60, language="language", counts=counts), pool, matches, column_of(list(spoken)))
    union: list[int] = []
    shares: list[float] = []
    for name in names:
        own = [row for row, said in enumerate(spoken) if said == name]
        alone = Matches.of_rows([rows[row] for row in own], [str(n) for n in range(50)])
        small = pool_of([""] * len(own), [f"sample-{row}" for row in own])
        threshold = max(told["thresholds"][name], 1)
        union += [own[row] for row in decide(at(threshold), small, alone)[0].rows]
        sizes = np.sort(alone.counts[alone.counts > 0])
        last = np.append(sizes[1:] != sizes[:-1], True)
        shares.append(np.interp(threshold, [0, *sizes[last]], [0, *(np.cumsum(sizes) / sizes.sum())[last]]))
    assert np.ptp(shares) < 1e-9, "of tail, which is equal in all languages"
    assert kept.rows.tolist() == sorted(union)
    assert len(set(told["thresholds"].values())) == 3


@pytest.mark.parametrize("budget", [1, 300, 2500])
def test_a_budget_is_kept_exactly_over_lists_of_several_languages(budget: int) -> None:
    rows, _ = random_matches(4000, 50)
    spoken = ["en" if row % 3 else "de" for row in range(4000)]
    matches = by_list(rows, spoken, ["de", "en"], 50)
    kept, _ = decided(to(budget, language="language"), pool_of([""] * 4000), matches, column_of(list(spoken)))
    assert kept.num_kept == budget


def test_a_caption_is_searched_for_the_entries_of_its_list_alone() -> None:
    entries = Entries(["Kater", "Hund", "cat", "dog", "red"], {"de": (0, 2), "en": (2, 5)})
    finders = Finders.of(entries, "reference")
    assert [finders.find("red cat Kater", number) for number in (0, 1, -1)] == [[0], [2, 4], []]
    spoken = column_of(["en", "de", "fr", None])
    assert lists_of(spoken, ["de", "en"]).tolist() == [1, 0, -1, -1]
    assert lists_of(spoken, ["de", "en", "other"]).tolist() == [1, 0, 2, 2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool with the language of each caption in its json, and a folder of lists."""
    monkeypatch.chdir(tmp_path)
    contents = [{"lang": name, "say": text} for name, texts in TALK.items() for text in texts]
    write(tmp_path / "00000.tar", contents)
    (tmp_path / "lists").mkdir()
    for name, text in LISTS.items():
        (tmp_path / "lists" / name).write_text(text)
    return tmp_path


CURATE = [
    *("curate", "pool.shards=*.tar", "pool.caption=json:say", "dedup=none", "select=metaclip_2"),
    *("select.metadata.folder=lists", "select.language=lang", "+columns.lang=json:lang", "budget.keep_fraction=1"),
]


def manifest(stage: str) -> dict[str, Any]:
    (file,) = Path("store", stage).glob("*/manifest.json")
    return json.loads(file.read_text())


def test_a_pool_is_balanced_by_the_lists_of_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CURATE[:-1], "budget.num_kept=6"]) == 0
    assert manifest("match")["counts"]["matched"] == 6  # "a cat" is none of German's, "chat" is none of the others'
    assert manifest("select")["counts"]["no entry matches"] == 2
    (file,) = Path("store/select").glob("*/entries.parquet")
    table = {(row["language"], row["entry"]): row["count"] for row in pq.read_table(file).to_pylist()}
    expected = {("en", "cat"): 2, ("en", "dog"): 1, ("en", "red"): 1, ("de", "Kater"): 1, ("other", "paka"): 2}
    assert table == expected


def test_rows_without_a_list_are_a_reason_of_their_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "lists/other.json").unlink()
    assert main([*CURATE[:-1], "budget.num_kept=4"]) == 0
    assert manifest("match")["counts"]["no list of their language"] == 3
    assert "3  select: no list of entries for its language" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["select.language=langage"], ["select.language=langage", "Did you mean 'lang'?", "+columns.langage="]),
        (["select.metadata.folder=nothing"], ["select.metadata.folder", "'nothing'", "en.json"]),
        (["select.metadata.folder=null"], ["select.metadata.folder is not set", "en.json"]),
        (["select.language=null"], ["select.language", "name of a column", "select.metadata"]),
        (["select.reference_language=fr"], ["select.reference_language=fr", "de, en, other"]),
        (["+columns.wide=pool:width", "select.language=wide"], ["select.language", "numbers", "texts"]),
    ],
)
def test_a_language_that_cannot_be_read_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], facts: list[str]
) -> None:
    assert main([*CURATE, *words]) == 1
    said = capsys.readouterr().err
    assert all(fact in said for fact in facts), said
    if "wide" not in words[0] and "reference" not in words[0]:
        assert not (here / "store/match").exists(), "refused before any work"


def test_with_one_list_a_column_that_is_not_named_is_refused_before_captions_are_read(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["select=metaclip", "select.metadata.file=lists/en.txt", "select.language=lang"]
    assert main(["curate", "pool.shards=*.tar", "dedup=none", *words, "budget.keep_fraction=0.1"]) == 1
    said = capsys.readouterr().err
    assert all(fact in said for fact in ("select.language=lang", "+columns.lang=json:lang")), said
    assert not (here / "store/match").exists()


def test_two_lists_of_one_language_and_a_list_without_entries_are_refused(tmp_path: Path) -> None:
    for name in ("en.json", "en.txt"):
        (tmp_path / name).write_text('["cat"]')
    with pytest.raises(ConfigError, match=r"en\.json and en\.txt .*'en'"):
        ByLanguage(str(tmp_path)).files()


def test_a_column_of_too_many_languages_is_refused() -> None:
    names = [f"language {n}" for n in range(1025)]
    pool, matches = pool_of([""] * 1025), Matches.of_rows([[0]] * 1025, ["a"])
    with pytest.raises(ConfigError, match=r"1,025 different values, such as 'language 0'.* 1,024 at most"):
        decided(at(1, language="language", reference_language=names[0]), pool, matches, column_of(list(names)))
    indexed = pool_of([""] * 1025, language=names)
    with pytest.raises(ConfigError, match=r"\+columns\.language=pool:language"):
        decide(at(1, language="language"), indexed, matches)
    numbers = pool_of([""] * 1025, language=list(range(1025)))
    with pytest.raises(ConfigError, match=r"\+columns\.language=pool:language"):
        decide(at(1, language="language"), numbers, matches)
