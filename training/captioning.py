"""One training step of TL;DR's captioner, and the record of its run."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import Callback
from torch import Tensor

from dbp.captioning.codes import perplexity
from dbp.captioning.model import Captioning
from dbp.captioning.network import Network
from dbp.encoders.base import Tower
from training.account.horizon import Horizon
from training.account.metrics import Write
from training.config import Optimiser
from training.feed.order import step_seed
from training.step.module import Diverged, ImageStep
from training.step.optim import make_optimiser, set_learning_rate


class CaptioningStep(ImageStep):
    """Trains codebook and decoder on batches of uint8 images and words; the image network is frozen.

    Args:
        tower: The frozen image network. It is not a part of the module, so no checkpoint holds it.
        layer: Whose tokens become codes.
        size: Side of its images, in pixels.
        vocabulary_size: Words, with pad, begin and end.
        seed: Of the weights, and with the step of the codes that begin or are revived.
    """

    def __init__(
        self,
        network: Network,
        tower: Tower,
        layer: int,
        size: int,
        vocabulary_size: int,
        optimiser: Optimiser,
        horizon: Horizon,
        seed: int,
    ) -> None:
        assert tower.sees is not None
        super().__init__(optimiser, horizon, seed, tower.sees["mean"], tower.sees["std"])
        self.layer, self.num_codes = layer, network.num_codes
        self.__dict__["tower"] = tower  # past torch's registry
        probe = tower.tokens(torch.zeros(1, 3, size, size), layer)  # type: ignore[misc]
        self.num_tokens, self.token_width = int(probe.shape[1]), int(probe.shape[2])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = Captioning(network, self.token_width, self.num_tokens, vocabulary_size)

    def tokens(self, images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b t d"]:
        """The frozen network's tokens of images."""
        return self.__dict__["tower"].tokens(self.normalise(images), self.layer)

    def configure_optimizers(self) -> Any:
        return make_optimiser(self.network, self.settings)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        step, optimiser = self.global_step, self.trainer.optimizers[0]
        set_learning_rate(optimiser, self.settings, step, self.horizon)
        # On the CPU, so that the device does not matter.
        generator = torch.Generator().manual_seed(step_seed(self.seed, step))
        tokens, book = self.tokens(batch["images"]), self.network.codebook
        book.begin(self.network.project(tokens), generator)
        loss, coded, projected = self.network(tokens, batch["tokens"])
        optimiser.zero_grad()
        self.manual_backward(loss + book.network.commitment * coded.commitment)
        if self.settings.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.grad_clip)
        self.optimizers().step()  # type: ignore[union-attr]
        revived = book.update(projected, coded.codes, generator)
        made = {"loss": loss, "commitment": coded.commitment, "codes": coded.codes, "revived": revived}
        return {name: value.detach() for name, value in made.items()}


class Record(Callback):
    """Writes a row of metrics every so many steps: losses, codes used, perplexity, codes revived."""

    def __init__(self, horizon: Horizon, every: int, write: Write, bar: Any) -> None:
        self.horizon, self.every, self.write, self.bar = horizon, every, write, bar
        self.waiting: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.bar.advance(trainer.global_step * self.horizon.batch_size)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        self.waiting.append(outputs)
        self.bar.advance(self.horizon.batch_size)
        if step % self.every and step != self.horizon.steps:
            return
        told = {name: torch.stack([made[name] for made in self.waiting]).cpu() for name in outputs}
        self.waiting.clear()
        if not bool(torch.isfinite(told["loss"]).all()):
            settings = pl_module.settings
            raise Diverged(
                f"training the captioner stopped: its loss is not finite after "
                f"{step * self.horizon.batch_size:,} samples. Lower captioner.optimiser.lr={settings.lr:g}, "
                f"lengthen captioner.optimiser.warmup_samples={settings.warmup_samples:,}, or set "
                "captioner.optimiser.grad_clip."
            )
        times = np.bincount(told["codes"].numpy().ravel(), minlength=pl_module.num_codes)
        loss = float(told["loss"].double().mean())
        self.write(
            {
                "samples_seen": step * self.horizon.batch_size,
                "caption_loss": round(loss, 5),
                "word_perplexity": round(math.exp(min(loss, 50.0)), 3),
                "commitment_loss": round(float(told["commitment"].double().mean()), 5),
                "codes_used": int((times > 0).sum()),
                "perplexity": round(perplexity(times), 2),
                "codes_revived": int(told["revived"].sum()),
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
            }
        )
