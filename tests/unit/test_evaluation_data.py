import io
import pickle
import tarfile

import numpy as np
import pytest
from miniature import noise_png, write_classification, write_retrieval, write_set

from dbp.data.images import EVALUATION_FORMATS
from evaluation.sets.data import open_set, set_digest
from evaluation.sets.folders import find_set, set_files
from evaluation.sets.tar_index import EvaluationDataError, scan_tar
from evaluation.tasks import find_task

NAMES = ["zero", "", "two", "two"]
FLICKR = "retrieval/flickr_1k_test_image_text_retrieval"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "wds_mnist_test"
    write_classification(folder, class_names=NAMES, num_samples=7, seed=0, size=8, samples_per_shard=3)
    return folder


def classification(folder):
    return open_set(folder, kind="classification")


def test_samples_come_in_the_order_of_the_tars(folder):
    opened = classification(folder)
    assert [sample.key for sample in opened.samples] == [f"s{i:07d}" for i in range(7)]
    assert [sample.shard for sample in opened.samples] == [0, 0, 0, 1, 1, 1, 2]


def test_a_picture_read_by_its_offset_is_the_member_of_the_tar(folder):
    opened = classification(folder)
    for row in (6, 0, 4):
        with tarfile.open(opened.shards[opened.samples[row].shard]) as tar:
            member = tar.extractfile(f"s{row:07d}.png")
            assert member is not None
            assert opened.read_picture(row) == member.read()
    opened.close()


def test_a_set_can_be_sent_to_another_process_with_a_tar_open(folder):
    opened = classification(folder)
    picture = opened.read_picture(2)
    assert pickle.loads(pickle.dumps(opened)).read_picture(2) == picture


def test_blank_names_and_twin_names_are_kept(folder):
    assert classification(folder).class_names == ("zero", "", "two", "two")


def test_of_several_images_the_first_in_the_order_of_clip_benchmark_counts(tmp_path):
    extensions = list(reversed(EVALUATION_FORMATS))
    samples = [{ext: ext.encode() for ext in extensions[: i + 1]} for i in range(5)]
    write_set(tmp_path, samples)
    opened = open_set(tmp_path, kind="retrieval")
    assert [opened.read_picture(row) for row in range(5)] == [b"gif", b"jpeg", b"jpg", b"png", b"webp"]


def test_captions_are_one_a_line_and_may_vary_in_number(tmp_path):
    captions = [["a cat"], ["a dog", "", "ein Hund"], ["x = {y}"]]
    write_retrieval(tmp_path, captions=captions, seed=0, size=4)
    assert open_set(tmp_path, kind="retrieval").captions() == captions


def test_member_names_are_data_and_never_paths(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "nshards.txt").write_text("1\n")
    with tarfile.open(tmp_path / "test" / "0.tar", "w") as tar:
        for name in ("../../etc/x.png", "/etc/passwd.png", "a b/é.png", "x" * 300 + ".PNG"):
            header = tarfile.TarInfo(name)
            header.size = 3
            tar.addfile(header, io.BytesIO(b"abc"))
    keys = [sample.key for sample in open_set(tmp_path, kind="retrieval").samples]
    assert keys == ["../../etc/x", "/etc/passwd", "a b/é", "x" * 300]


def test_the_digest_changes_with_a_name_a_label_or_a_picture_and_not_with_the_shards(tmp_path):
    generator = np.random.default_rng(0)
    pictures = [noise_png(generator, 4) for _ in range(3)]

    def digest(name, *, names=("a", "b"), label=b"1", last=pictures[2], per_shard=2):
        labels = [b"0", label, b"0"]
        content = [*pictures[:2], last]
        samples = [{"png": p, "cls": c} for p, c in zip(content, labels, strict=True)]
        folder = tmp_path / name
        write_set(folder, samples, class_names=names, templates=["{c}"], samples_per_shard=per_shard)
        opened = classification(folder)
        return set_digest(opened, [0, 1, 2], [opened.read_picture(row) for row in range(3)])

    plain = digest("plain")
    assert digest("sharded", per_shard=1) == plain
    changed = [digest("names", names=("a", "c")), digest("label", label=b"0"), digest("picture", last=pictures[0])]
    assert len({plain, *changed}) == 4


