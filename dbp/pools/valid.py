"""The rows of a pool that can be kept at all."""

from dataclasses import dataclass
from typing import Any, ClassVar

from dbp.data.keep_list import KeepList, everything
from dbp.data.pool import Pool
from dbp.narrowing import Narrowing


@dataclass(frozen=True)
class ValidRows(Narrowing):
    """The rows with a caption and an image of sound header; the others go with their reason."""

    name: ClassVar[str] = "valid"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("pool",)

    def decide(self, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        return everything(pool.digest, pool.is_valid, pool.index.codes("reason")), {}
