"""Data sets of clip_benchmark as tasks here: the same numbers as from its own code, and nothing is downloaded."""

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from benchmark_sets import (
    FER2013,
    write_coco,
    write_flickr8k,
    write_folders,
    write_imagenet,
    write_mnist,
    write_sugar_crepe,
    write_translated,
    write_voc2007,
    write_winoground,
)
from forty import write_model
from miniature import write_classification

from dbp.encoders.openclip import load_openclip
from dbp.errors import ConfigError
from evaluation import tasks
from evaluation.checks.against_benchmark import compare, their_metrics
from evaluation.kinds.registry import open_task
from evaluation.running.encode import Towers
from evaluation.running.prepare import Asked, check_own
from evaluation.running.runner import evaluate_checkpoints
from evaluation.sets.at_hand import sets_lack
from evaluation.sets.benchmark import FILES, TRANSLATED, Built, wanted
from evaluation.sets.built import BuiltSet, build
from evaluation.sets.folders import find_set, set_files
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.sets.verify import verify_set
from evaluation.stage import Evaluate, Sets
from evaluation.statistics.comparison import pair
from evaluation.tasks import find_task, register

JAPANESE = "jp.json"
TASKS = {
    "crepe": {"dataset": "sugar_crepe/swap_att"},
    "wino": {"dataset": "winoground"},
    "faces": {"dataset": "fer2013"},
    "digits": {"dataset": "mnist"},
    "boxes": {"dataset": "voc2007"},
    "labels": {"dataset": "voc2007_multilabel"},
    "german": {"dataset": "crossmodal3600", "language": "de"},
    "swahili": {"dataset": "flickr30k-200", "language": "swh_Latn"},
    "xtd": {"dataset": "xtd200", "language": "deu_Latn"},
    "coco_zh": {"dataset": "multilingual_mscoco_captions", "language": "zh"},
    "flickr8k": {"dataset": "flickr8k"},
    "coco": {"dataset": "mscoco_captions"},
}  # fmt: skip
# A thousand folders each.
TRANSLATED_NAMES = {
    "oromo": {"dataset": "babel_imagenet", "language": "om", "folder": "imagenet"},
    "japanese": {
        "dataset": "imagenet1k-unverified", "language": "jp", "folder": "imagenet",
        "custom_template_file": JAPANESE,
    },
}  # fmt: skip


def own(facts):
    return {key: {"source": "clip_benchmark", **said} for key, said in facts.items()}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test fails that begins a process or a connection."""

    def refuse(*said, **more):
        raise AssertionError(f"began {said}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_sugar_crepe(root / "sugar_crepe", "swap_att")
    write_winoground(root / "winoground")
    write_folders(root / "fer2013" / "test", FER2013)
    write_mnist(root / "mnist")
    write_voc2007(root / "voc2007")
    shutil.copytree(root / "voc2007", root / "voc2007_multilabel")
    for key in ("german", "swahili", "xtd", "coco_zh"):
        name, language = TASKS[key]["dataset"], TASKS[key]["language"]
        write_translated(root / name, TRANSLATED[name][1].format(language=language))
    write_flickr8k(root / "flickr8k")
    write_coco(root / "mscoco_captions")
    write_imagenet(root / "imagenet")
    (root / JAPANESE).write_text(json.dumps({"imagenet1k": ["{c}の写真", "{c}"]}))
    return root


@pytest.fixture(scope="module")
def known(root):
    """The tasks, known for this module."""
    before = dict(tasks._own), dict(tasks._facts)
    japanese = TRANSLATED_NAMES["japanese"] | {"custom_template_file": str(root / JAPANESE)}
    register(own(TASKS | TRANSLATED_NAMES | {"japanese": japanese}))
    yield
    tasks._own.clear()
    tasks._facts.clear()
    tasks._own.update(before[0])
    tasks._facts.update(before[1])


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    weights, config = write_model(tmp_path_factory.mktemp("model"))
    loaded = load_openclip(None, checkpoint=str(weights), config=str(config), device="cpu")
    return Towers(loaded.model, loaded.preprocess, loaded.tokenizer, "tiny", loaded.digest, batch_size=16)


@pytest.fixture(scope="module")
def found(root, known, towers):
    done = evaluate_checkpoints([towers], list(TASKS), root, Asked(protocols=("corrected", "datacomp")))
    return {(result.task, result.protocol): result for result in done}


def require_equal(results, towers, root):
    """Every metric of results of one task, under any protocol, to clip_benchmark's own."""
    task = find_task(results[0].task)
    theirs = their_metrics(towers, task, root, results[0].metrics)
    for result in results:
        compared = compare(result, theirs)
        assert len(compared) >= 1
        assert all(one.difference <= 1e-6 for one in compared), compared
        assert result.intervals.keys() == {name for name, value in result.metrics.items() if value is not None}
    assert 0 <= results[0].metrics[task.main_metric] < 1


