"""The tables of cells and of tiles, two AnnData or in a SpatialData."""

from __future__ import annotations

from typing import Any, NamedTuple

from anndata import AnnData

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse._slides import check_anndata
from stfuse.pp._tile_elements import cell_table

TILE_TABLE = "rna_{}"  # name of the table of tiles in a SpatialData, by the name of the tiles


class Tables(NamedTuple):
    """The table of cells, and that of tiles where there is one; in a SpatialData their names."""

    cells: AnnData
    tiles: AnnData | None
    cells_name: str | None = None
    tiles_name: str | None = None


def find_tables(
    cells: Any, tiles: Any, tile_key: str, table_key: str | None, tiles_table: str | None, *, need_tiles: bool
) -> Tables:
    """Find both tables: two AnnData as they are given, or the tables of a SpatialData."""
    if not _read.is_spatialdata(cells):
        for name, value in (("table_key", table_key), ("tiles_table", tiles_table)):
            if value is not None:
                raise ValueError(f"{name}= names a table of a SpatialData, and cells is a {type(cells).__name__}.")
        check_anndata("cells", cells)
        if tiles is not None or need_tiles:
            check_anndata("tiles", tiles)
        return _checked(Tables(cells, tiles))
    if tiles is not None:
        raise ValueError("tiles= goes with an AnnData of cells: the tiles of a SpatialData are named by tiles_table=.")
    name = tiles_table if tiles_table is not None else TILE_TABLE.format(tile_key)
    if name not in cells.tables:
        raise KeyError(
            f"No table {name!r} of tiles in the SpatialData.{did_you_mean(name, cells.tables)} Tables there: "
            f"{_read.listing(cells.tables)}. stfuse.pp.tessellate makes one, or name it by tiles_table=."
        )
    found = cell_table(cells, table_key, None)
    if found is None:
        raise KeyError(
            f"The SpatialData has no table of cells beside {name!r}: name it by table_key=. Tables there: "
            f"{_read.listing(cells.tables)}."
        )
    return _checked(Tables(found[1], cells.tables[name], found[0], name))


def _checked(tables: Tables) -> Tables:
    _read.check_names(tables.cells.obs_names, "cells")
    if tables.tiles is not None:
        _read.check_names(tables.tiles.obs_names, "tiles")
    if tables.cells.n_obs == 0:
        raise ValueError("There are no cells.")
    return tables
