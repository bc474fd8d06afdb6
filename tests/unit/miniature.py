"""Small sets of made-up pictures in DataComp's layout: for tests and benchmarks."""

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.sets.data import NAMES_FILE, TEMPLATES_FILE

TEMPLATES = ("a photo of a {c}.", "a drawing of a {c}.", "{c}, or {c}")


def write_set(
    folder: Path,
    samples: Sequence[Mapping[str, bytes]],
    *,
    class_names: Iterable[str] = (),
    templates: Iterable[str] = (),
    samples_per_shard: int = 10_000,
) -> None:
    """Write one set that `open_set` and CLIP_benchmark read.

    Args:
        folder: Made if it is not there.
        samples: Members of each sample by extension, as `{"png": ..., "cls": b"7"}`.
        class_names: One for each label; none for retrieval.
        templates: With `{c}` for the name; none for retrieval.
        samples_per_shard: Samples of each tar but the last.
    """
    test = folder / "test"
    test.mkdir(parents=True, exist_ok=True)
    for name, lines in ((NAMES_FILE, class_names), (TEMPLATES_FILE, templates)):
        if text := "".join(line + "\n" for line in lines):
            (folder / name).write_text(text, encoding="utf-8")
    starts = range(0, len(samples), samples_per_shard)
    (test / "nshards.txt").write_text(str(len(starts)))
    for shard, start in enumerate(starts):
        with tarfile.open(test / f"{shard}.tar", "w") as tar:
            for i, members in enumerate(samples[start : start + samples_per_shard], start=start):
                for extension, content in members.items():
                    header = tarfile.TarInfo(f"s{i:07d}.{extension}")
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))


def write_classification(
    folder: Path,
    *,
    class_names: Sequence[str],
    num_samples: int,
    seed: int,
    size: int = 40,
    templates: Sequence[str] = TEMPLATES,
    samples_per_shard: int = 10_000,
) -> None:
    """Write pictures of noise with labels; each class has a colour of its own."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(len(class_names), size=num_samples)
    colours = generator.integers(256, size=(len(class_names), 3))
    samples = [{"png": noise_png(generator, size, colours[label]), "cls": str(label).encode()} for label in labels]
    write_set(folder, samples, class_names=class_names, templates=templates, samples_per_shard=samples_per_shard)


def write_retrieval(folder: Path, *, captions: Sequence[Sequence[str]], seed: int, size: int = 40) -> None:
    """Write pictures of noise, each with its captions."""
    generator = np.random.default_rng(seed)
    samples = [{"png": noise_png(generator, size), "txt": "\n".join(lines).encode()} for lines in captions]
    write_set(folder, samples)


def noise_png(generator: np.random.Generator, size: int, colour: np.ndarray | None = None) -> bytes:
    """Draw a picture of noise, of about one colour if it is given, and encode it as PNG."""
    from PIL import Image

    colour = generator.integers(256, size=3) if colour is None else colour
    noise = generator.normal(0, 60, size=(size, size + 7, 3)) + colour
    file = io.BytesIO()
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()
