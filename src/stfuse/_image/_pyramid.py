"""An image at one or several resolutions, in memory or lazy, read as uint8 RGB."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stfuse._image._color import ColorFormat, check_bright, check_shape, color_format
from stfuse._image._lazy import compute_all

_PART, _PARTS = 32, 5  # pixels a side, and parts a side, that tell two lazy images apart
_LOOK_SIDE = 2048  # pixels a side of a lazy level that is looked at for fluorescence
_SAMPLE_SIDE = 4096  # pixels a side that tell how deep a lazy image is


@dataclass(frozen=True)
class Level:
    """One resolution: h x w x c values, a numpy or a dask array, and how many full-resolution pixels one of its is."""

    pixels: Any
    downsample: tuple[float, float]  # along x, along y

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of this level."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def lazy(self) -> bool:
        """Whether pixels are computed when they are asked for."""
        return not isinstance(self.pixels, np.ndarray)


@dataclass(frozen=True)
class Pyramid:
    """An image: its levels, sharpest first, and what is known of it.

    "Full resolution" are the pixels that coordinates count; the sharpest level may be coarser (a Visium hires image).
    """

    name: str  # for messages
    kind: str  # for the record: "hires", the name of a file or of an element
    levels: tuple[Level, ...]
    color: ColorFormat
    known_as: str | None = None  # what tells a file apart from others
    mpp: tuple[float, float] | None = None  # microns per full-resolution pixel (x, y), where the image itself says so

    @cached_property
    def token(self) -> str:
        """What tells the image apart from others, without reading all of a lazy one."""
        return self.known_as or _digest(self.levels[0])

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in full-resolution pixels."""
        level = self.levels[0]
        return level.size[0] * level.downsample[0], level.size[1] * level.downsample[1]

    def read(self, level: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Read a part of one level as h x w x 3 of uint8."""
        pixels = self.levels[level].pixels[rows, columns]
        if self.levels[level].lazy:
            pixels = compute_all([pixels])[0]
        return self.color.to_rgb(np.asarray(pixels))

    def thumbnail(self, max_side: int) -> tuple[np.ndarray, tuple[float, float]]:
        """Give the whole image small, h x w x 3 of uint8, and full-resolution pixels per thumbnail pixel (x, y)."""
        enough = [i for i, level in enumerate(self.levels) if max(level.size) >= max_side]
        index = enough[-1] if enough else 0
        level = self.levels[index]
        step = max(1, -(-max(level.size) // max_side))
        if step == 1:
            return self.read(index), level.downsample
        # means of step x step pixels; what is left over at the lower and right border is less than one of them
        width, height = (n // step for n in level.size)
        sums = np.zeros((height + 1, width, 3), dtype=np.uint32)
        borders = _row_borders(level)
        for top, bottom in zip(borders[:-1], borders[1:], strict=True):
            rows = self.read(index, slice(top, bottom), slice(0, width * step))
            across = rows.reshape(len(rows), width, step, 3).sum(axis=2, dtype=np.uint32)
            goal = np.minimum(np.arange(top, bottom) // step, height)
            first = np.flatnonzero(np.r_[True, goal[1:] != goal[:-1]])
            sums[goal[first]] += np.add.reduceat(across, first, axis=0)
        small = np.rint(sums[:height] / np.float32(step * step)).astype(np.uint8)
        return small, (level.downsample[0] * step, level.downsample[1] * step)

    def nearest_level(self, downsample: float) -> int:
        """Find the level whose resolution is nearest to so many full-resolution pixels per pixel."""
        ratios = [abs(np.log(np.sqrt(np.prod(level.downsample)) / downsample)) for level in self.levels]
        return int(np.argmin(ratios))


def _row_borders(level: Level) -> list[int]:
    """Where rows of chunks begin and end: read in other portions, chunks would be read twice."""
    if level.lazy:
        return [0, *np.cumsum(level.pixels.chunks[0]).tolist()]
    return [*range(0, level.size[1], 1024), level.size[1]]


def pyramid(
    levels: Sequence[Any],
    *,
    name: str,
    kind: str,
    downsample: float = 1.0,
    mpp: tuple[float, float] | None = None,
    token: str | None = None,
) -> Pyramid:
    """Make a pyramid of h x w (x c) arrays, sharpest first; the first has ``downsample`` full-resolution pixels a pixel."""
    arrays = []
    for array in levels:
        if not hasattr(array, "compute"):
            array = np.asarray(array)
        arrays.append(array[:, :, None] if array.ndim == 2 else array)
        check_shape(tuple(map(int, arrays[-1].shape)), name)
    arrays.sort(key=lambda a: -a.shape[0] * a.shape[1])
    height, width = arrays[0].shape[:2]
    made = [Level(a, (downsample * width / a.shape[1], downsample * height / a.shape[0])) for a in arrays]
    sample = _sample(made[-1])
    color = ColorFormat()
    if sample is not None:
        color = color_format(sample, name)
        check_bright(sample, color, name)
    return Pyramid(name, kind, tuple(made), color, token, mpp)


def _sample(level: Level) -> np.ndarray | None:
    """Take the pixels that decide on the colour format: all of them in memory, a regular part of a lazy level.

    None where nothing is to be decided and a look at large lazy pixels would cost as much as the work itself.
    """
    if not level.lazy:
        return level.pixels
    if level.pixels.dtype == np.uint8 and level.pixels.shape[2] > 1 and max(level.size) > _LOOK_SIDE:
        return None
    step = max(1, -(-max(level.size) // _SAMPLE_SIDE))
    return np.asarray(compute_all([level.pixels[::step, ::step]])[0])


def _digest(sharpest: Level) -> str:
    """Tell images apart by their pixels: all of those in memory, a regular set of small parts of lazy ones.

    Names of lazy arrays will not do: they tell the path and not what was written there.
    """
    digest = hashlib.blake2b(f"{sharpest.pixels.shape} {sharpest.pixels.dtype}".encode(), digest_size=20)
    if not sharpest.lazy:
        for start in range(0, sharpest.pixels.shape[0], 1024):
            digest.update(np.ascontiguousarray(sharpest.pixels[start : start + 1024]))
        return digest.hexdigest()
    width, height = sharpest.size
    places = (np.linspace(0, max(0, n - _PART), _PARTS).astype(int) for n in (height, width))
    rows, columns = places
    parts = [sharpest.pixels[y : y + _PART, x : x + _PART] for y in rows for x in columns]
    for part in compute_all(parts):
        digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()
