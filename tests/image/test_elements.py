import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from stfuse._image._section import Choice
from stfuse._image._sections import find_sections

spatialdata = pytest.importorskip("spatialdata")
geopandas = pytest.importorskip("geopandas")
from shapely import Polygon  # noqa: E402
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel  # noqa: E402
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation  # noqa: E402

SPOTS = np.array([[30.0, 40.0], [100.0, 60.0], [210.0, 150.0], [300.0, 20.0]])


def picture(height=200, width=320):
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y, (x // 256) * 200], axis=-1).astype(np.uint8)


def rotation(angle, scale=1.0, shift=(0.0, 0.0)):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return Affine(
        np.array([[c, -s, shift[0]], [s, c, shift[1]], [0, 0, 1]]), input_axes=("x", "y"), output_axes=("x", "y")
    )


def table(names, region="spots", n_vars=2):
    adata = AnnData(np.ones((len(names), n_vars), np.float32))
    adata.obs["region"] = pd.Categorical([region] * len(names))
    adata.obs["instance"] = names
    return TableModel.parse(adata, region=region, region_key="region", instance_key="instance")


def visium(spots, image_map=None, spots_map=None, radius=5.0, scale_factors=None, names=None):
    names = np.arange(len(spots)) if names is None else names
    shapes = ShapesModel.parse(
        spots, geometry=0, radius=radius, index=names, transformations={"global": spots_map or Identity()}
    )
    image = Image2DModel.parse(
        np.moveaxis(picture(), -1, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={"global": image_map or Identity()},
        scale_factors=scale_factors,
        chunks=(3, 64, 64),
    )
    return spatialdata.SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table(names)})


def test_same_coordinates():
    (section,) = find_sections(visium(SPOTS), Choice())
    np.testing.assert_allclose(section.centers, SPOTS)
    assert section.name == "spots" and section.spot == 10 and section.unit == (1.0, 1.0) and section.image.kind == "he"
    np.testing.assert_array_equal(section.image.read(0), picture())
    assert section.image.levels[0].lazy and section.inside.all()


def test_rotated_scaled_and_shifted_by_hand():
    """Spots in microns, the image turned by 90 degrees and half a micron a pixel."""
    image_map = rotation(np.pi / 2, scale=0.5, shift=(100.0, 10.0))
    # pixel (x, y) lies at (100 - y / 2, 10 + x / 2); the spot at (80, 60) is pixel (100, 40)
    sdata = visium(np.array([[80.0, 60.0], [60.0, 110.0]]), image_map=image_map)
    (section,) = find_sections(sdata, Choice())
    np.testing.assert_allclose(section.centers, [[100.0, 40.0], [200.0, 80.0]], atol=1e-9)
    np.testing.assert_allclose(section.unit, [2.0, 2.0])  # pixels per micron
    assert section.spot == 10


def test_both_elements_are_mapped():
    spots_map = Sequence([Scale([2.0, 2.0], axes=("x", "y")), Translation([7.0, -3.0], axes=("x", "y"))])
    sdata = visium(SPOTS / 2, spots_map=spots_map, image_map=Translation([7.0, -3.0], axes=("x", "y")))
    (section,) = find_sections(sdata, Choice())
    np.testing.assert_allclose(section.centers, SPOTS)
    assert section.spot * section.unit[0] == pytest.approx(20)  # radius 5 in units of two pixels


def test_pixels_that_are_no_squares():
    stretched = Affine(np.array([[2.0, 0, 0], [0, 0.5, 0], [0, 0, 1]]), input_axes=("x", "y"), output_axes=("x", "y"))
    (section,) = find_sections(visium(SPOTS * (2, 0.5), image_map=stretched), Choice(mpp=1.0))
    np.testing.assert_allclose(section.centers, SPOTS)
    assert section.unit == (0.5, 2.0) and section.mpp == (1.0, 0.25)


def test_scales_of_a_multiscale_image():
    (section,) = find_sections(visium(SPOTS, scale_factors=[2, 2]), Choice())
    assert [level.size for level in section.image.levels] == [(320, 200), (160, 100), (80, 50)]
    assert [level.downsample for level in section.image.levels] == [(1, 1), (2, 2), (4, 4)]
    np.testing.assert_array_equal(section.image.read(0), picture())


def test_a_coordinate_system_in_microns():
    from spatialdata.transformations import set_transformation

    sdata = visium(SPOTS)
    set_transformation(sdata["he"], rotation(0.3, scale=0.2125), "microns")
    (section,) = find_sections(sdata, Choice())
    np.testing.assert_allclose(section.mpp, [0.2125, 0.2125])
    assert find_sections(sdata, Choice(mpp=0.5))[0].mpp == (0.5, 0.5)


