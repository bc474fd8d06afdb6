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
    """A column of a table: which tasks and metric of ours it is."""

    name: str  # its heading
    tasks: tuple[str, ...] = ()  # whose plain mean it is
    metric: str | None = None  # of each; none for its main metric
    missing: tuple[str, ...] = ()  # members that the paper's mean has and no task of ours
    out_of_scope: str = ""  # why nothing here measures it; none for what can be measured


@dataclass(frozen=True)
class Want:
    """What a run of ours must be to stand beside a row of a paper."""

    # What its keep list went through, as ("semdedup", "dbp"); none for the unpruned pool; ("published",) for
    # weights of others
    steps: tuple[str, ...]
    command: str  # what makes it
    keep: float | None = None  # fraction kept, of what `keep_of` says; none where nothing is chosen
    keep_of: Literal["pool", "dedup"] = "pool"  # `pool` or `dedup`, the rows that dedup left
    # Part of what the method is: must be equal at any scale
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None  # open_clip's name
    pool_rows: float | None = None  # pairs of the pool
    samples_seen: float | None = None  # in training
    # Settings that belong to the scale, as the number of clusters
    at_scale: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()  # names of published weights, as `ViT-B-32:openai`
    # Whether, at another scale, any fraction kept and a dedup before are the same method: for statements that are
    # not about one size
    is_loose: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a paper's table."""

    label: str  # as the paper has it
    values: Mapping[str, Published]  # by the column's name; a column that is not here is no part of the row
    want: Want | None = None  # which run of ours; none where it is out of scope
    out_of_scope: str = ""  # why no run of ours can fill it
    group: str = ""  # orders are compared within a group, as one scale of DataComp
    note: str = ""  # what a reader must know


@dataclass(frozen=True)
class Table:
    """A table of a paper."""

    key: str  # short name, for `paper.numbers`
    title: str  # what it shows, and where in the paper it stands
    measures: tuple[Measure, ...]  # its columns
    rows: tuple[Row, ...]  # its rows
    protocol: str = "datacomp"  # whose results of ours stand beside it: `datacomp` or `corrected`
    order_by: tuple[str, ...] = ()  # columns in which the order of the rows is compared
    note: str = ""  # what a reader must know


@dataclass(frozen=True)
class InWords:
    """An order that a paper states without numbers that were seen."""

    text: str  # the statement
    higher: Want  # the run that is above
    lower: Want  # the run that is below
    mark: Mark  # how well the source was read
    source: str  # where it was read


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
    """A number of ours."""

    value: float  # mean over seeds, in [0, 1]
    interval: tuple[float, float] | None  # 95 %, over test samples, and over seeds where there are three or more
    seeds: tuple[float, ...]  # the value of each seed
    metric: str  # what it is, where it is not what the paper measures
    scale: str  # pool, kept rows, model and samples seen, in words
    departures: tuple[str, ...]  # what differs from the paper's scale; none at the same scale
    keys: tuple[str, ...]  # of the evaluations


@dataclass(frozen=True)
class Cell:
    """One number of a paper and what stands beside it."""

    measure: str  # the column's name
    paper: Published  # the number
    ours: Ours | None  # none where there is none
    difference: float | None  # ours - paper, at the same scale alone
    state: State  # see `State`
    command: str = ""  # what would fill our side; empty where it is filled, or nothing can
    reason: str = ""  # why it is out of scope, or what keeps ours from standing here


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
    """A pair that the paper orders, and what ours say."""

    table: str  # title of the table; empty for a statement in words
    measure: str  # the column
    higher: str  # the row that the paper puts above
    lower: str  # the row below
    paper_gap: float | None  # by how much, in [0, 1]; none for a statement in words
    mark: Mark  # how well the paper's side was read
    ours_gap: float | None = None  # higher - lower of ours
    # 95 % of that, over test samples and seeds; none with fewer than three seeds
    interval: tuple[float, float] | None = None
    verdict: Verdict = "not measured"  # `agrees` or `disagrees` only where the interval leaves nil out
    is_same_scale: bool = False  # whether ours are at the paper's scale
    detail: str = ""  # why there is no verdict, or what stands in for the measure
    p: float | None = None  # of no difference between ours, before Holm's correction


@dataclass(frozen=True)
class PaperTables:
    """All of a comparison."""

    name: str  # as in `paper=NAME`
    title: str  # of the paper
    tables: tuple[FoundTable, ...]  # as found
    orderings: tuple[Ordering, ...]  # all pairs, those not measured included
    facts: tuple[Facts, ...]  # what no run measures
    out_of_scope: tuple[str, ...]  # what of the paper nothing here covers
    notes: tuple[str, ...]  # about our side: how many runs, what was left out
