"""open_clip's two towers, from a pretrained tag or from a local checkpoint with its config."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dbp.device import pick_device
from dbp.encoders.base import Encoder, Tower
from dbp.encoders.places import none_named
from dbp.encoders.state_dicts import read_weights
from dbp.encoders.tokens import tokens_of
from dbp.encoders.weights import openclip_lacks
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, MissingError, WorldError, nearest

# A word of `preprocess_cfg` in a model's JSON -> open_clip's argument for it.
PREPROCESS = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}


@dataclass
class LoadedClip:
    """An open_clip model with what belongs to it."""

    model: Any
    preprocess: Any  # evaluation transform: PIL picture -> tensor
    preprocess_train: Any  # open_clip's training transform
    tokenizer: Any
    name: str
    config: dict[str, Any]  # as open_clip's model JSON: embed_dim, vision_cfg, text_cfg, ...
    digest: str | None  # SHA-256 of the weights file; None for random weights


def read_model_config(path: Path | str) -> dict[str, Any]:
    """The model config of a JSON file, bare or under `model_cfg`.

    Raises:
        ConfigError: The file is missing, no JSON, or not a model config.
    """
    path = Path(path)
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"model.config={str(path)!r}: there is no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.config={str(path)!r} is no JSON: {error}") from None
    config = config.get("model_cfg", config) if isinstance(config, dict) else {}
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise ConfigError(
            f"model.config={str(path)!r} is no open_clip model config: it needs embed_dim, vision_cfg "
            "and text_cfg, at the top or under model_cfg"
        )
    return config


def read_preprocess(path: Path | str) -> dict[str, Any]:
    """What a model's JSON says of its pictures, under `preprocess_cfg`; empty where it says nothing.

    Raises:
        ConfigError: It says something that open_clip does not know.
    """
    said = json.loads(Path(path).read_text())
    said = said.get("preprocess_cfg") if isinstance(said, dict) else None
    known = {**PREPROCESS, "size": None, "mode": None, "fill_color": None}
    for name in said or {}:
        if name not in known:
            raise ConfigError(f"{path}: preprocess_cfg.{name} is unknown. {nearest(name, known)}")
    return {PREPROCESS[name]: value for name, value in (said or {}).items() if name in PREPROCESS}


def load_openclip(
    model: str | None = None,
    *,
    checkpoint: Path | str | None = None,
    config: Path | str | dict[str, Any] | None = None,
    pretrained: str | None = None,
    random_weights: bool = False,
    device: str = "cpu",
) -> LoadedClip:
    """Load a CLIP model of open_clip.

    Args:
        model: open_clip's name of the model; not needed when `config` is given.
        checkpoint: A local state dict, as open_clip or our trainer writes it.
        config: The model's config, as a JSON file or a dict; a file's `preprocess_cfg` counts, too.
        pretrained: open_clip's tag of published weights, which a hub must serve.
        random_weights: Allow a model without weights.
        device: Where the model goes.

    Raises:
        ConfigError: Neither weights nor `random_weights`, an unknown name or tag, or a checkpoint
            that does not fit the model.
        WorldError: Published weights cannot be fetched.
    """
    import open_clip
    import torch

    if config is None and checkpoint is not None:
        beside = Path(checkpoint).parent / "open_clip_config.json"
        if model is None and beside.exists():
            config = beside
    described = dict(config) if isinstance(config, dict) else read_model_config(config) if config else None
    preprocess = read_preprocess(config) if isinstance(config, str | Path) else {}
    if described is not None:
        name = model or f"local-{_short_hash(described)}"
        name = name.replace("/", "-")
        if open_clip.get_model_config(name) not in (None, described):
            name = f"{name}-{_short_hash(described)}"
        _register(name, described)
    else:
        if model is None:
            raise ConfigError("no model: give its open_clip name as model.name, or model.config=FILE")
        name = model
        described = open_clip.get_model_config(name)
        if described is None:
            raise ConfigError(
                f"model {name!r} is unknown to open_clip. {nearest(name, open_clip.list_models())}"
                if len(name) < 60
                else name
            )
    if checkpoint is None and pretrained is None and not random_weights:
        raise ConfigError(
            f"model {name!r} has no weights: give checkpoint=FILE, pretrained=TAG, or say "
            "random_weights=true (for a rehearsal only)"
        )
    digest = file_digest(checkpoint, "checkpoint") if checkpoint else None
    if pretrained and pretrained not in open_clip.list_pretrained_tags_by_model(name):
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(f"pretrained={pretrained!r} is no tag of {name}. {nearest(pretrained, tags)}")
    for lacks in openclip_lacks(name, None if checkpoint else pretrained, described):
        raise lacks
    try:
        with _reading_our_way() if checkpoint else nullcontext():
            made, train, evaluate = open_clip.create_model_and_transforms(
                name,
                pretrained=str(checkpoint) if checkpoint else pretrained,
                device=device,
                weights_only=True,
                **preprocess,
            )
    except (MemoryError, torch.OutOfMemoryError, ConfigError):
        raise
    except Exception as error:  # of torch's readers, open_clip or the hub: each has its own
        if not checkpoint and not pretrained:
            raise
        raise _unloadable(name, checkpoint, pretrained, error) from error
    tokenizer = open_clip.get_tokenizer(name)
    made = made.eval()
    torch.set_grad_enabled(True)
    return LoadedClip(made, evaluate, train, tokenizer, name, described, digest)


@contextmanager
def _reading_our_way() -> Iterator[None]:
    """Let open_clip convert what `read_weights` reads: files of more kinds, names without wrappers."""
    from open_clip import factory

    theirs = factory.load_state_dict
    factory.load_state_dict = lambda path, **_: read_weights(path)
    try:
        yield
    finally:
        factory.load_state_dict = theirs


def _unloadable(
    name: str, checkpoint: str | Path | None, pretrained: str | None, error: Exception
) -> ConfigError | WorldError:
    """What a person can do about weights that could not be had."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if checkpoint and isinstance(error, RuntimeError) and "state_dict" in str(error):
        return ConfigError(
            f"checkpoint {checkpoint} does not fit model {name}: {lines[1].strip() if lines[1:] else lines[0]}"
            " Give the config that it was trained with (model.config=FILE)."
        )
    said = lines[0].rstrip(".")
    if checkpoint:
        return ConfigError(
            f"checkpoint {checkpoint} cannot be read as weights of {name}: {said}. Give a state dict of "
            "open_clip (.pt, .safetensors), or a checkpoint's folder that dbp train wrote."
        )
    return WorldError(
        f"the weights {pretrained!r} of {name} cannot be fetched: {said}. Fetch them where there is a "
        "network (dbp prefetch, with the same settings), or give checkpoint=FILE."
    )


