import csv
import io
import json
import multiprocessing
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import noise_png, write_set

from evaluation.sets.data import set_digest
from evaluation.sets.hub import open_captioned, open_winogavil
from evaluation.sets.tar_index import EvaluationDataError

CAPTIONS = [["a cat", 'a "red" cat, sitting'], ["ein Hünd"], ["x", "y", "z\n"], ["two words"]]
NAMES = ["eagle", "tea party", "ash", "moon"]
# Candidates, cue, associations.
INSTANCES = [(["ash", "eagle", "moon"], "bald", ["eagle"]), (["tea party", "ash"], "Gray", ["ash", "tea party"])]


def pictures():
    generator = np.random.default_rng(0)
    return [noise_png(generator, 4 + i) for i in range(4)]


def write_csv(path, columns, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_zip(path, names, method=zipfile.ZIP_STORED, streamed=False):
    """`streamed` leaves lengths out of the headers, as a tool that writes to a pipe does."""
    file = io.BytesIO()
    with zipfile.ZipFile(Unseekable(file) if streamed else file, "w", method) as archive:
        for name, data in zip(names, pictures(), strict=True):
            archive.writestr(f"images/{name}", data)
            archive.writestr(f"__MACOSX/images/._{name}", b"not a picture")
    path.write_bytes(file.getvalue())


class Unseekable(io.RawIOBase):
    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        return self.file.write(data)


FILES = [f"{i}00.png" for i in range(4)]


def flickr_csv(folder):
    rows = [[json.dumps(lines), "[0]", "test", name] for lines, name in zip(CAPTIONS, FILES, strict=True)]
    write_csv(folder / "test_1k_flickr.csv", ["raw", "sentids", "split", "filename"], rows)


def flickr_stored(folder):
    flickr_csv(folder)
    write_zip(folder / "images.zip", FILES)


def flickr_deflated(folder):
    flickr_csv(folder)
    write_zip(folder / "images.zip", FILES, zipfile.ZIP_DEFLATED)


def flickr_streamed(folder):
    flickr_csv(folder)
    write_zip(folder / "images.zip", FILES, zipfile.ZIP_DEFLATED, streamed=True)


def flickr_unpacked(folder):
    flickr_csv(folder)
    (folder / "images").mkdir()
    for name, data in zip(FILES, pictures(), strict=True):
        (folder / "images" / name).write_bytes(data)


def flickr_python_lists(folder):
    rows = [[repr(lines), name] for lines, name in zip(CAPTIONS, FILES, strict=True)]
    rows.append(["['not a test picture']", "9.png"])
    for i, row in enumerate(rows):
        row.append("test" if i < 4 else "train")
    write_csv(folder / "captions.csv", ["raw", "filename", "split"], rows)
    write_zip(folder / "images.zip", FILES)


def flickr_table(inside=True, prefix=""):
    images = [
        {"bytes": data if inside else None, "path": prefix + name}
        for data, name in zip(pictures(), FILES, strict=True)
    ]
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table({"image": pa.array(images, image), "caption": CAPTIONS, "img_id": [1, 2, 3, 4]})


def flickr_parquet(folder):
    (folder / "data").mkdir()
    table = flickr_table()
    pq.write_table(table[:3], folder / "data" / "test-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table[3:], folder / "data" / "test-00001-of-00002.parquet")
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")


def write_arrow(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def flickr_arrow(folder):
    write_arrow(folder / "TEST" / "1.1.0" / "abc" / "flickr-test.arrow", flickr_table())


def flickr_moved_cache(folder):
    # As DataComp's download leaves it: the table names unpacked files by the path they once had.
    unpacked = folder / "downloads" / "extracted" / "f00" / "images"
    unpacked.mkdir(parents=True)
    for name, data in zip(FILES, pictures(), strict=True):
        (unpacked / name).write_bytes(data)
    table = flickr_table(inside=False, prefix="/gone/hf_cache/downloads/extracted/f00/images/")
    write_arrow(folder / "nlphuji___flickr" / "TEST" / "flickr-test.arrow", table)


FLICKR = [
    flickr_stored, flickr_deflated, flickr_streamed, flickr_unpacked, flickr_python_lists,
    flickr_parquet, flickr_arrow, flickr_moved_cache,
]  # fmt: skip


def flickr_tar(folder):
    samples = [
        {"png": data, "txt": "\n".join(line.strip() for line in lines).encode()}
        for data, lines in zip(pictures(), CAPTIONS, strict=True)
    ]
    write_set(folder, samples)
    return open_captioned(folder)


@pytest.mark.parametrize("write", FLICKR)
def test_a_raw_folder_holds_the_same_set_as_tars(tmp_path, write):
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw")
    opened, tar = open_captioned(tmp_path / "raw"), flickr_tar(tmp_path / "wds_flickr_test")
    assert opened.captions() == tar.captions()
    for row in (3, 0, 2, 1):
        assert opened.read_picture(row) == pictures()[row]
    opened.close()
    digests = [opened.read_picture(row) for row in range(4)]
    assert set_digest(opened, [0, 1, 2, 3], digests) == set_digest(tar, [0, 1, 2, 3], digests)
    assert [sample.key for sample in opened.samples] == [Path(name).stem for name in FILES]


def test_lengths_of_pictures_in_zips_and_files_are_exact_and_in_tables_about_right(tmp_path):
    sizes = [len(data) for data in pictures()]
    for write in (flickr_deflated, flickr_unpacked, flickr_parquet):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder)
        lengths = [sample.length for sample in open_captioned(folder).samples]
        if write is flickr_parquet:
            assert all(size / 10 < length for size, length in zip(sizes, lengths, strict=True))
        else:
            assert lengths == sizes


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("write", [flickr_deflated, flickr_parquet])
def test_a_worker_process_reads_pictures_that_its_parent_read_before(tmp_path, write, start):
    write(tmp_path)
    opened = open_captioned(tmp_path)
    expected = [opened.read_picture(row) for row in range(4)]
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.map(opened.read_picture, range(4)) == expected


def test_a_set_is_sent_without_its_open_files_and_rows(tmp_path):
    flickr_parquet(tmp_path)
    opened = open_captioned(tmp_path)
    before = len(pickle.dumps(opened))
    opened.read_picture(0)
    assert len(pickle.dumps(opened)) == before


def wino_row(candidates, cue, associations):
    return [json.dumps(candidates), cue, json.dumps(associations), len(candidates)]


def wino_csv(folder, instances=INSTANCES):
    rows = [wino_row(*one) for one in instances]
    columns = ["candidates", "cue", "associations", "num_candidates"]
    write_csv(folder / "winogavil_dataset.csv", columns, rows)


def wino_zip(folder):
    wino_csv(folder)
    write_zip(folder / "winogavil_images.zip", [f"{name}.png" for name in NAMES])


def wino_underscores(folder):
    wino_csv(folder)
    write_zip(folder / "winogavil_images.zip", [f"{n}.png".replace(" ", "_") for n in NAMES])


def wino_table():
    data = dict(zip(NAMES, pictures(), strict=True))
    image = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    images = [[{"bytes": data[n], "path": f"{n}.png"} for n in one[0]] for one in INSTANCES]
    candidates, cues, associations = zip(*INSTANCES, strict=True)
    return pa.table(
        {
            "candidates": list(candidates),
            "cue": list(cues),
            "associations": list(associations),
            "candidate_images": pa.array(images, image),
        }
    )


def wino_parquet(folder):
    pq.write_table(wino_table(), folder / "test.parquet", row_group_size=1)


def wino_arrow(folder):
    write_arrow(folder / "winogavil-test.arrow", wino_table())


@pytest.mark.parametrize("write", [wino_zip, wino_underscores, wino_parquet, wino_arrow])
def test_winogavil_has_each_picture_once_and_instances_that_name_rows(tmp_path, write):
    write(tmp_path)
    opened = open_winogavil(tmp_path)
    data = dict(zip(NAMES, pictures(), strict=True))
    order = ["ash", "eagle", "moon", "tea party"]
    assert [sample.key.replace("_", " ") for sample in opened.samples] == order
    assert [opened.read_picture(row) for row in range(4)] == [data[name] for name in order]
    assert [one.cue for one in opened.instances] == ["bald", "Gray"]
    assert [one.candidates for one in opened.instances] == [(0, 1, 2), (3, 0)]
    assert [one.is_association for one in opened.instances] == [(False, True, False), (True, True)]


def test_the_digest_changes_with_an_instance(tmp_path):
    digests = set()
    for name, cue in (("first", "bald"), ("second", "hairy")):
        folder = tmp_path / name
        folder.mkdir()
        wino_csv(folder, [(INSTANCES[0][0], cue, INSTANCES[0][2])])
        write_zip(folder / "images.zip", [f"{n}.png" for n in NAMES])
        opened = open_winogavil(folder)
        digests.add(set_digest(opened, [0, 1, 2], [b"", b"", b""]))
    assert len(digests) == 2


def raises(open_it, folder, *parts):
    with pytest.raises(EvaluationDataError) as error:
        open_it(folder)
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_a_picture_that_no_zip_has_is_named_with_its_row(tmp_path):
    flickr_csv(tmp_path)
    write_zip(tmp_path / "images.zip", [*FILES[:3], "other.png"])
    raises(open_captioned, tmp_path, "test_1k_flickr.csv, row 4 names the picture '300.png', and 0")


def test_a_picture_that_lies_in_two_places_is_named(tmp_path):
    flickr_stored(tmp_path)
    write_zip(tmp_path / "more.zip", FILES)
    raises(open_captioned, tmp_path, "row 1 names the picture '000.png', and 2 of the 4 pictures")


def test_a_picture_with_two_rows_is_named(tmp_path):
    write_csv(tmp_path / "a.csv", ["filename", "raw"], [["000.png", '["a"]'], ["000.png", '["b"]']])
    write_zip(tmp_path / "images.zip", FILES)
    raises(open_captioned, tmp_path, "names the picture '000' in 2 rows")


def test_a_csv_with_other_columns_shows_those_it_has(tmp_path):
    write_csv(tmp_path / "a.csv", ["image", "caption"], [["000.png", "a"]])
    raises(
        open_captioned, tmp_path,
        "0 of the CSVs", "have the columns filename, raw; one must. Found a.csv: image, caption.",
    )  # fmt: skip


def test_two_csvs_that_fit_are_refused(tmp_path):
    flickr_stored(tmp_path)
    (tmp_path / "copy.csv").write_bytes((tmp_path / "test_1k_flickr.csv").read_bytes())
    raises(open_captioned, tmp_path, "2 of the CSVs", "copy.csv: raw", "test_1k_flickr.csv: raw")


def test_a_csv_in_another_encoding_names_file_and_line(tmp_path):
    flickr_stored(tmp_path)
    path = tmp_path / "test_1k_flickr.csv"
    text = path.read_text().replace("x", "H\u00fcnd").encode("latin-1")
    path.write_bytes(text)
    raises(open_captioned, tmp_path, "test_1k_flickr.csv is not UTF-8 in line 4")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("a cat", "row 1 holds 'a cat' in column raw, not a list of texts"),
        ("[1, 2]", "row 1 holds '[1, 2]' in column raw"),
        ("[]", "row 1 has 0 captions"),
        ('["a", " "]', "row 1 has 2 captions, 1 of them empty"),
    ],
)
def test_captions_that_are_no_list_of_texts_name_the_row(tmp_path, cell, said):
    write_csv(tmp_path / "a.csv", ["filename", "raw"], [["000.png", cell]])
    write_zip(tmp_path / "images.zip", FILES)
    raises(open_captioned, tmp_path, said)


