"""Evaluation as a stage: a checkpoint and a folder of sets in, results with outcomes out."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from dbp.config import build, require
from dbp.engine.paths import file_digest
from dbp.engine.progress import progress
from dbp.engine.stage import Node, Stage, runtime
from dbp.engine.store import Store
from dbp.engine.work import Work
from dbp.errors import ConfigError, DbpError
from dbp.names import name_of
from evaluation.results import Failure, Result, load_results, save_results
from evaluation.running.devices import list_devices
from evaluation.running.encode import Towers
from evaluation.running.prepare import VERSION, Asked, check_own
from evaluation.running.runner import Encoding, encode_for, evaluate_checkpoints
from evaluation.sets.at_hand import sets_lack
from evaluation.sets.benchmark import names_version
from evaluation.sets.folders import described, files_of, set_files
from evaluation.suites import own_parts, register_suites, resolve_suite
from evaluation.tasks import Task, find_task, register


@dataclass(frozen=True)
class SetFolder:
    """Where evaluation sets lie, in DataComp's layout."""

    folder: Path


@dataclass(frozen=True)
class Sets(Stage):
    """A folder of evaluation sets, named by the sizes and times of its files, never by its path."""

    name: ClassVar[str] = "sets"
    version: ClassVar[int] = 1
    makes: ClassVar[type] = SetFolder

    root: str = runtime("")

    def require_folder(self) -> Path:
        """The folder.

        Raises:
            ConfigError: It is not there.
        """
        root = Path(self.root)
        if not root.is_dir():
            raise ConfigError(
                f"root={self.root!r} is no folder. Give the folder that holds the sets in "
                "DataComp's layout (wds_…_test), or root=glyphs."
            )
        return root

    def source(self) -> dict[str, Any]:
        files = described(self.require_folder(), set_files(Path(self.root)))
        return {"files": hashlib.sha256(json.dumps(files).encode()).hexdigest()}

    def run(self, work: Work) -> dict[str, Any]:
        return {"files": len(set_files(Path(self.root)))}

    def open(self, home: Path, **inputs: Any) -> SetFolder:
        return SetFolder(Path(self.root))


@dataclass(frozen=True)
class Results:
    """What one evaluation found: results under the protocol that is shown, others, and tasks without any."""

    results: list[Result]
    others: list[Result]
    failures: list[Failure]


