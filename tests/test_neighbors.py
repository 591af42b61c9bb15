import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfuse._neighbors import neighborhood_mean, section_neighbors, warn_if_small


def _literal(spatial, section, k):
    """Squared distances to the k nearest others of the section, smallest first."""
    out = []
    for i in range(len(section)):
        others = [j for j in range(len(section)) if section[j] == section[i] and j != i]
        out.append(sorted(np.linalg.norm(spatial[i] - spatial[j]) for j in others)[:k])
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 7), st.integers(0, 999), st.sampled_from([2, 5, 1000]))
def test_neighbors_are_those_of_a_literal_loop(n, n_sections, k, seed, grid):
    rng = np.random.default_rng(seed)
    # a coarse grid puts many points on the same place
    spatial, section = rng.integers(0, grid, (n, 2)).astype(float), rng.integers(0, n_sections, n)
    table = section_neighbors(spatial, section, k)
    assert table.shape == (n, k)
    for i, expected in enumerate(_literal(spatial, section, k)):
        found = table[i, : len(expected)]
        assert (section[table[i]] == section[i]).all()
        assert i not in found
        assert len(set(found)) == len(found)
        np.testing.assert_allclose([np.linalg.norm(spatial[i] - spatial[j]) for j in found], expected)
        assert (table[i, len(expected) :] == i).all()


def test_many_coincident_points():
    table = section_neighbors(np.zeros((20, 2)), np.zeros(20, int), 6)
    assert all(i not in row and len(set(row)) == 6 for i, row in enumerate(table))


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single(n):
    np.testing.assert_array_equal(section_neighbors(np.zeros((n, 2)), np.zeros(n, int), 3), np.zeros((n, 3), int))


def test_the_order_of_rows_does_not_matter():
    """At the border of a lattice many are equally far."""
    xy = np.stack(np.meshgrid(np.arange(9.0), np.arange(7.0)), -1).reshape(-1, 2)
    section = np.zeros(len(xy), int)
    order = np.random.default_rng(0).permutation(len(xy))
    rank = np.argsort(order)
    expected = section_neighbors(xy, section, 6)
    np.testing.assert_array_equal(order[section_neighbors(xy[order], section, 6)][rank], expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 7), st.integers(0, 999), st.sampled_from([2, 5, 1000]))
def test_neighbors_among_some_are_those_of_a_literal_loop(n, n_sections, k, seed, grid):
    rng = np.random.default_rng(seed)
    spatial, section = rng.integers(0, grid, (n, 2)).astype(float), rng.integers(0, n_sections, n)
    among = rng.random(n) < 0.6
    table = section_neighbors(spatial, section, k, among)
    for i in range(n):
        others = [j for j in range(n) if section[j] == section[i] and j != i and among[j]]
        expected = sorted(np.linalg.norm(spatial[i] - spatial[j]) for j in others)[:k]
        found = table[i, : len(expected)]
        assert set(found) <= set(others) and len(set(found)) == len(found)
        np.testing.assert_allclose([np.linalg.norm(spatial[i] - spatial[j]) for j in found], expected)
        assert (table[i, len(expected) :] == i).all()


def literal_mean(values, has, spatial, section, k):
    """One observation after the other, as one would say it; places must not be equally far."""
    out = np.full(values.shape, np.nan)
    for i in range(len(values)):
        there = [j for j in range(len(values)) if j != i and section[j] == section[i] and has[j]]
        there = sorted(there, key=lambda j: np.hypot(*(spatial[i] - spatial[j])))[:k]
        if has[i] or there:
            out[i] = np.mean([values[j] for j in ([i] if has[i] else []) + there], axis=0)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "n_sections", "k"), [(90, 3, 10), (60, 20, 4), (40, 1, 1), (7, 1, 50), (1, 1, 3)])
def test_mean_is_that_of_a_literal_loop(n, n_sections, k, dtype, monkeypatch):
    monkeypatch.setattr("stfuse._neighbors.BLOCK", 16)
    rng = np.random.default_rng(n)
    values, spatial = rng.normal(100, 1, (n, 5)).astype(dtype), rng.uniform(size=(n, 2))
    section, has = rng.integers(0, n_sections, n), rng.random(n) < 0.7
    values[~has] = np.nan
    expected = literal_mean(values.astype(float), has, spatial, section, k)
    for array in (values, np.asfortranarray(values)):
        found = neighborhood_mean(array, has, spatial, section, k)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_small_sections_are_told():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_small(np.array([0] * 5 + [2]), ["a", "empty", "single"], 3)
    with pytest.warns(UserWarning, match=r"1 section\(s\).*n_neighbors \+ 1 = 5 observations \(for example 'b': 5\)"):
        warn_if_small(np.array([0] * 6 + [1] * 5), ["a", "b"], 4)
