"""The laws of the engine: parts are made once, by anyone, and whoever dies costs only what he was making."""

import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dbp.__main__ import main
from dbp.config import build, compose, groups
from dbp.curate import recipe
from dbp.encoders.base import Encoder
from dbp.encoders.embed import Embed
from dbp.encoders.precomputed import Precomputed
from dbp.engine.part_jobs import do_parts, open_job, write_job
from dbp.engine.parts import make_one, make_parts, share_out, unfinished
from dbp.engine.runners import PartsSettings, Processes, Slurm
from dbp.engine.slurm_queue import last_words
from dbp.engine.stage import Node, Stage, describe, rebuild
from dbp.engine.store import Store
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError, PoolError, WorldError
from dbp.pools.index import Index
from dbp.selection.budget import Budget
from dbp.settings import read, takes_budget
from dbp.verbs import parts as parts_verb
from dbp.verbs.command_line import overrides

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.append(HERE)  # where processes of the pool and of submitit find the stages, too
toys: Any = importlib.import_module("parted_toys")

WORD = "density"
LOCAL = {"cluster": "local", "poll_seconds": 0.1}


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    folder = tmp_path / "witness"
    folder.mkdir()
    return folder


def made(witness: Path) -> list[str]:
    """The names of the parts that were made, as often as they were."""
    return sorted(file.name.split()[0] for file in witness.iterdir())


def makers(witness: Path) -> set[int]:
    return {int(file.name.split()[1]) for file in witness.iterdir()}


def part_names(*numbers: int) -> list[str]:
    return [f"part-{number:02d}" for number in numbers]


def spelling(witness: Path | str = "", word: str = WORD, **settings: Any) -> Node:
    return toys.Spell(str(witness), **settings).bind(word=toys.Write(word).bind())


def begin(root: Path, node: Node) -> tuple[Any, Work, list[Part], dict[str, Any]]:
    """What a runner is given: nothing is made, and what the node rests on is."""
    met: list[Any] = []

    def stop(work: Work, stage: Any, parts: list[Part], inputs: dict[str, Any]) -> None:
        met[:] = [stage, work, parts, inputs]
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Store(root, runner=stop).get(node)
    return tuple(met)  # type: ignore[return-value]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def soon(holds: Any, seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


# sharing out

COSTS = st.lists(st.floats(0, 1e12) | st.integers(0, 5).map(float), min_size=1, max_size=60)


@given(COSTS, st.integers(1, 70))
def test_parts_are_shared_out_once_each_and_no_group_has_a_part_too_many(costs: list[float], count: int) -> None:
    parts = [Part(str(number), number, cost) for number, cost in enumerate(costs)]
    shared = share_out(parts, count)
    assert sorted(part.number for group in shared for part in group) == list(range(len(parts)))
    assert len(shared) == min(count, len(parts))
    loads = [sum(part.cost for part in group) for group in shared]
    # A part goes where there is least, so without its last one no group is above another.
    lightest = min(loads)
    for group, load in zip(shared, loads, strict=True):
        assert load - (group[-1].cost if group else 0) <= lightest * (1 + 1e-9)


def test_sharing_out_does_not_depend_on_the_order_of_the_parts() -> None:
    parts = [Part(str(number), number, float(number % 5)) for number in range(40)]
    shuffled = [parts[number] for number in np.random.default_rng(0).permutation(40)]
    assert share_out(parts, 7) == share_out(shuffled, 7)


# one part


def test_a_finished_part_is_not_made_again(tmp_path: Path, witness: Path) -> None:
    stage, work, parts, inputs = begin(tmp_path / "store", spelling(witness))
    make_parts(stage, Work(work.folder, work.shared, work.key), parts[:3], inputs)
    assert made(witness) == part_names(0, 1, 2)
    assert [part.name for part in unfinished(work, parts)] == part_names(3, 4, 5, 6)
    assert Store(tmp_path / "store").get(spelling(witness)).text == "ddeennssiittyy"
    assert made(witness) == part_names(*range(7))


def damage_size(part: Path) -> None:
    (part / "letter.txt").write_text("longer")


