import io
from pathlib import Path

import numpy as np
import pytest

from evaluation.sets.data import EvaluationSet
from evaluation.sets.metadata import read_fields, read_vectors
from evaluation.sets.tar_index import EvaluationDataError, Sample

FIELDS = ("region", "year", "y")


def npy(values, **options):
    file = io.BytesIO()
    np.save(file, np.asarray(values), **options)
    return file.getvalue()


def in_set(contents):
    samples = [
        Sample(f"s{i}", 0, "png", 0, 0, {} if content is None else {"npy": content})
        for i, content in enumerate(contents)
    ]
    return EvaluationSet(Path("fmow"), (Path("fmow/test/0.tar"),), tuple(samples))


def read(contents, needed=FIELDS, num_more=1):
    rows = range(len(contents))
    return read_fields(in_set(contents), rows, FIELDS, needed, num_more=num_more)


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<f4", "u1"])
def test_columns_come_as_they_were_written(dtype):
    table = np.random.default_rng(0).integers(200, size=(50, 3)).astype(dtype)
    columns = read([npy(row) for row in table])
    assert list(columns) == list(FIELDS)
    np.testing.assert_array_equal(np.stack(list(columns.values()), axis=1), table)


def test_vectors_of_several_types_are_read_one_by_one():
    contents = [npy(np.array([1, 2, i], dtype)) for i, dtype in enumerate(["<i8", "<f4", ">i2"])]
    assert read(contents)["y"].tolist() == [0, 1, 2]


def test_only_the_chosen_rows_are_read_in_their_order():
    contents = [npy([i, i + 1, i + 2]) for i in range(6)]
    contents[1] = b"damaged"
    columns = read_fields(in_set(contents), [4, 0], FIELDS, ("year",))
    assert {name: values.tolist() for name, values in columns.items()} == {"year": [5, 1]}


def test_columns_that_are_not_needed_may_hold_anything():
    contents = [npy([1, np.nan, 3]), npy([2, -1.5, 3])]
    assert read(contents, needed=("region",))["region"].tolist() == [1, 2]


@pytest.mark.parametrize("where", [0, 2])
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, r"s{i}\.png has no \.npy member beside it, which holds region, year, y"),
        (npy([1, 2, 3])[:-3], r"Cannot read the \.npy member of fmow/test/0\.tar: s{i}\.png"),
        (b"\x93NUM", r"Cannot read the \.npy member of .*s{i}\.png"),
        (b"PK\x03\x04 an archive", r"Cannot read the \.npy member of .*s{i}\.png"),
        (npy([1, 2, 3]) + b"more", r"s{i}\.png holds int64 in 156 bytes, not one array of numbers"),
        (npy(["1", "2", "3"]), r"s{i}\.png holds <U1 in"),
        (npy([2.5, 0, 0]), r"region of .*s{i}\.png is 2\.5 in its \.npy member, not a whole number"),
        (npy([0, np.nan, 0]), r"year of .*s{i}\.png is nan"),
        (npy([-1, 0, 0]), r"region of .*s{i}\.png is -1"),
        (npy([0, 10**9, 0]), r"from 0 to 1,000\. The columns must be region, year, y"),
    ],
)
def test_a_damaged_member_is_told_with_its_sample(where, content, error):
    contents = [npy([1, 2, 3]) for _ in range(4)]
    contents[where] = content
    with pytest.raises(EvaluationDataError, match=error.replace("{i}", str(where))):
        read(contents)


@pytest.mark.parametrize("values", [[1, 2], [1, 2, 3, 4, 5], [[1, 2, 3]], 7])
def test_another_shape_is_told_with_what_it_should_be(values):
    error = r"s0\.png has shape \(.*\); it must hold 3 or 4 numbers: region, year, y\. Is this"
    with pytest.raises(EvaluationDataError, match=error):
        read([npy(values)] * 2)


def test_shapes_that_differ_are_told():
    error = r"s2\.png has shape \(4,\), but that of .*s0\.png has \(3,\)"
    with pytest.raises(EvaluationDataError, match=error):
        read([npy([1, 2, 3]), npy([1, 2, 3]), npy([1, 2, 3, 4])])
    assert read([npy([1, 2, 3, 4])] * 2)["y"].tolist() == [3, 3]


def test_an_array_of_objects_is_never_unpickled():
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    content = npy(np.array([Trap(), 1], dtype=object), allow_pickle=True)
    with pytest.raises(EvaluationDataError, match=r"s1\.png: Object arrays cannot be loaded"):
        read_vectors(in_set([npy([1, 2]), content]), [0, 1], [2], "0 or 1")