@pytest.mark.parametrize("key", TASKS)
def test_every_metric_equals_clip_benchmarks_own(root, found, towers, key):
    require_equal([found[key, protocol] for protocol in ("corrected", "datacomp")], towers, root)


@pytest.mark.slow
@pytest.mark.parametrize("key", TRANSLATED_NAMES)
def test_with_class_names_in_another_language_every_metric_equals_clip_benchmarks_own(root, known, towers, key):
    results = evaluate_checkpoints([towers], key, root, Asked(protocols=("corrected",)))
    assert results[0].num_samples == {"oromo": 18, "japanese": 1000}[key]
    require_equal(results, towers, root)


def test_the_metrics_are_those_of_the_kind(found):
    names = {key: set(result.metrics) for (key, protocol), result in found.items() if protocol == "corrected"}
    likelihoods = {"log_likelihood", "log_likelihood_fitted"}
    assert names["crepe"] == names["wino"] == {"image_acc", "text_acc", "acc"} | likelihoods
    assert names["faces"] == names["digits"] == {"acc1", "acc5", "mean_per_class_recall"} | likelihoods
    assert names["labels"] == {"mean_average_precision"}
    assert names["german"] >= {"image_retrieval_recall@5", "text_retrieval_recall@5", "reciprocal_rank"}
    assert found["crepe", "corrected"].num_samples == found["wino", "corrected"].num_samples == 40


