"""Our evaluated runs, read from the store: what each rests on, and what it found.

The lineage of an evaluation leads to its training, keep list, clusters and pool; so the store alone is
enough, wherever it was moved to. What is no longer there is named, and its run left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbp.engine.store import Entry, Store
from dbp.errors import DbpError, StoreError, WorldError, nearest
from dbp.lineage import lineage, score_name
from dbp.names import PLACES, name_of, word_of
from evaluation.results import Result, load_results

# What a stage does to the rows, by its registered name; the rest goes by its own name.
STEPS: dict[str, tuple[str, ...]] = {
    "dedup/none": (),
    "filter/none": (),
    "select/none": (),
    "filter/threshold": ("clip_score",),
    "filter/top_fraction": ("clip_score",),
    "filter/score_column": ("clip_score",),
    "filter/datacomp_basic": ("basic",),
    "select/metaclip_threshold": ("metaclip",),
}
KNOWN_STEPS = sorted(
    {
        step
        for name in PLACES
        if name.partition("/")[0] in ("dedup", "filter", "select")
        for step in STEPS.get(name, (name.partition("/")[2],))
    }
)
CHAIN = ("dedup", "filter", "select")


@dataclass(frozen=True)
class OurRun:
    """One trained and evaluated model, or published weights that were evaluated."""

    steps: tuple[str, ...]  # what its keep list went through, as in `tables.Want`
    pool_kind: str  # `web`, `glyphs` or `rehearsal`; `published` for weights of others
    pool: str  # identity of the pool
    pool_rows: int  # rows of it
    num_dedup: int  # rows that dedup left
    num_kept: int  # rows that it was trained on
    settings: Mapping[str, Any]  # of its stages, as `select.temperature`
    model: str  # name of the architecture
    samples_seen: int | None  # in training, if known
    seed: int  # of the training
    limit: int | None  # what each test set was cut to, if it was
    alike: str  # equal for runs that differ in the seed alone
    # By task and protocol, without outcomes, and the file that each lies in
    results: Mapping[tuple[str, str], tuple[Result, Path]]
    key: str  # of the training, or the name of the weights
    evaluations: tuple[str, ...]  # keys of the evaluations


@dataclass
class OurRuns:
    """All that was found, and what was left out."""

    runs: list[OurRun] = field(default_factory=list)  # in the order of their evaluations
    notes: list[str] = field(default_factory=list)  # what was left out, and why


def read_runs(store: Store, words: Sequence[str] = ()) -> OurRuns:
    """Read evaluated runs.

    Args:
        store: Where artifacts lie.
        words: Names of sweeps, or keys of artifacts that the evaluations rest on; none for all.

    Raises:
        StoreError: A word names neither.
    """
    found = OurRuns()
    wanted = _keys(store, words) if words else None
    chains: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in store.entries():
        if entry.stage != "evaluate":
            continue
        above = {e.key: e for e in lineage(store, entry)}
        if wanted is not None and not wanted & set(above):
            continue
        made = entry.manifest["inputs"]["checkpoint"]["key"]
        limits = [entry.manifest["parameters"].get(name) for name in ("limit", "max_templates")]
        chains.setdefault((made, *limits), []).append(entry)
    for evaluations in chains.values():
        try:
            found.runs.append(_run(store, evaluations))
        except (DbpError, KeyError, OSError) as error:
            keys = ", ".join(entry.key[:12] for entry in evaluations)
            why = f"{error.args[0]} is not recorded" if isinstance(error, KeyError) else str(error)
            found.notes.append(f"Left out: evaluation {keys}: {why}")
    if wanted is None:
        _read_published(store, found)
    return found


def _keys(store: Store, words: Sequence[str]) -> set[str]:
    """The keys that words name."""
    keys: set[str] = set()
    sweeps = store.runs / "sweeps"
    for word in words:
        file = sweeps / word / "results.jsonl"
        if file.is_file():
            keys |= set(re.findall(r'"evaluate_key": "([0-9a-f]+)"', file.read_text()))
            continue
        try:
            keys.add(store.find(word).key)
        except StoreError as error:
            names = sorted(path.parent.name for path in sweeps.glob("*/results.jsonl"))
            raise StoreError(
                f"{word!r} is neither a sweep with results in {sweeps} nor the key of an artifact "
                f"({error}). {nearest(word, names) if names else 'There is no sweep with results.'}"
            ) from None
    return keys


def _run(store: Store, evaluations: Sequence[Entry]) -> OurRun:
    """A run from its evaluations, which differ in the suite."""
    trained = store.find(evaluations[0].manifest["inputs"]["checkpoint"]["key"])
    keep = store.find(trained.manifest["inputs"]["keep"]["key"])
    pool = store.find(trained.manifest["inputs"]["pool"]["key"])
    chain = {keep.stage: keep}  # what it went through, from the last stage to the first
    while above := keep.manifest["inputs"].get("rows"):
        keep = store.find(above["key"])
        chain[keep.stage] = keep
    chain = {stage: chain[stage] for stage in reversed(chain) if stage in CHAIN}
    counts, parameters = trained.manifest["counts"], trained.manifest["parameters"]
    settings, steps = {}, []
    for entry in chain.values():
        made = entry.manifest["made_by"]
        scores = {n: up["key"] for n, up in entry.manifest["inputs"].items() if n.partition(".")[0] == "scores"}
        scorers = {n: score_name(store.find(key)) for n, key in scores.items()}
        steps += _steps(made, scorers)
        settings |= _flat(entry.stage, made) | _inputs(store, entry)
    settings |= {"train.epochs": parameters.get("epochs"), "model": counts["model"]}
    limit = evaluations[0].manifest["parameters"].get("limit")
    identity, pool_rows = str(pool.manifest.get("digest") or pool.key), int(pool.manifest["counts"]["rows"])
    same: dict[str, Any] = {
        e.stage: {name: value for name, value in e.manifest["parameters"].items() if name != "seed"}
        for e in (*chain.values(), trained)
    }
    if "dedup" in chain:
        same["dedup"] = chain["dedup"].manifest["inputs"]
    same |= {"pool": identity, "limit": limit, "settings": settings}
    return OurRun(
        steps=tuple(steps),
        pool_kind=_kind(pool),
        pool=identity,
        pool_rows=pool_rows,
        num_dedup=int(chain["dedup"].manifest["counts"]["kept"]) if "dedup" in chain else pool_rows,
        num_kept=int(counts["kept"]),
        settings=settings,
        model=str(counts["model"]),
        samples_seen=int(counts["samples_seen"]),
        seed=int(parameters["seed"]),
        limit=limit,
        alike=repr(sorted((name, repr(value)) for name, value in same.items())),
        results=_results(entry.folder / "results.jsonl" for entry in evaluations),
        key=trained.key,
        evaluations=tuple(entry.key for entry in evaluations),
    )


def _steps(made: Mapping[str, Any], scorers: Mapping[str, str]) -> tuple[str, ...]:
    """What a stage does to the rows; `scorers` names the scores that it reads, by input."""
    if "filters" in made:
        return tuple(step for inner in made["filters"] for step in _steps(inner, scorers))
    target = str(made["_target_"])
    steps = STEPS.get(name_of(target), (word_of(target),))
    scorer = scorers.get(f"scores.{made.get('score')}") or scorers.get("scores")
    return (scorer,) if steps == ("clip_score",) and scorer else steps


def _flat(stage: str, made: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stage by full name, those of filters inside it included."""
    found = {f"{stage}.{n}": v for n, v in made.items() if n not in ("_target_", "filters")}
    for item in made.get("filters", ()):
        if isinstance(item, Mapping):
            found |= _flat(stage, item)
    return found