def _register(name: str, config: dict[str, Any]) -> None:
    import tempfile

    import open_clip

    if open_clip.get_model_config(name) == config:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)


def _short_hash(config: dict[str, Any]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class OpenClip(Encoder):
    """A CLIP model of open_clip: an image and a text tower.

    Args:
        model: open_clip's name; null with a checkpoint that has `open_clip_config.json` beside it.
        pretrained: Tag of published weights.
        checkpoint: A local state dict; its content, not its path, enters the key.
        config: The model's JSON, for a checkpoint of a model that open_clip does not list.
        random_weights: Take untrained weights, for a rehearsal only.
        precision: `fp32`, or `bf16` for autocast.
    """

    model: str | None
    pretrained: str | None = None
    random_weights: bool = False
    precision: str = "fp32"
    checkpoint: str | None = runtime(None)
    config: str | None = runtime(None)
    batch_size: int = runtime(256)
    num_workers: int = runtime(0)
    device: str = runtime("auto")

    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.checkpoint:
            found["weights"] = file_digest(self.checkpoint, "encoder checkpoint")
        if self.config:
            found["config"] = read_model_config(self.config)
            if preprocess := read_preprocess(self.config):
                found["preprocess"] = preprocess
        return found

    def lacks(self, inputs: Any) -> Iterator[MissingError]:
        """What it needs from a hub, and neither is here nor can be fetched; weights, where it names none."""
        if not self.is_named:
            yield none_named()
            return
        config = self.config
        if config is None and self.checkpoint and self.model is None:
            config = Path(self.checkpoint).parent / "open_clip_config.json"
        described = read_model_config(config) if config and Path(config).is_file() else None
        is_published = not (self.checkpoint or self.random_weights)
        yield from openclip_lacks(self.model, self.pretrained if is_published else None, described)

    @property
    def is_named(self) -> bool:
        """Whether it names a model at all: encoder=own does not before an encoder is trained."""
        return bool(self.model or self.checkpoint or self.config)

    def load(self) -> Tower:
        import torch

        if not self.is_named:
            raise none_named()
        device = pick_device(self.device)
        if self.random_weights:
            torch.manual_seed(0)
        loaded = load_openclip(
            self.model,
            checkpoint=self.checkpoint,
            config=self.config,
            pretrained=self.pretrained,
            random_weights=self.random_weights,
            device=device,
        )
        precise = torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")

        def encode_images(batch: Any) -> Float32[np.ndarray, "b d"]:
            with torch.inference_mode(), precise:
                return loaded.model.encode_image(batch.to(device)).float().cpu().numpy()

        def encode_texts(texts: list[str]) -> Float32[np.ndarray, "b d"]:
            with torch.inference_mode(), precise:
                return loaded.model.encode_text(loaded.tokenizer(texts).to(device)).float().cpu().numpy()

        def tokens(batch: Any, layer: int) -> Any:
            with torch.no_grad(), precise:
                return tokens_of(loaded.model.visual, batch.to(device), layer).float()

        sees = loaded.model.visual.preprocess_cfg
        return Tower(loaded.preprocess, encode_images, encode_texts, tokens, sees)
