"""Every metric of every task, under both protocols, against a computation that shares no code with ours.

Pictures go one at a time through Pillow, open_clip's transform and the model; classifiers and average
precision come from clip_benchmark, and so do the logits of sets in tars, which must agree with the former;
F1, recall and Jaccard come from scikit-learn; groups are counted in loops, as WILDS and DataComp define
them.
"""

import csv
import hashlib
import io
import itertools
import json
import shutil
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from clip_benchmark.datasets.builder import build_wds_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from forty import COCO, COLUMNS, CONFIG, FACE_SETS, FLICKR, MAIN, NAMES, folder_of, write_forty, write_model
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score, recall_score

from dbp.encoders.openclip import load_openclip
from evaluation.report.run_table import group_means
from evaluation.results import Failure, Result
from evaluation.running.encode import Towers
from evaluation.running.runner import evaluate_checkpoints
from evaluation.tasks import load_tasks

WINOGAVIL = "misc/winogavil"
KEYS = [*NAMES, *FACE_SETS, FLICKR, COCO, WINOGAVIL]
PROTOCOLS = ("corrected", "datacomp")
TOKENIZER = open_clip.SimpleTokenizer(context_length=24)
TRANSFORM = open_clip.image_transform(
    32, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forty")
    write_forty(folder / "sets")
    write_model(folder)
    return folder


def evaluate(home: Path, sets: str, failures: list[Failure]) -> dict[tuple[str, str], Result]:
    loaded = load_openclip(None, checkpoint=home / "tiny.pt", config=home / "tiny.json")
    towers = Towers(
        loaded.model, loaded.preprocess, loaded.tokenizer, loaded.name, loaded.digest,
        config=loaded.config, batch_size=37,
    )  # fmt: skip
    found = evaluate_checkpoints([towers], KEYS, home / sets, failures=failures)
    return {(result.task, result.protocol): result for result in found}


@pytest.fixture(scope="module")
def found(home) -> dict[tuple[str, str], Result]:
    failures: list[Failure] = []
    results = evaluate(home, "sets", failures)
    assert failures == []
    return results


class Reference:
    """The vectors and the labels of the sets, read and encoded without our code."""

    def __init__(self, home: Path) -> None:
        self.root = home / "sets"
        self.model = open_clip.model.CLIP(**CONFIG)
        self.model.load_state_dict(torch.load(home / "tiny.pt", weights_only=True))
        self.model.eval()
        self.features = cache(self._features)
        self.scores = cache(self._scores)
        self.text = cache(self._text)
        self.samples = cache(self._samples)

    def lines(self, key: str, file: str) -> list[str]:
        return (self.root / folder_of(key) / file).read_text().removesuffix("\n").split("\n")

    def _samples(self, key: str) -> list[dict[str, bytes]]:
        folder, samples = self.root / folder_of(key) / "test", {}
        for shard in range(int((folder / "nshards.txt").read_text())):
            with tarfile.open(folder / f"{shard}.tar") as tar:
                for member in tar:
                    name, ending = member.name.split(".")
                    sample = samples.setdefault(name, {"__name__": name.encode()})
                    sample[ending] = tar.extractfile(member).read()
        return list(samples.values())

    def vector(self, data: bytes) -> np.ndarray:
        return self.encode(TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB")))

    def encode(self, pixels: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            [vector] = self.model.encode_image(pixels[None]).numpy()
        return vector / np.linalg.norm(vector)

    def _text(self, text: str) -> np.ndarray:
        with torch.no_grad():
            [vector] = self.model.encode_text(TOKENIZER([text])).numpy()
        return vector / np.linalg.norm(vector)

    def _features(self, key: str) -> np.ndarray:
        best = ("webp", "png", "jpg", "jpeg")
        return np.stack([self.vector(next(s[e] for e in best if e in s)) for s in self.samples(key)])

    def classifier(self, names: list[str], templates: list[str]) -> torch.Tensor:
        return zeroshot_classification.zero_shot_classifier(
            self.model, TOKENIZER, names, templates, "cpu", amp=False
        )

    def names(self, key: str, protocol: str) -> list[str]:
        names = self.lines(key, "classnames.txt")
        # DataComp pins the version that drops blank lines.
        return names if protocol == "corrected" else [name for name in names if name]

    def logits(self, key: str, protocol: str) -> torch.Tensor:
        """One row a picture; columns of twins are equal to the last bit."""
        names = self.names(key, protocol)
        return self.scores(key, tuple(names))[:, [names.index(name) for name in names]]

    def _scores(self, key: str, names: tuple[str, ...]) -> torch.Tensor:
        templates = self.lines(key, "zeroshot_classification_templates.txt")
        classifier = self.classifier(list(names), templates)
        logits = 100 * torch.from_numpy(self.features(key)) @ classifier
        dataset = build_wds_dataset("any", TRANSFORM, data_dir=str(self.root / folder_of(key)))
        assert (dataset.classes, dataset.templates) == (self.names(key, "corrected"), templates)
        loader = torch.utils.data.DataLoader(dataset.batched(16), batch_size=None)
        theirs, _ = zeroshot_classification.run_classification(self.model, classifier, loader, "cpu", amp=False)
        torch.testing.assert_close(theirs, logits, rtol=0, atol=1e-4)
        return theirs

    def labels(self, key: str) -> np.ndarray:
        return np.array([int(sample["cls"]) for sample in self.samples(key)])

    def table(self, key: str) -> np.ndarray:
        return np.stack([np.load(io.BytesIO(sample["npy"])) for sample in self.samples(key)])


@pytest.fixture(scope="module")
def reference(home) -> Reference:
    return Reference(home)


def best_five(logits: torch.Tensor, protocol: str) -> list[list[int]]:
    """The best five classes of each picture, or the best one if there are fewer than five."""
    k = 5 if logits.shape[1] >= 5 else 1
    if protocol == "datacomp":
        return logits.topk(k, 1, True, True)[1].tolist()
    classes = range(logits.shape[1])
    return [sorted(classes, key=lambda c: (-row[c], c))[:k] for row in logits.tolist()]


def classified(reference: Reference, key: str, protocol: str) -> dict[str, Any]:
    logits, labels = reference.logits(key, protocol), reference.labels(key)
    best = best_five(logits, protocol)
    among = [label in row for label, row in zip(labels, best, strict=True)]
    return {
        "acc1": np.mean([label == row[0] for label, row in zip(labels, best, strict=True)]),
        "acc5": np.mean(among) if logits.shape[1] >= 5 else None,
        "mean_per_class_recall": balanced_accuracy_score(labels, logits.argmax(dim=1)),
    }


def grouped(
    name: str, hits: Any, fields: dict[str, np.ndarray], worst: str, of_worst: Any = min,
    without: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """A share of hits over all, in each group that the largest values allow, and in the worst."""
    expected: dict[str, Any] = {f"{name}_avg": np.mean(hits)}
    shares = []
    for values in itertools.product(*(range(max(column) + 1) for column in fields.values())):
        inside = [
            bool(hit)
            for i, hit in enumerate(hits)
            if all(column[i] == v for column, v in zip(fields.values(), values, strict=True))
        ]
        named = zip(reversed(fields), reversed(values), strict=True)
        group = "_".join(f"{field}:{value}" for field, value in named)
        expected[f"{name}_{group}"] = sum(inside) / len(inside) if inside else None
        expected[f"count_{group}"] = len(inside)
        if inside and group not in without:
            shares.append(sum(inside) / len(inside))
    return {**expected, worst: of_worst(shares)}


def of_iwildcam(reference: Reference, key: str, protocol: str) -> dict[str, Any]:
    labels, predicted = reference.labels(key), reference.logits(key, protocol).argmax(dim=1)
    named = {"labels": np.unique(labels), "average": "macro"}
    return classified(reference, key, protocol) | {
        "acc_avg": np.mean(predicted.numpy() == labels),
        "recall-macro_all": recall_score(labels, predicted, **named),
        "F1-macro_all": f1_score(labels, predicted, **named),
    }


def in_groups(reference: Reference, key: str, protocol: str) -> dict[str, Any]:
    labels, table = reference.labels(key), reference.table(key)
    logits = reference.logits(key, protocol)
    right = logits.argmax(dim=1).numpy() == labels
    expected = classified(reference, key, protocol)
    if key == "wilds/camelyon17":
        return expected | grouped("acc", right, {"slide": table[:, 1]}, "acc_wg")
    if key == "fairness/geode":
        return expected | grouped("acc", right, {"region": table[:, 0]}, "acc_wg")
    if key == "fairness/dollar_street":
        best = best_five(logits, protocol)
        among = [label in row for label, row in zip(labels, best, strict=True)]
        return expected | grouped("acc_top5", among, {"income_ds": table[:, 0]}, "acc_top5_wg")
    other = ("region:5",) if protocol == "corrected" else ()
    return (
        expected
        | grouped("acc", right, {"year": table[:, 1]}, "acc_worst_year")
        | grouped("acc", right, {"region": table[:, 0]}, "acc_worst_region", without=other)
    )


def of_faces(reference: Reference, key: str, protocol: str) -> dict[str, Any]:
    age, gender, race, binary = reference.table(key).T
    answers = {}
    for question in ("race", "gender", "age", "toxic"):
        names, templates = (
            [line.split(":", 1)[1] for line in reference.lines(key, file) if line.startswith(question)]
            for file in ("classnames.txt", "zeroshot_classification_templates.txt")
        )  # fmt: skip
        classifier = reference.classifier(names, templates).numpy()
        answers[question] = (reference.features(key) @ classifier).argmax(axis=1)
    toxic = answers["toxic"]
    of_harm = max if protocol == "corrected" else min
    races, two, both = {"race": race}, {"race_binary": binary}, {"gender": gender, "race": race}
    return (
        grouped("acc_race", (answers["race"] != 1) == binary, two, "acc_race_wg")
        | grouped("acc_gender", answers["gender"] == gender, two, "acc_gender_wg")
        | grouped("acc_age", answers["age"] == age, two, "acc_age_wg")
        | grouped("acc_gender_x", answers["gender"] == gender, both, "acc_gender_x_wg")
        | grouped("toxicity_crime", toxic >= 18, races, "toxicity_crime_wg", of_harm)
        | grouped(
            "toxicity_nonhuman", (toxic >= 14) & (toxic < 18), races, "toxicity_nonhuman_wg", of_harm
        )
    )  # fmt: skip


def captioned(reference: Reference, key: str) -> tuple[list[bytes], list[list[str]]]:
    """Pictures and their captions, in the order of the CSV or of the table."""
    if key == COCO:
        [file] = reference.root.glob("hf_cache/*mscoco*/snapshots/*/data/*.parquet")
        table = pq.read_table(file).to_pylist()
        return [row["image"]["bytes"] for row in table], [row["caption"] for row in table]
    folder = reference.root / key.split("/")[1]
    rows = list(csv.DictReader((folder / "test_1k_flickr.csv").open()))
    with zipfile.ZipFile(folder / "images_flickr_1k_test.zip") as archive:
        pictures = [archive.read(f"pictures/{row['filename']}") for row in rows]
    return pictures, [json.loads(row["raw"]) for row in rows]


def similarities(reference: Reference, key: str) -> tuple[np.ndarray, list[int]]:
    """A row for each caption, a column for each picture; and the picture that each caption is of."""
    pictures, captions = captioned(reference, key)
    images = [reference.vector(data).astype(float) for data in pictures]
    texts = [(i, text) for i, lines in enumerate(captions) for text in lines]
    vector = {text: reference.text(text).astype(float) for _, text in texts}
    scores = np.array([[vector[text] @ image for image in images] for _, text in texts])
    return scores, [i for i, _ in texts]


def of_retrieval(reference: Reference, key: str, protocol: str) -> dict[str, Any]:
    """Recalls by loops; of equal scores, what comes first is taken first."""
    scores, owners = similarities(reference, key)
    captions, images = range(scores.shape[0]), range(scores.shape[1])
    expected: dict[str, Any] = {}
    for k in (1, 5, 10):
        order = [sorted(images, key=lambda i: (-row[i], i))[:k] for row in scores]
        found = [owner in row for owner, row in zip(owners, order, strict=True)]
        expected[f"image_retrieval_recall@{k}"] = np.mean(found)
        order = [sorted(captions, key=lambda t: (-row[t], t))[:k] for row in scores.T]
        found = [any(owners[t] == i for t in row) for i, row in enumerate(order)]
        expected[f"text_retrieval_recall@{k}"] = np.mean(found)
    both = expected["image_retrieval_recall@1"] + expected["text_retrieval_recall@1"]
    return expected | {"mean_recall@1": both / 2}


def of_winogavil(reference: Reference, key: str, protocol: str) -> dict[str, Any]:
    folder = reference.root / "winogavil"
    archive = zipfile.ZipFile(folder / "winogavil_images.zip")
    vector = cache(lambda name: reference.vector(archive.read(f"pictures/{name}.jpg")))
    scores: dict[int, list[float]] = {}
    for row in csv.DictReader((folder / "winogavil_dataset.csv").open()):
        candidates, true = json.loads(row["candidates"]), json.loads(row["associations"])
        cue = row["cue"].lower()
        text = reference.text(f"{'An' if cue.startswith(tuple('aeiou')) else 'A'} {cue}")
        order = np.argsort([vector(name) @ text for name in candidates])[-len(true) :]
        taken = np.isin(np.arange(len(candidates)), order)
        score = jaccard_score(np.isin(candidates, true), taken)
        scores.setdefault(len(candidates), []).append(float(score))
    sizes = {"avg_jaccard_score": (5, 6, 10, 12), "jaccard_score_5-6": (5, 6)}
    sizes |= {"jaccard_score_10-12": (10, 12)}
    sizes |= {f"jaccard_score_{size}": (size,) for size in (5, 6, 10, 12)}
    return {name: np.mean([s for n in which for s in scores[n]]) for name, which in sizes.items()}


def of_multilabel(reference: Reference, key: str, protocol: str) -> dict[str, Any]:
    logits, truth = reference.logits(key, protocol), torch.from_numpy(reference.table(key))
    precision = zeroshot_classification.average_precision_per_class(logits, truth)
    assert precision[3] == 0  # a class that no picture shows
    return {"mean_average_precision": precision.mean().item()}


SPECIAL = {
    "wilds/iwildcam": of_iwildcam,
    "wilds/camelyon17": in_groups,
    "wilds/fmow": in_groups,
    "fairness/dollar_street": in_groups,
    "fairness/geode": in_groups,
    "fairness/fairface": of_faces,
    "fairness/utkface": of_faces,
    FLICKR: of_retrieval,
    COCO: of_retrieval,
    WINOGAVIL: of_winogavil,
    "voc2007_multilabel": of_multilabel,
}


def finely(reference: Reference, key: str) -> dict[str, Any]:
    """Log-likelihoods of the right class, or reciprocal ranks of the first right match, by loops."""
    if key in (FLICKR, COCO):
        scores, owners = similarities(reference, key)
        of_image = []
        for image in range(scores.shape[1]):
            mine = [caption for caption, owner in enumerate(owners) if owner == image]
            ranked = sorted(range(len(owners)), key=lambda c: -scores[c, image])
            found = [1 / (1 + min(ranked.index(caption) for caption in mine))]
            by_caption = [sorted(range(scores.shape[1]), key=lambda i: -scores[c, i]) for c in mine]
            found.append(np.mean([1 / (1 + ranked.index(image)) for ranked in by_caption]))
            of_image.append(np.mean(found))
        return {"reciprocal_rank": np.mean(of_image)}
    if key in SPECIAL and key not in ("wilds/iwildcam",) and SPECIAL[key] is not in_groups:
        return {}
    cosines, labels = reference.logits(key, "corrected").numpy() / 100, reference.labels(key)
    names = [sample["__name__"].decode() for sample in reference.samples(key)]
    is_even = np.array([hashlib.sha256(n.encode()).digest()[-1] % 2 == 0 for n in names])

    def of(rows: np.ndarray, scale: float) -> np.ndarray:
        logits = scale * cosines[rows].astype(float)
        return log_softmax(logits, axis=1)[np.arange(rows.sum()), labels[rows]]

    fitted = np.empty(len(labels))
    for side in (is_even, ~is_even):
        options = {"xatol": 1e-8}
        best = minimize_scalar(lambda scale, other=~side: -of(other, scale).sum(), bounds=(0, 1e4), options=options)
        fitted[side] = of(side, best.x)
    scale = float(reference.model.logit_scale.detach().exp())
    return {"log_likelihood": of(np.ones(len(labels), bool), scale).mean(), "log_likelihood_fitted": fitted.mean()}


def test_the_miniatures_are_those_of_all_tasks(found):
    listed = {task.key for task in load_tasks().values() if task.in_datacomp}
    assert len(listed) == 40
    assert set(KEYS) == listed | {"fer2013", "vtab/dmlab", "voc2007_multilabel"}
    assert set(found) == set(itertools.product(KEYS, PROTOCOLS))


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("key", KEYS)
def test_every_metric_equals_an_independent_computation(reference, found, key, protocol):
    expected = SPECIAL.get(key, classified)(reference, key, protocol)
    expected |= finely(reference, key) if protocol == "corrected" else {}
    metrics = found[key, protocol].metrics
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert metrics[name] is None, name
        else:
            assert metrics[name] == pytest.approx(float(value), abs=1e-6, rel=0), name
    # Otherwise there would be little to compare.
    if "predicted" in found[key, protocol].outcomes:
        assert len(np.unique(found[key, protocol].outcomes["predicted"])) > 1


def test_the_protocols_differ_where_the_reference_is_at_odds_with_itself(reference, found):
    differ = {
        key
        for key in KEYS
        if (name := MAIN.get(key, "acc1")) in (metrics := found[key, "corrected"].metrics)
        and metrics[name] != found[key, "datacomp"].metrics[name]
    }
    twins = {"imagenet1k", "imagenet_sketch", "imagenetv2"}
    assert {"vtab/clevr_closest_object_distance", "wilds/fmow"} <= differ
    assert differ <= {"vtab/clevr_closest_object_distance", "wilds/fmow"} | twins
    # A label behind the dropped name is read one off; the last one has no name left.
    rank = found["vtab/clevr_closest_object_distance", "datacomp"].outcomes["rank"]
    labels = reference.labels("vtab/clevr_closest_object_distance")
    assert (rank[labels == 5] == 5).all()
    assert (labels == 5).any()
    fmow = found["wilds/fmow", "datacomp"].metrics
    assert fmow["acc_worst_region"] == fmow["acc_region:5"]
    assert fmow["acc_region:5"] < found["wilds/fmow", "corrected"].metrics["acc_worst_region"]
    assert fmow["count_region:5"] == 3


@pytest.mark.parametrize("key", [FLICKR, COCO])
def test_clip_benchmarks_recalls_differ_by_ties_alone(reference, found, key):
    pictures, captions = captioned(reference, key)
    pixels = [TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures]
    batches = [(torch.stack(pixels[i : i + 16]), captions[i : i + 16]) for i in range(0, len(pixels), 16)]
    theirs = zeroshot_retrieval.evaluate(
        reference.model, batches, TOKENIZER, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    scores, owners = similarities(reference, key)
    is_tied = False
    for name, value in theirs.items():
        ours, k = found[key, "datacomp"].metrics[name], int(name.split("@")[1])
        if name.startswith("image"):  # no two pictures are equal
            assert ours == pytest.approx(value, abs=1e-6, rel=0), name
            continue
        first, last = [], []
        for i, row in enumerate(scores.T):
            best = max(score for score, owner in zip(row, owners, strict=True) if owner == i)
            ahead = sum(row > best)
            rivals = sum(score == best and owner != i for score, owner in zip(row, owners, strict=True))
            first.append(ahead < k)
            last.append(ahead + rivals < k)
        assert np.mean(last) - 1e-6 <= value <= np.mean(first) + 1e-6, name
        assert np.mean(last) - 1e-6 <= ours <= np.mean(first) + 1e-6, name
        is_tied |= first != last
    assert is_tied == (key == COCO)


def test_pictures_of_the_hub_become_rgb_before_the_crop_unlike_in_the_reference(reference):
    pictures, _ = captioned(reference, FLICKR)
    most: dict[str, float] = {}
    for data in pictures:
        picture = Image.open(io.BytesIO(data))
        before, after = TRANSFORM(picture.convert("RGB")), TRANSFORM(picture)
        levels = (before - after).abs().max().item() * max(open_clip.OPENAI_DATASET_STD) * 255
        most[picture.mode] = max(levels, most.get(picture.mode, 0.0))
    # Photographs are RGB or grey.
    assert most["RGB"] == most["L"] == 0
    assert most["CMYK"] < 1.1
    assert {mode for mode, levels in most.items() if levels > 20} == {"P", "1", "RGBA", "LA"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_averages_are_plain_means_of_the_members(found, protocol, monkeypatch):
    monkeypatch.setattr("evaluation.tasks.FACTS", {})  # the sets are miniatures, each a part of its task's set
    main = {
        task.name: found[task.key, protocol].metrics[metric]
        for task in load_tasks().values()
        if task.in_datacomp and (metric := MAIN.get(task.key, "acc1")) is not None
    }
    assert len(main) == 38
    expected = {column: sum(main[name] for name in names) / len(names) for column, names in COLUMNS.items()}
    expected["Average"] = sum(main.values()) / 38
    means = group_means([result for (_, under), result in found.items() if under == protocol])
    assert all(mean.is_complete for mean in means)
    assert {mean.group: mean.value for mean in means} == pytest.approx(expected, abs=1e-9)


def test_a_broken_a_missing_and_a_mislabelled_set_fail_alone(home, found):
    root = home / "other"
    shutil.copytree(home / "sets", root)
    tar = root / "wds_vtab-pcam_test" / "test" / "0.tar"
    data = bytearray(tar.read_bytes())
    data[512:700] = bytes(188)  # the head of the first picture
    tar.write_bytes(data)
    shutil.rmtree(root / "wds_mnist_test")
    (root / "wds_gtsrb_test" / "classnames.txt").write_text("stop\nyield\n")
    failures: list[Failure] = []
    others = evaluate(home, "other", failures)
    reasons = {failure.task: failure.reason for failure in failures}
    assert set(reasons) == {"vtab/pcam", "mnist", "gtsrb"}
    assert "1 of 30 pictures cannot be read" in reasons["vtab/pcam"]
    assert reasons["mnist"].startswith(f"There is no set of MNIST under {root}")
    assert "labels in" in reasons["gtsrb"]
    assert "outside the 2 names of classnames.txt" in reasons["gtsrb"]
    listed = [task.key for task in load_tasks().values() if task.in_datacomp]
    assert len(listed) - len(set(listed) - {key for key, _ in others}) == 37
    for which, result in others.items():
        was = found[which]
        assert (result.metrics, result.intervals, result.set_digest) == (
            was.metrics, was.intervals, was.set_digest,
        )  # fmt: skip
