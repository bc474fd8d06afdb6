"""`dbp report` on a real sweep: the page in headless Chromium, and stores that are not as they were."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_toys import CHROMIUM, EVIL, RIGHT_TO_LEFT, shown, synthetic

from dbp.__main__ import main
from dbp.data.pool import Pool
from evaluation.report.page.write import page
from slurm.sweep import main as sweep

SMALL = [
    "experiment=glyphs_methods", "pool.plan.num_pairs=600", "pool.plan.task_pictures=60",
    "sweep.encoder.train.samples_seen=1920", "train.samples_seen=64", "train.batch_size=32",
    "train.log_every_samples=32", "cluster.num_clusters=6", "dedup=semdedup_smoke",
    "sweep.workers=1", "suite=[glyphs/letters,glyphs/retrieval]", "evaluate.limit=40",
    "evaluate.max_templates=1", "sweep.seed=[0]", "sweep.select.temperature=[0.0001,0.1]", "sweep.plots=false",
]  # fmt: skip
pytestmark = pytest.mark.slow  # a sweep of seven arms
NEEDS = pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A store and runs after a sweep of six arms, one of which fails."""
    folder = tmp_path_factory.mktemp("report")
    greedy = "+sweep.arms.greedy={select:uniform,budget:{num_kept:10000,keep_fraction:null}}"
    where = [f"paths.store={folder}/store", f"paths.runs={folder}/runs"]
    assert sweep([*SMALL, greedy, *where], []) == 1
    return folder


def report(home: Path, *words: str) -> int:
    return main(["report", *words, f"paths.store={home}/store", f"paths.runs={home}/runs"])


@pytest.fixture(scope="module")
def captions():
    """Two captions of the pool in place of what is there: markup, and text from right to left."""
    before = Pool.caption

    def caption(self: Pool, row: int) -> str:
        return {0: EVIL, 1: RIGHT_TO_LEFT}.get(int(row) % 3) or before(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "caption", caption)
        yield


@pytest.fixture(scope="module")
def made(home, captions):
    """The folder of the sweep's report."""
    assert report(home, "glyphs_methods") == 0
    return home / "runs" / "reports" / "glyphs_methods"


@pytest.fixture
def open_page(made):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with shown(made / "report.html") as (tab, wrongs):
        yield tab
        assert wrongs == []


