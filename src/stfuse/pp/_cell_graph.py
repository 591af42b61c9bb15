"""Graphs of the cells of each tile, and the pairs by which they may grow from block to block."""

from __future__ import annotations

from inspect import signature
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse import _cell_graph, _keys, _read, _record
from stfuse._cell_graph import SCALES, Placed
from stfuse._check import check_flag, check_number, check_seed, check_target, check_text
from stfuse._log import logger, warn
from stfuse._tiled import tile_numbers
from stfuse.pp._cell_places import check_inside, find_squares, read_cell_places
from stfuse.pp._cell_tables import Tables, find_tables

MARK = "n_pairs"  # entry of the record by which it is told
MODES = ("knn", "radius", "delaunay")
FEWEST = 3  # cells of a tile that has something to say


def cell_graph(
    cells: Any,
    *,
    tile_key: str,
    tiles: AnnData | None = None,
    tile_size: float | None = None,
    n_blocks: int = 4,
    mode: Literal["knn", "radius", "delaunay"] = "knn",
    n_neighbors: int = 6,
    radius: float | None = None,
    max_pairs: int = 1024,
    library_key: str | None = None,
    spatial_key: str | tuple[str, str] = _keys.SPATIAL,
    table_key: str | None = None,
    tiles_table: str | None = None,
    key_added: str = _keys.CELL_GRAPH,
    seed: int = 0,
    copy: bool = False,
) -> Any:
    """Connect the cells of each tile inside small blocks, and list which pairs larger blocks may connect.

    A crop of an image shows nothing beyond its border, but messages in a graph of cells travel as far as its edges lead. Here both
    have one reach: a tile is cut into `n_blocks` x `n_blocks` blocks as its image is into crops, and edges stay inside a block
    (scale *micro*). Four times as large, 2 x 2 a tile, are the blocks of scale *meso*, and scale *macro* is the whole tile.
    :func:`stfuse.tl.sigmma` learns which of the pairs that a larger block adds become edges. The small graph is one of
    its own too: pass `connectivity_key="cell_graph"` to squidpy.

    Parameters
    ----------
    cells
        AnnData of cells (or of spots, in tiles of spots), or SpatialData with their table and that of the tiles.
    tile_key
        Column of `obs` with the name of each cell's tile, as :func:`stfuse.pp.tessellate` writes it; `"unassigned"` or
        missing = in none.
    tiles
        AnnData of the tiles, whose names are `tiles.obs_names`. Its `obs[["tile_x", "tile_y", "tile_size"]]` say where they lie.
        None = the names in `tile_key` are all that is known.
    tile_size
        Side of a tile in the unit of the coordinates, around `tiles.obsm["spatial"]`, for tiles that do not say it. Without a table
        of tiles around the middle of each tile's cells, with a warning.
    n_blocks
        Blocks along each side of a tile at the smallest scale, an even number of 4 at least; as the finest `grid` of
        :func:`stfuse.pp.image_features`.
    mode
        Which cells of a block are neighbours: `"knn"` the `n_neighbors` nearest, `"radius"` all within `radius`, `"delaunay"` those
        that share an edge in the Delaunay triangulation of the section's cells that lie in tiles.
    n_neighbors
        With `mode="knn"`: number of neighbours. Edges have no direction, so that a cell may end with more.
    radius
        With `mode="radius"`: largest distance, in the unit of the coordinates.
    max_pairs
        Pairs listed for a tile and scale, at most. Of more, so many are drawn with equal chance: the number of pairs grows with
        the square of the cells, and 100 cells of a tile have about 940 and 3,750.
    library_key
        With `mode="delaunay"`: column of `obs` with the section of each cell. None = found where `uns["spatial"]` has several, or
        the table of a SpatialData several elements.
    spatial_key
        Key of the coordinates in `obsm`, or two columns of `obs` (x, y), in the unit of the tiles. SpatialData: by default where
        the elements of the cells lie, in the coordinates of the element of their tile.
    table_key, tiles_table
        SpatialData: the tables of cells and of tiles. None = `"rna_<tile_key>"` for the tiles, and the other one.
    key_added
        Name of what is written.
    seed
        Seed of the pairs that are drawn.
    copy
        Whether to return a changed copy instead of changing `cells`.

    Returns
    -------
    None or a copy. Written into the cells are

    - `obsp["cell_graph_connectivities"]`, `obsp["cell_graph_distances"]`: edges of the smallest blocks, both directions (CSR,
      float32; ones and distances), and `uns["cell_graph_neighbors"]`, by which scanpy and squidpy find them
    - `obsp["cell_graph_meso"]`, `obsp["cell_graph_macro"]`: pairs that this scale may join, once each (CSR, bool)
    - `obsm["cell_graph_blocks"]`: n x 3 (int32), the block of each cell at the three scales, row by row from the corner of
      the tile; -1 = in no tile
    - `uns["cell_graph"]`: parameters, number of cells, tiles, edges and pairs (`listed` of `all`), the cells of each tile, versions

    Raises
    ------
    KeyError
        If a column, a table or coordinates are not there.
    ValueError
        If no cell lies in a tile, most cells lie outside of their tile's square, names are not unique, a number is out of range, or
        `key_added` is the name of something else. Nothing is written then.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If cells name a tile that is not there, lie outside of its square or nowhere, if nothing says where tiles lie or how large
        they are, or if with `mode="delaunay"` tiles of what counts as one section lie on each other.

    Notes
    -----
    The paper allows edges between "adjacent patches" and, in its formula, inside blocks of growing size. The four blocks that
    one larger block is made of all touch, so that both hold here. Its kind of neighbours and their number are not given.

    Jeong et al. (2025), SIGMMA: Hierarchical graph-based multi-scale multi-modal contrastive alignment, section 5.2.

    Examples
    --------
    >>> import stfuse
    >>> cells, tiles = stfuse.datasets.synthetic_cells(20)
    >>> stfuse.pp.cell_graph(cells, tile_key="tile", tiles=tiles)
    >>> cells.obsm["cell_graph_blocks"].max(axis=0)
    array([15,  3,  0], dtype=int32)
    """
    check_arguments(n_blocks, mode, n_neighbors, radius, max_pairs, tile_size)
    check_text("tile_key", tile_key)
    check_seed(seed)
    check_flag("copy", copy)
    tables = find_tables(cells, tiles, tile_key, table_key, tiles_table, need_tiles=False)
    check_text("key_added", key_added)
    check_free(tables.cells, key_added, tile_key)
    if copy:
        _record.check_copy(cells)
    options = {
        "tile_size": tile_size,
        "n_blocks": n_blocks,
        "mode": mode,
        "n_neighbors": n_neighbors,
        "radius": radius,
        "max_pairs": max_pairs,
        "library_key": library_key,
        "spatial_key": spatial_key,
        "seed": seed,
    }
    written = build(cells, tables, tile_key, key_added, **options)
    target = _record.copy_of(cells, tables.cells_name) if copy else cells
    _record.write(target, **written, table_key=tables.cells_name)
    return target if copy else None


