"""Where things lie: the configs, and the shards that a path pattern names."""

import glob
import hashlib
import os
import re
from collections import Counter
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError, PoolError

REMOTE = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)")


def config_folder() -> Path:
    """The folder of Hydra configs: inside the wheel, or beside the packages in a checkout."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def is_remote(shard: str) -> bool:
    """Whether a shard is a URL or a pipe, which can be streamed but not read at an offset."""
    return bool(REMOTE.match(shard))


def is_of_macos(path: Path) -> bool:
    """Whether a file is one that macOS puts beside others and no part of the data: `._x`, `.DS_Store`."""
    return path.name.startswith("._") or path.name == ".DS_Store"


def expand_shards(
    patterns: str | list[str] | tuple[str, ...],
    setting: str = "pool.shards",
    what: str = "the tars",
    ending: str = "tar",
) -> list[str]:
    """The shards that brace ranges, wildcards and plain paths name, in order; the other arguments are for messages.

    The longest leading part of a path that exists as written is taken literally, so that folders
    whose own names hold `{}`, `[]`, commas, spaces or accents arrive unchanged.

    Raises:
        PoolError: A shard is missing, or a pattern matches nothing; it names the first one.
    """
    shards: list[str] = []
    braces, wildcard = f"folder/{{00000..00099}}.{ending}", f"folder/*.{ending}"
    for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
        found = listed_shards(pattern)
        if not found:
            raise PoolError(
                f"no shard matches {setting}={pattern!r}. Give {what} as a path, a brace range such as "
                f"{braces!r}, or a wildcard such as {wildcard!r}."
            )
        shards += found
    if not shards:
        raise PoolError(f"{setting} is an empty list. Name {what}, such as {braces!r}.")
    if folders := [s for s in shards if not is_remote(s) and os.path.isdir(s)]:
        raise PoolError(
            f"{setting} names {folders[0]}, which is a folder. Name {what} in it, such as "
            f"'{folders[0]}/*.{ending}'."
        )
    missing = [s for s in shards if not is_remote(s) and not os.path.isfile(s)]
    if missing:
        raise PoolError(
            f"{len(missing):,} of {len(shards):,} shards are missing; the first is {missing[0]}. "
            f"Correct {setting} (brace ranges include both ends), or fetch the missing shards."
        )
    if twice := next((s for s, count in Counter(shards).items() if count > 1), None):
        raise PoolError(f"{setting} names {twice} more than once. Name each shard once.")
    return shards


def listed_shards(patterns: str | list[str] | tuple[str, ...]) -> list[str]:
    """What patterns name, whether it is there or not; a wildcard may name nothing. See `expand_shards`."""
    shards: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
        if is_remote(pattern):
            shards += _expand_braces(pattern)
            continue
        literal, rest = _literal_prefix(pattern)
        if not rest:
            shards.append(literal)
            continue
        found: list[str] = []
        for name in _expand_braces(rest):
            path = str(Path(literal) / name) if literal else name
            if glob.has_magic(name) and not os.path.exists(path):
                found += sorted(glob.glob(str(Path(glob.escape(literal)) / name)))
            else:
                found.append(path)
        shards += found
    return shards


def relative_names(paths: list[str]) -> list[str]:
    """What is left of paths, URLs or pipes behind the folders that all have in common; at least the file's name.

    Two runs side by side have shards `runA/00000.tar` and `runB/00000.tar`, wherever the folder of both lies.
    """
    parts = [(path if is_remote(path) else os.path.abspath(path)).split("/") for path in paths]
    folders = zip(*(part[:-1] for part in parts), strict=False)
    depth = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, folders))
    return ["/".join(part[depth:]) for part in parts]


def _expand_braces(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError:  # its UnbalancedBracesError
        raise PoolError(
            f"pool.shards: {pattern!r} has a brace without its partner, and nothing of that name "
            "exists. A brace range is written 'folder/{00000..00099}.tar'."
        ) from None


def _literal_prefix(pattern: str) -> tuple[str, str]:
    parts = Path(pattern).parts
    for count in range(len(parts), 0, -1):
        prefix = Path(*parts[:count])
        if os.path.exists(prefix):  # pathlib's raises where a name is too long
            return str(prefix), str(Path(*parts[count:])) if count < len(parts) else ""
    return "", pattern


def sizes_and_times(paths: list[str]) -> list[list[Any]]:
    """Name, size and time of files, which a change changes and a move does not; URLs and pipes as they stand."""
    described: list[list[Any]] = []
    for path in paths:
        stat = None if is_remote(path) else Path(path).stat()
        described.append([Path(path).name, stat.st_size, stat.st_mtime_ns] if stat else [path])
    return described


def file_digest(path: Path | str, setting: str) -> str:
    """SHA-256 of a file that the user brought, read once by this process while its size and time stay.

    Raises:
        ConfigError: There is no such file; it names the setting.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{setting}={str(path)!r}: there is no such file. Give its path.")
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
