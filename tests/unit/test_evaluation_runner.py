import os
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from evaluating import evaluate_one
from miniature import noise_png, write_classification, write_set
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from dbp.errors import ConfigError, WorldError
from evaluation.kinds.base import choose_rows
from evaluation.running.encode import Towers, encode_pictures
from evaluation.running.prepare import Asked
from evaluation.running.runner import Encoding, evaluate_checkpoints
from evaluation.sets.data import open_set
from evaluation.sets.tar_index import EvaluationDataError


class TinyClip(nn.Module):
    """Two linear towers: mean colours of a 4 x 4 picture, counts of letters."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.text = nn.Linear(48, 8), nn.Linear(128, 8)
        self.drop = nn.Dropout(0.5)
        self.context_length = 128
        self.texts = []

    def encode_image(self, pictures):
        return self.drop(self.image(pictures.flatten(1)))

    def encode_text(self, tokens):
        self.texts.append(len(tokens))
        return self.drop(self.text(tokens.float()))


def preprocess(picture):
    assert picture.mode == "RGB"
    return pil_to_tensor(picture.resize((4, 4))).float() / 255


def tokenizer(texts):
    counts = [np.bincount([ord(c) % 128 for c in text], minlength=128) for text in texts]
    return torch.from_numpy(np.stack(counts))


def evaluate(suite, root, model=None, **settings):
    return evaluate_one(model or TinyClip(), preprocess, tokenizer, suite, root, **settings)


@pytest.fixture
def root(tmp_path):
    for key in ("mnist", "cifar10", "stl10"):
        write_classification(
            tmp_path / f"wds_{key}_test", class_names=list("abcdef"), num_samples=50, seed=1, size=6
        )
    return tmp_path


def break_picture(root, key, content, extension="png"):
    folder = root / f"wds_{key}_test"
    good = noise_png(np.random.default_rng(0), 6)
    samples = [{"png": good, "cls": b"0"}, {extension: content, "cls": b"1"}] * 3
    write_set(folder, samples, class_names=["a", "b"], templates=["{c}"])


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", noise_png(np.random.default_rng(0), 30)[:900]])
def test_broken_pictures_are_counted_and_named_and_fail_their_task_only(root, content):
    break_picture(root, "cifar10", content)
    failures = []
    results = evaluate("mnist,cifar10,stl10", root, failures=failures)
    assert [result.task for result in results] == ["mnist", "stl10"]
    assert [failure.task for failure in failures] == ["cifar10"]
    reason = failures[0].reason
    tar = root / "wds_cifar10_test" / "test" / "0.tar"
    assert reason.startswith(f"3 of 6 pictures cannot be read: {tar}: s0000001.png (")
    assert f"{tar}: s0000005.png (" in reason
    assert reason.endswith("Fetch the set again.")


def test_a_broken_picture_is_named_from_a_worker_too(root):
    break_picture(root, "cifar10", b"")
    failures = []
    assert evaluate("cifar10", root, failures=failures, num_workers=2, batch_size=1) == []
    assert "3 of 6 pictures cannot be read" in failures[0].reason


def test_without_a_list_for_failures_they_are_raised_after_the_others_ended(root):
    seen = []
    with pytest.raises(WorldError, match=r"2 of 3 tasks failed:\n  gtsrb: There is no set of GTSRB"):
        evaluate("gtsrb,mnist,wilds/fmow", root, on_results=lambda found: seen.extend(found))
    assert [result.task for result in seen] == ["mnist"]


def test_a_wrong_label_stops_before_a_picture_is_decoded(root):
    (root / "wds_mnist_test" / "classnames.txt").write_text("one\n")
    failures, told = [], []

    def progress(*what):
        told.append(what)
        raise AssertionError

    evaluate("mnist", root, failures=failures, encoding=Encoding(progress=progress))
    assert "labels in" in failures[0].reason
    assert told == []


def test_vectors_that_are_not_finite_are_refused_for_pictures_and_texts(root):
    for tower in ("image", "text"):
        model = TinyClip()
        with torch.no_grad():
            getattr(model, tower).bias.fill_(float("nan"))
        failures = []
        evaluate("mnist", root, model, failures=failures)
        assert "The model gives a vector with NaN or infinity for" in failures[0].reason
        assert "Has its training diverged?" in failures[0].reason


def test_a_tokenizer_of_another_length_is_named(root):
    model = TinyClip()
    model.context_length = 77
    failures = []
    evaluate("mnist", root, model, failures=failures)
    assert failures[0].reason.startswith("The tokenizer gives 128 tokens a text, the model takes 77")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "limit=0 leaves no sample"),
        ({"precision": "fp23"}, "precision=fp23 is unknown. Did you mean 'fp32'?"),
        ({"protocols": ("datacmp",)}, "protocol=datacmp is unknown. Did you mean 'datacomp'?"),
    ],
)
def test_a_wrong_setting_stops_before_any_work(root, settings, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        evaluate("mnist", root, **settings)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_evaluated_without_dropout_and_left_in_its_mode(root, is_training):
    model = TinyClip().train(is_training)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            [result] = evaluate("mnist", root, model)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert model.training is is_training
    # Neither dropout nor the autocast around us took part.
    assert result.metrics == evaluate("mnist", root, TinyClip().eval())[0].metrics


def test_distinct_prompts_are_encoded_once_for_the_whole_suite(root):
    model = TinyClip()
    evaluate("mnist,cifar10,stl10", root, model)
    # Six names and three templates.
    assert sum(model.texts) == 18


def test_several_models_share_each_decoded_picture(root):
    models = [TinyClip(seed) for seed in range(3)]
    decoded = []

    def counted(picture):
        decoded.append(picture)
        return preprocess(picture)

    towers = [Towers(model, counted, tokenizer, name=f"m{i}") for i, model in enumerate(models)]
    together = evaluate_checkpoints(towers, "mnist", root, Asked())
    assert len(decoded) == 50
    assert [(r.model, r.protocol) for r in together[:3]] == [
        ("m0", "corrected"),
        ("m0", "datacomp"),
        ("m1", "corrected"),
    ]
    for result, model in zip(together[::2], models, strict=True):
        [alone] = evaluate("mnist", root, model)
        assert result.metrics == alone.metrics


def test_a_limit_takes_rows_by_chance_and_marks_the_result(root):
    [result] = evaluate("mnist", root, limit=20, seed=5)
    assert (result.num_samples, result.limit) == (20, 20)
    [whole] = evaluate("mnist", root, limit=50)
    assert (whole.num_samples, whole.limit) == (50, None)
    assert result.identity != whole.identity
    rows = choose_rows(1_000, 100, seed=0)
    assert rows == sorted(set(rows))
    assert rows == choose_rows(1_000, 100, seed=0)
    assert rows != choose_rows(1_000, 100, seed=1)
    assert 350 < np.mean(rows) < 650


def test_progress_counts_every_picture_of_every_task(root):
    counts = {}

    @contextmanager
    def progress(what, total, unit):
        class Bar:
            def advance(self, count):
                counts[what] = counts.get(what, 0) + count

        assert (total, unit) == ((18, "texts") if what == "texts" else (50, "pictures"))
        yield Bar()

    evaluate("mnist,stl10", root, encoding=Encoding(progress=progress), batch_size=16)
    assert counts == {"texts": 18, "MNIST": 50, "STL-10": 50}


def test_grey_palette_alpha_and_cmyk_pictures_become_rgb_before_the_transform(tmp_path):
    import io

    from PIL import Image

    samples = []
    for mode, form in (("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "png")):
        file = io.BytesIO()
        Image.new("RGB", (5, 9), "teal").convert(mode).save(file, "jpeg" if form == "jpg" else form)
        samples.append({form: file.getvalue(), "cls": b"0"})
    write_set(tmp_path, samples, class_names=["a"], templates=["{c}"])
    opened = open_set(tmp_path, kind="classification")
    towers = Towers(TinyClip(), preprocess, tokenizer)
    assert encode_pictures(towers, opened, range(5)).shape == (5, 8)


def test_a_tar_that_is_cut_after_indexing_is_noticed(root):
    opened = open_set(root / "wds_mnist_test", kind="classification")
    os.truncate(opened.shards[0], 3_000)
    with pytest.raises(EvaluationDataError, match="was cut while it was being read"):
        encode_pictures(Towers(TinyClip(), preprocess, tokenizer), opened, range(50))
