"""Loader workers and errors: each program ends in seconds, with one line that names the cause."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbp.errors import WorldError
from training.resume.workers import Loader, loading

PROGRAM = """
import os, signal, sys, time
import numpy as np, torch
from dbp.errors import DbpError, PoolError
from evaluation.sets.pixels import collate
from training.resume.workers import Loader, loading

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, at):
        {each}
        return {{"at": torch.tensor([at]), "none": torch.zeros(0)}}

loader = Loader(Numbers(), batch_size=None, num_workers=2, multiprocessing_context="fork")
try:
    with loading("train.num_workers=2"):
        batches = iter(loader)
        first = next(batches)
        assert first["at"].is_shared() and first["at"].tolist() == [0]
        {then}
        for batch in batches:
            pass
except DbpError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def ended(each: str, then: str = "pass", before: str = "") -> str:
    """What a program said whose dataset does `each` in a worker and which does `then` after a batch."""
    command = [sys.executable, "-c", PROGRAM.format(each=each, then=then)]
    if before:
        command = ["bash", "-c", f'{before}; exec "$0" "$@"', *command]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - start < 60  # multiprocessing would wait for ever
    return done.stderr.strip()


def is_one_line(said: str) -> bool:
    return "Traceback" not in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_worker_that_the_kernel_killed_is_named_with_the_settings_that_save_memory() -> None:
    said = ended("at == 5 and os.kill(os.getpid(), signal.SIGKILL)")
    assert is_one_line(said), said
    assert "worker process of the loader died" in said
    assert "SIGKILL" in said
    assert "memory" in said
    assert "train.num_workers=2" in said


@pytest.mark.slow
def test_a_worker_that_crashed_is_not_said_to_lack_memory_for_sure() -> None:
    said = ended("at == 5 and os.kill(os.getpid(), signal.SIGSEGV)")
    assert "Traceback" not in said
    assert "died (SIGSEGV)" in said


@pytest.mark.slow
def test_a_bus_error_of_a_worker_is_a_full_shared_memory() -> None:
    said = ended("at == 5 and os.kill(os.getpid(), signal.SIGBUS)")
    assert "Traceback" not in said
    assert "/dev/shm" in said
    assert "--shm-size" in said


@pytest.mark.slow
def test_an_error_of_ours_in_a_worker_keeps_its_message_and_loses_the_trace() -> None:
    said = ended("if at == 5: raise PoolError('shard 7 is gone: restore it')")
    assert said == "PoolError: shard 7 is gone: restore it"


@pytest.mark.slow
def test_memory_that_runs_out_in_a_worker_is_named() -> None:
    said = ended("if at == 5: raise MemoryError('no 8 GiB')")
    assert is_one_line(said), said
    assert "memory ran out" in said


@pytest.mark.slow
def test_too_few_file_descriptors_are_named_with_their_limit() -> None:
    said = ended("if at == 5: raise OSError(24, 'Too many open files')", before="ulimit -n 256")
    assert is_one_line(said), said
    assert "ulimit -n: 256" in said


@pytest.mark.slow
@pytest.mark.parametrize("then", ["raise RuntimeError('a bug')", "raise KeyboardInterrupt", "sys.exit(1)"])
def test_any_exception_while_workers_live_ends_the_program(then: str) -> None:
    if "Keyboard" in then:
        then = "signal.signal(signal.SIGINT, lambda *_: sys.exit(1)); os.kill(os.getpid(), signal.SIGINT)"
    said = ended("time.sleep(0.01)", then)
    assert "worker" not in said.splitlines()[-1] if said else True


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_workers_that_were_ended_are_not_blamed_for_a_later_error(how: str) -> None:
    """A loop over some batches is left early, within another one."""

    def batches() -> Iterator[Any]:
        with loading("inner.num_workers=1"):
            for batch in Loader(range(100), num_workers=1):  # type: ignore[arg-type]
                yield batch
                if how == "failed":
                    for worker in multiprocessing.active_children():
                        worker.kill()
                        worker.join()

    def leaves_early() -> None:
        with loading("outer.num_workers=1"):
            inner = batches()
            next(inner)
            if how == "failed":
                with pytest.raises(WorldError, match=r"SIGKILL.*inner\.num_workers=1"):
                    list(inner)
            inner.close()
            raise ValueError("another error")

    with pytest.raises(ValueError, match="another error"):
        leaves_early()


@pytest.mark.slow
def test_a_program_that_forgets_a_loader_ends_too(tmp_path: Path) -> None:
    program = PROGRAM.format(each="time.sleep(0.01)", then="pass").partition("try:")[0]
    program += "batches = iter(loader); next(batches); sys.exit(3)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (3, "")
