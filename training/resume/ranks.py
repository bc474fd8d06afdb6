"""The processes that train one model together, one for each device.

They are started from outside, by `torchrun` or `srun`, all with one command; nothing here starts a
process. The first one curates, trains and writes; the others wait for its word, take part in the
training, and write nothing. They meet through a store of torch's, whose address the first process
leaves in a shared folder when the launcher names none.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from dbp.engine.disk import replace_json
from dbp.errors import ConfigError, DbpError, WorldError
from training.resume.peers import Peers

PATIENCE = timedelta(minutes=30)  # for a rank that does not answer within a step


@dataclass
class Ranks:
    """This process among all of them.

    Collectives go over the CPU (gloo) and never make a GPU wait; each rank must call them in the
    same order. On a single rank they give back what they were given.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # of this process among those of its machine: the GPU that it takes
    store: Any = field(default=None, repr=False)  # where the ranks meet; none on a single rank
    words: int = 0  # how many messages of the first rank have passed
    peers: Peers | None = field(default=None, repr=False)  # the other ranks, watched; none on a single rank

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on each of them; plain values only."""
        if self.size == 1:
            return [value]
        from torch.distributed import all_gather_object

        values: list[Any] = [None] * self.size
        all_gather_object(values, value)
        return values

    def say(self, word: dict[str, Any]) -> None:
        """Tell all other ranks; they wait in `hear`. Values as JSON has them."""
        if self.size > 1:
            self.store.set(f"word-{self.words}", json.dumps(word))
            self.words += 1

    def hear(self) -> dict[str, Any]:
        """The first rank's next word. It may take hours: the pool is curated meanwhile.

        Raises:
            WorldError: The first rank failed, or is gone.
        """
        name = f"word-{self.words}"
        try:
            while not self.store.check([name]):
                if self.peers and self.peers.lost and not self.peers.lost.startswith("rank 0 "):
                    raise WorldError(self.peers.words())
                time.sleep(0.2)
            word = json.loads(self.store.get(name))
        except RuntimeError as error:  # torch's, of a store that does not answer
            raise WorldError(
                f"rank {self.rank} of {self.size} lost the first rank: "
                f"{str(error).partition(chr(10))[0]}. See that process' own message."
            ) from error
        self.words += 1
        if "failed" in word:
            raise WorldError(f"rank {self.rank} of {self.size} stops: {word['failed']}")
        return word

    @contextmanager
    def together(self, device: str) -> Iterator[None]:
        """Hold torch's process group while the block runs: gloo for the CPU, NCCL for GPUs."""
        if self.size == 1:
            yield
            return
        import torch
        from torch.distributed import PrefixStore, destroy_process_group, init_process_group

        if is_cuda := device.startswith("cuda"):
            torch.cuda.set_device(device)
        init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=PrefixStore(f"group-{self.words}", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=PATIENCE,
        )
        try:
            with self.watched():
                yield
        finally:
            destroy_process_group()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tell the other ranks what ends the block early, and say what another rank's end did to this one.

        Raises:
            WorldError: Another rank failed, or died.
        """
        try:
            yield
        except BaseException as problem:
            if self.peers is None or getattr(problem, "is_agreed", False):
                raise
            # A collective may fail before its cause is here.
            is_ours = isinstance(problem, DbpError | SystemExit)
            until = time.monotonic() + (0 if is_ours else 2)
            while self.peers.lost is None and time.monotonic() < until:
                time.sleep(0.05)
            if self.peers.lost is None:
                self.peers.failed(problem)
            elif not is_ours:
                raise WorldError(self.peers.words()) from problem
            raise


_here = Ranks()


def here() -> Ranks:
    """This process among those that train together now; alone outside of `joined`."""
    return _here


def started() -> Ranks:
    """How this process was started: by torchrun, by srun with several tasks, or alone.

    Raises:
        ConfigError: The launcher's variables contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    elif "RANK" not in os.environ:
        return Ranks()
    given = [os.environ.get(name, "") for name in names]
    if not all(value.isdigit() for value in given) or int(given[0]) >= int(given[1]):
        told = ", ".join(f"{n}={v!r}" for n, v in zip(names, given, strict=True))
        raise ConfigError(
            f"{told}: a launcher sets all three, the first below the second. Start with `torchrun "
            "--nproc-per-node=N -m dbp train …` or `srun --ntasks=N dbp train …`; unset them to "
            "train in one process."
        )
    rank, size, local_rank = map(int, given)
    return Ranks(rank, size, local_rank)


