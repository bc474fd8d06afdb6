"""Captions that are none are counted by their reason; bytes that are not UTF-8 are read where that is certain."""

import io
import json
import logging
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbp.data.caption_text import HALF, REASONS, UNDECODABLE, caption_from, decode_text, read_caption
from dbp.data.pool import uid_from
from dbp.engine.store import Store
from dbp.errors import PoolError
from dbp.pools.index import Index
from dbp.pools.looking import lines_of, look
from training.feed.data import read_pairs

LIMIT = 10**6


def image() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, captions: dict[str, bytes], kind: str = "txt") -> Path:
    with tarfile.open(path, "w") as tar:
        for key, caption in captions.items():
            for name, content in ((f"{key}.png", image()), (f"{key}.{kind}", caption)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def counts_of(store: Store, node: Any) -> dict[str, Any]:
    found = store.entry(node)
    assert found is not None
    return found.manifest["counts"]


def index(shard: Path, **settings: Any) -> Any:
    settings = {"uid": "key", "caption": "txt", "max_pixels": LIMIT} | settings
    return Index(shards=str(shard), **settings).node()


# what is no caption


VALUES = {
    '"a cat"': ("a cat", ""),
    "NaN": ("nan", "caption is NaN or Infinity"),
    "Infinity": ("inf", "caption is NaN or Infinity"),
    "-Infinity": ("-inf", "caption is NaN or Infinity"),
    "true": ("True", "caption is true or false"),
    "false": ("False", "caption is true or false"),
    "3": ("3", "caption is a number"),
    "2.5": ("2.5", "caption is a number"),
    "9" * 400: ("9" * 400, "caption is a number"),  # no float is as large
    "-" + "9" * 400: ("-" + "9" * 400, "caption is a number"),
    "null": (None, "no caption"),
    "[1]": (None, "no caption"),
    '{"a": "b"}': (None, "no caption"),
    '"nan"': ("nan", "caption is the word nan, none or null"),
    '" None\\n"': (" None\n", "caption is the word nan, none or null"),
    '"NULL"': ("NULL", "caption is the word nan, none or null"),
    '"none of them"': ("none of them", ""),
    '"nana"': ("nana", ""),
    '"3"': ("3", ""),
    '""': ("", "empty caption"),
    '"\\u3000\\u200b\\ufeff\\u2003\\u00a0"': ("\u3000\u200b\ufeff\u2003\xa0", "empty caption"),
    '"\\u3164"': ("\u3164", "empty caption"),
    '"\\u0000"': ("\0", "empty caption"),
    '"😀"': ("😀", ""),
    '"\\ufeffa cat"': ("\ufeffa cat", ""),  # in a JSON it is a sign like others
}


@pytest.mark.parametrize("value", VALUES)
def test_of_a_json_only_text_with_a_visible_sign_is_a_caption(value: str) -> None:
    text, reason = VALUES[value]
    content = f'{{"caption": {value}, "other": "a dog"}}'.encode()
    assert read_caption(content, "json:caption")[:2] == (text, reason)
    assert caption_from(content, "json:caption") == (text or "")
    assert reason in ("", *REASONS)


@pytest.mark.parametrize(
    ("content", "text", "reason"),
    [
        (b"a cat\n", "a cat\n", ""),  # byte by byte
        (b"\xef\xbb\xbf", "", "empty caption"),
        (b"\xef\xbb\xbfa cat", "a cat", ""),
        (b"", "", "empty caption"),
        ("\u3000\u2028\u1680\u205f\x85\t".encode(), "\u3000\u2028\u1680\u205f\x85\t", "empty caption"),
        (b"NaN", "NaN", "caption is the word nan, none or null"),
        (b"none", "none", "caption is the word nan, none or null"),
        (b"null and void", "null and void", ""),
        (b"true", "true", ""),
        (b"a\0b", "a\0b", ""),
    ],
)
def test_of_a_txt_any_text_but_a_data_frame_s_missing_value_is_a_caption(
    content: bytes, text: str, reason: str
) -> None:
    assert read_caption(content, "txt") == (text, reason, "")


def test_a_pool_counts_what_is_no_caption_by_its_reason_and_leaves_it_out(tmp_path: Path) -> None:
    captions = {f"s{i}": f'{{"caption": {value}}}'.encode() for i, value in enumerate(VALUES)}
    store = Store(tmp_path / "store")
    node = index(write_tar(tmp_path / "a.tar", captions, "json"), caption="json:caption")
    pool = store.get(node)
    reasons = [reason for _, reason in VALUES.values()]
    assert pool.column("reason").tolist() == reasons
    assert pool.is_valid.tolist() == [reason == "" for reason in reasons]
    counts = counts_of(store, node)
    assert {reason: counts[reason] for reason in reasons if reason} == {
        reason: reasons.count(reason) for reason in reasons if reason
    }
    said = "\n".join(lines_of(look(tmp_path)))
    for reason in set(reasons) - {""}:
        assert f"{reasons.count(reason)} {reason}" in said


def test_a_pool_whose_captions_are_all_none_is_refused_with_each_reason(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", {"a": b"nan", "b": b"None", "c": b" "})
    with pytest.raises(PoolError) as refused:
        Store(tmp_path / "store").get(index(shard))
    for fact in ("caption is the word nan, none or null: 2", "empty caption: 1", "pool.caption=txt"):
        assert fact in str(refused.value)


@pytest.mark.parametrize("value", ["NaN", "true", "null", "[1]", "Infinity"])
def test_what_is_neither_text_nor_a_number_names_no_sample(value: str, tmp_path: Path) -> None:
    content = f'{{"uid": {value}, "caption": "a"}}'.encode()
    assert uid_from(content, "json:uid") is None
    node = index(write_tar(tmp_path / "a.tar", {"s": content}, "json"), uid="json:uid", caption="json:caption")
    with pytest.raises(PoolError, match=r"'s'.*'uid'.*pool\.uid=json:uid"):
        Store(tmp_path / "store").get(node)


def test_numbers_name_samples_as_before() -> None:
    assert [uid_from(f'{{"uid": {v}}}'.encode(), "json:uid") for v in ("7", "2.5", '"x"')] == ["7", "2.5", "x"]


# encodings


READ = {
    "utf-16": ["A cat on a sofa", "日本語", "Русский"],
    "utf-32": ["A cat"],
    "cp1252": [
        "Café crème à Paris",
        "Straße in München",
        "El niño está aquí",
        "it’s a dog",
        "5° below",
        "São João",
    ],
    "cp932": ["日本語の写真", "東京タワーの夜景", "カメラ", "Canon ソフト"],
    "cp949": ["고양이가 소파에서 자고 있다"],
    "cp1251": ["Красивый закат над морем", "Кошка на диване"],
}
CASES = [(kind, text) for kind, texts in READ.items() for text in texts]


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_a_caption_in_another_encoding_is_read_and_the_encoding_is_counted(kind: str, text: str) -> None:
    said = read_caption(text.encode(kind), "txt")
    assert said == (text, "", f"captions read as {kind}")


@pytest.mark.parametrize("mark", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_gives_the_order_of_bytes(mark: str) -> None:
    assert decode_text("\ufeffein Hund".encode(mark)) == ("ein Hund", f"captions read as {mark[:6]}")
    alone = read_caption("\ufeff".encode(mark), "txt")
    assert (alone.text, alone.reason) == ("", "empty caption")


@pytest.mark.parametrize(
    "content",
    [
        "Güneş batımı".encode("cp1254"),  # Turkish, else read as Icelandic letters
        "Žluťoučký kůň".encode("cp1250"),
        "北京的夜景".encode("gb18030"),
        "长城".encode("gb18030"),
        "naïve café".encode() + b"\xff",  # damaged UTF-8
        "日本語".encode()[:-1],
        b"caf\xc3",
        b"\xff\xfea",  # half a sign of UTF-16
        bytes(range(128, 256)),
        b"\xff\xd8\xff\xe0\0\x10JFIF",
    ],
)
def test_bytes_of_no_certain_encoding_are_no_caption_and_never_replaced(content: bytes) -> None:
    assert read_caption(content, "txt") == (None, UNDECODABLE, "")
    assert caption_from(content, "txt") == ""


def test_no_text_is_made_up_for_bytes_at_random() -> None:
    rng = np.random.default_rng(0)
    for length in rng.integers(1, 60, 500):
        content = rng.integers(0, 256, int(length), dtype=np.uint8).tobytes()
        text, note = decode_text(content)
        assert (text is None) == (note == UNDECODABLE)
        assert text is None or "\ufffd" not in text


def test_utf_8_comes_out_as_it_is() -> None:
    for text in ("日本語 é 😀", "a cat \n", "z\u0301", "\ufffd stands there"):
        assert decode_text(text.encode()) == (text, "")


def test_one_broken_field_of_a_json_leaves_the_others_readable() -> None:
    content = b'{"alt": "caf\xe9", "caption": "' + "日本語".encode() + b'", "junk": "' + bytes([0x81] * 5) + b'"}'
    assert read_caption(content, "json:caption") == ("日本語", "", "")
    assert read_caption(content, "json:alt") == ("café", "", "captions read as cp1252")
    assert read_caption(content, "json:junk") == (None, UNDECODABLE, "")
    assert read_caption(content, "json:none") == (None, "no caption", "")


@pytest.mark.parametrize("kind", ["utf-8-sig", "utf-16", "utf-32", "cp932"])
def test_a_json_may_be_in_another_encoding_as_a_whole(kind: str) -> None:
    text = "ソフトの表示"  # whose first sign ends with a backslash in Shift-JIS
    content = json.dumps({"caption": text}, ensure_ascii=False).encode(kind)
    note = "" if kind == "utf-8-sig" else f"captions read as {kind}"
    assert read_caption(content, "json:caption") == (text, "", note)


def test_half_a_surrogate_pair_is_counted() -> None:
    assert read_caption(rb'{"caption": "a \ud83d b"}', "json:caption") == ("a ? b", "", HALF)
    assert read_caption(rb'{"caption": "a \ud83d\ude00"}', "json:caption") == ("a 😀", "", "")


def test_index_training_and_init_read_the_same_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = {f"s{i}": text.encode(kind) for i, (kind, text) in enumerate(CASES)}
    shard = write_tar(tmp_path / "a.tar", texts | {"bad": b"caf\xc3", "worse": b"caf\xc3"})
    store = Store(tmp_path / "store")
    node = index(shard)
    with caplog.at_level(logging.WARNING, logger="dbp"):
        pool = store.get(node)
    assert pool.captions(np.arange(len(CASES))) == [text for _, text in CASES]
    assert read_pairs(pool, np.arange(len(CASES))).captions == [text for _, text in CASES]
    assert pool.column("caption_length")[: len(CASES)].tolist() == [len(text) for _, text in CASES]
    counts, said = counts_of(store, node), "\n".join(lines_of(look(tmp_path)))
    for kind, found in READ.items():
        assert counts[f"captions read as {kind}"] == len(found)
        assert f"{len(found)} captions read as {kind}" in said
    assert counts[UNDECODABLE] == 2
    assert f"2 {UNDECODABLE}" in said
    for fact in (str(shard), "2 captions", "'bad'", "UTF-8"):
        assert fact in caplog.text


def test_a_detection_is_the_same_in_every_process() -> None:
    code = (
        "from dbp.data.caption_text import decode_text\n"
        f"cases = {[text.encode(kind) for kind, text in CASES] + ['美食'.encode('big5')]!r}\n"
        "print([decode_text(case) for case in cases])"
    )
    found = set()
    for seed in ("1", "2"):
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "utf-8"}
        found.add(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
    assert len(found) == 1
