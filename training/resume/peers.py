"""A rank that is gone: the others hear of it in seconds, as the system closes its connection.

Each rank holds one connection to the first one. A collective would wait half an hour for a rank that was killed.
A rank that fails says why; one that leaves says so; one whose connection ends without a word died.
"""

import json
import multiprocessing
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import weakref
from _thread import interrupt_main
from contextlib import suppress
from typing import Any

INTERRUPT, LEAVE = 3.0, 20.0  # seconds until the main thread is interrupted, and until the process ends without it
SILENT = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))  # a machine without power

LONGEST = 4096  # bytes of the first line, by which a rank says who it is

_open: Any = weakref.WeakSet()


def _close_in_child() -> None:
    # A loader worker that outlives its rank would keep the connection open.
    for peers in list(_open):
        peers.close()


os.register_at_fork(after_in_child=_close_in_child)


class Peers:
    """The connections of one rank, and a thread that listens to them.

    Args:
        store: Where the ranks meet; the first one leaves its address there.
        addresses: Of this machine; of use on the first rank.
    """

    def __init__(self, rank: int, size: int, store: Any, addresses: list[str]) -> None:
        self.rank, self.size = rank, size
        self.lost: str | None = None  # why another rank is gone
        self.left = False  # this one has said good-bye
        self.connections: dict[socket.socket, int] = {}
        self.selector = selectors.DefaultSelector()
        self.server: socket.socket | None = None
        _open.add(self)
        if rank == 0:
            self.server = socket.create_server(("", 0), backlog=size)
            self.token = secrets.token_hex(16)
            where = {"hosts": addresses, "port": self.server.getsockname()[1], "token": self.token}
            store.set("peers", json.dumps(where))
            self.selector.register(self.server, selectors.EVENT_READ)
        else:
            where = json.loads(store.get("peers"))
            for host in where["hosts"]:
                with suppress(OSError):
                    first = socket.create_connection((host, where["port"]), 5)
                    first.settimeout(None)
                    self._add(first, 0)
                    self._send(first, {"rank": rank, "token": where["token"]})
                    break
        threading.Thread(target=self._listen, daemon=True).start()

    def failed(self, problem: BaseException) -> None:
        """Say to all other ranks that this one fails, and why."""
        if not self.left:
            told = str(problem).partition("\n")[0] or type(problem).__name__
            self._to_all({"failed": f"rank {self.rank} failed: {told}"})

    def leave(self) -> None:
        """Say good-bye: this rank is done."""
        self.left = True
        self._to_all({"left": True})

    def close(self) -> None:
        """Close the descriptors of this process, and say nothing."""
        for one in (*self.connections, self.server):
            if one is not None:
                with suppress(OSError):
                    one.close()

    def _add(self, connection: socket.socket, rank: int) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in SILENT:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self.connections[connection] = rank
        self.selector.register(connection, selectors.EVENT_READ)

    def _to_all(self, word: dict[str, Any]) -> None:
        for connection in list(self.connections):
            self._send(connection, word)

    def _send(self, connection: socket.socket, word: dict[str, Any]) -> None:
        with suppress(OSError):
            connection.sendall(json.dumps(word).encode() + b"\n")

    def _listen(self) -> None:
        texts: dict[Any, bytes] = {}
        with suppress(OSError, ValueError, RuntimeError):  # closed, or the interpreter ends
            while not self.left and self.lost is None:
                for key, _ in self.selector.select(1):
                    if key.fileobj is self.server:
                        self._accept(self.server)
                        continue
                    self._read(key.fileobj, texts)
        if self.lost is not None and not self.left:
            self._to_all({"failed": self.lost})
            self._end()

    def _accept(self, server: Any) -> None:
        try:
            connection, _ = server.accept()
            self._add(connection, -1)  # until it has said who it is
        except OSError:  # it is gone already, or no descriptor is left
            time.sleep(0.05)

    def _read(self, connection: Any, texts: dict[Any, bytes]) -> None:
        try:
            found = connection.recv(65536)
        except OSError:
            found = b""
        *lines, texts[connection] = (texts.get(connection, b"") + found).split(b"\n")
        words = [word for word in map(_word, lines) if word is not None]
        for word in words:
            if word.get("token") is not None and word["token"] == getattr(self, "token", None):
                self.connections[connection] = word["rank"]
        rank = self.connections[connection]
        if rank < 0 and (lines or len(texts[connection]) > LONGEST):  # not one of us: a browser, or a port scan
            found = b""
        for word in words:
            if "failed" in word and rank >= 0:
                self.lost = self.lost or word["failed"]
        has_left = any("left" in word for word in words)
        if not found or has_left:
            self.selector.unregister(connection)
            connection.close()
            del self.connections[connection], texts[connection]
            if rank >= 0 and not has_left and self.lost is None:
                self.lost = f"rank {rank} died without a word (killed, or its machine is gone; often for memory)"

    def _end(self) -> None:
        """Let the main thread end by itself; interrupt it; end without it."""
        start = time.monotonic()
        interrupted = False
        while not self.left:
            passed = time.monotonic() - start
            if passed > INTERRUPT and not interrupted:
                interrupted = True
                interrupt_main()
            if passed > LEAVE:
                print(f"WorldError: {self.words()}", file=sys.stderr, flush=True)
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(1)
            time.sleep(0.05)

    def words(self) -> str:
        """What to say of the loss of another rank."""
        return (
            f"rank {self.rank} of {self.size} stops: {self.lost}. See that process' own message; run the same "
            "command again: training goes on from its last checkpoint."
        )


def _word(line: bytes) -> dict[str, Any] | None:
    """What a line says; None where it is not of a rank."""
    try:
        word = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return word if isinstance(word, dict) else None
