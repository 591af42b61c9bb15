"""The lattice on which the observations of one section lie: rows and columns, found in coordinates or array positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

type Kind = Literal["square", "hexagonal", "free"]

_BLOCK = 8192  # rows at a time
_NEIGHBORS = 8
_SAMPLE = 20_000  # places whose neighbours are looked at
_ENOUGH = 12  # places, to tell a lattice without array positions
_CLOSE = 1.3  # spacings: farther than lattice neighbours in a stretched picture, nearer than the diagonal of a square
_ORDER = 0.5  # mean wave of the directions to neighbours, 1 on a perfect lattice and near 0 among cells
_SLACK = 0.4  # spacings by which a step between neighbours may miss the lattice
_FIT = 0.8  # share of the steps that must not miss it
_CROWDED = 0.05  # share of the places that may lie in a cell with another one
_FARTHEST = 2.0**30  # spacings from the middle at which a place is no part of the section any more


@dataclass(frozen=True)
class Lattice:
    """Rows and columns of the n observations of a section.

    `cells` (n x 2 int32, row and column) has no hole between neighbours; None where observations lie freely. On a
    hexagonal lattice rows and columns are axial: the six neighbours are (0, ±1), (±1, 0), (1, -1) and (-1, 1).
    `spacing` is the distance of neighbours, or the side of a square that holds about one observation, NaN where there is
    only one place. Observations that are not `placed` have no coordinates. Of several in one cell (if free: in exactly
    one place) one `holds` it: the nearest to its centre, then the one of smaller x, of smaller y, of the earlier row.
    """

    kind: Kind
    spacing: float
    cells: np.ndarray | None
    placed: np.ndarray
    holds: np.ndarray

    @property
    def doubled(self) -> np.ndarray:
        """Which observations lie in a cell or place that another one holds."""
        return self.placed & ~self.holds


class _Steps(NamedTuple):
    """Pairs of near places and what they tell; rows are those of the coordinates."""

    sample: np.ndarray  # rows spread over the section
    start: np.ndarray  # rows
    stop: np.ndarray  # rows
    vector: np.ndarray  # from start to stop
    middle: np.ndarray
    nearest: float  # median distance to the nearest neighbour
    side: float  # of a square that holds about one place


def lattice(xy: np.ndarray, array: np.ndarray | None = None) -> Lattice:
    """Find the lattice of one section from n x 2 coordinates (x, y) and, where there are any, n x 2 array positions.

    Array positions are used only where they fit the coordinates; their order (row and column, x and y) and gaps, as
    between Visium's columns of one row, do not matter. Columns run towards +x and rows towards +y, as near as the lattice
    allows. Unit, shift and order of the rows change nothing.
    """
    xy = np.asarray(xy, dtype=np.float64)
    placed = np.isfinite(xy).all(axis=1)
    one, steps = _look(xy, placed)
    if steps is not None:
        near = placed.copy()
        for axis, middle in enumerate(steps.middle):
            near &= np.abs(xy[:, axis] - middle) < _FARTHEST * steps.nearest
        if (near != placed).any():
            placed = near
            one, steps = _look(xy, placed)
    found = None
    if steps is not None and array is not None:
        found = _from_array(np.asarray(array), placed, steps)
    if steps is not None and found is None:
        found = _from_places(xy, placed, steps, int(one.sum()))
    if steps is None or found is None:
        return Lattice("free", float("nan") if steps is None else steps.side, None, placed, one)
    kind, spacing, axes, cells = _orient(*found)
    cells[~placed] = 0
    return Lattice(kind, spacing, cells, placed, _holders(xy, placed, axes, cells, steps))


def as_array(array: np.ndarray) -> Lattice:
    """Take places on the array (n x 2) as rows and columns of a square lattice, exactly as they are."""
    placed = np.isfinite(array).all(axis=1)
    cells = np.zeros(array.shape, dtype=np.int32)
    cells[placed] = np.rint(array[placed])
    holds = np.zeros(len(cells), dtype=bool)
    holds[np.flatnonzero(placed)[np.unique(cells[placed], axis=0, return_index=True)[1]]] = True
    return Lattice("square", 1.0, cells, placed, holds)


def _look(xy: np.ndarray, placed: np.ndarray) -> tuple[np.ndarray, _Steps | None]:
    """Tell one observation of each place, the first, and look at near pairs of them."""
    from scipy.spatial import cKDTree

    # in an order of places, so that nothing depends on that of the observations
    rows = np.lexsort((xy[:, 1], xy[:, 0]))
    if not placed.all():
        rows = rows[placed[rows]]
    places = xy[rows]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (places[1:] != places[:-1]).any(axis=1)
    if not first.all():
        rows, places = rows[first], places[first]
    one = np.zeros(len(xy), dtype=bool)
    one[rows] = True
    if len(rows) < 2:
        return one, None
    sample = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64))
    k = min(_NEIGHBORS, len(rows) - 1)
    distance, found = cKDTree(places, leafsize=32).query(places[sample], k=k + 1)
    nearest = float(np.median(distance[:, 1]))
    close = distance[:, 1:] <= _CLOSE * nearest
    start, stop = np.repeat(sample, close.sum(axis=1)), found[:, 1:][close]
    middle = np.median(places[sample], axis=0)
    spread = np.linalg.svd(places[sample] - middle, compute_uv=False)
    if k < _NEIGHBORS or spread[1] < 1e-6 * spread[0]:
        side = nearest
    else:
        # among points at random, k - 1/3 lie inside the median distance to the k-th
        side = float(np.median(distance[:, -1]) * np.sqrt(np.pi / (k - 1 / 3)))
    return one, _Steps(rows[sample], rows[start], rows[stop], places[stop] - places[start], middle, nearest, side)


def _from_array(array: np.ndarray, placed: np.ndarray, steps: _Steps) -> tuple[np.ndarray, np.ndarray] | None:
    """Axes (2 x 2, one a row) and cells from array positions; None where these are no lattice that fits the places."""
    origin = array[steps.sample[0]].astype(np.float64)
    move = array[steps.stop].astype(np.float64) - array[steps.start]
    if not np.isfinite(move).all() or np.linalg.matrix_rank(move) < 2:
        return None
    slope = np.linalg.lstsq(move, steps.vector, rcond=None)[0]
    # the two shortest steps that occur often and differ in direction generate all positions that the array has
    moves, counts = np.unique(move, axis=0, return_counts=True)
    moves = moves[(counts >= 0.1 * counts.max()) & moves.any(axis=1)]
    length = np.linalg.norm(moves @ slope, axis=1) / steps.nearest
    moves = moves[np.argsort(length.round(9), kind="stable")]
    aside = np.flatnonzero(moves[:1, 0] * moves[:, 1] - moves[:1, 1] * moves[:, 0])
    if not len(aside):
        return None
    basis = moves[[0, aside[0]]]
    inverse, cells = np.linalg.inv(basis), np.zeros(array.shape, dtype=np.int32)
    for block in blocks(len(array)):
        some = placed[block]
        part = array[block][some] - origin
        if not (np.abs(part) < _FARTHEST).all():  # NaN is not either
            return None
        found = np.rint(part @ inverse)
        if (found @ basis != part).any():
            return None
        cells[block][some] = found
    axes = basis @ slope
    return (axes, cells) if _fits(axes, cells, steps) else None


def _from_places(
    xy: np.ndarray, placed: np.ndarray, steps: _Steps, n_places: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Axes and cells from coordinates alone; None where they are on no lattice."""
    axes = _axes(steps) if n_places >= _ENOUGH else None
    whole = None if axes is None else _mend(xy, axes, steps)
    if whole is None:
        return None
    axes, origin = whole
    inverse, cells = np.linalg.inv(axes), np.zeros(xy.shape, dtype=np.int32)
    for block in blocks(len(xy)):
        some = placed[block]
        cells[block][some] = np.rint((xy[block][some] - origin) @ inverse)
    key = cell_keys(cells)[placed]
    key.sort()
    if 1 + np.count_nonzero(key[1:] != key[:-1]) < (1 - _CROWDED) * n_places:
        return None
    return (axes, cells) if _fits(axes, cells, steps) else None


