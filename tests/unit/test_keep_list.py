"""Keep lists: one decision for each row, laws of sets, and what is on disk."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dbp.data.columns import Columns
from dbp.data.keep_list import DECISIONS, VALUES, KeepList, everything
from dbp.data.pool import Pool
from dbp.decisions import explained
from dbp.engine.stage import Stage
from dbp.engine.store import Store
from dbp.engine.work import Work
from dbp.errors import ConfigError, StoreError
from dbp.narrowing import Narrowing


class Told:
    """Decisions kept the plain way, a dict for each row, beside a keep list built with the same steps."""

    def __init__(self, n: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        valid = self.rng.random(n) < 0.8
        self.kept = everything("pool", valid)
        self.rows: list[dict[str, Any]] = [
            self.row(row, bool(valid[row]), "pool", "valid" if valid[row] else "invalid") for row in range(n)
        ]

    @staticmethod
    def row(row: int, kept: bool, stage: str, reason: str, **values: Any) -> dict[str, Any]:
        return dict.fromkeys(DECISIONS.names) | {
            "row": row, "kept": kept, "stage": stage, "reason": reason, "weight": 1.0 if kept else None, **values,
        }  # fmt: skip

    def narrow(self, stage: str, reasons: list[str], kept_reason: str) -> None:
        """One more stage that drops a third, with values behind its decisions."""
        n = len(self.rows)
        keep, codes = self.rng.random(n) < 0.7, self.rng.integers(0, len(reasons), n)
        value = np.where(self.rng.random(n) < 0.2, np.nan, self.rng.random(n)).astype(np.float32)
        related = self.rng.integers(-1, n, n)
        rank = self.rng.permutation(n)
        self.kept = self.kept.within(
            stage,
            keep,
            (codes.astype(np.uint8), reasons),
            kept_reason,
            value=value,
            related_row=lambda: related,
            rank=lambda: rank,
        )
        for row, told in enumerate(self.rows):
            if told["kept"]:
                self.rows[row] = self.row(
                    row,
                    bool(keep[row]),
                    stage,
                    kept_reason if keep[row] else reasons[codes[row]],
                    value=None if np.isnan(value[row]) else float(value[row]),
                    related_row=None if related[row] < 0 else int(related[row]),
                    rank=int(rank[row]),
                )


@pytest.fixture(params=[(0, 1), (1, 2), (9, 3), (200, 4), (1_001, 5)], ids=lambda p: f"{p[0]} rows")
def told(request: pytest.FixtureRequest) -> Told:
    found = Told(*request.param)
    found.narrow("dedup", ["no embedding", "duplicate"], "no earlier duplicate")
    found.narrow("filter", ["no score", "score below the limit"], "score at or above the limit")
    found.narrow("select", ["no embedding", "beyond the quota"], "within the quota")
    return found


# the decision table


def test_each_row_stands_once_with_the_decision_of_the_last_stage_that_saw_it(told: Told) -> None:
    assert told.kept.decisions.schema == DECISIONS
    assert told.kept.decisions.to_pylist() == told.rows


def test_weights_belong_to_rows_through_narrowing_saving_and_the_table(told: Told, tmp_path: Path) -> None:
    kept = told.kept
    weights = (1 + np.arange(kept.num_kept) % 3).astype(np.float32)
    weighted = kept.weighted(weights)
    half = np.arange(len(told.rows)) % 2 == 0
    narrowed = weighted.within("select", half, "odd", "even")
    by_row = dict(zip(kept.rows.tolist(), weights.tolist(), strict=True))
    assert {row: by_row[row] for row in narrowed.rows.tolist()} == {
        one["row"]: one["weight"] for one in narrowed.decisions.to_pylist() if one["kept"]
    }
    assert narrowed.num_draws == sum(by_row[row] for row in narrowed.rows.tolist())
    narrowed.save(tmp_path)
    found = KeepList.load(tmp_path)
    assert found.digest == narrowed.digest
    assert found.decisions["weight"] == narrowed.decisions["weight"]


def test_weights_are_part_of_what_a_list_is_and_ones_are_none() -> None:
    kept = everything("pool", np.ones(3, bool))
    assert kept.weighted(np.ones(3)).digest == kept.digest
    assert kept.weighted(np.ones(3)).weights is None
    assert (
        len({kept.digest, kept.weighted(np.array([2, 1, 1])).digest, kept.weighted(np.array([1, 2, 1])).digest})
        == 3
    )
    assert kept.weighted(np.array([2, 1, 1])).repeats.tolist() == [2, 1, 1]
    with pytest.raises(ConfigError, match=r"1 fractional weights, such as 0\.5.*format=parquet"):
        _ = kept.weighted(np.array([2, 0.5, 1])).repeats


def test_one_row_s_decision_is_that_of_the_table(told: Told) -> None:
    for row in range(0, len(told.rows), 37):
        assert told.kept.decision(row) == told.rows[row]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_some_rows_in_any_blocks_give_the_same_decisions(told: Told, block: int) -> None:
    rows = np.flatnonzero(np.arange(len(told.rows)) % 3 == 1)[:60]
    tables = list(told.kept.decision_tables(rows, block))
    assert all(table.num_rows <= block for table in tables)
    assert pa.concat_tables(tables).to_pylist() == [told.rows[row] for row in rows]


def test_counts_by_reason_sum_to_the_pool_and_are_those_of_the_table(told: Told) -> None:
    counts = told.kept.counts()
    assert sum(counts.values()) == len(told.rows)
    assert counts == Counter(f"{row['stage']}: {row['reason']}" for row in told.rows)
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_counts_sum_to_the_pool_where_two_filters_give_one_reason() -> None:
    told = Told(300, 6)
    for _ in range(3):
        told.narrow("filter", ["no score", "score below the limit"], "score at or above the limit")
    assert sum(told.kept.counts().values()) == 300
    assert told.kept.counts() == Counter(f"{row['stage']}: {row['reason']}" for row in told.rows)


def test_the_same_word_of_two_stages_is_counted_apart() -> None:
    told = Told(300, 7)
    told.narrow("dedup", ["no embedding"], "kept")
    told.narrow("select", ["no embedding"], "kept")
    assert told.kept.counts() == Counter(f"{row['stage']}: {row['reason']}" for row in told.rows)


def test_values_that_are_functions_are_called_when_someone_asks_and_not_before() -> None:
    asked = []

    def value() -> np.ndarray:
        asked.append(1)
        return np.arange(5) / 10

    kept = everything("pool", np.ones(5, bool)).within("select", np.arange(5) < 2, "late", "early", value=value)
    kept.counts()
    assert (kept.num_kept, kept.digest != "", asked) == (2, True, [])
    assert kept.decision(3)["value"] == 0.3
    assert asked == [1]


def test_a_row_that_went_before_keeps_its_decision_and_its_values() -> None:
    every = everything("pool", np.ones(3, bool))
    gone = every.within("dedup", np.array([True, False, True]), "duplicate", "first",
                        value=np.array([0.1, 0.2, 0.3]), cluster=np.array([4, 5, 6], np.int32))  # fmt: skip
    last = gone.within("select", np.array([True, True, False]), "late", "early", rank=np.arange(3))
    assert last.rows.tolist() == [0], "a stage cannot bring a row back"
    went = last.decision(1)
    assert (went["stage"], went["value"], went["cluster"], went["rank"]) == ("dedup", 0.2, 5, None)
    stays = last.decision(0)
    assert (stays["stage"], stays["value"], stays["cluster"], stays["rank"]) == (
        "select", None, None, 0,
    )  # fmt: skip


def test_narrowing_over_the_rows_left_is_narrowing_over_the_pool() -> None:
    rng = np.random.default_rng(8)
    every = everything("pool", rng.random(50) < 0.5)
    keep, codes, value = rng.random(50) < 0.5, rng.integers(0, 2, 50), rng.random(50)
    related = rng.integers(0, 50, 50)
    over_pool = every.within("filter", keep, (codes.astype(np.uint8), ["a", "b"]), "passes",
                             value=value, related_row=related)  # fmt: skip
    rows = every.rows
    over_rows = every.narrow("filter", keep[rows], (codes[rows].astype(np.uint8), ["a", "b"]), "passes",
                             value=value[rows], related_row=related[rows])  # fmt: skip
    assert over_rows.digest == over_pool.digest
    assert over_rows.decisions.equals(over_pool.decisions)


def test_rows_that_are_not_valid_go_with_their_own_reasons() -> None:
    codes = np.array([0, 1, 2, 1], np.uint8)
    kept = everything("pool", codes == 0, (codes, ["", "no image", "empty caption"]))
    reasons = kept.decisions["reason"].to_pylist()
    assert reasons == ["valid", "no image", "empty caption", "no image"]
    assert kept.counts() == {"pool: no image": 2, "pool: valid": 1, "pool: empty caption": 1}


# identity and sets


def test_equal_rows_of_an_equal_pool_have_one_digest_however_they_were_found() -> None:
    keep = np.arange(20) % 3 == 0
    one = everything("pool", np.ones(20, bool)).within("filter", keep, "low", "high")
    other = everything("pool", np.arange(20) < 19).within("select", keep, "late", "early")
    assert one.digest == other.digest == KeepList("pool", keep).digest
    different = [
        KeepList("other pool", keep),
        KeepList("pool", ~keep),
        KeepList("pool", np.append(keep, False)),  # the bits are padded to the same bytes
        KeepList("pool", np.append(keep, [False] * 4)),
    ]
    digests = {one.digest, *(kept.digest for kept in different)}
    assert len(digests) == 5


def test_every_single_row_changes_the_digest() -> None:
    keep = np.zeros(17, bool)
    digests = {KeepList("pool", keep).digest}
    for row in range(17):
        digests.add(KeepList("pool", keep | (np.arange(17) == row)).digest)
    assert len(digests) == 18


@pytest.mark.parametrize("seed", range(5))
def test_and_and_or_are_intersection_and_union(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (everything("pool", rng.random(31) < 0.5) for _ in range(3))
    sets = [set(kept.rows.tolist()) for kept in (a, b, c)]
    assert set((a & b).rows.tolist()) == sets[0] & sets[1]
    assert set((a | b).rows.tolist()) == sets[0] | sets[1]
    assert (a & b).digest == (b & a).digest
    assert (a | b).digest == (b | a).digest
    assert ((a & b) | c).digest == ((a | c) & (b | c)).digest
    assert (a & a).digest == (a | a).digest == a.digest


def test_combined_lists_say_for_each_row_why_it_is_in_or_out() -> None:
    a, b = (everything("pool", np.array(keep, bool)) for keep in ([1, 1, 0, 0], [1, 0, 1, 0]))
    both, either = a & b, a | b
    assert both.decisions["reason"].to_pylist() == ["in both lists"] + ["not in both lists"] * 3
    assert either.decisions["reason"].to_pylist() == ["in one of the lists"] * 3 + ["not in one of the lists"]
    for kept in (both, either):
        assert set(kept.decisions["stage"].to_pylist()) == {"combine"}
        assert sum(kept.counts().values()) == 4


def test_lists_of_two_pools_are_refused_with_the_way_out() -> None:
    a, b = (KeepList(f"{name}-digest-of-a-pool", np.ones(3, bool)) for name in "ab")
    for combine in (KeepList.__and__, KeepList.__or__):
        with pytest.raises(ValueError) as refusal:
            combine(a, b)
        assert str(refusal.value) == (
            "keep lists of two pools (a-digest-of-, b-digest-of-) cannot be combined by row; export uids instead"
        )


# on disk


def test_a_list_comes_back_with_its_rows_and_reasons_and_without_values(told: Told, tmp_path: Path) -> None:
    told.kept.save(tmp_path)
    again = KeepList.load(tmp_path)
    np.testing.assert_array_equal(again.mask, told.kept.mask)
    assert again.digest == told.kept.digest
    assert again.num_kept == told.kept.num_kept
    assert again.rows.tolist() == told.kept.rows.tolist()
    assert again.counts() == told.kept.counts()
    without = [row | dict.fromkeys(VALUES) for row in told.rows]
    assert again.decisions.to_pylist() == without


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1_000])
def test_a_row_takes_one_bit_and_its_reason_one_small_number(n: int, tmp_path: Path) -> None:
    keep = np.random.default_rng(n).random(n) < 0.5
    kept = everything("pool", keep)
    kept.save(tmp_path)
    bits = np.load(tmp_path / "keep.npy")
    assert bits.nbytes == -(-n // 8)
    assert bits.dtype == np.uint8
    np.testing.assert_array_equal(np.unpackbits(bits)[:n].astype(bool), keep)
    assert not np.unpackbits(bits)[n:].any()
    reasons = pq.read_table(tmp_path / "reason.parquet")
    assert reasons.num_rows == n
    assert [str(field.type) for field in reasons.schema] == ["uint8"]
    about = json.loads((tmp_path / "keep.json").read_text())
    assert about == {
        "pool": "pool",
        "rows": n,
        "kept": int(keep.sum()),
        "digest": kept.digest,
        "layers": [{"stage": "pool", "texts": ["", "valid", "invalid"]}],
    }


def test_a_list_that_was_loaded_is_narrowed_and_saved_as_the_first(tmp_path: Path) -> None:
    told = Told(200, 9)
    told.narrow("dedup", ["no embedding", "duplicate"], "no earlier duplicate")
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    told.kept.save(tmp_path / "first")
    keep = told.rng.random(200) < 0.5
    step = ("select", keep, "late", "early")
    at_once, later = told.kept.within(*step), KeepList.load(tmp_path / "first").within(*step)
    at_once.save(tmp_path / "second")
    assert KeepList.load(tmp_path / "second").digest == later.digest
    assert later.counts() == at_once.counts()


def test_a_bare_list_has_rows_and_no_reasons(tmp_path: Path) -> None:
    kept = KeepList("pool", np.array([True, False, True]))
    kept.save(tmp_path)
    again = KeepList.load(tmp_path)
    assert again.rows.tolist() == [0, 2]
    assert again.layers == ()


# values, worked out again from the store


@dataclass(frozen=True)
class ThreeHundred(Stage):
    """A pool of 300 rows."""

    name: ClassVar[str] = "index"
    makes: ClassVar[type] = Pool

    def run(self, work: Work) -> dict[str, Any]:
        (work.folder / "pool").touch()
        return {}

    def open(self, home: Path, **inputs: Any) -> Pool:
        assert (home / "pool").exists()
        return Pool(Columns(pa.table({"row": np.arange(300)})), [], "pool", "txt", 1)


@dataclass(frozen=True)
class All(Narrowing):
    name: ClassVar[str] = "valid"
    needs: ClassVar[tuple[str, ...]] = ("pool",)

    def decide(self, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        return everything(pool.digest, np.ones(pool.num_rows, bool)), {}


@dataclass(frozen=True)
class Below(Narrowing):
    """Keep rows whose number, in some unit, is below a limit; of the pool's own numbers."""

    name: ClassVar[str] = "filter"
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")

    limit: int
    unit: float = 1.0

    def decide(self, rows: KeepList, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        value = pool.column("row") * self.unit
        return rows.within("filter", pool.column("row") < self.limit, f"not below {self.limit}",
                           f"below {self.limit}", value=value), {"asked": 1}  # fmt: skip


def curated(store: Store) -> tuple[str, KeepList]:
    pool = ThreeHundred().bind()
    first = Below(200, 10.0).bind(rows=All().bind(pool=pool), pool=pool)
    last = Below(120).bind(rows=first, pool=pool)
    store.get(last)
    return str(store.key(last)), store.get(last)


def test_a_list_in_the_store_says_why_and_the_store_says_what_was_compared(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    key, got = curated(store)
    loaded = Store(store.root).open(key)
    for plain in (got, loaded):
        assert plain.decision(130) == Told.row(130, False, "filter", "not below 120")
    for some in (key, key[:8]):
        full = explained(Store(store.root), some)
        assert full.decision(130)["value"] == 130.0
        assert full.decision(250)["value"] == 2500.0, "of the stage before"
        assert full.decision(7)["value"] == 7.0
        assert full.digest == loaded.digest
        bare = full.decisions.drop(["value"])
        assert bare.equals(loaded.decisions.drop(["value"]))


def test_where_an_artifact_that_a_decision_rests_on_is_gone_the_reasons_are_left(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    key, _ = curated(store)
    shutil.rmtree(store.root / "index")
    again = explained(Store(store.root), key)
    assert again.decision(130)["reason"] == "not below 120"
    assert again.decision(250)["reason"] == "not below 200"
    assert again.decision(130)["value"] is None


def test_what_is_no_keep_list_explains_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    curated(store)
    pool = str(store.key(ThreeHundred().bind()))
    with pytest.raises(StoreError, match=f"{pool} is the artifact of stage index, no keep list"):
        explained(store, pool)


def test_a_stage_that_narrows_reports_rows_before_and_after(tmp_path: Path) -> None:
    rows = everything("pool", np.arange(300) < 250)
    pool = ThreeHundred()
    (tmp_path / "pool").touch()
    counts = Below(100).run(Work(tmp_path, tmp_path, "key"), rows=rows, pool=pool.open(tmp_path))
    assert counts == {"rows": 250, "kept": 100, "keep list": KeepList.load(tmp_path).digest, "asked": 1}