def test_a_missing_folder_says_where_the_set_should_be(tmp_path):
    with pytest.raises(EvaluationDataError) as error:
        classification(tmp_path / "wds_mnist_test")
    assert str(error.value) == (
        f"There is no folder {tmp_path}/wds_mnist_test. Put the set there, or set root to the "
        "folder that holds wds_mnist_test."
    )


@pytest.mark.parametrize("name", ["classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt"])
def test_a_missing_text_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(EvaluationDataError, match=f"{name} is missing. The set is incomplete"):
        classification(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(EvaluationDataError, match=r"The shard .*1\.tar is missing, though nshards"):
        classification(folder)


@pytest.mark.parametrize("kept", ["in a picture", "in a header", "between members", "nothing"])
def test_a_tar_cut_anywhere_is_noticed(folder, kept):
    path = folder / "test" / "1.tar"
    samples = scan_tar(path, 0)
    second = samples[1].offset
    size = {
        "in a picture": second + 10,
        "in a header": second - 100,
        "between members": second - tarfile.BLOCKSIZE,
        "nothing": 0,
    }[kept]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(EvaluationDataError, match=r"1\.tar.* damaged or cut short; fetch it again"):
        classification(folder)


def test_a_tar_with_a_damaged_header_is_not_taken_for_a_shorter_one(folder):
    path = folder / "test" / "0.tar"
    data = bytearray(path.read_bytes())
    start = scan_tar(path, 0)[1].offset - tarfile.BLOCKSIZE
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(bytes(data))
    with pytest.raises(EvaluationDataError, match=r"0\.tar ends or breaks after 1 samples"):
        classification(folder)


def test_a_web_page_saved_as_a_tar_is_refused(folder):
    (folder / "test" / "2.tar").write_text("<html>404</html>" * 100)
    with pytest.raises(EvaluationDataError, match=r"2\.tar is not a tar: it is an HTML or XML page"):
        classification(folder)


def test_an_empty_set_is_refused(tmp_path):
    write_set(tmp_path, [], class_names=["a"], templates=["{c}"])
    with pytest.raises(EvaluationDataError, match="is empty: 0 tars, no picture"):
        classification(tmp_path)


def test_labels_outside_the_names_are_counted_and_the_first_is_named(folder):
    (folder / "classnames.txt").write_text("only one\n")
    opened = classification(folder)
    wrong = [row for row, s in enumerate(opened.samples) if int(s.annotations["cls"]) > 0]
    first = opened.samples[wrong[0]]
    with pytest.raises(EvaluationDataError) as error:
        opened.labels()
    message = str(error.value)
    assert f"{len(wrong)} of 7 labels" in message
    assert "outside the 1 names of classnames.txt" in message
    assert f"{opened.shards[first.shard]}: {first.key}.png" in message


def test_a_label_that_is_no_integer_is_named(tmp_path):
    write_set(tmp_path, [{"png": b"", "cls": b"cat"}], class_names=["a"], templates=["{c}"])
    with pytest.raises(EvaluationDataError, match=r"s0000000\.png is b'cat', not an integer"):
        classification(tmp_path).labels()


def test_a_classification_set_read_as_retrieval_names_the_missing_captions(folder):
    with pytest.raises(EvaluationDataError, match=r"s0000000\.png has no \.txt member beside it"):
        open_set(folder, kind="retrieval").captions()


def test_a_sample_without_a_picture_is_named(tmp_path):
    write_set(tmp_path, [{"cls": b"0"}], class_names=["a"], templates=["{c}"])
    with pytest.raises(EvaluationDataError, match=r"Sample 's0000000' of .*0\.tar has no picture"):
        classification(tmp_path)


def test_captions_that_are_empty_or_not_utf8_are_named(tmp_path):
    write_set(tmp_path / "empty", [{"png": b"", "txt": b""}])
    with pytest.raises(EvaluationDataError, match=r"s0000000\.png has an empty \.txt member"):
        open_set(tmp_path / "empty", kind="retrieval").captions()
    write_set(tmp_path / "latin", [{"png": b"", "txt": b"caf\xe9"}])
    with pytest.raises(EvaluationDataError, match=r"captions of .*s0000000\.png are not UTF-8"):
        open_set(tmp_path / "latin", kind="retrieval").captions()


def test_a_key_that_occurs_in_two_tars_is_named(folder):
    data = (folder / "test" / "0.tar").read_bytes()
    (folder / "test" / "1.tar").write_bytes(data)
    with pytest.raises(EvaluationDataError, match=r"Key 's000000\d' occurs in 2 tars"):
        classification(folder)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("vtab/dtd", "wds_vtab-dtd_test"),
        ("vtab/dtd", "wds_vtab-dtd"),
        ("cifar10", "wds_vtab-cifar10"),
        ("food101", "wds_food101"),
        ("fairness/geode", "wds_geode_test"),
        (FLICKR, "wds_retrieval-flickr_1k_test_image_text_retrieval_test"),
        (FLICKR, "wds_flickr30k"),
        (FLICKR, "flickr_1k_test_image_text_retrieval"),
        (FLICKR, "nlphuji/flickr_1k_test_image_text_retrieval"),
        (FLICKR, "hf_cache/flickr_1k_test_image_text_retrieval"),
        (FLICKR, "hf_cache/nlphuji___flickr_1k_test_image_text_retrieval"),
        ("misc/winogavil", "winogavil"),
    ],
)
def test_a_set_is_found_in_the_folder_names_of_each_tool(tmp_path, key, name):
    (tmp_path / name).mkdir(parents=True)
    assert find_set(tmp_path, find_task(key)) == tmp_path / name


