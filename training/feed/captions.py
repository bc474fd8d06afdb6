"""Original and refined captions mixed, by a keyed rule that is the same in all arms."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int64, UInt64

from dbp.captioning.refine import Refine
from dbp.config import require
from dbp.data.captions import Captions, import_captions
from dbp.data.pool import Pool
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError
from training.feed.order import CAPTION, mix, stream
from training.resume.ranks import Ranks


@dataclass(frozen=True)
class CaptionMix:
    """Which caption a pair is trained with. Rows without a refined caption keep their original.

    Args:
        rule: `original`; `replace`: the refined one; `concatenate`: original, separator, refined; `alternate`: the
            refined one with probability `ratio`, drawn anew for each sample, epoch and copy.
        ratio: For `alternate`, from 0 to 1; null otherwise.
        separator: For `concatenate`; null otherwise. What is behind the model's context length is
            cut, so the original goes first.
        column: Of the refined captions in the file.
        file: Parquet of `uid` and captions; its content enters the key.
        refine: Instead of a file: how the captioner writes them; what it made enters the key.
    """

    rule: Literal["original", "replace", "concatenate", "alternate"]
    ratio: float | None
    separator: str | None
    column: str
    file: str | None = runtime(None)
    refine: Refine | None = runtime(None)

    def __post_init__(self) -> None:
        ratio, draws, joins = self.ratio, self.rule == "alternate", self.rule == "concatenate"
        is_right = ratio is not None and 0 <= ratio <= 1 if draws else ratio is None
        null = f"null for rule={self.rule}"
        require(is_right, "ratio", ratio, "from 0 to 1 for rule=alternate" if draws else null)
        must = "text for rule=concatenate, such as ' '" if joins else null
        require((self.separator is not None) == joins, "separator", self.separator, must)
        if self.rule != "original":
            must = f"a Parquet file of uids and captions for rule={self.rule}"
            if self.refine is not None:
                must = "null where the captioner writes the captions (caption=refined)"
            require((self.file is None) == (self.refine is not None), "file", self.file, must)

    def identity(self) -> dict[str, Any]:
        if self.rule == "original" or self.file is None:
            return {}
        require(Path(self.file).is_file(), "caption.file", self.file, "a Parquet file that is there")
        return {"file": file_digest(self.file, "caption.file")}

    def unread(self) -> set[str]:
        """Fields that do not matter beside the others."""
        return {"column"} if self.rule == "original" or self.refine is not None else set()

    @property
    def is_fixed(self) -> bool:
        """Whether a row has one caption in all epochs, so that its tokens can be kept."""
        return self.rule != "alternate" or self.ratio in (0, 1)

    def open(
        self, pool: Pool, folder: Path, seed: int, ranks: Ranks, made: Captions | None = None
    ) -> "MixedCaptions":
        """Import the refined captions once, on the first rank.

        Args:
            folder: All ranks see it; it stays until the run is complete.
            made: What the captioner wrote, where it did.

        Raises:
            ConfigError: The captioner was to write captions, and none came.
        """
        if self.rule == "original":
            return MixedCaptions(pool, None, self, seed)
        if self.file is None:
            if made is None:
                raise ConfigError(
                    f"caption.rule={self.rule} takes captions of a captioner, and this run has none: "
                    "caption.refine is read by dbp train and dbp sweep. For captions of a file, set caption.file."
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

    def captions(
        self, rows: Int[np.ndarray, " b"], epochs: Int64[np.ndarray, " b"], keys: UInt64[np.ndarray, " b"]
    ) -> list[str]:
        """The captions of pairs.

        Args:
            rows: Of the pool, from which the pictures come.
            epochs: In which each pair stands.
            keys: What names each pair to the random streams, its copy included.
        """
        if self.refined is None:
            return self.pool.captions(rows, verify=False)
        found, rule = self.refined.of(rows), self.rule.rule
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
