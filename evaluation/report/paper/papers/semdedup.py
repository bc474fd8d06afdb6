"""Abbas et al. 2023, SemDeDup: LAION-440M at six sizes, and its ablations."""

import re
from typing import Any

from evaluation.report.paper.catalogue import LAION_POOL, facts, values
from evaluation.report.paper.published import Published, number, rows
from evaluation.report.paper.tables import Measure, Paper, Row, Table, Want
from evaluation.suites import SEMDEDUP24, groups

POOL_ROWS = 440e6
EPOCHS = 32
OUT_OF_LAION = "LAION-233M: no pool of that name is described here"
# Table A4's names, in its order: those of `SEMDEDUP24`.
SHIFTS = {
    "imagenet_a": "imagenet-a",
    "imagenet_o": "imagenet-o",
    "imagenet_r": "imagenet-r",
    "imagenet_sketch": "imagenet_sketch",
    "imagenet_v2": "imagenetv2",
    "objectnet": "objectnet",
}
HEAD = (
    Measure("ImageNet", ("imagenet1k",)),
    Measure("ImageNet top-5", ("imagenet1k",), "acc5"),
    Measure("mean of 6 shifts", groups()["ImageNet dist. shifts"]),
    Measure("mean of 24 tasks", SEMDEDUP24),
)
METRICS = {
    "ImageNet top-1": "ImageNet",
    "ImageNet top-5": "ImageNet top-5",
    "average of 6 OOD": "mean of 6 shifts",
    "average of 24": "mean of 24 tasks",
}
# Of the ablations: title, place in the paper, script, and the setting behind each name.
ABLATIONS: dict[str, tuple[str, str, str, dict[str, dict[str, Any]]]] = {
    "number of clusters": (
        "table1", "Table 1: number of clusters, 40 % kept", "semdedup_clusters",
        {k: {"dedup.num_clusters": int(k)} for k in ("70000", "50000", "10000")},
    ),
    "embedding model": (
        "table2", "Table 2: what is compared in, 40 % kept", "semdedup_encoder",
        {"OpenAI CLIP": {"encoder.dedup": "vitb16quickgelu"},
         "CLIP trained on LAION-440M": {"encoder.dedup": "laion440m"}},
    ),
    "which duplicate to keep": (
        "table3", "Table 3: which of a group stays, 40 % kept", "semdedup_keep",
        {"lowest similarity to centroid (default)": {"dedup.keep": "hard"},
         "random": {"dedup.keep": "random"},
         "highest similarity to centroid": {"dedup.keep": "easy"}},
    ),
}  # fmt: skip


def paper() -> Paper:
    """All that is held of it."""
    return Paper(
        "semdedup",
        "Abbas et al. 2023, SemDeDup: data-efficient learning at web-scale through semantic deduplication",
        (_summary(), *map(_ablation, ABLATIONS), _equal_iterations(), _length(), _other_pool(),
         _by_task(), _shifts()),
        facts=(
            facts("semdedup_facts", "Settings and findings"),
            facts("semdedup_cost", "Tables 5 and A2: GPU-hours and times"),
            facts("semdedup_c4_perplexity", "Out of scope, C4: perplexity of OPT, lower is better"),
        ),
        out_of_scope=(
            "C4: language models are not trained here; the perplexities stand among the facts.",
            "The share of duplicates found (eta, in `semdedup_ablations`) is of dedup, not of a run: "
            "`dbp curate until=borders` estimates what cluster borders hide.",
        ),
    )  # fmt: skip


def _run(kept: float, method: str, script: str, samples: float | None = None, **must: Any) -> Want:
    """The run of ours at a kept fraction of the pool."""
    steps = {"SemDeDup": ("semdedup",), "random": ("uniform",), "none": ()}[method]
    command = f"slurm/{script}.sh {LAION_POOL}" if script else _command(kept, method)
    return Want(
        steps,
        command,
        keep=kept if steps else None,
        settings=must or ({"dedup.keep": "hard"} if method == "SemDeDup" else {}),
        model="ViT-B-16",
        pool_rows=POOL_ROWS,
        samples_seen=samples or EPOCHS * kept * POOL_ROWS,
        at_scale={"dedup.num_clusters": 50_000} if method == "SemDeDup" and not must else {},
    )


def _command(kept: float, method: str) -> str:
    """A size that no script has, from the common ground of SemDeDup's studies."""
    num_kept = round(kept * POOL_ROWS)
    choice = {
        "SemDeDup": f"dedup.num_kept={num_kept} select=none",
        "random": f"dedup=none select=uniform budget.num_kept={num_kept}",
        "none": "dedup=none select=none",
    }[method]
    return (
        f"dbp sweep experiment=on_laion_440m_semdedup {LAION_POOL} {choice} "
        f"sweep.add_controls=false train.samples_seen={round(EPOCHS * kept * POOL_ROWS)}"
    )


