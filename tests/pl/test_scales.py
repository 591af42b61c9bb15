import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex

import stfuse
from stfuse.pl._color import PALETTE, Color
from stfuse.pl._scales import SCALES, matched, partners


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def made():
    """Stripes of four, two and two domains; coarse numbers run the other way, and the last stripe is new at the macro scale."""
    adata = stfuse.datasets.synthetic_tissue(400, 2, n_genes=5)
    x = adata.obsm["spatial"][:, 0]
    stripe = np.searchsorted(np.quantile(x, [0.2, 0.5, 0.7]), x)
    adata.obs[SCALES[0]] = pd.Categorical(stripe.astype(str))
    adata.obs[SCALES[1]] = pd.Categorical(np.array(["2", "1", "1", "0"])[stripe])
    adata.obs[SCALES[2]] = pd.Categorical(np.array(["left", "left", "right", "right"])[stripe])
    return adata


@pytest.fixture
def cells(made):
    return made.copy()


def draw(cells, *arguments, **named):
    return stfuse.pl.scales(cells, *arguments, **{"library_key": "section", **named})


def legend(ax):
    return {h.get_label(): to_hex(h.get_color()) for h in ax.get_legend().legend_handles}


def test_colours_go_with_the_scale_before(cells):
    before = cells.copy()
    axes = draw(cells, library_id="section1")
    assert [ax.get_title() for ax in axes] == ["micro", "meso", "macro"]
    micro, meso, macro = map(legend, axes)
    assert list(micro.values()) == [to_hex(color) for color in PALETTE[:4]]
    # 0.2, 0.3, 0.2 and 0.3 of the cells: "1" of meso is stripes 1 and 2, of which 1 is larger
    assert meso == {"2": micro["0"], "1": micro["1"], "0": micro["3"]}
    assert macro["right"] == meso["0"]
    assert macro["left"] == meso["1"]
    assert list(cells.uns) == list(before.uns)


def test_cells_have_the_colours_of_the_legend(cells):
    cells.obs[SCALES[1]] = cells.obs[SCALES[1]].cat.add_categories("unassigned")
    cells.obs.loc[cells.obs_names[:30], SCALES[1]] = "unassigned"
    cells.obs.loc[cells.obs_names[30:40], SCALES[1]] = None
    axes = draw(cells)
    assert [ax.get_title() for ax in axes] == ["section1", "section2"] * 3
    assert [ax.get_ylabel() for ax in axes] == ["micro", "", "meso", "", "macro", ""]
    for key, line in zip(SCALES, itertools.batched(axes, 2), strict=True):
        tint = legend(line[1])
        for ax in line:
            here = cells[cells.obs["section"] == ax.get_title()]
            drawn = next(c for c in ax.collections if isinstance(c, EllipseCollection))
            order = [np.flatnonzero((here.obsm["spatial"] == place).all(axis=1))[0] for place in drawn.get_offsets()]
            labels = here.obs[key].astype(object).iloc[order]
            assert [to_hex(c) for c in drawn.get_facecolors()] == [
                tint["missing" if pd.isna(name) else name] for name in labels
            ]
    assert legend(axes[3])["unassigned"] == "#9e9e9e"


def test_kept_and_given_colours_begin(cells):
    own = ["#111111", "#222222", "#333333", "#444444"]
    assert list(legend(draw(cells, palette=own, library_id="section1")[0]).values()) == own
    cells.uns[f"{SCALES[0]}_colors"] = own
    cells.uns[f"{SCALES[1]}_colors"] = ["#aaaaaa", "#bbbbbb", "#cccccc"]
    micro, meso, _ = map(legend, draw(cells, library_id="section1"))
    assert list(micro.values()) == own
    assert meso["2"] == "#111111"
    assert cells.uns[f"{SCALES[1]}_colors"] == ["#aaaaaa", "#bbbbbb", "#cccccc"]
    apart = list(map(legend, draw(cells, library_id="section1", match=False)))
    assert list(apart[1].values()) == ["#aaaaaa", "#bbbbbb", "#cccccc"]


