import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from mudata import MuData

import stfuse
from stfuse.metrics import recall_at_percent
from stfuse.pl._color import PALETTE
from stfuse.pl._retrieval import spread

PERCENT = np.arange(1.0, 51)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def coded(n=120, seed=0, noise=(0.5, 2.0)):
    """Two methods: clip's codes of the two views are alike, those of mine less so; and codes that are not compared."""
    rng = np.random.default_rng(seed)
    adata = ad.AnnData(obs=pd.DataFrame({"section": np.repeat(["a", "b"], n // 2)}, index=[f"o{i}" for i in range(n)]))
    for name, level in zip(("mine", "clip"), noise[::-1], strict=True):
        code = rng.normal(size=(n, 5))
        adata.obsm[f"X_{name}_image"] = code
        adata.obsm[f"X_{name}_rna"] = code + level * rng.normal(size=(n, 5))
        adata.obsm[f"X_{name}_private_image"] = adata.obsm[f"X_{name}_private_rna"] = code
    adata.obsm["X_image"] = adata.obsm["X_half_image"] = rng.normal(size=(n, 4))
    return adata


def curve(ax, word):
    line = next(line for line in ax.lines if line.get_label() == word)
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_curves_are_recall_at_percent_in_both_directions():
    adata = coded()
    panels = stfuse.pl.retrieval(adata)
    assert [ax.get_title() for ax in panels] == ["image finds expression", "expression finds image"]
    for ax, query, reference in zip(panels, ("image", "rna"), ("rna", "image"), strict=True):
        for word, name in (("CLIP", "clip"), ("mine", "mine")):
            x, y = curve(ax, word)
            np.testing.assert_allclose(x, PERCENT)
            codes = adata.obsm[f"X_{name}_{query}"], adata.obsm[f"X_{name}_{reference}"]
            np.testing.assert_allclose(y, recall_at_percent(*codes, PERCENT.tolist()))
        x, y = curve(ax, "chance")
        np.testing.assert_allclose([x, y], [[0, 50], [0, 0.5]])
        assert not ax.collections and ax.get_ylim() == (0, 1)


def test_one_direction_and_own_axes():
    adata = coded()
    one = stfuse.pl.retrieval(adata, query="rna")
    assert isinstance(one, Axes) and one.get_title() == "expression finds image"
    figure, axes = plt.subplots(1, 2)
    out = stfuse.pl.retrieval(adata, query="image", ax=axes[1], title="mine", max_percent=10)
    assert out is axes[1] and len(figure.axes) == 2 and out.get_title() == "mine" and out.get_xlim() == (0, 10)


def test_sections_are_searched_by_themselves():
    adata = coded()
    ax = stfuse.pl.retrieval(adata, methods="mine", query="image", library_key="section")
    image, rna = adata.obsm["X_mine_image"], adata.obsm["X_mine_rna"]
    parts = np.array([recall_at_percent(image[r], rna[r], PERCENT.tolist()) for r in (slice(0, 60), slice(60, 120))])
    np.testing.assert_allclose(curve(ax, "mine")[1], parts.mean(0))
    band = ax.collections[0].get_paths()[0].vertices
    for x, low, high in zip(PERCENT, parts.min(0), parts.max(0), strict=True):
        edge = band[np.isclose(band[:, 0], x), 1]
        assert edge.min() == pytest.approx(low) and edge.max() == pytest.approx(high)


def test_several_objects():
    objects = [coded(seed=1), coded(80, seed=2)]
    del objects[1].obsm["X_clip_rna"]
    ax = stfuse.pl.retrieval(objects, query="image")
    assert words(ax) == ["mean of 2, band: lowest to highest", "chance", "mine"]  # what all have
    codes = [(a.obsm["X_mine_image"], a.obsm["X_mine_rna"]) for a in objects]
    expected = np.mean([recall_at_percent(*pair, PERCENT.tolist()) for pair in codes], axis=0)
    np.testing.assert_allclose(curve(ax, "mine")[1], expected)
    with pytest.raises(KeyError, match="'clip'.*in object 1"):
        stfuse.pl.retrieval(objects, methods=["mine", "clip"])


def test_pairs_without_a_code_are_left_out():
    adata = coded()
    expected = curve(stfuse.pl.retrieval(adata[40:].copy(), query="image"), "mine")[1]
    adata.obsm["X_mine_image"][:20], adata.obsm["X_mine_rna"][20:40] = np.nan, np.nan
    np.testing.assert_allclose(curve(stfuse.pl.retrieval(adata, methods="mine", query="image"), "mine")[1], expected)
    # a section in which no pair is left does not count
    adata.obsm["X_mine_rna"][:59] = np.nan
    by_section = stfuse.pl.retrieval(adata, methods="mine", query="image", library_key="section")
    whole = curve(stfuse.pl.retrieval(adata[60:].copy(), methods="mine", query="image"), "mine")[1]
    np.testing.assert_allclose(curve(by_section, "mine")[1], whole)


def test_the_object_stays_as_it_is_and_a_mudata_is_read_alike(contents):
    adata = coded()
    before = contents(adata)
    ax = stfuse.pl.retrieval(adata, query="image")
    np.testing.assert_equal(contents(adata), before)
    mdata = MuData({"rna": ad.AnnData(np.ones((120, 2)), obs=adata.obs[[]])})
    for key in ("X_clip_image", "X_clip_rna"):
        mdata.obsm[key] = adata.obsm[key]
    again = stfuse.pl.retrieval(mdata, query="image")
    assert words(again) == ["chance", "CLIP"]
    np.testing.assert_allclose(curve(again, "CLIP")[1], curve(ax, "CLIP")[1])


# names of curves


def test_names_stand_beside_their_curves_in_their_colours():
    adata = coded()
    ax = stfuse.pl.retrieval(adata, methods=["mine", "clip"], query="image")
    assert words(ax) == ["chance", "mine", "CLIP"]  # from below
    assert [to_hex(text.get_color()) for text in ax.texts[1:]] == [to_hex(c) for c in PALETTE[:2]]
    ax = stfuse.pl.retrieval(adata, methods=["mine", "clip"], query="image", palette={"mine": "red", "clip": "black"})
    assert to_hex(ax.texts[1].get_color()) == to_hex("red")
    assert to_hex(next(line for line in ax.lines if line.get_label() == "CLIP").get_color()) == to_hex("black")
    pale = stfuse.pl.retrieval(adata, methods="mine", query="image", palette=["#F0E442"]).texts[1].get_color()
    assert np.dot(pale, [0.299, 0.587, 0.114]) < 0.65


def test_names_of_many_curves_do_not_overlap(tmp_path):
    adata = coded()
    for i in range(8):
        for view in ("image", "rna"):
            adata.obsm[f"X_a_method_with_a_name_{i}_{view}"] = adata.obsm[f"X_clip_{view}"]
    panels = stfuse.pl.retrieval(adata, save=tmp_path / "a.pdf")
    figure = panels[0].figure
    figure.canvas.draw()
    boxes = [text.get_window_extent() for ax in panels for text in ax.texts]
    boxes += [ax.get_window_extent() for ax in panels] + [panels[1].yaxis.label.get_window_extent()]
    assert len(boxes) == 2 * 11 + 3
    for i, a in enumerate(boxes):
        assert a.x0 >= -1 and a.y0 >= -1 and a.x1 <= figure.bbox.width + 1 and a.y1 <= figure.bbox.height + 1
        for b in boxes[i + 1 :]:
            overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(overlap) < 1.5


def test_places_move_apart_as_little_as_possible():
    np.testing.assert_allclose(spread(np.array([0.1, 0.5, 0.9]), 0.1), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(spread(np.array([0.5, 0.5]), 0.1), [0.45, 0.55])
    np.testing.assert_allclose(spread(np.array([0.2, 0.98, 1.0, 1.0]), 0.1), [0.2, 0.8, 0.9, 1.0])
    np.testing.assert_allclose(spread(np.array([0.0, 0.0]), 0.1), [0.0, 0.1])


# bad input


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"methods": "clap"}, KeyError, r"X_clap_image.*Did you mean 'clip'.*'clip', 'mine'"),
        ({"methods": "half"}, KeyError, "No codes of both views of 'half'"),
        ({"methods": []}, ValueError, "empty list"),
        ({"methods": [3]}, TypeError, "methods must be a string"),
        ({"query": "text"}, ValueError, '"both", "image" or "rna"'),
        ({"max_percent": 101}, ValueError, "max_percent"),
        ({"library_key": "patient"}, KeyError, "patient"),
        ({"palette": ["red"]}, ValueError, "1 colours for 2"),
        ({"title": "one"}, ValueError, "title has 1 entries for 2 panels"),
        ({"data": []}, ValueError, "data is an empty list"),
        ({"data": 5}, TypeError, "Expected AnnData"),
        ({"save": 5}, TypeError, "save must be a path"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        stfuse.pl.retrieval(**{"data": coded(), **arguments})
    assert not plt.get_fignums()


def test_objects_without_pairs():
    adata = coded()
    adata.obsm["X_mine_image"][1:] = np.nan
    with pytest.raises(ValueError, match="'mine': too few observations"):
        stfuse.pl.retrieval(adata, methods="mine")
    for key in ("X_mine_rna", "X_clip_rna"):
        del adata.obsm[key]
    with pytest.raises(KeyError, match=r"No codes of both views.*stfuse\.tl\.pcca"):
        stfuse.pl.retrieval(adata)
    with pytest.raises(ValueError, match="one panel"):
        stfuse.pl.retrieval(coded(), ax=plt.subplots()[1])


def test_what_the_band_is():
    def words(data):
        return [text.get_text() for text in stfuse.pl.retrieval(data, methods="mine", query="image").texts]

    assert not any("band" in word for word in words(coded()))
    assert "mean of 3, band: lowest to highest" in words([coded()] * 3)
