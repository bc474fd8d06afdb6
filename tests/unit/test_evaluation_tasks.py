import pytest

from dbp.errors import ConfigError
from evaluation.suites import QUICK, groups, resolve_suite, suites
from evaluation.tasks import KINDS, find_task, load_tasks


def test_the_table_holds_the_40_tasks_of_datacomp_and_those_of_glyphs():
    keys = list(load_tasks())
    glyphs = [key for key in keys if key.startswith("glyphs/")]
    assert len(keys) - len(glyphs) == 40
    assert groups()["Glyphs"] == tuple(glyphs)
    assert {task.kind for task in load_tasks().values()} == set(KINDS)


def test_38_tasks_are_averaged_and_the_two_face_sets_have_no_main_metric():
    tasks = [task for task in load_tasks().values() if not task.key.startswith("glyphs/")]
    left_out = [task.key for task in tasks if not task.in_average]
    assert left_out == ["fairness/fairface", "fairness/utkface"]
    assert [task.key for task in tasks if task.main_metric is None] == left_out


def test_every_folder_follows_datacomps_rule():
    for task in load_tasks().values():
        key = task.key.removeprefix("fairness/").replace("/", "-")
        assert task.folder == f"wds_{key}_test"


def test_the_groups_have_the_sizes_of_datacomps_columns():
    sizes = {group: len(members) for group, members in groups().items() if group != "Glyphs"}
    assert sizes == {
        "ImageNet": 1,
        "ImageNet dist. shifts": 6,
        "VTAB": 13,
        "Retrieval": 3,
        "Average": 38,
    }


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
    ("wrong", "meant"),
    [("datacomp83", "datacomp38"), ("vtab/dtb", "vtab/dtd"), ("glyph", "glyphs")],
)
def test_a_misspelt_suite_or_task_names_the_nearest(wrong, meant):
    with pytest.raises(ConfigError) as error:
        resolve_suite(f"imagenet,{wrong}")
    assert str(error.value) == (
        f"suite={wrong} is neither a suite nor a task. Did you mean '{meant}'?"
    )


def test_a_suite_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"suite=' , ' names no task. Suites: datacomp38, glyphs"):
        resolve_suite(" , ")


def test_a_misspelt_task_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no task 'cifar01'\. Did you mean 'cifar10'\?"):
        find_task("cifar01")
