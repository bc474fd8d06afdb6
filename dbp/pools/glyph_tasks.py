"""Test sets for models trained on the glyphs pool, laid out on disk as DataComp's.

A picture of a test set is nowhere in any pool, whatever its size and what is planted: `letters` and
`scripts` show faces of the pool with glyphs reserved for them; the shift tasks and `retrieval` show
held-out faces, less the outlines that they share with other faces (braille, box drawing, arrows).
"""

import re
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

from dbp.errors import ConfigError, StoreError
from dbp.formats.tars import write_members
from dbp.pools.glyph_fonts import CAPTIONS, Glyph, all_glyphs, base_letter, caption_of, encode, hashed, name_of
from dbp.pools.glyphs import GlyphPlan, Split, split_glyphs

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")

# A class is named by words that its captions use. Mathematical operators have no such words in
# common, so they are no class.
SCRIPTS = {
    "latin letter": r"latin (?!.*ligature)",
    "greek letter": r"greek ",
    "cyrillic letter": r"cyrillic ",
    "armenian letter": r"armenian ",
    "georgian letter": r"georgian ",
    "hebrew letter": r"hebrew ",
    "arabic letter": r"arabic ",
    "canadian syllabics": r"canadian syllabics ",
    "lao letter": r"lao ",
    "modifier letter": r"modifier letter ",
    "mathematical letter": r"mathematical (?!left|right)",
    "combining mark": r"combining ",
    "braille pattern": r"braille pattern ",
    "box drawings": r"box drawings ",
    "domino tile": r"domino tile ",
    "arrow": r".*\barrow\b",
}

_LETTER_NAMES = (
    "latin small letter {c}",
    "latin capital letter {c}",
    "latin small letter {c} with acute",
    "latin capital letter {c} with dot below",
    "mathematical bold small {c}",
)
# Faces of the pool, also for the shift tasks: a held-out face's name would mean nothing to a model.
_FACES = ("dejavu sans", "dejavu serif bold", "dejavu sans mono")

SHARD_SIZE = 1_000
# A class of a handful of pictures would move the mean per class by whole points.
MIN_CLASS_SIZE = 10
TASKS = ("glyphs/letters", "glyphs/scripts", "glyphs/letters_shift", "glyphs/scripts_shift", "glyphs/retrieval")


class _Picture(NamedTuple):
    glyph: Glyph
    answer: str  # the class, or the caption


def render_tasks(plan: GlyphPlan, folder: Path) -> dict[str, int]:
    """Write each task to its `task_folder`; return the images of each.

    Classification: `classnames.txt`, `zeroshot_classification_templates.txt`, `test/nshards.txt`, and `test/0.tar
    ...` with sNNNNNNN.png and sNNNNNNN.cls. Retrieval: `dataset_type.txt`, and .txt with the caption in place of
    .cls. Classes are as equal as the fonts allow; the shift tasks have names of classes that no image shows. Of the
    plan only image_size, held_out_faces, task_pictures and seed play a part.

    Raises:
        ConfigError: A task has fewer pictures than `task_pictures`, or a held-out face is unknown.
        StoreError: The folder already holds one of the tasks.
    """
    split = split_glyphs(plan)
    chosen = {task: _choose(plan, split, task) for task in TASKS}
    for task in TASKS:
        if task_folder(folder, task).exists():
            raise StoreError(f"{task_folder(folder, task)} exists. Delete it, or render into another folder.")
    for task, pictures in chosen.items():
        _write_task(plan, task, pictures, task_folder(folder, task))
    return {task: len(pictures) for task, pictures in chosen.items()}


def task_folder(folder: Path, task: str) -> Path:
    """Where DataComp keeps a task: "glyphs/letters" in wds_glyphs-letters_test."""
    return Path(folder, f"wds_{task.replace('/', '-')}_test")


def class_names(task: str) -> tuple[str, ...]:
    """The classes of a task in the order of their labels; none for retrieval."""
    if task.endswith("retrieval"):
        return ()
    return LETTERS if "letters" in task else tuple(SCRIPTS)


def templates(task: str) -> list[str]:
    """Prompts with `{c}` for the class, in the words and phrasings of the pool's captions."""
    names = _LETTER_NAMES if "letters" in task else ("{c}",)
    return [caption.format(name=name, face=face) for name, face, caption in product(names, _FACES, CAPTIONS)]


