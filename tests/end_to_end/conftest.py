"""A real SLURM of two one-core nodes on loopback, for tests that lose one of them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun", "sinfo")
NODES = ("n1", "n2")
PARTITION = "main"

CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
# A job that is put back waits until its credential has expired.
AuthInfo=socket={state}/munge.sock,cred_expire=10
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/spool-%n
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd-%n.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
SlurmdTimeout=10
MailProg=/bin/true
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=1 RealMemory=500 State=UNKNOWN
PartitionName={partition} Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Cluster:
    """One munged, one controller, a daemon for each node: all of them children of this process."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        controller, first, second = _free_ports()
        self.conf = state / "slurm.conf"
        self.env = os.environ | {"SLURM_CONF": str(self.conf)}
        for folder in ("controller", *(f"spool-{node}" for node in NODES)):
            (state / folder).mkdir()
        self.conf.write_text(
            CONF.format(
                host=socket.gethostname().partition(".")[0], state=state, controller=controller,
                first=first, second=second, partition=PARTITION,
            )
        )  # fmt: skip

    def start(self) -> None:
        key = self.state / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        paths = {
            "key-file": key, "socket": self.state / "munge.sock", "pid-file": self.state / "munged.pid",
            "log-file": self.state / "munged.log", "seed-file": self.state / "munge.seed",
        }  # fmt: skip
        options = [f"--{name}={path}" for name, path in paths.items()]
        self._run("munged", "munged", "--foreground", "--force", *options)
        _wait(lambda: paths["socket"].exists(), "munged has made no socket", self.state)
        self._run("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self.revive(node)
        _wait(lambda: self.states() == {"idle"}, "the nodes are not idle", self.state)

    def stop(self) -> None:
        if "slurmctld" in self.daemons:
            self.call("scancel", "--user=root")
        for node in NODES:
            self.lose(node)
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()

    def revive(self, node: str) -> None:
        self._run(node, "slurmd", "-D", "-N", node)

    def lose(self, node: str) -> None:
        """Kill all that runs on a node, as when its power goes: its daemon, and the jobs' processes."""
        if (daemon := self.daemons.pop(node, None)) is None:
            return
        daemon.kill()
        daemon.wait()
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, node: str) -> list[int]:
        """The processes of jobs on a node: those that keep a job's steps, and all below them.

        A keeper of steps is no child of the node's daemon, but it is started with its environment.
        """
        parents, keepers = {}, []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                pid, status = (int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split())
                parents[pid] = int(status[1])
                mark = f"DBP_TEST_NODE={self.state}/{node}\0".encode()
                if mark in (folder / "environ").read_bytes():
                    keepers.append(pid)
            except (OSError, ValueError, IndexError):  # it has ended
                continue
        found = set(keepers)
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found - {daemon.pid for daemon in self.daemons.values()})

    def states(self) -> set[str]:
        return set(self.call("sinfo", "--noheader", "--Node", "--format=%T").split())

    def queue(self) -> list[str]:
        """State and nodes of each task in the queue."""
        return self.call("squeue", "--noheader", "--array", "--format=%T %N").splitlines()

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, timeout=60)
        return done.stdout

    def _run(self, name: str, *command: str) -> None:
        mark = {"DBP_TEST_NODE": f"{self.state}/{name}"} if name in NODES else {}
        with open(self.state / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.env | mark, stdout=out, stderr=out, start_new_session=True
            )


def _free_ports() -> tuple[int, int, int]:
    """Three ports that nobody listens on, the last two side by side."""
    for _ in range(100):
        with contextlib.ExitStack() as stack:
            taken = [stack.enter_context(socket.socket()) for _ in range(3)]
            taken[0].bind(("127.0.0.1", 0))
            taken[1].bind(("127.0.0.1", 0))
            first = taken[1].getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                taken[2].bind(("127.0.0.1", first + 1))
                return taken[0].getsockname()[1], first, first + 1
    raise RuntimeError("no free ports")


def _wait(holds: Callable[[], bool], what: str, state: Path, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            logs = "".join(f"\n{log}:\n{log.read_text()[-800:]}" for log in state.glob("*.[lo][ou][gt]"))
            raise RuntimeError(f"{what} after {seconds:.0f} s{logs}")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster, started; skipped where it cannot be."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge")
    if os.getuid() != 0:
        pytest.skip("the daemons of SLURM need root here")
    # Not below pytest's folder: a socket's path may have 107 bytes.
    state = Path(tempfile.mkdtemp(prefix="dbp-slurm-"))
    state.chmod(0o755)
    made = Cluster(state)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(state, ignore_errors=True)
