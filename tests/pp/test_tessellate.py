import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_matrix, csr_matrix, issparse

import stfuse
from stfuse._image._files import open_image
from stfuse._image._tiles import assign, occupied_tiles, whole_tiles
from stfuse.pp import tessellate
from stfuse.pp._tile_inside import inside_polygons

PINK = (200, 120, 160)


def glass(height, width, *boxes):
    """White glass with pink tissue in boxes of (top, bottom, left, right)."""
    image = np.full((height, width, 3), 245, dtype=np.uint8)
    for top, bottom, left, right in boxes:
        image[top:bottom, left:right] = PINK
    return image


def make_cells(n=300, size=(200, 160), seed=0, genes=5, sections=("A",), image=True, dtype=np.float32):
    rng = np.random.default_rng(seed)
    cells = AnnData(csr_matrix(rng.poisson(1.0, (n, genes)).astype(dtype)))
    cells.obs_names = [f"c{i}" for i in range(n)]
    cells.obsm["spatial"] = rng.random((n, 2)) * size
    cells.obs["section"] = pd.Categorical(np.resize(sections, n))
    cells.obs["type"] = pd.Categorical(rng.choice(["b", "a", "c"], n), categories=["b", "a", "c", "never"])
    cells.obs.loc[cells.obs_names[::7], "type"] = np.nan
    cells.obs["patient"] = "p" + cells.obs["section"].astype(str)
    cells.obs["area"] = rng.random(n)
    if image:
        cells.uns["spatial"] = {
            s: {
                "images": {"hires": glass(size[1], size[0], (20, 140, 30, 170))},
                "scalefactors": {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 3.0},
            }
            for s in sections
        }
    return cells


def snapshot(adata):
    return adata.obs.copy(), sorted(adata.uns), sorted(adata.obsm), adata.X.copy()


def assert_unchanged(adata, before):
    obs, uns, obsm, x = before
    pd.testing.assert_frame_equal(adata.obs, obs)
    assert sorted(adata.uns) == uns and sorted(adata.obsm) == obsm
    assert (adata.X != x).nnz == 0 if issparse(x) else np.array_equal(adata.X, x)


def slow_table(cells, side, label_key, low=0):
    """Aggregate by loops: a dict by (section, row, column) of sum, number, and counts of the types."""
    x = cells.X.toarray() if issparse(cells.X) else np.asarray(cells.X)
    found = {}
    for i in range(cells.n_obs):
        place = cells.obsm["spatial"][i]
        key = (str(cells.obs["section"].iloc[i]), int(place[1] // side), int(place[0] // side))
        entry = found.setdefault(key, {"sum": np.zeros(cells.n_vars), "n": 0, "types": {}})
        entry["sum"] += x[i]
        entry["n"] += 1
        label = cells.obs[label_key].iloc[i]
        if not pd.isna(label):
            entry["types"][label] = entry["types"].get(label, 0) + 1
    return found


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray])
def test_sums_and_composition_equal_a_slow_loop(form):
    cells = make_cells(400, sections=("A", "B"), image=False)
    cells.X = form(cells.X.toarray())
    tiles = tessellate(cells, tile_px=23.5, min_tissue=None, library_key="section", label_key="type")
    expected = slow_table(cells, 23.5, "type")
    assert sorted(tiles.obs_names) == sorted("_".join(map(str, key)) for key in expected)
    for (section, row, column), entry in expected.items():
        tile = tiles[f"{section}_{row}_{column}"]
        np.testing.assert_array_equal(tile.X.toarray()[0], entry["sum"])
        obs = tile.obs.iloc[0]
        assert (obs["n_cells"], obs["section"], obs["patient"]) == (entry["n"], section, f"p{section}")
        np.testing.assert_allclose([obs["tile_x"], obs["tile_y"], obs["tile_size"]], [column * 23.5, row * 23.5, 23.5])
        np.testing.assert_allclose(tile.obsm["spatial"][0], [(column + 0.5) * 23.5, (row + 0.5) * 23.5])
        total = sum(entry["types"].values())
        share = tile.obsm["composition"].iloc[0]
        if not total:
            assert share.isna().all() and obs["type"] == "unassigned" and np.isnan(obs["type_purity"])
            continue
        counts = {name: entry["types"].get(name, 0) for name in ("b", "a", "c", "never")}
        np.testing.assert_allclose(share, [counts[name] / total for name in share.index])
        assert obs["type"] == max(counts, key=counts.get)  # of equal ones the first
        assert obs["type_purity"] == pytest.approx(max(counts.values()) / total)
    assert isinstance(tiles.X, csr_matrix) and tiles.X.dtype == np.float32 and tiles.X.has_sorted_indices
    assert "area" not in tiles.obs and list(tiles.var_names) == list(cells.var_names)
    for name, place, tile in zip(cells.obs_names, cells.obsm["spatial"], cells.obs["tiles"], strict=True):
        section = cells.obs.loc[name, "section"]
        assert tile == f"{section}_{int(place[1] // 23.5)}_{int(place[0] // 23.5)}"


