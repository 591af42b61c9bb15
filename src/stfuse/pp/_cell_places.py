"""Where cells lie in their tiles: place relative to the tile's corner, and its side, in one unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read
from stfuse._image._elements import annotation, table_name
from stfuse._image._section import Choice, read_places
from stfuse._log import warn
from stfuse._places import affine, places_of, regions_of, systems_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

SQUARE = ("tile_x", "tile_y", "tile_size")
OUTSIDE = 0.5  # of the cells, above which cells and tiles are not in one unit
SLACK = 1e-6  # of a side, by which rounding may put a cell outside


class Squares(NamedTuple):
    """Corner (n x 2) and side (n) of each tile."""

    corner: np.ndarray
    side: np.ndarray


def read_cell_places(
    data: Any, cells: AnnData, tiles: AnnData | None, number: np.ndarray, spatial_key: Any
) -> np.ndarray:
    """Coordinates of all cells, n x 2; of a SpatialData in the own coordinates of the element of each cell's tile (``number``)."""
    if spatial_key == _keys.SPATIAL and _read.is_spatialdata(data):
        if tiles is not None and regions_of(tiles) and regions_of(cells):
            return _in_frame_of_tiles(data, cells, tiles, number)
        found = _read.read_coordinates(data, spatial_key, table_name(data, cells))
        if found is not None:
            return found
    return read_places(cells, spatial_key)


def _in_frame_of_tiles(sdata: SpatialData, cells: AnnData, tiles: AnnData, number: np.ndarray) -> np.ndarray:
    elements, element_key, _ = annotation(tiles, Choice())
    regions, region_key, instance_key = annotation(cells, Choice())
    # elements may share a coordinate system and yet have coordinates of their own, so that each cell's tile decides
    lies_on = np.where(number >= 0, np.asarray(tiles.obs[element_key].astype(str), dtype=object)[number], "")
    column = cells.obs[region_key].astype(str).to_numpy()
    out = np.full((cells.n_obs, 2), np.nan)
    for element in (name for name in elements if name in sdata):
        for region in (name for name in regions if name in sdata):
            shared = [system for system in systems_of(sdata[element]) if system in systems_of(sdata[region])]
            rows = np.flatnonzero(column == region)
            here = lies_on[rows] == element
            if not shared or not here.any():
                continue
            places = places_of(sdata[region], region, pd.Index(cells.obs[instance_key].iloc[rows]), shared[0])
            to_own = np.linalg.inv(affine(sdata[element], element, shared[0]))
            out[rows[here]] = places[here] @ to_own[:2, :2].T + to_own[:2, 2]
    if np.isnan(out).all():
        raise ValueError(
            f"The tiles' element(s) {_read.listing(elements)} share no coordinate system with those of the cells "
            f"({_read.listing(regions)}), or are not there: add a transformation with "
            "spatialdata.transformations.set_transformation."
        )
    return out


def find_squares(
    tiles: AnnData | None, tile_size: float | None, n_tiles: int, number: np.ndarray, places: np.ndarray
) -> Squares:
    """Squares of the tiles: as they are written, else around their centres, else around their cells."""
    written = tiles is not None and all(name in tiles.obs for name in SQUARE)
    if written and tile_size is not None:
        raise ValueError("tile_size= is for tiles that do not say their own, and tiles.obs['tile_size'] is there.")
    if written and tiles is not None:
        table = np.column_stack([pd.to_numeric(tiles.obs[name], errors="coerce") for name in SQUARE]).astype(np.float64)
        if not (np.isfinite(table).all() and (table[:, 2] > 0).all()):
            raise ValueError(f"tiles.obs[{list(SQUARE)}] must be finite numbers, with sides above 0.")
        return Squares(table[:, :2], table[:, 2])
    if tile_size is not None and tiles is not None:
        centers = _read.read_coordinates(tiles)
        if centers is None:
            raise KeyError(f"tile_size= needs the tiles' centres. {_read.no_coordinates(tiles, _keys.SPATIAL)}")
        if not np.isfinite(centers).all():
            raise ValueError("tiles.obsm['spatial'] must be finite, as tile_size= cuts squares around these centres.")
        return Squares(centers - tile_size / 2, np.full(n_tiles, float(tile_size)))
    low, high = np.full((n_tiles, 2), np.inf), np.full((n_tiles, 2), -np.inf)
    inside = number >= 0
    np.minimum.at(low, number[inside], places[inside])
    np.maximum.at(high, number[inside], places[inside])
    empty = ~np.isfinite(low).all(axis=1)
    low[empty] = high[empty] = 0.0
    if tile_size is not None:
        warn(
            "Nothing says where the tiles lie: each counts as centred on the middle of its cells, so that borders of blocks may be "
            "off from those of its image. Give the table of tiles that stfuse.pp.tessellate makes."
        )
        return Squares((low + high - tile_size) / 2, np.full(n_tiles, float(tile_size)))
    warn(
        "Nothing says how large the tiles are: blocks are cut from the smallest squares around the cells of each, which "
        "may be smaller than its image. Give the table of tiles that stfuse.pp.tessellate makes, or tile_size=."
    )
    side = (high - low).max(axis=1)
    side[side <= 0] = 1.0
    return Squares((low + high - side[:, None]) / 2, side)


def check_inside(local: np.ndarray, side: np.ndarray) -> int:
    """Count cells that lie outside of the square of their tile; of most it means that units differ."""
    relative = local / side[:, None]
    out = int(((relative < -SLACK) | (relative > 1 + SLACK)).any(axis=1).sum())
    if out > OUTSIDE * len(local):
        raise ValueError(
            f"{out} of {len(local)} cells lie outside of the square of the tile that they are said to be in: coordinates of cells "
            "and tiles must have one unit and one origin (obsm['spatial'], and tiles.obs['tile_x', 'tile_y', 'tile_size'])."
        )
    if out:
        warn(f"{out} of {len(local)} cells lie outside of the square of their tile: they count to its nearest block.")
    return out
