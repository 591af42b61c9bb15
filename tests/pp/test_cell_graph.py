import warnings
from functools import partial
from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import squidpy as sq
from anndata import AnnData
from scipy.sparse import csr_matrix
from scipy.spatial import Delaunay
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, set_transformation

from stfuse.datasets import synthetic_cells
from stfuse.pp import cell_graph, tessellate

KEYS = ["cell_graph_connectivities", "cell_graph_distances", "cell_graph_meso", "cell_graph_macro"]
SIDE = 8.0


def table(n, **obs):
    return AnnData(csr_matrix((n, 1), dtype=np.float32), obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(n)]))


@pytest.fixture
def pair():
    """500 cells on 3 x 2 tiles that do not begin at the origin, some beside all tiles, and a tile without cells."""
    rng = np.random.default_rng(0)
    places = rng.random((500, 2)) * [28, 18] + [96, -52]
    place = np.floor((places - [100, -50]) / SIDE).astype(int)
    inside = (place >= 0).all(axis=1) & (place < [3, 2]).all(axis=1)
    names = np.array([f"s_{row}_{column}" for row in range(2) for column in range(3)] + ["s_9_9"])
    column = np.where(inside, names[np.clip(place @ [1, 3], 0, 5)], "unassigned")
    cells = table(500, tile=pd.Categorical(column))
    cells.obs["type"] = pd.Categorical(rng.choice(["T", "B", "M"], 500))
    cells.obsm["spatial"] = places
    corner = np.array([(100 + SIDE * c, -50 + SIDE * r) for r in range(2) for c in range(3)] + [(900, 900)])
    obs = pd.DataFrame({"tile_x": corner[:, 0], "tile_y": corner[:, 1], "tile_size": SIDE}, index=names)
    tiles = AnnData(obs=obs, obsm={"spatial": corner + SIDE / 2})
    return cells, tiles


