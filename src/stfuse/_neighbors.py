"""Spatial neighbours as an integer table, section by section."""

import numpy as np
from scipy.spatial import cKDTree


def section_neighbors(spatial: np.ndarray, section: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Nearest neighbours inside each section: an n x k integer table, padded with the row itself.

    The observation itself is not among its neighbours unless its section is too small. Of several that are equally far, as on
    a lattice, the places decide and not the order of the rows.
    """
    n = spatial.shape[0]
    table = np.repeat(np.arange(n)[:, None], n_neighbors, axis=1)
    for code in np.unique(section):
        rows = np.flatnonzero(section == code)
        rows = rows[np.lexsort(spatial[rows].T)]
        k = min(n_neighbors, rows.size - 1)
        if k < 1:
            continue
        found = cKDTree(spatial[rows]).query(spatial[rows], k=k + 1)[1]
        # coincident points may come before the row itself: move the row to the front, keep the others' order
        is_self = found == np.arange(rows.size)[:, None]
        is_self[~is_self.any(1), -1] = True
        order = np.argsort(~is_self, axis=1, kind="stable")
        table[rows, :k] = rows[np.take_along_axis(found, order, axis=1)[:, 1:]]
    return table