def _inputs(store: Store, entry: Entry) -> dict[str, Any]:
    """Numbers of clusters and encoders of a stage, from what it rests on."""
    found: dict[str, Any] = {}
    for name, upstream in entry.manifest["inputs"].items():
        if name in ("similar", "clusters"):
            above, use = (store.find(upstream["key"]), "dedup") if name == "similar" else (entry, "cluster")
            clusters = store.find(above.manifest["inputs"]["clusters"]["key"])
            while "clusters" not in clusters.manifest["counts"]:
                clusters = store.find(clusters.manifest["inputs"]["clusters"]["key"])
            found[f"{use}.num_clusters"] = clusters.manifest["counts"]["clusters"]
            found[f"encoder.{use}"] = _encoder(store, clusters)
        elif "score" in name:
            found["encoder.score"] = _encoder(store, store.find(upstream["key"]))
    if column := entry.manifest["made_by"].get("column"):
        found["encoder.score"] = column
    return found


def _encoder(store: Store, entry: Entry) -> str:
    """What made the vectors or scores that an artifact rests on, as words to look for names in."""
    made = entry.manifest["made_by"]
    if column := made.get("column"):
        return str(column)
    if encoder := entry.manifest["parameters"].get("encoder"):
        # Names, and neither digests nor files.
        words = [v for v in encoder.values() if isinstance(v, str) and len(v) < 60]
        return " ".join(words)
    for name in ("image", "text"):
        if upstream := entry.manifest["inputs"].get(name):
            return _encoder(store, store.find(upstream["key"]))
    return str(made["_target_"])


def _kind(pool: Entry) -> str:
    upstream = {up["stage"] for up in pool.manifest["inputs"].values()}
    if "render" in upstream:
        return "glyphs"
    made = name_of(pool.manifest["made_by"]["_target_"])
    return "rehearsal" if made == "index/rehearsal" else "web"


def _results(files: Iterable[Path]) -> dict[tuple[str, str], tuple[Result, Path]]:
    """Results by task and protocol; of two evaluations of one task the later file's."""
    found = {}
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        for result in load_results(file, with_outcomes=False):
            found[result.task, result.protocol] = (result, file)
    return found


def _read_published(store: Store, found: OurRuns) -> None:
    """Add the evaluations of published weights, whose names hold their tag."""
    others = 0
    for file in sorted((store.runs / "evaluations").glob("*/results.jsonl")):
        by_name: dict[tuple[str, int | None], dict[tuple[str, str], tuple[Result, Path]]] = {}
        try:
            for result in load_results(file, with_outcomes=False):
                mine = by_name.setdefault((result.model, result.limit), {})
                mine[result.task, result.protocol] = (result, file)
        except WorldError as error:
            found.notes.append(f"Left out: {error}")
            continue
        others += sum(":" not in name for name, _ in by_name)
        found.runs += [
            OurRun(
                steps=("published",), pool_kind="published", pool=name, pool_rows=0, num_dedup=0,
                num_kept=0, settings={"model": name.partition(":")[0]}, model=name,
                samples_seen=None, seed=0, limit=limit, alike=f"{name} {limit}", results=results,
                key=name, evaluations=(str(file.parent.name),),
            )
            for (name, limit), results in by_name.items()
            if ":" in name
        ]  # fmt: skip
    if others:
        found.notes.append(
            f"Left out: {others} evaluations of weights from elsewhere, of which nothing says how they were "
            "trained."
        )
