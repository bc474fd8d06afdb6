"""Gadre et al. 2023, DataComp: filtering baselines at four scales, and published sets."""

import re
from dataclasses import dataclass, field
from typing import Any

from evaluation.report.paper.catalogue import (
    DATACOMP_COLUMNS,
    WEB_POOL,
    count,
    datacomp_measures,
    facts,
    published_weights,
    values,
)
from evaluation.report.paper.published import rows
from evaluation.report.paper.tables import Paper, Row, Table, Want

MODELS = {"small": "ViT-B-32", "medium": "ViT-B-32", "large": "ViT-B-16", "xlarge": "ViT-L-14"}
PRESETS = {"ViT-B-32": "vit_b32", "ViT-B-16": "vit_b16", "ViT-L-14": "vit_l14"}


@dataclass(frozen=True)
class Baseline:
    """A filter of DataComp by settings of ours.

    Args:
        steps: As in `Want`.
        settings: On the command line.
        keep: Fraction of the pool, where the filter names one.
        must: Settings that a run must have at any scale.
        score: Whose score it is, `b32` or `l14`.
    """

    steps: tuple[str, ...]
    settings: str
    keep: float | None = None
    must: dict[str, Any] = field(default_factory=dict)
    score: str | None = None


BASIC = Baseline(
    ("basic",),
    "filter=datacomp_basic filter.language=fasttext:LID.bin select=none",
    must={"filter.min_words": 3, "filter.min_characters": 6, "filter.min_side": 200},
)
TEXT = Baseline(("text_based",), "filter=text_based filter.language=fasttext:LID.bin filter.ids=IDS select=none")
IMAGE = Baseline(
    ("image_based",),
    "filter=image_based filter.language=fasttext:LID.bin filter.centroids=CENTROIDS.npy "
    "filter.targets=TARGETS.npy select=none",
)
LAION2B = Baseline(
    ("laion2b",),
    "filter=laion2b filter.language=cld3 select=none",
    must={"filter.minimum": 0.28},
)
NO_FILTER = Baseline((), "select=none")


def _top(score: str, fraction: float) -> Baseline:
    """The best fraction of the pool by a score."""
    return Baseline(
        ("clip_score",),
        f"score=datacomp_{score} select=top_score budget.of=pool budget.keep_fraction={fraction:g}",
        fraction,
        score=score,
    )


def _image_and(score: str) -> Baseline:
    """The best 30 % by a score that are near ImageNet, too."""
    column = f"filter.filters.0.column=clip_{score}_similarity_score "
    return Baseline(
        ("clip_score", "image_based"),
        f"filter=image_based_and_clip_l14 {column if score == 'b32' else ''}"
        "filter.filters.1.centroids=CENTROIDS.npy filter.filters.1.targets=TARGETS.npy select=none",
        score=score,
    )


# Table 3's names.
BASELINES = {
    "No filtering": NO_FILTER,
    "Basic filtering": BASIC,
    "Text-based": TEXT,
    "Image-based": IMAGE,
    "LAION-2B filtering": LAION2B,
    "CLIP score (L/14 30%)": _top("l14", 0.3),
    "Image-based and CLIP score (L/14 30%)": _image_and("l14"),
}
# Tables 25 to 28 call the same things otherwise.
OTHER_NAMES = {
    "English (fasttext), caption length, and image size": BASIC,
    "Text-based clustering (ImageNet21k)": TEXT,
    "Image-based clustering (ImageNet1k)": IMAGE,
    "CLIP B32 threshold at 0.28 + English filter": LAION2B,
    "Intersect IN1k image clustering and CLIP B32 score top 30%": _image_and("b32"),
    "Intersect IN1k image clustering and CLIP L14 score top 30%": _image_and("l14"),
}
WEIGHTS = {
    ("ViT-B/32", "DataComp-1B"): ("ViT-B-32", "datacomp_xl_s13b_b90k"),
    ("ViT-B/32", "OpenAI WIT"): ("ViT-B-32-quickgelu", "openai"),
    ("ViT-B/32", "LAION-2B"): ("ViT-B-32", "laion2b_s34b_b79k"),
    ("ViT-B/16", "DataComp-1B"): ("ViT-B-16", "datacomp_xl_s13b_b90k"),
    ("ViT-B/16", "OpenAI WIT"): ("ViT-B-16-quickgelu", "openai"),
    ("ViT-B/16", "LAION-2B"): ("ViT-B-16", "laion2b_s34b_b88k"),
    ("ViT-L/14", "OpenAI WIT"): ("ViT-L-14-quickgelu", "openai"),
}


