"""Small stages for tests of the engine, in a module that worker processes can import."""

import os
import signal
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dbp.engine.parts import Parted
from dbp.engine.stage import Stage, runtime
from dbp.engine.work import Part, Work
from dbp.errors import PoolError


@dataclass(frozen=True)
class Text:
    """What the stages make."""

    text: str

    @classmethod
    def load(cls, folder: Path) -> "Text":
        return cls((folder / "text.txt").read_text())


@dataclass(frozen=True)
class Write(Stage):
    """Write a word."""

    name: ClassVar[str] = "write"
    makes: ClassVar[type] = Text

    word: str

    def run(self, work: Work) -> dict[str, Any]:
        (work.folder / "text.txt").write_text(self.word)
        return {}


@dataclass(frozen=True)
class Spell(Parted):
    """Double each letter of a word, one part a letter.

    Args:
        witness: A folder where each making of a part leaves a file: who made it, and what that process saw.
        act: What happens when the part `at` is made, before it is written: `fail`, `refuse` (all others take
            their seconds), `die` or `wait` (at every part).
    """

    name: ClassVar[str] = "spell"
    needs: ClassVar[tuple[str, ...]] = ("word",)
    makes: ClassVar[type] = Text
    unit: ClassVar[str] = "letters"

    witness: str = runtime("")
    act: str = runtime("")
    at: int = runtime(-1)
    seconds: float = runtime(0.0)
    device: str = runtime("cpu")

    def parts(self, word: Text) -> list[Part]:
        return [Part(f"part-{n:02d}", n, float(ord(c))) for n, c in enumerate(word.text)]

    def make(self, part: Part, folder: Path, /, word: Text) -> dict[str, Any]:
        seen = [os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_JOB_ID")]
        if self.witness:
            name = f"{part.name} {os.getpid()} {uuid.uuid4().hex[:6]}"
            (Path(self.witness) / name).write_text(",".join(seen))
        if self.act == "wait":
            time.sleep(self.seconds)
        if self.act == "refuse" and part.number != self.at:
            time.sleep(self.seconds)
        if part.number == self.at:
            time.sleep(0 if self.act == "refuse" else self.seconds)
            if self.act == "fail":
                raise ZeroDivisionError(f"the letter {word.text[part.number]} cannot be doubled")
            if self.act == "refuse":
                raise PoolError(f"shard {part.number} is gone")
            if self.act == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        (folder / "letter.txt").write_text(2 * word.text[part.number])
        return {"rows": 1}

    def finish(self, work: Work, counts: Mapping[str, dict[str, Any]], word: Text) -> dict[str, Any]:
        letters = [(work.shared / name / "letter.txt").read_text() for name in counts]
        (work.folder / "text.txt").write_text("".join(letters))
        return {"rows": sum(found["rows"] for found in counts.values())}
