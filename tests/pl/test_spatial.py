import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex, to_rgb
from mudata import MuData

import stfuse
from stfuse.pl._color import PALETTE, default_colors


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def tissue():
    return stfuse.datasets.synthetic_tissue(300, 3, n_genes=60, seed=1)


@pytest.fixture
def slide():
    """One section: four spots, coordinates ten times the pixels of a 200 x 100 image with a red square."""
    image = np.full((100, 200, 3), 255, dtype=np.uint8)
    image[40:60, 90:110] = [255, 0, 0]
    adata = ad.AnnData(np.arange(8.0).reshape(4, 2), obs=pd.DataFrame(index=list("abcd")))
    adata.var_names = ["g0", "g1"]
    adata.obsm["spatial"] = np.array([[300.0, 300], [1700, 300], [300, 700], [1700, 700]])
    adata.obs["kind"] = pd.Categorical(["x", "y", "y", "x"])
    factors = {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.05, "spot_diameter_fullres": 200.0}
    adata.uns["spatial"] = {"s": {"images": {"hires": image}, "scalefactors": factors}}
    return adata


def pixel(ax, x, y):
    """Colour on the screen at a place in the tissue."""
    ax.figure.canvas.draw()
    screen = np.asarray(ax.figure.canvas.buffer_rgba())
    column, row = ax.transData.transform((x, y))
    return screen[int(screen.shape[0] - row), int(column), :3] / 255


def circles(ax):
    return next(c for c in ax.collections if isinstance(c, EllipseCollection))


