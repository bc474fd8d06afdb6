"""The stages that write a pool's pictures as codes, and the codes as vectors that can be clustered."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Int, Integer

from dbp.captioning.captioner import Captioner, close, opened
from dbp.config import require
from dbp.data.codes import CODEBOOK, Codes
from dbp.data.embeddings import Embeddings, save_part
from dbp.data.images import Undecodable
from dbp.data.missing import Missing
from dbp.data.pool import Pool
from dbp.encoders.embed import contents_of, end_of, parts_of
from dbp.engine.parts import Parted
from dbp.engine.stage import runtime
from dbp.engine.work import Part, Work

Kind = Literal["histogram", "mean", "published"]
BLOCK = 512  # rows whose vectors are made together: 0.6 GB for 197 places of 768 numbers


@dataclass(frozen=True)
class Encode(Parted):
    """The codes of all pictures of a pool that can be decoded.

    Args:
        rows_per_part: Fewest rows of a part; parts begin and end with shards.
        batch_size: Pictures that go through the network together.
        device: Where it works.
    """

    name: ClassVar[str] = "codes"
    needs: ClassVar[tuple[str, ...]] = ("pool", "captioner")
    makes: ClassVar[type] = Codes
    keeps_parts: ClassVar[bool] = True

    rows_per_part: int = runtime(32_768)
    batch_size: int = runtime(128)
    device: str = runtime("auto")

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")

    def parts(self, pool: Pool, captioner: Captioner) -> list[Part]:
        return parts_of(pool, self.rows_per_part)

    def make(self, part: Part, folder: Path, pool: Pool, captioner: Captioner) -> dict[str, Any]:  # type: ignore[override]
        starts, use = pool.index.starts, opened(captioner, self.device)
        rows: list[int] = []
        codes = [np.zeros((0, captioner.about["num_tokens"]), np.uint16)]
        failed: dict[int, str] = {}
        waiting: list[Any] = []

        def flush() -> None:
            if waiting:
                codes.append(use.codes(waiting).astype(np.uint16))
                waiting.clear()

        for shard in range(part.number, end_of(part, self.parts(pool, captioner), pool)):
            span = slice(starts[shard], starts[shard + 1])
            valid = np.flatnonzero(pool.is_valid[span]) + span.start
            for row, content in contents_of(pool, shard, valid, "image"):
                assert isinstance(content, bytes)
                try:
                    picture = pool.decode(content)
                except Undecodable as problem:
                    failed[row] = str(problem)
                    continue
                waiting.append(use.tower.preprocess(picture))
                rows.append(row)
                if len(waiting) == self.batch_size:
                    flush()
        flush()
        np.save(folder / "rows.npy", np.array(rows, np.int64))
        np.save(folder / "codes.npy", np.concatenate(codes))
        Missing.of(failed).save(folder)
        return {"rows": len(rows), **Counter(failed.values())}

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, dict[str, Any]], pool: Pool, captioner: Captioner
    ) -> dict[str, Any]:
        use = opened(captioner, self.device)
        np.save(work.folder / CODEBOOK, use.codebook())
        close()
        totals = total(counts)
        k = captioner.network.num_codes
        times = np.zeros(k, np.int64)
        for name in counts:
            part = np.load(work.shared / name / "codes.npy", mmap_mode="r")
            times += np.bincount(part.ravel(), minlength=k)
        return {**totals, "codes": k, "codes used": int((times > 0).sum()),
                "perplexity": round(perplexity(times), 2)}  # fmt: skip


def total(counts: Mapping[str, dict[str, Any]]) -> Counter[str]:
    """What the parts of a stage counted, added up."""
    totals: Counter[str] = Counter({"rows": 0})
    for found in counts.values():
        totals.update(found)
    return totals


def perplexity(times: Int[np.ndarray, " k"]) -> float:
    """How many codes are in use, weighed by how often: the exponential of their entropy, 1 to k; 1 of none."""
    shares = times[times > 0] / max(int(times.sum()), 1)
    return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclass(frozen=True)
class CodeVectors(Parted):
    """A vector for each picture from its codes, for clustering by cosine.

    Args:
        kind: `histogram`: how often each code occurs; `mean`: the mean of the codes' vectors; `published`:
            the numbers of the codes as coordinates, place by place. The numbers are names, so their distances
            have no meaning: it is offered for comparison alone, and without the published code's PCA to 256
            dimensions, which its library refuses for 197 places.
    """

    name: ClassVar[str] = "codevectors"
    needs: ClassVar[tuple[str, ...]] = ("codes",)
    makes: ClassVar[type] = Embeddings
    keeps_parts: ClassVar[bool] = True

    kind: Kind

    def parts(self, codes: Codes) -> list[Part]:
        return [
            Part(home.name, number, float((home / "codes.npy").stat().st_size))
            for number, home in enumerate(codes.parts)
        ]

    def make(self, part: Part, folder: Path, codes: Codes) -> dict[str, Any]:  # type: ignore[override]
        rows, found = codes.part(part.number)
        missing = codes.missing(part.number)
        width = (
            found.shape[1]
            if self.kind == "published"
            else codes.codebook.shape[0 if self.kind == "histogram" else 1]
        )
        vectors = np.zeros((len(rows), width), np.float32)
        for start in range(0, len(rows), BLOCK):
            block = slice(start, start + BLOCK)
            vectors[block] = code_vectors(found[block], codes.codebook, self.kind)
        failed = {int(row): missing.texts[code] for row, code in zip(missing.rows, missing.codes, strict=True)}
        return save_part(folder, rows, vectors, failed)

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, dict[str, Any]], codes: Codes
    ) -> dict[str, Any]:
        return dict(total(counts))


def code_vectors(
    codes: Integer[np.ndarray, "m t"], codebook: Float32[np.ndarray, "k d"], kind: Kind
) -> Float32[np.ndarray, "m w"]:
    """The vectors of pictures from their codes; not of unit length yet."""
    if kind == "published":
        return codes.astype(np.float32)
    if kind == "mean":  # in float64: the sum of a picture's codes must not depend on their order
        return codebook.astype(np.float64)[codes].mean(1).astype(np.float32)
    m, k = len(codes), len(codebook)
    cells = codes.astype(np.int64) + np.arange(m)[:, None] * k
    return np.bincount(cells.ravel(), minlength=m * k).reshape(m, k).astype(np.float32)
