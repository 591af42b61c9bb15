"""The table of tiles: sums of the cells inside, their composition and majority, and what the cells of a section share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse

from stfuse import _keys, _read
from stfuse._check import did_you_mean
from stfuse._image._tiles import Tiles

COLUMNS = ("n_cells", "tile_x", "tile_y", "tile_size", "tissue")


def read_matrix(cells: AnnData, layer: str | None) -> csr_matrix:
    """Read X or a layer as a CSR matrix of a type in which sums don't overflow."""
    if layer is not None and layer not in cells.layers:
        there = [str(name) for name in cells.layers.keys() if name is not None]
        raise KeyError(f"No layer {layer!r}.{did_you_mean(layer, there)} There is: {', '.join(there) or 'nothing'}.")
    values: Any = cells.X if layer is None else cells.layers[layer]
    if values is None:
        return csr_matrix(cells.shape, dtype=np.float32)
    # a backed matrix is read here, one of Dask computed
    for load in ("to_memory", "compute"):
        values = getattr(values, load)() if hasattr(values, load) else values
    values = values if issparse(values) else np.asarray(values)
    if values.dtype.kind in "iub":
        return csr_matrix(values).astype(np.int64)
    return csr_matrix(values.astype(np.float32) if values.dtype == np.float16 else values)


def build_table(
    cells: AnnData, tiles: Sequence[Tiles], matrix: csr_matrix, label_key: str | None, section_key: str | None
) -> AnnData:
    """Make the AnnData of tiles."""
    inside = _indicator(tiles, cells.n_obs)
    names = np.concatenate([part.names for part in tiles]).astype(str)
    sums = csr_matrix(inside @ matrix)
    sums.sort_indices()
    obs = _places(tiles, names)
    obs.insert(0, "n_cells", np.diff(inside.indptr).astype(np.int64))
    table = AnnData(sums, obs=obs, var=cells.var.copy())
    table.obsm[_keys.SPATIAL] = np.concatenate([part.centers for part in tiles])
    section = np.repeat(np.arange(len(tiles)), [len(part.names) for part in tiles])
    if section_key is not None:
        table.obs[section_key] = pd.Categorical.from_codes(section, [part.section for part in tiles])
    if label_key is not None:
        _add_labels(table, cells, inside, label_key)
    return table


def _indicator(tiles: Sequence[Tiles], n_cells: int) -> csr_matrix:
    """Which cell lies in which tile, n_tiles x n_cells."""
    first = np.concatenate([[0], np.cumsum([len(part.names) for part in tiles])])
    pairs = [part.reach or (part.cells, part.tile) for part in tiles]
    rows = np.concatenate([tile + start for (_, tile), start in zip(pairs, first[:-1], strict=True)])
    columns = np.concatenate([cells for cells, _ in pairs])
    return csr_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(int(first[-1]), n_cells))


def _places(tiles: Sequence[Tiles], names: np.ndarray) -> pd.DataFrame:
    origins = np.concatenate([part.origins for part in tiles])
    columns = {"tile_x": origins[:, 0], "tile_y": origins[:, 1]}
    columns["tile_size"] = np.concatenate([part.sides for part in tiles]).astype(np.float64)
    shares = [part.tissue for part in tiles]
    if not any(share is None for share in shares):
        columns["tissue"] = np.concatenate(shares)  # type: ignore[arg-type]
    return pd.DataFrame(columns, index=pd.Index(names))


def read_labels(cells: AnnData, label_key: str) -> pd.Categorical:
    """Read the cell types; a missing one stays missing."""
    column = _read.read_column(cells, label_key)
    if pd.api.types.is_float_dtype(column.dtype):
        raise ValueError(
            f"obs[{label_key!r}] holds numbers with decimals, so it names no cell types: label_key= is a column of "
            "categories, text or whole numbers."
        )
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = [str(c) for c in column.cat.categories]
        unique = list(dict.fromkeys(names))  # 1 and "1" are one name
        codes = np.append([unique.index(name) for name in names], -1).astype(np.int64)[column.cat.codes.to_numpy()]
        return pd.Categorical.from_codes(codes, unique)
    known = column.notna().to_numpy()
    text = np.full(len(column), None, dtype=object)
    text[known] = column[known].astype(str).to_numpy(dtype=object)
    return pd.Categorical(text)


def _add_labels(table: AnnData, cells: AnnData, inside: csr_matrix, label_key: str) -> None:
    labels = read_labels(cells, label_key)
    known = np.flatnonzero(labels.codes >= 0)
    n_types = len(labels.categories)
    one_hot = csr_matrix((np.ones(len(known)), (known, labels.codes[known])), shape=(len(labels), n_types))
    counts = np.asarray((inside @ one_hot).todense(), dtype=np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    labelled = total[:, 0] > 0
    table.obsm["composition"] = pd.DataFrame(share, index=table.obs_names, columns=list(labels.categories))
    best = counts.argmax(axis=1) if n_types else np.zeros(len(counts), dtype=np.int64)
    majority = pd.Categorical.from_codes(np.where(labelled, best, -1), labels.categories)
    table.obs[label_key] = fill_unassigned(majority)
    purity = np.full(len(counts), np.nan)
    purity[labelled] = share[labelled].max(axis=1)
    table.obs[f"{label_key}_purity"] = purity


def fill_unassigned(column: pd.Categorical) -> pd.Categorical:
    """Name what is missing "unassigned", and drop the categories that don't occur."""
    missing = np.asarray(column.codes < 0)
    if missing.any():
        if _keys.UNASSIGNED not in column.categories:
            column = column.add_categories([_keys.UNASSIGNED])
        column = column.copy()
        column[missing] = _keys.UNASSIGNED
    return column.remove_unused_categories()


def tile_of_cells(tiles: Sequence[Tiles], n_cells: int) -> pd.Categorical:
    """Name the tile of each cell, where tiles overlap the first of them; cells outside of all are "unassigned"."""
    names = np.concatenate([part.names for part in tiles]).astype(str)
    codes = np.full(n_cells, -1, dtype=np.int64)
    first = 0
    for part in tiles:
        codes[part.cells[::-1]] = first + part.tile[::-1]
        first += len(part.names)
    return fill_unassigned(pd.Categorical.from_codes(codes, pd.Index(names)))


def carry_over(
    table: AnnData, cells: AnnData, rows: Sequence[np.ndarray], n_tiles: Sequence[int], skip: set[str]
) -> None:
    """Give tiles the columns that say the same of all cells of a section: patient, donor, condition."""
    filled = [here for here in rows if len(here)]
    if len(filled) != len(rows):
        return  # a section without cells has no patient that the cells could tell
    first = np.array([here[0] for here in filled], dtype=np.int64)
    section = np.repeat(np.arange(len(rows)), [len(here) for here in rows])
    of_tile = np.repeat(first, n_tiles)
    part = cells.obs.iloc[np.concatenate(filled)]
    for name in cells.obs.columns:
        if name in skip or name in table.obs:
            continue
        codes = pd.factorize(part[name], use_na_sentinel=False)[0]
        if (codes == codes[np.searchsorted(section, section)]).all():
            column = cells.obs[name].iloc[of_tile].set_axis(table.obs_names)
            is_category = isinstance(column.dtype, pd.CategoricalDtype)
            table.obs[name] = column.cat.remove_unused_categories() if is_category else column
