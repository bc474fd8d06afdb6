"""What a sweep tells at its end: the table, what was planted and found, the ledger, the plots."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.store import Store
from evaluation import report
from evaluation.comparison import Arm, Run, compare
from slurm.plan import SEED, Plan, Point
from slurm.settings import SweepSettings


def write_summary(
    plan: Plan,
    store: Store,
    settings: SweepSettings,
    failures: dict[str, str],
    common: dict[str, Any],
    out: Path,
) -> None:
    """Print the table and write table.md, table.csv, results.jsonl, ledger.md and the plots into `out`."""
    arms = collect_arms(plan, store, failures, settings.control)
    cells = compare([arm for arm in arms if arm.runs])
    heading, rows = report.table_rows(arms, cells, settings.control)
    planted, planted_lines = planted_report(plan, store, common)
    ledger, ledger_lines = cost_ledger(plan, store, common)
    notes = [*planted["notes"], *settings.notes, *verdict_notes(arms, cells)]
    for note in notes:
        print(note)
    print()
    report.print_table(heading, rows)
    print("\n" + "\n".join([report.members_line(cells), "", *planted_lines, "", *ledger_lines]))
    text = [
        f"# {settings.name}",
        "",
        *(f"{note}  " for note in notes),
        "",
        report.markdown(heading, rows),
        report.members_line(cells),
        "",
        "```",
        *planted_lines,
        "",
        *ledger_lines,
        "```",
        "",
    ]
    report.write(out / "table.md", "\n".join(text))
    report.write(out / "table.csv", report.csv_text(arms, cells))
    report.write(out / "results.jsonl", report.json_lines(arms))
    report.write(out / "ledger.json", json.dumps(ledger, indent=1))
    report.write(out / "planted.json", json.dumps(planted, indent=1, default=float))
    if settings.plots and cells:
        from slurm.figures import draw_all

        draw_all(plan, store, arms, cells, settings, out)


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
        arms.append(Arm(label, runs, control_of(plan, label, control), reasons))
    store.loaded.clear()
    return arms


def control_of(plan: Plan, label: str, control: str) -> str | None:
    """The control's label at the same point of the axes that both arms read."""
    here = next(point for point in plan.points if point.label == label)
    for point in plan.points:
        shared = (set(point.axes) & set(here.axes)) - {SEED}
        if point.arm == control and all(point.axes[a] == here.axes[a] for a in shared):
            return point.label
    return None


def _facts(point: Point, store: Store) -> dict[str, Any]:
    trained = store.entry(point.nodes["train"])
    evaluated = store.entry(point.last)
    assert trained is not None
    assert evaluated is not None
    counts = trained.manifest["counts"]
    return {
        "kept": counts["kept"],
        "samples_seen": counts["samples_seen"],
        "steps": counts["steps"],
        "batch_size": counts["batch_size"],
        "passes": counts["passes"],
        "train_flops": counts.get("train_flops"),
        "undecodable": counts.get("undecodable"),
        "seconds": trained.manifest["seconds"] + evaluated.manifest["seconds"],
        "keep_key": store.key(point.nodes["select"]),
        "train_key": trained.key,
        "evaluate_key": evaluated.key,
    }


def verdict_notes(arms: list[Arm], cells: dict[str, Any]) -> list[str]:
    """What a reader must know before reading the numbers."""
    least = min((len(arm.runs) for arm in arms if arm.runs), default=0)
    notes = []
    if least < 2:
        notes.append(
            "One seed an arm: checkpoints can be told apart, methods cannot. Nothing is bold."
        )
    else:
        notes.append(
            f"Bold (**): the 95 % interval of the difference to the control, over test pictures and "
            f"{least} or more seeds, excludes nil; not corrected for the number of cells."
        )
    broken = [arm.name for arm in arms if arm.failures]
    if broken:
        notes.append(f"With failures: {', '.join(broken)}.")
    return notes


