"""The model class on small synthetic tissue."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import RidgeCV

import stfuse
from stfuse.model import SIGMMA
from stfuse.model._tile_cells import join, read_cells, read_image

SMALL = {"embed_dim": 8, "n_hidden": 8}


@pytest.fixture
def tissue():
    cells, tiles = stfuse.datasets.synthetic_cells(24, cells_per_tile=20, n_image_features=6, seed=1)
    stfuse.pp.cell_graph(cells, tile_key="tile", tiles=tiles)
    return cells, tiles


def trained(cells, tiles, epochs=2, train=None, **options):
    SIGMMA.setup_anndata(cells, tile_key="tile")
    model = SIGMMA(cells, tiles, **(SMALL | options))
    model.train(**({"max_epochs": epochs, "progress": False} | (train or {})))
    return model


def test_crops_of_a_scale_are_averaged(tissue):
    _, tiles = tissue
    grid = tiles.obsm["X_image_grid"]
    pooled, has = read_image(tiles, "X_image_grid", [4, 2, 1], False)
    np.testing.assert_allclose(pooled[:, 0], grid[:, 5:].mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pooled[:, 1], grid[:, 1:5].mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled[:, 2], grid[:, 0])
    assert has.all()
    # in another order, as the record says
    tiles.obsm["X_image_grid"] = np.concatenate([grid[:, 5:], grid[:, :5]], axis=1)
    tiles.uns["X_image_grid"] = {"grid": [4, 1, 2]}
    np.testing.assert_allclose(read_image(tiles, "X_image_grid", [4, 2, 1], False)[0], pooled, rtol=1e-6)


def test_codes_and_their_shapes(tissue):
    cells, tiles = tissue
    model = trained(cells, tiles)
    codes = model.codes()
    for view in ("image", "rna"):
        for code in getattr(codes, view).values():
            assert code.shape == (24, 8)
            np.testing.assert_allclose(np.linalg.norm(code, axis=1), 1, rtol=1e-5)
    assert {k: v.shape for k, v in codes.cells.items()} == dict.fromkeys(("micro", "meso", "macro"), (cells.n_obs, 8))
    image = model.get_latent_representation(view="image")
    np.testing.assert_allclose(image * np.sqrt(3), np.hstack(list(codes.image.values())), rtol=1e-6)
    np.testing.assert_array_equal(model.get_latent_representation(view="rna", scale="meso"), codes.rna["meso"])
    np.testing.assert_allclose(model.get_latent_representation()[:, :24], image)


def test_graphs_of_scales_hold_each_other(tissue):
    cells, tiles = tissue
    model = trained(cells, tiles, epochs=3)
    edges = model.codes().edges
    tile = cells.obs["tile"].cat.codes.to_numpy()
    block = cells.obsm["cell_graph_blocks"]
    assert (edges["micro"] != cells.obsp["cell_graph_connectivities"]).nnz == 0
    for number, (small, large) in enumerate((("micro", "meso"), ("meso", "macro"))):
        inner, outer = edges[small] > 0, edges[large] > 0
        assert (inner > outer).nnz == 0 and outer.nnz > inner.nnz
        assert (edges[large] != edges[large].T).nnz == 0 and edges[large].max() <= 1
        one, other = (outer > inner).nonzero()
        assert (tile[one] == tile[other]).all()
        assert (block[one, number + 1] == block[other, number + 1]).all()
        assert (block[one, number] != block[other, number]).all()
        added = edges[large][one, other]
        assert np.asarray(added).min() > 0.5


def test_a_seed_repeats_and_another_does_not(tissue):
    cells, tiles = tissue
    first, again, other = (
        trained(cells, tiles, train={"seed": seed}).get_latent_representation(view="rna") for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_permuted_cells_have_permuted_codes(tissue):
    cells, tiles = tissue
    model = trained(cells, tiles)
    order = np.random.default_rng(0).permutation(cells.n_obs)
    found, shuffled = model.codes(), model.codes(cells[order].copy(), tiles)
    for scale in ("micro", "meso", "macro"):
        np.testing.assert_allclose(shuffled.cells[scale], found.cells[scale][order], atol=1e-5)
        np.testing.assert_allclose(shuffled.rna[scale], found.rna[scale], atol=1e-5)
        difference = shuffled.edges[scale] - found.edges[scale][order][:, order]
        assert abs(difference).max() < 1e-5


def test_new_data_with_one_view(tissue):
    cells, tiles = tissue
    model = trained(cells, tiles)
    full = model.codes()
    images = model.codes(tiles=tiles[:5].copy())
    np.testing.assert_allclose(images.image["micro"], full.image["micro"][:5], atol=1e-6)
    assert np.isnan(images.rna["micro"]).all() and not images.cells["micro"].size
    np.testing.assert_array_equal(images.fused["macro"][:, 8:], images.image["macro"])
    with pytest.raises(ValueError, match="pass it as tiles="):
        model.codes(tiles)
    alone = model.codes(cells=cells)
    assert np.isnan(alone.image["micro"]).all()
    np.testing.assert_allclose(alone.rna["macro"], full.rna["macro"], atol=1e-6)


def test_it_learns_what_a_bag_cannot_see():
    cells, tiles = stfuse.datasets.synthetic_cells(120, cells_per_tile=40, noise=0.3, seed=2)
    mixed = cells.obs.groupby("tile", observed=True)["mixed"].mean().loc[tiles.obs_names].to_numpy()
    # what composition alone tells of it: nothing is as mixed as many types in equal parts
    kinds = tiles.obsm["composition"].to_numpy()
    known = np.arange(120) < 80
    tiles.obs["paired"] = known
    stfuse.pp.cell_graph(cells, tile_key="tile", tiles=tiles)
    SIGMMA.setup_anndata(cells, tile_key="tile", paired_key="paired")

    def told(code):
        probe = RidgeCV(np.logspace(-3, 3, 7)).fit(code[known], mixed[known])
        return np.corrcoef(probe.predict(code[~known]), mixed[~known])[0, 1]

    score = {"composition": told(np.hstack([kinds, kinds**2]))}
    for graph in (False, True):
        model = SIGMMA(cells, tiles, graph=graph, edge_addition="none", embed_dim=32, n_hidden=32)
        model.train(max_epochs=20, progress=False, validation_fraction=0)
        score[graph] = told(model.get_latent_representation(view="rna"))
    assert score[True] > max(score[False], score["composition"]) + 0.1 and score[True] > 0.7, score


@pytest.mark.parametrize(
    "options",
    [
        {"scales": ("macro",)},
        {"scales": "micro"},
        {"graph": False},
        {"edge_addition": "all"},
        {"edge_addition": "none"},
        {"layer": "gatv2"},
    ],
)
def test_ablations_run(tissue, options, tmp_path):
    cells, tiles = tissue
    model = trained(cells, tiles, epochs=1, **options)
    codes = model.codes()
    scales = options.get("scales", ("micro", "meso", "macro"))
    assert list(codes.rna) == ([scales] if isinstance(scales, str) else list(scales))
    if options.get("edge_addition") == "all":
        both = cells.obsp["cell_graph_connectivities"] + sum(
            m + m.T for m in (csr_matrix(cells.obsp[f"cell_graph_{s}"], dtype=float) for s in ("meso", "macro"))
        )
        assert ((codes.edges["macro"] > 0) != (both > 0)).nnz == 0
    model.save(tmp_path / "model")
    again = SIGMMA.load(tmp_path / "model", cells, tiles)
    for scale, code in codes.rna.items():
        np.testing.assert_array_equal(again.codes().rna[scale], code)
    without = SIGMMA.load(tmp_path / "model")
    np.testing.assert_array_equal(
        without.codes(cells, tiles).image[list(codes.image)[0]], next(iter(codes.image.values()))
    )
    with pytest.raises(ValueError, match="loaded without data"):
        without.codes()


def test_an_image_encoder_is_trained_with_the_rest(tissue, tmp_path):
    cells, tiles = tissue
    rng = np.random.default_rng(0)
    tiles.obsm["pixels"] = rng.integers(0, 255, (24, 3, 16, 16), dtype=np.uint8)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    before = [p.clone() for p in encoder.parameters()]
    SIGMMA.setup_anndata(cells, tile_key="tile", image_key="pixels")
    model = SIGMMA(cells, tiles, image_encoder=encoder, crop_size=8, **SMALL)
    model.train(max_epochs=2, progress=False)
    changed = model.module.image_encoder
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, changed.parameters(), strict=True))
    codes = model.get_latent_representation(view="image")
    model.save(tmp_path / "model")
    again = SIGMMA.load(tmp_path / "model", cells, tiles, image_encoder=encoder)
    np.testing.assert_array_equal(again.get_latent_representation(view="image"), codes)
    with pytest.raises(ValueError, match="trained with an image_encoder"):
        SIGMMA.load(tmp_path / "model", cells, tiles)
    tiles.obsm["pixels"] = tiles.obsm["pixels"][:, :, :12, :12]
    with pytest.raises(ValueError, match=r"Tiles are \[3, 12, 12\]"):
        again.codes()


def test_what_is_left_out(tissue):
    cells, tiles = tissue
    names = tiles.obs_names
    tiles.obsm["X_image_grid"][0] = np.nan
    # no cell of the second tile, two of the third
    gone = cells.obs["tile"].isin([names[1]]) | (
        (cells.obs["tile"] == names[2]) & (cells.obs.groupby("tile", observed=True).cumcount() > 1)
    )
    cells.obs["tile"] = cells.obs["tile"].where(~gone)
    cells.obsm["X_pca"][cells.obs["tile"].to_numpy() == names[3]] = np.nan
    with pytest.raises(ValueError, match="was made of other cells: of tile 'tile2' it has"):
        trained(cells, tiles)
    stfuse.pp.cell_graph(cells, tile_key="tile", tiles=tiles)
    model = trained(cells, tiles)
    codes = model.codes()
    assert np.flatnonzero(np.isnan(codes.image["micro"]).any(1)).tolist() == [0]
    assert np.flatnonzero(np.isnan(codes.rna["micro"]).any(1)).tolist() == [1, 2, 3]
    assert not np.isnan(codes.fused["meso"]).any()
    missing = gone.to_numpy() | (cells.obs["tile"] == names[3]).to_numpy()
    # the two cells of the third tile have codes of their own
    np.testing.assert_array_equal(np.isnan(codes.cells["macro"]).any(1), missing)
    counts = model._data(cells, tiles, training=True).counts()
    assert counts["image"] == 23 and counts["rna"] == 21 and counts["both"] == 20 and counts["paired"] == 20
    assert counts["cells_outside_tiles"] == int(gone.sum())


def test_a_graph_of_other_cells_is_refused(tissue):
    cells, tiles = tissue
    model = trained(cells, tiles)
    half = cells[::2].copy()
    with pytest.raises(ValueError, match="made of other cells"):
        model.codes(half, tiles)
    # whole tiles may be coded by themselves
    some = cells[cells.obs["tile"].isin(tiles.obs_names[:5])].copy()
    found = model.codes(some, tiles[:5].copy())
    assert list(found.names) == list(tiles.obs_names[:5])
    np.testing.assert_allclose(found.rna["macro"], model.codes().rna["macro"][:5], atol=1e-5)
    # a graph of some tiles tells nothing of the others
    few = cells.copy()
    stfuse.pp.cell_graph(few, tile_key="tile", tiles=tiles[:10].copy())
    with pytest.raises(ValueError, match="of tile 'tile10' it has none"):
        model.codes(few, tiles)
    merged = cells.copy()
    merged.obs["tile"] = [f"tile{int(name[4:]) // 2}" for name in merged.obs["tile"]]
    with pytest.raises(ValueError, match="made of other cells"):
        model.codes(merged, tiles)
    # cells without a place were outside when the graph was made, and are so when it is read
    lost = cells.copy()
    lost.obsm["spatial"][:3] = np.nan
    with pytest.warns(UserWarning, match="no coordinates"):
        stfuse.pp.cell_graph(lost, tile_key="tile", tiles=tiles)
    assert np.isnan(model.codes(lost, tiles).cells["micro"]).any(1).sum() == 3


def test_edges_of_cells_that_took_no_part_are_left_out(tissue):
    cells, tiles = tissue
    cells.obsm["X_pca"][:7] = np.nan
    edges = trained(cells, tiles).codes().edges
    for graph in edges.values():
        assert not graph[:7].nnz and graph[7:].nnz
    assert not np.shares_memory(edges["micro"].data, cells.obsp["cell_graph_connectivities"].data)
    assert trained(cells, tiles, graph=False).codes().edges == {}


def test_an_odd_cell_changes_no_other_tile(tissue):
    cells, tiles = tissue
    model = trained(cells, tiles, layer="gatv2")
    odd = cells.copy()
    odd.obsm["X_pca"][0] = 300 * odd.obsm["X_pca"].std(0)
    mine = tiles.obs_names.get_loc(cells.obs["tile"].iloc[0])
    found, before = model.codes(odd, tiles).rna["macro"], model.codes().rna["macro"]
    others = np.arange(24) != mine
    np.testing.assert_allclose(found[others], before[others], atol=1e-5)
    assert np.abs(found[mine] - before[mine]).max() > 1e-3


def test_training_that_tells_nothing_is_told(tissue):
    cells, tiles = tissue
    with pytest.warns(UserWarning, match="no better after any epoch than before training"):
        model = trained(cells, tiles, train={"lr": 1e-12, "seed": 0})
    assert model.report_["epochs_kept"] == 2


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"scales": ()}, ValueError, "scales must be some of"),
        ({"scales": ("nano",)}, ValueError, "scales must be some of"),
        ({"edge_addition": "some"}, ValueError, "edge_addition must be one of"),
        ({"layer": "gcn"}, ValueError, "layer must be one of"),
        ({"graph": 1}, TypeError, "graph must be True or False"),
        ({"embed_dim": 0}, ValueError, "embed_dim"),
        ({"dropout": 1.0}, ValueError, "dropout must be below 1"),
        ({"gumbel_temperature": 0}, ValueError, "gumbel_temperature"),
        ({"image_encoder": "uni"}, TypeError, "image_encoder must be a torch.nn.Module"),
    ],
)
def test_bad_settings(tissue, options, error, match):
    cells, tiles = tissue
    SIGMMA.setup_anndata(cells, tile_key="tile")
    with pytest.raises(error, match=match):
        SIGMMA(cells, tiles, **options)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_epochs": 0}, ValueError, "max_epochs"),
        ({"batch_size": 1}, ValueError, "batch_size"),
        ({"lr": 0}, ValueError, "lr"),
        ({"warmup": 2}, ValueError, "warmup"),
        ({"validation_fraction": 1}, ValueError, "validation_fraction"),
        ({"patience": 0}, ValueError, "patience"),
        ({"device": "tpu"}, ValueError, "device"),
    ],
)
def test_bad_training(tissue, options, error, match):
    cells, tiles = tissue
    SIGMMA.setup_anndata(cells, tile_key="tile")
    model = SIGMMA(cells, tiles, **SMALL)
    with pytest.raises(error, match=match):
        model.train(**options)
    assert model.module is None
    with pytest.raises(RuntimeError, match="not trained yet"):
        model.codes()


def test_bad_data(tissue):
    cells, tiles = tissue
    with pytest.raises(KeyError, match=r"cells\.obsm\['X_scvi'\].*rna_features"):
        SIGMMA.setup_anndata(cells, tile_key="tile", rna_key="X_scvi")
    with pytest.raises(KeyError, match="No graph of cells under 'graph'.*cell_graph"):
        SIGMMA.setup_anndata(cells, tile_key="tile", graph_key="graph")
    with pytest.raises(KeyError, match="No column 'fov'"):
        SIGMMA.setup_anndata(cells, tile_key="fov")
    other = cells.copy()
    other.obs["section2"] = other.obs["tile"].to_numpy()
    with pytest.raises(ValueError, match="made for the tiles in obs"):
        SIGMMA.setup_anndata(other, tile_key="section2")
    other = cells.copy()
    other.obs["tile"] = np.random.default_rng(0).permutation(other.obs["tile"])
    with pytest.raises(ValueError, match="joins cells of different tiles"):
        SIGMMA.setup_anndata(other, tile_key="tile")
    SIGMMA.setup_anndata(cells, tile_key="tile")
    for spoil, error, match in (
        (lambda t: t.obsm.pop("X_image_grid"), KeyError, r"image_features\(tiles, grid=\[1, 2, 4\]\)"),
        (
            lambda t: t.obsm.update(X_image_grid=t.obsm["X_image"]),
            ValueError,
            r"tiles x crops x features.*scales=\('macro',\)",
        ),
        (lambda t: t.obsm.update(X_image_grid=t.obsm["X_image_grid"][:, :5]), ValueError, "has 5 crops a tile"),
        (lambda t: t.obsm.update(X_image_grid=t.obsm["X_image_grid"] * np.nan), ValueError, "needs 4 tiles with both"),
    ):
        broken = tiles.copy()
        spoil(broken)
        with pytest.raises(error, match=match):
            SIGMMA(cells, broken, **SMALL).train(max_epochs=1)
    with pytest.raises(ValueError, match="needs 4 tiles with both"):
        SIGMMA(cells, tiles[:3].copy(), **SMALL).train(max_epochs=1)
    with pytest.raises(ValueError, match="takes cells and tiles"):
        SIGMMA(cells, **SMALL).train()
    model = trained(cells, tiles, epochs=1)
    wide = tiles.copy()
    wide.obsm["X_image_grid"] = np.repeat(wide.obsm["X_image_grid"], 2, axis=2)
    with pytest.raises(ValueError, match="12 features, the model was trained on 6"):
        model.codes(tiles=wide)
    fine = cells.copy()
    stfuse.pp.cell_graph(fine, tile_key="tile", tiles=tiles, n_blocks=8)
    with pytest.raises(ValueError, match="8 x 8 blocks a tile.*had 4"):
        model.codes(cells=fine)


def test_whole_tiles_need_no_grid(tissue):
    cells, tiles = tissue
    SIGMMA.setup_anndata(cells, tile_key="tile", image_key="X_image")
    model = SIGMMA(cells, tiles, scales=("macro",), **SMALL)
    model.train(max_epochs=1, progress=False)
    assert model.get_latent_representation(view="image").shape == (24, 8)


def test_read_views_join_by_name(tissue):
    cells, tiles = tissue
    shuffled = tiles[np.random.default_rng(0).permutation(24)].copy()
    view = read_cells(cells, shuffled, "tile", "X_pca", "cell_graph")
    data = join(view, shuffled, None, None)
    for row, name in enumerate(shuffled.obs_names):
        mine = data.order[data.offsets[row] : data.offsets[row + 1]]
        assert set(cells.obs["tile"].iloc[mine]) == {name}
