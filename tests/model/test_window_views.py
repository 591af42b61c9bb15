"""Windows of real lattices, and a view on its way into them."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from stfuse._kriging import Kriging
from stfuse._views import read_views
from stfuse.model._window_views import ViewInput, Windows


def lattice(kind, side=9):
    row, column = (a.ravel().astype(float) for a in np.mgrid[:side, :side])
    if kind == "square":
        return np.column_stack([column, row])
    return np.column_stack([column + row % 2 / 2, np.sqrt(0.75) * row])


def views_of(places, section=None, d=3, seed=0):
    rng = np.random.default_rng(seed)
    n = len(places)
    adata = AnnData(obs=pd.DataFrame({"section": section or ["a"] * n}, index=[f"spot{i}" for i in range(n)]))
    adata.obsm["spatial"] = places
    for key in ("X_image", "X_pca"):
        adata.obsm[key] = rng.normal(size=(n, d)).astype(np.float32)
    return adata, read_views(adata, library_key="section")


@pytest.mark.parametrize("window_size", [3, 5, 7])
@pytest.mark.parametrize("kinds", [("square",), ("hexagonal",), ("square", "hexagonal"), ("hexagonal", "hexagonal")])
def test_cells_lie_where_kriging_is_told(kinds, window_size):
    """Between an observation and one in a cell of its window lies what the table of places says, in spacings."""
    unit = [70.0, 110.0][: len(kinds)]
    places = np.vstack([u * lattice(kind) for kind, u in zip(kinds, unit, strict=True)])
    order = np.random.default_rng(0).permutation(len(places))
    section = np.repeat(np.arange(len(kinds)), 81)[order]
    _, views = views_of(places[order], [str(s) for s in section])
    windows = Windows(views, window_size)
    assert len(windows.groups) == len(set(kinds)) and windows.placed.all() and not windows.doubled.any()
    seen = []
    for table, cells in windows.groups:
        assert cells.shape == (window_size**2, 2) and not cells[0].any()
        seen += table[:, 0].tolist()
        for row, other in zip(*np.nonzero(table >= 0), strict=True):
            start, stop = table[row, 0], table[row, other]
            assert section[start] == section[stop]
            away = (views.places[stop] - views.places[start]) / unit[section[start]]
            # rows may run either way along the picture: distances are what kriging uses
            assert np.linalg.norm(away) == pytest.approx(np.linalg.norm(cells[other]), abs=1e-6)
        # a whole window: distances between its cells as well
        whole = table[(table >= 0).all(1)][0]
        real = views.places[whole] / unit[section[whole[0]]]
        np.testing.assert_allclose(
            np.linalg.norm(real[:, None] - real, axis=2), np.linalg.norm(cells[:, None] - cells, axis=2), atol=1e-6
        )
    assert sorted(seen) == list(range(len(places)))


@pytest.mark.parametrize("window_size", [3, 5])
def test_the_ring_is_what_lies_next(window_size):
    _, views = views_of(lattice("square"))
    windows = Windows(views, window_size)
    distance = np.abs(views.places[:, None] - views.places).max(2)
    for row, ring in enumerate(windows.ring):
        assert set(ring[ring >= 0]) == set(np.flatnonzero(distance[row] == 1))


def test_a_window_of_one():
    _, views = views_of(lattice("square"))
    windows = Windows(views, 1)
    np.testing.assert_array_equal(windows.table, np.arange(81)[:, None])
    assert windows.ring.shape == (81, 0) and not windows.groups


def test_places_on_the_array_as_they_are():
    """Of the columns of a row every second one is there: the published windows are half empty."""
    adata, _ = views_of(lattice("hexagonal"))
    row, column = (a.ravel() for a in np.mgrid[:9, :9])
    adata.obs["array_row"], adata.obs["array_col"] = row, 2 * column + row % 2
    views = read_views(adata)
    windows = Windows(views, 3, believe_array=True)
    middle = 40
    expected = [
        np.flatnonzero((views.array == views.array[middle] + [a, b]).all(1)) for a in (-1, 0, 1) for b in (-1, 0, 1)
    ]
    assert windows.table[middle].tolist() == [int(found[0]) if len(found) else -1 for found in expected]
    assert (windows.table[middle] >= 0).sum() == 5
    assert (Windows(views, 3).table[middle] >= 0).all()


# -- one view ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("n_comps", [None, 2, 5])
def test_what_was_fitted_is_what_new_data_get(n_comps, smoothed):
    _, views = views_of(lattice("hexagonal"), d=5)
    x, has = views.rna.copy(), np.random.default_rng(1).random(81) > 0.2
    x[~has] = np.nan
    windows = Windows(views, 5)
    view, features, scaled = ViewInput.fit(x, has, windows, n_comps, smoothed=smoothed)
    np.testing.assert_array_equal(view.transform(x, has, windows), scaled)
    assert np.isnan(scaled[~has]).all() and np.isfinite(scaled[has]).all()
    np.testing.assert_array_equal(features.has, has)
    if n_comps in (None, 5):
        assert view.scaler is None
        np.testing.assert_array_equal(features.raw[has], x[has])
    else:
        assert features.raw.shape == (81, 2)
    raw = features.raw[has]
    low, high = raw.min(0), raw.max(0)
    if smoothed:
        expected = Kriging.fit(features.raw, has, windows.groups)(features.raw, has, windows.groups)
        np.testing.assert_allclose(features.smooth, expected, atol=1e-6)
        # scaled by the range before smoothing
        np.testing.assert_allclose(scaled[has], (expected[has] - low) / (high - low), atol=1e-6)
        assert 0 <= view.signal_share() < 1
    else:
        np.testing.assert_array_equal(features.smooth, features.raw)
        np.testing.assert_allclose(scaled[has].min(0), 0, atol=1e-6)
        np.testing.assert_allclose(scaled[has].max(0), 1, atol=1e-6)
    np.testing.assert_allclose(view.typical, np.median(scaled[has], axis=0), atol=1e-6)


def test_new_data_without_the_view():
    _, views = views_of(lattice("square"))
    has, windows = np.ones(81, dtype=bool), Windows(views, 3)
    view, _, _ = ViewInput.fit(views.rna, has, windows, 2, smoothed=True)
    absent = view.transform(np.full((81, 0), np.nan, np.float32), ~has, windows)
    assert absent.shape == (81, 2) and np.isnan(absent).all()


def test_new_data_beyond_the_range_of_training():
    """They are not cut off."""
    _, views = views_of(lattice("square"))
    has, windows = np.ones(81, dtype=bool), Windows(views, 3)
    view, _, _ = ViewInput.fit(views.rna, has, windows, None, smoothed=False)
    span = np.ptp(views.rna, axis=0)
    np.testing.assert_allclose(
        view.transform(views.rna + span, has, windows), view.transform(views.rna, has, windows) + 1, atol=1e-5
    )