def planted_report(
    plan: Plan, store: Store, common: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What was planted in a glyphs pool, and how much of it dedup and CLIP score found."""
    from dbp.config import build
    from dbp.data.glyph_pool import GlyphPool

    point = next(
        (p for p in plan.points if p.config.dedup._target_.endswith("SemDeDup")), plan.points[0]
    )
    pool_config = build(point.config.pool, path="pool")
    if not isinstance(pool_config, GlyphPool):
        return {"notes": []}, []
    import pyarrow.parquet as pq

    from evaluation.planted import area_under_roc, duplicate_quality

    shown = pool_config.plan
    notes = [
        f"Glyphs pool of {shown.num_pairs:,} pairs. Planted: {shown.exact_copies:.0%} exact copies, "
        f"{shown.reencoded_copies:.0%} re-encoded copies, {shown.swapped_captions:.0%} swapped captions.",
        "What wins here depends on what was planted: these rankings do not transfer to web data.",
    ]
    folder = store.folder(pool_config.truth())
    assert folder is not None
    truth = pq.read_table(folder / "truth.parquet").slice(
        0, store.get(point.nodes["index"]).num_rows
    )
    unseen = _unseen(store, common, truth.num_rows)
    found: dict[str, Any] = {"notes": notes, "rows unseen by the encoder": int(unseen.sum())}
    lines = [f"On the {int(unseen.sum()):,} rows that the encoder was not trained on:"]
    scored = store.entry(point.nodes["score"])
    if scored:
        values = store.get(point.nodes["score"]).values
        at = unseen & ~np.isnan(values)
        area = area_under_roc(values[at], ~np.array(truth["caption_swapped"].to_pylist())[at])
        found["CLIP score against swapped captions, area under ROC"] = area
        lines.append(
            f"CLIP score tells true from swapped captions with area under the ROC curve {area:.3f}"
        )
    deduped = store.entry(point.nodes["dedup"])
    if deduped and point.config.dedup._target_.endswith("SemDeDup"):
        keep: KeepList = store.get(point.nodes["dedup"])
        decisions = keep.decisions.sort_by("row")
        removed = ~keep.mask
        twin = decisions["related_row"].fill_null(-1).to_numpy()
        quality = duplicate_quality(truth, removed, twin, unseen)
        found["dedup"] = quality
        epsilon = point.config.dedup.epsilon
        lines.append(
            f"dedup at epsilon {epsilon}: kind, recall, and share of the removed rows whose twin is of that kind"
        )
        for row in quality:
            lines.append(
                f"  {row['kind']:<20} recall {row['recall']:6.1%} ({row['removed']:,} of "
                f"{row['to remove']:,})   of removed {row['share of removed']:6.1%} "
                f"({row['removed rows by twin']:,})"
            )
    store.loaded.clear()
    return found, lines


def _unseen(store: Store, common: dict[str, Any], num_rows: int) -> np.ndarray:
    """Rows of the pool that the trained encoder's keep list does not hold; all without one."""
    unseen = np.ones(num_rows, bool)
    checkpoint = common.get("encoder.score.checkpoint")
    if checkpoint:
        manifest = json.loads((Path(checkpoint).parent / "manifest.json").read_text())
        keep = KeepList.load(store.find(manifest["inputs"]["keep"]["key"]).folder)
        unseen[keep.rows] = False
    return unseen


def cost_ledger(
    plan: Plan, store: Store, common: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Seconds of every artifact that the sweep rests on, each once, with the number of runs that share it."""
    rows: dict[str, dict[str, Any]] = {}

    def add(entry: Any, purpose: str) -> None:
        row = rows.setdefault(
            entry.key,
            {
                "stage": entry.stage,
                "key": entry.key,
                "seconds": entry.manifest["seconds"],
                "cpu_seconds": entry.manifest["cpu_seconds"],
                "bytes": entry.bytes,
                "runs": 0,
                "for": purpose,
            },
        )
        row["runs"] += 1

    if checkpoint := common.get("encoder.score.checkpoint"):
        from dbp.lineage import lineage

        for entry in lineage(store, store.find(Path(checkpoint).parent.name)):
            add(entry, "encoder")
    for point in plan.points:
        for node in point.last.lineage():
            if entry := store.entry(node):
                add(entry, "arms")
    by_stage: dict[tuple[str, str], list[float]] = {}
    for row in rows.values():
        total = by_stage.setdefault((row["for"], row["stage"]), [0, 0.0, 0.0])
        total[0] += 1
        total[1] += row["seconds"]
        total[2] += row["cpu_seconds"]
    whole = sum(row["seconds"] for row in rows.values())
    lines = [
        f"Cost, each artifact once: {whole:,.0f} s in all",
        f"  {'for':<8} {'stage':<10} {'made':>5} {'seconds':>9} {'cpu s':>9} {'share':>6}",
    ]
    for (purpose, stage), (count, seconds, cpu) in by_stage.items():
        lines.append(
            f"  {purpose:<8} {stage:<10} {count:>5,.0f} {seconds:>9,.1f} {cpu:>9,.1f} "
            f"{seconds / max(whole, 1e-9):>6.1%}"
        )
    return list(rows.values()), lines
