"""Windows of neighbours around each observation, as an integer table."""

from __future__ import annotations

import numpy as np

from stfuse._check import check_number
from stfuse._lattice import Kind, Lattice, blocks, cell_keys, lattice, row_length


def window_table(
    spatial: np.ndarray,
    section: np.ndarray,
    window_size: int,
    array: np.ndarray | None = None,
    *,
    lattices: dict[int, Lattice] | None = None,
) -> np.ndarray:
    """Table n x w x w (int32) of the observations around each one, -1 where there is none.

    The middle is always the observation itself, sections never mix, and an observation without coordinates has only itself.
    Rows of a window run towards +y and columns towards +x, as near as the lattice of its section allows.

    - Square lattice: the w x w cells around the observation's.
    - Hexagonal lattice: w rows, each shifted by half a cell against the next, point-symmetric; see :func:`cells_of_window`.
    - Free: squares with sides of `spacing` around *each* observation, parallel to x and y. A square holds the nearest to
      its centre of the observations that fall into it, so that none occurs twice in a window.

    An observation that shares its cell (if free: its exact place) with another one that holds it has a window too, but is in
    no other's; :func:`doubled` tells which these are.

    ``lattices`` are those of :func:`section_lattices`, found from ``spatial`` and ``array`` where not given.
    """
    check_window(window_size)
    half = window_size // 2
    table = np.empty((len(spatial), window_size, window_size), dtype=np.int32)
    for code in np.unique(section).tolist():
        rows = _rows(section, code)
        found = _lattice_of(spatial, rows, array) if lattices is None else lattices[code]
        alone = np.isnan(found.spacing)
        table[rows if alone else rows[~found.placed]] = -1
        if found.cells is not None:
            _fill_from_cells(table, rows, found, found.cells)
        elif not alone:
            _fill_from_places(table, rows, spatial, found)
    table[:, half, half] = np.arange(len(table), dtype=np.int32)
    return table


def check_window(window_size: int) -> None:
    """Refuse a side without a middle."""
    check_number("window_size", window_size, least=1, whole=True)
    if window_size % 2 == 0:
        raise ValueError(f"window_size must be odd, so that an observation is in the middle, got {window_size}.")


def section_lattices(spatial: np.ndarray, section: np.ndarray, array: np.ndarray | None = None) -> dict[int, Lattice]:
    """Lattice of each section by its code."""
    return {code: _lattice_of(spatial, _rows(section, code), array) for code in np.unique(section).tolist()}


def doubled(section: np.ndarray, lattices: dict[int, Lattice]) -> np.ndarray:
    """Tell (n, bool) which observations lie in the cell or place that another one of their section holds."""
    out = np.zeros(len(section), dtype=bool)
    for code, found in lattices.items():
        out[_rows(section, code)] = found.doubled
    return out


