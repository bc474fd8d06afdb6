"""What a comparison cost in all, and after how many runs curation has paid.

Costs come from manifests: what each stage took when it was made. An artifact that several runs rest on
is counted once; shared out, each of those runs bears an equal part, so that the parts of all arms add up
to the whole.

When has curation paid? What an arm's own curation cost, over what one training run of it saves. A run
saves the samples that it sees fewer than a run of the baseline, at the mean seconds of a sample of the
two arms; that the two results count as equal is the reader's choice. At a fixed budget of samples each
arm sees as many, nothing is saved, and what curation buys is accuracy: then the answer is never. At
fixed epochs a smaller kept set sees fewer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Purpose = Literal["encoder", "curation", "training", "evaluation"]
# Stages that a pool takes, whatever is chosen of it.
POOL = frozenset(("render", "convert", "pack_parquet", "pack_folder", "unpack", "tars", "index", "valid"))
PURPOSES: tuple[Purpose, ...] = ("encoder", "curation", "training", "evaluation")
# Of a run that chooses its batches among candidates; its seconds and GPU-hours are part of those of training, or of
# loader workers where the choice is made before decoding.
CHOICE = ("candidates", "samples_decoded", "samples_scored", "scoring_flops", "choice_seconds", "scoring_gpu_hours")


@dataclass(frozen=True)
class Item:
    """The cost of one artifact."""

    key: str  # of the artifact
    stage: str  # that made it
    purpose: Purpose  # what it was made for
    seconds: float  # of the process that made it; of training, over all tries that were resumed
    cpu_seconds: float  # of that process alone, without workers
    gpu_hours: float | None  # of all its GPUs; none where the manifest does not say whether one was used
    flops: int | None  # of training with what it scored, and of a reference; none where they were not counted
    bytes: int  # on disk
    samples: int | None  # pairs that training saw
    kept: int | None  # rows that training drew from
    choice: Mapping[str, float] | None = None  # of training that chose its batches: what choosing took


def item_of(manifest: Mapping[str, Any], purpose: Purpose | None = None) -> Item:
    """Read an artifact's cost from its manifest.

    Args:
        manifest: As the store wrote it.
        purpose: What it was made for; told by its stage when not given.
    """
    counts, stage = manifest["counts"], manifest["stage"]
    by_stage: dict[str, Purpose] = {"train": "training", "evaluate": "evaluation"}
    by_stage["tasks"] = "evaluation"
    seconds = max(manifest["seconds"], counts.get("train_seconds", 0.0))
    return Item(
        manifest["key"],
        stage,
        purpose or by_stage.get(stage, "curation"),
        seconds,
        manifest["cpu_seconds"],
        _gpu_hours(manifest, seconds),
        _flops_of(counts),
        sum(manifest["files"].values()),
        counts.get("samples_seen"),
        counts.get("kept"),
        {name: counts[name] or 0 for name in CHOICE} if "candidates" in counts else None,
    )


def _flops_of(counts: Mapping[str, Any]) -> int | None:
    """Of a run what it trained and scored; of a reference its vectors."""
    known = [counts.get("train_flops", counts.get("reference_flops")), counts.get("scoring_flops", 0)]
    return None if None in known else sum(known)


def _gpu_hours(manifest: Mapping[str, Any], seconds: float) -> float | None:
    """What training counted; else one GPU for the stage's time, if the manifest names one."""
    counts = manifest["counts"]
    if (counted := counts.get("gpu_hours")) is not None:
        return float(counted)
    if "gpu" in manifest:  # the name of the GPU that was used, or null
        return seconds / 3600 if manifest["gpu"] else 0.0
    settings = [manifest.get("made_by"), manifest.get("runtime")]
    devices = {counts["device"]} if "device" in counts else set(_devices(settings))
    if any(device.startswith("cuda") for device in devices):
        return seconds / 3600
    return None if "auto" in devices else 0.0


def _devices(described: Any) -> Iterable[str]:
    """The settings named `device`, at any depth of a stage's description."""
    if isinstance(described, Mapping):
        for name, value in described.items():
            if name == "device" and isinstance(value, str):
                yield value
            else:
                yield from _devices(value)
    elif isinstance(described, list):
        for value in described:
            yield from _devices(value)


