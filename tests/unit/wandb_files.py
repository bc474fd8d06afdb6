"""Read what wandb writes without a network: a log of blocks of 32 KiB, each record a protobuf message.

The format is LevelDB's log with a header of seven bytes. Checksums are not looked at.
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32_768, 7


@dataclass
class Recorded:
    """What one offline folder holds.

    Args:
        run_id: Of the record.
        config: As set at the start or updated later.
        rows: Logged values by name, in order, `_step` among them.
        artifacts: Name and type of each, with its metadata and the names of its files.
        is_finished: Whether the run was ended, and with which status.
    """

    run_id: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def read_offline(folder: Path) -> list[Recorded]:
    """The records below a folder, the oldest first."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime_ns)
    return [read_file(file) for file in files]


def read_file(file: Path) -> Recorded:
    from wandb.proto import wandb_internal_pb2 as messages

    found = Recorded()
    for content in messages_of(file.read_bytes()):
        record: Any = messages.Record()  # type: ignore[attr-defined]
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run_id = record.run.run_id
            found.job_type = record.run.job_type
            found.config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
        elif kind == "config":
            found.config |= {
                (i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.config.update
            }
        elif kind == "history":
            row = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            row["_step"] = record.history.step.num
            found.rows.append(row)
        elif kind == "artifact":
            found.artifacts.append(_artifact(record.artifact))
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found.artifacts.append(_artifact(record.request.log_artifact.artifact))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _artifact(said: Any) -> dict[str, Any]:
    return {
        "name": said.name,
        "type": said.type,
        "metadata": json.loads(said.metadata or "{}"),
        "files": sorted(entry.path for entry in said.manifest.contents),
    }


def messages_of(content: bytes) -> list[bytes]:
    assert content[:4] == b":W&B"
    at, found, parts = HEADER, [], []
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # the end of a block is left empty
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        if kind == 0:
            break
        parts.append(content[at + HEADER : at + HEADER + length])
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last of several
            found.append(b"".join(parts))
            parts = []
    return found
