"""The papers by name, read from `papers/NAME.yaml` and from the transcribed numbers in `numbers/`.

A table names its file with the unit of its numbers, which columns become which measures of ours, and under `runs`
which run of ours a row asks for. `runs` are rules: each that fits a row (`if`: cells by column; `~` begins a
regular expression) adds the fields of `Want` that no rule before it gave; the name of a paper stands for the rules
of that paper. A rule with `no` says why no run of ours can fill the row. Texts may name columns of the row, named
groups of an expression (in lower case), other words of the rules, and what follows from them: `{keep}`,
`{num_kept}`, `{num_seen}`. Samples seen may be `epochs` over a `share` of the pool, by default the fraction kept.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError, nearest
from evaluation.report.paper.published import mark_of, read_number, rows
from evaluation.report.paper.tables import Facts, InWords, Measure, Paper, Row, Table, Want
from evaluation.suites import MISSING, groups, suites

PAPERS = ("dbp", "semdedup", "datacomp", "metaclip", "tldr", "field")
HYPERPARAMETER_COLUMNS = {"verified", "source", "source_kind"}
# DataComp's five columns, by their names in the files.
DATACOMP_COLUMNS = {
    "imagenet": "ImageNet",
    "dist_shift": "ImageNet dist. shifts",
    "vtab": "VTAB",
    "retrieval": "Retrieval",
    "average": "Average",
}
POOLS = {
    "web": "pool.metadata=METADATA pool.shards='SHARDS/*.tar' root=SETS",
    "laion": "pool.shards='LAION/*.tar' root=SETS",
}


@cache
def described(name: str) -> dict[str, Any]:
    """What the YAML of a paper says."""
    from omegaconf import OmegaConf

    said = OmegaConf.to_container(OmegaConf.load(Path(__file__).parent / "papers" / f"{name}.yaml"))
    assert isinstance(said, dict)
    return {str(key): value for key, value in said.items()}


def find_paper(name: str) -> Paper:
    """What is held of a paper.

    Raises:
        ConfigError: There is no such paper.
    """
    if name not in PAPERS:
        raise ConfigError(f"paper={name}: no numbers of such a paper. {nearest(name, PAPERS)}")
    said = described(name)
    return Paper(
        name,
        said["title"],
        tuple(_table(table) for table in said["tables"]),
        tuple(_in_words(said["in_words"])) if "in_words" in said else (),
        tuple(_facts(file, title) for file, title in said["facts"].items()),
        tuple(said["out_of_scope"]),
    )


def _table(said: Mapping[str, Any]) -> Table:
    columns = DATACOMP_COLUMNS if said["columns"] == "datacomp" else said["columns"]
    measures = {column: _measure(column, what) for column, what in columns.items()}
    found = []
    for row in rows(said["file"]):
        if any(row[column] != value for column, value in said.get("where", {}).items()):
            continue
        words = row | {name: text.format_map(row) for name, text in said.get("with", {}).items()}
        rule = _fitting(said["runs"], words)
        words = rule | words
        values = {
            measure.name: read_number(
                row[column], said["unit"], mark_of(row), row["source"], f"{said['file']}: {column}"
            )
            for column, measure in measures.items()
        }
        found.append(
            Row(
                rule.get("label", said["label"]).format_map(words),
                values,
                None if "no" in rule else _want(rule, words),
                rule.get("no", ""),
                said.get("group", "").format_map(words),
                row.get("note", ""),
            )
        )
    given = {name: said[name] for name in ("protocol", "note") if name in said}
    order_by = tuple(said.get("order_by", ()))
    return Table(said["key"], said["title"], tuple(measures.values()), tuple(found), order_by=order_by, **given)


def _measure(column: str, said: str | Mapping[str, str]) -> Measure:
    """A column by a group of tasks, whose name is its heading, a task or a suite, or by why nothing measures it."""
    if isinstance(said, str):
        said = {"name": said if said in groups() else column, "tasks": said}
    tasks = said.get("tasks", "")
    members = (groups() | suites()).get(tasks, (tasks,)) if tasks else ()
    name = said.get("name", column)
    return Measure(name, members, said.get("metric"), MISSING.get(tasks, ()), said.get("no", ""))


def _fitting(rules: Sequence[Any], words: Mapping[str, str]) -> dict[str, Any]:
    """All that the rules say of a row, or why nothing can fill it."""
    found: dict[str, Any] = {}
    for rule in rules:
        if isinstance(rule, str):
            fitting = _fitting(described(rule)["runs"], words)
        elif (named := _matched(rule.get("if", {}), words)) is None:
            continue
        else:
            fitting = rule | named
        found = fitting | found
        if "steps" in found or "weights" in found:
            found.pop("no", None)
        elif "no" in found:
            return found
    return found


def _matched(condition: Mapping[str, str], words: Mapping[str, str]) -> dict[str, Any] | None:
    """The named groups of a condition that a row meets, as numbers where they are some; none where it does not."""
    found: dict[str, Any] = {}
    for column, wanted in condition.items():
        cell = words.get(column, "")
        if not wanted.startswith("~"):
            if cell != wanted:
                return None
        elif match := re.search(wanted[1:], cell):
            found |= {n: _typed(text.lower()) for n, text in match.groupdict().items() if text is not None}
        else:
            return None
    return found


def _want(said: Mapping[str, Any], words: Mapping[str, Any]) -> Want:
    """The run that a row asks for."""
    words = {**words, **POOLS}

    def number(name: str) -> float | None:
        value = said.get(name)
        return count(value.format_map(words)) if isinstance(value, str) else value

    def settings(name: str) -> dict[str, Any]:
        given = said.get(name, {}).items()
        return {key: _typed(v.format_map(words)) if isinstance(v, str) and "{" in v else v for key, v in given}

    if "weights" in said:
        weights = said["weights"].format_map(words)
        model, _, tag = weights.partition(":")
        suite = said.get("suite", "datacomp38")
        command = f"dbp evaluate model.name={model} pretrained={tag} suite={suite} root=SETS"
        return Want(("published",), command, model=model, weights=(weights,))
    keep, pool, samples = number("keep"), number("pool_rows"), number("samples_seen")
    if "epochs" in said and pool:
        samples = said["epochs"] * (number("share") or keep or 1.0) * pool
    words |= {"keep": keep, "num_kept": round((keep or 1.0) * (pool or 0.0)), "num_seen": round(samples or 0.0)}
    words["choice"] = said.get("choice", "").format_map(words)
    return Want(
        tuple(said["steps"]),
        said["command"].format_map(words),
        keep,
        said.get("keep_of", "pool"),
        settings("settings"),
        said["model"].format_map(words) if "model" in said else None,
        pool,
        samples,
        settings("at_scale"),
        is_loose=said.get("is_loose", False),
    )


def _in_words(said: Mapping[str, Any]) -> Iterator[InWords]:
    """Orders that are stated without numbers: what both runs must be, and what each."""
    by_key = {row["key"]: row for row in rows(said["file"])}
    for one in said["said"]:
        row = by_key[one["key"]]
        both = {**said["both"], "command": one["command"]}
        higher, lower = (_want({**both, **one[side]}, {}) for side in ("higher", "lower"))
        yield InWords(one["text"], higher, lower, mark_of(row), row["source"])


def _facts(file: str, title: str) -> Facts:
    """A file that no run measures, as it stands."""
    found = rows(file)
    heading = tuple(c for c in found[0] if c not in HYPERPARAMETER_COLUMNS)
    lines = tuple((*(row[c] for c in heading), row["source"]) for row in found)
    return Facts(title, (*heading, "source"), lines, tuple(mark_of(row) for row in found))


def count(text: str) -> float | None:
    """A number as papers print it, `12.8M`, `1.28B` or `25%`; none where there is none.

    >>> count("12.8M"), count("25%")
    (12800000.0, 0.25)
    """
    factors = {"K": 1e3, "M": 1e6, "B": 1e9}
    text = text.strip()
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return float(text.rstrip("KMB")) * factors.get(text[-1], 1.0) if text else None


def _typed(text: str) -> int | float | str:
    """A text as the number that it is, if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
