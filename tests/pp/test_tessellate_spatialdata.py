import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from scipy.sparse import csr_matrix
from spatialdata import SpatialData, get_extent, read_zarr, transform
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, get_transformation, set_transformation

from stfuse.pp import image_features, tessellate

PINK = (200, 120, 160)


def rotation(degrees, shift=(0.0, 0.0)):
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), -np.sin(a), shift[0]], [np.sin(a), np.cos(a), shift[1]], [0, 0, 1]])


def affine(matrix):
    return Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))


def slide(height=160, width=200, box=(20, 140, 20, 160), name="global", move=None, scales=None):
    image = np.full((height, width, 3), 245, dtype=np.uint8)
    image[box[0] : box[1], box[2] : box[3]] = PINK
    return Image2DModel.parse(
        image.transpose(2, 0, 1), dims=("c", "y", "x"), transformations={name: move or Identity()}, scale_factors=scales
    )


def table_of(regions, counts, types=None, ids=None):
    """Annotate elements with the numbers of rows given by ``regions``."""
    n = sum(regions.values())
    region = np.repeat(list(regions), list(regions.values()))
    own = np.concatenate([np.arange(k) for k in regions.values()]) if ids is None else ids
    obs = pd.DataFrame({"region": pd.Categorical(region), "instance": own}, index=[f"cell{i}" for i in range(n)])
    if types is not None:
        obs["type"] = types
    name = list(regions)
    return TableModel.parse(
        AnnData(csr_matrix(counts), obs=obs),
        region=name if len(name) > 1 else name[0],
        region_key="region",
        instance_key="instance",
    )


def circles(places, move=None, name="global"):
    return ShapesModel.parse(
        np.asarray(places, float), geometry=0, radius=1.0, transformations={name: move or Identity()}
    )


def make(pixels, image_matrix, cells_matrix, scales=None, seed=0):
    """Cells that lie at known pixels of an image, both moved to one system by maps of their own."""
    world = pixels @ image_matrix[:2, :2].T + image_matrix[:2, 2]
    back = np.linalg.inv(cells_matrix)
    own = world @ back[:2, :2].T + back[:2, 2]
    rng = np.random.default_rng(seed)
    counts = rng.poisson(2, (len(pixels), 4)).astype(np.float32)
    return SpatialData.init_from_elements(
        {
            "he": slide(move=affine(image_matrix), scales=scales),
            "cells": circles(own, affine(cells_matrix)),
            "table": table_of({"cells": len(pixels)}, counts, rng.choice(["a", "b"], len(pixels))),
        }
    )


MAPS = {
    "identity": np.eye(3),
    "microns": np.diag([0.5, 0.5, 1.0]),
    "turned": rotation(30, (40, -7)),
    "turned and larger": rotation(-110) @ np.diag([3.0, 3.0, 1.0]),
    "mirrored": np.diag([-1.0, 1.0, 1.0]),
    "sheared": np.array([[1.2, 0.4, 3], [-0.1, 0.8, 9], [0, 0, 1.0]]),
}


@pytest.mark.parametrize("image", MAPS)
@pytest.mark.parametrize("cells", ["identity", "turned and larger", "sheared"])
def test_tiles_follow_the_pixels_under_any_affine_map(image, cells):
    rng = np.random.default_rng(1)
    pixels = rng.random((150, 2)) * (200, 160)
    sdata = make(pixels, MAPS[image], MAPS[cells])
    x = sdata.tables["table"].X.toarray()
    assert tessellate(sdata, tile_px=20, label_key="type") is None
    tiles = sdata.tables["rna_tiles"]
    assert tiles.n_obs == 42 and set(tiles.obs["region"]) == {"tiles"}
    for i in range(tiles.n_obs):
        left, top, side = tiles.obs[["tile_x", "tile_y", "tile_size"]].iloc[i]
        inside = (pixels >= (left, top)).all(1) & (pixels < (left + side, top + side)).all(1)
        np.testing.assert_array_equal(tiles.X[i].toarray()[0], x[inside].sum(0))
        assert tiles.obs["n_cells"].iloc[i] == inside.sum()
        assert (sdata.tables["table"].obs["tiles"].to_numpy()[inside] == tiles.obs["tile_id"].iloc[i]).all()
        square = sdata.shapes["tiles"].geometry.loc[tiles.obs["tile_id"].iloc[i]]
        assert square.equals(shapely.box(left, top, left + side, top + side))
    np.testing.assert_allclose(
        get_transformation(sdata.shapes["tiles"]).to_affine_matrix(("x", "y"), ("x", "y")), MAPS[image]
    )