def texts(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


# what is drawn


@pytest.mark.parametrize("kind", ["hires", "lowres"])
def test_image_and_spots_lie_on_each_other(slide, kind):
    library = slide.uns["spatial"]["s"]
    if kind == "lowres":
        library["images"] = {"lowres": library["images"]["hires"][::2, ::2]}
    ax = stfuse.pl.spatial(slide, "kind")
    np.testing.assert_allclose(pixel(ax, 1000, 500), [1, 0, 0], atol=0.02)  # the square, in full-resolution pixels
    np.testing.assert_allclose(pixel(ax, 930, 430), [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(pixel(ax, 1000, 300), [1, 1, 1], atol=0.02)
    for (x, y), value in zip(slide.obsm["spatial"], slide.obs["kind"], strict=True):
        expected = to_rgb(PALETTE[0 if value == "x" else 1])
        np.testing.assert_allclose(pixel(ax, x, y), expected, atol=0.02)
        np.testing.assert_allclose(pixel(ax, x + 85, y), expected, atol=0.02)  # radius 100
        np.testing.assert_allclose(pixel(ax, x + 115, y), [1, 1, 1], atol=0.02)
    assert ax.yaxis_inverted() and ax.get_aspect() == 1


def test_size_and_without_image(slide):
    ax = stfuse.pl.spatial(slide, "kind", size=0.5, img=False)
    assert not ax.images
    np.testing.assert_allclose(pixel(ax, 300, 300), to_rgb(PALETTE[0]), atol=0.02)
    np.testing.assert_allclose(pixel(ax, 370, 300), [1, 1, 1], atol=0.02)
    ax = stfuse.pl.spatial(slide, crop=False)
    assert ax.get_xlim()[0] <= 0 and ax.get_xlim()[1] >= 2000 and not ax.collections


def test_numbers_share_a_scale_over_sections(tissue):
    tissue.obs["number"] = np.linspace(-2, 6, 300)
    axes = stfuse.pl.spatial(tissue, "number", library_key="section")
    assert len(axes) == 3
    from matplotlib import colormaps

    expected = colormaps["viridis"](np.linspace(0, 1, 300))
    for ax, name in zip(axes, tissue.obs["section"].cat.categories, strict=True):
        rows = (tissue.obs["section"] == name).to_numpy()
        np.testing.assert_allclose(circles(ax).get_facecolors(), expected[rows], atol=0.01)
        np.testing.assert_allclose(circles(ax).get_offsets(), tissue.obsm["spatial"][rows])
    ax = stfuse.pl.spatial(tissue, "number", library_key="section", library_id="section2", vmin=0, vmax=1)
    rows = (tissue.obs["section"] == "section2").to_numpy()
    wanted = colormaps["viridis"](np.clip(tissue.obs["number"][rows], 0, 1))
    np.testing.assert_allclose(circles(ax).get_facecolors(), wanted, atol=0.01)


def test_obs_genes_layers_and_columns_of_obsm(tissue):
    from stfuse.pl._color import read_color

    def values(key, **kwargs):
        return np.asarray(read_color(tissue, key, table_key=None, **kwargs).values)

    tissue.layers["double"] = tissue.X * 2
    gene = tissue.X[:, 3].toarray().ravel()
    np.testing.assert_array_equal(values("gene3"), gene)
    np.testing.assert_array_equal(values("gene3", layer="double"), 2 * gene)
    np.testing.assert_array_equal(values("X_pca:2"), tissue.obsm["X_pca"][:, 2])
    tissue.obsm["score"] = pd.DataFrame({"A:B": np.arange(300.0), "C": 1.0}, index=tissue.obs_names)
    np.testing.assert_array_equal(values("score:C"), 1)
    tissue.obs["X_pca:2"] = 7.0  # what the user named so himself comes first
    np.testing.assert_array_equal(values("X_pca:2"), 7)


def test_missing_values_are_grey_and_below(tissue):
    tissue.obs["some"] = np.where(np.arange(300) % 3 == 0, np.nan, 1.0)
    tissue.obs["kind"] = pd.Categorical(np.where(np.arange(300) % 3 == 0, None, "a"))
    for key in ("some", "kind"):
        ax = stfuse.pl.spatial(tissue, key, library_key="section", library_id="section1")
        drawn = [to_hex(c) for c in circles(ax).get_facecolors()]
        n = int((np.flatnonzero(tissue.obs["section"] == "section1") % 3 == 0).sum())
        assert set(drawn[:n]) == {"#d3d3d3"} and "#d3d3d3" not in drawn[n:]
    assert texts(ax) == ["a", "missing"]
    tissue.obs["none"] = np.nan
    stfuse.pl.spatial(tissue, "none", library_key="section")


def test_text_and_booleans_are_categories(tissue):
    tissue.obs["flag"] = tissue.obs["domain"] == tissue.obs["domain"].iloc[0]
    tissue.obs["text"] = tissue.obs["domain"].astype(str).to_numpy(dtype=object)
    axes = stfuse.pl.spatial(tissue, ["flag", "text"], library_key="section", library_id="section1")
    assert texts(axes[0]) == ["False", "True"]
    assert texts(axes[1])[0] == "S0I0R0"


# colours


def test_colours_are_kept_and_used_again(tissue):
    before = tissue.copy()
    stfuse.pl.spatial(tissue, "domain", library_key="section")
    kept = tissue.uns.pop("domain_colors")
    assert len(kept) == tissue.obs["domain"].nunique()
    assert list(tissue.uns) == list(before.uns) and list(tissue.obs) == list(before.obs)
    own = [to_hex(c) for c in plt.colormaps["tab20"].colors[: len(kept)]]
    tissue.uns["domain_colors"] = np.array(own)  # as it comes back from h5ad
    part = tissue[(tissue.obs["domain"] == tissue.obs["domain"].cat.categories[2]).to_numpy()].copy()
    for adata in (tissue, part):
        ax = stfuse.pl.spatial(adata, "domain", library_key="section")[0]
        rows = (adata.obs["section"] == ax.get_title()).to_numpy()
        expected = [own[tissue.obs["domain"].cat.categories.get_loc(d)] for d in adata.obs["domain"][rows]]
        assert [to_hex(c) for c in circles(ax).get_facecolors()] == expected


def test_same_colours_in_every_section(tissue):
    colours = {}
    for ax in stfuse.pl.spatial(tissue, "domain", library_key="section"):
        rows = (tissue.obs["section"] == ax.get_title()).to_numpy()
        for name, c in zip(tissue.obs["domain"][rows], circles(ax).get_facecolors(), strict=True):
            assert colours.setdefault(name, to_hex(c)) == to_hex(c)
    assert len(set(colours.values())) == len(colours)


def test_palettes(tissue):
    names = list(tissue.obs["class_shared"].cat.categories)
    for palette in (["red", "green", "blue"], dict(zip(names, ["red", "green", "blue"], strict=True))):
        stfuse.pl.spatial(tissue, "class_shared", library_key="section", palette=palette)
        assert tissue.uns["class_shared_colors"] == [to_hex(c) for c in ("red", "green", "blue")]
    stfuse.pl.spatial(tissue, "class_shared", library_key="section", palette="Set2")
    stfuse.pl.spatial(tissue, "class_shared", library_key="section", palette="viridis")
    assert len(set(tissue.uns["class_shared_colors"])) == 3


@pytest.mark.parametrize("n", [1, 12, 13, 28, 29, 103, 200])
def test_default_colours_differ_and_unassigned_is_grey(n):
    names = [str(i) for i in range(n)]
    colours = default_colors([*names, "unassigned"])
    assert colours["unassigned"] == "#9e9e9e"
    assert len({colours[name] for name in names}) == n


def test_a_view_stays_a_view(tissue):
    view = tissue[:50]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stfuse.pl.spatial(view, "domain", library_key="section")
    assert view.is_view


# panels


def test_what_comes_back(tissue):
    one = stfuse.pl.spatial(tissue, "domain", library_key="section", library_id="section2")
    assert isinstance(one, Axes) and one.get_title() == "domain"
    several = stfuse.pl.spatial(tissue, ["domain", "gene1"], library_key="section", ncols=2)
    assert isinstance(several, list) and [ax.get_title() for ax in several] == ["section1", "section2", "section3"] * 2
    titled = stfuse.pl.spatial(tissue, "domain", library_key="section", title=["a", "b", "c"], legend=False)
    assert [ax.get_title() for ax in titled] == ["a", "b", "c"] and titled[-1].get_legend() is None


@pytest.mark.parametrize("ncols", [1, 2, 4])
@pytest.mark.parametrize("by_section", [True, False])
def test_nothing_overlaps_and_nothing_is_cut_off(tissue, ncols, by_section):
    kwargs = {"library_key": "section"} if by_section else {"library_key": "section", "library_id": "section1"}
    axes = stfuse.pl.spatial(tissue, ["domain", "gene1", "class_rna"], ncols=ncols, **kwargs)
    figure = axes[0].figure
    figure.canvas.draw()
    boxes = []
    for ax in axes:
        boxes.append(ax.get_window_extent())
        boxes += [ax.title.get_window_extent()]
        boxes += [ax.get_legend().get_window_extent()] if ax.get_legend() else []
        boxes += [child.get_tightbbox() for child in ax.child_axes]
    for i, a in enumerate(boxes):
        assert a.x0 >= -1 and a.y0 >= -1 and a.x1 <= figure.bbox.width + 1 and a.y1 <= figure.bbox.height + 1
        for b in boxes[i + 1 :]:
            overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(overlap) < 1.5


def test_sections_of_one_size_have_one_scale_and_others_fill_their_panels(tissue):
    def widths():
        return [np.ptp(ax.get_xlim()) for ax in stfuse.pl.spatial(tissue, "domain", library_key="section")]

    np.testing.assert_allclose(widths(), widths()[0])
    rows = (tissue.obs["section"] == "section2").to_numpy()
    tissue.obsm["spatial"] = np.where(rows[:, None], tissue.obsm["spatial"] * 50, tissue.obsm["spatial"])
    assert widths()[1] > 40 * widths()[0]


def test_own_axes_and_file(tissue, tmp_path):
    figure, axes = plt.subplots(1, 2)
    out = stfuse.pl.spatial(tissue, "domain", library_key="section", library_id="section1", ax=axes[1])
    assert out is axes[1] and len(figure.axes) == 2
    stfuse.pl.spatial(tissue, "gene1", library_key="section", save=tmp_path / "a.pdf", figsize=(6, 3))
    assert (tmp_path / "a.pdf").stat().st_size > 1000


def test_observations_without_position_are_left_out(tissue):
    tissue.obsm["spatial"] = tissue.obsm["spatial"].astype(float)
    tissue.obsm["spatial"][:10] = np.nan
    ax = stfuse.pl.spatial(tissue, "domain", library_key="section")[0]
    assert len(circles(ax).get_offsets()) == 90


def test_olfactory_bulb_needs_no_arguments():
    adata = stfuse.datasets.mob()
    axes = stfuse.pl.spatial(adata, "layer")
    assert [ax.get_title() for ax in axes] == ["MOB1", "MOB2", "MOB3", "MOB4"]
    assert all(ax.images for ax in axes)


def test_cortex_with_a_lowres_image(shared_data):
    adata = ad.read_h5ad(shared_data / "dlpfc" / "dlpfc_151673.h5ad")
    ax = stfuse.pl.spatial(adata, "layer")
    image = ax.images[0].get_extent()
    x, y = adata.obsm["spatial"].T
    assert image[0] <= x.min() and image[1] >= x.max() and image[3] <= y.min() and image[2] >= y.max()


def test_mudata(tissue):
    image = ad.AnnData(np.zeros((200, 1)), obs=tissue.obs.iloc[:200][["section"]])
    image.var_names = ["feature"]
    image.obsm["spatial"] = tissue.obsm["spatial"][:200]
    rna = tissue[100:].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"image": image, "rna": rna})
    axes = stfuse.pl.spatial(mdata, ["gene1", "domain"], library_key="section")
    assert len(axes) == 6
    shown = np.vstack([circles(ax).get_offsets() for ax in axes[:3]])
    assert len(shown) == 300


def test_spatialdata(tissue):
    spatialdata = pytest.importorskip("spatialdata")
    sdata = spatialdata.SpatialData(tables={"spots": tissue})
    assert len(stfuse.pl.spatial(sdata, "domain", library_key="section")) == 3


# missing values, order, scale


def test_missing_numbers_have_an_entry_in_the_legend(slide):
    slide.obs["score"] = [1.0, np.nan, 2, 3]
    ax = stfuse.pl.spatial(slide, "score")
    assert texts(ax) == ["missing"] and len(ax.child_axes) == 1
    slide.obs["score"] = [1.0, 4, 2, 3]
    assert stfuse.pl.spatial(slide, "score").get_legend() is None


def test_a_column_without_values_is_grey_and_has_no_colour_bar(slide):
    slide.obs["nothing"] = np.nan
    ax = stfuse.pl.spatial(slide, "nothing")
    assert texts(ax) == ["missing"] and not ax.child_axes
    assert {to_hex(c) for c in circles(ax).get_facecolors()} == {"#d3d3d3"}


def test_text_is_sorted_as_people_do_and_categories_keep_their_order(slide):
    slide.obs["type"] = ["type 10", "type 2", "type 1", "type 10"]
    assert texts(stfuse.pl.spatial(slide, "type")) == ["type 1", "type 2", "type 10"]
    slide.obs["type"] = pd.Categorical(slide.obs["type"], ["type 2", "type 10", "type 1"])
    assert texts(stfuse.pl.spatial(slide, "type")) == ["type 2", "type 10", "type 1"]
    slide.obs["mixed"] = pd.Series([1, "1", None, "b"], index=slide.obs_names, dtype=object)
    assert texts(stfuse.pl.spatial(slide, "mixed")) == ["1", "b", "missing"]


def test_percentiles_as_ends_of_the_scale(slide):
    slide.obs["score"] = [0.0, 10, 20, 100]
    ax = stfuse.pl.spatial(slide, "score", vmin="p10", vmax="p50")
    low, high = ax.child_axes[0].get_ylim()
    assert (low, high) == pytest.approx((3.0, 15.0))
    assert stfuse.pl.spatial(slide, "score", vmin=200).child_axes  # beyond all values


def test_a_lone_spot_is_not_blown_up(tissue):
    one = np.flatnonzero(tissue.obs["section"] == "section1")[:1]
    rest = np.flatnonzero(tissue.obs["section"] != "section1")
    axes = stfuse.pl.spatial(tissue[np.concatenate([one, rest])].copy(), "domain", library_key="section")
    widths = [circles(ax).get_widths()[0] for ax in axes]
    assert widths[0] == pytest.approx(widths[1], rel=0.2)
    for ax, width in zip(axes, widths, strict=True):
        assert width < np.ptp(ax.get_xlim()) / 7


def test_sections_on_each_other_are_warned_of(tissue):
    with pytest.warns(UserWarning, match="300 of 300 observations lie exactly.*library_key="):
        stfuse.pl.spatial(tissue, "domain")


def test_columns_of_modalities(slide):
    rna = slide[["a", "b", "c"]].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"image": slide, "rna": rna})
    mdata["rna"].obs["kind"] = ["u", "v", "v"]
    assert texts(stfuse.pl.spatial(mdata, "rna:kind")) == ["u", "v", "missing"]
    with pytest.raises(ValueError, match="'kind' differs.*'image:kind', 'rna:kind'"):
        stfuse.pl.spatial(mdata, "kind")


