"""Products of stored vectors: the path through torch that a GPU takes gives the bits of the compiled one.

Run on the processor here, and on CUDA, too, where there is a device.
"""

import numpy as np
import pytest
import torch

from dbp.dedup.pairs import nearest_earlier
from dbp.exact.products import Assigner, side_by_side, widened

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def stored(n: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def on_grid(vectors: np.ndarray) -> np.ndarray:
    exact = vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    return (np.rint(exact * 2**24) / 2**24).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [8, 64, 512])
def test_the_path_through_torch_assigns_as_the_compiled_one(width: int, device: str) -> None:
    vectors = stored(700, width, 1)
    centroids = on_grid(vectors[:60])
    centroids[40:] = centroids[:20]  # exact ties
    label, cosine, _ = Assigner(centroids)(vectors)
    again, again_cosine = np.empty(700, np.int32), np.empty(700)
    Assigner(centroids, device).on_device(widened(vectors), again, again_cosine)
    np.testing.assert_array_equal(again, label)
    np.testing.assert_array_equal(again_cosine, cosine)
    assert label.max() < 40, "of equal centroids the lower number wins"


@pytest.mark.parametrize("device", DEVICES)
def test_the_path_through_torch_finds_the_same_twins(device: str) -> None:
    vectors = stored(3_000, 32, 2)
    vectors[1000:1400] = vectors[:400]
    order = np.random.default_rng(3).permutation(3_000)
    best, twin = nearest_earlier(vectors, order)
    # Two equal sides take the path through torch, and their least cosine is the cosine.
    sides = [vectors] if device == "cuda" else [vectors, vectors]
    again, again_twin = nearest_earlier(sides, order, device=device)
    np.testing.assert_array_equal(again_twin, twin)
    np.testing.assert_array_equal(again, best)


def test_threads_work_side_by_side_and_answers_keep_their_order() -> None:
    assert side_by_side(lambda x: x * x, list(range(50)), 4) == [x * x for x in range(50)]


def test_a_buffer_is_used_again() -> None:
    room = torch.empty(10, 4)
    found = widened(stored(6, 4, 4), room)
    assert found.data_ptr() == room.data_ptr()
    np.testing.assert_array_equal(found.numpy(), stored(6, 4, 4).astype(np.float32))
