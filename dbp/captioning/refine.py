"""Caption refinement: a caption for each kept picture, written by the captioner, beside the original."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, UInt64

from dbp.captioning.captioner import Captioner, close, opened
from dbp.captioning.codes import total
from dbp.config import require
from dbp.data.captions import Captions, write_captions
from dbp.data.codes import Codes
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.parts import Parted
from dbp.engine.stage import runtime
from dbp.engine.work import Part, Work
from dbp.exact.order import keyed_hash

log = logging.getLogger("dbp")

EMPTY = "empty caption"
FILE = "captions.parquet"


@dataclass(frozen=True)
class Refine(Parted):
    """Write a caption for each kept row from the codes of its picture.

    A row without codes (its picture cannot be decoded), or whose caption comes out empty, is counted and has
    none: training gives it its original.

    Args:
        temperature: 0 takes the likeliest word each time; above, words are drawn from probabilities with their
            logarithm divided by it.
        top_p: Draw among the likeliest words that make up so much of the probability, in (0, 1].
        seed: Of the draws, which belong to (seed, uid, word): order, batches and parts play no role.
        batch_size: Captions that are written together.
        device: Where the network works.
    """

    name: ClassVar[str] = "captions"
    needs: ClassVar[tuple[str, ...]] = ("pool", "rows", "codes", "captioner")
    makes: ClassVar[type] = Captions

    temperature: float
    top_p: float
    seed: int
    batch_size: int = runtime(256)
    device: str = runtime("auto")

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")

    def unread(self) -> set[str]:
        return set() if self.temperature > 0 else {"seed", "top_p"}

    def parts(self, pool: Pool, rows: KeepList, codes: Codes, captioner: Captioner) -> list[Part]:
        """One for each part of the codes."""
        kept = [int(np.count_nonzero(rows.mask[codes.part(n)[0]])) for n in range(len(codes.parts))]
        return [
            Part(home.name, number, float(count))
            for number, (home, count) in enumerate(zip(codes.parts, kept, strict=True))
        ]

    def make(  # type: ignore[override]
        self, part: Part, folder: Path, pool: Pool, rows: KeepList, codes: Codes, captioner: Captioner
    ) -> dict[str, Any]:
        own, found = codes.part(part.number)
        at = np.flatnonzero(rows.mask[own])
        texts: list[str] = []
        if len(at):
            use = opened(captioner, self.device)
        for start in range(0, len(at), self.batch_size):
            batch = at[start : start + self.batch_size]
            choose = self._choose(pool.uid_hashes[own[batch]])
            texts += use.write(found[batch].astype(np.int64), choose)
        pq.write_table(pa.table({"row": own[at], "caption": pa.array(texts, pa.string())}), folder / FILE)
        missing = codes.missing(part.number)
        lacking = missing.codes[rows.mask[missing.rows]]
        counts = Counter(missing.texts[code] for code in lacking.tolist())
        empty = texts.count("")
        return {"rows": len(texts), "refined": len(texts) - empty, EMPTY: empty, **counts}

    def finish(  # type: ignore[override]
        self,
        work: Work,
        counts: Mapping[str, dict[str, Any]],
        pool: Pool,
        rows: KeepList,
        codes: Codes,
        captioner: Captioner,
    ) -> dict[str, Any]:
        close()

        def in_order() -> Iterator[str | None]:
            """Of each row of the pool its caption, or none."""
            at = 0
            for name in sorted(counts):
                table = pq.read_table(work.shared / name / FILE)
                for row, text in zip(table["row"].to_pylist(), table["caption"].to_pylist(), strict=True):
                    yield from (None for _ in range(row - at))
                    yield text or None
                    at = row + 1
            yield from (None for _ in range(pool.num_rows - at))

        totals = total(counts)
        write_captions(work.folder, pool.digest, in_order())
        if originals := rows.num_kept - totals["refined"]:
            share = f"{originals:,} of {rows.num_kept:,}"
            log.info("captions: %s kept rows keep their original caption alone", share)
        return {**totals, "original alone": originals}

    def _choose(self, uid_hashes: UInt64[np.ndarray, " b"]) -> Any:
        """How the next word of each caption of a batch is taken."""
        from dbp.captioning.model import take_likeliest

        if self.temperature == 0:
            return take_likeliest

        def draw(step: int, probabilities: Any) -> Any:
            import torch

            likely = probabilities.double().cpu().numpy()
            numbers = uniform(uid_hashes, self.seed, step)
            chosen = drawn(likely, numbers, self.temperature, self.top_p)
            return torch.from_numpy(chosen).to(probabilities.device)

        return draw


def uniform(uid_hashes: UInt64[np.ndarray, " b"], seed: int, step: int) -> Float64[np.ndarray, " b"]:
    """A number in [0, 1) for each sample's word; it belongs to (seed, uid, word)."""
    words = keyed_hash(keyed_hash(uid_hashes, seed), step)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def drawn(
    probabilities: Float64[np.ndarray, "b v"], numbers: Float64[np.ndarray, " b"], temperature: float, top_p: float
) -> np.ndarray:
    """The words at which the running sums of probabilities, likeliest first, pass the numbers.

    Args:
        probabilities: Of each word, for each caption.
        numbers: In [0, 1).
        temperature: Above 0.
        top_p: Share of the probability to draw from; at least the likeliest word is in.

    Source: Holtzman et al. 2020 (nucleus sampling), section 3.1.
    """
    with np.errstate(divide="ignore"):
        weights = np.log(probabilities) / temperature
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    order = np.argsort(-weights, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    before = sums - np.take_along_axis(weights, order, axis=1)
    inside = before < top_p
    inside[:, 0] = True
    total = np.where(inside, sums, 0).max(axis=1)
    place = (sums <= (numbers * total)[:, None]).sum(axis=1)
    place = np.minimum(place, inside.sum(axis=1) - 1)
    return np.take_along_axis(order, place[:, None], axis=1)[:, 0]
