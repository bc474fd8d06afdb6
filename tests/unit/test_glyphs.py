"""The embedded pool: what is planted is exact, is told in the truth alone, and no test shows it."""

import dataclasses
import io
import json
import tarfile
import unicodedata
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from dbp.errors import ConfigError, StoreError
from dbp.pools.glyph_fonts import all_glyphs, base_letter, look_alikes
from dbp.pools.glyph_tasks import TASKS, class_names, render_tasks, script, task_folder, templates
from dbp.pools.glyphs import GlyphPlan, render_pool, split_glyphs

PLAN = GlyphPlan(num_pairs=701, samples_per_shard=300, task_pictures=400)


def read_tars(folder):
    """Samples by key, each a mapping from extension to bytes, in the order of the tars."""
    found = defaultdict(dict)
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, extension = info.name.split(".")
                found[key][extension] = tar.extractfile(info).read()
    return found


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("L"), dtype=float)


def image_of(sample):
    return sample.get("png") or sample["jpg"]


def all_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    counts = render_pool(PLAN, folder)
    truth = pyarrow.parquet.read_table(folder / "truth.parquet").to_pylist()
    return folder, counts, read_tars(folder / "shards"), truth


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    counts = render_tasks(PLAN, folder)
    return folder, counts, {t: read_tars(task_folder(folder, t) / "test") for t in TASKS}


def test_each_kind_is_planted_as_often_as_the_plan_says(pool):
    _, counts, samples, truth = pool
    kinds = Counter(row["kind"] for row in truth)
    # Of 701 rows: floors of 70.1, 105.15 and 140.2.
    assert kinds == {"original": 526, "exact": 70, "reencoded": 105}
    assert sum(row["caption_swapped"] for row in truth) == 140
    assert counts["swapped"] == 140
    assert len(samples) == counts["pairs"] == 701
    assert len({(r["face"], r["character"]) for r in truth if r["kind"] == "original"}) == 526


def test_a_share_is_the_floor_of_the_exact_decimal_product():
    assert int(0.29 * 100) == 28  # what floats would plant
    assert GlyphPlan(num_pairs=100).count(0.29) == 29


def test_shards_are_named_and_filled_as_img2dataset_does(pool):
    folder, counts, samples, truth = pool
    assert sorted(p.name for p in (folder / "shards").iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]
    assert counts["shards"] == 3
    assert list(samples) == [row["uid"] for row in truth]
    assert list(samples)[299:302] == ["000000299", "000010000", "000010001"]
    for key, sample in samples.items():
        fields = json.loads(sample["json"])
        assert fields["key"] == fields["uid"] == key
        assert fields["caption"] == sample["txt"].decode()
        assert not {"kind", "source_uid", "caption_swapped", "true_caption"} & set(fields)


def test_exact_copies_have_their_originals_bytes_and_stand_elsewhere(pool):
    _, _, samples, truth = pool
    rows = {row["uid"]: row for row in truth}
    place = {uid: i for i, uid in enumerate(rows)}
    copies = [row for row in truth if row["kind"] == "exact"]
    for copy in copies:
        source = rows[copy["source_uid"]]
        assert source["kind"] == "original"
        assert samples[copy["uid"]]["png"] == samples[source["uid"]]["png"]
        assert copy["same_picture"] == source["same_picture"]
        assert copy["true_caption"] == source["true_caption"]
    assert np.median([abs(place[c["uid"]] - place[c["source_uid"]]) for c in copies]) > 100


def test_reencoded_copies_differ_in_bytes_and_look_the_same(pool):
    _, _, samples, truth = pool
    copies = [row for row in truth if row["kind"] == "reencoded"]
    assert {e for c in copies for e in samples[c["uid"]]} == {"png", "jpg", "txt", "json"}
    originals = [row["uid"] for row in truth if row["kind"] == "original"]
    looks = np.stack([pixels(samples[uid]["png"]) for uid in originals])
    nearest_are_right = 0
    for copy in copies:
        content, source = image_of(samples[copy["uid"]]), samples[copy["source_uid"]]["png"]
        assert content != source
        assert np.abs(pixels(content) - pixels(source)).mean() < 25
        closest = np.abs(looks - pixels(content)).mean((1, 2)).argmin()
        nearest_are_right += (looks[closest] == pixels(source)).all()
    assert nearest_are_right > 0.9 * len(copies)


