"""Real cells: a lung on its photograph end to end, and niches of a breast section."""

import time

import anndata
import numpy as np
import pytest

import stfuse


def test_lung_from_image_and_cells_to_codes(shared_data):
    folder = shared_data / "xenium_lung200"
    cells = anndata.read_h5ad(folder / "NCBI858.h5ad")
    # the image's columns are the y of the platform
    cells.obsm["spatial"] = cells.obs[["y_pixel", "x_pixel"]].to_numpy(float)
    image = str(folder / "NCBI858.jpg")
    tiles = stfuse.pp.tessellate(cells, image=image, tile_px=160, min_tissue=None)
    stfuse.pp.image_features(tiles, image=image, grid=[1, 2, 4])
    with pytest.warns(UserWarning, match="with fewer than three"):
        stfuse.tl.sigmma(cells, tiles, tile_key="tiles", max_epochs=10, embed_dim=16, n_hidden=16, progress=False)
    inside = (cells.obs["tiles"] != "unassigned").to_numpy()
    sizes = cells.obs["tiles"].value_counts().reindex(tiles.obs_names, fill_value=0)
    np.testing.assert_array_equal(np.isfinite(tiles.obsm["X_sigmma_rna"]).all(1), sizes >= 3)
    for scale in ("micro", "meso", "macro"):
        np.testing.assert_array_equal(np.isfinite(cells.obsm[f"X_sigmma_{scale}"]).all(1), inside)
        one, other = cells.obsp[f"sigmma_{scale}_connectivities"].nonzero()
        assert (cells.obs["tiles"].to_numpy()[one] == cells.obs["tiles"].to_numpy()[other]).all()
        stfuse.tl.domains(cells, use_rep=f"X_sigmma_{scale}", n_clusters=3)
    assert len(stfuse.pl.scales(cells)) == 3
    assert np.isfinite(tiles.obsm["X_sigmma"]).all()


@pytest.mark.slow
def test_niches_of_a_breast_section_in_three_minutes(shared_data, tmp_path):
    start = time.perf_counter()
    cells = anndata.read_h5ad(shared_data / "xenium_breast_17k.h5ad")
    stfuse.pp.rna_features(cells)
    stfuse.tl.domains(cells, use_rep="X_pca", n_clusters=12, refine=False, key_added="cell_type")
    stfuse.pp.neighbor_mean(cells, "X_pca", n_neighbors=20, key_added="X_near")
    stfuse.tl.domains(cells, use_rep="X_near", n_clusters=8, key_added="niche")
    stfuse.tl.niches(cells, groupby="niche", cell_type_key="cell_type")
    stfuse.pl.composition(cells, save=tmp_path / "composition.png")
    stfuse.pl.niche_map(cells, groupby="niche", save=tmp_path / "map.png")
    assert time.perf_counter() - start < 180
    found = cells.uns["niches"]
    # ducts: a niche that is mostly one type, many times what chance gives
    top = found["composition"].max(axis=1)
    assert top.max() > 0.7 and found["enrichment"].to_numpy().max() > 2
