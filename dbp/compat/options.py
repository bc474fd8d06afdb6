"""Options of the original scripts, read as their users write them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dbp.errors import ConfigError, nearest


@dataclass(frozen=True)
class Option:
    """One option: how its text is read, and what it is where it is not given."""

    kind: type  # `int`, `float`, `str`, or `bool` (alone or with true or false)
    default: Any = None  # where it is not given; `needed` stops instead
    choices: tuple[str, ...] = ()  # what it can be; empty for anything
    needed: bool = False  # whether it must be given


def read_options(script: str, words: list[str], known: Mapping[str, Option]) -> tuple[dict[str, Any], set[str]]:
    """Read `--name value` and `--name=value`, dashes and underscores in names being the same; and the names given.

    Raises:
        ConfigError: An option does not exist, is given twice or without a value, or has a wrong one.
    """
    given: dict[str, str] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise ConfigError(
                f"dbp compat {script} takes options such as --{_dashed(next(iter(known)))}; "
                f"{word!r} belongs to none."
            )
        said, equals, value = word.removeprefix("--").partition("=")
        name = said.replace("-", "_")
        if name not in known:
            options = nearest(_dashed(name), map(_dashed, known))
            raise ConfigError(f"dbp compat {script} has no option --{said}. {options}")
        if name in given:
            raise ConfigError(f"--{said} is given twice. Give it once.")
        if not equals:
            if waiting and not waiting[0].startswith("--"):
                value = waiting.pop(0)
            elif known[name].kind is bool:
                value = "true"
            else:
                raise ConfigError(f"--{said} needs a value: --{said} VALUE or --{said}=VALUE.")
        given[name] = value
    missing = [f"--{_dashed(n)}" for n, o in known.items() if o.needed and n not in given]
    if missing:
        raise ConfigError(f"dbp compat {script} needs {', '.join(missing)}; see dbp compat --help.")
    values = {
        name: _read(name, given[name], option) if name in given else option.default
        for name, option in known.items()
    }
    return values, set(given)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _read(name: str, text: str, option: Option) -> Any:
    said = f"--{_dashed(name)}={text}"
    if option.choices and text not in option.choices:
        raise ConfigError(f"{said}: {nearest(text, option.choices)}")
    if option.kind is bool:
        for value, word in ((True, "true"), (False, "false")):
            if text and word.startswith(text.lower()):
                return value
        raise ConfigError(f"{said}: it must be true or false")
    try:
        value = option.kind(text)
    except ValueError:
        must = "a whole number" if option.kind is int else "a number"
        raise ConfigError(f"{said}: it must be {must}") from None
    if option.kind is float and not math.isfinite(value):
        raise ConfigError(f"{said}: it must be finite")
    return value
