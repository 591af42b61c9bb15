"""Tiles with the crops of their image, and the graphs of their cells, as a model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse import _keys, _read
from stfuse._cell_graph import SCALES
from stfuse._check import did_you_mean
from stfuse._raw import CROPS, read_crops
from stfuse._tiled import tile_numbers
from stfuse.train._tile_graphs import TileGraphs, sort_graph

FEWEST = 3  # cells that a tile needs for a code of its own


@dataclass(frozen=True)
class CellView:
    """Cells of t tiles: features (n x d), which have any, the tile of each (-1 = none), edges and pairs that may be joined."""

    names: pd.Index
    features: np.ndarray
    tile: np.ndarray
    edges: csr_matrix
    added: tuple[csr_matrix, ...]
    n_blocks: int

    @property
    def usable(self) -> np.ndarray:
        """Which cells lie in a tile and have features."""
        return (self.tile >= 0) & ~np.isnan(self.features).any(axis=1)


@dataclass(frozen=True)
class TileCells:
    """Both views of t tiles. ``image`` is t x scales x d, the mean over the crops of each scale, or crops for an encoder.

    ``order`` lists usable cells by tile, ``offsets`` (t + 1) where those of each tile begin. One of the views may be absent.
    """

    names: pd.Index
    image: np.ndarray
    has_image: np.ndarray
    cells: CellView | None
    order: np.ndarray
    offsets: np.ndarray
    paired: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Usable cells of each tile."""
        return np.diff(self.offsets)

    @property
    def has_rna(self) -> np.ndarray:
        """Which tiles have enough cells."""
        return self.sizes >= FEWEST

    @property
    def n_features(self) -> int:
        """Width of a cell's features."""
        return 0 if self.cells is None else self.cells.features.shape[1]

    def counts(self) -> dict[str, int]:
        """How many there are of what, for the record."""
        tile = np.empty(0, int) if self.cells is None else self.cells.tile
        return {
            "total": len(self.names),
            "image": int(self.has_image.sum()),
            "rna": int(self.has_rna.sum()),
            "both": int((self.has_image & self.has_rna).sum()),
            "paired": int(self.paired.sum()),
            f"tiles_with_fewer_than_{FEWEST}_cells": int((~self.has_rna).sum()),
            "cells": int(tile.size),
            "cells_outside_tiles": int((tile < 0).sum()),
            "cells_without_features": int((tile >= 0).sum()) - int(self.order.size),
        }

    def tensors(self, pairs: np.ndarray, held_out: np.ndarray) -> TileGraphs:
        """Everything as tensors; without cells, graphs of nothing."""
        cells = self.cells
        if cells is None:
            n = 0
            edges, added, features = csr_matrix((n, n)), (csr_matrix((n, n)),) * 2, np.empty((0, 0), np.float32)
        else:
            edges, added, features = cells.edges, cells.added, cells.features[self.order]
        links, pair_links = sort_graph(edges, added, self.order, self.offsets)
        return TileGraphs(
            torch.from_numpy(np.require(self.image, None, "W")),
            torch.from_numpy(np.ascontiguousarray(features, np.float32)),
            torch.from_numpy(self.offsets),
            links,
            pair_links,
            torch.from_numpy(pairs),
            torch.from_numpy(held_out),
        )


