"""Both tables in one SpatialData."""

import geopandas  # noqa: F401
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import stfuse

FAST = {"tile_key": "tiles", "max_epochs": 2, "embed_dim": 8, "n_hidden": 8, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def sdata():
    """Cells in microns on an image of half a micron a pixel."""
    rng = np.random.default_rng(0)
    image = rng.integers(60, 220, (3, 512, 512), dtype=np.uint8)
    n = 500
    obs = pd.DataFrame(
        {"region": pd.Categorical(["cells"] * n), "instance": np.arange(n)}, index=[f"cell{i}" for i in range(n)]
    )
    table = AnnData(csr_matrix(rng.poisson(2.0, (n, 30)).astype(np.float32)), obs=obs)
    found = SpatialData.init_from_elements(
        {
            "he": Image2DModel.parse(
                image, dims=("c", "y", "x"), transformations={"microns": Scale([0.5, 0.5], axes=("x", "y"))}
            ),
            "cells": ShapesModel.parse(
                rng.random((n, 2)) * 256, geometry=0, radius=2.0, transformations={"microns": Identity()}
            ),
            "table": TableModel.parse(table, region="cells", region_key="region", instance_key="instance"),
        }
    )
    stfuse.pp.tessellate(found, tile_um=32, min_tissue=None)
    return found


def test_writes_into_both_tables(sdata, tmp_path):
    assert stfuse.tl.sigmma(sdata, **FAST) is None
    cells, tiles = sdata.tables["table"], sdata.tables["rna_tiles"]
    assert tiles.obsm["X_image_grid"].shape[:2] == (tiles.n_obs, 21)
    assert np.isfinite(tiles.obsm["X_sigmma"]).all() and cells.obsm["X_sigmma_macro"].shape == (500, 8)
    # blocks are those of the squares, though cells are in microns and squares in pixels
    places = np.asarray(sdata.shapes["cells"].geometry.apply(lambda p: (p.x, p.y)).tolist()) * 2
    column, row = np.floor(places % 64 / 16).astype(int).T
    inside = (cells.obs["tiles"] != "unassigned").to_numpy()
    np.testing.assert_array_equal(cells.obsm["cell_graph_blocks"][inside, 0], (row * 4 + column)[inside])
    sdata.write(tmp_path / "a.zarr")
    again = read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(again.tables["rna_tiles"].obsm["X_sigmma"], tiles.obsm["X_sigmma"])
    assert (
        again.tables["table"].obsp["sigmma_macro_connectivities"] != cells.obsp["sigmma_macro_connectivities"]
    ).nnz == 0


def test_is_what_two_tables_give(sdata):
    copy, model = stfuse.tl.sigmma(sdata, copy=True, return_model=True, **FAST)
    assert "X_sigmma" not in sdata.tables["rna_tiles"].obsm and "cell_graph" not in sdata.tables["table"].uns
    assert isinstance(model, stfuse.model.SIGMMA)
    cells, tiles = (copy.tables[name].copy() for name in ("table", "rna_tiles"))
    stfuse.tl.sigmma(cells, tiles, **FAST)
    np.testing.assert_allclose(tiles.obsm["X_sigmma"], copy.tables["rna_tiles"].obsm["X_sigmma"], atol=1e-5)


def test_what_is_not_there(sdata):
    with pytest.raises(KeyError, match="No table 'rna_niches' of tiles.*tessellate"):
        stfuse.tl.sigmma(sdata, **(FAST | {"tile_key": "niches"}))
    with pytest.raises(KeyError, match="No table 'tabel'"):
        stfuse.tl.sigmma(sdata, table_key="tabel", **FAST)
    with pytest.raises(ValueError, match="tiles= goes with an AnnData"):
        stfuse.tl.sigmma(sdata, sdata.tables["rna_tiles"], **FAST)
