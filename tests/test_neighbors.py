import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfuse._neighbors import section_neighbors


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
