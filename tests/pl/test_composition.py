import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection

import stfuse


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def make(n_domains, n_types, *, long=False, n=2000):
    """Half of the cells of a domain have its own type."""
    rng = np.random.default_rng(0)
    domain = rng.integers(0, n_domains, n)
    kind = np.where(rng.random(n) < 0.5, domain * n_types // n_domains, rng.integers(0, n_types, n))
    domains, types = [f"D{i}" for i in range(n_domains)], [f"t/{i}" for i in range(n_types)]
    if long:
        domains = [f"invasive margin of the tumour bed, compartment {i}" for i in range(n_domains)]
        types = [f"CD{i}+ activated regulatory/memory cell, subtype {i}" for i in range(n_types)]
    obs = {"domain": pd.Categorical.from_codes(domain, domains), "type": pd.Categorical.from_codes(kind, types)}
    cells = ad.AnnData(obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(n)]))
    stfuse.tl.niches(cells, "domain", cell_type_key="type", genes=False)
    return cells


@pytest.fixture(scope="module")
def cells():
    return make(6, 9)


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def matrix(ax):
    return pd.DataFrame(ax.images[0].get_array(), index=labels(ax.yaxis), columns=labels(ax.xaxis))


def dots(ax):
    marks = [c for c in ax.collections if isinstance(c, PathCollection)]
    rows, columns = labels(ax.yaxis), labels(ax.xaxis)
    return {(rows[round(y)], columns[round(x)]) for c in marks for x, y in c.get_offsets()}


@pytest.mark.parametrize(("values", "name"), [("fraction", "composition"), ("enrichment", "enrichment")])
@pytest.mark.parametrize("cluster", [True, False])
def test_cells_of_the_matrix(cells, values, name, cluster):
    drawn = matrix(stfuse.pl.composition(cells, values=values, cluster=cluster))
    record = cells.uns["niches"]
    expected = record[name].set_axis(record["cell_types"], axis=1)
    np.testing.assert_allclose(drawn.loc[expected.index, expected.columns], expected)
    if not cluster:
        assert list(drawn.index) == [f"D{i}" for i in range(6)]
        assert list(drawn.columns) == [f"t/{i}" for i in range(9)]


def test_scales_of_colour(cells):
    record = cells.uns["niches"]
    norm = stfuse.pl.composition(cells).images[0].norm
    assert (norm.vmin, norm.vmax) == (0, min(0.5, record["composition"].max().max()))
    norm = stfuse.pl.composition(cells, values="enrichment").images[0].norm
    assert -norm.vmin == norm.vmax == record["enrichment"].max().max()
    image = stfuse.pl.composition(cells, vmax=0.2, cmap="Greys").images[0]
    assert image.norm.vmax == 0.2
    assert image.cmap.name == "Greys"


def test_dots_are_on_what_is_enriched(cells):
    record = cells.uns["niches"]
    types = record["cell_types"]
    for max_padj, min_fold in ((0.05, 1.0), (1.0, 0.0), (0.01, 1.5)):
        where = (record["padj"] < max_padj) & (record["enrichment"] > min_fold)
        expected = {(record["padj"].index[i], types[j]) for i, j in np.argwhere(where.to_numpy())}
        assert expected
        ax = stfuse.pl.composition(cells, max_padj=max_padj, min_fold=min_fold)
        assert dots(ax) == expected
    text = ax.get_legend().get_texts()[0].get_text()
    assert "2.83 times" in text
    assert "padj < 0.01" in text


def test_alike_domains_stand_together_and_types_beside_their_domain():
    cells = make(6, 6)
    cells.obs["domain"] = cells.obs["domain"].astype(str)
    twin = cells.obs["domain"] == "D1"
    cells.obs.loc[twin & (np.arange(2000) % 2 == 0), "domain"] = "twin"
    stfuse.tl.niches(cells, "domain", cell_type_key="type", genes=False)
    drawn = matrix(stfuse.pl.composition(cells))
    rows = list(drawn.index)
    assert abs(rows.index("D1") - rows.index("twin")) == 1
    at = drawn.to_numpy().argmax(axis=0)
    assert (np.diff(at) >= 0).all()  # the diagonal


def test_bars_are_the_cells_of_each_row(cells):
    ax = stfuse.pl.composition(cells)
    beside = next(child for child in ax.child_axes if child.patches)
    counts = cells.obs["domain"].value_counts().loc[labels(ax.yaxis)]
    assert [bar.get_width() for bar in beside.patches] == list(counts)
    assert [text.get_text() for text in beside.texts] == [f"{n:,}" for n in counts]
    assert beside.get_ylim() == ax.get_ylim()


@pytest.mark.parametrize(
    ("n_domains", "n_types", "long"), [(4, 3, True), (2, 2, False), (25, 30, True), (12, 20, False)]
)
def test_nothing_is_clipped(n_domains, n_types, long, assert_not_clipped):
    cells = make(n_domains, n_types, long=long)
    cells.uns["niches"]["params"] |= {"groupby": "sigmma_macro_domain", "cell_type_key": "cell_type_level_2_annotation"}
    for values in ("fraction", "enrichment"):
        ax = stfuse.pl.composition(cells, values=values)
        assert_not_clipped(ax.figure)
        boxes = [text.get_window_extent() for text in ax.get_yticklabels()]
        assert max(box.height for box in boxes) < np.diff([box.y0 for box in boxes[::-1]]).min() + 1


def test_own_axes_file_and_stored_object(cells, tmp_path):
    figure, axes = plt.subplots(1, 2)
    assert stfuse.pl.composition(cells, ax=axes[0]) is axes[0]
    assert len(figure.axes) == 2
    cells.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    drawn = [stfuse.pl.composition(data, save=tmp_path / "a.pdf") for data in (cells, back)]
    pd.testing.assert_frame_equal(*map(matrix, drawn))
    assert dots(drawn[0]) == dots(drawn[1])
    assert (tmp_path / "a.pdf").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": "nichs"}, KeyError, "Did you mean 'niches'.*stfuse.tl.niches"),
        ({"key": 3}, TypeError, "key must be"),
        ({"values": "zscore"}, ValueError, "'fraction' or 'enrichment'"),
        ({"cmap": "viridi"}, ValueError, "Did you mean 'viridis'"),
        ({"max_padj": 2}, ValueError, "max_padj"),
        ({"min_fold": "2"}, TypeError, "min_fold"),
        ({"vmax": 0}, ValueError, "vmax"),
        ({"cluster": 1}, TypeError, "cluster"),
        ({"figsize": 3}, TypeError, "figsize"),
        ({"save": "nowhere/a.png"}, FileNotFoundError, "no folder"),
    ],
)
def test_bad_input(cells, arguments, error, message):
    with pytest.raises(error, match=message):
        stfuse.pl.composition(cells, **arguments)
    assert not plt.get_fignums()
