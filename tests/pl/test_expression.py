import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.collections import EllipseCollection
from mudata import MuData
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr

import stfuse


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def log_normalised(adata):
    counts = np.asarray(adata.X.todense(), dtype=float)
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


@pytest.fixture
def tissue():
    """Three sections with counts in X and a blurred, paler prediction of their logarithm."""
    adata = stfuse.datasets.synthetic_tissue(300, 3, n_genes=60, seed=1)
    noise = np.random.default_rng(0).normal(size=(300, 60))
    adata.layers["predicted"] = (0.3 * log_normalised(adata) + 2 + 0.2 * noise).astype(np.float32)
    return adata


@pytest.fixture
def section(tissue):
    return tissue[tissue.obs["section"] == "section2"].copy()


def circles(ax):
    return next(c for c in ax.collections if isinstance(c, EllipseCollection))


def expected_colours(values, low, high):
    return colormaps["viridis"](np.clip((values - low) / (high - low), 0, 1))


def bars(axes):
    """Limits of the colour bars, by the axes they stand at."""
    return {i: child.get_ylim() for i, ax in enumerate(axes) for child in ax.child_axes}


# what is drawn


def test_rows_of_genes_and_the_correlation_of_each(section):
    truth = log_normalised(section)
    axes = stfuse.pl.expression(section, ["gene3", "gene7"])
    assert len(axes) == 4
    r = [pearsonr(truth[:, g], section.layers["predicted"][:, g]).statistic for g in (3, 7)]
    titles = [ax.get_title() for ax in axes]
    assert titles == ["gene3", f"predicted, r = {r[0]:.2f}", "gene7", f"predicted, r = {r[1]:.2f}"]
    left, top = ([round(getattr(ax.get_position(), side), 6) for ax in axes] for side in ("x0", "y1"))
    assert left[0] == left[2] < left[1] == left[3] and top[0] == top[1] > top[2] == top[3]


def test_a_shared_scale_makes_colours_comparable(section):
    truth, predicted = log_normalised(section)[:, 3], section.layers["predicted"][:, 3]
    axes = stfuse.pl.expression(section, "gene3")
    ends = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    for ax, values in zip(axes, (truth, predicted), strict=True):
        np.testing.assert_allclose(circles(ax).get_facecolors(), expected_colours(values, *ends), atol=0.01)
        np.testing.assert_allclose(circles(ax).get_offsets(), section.obsm["spatial"])
    assert bars(axes) == {1: pytest.approx(ends)}


def test_free_scales_show_patterns(section):
    truth, predicted = log_normalised(section)[:, 3], section.layers["predicted"][:, 3]
    axes = stfuse.pl.expression(section, "gene3", scale="free")
    for ax, values in zip(axes, (truth, predicted), strict=True):
        expected = expected_colours(values, values.min(), values.max())
        np.testing.assert_allclose(circles(ax).get_facecolors(), expected, atol=0.01)
    assert bars(axes) == {
        0: pytest.approx((truth.min(), truth.max())),
        1: pytest.approx((predicted.min(), predicted.max())),
    }


def test_given_limits(section):
    axes = stfuse.pl.expression(section, "gene3", vmin=0, vmax="p90")
    both = np.concatenate([log_normalised(section)[:, 3], section.layers["predicted"][:, 3]])
    assert bars(axes) == {1: pytest.approx((0, np.percentile(both, 90)))}


def test_several_sections_share_a_scale_and_have_a_correlation_each(tissue):
    truth, predicted = log_normalised(tissue)[:, 5], tissue.layers["predicted"][:, 5]
    axes = stfuse.pl.expression(tissue, ["gene5", "gene6"], library_key="section", ncols=2)
    assert len(axes) == 12
    ends = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    for i, name in enumerate(tissue.obs["section"].cat.categories):
        rows = (tissue.obs["section"] == name).to_numpy()
        assert axes[i].get_title() == name
        assert axes[3 + i].get_title() == f"r = {pearsonr(truth[rows], predicted[rows]).statistic:.2f}"
        for ax, values in ((axes[i], truth), (axes[3 + i], predicted)):
            np.testing.assert_allclose(circles(ax).get_facecolors(), expected_colours(values[rows], *ends), atol=0.01)
    assert [axes[k].get_ylabel() for k in (0, 3, 6, 9)] == ["gene5", "predicted", "gene6", "predicted"]
    # two sections on a line, each above its own prediction
    for i in range(3):
        assert axes[i].get_position().x0 == pytest.approx(axes[3 + i].get_position().x0)
    heights = [axes[k].get_position().y0 for k in (0, 3, 2, 5)]
    assert heights == sorted(heights, reverse=True)


