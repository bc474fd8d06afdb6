"""Figures that stand: they are drawn again only if what they show, or the code that draws, has changed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from dbp.disk import replacing

MARK = ".drawn.json"
_CODE = ("plots.py", "page/figures.py")


def draw_once(folder: Path, shows: str, draw: Callable[[], object]) -> bool:
    """Draw into a folder, unless the figures of the same content are all still there.

    Args:
        folder: Of the figures; a hidden file in it says what they were made from.
        shows: All that the figures show, as text.
        draw: Writes them.

    Returns:
        Whether they were drawn.
    """
    here = Path(__file__).parent
    code = "".join((here / name).read_text(encoding="utf-8") for name in _CODE)
    digest = hashlib.sha256(f"{shows}\0{code}".encode("utf-8", "replace")).hexdigest()
    mark = folder / MARK
    try:
        before = json.loads(mark.read_text())
        if before["digest"] == digest and all((folder / name).exists() for name in before["files"]):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not ours: drawn below
    mark.unlink(missing_ok=True)
    draw()
    files = sorted(f.name for f in folder.iterdir() if f.suffix in (".png", ".svg"))
    with replacing(mark) as file:
        file.write(json.dumps({"digest": digest, "files": files}).encode())
    return True
