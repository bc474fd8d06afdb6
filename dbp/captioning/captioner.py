"""A trained captioner: the frozen image network, the codebook, and the decoder with its words.

captioner.pt       the trained weights: tensors and plain values only
captioner.json     sizes, vocabulary, the image network and what its weights were
encoder.pt, …      the image network's own file and config, where it was trained here
metrics.jsonl      the record of the training
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int

from dbp.captioning.network import Network
from dbp.captioning.vocabulary import Vocabulary
from dbp.device import pick_device
from dbp.encoders.base import Encoder, Tower
from dbp.engine.disk import link_or_copy
from dbp.engine.paths import file_digest
from dbp.engine.stage import Stage, describe, plain, rebuild, runtime
from dbp.engine.work import Work
from dbp.errors import ConfigError, StoreError, WorldError

WEIGHTS, ABOUT = "captioner.pt", "captioner.json"
ENCODER_CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class Captioner:
    """A trained captioner as a folder.

    Laws: equal weights give equal codes and, chosen greedily, equal captions; the folder can be moved.
    """

    folder: Path

    @classmethod
    def load(cls, folder: Path) -> "Captioner":
        """Open a folder; the weights stay on disk.

        Raises:
            StoreError: It holds no captioner.
        """
        made = cls(folder)
        try:
            if (folder / WEIGHTS).stat().st_size == 0:
                raise ValueError(f"{WEIGHTS} is empty")
            missing = {"network", "layer", "encoder", "vocabulary"} - set(made.about)
            if missing:
                raise ValueError(f"{ABOUT} says nothing of {', '.join(sorted(missing))}")
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{folder} holds no captioner: {error}. Give the folder that a run with until=captioner names."
            ) from error
        return made

    @cached_property
    def about(self) -> dict[str, Any]:
        return json.loads((self.folder / ABOUT).read_text())

    @property
    def network(self) -> Network:
        return Network(**self.about["network"])

    def encoder(self, device: str = "auto") -> Encoder:
        """The frozen image network, from this folder's own file where it has one.

        Raises:
            WorldError: Its weights are not those that the captioner was trained on.
        """
        encoder: Any = replace(rebuild(self.about["encoder"]), device=device)
        own = sorted(self.folder.glob("encoder.*"))
        if own:
            config: dict[str, Any] = {"config": None} if hasattr(encoder, "config") else {}
            if config and (self.folder / ENCODER_CONFIG).exists():
                config["config"] = str(self.folder / ENCODER_CONFIG)
            encoder = replace(encoder, checkpoint=str(own[0]), **config)
            digest = file_digest(own[0], "captioner encoder")
            if digest != self.about["encoder_weights"]:
                raise WorldError(
                    f"{own[0]} is not the file that this captioner was trained with: its content has changed. "
                    "Train the captioner again."
                )
        return encoder

    def open(self, device: str = "auto") -> "OpenCaptioner":
        """Load the networks, ready to work on a device."""
        import torch

        from dbp.captioning.model import Captioning

        device, about = pick_device(device), self.about
        tower = self.encoder(device).load()
        words = Vocabulary(tuple(about["vocabulary"]), self.network.length)
        made = Captioning(self.network, about["token_width"], about["num_tokens"], words.size)
        try:
            made.load_state_dict(torch.load(self.folder / WEIGHTS, map_location="cpu", weights_only=True))
        except (RuntimeError, OSError, EOFError) as error:
            raise StoreError(
                f"{self.folder / WEIGHTS} cannot be read: {str(error).splitlines()[0]}. Train it again."
            ) from error
        return OpenCaptioner(made.to(device).eval(), tower, about["layer"], words, device)


@dataclass(frozen=True)
class OpenCaptioner:
    """A captioner in memory."""

    network: Any  # dbp.captioning.model.Captioning
    tower: Tower
    layer: int
    vocabulary: Vocabulary
    device: str

    def codes(self, pictures: list[Any]) -> Int[np.ndarray, "b t"]:
        """The codes of preprocessed pictures, place by place."""
        import torch

        assert self.tower.tokens is not None
        tokens = self.tower.tokens(torch.stack(pictures), self.layer)
        return self.network.codes(tokens).cpu().numpy()

    def codebook(self) -> Float32[np.ndarray, "k d"]:
        """The codes' vectors."""
        return self.network.codebook.vectors.float().cpu().numpy()

    def write(self, codes: Int[np.ndarray, "b t"], choose: Any) -> list[str]:
        """A caption for each picture's codes, possibly empty."""
        import torch

        words = self.network.write(torch.from_numpy(codes).to(self.device), choose)
        return [self.vocabulary.text(line) for line in words.tolist()]