def test_a_swapped_caption_never_describes_what_the_picture_could_be(pool):
    _, _, samples, truth = pool
    alike = look_alikes(PLAN.image_size)
    told = {row["true_caption"]: row["character"] for row in truth}
    for row in truth:
        caption = samples[row["uid"]]["txt"].decode()
        if row["caption_swapped"]:
            assert told[caption] != row["character"]
            assert alike[told[caption]] != alike[row["character"]]
        else:
            assert caption == row["true_caption"]
    swapped = [row for row in truth if row["caption_swapped"]]
    # A permutation: the captions of the chosen rows, each as often as before.
    assert Counter(samples[row["uid"]]["txt"].decode() for row in swapped) == Counter(
        row["true_caption"] for row in swapped
    )


def test_captions_tell_the_name_and_the_face(pool):
    _, _, _, truth = pool
    for row in truth:
        assert unicodedata.name(chr(row["character"])).lower() in row["true_caption"]
        assert row["face"].lower() in row["true_caption"]


def test_the_same_picture_is_a_matter_of_pixels_and_the_same_character_of_code_points(pool):
    _, _, samples, truth = pool
    by_pixels = defaultdict(set)
    for row in truth:
        if row["kind"] == "original":
            by_pixels[pixels(samples[row["uid"]]["png"]).tobytes()].add(row["same_picture"])
    assert all(len(groups) == 1 for groups in by_pixels.values())
    assert len(by_pixels) == len({row["same_picture"] for row in truth})
    pairs = {(row["character"], row["same_character"]) for row in truth}
    assert len(pairs) == len({c for c, _ in pairs}) == len({group for _, group in pairs})


def test_latin_greek_and_cyrillic_a_are_one_picture():
    glyphs, _ = all_glyphs(PLAN.image_size)
    drawn = {g.character: g.picture for g in glyphs if g.face == "DejaVu Sans"}
    assert drawn[ord("A")] == drawn[ord("Α")] == drawn[ord("А")] != drawn[ord("a")]


def test_no_glyph_is_empty_or_touches_the_edge():
    _, pictures = all_glyphs(PLAN.image_size)
    size = PLAN.image_size
    grey = np.frombuffer(b"".join(pictures), np.uint8).reshape(-1, size, size)
    assert grey.any((1, 2)).all()
    frame = np.ones((size, size), bool)
    frame[1:-1, 1:-1] = False
    assert not grey[:, frame].any()


def test_no_test_picture_is_in_any_pool(tasks):
    _, _, samples = tasks
    _, pictures = all_glyphs(PLAN.image_size)
    whole_pool = {pictures[glyph.picture] for glyph in split_glyphs(PLAN).pool}
    for task in TASKS:
        shown = {pixels(s["png"]).astype(np.uint8).tobytes() for s in samples[task].values()}
        assert len(shown) == PLAN.task_pictures
        assert not shown & whole_pool


def test_held_out_faces_are_not_in_the_pool(pool):
    _, _, _, truth = pool
    assert len({row["face"] for row in truth}) > 10
    assert not {row["face"] for row in truth} & set(PLAN.held_out_faces)


def test_the_tests_do_not_depend_on_the_pool(tasks, tmp_path):
    folder, _, _ = tasks
    bare = GlyphPlan(
        num_pairs=30_000,
        exact_copies=0.0,
        reencoded_copies=0.0,
        swapped_captions=0.0,
        task_pictures=PLAN.task_pictures,
    )
    render_tasks(bare, tmp_path)
    assert all_bytes(tmp_path) == all_bytes(folder)