def default_options() -> dict[str, Any]:
    """What `build` is told where nobody has called `cell_graph`: its defaults."""
    elsewhere = {"cells", "tile_key", "tiles", "table_key", "tiles_table", "key_added", "copy"}
    return {k: p.default for k, p in signature(cell_graph).parameters.items() if k not in elsewhere}


def check_arguments(
    n_blocks: int, mode: str, n_neighbors: int, radius: float | None, max_pairs: int, tile_size: float | None
) -> None:
    """Refuse what makes no graph."""
    check_number("n_blocks", n_blocks, least=4, most=64, whole=True)
    if n_blocks % 2:
        raise ValueError(f"n_blocks must be even, as two blocks of the next scale lie along a side, got {n_blocks}.")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}.")
    check_number("n_neighbors", n_neighbors, least=1, whole=True)
    check_number("radius", radius, above=0, optional=True)
    if mode == "radius" and radius is None:
        raise ValueError(
            'mode="radius" needs radius=, the largest distance of neighbours in the unit of the coordinates.'
        )
    check_number("max_pairs", max_pairs, least=1, whole=True)
    check_number("tile_size", tile_size, above=0, optional=True)


def check_free(cells: AnnData, key: str, tile_key: str) -> None:
    """Refuse names under which something else is kept."""
    inputs = {"tile_key": tile_key, "coordinates": _keys.SPATIAL}
    check_target(cells, "key_added", key, slots=("uns",), mark=MARK, inputs=inputs)
    record = cells.uns.get(key)
    if record is None:
        taken = [f"obsp[{name!r}]" for name in _edge_keys(key).values() if name in cells.obsp]
        taken += [f"obsm[{name!r}]" for name in (f"{key}_blocks",) if name in cells.obsm]
        taken += [f"uns[{name!r}]" for name in (f"{key}_neighbors",) if name in cells.uns]
        if taken:
            raise ValueError(
                f"key_added={key!r} would overwrite {taken[0]}, which this function did not write: choose another name, or "
                "delete it first."
            )


