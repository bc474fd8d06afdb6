"""What a run says of itself: counts of what it was fed, the chain, rows of metrics, and stops."""

import hashlib
import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from dbp.data.pool import Pool
from dbp.engine.progress import Progress
from dbp.errors import PoolError
from training.account.cost import Gauge
from training.account.counts import START, Tally, content_groups, fed, link, mark, num_repeated, uid_names
from training.account.horizon import Horizon
from training.account.metrics import Csv, metrics_file, read_metrics
from training.account.recorder import Recorder
from training.config import Optimiser
from training.feed.order import Batches, Order
from training.resume.ranks import Ranks
from training.step.module import Contrastive, Diverged

BATCH, STEPS = 8, 10
KEPT = np.arange(3, 63, 3)  # 20 rows of a pool of 64
KEYS = np.random.default_rng(1).integers(0, 2**64, 20, dtype=np.uint64)
HORIZON = Horizon(20, BATCH, STEPS)
OPTIMISER = Optimiser(1e-3, 0.9, 0.98, 1e-6, 0.2, "openclip3", "cosine", 0)
NOTHING = np.zeros(0, np.int64)


class Threads(Ranks):
    """Ranks that are threads of this process."""

    def __init__(self, rank: int, size: int, meeting: "Meeting") -> None:
        super().__init__(rank, size)
        self.meeting = meeting

    def gather(self, value: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, value)


LENGTH = 3  # tokens of a caption; a pair costs the device 5 operations each


class Meeting:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.values: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        told = list(self.values)
        self.barrier.wait()
        return told


def together(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What each of several ranks returns, or the error that it raises."""
    meeting, found = Meeting(size), [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, size, meeting) if size > 1 else Ranks())
        except Exception as problem:
            found[rank] = problem  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def batches(ranks: Ranks, broken: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
    """This rank's batches of a run; for a broken row the next kept one stands in."""
    found = []
    for taken in Batches(Order(KEYS, 5), HORIZON, 0, ranks.rank, ranks.size):
        planned = KEPT[taken.indices]
        failed = np.isin(planned, list(broken))
        used = np.where(failed, KEPT[(taken.indices + 1) % 20], planned)
        found.append(
            {
                "rows": torch.from_numpy(used),
                "undecodable": torch.from_numpy(planned[failed]),
                "tokens": torch.zeros((len(used), LENGTH), dtype=torch.long),
            }
        )
    return found


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))


class World:
    """One rank's recorder, driven by hand; the loss of step s on rank r is s + r."""

    def __init__(self, ranks: Ranks, folder: Path, every: int = 4, **change: Any) -> None:
        self.ranks, self.rows = ranks, []
        self.module = Contrastive(Tiny(), OPTIMISER, HORIZON, 0, [0.5] * 3, [0.5] * 3)
        self.trainer = Mock(spec=Trainer, global_step=0)
        self.trainer.optimizers = [Mock(param_groups=[{"lr": 1e-3}])]
        settings: dict[str, Any] = {"most_substitutes": 0.01, "flops": 10}
        settings["count_flops"] = lambda length: 5 * length
        groups = change.pop("groups", None)
        self.recorder = Recorder(
            HORIZON, every, [self.rows.append], Progress("train", 80, "pairs"),
            Tally(KEPT, KEYS, BATCH, ranks, None, groups), Gauge("cpu", "fp32"), folder=folder,
            uids=lambda rows: [f"u{row}" for row in rows], **(settings | change),
        )  # fmt: skip

    def train(self, until: int = STEPS, broken: frozenset[int] = frozenset(), bad: Any = ()) -> "World":
        self.recorder.on_train_start(self.trainer, self.module)
        for step, batch in enumerate(batches(self.ranks, broken)):
            if not self.trainer.global_step <= step < until:
                continue
            self.recorder.on_train_batch_start(self.trainer, self.module, batch, step)
            if (step, self.ranks.rank) in bad:
                self.module.first_bad_step.fill_(step)
            loss = {"loss": torch.tensor(float(step + self.ranks.rank))}
            self.trainer.global_step = step + 1
            self.recorder.on_train_batch_end(self.trainer, self.module, loss, batch, step)
        if until == STEPS:
            self.recorder.on_train_end(self.trainer, self.module)
        return self

    def go_on_from(self, state: dict[str, Any], step: int) -> "World":
        self.recorder.load_state_dict(state)
        self.trainer.global_step = step
        return self


