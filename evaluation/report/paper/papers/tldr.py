"""Wang et al. 2023, TL;DR: retrieval and ImageNet of CLIP; BLIP, ViLT and video are out of scope."""

from collections.abc import Iterable

from evaluation.report.paper.catalogue import facts
from evaluation.report.paper.published import Published, number, rows
from evaluation.report.paper.tables import Measure, Paper, Row, Table, Want

COCO = ("retrieval/mscoco_2014_5k_test_image_text_retrieval",)
FLICKR = ("retrieval/flickr_1k_test_image_text_retrieval",)
SIDES = {"tr": "text_retrieval_recall@", "ir": "image_retrieval_recall@"}
# The script of TL;DR's size, and the pairs of CC3M that could be downloaded.
SCRIPT, POOL_ROWS, KEEP = "tldr_ratio", 2.82e6, 0.25
POOL = "pool.shards='CC3M/*.tar' root=SETS"
WEIGHTS_NOTE = (
    "The paper's CLIP reaches about 60 % on ImageNet after 3 M pairs, more than training from random "
    "weights can be expected to; which weights it began with was not found. Ours begin at random."
)


def paper() -> Paper:
    """All that is held of it."""
    return Paper(
        "tldr",
        "Wang et al. 2023, Too large; data reduction for vision-language pre-training",
        (_retrieval(), _imagenet(), _ablations(), _cc3m_tasks(), _video(), _other_sets()),
        facts=(
            facts("tldr_datasets", "Sizes before and after, hours of pre-training"),
            facts("tldr_facts", "Settings: the paper and its published code"),
        ),
        out_of_scope=(
            "BLIP and ViLT are not trained here: their rows are shown and have no counterpart.",
            "Fine-tuned retrieval, VQA, NLVR2, RefCOCO+, captioning and video (MSR-VTT): no such task here.",
        ),
    )


def _want(model: str, dataset: str) -> tuple[Want | None, str]:
    """The run of ours behind a row, or why there is none."""
    if model != "CLIP":
        return None, f"{model} is not trained here"
    steps = ("tldr",) if dataset.startswith("TL;DR") else ()
    steps = ("uniform",) if dataset.startswith("Rand") else steps
    return Want(
        steps,
        f"slurm/{SCRIPT}.sh {POOL}",
        keep=KEEP if steps else None,
        model=None,
        pool_rows=POOL_ROWS,
    ), ""


def _row(file: str, row: dict[str, str], label: str, columns: Iterable[str], why: str = "") -> Row:
    want, reason = _want(row["model"], row["dataset"])
    cells = {c: number(file, row, c) for c in columns}
    return Row(label, cells, None if why else want, why or reason, group=f"{row['model']} {why}")


def _retrieval() -> Table:
    file = "tldr_retrieval"
    found = rows(file)
    columns = [c for c in found[0] if c.startswith(("coco", "flickr"))]
    measures = []
    for column in columns:
        name, side = column.split("_")
        tasks = COCO if name == "coco" else FLICKR
        measures.append(Measure(column, tasks, SIDES[side[:2]] + side[2:]))
    tuned = "fine-tuned retrieval is no task here"
    return Table(
        "table3",
        "Table 3: retrieval on COCO and Flickr30K (tr: image to text, ir: text to image)",
        tuple(measures),
        tuple(
            _row(file, row, f"{row['model']}, {row['protocol']}: {row['dataset']}, {row['samples']}",
                 columns, tuned if row["protocol"] == "fine-tuned" else "")
            for row in found
        ),
        "corrected",
        ("coco_tr1", "coco_ir1"),
        WEIGHTS_NOTE,
    )  # fmt: skip


def _imagenet() -> Table:
    file = "tldr_imagenet_zero_shot"
    names = {"imagenet": "imagenet1k", "imagenet_a": "imagenet-a", "imagenet_r": "imagenet-r"}
    return Table(
        "table6",
        "Table 6: ImageNet zero-shot",
        tuple(Measure(column, (task,)) for column, task in names.items()),
        tuple(_row(file, r, f"{r['model']}: {r['dataset']}, {r['samples']}", names) for r in rows(file)),
        "corrected",
        ("imagenet",),
        WEIGHTS_NOTE,
    )


def _outside(key: str, title: str, file: str, columns: dict[str, str], labels: Iterable[str]) -> Table:
    """A table of which no cell can be filled here, shown as it is."""
    measures = tuple(Measure(name, out_of_scope=why) for name, why in columns.items())
    found = []
    for row, label in zip(rows(file), labels, strict=True):
        why = "BLIP is not trained here" if row.get("model", "BLIP") == "BLIP" else ""
        why = why or next(iter(columns.values()))
        cells: dict[str, Published] = {c: number(file, row, c) for c in columns}
        found.append(Row(label, cells, out_of_scope=why))
    return Table(key, title, measures, tuple(found), "corrected")


def _ablations() -> Table:
    file = "tldr_ablations"
    blip = "BLIP is not trained here"
    labels = [f"{row['table']}: {row['setting']}" for row in rows(file)]
    columns = {"coco_tr_at_1": blip, "coco_ir_at_1": blip}
    return _outside("tables2and7", "Tables 2a to 2f and 7: BLIP on CC3M, COCO", file, columns, labels)


def _cc3m_tasks() -> Table:
    file = "tldr_cc3m_tasks"
    found = rows(file)
    # CIDEr may exceed 100, so it is no share: it stands in the file alone.
    columns = {c: "no such task here" for c in found[0]
               if c.startswith(("vqa", "nlvr2", "refcoco"))}  # fmt: skip
    labels = [f"{row['model']}: {row['dataset']}" for row in found]
    return _outside("table4", "Table 4: other tasks of BLIP on CC3M", file, columns, labels)


def _video() -> Table:
    file = "tldr_msrvtt"
    labels = [f"{row['model']}: {row['dataset']}" for row in rows(file)]
    names = ("r_at_1", "r_at_5", "r_at_10")
    columns: dict[str, str] = dict.fromkeys(names, "no video here")
    return _outside("table5", "Table 5: MSR-VTT, video", file, columns, labels)


def _other_sets() -> Table:
    file = "tldr_other_datasets"
    names = (
        "vqa_test_dev",
        "nlvr2_test_p",
        "refcoco_val",
        "flickr_tr1",
        "flickr_ir1",
        "imagenet",
    )
    columns: dict[str, str] = dict.fromkeys(names, "BLIP is not trained here")
    labels = [f"{row['model']}: {row['dataset']}, {row['samples']}" for row in rows(file)]
    return _outside("table8", "Table 8: BLIP on other sets", file, columns, labels)
