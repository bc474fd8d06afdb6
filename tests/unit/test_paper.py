"""Ours beside the papers' numbers: units, marks, scales, orders, and what a person transcribes."""

import csv
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dbp.errors import ConfigError
from evaluation.metrics import zero_shot
from evaluation.report.paper import FORMATS, compare, render
from evaluation.report.paper.catalogue import PAPERS, count, described, find_paper
from evaluation.report.paper.match import arms_of, candidates, departures
from evaluation.report.paper.published import NUMBERS, SCALE, mark_of, read_number, rows
from evaluation.report.paper.render import summary
from evaluation.report.paper.runs import OurRun, OurRuns
from evaluation.report.paper.tables import FoundTable, PaperTables, Want
from evaluation.results import Result, save_results
from evaluation.tasks import find_task

ROOT = Path(__file__).parents[2]
DBP = {"select.temperature": 0.1, "select.num_neighbours": 20, "select.balance": 0, "select.members": "hard"}
LAION = {"cluster.num_clusters": 500, "encoder.cluster": "Dinov2 dinov2_vitl14"}


def result(rate: float, task: str, protocol: str, limit: int | None, n: int = 1000) -> Result:
    correct = np.arange(n) < round(rate * n)
    logits = np.where(correct[:, None], [[1.0, 0.0]], [[0.0, 1.0]]).astype(np.float32)
    outcomes = zero_shot.outcomes(logits, np.zeros(n, np.int64), protocol)
    return Result(
        task=task, protocol=protocol, metrics={"acc1": float(correct.mean())}, intervals={},
        num_samples=n, limit=limit, checkpoint=f"{rate}", model="m", samples_seen=1,
        precision="fp32", versions={}, set_digest="d", seed=0, outcomes=outcomes,
        set_counts={"samples": find_task(task).test_size or n},
    )  # fmt: skip


