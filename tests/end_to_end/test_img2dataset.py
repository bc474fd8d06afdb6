"""A pool that img2dataset wrote, from pictures of a local HTTP server, is curated as it stands.

img2dataset lives in an environment of its own, in the folder that DBP_IMG2DATASET_VENV names or in
one that this test makes (a minute, and a network to the package index).
"""

import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dbp.engine.store import Store
from dbp.pools.index import Index

pytestmark = pytest.mark.slow

REQUIREMENTS = ("img2dataset>=1.47,<2", "setuptools<80")
NUM_URLS, PER_SHARD = 120, 40
MISSING, BROKEN = (5, 50, 51, 119), (7, 60, 118)
CAPTIONLESS = 9
COPY_OF = {20: 10, 90: 10}


@pytest.fixture(scope="module")
def img2dataset(tmp_path_factory):
    """The command img2dataset, installed apart from ours."""
    kept = os.environ.get("DBP_IMG2DATASET_VENV")
    home = Path(kept) if kept else tmp_path_factory.mktemp("img2dataset") / "venv"
    command = home / "bin" / "img2dataset"
    if not command.exists():
        for step in (
            [sys.executable, "-m", "venv", str(home)],
            [str(home / "bin" / "python"), "-m", "pip", "install", "-q", *REQUIREMENTS],
        ):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                pytest.skip(f"img2dataset's environment cannot be built: {last}")
    return command


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A local HTTP server of pictures: jpg, png and webp, three of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    kinds = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))
    for i in range(NUM_URLS):
        if i in MISSING:
            continue
        extension, kind = kinds[i % 3] if i not in COPY_OF else kinds[COPY_OF[i] % 3]
        shown = COPY_OF.get(i, i)
        noise = np.random.default_rng(shown).integers(0, 256, (80, 100, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).save(out, kind)
        content = b"<html>gone</html>" if i in BROKEN else out.getvalue()
        (folder / f"{i}.{extension}").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    urls = [f"{address}/{i}.{kinds[COPY_OF.get(i, i) % 3][0]}" for i in range(NUM_URLS)]
    yield urls
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module", params=["jpg", "png", "webp"])
def pool(request, tmp_path_factory, img2dataset, pictures):
    """The folder that img2dataset wrote, three shards, and the extension of its pictures."""
    folder = tmp_path_factory.mktemp(f"written {request.param}")
    captions = ["" if i == CAPTIONLESS else f"picture number {i} é" for i in range(NUM_URLS)]
    pq.write_table(pa.table({"url": pictures, "caption": captions}), folder / "urls.parquet")
    done = subprocess.run(
        [img2dataset, f"--url_list={folder}/urls.parquet", "--input_format=parquet", "--url_col=url",
         "--caption_col=caption", "--output_format=webdataset", f"--output_folder={folder}/pool",
         "--processes_count=1", "--thread_count=4", "--image_size=64", "--enable_wandb=False",
         f"--number_sample_per_shard={PER_SHARD}", f"--encode_format={request.param}",
         "--encode_quality=" + ("6" if request.param == "png" else "95")],
        capture_output=True, text=True, timeout=600, cwd=folder,
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "pool", request.param


def test_the_pool_holds_what_img2dataset_says_it_wrote(pool, tmp_path):
    folder, extension = pool
    shards = sorted(folder.glob("*.tar"))
    assert [s.name for s in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    told = [json.loads(s.with_name(f"{s.stem}_stats.json").read_text()) for s in shards]
    table = pa.concat_tables(pq.read_table(s.with_suffix(".parquet")) for s in shards)
    status = Counter(table["status"].to_pylist())
    assert status["success"] == NUM_URLS - len(MISSING) - len(BROKEN)
    assert sum(t["successes"] for t in told) == status["success"]

    node = Index("key", "txt", 10**7, shards=f"{folder}/{{00000..00002}}.tar").node()
    store = Store(tmp_path / "store")
    ours = store.get(node)
    written = [row for row in table.to_pylist() if row["status"] == "success"]
    assert ours.num_rows == len(written)
    assert sorted(ours.uids()) == sorted(row["key"] for row in written)
    by_key = {row["key"]: row for row in written}
    for row, uid in enumerate(ours.uids()):
        theirs = by_key[uid]
        assert ours.column("width")[row] == theirs["width"]
        assert ours.column("height")[row] == theirs["height"]
        if theirs["caption"]:
            assert ours.caption(row) == theirs["caption"]
    assert set(ours.column("format")) == {extension.replace("jpg", "jpeg")}
    assert int(ours.is_valid.sum()) == ours.num_rows - 1
    counts = store.entry(node).manifest["counts"]
    assert counts.get("empty caption", 0) + counts.get("no caption", 0) == 1
    by_json = Index("json:sha256", "json:caption", 10**7, shards=f"{folder}/*.tar").node()
    assert store.get(by_json).uids() == [by_key[uid]["sha256"] for uid in ours.uids()]


def test_the_pool_is_curated_from_the_command_line(pool, tmp_path):
    folder, _ = pool
    num_rows = NUM_URLS - len(MISSING) - len(BROKEN)
    made = np.random.default_rng(0).normal(size=(num_rows, 16)).astype(np.float32)
    np.save(tmp_path / "v.npy", made)
    vectors = [f"encoder.{use}.images={tmp_path}/v.npy" for use in ("dedup", "cluster", "score")]
    done = subprocess.run(
        [sys.executable, "-m", "dbp", "curate", "pool=webdataset",
         f"pool.shards={folder}/{{00000..00002}}.tar", "encoder=precomputed", *vectors,
         f"encoder.score.texts={tmp_path}/v.npy", "dedup=exact", "cluster.num_clusters=5",
         "budget.keep_fraction=0.5", f"paths.store={tmp_path}/store"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    unique = num_rows - 1 - len(COPY_OF)
    assert f"kept {unique // 2:,} of {num_rows:,} rows" in done.stdout
    assert f"{len(COPY_OF):>12,}  dedup: exact copy" in done.stdout
