"""Where tiles lie on a section and which observations lie in which tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-6  # of a tile: sides in pixels are quotients of microns


@dataclass(frozen=True)
class Tiles:
    """Tiles of one section, in one coordinate frame: pixels of its image, or the tiles' own coordinates."""

    section: str
    names: np.ndarray  # n of str, unique among all sections
    origins: np.ndarray  # n x 2, the corner with the smallest x and y
    sides: np.ndarray  # n
    cells: np.ndarray  # rows of the table with a tile; a row occurs again where tiles overlap
    tile: np.ndarray  # for each of ``cells``, which of the n tiles
    tissue: np.ndarray | None = None  # share of each tile's area, where it was looked at
    mpp: float | None = None  # microns per unit of the frame
    reach: tuple[np.ndarray, np.ndarray] | None = None  # rows and tiles of cells that overlap, where it was asked for

    @property
    def centers(self) -> np.ndarray:
        """Middles of the tiles, n x 2."""
        return self.origins + self.sides[:, None] / 2


def whole_tiles(size: tuple[float, float], side: float) -> np.ndarray:
    """Column and row of all tiles that fit an image of so many pixels, row by row; the grid begins at its corner."""
    columns, rows = (int(np.floor(length / side + _ROUNDING)) for length in size)
    grid = np.indices((rows, columns)).reshape(2, -1)
    return np.ascontiguousarray(grid[::-1].T)


def occupied_tiles(places: np.ndarray, side: float) -> np.ndarray:
    """Column and row of the tiles of an endless grid that hold at least one of n x 2 places, row by row."""
    index = np.unique(_index(places[np.isfinite(places).all(axis=1)], side)[:, ::-1], axis=0)
    return np.ascontiguousarray(index[:, ::-1])


def assign(places: np.ndarray, grid: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Tell which of n x 2 places lie in one of the tiles (column, row), and in which; borders belong to the next tile."""
    known = np.flatnonzero(np.isfinite(places).all(axis=1))
    if not len(known) or not len(grid):
        return known[:0], known[:0]
    index = _index(places[known], side)
    low, high = grid.min(axis=0), grid.max(axis=0)
    inside = ((index >= low) & (index <= high)).all(axis=1)
    known, index = known[inside], index[inside] - low
    columns = int(high[0] - low[0]) + 1
    keys = (grid[:, 1] - low[1]) * columns + grid[:, 0] - low[0]
    order = np.argsort(keys)
    wanted = index[:, 1] * columns + index[:, 0]
    found = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    hit = keys[found] == wanted
    return known[hit], found[hit]


def _index(places: np.ndarray, side: float) -> np.ndarray:
    return np.floor(places / side).astype(np.int64)
