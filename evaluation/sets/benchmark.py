"""The data sets of clip_benchmark by its own names: the kind of task that each is, and the files that it lies in.

Nothing here imports clip_benchmark. `built.py` reads these sets through it.

Source:
    clip_benchmark 1.6.2, `datasets/builder.py`: names, splits, and where each reader looks below `--dataset_root`.
"""

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError, nearest
from evaluation.sets.tar_index import EvaluationDataError

FIRST = "1.6.2"  # whose class names and templates enter a key without their version, as before there was another


@dataclass(frozen=True)
class Built:
    """A data set of clip_benchmark; the fields are arguments of its `build_dataset`.

    Args:
        dataset: Its name, as `sugar_crepe/add_att`, or `wds/vtab/dtd` for a folder of tars.
        language: Of class names and templates, or of captions, by its codes (`it`, `jp`, `eng_Latn`).
        split: As its reader calls it.
        annotation_file: Captions of mscoco_captions, flickr30k or flickr8k, if not at the usual place.
        custom_classname_file: A JSON of class names by data set.
        custom_template_file: A JSON of templates by data set.
    """

    dataset: str
    language: str = "en"
    split: str = "test"
    annotation_file: str | None = None
    custom_classname_file: str | None = None
    custom_template_file: str | None = None

    @property
    def is_tars(self) -> bool:
        """Whether it lies in the layout that DataComp shares, which is read here without clip_benchmark."""
        return self.dataset.startswith("wds/")

    @property
    def name(self) -> str:
        """Without the prefix of tars."""
        return self.dataset.removeprefix("wds/")


CHOICES = tuple(
    f"sugar_crepe/{part}"
    for part in ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
)
# Each has a JSON of image paths and captions for each language.
TRANSLATED = {
    "multilingual_mscoco_captions": ("multilingual_mscoco", "multilingual_mscoco_captions-{language}.json"),
    "crossmodal3600": ("crossmodal3600", "crossmodal3600_captions-{language}.json"),
    "xtd10": ("xtd10", "xtd10-{language}.json"),
    "xtd200": ("xtd200", "xtd200-{language}.json"),
    "flickr30k-200": ("flickr30k_200", "flickr30k_200-{language}.json"),
}
CAPTIONED = ("mscoco_captions", "flickr30k", "flickr8k", *TRANSLATED)
# Names of classes are a list in the package, put in the place of folders that are sorted by name.
_IMAGENET = ("ILSVRC2012_devkit_t12.tar.gz or meta.bin", "{val} or ILSVRC2012_img_{val}.tar")
_MAPPINGS = ("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json")
# What each reader looks for in the folder; nothing: the folder itself holds a folder for each class.
FILES: dict[str, tuple[str, ...]] = {
    "cifar10": ("cifar-10-batches-py",),
    "cifar100": ("cifar-100-python",),
    "imagenet1k": _IMAGENET,
    "babel_imagenet": _IMAGENET,
    "imagenet1k-unverified": ("{val}",),
    "imagenetv2": ("ImageNetV2-matched-frequency",),
    "imagenet_sketch": (),
    "imagenet-a": (),
    "imagenet-r": (),
    "imagenet-o": (),
    "objectnet": ("objectnet-1.0/images", *_MAPPINGS),
    "voc2007": ("VOCdevkit/VOC2007",),
    "voc2007_multilabel": ("VOCdevkit/VOC2007",),
    "food101": ("food-101/meta", "food-101/images"),
    "sun397": ("SUN397",),
    "cars": ("stanford_cars",),
    "fgvc_aircraft": ("fgvc-aircraft-2013b",),
    "dtd": ("dtd",),
    "pets": ("oxford-iiit-pet",),
    "caltech101": ("caltech101",),
    "flowers": ("flowers-102",),
    "mnist": ("MNIST/raw",),
    "stl10": ("stl10_binary",),
    "eurosat": ("eurosat/2750",),
    "gtsrb": ("gtsrb",),
    "country211": ("country211/{split}",),
    "pcam": ("pcam",),
    "renderedsst2": ("rendered-sst2",),
    "fer2013": ("{test}",),
    "winoground": (),
    "mscoco_captions": ("{val}2014", "{annotations}"),
    "flickr30k": ("{annotations}",),
    "flickr8k": ("{annotations}",),
    **dict.fromkeys(CHOICES, ("val2017", "{part}.json")),
    **{name: (file,) for name, (_, file) in TRANSLATED.items()},
}
# Read by TensorFlow, one after the other: nothing that several checkpoints could share.
_STREAMED = ("vtab/", "tfds/")
_HUB = {"winoground": "facebook/winoground"}
# What a random guess reaches, of the metric that stands in tables.
_CHANCE = {"winoground": 1 / 6} | dict.fromkeys(CHOICES, 1 / 2)