@dataclass
class Ledger:
    """The artifacts that a comparison rests on, and which runs rest on which."""

    items: dict[str, Item] = field(default_factory=dict)  # by key, each artifact once
    # Name of an arm -> its runs -> the keys that the run rests on
    arms: dict[str, list[set[str]]] = field(default_factory=dict)

    def add(self, arm: str, run: Iterable[Item], encoder: Iterable[Item] = ()) -> None:
        """Note one run of an arm: its own artifact and all that it rests on.

        The encoder is a file to the stages that use it, so no manifest leads to it.
        """
        run = list(run)
        if any(item.stage == "embed" for item in run):
            own = {item.key for item in run}
            run = [*(item for item in encoder if item.key not in own), *run]
        self.items.update((item.key, item) for item in run)
        self.arms.setdefault(arm, []).append({item.key for item in run})

    def num_runs(self, key: str) -> int:
        """How many runs rest on an artifact."""
        return sum(key in keys for runs in self.arms.values() for keys in runs)

    def of(self, arm: str, *purposes: Purpose) -> list[Item]:
        """What an arm rests on, each artifact once, for some purposes; for all when none is given."""
        keys = set().union(*self.arms[arm])
        return [i for k, i in self.items.items() if k in keys and i.purpose in (purposes or PURPOSES)]

    def shared_out(self, arm: str) -> float:
        """The seconds that an arm bears when each run pays an equal part of what it shares."""
        return sum(
            item.seconds * sum(item.key in keys for keys in self.arms[arm]) / self.num_runs(item.key)
            for item in self.of(arm)
        )

    def choosing(self, arm: str) -> float:
        """Seconds of choosing for one run of an arm, in the mean: encoder and curation, without the pool's index.

        What several runs share counts in full for each, as if each were the only one.
        """

        def counts(item: Item) -> bool:
            return item.purpose in ("encoder", "curation") and item.stage not in POOL

        return _mean(math.fsum(i.seconds for k in keys if counts(i := self.items[k])) for keys in self.arms[arm])

    def online(self, arm: str) -> dict[str, float] | None:
        """What choosing while training took in all runs of an arm, by `CHOICE`; none where nothing was."""
        made = [item.choice for item in self.of(arm, "training") if item.choice is not None]
        return {name: sum(one[name] for one in made) for name in CHOICE} if made else None

    def scores(self, arm: str) -> bool:
        """Whether the learner scored candidates: then samples seen do not say what a run costs."""
        return (self.online(arm) or {}).get("samples_scored", 0) > 0

    def baseline(self) -> str | None:
        """The arm that draws from the most rows, the first of equals; none where no arm trained."""
        kept = {arm: max((i.kept or 0 for i in self.of(arm, "training")), default=0) for arm in self.arms}
        return max(kept, key=lambda arm: kept[arm]) if any(kept.values()) else None

    def payback(self, arm: str, baseline: str) -> "Payback":
        """After how many runs an arm's curation has paid, against a baseline."""
        common = {item.key for item in self.of(baseline)}
        own = [i for i in self.of(arm, "encoder", "curation") if i.key not in common]
        mine, theirs = self.of(arm, "training"), self.of(baseline, "training")
        samples = [_mean(i.samples or 0 for i in trained) for trained in (theirs, mine)]
        both = {i.key: i for i in mine + theirs}.values()
        per_sample = math.fsum(i.seconds for i in both) / max(sum(i.samples or 0 for i in both), 1)
        return Payback(math.fsum(i.seconds for i in own), samples[0] - samples[1], per_sample)


@dataclass(frozen=True)
class Payback:
    """What curation cost an arm, and what each of its training runs saves."""

    curation_seconds: float  # of what the baseline does not rest on
    samples_saved: float  # in each run, against a run of the baseline; negative for more samples
    seconds_per_sample: float  # of training

    @property
    def seconds_saved(self) -> float:
        """In each run."""
        return self.samples_saved * self.seconds_per_sample

    @property
    def runs(self) -> int | None:
        """The first number of runs after which the whole costs no more; none for never."""
        if self.curation_seconds == 0:
            return 0
        if self.seconds_saved <= 0:
            return None
        return math.ceil(self.curation_seconds / self.seconds_saved)

    def __str__(self) -> str:
        if self.curation_seconds == 0:
            return "no curation of its own"
        if self.samples_saved == 0:
            return "never: equal samples"
        if self.runs is None:
            return "never: more samples"
        return f"{self.runs:,} run{'s' * (self.runs != 1)}"