def paper() -> Paper:
    """All that is held of it."""
    return Paper(
        "datacomp",
        "Gadre et al. 2023, DataComp: in search of the next generation of multimodal datasets",
        (
            _baselines("datacomp_filtering_table3", "table3", "Table 3: baselines of the filtering track"),
            _published_sets(),
            _baselines(
                "datacomp_filtering_all_baselines",
                "tables25to28",
                "Tables 25 to 28: all baselines of the filtering track",
            ),
            _detectors(),
        ),
        facts=(
            facts("datacomp_scales", "Tables 2 and 14: the four scales"),
            facts(
                "datacomp_clip_score_thresholds",
                "Table 16: CLIP score thresholds and what they keep",
            ),
            facts("datacomp_rank_correlation", "Table 22: rank correlation between scales"),
        ),
        out_of_scope=(
            "The bring-your-own-data track; filters by detectors (table 13), by sampling and by distance to "
            "ImageNet (tables 25 to 28): no preset here.",
        ),
    )


def find_baseline(method: str) -> Baseline | None:
    """The baseline behind a name of any table, if a preset of ours makes it."""
    if found := BASELINES.get(method) or OTHER_NAMES.get(method):
        return found
    if match := re.fullmatch(r"Random subset \((\d+)%\)", method):
        keep = int(match[1]) / 100
        settings = f"select=uniform budget.of=pool budget.keep_fraction={keep:g}"
        return Baseline(("uniform",), settings, keep)
    if match := re.fullmatch(r"CLIP (B32|L14) score top (\d+)%", method):
        return _top(match[1].lower(), int(match[2]) / 100)
    if match := re.fullmatch(r"CLIP (B32|L14) threshold at ([\d.]+)", method):
        score, least = match[1].lower(), float(match[2])
        settings = (
            f"filter=datacomp_clip_score filter.column=clip_{score}_similarity_score "
            f"filter.fraction=null filter.minimum={least:g} select=none"
        )
        return Baseline(("clip_score",), settings, None, {"filter.minimum": least}, score)
    return None


def want_of(scale: str, baseline: Baseline) -> Want:
    """The run of ours that a baseline at a scale asks for."""
    pool = next(count(row["pool_size"]) for row in rows("datacomp_scales") if row["scale"] == scale)
    model = MODELS[scale]
    # A filter has no budget, so no uniform arm of equal size can be planned before it has run.
    alone = "sweep.add_controls=false " if "select=none" in baseline.settings else ""
    in_study = scale == "medium" and baseline in (NO_FILTER, BASELINES["CLIP score (L/14 30%)"])
    command = f"slurm/studies/datacomp_medium.sh {WEB_POOL}" if in_study else (
        f"dbp sweep pool=datacomp {WEB_POOL} dedup=none {baseline.settings} {alone}"
        f"model={PRESETS[model]} train=datacomp_{scale} 'sweep.seed=[0,1,2]'"
    )  # fmt: skip
    return Want(
        baseline.steps,
        command,
        keep=baseline.keep,
        settings=baseline.must,
        model=model,
        pool_rows=pool,
        samples_seen=pool,
        at_scale={"encoder.score": baseline.score} if baseline.score else {},
    )


def _baselines(file: str, key: str, title: str) -> Table:
    found = []
    for row in rows(file):
        baseline = find_baseline(row["method"])
        found.append(
            Row(
                f"{row['scale']}: {row['method']}, {row['dataset_size']}",
                values(file, row, DATACOMP_COLUMNS),
                want_of(row["scale"], baseline) if baseline else None,
                "" if baseline else "no preset of this filter here",
                group=row["scale"],
            )
        )
    is_short = key == "table3"
    return Table(
        key,
        title,
        datacomp_measures(),
        tuple(found),
        order_by=("ImageNet", "Average") if is_short else (),
        note="Seeds move ImageNet by about 0.2 points and the mean by up to 0.6 (DataComp).",
    )


def _published_sets() -> Table:
    file = "datacomp_datasets_vs_models"
    found = []
    for row in rows(file):
        weights = WEIGHTS.get((row["model"], row["train_dataset"]))
        found.append(
            Row(
                f"{row['model']}, {row['train_dataset']}",
                values(file, row, DATACOMP_COLUMNS),
                Want(
                    ("published",),
                    published_weights(*weights),
                    model=weights[0],
                    weights=(":".join(weights),),
                )
                if weights
                else None,
                "" if weights else "no published weights by that name are known here",
                group=row["model"],
            )
        )
    return Table(
        "tables23and24",
        "Tables 23 and 24: models of published sets, evaluated",
        datacomp_measures(),
        tuple(found),
    )


def _detectors() -> Table:
    file = "datacomp_detector_baselines_medium"
    by_name = {measure.name: measure for measure in datacomp_measures()}
    columns = {"imagenet": "ImageNet", "average": "Average"}
    found = []
    for row in rows(file):
        is_base = row["extra_filter"] == "none"
        found.append(
            Row(
                row["base"] if is_base else f"{row['base']} + {row['extra_filter']}",
                values(file, row, columns),
                want_of("medium", BASELINES[row["base"]]) if is_base else None,
                "" if is_base else "no object detector here",
            )
        )
    measures = tuple(by_name[name] for name in columns.values())
    return Table("table13", "Table 13: filters by a detector, medium", measures, tuple(found))
