"""A sweep as SLURM's jobs, with stand-ins for its commands: what is asked, what is told, what goes wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from slurm_toys import Home, Slurm, option, point, toy

from dbp.errors import WorldError
from slurm import task
from slurm.cluster.jobs import SCRIPT, Sweep, code
from slurm.cluster.manifest import Manifest, read_points


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path / "bin", monkeypatch)


# what is handed in


def test_all_jobs_go_on_after_those_before_them_however_they_end(tmp_path: Path, slurm: Slurm) -> None:
    home = Home(tmp_path, launcher=["launcher.partition=main", "launcher.shared.mem_gb=1.5"])
    assert home.sweep().hand_in(by_person=True) == 0
    shared, arm, evaluate, report = slurm.calls("sbatch")
    assert not [word for word in shared if word.startswith("--dependency")]
    assert [option(said, "dependency") for said in (arm, evaluate, report)] == [
        "afterany:101", "afterany:102", "afterany:103"
    ]  # fmt: skip
    assert [option(said, "job-name") for said in (shared, arm, evaluate, report)] == [
        "dbp-toys-shared", "dbp-toys-arm", "dbp-toys-evaluate", "dbp-toys-report"
    ]  # fmt: skip
    assert {option(said, "partition") for said in slurm.calls("sbatch")} == {"main"}
    assert option(shared, "mem") == "1536M"
    assert option(arm, "array") == "0-1"
    assert report[report.index("-m") :] == ["-m", "dbp", "sweep", "resume", "experiment=toys"]
    assert [job.elements for job in home.manifest().jobs] == [
        [home.keys], [[key] for key in home.keys], [home.keys], [[]]
    ]  # fmt: skip
    slurm.say("queue", "102|0|RUNNING|None|1:00\n102|1|PENDING|Resources|1:00\n")
    assert home.sweep().hand_in(by_person=True) == 0
    assert len(slurm.calls("sbatch")) == 4, "all that is missing is in the queue"


def test_what_is_there_is_not_handed_in(tmp_path: Path, slurm: Slurm) -> None:
    home = Home(tmp_path, num_points=3)
    home.make(home.rows, toy("sets"), home.points[0].last, home.points[1].nodes["train"])
    home.sweep().hand_in(by_person=True)
    arm, evaluate, _ = home.manifest().jobs
    assert (arm.role, arm.elements) == ("arm", [[home.keys[2]]])
    assert (evaluate.role, evaluate.elements) == ("evaluate", [home.keys[1:]])


def test_more_tasks_than_an_array_may_have_go_into_several(tmp_path: Path, slurm: Slurm) -> None:
    few = ["launcher.max_array=3", "launcher.throttle=2", "launcher.checkpoints_per_job=4"]
    home = Home(tmp_path, 7, few)
    home.make(home.rows, toy("sets"))
    home.sweep().hand_in(by_person=True)
    *arms, evaluate, _ = slurm.calls("sbatch")
    assert [option(words, "array") for words in arms] == ["0-2%2", "0-2%2", "0-0%2"]
    assert option(evaluate, "dependency") == "afterany:101:102:103"
    found: list[str] = []
    for words, job in zip(arms, home.manifest().jobs, strict=False):
        _, file, role, first = words[words.index("slurm.task") + 1 :]
        for number, keys in enumerate(job.elements):
            ((key, config),) = read_points(Path(file), role, int(first) + number)
            assert [key] == keys
            found.append(config["name"])
    assert found == [f"arm {n}" for n in range(7)]


def test_arms_that_share_a_job_are_processes_that_do_not_fall_together(tmp_path: Path, slurm: Slurm) -> None:
    home = Home(tmp_path, 5, ["launcher.arms_per_job=2"])
    home.make(home.rows, toy("sets"))
    home.sweep().hand_in(by_person=True)
    arm, evaluate, _ = slurm.calls("sbatch")
    assert (option(arm, "ntasks"), option(arm, "array")) == ("2", "0-2")
    assert option(evaluate, "ntasks") == "1"
    together = [words[words.index(str(SCRIPT)) + 2] for words in (arm, evaluate)]
    assert together == ["0", "1"]


def test_a_job_runs_the_lines_of_the_site_and_its_words_before_python(tmp_path: Path, slurm: Slurm) -> None:
    site = ["launcher.setup=['export SITE=here']", "launcher.command=['env','FROM=prefix']"]
    home = Home(tmp_path, launcher=[*site, "launcher.options=['--qos=long']"])
    home.sweep().hand_in(by_person=True)
    words = slurm.calls("sbatch")[0]
    assert "--qos=long" in words
    at = words.index(str(SCRIPT))
    assert words[at + 3 : at + 6] == ["env", "FROM=prefix", sys.executable]
    show = "import os; print(os.environ['SITE'], os.environ['FROM'])"
    (slurm.folder / "srun").write_text('#!/bin/sh\necho "$1 $2"; shift 2; exec "$@"\n')
    (slurm.folder / "srun").chmod(0o755)
    job = ["bash", *words[at : at + 6], "-c", show]
    done = subprocess.run(job, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines() == ["--kill-on-bad-exit=1 --cpus-per-task=1", "here prefix"]


def test_points_that_share_what_another_job_makes_wait_for_it(tmp_path: Path, slurm: Slurm) -> None:
    home = Home(tmp_path, 1)
    home.sweep().hand_in(by_person=True)
    slurm.say("queue", "101|0|RUNNING|None|1:00\n102|0|PENDING|Dependency|1:00\n")
    home.points.append(point("arm 1", home.rows))
    home.sweep().hand_in(by_person=True)
    assert option(slurm.calls("sbatch")[4], "dependency") == "afterany:101"
    assert home.manifest().jobs[4].role == "shared"


# what goes wrong


def test_what_sbatch_refuses_is_named_and_nothing_is_left_in_the_queue(tmp_path: Path, slurm: Slurm) -> None:
    home = Home(tmp_path, 4, ["launcher.partition=nosuch", "launcher.max_array=2"])
    slurm.say("refuse-3", "sbatch: error: invalid partition specified: nosuch\n")
    with pytest.raises(WorldError) as refusal:
        home.sweep().hand_in(by_person=True)
    said = str(refusal.value)
    assert said.startswith(
        "SLURM took no arm job: sbatch: error: invalid partition specified: nosuch The command was: sbatch "
    )
    assert "--partition=nosuch" in said
    assert "launcher.partition, launcher.arm.minutes, launcher.options" in said
    assert slurm.calls("scancel") == [["101"], ["102"]]
    assert Manifest.load(home.record) is None


def test_a_refused_continuation_takes_the_preparation_back(tmp_path: Path, slurm: Slurm) -> None:
    sweep = Home(tmp_path).sweep()
    sweep.plan = lambda: (None, {})  # type: ignore[method-assign]
    slurm.say("refuse-2", "sbatch: error: Batch job submission failed: Invalid account\n")
    with pytest.raises(WorldError, match=r"SLURM took no report job: .*Invalid account"):
        sweep.hand_in(by_person=True)
    assert slurm.calls("scancel") == [["101"]]


def test_without_sbatch_this_is_no_login_node(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm.folder / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(slurm.folder))
    with pytest.raises(WorldError, match=r"sbatch cannot be called .* launcher=local runs the sweep"):
        Home(tmp_path).sweep().hand_in(by_person=True)


def test_a_folder_that_cannot_be_written_is_named_before_any_job(tmp_path: Path, slurm: Slurm) -> None:
    # Root may write anywhere, so the folder is one that cannot be: below a file.
    (tmp_path / "file").touch()
    home = Home(tmp_path)
    with pytest.raises(WorldError) as refusal:
        home.sweep(tmp_path / "file" / "out").hand_in(by_person=True)
    assert str(refusal.value) == (
        f"cannot write the sweep's files in {tmp_path}/file/out/slurm: Not a directory. No job is left in "
        "the queue. Give a folder that can be written with paths.runs=FOLDER."
    )
    assert slurm.calls("sbatch") == []


def test_a_manifest_that_cannot_be_kept_takes_the_jobs_back(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Manifest, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Manifest, "save", full)
    with pytest.raises(WorldError, match=r"No space left on device\. No job is left in the queue"):
        Home(tmp_path).sweep().hand_in(by_person=True)
    assert slurm.calls("scancel") == [["101"], ["102"], ["103"], ["104"]]


def test_while_slurm_does_not_answer_status_tells_from_files_and_nothing_is_handed_in(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path, 3)
    home.sweep().hand_in(by_person=True)
    home.make(home.points[0].last)
    task.record(home.record, home.keys[1], "shared", "StoreError: no")
    slurm.say("gone")
    said = home.status(capsys)
    assert [line.split()[4] for line in said[:3]] == ["done", "unknown", "unknown"]
    assert said[3:] == [
        "SLURM does not answer; this is what the files say.", "1 done, 2 unknown"
    ]  # fmt: skip
    with pytest.raises(WorldError, match=r"SLURM does not answer \(squeue\).* nothing was submitted"):
        home.sweep().hand_in(by_person=True)
    assert len(slurm.calls("sbatch")) == 4


def test_jobs_of_other_code_in_the_queue_are_noted(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path)
    home.sweep().hand_in(by_person=True)
    manifest = home.manifest()
    manifest.code = "0.0.1 abc"
    manifest.save(home.record)
    slurm.say("queue", "102|0|RUNNING|None|1:00\n102|1|RUNNING|None|1:00\n")
    home.sweep().hand_in(by_person=True)
    note = f"note: jobs in the queue were handed in by 0.0.1 abc; this is {code()}\n"
    assert note in capsys.readouterr().out
    slurm.say("queue")
    home.sweep().hand_in(by_person=True)
    assert "note:" not in capsys.readouterr().out, "none of them is left"
    assert home.manifest().code == code()


@pytest.mark.parametrize("text", ['{"jobs": [{"num', "[]", '{"jobs": [{"id": 1}]}'])
def test_a_damaged_manifest_is_named_with_the_way_out(tmp_path: Path, slurm: Slurm, text: str) -> None:
    home = Home(tmp_path)
    home.record.mkdir(parents=True)
    (home.record / "manifest.json").write_text(text)
    for verb in (lambda s: s.hand_in(by_person=True), lambda s: s.status(False), Sweep.cancel):
        with pytest.raises(WorldError) as error:
            verb(home.sweep())
        said = str(error.value)
        assert said.startswith(f"{home.record}/manifest.json is not a manifest of this version (")
        assert "move the folder away and submit again: what is in the store is not done again" in said
    assert slurm.calls("sbatch") == []
