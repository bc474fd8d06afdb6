"""What a comparison with a paper consists of: plain data, first as asked for, then as found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evaluation.report.paper.published import Mark, Published

# both: ours and the paper's at one scale. other scale: ours is shown, and not subtracted.
State = Literal["both", "other scale", "ours missing", "paper unknown", "out of scope"]
Verdict = Literal["agrees", "disagrees", "cannot tell", "not measured"]


@dataclass(frozen=True)
class Measure:
    """A column of a table: which tasks and metric of ours it is.

    Args:
        name: Its heading.
        tasks: Whose plain mean it is.
        metric: Of each; none for its main metric.
        missing: Members that the paper's mean has and no task of ours.
        out_of_scope: Why nothing here measures it; none for what can be measured.
    """

    name: str
    tasks: tuple[str, ...] = ()
    metric: str | None = None
    missing: tuple[str, ...] = ()
    out_of_scope: str = ""


@dataclass(frozen=True)
class Want:
    """What a run of ours must be to stand beside a row of a paper.

    Args:
        steps: What its keep list went through, as ("semdedup", "dbp"); none for the unpruned pool;
            ("published",) for weights of others.
        keep: Fraction kept, of what `keep_of` says; none where nothing is chosen.
        keep_of: `pool` or `dedup`, the rows that dedup left.
        settings: Part of what the method is: must be equal at any scale.
        model: open_clip's name.
        pool_rows: Pairs of the pool.
        samples_seen: In training.
        at_scale: Settings that belong to the scale, as the number of clusters.
        weights: Names of published weights, as `ViT-B-32:openai`.
        command: What makes it.
        is_loose: Whether, at another scale, any fraction kept and a dedup before are the same method: for
            statements that are not about one size.
    """

    steps: tuple[str, ...]
    command: str
    keep: float | None = None
    keep_of: Literal["pool", "dedup"] = "pool"
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    pool_rows: float | None = None
    samples_seen: float | None = None
    at_scale: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    is_loose: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a paper's table.

    Args:
        label: As the paper has it.
        values: By the column's name; a column that is not here is no part of the row.
        want: Which run of ours; none where it is out of scope.
        out_of_scope: Why no run of ours can fill it.
        group: Orders are compared within a group, as one scale of DataComp.
        note: What a reader must know.
    """

    label: str
    values: Mapping[str, Published]
    want: Want | None = None
    out_of_scope: str = ""
    group: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Args:
        key: Short name, for `paper.numbers`.
        title: What it shows, and where in the paper it stands.
        measures: Its columns.
        rows: Its rows.
        protocol: Whose results of ours stand beside it: `datacomp` or `corrected`.
        order_by: Columns in which the order of the rows is compared.
        note: What a reader must know.
    """

    key: str
    title: str
    measures: tuple[Measure, ...]
    rows: tuple[Row, ...]
    protocol: str = "datacomp"
    order_by: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class InWords:
    """An order that a paper states without numbers that were seen.

    Args:
        text: The statement.
        higher: The run that is above.
        lower: The run that is below.
        mark: How well the source was read.
        source: Where it was read.
    """

    text: str
    higher: Want
    lower: Want
    mark: Mark
    source: str


@dataclass(frozen=True)
class Facts:
    """Values of a paper that no run measures: sizes, hyperparameters, costs; shown as they are."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Paper:
    """What is held of a paper."""

    name: str
    title: str
    tables: tuple[Table, ...]
    in_words: tuple[InWords, ...] = ()
    facts: tuple[Facts, ...] = ()
    out_of_scope: tuple[str, ...] = ()


# as found


@dataclass(frozen=True)
class Ours:
    """A number of ours.

    Args:
        value: Mean over seeds, in [0, 1].
        interval: 95 %, over test samples, and over seeds where there are three or more.
        seeds: The value of each seed.
        metric: What it is, where it is not what the paper measures.
        scale: Pool, kept rows, model and samples seen, in words.
        departures: What differs from the paper's scale; none at the same scale.
        keys: Of the evaluations.
    """

    value: float
    interval: tuple[float, float] | None
    seeds: tuple[float, ...]
    metric: str
    scale: str
    departures: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One number of a paper and what stands beside it.

    Args:
        measure: The column's name.
        paper: The number.
        ours: None where there is none.
        difference: Ours - paper, at the same scale alone.
        state: See `State`.
        command: What would fill our side; empty where it is filled, or nothing can.
        reason: Why it is out of scope, or what keeps ours from standing here.
    """

    measure: str
    paper: Published
    ours: Ours | None
    difference: float | None
    state: State
    command: str = ""
    reason: str = ""


@dataclass(frozen=True)
class FoundRow:
    """A row with its cells."""

    label: str
    cells: tuple[Cell, ...]
    note: str = ""


@dataclass(frozen=True)
class FoundTable:
    """A table with its cells; `columns` are the measures' names in order."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[FoundRow, ...]
    protocol: str
    note: str = ""


@dataclass(frozen=True)
class Ordering:
    """A pair that the paper orders, and what ours say.

    Args:
        table: Title of the table; empty for a statement in words.
        measure: The column.
        higher: The row that the paper puts above.
        lower: The row below.
        paper_gap: By how much, in [0, 1]; none for a statement in words.
        mark: How well the paper's side was read.
        ours_gap: higher - lower of ours.
        interval: 95 % of that, over test samples and seeds; none with fewer than three seeds.
        verdict: `agrees` or `disagrees` only where the interval leaves nil out.
        is_same_scale: Whether ours are at the paper's scale.
        detail: Why there is no verdict, or what stands in for the measure.
        p: Of no difference between ours, before Holm's correction.
    """

    table: str
    measure: str
    higher: str
    lower: str
    paper_gap: float | None
    mark: Mark
    ours_gap: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    is_same_scale: bool = False
    detail: str = ""
    p: float | None = None


@dataclass(frozen=True)
class PaperTables:
    """All of a comparison.

    Args:
        name: As in `paper=NAME`.
        title: Of the paper.
        tables: As found.
        orderings: All pairs, those not measured included.
        facts: What no run measures.
        out_of_scope: What of the paper nothing here covers.
        notes: About our side: how many runs, what was left out.
    """

    name: str
    title: str
    tables: tuple[FoundTable, ...]
    orderings: tuple[Ordering, ...]
    facts: tuple[Facts, ...]
    out_of_scope: tuple[str, ...]
    notes: tuple[str, ...]