def test_a_case_worked_by_hand():
    # The image is turned by 90 degrees and twice as large: pixel (x, y) comes to lie at (-2 y, 2 x).
    quarter = np.array([[0.0, -2, 0], [2, 0, 0], [0, 0, 1]])
    sdata = make(np.array([[45.0, 25], [45, 35], [155, 135], [5, 5]]), quarter, np.eye(3))
    np.testing.assert_allclose(sdata.shapes["cells"].geometry.iloc[0].coords[0], (-50, 90))
    tessellate(sdata, tile_px=20)
    assert sdata.tables["table"].obs["tiles"].tolist() == ["cells_1_2", "cells_1_2", "cells_6_7", "unassigned"]
    corner = transform(sdata.shapes["tiles"].loc[["cells_1_2"]], to_coordinate_system="global").geometry.iloc[0]
    np.testing.assert_allclose(corner.bounds, (-80, 80, -40, 120))


def test_microns_come_from_a_system_of_that_name_and_pyramids_count_their_finest_pixels():
    pixels = np.random.default_rng(0).random((60, 2)) * (200, 160)
    sdata = make(pixels, np.diag([0.25, 0.25, 1]), np.diag([0.25, 0.25, 1]), scales=[2])
    with pytest.raises(ValueError, match="needs the size of a pixel"):
        tessellate(sdata)
    set_transformation(sdata["he"], Scale([0.25, 0.25], axes=("x", "y")), "microns")
    tessellate(sdata, tile_um=5)
    assert set(sdata.tables["rna_tiles"].obs["tile_size"]) == {20.0}
    assert set(get_transformation(sdata["tiles"], get_all=True)) == {"global", "microns"}
    extent = get_extent(sdata["tiles"], coordinate_system="microns")
    np.testing.assert_allclose(extent["x"], (5, 40))


def test_sections_get_elements_of_their_own_and_zarr_keeps_all(tmp_path):
    rng = np.random.default_rng(0)
    n = {"cells_A": 80, "cells_B": 50}
    sdata = SpatialData.init_from_elements(
        {
            "he_A": slide(name="A"),
            "he_B": slide(box=(60, 160, 0, 120), name="B"),
            "cells_A": circles(rng.random((80, 2)) * (200, 160), name="A"),
            "cells_B": circles(rng.random((50, 2)) * (200, 160), name="B"),
            "table": table_of(n, rng.poisson(1, (130, 3)).astype(np.int32)),
        }
    )
    sdata.tables["table"].obs["patient"] = np.repeat(["p1", "p2"], [80, 50])
    tessellate(sdata, tile_px=20)
    tiles = sdata.tables["rna_tiles"]
    assert set(sdata.shapes) == {"cells_A", "cells_B", "tiles_cells_A", "tiles_cells_B"}
    assert tiles.uns["spatialdata_attrs"]["region"] == ["tiles_cells_A", "tiles_cells_B"]
    assert tiles.X.dtype == np.int64
    assert (tiles.obs["patient"] == np.where(tiles.obs["region"] == "tiles_cells_A", "p1", "p2")).all()
    assert (tiles.obs["tile_id"] == tiles.obs_names).all()
    for name in ("tiles_cells_A", "tiles_cells_B"):
        assert list(sdata.shapes[name].index) == list(tiles.obs["tile_id"][tiles.obs["region"] == name])
    sdata.write(tmp_path / "s.zarr")
    back = read_zarr(tmp_path / "s.zarr")
    assert (back.tables["rna_tiles"].X != tiles.X).nnz == 0
    assert back.tables["table"].obs["tiles"].tolist() == sdata.tables["table"].obs["tiles"].tolist()
    tessellate(back, tile_px=40)  # the tiles of before are replaced
    assert back.tables["rna_tiles"].n_obs < tiles.n_obs
    image_features(back, table_key="rna_tiles")
    assert np.isfinite(back.tables["rna_tiles"].obsm["X_image"]).all()


