import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import stfuse
from stfuse.pl import attention
from stfuse.pl._attention_panels import INK
from stfuse.pp._encoders import get_encoder
from stfuse.pp._encoders._attention import class_attention


@pytest.fixture(autouse=True)
def close():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    plt.close("all")


def vit(size=32, **kwargs):
    network = VisionTransformer(
        img_size=size, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0, **kwargs
    )
    for block in network.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.5)
    return network


def looks_for_red():
    """A network whose class token attends to the patches that are red."""
    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=1, num_classes=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.patch_embed.proj.weight[0, 0] = 1 / 64
        network.patch_embed.proj.weight[0, 2] = -1 / 64  # white is not
        network.blocks[0].norm1 = nn.Identity()
        network.blocks[0].attn.qkv.weight[8, 0] = 10.0
        network.blocks[0].attn.qkv.bias[0] = 2.0
    return network


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(100, 256, (128, 160, 3), dtype=np.uint8)


@pytest.fixture
def cells():
    """Three cells in the tile of column 1 and row 2 (x 32 to 64, y 64 to 96), one in another."""
    adata = ad.AnnData(np.array([[0.0], [1], [2], [3]], dtype=np.float32))
    adata.obs_names, adata.var_names = list("abcd"), ["CD3E"]
    adata.obsm["spatial"] = np.array([[40.5, 70.25], [63, 65], [33, 95], [5, 5]])
    adata.obs["kind"] = pd.Categorical(["T", "B", "T", "B"])
    adata.obs["patch"] = ["t2_1", "t2_1", "t2_1", "t0_0"]
    return adata


@pytest.fixture
def tiles():
    """Tiles of 32 pixels, row by row."""
    rows, columns = (n.ravel() for n in np.mgrid[:4, :5])
    obs = pd.DataFrame({"tile_x": columns * 32.0, "tile_y": rows * 32.0, "tile_size": 32.0})
    obs.index = [f"t{r}_{c}" for r, c in zip(rows, columns, strict=True)]
    adata = ad.AnnData(np.zeros((20, 1), dtype=np.float32), obs=obs)
    adata.obsm["spatial"] = obs[["tile_x", "tile_y"]].to_numpy() + 16
    return adata


def map_of(ax):
    return np.asarray(ax.images[0].get_array())


def dots(ax):
    return ax.collections[0]


def pixel(ax, x, y):
    """Colour on the screen at a place in the crop."""
    ax.figure.canvas.draw()
    screen = np.asarray(ax.figure.canvas.buffer_rgba())
    column, row = ax.transData.transform((x, y))
    return screen[int(screen.shape[0] - row), int(column), :3] / 255


# what is drawn


def test_crop_and_map(tiles, image):
    network = vit()
    axes = attention(tiles, "t2_1", encoder=network, image=image)
    crop, over = axes
    np.testing.assert_array_equal(crop.images[0].get_array(), image[64:96, 32:64])
    assert crop.get_title() == "t2_1"
    assert over.get_title() == "class token, mean of 3 heads"
    expected = class_attention(get_encoder(network), image[None, 64:96, 32:64])
    np.testing.assert_allclose(map_of(over), expected.relative[0].mean(0), rtol=1e-5)
    assert over.images[0].get_extent() == [0, 32, 32, 0]
    assert over.images[0].norm.vmin == 0
    assert over.images[0].norm.vmax == pytest.approx(max(2, map_of(over).max()))


def test_red_patch_lights_up(tiles, image):
    image[:] = 255
    image[64 + 8 : 64 + 16, 32 + 24 : 32 + 32] = [255, 0, 0]  # row 1, column 3 of the patches
    _, over = attention(tiles, "t2_1", encoder=looks_for_red(), image=image, alpha=1, cmap="viridis")
    assert np.unravel_index(map_of(over).argmax(), (4, 4)) == (1, 3)
    red = np.exp(10 * 2 / np.sqrt(8))
    assert map_of(over)[1, 3] == pytest.approx(16 * red / (red + 16), rel=1e-5)  # 15 patches and the class token
    ends = plt.get_cmap("viridis")([0.0, 1.0])[:, :3]
    assert over.images[0].norm.vmax == pytest.approx(map_of(over).max())
    low = 16 / (red + 16) / map_of(over).max()
    np.testing.assert_allclose(pixel(over, 12, 12), plt.get_cmap("viridis")(low)[:3], atol=0.02)
    # the darkest tissue lies over it as ink
    np.testing.assert_allclose(pixel(over, 28, 12), ends[1] * (1 - INK), atol=0.02)


