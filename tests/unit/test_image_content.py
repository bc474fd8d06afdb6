"""Images are what they are: deep ones keep their greys, transparent ones get the background that was asked for."""

import io
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbp.data.images import DEEP_IMAGES, TRANSPARENT_IMAGES, Undecodable, decode_rgb, header
from dbp.encoders.base import Encoder, Tower
from dbp.encoders.embed import Embed
from dbp.engine.stage import runtime
from dbp.engine.store import Store
from dbp.errors import DbpError
from dbp.pools.index import Index
from dbp.pools.looking import lines_of, look
from evaluation.running.encode import Towers
from evaluation.sets.data import EvaluationSet
from evaluation.sets.pixels import Pictures, Transform
from training.feed.augmentation import Augmentation
from training.feed.data import Pairs
from training.feed.decoding import Axis, decode, decode_exact
from training.feed.streaming import Streaming

LIMIT = 10**6
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def grey(content: bytes, background: str = "drop") -> np.ndarray:
    """The one grey of each pixel."""
    pixels = np.asarray(decode_rgb(content, LIMIT, background))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def png(depth: int, kind: int, line: bytes, width: int, clear: bytes = b"") -> bytes:
    """A PNG of one line, written by hand."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    body = (chunk(b"tRNS", clear) if clear else b"") + chunk(b"IDAT", zlib.compress(b"\0" + line))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


# deep images


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_a_ramp_of_16_bits_decodes_to_the_ramp_of_8_bits(kind: str, order: str) -> None:
    for low in (0, 255):  # what lies in the low byte does not matter
        deep = (RAMP.astype(np.uint16) << 8 | low).astype(order)
        if kind == "PNG" and order == ">u2":
            deep = deep.astype("<u2")
        content = saved(Image.fromarray(deep), kind)
        assert header(content, LIMIT).is_deep
        assert np.array_equal(grey(content), RAMP)
        assert np.array_equal(decode_exact(content, LIMIT)[..., 0], RAMP)


def test_16_bits_of_grey_and_of_colour_decode_to_the_same_values() -> None:
    values = np.array([0, 255, 256, 32_767, 40_000, 65_535], ">u2")
    one = png(16, 0, values.tobytes(), 6)
    three = png(16, 2, np.repeat(values, 3).tobytes(), 6)
    assert header(one, LIMIT).is_deep
    assert not header(three, LIMIT).is_deep  # Pillow scales it right
    assert np.array_equal(grey(one), grey(three))


INTEGERS = [
    ([[0, 7, 255]], [[0, 7, 255]]),  # stay
    ([[0, 256, 65_535]], [[0, 1, 255]]),  # the high byte
    ([[-100, 0, 100]], [[0, 128, 255]]),  # stretched
    ([[0, 2**31 - 1]], [[0, 255]]),
    ([[70_000, 70_000]], [[0, 0]]),
]
FLOATS = [
    ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
    ([[0.0, 7.0, 255.0]], [[0, 7, 255]]),
    ([[-1.0, 0.0, 1.0]], [[0, 128, 255]]),
    ([[1000.0, 1100.0, 2000.0]], [[0, 26, 255]]),
    ([[np.nan, 1.0, np.inf, 0.25]], [[0, 255, 0, 64]]),
    ([[np.nan, np.nan]], [[0, 0]]),
]


@pytest.mark.parametrize(
    ("values", "expected"),
    [(np.array(v, np.int32), e) for v, e in INTEGERS] + [(np.array(v, np.float32), e) for v, e in FLOATS],
    ids=str,
)
def test_integers_of_32_bits_and_floats_are_scaled_by_their_range(values: np.ndarray, expected: Any) -> None:
    content = saved(Image.fromarray(values), "TIFF")
    assert header(content, LIMIT).is_deep
    assert grey(content).tolist() == expected


def test_an_evaluation_sees_a_deep_image_as_a_pool_does() -> None:
    content = saved(Image.fromarray(RAMP.astype(np.uint16) * 257))

    class One(EvaluationSet):
        def __init__(self) -> None: ...

        def read_picture(self, row: int) -> bytes:
            return content

    for background in ("drop", "white"):
        transform = Transform(lambda picture: np.asarray(picture), background)
        pixels, _, broken = Pictures([One()], [[0]], transform)[0, 0]
        assert (broken, np.array_equal(pixels[..., 0], RAMP)) == ("", True)


# transparent images


def drawing(mode: str, kind: str = "PNG") -> bytes:
    """A black stroke on transparent ground, whose hidden colour is black."""
    image = Image.new("RGBA", (9, 5), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (2, 1, 4, 4))
    if mode == "P":
        palette = Image.new("P", (9, 5), 1)
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.paste(0, (2, 1, 4, 4))
        return saved(palette, kind, transparency=1 if kind == "GIF" else b"\xff\x00")
    return saved(image.convert(mode), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))


STROKE = np.full((5, 9), 255, np.uint8)
STROKE[1:4, 2:4] = 0
FILES = {
    "RGBA": drawing("RGBA"), "LA": drawing("LA"), "palette": drawing("P"), "gif": drawing("P", "GIF"),
    "webp": drawing("RGBA", "WEBP"), "tiff": drawing("RGBA", "TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_black_stroke_on_transparent_ground_is_seen_on_white(name: str) -> None:
    assert header(FILES[name], LIMIT).has_alpha
    assert not grey(FILES[name]).any(), "drop: black on black, as open_clip sees it"
    for white in ("white", "#ffffff", "White"):
        assert np.array_equal(grey(FILES[name], white), STROKE)
    red = np.asarray(decode_rgb(FILES[name], LIMIT, "#ff0000"))
    assert red[0, 0].tolist() == [255, 0, 0]
    assert red[2, 3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_half_transparent_pixels_are_mixed_with_the_background(mode: str) -> None:
    content = saved(Image.new("RGBA", (1, 1), (0, 0, 0, 51)).convert(mode))  # a fifth
    assert grey(content, "white")[0, 0] == 204
    assert grey(content, "black")[0, 0] == 0


# name -> (file, greys on white); each has three greys, of which the middle one is transparent
CHUNKS = {
    "2 bits": (png(2, 0, bytes([0b00011011]), 4, struct.pack(">H", 1)), [0, 255, 170, 255]),
    "4 bits": (png(4, 0, bytes([0x01, 0xF0]), 3, struct.pack(">H", 1)), [0, 255, 255]),
    "8 bits": (png(8, 0, bytes([0, 7, 9]), 3, struct.pack(">H", 7)), [0, 255, 9]),
    "16 bits": (png(16, 0, struct.pack(">3H", 0, 1000, 1001), 3, struct.pack(">H", 1000)), [0, 255, 3]),
    "colour": (png(8, 2, bytes([0, 0, 0, 7, 7, 7, 9, 9, 9]), 3, struct.pack(">3H", 7, 7, 7)), [0, 255, 9]),
    "16 bits of colour": (
        png(16, 2, struct.pack(">9H", 0, 0, 0, *[1799] * 3, *[2313] * 3), 3, struct.pack(">3H", *[1799] * 3)),
        [0, 255, 9],
    ),
    "16 bits and alpha": (png(16, 4, struct.pack(">4H", 0, 65_535, 1799, 0), 2), [0, 255]),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_a_transparency_chunk_means_the_pixels_of_its_value_at_any_depth(name: str) -> None:
    content, expected = CHUNKS[name]
    assert header(content, LIMIT).has_alpha
    assert grey(content, "white")[0].tolist() == expected
    assert grey(content)[0, 1] == {"2 bits": 85, "4 bits": 17, "16 bits": 3}.get(name, 7)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_an_opaque_image_is_the_same_on_every_background(mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    content = saved(Image.fromarray(values).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    assert not header(content, LIMIT).has_alpha
    assert decode_rgb(content, LIMIT, "red").tobytes() == decode_rgb(content, LIMIT).tobytes()


def test_what_is_broken_stays_undecodable_on_a_background() -> None:
    with pytest.raises(Undecodable, match="undecodable image"):
        decode_rgb(FILES["RGBA"][:-20], LIMIT, "white")


# as before


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("white", "black", "red")]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert grey(content).min() >= 254


def test_a_cmyk_jpeg_is_read_inverted_as_adobe_writes_it_with_and_without_its_mark() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    content = saved(image, "JPEG", quality=95)  # Pillow writes it inverted, with Adobe's mark
    assert b"Adobe" in content
    red = np.asarray(decode_rgb(content, LIMIT))
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 6
    mark = content.index(b"\xff\xee")
    size = int.from_bytes(content[mark + 2 : mark + 4], "big")
    plain = content[:mark] + content[mark + 2 + size :]
    assert np.array_equal(np.asarray(decode_rgb(plain, LIMIT)), red)  # as Pillow has it
    for one in (content, plain):
        assert np.array_equal(decode_exact(one, LIMIT), np.asarray(decode_rgb(one, LIMIT)))


def test_the_orientation_of_exif_is_counted_and_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(np.zeros((8, 16, 3), np.uint8)), "JPEG", exif=exif)
    assert header(content, LIMIT).orientation == 6
    assert decode_rgb(content, LIMIT).size == (16, 8)


# a pool


def write_tar(path: Path, images: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, content in images.items():
            for name, said in ((f"{key}.png", content), (f"{key}.txt", f"an image of {key}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(said)
                tar.addfile(info, io.BytesIO(said))
    return path


DEEP = saved(Image.fromarray(RAMP.astype(np.uint16) * 257))
PLAIN = saved(Image.fromarray(RAMP))


def pool_of(store: Store, shard: Path, **settings: Any) -> Any:
    return Index(uid="key", caption="txt", max_pixels=LIMIT, shards=str(shard), **settings).node()


def test_an_index_and_an_init_count_deep_and_transparent_images(tmp_path: Path) -> None:
    images = {"deep": DEEP, "plain": PLAIN, "float": saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF")}
    write_tar(tmp_path / "a.tar", images | FILES)
    store = Store(tmp_path / "store")
    node = pool_of(store, tmp_path / "a.tar")
    store.get(node)
    found = store.entry(node)
    assert found is not None
    counts = found.manifest["counts"]
    assert (counts[DEEP_IMAGES], counts[TRANSPARENT_IMAGES]) == (2, len(FILES))
    said = "\n".join(lines_of(look(tmp_path)))
    assert f"2 {DEEP_IMAGES}" in said
    assert f"{len(FILES)} {TRANSPARENT_IMAGES}" in said
    assert "pool.background" in said


@dataclass(frozen=True)
class Eyes(Encoder):
    """An encoder whose vectors are a mean value beside 1."""

    batch_size: int = runtime(4)

    def identity(self) -> dict[str, Any]:
        return {}

    def load(self) -> Tower:
        import torch

        return Tower(
            preprocess=lambda image: torch.tensor([np.asarray(image).mean(), 1.0]),
            encode_images=lambda batch: batch.numpy().astype(np.float32),
            encode_texts=None,
        )


class Kept:
    """The subset of a pool's first row."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.rows = pool, np.array([0])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("background", ["drop", "white"])