def _summary() -> Table:
    file = "semdedup_laion440m_summary"
    columns = {"imagenet": "ImageNet", "avg_6_ood": HEAD[2].name, "avg_24_tasks": HEAD[3].name}
    return Table(
        "tables_a4_a5",
        "Tables A4 and A5: LAION-440M, ViT-B/16, 32 epochs",
        (HEAD[0], HEAD[2], HEAD[3]),
        tuple(
            Row(
                _label(row["method"], row["kept_pct"]),
                values(file, row, columns),
                _run(float(row["kept_pct"]) / 100, row["method"], ""),
            )
            for row in rows(file)
        ),
        "corrected",
        ("ImageNet",),
        "Table 4 has 54.59 as the mean of 24 tasks at 50 %, table A4's column comes to 52.44.",
    )


def _label(method: str, kept: str) -> str:
    return "no pruning" if method == "none" else f"{method}, {kept} % kept"


def _long(ablation: str) -> dict[tuple[str, str], dict[str, Published]]:
    """An ablation's numbers by setting and kept share, then by column."""
    found: dict[tuple[str, str], dict[str, Published]] = {}
    for row in rows("semdedup_ablations"):
        if row["ablation"] == ablation:
            place = found.setdefault((row["setting"], row["kept_pct"]), {})
            place[METRICS[row["metric"]]] = number("semdedup_ablations", row, "value")
    return found


def _ablation(name: str) -> Table:
    key, title, script, settings = ABLATIONS[name]
    found = [
        Row(setting, cells, _run(float(kept) / 100, "SemDeDup", script, **settings[setting]))
        for (setting, kept), cells in _long(name).items()
    ]
    return Table(key, title, HEAD[:2], tuple(found), "corrected", ("ImageNet",))


def _equal_iterations() -> Table:
    found = []
    for (setting, kept), cells in _long("same iterations as full data").items():
        method = "none" if setting == "baseline" else "SemDeDup"
        want = _run(float(kept) / 100, method, "semdedup_iterations", EPOCHS * POOL_ROWS)
        found.append(Row(_label(method, kept), cells, want))
    title = "Table A6: each size trained for as many samples as the whole set"
    return Table("table_a6", title, HEAD[:2], tuple(found), "corrected", ("ImageNet",))


def _length() -> Table:
    found = []
    for (setting, kept), cells in _long("training length").items():
        share = float(setting.split(", ")[1].partition("%")[0]) / 100
        method = "none" if kept == "100" else "SemDeDup"
        samples = EPOCHS * share * POOL_ROWS
        want = _run(float(kept) / 100, method, "", samples)
        command = want.command.partition(" train.")[0] + f" train.samples_seen={round(samples)}"
        found.append(Row(setting, cells, Want(**{**vars(want), "command": command})))
    title = "Table 4: half of the data for longer"
    return Table("table4", title, (HEAD[0], *HEAD[2:]), tuple(found), "corrected", ("ImageNet",))


def _other_pool() -> Table:
    found = [
        Row(f"{setting}, {kept} %", cells, out_of_scope=OUT_OF_LAION)
        for (setting, kept), cells in _long("LAION-233M").items()
    ]
    return Table("laion233m", "LAION-233M", HEAD[:1], tuple(found), "corrected")


def _by_task() -> Table:
    file = "semdedup_laion440m_zero_shot_24"
    lines = [row for row in rows(file) if row["task"] != "Average"]
    measures = tuple(Measure(row["task"], (task,)) for row, task in zip(lines, SEMDEDUP24, strict=True))
    found = []
    for name in (c for c in lines[0] if c not in ("task", "verified", "source")):
        kept = re.sub(r"\D", "", name)
        method = {"D": "SemDeDup", "B": "none", "R": "random"}[name[0]]
        cells = {row["task"]: number(file, row, name) for row in lines}
        want = _run(float(kept) / 100, method, "")
        found.append(Row(_label(method, kept), cells, want))
    return Table("table_a4", "Table A4: 24 tasks", measures, tuple(found), "corrected")


def _shifts() -> Table:
    file = "semdedup_laion440m_ood"
    names = dict(zip(SHIFTS, ("-A", "-O", "-R", " Sketch", " v2", ""), strict=True))
    headings = {c: f"ImageNet{n}" if n else "ObjectNet" for c, n in names.items()}
    return Table(
        "table_a5",
        "Table A5: six shifts",
        tuple(Measure(headings[column], (task,)) for column, task in SHIFTS.items()),
        tuple(
            Row(
                _label(row["method"], row["kept_pct"]),
                values(file, row, headings),
                _run(float(row["kept_pct"]) / 100, row["method"], ""),
            )
            for row in rows(file)
        ),
        "corrected",
    )
