"""The `.npy` members of samples: one short vector of numbers for each picture."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Shaped

from evaluation.sets.data import EvaluationSet
from evaluation.sets.tar_index import EvaluationDataError

# Far above any set's slides, years or regions; each makes two metrics.
MAX_VALUE = 1_000


def read_vectors(
    evaluation_set: EvaluationSet, rows: Sequence[int], lengths: Sequence[int], holds: str
) -> Shaped[np.ndarray, "n c"]:
    """Read the vectors of some samples, all of one length.

    Args:
        evaluation_set, rows: Which samples.
        lengths: How many numbers a vector may have.
        holds: What these are, for people.

    Raises:
        EvaluationDataError: A member is missing, damaged, holds no plain numbers, or another number
            of them.
    """
    contents = [_content(evaluation_set, row, holds) for row in rows]
    first = _parse(evaluation_set, rows[0], contents[0])
    if first.ndim != 1 or len(first) not in lengths:
        raise EvaluationDataError(
            f"The .npy member of {evaluation_set.where(rows[0])} has shape {first.shape}; it must "
            f"hold {' or '.join(map(str, lengths))} numbers: {holds}. Is this the right set for the "
            "task? Otherwise fetch or write it again."
        )
    header = contents[0][: len(contents[0]) - first.nbytes]
    if all(len(content) == len(contents[0]) and content.startswith(header) for content in contents):
        # The usual case. numpy would take seconds to read the same header 100,000 times.
        data = b"".join(content[len(header) :] for content in contents)
        return np.frombuffer(data, first.dtype).reshape(len(rows), -1)
    vectors = [_parse(evaluation_set, row, c) for row, c in zip(rows, contents, strict=True)]
    for row, vector in zip(rows, vectors, strict=True):
        if vector.shape != first.shape:
            raise EvaluationDataError(
                f"The .npy member of {evaluation_set.where(row)} has shape {vector.shape}, but that "
                f"of {evaluation_set.where(rows[0])} has {first.shape}. All must hold {holds}; fetch "
                "or write the set again."
            )
    return np.stack(vectors)


def read_fields(
    evaluation_set: EvaluationSet,
    rows: Sequence[int],
    fields: Sequence[str],
    needed: Sequence[str],
    *,
    num_more: int = 0,
) -> dict[str, Int[np.ndarray, " n"]]:
    """Read metadata of some samples.

    Args:
        evaluation_set, rows: Which samples.
        fields: Name of each column.
        needed: Columns to return; the others may hold any numbers.
        num_more: How many columns may follow that have no name here.

    Returns:
        The needed columns by name, in [0, 1,000].

    Raises:
        EvaluationDataError: As `read_vectors`; or a needed value is not a whole number in that range.
    """
    lengths = range(len(fields), len(fields) + num_more + 1)
    table = read_vectors(evaluation_set, rows, lengths, ", ".join(fields))
    columns = {}
    for field in needed:
        values = table[:, list(fields).index(field)].astype(np.float64)
        # Written so that NaN is bad.
        is_good = (values >= 0) & (values <= MAX_VALUE) & (values == np.floor(values))
        if not is_good.all():
            i = int(np.flatnonzero(~is_good)[0])
            raise EvaluationDataError(
                f"{field} of {evaluation_set.where(rows[i])} is {values[i]} in its .npy member, not "
                f"a whole number from 0 to {MAX_VALUE:,}. The columns must be {', '.join(fields)}; "
                "fetch or write the set again."
            )
        columns[field] = values.astype(np.int64)
    return columns


def _content(evaluation_set: EvaluationSet, row: int, holds: str) -> bytes:
    content = evaluation_set.samples[row].annotations.get("npy")
    if content is None:
        raise EvaluationDataError(
            f"{evaluation_set.where(row)} has no .npy member beside it, which holds {holds}. Is "
            "this the right set for the task? Otherwise fetch or write it again."
        )
    return content


def _parse(evaluation_set: EvaluationSet, row: int, content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise EvaluationDataError(
            f"Cannot read the .npy member of {evaluation_set.where(row)}: {error}. It is damaged or "
            "holds no plain array of numbers; fetch or write the set again."
        ) from error
    if array.dtype.kind not in "biuf" or file.tell() != len(content):
        raise EvaluationDataError(
            f"The .npy member of {evaluation_set.where(row)} holds {array.dtype} in {len(content):,} "
            "bytes, not one array of numbers. Fetch or write the set again."
        )
    return array