def ledger_lines(ledger: Ledger) -> list[str]:
    """The ledger as text: each artifact once by stage, then by arm."""
    items = list(ledger.items.values())
    if not items:
        return ["Cost: nothing was made."]
    whole = sum(item.seconds for item in items)
    lines = [f"Cost, each artifact once: {whole:,.0f} s, {_hours(items)}, {_flops(items)}"]
    lines.append(f"  {'for':<10} {'stage':<10} {'made':>5} {'seconds':>10} {'cpu s':>10} {'share':>7}")
    for purpose in PURPOSES:
        for stage in dict.fromkeys(i.stage for i in items if i.purpose == purpose):
            some = [i for i in items if (i.purpose, i.stage) == (purpose, stage)]
            seconds, cpu = sum(i.seconds for i in some), sum(i.cpu_seconds for i in some)
            lines.append(
                f"  {purpose:<10} {stage:<10} {len(some):>5} {seconds:>10,.1f} {cpu:>10,.1f} "
                f"{seconds / max(whole, 1e-9):>7.1%}"
            )
    baseline = ledger.baseline()
    if baseline is None:
        return lines
    lines += [
        "",
        "Seconds by arm; curation (with the encoder) counts all that the arm rests on, shared out is "
        "its part of the whole",
        f"  {'arm':<24} {'runs':>4} {'curation':>10} {'train/run':>10} {'samples/run':>13} "
        f"{'shared out':>11}  pays after",
    ]
    for arm, runs in ledger.arms.items():
        trained = ledger.of(arm, "training")
        curation = sum(i.seconds for i in ledger.of(arm, "encoder", "curation"))
        pays = "baseline" if arm == baseline else str(ledger.payback(arm, baseline))
        if ledger.scores(arm):
            pays = "-: it scores in its runs"
        lines.append(
            f"  {arm:<24} {len(runs):>4} {curation:>10,.1f} {_mean(i.seconds for i in trained):>10,.1f} "
            f"{_mean(i.samples or 0 for i in trained):>13,.0f} {ledger.shared_out(arm):>11,.1f}  {pays}"
        )
    return [*lines, *_notes(ledger, baseline), *_choices(ledger)]


def _choices(ledger: Ledger) -> list[str]:
    """What choosing while training took, by arm; nothing where no arm does."""
    found = {arm: choice for arm in ledger.arms if (choice := ledger.online(arm))}
    if not found:
        return []
    lines = [
        "",
        "Choosing while training, all runs of an arm; seconds are part of training, or of its loader workers",
        f"  {'arm':<24} {'candidates':>13} {'decoded':>13} {'scored':>13} {'scoring FLOP':>13} {'seconds':>9} "
        f"{'GPU-hours':>9}",
    ]
    for arm, c in found.items():
        lines.append(
            f"  {arm:<24} {c['candidates']:>13,} {c['samples_decoded']:>13,} {c['samples_scored']:>13,} "
            f"{c['scoring_flops']:>13.3g} {c['choice_seconds']:>9,.1f} {c['scoring_gpu_hours']:>9,.2f}"
        )
    return lines


def _notes(ledger: Ledger, baseline: str) -> list[str]:
    saved = [ledger.payback(arm, baseline).samples_saved for arm in ledger.arms if arm != baseline]
    notes = [
        "  Pays after: the arm's own curation over the training seconds that one run of it saves, "
        f"by seeing fewer samples than {baseline}; results taken as equal."
    ]
    if saved and not any(saved):
        notes.append("  All arms see as many samples, so no run saves training: curation buys accuracy here.")
    return notes


def ledger_json(ledger: Ledger) -> dict[str, Any]:
    """The ledger as plain values: artifacts, and each arm's sums."""
    baseline = ledger.baseline()
    arms: dict[str, Any] = {}
    for arm, runs in ledger.arms.items():
        pays = ledger.payback(arm, baseline) if baseline and not ledger.scores(arm) else None
        arms[arm] = {
            "runs": len(runs),
            "seconds": {p: sum(i.seconds for i in ledger.of(arm, p)) for p in PURPOSES},
            "seconds_shared_out": ledger.shared_out(arm),
            "choosing_seconds_per_run": ledger.choosing(arm),
            "gpu_hours": _sum(i.gpu_hours for i in ledger.of(arm)),
            "train_flops": _sum(i.flops for i in ledger.of(arm, "training")),
            "online": ledger.online(arm),
            "baseline": baseline,
            "own_curation_seconds": pays and pays.curation_seconds,
            "seconds_saved_per_run": pays and pays.seconds_saved,
            "pays_after_runs": pays and pays.runs,
        }
    artifacts = [{**vars(item), "runs": ledger.num_runs(item.key)} for item in ledger.items.values()]
    return {"artifacts": artifacts, "arms": arms}


def _sum(values: Iterable[float | int | None]) -> float | int | None:
    """The sum; none where a part of it is not known."""
    found = list(values)
    return None if None in found else sum(v for v in found if v is not None)


def _mean(values: Iterable[float | int]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _hours(items: Sequence[Item]) -> str:
    unknown = sum(item.gpu_hours is None for item in items)
    text = f"{sum(item.gpu_hours or 0.0 for item in items):,.2f} GPU-hours"
    return text + (f" and those of {unknown} artifacts on device=auto, not known" if unknown else "")


def _flops(items: Sequence[Item]) -> str:
    known = [item.flops for item in items if item.flops is not None]
    return f"{sum(known):.3g} training FLOP" if known else "training FLOP not counted"
