"""Image features from files, SpatialData and slides: the right pixels reach the encoder."""

import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from stfuse.datasets import mob
from stfuse.pp import image_features, normalize_stain


class Keep:
    """An encoder that keeps the crops it gets."""

    name = "keep"
    n_features = 1

    def __init__(self):
        self.crops = []

    def __call__(self, crops):
        self.crops.append(crops)
        start = sum(map(len, self.crops)) - len(crops)
        return np.arange(start, start + len(crops), dtype=np.float32)[:, None]

    def of(self, features):
        """Crops in the order of the features' rows."""
        crops = [crop for batch in self.crops for crop in batch]
        return [crops[int(i)] for i in features.ravel()]


class Sized(Keep):
    """The same, as an encoder of the package, with a size of crops that it likes."""

    feature_names, record, token = None, {}, None

    def __init__(self, input_size):
        super().__init__()
        self.input_size = input_size


def photograph(height=300, width=400, seed=0):
    """Smooth colours on a bright ground, so that neighbouring crops differ."""
    y, x = np.mgrid[:height, :width]
    return np.stack([120 + x // 4, 90 + y // 3, 180 + (x + y) // 12], axis=-1).astype(np.uint8)


def cells(n=25, height=300, width=400, seed=0):
    rng = np.random.default_rng(seed)
    adata = AnnData(np.ones((n, 2), np.float32))
    adata.obsm["spatial"] = rng.random((n, 2)) * (width, height)
    adata.obs["x"], adata.obs["y"] = adata.obsm["spatial"].T
    return adata


def sliced(pixels, x, y, side):
    padded = np.pad(pixels, ((side, side), (side, side), (0, 0)), mode="reflect")
    left, top = int(np.floor(x - side / 2 + 0.5)) + side, int(np.floor(y - side / 2 + 0.5)) + side
    return padded[top : top + side, left : left + side]


def assert_sliced(encoder, features, pixels, centers, side):
    for crop, (x, y) in zip(encoder.of(features), centers, strict=True):
        np.testing.assert_array_equal(crop, sliced(pixels, x, y, side))


@pytest.mark.parametrize("kind", ["png", "tif", "array", "dask"])
def test_a_file_or_an_array_of_full_resolution(tmp_path, kind):
    import dask.array as da
    import tifffile
    from PIL import Image

    pixels, adata, encoder = photograph(), cells(), Keep()
    image = tmp_path / f"slide.{kind}"
    if kind == "png":
        Image.fromarray(pixels).save(image)
    elif kind == "tif":
        tifffile.imwrite(image, pixels, tile=(64, 64), photometric="rgb")
    else:
        image = pixels if kind == "array" else da.from_array(pixels, chunks=(100, 90, 3))
    image_features(adata, encoder, image=image, crop_px=41)
    assert_sliced(encoder, adata.obsm["X_image"], pixels, adata.obsm["spatial"], 41)
    kind_of = {"png": "slide.png", "tif": "slide.tif"}.get(kind, "array")
    assert adata.uns["X_image"]["image"] == {"section": kind_of} and adata.uns["X_image"]["crop_um"] == {}


def test_coordinates_in_two_columns():
    pixels, adata, encoder = photograph(), cells(), Keep()
    del adata.obsm["spatial"]
    image_features(adata, encoder, image=pixels, crop_px=20, spatial_key=("x", "y"))
    assert_sliced(encoder, adata.obsm["X_image"], pixels, adata.obs[["x", "y"]].to_numpy(), 20)
    with pytest.raises(KeyError, match="No obs column 'z'"):
        image_features(adata, image=pixels, crop_px=20, spatial_key=("x", "z"))
    with pytest.raises(ValueError, match="two columns of obs"):
        image_features(adata, image=pixels, crop_px=20, spatial_key=("x",))
    adata.obs["name"] = "a"
    with pytest.raises(ValueError, match="must hold numbers"):
        image_features(adata, image=pixels, crop_px=20, spatial_key=("x", "name"))


def test_one_file_for_each_section():
    adata = cells(20)
    adata.obs["section"] = ["a", "b"] * 10
    images = {"a": photograph(), "b": 255 - photograph() // 2}
    encoder = Keep()
    image_features(adata, encoder, image=images, crop_px=16, library_key="section")
    for name, pixels in images.items():
        rows = np.flatnonzero(adata.obs["section"] == name)
        assert_sliced(encoder, adata.obsm["X_image"][rows], pixels, adata.obsm["spatial"][rows], 16)
    with pytest.raises(ValueError, match="One image is given and there are 2 sections"):
        image_features(adata, image=images["a"], crop_px=16, library_key="section")
    with pytest.raises(KeyError, match="'c', which is no section"):
        image_features(adata, image={"c": images["a"]}, crop_px=16, library_key="section")
    with pytest.warns(UserWarning, match="10 of 20"):
        image_features(adata, image={"a": images["a"]}, crop_px=16, library_key="section")


def test_sizes_in_microns():
    pixels, adata, encoder = photograph(), cells(), Keep()
    image_features(adata, encoder, image=pixels, crop_um=12, mpp=0.5)
    assert adata.uns["X_image"]["crop_pixels"] == {"section": 24} and adata.uns["X_image"]["crop_um"] == {
        "section": 12.0
    }
    assert_sliced(encoder, adata.obsm["X_image"], pixels, adata.obsm["spatial"], 24)
    with pytest.raises(ValueError, match="crop_um=12 needs the size of a pixel.*mpp="):
        image_features(adata, image=pixels, crop_um=12)
    with pytest.raises(ValueError, match="no size of their own.*crop_um="):
        image_features(adata, image=pixels)
    with pytest.raises(ValueError, match="not crop_um and crop_px"):
        image_features(adata, image=pixels, crop_um=12, crop_px=20)


def test_stored_image_by_name():
    adata = mob()[:400].copy()
    entry = adata.uns["spatial"]["MOB1"]
    entry["images"]["other"] = 255 - entry["images"]["hires"]
    with pytest.raises(KeyError, match="tissue_other_scalef"):
        image_features(adata, image="other")
    for name in adata.uns["spatial"]:
        adata.uns["spatial"][name]["images"]["other"] = adata.uns["spatial"][name]["images"]["hires"]
        adata.uns["spatial"][name]["scalefactors"]["tissue_other_scalef"] = 1.0
    image_features(adata, image="other")
    assert set(adata.uns["X_image"]["image"].values()) == {"other"}
    with pytest.raises(KeyError, match="no 'hirez'. Did you mean 'hires'"):
        image_features(adata, image="hirez")


def test_the_level_of_a_pyramid_nearest_to_the_encoder(tmp_path):
    import tifffile

    pixels = photograph(1200, 1600)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as writer:
        writer.write(pixels, tile=(256, 256), photometric="rgb", subifds=2)
        writer.write(pixels[::2, ::2], tile=(256, 256), photometric="rgb", subfiletype=1)
        writer.write(pixels[::4, ::4], tile=(256, 256), photometric="rgb", subfiletype=1)
    adata = cells(30, 1200, 1600)
    for input_size, scale, level in [(64, "auto", 1), (30, "auto", 2), (128, "auto", 0), (64, "full", 0), (64, 2, 2)]:
        encoder = Sized(input_size)
        image_features(adata, encoder, image=tmp_path / "slide.tif", crop_px=128, scale=scale)
        assert adata.uns["X_image"]["level"] == {"section": [level]}
        assert encoder.crops[0].shape[1] == 128 // 2**level
        assert_sliced(
            encoder,
            adata.obsm["X_image"],
            pixels[:: 2**level, :: 2**level],
            adata.obsm["spatial"] / 2**level,
            128 // 2**level,
        )
    with pytest.raises(ValueError, match="scale=3.*has 3 level"):
        image_features(adata, image=tmp_path / "slide.tif", crop_px=128, scale=3)
    with pytest.raises(ValueError, match="scale must be 'auto', 'full'"):
        image_features(adata, image=tmp_path / "slide.tif", crop_px=128, scale="best")


def test_crops_much_smaller_than_what_a_network_takes():
    with pytest.warns(UserWarning, match="takes 224 pixels, and crops have 40 in section 'section': it sees a blur"):
        image_features(cells(), Sized(224), image=photograph(), crop_px=40)


def test_names_of_images_that_are_none():
    with pytest.raises(KeyError, match="image='wide.pgn' is neither a stored image.*nor the name of an image file"):
        image_features(cells(), image="wide.pgn", crop_px=20)
    with pytest.raises(KeyError, match="'S1', which is no section.*library_key="):
        image_features(cells(), image={"S1": photograph()}, crop_px=20)


def test_fusion_and_domains_know_where_instances_lie():
    """A table of a SpatialData has no obsm["spatial"]: the elements tell."""
    import stfuse

    sdata, _, _ = spatial_data(n=60)
    rng = np.random.default_rng(0)
    sdata["table"].X = rng.poisson(3.0, sdata["table"].shape).astype(np.float32)
    sdata["table"].obsm["X_pca"] = rng.standard_normal((60, 5)).astype(np.float32)
    stfuse.tl.concat(sdata)  # makes the image view from the image element
    stfuse.tl.domains(sdata, use_rep="X_concat", n_clusters=3, refine=True)
    assert sdata["table"].obs["concat_domain"].nunique() <= 3 and "spatial" not in sdata["table"].obsm
    assert stfuse.pl.spatial(sdata, color="concat_domain") is not None


def test_a_grid_parts_the_crop_row_by_row():
    pixels, encoder = photograph(), Keep()
    adata = cells(3)
    adata.obsm["spatial"] = np.array([[100.0, 120.0], [200.0, 80.0], [4.0, 4.0]])
    image_features(adata, encoder, image=pixels, crop_px=64, grid=[1, 2, 4])
    features = adata.obsm["X_image_grid"]
    assert features.shape == (3, 21, 1) and "X_image" not in adata.obsm
    assert adata.uns["X_image_grid"]["grid"] == [1, 2, 4]
    for i, (x, y) in enumerate(adata.obsm["spatial"].astype(int)):
        whole = sliced(pixels, x, y, 64)
        expected = [whole]
        for g in (2, 4):
            side = 64 // g
            expected += [
                whole[r * side : (r + 1) * side, c * side : (c + 1) * side] for r in range(g) for c in range(g)
            ]
        for crop, right in zip(encoder.of(features[i]), expected, strict=True):
            np.testing.assert_array_equal(crop, right)
    image_features(adata, Keep(), image=pixels, crop_px=64, grid=2)
    assert adata.obsm["X_image_grid"].shape == (3, 4, 1)
    for grid, error in [([], ValueError), (0, ValueError), ([1, 2.5], TypeError), ("2", TypeError)]:
        with pytest.raises(error, match="grid"):
            image_features(adata, image=pixels, crop_px=64, grid=grid)


def test_grid_survives_h5ad_and_marks_missing_rows(tmp_path):
    adata = cells(5)
    adata.obsm["spatial"][2] = -50
    with pytest.warns(UserWarning, match="1 of 5 observations"):
        image_features(adata, image=photograph(), crop_px=64, grid=[1, 2])
    assert (
        np.isnan(adata.obsm["X_image_grid"][2]).all() and np.isfinite(np.delete(adata.obsm["X_image_grid"], 2, 0)).all()
    )
    adata.write_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(read_h5ad(tmp_path / "a.h5ad").obsm["X_image_grid"], adata.obsm["X_image_grid"])


def test_tables_of_tiles_take_their_own_size():
    adata, encoder = cells(6), Keep()
    adata.obs["tile_size"] = 50.0
    image_features(adata, encoder, image=photograph())
    assert encoder.crops[0].shape[1:] == (50, 50, 3)


# SpatialData


def spatial_data(angle=0.0, factor=1.0, scale_factors=None, n=12, seed=0):
    """Spots in their own units, an image that is turned and scaled against them; gives also its pixels and centres."""
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity

    pixels = photograph()
    rng = np.random.default_rng(seed)
    centers = rng.random((n, 2)) * (400, 300)
    matrix = np.array(
        [
            [np.cos(angle) * factor, -np.sin(angle) * factor, 40.0],
            [np.sin(angle) * factor, np.cos(angle) * factor, -7.0],
            [0, 0, 1],
        ]
    )
    spots = (np.column_stack([centers, np.ones(n)]) @ matrix.T)[:, :2]
    names = [f"s{i}" for i in rng.permutation(n)]
    adata = AnnData(np.ones((n, 2), np.float32))
    adata.obs["region"], adata.obs["instance"] = pd.Categorical(["spots"] * n), names
    sdata = spatialdata.SpatialData(
        images={
            "he": Image2DModel.parse(
                np.moveaxis(pixels, -1, 0),
                dims=("c", "y", "x"),
                chunks=(3, 128, 128),
                scale_factors=scale_factors,
                transformations={"global": Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))},
            )
        },
        shapes={
            "spots": ShapesModel.parse(
                spots, geometry=0, radius=8 * factor, index=names, transformations={"global": Identity()}
            )
        },
        tables={"table": TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")},
    )
    return sdata, pixels, centers


@pytest.mark.parametrize("angle", [0.0, np.pi / 2, 0.7])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_spots_of_spatialdata_under_rotation_and_scaling(angle, factor):
    sdata, pixels, centers = spatial_data(angle, factor)
    encoder = Keep()
    image_features(sdata, encoder)
    table = sdata["table"]
    # three spots of 16 pixels, whatever the units of the spots
    assert table.uns["X_image"]["crop_pixels"] == {"spots": 48} and table.uns["X_image"]["crop_scale"] == 3
    assert_sliced(encoder, table.obsm["X_image"], pixels, centers, 48)


def test_spatialdata_copy_and_names():
    sdata, _, _ = spatial_data(scale_factors=[2])
    changed = image_features(sdata, shapes="spots", image="he", table_key="table", key_added="X_texture", copy=True)
    assert "X_texture" in changed["table"].obsm and "X_texture" not in sdata["table"].obsm
    with pytest.raises(ValueError, match="name parts of a SpatialData"):
        image_features(cells(), shapes="spots", crop_px=10, image=photograph())


def test_spatialdata_survives_zarr(tmp_path):
    import spatialdata

    sdata, pixels, centers = spatial_data(0.7, 0.25, scale_factors=[2])
    sdata.write(tmp_path / "a.zarr")
    encoder = Keep()
    read = spatialdata.read_zarr(tmp_path / "a.zarr")
    image_features(read, encoder, scale="full")
    assert_sliced(encoder, read["table"].obsm["X_image"], pixels, centers, 48)


# staining


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_stain_at_crop_time_equals_stain_before(method):
    adata = mob()
    adata = adata[adata.obs["section"].isin(["MOB1", "MOB3"])][::10].copy()
    normalize_stain(adata, method=method, target="MOB1")
    encoder, before = Keep(), Keep()
    image_features(adata, encoder, stain=method, stain_target="MOB1", key_added="X_crops")
    image_features(adata, before, image=f"hires_{method}", key_added="X_before")
    crops, expected = encoder.of(adata.obsm["X_crops"]), before.of(adata.obsm["X_before"])
    for crop, right in zip(crops, expected, strict=True):
        np.testing.assert_array_equal(crop, right)
    record = adata.uns["X_crops"]["stain"]
    assert record["method"] == method and record["target"] == "MOB1" and set(record["fits"]) == {"MOB1", "MOB3"}
    with pytest.raises(ValueError, match="stain must be 'macenko' or 'reinhard'"):
        image_features(adata, stain="vahadane")
    with pytest.raises(ValueError, match="stain_target= goes with stain="):
        image_features(adata, stain_target="MOB1")


# resuming


def test_the_same_work_is_not_done_twice(caplog):
    adata = cells()
    image_features(adata, image=photograph(), crop_px=20)
    adata.obsm["X_image"][0] = 7
    with caplog.at_level(logging.INFO, logger="stfuse"):
        image_features(adata, image=photograph(), crop_px=20)
    assert "has the features of section already" in caplog.text and (adata.obsm["X_image"][0] == 7).all()
    image_features(adata, image=photograph(), crop_px=20, overwrite=True)
    assert not (adata.obsm["X_image"][0] == 7).any()


@pytest.mark.parametrize("change", ["size", "image", "place", "grid", "rows"])
def test_other_work_is_done(change):
    adata = cells()
    image_features(adata, image=photograph(), crop_px=20, key_added="X_image")
    adata.obsm["X_image"][1] = 7
    kwargs = {"image": photograph(), "crop_px": 20}
    if change == "size":
        kwargs["crop_px"] = 22
    elif change == "image":
        kwargs["image"] = kwargs["image"] - 1
    elif change == "place":
        adata.obsm["spatial"] += 1
    elif change == "grid":
        kwargs["grid"] = 2
    else:
        adata = adata[1:].copy()
    image_features(adata, **kwargs, key_added="X_image")
    assert not (adata.obsm["X_image"] == 7).any()


@pytest.mark.parametrize("own", [False, True])
def test_one_element_after_the_other(own):
    """Features of other elements stay, if they are of the same encoder."""
    import spatialdata
    from spatialdata.models import TableModel

    (a, _, _), (b, _, _) = spatial_data(seed=0), spatial_data(0.3, seed=1)
    adata = AnnData(np.ones((24, 2), np.float32))
    adata.obs["region"] = pd.Categorical(["a"] * 12 + ["b"] * 12)
    adata.obs["instance"] = [*a["table"].obs["instance"], *b["table"].obs["instance"]]
    joined = TableModel.parse(adata, region=["a", "b"], region_key="region", instance_key="instance")
    elements = {"he_a": a["he"], "he_b": b["he"], "a": a["spots"], "b": b["spots"], "table": joined}
    sdata = spatialdata.SpatialData.init_from_elements(elements)
    encoder = (lambda crops: crops.mean(dim=(2, 3))) if own else "texture"
    whole = image_features(sdata, encoder, image={"a": "he_a", "b": "he_b"}, copy=True)["table"]
    image_features(sdata, encoder, shapes="a", image="he_a")
    assert np.isnan(sdata["table"].obsm["X_image"][12:]).all()
    image_features(sdata, encoder, shapes="b", image="he_b")
    np.testing.assert_array_equal(sdata["table"].obsm["X_image"], whole.obsm["X_image"])
    assert sdata["table"].uns["X_image"]["crop_pixels"] == {"a": 48, "b": 48}
    image_features(sdata, Keep(), shapes="b", image="he_b")  # of another encoder: nothing of the old one stays
    assert np.isnan(sdata["table"].obsm["X_image"][:12]).all() and sdata["table"].obsm["X_image"].shape == (24, 1)


def test_only_the_section_that_changed_is_computed(caplog):
    adata = mob()[::20].copy()
    image_features(adata)
    adata.obsm["X_image"][:] = 7
    adata.uns["spatial"]["MOB2"]["images"]["hires"][900:, 900:, 1:] //= 2  # in place
    with caplog.at_level(logging.INFO, logger="stfuse"):
        image_features(adata)
    changed = (adata.obsm["X_image"] != 7).any(axis=1)
    np.testing.assert_array_equal(changed, adata.obs["section"] == "MOB2")
    assert "MOB1, MOB3, MOB4" in caplog.text


def test_the_record_is_of_the_last_call():
    adata = cells()
    image_features(adata, image=photograph(), crop_px=60, mpp=0.5)
    adata.obsm["X_image"][:] = 7
    image_features(adata, image=photograph(), crop_px=60, mpp=0.25)
    record = adata.uns["X_image"]
    assert (
        record["crop_um"] == {"section": 15.0}
        and record["mpp"] == {"section": 0.25}
        and record["crop_px"] == {"section": 60}
    )
    assert (adata.obsm["X_image"] == 7).all()
    with pytest.warns(UserWarning, match="fewer than 4 pixels"):
        image_features(adata, image=photograph(), crop_um=1, mpp=0.5)
    assert adata.uns["X_image"]["crop_um"] == {"section": 2.0}


def test_a_grid_of_one_has_its_own_form():
    adata = cells()
    image_features(adata, image=photograph(), crop_px=60, key_added="X_image")
    image_features(adata, image=photograph(), crop_px=60, grid=[1], key_added="X_image")
    assert adata.obsm["X_image"].shape == (25, 1, 95)


def test_a_rewritten_store_of_a_slide_is_noticed(tmp_path):
    import spatialdata
    import zarr

    sdata, _, _ = spatial_data()
    sdata.write(tmp_path / "a.zarr")
    first = spatialdata.read_zarr(tmp_path / "a.zarr")
    image_features(first, store=tmp_path / "store")
    array = zarr.open_array(tmp_path / "a.zarr" / "images" / "he" / "s0")
    array[:] = np.asarray(array[:]) // 2 + 60
    again = spatialdata.read_zarr(tmp_path / "a.zarr")
    again["table"].obsm["X_image"], again["table"].uns["X_image"] = (
        first["table"].obsm["X_image"],
        first["table"].uns["X_image"],
    )
    image_features(again, store=tmp_path / "store")
    assert np.abs(again["table"].obsm["X_image"] - first["table"].obsm["X_image"]).max() > 0.1


def test_backed_objects_are_not_copied(tmp_path):
    adata = cells()
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match="to_memory"):
        image_features(backed, image=photograph(), crop_px=20, copy=True)
    image_features(backed, image=photograph(), crop_px=20)
    assert backed.obsm["X_image"].shape == (25, 95)


def test_encoders_of_the_user_are_always_asked():
    adata, encoder = cells(), Keep()
    for _ in range(2):
        image_features(adata, encoder, image=photograph(), crop_px=20)
    assert sum(map(len, encoder.crops)) == 50 and "token" not in adata.uns["X_image"]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    from stfuse.pp import _encode, _feature_store

    adata, pixels = cells(200), photograph()
    expected = image_features(adata, image=pixels, crop_px=20, copy=True).obsm["X_image"]
    monkeypatch.setattr(_feature_store, "_EVERY", 0.0)
    made = _encode.EncoderCall.make
    crops = []

    def failing(call, limit=100):
        encoder = made(call)
        real = type(encoder).__call__

        class Failing(type(encoder)):
            def __call__(self, batch):
                crops.append(len(batch))
                if sum(crops) > limit:
                    raise KeyboardInterrupt
                return real(self, batch)

        encoder.__class__ = Failing
        return encoder

    monkeypatch.setattr(_encode.EncoderCall, "make", failing)
    with pytest.raises(KeyboardInterrupt):
        image_features(adata, image=pixels, crop_px=20, batch_size=10, store=tmp_path)
    assert "X_image" not in adata.obsm and len(list(tmp_path.glob("texture-*/*.npz"))) == 10
    crops.clear()
    image_features(adata, image=pixels, crop_px=20, batch_size=10, store=tmp_path)
    assert sum(crops) == 100
    np.testing.assert_array_equal(adata.obsm["X_image"], expected)
    parts = sorted(tmp_path.glob("texture-*/*.npz"))
    parts[0].write_bytes(b"broken")
    parts[1].write_bytes(parts[1].read_bytes()[:-30])
    crops.clear()
    again = cells(200)
    with pytest.warns(UserWarning, match="can't be read"):
        image_features(again, image=pixels, crop_px=20, batch_size=10, store=tmp_path)
    assert sum(crops) == 20
    np.testing.assert_array_equal(again.obsm["X_image"], expected)
    crops.clear()
    with pytest.raises(KeyboardInterrupt):  # computing all of it again is more than a hundred
        image_features(adata, image=pixels, crop_px=20, batch_size=10, store=tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="leave store= out"):
        image_features(adata, Keep(), image=pixels, crop_px=20, store=tmp_path)


def test_the_progress_bar_counts_crops(capsys, monkeypatch):
    from stfuse import _progress

    monkeypatch.setattr(_progress, "DELAY", 0)
    image_features(cells(), image=photograph(), crop_px=20, batch_size=5, progress=True)
    assert "image features" in capsys.readouterr().err
    image_features(cells(), image=photograph(), crop_px=20, batch_size=5, progress=False)
    assert "image features" not in capsys.readouterr().err


def test_random_numbers_of_torch_stay_where_they_were():
    torch = pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite_pytorch")
    from stfuse.pp._encoders import get_encoder

    before = torch.random.get_rng_state()
    get_encoder("efficientnet-lite0", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_whole_numbers_of_nanometres_are_not_rounded():
    from stfuse._read import read_coordinates

    adata = AnnData(np.ones((2, 1), np.float32))
    adata.obsm["spatial"] = np.array([[50_000_001, 3], [50_000_003, 7]])
    np.testing.assert_array_equal(read_coordinates(adata), adata.obsm["spatial"])


# real images


def test_her2st_full_resolution(shared_data):
    """The same tissue at full resolution and in the hires image gives nearly the same colours."""
    adata = read_h5ad(shared_data / "her2st" / "her2st_B4.h5ad")

    class Mean(Keep):
        n_features = 3

        def __call__(self, crops):
            self.crops.append(crops[:1])
            return crops.mean(axis=(1, 2)).astype(np.float32)

    encoder = Mean()
    image_features(
        adata,
        encoder,
        image=shared_data / "her2st" / "her2st_B4_fullres.jpg",
        crop_um=100,
        mpp=0.69,
        key_added="X_full",
    )
    image_features(adata, Mean(), crop_um=100, mpp=0.69, key_added="X_hires")
    assert encoder.crops[0].shape[1] == 145 and adata.uns["X_hires"]["crop_pixels"] == {"B4": 29}
    assert adata.uns["X_full"]["crop_um"]["B4"] == pytest.approx(100)
    assert np.abs(adata.obsm["X_full"] - adata.obsm["X_hires"]).mean() < 3
    for channel in range(3):
        assert np.corrcoef(adata.obsm["X_full"][:, channel], adata.obsm["X_hires"][:, channel])[0, 1] > 0.98


def test_xenium_with_exchanged_axes(shared_data):
    folder = shared_data / "xenium_lung200"
    adata = read_h5ad(folder / "NCBI858.h5ad")
    with pytest.warns(UserWarning, match="lie on tissue; with x and y exchanged it is 9[0-9]%.*spatial_key"):
        image_features(adata, image=folder / "NCBI858.jpg", spatial_key=("x_pixel", "y_pixel"), crop_px=40)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        image_features(adata, image=folder / "NCBI858.jpg", spatial_key=("y_pixel", "x_pixel"), crop_px=40)
    assert np.isfinite(adata.obsm["X_image"]).all()


def test_slide_file_with_points(shared_data):
    path = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    adata, encoder = cells(40, 2967, 2220, seed=1), Keep()
    with pytest.warns(UserWarning, match="lie on tissue"):
        image_features(adata, encoder, image=path, crop_um=112)
    assert adata.uns["X_image"]["crop_pixels"] == {"section": 224}
    import tifffile

    with tifffile.TiffFile(path) as file:
        assert_sliced(encoder, adata.obsm["X_image"], file.series[0].asarray(), adata.obsm["spatial"], 224)
