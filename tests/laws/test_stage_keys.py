"""The laws of a key: what changes it, and what must not.

Every stage is found by walking subclasses, every field by walking its dataclass, and values come from the
YAML configs, so a new stage or field is under these laws without a word here.
"""

import dataclasses
import importlib
import json
import pkgutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from omegaconf import OmegaConf

import dbp
from dbp.captioning.best import BestText
from dbp.captioning.codes import CodeVectors, Encode
from dbp.captioning.refine import Refine
from dbp.captioning.texts import ReadTexts
from dbp.config import build, groups
from dbp.curate import ValidRows
from dbp.dedup.borders import Borders
from dbp.dedup.prototypes import CompareWithPrototypes
from dbp.encoders.base import Encoder
from dbp.encoders.embed import Embed
from dbp.encoders.openclip import OpenClip
from dbp.encoders.precomputed import Precomputed
from dbp.engine.paths import config_folder
from dbp.engine.stage import Stage, canonical, key_of, parameters, plain, runtime
from dbp.metadata.base import Combined, Numbers
from dbp.metadata.sources import WordNet
from dbp.metadata.wikipedia import Pairs, Titles, Words
from dbp.pools.glyph_pool import RenderGlyphs, RenderTasks
from dbp.pools.index import Index
from dbp.pools.packed import PackFolder, PackParquet, Unpack
from dbp.pools.values import ReadColumn
from dbp.scoring.second_moment import TargetMoment
from dbp.selection.budget import Budget
from dbp.selection.held_out import HoldOut
from dbp.selection.metadata import Balancing
from evaluation import tasks
from evaluation.stage import Evaluate, Sets
from training.account.metrics import Csv
from training.config import Model
from training.feed.captions import CaptionMix
from training.feed.streaming import Streaming
from training.feed.weights import BySource
from training.online.at_random import AtRandom
from training.online.reference import MakeReference
from training.stage import Train
from training.watching.watch import Watch

