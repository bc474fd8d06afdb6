"""The report's parts: what the page may carry, which numbers agree, who stands beside whom."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_toys import EVIL, RIGHT_TO_LEFT, shown, synthetic

from dbp.data.clusters import Clusters
from dbp.data.images import Undecodable
from dbp.data.keep_list import everything
from dbp.data.pool import Pool
from dbp.engine.store import Entry
from dbp.errors import PoolError, WorldError
from evaluation.report.page import tables
from evaluation.report.page.concepts import members
from evaluation.report.page.curation import Overlaps, fates, funnel
from evaluation.report.page.pairs import _ends
from evaluation.report.page.pictures import CELL, ON_A_SHEET, Pictures
from evaluation.report.page.roster import NamedArm, NamedRun, Roster, from_keys, joined
from evaluation.report.page.runs import Column, Group, Measured, group
from evaluation.report.page.write import page
from evaluation.report.table import csv_text, json_lines, latex, latex_text, markdown
from evaluation.statistics.comparison import Cell, Run


class ToyPool(Pool):
    """Rows whose fourth picture cannot be decoded and whose fifth is not where the index says."""

    def __init__(self) -> None:
        object.__setattr__(self, "digest", "toy")

    def image(self, row: int) -> Image.Image:
        if row == 3:
            raise Undecodable("not an image")
        if row == 4:
            raise PoolError("shard 0 cannot be opened")
        return Image.new("RGB", (300, 150), (row, 0, 0))


# pictures


def test_a_row_is_on_the_page_once_and_what_cannot_be_read_is_counted():
    pictures = Pictures(most=10)
    asked = [pictures.add(ToyPool(), row) for row in (0, 1, 0, 3, 4, 4, 2)]
    assert asked == [0, 1, 0, None, None, None, 2]
    assert sum(pictures.problems.values()) == 2
    assert any("shard 0 cannot be opened" in reason for reason in pictures.problems)


def test_no_more_pictures_than_asked_for_and_the_sheet_holds_each_in_its_cell():
    pictures = Pictures(most=2)
    assert [pictures.add(ToyPool(), row) for row in (0, 1, 2)] == [0, 1, None]
    assert pictures.left_out == 1
    pictures.finish()
    with Image.open(io.BytesIO(pictures.sheets[0])) as sheet:
        assert sheet.format == "WEBP"
        assert sheet.size == (16 * CELL, CELL)
        middle = sheet.convert("RGB").getpixel((CELL + CELL // 2, CELL // 2))
        assert sum(middle) < 30  # type: ignore[arg-type]  # a dark picture, in the second cell
        corner = sheet.convert("RGB").getpixel((CELL + CELL // 2, 2))
        assert sum(corner) > 700  # type: ignore[arg-type]  # 2:1, so that there is paper above it


def test_pictures_stop_where_their_bytes_do():
    pictures = Pictures(most=10_000, most_bytes=1)
    for row in range(ON_A_SHEET + 20):
        pictures.add(_Plain(), row)
    assert (pictures.num_pictures, pictures.left_out) == (ON_A_SHEET, 20)


class _Plain(ToyPool):
    def image(self, row: int) -> Image.Image:
        return Image.new("RGB", (8, 8))


# curation


def keep_list():
    """Ten rows: one invalid, three duplicates, then four of the six kept."""
    valid = np.arange(10) != 9
    keep = everything("pool", valid, "no caption")
    keep = keep.within("dedup", ~np.isin(np.arange(10), [0, 1, 2]), "duplicate", "not near any")
    return keep.within("select", np.arange(10) >= 5, "beyond the quota", "within the quota")


def test_the_funnel_accounts_for_every_row():
    steps = funnel(keep_list())
    assert [(s["stage"], s["before"], s["after"]) for s in steps] == [
        ("pool", 10, 9), ("dedup", 9, 6), ("select", 6, 4),
    ]  # fmt: skip
    assert [s["reasons"] for s in steps] == [
        [["no caption", 1]], [["duplicate", 3]], [["beyond the quota", 2]],
    ]  # fmt: skip


def test_the_fate_of_a_row_is_what_the_last_stage_said_of_it():
    reasons, numbers = fates(keep_list(), np.array([9, 0, 3, 5, 6]))
    said = [tuple(reasons[number]) for number in numbers]
    assert said == [
        (False, "pool", "no caption"), (False, "dedup", "duplicate"),
        (False, "select", "beyond the quota"), (True, "select", "within the quota"),
        (True, "select", "within the quota"),
    ]  # fmt: skip


def test_overlap_is_what_sets_of_rows_say():
    draw = np.random.default_rng(0)
    masks = [draw.random(77) < share for share in (0.2, 0.5, 0.9, 0.0)]
    overlaps = Overlaps(77)
    for at, mask in enumerate(masks):
        overlaps.add(str(at), everything("p", mask))
    found = overlaps.table()["jaccard"]
    rows = [set(np.flatnonzero(mask)) for mask in masks]
    for i, first in enumerate(rows):
        for j, second in enumerate(rows):
            either = len(first | second)
            assert found[i][j] == pytest.approx(len(first & second) / either if either else 1.0, abs=1e-4)


def test_the_sample_of_clusters_is_bounded_and_shows_both_sides_of_each():
    draw = np.random.default_rng(1)
    assignment = draw.integers(0, 5000, 60_000).astype(np.int32)
    distance = draw.random(60_000).astype(np.float32)
    clusters = Clusters(np.eye(5000, 2, dtype=np.float32) + 1, assignment, distance)
    keep = everything("p", draw.random(60_000) < 0.5)
    rows, shown = members(clusters, [keep], draw.random(5000).tolist(), 800)
    assert len(shown) == 100
    assert len(rows) <= 800
    for cluster in shown:
        mine = rows[assignment[rows] == cluster]
        assert (np.diff(distance[mine]) >= 0).all()
        everyone = np.flatnonzero(assignment == cluster)
        for side in (True, False):
            have = int((keep.mask[mine] == side).sum())
            assert have >= min(4, int((keep.mask[everyone] == side).sum()))


def test_the_ends_of_a_column_are_its_smallest_values_in_order():
    values = np.array([3.0, 1.0, 1.0, 9.0, 1.0, 0.5])
    mask = np.array([1, 1, 1, 1, 1, 0], bool)
    assert _ends(mask, values, 2) == [1, 2]
    assert _ends(mask, -values, 2) == [3, 0]
    assert _ends(mask, values, 99) == [1, 2, 4, 0, 3]


# tables


def a_group(name: str = "dbp_50% & more") -> Group:
    facts = {"kept": 1234, "samples_seen": 5, "steps": 1, "train_flops": 2e9}
    runs = [Run(seed, [], facts) for seed in (0, 1, 2)]
    cells = {
        "uniform": {"mean": Cell(0.2512, (0.24, 0.26), (0.25, 0.2512, 0.2524))},
        name: {"mean": Cell(0.3, (0.28, 0.33), (0.29, 0.3, 0.31), 0.0488, (0.01, 0.09), 0.001, 0.01, True)},
    }
    arms = [
        Measured(NamedArm("uniform", "uniform"), 0, runs),
        Measured(NamedArm(name, name, "uniform"), 1, runs),
        Measured(NamedArm("late|arm", "late"), 2, [], ["seed 0: unfinished"]),
    ]
    return Group("suite x", "", arms, [Column("mean", "mean", "plain mean", True)], cells, ["A note."])


def test_all_four_formats_hold_the_same_numbers():
    groups = [a_group()]
    lines = [json.loads(line) for line in json_lines(tables.long_rows(groups)).splitlines()]
    sheet = list(csv.DictReader(io.StringIO(csv_text(tables.LONG, tables.long_rows(groups)))))
    md = markdown([tables.table_of(groups[0])]).replace("\\", "")
    tex = latex([tables.table_of(groups[0])]).replace("$\\pm$", "±")
    assert len(lines) == len(sheet) == 2
    for line, row in zip(lines, sheet, strict=True):
        for name in ("value", "low", "high"):
            assert float(row[name]) == line[name]
        assert float(row["difference"] or "nan") == pytest.approx(line["difference"] or np.nan, nan_ok=True)
        assert row["text"] == line["text"]
        for text in (line["text"], line["difference_text"]):
            assert text in md
            assert latex_text(text).replace("$\\pm$", "±") in tex
    assert lines[1]["text"] == "30.0 ±2.5"
    assert lines[1]["difference_text"] == "+4.9 [+1.0, +9.0]"


def test_bold_stands_only_where_the_verdict_says_so():
    made = tables.table_of(a_group())
    assert [row[-1].is_bold for row in made.rows] == [False, True, False]
    assert markdown([made]).count("**") == 2
    assert latex([made]).count("\\textbf{") == 1
    unsure = a_group()
    unsure.cells["dbp_50% & more"]["mean"] = replace(unsure.cells["dbp_50% & more"]["mean"], is_separate=False)
    assert "**" not in markdown([tables.table_of(unsure)])


def test_an_unfinished_arm_stands_in_the_table_with_its_reason_and_no_cell_is_broken():
    text = markdown([tables.table_of(a_group())])
    row = next(line for line in text.splitlines() if "late" in line)
    assert "no result: seed 0: unfinished" in row
    assert len(re.findall(r"(?<!\\)\|", row)) == len(tables.table_of(a_group()).heading) + 1


@pytest.mark.parametrize("text", ["50% & a_b #1 {x} ~ ^ \\ <>|\"'`", "λ=0.1 ± 2", "日本", EVIL])
def test_latex_has_no_letter_left_that_means_something_to_it(text):
    made = latex_text(text)
    assert made.isascii()
    bare = re.sub(r"\\[a-zA-Z]+\{\}|\\[&%$#_{}]|\\`\{\}|\$\\[a-z]+\$|\$-\$|\{[]*[]\}", "", made)
    assert not re.search(r"[\\&%$#_{}~^<>|]", bare)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_table_compiles(tmp_path):
    tex = latex([tables.table_of(a_group("λ_1 50% & <x> {y} ~ ^ \\ \"q\" 'a' `b` 日"))])
    (tmp_path / "table.tex").write_text(tex)
    document = "\\documentclass{article}\n\\begin{document}\n\\input{table}\n\\end{document}\n"
    (tmp_path / "main.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_name_that_a_spreadsheet_would_run_is_quoted():
    sheet = list(csv.DictReader(io.StringIO(csv_text(tables.LONG, tables.long_rows([a_group("=HYPERLINK(1)")])))))
    assert sheet[1]["arm"] == "'=HYPERLINK(1)"


# the page


def test_no_caption_can_end_the_element_that_holds_the_data():
    data = synthetic(2, 3, 2)
    data["title"] = f"</script>{EVIL}<!--"
    text = page(data, [])
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert inside
    assert json.loads(inside.group(1)) == data
    assert not set("<>&") & set(inside.group(1))
    assert EVIL not in text


def test_half_of_a_surrogate_pair_does_not_keep_a_page_from_being_written():
    data = synthetic(1, 2, 2)
    data["notes"] = ["broken \ud83d caption"]
    page(data, []).encode("utf-8")


def test_the_page_names_no_address_and_sets_no_markup_from_text():
    text = page(synthetic(1, 1, 1), [])
    addresses = set(re.findall(r"https?://[^\"' ]+", text)) - {"http://www.w3.org/2000/svg"}
    assert not addresses
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_the_page_in_a_browser_answers_to_clicks_and_keeps_captions_text(tmp_path):
    data = synthetic(8, 12, 8)
    for sample in data["clusterings"][0]["samples"]:
        sample["picture"] = None
    (tmp_path / "report.html").write_text(page(data, []))
    with shown(tmp_path / "report.html") as (tab, wrongs):
        tab.locator("circle[data-cluster='0']").dispatch_event("click")
        assert tab.locator(".detail h3").inner_text() == "Cluster 0"
        captions = tab.locator("#clusters .caption").all_inner_texts()
        assert {EVIL, RIGHT_TO_LEFT} <= set(captions)
        assert len(captions) == 8
        share = tab.locator(".detail tr", has_text="quota at temperature 0.5").inner_text()
        tab.locator("#temperature").press("End")
        assert "temperature 0.5" in tab.locator("#clusters [role=status]").inner_text()
        assert "60." in share or "59." in share
        heading = tab.locator("#results thead th").filter(has_text="task 0")
        for order in ("descending", "ascending"):
            heading.locator("button").click()
            assert heading.get_attribute("aria-sort") == order
            cells = tab.locator("#results tbody tr td:nth-child(6)").all_inner_texts()
            values = [float(text.split()[0]) for text in cells]
            assert values == sorted(values, reverse=order == "descending")
        tab.locator("#results input[type=search]").fill("ssp")
        assert tab.locator("#results tbody tr").count() == 2
        assert wrongs == []


# rosters and groups


def entry(stage: str, key: str, parameters: dict, inputs: dict[str, "Entry"], **more) -> Entry:
    above = {n: {"stage": e.stage, "key": e.key, "identity": e.key} for n, e in inputs.items()}
    manifest = {
        "key": key, "stage": stage, "parameters": parameters, "inputs": above, "counts": {"kept": 9},
        "files": {}, "seconds": 1.0, "version": 1, **more,
    }  # fmt: skip
    return Entry(Path(key), manifest)


def made_run(method: str, seed: int, **parameters):
    name = f"{method}{seed}{''.join(map(str, parameters.values()))}"
    places = {"Uniform": "select/uniform", "Density": "dbp.selection.density.Density"}
    target = {"_target_": places.get(method, f"m.{method}")}  # by name, by place, and of other people
    select = entry("select", f"s{name}", {"seed": seed, **parameters}, {}, made_by=target)
    train = entry("train", f"t{name}", {"seed": seed, "lr": 1}, {"keep": select})
    return [select, train, entry("evaluate", f"e{name}", {"suite": "x"}, {"checkpoint": train})]


def test_runs_that_differ_in_seeds_alone_are_one_arm_and_uniform_is_the_control():
    runs = [made_run("Uniform", s) for s in (0, 1)]
    runs += [made_run("Density", s, temperature=t) for t in (0.1, 0.5) for s in (0, 1)]
    found = {one.key: one for run in runs for one in run}
    roster = from_keys(found, [run[-1] for run in runs])
    assert [(arm.name, arm.control, len(arm.runs)) for arm in roster.arms] == [
        ("uniform", None, 2), ("dbp temperature=0.1", "uniform", 2), ("dbp temperature=0.5", "uniform", 2),
    ]  # fmt: skip
    assert [run.seed for run in roster.arms[0].runs] == [0, 1]


def test_a_roster_comes_back_as_it_was_saved_and_two_keep_their_arms_apart(tmp_path):
    arm = NamedArm("dbp", "dbp", "uniform", (NamedRun(0, "k", "t", "e"), NamedRun(1, problem="x")))
    first = Roster("one", (NamedArm("uniform", "uniform"), arm), ("a note",), ("enc",))
    first.save(tmp_path)
    assert Roster.load(tmp_path) == first
    both = joined([first, replace(first, title="two")])
    assert [a.name for a in both.arms] == [
        "uniform (one)", "dbp (one)", "uniform (two)", "dbp (two)",
    ]  # fmt: skip
    assert [a.control for a in both.arms] == [None, "uniform (one)", None, "uniform (two)"]


def test_a_damaged_roster_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "arms.json").write_text('{"title": 3}')
    with pytest.raises(WorldError, match=r"cannot be read .* Run dbp sweep again"):
        Roster.load(tmp_path)
    with pytest.raises(WorldError, match=r"holds neither arms\.json nor results\.jsonl"):
        Roster.load(tmp_path / "nowhere")


def test_arms_that_were_measured_otherwise_stand_apart_with_the_reason():
    def arm(number: int, **how) -> Measured:
        facts = {"samples_seen": 1, "batch_size": 1}
        return Measured(NamedArm(f"a{number}", "m"), number, [Run(0, [], facts)], [], how)

    same = {"suite": "quick", "limit": None, "protocol": "corrected"}
    arms = [arm(0, **same), arm(1, **same | {"protocol": "datacomp"}), arm(2, **same)]
    idle = Measured(NamedArm("idle", "m"), 3, [], ["seed 0: unfinished"])
    groups = group([*arms, idle])
    assert [[a.named.name for a in one.arms] for one in groups] == [["a0", "a2", "idle"], ["a1"]]
    assert groups[1].reason == "protocol: corrected and datacomp"
    assert any("Unfinished: idle" in said for said in groups[0].notes)
