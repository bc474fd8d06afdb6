"""The names of what a pool's json holds, for who misspelt one."""

from collections.abc import Iterator
from typing import Any

from dbp.data.caption_text import read_json
from dbp.formats.tars import samples


def json_fields(shard: str) -> list[str]:
    """The fields of the first json of a shard, nested ones by their paths (`exif.make`)."""
    for sample in samples(shard, lambda _: None):
        member = sample.members.get("json")
        found = None if member is None else read_json(member.content)[0]
        if isinstance(found, dict):
            return list(_paths(found, ""))
    return []


def _paths(whole: dict[str, Any], before: str) -> Iterator[str]:
    for name, value in whole.items():
        yield from _paths(value, f"{before}{name}.") if isinstance(value, dict) else [f"{before}{name}"]