def test_a_bare_slide():
    sdata = SpatialData.init_from_elements({"he": slide()})
    tessellate(sdata, tile_um=10, mpp=0.5)
    tiles = sdata.tables["rna_tiles"]
    assert tiles.shape == (42, 0) and tiles.obs_names[0] == "he_1_1" and not tiles.obs["n_cells"].any()
    image_features(sdata)
    assert sdata.tables["rna_tiles"].obsm["X_image"].shape[0] == 42
    sdata["other"] = slide()
    with pytest.raises(
        ValueError, match="several images .he, other. and no table of cells: name the slide with image="
    ):
        tessellate(sdata, tile_px=20)
    tessellate(sdata, tile_px=20, image="other")
    assert sdata.tables["rna_tiles"].obs_names[0] == "other_1_1"


def test_cells_without_image_lie_in_a_system_in_microns():
    places = np.array([[1.0, 1], [4, 1], [11, 1]])
    sdata = SpatialData.init_from_elements(
        {
            "cells": circles(places, Scale([2, 2], axes=("x", "y")), name="microns"),
            "table": table_of({"cells": 3}, np.eye(3, dtype=np.float32)),
        }
    )
    with pytest.raises(KeyError, match="has no image.*min_tissue=None"):
        tessellate(sdata, tile_um=10)
    tessellate(sdata, tile_um=10, min_tissue=None)
    assert sdata.tables["table"].obs["tiles"].tolist() == ["cells_0_0", "cells_0_0", "cells_0_2"]
    assert set(get_transformation(sdata["tiles"], get_all=True)) == {"microns"}


def lazyslide(n=(3, 2), side=64, key="tiles"):
    """Lay out a slide as wsidata and LazySlide do: tiles by columns, ids in a column, specification in attrs."""
    origins = np.array([(x * side + 10, y * side + 20) for x in range(n[0]) for y in range(n[1])])
    tiles = geopandas.GeoDataFrame(
        {
            "tile_id": np.arange(len(origins)),
            "tissue_id": 0,
            "geometry": [shapely.box(x, y, x + side, y + side) for x, y in origins],
        }
    )
    sdata = SpatialData.init_from_elements({key: ShapesModel.parse(tiles)})
    sdata.attrs["tile_spec"] = {key: {"height": side, "width": side, "stride_height": side, "stride_width": side}}
    graph = AnnData(obs=pd.DataFrame(index=np.arange(len(tiles)).astype(str)))
    graph.obsp["spatial_connectivities"] = csr_matrix((len(tiles), len(tiles)))
    sdata.tables[f"{key}_graph"] = TableModel.parse(graph)
    return sdata, origins


def add_features(sdata, name, values, key="tiles", ids=None):
    ids = np.arange(len(values)) if ids is None else ids
    obs = pd.DataFrame({"tile_id": ids, "library_id": pd.Categorical([key] * len(ids))}, index=ids.astype(str))
    sdata.tables[name] = TableModel.parse(
        AnnData(values, obs=obs), region=key, region_key="library_id", instance_key="tile_id"
    )