def test_encoder_sees_what_image_features_shows_it(tiles, image):
    class Watched(nn.Module):
        input_size = 32

        def __init__(self):
            super().__init__()
            self.trunk, self.seen = vit(), []

        def forward(self, images):
            self.seen.append(images.clone())
            return self.trunk(images)

    tiles.obsm["spatial"] += 0.3
    tiles.uns["spatial"] = {
        "s": {"images": {"hires": image[::2, ::2]}, "scalefactors": {"tissue_hires_scalef": 0.5}},
    }
    for crop in ({}, {"crop_px": 50}, {"crop_scale": 2, "stain": "reinhard"}):
        network = Watched()
        stfuse.pp.image_features(tiles, network, batch_size=1, **crop)
        everything, network.seen = network.seen, []
        attention(tiles, ["t3_4", "t0_0"], encoder=network, **crop)
        assert len(network.seen) == 2
        torch.testing.assert_close(network.seen[0], everything[19], rtol=0, atol=0)
        torch.testing.assert_close(network.seen[1], everything[0], rtol=0, atol=0)


def test_spots_without_tiles(image, tiles):
    spots = tiles.copy()
    del spots.obs
    spots.uns["spatial"] = {
        "s": {
            "images": {"hires": image},
            "scalefactors": {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 8.0},
        }
    }
    name = spots.obs_names[11]  # its centre is x 48, y 80: three diameters are 24 pixels
    crop, over = attention(spots, name, encoder=vit(24))
    np.testing.assert_array_equal(crop.images[0].get_array(), image[68:92, 36:60])
    assert map_of(over).shape == (3, 3)


def test_patches_that_do_not_cover_the_crop(tiles, image):
    network = vit(40, dynamic_img_size=True, dynamic_img_pad=True)
    _, over = attention(tiles, "t1_1", encoder=network, image=image, crop_px=36)
    assert map_of(over).shape == (5, 5)
    assert over.images[0].get_extent() == pytest.approx([0, 40, 40, 0])
    assert over.get_xlim() == (0, 36)
    assert over.get_ylim() == (36, 0)


def test_heads_and_blocks(tiles, image):
    network = vit()
    every = class_attention(get_encoder(network), image[None, 64:96, 32:64], layer=0).relative[0]
    axes = attention(tiles, "t2_1", encoder=network, image=image, heads="all", layer=0)
    assert [ax.get_title() for ax in axes] == ["t2_1", *(f"class token, block 0, head {i}" for i in range(3))]
    for ax, expected in zip(axes[1:], every, strict=True):
        np.testing.assert_allclose(map_of(ax), expected, rtol=1e-5)
    assert len({ax.images[0].norm.vmax for ax in axes[1:]}) == 1
    _, over = attention(tiles, "t2_1", encoder=network, image=image, heads=1, layer=-2)
    np.testing.assert_allclose(map_of(over), every[1], rtol=1e-5)


def test_average_pooled(tiles, image):
    _, over = attention(tiles, "t2_1", encoder=vit(global_pool="avg"), image=image)
    assert over.get_title() == "received by patches, mean of 3 heads"


def test_several_tiles_share_a_scale(tiles, image, tmp_path):
    file = tmp_path / "maps.png"
    axes = attention(tiles, ["t0_0", "t2_1", "t3_3"], encoder=vit(), image=image, save=file, vmax="p90")
    assert [ax.get_title() for ax in axes[::2]] == ["t0_0", "t2_1", "t3_3"]
    everything = np.concatenate([map_of(ax).ravel() for ax in axes[1::2]])
    (top,) = {ax.images[0].norm.vmax for ax in axes[1::2]}
    assert top == pytest.approx(np.percentile(everything, 90), rel=1e-5)
    tops = [round(ax.get_position().y0, 6) for ax in axes]
    assert tops[0] == tops[1] == tops[2] == tops[3] > tops[4] == tops[5]  # two tiles in a row
    assert file.stat().st_size > 0
    bars = [child for ax in axes for child in ax.child_axes if child.get_ylabel()]
    assert [bar.get_ylabel() for bar in bars] == ["attention (1 = uniform)"]


