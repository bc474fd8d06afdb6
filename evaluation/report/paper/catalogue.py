"""The papers by name, and what their files share: columns, facts, commands."""

import importlib
from collections.abc import Mapping

from dbp.errors import ConfigError, nearest
from evaluation.report.paper.published import Published, mark_of, number, rows
from evaluation.report.paper.tables import Facts, Measure, Paper
from evaluation.suites import groups

PAPERS = ("dbp", "semdedup", "datacomp", "metaclip", "tldr")
HYPERPARAMETER_COLUMNS = {"verified", "source", "source_kind"}

# DataComp's five columns, by their names in the files.
DATACOMP_COLUMNS = {
    "imagenet": "ImageNet",
    "dist_shift": "ImageNet dist. shifts",
    "vtab": "VTAB",
    "retrieval": "Retrieval",
    "average": "Average",
}
WEB_POOL = "pool.metadata=METADATA pool.shards='SHARDS/*.tar' root=SETS"
LAION_POOL = "pool.shards='LAION/*.tar' root=SETS"


def find_paper(name: str) -> Paper:
    """What is held of a paper.

    Raises:
        ConfigError: There is no such paper.
    """
    if name not in PAPERS:
        raise ConfigError(f"paper={name}: no numbers of such a paper. {nearest(name, PAPERS)}")
    return importlib.import_module(f"evaluation.report.paper.papers.{name}").paper()


def datacomp_measures() -> tuple[Measure, ...]:
    """DataComp's five columns as means of tasks."""
    members = groups()
    return tuple(Measure(name, members[name]) for name in DATACOMP_COLUMNS.values())


def values(file: str, row: dict[str, str], columns: Mapping[str, str]) -> dict[str, Published]:
    """The numbers of a row, by the headings that stand for its columns."""
    return {name: number(file, row, column) for column, name in columns.items()}


def facts(file: str, title: str) -> Facts:
    """A file that no run measures, as it stands."""
    found = rows(file)
    heading = tuple(c for c in found[0] if c not in HYPERPARAMETER_COLUMNS)
    return Facts(
        title,
        (*heading, "source"),
        tuple((*(row[c] for c in heading), row["source"]) for row in found),
        tuple(mark_of(row) for row in found),
    )


def published_weights(model: str, tag: str, suite: str = "datacomp38") -> str:
    """The command that evaluates weights that others published."""
    return f"dbp evaluate model.name={model} pretrained={tag} suite={suite} root=SETS"


def count(text: str) -> float | None:
    """A number as papers print it, `12.8M` or `1.28B`; none where there is none.

    >>> count("12.8M")
    12800000.0
    """
    factors = {"K": 1e3, "M": 1e6, "B": 1e9}
    text = text.strip()
    if not text:
        return None
    return float(text.rstrip("KMB")) * factors.get(text[-1], 1.0)
