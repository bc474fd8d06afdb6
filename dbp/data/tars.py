"""Samples inside a tar shard, found in one sequential read.

Offsets come from Python's tar reader, which understands the long names of pax and GNU; names are data
and never become paths.
"""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from dbp.errors import PoolError
from dbp.paths import is_remote


@dataclass
class Member:
    """One file of a sample: where its bytes lie, and the bytes."""

    offset: int
    content: bytes


@dataclass
class TarSample:
    """The members that share a key, by extension in lower case."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)


@contextmanager
def open_shard(shard: str) -> Iterator[IO[bytes]]:
    """Open a shard for one sequential read; URLs and pipes go through webdataset."""
    if not is_remote(shard):
        with open(shard, "rb") as handle:
            yield handle
        return
    from webdataset.gopen import gopen

    stream = gopen(shard, mode="rb")
    try:
        yield stream
    finally:
        stream.close()


def split_name(name: str) -> tuple[str, str]:
    """A member's key and extension: the extension begins at the first dot of the last component.

    Bytes that are not UTF-8 are spelled out with backslashes, so that a key is always valid text.
    """
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    folder, slash, last = name.rpartition("/")
    base, _, extension = last.partition(".")
    return folder + slash + base, extension.lower()


def samples(
    shard: str, wanted: Callable[[str], bool], keep_readable: bool = False
) -> Iterator[TarSample]:
    """The samples of a shard in order: neighbouring members with one key are one sample.

    A key that comes again after another one, or an extension that comes again under one key, begins
    a new sample, so nothing is overwritten.

    Args:
        shard: Path, URL or pipe.
        wanted: Whether a member with this extension is read.
        keep_readable: For a shard that is cut short, end after the last whole sample instead of
            stopping with an error.

    Raises:
        PoolError: The shard is no tar, or is cut short; it names the shard and the last whole member.
    """
    current: TarSample | None = None
    last = None
    try:
        with open_shard(shard) as handle, tarfile.open(fileobj=handle, mode="r|") as tar:
            for info in tar:
                if not info.isfile():
                    continue
                key, extension = split_name(info.name)
                if not wanted(extension):
                    last = info.name
                    continue
                content: Any = tar.extractfile(info)
                content = content.read()
                if len(content) != info.size:
                    raise tarfile.ReadError("unexpected end of data")
                if current is None or key != current.key or extension in current.members:
                    if current is not None:
                        yield current
                    current = TarSample(key)
                current.members[extension] = Member(info.offset_data, content)
                last = info.name
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise PoolError(f"shard {shard} is missing") from error
        if keep_readable and last is not None:
            current = None  # its later members may lie behind the cut
            return
        after = f"after member {last!r}" if last is not None else "at its first member"
        raise PoolError(
            f"shard {shard} cannot be read {after}: {error}. Fetch it again, or set "
            "pool.broken_shards=keep_readable to use the samples before the damage."
        ) from error
    if current is not None:
        yield current