@cache
def script(character: int) -> str | None:
    """The class of a character in the script tasks; None if it has none."""
    name = name_of(character)
    return next((known for known, begins in SCRIPTS.items() if re.match(begins, name)), None)


def _choose(plan: GlyphPlan, split: Split, task: str) -> list[_Picture]:
    if task.endswith("retrieval"):
        pictures = _one_per_name(plan, split.shifted)
    else:
        glyphs = split.shifted if task.endswith("_shift") else split.reserved
        class_of = base_letter if "letters" in task else script
        pictures = _level(plan, _one_class_each(glyphs, class_of, plan.image_size))
    if len(pictures) < plan.task_pictures:
        raise ConfigError(
            f"task_pictures={plan.task_pictures:,}: {task} has {len(pictures):,} pictures with "
            f"held_out_faces={', '.join(plan.held_out_faces) or 'none'}. Lower task_pictures, or "
            "hold out larger faces."
        )
    pictures = pictures[: plan.task_pictures]
    return sorted(pictures, key=lambda p: hashed(plan.seed, "test order", p.glyph.picture))


def _one_class_each(glyphs: list[Glyph], class_of: Callable[[int], str | None], image_size: int) -> list[_Picture]:
    """Each picture once, without those of two classes: Latin A, Greek Alpha and Cyrillic A."""
    classes = defaultdict(set)
    for glyph in all_glyphs(image_size)[0]:
        if known := class_of(glyph.character):
            classes[glyph.picture].add(known)
    once = {glyph.picture: glyph for glyph in reversed(glyphs)}
    return [_Picture(glyph, *classes[picture]) for picture, glyph in once.items() if len(classes[picture]) == 1]


def _level(plan: GlyphPlan, pictures: list[_Picture]) -> list[_Picture]:
    """Without small classes, in an order whose every beginning has classes as equal as can be."""
    taken: dict[str, int] = defaultdict(int)
    turns = []
    for picture in sorted(pictures, key=lambda p: _chance(plan, p.glyph)):
        turns.append((taken[picture.answer], _chance(plan, picture.glyph), picture))
        taken[picture.answer] += 1
    return [p for *_, p in sorted(turns) if taken[p.answer] >= MIN_CLASS_SIZE]


def _one_per_name(plan: GlyphPlan, glyphs: list[Glyph]) -> list[_Picture]:
    """No name twice and no picture twice, so that one caption is right for each picture."""
    characters, pictures, chosen = set(), set(), []
    for glyph in sorted(glyphs, key=lambda glyph: _chance(plan, glyph)):
        if glyph.character not in characters and glyph.picture not in pictures:
            characters.add(glyph.character)
            pictures.add(glyph.picture)
            chosen.append(_Picture(glyph, caption_of(glyph, plan.seed)))
    return chosen


def _chance(plan: GlyphPlan, glyph: Glyph) -> float:
    return hashed(plan.seed, "test", glyph.face, glyph.character)


def _write_task(plan: GlyphPlan, task: str, pictures: list[_Picture], folder: Path) -> None:
    names = class_names(task)
    (folder / "test").mkdir(parents=True)
    if names:
        _write_lines(folder / "classnames.txt", names)
        _write_lines(folder / "zeroshot_classification_templates.txt", templates(task))
    else:
        (folder / "dataset_type.txt").write_text("retrieval")
    starts = range(0, len(pictures), SHARD_SIZE)
    (folder / "test" / "nshards.txt").write_text(str(len(starts)))
    _, pixels = all_glyphs(plan.image_size)
    for shard, start in enumerate(starts):
        members = []
        for i, (glyph, answer) in enumerate(pictures[start : start + SHARD_SIZE], start):
            truth = (f"s{i:07}.cls", str(names.index(answer))) if names else (f"s{i:07}.txt", answer)
            members.append((f"s{i:07}.png", encode(pixels[glyph.picture], plan.image_size)))
            members.append((truth[0], truth[1].encode()))
        write_members(folder / "test" / f"{shard}.tar", members)


def _write_lines(path: Path, lines: tuple[str, ...] | list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