def scramble(word: int) -> int:
    """SplitMix64 with Python's integers."""
    whole = 2**64 - 1
    word = (word + 0x9E3779B97F4A7C15) & whole
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & whole
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & whole
    return word ^ (word >> 31)


def chain_by_hand(broken: frozenset[int] = frozenset()) -> str:
    chain, position = hashlib.sha256(b"").hexdigest(), 0
    for step, batch in enumerate(batches(Ranks(), broken)):
        total = 0
        for row in batch["rows"].tolist():
            total += scramble(int(KEYS[KEPT.tolist().index(row)]) ^ scramble(position))
            position += 1
        text = f"{chain} {(step + 1) * BATCH} {total % 2**64}"
        chain = hashlib.sha256(text.encode()).hexdigest()
    return chain


def test_the_chain_is_that_of_plain_integers_and_hashes(tmp_path: Path) -> None:
    world = World(Ranks(), tmp_path).train()
    assert world.rows[-1]["consumed"] == chain_by_hand()


def test_the_chain_does_not_depend_on_rows_ranks_or_resumes(tmp_path: Path) -> None:
    broken = frozenset({int(KEPT[4])})
    expected = chain_by_hand(broken)
    assert expected != chain_by_hand()
    for size in (1, 2, 4):
        for every in (1, 3, 100):
            ends = together(size, lambda r, e=every: World(r, tmp_path, e, most_substitutes=1.0).train(
                broken=broken).recorder.tally.chain)  # fmt: skip
            assert ends == [expected] * size
    for before, after in ((1, 2), (2, 1), (4, 2)):
        states = together(before, lambda r: World(r, tmp_path, 3).train(7, broken).recorder.state_dict())
        state = states[0]  # what the first rank writes is all that there is
        ends = together(after, lambda r, s=state: World(r, tmp_path, 4).go_on_from(s, 7).train(broken=broken))
        assert [world.recorder.tally.chain for world in ends] == [expected] * after


def test_a_swap_of_two_pairs_or_of_one_sample_changes_the_chain() -> None:
    positions = np.arange(8)
    word = fed(KEYS[:8], positions)
    assert word == fed(KEYS[:8][::-1], positions[::-1])  # who adds first does not matter
    assert word != fed(KEYS[[1, 0, *range(2, 8)]], positions)
    assert word != fed(KEYS[[8, *range(1, 8)]], positions)
    assert word != fed(KEYS[:8], positions + 8)
    assert link(START, 8, word) != link(START, 16, word)


def test_counts_are_those_of_the_rows_really_used(tmp_path: Path) -> None:
    broken = frozenset({int(KEPT[4]), int(KEPT[9])})
    used = [batch["rows"].tolist() for batch in batches(Ranks(), broken)]
    twice = sum(n for rows in used for n in Counter(rows).values() if n > 1)
    assert twice > 0  # substitutes stand beside the pair that they stand in with
    for size in (1, 2):
        ends = together(size, lambda r: World(r, tmp_path).train(broken=broken).recorder.counts())
        counts = ends[0]
        assert counts["samples_seen"] == 80
        assert counts["unique_samples"] == len({row for rows in used for row in rows}) == 18
        assert counts["repeats"] == 62
        assert counts["uid_duplicates_in_batch"] == twice
        assert counts["group_duplicates_in_batch"] is None
        assert (counts["substitutes"], counts["undecodable"]) == (8, 2)  # four epochs, two rows
        assert (counts["train_flops"], counts["hardware_flops"]) == (800, 1200)
        assert (counts["gpu_hours"], counts["peak_device_bytes"]) == (0.0, None)
        assert counts["num_devices"] == size