def test_every_stage_that_decodes_sees_the_background_of_the_pool(tmp_path: Path, background: str) -> None:
    write_tar(tmp_path / "a.tar", {"stroke": FILES["RGBA"]})
    store = Store(tmp_path / "store")
    node = pool_of(store, tmp_path / "a.tar", background=background)
    pool = store.get(node)
    expected = STROKE if background == "white" else np.zeros_like(STROKE)
    assert np.array_equal(np.asarray(pool.image(0))[..., 0], expected)  # the page, scores of one's own
    vectors = store.get(Embed(Eyes(), "image").bind(pool=node))
    seen, one = vectors.unit(np.array([0]))[0]
    assert seen / one == pytest.approx(expected.mean(), rel=0.01)

    class Whole(Augmentation):
        num_draws, is_fit_random = 0, False

        def cut(self, width: int, height: int, size: int, draws: Any) -> tuple[Axis, Axis]:
            return Axis(0, width, size, 0, size), Axis(0, height, size, 0, size)

    for recipe in ("reference", "fast"):
        square = Whole(decode=recipe).fit(pool.image_bytes(0), 5, np.zeros(0), pool.max_pixels, pool.background)
        assert (square.max() > 200) == (background == "white")
        found = decode(pool.image_bytes(0), LIMIT, recipe, lambda w, h: Whole().cut(w, h, 5, None), pool.background)
        assert np.array_equal(found.pixels[..., 0], expected)
    pairs: Any = SimpleNamespace(subset=Kept(pool), augmentation=Whole(), size=5)
    square, source = Pairs._picture(pairs, 0, np.zeros(0), pool.image_bytes(0))
    assert source == 0
    assert (square.max() > 200) == (background == "white")


