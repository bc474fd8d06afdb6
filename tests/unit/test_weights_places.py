"""Weights by what the user names: runs of the store, folders of open_clip and of the hub, files."""

import json
import shutil
from pathlib import Path

import pytest
from forty import write_model
from omegaconf import OmegaConf

from dbp.__main__ import main
from dbp.config import compose
from dbp.encoders.openclip import OpenClip, load_openclip
from dbp.encoders.places import Weights, find_weights, settled, training_command
from dbp.engine.stage import plain
from dbp.errors import ConfigError, MissingError
from dbp.settings import read
from dbp.verbs.command_line import overrides
from evaluation.verbs.evaluate import find_checkpoint
from training.resume.checkpoint import save_checkpoint

KEYS = ("abc123000000", "abd999000000", "ffe000000000")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs of equal weights, and one that was cut short."""
    home = tmp_path_factory.mktemp("home")
    weights, config = write_model(home)
    loaded = load_openclip(checkpoint=weights, config=config)
    for key in KEYS:
        folder = home / "runs" / "train" / key
        folder.mkdir(parents=True)
        save_checkpoint(folder, loaded.model, loaded.name, loaded.config, 0)
        (folder / "manifest.json").write_text("{}")
    (home / "runs/train/abz000").mkdir()
    return home


def encoder(home: Path, *words: str) -> OpenClip:
    """The encoder of scores of a command line."""
    given = [*words, "pool.shards=x.tar", "budget.keep_fraction=0.5", f"paths.runs={home}/runs"]
    found = read(compose("curate", overrides(given))).encoder.score
    assert isinstance(found, OpenClip)
    return found


def test_a_run_is_named_by_a_unique_beginning_of_its_key(home):
    found = find_weights("run:abd", home / "runs", "checkpoint")
    assert found.file == home / "runs/train/abd999000000/weights.pt"
    assert found.config == home / "runs/train/abd999000000/open_clip_config.json"


@pytest.mark.parametrize(
    ("named", "facts"),
    [
        ("run:ab", ["x.checkpoint=run:ab", "2 runs", "abc123000000", "abd999000000", "Give more of it"]),
        ("run:abz", ["x.checkpoint=run:abz", "no finished run", "ffe000000000", "dbp train printed", "paths.runs"]),
        ("run:", ["x.checkpoint=run:", "no finished run"]),
        ("local-dir:gone", ["x.checkpoint='local-dir:gone'", "no such folder"]),
    ],
)
def test_what_names_no_weights_or_several_is_refused_with_what_is_there(home, named, facts):
    with pytest.raises(ConfigError) as error:
        find_weights(named, home / "runs", "x.checkpoint")
    assert all(fact in str(error.value) for fact in facts), error.value


def test_a_run_a_folder_and_its_files_give_one_key_wherever_they_lie(home, tmp_path):
    run = home / "runs/train" / KEYS[0]
    shutil.copytree(run, tmp_path / "moved")
    by_files = ["encoder=local_clip", f"encoder.score.checkpoint={run}/weights.pt"]
    ways = [
        ["encoder=run:abc"],
        ["encoder.score=run:ffe"],  # another run of equal weights
        ["encoder=own", "encoder.score.checkpoint=run:abc123000000"],
        [f"encoder=local-dir:{tmp_path}/moved"],
        ["encoder=own", f"encoder.score.checkpoint={tmp_path}/moved"],
        [*by_files, f"encoder.score.config={run}/open_clip_config.json"],  # as a sweep gives its own encoder
    ]
    found = [plain(encoder(home, *way)) for way in ways]
    assert all(one == found[0] for one in found)
    assert str(home) not in json.dumps(found[0])
    other = json.loads((tmp_path / "moved/open_clip_config.json").read_text())
    other["preprocess_cfg"]["mean"] = [0, 0, 0]
    (tmp_path / "moved/open_clip_config.json").write_text(json.dumps(other))
    assert plain(encoder(home, *ways[3])) != found[0]


def test_encoders_within_other_components_find_runs_too(home):
    words = ["encoder=run:abc", "score=flipped_clip", "captioner=glyphs", "pool.shards=x.tar", "until=score"]
    curation = read(compose("curate", overrides([*words, f"paths.runs={home}/runs"])))
    for holder in (curation.score, curation.captioner):
        assert holder.encoder.checkpoint == str(home / "runs/train/abc123000000/weights.pt")  # type: ignore[union-attr]


def test_weights_of_a_run_are_refused_by_a_network_that_is_no_clip(home):
    node = OmegaConf.create({"_target_": "dbp.encoders.timm.Timm", "checkpoint": "run:abc"})
    with pytest.raises(ConfigError, match=r"encoder\.cluster\.checkpoint=run:abc.*Say encoder\.cluster=run:abc"):
        settled(node, home / "runs", "encoder.cluster")


@pytest.mark.parametrize("layout", ["safetensors", "bin", "cache", "only"])
def test_folders_of_the_hub_and_of_open_clip_load_as_open_clip_loads_them(home, tmp_path, layout):
    import open_clip
    import torch
    from safetensors.torch import save_file

    run = home / "runs/train" / KEYS[0]
    folder = tmp_path / ("models--me--tiny/snapshots/1234" if layout == "cache" else "tiny")
    folder.mkdir(parents=True)
    shutil.copy(run / "open_clip_config.json", folder)
    tensors = torch.load(run / "weights.pt", weights_only=True)["state_dict"]
    if layout == "safetensors":
        save_file(tensors, folder / "open_clip_model.safetensors")
        torch.save({"broken": 1}, folder / "open_clip_pytorch_model.bin")  # open_clip prefers the other one
    elif layout == "only":
        torch.save(tensors, folder / "epoch_3.pth")
    else:
        torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    named = folder
    if layout == "cache":
        named = tmp_path / "models--me--tiny"
        (named / "refs").mkdir()
        (named / "refs/main").write_text("1234")
    found = find_weights(f"local-dir:{named}", home / "runs", "checkpoint")
    assert found.config == folder / "open_clip_config.json"
    ours = load_openclip(checkpoint=found.file, config=found.config).model
    theirs = open_clip.create_model(f"local-dir:{folder}")
    images = torch.rand(2, 3, *((size,) * 2 if isinstance(size := ours.visual.image_size, int) else size))
    with torch.no_grad():
        assert torch.equal(ours.encode_image(images), theirs.eval().encode_image(images))


def test_a_folder_with_several_unknown_files_asks_for_the_file(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(
        ConfigError, match=r"holds a\.pth, b\.pth; one of weights\.pt.*Name the file of weights itself"
    ):
        find_weights(str(tmp_path), tmp_path, "checkpoint")
    assert find_weights(str(tmp_path / "a.pth"), tmp_path, "checkpoint") == Weights(tmp_path / "a.pth")


@pytest.mark.parametrize("named", ["run:abc", "abc123", "FOLDER", "local-dir:FOLDER", "FOLDER/weights.pt"])
def test_an_evaluation_finds_the_weights_and_the_config_of_a_run(home, named):
    run = home / "runs/train" / KEYS[0]
    config = OmegaConf.create({"pretrained": None, "paths": {"runs": str(home / "runs")}})
    found = find_checkpoint(config, named.replace("FOLDER", str(run)))
    assert found == Weights(run / "weights.pt", run / "open_clip_config.json")


def test_an_encoder_that_names_nothing_says_what_to_type_before_any_work(capsys, tmp_path):
    words = ["encoder=own", "pool=glyphs", "pool.plan.num_pairs=200", "dedup=none", "select=dbp"]
    where = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]
    assert main(["curate", *words, "budget.keep_fraction=0.5", *where]) == 1
    said = capsys.readouterr().err
    assert "dbp train" in said
    assert "dedup=none select=uniform budget.keep_fraction=0.5 model=small train=small" in said
    assert "encoder=run:KEY" in said
    assert not list(tmp_path.rglob("manifest.json"))
    with pytest.raises(MissingError, match="encoder=own"):
        OpenClip(None).load()


def test_the_command_to_type_keeps_what_names_the_pool_and_drops_the_curation():
    typed = ["/bin/dbp", "curate", "--config-dir", "my configs", "experiment=pets", "encoder=own", "select=dbp"]
    typed += ["hold_out=held.parquet", "select.temperature=0.2", "+score@scores.a=clip_loss", "budget.num_kept=7"]
    assert training_command(typed) == (
        "dbp train --config-dir 'my configs' experiment=pets hold_out=held.parquet dedup=none select=uniform "
        "budget.keep_fraction=0.5"
    )
    plain_pool = ["dbp", "curate", "pool.shards=a/{0..3}.tar", "pool.caption=json:text", "encoder=own"]
    assert training_command(plain_pool) == (
        "dbp train 'pool.shards=a/{0..3}.tar' pool.caption=json:text dedup=none select=uniform "
        "budget.keep_fraction=0.5 model=small train=small"
    )
