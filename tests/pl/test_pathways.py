import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PathCollection

import stfuse


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def tissue():
    """Two sections whose scores differ in offset; "up" is higher in domain D1, "down" lower."""
    adata = stfuse.datasets.synthetic_tissue(300, 2, n_genes=20, seed=1)
    rng = np.random.default_rng(0)
    score = rng.normal(size=(300, 4))
    inside = (adata.obs["domain"] == adata.obs["domain"].cat.categories[0]).to_numpy()
    score[inside, 0] += 3
    score[inside, 1] -= 3
    score += 10.0 * adata.obs["section"].cat.codes.to_numpy()[:, None]
    names = ["SET_UP", "SET_DOWN", "SET_OTHER", "SET_MORE"]
    adata.obsm["score_progeny"] = pd.DataFrame(score, columns=names, index=adata.obs_names)
    return adata


def zscores(adata):
    score = adata.obsm["score_progeny"].copy()
    for name in adata.obs["section"].unique():
        rows = adata.obs["section"] == name
        score[rows] = (score[rows] - score[rows].mean()) / score[rows].std()
    return score


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def matrix(ax):
    return pd.DataFrame(ax.images[0].get_array(), index=labels(ax.yaxis), columns=labels(ax.xaxis))


def dots(ax, filled):
    """Cells that carry a mark, as (row, column)."""
    found = set()
    for marks in ax.collections:
        if (
            isinstance(marks, PathCollection) and (len(marks.get_paths()[0].codes) > 4) is filled
        ):  # a cross has four strokes
            found |= {(round(y), round(x)) for x, y in marks.get_offsets()}
    return found


# the matrix


def test_means_of_groups(tissue):
    ax = stfuse.pl.pathways(tissue, groupby="domain", library_key="section")
    assert isinstance(ax, Axes)
    expected = zscores(tissue).groupby(tissue.obs["domain"], observed=True).mean().T
    expected.index = expected.index.str.removeprefix("SET_")
    drawn = matrix(ax)
    assert list(drawn.columns) == list(tissue.obs["domain"].cat.categories)
    np.testing.assert_allclose(drawn.loc[expected.index], expected)
    norm = ax.images[0].norm
    assert norm.vmin == -norm.vmax
    assert ax.get_xlabel() == "domain"


def test_alike_pathways_stand_together_and_named_ones_in_their_order(tissue):
    score = tissue.obsm["score_progeny"]
    score["SET_UP2"] = score["SET_UP"] + 0.01
    rows = labels(stfuse.pl.pathways(tissue, groupby="domain").yaxis)
    assert abs(rows.index("UP") - rows.index("UP2")) == 1
    wanted = ["SET_OTHER", "SET_UP", "SET_DOWN"]
    ax = stfuse.pl.pathways(tissue, groupby="domain", pathways=wanted)
    assert labels(ax.yaxis) == ["OTHER", "UP", "DOWN"]
    ax = stfuse.pl.pathways(tissue, groupby="domain", cluster=False)
    assert labels(ax.yaxis) == ["UP", "DOWN", "OTHER", "MORE", "UP2"]
    assert labels(stfuse.pl.pathways(tissue, groupby="domain", pathways="SET_UP").yaxis) == ["SET_UP"]


def test_marks_follow_the_ranking(tissue):
    assert not dots(stfuse.pl.pathways(tissue, groupby="domain"), True)
    stfuse.tl.rank_pathways(tissue, "domain", library_key="section")
    table = tissue.uns["rank_pathways"]
    ax = stfuse.pl.pathways(tissue, groupby="domain", library_key="section", cluster=False, max_padj=0.9)
    rows, columns = list(tissue.obsm["score_progeny"]), list(tissue.obs["domain"].cat.categories)
    sure, torn = set(), set()
    for found in table.itertuples():
        if found.padj < 0.9:
            cell = rows.index(found.pathway), columns.index(found.group)
            (sure if found.n_sections == found.n_sections_agreeing else torn).add(cell)
    assert sure
    assert torn
    assert dots(ax, True) == sure
    assert dots(ax, False) == torn
    text = " ".join(entry.get_text() for entry in ax.get_legend().get_texts())
    assert "padj < 0.9" in text
    assert "sections disagree" in text


def test_ranking_of_other_scores_or_groups_is_not_drawn(tissue):
    tissue.obs["half"] = np.where(np.arange(300) < 150, "a", "b")
    stfuse.tl.rank_pathways(tissue, "domain")
    ax = stfuse.pl.pathways(tissue, groupby="half")
    assert ax.get_legend() is None
    assert stfuse.pl.pathways(tissue, groupby="domain", rank_key=None).get_legend() is None
    with pytest.raises(KeyError, match=r"'mine'.*stfuse.tl.rank_pathways\(data, 'domain'"):
        stfuse.pl.pathways(tissue, groupby="domain", rank_key="mine")


