"""The cells of tiles: which lie in which, where in its crop, and in which colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgba

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse._image._elements import table_name
from stfuse._image._section import Choice, read_places
from stfuse._image._sections import find_sections
from stfuse._log import warn
from stfuse.pl._color import Color, Palette, face_colors, number_scale, read_color
from stfuse.pp._seen_crops import SeenCrop

PLAIN = "#00A6D6"  # cells without a colour: no colour of H&E, nor of the maps
_TILES = "tiles"  # what `pp.tessellate` calls the column of cells


class Cells(NamedTuple):
    """The cells of one tile: where they lie in its crop (pixels), and their colours (RGBA)."""

    xy: np.ndarray
    rgba: np.ndarray


@dataclass(frozen=True)
class TileCells:
    """The cells of the tiles that are drawn; of none where no cells are given."""

    table: AnnData | None = None
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)  # by tile
    color: Color | None = None
    scale: ScalarMappable | None = None  # of numbers
    places: Mapping[str, np.ndarray] = field(default_factory=dict)  # by image: x, y of all cells in its full pixels

    @property
    def legend(self) -> Color | None:
        """The colours that are drawn, for the legend; None where there are none."""
        shown = _shown(self.rows)
        if self.color is None or not len(shown):
            return None
        return self.color._replace(values=self.color.values[shown])

    def placed(self, tiles: Any, crops: Sequence[SeenCrop], choice: Choice) -> TileCells:
        """Read where the cells lie on the images of the crops."""
        if self.table is None:
            return self
        images = {crop.image for crop in crops}
        if _read.is_spatialdata(tiles) and len(tiles.images):
            return replace(self, places={image: _on_image(tiles, self.table, image, choice) for image in images})
        return replace(self, places=dict.fromkeys(images, read_places(self.table, choice.spatial_key)))

    def of(self, crop: SeenCrop) -> Cells:
        """Place the cells of a tile in its crop."""
        if self.table is None:
            return Cells(np.empty((0, 2)), np.empty((0, 4)))
        rows = self.rows[crop.name]
        xy = crop.place(self.places[crop.image][rows])
        height, width = crop.pixels.shape[:2]
        inside = ((xy >= 0) & (xy <= (width, height))).all(axis=1)
        if len(rows) and not inside.any():
            warn(
                f"None of the {len(rows)} cells of tile {crop.name!r} lies in its crop: are the coordinates of cells and tiles "
                "in the same pixels? (spatial_key=)"
            )
        rgba = np.tile(to_rgba(PLAIN), (len(rows), 1))
        if self.color is not None:
            rgba, _ = face_colors(self.color, rows, self.scale)
        return Cells(xy[inside], rgba[inside])


def choose_cells(
    tiles: Any,
    cells: AnnData | str | None,
    tile_key: str | None,
    color: str | None,
    palette: Palette,
    *,
    all_tiles: pd.Index,
    names: Sequence[str],
) -> TileCells:
    """Find the cells of the tiles that are named, and what they are coloured by."""
    if cells is None:
        return TileCells()
    table = _owner(tiles, cells)
    rows = _rows_by_tile(table, tile_key, all_tiles, names)
    coloring = None if color is None else read_color(table, color, palette=palette, table_key=None)
    return TileCells(table, rows, coloring, number_scale(coloring, _shown(rows), "viridis", None, None))


def _shown(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows.values()]))


def _owner(tiles: Any, cells: AnnData | str) -> AnnData:
    """Find the table of the cells: itself, or in a SpatialData by its name."""
    if isinstance(cells, str):
        if not _read.is_spatialdata(tiles):
            raise TypeError(f"cells={cells!r} names a table of a SpatialData, and tiles is none: pass the AnnData.")
        table: Any = _read.container(tiles, cells)
        return table
    if not isinstance(cells, AnnData):
        raise TypeError(f"cells must be an AnnData or the name of a table, got {type(cells).__name__}.")
    if _read.is_spatialdata(tiles) and not any(cells is table for table in tiles.tables.values()):
        raise ValueError(
            "cells is no table of the SpatialData, so that its coordinates can't be brought onto the image: pass the name of "
            f"one. Tables there: {', '.join(tiles.tables)}."
        )
    return cells


def _rows_by_tile(
    cells: AnnData, tile_key: str | None, all_tiles: pd.Index, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Find the cells of each tile that is named."""
    if tile_key is None and _TILES not in cells.obs:
        there = ", ".join(map(str, cells.obs.columns)) or "nothing"
        raise ValueError(
            f"Which column of cells.obs names their tiles? tile_key=. (pp.tessellate writes {_TILES!r}.) obs has: {there}."
        )
    key = _TILES if tile_key is None else tile_key
    column = _read.read_column(cells, key).astype(str)
    if not column.isin(all_tiles.astype(str)).any():
        raise ValueError(
            f"No cell lies in one of the tiles: cells.obs[{key!r}] holds {column.iloc[0]!r}, and a tile is called "
            f"{str(all_tiles[0])!r}.{did_you_mean(column.iloc[0], all_tiles)}"
        )
    values = column.to_numpy()
    return {name: np.flatnonzero(values == name) for name in names}


def _on_image(tiles: Any, cells: AnnData, image: str, choice: Choice) -> np.ndarray:
    """Bring cells of a SpatialData onto an image by the transformations of both."""
    own = Choice(image, None, choice.spatial_key, table_name(tiles, cells), None, choice.coordinate_system, choice.mpp)
    places = np.full((cells.n_obs, 2), np.nan)
    for section in find_sections(tiles, own):
        places[section.rows] = section.centers
    return places
