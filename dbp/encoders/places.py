"""Where weights lie, by what the user names: a file, a folder of open_clip, or a training run of the store.

    FILE              a state dict
    FOLDER            open_clip_config.json beside weights, as open_clip and the hub have them; a folder of the
                      hub's cache (models--OWNER--NAME), too
    local-dir:FOLDER  the same, as open_clip writes it
    run:KEY           the weights and the config of a run of `dbp train`; a unique beginning of its key is enough

What a name leads to is named by its content in keys, never by its path.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.engine.store import MANIFEST
from dbp.errors import ConfigError, MissingError

RUN, LOCAL_DIR = "run:", "local-dir:"
CONFIG_FILE = "open_clip_config.json"
# Ours, then open_clip's order in a folder.
FILES = (
    "weights.pt", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin",
    "pytorch_model.pth", "model.pth",
)  # fmt: skip
ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
# What the encoder's own training says itself; the rest of a command is about the pool.
NOT_OF_THE_POOL = re.compile(
    r"\+?(encoder|select|dedup|cluster|score|scores|filter|budget|until|upstream|dry_run|caption|captioner|model|train"
    r"|sweep|suite|root|launcher)\b"
)


@dataclass(frozen=True)
class Weights:
    """A file of weights, and the JSON of its model where one belongs to it."""

    file: Path
    config: Path | None = None


def find_weights(named: str, runs: Path | str, setting: str) -> Weights:
    """The weights that a setting names.

    Args:
        named: As above.
        runs: Where the store keeps runs (paths.runs).
        setting: Its key, for messages.

    Raises:
        ConfigError: There are none by that name; a file that is not there is left to its reader.
    """
    if named.startswith(RUN):
        folder = find_run(named, runs, setting)
        return Weights(folder / FILES[0], folder / CONFIG_FILE)
    path = Path(named.removeprefix(LOCAL_DIR)).expanduser()
    if path.is_dir():
        return _in_folder(path, f"{setting}={named!r}")
    if named.startswith(LOCAL_DIR):
        raise ConfigError(f"{setting}={named!r}: there is no such folder. Give the one that open_clip wrote.")
    return Weights(path)


def find_run(named: str, runs: Path | str, setting: str) -> Path:
    """The folder of the training run that `run:KEY` names.

    Raises:
        ConfigError: No finished run of these, or more than one, has a key that begins so.
    """
    key, home = named.removeprefix(RUN), Path(runs).absolute() / "train"
    there = sorted(folder for folder in home.glob("*") if (folder / MANIFEST).is_file())
    found = [folder for folder in there if key and folder.name.startswith(key)]
    if len(found) == 1:
        return found[0]
    keys = ", ".join(folder.name[:12] for folder in (found or there)[:5])
    if found:
        raise ConfigError(f"{setting}={named}: {len(found)} runs have such a key: {keys}. Give more of it.")
    raise ConfigError(
        f"{setting}={named}: no finished run in {home} has such a key; there are: {keys or 'none'}. Give the "
        "key that dbp train printed (dbp ls stage=train lists them), or its folder of runs with paths.runs=FOLDER."
    )


def _in_folder(folder: Path, said: str) -> Weights:
    """The weights of a folder: one of open_clip's names, or the only file of weights."""
    if (main := folder / "refs" / "main").is_file():  # of the hub's cache
        folder = folder / "snapshots" / main.read_text().strip()
    config = folder / CONFIG_FILE
    own = config if config.is_file() else None
    if named := next((folder / name for name in FILES if (folder / name).is_file()), None):
        return Weights(named, own)
    others = sorted(path for path in folder.glob("[!.]*") if path.suffix in ENDINGS)
    if len(others) == 1:
        return Weights(others[0], own)
    what = ", ".join(path.name for path in others[:5]) or "no file of weights"
    raise ConfigError(
        f"{said}: {folder} holds {what}; one of {', '.join(FILES[:4])} is looked for, beside {CONFIG_FILE}. "
        "Name the file of weights itself."
    )


def settled(node: Any, runs: Path | str, path: str) -> Any:
    """A component's settings with files in place of what each `checkpoint` in them names.

    Raises:
        ConfigError: No weights have that name, or a run's are given to a network that is not a CLIP.
    """
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if isinstance(plain, list):
        return [settled(value, runs, f"{path}[{at}]") for at, value in enumerate(plain)]
    if not isinstance(plain, dict):
        return plain
    plain = {name: settled(value, runs, f"{path}.{name}") for name, value in plain.items()}
    named = plain.get("checkpoint")
    if not isinstance(named, str):
        return plain
    found = find_weights(named, runs, f"{path}.checkpoint")
    if "config" not in plain and named.startswith(RUN):
        raise ConfigError(
            f"{path}.checkpoint={named}: the weights of a run are those of a CLIP, and this encoder takes others. "
            f"Say {path}={named}."
        )
    plain["checkpoint"] = str(found.file)
    if found.config is not None and "config" in plain and plain["config"] is None and plain.get("model") is None:
        plain["config"] = str(found.config)
    return plain


def none_named() -> MissingError:
    """What to type where an encoder has neither weights nor a name."""
    return MissingError(
        "weights of an encoder (encoder=own, or local_clip without a checkpoint): it names none",
        f"Train a small CLIP on a random half of the pool, then use its run:\n  {training_command()}\n"
        "  (it prints a key)\n  then the same command as now with encoder=run:KEY\n"
        "A sweep does both by itself (sweep.encoder; dbp init writes it). Other weights: "
        "encoder.USE.checkpoint=FILE, for USE in dedup, cluster, score.",
    )


def training_command(arguments: Sequence[str] | None = None) -> str:
    """The command that trains an encoder on the pool that a command line names; by default this process's."""
    given = list(sys.argv if arguments is None else arguments)
    words: list[str] = []
    if len(given) > 1 and Path(given[0]).name in ("dbp", "__main__.py"):
        words = [word for word in given[2:] if not NOT_OF_THE_POOL.match(word)]
    has_own = any(word.startswith("experiment=") for word in words)
    settings = ["dedup=none", "select=uniform", "budget.keep_fraction=0.5"]
    settings += [] if has_own else ["model=small", "train=small"]
    pool = shlex.join(words) if words else "pool.shards=…"
    return f"dbp train {pool} {' '.join(settings)}"