def data_of(folder: Path) -> dict:
    text = (folder / "report.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))  # type: ignore[union-attr]


def test_each_method_stands_once_with_its_settings_its_source_and_its_arms(made):
    methods = {(one["stage"], one["word"]): one for one in data_of(made)["methods"]}
    ssp = methods["select", "ssp"]
    assert ssp["about"] == "Keep the hardest (or easiest, or random) rows by distance to their centroid."
    assert "Sorscher et al. 2022" in ssp["source"]
    assert "members=hard" in ssp["settings"]
    assert ssp["arms"] == ["ssp"]
    assert set(methods["dedup", "semdedup"]["arms"]) > {"uniform", "ssp"}
    assert ("select", "none") not in methods


# the page, as a person uses it


def test_a_click_on_a_cluster_shows_its_quotas_and_its_members(open_page):
    discs = open_page.locator("#clusters circle[data-cluster]")
    assert discs.count() == 6
    for at in (2, 4):
        number = discs.nth(at).get_attribute("data-cluster")
        discs.nth(at).dispatch_event("click")
        assert open_page.locator(".detail h3").inner_text() == f"Cluster {number}"
        text = open_page.locator(".detail").inner_text()
        assert "quota at temperature 0.0001" in text
        assert "ssp" in text
        members = open_page.locator("#clusters .picture")
        assert members.count() >= 8
        assert "distance" in members.first.inner_text()
        assert re.search("select: |dedup: ", members.first.inner_text())


def test_the_slider_moves_the_quotas_to_the_temperatures_of_the_sweep(open_page):
    told = open_page.locator("#clusters [role=status]")
    before = told.inner_text()
    slider = open_page.locator("#temperature")
    assert slider.get_attribute("max") == "1"
    slider.focus()
    slider.press("ArrowRight" if "temperature 0.0001" in before else "ArrowLeft")
    after = told.inner_text()
    assert {before.split(":")[0], after.split(":")[0]} == {"temperature 0.0001", "temperature 0.1"}
    assert before.split(":")[1] != after.split(":")[1]
    assert open_page.locator("#temperature").get_attribute("aria-valuetext") in after


def test_arrow_keys_go_through_the_clusters(open_page):
    scatter = open_page.locator("svg.scatter")
    names = set()
    for _ in range(6):
        scatter.press("ArrowLeft")
        names.add(open_page.locator(".detail h3").inner_text())
    assert len(names) >= 3


def column(tab, at: int) -> list[str]:
    return tab.locator(f"#results tbody tr td:nth-child({at})").all_inner_texts()


def test_a_click_on_a_heading_sorts_the_table_both_ways(open_page):
    heading = open_page.locator("#results thead th").filter(has_text="mean")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = [float(text.split()[0]) for text in column(open_page, 8)]
    assert len(values) == 6
    assert values == sorted(values, reverse=True)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    values = [float(text.split()[0]) for text in column(open_page, 8)]
    assert values == sorted(values)
    assert "greedy" in column(open_page, 1)[-1], "what has no value comes last"


def test_the_filter_leaves_the_arms_that_hold_its_words(open_page):
    open_page.locator("#results input[type=search]").fill("DBP")
    assert [text.split("\n")[0] for text in column(open_page, 1)] == [
        "dbp temperature=0.0001", "dbp temperature=0.1",
    ]  # fmt: skip
    open_page.locator("#results input[type=search]").fill("no such arm")
    assert column(open_page, 1) == []
    assert "0 of 7 arms" in open_page.locator("#results [role=status]").inner_text()


def test_a_caption_that_is_a_script_stays_text_and_right_to_left_text_runs_so(open_page):
    texts = open_page.locator(".caption").all_inner_texts()
    assert EVIL in texts
    assert RIGHT_TO_LEFT in texts
    assert open_page.locator("main script").count() == 0
    right = open_page.locator(".caption", has_text=RIGHT_TO_LEFT).first
    assert right.evaluate("one => getComputedStyle(one).direction") == "rtl"


def test_the_failed_arm_stands_in_the_table_with_its_reason(open_page):
    row = open_page.locator("#results tbody tr", has_text="greedy")
    assert "unfinished" in row.inner_text()
    assert "cannot keep 10,000 rows" in row.inner_text()


def test_the_funnel_opens_to_the_reasons_and_provenance_to_the_command(open_page):
    first = open_page.locator("#funnel details").nth(1)
    first.locator("summary").click()
    assert "rows that came" in first.inner_text()
    artifact = open_page.locator("#provenance details.artifact").first
    artifact.locator("summary").click()
    artifact.get_by_text('"versions"').wait_for()


@NEEDS
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_400_pixels_nothing_is_wider_than_the_page(made, scheme):
    with shown(made / "report.html", 400, color_scheme=scheme) as (tab, wrongs):
        assert tab.evaluate("document.documentElement.scrollWidth") == 400
        assert wrongs == []


@NEEDS
def test_forty_arms_and_five_hundred_clusters_show_in_time(tmp_path):
    data = synthetic(40, 500, 12)
    for sample in data["clusterings"][0]["samples"]:
        sample["picture"] = None
    (tmp_path / "report.html").write_text(page(data, []))
    with shown(tmp_path / "report.html") as (tab, wrongs):
        assert tab.locator("#results tbody tr").count() == 40
        assert tab.locator("circle[data-cluster]").count() == 500
        # 2 s is the goal, which the benchmark measures; here the machine may be busy with others.
        assert float(tab.evaluate("document.documentElement.dataset.shown")) < 10_000
        assert wrongs == []


# the files


def test_page_and_files_hold_the_same_numbers(made):
    data = data_of(made)
    (group,) = data["groups"]
    sheet = list(csv.DictReader((made / "table.csv").open()))
    lines = [json.loads(line) for line in (made / "table.jsonl").read_text().splitlines()]
    assert len(sheet) == len(lines) == sum(len(cells) for cells in group["cells"].values())
    markdown, latex = ((made / f"table.{kind}").read_text() for kind in ("md", "tex"))
    for row, line in zip(sheet, lines, strict=True):
        cell = group["cells"][row["arm"]][row["column"]]
        assert (row["text"], line["text"]) == (cell["text"], cell["text"])
        assert float(row["value"]) == line["value"] == cell["value"]
        assert cell["text"] in markdown
        assert cell["text"].replace("±", "$\\pm$") in latex


def test_every_figure_is_there_as_png_and_as_svg(made):
    names = {file.stem for file in (made / "figures").glob("*.png")}
    assert {"accuracy", "kept", "compute", "overlap", "clusters", "sizes"} <= names
    assert {file.stem for file in (made / "figures").glob("*.svg")} == names


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_table_of_the_sweep_compiles(made, tmp_path):
    shutil.copy(made / "table.tex", tmp_path)
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\n\\begin{document}\n\\input{table}\n\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "main.tex"], cwd=tmp_path, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_what_the_page_says_of_a_cluster_is_what_the_arms_kept(home, made):
    data = data_of(made)
    (one,) = data["clusterings"]
    for arm in one["arms"]:
        kept = next(a["kept"] for a in data["arms"] if a["name"] == arm["name"])
        if arm["name"] in one["used_by"]:
            assert sum(arm["kept"]) == kept
        if arm["name"] in one["own_temperature"]:
            t = one["temperatures"]
            at = t["values"].index(one["own_temperature"][arm["name"]])
            assert t["quotas"][t["budgets"].index(kept)][at] == arm["kept"]