def _axes(steps: _Steps) -> np.ndarray | None:
    """Axes that the steps between neighbours have in common, or None."""
    angle = np.arctan2(steps.vector[:, 1], steps.vector[:, 0])
    waves = {fold: np.exp(1j * fold * angle).mean() for fold in (4, 6)}
    fold = max(waves, key=lambda f: abs(waves[f]))
    if abs(waves[fold]) < _ORDER:
        return None
    directions = np.angle(waves[fold]) / fold + np.array([0, 2 * np.pi / fold])
    axes: np.ndarray = steps.nearest * np.column_stack([np.cos(directions), np.sin(directions)])
    for _ in range(3):
        move = np.rint(steps.vector @ np.linalg.inv(axes))
        good = np.linalg.norm(steps.vector - move @ axes, axis=1) < _SLACK * steps.nearest
        if np.linalg.matrix_rank(move[good]) < 2:
            return None
        axes = np.linalg.lstsq(move[good], steps.vector[good], rcond=None)[0]
    return axes


def _mend(xy: np.ndarray, axes: np.ndarray, steps: _Steps) -> tuple[np.ndarray, np.ndarray] | None:
    """Axes and origin that fit the whole section: outwards from its middle, before small errors add up to a cell."""
    points = xy[steps.sample] - steps.middle
    points = points[np.argsort(np.linalg.norm(points, axis=1), kind="stable")]
    origin, area, count = points[0], abs(np.linalg.det(axes)), 32
    while True:
        part = points[:count] - origin
        cells = np.rint(part @ np.linalg.inv(axes))
        design = np.column_stack([cells, np.ones(len(cells))])
        change = np.linalg.lstsq(design, part - cells @ axes, rcond=None)[0]
        axes, origin = axes + change[:2], origin + change[2]
        if abs(np.linalg.det(axes)) < 0.5 * area:
            return None
        if count >= len(points):
            return axes, origin + steps.middle
        count *= 2


