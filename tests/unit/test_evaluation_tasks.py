import os
import re
from pathlib import Path

import pytest
from miniature import write_classification, write_retrieval

from dbp.config import compose
from dbp.engine.stage import parameters
from dbp.errors import ConfigError
from evaluation import suites as suites_module
from evaluation import tasks
from evaluation.kinds.registry import KINDS
from evaluation.running.prepare import Asked, check_own, prepare
from evaluation.sets.verify import verify_set
from evaluation.stage import Evaluate, Sets
from evaluation.suites import QUICK, groups, missing_members, register_suites, resolve_suite, suites
from evaluation.tasks import find_task, load_tasks, own_facts, register


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
    monkeypatch.setattr(suites_module, "_own", {})


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


def test_class_names_and_templates_of_the_yaml_file_take_the_place_of_those_of_the_folder(own, tmp_path):
    folder = tmp_path / "wds_cats_test"
    write_classification(folder, class_names=["a", "b"], num_samples=6, seed=0)
    names = tmp_path / "names.txt"
    names.write_text("tabby cat\nsmall dog\n")
    register({"cats": CATS | {"class_names": str(names), "templates": ["a {c}!"]}})
    names.unlink()
    for file in folder.glob("*.txt"):
        file.unlink()
    failures = []
    [ready] = prepare([find_task("cats")], tmp_path, Asked(), failures)
    assert ready.texts()[:2] == ["a tabby cat!", "a small dog!"]
    assert not failures
    assert not verify_set(find_task("cats"), folder).problems
    facts = own_facts(["cats"])["cats"]
    register({"cats": facts}, of_results=True)
    assert facts["class_names"] == ["tabby cat", "small dog"], "results need no file"


def test_what_a_yaml_file_adds_to_how_a_task_is_scored_is_part_of_the_key(own):
    plain = parameters_of()
    assert parameters_of(version=1, test_size=7, num_templates=None) == plain
    others = [{"class_names": ["a", "b"]}, {"class_names": ["b", "a"]}, {"templates": ["{c}"]}, {"version": 2}]
    keys = [plain, *(parameters_of(**facts) for facts in others)]
    assert all(a != b for at, a in enumerate(keys) for b in keys[:at])


def test_a_folder_of_its_own_is_named_by_its_files_and_never_by_its_path(own, tmp_path):
    for place in ("a", "b"):
        write_classification(tmp_path / place, class_names=["x", "y"], num_samples=4, seed=0)
    for file in (tmp_path / "a").rglob("*"):
        twin = tmp_path / "b" / file.relative_to(tmp_path / "a")
        time = file.stat().st_mtime_ns
        os.utime(twin, ns=(time, time))
    keys = [parameters_of(folder=str(tmp_path / place)) for place in ("a", "b")]
    assert keys[0] == keys[1] != parameters_of()
    assert str(tmp_path) not in str(keys)
    (tmp_path / "b" / "classnames.txt").write_text("x\nzz\n")
    assert parameters_of(folder=str(tmp_path / "b")) != keys[1]
    with pytest.raises(ConfigError, match=r"tasks\.cats\.folder=.*none"):
        parameters_of(folder=str(tmp_path / "none"))


def test_a_folder_of_its_own_is_found_under_any_root_and_is_not_among_its_files(own, tmp_path):
    write_classification(tmp_path / "elsewhere", class_names=["x", "y"], num_samples=4, seed=0)
    (tmp_path / "root").mkdir()
    before = Sets(str(tmp_path / "root")).source()
    register({"cats": CATS | {"folder": str(tmp_path / "elsewhere")}})
    check_own([find_task("cats")], tmp_path / "root")
    check_own([find_task("cats")], None)
    assert Sets(str(tmp_path / "root")).source() == before


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"chance": 1.5}, ["chance=1.5", "share"]),
        ({"chance": 50}, ["chance", "percent"]),
        ({"chance": -0.1}, ["chance=-0.1"]),
        ({"num_classes": 3, "class_names": ["a", "b"]}, ["num_classes=3", "2"]),
        ({"num_templates": 2, "templates": ["{c}"]}, ["num_templates=2", "1"]),
        ({"templates": ["a photo"]}, ["templates", "'a photo'", "{c}"]),
        ({"class_names": ["a", "a"]}, ["class_names", "a"]),
        ({"class_names": ["a", ""]}, ["class_names", "line 1"]),
        ({"class_names": "nowhere.txt"}, ["class_names='nowhere.txt'"]),
        ({"version": 0}, ["version=0"]),
        ({"test_size": 0}, ["test_size=0"]),
        ({"name": "CIFAR-10"}, ["name='CIFAR-10'", "cifar10"]),
        ({"name": "cifar-10"}, ["cifar10"]),
    ],
)
def test_a_task_whose_file_cannot_be_right_is_refused(own, facts, said):
    given = {**CATS, "num_classes": None, **facts}
    with pytest.raises(ConfigError) as refused:
        register({"cats": given})
    assert all(word in str(refused.value) for word in ["tasks.cats", *said]), refused.value


def test_two_tasks_of_one_name_are_refused(own):
    with pytest.raises(ConfigError, match=r"tasks\.dogs\.name='Pets of ours'.*cats"):
        register({"cats": CATS | {"name": "Pets of ours"}, "dogs": CATS | {"name": "Pets of ours"}})


