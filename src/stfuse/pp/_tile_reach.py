"""Cells that reach into a tile with a part of their outline."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse._image._elements import annotation
from stfuse._image._section import Choice
from stfuse._image._tiles import Tiles
from stfuse._places import affine

if TYPE_CHECKING:
    from spatialdata import SpatialData


def reaching(
    tiles: Tiles, polygons: Any, sdata: SpatialData, cells: AnnData, choice: Choice, region: str, move: np.ndarray
) -> Tiles:
    """Add the cells of one region that overlap a tile; ``move`` takes their coordinates to those of the tiles."""
    import shapely

    rows, outlines = _outlines(sdata, cells, choice, region, move)
    which, tile = shapely.STRtree(polygons).query(outlines, predicate="intersects")
    overlap = ~shapely.touches(outlines[which], polygons[tile])
    before = tiles.reach or (np.empty(0, dtype=np.int64),) * 2
    pairs = (rows[which[overlap]], tile[overlap])
    return replace(tiles, reach=(np.concatenate([before[0], pairs[0]]), np.concatenate([before[1], pairs[1]])))


def squares(tiles: Tiles) -> Any:
    """Make polygons of tiles."""
    import shapely

    low, high = tiles.origins, tiles.origins + tiles.sides[:, None]
    return shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])


def _outlines(
    sdata: SpatialData, cells: AnnData, choice: Choice, region: str, move: np.ndarray
) -> tuple[np.ndarray, Any]:
    import shapely

    element = sdata[region]
    if not hasattr(element, "geometry"):
        raise ValueError(
            f"partial=True needs the outlines of the cells, and {region!r} is no element of shapes (polygons or circles): "
            "make them with spatialdata.to_polygons, or leave partial=False."
        )
    _, region_key, instance_key = annotation(cells, choice)
    rows = np.flatnonzero((cells.obs[region_key].astype(str) == region).to_numpy())
    place = element.index.get_indexer(pd.Index(cells.obs[instance_key].iloc[rows]))
    rows, place = rows[place >= 0], place[place >= 0]
    shapes = element.geometry.to_numpy()[place]
    if "radius" in element.columns:
        shapes = shapely.buffer(shapes, element["radius"].to_numpy(dtype=np.float64)[place])
    return rows, shapely.transform(shapes, lambda xy: xy @ move[:2, :2].T + move[:2, 2])


def to_frame(sdata: SpatialData, region: str, system: str, frame: Any | None, name: str) -> np.ndarray:
    """Map the own coordinates of cells to those of an image or of tiles, or to the system itself."""
    moved = affine(sdata[region], region, system)
    return moved if frame is None else np.linalg.inv(affine(frame, name, system)) @ moved