def test_marks_against_one_group(tissue):
    first = tissue.obs["domain"].cat.categories[0]
    stfuse.tl.rank_pathways(tissue, "domain", reference=first)
    ax = stfuse.pl.pathways(tissue, groupby="domain")
    assert all(column != 0 for _, column in dots(ax, True))
    assert f"against {first}" in ax.get_legend().get_texts()[0].get_text()


def test_marks_survive_a_file(tissue, tmp_path):
    stfuse.tl.rank_pathways(tissue, "domain", library_key="section")
    tissue.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    drawn = [dots(stfuse.pl.pathways(a, groupby="domain", library_key="section"), True) for a in (tissue, back)]
    assert drawn[0] == drawn[1]


def test_marks_can_be_seen_on_any_cell(tissue):
    stfuse.tl.rank_pathways(tissue, "domain")
    ax = stfuse.pl.pathways(tissue, groupby="domain", max_padj=1)
    image = ax.images[0]
    for marks in ax.collections:
        for (x, y), ink in zip(marks.get_offsets(), marks.get_edgecolors(), strict=True):
            cell = image.cmap(image.norm(image.get_array()[round(y), round(x)]))[:3]
            assert abs(np.mean(cell) - np.mean(ink[:3])) > 0.3


def test_an_extreme_group_does_not_make_the_others_fade(tissue):
    tissue.obsm["score_progeny"].iloc[0] += 1000
    tissue.obs["domain"] = tissue.obs["domain"].cat.add_categories("odd")
    tissue.obs.iloc[0, tissue.obs.columns.get_loc("domain")] = "odd"
    many = tissue.obs["domain"].astype(str) + np.where(np.arange(300) % 3, "i", "j")
    tissue.obs["many"] = many.where(tissue.obs["domain"] != "odd", "odd")
    ax = stfuse.pl.pathways(tissue, groupby="many", library_key="section")
    values = np.abs(matrix(ax).to_numpy())
    assert ax.images[0].norm.vmax == pytest.approx(min(values.max(), 2 * np.quantile(values, 0.9)))
    assert stfuse.pl.pathways(tissue, groupby="many", vmax=3).images[0].norm.vmax == 3


def texts_in(figure):
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for ax in figure.axes:
        for text in [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label]:
            if text.get_text() and text.get_visible():
                yield text, text.get_window_extent(renderer)
        if ax.get_legend() is not None:
            yield ax.get_legend(), ax.get_legend().get_window_extent(renderer)


@pytest.mark.parametrize(
    ("n_pathways", "n_groups", "word"),
    [
        (1, 1, "d"),
        (1, 6, "a kind of tissue "),
        (14, 4, "layer "),
        (50, 6, "domain "),
        (50, 30, "quite a long name "),
        (2, 30, ""),
    ],
)
def test_nothing_is_cut_or_overlaps(n_pathways, n_groups, word):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"group": [f"{word}{i % n_groups}" for i in range(240)]}, index=[f"c{i}" for i in range(240)])
    adata = ad.AnnData(obs=obs)
    names = [f"HALLMARK_{'A_LONG_NAME_OF_A_PATHWAY_' * (i % 2)}{i}" for i in range(n_pathways)]
    adata.obsm["score_progeny"] = pd.DataFrame(rng.normal(size=(240, n_pathways)), columns=names, index=obs.index)
    if n_groups > 1:
        if n_groups * n_pathways < 100:
            stfuse.tl.rank_pathways(adata, "group")
        ax = stfuse.pl.pathways(adata, groupby="group")
    else:
        with pytest.warns(UserWarning, match="one group"):
            ax = stfuse.pl.pathways(adata, groupby="group")
        assert ax.images[0].norm.vmax == 1  # what is left of rounding is not blown up
    figure = ax.figure
    boxes = list(texts_in(figure))
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    rows = [box for text, box in boxes if text in ax.get_yticklabels()]
    assert all(not a.overlaps(b) for i, a in enumerate(rows) for b in rows[:i])
    legend = ax.get_legend()
    if legend is not None:
        place = legend.get_window_extent(figure.canvas.get_renderer())
        assert not any(box.overlaps(place) for text, box in boxes if text is not legend)
        assert place.x0 >= ax.get_window_extent().x1


def test_observations_without_a_group_or_score(tissue):
    expected = matrix(stfuse.pl.pathways(tissue, groupby="domain", library_key="section", cluster=False))
    extra = tissue[:20].copy()
    extra.obs_names = [f"e{i}" for i in range(20)]
    extra.obsm["score_progeny"].loc[:] = np.nan
    both = ad.concat([tissue, extra])
    both.obs["domain"] = pd.Categorical(both.obs["domain"], tissue.obs["domain"].cat.categories)
    drawn = matrix(stfuse.pl.pathways(both, groupby="domain", library_key="section", cluster=False))
    pd.testing.assert_frame_equal(drawn, expected)
    both.obs["nothing"] = None
    with pytest.raises(ValueError, match="both a score and a group"):
        stfuse.pl.pathways(both, groupby="nothing")