@dataclass(frozen=True)
class Evaluate(Stage):
    """Evaluate a checkpoint on a suite, under both protocols.

    Args:
        suite: A suite, a task, or a list of them.
        tasks: Tasks of the user by key, as `evaluation.tasks.OwnTask` describes them.
        suites: Suites of the user: name -> members.
        limit: Only so many samples of each set; null for all.
        seed: Of the bootstrap.
        precision: `fp32`, `bf16` for autocast, or `reference`: half precision on a GPU where DataComp
            has it.
        max_templates: Only so many prompts of each class, beside a limit, for rehearsals.
        protocol: What is shown: `corrected`, or `datacomp` bug for bug.
        batch_size: Pictures at a time.
        num_workers: Processes that decode; `auto`: half the cores on a CPU, up to 16 beside a GPU.
        device: As torch names it, or `auto`.
        devices: How many of its kind share the pictures; `auto`: all GPUs, one CPU.
        keep_vectors: Keep what is encoded until the evaluation is done (`dbp evaluate`: for good), so
            that a killed one goes on where it stopped.
        crops: Folder for cropped pictures, so that the next checkpoint decodes nothing; none: no crops.
        vectors: Folder for vectors that several evaluations share; each has its own without it.
    """

    name: ClassVar[str] = "evaluate"
    version: ClassVar[int] = VERSION
    needs: ClassVar[tuple[str, ...]] = ("checkpoint", "sets")
    makes: ClassVar[type] = Results
    home: ClassVar[str] = "runs"

    suite: str | list[str]
    limit: int | None
    seed: int
    precision: Literal["fp32", "bf16", "reference"]
    max_templates: int | None = None
    protocol: Literal["corrected", "datacomp"] = runtime("corrected")
    batch_size: int = runtime(128)
    num_workers: int | Literal["auto"] = runtime("auto")
    device: str = runtime("auto")
    devices: int | Literal["auto"] = runtime("auto")
    keep_vectors: bool = runtime(True)
    crops: str | None = runtime(None)
    vectors: str | None = runtime(None)
    tasks: dict[str, Any] = runtime(default_factory=dict)
    suites: dict[str, Any] = runtime(default_factory=dict)

    def __post_init__(self) -> None:
        for name, own in zip(("tasks", "suites"), own_parts(self.tasks, self.suites, self.suite), strict=True):
            object.__setattr__(self, name, own)
        for name, holds, must in (
            ("limit", self.limit is None or self.limit > 0, "above 0, or null for all"),
            (
                "max_templates",
                self.max_templates is None or (self.max_templates > 0 and self.limit is not None),
                "above 0 and beside a limit, or null for all prompts",
            ),
            ("batch_size", self.batch_size > 0, "above 0"),
            ("devices", self.devices == "auto" or self.devices > 0, "above 0, or auto"),
            ("num_workers", self.num_workers == "auto" or self.num_workers >= 0, "0 or more"),
        ):
            require(holds, name, getattr(self, name), must)

    def identity(self) -> dict[str, Any]:
        """Suites of the user, and how its tasks are scored; their names and levels of chance may change."""
        own = {key: scored_by(find_task(key)) for key in self.tasks}
        both = {"tasks": own, "suites": self.suites}
        return {name: found for name, found in both.items() if found}

    def lacks(self, inputs: Mapping[str, Node]) -> Iterator[DbpError | str]:
        """The sets of the suite that are not at hand; and those that are not the tasks' own, as a text."""
        sets, tasks = inputs["sets"].stage, resolve_suite(self.suite)
        root = Path(sets.root) if isinstance(sets, Sets) else None  # rendered, without one
        if root is not None and not root.is_dir():
            return  # said by the sets themselves
        said = [] if root is None else list(sets_lack(tasks, root))
        yield from said
        if not any(isinstance(one, DbpError) for one in said):
            try:
                check_own(tasks, root)
            except ConfigError as error:
                yield error

    def run(self, work: Work, checkpoint: Any, sets: Any) -> dict[str, Any]:
        failures: list[Failure] = []
        work.begin()
        here = work.shared / "vectors" if self.keep_vectors else None
        results = evaluate_checkpoints(
            [self.load(checkpoint)],
            self.suite,
            sets.folder,
            self.asked(),
            self.encoding(Path(self.vectors) if self.vectors else here),
            failures=failures,
        )
        save_results(work.folder / "results.jsonl", results)
        (work.folder / "failures.json").write_text(json.dumps([[f.task, f.reason] for f in failures]))
        if not results:
            raise ConfigError(
                f"no task of suite {self.suite!r} could be evaluated in {sets.folder}; the first: "
                f"{failures[0].task}: {failures[0].reason}"
            )
        return {"tasks": len({result.task for result in results}), "failed": len(failures)}

    def open(self, home: Path, **inputs: Any) -> Results:
        file = home / "results.jsonl"
        found = load_results(file) if file.exists() else []
        return Results(
            [result for result in found if result.protocol == self.protocol],
            [result for result in found if result.protocol != self.protocol],
            [Failure(*failure) for failure in json.loads((home / "failures.json").read_text())],
        )

    def asked(self) -> Asked:
        """What is measured, as the runner takes it."""
        return Asked(seed=self.seed, limit=self.limit, max_templates=self.max_templates)

    def encoding(self, keep: Path | None) -> Encoding:
        """Where pictures are encoded, with a folder for vectors."""
        from dbp.device import pick_device

        devices = list_devices(pick_device(self.device), self.devices)
        return Encoding(keep, Path(self.crops) if self.crops else None, devices, progress)

    def load(self, checkpoint: Any) -> Towers:
        """The model of a run of ours with what feeds it."""
        found = self.towers(None, checkpoint=checkpoint.weights, config=checkpoint.config)
        return replace(found, samples_seen=checkpoint.samples_seen)

    def towers(self, model: str | None, *, pretrained: str | None = None, **weights: Any) -> Towers:
        """A model with what feeds it; the arguments are those of `load_openclip`."""
        from dbp.device import pick_device
        from dbp.encoders.openclip import load_openclip

        device = pick_device(self.device)
        loaded = load_openclip(model, pretrained=pretrained, device=device, **weights)
        # Published weights have no file of ours to hash, so the tag is part of the name.
        name = f"{loaded.name}:{pretrained}" if pretrained else loaded.name
        return Towers(
            loaded.model, loaded.preprocess, loaded.tokenizer, name, loaded.digest,
            config=loaded.config, device=device, precision=self.precision,
            batch_size=self.batch_size, num_workers=count_workers(self.num_workers, device),
        )  # fmt: skip