def test_scale_bar(tiles, image):
    crop, _ = attention(tiles, "t2_1", encoder=vit(), image=image, mpp=0.5)
    assert [text.get_text() for text in crop.texts] == ["5 µm"]  # a third of 16 µm is 5.33
    low, high = crop.lines[0].get_xdata()
    assert high - low == pytest.approx(5 / 16)
    crop, _ = attention(tiles, "t2_1", encoder=vit(), image=image)
    assert not crop.texts


def test_nearly_uniform_attention_looks_so(tiles, image):
    network = vit()
    nn.init.zeros_(network.blocks[-1].attn.qkv.weight)
    _, over = attention(tiles, "t2_1", encoder=network, image=image)
    np.testing.assert_allclose(map_of(over), 16 / 17, rtol=1e-6)
    assert over.images[0].norm.vmax == 2


# cells


def test_cells_lie_at_their_pixels(tiles, cells, image):
    crop, over = attention(
        tiles, "t2_1", encoder=vit(), image=image, cells=cells, tile_key="patch", color="kind", size=12
    )
    assert not crop.collections
    np.testing.assert_allclose(dots(over).get_offsets(), [[8.5, 6.25], [31, 1], [1, 31]])
    colors = dict(zip(cells.obs["kind"].cat.categories, cells.uns["kind_colors"], strict=True))
    np.testing.assert_allclose(dots(over).get_facecolors(), [to_rgba(colors[k]) for k in "TBT"])
    np.testing.assert_allclose(pixel(over, 8.5, 6.25), to_rgba(colors["T"])[:3], atol=0.02)


def test_cells_on_a_coarser_image(tiles, cells, image):
    tiles.uns["spatial"] = {
        "s": {"images": {"hires": image[::2, ::2]}, "scalefactors": {"tissue_hires_scalef": 0.5}},
    }
    _, over = attention(tiles, "t2_1", encoder=vit(16), cells=cells, tile_key="patch")
    np.testing.assert_allclose(dots(over).get_offsets(), [[4.25, 3.125], [15.5, 0.5], [0.5, 15.5]])


def test_cells_of_tessellate_and_a_gene(cells, image):
    image[:] = [200, 120, 160]
    tiles = stfuse.pp.tessellate(cells, image=image, tile_px=32, min_tissue=None)
    name = str(cells.obs["tiles"].iloc[0])
    before = dict(cells.uns)
    _, over = attention(tiles, name, encoder=vit(), image=image, cells=cells, color="CD3E")
    np.testing.assert_allclose(dots(over).get_offsets(), [[8.5, 6.25], [31, 1], [1, 31]])
    np.testing.assert_allclose(dots(over).get_facecolors(), plt.get_cmap("viridis")([0.0, 0.5, 1.0]), atol=1e-6)
    assert dict(cells.uns).keys() == before.keys()


def test_tile_without_cells(tiles, cells, image):
    _, over = attention(tiles, "t3_3", encoder=vit(), image=image, cells=cells, tile_key="patch", color="kind")
    assert len(dots(over).get_offsets()) == 0
    assert over.get_legend() is None


def test_spatialdata():
    """The image is moved and scaled, and so are the cells: both meet in the global system."""
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale, Sequence, Translation

    pixels = np.random.default_rng(0).integers(50, 256, (96, 64, 3), dtype=np.uint8)
    place = np.array([[40.5, 70.25], [63, 65], [5, 5]])  # in pixels of the image
    move = Sequence([Scale([0.5, 0.5], ("x", "y")), Translation([10, 20], ("x", "y"))])
    picture = Image2DModel.parse(pixels, dims=("y", "x", "c"), transformations={"global": move})
    shapes = ShapesModel.parse(place * 0.5 + [10, 20], geometry=0, radius=1.0)
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * 3), "instance": range(3)}, index=list("abc"))
    table = TableModel.parse(
        ad.AnnData(np.ones((3, 1), dtype=np.float32), obs=obs),
        region="cells",
        region_key="region",
        instance_key="instance",
    )
    sdata = spatialdata.SpatialData(images={"he": picture}, shapes={"cells": shapes}, tables={"table": table})
    stfuse.pp.tessellate(sdata, tile_px=32, min_tissue=None, mpp=0.5)
    name = str(sdata["table"].obs["tiles"].iloc[0])
    for cells in ("table", sdata["table"]):
        crop, over = attention(sdata, name, encoder=vit(), table_key="rna_tiles", cells=cells)
        np.testing.assert_array_equal(crop.images[0].get_array(), pixels[64:96, 32:64])
        np.testing.assert_allclose(dots(over).get_offsets(), [[8.5, 6.25], [31, 1]])
    with pytest.raises(ValueError, match="no table of the SpatialData.*table, rna_tiles"):
        attention(sdata, name, encoder=vit(), table_key="rna_tiles", cells=sdata["table"].copy())


