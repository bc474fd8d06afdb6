"""Two recipes from a picture's bytes to a square: Pillow's pixels bit by bit, and the fast one."""

import io
from collections.abc import Callable

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from dbp.data.images import Undecodable, decode_rgb
from training.feed import decoding
from training.feed.decoding import Axis, Cut, Decode, Decoded, decode, decode_exact, resize

LIMIT = 10**7
SQUARE = 32


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, so that chroma and luma both have something to lose."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str = "jpeg", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)  # type: ignore[arg-type]
    return content.getvalue()


def whole(width: int, height: int) -> Cut:
    return Axis(0, width, SQUARE, 0, SQUARE), Axis(0, height, SQUARE, 0, SQUARE)


PLAIN: list[dict[str, object]] = [
    *[{"quality": quality} for quality in (1, 30, 75, 85, 95, 100)],
    *[{"quality": 85, "subsampling": way} for way in ("4:4:4", "4:2:2", "4:2:0")],
    {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1},
    {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    {"quality": 90, "keep_rgb": True},
]  # fmt: skip


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_plain_jpegs_are_decoded_to_pillow_s_pixels_without_pillow_s_decoder(
    options: dict[str, object], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [saved(photo(w, h).convert(mode), **options) for w, h in ((64, 48), (37, 19), (1, 1))]
    expected = [np.asarray(decode_rgb(content, LIMIT)) for content in contents]

    def forbidden(content: bytes, max_pixels: int) -> None:
        raise AssertionError("the quick way was not taken")

    monkeypatch.setattr(decoding, "decode_rgb", forbidden)
    for content, pixels in zip(contents, expected, strict=True):
        assert np.array_equal(decode_exact(content, LIMIT), pixels)


def odd_pictures() -> dict[str, bytes]:
    image = photo(40, 30)
    deep = np.random.default_rng(1).integers(0, 65_536, (30, 40), dtype=np.uint16)
    clear = image.convert("RGBA")
    clear.putalpha(100)
    return {
        "png": saved(image, "png"),
        "16 bit": saved(Image.fromarray(deep), "png"),
        "palette": saved(image.quantize(16), "png"),
        "transparent palette": saved(image.quantize(16), "png", transparency=3),
        "alpha": saved(clear, "png"),
        "grey with alpha": saved(clear.convert("LA"), "png"),
        "one bit": saved(image.convert("1"), "png"),
        "webp": saved(image, "webp"),
        "gif": saved(image, "gif"),
        "cmyk": saved(image.convert("CMYK"), "jpeg"),
        "tiff": saved(image, "tiff"),
    }


@pytest.mark.parametrize("name", odd_pictures())
def test_every_odd_picture_is_what_pillow_makes_of_it_in_both_recipes(name: str) -> None:
    content = odd_pictures()[name]
    expected = np.asarray(decode_rgb(content, LIMIT))
    for recipe in ("reference", "fast"):
        found = decode(content, LIMIT, recipe, whole)
        assert np.array_equal(found.pixels, expected)
        assert resize(found).shape == (3, SQUARE, SQUARE)


JPEG = saved(photo(64, 48))


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", JPEG[:400], JPEG[:-300], b"\xff\xd8\xff", JPEG[:100] + bytes(200)],
    ids=["empty", "text", "half a header", "no end", "three bytes", "zeros inside"],
)
@pytest.mark.parametrize("recipe", ["reference", "fast"])
def test_what_pillow_cannot_decode_is_refused_in_its_words(content: bytes, recipe: Decode) -> None:
    with pytest.raises(Undecodable) as expected:
        decode_rgb(content, LIMIT)
    with pytest.raises(Undecodable, match=f"^{expected.value}$"):
        decode(content, LIMIT, recipe, whole)


@pytest.mark.parametrize("recipe", ["reference", "fast"])
def test_pictures_with_too_many_pixels_are_refused_before_decoding(recipe: Decode) -> None:
    with pytest.raises(Undecodable, match="too many pixels"):
        decode(JPEG, 64 * 48 - 1, recipe, whole)
    assert decode(JPEG, 64 * 48, recipe, whole).pixels.size


def test_damage_that_pillow_bears_is_borne() -> None:
    content = bytearray(saved(photo(64, 48), quality=90, restart_marker_rows=1))
    content[len(content) // 2] ^= 0x55
    expected = np.asarray(decode_rgb(bytes(content), LIMIT))
    assert not np.array_equal(expected, np.asarray(photo(64, 48)))
    assert np.array_equal(decode_exact(bytes(content), LIMIT), expected)


IS_OLD = int(PIL.__version__.split(".")[0]) < 13


@pytest.mark.parametrize("size", [(32, 32), (43, 32), (32, 57)])
def test_the_bicubic_resize_is_pillow_s_bit_by_bit(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    shapes = [(200, 150), (33, 31), (32, 32), (7, 300), (1, 1), (5, 2), (64, 64), (90, 200)]
    shapes += [(int(w), int(h)) for w, h in rng.integers(1, 160, (40, 2))]
    for width, height in shapes:
        pixels = rng.integers(0, 2, (height + 3, width + 5, 3), dtype=np.uint8) * 255  # overshoots
        cut = Axis(2, width, size[0], 0, size[0]), Axis(1, height, size[1], 0, size[1])
        if IS_OLD and decoding._is_down_first(*cut):
            continue
        part = Image.fromarray(pixels).crop((2, 1, 2 + width, 1 + height))
        expected = np.asarray(part.resize(size, Image.Resampling.BICUBIC))
        found = resize(Decoded(pixels, cut, "reference"))
        assert np.array_equal(found, expected.transpose(2, 0, 1)), (width, height)


@pytest.mark.parametrize("recipe", ["reference", "fast"])
def test_what_lies_beside_the_cut_has_no_part_in_it(recipe: Decode) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    other = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    other[10:80, 20:100] = pixels[10:80, 20:100]
    cut = Axis(20, 80, SQUARE, 0, SQUARE), Axis(10, 70, SQUARE, 0, SQUARE)
    one, two = (resize(Decoded(p, cut, recipe)) for p in (pixels, other))
    assert np.array_equal(one, two)


def covered(line: np.ndarray, start: float, length: float, size: int) -> np.ndarray:
    """The mean of a step function over each of `size` equal parts, by its integral."""
    integral = np.concatenate([np.zeros((1, *line.shape[1:])), np.cumsum(line, 0)])
    ends = start + np.arange(size + 1) * length / size
    below = np.minimum(ends.astype(int), len(line) - 1)
    at = integral[below] + (ends - below)[:, None, None] * line[below]
    return np.diff(at, axis=0) * size / length


@pytest.mark.parametrize("part", [(0, 100, 0, 80), (10.5, 77.25, 3.3, 70.1), (4, 64, 2, 32)])
def test_the_area_resize_is_the_mean_over_what_a_pixel_covers(part: tuple[float, ...]) -> None:
    left, width, top, height = part
    pixels = np.random.default_rng(4).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    rows = covered(pixels.astype(float), top, height, SQUARE)
    expected = covered(rows.transpose(1, 0, 2), left, width, SQUARE).transpose(2, 1, 0)
    cut = Axis(left, width, SQUARE, 0, SQUARE), Axis(top, height, SQUARE, 0, SQUARE)
    found = resize(Decoded(pixels, cut, "fast"))
    assert np.abs(found - expected).max() < 1.01  # two roundings to bytes


def test_enlarged_the_area_resize_is_linear() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(planes, (SQUARE, SQUARE), mode="bilinear")[0].numpy()
    found = resize(Decoded(pixels, whole(7, 9), "fast"))
    assert np.abs(found - expected).max() < 1.01


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(64, 48, 1), (65, 63, 1), (64, 64, 2), (130, 97, 2), (128, 200, 4), (999, 257, 8)],
)
def test_fast_jpegs_are_decoded_as_small_as_still_covers_the_square(width: int, height: int, scale: int) -> None:
    image = photo(width, height)
    found = decode(saved(image, quality=95), LIMIT, "fast", whole)
    assert found.pixels.shape[:2] == (-(-height // scale), -(-width // scale))
    assert found.cut[0].length == width / scale
    exact = resize(Decoded(np.array(image), whole(width, height), "fast"))
    assert np.abs(resize(found).astype(int) - exact).mean() < 4


def test_a_target_inside_a_larger_one_is_its_middle() -> None:
    pixels = np.array(photo(90, 60))
    large: Callable[[int], Axis] = lambda length: Axis(0, length, 48, 0, 48)  # noqa: E731
    small: Callable[[int], Axis] = lambda length: Axis(0, length, 48, 8, 32)  # noqa: E731
    for recipe in ("reference", "fast"):
        one = resize(Decoded(pixels, (large(90), large(60)), recipe))
        two = resize(Decoded(pixels, (small(90), small(60)), recipe))
        assert np.array_equal(one[:, 8:40, 8:40], two)
