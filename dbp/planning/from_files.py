"""How many rows a pool has and how wide its vectors are, before anything is read: from files' sizes and headers.

A plan needs these numbers, and reading all of a pool to get them is what the plan is there to avoid. What is wrong
with a file is said when it is needed.
"""

import importlib.util
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dbp.engine.paths import is_remote
from dbp.engine.stage import Node
from dbp.errors import DbpError
from dbp.planning.effort import Sizes

SCANNED = 20_000  # samples of the first shard that are counted, at most
TRIED = 200  # samples that are read as the index reads them, at most
PATIENCE = 0.3  # seconds for each of the two

ASSUMED = 768  # width of ViT-L/14's vectors, in CLIP
# timm's vision transformers, by the part of the name that says the size.
TIMM = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "so400m": 1152, "huge": 1280, "giant": 1536}


def pool_size(node: Node, timed: bool = True) -> tuple[Sizes, str] | None:
    """The pool that an index will make, and how its rows were counted; None where nothing is known of it.

    Shards of tars are counted by headers in the first shard, and the others taken to be like it. Parquet
    metadata and synthetic pools say their rows; those of a pool that is rendered first differ a little.
    With `timed`, a few samples say how long one takes.
    """
    stage: Any = node.stage
    try:
        if hasattr(stage, "metadata"):
            import pyarrow.parquet as pq

            from dbp.pools.datacomp import metadata_files

            files = metadata_files(stage.metadata)
            rows = sum(pq.read_metadata(file).num_rows for file in files)
            return _pool(min(rows, stage.max_samples or rows), sum(file.stat().st_size for file in files)), ""
        if "folder" in node.inputs:
            folder: Any = node.inputs["folder"].stage
            if hasattr(folder, "size"):
                return _of_packed(folder, stage.max_samples)
            rows = getattr(getattr(folder, "plan", None), "num_pairs", None)
            if rows is None:
                return None
            rows = min(rows, stage.max_samples or rows)
            return Sizes(rows, rows, is_about=True), "rows as pool.plan says"
        if hasattr(stage, "paths"):
            return _of_tars(stage, timed)
        if isinstance(rows := getattr(stage, "rows", None), int):
            return _pool(rows, 0), ""
        if path := getattr(stage, "path", None):
            from dbp.formats.sorted_clusters import SortedClusters

            clusters = SortedClusters.open(path, setting="pool.path")
            sizes = (clusters.path(j).stat().st_size for j in range(clusters.num_clusters))
            return _pool(clusters.num_rows, sum(sizes)), ""
    except (DbpError, OSError, ValueError):
        pass
    return None


def _pool(rows: int, size: int) -> Sizes:
    return Sizes(rows, rows, pool_bytes=float(size))


def _of_packed(pack: Any, limit: int | None) -> tuple[Sizes, str] | None:
    rows, total = pack.size()
    if rows is None:
        return None
    kept = min(rows, limit or rows)
    return _pool(kept, total * kept / max(rows, 1)), ""


def _of_tars(stage: Any, timed: bool) -> tuple[Sizes, str] | None:
    shards = stage.paths(None)
    if any(map(is_remote, shards)):
        return None  # what is streamed has no size
    total = float(sum(Path(shard).stat().st_size for shard in shards))
    samples, size, is_whole = _count(shards[0])
    if not samples:
        return None
    is_exact = is_whole and len(shards) == 1
    rows = samples if is_exact else round(total / size * samples)
    limit = stage.max_samples
    if limit is not None and limit < rows:
        total, rows, is_exact = total * limit / rows, limit, True
    seconds = _row_seconds(stage, shards[0]) if timed else None
    found = Sizes(rows, rows, pool_bytes=total, row_seconds=seconds, is_about=not is_exact)
    return found, f"rows from {samples:,} samples in {size / 1e6:,.1f} MB of {Path(shards[0]).name}"


def _count(shard: str) -> tuple[int, int, bool]:
    """Samples at the front of a tar, the bytes that hold them, and whether that is all of it."""
    from dbp.formats.tar_headers import Damaged, spans, split
    from dbp.formats.tars import SAMPLE_FORMATS

    wanted = {kind.encode() for kind in SAMPLE_FORMATS}
    handle = os.open(shard, os.O_RDONLY)
    samples, end, seen = 0, 0, (b"", set[bytes]())
    began = time.perf_counter()
    try:
        for name, start, *_, behind in spans(handle):
            key, kind = split(name)
            if kind not in wanted:
                continue
            if key != seen[0] or kind in seen[1]:
                if samples == SCANNED or time.perf_counter() - began > PATIENCE:
                    return samples, start, False
                samples, seen = samples + 1, (key, set())
            seen[1].add(kind)
            end = behind
    except Damaged:  # the samples before the damage say enough
        return samples, max(end, 1), False
    finally:
        os.close(handle)
    return samples, Path(shard).stat().st_size, True


def _row_seconds(stage: Any, shard: str) -> float | None:
    """Seconds that one sample takes the index on one core, from a few at the front of a shard.

    Members, hashes and image headers are read as in earnest. The first call is not counted, since it
    loads what reads images.
    """
    from dbp.formats.tars import samples

    began, count = 0.0, -1
    try:
        for sample in samples(shard):
            stage._row(sample, shard, 0, shard)
            count += 1
            began = began or time.perf_counter()
            if count == TRIED or time.perf_counter() - began > PATIENCE:
                break
    except DbpError:
        return None
    return (time.perf_counter() - began) / count if count > 0 else None


def usual_width(encoder: Any, side: str) -> tuple[int, str]:
    """How many numbers a vector of the side `image` or `text` will have, and what was assumed for that.

    The text is empty where the width is certain. The encoder's network is not loaded.
    """
    model = str(getattr(encoder, "model", None) or "")
    try:
        if found := _of_vectors(encoder, side) or _of_openclip(encoder, model):
            return found, ""
    except (DbpError, OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    for size, width in TIMM.items():
        if size in model and hasattr(encoder, "pooling"):
            return width, f"width {width:,}, as timm's models of size {size} have"
    return ASSUMED, f"width {ASSUMED:,} is assumed, since {model or type(encoder).__name__} says none"


def _of_vectors(encoder: Any, side: str) -> int | None:
    """The width of vectors that lie in files: named, or in the header of the first file."""
    if named := getattr(encoder, "width", None) or getattr(getattr(encoder, "plan", None), "width", None):
        return int(named)
    if array := getattr(encoder, f"{side}_array", None):
        first = next(iter(sorted(Path(encoder.metadata or "").glob("[!.]*.npz"))), None)
        return _npz_width(first, array) if first else None
    path = getattr(encoder, f"{side}s", None)
    if folder := getattr(encoder, "folder", None):
        kind = "img_emb" if side == "image" else "text_emb"
        path = next(iter(sorted(Path(folder, kind).glob("[!.]*.npy"))), None)
    return int(np.load(path, mmap_mode="r", allow_pickle=False).shape[1]) if path else None


def _npz_width(path: Path, array: str) -> int:
    read = np.lib.format
    with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as member:
        is_first = read.read_magic(member) == (1, 0)
        shape, *_ = (read.read_array_header_1_0 if is_first else read.read_array_header_2_0)(member)
    return int(shape[1])


def _of_openclip(encoder: Any, model: str) -> int | None:
    """`embed_dim` of open_clip's model config, which is read without importing open_clip."""
    config, checkpoint = getattr(encoder, "config", None), getattr(encoder, "checkpoint", None)
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
