"""The encoders that a sweep trains for itself, before any key that rests on them is known.

An encoder is half trained and its weights differ by processor, so it is a part of the noise: with
`sweep.encoder_by_seed` each seed of the arms has an encoder, and so a curation, of its own.
"""

from collections.abc import Mapping
from pathlib import Path

from dbp.engine.store import Store
from dbp.planning.plan import flat
from slurm.composer import Composer, stages
from slurm.plan import SEED, Point, expand
from slurm.settings import Grid, SweepSettings

Encoders = Mapping[int, Mapping[str, str]]  # seed of an arm -> checkpoint and config of its encoder


def encoder_points(composer: Composer, settings: SweepSettings, grid: Grid) -> dict[int, Point]:
    """Seed of the arms -> the training of its encoder; one for all seeds, or one each."""
    if not settings.encoder:
        return {}
    base = int(composer.config({}).seed)
    given = [arm[SEED] for arm in grid.arms.values() if SEED in arm]
    seeds = dict.fromkeys(int(seed) for seed in [*grid.axes.get(SEED, [base]), *given])
    asked = flat(settings.encoder)
    found = {}
    for seed in seeds:
        own = {SEED: int(asked.get(SEED, base)) + seed} if settings.encoder_by_seed else {}
        config = composer.config(asked | own)
        found[seed] = Point("encoder", {}, config, stages(config), "encoder", int(config.seed))
    return found


def known_encoders(points: Mapping[int, Point], store: Store) -> dict[int, dict[str, str]] | None:
    """The files of all encoders; none as long as one is to be trained."""
    folders = {seed: store.folder(point.nodes["train"]) for seed, point in points.items()}
    if any(store.entry(point.nodes["train"]) is None for point in points.values()):
        return None
    return {seed: encoder_files(folder) for seed, folder in folders.items()}


def untrained(points: Mapping[int, Point]) -> dict[int, dict[str, str]]:
    """What stands for encoders that are to be trained, so that arms can be composed and checked."""
    return {seed: encoder_files(Path(f"untrained-{seed}")) for seed in points}


def train_encoders(
    composer: Composer, settings: SweepSettings, grid: Grid, store: Store
) -> dict[int, dict[str, str]]:
    """Train the encoders that the arms use; return their checkpoints and configs.

    Raises:
        WorldError: One could not be trained.
    """
    from dbp.errors import WorldError
    from slurm.local import run_points

    points = encoder_points(composer, settings, grid)
    if (found := known_encoders(points, store)) is not None:
        return found
    expand(composer, grid.arms, grid.axes, untrained(points))  # a wrong setting stops before minutes are spent
    distinct = list({repr(point.config): point for point in points.values()}.values())
    for point in distinct:
        store.get(point.nodes["select"])
    if len(distinct) == 1:
        store.get(distinct[0].nodes["train"])
    elif failures := run_points(distinct, store, settings.num_workers(), print, last="train"):
        raise WorldError(f"an encoder could not be trained: {next(iter(failures.values()))}")
    found = known_encoders(points, store)
    assert found is not None, "all encoders are trained"
    return found


def encoder_files(folder: Path | None) -> dict[str, str]:
    """What an arm's config is told of its encoder: weights and the model's config."""
    assert folder is not None
    return {
        "checkpoint": str(folder / "weights.pt"),
        "config": str(folder / "open_clip_config.json"),
    }


def encoder_keys(encoders: Encoders) -> tuple[str, ...]:
    """The keys of the runs that trained them, each once."""
    keys = [Path(found["checkpoint"]).parent.name for found in encoders.values() if found]
    return tuple(dict.fromkeys(keys))
