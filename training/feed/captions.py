"""Original and other captions mixed, by a keyed rule that is the same in all arms."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int64, UInt64

from dbp.captioning.refine import Refine
from dbp.captioning.texts import SEVERAL, WITHOUT
from dbp.config import require
from dbp.data.captions import Captions, import_captions
from dbp.data.pool import Pool
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError
from training.feed.order import CAPTION, PICK, mix, stream
from training.resume.ranks import Ranks

BLOCK = 1 << 20  # rows that are counted at once


@dataclass(frozen=True)
class CaptionMix:
    """Which caption a pair is trained with. Rows without another caption keep their original.

    Args:
        rule: `original`; `replace`: the other one; `concatenate`: original, separator, other; `alternate`: the
            other one with probability `ratio`, drawn anew for each sample, epoch and copy.
        ratio: For `alternate`, from 0 to 1; null otherwise.
        separator: For `concatenate`; null otherwise. What is behind the model's context length is
            cut, so the original goes first.
        column: Where the other captions stand: in a file, its column; without a file, a column of the pool
            (json:FIELD, parquet:FIELD, pool:NAME, file:PATH:COLUMN), or its name under `columns`.
        file: Parquet of `uid` and captions; its content enters the key.
        refine: Instead of both: how the captioner writes them; what it made enters the key.
        pick: Of several other captions of a row: `first`; `random`, drawn for each sample, epoch and copy;
            `in_turn`: each as often as the others in as many epochs; `best`: the nearest to the image by
            encoder.score.
    """

    rule: Literal["original", "replace", "concatenate", "alternate"]
    ratio: float | None
    separator: str | None
    column: str
    file: str | None = runtime(None)
    refine: Refine | None = runtime(None)
    pick: Literal["first", "random", "in_turn", "best"] = "first"

    def __post_init__(self) -> None:
        ratio, draws, joins = self.ratio, self.rule == "alternate", self.rule == "concatenate"
        is_right = ratio is not None and 0 <= ratio <= 1 if draws else ratio is None
        null = f"null for rule={self.rule}"
        require(is_right, "ratio", ratio, "from 0 to 1 for rule=alternate" if draws else null)
        must = "text for rule=concatenate, such as ' '" if joins else null
        require((self.separator is not None) == joins, "separator", self.separator, must)
        if self.rule == "original":
            return
        if self.refine is not None:
            must = "null where the captioner writes the captions (caption=refined)"
            require(self.file is None, "file", self.file, must)
            must = "first where the captioner writes the captions, one of a row"
            require(self.pick == "first", "pick", self.pick, must)
        must = "first, random or in_turn beside caption.file; for best name caption.column=file:PATH:COLUMN"
        require(self.file is None or self.pick != "best", "pick", self.pick, must)

    @property
    def is_of_column(self) -> bool:
        """Whether a stage reads the captions from a column of the pool."""
        return self.rule != "original" and self.file is None and self.refine is None

    def identity(self) -> dict[str, Any]:
        if self.rule == "original" or self.file is None:
            return {}
        require(Path(self.file).is_file(), "caption.file", self.file, "a Parquet file that is there")
        return {"file": file_digest(self.file, "caption.file")}

    def unread(self) -> set[str]:
        """Fields that do not matter beside the others."""
        if self.rule == "original":
            return {"column", "pick"}
        read = set() if self.file is not None else {"column"}  # what a stage made enters the key as an input
        return read | {"pick"} if self.pick == "best" else read

    @property
    def is_fixed(self) -> bool:
        """Whether a row has one caption in all epochs, so that its tokens can be kept."""
        return not self.draws

    @property
    def draws(self) -> str:
        """The setting by which a row's caption changes from epoch to epoch; empty where none does."""
        if self.rule == "original" or (self.rule == "alternate" and self.ratio == 0):
            return ""
        if self.rule == "alternate" and self.ratio != 1:
            return f"caption.rule={self.rule}"
        return f"caption.pick={self.pick}" if self.pick in ("random", "in_turn") else ""

    def open(
        self, pool: Pool, folder: Path, seed: int, ranks: Ranks, made: Captions | None = None
    ) -> "MixedCaptions":
        """Import the captions of a file once, on the first rank.

        Args:
            folder: All ranks see it; it stays until the run is complete.
            made: What the captioner wrote, or a stage read from a column.

        Raises:
            ConfigError: A stage was to make captions, and none came.
        """
        if self.rule == "original":
            return MixedCaptions(pool, None, self, seed)
        if self.file is None:
            if made is None:
                source = f"column {self.column}" if self.is_of_column else "captioner"
                setting = "column" if self.is_of_column else "refine"
                raise ConfigError(
                    f"caption.rule={self.rule} takes captions of a {source}, and this run has none: "
                    f"caption.{setting} is read by dbp train and dbp sweep. For captions of a file, set "
                    "caption.file."
                )
            return MixedCaptions(pool, made, self, seed)
        # Named by content: what an earlier try imported from another file is not taken for it.
        name = f"captions-{file_digest(self.file, 'caption.file')[:12]}-{self.column}"
        home = folder / name.replace("/", "_")
        if ranks.is_first and not (home / "captions.json").exists():
            home.mkdir(parents=True, exist_ok=True)
            import_captions(home, pool, self.file, self.column)
        ranks.gather(None)  # the others wait until it is there
        return MixedCaptions(pool, Captions.load(home), self, seed)