def test_tiles_and_features_of_lazyslide():
    sdata, origins = lazyslide()
    rng = np.random.default_rng(0)
    features = rng.random((6, 5)).astype(np.float32)
    shuffled = rng.permutation(6)
    add_features(sdata, "uni_tiles", features[shuffled], ids=shuffled)
    tessellate(sdata, shapes="tiles")  # no cells yet
    bare = sdata.tables["rna_tiles"]
    assert bare.shape == (6, 0)
    np.testing.assert_array_equal(bare.obsm["X_image"], features)

    places = rng.random((200, 2)) * (230, 180)
    sdata["cells"] = circles(places)
    sdata.tables["table"] = table_of({"cells": 200}, rng.poisson(1, (200, 3)).astype(np.float32), ["a", "b"] * 100)
    add_features(sdata, "conch_tiles", features[:4, :2])  # of four tiles only
    with pytest.warns(UserWarning, match="tables.'conch_tiles'. has features of 4 of the 6 tiles"):
        tessellate(sdata, shapes="tiles", label_key="type")
    tiles = sdata.tables["rna_tiles"]
    assert list(tiles.obsm["X_uni"].shape) == [6, 5] and "X_image" not in tiles.obsm
    assert np.isnan(tiles.obsm["X_conch"][4:]).all() and np.isfinite(tiles.obsm["X_conch"][:4]).all()
    for i, (x, y) in enumerate(origins):
        inside = (places >= (x, y)).all(1) & (places < (x + 64, y + 64)).all(1)
        np.testing.assert_array_equal(tiles.X[i].toarray()[0], sdata.tables["table"].X[inside].toarray().sum(0))
        assert (sdata.tables["table"].obs["tiles"].to_numpy()[inside] == str(i)).all()
    np.testing.assert_array_equal(tiles.obs[["tile_x", "tile_y"]], origins)
    assert tiles.obs["tile_id"].tolist() == list(range(6)) and "tissue" not in tiles.obs
    assert sdata.shapes["tiles"].columns.tolist() == ["tile_id", "tissue_id", "geometry"]
    with pytest.warns(UserWarning, match="4 of the 6"):
        tessellate(sdata, shapes="tiles")  # again
    with pytest.raises(ValueError, match="element 'tiles', which this function did not write.*shapes='tiles'"):
        tessellate(sdata, tile_px=20, min_tissue=None, table_key="table")


def foreign(index, ids):
    """Six tiles with an index, and features under ids."""
    boxes = [shapely.box(x, 0, x + 10, 10) for x in range(0, 60, 10)]
    sdata = SpatialData.init_from_elements(
        {"ft": ShapesModel.parse(geopandas.GeoDataFrame(geometry=boxes, index=index))}
    )
    obs = pd.DataFrame(
        {"region": pd.Categorical(["ft"] * len(ids)), "tile": ids}, index=[f"f{i}" for i in range(len(ids))]
    )
    features = np.arange(3.0 * len(ids)).reshape(-1, 3).astype(np.float32)
    table = TableModel.parse(AnnData(features, obs=obs), region="ft", region_key="region", instance_key="tile")
    sdata.tables["embedded"] = table
    return sdata, features


@pytest.mark.parametrize(
    ("index", "ids"),
    [
        (list("012345"), [5, 4, 3, 2, 1, 0]),
        (range(6), list("543210")),
        (range(6), np.arange(5, -1, -1).astype(np.int32)),
    ],
)
def test_ids_of_features_may_be_of_another_type(index, ids, recwarn):
    sdata, features = foreign(index, ids)
    tessellate(sdata, shapes="ft")
    np.testing.assert_array_equal(sdata.tables["rna_ft"].obsm["X_image"], features[::-1])
    assert not [w for w in recwarn if "features" in str(w.message)]


def test_ids_of_features_that_fit_badly():
    sdata, _ = foreign(list("abcdef"), [f"tile_{c}" for c in "abcdef"])
    with pytest.raises(ValueError, match="none of its 6 ids .such as 'tile_a'. is a tile there .such as 'a'"):
        tessellate(sdata, shapes="ft")
    assert "rna_ft" not in sdata.tables
    sdata, features = foreign(range(6), list("012x"))
    with pytest.warns(UserWarning, match="features of 3 of the 6 tiles"):
        tessellate(sdata, shapes="ft")
    values = sdata.tables["rna_ft"].obsm["X_image"]
    np.testing.assert_array_equal(values[:3], features[:3])
    assert np.isnan(values[3:]).all()
    sdata, _ = foreign(range(6), [0, 1, 2])
    sdata.tables["embedded"].obs["tile"] = [0, 1, 1]
    with pytest.raises(ValueError, match="several rows for the tile '1'"):
        tessellate(sdata, shapes="ft")


