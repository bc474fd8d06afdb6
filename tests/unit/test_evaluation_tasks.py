import re

import pytest

from dbp.engine.stage import parameters
from dbp.errors import ConfigError
from evaluation import tasks
from evaluation.kinds.registry import KINDS
from evaluation.stage import Evaluate
from evaluation.suites import QUICK, groups, missing_members, resolve_suite, suites
from evaluation.tasks import find_task, load_tasks, register


def test_the_table_holds_the_40_tasks_of_datacomp_first_and_those_of_glyphs_last():
    tasks = list(load_tasks().values())
    assert [task.in_datacomp for task in tasks[:40]] == [True] * 40
    assert not any(task.in_datacomp for task in tasks[40:])
    glyphs = tuple(task.key for task in tasks if task.key.startswith("glyphs/"))
    assert groups()["Glyphs"] == glyphs == tuple(task.key for task in tasks[-len(glyphs) :])
    assert {task.kind for task in tasks} <= set(KINDS)


def test_38_tasks_are_averaged_and_the_two_face_sets_have_no_main_metric():
    tasks = [task for task in load_tasks().values() if task.in_datacomp]
    left_out = [task.key for task in tasks if not task.in_average]
    assert left_out == ["fairness/fairface", "fairness/utkface"]
    assert [task.key for task in tasks if task.main_metric is None] == left_out


def test_every_folder_follows_datacomps_rule():
    for task in load_tasks().values():
        key = task.key.removeprefix("fairness/").replace("/", "-")
        assert task.folder == f"wds_{key}_test"


def test_the_groups_have_the_sizes_of_datacomps_columns():
    sizes = {group: len(members) for group, members in groups().items() if group != "Glyphs"}
    assert sizes == {"ImageNet": 1, "ImageNet dist. shifts": 6, "VTAB": 13, "Retrieval": 3, "Average": 38}


def test_datacomp38_is_the_whole_list_of_40_of_which_38_count():
    tasks = resolve_suite("datacomp38")
    assert len(tasks) == 40
    assert [t.key for t in tasks if t.in_average] == list(groups()["Average"])
    assert tasks[0].key == "vtab/caltech101"
    assert [t.key for t in tasks[-2:]] == ["fairness/fairface", "fairness/utkface"]


def letters(name):
    return re.sub("[^a-z0-9]", "", name.lower())


# What a paper's table calls a task, where that is not in our name of it.
OTHER_NAMES = {
    "aircraft": "fgvcaircraft",
    "dtd": "describabletextures",
    "pets": "oxfordiiitpet",
    "flowers": "oxfordflowers102",
    "kitti": "kittivehicledistance",
    "kittidist": "kittivehicledistance",
    "pcam": "patchcamelyon",
    "cars": "stanfordcars",
    "clevr": "clevrcounts",
    "clevrdist": "clevrdistance",
    "clevrcount": "clevrcounts",
    "sst2": "renderedsst2",
    "imagenet": "imagenet1k",
    "voc2007": "pascalvoc2007",
}
METACLIP_TABLE = (
    "ImageNet,Food-101,CIFAR10,CIFAR100,CUB,SUN397,Cars,Aircraft,DTD,Pets,Caltech-101,Flowers,MNIST,"
    "FER-2013,STL-10,EuroSAT,RESISC45,GTSRB,KITTI,Country211,PCAM,UCF101,Kinetics700,CLEVR,"
    "HatefulMemes,SST2"
)
SEMDEDUP_TABLE = (
    "Cars,Country211,FGVC Aircraft,GTSRB,ImageNet 1k,MNIST,Rendered SST2,STL10,SUN397,VOC2007,"
    "Caltech101,CIFAR100,CIFAR10,CLEVR Dist,CLEVR Count,DMLAB,DTD,EuroSAT,Flowers,KITTI Dist,PCAM,"
    "Pets,RESISC45,SVHN"
)


