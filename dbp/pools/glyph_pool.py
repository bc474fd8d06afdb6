"""The stages that render the glyphs pool and its evaluation sets into the store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dbp.data.pool import ShardFolder
from dbp.engine.stage import Node, Stage
from dbp.engine.work import Work
from dbp.pools.glyph_tasks import render_tasks
from dbp.pools.glyphs import GlyphPlan, render_pool
from dbp.pools.index import Index


@dataclass(frozen=True)
class RenderGlyphs(Stage):
    """Render the pool's shards, with the truth of what was planted beside them."""

    name: ClassVar[str] = "render"
    version: ClassVar[int] = 1
    makes: ClassVar[type] = ShardFolder

    plan: GlyphPlan

    def run(self, work: Work) -> dict[str, Any]:
        return dict(render_pool(self.plan, work.folder))


@dataclass(frozen=True)
class TaskFolder:
    """A folder of evaluation sets in DataComp's layout."""

    folder: Path

    @classmethod
    def load(cls, folder: Path) -> "TaskFolder":
        return cls(folder)


@dataclass(frozen=True)
class RenderTasks(Stage):
    """Render the glyphs' evaluation sets; they are the same for every pool of one seed."""

    name: ClassVar[str] = "tasks"
    version: ClassVar[int] = 1
    makes: ClassVar[type] = TaskFolder

    image_size: int
    held_out_faces: tuple[str, ...]
    task_pictures: int
    seed: int

    @classmethod
    def of(cls, plan: GlyphPlan) -> "RenderTasks":
        """The sets that belong to a pool's plan: neither its size nor what is planted matters."""
        return cls(plan.image_size, plan.held_out_faces, plan.task_pictures, plan.seed)

    def run(self, work: Work) -> dict[str, Any]:
        return dict(render_tasks(GlyphPlan(**vars(self)), work.folder))


@dataclass(frozen=True)
class GlyphPool:
    """The embedded pool, as a config names it."""

    plan: GlyphPlan
    max_samples: int | None = None  # index only so many samples, from the front; null for all

    def node(self) -> Node:
        """The index of the rendered shards."""
        index = Index(uid="key", caption="txt", max_pixels=10**6, max_samples=self.max_samples)
        return index.bind(folder=RenderGlyphs(self.plan).bind())