@pytest.mark.parametrize("key", [key for key in TASKS | TRANSLATED_NAMES if key != "wino"])
def test_the_index_has_the_label_and_the_image_of_every_item_of_the_reader(root, known, key):
    import io

    from PIL import Image

    task = find_task(key)
    opened = open_task(task, find_set(root, task))
    dataset = build(find_set(root, task), task.built)
    assert isinstance(opened, BuiltSet)
    assert len(opened) == len(dataset)
    for row in range(0, len(dataset), 1 + len(dataset) // 50):
        image, target = dataset[row]
        read = Image.open(io.BytesIO(opened.read_picture(row)))
        assert read.convert("RGB").tobytes() == image.convert("RGB").tobytes()
        said = opened.samples[row].annotations
        if "cls" in said:
            assert int(said["cls"]) == int(target)
        elif "txt" in said:
            assert said["txt"].decode().split("\n") == [" ".join(text.split()) for text in target]
    # Whole files are read as they are; the reader stays only for what it makes itself.
    assert (opened.source is not None) == (key in ("digits", "boxes"))


def test_class_names_in_another_language_are_the_packages(root, known):
    import clip_benchmark.datasets

    folder = Path(clip_benchmark.datasets.__file__).parent
    names = json.loads((folder / "jp_classnames.json").read_text("utf-8"))["imagenet1k"]
    task = find_task("japanese")
    assert open_task(task, find_set(root, task)).class_names == tuple(names)
    babel = json.loads((folder / "babel_imagenet.json").read_text("utf-8"))["OM"][1]
    task = find_task("oromo")
    assert open_task(task, find_set(root, task)).class_names == tuple(babel)
    assert len(babel) == 18


def test_two_checkpoints_share_each_image_and_have_the_numbers_that_they_have_alone(
    root, known, towers, found, monkeypatch
):
    from dataclasses import replace

    import torch

    torch.manual_seed(5)
    model = type(towers.model)(
        embed_dim=24,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 48, "layers": 1, "head_width": 16},
        text_cfg={"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    )
    other = replace(towers, model=model, digest="other", known_texts={})
    reads = []
    real = BuiltSet.read_picture
    monkeypatch.setattr(
        BuiltSet, "read_picture", lambda self, row: reads.append(self.where(row)) or real(self, row)
    )
    both = evaluate_checkpoints([towers, other], ["faces", "crepe"], root, Asked(protocols=("corrected",)))
    assert len(reads) == 28 + 40
    assert both[0].metrics == found["faces", "corrected"].metrics
    assert both[0].metrics != both[1].metrics
    first, second = (result for result in both if result.task == "crepe")
    compared = pair("acc", first, second, seed=0, num_exchanges=200)
    assert compared.difference == second.metrics["acc"] - first.metrics["acc"]
    assert compared.interval[0] <= compared.difference <= compared.interval[1]


@pytest.mark.parametrize("packed", [False, True])
def test_winoground_is_read_from_parquet_and_from_the_repositorys_own_files(root, known, tmp_path, packed):
    write_winoground(tmp_path / "winoground", packed=packed)
    task = find_task("wino")
    opened = open_task(task, find_set(tmp_path, task))
    assert len(opened.choices) == 40
    same = open_task(task, find_set(root, task))
    for one, other in zip(opened.choices, same.choices, strict=True):
        assert one == other
        for row in one.pictures:
            assert opened.read_picture(row) == same.read_picture(row)


def test_a_set_is_verified_as_it_is_evaluated(root, known, found):
    for key in ("crepe", "wino", "faces"):
        task = find_task(key)
        checked = verify_set(task, find_set(root, task))
        assert not checked.problems, checked
        assert checked.digest == found[key, "corrected"].set_digest


def test_the_files_of_a_set_name_it_and_no_others(root, known):
    files = {str(path.relative_to(root)) for path in set_files(root)}
    assert {"sugar_crepe/swap_att.json", "sugar_crepe/val2017/000000000000.jpg"} <= files
    assert "mnist/MNIST/raw/t10k-images-idx3-ubyte" in files
    assert "crossmodal3600/crossmodal3600_captions-de.json" in files
    assert JAPANESE not in files


@pytest.mark.parametrize("key", ["german", "xtd", "coco_zh", "flickr8k"])
def test_a_replaced_image_makes_captions_of_it_another_set(root, known, key):
    before = Sets(root=str(root)).source()
    folder = root / find_task(key).built.dataset
    images = [path for path in set_files(root) if path.suffix == ".jpg" and path.is_relative_to(folder)]
    assert len(images) >= 20
    stat = images[7].stat()
    os.utime(images[7], ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert Sets(root=str(root)).source() != before
    os.utime(images[7], ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_version_of_clip_benchmark_enters_the_key_of_what_takes_its_class_names(known, monkeypatch, tmp_path):
    def key(dataset, **said):
        facts = own({"mine": {"dataset": dataset, **said}})
        return Evaluate(suite="mine", limit=None, seed=0, precision="fp32", tasks=facts).identity()

    names = tmp_path / "names.json"
    names.write_text('{"mnist": ["{c}"]}')
    theirs = {"custom_classname_file": str(names), "custom_template_file": str(names)}
    asked = [("mnist", {}), ("voc2007_multilabel", {}), ("flickr8k", {}), ("mnist", theirs)]
    before = [key(name, **said) for name, said in asked]
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9")
    after = [key(name, **said) for name, said in asked]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True, True]


def language_of(name):
    known = {"flickr30k-200": "deu_Latn", "xtd200": "deu_Latn", "babel_imagenet": "de"}
    return known.get(name, "de" if name == "crossmodal3600" else "en")


@pytest.mark.parametrize("name", FILES)
def test_a_set_that_is_not_there_is_named_with_its_folder_its_files_and_a_command(tmp_path, known, name):
    register(own({"gone": {"dataset": name, "language": language_of(name)}}))
    with pytest.raises(EvaluationDataError) as error:
        find_set(tmp_path, find_task("gone"))
    said = str(error.value)
    assert str(tmp_path / find_task("gone").folder) in said or "Looked for the folders winoground" in said
    if name == "winoground":
        assert f"hf download --repo-type dataset facebook/winoground --local-dir {tmp_path / name}" in said
    else:
        assert "clip_benchmark.datasets" in said
        assert "python -c" in said
        assert all(word.partition(" or ")[0].partition("{")[0] in said for word in FILES[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(set(FILES) - {"winoground"}))
def test_an_empty_folder_of_the_right_name_is_no_set_and_stays_empty(tmp_path, known, name):
    """Each reader meets the folders that it looks for, without content: it must fail, and fetch nothing."""
    built = Built(name, language_of(name))
    for said in wanted(built):
        path = tmp_path / said.split(" or ")[0]
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        else:
            path.mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    register(own({"bare": {"dataset": name, "language": built.language, "folder": "."}}))
    with pytest.raises((EvaluationDataError, ConfigError)) as error:
        open_task(find_task("bare"), tmp_path)
    assert name in str(error.value) or str(tmp_path) in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_without_a_folder_an_image_without_a_file_and_left_out_captions_are_refused(tmp_path, known):
    write_folders(tmp_path / "fer2013" / "test", FER2013[:-1])
    with pytest.raises(EvaluationDataError, match=r"6 folders of classes and 7 names"):
        open_task(find_task("faces"), find_set(tmp_path, find_task("faces")))
    write_sugar_crepe(tmp_path / "sugar_crepe", "swap_att")
    (tmp_path / "sugar_crepe/val2017/000000000003.jpg").unlink()
    with pytest.raises(
        EvaluationDataError, match=r"2 of 40 images of sugar_crepe/swap_att are missing; .*0003\.jpg"
    ):
        open_task(find_task("crepe"), find_set(tmp_path, find_task("crepe")))
    write_translated(tmp_path / "crossmodal3600", "crossmodal3600_captions-de.json", missing=[5, 9])
    with pytest.raises(EvaluationDataError, match=r"holds 38 of 40 or more.*create_annotation_file"):
        open_task(find_task("german"), find_set(tmp_path, find_task("german")))


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"dataset": "mnist", "language": "it"}, ("language=it", "mnist", "en")),
        ({"dataset": "fer2013", "language": "de"}, ("language=de", "en")),
        ({"dataset": "imagenet_sketch", "language": "de"}, ("language=de", "ar, cn, en, it, jp")),
        ({"dataset": "crossmodal3600", "language": "deu"}, ("language=deu", "'de'")),
        ({"dataset": "fer2013", "split": "validation"}, ("split=validation", "fer2013")),
    ],
)
def test_a_language_or_split_that_clip_benchmark_lacks_is_refused(root, known, said, named):
    register(own({"wrong": said}))
    with pytest.raises(ConfigError) as error:
        open_task(find_task("wrong"), root / said["dataset"])
    assert all(word in str(error.value) for word in named)
    if "language" in said:  # before a model is loaded
        with pytest.raises(ConfigError, match=named[0]):
            list(sets_lack([find_task("wrong")], root))