def test_a_cut_csv_names_the_row_or_the_file(tmp_path):
    flickr_stored(tmp_path)
    path = tmp_path / "test_1k_flickr.csv"
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b",")])  # the last field is gone
    raises(open_captioned, tmp_path, "test_1k_flickr.csv, row 4 has too few fields")
    path.write_bytes(data[: data.rindex(b'"')])  # inside quotes
    raises(open_captioned, tmp_path, "test_1k_flickr.csv cannot be read as a CSV")
    path.write_bytes(data[: data.index(b"\n")])
    raises(open_captioned, tmp_path, "test_1k_flickr.csv has no row of the test split")


def test_a_pointer_of_git_lfs_in_place_of_a_zip_is_told(tmp_path):
    flickr_csv(tmp_path)
    (tmp_path / "images.zip").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    raises(open_captioned, tmp_path, "Cannot read", "images.zip as a zip", "pointer of Git LFS")


def test_a_zip_packed_another_way_is_told(tmp_path):
    flickr_csv(tmp_path)
    write_zip(tmp_path / "images.zip", FILES, zipfile.ZIP_LZMA)
    raises(open_captioned, tmp_path, "packed by method 14. Pack the pictures again")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_picture_in_a_zip_is_never_given_out(tmp_path, method):
    flickr_csv(tmp_path)
    write_zip(tmp_path / "images.zip", FILES, method)
    opened = open_captioned(tmp_path)
    data = bytearray((tmp_path / "images.zip").read_bytes())
    start = opened.samples[1].offset + 60
    data[start : start + 20] = b"\xff" * 20
    (tmp_path / "images.zip").write_bytes(bytes(data))
    assert opened.read_picture(0) == pictures()[0]
    with pytest.raises(EvaluationDataError, match=r"images\.zip: 100\.png (is damaged|cannot be read)"):
        opened.read_picture(1)


