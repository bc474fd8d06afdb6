"""Where each sample lies in a tar: one sequential read of the headers, then any order by `pread`.

A shard of one tar would bind a reader to one worker; ranges of an index can go to any number of
them. Headers of 10,000 samples take about a second.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dbp.data.images import EVALUATION_FORMATS
from dbp.errors import WorldError
from dbp.formats.tar_headers import Damaged, Other, spans, split, text
from dbp.formats.tars import image_format

# Small enough to keep at once: label, captions, and the metadata of WILDS and fairness sets.
ANNOTATION_EXTENSIONS = ("cls", "txt", "npy")


class EvaluationDataError(WorldError):
    """An evaluation set on disk is not what its task needs."""


@dataclass(frozen=True)
class Sample:
    """One image in a tar with what is said about it."""

    key: str  # its name, unique in the set; data, never a path
    shard: int  # number of the tar
    extension: str  # of the image, one of `EVALUATION_FORMATS`; of several, the first there
    offset: int  # first byte of the image in the tar
    length: int  # bytes of the image
    annotations: Mapping[str, bytes]  # content of its small members by extension, as `{"cls": b"7"}`


def scan_tar(path: Path, shard: int) -> list[Sample]:
    """Read the headers and small members of one tar, in order.

    Raises:
        EvaluationDataError: It is missing, no tar, cut short, or holds a sample without picture.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}  # key -> extension -> where its bytes lie
    try:
        with path.open("rb") as file:
            for name, _, offset, size, _ in spans(file.fileno()):
                key, extension = (text(part) for part in split(name))
                if extension:
                    found.setdefault(key, {})[extension] = offset, size
            return [_sample(path, shard, key, members, file) for key, members in found.items()]
    except FileNotFoundError:
        raise EvaluationDataError(
            f"The shard {path} is missing, though nshards.txt beside it counts it. "
            "Fetch the set again, or mend nshards.txt."
        ) from None
    except Other as error:
        raise EvaluationDataError(f"{path} is not a tar: {error}. Put the tar itself in its place.") from error
    except (Damaged, OSError) as error:
        if found:
            raise EvaluationDataError(
                f"{path} ends or breaks after {len(found):,} samples: {error}. "
                "It is damaged or cut short; fetch it again."
            ) from error
        raise EvaluationDataError(
            f"Cannot read {path} as a tar: {error}. It is damaged or cut short; fetch it again."
        ) from error


def _sample(path: Path, shard: int, key: str, members: dict[str, tuple[int, int]], file: IO[bytes]) -> Sample:
    if not (extension := image_format(members, EVALUATION_FORMATS)):
        raise EvaluationDataError(
            f"Sample {key!r} of {path} has no picture ({', '.join(EVALUATION_FORMATS)}). "
            "Fetch the set again, or write it again with its pictures."
        )
    small = [kind for kind in members if kind in ANNOTATION_EXTENSIONS]
    annotations = {kind: os.pread(file.fileno(), *members[kind][::-1]) for kind in small}
    return Sample(key, shard, extension, *members[extension], annotations)