def cells_of_window(kind: Kind, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (w x w each) of a window's cells, counted from its middle."""
    row, column = np.mgrid[-half : half + 1, -half : half + 1]
    if kind == "hexagonal":
        # Axial rows and columns alone make a sheared window that reaches far at two corners (5 x 5: a mean of 1.84 spacings
        # from the middle); columns counted from the left of each row of the section, as col // 2, are compact (1.77), but
        # shifted by half a cell according to the parity of the row. Going back a column every second row counted from the
        # middle is as compact, the same for every observation, and point-symmetric.
        column = column - np.trunc(row / 2).astype(np.int64)
    return row, column


def _rows(section: np.ndarray, code: int) -> np.ndarray:
    return np.flatnonzero(np.asarray(section) == code).astype(np.int32)


def _lattice_of(spatial: np.ndarray, rows: np.ndarray, array: np.ndarray | None) -> Lattice:
    if len(rows) < len(spatial):  # else no copy is needed
        spatial, array = np.asarray(spatial)[rows], None if array is None else np.asarray(array)[rows]
    return lattice(spatial, array)


def _fill_from_cells(table: np.ndarray, rows: np.ndarray, found: Lattice, cells: np.ndarray) -> None:
    """Look up every cell of a window among the sorted cells of the section."""
    half = table.shape[1] // 2
    # columns reach at most 1.5 half windows to a side, so that a row never runs into the next
    key, length = cell_keys(cells, 2 * half), row_length(cells, 2 * half)
    anchors, holds = rows, found.holds
    if not found.placed.all():
        key, anchors, holds = key[found.placed], rows[found.placed], found.holds[found.placed]
    order = np.argsort(key, kind="stable")
    key, anchors, holds = key[order], anchors[order], holds[order]
    del order
    holders, held = (anchors, key) if holds.all() else (anchors[holds], key[holds])
    row, column = cells_of_window(found.kind, half)
    shifts = (row * length + column).ravel()
    for block in blocks(len(anchors)):
        window = np.empty((len(anchors[block]), len(shifts)), dtype=np.int32)
        for cell, shift in enumerate(shifts):
            wanted = key[block] + shift
            at = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
            window[:, cell] = np.where(held[at] == wanted, holders[at], -1)
        table[anchors[block]] = window.reshape(-1, *table.shape[1:])


def _fill_from_places(table: np.ndarray, rows: np.ndarray, spatial: np.ndarray, found: Lattice) -> None:
    """Sort the places into squares and go through those that a window meets, one place of each anchor at a time."""
    width = table.shape[1]
    half = width // 2
    anchors, holds = rows[found.placed], found.holds[found.placed]
    x, y = (_in_spacings(spatial, anchors, axis, found.spacing) for axis in (0, 1))
    length = int(x.max()) + 1
    # line by line and in an order of places: of two that are equally far, the first one counts
    order = np.lexsort((y, x, _square(x, y, length)))
    anchors, holds = anchors[order], holds[order]
    x = x[order]
    y = y[order]
    del order
    holders, center_x, center_y = (anchors, x, y) if holds.all() else (anchors[holds], x[holds], y[holds])
    held = _square(center_x, center_y, length)
    for block in blocks(len(anchors)):
        here_x, here_y = x[block], y[block]
        window = np.full(len(here_x) * width * width, -1, dtype=np.int32)
        nearest = np.full(len(window), np.inf)
        left = np.maximum(np.floor(here_x - width / 2), 0).astype(np.int64)
        right = np.minimum(np.floor(here_x + width / 2), length - 1).astype(np.int64)
        bottom = np.floor(here_y - width / 2).astype(np.int64)
        for line in range(width + 1):
            candidate = np.searchsorted(held, (bottom + line) * length + left)
            stop = np.searchsorted(held, (bottom + line) * length + right, side="right")
            who = np.flatnonzero(candidate < stop)
            candidate, stop = candidate[who], stop[who]
            while len(who):
                away_x, away_y = center_x[candidate] - here_x[who], center_y[candidate] - here_y[who]
                column, row = np.floor(away_x + 0.5), np.floor(away_y + 0.5)
                distance = (away_x - column) ** 2 + (away_y - row) ** 2
                inside = np.flatnonzero((np.abs(column) <= half) & (np.abs(row) <= half))
                cell = ((row[inside] + half) * width + column[inside] + half).astype(np.int64) + who[inside] * width**2
                better = distance[inside] < nearest[cell]
                cell, inside = cell[better], inside[better]
                nearest[cell], window[cell] = distance[inside], holders[candidate[inside]]
                candidate += 1
                left_over = np.flatnonzero(candidate < stop)
                who, candidate, stop = who[left_over], candidate[left_over], stop[left_over]
        table[anchors[block]] = window.reshape(-1, *table.shape[1:])


def _in_spacings(spatial: np.ndarray, rows: np.ndarray, axis: int, spacing: float) -> np.ndarray:
    value = np.asarray(spatial)[rows, axis].astype(np.float64, copy=False)
    value -= value.min()
    value /= spacing
    return value


def _square(x: np.ndarray, y: np.ndarray, length: int) -> np.ndarray:
    """Number of the square of side 1, of ``length`` in a line, in which each place lies."""
    number = y.astype(np.int64)
    number *= length
    number += x.astype(np.int64)
    return number
