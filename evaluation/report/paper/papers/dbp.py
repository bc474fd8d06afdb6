"""Abbas et al. 2024, density-based pruning: figure 1, DataComp medium, and what is known in words."""

from typing import Any

from evaluation.report.paper.catalogue import (
    DATACOMP_COLUMNS,
    LAION_POOL,
    WEB_POOL,
    count,
    datacomp_measures,
    facts,
    published_weights,
    values,
)
from evaluation.report.paper.papers.datacomp import BASELINES, want_of
from evaluation.report.paper.published import mark_of, rows
from evaluation.report.paper.tables import InWords, Measure, Paper, Row, Table, Want
from evaluation.suites import groups

DBP = {
    "select.temperature": 0.1,
    "select.num_neighbours": 20,
    "select.balance": 0,
    "select.members": "hard",
}
# Figure 1: the steps behind each name, and weights that others published.
STEPS: dict[str, tuple[str, ...]] = {
    "CLIP, no pruning": (),
    "SemDeDup": ("semdedup",),
    "SemDeDup + CLIP-B/16 score": ("semdedup", "clip_score"),
    "SemDeDup + DBP": ("semdedup", "dbp"),
}
WEIGHTS = {
    "OpenCLIP": ("ViT-B-32", "laion400m_e32"),
    "OpenAI CLIP": ("ViT-B-32-quickgelu", "openai"),
}
POOL_ROWS, DEVELOPMENT_ROWS = 440e6, 50e6


def paper() -> Paper:
    """All that is held of it."""
    return Paper(
        "dbp",
        "Abbas et al. 2024, Effective pruning of web-scale datasets based on complexity of concept clusters",
        (_figure_1(), _datacomp_medium()),
        tuple(_in_words()),
        (
            facts("dbp_facts", "DBP: settings, sizes and findings"),
            facts("ssp_facts", "SSP (Sorscher et al. 2022): settings; no accuracy was found"),
        ),
        (
            "The full text could not be read: its tables of results, of ablations and of training are not "
            "held. Give a transcription of your own with paper.numbers=FILE.",
        ),
    )


def _figure_1() -> Table:
    file = "dbp_laion_imagenet"
    return Table(
        "figure1",
        "Figure 1: ImageNet zero-shot of ViT-B/32 on LAION-CAT-440M",
        (Measure("ImageNet", groups()["ImageNet"]),),
        tuple(
            Row(
                f"{row['method']}, {row['dataset_size']}",
                values(file, row, {"imagenet_zero_shot": "ImageNet"}),
                _want(row),
                note=row["note"],
            )
            for row in rows(file)
        ),
        order_by=("ImageNet",),
        note="Measured from the figure's markers, error about 0.01 points, where no text prints a number.",
    )


def _want(row: dict[str, str]) -> Want:
    method = row["method"]
    if method in WEIGHTS:
        model, tag = WEIGHTS[method]
        name = f"{model}:{tag}"
        return Want(
            ("published",),
            published_weights(model, tag, "imagenet1k"),
            weights=(name,),
            model=model,
        )
    steps = STEPS[method]
    fraction = row["kept_fraction_of_dedup_set"]
    settings: dict[str, Any] = DBP if "dbp" in steps else {}
    scale = {"cluster.num_clusters": 500, "encoder.cluster": "dinov2"} if "dbp" in steps else {}
    scale |= {"encoder.score": "b16"} if "clip_score" in steps else {}
    return Want(
        steps,
        f"slurm/studies/laion.sh {LAION_POOL}",
        # Of the deduplicated set itself, what is kept is a share of the pool: 277 of 440 M.
        keep=(0.63 if len(steps) == 1 else float(fraction)) if fraction else None,
        keep_of="pool" if len(steps) == 1 else "dedup",
        settings=settings,
        model="ViT-B-32",
        pool_rows=POOL_ROWS,
        samples_seen=count(row["examples_seen"]),
        at_scale=scale,
    )


def _datacomp_medium() -> Table:
    file = "datacomp_medium_leaderboard"
    return Table(
        "datacomp_medium",
        "DataComp medium, filtering track: what DBP compares itself with, and later methods",
        datacomp_measures(),
        tuple(
            Row(
                row["method"],
                values(file, row, DATACOMP_COLUMNS),
                *_leaderboard(row["method"]),
                note=row["note"],
            )
            for row in rows(file)
        ),
        order_by=("ImageNet", "Average"),
    )


def _leaderboard(method: str) -> tuple[Want | None, str]:
    """The run of ours behind a name, or why there is none."""
    if method in BASELINES:
        return want_of("medium", BASELINES[method]), ""
    if method == "SemDeDup + CLIP-L/14 score + DBP":
        return Want(
            ("semdedup", "clip_score", "dbp"),
            f"slurm/studies/datacomp_medium.sh {WEB_POOL}",
            settings=DBP,
            model="ViT-B-32",
            pool_rows=120e6,
            samples_seen=128e6,
            at_scale={
                "cluster.num_clusters": 100,
                "encoder.cluster": "dinov2",
                "encoder.score": "l14",
            },
        ), ""
    return None, "no method of this repository"


def _in_words() -> list[InWords]:
    """Orders that reviews or the abstract state without numbers that were seen."""
    by_key = {row["key"]: row for row in rows("dbp_facts")}

    def run(steps: tuple[str, ...], script: str, **settings: Any) -> Want:
        model = settings.get("model", "ViT-B-32")
        if model == "ViT-B-32":  # of the scale, where the statement is not about another model
            settings.pop("model", None)
        mine = DBP if steps == ("dbp",) else {}
        return Want(
            steps, f"slurm/{script}.sh {LAION_POOL}", 0.6, "pool", {**mine, **settings}, model,
            DEVELOPMENT_ROWS, 150e6, is_loose=True,
        )  # fmt: skip

    def said(key: str, text: str, higher: Want, lower: Want) -> InWords:
        return InWords(text, higher, lower, mark_of(by_key[key]), by_key[key]["source"])

    found = [
        said("dbp_vs_ssp", f"DBP above SSP at a balance of {balance:g} (LAION-50M, 30 M kept)",
             run(("dbp",), "balance", **{"select.balance": balance}),
             run(("ssp",), "balance", **{"select.balance": balance, "select.members": "hard"}))
        for balance in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    found += [
        said("model_sizes_tried", f"DBP above CLIP score for {model} (LAION-50M, 30 M kept)",
             run(("dbp",), "model_size", model=model), run(("clip_score",), "model_size", model=model))
        for model in ("ViT-S-32-alt", "ViT-B-32", "ViT-L-14")
    ]  # fmt: skip
    found += [
        said("num_clusters_ablation_range", f"DBP with k = 500 above k = {k:,} (LAION-50M)",
             run(("dbp",), "num_clusters", **{"cluster.num_clusters": 500}),
             run(("dbp",), "num_clusters", **{"cluster.num_clusters": k}))
        for k in (100, 10_000)
    ]  # fmt: skip
    found.append(
        said("encoder_gap", "DBP in DINOv2's clusters above DBP in CLIP's, by about 0.2 (LAION-50M)",
             run(("dbp",), "encoders", **{"encoder.cluster": "dinov2"}),
             run(("dbp",), "encoders", **{"encoder.cluster": "vitb16"}))
    )  # fmt: skip
    return found