def test_what_is_new_has_a_new_colour(cells):
    rng = np.random.default_rng(0)
    coarse, fine = (pd.Categorical(rng.integers(0, n, 400).astype(str)) for n in (3, 14))
    cells.obs["coarse"], cells.obs["fine"] = coarse, fine
    first, second = map(legend, draw(cells, ["coarse", "fine"], library_id="section1"))
    assert len(set(second.values())) == 14
    cells.obs["same"] = "all"
    first, second, third = map(legend, draw(cells, ["coarse", "same", "fine"], library_id="section1"))
    assert second["all"] in first.values()
    assert len(set(third.values()) - set(second.values()) - set(first.values())) >= 11
    many = [
        Color(name, pd.Categorical(np.arange(400) * n // 400), {})._replace(
            colors={str(i): PALETTE[i] for i in range(3)}
        )
        for name, n in (("coarse", 3), ("each", 100))
    ]
    assert len(set(matched(many)[1].colors.values())) == 100 + 1  # and "unassigned"


def test_partners_keep_most_cells():
    """As good as the best of all ways to pair."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        before, after = (pd.Categorical(rng.integers(0, 4, 60).astype(str)) for _ in range(2))
        shared = pd.crosstab(np.asarray(before), np.asarray(after)).to_numpy()
        best = max(shared[range(4), list(order)].sum() for order in itertools.permutations(range(4)))
        pairs = partners(before, after)
        found = sum(shared[int(old), int(new)] for new, old in pairs.items())
        dropped = 4 - len(pairs)
        assert best - dropped * 0.1 * 60 <= found <= best
    few = pd.Categorical(["a"] * 30 + ["b"]), pd.Categorical(["x"] * 15 + ["y"] * 15 + ["x"])
    assert partners(*few) in ({"x": "a"}, {"y": "a"})  # "b" shares one cell in 16 with "x"
    nothing = pd.Categorical(["a", None]), pd.Categorical([None, "x"])
    assert partners(*nothing) == {}
    unassigned = pd.Categorical(["unassigned"] * 9 + ["a"]), pd.Categorical(["x"] * 9 + ["y"])
    assert partners(*unassigned) == {"y": "a"}


def test_titles(cells):
    cells.obs["a"], cells.obs["b_domain"] = cells.obs[SCALES[0]], cells.obs[SCALES[1]]

    def titles(*keys, **named):
        return [ax.get_title() for ax in draw(cells, keys, library_id="section1", **named)]

    assert titles("a", "b_domain") == ["a", "b_domain"]
    assert titles(SCALES[0], "b_domain") == ["sigmma_micro", "b"]
    assert titles(SCALES[0], SCALES[1], titles=["fine", "coarse"]) == ["fine", "coarse"]
    cells.obs["sigmma_domain"] = cells.obs["a"]
    assert titles(SCALES[0], "sigmma_domain") == [SCALES[0], "sigmma_domain"]


@pytest.mark.parametrize("section", [None, "section1"])
def test_nothing_is_clipped(cells, section, assert_not_clipped):
    cells.obs["a_very_long_name_of_a_column_with_domains"] = cells.obs[SCALES[0]].cat.rename_categories(
        lambda name: f"invasive margin of the tumour bed {name}"
    )
    axes = draw(cells, [*SCALES, "a_very_long_name_of_a_column_with_domains"], library_id=section, ncols=3)
    assert_not_clipped(axes[0].figure)
    keys = [ax.get_legend().get_window_extent() for ax in axes if ax.get_legend()]
    assert len(keys) == 4
    for key, ax in itertools.product(keys, axes):
        box = ax.get_window_extent()
        overlap = min(key.x1, box.x1) - max(key.x0, box.x0), min(key.y1, box.y1) - max(key.y0, box.y0)
        assert min(overlap) < 1.5


def test_file_and_no_legend(cells, tmp_path):
    axes = draw(cells, library_id="section1", legend=False, save=tmp_path / "a.png")
    assert all(ax.get_legend() is None for ax in axes)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groupby": [SCALES[0], "sigmma_mesi_domain"]}, KeyError, "Did you mean 'sigmma_meso_domain'"),
        ({"groupby": SCALES[0]}, TypeError, "groupby must be a list"),
        ({"groupby": [SCALES[0]]}, ValueError, "stfuse.pl.spatial draws a single one"),
        ({"groupby": [SCALES[0], SCALES[0]]}, ValueError, "more than once"),
        ({"groupby": [SCALES[0], "x"]}, ValueError, "decimal numbers"),
        ({"titles": ["a"]}, ValueError, "titles has 1 entries for 3 scales"),
        ({"match": 1}, TypeError, "match"),
        ({"palette": ["red"]}, ValueError, "categories"),
        ({"library_id": "section9"}, KeyError, "Did you mean"),
        ({"ncols": 0}, ValueError, "ncols"),
    ],
)
def test_bad_input(cells, arguments, error, message):
    cells.obs["x"] = cells.obsm["spatial"][:, 0] + 0.5
    with pytest.raises(error, match=message):
        draw(cells, **arguments)
    assert not plt.get_fignums()