def test_labels_are_those_of_the_pictures(tasks):
    folder, counts, samples = tasks
    glyphs, pictures = all_glyphs(PLAN.image_size)
    characters = defaultdict(set)
    for glyph in glyphs:
        characters[pictures[glyph.picture]].add(glyph.character)
    assert counts == dict.fromkeys(TASKS, 400)
    for task in TASKS[:4]:
        names = (task_folder(folder, task) / "classnames.txt").read_text().splitlines()
        assert names == list(class_names(task))
        truth = base_letter if "letters" in task else script
        for key, sample in samples[task].items():
            drawn = characters[pixels(sample["png"]).astype(np.uint8).tobytes()]
            assert {truth(c) for c in drawn} - {None} == {names[int(sample["cls"])]}, key


def test_task_folders_are_laid_out_as_datacomps(tasks):
    folder, _, samples = tasks
    letters = folder / "wds_glyphs-letters_test"
    assert (letters / "test" / "nshards.txt").read_text() == "1"
    prompts = (letters / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert prompts == templates("glyphs/letters")
    assert "latin small letter q, dejavu sans" in [line.format(c="q") for line in prompts]
    assert next(iter(samples["glyphs/letters"])) == "s0000000"
    retrieval = folder / "wds_glyphs-retrieval_test"
    assert (retrieval / "dataset_type.txt").read_text() == "retrieval"
    captions = [s["txt"].decode() for s in samples["glyphs/retrieval"].values()]
    assert len(set(captions)) == len(captions) == 400
    assert all(any(f.lower() in c for f in PLAN.held_out_faces) for c in captions)


def test_classes_are_level(tasks):
    _, _, samples = tasks
    sizes = Counter(sample["cls"] for sample in samples["glyphs/letters"].values())
    # 400 over 26 letters: fifteen or sixteen each, as no letter has fewer to offer.
    assert set(sizes.values()) == {15, 16}


def test_one_plan_makes_one_sequence_of_bytes_and_another_seed_another(pool, tmp_path):
    folder, _, _, _ = pool
    render_pool(PLAN, tmp_path / "again")
    render_pool(dataclasses.replace(PLAN, seed=1), tmp_path / "other")
    assert all_bytes(tmp_path / "again") == all_bytes(folder)
    assert all_bytes(tmp_path / "other") != all_bytes(folder)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"num_pairs": 0}, "num_pairs=0: it must be from 1 to 1,000,000"),
        ({"swapped_captions": 1.5}, "swapped_captions=1.5: it must be from 0 to 1"),
        (
            {"exact_copies": 0.3, "reencoded_copies": 0.3},
            "reencoded_copies=0.3: it must be at most 0.2 beside exact_copies=0.3 (one copy each); lower one",
        ),
    ],
)
def test_a_field_out_of_range_is_named(fields, text):
    with pytest.raises(ConfigError) as error:
        GlyphPlan(**fields)
    assert str(error.value) == text


def test_errors_name_the_counts_and_the_way_out(pool, tmp_path):
    folder, _, _, _ = pool
    available = len(split_glyphs(PLAN).pool)
    with pytest.raises(ConfigError, match=f"needs 75,000 different glyphs: {available:,} are left .* Lower num"):
        render_pool(dataclasses.replace(PLAN, num_pairs=100_000), tmp_path)
    with pytest.raises(ConfigError, match=r"chooses 1 rows, 1 of which look the same.* Raise num"):
        render_pool(GlyphPlan(num_pairs=10, swapped_captions=0.1), tmp_path)
    with pytest.raises(ConfigError, match=r"no face. Did you mean 'DejaVu Sans Bold'"):
        render_pool(dataclasses.replace(PLAN, held_out_faces=("DejaVu Sans Bld",)), tmp_path)
    with pytest.raises(ConfigError, match=r"letters_shift has 0 pictures .* Lower task_pictures"):
        render_tasks(dataclasses.replace(PLAN, held_out_faces=()), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(StoreError, match=r"not empty. Delete it, or render into another folder"):
        render_pool(PLAN, folder)
