"""Amounts as a table says them: a few digits and a unit."""

from collections.abc import Sequence

Number = float | int


def count_text(value: Number) -> str:
    """A count in at most seven characters: 987,654 as it is, then millions."""
    return f"{value:,.0f}" if value < 1e6 else _scaled(value, 1e6, ("M", "G", "T"))


def bytes_text(value: Number) -> str:
    """Bytes, in powers of ten."""
    return f"{value:,.0f} B" if value < 1e3 else _scaled(value, 1e3, ("kB", "MB", "GB", "TB"))


def flops_text(value: Number) -> str:
    """Operations, in powers of ten."""
    return f"{value:.0f}" if value < 1e3 else _scaled(value, 1e3, ("k", "M", "G", "T", "P", "E"))


def seconds_text(value: Number) -> str:
    """A duration in its natural unit."""
    if value < 0.095:
        return "< 0.1 s"
    for unit, size, upto in (("s", 1, 99.5), ("min", 60, 99.5), ("h", 3600, 47.5)):
        if value / size < upto:
            return f"{value / size:.1f} {unit}" if value / size < 9.95 else f"{value / size:.0f} {unit}"
    return f"{value / 86400:,.1f} d" if value < 859_000 else f"{value / 86400:,.0f} d"


def _scaled(value: Number, first: float, units: Sequence[str]) -> str:
    """In the first of some units, each a thousand of the one before, that leaves three digits."""
    sizes = [(unit, first * 1e3**number) for number, unit in enumerate(units)]
    unit, size = next((pair for pair in sizes if value / pair[1] < 999.5), sizes[-1])
    return f"{value / size:.1f} {unit}" if value / size < 99.95 else f"{value / size:,.0f} {unit}"
