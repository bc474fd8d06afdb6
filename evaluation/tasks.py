"""The tasks that can be evaluated: DataComp's 40, a few of CLIP_benchmark's, the glyphs pool's.

The facts stand in `tasks.csv`. A task with a main metric and `in_average` is one of DataComp's 38;
FairFace and UTKFace have no main metric, so they run and are in no average. Tasks of the user are YAML files in
the folder `task` of a config folder; results carry their facts, so that tables need no config.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dbp.config import build, require
from dbp.errors import ConfigError, nearest
from evaluation.sets.benchmark import Built, facts


@dataclass(frozen=True)
class Task:
    """One dataset with one main metric.

    Args:
        key: Name in commands and results, as `vtab/dtd`.
        name: Name in tables, as `Describable Textures`.
        kind: How it is scored, one of `evaluation/kinds/registry.py`.
        main_metric: The metric that stands in tables and averages; none for the two face sets.
        group: DataComp's column that it belongs to besides the average, if any.
        in_average: Whether it is one of the 38 tasks of DataComp's average.
        in_datacomp: Whether it is one of the 40 tasks of DataComp's list.
        test_size: Samples of the full test set, where it is fixed: pictures, or WinoGAViL's
            instances.
        num_classes: Classes, where it is a fixed number.
        num_templates: Lines of its templates file, where they were counted.
        folder: Its folder in DataComp's layout: absolute, or under the root of the sets.
        clip_benchmark: What CLIP_benchmark calls it, as `wds/vtab/dtd`; none where it has no loader.
        chance: Expected value of the main metric for a random guess, in [0, 1]; none where it is not known.
        hub: Repository of its raw files on the Hub, for the tasks that DataComp reads from there.
        built: The data set of clip_benchmark that it is, for a task of the user with `source: clip_benchmark`.
        class_names: In the order of the labels, for a task of the user; null: from the folder.
        templates: Prompts with `{c}` for the name, likewise.
        version: Of the set, for a task of the user.
    """

    key: str
    name: str
    kind: str
    main_metric: str | None
    group: str | None
    in_average: bool
    in_datacomp: bool
    test_size: int | None
    num_classes: int | None
    num_templates: int | None
    folder: str
    clip_benchmark: str | None
    hub: str | None
    chance: float | None
    built: Built | None = None
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    version: int = 1

    @property
    def is_built(self) -> bool:
        """Whether its set is read through clip_benchmark; not so tars, and Winoground's tables from the Hub."""
        return self.built is not None and not self.built.is_tars and self.hub is None

    @property
    def split(self) -> str:
        """The folder of its tars."""
        return self.built.split if self.built else "test"

    @property
    def given(self) -> dict[str, tuple[str, ...]]:
        """The class names and templates that do not come from the folder, as `Kind.open` takes them."""
        both = {"class_names": self.class_names, "templates": self.templates}
        return {name: lines for name, lines in both.items() if lines is not None}


