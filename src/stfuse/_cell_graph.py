"""Cells of tiles as one disjoint graph: blocks, edges within the smallest blocks, and pairs that larger blocks may join."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial import Delaunay, QhullError, cKDTree

Scale = Literal["micro", "meso", "macro"]
SCALES: tuple[Scale, ...] = ("micro", "meso", "macro")
Mode = Literal["knn", "radius", "delaunay"]

CHUNK = 4_000_000  # pairs made at once


class Placed(NamedTuple):
    """Cells that lie in a tile: number of the tile, place relative to its corner (n x 2), and its side."""

    tile: np.ndarray
    local: np.ndarray
    side: np.ndarray


def block_ids(cells: Placed, n_blocks: int) -> np.ndarray:
    """Number of each cell's block in its tile at the three scales, n x 3, row by row from the corner.

    The tile has n_blocks x n_blocks blocks, 2 x 2, and one. A cell outside of its tile counts to the nearest block.
    """
    relative = cells.local / cells.side[:, None]
    found = []
    for per_side in (n_blocks, 2, 1):
        column, row = np.clip(np.floor(relative * per_side), 0, per_side - 1).astype(np.int64).T
        found.append(row * per_side + column)
    return np.stack(found, axis=1)


def groups(*numbers: np.ndarray) -> np.ndarray:
    """One number for each combination of numbers, in their order."""
    combined = numbers[0].astype(np.int64)
    for more in numbers[1:]:
        combined = combined * (int(more.max(initial=0)) + 1) + more
    return np.unique(combined, return_inverse=True)[1]


# edges


def edges_within(
    cells: Placed, block: np.ndarray, mode: Mode, *, n_neighbors: int, radius: float | None, section: np.ndarray,
    spatial: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Pairs of neighbours in the same block of the same tile, m x 2, the lower number first, each once.

    Neighbours are the nearest few of the block, all within a radius, or those in the Delaunay triangulation of these cells of the
    section (``spatial``), from which edges that leave the block are taken out.
    """
    group = groups(cells.tile, block)
    if mode == "delaunay":
        pairs = _triangulated(spatial, section)
        pairs = pairs[group[pairs[:, 0]] == group[pairs[:, 1]]]
    else:
        # a third coordinate moves blocks apart by more than any distance inside
        reach = float(np.hypot(*np.ptp(cells.local, axis=0))) + 1.0 if len(group) else 1.0
        # of several that are equally far the places decide, not the order of the rows
        order = np.lexsort((cells.local[:, 1], cells.local[:, 0], group))
        places = np.column_stack([cells.local, 2.0 * reach * group])[order]
        if mode == "knn":
            # no block has more than its largest one's
            found = _nearest(places, min(n_neighbors, int(np.bincount(group).max(initial=1)) - 1), reach)
        else:
            found = _close(places, min(radius or reach, reach))
        pairs = order[found]
    return unique_pairs(pairs, len(group))


def _nearest(places: np.ndarray, k: int, reach: float) -> np.ndarray:
    n = len(places)
    if k < 1:
        return np.empty((0, 2), np.int64)
    _, found = cKDTree(places).query(places, k=range(1, k + 2), distance_upper_bound=reach)
    # of cells in one place the cell itself need not come first; what is missing has the number n
    own = np.arange(n)[:, None]
    found[found == own] = n
    found = np.take_along_axis(found, np.argsort(found == n, axis=1, kind="stable"), axis=1)[:, :k]
    there = found < n
    return np.column_stack([np.repeat(np.arange(n), there.sum(axis=1)), found[there]])


def _close(places: np.ndarray, radius: float) -> np.ndarray:
    return cKDTree(places).query_pairs(radius, output_type="ndarray").astype(np.int64)


def _triangulated(spatial: np.ndarray, section: np.ndarray) -> np.ndarray:
    found = [np.empty((0, 2), np.int64)]
    for code in np.unique(section):
        rows = np.flatnonzero(section == code)
        try:
            mesh = Delaunay(spatial[rows])
        except (QhullError, ValueError):  # fewer than three cells, or all on one line: their order along it
            line = _along(spatial[rows])
            found.append(rows[np.column_stack([line[:-1], line[1:]])])
            continue
        corners = mesh.simplices
        found += [rows[corners[:, side]] for side in ([0, 1], [1, 2], [0, 2])]
        # a cell exactly where another one lies is in no triangle
        found.append(rows[mesh.coplanar[:, [0, 2]].astype(np.int64)])
    return np.concatenate(found)


