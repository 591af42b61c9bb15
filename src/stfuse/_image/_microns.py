"""How large a pixel is: from the file, the scale factors, or the spacing of an array's spots."""

from __future__ import annotations

import numpy as np

# Centre to centre, in microns: the hexagons of Visium, the squares of Spatial Transcriptomics.
_VISIUM, _ST = 100.0, 200.0
_ST_SPACING = (1.8, 2.2)  # the same in diameters of its spots of 100 µm; other square lattices are not known
_ENOUGH = 20  # spots, to tell a lattice
_EVEN = 0.15  # spread of the distances to nearest neighbours, of their median, that a lattice may have


def microns_from_spots(centers: np.ndarray, spot_diameter: float | None) -> float | None:
    """Microns per unit of n x 2 coordinates, where they are spots of a known array; else None.

    The spacing is used and not the diameter that Space Ranger writes, which is larger than the 55 µm of a spot and
    differs between its versions. On a hexagonal lattice the six nearest neighbours are equally far, on a square one
    four are and the next two 1.4 times as far. Squares that touch are bins (Visium HD) of unknown size, and squares at
    another distance than two diameters may be half of an array.
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
    square = distances[2] < (1 + _EVEN) * first and 1.25 < distances[5] / first < 1.6
    if square and _ST_SPACING[0] < first / spot_diameter < _ST_SPACING[1]:
        return _ST / float(distances[:3].mean())
    return None
