"""What an experiment takes where no pretrained weights are at hand: a small CLIP, and own sets."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dbp.encoders.weights import openclip_lacks
from dbp.errors import MissingError
from dbp.pools.groups import Group, labels_among
from dbp.pools.looking import Look, lines_of
from dbp.pools.suggestion import Suggestion, as_yaml, header, values_of

TEMPLATE = Path(__file__).with_name("suggestion_own.yaml")  # filled by `str.format`
# Pairs that a run sees: one pass over the pool, at least so many passes and pairs, at most so many pairs.
MOST_PASSES = 20
CPU, GPU = (20_480, 307_200), (1_024_000, 12_800_000)  # floor and ceiling; the last is DataComp small's
PAIRS_PER_SECOND = {32: 400, 64: 280}  # of model=small by image size: a core with AVX-512, captions of 32 tokens
CACHED = 1 << 30  # bytes of decoded images that a process may keep
SIDES = {False: (32, 64), True: (32, 64, 112, 224)}  # with a GPU: 7 x 7 patches, 4 x 4 at 32
PRETRAINED = "ViT-B-32-quickgelu", "openai"  # encoder=openclip_b32
LENGTHS = (16, 32, 77)
HELD_OUT = 2_000  # samples of the sets, where a tenth of the pool has as many
MOST_COLUMNS = 4
RUNS = 15  # five arms, three seeds
LARGE = 1_000_000  # rows from which a GPU trains vit_s32


@dataclass(frozen=True)
class OwnTraining:
    """The small CLIP and its training, by what the pool holds and what this machine is."""

    is_gpu: bool
    image_size: int
    context_length: int
    batch_size: int
    samples_seen: int  # of an arm
    is_cached: bool
    rows: int

    @classmethod
    def of(cls, found: Look, suggested: Suggestion) -> "OwnTraining":
        """By the median shorter side, the length of captions, the rows, and whether a GPU is there."""
        from dbp.engine.processes import visible_gpus

        rows, is_gpu = suggested.rows, bool(visible_gpus())
        middle = float(np.median(found.short_sides)) if found.short_sides else 64.0
        side = max((s for s in SIDES[is_gpu] if s <= middle), default=32)
        length = next((own for own in LENGTHS if own >= _tokens(found)), LENGTHS[-1])
        batch = min(suggested.batch_size, 1024 if is_gpu else 128)
        floor, ceiling = GPU if is_gpu else CPU
        samples = min(max(rows, min(MOST_PASSES * rows, floor)), ceiling)
        size = rows * (3 * side * side + 4 * length)
        return cls(is_gpu, side, length, batch, math.ceil(samples / batch) * batch, size <= CACHED, rows)

    @property
    def model(self) -> str:
        """The option of the group `model`."""
        if not self.is_gpu:
            return "small"
        return "vit_s32" if self.rows >= LARGE and self.image_size == 224 else "small_vit"

    @property
    def encoder_samples(self) -> int:
        """Pairs that an encoder sees."""
        return 2 * self.samples_seen

    def cost(self) -> str:
        """How long a sweep trains, in a sentence."""
        pairs = RUNS * self.samples_seen + 3 * self.encoder_samples
        said = f"training: three encoders and {RUNS} runs see {pairs:,} pairs"
        if self.is_gpu:
            return f"{said}; not measured on a GPU yet"
        rate = PAIRS_PER_SECOND[self.image_size]
        return (
            f"{said}, about {max(pairs / rate / 60, 1):,.0f} minutes of one core ({rate} pairs a second; AVX-512)"
        )

    def model_settings(self) -> str:
        """The section `model` of the experiment, where its values are not the option's."""
        if self.model == "vit_s32":
            return ""
        patch = f", patch_size: {self.image_size // 7 if self.image_size > 64 else 8}" if self.is_gpu else ""
        why = "a GPU" if self.is_gpu else "no GPU here"
        return (
            "model:\n  config:\n"
            f"    vision_cfg: {{image_size: {self.image_size}{patch}}}   # at most the median shorter side; {why}\n"
            f"    text_cfg: {{context_length: {self.context_length}}}   # holds 95 % of the captions\n"
        )

    def train_settings(self) -> str:
        """Further lines of the section `train`."""
        if self.is_gpu:
            return ""
        why = (
            "each process keeps its decoded images"
            if self.is_cached
            else "decoded images would take over 1 GB a process"
        )
        return f"  cache: {str(self.is_cached).lower()}   # {why}\n"

    def why_samples(self) -> str:
        """Why so many."""
        passes = self.samples_seen / max(self.rows, 1)
        return f"{passes:.2g} passes over the pool; every arm sees as many, so a smaller set is repeated more"


