"""Our numbers against clip_benchmark's own functions, which read the same folders."""

import math

import numpy as np
import open_clip
import pytest
import torch
from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from evaluating import evaluate_one
from miniature import write_classification, write_retrieval
from sklearn.metrics import balanced_accuracy_score

from evaluation.metrics import fine
from evaluation.running.encode import Towers, encode_pictures
from evaluation.sets.data import open_set

TOKENIZER = open_clip.SimpleTokenizer(context_length=20)
PREPROCESS = open_clip.image_transform(32, is_train=False, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3)
# Twin names and a blank one, as in ImageNet and CLEVR Distance.
NAMES = ["red fox", "crane", "", "kite", "crane", "a (small) box", "café", "seven"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model = open_clip.model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
    with torch.no_grad():
        # Untrained towers give nearly one vector for everything; this spreads them out.
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_classification(
        root / "wds_cifar10_test", class_names=NAMES, num_samples=230, seed=0, samples_per_shard=80
    )
    write_classification(root / "wds_stl10_test", class_names=[*NAMES[3:], "night heron"], num_samples=150, seed=4)
    write_classification(root / "wds_vtab-pcam_test", class_names=["benign", "tumour"], num_samples=60, seed=1)
    generator = np.random.default_rng(2)
    words = ["a", "an", "red", "blue", "old", "tiny", "cat", "dog", "tree", "house", "near", "under"]
    captions = [
        [" ".join(generator.choice(words, size=6)) for _ in range(generator.integers(1, 6))] for _ in range(90)
    ]
    folder = root / "wds_retrieval-flickr_1k_test_image_text_retrieval_test"
    write_retrieval(folder, captions=captions, seed=3)
    (folder / "dataset_type.txt").write_text("retrieval")
    return root


def evaluate(model, root, suite, **settings):
    return evaluate_one(model, PREPROCESS, TOKENIZER, suite, root, **settings)


def reference_loader(folder, batch_size, collate=None):
    dataset = build_wds_dataset("any", PREPROCESS, data_dir=str(folder))
    if collate is None:
        return dataset, torch.utils.data.DataLoader(dataset.batched(batch_size), batch_size=None)
    return dataset, torch.utils.data.DataLoader(dataset, batch_size, collate_fn=collate)


def reference_logits(model, folder):
    dataset, loader = reference_loader(folder, 64)
    classifier = zeroshot_classification.zero_shot_classifier(
        model, TOKENIZER, dataset.classes, dataset.templates, "cpu", amp=False
    )
    logits, labels = zeroshot_classification.run_classification(model, classifier, loader, "cpu", amp=False)
    return classifier, logits, labels


def share(hits):
    return hits.double().mean().item()


@pytest.mark.parametrize("key", ["cifar10", "stl10", "vtab/pcam"])
def test_classification_equals_clip_benchmark(model, root, key):
    folder = root / f"wds_{key.replace('/', '-')}_test"
    _, logits, labels = reference_logits(model, folder)
    predicted = logits.argmax(dim=1)
    assert len(predicted.unique()) > 1
    [result] = evaluate(model, root, key, batch_size=37)
    assert result.metrics["acc1"] == pytest.approx(share(predicted == labels))
    assert result.metrics["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    if key == "stl10":
        # cifar10 here has twin names, whose ties topk breaks by luck.
        top = logits.topk(5, 1, True, True)[1]
        assert result.metrics["acc1"] == pytest.approx(share(top[:, 0] == labels))
        assert result.metrics["acc5"] == pytest.approx(share((top == labels[:, None]).any(dim=1)))
    elif key == "vtab/pcam":
        assert result.metrics["acc5"] is None
    np.testing.assert_array_equal(result.outcomes["predicted"], predicted)
    np.testing.assert_array_equal(result.outcomes["label"], labels)


def test_every_logit_equals_clip_benchmarks(model, root):
    from evaluation.metrics.zero_shot import build_classifier, compute_logits

    folder = root / "wds_cifar10_test"
    expected_classifier, expected, _ = reference_logits(model, folder)
    towers = Towers(model, PREPROCESS, TOKENIZER, batch_size=50, text_batch_size=7)
    opened = open_set(folder, kind="classification")
    classifier = build_classifier(opened.class_names, opened.templates, towers.encode_texts)
    np.testing.assert_allclose(classifier, expected_classifier, atol=1e-6)
    features = encode_pictures(towers, opened, range(len(opened)))
    np.testing.assert_allclose(compute_logits(features, classifier), expected, atol=1e-4)


def test_retrieval_equals_clip_benchmark(model, root):
    key = "retrieval/flickr_1k_test_image_text_retrieval"
    folder = root / "wds_retrieval-flickr_1k_test_image_text_retrieval_test"
    _, loader = reference_loader(folder, 32, image_captions_collate_fn)
    expected = zeroshot_retrieval.evaluate(model, loader, TOKENIZER, "cpu", amp=False, recall_k_list=[1, 5, 10])
    [result] = evaluate(model, root, key)
    mean = (expected["text_retrieval_recall@1"] + expected["image_retrieval_recall@1"]) / 2
    metrics = {name: value for name, value in result.metrics.items() if name not in fine.NAMES}
    assert metrics == pytest.approx({**expected, "mean_recall@1": mean}, abs=1e-6)
    assert 0 < expected["image_retrieval_recall@5"] < 1


def test_neither_batches_nor_workers_change_a_number(model, root):
    suite = "cifar10,retrieval/flickr_1k_test_image_text_retrieval"
    plain = evaluate(model, root, suite)
    # More workers than tars, and than batches.
    other = evaluate(model, root, suite, batch_size=100, num_workers=2)
    for one, two in zip(plain, other, strict=True):
        assert (one.metrics, one.intervals, one.set_digest) == (two.metrics, two.intervals, two.set_digest)


def test_datacomp_drops_the_blank_name_and_reads_later_labels_one_off(model, root):
    corrected, datacomp = evaluate(model, root, "cifar10", protocols=("corrected", "datacomp"))
    folder = root / "wds_cifar10_test"
    dataset, loader = reference_loader(folder, 64)
    names = [name for name in dataset.classes if name]
    classifier = zeroshot_classification.zero_shot_classifier(
        model, TOKENIZER, names, dataset.templates, "cpu", amp=False
    )
    logits, labels = zeroshot_classification.run_classification(model, classifier, loader, "cpu", amp=False)
    # The reference encodes twin names in two calls, whose vectors may differ in last bits: either may win.
    # No other two classes lie closer together than rounding reaches.
    twin = torch.tensor([names.index(name) for name in names])
    best = torch.stack([logits[:, twin == t].amax(dim=1) for t in twin.unique()]).topk(2, dim=0)
    assert (best.values[0] - best.values[1]).min() > 1e-4
    np.testing.assert_array_equal(
        twin[torch.from_numpy(datacomp.outcomes["predicted"])], twin[logits.argmax(dim=1)]
    )
    assert len(twin.unique()) == len(names) - 1
    assert (datacomp.outcomes["rank"][labels.numpy() == 7] == 7).all()
    assert datacomp.metrics != corrected.metrics
    assert datacomp.identity != corrected.identity
    assert not any(math.isnan(value) for value in datacomp.metrics.values())
