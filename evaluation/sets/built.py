"""Data sets of clip_benchmark, read through its own readers and never fetched.

Its reader says of each item which file the image is, and its label or captions. For that the items are taken once
without decoding: `Image.open` gives a stand-in that remembers the file. Images are then read like those of any
other set, by every worker, once for all checkpoints. Only where an item is not a whole file (arrays as of CIFAR-10,
crops as of Pascal VOC) does the reader make each image, again when it is asked for.
"""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dbp.errors import ConfigError, nearest
from evaluation.sets.benchmark import FILES, TRANSLATED, Built, absent, command, wanted
from evaluation.sets.data import EvaluationSet
from evaluation.sets.tar_index import EvaluationDataError, Sample

# Their folders or lists are chosen among more than the classes.
_SUBSETS = ("objectnet", "babel_imagenet")
_NUM_IMAGENET_V2 = 10_000


@dataclass(frozen=True)
class BuiltSet(EvaluationSet):
    """Samples of a data set of clip_benchmark.

    Args:
        source: Its reader, for images that are not whole files; none if all are.
        is_file: Of each sample, whether its image is a whole file.
    """

    source: Any = None
    is_file: tuple[bool, ...] = ()

    def where(self, row: int) -> str:
        file = self.shards[self.samples[row].shard]
        return str(file) if self.is_file[row] else f"{self.folder}, item {row}"

    def read_picture(self, row: int) -> bytes:
        """Read the bytes of one image; what the reader makes is written as PPM, without loss.

        Raises:
            EvaluationDataError: It is gone, or its reader fails.
        """
        try:
            if self.is_file[row]:
                return self.shards[self.samples[row].shard].read_bytes()
            file = io.BytesIO()
            self.source[row][0].convert("RGB").save(file, "PPM")
            return file.getvalue()
        except Exception as error:  # readers raise many kinds
            raise EvaluationDataError(f"{self.where(row)} cannot be read: {error}. Fetch the set again.") from error


def open_built(folder: Path, built: Built, kind: str) -> BuiltSet:
    """Index a data set of clip_benchmark.

    Args:
        folder: As `find_built` gives it.
        built: Which one.
        kind: Of the task: what is read beside each image.

    Raises:
        ConfigError: clip_benchmark is not installed, or lacks the language or split.
        EvaluationDataError: Files are missing or damaged, or folders of classes do not fit the names.
    """
    dataset = build(folder, built)
    names, templates = _names(dataset, built, kind)
    with _undecoded() as stand_in:
        items = [_item(dataset, row, stand_in) for row in range(len(dataset))]
    if not items:
        raise EvaluationDataError(f"clip_benchmark's {built.dataset} in {folder} is empty. Fetch the set again.")
    if gone := [path for path, _ in items if path is not None and not path.is_file()]:
        raise EvaluationDataError(
            f"{len(gone):,} of {len(items):,} images of {built.dataset} are missing; the first is {gone[0]}. Put "
            f"them there, or let clip_benchmark fetch the set again: {command(built, folder)}"
        )
    whole = [path for path, _ in items if path is not None]
    others = _beside(folder, built) if len(whole) < len(items) else []
    shards = {path: number for number, path in enumerate(dict.fromkeys([*whole, *others]))}
    samples = [
        Sample(
            f"s{row:07d}", 0 if path is None else shards[path], "ppm" if path is None else path.suffix[1:], 0,
            path.stat().st_size if path else 0, _annotation(target, kind, f"{folder}, item {row}"),
        )
        for row, (path, target) in enumerate(items)
    ]  # fmt: skip
    return BuiltSet(
        folder, tuple(shards), tuple(samples), names, templates,
        source=dataset if len(whole) < len(items) else None, is_file=tuple(path is not None for path, _ in items),
    )  # fmt: skip