# stores that are not as they were


def test_keys_alone_are_enough(home, tmp_path, capsys):
    lines = (home / "runs/sweeps/glyphs_methods/results.jsonl").read_text().splitlines()
    runs = {line["arm"]: line for line in map(json.loads, lines)}
    keys = [runs[name]["evaluate_key"] for name in ("uniform", "ssp")]
    keys += [runs["dbp temperature=0.1"]["train_key"], runs["clip score"]["keep_key"]]
    assert report(home, *keys, f"out={tmp_path}/o", "figures=false") == 0
    assert "report of 4 arms, 2 not finished" in capsys.readouterr().out
    arms = {arm["name"]: arm for arm in data_of(tmp_path / "o")["arms"]}
    assert arms["ssp"]["control"] == "uniform"
    assert arms["dbp"]["problems"] == ["seed 0: not evaluated"]
    assert "a keep list alone" in arms["clip score"]["problems"][0]


def test_a_single_arm_makes_a_page(home, tmp_path):
    lines = (home / "runs/sweeps/glyphs_methods/results.jsonl").read_text().splitlines()
    key = json.loads(lines[-1])["evaluate_key"]
    assert report(home, key, f"out={tmp_path}/o", "figures=false") == 0
    assert "A single arm" in (tmp_path / "o" / "table.md").read_text()


def test_a_moved_store_and_missing_shards_leave_a_page_that_says_so(home, captions, tmp_path, capsys):
    shutil.copytree(home / "runs", tmp_path / "runs")
    assert report(tmp_path, "glyphs_methods", "figures=false") == 0  # no store at all
    folder = tmp_path / "runs/reports/glyphs_methods"
    data = data_of(folder)
    assert data["clusterings"] == data["funnels"] == []
    assert any("no longer in the store" in problem for problem in data["problems"])
    assert len(data["groups"][0]["cells"]) == 6, "results need no store of curation"
    shutil.copytree(home / "store", tmp_path / "store")
    for shard in (tmp_path / "store/render").rglob("*.tar"):
        shard.unlink()
    assert report(tmp_path, "glyphs_methods", "figures=false") == 0
    data = data_of(folder)
    assert any("pictures are missing on this page" in problem for problem in data["problems"])
    assert all(sample["picture"] is None for sample in data["clusterings"][0]["samples"])
    shutil.rmtree(tmp_path / "runs/evaluate")
    assert report(tmp_path, "glyphs_methods", "figures=false") == 0
    arms = data_of(folder)["arms"]
    assert all("removed, or the store was moved" in a["problems"][0] for a in arms if a["name"] != "greedy")
    assert "7 not finished" in capsys.readouterr().out.splitlines()[-1]


