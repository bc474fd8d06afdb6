"""The plan: operations counted as they are done, bytes as they are written, rows as they are there."""

import io
import json
import os
import re
import shutil
import tarfile
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from dbp.clustering.kmeans import assign, semdedup_num_clusters
from dbp.clustering.lloyd import fit, on_grid
from dbp.config import compose
from dbp.curate import recipe
from dbp.dedup.pairs import ROWS, nearest_earlier
from dbp.encoders.base import Encoder, Tower
from dbp.encoders.embed import Embed
from dbp.encoders.openclip import OpenClip
from dbp.encoders.precomputed import Precomputed
from dbp.encoders.timm import Timm
from dbp.engine.runners import Processes
from dbp.engine.store import Store
from dbp.errors import ConfigError, StoreError
from dbp.planning import rate as rates
from dbp.planning.advice import advice
from dbp.planning.amounts import bytes_text, count_text, flops_text, seconds_text
from dbp.planning.effort import COLUMNS as PASSES
from dbp.planning.effort import NETWORK, PRODUCT, READING, WRITING, Effort, Sizes
from dbp.planning.efforts import EFFORTS
from dbp.planning.from_files import pool_size, usual_width
from dbp.planning.machine import Machine, memory_free, probe
from dbp.planning.outlook import Outlook, same_once
from dbp.planning.plan import plan, print_plan
from dbp.pools.index import Index
from dbp.scoring.clip_loss import log_shares
from dbp.selection.density import temperature_for
from dbp.selection.trials import by_clustering, by_temperature, clusterings, jaccard, open_selection
from dbp.settings import read
from dbp.verbs.command_line import overrides
from dbp.verbs.tune import main

# Round rates, so that seconds are worked by hand.
SLOW = Machine(
    product=1e9, memory=1e8, columns=1e6, reading=1e7, writing=1e6, sending=None, disk_free=1e9, memory_free=1e9
)


@pytest.fixture
def counted(monkeypatch):
    """The operations of all matrix products while a test runs."""
    import torch

    done = [0]
    real = torch.mm

    def mm(a, b, **options):
        done[0] += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return real(a, b, **options)

    monkeypatch.setattr(torch, "mm", mm)
    return done


def unit(n, d, seed=0):
    made = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


# efforts


def effort_of(name, sizes, **parameters):
    return EFFORTS[name](SimpleNamespace(threads=1, **parameters), sizes)


def test_a_column_of_the_json_members_costs_a_read_of_the_tars_and_others_do_not():
    sizes = Sizes(1000, 1000, pool_bytes=7e9, row_seconds=0.5, workers=4)
    found = {kind: effort_of("column/read", sizes, kind=kind) for kind in ("json", "parquet", "pool", "file")}
    assert found["json"].bytes_read - found["pool"].bytes_read == 7e9
    assert found["json"].elsewhere == ("reading tars", 0.5 * 1000 / 4)
    assert found["parquet"] == found["pool"] == found["file"]


def test_an_assignment_multiplies_as_often_as_its_effort_says(counted):
    assign(unit(3000, 24), on_grid(unit(70, 24, 1).astype(np.float64)), 1000)
    sizes = Sizes(rows=3000, pool_rows=3000, width=24, clusters=70)
    assert counted[0] == effort_of("cluster/kmeans", sizes, runs="no", block=1000).flops


def test_a_fit_multiplies_as_often_as_its_effort_says(counted):
    found = fit(unit(2000, 16), 20, 7, seed=0)
    sizes = Sizes(rows=9000, pool_rows=9000, width=16, clusters=20)
    asked = {"points_per_centroid": 100, "full": False}
    effort = effort_of("centroids/kmeans", sizes, num_iterations=len(found.objective), start="random", **asked)
    assert counted[0] == effort.flops
    counted[0] = 0
    drawn = fit(unit(2000, 16), 20, 7, seed=0, start="kmeans++")
    effort = effort_of("centroids/kmeans", sizes, num_iterations=len(drawn.objective), start="kmeans++", **asked)
    # The last vector that is drawn needs no pass.
    assert counted[0] == effort.flops - 2 * 2000 * 16


