"""Samples inside a tar shard, found in one sequential read; names are data and never become paths."""

import io
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dbp.data.images import IMAGE_FORMATS
from dbp.engine.paths import is_remote
from dbp.errors import PoolError
from dbp.formats.tar_headers import Damaged, Stream, spans, split, text

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


def write_members(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of files, by name and content; its bytes depend on these alone: no time, no owner."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            tar.format = tarfile.USTAR_FORMAT if len(name.encode()) <= 100 else tarfile.GNU_FORMAT
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def image_format(extensions: Collection[str], order: Sequence[str] = IMAGE_FORMATS) -> str:
    """Which member of a sample is its image: of several, the first of an order; "" for none."""
    return next((extension for extension in order if extension in extensions), "")


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
        except Damaged:
            _drain(stream)  # the command's own failure, if any, is the better message
            raise
        _drain(stream)
    finally:
        stream.close()


def _drain(stream: Any) -> None:
    while stream.read(1 << 20):
        pass


def samples(
    shard: str,
    on_damage: Callable[[str], None] | None = None,
    on_other: Callable[[str], None] = lambda extension: None,
) -> Iterator[TarSample]:
    """The samples of a shard in order: neighbouring members with one key are one sample.

    A key that comes again after another one, or an extension that comes again under one key, begins a new sample,
    so nothing is overwritten. Folders, links and names without a key (`.jpg`) are not members, as in webdataset.

    Args:
        shard: Path, URL or pipe.
        on_damage: For a shard that is no tar or is cut short, end after the last whole sample and
            hand over the message, instead of stopping with an error.
        on_other: Called with the extension of each file that is not read; "" of one without key or extension.

    Raises:
        PoolError: The shard is no tar, or is cut short; it names the shard and the last whole member.
    """
    current: TarSample | None = None
    last = None
    try:
        with open_shard(shard) as handle:
            stream = Stream(handle)
            for name, _, offset, size, _ in spans(stream):
                key, extension = (text(part) for part in split(name))
                if extension in SAMPLE_FORMATS:
                    content = stream.read(size, offset)
                    if len(content) != size:
                        raise Damaged("unexpected end of data")
                    if current is None or key != current.key or extension in current.members:
                        if current is not None:
                            yield current
                        current = TarSample(key)
                    current.members[extension] = Member(offset, content)
                else:
                    on_other(extension)
                last = text(name)
    except (Damaged, OSError, ValueError) as error:
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