def _along(places: np.ndarray) -> np.ndarray:
    """Order of places along the line that they lie on, which rounding may have made a little crooked."""
    if len(places) < 2:
        return np.arange(len(places))
    _, _, axes = np.linalg.svd(places - places.mean(axis=0), full_matrices=False)
    return np.lexsort((places[:, 1], places[:, 0], places @ axes[0]))


def unique_pairs(pairs: np.ndarray, n: int) -> np.ndarray:
    """Each pair once, the lower number first, in ascending order."""
    low, high = pairs.min(axis=1, initial=n), pairs.max(axis=1, initial=0)
    keys = np.unique(low.astype(np.int64) * n + high)
    return np.column_stack(np.divmod(keys, n)) if n else np.empty((0, 2), np.int64)


# candidates


class Candidates(NamedTuple):
    """Pairs of cells (m x 2, the lower number first), and how many there are in all before any was left out."""

    pairs: np.ndarray
    n_all: int


def candidate_pairs(
    cells: Placed, fine: np.ndarray, coarse: np.ndarray, most: int, seed: int, names: pd.Index | None = None
) -> Candidates:
    """Pairs of cells in different ``fine`` blocks of one ``coarse`` block: those that the coarser scale may join.

    A tile with more than ``most`` gets that many, evenly spaced among all of them from a random one on, so that each has the same
    chance and every cell about its share. What is drawn depends on the places of its cells and on its name (of ``names``; None = its
    number), and not on the order of cells or on other tiles.
    """
    order = np.lexsort((cells.local[:, 1], cells.local[:, 0], fine, coarse, cells.tile))
    tile, coarse, fine = cells.tile[order], coarse[order], fine[order]
    n = len(order)
    # partners of a cell stand behind its own fine block, up to the end of its coarse one
    end_fine, end_coarse = _ends(tile, coarse, fine), _ends(tile, coarse)
    stops = np.cumsum(end_coarse - end_fine)
    first = np.flatnonzero(np.r_[True, tile[1:] != tile[:-1]]) if n else np.empty(0, np.int64)
    total = np.diff(np.r_[0, stops[np.r_[first[1:] - 1, n - 1]]]) if n else np.empty(0, np.int64)
    kept = np.minimum(total, most)
    begin = np.cumsum(total) - total
    shift = _chances(tile[first], names, seed)
    parts = np.searchsorted(np.cumsum(kept), np.arange(CHUNK, kept.sum() + CHUNK, CHUNK), side="right")
    made, start = [np.empty((0, 2), np.int32)], 0
    for stop in [*parts.tolist(), len(total)]:
        some = slice(start, max(stop, start))
        start = some.stop
        size = kept[some]
        if not size.sum():
            continue
        number = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        step = np.repeat(total[some] / np.maximum(size, 1), size)
        at = np.floor((number + np.repeat(shift[some], size)) * step).astype(np.int64)
        # rounding may lead to the first pair of the next tile
        at = np.repeat(begin[some], size) + np.minimum(at, np.repeat(total[some], size) - 1)
        one = np.searchsorted(stops, at, side="right")
        other = end_coarse[one] - (stops[one] - at)
        both = np.column_stack([order[one], order[other]]).astype(np.int32)
        both.sort(axis=1)
        made.append(both)
    return Candidates(np.concatenate(made), int(total.sum()))


def _chances(tiles: np.ndarray, names: pd.Index | None, seed: int) -> np.ndarray:
    """A number from 0 to 1 for each tile, by its name and the seed."""
    named = tiles if names is None else names.to_numpy(dtype=object)[tiles]
    with np.errstate(over="ignore"):
        mixed = pd.util.hash_array(named) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
    return (pd.util.hash_array(mixed) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _ends(*sorted_numbers: np.ndarray) -> np.ndarray:
    """For each row the first one after its run of equal numbers."""
    n = len(sorted_numbers[0])
    differs = np.zeros(n, bool)
    for number in sorted_numbers:
        differs[1:] |= number[1:] != number[:-1]
    stops = np.r_[np.flatnonzero(differs), n]
    return stops[np.cumsum(differs)]