@pytest.mark.parametrize("above", ["", "hub/", "hf_cache/", "hf_cache/hub/"])
def test_a_cache_of_the_hub_is_read_at_the_revision_that_it_calls_main(tmp_path, above):
    cache = tmp_path / f"{above}datasets--nlphuji--flickr_1k_test_image_text_retrieval"
    (cache / "snapshots" / "aaa").mkdir(parents=True)
    assert find_set(tmp_path, find_task(FLICKR)) == cache / "snapshots" / "aaa"
    (cache / "snapshots" / "bbb").mkdir()
    with pytest.raises(EvaluationDataError, match=r"snapshots holds 2 revisions and refs/main"):
        find_set(tmp_path, find_task(FLICKR))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbb\n")
    assert find_set(tmp_path, find_task(FLICKR)) == cache / "snapshots" / "bbb"


def test_a_set_that_is_nowhere_names_every_place(tmp_path):
    with pytest.raises(EvaluationDataError) as error:
        find_set(tmp_path, find_task("cifar10"))
    assert str(error.value) == (
        f"There is no set of CIFAR-10 under {tmp_path}. Looked for the folders wds_cifar10_test, "
        "wds_cifar10, wds_vtab-cifar10. Put the set in one of them, or set root to the folder that "
        "holds it."
    )


def test_the_files_of_all_sets_are_listed_and_no_others(tmp_path):
    kept = ["wds_mnist_test/test/0.tar", "wds_vtab-dtd/classnames.txt", "winogavil/a.csv"]
    for name in (*kept, "wds_other/0.tar", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [str(path.relative_to(tmp_path)) for path in set_files(tmp_path)] == kept


@pytest.mark.parametrize(
    ("said", "kind", "is_right"),
    [
        ("retrieval", "retrieval", True),
        ("Multilabel\n", "multilabel", True),
        ("classification", "classification", True),
        ("retrieval", "classification", False),
        ("multilabel", "classification", False),
        ("classification", "retrieval", False),
        ("retrieval", "multilabel", False),
    ],
)
def test_a_set_that_says_it_is_of_another_type_is_refused(folder, said, kind, is_right):
    (folder / "dataset_type.txt").write_text(said)
    if is_right:
        assert len(open_set(folder, kind=kind)) == 7
        return
    with pytest.raises(EvaluationDataError) as error:
        open_set(folder, kind=kind)
    assert f"dataset_type.txt says '{said}', and the task is of kind {kind}" in str(error.value)
