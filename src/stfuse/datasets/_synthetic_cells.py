"""Synthetic tissue of single cells: tiles that differ in what cells they hold and in how these lie, with the truth kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from stfuse._check import check_flag, check_number, check_seed

SIDE = 128.0  # of a tile
NEAR = 4  # neighbours that a cell is mixed with or not
GRIDS = (1, 2, 4)  # crops along a side, as the features of a tile list them
REACHES = ("macro", "meso", "micro")
_PARTS = {"macro": 2, "meso": 4, "micro": 8}  # patches along a side of a tile that cells of one kind keep to
_MARKERS, _NICHE = 12, 16  # genes of each type, and genes that answer to neighbours
_DEPTH = 1.5  # mean counts of a gene in a cell


class _Cells(NamedTuple):
    """Place in the tile (n x 2), tile and type of each cell, and the share of its near cells that are of another type."""

    local: np.ndarray
    tile: np.ndarray
    kind: np.ndarray
    mixed: np.ndarray


def synthetic_cells(
    n_tiles: int = 200,
    *,
    cells_per_tile: float = 96,
    n_types: int = 4,
    n_sections: int = 1,
    n_image_features: int = 48,
    structure: bool = True,
    noise: float = 1.0,
    seed: int = 0,
) -> tuple[AnnData, AnnData]:
    r"""Make tissue of single cells and its tiles, in which it matters where cells lie and not only which there are.

    Two tiles with the same cells can look unlike: cells of a type lie together in patches, large or small, or are mixed. The image
    sees that, and some genes answer to it; a method that takes a tile for a bag of cells can't. It is the case for which
    graphs of cells are made (:func:`stfuse.tl.sigmma`), and here the truth is known.

    Each tile draws how much of each type it holds (Dirichlet), and shares :math:`s` of the variance of a score: for patches of 1/2, 1/4 and
    1/8 of its side, and for chance. Cells sorted by their score get their types in turn, in an order of the tile's own: which types a tile holds
    tells nothing of how they lie. With :math:`c` the composition of a crop, and :math:`m` the mean share of
    the :math:`4` nearest cells that are of another type, the crop has the features

    .. math:: \tanh((4 c, 4 m) W + b) + 0.35 \cdot \mathrm{noise} \cdot e .

    Counts are Poisson with a gamma-distributed size: 12 marker genes for each type, and 16 niche genes that rise or fall
    with :math:`m` of the cell.

    Parameters
    ----------
    n_tiles
        Number of tiles, of 128 x 128 units, side by side.
    cells_per_tile
        Mean number of cells of a tile (Poisson, 3 at least).
    n_types
        Number of cell types.
    n_sections
        Number of sections that the tiles are dealt to in turn, not more than tiles; each has its own origin.
    n_image_features
        Number of image features of a crop.
    structure
        False = cells lie anywhere whatever their type: nothing but composition is left.
    noise
        Strength of the noise of the image.
    seed
        Seed. The same arguments and the same seed give the same objects.

    Returns
    -------
    cells, tiles
        `cells` (AnnData, n_cells x genes, counts in `X`, CSR, float32)

        - `obs["tile"]`, `obs["section"]`, `obs["cell_type"]` (categorical), `obs["mixed"]` (share of near cells of another type)
        - `obsm["spatial"]`; `obsm["X_pca"]`: principal components of the marker genes alone, so that niche genes can be predicted
        - `var["niche"]`: whether a gene answers to neighbours

        `tiles` (AnnData, n_tiles x genes, sums of the counts of the cells)

        - `obs[["tile_x", "tile_y", "tile_size", "n_cells", "section"]]`, `obs[["macro", "meso", "micro"]]`: shares :math:`s`
        - `obsm["spatial"]` (centres), `obsm["composition"]`
        - `obsm["X_image_grid"]`: n x 21 x d, features of the tile, its 4 quarters and its 16 sixteenths; `obsm["X_image"]`: n x d, of
          the tile

    Raises
    ------
    ValueError
        If a number is out of range.
    TypeError
        If an argument is of the wrong type.

    Examples
    --------
    >>> import stfuse
    >>> cells, tiles = stfuse.datasets.synthetic_cells(30, seed=1)
    >>> tiles.obsm["X_image_grid"].shape, bool(cells.obs["tile"].isin(tiles.obs_names).all())
    ((30, 21, 48), True)
    """
    for name, number, least in (
        ("n_tiles", n_tiles, 1),
        ("n_types", n_types, 2),
        ("n_sections", n_sections, 1),
        ("n_image_features", n_image_features, 1),
    ):
        check_number(name, number, least=least, whole=True)
    if n_sections > n_tiles:
        raise ValueError(f"n_sections={n_sections} needs at least as many tiles, got n_tiles={n_tiles}.")
    check_number("cells_per_tile", cells_per_tile, least=3)
    check_number("noise", noise, least=0)
    check_flag("structure", structure)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(4, 0.4), n_tiles) if structure else np.tile([0.0, 0.0, 0.0, 1.0], (n_tiles, 1))
    composition = rng.dirichlet(np.full(n_types, 2.0), n_tiles)
    found = _place(rng, np.maximum(rng.poisson(cells_per_tile, n_tiles), 3), share, composition)
    names = np.array([f"tile{i}" for i in range(n_tiles)])
    section = np.arange(n_tiles) % n_sections
    corner = _corners(section) * SIDE
    cells = _cell_table(rng, found, n_types, names, section, corner)
    tiles = _tile_table(found, cells, names, section, corner, share)
    grid = _image(rng, found, n_tiles, n_types, n_image_features, noise)
    tiles.obsm["X_image_grid"], tiles.obsm["X_image"] = grid, grid[:, 0].copy()
    return cells, tiles


def _corners(section: np.ndarray) -> np.ndarray:
    """Place of each tile in the grid of its section."""
    place = np.empty((len(section), 2))
    for code in np.unique(section):
        rows = np.flatnonzero(section == code)
        across = int(np.ceil(np.sqrt(rows.size)))
        place[rows] = np.column_stack(np.divmod(np.arange(rows.size), across))[:, ::-1]
    return place


def _place(rng: np.random.Generator, sizes: np.ndarray, share: np.ndarray, composition: np.ndarray) -> _Cells:
    n_tiles, n_types = composition.shape
    tile = np.repeat(np.arange(n_tiles), sizes)
    local = rng.random((tile.size, 2)) * SIDE
    score = np.sqrt(share[tile, 3]) * rng.standard_normal(tile.size)
    for column, part in enumerate(REACHES):
        per_side = _PARTS[part]
        patch = np.floor(local / SIDE * per_side).astype(np.int64) @ [1, per_side]
        field = rng.standard_normal((n_tiles, per_side**2))
        score += np.sqrt(share[tile, column]) * field[tile, patch]
    # the first of each tile's cells by score are of its first type, and so on
    order = np.lexsort((score, tile))
    turn = rng.permuted(np.tile(np.arange(n_types), (n_tiles, 1)), axis=1)
    counts = rng.multinomial(sizes, np.take_along_axis(composition, turn, 1))
    kind = np.empty(tile.size, np.int64)
    kind[order] = np.repeat(turn.ravel(), counts.ravel())
    apart = np.column_stack([local, tile * 3.0 * SIDE])
    near = cKDTree(apart).query(apart, k=range(2, NEAR + 2), distance_upper_bound=1.5 * SIDE)[1]
    there = near < tile.size
    other = (kind[np.where(there, near, 0)] != kind[:, None]) & there
    return _Cells(local, tile, kind, other.sum(axis=1) / np.maximum(there.sum(axis=1), 1))


def _cell_table(
    rng: np.random.Generator, found: _Cells, n_types: int, names: np.ndarray, section: np.ndarray, corner: np.ndarray
) -> AnnData:
    from scanpy.pp import pca
    from sklearn.preprocessing import normalize

    n_markers = _MARKERS * n_types
    level = np.full((n_types, n_markers + _NICHE), 0.2)
    for kind in range(n_types):
        level[kind, kind * _MARKERS : (kind + 1) * _MARKERS] = rng.uniform(1.0, 3.0, _MARKERS)
    level[:, n_markers:] = rng.uniform(0.3, 1.0, _NICHE)
    answer = np.r_[np.zeros(n_markers), rng.choice([-2.0, 2.0], _NICHE)]
    size = np.maximum(rng.gamma(4.0, 0.25, found.tile.size), 0.2)
    mean = _DEPTH * size[:, None] * level[found.kind] * np.exp(np.outer(found.mixed - 0.5, answer))
    kinds = pd.Categorical.from_codes(found.kind, [f"type{i}" for i in range(n_types)])
    obs = pd.DataFrame(
        {
            "tile": pd.Categorical.from_codes(found.tile, names),
            "section": pd.Categorical.from_codes(
                section[found.tile], [f"section{i}" for i in range(section.max() + 1)]
            ),
            "cell_type": kinds,
            "mixed": found.mixed,
        },
        index=[f"cell{i}" for i in range(found.tile.size)],
    )
    genes = [f"type{g // _MARKERS}_gene{g % _MARKERS}" for g in range(n_markers)]
    var = pd.DataFrame({"niche": answer != 0}, index=[*genes, *(f"niche_gene{g}" for g in range(_NICHE))])
    counts = csr_matrix(rng.poisson(mean).astype(np.float32))
    cells = AnnData(counts, obs=obs, var=var)
    cells.obsm["spatial"] = corner[found.tile] + found.local
    # of many cells some have no marker at all, of which scanpy's normalize_total would warn
    markers = normalize(counts[:, :n_markers], norm="l1")
    markers.data = np.log1p(100 * markers.data)
    scores = pca(markers, n_comps=min(12, min(markers.shape) - 1), svd_solver="covariance_eigh")
    cells.obsm["X_pca"] = np.asarray(scores, np.float32)
    return cells


def _tile_table(
    found: _Cells, cells: AnnData, names: np.ndarray, section: np.ndarray, corner: np.ndarray, share: np.ndarray
) -> AnnData:
    n = len(names)
    inside = csr_matrix(
        (np.ones(found.tile.size, np.float32), (found.tile, np.arange(found.tile.size))), (n, found.tile.size)
    )
    obs = pd.DataFrame({"tile_x": corner[:, 0], "tile_y": corner[:, 1], "tile_size": SIDE}, index=names)
    obs["n_cells"] = np.bincount(found.tile, minlength=n)
    obs["section"] = pd.Categorical.from_codes(section, cells.obs["section"].cat.categories)
    for column, reach in enumerate(REACHES):
        obs[reach] = share[:, column]
    tiles = AnnData(csr_matrix(inside @ cells.X), obs=obs, var=cells.var.copy())
    tiles.obsm["spatial"] = corner + SIDE / 2
    kinds = cells.obs["cell_type"].cat
    n_types = len(kinds.categories)
    counts = np.bincount(found.tile * n_types + found.kind, minlength=n * n_types).reshape(n, n_types)
    tiles.obsm["composition"] = pd.DataFrame(counts / counts.sum(axis=1, keepdims=True), names, list(kinds.categories))
    return tiles


def _image(
    rng: np.random.Generator, found: _Cells, n_tiles: int, n_types: int, n_features: int, noise: float
) -> np.ndarray:
    """Features of all crops, n_tiles x 21 x d; of a crop without a cell those of nothing."""
    weights = rng.standard_normal((n_types + 1, n_features)) / np.sqrt(n_types + 1)
    offset = 0.5 * rng.standard_normal(n_features)
    out = []
    for per_side in GRIDS:
        crop = np.floor(found.local / SIDE * per_side).astype(np.int64) @ [1, per_side]
        seen = np.zeros((n_tiles, per_side**2, n_types + 1))
        row = (found.tile * per_side**2 + crop).astype(np.int64)
        flat = seen.reshape(-1, n_types + 1)
        flat[:, :n_types] = np.bincount(row * n_types + found.kind, minlength=len(flat) * n_types).reshape(-1, n_types)
        flat[:, n_types] = np.bincount(row, found.mixed, minlength=len(flat))
        size = seen[:, :, :n_types].sum(axis=2, keepdims=True)
        clear = np.tanh(4 * seen / np.maximum(size, 1) @ weights + offset)
        out.append(clear + 0.35 * noise * rng.standard_normal(clear.shape))
    return np.concatenate(out, axis=1).astype(np.float32)
