"""A linear combination of other scores."""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dbp.config import require
from dbp.data.scores import Scores
from dbp.engine.stage import Stage, runtime
from dbp.engine.work import Work
from dbp.errors import ConfigError

MAIN = "score"  # what weights call the score of `score=`


@dataclass(frozen=True)
class Mix(Stage):
    """The sum of weight times value over named scores, plus a bias; missing where any of them is.

    Values are taken as they are, whatever their direction: a score of which less is better has a negative weight.
    Sums are float64 in the order of the names.

    Args:
        weights: From a name of `scores` to its weight; `score` is the one of `score=`. Null where a file has them.
        bias: Added to each sum.
        label: What readers call it.
        higher_is_better: Whether the best rows have the highest sums.
        file: JSON of names and weights, in place of `weights`; its `bias` is the bias.
    """

    name: ClassVar[str] = "score"
    makes: ClassVar[type] = Scores

    weights: dict[str, Any] | None
    bias: float = 0.0
    label: str = "mix"
    higher_is_better: bool = True
    file: str | None = runtime(None)

    def __post_init__(self) -> None:
        require(not (self.weights and self.file), "file", self.file, "null where weights are given")
        require(not (self.bias and self.file), "bias", self.bias, "0 where a file is given, which holds the bias")
        weights, bias = self._held()
        for name, number in {**{f"weights.{name}": own for name, own in weights.items()}, "bias": bias}.items():
            if not _is_number(number):
                where = f" in file={self.file!r}" if self.file else ""
                raise ConfigError(f"{name}={reprlib.repr(number)}{where}: it must be a finite number")
        require(len(weights) > 0 or self.file is None, "file", self.file, "JSON of at least one weight")

    def combined(self) -> dict[str, Any]:
        """The weights, of the settings or of the file, by name."""
        return self._held()[0]

    def _held(self) -> tuple[dict[str, Any], Any]:
        """The weights by name, and the bias.

        Raises:
            ConfigError: The file is missing or not a JSON object.
        """
        if not self.file:
            return dict(sorted((self.weights or {}).items())), self.bias
        try:
            held = json.loads(Path(self.file).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"file={self.file!r} cannot be read as JSON of names and weights: {error}") from error
        require(isinstance(held, Mapping), "file", self.file, "a JSON object of names and weights")
        return {name: held[name] for name in sorted(held) if name != "bias"}, held.get("bias", 0)

    def identity(self) -> dict[str, Any]:
        if not self.file:
            return {}
        weights, bias = self._held()
        return {"weights": weights, "bias": float(bias)}

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The scores that the weights name."""
        names = self.combined()
        if not names:
            raise ConfigError(
                "a mix has no weights. Give them by name, as scores.mix.weights={score: 1, l14: 0.5}, or a file."
            )
        return tuple("scores" if name == MAIN else f"scores.{name}" for name in names)

    def run(self, work: Work, **scores: Scores) -> dict[str, Any]:
        parts = [scores[need] for need in self.needs]
        weights, bias = self._held()
        total = np.full(len(parts[0].values), float(bias))
        with np.errstate(over="ignore", invalid="ignore"):
            for part, weight in zip(parts, weights.values(), strict=True):
                total += float(weight) * part.values.astype(np.float64)
            values = total.astype(np.float32)
        there = reduce(and_, (~np.isnan(part.values) for part in parts))
        if len(bad := np.flatnonzero(there & ~np.isfinite(values))):
            raise ConfigError(
                f"the mix {self.label!r} is above what fp32 holds in {len(bad):,} rows, such as row {bad[0]:,}. "
                f"Lower its weights {weights} by a common factor."
            )
        missing = reduce(or_, (part.missing for part in parts))
        Scores(values, missing, self.label, self.higher_is_better).save(work.folder)
        without = int(np.count_nonzero(np.isnan(values)))
        return {"rows": len(values) - without, "without score": without}


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number above what float64 holds
        return False
