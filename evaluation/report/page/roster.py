"""Which runs stand under which arm: as a sweep wrote it, or told from the keys of artifacts.

A sweep writes `arms.json` into its folder when it begins and when it ends, so that arms that are not
finished are known, too. Runs that are named by keys are put together by what made them: equal settings but
for seeds are one arm, named by its method and by the settings in which arms of that method differ.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dbp.engine.disk import replace_json
from dbp.engine.store import Entry
from dbp.errors import WorldError
from dbp.lineage import score_name
from dbp.names import name_of, word_of

FILE = "arms.json"
NARROWING = ("valid", "hold_out", "dedup", "filter", "select")
METHODS = {
    "select/clip_score": "clip score",
    "select/none": "no selection",
    "select/metaclip_threshold": "metaclip",
}  # the others by their registered name
UNTOLD = ("seed", "budget")  # of a stage's parameters: what is no difference of methods


@dataclass(frozen=True)
class NamedRun:
    """One seed of an arm: the keys of what it made, and why it is not finished, if it is not."""

    seed: int
    keep: str | None = None
    train: str | None = None
    evaluate: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class NamedArm:
    """An arm: `method` is its name without the budget, so that its points make one curve."""

    name: str
    method: str
    control: str | None = None
    runs: tuple[NamedRun, ...] = ()


@dataclass(frozen=True)
class Roster:
    """The arms of one report."""

    title: str  # of the page
    arms: tuple[NamedArm, ...]  # in the order that they are shown
    notes: tuple[str, ...] = ()  # what a reader must know first
    encoders: tuple[str, ...] = ()  # keys of the runs whose checkpoints curation used, if a sweep trained them
    columns: Mapping[str, str] = field(default_factory=dict)  # key of a pool's column -> its name; of a sweep

    def save(self, folder: Path) -> None:
        """Write it in place of what is there."""
        replace_json(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Roster":
        """Read what a sweep wrote; from its results alone where it wrote no arms.

        Raises:
            WorldError: Neither file is there, or one is not ours.
        """
        file = folder / FILE
        try:
            if not file.exists():
                return cls(folder.name, tuple(_from_results(folder / "results.jsonl")))
            said = json.loads(file.read_text())
            arms = [
                NamedArm(**{**arm, "runs": tuple(NamedRun(**run) for run in arm["runs"])}) for arm in said["arms"]
            ]
            one = said.get("encoder")  # of a file from before there were several
            encoders = tuple(said.get("encoders", [one] if one else []))
            return cls(said["title"], tuple(arms), tuple(said["notes"]), encoders, said.get("columns", {}))
        except FileNotFoundError:
            raise WorldError(
                f"{folder} holds neither {FILE} nor results.jsonl, so its arms are not known. Run "
                "dbp sweep again with the same settings: what is finished is reused."
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise WorldError(
                f"the arms in {folder} cannot be read ({type(error).__name__}: {error}). Run dbp sweep "
                "again with the same settings: it writes them anew."
            ) from error


def joined(rosters: Sequence[Roster]) -> Roster:
    """Several rosters as one; arms of one name are told apart by their sweep."""
    if len(rosters) == 1:
        return rosters[0]
    names = [arm.name for roster in rosters for arm in roster.arms]
    arms: list[NamedArm] = []
    for roster in rosters:
        new = {
            arm.name: arm.name if names.count(arm.name) == 1 else f"{arm.name} ({roster.title})"
            for arm in roster.arms
        }
        arms += [replace(arm, name=new[arm.name], control=new.get(arm.control or "")) for arm in roster.arms]
    notes = dict.fromkeys(note for roster in rosters for note in roster.notes)
    encoders = dict.fromkeys(key for roster in rosters for key in roster.encoders)
    columns = {key: name for roster in rosters for key, name in roster.columns.items()}
    return Roster(" + ".join(r.title for r in rosters), tuple(arms), tuple(notes), tuple(encoders), columns)


def _from_results(file: Path) -> list[NamedArm]:
    runs: dict[str, dict[int, NamedRun]] = defaultdict(dict)
    for line in file.read_text().splitlines():
        said = json.loads(line)
        keys = (said["keep_key"], said["train_key"], said["evaluate_key"])
        runs[said["arm"]][said["seed"]] = NamedRun(said["seed"], *keys)
    return [NamedArm(name, name, None, tuple(found.values())) for name, found in runs.items()]


@dataclass
class _Told:
    """A run that a key named, with the settings of all that made it."""

    run: NamedRun
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    kept: int = 0


def from_keys(found: Mapping[str, Entry], named: Sequence[Entry]) -> Roster:
    """Put the keep lists, checkpoints and evaluations that the user named together into arms."""
    arms: dict[str, list[_Told]] = defaultdict(list)
    for one in (_tell(found, entry) for entry in named):
        arms[json.dumps([one.method, one.kept, one.settings], sort_keys=True)].append(one)
    made: list[tuple[NamedArm, _Told]] = []
    for first, *runs in arms.values():
        others = [one for one, *_ in arms.values() if one.method == first.method]
        method = " ".join([first.method, *_differing(first, others)])
        fractions = {one.kept for one in others}
        name = f"{method}, {first.kept:,} kept" if len(fractions) > 1 else method
        if any(arm.name == name for arm, _ in made):  # told apart by no setting of its own
            name = f"{name} ({(first.run.evaluate or first.run.train or first.run.keep or '')[:8]})"
        made.append((NamedArm(name, method, None, tuple(one.run for one in (first, *runs))), first))
    chance = [(arm, first) for arm, first in made if first.method == "uniform"]
    with_control = []
    for arm, first in made:
        alike = [
            other.name
            for other, one in chance
            if one.kept == first.kept and _training(one) == _training(first) and other != arm
        ]
        with_control.append(replace(arm, control=alike[0] if len(alike) == 1 else None))
    return Roster("runs " + ", ".join(e.key[:8] for e in named[:3]), tuple(with_control))


def _training(told: _Told) -> dict[str, Any]:
    return {k: v for k, v in told.settings.items() if k.startswith(("train.", "index."))}


def _differing(one: _Told, others: Sequence[_Told]) -> list[str]:
    """The settings, but those of the budget, that tell an arm from others of its method."""
    values: dict[str, set[str]] = defaultdict(set)
    for name, value in ((n, v) for other in others for n, v in other.settings.items()):
        values[name].add(str(value))
    scalar = (str, int, float, bool, type(None))
    names = [n for n in sorted(values) if len(values[n]) > 1 and isinstance(one.settings.get(n), scalar)]
    return [f"{n.rpartition('.')[2]}={one.settings[n]}" for n in names if n in one.settings][:4]


def _tell(found: Mapping[str, Entry], entry: Entry) -> _Told:
    evaluate = entry if entry.stage == "evaluate" else None
    train = entry if entry.stage == "train" else _input(found, evaluate, "checkpoint")
    keep = entry if entry.stage in NARROWING else _input(found, train, "keep")
    settings: dict[str, Any] = {}
    for one in [e for e in (keep, train, evaluate) if e is not None]:
        for above in ancestors(found, one):
            settings |= {f"{above.stage}.{name}": value for name, value in _told(above)}
            settings |= {f"{above.stage}.{name}": scored for name, scored in _scores(found, above)}
    made = name_of(keep.manifest.get("made_by", {}).get("_target_", "")) if keep else ""
    word = METHODS.get(made, word_of(made))
    if keep and made == "select/clip_score" and (score := _input(found, keep, "scores")):
        word = word if score_name(score) == "clip_score" else f"top {score_name(score)}"
    seed = train.manifest["parameters"].get("seed", 0) if train else 0
    problem = None
    if evaluate is None:
        problem = "not evaluated" if train else "not trained: a keep list alone"
    run = NamedRun(int(seed), *(e and e.key for e in (keep, train, evaluate)), problem=problem)
    kept = keep.manifest["counts"].get("kept", 0) if keep else 0
    return _Told(run, word or "gone", settings, int(kept))


def _scores(found: Mapping[str, Entry], entry: Entry) -> list[tuple[str, str]]:
    """What made each score that an artifact rests on, by the name of the input; arms that read others differ."""
    names = [n for n in entry.manifest["inputs"] if n.partition(".")[0] == "scores"]
    scores = [(n, score) for n in names if (score := _input(found, entry, n))]
    return [
        (n, json.dumps([name_of(score.manifest["made_by"]["_target_"]), dict(_told(score))], sort_keys=True))
        for n, score in scores
    ]


def _told(entry: Entry) -> list[tuple[str, Any]]:
    """The settings of an artifact that may tell methods apart, one level deep."""
    if entry.stage in ("sets", "tasks", "evaluate"):
        return []
    flat: list[tuple[str, Any]] = []
    for name, value in entry.manifest["parameters"].items():
        inner = value.items() if isinstance(value, dict) and name not in UNTOLD else [(None, value)]
        flat += [(f"{name}.{n}" if n else name, v) for n, v in inner if n not in UNTOLD]
    return [(name, value) for name, value in flat if name not in UNTOLD]


def _input(found: Mapping[str, Entry], entry: Entry | None, name: str) -> Entry | None:
    above = entry.manifest["inputs"].get(name) if entry else None
    return found.get(above["key"]) if above else None


def ancestors(found: Mapping[str, Entry], entry: Entry) -> list[Entry]:
    """The artifacts that one rests on, inputs first, itself last; those that are gone are left out."""
    seen: dict[str, Entry] = {}

    def visit(current: Entry) -> None:
        for above in current.manifest["inputs"].values():
            if above["key"] not in seen and above["key"] in found:
                visit(found[above["key"]])
        seen[current.key] = current

    visit(entry)
    return list(seen.values())


def missing_inputs(found: Mapping[str, Entry], entry: Entry) -> list[str]:
    """What an artifact, or what it rests on, names as an input and the store no longer holds."""
    gone: dict[str, None] = {}
    for one in ancestors(found, entry):
        for name, above in one.manifest["inputs"].items():
            if above["key"] not in found:
                gone[f"{name} {above['key'][:12]} of {one.stage} {one.key[:12]}"] = None
    return list(gone)
