"""What a comparison cost: manifests made by hand with sums done by hand, and one real run."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from dbp.config import locate
from dbp.data.keep_list import KeepList, everything
from dbp.data.pool import Pool, ShardFolder
from dbp.engine.stage import Stage
from dbp.engine.store import Store
from dbp.engine.work import Work
from dbp.names import PLACES
from dbp.pools.index import Index
from evaluation.report.ledger import POOL, Ledger, item_of, ledger_json, ledger_lines
from training.config import Model, Optimiser
from training.feed.augmentation import Shift
from training.stage import Train


def manifest(stage: str, key: str, seconds: float, **counts: Any) -> dict[str, Any]:
    return {
        "stage": stage, "key": key, "seconds": seconds, "cpu_seconds": seconds / 2,
        "counts": counts, "files": {"a": 3, "b": 4}, "made_by": {"_target_": "x"},
    }  # fmt: skip


INDEX = manifest("index", "index", 10.0)
EMBED = manifest("embed", "embed", 300.0)
SELECT = manifest("select", "select", 20.0)
TASKS = manifest("tasks", "tasks", 5.0)
ENCODER = manifest("train", "encoder", 40.0, samples_seen=1000, kept=500, train_flops=10**6)


def run(name: str, seed: int, seconds: float, samples: int, kept: int) -> list[dict[str, Any]]:
    trained = manifest(
        "train", f"train-{name}-{seed}", seconds,
        samples_seen=samples, kept=kept, train_flops=10 * samples, gpu_hours=seconds / 1800,
    )  # fmt: skip
    return [INDEX, trained, TASKS, manifest("evaluate", f"evaluate-{name}-{seed}", 7.0)]


def ledger(pruned_samples: int, seconds: float) -> Ledger:
    """Two runs of an unpruned arm, two of a pruned one that rests on an encoder."""
    made = Ledger()
    for seed in (0, 1):
        made.add("unpruned", map(item_of, run("unpruned", seed, 100.0, 2000, 2000)))
        items = [item_of(m) for m in [EMBED, SELECT, *run("pruned", seed, seconds, pruned_samples, 500)]]
        made.add("pruned", [item_of(ENCODER, "encoder"), *items])
    return made


def test_each_artifact_is_counted_once() -> None:
    made = ledger(2000, 100.0)
    assert len(made.items) == 6 + 4 * 1 + 3
    total = sum(item.seconds for item in made.items.values())
    assert total == 10 + 300 + 20 + 5 + 40 + 4 * 100 + 4 * 7
    assert made.num_runs("index") == 4
    assert made.num_runs("embed") == made.num_runs("encoder") == 2
    assert {made.items[key].purpose for key in ("index", "embed", "select")} == {"curation"}
    assert made.items["encoder"].purpose == "encoder"
    assert made.items["tasks"].purpose == "evaluation"
    assert made.items["embed"].bytes == 7


def test_choosing_costs_a_run_its_encoder_and_all_between_pool_and_keep_list() -> None:
    made = ledger(500, 25.0)
    assert made.choosing("unpruned") == 0, "the index is of the pool"
    assert made.choosing("pruned") == 300 + 20 + 40, "in full for each of two runs that share them"


def test_every_stage_that_makes_a_pool_or_its_shards_is_of_the_pool_and_not_of_choosing() -> None:
    kinds = [locate(place, "stage") for place in PLACES.values()]
    made = {kind.name for kind in kinds if getattr(kind, "makes", None) in (Pool, ShardFolder)}
    assert {"index", "render", "pack_folder"} <= made
    assert made <= POOL


def test_what_is_shared_out_adds_up_to_the_whole() -> None:
    made = ledger(500, 25.0)
    # index and tasks over four runs; encoder, embed and select over the two pruned ones
    assert made.shared_out("unpruned") == 200 + 14 + 15 / 2
    assert made.shared_out("pruned") == 50 + 14 + 15 / 2 + 360
    total = sum(item.seconds for item in made.items.values())
    assert made.shared_out("unpruned") + made.shared_out("pruned") == total


def test_at_fixed_epochs_curation_pays_after_its_cost_over_the_saving() -> None:
    made = ledger(500, 25.0)  # a quarter of the samples, a quarter of the seconds: 0.05 s a sample
    assert made.baseline() == "unpruned"
    pays = made.payback("pruned", "unpruned")
    assert pays.curation_seconds == 360  # without the index, which the baseline needs, too
    assert pays.seconds_saved == pytest.approx(75.0)
    assert pays.runs == 5
    assert "5 runs" in "\n".join(ledger_lines(made))


def test_the_exact_number_of_runs_is_enough_and_one_fewer_is_not() -> None:
    pays = ledger(500, 25.0).payback("pruned", "unpruned")
    assert pays.runs is not None
    assert pays.runs * pays.seconds_saved >= pays.curation_seconds
    assert (pays.runs - 1) * pays.seconds_saved < pays.curation_seconds


def test_at_a_fixed_budget_nothing_is_saved_and_the_table_says_so() -> None:
    made = ledger(2000, 90.0)  # faster by chance: that is no saving
    pays = made.payback("pruned", "unpruned")
    assert (pays.samples_saved, pays.runs) == (0, None)
    text = "\n".join(ledger_lines(made))
    assert "never: equal samples" in text
    assert "All arms see as many samples, so no run saves training" in text
    assert ledger_json(made)["arms"]["pruned"]["pays_after_runs"] is None
    more = ledger(4000, 200.0).payback("pruned", "unpruned")
    assert (str(more), more.runs) == ("never: more samples", None)


def test_an_arm_without_curation_of_its_own_has_nothing_to_pay_back() -> None:
    made = ledger(500, 25.0)
    made.add("chance", map(item_of, run("chance", 0, 25.0, 500, 500)))
    assert made.payback("chance", "unpruned").runs == 0
    assert "no curation of its own" in "\n".join(ledger_lines(made))


def test_gpu_hours_are_counted_told_by_the_device_or_not_known() -> None:
    def hours(made_by: Any = None, **counts: Any) -> float | None:
        return item_of({**manifest("embed", "e", 1800.0, **counts), "made_by": made_by}).gpu_hours

    assert hours(gpu_hours=3.5, device="cuda") == 3.5
    assert hours(device="cuda:1") == hours({"encoder": {"device": "cuda"}}) == 0.5
    assert hours(device="cpu") == hours({"threads": 4}) == 0.0
    assert hours({"encoders": [{"device": "auto"}]}) is None
    named = {**EMBED, "made_by": {"device": "auto"}}
    assert item_of({**named, "gpu": None}).gpu_hours == 0.0
    assert item_of({**named, "gpu": "NVIDIA L4"}).gpu_hours == 300 / 3600
    made = ledger(500, 25.0)
    made.add("pruned", [item_of({**EMBED, "key": "other", "made_by": {"device": "auto"}})])
    assert "0.14 GPU-hours and those of 1 artifacts on device=auto, not known" in ledger_lines(made)[0]
    assert ledger_json(made)["arms"]["pruned"]["gpu_hours"] is None
    assert ledger_json(made)["arms"]["unpruned"]["gpu_hours"] == pytest.approx(200 / 1800)


def test_training_that_was_resumed_costs_all_its_tries() -> None:
    last_try = manifest("train", "t", 30.0, train_seconds=300.0, samples_seen=8, kept=4)
    assert item_of(last_try).seconds == 300.0


def test_an_empty_ledger_says_so() -> None:
    assert ledger_lines(Ledger()) == ["Cost: nothing was made."]
    curated = Ledger()
    curated.add("arm", [item_of(INDEX)])
    assert curated.baseline() is None
    assert len(ledger_lines(curated)) == 3


@dataclass(frozen=True)
class First(Stage):
    """A keep list of the first rows."""

    name: ClassVar[str] = "select"
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = KeepList

    num_kept: int

    def run(self, work: Work, pool: Pool) -> dict[str, Any]:
        every = everything(pool.digest, pool.is_valid)
        every.narrow("select", every.rows < self.num_kept, "late", "early").save(work.folder)
        return {}


def test_a_real_run_at_fixed_epochs_is_read_from_its_manifests(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for row in range(16):
            content = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), row, np.uint8)).save(content, "png")
            for name, member in (("png", content.getvalue()), ("txt", f"number {row}".encode())):
                info = tarfile.TarInfo(f"{row:05d}.{name}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    tiny = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    train = Train(
        model=Model(config=tiny), batch_size=4, augmentation=Shift(0), seed=0, precision="fp32",
        optimiser=Optimiser(1e-3, 0.9, 0.98, 1e-6, 0.2, "openclip3", "cosine", 0),
        samples_seen=None, epochs=1.0, device="cpu",
    )  # fmt: skip
    store = Store(tmp_path / "store")
    shards = [str(tmp_path / "00000.tar")]
    pool = Index(uid="key", caption="txt", max_pixels=10**8, shards=shards).bind(folder=None)
    node = train.bind(pool=pool, keep=First(8).bind(pool=pool))
    store.get(node)
    entries = [entry for n in node.lineage() if (entry := store.entry(n))]
    made = Ledger()
    made.add("half", [item_of(entry.manifest) for entry in entries])
    made.add("all", map(item_of, run("all", 0, 100.0, 16, 16)))
    index, kept, trained = made.of("half")
    assert [item.purpose for item in (index, kept, trained)] == ["curation", "curation", "training"]
    assert (trained.samples, trained.kept, trained.gpu_hours) == (8, 8, 0.0)
    assert trained.seconds > 0
    assert (trained.flops or 0) % 8 == 0
    assert made.baseline() == "all"
    pays = made.payback("half", "all")
    assert pays.samples_saved == 8
    assert pays.curation_seconds == pytest.approx(index.seconds + kept.seconds)
    assert pays.seconds_per_sample == pytest.approx((100 + trained.seconds) / 24)
    assert pays.runs == 1
