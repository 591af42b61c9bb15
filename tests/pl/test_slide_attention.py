"""Attention of a slide: colours are its shares, in place, of the size of the tiles, over the image they lie on."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

import stfuse
from stfuse.pl import attention

KEYS = {"attention_key": "mirror_attention", "slide_key": "slide"}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def tiles():
    """Slides of 12, 6 and 1 tiles of 10 pixels, in disorder."""
    names = np.repeat(["a", "b", "c"], [12, 6, 1])
    place = np.concatenate([np.arange(n) for n in (12, 6, 1)])
    rng = np.random.default_rng(0)
    weights = rng.gamma(1.0, size=19)
    weights /= pd.Series(weights).groupby(names).transform("sum").to_numpy()
    obs = pd.DataFrame(
        {"slide": pd.Categorical(names), "mirror_attention": weights}, index=[f"t{i}" for i in range(19)]
    )
    adata = ad.AnnData(obs=obs)
    adata.obsm["spatial"] = np.column_stack([place % 4, place // 4]) * 10.0 + 5
    return adata[rng.permutation(19)].copy()


def shapes(ax, which=0):
    return ax.collections[which]


def drawn(ax):
    """Middles, sides and colours of squares."""
    corners = np.array([path.vertices[:4] for path in shapes(ax).get_paths()])
    return corners.mean(1), np.ptp(corners, axis=1), shapes(ax).get_facecolors()


def bar_of(ax):
    """Colour bar that stands at a panel."""
    return next(child for child in ax.child_axes if child.get_ylabel())


def some_image(shape=(40, 60, 3)):
    return np.random.default_rng(0).integers(100, 256, shape, dtype=np.uint8)


def with_images(tiles, names, scale=0.5):
    tiles.uns["spatial"] = {
        name: {"images": {"hires": some_image()}, "scalefactors": {"tissue_hires_scalef": scale}} for name in names
    }
    return tiles


# what is drawn


def test_colours_are_attention_times_the_number_of_tiles(tiles):
    (ax,) = attention(tiles, "a", **KEYS, cmap="viridis", alpha=1)
    own = tiles[tiles.obs["slide"] == "a"]
    middle, side, rgba = drawn(ax)
    np.testing.assert_allclose(middle, own.obsm["spatial"])
    np.testing.assert_allclose(side, 10)
    relative = own.obs["mirror_attention"].to_numpy() * 12
    assert relative.max() > 2
    np.testing.assert_allclose(rgba, plt.get_cmap("viridis")(relative / relative.max()), atol=1e-6)
    assert ax.get_title() == "a" and bar_of(ax).get_ylabel() == "attention (1 = uniform)"
    # y points down, as in an image
    assert ax.get_ylim()[0] > ax.get_ylim()[1] and ax.get_aspect() == 1


def test_even_attention_looks_even(tiles):
    tiles.obs["mirror_attention"] = 1 / tiles.obs["slide"].map({"a": 12, "b": 6, "c": 1}).astype(float)
    axes = attention(tiles, ["a", "b", "c"], **KEYS, cmap="viridis", alpha=1)
    for ax in axes:
        rgba = drawn(ax)[2]
        np.testing.assert_allclose(rgba, np.tile(plt.get_cmap("viridis")(0.5), (len(rgba), 1)), atol=0.01)


def test_slides_share_one_scale(tiles):
    axes = attention(tiles, ["b", "a", "c"], **KEYS, cmap="viridis", alpha=1)
    assert [ax.get_title() for ax in axes] == ["b", "a", "c"]
    top = 12 * tiles.obs["mirror_attention"][tiles.obs["slide"] == "a"].max()
    own = tiles.obs["mirror_attention"][tiles.obs["slide"] == "b"] * 6
    np.testing.assert_allclose(drawn(axes[0])[2], plt.get_cmap("viridis")(own / max(top, own.max())), atol=1e-6)
    assert sum(bool(ax.child_axes) for ax in axes) == 1
    # the single tile has the size of the others, and 1
    _, side, rgba = drawn(axes[2])
    np.testing.assert_allclose(side, 10)
    np.testing.assert_allclose(rgba, [plt.get_cmap("viridis")(1 / top)], atol=0.01)


def test_ends_of_the_scale(tiles):
    (ax,) = attention(tiles, "a", **KEYS, vmin=0.5, vmax=1.5, cmap="viridis", alpha=1)
    relative = 12 * tiles.obs["mirror_attention"][tiles.obs["slide"] == "a"].to_numpy()
    np.testing.assert_allclose(drawn(ax)[2], plt.get_cmap("viridis")(np.clip(relative - 0.5, 0, 1)), atol=1e-6)
    (ax,) = attention(tiles, "a", **KEYS, vmax="p50")
    assert bar_of(ax).get_ylim()[1] == pytest.approx(np.percentile(relative, 50))


def test_of_part_of_a_slide_it_is_relative_to_what_is_there(tiles):
    """Tiles that were left out, and tiles without attention, do not count."""
    few = tiles[(tiles.obs["slide"] == "a") & (tiles.obsm["spatial"][:, 1] < 20)].copy()
    few.obs.iloc[0, few.obs.columns.get_loc("mirror_attention")] = np.nan
    (ax,) = attention(few, "a", **KEYS, cmap="viridis", alpha=1, vmax=4)
    relative = few.obs["mirror_attention"].to_numpy()
    relative = relative / np.nanmean(relative)
    rgba = drawn(ax)[2]
    np.testing.assert_allclose(rgba[1:], plt.get_cmap("viridis")(relative[1:] / 4), atol=1e-6)
    np.testing.assert_allclose(rgba[0, :3], to_rgb("#D3D3D3"))
    assert ax.get_legend().get_texts()[0].get_text() == "missing"


def test_top_tiles_are_outlined(tiles):
    with_images(tiles, "a")
    axes = attention(tiles, "a", **KEYS, top=3)
    own = tiles[tiles.obs["slide"] == "a"]
    best = own.obsm["spatial"][np.argsort(-own.obs["mirror_attention"].to_numpy())[:3]]
    for ax in axes:  # on the image too
        rings = np.array([path.vertices[:4] for path in shapes(ax, -1).get_paths()])
        np.testing.assert_allclose(rings.mean(1), best)
        assert (np.ptp(rings, axis=1) > 10).all()  # from outside
    assert len(shapes(attention(tiles, "c", **KEYS, top=3)[-1], -1).get_paths()) == 1
    assert len(attention(tiles, "a", **KEYS)[0].collections) == 0


def test_beside_the_image_and_under_the_tissue(tiles):
    with_images(tiles, "a")
    beside, over = attention(tiles, "a", **KEYS)
    assert beside.get_title() == "a" and over.get_title() == "mirror_attention of 12 tiles"
    shown, extent = beside.images[0].get_array(), beside.images[0].get_extent()
    # two full-resolution pixels to one of the image; tiles reach to 40 x 30, the border is one and a half of them
    image = some_image()
    x1 = round((extent[1] + 1) / 2)
    np.testing.assert_array_equal(shown, image[: shown.shape[0], :x1])
    assert beside.get_xlim()[1] >= 40 + 5 and x1 >= 22
    ink = np.asarray(over.images[0].get_array())
    assert ink.shape[2] == 4 and not ink[..., :3].any() and ink[..., 3].max() == pytest.approx(0.65, abs=0.01)
    assert over.images[0].get_zorder() > shapes(over).get_zorder()
    assert not over.collections[0].get_antialiased()[0]  # no lines between tiles that touch


def test_spots_are_circles_over_the_tissue(tiles):
    with_images(tiles, "a")
    tiles.uns["spatial"]["a"]["scalefactors"]["spot_diameter_fullres"] = 7.0
    _, over = attention(tiles, "a", **KEYS)
    circles = shapes(over)
    np.testing.assert_allclose(circles.get_offsets(), tiles[tiles.obs["slide"] == "a"].obsm["spatial"])
    np.testing.assert_allclose(circles.get_widths(), 7.0)
    assert circles.get_zorder() > over.images[0].get_zorder()


def test_places_off_a_square_grid_are_circles(tiles):
    tiles.obsm["spatial"][:, 0] += np.where(tiles.obsm["spatial"][:, 1] == 15, 5.0, 0)  # every other row is shifted
    (ax,) = attention(tiles, "a", **KEYS)
    assert hasattr(shapes(ax), "get_widths") and shapes(ax).get_widths()[0] == pytest.approx(0.92 * 10)


def test_sizes_that_tiles_say_themselves(tiles):
    tiles.obs["tile_size"] = 8.0
    (ax,) = attention(tiles, "a", **KEYS)
    np.testing.assert_allclose(drawn(ax)[1], 8)


def test_regions_lie_on_the_image_of_their_section(tiles):
    """Slides are regions of two sections, each with an image; a slide that lies on both has two panels."""
    with_images(tiles, ["s1", "s2"])
    tiles.uns["spatial"]["s2"]["images"]["hires"] = some_image()[:, ::-1]
    tiles.obs["section"] = np.where(tiles.obsm["spatial"][:, 1] < 20, "s1", "s2")
    axes = attention(tiles, ["a", "c"], **KEYS, library_key="section")
    assert [ax.get_title() for ax in axes[::2]] == ["a, s1", "a, s2", "c"]
    widths = [ax.images[0].get_array().shape[1] for ax in axes[::2]]
    for ax, image, width in zip(axes[::2], (some_image(), some_image()[:, ::-1], some_image()), widths, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), image[: ax.images[0].get_array().shape[0], :width])
    # attention stays relative to the whole slide
    rgba = np.concatenate([drawn(ax)[2] for ax in axes[1:4:2]])
    assert len(rgba) == 12
    # the column that holds the sections is found
    assert len(attention(tiles, ["a", "c"], **KEYS)) == 6


def test_a_slide_without_an_image_among_others(tiles):
    with_images(tiles, ["a", "c"])
    axes = attention(tiles, ["a", "b"], **KEYS)
    assert [bool(ax.images) for ax in axes] == [True, True, False, False]
    assert len(drawn(axes[3])[0]) == 6
    # images of slides that are not drawn do not matter
    assert len(attention(tiles, "b", **KEYS, library_key="slide", image={"b": some_image((80, 120, 3))})) == 2


def test_an_image_file(tiles, tmp_path):
    from PIL import Image

    image = some_image((80, 120, 3))
    Image.fromarray(image).save(tmp_path / "slide.png")
    beside, _ = attention(tiles, "a", **KEYS, image=tmp_path / "slide.png", mpp=0.5)
    shown = np.asarray(beside.images[0].get_array())
    np.testing.assert_array_equal(shown, image[: shown.shape[0], : shown.shape[1]])
    assert any("µm" in text.get_text() for text in beside.texts)


def test_slides_whose_names_are_numbers(tiles):
    tiles.obs["slide"] = tiles.obs["slide"].map({"a": 1.0, "b": 2.0}).astype(float)  # of c it is missing
    with_images(tiles, ["1", "2"])
    axes = attention(tiles, ["2", "1"], **KEYS)
    assert [len(drawn(ax)[0]) for ax in axes[1::2]] == [6, 12] and all(ax.images for ax in axes)


def test_tiles_of_tessellate_and_of_mil():
    spots = stfuse.datasets.mob()
    spots = spots[spots.obs["section"].isin(["MOB1", "MOB2"])].copy()
    tiles = stfuse.pp.tessellate(spots, tile_um=400, min_tissue=None)
    tiles.obs["mil_attention"] = 1.0
    axes = attention(tiles, ["MOB1", "MOB2"], attention_key="mil_attention", slide_key="section")
    assert len(axes) == 4 and all(ax.images for ax in axes)
    side = float(tiles.obs["tile_size"].iloc[0])
    np.testing.assert_allclose(drawn(axes[1])[1], side)
    assert any(text.get_text() == "1000 µm" for text in axes[0].texts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("coordinates", ["of a table", "of shapes on an image"])
def test_a_spatialdata(tiles, coordinates):
    pytest.importorskip("spatialdata")
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    if coordinates == "of a table":
        sdata = SpatialData(tables={"patches": TableModel.parse(tiles)})
        assert len(drawn(attention(sdata, "a", **KEYS)[0])[0]) == 12
        return
    own = tiles[tiles.obs["slide"] == "a"].copy()
    xy = own.obsm.pop("spatial")
    own.obs["region"], own.obs["tile"] = pd.Categorical(["places"] * 12), np.arange(12)
    image = some_image((80, 120, 3))
    sdata = SpatialData(
        images={"he": Image2DModel.parse(image, dims=("y", "x", "c"))},
        shapes={"places": ShapesModel.parse(xy, geometry=0, radius=3.0, index=np.arange(12))},
        tables={"patches": TableModel.parse(own, region="places", region_key="region", instance_key="tile")},
    )
    beside, over = attention(sdata, "a", **KEYS)
    np.testing.assert_allclose(np.sort(shapes(over).get_offsets(), 0), np.sort(xy, 0))
    np.testing.assert_allclose(shapes(over).get_widths(), 6.0)
    assert beside.images and over.images


def test_lazily_read_tiles(tiles, tmp_path):
    pytest.importorskip("xarray")
    tiles.write_zarr(tmp_path / "tiles.zarr")
    lazy = ad.experimental.read_lazy(tmp_path / "tiles.zarr")
    np.testing.assert_allclose(drawn(attention(lazy, "a", **KEYS)[0])[2], drawn(attention(tiles, "a", **KEYS)[0])[2])


def test_nothing_is_written_and_the_figure_is_saved(tiles, contents, tmp_path, assert_not_clipped):
    with_images(tiles, "ab")
    tiles.obs.iloc[0, tiles.obs.columns.get_loc("mirror_attention")] = np.nan
    before = contents(tiles)
    axes = attention(tiles, ["a", "b", "a", "b", "a", "b"], **KEYS, top=2, save=tmp_path / "a.png", ncols=4)
    np.testing.assert_equal(contents(tiles), before)
    assert (tmp_path / "a.png").stat().st_size > 1000 and len(axes) == 12
    assert_not_clipped(axes[0].figure)
    assert attention(tiles, "a", **KEYS, figsize=(9, 4))[0].figure.get_size_inches().tolist() == [9, 4]


@pytest.mark.parametrize(("n_slides", "ncols", "lines"), [(1, 4, 1), (6, 4, 2), (6, 3, 2), (3, 1, 3)])
def test_panels_in_rows(tiles, n_slides, ncols, lines):
    axes = attention(tiles, ["a", "b", "c", "a", "b", "c"][:n_slides], **KEYS, ncols=ncols)
    assert len({round(ax.get_position().y0, 4) for ax in axes}) == lines
    with_images(tiles, "abc")
    pairs = attention(tiles, ["a", "b", "c", "a", "b", "c"][:n_slides], **KEYS, ncols=ncols)
    for beside, over in zip(pairs[::2], pairs[1::2], strict=True):  # an image and its map stay together
        assert beside.get_position().y0 == pytest.approx(over.get_position().y0)


# what is refused


def text(tiles):
    tiles.obs["mirror_attention"] = "much"


def negative(tiles):
    tiles.obs.iloc[3, 1] = -0.5


def infinite(tiles):
    tiles.obs.iloc[3, 1] = np.inf


def unknown(tiles):
    tiles.obs.loc[tiles.obs["slide"] == "a", "mirror_attention"] = np.nan


def nothing(tiles):
    tiles.obs["mirror_attention"] = 0.0


def nowhere(tiles):
    tiles.obsm["spatial"][:] = np.nan


def no_places(tiles):
    tiles.obsm["places"] = tiles.obsm.pop("spatial")


def several_images(tiles):
    with_images(tiles, ["x", "y"])


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (text, {}, "\\(attention_key\\) must hold numbers"),
        (negative, {}, "is -0.5 in row 3: attention is a share.*stfuse.tl.mirror writes"),
        (infinite, {}, "is inf in row 3"),
        (unknown, {}, "No tile of slide 'a' has a value in obs\\['mirror_attention'\\]"),
        (nothing, {}, "is 0 in all tiles of slide 'a'"),
        (nowhere, {}, "No tile of slide 'a' has coordinates"),
        (no_places, {}, "There is: places. Name it with spatial_key="),
        (several_images, {}, "holds 2 sections.*library_key="),
        (None, {"tile": "A"}, "No slide 'A' in obs\\['slide'\\] \\(slide_key\\). Did you mean 'a'"),
        (None, {"tile": []}, "empty list"),
        (None, {"tile": ["a", 3]}, "tile must be a string"),
        (
            None,
            {"attention_key": "mirror_atention"},
            "\\(attention_key\\) in tiles.obs. Did you mean 'mirror_attention'",
        ),
        (None, {"slide_key": "slides"}, "\\(slide_key\\) in tiles.obs. Did you mean 'slide'"),
        (None, {"slide_key": None}, "slide_key= is missing"),
        (None, {"attention_key": None}, "Give exactly one of encoder .* and attention_key"),
        (None, {"encoder": "uni"}, "Give exactly one of encoder .* and attention_key"),
        (None, {"attention_key": 3}, "attention_key must be a string"),
        (None, {"top": 0}, "top"),
        (None, {"top": 2.5}, "top"),
        (None, {"crop_um": 100}, "crop_um=100 goes with encoder=: leave it out"),
        (None, {"cells": "table"}, "cells='table' goes with encoder="),
        (None, {"size": 3}, "size=3 goes with encoder="),
        (None, {"cmap": "viridiss"}, "Did you mean 'viridis'"),
        (None, {"alpha": 2}, "alpha"),
        (None, {"ncols": 0}, "ncols"),
        (None, {"vmin": 5, "vmax": 1}, "vmin=5 lies above vmax=1"),
        (None, {"vmax": "high"}, "vmax must be a number, a percentile"),
        (None, {"image": "he.tiff"}, "he.tiff"),
        (None, {"save": "nowhere/a.png"}, "no folder"),
    ],
)
def test_bad_input_leaves_no_figure(spoil, arguments, message, tiles):
    if spoil:
        spoil(tiles)
    call = {"tile": "a"} | KEYS | arguments
    with pytest.raises((ValueError, KeyError, TypeError, FileNotFoundError), match=message):
        attention(tiles, call.pop("tile"), **call)
    assert not plt.get_fignums()


def test_what_belongs_to_slides_goes_not_with_an_encoder(tiles):
    for arguments, message in (
        ({"slide_key": "slide"}, "slide_key='slide' goes with attention_key="),
        ({"top": 3}, "top=3 goes"),
    ):
        with pytest.raises(ValueError, match=message):
            attention(tiles, "t0", encoder="texture", **arguments)


def test_other_objects_are_refused(tiles):
    from mudata import MuData

    with pytest.raises(TypeError, match="pass the modality"):
        attention(MuData({"image": tiles}), "a", **KEYS)
