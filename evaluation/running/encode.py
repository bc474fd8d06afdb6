"""Run a model over texts and pictures: unit vectors out, no metric yet.

Every picture is decoded once and goes through each of the given models. Decoding is most of the
cost of a small model, so N checkpoints of one architecture cost little more than one.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from dbp.data.images import DROP
from dbp.errors import ConfigError, nearest
from evaluation.sets.data import EvaluationSet
from evaluation.sets.pixels import Pictures, Transform, collate
from evaluation.sets.tar_index import EvaluationDataError

PRECISIONS = ("fp32", "bf16", "reference")
# Pictures of a chunk, at least: what a kill can cost, and the size of kept files (4 MB at width 512).
CHUNK = 2_048


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
        config: The model's, as open_clip's JSON holds it; for the record.
        precision: `fp32`, `bf16` for autocast inside the towers, or `reference`: float16 autocast on
            a GPU where DataComp has it (texts, and the pictures of retrieval sets), else fp32.
            Vectors are float32 always.
        batch_size: Pictures at a time. Runtime.
        text_batch_size: Texts at a time. Runtime.
        num_workers: Processes that decode. Runtime.
        background: Behind transparent pixels of its pictures; a pool's own for its encoder, else none.
        known_texts: The vectors of all texts so far; what is put in is not encoded again.
    """

    model: Any
    preprocess: Callable[[Any], Any]
    tokenizer: Callable[[list[str]], Any]
    name: str = ""
    digest: str | None = None
    samples_seen: int | None = None
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    device: str = "cpu"
    precision: str = "fp32"
    batch_size: int = 64
    text_batch_size: int = 256
    num_workers: int = 0
    background: str = DROP
    known_texts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision={self.precision} is unknown. {nearest(self.precision, PRECISIONS)}")

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Encode texts to unit vectors, each distinct text once in the life of this object.

        Raises:
            EvaluationDataError: The tokenizer does not fit the model, or a vector is not finite.
        """
        self.prepare_texts(texts)
        vectors = np.stack([self.known_texts[text] for text in texts])
        require_finite(vectors, lambda i: f"text {texts[i]!r}")
        return vectors

    def prepare_texts(self, texts: Sequence[str], advance: Callable[[int], object] = lambda count: None) -> None:
        """Encode those of the texts that were not encoded yet, in large batches.

        Args:
            texts: Of all tasks together, since the batches decide last bits.
            advance: Told how many more texts are done.

        Raises:
            EvaluationDataError: The tokenizer does not fit the model.
        """
        missing = [text for text in dict.fromkeys(texts) if text not in self.known_texts]
        with inference(self, halved=True):
            for start in range(0, len(missing), self.text_batch_size):
                batch = missing[start : start + self.text_batch_size]
                tokens = self.tokenizer(batch)
                expected = getattr(self.model, "context_length", tokens.shape[1])
                if tokens.shape[1] != expected:
                    raise EvaluationDataError(
                        f"The tokenizer gives {tokens.shape[1]} tokens a text, the model takes {expected}. "
                        "Use the tokenizer of the model's own config."
                    )
                vectors = unit(self.model.encode_text(tokens.to(self.device)))
                self.known_texts.update(zip(batch, vectors, strict=True))
                advance(len(batch))

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines by; 100, as the metrics, where it has none of its own."""
        scale = getattr(self.model, "logit_scale", None)
        return 100.0 if scale is None else float(scale.detach().exp())

    @property
    def label(self) -> str:
        """Name it for people among others of its architecture."""
        return self.digest[:12] if self.digest else self.name

    @property
    def config_digest(self) -> str:
        """Name the model's config and its transform: the same weights under others are another model."""
        # Only a transform of known steps has a name that is the same in every process.
        transform = repr(self.preprocess) if Transform(self.preprocess).is_cut else ""
        said = json.dumps(self.config, sort_keys=True) + transform
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Chunk:
    """Places start..stop-1 of the chosen pictures of a set, for some models, each by its number.

    `is_halved`: whether `reference` has its pictures in float16.
    """

    which: int
    start: int
    stop: int
    models: tuple[int, ...] = (0,)
    is_halved: bool = False


@dataclass
class Encoded:
    """A chunk's vectors for each of its models.

    Args:
        chunk: Which pictures.
        features: Of each model by its number; none for a model whose vectors are not finite, and for
            all where pictures are broken.
        digests: sha256 of each picture's file.
        broken: Pictures that cannot be read: where, and why.
        not_finite: What to say of a model whose vectors are not finite.
    """

    chunk: Chunk
    features: dict[int, Float[np.ndarray, "n d"]] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    not_finite: dict[int, str] = field(default_factory=dict)