def read_cells(
    cells: AnnData, tiles: AnnData | None, tile_key: str, rna_key: str, graph_key: str
) -> CellView:  # fmt: skip
    """Read the cells' features and graphs."""
    _read.check_names(cells.obs_names, "cells")
    tile, names = tile_numbers(cells, tiles, tile_key)
    if rna_key not in cells.obsm:
        raise KeyError(
            f"No cells.obsm[{rna_key!r}] (rna_key).{did_you_mean(rna_key, cells.obsm)} There is "
            f"{_read.listing(cells.obsm.keys())}. stfuse.pp.rna_features(cells) makes components."
        )
    what = f"cells.obsm[{rna_key!r}] (rna_key)"
    features = np.asarray(_read.as_matrix(cells.obsm[rna_key], what), np.float32)
    has = _read.check_values(features, what)
    if not (has & (tile >= 0)).any():
        raise ValueError(f"No cell of a tile has features: {what} is NaN in all of them.")
    record: Any = cells.uns.get(graph_key)
    keys = [f"{graph_key}_{name}" for name in ("connectivities", *SCALES[1:])]
    missing = [key for key in keys if key not in cells.obsp] + [
        b for b in (f"{graph_key}_blocks",) if b not in cells.obsm
    ]
    if missing or not hasattr(record, "get") or "params" not in record:
        raise KeyError(
            f"No graph of cells under {graph_key!r}: call stfuse.pp.cell_graph(cells, tile_key={tile_key!r}, tiles=tiles"
            f"{'' if graph_key == _keys.CELL_GRAPH else f', key_added={graph_key!r}'}) first."
        )
    made_for = str(record["params"]["tile_key"])
    if made_for != tile_key:
        raise ValueError(
            f"The graph under {graph_key!r} was made for the tiles in obs[{made_for!r}], not obs[{tile_key!r}]: call "
            f"stfuse.pp.cell_graph(cells, tile_key={tile_key!r}, key_added=...) and name it with graph_key=."
        )
    tile = _placed(cells, tile, names, record, graph_key, tile_key, every=tiles is not None)
    edges, *added = (csr_matrix(cells.obsp[key]) for key in keys)
    _check_within(tile, (edges, *added), graph_key, tile_key)
    return CellView(names, features, tile, edges, tuple(added), int(record["params"]["n_blocks"]))


def _placed(
    cells: AnnData, tile: np.ndarray, names: pd.Index, record: Any, graph_key: str, tile_key: str, every: bool
) -> np.ndarray:
    """Tiles of the cells that have a place in them, after a check that these are the cells that the graph was made of."""
    claimed = np.bincount(tile[tile >= 0], minlength=len(names)) > 0
    tile = np.where(np.asarray(cells.obsm[f"{graph_key}_blocks"])[:, 0] < 0, -1, tile)
    made = pd.Series(np.asarray(record["tiles"]["cells"]), np.asarray(record["tiles"]["name"]).astype(str))
    now = np.bincount(tile[tile >= 0], minlength=len(names))
    then = made.reindex(names.astype(str)).to_numpy()
    # without a table of tiles a name may be that of none
    claimed &= every | ~np.isnan(then)
    differ = np.flatnonzero(claimed & (np.nan_to_num(then, nan=-1) != now))
    if differ.size:
        row = differ[0]
        was = "none" if np.isnan(then[row]) else int(then[row])
        raise ValueError(
            f"The graph under {graph_key!r} was made of other cells: of tile {names[row]!r} it has {was}, and {now[row]} of its cells are "
            f"there now. Call stfuse.pp.cell_graph(cells, tile_key={tile_key!r}, tiles=tiles) again."
        )
    return tile


def _check_within(tile: np.ndarray, matrices: Sequence[csr_matrix], graph_key: str, tile_key: str) -> None:
    """Refuse a graph of other tiles, made before the column was changed."""
    for matrix in matrices:
        one, other = matrix.nonzero()
        if ((tile[one] >= 0) & (tile[other] >= 0) & (tile[one] != tile[other])).any():
            raise ValueError(
                f"The graph under {graph_key!r} joins cells of different tiles, so that obs[{tile_key!r}] has changed since it was "
                "made: call stfuse.pp.cell_graph again."
            )


