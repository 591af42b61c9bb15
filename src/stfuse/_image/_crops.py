"""Where crops lie in an image and how they are cut out of it, all at once."""

from __future__ import annotations

import numpy as np


def first_pixels(centers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upper left pixel (x, y) of crops of width x height around n x 2 centers."""
    # A pixel covers [i, i + 1): the crop begins half its side before the center, at the nearest whole pixel.
    return np.floor(centers - np.asarray(size) / 2 + 0.5).astype(np.int64)


def needed(first: np.ndarray, side: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last pixel (inclusive) that crops along one axis read of 0..n-1, mirrored parts included."""
    last = first + side - 1
    low = np.where(last > n - 1, np.minimum(first, 2 * (n - 1) - last), first)
    high = np.where(first < 0, np.maximum(last, -first), last)
    whole = (first < -(n - 1)) | (last > 2 * (n - 1))  # mirrored more than once
    low = np.where(whole | (first < 0), 0, np.clip(low, 0, n - 1))
    high = np.where(whole | (last > n - 1), n - 1, np.clip(high, 0, n - 1))
    return low, high


def gather(
    pixels: np.ndarray, first: np.ndarray, size: tuple[int, int], shape: tuple[int, int], origin: tuple[int, int]
) -> np.ndarray:
    """Cut b x height x width x 3 crops out of a part of an image that is mirrored at its borders.

    ``first`` are the crops' upper left pixels (x, y) and ``shape`` the width and height of the whole image, of which
    ``pixels`` begin at ``origin`` (x, y).
    """
    whole = ((first >= 0) & (first + size <= shape)).all(axis=1)
    if whole.all():
        return _slices(pixels, first - origin, size)
    crops = np.empty((len(first), size[1], size[0], 3), dtype=pixels.dtype)
    crops[whole] = _slices(pixels, first[whole] - origin, size)
    columns = mirror(first[~whole, :1] + np.arange(size[0]), shape[0]) - origin[0]
    rows = mirror(first[~whole, 1:] + np.arange(size[1]), shape[1]) - origin[1]
    crops[~whole] = pixels[rows[:, :, None], columns[:, None, :]]
    return crops


def _slices(pixels: np.ndarray, first: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut crops that lie inside: copies whole rows of pixels, twenty times as fast as an index for each pixel."""
    width, height = size
    if not len(first):
        return np.empty((0, height, width, 3), dtype=pixels.dtype)
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    step, one = flat.strides
    n_rows, n_columns = len(pixels) - height + 1, pixels.shape[1] - width + 1
    windows = np.lib.stride_tricks.as_strided(
        flat, (n_rows, n_columns, height, 3 * width), (step, 3 * one, step, one), writeable=False
    )
    return windows[first[:, 1], first[:, 0]].reshape(len(first), height, width, 3)


def mirror(index: np.ndarray, n: int) -> np.ndarray:
    """Bring indices into 0..n-1 by mirroring at the first and last pixel, as numpy.pad's "reflect" does."""
    if n == 1:
        return np.zeros_like(index)
    index = np.abs(index) % (2 * (n - 1))
    return np.minimum(index, 2 * (n - 1) - index)