def test_before_the_first_epoch_ends_every_sample_is_new(tmp_path: Path) -> None:
    world = World(Ranks(), tmp_path, every=2).train()
    assert [row["unique_samples"] for row in world.rows] == [16, 20, 20, 20, 20]
    assert [row["samples_seen"] for row in world.rows] == [16, 32, 48, 64, 80]
    assert all(row["unique_samples"] + row["repeats"] == row["samples_seen"] for row in world.rows)


def test_twins_in_a_batch_are_counted_by_group(tmp_path: Path) -> None:
    groups = np.arange(20) // 2  # each row has one twin
    batch_rows = [batch["rows"].tolist() for batch in batches(Ranks())]
    expected = sum(n for rows in batch_rows for n in Counter((r // 3 - 1) // 2 for r in rows).values() if n > 1)
    ends = together(2, lambda r: World(r, tmp_path, groups=groups).train().recorder.counts())
    assert ends[0]["group_duplicates_in_batch"] == expected > 0


def test_repeated_names_are_counted_within_each_step_alone() -> None:
    names = np.array([[1, 2, 1, 3], [4, 4, 4, 5], [6, 7, 8, 9], [1, 1, 2, 2]], np.uint64)
    assert [num_repeated(names[i : i + 1]) for i in range(4)] == [2, 3, 0, 4]
    assert num_repeated(names) == 9


def test_the_bitmap_counts_each_sample_once() -> None:
    rng = np.random.default_rng(0)
    bits, seen = np.zeros(13, np.uint8), set()
    for _ in range(20):
        drawn = rng.integers(0, 100, (2, 5))
        new = set(drawn.ravel().tolist()) - seen
        assert mark(bits, drawn) == len(new)
        seen |= new
    assert np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist() == sorted(seen)


def test_rows_that_share_a_uid_or_their_content_are_found() -> None:
    hashes = np.array([5, 6, 5, 7, 8], np.uint64)
    words = np.array([[1, 1], [2, 2], [1, 1], [1, 9], [2, 2]], np.uint64)
    pool = Mock(spec=Pool, uid_hashes=hashes)
    pool.hash_words.side_effect = lambda name, rows: words[rows]
    rows = np.array([0, 2, 3, 4])
    keys = np.array([5, 99, 7, 8], np.uint64)  # the second copy of uid 5 has a key of its own
    assert uid_names(pool, rows, keys).tolist() == [5, 5, 7, 8]
    assert uid_names(pool, rows[[0, 2, 3]], keys[[0, 2, 3]]) is not None
    groups = content_groups(pool, rows)
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 3


def test_rows_are_means_over_ranks_and_written_by_the_first_alone(tmp_path: Path) -> None:
    first, second = together(2, lambda r: World(r, tmp_path, every=5).train())
    assert second.rows == []
    assert [row["loss"] for row in first.rows] == [2.5, 7.5]  # of steps 0..4, then 5..9
    row = first.rows[-1]
    assert (row["step"], row["passes"], row["lr"]) == (10, 4.0, 1e-3)
    assert row["logit_scale"] == pytest.approx(10.0)
    assert row["samples_per_second"] == pytest.approx(2 * row["samples_per_second_per_device"], 1e-3)
    ratio = row["hardware_flops_per_second"] / row["model_flops_per_second"]
    assert ratio == pytest.approx(1.5)
    assert (row["train_flops"], row["mfu"], row["grad_norm"]) == (800, None, None)
    json.dumps(first.rows, allow_nan=False)


def test_a_resume_in_the_middle_of_a_row_gives_the_same_loss(tmp_path: Path) -> None:
    whole = World(Ranks(), tmp_path, every=4).train()
    begun = World(Ranks(), tmp_path, every=4).train(until=6)
    torch.save(begun.recorder.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    ended = World(Ranks(), tmp_path, every=4).go_on_from(state, 6).train()
    assert [r["loss"] for r in begun.rows + ended.rows] == [r["loss"] for r in whole.rows]
    same = ("unique_samples", "repeats", "uid_duplicates_in_batch", "consumed", "train_flops")
    for name in same:
        assert ended.rows[-1][name] == whole.rows[-1][name]
    assert ended.recorder.seconds > state["seconds"] > 0


def test_what_a_checkpoint_of_an_earlier_version_does_not_say_stays_unknown(tmp_path: Path) -> None:
    state = World(Ranks(), tmp_path).train(until=6).recorder.state_dict()
    del state["hardware_flops"]
    counts = World(Ranks(), tmp_path).go_on_from(state, 6).train().recorder.counts()
    assert (counts["train_flops"], counts["hardware_flops"]) == (800, None)


def test_utilisation_is_against_the_peak_of_all_devices(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> World:
        world = World(ranks, tmp_path)
        world.recorder.gauge.peak_flops = 1e6
        return world.train()

    first, _ = together(2, work)
    row = first.rows[-1]
    assert row["mfu"] == pytest.approx(row["model_flops_per_second"] / 2e6, abs=6e-5)
    assert row["hfu"] == pytest.approx(1.5 * row["mfu"], abs=2e-4)


def test_energy_and_memory_are_summed_over_ranks_and_tries(tmp_path: Path) -> None:
    def work(ranks: Ranks, state: Any = None) -> World:
        world = World(ranks, tmp_path, every=5)
        readings = iter(range(100, 10_000, 3_600 if ranks.is_first else 1_800))
        world.recorder.gauge.energy = lambda: float(next(readings))
        world.recorder.gauge.peak_memory = lambda: 7 + ranks.rank  # type: ignore[method-assign]
        if state:
            world.go_on_from(state, 5)
        return world.train(STEPS if state else 5)

    begun, _ = together(2, work)
    assert begun.rows[-1]["energy_kwh"] == pytest.approx(5400 / 3.6e6, abs=1e-6)
    ended, _ = together(2, lambda r: work(r, begun.recorder.state_dict()))
    assert ended.recorder.joules == 2 * 5400
    assert ended.rows[-1]["peak_device_bytes"] == 8
    assert ended.rows[-1]["peak_host_bytes"] > 10**7


def test_time_of_other_callbacks_is_neither_training_nor_waiting(tmp_path: Path, monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr("training.account.recorder.time.perf_counter", lambda: now[0])
    world = World(Ranks(), tmp_path, every=2)
    recorder, arguments = world.recorder, (world.trainer, world.module)
    recorder.on_train_start(*arguments)
    for step, batch in enumerate(batches(Ranks())[:2]):
        now[0] += 1  # for data
        recorder.on_train_batch_start(*arguments, batch, step)
        now[0] += 3  # for the step
        world.trainer.global_step = step + 1
        recorder.on_train_batch_end(*arguments, {"loss": torch.tensor(1.0)}, batch, step)
        now[0] += 100  # for a checkpoint
        recorder.clock.on_train_batch_end(*arguments, None, batch, step)
    assert recorder.wait_seconds == 2
    assert recorder.aside_seconds == 200
    row = world.rows[0]
    assert row["data_wait_share"] == 0.25
    assert row["samples_per_second"] == 2.0


def test_gpu_hours_are_those_of_all_devices_of_all_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("training.account.recorder.time.perf_counter", lambda: now[0])
    recorder = World(Ranks(0, 4), tmp_path).recorder
    recorder.gauge.is_gpu = True
    recorder.load_state_dict(recorder.state_dict() | {"seconds": 3600.0, "device_seconds": 2 * 3600.0})
    recorder.began, now[0] = 0.0, 1800.0  # two GPUs for an hour, then four for half an hour
    assert recorder.counts()["gpu_hours"] == 4.0
    assert recorder._elapsed() == 5400.0


@pytest.mark.parametrize(("size", "every"), [(1, 100), (2, 4)])
def test_a_loss_that_is_no_number_stops_all_ranks_and_saves_the_uids(tmp_path: Path, size: int, every: int) -> None:
    bad = {(5, size - 1), (6, 0)}  # on two ranks the second one's loss is the first to break
    worlds: dict[int, World] = {}

    def work(ranks: Ranks) -> Any:
        worlds[ranks.rank] = World(ranks, tmp_path, every)
        return worlds[ranks.rank].train(bad=bad)

    ends = together(size, work)
    rows = batches(Ranks())[5]["rows"].tolist()
    for problem in ends:
        assert isinstance(problem, Diverged)
        assert "the loss of step 5 (after 40 samples seen) is not finite" in str(problem)
        assert f"The 8 uids of its batch are in {tmp_path / 'diverged.json'}." in str(problem)
    saved = json.loads((tmp_path / "diverged.json").read_text())
    assert saved == {"step": 5, "samples_seen": 40, "rows": rows, "uids": [f"u{r}" for r in rows]}
    # One process on the CPU sees it at once, several at the next row.
    assert worlds[0].trainer.global_step == (6 if size == 1 else 8)
    assert len(worlds[0].rows) == (0 if size == 1 else 1)


def test_a_checkpoint_is_not_written_of_a_run_that_diverged(tmp_path: Path) -> None:
    world = World(Ranks(), tmp_path, every=100)
    world.recorder.gauge.device = "cuda"  # so that a step does not look by itself
    world.train(until=3, bad={(2, 0)})
    with pytest.raises(Diverged, match=r"step 2 "):
        world.recorder.state_dict()


def test_too_many_substitutes_stop_all_ranks_with_rows_uids_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.account.counts.LEAST_SAMPLES", 40)
    broken = frozenset(int(row) for row in KEPT[[2, 5, 8, 11, 14, 17]])
    for problem in together(2, lambda r: World(r, tmp_path).train(broken=broken)):
        assert isinstance(problem, PoolError)
        text = str(problem)
        assert "training stopped: in 64 pairs others stood in for" in text
        assert "more than train.most_substitutes=0.01 allows" in text
        assert "Rows of the pool: 9 (uid 'u9'), 18 (uid 'u18'), 27 (uid 'u27')" in text
        assert "and 1 more. Restore the shards" in text
        assert "or raise train.most_substitutes." in text
    ends = together(2, lambda r: World(r, tmp_path, most_substitutes=0.3).train(broken=broken))
    assert all(isinstance(end, World) for end in ends)


def test_few_samples_are_no_reason_to_stop_but_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dbp"):
        World(Ranks(), tmp_path, every=2).train(broken=frozenset({int(KEPT[4])}))
    assert caplog.text.count("row 15 of the pool cannot be decoded") == 1


def test_much_that_is_noted_is_settled_between_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.account.counts.MOST_PENDING", 16)
    world = World(Ranks(), tmp_path, every=100).train(until=5)
    assert world.recorder.tally.steps == 4
    assert len(world.recorder.tally._words) == 1


def test_a_row_that_is_not_kept_is_our_own_mistake() -> None:
    tally = Tally(KEPT, KEYS, 2, Ranks())
    with pytest.raises(AssertionError, match="only kept rows are used"):
        tally.note(np.array([3, 4]), NOTHING)


def test_a_csv_grows_wider_when_a_later_row_has_more_to_say(tmp_path: Path) -> None:
    with Csv().open(tmp_path, "key", {}, [{"samples_seen": 8, "loss": 1.0}]) as write:
        write({"samples_seen": 16, "loss": 0.5, "mfu": 0.3})
        write({"samples_seen": 24, "loss": 0.25})
    lines = (tmp_path / "metrics.csv").read_text().split()
    assert lines == ["samples_seen,loss,mfu", "8,1.0,", "16,0.5,0.3", "24,0.25,"]


def test_a_kill_while_the_past_is_written_again_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    past = [{"samples_seen": 8 * i} for i in range(3)]
    with metrics_file(path, past) as write:
        write({"samples_seen": 24})
    assert [row["samples_seen"] for row in read_metrics(path)] == [0, 8, 16, 24]
    broken: list[Any] = [*read_metrics(path, until=16), {"samples_seen": object()}]
    with pytest.raises(TypeError), metrics_file(path, broken):
        pass
    assert len(read_metrics(path)) == 4
    assert list(tmp_path.iterdir()) == [path]