# what is refused


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tile": "t2_9"}, KeyError, "No tile 't2_9' among the 20 obs_names.*Did you mean 't2_"),
        ({"tile": []}, ValueError, "empty list"),
        ({"tile": 3}, TypeError, "tile must be a string"),
        ({"encoder": "texture"}, ValueError, "'texture' is no network"),
        ({"encoder": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))}, ValueError, "No vision transformer"),
        ({"layer": 2}, ValueError, "layer=2: 'VisionTransformer' has 2 blocks, 0 to 1"),
        ({"layer": 0.5}, TypeError, "layer must be a whole number"),
        ({"heads": 3}, ValueError, "heads=3: a block has 3 heads, 0 to 2"),
        ({"heads": -1}, ValueError, "heads must be a whole number of at least 0"),
        ({"heads": "max"}, ValueError, "heads must be 'mean', 'all'"),
        ({"cmap": "virids"}, ValueError, "Did you mean 'viridis'"),
        ({"color": "kind", "cells": None, "tile_key": None}, ValueError, "color='kind' is about cells"),
        ({"cells": None}, ValueError, "tile_key='patch' is about cells"),
        ({"tile_key": None}, ValueError, "Which column of cells.obs names their tiles"),
        ({"tile_key": "pitch"}, KeyError, "No obs column 'pitch'.*Did you mean 'patch'"),
        ({"tile_key": "kind"}, ValueError, "No cell lies in one of the tiles.*holds 'T'.*called 't0_0'"),
        ({"color": "kinds"}, KeyError, "Did you mean 'kind'"),
        ({"cells": "table"}, TypeError, "names a table of a SpatialData"),
        ({"cells": 1}, TypeError, "cells must be an AnnData"),
        ({"image": None}, KeyError, "has no image"),
        ({"crop_px": 500}, ValueError, "Crops have 500 x 500 pixels"),
        ({"crop_px": 30, "crop_um": 3}, ValueError, "Give one size"),
        ({"spatial_key": "X_umap"}, KeyError, "No obsm.*X_umap.*There is: spatial"),
        ({"size": 0}, ValueError, "size must be"),
        ({"alpha": 2}, ValueError, "alpha must be"),
        ({"vmin": "low"}, ValueError, "vmin must be"),
        ({"save": "/no/such/folder/a.png"}, FileNotFoundError, "no folder"),
    ],
)
def test_bad_input(tiles, cells, image, contents, change, error, words):
    before = contents(tiles), contents(cells)
    arguments = {"tile": "t2_1", "encoder": vit(), "image": image, "cells": cells, "tile_key": "patch"} | change
    with pytest.raises(error, match=words):
        attention(tiles, **arguments)
    assert not plt.get_fignums()
    after = contents(tiles), contents(cells)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_equal(one, other)


def test_tile_beyond_the_image(tiles, image):
    tiles.obsm["spatial"][3] = [500, 16]
    with pytest.raises(ValueError, match="Tile 't0_3' has no image"):
        attention(tiles, ["t0_0", "t0_3"], encoder=vit(), image=image)


def test_cells_in_other_units(tiles, cells, image):
    cells.obsm["spatial"] *= 0.2
    with pytest.warns(UserWarning, match="None of the 3 cells of tile 't2_1' lies in its crop"):
        attention(tiles, "t2_1", encoder=vit(), image=image, cells=cells, tile_key="patch")
