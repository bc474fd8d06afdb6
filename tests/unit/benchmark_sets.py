"""Miniatures of data sets of clip_benchmark, each in the layout that its reader takes; images are noise."""

import io
import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from miniature import noise_png
from PIL import Image

WORDS = [
    "a",
    "an",
    "red",
    "blue",
    "old",
    "tiny",
    "cat",
    "dog",
    "tree",
    "house",
    "near",
    "under",
    "Haus",
    "été",
    "猫",
]
FER2013 = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")


def sentence(generator: np.random.Generator) -> str:
    return " ".join(generator.choice(WORDS, size=6))


def write_image(path: Path, generator: np.random.Generator, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(noise_png(generator, 36))).convert(mode).save(path)


def write_sugar_crepe(folder: Path, part: str, *, num: int = 40, seed: int = 0) -> None:
    """`val2017/` with images and PART.json, whose numbers have gaps."""
    generator = np.random.default_rng(seed)
    said = {}
    for i in range(num):
        name = f"{i // 2:012d}.jpg"  # two questions about each image
        write_image(folder / "val2017" / name, generator, "L" if i % 7 == 0 else "RGB")
        captions = sentence(generator), sentence(generator)
        said[str(3 * i)] = {"filename": name, "caption": captions[0], "negative_caption": captions[1]}
    (folder / f"{part}.json").write_text(json.dumps(said))


def write_winoground(folder: Path, *, num: int = 40, seed: int = 0, packed: bool = False) -> None:
    """A parquet with its images inside, or `examples.jsonl` with `images.zip`, as the Hub's repository has it."""
    generator = np.random.default_rng(seed)
    rows = [
        {
            "id": i,
            "image_0": {"bytes": noise_png(generator, 36), "path": f"ex_{i}_img_0.png"},
            "image_1": {"bytes": noise_png(generator, 36), "path": f"ex_{i}_img_1.png"},
            "caption_0": sentence(generator),
            "caption_1": sentence(generator),
        }
        for i in range(num)
    ]
    data = folder / "data"
    data.mkdir(parents=True)
    if not packed:
        pq.write_table(pa.Table.from_pylist(rows), data / "test-00000-of-00001.parquet", row_group_size=16)
        return
    with zipfile.ZipFile(data / "images.zip", "w") as archive:
        for image in (row[name] for row in rows for name in ("image_0", "image_1")):
            archive.writestr(f"images/{image['path']}", image["bytes"])
    lines = [row | {name: Path(row[name]["path"]).stem for name in ("image_0", "image_1")} for row in rows]
    (data / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_folders(folder: Path, classes: Sequence[str], *, each: int = 4, seed: int = 0) -> None:
    """A folder of images for each class, as torchvision's ImageFolder reads it."""
    generator = np.random.default_rng(seed)
    for name in classes:
        for i in range(each):
            write_image(folder / name / f"{i}.png", generator)


def write_mnist(folder: Path, *, num: int = 60, seed: int = 0) -> None:
    """MNIST's four files; torchvision reads them as arrays."""
    generator = np.random.default_rng(seed)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("t10k", "train"):
        images = generator.integers(256, size=(num, 28, 28), dtype=np.uint8)
        labels = generator.integers(10, size=num, dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4B3I", 0, 0, 8, 3, num, 28, 28) + images.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, num) + labels.tobytes())


def write_voc2007(folder: Path, *, num: int = 24, seed: int = 0) -> None:
    """`VOCdevkit/VOC2007` with one to three boxes in each image."""
    from clip_benchmark.datasets.voc2007 import object_categories

    generator = np.random.default_rng(seed)
    home = folder / "VOCdevkit" / "VOC2007"
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (home / part).mkdir(parents=True)
    names = [f"{i:06d}" for i in range(1, num + 1)]
    (home / "ImageSets/Main" / f"{object_categories[0]}_test.txt").write_text("".join(f"{n} -1\n" for n in names))
    for name in names:
        write_image(home / "JPEGImages" / f"{name}.jpg", generator)
        boxes = ""
        for category in generator.choice(object_categories[:6], size=generator.integers(1, 4)):
            x, y = generator.integers(0, 15, size=2)
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (x, y, x + 18, y + 16), strict=True)
            box = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
            boxes += f"<object><name>{category}</name><bndbox>{box}</bndbox></object>"
        (home / "Annotations" / f"{name}.xml").write_text(f"<annotation>{boxes}</annotation>")


def write_translated(folder: Path, file: str, *, num: int = 40, seed: int = 0, missing: Sequence[int] = ()) -> None:
    """The JSON that clip_benchmark makes of a translated retrieval set, beside its images."""
    generator = np.random.default_rng(seed)
    numbers = [i for i in range(num) if i not in missing]
    paths = [folder / "images" / f"{i}.jpg" for i in numbers]
    for path in paths:
        write_image(path, generator)
    captions = [sentence(generator) for _ in numbers]
    said = {"image_paths": list(map(str, paths)), "annotations": captions, "indicies": numbers}
    (folder / file).write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")


def write_flickr8k(folder: Path, *, num: int = 30, seed: int = 0) -> None:
    """Images beside a text file with a line for each caption, five of each image."""
    generator = np.random.default_rng(seed)
    lines = ["image,caption"]
    for i in range(num):
        write_image(folder / f"{i}.jpg", generator)
        lines += [f"{i}.jpg,{sentence(generator)} , and more" for _ in range(5)]
    (folder / "flickr8k_test_karpathy.txt").write_text("\n".join(lines), encoding="utf-8")


def write_coco(folder: Path, *, num: int = 30, seed: int = 0) -> None:
    """`val2014/` beside annotations as COCO has them."""
    generator = np.random.default_rng(seed)
    images = [{"id": 7 * i, "file_name": f"COCO_{i}.jpg"} for i in range(num)]
    said = []
    for image in images:
        write_image(folder / "val2014" / image["file_name"], generator)
        for _ in range(generator.integers(1, 6)):
            said.append({"id": len(said), "image_id": image["id"], "caption": f" {sentence(generator)}.\n"})
    (folder / "coco_test_karpathy.json").write_text(json.dumps({"images": images, "annotations": said}))


def write_imagenet(folder: Path, *, seed: int = 0) -> None:
    """`val/` with one image in each of ImageNet's thousand folders, and `meta.bin` beside it."""
    import torch
    from clip_benchmark.datasets.builder import all_imagenet_wordnet_ids

    generator = np.random.default_rng(seed)
    noise = generator.integers(256, size=(len(all_imagenet_wordnet_ids), 12, 12, 3), dtype=np.uint8)
    for wnid, image in zip(all_imagenet_wordnet_ids, noise, strict=True):
        path = folder / "val" / wnid / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
    torch.save(({wnid: (wnid,) for wnid in all_imagenet_wordnet_ids}, []), folder / "meta.bin")
