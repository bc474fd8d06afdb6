"""Amounts as a table says them: a few digits and a unit."""


def count_text(value: float | int) -> str:
    """A count in at most seven characters: 987,654 as it is, then millions."""
    return f"{value:,.0f}" if value < 1e6 else _scaled(value, ("M", 1e6), ("G", 1e9), ("T", 1e12))


def bytes_text(value: float | int) -> str:
    """Bytes, in powers of ten."""
    if value < 1e3:
        return f"{value:,.0f} B"
    return _scaled(value, ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12))


def flops_text(value: float | int) -> str:
    """Operations, in powers of ten."""
    if value < 1e3:
        return f"{value:.0f}"
    return _scaled(value, ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15), ("E", 1e18))


def seconds_text(value: float | int) -> str:
    """A duration in its natural unit."""
    if value < 0.095:
        return "< 0.1 s"
    for unit, size, upto in (("s", 1, 99.5), ("min", 60, 99.5), ("h", 3600, 47.5)):
        if value / size < upto:
            return f"{value / size:.1f} {unit}" if value / size < 9.95 else f"{value / size:.0f} {unit}"
    return f"{value / 86400:,.1f} d" if value < 859_000 else f"{value / 86400:,.0f} d"


def _scaled(value: float | int, *units: tuple[str, float | int]) -> str:
    unit, size = next((u for u in units if value / u[1] < 999.5), units[-1])
    return f"{value / size:.1f} {unit}" if value / size < 99.95 else f"{value / size:,.0f} {unit}"