def test_a_set_that_is_there_lacks_nothing_before_it_is_read_and_one_that_is_not_is_named(root, known, tmp_path):
    tasks = [find_task(key) for key in TASKS]
    assert list(sets_lack(tasks, root)) == []
    gone = [str(one) for one in sets_lack(tasks, tmp_path)]
    assert len(gone) == len(tasks)
    assert "sugar_crepe-swap_att" in gone[0]
    assert "val2017 and swap_att.json" in gone[0]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"source": "clip_benchmark"}, ("tasks.mine.dataset",)),
        ({"source": "clip_benchmark", "dataset": "sugarcrepe/add_att"}, ("sugarcrepe", "'sugar_crepe/add_att'")),
        ({"source": "clip_benchmark", "dataset": "vtab/dtd"}, ("clip_benchmark_export_wds", "wds/vtab/dtd")),
        ({"source": "clip_benchmark", "dataset": "imagenet-w"}, ("imagenet-w", "imagenet1k")),
        ({"source": "clip_benchmark", "dataset": "wds/dtd", "language": "de"}, ("wds/dtd", "language")),
        ({"source": "clip_benchmark", "dataset": "winoground", "language": "de"}, ("winoground", "language=de")),
        ({"source": "clip_benchmrk", "dataset": "mnist"}, ("source", "clip_benchmark")),
        ({"dataset": "mnist", "kind": "classification", "main_metric": "acc1"}, ("tasks.mine.dataset", "source")),
        ({"main_metric": "acc1"}, ("tasks.mine.kind", "source")),
        (
            {"source": "clip_benchmark", "dataset": "mnist", "templates": ["a {c}"]},
            ("tasks.mine.templates", "mnist", "custom_template_file"),
        ),
        (
            {"source": "clip_benchmark", "dataset": "winoground", "class_names": ["a", "b"]},
            ("tasks.mine.class_names", "winoground"),
        ),
        ({"source": "clip_benchmark", "dataset": "mnist", "chance": 10}, ("tasks.mine.chance", "[0, 1]")),
        ({"source": "clip_benchmark", "dataset": "mnist", "version": 0}, ("tasks.mine.version", "0")),
    ],
)
def test_what_a_yaml_file_gets_wrong_is_refused_when_it_is_read(said, named):
    with pytest.raises(ConfigError) as error:
        register({"mine": said})
    assert all(word in str(error.value) for word in named), error.value


