"""`dbp compare` on made-up results, and classes beside their training pairs."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniature import noise_png
from scipy.stats import binomtest, spearmanr

from dbp.__main__ import main as dbp
from dbp.data.keep_list import KeepList
from dbp.engine.store import Store
from dbp.errors import ConfigError, StoreError, WorldError
from dbp.pools.glyph_tasks import SCRIPTS
from evaluation.kinds import retrieval
from evaluation.metrics import zero_shot
from evaluation.report.concepts import (
    class_recalls,
    concepts_of_runs,
    count_labelled,
    count_named,
    glyph_labels,
    join,
)
from evaluation.results import Result, load_results, save_results
from evaluation.suites import groups
from evaluation.verbs.compare import main

RETRIEVAL = "retrieval/flickr_1k_test_image_text_retrieval"


def result(task, outcomes, metrics, checkpoint="a" * 64, **changed):
    about = {
        "task": task, "protocol": "corrected", "metrics": metrics, "intervals": {},
        "num_samples": len(outcomes.get("label", outcomes.get("text_rank", ()))), "limit": None,
        "checkpoint": checkpoint, "model": "m", "samples_seen": 1_000, "precision": "fp32",
        "versions": {}, "set_digest": task, "seed": 0, "outcomes": outcomes,
    }  # fmt: skip
    return Result(**(about | changed))


def classified(task, right, num_classes=5, **changed):
    """A result of given hits, class by class in turn; a miss is taken for the next class."""
    labels = np.arange(len(right)) % num_classes
    predicted = np.where(right, labels, (labels + 1) % num_classes)
    outcomes = {"label": labels, "predicted": predicted, "rank": np.where(right, 0, 3)}
    return result(task, outcomes, zero_shot.metrics(outcomes, num_classes), **changed)


def chance(rate, seed, n=400):
    return np.random.default_rng(seed).random(n) < rate


def write(path, *results):
    save_results(path, results)
    return str(path)


def compare(capsys, *words):
    """Run the verb; return its exit status and what it printed."""
    status = main("compare", [str(word) for word in words])
    return status, capsys.readouterr().out


def test_a_planted_difference_is_called_better_and_an_equal_task_is_not_told(tmp_path, capsys):
    base, same = chance(0.5, 0), chance(0.5, 1)
    first = write(tmp_path / "a.jsonl", classified("mnist", base), classified("cifar10", same))
    better = base | chance(0.3, 2)
    second = write(
        tmp_path / "b.jsonl",
        classified("mnist", better, checkpoint="b" * 64),
        classified("cifar10", same, checkpoint="b" * 64),
    )
    status, out = compare(capsys, first, second)
    assert status == 0
    lines = {line.split("  ")[0]: line for line in out.splitlines() if line}
    assert lines["MNIST"].endswith("better")
    assert f"{100 * (better.mean() - base.mean()):+.1f}" in lines["MNIST"]
    assert lines["CIFAR-10"].endswith("cannot tell")
    assert lines["Average (INCOMPLETE)"].split()[2:6] == ["mean", "of", "2", "of"]
    last = out.strip().splitlines()[-1]
    assert "better in 1, worse in 0, cannot tell in 1 of 2 tests of tasks" in last
    assert "differ; one seed: cannot tell about the methods" in last
    status, out = compare(capsys, second, first)
    assert "better in 0, worse in 1" in out
    _, out = compare(capsys, first, first)
    assert "These two checkpoints cannot be told apart." in out


def test_everything_is_in_the_json_with_exact_p_values_and_holm_over_tasks(tmp_path, capsys):
    keys = ("mnist", "cifar10", "stl10")
    hits = {key: (chance(0.5, i), chance(0.5 + 0.06 * i, 9 + i)) for i, key in enumerate(keys)}
    first, second = (
        write(tmp_path / name, *(classified(k, hits[k][i], checkpoint=name * 9) for k in keys))
        for i, name in enumerate(("first", "second"))
    )
    compare(capsys, first, second, f"json={tmp_path / 'out.json'}")
    rows = json.loads((tmp_path / "out.json").read_text())["comparisons"][0]["rows"]
    by_task = {row["task"]: row for row in rows if row["task"]}
    naive = []
    for key, (a, b) in hits.items():
        gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
        naive.append((binomtest(gained, gained + lost).pvalue, key))
        assert by_task[key]["p"] == pytest.approx(naive[-1][0])
        low, high = by_task[key]["interval"]
        error = np.sqrt(((b.astype(float) - a).var()) / len(a))
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.12)
        assert low < by_task[key]["difference"] < high
    largest = 0.0
    for rank, (p, key) in enumerate(sorted(naive)):
        largest = max(largest, (3 - rank) * p)
        assert by_task[key]["adjusted_p"] == pytest.approx(min(largest, 1))
    mean = next(row for row in rows if row["task"] is None)
    differences = [by_task[key]["difference"] for key in keys]
    assert mean["difference"] == pytest.approx(np.mean(differences))
    errors = [np.square((b.astype(float) - a).std()) / len(a) for a, b in hits.values()]
    width = 2 * 1.96 * np.sqrt(sum(errors)) / 3
    assert mean["interval"][1] - mean["interval"][0] == pytest.approx(width, rel=0.12)


def test_what_cannot_be_compared_is_refused_with_the_reason_and_the_rest_goes_on(tmp_path, capsys):
    right = chance(0.5, 0)
    keys = ("mnist", "cifar10", "stl10", "gtsrb", "food101", "cars", "country211")
    mine = [classified(key, right) for key in keys]
    shifted = classified("food101", right)
    shifted.outcomes["label"] = shifted.outcomes["label"][::-1]  # type: ignore[index]
    theirs = [
        classified("mnist", right, set_digest="another"),
        classified("cifar10", right, precision="bf16"),
        classified("stl10", right, limit=400),
        classified("gtsrb", right, protocol="datacomp"),
        shifted,
        classified("cars", right),
    ]
    first, second = write(tmp_path / "a.jsonl", *mine), write(tmp_path / "b.jsonl", *theirs)
    for file in (tmp_path / "b.outcomes").glob("cars-*"):
        file.unlink()
    write(tmp_path / "b.jsonl", classified("country211", right))
    status, out = compare(capsys, first, second)
    assert status == 0
    refused = [line for line in out.splitlines() if line.startswith("not compared: ")]
    assert [line.split(": ", 2)[1:] for line in refused] == [
        ["MNIST", "the sets (another version, or another choice of pictures) differ: mnist and another"],
        ["CIFAR-10", "the precisions differ: fp32 and bf16"],
        ["STL-10", "the limits differ: none and 400"],
        ["GTSRB", "only the first has it"],
        ["Food-101", "the samples are not the same: their outcomes differ in label"],
        ["Stanford Cars", "the outcomes of its samples are not beside the results file"],
    ]  # fmt: skip
    assert "Country211" in out
    assert "of 1 tests of tasks" in out
    nothing = write(tmp_path / "c.jsonl", classified("mnist", right, set_digest="another"))
    assert compare(capsys, first, nothing)[0] == 1


def test_of_several_limits_the_one_that_both_have_is_compared(tmp_path, capsys):
    few, all_ = chance(0.5, 0, n=50), chance(0.5, 1)
    first = write(tmp_path / "a.jsonl", classified("mnist", few, limit=50), classified("mnist", all_))
    second = write(tmp_path / "b.jsonl", classified("mnist", few, limit=50))
    assert f"{100 * few.mean():.1f}" in compare(capsys, first, second)[1]
    write(tmp_path / "b.jsonl", classified("mnist", all_))
    line = next(ln for ln in compare(capsys, first, second)[1].splitlines() if ln[:5] == "MNIST")
    assert line.split()[2:4] == [f"{100 * all_.mean():.1f}"] * 2


def test_a_file_with_several_checkpoints_is_compared_with_the_first_one_by_one(tmp_path, capsys):
    base = chance(0.5, 0)
    many = write(
        tmp_path / "all.jsonl",
        *(classified("mnist", base | chance(0.01 * i**2, 5), checkpoint=str(i) * 64) for i in range(4)),
    )
    _, alone = compare(capsys, many, f"json={tmp_path / 'alone.json'}")
    first = write(tmp_path / "one.jsonl", classified("mnist", base, checkpoint="0" * 64))
    compare(capsys, first, many, f"json={tmp_path / 'both.json'}")
    alone, both = (json.loads((tmp_path / f"{name}.json").read_text())["comparisons"] for name in ("alone", "both"))
    assert len(alone) == 3
    assert len(both) == 4
    assert both[0]["rows"][0]["p"] == 1
    rows = [one["rows"][0] for one in alone]
    # One family: the smallest of three p-values is multiplied by three.
    assert rows[2]["adjusted_p"] == pytest.approx(3 * rows[2]["p"])
    assert "cannot tell" in {row["verdict"] for row in rows}
    with pytest.raises(ConfigError, match=r"holds 4 checkpoint\(s\): 000000000000, 111111111111"):
        main("compare", [many, first])
    with pytest.raises(ConfigError, match="given alone must hold two or more"):
        main("compare", [first])


def test_metrics_that_are_no_plain_share_are_tested_by_exchanges(tmp_path, capsys):
    generator = np.random.default_rng(3)
    owner = np.repeat(np.arange(200), 5)
    sides = []
    for rate, name in ((0.4, "a"), (0.55, "b")):
        outcomes = {
            "text_rank": np.where(generator.random(200) < rate, 0, 20),
            "image_rank": np.where(generator.random(1_000) < rate, 0, 20),
            "caption_picture": owner,
        }
        values = retrieval.metrics(outcomes)
        sides.append(write(tmp_path / name, result(RETRIEVAL, outcomes, values, checkpoint=name)))
    compare(capsys, *sides, "metrics=all", f"json={tmp_path / 'out.json'}")
    rows = json.loads((tmp_path / "out.json").read_text())["comparisons"][0]["rows"]
    p = {row["metric"]: row for row in rows}
    assert set(p) == set(values)
    assert p["mean_recall@1"]["verdict"] == "better"
    # 7 tests: of 1,999 exchanges none is as far as what was planted.
    assert p["mean_recall@1"]["p"] == 1 / 2_000
    assert p["mean_recall@1"]["adjusted_p"] == pytest.approx(7 / 2_000)


def test_more_harm_is_worse(tmp_path, capsys):
    # A measure of harm that some kind of task may report, here over what every kind has.
    from evaluation.statistics.comparison import Paired
    from evaluation.statistics.contrast import Row

    up = Paired(0.1, 0.3, np.full(9, 0.2), np.zeros(9), 0.001)
    assert Row("FairFace", "toxicity_crime_avg", up, "fairness/fairface", 0.01).verdict == "worse"
    assert Row("FairFace", "acc_race_avg", up, "fairness/fairface", 0.01).verdict == "better"
    assert Row("FairFace", "acc_race_avg", up, "fairness/fairface", 0.06).verdict == "cannot tell"


def test_a_whole_group_is_not_called_incomplete(tmp_path, capsys):
    members = groups()["ImageNet dist. shifts"]
    sides = [
        write(tmp_path / name, *(classified(k, chance(0.5, i), checkpoint=name) for k in members))
        for i, name in enumerate("ab")
    ]
    _, out = compare(capsys, *sides)
    line = next(line for line in out.splitlines() if line.startswith("ImageNet dist. shifts"))
    assert "INCOMPLETE" not in line
    assert "mean of 6 of 6" in line


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "takes FIRST SECOND, or one file"),
        (["{a}", "{a}", "{a}"], "takes FIRST SECOND, or one file"),
        (["{a}", "abc"], "abc is neither a results file, nor a folder with results.jsonl, nor a key"),
        (["{a}", "gone.jsonl"], "There is no results file gone.jsonl"),
        (["{a}", "{a}", "protocol=datacomp"], "has no result under protocol=datacomp; it has: corr"),
        (["{a}", "{a}", "protocol=corect"], "Did you mean 'corrected'?"),
        (["{a}", "{a}", "metrics=most"], "metrics"),
        (["{a}", "{a}", "seed=x"], "seed"),
        (["{a}", "{a}", "concepts=true"], "concepts=true needs the keys of two evaluations"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(tmp_path, words, error):
    file = write(tmp_path / "a.jsonl", classified("mnist", chance(0.5, 0)))
    with pytest.raises((ConfigError, WorldError), match=error.replace("?", r"\?")):
        main("compare", [word.format(a=file) for word in words])


# classes beside their training pairs


def test_names_are_found_as_whole_words_in_any_case():
    names = ["cat", "great white shark", "Cat", "", "t-shirt", "white", "nowhere"]
    captions = [
        "A CAT and another cat",
        "the great white shark!",
        "a great, white shark in a T-shirt",
        "concatenated; categories",
        "Great White\nSharks",
    ]
    kept = np.array([[True, True, False, True, True], [False, False, True, False, True]])
    counts = count_named(names, captions, kept)
    #                          cat  shark Cat  ""  tshirt white nowhere
    assert counts.tolist() == [[1, 2, 1, 0, 1, 3, 0], [1, 1, 1, 0, 0, 2, 0], [0, 1, 0, 0, 1, 2, 0]]
    with pytest.raises(ValueError, match="5 captions for 4 rows"):
        count_named(names, captions, kept[:, :4])


def test_labels_are_counted_in_the_pool_and_in_each_arm():
    labels = np.array([2, 0, -1, 2, 2])
    kept = np.array([[True, False, True, True, False]])
    assert count_labelled(labels, kept, 4).tolist() == [[1, 0, 3, 0], [0, 0, 2, 0]]


def test_recall_of_each_class_is_counted_by_hand():
    outcomes = {"label": np.array([0, 0, 2, 2, 2, 5]), "predicted": np.array([0, 1, 2, 2, 0, 4])}
    np.testing.assert_allclose(class_recalls(outcomes, 4 + 2), [0.5, np.nan, 2 / 3, np.nan, np.nan, 0])


def test_the_correlation_is_of_the_classes_that_have_pairs_and_pictures():
    generator = np.random.default_rng(0)
    pairs = np.r_[0, generator.integers(20, 40, size=30), 10]
    kept = np.stack([generator.binomial(pairs, 0.5), generator.binomial(pairs, 0.5)])
    first, second = generator.random((2, 32))
    first[-1] = np.nan
    found = join([f"c{i}" for i in range(32)], np.vstack([pairs[None], kept]), first, second)
    at = slice(1, 31)
    theirs = spearmanr((kept[1] - kept[0])[at] / pairs[at], (second - first)[at])
    assert (found.rho, found.p) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))
    assert found.num_ranked == 30
    assert "30 classes" in found.line()
    assert found.classes[-1].recall is None
    assert found.classes[1].pairs == pairs[1]
    flat = join(["a"] * 9, np.full((3, 9), 4), np.zeros(9), np.arange(9) / 9)
    assert flat.rho is None
    assert "no correlation" in flat.line()


def test_the_class_that_a_glyph_shows_is_known_unless_its_caption_was_swapped():
    drawn = [("a", False), ("É", False), ("Ω", False), ("b", True), ("→", False), ("B", False)]
    truth = pa.table({
        "character": [ord(character) for character, _ in drawn],
        "caption_swapped": [swapped for _, swapped in drawn],
    })  # fmt: skip
    assert glyph_labels(truth, "glyphs/letters").tolist() == [0, 4, -1, -1, -1, 1]
    names = [tuple(SCRIPTS)[n] if n >= 0 else "" for n in glyph_labels(truth, "glyphs/scripts")]
    assert names == ["latin letter", "latin letter", "greek letter", "", "arrow", "latin letter"]


LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Row i shows letter i % 26; every third letter has its caption swapped in rows 52 and on.
SHOWN = [LETTERS[i % 26] for i in range(104)]
SWAPPED = [i >= 52 and i % 26 % 3 == 0 for i in range(104)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two keep lists of a small pool, each with a made-up run and its evaluation."""
    home = tmp_path_factory.mktemp("runs")
    with tarfile.open(home / "00000.tar", "w") as tar:
        for i, letter in enumerate(SHOWN):
            said = SHOWN[(i + 1) % 26] if SWAPPED[i] else letter
            picture = noise_png(np.random.default_rng(i), 8)
            for extension, content in (("png", picture), ("txt", f"Letter {said}, bold".encode())):
                header = tarfile.TarInfo(f"{i:09d}.{extension}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    paths = [f"paths.store={home}/store", f"paths.runs={home}/runs"]
    curate = ["curate", "pool=webdataset", f"pool.shards={home}/00000.tar", "dedup=none"]
    for seed in (1, 2):
        chosen = ["select=uniform", "budget.num_kept=40", f"select.seed={seed}"]
        assert dbp([*curate, *chosen, *paths]) == 0
    store = Store(home / "store", home / "runs")
    keeps = [entry for entry in store.entries() if entry.stage == "select"]
    for number, keep in enumerate(keeps):
        train = manifest(store, "train", f"{number}1", {"keep": keep.key})
        folder = manifest(store, "evaluate", f"{number}2", {"checkpoint": train.name})
        right = np.random.default_rng(number).random(26 * 40) < 0.4
        write(folder / "results.jsonl", classified("glyphs/letters", right, 26, checkpoint=f"{number}"))
    return store


def manifest(store: Store, stage: str, key: str, inputs: dict[str, str]) -> Path:
    folder = store.runs / stage / (key * 12)
    folder.mkdir(parents=True)
    upstream = {name: {"key": key} for name, key in inputs.items()}
    about = {"key": folder.name, "stage": stage, "inputs": upstream, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(about))
    return folder


def masks(store):
    keys = [store.find(f"{n}1").manifest["inputs"]["keep"]["key"] for n in range(2)]
    return [KeepList.load(store.find(key).folder).mask for key in keys]


def counted(store, is_of):
    """Pairs of each letter and how many each keep list holds, one by one."""
    rows = {letter: [i for i in range(104) if is_of(i, letter)] for letter in LETTERS}
    return [(len(own), *(int(m[own].sum()) for m in masks(store))) for own in rows.values()]


def said(i, letter):
    return letter == (SHOWN[(i + 1) % 26] if SWAPPED[i] else SHOWN[i])


def test_runs_of_ours_are_compared_by_key_with_what_pruning_did_to_each_class(store, capsys, tmp_path):
    paths = [f"paths.store={store.root}", f"paths.runs={store.runs}"]
    out = tmp_path / "out.json"
    # One by the key of its evaluation, one by that of its training.
    assert main("compare", ["02" * 12, "11" * 12, f"json={out}", *paths]) == 0
    assert "glyphs/letters" not in capsys.readouterr().err
    concepts = json.loads(out.read_text())["comparisons"][0]["concepts"]["glyphs/letters"]
    rows = concepts["classes"]
    assert [(row["pairs"], *row["kept"]) for row in rows] == counted(store, said)
    shares = [(row["kept"][1] - row["kept"][0]) / row["pairs"] for row in rows]
    gains = [row["recall"][1] - row["recall"][0] for row in rows]
    theirs = spearmanr(np.round(shares, 9), np.round(gains, 9))
    assert (concepts["rho"], concepts["p"]) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert main("compare", ["02" * 12, "11" * 12, "concepts=false", f"json={out}", *paths]) == 0
    assert json.loads(out.read_text())["comparisons"][0]["concepts"] == {}


def test_planted_labels_stand_in_for_captions_where_they_are_known(store):
    entries = (store.find("02"), store.find("12"))
    results = tuple(load_results(entry.folder / "results.jsonl") for entry in entries)
    index = next(entry for entry in store.entries() if entry.stage == "index")
    render = manifest(store, "render", "9", {})
    characters = pa.table({"character": [ord(c) for c in SHOWN], "caption_swapped": SWAPPED})
    pq.write_table(characters, render / "truth.parquet")
    about = index.manifest | {"inputs": {"truth": {"key": render.name}}}
    (index.folder / "manifest.json").write_text(json.dumps(about))
    try:
        found = concepts_of_runs(store, entries, results)["glyphs/letters"]
    finally:
        (index.folder / "manifest.json").write_text(json.dumps(index.manifest))
    expected = counted(store, lambda i, letter: SHOWN[i] == letter and not SWAPPED[i])
    assert [(one.pairs, *one.kept) for one in found.classes] == expected


def test_large_pools_are_read_only_when_asked(store, monkeypatch):
    import evaluation.report.concepts

    entries = (store.find("02"), store.find("12"))
    results = tuple(load_results(entry.folder / "results.jsonl") for entry in entries)
    monkeypatch.setattr(evaluation.report.concepts, "MOST_CAPTIONS", 103)
    assert concepts_of_runs(store, entries, results) == {}
    assert concepts_of_runs(store, entries, results, limited=False) != {}


def test_a_run_whose_keep_list_is_not_known_is_told(store, capsys):
    folder = manifest(store, "evaluate", "77", {})
    write(folder / "results.jsonl", classified("mnist", chance(0.5, 0)))
    paths = [f"paths.store={store.root}", f"paths.runs={store.runs}"]
    words = ["77" * 12, "02" * 12, "concepts=true", *paths]
    with pytest.raises(StoreError, match="does not say which keep list its checkpoint was trained"):
        main("compare", words)
    write(folder / "results.jsonl", classified("glyphs/letters", chance(0.5, 0, 26 * 40), 26))
    words[2] = "concepts=auto"
    assert main("compare", words) == 0
    assert "no training pairs: 7777" in capsys.readouterr().out


def test_a_key_that_is_no_run_names_what_it_is(store):
    paths = [f"paths.store={store.root}", f"paths.runs={store.runs}"]
    pool = next(e.key for e in store.entries() if e.stage == "index")
    with pytest.raises(ConfigError, match=r"is the artifact of stage index, with 0 evaluations"):
        main("compare", [pool, "02" * 12, *paths])
