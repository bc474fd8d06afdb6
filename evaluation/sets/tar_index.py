"""Where each sample lies in a tar: one sequential read of the headers, then any order by `pread`.

A shard of one tar would bind a reader to one worker; ranges of an index can go to any number of
them. Headers of 10,000 samples take about a second.
"""

import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dbp.errors import WorldError

# The first one present is the picture, as in CLIP_benchmark's reader.
PICTURE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
# Small enough to keep at once: label, captions, and the metadata of WILDS and fairness sets.
ANNOTATION_EXTENSIONS = ("cls", "txt", "npy")

_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_BLOCK = tarfile.BLOCKSIZE


class EvaluationDataError(WorldError):
    """An evaluation set on disk is not what its task needs."""


@dataclass(frozen=True)
class Sample:
    """One picture in a tar with what is said about it.

    Args:
        key: Its name, unique in the set; data, never a path.
        shard: Number of the tar.
        extension: Of the picture, one of `PICTURE_EXTENSIONS`.
        offset: First byte of the picture in the tar.
        length: Bytes of the picture.
        annotations: Content of its small members by extension, as `{"cls": b"7"}`.
    """

    key: str
    shard: int
    extension: str
    offset: int
    length: int
    annotations: Mapping[str, bytes]


def scan_tar(path: Path, shard: int) -> list[Sample]:
    """Read the headers and small members of one tar, in order.

    Raises:
        EvaluationDataError: It is missing, no tar, cut short, or holds a sample without picture.
    """
    pictures: dict[str, dict[str, tuple[int, int]]] = {}
    annotations: dict[str, dict[str, bytes]] = {}
    end = 0
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                match = _KEY_AND_EXTENSION.match(member.name)
                if not member.isreg() or match is None:
                    continue
                key, extension = match.group(1), match.group(2).lower()
                members = pictures.setdefault(key, {})
                if extension in PICTURE_EXTENSIONS:
                    members[extension] = (member.offset_data, member.size)
                elif extension in ANNOTATION_EXTENSIONS:
                    content = tar.extractfile(member)
                    assert content is not None, member
                    annotations.setdefault(key, {})[extension] = content.read()
            file.seek(end)
            # tarfile takes a cut or a damaged header between two members for the end.
            is_whole = file.read(_BLOCK) == bytes(_BLOCK)
    except FileNotFoundError:
        raise EvaluationDataError(
            f"The shard {path} is missing, though nshards.txt beside it counts it. "
            "Fetch the set again, or mend nshards.txt."
        ) from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise EvaluationDataError(
            f"Cannot read {path} as a tar: {error}. It is damaged or cut short; fetch it again."
        ) from error
    if not is_whole:
        raise EvaluationDataError(
            f"{path} ends or breaks after {len(pictures):,} samples without a tar's end mark. "
            "It is damaged or cut short; fetch it again."
        )
    return [_sample(path, shard, key, members, annotations.get(key, {})) for key, members in pictures.items()]


def _sample(
    path: Path, shard: int, key: str, pictures: dict[str, tuple[int, int]], annotations: dict[str, bytes]
) -> Sample:
    for extension in PICTURE_EXTENSIONS:
        if extension in pictures:
            return Sample(key, shard, extension, *pictures[extension], annotations)
    raise EvaluationDataError(
        f"Sample {key!r} of {path} has no picture ({', '.join(PICTURE_EXTENSIONS)}). "
        "Fetch the set again, or write it again with its pictures."
    )
