import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import EllipseCollection, PathCollection
from matplotlib.colors import to_hex
from mudata import MuData

import stfuse
from stfuse.pl._niche_map import SOFT


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def made():
    """Two sections, some cells without a domain, types with a slash in the name."""
    adata = stfuse.datasets.synthetic_tissue(400, 2, n_genes=20, seed=1)
    rng = np.random.default_rng(0)
    codes = adata.obs["domain"].cat.codes.to_numpy()
    kind = np.where(rng.random(400) < 0.6, codes % 6, rng.integers(0, 6, 400))
    adata.obs["type"] = pd.Categorical.from_codes(kind, ["T/NK", "B", "tumour", "stroma", "mast", "nerve"])
    adata.obs["domain"] = adata.obs["domain"].cat.add_categories("unassigned")
    adata.obs.loc[adata.obs_names[:20], "domain"] = "unassigned"
    stfuse.tl.niches(adata, "domain", cell_type_key="type", library_key="section", genes=False)
    return adata


@pytest.fixture
def cells(made):
    return made.copy()


def draw(cells, **arguments):
    return stfuse.pl.niche_map(cells, **{"library_key": "section", **arguments})


def rows(bars):
    return [text.get_text() for text in bars.get_yticklabels()]


def segments(bars):
    """Widths of the segments, by row and by colour."""
    found = {}
    for patch in bars.patches:
        row = rows(bars)[round(patch.get_y() + patch.get_height() / 2)]
        found.setdefault(row, {})[to_hex(patch.get_facecolor())] = patch.get_width()
    return found


def legend(bars):
    drawn = bars.get_legend()
    return {
        t.get_text(): to_hex(p.get_facecolor()) for t, p in zip(drawn.get_texts(), drawn.get_patches(), strict=True)
    }


def test_bars_are_the_composition(cells):
    *_, bars = draw(cells)
    record = cells.uns["niches"]
    table = record["composition"].set_axis(record["cell_types"], axis=1)
    colors, found = legend(bars), segments(bars)
    assert set(colors) == set(table.columns)
    assert set(found) == set(table.index)
    for domain in table.index:
        for kind in table.columns:
            assert found[domain][colors[kind]] == pytest.approx(table.loc[domain, kind])
    assert rows(bars)[-1] == "unassigned"
    texts = [text.get_text() for text in bars.texts]
    assert texts.count("no cell types") == 1
    for count in record["n_cells"].sum(axis=1):
        assert f"{count:,}" in texts


def test_colour_of_a_domain_is_that_of_the_map(cells):
    *panels, bars = draw(cells)
    assert [panel.get_title() for panel in panels] == ["section1", "section2"]
    dots = next(c for c in bars.collections if isinstance(c, PathCollection))
    tint = dict(zip(rows(bars), map(to_hex, dots.get_facecolors()), strict=True))
    assert [round(y) for _, y in dots.get_offsets()] == list(range(len(tint)))
    for panel in panels:
        here = cells[cells.obs["section"] == panel.get_title()]
        drawn = next(c for c in panel.collections if isinstance(c, EllipseCollection))
        order = [np.flatnonzero((here.obsm["spatial"] == place).all(axis=1))[0] for place in drawn.get_offsets()]
        assert [to_hex(c) for c in drawn.get_facecolors()] == [tint[d] for d in here.obs["domain"].iloc[order]]
    assert cells.uns["domain_colors"] == [tint[name] for name in cells.obs["domain"].cat.categories]
    assert "type_colors" not in cells.uns
    assert not set(tint.values()) & set(legend(bars).values())


def test_few_types_have_a_colour_of_their_own(cells):
    *_, bars = draw(cells, n_types=2)
    record = cells.uns["niches"]
    table = record["composition"].set_axis(record["cell_types"], axis=1)
    chosen = list(table.mean().sort_values(ascending=False).index[:2])
    colors = legend(bars)
    assert set(colors) == {*chosen, "4 others"}
    for domain, found in segments(bars).items():
        assert found[colors["4 others"]] == pytest.approx(1 - table.loc[domain, chosen].sum())
    assert set(legend(draw(cells, n_types=5)[-1])) > {"1 other"}


