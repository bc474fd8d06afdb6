"""Progress for people: a bar in a terminal, one line a minute elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("dbp")


class Progress:
    """What a long loop tells about itself; `advance` is all that a caller needs."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self.started = self.said = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count more units of work as done."""
        self.done += count
        now = time.monotonic()
        if now - self.said >= 60:
            self.said = now
            rate = self.done / max(now - self.started, 1e-9)
            left = max(self.total - self.done, 0) / rate if rate else float("inf")
            done = f"{self.done:,} of {self.total:,} {self.unit}"
            log.info("%s: %s, %s, %s left", self.what, done, rate_text(rate), time_text(left))


class _Bar(Progress):
    def __init__(self, what: str, total: int, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        super().__init__(what, total, unit)
        self.rich = Rich(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            transient=True,
            console=Console(stderr=True),  # what is printed may go into a file
        )
        self.task = self.rich.add_task(what, total=total, rate="")
        self.rich.start()

    def advance(self, count: int = 1) -> None:
        self.done += count
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        self.rich.update(self.task, advance=count, rate=rate_text(rate))


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Progress]:
    """Show the progress of a loop over `total` units while the block runs."""
    if not sys.stderr.isatty():
        yield Progress(what, total, unit)
        return
    bar = _Bar(what, total, unit)
    try:
        yield bar
    finally:
        bar.rich.stop()


def rate_text(rate: float) -> str:
    """Units a second; where they are fewer than one, seconds a unit."""
    if rate <= 0:
        return "0/s"
    if rate < 1:
        return f"{1 / rate:,.1f} s each"
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def time_text(seconds: float) -> str:
    """A duration as hours, minutes and seconds; a dash where it is not known."""
    if seconds == float("inf"):
        return "-:--:--"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
