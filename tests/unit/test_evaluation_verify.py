import csv
import hashlib
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from miniature import TEMPLATES, noise_png, write_classification, write_retrieval, write_set

from dbp.errors import WorldError
from evaluation.kinds.registry import KINDS
from evaluation.sets.data import set_digest
from evaluation.sets.verify import verify_set, verify_suite
from evaluation.tasks import find_task

FLICKR = "retrieval/flickr_1k_test_image_text_retrieval"


def small(key, **changes):
    """A task whose set has 12 samples of 3 classes."""
    given = {"test_size": 12, "num_classes": 3, "num_templates": len(TEMPLATES)}
    return replace(find_task(key), **(given | changes))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "wds_mnist_test"
    write_classification(folder, class_names=["a", "b", "c"], num_samples=12, seed=0, size=8, samples_per_shard=5)
    return folder


def problems(folder, task=None):
    return " ".join(verify_set(task or small("mnist"), folder).problems)


def test_a_right_set_has_no_problem_and_the_digest_that_a_result_carries(folder):
    checked = verify_set(small("mnist"), folder)
    opened = KINDS["classification"].open(folder)
    digests = [hashlib.sha256(opened.read_picture(row)).digest() for row in range(12)]
    assert (checked.problems, checked.notes, checked.num_samples) == ((), (), 12)
    assert checked.digest == set_digest(opened, list(range(12)), digests)
    assert checked.line() == f"ok    mnist: 12 samples, {checked.digest[:16]}, {folder}"


def test_a_count_that_is_not_the_test_sets_is_told(folder):
    assert "It has 12 samples and the test set has 10,000." in problems(folder, small("mnist", test_size=10_000))
    assert "classnames.txt has 3 names and the task has 10 classes" in problems(
        folder, small("mnist", num_classes=10)
    )
    assert "has 3 templates and the task has 80" in problems(folder, small("mnist", num_templates=80))


def test_a_fact_that_was_never_counted_is_not_checked(folder):
    task = small("mnist", test_size=None, num_classes=None, num_templates=None)
    assert verify_set(task, folder).problems == ()


def test_tars_that_nshards_does_not_count_are_told(folder):
    (folder / "test" / "3.tar").write_bytes((folder / "test" / "0.tar").read_bytes())
    said = "nshards.txt counts 3 tars and 1 more lie beside them, such as 3.tar"
    assert said in problems(folder)
    (folder / "test" / "1.tar").unlink()
    assert "1.tar is missing, though nshards.txt beside it counts it" in problems(folder)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "", "c"], "In classnames.txt class 1 has an empty name"),
        (["a", "c", "c"], "classnames.txt has twin names: c"),
        (["a", "missile", "missile"], "classnames.txt has twin names: missile"),
    ],
)
def test_blank_and_twin_names_are_problems(folder, names, said):
    (folder / "classnames.txt").write_text("\n".join(names))
    assert said in problems(folder)


def test_faults_that_were_published_are_notes_and_others_of_the_same_set_are_not(folder):
    clevr = small("vtab/clevr_closest_object_distance", num_classes=4)
    (folder / "classnames.txt").write_text("a\nb\nc\n\n")
    checked = verify_set(clevr, folder)
    assert checked.problems == ()
    assert checked.line().endswith("(class 3 has an empty name, as published; protocol=datacomp drops it)")
    (folder / "classnames.txt").write_text("a\n\nb\nc")
    assert "class 1 has an empty name" in problems(folder, clevr)
    imagenet = small("imagenet1k", num_classes=5)
    (folder / "classnames.txt").write_text("missile\na\nmissile\nb\nc\n")
    assert verify_set(imagenet, folder).notes == ("twin names: missile, as published",)
    (folder / "classnames.txt").write_text("missile\na\nmissile\na\nc\n")
    assert "twin names: a, missile" in problems(folder, imagenet)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("a photo", "1 of 3 templates have no {c} for the name, such as 'a photo'"),
        ("", "1 of 3 templates have no {c} for the name, such as ''"),
        ("{c} {d}", "The template '{c} {d}' cannot take a class name"),
    ],
)
def test_a_template_that_takes_no_name_is_told(folder, template, said):
    (folder / "zeroshot_classification_templates.txt").write_text(f"{{c}}\n{template}\n{{c}}.")
    assert said in problems(folder)


def test_a_label_outside_the_names_is_told_beside_other_problems(folder):
    (folder / "classnames.txt").write_text("a\n")
    said = problems(folder)
    assert "classnames.txt has 1 names and the task has 3 classes" in said
    assert "labels" in said
    assert "are outside the 1 names" in said


