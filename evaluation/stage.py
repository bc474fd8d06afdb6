"""Evaluation as a stage: a checkpoint and a folder of sets in, results with outcomes out."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from dbp.config import build, require
from dbp.errors import ConfigError
from dbp.progress import progress
from dbp.stage import Node, Stage, runtime
from dbp.work import Work
from evaluation.results import Failure, Result, load_results, save_results


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

    def source(self) -> dict[str, Any]:
        root = Path(self.root)
        if not root.is_dir():
            raise ConfigError(
                f"root={self.root!r} is no folder. Give the folder that holds the sets in "
                "DataComp's layout (wds_…_test), or root=glyphs."
            )
        files = [
            [str(f.relative_to(root)), f.stat().st_size, f.stat().st_mtime_ns]
            for f in sorted(root.glob("wds_*/**/*"))
            if f.is_file()
        ]
        return {"files": hashlib.sha256(json.dumps(files).encode()).hexdigest()}

    def run(self, work: Work) -> dict[str, Any]:
        return {"sets": len(list(Path(self.root).glob("wds_*")))}

    def open(self, home: Path, **inputs: Any) -> SetFolder:
        return SetFolder(Path(self.root))


@dataclass(frozen=True)
class Results:
    """What one evaluation found: results with outcomes, and the tasks that failed."""

    results: list[Result]
    failures: list[Failure]

    @classmethod
    def load(cls, folder: Path) -> "Results":
        file = folder / "results.jsonl"
        failures = json.loads((folder / "failures.json").read_text())
        return cls(
            load_results(file) if file.exists() else [],
            [Failure(task, reason) for task, reason in failures],
        )


@dataclass(frozen=True)
class Evaluate(Stage):
    """Evaluate a checkpoint on a suite.

    Args:
        suite: A suite, a task, or a list of them.
        protocol: `corrected`, or `datacomp` bug for bug.
        limit: Only so many samples of each set; null for all.
        seed: Of the bootstrap.
        precision: `fp32`, or `bf16` for autocast.
        max_templates: Only so many prompts of each class, beside a limit, for rehearsals.
    """

    name: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("checkpoint", "sets")
    makes: ClassVar[type] = Results
    home: ClassVar[str] = "runs"

    suite: str | list[str]
    protocol: Literal["corrected", "datacomp"]
    limit: int | None
    seed: int
    precision: Literal["fp32", "bf16"]
    max_templates: int | None = None
    batch_size: int = runtime(128)
    num_workers: int = runtime(0)
    device: str = runtime("auto")

    def __post_init__(self) -> None:
        from evaluation.suites import resolve_suite

        resolve_suite(self.suite)
        require(
            self.limit is None or self.limit > 0, "limit", self.limit, "above 0, or null for all"
        )
        require(
            self.max_templates is None or (self.max_templates > 0 and self.limit is not None),
            "max_templates",
            self.max_templates,
            "above 0 and beside a limit, or null for all prompts",
        )

    def run(self, work: Work, checkpoint: Any, sets: Any) -> dict[str, Any]:
        from dbp.device import pick_device
        from dbp.encoders.openclip import load_openclip
        from evaluation.runner import evaluate_checkpoint

        device = pick_device(self.device)
        loaded = load_openclip(
            None, checkpoint=checkpoint.weights, config=checkpoint.config, device=device
        )
        failures: list[Failure] = []
        results = evaluate_checkpoint(
            loaded.model,
            loaded.preprocess,
            loaded.tokenizer,
            self.suite,
            sets.folder,
            device=device,
            model_name=loaded.name,
            checkpoint=loaded.digest,
            failures=failures,
            protocols=(self.protocol,),
            limit=self.limit,
            max_templates=self.max_templates,
            seed=self.seed,
            precision=self.precision,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            samples_seen=checkpoint.samples_seen,
            progress=progress,
        )
        save_results(work.folder / "results.jsonl", results)
        (work.folder / "failures.json").write_text(
            json.dumps([[f.task, f.reason] for f in failures])
        )
        if not results:
            raise ConfigError(
                f"no task of suite {self.suite!r} could be evaluated in {sets.folder}; the first: "
                f"{failures[0].task}: {failures[0].reason}"
            )
        return {"tasks": len(results), "failed": len(failures)}


def sets_node(config: Any) -> Node:
    """The evaluation sets that a config names: a folder, or the glyphs' rendered ones.

    Raises:
        ConfigError: No folder is named.
    """
    if config.root == "glyphs":
        from dbp.data.glyph_pool import GlyphPool, RenderTasks
        from dbp.data.glyphs import GlyphPlan

        rendered = str(config.pool.get("_target_", "")).endswith(GlyphPool.__name__)
        plan = build(config.pool.plan, GlyphPlan, "pool.plan") if rendered else GlyphPlan()
        return RenderTasks.of(plan).bind()
    if config.root is None:
        raise ConfigError(
            "root is not set. Give the folder that holds the evaluation sets in DataComp's layout "
            "(wds_…_test), or root=glyphs for the rendered ones."
        )
    return Sets(root=str(config.root)).bind()