def test_kind_metric_chance_and_folder_follow_from_the_name_and_may_be_given(known):
    crepe, wino, german = (find_task(key) for key in ("crepe", "wino", "german"))
    assert (crepe.kind, crepe.main_metric, crepe.chance, crepe.folder) == (
        "caption_choice", "acc", 0.5, "sugar_crepe-swap_att",
    )  # fmt: skip
    assert (wino.chance, wino.main_metric) == (pytest.approx(1 / 6), "acc")
    assert (german.kind, german.main_metric) == ("retrieval", "mean_recall@1")
    register(
        own({"pets": {"dataset": "pets", "main_metric": "mean_per_class_recall", "num_classes": 37, "folder": "P"}})
    )
    pets = find_task("pets")
    assert (pets.main_metric, pets.folder, pets.chance) == ("mean_per_class_recall", "P", pytest.approx(1 / 37))


def test_language_split_and_templates_enter_the_key_of_an_evaluation_and_names_do_not(known, tmp_path):
    def key(**said):
        facts = own({"mine": {"dataset": "imagenet_sketch", **said}})
        return Evaluate(suite="mine", limit=None, seed=0, precision="fp32", tasks=facts).identity()

    file = tmp_path / "templates.json"
    file.write_text('{"imagenet1k": ["{c}"]}')
    first = key(custom_template_file=str(file))
    file.write_text('{"imagenet1k": ["a {c}"]}')
    keys = [key(), key(language="it"), key(split="val"), first, key(custom_template_file=str(file))]
    assert all(keys.count(one) == 1 for one in keys)
    assert key(name="Sketches", chance=0.001) == key()


def test_tars_are_named_as_clip_benchmark_names_them_with_any_split(known, towers, tmp_path):
    folder = tmp_path / "wds_vtab-dtd"
    write_classification(folder, class_names=["banded", "dotted"], num_samples=12, seed=0)
    (folder / "test").rename(folder / "val")
    register(own({"tars": {"dataset": "wds/vtab/dtd", "split": "val"}}))
    task = find_task("tars")
    assert (task.kind, task.clip_benchmark) == ("classification", "wds/vtab/dtd")
    [result] = evaluate_checkpoints([towers], "tars", tmp_path, Asked(protocols=("corrected",)))
    assert result.num_samples == 12
    require_equal([result], towers, tmp_path)


