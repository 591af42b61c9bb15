"""Places inside polygons, so that a place on a border that tiles share lies in one of them."""

from __future__ import annotations

from typing import Any

import numpy as np

_EPS = float(np.finfo(np.float64).eps)


def inside_polygons(places: np.ndarray, polygons: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pair n x 2 places with the polygons that hold them; a place on a border belongs to the next, as in a grid.

    The next is where a tiny step to larger x, and a far tinier one to larger y, leads. Of polygons that share a border
    and don't overlap that is one, whatever the angle of the border; at the rim there may be no next.
    """
    import shapely

    known = np.flatnonzero(np.isfinite(places).all(axis=1))
    points = shapely.points(places[known])
    which, polygon = shapely.STRtree(polygons).query(points, predicate="intersects")
    unsure = np.flatnonzero(shapely.touches(points[which], polygons[polygon]))
    keep = np.ones(len(which), dtype=bool)
    keep[unsure] = _step_leads_inside(places[known[which[unsure]]], polygons[polygon[unsure]])
    which, polygon = which[keep], polygon[keep]
    order = np.lexsort((polygon, which))
    return known[which[order]], polygon[order]


def _step_leads_inside(places: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Count the sides to the right of each place, which lies on the border of its polygon: inside, they are odd."""
    import shapely

    parts, of_polygon = shapely.get_parts(polygons, return_index=True)
    rings, of_part = shapely.get_rings(parts, return_index=True)
    corners, of_ring = shapely.get_coordinates(rings, return_index=True)
    side = np.flatnonzero(of_ring[1:] == of_ring[:-1])
    pair = of_polygon[of_part[of_ring[side]]]
    x, y = places[pair].T
    start, end = corners[side], corners[side + 1]
    # two polygons run along a side that they share in opposite directions, and must find the same of it
    low, high = np.where((start[:, 1] <= end[:, 1])[:, None], [start, end], [end, start])
    level = (low[:, 1] <= y) & (y < high[:, 1])
    left, right = (high[:, 0] - low[:, 0]) * (y - low[:, 1]), (x - low[:, 0]) * (high[:, 1] - low[:, 1])
    # what rounding can't tell from the side lies on it, and a step to the right is past it
    beyond = left - right > 4 * _EPS * (np.abs(left) + np.abs(right))
    return np.asarray(np.bincount(pair[level & beyond], minlength=len(places)) % 2 == 1)