def chunk_size(batch_size: int) -> int:
    """Pictures of a chunk: whole batches, so that chunks change no batch."""
    return batch_size * -(-CHUNK // batch_size)


def encode_chunks(
    towers: Sequence[Towers],
    pictures: Pictures,
    chunks: Iterable[Chunk],
    advance: Callable[[Chunk, int], object] = lambda chunk, count: None,
) -> Iterator[Encoded]:
    """Encode chunks of several sets; read, decode and transform each picture once for all models.

    Workers run ahead over the borders of chunks and sets, so neither makes the device wait.

    Args:
        towers: Models of one transform; the first one's batch size and workers count.
        pictures: Of all sets.
        chunks: Taken as workers ask for them.
        advance: Told how many more pictures of a chunk are done.

    Yields:
        Chunks in the order given, whole.
    """
    import torch

    from training.resume.workers import Loader, loading

    first = towers[0]
    ahead: deque[tuple[Chunk, int]] = deque()

    def batches() -> Iterator[list[tuple[int, int]]]:
        for chunk in chunks:
            for start in range(chunk.start, chunk.stop, first.batch_size):
                stop = min(start + first.batch_size, chunk.stop)
                ahead.append((chunk, stop))
                yield [(chunk.which, place) for place in range(start, stop)]

    loader = Loader(
        pictures,
        batch_sampler=batches(),
        num_workers=first.num_workers,
        collate_fn=collate,
        pin_memory=torch.device(first.device).type == "cuda",
    )
    parts: dict[int, list[np.ndarray]] = {}
    made: Encoded | None = None
    keeps_crops = False
    crops: list[np.ndarray] = []  # of a chunk that is to be kept
    with loading(f"num_workers={first.num_workers}"):
        for images, digests, reasons in loader:
            chunk, stop = ahead.popleft()
            if made is None:
                made, parts, crops = Encoded(chunk), {}, []
                keeps_crops = pictures.lacks_crops(chunk.which, chunk.start)
            place = chunk.start + len(made.digests)
            made.digests += digests
            made.broken += filter(None, reasons)
            if not made.broken:
                if keeps_crops:
                    crops.append(images.numpy())
                on_device = pictures.transform.finish(images.to(first.device, non_blocking=True))
                evaluation_set, rows = pictures.sets[chunk.which], pictures.rows[chunk.which][place:stop]
                for i in chunk.models:
                    with inference(towers[i], chunk.is_halved):
                        vectors = unit(towers[i].model.encode_image(on_device))
                    try:
                        require_finite(vectors, lambda k, of=evaluation_set, rows=rows: of.where(rows[k]))
                    except EvaluationDataError as error:
                        made.not_finite.setdefault(i, str(error))
                    parts.setdefault(i, []).append(vectors)
            advance(chunk, len(digests))
            if stop == chunk.stop:
                if not made.broken:
                    made.features |= {
                        i: np.concatenate(mine) for i, mine in parts.items() if i not in made.not_finite
                    }
                    if crops:
                        pictures.crops[chunk.which].save(chunk.start, np.concatenate(crops), made.digests)
                yield made
                made = None


def unit(vectors: Any) -> Float[np.ndarray, "n d"]:
    """What a model gives, scaled to length 1 in float32."""
    from torch.nn.functional import normalize

    return normalize(vectors.float(), dim=-1).cpu().numpy()


def encode_pictures(towers: Towers, evaluation_set: EvaluationSet, rows: Sequence[int]) -> Float[np.ndarray, "n d"]:
    """Unit vectors of some pictures of one set, for one model.

    Raises:
        EvaluationDataError: Pictures are broken (all are counted, five named), a tar was cut, or a
            vector is not finite.
    """
    pictures = Pictures([evaluation_set], [rows], Transform(towers.preprocess, towers.background))
    # No more workers than batches: this may be called for few pictures, by each rank of a training.
    workers = min(towers.num_workers, -(-len(rows) // towers.batch_size))
    try:
        [found] = encode_chunks([replace(towers, num_workers=workers)], pictures, [Chunk(0, 0, len(rows))])
    finally:
        evaluation_set.close()
    require_whole(found.broken, len(rows))
    if found.not_finite:
        raise EvaluationDataError(found.not_finite[0])
    return found.features[0]


def require_whole(broken: Sequence[str], num_pictures: int) -> None:
    """Refuse a set with broken pictures.

    Raises:
        EvaluationDataError: Counts all, names five.
    """
    if broken:
        raise EvaluationDataError(
            f"{len(broken):,} of {num_pictures:,} pictures cannot be read: "
            f"{'; '.join(broken[:5])}{'; ...' if len(broken) > 5 else ''}. Fetch the set again."
        )


@contextmanager
def inference(towers: Towers, halved: bool = False) -> Iterator[None]:
    """Evaluation mode, no gradients, the precision asked for; all restored afterwards.

    With `fp32` an autocast around us is switched off, and so is TF32 in products and convolutions.
    `halved`: whether `reference` runs this in float16 on a GPU.
    """
    import torch

    is_training, matmul = towers.model.training, torch.get_float32_matmul_precision()
    convolution = torch.backends.cudnn.allow_tf32
    towers.model.eval()
    if towers.precision == "fp32":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    kind = torch.device(towers.device).type
    if towers.precision == "reference":
        autocast = torch.autocast(kind, torch.float16, enabled=halved and kind == "cuda")
    else:
        autocast = torch.autocast(kind, torch.bfloat16, enabled=towers.precision == "bf16")
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