def test_missing_captions_are_told(folder):
    assert "s0000000.png has no .txt member" in problems(folder, small(FLICKR, num_classes=None))


@pytest.mark.parametrize("damage", ["header", "body", "empty"])
def test_every_broken_header_is_counted_and_a_broken_body_is_found_in_the_probe(tmp_path, damage):
    generator = np.random.default_rng(0)
    samples = [{"png": noise_png(generator, 30), "txt": b"x"} for _ in range(12)]
    for i in (3, 7):
        data = samples[i]["png"]
        samples[i]["png"] = {"header": b"<html>" + data, "body": data[:700], "empty": b""}[damage]
    write_set(tmp_path / "set", samples)
    task = small(FLICKR, num_classes=None, num_templates=None)
    checked = verify_set(task, tmp_path / "set")
    assert "2 of 12 pictures cannot be read" in checked.problems[0]
    assert all(f"s000000{i}.png (" in checked.problems[0] for i in (3, 7))
    assert checked.digest is None
    if damage == "body":
        assert verify_set(task, tmp_path / "set", num_decoded=0).problems == ()


def test_instances_of_winogavil_are_counted_and_not_its_pictures(tmp_path):
    folder = tmp_path / "wds_misc-winogavil_test"
    write_set(folder, [{"png": noise_png(np.random.default_rng(i), 4)} for i in range(3)])
    (folder / "a.csv").write_text("candidates,cue,associations\n\"['s0000000', 's0000001']\",x,\"['s0000001']\"\n")
    task = find_task("misc/winogavil")
    assert verify_set(replace(task, test_size=1), folder).problems == ()
    assert "It has 1 samples and the test set has 3,563" in problems(folder, task)


def test_a_raw_folder_of_the_hub_is_checked_and_has_the_hash_of_the_same_set_as_tars(tmp_path):
    captions = [["a", "b"], ["c"]]
    write_retrieval(tmp_path / "tars", captions=captions, seed=0, size=4)
    tars = KINDS["retrieval"].open(tmp_path / "tars")
    raw = tmp_path / "flickr"
    raw.mkdir()
    with zipfile.ZipFile(raw / "images.zip", "w") as archive:
        for row in range(2):
            archive.writestr(f"{row}.png", tars.read_picture(row))
    with (raw / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "raw"])
        writer.writerows([f"{row}.png", json.dumps(lines)] for row, lines in enumerate(captions))
    task = small(FLICKR, test_size=2, num_classes=None, num_templates=None)
    found = [verify_set(task, folder) for folder in (tmp_path / "tars", raw)]
    assert [one.problems for one in found] == [(), ()]
    assert found[0].digest == found[1].digest is not None


def test_hashes_are_recorded_for_right_sets_and_compared_the_next_time(tmp_path, folder):
    tasks = [small("mnist"), small("cifar10")]
    hashes, said = tmp_path / "set_hashes.json", []
    verify_suite(tasks, tmp_path, hashes=hashes, say=said.append)
    assert said[0].startswith("ok    mnist: 12 samples, ")
    assert said[1].startswith("WRONG cifar10: There is no set of CIFAR-10 under ")
    recorded = json.loads(hashes.read_text())
    assert list(recorded) == ["mnist"]
    assert [len(one.problems) for one in verify_suite(tasks[:1], tmp_path, hashes=hashes)] == [0]
    write_classification(folder, class_names=["a", "b", "c"], num_samples=12, seed=1, size=8, samples_per_shard=5)
    [checked] = verify_suite(tasks[:1], tmp_path, hashes=hashes, say=said.append)
    [problem] = checked.problems
    assert f"set_hashes.json has {recorded['mnist'][:16]}" in problem
    assert "names, annotations or pictures have changed" in problem
    assert json.loads(hashes.read_text()) == recorded


def test_a_set_of_the_same_content_in_other_tars_has_the_recorded_hash(tmp_path):
    for name, per_shard in (("one", 12), ("two", 4)):
        write_classification(
            tmp_path / name / "wds_mnist_test", class_names=["a", "b", "c"], num_samples=12, seed=0,
            size=8, samples_per_shard=per_shard,
        )  # fmt: skip
        [checked] = verify_suite([small("mnist")], tmp_path / name, hashes=tmp_path / "hashes.json")
        assert checked.problems == ()


@pytest.mark.parametrize("text", ["not json", '["mnist"]', '{"mnist": 1}'])
def test_a_file_of_hashes_that_is_something_else_is_refused(tmp_path, text):
    (tmp_path / "hashes.json").write_text(text)
    with pytest.raises(WorldError, match=r"hashes\.json .*Move it away|hashes\.json .*move it away"):
        verify_suite([small("mnist")], tmp_path, hashes=tmp_path / "hashes.json")
