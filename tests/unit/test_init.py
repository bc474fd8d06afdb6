"""`dbp init`: what it says of a folder of tars is so, and what it writes runs."""

import io
import json
import math
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from dbp.__main__ import main
from dbp.config import compose
from dbp.errors import ConfigError, MissingError, PoolError
from dbp.pools import own_encoder
from dbp.pools.groups import groups_of, labels_among
from dbp.pools.looking import _spread, lines_of, look
from dbp.pools.own_encoder import OwnTraining
from dbp.pools.suggestion import suggest
from dbp.settings import read
from dbp.verbs import init
from dbp.verbs.command_line import overrides
from dbp.verbs.init import place, trials
from evaluation.verbs.sets import run as make_sets

Sample = dict[str, bytes]
ROOT = Path(__file__).parents[2]


def picture(row: int, kind: str = "jpeg", size: tuple[int, int] = (48, 40)) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(row).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def write_tar(path: Path, rows: dict[str, Sample]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in rows.items():
            for kind, content in members.items():
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def pairs(count: int, first: int = 0) -> dict[str, Sample]:
    """Samples as img2dataset writes them; captions of 1, 2, 3, … words."""
    return {
        f"{first + row:09d}": {
            "jpg": picture(first + row),
            "txt": " ".join(["cat"] * (row + 1)).encode(),
            "json": json.dumps({"caption": "x", "key": f"{first + row:09d}"}).encode(),
        }
        for row in range(count)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "my cats"
    write_tar(home / "00000.tar", pairs(20))
    write_tar(home / "00001.tar", pairs(20, 20))
    return home


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(own_encoder, "lacks_pretrained", lambda: None)  # weights are at hand


# what is said of a folder


def test_counts_sizes_lengths_and_formats_are_those_of_the_folder(folder):
    write_tar(folder / "00002.tar", {"a": {"png": picture(99, "png", (30, 90)), "txt": b"one two three"}})
    found = look(folder)
    assert (found.rows, found.usable, len(found.shards), found.is_whole) == (41, 41, 3, True)
    assert found.total_bytes == sum(tar.stat().st_size for tar in folder.glob("*.tar"))
    assert found.formats == {"jpeg": 40, "png": 1}
    assert found.captions == "txt"
    assert sorted(found.words) == sorted([*range(1, 21), *range(1, 21), 3])
    assert sorted(set(found.short_sides)) == [30, 40]
    said = "\n".join(lines_of(found))
    assert "3 tars" in said
    assert "41 samples (all read)" in said
    assert "captions in txt: median 10 words" in said


def test_what_cannot_be_used_is_counted_by_reason(folder):
    write_tar(
        folder / "00002.tar",
        {
            "a": {"txt": b"no picture here"},
            "b": {"jpg": b"this is text", "txt": b"a caption"},
            "c": {"jpg": picture(1), "txt": b"   "},
            "d": {"jpg": picture(1)},
        },
    )
    found = look(folder)
    assert found.problems == {"no image": 1, "not an image": 1, "empty caption": 1, "no caption": 1}
    assert (found.rows, found.usable) == (44, 40)


def test_what_is_not_read_is_estimated_from_sizes(tmp_path):
    home = tmp_path / "many"
    for shard in range(8):
        write_tar(home / f"{shard:05d}.tar", pairs(10, 10 * shard))
    found = look(home, patience=0.0)
    assert (found.num_read, found.is_whole) == (1, False)
    assert found.rows == pytest.approx(80, rel=0.05)
    assert "about" in lines_of(found)[0]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_every_shard_is_read_once_and_the_first_are_spread(count):
    order = _spread([Path(str(i)) for i in range(count)])
    assert sorted(order) == sorted({Path(str(i)) for i in range(count)})
    assert [int(str(p)) for p in order[:2]] == [0, count - 1][:count]
    if count == 64:
        assert 24 < int(str(order[2])) < 40


def test_a_broken_tar_is_named_and_its_sound_samples_are_used(folder):
    whole = write_tar(folder / "00002.tar", pairs(20, 40)).read_bytes()
    (folder / "00002.tar").write_bytes(whole[: len(whole) // 2])
    (folder / "00003.tar").write_bytes(b"")
    found = look(folder)
    assert {shard.name for shard in found.broken} == {"00002.tar", "00003.tar"}
    assert 40 < found.rows < 60
    said = "\n".join(lines_of(found))
    assert "2 tars are broken" in said
    assert "00002.tar cannot be read after member" in said
    assert "00003.tar" in said
    assert suggest(found, folder, 0.5).broken_shards == "keep_readable"


def test_captions_in_the_json_are_found_and_named(tmp_path):
    rows = {
        f"{n}": {"png": picture(n, "png"), "json": json.dumps({"text": "a b c", "uid": f"u{n}"}).encode()}
        for n in range(20)
    }
    write_tar(tmp_path / "pool/0.tar", rows)
    found = look(tmp_path / "pool")
    suggested = suggest(found, tmp_path / "pool", 0.5)
    assert (suggested.caption, suggested.uid) == ("json:text", "json:uid")
    assert set(found.words) == {3}


@pytest.mark.parametrize(
    ("tars", "rule", "shared"),
    [
        ({"0.tar": 0, "1.tar": 10}, "key", (0, 0, 0, 0)),
        ({"0.tar": 0, "1.tar": 0}, "hash", (20, 0, 0, 20)),
        ({"runA/0.tar": 0, "runB/0.tar": 0}, "path", (20, 20, 0, 20)),
    ],
)
def test_the_rule_of_uids_that_parts_all_samples_is_suggested(tmp_path, tars, rule, shared):
    for name, first in tars.items():
        write_tar(tmp_path / "pool" / name, pairs(10, first))
    found = look(tmp_path / "pool")
    assert tuple(found.shared.values()) == shared
    assert suggest(found, tmp_path / "pool", 0.5).uid == rule
    said = "\n".join(lines_of(found))
    assert (rule == "key") == ("share their key" not in said)
    assert rule == "key" or f"20 samples share their key with another one: pool.uid={rule} parts them all" in said


def test_names_of_shards_that_repeat_call_for_paths_although_few_shards_are_read(tmp_path):
    for name, first in {"runA/0.tar": 0, "runA/1.tar": 30, "runB/0.tar": 60, "runB/1.tar": 0}.items():
        write_tar(tmp_path / "pool" / name, pairs(10, first))
    found = look(tmp_path / "pool", patience=0.0)
    assert not found.is_whole
    assert suggest(found, tmp_path / "pool", 0.5).uid == "path"


def test_keys_that_repeat_within_a_tar_call_for_the_content(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for row, key in enumerate(["a", "b"] * 5):
            for kind, content in (("jpg", picture(row)), ("txt", b"x")):
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert suggest(look(tmp_path), tmp_path, 0.5).uid == "content"


# what is suggested


@pytest.mark.parametrize("rows", [180, 40_000, 1_000_000, 280_000_000])
def test_the_numbers_follow_from_the_rows(folder, rows):
    found = look(folder)
    found.total_bytes, found.num_read = (found.total_bytes * rows // 40, 1)  # as if most were not read
    s = suggest(found, folder, 0.3)
    assert s.num_dedup_clusters == pytest.approx(math.sqrt(0.75 * rows), abs=1)
    assert s.num_clusters == min(500, s.num_dedup_clusters)
    assert s.batch_size <= max(0.3 * rows / 4, 2)
    assert s.samples_seen % s.batch_size == 0
    assert rows <= s.samples_seen + 1 <= rows + s.batch_size + 1
    assert s.batch_size == 4096 or rows < 40_000 * 4


# what is written


def test_the_experiment_composes_for_curating_training_and_sweeping(folder, tmp_path, capsys):
    assert main(["init", str(folder), "keep_fraction=0.5"]) == 0
    said = capsys.readouterr().out
    file = tmp_path / "experiment/my_cats.yaml"
    assert f"wrote {file}" in said
    assert "What curating" in said
    for verb in ("curate", "train", "sweep"):
        config = compose(verb, overrides(["experiment=my_cats"]), [str(tmp_path)])
        assert config.pool.shards == f"{folder}/*.tar"
        assert config.budget.keep_fraction == 0.5
        assert config.cluster.num_clusters == round(math.sqrt(30))
        assert config.select.temperature == 0.1
        assert config.train.samples_seen % config.train.batch_size == 0
    assert main(["sweep", "plan", "--config-dir", str(tmp_path), "experiment=my_cats", "root=glyphs"]) == 0
    assert "15 points before collapsing" in capsys.readouterr().out


def test_a_sweep_misses_its_evaluation_sets_before_it_reads_the_pool(folder, tmp_path, capsys):
    assert main(["init", str(folder), "keep_fraction=0.5"]) == 0
    words = ["--config-dir", str(tmp_path), "experiment=my_cats", "root=nowhere"]
    assert main(["sweep", *words, "sweep.select.temperature=[0.1,0.2]"]) == 1
    assert "root='nowhere' is no folder" in capsys.readouterr().err
    assert not list(tmp_path.rglob("index.parquet"))


def test_a_plan_of_the_experiment_knows_the_rows(folder, tmp_path, capsys):
    assert main(["init", str(folder), "keep_fraction=0.5"]) == 0
    capsys.readouterr()
    assert main(["curate", "--config-dir", str(tmp_path), "experiment=my_cats", "until=index"]) == 0
    assert "rows 40" in capsys.readouterr().out


def test_folders_below_and_odd_names_are_named_so_that_they_are_found(tmp_path, capsys):
    home = tmp_path / "a {1,2} [x] $ü"
    write_tar(home / "part 0/0.tar", pairs(20))
    write_tar(home / "part 1/1.tar", pairs(20, 20))
    assert main(["init", str(home), "out=experiment/odd.yaml", "keep_fraction=0.5"]) == 0
    assert main(["curate", "--config-dir", str(tmp_path), "experiment=odd", "until=index"]) == 0
    assert "rows 40, shards 2" in capsys.readouterr().out


def test_a_folder_whose_name_looks_like_an_interpolation_is_curated_and_planned(tmp_path, capsys):
    home = tmp_path / "cats ${x} and ${oc.env:HOME}"
    write_tar(home / "0.tar", pairs(40))
    assert main(["init", str(home), "out=experiment/odd.yaml", "keep_fraction=0.5"]) == 0
    said = ["--config-dir", str(tmp_path), "experiment=odd"]
    assert main(["curate", *said, "until=index"]) == 0
    assert "rows 40, shards 1" in capsys.readouterr().out
    assert main(["curate", *said, "--cfg"]) == 0
    assert OmegaConf.create(capsys.readouterr().out).pool.shards == f"{home}/*.tar", "it can be read again"
    assert main(["sweep", "plan", *said, "root=glyphs"]) == 0
    assert "from 15 points" in capsys.readouterr().out


def test_a_file_that_exists_is_not_replaced(folder, tmp_path, capsys):
    assert main(["init", str(folder)]) == 0
    before = (tmp_path / "experiment/my_cats.yaml").read_bytes()
    assert main(["init", str(folder), "keep_fraction=0.9"]) == 1
    assert "exists and is not replaced. Give another name with out=" in capsys.readouterr().err
    assert (tmp_path / "experiment/my_cats.yaml").read_bytes() == before


def test_once_clusters_exist_the_file_tells_what_temperatures_would_do(folder, tmp_path, capsys):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    curated = main(
        ["curate", f"pool.shards={folder}/*.tar", "dedup=none", "select=dbp", "cluster.num_clusters=4",
         "budget.keep_fraction=0.5", "encoder.cluster=precomputed", f"encoder.cluster.images={tmp_path}/v.npy"]
    )  # fmt: skip
    assert curated == 0
    lines = trials(look(folder), {})
    assert "entropy" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["0.02", "0.05", "0.1*", "0.2", "0.5", "1"]
    assert main(["init", str(folder), "out=experiment/second.yaml", "keep_fraction=0.5"]) == 0
    text = (tmp_path / "experiment/second.yaml").read_text()
    assert f"# {lines[1]}" in text
    write_tar(folder / "00002.tar", pairs(5, 40))
    assert trials(look(folder), {}) == []  # it is another pool now


# without pretrained weights


def write_labelled(home: Path, count: int = 60) -> Path:
    """Samples whose captions name the `kind` of their json, and never its `source`."""
    rows = {}
    for row in range(count):
        fields = {"kind": ("cat", "dog", "owl")[row % 3], "source": ("a1", "b2")[row % 2], "id": f"{row}"}
        caption = f"a {fields['kind']} that sits on chair {row}"
        rows[f"{row:05d}"] = {"jpg": picture(row), "txt": caption.encode(), "json": json.dumps(fields).encode()}
    write_tar(home / "0.tar", rows)
    return home


def test_without_weights_at_hand_the_experiment_trains_its_own_encoder_on_its_own_sets(
    tmp_path, monkeypatch, capsys
):
    lacks = MissingError("weights of a model: neither here nor there", "Fetch them.")
    monkeypatch.setattr(own_encoder, "lacks_pretrained", lambda: lacks)
    home = write_labelled(tmp_path / "my pets")
    assert main(["init", str(home), "keep_fraction=0.5", f"paths.store={tmp_path}/s"]) == 0
    said = capsys.readouterr().out
    assert "weights of a model: neither here nor there: the experiment trains a small CLIP of its own" in said
    typed = [shlex.split(line) for line in said.splitlines() if line.startswith("  dbp ")]
    assert [words[:2] for words in typed] == [["dbp", "sets"], ["dbp", "sweep"], ["dbp", "report"]]
    assert all(f"paths.store={tmp_path}/s" in words for words in typed)
    text = (tmp_path / "experiment/my_pets.yaml").read_text()
    assert all(f"# {shlex.join(words)}" in text for words in typed)
    for verb in ("curate", "train", "sweep", "sets"):
        config = compose(verb, overrides(["experiment=my_pets"]), [str(tmp_path)])
        assert config.encoder.score.checkpoint is config.encoder.score.model is None
        assert config.model.config.vision_cfg.image_size == 32, "the images are 40 pixels high"
        assert config.train.samples_seen % config.train.batch_size == 0
        assert (config.sets.labels, config.suite, config.sets.name) == ("json:kind", "my_pets", "my_pets")
        assert config.columns == {"kind": "json:kind", "source": "json:source"}
    with pytest.raises(ConfigError, match=r"hold_out='.*my_pets_sets/held_out\.parquet'.*dbp sets with out=FOLDER"):
        read(config)
    assert make_sets(compose("sets", overrides(typed[0][4:]), [str(tmp_path)])) == 0
    assert (tmp_path / "my_pets_sets/wds_my_pets_labels_test/classnames.txt").read_text().split() == [
        "cat",
        "dog",
        "owl",
    ]
    words = [*typed[1][2:], "sweep.encoder.train.samples_seen=64"]
    assert main(["sweep", "plan", *words]) == 0
    said = capsys.readouterr().out
    assert "15 points before collapsing; keys are known once the encoder is trained" in said
    assert len([line for line in said.splitlines() if line.startswith("encoder ")]) == 3
    assert main(["sweep", "plan", *typed[1][2:], "debug=smoke"]) == 0, "it can be rehearsed with other models"


def test_pretrained_weights_are_kept_where_they_are_asked_for_or_at_hand(tmp_path, monkeypatch):
    home = write_labelled(tmp_path / "pets")
    for name, words in {"at_hand": [], "said": ["own_encoder=false"]}.items():
        assert main(["init", str(home), "keep_fraction=0.5", f"out=experiment/{name}.yaml", *words]) == 0
        config = compose("curate", overrides([f"experiment={name}"]), [str(tmp_path)])
        assert config.encoder.score.pretrained == "openai"
        monkeypatch.setattr(own_encoder, "lacks_pretrained", lambda: MissingError("weights", ""))
    assert main(["init", str(home), "keep_fraction=0.5", "out=experiment/own.yaml", "own_encoder=true"]) == 0


@pytest.mark.parametrize("gpus", ["", "0"])
@pytest.mark.parametrize("rows", [400, 5_000, 80_000, 3_000_000])
@pytest.mark.parametrize("side", [20, 50, 90, 400])
def test_the_small_clip_suits_the_images_the_rows_and_the_machine(folder, monkeypatch, gpus, rows, side):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    found = look(folder)
    found.total_bytes, found.num_read = (found.total_bytes * rows // 40, 1)  # as if most were not read
    found.short_sides = [side] * 9
    own = OwnTraining.of(found, suggest(found, folder, 0.3))
    assert own.image_size <= max(side, 32)
    assert own.samples_seen % own.batch_size == 0
    assert own.samples_seen <= max(20 * rows, rows) + own.batch_size
    assert own.samples_seen >= min(rows, 300_000), "a pass over the pool, where it can be had"
    written = "defaults: []\n" + own.model_settings()
    model = OmegaConf.merge(
        OmegaConf.load(ROOT / f"configs/model/{own.model}.yaml"), OmegaConf.create(written).get("model") or {}
    )
    if model.config is not None:
        vision = model.config.vision_cfg
        assert vision.image_size == own.image_size
        assert vision.image_size % vision.get("patch_size", 32) == 0
    assert (own.model == "small") == (not gpus)
    if not gpus:
        assert own.samples_seen / 280 < 20 * 60, "at most twenty minutes of a core for a run"
        assert own.image_size <= 64


@pytest.mark.parametrize(
    ("caption", "length"), [("two words", 16), ("word " * 20, 32), ("word " * 40, 77), ("红" * 32, 77)]
)
def test_the_text_tower_is_as_long_as_the_captions_with_or_without_blanks(tmp_path, caption, length):
    rows = {f"{row}": {"jpg": picture(row), "txt": caption.encode()} for row in range(20)}
    write_tar(tmp_path / "pool/0.tar", rows)
    found = look(tmp_path / "pool")
    assert OwnTraining.of(found, suggest(found, tmp_path, 0.5)).context_length == length


def test_labels_are_the_field_whose_values_captions_hold():
    rows = [(f"A {kind} on grass", {"kind": kind, "site": site, "url": f"{n}", "n": n, "a.b": kind, "rare": "x"})
            for n, (kind, site) in enumerate([("cat", "x.org"), ("Dog", "y.org")] * 40)]  # fmt: skip
    found = {group.name: group for group in groups_of(rows)}
    assert set(found) == {"kind", "site"}, "many values, one value, numbers and dots are no groups"
    assert dict(found["kind"].sizes) == {"cat": 40, "Dog": 40}
    assert (found["kind"].mentioned, found["site"].mentioned) == (1.0, 0.0)
    assert labels_among(found.values()) is found["kind"]
    assert labels_among([found["site"]]) is None


# bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "dbp init takes one FOLDER of tars; given: none"),
        (["a", "b"], "takes one FOLDER"),
        (["FOLDER", "keep_fraction=2"], r"keep_fraction=2\.0: it must be above 0 and at most 1"),
        (["FOLDER", "keep_fraction=some"], "keep_fraction='some': it must be a number"),
        (["FOLDER", "keep_fraction=0.01"], "too few to train on"),
        (["FOLDER", "own_encoder=maybe"], "own_encoder='maybe': it must be auto, true or false"),
        (["FOLDER", "tau=1"], "tau is not a setting here"),
        (["FOLDER", "out=cats.yaml"], "in a folder called experiment, so name a file like .*experiment/cats.yaml"),
        (["FOLDER", "out=experiment/my cats.yaml"], "its name may have letters, digits"),
    ],
)
def test_settings_that_cannot_be_used_are_told(folder, words, said):
    with pytest.raises(ConfigError, match=said):
        init.main("init", [str(folder) if word == "FOLDER" else word for word in words])


def test_a_folder_without_tars_says_what_is_there(tmp_path):
    with pytest.raises(PoolError, match="does not exist"):
        look(tmp_path / "nowhere")
    (tmp_path / "file.tar").touch()
    with pytest.raises(PoolError, match=r"is a file\. Name the folder that holds it"):
        look(tmp_path / "file.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PoolError, match=r"no tar lies in .* but nothing\. Make webdataset tars"):
        look(tmp_path / "empty")
    (tmp_path / "empty/0.parquet").touch()
    with pytest.raises(PoolError, match=r"1 x \.parquet\. .*pool=parquet .* pool=datacomp"):
        look(tmp_path / "empty")


def test_tars_without_samples_pictures_or_captions_are_told_apart(tmp_path):
    home = tmp_path / "pool"
    home.mkdir()
    (home / "0.tar").write_bytes(b"x" * 1024)
    with pytest.raises(PoolError, match=r"no sample can be read from the 1 tars .* cannot be read at its first"):
        look(home)
    write_tar(home / "0.tar", {"a": {"txt": b"text"}})
    with pytest.raises(PoolError, match=r"the 1 samples read from .* have no image"):
        look(home)
    write_tar(home / "0.tar", {"a": {"jpg": picture(0), "json": b'{"tags": "x", "n": 3}'}})
    with pytest.raises(PoolError, match=r"have no caption.*Text fields of the json: tags\..*json:FIELD"):
        look(home)


def test_a_place_that_cannot_be_written_is_told(folder, tmp_path, capsys):
    (tmp_path / "experiment").write_text("a file")
    assert main(["init", str(folder)]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert place(folder, None).name == "my_cats.yaml"
