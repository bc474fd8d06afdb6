"""Rehearse a curation on a synthetic pool of any size: the same stages, files and counts, no images.

    dbp rehearse rows=1000000 [key=value ...]

Any setting of `dbp curate` may be given: dedup, cluster, select, budget, parts, paths. `pool.width`,
`pool.concepts`, `pool.duplicates` and `pool.jitter` say what is planted (configs/pool/rehearsal.yaml).
`dry_run=true` prints the plan alone. At the end: how many of the planted duplicates dedup found, and how
much of what it removed was none.
"""

from typing import Any

import numpy as np

from dbp.config import build, compose
from dbp.errors import ConfigError
from dbp.pools.rehearsal import RehearsalPool


def main(keys: list[str], folders: list[str], print_only: bool) -> int:
    """Run `dbp rehearse`."""
    from dbp.curate import open_store, read, recipe, run
    from dbp.verbs.command_line import overrides

    if not any(key.startswith("rows=") for key in keys):
        raise ConfigError("dbp rehearse needs rows=NUMBER, such as rows=1000000")
    if taken := next((key for key in keys if key.split("=")[0] in ("pool", "encoder")), None):
        raise ConfigError(f"{taken}: a rehearsal has its own pool and encoder; use dbp curate")
    own = [f"pool.{key}" if key.startswith("rows=") else key for key in keys]
    config = compose("curate", overrides(["pool=rehearsal", "encoder=rehearsal", *DEFAULTS, *own]), folders)
    if print_only:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config))
        return 0
    run(config)
    nodes = recipe(read(config))
    store = open_store(config, say=lambda line: None)
    with store.steady():
        if config.dry_run or store.entry(nodes["dedup"]) is None:
            return 0
        dedup = store.get(nodes["dedup"])
    print(found_line(build(config.pool, path="pool"), dedup.mask))
    return 0


# A budget is needed; the others of `dbp curate` hold.
DEFAULTS = ("budget.keep_fraction=0.3",)


def found_line(plan: RehearsalPool, kept: np.ndarray) -> str:
    """How dedup's decisions compare with what was injected."""
    counts: Any = np.zeros(3, np.int64)  # groups' rows beyond one, of them gone, gone without a copy
    for file in range(len(plan.parts())):
        span, source = plan.span(file), plan.source_of(file)
        gone = ~kept[span.start : span.stop]
        sizes = np.bincount(source, minlength=len(source))
        removed = np.bincount(source, gone, len(source)).astype(np.int64)
        extra = np.maximum(sizes - 1, 0)
        counts += [extra.sum(), np.minimum(removed, extra).sum(), gone[(sizes == 1)[source]].sum()]
    extra, found, alone = (int(count) for count in counts)
    share = f"{found / extra:.2%}" if extra else "none planted"
    return (
        f"planted duplicates: {extra:,}; dedup removed {found:,} of them ({share}), and {alone:,} rows that "
        "have no copy"
    )