def read_image(
    tiles: AnnData, image_key: str, per_side: Sequence[int], crops: bool
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Features pooled over the crops of each scale (t x scales x d; ``per_side`` crops along a side), or crops; and which are there."""
    if crops:
        found = read_crops(tiles, image_key)
        if found is None:
            raise KeyError(
                f"No tiles.obsm[{image_key!r}] with crops ({CROPS}) for the image_encoder. There is "
                f"{_read.listing(tiles.obsm.keys())}: name them with image_key=."
            )
        return found.values, found.has
    what = f"tiles.obsm[{image_key!r}] (image_key)"
    if image_key not in tiles.obsm:
        raise KeyError(
            f"No {what}.{did_you_mean(image_key, tiles.obsm)} There is {_read.listing(tiles.obsm.keys())}. "
            f"stfuse.pp.image_features(tiles, grid={sorted({1, *per_side})}) makes it."
        )
    values: Any = tiles.obsm[image_key]
    values = np.asarray(values.compute() if hasattr(values, "compute") else values)
    if values.ndim == 2 and tuple(per_side) == (1,):
        values = values[:, None]
    if values.ndim != 3 or not np.issubdtype(values.dtype, np.number):
        raise ValueError(
            f"{what} must be tiles x crops x features, its shape is {values.shape}: make it by "
            f"stfuse.pp.image_features(tiles, grid={sorted({1, *per_side})}), or align whole tiles alone by scales=('macro',)."
        )
    grid = _grid_of(tiles, image_key, values.shape[1], per_side)
    flat = np.asarray(values, np.float32).reshape(len(values), -1)
    has = _read.check_values(flat, what)
    ends = np.cumsum([n * n for n in grid])
    begin = dict(zip(grid, ends - np.square(grid), strict=True))
    pooled = [values[:, begin[n] : begin[n] + n * n].mean(axis=1, dtype=np.float64) for n in per_side]
    return np.stack(pooled, axis=1).astype(np.float32), has


def _grid_of(tiles: AnnData, key: str, n_crops: int, per_side: Sequence[int]) -> list[int]:
    """Crops along a side, in the order in which they lie: as recorded, else every scale from the whole tile down."""
    record: Any = tiles.uns.get(key)
    grid = [1, 2, max(4, *per_side)] if n_crops > 1 else [1]
    if hasattr(record, "get") and record.get("grid") is not None:
        grid = [int(n) for n in np.atleast_1d(record["grid"])]
    wanted = [n for n in per_side if n not in grid]
    if wanted or sum(n * n for n in grid) != n_crops:
        raise ValueError(
            f"tiles.obsm[{key!r}] has {n_crops} crops a tile{f', of a grid {grid}' if not wanted else ''}, and {sorted(per_side)} crops along a "
            f"side are needed, as many as the cells have blocks: call stfuse.pp.image_features(tiles, grid={sorted({1, *per_side})})."
        )
    return grid


def join(
    cells: CellView | None, tiles: AnnData | None, image: tuple[np.ndarray, np.ndarray] | None, paired_key: str | None
) -> TileCells:  # fmt: skip
    """Both views of all tiles, one of which may be absent."""
    if tiles is not None:
        names = pd.Index(tiles.obs_names)
    elif cells is not None:
        names = cells.names
    else:
        raise ValueError("Neither cells nor tiles are given: pass one at least.")
    n = len(names)
    values, has = image if image is not None else (np.full((n, 1, 0), np.nan, np.float32), np.zeros(n, bool))
    order, offsets = np.empty(0, np.int64), np.zeros(n + 1, np.int64)
    if cells is not None:
        rows = np.flatnonzero(cells.usable)
        order = rows[np.argsort(cells.tile[rows], kind="stable")]
        offsets = np.r_[0, np.cumsum(np.bincount(cells.tile[rows], minlength=n))].astype(np.int64)
    paired = has & (np.diff(offsets) >= FEWEST)
    if paired_key is not None and tiles is not None:
        paired &= _read.as_flags(_read.read_column(tiles, paired_key), f"tiles.obs[{paired_key!r}] (paired_key)")
    return TileCells(names, values, has, cells, order, offsets, paired)