def test_other_protocols_stand_in_a_table_of_their_own(home, tmp_path):
    shutil.copytree(home / "runs", tmp_path / "runs")
    lines = (home / "runs/sweeps/glyphs_methods/results.jsonl").read_text().splitlines()
    key = next(one["evaluate_key"] for one in map(json.loads, lines) if one["arm"] == "ssp")
    file = tmp_path / "runs/evaluate" / key / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["parameters"]["limit"] = 39
    file.write_text(json.dumps(manifest))
    assert report(tmp_path, "glyphs_methods", "figures=false") == 0
    data = data_of(tmp_path / "runs/reports/glyphs_methods")
    assert [list(group["cells"]) for group in data["groups"]][1:] == [["ssp"]]
    assert data["groups"][1]["reason"] == "limit: 40 and 39"
    assert "(apart: limit: 40 and 39)" in (tmp_path / "runs/reports/glyphs_methods/table.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gliphs_methods"], "As a sweep: Did you mean 'glyphs_methods'"),
        (["pictures=some"], "ConfigError: pictures='some': it must be a whole number, 0 for none"),
        (["figures=no"], "ConfigError: figures='no': it must be true or false"),
    ],
)
def test_a_mistake_is_told_what_would_be_right(home, capsys, words, message):
    assert report(home, *words) == 1
    assert message in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_refused(home, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert report(home, f"out={tmp_path}/taken") == 1
    assert "is a file. Name a folder" in capsys.readouterr().err


def test_with_nothing_to_report_on_the_way_out_is_said(tmp_path, capsys):
    assert report(tmp_path) == 1
    assert "there is no arm to report on" in capsys.readouterr().err


@pytest.mark.parametrize("no_color", ["", "1"])
def test_bars_tell_unit_total_and_rate_and_heed_no_color(no_color, tmp_path):
    code = (
        "import os, pty, sys\n"
        "if os.environ.get('INNER'):\n"
        "    import time\n"
        "    from dbp.engine.progress import progress\n"
        "    with progress('embedding', 40, 'rows') as bar:\n"
        "        for _ in range(40): bar.advance(); time.sleep(0.02)\n"
        "else:\n"
        "    os.environ['INNER'] = '1'\n"
        "    pty.spawn([sys.executable, '-c', sys.argv[1]])\n"
    )
    env = {"PATH": "/usr/bin:/bin", "TERM": "xterm-256color", "COLUMNS": "120"}
    env |= {"NO_COLOR": no_color} if no_color else {}
    done = subprocess.run(
        [sys.executable, "-c", code, code], env=env, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    for word in ("embedding", "/40", "rows", "/s", "0:00:0"):
        assert word in done.stdout
    colours = re.search(r"\x1b\[[0-9;]*3[0-9]", done.stdout)
    assert (colours is None) == bool(no_color)


def test_a_pipe_gets_no_bar_but_a_line_now_and_then_with_the_time_left(caplog, monkeypatch):
    import dbp.engine.progress as told

    now = iter([0.0, 61.0])
    monkeypatch.setattr(told.time, "monotonic", lambda: next(now))
    with caplog.at_level("INFO", "dbp"), told.progress("embedding", 400, "rows") as bar:
        bar.advance(100)
    assert caplog.messages == ["embedding: 100 of 400 rows, 1.6/s, 0:03:03 left"]
    assert told.rate_text(0.25) == "4.0 s each"