def test_a_background_names_the_pool_and_drop_is_the_name_from_before(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"stroke": FILES["RGBA"], "plain": PLAIN})
    store = Store(tmp_path / "store")
    digests = {}
    for background in ("drop", "white", "#ffffff", "black"):
        digests[background] = store.get(pool_of(store, tmp_path / "a.tar", background=background)).digest
    assert digests["white"] == digests["#ffffff"]
    assert len(set(digests.values())) == 3
    plain = Index(uid="key", caption="txt", max_pixels=LIMIT, shards=str(tmp_path / "a.tar")).node()
    assert store.key(plain) == store.key(pool_of(store, tmp_path / "a.tar", background="drop"))


def test_a_pool_with_a_deep_image_has_another_digest_than_when_it_was_clipped(tmp_path: Path) -> None:
    import hashlib

    digests = {}
    for name, content in (("deep", DEEP), ("plain", PLAIN)):
        shard = write_tar(tmp_path / f"{name}.tar", {"a": content})
        store = Store(tmp_path / name)
        pool = store.get(pool_of(store, shard))
        before, row = hashlib.sha256(), pool.table.slice(0, 1).to_pylist()[0]
        for part in (row["uid"].encode(), row["content_hash"], row["caption_hash"]):
            before.update(len(part).to_bytes(4, "little") + part)
        digests[name] = pool.digest, hashlib.sha256(bytes.fromhex(before.hexdigest())).hexdigest()
    assert digests["plain"][0] == digests["plain"][1]  # version 1's, so later keys stay
    assert digests["deep"][0] != digests["deep"][1]


