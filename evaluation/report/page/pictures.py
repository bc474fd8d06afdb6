"""Thumbnails of a bounded number of pictures, as cells of sheets that a page carries within itself."""

import base64
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dbp.data.images import Undecodable
from dbp.data.pool import Pool
from dbp.errors import PoolError

CELL = 72  # pixels a side: shown at 72, so that a sheet of 256 is 1,152 pixels a side
COLUMNS = 16
ON_A_SHEET = COLUMNS * COLUMNS
LONGEST = 300  # letters of a caption that are shown


@dataclass
class Pictures:
    """Thumbnails in the order that they were asked for, each row of a pool once."""

    most: int  # pictures in all
    most_bytes: int = 9_000_000  # of all sheets, before base64 makes them a third larger
    quality: int = 72  # of WebP, 0 to 100
    problems: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    sheets: list[bytes] = field(default_factory=list)
    _places: dict[tuple[str, int], int | None] = field(default_factory=dict)
    _open: list[Any] = field(default_factory=list)  # cells of the sheet that is not full
    _count: int = 0

    def add(self, pool: Pool, row: int) -> int | None:
        """The number of a row's cell; none where there is no picture, or no room for it."""
        name = (pool.digest, row)
        if name not in self._places:
            self._places[name] = self._made(pool, row)
        return self._places[name]

    @property
    def bytes(self) -> int:
        """Of the sheets that are closed."""
        return sum(map(len, self.sheets))

    @property
    def num_pictures(self) -> int:
        """Cells in use."""
        return self._count

    def finish(self) -> list[str]:
        """All sheets as base64, the last one closed."""
        self._close()
        return [base64.b64encode(sheet).decode() for sheet in self.sheets]

    def _made(self, pool: Pool, row: int) -> int | None:
        if self._count >= self.most or self.bytes >= self.most_bytes:
            self.left_out += 1
            return None
        try:
            image = pool.image(row)
        except (PoolError, Undecodable, OSError) as error:
            kind = "undecodable" if isinstance(error, Undecodable) else "not where the index says"
            self.problems[f"{kind}: {str(error).partition(chr(10))[0]}"] += 1
            return None
        image.thumbnail((CELL, CELL))
        self._open.append(image)
        self._count += 1
        if len(self._open) == ON_A_SHEET:
            self._close()
        return self._count - 1

    def _close(self) -> None:
        from PIL import Image

        if not self._open:
            return
        rows = -(-len(self._open) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * CELL, rows * CELL), "white")
        for at, image in enumerate(self._open):
            left, top = at % COLUMNS * CELL, at // COLUMNS * CELL
            grown = _grown(image)
            inset = (CELL - grown.width) // 2, (CELL - grown.height) // 2
            sheet.paste(grown, (left + inset[0], top + inset[1]))
        file = io.BytesIO()
        sheet.save(file, "WEBP", quality=self.quality, method=4)
        self.sheets.append(file.getvalue())
        self._open.clear()


def _grown(image: Any) -> Any:
    """A picture that is much smaller than its cell, a whole number of times larger."""
    from PIL import Image

    times = CELL // max(image.size)
    if times < 2:
        return image
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def caption_of(pool: Pool, row: int) -> str | None:
    """A row's caption, cut to what a page has room for; none where it cannot be read."""
    try:
        text = pool.caption(row)
    except (PoolError, OSError):
        return None
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def sample(pool: Pool, pictures: Pictures, row: int) -> dict[str, Any]:
    """What a page shows of a row: its uid, its caption, the number of its picture."""
    return {
        "row": int(row),
        "uid": pool.uids(np.array([row]))[0],
        "caption": caption_of(pool, row),
        "picture": pictures.add(pool, int(row)),
    }
