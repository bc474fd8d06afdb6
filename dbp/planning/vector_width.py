"""The width of an encoder's vectors before anything is encoded, from files alone and never from a network."""

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dbp.errors import DbpError

ASSUMED = 768  # ViT-L/14's, in CLIP
# timm's vision transformers, by the part of the name that says the size.
TIMM = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "so400m": 1152, "huge": 1280}
TIMM |= {"giant": 1536}


def usual_width(encoder: Any, side: str) -> tuple[int, str]:
    """How many numbers a vector will have, and where that is known from.

    Args:
        encoder: A dataclass of `dbp.encoders`, or another's.
        side: `image` or `text`.

    Returns:
        The width; and `` where it is certain, else what was assumed.
    """
    try:
        found = _of_files(encoder, side) or _of_openclip(encoder)
    except (DbpError, OSError, ValueError, KeyError, zipfile.BadZipFile):
        found = None  # what is wrong is said when the vectors are needed
    if found:
        return found, ""
    model = str(getattr(encoder, "model", None) or "")
    for size, width in TIMM.items():
        if size in model and hasattr(encoder, "pooling"):
            return width, f"width {width:,}, as timm's models of size {size} have"
    name = model or type(encoder).__name__
    return ASSUMED, f"width {ASSUMED:,} is assumed, since {name} says none"


def _of_files(encoder: Any, side: str) -> int | None:
    """The width of vectors that lie in files: named, or in the header of the first file."""
    plan = getattr(encoder, "plan", None)
    named = getattr(encoder, "width", None) or getattr(plan, "width", None)
    if named:
        return int(named)
    if array := getattr(encoder, f"{side}_array", None):
        first = next(iter(sorted(Path(encoder.metadata or "").glob("[!.]*.npz"))), None)
        return _npz_width(first, array) if first else None
    if folder := getattr(encoder, "folder", None):
        kind = "img_emb" if side == "image" else "text_emb"
        first = next(iter(sorted(Path(folder, kind).glob("[!.]*.npy"))), None)
        return _npy_width(first) if first else None
    path = getattr(encoder, f"{side}s", None)
    return _npy_width(path) if path else None


def _npy_width(path: Path | str) -> int:
    return int(np.load(path, mmap_mode="r", allow_pickle=False).shape[1])


def _npz_width(path: Path, array: str) -> int:
    with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format
        shape, *_ = read.read_array_header_1_0(member) if version == (1, 0) else read.read_array_header_2_0(member)
    return int(shape[1])


def _of_openclip(encoder: Any) -> int | None:
    """`embed_dim` of open_clip's model config, which is read without importing open_clip."""
    config, checkpoint = getattr(encoder, "config", None), getattr(encoder, "checkpoint", None)
    model = getattr(encoder, "model", None)
    files = [Path(config)] if config else []
    if checkpoint and not model:
        files.append(Path(checkpoint).parent / "open_clip_config.json")
    if model and not hasattr(encoder, "pooling"):
        spec = importlib.util.find_spec("open_clip")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            files.append(Path(folder, "model_configs", f"{model.replace('/', '-')}.json"))
    for file in files:
        if file.is_file():
            said = json.loads(file.read_text())
            return int(said.get("model_cfg", said)["embed_dim"])
    return None
