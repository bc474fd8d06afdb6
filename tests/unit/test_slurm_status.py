"""What a sweep's status says: from the queue, the files, and how jobs ended."""

from pathlib import Path

import pytest
from slurm_toys import END, Home, Slurm, toy

from slurm import task
from slurm.cluster.watching import describe_end


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path / "bin", monkeypatch)


@pytest.mark.parametrize(
    ("state", "reason", "exit_code", "words"),
    [
        ("OUT_OF_MEMORY", "OutOfMemory", "0:125",
         "killed for memory; it asked for 480G. Raise launcher.arm.mem_gb"),
        ("TIMEOUT", "TimeLimit", "0:15",
         "ran into its time limit of 04:00:00 before it could save and go back into the queue. Raise "
         "launcher.arm.minutes"),
        ("NODE_FAIL", "NodeDown", "0:0", "lost its node n[1-2], and the site does not requeue"),
        ("CANCELLED", "None", "0:15", "was cancelled"),
        ("FAILED", "NonZeroExitCode", "137:0", "ended with exit code 137:0"),
        ("COMPLETED", "None", "0:0", "left the queue without a result (completed)"),
    ],
)  # fmt: skip
def test_the_end_of_a_job_is_told_with_the_setting_to_change(
    state: str, reason: str, exit_code: str, words: str
) -> None:
    assert describe_end(END.format(job=7, state=state, reason=reason, code=exit_code), "arm") == words


def test_a_job_that_asked_for_no_memory_had_the_default_of_the_site() -> None:
    line = END.format(job=7, state="OUT_OF_MEMORY", reason="OutOfMemory", code="0:125")
    line = line.replace("mem=480G,", "").replace("MinMemoryNode=480G", "MinMemoryNode=0")
    assert "it asked for the site's default." in describe_end(line, "shared")
    assert describe_end("", "arm") == "left the queue without a result"


def test_status_tells_each_point_from_the_queue_the_files_and_the_ends_of_jobs(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path, 7)
    home.make(home.rows, toy("sets"), home.points[0].last)
    home.sweep().hand_in(by_person=True)
    home.make(home.points[4].nodes["train"])
    logs = home.record / "logs"
    (logs / "arm-101_0.log").write_text("train: going on after step 8\nsrun: error: n1: task 0\n")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")
    task.record(home.record, home.keys[3], "arm", "BudgetError: too few")
    # Tasks of the array are points 1 to 6; all but two have left the queue.
    slurm.say(
        "queue",
        "101|0|RUNNING|None|3:59:00\n101|1|PENDING|Resources|4:00:00\n"
        "102|0|PENDING|Dependency|4:00:00\n103|N/A|PENDING|Dependency|1:00:00\n",
    )
    ends = [
        END.format(job=101, state=state, reason="x", code="1:0").replace("TaskId=0", f"TaskId={n}")
        for n, state in ((4, "OUT_OF_MEMORY"), (5, "CANCELLED"))
    ]
    slurm.say("show-101", "".join(ends))
    told = home.status(capsys)
    assert told == [
        "arm 0 seed 0  done",
        "arm 1 seed 0  running       arm, 3:59:00 left; log: train: going on after step 8",
        "arm 2 seed 0  waiting       arm (Resources)",
        "arm 3 seed 0  failed        BudgetError: too few",
        "arm 4 seed 0  waiting       trained; evaluate (Dependency)",
        "arm 5 seed 0  failed        arm killed for memory; it asked for 480G. Raise launcher.arm.mem_gb",
        "arm 6 seed 0  failed        arm was cancelled",
        "job 103 report: pending (Dependency), 1:00:00 left",
        "1 done, 1 running, 2 waiting, 3 failed",
    ]
    assert len(slurm.calls("scontrol")) == 1, "one question for an array"


def test_points_whose_shared_stages_are_missing_fail_by_the_end_of_the_shared_job(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path)
    home.sweep().hand_in(by_person=True)
    slurm.say("show-101", END.format(job=101, state="OUT_OF_MEMORY", reason="x", code="0:9"))
    slurm.say("show-102", END.format(job=102, state="FAILED", reason="x", code="1:0"))
    told = home.status(capsys)
    assert told[0] == (
        "arm 0 seed 0  failed        shared killed for memory; it asked for 480G. Raise launcher.shared.mem_gb"
    )
    assert told[-1] == "2 failed"


def test_cancel_takes_back_what_is_in_the_queue_and_no_job_of_others(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path)
    home.sweep().hand_in(by_person=True)
    slurm.say("queue", "".join(f"{job}|PENDING|x|1:00\n" for job in ("9|0", "102|0", "102|1", "104|N/A")))
    assert home.sweep().cancel() == 0
    assert slurm.calls("scancel") == [["102", "104"]]
    assert "3 tasks of 2 jobs cancelled; what was made is kept" in capsys.readouterr().out