def run(cells, tiles=None, **arguments):
    """Call without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return cell_graph(cells, **{"tile_key": "tile", "tiles": tiles, **arguments})


def edges(cells, key="cell_graph_connectivities"):
    return set(zip(*(part.tolist() for part in cells.obsp[key].nonzero()), strict=True))


def literal_blocks(places, names, tiles, n_blocks=4):
    """Blocks of cells one by one, by what the table of tiles says."""
    found = np.full((len(names), 3), -1)
    for i, name in enumerate(names):
        if name not in tiles.obs_names:
            continue
        left, top, side = tiles.obs.loc[name, ["tile_x", "tile_y", "tile_size"]]
        for scale, per_side in enumerate((n_blocks, 2, 1)):
            column = min(max(int(np.floor((places[i, 0] - left) / (side / per_side))), 0), per_side - 1)
            row = min(max(int(np.floor((places[i, 1] - top) / (side / per_side))), 0), per_side - 1)
            found[i, scale] = row * per_side + column
    return found


def literal_pairs(names, blocks, scale):
    """Pairs of cells of one tile whose blocks merge at a scale, as the double loop finds them."""
    fine, coarse = blocks[:, scale - 1], blocks[:, scale]
    return {
        (i, j)
        for i, j in combinations(range(len(names)), 2)
        if fine[i] >= 0 and names[i] == names[j] and coarse[i] == coarse[j] and fine[i] != fine[j]
    }


# what is written


@pytest.mark.parametrize("n_blocks", [4, 8])
def test_what_is_written_is_what_literal_loops_find(pair, n_blocks):
    cells, tiles = pair
    assert run(cells, tiles, n_blocks=n_blocks, n_neighbors=3, max_pairs=10**6) is None
    names, places = cells.obs["tile"].astype(str).to_numpy(), cells.obsm["spatial"]
    blocks = literal_blocks(places, names, tiles, n_blocks)
    np.testing.assert_array_equal(cells.obsm["cell_graph_blocks"], blocks)
    assert cells.obsm["cell_graph_blocks"].dtype == np.int32
    expected = set()
    for i in np.flatnonzero(blocks[:, 0] >= 0):
        near = np.flatnonzero((names == names[i]) & (blocks[:, 0] == blocks[i, 0]))
        near = near[near != i]
        distance = np.linalg.norm(places[near] - places[i], axis=1)
        expected |= {pair for j in near[np.argsort(distance)[:3]].tolist() for pair in ((int(i), j), (j, int(i)))}
    assert edges(cells) == edges(cells, "cell_graph_distances") == expected
    ones, distances = cells.obsp["cell_graph_connectivities"], cells.obsp["cell_graph_distances"]
    assert (ones.data == 1).all() and ones.format == "csr" and ones.dtype == distances.dtype == np.float32
    one, other = distances.nonzero()
    np.testing.assert_allclose(distances.data, np.linalg.norm(places[one] - places[other], axis=1), rtol=1e-5)
    for scale, key in ((1, "cell_graph_meso"), (2, "cell_graph_macro")):
        assert edges(cells, key) == literal_pairs(names, blocks, scale)
        assert cells.obsp[key].dtype == bool and cells.obsp[key].format == "csr"
    n_in = int((names != "unassigned").sum())
    record = cells.uns["cell_graph"]
    assert record["n_obs"] == {
        "cells": 500,
        "cells_in_tiles": n_in,
        "cells_beyond_their_tile": 0,
        "tiles": 7,
        "tiles_without_cells": 1,
        "tiles_with_fewer_than_3_cells": 1,
        "edges": len(expected) // 2,
    }
    assert record["n_pairs"]["macro"] == dict.fromkeys(("listed", "all"), cells.obsp["cell_graph_macro"].nnz)
    assert record["params"]["n_blocks"] == n_blocks and record["params"]["tile_key"] == "tile"
    assert 0 < n_in < 500


def test_pairs_above_the_cap_are_some_of_all(pair):
    cells, tiles = pair
    everything = run(cells, tiles, max_pairs=10**6, copy=True)
    few, again, other = (run(cells, tiles, max_pairs=50, seed=seed, copy=True) for seed in (0, 0, 1))
    for key, scale in (("cell_graph_meso", "meso"), ("cell_graph_macro", "macro")):
        listed = edges(few, key)
        assert listed < edges(everything, key) and listed == edges(again, key) != edges(other, key)
        per_tile = pd.Series([cells.obs["tile"].iloc[i] for i, _ in listed]).value_counts()
        assert len(per_tile) == 6 and (per_tile == 50).all()
        assert few.uns["cell_graph"]["n_pairs"][scale] == {"listed": 300, "all": everything.obsp[key].nnz}


@pytest.mark.parametrize("mode", ["knn", "radius", "delaunay"])
def test_rows_may_come_in_any_order(pair, mode):
    cells, tiles = pair
    order = np.random.default_rng(1).permutation(500)
    shuffled = cells[order].copy()
    shuffled_tiles = tiles[::-1].copy() if mode == "knn" else tiles
    for one, where in ((cells, tiles), (shuffled, shuffled_tiles)):
        run(one, where, mode=mode, radius=1.5, max_pairs=10**6)
    for key in KEYS:
        theirs = cells.obsp[key][order][:, order]
        ours = shuffled.obsp[key]
        if key not in KEYS[:2]:  # once each, in the upper triangle
            theirs, ours = theirs + theirs.T, ours + ours.T
        assert (theirs != ours).nnz == 0, key
    np.testing.assert_array_equal(cells.obsm["cell_graph_blocks"][order], shuffled.obsm["cell_graph_blocks"])


def test_drawn_pairs_do_not_depend_on_the_order_of_rows(pair):
    cells, tiles = pair
    order = np.random.default_rng(1).permutation(500)
    shuffled = cells[order].copy()
    run(cells, tiles, max_pairs=20)
    run(shuffled, tiles, max_pairs=20)
    for key in KEYS[2:]:
        named = [
            {frozenset(one.obs_names[[i, j]]) for i, j in edges(one, key)}  # of either object
            for one in (cells, shuffled)
        ]
        assert named[0] == named[1] and len(named[0]) == 120


def test_radius_and_delaunay_of_squidpy_cut_at_borders(pair):
    if not hasattr(sq.gr, "spatial_neighbors_delaunay"):
        pytest.skip("this squidpy has no builders of its own for each kind of neighbours")
    cells, tiles = pair
    inside = cells[cells.obs["tile"] != "unassigned"].copy()
    blocks = literal_blocks(inside.obsm["spatial"], inside.obs["tile"].astype(str), tiles)[:, 0]
    theirs = {
        "radius": partial(sq.gr.spatial_neighbors_radius, radius=1.2),
        "delaunay": sq.gr.spatial_neighbors_delaunay,
    }
    for mode, build in theirs.items():
        build(inside)
        expected = {
            (i, j)
            for i, j in edges(inside, "spatial_connectivities")
            if blocks[i] == blocks[j] and inside.obs["tile"].iloc[i] == inside.obs["tile"].iloc[j]
        }
        run(inside, tiles, mode=mode, radius=1.2)
        assert edges(inside) == expected and len(expected) > 300
        # those outside of all tiles count for nothing
        run(cells, tiles, mode=mode, radius=1.2)
        assert {tuple(cells.obs_names[[i, j]]) for i, j in edges(cells)} == {
            tuple(inside.obs_names[[i, j]]) for i, j in expected
        }


def test_delaunay_knows_sections():
    """Two sections whose tiles have the same coordinates."""
    cells, tiles = synthetic_cells(8, n_sections=2, cells_per_tile=60)
    with pytest.warns(UserWarning, match="8 of 8 observations lie exactly where another one lies.*library_key="):
        cell_graph(cells, tile_key="tile", tiles=tiles, mode="delaunay")
    run(cells, tiles, mode="delaunay", library_key="section")
    expected = set()
    blocks = cells.obsm["cell_graph_blocks"][:, 0]
    for name in cells.obs["section"].cat.categories:
        rows = np.flatnonzero(cells.obs["section"] == name)
        for simplex in Delaunay(cells.obsm["spatial"][rows]).simplices:
            for i, j in combinations(rows[simplex].tolist(), 2):
                if blocks[i] == blocks[j] and cells.obs["tile"].iloc[i] == cells.obs["tile"].iloc[j]:
                    expected |= {(i, j), (j, i)}
    assert edges(cells) == expected
    # sections of images are found
    found = cells.copy()
    found.uns["spatial"] = {name: {} for name in cells.obs["section"].cat.categories}
    run(found, tiles, mode="delaunay")
    assert edges(found) == expected
    with pytest.raises(KeyError, match="No obs column 'sect'.*Did you mean 'section'"):
        run(cells, tiles, mode="delaunay", library_key="sect")


def test_squidpy_and_scanpy_use_the_graph(pair):
    cells, tiles = pair
    run(cells, tiles)
    found = sq.gr.nhood_enrichment(
        cells,
        cluster_key="type",
        connectivity_key="cell_graph",
        n_perms=10,
        n_jobs=1,
        copy=True,
        show_progress_bar=False,
    )
    kinds = cells.obs["type"].cat.codes.to_numpy()
    expected = np.zeros((3, 3))
    for i, j in edges(cells):
        expected[kinds[i], kinds[j]] += 1
    np.testing.assert_array_equal(found.counts, expected)
    neighbors = sc.Neighbors(cells, neighbors_key="cell_graph_neighbors")
    assert (neighbors.connectivities != cells.obsp["cell_graph_connectivities"]).nnz == 0
    assert (neighbors.distances != cells.obsp["cell_graph_distances"]).nnz == 0
    sc.tl.leiden(cells, neighbors_key="cell_graph_neighbors", flavor="igraph", n_iterations=1)
    one, other = cells.obsp["cell_graph_connectivities"].nonzero()
    assert (cells.obs["leiden"].to_numpy()[one] == cells.obs["leiden"].to_numpy()[other]).mean() > 0.5


def test_h5ad_keeps_all_and_subsets_stay_consistent(pair, tmp_path, contents):
    cells, tiles = pair
    run(cells, tiles, spatial_key="spatial")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    for key in KEYS:
        assert (back.obsp[key] != cells.obsp[key]).nnz == 0 and back.obsp[key].dtype == cells.obsp[key].dtype
    np.testing.assert_array_equal(back.obsm["cell_graph_blocks"], cells.obsm["cell_graph_blocks"])
    assert back.uns["cell_graph"]["params"] == cells.uns["cell_graph"]["params"]
    assert back.uns["cell_graph"]["n_pairs"] == cells.uns["cell_graph"]["n_pairs"]
    assert back.uns["cell_graph_neighbors"]["connectivities_key"] == "cell_graph_connectivities"
    run(back, tiles, n_neighbors=2)  # what was read is replaced
    assert back.obsp["cell_graph_connectivities"].nnz < cells.obsp["cell_graph_connectivities"].nnz
    rows = np.random.default_rng(0).permutation(500)[:200]
    part = cells[rows].copy()
    for key in KEYS:
        np.testing.assert_array_equal(part.obsp[key].toarray(), cells.obsp[key].toarray()[rows][:, rows])
    # a graph of the part is another: cells that were left out are no neighbours
    run(part, tiles)
    assert part.uns["cell_graph"]["n_obs"]["cells"] == 200


def test_copy_and_views(pair, contents):
    cells, tiles = pair
    before = contents(cells)
    copied = run(cells, tiles, copy=True)
    assert set(KEYS) <= set(copied.obsp)
    view = cells[cells.obs["tile"] == "s_0_1"]
    assert view.is_view
    with pytest.warns(ad.ImplicitModificationWarning):
        cell_graph(view, tile_key="tile", tiles=tiles)
    assert not view.is_view and set(KEYS) <= set(view.obsp) and "cell_graph_neighbors" in view.uns
    assert view.uns["cell_graph"]["n_obs"]["tiles_without_cells"] == 6
    np.testing.assert_equal(contents(cells), before)


def test_backed_cells(pair, tmp_path):
    cells, tiles = pair
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ValueError, match="backed AnnData can't be copied"):
        run(backed, tiles, copy=True)
    run(backed, tiles)
    run(cells, tiles)
    assert edges(backed) == edges(cells)
    backed.file.close()


def test_own_name_and_running_again(pair):
    cells, tiles = pair
    run(cells, tiles)
    first = edges(cells)
    run(cells, tiles, key_added="wide", n_neighbors=20)
    assert edges(cells) == first < edges(cells, "wide_connectivities")
    assert {"wide_meso", "wide_macro", "wide_distances"} <= set(cells.obsp) and "wide_blocks" in cells.obsm
    assert cells.uns["wide_neighbors"]["connectivities_key"] == "wide_connectivities"
    run(cells, tiles, mode="radius", radius=1e-6)
    assert not edges(cells) and cells.obsp["cell_graph_connectivities"].shape == (500, 500)


# where the tiles lie


def test_tile_size_around_centers(pair):
    cells, tiles = pair
    expected = run(cells, tiles, copy=True)
    tiles.obs = tiles.obs[["tile_x"]]  # says too little
    run(cells, tiles, tile_size=SIDE)
    np.testing.assert_array_equal(cells.obsm["cell_graph_blocks"], expected.obsm["cell_graph_blocks"])
    assert edges(cells) == edges(expected)
    tiles.obsm["spatial"][2, 1] = np.nan
    with pytest.raises(ValueError, match="tiles.obsm\\['spatial'\\] must be finite"):
        run(cells, tiles, tile_size=SIDE)
    del tiles.obsm["spatial"]
    with pytest.raises(KeyError, match="tile_size= needs the tiles' centres"):
        run(cells, tiles, tile_size=SIDE)


def test_without_a_size_squares_are_cut_around_the_cells(pair):
    cells, tiles = pair
    tiles.obs = tiles.obs[[]]
    for given in (tiles, None):
        with pytest.warns(UserWarning, match="Nothing says how large the tiles are.*tessellate"):
            cell_graph(cells, tile_key="tile", tiles=given)
        blocks = cells.obsm["cell_graph_blocks"]
        for name in cells.obs["tile"].cat.categories.drop("unassigned"):
            rows = np.flatnonzero(cells.obs["tile"] == name)
            places = cells.obsm["spatial"][rows]
            low, high = places.min(axis=0), places.max(axis=0)
            side = (high - low).max()
            relative = (places - (low + high - side) / 2) / side
            column, row = np.minimum(np.floor(relative * 4 + 1e-12), 3).T
            np.testing.assert_array_equal(blocks[rows, 0], row * 4 + column)
        assert (blocks[cells.obs["tile"] == "unassigned"] == -1).all()


def test_a_size_alone_is_laid_around_the_middle_of_the_cells():
    cells = table(4, tile=["a", "a", "a", "b"])
    cells.obsm["spatial"] = np.array([(0.0, 0), (6, 2), (6, 6), (50, 50)])
    with pytest.warns(UserWarning, match="Nothing says where the tiles lie"):
        cell_graph(cells, tile_key="tile", tile_size=8)
    # the square of a begins at (-1, -1), that of b at (46, 46)
    assert cells.obsm["cell_graph_blocks"].tolist() == [[0, 0, 0], [7, 1, 0], [15, 3, 0], [10, 3, 0]]


def test_coordinates_may_be_columns_or_have_another_name(pair):
    cells, tiles = pair
    run(cells, tiles)
    expected, blocks = edges(cells), cells.obsm["cell_graph_blocks"]
    cells.obs["x"], cells.obs["y"] = cells.obsm.pop("spatial").T
    cells.obsm["volume"] = np.column_stack([cells.obs["x"], cells.obs["y"], np.arange(500)])
    for key in (("x", "y"), ["x", "y"], "volume"):
        run(cells, tiles, spatial_key=key)
        assert edges(cells) == expected
        np.testing.assert_array_equal(cells.obsm["cell_graph_blocks"], blocks)
    with pytest.raises(KeyError, match="No obsm.*'spatial.*There is: .*volume"):
        run(cells, tiles)


# cells and tiles that are not as they should be


def test_cells_beyond_their_tile_count_to_the_nearest_block(pair):
    cells, tiles = pair
    rows = np.flatnonzero(cells.obs["tile"] == "s_1_2")[:3]
    cells.obsm["spatial"][rows] = [(110, -41), (150, 40), (116 + SIDE, -42)]  # the last one on the border
    with pytest.warns(
        UserWarning, match="2 of .* cells lie outside of the square of their tile: they count to its nearest"
    ):
        cell_graph(cells, tile_key="tile", tiles=tiles)
    assert cells.obsm["cell_graph_blocks"][rows].tolist() == [[0, 0, 0], [15, 3, 0], [3, 1, 0]]
    assert cells.uns["cell_graph"]["n_obs"]["cells_beyond_their_tile"] == 2


def test_cells_without_coordinates_are_in_no_tile(pair):
    cells, tiles = pair
    full = run(cells, tiles, copy=True)
    inside = np.flatnonzero(cells.obs["tile"] != "unassigned")
    lost, rest = inside[:3], np.setdiff1d(np.arange(500), inside[:3])
    cells.obsm["spatial"][lost[0]] = np.nan
    cells.obsm["spatial"][lost[1], 1] = np.nan
    cells.obsm["spatial"][lost[2], 0] = np.inf
    cells.obsm["spatial"][cells.obs["tile"] == "unassigned"] = np.nan  # of which nobody needs to know
    for mode in ("knn", "radius", "delaunay"):
        with pytest.warns(UserWarning, match="3 cell\\(s\\) of a tile have no coordinates"):
            cell_graph(cells, tile_key="tile", tiles=tiles, mode=mode, radius=2.0)
        assert (cells.obsm["cell_graph_blocks"][lost] == -1).all()
        assert all(not cells.obsp[key][lost].nnz for key in KEYS)
        assert np.isfinite(cells.obsp["cell_graph_distances"].data).all()
    np.testing.assert_array_equal(cells.obsm["cell_graph_blocks"][rest], full.obsm["cell_graph_blocks"][rest])
    cells.obsm["spatial"][:] = np.nan
    with (
        pytest.warns(UserWarning, match="have no coordinates"),
        pytest.raises(ValueError, match="No cell of a tile has coordinates"),
    ):
        cell_graph(cells, tile_key="tile", tiles=tiles)


def test_names_that_do_not_match(pair):
    cells, tiles = pair
    tiles.obs_names = ["t" + name for name in tiles.obs_names]
    with pytest.raises(ValueError, match="such as 's_0_0', is a name of tiles.obs_names, such as 'ts_0_0'"):
        run(cells, tiles)
    with pytest.raises(ValueError, match="No cell's cells.obs\\['type'\\]"):
        run(cells, tiles, tile_key="type")
    with pytest.raises(KeyError, match="No column 'tyle' .tile_key. in cells.obs.* There is 'tile', 'type'"):
        run(cells, tiles, tile_key="tyle")
    with pytest.raises(ValueError, match="is a name of tiles.obs_names"):
        run(cells, tiles[:0])
    nowhere = cells.copy()
    for nothing in ("unassigned", None):
        nowhere.obs["tile"] = nothing
        with pytest.raises(ValueError, match="No cell's cells.obs\\['tile'\\] is a name of a tile"):
            run(nowhere)
    assert not len(cells.obsp) and not len(nowhere.obsp)


def test_some_names_that_do_not_match_are_told(pair):
    cells, tiles = pair
    n = int((cells.obs["tile"] == "s_1_1").sum())
    with pytest.warns(
        UserWarning, match=rf"{n} cell\(s\) name a tile that is not in tiles.obs_names .for example 's_1_1'"
    ):
        cell_graph(cells, tile_key="tile", tiles=tiles[tiles.obs_names != "s_1_1"])
    assert (cells.obsm["cell_graph_blocks"][cells.obs["tile"] == "s_1_1"] == -1).all()
    assert cells.uns["cell_graph"]["n_obs"]["tiles"] == 6


def test_missing_is_outside_and_numbers_are_names(pair):
    cells, tiles = pair
    run(cells, tiles)
    expected = edges(cells)
    cells.obs["tile"] = cells.obs["tile"].astype(object).where(cells.obs["tile"] != "unassigned", None)
    run(cells, tiles)
    assert edges(cells) == expected
    number = tiles.obs_names.get_indexer(cells.obs["tile"].astype(str))
    tiles.obs_names = [str(i) for i in range(tiles.n_obs)]
    for values in (np.where(number < 0, np.nan, number), pd.array(number).astype("Int64")):
        cells.obs["tile"] = values
        if not isinstance(values, np.ndarray):
            cells.obs.loc[number < 0, "tile"] = pd.NA
        run(cells, tiles)
        assert edges(cells) == expected


def test_duplicated_names_are_refused_and_cells_in_one_place_are_not(pair):
    cells, tiles = pair
    with warnings.catch_warnings(action="ignore"):  # anndata tells that names are not unique
        twice = cells[np.tile(np.arange(500), 2)].copy()
    with pytest.raises(ValueError, match="obs_names of cells are not unique"):
        run(twice, tiles)
    twice.obs_names_make_unique()
    for mode in ("knn", "radius", "delaunay"):
        run(twice, tiles, mode=mode, radius=0.5)
        joined = twice.obsp["cell_graph_connectivities"]
        for i in np.flatnonzero(cells.obs["tile"] != "unassigned"):
            assert joined[i, i + 500] == joined[i + 500, i] == 1
        assert twice.obsp["cell_graph_distances"].nnz == joined.nnz  # zeros are kept
        assert not joined.diagonal().any()
    tiles.obs_names = ["s_0_0", *tiles.obs_names[:-1]]
    with pytest.raises(ValueError, match="obs_names of tiles are not unique"):
        run(cells, tiles)


def test_one_tile_and_lonely_cells():
    cells = table(3, tile=["a", "a", "b"])
    cells.obsm["spatial"] = np.array([(1.0, 1), (15, 15), (20, 4)])
    obs = pd.DataFrame({"tile_x": [0, 16], "tile_y": 0, "tile_size": 16}, index=["a", "b"])
    for tiles in (AnnData(obs=obs), AnnData(obs=obs[:1])):
        one = cells[cells.obs["tile"].isin(tiles.obs_names)].copy()
        for mode in ("knn", "radius", "delaunay"):
            run(one, tiles, mode=mode, radius=100)
            assert not edges(one) and not edges(one, "cell_graph_meso")
            assert edges(one, "cell_graph_macro") == {(0, 1)}
        assert one.uns["cell_graph"]["n_obs"]["tiles_with_fewer_than_3_cells"] == tiles.n_obs
        assert one.uns["cell_graph"]["n_obs"]["tiles_without_cells"] == 0


def refused(cells, tiles, error, match, contents, **arguments):
    before = contents(cells)
    with pytest.raises(error, match=match):
        run(cells, tiles, **arguments)
    np.testing.assert_equal(contents(cells), before)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_blocks": 5}, ValueError, "n_blocks must be even.*got 5"),
        ({"n_blocks": 2}, ValueError, "n_blocks must be a whole number between 4 and 64"),
        ({"n_blocks": 4.0}, TypeError, "n_blocks must be a whole number"),
        ({"mode": "voronoi"}, ValueError, "mode must be one of 'knn', 'radius', 'delaunay', got 'voronoi'"),
        ({"mode": "radius"}, ValueError, 'mode="radius" needs radius='),
        ({"mode": "radius", "radius": 0}, ValueError, "radius must be a number above 0"),
        ({"mode": "radius", "radius": np.nan}, ValueError, "radius must be"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be a whole number of at least 1"),
        ({"max_pairs": 0}, ValueError, "max_pairs must be a whole number of at least 1"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"copy": "no"}, TypeError, "copy must be True or False"),
        ({"tile_size": 8.0}, ValueError, "tile_size= is for tiles that do not say their own"),
        ({"tile_size": -8.0}, ValueError, "tile_size must be a number above 0"),
        ({"tile_key": None}, TypeError, "tile_key must be a string"),
        ({"tile_key": "type"}, ValueError, "No cell's cells.obs\\['type'\\], such as 'B'"),
        ({"key_added": "a/b"}, ValueError, "holds a slash"),
        ({"key_added": ""}, ValueError, "non-empty string"),
        ({"key_added": "tile"}, ValueError, "would overwrite what is read as tile_key"),
        ({"key_added": "spatial"}, ValueError, "would overwrite what is read as coordinates"),
        ({"key_added": "mine"}, ValueError, "would overwrite uns\\['mine'\\]"),
        ({"key_added": "graph"}, ValueError, "would overwrite obsp\\['graph_distances'\\]"),
        ({"key_added": "place"}, ValueError, "would overwrite obsm\\['place_blocks'\\]"),
        ({"key_added": "near"}, ValueError, "would overwrite uns\\['near_neighbors'\\]"),
        ({"spatial_key": "X_spatial"}, KeyError, "No obsm.*'X_spatial.*Did you mean"),
        ({"spatial_key": ("tile", "type")}, ValueError, "must hold numbers"),
        ({"spatial_key": ("x",)}, ValueError, "one key of obsm or two columns"),
        ({"table_key": "table"}, ValueError, "table_key= names a table of a SpatialData"),
        ({"tiles_table": "table"}, ValueError, "tiles_table= names a table of a SpatialData"),
    ],
)
def test_bad_arguments(pair, contents, arguments, error, match):
    cells, tiles = pair
    cells.uns |= {"mine": 1, "near_neighbors": {}}
    cells.obsp["graph_distances"] = csr_matrix((500, 500))
    cells.obsm["place_blocks"] = np.zeros((500, 1))
    refused(cells, tiles, error, match, contents, **arguments)


def test_coordinates_in_another_unit_are_refused(pair, contents):
    cells, tiles = pair
    cells.obsm["spatial"] = cells.obsm["spatial"] * 0.2125
    refused(cells, tiles, ValueError, "lie outside of the square of the tile.*one unit and one origin", contents)


@pytest.mark.parametrize("bad", [np.nan, 0.0, "wide"])
def test_squares_of_tiles_that_are_none(pair, contents, bad):
    cells, tiles = pair
    tiles.obs["tile_size"] = [bad, *[SIDE] * 6]
    refused(cells, tiles, ValueError, "must be finite numbers, with sides above 0", contents)


def test_what_is_no_table_of_cells(pair):
    cells, tiles = pair
    with pytest.raises(TypeError, match="cells must be an AnnData, got ndarray"):
        run(cells.X.toarray(), tiles)
    with pytest.raises(TypeError, match="tiles must be an AnnData, got DataFrame"):
        run(cells, tiles.obs)
    with pytest.raises(ValueError, match="There are no cells"):
        run(cells[:0].copy(), tiles)


# SpatialData


def affine(matrix):
    return Affine(np.asarray(matrix), input_axes=("x", "y"), output_axes=("x", "y"))


MICRONS = np.diag([0.25, 0.25, 1.0])
TURNED = np.array([[0.0, -0.5, 90], [0.5, 0, -7], [0, 0, 1]])


def slides(sections, n=250):
    """Sections by name: a map from pixels to a system, one from cells to it, and the system; pixels of all cells."""
    elements, pixels, region = {}, [], []
    for number, (name, (to_system, own, system)) in enumerate(sections.items()):
        rng = np.random.default_rng(number)
        places = rng.random((n, 2)) * (200, 160)
        world = places @ to_system[:2, :2].T + to_system[:2, 2]
        back = np.linalg.inv(own)
        image = np.full((3, 160, 200), 245, np.uint8)
        image[:, 10:150, 10:190] = np.array([200, 120, 160])[:, None, None]
        elements[f"he_{name}"] = Image2DModel.parse(
            image, dims=("c", "y", "x"), transformations={system: affine(to_system)}
        )
        elements[name] = ShapesModel.parse(
            world @ back[:2, :2].T + back[:2, 2], geometry=0, radius=1.0, transformations={system: affine(own)}
        )
        pixels.append(places)
        region += [name] * n
    obs = pd.DataFrame({"region": pd.Categorical(region), "instance": np.tile(np.arange(n), len(sections))})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    counts = csr_matrix(np.ones((len(obs), 2), np.float32))
    names = list(sections)
    elements["table"] = TableModel.parse(
        AnnData(counts, obs=obs),
        region=names if len(names) > 1 else names[0],
        region_key="region",
        instance_key="instance",
    )
    return SpatialData.init_from_elements(elements), np.concatenate(pixels)


LAYOUTS = {
    "one": {"A": (MICRONS, np.eye(3), "global")},
    "turned": {"A": (TURNED, MICRONS, "global")},
    "two systems": {"A": (MICRONS, np.eye(3), "A"), "B": (TURNED, np.eye(3), "B")},
    # both in one system, with pixels of their own
    "one system": {"A": (MICRONS, np.eye(3), "global"), "B": (TURNED, MICRONS, "global")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cells_in_microns_and_tiles_in_pixels(layout):
    sdata, pixels = slides(LAYOUTS[layout])
    images = {name: f"he_{name}" for name in LAYOUTS[layout]}
    tessellate(sdata, tile_px=20, image=images, key_added="niches")
    run(sdata, tile_key="niches", max_pairs=10**6)
    cells, tiles = sdata.tables["table"], sdata.tables["rna_niches"]
    names = cells.obs["niches"].astype(str).to_numpy()
    blocks = literal_blocks(pixels, names, tiles)
    np.testing.assert_array_equal(cells.obsm["cell_graph_blocks"], blocks)
    assert (blocks >= 0).any() and cells.uns["cell_graph"]["n_obs"]["cells_beyond_their_tile"] == 0
    for scale, key in ((1, "cell_graph_meso"), (2, "cell_graph_macro")):
        assert edges(cells, key) == literal_pairs(names, blocks, scale)
    distances = cells.obsp["cell_graph_distances"]
    one, other = distances.nonzero()
    np.testing.assert_allclose(distances.data, np.linalg.norm(pixels[one] - pixels[other], axis=1), rtol=1e-4)
    # sections are triangulated each by itself
    run(sdata, tile_key="niches", mode="delaunay")
    expected = set()
    for name in LAYOUTS[layout]:
        rows = np.flatnonzero((cells.obs["region"] == name) & (names != "unassigned"))
        for simplex in Delaunay(pixels[rows]).simplices:
            for i, j in combinations(rows[simplex].tolist(), 2):
                if names[i] == names[j] and blocks[i, 0] == blocks[j, 0]:
                    expected |= {(i, j), (j, i)}
    assert edges(cells) == expected


def test_spatialdata_copies_names_and_errors():
    sdata, pixels = slides(LAYOUTS["one"])
    with pytest.raises(KeyError, match="No table 'rna_tiles' of tiles.*tessellate makes one"):
        run(sdata, tile_key="tiles")
    tessellate(sdata, tile_px=20)
    copied = run(sdata, tile_key="tiles", copy=True)
    assert not sdata.tables["table"].obsp and set(KEYS) <= set(copied.tables["table"].obsp)
    assert copied["he_A"] is sdata["he_A"]
    with pytest.raises(ValueError, match="named by tiles_table="):
        run(sdata, sdata.tables["rna_tiles"], tile_key="tiles")
    with pytest.raises(KeyError, match="No table 'cells'"):
        run(sdata, tile_key="tiles", table_key="cells")
    with pytest.raises(KeyError, match="No table 'tiles' of tiles"):
        run(sdata, tile_key="tiles", tiles_table="tiles")
    del sdata.tables["table"]
    with pytest.raises(KeyError, match="has no table of cells beside 'rna_tiles'"):
        run(sdata, tile_key="tiles")


def test_spatialdata_may_name_coordinates_in_pixels():
    sdata, pixels = slides(LAYOUTS["turned"])
    tessellate(sdata, tile_px=20)
    run(sdata, tile_key="tiles")
    expected = sdata.tables["table"].obsm["cell_graph_blocks"]
    sdata.tables["table"].obsm["pixels"] = pixels
    run(sdata, tile_key="tiles", spatial_key="pixels", table_key="table", tiles_table="rna_tiles", key_added="own")
    np.testing.assert_array_equal(sdata.tables["table"].obsm["own_blocks"], expected)
    sdata.tables["table"].obsm["microns"] = pixels / 4
    with pytest.raises(ValueError, match="one unit and one origin"):
        run(sdata, tile_key="tiles", spatial_key="microns")


def test_spatialdata_without_a_shared_system_and_with_instances_missing():
    sdata, _ = slides(LAYOUTS["one"])
    tessellate(sdata, tile_px=20)
    run(sdata, tile_key="tiles")
    cells = sdata.tables["table"]
    whole = cells.obsm["cell_graph_blocks"].copy()
    rows = np.flatnonzero(whole[:, 0] >= 0)[:2]
    sdata["A"] = sdata["A"].drop(index=cells.obs["instance"].iloc[rows])
    with pytest.warns(UserWarning, match="2 cell\\(s\\) of a tile have no coordinates"):
        cell_graph(sdata, tile_key="tiles")
    whole[rows] = -1
    np.testing.assert_array_equal(cells.obsm["cell_graph_blocks"], whole)
    set_transformation(sdata["tiles"], {"elsewhere": Identity()}, set_all=True)
    with pytest.raises(ValueError, match="share no coordinate system with those of the cells"):
        run(sdata, tile_key="tiles")