def test_a_zip_that_was_cut_after_it_was_indexed_is_noticed(tmp_path):
    flickr_stored(tmp_path)
    opened = open_captioned(tmp_path)
    for size in (opened.samples[3].offset + 5, opened.samples[3].offset + 60):
        with (tmp_path / "images.zip").open("r+b") as file:
            file.truncate(max(size, 0))
        with pytest.raises(EvaluationDataError, match=r"images\.zip: 300\.png"):
            opened.read_picture(3)
        flickr_stored(tmp_path)


def test_a_folder_without_a_csv_or_a_table_says_what_it_needs(tmp_path):
    raises(open_captioned, tmp_path, "must hold a CSV with a zip of pictures, or one folder of parquet")


def test_two_versions_of_a_table_are_refused(tmp_path):
    for version in ("1.0.0", "1.1.0"):
        write_arrow(tmp_path / "TEST" / version / "flickr-test.arrow", flickr_table())
    raises(open_captioned, tmp_path, "found 2 tables in 2 folders")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_table_with_other_columns_or_none_is_told(tmp_path, suffix):
    path = tmp_path / f"test.{suffix}"
    table = pa.table({"jpg": [b"x"], "caption": [["a"]]})
    pq.write_table(table, path) if suffix == "parquet" else write_arrow(path, table)
    raises(open_captioned, tmp_path, "Cannot read the columns caption, image of", f"test.{suffix}")
    path.write_bytes(b"PAR1 cut")
    raises(open_captioned, tmp_path, "Cannot read the columns caption, image of", f"test.{suffix}")