def test_chosen_sections_in_their_order(tissue):
    axes = stfuse.pl.expression(tissue, "gene5", library_key="section", library_id=["section3", "section1"])
    assert [ax.get_title() for ax in axes[:2]] == ["section3", "section1"]


def test_counts_are_log_normalised_and_other_values_are_not(section, caplog):
    with caplog.at_level(logging.INFO, logger="stfuse"):
        by_counts = stfuse.pl.expression(section, "gene3")
    assert "X holds counts" in caplog.text and "predicted" not in caplog.text
    section.layers["counts"] = section.X.toarray().astype(np.int32)
    section.layers["mine"] = log_normalised(section)
    section.X = csr_matrix(section.layers["mine"] ** 2)
    for layer in ("counts", "mine"):
        axes = stfuse.pl.expression(section, "gene3", truth_layer=layer)
        np.testing.assert_allclose(circles(axes[0]).get_facecolors(), circles(by_counts[0]).get_facecolors(), atol=0.01)
    squared = stfuse.pl.expression(section, "gene3")
    assert bars(squared)[1][1] == pytest.approx((section.layers["mine"][:, 3] ** 2).max())


def test_a_gene_of_whole_numbers_in_a_matrix_of_others_is_no_count(section):
    values = log_normalised(section)
    values[:, 3] = np.arange(100) % 3
    section.X = values
    axes = stfuse.pl.expression(section, "gene3", vmin=0)
    assert bars(axes)[1] == pytest.approx((0, max(2, section.layers["predicted"][:, 3].max())))


def test_image_lies_below(tissue):
    adata = stfuse.datasets.mob()
    adata.layers["predicted"] = np.sqrt(adata.X.toarray() + 0.5)
    with_image = stfuse.pl.expression(adata, "Penk", library_key="section", library_id="MOB1")
    without = stfuse.pl.expression(adata, "Penk", library_key="section", library_id="MOB1", img=False)
    assert [len(ax.images) for ax in with_image] == [1, 1]
    assert [len(ax.images) for ax in without] == [0, 0]


def test_what_is_missing_is_grey_and_without_correlation(section):
    section.layers["predicted"][:10] = np.nan
    section.X = section.X.toarray()
    section.X[:, 4] = 0
    section.X[20] = 0  # an observation without counts
    axes = stfuse.pl.expression(section, ["gene3", "gene4"])
    section.X[20, 0] = 1
    truth = log_normalised(ad.AnnData(csr_matrix(section.X)))[:, 3]
    known = np.setdiff1d(np.arange(100), [*range(10), 20])
    r = pearsonr(truth[known], section.layers["predicted"][known, 3]).statistic
    assert [ax.get_title() for ax in axes[1::2]] == [f"predicted, r = {r:.2f}", "predicted, r not defined"]
    grey = np.all(np.isclose(circles(axes[1]).get_facecolors()[:, :3], 0xD3 / 255), axis=1)
    assert grey.sum() == 10 and grey[:10].all()
    assert [t.get_text() for t in axes[1].get_legend().get_texts()] == ["missing"]


# containers


def test_mudata_with_a_modality_of_fewer_observations(section):
    plain = stfuse.pl.expression(section[:60].copy(), "gene3")
    rna = section[:60].copy()
    image = ad.AnnData(section.obsm["X_image"], obs=pd.DataFrame(index=section.obs_names))
    image.obsm["spatial"] = section.obsm["spatial"]
    axes = stfuse.pl.expression(MuData({"rna": rna, "image": image}), "gene3")
    assert axes[1].get_title() == plain[1].get_title()
    assert len(circles(axes[0]).get_offsets()) == 100


