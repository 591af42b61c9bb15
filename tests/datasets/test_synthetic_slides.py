"""The truth that is made: tumour tiles tell the signals, nothing else of a tile does, and RNA tells its own part."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import cross_val_predict

from stfuse.datasets import synthetic_slides, synthetic_tiles

N = 150


@pytest.fixture(scope="module")
def made():
    return synthetic_slides(N, n_tiles=(20, 60), seed=1)


def told(features, signals):
    """How well each signal is told, out of fold (R2)."""
    found = cross_val_predict(RidgeCV(np.logspace(-1, 5, 13)), features, signals, cv=5)
    return r2_score(signals, found, multioutput="raw_values")


def means(tiles, rows, names):
    table = pd.DataFrame(tiles.obsm["X_image"][rows]).groupby(tiles.obs["slide"].to_numpy()[rows], observed=True).mean()
    return table.reindex(names).to_numpy()


def test_tumour_tiles_tell_what_both_see_and_what_slides_alone_see(made):
    slides, tiles = made
    tumour = (tiles.obs["tissue"] == "tumour").to_numpy()
    signals = np.hstack([slides.obsm["shared"], slides.obsm["private_image"]])
    assert told(means(tiles, tumour, slides.obs_names), signals).min() > 0.5
    assert told(means(tiles, tumour, slides.obs_names), slides.obsm["private_rna"]).max() < 0.1
    # the mean of all tiles, in unknown shares, tells less of every one
    everything = np.ones(tiles.n_obs, bool)
    assert (told(means(tiles, everything, slides.obs_names), signals) < 0.8).all()


def test_other_tiles_tell_nothing(made):
    slides, tiles = made
    others = (tiles.obs["tissue"] != "tumour").to_numpy()
    some = slides.obs_names.isin(tiles.obs["slide"][others].unique())
    signals = np.hstack([slides.obsm["shared"], slides.obsm["private_image"]])
    assert told(means(tiles, others, slides.obs_names)[some], signals[some]).max() < 0.1


def test_genes_tell_what_both_see_and_what_they_alone_see(made):
    slides, _ = made
    assert told(slides.X, np.hstack([slides.obsm["shared"], slides.obsm["private_rna"]])).min() > 0.7
    assert told(slides.X, slides.obsm["private_image"]).max() < 0.1


def test_neither_view_tells_all_of_the_subtype(made):
    slides, _ = made
    label = (slides.obs["subtype"] == "A").to_numpy()
    own = {view: np.hstack([slides.obsm["shared"], slides.obsm[f"private_{view}"]]) for view in ("image", "rna")}
    score = {
        view: roc_auc_score(
            label, cross_val_predict(LogisticRegression(), x, label, cv=5, method="predict_proba")[:, 1]
        )
        for view, x in (own | {"both": np.hstack(list(own.values()))}).items()
    }
    assert score["both"] > 0.95 > 0.93 > max(score["image"], score["rna"]) and min(score.values()) > 0.75


def test_survival_follows_the_risk():
    slides, _ = synthetic_slides(2000, n_tiles=(1, 2), n_genes=5, seed=3)
    obs = slides.obs
    assert (obs["months"] > 0).all() and 0.2 < obs["event"].mean() < 0.8
    early = obs["risk"] > obs["risk"].median()
    assert obs["months"][early].median() < 0.6 * obs["months"][~early].median()
    # age tells nothing
    assert abs(np.corrcoef(obs["age"], obs["risk"])[0, 1]) < 0.08


def test_shares_places_and_sizes(made):
    slides, tiles = made
    counts = tiles.obs["slide"].value_counts().reindex(slides.obs_names)
    assert counts.min() >= 20 and counts.max() <= 60 and counts.nunique() > 20
    share = (tiles.obs["tissue"] == "tumour").groupby(tiles.obs["slide"], observed=True).mean()
    assert share.min() > 0 and share.mean() == pytest.approx(0.3, abs=0.06) and share.std() > 0.1
    for _, rows in list(tiles.obs.groupby("slide", observed=True).indices.items())[:5]:
        xy = tiles.obsm["spatial"][rows]
        assert len(np.unique(xy, axis=0)) == len(xy) and ((xy - 128) % 256 == 0).all()
        # a tile that touches it is tumour more often than chance has it: the tumour lies together
    near = [neighbours_alike(tiles, rows) for rows in tiles.obs.groupby("slide", observed=True).indices.values()]
    assert np.nanmean(near) > 1.3


def neighbours_alike(tiles, rows):
    """How many times more often than chance the right neighbour of a tumour tile is tumour too."""
    tumour = dict(
        zip(map(tuple, tiles.obsm["spatial"][rows]), tiles.obs["tissue"].to_numpy()[rows] == "tumour", strict=True)
    )
    right = [tumour[x + 256, y] for (x, y), is_tumour in tumour.items() if is_tumour and (x + 256, y) in tumour]
    return np.mean(right) / np.mean(list(tumour.values())) if right else np.nan


def test_slides_with_one_view():
    slides, tiles = synthetic_slides(40, n_tiles=(2, 4), n_genes=6, paired=0.5, seed=2)
    no_rna = np.isnan(slides.X).all(1)
    assert np.array_equal(no_rna, np.isnan(slides.X).any(1)) and no_rna.sum() == 10
    no_tiles = ~slides.obs_names.isin(tiles.obs["slide"].unique())
    assert no_tiles.sum() == 10 and not (no_rna & no_tiles).any()
    whole, all_tiles = synthetic_slides(40, n_tiles=(2, 4), n_genes=6, seed=2)
    np.testing.assert_array_equal(slides.X[~no_rna], whole.X[~no_rna])
    assert not np.isnan(whole.X).any() and all_tiles.obs["slide"].nunique() == 40


def test_the_seed_decides():
    first, second, other = (synthetic_slides(6, n_tiles=(2, 5), n_genes=4, seed=s) for s in (0, 0, 1))
    for a, b, c in zip(first, second, other, strict=True):
        pd.testing.assert_frame_equal(a.obs, b.obs)
        key = "X_image" if "X_image" in a.obsm else "shared"
        np.testing.assert_array_equal(a.obsm[key], b.obsm[key])
        assert a.obsm[key].shape != c.obsm[key].shape or (a.obsm[key] != c.obsm[key]).any()


def test_tiles_of_named_slides_without_noise():
    """Without noise and stain two tumour tiles of a slide are one, and their differences between slides are linear in the signal."""
    signal = np.array([[1.0], [-2.0], [0.5]])
    tiles = synthetic_tiles(
        signal, [7, 8, 9], n_tiles=(6, 6), n_features=5, stain=0, noise=0, strength=3.0, slide_key="who"
    )
    assert list(tiles.obs["who"].cat.categories) == ["7", "8", "9"] and tiles.n_obs == 18
    tumour = (tiles.obs["tissue"] == "tumour").to_numpy()
    rows = [np.flatnonzero(tumour & (tiles.obs["who"] == name)) for name in "789"]
    x = tiles.obsm["X_image"]
    for own in rows:
        np.testing.assert_array_equal(x[own], x[own[:1]].repeat(own.size, 0))
    per_unit = (x[rows[0][0]] - x[rows[1][0]]) / 3
    np.testing.assert_allclose(x[rows[2][0]] - x[rows[0][0]], -0.5 * per_unit, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_slides": 0}, "n_slides"),
        ({"n_slides": 2.0}, "n_slides"),
        ({"n_genes": 0}, "n_genes"),
        ({"n_tiles": (0, 3)}, "n_tiles"),
        ({"n_tiles": (4, 3)}, "n_tiles"),
        ({"n_tiles": 3}, "n_tiles must be a pair"),
        ({"n_image_features": 0}, "n_features"),
        ({"n_shared": 1}, "n_shared"),
        ({"n_private": 0}, "n_private"),
        ({"paired": 1.2}, "paired"),
        ({"noise": -1.0}, "noise"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        synthetic_slides(**({"n_slides": 4, "n_genes": 3, "n_tiles": (2, 3)} | arguments))


@pytest.mark.parametrize(
    ("signal", "arguments", "message"),
    [
        (np.zeros(3), {}, "slides x signals of finite numbers, its shape is \\(3,\\)"),
        (np.full((3, 1), np.nan), {}, "finite"),
        (np.zeros((0, 2)), {}, "slides x signals"),
        (np.zeros((3, 1)), {"names": ["a", "b"]}, "names must be 3 different ones, got 2"),
        (np.zeros((3, 1)), {"names": ["a", "b", "a"]}, "2 of them different"),
        (np.zeros((3, 1)), {"tumour_share": 0}, "tumour_share"),
        (np.zeros((3, 1)), {"strength": -1}, "strength"),
        (np.zeros((3, 1)), {"stain": np.inf}, "stain"),
    ],
)
def test_bad_tiles(signal, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        synthetic_tiles(signal, **arguments)