def test_cells_that_are_no_instances_are_told():
    sdata, _ = foreign(range(6), range(6))
    sdata["cells"] = circles([[5.0, 5], [15, 5], [25, 5]])
    sdata.tables["table"] = table_of({"cells": 3}, np.eye(3, dtype=np.float32), ids=[0, 1, 7])
    with pytest.warns(UserWarning, match="1 of 3 cells of 'cells' have no instance there"):
        tessellate(sdata, shapes="ft")
    assert sdata.tables["table"].obs["ft"].tolist() == ["0", "1", "unassigned"]
    sdata.tables["table"] = table_of({"cells": 3}, np.eye(3, dtype=np.float32), ids=[7, 8, 9])
    with pytest.raises(ValueError, match="No instance that the table names"):
        tessellate(sdata, shapes="ft")


def test_overlapping_tiles_count_a_cell_each():
    tiles = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 10, 10), shapely.box(5, 0, 15, 10)])
    sdata = SpatialData.init_from_elements(
        {
            "tiles": ShapesModel.parse(tiles),
            "cells": circles([[2.0, 2], [7, 2], [12, 2], [20, 2]]),
            "table": table_of({"cells": 4}, np.eye(4, dtype=np.float32)),
        }
    )
    tessellate(sdata, shapes="tiles")
    assert sdata.tables["rna_tiles"].X.toarray().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]
    assert sdata.tables["table"].obs["tiles"].tolist() == ["0", "0", "1", "unassigned"]


@pytest.mark.parametrize("image", MAPS)
def test_cells_that_reach_into_tiles_count_in_each(image):
    """Squares of 6 pixels: within a tile, over a border, beside it, over a corner, outside."""
    centers = np.array([[50.0, 50], [60.5, 50], [56.5, 50], [80.5, 80.5], [5, 5]])
    world = MAPS[image]
    own = np.linalg.inv(rotation(20)) @ world  # from pixels to the coordinates of the cells
    corners = centers[:, None] + np.array([[-3, -3], [3, -3], [3, 3], [-3, 3]])
    polygons = [shapely.Polygon(c @ own[:2, :2].T + own[:2, 2]) for c in corners]
    sdata = SpatialData.init_from_elements(
        {
            "he": slide(move=affine(world)),
            "cells": ShapesModel.parse(
                geopandas.GeoDataFrame(geometry=polygons), transformations={"global": affine(rotation(20))}
            ),
            "table": table_of({"cells": 5}, np.eye(5, dtype=np.float32)),
        }
    )
    tessellate(sdata, tile_px=20, partial=True)
    tiles = sdata.tables["rna_tiles"]
    found = {name: set(np.flatnonzero(row)) for name, row in zip(tiles.obs_names, tiles.X.toarray(), strict=True)}
    assert {name: held for name, held in found.items() if held} == {
        "cells_2_2": {0, 1, 2},
        "cells_2_3": {1},
        "cells_3_3": {3},
        "cells_3_4": {3},
        "cells_4_3": {3},
        "cells_4_4": {3},
    }
    assert tiles.obs["n_cells"].sum() == 8
    assert sdata.tables["table"].obs["tiles"].tolist() == [
        "cells_2_2",
        "cells_2_3",
        "cells_2_2",
        "cells_4_4",
        "unassigned",
    ]
    tessellate(sdata, shapes="tiles", partial=True, key_added="again")
    np.testing.assert_array_equal(sdata.tables["rna_again"].X.toarray(), tiles.X.toarray())


