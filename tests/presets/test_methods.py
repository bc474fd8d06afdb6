"""The README's table of methods is what the registry, the recipe and the published numbers say.

PYTHONPATH=. python tests/presets/test_methods.py                      # writes the table into the README
PYTHONPATH=. python tests/presets/test_methods.py runs/sweeps/field    # first writes docs/field.csv from a sweep
"""

import ast
import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dbp.config import compose
from dbp.curate import recipe
from dbp.encoders.embed import Embed
from dbp.names import PLACES
from dbp.settings import read
from dbp.verbs.command_line import overrides
from evaluation.report.paper.published import rows

ROOT = Path(__file__).parents[2]
HEADING = "| method | setting | needs | lines | published | ours |"
README = ROOT / "README.md"
OURS = ROOT / "docs" / "field.csv"  # of experiment=field: mean, and its difference to the control


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        words: Settings that choose it, as on the command line.
        named: Its registered name.
        published: Its row in the numbers for DataComp medium.
        arm: Its arm in experiment=field.
        more: What the published number has beside it.
        also: Settings that it needs to be composed.
    """

    name: str
    words: str
    named: str
    published: str = ""
    arm: str = ""
    more: str = ""
    also: tuple[str, ...] = ()


FLYT = "FLYT (M-FLYT + soft cap sampling)"
METHODS = (
    Method("uniform", "select=uniform", "select/uniform"),
    Method("CLIP score", "select=top_score", "select/clip_score", "CLIP score (L/14 30%)", "clip score"),
    Method("s-CLIPLoss", "score=clip_loss", "score/clip_loss", "negCLIPLoss 30%", "s-clip loss"),
    Method(
        "NormSim", "score=norm_sim", "score/norm_sim", "negCLIPLoss and NormSim (IN1K)", more="of s-CLIPLoss's best"
    ),
    Method("NormSim-D", "score=norm_sim_dynamic", "score/norm_sim_dynamic", arm="normsim-d"),
    Method(
        "flipped CLIP", "score=flipped_clip", "score/flipped_clip", "Devil (flipped CLIP, retrieval, rebalancing)",
        "flipped clip", "whole method", ("encoder=openclip_b32",),
    ),
    Method("M-FLYT", "experiment=m_flyt", "score/mix", FLYT, more="with soft cap"),
    Method("soft cap", "select=soft_cap", "select/soft_cap", FLYT, "soft cap", "by M-FLYT"),
    Method("hard cap", "select=hard_cap", "select/hard_cap", arm="hard cap"),
    Method(
        "image-based and CLIP score", "filter=image_based_and_clip_l14", "filter/image_based",
        "Image-based and CLIP score (L/14 30%)", also=("select=none",),
    ),
    Method("SSP", "select=ssp", "select/ssp", arm="ssp"),
    Method("DBP", "select=dbp", "select/dbp", "SemDeDup + CLIP-L/14 score + DBP", "dbp"),
    Method("hierarchical k-means", "select=hierarchical", "select/hierarchical", arm="hierarchical"),
    Method("DynamiCS", "select=dynamics", "select/dynamics", arm="dynamics"),
    Method(
        "coverage (SDM's objective)", "select=coverage", "select/coverage", "SDM", "coverage", "sparse autoencoder",
        ("select.share=0.5",),
    ),
    Method("MetaCLIP", "select=metaclip", "select/metaclip", arm="metaclip"),
    Method("TL;DR", "select=tldr", "select/tldr", arm="tldr", also=("captioner=glyphs",)),
    Method("SemDeDup", "dedup=semdedup", "dedup/semdedup", also=("select=none",)),
    Method("FairDeDup", "dedup=fairdedup", "dedup/fairdedup", arm="fairdedup", also=("select=none",)),
)  # fmt: skip


def needs(method: Method) -> str:
    """What the keep list rests on, from the recipe's graph."""
    quiet = [] if method.words.startswith(("dedup", "experiment")) else ["dedup=none"]
    words = ["pool=rehearsal", "budget.keep_fraction=0.5", *quiet, *method.words.split(), *method.also]
    words += ["select=top_score"] if method.words.startswith("score") else []
    above = recipe(read(compose("curate", overrides(words))))["select"].lineage()
    kinds = {type(node.stage).__name__ for node in above}
    embeds = [node.stage for node in above if isinstance(node.stage, Embed)]
    sides = {stage.side for stage in embeds if not stage.mirrored}
    found = {
        "mirrored images": any(stage.mirrored for stage in embeds),
        "a captioner": "Encode" in kinds,
        "image and caption vectors": sides == {"image", "text"},
        "image vectors": sides == {"image"},
        "caption vectors": sides == {"text"},
        "captions": "Matching" in kinds,
        "target vectors": bool({"NormSim", "All"} & kinds),
        "concepts": "EncodePrototypes" in kinds,
        "columns by uid": "FileScore" in kinds,
    }
    return ", ".join(name for name, is_needed in found.items() if is_needed) or "nothing"


