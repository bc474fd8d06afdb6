"""Augmentation: the reference recipes of open_clip and torchvision, pixel by pixel."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dbp.config import build
from dbp.engine.stage import parameters
from dbp.errors import ConfigError
from training.config import Optimiser
from training.feed.augmentation import Augmentation, RandomResizedCrop, Shift


@pytest.fixture
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))


def fitted(recipe: Augmentation, picture: Image.Image, numbers: np.ndarray) -> np.ndarray:
    content = io.BytesIO()
    picture.save(content, "png")
    return recipe.fit(content.getvalue(), 32, numbers, 10**6)


def test_a_crop_is_torchvision_s_with_the_same_box(picture: Image.Image) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resized_crop

    recipe, numbers = RandomResizedCrop(0.9, 1.0), np.random.default_rng(1).random(22)
    left, top, width, height = recipe.box(64, 48, numbers)
    expected = resized_crop(picture, top, left, height, width, [32, 32], InterpolationMode.BICUBIC)
    found = fitted(recipe, picture, numbers)
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (33, 32), (32, 32), (90, 31), (20, 301)])
def test_a_middle_is_torchvision_s_resize_and_center_crop(shape: tuple[int, int]) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    pixels = np.random.default_rng(5).integers(0, 255, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = center_crop(resize(image, [32], InterpolationMode.BICUBIC), [32])  # type: ignore[arg-type]
    found = fitted(Shift(0), image, np.zeros(2))
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_the_fast_recipe_is_another_key_and_the_reference_keeps_the_old_one() -> None:
    old = {"scale_low": 0.9, "scale_high": 1.0}
    assert parameters(RandomResizedCrop(0.9, 1.0)) == old
    assert parameters(RandomResizedCrop(0.9, 1.0, decode="fast")) == {"decode": "fast", **old}
    node = {"_target_": "training.feed.augmentation.Shift", "pixels": 2, "decode": "fats"}
    with pytest.raises(ConfigError, match=r"augmentation\.decode='fats': Did you mean 'fast'\?"):
        build(node, path="train.augmentation")


def test_the_fast_recipe_takes_the_same_part_of_the_picture() -> None:
    rows, columns = np.mgrid[:96, :128]
    smooth = np.stack([2 * columns, 2 * rows, columns + rows], -1).astype(np.uint8)
    image, numbers = Image.fromarray(smooth), np.random.default_rng(6).random(22)
    content = io.BytesIO()
    image.save(content, "jpeg", quality=98)
    for recipe, given in ((RandomResizedCrop, (0.5, 0.9)), (Shift, (1,))):
        exact, fast = (
            recipe(*given, decode=decode).fit(content.getvalue(), 32, numbers, 10**6).astype(int)
            for decode in ("reference", "fast")
        )
        assert np.abs(exact - fast).mean() < 2


def test_crops_have_the_area_and_shape_asked_for() -> None:
    recipe = RandomResizedCrop(0.5, 0.8)
    rng = np.random.default_rng(2)
    boxes = np.array([recipe.box(640, 480, rng.random(22)) for _ in range(2000)])
    left, top, width, height = boxes.T
    share = width * height / (640 * 480)
    assert share.min() > 0.49
    assert share.max() < 0.81
    assert (width / height).min() > 0.74
    assert (width / height).max() < 1.35
    assert (left + width).max() <= 640
    assert (top + height).max() <= 480
    assert len(np.unique(left)) > 100


def test_a_picture_of_no_allowed_shape_is_cut_to_its_middle() -> None:
    assert RandomResizedCrop(0.9, 1.0).box(300, 30, np.full(22, 0.5)) == (130, 0, 40, 30)


def test_without_a_shift_pictures_are_those_of_the_evaluation(picture: Image.Image) -> None:
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    from training.account.horizon import Horizon
    from training.step.module import Contrastive

    recipe = Shift(0)
    batch = recipe.move(fitted(recipe, picture, np.zeros(2))[None].copy(), np.zeros((1, 2)))
    module = Contrastive(
        torch.nn.Linear(1, 1), optimiser(), Horizon(2, 2, 1), 0, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    )
    expected = open_clip.image_transform(32, is_train=False)(picture)
    assert torch.equal(module.normalise(torch.from_numpy(batch))[0], expected)


def optimiser() -> Optimiser:
    return Optimiser(1e-3, 0.9, 0.98, 1e-6, 0.2, "openclip3", "cosine", 0)


def test_a_shift_moves_by_at_most_its_pixels_and_continues_the_edges() -> None:
    pictures = np.random.default_rng(3).integers(0, 255, (500, 3, 8, 8), dtype=np.uint8)
    numbers = np.random.default_rng(4).random((500, 2))
    moved = Shift(2).move(pictures, numbers)
    steps = set()
    for before, after, (down, right) in zip(pictures, moved, numbers, strict=True):
        dy, dx = int(down * 5) - 2, int(right * 5) - 2
        steps.add((dy, dx))
        wide = np.pad(before, ((0, 0), (2, 2), (2, 2)), mode="edge")
        assert np.array_equal(after, wide[:, 2 - dy : 10 - dy, 2 - dx : 10 - dx])
    assert len(steps) == 25


def test_a_crop_of_more_than_the_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scale_high=1\.5: it must be from scale_low=0\.9 to 1"):
        RandomResizedCrop(0.9, 1.5)
