"""Where MetaCLIP's entries come from, and which captions hold them."""

import gzip
import json
import math
import random
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dbp.config import compose
from dbp.curate import recipe
from dbp.data.columns import Columns
from dbp.data.entries import Entries, cleaned
from dbp.data.keep_list import everything
from dbp.data.matches import Matches
from dbp.data.pool import Pool, hash_64
from dbp.engine.stage import describe, key_of, rebuild
from dbp.engine.store import Store
from dbp.engine.work import Work
from dbp.errors import ConfigError, WorldError
from dbp.metadata import matching, ngrams
from dbp.metadata.base import Combined, EntrySource, Numbers
from dbp.metadata.matching import Finder, Finders, Matching
from dbp.metadata.rules import entry_text, folded, spaced
from dbp.metadata.sources import FromCaptions, Given, Published, WordNet
from dbp.metadata.wikipedia import Pairs, Titles, Words
from dbp.settings import read


def held(entry: str, caption: str, rule: Any = "reference") -> bool:
    return Finder(Entries([entry]), rule).find(caption) == [0]


# rules


@pytest.mark.parametrize(
    ("entry", "caption", "reference", "by_folding"),
    [
        ("dog", "a dog", True, True),
        ("dog", "dog", True, True),
        ("dog", "hotdog", False, False),
        ("dog", "dogs", False, False),
        ("dog", "A Dog", False, True),
        ("dog", "dog, dog! dog? dog; dog: `dog`", True, True),
        ("dog", "dog.", True, True),
        ("dog", '"dog"', False, True),
        ("dog", "(dog)", False, True),
        ("dog", "\u201cdog\u201d", False, True),
        ("dog", "a\tdog\n", True, True),
        ("dog", "a\x00dog", False, True),  # a control character stays a letter as published
        ("dog", "a\u00a0dog", False, True),  # so does a blank that does not break
        ("New York", "in New York", True, True),
        ("New York", "in New  York", False, True),
        ("New York", "New. York", False, False),
        ("U.S.", "the U.S. army", False, True),
        ("U.S.", "the (u.s.) army", False, True),
        ("rock 'n' roll", "Rock \u2019n\u2019 Roll!", False, True),
        ("caf\u00e9", "cafe\u0301", False, True),
        ("\ufb01ne", "fine", False, True),
        ("Stra\u00dfe", "STRASSE", False, True),
        ("\u6771\u4eac", "\u6771\u4eac\u30bf\u30ef\u30fc", False, True),  # Tokyo in Tokyo Tower
        ("\u0915", "\u0915\u093f", False, False),  # a letter is not the letter with a vowel sign
        ("soft", "so\u00adft", False, True),
    ],
)
def test_a_caption_holds_an_entry_by_each_rule(entry: str, caption: str, reference: bool, by_folding: bool) -> None:
    assert held(entry, caption) is reference
    assert held(entry, caption, "folded") is by_folding


@pytest.mark.parametrize(
    ("entry", "caption", "reference", "unspaced"),
    [
        ("\u6771\u4eac", "\u6771\u4eac\u5854\u306e\u591c", False, True),  # Tokyo in a run of Han and kana
        ("\u6771\u4eac", "in \u6771\u4eac today", True, True),
        ("\u0e41\u0e21\u0e27", "\u0e23\u0e39\u0e1b\u0e41\u0e21\u0e27\u0e14\u0e33", False, True),  # a cat, in Thai
        ("\u30bf\u30ef\u30fc", "\u6771\u4eac\u30bf\u30ef\u30fc", False, False),  # kana are not in its table
        ("\u732bcat", "\u767d\u732bcat", False, True),  # the left end alone is open
        ("\u732bcat", "\u767d\u732bcats", False, False),
        ("cat\u732b", "hotcat\u732b", False, False),
        ("dog", "hotdog", False, False),
        ("dog", "\u767ddog", False, False),  # an end in letters needs its blank, whatever stands there
        ("(dog)", "a(dog)b", False, True),  # marks are open, too
        ("U.S.", "the U.S. army", False, False),
        ("Dog", "dog", False, False),
    ],
)
def test_ends_of_scripts_without_blanks_need_none_under_the_rule_of_metaclip_2(
    entry: str, caption: str, reference: bool, unspaced: bool
) -> None:
    assert held(entry, caption) is reference
    assert held(entry, caption, "unspaced") is unspaced


