"""The mean of a run's last weights: less noise between seeds for no further sample.

Source: Izmailov et al. 2018 (stochastic weight averaging), over the end of the schedule, without a cycle.
Running statistics of batch normalisation are averaged as well, instead of computed anew from the data.
"""

from typing import Any

import torch
from torch import Tensor


class LastWeights:
    """A running mean of a model's weights over the last steps of a run.

    Args:
        model: Whose state is averaged: all that is floating point.
        first: The first step that counts, 0-based.
    """

    def __init__(self, model: Any, first: int) -> None:
        self.model, self.first, self.count = model, first, 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Take the weights after a step into the mean, if it counts."""
        if step < self.first:
            return
        self.count += 1
        for name, value in self._floating():
            if self.count == 1:
                self.mean[name] = value.detach().clone()
            else:
                self.mean[name].lerp_(value.detach(), 1 / self.count)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the mean in place of the model's weights, where any step counted."""
        for name, value in self._floating() if self.count else ():
            value.copy_(self.mean[name])

    def _floating(self) -> list[tuple[str, Tensor]]:
        return [(n, v) for n, v in self.model.state_dict().items() if v.is_floating_point()]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run ends in the same mean."""
        return {"count": self.count, "mean": dict(self.mean)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        devices = {name: value.device for name, value in self._floating()}
        self.count = state["count"]
        self.mean = {n: v.to(devices[n], copy=True) for n, v in state["mean"].items()}
