"""The map from paper to code in the README: what it names is what a run of the preset calls."""

import re
import sys
import threading
from pathlib import Path

import pytest

from dbp.config import compose
from dbp.curate import recipe
from dbp.engine.store import Store
from dbp.settings import read
from dbp.verbs.command_line import overrides

ROOT = Path(__file__).resolve().parents[2]
VECTORS = (
    "pool=rehearsal", "encoder=rehearsal", "pool.rows=2000", "pool.rows_per_file=1000", "pool.width=32",
    "pool.concepts=40", "dedup.num_clusters=4", "dedup.num_iterations=2", "cluster.num_iterations=2",
    "cluster.num_clusters=12", "cluster.points_per_centroid=50", "budget.keep_fraction=0.3",
)  # fmt: skip
CAPTIONS = (
    "pool=glyphs",
    "pool.plan.num_pairs=400",
    "pool.plan.task_pictures=60",
    "dedup=none",
    "budget.keep_fraction=0.3",
)
RUNS = {
    "select=dbp": VECTORS,
    "select=ssp": VECTORS,
    "select=dynamics": VECTORS,
    "score=clip_loss": (*VECTORS, "select=top_score", "score.batch_size=256", "score.num_passes=1"),
    "dedup=semdedup": (*VECTORS, "select=uniform"),
    "filter=top_fraction": (*VECTORS, "select=uniform", "filter.fraction=0.8"),
    "select=metaclip_glyphs": (*CAPTIONS, "select.metadata.min_count=2"),
}


def rows() -> list[tuple[str, list[tuple[str, str]], str, str]]:
    """What, the named functions with their files, the test's file, and the preset, of each row of the map."""
    text = (ROOT / "README.md").read_text().split("## From paper to code")[1]
    found = []
    for line in re.findall(r"^\| (.*) \|$", text, re.MULTILINE)[1:]:
        cells = [cell.strip() for cell in line.split(" | ")]
        if len(cells) != 4:
            continue
        file, named = "", []
        for word in re.findall(r"`([^`]+)`", cells[1]):
            if "/" in word:
                file = word
                named.append((file, ""))
            else:
                named.append((file, word))
        found.append((cells[0], named, cells[2], cells[3].strip("`")))
    return found


def called(settings: tuple[str, ...], home: Path) -> set[tuple[str, str]]:
    """File and qualified name of every function of this repository that a curation calls."""
    found: set[tuple[str, str]] = set()

    def note(frame, event, _) -> None:  # type: ignore[no-untyped-def]
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            file = Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()
            found.add((file, frame.f_code.co_qualname))

    nodes = recipe(read(compose("curate", overrides([*settings]))))
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        Store(home / "store").get(nodes["select"])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def test_every_file_that_the_map_names_is_there() -> None:
    assert len(rows()) > 12
    for what, named, tests, _ in rows():
        files = [file for file, _ in named] + re.findall(r"`([^`]+)`", tests)
        for file in files:
            path = file if "/" in file else f"tests/unit/{file}"
            assert (ROOT / path).exists(), (what, file)


@pytest.mark.parametrize("preset", sorted(RUNS))
def test_what_the_map_names_is_what_a_run_of_the_preset_calls(preset, tmp_path) -> None:
    done = called((*RUNS[preset], preset), tmp_path)
    named = [(what, place) for what, places, _, of in rows() if of == preset for place in places if place[1]]
    assert named
    for what, place in named:
        assert place in done, what


def test_every_row_that_names_a_function_of_curation_is_traced() -> None:
    for what, named, _, preset in rows():
        if any(name for _, name in named):
            assert preset in RUNS, what