def names_version(built: Built) -> str | None:
    """The version of clip_benchmark whose class names and templates a set takes; none for `FIRST` or without."""
    is_own = built.custom_classname_file and built.custom_template_file
    if built.is_tars or is_own or built.name in (*CAPTIONED, *CHOICES, "winoground"):
        return None
    try:
        found = importlib.metadata.version("clip-benchmark")
    except importlib.metadata.PackageNotFoundError:
        return None
    return None if found == FIRST else found


def facts(built: Built, setting: str) -> dict[str, Any]:
    """What the name of a data set says of its task: kind, main metric, folder, level of chance.

    Args:
        built: Which one.
        setting: Of the config, for messages.

    Raises:
        ConfigError: clip_benchmark has no such data set, or it cannot be evaluated here.
    """
    name = built.name
    if not built.is_tars:
        _require_known(built, setting)
    elif built.language != "en" or built.custom_classname_file or built.custom_template_file:
        raise ConfigError(
            f"{setting}.dataset={built.dataset}: names and templates of a folder of tars lie in it, so that "
            "language, custom_classname_file and custom_template_file change nothing. Leave them out, or give "
            "class_names and templates in their place."
        )
    kind, metric = "classification", "acc1"
    if name in CAPTIONED:
        kind, metric = "retrieval", "mean_recall@1"
    elif name == "winoground" or name in CHOICES:
        kind, metric = "caption_choice", "acc"
    elif name == "voc2007_multilabel":
        kind, metric = "multilabel", "mean_average_precision"
    folder = name.replace("/", "-")
    return {
        "kind": kind,
        "main_metric": metric,
        "chance": _CHANCE.get(name),
        "folder": f"wds_{folder}_test" if built.is_tars else folder,
        "hub": _HUB.get(built.dataset),
        "clip_benchmark": built.dataset,
    }


def find_built(root: Path, folder: str, built: Built) -> Path:
    """The folder below a root that holds a data set: clip_benchmark's `--dataset_root`.

    Args:
        root: Where sets lie.
        folder: The task's, the first place.
        built: Which one.

    Raises:
        EvaluationDataError: It is in none of the places; files and the command that fetches them are named.
    """
    for place in _places(root, folder, built):
        if place.is_dir() and all(_is_there(place, said) for said in wanted(built)):
            return place
    raise absent(_places(root, folder, built), built)


def built_files(root: Path, folder: str, built: Built) -> Iterator[Path]:
    """The files of a data set, if it is there."""
    for place in _places(root, folder, built):
        if place.is_dir() and all(_is_there(place, said) for said in wanted(built)):
            names = [name for said in wanted(built) for name in said.split(" or ")] or ["."]
            for path in (place / name for name in names):
                yield from path.rglob("*") if path.is_dir() else [path]
            yield from _named_images(place, built)
            return


def _named_images(place: Path, built: Built) -> Iterator[Path]:
    """The images that a file of captions names, where no folder of images is looked for; none if it is damaged."""
    if built.dataset not in (*TRANSLATED, "flickr30k", "flickr8k"):
        return
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        text = (place / wanted(built)[0]).read_text("utf-8")
        if built.dataset in TRANSLATED:
            names = json.loads(text)["image_paths"]
        else:  # its reader skips the first line and splits the others behind the name
            names = [line.partition(".jpg,")[0].strip() + ".jpg" for line in text.splitlines()[1:] if line.strip()]
        yield from (place / name for name in dict.fromkeys(names))


