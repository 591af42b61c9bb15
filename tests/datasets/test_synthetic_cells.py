import warnings

import numpy as np
import pytest
from anndata import read_h5ad
from scipy.sparse import issparse
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_predict

from stfuse.datasets import _synthetic_cells, synthetic_cells

REACHES = ["macro", "meso", "micro"]


def make(*arguments, **options):
    """Call without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        return synthetic_cells(*arguments, **options)


@pytest.fixture(scope="module")
def tissue():
    return make(400, seed=2)


@pytest.fixture(scope="module")
def plain():
    return make(400, seed=2, structure=False)


def explained(features, truth):
    """R2 of the best linear prediction of rows that were not fitted."""
    predicted = cross_val_predict(RidgeCV(np.logspace(-3, 4, 8)), features, truth, cv=4)
    return r2_score(truth, predicted)


def mixing(cells):
    """Mean over the cells of each tile of the share of near cells of another type."""
    return cells.obs.groupby("tile", observed=False)["mixed"].mean().to_numpy()


def without(values, known):
    """What a linear model of something known leaves of values."""
    return values - LinearRegression().fit(known, values).predict(known)


def assert_same(a, b):
    assert (a.X != b.X).nnz == 0
    assert a.obs.equals(b.obs) and a.var.equals(b.var)
    assert set(a.obsm) == set(b.obsm)
    for key in a.obsm:
        np.testing.assert_array_equal(a.obsm[key], b.obsm[key])


# layout


def test_layout_of_the_objects(tmp_path):
    cells, tiles = make(31, cells_per_tile=50, n_types=3, n_sections=2, n_image_features=10)
    assert cells.shape[1] == tiles.shape[1] == 3 * 12 + 16 and tiles.n_obs == 31
    assert list(cells.var_names) == list(tiles.var_names) and cells.var["niche"].sum() == 16
    for adata in (cells, tiles):
        assert issparse(adata.X) and adata.X.format == "csr" and adata.X.dtype == np.float32
        assert (adata.X.data == np.rint(adata.X.data)).all()
        assert adata.obs_names.is_unique and adata.var_names.is_unique
    assert cells.obsm["X_pca"].shape == (cells.n_obs, 12) and cells.obsm["X_pca"].dtype == np.float32
    assert tiles.obsm["X_image_grid"].shape == (31, 21, 10) and tiles.obsm["X_image_grid"].dtype == np.float32
    np.testing.assert_array_equal(tiles.obsm["X_image"], tiles.obsm["X_image_grid"][:, 0])
    assert list(cells.obs["tile"].cat.categories) == list(tiles.obs_names)
    assert list(cells.obs["cell_type"].cat.categories) == list(tiles.obsm["composition"].columns)
    assert tiles.obs["section"].value_counts(sort=False).tolist() == [16, 15]
    assert (tiles.obs.loc[cells.obs["tile"], "section"].to_numpy() == cells.obs["section"].to_numpy()).all()
    for name, adata in (("cells", cells), ("tiles", tiles)):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        back = read_h5ad(tmp_path / f"{name}.h5ad")
        assert (back.X != adata.X).nnz == 0 and back.obs.astype(str).equals(adata.obs.astype(str))


def test_tiles_lie_side_by_side_and_hold_their_cells():
    cells, tiles = make(11, n_sections=3)
    corner = tiles.obs[["tile_x", "tile_y"]].to_numpy()
    assert (tiles.obs["tile_size"] == 128).all()
    np.testing.assert_array_equal(tiles.obsm["spatial"], corner + 64)
    place = corner[tiles.obs_names.get_indexer(cells.obs["tile"])]
    assert (cells.obsm["spatial"] >= place).all() and (cells.obsm["spatial"] < place + 128).all()
    for _, rows in tiles.obs.groupby("section", observed=True):
        assert not rows.duplicated(["tile_x", "tile_y"]).any() and rows[["tile_x", "tile_y"]].to_numpy().min() == 0
        assert (rows[["tile_x", "tile_y"]] % 128 == 0).all(axis=None)


def test_tiles_are_sums_of_their_cells(tissue):
    cells, tiles = tissue
    x = cells.X.toarray()
    for name in tiles.obs_names[::37]:
        rows = (cells.obs["tile"] == name).to_numpy()
        np.testing.assert_array_equal(tiles[name].X.toarray()[0], x[rows].sum(axis=0))
        assert tiles.obs.loc[name, "n_cells"] == rows.sum()
        shares = cells.obs["cell_type"][rows].value_counts(normalize=True)
        for kind, share in tiles.obsm["composition"].loc[name].items():
            assert share == pytest.approx(shares[kind])
    assert tiles.X.sum() == x.sum() and tiles.obs["n_cells"].sum() == cells.n_obs
    assert tiles.obs["n_cells"].mean() == pytest.approx(96, rel=0.02)
    assert tiles.obs["n_cells"].var() == pytest.approx(96, rel=0.3)  # Poisson


@pytest.mark.parametrize("options", [{"cells_per_tile": 3, "n_types": 2}, {"cells_per_tile": 40, "n_types": 6}])
def test_mixed_is_the_share_of_other_types_among_the_nearest_of_the_tile(options):
    cells, _ = make(25, **options)
    kind, tile = cells.obs["cell_type"].to_numpy(), cells.obs["tile"].to_numpy()
    for i in range(0, cells.n_obs, 7):
        others = np.flatnonzero((tile == tile[i]) & (np.arange(cells.n_obs) != i))
        distance = np.linalg.norm(cells.obsm["spatial"][others] - cells.obsm["spatial"][i], axis=1)
        near = others[np.argsort(distance)[:4]]
        assert len(near) >= 2
        assert cells.obs["mixed"].iloc[i] == pytest.approx(np.mean(kind[near] != kind[i]))


def test_seeds():
    assert_same(make(12, seed=3)[0], make(12, seed=3)[0])
    assert_same(make(12, seed=3)[1], make(12, seed=3)[1])
    cells, other = make(12, seed=3)[0], make(12, seed=4)[0]
    assert cells.n_obs != other.n_obs or (cells.X != other.X).nnz > 0


@pytest.mark.parametrize(
    "options",
    [
        {"n_tiles": 1},
        {"n_tiles": 1, "cells_per_tile": 3, "n_types": 2, "n_image_features": 1},
        {"n_tiles": 3, "n_sections": 3},
        {"n_tiles": 5, "n_types": 9, "noise": 0},
    ],
)
def test_sizes_from_small_to_large(options):
    cells, tiles = make(**options)
    assert tiles.n_obs == options["n_tiles"] and tiles.obs["n_cells"].min() >= 3
    for values in (cells.obsm["X_pca"], tiles.obsm["X_image_grid"], cells.obs["mixed"], tiles.obsm["composition"]):
        assert np.isfinite(values).all(axis=None)
    assert cells.obsm["X_pca"].shape[1] == min(12, cells.n_obs - 1)


def test_cells_without_a_marker(monkeypatch):
    monkeypatch.setattr(_synthetic_cells, "_DEPTH", 0.05)
    cells, _ = make(20, n_types=2)
    bare = np.ravel(cells.X[:, :24].sum(axis=1)) == 0
    assert 0 < bare.sum() < cells.n_obs and np.isfinite(cells.obsm["X_pca"]).all()
    assert np.ptp(cells.obsm["X_pca"][bare], axis=0).max() < 1e-5


def test_components_are_those_of_log_normalised_markers():
    cells, _ = make(20)
    counts = cells.X.toarray()[:, ~cells.var["niche"]].astype(float)
    values = np.log1p(100 * counts / counts.sum(axis=1, keepdims=True))
    theirs = PCA(12, svd_solver="full").fit_transform(values)
    np.testing.assert_allclose(np.abs(cells.obsm["X_pca"]), np.abs(theirs), atol=0.01)


# what is known of the truth


def test_which_types_a_tile_holds_tells_nothing_of_how_they_lie(tissue):
    _, tiles = tissue
    composition, shares = tiles.obsm["composition"].to_numpy(), tiles.obs[REACHES].to_numpy()
    correlation = np.corrcoef(composition.T, shares.T)[:4, 4:]
    assert np.abs(correlation).max() < 4 / np.sqrt(len(tiles))
    assert explained(composition, shares) < 0.02
    # nor does how many, or how even they are
    even = np.column_stack([tiles.obs["n_cells"], (composition**2).sum(axis=1), composition.max(axis=1)])
    assert explained(even, shares) < 0.02
    assert (shares >= 0).all() and (shares.sum(axis=1) <= 1).all() and shares.std(axis=0).min() > 0.2


def test_tiles_of_large_patches_are_less_mixed(tissue):
    cells, tiles = tissue
    mixed, composition = mixing(cells), tiles.obsm["composition"].to_numpy()
    by_chance = 1 - (composition**2).sum(axis=1)
    order = without(mixed, by_chance[:, None])
    shares = tiles.obs[REACHES].to_numpy()
    found = [np.corrcoef(order, share)[0, 1] for share in shares.T]
    assert found[0] < -0.3 and np.corrcoef(order, shares.sum(axis=1))[0, 1] < -0.7
    clear = shares.sum(axis=1) > 0.95
    assert (mixed[clear] / by_chance[clear]).mean() < 0.7


def test_without_structure_types_lie_by_chance(plain, tissue):
    cells, tiles = plain
    composition = tiles.obsm["composition"].to_numpy()
    n = tiles.obs["n_cells"].to_numpy()
    # a cell's neighbours are drawn from the other cells of its tile
    by_chance = 1 - (composition * (composition * n[:, None] - 1)).sum(axis=1) / (n - 1)
    ratio = mixing(cells) / by_chance
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    assert ratio.std() < 0.1 < (mixing(tissue[0]) / (1 - (tissue[1].obsm["composition"] ** 2).sum(axis=1))).std()
    assert (tiles.obs[REACHES] == 0).all(axis=None)


def test_no_two_types_lie_together_more_often_than_others(tissue):
    """Types follow each other along a score in an order that each tile draws."""
    cells, tiles = tissue
    tile, kind = tiles.obs_names.get_indexer(cells.obs["tile"]), cells.obs["cell_type"].cat.codes.to_numpy()
    near = cKDTree(cells.obsm["spatial"]).query(cells.obsm["spatial"], k=5)[1][:, 1:]
    one = np.repeat(np.arange(cells.n_obs), 4)
    one, other = np.column_stack([one, near.ravel()])[tile[one] == tile[near.ravel()]].T
    met = np.bincount(kind[one] * 4 + kind[other], minlength=16).reshape(4, 4)
    kinds = tiles.obsm["composition"].to_numpy()[tile[one]]
    ratio = (met / (kinds.T @ kinds))[~np.eye(4, dtype=bool)]
    assert ratio.max() < 1.2 * ratio.min() and ratio.max() < 0.85


def test_patches_have_the_sizes_that_their_shares_say(tissue):
    """By how much two cells of a quarter, a sixteenth and a 64th are more often alike than two of the tile."""
    cells, tiles = tissue
    composition = tiles.obsm["composition"].to_numpy()
    tile = tiles.obs_names.get_indexer(cells.obs["tile"])
    local = (cells.obsm["spatial"] - tiles.obs[["tile_x", "tile_y"]].to_numpy()[tile]) / 128
    kind = cells.obs["cell_type"].cat.codes.to_numpy()
    excess = []
    for per_side in (2, 4, 8):
        square = tile * per_side**2 + np.floor(local * per_side).astype(int) @ [1, per_side]
        counts = np.bincount(square * 4 + kind, minlength=len(tiles) * per_side**2 * 4).reshape(len(tiles), -1, 4)
        size = counts.sum(axis=2)
        same = (counts * (counts - 1)).sum(axis=(1, 2)) / (size * (size - 1)).sum(axis=1)
        excess.append(same - (composition**2).sum(axis=1))
    found = [np.mean([part[mostly] for part in excess], axis=1) for mostly in tiles.obs[REACHES].to_numpy().T > 0.8]
    quarter, sixteenth, small = np.transpose(found)  # of tiles with large, middle and small patches
    assert (small > 0.35).all() and (quarter < small).all()
    assert quarter[0] > 0.5 * small[0]
    assert sixteenth[1] > 0.7 * small[1] and quarter[1] < 0.3 * small[1]
    assert sixteenth[2] < 0.4 * small[2] and quarter[2] < 0.15 * small[2]


def test_features_of_a_crop_follow_its_composition_and_mixing():
    """Without noise, and for each of the 21 crops, they are the stated function of what is inside."""
    cells, tiles = make(30, noise=0, n_image_features=8, seed=5)
    features = np.arctanh(np.clip(tiles.obsm["X_image_grid"].astype(float), -0.9999, 0.9999))
    tile = tiles.obs_names.get_indexer(cells.obs["tile"])
    local = (cells.obsm["spatial"] - tiles.obs[["tile_x", "tile_y"]].to_numpy()[tile]) / 128
    kinds = np.eye(4)[cells.obs["cell_type"].cat.codes]
    seen = []
    for i in range(30):
        for per_side in (1, 2, 4):
            for row in range(per_side):
                for column in range(per_side):
                    inside = (tile == i) & (np.floor(local * per_side) == [column, row]).all(axis=1)
                    assert inside.any()
                    seen.append([*kinds[inside].mean(axis=0), cells.obs["mixed"][inside].mean()])
    seen = 4 * np.array(seen)
    flat = features.reshape(-1, 8)
    clear = (np.abs(flat) < 3).all(axis=1)  # where tanh has not swallowed the digits
    model = LinearRegression().fit(seen[clear], flat[clear])
    np.testing.assert_allclose(model.predict(seen[clear]), flat[clear], atol=1e-3)
    assert clear.mean() > 0.3 and np.abs(model.coef_[:, 4]).max() > 0.1


def test_the_image_sees_structure_that_a_bag_of_cells_does_not(tissue):
    cells, tiles = tissue
    composition, mixed = tiles.obsm["composition"].to_numpy(), mixing(cells)
    bag = np.column_stack([composition, composition**2])
    assert explained(bag, mixed) < 0.3 < 0.5 < explained(tiles.obsm["X_image"], mixed)
    assert explained(tiles.obsm["X_image_grid"].mean(axis=1), mixed) > 0.9
    # what the bag leaves is there too, and the size of patches shows in how crops differ
    left = without(mixed, bag)
    assert explained(bag, left) < 0.01 and explained(tiles.obsm["X_image"], left) > 0.3
    assert explained(tiles.obsm["X_image_grid"][:, 5:].std(axis=1), tiles.obs["macro"]) > 0.1


def test_noise_hides_the_image():
    clear, noisy, drowned = (make(80, noise=noise)[1].obsm["X_image_grid"] for noise in (0, 1, 20))
    assert np.abs(clear).max() <= 1
    assert (noisy - clear).std() == pytest.approx(0.35, rel=0.02)
    assert (drowned - clear).std() == pytest.approx(7, rel=0.02)


def test_niche_genes_answer_to_neighbours_and_markers_to_types(tissue):
    cells, _ = tissue
    kind, mixed = cells.obs["cell_type"].cat.codes.to_numpy(), cells.obs["mixed"].to_numpy()
    x = cells.X.toarray()
    niche = cells.var["niche"].to_numpy()
    slopes = np.zeros((4, x.shape[1]))
    for code in range(4):
        rows = kind == code
        shares = mixed[rows] - mixed[rows].mean()
        # change of the mean count with the share, relative to the mean
        slopes[code] = shares @ x[rows] / (shares @ shares) / x[rows].mean(axis=0)
    assert (np.abs(slopes[:, niche]) > 0.8).all() and (np.sign(slopes[:, niche]) == np.sign(slopes[0, niche])).all()
    assert np.abs(slopes[:, ~niche]).max() < 0.5 and np.abs(slopes[:, ~niche].mean(axis=0)).max() < 0.2
    mean = np.stack([x[kind == code].mean(axis=0) for code in range(4)])
    for gene in np.flatnonzero(~niche):
        own = gene // 12
        assert mean[own, gene] > 3 * np.delete(mean[:, gene], own).max()


def test_components_tell_types_and_not_neighbours(tissue):
    cells, _ = tissue
    kinds = np.eye(4)[cells.obs["cell_type"].cat.codes]
    some = slice(0, 8000)
    components, mixed = cells.obsm["X_pca"][some], cells.obs["mixed"].to_numpy()[some]
    assert explained(components, kinds[some]) > 0.8
    # types tell something of the share, as rare ones meet more of the others; components nothing more
    assert explained(components, without(mixed, kinds[some])) < 0.01


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_tiles": 0}, ValueError, "n_tiles must be a whole number of at least 1"),
        ({"n_tiles": 2.0}, TypeError, "n_tiles must be a whole number"),
        ({"n_types": 1}, ValueError, "n_types must be a whole number of at least 2"),
        ({"n_sections": 0}, ValueError, "n_sections"),
        ({"n_tiles": 3, "n_sections": 4}, ValueError, "n_sections=4 needs at least as many tiles, got n_tiles=3"),
        ({"n_image_features": 0}, ValueError, "n_image_features"),
        ({"cells_per_tile": 2}, ValueError, "cells_per_tile must be a number of at least 3"),
        ({"cells_per_tile": np.nan}, ValueError, "cells_per_tile"),
        ({"noise": -1}, ValueError, "noise must be a number of at least 0"),
        ({"structure": "yes"}, TypeError, "structure must be True or False"),
        ({"seed": -1}, ValueError, "seed must be"),
    ],
)
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match):
        make(**{"n_tiles": 5, **options})
