"""Exports name samples by uid: decisions with their twins, vectors that encoder=laion reads without a hint."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_init import pairs, write_tar

from dbp.__main__ import main
from dbp.engine.store import Entry, Store

ROWS, WIDTH = 40, 8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars whose keys repeat, with vectors: rows 30 to 34 copy rows 0 to 4, row 7 has no image vector."""
    home = tmp_path_factory.mktemp("names")
    for shard in ("a", "b"):
        write_tar(home / "tars" / f"{shard}.tar", pairs(ROWS // 2))
    images, texts = np.random.default_rng(0).normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    images[30:35] = images[:5]
    images[7] = np.nan
    np.save(home / "images.npy", images)
    np.save(home / "texts.npy", texts)
    given = [
        f"encoder.{use}.{side}={home}/{side}.npy" for use in ("dedup", "score") for side in ("images", "texts")
    ]
    assert curate(home, "encoder=precomputed", *given) == 0
    return home


def curate(home: Path, *words: str) -> int:
    chosen = ["dedup=semdedup", "dedup.num_clusters=1", "select=top_score", "budget.keep_fraction=0.5"]
    pool = [f"pool.shards={home}/tars/*.tar", "pool.uid=path"]
    return main(["curate", *pool, *chosen, *words, f"paths.store={home}/store", f"paths.runs={home}/runs"])


def entries(home: Path, stage: str) -> list[Entry]:
    return [one for one in Store(home / "store", home / "runs").entries() if one.stage == stage]


def export(home: Path, *words: str) -> int:
    return main(["export", *words, f"paths.store={home}/store", f"paths.runs={home}/runs"])


def test_decisions_name_each_row_and_what_it_was_compared_with(home):
    (select,) = entries(home, "select")
    assert export(home, f"keep={select.key}", "format=decisions", f"out={home}/decisions.parquet") == 0
    table = pq.read_table(home / "decisions.parquet").to_pylist()
    uids = Store(home / "store").open(entries(home, "index")[0].key).uids(np.arange(ROWS))
    assert [row["uid"] for row in table] == uids
    for row in table:
        related = row["related_row"]
        assert row["related_uid"] == (None if related is None else uids[related])
    twins = {row["uid"]: row["related_uid"] for row in table if row["stage"] == "dedup" and not row["kept"]}
    assert twins.items() >= {uids[30 + n]: uids[n] for n in range(5)}.items()


def test_both_sides_go_out_and_come_back_as_the_same_scores_without_a_hint(home, tmp_path):
    sides = {one.manifest["parameters"]["side"]: one.key for one in entries(home, "embed")}
    assert set(sides) == {"image", "text"}
    assert export(home, f"embeddings={sides['image']},{sides['text']}", "format=laion", f"out={tmp_path}/v") == 0
    given = [f"encoder.{use}.folder={tmp_path}/v" for use in ("dedup", "score")]
    assert curate(home, "encoder=laion", *given) == 0
    values = [np.load(one.folder / "score.npy") for one in entries(home, "score")]
    assert len(values) == 2
    assert np.isnan(values[0]).sum() == 1
    np.testing.assert_allclose(values[0], values[1], atol=1e-3)  # stored vectors have 16 bits
    keeps = [one.manifest["counts"]["kept"] for one in entries(home, "select")]
    assert keeps[0] == keeps[1]


def test_two_vectors_of_one_side_are_refused(home, tmp_path, capsys):
    image = next(one.key for one in entries(home, "embed") if one.manifest["parameters"]["side"] == "image")
    assert export(home, f"embeddings={image},{image}", "format=laion", f"out={tmp_path}/v") == 1
    assert "two of them are img vectors. Give one of each side." in capsys.readouterr().err
    assert not (tmp_path / "v").exists()
