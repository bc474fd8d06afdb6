"""Run a model over texts and pictures: unit vectors in, no metric yet.

Every picture is decoded once and goes through each of the given models. Decoding is most of the
cost of a small model, so N checkpoints of one architecture cost little more than one.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from dbp.errors import ConfigError, nearest
from evaluation.data import EvaluationSet
from evaluation.tar_index import EvaluationDataError
from training.signals import ignore_signals

PRECISIONS = ("fp32", "bf16")


@dataclass
class Towers:
    """A model under evaluation with what feeds it.

    Args:
        model: An open_clip model (`encode_image`, `encode_text`).
        preprocess: The checkpoint's own: from an RGB picture to a tensor.
        tokenizer: The checkpoint's own: from texts to integers.
        device: Where it runs.
        name: Of the architecture, for the record.
        digest: sha256 of the weights file, if there is one.
        samples_seen: In training, if known.
        precision: `fp32`, or `bf16` for autocast inside the towers; vectors are float32 always.
        batch_size: Pictures at a time. Runtime.
        text_batch_size: Texts at a time. Runtime.
        num_workers: Processes that decode. Runtime.
    """

    model: Any
    preprocess: Callable[[Any], Any]
    tokenizer: Callable[[list[str]], Any]
    name: str = ""
    digest: str | None = None
    samples_seen: int | None = None
    device: str = "cpu"
    precision: str = "fp32"
    batch_size: int = 64
    text_batch_size: int = 256
    num_workers: int = 0
    _texts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision={self.precision} is unknown. {nearest(self.precision, PRECISIONS)}"
            )

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Encode texts to unit vectors, each distinct text once in the life of this object.

        Raises:
            EvaluationDataError: The tokenizer does not fit the model, or a vector is not finite.
        """
        import torch
        from torch.nn.functional import normalize

        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        with inference(self):
            for start in range(0, len(missing), self.text_batch_size):
                batch = missing[start : start + self.text_batch_size]
                tokens = self.tokenizer(batch)
                self._check_length(tokens.shape[1])
                vectors = self.model.encode_text(tokens.to(self.device))
                vectors = normalize(vectors.to(torch.float32), dim=-1).cpu().numpy()
                require_finite(vectors, lambda i, batch=batch: f"text {batch[i]!r}")
                self._texts.update(zip(batch, vectors, strict=True))
        return np.stack([self._texts[text] for text in texts])

    def _check_length(self, num_tokens: int) -> None:
        expected = getattr(self.model, "context_length", num_tokens)
        if num_tokens != expected:
            raise EvaluationDataError(
                f"The tokenizer gives {num_tokens} tokens a text, the model takes {expected}. "
                "Use the tokenizer of the model's own config."
            )


@dataclass(frozen=True)
class EncodedPictures:
    """Unit vectors of the chosen pictures, for each model, and a hash of each picture's bytes."""

    features: list[Float[np.ndarray, "n d"]]
    digests: list[bytes]


class Pictures:
    """Rows of a set as a map-style dataset for torch's DataLoader."""

    def __init__(
        self, evaluation_set: EvaluationSet, rows: Sequence[int], preprocess: Callable[[Any], Any]
    ) -> None:
        self.evaluation_set, self.rows, self.preprocess = evaluation_set, rows, preprocess

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Any, bytes, str]:
        """Return the picture (none if broken), the hash of its bytes, and why it is broken."""
        from PIL import Image

        row, digest = self.rows[i], b""
        try:
            data = self.evaluation_set.read_picture(row)
            digest = hashlib.sha256(data).digest()
            picture = Image.open(io.BytesIO(data))
            picture.load()
            # Before the resize: a palette picture gives other pixels afterwards.
            picture = picture.convert("RGB")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return None, digest, f"{self.evaluation_set.where(row)} ({reason})"
        return self.preprocess(picture), digest, ""


def encode_pictures(
    towers: Sequence[Towers],
    evaluation_set: EvaluationSet,
    rows: Sequence[int],
    advance: Callable[[int], object] = lambda count: None,
) -> EncodedPictures:
    """Encode pictures with every model; read, decode and transform each once.

    Args:
        towers: Models of one resolution; the first one's preprocess, batch size and workers count.
        evaluation_set: The set.
        rows: Which of its pictures, in the order of the answer.
        advance: Told how many more pictures are done.

    Raises:
        EvaluationDataError: Pictures are broken (all are counted, five named), a tar was cut, or a
            vector is not finite.
    """
    import torch
    from torch.nn.functional import normalize
    from torch.utils.data import DataLoader

    first = towers[0]
    loader = DataLoader(
        Pictures(evaluation_set, rows, first.preprocess),  # pyright: ignore[reportArgumentType]
        batch_size=first.batch_size,
        num_workers=min(first.num_workers, -(-len(rows) // first.batch_size)),
        collate_fn=_collate,
        worker_init_fn=ignore_signals,  # it may run in the middle of a training run
        pin_memory=torch.device(first.device).type == "cuda",
    )
    features: list[list[np.ndarray]] = [[] for _ in towers]
    digests: list[bytes] = []
    broken: list[str] = []
    try:
        for pictures, batch_digests, reasons in loader:
            done = len(digests)
            digests += batch_digests
            broken += [reason for reason in reasons if reason]
            if not broken:
                for model, parts in zip(towers, features, strict=True):
                    with inference(model):
                        vectors = model.model.encode_image(pictures.to(model.device))
                        vectors = normalize(vectors.to(torch.float32), dim=-1).cpu().numpy()
                    require_finite(
                        vectors, lambda i, done=done: evaluation_set.where(rows[done + i])
                    )
                    parts.append(vectors)
            advance(len(batch_digests))
    finally:
        evaluation_set.close()
    if broken:
        raise EvaluationDataError(
            f"{len(broken):,} of {len(rows):,} pictures cannot be read: "
            f"{'; '.join(broken[:5])}{'; ...' if len(broken) > 5 else ''}. Fetch the set again."
        )
    return EncodedPictures([np.concatenate(parts) for parts in features], digests)


@contextmanager
def inference(towers: Towers) -> Iterator[None]:
    """Evaluation mode, no gradients, the precision asked for; all restored afterwards.

    With `fp32` an autocast around us is switched off, and so is TF32 in products and convolutions.
    """
    import torch

    is_training, matmul = towers.model.training, torch.get_float32_matmul_precision()
    convolution = torch.backends.cudnn.allow_tf32
    towers.model.eval()
    if towers.precision == "fp32":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    autocast = torch.autocast(
        torch.device(towers.device).type, torch.bfloat16, enabled=towers.precision == "bf16"
    )
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        towers.model.train(is_training)
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def require_finite(vectors: Float[np.ndarray, "b d"], name: Callable[[int], str]) -> None:
    """Refuse NaN and infinite vectors: comparisons with them would count as right answers.

    Raises:
        EvaluationDataError: Names the first one.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise EvaluationDataError(
            f"The model gives a vector with NaN or infinity for {name(int(bad[0]))}. "
            "Has its training diverged? Evaluate an earlier checkpoint, or with precision=fp32."
        )


def _collate(samples: list[tuple[Any, bytes, str]]) -> tuple[Any, list[bytes], list[str]]:
    import torch

    pictures, digests, reasons = zip(*samples, strict=True)
    whole = [picture for picture in pictures if picture is not None]
    return (torch.stack(whole) if whole else None), list(digests), list(reasons)
