"""Uid files and lists of names, held against Python's own integers, sorting and binary search."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbp.data.pool import digest_16, hash_64
from dbp.errors import ConfigError, WorldError
from dbp.formats import contains
from dbp.formats import uid_pairs as names
from dbp.formats.exchange import kind_of, read_texts, read_uid_file, write_uid_file, writing_uids
from dbp.formats.uid_pairs import (
    UID_DTYPE,
    Names,
    digests,
    hashes_64,
    hex_bytes,
    match_pairs,
    order_pairs,
    pairs_to_texts,
    pairs_to_uids,
    sort_pairs,
    uids_to_pairs,
)

EXAMPLE = "139e4a9b22a614771f06c700a8ebe150"  # of DataComp: its two halves as numbers stand below
NUMBERS = st.integers(0, 2**128 - 1) | st.integers(0, 5) | st.sampled_from([2**64, 2**64 + 1])


def spell(number):
    return f"{number:032x}"


def pairs_of(numbers):
    made = np.empty(len(numbers), UID_DTYPE)
    for at, number in enumerate(numbers):
        made[at] = (number >> 64, number & (2**64 - 1))
    return made


def numbers_of(pairs):
    return [(int(high) << 64) | int(low) for high, low in pairs.tolist()]


def test_the_high_half_comes_first():
    (pair,) = uids_to_pairs([EXAMPLE]).tolist()
    assert pair == (0x139E4A9B22A61477, 0x1F06C700A8EBE150)


@given(st.lists(NUMBERS, max_size=40))
def test_uids_and_pairs_say_the_same_as_pythons_integers(numbers):
    texts = [spell(number) for number in numbers]
    pairs = uids_to_pairs(texts)
    assert numbers_of(pairs) == numbers
    assert pairs_to_uids(pairs) == texts
    assert uids_to_pairs([text.upper() for text in texts]).tolist() == pairs.tolist()


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_what_is_no_uid_is_told_apart_in_blocks_of_any_size(monkeypatch, block):
    monkeypatch.setattr(names, "BLOCK", block)
    texts = [EXAMPLE, None, "", "g" * 32, "0" * 31, "0" * 33, "é" * 16, " " + "0" * 31, EXAMPLE]
    chunked = pa.chunked_array([pa.array(texts[:4]), pa.array(texts[4:]), pa.array([], pa.string())])
    found, is_hex = hex_bytes(chunked)
    assert is_hex.tolist() == [True] + [False] * 7 + [True]
    assert found[-1].tobytes() == bytes.fromhex(EXAMPLE)
    assert not found[1:-1].any()


def test_a_slice_of_a_column_is_read_where_it_begins():
    column = pa.array([spell(number) for number in range(50)]).slice(20, 10)
    assert numbers_of(uids_to_pairs(column)) == list(range(20, 30))


def test_a_uid_that_is_not_hexadecimal_is_named_with_the_way_out():
    with pytest.raises(ConfigError, match=r"uid 's0001' is not 32 hexadecimal digits.*pool\.uid=hash"):
        uids_to_pairs([EXAMPLE, "s0001"])


@given(st.lists(NUMBERS, max_size=60))
def test_pairs_are_sorted_as_128_bit_numbers(numbers):
    assert numbers_of(sort_pairs(pairs_of(numbers))) == sorted(numbers)


def test_many_runs_of_equal_high_halves_are_sorted_too():
    made = np.random.default_rng(0)
    pairs = np.empty(60_000, UID_DTYPE)
    pairs["f0"] = made.integers(0, 20_000, 60_000)
    pairs["f1"] = made.integers(0, 2**63, 60_000)
    order = order_pairs(pairs)
    assert np.array_equal(order, np.lexsort((pairs["f1"], pairs["f0"])))


@given(st.lists(NUMBERS, max_size=30), st.lists(NUMBERS, max_size=30))
def test_uids_are_found_at_their_first_place(numbers, wanted):
    held = sort_pairs(pairs_of(numbers))
    high, low = held["f0"].copy(), held["f1"].copy()
    numbers = sorted(numbers)
    spelt, _ = hex_bytes(pa.array([spell(n) for n in wanted], pa.string()))
    found = match_pairs(high, low, spelt)
    assert found.tolist() == [numbers.index(n) if n in numbers else -1 for n in wanted]


@given(st.lists(st.text(max_size=5) | st.none(), max_size=20))
def test_digests_of_many_texts_are_those_of_each(texts):
    column = pa.array(texts, pa.string())
    plain = [(text or "").encode() for text in texts]
    assert digests(column, 16) == b"".join(digest_16(text) for text in plain)
    assert hashes_64(column).tolist() == [hash_64(text) for text in plain]


@given(st.lists(st.text(max_size=2), max_size=30), st.lists(st.text(max_size=2), max_size=30))
def test_a_name_is_found_at_its_first_place(held, wanted):
    table = Names.of(pa.array(held, pa.string()))
    texts = pa.array(wanted, pa.string())
    found = table.find(hashes_64(texts), texts)
    assert found.tolist() == [held.index(name) if name in held else -1 for name in wanted]
    assert table.num_repeats == len(held) - len(set(held))


def test_names_of_one_hash_are_told_apart_by_their_text():
    held = pa.array(["a", "b", "c", "b"])
    table = Names(np.array([7, 7, 7, 7], np.uint64), lambda at: held.take(pa.array(at)))
    wanted = pa.array(["c", "b", "d"])
    assert table.find(np.array([7, 7, 7], np.uint64), wanted).tolist() == [2, 1, -1]


# files


@settings(deadline=None, max_examples=40)
@given(st.lists(NUMBERS, max_size=20))
def test_a_uid_file_is_what_datacomps_own_tools_read(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("uids") / "a.npy"
    assert write_uid_file(path, [spell(number) for number in numbers]) == len(numbers)
    plain = np.load(path)
    assert plain.dtype == np.dtype("u8,u8")
    assert numbers_of(plain) == sorted(numbers)
    assert np.array_equal(read_uid_file(path, allow_repeats=True), plain)
    assert list(path.parent.iterdir()) == [path]


def test_a_raw_file_of_16_bytes_a_uid_is_read_whatever_it_begins_with(tmp_path):
    numbers = [0x480 << 64, 2**127]  # the first two bytes on disk are those of a pickle
    pairs_of(numbers).tofile(tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes()[:2] == b"\x80\x04"
    assert numbers_of(read_uid_file(tmp_path / "raw")) == numbers


def test_a_file_is_written_block_by_block_or_not_at_all(tmp_path):
    numbers = list(range(0, 3000, 3))
    with writing_uids(tmp_path / "a.npy") as append:
        for start in range(0, 1000, 300):
            append(pairs_of(numbers[start : start + 300]))
    assert numbers_of(np.load(tmp_path / "a.npy")) == numbers
    with pytest.raises(KeyError), writing_uids(tmp_path / "b.npy") as append:
        append({}["no pairs"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_repeated_uids_are_an_error_unless_they_are_asked_for(tmp_path):
    write_uid_file(tmp_path / "a.npy", [EXAMPLE, EXAMPLE, spell(1)])
    with pytest.raises(WorldError, match=r"repeats 1 uids.*repeats=once"):
        read_uid_file(tmp_path / "a.npy")
    assert len(read_uid_file(tmp_path / "a.npy", allow_repeats=True)) == 3


@pytest.mark.parametrize("block", [2, 3, 1 << 20])
def test_an_unsorted_file_is_refused_at_the_entry_that_stands_wrong(tmp_path, monkeypatch, block):
    monkeypatch.setattr(contains, "BLOCK", block)
    np.save(tmp_path / "a.npy", pairs_of([1, 2, 3, 2**64, 5, 2**65]))
    with pytest.raises(WorldError, match="not sorted at entry 4"):
        read_uid_file(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", pairs_of([1, 2, 2, 2, 3, 3]))
    with pytest.raises(WorldError, match="repeats 3 uids"):
        read_uid_file(tmp_path / "b.npy")


def test_bad_files_are_named_with_the_reason(tmp_path):
    def refused(content):
        path = tmp_path / "bad"
        path.write_bytes(content)
        with pytest.raises(WorldError) as error:
            read_uid_file(path)
        return str(error.value)

    write_uid_file(tmp_path / "a.npy", [EXAMPLE, spell(1)])
    whole = (tmp_path / "a.npy").read_bytes()
    assert "damaged or cut short" in refused(whole[:-3])
    assert "47 bytes, no multiple of 16" in refused(b"\0" * 47)
    assert "looks like a pickle, which is never read" in refused(pickle.dumps({"a": list(range(99))}))
    assert "is a text file" in refused(b"0123\n")
    assert "is empty" in refused(b"")
    assert "is an archive" in refused(b"PK\x03\x04rest")
    fields = np.zeros(2, [("a", "<u8"), ("b", "<u8")])
    np.save(tmp_path / "fields.npy", fields)
    with pytest.raises(WorldError, match="not DataComp's"):
        read_uid_file(tmp_path / "fields.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(WorldError, match=r"objects\.npy"):
        read_uid_file(tmp_path / "objects.npy")
    with pytest.raises(WorldError, match="no-such-file cannot be read"):
        read_uid_file(tmp_path / "no-such-file")


def test_a_list_of_names_is_read_as_it_stands(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffa b\r\n\r\n 00001/x.jpg \né\nlast".encode())
    assert kind_of(path) == "text"
    assert read_texts(path).to_pylist() == ["a b", " 00001/x.jpg ", "é", "last"]
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(WorldError, match=r"names\.txt is no text in UTF-8"):
        read_texts(path)


def test_a_parquet_list_is_read_by_its_column(tmp_path):
    pq.write_table(pa.table({"uid": ["a", "b"], "score": [1, 2]}), tmp_path / "a.parquet")
    assert read_texts(tmp_path / "a.parquet").to_pylist() == ["a", "b"]
    with pytest.raises(WorldError, match=r"no column 'uids'\. Did you mean 'uid'\?"):
        read_texts(tmp_path / "a.parquet", "uids")
    cut = (tmp_path / "a.parquet").read_bytes()[:-9]
    (tmp_path / "cut.parquet").write_bytes(cut)
    with pytest.raises(WorldError, match=r"cut\.parquet cannot be read as parquet"):
        read_texts(tmp_path / "cut.parquet")


def test_pairs_become_texts_without_a_python_object_each():
    texts = pairs_to_texts(pairs_of([0, 2**128 - 1]))
    assert isinstance(texts, pa.Array)
    assert texts.to_pylist() == ["0" * 32, "f" * 32]
