"""The keep list: the rows that stay, one bit each, and why each row stayed or went.

What a stage decided is kept as one small number per row, the number of a reason. The values behind it
(similarity, score, rank) follow from the stage's inputs, and are worked out again when someone asks
(`dbp/decisions.py`), so that a new temperature on 100 million rows writes 112 MB and not 6 GB.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int, Real, UInt8

from dbp.errors import ConfigError

DECISIONS = pa.schema(
    [
        ("row", pa.int64()),
        ("kept", pa.bool_()),
        ("stage", pa.string()),  # the stage that decided last
        ("reason", pa.string()),
        ("value", pa.float64()),  # what was compared: similarity, score, distance
        ("limit", pa.float64()),  # what it was compared with
        ("related_row", pa.int64()),  # the duplicate's twin
        ("cluster", pa.int32()),
        ("rank", pa.int64()),  # place within the cluster, or in the whole list; 0 is taken first
        ("quota", pa.int64()),  # rows to keep in that cluster, or in all
        ("weight", pa.float32()),  # of a kept row: how often it stands in an epoch of training
    ]
)
VALUES = tuple(DECISIONS.names[4:-1])
Column = np.ndarray | Callable[[], np.ndarray]  # over all rows; a function is called when asked for


@dataclass(frozen=True)
class Layer:
    """What one stage decided: over all rows of the pool the number of a reason; 0 was not its to decide."""

    stage: str
    texts: tuple[str, ...]  # texts[i] is the reason of number i; texts[1] is why rows stayed
    codes: UInt8[np.ndarray, " n"]
    columns: dict[str, Column]

    def column(self, name: str) -> np.ndarray | None:
        """A value behind the decisions over all rows of the pool, or None."""
        found = self.columns.get(name)
        return found() if callable(found) else found


@dataclass(frozen=True)
class KeepList:
    """Rows of one pool that stay.

    Laws: each row of the pool stands once in `decisions`; equal rows and weights of an equal pool have an
    equal digest; `&` and `|` give keep lists of the same pool, without weights.
    """

    pool_digest: str
    mask: Bool[np.ndarray, " n"]
    layers: tuple[Layer, ...] = ()  # the last one decided last
    weights: Float32[np.ndarray, " m"] | None = None  # how often each kept row stands in an epoch; None is once

    @property
    def num_pool_rows(self) -> int:
        return len(self.mask)

    @cached_property
    def num_kept(self) -> int:
        return int(np.count_nonzero(self.mask))

    @cached_property
    def num_draws(self) -> float:
        """The sum of the weights: rows in an epoch, repeats counted, in the mean."""
        return float(self.num_kept) if self.weights is None else float(self.weights.sum(dtype=np.float64))

    @cached_property
    def repeats(self) -> Int[np.ndarray, " m"] | None:
        """The weights as whole numbers; none where each row is taken once.

        Raises:
            ConfigError: A weight is not a whole number, so that epochs differ.
        """
        if self.weights is None:
            return None
        counts = self.weights.astype(np.int64)
        if len(broken := np.flatnonzero(counts != self.weights)):
            raise ConfigError(
                f"keep list {self.digest[:12]} has {len(broken):,} fractional weights, such as "
                f"{self.weights[broken[0]]:g}: its rows are drawn anew in each epoch, which a list of names cannot "
                "say. Export format=parquet, whose column weight holds them, or set select.per_epoch=false."
            )
        return counts

    @cached_property
    def rows(self) -> Int[np.ndarray, " m"]:
        """The rows that stay, ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def bits(self) -> UInt8[np.ndarray, " b"]:
        """One bit a row, the first row highest in its byte."""
        return np.packbits(self.mask)

    @cached_property
    def digest(self) -> str:
        """Content identity: of the pool, the rows and their weights, not of how they were found."""
        content = f"{self.pool_digest} {self.num_pool_rows} ".encode() + self.bits.tobytes()
        weights = b"" if self.weights is None else self.weights.astype("<f4").tobytes()
        return hashlib.sha256(content + weights).hexdigest()[:24]

    def counts(self) -> dict[str, int]:
        """Rows by the stage and reason that decided them, most first."""
        found: Counter[str] = Counter()
        for at, layer in enumerate(self.layers):
            numbers = np.bincount(layer.codes, minlength=len(layer.texts))
            last = at == len(self.layers) - 1
            for code, (text, count) in enumerate(zip(layer.texts, numbers, strict=True)):
                if count and code > 0 and (last or code != 1):
                    found[f"{layer.stage}: {text}"] += int(count)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def within(
        self,
        stage: str,
        keep: Bool[np.ndarray, " n"],
        reasons: tuple[UInt8[np.ndarray, " n"], list[str]] | str,
        kept_reason: str,
        **columns: Column,
    ) -> "KeepList":
        """Keep some of these rows, and write down why the others went.

        Args:
            stage: The stage that decides.
            keep: Over all rows of the pool; read where a row is still there.
            reasons: Why the others go: over all rows the number of a reason, and the reasons; or one.
            kept_reason: Why rows stay.
            columns: Values behind the decisions, over all rows or as functions that give them.
        """
        texts = [reasons] if isinstance(reasons, str) else list(reasons[1])
        assert len(texts) < 254, "reasons are few"
        mask = self.mask & keep
        codes = np.zeros(len(mask), np.uint8)
        gone = self.mask & ~mask
        codes[gone] = 2 if isinstance(reasons, str) else reasons[0][gone] + np.uint8(2)
        codes[mask] = 1
        layer = Layer(stage, ("", kept_reason, *texts), codes, columns)
        weights = None if self.weights is None else self.weights[mask[self.mask]]
        return KeepList(self.pool_digest, mask, (*self.layers, layer), weights)

    def weighted(self, weights: Real[np.ndarray, " m"]) -> "KeepList":
        """The same rows, each standing so often in an epoch: whole numbers, or means of what is drawn anew.

        Args:
            weights: Of `rows`; above 0. Where all are 1, nothing is stored.
        """
        assert len(weights) == self.num_kept, "one weight for each kept row"
        assert (np.asarray(weights) > 0).all(), "a kept row has a weight above 0"
        found = np.asarray(weights, np.float32)
        return replace(self, weights=None if (found == 1).all() else found)

    def narrow(
        self,
        stage: str,
        keep: Bool[np.ndarray, " m"],
        reasons: tuple[UInt8[np.ndarray, " m"], list[str]] | str,
        kept_reason: str,
        **columns: np.ndarray,
    ) -> "KeepList":
        """As `within`, with everything over `rows` instead of over the pool."""
        every: Any = reasons
        if not isinstance(reasons, str):
            every = (self.over(reasons[0], 0), reasons[1])
        spread = {
            name: self.over(values, np.nan if values.dtype.kind == "f" else -1) for name, values in columns.items()
        }
        return self.within(stage, self.over(keep, False), every, kept_reason, **spread)

    def over(self, values: np.ndarray, missing: Any) -> np.ndarray:
        """Values of `rows` spread over the pool."""
        spread = np.full(self.num_pool_rows, missing, values.dtype)
        spread[self.mask] = values
        return spread

    def __and__(self, other: "KeepList") -> "KeepList":
        return self._combined(other, self.mask & other.mask, "in both lists")

    def __or__(self, other: "KeepList") -> "KeepList":
        return self._combined(other, self.mask | other.mask, "in one of the lists")

    def _combined(self, other: "KeepList", mask: np.ndarray, reason: str) -> "KeepList":
        if other.pool_digest != self.pool_digest:
            raise ValueError(
                f"keep lists of two pools ({self.pool_digest[:12]}, "
                f"{other.pool_digest[:12]}) cannot be combined by row; export uids instead"
            )
        every = KeepList(self.pool_digest, np.ones(len(mask), bool))
        return every.within("combine", mask, f"not {reason}", reason)

    # the decision table

    @property
    def decisions(self) -> pa.Table:
        """Why each row stayed or went; for pools that fit in memory."""
        return pa.concat_tables(self.decision_tables(np.arange(self.num_pool_rows)))

    def decision(self, row: int) -> dict[str, Any]:
        """Why a row stayed or went."""
        return next(self.decision_tables(np.array([row]))).to_pylist()[0]

    def decision_tables(self, rows: Int[np.ndarray, " m"], block: int = 1 << 20) -> Iterator[pa.Table]:
        """The decision table of some rows, block by block."""
        needed = {
            (at, name): layer.column(name)
            for at, layer in enumerate(self.layers)
            for name in VALUES
            if name in layer.columns
        }
        for start in range(0, max(len(rows), 1), block):
            yield self._table(rows[start : start + block], needed)

    def _table(self, rows: np.ndarray, columns: dict[tuple[int, str], np.ndarray | None]) -> pa.Table:
        names = sorted({text for layer in self.layers for text in layer.texts})
        stages = sorted({layer.stage for layer in self.layers})
        reason = np.zeros(len(rows), np.int32)
        stage = np.zeros(len(rows), np.int32)
        values = {name: np.full(len(rows), np.nan) for name in ("value", "limit")}
        values |= {name: np.full(len(rows), -1, np.int64) for name in VALUES[2:]}
        for at, layer in enumerate(self.layers):
            codes = layer.codes[rows]
            decided = codes > 0
            reason[decided] = np.array([names.index(t) for t in layer.texts])[codes[decided]]
            stage[decided] = stages.index(layer.stage)
            for name, spread in values.items():
                found = columns.get((at, name))
                spread[decided] = (
                    found[rows[decided]] if found is not None else (np.nan if spread.dtype.kind == "f" else -1)
                )

        def text(numbers: np.ndarray, words: list[str]) -> pa.Array:
            return pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array(words, pa.string())).cast(pa.string())

        return pa.table(
            {
                "row": rows.astype(np.int64),
                "kept": self.mask[rows],
                "stage": text(stage, stages),
                "reason": text(reason, names),
                **{name: _column(values[name], DECISIONS.field(name).type) for name in VALUES},
                "weight": self._weights_of(rows),
            },
            schema=DECISIONS,
        )

    def _weights_of(self, rows: np.ndarray) -> pa.Array:
        kept = self.mask[rows]
        found = np.ones(len(rows), np.float32)
        if self.weights is not None:
            found[kept] = self.weights[np.searchsorted(self.rows, rows[kept])]
        return pa.array(found, mask=~kept)

    # on disk

    def save(self, folder: Path) -> None:
        """Write `keep.npy` (one bit a row), `reason.parquet`, `keep.json` and, if rows have any, `weights.npy`."""
        np.save(folder / "keep.npy", self.bits)
        if self.weights is not None:
            np.save(folder / "weights.npy", self.weights)
        layers = self.layers
        pq.write_table(
            pa.table({str(at): pa.array(layer.codes) for at, layer in enumerate(layers)}),
            folder / "reason.parquet",
            compression="zstd",
            use_dictionary=False,  # several times faster, and zstd finds the runs all the same
        )
        about = {
            "pool": self.pool_digest,
            "rows": self.num_pool_rows,
            "kept": self.num_kept,
            **({} if self.weights is None else {"draws": self.num_draws}),
            "digest": self.digest,
            "layers": [{"stage": layer.stage, "texts": list(layer.texts)} for layer in layers],
        }
        (folder / "keep.json").write_text(json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "KeepList":
        about = json.loads((folder / "keep.json").read_text())
        bits = np.load(folder / "keep.npy")
        mask = np.unpackbits(bits, count=about["rows"]).view(bool)
        codes = pq.ParquetFile(folder / "reason.parquet")
        layers = tuple(
            Layer(layer["stage"], tuple(layer["texts"]), codes.read(columns=[str(at)])[str(at)].to_numpy(), {})
            for at, layer in enumerate(about["layers"])
        )
        weights = folder / "weights.npy"
        return cls(about["pool"], mask, layers, np.load(weights) if weights.exists() else None)


def everything(
    pool_digest: str,
    is_valid: Bool[np.ndarray, " n"],
    reasons: tuple[UInt8[np.ndarray, " n"], list[str]] | str = "invalid",
) -> KeepList:
    """The keep list of all valid rows of a pool."""
    every = KeepList(pool_digest, np.ones(len(is_valid), bool))
    return every.within("pool", is_valid, reasons, "valid")


def _column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if values.dtype.kind == "f":
        return pa.array(values, kind, mask=np.isnan(values))
    return pa.array(values.astype(kind.to_pandas_dtype()), kind, mask=values < 0)