def damage_record(part: Path) -> None:
    record = (part / "part.json").read_text()
    (part / "part.json").write_text(record[: len(record) // 2])


def empty_record(part: Path) -> None:
    (part / "part.json").write_text("{}")


def other_bounds(part: Path) -> None:
    record = json.loads((part / "part.json").read_text())
    (part / "part.json").write_text(json.dumps(record | {"cost": record["cost"] + 1}))


def lose_file(part: Path) -> None:
    (part / "letter.txt").unlink()


DAMAGES = [damage_size, damage_record, empty_record, other_bounds, lose_file]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_made_again_and_no_other(tmp_path: Path, witness: Path, damage: Any) -> None:
    stage, work, parts, inputs = begin(tmp_path / "store", spelling(witness))
    make_parts(stage, Work(work.folder, work.shared, work.key), parts, inputs)
    damage(work.shared / "part-03")
    assert [part.name for part in unfinished(work, parts)] == ["part-03"]
    assert Store(tmp_path / "store").get(spelling(witness)).text == "ddeennssiittyy"
    assert made(witness) == sorted([*part_names(*range(7)), "part-03"])


@pytest.mark.parametrize("damage", [None, *DAMAGES])
def test_two_workers_that_make_the_same_part_both_end_well(tmp_path: Path, witness: Path, damage: Any) -> None:
    stage, work, parts, inputs = begin(tmp_path / "store", spelling(witness))
    if damage:
        make_parts(stage, Work(work.folder, work.shared, work.key), parts[:1], inputs)
        damage(work.shared / "part-00")
    together = threading.Barrier(8, timeout=20)
    found: list[Any] = []

    def make(folder: Path) -> dict[str, Any]:
        (folder / "letter.txt").write_text("dd")
        together.wait()
        return {"rows": 1}

    def worker() -> None:
        try:
            own = Work(work.folder, work.shared, work.key)
            found.append(own.part("part-00", make, parts[0].cost))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [{"rows": 1}] * 8
    assert work.counts("part-00", parts[0].cost) == {"rows": 1}
    assert [folder.name for folder in work.shared.iterdir()] == ["part-00"]


def test_a_part_that_is_there_is_not_replaced_under_its_readers(tmp_path: Path) -> None:
    _, work, parts, _ = begin(tmp_path / "store", spelling())
    first, second = (Work(work.folder, work.shared, work.key) for _ in range(2))
    letter = work.shared / "part-00" / "letter.txt"
    seen = []

    def make(folder: Path) -> dict[str, Any]:
        (folder / "letter.txt").write_text("dd")
        if not seen:  # the other worker makes the part meanwhile
            seen.append(None)
            first.part("part-00", make, parts[0].cost)
            seen.append(letter.stat().st_ino)
        return {"rows": 1}

    second.part("part-00", make, parts[0].cost)
    assert seen == [None, letter.stat().st_ino]


def test_a_part_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    stage, work, parts, inputs = begin(tmp_path / "store", spelling(act="fail", at=2))
    with pytest.raises(ZeroDivisionError):
        make_parts(stage, Work(work.folder, work.shared, work.key), parts, inputs)
    assert sorted(folder.name for folder in work.shared.iterdir()) == part_names(0, 1)


def test_parts_that_were_taken_away_are_not_begun_anew(tmp_path: Path, witness: Path) -> None:
    stage, work, parts, inputs = begin(tmp_path / "store", spelling(witness))
    work.runner = None
    make_parts(stage, work, parts[:2], inputs)
    shutil.rmtree(work.shared)
    with pytest.raises(FileNotFoundError):
        make_parts(stage, work, parts, inputs)
    assert not work.shared.exists(), "nobody would ever remove it"


# what another process is told


def test_a_job_file_gives_an_equal_stage_and_equal_inputs(tmp_path: Path) -> None:
    stage, work, parts, inputs = begin(tmp_path / "store", spelling("somewhere", act="wait"))
    opened, desk, again = open_job(write_job(work))
    assert opened == stage
    assert again == inputs
    assert (desk.shared, desk.key) == (work.shared, work.key)
    assert opened.parts(**again) == parts


def test_a_worker_finds_a_pool_where_its_driver_does_and_not_where_it_was_indexed(tmp_path: Path) -> None:
    write_pool(tmp_path / "old", num_shards=2, per_shard=3)

    def embedding(folder: Path) -> Node:
        index = Index(uid="key", caption="txt", max_pixels=100, shards=f"{folder}/*.tar")
        vectors = Precomputed("made", images=f"{folder}/images.npy")
        return Embed(vectors, "image", rows_per_part=1).bind(pool=index.node())

    store = Store(tmp_path / "store")
    store.get(embedding(tmp_path / "old").inputs["pool"])
    (tmp_path / "old").rename(tmp_path / "new")
    _, work, _, inputs = begin(tmp_path / "store", embedding(tmp_path / "new"))
    _, _, opened = open_job(write_job(work))
    assert opened["pool"].shards == inputs["pool"].shards
    assert "new" in opened["pool"].shards[0]


def test_parts_of_a_complete_artifact_are_swept(tmp_path: Path) -> None:
    store, node = Store(tmp_path / "store"), spelling()
    store.get(node)
    left = store.shared(node, str(store.key(node)))
    (left / "part-00").mkdir(parents=True)
    other = left.with_name("spell-" + 24 * "0")
    other.mkdir()
    store.sweep()
    assert not left.exists()
    assert other.exists(), "work under way"


def test_runs_with_other_settings_do_not_change_each_other_s_job(tmp_path: Path) -> None:
    _, one, *_ = begin(tmp_path / "store", spelling(device="cpu"))
    _, two, *_ = begin(tmp_path / "store", spelling(device="cuda"))
    assert one.key == two.key
    first, second = write_job(one), write_job(two)
    assert open_job(first)[0].device == "cpu"
    assert open_job(second)[0].device == "cuda"
    assert write_job(one) == first
    assert len(list(one.shared.iterdir())) == 2


def test_a_task_makes_its_parts_by_name_and_those_that_are_finished_no_more(tmp_path: Path, witness: Path) -> None:
    _, work, *_ = begin(tmp_path / "store", spelling(witness))
    job = str(write_job(work))
    assert do_parts(job, part_names(1, 4)) == 2
    assert do_parts(job, part_names(0, 1, 4)) == 1
    assert made(witness) == part_names(0, 1, 4)


def test_one_bad_part_keeps_the_others_of_its_task_from_nothing(tmp_path: Path, witness: Path) -> None:
    _, work, parts, _ = begin(tmp_path / "store", spelling(witness, act="fail", at=2))
    with pytest.raises(ZeroDivisionError, match="the letter n"):
        do_parts(str(write_job(work)), part_names(*range(7)))
    assert [part.name for part in unfinished(work, parts)] == ["part-02"]


def test_a_task_that_comes_when_all_is_done_ends_well(tmp_path: Path) -> None:
    _, work, *_ = begin(tmp_path / "store", spelling())
    job = str(write_job(work))
    Store(tmp_path / "store").get(spelling())
    assert do_parts(job, part_names(0)) == 0
    assert not work.shared.exists()


def test_a_node_that_does_not_see_the_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorldError) as refusal:
        do_parts(f"{tmp_path}/store/.partial/spell-0/job.json", part_names(0))
    assert f"does not see {tmp_path}/store/.partial. paths.store must" in str(refusal.value)


GROUPS = ("pool", "dedup", "score", "filter", "cluster", "select", "encoder")
MOST = max(len(groups()[group]) for group in GROUPS)


@pytest.mark.parametrize("number", range(MOST))
def test_every_preset_stage_is_rebuilt_as_it_was_from_its_description(number: int) -> None:
    """The options of that number of every group at once, since composing a config takes half a second."""
    options = {group: groups()[group][number % len(groups()[group])] for group in GROUPS}
    if options["encoder"] == "rehearsal":
        options["pool"] = "rehearsal"
    # Mirrored images need an encoder that computes, concepts one that reads text.
    if options["score"] == "flipped_clip" or options["dedup"].startswith("fairdedup"):
        options["encoder"] = "openclip_b32"
    choices = [f"{group}={option}" for group, option in options.items()]
    more = ["pool.shards=nothing.tar"] if options["pool"] == "webdataset" else []
    more += ["filter.column=x", "filter.values=[a]"] if options["filter"] == "column" else []
    more += ["select.share=1.0"] if options["select"] == "coverage" else []
    more += ["score.column=x"] if options["score"] == "from_column" else []
    config = compose("curate", overrides([*choices, *more, "budget.keep_fraction=0.25"]))
    for group in GROUPS:
        node = config.encoder.cluster if group == "encoder" else config[group]
        extra = {"budget": build(config.budget, Budget)} if group == "select" and takes_budget(node) else {}
        stage = build(node, path=group, **extra)
        stages: list[Any] = [Embed(stage, "image") if isinstance(stage, Encoder) else stage]
        inner = ("comparison", "clustering", "fitting")
        stages += [getattr(stage, name)() for name in inner if hasattr(stage, name)]
        for one in stages:
            again = rebuild(json.loads(json.dumps(describe(one))))
            assert (type(again), again) == (type(one), one)
            assert isinstance(one, Stage) or group == "pool"


# processes of this machine


@pytest.mark.parametrize("runner", [Processes(1), Processes(3), Slurm(2, LOCAL)])
def test_a_runner_makes_every_part_elsewhere_and_the_same_artifact(
    tmp_path: Path, witness: Path, runner: Any
) -> None:
    store = Store(tmp_path / "store", runner=runner)
    assert store.get(spelling(witness)).text == "ddeennssiittyy"
    assert made(witness) == part_names(*range(7))
    assert os.getpid() not in makers(witness)
    assert not list(store.root.glob(".*/*")), "no part and no log is left"


def test_a_single_part_is_made_here_by_the_pool(tmp_path: Path, witness: Path) -> None:
    assert Store(tmp_path / "store", runner=Processes(2)).get(spelling(witness, "a")).text == "aa"
    assert makers(witness) == {os.getpid()}


def test_a_worker_that_dies_is_named_and_finished_parts_are_kept(tmp_path: Path, witness: Path) -> None:
    # The costliest parts come first, so y, t and s are made before the letter n, where it dies.
    node = spelling(witness, act="die", at=2, seconds=0.5)
    store = Store(tmp_path / "store", runner=Processes(2))
    with pytest.raises(WorldError) as death:
        store.get(node)
    left = 7 - len(list(store.root.glob(".partial/*/part-*")))
    assert 1 <= left < 7
    assert str(death.value) == (
        f"a worker process of spell died (killed, or out of memory); {left} of 7 parts are left. "
        "Finished parts are kept: run the same command again, with fewer workers (parts.workers) if "
        "memory was short."
    )
    done = {folder.name for folder in store.root.glob(".partial/*/part-*")}
    for file in witness.iterdir():
        file.unlink()
    assert Store(tmp_path / "store", runner=Processes(2)).get(spelling(witness)).text == "ddeennssiittyy"
    assert made(witness) == sorted({*part_names(*range(7))} - done)


def test_what_a_worker_refuses_is_said_as_it_said_it_and_the_rest_is_not_begun(
    tmp_path: Path, witness: Path
) -> None:
    word = "y" + 100 * "a"  # y costs most, so it is the first; the others take 25 seconds of one worker
    with pytest.raises(PoolError) as refusal:
        Store(tmp_path / "store", runner=Processes(2)).get(
            spelling(witness, word, act="refuse", at=0, seconds=0.25)
        )
    assert str(refusal.value) == "shard 0 is gone"
    assert len(made(witness)) < len(word)


def test_workers_share_out_the_gpus_that_are_visible(
    tmp_path: Path, witness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    node = spelling(witness, 12 * "a", act="wait", seconds=0.2, device="auto")
    Store(tmp_path / "store", runner=Processes(2)).get(node)
    seen = {file.name.split()[1]: file.read_text().split(",")[0] for file in witness.iterdir()}
    assert sorted(seen.values()) == ["5", "7"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5, 7"


def test_workers_are_given_their_threads_before_they_load_anything(
    tmp_path: Path, witness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Store(tmp_path / "store", runner=Processes(2, threads=3)).get(spelling(witness))
    assert {file.read_text().split(",")[1] for file in witness.iterdir()} == {"3"}
    assert "OMP_NUM_THREADS" not in os.environ


def test_workers_end_when_their_driver_is_killed(tmp_path: Path, witness: Path) -> None:
    script = tmp_path / "drive.py"
    script.write_text(
        "import sys\n"
        f"sys.path.append({HERE!r})\n"
        "from parted_toys import Spell, Write\n"
        "from dbp.engine.runners import Processes\n"
        "from dbp.engine.store import Store\n"
        "if __name__ == '__main__':\n"
        "    node = Spell(sys.argv[1], act='wait', seconds=60.0).bind(word=Write('abcdef').bind())\n"
        "    Store(sys.argv[2], runner=Processes(2)).get(node)\n"
    )
    driver = subprocess.Popen([sys.executable, script, witness, tmp_path / "store"])
    try:
        assert soon(lambda: len(makers(witness)) == 2)
    finally:
        driver.send_signal(signal.SIGKILL)  # the driver alone, as the kernel does when memory is short
        driver.wait()
    assert soon(lambda: not any(is_alive(pid) for pid in makers(witness)))


# tasks of submitit


def test_a_part_that_always_fails_ends_with_its_last_words_and_the_rest_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", runner=Slurm(2, LOCAL | {"rounds": 1}))
    with pytest.raises(WorldError) as failure:
        store.get(spelling(act="fail", at=2))
    said = str(failure.value)
    # The first submission made the others, the second nothing.
    assert said.startswith(
        "1 of 7 parts of spell were not made in 2 submissions, the first of them part-02. The last log "
        "says: ZeroDivisionError: the letter n cannot be doubled. The logs are in "
    )
    assert said.endswith("Finished parts are kept: the same command submits what is missing.")
    assert len(list(store.root.glob(".partial/*/part-*"))) == 6


def test_tasks_do_not_take_the_driver_s_own_job_for_theirs(
    tmp_path: Path, witness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    Store(tmp_path / "store", runner=Slurm(2, LOCAL)).get(spelling(witness))
    assert {file.read_text().split(",")[2] for file in witness.iterdir()} == {""}
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_a_setting_that_slurm_does_not_know_is_told_its_right_spelling(tmp_path: Path) -> None:
    runner = Slurm(2, {"partiton": "gpu"})
    with pytest.raises(ConfigError, match=r"parts\.slurm\.partiton='gpu': Did you mean 'partition'"):
        Store(tmp_path / "store", runner=runner).get(spelling())


def test_a_machine_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    runner = Slurm(2, {"partition": "gpu"})
    with pytest.raises(WorldError) as refusal:
        Store(tmp_path / "store", runner=runner).get(spelling())
    said = str(refusal.value)
    assert said.startswith('SLURM took no jobs for spell: Could not detect "srun"')
    assert said.endswith(
        "Settings are under parts.slurm (partition=gpu); parts.runner=processes works on this machine."
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 0}, "workers=0: it must be at least 1"),
        ({"threads": 0}, "threads=0: it must be at least 1"),
        ({"runner": "slum"}, "runner='slum': Did you mean 'slurm'?"),
        ({"slurm": {"rounds": 0}}, "parts.slurm.rounds=0: it must be a number of at least 1"),
        ({"slurm": {"max_array": "x"}}, "parts.slurm.max_array='x': it must be a number"),
        ({"slurm": {"cluster": "pbs"}}, "parts.slurm.cluster='pbs': it must be slurm or local"),
    ],
)
def test_wrong_settings_of_parts_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(settings, PartsSettings, "parts")
    assert said in str(refusal.value)


def test_the_last_words_are_those_of_a_task_that_failed(tmp_path: Path) -> None:
    assert last_words(tmp_path) == (" No task wrote a log: paths.store must lie on a disk that all nodes share.")
    (tmp_path / "1_0_0_log.out").touch()
    assert last_words(tmp_path) == ""
    logs = {
        "1_0_0_log.err": "UserWarning: slow\n",
        "1_1_0_log.err": "Traceback (most recent call last):\n  x\nMemoryError: too much.\nsrun: error: n1\n",
        "1_2_0_log.err": "UserWarning: still slow\n\n",
    }
    for at, (name, text) in enumerate(logs.items()):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (at, at))
    assert last_words(tmp_path) == " The last log says: MemoryError: too much."
    (tmp_path / "1_1_0_log.err").unlink()
    assert last_words(tmp_path) == " The last log says: UserWarning: still slow."


# dbp parts


def write_pool(folder: Path, num_shards: int, per_shard: int) -> None:
    """Shards of tiny pictures, and vectors for them in which every tenth row repeats the one before."""
    folder.mkdir()
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(shard * per_shard, (shard + 1) * per_shard):
                out = io.BytesIO()
                Image.new("RGB", (2, 2), (row % 256, row // 256, 0)).save(out, "PNG")
                for name, content in ((f"{row:05d}.png", out.getvalue()), (f"{row:05d}.txt", b"a")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(num_shards * per_shard, 16)).astype(np.float32)
    vectors[10::10] = vectors[9:-1:10]
    np.save(folder / "images.npy", vectors)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "pool"
    write_pool(folder, num_shards=5, per_shard=12)
    return folder


def settings(pool: Path, root: Path) -> list[str]:
    uses = [f"encoder.{use}.images={pool}/images.npy" for use in ("dedup", "cluster", "score")]
    return [
        "pool=webdataset", f"pool.shards={pool}/*.tar", "encoder=precomputed", *uses, "parts.device=cpu",
        "dedup.num_clusters=3", "cluster.num_clusters=4", "budget.num_kept=20", f"paths.store={root}",
    ]  # fmt: skip


@pytest.fixture
def dbp(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`dbp` on the pool and a store of its own: status, and what it printed."""

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main([*arguments, *settings(pool, tmp_path / "store")])
        said = capsys.readouterr()
        return status, (said.out + said.err).strip()

    return call


@pytest.fixture(scope="module")
def nodes(pool: Path) -> list[Node]:
    """Every stage of the pool's curation, inputs first."""
    config = compose("curate", overrides(settings(pool, pool)))
    return parts_verb._distinct(recipe(read(config))["select"].lineage())


def of_stage(nodes: list[Node], name: str) -> list[Node]:
    return [node for node in nodes if node.stage.name == name]


def test_any_scheduler_can_drive_a_curation_part_by_part(
    tmp_path: Path, nodes: list[Node], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    order = []
    for _ in range(30):
        states = [parts_verb.status(store, node) for node in nodes]
        todo = [node for node, said in zip(nodes, states, strict=True) if "complete" not in said]
        if not todo:
            break
        ready = [said for said in states if "complete" not in said and "waits for" not in said]
        assert ready, "something can always be done"
        order.append(ready[0].split()[0])
        for index in range(3):
            parts_verb.run(Store(tmp_path / "store"), of_stage(nodes, order[-1]), index, 3)
    assert order == [
        "index", "valid", "embed", "centroids", "cluster", "similar", "dedup", "filter", "centroids",
        "cluster", "select",
    ]  # fmt: skip
    undisturbed = Store(tmp_path / "undisturbed")
    assert store.get(nodes[-1]).digest == undisturbed.get(nodes[-1]).digest
    assert store.built == [], "nothing was left to do"
    said = capsys.readouterr().out
    assert "2 of 2 parts made here, 3 of 5 left" in said
    assert "1 of 1 parts made here, complete" in said


def test_parts_status_and_run_say_what_is_so(dbp: Any) -> None:
    status, said = dbp("parts", "status")
    assert status == 0
    assert [line.split()[0] for line in said.splitlines()] == [
        "index", "valid", "embed", "centroids", "cluster", "similar", "dedup", "filter", "centroids",
        "cluster", "select",
    ]  # fmt: skip
    assert said.splitlines()[0].endswith("0 of 5 parts done")
    assert said.splitlines()[-1].endswith("waits for index")
    status, said = dbp("parts", "run", "stage=index", "index=1", "of=3")
    assert said.endswith("2 of 2 parts made here, 3 of 5 left")
    assert dbp("parts", "status", "stage=index")[1].endswith("2 of 5 parts done")
    assert dbp("parts", "run", "stage=index", "index=1", "of=3")[1].endswith("0 of 2 parts made here, 3 of 5 left")
    status, said = dbp("parts", "run", "stage=embed")
    assert status == 1
    assert said.startswith("StoreError: embed image rests on index, which is not complete in ")
    assert "Make it first: dbp parts run stage=index, or dbp curate" in said
    assert dbp("parts", "run", "stage=index")[1].endswith("3 of 5 parts made here, complete")
    assert dbp("parts", "status", "stage=index")[1].endswith("complete")
    assert dbp("parts", "run", "stage=index", "index=2", "of=3")[1].endswith("is complete")
    assert dbp("parts", "run", "stage=valid", "index=1", "of=2")[1].endswith("has no parts; index=0 makes it")


def test_an_index_cut_at_a_number_of_samples_is_made_in_one_piece(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Index(uid="key", caption="txt", max_pixels=100, max_samples=30, shards=f"{pool}/*.tar").node()
    for at in (1, 0):
        parts_verb.run(Store(tmp_path / "store"), [index], at, 2)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("has no parts; index=0 makes it")
    assert said[1].endswith("is complete")
    assert Store(tmp_path / "store").get(index).num_rows == 30


def test_a_stage_of_which_one_can_be_made_and_another_waits_makes_the_one(
    tmp_path: Path, nodes: list[Node], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    fine, coarse = of_stage(nodes, "cluster")
    for node in fine.inputs.values():
        store.get(node)
    parts_verb.run(store, [fine, coarse], 0, 1)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("complete")
    assert said[1] == "cluster waits for similar"


def test_the_part_that_another_process_joined_is_complete_and_not_made_anew(
    tmp_path: Path, nodes: list[Node], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    store, index = Store(tmp_path / "store"), nodes[0]
    first = True

    def joined(stage: Any, work: Work, part: Part, inputs: dict[str, Any]) -> None:
        nonlocal first
        if not first:  # between the first part and the second the other one ends
            Store(tmp_path / "store").get(index)
        first = False
        make_one(stage, work, part, inputs)

    monkeypatch.setattr(parts_verb, "make_one", joined)
    parts_verb.run(store, [index], 0, 1)
    assert capsys.readouterr().out.strip().endswith("1 of 5 parts made here, complete")
    assert not list(store.root.glob(".partial/*"))


def flip(file: Path) -> None:
    """Change one bit in the middle of a file; its size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


def test_verify_finds_a_flipped_bit_in_an_artifact_and_in_a_part(
    tmp_path: Path, nodes: list[Node], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    store.get(next(node for node in nodes if node.stage.name == "centroids"))
    (fine, _) = of_stage(nodes, "cluster")
    stage, work, parts, inputs = begin(tmp_path / "store", fine)
    work.runner = None
    make_parts(stage, work, parts, inputs)
    assert parts_verb.verify(store, nodes) == 0
    assert int(capsys.readouterr().out.split()[0]) > 10
    part = work.shared / parts[0].name / "label.npy"
    centroids = store.folder(next(n for n in nodes if n.stage.name == "centroids"))
    assert centroids is not None
    for file in (part, centroids / "centroids.npy"):
        flip(file)
        with pytest.raises(WorldError) as damage:
            parts_verb.verify(store, nodes)
        assert f"are not as they were written: {file}. Remove their folders" in str(damage.value)
        flip(file)
    assert parts_verb.verify(store, nodes) == 0
    part.unlink()
    with pytest.raises(WorldError, match=r"1 of \d+ files are not as they were written"):
        parts_verb.verify(store, nodes)
    record = work.shared / parts[0].name / "part.json"
    record.write_text(record.read_text()[:40])
    assert parts_verb.verify(store, nodes) == 0, "a part without a whole record is made again"


def test_a_damaged_artifact_is_made_anew_when_its_folder_is_removed(tmp_path: Path, nodes: list[Node]) -> None:
    store = Store(tmp_path / "store")
    digest = store.get(nodes[-1]).digest
    (fine, _) = of_stage(nodes, "cluster")
    flip(store.folder(fine) / "assignment.npy")  # type: ignore[operator]
    with pytest.raises(WorldError, match=r"assignment\.npy"):
        parts_verb.verify(store, nodes)
    shutil.rmtree(store.folder(fine))  # type: ignore[type-var]
    again = Store(tmp_path / "store")
    again.get(fine)
    assert parts_verb.verify(again, nodes) == 0
    assert again.get(nodes[-1]).digest == digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dbp parts: It can be: run, status, verify."),
        (["rum"], "dbp parts rum: Did you mean 'run'?"),
        (["run"], "dbp parts run needs stage=NAME. cluster, embed, index, similar have parts"),
        (["run", "stage=embd"], "stage=embd: Did you mean 'embed'?"),
        (["status", "stage=embd"], "stage=embd: Did you mean 'embed'?"),
        (["run", "stage=embed", "index=5", "of=3"], "index=5: it must be from 0 to of - 1 = 2"),
        (["run", "stage=embed", "index=0", "of=0"], "of=0: it must be at least 1"),
        (["run", "stage=embed", "index=one"], "index='one': it must be a whole number"),
        (["run", "stage=embed", "index=-1"], "index='-1': it must be a whole number"),
        (["run", "stage=embed", "until=clusters"], "until='clusters': it must be one of index"),
        (["run", "stage=embed", "select.temprature=1"], "Did you mean 'select.temperature'?"),
    ],
)
def test_a_wrong_option_names_the_way_out(dbp: Any, arguments: list[str], message: str) -> None:
    status, said = dbp("parts", *arguments)
    assert status == 1
    assert message in said
    assert "Traceback" not in said
