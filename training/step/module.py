"""One training step of CLIP, as a LightningModule around an open_clip model."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import LightningModule
from torch import Tensor

from dbp.errors import WorldError
from training.account.horizon import Horizon
from training.config import Optimiser
from training.feed.order import step_seed
from training.step.averaging import LastWeights
from training.step.choosing import Choosing
from training.step.loss import clip_loss
from training.step.optim import make_optimiser, set_learning_rate
from training.step.trimming import can_trim, features_of, groups_of, lengths_of, run_trimmed

SEEN = ("images", "tokens", "reference_images", "reference_texts", "is_scored")  # of a batch, by the device
MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5


class Diverged(WorldError):
    """The loss is NaN or infinite."""


class ImageStep(LightningModule):
    """What all training steps on batches of uint8 images share.

    The step is written out (Lightning's manual optimisation), since the order of what follows the backward is
    the recipe.

    Args:
        seed: Of what is drawn in a step, with its number.
        mean: Of each colour channel, for images in [0, 1].
        std: Likewise.
    """

    def __init__(
        self, settings: Optimiser, horizon: Horizon, seed: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings, self.horizon, self.seed = settings, horizon, seed
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """What the model sees moves; rows stay, so that counting them makes no step wait."""
        seen = {name: batch[name] for name in SEEN if name in batch}
        return {**batch, **super().transfer_batch_to_device(seen, device, dataloader_idx)}

    def normalise(self, images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
        """From bytes to the model's mean and spread, on the device: fewer bytes to move."""
        return images.float().div_(255).sub_(self.mean).div_(self.std)


class Contrastive(ImageStep):
    """Trains both towers on batches of uint8 pictures and tokens.

    Bit-identical to open_clip_train's loop when fed the same batches (fp32 and bf16, without clipping, `chunk`
    and `trims`): its decay groups, schedule, loss and clamp, in the same order of operations.

    Args:
        chunk: Pairs of this rank that go through the model at a time; all when none is given.
        trims: Cut captions behind the longest of their group, where the model's text tower allows.
        average_steps: The run ends in the mean of the weights after so many last steps.
        choosing: Takes each batch out of a super-batch.
    """

    def __init__(
        self,
        model: Any,
        optimiser: Optimiser,
        horizon: Horizon,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        chunk: int | None = None,
        trims: bool = False,
        average_steps: int = 0,
        choosing: Choosing | None = None,
    ) -> None:
        super().__init__(optimiser, horizon, seed, mean, std)
        self.choosing = choosing
        self.model, self.chunk = model.train(), chunk
        self.trims = trims and can_trim(model)
        self.last = LastWeights(model, horizon.steps - average_steps) if average_steps else None
        self.register_buffer("first_bad_step", torch.tensor(-1), persistent=False)
        self.register_buffer("gradient_norm", torch.tensor(math.nan), persistent=False)
        self.first_bad_step: Tensor
        self.gradient_norm: Tensor  # before clipping, of the last step; NaN without clipping

    def configure_optimizers(self) -> Any:
        return make_optimiser(self.model, self.settings)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        if self.trims:  # read while they are on the host
            batch = {**batch, "lengths": lengths_of(batch["tokens"])}
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def features(
        self, batch: dict[str, Any], part: slice = slice(None), model: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors `Float[b d]` of a batch's pictures and captions, or of a part of them.

        Args:
            model: Instead of the module's own.
        """
        model = model or self.model
        images, tokens = self.normalise(batch["images"][part]), batch["tokens"][part]
        if not self.trims:
            return features_of(model(images, tokens))
        groups = groups_of(batch["lengths"][part], model.context_length)
        return run_trimmed(model, images, tokens, groups)

    def multiplied(self, batch: dict[str, Any]) -> list[tuple[int, int]]:
        """How many captions of a batch went through the text tower at which length."""
        pairs, length = batch["tokens"].shape
        if not self.trims:
            return [(len(chunk), length) for chunk in torch.arange(pairs).split(self.chunk or pairs)]
        chunks = batch["lengths"].split(self.chunk or pairs)
        groups = [group for lengths in chunks for group in groups_of(lengths, self.model.context_length)]
        return [(len(group.rows), group.length) for group in groups]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        step, optimiser = self.global_step, self.trainer.optimizers[0]
        if self.choosing is not None:  # in place: callbacks see what is trained on
            chosen = self.choosing(self, batch)
            batch.clear()
            batch.update(chosen)
        set_learning_rate(optimiser, self.settings, step, self.horizon)
        optimiser.zero_grad()
        if self.chunk is None or self.chunk >= len(batch["tokens"]):
            torch.manual_seed(step_seed(self.seed, step))
            loss = self.loss(*self.features(batch))
            self.manual_backward(loss)
        else:
            loss = self.backward_in_chunks(batch, self.chunk)
        if self.settings.grad_clip is not None:
            # In the model's order, as open_clip: the sum's last bits depend on the order.
            limit, parameters = self.settings.grad_clip, self.model.parameters()
            self.gradient_norm.copy_(torch.nn.utils.clip_grad_norm_(parameters, limit))
        # Kept on the device: reading it each step would make a GPU wait.
        is_first = ~torch.isfinite(loss.detach()) & (self.first_bad_step < 0)
        self.first_bad_step.masked_fill_(is_first, step)
        self.optimizers().step()  # type: ignore[union-attr]
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        if self.last is not None:
            self.last.add(step)
        return {"loss": loss.detach()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.last is not None:
            checkpoint["last_weights"] = self.last.state()
        if self.choosing is not None:
            checkpoint["earlier_learner"] = self.choosing.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.last is not None:
            self.last.load(checkpoint["last_weights"])
        if self.choosing is not None:
            self.choosing.load(checkpoint["earlier_learner"], self)

    def loss(self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
        """This rank's rows against the columns of all ranks."""
        gather = self.gather if self.trainer.world_size > 1 else None
        return clip_loss(images, texts, self.model.logit_scale.exp(), gather, self.global_rank)

    def gather(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "global_b d"]:
        """The features of all ranks, in rank order; the backward sums over ranks."""
        return self.all_gather(features, sync_grads=True).flatten(0, 1)  # type: ignore[union-attr]

    def backward_in_chunks(self, batch: dict[str, Any], chunk: int) -> Float[Tensor, ""]:
        """The gradient of the whole batch with the memory of a part of it, for one more forward.

        First all features, without a graph; then the loss and its gradient at each feature and at
        the logit scale; then each part once more, back-propagated from its features' gradients. Exact,
        where adding up the losses of parts is not: each pair keeps all its negatives.

        Source: Gao et al. 2021 (GradCache), section 3.
        """
        parts = [slice(start, start + chunk) for start in range(0, len(batch["tokens"]), chunk)]
        with torch.no_grad():
            made = [self.chunk_features(batch, part) for part in parts]
        images, texts = (torch.cat(side).requires_grad_() for side in zip(*made, strict=True))
        scale = self.model.logit_scale
        loss = self.loss(images, texts)
        slopes = torch.autograd.grad(loss, [images, texts, scale])
        waits = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        for part in parts:
            is_last = part is parts[-1]
            with nullcontext() if is_last else waits():  # ranks exchange gradients once, at the end
                pair = self.chunk_features(batch, part)
                inner = scale * slopes[2] if is_last else scale.new_zeros(())
                for made_again, slope in zip(pair, slopes[:2], strict=True):
                    inner = inner + (made_again.float() * slope[part].float()).sum()
                self.manual_backward(inner)
        return loss.detach()

    def chunk_features(self, batch: dict[str, Any], part: slice) -> tuple[Tensor, Tensor]:
        """Features of a part; what the model draws is the same in both passes."""
        torch.manual_seed(step_seed(self.seed, self.global_step) ^ part.start)
        return self.features(batch, part)

    def check_finite(self) -> None:
        """Stop a run whose loss is NaN or infinite.

        Raises:
            Diverged: The message names the first such step.
        """
        if (step := int(self.first_bad_step)) >= 0:
            samples = step * self.horizon.batch_size
            raise Diverged(
                f"training stopped: the loss of step {step:,} (after {samples:,} samples seen) is "
                f"not finite. Lower train.optimiser.lr={self.settings.lr:g}, lengthen "
                f"train.optimiser.warmup_samples={self.settings.warmup_samples:,}, or set "
                "train.optimiser.grad_clip; with train.precision=bf16, try fp32."
            )