def lines_of(method: Method) -> int:
    """Lines of code of the file: no blank lines, comments or docstrings."""
    file = ROOT / f"{PLACES[method.named].rpartition('.')[0].replace('.', '/')}.py"
    left_out = set[int]()
    for node in ast.walk(ast.parse(file.read_text())):
        is_home = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if is_home and ast.get_docstring(node) is not None:
            left_out |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(file.read_text().splitlines(), 1)
    return sum(number not in left_out and bool(line.partition("#")[0].strip()) for number, line in lines)


def published(method: Method) -> str:
    """ImageNet and the mean of 38 tasks, with the trust mark of their source."""
    if not method.published:
        return ""
    (row,) = (row for row in rows("datacomp_medium_leaderboard") if row["method"] == method.published)
    if not row["imagenet"]:
        return "not found"
    mark = f"{row['trust']}; {method.more}" if method.more else row["trust"]
    return f"{row['imagenet']} / {row['average']} [{mark}]"


def ours(method: Method) -> str:
    """The mean's difference to its control on glyphs, in points; bold where its interval excludes zero."""
    if not OURS.exists() or not method.arm:
        return ""
    with OURS.open(encoding="utf-8", newline="") as file:
        found = {row["arm"]: row for row in csv.DictReader(file)}
    row = found[method.arm]
    if not row["difference"]:
        return ""
    text = f"{float(row['difference']):+.1f}"
    return f"**{text}**" if row["is_separate"] == "True" else text


def line_of(method: Method) -> str:
    cells = (
        method.name,
        f"`{method.words}`",
        needs(method),
        str(lines_of(method)),
        published(method),
        ours(method),
    )
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_stands_in_the_readme_with_its_needs_its_size_and_its_numbers(method: Method) -> None:
    lines = README.read_text().splitlines()
    assert line_of(method) in lines, "PYTHONPATH=. python tests/presets/test_methods.py writes it"


def test_the_table_has_every_selection_and_score_that_chooses() -> None:
    not_ways = {"none", "imported", "metaclip_threshold", "column", "from_column", "from_file", "clip"}
    every = {
        name for name in PLACES if name.startswith(("select/", "score/")) and name.split("/")[1] not in not_ways
    }
    assert every <= {method.named for method in METHODS}


def gather(sweep: Path) -> None:
    """Write each arm's mean, its difference to its control and its cost of choosing, from a sweep's folder."""
    arms = json.loads((sweep / "ledger.json").read_text())["arms"]
    with (sweep / "table.csv").open(encoding="utf-8", newline="") as file:
        means = [row for row in csv.DictReader(file) if row["task"] == "mean"]
    with OURS.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(
            ("arm", "seeds", "kept", "mean", "difference", "low", "high", "is_separate", "choosing_seconds")
        )
        for row in means:
            points = [
                f"{100 * float(row[name]):.2f}" if row[name] else ""
                for name in ("value", "difference", "difference_low", "difference_high")
            ]
            seconds = f"{arms[row['arm']]['choosing_seconds_per_run']:.1f}"
            out.writerow((row["arm"], row["seeds"], row["kept"], *points, row["is_separate"], seconds))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        gather(Path(sys.argv[1]))
    above, _, rest = README.read_text().partition(HEADING)
    table = "\n".join([HEADING, "|---|---|---|---|---|---|", *map(line_of, METHODS)])
    README.write_text(f"{above}{table}\n\n{rest.partition(chr(10) * 2)[2]}")