def build(folder: Path, built: Built, transform: Any = None, task: str | None = None) -> Any:
    """The data set of clip_benchmark itself, without any download.

    Args:
        folder: Its root.
        built: Which one.
        transform: Of each image; none leaves them as they are.
        task: As clip_benchmark calls it; none for the usual one of the set.

    Raises:
        ConfigError: clip_benchmark is not installed, or lacks the language or split.
        EvaluationDataError: Files are missing or damaged, or folders of classes do not fit the names.
    """
    require_package()
    from clip_benchmark.datasets.builder import build_dataset, get_dataset_default_task

    task = task or get_dataset_default_task(built.dataset)
    check_language(built)
    _check_before(folder, built)
    given = {name: getattr(built, name) for name in ("custom_classname_file", "custom_template_file")}
    annotations = built.annotation_file and str(folder / built.annotation_file)
    try:
        with nothing_fetched(), redirect_stdout(io.StringIO()):
            found = build_dataset(
                built.dataset, root=str(folder), transform=transform, split=built.split, download=False,
                annotation_file=annotations, language=built.language, task=task, **given,
            )  # fmt: skip
    except _Fetched as error:
        raise EvaluationDataError(f"{absent([folder], built)}. It would begin with: {error}") from error
    except AssertionError as error:
        raise ConfigError(f"dataset={built.dataset}, split={built.split}: {error}.") from error
    except Exception as error:  # readers raise many kinds
        raise EvaluationDataError(
            f"clip_benchmark cannot read {built.dataset} (split={built.split}, language={built.language}) in "
            f"{folder}: {type(error).__name__}: {error}. Files are missing or damaged. Nothing is downloaded here; "
            f"clip_benchmark fetches them: {command(built, folder)}"
        ) from error
    _check_folders(found, built, folder)
    return found


def require_package() -> Any:
    """The package clip_benchmark.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import clip_benchmark.datasets
    except ImportError as error:
        raise ConfigError(
            f"source: clip_benchmark needs its package ({error}): pip install 'clip-benchmark>=1.6.2'."
        ) from error
    return clip_benchmark


class _Fetched(Exception):
    """What clip_benchmark was about to fetch or unpack."""


class _Refuse:
    """Stands where clip_benchmark keeps `requests`, `tarfile` or `call`; a use of it raises."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self

    def __call__(self, *said: Any, **more: Any) -> Any:
        raise _Fetched(str(said[0]) if said else "a download")


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Make every way raise by which the readers of clip_benchmark download or unpack; all is restored."""
    import clip_benchmark.datasets.builder  # noqa: F401

    modules = [module for name, module in sys.modules.items() if name.startswith("clip_benchmark.datasets.")]
    kept = [
        (module, name, getattr(module, name))
        for module in modules
        for name in ("call", "requests", "tarfile", "download_url", "download_and_extract_archive")
        if hasattr(module, name)
    ]
    try:
        for module, name, _ in kept:
            setattr(module, name, _Refuse())
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


class _StandIn:
    """An image file that nobody has opened; `is_whole`: whether all of it is the sample's image."""

    def __init__(self, path: Path, is_whole: bool = True) -> None:
        self.path, self.is_whole = path, is_whole

    def convert(self, mode: str = "RGB") -> "_StandIn":
        return self if mode == "RGB" else _StandIn(self.path, False)

    def crop(self, box: Any = None) -> "_StandIn":
        return _StandIn(self.path, False)


@contextmanager
def _undecoded() -> Iterator[Callable[[Any], Any]]:
    """Within it `stand_in(make)` calls `make` while this thread's `Image.open` opens nothing."""
    from PIL import Image

    real, mine, is_on = Image.open, threading.get_ident(), False

    def opened(file: Any, *said: Any, **more: Any) -> Any:
        if not is_on or threading.get_ident() != mine:
            return real(file, *said, **more)
        return _StandIn(Path(getattr(file, "name", file)))

    def stand_in(make: Callable[[], Any]) -> Any:
        nonlocal is_on
        is_on = True
        try:
            return make()
        finally:
            is_on = False

    Image.open = opened
    try:
        yield stand_in
    finally:
        Image.open = real


def _item(dataset: Any, row: int, stand_in: Callable[[Any], Any]) -> tuple[Path | None, Any]:
    """The file of an item (none if its reader makes the image) and its label or captions."""
    try:
        image, target = stand_in(lambda: dataset[row])
    except Exception:  # it looks into its images, so they have to be real
        image, target = dataset[row]
    return (image.path if isinstance(image, _StandIn) and image.is_whole else None), target


def _annotation(target: Any, kind: str, where: str) -> dict[str, bytes]:
    """What the tars of a set hold beside an image."""
    if kind in ("retrieval", "caption_choice"):
        lines = [" ".join(str(caption).split()) for caption in target]
        if not lines or not all(lines):
            raise EvaluationDataError(
                f"{where} has {len(lines)} captions, {lines.count('')} of them empty. Each image needs captions "
                "with words; fetch the annotations again."
            )
        return {"txt": "\n".join(lines).encode()}
    if kind == "multilabel":
        file = io.BytesIO()
        np.save(file, np.asarray(target))
        return {"npy": file.getvalue()}
    return {"cls": str(int(target)).encode()}


