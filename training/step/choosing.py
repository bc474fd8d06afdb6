"""Choosing in the step: the learner scores the candidates of all ranks, and each rank gets its share of the batch.

The learner's forward pass has no gradient and is in evaluation mode: nothing is dropped, and batch normalisation
takes its running statistics and moves none, so a candidate's vector depends on no other candidate. All ranks see
all vectors (super-batch x width numbers), the first one chooses, and images of what is chosen move to the rank that
trains on them.
"""

import copy
import time
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, distributed

from training.online.jest import Jest, Scored
from training.step.smaller import refresh, shrunk, smaller

MOVED = ("images", "tokens", "rows", "asked", "lengths")  # of a batch, what goes with its pairs


class Choosing:
    """Takes the batch out of a super-batch.

    Args:
        scale: Of the reference.
        batch_size: Pairs of the batch, over all ranks.
        score_batch: Candidates of a rank that go through the learner at a time.
    """

    def __init__(self, how: Jest, scale: float, batch_size: int, seed: int, score_batch: int) -> None:
        self.how, self.scale, self.seed = how, scale, seed
        self.batch_size, self.score_batch = batch_size, score_batch
        self.earlier: Any = None  # the learner of an earlier step, where it scores

    def __call__(self, module: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """This rank's share of the chosen pairs, with what the choice took."""
        clock = Clock(module.device)
        model = self._scorer(module)
        with torch.no_grad():
            images, texts, lengths = self._vectors(module, model, batch)
            with torch.autocast(module.device.type, enabled=False):
                given = images, texts, batch["reference_images"], batch["reference_texts"]
                a, b, c, d = (gathered(module, side.float()) for side in given)
                is_scored = gathered(module, batch["is_scored"].float()) > 0
                now, then = Scored(a, b, model.logit_scale.detach().float().exp()), Scored(c, d, self.scale)
                step = module.global_step
                places = self.how.choose(now, then, is_scored, self.batch_size, self.seed, step)
                if module.trainer.world_size > 1:
                    distributed.broadcast(places, 0)
        own = len(batch["rows"])
        chosen = dealt({name: batch[name] for name in MOVED if name in batch}, places, own, module)
        rows, asked = chosen["rows"], chosen.pop("asked")
        price = {
            "candidates": own,
            "samples_decoded": own,
            "samples_scored": own,
            "choice_seconds": clock.seconds(),
        }
        return chosen | {"undecodable": asked[rows != asked], "scored_lengths": lengths, **price}

    def _scorer(self, module: Any) -> Any:
        """The learner as it is, or its copy: of the last step that `refresh_steps` divides, of smaller images."""
        if self.how.refresh_steps == 1 and self.how.score_size is None:
            return module.model
        if self.earlier is None:
            self.earlier = self._copy(module.model)
        if module.global_step % self.how.refresh_steps == 0:
            refresh(self.earlier, module.model)
        return self.earlier

    def _copy(self, model: Any) -> Any:
        size = self.how.score_size
        return copy.deepcopy(model) if size is None else smaller(model, size)

    def _vectors(
        self, module: Any, model: Any, batch: dict[str, Any]
    ) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"], list[tuple[int, int]]]:
        """Of this rank's candidates; and how many of their captions were looked at with which length."""
        mode, made, lengths = model.training, [], list[tuple[int, int]]()
        model.eval()
        for start in range(0, len(batch["rows"]), self.score_batch):
            part = slice(start, start + self.score_batch)
            seen = {name: batch[name][part] for name in ("images", "tokens", "lengths") if name in batch}
            if self.how.score_size is not None:
                seen["images"] = shrunk(seen["images"], self.how.score_size)
            made.append(module.features(seen, model=model))
            lengths += module.multiplied(seen)
        model.train(mode)
        images, texts = (torch.cat(side) for side in zip(*made, strict=True))
        return images, texts, lengths

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps: the learner of an earlier step."""
        return None if self.how.refresh_steps == 1 or self.earlier is None else self.earlier.state_dict()

    def load(self, state: dict[str, Any] | None, module: Any) -> None:
        """Go on from a state."""
        if state is not None:
            self.earlier = self._copy(module.model)
            self.earlier.load_state_dict(state)


class Clock:
    """Seconds that a device takes from here on, without a further wait: reading them waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began = device, time.perf_counter()
        self.event = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def seconds(self) -> float:
        """Since the clock was made."""
        if self.event is None:
            return time.perf_counter() - self.began
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        end.synchronize()
        return self.event.elapsed_time(end) / 1e3


def gathered(module: Any, values: Tensor) -> Tensor:
    """The values of all ranks, in rank order."""
    return values if module.trainer.world_size == 1 else module.all_gather(values).flatten(0, 1)


def dealt(pairs: dict[str, Tensor], places: Int64[Tensor, " b"], own: int, module: Any) -> dict[str, Tensor]:
    """This rank's equal share of the pairs at some places of the super-batch.

    Args:
        pairs: Of this rank: `own` of each, which stand behind those of the ranks before it.
        places: Ascending, of all ranks.
    """
    size, rank = module.trainer.world_size, module.global_rank
    if size == 1:
        return {name: values[places.to(values.device)] for name, values in pairs.items()}
    where = places.cpu()
    home, to = where // own, torch.arange(len(where)) * size // len(where)
    mine = where[home == rank] - rank * own
    sent = [int(((home == rank) & (to == other)).sum()) for other in range(size)]
    coming = [int(((home == other) & (to == rank)).sum()) for other in range(size)]
    found = {}
    for name, values in pairs.items():
        is_host = values.device.type == "cpu"
        given = values[mine.to(values.device)].to(module.device).contiguous()
        taken = given.new_empty((sum(coming), *values.shape[1:]))
        distributed.all_to_all_single(taken, given, coming, sent)
        found[name] = taken.cpu() if is_host else taken
    return found