# Fields that cannot change alone, and what must change beside them.
TOGETHER = {
    ("Index", "background"): {"background": "white"},
    ("Metadata", "background"): {"background": "white"},
    ("SemDeDup", "score"): None,  # read beside keep=score alone; of no key: tests/unit/test_offers.py
    ("Mix", "weights"): {"weights": {"another": 1}},
    ("Evaluate", "tasks"): None,  # enters through `identity`; tests/unit/test_evaluation_tasks.py
    ("Evaluate", "suites"): None,
    ("Threshold", "maximum"): {"minimum": None, "maximum": 0.5},
    ("Train", "epochs"): {"epochs": 1.0, "samples_seen": None},
    ("Train", "samples_seen"): {"samples_seen": 2**15 * 33 * 105, "epochs": None},  # whole batches of all
    ("Train", "round_budget"): [{"round_budget": True}, {"round_budget": False, "samples_seen": 2**15 * 33 * 105}],
    # auto is fp32 on a CPU: equal keys, rightly
    ("Train", "precision"): [{"precision": "bf16"}, {"precision": "fp32"}],
    ("TrainCaptioner", "batch_size"): {"batch_size": 1},
    ("TrainCaptioner", "precision"): [{"precision": "bf16"}, {"precision": "fp32"}],
    ("Budget", "prune_ratio"): {"prune_ratio": 0.5, "keep_fraction": None},
    ("Budget", "num_kept"): {"num_kept": 5, "keep_fraction": None},
    ("SemDeDup", "epsilon"): [{"epsilon": 0.06, "num_kept": None}, {"epsilon": 0.07, "num_kept": None}],
    # A number to keep goes with one rule alone.
    ("SemDeDup", "rule"): [
        {"rule": "greedy"},
        {"rule": "chain"},
        {"rule": "greedy", "num_kept": None, "epsilon": 0.06},
    ],
    ("SemDeDup", "num_kept"): {"num_kept": 5, "epsilon": None},
    ("FairDeDup", "rule"): None,  # one value
    ("FairDeDup", "num_kept"): None,
    ("FairDeDup", "score"): None,
    ("FairDeDup", "templates"): {"templates": ("a {c}",)},
    ("EncodePrototypes", "templates"): {"templates": ("a {c}",)},
    ("Index", "uid"): {"uid": "hash"},
    ("Index", "caption"): {"caption": "json:caption"},
    ("Metadata", "caption"): {"caption": "json:caption"},
    ("Language", "by"): None,  # a column's name is kept, a file's path is not; tested apart
    ("Optimiser", "decay_groups"): None,  # one option
    ("Model", "name"): [{"name": "ViT-B-16"}, {"name": "ViT-B-32"}],
    ("Model", "config"): {"config": {"embed_dim": 1, "vision_cfg": {}, "text_cfg": {}}},
    ("Train", "loggers"): {"loggers": (Csv(),)},
    ("Train", "mixture"): {"mixture": BySource({}, 1.0)},
    ("Train", "online"): {"online": AtRandom(super_batch=None, filter_ratio=0.5)},
    ("Train", "budget"): None,  # read beside what scores alone; tests/unit/test_online.py
    ("AtRandom", "filter_ratio"): {"filter_ratio": 0.75},
    ("AtRandom", "super_batch"): {"super_batch": 512, "filter_ratio": None},
    ("Cabs", "filter_ratio"): {"filter_ratio": 0.75},
    ("Cabs", "super_batch"): {"super_batch": 512, "filter_ratio": None},
    ("Cabs", "concepts"): [{"concepts": "column", "column": "x"}, {"concepts": "clusters"}],
    ("Cabs", "released_ranks"): {"released_ranks": 2},
    ("Jest", "filter_ratio"): {"filter_ratio": 0.75},
    ("Jest", "super_batch"): {"super_batch": 512, "filter_ratio": None},
    ("Jest", "chunks"): {"chunks": 8},
    ("Train", "captions"): {"captions": CaptionMix("original", None, None, "caption")},
    ("Train", "streaming"): {"streaming": Streaming(2, 1.0)},
    ("Train", "watch"): {"watch": Watch(None, ())},
    ("Evaluate", "suite"): {"suite": "glyphs"},
    ("Evaluate", "max_templates"): {"max_templates": 1, "limit": 5},
    ("ScoreColumn", "minimum"): {"minimum": 0.3, "fraction": None},
    ("Index", "shards"): None,
    ("ByColumn", "values"): {"values": ["a"]},
    ("Coverage", "concepts"): {"concepts": "column", "column": "x"},
    ("Coverage", "metadata"): {"metadata": Numbers(5)},
    ("Hierarchical", "levels"): {"levels": [400, 40]},
    ("Hierarchical", "nearest"): {"nearest": [9, 5]},
    ("Hierarchy", "levels"): {"levels": [400, 40]},
    ("Hierarchy", "nearest"): {"nearest": [9, 5]},
    ("Sets", "root"): None,
    ("ReadTexts", "packed"): None,
    ("ReadColumn", "packed"): None,  # what it was read from enters through `source`: tests/unit/test_layouts.py
}
# A file's content enters the key and its path does not; tested with each stage that reads one.
READ = {"checkpoint", "config", "images", "texts", "metadata", "folder", "file", "path", "centroids"}
READ |= {"targets", "uids", "ids", "words", "language", "by", "wordnet", "pairs", "text", "titles", "concepts"}


POOL = OmegaConf.load(config_folder() / "pool/rehearsal.yaml")


@pytest.fixture(autouse=True)
def tasks_of_the_user_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_own", {})
    monkeypatch.setattr(tasks, "_facts", {})


def preset(group: str, option: str) -> Any:
    """The node of one YAML file, with the file that it builds on and the frame's values."""
    found = _preset(group, option)
    if (group, option) == ("select", "coverage"):
        found.share = 0.5
    if (group, option) == ("dedup", "fairdedup"):
        found.concepts = ["a", "b"]
    return found


def _preset(group: str, option: str) -> Any:

    def load(name: str) -> Any:
        node = OmegaConf.load(config_folder() / group / f"{name}.yaml")
        for base in node.pop("defaults", []):
            if base != "_self_":
                node = OmegaConf.merge(load(base), node)
        return node

    frame = OmegaConf.load(config_folder() / "frame.yaml")
    parts = {"threads": 1, "device": "cpu", "rows_per_part": 32_768}
    frame.merge_with({"logger": {"loggers": []}, "parts": parts, "pool": POOL, "it": load(option)})
    frame.merge_with(dict.fromkeys(("watch", "mixture", "caption", "streaming", "online")))
    frame.encoder = {
        use: OmegaConf.load(config_folder() / "encoder/openclip_b32.yaml") for use in ("score", "dedup")
    }
    return frame.it


def presets(group: str) -> Iterator[Any]:
    yield from (preset(group, option) for option in groups()[group])