class Runs:
    """Runs of ours on disk, as the store would give them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, list[OurRun]()

    def add(self, steps: tuple[str, ...], rate: float, seed: int = 0, **given: Any) -> OurRun:
        task = given.pop("task", "imagenet1k")
        limit = given.get("limit")
        results = [result(rate, task, p, limit) for p in ("datacomp", "corrected")]
        file = self.folder / f"{len(self.runs)}" / "results.jsonl"
        save_results(file, results)
        facts: dict[str, Any] = {
            "pool_kind": "web", "pool": "laion", "pool_rows": 440_000_000, "num_dedup": 277_000_000,
            "num_kept": 277_000_000, "settings": DBP | LAION if "dbp" in steps else {},
            "model": "ViT-B-32", "samples_seen": 8_864_000_000, "limit": None,
        } | given  # fmt: skip
        alike = repr([steps, sorted((k, repr(v)) for k, v in facts.items())])
        run = OurRun(
            steps=steps, seed=seed, alike=alike, key=f"t{len(self.runs)}",
            results={(r.task, r.protocol): (replace(r, outcomes={}), file) for r in results},
            evaluations=(f"e{len(self.runs)}",), **facts,
        )  # fmt: skip
        self.runs.append(run)
        return run

    def seeds(self, steps: tuple[str, ...], rates: list[float], **given: Any) -> None:
        for seed, rate in enumerate(rates):
            self.add(steps, rate, seed, **given)

    def beside(self, paper: str, numbers: Path | None = None) -> PaperTables:
        return compare(paper, OurRuns(self.runs), numbers)


@pytest.fixture
def ours(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def table_of(found: PaperTables, key: str) -> FoundTable:
    return next(table for table in found.tables if table.key == key)


def cell_of(found: PaperTables, key: str, label: str, measure: str = "ImageNet") -> Any:
    row = next(row for row in table_of(found, key).rows if row.label == label)
    return next(cell for cell in row.cells if cell.measure == measure)


AT_112 = {"num_kept": 110_800_000, "samples_seen": 3_545_600_000}
AT_84 = {"num_kept": 83_100_000, "samples_seen": 2_659_200_000}
SEMDEDUP_DBP = ("semdedup", "dbp")


# the numbers


@pytest.mark.parametrize(
    ("paper", "table", "label", "measure", "value"),
    [  # read off the papers' own pages: one of each unit
        ("dbp", "figure1", "SemDeDup + DBP, 112M", "ImageNet", 0.6408),
        ("dbp", "datacomp_medium", "No filtering", "ImageNet", 0.176),
        ("datacomp", "table3", "medium: No filtering, 128M", "ImageNet", 0.176),
        ("semdedup", "tables_a4_a5", "SemDeDup, 40 % kept", "ImageNet", 0.669),
        ("metaclip", "table8", "ViT-B/32: MetaCLIP, 400M", "ImageNet", 0.655),
        ("tldr", "table6", "CLIP: TL;DR-CC3M, 0.67M", "imagenet", 0.614),
    ],
)
def test_percent_and_fractions_come_to_the_same_scale(ours, paper, table, label, measure, value):
    assert cell_of(ours.beside(paper), table, label, measure).paper.value == pytest.approx(value)


def test_one_number_in_two_files_of_other_units_is_one_number(ours):
    found = [
        cell_of(ours.beside("dbp"), "datacomp_medium", "CLIP score (L/14 30%)", measure).paper.value
        for measure in ("ImageNet", "VTAB", "Average")
    ]
    held = [
        cell_of(ours.beside("datacomp"), "table3", "medium: CLIP score (L/14 30%), 38M", m).paper.value
        for m in ("ImageNet", "VTAB", "Average")
    ]
    assert found == pytest.approx(held)


@pytest.mark.parametrize(
    ("text", "unit", "printed"),
    [
        ("0.176", "fraction", "17.6"),
        ("0.66", "fraction", "66"),
        ("64.08", "percent", "64.08"),
        ("0.0251", "fraction", "2.51"),
    ],
)  # fmt: skip
def test_a_number_is_printed_with_the_digits_that_the_paper_has(text, unit, printed):
    assert read_number(text, unit, "verified", "s", "w").printed == printed


def test_a_percentage_read_as_a_fraction_is_refused():
    with pytest.raises(ConfigError, match=r"w='64\.08': it must be a number from 0 to 1"):
        read_number("64.08", "fraction", "verified", "s", "w")


def test_every_number_that_is_held_can_be_read_and_has_a_source():
    for name in PAPERS:
        for table in find_paper(name).tables:
            for row in table.rows:
                assert row.want is not None or row.out_of_scope
                for value in row.values.values():
                    assert value.source
                    assert value.value is None or 0 < value.value < 1


def test_every_file_is_shown_somewhere_with_its_unit():
    said = [described(name) for name in PAPERS]
    tables = {table["file"] for one in said for table in one["tables"]}
    facts = {file for one in said for file in one["facts"]}
    assert {file.stem for file in NUMBERS.glob("*.csv")} == tables | facts
    assert not tables & facts
    assert all(table["unit"] in SCALE for one in said for table in one["tables"])


def test_what_is_not_verified_or_secondary_is_marked(ours):
    found = ours.beside("dbp")
    assert cell_of(found, "datacomp_medium", "T-MARS").paper.mark == "unverified"
    assert cell_of(found, "datacomp_medium", "negCLIPLoss 30%").paper.mark == "secondary"
    assert cell_of(found, "datacomp_medium", "No filtering").paper.mark == "verified"
    text = render(found, "md")
    assert "| T-MARS | ImageNet | 33.0† |" in text
    assert "† not verified: from memory, or assumed" in text
    assert "temperature_paper‡" in text  # a review that had the paper
    assert "batch_size†" in text


def test_every_row_with_another_mark_than_verified_stands_in_the_files():
    for file in NUMBERS.glob("*.csv"):
        for row in rows(file.stem):
            assert (mark_of(row) == "unverified") == (row["verified"] != "yes")


# states


def test_without_runs_each_cell_names_the_command_that_would_fill_it(ours):
    found = ours.beside("dbp")
    cell = cell_of(found, "figure1", "SemDeDup + DBP, 112M")
    assert (cell.state, cell.ours, cell.difference) == ("ours missing", None, None)
    assert cell.command == "slurm/studies/laion.sh pool.shards='LAION/*.tar' root=SETS"
    for table in found.tables:
        for row in table.rows:
            for cell in row.cells:
                assert cell.command or cell.state == "out of scope"
                assert cell.reason or cell.state != "out of scope"


def test_a_run_at_the_papers_scale_is_subtracted(ours):
    ours.add(SEMDEDUP_DBP, 0.65, **AT_112)
    cell = cell_of(ours.beside("dbp"), "figure1", "SemDeDup + DBP, 112M")
    assert cell.state == "both"
    assert cell.ours.departures == ()
    assert cell.difference == pytest.approx(0.65 - 0.6408)
    assert cell.command == ""


def test_an_unknown_number_of_the_paper_is_said_beside_ours(ours):
    ours.add(SEMDEDUP_DBP, 0.64, num_kept=221_600_000, samples_seen=7_091_200_000)
    cell = cell_of(ours.beside("dbp"), "figure1", "SemDeDup + DBP, 222M")
    assert (cell.state, cell.difference) == ("paper unknown", None)
    assert cell.ours.value == pytest.approx(0.64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool_kind": "glyphs"}, "glyphs pool, not web data"),
        ({"pool_rows": 24, "num_dedup": 24, "num_kept": 10}, "pool of 24, not 440 M"),
        ({"model": "ViT-L-14"}, "ViT-L-14, not ViT-B-32"),
        ({"samples_seen": 16}, "16 samples seen, not 3.6 B"),
        ({"limit": 40}, "40 samples of each test set"),
        ({"settings": DBP | LAION | {"cluster.num_clusters": 50}}, "cluster.num_clusters 50, not 500"),
        ({"settings": DBP | LAION | {"encoder.cluster": "OpenClip ViT-B-16"}}, "not dinov2"),
        ({"num_kept": 116_000_000}, "41.9% kept, not 40%"),
    ],
)
def test_whatever_differs_in_scale_keeps_a_run_from_passing_as_the_papers(ours, change, said):
    ours.add(SEMDEDUP_DBP, 0.65, **(AT_112 | change))
    found = ours.beside("dbp")
    cell = cell_of(found, "figure1", "SemDeDup + DBP, 112M")
    assert cell.state == "other scale"
    assert cell.difference is None
    assert cell.command
    assert any(said in text for text in cell.ours.departures)
    assert said in " ".join(summary(found).split())


@pytest.mark.parametrize(
    "change",
    [
        {"settings": DBP | LAION | {"select.temperature": 0.5}},
        {"settings": DBP | LAION | {"select.members": "easy"}},
        {"num_kept": 27_000_000},
    ],
)
def test_another_method_or_size_does_not_stand_in_a_row_at_all(ours, change):
    ours.add(SEMDEDUP_DBP, 0.65, **(AT_112 | change))
    assert cell_of(ours.beside("dbp"), "figure1", "SemDeDup + DBP, 112M").ours is None


def test_the_run_at_the_papers_scale_wins_over_one_at_another(ours):
    ours.add(SEMDEDUP_DBP, 0.2, **(AT_112 | {"pool_kind": "glyphs", "pool": "glyphs"}))
    ours.add(SEMDEDUP_DBP, 0.65, **AT_112)
    ours.add(SEMDEDUP_DBP, 0.3, **(AT_112 | {"limit": 50}))
    cell = cell_of(ours.beside("dbp"), "figure1", "SemDeDup + DBP, 112M")
    assert cell.ours.value == pytest.approx(0.65)
    assert cell.state == "both"


def test_glyphs_tasks_stand_in_by_name_and_never_as_imagenet(ours):
    glyphs = {"pool_kind": "glyphs", "pool_rows": 20_000, "num_dedup": 13_000, "num_kept": 5_200}
    ours.add(SEMDEDUP_DBP, 0.9, task="glyphs/letters", **(AT_112 | glyphs))
    cell = cell_of(ours.beside("dbp"), "figure1", "SemDeDup + DBP, 112M")
    assert cell.state == "other scale"
    assert cell.ours.metric == "mean of glyphs tasks"


def test_a_run_without_the_tasks_says_which_are_missing(ours):
    ours.add((), 0.6, task="cifar10", samples_seen=128_000_000, pool_rows=128_000_000)
    cell = cell_of(ours.beside("dbp"), "datacomp_medium", "No filtering", "Retrieval")
    assert cell.state == "ours missing"
    assert "evaluated without retrieval/flickr_1k_test" in cell.reason


def test_what_is_out_of_scope_is_named_and_not_dropped(ours):
    found = {name: ours.beside(name) for name in PAPERS}
    assert cell_of(found["tldr"], "table6", "BLIP: CC3M, 2.82M", "imagenet").state == "out of scope"
    assert cell_of(found["tldr"], "table6", "ViLT: CC3M, 2.82M", "imagenet").state == "out of scope"
    assert cell_of(found["tldr"], "table5", "CLIP: CC3M", "r_at_1").reason == "no video here"
    assert any("video" in line for line in found["tldr"].out_of_scope)
    assert any("C4" in line for line in found["semdedup"].out_of_scope)
    assert any("C4" in facts.title for facts in found["semdedup"].facts)
    mean = cell_of(found["metaclip"], "tables4to7", "ViT-B/32: CLIP, WIT400M", "average")
    assert "CUB, UCF101, Kinetics700, HatefulMemes" in mean.reason


def test_seeds_are_averaged_and_their_spread_widens_the_interval(ours):
    ours.seeds(SEMDEDUP_DBP, [0.60, 0.65, 0.70], **AT_112)
    alone = Runs(ours.folder / "alone")
    alone.add(SEMDEDUP_DBP, 0.65, **AT_112)
    many = cell_of(ours.beside("dbp"), "figure1", "SemDeDup + DBP, 112M").ours
    one = cell_of(alone.beside("dbp"), "figure1", "SemDeDup + DBP, 112M").ours
    assert many.seeds == pytest.approx((0.60, 0.65, 0.70))
    assert many.value == pytest.approx(one.value)
    # By hand: t with 2 degrees of freedom is 4.303, the standard error 0.05 / sqrt(3).
    assert many.interval[1] - many.value > 4.303 * 0.05 / 3**0.5
    assert one.interval[1] - one.value == pytest.approx(1.96 * (0.65 * 0.35 / 1000) ** 0.5, rel=0.2)


# orders


def order_of(found: PaperTables, higher: str, lower: str) -> Any:
    return next(o for o in found.orderings if o.higher.startswith(higher) and o.lower.startswith(lower))


@pytest.mark.parametrize(
    ("high", "low", "verdict"),
    [
        ([0.70, 0.701, 0.702], [0.50, 0.501, 0.502], "agrees"),
        ([0.50, 0.501, 0.502], [0.70, 0.701, 0.702], "disagrees"),
        ([0.60, 0.65, 0.70], [0.59, 0.64, 0.69], "cannot tell"),
        ([0.70], [0.50], "cannot tell"),
    ],
)
def test_an_order_is_judged_only_where_our_noise_allows_it(ours, high, low, verdict):
    ours.seeds(SEMDEDUP_DBP, high, **AT_112)
    ours.seeds(SEMDEDUP_DBP, low, **AT_84)
    found = order_of(ours.beside("dbp"), "SemDeDup + DBP, 112M", "SemDeDup + DBP, 84M")
    assert found.verdict == verdict
    assert found.paper_gap == pytest.approx(0.6408 - 0.6253)
    assert found.ours_gap == pytest.approx(np.mean(high) - np.mean(low))
    assert (found.interval is None) == (len(high) < 3)
    assert found.is_same_scale


def test_runs_on_two_pools_are_not_ordered(ours):
    ours.seeds(SEMDEDUP_DBP, [0.7, 0.7, 0.71], **AT_112)
    ours.seeds(SEMDEDUP_DBP, [0.5, 0.5, 0.51], **AT_84, pool="another")
    found = order_of(ours.beside("dbp"), "SemDeDup + DBP, 112M", "SemDeDup + DBP, 84M")
    assert (found.verdict, found.detail) == ("not measured", "no two runs of ours on one pool")


def test_the_papers_order_is_that_of_its_numbers_and_ties_are_none(ours):
    orders = ours.beside("dbp").orderings
    pairs = {(o.higher, o.lower) for o in orders}
    assert ("SemDeDup + DBP, 166M", "SemDeDup, 277M") in pairs
    assert not any({"CLIP, no pruning, 440M", "SemDeDup + DBP, 112M"} == set(pair) for pair in pairs)
    assert not any("222M" in name for pair in pairs for name in pair)  # no number, no order


def test_a_statement_in_words_is_judged_at_one_size_alone(ours):
    glyphs = {"pool_kind": "glyphs", "pool_rows": 20_000, "num_dedup": 13_000, "num_kept": 4_300}
    ours.seeds(SEMDEDUP_DBP, [0.7, 0.7, 0.71], task="glyphs/letters", **glyphs)
    ours.seeds(("semdedup", "clip_score"), [0.9, 0.9, 0.91], task="glyphs/letters", **glyphs)
    said = next(o for o in ours.beside("dbp").orderings if o.higher.startswith("DBP above CLIP score for ViT-B"))
    assert said.verdict == "disagrees"
    assert said.mark == "secondary"
    assert not said.is_same_scale
    ours.runs = [r if "dbp" in r.steps else replace(r, num_kept=9_000) for r in ours.runs]
    said = next(o for o in ours.beside("dbp").orderings if o.higher.startswith("DBP above CLIP score for ViT-B"))
    assert said.verdict == "not measured"


# matching


def test_runs_that_differ_in_the_seed_alone_are_one_arm(ours):
    ours.seeds(("uniform",), [0.1, 0.2, 0.3], num_kept=1)
    ours.add(("uniform",), 0.4, num_kept=2)
    assert [len(arm.runs) for arm in arms_of(ours.runs)] == [3, 1]


def test_a_name_of_a_setting_may_be_a_part_of_what_is_set(ours):
    want = Want(("semdedup",), "c", settings={"encoder.dedup": "vitb16quickgelu"})
    ours.add(("semdedup",), 0.5, settings={"encoder.dedup": "OpenClip ViT-B-16-quickgelu openai"})
    ours.add(("semdedup",), 0.5, settings={"encoder.dedup": "OpenClip ViT-L-14"})
    found = candidates(want, arms_of(ours.runs))
    assert len(found) == 1
    assert departures(want, found[0][0]) == ()


def test_published_weights_match_by_model_and_tag(ours):
    ours.add(("published",), 0.6296, model="ViT-B-32:laion400m_e32", pool_kind="published", pool_rows=0)
    found = ours.beside("dbp")
    assert cell_of(found, "figure1", "OpenCLIP, 400M").state == "both"
    assert cell_of(found, "figure1", "OpenAI CLIP, 400M").ours is None


@pytest.mark.parametrize(
    ("text", "value"), [("12.8M", 12.8e6), ("1.28B", 1.28e9), ("500K", 5e5), ("7", 7), ("", None)]
)
def test_counts_are_read_as_papers_print_them(text, value):
    assert count(text) == (None if value is None else pytest.approx(value))


# commands


def commands() -> list[str]:
    wants = [row.want for name in PAPERS for t in find_paper(name).tables for row in t.rows if row.want]
    wants += [w for name in PAPERS for o in find_paper(name).in_words for w in (o.higher, o.lower)]
    return sorted({want.command for want in wants})


def test_the_scripts_of_the_commands_are_there():
    programs = {shlex.split(command)[0] for command in commands()}
    scripts = {program for program in programs if program != "dbp"}
    assert len(scripts) > 5
    assert [name for name in sorted(scripts) if not (ROOT / name).is_file()] == []


@pytest.mark.nightly  # imports open_clip
def test_the_weights_of_the_commands_are_published():
    import open_clip

    known, tried = set(open_clip.list_pretrained()), 0
    for words in map(shlex.split, commands()):
        if words[1] == "evaluate":
            said = dict(word.split("=") for word in words[2:])
            assert (said["model.name"], said["pretrained"]) in known
            tried += 1
    assert tried > 5


def sweeps() -> list[Any]:
    """Every sweep; a few in the fast tests, since composing takes a third of a second."""
    found = [command for command in commands() if command.startswith("dbp sweep")]
    kinds = [re.sub(r"\d+(\.\d+)?|(small|medium|large|xlarge)|[bl](16|14|32)", "", c) for c in found]
    return [
        c if kinds.index(kind) == at and at % 4 == 0 else pytest.param(c, marks=pytest.mark.nightly)
        for at, (c, kind) in enumerate(zip(found, kinds, strict=True))
    ]


@pytest.mark.parametrize("command", sweeps())
def test_a_sweep_that_would_fill_a_cell_composes(command, tmp_path, monkeypatch):
    from dbp.config import build, compose
    from dbp.verbs.command_line import overrides
    from slurm.plan import Composer, expand
    from slurm.settings import Grid, SweepSettings
    from slurm.sweep import divide

    monkeypatch.chdir(tmp_path)
    for name in ("SHARDS/0.tar", "LAION/0.tar", "METADATA/0.parquet", "LID.bin", "IDS", "SETS/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("CENTROIDS.npy", "TARGETS.npy"):
        np.save(tmp_path / name, np.eye(2, 768, dtype=np.float32))
    base, axes = divide(shlex.split(command)[2:])
    settings = build(compose("sweep", overrides(base)).sweep, SweepSettings, "sweep")
    grid = Grid.of(settings, axes, base, "arm")
    points = expand(Composer(overrides(base), []), grid.arms, grid.axes, {})
    assert points
    assert points[0].config.model.name in ("ViT-B-32", "ViT-B-16", "ViT-L-14")


# a transcription of your own


KEEP = "table,row,column,value,unit,steps,keep"


def write_own(folder: Path, *lines: str, heading: str = "table,row,column,value,unit") -> Path:
    file = folder / "own.csv"
    file.write_text("\n".join([heading, *lines]) + "\n")
    return file


def test_a_number_of_your_own_takes_the_place_of_the_one_held_and_says_so(ours, tmp_path):
    file = write_own(tmp_path, '"figure1","SemDeDup + DBP, 222M",ImageNet,65.1,percent',
                     '"figure1","SemDeDup + DBP, 112M",ImageNet,0.65,fraction')  # fmt: skip
    found = ours.beside("dbp", file)
    cell = cell_of(found, "figure1", "SemDeDup + DBP, 222M")
    assert cell.paper.value == pytest.approx(0.651)
    assert (cell.paper.mark, cell.state) == ("own", "ours missing")
    row = next(r for r in table_of(found, "figure1").rows if r.label == "SemDeDup + DBP, 112M")
    assert "ImageNet is held as 64.08" in row.note
    assert "65.1¶" in render(found, "txt")


def test_a_table_that_is_not_held_may_be_added_with_what_makes_its_rows(ours, tmp_path):
    heading = "table,row,column,value,unit,steps,keep,keep_of,settings,command,model"
    file = write_own(
        tmp_path,
        "temperatures,0.1,ImageNet,40.5,percent,dbp,0.6,pool,select.temperature=0.1,slurm/studies/temperature.sh,ViT-B-32",
        "temperatures,0.5,ImageNet,39.5,percent,dbp,0.6,pool,select.temperature=0.5,slurm/studies/temperature.sh,ViT-B-32",
        heading=heading,
    )
    base = {"num_dedup": 50_000_000, "pool_rows": 50_000_000, "num_kept": 30_000_000}
    ours.seeds(("dbp",), [0.4, 0.401, 0.402], **base, settings={"select.temperature": 0.1})
    ours.seeds(("dbp",), [0.3, 0.301, 0.302], **base, settings={"select.temperature": 0.5})
    found = ours.beside("dbp", file)
    assert cell_of(found, "temperatures", "0.1").difference == pytest.approx(0.401 - 0.405)
    assert cell_of(found, "temperatures", "0.5").state == "both"
    order = next(o for o in found.orderings if o.table.startswith("temperatures"))
    assert (order.higher, order.verdict) == ("0.1", "agrees")


@pytest.mark.parametrize(
    ("line", "heading", "said"),
    [
        ("figure1,x", "table,row", r"has no column column, value, unit: its first line must"),
        ("a,b,c,1,percent,z", "table,row,column,value,unit,sauce", r"a column 'sauce'\. Did you mean 'source'"),
        ('figure1,"SemDeDup + DBP, 113M",ImageNet,1,percent', None, r"no row .*Did you mean 'SemDeDup \+ DBP"),
        ('figure1,"SemDeDup + DBP, 112M",ImagNet,1,percent', None, r"no column 'ImagNet'\. Did you mean 'Image"),
        ("t,r,ImageNet,abc,percent", None, r"line 2: value='abc': it must be a number from 0 to 100"),
        ("t,r,ImageNet,120,percent", None, r"value='120': it must be a number from 0 to 100"),
        ("t,r,ImageNet,64,fraction", None, r"value='64': it must be a number from 0 to 1"),
        ("t,r,ImageNet,64,points", None, r"unit='points': It can be: fraction, percent"),
        ("t,r,ImageNt,64,percent", None, r"column='ImageNt' of the new table 't'"),
        ("t,r,ImageNet,64", None, r"another number of cells than the first line"),
        ("t,,ImageNet,64,percent", None, r"line 2: row is empty"),
        ("t,r,ImageNet,64,percent,dpb", "table,row,column,value,unit,steps", r"steps='dpb': Did you mean 'dbp'"),
        ("t,r,ImageNet,64,percent,dbp,x", KEEP, r"keep='x': it must be a number"),
        ("t,r,ImageNet,64,percent,dbp,3", KEEP, r"keep='3': it must be above 0"),
    ],
)  # fmt: skip
def test_a_transcription_that_cannot_be_read_says_where_and_why(ours, tmp_path, line, heading, said):
    file = write_own(tmp_path, line, **({"heading": heading} if heading else {}))
    with pytest.raises(ConfigError, match=said):
        ours.beside("dbp", file)


def test_a_transcription_that_is_missing_empty_twice_or_not_utf8_is_told(ours, tmp_path):
    with pytest.raises(ConfigError, match=r"paper\.numbers=.*nowhere\.csv: it cannot be read"):
        ours.beside("dbp", tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match="has no line with a number"):
        ours.beside("dbp", write_own(tmp_path))
    twice = write_own(tmp_path, "t,r,ImageNet,1,percent", "t,r,ImageNet,2,percent")
    with pytest.raises(ConfigError, match=r"line 3: t, r, ImageNet stands in .* line 2, too"):
        ours.beside("dbp", twice)
    (tmp_path / "latin.csv").write_bytes(b"table,row,column,value,unit\n\xe9")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        ours.beside("dbp", tmp_path / "latin.csv")


def test_a_paper_that_is_not_held_is_told_the_nearest():
    with pytest.raises(ConfigError, match=r"paper=metaclp: .* Did you mean 'metaclip'"):
        compare("metaclp", OurRuns())


# formats


@pytest.fixture
def shown(ours: Runs) -> PaperTables:
    ours.seeds(SEMDEDUP_DBP, [0.7, 0.71, 0.72], **AT_112)
    ours.seeds(SEMDEDUP_DBP, [0.5, 0.51, 0.52], **AT_84)
    return ours.beside("dbp")


def test_all_formats_hold_the_same_numbers(shown):
    texts = {form: render(shown, form) for form in FORMATS}
    read = list(csv.DictReader(io.StringIO(texts["csv"])))
    stored = json.loads(texts["json"])
    cells = [c for t in stored["tables"] for r in t["rows"] for c in r["cells"]]
    assert len(read) == len(cells) == sum(len(r.cells) for t in shown.tables for r in t.rows)
    for line, cell in zip(read, cells, strict=True):
        assert line["state"] == cell["state"]
        assert line["paper_percent"] == cell["paper"]["printed"]
        mine = cell["ours"] and cell["ours"]["value"]
        assert (float(line["ours_percent"]) if line["ours_percent"] else None) == (
            None if mine is None else pytest.approx(100 * mine)
        )
    for form in ("txt", "md", "tex", "html"):
        for number in ("64.08", "71.0", "+6.92", "62.53", "51.0", "-11.53"):
            assert number in texts[form], (form, number)


def test_what_a_format_reads_as_its_own_is_escaped(ours, tmp_path):
    nasty = "<script>alert(1)</script> & 50 % of a_b | {c} $d$ ~^\\"
    found = ours.beside("dbp", write_own(tmp_path, f'"t","{nasty}",ImageNet,1,percent'))
    assert "<script>" not in render(found, "html")
    assert "&lt;script&gt;" in render(found, "html")
    assert "<script>" not in render(found, "md")
    assert "\\|" in render(found, "md")
    tex = render(found, "tex")
    assert r"50 \% of a\_b \textbar{} \{c\} \$d\$ \textasciitilde{}\textasciicircum{}\textbackslash{}" in tex
    assert tex.isascii()


def test_braces_of_the_latex_are_balanced_and_rows_have_all_cells(shown):
    tex = render(shown, "tex")
    bare = re.sub(r"\\[{}\\]", "", tex)
    assert bare.count("{") == bare.count("}")
    for table in tex.split("\\begin{longtable}")[1:]:
        body = table.split("\\end{longtable}")[0]
        columns = body.splitlines()[0].count("p{")
        lines = [line for line in body.splitlines() if line.endswith(("\\\\", "\\endhead"))]
        assert lines
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {columns - 1}


def test_the_latex_compiles_where_pdflatex_is(shown, tmp_path):
    import shutil
    import subprocess

    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    (tmp_path / "t.tex").write_text(render(shown, "tex"))
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
