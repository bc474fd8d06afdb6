"""Feeding: pairs read in few calls; dbp bench measures the code that trains and names the bottleneck."""

import json
import os
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dbp.engine.store import Store
from dbp.errors import ConfigError, PoolError
from dbp.pools.index import Index
from training.bench import LoaderTimes, TrainTimes, main
from training.feed.data import read_pairs

PARTS = {"read": 0.1, "decode": 2.0, "resize": 1.0, "tokenise": 0.1, "collate": 0.1}


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Twelve pairs, one of whose pictures is broken, and a network of a few weights."""
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for row in range(12):
            content = BytesIO()
            pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(content, "jpeg")
            picture = content.getvalue()[: 500 if row == 3 else None]
            for name, member in (("jpg", picture), ("txt", f"number {row}".encode())):
                info = tarfile.TarInfo(f"{row}.{name}")
                info.size = len(member)
                tar.addfile(info, BytesIO(member))
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    (tmp_path / "model.json").write_text(json.dumps(config))
    return [
        f"pool.shards={tmp_path}/0.tar", "dedup=none", "select=none", "train.batch_size=4",
        "train.samples_seen=8", "train.device=cpu", "train.num_workers=0",
        "train.precision=fp32", "model.name=null",
        f"model.config={tmp_path}/model.json", f"paths.store={tmp_path}/store",
        f"paths.runs={tmp_path}/runs",
    ]  # fmt: skip


def test_a_loader_is_measured_by_parts_and_written_as_json(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loader", *settings, "steps=3", f"json={tmp_path}/found.json"], [], False) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["bench"] == "loader"
    assert set(found["parts"]) == set(PARTS)
    assert all(found["parts"][part] > 0 for part in ("read", "decode", "resize", "tokenise"))
    assert found["pairs_per_second"] > 0
    with tarfile.open(tmp_path / "0.tar") as tar:  # read in one run: small members are neighbours
        members = tar.getmembers()
    # The broken pair is not kept; what lies between its neighbours is read along.
    span = members[-1].offset_data + members[-1].size - members[0].offset_data
    assert found["bytes_per_pair"] == pytest.approx(span / 11)
    shown = capsys.readouterr().out
    assert f"loader: {found['pairs_per_second']:,.0f} pairs/s with 0 workers" in shown
    assert "most time goes to: " in shown


def test_a_step_is_measured_with_a_batch_at_hand_and_fed(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["train", *settings, "steps=4", f"json={tmp_path}/found.json"], [], False) == 0
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["resident_seconds"] > 0
    assert found["fed_seconds"] > 0
    assert found["flops_per_pair"] > 0
    assert (found["device"], found["precision"], found["batch_size"]) == ("cpu", "fp32", 4)
    shown = capsys.readouterr().out
    assert "bottleneck: the " in shown
    assert "of a fed step goes to feeding" in shown


def loader(**changed: object) -> LoaderTimes:
    given = {"pairs_per_second": 300.0, "num_workers": 0, "batch_size": 8, "decode": "reference",
             "parts": PARTS, "bytes_per_pair": 2048.0}  # fmt: skip
    return LoaderTimes(**{**given, **changed})  # type: ignore[arg-type]


def test_what_would_lift_the_loader_follows_from_where_its_time_goes() -> None:
    shown = loader().text()
    assert "together        3.300  303 pairs/s in one process" in shown
    assert "most time goes to: decode." in shown
    assert "train.num_workers=" in shown
    assert "train.augmentation.decode=fast" in shown
    assert "decode=fast (" not in loader(decode="fast").text()
    assert "nearer disk" in loader(parts={**PARTS, "read": 9.0}).text()
    assert "train.num_workers=" not in loader(num_workers=10_000).text()


def test_the_bottleneck_is_the_slower_of_loader_and_model() -> None:
    slow = TrainTimes(0.1, 0.4, 8, 10**9, "cpu", "fp32", loader())
    assert slow.wait_share == pytest.approx(0.75)
    assert "75% of a fed step goes to feeding\nbottleneck: the loader. To lift it: " in slow.text()
    assert "resident       100.0        80     0.080" in slow.text()
    fast = TrainTimes(0.4, 0.4, 8, None, "cpu", "fp32", loader())
    assert "bottleneck: the model. To lift it: a larger train.batch_size" in fast.text()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "dbp bench: It can be: loader, train."),
        (["lader"], r"dbp bench lader: Did you mean 'loader'\?"),
        (["loader", "steps=1"], "steps='1': it must be a whole number, 2 or more"),
        (["train", "train.bach_size=4"], r"Did you mean 'train\.batch_size'\?"),
    ],
)
def test_wrong_words_are_told_the_right_ones(keys: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(keys, [], False)


def test_pairs_are_read_as_the_pool_reads_them_in_fewer_calls(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = settings[0].partition("=")[2]
    index = Index(uid="key", caption="txt", max_pixels=10**6, shards=[shard])
    pool = Store(Path(shard).parent / "other").get(index.bind(folder=None))
    rows = np.array([7, 2, 2, 11, 0])
    expected = [pool.image_bytes(int(row)) for row in rows], pool.captions(rows)
    calls = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: calls.append(given) or pread(*given))
    monkeypatch.setattr("training.feed.data.NEAR", 1200)  # a picture's neighbour, not the next but one
    read = read_pairs(pool, rows)
    assert (read.pictures, read.captions) == expected
    assert len(calls) == 4  # rows 0, 2, 7, 11; each picture with its caption
    assert read.num_bytes == sum(length for _, length, _ in calls)
    monkeypatch.setattr("training.feed.data.NEAR", 65_536)
    calls.clear()
    assert read_pairs(pool, rows).captions == expected[1]
    assert len(calls) == 1


def test_a_shard_that_was_cut_short_is_named(settings: list[str]) -> None:
    shard = Path(settings[0].partition("=")[2])
    index = Index(uid="key", caption="txt", max_pixels=10**6, shards=[str(shard)])
    pool = Store(shard.parent / "other").get(index.bind(folder=None))
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(PoolError, match=r"0\.tar ends before the \w+ of '\d+'"):
        read_pairs(pool, np.arange(12))