@contextmanager
def joined(folder: Path) -> Iterator[Ranks]:
    """Meet the processes that were started with this one, while the block runs.

    Args:
        folder: All ranks see it; used when the launcher gives no MASTER_ADDR and MASTER_PORT.

    Raises:
        WorldError: The first rank cannot be found.
    """
    global _here
    ranks = started()
    if ranks.size == 1:
        yield ranks
        return
    ranks.store = _meet(ranks, folder)
    _here = ranks
    given = [os.environ["MASTER_ADDR"]] if os.environ.get("MASTER_ADDR") else []
    ranks.peers = Peers(ranks.rank, ranks.size, ranks.store, [*given, *_addresses()])
    try:
        with ranks.watched():
            yield ranks
    except BaseException as problem:
        if ranks.is_first:
            told = str(problem).partition("\n")[0] or type(problem).__name__
            with suppress(RuntimeError):
                ranks.say({"failed": f"the first rank stopped: {told}"})
        raise
    finally:
        _here = Ranks()
        if not ranks.is_first:
            ranks.peers.leave()
        with suppress(RuntimeError):
            _part(ranks)
        ranks.peers.leave()


def _meet(ranks: Ranks, folder: Path) -> Any:
    from torch.distributed import TCPStore

    def serve(host: str, port: int) -> Any:
        return TCPStore(host, port, ranks.size, ranks.is_first, PATIENCE, wait_for_workers=False)

    host, port = os.environ.get("MASTER_ADDR"), int(os.environ.get("MASTER_PORT", 0))
    if host and port:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return TCPStore(host, port, ranks.size, False, PATIENCE, wait_for_workers=False)
        return serve(host, port)
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_START_TIME")
    told = folder / ".ranks" / "-".join(os.environ.get(name, "0") for name in names)
    if ranks.is_first:
        store = serve("0.0.0.0", 0)
        replace_json(told, {"hosts": _addresses(), "port": store.port})
        return store
    until = time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < until:
        with suppress(OSError, ValueError):
            place = json.loads(told.read_text())
            for host in place["hosts"]:
                with suppress(OSError):
                    socket.create_connection((host, place["port"]), 5).close()
                    return serve(host, place["port"])
        time.sleep(0.2)
    raise WorldError(
        f"rank {ranks.rank} of {ranks.size} did not find the first rank: {told} names no address "
        "that answers. paths.runs must lie on a disk that all nodes share; or set MASTER_ADDR and "
        "MASTER_PORT to an address of the first node."
    )


def _addresses() -> list[str]:
    """Where this machine may be reached, the likeliest first."""
    names = [os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()]
    found: list[str] = []
    for name in filter(None, names):
        with suppress(OSError):
            found += [info[4][0] for info in socket.getaddrinfo(name, None, socket.AF_INET)]  # type: ignore[misc]
    local = [address for address in found if address.startswith("127.")]
    return list(dict.fromkeys([a for a in found if a not in local] + local + ["127.0.0.1"]))


def _part(ranks: Ranks) -> None:
    """Keep the store until all have left: it lives in the first process."""
    ranks.store.add("left", 1)
    until = time.monotonic() + 60
    while ranks.is_first and ranks.store.add("left", 0) < ranks.size and time.monotonic() < until:
        if ranks.peers is not None and ranks.peers.lost is not None:
            return  # it cannot say that it has left
        time.sleep(0.05)
