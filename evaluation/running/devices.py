"""One queue of chunks over the GPUs of a machine: a process each, whoever is free takes the next."""

import queue
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from dbp.engine.processes import end_with_parent
from dbp.errors import DbpError, WorldError
from evaluation.running.encode import Chunk, Encoded, Towers, encode_chunks
from evaluation.sets.pixels import Pictures
from training.resume.signals import ignore_signals


def list_devices(device: str, asked: int | str) -> list[str]:
    """The devices that share the work.

    Args:
        device: As torch names it; one with a number stays alone.
        asked: How many of its kind; `auto` for all GPUs that this process sees, and one CPU.
    """
    import torch

    if asked == "auto":
        asked = torch.cuda.device_count() if device == "cuda" else 1
    assert isinstance(asked, int)
    if device != "cuda":
        return [device] * asked
    return [f"cuda:{i}" for i in range(asked)]


def encode_on(
    devices: Sequence[str],
    towers: Sequence[Towers],
    pictures: Pictures,
    chunks: Sequence[Chunk],
    advance: Callable[[Chunk, int], object] = lambda chunk, count: None,
) -> Iterator[Encoded]:
    """Encode chunks as `encode_chunks` does, on several devices.

    Each device has a process; a single one works in this process. Yields in the order of the chunks.

    Raises:
        WorldError: A process failed or was killed.
    """
    if len(devices) == 1:
        yield from encode_chunks(towers, pictures, chunks, advance)
        return
    from torch import multiprocessing

    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    asked, answered = context.Queue(), context.Queue()
    for chunk in [*chunks, *[None] * len(devices)]:
        asked.put(chunk)
    workers = -(-towers[0].num_workers // len(devices))
    processes = []
    for device in devices:
        # Texts are encoded in this process and the pictures carry their transform.
        mine = [
            Towers(
                model.model.to("cpu"), _unused, _unused, model.name, device=device,
                precision=model.precision, batch_size=model.batch_size, num_workers=workers,
            )
            for model in towers
        ]  # fmt: skip
        process = context.Process(target=_serve, args=(mine, pictures, asked, answered))
        process.start()
        processes.append(process)
    try:
        waiting: dict[Chunk, Encoded] = {}
        for chunk in chunks:
            while chunk not in waiting:
                encoded = _next_answer(answered, processes)
                waiting[encoded.chunk] = encoded
            advance(chunk, len(waiting[chunk].digests))
            yield waiting.pop(chunk)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _unused(_: Any) -> Any:
    raise AssertionError("texts and transforms are elsewhere")


def _next_answer(answered: Any, processes: Sequence[Any]) -> Encoded:
    while True:
        with suppress(queue.Empty):
            answer = answered.get(timeout=5)
            if isinstance(answer, str):
                raise WorldError(f"a process that encodes pictures failed: {answer}")
            return answer
        for process in processes:
            if process.exitcode not in (None, 0):
                raise WorldError(
                    f"a process that encodes pictures ended with code {process.exitcode} (-9: killed, "
                    "often for memory). Run again: it goes on from what is kept. A smaller "
                    "evaluate.batch_size takes less memory."
                )


def _serve(towers: list[Towers], pictures: Pictures, asked: Any, answered: Any) -> None:
    """Encode until the queue says that there is no more; the process of one device."""
    ignore_signals()
    end_with_parent()
    try:
        for model in towers:
            model.model.to(model.device)
        for encoded in encode_chunks(towers, pictures, iter(asked.get, None)):
            answered.put(encoded)
    except DbpError as error:
        answered.put(str(error))
    except Exception:
        answered.put(traceback.format_exc())