def test_instances_are_joined_by_name():
    names = ["d", "a", "c", "b"]
    sdata = visium(SPOTS, names=names)
    shuffled = sdata["table"][[2, 0, 3, 1]].copy()
    sdata["table"] = shuffled
    (section,) = find_sections(sdata, Choice())
    np.testing.assert_allclose(section.centers, SPOTS[[2, 0, 3, 1]])
    sdata["table"].obs["instance"] = ["c", "nowhere", "b", "a"]
    (section,) = find_sections(sdata, Choice())
    np.testing.assert_array_equal(np.isnan(section.centers).all(axis=1), [False, True, False, False])


def test_polygons_and_labels():
    squares = geopandas.GeoDataFrame(
        geometry=[Polygon([(x, y), (x + 120, y), (x + 120, y + 120), (x, y + 120)]) for x, y in [(0, 0), (120, 60)]]
    )
    labels = np.zeros((200, 320), np.int64)
    labels[10:20, 30:50], labels[100:110, 200:210] = 1, 2
    sdata = spatialdata.SpatialData(
        images={"he": Image2DModel.parse(np.moveaxis(picture(), -1, 0), dims=("c", "y", "x"))},
        shapes={"tiles": ShapesModel.parse(squares)},
        labels={"nuclei": Labels2DModel.parse(labels, dims=("y", "x"))},
        tables={"tiles_table": table([0, 1], "tiles"), "cells": table([1, 2], "nuclei")},
    )
    (section,) = find_sections(sdata, Choice(shapes="tiles"))
    np.testing.assert_allclose(section.centers, [[60, 60], [180, 120]])
    assert section.spot == 120 and section.tiles
    (section,) = find_sections(sdata, Choice(shapes="nuclei"))
    np.testing.assert_allclose(section.centers, [[40, 15], [205, 105]])
    assert section.spot is None and not section.tiles
    with pytest.raises(ValueError, match="2 tables"):
        find_sections(sdata, Choice())


def test_several_regions_with_an_image_each():
    a, b = visium(SPOTS), visium(SPOTS + 5)
    elements = {"he_a": a["he"], "spots_a": a["spots"], "he_b": b["he"], "spots_b": b["spots"]}
    adata = AnnData(np.ones((8, 2), np.float32))
    adata.obs["region"] = pd.Categorical(["spots_a"] * 4 + ["spots_b"] * 4)
    adata.obs["instance"] = [0, 1, 2, 3] * 2
    joined = TableModel.parse(adata, region=["spots_a", "spots_b"], region_key="region", instance_key="instance")
    sdata = spatialdata.SpatialData.init_from_elements(elements | {"table": joined})
    with pytest.raises(ValueError, match="Several images.*he_a, he_b.*image="):
        find_sections(sdata, Choice())
    sections = find_sections(sdata, Choice(image={"spots_a": "he_a", "spots_b": "he_b"}))
    np.testing.assert_allclose(sections[1].centers, SPOTS + 5)
    np.testing.assert_array_equal(sections[1].rows, [4, 5, 6, 7])
    only = find_sections(sdata, Choice(shapes="spots_b", image="he_b"))
    assert [section.name for section in only] == ["spots_b"]


def test_images_as_visium_readers_name_them():
    sdata = visium(SPOTS)
    for name in ("x_hires_image", "x_lowres_image"):
        sdata[name] = sdata["he"]
    del sdata.images["he"]
    (section,) = find_sections(sdata, Choice())
    assert section.image.kind == "x_hires_image"


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        (Choice(image="hi"), KeyError, "No image 'hi'.*he"),
        (Choice(image=3), TypeError, "name of an image"),
        (Choice(shapes="cells"), KeyError, "does not annotate 'cells'.*spots"),
        (Choice(table_key="x"), KeyError, "No table 'x'"),
        (Choice(coordinate_system="um"), KeyError, "not in the coordinate system 'um'.*global"),
        (Choice(mpp={"other": 1.0}), KeyError, "mpp has nothing for section 'spots'"),
    ],
)
def test_wrong_names(choice, error, message):
    with pytest.raises(error, match=message):
        find_sections(visium(SPOTS), choice)


