"""The encoder that a sweep trains for itself, before any key that rests on it is known."""

from pathlib import Path

from dbp.planning.plan import flat
from dbp.stage import Node
from dbp.store import Store
from slurm.composer import Composer, stages
from slurm.plan import expand
from slurm.settings import Grid, SweepSettings


def train_encoder(
    composer: Composer, settings: SweepSettings, grid: Grid, store: Store
) -> dict[str, str]:
    """Train the encoder that the arms use; return its checkpoint and config."""
    if not settings.encoder:
        return {}
    node = encoder_node(composer, settings)
    if store.entry(node) is None:  # a wrong setting of an arm stops before minutes are spent
        expand(composer, grid.arms, grid.axes, encoder_files(Path("untrained")))
    store.get(node)
    return encoder_files(store.folder(node))


def encoder_node(composer: Composer, settings: SweepSettings) -> Node:
    """The training of the encoder that a sweep makes for itself."""
    return stages(composer.config(flat(settings.encoder or {})))["train"]


def encoder_files(folder: Path | None) -> dict[str, str]:
    """What an arm's config is told of the encoder: its weights and its model's config."""
    assert folder is not None
    return {
        "checkpoint": str(folder / "weights.pt"),
        "config": str(folder / "open_clip_config.json"),
    }