def stages_of_the_configs() -> list[Stage]:
    """One stage or more of every class, with the values of the configs."""
    found: list[Stage] = [ValidRows(), Sets(root=""), HoldOut(str(config_folder() / "frame.yaml"))]
    for group in ("dedup", "score", "filter", "cluster"):
        found += [build(node, path=group) for node in presets(group)]
    for node in presets("select"):
        extra = {"budget": Budget(keep_fraction=0.5)} if "seed" in node else {}
        found.append(build(node, path="select", **extra))
        if "members" in node:
            node.members = "random"
            found.append(build(node, path="select", **extra))
    found += [Embed(build(node, path="encoder"), "image") for node in presets("encoder")]
    plan = build(preset("pool", "glyphs"), path="pool").plan
    found += [RenderGlyphs(plan), RenderTasks.of(plan), PackParquet(), PackFolder(), Unpack()]
    found.append(build(OmegaConf.merge(preset("pool", "webdataset"), {"shards": ""}), path="pool"))
    found += [build(preset("pool", name), path="pool") for name in ("datacomp", "rehearsal")]
    found.append(build(preset("pool", "sorted_clusters"), path="pool"))
    models = [build(node, Model, "model") for node in presets("model")]
    for node in presets("train"):
        found += [build(node, path="train", model=model) for model in models]
    chooses = [build(preset("online", name), path="online") for name in groups()["online"] if name != "none"]
    found += [build(preset("train", "glyphs"), path="train", model=models[0], online=one) for one in chooses]
    found.append(MakeReference(chooses[-1].reference, None))
    node = OmegaConf.load(config_folder() / "frame.yaml").evaluate
    found.append(build(node, Evaluate, "evaluate"))
    for name in ("paper", "glyphs", "smoke"):
        found.append(build(preset("captioner", name), path="captioner"))
    found += [Encode(), CodeVectors("histogram"), Refine(0.5, 0.9, 0)]
    found += [ReadTexts("json", "x"), BestText(ReadTexts("json", "x"))]
    # stages that stages stand on
    for name in ("comparison", "clustering", "fitting", "matching", "hierarchy", "prototypes"):
        found += [getattr(stage, name)() for stage in found if hasattr(stage, name)]
    found += [stage.metadata for stage in found if isinstance(stage, Balancing)]
    sources = (Numbers(100), WordNet("names"), Words(100), Pairs(30.0), Titles(70))
    found += [*sources, Combined(sources)]
    return [*found, ValidRows(), Borders(), CompareWithPrototypes(), TargetMoment(), ReadColumn("json", "x")]


STAGES = stages_of_the_configs()
NAMES = [f"{type(stage).__name__}-{number}" for number, stage in enumerate(STAGES)]


def key(stage: Stage) -> str:
    """The key of a stage apart from sources outside the store, which are tested on their own."""
    described = dataclasses.replace(stage)
    object.__setattr__(described, "source", dict)
    return key_of(described, {"rows": "a", "pool": "b"})


