"""Fewer saved activations for more arithmetic: a share of the transformer blocks is computed twice."""

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from dbp.errors import ConfigError


def recompute_blocks(model: Any, share: float) -> tuple[int, int]:
    """Let the first blocks of each tower keep only their input, and be computed again backwards.

    ViT-B/32 saves 31 MiB a pair in bf16 without, 3.3 MiB with all blocks recomputed, for a third
    more arithmetic; a share between trades one for the other. The weights' names stay as they are.

    Args:
        share: Of the blocks of each tower, in [0, 1]; rounded up to whole blocks.

    Returns:
        How many blocks are recomputed, and of how many.

    Raises:
        ConfigError: A tower is not made of blocks that can be told apart.
    """
    if share == 0:
        return 0, 0
    stacks = [m.resblocks for m in model.modules() if hasattr(m, "resblocks")]
    if len(stacks) < 2:
        raise ConfigError(
            f"train.recompute={share:g}: a tower of {type(model).__name__} has no list of transformer "
            "blocks. Set train.recompute=0, and train.chunk_size to save memory."
        )
    done = total = 0
    for blocks in stacks:
        count = -int(-share * len(blocks) // 1)
        for block in list(blocks)[:count]:
            # Only the block's own call: its parameters and their names stay where they are.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        done, total = done + count, total + len(blocks)
    return done, total
