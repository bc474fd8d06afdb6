"""Figures that stand: they are drawn again only if what they show, or the code that draws, has changed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from dbp.engine.disk import replacing

MARK = ".drawn.json"


def draw_once(folder: Path, shows: str, code: str, draw: Callable[[], object]) -> bool:
    """Draw into a folder, unless the figures of the same content are all still there.

    Args:
        folder: Of the figures; a hidden file in it says what they were made from.
        shows: All that the figures show, as text.
        code: The file of the module that lays them out; `evaluation/report/plots.py` counts with it.
        draw: Writes them.

    Returns:
        Whether they were drawn.
    """
    files = (Path(code), Path(__file__).parent / "plots.py")
    drawing = "\0".join(file.read_text(encoding="utf-8") for file in files)
    digest = hashlib.sha256(f"{shows}\0{drawing}".encode("utf-8", "replace")).hexdigest()
    mark = folder / MARK
    try:
        before = json.loads(mark.read_text())
        if before["digest"] == digest and all((folder / name).exists() for name in before["files"]):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not ours: drawn below
    mark.unlink(missing_ok=True)
    draw()
    made = sorted(f.name for f in folder.iterdir() if f.suffix in (".png", ".svg"))
    with replacing(mark) as file:
        file.write(json.dumps({"digest": digest, "files": made}).encode())
    return True
