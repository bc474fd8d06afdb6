"""The connections between ranks: what is not a rank is dropped, and the others are heard."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from training.resume import peers
from training.resume.peers import Peers


class Meeting(dict):
    """Where the ranks meet."""

    get, set = dict.__getitem__, dict.__setitem__


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Meeting:
    monkeypatch.setattr(peers, "INTERRUPT", 1e9)  # a loss ends no test
    monkeypatch.setattr(peers, "LEAVE", 1e9)
    return Meeting()


@pytest.fixture
def first(store: Meeting) -> Iterator[Peers]:
    made = Peers(0, 2, store, ["127.0.0.1"])
    yield made
    made.leave()


def within(seconds: float, is_so) -> bool:
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.01)
    return is_so()


STRAY = {
    "a browser": b"GET / HTTP/1.0\r\n\r\n",
    "no UTF-8": b"\x16\x03\x01\xff\n",
    "a list": b"[1, 2]\n",
    "a number": b"7\n",
    "a deep list": b"[" * 100_000 + b"\n",
    "a long line without an end": b"x" * 100_000,
    "another token": json.dumps({"rank": 1, "token": "0" * 32}).encode() + b"\n",
    "a word without a token": json.dumps({"failed": "rank 7 failed: lies"}).encode() + b"\n",
}


@pytest.mark.parametrize("said", STRAY.values(), ids=STRAY)
def test_a_stray_connection_is_dropped_and_ranks_are_heard(store: Meeting, first: Peers, said: bytes) -> None:
    port = json.loads(store["peers"])["port"]
    with socket.create_connection(("127.0.0.1", port), 30) as stray:
        stray.sendall(said)
        with suppress(ConnectionResetError):
            assert stray.recv(1) == b"", "it is dropped"
    assert first.lost is None
    second = Peers(1, 2, store, [])
    second.failed(ValueError("out of paper"))
    assert within(30, lambda: first.lost is not None)
    assert first.lost == "rank 1 failed: out of paper"
    second.leave()


def test_a_rank_that_dies_is_still_missed_after_a_stray_connection(store: Meeting, first: Peers) -> None:
    port = json.loads(store["peers"])["port"]
    socket.create_connection(("127.0.0.1", port), 30).close()  # a port scan
    second = Peers(1, 2, store, [])
    assert within(30, lambda: 1 in first.connections.values())
    second.left = True
    for connection in list(second.connections):
        connection.shutdown(socket.SHUT_RDWR)
    assert within(30, lambda: first.lost is not None)
    assert "rank 1 died" in str(first.lost)
