"""What a sweep tells at its end: the table, what was planted and found, the ledger, the plots."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.errors import DbpError
from dbp.lineage import lineage
from dbp.names import name_of
from dbp.pools.glyph_pool import RenderGlyphs
from dbp.pools.rates import rates_by_column
from evaluation.checks.injected import area_under_roc, duplicate_quality
from evaluation.metrics import fine
from evaluation.report import sweep_table as report
from evaluation.report.ledger import CHOICE, Ledger, item_of, ledger_json, ledger_lines
from evaluation.report.plots import draw_once
from evaluation.report.table import aligned, csv_text, json_lines, markdown_table, write
from evaluation.results import without_nan
from evaluation.statistics.analysis import analyse
from evaluation.statistics.comparison import MEAN, Arm, Cell, Run
from slurm.encoder import Encoders, encoder_keys
from slurm.plan import Plan, Point
from slurm.results.arms import write_arms
from slurm.results.publishing import publish_sweep
from slurm.results.written import written_report
from slurm.settings import SweepSettings


def tell(
    plan: Plan,
    store: Store,
    settings: SweepSettings,
    failures: dict[str, str],
    encoders: Encoders,
    out: Path,
    began: float,
) -> int:
    """Print and write the table; return 1 if an arm, or a task of one, failed."""
    out.mkdir(parents=True, exist_ok=True)
    store.say = lambda line: None  # what follows only reads
    arms = write_summary(plan, store, settings, failures, encoders, out)
    broken = ", ".join(arm.name for arm in arms if arm.failures)
    print(
        f"finished{f', with failures in {broken}' if broken else ''}, in "
        f"{time.monotonic() - began:.0f} s; table, plots and results in {out}"
    )
    return 1 if broken else 0


def write_summary(
    plan: Plan, store: Store, settings: SweepSettings, failures: dict[str, str], encoders: Encoders, out: Path
) -> list[Arm]:
    """Print the table; write table.md, table.csv, JSON and the plots into `out`; return the arms."""
    arms = collect_arms(plan, store, failures, settings.control)
    analysis = analyse([arm for arm in arms if arm.runs])
    cells = analysis.cells
    ledger = cost_ledger(plan, store, encoders)
    table = report.sweep_table(arms, cells, {arm: ledger.choosing(arm) for arm in ledger.arms})
    planted, planted_lines = planted_report(plan, store, encoders)
    cost_lines = ledger_lines(ledger)
    pruned_lines = who_is_pruned(plan, store)
    held = held_equal(plan, cells)
    notes = [*planted["notes"], *settings.notes, *held, *analysis.notes, *failure_notes(arms)]
    for note in notes:
        print(note)
    print()
    print(aligned(table))
    finer = {about: report.finer_table(name, analysis.finer) for name, about in fine.NAMES.items()}
    print("\n" + "\n".join([report.members_line(cells), "", *planted_lines, "", *pruned_lines, *cost_lines]))
    text = [
        f"# {settings.name}",
        "",
        *(f"{note}  " for note in notes),
        "",
        f"{markdown_table(table)}\n",
        report.members_line(cells),
        "",
        *(f"{about}, difference to the control:\n\n{markdown_table(more)}\n" for about, more in finer.items()),
        "```",
        *planted_lines,
        "",
        *pruned_lines,
        *cost_lines,
        "```",
        "",
    ]
    publish_sweep(settings.name, plan, store, arms, table.heading, table.texts)
    write(out / "table.md", "\n".join(text))
    told = [*planted["notes"], *settings.notes, *held]
    write_arms(plan, store, settings, out, failures=failures, encoders=encoders, notes=told)
    every = {arm: {**row, **analysis.finer.get(arm, {})} for arm, row in cells.items()}
    write(out / "table.csv", csv_text(report.LONG, report.long_rows(arms, every)))
    results = json_lines(report.result_rows(arms))
    write(out / "results.jsonl", results)
    write(out / "ledger.json", json.dumps(ledger_json(ledger), indent=1))
    write(out / "planted.json", json.dumps(without_nan(planted), indent=1))
    if settings.plots and cells:
        from slurm.results import figures

        keys = sorted(str(store.key(point.last)) for point in plan.points)
        shows = json.dumps([results, keys, table.texts])
        draw_once(out, shows, figures.__file__, lambda: figures.draw_all(plan, store, arms, cells, settings, out))
    return arms


def collect_arms(plan: Plan, store: Store, failures: dict[str, str], control: str) -> list[Arm]:
    """Each arm with its finished runs and the reasons of those that failed."""
    arms: list[Arm] = []
    for label in plan.labels:
        runs: list[Run] = []
        reasons: list[str] = []
        for point in plan.points:
            if point.label != label:
                continue
            entry = store.entry(point.last)
            if entry is None:
                reasons.append(failures.get(str(store.key(point.last)), "unfinished"))
                continue
            found = store.get(point.last)
            runs.append(Run(point.seed, found.results, _facts(point, store)))
            reasons += [f"{failure.task}: {failure.reason}" for failure in found.failures]
        arms.append(Arm(label, runs, plan.control_of(label, control), reasons))
    store.loaded.clear()
    return arms


def _facts(point: Point, store: Store) -> dict[str, Any]:
    trained = store.entry(point.nodes["train"])
    evaluated = store.entry(point.last)
    assert trained is not None
    assert evaluated is not None
    counts = trained.manifest["counts"]
    return {
        **{name: counts[name] for name in ("kept", "samples_seen", "steps", "batch_size", "passes")},
        **{name: counts.get(name) for name in ("train_flops", "undecodable", "draws", "most_draws_of_a_sample")},
        **price_of(trained.manifest, store),
        "seconds": item_of(trained.manifest).seconds + evaluated.manifest["seconds"],
        "keep_key": store.key(point.nodes["select"]),
        "train_key": trained.key,
        "evaluate_key": evaluated.key,
    }


def held_equal(plan: Plan, cells: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    """What a sweep holds equal between its arms, and their order under it, where some choose while they train."""
    stages: list[Any] = [point.nodes["train"].stage for point in plan.points]
    if all(stage.online is None for stage in stages):
        return []
    samples = {stage.samples_seen for stage in stages}
    if len(samples) > 1 or None in samples or len({stage.budget for stage in stages}) > 1:
        return []
    count = f"{samples.pop():,} samples"
    what = (
        f"{count} that are trained on (train.budget=samples). Scoring comes on top: the column FLOP has all of it."
    )
    if stages[0].budget == "flops":
        what = (
            f"the FLOPs of {count} where nothing is chosen (train.budget=flops): forward, backward, scoring, and "
            "a run's part of the reference's vectors. Curation, and what trained the reference, are in the ledger."
        )
    means = {name: row[MEAN].value for name, row in cells.items() if MEAN in row}
    order = " > ".join(f"{name} {100 * means[name]:.1f}" for name in sorted(means, key=lambda name: -means[name]))
    return [f"Equal for all arms: {what}", *([f"Order by mean: {order}."] if order else [])]


def price_of(trained: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """What a run of a sweep cost beside its steps, where it chose while it trained; the reference is shared out."""
    counts, online = trained["counts"], trained["parameters"].get("online")
    if online is None:
        return {}
    shared: float | None = 0
    if (reference := trained["inputs"].get("reference")) is not None:
        whole = store.find(reference["key"]).manifest["counts"]["reference_flops"]
        shared = None if whole is None else whole // online.get("runs", 1)
    return {**{name: counts[name] for name in CHOICE}, "reference_flops": shared}


def who_is_pruned(plan: Plan, store: Store) -> list[str]:
    """The kept rates by each column that the recipe names, of the first finished run of each arm."""
    lines: list[str] = []
    for label in plan.labels:
        nodes = next((p.nodes for p in plan.points if p.label == label and store.entry(p.nodes["select"])), {})
        try:
            found = list(rates_by_column(store, nodes, store.get(nodes["select"]))) if nodes else []
        except DbpError as error:
            # A column changed since the sweep began; the table is printed all the same.
            found = [f"kept rates cannot be shown: {error}"]
        lines += [f"{label}: {found[0]}", *found[1:]] if found else []
    return [*lines, ""] if lines else []


def failure_notes(arms: Sequence[Arm]) -> list[str]:
    """Which arms have runs or tasks that failed."""
    broken = ", ".join(arm.name for arm in arms if arm.failures)
    return [f"With failures: {broken}."] if broken else []


def planted_report(plan: Plan, store: Store, encoders: Encoders) -> tuple[dict[str, Any], list[str]]:
    """What was planted in a glyphs pool, and how much of it dedup and CLIP score found.

    It is counted at the first point that removes near duplicates, in its pool.
    """
    points = [p for p in plan.points if _render(p)]
    if not points:
        return {"notes": []}, []
    point = next((p for p in points if _is_semantic(p)), points[0])
    pool: Pool = store.get(point.nodes["index"])
    render = _render(point)
    folder = store.folder(render) if render else None
    assert folder is not None
    truth = pq.read_table(folder / "truth.parquet").slice(0, pool.num_rows)
    unseen = _unseen(store, encoders.get(point.seed, {}), pool)
    unseen &= store.get(point.nodes["valid"]).mask  # what was held out, dedup did not remove
    found: dict[str, Any] = {"notes": _shares(points), "rows unseen by the encoder": int(unseen.sum())}
    lines = [f"On the {int(unseen.sum()):,} rows that the encoder was not trained on:"]
    if store.entry(point.nodes["score"]):
        values = store.get(point.nodes["score"]).values
        at = unseen & ~np.isnan(values)
        area = area_under_roc(values[at], ~np.array(truth["caption_swapped"].to_pylist())[at])
        found["CLIP score against swapped captions, area under ROC"] = area
        lines.append(f"CLIP score tells true from swapped captions with area under the ROC curve {area:.3f}")
    if _is_semantic(point) and store.entry(point.nodes["dedup"]):
        keep: KeepList = store.get(point.nodes["dedup"])
        twin = np.asarray(store.get(point.nodes["dedup"].inputs["similar"]).twin)
        found["dedup"] = duplicate_quality(truth, ~keep.mask, twin, unseen)
        lines += _quality_lines(found["dedup"], point.config.dedup.epsilon)
    written, more = written_report(points, store, pool, truth)
    if written:
        found["written captions"] = written
        lines += more
    store.loaded.clear()
    return found, lines


def _render(point: Point) -> Node | None:
    """The stage that renders a glyphs pool, if it is one."""
    node = point.nodes["index"].inputs.get("folder")
    return node if node is not None and isinstance(node.stage, RenderGlyphs) else None


def _is_semantic(point: Point) -> bool:
    return name_of(point.config.dedup._target_) == "dedup/semdedup"


def _shares(points: Sequence[Point]) -> list[str]:
    """What was planted in each pool of a sweep, and what it means for the numbers."""
    plans = dict.fromkeys(node.stage.plan for p in points if (node := _render(p)))  # type: ignore[attr-defined]
    return [
        *(
            f"Glyphs pool of {plan.num_pairs:,} pairs. Planted: {plan.exact_copies:.0%} exact copies, "
            f"{plan.reencoded_copies:.0%} re-encoded copies, {plan.swapped_captions:.0%} swapped captions."
            for plan in plans
        ),
        "What wins here depends on what was planted: these rankings do not transfer to web data.",
    ]


def _quality_lines(quality: list[dict[str, Any]], epsilon: float) -> list[str]:
    return [
        f"dedup at epsilon {epsilon}: kind, recall, and share of the removed rows whose twin is of that kind",
        *(
            f"  {row['kind']:<20} recall {_percent(row['recall']):>6} ({row['removed']:,} of "
            f"{row['to remove']:,})   of removed {_percent(row['share of removed']):>6} "
            f"({row['removed rows by twin']:,})"
            for row in quality
        ),
    ]


def _unseen(store: Store, encoder: Mapping[str, str], pool: Pool) -> np.ndarray:
    """Rows of the pool that the trained encoder's keep list does not hold; all without one."""
    unseen = np.ones(pool.num_rows, bool)
    if checkpoint := encoder.get("checkpoint"):
        manifest = json.loads((Path(checkpoint).parent / "manifest.json").read_text())
        keep = KeepList.load(store.find(manifest["inputs"]["keep"]["key"]).folder)
        if keep.pool_digest == pool.digest:
            unseen[keep.rows] = False
    return unseen


def cost_ledger(plan: Plan, store: Store, encoders: Encoders) -> Ledger:
    """The cost of every artifact that the finished runs of a sweep rest on."""
    ledger = Ledger()
    trained = {
        seed: [item_of(e.manifest, "encoder") for e in lineage(store, store.find(key))]
        for seed, files in encoders.items()
        for key in encoder_keys({seed: files})
    }
    for point in plan.points:
        made = [entry for node in point.last.lineage() if (entry := store.entry(node))]
        if any(entry.stage == "evaluate" for entry in made):
            ledger.add(point.label, [item_of(entry.manifest) for entry in made], trained.get(point.seed, ()))
    return ledger


def _percent(share: float | None) -> str:
    return "-" if share is None or np.isnan(share) else f"{share:.1%}"
