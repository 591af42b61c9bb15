"""Cells and their tiles: two tables, joined by a column of the cells that holds names of tiles."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys
from stfuse._log import warn
from stfuse._slides import column_of


def tile_numbers(cells: AnnData, tiles: AnnData | None, tile_key: str) -> tuple[np.ndarray, pd.Index]:
    """Number of each cell's tile among the tiles (-1 = in none), and their names; without a table those that occur."""
    values = column_of(cells, "cells", "tile_key", tile_key)
    if pd.api.types.is_float_dtype(values.dtype) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")  # missing values made floats of whole numbers
    column = pd.Categorical(values)
    written = pd.Index([str(name) for name in column.categories], dtype=object)
    if tiles is None:
        names = written[written != _keys.UNASSIGNED]
    else:
        names = pd.Index(tiles.obs_names.astype(object))
    number = np.append(names.get_indexer(written), -1)[column.codes]
    if (number < 0).all():
        examples = [name for name in written if name != _keys.UNASSIGNED][:1]
        raise ValueError(
            f"No cell's cells.obs[{tile_key!r}]{f', such as {examples[0]!r},' if examples else ''} is a name of "
            f"{'tiles.obs_names' if tiles is not None else 'a tile'}"
            f"{f', such as {names[0]!r}' if len(names) else ''}: name the column that stfuse.pp.tessellate writes, or rename the tiles."
        )
    strange = (number < 0) & (column.codes >= 0)
    strange &= (written != _keys.UNASSIGNED)[column.codes]
    if strange.any():
        warn(
            f"{int(strange.sum())} cell(s) name a tile that is not in tiles.obs_names (for example "
            f"{str(column[strange][0])!r}): they count as outside of all tiles."
        )
    return number, names
