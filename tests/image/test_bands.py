import time

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfuse._image import _bands
from stfuse._image._bands import Group, in_background, read_crops
from stfuse._image._crops import first_pixels, gather, needed
from stfuse._image._pyramid import pyramid


def slow_crop(pixels, x, y, width, height):
    """One crop, the literal way: pad the image by mirroring, then slice."""
    padded = np.pad(pixels, ((height, height), (width, width), (0, 0)), mode="reflect")
    left, top = int(np.floor(x - width / 2 + 0.5)) + width, int(np.floor(y - height / 2 + 0.5)) + height
    return padded[top : top + height, left : left + width]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    side=st.integers(1, 40),
    other=st.integers(1, 40),
    seed=st.integers(0, 10_000),
)
def test_crops_equal_padding_and_slicing(height, width, side, other, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    centers = rng.random((5, 2)) * (width, height)
    crops = gather(pixels, first_pixels(centers, (side, other)), (side, other), (width, height), (0, 0))
    assert crops.shape == (5, other, side, 3) and crops.dtype == np.uint8
    for crop, (x, y) in zip(crops, centers, strict=True):
        np.testing.assert_array_equal(crop, slow_crop(pixels, x, y, side, other))


def test_a_crop_is_centered():
    pixels = np.zeros((9, 11, 3), dtype=np.uint8)
    pixels[4, 7] = 200  # row 4, column 7: x = 7.5, y = 4.5 is the middle of this pixel
    crop = gather(pixels, first_pixels(np.array([[7.5, 4.5]]), (3, 3)), (3, 3), (11, 9), (0, 0))[0]
    assert crop[1, 1, 0] == 200 and crop.sum() == 600


@settings(max_examples=200, deadline=None)
@given(first=st.integers(-60, 60), side=st.integers(1, 50), n=st.integers(1, 40))
def test_needed_pixels_hold_all_that_is_mirrored(first, side, n):
    from stfuse._image._crops import mirror

    used = mirror(np.arange(first, first + side), n)
    low, high = needed(np.array([first]), side, n)
    assert 0 <= low[0] <= used.min() and used.max() <= high[0] <= n - 1


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(2, 60),
    width=st.integers(2, 60),
    chunk=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    sides=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    n=st.integers(0, 25),
    step=st.integers(1, 9),
    buffer=st.sampled_from([1, 2000, 10**9]),
    seed=st.integers(0, 10_000),
)
def test_crops_of_chunks_equal_crops_of_the_whole(height, width, chunk, sides, n, step, buffer, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = pyramid([da.from_array(pixels, chunks=(*chunk, 3))], name="image", kind="array")
    # also such that lie wholly outside, as cells of a grid may
    groups = [
        Group(first_pixels(rng.uniform(-10, 10, (n, 2)) + rng.random((n, 2)) * (width, height), (s, s)), (s, s))
        for s in sides
    ]
    seen = [np.zeros(n, dtype=int) for _ in sides]
    before, _bands._BUFFER = _bands._BUFFER, buffer
    try:
        for index, which, crops in read_crops(image, 0, groups, [step] * len(sides)):
            assert 0 < len(which) <= step and crops.dtype == np.uint8
            seen[index][which] += 1
            group = groups[index]
            expected = gather(pixels, group.first[which], group.size, (width, height), (0, 0))
            np.testing.assert_array_equal(crops, expected)
    finally:
        _bands._BUFFER = before
    assert all((times == 1).all() for times in seen)


class Counted:
    """An array that remembers which chunks were read, and how many pixels at most were alive at once."""

    def __init__(self, height, width, chunk):
        self.shape, self.dtype, self.ndim = (height, width, 3), np.dtype(np.uint8), 3
        self.chunk, self.reads = chunk, []

    def __getitem__(self, key):
        rows, columns = key[0], key[1]
        self.reads.append((rows.start, columns.start))
        shape = (rows.stop - rows.start, columns.stop - columns.start, 3)
        y, x = np.ogrid[rows, columns]
        return np.broadcast_to(((y * 7 + x * 13) % 251)[..., None], shape).astype(np.uint8)


def counted(height, width, chunk):
    source = Counted(height, width, chunk)
    lazy = da.from_array(
        source,
        chunks=(chunk, chunk, 3),
        asarray=False,
        meta=np.empty((0, 0, 0), np.uint8),
        name=f"counted-{time.time_ns()}",
    )
    image = pyramid([lazy], name="image", kind="array")
    source.reads.clear()  # one look at a small image, whether it is fluorescence
    return source, image


def test_each_chunk_is_read_once_in_order_and_empty_ones_never():
    source, image = counted(2000, 1500, 256)
    rng = np.random.default_rng(0)
    centers = rng.random((3000, 2)) * (700, 2000)  # only in the left half
    group = Group(first_pixels(centers, (90, 90)), (90, 90))
    small = Group(first_pixels(centers, (45, 45)), (45, 45))
    total = sum(len(which) for _, which, _ in read_crops(image, 0, [group, small], [64, 64]))
    assert total == 6000
    assert len(source.reads) == len(set(source.reads)) == 8 * 3  # 745 pixels are three chunks wide
    rows = [row for row, _ in source.reads]
    assert rows == sorted(rows)


def test_a_wide_image_is_read_in_strips(monkeypatch):
    source, image = counted(512, 4096, 256)
    monkeypatch.setattr(_bands, "_BUFFER", 3 * 512 * 1024)
    centers = np.random.default_rng(0).random((2000, 2)) * (4096, 512)
    group = Group(first_pixels(centers, (60, 60)), (60, 60))
    assert sum(len(which) for _, which, _ in read_crops(image, 0, [group], [100])) == 2000
    assert 32 <= len(source.reads) <= 32 + 2 * 6  # one column of chunks more at each of at most six borders


def test_reading_in_the_background_keeps_order_and_errors():
    assert list(in_background(iter(range(100)))) == list(range(100))

    def fails():
        yield 1
        raise ValueError("the file is damaged")

    items = in_background(fails())
    assert next(items) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(items)


def test_reading_ends_when_nobody_listens():
    import threading

    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    items = in_background(endless())
    next(items)
    items.close()
    assert not any(thread.name == "stfuse-reader" for thread in threading.enumerate())
