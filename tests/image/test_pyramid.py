import dask.array as da
import numpy as np
import pytest

from stfuse._image._pyramid import pyramid


@pytest.mark.parametrize("chunk", [None, 37, 64, 400])
def test_thumbnails_are_means(chunk):
    pixels = np.random.default_rng(0).integers(0, 256, (303, 401, 3), dtype=np.uint8)
    array = pixels if chunk is None else da.from_array(pixels, chunks=(chunk, chunk, 3))
    small, step = pyramid([array], name="image", kind="array", downsample=2.0).thumbnail(100)
    assert small.shape == (60, 80, 3) and step == (10.0, 10.0)
    expected = pixels[:300, :400].reshape(60, 5, 80, 5, 3).mean(axis=(1, 3))
    assert np.abs(small - expected).max() <= 0.5 + 1e-3
    whole, step = pyramid([array], name="image", kind="array").thumbnail(1000)
    np.testing.assert_array_equal(whole, pixels)
    assert step == (1.0, 1.0)


def test_thumbnails_read_each_chunk_once():
    reads = []

    def block(block_info=None):
        reads.append(block_info[None]["chunk-location"])
        return np.full(block_info[None]["chunk-shape"], 200, dtype=np.uint8)

    lazy = da.map_blocks(
        block, chunks=((100,) * 7, (100,) * 5, (3,)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    image = pyramid([lazy], name="image", kind="array")
    reads.clear()  # one look at a small image, whether it is fluorescence
    small, _ = image.thumbnail(90)
    assert len(reads) == len(set(reads)) == 35 and (small == 200).all()


def test_levels_are_sorted_and_scaled():
    levels = [np.full((h, 2 * h, 3), 200, np.uint8) for h in (25, 100, 50)]
    image = pyramid(levels, name="image", kind="array", downsample=4.0)
    assert [level.size for level in image.levels] == [(200, 100), (100, 50), (50, 25)]
    assert [level.downsample[0] for level in image.levels] == [4, 8, 16] and image.size == (800, 400)
    assert [image.nearest_level(d) for d in (1, 5, 6, 11, 12, 100)] == [0, 0, 1, 1, 2, 2]


def test_images_in_memory_are_told_apart():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    other = pixels.copy()
    other[100:, :] += 1
    tokens = [pyramid([p], name="image", kind="array").token for p in (pixels, pixels.copy(), other, pixels[:, ::-1])]
    assert tokens[0] == tokens[1] and len(set(tokens)) == 3


def test_lazy_images_are_told_apart_by_their_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    arrays = [
        da.from_array(p, chunks=(100, 100, 3), name=name)
        for p, name in [(pixels, "a"), (pixels, "b"), (pixels // 2, "a")]
    ]
    tokens = [pyramid([array], name="image", kind="array").token for array in arrays]
    assert tokens[0] == tokens[1] != tokens[2]
    red = pixels.copy()
    red[..., 1:] //= 2
    assert pyramid([pixels], name="image", kind="array").token != pyramid([red], name="image", kind="array").token