@pytest.mark.parametrize("size", [300, ROWS, 2 * ROWS])
def test_triangles_multiply_as_often_as_their_effort_says(counted, size):
    for seed in range(2):
        nearest_earlier(unit(size, 8, seed), np.arange(size))
    sizes = Sizes(2 * size, 2 * size, width=8, clusters=2, unevenness=1)
    assert counted[0] == effort_of("dedup/similar", sizes).flops


@pytest.mark.parametrize("n", [700, 1300])
def test_batches_of_s_clip_loss_multiply_as_often_as_their_effort_says(counted, n):
    sides = [unit(n, 16, seed).astype(np.float32) for seed in range(2)]
    log_shares(*sides)
    sizes = Sizes(rows=n, pool_rows=n, width=32)  # of both sides
    for within in ("pool", "shard"):
        found = effort_of("score/clip_loss", sizes, batch_size=5000, num_passes=3, within=within)
        assert 3 * counted[0] == found.flops
    halved = effort_of("score/clip_loss", sizes, batch_size=n // 2, num_passes=3, within="pool")
    assert halved.flops == found.flops / 2


def test_large_triangles_cost_the_unevenness_times_d_n_squared_over_k():
    sizes = Sizes(rows=10**8, pool_rows=10**8, width=768, clusters=500)
    formula = 1.5 * 768 * 10**16 / 500
    found = effort_of("dedup/similar", sizes).flops
    assert formula < found < 1.01 * formula


def test_seconds_add_up_and_the_largest_share_binds():
    effort = Effort(rows=1, flops=3e9, bytes_read=2e7, bytes_written=1e6, columns=5e5)
    timing = effort.on(SLOW)
    assert timing.seconds == pytest.approx(3 + 2 + 1 + 0.5)
    assert timing.bound_by == PRODUCT
    assert timing.by == pytest.approx({PRODUCT: 3, READING: 2, WRITING: 1, PASSES: 0.5})


def test_what_lies_in_memory_is_read_in_no_time():
    effort = Effort(rows=1, flops=3e9, bytes_read=9e7)
    assert effort.on(SLOW).bound_by == READING
    assert effort.on(SLOW, is_in_memory=True).seconds == pytest.approx(3)


def test_seconds_that_no_rate_gives_stay_unknown():
    effort = Effort(rows=1, bytes_read=2e7, elsewhere=(NETWORK, None))
    assert effort.on(SLOW).seconds is None
    assert effort.on(SLOW).bound_by == NETWORK
    unread = replace(SLOW, reading=None)
    assert Effort(rows=1, bytes_read=1.0).on(unread).seconds is None
    assert Effort(rows=1, flops=1e9).on(unread).seconds == pytest.approx(1)


def test_a_network_runs_beside_the_disk():
    effort = Effort(rows=1, bytes_read=2e7, elsewhere=(NETWORK, 7.0))
    assert effort.on(SLOW).seconds == pytest.approx(7)
    assert replace(effort, elsewhere=(NETWORK, 1.0)).on(SLOW).seconds == pytest.approx(2)


def test_a_gpu_is_sent_vectors_and_looks_through_its_products_itself():
    effort = Effort(rows=1, flops=1e9, values=1e9, sent=4e6)
    with_gpu = replace(SLOW, product=1e12, sending=1e6)
    assert effort.on(SLOW).seconds == pytest.approx(1 + 10)
    assert effort.on(with_gpu).seconds == pytest.approx(4.001)


def test_one_effort_after_another_adds_work_and_takes_the_larger_memory():
    one = Effort(rows=5, flops=1, bytes_read=2, memory=10, elsewhere=("captions", 3.0))
    two = Effort(rows=9, flops=4, bytes_read=5, memory=6)
    both = one + two
    assert (both.rows, both.flops, both.bytes_read, both.memory) == (9, 5, 7, 10)
    assert both.elsewhere == ("captions", 3.0)
    assert (one + replace(two, elsewhere=("captions", None))).elsewhere == ("captions", None)


# amounts


@pytest.mark.parametrize("text", [bytes_text, flops_text, seconds_text, count_text])
def test_amounts_stay_short_and_name_the_size_within_a_twentieth(text):
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {"P": 1e15, "min": 60, "h": 3600, "d": 86400}
    for value in np.geomspace(1, 9e14 if text is not seconds_text else 5e8, 400):
        said = text(value)
        assert len(said) <= 7, said
        number, _, unit_ = said.partition(" ")
        assert float(number.replace(",", "")) * units.get(unit_, 1) == pytest.approx(value, rel=0.051, abs=0.51)


# the machine


def test_a_probe_measures_within_seconds_and_leaves_nothing(tmp_path):
    store = tmp_path / "not" / "there"
    found = probe(store, None, "cpu", 0.3)
    assert min(found.product, found.memory, found.columns) > 1e5
    assert (found.reading or 0) > 1e5
    assert (found.writing or 0) > 1e5
    assert not list(tmp_path.iterdir())
    assert probe(store, None, "cpu", 0.3) is found
    assert 1e6 < found.memory_free <= memory_free() * 1.5
    assert found.disk_free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_disk_that_cannot_be_tried_has_no_rate(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    assert probe(tmp_path / "closed", None, "cpu", 0.1).reading is None


def test_a_full_disk_has_no_rate(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dbp.planning.machine.tempfile.TemporaryFile", full)
    found = probe(tmp_path, None, "cpu", 0.05)
    assert found.reading is None
    assert found.writing is None
    assert found.product > 0


def test_machines_side_by_side_share_one_disk():
    four = SLOW.times(4)
    assert (four.product, four.memory, four.columns) == (4e9, 4e8, 4e6)
    assert (four.reading, four.writing, four.disk_free) == (1e7, 1e6, 1e9)


# how many rows a pool has


def write_tar(path, names):
    with tarfile.open(path, "w") as tar:
        for name in names:
            out = io.BytesIO()
            Image.new("RGB", (4, 4)).save(out, "PNG")
            content = b"words" if name.endswith("txt") else out.getvalue()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def index_of(path):
    return Index(uid="key", caption="txt", max_pixels=100, shards=str(path))


def pairs(numbers):
    return [f"s{n:04d}.{kind}" for n in numbers for kind in ("png", "txt")]


ODD = ["a.png", "a.txt", "b.png", "b.jpg", "b.txt", "a.png", "c.json", "c.cls", "folder/.png"]
ODD += ["d.seg.png", "d.txt", "d.txt", "e.PNG", "e.TXT", *pairs(range(5))]


@pytest.mark.parametrize("names", [pairs(range(30)), ODD])
def test_headers_count_the_samples_that_the_index_finds(tmp_path, names):
    write_tar(tmp_path / "0.tar", names)
    node = index_of(tmp_path / "0.tar").node()
    about, _ = pool_size(node)
    assert not about.is_about
    assert about.rows == Store(tmp_path / "store").get(node).num_rows
    assert about.pool_bytes == (tmp_path / "0.tar").stat().st_size


def test_the_rows_of_other_shards_are_those_of_the_first_by_bytes(tmp_path):
    write_tar(tmp_path / "0.tar", pairs(range(100)))
    write_tar(tmp_path / "1.tar", pairs(range(100, 300)))
    about, _ = pool_size(index_of(tmp_path / "{0..1}.tar").node())
    assert about.is_about
    assert about.rows == pytest.approx(300, rel=0.05)
    assert 1e-6 < (about.row_seconds or 0) < 0.1
    limited = replace(index_of(tmp_path / "{0..1}.tar"), max_samples=40).node()
    found, _ = pool_size(limited)
    assert (found.rows, found.is_about) == (40, False)


def test_of_a_pool_that_cannot_be_read_nothing_is_known(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"no tar" * 1000)
    assert pool_size(index_of(tmp_path / "0.tar").node()) is None
    assert pool_size(index_of(tmp_path / "1.tar").node()) is None
    assert pool_size(index_of("pipe:cat /dev/null").node()) is None


def test_the_width_of_vectors_is_known_without_the_network(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((3, 37), np.float16))
    (tmp_path / "m.json").write_text(json.dumps({"model_cfg": {"embed_dim": 44}}))
    assert usual_width(Precomputed("x", images=str(tmp_path / "v.npy")), "image") == (37, "")
    assert usual_width(OpenClip("ViT-B-32"), "text") == (512, "")
    assert usual_width(OpenClip("ViT-L-14-quickgelu"), "image") == (768, "")
    assert usual_width(OpenClip(None, config=str(tmp_path / "m.json")), "image") == (44, "")
    assert usual_width(Timm("vit_large_patch14_dinov2", 224, "token"), "image")[0] == 1024
    width, said = usual_width(Precomputed("x", images=str(tmp_path / "none.npy")), "image")
    assert f"width {width} is assumed" in said


# a whole graph


SMALL = (
    "pool=rehearsal", "encoder=rehearsal", "pool.rows=6000", "pool.rows_per_file=2000", "pool.width=32",
    "pool.concepts=40", "budget.keep_fraction=0.3", "dedup.num_iterations=3", "cluster.num_iterations=4",
    "cluster.num_clusters=12", "cluster.points_per_centroid=100",
)  # fmt: skip


def graph(*settings):
    return recipe(read(compose("curate", overrides([*SMALL, *settings]))))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store in which a small curation is finished, its graph, and what was known of it before."""
    home = tmp_path_factory.mktemp("made")
    said = []
    store = Store(home / "store", say=said.append)
    nodes = graph()
    before = Outlook(Store(home / "none"))
    store.get(nodes["index"])
    ahead = {}
    outlook = Outlook(store)
    for node in same_once([nodes["select"]])[0].lineage():
        ahead[node] = outlook.effort(node)
    store.get(nodes["select"])
    return store, nodes, before, ahead, said


@pytest.fixture
def still(monkeypatch):
    """A machine with round rates instead of a measured one."""
    monkeypatch.setattr("dbp.planning.outlook.probe", lambda *_: SLOW)


def test_a_plan_of_what_is_there_measures_nothing(made, capsys, monkeypatch):
    monkeypatch.setattr("dbp.planning.outlook.probe", None)
    store, nodes, *_ = made
    print_plan(store, nodes["select"])
    said = capsys.readouterr().out
    assert "\n0 to build, 11 reused in " in said
    assert "total" not in said


def test_a_plan_makes_nothing_and_fits_a_terminal(tmp_path, capsys, still):
    store = Store(tmp_path / "store")
    nodes = graph("pool.rows=1280000000", "pool.width=1024", "dedup.num_clusters=50000")
    print_plan(store, nodes["select"])
    said = capsys.readouterr().out
    assert not store.root.exists()
    assert max(map(len, said.splitlines()[:-1])) <= 100, "the last line ends with a path of any length"
    assert said.splitlines()[0].split()[-2:] == ["bound", "by"]
    assert "\n11 to build, 0 reused in " in said
    assert "dedup.num_clusters=50000: 50,000 clusters (" in said
    assert "suggested: 30,984 (" in said
    assert "WARNING: about " in said
    assert "WARNING: " in said.split("WARNING: about ")[1], "memory does not fit, either"
    assert re.search(r"\?: how long encoder's network will\s+take is not known", said)


def test_one_encoding_for_two_uses_is_one_line(made, still):
    store, nodes, *_ = made
    stages = [line.node.stage for line in plan(Outlook(store), [nodes["select"], nodes["score"]])]
    sides = [stage.side for stage in stages if isinstance(stage, Embed)]
    assert sorted(sides) == ["image", "text"]


def test_what_only_finished_artifacts_rest_on_is_not_built(made, still, tmp_path, capsys):
    store, nodes, *_ = made
    copy = Store(shutil.copytree(store.root, tmp_path / "store"))
    shutil.rmtree(copy.root / "embed")
    print_plan(copy, nodes["select"])
    assert "\n0 to build, 10 reused" in capsys.readouterr().out
    print_plan(copy, graph("cluster.num_clusters=13")["select"])
    said = capsys.readouterr().out
    assert "\n4 to build, 7 reused" in said, "embed, centroids, cluster, select"


def test_bytes_are_planned_as_they_are_written(made):
    store, _, _, ahead, _ = made
    checked = 0
    for node, effort in ahead.items():
        if effort is None or (entry := store.entry(node)) is None:
            continue
        if node.stage.name == "index":
            continue
        written = sum(size for name, size in entry.manifest["files"].items() if "json" not in name)
        # Half-way parts are counted, too; small files have headers that a row knows nothing of.
        assert written - 8000 < effort.bytes_written < 3 * written + 50_000, node.stage.name
        if node.stage.name == "embed":
            assert effort.bytes_written == pytest.approx(written, rel=0.1)
        checked += 1
    assert checked >= 9


def test_planned_rows_are_the_most_that_are_there(made):
    store, nodes, before, *_ = made
    for node in same_once([nodes["select"]])[0].lineage():
        outcome = before.outcome(node)
        assert outcome is not None
        counts = store.entry(node).manifest["counts"]
        rows = counts.get("kept", counts["rows"])
        assert outcome.pool_rows == 6000
        assert rows <= outcome.rows <= 6000
        if node.stage.name == "centroids":
            assert outcome.clusters in (12, semdedup_num_clusters(6000))
    assert before.outcome(nodes["select"]).is_about


def test_a_finished_clustering_gives_its_own_unevenness_and_k(made):
    store, nodes, before, *_ = made
    similar = nodes["dedup"].inputs["similar"]
    assert before.sizes(similar).unevenness == 1.5
    sizes = store.get(similar.inputs["clusters"]).sizes.astype(float)
    found = Outlook(store).sizes(similar)
    assert found.clusters == len(sizes)
    assert found.unevenness == pytest.approx(len(sizes) * (sizes**2).sum() / sizes.sum() ** 2, abs=1e-3)
    triangles = 32 * (sizes**2).sum()
    assert Outlook(store).effort(similar).flops == pytest.approx(2 * triangles, rel=0.01)


def test_lists_that_are_shorter_make_smaller_clusterings(made):
    store, nodes, *_ = made
    deduped = store.get(nodes["dedup"]).num_kept
    assert deduped < 6000
    assert Outlook(store).sizes(nodes["cluster"]).rows == deduped


def test_differences_that_follow_from_an_input_are_not_repeated(made, still, capsys):
    store, *_ = made
    print_plan(store, graph("cluster.num_clusters=13")["select"])
    said = capsys.readouterr().out
    assert "centroids.num_clusters: 12 there, 13 here" in said
    assert "cluster.num_clusters: 12 there, 13 here" in said
    assert "input" not in said
    assert "\n3 to build, 8 reused" in said


def test_several_workers_share_parts_but_not_the_fit(made, monkeypatch):
    asked = []

    def note(folder, lanes, device, seconds):
        asked.append(lanes)
        return SLOW

    monkeypatch.setattr("dbp.planning.outlook.probe", note)
    store, nodes, *_ = made
    outlook = Outlook(Store(store.root, runner=Processes(3)))
    for name in ("centroids", "cluster"):
        outlook.machine(nodes[name])
    two_threads = graph("parts.threads=2")
    outlook.machine(two_threads["cluster"])
    outlook.machine(two_threads["centroids"])
    assert asked == [None, 3, 6, 2]


@Encoder.register  # not a subclass: the project's own encoders are counted elsewhere
@dataclass(frozen=True)
class Shades:
    """A network that sees one number of a picture."""

    reads: ClassVar[bool] = False
    batch_size: ClassVar[int] = 8

    shift: int

    def identity(self):
        return {}

    def load(self):
        import torch

        def vectors(batch):
            return batch.numpy() + np.arange(1, 8, dtype=np.float32) + self.shift

        return Tower(lambda picture: torch.ones(7) * picture.getpixel((0, 0))[0], vectors, None)


def test_an_encoding_takes_as_long_for_a_row_as_its_encoder_took_before(tmp_path):
    write_tar(tmp_path / "0.tar", pairs(range(40)))
    write_tar(tmp_path / "1.tar", pairs(range(40, 160)))
    store = Store(tmp_path / "store")

    def encoding(shard, encoder):
        return Embed(encoder, "image").bind(pool=index_of(tmp_path / shard).node())

    first, second = (encoding(shard, Shades(1)) for shard in ("0.tar", "1.tar"))
    other = encoding("1.tar", Shades(2))
    assert Outlook(store).effort(first).elsewhere == (NETWORK, None)
    store.get(first)
    took = store.entry(first).manifest["seconds"]
    name, seconds = Outlook(store).effort(second).elsewhere
    assert name == NETWORK
    assert seconds == pytest.approx(took * 120 / 40)
    assert Outlook(store).effort(other).elsewhere == (NETWORK, None)
    assert Outlook(store).sizes(second).width == 7
    assert Outlook(store).sizes(other).width == 768, "nothing says it"


def test_advice_warns_only_of_what_does_not_fit(made):
    store, nodes, *_ = made
    outlook = Outlook(store)
    effort = Effort(rows=1, bytes_written=2e9, memory=3e9)

    def said(machine):
        return " ".join(advice(outlook, {nodes["valid"]: effort}, machine))

    roomy = replace(SLOW, disk_free=3e9, memory_free=4e9)
    assert "WARNING" not in said(roomy)
    assert "WARNING: about 2.0 GB will be written and 1.0 GB are free" in said(replace(roomy, disk_free=1e9))
    assert "valid will hold about 3.0 GB" in said(replace(roomy, memory_free=2e9))


# rates


def test_a_rate_names_the_limit_that_is_nearest():
    effort = Effort(rows=1_040_000, flops=1, bytes_read=4.4e9)
    said = rates.share(effort, {PRODUCT: 2.92, READING: 1.0}, 4.0)
    assert said == ", 0.26 M rows/s, 73 % of this machine's matrix product"
    said = rates.share(effort, {PRODUCT: 0.5, READING: 2.96}, 4.0)
    assert said == ", 1.1 GB/s, 74 % of this disk's reading"


def test_what_is_read_faster_than_the_disk_reads_was_not_on_it():
    effort = Effort(rows=4_000_000, flops=1, bytes_read=4.4e9)
    said = rates.share(effort, {PRODUCT: 1.0, READING: 9.0}, 4.0)
    assert said == ", 1.00 M rows/s, 25 % of this machine's matrix product"
    assert rates.share(effort, {PRODUCT: 0.01, PASSES: 3.9, READING: 9.0, WRITING: 5.0}, 4.0) == ""


def test_a_long_stage_says_its_rate_when_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "LONG", 0.0)
    machine = replace(SLOW, product=1e7, reading=1e12, writing=1e12)
    monkeypatch.setattr("dbp.planning.outlook.probe", lambda *_: machine)
    said = []
    store = Store(tmp_path / "store", say=said.append, rate=rates.rate)
    nodes = graph()
    store.get(nodes["cluster"])
    line = next(line for line in said if line.startswith("cluster ") and "clusters 12" in line)
    entry = store.entry(nodes["cluster"])
    seconds, rows = entry.manifest["seconds"], entry.manifest["counts"]["rows"]
    share = 100 * 2 * rows * 12 * 32 / 1e7 / seconds
    assert f", {rates.per_second(rows / seconds)}, {share:.0f} % of this machine's matrix product" in line
    line = next(line for line in said if line.startswith("embed "))
    assert re.search(r" s, [\d,.]+ (M )?rows/s  rows 6,000$", line), "no limit is known of it"


def test_short_stages_and_those_that_were_begun_before_say_no_rate(made, monkeypatch):
    monkeypatch.setattr("dbp.planning.outlook.probe", lambda *_: replace(SLOW, writing=1e12))
    store, nodes, _, _, lines = made
    entry = store.entry(nodes["cluster"])
    assert rates.rate(store, nodes["cluster"], entry, False) == ""
    assert not [line for line in lines if "/s, " in line]
    monkeypatch.setattr(rates, "LONG", 0.0)
    assert "/s" in rates.rate(store, nodes["cluster"], entry, False)
    assert rates.rate(store, nodes["cluster"], entry, True) == ""


# other temperatures


def softmax_entropy(complexity, temperature):
    scaled = np.exp((complexity - complexity.max()) / temperature)
    shares = scaled / scaled.sum()
    return -(shares * np.log(shares)).sum()


def test_a_trial_says_what_a_curation_at_that_temperature_would_do(made):
    store, nodes, *_ = made
    key = store.key(nodes["select"])
    stage, inputs = open_selection(store, key)
    trials = list(by_temperature(stage, inputs, (0.5, 0.02)))
    assert [trial.value for trial in trials] == [0.02, 0.1, 0.5]
    assert [trial.is_own for trial in trials] == [False, True, False]
    tables = [replace(stage, temperature=t.value) for t in trials]
    masks = []
    for trial, other in zip(trials, tables, strict=True):
        kept, _ = other.decide(**inputs)
        table = other.cluster_table(inputs["clusters"], inputs["rows"].mask, kept.num_kept)
        assert trial.entropy == pytest.approx(softmax_entropy(table["complexity"], trial.value), abs=1e-6)
        assert trial.effective == pytest.approx(np.exp(trial.entropy), abs=0.01)
        inside = np.bincount(inputs["clusters"].assignment[kept.mask], minlength=12)
        assert trial.at_cap == (inside == inputs["clusters"].sizes).sum()
        assert trial.at_floor == (inside <= stage.min_per_cluster).sum()
        masks.append(set(kept.rows.tolist()))
    assert masks[1] == set(store.get(nodes["select"]).rows.tolist())
    assert trials[0].overlap is None
    for one, two, trial in zip(masks, masks[1:], trials[1:], strict=False):
        assert trial.overlap == pytest.approx(len(one & two) / len(one | two))
    assert trials[0].entropy < trials[1].entropy < trials[2].entropy


@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
def test_the_temperature_for_a_share_of_effective_clusters_gives_that_share(share):
    complexity = np.random.default_rng(0).gamma(4.0, 0.01, 50)
    found = temperature_for(complexity, share)
    effective = np.exp(softmax_entropy(complexity, found))
    assert effective == pytest.approx(50 * share, rel=0.01)
    # Complexities of twice the size need twice the temperature.
    assert temperature_for(2 * complexity, share) == pytest.approx(2 * found, rel=0.01)


def test_equal_complexities_have_no_temperature_for_a_share():
    assert temperature_for(np.full(5, 0.3), 0.8) is None
    # Two largest of equal size: no temperature leaves fewer than two of four effective.
    assert temperature_for(np.array([0.3, 0.3, 0.1, 0.2]), 0.4) is None


def test_lists_without_rows_are_equal():
    nothing = np.zeros(3, bool)
    assert jaccard(nothing, nothing) == 1
    assert jaccard(nothing, ~nothing) == 0


def test_tuning_reads_no_vector_and_compares_other_numbers_of_clusters(made, tmp_path, capsys):
    store, nodes, *_ = made
    copy = Store(shutil.copytree(store.root, tmp_path / "store"))
    copy.get(graph("cluster.num_clusters=20")["cluster"])
    copy.get(graph("cluster.num_clusters=20", "cluster.seed=1")["cluster"])
    shutil.rmtree(copy.root / "embed")
    key = store.key(nodes["select"])
    main("tune", [f"keep={key[:12]}", "temperature=0.05,1", f"paths.store={copy.root}"])
    first, second = capsys.readouterr().out.split("\n\n")
    heads = [line.split()[0] for line in first.splitlines()]
    assert heads == ["temperature", "0.05", "0.1*", "1", "80%"]
    assert "of the 12 filled clusters" in first.splitlines()[-1]
    assert [line.split()[0] for line in second.splitlines()] == ["clusters", "12*", "20"]
    fresh = Store(copy.root)
    stage, inputs = open_selection(fresh, key)
    others = clusterings(fresh, fresh.find(key))
    assert list(others) == [12, 20]
    own, other = by_clustering(fresh, stage, inputs, others)
    assert own.num_kept == other.num_kept == store.get(nodes["select"]).num_kept
    assert own.entropy <= np.log(12)
    assert 0 < other.overlap < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "dbp tune needs keep=KEY"),
        (["keep=KEY", "temperature=0.1,0"], "temperature='0.1,0': it must be numbers above 0"),
        (["keep=KEY", "temperature=hot"], "temperature='hot': it must be numbers above 0"),
        (["keep=KEY", "effective=80"], "effective='80': it must be a number between 0 and 1"),
        (["keep=KEY", "temprature=1"], "Did you mean 'temperature'?"),
        (["keep=DEDUP"], "it was made by the stage dedup, and only select=dbp has a temperature"),
    ],
)
def test_a_wrong_word_to_tune_is_told_the_way_out(made, arguments, said):
    store, nodes, *_ = made
    keys = {"KEY": store.key(nodes["select"]), "DEDUP": store.key(nodes["dedup"])}
    settings = [re.sub("KEY|DEDUP", lambda m: keys[m[0]], word) for word in arguments]
    with pytest.raises(ConfigError, match=re.escape(said)):
        main("tune", [*settings, f"paths.store={store.root}"])


def test_a_list_whose_clustering_is_gone_cannot_be_tuned(made, tmp_path):
    store, nodes, *_ = made
    copy = shutil.copytree(store.root, tmp_path / "store")
    shutil.rmtree(copy / "cluster")
    with pytest.raises(StoreError, match="Make it again with dbp curate"):
        main("tune", [f"keep={store.key(nodes['select'])}", f"paths.store={copy}"])