def _fits(axes: np.ndarray, cells: np.ndarray, steps: _Steps) -> bool:
    """Tell whether steps between neighbours are those of their cells; a section that is bent as a whole passes too."""
    miss = np.linalg.norm(steps.vector - (cells[steps.stop] - cells[steps.start]) @ axes, axis=1)
    return bool((miss < _SLACK * steps.nearest).mean() > _FIT)


def _orient(axes: np.ndarray, cells: np.ndarray) -> tuple[Kind, float, np.ndarray, np.ndarray]:
    """Kind, spacing, and axes and cells such that columns run towards +x and rows towards +y."""
    short = _shortest(axes)
    a, b = short @ axes
    slant = abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
    kind: Kind = "square" if slant < np.cos(np.deg2rad(75)) else "hexagonal"
    across = [1, -1] if a @ b > 0 else [1, 1]
    ways = np.array([[1, 0], [0, 1]] if kind == "square" else [[1, 0], [0, 1], across]) @ short
    spacing = float(np.linalg.norm(ways @ axes, axis=1).mean())
    ways = np.concatenate([ways, -ways])
    angle = np.arctan2(*(ways @ axes).T[::-1])
    # Arrays lie upright, or diagonally as in Spatial Transcriptomics, or a hexagonal one turned by 90 degrees has +x halfway
    # between two axes: the borders of "nearest to +x" are moved away from all of these, else jitter would decide.
    toward, turn = (15, 90) if kind == "square" else (10, 60)
    column = np.argmin(_apart(angle, np.deg2rad(toward)))
    row = np.argmin(_apart(angle, angle[column] + np.deg2rad(turn)))
    change = ways[[row, column]]
    return kind, spacing, change @ axes, cells @ np.rint(np.linalg.inv(change)).astype(np.int32)


def _shortest(axes: np.ndarray) -> np.ndarray:
    """Whole-number combinations (2 x 2) of the axes that are the shortest axes of their lattice (Lagrange's reduction)."""
    short = np.eye(2, dtype=np.int64)
    while True:
        a, b = short @ axes
        if b @ b < a @ a * (1 - 1e-9):
            short = short[::-1]
        elif abs(a @ b) > (0.5 + 1e-9) * (a @ a):
            short = np.array([short[0], short[1] - int(np.rint((a @ b) / (a @ a))) * short[0]])
        else:
            return short


def _apart(angle: np.ndarray, other: float) -> np.ndarray:
    difference: np.ndarray = np.abs(np.angle(np.exp(1j * (angle - other))))
    return difference


def _holders(xy: np.ndarray, placed: np.ndarray, axes: np.ndarray, cells: np.ndarray, steps: _Steps) -> np.ndarray:
    """Tell which observation holds its cell."""
    holds = placed.copy()
    key = cell_keys(cells)
    key[~placed] = -1
    ordered = np.sort(key)
    shared = ordered[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)]
    del ordered
    if len(shared):
        rows = np.flatnonzero(np.isin(key, shared))
        origin = np.median(xy[steps.sample] - cells[steps.sample] @ axes, axis=0)
        miss = np.linalg.norm(xy[rows] - origin - cells[rows] @ axes, axis=1)
        rows = rows[np.lexsort((xy[rows, 1], xy[rows, 0], miss, key[rows]))]
        holds[rows[1:][key[rows[1:]] == key[rows[:-1]]]] = False
    return holds


def cell_keys(cells: np.ndarray, margin: int = 0) -> np.ndarray:
    """One number for each cell, row by row, none negative; ``margin`` columns are kept free on either side."""
    row, column = cells.min(axis=0).tolist()
    key = cells[:, 0].astype(np.int64)
    key -= row
    key *= row_length(cells, margin)
    key += cells[:, 1]
    key += margin - column
    return key


def row_length(cells: np.ndarray, margin: int = 0) -> int:
    """How much larger the :func:`cell_keys` of a cell is than that of the one in the row before."""
    return int(cells[:, 1].max()) - int(cells[:, 1].min()) + 1 + 2 * margin


def blocks(n: int) -> Iterator[slice]:
    """Parts of n rows, so that what is computed on the way stays small."""
    for start in range(0, n, _BLOCK):
        yield slice(start, min(n, start + _BLOCK))