def test_the_object_stays_as_it_is(tissue, contents, tmp_path):
    before = contents(tissue)
    stfuse.pl.expression(tissue, ["gene1"], library_key="section", save=tmp_path / "a.png")
    np.testing.assert_equal(contents(tissue), before)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("sections", "scale", "ncols"), [(1, "shared", 4), (1, "free", 4), (3, "shared", 2), (3, "free", 1), (3, "free", 4)]
)
def test_nothing_overlaps_and_nothing_is_cut_off(tissue, sections, scale, ncols):
    names = [f"section{i + 1}" for i in range(sections)]
    arguments = {"library_key": "section", "library_id": names, "scale": scale, "ncols": ncols}
    axes = stfuse.pl.expression(tissue, ["gene1", "gene2"], **arguments)
    figure = axes[0].figure
    figure.canvas.draw()
    boxes = []
    for ax in axes:
        boxes += [ax.get_window_extent(), ax.title.get_window_extent()]
        boxes += [ax.yaxis.label.get_window_extent()] if ax.get_ylabel() else []
        boxes += [child.get_tightbbox() for child in ax.child_axes]
    for i, a in enumerate(boxes):
        assert a.x0 >= -1 and a.y0 >= -1 and a.x1 <= figure.bbox.width + 1 and a.y1 <= figure.bbox.height + 1
        for b in boxes[i + 1 :]:
            overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(overlap) < 1.5


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"genes": "gen3"}, KeyError, "No gene 'gen3'.*Did you mean 'gene3'"),
        ({"genes": []}, ValueError, "genes is an empty list"),
        ({"genes": [3]}, KeyError, "No gene 3"),
        ({"predicted_layer": "prediction"}, KeyError, "'prediction'.*'predicted'.*stfuse.tl.predict_expression"),
        ({"truth_layer": "log"}, KeyError, "No layer 'log'"),
        ({"predicted_layer": None}, TypeError, "predicted_layer must be a string"),
        ({"scale": "same"}, ValueError, '"shared" or "free"'),
        ({"size": 0}, ValueError, "size must be a number above 0"),
        ({"alpha_img": 2}, ValueError, "alpha_img"),
        ({"library_id": "section9"}, KeyError, "section9"),
        ({"cmap": "nothing"}, KeyError, "nothing"),
        ({"spatial_key": "where"}, KeyError, "where"),
    ],
)
def test_bad_arguments(tissue, arguments, error, match):
    with pytest.raises(error, match=match):
        stfuse.pl.expression(tissue, **{"genes": "gene3", "library_key": "section", **arguments})
    assert not plt.get_fignums()


def test_bad_objects(section):
    section.layers["predicted"][:, 3] = np.nan
    with pytest.raises(ValueError, match="no value for 'gene3'.*reference"):
        stfuse.pl.expression(section, ["gene2", "gene3"])
    section.var_names = ["gene2"] * 60
    with pytest.raises(ValueError, match="var_names_make_unique"):
        stfuse.pl.expression(section, "gene2")
    with pytest.raises(TypeError, match="Expected AnnData"):
        stfuse.pl.expression(np.ones((3, 3)), "gene2")


@pytest.mark.parametrize(("scale", "wanted"), [("shared", [None]), ("free", ["log1p", None])])
def test_bars_name_the_unit_of_counts(section, scale, wanted):
    section.X = np.random.default_rng(0).poisson(2.0, section.shape).astype(np.float32)
    section.layers["predicted"] = section.X + 0.5
    section.layers["both"] = section.X.copy()

    def titles(**options):
        axes = stfuse.pl.expression(section, "gene2", scale=scale, **options)
        return [bar.get_title(loc="left") or None for ax in axes for bar in ax.child_axes]

    # one bar for two units says neither
    assert titles() == wanted
    assert titles(predicted_layer="both") == ["log1p"] * len(wanted)
