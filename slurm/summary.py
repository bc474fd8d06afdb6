"""What a sweep tells at its end: the table, what was planted and found, the ledger, the plots."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.lineage import lineage
from dbp.store import Store
from evaluation import report
from evaluation.comparison import Arm, Cell, Run, compare
from evaluation.results import without_nan
from slurm.plan import Plan, Point
from slurm.settings import SweepSettings


def write_summary(
    plan: Plan,
    store: Store,
    settings: SweepSettings,
    failures: dict[str, str],
    encoder: Mapping[str, str],
    out: Path,
) -> list[Arm]:
    """Print the table; write table.md, table.csv, JSON and the plots into `out`; return the arms."""
    arms = collect_arms(plan, store, failures, settings.control)
    cells = compare([arm for arm in arms if arm.runs])
    heading, rows = report.table_rows(arms, cells, settings.control)
    planted, planted_lines = planted_report(plan, store, encoder)
    ledger, ledger_lines = cost_ledger(plan, store, encoder)
    notes = [*planted["notes"], *settings.notes, *verdict_notes(arms, cells, settings.control)]
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
    report.write(out / "planted.json", json.dumps(without_nan(planted), indent=1))
    if settings.plots and cells:
        from slurm.figures import draw_all

        draw_all(plan, store, arms, cells, settings, out)
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


def verdict_notes(arms: list[Arm], cells: dict[str, dict[str, Cell]], control: str) -> list[str]:
    """What a reader must know before reading the numbers."""
    shown = [cell for by_task in cells.values() for cell in by_task.values()]
    notes = []
    if any(cell.difference_interval for cell in shown):
        notes.append(
            "Bold (**): the 95 % interval of the difference to the control, over test pictures and "
            "seeds, excludes nil; not corrected for the number of cells."
        )
    elif any(cell.difference is not None for cell in shown):
        notes.append(
            "One seed an arm: checkpoints can be told apart, methods cannot. Nothing is bold."
        )
    elif len(arms) > 1:
        notes.append(
            f"No differences: no other arm has a finished control {control!r} at its point of the axes "
            "(sweep.control names the arm). Nothing is bold."
        )
    broken = [arm.name for arm in arms if arm.failures]
    if broken:
        notes.append(f"With failures: {', '.join(broken)}.")
    return notes


def planted_report(
    plan: Plan, store: Store, encoder: Mapping[str, str]
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

    pools = {p.nodes["index"].inputs["folder"].stage: None for p in plan.points if _glyphs(p)}
    shares = [
        f"Glyphs pool of {shown.num_pairs:,} pairs. Planted: {shown.exact_copies:.0%} exact copies, "
        f"{shown.reencoded_copies:.0%} re-encoded copies, {shown.swapped_captions:.0%} swapped captions."
        for shown in (stage.plan for stage in pools)
    ]
    notes = [
        *shares,
        "What wins here depends on what was planted: these rankings do not transfer to web data.",
    ]
    folder = store.folder(pool_config.truth())
    assert folder is not None
    truth = pq.read_table(folder / "truth.parquet").slice(
        0, store.get(point.nodes["index"]).num_rows
    )
    unseen = _unseen(store, encoder, store.get(point.nodes["index"]))
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
            recall = f"{row['recall']:.1%}" if row["to remove"] else "-"
            lines.append(
                f"  {row['kind']:<20} recall {recall:>6} ({row['removed']:,} of "
                f"{row['to remove']:,})   of removed {row['share of removed']:6.1%} "
                f"({row['removed rows by twin']:,})"
            )
    store.loaded.clear()
    return found, lines


def _unseen(store: Store, encoder: Mapping[str, str], pool: Pool) -> np.ndarray:
    """Rows of the pool that the trained encoder's keep list does not hold; all without one."""
    unseen = np.ones(pool.num_rows, bool)
    if checkpoint := encoder.get("checkpoint"):
        manifest = json.loads((Path(checkpoint).parent / "manifest.json").read_text())
        keep = KeepList.load(store.find(manifest["inputs"]["keep"]["key"]).folder)
        if keep.pool_digest == pool.digest:
            unseen[keep.rows] = False
    return unseen


def cost_ledger(
    plan: Plan, store: Store, encoder: Mapping[str, str]
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

    if checkpoint := encoder.get("checkpoint"):
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
