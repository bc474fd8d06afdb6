"""Curate a pool, then train CLIP on the keep list for an exact number of samples.

    dbp train pool=webdataset pool.shards='pool/{00000..00099}.tar' select=dbp \\
        budget.keep_fraction=0.3 model=vit_b32 train=datacomp_small

The checkpoint's folder loads in plain open_clip: open_clip.create_model("local-dir:FOLDER").
"""

from typing import Any

from dbp.config import build
from dbp.curate import open_store, read, recipe
from dbp.planning.plan import check_budget, print_plan, require_upstream
from training.checkpoint import Checkpoint
from training.config import Model
from training.stage import Train


def stage_of(config: Any) -> Train:
    """The training run that a composed config describes.

    Raises:
        ConfigError: A setting of `train` or `model` is wrong.
    """
    return build(config.train, path="train", model=build(config.model, Model, "model"))


def run(config: Any) -> Checkpoint | None:
    """Do what `dbp train` does with a composed config."""
    nodes = recipe(read(config))
    node = stage_of(config).bind(pool=nodes["index"], keep=nodes["select"])
    store = open_store(config)
    if config.dry_run:
        print_plan(store, node)
        return None
    if config.upstream == "require":
        require_upstream(store, node)
    check_budget(store, nodes)
    checkpoint = store.get(node)
    print(
        f"trained {checkpoint.name} for {checkpoint.samples_seen:,} samples: checkpoint "
        f"{store.key(node)} in {checkpoint.folder} ({store.work_done()})"
    )
    return checkpoint


if __name__ == "__main__":
    from dbp.command_line import hydra_main

    hydra_main("train", run)