@dataclass(frozen=True, eq=False)
class MixedCaptions:
    """The captions of pairs as a run meets them: a pure function of row, epoch and key.

    Raises:
        ConfigError: The refined captions are of another pool.
    """

    pool: Pool
    refined: Captions | None
    rule: CaptionMix
    seed: int

    def __post_init__(self) -> None:
        if self.refined is not None and self.refined.pool_digest != self.pool.digest:
            raise ConfigError(
                f"the refined captions in {self.refined.folder} were made for the pool with digest "
                f"{self.refined.pool_digest[:12]}, and this pool has {self.pool.digest[:12]}; their rows are "
                "not the same samples. Import them for this pool, or give its own."
            )

    def about(self, rows: Int[np.ndarray, " m"]) -> dict[str, int]:
        """Of rows that are trained on, how many have the original alone, and how many several others."""
        if self.refined is None:
            return {}
        alone = several = 0
        for start in range(0, len(rows), BLOCK):
            counts = self.refined.places(rows[start : start + BLOCK])[1]
            alone += int(np.count_nonzero(counts == 0))
            several += int(np.count_nonzero(counts > 1))
        return {WITHOUT: alone, **({SEVERAL: several} if several else {})}

    def captions(
        self, rows: Int[np.ndarray, " b"], epochs: Int64[np.ndarray, " b"], keys: UInt64[np.ndarray, " b"]
    ) -> list[str]:
        """The captions of pairs.

        Args:
            rows: Of the pool, from which the images come.
            epochs: In which each pair stands.
            keys: What names each pair to the random streams, its copy included.
        """
        if self.refined is None:
            return self.pool.captions(rows, verify=False)
        found, rule = self.refined.of(rows, self._which(rows, epochs, keys)), self.rule.rule
        if rule == "alternate":
            words = mix(keys ^ stream(self.seed, epochs, CAPTION))
            drawn = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
            assert self.rule.ratio is not None
            is_taken = (drawn < self.rule.ratio).tolist()
            found = [text if taken else None for text, taken in zip(found, is_taken, strict=True)]
        at = np.flatnonzero([text is None or rule == "concatenate" for text in found])
        for place, original in zip(at.tolist(), self.pool.captions(rows[at], verify=False), strict=True):
            refined = found[place]
            found[place] = original if refined is None else f"{original}{self.rule.separator}{refined}"
        return [text or "" for text in found]

    def _which(
        self, rows: Int[np.ndarray, " b"], epochs: Int64[np.ndarray, " b"], keys: UInt64[np.ndarray, " b"]
    ) -> Int64[np.ndarray, " b"] | None:
        """Which of its other captions each pair has, from 0; none for the first."""
        if self.refined is None or self.rule.pick not in ("random", "in_turn"):
            return None
        counts = np.maximum(self.refined.places(rows)[1], 1).astype(np.uint64)
        if self.rule.pick == "random":
            return (mix(keys ^ stream(self.seed, epochs, PICK)) % counts).astype(np.int64)
        shift = mix(keys ^ stream(self.seed, np.zeros_like(epochs), PICK)) % counts
        return ((shift + epochs.astype(np.uint64) % counts) % counts).astype(np.int64)
