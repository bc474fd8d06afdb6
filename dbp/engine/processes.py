"""Processes that this machine works with side by side: how they begin, and how they end."""

import multiprocessing
import os
import signal
import threading
from typing import Any


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def begin_worker(started: Any, gpus: list[str]) -> None:
    """Begin a process of a pool, of which `started` have begun, a number that they share; GPUs are shared out."""
    # Ctrl-C goes to every process of a terminal; the driver says what there is to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with started.get_lock():
        number = started.value
        started.value += 1
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    end_with_parent()


def end_with_parent() -> None:
    """In a process that multiprocessing started: end when the parent does, killed or not.

    Without its parent it would wait for work for ever.
    """

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