def save_captioner(
    folder: Path,
    weights: dict[str, Any],
    network: Network,
    vocabulary: Vocabulary,
    encoder: Encoder,
    layer: int,
    num_tokens: int,
    token_width: int,
) -> str:
    """Write a captioner, with the image network's own file where it has one; return SHA-256 of its weights."""
    import torch

    torch.save({name: tensor.cpu() for name, tensor in weights.items()}, folder / WEIGHTS)
    checkpoint = getattr(encoder, "checkpoint", None)
    # Its own copy is read, so that the folder can be moved; no path stands in it.
    bare: dict[str, Any] = {"checkpoint": None} if checkpoint else {}
    bare |= {"config": None} if checkpoint and hasattr(encoder, "config") else {}
    about = {
        "network": plain(network),
        "layer": layer,
        "num_tokens": num_tokens,
        "token_width": token_width,
        "encoder": describe(replace(encoder, **bare)),
        "encoder_weights": None,
        "vocabulary": list(vocabulary.tokens),
    }
    about["network"].pop("type")
    if checkpoint:
        about["encoder_weights"] = file_digest(checkpoint, "captioner encoder")
        link_or_copy(Path(checkpoint), folder / f"encoder{Path(checkpoint).suffix}")
        config = Path(getattr(encoder, "config", None) or Path(checkpoint).parent / ENCODER_CONFIG)
        if config.is_file():
            link_or_copy(config, folder / ENCODER_CONFIG)
    (folder / ABOUT).write_text(json.dumps(about) + "\n")
    return file_digest(folder / WEIGHTS, "captioner")


@dataclass(frozen=True)
class LocalCaptioner(Stage):
    """A captioner that was trained before, on this pool or another one.

    Args:
        folder: Where it lies; its content, not its path, enters the key.
    """

    name: ClassVar[str] = "captioner"
    needs: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[type] = Captioner
    home: ClassVar[str] = "runs"

    folder: str | None = runtime(None)

    def __post_init__(self) -> None:
        if self.folder is None:
            raise ConfigError(
                "folder=null: give the folder of a trained captioner as captioner.folder=FOLDER, or "
                "train one: captioner=paper."
            )

    def identity(self) -> dict[str, Any]:
        home = Path(str(self.folder))
        digests = {name: file_digest(home / name, "captioner.folder") for name in (WEIGHTS, ABOUT)}
        return {"content": digests}

    def run(self, work: Work) -> dict[str, Any]:
        home = Path(str(self.folder))
        found = Captioner.load(home)
        for file in sorted(home.iterdir()):
            if file.is_file() and (file.name in (WEIGHTS, ABOUT, ENCODER_CONFIG) or file.stem == "encoder"):
                link_or_copy(file, work.folder / file.name)
        return {
            "codes": found.network.num_codes,
            "vocabulary": len(found.about["vocabulary"]),
            "digest": file_digest(home / WEIGHTS, "captioner.folder"),
        }


_OPEN: list[tuple[Path, str, OpenCaptioner]] = []  # the one that this process holds


def opened(captioner: Captioner, device: str) -> OpenCaptioner:
    """The captioner in memory, loaded once in a process."""
    if not _OPEN or _OPEN[0][:2] != (captioner.folder, device):
        _OPEN[:] = [(captioner.folder, device, captioner.open(device))]
    return _OPEN[0][2]


def close() -> None:
    """Forget the captioner in memory."""
    _OPEN.clear()
