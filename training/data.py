"""From rows of the pool to batches: only kept rows are read, at any place, in any order.

A map-style dataset answers whole slices, so that a batch is one array operation after decoding:
pictures leave as uint8 (a quarter of the bytes of float32), tokens as integers. With `cache`,
pictures at training size and tokens stay in shared memory after the first epoch: about 3 KiB a pair
at 32 px, 150 KiB at 224 px, so it is for small pools.
"""

import logging
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dbp.data.images import Undecodable
from dbp.errors import ConfigError, PoolError
from training.augmentation import Augmentation
from training.horizon import Horizon
from training.order import Batches, Order, Slice, draws
from training.subset import Subset

log = logging.getLogger("dbp")

MOST_SUBSTITUTES = 100  # rows in a row that may fail to decode before the pool counts as broken


class Pairs(Dataset):
    """Batches of pictures and tokens of a subset.

    A picture that cannot be decoded is replaced, with its caption, by the next kept row that can:
    positions never shift, and the substitute does not depend on order, rank or worker.
    """

    def __init__(
        self,
        subset: Subset,
        augmentation: Augmentation,
        size: int,
        tokenizer: Any,
        seed: int,
        cache: bool = False,
    ) -> None:
        """Prepare to read.

        Args:
            subset: The kept samples.
            augmentation: The recipe for pictures.
            size: Side of the training picture, in pixels.
            tokenizer: From texts to `Int[Tensor, "b l"]`.
            seed: Of the augmentation.
            cache: Keep fitted pictures and tokens in memory.

        Raises:
            ConfigError: A cache is asked for, and no picture is fitted twice in the same way.
        """
        if cache and augmentation.is_fit_random:
            raise ConfigError(
                f"train.cache=true: {type(augmentation).__name__} cuts each picture anew, so there "
                "is nothing to keep. Set train.cache=false, or another train.augmentation."
            )
        self.subset, self.augmentation, self.size = subset, augmentation, size
        self.tokenizer, self.seed, self.cache = tokenizer, seed, cache
        if cache:  # shared, so that workers fill one cache
            m, length = len(subset), int(tokenizer(["a"]).shape[1])
            self.pictures = torch.zeros((m, 3, size, size), dtype=torch.uint8).share_memory_()
            self.tokens = torch.zeros((m, length), dtype=torch.int32).share_memory_()
            self.source = torch.full((m,), -1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, taken: Slice) -> dict[str, Tensor]:
        """The pairs of a slice.

        Returns:
            `images: UInt8[b 3 s s]`, `tokens: Int64[b l]`, `rows: Int64[b]`, the rows of the pool
            that the pictures come from, and `undecodable: Int64[u]`, the rows for which others
            stand in.
        """
        numbers = draws(
            self.seed, taken.epochs, self.subset.keys[taken.indices], self.augmentation.num_draws
        )
        read = self._cached if self.cache else self._read
        pictures, tokens, sources = read(taken.indices, numbers)
        failed = self.subset.rows[taken.indices[sources != taken.indices]]
        return {
            "images": torch.from_numpy(self.augmentation.move(pictures, numbers)),
            "tokens": tokens,
            "rows": torch.from_numpy(self.subset.rows[sources]),
            "undecodable": torch.from_numpy(failed),
        }

    def _read(
        self, indices: Int64[np.ndarray, " b"], numbers: np.ndarray
    ) -> tuple[UInt8[np.ndarray, "b 3 s s"], Tensor, Int64[np.ndarray, " b"]]:
        pictures = np.empty((len(indices), 3, self.size, self.size), np.uint8)
        sources = np.empty_like(indices)
        for at, index in enumerate(indices):
            pictures[at], sources[at] = self._picture(int(index), numbers[at])
        captions = self.subset.pool.captions(self.subset.rows[sources])
        return pictures, self.tokenizer(captions).long(), sources

    def _cached(
        self, indices: Int64[np.ndarray, " b"], numbers: np.ndarray
    ) -> tuple[UInt8[np.ndarray, "b 3 s s"], Tensor, Int64[np.ndarray, " b"]]:
        source = self.source.numpy()
        missing = np.unique(indices[source[indices] < 0])
        if len(missing):
            pictures, tokens, sources = self._read(missing, np.zeros((len(missing), 0)))
            self.pictures.numpy()[missing] = pictures
            self.tokens[missing] = tokens.int()
            source[missing] = sources  # last: it says that the others are there
        return self.pictures.numpy()[indices], self.tokens[indices].long(), source[indices]

    def _picture(self, index: int, numbers: np.ndarray) -> tuple[UInt8[np.ndarray, "3 s s"], int]:
        """The fitted picture of a kept sample, and the sample that it came from."""
        tries = min(MOST_SUBSTITUTES, len(self.subset))
        for offset in range(tries):
            source = (index + offset) % len(self.subset)
            try:
                image = self.subset.pool.image(int(self.subset.rows[source]))
                return self.augmentation.fit(image, self.size, numbers), source
            except Undecodable as problem:
                log.debug("row %d cannot be decoded: %s", self.subset.rows[source], problem)
        row = int(self.subset.rows[index])
        raise PoolError(
            f"none of {tries:,} kept pictures from row {row:,} (uid "
            f"{self.subset.pool.uids(np.array([row]))[0]!r}) on can be decoded. Embed the pool, "
            "which records what fails, or check the shards."
        )


class PairData(LightningDataModule):
    """The loader of a run, starting at the step where the trainer stands."""

    def __init__(self, pairs: Pairs, horizon: Horizon, num_workers: int, pin_memory: bool) -> None:
        super().__init__()
        self.pairs, self.horizon = pairs, horizon
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def train_dataloader(self) -> DataLoader:
        trainer: Any = self.trainer
        batches = Batches(
            Order(self.pairs.subset.keys, self.pairs.seed),
            self.horizon,
            trainer.global_step,
            trainer.global_rank,
            trainer.world_size,
        )
        return make_loader(self.pairs, batches, self.num_workers, self.pin_memory)


def make_loader(
    pairs: Pairs, batches: Batches, num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """torch's loader over whole slices: the dataset assembles the batch, in the worker."""
    return DataLoader(
        pairs,
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
    )