@dataclass(frozen=True)
class OwnTask:
    """What a YAML file says of a task of the user; the key is the file's name.

    Args:
        kind: How it is scored: a name of `evaluation/kinds/registry.py`, or the dotted path of a `Kind`.
        main_metric: The metric in tables and means, such as `acc1` or `mean_recall@1`.
        name: In tables; the key if null.
        folder: In DataComp's layout: absolute, or under `root`; `wds_KEY_test` if null.
        num_classes: Classes; says the level of chance of `acc1` and `mean_per_class_recall`.
        test_size: Samples of the whole test set; a set with another number is marked in results.
        num_templates: Lines of its templates file, likewise.
        chance: Expected value of the main metric for a random guess, in [0, 1]; null if not known.
        class_names: In the order of the labels, or a text file of them, one a line; null: classnames.txt.
        templates: Prompts with `{c}` for the name, or a text file; null: zeroshot_classification_templates.txt.
        version: Of the set, from 1: results of two versions are two measurements.
        source: `clip_benchmark`: the set is one that clip_benchmark reads, in its own layout. Kind, main metric
            and folder then follow from its name where they are null; the fields below are for it alone.
        dataset: Its name there, as `sugar_crepe/add_att`; it lies in the folder `sugar_crepe/add_att`,
            `sugar_crepe-add_att` or `sugar_crepe` under `root`, or in `root` itself, if `folder` is null.
        language: Of class names and templates, or of captions, by its codes; `en` if null.
        split: As its reader calls it; `test` if null.
        annotation_file: Captions of mscoco_captions, flickr30k or flickr8k, if not at the usual place.
        custom_classname_file: A JSON of class names by data set, in place of the package's.
        custom_template_file: A JSON of templates by data set, in place of the package's.
    """

    kind: str | None = None
    main_metric: str | None = None
    name: str | None = None
    folder: str | None = None
    num_classes: int | None = None
    chance: float | None = None
    class_names: list[str] | str | None = None
    templates: list[str] | str | None = None
    test_size: int | None = None
    num_templates: int | None = None
    version: int = 1
    source: Literal["clip_benchmark"] | None = None
    dataset: str | None = None
    language: str | None = None
    split: str | None = None
    annotation_file: str | None = None
    custom_classname_file: str | None = None
    custom_template_file: str | None = None

    def __post_init__(self) -> None:
        for name in ("class_names", "templates"):
            object.__setattr__(self, name, lines_of(getattr(self, name), name))
        for name, lines in (("num_classes", self.class_names), ("num_templates", self.templates)):
            if lines is not None and getattr(self, name) not in (None, len(lines)):
                raise ConfigError(f"{name}={getattr(self, name)}: {len(lines)} are given. Correct one of them.")
        if self.class_names is not None:
            object.__setattr__(self, "num_classes", len(self.class_names))
            blank = next((number for number, name in enumerate(self.class_names) if not name), None)
            require(blank is None, "class_names", f"line {blank}", "a name, not blank")
            twins = [name for name, times in Counter(self.class_names).items() if times > 1]
            require(not twins, "class_names", ", ".join(twins), "the name of one class alone")
        for template in self.templates or ():
            require("{c}" in template, "templates", template, "a text with {c} where the name of the class goes")
        is_share = self.chance is None or 0 <= self.chance <= 1
        require(is_share, "chance", self.chance, "in [0, 1]: a share, as 0.1 for ten classes, not percent")
        for name in ("num_classes", "test_size", "num_templates", "version"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")


def lines_of(said: Any, name: str) -> list[str] | None:
    """The lines that a YAML file gives, or those of the text file that it names."""
    if not isinstance(said, str):
        require(said is None or len(said) > 0, name, said, "a list of at least one line, or null")
        return said
    try:
        found = [line.strip() for line in Path(said).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        must = f"a list, or a text file of one a line ({error})"
        raise ConfigError(f"{name}={said!r}: it must be {must}") from error
    require(bool(found), name, said, "a text file with at least one line")
    return found


# What is counted in a set -> the fact of its task.
FACTS = {"samples": "test_size", "class names": "num_classes", "templates": "num_templates"}

_own: dict[str, Task] = {}  # by key: those of the user that this process has met
_facts: dict[str, dict[str, Any]] = {}  # their YAML


def register(tasks: Mapping[str, Mapping[str, Any]], *, of_results: bool = False) -> None:
    """Make tasks of the user known in this process.

    Args:
        tasks: Key -> what its YAML file says, as `OwnTask` describes it.
        of_results: They stand in results: what a YAML file says now comes first.

    Raises:
        ConfigError: A field is wrong, or a key or a name is that of another task already.
    """
    taken = {task.name.casefold(): task.key for task in _published().values()}
    for key, said in tasks.items():
        task = _task_of(key, build(said, OwnTask, f"tasks.{key}"))
        if key in _published() or "," in key:
            raise ConfigError(
                f"tasks.{key}: no task of the user can have this key. Give the YAML file another name."
            )
        if (other := taken.setdefault(task.name.casefold(), key)) != key and not of_results:
            raise ConfigError(
                f"tasks.{key}.name={task.name!r}: the task {other} has this name, and a table could not tell "
                "them apart. Give another name."
            )
        if not (of_results and key in _own):
            texts = {name: list(lines) for name, lines in task.given.items()}  # a file may be gone later
            _own[key], _facts[key] = task, {**said, **texts}


def _task_of(key: str, own: OwnTask) -> Task:
    values = _own_values(own, f"tasks.{key}")
    folder = values["folder"] or f"wds_{key}_test"
    if folder.startswith("~"):
        folder = str(Path(folder).expanduser())
    texts = {name: tuple(values[name]) for name in ("class_names", "templates") if values[name] is not None}
    blank = dict.fromkeys(field.name for field in fields(Task)) | {"in_average": False, "in_datacomp": False}
    return _with_chance({**blank, **values, **texts, "key": key, "name": own.name or key, "folder": folder})


def _own_values(own: OwnTask, setting: str) -> dict[str, Any]:
    """What a YAML file says, with what follows from the name of a data set of clip_benchmark."""
    said = {field.name: getattr(own, field.name) for field in fields(Built)}
    values = {name: value for name, value in asdict(own).items() if name not in {*said, "source"}}
    said = {name: value for name, value in said.items() if value is not None}
    if own.source is None and said:
        name, value = next(iter(said.items()))
        raise ConfigError(
            f"{setting}.{name}={value} is for source: clip_benchmark. Add that line, or leave {name} out."
        )
    if own.source is not None:
        if own.dataset is None:
            raise ConfigError(
                f"{setting}.dataset is not set: which data set of {own.source}, as sugar_crepe/add_att?"
            )
        built = Built(**said)
        follows = facts(built, setting)
        texts = [name for name in ("class_names", "templates") if values[name] is not None]
        if texts and not built.is_tars:
            raise ConfigError(
                f"{setting}.{texts[0]} is for folders of tars, and clip_benchmark has names and templates of "
                f"{own.dataset} itself. Give others in custom_classname_file and custom_template_file."
            )
        values |= follows | {name: value for name, value in values.items() if value is not None} | {"built": built}
    for name in ("kind", "main_metric"):
        if values[name] is None:
            raise ConfigError(f"{setting}.{name} is not set. Give it, or source: clip_benchmark and a dataset.")
    return values


def is_own(task: Task) -> bool:
    """Whether a task is one of the user."""
    return task.key in _own


def own_facts(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What `register` was given for those of some keys that are tasks of the user."""
    return {key: _facts[key] for key in keys if key in _facts}


def load_tasks() -> dict[str, Task]:
    """Every task by key: the published ones in the order of DataComp's list, then the user's."""
    return {**_published(), **_own}


@cache
def _published() -> dict[str, Task]:
    """Read the table of tasks.

    Source:
        DataComp's `tasklist.yml` for keys, names, sizes and main metrics; `DATASET_GROUPS` of its
        `aggregate_scores.py` for the groups. CLIP_benchmark's `webdatasets.txt` and packaged
        prompts for its names and the numbers of templates.
    """
    with Path(__file__).with_name("tasks.csv").open(encoding="utf-8", newline="") as file:
        return {row["key"]: _parse(row) for row in csv.DictReader(file)}


def find_task(key: str) -> Task:
    """Look a task up by its key.

    Raises:
        ConfigError: There is no such task; names the nearest one.
    """
    found = _published().get(key) or _own.get(key)
    if found is None:
        raise ConfigError(f"There is no task '{key}'. {nearest(key, load_tasks())}")
    return found


def departures(task: Task, counts: Mapping[str, int]) -> str:
    """Where a set has other numbers than its task, as `2,000 of 10,000 samples`; empty where it has the same.

    Args:
        task: Numbers that it does not state are not compared.
        counts: Of the set, by the names of `FACTS`; those that are not known are left out.
    """
    found = []
    for what, fact in FACTS.items():
        there, wanted = counts.get(what), getattr(task, fact)
        if there is not None and wanted is not None and there != wanted:
            one = f"{there:,} of {wanted:,} {what}" if there < wanted else f"{there:,} {what}, not {wanted:,}"
            found.append(one)
    return ", ".join(found)


def _parse(row: dict[str, str]) -> Task:
    """A line of the table; a cell without a value is none."""
    values: dict[str, Any] = {name: text or None for name, text in row.items()}
    for column in ("test_size", "num_classes", "num_templates"):
        values[column] = values[column] and int(values[column])
    for column in ("in_average", "in_datacomp"):
        values[column] = values[column] == "yes"
    values["chance"] = values["chance"] and float(values["chance"])
    return _with_chance(values)


def _with_chance(values: dict[str, Any]) -> Task:
    """A task, with the level of chance that its number of classes implies where none is given."""
    if (
        values["chance"] is None
        and values["main_metric"] in ("acc1", "mean_per_class_recall")
        and values["num_classes"]
    ):
        values["chance"] = 1 / values["num_classes"]  # what a uniform guess reaches
    return Task(**values)


def with_chance(label: str, chance: float | None) -> str:
    """A heading with the level of chance in percent, where it is known."""
    return label if chance is None else f"{label} (chance {100 * chance:.2g})"
