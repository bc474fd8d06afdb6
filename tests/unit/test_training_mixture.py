"""Laws of a mixture: weights are kept in each epoch, places are keyed, weight 1 is the plain order."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dbp.config import build, compose
from dbp.curate import recipe
from dbp.data.column import Column
from dbp.data.columns import Columns
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool, hash_64
from dbp.data.scores import Scores
from dbp.engine.stage import Node, parameters
from dbp.errors import ConfigError, WorldError
from dbp.settings import read
from training.account.horizon import Budget, Horizon
from training.config import Model, Optimiser
from training.feed.augmentation import Shift
from training.feed.mixture import MixedOrder, check_weights, mixed_horizon
from training.feed.order import Batches, Order, copy_keys, draws, sample_keys
from training.feed.subset import Subset
from training.feed.weights import ByColumn, ByScore, BySource, ByUid, Mixture
from training.run import lay_out
from training.settings import Objective
from training.train import node_of

ASKED = Objective(
    model=Model(name="ViT-B-32"),
    optimiser=Optimiser(1e-3, 0.9, 0.98, 1e-6, 0.2, "openclip3", "cosine", 0),
    augmentation=Shift(2),
    seed=7,
    precision="fp32",
)
KEYS = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
FEW = KEYS[:200]
MIXED = np.resize(np.array([0.25, 2.5, 0, 1], np.float32), 200)


def weights_of(*values: float, num: int = 1000) -> np.ndarray:
    return np.resize(np.array(values, np.float32), num)


def one_by_one(order: MixedOrder, until: int) -> list[tuple[int, int, int]]:
    """The stream as (epoch, sample, copy), worked out sample by sample."""
    found: list[tuple[int, int, int]] = []
    epoch = 0
    while len(found) < until:
        entries = []
        for sample, times in enumerate(order.counts(epoch).tolist()):
            for copy in range(times):
                key = copy_keys(order.keys[sample : sample + 1], np.array([copy]))
                entries.append((int(_place(key, order.seed, epoch)), sample, copy))
        found += [(epoch, sample, copy) for _, sample, copy in sorted(entries)]
        epoch += 1
    return found[:until]


def _place(key: np.ndarray, seed: int, epoch: int) -> int:
    from training.feed.order import ORDER, mix, stream

    return int(mix(key ^ stream(seed, np.array([epoch]), ORDER))[0])


def test_weight_one_everywhere_is_the_plain_order_bit_for_bit() -> None:
    plain, mixed = Order(KEYS, 7), MixedOrder(KEYS, 7, weights_of(1.0))
    positions = np.arange(900, 3300)
    epochs, indices = plain.at(positions)
    found = mixed.at(positions)
    assert np.array_equal(found[0], epochs)
    assert np.array_equal(found[1], indices)
    assert not found[2].any()
    horizon = Horizon(1000, 64, 30)
    for one, same in zip(Batches(plain, horizon), Batches(mixed, horizon), strict=True):
        assert np.array_equal(one.indices, same.indices)
        assert np.array_equal(one.named(KEYS), same.named(KEYS))


def test_the_stream_is_what_counting_sample_by_sample_gives() -> None:
    order = MixedOrder(FEW, 3, MIXED)
    expected = np.array(one_by_one(order, 800)).T
    for found, same in zip(order.at(np.arange(800)), expected, strict=True):
        assert np.array_equal(found, same)


def test_a_position_is_the_same_whichever_were_asked_before() -> None:
    weights = weights_of(0.25, 2.5, 0, 1)
    whole = MixedOrder(KEYS, 3, weights).at(np.arange(6000))
    later = MixedOrder(KEYS, 3, weights)
    for first in (5000, 10, 2900):
        for found, same in zip(later.at(np.arange(first, first + 500)), whole, strict=True):
            assert np.array_equal(found, same[first : first + 500])


def test_each_epoch_holds_floor_or_floor_plus_one_copies_and_the_mean_is_the_weight() -> None:
    weights = weights_of(0.3, 1.0, 2.75, 0.0)
    order = MixedOrder(KEYS, 0, weights)
    total = np.zeros(1000)
    for epoch in range(40):
        counts = order.counts(epoch)
        extra = counts - np.floor(weights)
        assert set(np.unique(extra)) <= {0, 1}
        assert not extra[weights == np.floor(weights)].any()
        samples = order.epoch(epoch)
        assert np.array_equal(np.bincount(samples, minlength=1000), counts)
        total += counts
    for weight in (0.3, 2.75):  # 250 samples x 40 epochs; 4 standard errors
        part = weight % 1
        error = 4 * np.sqrt(part * (1 - part) / 10_000)
        assert abs(total[weights == np.float32(weight)].mean() / 40 - weight) < error
    drawn = np.stack([order.counts(epoch) for epoch in (0, 1)])[:, weights == np.float32(0.3)]
    assert not np.array_equal(drawn[0], drawn[1])  # a new draw in each epoch


def test_arms_that_share_samples_of_equal_weight_meet_them_alike() -> None:
    rng = np.random.default_rng(1)
    weights = rng.choice(np.array([0.5, 1.0, 2.2], np.float32), 1000)
    one, other = (np.sort(rng.choice(1000, 600, replace=False)) for _ in range(2))
    for epoch in (0, 2):
        found = []
        for rows in (one, other):
            order = MixedOrder(KEYS[rows], 5, weights[rows])
            start, end = order.start(epoch), order.start(epoch + 1)
            _, indices, copies = order.at(np.arange(start, end))
            shared = np.isin(rows[indices], np.intersect1d(one, other))
            found.append(list(zip(rows[indices][shared], copies[shared], strict=True)))
        assert found[0] == found[1]


def test_copies_have_places_and_changes_of_their_own() -> None:
    order = MixedOrder(KEYS, 0, weights_of(2.0))
    taken = Batches(order, Horizon(1000, 2000, 1)).slice(0)
    assert taken.copies is not None
    place = np.empty((1000, 2), np.int64)
    place[taken.indices, taken.copies] = np.arange(2000)
    assert abs(np.corrcoef(place.T)[0, 1]) < 0.13  # 4 standard errors
    numbers = draws(0, taken.epochs, taken.named(KEYS), 2)
    assert len(np.unique(numbers, axis=0)) == 2000
    assert np.array_equal(place[:, 0].argsort(), np.argsort(np.argsort(Order(KEYS, 0).epoch(0))))


def test_a_copy_never_has_the_key_of_another_row_with_its_uid() -> None:
    hashes = np.array([7, 7, 7, 8], np.uint64)
    rows = sample_keys(hashes, np.arange(4))
    again = copy_keys(np.repeat(rows, 3), np.tile(np.arange(3), 4))
    assert len(np.unique(again)) == 12


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_slices_put_together_are_the_batches_of_one(world: int) -> None:
    horizon, weights = Horizon(1000, 64, 60), weights_of(0.25, 2.5, 0, 1)
    alone = Batches(MixedOrder(KEYS, 0, weights), horizon)
    ranks = [Batches(MixedOrder(KEYS, 0, weights), horizon, 0, rank, world) for rank in range(world)]
    for step in (0, 14, 59):
        joined = np.concatenate([rank.slice(step).named(KEYS) for rank in ranks])
        assert np.array_equal(joined, alone.slice(step).named(KEYS))


def test_batches_run_over_epochs_that_are_shorter_than_they() -> None:
    order = MixedOrder(KEYS[:20], 0, weights_of(0.1, num=20))
    lengths = [int(order.counts(epoch).sum()) for epoch in range(60)]
    assert min(lengths) == 0  # an epoch may be empty
    epochs, indices, _ = order.at(np.arange(50))
    assert epochs.tolist() == np.repeat(np.arange(60), lengths)[:50].tolist()
    again = np.concatenate([order.epoch(epoch) for epoch in range(60)])
    assert np.array_equal(indices, again[:50])


def test_passes_are_counted_exactly() -> None:
    order = MixedOrder(FEW, 3, MIXED)
    stream = np.array(one_by_one(order, 1000))
    lengths = np.bincount(stream[:, 0])
    for seen in (1, 128, int(lengths[0]), 500, 768):
        epoch = stream[seen, 0]
        expected = epoch + (seen - lengths[:epoch].sum()) / lengths[epoch]
        assert order.passes(seen) == pytest.approx(expected)
    assert order.pairs(2.0) == lengths[:2].sum()
    assert order.pairs(1.5) == lengths[0] + lengths[1] // 2


def test_a_budget_in_epochs_or_samples_makes_a_horizon_of_the_mixture() -> None:
    order = MixedOrder(KEYS, 3, weights_of(2.0))
    by_epochs = mixed_horizon(order, Budget(batch_size=64, epochs=1.5))
    assert (by_epochs.steps, by_epochs.samples_seen) == (46, 2944)
    assert by_epochs.passes == 1.472
    by_steps = mixed_horizon(order, Budget(batch_size=64, samples_seen=1280))
    assert (by_steps.steps, by_steps.passes) == (20, 0.64)
    few = MixedOrder(KEYS, 3, weights_of(0.0625))
    with pytest.raises(ConfigError, match=r"mixture, sum to 62\.50 with train\.batch_size=64"):
        mixed_horizon(few, Budget(batch_size=64, samples_seen=1280))
    with pytest.raises(ConfigError, match=r"train\.epochs=0\.01 .*mixture an epoch has 2,000\.00 pair"):
        mixed_horizon(order, Budget(batch_size=64, epochs=0.01))


def test_the_memory_that_the_module_names_is_what_an_epoch_takes() -> None:
    import tracemalloc

    num = 200_000
    keys = np.random.default_rng(1).integers(0, 2**64, num, dtype=np.uint64)
    tracemalloc.start()
    try:
        order = MixedOrder(keys, 0, np.full(num, 2, np.float32))
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        order.epoch(0)
        held, peak = (size - before for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert held / (2 * num) < 9.5
    assert peak / (2 * num) < 47


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1.0, -0.5), r"1 of 2 kept samples have a weight of mixture .*first is -0\.5 for kept sample 1"),
        ((float("nan"), 1.0), r"first is nan for kept sample 0"),
        ((65_536.0, 1.0), "not from 0 to 65,535"),
        ((0.25, 0.5), r"the weights of 2 kept samples, of mixture, sum to 0\.75"),
    ],
)
def test_weights_that_no_epoch_can_honour_are_refused(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_weights(np.array(values, np.float32))


@pytest.mark.parametrize(
    ("source", "said", "unsaid"),
    [
        ("mixture", ["mixture"], ["keep list", "select."]),
        ("keep list", ["keep list", "select.draws", "budget"], ["mixture"]),
        ("both", ["keep list", "mixture", "select.draws", "budget"], []),
    ],
)
def test_messages_about_weights_name_where_they_come_from(source: Any, said: list[str], unsaid: list[str]) -> None:
    messages = []
    for values in (weights_of(65_536.0), weights_of(1e-4)):
        with pytest.raises(ConfigError) as caught:
            MixedOrder(KEYS, 0, values, source=source)
        messages.append(str(caught.value))
    with pytest.raises(ConfigError) as caught:
        mixed_horizon(
            MixedOrder(KEYS, 0, weights_of(0.0625), source=source), Budget(batch_size=64, samples_seen=1280)
        )
    messages.append(str(caught.value))
    for message in messages:
        assert all(fact in message for fact in said), message
        assert not any(fact in message for fact in unsaid), message
    assert ("select.clip=true" in messages[0]) == (source != "mixture")


def test_a_run_over_a_weighted_keep_list_names_the_list(pool: Pool) -> None:
    heavy = Subset(pool, np.arange(2), np.array([70_000, 1], np.float32))
    with pytest.raises(ConfigError, match="keep list") as caught:
        lay_out(ASKED, Budget(batch_size=2, epochs=1.0), heavy)
    assert "mixture" not in str(caught.value)


SHARDS = ["/data/cc12m/00000.tar", "/data/cc12m/00001.tar", "https://host/laion/0.tar"]


@pytest.fixture
def pool() -> Pool:
    uids = ["a", "b", "c", "d", "e", "c"]
    table = pa.table(
        {
            "uid": uids,
            "uid_hash": pa.array([hash_64(uid.encode()) for uid in uids], pa.uint64()),
            "shard": pa.array([0, 0, 1, 2, 2, 2], pa.int32()),
        }
    )
    return Pool(Columns(table), SHARDS, "0" * 64, "txt", 10**6)


ROWS = np.array([0, 2, 4, 5])


def test_a_source_gives_all_its_samples_one_weight(pool: Pool) -> None:
    mixture = BySource({"cc12m/*1.tar": 3.0, "cc12m/*": 0.5}, 1.0)
    assert mixture.weights(pool, ROWS).tolist() == [0.5, 3.0, 1.0, 1.0]
    assert BySource({"*": 2}, None).weights(pool, ROWS).tolist() == [2, 2, 2, 2]
    with pytest.raises(ConfigError, match=r"no pattern fits shard https://host/laion/0\.tar"):
        BySource({"cc12m/*": 0.5}, None).weights(pool, ROWS)
    with pytest.raises(ConfigError, match=r"'cc3m/\*' decides for none of 3 shards, such as /data"):
        BySource({"cc3m/*": 0.5}, 1.0).weights(pool, ROWS)
    with pytest.raises(ConfigError, match=r"decides for none"):  # what stands before it takes all
        BySource({"*": 0.5, "cc12m/*": 2.0}, 1.0).weights(pool, ROWS)


LANGUAGES = Column(codes=np.array([0, 1, 2, 1, -1, 0], np.int32), texts=("en", "de", "no"))


def test_a_value_of_a_column_gives_its_rows_one_weight(pool: Pool) -> None:
    mixture = ByColumn("language", {"en": 0.5, "no": 3}, otherwise=1.0, without_value=0.25)
    assert mixture.weights(pool, ROWS, LANGUAGES).tolist() == [0.5, 3, 0.25, 0.5]
    assert mixture.weights(pool, np.array([1, 3]), LANGUAGES).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("values", "otherwise", "without", "facts"),
    [
        ({"en": 1, "nö": 1}, 1.0, 1.0, ["'nö'", "language", "de, en, no"]),
        ({"en": 1}, None, 1.0, ["1 of 4 kept samples", "'no'", "'c'", "mixture.otherwise"]),
        ({"en": 1}, 1.0, None, ["1 of 4 kept samples", "no value", "'e'", "mixture.without_value"]),
    ],
)
def test_a_row_that_no_weight_is_for_is_refused(
    pool: Pool, values: Any, otherwise: float | None, without: float | None, facts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        ByColumn("language", values, otherwise, without).weights(pool, ROWS, LANGUAGES)
    assert all(fact in str(caught.value) for fact in facts), caught.value


def test_a_column_of_numbers_and_a_sum_of_zero_have_a_way_out(pool: Pool) -> None:
    mixture = ByColumn("width", {}, 1.0, 1.0)
    with pytest.raises(ConfigError, match=r"width is a column of numbers.*by_score"):
        mixture.weights(pool, ROWS, Column(numbers=np.zeros(6)))
    nothing = ByColumn("language", {"en": 0}, 0.0, 0.0)
    keep = KeepList(pool.digest, np.ones(pool.num_rows, bool))
    with pytest.raises(ConfigError, match=r"sum to 0, so an epoch would be empty"):
        lay_out(replace(ASKED, mixture=nothing), Budget(batch_size=2, epochs=1.0), Subset.of(pool, keep, LANGUAGES))


@pytest.mark.parametrize("name", [False, True, 1])
def test_a_name_that_yaml_read_as_something_else_is_refused(name: Any) -> None:
    by_column = {"column": "language", "values": {name: 1.0}, "otherwise": None, "without_value": None}
    by_source = {"sources": {name: 1.0}, "otherwise": None}
    for kind, given in (("ByColumn", by_column), ("BySource", by_source)):
        with pytest.raises(ConfigError, match=rf"mixture\.(values|sources)={name}: .*in quotes"):
            build({"_target_": f"training.feed.weights.{kind}", **given}, Mixture, "mixture")


def bound(*words: str) -> Node:
    config = compose("train", ["pool.shards=x.tar", "dedup=none", "select=none", "model=glyphs", *words])
    return node_of(config, recipe(read(config)))


def test_a_run_reads_the_column_that_its_mixture_names(tmp_path: Path) -> None:
    mixture = ["mixture=by_column", "mixture.column=lang", "mixture.values={en: 0.5}", "mixture.otherwise=1"]
    node = bound("+columns.lang=json:lang", "+columns.other=json:other", *mixture)
    assert node.inputs["column"].stage.field == "lang"  # type: ignore[attr-defined]
    assert "column" not in bound("+columns.lang=json:lang").inputs
    with pytest.raises(ConfigError, match=r"mixture\.column='lang': .*'lag'.*\+columns\.lang=json:lang"):
        bound("+columns.lag=json:lang", *mixture)


def test_a_score_gives_a_weight_on_a_line(pool: Pool, tmp_path: Path) -> None:
    scores = Scores(np.array([0.1, 0.2, 0.3, 0.4, np.nan, 0.5], np.float32))
    scores.save(tmp_path)
    mixture = ByScore(10.0, -2.0, 0.25, str(tmp_path))
    assert mixture.weights(pool, ROWS).tolist() == pytest.approx([0, 1, 0.25, 3], abs=1e-6)
    assert len(parameters(mixture)["scores"]) == 64
    Scores(np.zeros(3, np.float32)).save(tmp_path)
    with pytest.raises(ConfigError, match="has 3 rows, and the pool has 6"):
        mixture.weights(pool, ROWS)


def table_of(path: Path, uids: list[str], weights: list[Any]) -> str:
    pq.write_table(pa.table({"uid": uids, "weight": pa.array(weights, pa.float64())}), path)
    return str(path)


def test_a_file_gives_uids_their_weights_and_rows_that_share_a_uid_share_it(pool: Pool, tmp_path: Path) -> None:
    file = table_of(tmp_path / "weights.parquet", ["x", "c", "e", "b"], [9, 2.5, 0, 7])
    assert ByUid("weight", 1.5, file).weights(pool, ROWS).tolist() == [1.5, 2.5, 0, 2.5]
    with pytest.raises(ConfigError, match=r"does not name 1 of 4 kept samples, such as a\b|'a'"):
        ByUid("weight", None, file).weights(pool, ROWS)
    with pytest.raises(ConfigError, match=r"no column 'wieght'\. Did you mean 'weight'\?"):
        ByUid("wieght", 1.0, file).weights(pool, ROWS)
    before = parameters(ByUid("weight", 1.0, file))
    other = table_of(tmp_path / "other.parquet", ["c"], [1])
    assert before != parameters(ByUid("weight", 1.0, other))  # the content, not the path
    assert "file" in json.dumps(before)


@pytest.mark.parametrize("weights", [[3.0, 1, 2, 1, 1, 4], [0.5, 1, 2.25, 1, 1, 4]])
def test_a_keep_list_with_counts_is_fed_as_a_mixture_of_the_same_weights(
    pool: Pool, tmp_path: Path, weights: list[float]
) -> None:
    rows = np.arange(6)
    mask = np.zeros(pool.num_rows, bool)
    mask[rows] = True
    plain = KeepList(pool.digest, mask)
    by_uid = dict(zip(pool.uids(rows), weights, strict=True))
    weights = [by_uid[uid] for uid in pool.uids(rows)]
    table = pa.table({"uid": list(by_uid), "times": pa.array(list(by_uid.values()), pa.float32())})
    pq.write_table(table, tmp_path / "w.parquet")
    budget = Budget(batch_size=4, samples_seen=400)
    weighted = Subset.of(pool, plain.weighted(np.array(weights, np.float32)))
    asked = replace(ASKED, mixture=ByUid("times", None, str(tmp_path / "w.parquet")))
    counted = lay_out(ASKED, budget, weighted)
    mixed = lay_out(asked, budget, Subset.of(pool, plain))
    positions = np.arange(400)
    for one, other in zip(counted[1].at(positions), mixed[1].at(positions), strict=True):
        assert np.array_equal(one, other)
    assert counted[2] == mixed[2]
    both = lay_out(asked, budget, weighted)
    assert both[1].weights.tolist() == [w * w for w in weights]


def test_one_pass_over_draws_takes_each_row_as_often_as_the_list_says(pool: Pool) -> None:
    keep = KeepList(pool.digest, np.arange(pool.num_rows) < 4).weighted(np.array([5, 1, 1, 3]))
    _, order, horizon = lay_out(ASKED, Budget(batch_size=5, samples_seen=10), Subset.of(pool, keep))
    assert np.bincount(order.at(np.arange(10))[1]).tolist() == [5, 1, 1, 3]
    assert horizon.passes == 1
    assert horizon.passes_in(5) == 0.5
    assert order.about() == {"draws": 10.0, "most_draws_of_a_sample": 5.0}


@pytest.mark.parametrize(
    ("uids", "weights", "message"),
    [
        (["c", "e", "c"], [1, 2, 1], "uid 'c' stands there more than once"),
        (["e", "c"], [None, 2], "uid 'e' has no weight"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    pool: Pool, tmp_path: Path, uids: list[str], weights: list[Any], message: str
) -> None:
    file = table_of(tmp_path / "weights.parquet", uids, weights)
    with pytest.raises(WorldError, match=message):
        ByUid("weight", 1.0, file).weights(pool, ROWS)


def test_a_file_that_is_no_parquet_is_named(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "weights.parquet").write_text("uid,weight\n")
    with pytest.raises(WorldError, match=r"weights\.parquet' cannot be read as Parquet"):
        ByUid("weight", 1.0, str(tmp_path / "weights.parquet")).weights(pool, ROWS)


def test_a_mixture_is_named_in_the_config() -> None:
    node = {"_target_": "training.feed.weights.BySource", "sources": {"a/*": 2.0}, "otherwise": 1.0}
    assert build(node, Mixture) == BySource({"a/*": 2.0}, 1.0)
    node["sources"] = {"a/*": "much"}
    with pytest.raises(ConfigError, match="'much': it must be a number from 0 to 65,535"):
        build(node, Mixture)
