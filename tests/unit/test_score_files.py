"""Scores that other tools made, joined by uid, and scores that are sums of others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring import made, pool_of

from dbp.config import compose
from dbp.curate import recipe
from dbp.data.missing import Missing
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.stage import key_of
from dbp.errors import ConfigError, WorldError
from dbp.formats.exchange import write_uid_file
from dbp.formats.uid_pairs import uids_to_pairs
from dbp.scoring.from_file import FileScore
from dbp.scoring.mix import Mix
from dbp.settings import read
from dbp.verbs.command_line import overrides

UIDS = [f"{i * 7919 + 1:032x}" for i in range(12)]
NUMBERS = np.linspace(-1, 1, 12)
ONE = FileScore(column="x", uid="uid", not_finite="missing")


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return pool_of(tmp_path / "pool", UIDS, [5, 7])


def parquet(file: Path, uids: list[str], numbers: Any, **columns: Any) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"uid": uids, "x": numbers, **columns}), file)
    return str(file)


def shuffled(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(12)


def laid_out(kind: str, folder: Path) -> FileScore:
    """All numbers in a file of some kind, in an order of its own."""
    order = shuffled()
    uids, numbers = [UIDS[i] for i in order], NUMBERS[order]
    if kind == "parquet":
        return replace(ONE, file=parquet(folder / "x.parquet", uids, numbers))
    if kind == "folder":
        parquet(folder / "many" / "a.parquet", uids[:4], numbers[:4])
        parquet(folder / "many" / "b.parquet", uids[4:], numbers[4:])
        return replace(ONE, file=str(folder / "many"))
    if kind == "csv":
        lines = [f"{n},{u}" for u, n in zip(uids, numbers.tolist(), strict=True)]
        (folder / "x.csv").write_text("\n".join(["x,uid", *lines]) + "\n")
        return replace(ONE, file=str(folder / "x.csv"))
    np.save(folder / "x.npy", numbers)
    if kind == "pairs":
        np.save(folder / "uids.npy", uids_to_pairs(uids))
    else:
        (folder / "uids.npy").write_text("\n".join(uids) + "\n")
    return replace(ONE, file=str(folder / "x.npy"), uids=str(folder / "uids.npy"))


KINDS = ["parquet", "folder", "csv", "pairs", "names"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_the_number_that_its_uid_has_in_the_file(kind: str, pool: Pool, tmp_path: Path) -> None:
    found, counts = made(laid_out(kind, tmp_path), tmp_path / "a", pool=pool)
    np.testing.assert_array_equal(found.values, NUMBERS.astype(np.float32))
    assert counts == {"rows": 12, "without score": 0, "not finite": 0, "named, not in the pool": 0}
    assert found.label == "x"


def test_rows_that_the_file_does_not_name_are_missing_and_foreign_names_are_counted(
    pool: Pool, tmp_path: Path
) -> None:
    file = parquet(tmp_path / "x.parquet", [UIDS[3], "f" * 32, UIDS[0]], [3.0, 9.0, None])
    found, counts = made(replace(ONE, file=file, higher_is_better=False), tmp_path / "a", pool=pool)
    assert np.flatnonzero(~np.isnan(found.values)).tolist() == [3]
    assert counts == {"rows": 1, "without score": 11, "not finite": 1, "named, not in the pool": 1}
    reasons = {int(r): found.missing.texts[c] for r, c in zip(found.missing.rows, found.missing.codes, strict=True)}
    assert reasons[0] == "no finite score"
    assert reasons[1] == "not in the file of scores"
    assert not found.higher_is_better


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_fp32_cannot_hold_are_counted_or_refused(bad: float, pool: Pool, tmp_path: Path) -> None:
    stage = replace(ONE, file=parquet(tmp_path / "x.parquet", UIDS[:2], [bad, 1.0]))
    found, counts = made(stage, tmp_path / "a", pool=pool)
    assert counts["not finite"] == 1
    assert np.isnan(found.values[0])
    with pytest.raises(ConfigError) as refused:
        made(replace(stage, not_finite="error"), tmp_path / "b", pool=pool)
    assert UIDS[0] in str(refused.value)
    assert "not_finite" in str(refused.value)


@pytest.mark.parametrize("across", [False, True])
def test_a_uid_that_stands_twice_is_refused(across: bool, pool: Pool, tmp_path: Path) -> None:
    if across:
        parquet(tmp_path / "many" / "a.parquet", UIDS, NUMBERS)
        parquet(tmp_path / "many" / "b.parquet", UIDS[4:5], [0.0])
        file = str(tmp_path / "many")
    else:
        file = parquet(tmp_path / "x.parquet", [*UIDS, UIDS[4]], [*NUMBERS, 0.0])
    with pytest.raises(WorldError, match=UIDS[4]):
        made(replace(ONE, file=file), tmp_path / "a", pool=pool)


def test_rows_of_one_uid_share_its_number(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", ["a", "b", "a"])
    file = parquet(tmp_path / "x.parquet", ["b", "a"], [1.0, 2.0])
    found, _ = made(replace(ONE, file=file), tmp_path / "a", pool=pool)
    assert found.values.tolist() == [2, 1, 2]


def test_what_is_wrong_with_a_file_is_said_with_the_way_out(pool: Pool, tmp_path: Path) -> None:
    file = parquet(tmp_path / "x.parquet", UIDS, NUMBERS, name=UIDS)
    write_uid_file(tmp_path / "uids.npy", UIDS)
    np.save(tmp_path / "x.npy", NUMBERS)
    np.save(tmp_path / "short.npy", NUMBERS[:3])
    (tmp_path / "x.csv").write_text("x,uid\nhigh,a\n")
    uids = str(tmp_path / "uids.npy")
    for stage, facts in [
        (ONE, ["score.file"]),
        (replace(ONE, file=str(tmp_path / "none.parquet")), ["none.parquet"]),
        (replace(ONE, file=file, column="xx"), ["'xx'", "'x'"]),
        (replace(ONE, file=file, column="name"), ["'name'", "numbers"]),
        (replace(ONE, file=parquet(tmp_path / "other.parquet", ["a"], [1.0])), [UIDS[0], "score.uid"]),
        (replace(ONE, file=str(tmp_path / "x.npy")), ["uids"]),
        (replace(ONE, file=str(tmp_path / "short.npy"), uids=uids), ["(3,)", "12"]),
        (replace(ONE, file=str(tmp_path / "x.npy"), uids=str(tmp_path / "x.npy")), ["pairs"]),
        (replace(ONE, file=str(tmp_path / "x.csv")), ["'x'"]),
    ]:
        with pytest.raises((ConfigError, WorldError)) as refused:
            made(stage, tmp_path / str(len(list(tmp_path.iterdir()))), pool=pool)
        for fact in facts:
            assert fact in str(refused.value), str(refused.value)


def test_a_column_of_whole_numbers_with_a_fraction_in_a_later_block_is_read(pool: Pool, tmp_path: Path) -> None:
    others = [f"{i},other-{i}" for i in range(200_000)]  # more than the block that guesses types
    (tmp_path / "x.csv").write_text("\n".join(["x,uid", *others, f"0.5,{UIDS[0]}", f",{UIDS[1]}"]) + "\n")
    found, counts = made(replace(ONE, file=str(tmp_path / "x.csv")), tmp_path / "a", pool=pool)
    assert found.values[0] == 0.5
    assert counts["not finite"] == 1
    assert counts["named, not in the pool"] == 200_000


def test_whole_numbers_above_2_to_53_are_rounded_to_fp32_as_all_are(pool: Pool, tmp_path: Path) -> None:
    numbers = pa.array([2**60 + 1, -(2**62) - 1], pa.int64())
    found, _ = made(
        replace(ONE, file=parquet(tmp_path / "x.parquet", UIDS[:2], numbers)), tmp_path / "a", pool=pool
    )
    assert found.values[:2].tolist() == [2.0**60, -(2.0**62)]


def test_a_column_of_lists_in_the_place_of_uids_is_named(pool: Pool, tmp_path: Path) -> None:
    file = parquet(tmp_path / "x.parquet", [[uid] for uid in UIDS], NUMBERS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as refused:
        made(replace(ONE, file=file), tmp_path / "a", pool=pool)
    for fact in ("x.parquet", "'uid'", "list"):
        assert fact in str(refused.value)


def test_another_file_is_another_score_and_another_place_is_not(tmp_path: Path) -> None:
    def key(file: str) -> str:
        return key_of(replace(ONE, file=file), {})

    one = parquet(tmp_path / "one.parquet", UIDS, NUMBERS)
    same = parquet(tmp_path / "elsewhere" / "same.parquet", UIDS, NUMBERS)
    other = parquet(tmp_path / "other.parquet", UIDS, NUMBERS + 1)
    assert key(one) == key(same) != key(other)


# mixtures


def scores(*values: list[float]) -> list[Scores]:
    return [Scores(np.array(own, np.float32)) for own in values]


def test_a_mix_is_the_weighted_sum_and_missing_where_any_part_is(tmp_path: Path) -> None:
    one, two = scores([1, 2, np.nan, 4], [10, np.nan, 30, 40])
    one = replace(one, missing=Missing.of({2: "cut"}))
    stage = Mix({"score": 0.5, "b": -2.0}, bias=1.0)
    found, counts = made(stage, tmp_path / "a", **{"scores": one, "scores.b": two})
    np.testing.assert_array_equal(found.values, [0.5 - 20 + 1, np.nan, np.nan, 2 - 80 + 1])
    assert counts == {"rows": 2, "without score": 2}
    assert found.missing.rows.tolist() == [2]


def test_a_file_of_weights_is_the_same_mix_as_the_weights(tmp_path: Path) -> None:
    given = dict(zip(("scores.a", "scores.b"), scores([1, 2], [3, 5]), strict=True))
    (tmp_path / "w.json").write_text(json.dumps({"b": 2, "bias": 0.25, "a": 1.5}))
    by_file, _ = made(Mix(None, file=str(tmp_path / "w.json")), tmp_path / "a", **given)
    by_hand, _ = made(Mix({"a": 1.5, "b": 2}, bias=0.25), tmp_path / "b", **given)
    assert by_file.values.tolist() == by_hand.values.tolist() == [7.75, 13.25]
    before = key_of(Mix(None, file=str(tmp_path / "w.json")), {})
    (tmp_path / "w.json").write_text(json.dumps({"b": 2, "bias": 0.25, "a": 1.6}))
    assert key_of(Mix(None, file=str(tmp_path / "w.json")), {}) != before


def test_weights_that_are_no_numbers_are_refused_with_their_name(tmp_path: Path) -> None:
    for weights in ({"a": "high"}, {"a": float("nan")}, {"a": True}):
        with pytest.raises(ConfigError, match=r"weights\.a"):
            Mix(weights)
    for held, facts in {
        '{"a": 1, "bias": null}': ["bias", "None"],
        '{"a": 1, "bias": "much"}': ["bias", "'much'"],
        '{"a": 1, "bias": NaN}': ["bias", "nan"],
        f'{{"a": 1{"0" * 400}}}': ["weights.a", "1000"],
        '{"a": [1]}': ["weights.a", "[1]"],
        '{"a": 1, "bias": true}': ["bias", "True"],
    }.items():
        (tmp_path / "w.json").write_text(held)
        with pytest.raises(ConfigError) as refused:
            Mix(None, file=str(tmp_path / "w.json"))
        for fact in [*facts, "w.json", "finite"]:
            assert fact in str(refused.value)
        assert len(str(refused.value)) < 400
    with pytest.raises(ConfigError, match="bias=nan"):
        Mix({"a": 1}, bias=float("nan"))
    (tmp_path / "w.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match=r"bias=2\.0"):
        Mix(None, bias=2.0, file=str(tmp_path / "w.json"))
    with pytest.raises(ConfigError, match="weights"):
        made(Mix({"a": 1e300}), tmp_path / "a", **{"scores.a": scores([0, 1])[0]})
    (tmp_path / "w.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="names and weights"):
        Mix(None, file=str(tmp_path / "w.json"))
    with pytest.raises(ConfigError, match=r"w\.json"):
        Mix({"a": 1}, file=str(tmp_path / "w.json"))
    with pytest.raises(ConfigError, match="weights"):
        _ = Mix(None).needs


SMALL = ("pool=rehearsal", "encoder=rehearsal", "dedup=none", "select=top_score", "budget.num_kept=5")


def test_a_mix_of_named_scores_is_bound_to_each_and_asks_for_no_other() -> None:
    named = ("+score@scores.l14=clip_score", "+score@scores.mix=mix", "select.score=mix")
    node = recipe(read(compose("curate", overrides([*SMALL, *named, "scores.mix.weights={l14: 1, score: 2}"]))))
    assert set(node["scores.mix"].inputs) == {"scores.l14", "scores"}
    with pytest.raises(ConfigError) as refused:
        recipe(read(compose("curate", overrides([*SMALL, *named, "scores.mix.weights={l41: 1}"]))))
    assert "'l41'" in str(refused.value)
    assert "'l14'" in str(refused.value)
