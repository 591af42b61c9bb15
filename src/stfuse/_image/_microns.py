"""How large a pixel is: from the file, the scale factors, or the spacing of an array's spots."""

from __future__ import annotations

import numpy as np

_VISIUM = 100.0  # microns from spot to spot
_ENOUGH = 20  # spots, to tell a lattice
_EVEN = 0.15  # spread of the distances to nearest neighbours, of their median, that a lattice may have


def microns_from_spots(centers: np.ndarray, spot_diameter: float | None) -> float | None:
    """Microns per unit of n x 2 coordinates, where they are spots of a known array; else None.

    The spacing is used and not the diameter that Space Ranger writes, which is larger than the 55 µm of a spot and
    differs between its versions. On Visium's hexagonal lattice the six nearest neighbours are equally far. Square lattices
    tell nothing: Spatial Transcriptomics (200 µm), DBiT-seq (20, 50 or 100 µm) and the bins of Visium HD all have one.
    """
    from scipy.spatial import cKDTree

    centers = centers[np.isfinite(centers).all(axis=1)]
    if spot_diameter is None or len(centers) < _ENOUGH:
        return None
    distances = np.median(cKDTree(centers).query(centers, k=7)[0][:, 1:], axis=0)
    first = distances[0]
    if first <= 0 or first < 1.2 * spot_diameter:
        return None
    if distances[5] < (1 + _EVEN) * first:
        return _VISIUM / float(distances.mean())
    return None
