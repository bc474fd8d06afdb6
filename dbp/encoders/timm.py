"""Image encoders of timm, such as DINOv2 at a fixed resolution and its class token."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from dbp.device import pick_device
from dbp.encoders.base import Encoder, Tower
from dbp.encoders.state_dicts import read_weights
from dbp.encoders.tokens import tokens_of
from dbp.encoders.weights import timm_lacks
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, MissingError, WorldError, nearest


@dataclass(frozen=True)
class Timm(Encoder):
    """An image network of timm without its head.

    Args:
        model: timm's name, with its tag.
        image_size: Side of the square input in pixels; fixed here because a model's own default may be
            another (518 for DINOv2).
        pooling: `token` for the class token, `avg` for the mean of the patches.
        checkpoint: A local state dict; its content enters the key.
        random_weights: Take untrained weights, for a rehearsal only.
    """

    has_text: ClassVar[bool] = False

    model: str
    image_size: int
    pooling: str
    random_weights: bool = False
    precision: str = "fp32"
    checkpoint: str | None = runtime(None)
    batch_size: int = runtime(64)
    num_workers: int = runtime(0)
    device: str = runtime("auto")

    def identity(self) -> dict[str, Any]:
        if self.checkpoint:
            return {"weights": file_digest(self.checkpoint, "encoder checkpoint")}
        return {}

    def lacks(self, inputs: Any) -> Iterator[MissingError]:
        """Its published weights, if they are neither here nor can be fetched."""
        if not (self.checkpoint or self.random_weights):
            yield from timm_lacks(self.model)

    def load(self) -> Tower:
        import timm
        import torch

        base = self.model.split(".")[0]
        if base not in timm.list_models():
            raise ConfigError(
                f"encoder model {self.model!r} is unknown to timm. {nearest(base, timm.list_models())[:300]}"
            )
        for lacks in self.lacks({}):
            raise lacks
        device = pick_device(self.device)
        sized: dict[str, Any] = {"img_size": self.image_size} if "vit" in base or "swin" in base else {}
        if self.random_weights:
            torch.manual_seed(0)
        try:
            model = timm.create_model(
                self.model,
                pretrained=not (self.checkpoint or self.random_weights),
                num_classes=0,
                global_pool=self.pooling,
                **sized,
            )
        except (OSError, ConnectionError) as error:
            raise WorldError(
                f"the weights of {self.model} cannot be fetched: {str(error).splitlines()[0]}. On a machine "
                "without a network, fetch them elsewhere and give the encoder's checkpoint=FILE."
            ) from error
        if self.checkpoint:
            _fill(model, self.model, self.checkpoint)
        model = model.to(device).eval()
        settings = timm.data.resolve_model_data_config(model)  # type: ignore[attr-defined]
        settings["input_size"] = (3, self.image_size, self.image_size)
        transform = timm.data.create_transform(**settings, is_training=False)  # type: ignore[attr-defined]
        precise = torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")

        def encode_images(batch: Any) -> Float32[np.ndarray, "b d"]:
            with torch.inference_mode(), precise:
                return model(batch.to(device)).float().cpu().numpy()

        def tokens(batch: Any, layer: int) -> Any:
            with torch.no_grad(), precise:
                return tokens_of(model, batch.to(device), layer, "norm").float()

        sees = {"size": self.image_size, **{name: settings[name] for name in ("mean", "std")}}
        return Tower(transform, encode_images, None, tokens, sees)


def _fill(model: Any, name: str, checkpoint: str) -> None:
    """Give a model its weights; those of a head that it has not are left out.

    Raises:
        ConfigError: The file holds no weights, or those of another model.
    """
    if checkpoint.endswith((".npz", ".npy")):  # of big_vision: each model reads its own
        if not hasattr(model, "load_pretrained"):
            raise ConfigError(
                f"encoder checkpoint {checkpoint}: {name} does not read arrays of numpy, as models of "
                "big_vision do. Give a state dict (torch.save or safetensors), or the model that it was trained as."
            )
        try:
            model.load_pretrained(checkpoint)
        except Exception as error:  # a damaged file, or other arrays: numpy and timm raise many kinds
            raise ConfigError(
                f"encoder checkpoint {checkpoint} does not fit model {name}, or is damaged: "
                f"{type(error).__name__}: {error}. Give the model that it was trained as, with its image_size; or "
                "fetch the file again."
            ) from error
        return
    heads = model.default_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    own = model.state_dict()
    found = read_weights(checkpoint, averaged_first=True)
    weights = {key: value for key, value in found.items() if key in own or not key.startswith(heads)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ConfigError(
            f"encoder checkpoint {checkpoint} does not fit model {name}: {(lines[1:] or lines)[0].strip()} "
            "Give the model that it was trained as, with its image_size."
        ) from error