def test_only_tiles_with_tissue_are_kept_and_border_strips_are_not_made():
    cells = make_cells(300, size=(205, 167))
    tissue = np.zeros((167, 205), dtype=bool)
    tissue[20:140, 30:170] = True
    tiles = tessellate(cells, tile_px=20, min_tissue=0.5)
    kept = {
        (row, column)
        for row in range(167 // 20)
        for column in range(205 // 20)
        if tissue[row * 20 : row * 20 + 20, column * 20 : column * 20 + 20].mean() > 0.55
    }
    rest = {
        (row, column)
        for row in range(167 // 20)
        for column in range(205 // 20)
        if tissue[row * 20 : row * 20 + 20, column * 20 : column * 20 + 20].mean() > 0.45
    }
    found = {(int(y // 20), int(x // 20)) for x, y in tiles.obs[["tile_x", "tile_y"]].to_numpy()}
    assert kept <= found <= rest and len(kept) == 36  # 6 rows; 7 columns, of which the outer two are half tissue
    inside = cells.obs["tiles"] != "unassigned"
    assert tiles.obs["n_cells"].sum() == inside.sum() < cells.n_obs
    assert (tiles.obs["tissue"] >= 0.5 - 1e-6).all() and tiles.obs["tissue"].max() <= 1
    strict = tessellate(cells, tile_px=20, min_tissue=0.99)
    assert set(strict.obs_names) < set(tiles.obs_names) and strict.n_obs > 0
    everything = tessellate(cells, tile_px=20, min_tissue=0.0)
    assert everything.n_obs == 8 * 10


def test_gaps_of_less_than_half_a_tile_are_tissue():
    cells = make_cells(10)
    image = glass(160, 200)
    for top in range(20, 140, 8):
        image[top : top + 3, 20:180] = PINK  # 3 of 8 pixels
    cells.uns["spatial"]["A"]["images"]["hires"] = image
    tiles = tessellate(cells, tile_px=40, min_tissue=0.9)
    assert sorted(tiles.obs_names) == [f"A_{row}_{column}" for row in (1, 2) for column in (1, 2, 3)]
    image[:] = glass(160, 200, (0, 160, 0, 40), (0, 160, 80, 160))  # a gap of a whole tile
    tiles = tessellate(cells, tile_px=40, min_tissue=0.9)
    assert set(tiles.obs["tile_x"]) == {0, 80, 120}


def test_tiles_work_in_image_features_and_plots():
    spots = stfuse.datasets.mob()
    spots = spots[spots.obs["section"].isin(["MOB1", "MOB2"])].copy()
    image = spots.uns["spatial"]["MOB1"]["images"]["hires"]
    tiles = tessellate(spots, tile_um=600, mpp=4.4, library_key="section", label_key="layer")
    assert tiles.uns["spatial"]["MOB1"]["images"]["hires"] is image
    assert tiles.uns["spatial"]["MOB1"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(600 / 4.4)
    assert spots.uns["spatial"]["MOB1"]["scalefactors"]["spot_diameter_fullres"] == 22.8
    assert set(tiles.uns["spatial"]) == {"MOB1", "MOB2"} and tiles.obs["individual"].nunique() == 1
    stfuse.pp.image_features(tiles, library_key="section")
    assert np.isfinite(tiles.obsm["X_image"]).all()
    assert len(stfuse.pl.spatial(tiles, color="layer", library_key="section")) == 2


def test_h5ad_round_trip_and_record(tmp_path):
    cells = make_cells(sections=("A", "B"))
    tiles = tessellate(
        cells, tile_um=10, mpp={"A": 0.5, "B": 0.4}, library_key="section", label_key="type", key_added="n"
    )
    assert tiles.uns["n"]["tile_size"] == {"A": 20.0, "B": 25.0} and tiles.uns["n"]["mpp"] == {"A": 0.5, "B": 0.4}
    assert tiles.uns["n"]["params"]["tile_um"] == 10 and cells.uns["n"]["n_tiles"] == tiles.uns["n"]["n_tiles"]
    assert list(tiles.obs["section"].cat.categories) == ["A", "B"]
    for name, adata in (("tiles", tiles), ("cells", cells)):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        back = read_h5ad(tmp_path / f"{name}.h5ad")
        pd.testing.assert_frame_equal(back.obs, adata.obs, check_index_type=False)
        assert (back.X != adata.X).nnz == 0
    pd.testing.assert_frame_equal(
        read_h5ad(tmp_path / "tiles.h5ad").obsm["composition"], tiles.obsm["composition"], check_index_type=False
    )


def test_whole_numbers_do_not_overflow_and_layers_are_summed():
    cells = AnnData(np.full((10, 2), 100, dtype=np.uint8), layers={"raw": np.full((10, 2), 30_000, dtype=np.int16)})
    cells.obsm["spatial"] = np.arange(20).reshape(10, 2) / 2.0
    assert tessellate(cells, tile_px=10, min_tissue=None).X.toarray().tolist() == [[1000, 1000]]
    tiles = tessellate(cells, tile_px=10, min_tissue=None, layer="raw")
    assert tiles.X.toarray().tolist() == [[300_000, 300_000]] and tiles.X.dtype == np.int64
    with pytest.raises(KeyError, match="No layer 'rw'.*Did you mean 'raw'"):
        tessellate(cells, tile_px=10, min_tissue=None, layer="rw")


def test_cells_without_place_and_negative_coordinates():
    cells = make_cells(4, image=False)
    cells.obsm["spatial"] = np.array([[-1.0, -1], [0, 0], [10, 10], [np.nan, 1]])
    tiles = tessellate(cells, tile_px=10, min_tissue=None)
    assert list(tiles.obs_names) == ["section_-1_-1", "section_0_0", "section_1_1"]
    assert cells.obs["tiles"].tolist() == ["section_-1_-1", "section_0_0", "section_1_1", "unassigned"]
    assert cells.obs["tiles"].cat.categories[-1] == "unassigned"


def test_copy_leaves_the_cells_alone_and_a_second_run_replaces_the_first():
    cells = make_cells()
    before = snapshot(cells)
    tiles, changed = tessellate(cells, tile_px=20, copy=True)
    assert_unchanged(cells, before)
    assert "tiles" in changed.obs and tiles.n_obs
    tessellate(cells, tile_px=20, key_added="niche")
    again = tessellate(cells, tile_px=40, key_added="niche")
    assert set(cells.obs["niche"]) - {"unassigned"} <= set(again.obs_names)
    assert cells.obs["niche"].dtype == "category"


def test_sections_without_tissue_or_image_are_named():
    cells = make_cells(sections=("A", "B"))
    cells.uns["spatial"]["B"]["images"]["hires"][:] = 245
    with pytest.warns(UserWarning, match="No tiles in 'B'"):
        tiles = tessellate(cells, tile_px=20, library_key="section")
    assert set(tiles.obs["section"]) == {"A"} and set(tiles.uns["spatial"]) == {"A"}
    assert (cells.obs.loc[cells.obs["section"] == "B", "tiles"] == "unassigned").all()
    del cells.uns["spatial"]["B"]
    with pytest.warns(UserWarning, match="150 of 300 cells lie on no image"):
        tessellate(cells, tile_px=20, library_key="section")


def dark(cells):
    cells.uns["spatial"]["A"]["images"]["hires"][:] = 245


def taken(cells):
    cells.obs["mine"] = 1.0


def doubles(cells):
    cells.obs["type"] = cells.obs["area"]


@pytest.mark.parametrize(
    ("change", "arguments", "error", "text"),
    [
        (None, {}, ValueError, "needs the size of a pixel.*mpp=.*tile_px="),
        (None, {"tile_um": 10, "tile_px": 20}, ValueError, "tile_um= .* or tile_px="),
        (None, {"tile_px": 500}, ValueError, "Tiles of 500 pixels a side are larger than the image.*200 x 160"),
        (None, {"tile_px": 0}, ValueError, "tile_px must be a number above 0"),
        (None, {"tile_px": "20"}, TypeError, "tile_px must be a number"),
        (None, {"tile_px": 20, "min_tissue": 50}, ValueError, "min_tissue must be a number between 0 and 1"),
        (None, {"tile_px": 20, "label_key": "typ"}, KeyError, "No obs column 'typ'.*Did you mean 'type'"),
        (None, {"tile_px": 20, "library_key": "sec"}, KeyError, "No obs column 'sec'"),
        (None, {"tile_px": 20, "spatial_key": "xy"}, KeyError, "No obsm.*xy.*spatial_key="),
        (None, {"tile_px": 20, "shapes": "tiles"}, ValueError, "this is an AnnData"),
        (None, {"tile_px": 20, "copy": "yes"}, TypeError, "copy must be True or False"),
        (None, {"tile_px": 20, "key_added": "a/b"}, ValueError, "slash"),
        (None, {"tile_px": 20, "key_added": "section", "library_key": "section"}, ValueError, "would overwrite"),
        (None, {"tile_um": 10, "mpp": -1}, ValueError, "mpp must be a number above 0"),
        (None, {"tile_um": 10, "mpp": {"B": 1.0}}, KeyError, "mpp has nothing for section 'A'"),
        (dark, {"tile_px": 20}, ValueError, "no tile has at least 0.5 of its area on tissue.*min_tissue"),
        (taken, {"tile_px": 20, "key_added": "mine"}, ValueError, "would overwrite obs\\['mine'\\]"),
        (doubles, {"tile_px": 20, "label_key": "type"}, ValueError, "numbers with decimals"),
    ],
)
def test_bad_input_says_what_mends_it_and_changes_nothing(change, arguments, error, text):
    cells = make_cells()
    if change is not None:
        change(cells)
    before = snapshot(cells)
    with pytest.raises(error, match=text):
        tessellate(cells, **arguments)
    assert_unchanged(cells, before)


def test_other_bad_input():
    with pytest.raises(TypeError, match="tessellate takes AnnData or SpatialData, got DataFrame"):
        tessellate(pd.DataFrame())
    with pytest.raises(KeyError, match="has no image"):
        tessellate(make_cells(image=False), tile_px=20)
    with pytest.raises(ValueError, match="no cell has a place"):
        cells = make_cells(3, image=False)
        cells.obsm["spatial"][:] = np.nan
        tessellate(cells, tile_px=20, min_tissue=None)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), side=st.floats(0.7, 9), width=st.integers(1, 40), height=st.integers(1, 40))
def test_assignment_is_where_floor_says(seed, side, width, height):
    rng = np.random.default_rng(seed)
    places = rng.random((50, 2)) * (width, height) * 1.2 - 0.1
    places[::11] = np.nan
    grid = whole_tiles((width, height), side)
    assert len(grid) == int(width / side + 1e-6) * int(height / side + 1e-6)
    grid = grid[rng.random(len(grid)) < 0.6]
    which, tile = assign(places, grid, side)
    found = dict(zip(which.tolist(), tile.tolist(), strict=True))
    there = {(int(c), int(r)): i for i, (c, r) in enumerate(grid)}
    for i, (x, y) in enumerate(places):
        expected = None if np.isnan(x) else there.get((int(np.floor(x / side)), int(np.floor(y / side))))
        assert found.get(i) == expected
    occupied = occupied_tiles(places, side)
    assert len(assign(places, occupied, side)[0]) == np.isfinite(places[:, 0]).sum()


def test_borders_of_polygons_belong_to_the_next():
    shapely = pytest.importorskip("shapely")
    squares = shapely.box([0, 10], [0, 0], [10, 20], [10, 10])
    which, polygon = inside_polygons(np.array([[0.0, 0], [10, 5], [20, 5], [np.nan, 1], [9.9, 9.9]]), squares)
    assert which.tolist() == [0, 1, 4] and polygon.tolist() == [0, 1, 0]


def diamonds(shapely, n):
    """Squares that stand on a corner and fill the plane."""
    middles = [(x, y) for x in range(-n, n + 1) for y in range(-n, n + 1) if (x + y) % 2 == 0]
    return [shapely.Polygon([(x, y - 1), (x + 1, y), (x, y + 1), (x - 1, y)]) for x, y in middles]


def hexagons(shapely, n):
    """Hexagons of a lattice, whose corners are the same numbers in all of them."""
    corner = [(0, -2), (1, -1), (1, 1), (0, 2), (-1, 1), (-1, -1)]
    middles = [(2 * column + row % 2, 3 * row) for row in range(-n, n + 1) for column in range(-n, n + 1)]
    return [shapely.Polygon([((x + i) * np.sqrt(3) / 2, (y + j) / 2) for i, j in corner]) for x, y in middles]


def triangles(shapely, n):
    """Delaunay triangles of places at random."""
    points = np.random.default_rng(n).random((400, 2)) * 8 - 4
    return list(shapely.delaunay_triangles(shapely.MultiPoint(points)).geoms)


@pytest.mark.parametrize("tiling", [diamonds, hexagons, triangles])
def test_a_place_on_a_slanted_border_is_in_one_tile(tiling):
    shapely = pytest.importorskip("shapely")
    tiles = np.array(tiling(shapely, 4))
    corners = np.unique(shapely.get_coordinates(tiles), axis=0)
    a, b = (np.concatenate([shapely.get_coordinates(t)[part] for t in tiles]) for part in (slice(-1), slice(1, None)))
    places = np.concatenate([corners, (a + b) / 2, a + (b - a) / 4, a + (b - a) * 0.3])
    places = places[np.linalg.norm(places, axis=1) < 2.5]  # those at the rim of the tiling have no next tile
    touched = len(shapely.STRtree(tiles).query(shapely.points(places), predicate="intersects")[0])
    assert touched > 1.3 * len(places) > 60
    which, _ = inside_polygons(places, tiles)
    np.testing.assert_array_equal(which, np.arange(len(places)))
    # turning the order of the corners round, or the order of the tiles, changes nothing
    again, tile = inside_polygons(places, shapely.reverse(tiles)[::-1])
    np.testing.assert_array_equal(len(tiles) - 1 - tile, inside_polygons(places, tiles)[1])
    np.testing.assert_array_equal(again, which)


def test_polygons_with_holes_and_parts_and_true_overlaps():
    shapely = pytest.importorskip("shapely")
    ring = shapely.box(0, 0, 9, 9) - shapely.box(3, 3, 6, 6)
    parts = shapely.MultiPolygon([shapely.box(3, 3, 6, 6), shapely.box(20, 0, 25, 5)])
    over = shapely.box(2, 2, 4, 4)
    places = np.array([[3.0, 4.5], [6, 4.5], [4.5, 3], [4.5, 6], [3, 3], [6, 6], [20, 0], [3.5, 3.5], [2, 2], [4, 3.5]])
    which, tile = inside_polygons(places, np.array([ring, parts, over]))
    found = [set(tile[which == i].tolist()) for i in range(len(places))]
    assert found == [{1}, {0}, {1}, {0}, {1, 2}, {0}, {1}, {1, 2}, {0, 2}, {1}]


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pd.array([1, 2, None, 10] * 75, dtype="Int64"), ["1", "10", "2"]),
        (pd.array([True, None, False, True] * 75, dtype="boolean"), ["False", "True"]),
        (pd.array(["b", None, "a", "b"] * 75, dtype="string"), ["a", "b"]),
        (np.array(["b", None, "a", np.nan] * 75, dtype=object), ["a", "b"]),
        (pd.Categorical([1, "1", None, "b"] * 75, categories=["b", 1, "1"]), ["b", "1"]),
    ],
)
def test_labels_of_all_kinds_may_be_missing(column, names):
    cells = make_cells(300, image=False)
    cells.obs["label"] = column
    tiles = tessellate(cells, tile_px=50, min_tissue=None, label_key="label")
    composition = tiles.obsm["composition"]
    assert composition.columns.tolist() == names
    known = cells.obs["label"].notna() & (cells.obs["tiles"] != "unassigned")
    text = cells.obs["label"][known].astype(object).astype(str)
    expected = pd.crosstab(cells.obs["tiles"][known].astype(str), text, normalize="index")
    np.testing.assert_allclose(composition.loc[expected.index, expected.columns], expected)


def test_dictionaries_of_images_are_not_shared_with_the_cells():
    cells = make_cells()
    cells.uns["spatial"]["A"]["metadata"] = {"chemistry": {"name": "x"}}
    tiles = tessellate(cells, tile_px=20)
    held, own = tiles.uns["spatial"]["A"], cells.uns["spatial"]["A"]
    assert held["images"]["hires"] is own["images"]["hires"]
    held["images"]["new"] = own["images"]["hires"]
    held["metadata"]["chemistry"]["name"] = "y"
    own["metadata"]["more"] = 1
    assert set(own["images"]) == {"hires"} and own["metadata"]["chemistry"]["name"] == "x"
    assert set(held["metadata"]) == {"chemistry"}


def test_paths_of_images_are_recorded(tmp_path):
    from PIL import Image

    cells = make_cells(sections=("A", "B"))
    Image.fromarray(glass(160, 200, (20, 140, 30, 170))).save(tmp_path / "a.png")
    tiles = tessellate(cells, image={"A": tmp_path / "a.png", "B": "hires"}, tile_px=20, library_key="section")
    assert tiles.uns["tiles"]["image"] == {"A": str(tmp_path / "a.png"), "B": "hires"}
    assert cells.uns["tiles"]["image"] == tiles.uns["tiles"]["image"]
    assert tessellate(cells, tile_px=20, library_key="section").uns["tiles"]["image"] == {}
    tiles.write_h5ad(tmp_path / "tiles.h5ad")


def test_a_backed_object_is_summed_but_not_copied(tmp_path):
    cells = make_cells(image=False)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ValueError, match="to_memory"):
        tessellate(backed, tile_px=20, min_tissue=None, copy=True)
    assert "tiles" not in backed.obs
    tiles = tessellate(backed, tile_px=20, min_tissue=None)
    assert (tiles.X != tessellate(cells, tile_px=20, min_tissue=None).X).nnz == 0


def test_xenium_region_without_image(shared_data):
    cells = read_h5ad(shared_data / "xenium_breast_17k.h5ad")
    with pytest.raises(ValueError, match="mpp="):
        tessellate(cells, min_tissue=None)
    tiles = tessellate(cells, min_tissue=None, mpp=1)
    assert tiles.obs["tile_size"].unique().tolist() == [112.0]
    assert tiles.obs["n_cells"].sum() == cells.n_obs == 17_136
    np.testing.assert_allclose(np.asarray(tiles.X.sum(axis=0)), np.asarray(cells.X.sum(axis=0)), rtol=1e-6)
    places = cells.obsm["spatial"]
    group = pd.Series(np.floor(places[:, 1] / 112).astype(int).astype(str)) + "_"
    group += np.floor(places[:, 0] / 112).astype(int).astype(str)
    expected = pd.DataFrame(cells.X.toarray()).groupby(group.to_numpy()).sum()
    np.testing.assert_allclose(tiles[[f"section_{key}" for key in expected.index]].X.toarray(), expected, rtol=1e-5)


def test_xenium_lung_on_its_photograph(shared_data):
    folder = shared_data / "xenium_lung200"
    cells = read_h5ad(folder / "NCBI858.h5ad")
    before = cells.obs.copy()
    tiles = tessellate(cells, image=folder / "NCBI858.jpg", spatial_key=("y_pixel", "x_pixel"), mpp=0.5, tile_um=50)
    pd.testing.assert_frame_equal(cells.obs[before.columns], before)
    assert tiles.obs["tile_size"].iloc[0] == 100 and tiles.X.dtype == np.int64
    assert (tiles.obs["tile_x"] + 100 <= 1431).all() and (tiles.obs["tile_y"] + 100 <= 1249).all()
    for name, tile in cells.obs["tiles"].items():
        row, column = int(cells.obs.loc[name, "x_pixel"] // 100), int(cells.obs.loc[name, "y_pixel"] // 100)
        kept = f"section_{row}_{column}" in tiles.obs_names
        assert tile == (f"section_{row}_{column}" if kept else "unassigned")
    assert tiles.obs["n_cells"].sum() > 170  # of 200; alveoli are part of the lung


def test_spots_of_a_slide_of_full_resolution(shared_data):
    spots = read_h5ad(shared_data / "her2st" / "her2st_B4.h5ad")
    path = shared_data / "her2st" / "her2st_B4_fullres.jpg"
    tiles = tessellate(spots, image=path, tile_um=200, mpp=0.69, label_key="label_transferred")
    assert 0.85 < tiles.obs["n_cells"].sum() / spots.n_obs <= 1  # spots were put on tissue
    assert set(tiles.obs["patient"]) == {"B"} and set(tiles.obs["section"]) == {"B4"}
    image = open_image(path)
    for x, y, side in tiles.obs[["tile_x", "tile_y", "tile_size"]].to_numpy()[::20].astype(int):
        assert image.read(0, slice(y, y + side), slice(x, x + side)).mean() < 235  # not glass


def test_a_bare_slide_file(shared_data):
    nothing = AnnData(np.zeros((0, 0), dtype=np.float32), obsm={"spatial": np.zeros((0, 2))})
    tiles = tessellate(nothing, image=shared_data / "wsi" / "CMU-1-Small-Region.svs")
    assert tiles.n_vars == 0 and tiles.n_obs > 20 and (tiles.obs["n_cells"] == 0).all()
    np.testing.assert_allclose(tiles.obs["tile_size"], 112 / 0.499, rtol=1e-6)