def test_patches_and_embeddings_of_sopa():
    """Patches carry the map of the pyramid level they were made on, and lists in their columns."""
    boxes = [[x, y, x + 32, y + 32] for y in range(0, 64, 32) for x in range(0, 96, 32)]
    patches = geopandas.GeoDataFrame(
        {
            "geometry": [shapely.box(*box) for box in boxes],
            "bboxes": boxes,
            "ilocs": [[box[0] // 32, box[1] // 32] for box in boxes],
        }
    )
    level = Sequence([Scale([2.0, 2.0], axes=("x", "y")), Identity()])
    places = np.array([[10.0, 10], [63.9, 10], [64, 10], [190, 127], [10, 130]])  # pixels of the full image
    sdata = SpatialData.init_from_elements(
        {
            "he": slide(),
            "embeddings_patches": ShapesModel.parse(patches, transformations={"global": level}),
            "cells": circles(places),
            "table": table_of({"cells": 5}, np.eye(5, dtype=np.float32)),
        }
    )
    features = np.random.default_rng(0).random((6, 4)).astype(np.float32)
    embedded = AnnData(features, obs=pd.DataFrame({"region": "embeddings_patches", "instance": np.arange(6)}))
    embedded = TableModel.parse(embedded, region="embeddings_patches", region_key="region", instance_key="instance")
    embedded.uns["embedding_config"] = {"patch_width": 32, "model_name": "histo_ssl", "level": 1}
    sdata.tables["histo_ssl_embeddings"] = embedded
    tessellate(sdata, shapes="embeddings_patches")
    tiles = sdata.tables["rna_embeddings_patches"]
    np.testing.assert_array_equal(tiles.obsm["X_image"], features)
    assert tiles.obs["n_cells"].tolist() == [2, 1, 0, 0, 0, 1]
    assert sdata.tables["table"].obs["embeddings_patches"].tolist() == ["0", "0", "1", "5", "unassigned"]
    other = embedded.copy()
    other.uns["embedding_config"]["model_name"] = "conch"
    sdata.tables["conch_embeddings"] = other
    tessellate(sdata, shapes="embeddings_patches", key_added="niches")
    assert {"X_histo_ssl", "X_conch"} <= set(sdata.tables["rna_niches"].obsm)


def test_copy_and_errors_leave_the_object_as_it_was():
    pixels = np.random.default_rng(0).random((60, 2)) * (200, 160)
    sdata = make(pixels, np.eye(3), np.eye(3))
    before, columns = {name for _, name, _ in sdata.gen_elements()}, list(sdata.tables["table"].obs.columns)
    changed = tessellate(sdata, tile_px=20, copy=True)
    assert {"tiles", "rna_tiles"} <= {name for _, name, _ in changed.gen_elements()}
    assert "tiles" in changed.tables["table"].obs
    sdata["Mine"] = PointsModel.parse(np.zeros((1, 2)))
    for arguments, error, text in (
        ({"tile_px": 20, "key_added": "cells"}, ValueError, "element 'cells', which this function did not write"),
        ({"tile_px": 20, "key_added": "mine"}, ValueError, "element 'Mine'"),
        ({"tile_px": 20, "label_key": "typ"}, KeyError, "No obs column 'typ'"),
        ({"tile_px": 20, "table_key": "tabel"}, KeyError, "No table 'tabel'"),
        ({"tile_px": 20, "image": "hee"}, KeyError, "No image 'hee'.*Did you mean 'he'"),
        ({"tile_px": 20, "coordinate_system": "microns"}, KeyError, "not in the coordinate system"),
        ({"shapes": "tile"}, KeyError, "No shapes 'tile'"),
        ({"shapes": "cells"}, ValueError, "holds Points; tiles are polygons"),
        ({"tile_px": 1000}, ValueError, "larger than the image"),
    ):
        with pytest.raises(error, match=text):
            tessellate(sdata, **arguments)
    assert {name for _, name, _ in sdata.gen_elements()} == before | {"Mine"}
    assert list(sdata.tables["table"].obs.columns) == columns and "tiles" not in sdata.tables["table"].uns