def _edge_keys(key: str) -> dict[str, str]:
    return {name: f"{key}_{name}" for name in ("connectivities", "distances", "meso", "macro")}


def build(data: Any, tables: Tables, tile_key: str, key: str, **options: Any) -> dict[str, Any]:
    """Compute all that is written, by slot."""
    cells = tables.cells
    number, names = tile_numbers(cells, tables.tiles, tile_key)
    places = read_cell_places(data, cells, tables.tiles, number, options["spatial_key"])
    nowhere = (number >= 0) & ~np.isfinite(places).all(axis=1)
    if nowhere.any():
        warn(f"{int(nowhere.sum())} cell(s) of a tile have no coordinates: they count as outside of all tiles.")
    number = np.where(nowhere, -1, number)
    rows = np.flatnonzero(number >= 0)
    if not rows.size:
        raise ValueError("No cell of a tile has coordinates.")
    squares = find_squares(tables.tiles, options["tile_size"], len(names), number, places)
    placed = Placed(number[rows], places[rows] - squares.corner[number[rows]], squares.side[number[rows]])
    outside = check_inside(placed.local, placed.side)
    block = _cell_graph.block_ids(placed, options["n_blocks"])
    section = np.zeros(rows.size, np.int64)
    if options["mode"] == "delaunay":
        codes, sections = _read.read_sections(cells, options["library_key"])
        section = codes[rows]
        _read.warn_if_stacked(squares.corner[np.unique(placed.tile)], len(sections), options["library_key"])
    edges = _cell_graph.edges_within(
        placed, block[:, 0], options["mode"], n_neighbors=options["n_neighbors"], radius=options["radius"],
        section=section, spatial=places[rows],
    )  # fmt: skip
    distance = np.linalg.norm(placed.local[edges[:, 0]] - placed.local[edges[:, 1]], axis=1)
    n = cells.n_obs
    keys = _edge_keys(key)
    obsp = {
        keys["connectivities"]: _both_ways(rows[edges], np.ones(len(edges)), n),
        keys["distances"]: _both_ways(rows[edges], distance, n),
    }
    n_pairs = {}
    for scale, fine, coarse in (("meso", 0, 1), ("macro", 1, 2)):
        found = _cell_graph.candidate_pairs(
            placed, block[:, fine], block[:, coarse], options["max_pairs"], options["seed"], names
        )
        obsp[keys[scale]] = _once(rows, found.pairs, n)
        n_pairs[scale] = {"listed": len(found.pairs), "all": found.n_all}
    blocks = np.full((n, len(SCALES)), -1, np.int32)
    blocks[rows] = block
    sizes = np.bincount(placed.tile, minlength=len(names))
    counts = {
        "cells": n,
        "cells_in_tiles": int(rows.size),
        "cells_beyond_their_tile": outside,
        "tiles": len(names),
        "tiles_without_cells": int((sizes == 0).sum()),
        f"tiles_with_fewer_than_{FEWEST}_cells": int((sizes < FEWEST).sum()),
        "edges": len(edges),
    }
    logger.info("%d cells in %d tiles, %d edges, pairs %s", rows.size, int((sizes > 0).sum()), len(edges), n_pairs)
    params = {"tile_key": tile_key, **options}
    # by which cells that were added, taken away or moved to other tiles are found out
    made_of = {"name": np.asarray(names, dtype=str), "cells": sizes}
    record = {"params": params, "n_obs": counts, MARK: n_pairs, "tiles": made_of, "versions": _record.versions()}
    triple = {
        "connectivities_key": keys["connectivities"],
        "distances_key": keys["distances"],
        "params": {"method": options["mode"], "n_neighbors": options["n_neighbors"], "radius": options["radius"]},
    }
    return {"obsm": {f"{key}_blocks": blocks}, "obsp": obsp, "uns": {key: record, f"{key}_neighbors": triple}}


def _both_ways(pairs: np.ndarray, values: np.ndarray, n: int) -> csr_matrix:
    """Symmetric matrix of pairs."""
    one, other = pairs.T.astype(np.int32)
    values = values.astype(np.float32)
    return csr_matrix((np.r_[values, values], (np.r_[one, other], np.r_[other, one])), shape=(n, n))


def _once(rows: np.ndarray, pairs: np.ndarray, n: int) -> csr_matrix:
    """Upper triangle of pairs of rows, which ascend."""
    low, high = pairs.T
    of = rows.astype(np.int32)
    return csr_matrix((np.ones(len(pairs), bool), (of[low], of[high])), shape=(n, n))
