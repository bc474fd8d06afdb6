"""The algebra of uid lists, held against Python's sets and counters."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbp.engine.store import Store
from dbp.errors import ConfigError, WorldError
from dbp.formats import uid_sets
from dbp.formats.uid_pairs import UID_DTYPE, pairs_to_uids, sort_pairs, uids_to_pairs
from dbp.formats.uid_sets import combined, merged
from dbp.verbs import uids

NUMBERS = st.integers(0, 12) | st.integers(0, 4).map(lambda n: n << 64)


def spell(number):
    return f"{number:032x}"


def sorted_pairs(numbers):
    return sort_pairs(uids_to_pairs([spell(number) for number in numbers]))


def write(path, numbers):
    pairs = sorted_pairs(numbers)
    np.save(path, pairs)
    return path


def run(*arguments):
    uids.main("uids", [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def expected(operation, lists, keep):
    """What Python's counters say: the larger count, the smaller, or what is left."""
    counts = [Counter(numbers) if keep else Counter(set(numbers)) for numbers in lists]
    found = counts[0]
    for other in counts[1:]:
        found = {"union": found | other, "intersection": found & other}.get(operation, found - other)
    return sorted(found.elements())


@settings(deadline=None)
@given(
    st.lists(st.lists(NUMBERS, max_size=25), min_size=2, max_size=4),
    st.sampled_from(uid_sets.OPERATIONS),
    st.booleans(),
    st.sampled_from([1, 2, 7, 1 << 20]),
)
def test_the_algebra_is_that_of_counters_in_chunks_of_any_size(lists, operation, keep, chunk):
    before, uid_sets.CHUNK = uid_sets.CHUNK, chunk
    try:
        parts = list(combined([sorted_pairs(numbers) for numbers in lists], operation, keep))
    finally:
        uid_sets.CHUNK = before
    found = pairs_to_uids(np.concatenate(parts))
    assert found == [spell(number) for number in expected(operation, lists, keep)]


def test_a_chunk_holds_no_more_than_it_should(monkeypatch):
    monkeypatch.setattr(uid_sets, "CHUNK", 100)
    made = np.random.default_rng(0)
    lists = []
    for count in (5000, 3000):
        pairs = np.zeros(count, UID_DTYPE)
        pairs["f0"] = made.integers(0, 2**63, count)
        lists.append(sort_pairs(pairs))
    sizes = [counts.sum() for _, counts in merged(lists)]
    assert (len(sizes), sum(sizes)) == (50, 8000)
    assert max(sizes) < 300


def test_lists_of_every_format_meet(tmp_path, capsys):
    write("a.npy", range(10))
    sorted_pairs(range(5, 15)).tofile("b.raw")
    (tmp_path / "c.txt").write_text("".join(f"{spell(n)}\n" for n in (14, 7, 8)))
    pq.write_table(pa.table({"uid": [spell(n) for n in (9, 8, 7)]}), "d.parquet")
    run("intersection", "a.npy", "b.raw", "c.txt", "d.parquet", "out=both.npy")
    assert "wrote 2 uids to both.npy: intersection of a.npy 10, b.raw 10" in capsys.readouterr().out
    plain = np.load("both.npy")
    assert plain.dtype == np.dtype("u8,u8")
    assert pairs_to_uids(plain) == [spell(7), spell(8)]
    run("difference", "a.npy", "b.raw", "out=left.txt")
    assert (tmp_path / "left.txt").read_text().split() == [spell(n) for n in range(5)]
    run("union", "c.txt", "d.parquet", "out=any.parquet")
    assert pq.read_table("any.parquet")["uid"].to_pylist() == [spell(n) for n in (7, 8, 9, 14)]


def test_repeated_uids_mean_what_is_said_of_them(tmp_path):
    write("a.npy", [1, 1, 1, 2])
    write("b.npy", [1, 3])
    with pytest.raises(WorldError, match=r"a\.npy repeats 2 uids.*repeats=keep.*repeats=once"):
        run("union", "a.npy", "b.npy", "out=out.npy")
    assert not (tmp_path / "out.npy").exists()
    for repeats, wanted in (("once", [1, 2, 3]), ("keep", [1, 1, 1, 2, 3])):
        run("union", "a.npy", "b.npy", "out=out.npy", f"repeats={repeats}")
        assert pairs_to_uids(np.load("out.npy")) == [spell(n) for n in wanted]


def test_names_that_are_no_uids_are_joined_as_they_stand(tmp_path):
    (tmp_path / "a.txt").write_text("b/2\na/1\nc/3\n")
    (tmp_path / "b.txt").write_text("c/3\nd/4\nb/2\n")
    run("union", "a.txt", "b.txt", "out=any.txt")
    assert (tmp_path / "any.txt").read_text().split() == ["b/2", "a/1", "c/3", "d/4"]
    run("difference", "a.txt", "b.txt", "out=left.parquet")
    assert pq.read_table("left.parquet")["uid"].to_pylist() == ["a/1"]
    write("c.npy", [1])
    run("union", "a.txt", "c.npy", "out=mixed.txt")
    assert (tmp_path / "mixed.txt").read_text().split() == ["b/2", "a/1", "c/3", spell(1)]
    with pytest.raises(ConfigError, match=r"other names\. Write \.txt or \.parquet"):
        run("union", "a.txt", "b.txt", "out=any.npy")
    (tmp_path / "twice.txt").write_text("a\nb\na\na\n")
    run("union", "twice.txt", "b.txt", "out=once.txt", "repeats=once")
    assert (tmp_path / "once.txt").read_text().split() == ["a", "b", "c/3", "d/4", "b/2"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(NUMBERS, max_size=20), min_size=2, max_size=4))
def test_the_overlap_is_that_of_sets(tmp_path_factory, lists):
    folder = tmp_path_factory.mktemp("overlap")
    files = [str(write(folder / f"{at}.npy", numbers)) for at, numbers in enumerate(lists)]
    shared, _ = uid_sets.overlap(Store(folder), files)
    sets = [set(numbers) for numbers in lists]
    assert shared.tolist() == [[len(a & b) for b in sets] for a in sets]


def test_the_table_shows_shared_samples_and_their_share(capsys):
    write("a.npy", range(8))
    write("b.npy", range(4, 10))
    run("overlap", "a.npy", "b.npy")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["[1]", "a.npy", "8", "(1.0000)", "4", "(0.4000)"]
    assert rows[2] == ["[2]", "b.npy", "4", "(0.4000)", "6", "(1.0000)"]


def test_wrong_words_are_told_the_right_ones(tmp_path):
    write("a.npy", [1])
    with pytest.raises(ConfigError, match="Did you mean 'intersection'"):
        run("intersect", "a.npy", "a.npy", "out=b.npy")
    with pytest.raises(ConfigError, match="at least two"):
        run("union", "a.npy", "out=b.npy")
    with pytest.raises(ConfigError, match="needs out=FILE"):
        run("union", "a.npy", "a.npy")
    with pytest.raises(ConfigError, match=r"out='b\.csv': it must be a file that ends with \.npy"):
        run("union", "a.npy", "a.npy", "out=b.csv")
    with pytest.raises(ConfigError, match="Make it first"):
        run("union", "a.npy", "a.npy", "out=no/b.npy")
    with pytest.raises(ConfigError, match="repeats='twice': it must be error, once or keep"):
        run("union", "a.npy", "a.npy", "out=b.npy", "repeats=twice")
