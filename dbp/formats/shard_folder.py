"""A folder that shards are written into: by one process at a time, of one export, finished last."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dbp.engine.disk import replace_json, replacing, sync_folder
from dbp.errors import ConfigError, WorldError
from dbp.formats.uid_pairs import sort_pairs

MANIFEST = "manifest.json"


def tar_name(number: int) -> str:
    """The name of a shard, as DataComp's tools look for it."""
    return f"{number:08d}.tar"


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the folder.

    Raises:
        WorldError: Another process holds it.
    """
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorldError(
                f"another process is writing shards into {out}. Wait for it, or give another folder."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def claim(out: Path, about: dict[str, Any]) -> None:
    """Write down what the folder will hold; if that stands there, clear away half-written files.

    Raises:
        ConfigError: The folder holds shards of something else.
    """
    if not (out / MANIFEST).exists():
        if tars := sorted(out.glob("*.tar")):
            raise ConfigError(
                f"out={str(out)!r} holds {tars[0].name}, which is not of this export. Give an empty folder."
            )
        replace_json(out / MANIFEST, about)
        return
    try:
        there = dict(json.loads((out / MANIFEST).read_text()))
    except (ValueError, TypeError):
        there = {}
    if differ := [name for name in about if there.get(name) != about[name]]:
        name = differ[0]
        said = f"{name}={there.get(name)!r} there, {about[name]!r} here"
        raise ConfigError(
            f"out={str(out)!r} holds the shards of another export ({said}). Give an empty folder, or "
            "delete that one."
        )
    for left in out.glob(".*.tmp"):
        left.unlink()


def need_space(out: Path, sizes: Int[np.ndarray, " s"]) -> None:
    """See that the shards which are not there yet, of so many bytes each, fit on the disk.

    Raises:
        WorldError: They do not.
    """
    there = np.array([(out / tar_name(number)).is_file() for number in range(len(sizes))])
    needed, free = int(sizes[~there].sum()), shutil.disk_usage(out).free
    if needed > free:
        raise WorldError(
            f"out={str(out)!r}: the shards need {needed / 1e9:,.2f} GB more, and {free / 1e9:,.2f} GB are "
            "free there. Free some, or give a folder on another disk."
        )


def finish(out: Path, num_samples: Int[np.ndarray, " s"], uids: np.ndarray | None) -> None:
    """Write what readers look for beside the shards: `sample_ids.npy` of uids, if any, and `sizes.json`."""
    if uids is not None:
        with replacing(out / "sample_ids.npy") as file:
            np.save(file, sort_pairs(uids))
    sizes = {tar_name(number): int(size) for number, size in enumerate(num_samples)}
    replace_json(out / "sizes.json", sizes)  # the last file: a loader that finds it finds all
    sync_folder(out)
