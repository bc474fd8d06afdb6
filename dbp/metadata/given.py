"""Entries that a person brings: MetaCLIP's `metadata.json`, its table of counts, or one entry a line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.engine.stage import runtime
from dbp.errors import ConfigError, WorldError
from dbp.formats.exchange import digest_of
from dbp.metadata.base import EntrySource


@dataclass(frozen=True)
class Given(EntrySource):
    """The entries of a file.

    Args:
        file: `.json` with a list of texts (`metadata.json`) or with entry -> count (`entry_counts_400m.json`,
            whose entries alone are used); any other file has one entry a line.
    """

    file: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        return {"list": digest_of(self.file, "select.metadata.file")} if self.file else {}

    def texts(self, **inputs: Any) -> Iterable[str]:
        if not self.file:
            raise ConfigError(
                "select.metadata.file is not set. Name MetaCLIP's metadata.json or a file of one entry a "
                "line; or take entries from the pool's own captions: select=metaclip_glyphs."
            )
        if self.file.endswith(".json"):
            return read_json(self.file)
        return read_lines(self.file)


def read_json(path: str) -> list[str]:
    """The texts of a JSON list, or the names of a JSON object, in their order.

    Raises:
        WorldError: It is something else; it names the place.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise WorldError(f"{path} cannot be read as JSON: {error}. It must hold a list of texts.") from error
    if isinstance(found, dict):
        return list(found)
    if not isinstance(found, list):
        raise WorldError(f"{path} holds {type(found).__name__}, no list of texts.")
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise WorldError(f"{path}: item {number:,} is {text!r}, no text. Put it in quotes.")
    return found


def read_lines(path: str) -> list[str]:
    """The lines of a file.

    Raises:
        WorldError: It is no text in UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"{path} cannot be read as text in UTF-8: {error}.") from error
