"""One real step of one of several ranks, started by torchrun; the first rank writes what it got.

torchrun --nproc-per-node=2 rank_step.py FOLDER [CHUNK]
"""

import sys
from pathlib import Path

import torch

from training.account.horizon import Horizon
from training.config import Model, Optimiser
from training.resume.ranks import joined
from training.step.fit import fresh_model, make_trainer, quiet
from training.step.module import Contrastive

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 499, "width": 64, "heads": 2, "layers": 2},
}
BATCH, STEPS = 16, 3


def batches(rank: int, size: int) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(3)
    mine = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    return [
        {
            "images": torch.randint(0, 256, (BATCH, 3, 32, 32), generator=draw, dtype=torch.uint8)[mine],
            "tokens": torch.randint(0, 499, (BATCH, 16), generator=draw)[mine],
        }
        for _ in range(STEPS)
    ]


def main(folder: Path, chunk: int | None) -> None:
    """Make the steps; save each one's gradients, and the weights after the last."""
    torch.set_num_threads(1)
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Contrastive):
        def on_train_batch_end(self, *_: object) -> None:
            seen.append({n: p.grad.clone() for n, p in self.model.named_parameters()})

    with joined(folder) as ranks, ranks.together("cpu"), quiet():
        optimiser = Optimiser(1e-3, 0.9, 0.98, 1e-6, 0.2, "openclip3", "cosine", 0)
        model = fresh_model(Model(config=TINY), 5).model
        module = Watched(model, optimiser, Horizon(96, BATCH, STEPS), 0, [0.5] * 3, [0.5] * 3, chunk)
        fed = batches(ranks.rank, ranks.size)
        loader = torch.utils.data.DataLoader(fed, batch_size=None)  # type: ignore[arg-type]
        make_trainer(folder, STEPS, "cpu", "fp32", [], ranks).fit(module, loader)
        weights = ranks.gather({n: p.tolist() for n, p in model.named_parameters()})
        if ranks.is_first:
            torch.save(
                {"gradients": seen, "equal": all(w == weights[0] for w in weights)},
                folder / f"{ranks.size}-{chunk}.pt",
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