def test_into_axes_and_files(tissue, tmp_path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    assert stfuse.pl.pathways(tissue, groupby="domain", ax=left, save=tmp_path / "x.png") is left
    assert len(plt.get_fignums()) == 1
    assert (tmp_path / "x.png").stat().st_size > 1000
    assert not right.images
    ax = stfuse.pl.pathways(tissue, groupby="domain", figsize=(8, 3))
    assert tuple(ax.figure.get_size_inches()) == (8, 3)


# on tissue


def test_on_tissue(tissue):
    before = tissue.copy()
    panels = stfuse.pl.pathways(tissue, pathways=["SET_UP", "SET_MORE"], library_key="section")
    assert len(panels) == 4
    z = zscores(tissue)
    limit = np.percentile(np.abs(z[["SET_UP", "SET_MORE"]]), 99)
    rows = np.flatnonzero(tissue.obs["section"] == tissue.obs["section"].cat.categories[0])
    circles = next(c for c in panels[0].collections if isinstance(c, EllipseCollection))
    expected = plt.get_cmap("RdBu_r")(np.clip(z["SET_UP"].to_numpy()[rows] / limit / 2 + 0.5, 0, 1))
    # circles are drawn in the order of the observations, as none is missing
    np.testing.assert_allclose(circles.get_facecolors()[:, :3], expected[:, :3], atol=0.01)
    assert list(tissue.obs) == list(before.obs)
    assert list(tissue.uns) == list(before.uns)


def test_one_panel_and_its_title(tissue):
    one = tissue[tissue.obs["section"] == tissue.obs["section"].cat.categories[0]].copy()
    ax = stfuse.pl.pathways(one, pathways="SET_UP")
    assert isinstance(ax, Axes)
    assert ax.get_title() == "SET_UP (SD)"


def test_those_that_vary_most_are_drawn(tissue):
    score = tissue.obsm["score_progeny"]
    for i in range(5):
        score[f"SET_{i}"] = score["SET_MORE"] * (10 + i)
    one = tissue[tissue.obs["section"] == tissue.obs["section"].cat.categories[0]].copy()
    titles = [ax.get_title() for ax in stfuse.pl.pathways(one)]
    assert titles[:5] == [f"SET_{i} (SD)" for i in (4, 3, 2, 1, 0)]
    assert len(titles) == 6
    assert titles[5] in ("SET_UP (SD)", "SET_DOWN (SD)")


def test_missing_scores_are_grey(tissue):
    tissue.obsm["score_progeny"].iloc[:10] = np.nan
    panels = stfuse.pl.pathways(tissue, pathways="SET_UP", library_key="section")
    legends = [ax.get_legend() for ax in panels if ax.get_legend() is not None]
    assert [text.get_text() for text in legends[0].get_texts()] == ["missing"]


def test_mudata_and_spatialdata(tissue):
    from mudata import MuData
    from spatialdata import SpatialData

    mdata = MuData({"rna": tissue})
    mdata.obsm["score_progeny"] = tissue.obsm["score_progeny"]
    sdata = SpatialData(tables={"table": tissue.copy()})
    for data, prefix in ((mdata, "rna:"), (sdata, "")):
        assert len(stfuse.pl.pathways(data, pathways="SET_UP", library_key=f"{prefix}section")) == 2
        ax = stfuse.pl.pathways(data, groupby=f"{prefix}domain", library_key=f"{prefix}section")
        assert labels(ax.xaxis) == list(tissue.obs["domain"].cat.categories)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"score_key": "score_progny"}, KeyError, "Did you mean 'score_progeny'"),
        ({"pathways": "SET_UPP"}, KeyError, "no pathway 'SET_UPP'. Did you mean 'SET_UP'"),
        ({"pathways": []}, KeyError, "no pathway named"),
        ({"groupby": "domains"}, KeyError, "Did you mean 'domain'"),
        ({"library_key": "slide"}, KeyError, "No obs column 'slide'"),
        ({"library_id": "s9", "library_key": "section"}, KeyError, "No section 's9'"),
        ({"spatial_key": "xy"}, KeyError, r"No obsm\['xy'\].*groupby="),
        ({"cmap": "RdBu_x"}, ValueError, "not a colour map.*Did you mean 'RdBu"),
        ({"vmax": 0}, ValueError, "vmax"),
        ({"max_padj": 2}, ValueError, "max_padj"),
        ({"cluster": "yes"}, TypeError, "cluster"),
        ({"groupby": "domain", "figsize": 3}, TypeError, "figsize"),
        ({"groupby": "domain", "save": "no/such/folder.png"}, FileNotFoundError, "no folder"),
    ],
)
def test_bad_arguments(tissue, arguments, error, message):
    with pytest.raises(error, match=message):
        stfuse.pl.pathways(tissue, **arguments)
    assert not plt.get_fignums()