# bad input


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"color": "gene999"}, KeyError, "neither a column of obs"),
        ({"color": "X_pca:99"}, KeyError, "columns 0 to"),
        ({"color": "X_umap:0"}, KeyError, "X_pca"),
        ({"color": "gene1", "layer": "log"}, KeyError, "layer"),
        ({"color": []}, ValueError, "empty list"),
        ({"color": "domain", "library_key": "slide"}, KeyError, "section"),
        ({"color": "domain", "library_id": "section9"}, KeyError, "section1"),
        ({"color": "domain", "spatial_key": "xy"}, KeyError, "coordinates"),
        ({"color": "domain", "palette": ["red"]}, ValueError, "categories"),
        ({"color": "domain", "palette": {"a": "red"}}, ValueError, "no colour for"),
        ({"color": "domain", "palette": "rainbows"}, ValueError, "colour map"),
        ({"color": "domain", "title": ["a", "b"]}, ValueError, "title"),
        ({"color": "domian"}, KeyError, "Did you mean 'domain'"),
        ({"color": "GENE10"}, KeyError, "Did you mean 'gene10'"),
        ({"color": 5}, TypeError, "color must be a string, got 5"),
        ({"color": ["domain", 5]}, TypeError, "color must be a string, got 5"),
        ({"color": "domain", "library_id": "sektion1"}, KeyError, "Did you mean 'section1'"),
        ({"color": "domain", "spatial_key": "spatail"}, KeyError, "Did you mean 'spatial'"),
        ({"color": "domain", "palette": 5}, TypeError, "palette must be"),
        ({"color": "domain", "palette": ["blu"] * 20}, ValueError, "palette has 'blu'"),
        ({"color": "domain", "size": 0}, ValueError, "size must be a number above 0, got 0"),
        ({"color": "domain", "size": None}, TypeError, "size must be"),
        ({"color": "domain", "alpha": 2}, ValueError, "alpha must be a number between 0 and 1"),
        ({"color": "domain", "ncols": 0}, ValueError, "ncols must be a whole number of at least 1"),
        ({"color": "domain", "ncols": "2"}, TypeError, "ncols must be"),
        ({"color": "domain", "img": "no"}, TypeError, "img must be True or False"),
        ({"color": "domain", "figsize": 4}, TypeError, "figsize must be"),
        ({"color": "gene1", "vmin": "low"}, ValueError, "vmin must be a number, a percentile"),
        ({"color": "gene1", "vmin": 2, "vmax": 1}, ValueError, "vmin=2 lies above vmax=1"),
    ],
)
def test_errors(tissue, kwargs, error, match):
    with pytest.raises(error, match=match):
        stfuse.pl.spatial(tissue, **{"library_key": "section", **kwargs})
    assert "domain_colors" not in tissue.uns


