"""Shards whose bytes were overwritten in place, in equal size and with the old time: every reader finds out."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.store import Store
from dbp.errors import PoolError
from dbp.pools.index import Index
from training.feed.augmentation import Shift
from training.feed.data import Pairs
from training.feed.order import Slice
from training.feed.subset import Subset


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, key in enumerate("abcdef"):
            image = io.BytesIO()
            Image.new("RGB", (9, 9), (number, 7, 7)).save(image, "PNG")
            for name, content in ((f"{key}.png", image.getvalue()), (f"{key}.txt", b"caption")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    node = Index(shards=str(tmp_path / "a.tar"), uid="key", caption="txt", max_pixels=10**6).node()
    return Store(tmp_path / "store").get(node)


def overwrite(path: str, name: str) -> None:
    """Flip a bit in the middle of a member; the time of the file is set back."""
    with tarfile.open(path) as tar:
        member = next(info for info in tar if info.name.startswith(name))
    before = os.stat(path)
    with open(path, "r+b") as handle:
        handle.seek(member.offset_data + member.size // 2)
        (byte,) = handle.read(1)
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def batch(pool: Pool, rows: list[int]) -> dict:
    keep = np.zeros(pool.num_rows, bool)
    keep[rows] = True
    subset = Subset.of(pool, KeepList(pool.digest, keep))
    taken = Slice(0, np.zeros(len(rows), np.int64), np.arange(len(rows)))

    def tokens(texts: list[str]) -> torch.Tensor:
        return torch.zeros((len(texts), 4), dtype=torch.int64)

    return Pairs(subset, Shift(0), 8, tokens, 0)[taken]


def test_training_stops_at_another_image_or_caption_and_names_the_shard(pool: Pool) -> None:
    assert batch(pool, [0, 1, 2, 3, 4, 5])["rows"].tolist() == [0, 1, 2, 3, 4, 5]
    overwrite(pool.shards[0], "b.txt")
    overwrite(pool.shards[0], "d.")
    assert batch(pool, [0, 2, 4, 5])["rows"].tolist() == [0, 2, 4, 5], "what is not read does not matter"
    for rows, what, uid in (([0, 1], "caption", "b"), ([2, 3], "image", "d")):
        with pytest.raises(PoolError, match=rf"a\.tar holds another {what} of '{uid}'.*index it anew"):
            batch(pool, rows)


def test_a_caption_or_an_image_that_is_read_by_its_range_is_compared(pool: Pool) -> None:
    assert len(pool.captions(np.arange(6))) == 6
    overwrite(pool.shards[0], "b.txt")
    overwrite(pool.shards[0], "d.")
    with pytest.raises(PoolError, match=r"a\.tar holds another caption of 'b'"):
        pool.captions(np.array([5, 1, 0]))
    with pytest.raises(PoolError, match=r"a\.tar holds another image of 'd'"):
        pool.image_bytes(3)
    assert pool.image_bytes(2)