def test_what_does_not_fit():
    from spatialdata.transformations import set_transformation

    sdata = visium(SPOTS)
    set_transformation(sdata["he"], {"elsewhere": Identity()}, set_all=True)
    with pytest.raises(ValueError, match="No image shares a coordinate system with 'spots'"):
        find_sections(sdata, Choice())
    sdata = visium(SPOTS)
    del sdata["table"].uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match="annotates no element"):
        find_sections(sdata, Choice())
    fluorescence = Image2DModel.parse(
        np.zeros((3, 50, 50), np.uint16), dims=("c", "y", "x"), c_coords=["DAPI", "a", "b"]
    )
    sdata = visium(SPOTS)
    sdata["he"] = fluorescence
    with pytest.raises(ValueError, match="DAPI.*fluorescence"):
        find_sections(sdata, Choice())


def test_tiles_under_pixels_that_are_no_squares():
    """A square of 100 pixels is no square in microns, and its crop still covers it."""
    stretched = Affine(np.array([[0.5, 0, 0], [0, 1.0, 0], [0, 0, 1]]), input_axes=("x", "y"), output_axes=("x", "y"))
    square = geopandas.GeoDataFrame(geometry=[Polygon([(0, 0), (100, 0), (100, 100), (0, 100)])])
    image = Image2DModel.parse(
        np.moveaxis(picture(), -1, 0), dims=("c", "y", "x"), transformations={"microns": stretched}
    )
    sdata = spatialdata.SpatialData(
        images={"he": image},
        shapes={"tiles": ShapesModel.parse(square, transformations={"microns": stretched})},
        tables={"table": table([0], "tiles")},
    )
    (section,) = find_sections(sdata, Choice())
    assert section.spot == 100 and section.unit == (1.0, 1.0) and section.mpp == (0.5, 1.0)


def test_regions_without_image_are_left_out():
    a, b = visium(SPOTS), visium(SPOTS)
    from spatialdata.transformations import set_transformation

    set_transformation(b["spots"], {"elsewhere": Identity()}, set_all=True)
    adata = AnnData(np.ones((8, 2), np.float32))
    adata.obs["region"] = pd.Categorical(["a"] * 4 + ["b"] * 4, categories=["a", "b", "c"])
    adata.obs["instance"] = [0, 1, 2, 3] * 2
    joined = TableModel.parse(adata, region=["a", "b"], region_key="region", instance_key="instance")
    sdata = spatialdata.SpatialData.init_from_elements(
        {"he": a["he"], "a": a["spots"], "b": b["spots"], "table": joined}
    )
    assert [section.name for section in find_sections(sdata, Choice())] == ["a"]
    assert [section.name for section in find_sections(sdata, Choice(image={"a": "he"}))] == ["a"]
    with pytest.raises(ValueError, match="No image shares a coordinate system with 'b'"):
        find_sections(sdata, Choice(shapes="b"))
    del sdata.shapes["b"]
    assert [section.name for section in find_sections(sdata, Choice())] == ["a"]


def test_ids_of_another_type_and_ids_that_occur_twice():
    sdata = visium(SPOTS)
    sdata["table"].obs["instance"] = ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="No instance that the table names.*give both the same type"):
        find_sections(sdata, Choice())
    sdata = visium(SPOTS)
    sdata.shapes["spots"].index = [0, 0, 1, 2]
    with pytest.raises(ValueError, match="'spots' is not unique"):
        find_sections(sdata, Choice())


def test_channels_are_put_in_order():
    pixels = np.zeros((3, 50, 60), np.uint8) + np.array([50, 100, 200], np.uint8)[:, None, None]
    sdata = visium(SPOTS)
    sdata["he"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["b", "g", "r"])
    (section,) = find_sections(sdata, Choice())
    np.testing.assert_array_equal(section.image.read(0)[0, 0], [200, 100, 50])


def test_results_of_stain_normalisation_are_no_candidates():
    import stfuse

    sdata = visium(SPOTS)
    rng = np.random.default_rng(0)
    amounts = rng.random((200, 320, 2)) * 1.2
    colours = 255 * np.exp(-(amounts @ np.array([[0.65, 0.70, 0.29], [0.27, 0.85, 0.45]])))
    colours[:60] = 250
    sdata["he"] = Image2DModel.parse(
        np.moveaxis(colours.astype(np.uint8), -1, 0), dims=("c", "y", "x"), c_coords=["r", "g", "b"]
    )
    stfuse.pp.normalize_stain(sdata)
    assert find_sections(sdata, Choice())[0].image.kind == "he"
    assert find_sections(sdata, Choice(image="he_macenko"))[0].image.kind == "he_macenko"
