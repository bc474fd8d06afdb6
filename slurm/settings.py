"""What a sweep reads of the config."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from dbp.config import require


@dataclass(frozen=True)
class SweepSettings:
    """The grid and how it is shown.

    Args:
        name: Folder of the sweep's tables, and their title.
        arms: Name -> settings; one arm of the config as it stands where none is given.
        axes: Key -> values; every arm is run at every point of the axes that it reads.
        encoder: Settings of a run that is trained first, whose checkpoint becomes every arm's encoder.
        control: The arm that differences are taken from.
        notes: Lines that stand above the table.
        workers: Processes that train side by side; `auto` is one a core up to four where there is no
            GPU, each with one thread, else one.
        plots: Draw the figures.
        unequal_compute: Allow arms whose steps, batch or model differ.
    """

    name: str
    arms: dict[str, Any]
    axes: dict[str, Any]
    encoder: dict[str, Any] | None
    control: str
    notes: list[str] = field(default_factory=list)
    workers: int | Literal["auto"] = "auto"
    plots: bool = True
    unequal_compute: bool = False

    def num_workers(self) -> int:
        """How many processes `workers` means on this machine."""
        if self.workers != "auto":
            return int(self.workers)
        import torch

        return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 4)

    def check(self) -> None:
        """Refuse what types cannot say.

        Raises:
            ConfigError: A value is out of range.
        """
        for given in (self.arms, self.axes, self.encoder or {}):
            require(isinstance(given, dict), "sweep", given, "mappings of names to settings")
        require(
            self.workers == "auto" or self.workers >= 1,
            "sweep.workers",
            self.workers,
            "at least 1, or auto",
        )
        for key, values in flat(self.axes).items():
            require(
                isinstance(values, list) and len(values) > 0,
                f"sweep.axes.{key}",
                values,
                "a list of values",
            )


def flat(settings: dict[str, Any] | None, path: str = "") -> dict[str, Any]:
    """Nested settings by full key: {train: {seed: 1}} and {train.seed: 1} mean the same."""
    found: dict[str, Any] = {}
    for name, value in (settings or {}).items():
        key = f"{path}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found
