"""Spatial neighbours as an integer table, section by section, and means over them."""

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from stfuse._log import warn

BLOCK = 65_536  # rows at a time


def section_neighbors(
    spatial: np.ndarray, section: np.ndarray, n_neighbors: int, among: np.ndarray | None = None
) -> np.ndarray:
    """Nearest neighbours inside each section: an n x k integer table, padded with the row itself.

    The observation itself is not among its neighbours unless its section is too small. Of several that are equally far, as on
    a lattice, the places decide and not the order of the rows. ``among`` (boolean) says which observations count as neighbours.
    """
    n = spatial.shape[0]
    table = np.repeat(np.arange(n)[:, None], n_neighbors, axis=1)
    for code in np.unique(section):
        rows = np.flatnonzero(section == code)
        rows = rows[np.lexsort(spatial[rows].T)]
        others = rows if among is None else rows[among[rows]]
        k = min(n_neighbors + 1, others.size)
        if k < 1:
            continue
        found = others[cKDTree(spatial[others]).query(spatial[rows], k=range(1, k + 1))[1]]
        # coincident points may come before the row itself: move the row to the end, where padding is, keep the others' order
        order = np.argsort(found == rows[:, None], axis=1, kind="stable")
        table[rows, :k] = np.take_along_axis(found, order, axis=1)[:, :n_neighbors]
    return table


def neighborhood_mean(
    values: np.ndarray, has: np.ndarray, spatial: np.ndarray, section: np.ndarray, n_neighbors: int
) -> np.ndarray:
    """Mean of each row of ``values`` (n x d) and those of its nearest neighbours, float32.

    Only rows that are there (``has``) count, as neighbours too: one that is not gets the mean of its neighbours, NaN where its
    section has none.
    """
    values = np.ascontiguousarray(values)
    table = section_neighbors(spatial, section, n_neighbors, among=None if has.all() else has)
    out = np.empty(values.shape, dtype=np.float32)
    for start in range(0, len(values), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(values)))[:, None]
        near = np.hstack([rows, table[start : start + BLOCK]])
        counted = has[near]
        counted[:, 1:] &= near[:, 1:] != rows  # padding
        sizes = counted.sum(axis=1)
        ones = np.ones(sizes.sum())  # of double precision: large values don't cancel
        used, which = np.unique(near[counted], return_inverse=True)
        picks = csr_array((ones, which, np.r_[0, sizes.cumsum()]), shape=(len(rows), len(used)))
        sums = picks @ values[used].astype(np.float64)
        with np.errstate(invalid="ignore"):
            out[start : start + BLOCK] = sums / sizes[:, None]
    return out


def warn_if_small(section: np.ndarray, names: list[str], n_neighbors: int) -> None:
    """Warn of sections in which all observations are neighbours: a mean is the same for all of them."""
    sizes = np.bincount(section, minlength=len(names))
    small = np.flatnonzero((sizes > 1) & (sizes <= n_neighbors + 1))
    if small.size:
        warn(
            f"{small.size} section(s) have no more than n_neighbors + 1 = {n_neighbors + 1} observations (for example "
            f"{names[small[0]]!r}: {sizes[small[0]]}): all of them get the same mean. Use fewer neighbours."
        )
