"""Codes of tiles and cells through the public function."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import stfuse

FAST = {"tile_key": "tile", "max_epochs": 2, "embed_dim": 8, "n_hidden": 8, "progress": False}
TILES = [f"X_sigmma{scale}{view}" for scale in ("", "_micro", "_meso", "_macro") for view in ("", "_image", "_rna")]
CELLS = [f"X_sigmma_{scale}" for scale in ("micro", "meso", "macro")]
GRAPHS = [f"sigmma_{scale}_connectivities" for scale in ("micro", "meso", "macro")]


@pytest.fixture
def tissue():
    return stfuse.datasets.synthetic_cells(24, cells_per_tile=20, n_image_features=6, seed=1)


def test_writes_what_it_says_and_nothing_else(tissue, tmp_path):
    cells, tiles = tissue
    before = [{slot: set(getattr(a, slot)) for slot in ("obs", "obsm", "obsp", "uns", "layers")} for a in tissue]
    assert stfuse.tl.sigmma(cells, tiles, **FAST) is None
    new = [
        {slot: set(getattr(a, slot)) - there[slot] for slot in there} for a, there in zip(tissue, before, strict=True)
    ]
    graph = {f"cell_graph_{name}" for name in ("connectivities", "distances", "meso", "macro")}
    assert new[0] == {
        "obs": set(),
        "obsm": {*CELLS, "cell_graph_blocks"},
        "obsp": {*GRAPHS, *graph},
        "uns": {"sigmma", "cell_graph", "cell_graph_neighbors"},
        "layers": set(),
    }
    assert new[1] == {"obs": set(), "obsm": set(TILES), "obsp": set(), "uns": {"sigmma"}, "layers": set()}
    record = tiles.uns["sigmma"]
    listed = cells.uns["cell_graph"]["n_pairs"]["meso"]["listed"]
    added = (cells.obsp[GRAPHS[1]].nnz - cells.obsp[GRAPHS[0]].nnz) / 2
    assert record["report"]["pairs_kept_meso"] == added / listed
    assert record["n_obs"]["both"] == 24 and record["params"]["tile_key"] == "tile" and len(record["history"]) == 2
    assert {"micro", "meso", "macro", "held_out_rank"} <= set(record["history"].columns) or len(tiles) < 50
    for adata, name in zip(tissue, ("cells", "tiles"), strict=True):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        again = anndata.read_h5ad(tmp_path / f"{name}.h5ad")
        for key in CELLS if name == "cells" else TILES:
            np.testing.assert_array_equal(again.obsm[key], adata.obsm[key])


def test_codes_are_those_of_the_model(tissue):
    cells, tiles = tissue
    (new_cells, new_tiles, model) = stfuse.tl.sigmma(cells, tiles, copy=True, return_model=True, **FAST)
    assert "X_sigmma" not in tiles.obsm and "cell_graph" not in cells.uns and "_scvi_uuid" not in cells.uns
    assert isinstance(model, stfuse.model.SIGMMA)
    codes = model.codes(new_cells, new_tiles)
    for scale in ("micro", "meso", "macro"):
        np.testing.assert_allclose(new_tiles.obsm[f"X_sigmma_{scale}_rna"], codes.rna[scale], atol=1e-6)
        np.testing.assert_allclose(new_cells.obsm[f"X_sigmma_{scale}"], codes.cells[scale], atol=1e-6)
    np.testing.assert_array_equal(
        new_tiles.obsm["X_sigmma"], np.hstack([new_tiles.obsm["X_sigmma_image"], new_tiles.obsm["X_sigmma_rna"]])
    )
    np.testing.assert_allclose(np.linalg.norm(new_tiles.obsm["X_sigmma_image"], axis=1), 1, rtol=1e-5)


def test_other_functions_take_its_codes(tissue):
    cells, tiles = tissue
    stfuse.tl.sigmma(cells, tiles, **FAST)
    for scale in ("micro", "macro"):
        stfuse.tl.domains(cells, use_rep=f"X_sigmma_{scale}", n_clusters=3)
        assert cells.obs[f"sigmma_{scale}_domain"].nunique() == 3
    found = stfuse.tl.retrieve(tiles, use_rep="sigmma_meso", k=3)
    assert found is not None
    panels = stfuse.pl.retrieval(tiles, methods=["sigmma", "sigmma_micro"])
    assert len(panels) == 2 and {"SIGMMA", "SIGMMA micro"} <= {text.get_text() for text in panels[0].texts}
    query, reference = tiles[:8].copy(), tiles[8:].copy()
    model = stfuse.tl.sigmma(cells, tiles, return_model=True, **FAST)
    for call in (
        lambda: stfuse.tl.predict_expression(query, reference, model=model),
        lambda: stfuse.tl.retrieve(tiles, model=model),
    ):
        with pytest.raises(TypeError, match="tl.sigmma, which reads two objects.*use_rep="):
            call()
    stfuse.tl.predict_expression(query, reference, use_rep=("X_sigmma_image", "X_sigmma_rna"), n_neighbors=3)
    assert np.isfinite(query.layers["predicted"]).all()
    squidpy = pytest.importorskip("squidpy")
    squidpy.gr.nhood_enrichment(
        cells, cluster_key="cell_type", connectivity_key="sigmma_macro", n_perms=5, show_progress_bar=False, seed=0
    )


def test_made_views_are_written_as_by_their_functions(tissue):
    cells, tiles = tissue
    del cells.obsm["X_pca"]
    by_hand = cells.copy()
    stfuse.tl.sigmma(cells, tiles, **FAST)
    stfuse.pp.rna_features(by_hand)
    stfuse.pp.cell_graph(by_hand, tile_key="tile", tiles=tiles)
    np.testing.assert_allclose(cells.obsm["X_pca"], by_hand.obsm["X_pca"], atol=1e-5)
    for key in ("connectivities", "meso", "macro"):
        assert (cells.obsp[f"cell_graph_{key}"] != by_hand.obsp[f"cell_graph_{key}"]).nnz == 0
    np.testing.assert_array_equal(cells.obsm["cell_graph_blocks"], by_hand.obsm["cell_graph_blocks"])


def test_image_features_are_made_from_the_image():
    rng = np.random.default_rng(0)
    n = 600
    cells = AnnData(rng.poisson(1.0, (n, 20)).astype(np.float32))
    cells.obsm["spatial"] = rng.random((n, 2)) * 512
    image = rng.integers(90, 255, (512, 512, 3), dtype=np.uint8)
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 8.0}
    cells.uns["spatial"] = {"s": {"images": {"hires": image}, "scalefactors": factors}}
    tiles = stfuse.pp.tessellate(cells, tile_px=64, min_tissue=None)
    with pytest.warns(UserWarning):  # crops of sixteenths are small
        stfuse.tl.sigmma(cells, tiles, **(FAST | {"tile_key": "tiles"}))
    assert tiles.obsm["X_image_grid"].shape[:2] == (tiles.n_obs, 21) and "grid" in tiles.uns["X_image_grid"]
    assert np.isfinite(tiles.obsm["X_sigmma"]).all()


def test_spots_in_tiles_of_spots():
    spots = stfuse.datasets.mob()
    tiles = stfuse.pp.tessellate(spots, tile_um=800, library_key="section", min_tissue=None)
    rng = np.random.default_rng(0)
    tiles.obsm["X_image_grid"] = rng.standard_normal((tiles.n_obs, 21, 5)).astype(np.float32)
    with pytest.warns(UserWarning, match="with fewer than three"):
        stfuse.tl.sigmma(spots, tiles, **(FAST | {"tile_key": "tiles"}))
    few = (tiles.obs["n_cells"] < 3).to_numpy()
    np.testing.assert_array_equal(np.isnan(tiles.obsm["X_sigmma_rna"]).any(1), few)
    assert few.any() and np.isfinite(tiles.obsm["X_sigmma"]).all()
    assert np.isfinite(spots.obsm["X_sigmma_macro"][(spots.obs["tiles"] != "unassigned").to_numpy()]).all()


def test_only_pairs_are_trained_on(tissue):
    cells, tiles = tissue
    tiles.obs["paired"] = np.arange(24) < 12
    spoiled = tiles.copy()
    spoiled.obsm["X_image_grid"][12:] = spoiled.obsm["X_image_grid"][[*range(13, 24), 12]]
    options = FAST | {"paired_key": "paired", "validation_fraction": 0}
    stfuse.tl.sigmma(cells, tiles, **options)
    stfuse.tl.sigmma(cells, spoiled, **options)
    np.testing.assert_allclose(tiles.obsm["X_sigmma_rna"], spoiled.obsm["X_sigmma_rna"], atol=1e-5)
    assert np.isfinite(tiles.obsm["X_sigmma_image"]).all()
    assert tiles.uns["sigmma"]["n_obs"]["paired"] == 12


def test_an_encoder_is_trained(tissue):
    cells, tiles = tissue
    rng = np.random.default_rng(0)
    tiles.obsm["pixels"] = rng.integers(0, 255, (24, 3, 16, 16), dtype=np.uint8)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    stfuse.tl.sigmma(cells, tiles, image_key="pixels", finetune_image=True, image_encoder=encoder, crop_size=8, **FAST)
    assert tiles.uns["sigmma"]["params"]["image_encoder"] == "Sequential"
    for options in ({"finetune_image": True}, {"image_encoder": encoder}):
        with pytest.raises(ValueError, match="go together"):
            stfuse.tl.sigmma(cells, tiles, image_key="pixels", **options, **FAST)


def test_a_run_of_fewer_scales_leaves_nothing_of_the_last(tissue):
    cells, tiles = tissue
    stfuse.tl.sigmma(cells, tiles, **FAST)
    stfuse.tl.sigmma(cells, tiles, scales=("micro",), **FAST)
    assert sorted(k for k in tiles.obsm if "sigmma" in k) == sorted(
        ["X_sigmma", "X_sigmma_image", "X_sigmma_rna", "X_sigmma_micro", "X_sigmma_micro_image", "X_sigmma_micro_rna"]
    )
    assert [k for k in cells.obsm if "sigmma" in k] == ["X_sigmma_micro"]
    assert [k for k in cells.obsp if "sigmma" in k] == ["sigmma_micro_connectivities"]


def test_missing_views_are_told_and_coded(tissue):
    cells, tiles = tissue
    tiles.obsm["X_image_grid"][0] = np.nan
    column = cells.obs["tile"].astype(object)
    column[column == tiles.obs_names[1]] = "unassigned"
    first = cells.obs_names[column == tiles.obs_names[2]]
    column[first[2:]] = np.nan
    column[first[0]] = "elsewhere"
    cells.obs["tile"] = column
    cells.obsm["X_pca"][cells.obs_names.get_loc(cells.obs_names[column == tiles.obs_names[3]][0])] = np.nan
    with pytest.warns(UserWarning) as told:
        stfuse.tl.sigmma(cells, tiles, **FAST)
    words = " ".join(str(w.message) for w in told)
    for part in ("1 cell(s) name a tile that is not in", "Of 24 tiles there are 1 without a cell and 1 with fewer than three",
                 "1 of 24 tile(s) have no image", "1 cell(s) of tiles have no features"):  # fmt: skip
        assert part in words
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(tiles.obsm["X_sigmma_rna"]).any(1)), [1, 2])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(tiles.obsm["X_sigmma_image"]).any(1)), [0])
    np.testing.assert_array_equal(tiles.obsm["X_sigmma"][1, :24], tiles.obsm["X_sigmma"][1, 24:])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tile_key": "fov"}, KeyError, "No column 'fov'"),
        ({"tile_key": 3}, TypeError, "tile_key must be a string"),
        ({"tile_key": "cell_type"}, ValueError, "is a name of tiles.obs_names"),
        ({"rna_key": "X_scvi"}, KeyError, "X_scvi"),
        ({"image_key": "X_uni"}, KeyError, "X_uni.*There is 'spatial', 'composition'.*key_added='X_uni'"),
        ({"graph_key": "graph"}, KeyError, "No graph of cells under 'graph'.*key_added='graph'"),
        ({"paired_key": "half"}, KeyError, "half"),
        ({"paired_key": "n_cells"}, ValueError, "must be boolean"),
        ({"scales": ("huge",)}, ValueError, "scales must be some of"),
        ({"edge_addition": "few"}, ValueError, "edge_addition"),
        ({"layer": "gin"}, ValueError, "layer must be"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"max_epochs": 0}, ValueError, "max_epochs"),
        ({"seed": -1}, ValueError, "seed"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"copy": "yes"}, TypeError, "copy"),
        ({"crop_size": 8}, ValueError, "crop_size"),
        ({"key_added": "a/b"}, ValueError, "slash"),
        ({"key_added": "cell_graph"}, ValueError, "would overwrite what is read"),
        ({"key_added": "X_pca"}, ValueError, "would overwrite what is read"),
        ({"key_added": "spatial"}, ValueError, "would overwrite what is read"),
        ({"key_added": "image"}, ValueError, "would overwrite tiles.obsm"),
        ({"key_added": "other"}, ValueError, "would overwrite cells.uns"),
        ({"table_key": "table"}, ValueError, "names a table of a SpatialData"),
        ({"tiles": None}, TypeError, "tiles must be an AnnData"),
        ({"cells": np.ones((3, 3))}, TypeError, "cells must be an AnnData"),
    ],
)
def test_bad_input_changes_nothing(tissue, contents, options, error, match):
    cells, tiles = tissue
    cells.uns["other"] = 1
    before = contents(cells), contents(tiles)
    arguments = {"cells": cells, "tiles": tiles, **FAST, **options}
    with pytest.raises(error, match=match):
        stfuse.tl.sigmma(**arguments)
    np.testing.assert_equal((contents(cells), contents(tiles)), before)


def test_longer_names_do_not_stand_in_the_way(tissue):
    cells, tiles = tissue
    stfuse.tl.sigmma(cells, tiles, graph=False, key_added="sigmma_bag", **FAST)
    assert not [key for key in cells.obsp if "sigmma_bag" in key]
    stfuse.tl.sigmma(cells, tiles, **FAST)
    assert {"X_sigmma_bag", "X_sigmma"} <= set(tiles.obsm)
    with pytest.raises(ValueError, match=r"would overwrite tiles\.obsm\['X_sigmma_micro|would overwrite cells\.obsm"):
        stfuse.tl.sigmma(cells, tiles, key_added="sigmma_micro", **FAST)


def test_objects_that_do_not_fit(tissue):
    cells, tiles = tissue
    twice = cells.copy()
    twice.obs_names = [cells.obs_names[0], *cells.obs_names[:-1]]
    with pytest.raises(ValueError, match="obs_names of cells are not unique"):
        stfuse.tl.sigmma(twice, tiles, **FAST)
    with pytest.raises(ValueError, match="obs_names of tiles are not unique"):
        stfuse.tl.sigmma(cells, AnnData(obs=pd.DataFrame(index=["a", "a"])), **FAST)
    one = cells[cells.obs["tile"] == tiles.obs_names[0]].copy()
    with pytest.raises(ValueError, match="needs 4 tiles"):
        stfuse.tl.sigmma(one, tiles[:1].copy(), **FAST)
    del tiles.obsm["X_image_grid"]
    with pytest.raises(KeyError, match=r"no image to make it from.*grid=\[1, 2, 4\]"):
        stfuse.tl.sigmma(cells, tiles, **FAST)
