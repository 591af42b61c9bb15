"""Which crops are cut from which level of a section's image: a grid of cells around each observation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stfuse._image._bands import Group
from stfuse._image._crops import first_pixels
from stfuse._image._section import Section

MIN_SIDE = 4  # pixels; below, a crop holds no texture


@dataclass(frozen=True)
class Part:
    """The crops of one cell size: where they are cut, and the place of their features, observation x cell."""

    level: int
    group: Group
    slots: np.ndarray  # row of the observation * number of cells + cell
    enlarged: bool  # to the least number of pixels


def plan_section(
    section: Section, side: tuple[float, float], grid: Sequence[int], size: int | None, level: int | None
) -> list[Part]:
    """Lay 1, 4, 16... cells over a crop of ``side`` full-resolution pixels around each observation on the image.

    Cells come in the order of ``grid``, row by row. The level is the one given, or the one on which a cell has most
    nearly ``size`` pixels, or the sharpest.
    """
    here = np.flatnonzero(section.inside)
    n_cells, before = sum(g * g for g in grid), 0
    parts = []
    for g in grid:
        cell = (side[0] / g, side[1] / g)
        chosen = level if level is not None else _level(section, cell, size)
        step = np.asarray(section.image.levels[chosen].downsample)
        pixels = np.rint(np.asarray(cell) / step).astype(int)
        offset = ((np.arange(g) + 0.5) / g - 0.5)[:, None]
        shift = np.stack([np.tile(offset[:, 0], g) * side[0], np.repeat(offset[:, 0], g) * side[1]], axis=1)
        centers = (section.centers[here, None] + shift[None]).reshape(-1, 2) / step
        width, height = (max(MIN_SIDE, int(n)) for n in pixels)
        slots = section.rows[here, None] * n_cells + before + np.arange(g * g)
        group = Group(first_pixels(centers, (width, height)), (width, height))
        parts.append(Part(chosen, group, slots.reshape(-1), bool((pixels < MIN_SIDE).any())))
        before += g * g
    return parts


def _level(section: Section, cell: tuple[float, float], size: int | None) -> int:
    return 0 if size is None else section.image.nearest_level(float(np.sqrt(cell[0] * cell[1])) / size)
