"""Before any work: what a run needs and does not find is named, all of it at once, a line for each thing."""

import http.server
import io
import json
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from miniature import noise_png, write_classification

from dbp.config import compose
from dbp.curate import read, recipe
from dbp.curate import run as curate
from dbp.encoders import weights
from dbp.encoders.embed import Embed
from dbp.encoders.openclip import OpenClip, load_openclip
from dbp.encoders.timm import Timm
from dbp.engine.stage import Stage, parameters
from dbp.engine.store import Store
from dbp.errors import ConfigError, DbpError, MissingError, PoolError, WorldError
from dbp.filtering.language import Language
from dbp.planning import preflight
from dbp.planning.amounts import bytes_text
from dbp.planning.outlook import Outlook
from dbp.planning.plan import plan
from dbp.verbs.command_line import overrides
from evaluation.verbs.evaluate import run as evaluate
from slurm.cluster.launcher import ROLES, Launcher
from slurm.cluster.limits import limit_notes
from slurm.composer import stages
from slurm.plan import Point
from slurm.sweep import main as sweep
from training.train import run as train

NO_CLIP = [
    f"encoder.{use}.{way}" for use in ("dedup", "score") for way in ("pretrained=null", "random_weights=true")
]
DINO = "vit_large_patch14_dinov2.lvd142m"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and no weights; the folder where the hub's cache would lie."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the port of `discard`: nobody answers
    for name, folder in (("HOME", "home"), ("TORCH_HOME", "torch")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def pool(folder: Path, num: int = 12) -> str:
    generator = np.random.default_rng(0)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for key in range(num):
            for name, content in ((f"{key:04d}.png", noise_png(generator, 32)), (f"{key:04d}.txt", b"a thing")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(folder / "00000.tar")


def said(tmp_path: Path, *more: str) -> list[str]:
    """What a run on a small pool is asked for."""
    budget = [] if "debug=smoke" in more else ["budget.keep_fraction=0.5"]
    return [
        "pool=webdataset", f"pool.shards={pool(tmp_path)}", *budget,
        f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs", *more,
    ]  # fmt: skip


def things(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """The lines that name a thing; what to do stands below them."""
    first, *lines = str(error.value).splitlines()
    number = int(first.split()[0])
    assert "dbp prefetch" not in "".join(lines[:number])
    return lines[:number]


def test_a_sweep_without_network_weights_and_sets_stops_before_any_work(tmp_path, offline):
    (tmp_path / "sets").mkdir()
    arguments = said(tmp_path, f"root={tmp_path}/sets", "suite=[cifar10,mnist]", "sweep.select=[dbp,uniform]")
    with pytest.raises(WorldError) as error:
        sweep(arguments, [])
    lines = things(error)
    assert len(lines) == 4
    named = ("'openai' of ViT-B-32-quickgelu", DINO, "CIFAR-10", "MNIST")
    assert all(sum(name in line for line in lines) == 1 for name in named), lines
    for way_out in ("dbp prefetch", "checkpoint=FILE", "sweep.encoder", "root"):
        assert str(error.value).count(way_out) >= 1
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "runs").exists()


def test_shards_that_are_missing_are_named_beside_all_else(tmp_path, offline):
    arguments = [word for word in said(tmp_path, f"root={tmp_path}/gone") if "pool.shards" not in word]
    with pytest.raises(WorldError) as error:
        sweep([*arguments, f"pool.shards={tmp_path}/gone.tar"], [])
    lines = things(error)
    assert len(lines) == 4
    assert "gone.tar" in lines[0]
    assert sum("root=" in line for line in lines) == 1


def test_a_sweep_without_its_sets_does_not_train_its_encoder(tmp_path, offline):
    arguments = ["experiment=glyphs", f"root={tmp_path}/gone", "suite=mnist"]
    with pytest.raises(ConfigError, match=r"root=.*gone.* is no folder"):
        sweep([*arguments, f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"], [])
    assert not (tmp_path / "store").exists()
    (tmp_path / "gone").mkdir()
    with pytest.raises(MissingError, match="MNIST"):
        sweep([*arguments, f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"], [])
    assert not (tmp_path / "store").exists()


def test_one_thing_that_is_missing_is_an_error_of_its_own_kind(tmp_path, offline):
    with pytest.raises(MissingError, match=rf"weights of {DINO}.*dbp prefetch"):
        curate(compose("curate", overrides(said(tmp_path, *NO_CLIP))))
    with pytest.raises(PoolError, match=r"gone\.tar"):
        curate(compose("curate", overrides([*said(tmp_path, "until=index"), f"pool.shards={tmp_path}/gone.tar"])))


def test_training_asks_before_it_curates(tmp_path, offline):
    with pytest.raises(WorldError) as error:
        train(compose("train", overrides(said(tmp_path, "watch=suite"))))
    assert [("root is not set" in line, "weights" in line) for line in things(error)].count((True, False)) == 1
    assert len(things(error)) == 3
    assert not (tmp_path / "store").exists()


def test_a_rehearsal_and_local_weights_need_no_hub(tmp_path, offline):
    smoke = compose("sweep", overrides(said(tmp_path, "debug=smoke", "root=glyphs", "suite=glyphs")))
    assert preflight.missing(Store(tmp_path / "store"), [stages(smoke)["evaluate"]]) == ([], [])
    (tmp_path / "w.pt").write_bytes(b"weights")
    for encoder in (
        OpenClip("ViT-B-32", checkpoint=str(tmp_path / "w.pt")),
        OpenClip("ViT-B-32", "openai", random_weights=True),
        Timm(DINO, 224, "token", checkpoint=str(tmp_path / "w.pt")),
        Timm(DINO, 224, "token", random_weights=True),
    ):
        assert list(encoder.lacks({})) == []


def keep(hub: Path, repository: str, file: str) -> None:
    """A file as the hub's cache keeps it."""
    place = hub / f"models--{repository.replace('/', '--')}" / "snapshots" / "abc" / file
    place.parent.mkdir(parents=True)
    place.write_bytes(b"kept")


def test_weights_and_tokenizers_in_the_caches_are_at_hand(offline):
    dino, clip, siglip = (
        Timm(DINO, 224, "token"),
        OpenClip("ViT-B-32", "openai"),
        OpenClip("ViT-B-16-SigLIP", "webli"),
    )
    assert [len(list(one.lacks({}))) for one in (dino, clip, siglip)] == [1, 1, 2]
    keep(offline, f"timm/{DINO}", "model.safetensors")
    assert [len(list(one.lacks({}))) for one in (dino, clip, siglip)] == [0, 1, 2]
    keep(offline, "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")
    assert [len(list(one.lacks({}))) for one in (dino, clip, siglip)] == [0, 0, 2]
    keep(offline, "timm/ViT-B-16-SigLIP", "open_clip_model.safetensors")
    [tokenizer] = siglip.lacks({})
    assert "tokenizer" in str(tokenizer)
    (offline / "models--timm--ViT-B-16-SigLIP" / "snapshots" / "abc" / "tokenizer.json").write_bytes(b"{}")
    assert list(siglip.lacks({})) == []


def test_the_environment_may_say_that_there_is_no_network(offline, monkeypatch):
    class Server(http.server.BaseHTTPRequestHandler):
        pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert not weights.is_offline()
        assert list(Timm(DINO, 224, "token").lacks({})) == []
        assert list(OpenClip("ViT-B-32", "openai").lacks({})) == []
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            with monkeypatch.context() as inner:
                inner.setenv(name, "1")
                assert weights.is_offline()
                assert len(list(Timm(DINO, 224, "token").lacks({}))) == 1
        server.shutdown()


def test_a_model_is_not_asked_for_where_it_cannot_come_from(offline, monkeypatch):
    asked = []
    monkeypatch.setattr("open_clip.create_model_and_transforms", lambda *given, **named: asked.append(given))
    with pytest.raises(MissingError, match="'openai' of ViT-B-32"):
        load_openclip("ViT-B-32", pretrained="openai")
    monkeypatch.setattr("timm.create_model", lambda *given, **named: asked.append(given))
    with pytest.raises(MissingError, match=DINO):
        Timm(DINO, 224, "token").load()
    assert asked == []


def test_an_error_passes_from_one_process_to_another():
    error = pickle.loads(pickle.dumps(MissingError("weights x", "Fetch them.")))
    assert (error.what, error.way_out, str(error)) == ("weights x", "Fetch them.", "weights x. Fetch them.")


@dataclass(frozen=True)
class Needy(Stage):
    """A stage that needs something of the world."""

    name: ClassVar[str] = "needy"
    makes: ClassVar[type] = dict

    number: int = 0
    is_there: bool = True

    def lacks(self, inputs: Any) -> Iterator[DbpError | str]:
        if not Needy.at_hand:
            yield MissingError(f"thing {self.number}", "Bring it.")
            yield f"about {self.number}"

    at_hand: ClassVar[bool] = True

    def run(self, work: Any, **inputs: Any) -> dict[str, Any]:
        return {}

    def open(self, home: Path, **inputs: Any) -> dict:
        return {}


def test_what_is_finished_needs_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    store.get(Needy(1).bind())
    monkeypatch.setattr(Needy, "at_hand", False)
    found, notes = preflight.missing(store, [Needy(1).bind(), Needy(2).bind(), Needy(2).bind()])
    assert ([str(one) for one in found], notes) == (["thing 2. Bring it."], ["about 2"])


def test_a_disk_that_is_too_small_for_the_plan_is_named_with_both_amounts(tmp_path, offline, monkeypatch):
    given = said(tmp_path, *NO_CLIP, "encoder.cluster.random_weights=true")
    wanted = recipe(read(compose("curate", overrides(given))))["select"]
    store = Store(tmp_path / "store")
    assert preflight.missing(store, [wanted]) == ([], [])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=7_000))
    [error] = preflight.missing(store, [wanted])[0]
    assert "7.0 kB are free" in str(error)
    assert str(store.root) in str(error)
    assert "paths.store" in str(error)
    lines = plan(Outlook(Store(tmp_path / "other")), [wanted])
    planned = sum(line.effort.bytes_written for line in lines if line.effort)
    assert f"writes {bytes_text(planned)}," in str(error)


def test_packages_that_tell_languages_are_asked_for_before_captions_are_read():
    [error] = Language("cld3").lacks({})
    assert "gcld3" in str(error)
    assert list(Language("column:language").lacks({})) == []


def sets_of_two(tmp_path: Path) -> Path:
    for key, names in (("cifar10", "ab"), ("mnist", "0123456789")):
        folder = tmp_path / "sets" / f"wds_{key}_test"
        write_classification(folder, class_names=names, num_samples=8, seed=0, size=8, samples_per_shard=4)
    return tmp_path / "sets"


def test_sets_that_are_cut_or_no_tars_are_named_before_they_are_read(tmp_path, offline):
    root = sets_of_two(tmp_path)
    (root / "wds_cifar10_test" / "test" / "1.tar").unlink()
    (root / "wds_mnist_test" / "test" / "0.tar").write_text("<html>404</html>")
    arguments = said(tmp_path, f"root={root}", "suite=[cifar10,mnist]", "debug=smoke")
    with pytest.raises(WorldError) as error:
        sweep(arguments, [])
    cifar, mnist = things(error)
    assert "CIFAR-10" in cifar
    assert "1 of 2 tars are missing" in cifar
    assert "an HTML or XML page" in mnist
    assert not (tmp_path / "store").exists()


def test_an_export_of_a_set_with_other_names_is_refused_before_the_evaluation(tmp_path, offline, capsys):
    root = sets_of_two(tmp_path)
    given = [
        "model.name=ViT-B-32", "pretrained=openai", f"root={root}", "suite=[cifar10,mnist]",
        f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs",
    ]  # fmt: skip
    with pytest.raises(WorldError) as error:
        evaluate(compose("evaluate", overrides([*given, f"export.datacomp={tmp_path}/a.jsonl"])))
    named = things(error)
    assert sum("2 of 10 class names" in line and "CIFAR-10" in line for line in named) == 1
    assert sum("weights 'openai'" in line for line in named) == 1
    with pytest.raises(MissingError, match="weights 'openai'"):
        evaluate(compose("evaluate", overrides(given)))
    assert "CIFAR-10" in capsys.readouterr().out  # without an export a note


def test_an_evaluation_without_any_set_stops_before_weights_are_loaded(tmp_path, offline):
    (tmp_path / "sets").mkdir()
    given = ["model.name=ViT-B-32", "pretrained=openai", f"root={tmp_path}/sets", "suite=[cifar10,mnist]"]
    with pytest.raises(WorldError) as error:
        evaluate(compose("evaluate", overrides([*given, f"paths.store={tmp_path}/store"])))
    assert len(things(error)) == 3


def test_a_time_limit_below_what_earlier_runs_took_is_noted_by_role(tmp_path):
    config = compose("sweep", overrides(said(tmp_path, "debug=smoke", "root=glyphs", "suite=glyphs")))
    nodes = stages(config)
    point, store = Point("one", {}, config, nodes), Store(tmp_path / "store", tmp_path / "runs")
    image = next(node for node in nodes["select"].lineage() if isinstance(node.stage, Embed))
    # Two hours for the 12 rows of the pool, and for the 16 samples of the training.
    for home, node, counts in (
        (store.root, image, {"rows": 12}),
        (store.runs, nodes["train"], {"samples_seen": 16}),
    ):
        made = {
            "key": "abc", "stage": node.stage.name, "version": node.stage.version, "counts": counts, "files": {},
            "parameters": parameters(node.stage), "seconds": 7200.0, "cpu_seconds": 7200.0, "inputs": {},
        }  # fmt: skip
        folder = home / node.stage.name / "abc"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(made))

    def notes(**minutes: int) -> list[str]:
        same = {"cpus": 1, "gpus": 0, "nodes": 1, "ranks": 1, "mem_gb": None}
        given: dict[str, Any] = {role: {"minutes": minutes.get(role, 1440), **same} for role in ROLES}
        return list(limit_notes(store, [point], Launcher("slurm", **given)))

    assert notes() == []
    [note] = notes(arm=60)
    assert "2.0 h" in note
    assert "launcher.arm.minutes=60" in note
    shared, arm = notes(arm=60, shared=100)
    assert "launcher.shared.minutes=100" in shared
    assert arm == note