def _names(dataset: Any, built: Built, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if kind in ("retrieval", "caption_choice"):
        return (), ()
    names, templates = getattr(dataset, "classes", None), getattr(dataset, "templates", None)
    if isinstance(templates, dict):
        raise ConfigError(
            f"custom_template_file={built.custom_template_file} holds prompts of each class's own for "
            f"{built.dataset}; these are not evaluated here. Give a list of templates with {{c}}."
        )
    if not names or not templates:
        raise ConfigError(
            f"clip_benchmark has {len(names or ())} class names and {len(templates or ())} templates for "
            f"{built.dataset}. Give both in custom_classname_file and custom_template_file."
        )
    return tuple(map(str, names)), tuple(map(str, templates))


def check_language(built: Built) -> None:
    """Refuse what clip_benchmark would take in another language than was asked for, or fail on without a word.

    Raises:
        ConfigError: It has no captions, or no class names and templates, in the language, or is not installed.
    """
    clip_benchmark = require_package()

    if built.dataset in TRANSLATED:
        module = __import__(f"clip_benchmark.datasets.{TRANSLATED[built.dataset][0]}", fromlist=["x"])
        known, said = module.SUPPORTED_LANGUAGES, "captions"
    elif built.dataset in ("flickr30k", "flickr8k"):
        known, said = (built.language,) if built.annotation_file else ("en", "zh"), "captions"
    elif built.language == "en" or (built.custom_classname_file and built.custom_template_file):
        return
    else:
        folder, said = Path(clip_benchmark.datasets.__file__).parent, "class names and templates"
        if built.dataset == "babel_imagenet":
            languages = json.loads((folder / "babel_imagenet.json").read_text("utf-8"))
            known = [name for code in languages for name in (code, code.lower())]
        else:
            # Their names must be the package's: elsewhere English names would meet foreign templates.
            known = {"en"}
            for file in sorted(folder.glob("*_classnames.json")):
                code, names = file.name.removesuffix("_classnames.json"), json.loads(file.read_text("utf-8"))
                if built.dataset in names or (built.dataset in _imagenets() and "imagenet1k" in names):
                    known.add(code)
    if built.language not in known:
        raise ConfigError(
            f"language={built.language}: clip_benchmark has no {said} of {built.dataset} in it. "
            f"{nearest(built.language, known)}"
        )


def _imagenets() -> tuple[str, ...]:
    return tuple(name for name in FILES if name.startswith("imagenet"))


def _check_before(folder: Path, built: Built) -> None:
    """Refuse a folder that clip_benchmark would begin to fill, or from which it would leave samples out."""
    if built.dataset in TRANSLATED:
        file = folder / wanted(built)[0]
        try:
            said = json.loads(file.read_text("utf-8"))
            numbers = said.get("indicies", said.get("indices", []))
        except (OSError, ValueError, AttributeError) as error:
            raise EvaluationDataError(f"{file} cannot be read: {error}. Make it again.") from error
        if numbers != list(range(len(numbers))):
            raise EvaluationDataError(
                f"{file} was made while images were missing, and leaves out their captions: it holds "
                f"{len(numbers):,} of {max(numbers, default=0) + 1:,} or more. Remove it, and make it again with "
                f"all images: {command(built, folder)}"
            )
    if built.dataset == "imagenetv2":
        found = len(list((folder / wanted(built)[0]).glob("**/*.jpeg")))
        if found != _NUM_IMAGENET_V2:
            raise EvaluationDataError(
                f"{folder / wanted(built)[0]} holds {found:,} images and ImageNetV2 has {_NUM_IMAGENET_V2:,}. "
                f"Remove the folder and fetch the set again: {command(built, folder)}"
            )


def _check_folders(found: Any, built: Built, folder: Path) -> None:
    """Names of classes that come from a list must be as many as the folders that labels are counted by."""
    from torchvision.datasets import ImageFolder

    if not isinstance(found, ImageFolder) or built.dataset in _SUBSETS:
        return
    folders, names = max(found.class_to_idx.values()) + 1, len(found.classes)
    if folders != names:
        raise EvaluationDataError(
            f"{built.dataset} in {folder} has {folders:,} folders of classes and {names:,} names. Labels are the "
            "places of the folders in order, so with one missing those behind it would be wrong. Complete the "
            "folders, or remove what is not a class."
        )


def _beside(folder: Path, built: Built) -> list[Path]:
    """The files that images are made from, so that a changed one is another set."""
    places = [folder / name for said in wanted(built) for name in said.split(" or ")] or [folder]
    return sorted(
        file for place in places for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()
    )
