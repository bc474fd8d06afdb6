"""A trained model as a folder that plain open_clip loads.

weights.pt                   {"epoch", "name", "state_dict"}: tensors and plain values only
open_clip_pytorch_model.bin  the same file, under a name that open_clip's local-dir: looks for
open_clip_config.json        {"model_cfg", "preprocess_cfg"}
metrics.jsonl                the run's record; metrics.csv and wandb mirror it
manifest.json                parameters, inputs, counts
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.engine.paths import file_digest
from dbp.errors import StoreError

WEIGHTS = "weights.pt"
CONFIG = "open_clip_config.json"
LOCAL_DIR_WEIGHTS = "open_clip_pytorch_model.bin"


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what made them.

    Laws: `open_clip.create_model("local-dir:FOLDER")` and, where open_clip knows the model,
    `open_clip.create_model(name, pretrained=weights)` give the trained model.
    """

    folder: Path
    name: str
    samples_seen: int  # pairs that went through the model, repeats counted
    digest: str  # SHA-256 of `weights.pt`
    key: str
    subset: dict[str, str]  # keys of the pool and of the keep list
    settings: dict[str, Any]  # parameters of the run, as they entered its key

    @property
    def weights(self) -> Path:
        """The file to give open_clip, or `checkpoint=` of any verb."""
        return self.folder / WEIGHTS

    @property
    def config(self) -> dict[str, Any]:
        """The model's config, as open_clip's JSON has it."""
        return json.loads((self.folder / CONFIG).read_text())["model_cfg"]

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Open a finished run; the weights stay on disk.

        Raises:
            StoreError: The folder holds no finished run.
        """
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            counts = manifest["counts"]
            return cls(
                folder,
                counts["model"],
                counts["samples_seen"],
                manifest["digest"],
                manifest["key"],
                {name: up["key"] for name, up in manifest["inputs"].items()},
                manifest["parameters"],
            )
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise StoreError(
                f"{folder} is no finished run of ours: {error}. Weights from elsewhere are given "
                "as a file: checkpoint=FILE model.config=FILE."
            ) from error


def save_checkpoint(folder: Path, model: Any, name: str, config: dict[str, Any], epoch: int) -> str:
    """Write a model as plain open_clip reads it.

    Args:
        model: open_clip's model, not wrapped in anything: its parameters' names are stored.
        epoch: Whole passes over the kept set; open_clip's own files have the field.

    Returns:
        SHA-256 of the weights file.
    """
    import torch

    plain = torch.contiguous_format  # whatever the run kept in memory
    tensors = {key: value.detach().cpu().clone(memory_format=plain) for key, value in model.state_dict().items()}
    path = folder / WEIGHTS
    torch.save({"epoch": epoch, "name": name, "state_dict": tensors}, path)
    try:
        os.link(path, folder / LOCAL_DIR_WEIGHTS)
    except OSError:  # a file system without links
        shutil.copy2(path, folder / LOCAL_DIR_WEIGHTS)
    described = {"model_cfg": config, "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n")
    return file_digest(path, "checkpoint")
