"""Fetch the weights that a run will need, on a machine with a network: compute nodes often have none.

    dbp prefetch [the settings of the run]
    dbp prefetch model.name=ViT-B-32 pretrained=openai        for dbp evaluate, too

Each encoder of the recipe is loaded once on the CPU, so that its weights lie in the caches of open_clip, timm and
the Hub (HF_HOME, TORCH_HOME: set them to a disk that the nodes share), and are known to load.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dbp.curate import read, recipe
from dbp.encoders.base import Encoder
from dbp.encoders.openclip import load_openclip
from dbp.encoders.weights import text_config


def run(config: Any) -> int:
    """Do what `dbp prefetch` does with a composed config; return 1 if something could not be had."""
    from omegaconf import OmegaConf

    loads: dict[str, Callable[[], Any]] = {}
    nodes = recipe(read(_filled(config)))
    for node in dict.fromkeys(node for end in nodes.values() for node in end.lineage()):
        encoder: Any = getattr(node.stage, "encoder", None)  # of vectors, or a captioner's
        if isinstance(encoder, Encoder) and not encoder.reads:
            loads.setdefault(_name(encoder), replace(encoder, device="cpu").load)
    trained, own = (OmegaConf.to_container(config.model)[key] for key in ("name", "config"))  # type: ignore[index]
    if any(key.startswith("hf_") for key in text_config(trained, own)):  # its tokenizer lies in the hub
        loads[f"tokenizer of {trained or own}"] = lambda: load_openclip(trained, config=own, random_weights=True)
    if config.pretrained:
        model, tag = config.model.name, config.pretrained
        loads[f"{model} {tag}"] = lambda: load_openclip(model, pretrained=tag)
    failed = 0
    for name, load in loads.items():
        try:
            load()
        except Exception as error:  # of whichever library fetches; the others are tried all the same
            failed += 1
            print(f"{name}: failed: {str(error).splitlines()[0] if str(error) else error!r}")
        else:
            print(f"{name}: ready")
    print(f"{len(loads) - failed} of {len(loads)} ready")
    return 1 if failed else 0


def _filled(config: Any) -> Any:
    """The config with a budget and shards where none are given: weights do not depend on them."""
    from omegaconf import OmegaConf

    filled = OmegaConf.create(OmegaConf.to_container(config))
    budget = filled.budget
    if all(budget.get(kind) is None for kind in ("prune_ratio", "keep_fraction", "num_kept")):
        budget.keep_fraction = 0.5
    for key in OmegaConf.missing_keys(filled):
        OmegaConf.update(filled, key, "any.tar")
    return filled


def _name(encoder: Encoder) -> str:
    about = [getattr(encoder, field, None) for field in ("model", "pretrained", "checkpoint")]
    return " ".join([type(encoder).__name__, *(str(value) for value in about if value)])
