"""Xu et al. 2024, MetaCLIP: 26 tasks, DataComp's groups, and the metadata."""

from evaluation.report.paper.catalogue import (
    DATACOMP_COLUMNS,
    LAION_POOL,
    datacomp_measures,
    facts,
    published_weights,
    values,
)
from evaluation.report.paper.published import number, rows
from evaluation.report.paper.tables import Measure, Paper, Row, Table, Want
from evaluation.suites import METACLIP26, MISSING

SAMPLES_SEEN = 12.8e9
MODELS = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-H/14": "ViT-H-14-quickgelu",
    "ViT-bigG/14": "ViT-bigG-14-quickgelu",
}
# OpenCLIP's own weights on LAION-400M: QuickGELU was not theirs.
OPEN_CLIP = {"ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14"}
# Columns that no task of ours has; in the paper's order the rest are those of `METACLIP26`.
OUT = MISSING["metaclip26"]
THRESHOLDS = {"t=20k": 20_000, "t=15k": 15_000, "t=35k": 35_000, "t=170k": 170_000, "t=60k": 60_000}
# Pairs of the pools: before balancing, with at least one match (section 4).
POOLS = {"400M": 1.6e9, "1B": 10.7e9, "2.5B": 10.7e9}


def paper() -> Paper:
    """All that is held of it."""
    return Paper(
        "metaclip",
        "Xu et al. 2024, Demystifying CLIP data",
        (_groups(), _tasks()),
        facts=(
            facts("metaclip_metadata", "Table 1: the metadata's sources"),
            facts("metaclip_counts", "Table 2: entries and matches"),
            facts("metaclip_top_entries", "Table 3: the entries with most matches"),
            facts("metaclip_facts", "Settings and findings"),
        ),
        out_of_scope=(
            f"{', '.join(OUT)}: no set in a known layout, so the mean of 26 has no counterpart.",
            "Their pools of CommonCrawl are not published; another pool is another scale.",
        ),
    )


def _want(model: str, method: str, data: str) -> tuple[Want | None, str]:
    """The run of ours behind a row, or why there is none."""
    if method in ("CLIP", "OpenCLIP"):
        name = MODELS[model] if method == "CLIP" else OPEN_CLIP[model]
        tag = "openai" if method == "CLIP" else "laion400m_e32"
        return Want(("published",), published_weights(name, tag), model=name, weights=(f"{name}:{tag}",)), ""
    if "online" in data:
        return None, "balancing in the data loader is not built here"
    if "unbalanced" in data:
        return Want(
            (), f"slurm/studies/metaclip_threshold.sh {LAION_POOL}", model=MODELS[model], pool_rows=1.6e9,
            samples_seen=SAMPLES_SEEN,
        ), ""  # fmt: skip
    size = data.split()[0].rstrip(",")
    threshold = next((t for name, t in THRESHOLDS.items() if name in data), None)
    if threshold is None:
        threshold = 170_000 if size == "2.5B" else 20_000
    return Want(
        ("metaclip",),
        f"slurm/studies/metaclip_threshold.sh {LAION_POOL}",
        model=MODELS[model],
        pool_rows=12.8e9 if "DataComp" in data else POOLS[size],
        samples_seen=SAMPLES_SEEN,
        at_scale={"select.threshold": threshold},
    ), ""


def _groups() -> Table:
    file = "metaclip_datacomp_groups"
    return Table(
        "table8",
        "Table 8: DataComp's groups",
        datacomp_measures(),
        tuple(
            Row(
                f"{row['model']}: {row['method']}, {row['data']}",
                values(file, row, DATACOMP_COLUMNS),
                *_want(row["model"], row["method"], row["data"]),
                group=row["model"],
            )
            for row in rows(file)
        ),
        order_by=("ImageNet", "Average"),
        note="Seeds move ImageNet of ViT-B/32 by 0.1 points (MetaCLIP).",
    )


def _tasks() -> Table:
    file = "metaclip_zero_shot_26"
    found = rows(file)
    columns = [c for c in found[0] if c not in ("model", "method", "data", "verified", "source")]
    tasks = iter(METACLIP26)
    measures = [Measure("average", METACLIP26, missing=OUT)]
    for column in columns[1:]:
        is_out = column in OUT
        measures.append(
            Measure(column, out_of_scope="no set in a known layout") if is_out else Measure(column, (next(tasks),))
        )
    return Table(
        "tables4to7",
        "Tables 4 to 7: 26 tasks",
        tuple(measures),
        tuple(
            Row(
                f"{row['model']}: {row['method']}, {row['data']}",
                {c: number(file, row, c) for c in columns},
                *_want(row["model"], row["method"], row["data"]),
                group=row["model"],
            )
            for row in found
        ),
        "corrected",
        ("ImageNet",),
        "The same datasets; the paper's splits and prompts are SLIP's and may differ.",
    )
