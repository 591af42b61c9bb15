"""Kriging over windows against dense equations of each observation, and against known fields."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from stfuse._kriging import LEAST_NOISE, Kriging
from stfuse._windows import cells_of_window, window_table

HALF = 2


def grid(side, kind="square"):
    row, column = (a.ravel().astype(float) for a in np.mgrid[:side, :side])
    if kind == "square":
        return np.column_stack([column, row])
    return np.column_stack([column + row % 2 / 2, np.sqrt(0.75) * row])


def window_group(xy, kind="square", half=HALF, section=None):
    """Neighbour table, each observation first, and the places of its cells."""
    section = np.zeros(len(xy), dtype=int) if section is None else section
    table = window_table(xy, section, 2 * half + 1).reshape(len(xy), -1)
    row, column = (part.ravel().astype(float) for part in cells_of_window(kind, half))
    places = np.column_stack([column, row])
    if kind == "hexagonal":
        places = np.column_stack([column + row / 2, np.sqrt(0.75) * row])
    middle = len(places) // 2
    order = np.r_[middle, np.delete(np.arange(len(places)), middle)]
    return table[:, order], places[order]


def field(xy, length, share, d, rng):
    """Signal of covariance exp(-distance / length) and variance ``share``, and the same with noise, variance 1 in all."""
    root = np.linalg.cholesky(np.exp(-cdist(xy, xy) / length) + 1e-9 * np.eye(len(xy)))
    signal = np.sqrt(share) * root @ rng.normal(size=(len(xy), d))
    return signal, signal + np.sqrt(1 - share) * rng.normal(size=(len(xy), d))


def literal(model, x, has, groups):
    """One dense system for each observation and feature."""
    out = np.full(x.shape, np.nan)
    for table, places in groups:
        for window in table:
            row = window[0]
            if not has[row]:
                continue
            cells = [c for c, other in enumerate(window) if other >= 0 and has[other]]
            distance = cdist(places[cells], places[cells])
            for j in range(x.shape[1]):
                covariance = model.signal[j] * np.exp(-distance / model.length[j])
                weights = np.linalg.solve(covariance + model.noise[j] * np.eye(len(cells)), covariance[0])
                out[row, j] = model.mean[j] + weights @ (x[window[cells], j] - model.mean[j])
    return out


@pytest.mark.parametrize("kind", ["square", "hexagonal"])
def test_each_observation_is_what_its_equations_say(kind):
    rng = np.random.default_rng(0)
    xy = grid(14, kind)
    xy = xy[rng.random(len(xy)) > 0.15]  # holes
    x = field(xy, 3.0, 0.6, 4, rng)[1].astype(np.float32) + 5
    has = rng.random(len(xy)) > 0.1
    x[~has] = np.nan
    groups = [window_group(xy, kind)]
    model = Kriging.fit(x, has, groups)
    found = model(x, has, groups)
    assert found.dtype == np.float32 and (model.signal > 0).all()
    np.testing.assert_allclose(found, literal(model, x, has, groups), atol=1e-4)
    np.testing.assert_array_equal(np.isnan(found).any(1), ~has)


def test_several_blocks_of_equations(monkeypatch):
    rng = np.random.default_rng(1)
    xy = grid(12)[rng.permutation(144)[:110]]
    x = field(xy, 3.0, 0.6, 2, rng)[1]
    has, groups = np.ones(len(xy), dtype=bool), [window_group(xy)]
    model = Kriging.fit(x, has, groups)
    whole = model(x, has, groups)
    monkeypatch.setattr("stfuse._kriging.BLOCK", 3 * 25**2 * 2)
    np.testing.assert_allclose(model(x, has, groups), whole, atol=1e-6)


@pytest.mark.parametrize(("length", "share"), [(2.0, 0.8), (4.0, 0.5), (8.0, 0.3)])
def test_a_known_field_is_recovered(length, share):
    rng = np.random.default_rng(2)
    xy = grid(40)
    # estimates from one field scatter: many of one kind
    signal, x = field(xy, length, share, 12, rng)
    has, groups = np.ones(len(xy), dtype=bool), [window_group(xy, half=3)]
    model = Kriging.fit(x, has, groups)
    assert np.median(model.signal / (model.signal + model.noise)) == pytest.approx(share, abs=0.12)
    assert length / 2 < np.median(model.length) < length * 2

    found = model(x, has, groups)
    error = ((found - signal) ** 2).mean()
    table, places = groups[0]
    others = [x]
    for reach in (1, 2, 3):  # means of the neighbours
        near = table[:, (np.abs(places) <= reach).all(1)]
        others.append(np.nanmean(np.where((near >= 0)[..., None], x[near], np.nan), axis=1))
    errors = [((guess - signal) ** 2).mean() for guess in others]
    assert error < 0.97 * min(errors), (error, errors)
    # what the true covariance would give is hardly better
    truth = Kriging(model.mean, np.full(12, share), np.full(12, 1 - share), np.full(12, length))
    assert error < 1.1 * ((truth(x, has, groups) - signal) ** 2).mean()


def test_what_neighbours_do_not_share_shrinks_to_its_mean():
    rng = np.random.default_rng(3)
    xy = grid(30)
    x = rng.normal(size=(900, 20)) + 3
    has, groups = np.ones(900, dtype=bool), [window_group(xy)]
    model = Kriging.fit(x, has, groups)
    found = model(x, has, groups)
    assert (model.signal / (model.signal + model.noise)).mean() < 0.05
    assert (found.std(0) / x.std(0)).mean() < 0.1
    np.testing.assert_allclose(found.mean(0), x.mean(0), atol=0.05)


def test_what_all_neighbours_share_stays():
    xy = grid(20)
    x = np.column_stack([np.sin(xy[:, 0] / 9), xy[:, 1]])
    has, groups = np.ones(400, dtype=bool), [window_group(xy)]
    model = Kriging.fit(x, has, groups)
    assert (model.signal > 0.9 * x.var(0)).all() and (model.noise >= LEAST_NOISE * x.var(0) - 1e-12).all()
    found = model(x, has, groups)
    assert all(np.corrcoef(found[:, j], x[:, j])[0, 1] > 0.99 for j in range(2))


def test_unit_and_shift_change_nothing():
    rng = np.random.default_rng(4)
    xy = grid(15)
    x = field(xy, 3.0, 0.6, 3, rng)[1]
    has, groups = np.ones(225, dtype=bool), [window_group(xy)]
    unit, shift = np.array([1e-3, 7.0, 1e4]), np.array([2.0, -30.0, 5.0])
    one, two = Kriging.fit(x, has, groups), Kriging.fit(x * unit + shift, has, groups)
    np.testing.assert_array_equal(one.length, two.length)
    np.testing.assert_allclose(one.signal * unit**2, two.signal, rtol=1e-6)
    found = two(x * unit + shift, has, groups)
    np.testing.assert_allclose((found - shift) / unit, one(x, has, groups), atol=5e-3)


def test_missing_rows_tell_nothing():
    """They are neither read nor written, whatever stands in them."""
    rng = np.random.default_rng(5)
    xy = grid(12)
    x = field(xy, 3.0, 0.6, 2, rng)[1].astype(np.float32)
    has = rng.random(144) > 0.3
    groups = [window_group(xy)]
    absent, other = x.copy(), x.copy()
    absent[~has], other[~has] = np.nan, 1e6
    one, two = Kriging.fit(absent, has, groups), Kriging.fit(other, has, groups)
    np.testing.assert_array_equal(one.signal, two.signal)
    np.testing.assert_array_equal(one(absent, has, groups), two(other, has, groups))
    assert np.isnan(one(absent, has, groups)[~has]).all()
    # as if they were not there
    (table, places), number = groups[0], np.where(has, np.cumsum(has) - 1, -1)
    rest = [(np.where(table >= 0, number[table], -1)[has], places)]
    alone = Kriging.fit(x[has], np.ones(has.sum(), dtype=bool), rest)
    np.testing.assert_allclose(alone.signal, one.signal, rtol=1e-5)
    np.testing.assert_allclose(alone(x[has], np.ones(has.sum(), dtype=bool), rest), one(x, has, groups)[has], atol=1e-5)


def test_sections_stay_apart():
    """What lies in another section changes nothing once the covariance is known, though places are the same."""
    rng = np.random.default_rng(6)
    xy = np.vstack([grid(10), grid(10)])
    section = np.repeat([0, 1], 100)
    x = rng.normal(size=(200, 2))
    has, groups = np.ones(200, dtype=bool), [window_group(xy, section=section)]
    model = Kriging(np.zeros(2), np.full(2, 0.7), np.full(2, 0.3), np.full(2, 3.0))
    before = model(x, has, groups)
    x[100:] += 50
    np.testing.assert_array_equal(model(x, has, groups)[:100], before[:100])
    assert np.abs(model(x, has, groups)[100:] - before[100:]).min() > 1


def test_groups_of_different_lattices():
    """Pairs at all distances count together, and every observation is found."""
    rng = np.random.default_rng(7)
    parts = [grid(16), grid(16, "hexagonal")]
    x = np.vstack([field(xy, 4.0, 0.7, 6, rng)[1] for xy in parts])
    (square, a), (hexagonal, b) = window_group(parts[0]), window_group(parts[1], "hexagonal")
    groups = [(square, a), (np.where(hexagonal >= 0, hexagonal + 256, -1), b)]
    has = np.ones(512, dtype=bool)
    model = Kriging.fit(x, has, groups)
    np.testing.assert_allclose(model(x, has, groups), literal(model, x, has, groups), atol=1e-4)


@pytest.mark.parametrize("n", [1, 2])
def test_observations_alone(n):
    """Without any pair nothing can be said to be shared."""
    x = np.arange(2.0 * n).reshape(n, 2)
    groups = [(np.column_stack([np.arange(n), np.full(n, -1)]), np.array([[0.0, 0.0], [1.0, 0.0]]))]
    has = np.ones(n, dtype=bool)
    model = Kriging.fit(x, has, groups)
    assert not model.signal.any() and np.isfinite(model.length).all()
    np.testing.assert_allclose(model(x, has, groups), np.tile(x.mean(0), (n, 1)))


def test_a_constant_feature():
    xy = grid(8)
    x = np.column_stack([np.full(64, 4.0), np.random.default_rng(0).normal(size=64)])
    has, groups = np.ones(64, dtype=bool), [window_group(xy)]
    model = Kriging.fit(x, has, groups)
    np.testing.assert_array_equal(model(x, has, groups)[:, 0], np.full(64, 4.0))