def absent(places: list[Path], built: Built) -> EvaluationDataError:
    """Say where a data set was looked for, and which command of the user fetches it."""
    said = " and ".join(wanted(built)) or "a folder for each class"
    looked = ", ".join(map(str, places))
    return EvaluationDataError(
        f"clip_benchmark's {built.dataset} ({built.split}, {built.language}) is in none of the folders {looked}: "
        f"each was looked through for {said}. Nothing is downloaded here. Put the set there, or let "
        f"clip_benchmark fetch it: {command(built, places[0])}"
    )


def command(built: Built, folder: Path) -> str:
    """What the user may run to have clip_benchmark fetch a data set into a folder."""
    if built.dataset in TRANSLATED:
        module = TRANSLATED[built.dataset][0]
        call = f"{module}.create_annotation_file({str(folder)!r}, {built.language!r})"
        return f'python -c "from clip_benchmark.datasets import {module}; {call}"'
    said = f"{built.dataset!r}, root={str(folder)!r}, split={built.split!r}, language={built.language!r}"
    task = ", task='zeroshot_retrieval'" if built.dataset in CAPTIONED else ""
    return f'python -c "from clip_benchmark.datasets.builder import build_dataset as b; b({said}{task})"'


def wanted(built: Built) -> tuple[str, ...]:
    """The files or folders that must lie in the folder of a data set; alternatives stand in one line."""
    is_train = built.split == "train"
    suffix = "karpathy" if built.language == "en" else built.language
    captions = {
        "mscoco_captions": f"coco_{built.split}_karpathy.json",
        "flickr30k": f"flickr30k_{built.split}_{suffix}.txt",
        "flickr8k": f"flickr8k_{built.split}_{suffix}.txt",
    }
    words = {
        "split": built.split,
        "language": built.language,
        "val": "train" if is_train else "val",
        "test": "train" if is_train else "test",
        "part": built.dataset.rpartition("/")[2],
        "annotations": built.annotation_file or captions.get(built.dataset, ""),
    }
    return tuple(line.format(**words) for line in FILES.get(built.dataset, ()))


def _places(root: Path, folder: str, built: Built) -> list[Path]:
    if Path(folder).is_absolute():
        return [Path(folder)]
    names = [folder, built.dataset, built.dataset.replace("/", "-"), built.dataset.partition("/")[0]]
    if wanted(built):  # told by its files, even where several sets share one folder
        names.append(".")
    return [root / name for name in dict.fromkeys(names)]


def _is_there(place: Path, said: str) -> bool:
    return any((place / name).exists() for name in said.split(" or "))


def _require_known(built: Built, setting: str) -> None:
    if built.dataset.startswith(_STREAMED):
        name = built.dataset.removeprefix("tfds/").replace("/", "-")
        raise ConfigError(
            f"{setting}.dataset={built.dataset}: TensorFlow reads this data set as a stream, so that its images "
            f"cannot be shared or found again. Write it as tars once: clip_benchmark_export_wds --dataset "
            f"{built.dataset} --split {built.split} --dataset-root DOWNLOADS --output SETS/wds_{name}, and give "
            f"dataset=wds/{built.dataset.removeprefix('tfds/')}."
        )
    if built.dataset == "imagenet-w":
        raise ConfigError(
            f"{setting}.dataset=imagenet-w: it is not a set but a step in the model's transform (a watermark on "
            "each image of ImageNet). Give dataset=imagenet1k, or evaluate it with clip_benchmark."
        )
    if built.dataset in _HUB and (built.split, built.language) != ("test", "en"):
        raise ConfigError(
            f"{setting}: {built.dataset} has split=test in language=en alone, and split={built.split}, "
            f"language={built.language} are given. Leave both out."
        )
    if built.dataset not in FILES:
        raise ConfigError(
            f"{setting}.dataset={built.dataset}: clip_benchmark has no such data set. "
            f"{nearest(built.dataset, FILES)} A folder of tars is wds/NAME."
        )
