"""Curate a pool, then train CLIP on the keep list for an exact number of samples.

    dbp train pool=webdataset pool.shards='pool/{00000..00099}.tar' select=dbp \\
        budget.keep_fraction=0.3 model=vit_b32 train=datacomp_small

Several devices: one process for each, `torchrun --nproc-per-node=8 -m dbp train …` or `srun
--ntasks=8 dbp train …`; the first one curates, all train.

The checkpoint's folder loads in plain open_clip: open_clip.create_model("local-dir:FOLDER").
"""

from pathlib import Path
from typing import Any

from dbp.config import build
from dbp.curate import open_store, read, recipe
from dbp.engine.stage import Node
from dbp.offers import Offers
from dbp.planning import preflight
from dbp.planning.plan import check_budget, print_plan, require_upstream
from training.config import Model
from training.feed.weights import ByColumn
from training.publish import publish_run
from training.resume.checkpoint import Checkpoint
from training.resume.ranks import joined
from training.stage import Train

# Field of `train` -> the group of the config that it takes in.
GROUPS = {
    "captions": "caption",
    "mixture": "mixture",
    "online": "online",
    "streaming": "streaming",
    "watch": "watch",
}


def stage_of(config: Any) -> Train:
    """The training run that a composed config describes.

    Raises:
        ConfigError: A setting of `train`, of `model` or of a group that `train` takes in is wrong.
    """
    # Groups of their own are built under the names by which the user sets them.
    groups = {
        field: build(config[group], path=group)
        for field, group in GROUPS.items()
        if config.get(group) is not None and config.train.get(field) is not None
    }
    return build(config.train, path="train", model=build(config.model, Model, "model"), **groups)


def node_of(config: Any, nodes: dict[str, Node]) -> Node:
    """The training run bound to what curation makes: pool, keep list and, where they are, captions and a column.

    What an online method reads beside (tags, vectors of a reference) is bound, too.

    Raises:
        ConfigError: As of `stage_of`; or a mixture or an online method names a column that is not there.
    """
    stage = stage_of(config)
    own = {"pool": nodes["index"], "keep": nodes["select"], "refined": nodes.get("captions")}
    if isinstance(stage.mixture, ByColumn):
        own["column"] = Offers("mixture", nodes)[stage.mixture.offered_as("columns")]
    if stage.online is not None:
        made = {name: node for name, node in nodes.items() if name == "valid" or name.startswith("columns.")}
        made |= {"pool": nodes["index"], "rows": nodes["select"], "clusters": nodes["cluster"]}
        own |= stage.online.inputs(Offers("online", made))
    return stage.bind(**own)


def run(config: Any) -> Checkpoint | None:
    """Do what `dbp train` does with a composed config; as one of several ranks, its part of it."""
    with joined(Path(config.paths.runs).absolute()) as ranks:
        if ranks.is_first:
            checkpoint = lead(config)
            ranks.say({"train": None})
            return checkpoint
        from training.run import follow

        follow(ranks)
        return None


def lead(config: Any) -> Checkpoint | None:
    """Curate and train, or say what would be done."""
    nodes = recipe(read(config))
    node = node_of(config, nodes)
    store = open_store(config)
    if config.dry_run:
        print_plan(store, node)
        return None
    if config.upstream == "require":
        require_upstream(store, node)
    preflight.require(store, [node])
    mixture = getattr(node.stage, "mixture", None)
    if isinstance(mixture, ByColumn):  # a wrong one is known before curation
        mixture.check(store.get(node.inputs["column"]))
    check_budget(store, nodes)
    checkpoint = store.get(node)
    publish_run(store, node)
    key = str(store.key(node))
    print(
        f"trained {checkpoint.name} for {checkpoint.samples_seen:,} samples: checkpoint "
        f"{key} in {checkpoint.folder} ({store.work_done()})\n"
        f"next: dbp evaluate checkpoint=run:{key[:12]} suite=… root=…, or curate with it: encoder=run:{key[:12]}"
    )
    return checkpoint


if __name__ == "__main__":
    from dbp.verbs.command_line import hydra_main

    hydra_main("train", run)
