"""Samples inside a tar shard, found in one sequential read.

Offsets come from Python's tar reader, which understands the long names of pax and GNU; names are data
and never become paths.
"""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from dbp.data.images import IMAGE_FORMATS
from dbp.engine.paths import is_remote
from dbp.errors import PoolError

# What begins a sample or joins one; who reads a shard again must read the same to count the same rows.
SAMPLE_FORMATS = frozenset((*IMAGE_FORMATS, "txt", "json"))


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


def image_of(sample: TarSample) -> tuple[str, Member | None]:
    """A sample's picture and its extension: of several, the first in the order of `IMAGE_FORMATS`."""
    found = next((e for e in IMAGE_FORMATS if e in sample.members), "")
    return found, sample.members.get(found)


class _StrictInfo(tarfile.TarInfo):
    """A member's header; one that is cut or garbled is an error, where Python takes it for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictInfo":
        try:
            info = super().fromtarfile(tar)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without the mark that ends a tar") from None
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if info.issparse():
            raise tarfile.ReadError(f"member {info.name!r} is a sparse file")
        return info


@contextmanager
def open_shard(shard: str) -> Iterator[IO[bytes]]:
    """Open a shard for one sequential read; URLs and pipes go through webdataset."""
    if not is_remote(shard):
        with open(shard, "rb") as handle:
            yield handle
        return
    from webdataset.gopen import gopen, set_options

    stream: Any = gopen(shard, mode="rb")
    try:
        try:
            yield stream
        except GeneratorExit:  # the reader has enough; its writer then dies of the closed pipe
            set_options(stream, ignore_errors=True)
            raise
        except tarfile.TarError:
            _drain(stream)  # the command's own failure, if any, is the better message
            raise
        _drain(stream)
    finally:
        stream.close()


def _drain(stream: Any) -> None:
    while stream.read(1 << 20):
        pass


def split_name(name: str) -> tuple[str, str]:
    """A member's key and extension: the extension begins at the first dot of the last component.

    Bytes that are not UTF-8 are spelled out with backslashes, so that a key is always valid text.
    """
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    folder, slash, last = name.rpartition("/")
    base, _, extension = last.partition(".")
    return folder + slash + base, extension.lower()


def samples(
    shard: str, wanted: Callable[[str], bool], on_damage: Callable[[str], None] | None = None
) -> Iterator[TarSample]:
    """The samples of a shard in order: neighbouring members with one key are one sample.

    A key that comes again after another one, or an extension that comes again under one key, begins
    a new sample, so nothing is overwritten. Folders, links and names without a key (`.jpg`) are no
    members, as in webdataset.

    Args:
        shard: Path, URL or pipe.
        wanted: Whether a member with this extension is read.
        on_damage: For a shard that is no tar or is cut short, end after the last whole sample and
            hand over the message, instead of stopping with an error.

    Raises:
        PoolError: The shard is no tar, or is cut short; it names the shard and the last whole member.
    """
    current: TarSample | None = None
    last = None
    try:
        with open_shard(shard) as handle, tarfile.open(fileobj=handle, mode="r|", tarinfo=_StrictInfo) as tar:
            for info in tar:
                if not info.isfile():
                    continue
                key, extension = split_name(info.name)
                if not key.rpartition("/")[2] or not wanted(extension):
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
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not is_remote(shard):
            raise PoolError(f"shard {shard} is missing. Fetch it, or leave it out of pool.shards.") from error
        after = f"after member {last!r}" if last is not None else "at its first member"
        said = f"shard {shard} cannot be read {after}: {error}"
        if on_damage is not None:
            on_damage(said)
            return  # the last sample is not given: its later members may lie behind the cut
        raise PoolError(
            f"{said}. Fetch it again, or set pool.broken_shards=keep_readable to use the samples before the damage."
        ) from error
    if current is not None:
        yield current