def others(value: Any, hint: Any) -> Iterator[Any]:
    """Other values of a type, those near the value first."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        yield from (option for option in options if option != value)
    elif type(None) in options:
        yield from () if value is None else (None,)
        for option in options:
            if option is not type(None):
                yield from others(None if value is None else value, option)
    elif options and origin not in (list, tuple, dict):
        for option in options:
            yield from others(value, option)
    elif isinstance(value, bool) or hint is bool:
        yield not value
    elif isinstance(value, int) or hint is int:
        number = value if isinstance(value, int) else 0
        yield from (number + 1, 2 * (number or 1), 128)
    elif isinstance(value, float) or hint is float:
        yield from ((value or 0.0) + 0.125, (value or 0.25) * 0.95)
    elif isinstance(value, str) or hint is str:
        yield f"{value or ''}x"
    elif isinstance(value, tuple | list):
        inner = options[0] if options else str
        yield value[:-1] if value else type(value)([next(others(None, inner))])
    elif isinstance(value, dict):
        yield value | {"another": 1}


def variants(value: Any, path: str = "") -> Iterator[tuple[str, bool, Any]]:
    """Every dataclass that differs in one field: its path, whether it may matter, the dataclass."""
    hints = typing.get_type_hints(type(value))
    unread = value.unread() if hasattr(value, "unread") else set()
    for item in dataclasses.fields(value):
        current, name = getattr(value, item.name), f"{path}{item.name}"
        matters = not item.metadata.get("runtime") and item.name not in unread
        if dataclasses.is_dataclass(current):
            for inner, inner_matters, changed in variants(current, f"{name}."):
                yield (inner, matters and inner_matters, dataclasses.replace(value, **{item.name: changed}))
            continue
        given = TOGETHER.get((type(value).__name__, item.name), {})
        if item.name in READ and item.metadata.get("runtime"):
            continue
        if given is None:
            continue
        candidates = given if isinstance(given, list) else [given]
        if not given:
            candidates = [{item.name: v} for v in others(current, hints[item.name])]
        for candidate in candidates:
            try:
                changed = dataclasses.replace(value, **candidate)
            except ValueError:  # out of range beside the other fields: try the next
                continue
            if changed == value:
                continue
            yield name, matters, changed
            break
        else:
            raise AssertionError(f"no other value was found for {type(value).__name__}.{name}")


def inside(stage: Any) -> Iterator[type]:
    """The kinds of stages that a stage is made of."""
    for item in stage.steps() if hasattr(stage, "steps") else ():
        yield type(item)
        yield from inside(item)


def subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_stage_of_the_project_is_under_these_laws() -> None:
    for module in pkgutil.walk_packages(dbp.__path__, "dbp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = ("dbp.", "training.", "evaluation.", "slurm.")
    concrete = {
        c
        for c in subclasses(Stage)
        if c.__module__.startswith(ours) and not getattr(c, "__abstractmethods__", None)
    }
    met = {type(stage) for stage in STAGES}
    bases = {c for c in concrete if any(c in other.__mro__[1:] for other in concrete)}
    filters = {inner for stage in STAGES for inner in inside(stage)}
    # An index; and what is all content of a folder, tested with it.
    assert {c.__name__ for c in concrete - met - bases - filters} <= {"Tars", "LocalCaptioner"}
    encoders = {c for c in subclasses(Encoder) if c.__module__.startswith(ours)}  # not those of other tests
    assert {type(s.encoder) for s in STAGES if isinstance(s, Embed)} == encoders


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_a_field_that_decides_the_result_changes_the_key_and_no_other_does(stage: Stage) -> None:
    original = key(stage)
    for name, matters, changed in variants(stage):
        assert changed != stage
        assert (key(changed) != original) is matters, f"{type(stage).__name__}.{name}"


def test_what_only_changes_the_speed_or_the_place_is_marked_so_everywhere() -> None:
    speed = {"device", "num_workers", "batch_size", "cache", "loggers", "log_every_samples"}
    place = {"shards", "root", "checkpoint", "images", "texts"}
    classes = {type(stage) for stage in STAGES} | set(subclasses(Encoder))
    unmarked = {
        f"{cls.__name__}.{item.name}"
        for cls in classes
        for item in dataclasses.fields(cls)
        if item.name in speed | place and not item.metadata.get("runtime")
    }
    batches = {"Train.batch_size", "TrainCaptioner.batch_size", "ClipLoss.batch_size"}
    assert unmarked == batches, "there, it is the number of negatives, and the length of a step"


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_equal_stages_have_equal_keys(stage: Stage) -> None:
    assert key(dataclasses.replace(stage)) == key(stage)


def test_no_two_stages_share_a_key() -> None:
    by_key: dict[str, Stage] = {}
    for stage in STAGES:
        assert by_key.setdefault(key(stage), stage) == stage


def test_inputs_and_their_names_are_part_of_the_key() -> None:
    stage = ValidRows()
    keys = [{}, {"pool": "a"}, {"pool": "b"}, {"other": "a"}, {"pool": "a", "other": "a"}]
    assert len({key_of(stage, inputs) for inputs in keys}) == len(keys)


def test_the_order_of_inputs_does_not_matter() -> None:
    assert key_of(ValidRows(), {"a": "1", "b": "2"}) == key_of(ValidRows(), {"b": "2", "a": "1"})


# toy stages: what a later version of the code may do to old keys


@dataclass(frozen=True)
class Toy(Stage):
    name: ClassVar[str] = "toy"

    width: int
    seed: int
    method: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    workers: int = runtime(1)

    def unread(self) -> set[str]:
        return set() if self.method == "random" else {"seed"}


def toy(**changes: Any) -> Toy:
    return Toy(**({"width": 4, "seed": 0, "method": "hard"} | changes))


@dataclass(frozen=True)
class Grown(Toy):
    """A later Toy with one more parameter, whose neutral value is the default."""

    penalty: float = 0.0


@dataclass(frozen=True)
class Corrected(Toy):
    """The same fields with another meaning."""

    version: ClassVar[int] = 2


def test_a_parameter_added_at_its_neutral_default_leaves_old_keys_alone() -> None:
    assert key_of(Grown(4, 0, "hard"), {}) == key_of(toy(), {})
    assert key_of(Grown(4, 0, "hard", penalty=0.5), {}) != key_of(toy(), {})


def test_a_new_version_changes_the_key() -> None:
    assert key_of(Corrected(4, 0, "hard"), {}) != key_of(toy(), {})


def test_a_field_that_is_not_read_beside_the_others_leaves_the_key_alone() -> None:
    assert key_of(toy(seed=1), {}) == key_of(toy(), {})
    assert key_of(toy(seed=1, method="random"), {}) != key_of(toy(method="random"), {})


def test_the_order_of_a_mapping_does_not_matter() -> None:
    forth = toy(settings={"a": 1, "b": {"c": 2.0, "d": None}})
    back = toy(settings={"b": {"d": None, "c": 2.0}, "a": 1})
    assert key_of(forth, {}) == key_of(back, {})


def test_the_type_of_a_value_matters() -> None:
    values = [1, 1.0, "1", True, None, [1], {"1": 1}]
    assert len({key_of(toy(settings={"x": value}), {}) for value in values}) == len(values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="parameters must be finite"):
        key_of(toy(settings={"deep": [1.0, {"x": bad}]}), {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"x": bad})


@pytest.mark.parametrize("bad", [np.int64(1), {1, 2}, b"x", np.ones(2), print])
def test_objects_that_have_no_one_text_are_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="cannot be part of a key"):
        plain({"deep": [bad]})


def test_canonical_json_is_sorted_and_pure_ascii() -> None:
    assert canonical({"b": "é", "a": [1, 2.5, None]}) == b'{"a":[1,2.5,null],"b":"\\u00e9"}'


def test_two_kinds_of_nested_dataclass_with_equal_fields_differ() -> None:
    plan = next(s.plan for s in STAGES if isinstance(s, RenderGlyphs))
    assert plain(plan)["type"] == "GlyphPlan"
    assert "type" not in parameters(plan)


# what lies outside the store


def test_a_checkpoint_is_named_by_its_content_and_never_by_its_path(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("c.pt", b"two")):
        (tmp_path / name).write_bytes(content)
    here, moved, other = (
        key(Embed(OpenClip(None, checkpoint=str(tmp_path / f"{name}.pt")), "image")) for name in "abc"
    )
    assert here == moved != other


def test_precomputed_vectors_are_named_by_their_content(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        np.save(tmp_path / f"{name}.npy", np.full((2, 2), value))
    here, moved, other = (
        key(Embed(Precomputed("x", images=str(tmp_path / f"{name}.npy")), "image")) for name in "abc"
    )
    assert here == moved != other


def test_the_model_s_config_may_lie_in_a_file_or_in_the_settings(tmp_path: Path) -> None:
    config = {"embed_dim": 8, "vision_cfg": {"layers": 1}, "text_cfg": {"layers": 1}}
    file = tmp_path / "model.json"
    file.write_text(json.dumps(config))
    train = next(stage for stage in STAGES if isinstance(stage, Train))
    inline, read = (dataclasses.replace(train, model=Model(config=given)) for given in (config, str(file)))
    assert key(inline) == key(read)


def index(shards: Path) -> Index:
    return Index(uid="key", caption="txt", max_pixels=10**6, shards=str(shards))


def test_a_pool_is_named_by_names_sizes_and_times_of_its_shards_never_by_folders(tmp_path: Path) -> None:
    import os
    import shutil

    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    for name in ("0.tar", "1.tar"):
        (here / name).write_bytes(name.encode())
    shutil.copytree(here, there)
    original = key_of(index(here / "{0..1}.tar"), {})
    assert key_of(index(there / "*.tar"), {}) == original
    assert key_of(index(here / "0.tar"), {}) != original
    os.utime(there / "1.tar", ns=(0, 0))
    assert key_of(index(there / "*.tar"), {}) != original


def test_evaluation_sets_are_named_by_names_sizes_and_times_of_their_files(tmp_path: Path) -> None:
    import shutil

    (tmp_path / "a" / "wds_cars_test").mkdir(parents=True)
    (tmp_path / "a" / "wds_cars_test" / "classnames.txt").write_text("one")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    original = key_of(Sets(str(tmp_path / "a")), {})
    assert key_of(Sets(str(tmp_path / "b")), {}) == original
    (tmp_path / "b" / "wds_cars_test" / "classnames.txt").write_text("three")
    assert key_of(Sets(str(tmp_path / "b")), {}) != original