def test_a_streamed_pool_has_the_background_of_its_pool(tmp_path: Path) -> None:
    pool = Store(tmp_path / "store").get(
        pool_of(Store(tmp_path / "store"), write_tar(tmp_path / "a.tar", {"a": PLAIN}), background="white")
    )
    streamed = Streaming(1, cache_gigabytes=1.0, folder=str(tmp_path / "cache")).open(pool, np.array([0]))
    assert streamed.background == "white"


@pytest.mark.parametrize("background", ["wite", "#fff", "#12345g", "rgb(0,0,0)", ""])
def test_what_is_no_background_is_refused_with_what_is(background: str) -> None:
    with pytest.raises(DbpError) as refused:
        Index(uid="key", caption="txt", max_pixels=LIMIT, background=background)
    for fact in ("background", repr(background), "drop", "white", "#rrggbb"):
        assert fact in str(refused.value)


def test_near_copies_are_looked_for_on_the_background_of_the_pool() -> None:
    from evaluation.checks.near_copies import _as_towers

    drop, white = (_as_towers(Eyes(), name, "cpu", 0) for name in ("drop", "white"))
    assert isinstance(white, Towers)
    assert (drop.background, white.background) == ("drop", "white")
    assert drop.digest != white.digest  # their kept vectors are others


def test_images_are_decoded_in_one_place_alone() -> None:
    root = Path(__file__).parents[2]
    files = [
        file for package in ("dbp", "training", "evaluation", "slurm") for file in (root / package).rglob("*.py")
    ]
    found = {
        what: {str(file.relative_to(root)) for file in files if f"{what}(" in file.read_text()}
        for what in ("decode_rgb", "to_rgb", "Image.open")
    }
    assert found["decode_rgb"] == {"dbp/data/images.py", "dbp/data/pool.py", "training/feed/decoding.py"}
    assert found["to_rgb"] == {"dbp/data/images.py", "evaluation/sets/pixels.py"}
    headers = {"training/feed/decoding.py", "evaluation/sets/verify.py"}  # these read headers, or test for damage
    theirs = {"evaluation/checks/against_benchmark.py"}  # hands images to clip_benchmark, whose code decodes them
    assert found["Image.open"] == {"dbp/data/images.py", "evaluation/sets/pixels.py", *headers, *theirs}
