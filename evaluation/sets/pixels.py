"""Pictures of evaluation sets as torch's DataLoader takes them: decoded, cropped, still bytes.

Decoding and resizing is the cost of an evaluation, so it is done once for all checkpoints. Workers send
uint8, a quarter of what floats would be; the division and the model's mean and spread follow on the
device, in the order and precision of the checkpoint's own transform, so that no bit changes.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dbp.data.images import DROP, background_key, to_rgb
from evaluation.sets.cache import CropCache
from evaluation.sets.data import EvaluationSet

# A picture in bytes (none if broken), sha256 of the file's bytes, why it is broken.
Item = tuple[Any, bytes, str]


class Transform:
    """A checkpoint's own preprocess, cut where floats begin.

    Args:
        preprocess: From an RGB picture to a tensor. One that does not end with "to tensor, normalise"
            is not cut.
        background: Behind transparent pixels; as CLIP_benchmark has it, their alpha is dropped.
    """

    def __init__(self, preprocess: Callable[[Any], Any], background: str = DROP) -> None:
        from torchvision.transforms import Compose, Normalize, ToTensor

        self.preprocess, self.background = preprocess, background
        steps = list(preprocess.transforms) if isinstance(preprocess, Compose) else []
        self.is_cut = len(steps) > 1 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize)
        self.before: list[Any] = steps[:-2] if self.is_cut else []
        self.last: Any = steps[-1] if self.is_cut else None

    @property
    def name(self) -> str | None:
        """What decides a picture's bytes; none where that cannot be said."""
        return repr(self.before) + background_key(self.background) if self.is_cut else None

    def pixels(self, picture: Any) -> Any:
        """What travels: uint8 of 3 x size x size, or the preprocess' own tensor if it is not cut."""
        import torch

        if not self.is_cut:
            return self.preprocess(picture)
        for step in self.before:
            picture = step(picture)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def finish(self, batch: Any) -> Any:
        """The rest of the preprocess, for a batch on the device."""
        import torch

        if not self.is_cut:
            return batch
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=batch.device).view(-1, 1, 1)
            for values in (self.last.mean, self.last.std)
        )
        return batch.to(torch.float32).div_(255).sub_(mean).div_(std)


class Pictures:
    """The chosen pictures, `rows` of each of `sets`, as a map-style dataset: item (set, place in its rows).

    `crops` are the cropped pictures of earlier runs, of each set, if they are kept.
    """

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        rows: Sequence[Sequence[int]],
        transform: Transform,
        crops: Sequence[CropCache] = (),
    ) -> None:
        self.sets, self.rows, self.transform, self.crops = sets, rows, transform, crops

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def lacks_crops(self, which: int, start: int) -> bool:
        """Whether crops of a set are kept, but not yet the chunk that begins at a place."""
        return bool(self.crops) and not self.crops[which].holds(start)

    def __getitem__(self, item: tuple[int, int]) -> Item:
        from PIL import Image

        which, place = item
        if self.crops and (found := self.crops[which].read(place)) is not None:
            return *found, ""
        evaluation_set, row, digest = self.sets[which], self.rows[which][place], b""
        try:
            data = evaluation_set.read_picture(row)
            digest = hashlib.sha256(data).digest()
            # Before the resize: a palette picture gives other pixels afterwards.
            picture = to_rgb(Image.open(io.BytesIO(data)), self.transform.background)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return None, digest, f"{evaluation_set.where(row)} ({reason})"
        return self.transform.pixels(picture), digest, ""


def collate(items: list[Item]) -> tuple[Any, list[bytes], list[str]]:
    """Stack the pictures that are whole."""
    import torch

    pictures, digests, reasons = zip(*items, strict=True)
    whole = [picture for picture in pictures if picture is not None]
    return (torch.stack(whole) if whole else None), list(digests), list(reasons)
