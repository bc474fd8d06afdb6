"""From a person's words to Hydra's: quoting, short forms, and help without heavy imports."""

import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from dbp.config import NUMBER_LIKE, groups, is_group
from dbp.engine.paths import config_folder
from dbp.errors import ConfigError, DbpError
from dbp.verbs.terminal import print_anywhere

PLAIN = re.compile(r"[A-Za-z0-9_./:\-+@%?*]*")
BRACKETS = ("[]", "{}", "''", '""')
USES = ("dedup", "cluster", "score")


def to_hydra(argument: str) -> str:
    """Pass `key=value` to Hydra unchanged in meaning.

    A value with braces, commas, equals signs, blanks or accents is quoted; lists and mappings in
    brackets, quoted values and interpolations pass as they are.

    >>> to_hydra("pool.shards=a b/{00..09}.tar")
    "pool.shards='a b/{00..09}.tar'"
    """
    key, equals, value = argument.partition("=")
    # A path is text whatever it looks like: a folder may be called 2024 or [new]. So is an option of a group:
    # `select=null` names one that is missing.
    is_text = key.startswith("paths.") and value[:1] not in ("'", '"', "$", "")
    is_text |= bool(NUMBER_LIKE.fullmatch(value) or value.lower() == "null") and is_group(key)
    if not equals or (not is_text and (PLAIN.fullmatch(value) or _is_literal(value))):
        return argument
    escaped = re.sub(r"(\\*)'", lambda m: m.group(1) * 2 + r"\'", value)
    trailing = re.search(r"\\*\Z", escaped)  # `$` would also match before a last newline
    escaped += trailing.group(0) if trailing else ""
    return f"{key}='{escaped}'"


def _is_literal(value: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    bracketed = len(value) > 1 and value[0] + value[-1] in BRACKETS
    if not bracketed and not value.startswith("${"):
        return False
    if value[0] == "{" and ":" not in value:
        return False
    try:
        found = OverridesParser.create().parse_override(f"key={value}")
    except Exception:  # the parser's own exceptions are many; a failure means: not a literal
        return False
    return not found.is_sweep_override()  # 'a','b' is a text with commas


def short_forms(argument: str) -> list[str]:
    """Spell out `encoder=NAME` (all three uses) and `encoder.USE=NAME` (one use).

    In place of a name stands run:KEY or local-dir:FOLDER: `encoder=own` with these weights.
    """
    key, _, value = argument.partition("=")
    use = key.removeprefix("encoder.")
    uses = USES if key == "encoder" else (use,) if key.startswith("encoder.") and use in USES else ()
    if not uses:
        return [argument]
    if value.startswith(("run:", "local-dir:")):
        own = [(f"encoder@encoder.{use}=own", f"encoder.{use}.checkpoint={value}") for use in uses]
        return [word for pair in own for word in pair]
    return [f"encoder@encoder.{use}={value}" for use in uses]


def overrides(arguments: list[str]) -> list[str]:
    """All of a person's `key=value` arguments as Hydra overrides.

    Raises:
        ConfigError: One key has two values in a row, as a shell makes of braces without quotes.
    """
    for before, after in pairwise(arguments):
        key, equals, _ = after.partition("=")
        if equals and before != after and before.startswith(f"{key}="):
            raise ConfigError(
                f"{before} {after}: {key} is given twice. A shell makes several words of braces; put the "
                f"value in quotes: {key}='…{{00000..00099}}.tar'"
            )
    return [to_hydra(short) for argument in arguments for short in short_forms(argument)]


def multirun(arguments: list[str]) -> list[str]:
    """Arguments as `overrides` gives them, but for flags and lists of values (`key=a,b`), which are Hydra's."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found = []
    for argument in arguments:
        for short in [argument] if argument.startswith("-") else short_forms(argument):
            try:
                is_sweep = OverridesParser.create().parse_override(short).is_sweep_override()
            except Exception:  # the parser's own exceptions are many
                is_sweep = False
            found.append(short if is_sweep or short.startswith("-") else to_hydra(short))
    return found


def hydra_main(verb: str, run: Callable[[Any], Any]) -> None:
    """Run a verb as a plain Hydra program, for `python -m` and for multirun launchers."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    print_anywhere()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints a part of a trace, whatever the error is
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder().absolute()), config_name=verb)(run)()
    except DbpError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"ConfigError: the configuration cannot be composed: {' '.join(str(error).split())}")


def help_text(verb: str, about: str) -> str:
    """The help of a verb that reads the config: what it does, the groups, and where defaults stand."""
    lines = [
        about.strip(),
        "",
        f"usage: dbp {verb} [group=option] [key=value] [--config-dir FOLDER] [--cfg]",
        "",
        "groups and their options:",
    ]
    for group, options in groups().items():
        lines.append(f"  {group:<10} {' | '.join(options)}")
    lines += [
        "",
        "also: dry_run=true, until=…, paths.store=FOLDER, paths.runs=FOLDER",
        f"every key with its default: dbp {verb} --cfg (or read configs/frame.yaml)",
    ]
    return "\n".join(lines)