def test_class_names_and_templates_of_a_yaml_file_replace_those_beside_tars_of_any_split(known, towers, tmp_path):
    folder = tmp_path / "wds_vtab-dtd"
    write_classification(folder, class_names=["banded", "dotted"], num_samples=12, seed=0)
    (folder / "test").rename(folder / "val")
    texts = {"class_names": ["zigzagged", "plain"], "templates": ["a {c} texture"]}
    register(own({"tars": {"dataset": "wds/vtab/dtd", "split": "val", **texts}}))
    opened = open_task(find_task("tars"), folder)
    assert {name: list(getattr(opened, name)) for name in texts} == texts
    [result] = evaluate_checkpoints([towers], "tars", tmp_path, Asked(protocols=("corrected",)))
    require_equal([result], towers, tmp_path)


def test_a_set_in_a_folder_of_its_own_is_named_by_its_files_alone(root, known, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(root / "mnist", home)

    def key(folder):
        facts = own({"mine": {"dataset": "mnist", "folder": str(folder)}})
        return Evaluate(suite="mine", limit=None, seed=0, precision="fp32", tasks=facts).identity()

    first = key(home)
    (home / "of-another-set.txt").write_text("")
    assert find_set(root, find_task("mine")) == home
    assert not any(home in path.parents for path in set_files(tmp_path))
    moved = home.rename(tmp_path / "moved")
    assert key(moved) == first
    next(moved.rglob("t10k-labels*")).touch()
    assert key(moved) != first
    with pytest.raises(ConfigError, match=r"tasks\.mine\.folder=.*home"):
        key(home)
    register(own({"mine": {"dataset": "mnist", "folder": str(tmp_path)}}))  # and in no other place
    with pytest.raises(EvaluationDataError, match=str(tmp_path)):
        find_set(root, find_task("mine"))


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"dataset": "fer2013", "num_classes": 8}, ("num_classes=8", "7")),
        ({"dataset": "fer2013", "folder": "elsewhere", "split": "train"}, ("fer2013", "train")),
    ],
)
def test_a_set_that_is_not_as_its_yaml_file_says_stops_before_any_work(root, known, said, named):
    register(own({"mine": said}))
    with pytest.raises(ConfigError) as error:
        check_own([find_task("mine")], root)
    assert all(word in str(error.value) for word in ("tasks.mine", *named)), error.value


def test_another_version_of_a_set_has_a_key_of_its_own(known):
    def key(**said):
        facts = own({"mine": {"dataset": "mnist", **said}})
        return Evaluate(suite="mine", limit=None, seed=0, precision="fp32", tasks=facts).identity()

    assert key(version=1) == key() != key(version=2)


def test_annotations_elsewhere_are_among_the_files_of_a_set(root, known, tmp_path):
    file = tmp_path / "captions.txt"
    shutil.copyfile(root / "flickr8k" / wanted(Built("flickr8k"))[0], file)
    register(own({"mine": {"dataset": "flickr8k", "annotation_file": str(file)}}))
    before = Sets(root=str(root)).source()
    file.write_text(file.read_text() + "\n")
    assert Sets(root=str(root)).source() != before


def test_exports_for_clip_benchmark_are_named_by_data_set_and_language(found, tmp_path):
    from evaluation.exports import export_clip_benchmark

    assert export_clip_benchmark(tmp_path, [found["german", "corrected"]]) == ()
    [file] = tmp_path.iterdir()
    said = json.loads(file.read_text())
    assert (said["dataset"], said["task"], said["language"]) == ("crossmodal3600", "zeroshot_retrieval", "de")
    assert file.name.startswith("crossmodal3600_")
    assert file.name.endswith("_de_zeroshot_retrieval.json")