def scored_by(task: Task) -> list[Any]:
    """What the numbers of a task of the user depend on, besides the files of its set under `root`."""
    place, more = task.folder, dict[str, Any]()
    if Path(place).is_absolute():  # named by its files, not by its path
        place = hashlib.sha256(json.dumps(files_of(task)).encode()).hexdigest()
    if task.built is not None:
        more = {name: value for name, value in asdict(task.built).items() if value is not None}
        for name in ("custom_classname_file", "custom_template_file"):
            if name in more and Path(more[name]).exists():  # else it is one of the package's
                more[name] = file_digest(more[name], f"tasks.{task.key}.{name}")
        if version := names_version(task.built):
            more["clip_benchmark"] = version
    more |= {name: list(lines) for name, lines in task.given.items()}
    if task.version != 1:
        more["version"] = task.version
    return [task.kind, place, *([more] if more else [])]


def encode_together(store: Store, evaluations: Sequence[Node], vectors: Path) -> None:
    """Encode the pictures of a suite once for the checkpoints of several evaluations, nodes of `Evaluate`.

    Those that read the same pictures in the same way are joined. `vectors` is for `Evaluate.vectors`.
    """
    groups: dict[tuple[Any, ...], list[tuple[Evaluate, Any]]] = {}
    for node in evaluations:
        stage: Any = node.stage
        model = stage.load(store.get(node.inputs["checkpoint"]))
        root = store.get(node.inputs["sets"]).folder
        alike = (str(stage.suite), str(root), stage.asked(), repr(model.preprocess))
        groups.setdefault(alike, []).append((stage, model))
    for (_, root, asked, _), members in groups.items():
        stage = members[0][0]
        encode_for([model for _, model in members], stage.suite, Path(root), asked, stage.encoding(vectors))


def count_workers(asked: int | Literal["auto"], device: str) -> int:
    """Processes that decode pictures, for a setting that may leave it to us."""
    if asked != "auto":
        return asked
    cores = len(os.sched_getaffinity(0))
    return min(cores, 16) if device.startswith("cuda") else cores // 2


def sets_node(config: Any) -> Node:
    """The evaluation sets that a config names: a folder, or the glyphs' rendered ones.

    Raises:
        ConfigError: No folder is named.
    """
    register({str(key): dict(facts) for key, facts in (config.get("tasks") or {}).items()})
    register_suites(dict(config.get("suites") or {}))
    if config.root == "glyphs":
        from dbp.pools.glyph_pool import GlyphPool, RenderTasks
        from dbp.pools.glyphs import GlyphPlan

        rendered = name_of(str(config.pool.get("_target_", ""))) == name_of(GlyphPool)
        plan = build(config.pool.plan, GlyphPlan, "pool.plan") if rendered else GlyphPlan()
        return RenderTasks.of(plan).bind()
    if config.root is None:
        raise ConfigError(
            "root is not set. Give the folder that holds the evaluation sets in DataComp's layout "
            "(wds_…_test), or root=glyphs for the rendered ones."
        )
    return Sets(root=str(config.root)).bind()
