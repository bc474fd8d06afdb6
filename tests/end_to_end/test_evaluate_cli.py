"""`dbp evaluate` as a person calls it, on miniatures of DataComp's 40 sets and a tiny open_clip model."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from forty import COLUMNS, FLICKR, write_forty, write_model
from miniature import write_classification

from evaluation.tasks import load_tasks

LISTED = [task for task in load_tasks().values() if task.in_datacomp]


# The miniatures have fewer samples than the tasks; here they count as the tasks' own sets.
DBP = (
    "import sys; from dbp.__main__ import main; from evaluation.tasks import FACTS; FACTS.clear(); sys.exit(main())"
)


class House:
    """A folder with sets, weights and configs, and `dbp` run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_forty(folder / "sets")
        letters = folder / "sets" / "wds_glyphs-letters_test"
        write_classification(letters, class_names=["alpha", "beta"], num_samples=20, seed=0)
        _, config = write_model(folder)
        inner = json.loads(config.read_text())
        (folder / "wrapped.json").write_text(json.dumps({"model_cfg": inner}))

    def start(self, *said: str, runs: str = "runs", out: int = subprocess.PIPE, err: int = subprocess.PIPE):
        """Begin an evaluation of the tiny model, in a session of its own."""
        given = {word.partition("=")[0] for word in said}
        default = {"checkpoint": "tiny.pt", "model.config": "tiny.json", "root": "sets"}
        more = [f"{key}={value}" for key, value in default.items() if key not in given]
        command = [
            sys.executable, "-c", DBP, "evaluate", *said, *more, "evaluate.num_workers=0",
            f"paths.store={self.folder / 'store'}", f"paths.runs={self.folder / runs}",
        ]  # fmt: skip
        return subprocess.Popen(
            command, cwd=self.folder, text=True, stdout=out, stderr=err,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"}, start_new_session=True,
        )  # fmt: skip

    def dbp(self, *said: str, runs: str = "runs", status: int = 0) -> str:
        """Evaluate; return what was printed, after the exit status is checked."""
        process = self.start(*said, runs=runs)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, out + err
        assert "Traceback" not in out + err, out + err
        return out + err

    def lines(self, runs: str) -> list[str]:
        files = list((self.folder / runs / "evaluations").glob("*/results.jsonl"))
        return [line for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def whole(house) -> str:
    """What the command of the docs says, on all sets, under DataComp's protocol."""
    return house.dbp(
        "checkpoint=tiny.pt", "model.config=tiny.json", "suite=datacomp38", "root=sets",
        "protocol=datacomp", "precision=fp32", "export.datacomp=out/eval_results.jsonl",
    )  # fmt: skip


def test_the_whole_suite_ends_in_a_table_and_in_datacomps_file(house, whole):
    text = (house.folder / "out" / "eval_results.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["key"], line["dataset"]) for line in lines] == [(task.key, task.name) for task in LISTED]
    assert len(lines) == 40
    main = {line["dataset"]: line["metrics"]["main_metric"] for line in lines}
    assert {name for name, value in main.items() if value is None} == {"FairFace", "UTKFace"}
    means = {c: sum(main[name] for name in names) / len(names) for c, names in COLUMNS.items()}
    scored = [value for value in main.values() if value is not None]
    assert len(scored) == 38
    means["Average"] = sum(scored) / 38
    for name, value in (main | means).items():
        shown = "-" if value is None else f"{value:.3f}"
        assert re.search(rf"^{re.escape(name)} +[\w@-]+ +{shown} ", whole, re.MULTILINE), name
    assert re.search(r"^Average +mean .* 38 of 38$", whole, re.MULTILINE)
    assert "INCOMPLETE" not in whole
    assert "mean of: Flickr, MSCOCO, WinoGAViL" in whole
    assert "under protocol=corrected: FMoW" in whole
    assert "40 tasks evaluated, 0 failed" in whole


def test_every_line_says_how_it_was_measured(house, whole):
    lines = [json.loads(line) for line in house.lines("runs")]
    assert len(lines) == 80
    assert {(line["task"], line["protocol"]) for line in lines} == {
        (task.key, protocol) for task in LISTED for protocol in ("corrected", "datacomp")
    }
    for line in lines:
        assert len(line["checkpoint"]) == len(line["set_digest"]) == 64
        assert line["precision"] == "fp32"
        assert {"torch", "open_clip_torch", "pillow"} <= line["versions"].keys()
        measured = {k for k, v in line["metrics"].items() if v is not None and k[:6] != "count_"}
        assert line["intervals"].keys() == measured


@pytest.mark.slow
def test_a_suite_that_is_killed_goes_on_to_the_results_of_an_undisturbed_run(house, whole):
    suite = "suite=datacomp38"
    process = house.start(suite, runs="killed")
    deadline = time.monotonic() + 120
    while len(house.lines("killed")) < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = house.lines("killed")
    assert 6 <= len(done) < 80
    said = house.dbp(suite, "protocol=datacomp", runs="killed")
    assert "40 tasks evaluated, 0 failed" in said
    tables = [text[text.index("\ntask ") : text.index("40 tasks evaluated")] for text in (said, whole)]
    assert tables[0] == tables[1]
    assert sorted(house.lines("killed")) == sorted(house.lines("runs"))
    assert house.lines("killed")[: len(done)] == done


@pytest.mark.slow
def test_on_a_terminal_each_task_has_a_bar_and_one_that_fails_leaves_the_others(house, whole):
    suite = ["cifar10", "vtab/kitti_closest_vehicle_distance", FLICKR, "glyphs/scripts", "wilds/fmow"]
    terminal, its_end = pty.openpty()
    process = house.start(
        "model.config=wrapped.json", f"suite=[{','.join(suite)}]", "export.clip_benchmark=files",
        runs="wrapped", out=its_end, err=its_end,
    )  # fmt: skip
    os.close(its_end)
    pieces: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(terminal, 65_536):
                pieces.append(piece)

    listener = threading.Thread(target=listen)
    listener.start()
    status = process.wait(timeout=300)
    listener.join()
    os.close(terminal)
    said = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", b"".join(pieces).decode())  # without colours
    assert status == 1, said
    for name in ("CIFAR-10", "KITTI Vehicle Distance", "Flickr", "FMoW"):
        assert re.search(rf"{name} ━.* (30/30|45/45) pictures", said), said
    assert "failed: Glyphs Scripts: There is no set of Glyphs Scripts under" in said
    assert "4 tasks evaluated, 1 failed" in said
    assert "VTAB (INCOMPLETE)" in said
    assert "files is without: wilds/fmow" in said
    # The config was in model_cfg, and is the same model.
    found = [json.loads(line) for line in house.lines("wrapped")]
    assert sorted({line["task"] for line in found}) == sorted({*suite} - {"glyphs/scripts"})
    before = [json.loads(line) for line in house.lines("runs")]
    assert all(line in before for line in found)
    assert len(list((house.folder / "files").iterdir())) == 3
    [file] = (house.folder / "files").glob("vtab_cifar10_*.json")
    [cifar] = [one for one in found if (one["task"], one["protocol"]) == ("cifar10", "corrected")]
    theirs = json.loads(file.read_text())["metrics"]
    assert set(theirs) == {"acc1", "acc5", "mean_per_class_recall"}
    assert theirs.items() <= cifar["metrics"].items()


@pytest.mark.slow
def test_sets_are_verified_before_a_long_run(house):
    said = house.dbp("suite=glyphs/letters", "verify=true", runs="verified")
    assert "ok    glyphs/letters: 20 samples" in said
    assert "1 tasks evaluated, 0 failed" in said
    names = house.folder / "sets" / "wds_glyphs-letters_test" / "classnames.txt"
    names.write_text("alpha\ngamma\n")
    said = house.dbp("suite=glyphs/letters,mnist", "verify=true", runs="verified", status=1)
    assert re.search(r"^WRONG glyphs/letters: Its hash is \w{16} and .*set_hashes.json has", said, re.M)
    assert re.search(r"^WRONG mnist: .*It has 30 samples and the test set has 10,000\.", said, re.M)
    assert "nothing was evaluated" in said


def test_the_help_says_how_the_sets_lie_and_where_they_come_from(house):
    command = [sys.executable, "-m", "dbp", "evaluate", "--help"]
    said = subprocess.run(command, text=True, capture_output=True, timeout=60, check=True).stdout
    for words in (
        "checkpoint=FILE", "model.config=FILE", "suite=datacomp38", "root=FOLDER", "classnames.txt",
        "zeroshot_classification_templates.txt", "test/nshards.txt", "test/0.tar",
        "download_evalsets.py",
    ):  # fmt: skip
        assert words in said


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("protocol=datacmp", "datacmp"),
        ("suite=datacomp39", "suite=datacomp39 is neither a suite nor a task. Did you mean"),
        ("checkpoint=gone.pt", "checkpoint='gone.pt' is no file and no folder, and as the key of a run, "),
    ],
)
def test_a_wrong_setting_gives_one_clear_line(house, wrong, line):
    said = house.dbp(wrong, status=1)
    assert line in said
    assert len([text for text in said.splitlines() if text.strip()]) == 1, said