@pytest.mark.parametrize(("suite", "table"), [("metaclip26", METACLIP_TABLE), ("semdedup24", SEMDEDUP_TABLE)])
def test_a_papers_suite_and_what_it_misses_are_the_columns_of_its_table_in_order(suite, table):
    missing = missing_members(suite)
    expected = [name for name in table.split(",") if name not in missing]
    ours = [letters(task.name) for task in resolve_suite(suite)]
    assert ours == [OTHER_NAMES.get(letters(name), letters(name)) for name in expected]
    assert len(expected) + len(missing) == int(suite[-2:])


def test_missing_members_are_named_for_any_list_that_has_the_suite():
    missing = ("CUB", "UCF101", "Kinetics700", "HatefulMemes")
    assert missing_members("metaclip26") == missing
    assert missing_members(" metaclip26 , vtab/dtd, metaclip26") == missing
    assert missing_members(["glyphs", "metaclip26"]) == missing
    assert missing_members("datacomp38") == missing_members("semdedup24") == ()


def test_every_member_of_a_suite_is_a_task():
    for name, members in suites().items():
        assert [task.key for task in resolve_suite(name)] == list(members)
    assert set(QUICK) <= set(load_tasks())


def test_a_list_may_mix_suites_and_tasks_and_names_each_task_once():
    keys = [task.key for task in resolve_suite("imagenet1k, retrieval,imagenet")]
    assert keys == ["imagenet1k", *groups()["Retrieval"]]
    glyphs = [task.key for task in resolve_suite(["glyphs/retrieval", "glyphs"])]
    assert glyphs[0] == "glyphs/retrieval"
    assert sorted(glyphs) == sorted(groups()["Glyphs"])


@pytest.mark.parametrize(
    ("wrong", "meant"), [("datacomp83", "datacomp38"), ("vtab/dtb", "vtab/dtd"), ("glyph", "glyphs")]
)
def test_a_misspelt_suite_or_task_names_the_nearest(wrong, meant):
    with pytest.raises(ConfigError) as error:
        resolve_suite(f"imagenet,{wrong}")
    assert str(error.value) == (f"suite={wrong} is neither a suite nor a task. Did you mean '{meant}'?")


def test_a_suite_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"suite=' , ' names no task. Suites: datacomp38, glyphs"):
        resolve_suite(" , ")


def test_a_misspelt_task_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no task 'cifar01'\. Did you mean 'cifar10'\?"):
        find_task("cifar01")


@pytest.fixture
def own(monkeypatch):
    """A process that has met no task of the user; what the test registers is forgotten."""
    monkeypatch.setattr(tasks, "_own", {})
    monkeypatch.setattr(tasks, "_facts", {})


CATS = {"kind": "classification", "main_metric": "acc1", "num_classes": 2}


def parameters_of(**facts):
    return parameters(Evaluate("cats", None, 0, "fp32", tasks={"cats": CATS | facts}))


def test_a_task_of_the_user_has_its_defaults_and_its_level_of_chance(own):
    register({"cats": CATS})
    task = find_task("cats")
    assert (task.name, task.folder, task.chance) == ("cats", "wds_cats_test", 0.5)
    assert not task.in_average


def test_what_a_file_says_now_comes_before_what_older_results_say(own):
    register({"cats": CATS | {"name": "Cats"}})
    register({"cats": CATS | {"name": "Older"}}, of_results=True)
    assert find_task("cats").name == "Cats"
    register({"cats": CATS | {"name": "Newer"}})
    assert find_task("cats").name == "Newer"


def test_how_a_task_is_scored_is_part_of_the_key_and_its_name_is_not(own):
    plain = parameters_of()
    assert parameters_of(name="Cats", chance=0.4) == plain
    assert parameters_of(folder="elsewhere") != plain
    assert "tasks" not in parameters(Evaluate("quick", None, 0, "fp32", tasks={"cats": CATS}))


@pytest.mark.parametrize("key", ["cifar10", "a,b"])
def test_a_key_that_is_taken_or_is_a_list_is_refused(own, key):
    with pytest.raises(ConfigError) as refused:
        register({key: CATS})
    assert key in str(refused.value)


def test_a_task_by_the_name_of_a_suite_is_refused(own):
    register({"quick": CATS})
    with pytest.raises(ConfigError) as refused:
        resolve_suite("quick")
    assert "tasks.quick" in str(refused.value)