def test_colours_of_types(cells):
    own = ["#000001", "#000002", "#000003", "#000004", "#000005", "#000006"]
    names = list(cells.obs["type"].cat.categories)
    assert set(legend(draw(cells)[-1]).values()) <= set(SOFT)
    assert legend(draw(cells, type_palette=own)[-1]) == dict(zip(names, own, strict=True))
    cells.uns["type_colors"] = own[::-1]
    assert legend(draw(cells)[-1]) == dict(zip(names, own[::-1], strict=True))
    many = cells.obs["type"].astype(str) + (np.arange(400) % 4).astype(str)
    cells.obs["many"] = many.to_numpy()
    stfuse.tl.niches(cells, "domain", cell_type_key="many", genes=False)
    assert len(set(legend(draw(cells, n_types=24)[-1]).values())) == 24


def test_one_section_and_whole_numbers(cells):
    cells.obs["cluster"] = cells.obs["domain"].cat.codes
    stfuse.tl.niches(cells, "cluster", cell_type_key="type", genes=False, key_added="numbers")
    panel, bars = draw(cells, key="numbers", library_id="section2")
    assert panel.get_title() == "cluster"
    assert rows(bars) == [str(i) for i in sorted(cells.obs["cluster"].unique())]
    assert len(draw(cells, groupby="domain")) == 3


@pytest.mark.parametrize(("n_sections", "n_domains"), [(1, 3), (1, 25), (2, 3), (5, 12)])
def test_nothing_is_clipped_or_on_each_other(n_sections, n_domains, assert_not_clipped):
    cells = stfuse.datasets.synthetic_tissue(600, n_sections, n_genes=5)
    rng = np.random.default_rng(0)
    domains = [f"invasive margin of the tumour bed, compartment {i}" for i in range(n_domains)]
    types = [f"CD{i}+ activated regulatory/memory cell, subtype {i}" for i in range(20)]
    cells.obs["domain"] = pd.Categorical.from_codes(rng.integers(0, n_domains, 600), domains)
    cells.obs["type"] = pd.Categorical.from_codes(rng.integers(0, 20, 600), types)
    stfuse.tl.niches(cells, "domain", cell_type_key="type", genes=False, library_key="section")
    *panels, bars = draw(cells)
    assert_not_clipped(bars.figure)
    names = [text.get_window_extent() for text in bars.get_yticklabels()]
    assert min(name.x0 for name in names) > max(panel.get_window_extent().x1 for panel in panels)
    assert min(np.diff([name.y0 for name in names[::-1]])) > names[0].height - 1
    key = bars.get_legend().get_window_extent()
    numbers = [t.get_window_extent() for t in bars.texts if t.get_text().isdigit()]
    assert key.x0 > max(number.x1 for number in numbers)
    assert key.x1 <= bars.figure.bbox.width + 1
    assert key.y0 >= -1


def test_file_and_mudata(cells, tmp_path):
    expected = segments(draw(cells, save=tmp_path / "a.png", figsize=(12, 5))[-1])
    assert (tmp_path / "a.png").stat().st_size > 1000
    rna = cells.copy()
    record = rna.uns.pop("niches")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"rna": rna})
    mdata.uns["niches"] = record
    *panels, bars = draw(mdata)
    assert len(panels) == 2
    assert segments(bars) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": "nothing"}, KeyError, "No uns\\['nothing'\\] with niches"),
        ({"groupby": "section"}, KeyError, "niches of obs\\['domain'\\], not of 'section': call stfuse.tl.niches"),
        ({"n_types": 0}, ValueError, "n_types"),
        ({"library_id": "section9"}, KeyError, "Did you mean"),
        ({"spatial_key": "xy"}, KeyError, "coordinates"),
        ({"palette": ["red"]}, ValueError, "categories"),
        ({"type_palette": ["red"]}, ValueError, "categories"),
        ({"size": 0}, ValueError, "size"),
        ({"img": 1}, TypeError, "img"),
    ],
)
def test_bad_input(cells, arguments, error, message):
    with pytest.raises(error, match=message):
        draw(cells, **arguments)
    assert "domain_colors" not in cells.uns
    assert not plt.get_fignums()