def test_names_are_refused_for_a_kind_that_reads_none(own):
    with pytest.raises(ConfigError, match=r"tasks\.cats\.templates.*retrieval"):
        Evaluate("cats", None, 0, "fp32", tasks={"cats": {**CATS, "kind": "retrieval", "templates": ["{c}"]}})


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"num_classes": 3}, ["num_classes=3", "has 2"]),
        ({"class_names": ["only one"], "num_classes": None}, ["label", "outside"]),
        ({"folder": "wds_other_test"}, ["wds_other_test"]),
        ({"kind": "retrieval", "main_metric": "mean_recall@1"}, [".txt"]),
    ],
)
def test_a_set_that_is_not_as_its_file_says_stops_before_any_work(own, facts, said, tmp_path):
    write_classification(tmp_path / "wds_cats_test", class_names=["a", "b"], num_samples=6, seed=0)
    register({"cats": CATS | facts})
    with pytest.raises(ConfigError) as refused:
        check_own([find_task("cats"), find_task("cifar10")], tmp_path)
    assert all(word in str(refused.value) for word in ["tasks.cats", *said]), refused.value


def test_a_template_of_the_folder_without_a_place_for_the_name_stops_before_any_work(own, tmp_path):
    write_classification(tmp_path / "wds_cats_test", class_names=["a", "b"], num_samples=6, seed=0, templates=["x"])
    register({"cats": CATS})
    with pytest.raises(ConfigError, match=r"tasks\.cats.*'x'.*\{c\}"):
        check_own([find_task("cats")], tmp_path)


def test_a_set_under_root_is_refused_where_root_is_rendered(own):
    register({"cats": CATS})
    with pytest.raises(ConfigError, match=r"tasks\.cats\.folder='wds_cats_test'.*glyphs"):
        check_own([find_task("cats")], None)


def test_another_version_is_another_measurement(own, tmp_path):
    write_retrieval(tmp_path / "wds_cats_test", captions=[["a"], ["b"]], seed=0)
    facts = {"kind": "retrieval", "main_metric": "mean_recall@1"}
    digests = []
    for version in (1, 2):
        register({"cats": {**facts, "version": version}})
        digests.append(prepare([find_task("cats")], tmp_path, Asked(), [])[0].digest)
    assert digests[0] != digests[1]


# suites of the user


def config_folder(home: Path, **files: str) -> str:
    for name, text in files.items():
        file = home / f"{name.replace('__', '/')}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return str(home)


CAT_FILE = "kind: classification\nmain_metric: acc1\nnum_classes: 2\n"


def test_a_suite_of_the_user_is_a_list_of_tasks_and_of_suites_by_its_name(own, tmp_path):
    folder = config_folder(tmp_path, task__cats=CAT_FILE, suites__pets="tasks: [cats, vtab/pets, imagenet]")
    config = compose("evaluate", ["suite=pets"], [folder])
    assert config.evaluate.suites == {"pets": ["cats", "vtab/pets", "imagenet"]}
    register(dict(config.tasks))
    register_suites(dict(config.suites))
    assert [task.key for task in resolve_suite("pets")] == ["cats", "vtab/pets", "imagenet1k"]
    assert [task.key for task in resolve_suite("cifar10,pets")][:2] == ["cifar10", "cats"]


def test_the_members_of_a_suite_of_the_user_are_part_of_the_key(own):
    def key(**named: list[str]) -> dict:
        return parameters(Evaluate("pets", None, 0, "fp32", tasks={"cats": CATS}, suites=named))

    first = key(pets=["cats", "cifar10"])
    assert first["suites"] == {"pets": ["cats", "cifar10"]}
    assert key(pets=["cats"]) != first
    assert key(pets=["cats", "cifar10"], others=["cats"]) == first, "another suite is no part of it"
    plain = parameters(Evaluate("quick", None, 0, "fp32", tasks={"cats": CATS}, suites={"pets": ["cats"]}))
    assert not {"tasks", "suites"} & set(plain)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"vtab": ["cats"]}, ["suites.vtab"]),
        ({"cats": ["cats"]}, ["suites.cats"]),
        ({"pets": ["cast"]}, ["suites.pets", "'cast'", "cats"]),
        ({"pets": []}, ["suites.pets"]),
        ({"pets": "cats"}, ["suites.pets"]),
        ({"pets": 3}, ["suites.pets"]),
    ],
)
def test_a_suite_that_cannot_be_right_is_refused(own, named, said):
    register({"cats": CATS})
    with pytest.raises(ConfigError) as refused:
        register_suites(named)
    assert all(word in str(refused.value) for word in said), refused.value


def test_two_files_of_one_name_and_files_that_are_no_mappings_are_refused(own, tmp_path):
    a = config_folder(tmp_path / "a", task__cats=CAT_FILE, suites__pets="tasks: [cats]")
    b = config_folder(tmp_path / "b", task__cats=CAT_FILE)
    with pytest.raises(ConfigError, match=r"cats\.yaml.*cats\.yaml"):
        compose("evaluate", [], [a, b])
    assert compose("evaluate", [], [a, a]).suites == {"pets": ["cats"]}, "one folder named twice is one"
    for text in ("- a\n- b\n", "task: [cats]\n", "tasks: [cats]\nname: Pets\n"):
        folder = config_folder(tmp_path / "c", suites__pets=text)
        with pytest.raises(ConfigError, match=r"pets\.yaml"):
            compose("evaluate", [], [folder])


def test_files_of_names_lie_beside_the_yaml_file(own, tmp_path):
    folder = config_folder(tmp_path, task__cats=CAT_FILE + "class_names: names.txt\n")
    (tmp_path / "task" / "names.txt").write_text("cat\ndog\n")
    register(dict(compose("evaluate", [], [folder]).tasks))
    assert find_task("cats").class_names == ("cat", "dog")