def needs_no_blank(character: str) -> bool:
    """By the names of Unicode's characters, an independent way to MetaCLIP 2's table of code points."""
    scripts = ("CJK UNIFIED", "CJK RADICAL", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER")
    marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" + "\uff0c\u3002\u300a\u201c\u2019\u2014"
    return unicodedata.name(character, "").startswith(scripts) or character in marks


def test_the_rule_of_metaclip_2_finds_what_a_search_entry_by_entry_finds() -> None:
    letters = "ab \u732b\u4eac\u0e41\u0e21\u0e81\u0f40\u1000\u1780\u30bf\uac00.,(\u3002\u201c"
    draw = random.Random(0)
    texts = ["".join(draw.choices(letters, k=draw.randint(1, 3))) for _ in range(600)]
    entries = [text for text in dict.fromkeys(map(str.strip, texts)) if text]
    looked_for = [
        ("" if needs_no_blank(e[0]) else " ") + e + ("" if needs_no_blank(e[-1]) else " ") for e in entries
    ]
    find, total = Finder(Entries(entries), "unspaced").find, 0
    for _ in range(300):
        caption = "".join(draw.choices(letters, k=draw.randint(0, 12)))
        within = naively_spaced(caption)
        expected = [number for number, text in enumerate(looked_for) if text in within]
        assert find(caption) == expected
        total += len(expected)
    assert total > 1000


def naively_spaced(text: str) -> str:
    out = " "
    for character in text:
        if character in ",.;:?!`":
            out += f" {character} "
        else:
            out += " " if character in "\t\r\n" else character
    return out + " "


def test_the_automaton_finds_what_a_scan_over_all_entries_finds() -> None:
    draw = random.Random(0)
    letters = "aab b  c.,!'\t\u00c4\u00e4"
    texts = ["".join(draw.choices(letters, k=draw.randint(0, 14))) for _ in range(1500)]
    entries, _ = cleaned("".join(draw.choices(letters, k=draw.randint(1, 4))) for _ in range(300))
    reference = Finder(Entries(entries), "reference")
    by_folding = Finder(Entries(entries), "folded")
    found, by_number = 0, [folded(entry) for entry in entries]
    padded = [f" {entry} " for entry in entries]
    for text in texts:
        as_published = naively_spaced(text)
        own = [n for n, entry in enumerate(padded) if entry in as_published]
        assert reference.find(text) == own
        found += len(own)
        own_text = folded(text)
        alike = {entry for entry in by_number if entry in own_text} - {"  "}
        assert {by_number[n] for n in by_folding.find(text)} == alike
    assert found > 500
    assert Finders(Entries(entries), "reference").about()[0] > 10
    assert Finders(Entries(entries), "folded").about()[1] > 10


def test_spacing_is_the_published_one() -> None:
    assert spaced("Hi, you`re\t1:2") == naively_spaced("Hi, you`re\t1:2") == " Hi ,  you ` re 1 : 2 "


def test_plain_captions_are_folded_as_all_others_are() -> None:
    text = "".join(map(chr, range(128))) + " It's 9 O'CLOCK_now, U.S.\r\n(a-b)"
    assert not (text + "\u2603").isascii()
    assert folded(text + "\u2603") == folded(text)[:-1] + " \u2603 "


def test_an_entry_that_is_nothing_when_folded_matches_nothing() -> None:
    assert entry_text("\u200d", "folded") is None
    assert Finder(Entries(["\u200d"]), "folded").find("a caption") == []


def test_entries_are_numbered_by_the_first_of_those_that_are_equal_when_folded() -> None:
    finder = Finder(Entries(["cat", "Dog", "dog", "DOG"]), "folded")
    assert finder.find("a dog") == [1]
    assert Finders(Entries(["cat", "Dog", "dog", "DOG"]), "folded").about() == (0, 2)


# clean lists


def test_blank_entries_single_marks_and_repeats_go_and_are_counted() -> None:
    texts, went = cleaned(["dog", "", " \t", "dog ", "!", "\u2014", "cat", "$", "dog", "7", "\u00e4"])
    assert texts == ["dog", "cat", "7", "\u00e4"]
    assert went == {"blank": 2, "duplicate": 2, "one punctuation mark": 3}


def made(source: EntrySource, folder: Path, **inputs: Any) -> tuple[list[str], dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    counts = source.run(Work(folder, folder, "key"), **inputs)
    return Entries.load(folder).texts, counts


def test_a_given_list_keeps_its_order_whatever_its_format(tmp_path: Path) -> None:
    contents = {
        "metadata.json": json.dumps(["b", "a", "b", ""]),
        "entry_counts.json": json.dumps({"b": 7, "a": 0, "": 1, " b": 1}),
        "list.txt": "b\r\na\nb\n\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
        texts, counts = made(Given(str(tmp_path / name)), tmp_path / "made")
        assert texts == ["b", "a"], name
        assert counts == {"entries": 2, "blank": 1, "duplicate": 1}, name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[]", r"no entry is left for MetaCLIP's metadata \(the source is empty\)"),
        ("a.json", '["", "!"]', r"no entry is left .*blank: 1, one punctuation mark: 1.*thresholds"),
        ("a.json", '["dog", 3]', r"a.json: item 1 is 3, no text. Put it in quotes."),
        ("a.json", "7", "a.json holds int, no list of texts"),
        ("a.json", '["dog', "a.json cannot be read as JSON: .* must hold a list of texts"),
        ("a.txt", "\udcff", "a.txt cannot be read as text in UTF-8"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(WorldError, match=message):
        made(Given(str(tmp_path / name)), tmp_path / "made")


def test_a_list_that_is_not_named_or_not_there_says_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"select.metadata.file is not set.*=metaclip_glyphs"):
        made(Given(), tmp_path / "made")
    with pytest.raises(ConfigError, match=r"select.metadata.file='nowhere.json': there is no such"):
        key_of(Given("nowhere.json"), {})


def test_a_list_is_known_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    for name, content in (("a.json", '["x"]'), ("b.json", '["x"]'), ("c.json", '["y"]')):
        (tmp_path / name).write_text(content)
    one, moved, other = (key_of(Given(str(tmp_path / f"{n}.json")), {}) for n in "abc")
    assert one == moved != other
    joined = (key_of(Combined((Given(str(tmp_path / f"{n}.json")),)), {}) for n in "abc")
    one, moved, other = joined
    assert one == moved != other


# WordNet

NOUNS = """  1 This software and database is being provided to you
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 | that which is perceived
00009147 06 n 03 New_York_State 0 Empire_State 0 NY 0 000 | a state
08394922 14 n 02 U.S. 0 US 0 000 | a country
"""
ADJECTIVES = "00001740 00 a 02 galore(ip) 0 Able 1 000 | able\n"


@pytest.fixture
def wordnet(tmp_path: Path) -> str:
    folder = tmp_path / "dict"
    folder.mkdir()
    (folder / "data.noun").write_text(NOUNS)
    (folder / "data.verb").write_text("00001740 29 v 01 entity 0 000 | be\n")
    (folder / "data.adj").write_text(ADJECTIVES)
    (folder / "data.adv").write_text("")
    return str(folder)


def test_wordnet_gives_the_names_of_its_synsets_or_all_its_words(wordnet: str, tmp_path: Path) -> None:
    texts, counts = made(WordNet("names", wordnet), tmp_path / "names")
    assert texts == ["entity", "new york state", "u", "galore"]  # the name of "U.S." ends at its dot
    assert counts == {"entries": 4, "duplicate": 1}
    texts, _ = made(WordNet("all", wordnet), tmp_path / "all")
    assert texts == ["entity", *("New York State", "Empire State", "NY"), "U.S.", "US", "galore", "Able"]


def test_a_damaged_wordnet_names_file_and_line(wordnet: str, tmp_path: Path) -> None:
    (Path(wordnet) / "data.verb").write_text("00001740 29 v 02 entity 0\n")
    with pytest.raises(WorldError, match=r"data.verb, line 1 is no synset \(words are missing\)"):
        made(WordNet("names", wordnet), tmp_path / "made")
    (Path(wordnet) / "data.adj").unlink()
    with pytest.raises(ConfigError, match=r"folder='.*data.adj': there is no such file"):
        key_of(WordNet("names", wordnet), {})


# words and pairs

TEXT = ["the cat, the dog", "the cat -- sat", "", "ice cream; ice cream", "a \u2014 b", "ice cream"]


def naive_ngrams(texts: list[str]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    words, pairs = Counter[str](), Counter[tuple[str, str]]()
    for text in texts:
        before = None
        for word in naively_spaced(text).split():
            is_word = any(character.isalnum() for character in word)
            if is_word:
                words[word] += 1
                if before:
                    pairs[before, word] += 1
            before = word if is_word else None
    return words, pairs


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_words_and_pairs_are_counted_as_a_plain_count_does(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "BLOCK", block)
    draw = random.Random(1)
    texts = [" ".join(draw.choices(["a", "b", "c", "dd", "e,", "-", "f"], k=6)) for _ in range(200)]
    texts += TEXT
    counted = ngrams.NGrams()
    counted.add(iter(texts))
    words, pairs = naive_ngrams(texts)
    total = sum(words.values())
    close = {
        f"{a} {b}": n
        for (a, b), n in pairs.items()
        if n >= 3 and math.log2(n * total / (words[a] * words[b])) >= 0.2
    }
    assert counted.words(3) == sorted((w for w in words if words[w] >= 3), key=lambda w: (-words[w], w))
    assert counted.pairs(3, 0.2) == sorted(close, key=lambda pair: (-close[pair], pair))
    assert 0 < len(close) < sum(n >= 3 for n in pairs.values())


def test_mutual_information_by_hand() -> None:
    # Both words occur twice among 64, always side by side: log2(2 * 64 / (2 * 2)) = 5.
    assert ngrams.mutual_information(2, 2, 2, 64) == 5.0
    assert ngrams.mutual_information(1, 8, 8, 64) == 0.0  # as often as by chance


def test_pairs_do_not_reach_over_marks_or_from_text_to_text() -> None:
    counted = ngrams.NGrams()
    counted.add(TEXT)
    assert counted.words(3) == ["cream", "ice", "the"]
    # "the cat" twice; "ice cream" three times; "cat sat", "cream ice", "a b" never.
    assert counted.pairs(1, -9.0) == ["ice cream", "the cat", "the dog"]


def write(path: Path, content: str) -> str:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as handle:  # type: ignore[operator]
        handle.write(content)
    return str(path)


@pytest.mark.parametrize("name", ["counts.txt", "counts.txt.gz"])
def test_wikipedia_s_words_pairs_and_titles_pass_their_thresholds(name: str, tmp_path: Path) -> None:
    words = write(tmp_path / name, "dog 99\ncat 100\nthe 900\nHong 2\nKong 2\n7 120\nbee 100\n")
    assert made(Words(100, file=words), tmp_path / "made")[0] == ["the", "7", "bee", "cat"]
    # N = 1,323: log2(2 N / 4) = 9.37 for Hong Kong, log2(50 N / 90,000) = -0.44 for the cat.
    pairs = write(tmp_path / f"pairs-{name}", "the cat 50\nHong Kong 2\nof cat 9\nthe 7\n")
    for least, found in ((9.3, ["Hong Kong"]), (-0.5, ["the cat", "Hong Kong"])):
        assert made(Pairs(least, words=words, file=pairs), tmp_path / "made")[0] == found
    titles = write(tmp_path / f"titles-{name}", "New_York\t40\nTalk:Dog\t900\nNew_York\t30\nX\t69\n")
    assert made(Titles(70, titles), tmp_path / "made")[0] == ["New York"]
    views = write(tmp_path / f"{name}.json", json.dumps({"A b": 70, "C": 69, "D": 71}))
    assert made(Titles(70, views), tmp_path / "made")[0] == ["D", "A b"]


def test_counts_may_stand_first_and_words_may_be_counted_in_text(tmp_path: Path) -> None:
    counts = write(tmp_path / "1gram.txt", "99\tdog\n100\tcat\n5\t\n")
    assert made(Words(99, "first", counts), tmp_path / "made")[0] == ["cat", "dog"]
    text = write(tmp_path / "wiki.txt", "\n".join(TEXT))
    assert made(Words(3, text=text), tmp_path / "made")[0] == ["cream", "ice", "the"]
    assert made(Pairs(2.0, 2, text=text), tmp_path / "made")[0] == ["ice cream", "the cat"]


def test_bad_counts_are_named_with_their_line(tmp_path: Path) -> None:
    words = write(tmp_path / "words.txt", "dog 9\n9 dog\n")
    with pytest.raises(WorldError, match=r"words.txt, line 2: '9 dog\\n' is not 1 word and a count"):
        made(Words(1, file=words), tmp_path / "made")
    with pytest.raises(WorldError, match=r"titles.txt, line 1: 'dog 9\\n' is no title<TAB>views"):
        made(Titles(1, write(tmp_path / "titles.txt", "dog 9\n")), tmp_path / "made")
    with pytest.raises(ConfigError, match=r"the words of Wikipedia: file=None, text=None. .*one of"):
        made(Words(1), tmp_path / "made")
    with pytest.raises(ConfigError, match=r"the counts of their words are not given.*words=FILE"):
        made(Pairs(1.0, file=words), tmp_path / "made")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"dog 9\n" * 99)[:-9])
    with pytest.raises(WorldError, match=r"cut.gz cannot be read: .* Fetch it again"):
        made(Words(1, file=str(tmp_path / "cut.gz")), tmp_path / "made")


def test_the_published_list_is_a_union_in_the_order_of_the_code(wordnet: str, tmp_path: Path) -> None:
    words = write(tmp_path / "words.txt", "entity 500\nHong 2\nKong 2\nzebra 100\n7 200\n")
    pairs = write(tmp_path / "pairs.txt", "Hong Kong 2\n")
    titles = write(tmp_path / "titles.txt", "Zebra_(film)\t80\nzebra\t900\n")
    source = Published(9, 100, 8.5, 70, "last", wordnet, words, pairs, None, titles)
    texts, counts = made(source, tmp_path / "made")
    own = ["entity", "new york state", "u", "galore", "zebra", "Hong Kong", "Zebra (film)"]
    assert texts == [*"012345678", *own]
    assert counts["duplicate"] == 4  # the verb entity, the word entity, 7, the title zebra
    without = Published(9, 100, 8.5, 70, titles=titles)
    assert made(without, tmp_path / "made")[0] == [*"012345678", "zebra", "Zebra (film)"]
    assert key_of(without, {}) != key_of(source, {})
    with pytest.raises(ConfigError, match=r"names no source of entries.*wordnet=FOLDER"):
        made(Published(9, 100, 8.5, 70), tmp_path / "made")


# pools


def pool_of(captions: list[str | None]) -> Pool:
    uids = [f"sample-{row}" for row in range(len(captions))]
    hashes = pa.array([hash_64(uid.encode()) for uid in uids], pa.uint64())
    table = pa.table({"uid": uids, "uid_hash": hashes, "text": pa.array(captions, pa.string())})
    return Pool(Columns(table), [], "pool", "txt", 10**6)


def test_a_pool_s_own_captions_give_its_words_and_pairs_in_any_order_of_rows(tmp_path: Path) -> None:
    captions: list[str | None] = [*TEXT * 3]
    captions[2] = None
    source = FromCaptions(5, 5, 2.0, 1000)
    rows = everything("pool", np.ones(len(captions), bool))
    texts, _ = made(source, tmp_path / "made", rows=rows, pool=pool_of(captions))
    assert texts == [*("cream", "ice", "the", "cat"), *("ice cream", "the cat")]
    backwards = made(source, tmp_path / "made", rows=rows, pool=pool_of(captions[::-1]))[0]
    assert backwards == texts
    sampled = made(FromCaptions(1, 1, 0.0, 4), tmp_path / "made", rows=rows, pool=pool_of(captions))
    assert 0 < len(sampled[0]) < 12
    with pytest.raises(WorldError, match="no entry is left"):
        made(FromCaptions(99, 99, 0.0, 9), tmp_path / "m", rows=rows, pool=pool_of(captions))


def matched(
    captions: list[str | None], entries: list[str], folder: Path, rule: Any = "reference"
) -> tuple[Matches, dict[str, Any]]:
    folder.mkdir(parents=True)
    work = Work(folder, folder / "parts", "key")
    is_valid = np.array([caption != "invalid" for caption in captions])
    rows, pool = everything("pool", is_valid), pool_of(captions)
    counts = Matching(rule).run(work, rows=rows, pool=pool, entries=Entries(entries))
    work.collect()
    return Matches.load(folder), counts


def as_lists(matches: Matches) -> list[list[int]]:
    return [
        block.of(row).tolist() for block in matches.blocks() for row in range(block.rows.start, block.rows.stop)
    ]


def test_matches_are_the_same_for_one_part_and_for_seven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(2)
    words = ["cat", "dog", "New", "York", "zebra", "..."]
    captions: list[str | None] = [" ".join(draw.choices(words, k=4)) for _ in range(66)]
    captions += ["invalid", None, "", "\x00\x01\x1b cat", "cat " * 250_000]
    entries = ["cat", "dog", "New York", "york", "U.S."]
    one, said = matched(captions, entries, tmp_path / "one")
    monkeypatch.setattr(matching, "ROWS", 11)
    monkeypatch.setattr(matching, "CAPTIONS", 4)
    seven, also = matched(captions, entries, tmp_path / "seven")
    assert len(one.parts) == 1
    assert len(seven.parts) == 7
    assert as_lists(one) == as_lists(seven)
    assert one.counts.tolist() == seven.counts.tolist()
    assert said == also
    by_hand = [
        [n for n, e in enumerate(entries) if f" {e} " in naively_spaced(caption or "")] for caption in captions
    ]
    by_hand[66] = []  # no valid row
    assert as_lists(one) == by_hand
    assert as_lists(one)[-2:] == [[0], [0]]
    assert seven.of(70) == ["cat"]
    assert said["rows"] == 70
    assert said["matched"] + said["no entry matches"] == 70
    assert said["matches"] == sum(map(len, by_hand)) == int(one.counts.sum())
    assert (said["entries without a match"], said["entries that no caption can hold"]) == (2, 1)


def test_a_pool_without_a_match_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    message = r"none of the 2 captions holds one of the 2 entries, such as 'x' \(rule reference\)"
    with pytest.raises(WorldError, match=message):
        matched(["a dog", "a cat"], ["x", "Dog"], tmp_path / "pool")


def curated(folder: Path, *overrides: str) -> tuple[Any, dict[str, Any], list[str]]:
    """The keep list of a pool of 240 captions in two languages, its counts, and the stages it rests on."""
    draw, words = random.Random(4), ["cat", "dog", "red", "of", "zebra", "ice", "cream"]
    captions = [" ".join(draw.choices(words, weights=range(7, 0, -1), k=3)) for _ in range(230)]
    captions += ["nothing here", "!"] * 5
    languages = ["en" if row % 3 else "de" for row in range(240)]
    uids = [f"{row:032x}" for row in range(240)]
    (folder / "pool").mkdir()
    table = pa.table({"uid": uids, "text": captions, "language": languages})
    pq.write_table(table, folder / "pool" / "part.parquet")
    own = ["pool=datacomp", f"pool.metadata={folder}/pool", "pool.columns=[language]"]
    nodes = recipe(read(compose("curate", [*own, "dedup=none", *overrides])))
    store = Store(folder / "store")
    kept, entry = store.get(nodes["select"]), store.entry(nodes["select"])
    assert entry
    assert (entry.folder / "entries.parquet").exists()
    assert rebuild(describe(nodes["select"].stage)) == nodes["select"].stage
    stages = [node.stage.name for node in nodes["select"].lineage()]
    return kept, entry.manifest["counts"], stages


def test_curation_binds_entries_matches_and_selection(tmp_path: Path) -> None:
    kept, counts, stages = curated(
        tmp_path, "select=metaclip_glyphs", "select.metadata.min_information=-9", "budget.num_kept=60"
    )
    assert kept.num_kept == 60
    assert stages[-3:] == ["entries", "match", "select"]
    assert "embed" not in stages
    assert 0 < counts["threshold"] < 60
    assert counts["no entry matches"] == 10
    assert kept.counts() == {"select: not drawn": 170, "select: drawn": 60, "select: no entry matches": 10}


def test_a_given_threshold_takes_no_budget(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("zebra\nred\n")
    file = f"select.metadata.file={tmp_path}/list.txt"
    kept, counts, _ = curated(
        tmp_path, "select=metaclip_400m", file, "select.language=language", "budget.num_kept=7"
    )
    # Nothing in 240 rows occurs 20,000 times, so that every row with an entry stays.
    assert kept.num_kept == counts["rows"] - counts["no entry matches"]
    assert 100 < kept.num_kept < 230
    assert set(counts["thresholds"]) == {"en", "de"}


def test_numbers_are_words_of_digits(tmp_path: Path) -> None:
    assert made(Numbers(3), tmp_path / "made")[0] == ["0", "1", "2"]
