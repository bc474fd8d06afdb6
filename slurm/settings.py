"""What a sweep reads of the config."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from dbp.config import require
from dbp.engine.processes import visible_gpus
from dbp.errors import ConfigError
from dbp.planning.plan import flat


@dataclass(frozen=True)
class SweepSettings:
    """The grid and how it is shown.

    Args:
        name: Folder of the sweep's tables, and their title.
        arms: Name -> settings; one arm of the config as it stands where none is given.
        axes: Key -> values; every arm is run at every point of the axes that it reads.
        encoder: Settings of a run that is trained first; its checkpoint becomes the encoder of every
            use that names no weights of its own.
        control: The arm that differences are taken from.
        encoder_by_seed: Train an encoder for each seed of the arms (its seed is added to the encoder's), so that
            its noise is part of every interval.
        notes: Lines that stand above the table.
        workers: Processes that train side by side; `auto` is one a GPU, or one a core up to four, each
            with one thread, where there is none.
        plots: Draw the figures.
        unequal_compute: Allow arms whose steps, batch, model or evaluation differ.
        add_controls: Add an arm that keeps as many rows at random wherever an arm that selects has none.
        rehearsal: For smoke runs: keys (and all below them) that arms and axes may not change; of
            the other axes only the first value is taken.
    """

    name: str
    arms: dict[str, Any]
    axes: dict[str, Any]
    encoder: dict[str, Any] | None
    control: str
    encoder_by_seed: bool = False
    notes: list[str] = field(default_factory=list)
    workers: int | Literal["auto"] = "auto"
    plots: bool = True
    unequal_compute: bool = False
    add_controls: bool = True
    rehearsal: list[str] | None = None

    def __post_init__(self) -> None:
        for name, given in self.arms.items():
            must = "a mapping of settings; {} for the config as it stands"
            require(isinstance(given, dict), f"sweep.arms.{name}", given, must)
        require(self.workers == "auto" or self.workers >= 1, "workers", self.workers, "at least 1, or auto")
        for key, values in flat(self.axes).items():
            is_list = isinstance(values, list) and len(values) > 0
            require(is_list, f"sweep.axes.{key}", values, "a list of values")

    def num_workers(self) -> int:
        """How many processes `workers` means on this machine."""
        if self.workers != "auto":
            return int(self.workers)
        return len(visible_gpus()) or min(os.cpu_count() or 1, 4)


@dataclass(frozen=True)
class Grid:
    """The arms and axes of one sweep, by full keys.

    Args:
        arms: Name -> settings.
        axes: Key -> values.
        controls: Arm -> the arm that keeps as many rows at random, of the rows that it chose from.
    """

    arms: dict[str, dict[str, Any]]
    axes: dict[str, list[Any]]
    controls: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: SweepSettings, said: dict[str, list[Any]], base: list[str], alone: str) -> "Grid":
        """The grid of an experiment and of what the user said.

        Args:
            settings: Of the experiment.
            said: Axes of the command line; they replace the experiment's of the same key.
            base: The other settings of the command line.
            alone: Name of the one arm of a sweep without arms. Where `select` is an axis, its values
                are the arms.

        Raises:
            ConfigError: A setting of the command line has no effect.
        """
        arms = {name: flat(given) for name, given in settings.arms.items()}
        axes = {k: list(v) for k, v in flat(settings.axes).items()} | said
        if not arms:
            methods = axes.pop("select", [])
            arms = {str(m): {"select": m} for m in methods} or {alone: {}}
        if settings.rehearsal is not None:
            held = tuple(f"{name}{end}" for name in settings.rehearsal for end in (".", "@"))

            def is_free(key: str) -> bool:
                return not f"{key}.".startswith(held)

            arms = {name: {k: v for k, v in given.items() if is_free(k)} for name, given in arms.items()}
            axes = {key: values[:1] for key, values in axes.items() if is_free(key)}
        controls = add_controls(arms, settings.control) if settings.add_controls else {}
        for key in (argument.partition("=")[0] for argument in base):
            if key in axes and key not in said:
                raise ConfigError(
                    f"{key} is an axis of this sweep, with values {axes[key]}, so one value has no "
                    f"effect. Say sweep.{key}=[…] to change them."
                )
            if all(key in given for given in arms.values()):
                raise ConfigError(
                    f"{key} has no effect: every arm of this sweep sets it. Say it of one arm "
                    "(sweep.arms), or make it an axis of a sweep without arms."
                )
        return cls(arms, axes, controls)


def add_controls(arms: dict[str, dict[str, Any]], name: str) -> dict[str, str]:
    """Add the arms that choose at random what others choose by a method; one for each way to get there.

    Args:
        arms: Name -> settings; the new ones are put in.
        name: Of the new arm; with the method's behind it where there are several.

    Returns:
        Arm -> its control, for the arms that select.
    """
    controls: dict[str, str] = {}
    for arm, given in list(arms.items()):
        if arm == name or given.get("select", "") in ("none", "uniform"):
            continue
        others = {k: v for k, v in given.items() if k != "select" and not k.startswith("select.")}
        settings = others | {"select": "uniform"}
        alike = next((other for other, said in arms.items() if said == settings), None)
        if alike is None:
            alike = name if name not in arms else f"{name} ({arm})"
            arms[alike] = settings
        controls[arm] = alike
    return controls