def test_a_table_whose_files_are_gone_names_the_row(tmp_path):
    table = flickr_table(inside=False, prefix="/gone/hf_cache/downloads/extracted/f00/")
    write_arrow(tmp_path / "flickr-test.arrow", table)
    raises(open_captioned, tmp_path, "flickr-test.arrow, row 1 has no picture", "f00/000.png' is gone")


def test_a_parquet_without_bytes_names_the_row_when_it_is_read(tmp_path):
    pq.write_table(flickr_table(inside=False), tmp_path / "test.parquet")
    opened = open_captioned(tmp_path)
    with pytest.raises(EvaluationDataError, match=r"test\.parquet, row 3: 200 has no bytes in column"):
        opened.read_picture(2)


@pytest.mark.parametrize(
    ("instance", "said"),
    [
        ((["ash", "elk"], "x", ["ash"]), "row 1 names the picture 'elk', and 0 of the 4 pictures"),
        ((["ash", "ash"], "x", ["ash"]), "row 1 names a candidate twice: ash, ash"),
        ((["ash", "moon"], "x", ["eagle"]), "row 1 has associations ['eagle'] that are not among"),
        ((["ash", "moon"], "x", []), "row 1 has associations [] that are not among"),
        ((["ash", "moon"], " ", ["ash"]), "row 1 has no cue"),
    ],
)
def test_an_instance_that_cannot_be_scored_names_its_row(tmp_path, instance, said):
    wino_zip(tmp_path)
    wino_csv(tmp_path, [instance])
    raises(open_winogavil, tmp_path, f"winogavil_dataset.csv, {said}")


def test_winogavil_as_tars_names_a_candidate_without_a_picture(tmp_path):
    folder = tmp_path / "wds_misc-winogavil_test"
    write_set(folder, [{"png": data} for data in pictures()])
    wino_csv(folder, [(["s0000001", "moon"], "x", ["moon"])])
    raises(open_winogavil, folder, "row 1 names the candidate 'moon', which has no picture")


def test_a_table_with_another_number_of_pictures_than_candidates_is_told(tmp_path):
    table = wino_table().set_column(0, "candidates", pa.array([["ash"], ["ash", "moon"]]))
    pq.write_table(table, tmp_path / "test.parquet")
    raises(open_winogavil, tmp_path, "test.parquet, row 1 has 1 candidates and 3 candidate_images")


@pytest.mark.parametrize("caption", ["a cat", None, [None, "a cat"]])
def test_a_caption_column_without_lists_of_texts_is_told(tmp_path, caption):
    table = flickr_table()[:1]
    pq.write_table(table.set_column(1, "caption", pa.array([caption])), tmp_path / "test.parquet")
    raises(open_captioned, tmp_path, "row 1 holds", "in column caption, not a list of texts")