def test_an_unknown_colour_map_leaves_no_figure_open(tissue):
    with pytest.raises(KeyError, match="nowhere"):
        stfuse.pl.spatial(tissue, "X_pca:0", library_key="section", cmap="nowhere")
    with pytest.raises(KeyError, match="nowhere"):
        stfuse.pl.embedding(tissue, "X_pca", "X_pca:0", method="pca", cmap="nowhere")
    assert not plt.get_fignums()


def test_several_panels_do_not_fit_one_axes(tissue):
    with pytest.raises(ValueError, match="one panel"):
        stfuse.pl.spatial(tissue, "domain", library_key="section", ax=plt.gca())


def test_image_without_scale(slide):
    del slide.uns["spatial"]["s"]["scalefactors"]["tissue_hires_scalef"]
    with pytest.raises(KeyError, match="tissue_hires_scalef"):
        stfuse.pl.spatial(slide, "kind")
    stfuse.pl.spatial(slide, "kind", img=False)


def test_titles_wider_than_a_panel_keep_both_ends(tissue):
    """Neither neighbour is covered, and sections that differ at the end can still be told apart."""
    names = [f"patient_0{i}_biopsy_of_the_left_frontal_cortex_replicate_{i}" for i in (1, 2)]
    tissue.obs["where"] = pd.Categorical.from_codes(np.arange(tissue.n_obs) % 2, names)
    axes = stfuse.pl.spatial(tissue, library_key="where", img=False)
    renderer = axes[0].figure.canvas.get_renderer()
    boxes = [ax.title.get_window_extent(renderer) for ax in axes]
    assert boxes[0].x1 < boxes[1].x0
    for i, ax in enumerate(axes, start=1):
        assert ax.get_title().startswith(f"patient_0{i}")
        assert ax.get_title().endswith(f"replicate_{i}")
        assert "…" in ax.get_title()


def test_another_stored_image():
    adata = stfuse.datasets.mob()[:379].copy()
    for entry in adata.uns["spatial"].values():
        entry["images"]["blue"] = np.zeros((10, 10, 3), np.uint8) + np.array([0, 0, 255], np.uint8)
        entry["scalefactors"]["tissue_blue_scalef"] = 10 / 1905
    ax = stfuse.pl.spatial(adata, img_key="blue", library_id="MOB1", crop=False)
    shown = ax.images[0].get_array()
    assert shown.shape[:2] == (10, 10) and (np.asarray(shown)[..., 2] == 255).all()
    with pytest.raises(KeyError, match="no 'blu'. Did you mean 'blue'"):
        stfuse.pl.spatial(adata, img_key="blu")