def lacks_pretrained() -> MissingError | None:
    """Why the usual encoder cannot be used here; none where its weights are in a cache or can be fetched."""
    return next(openclip_lacks(*PRETRAINED, None), None)


def _tokens(found: Look) -> float:
    """About how many tokens hold 95 % of the captions, with those of beginning and end."""
    if not found.words:
        return LENGTHS[0]
    words, characters = (float(np.quantile(lengths, 0.95)) for lengths in (found.words, found.characters))
    # Where words are not parted by blanks, a character is a token or two.
    return 2 + 1.5 * (words if sum(found.characters) <= 15 * sum(found.words) else characters)


def commands(out: Path, stores: Mapping[str, str]) -> list[str]:
    """What to type after `dbp init`, from the sets to the page; `stores` are settings that are not the defaults."""
    folders = f"--config-dir {shlex.quote(str(out.parent.parent))}"
    where = "".join(f" {shlex.quote(f'{name}={value}')}" for name, value in stores.items())
    own = shlex.quote(str(sets_home(out) / "configs"))
    return [
        f"dbp sets {folders} experiment={out.stem} {shlex.quote(f'out={sets_home(out)}')}{where}",
        f"dbp sweep {folders} --config-dir {own} experiment={out.stem}{where}",
        f"dbp report {out.stem}{where}",
    ]


def sets_home(out: Path) -> Path:
    """Where `dbp sets` writes the sets of an experiment."""
    return out.parent.parent / f"{out.stem}_sets"


def experiment(
    found: Look, suggested: Suggestion, out: Path, folder: Path, typed: Sequence[str], tried: Sequence[str]
) -> str:
    """The text of an experiment that trains its encoder and makes its evaluation sets."""
    own, labels, home = OwnTraining.of(found, suggested), labels_among(found.groups), sets_home(out)
    share = min(0.1, max(HELD_OUT / suggested.rows, 0.005))
    text = TEMPLATE.read_text(encoding="utf-8")
    values = {
        **values_of(suggested),
        "head": header(folder, [*lines_of(found), own.cost()], ["Type, one after another:", *typed], tried),
        "name": out.stem,
        "model": own.model,
        "train": "datacomp_small" if own.is_gpu else "small",
        "model_settings": own.model_settings(),
        "train_settings": own.train_settings(),
        "batch_size": own.batch_size,
        "samples_seen": own.samples_seen,
        "encoder_samples": own.encoder_samples,
        "why_samples": own.why_samples(),
        "warmup": max(own.samples_seen // 10, 1),
        "sets": out.stem.replace(".", "_"),
        "share": share,
        "num_held": round(share * suggested.rows),
        "labels": _labels(labels, found.groups),
        "columns": _columns(found.groups),
        "root": as_yaml(str(home)),
        "hold_out": as_yaml(str(home / "held_out.parquet")),
    }
    return text.format(**values)


def _labels(labels: Group | None, groups: list[Group]) -> str:
    """The value of `sets.labels`, and why."""
    if labels is None:
        there = ", ".join(group.name for group in groups) or "none"
        return f"null    # json:FIELD; no field of few values holds words of the captions (there are: {there})"
    said = f"{len(labels.sizes)} classes, whose names stand in {labels.mentioned:.0%} of the captions"
    return f"{as_yaml(f'json:{labels.name}')}   # {said}"


def _columns(groups: list[Group]) -> str:
    """The section `columns`: what tables show kept rates of."""
    plain = [group for group in groups if group.name.isidentifier()]
    widest = sorted(plain, key=lambda group: -len(group.sizes))[:MOST_COLUMNS]
    if not widest:
        return ""
    lines = (f"  {group.name}: json:{group.name}   # {len(group.sizes)} values\n" for group in widest)
    return f"columns:                # kept rates by these stand in tables and on the page\n{''.join(lines)}"
