from itertools import product

import numpy as np
import pytest
from anndata import read_h5ad
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from stfuse._windows import cells_of_window, doubled, section_lattices, window_table

KINDS = ["square", "hexagonal"]


def turned(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, s], [-s, c]])


def upright(kind, n_rows, n_columns):
    row, column = (a.ravel() for a in np.mgrid[:n_rows, :n_columns])
    if kind == "square":
        return np.column_stack([column, row]).astype(float), np.column_stack([column, row])
    xy = np.column_stack([column + row % 2 / 2, np.sqrt(0.75) * row])
    return xy, np.column_stack([row, 2 * column + row % 2])


def offset(kind, i, j):
    """Where the cell of a window is, in spacings from its middle: odd rows are half a cell aside, to + above."""
    if kind == "square":
        return np.array([j, i])
    return np.array([j + 0.5 * np.sign(i) * (abs(i) % 2), np.sqrt(0.75) * i])


def literal_on_lattice(xy, section, width, kind, degrees):
    half, n = width // 2, len(xy)
    table = np.full((n, width, width), -1)
    for a in range(n):
        for i, j in product(range(-half, half + 1), repeat=2):
            wanted = xy[a] + offset(kind, i, j) @ turned(degrees)
            for b in np.flatnonzero((section == section[a]) & (np.linalg.norm(xy - wanted, axis=1) < 0.4)):
                table[a, i + half, j + half] = b
    return table


def literal_free(xy, section, width, spacing):
    half, n = width // 2, len(xy)
    table = np.full((n, width, width), -1)
    in_order = sorted(np.flatnonzero(np.isfinite(xy).all(axis=1)), key=lambda b: (xy[b][0], xy[b][1], b))
    for a in range(n):
        best = {}
        for b in in_order if np.isfinite(xy[a]).all() else []:
            if section[a] != section[b]:
                continue
            away = (xy[b] - xy[a]) / spacing[section[a]]
            j, i = (int(np.floor(v + 0.5)) for v in away)
            distance = np.linalg.norm(away - [j, i])
            if max(abs(i), abs(j)) <= half and distance < best.get((i, j), (np.inf, -1))[0]:
                best[i, j] = (distance, b)
        for (i, j), (_, b) in best.items():
            table[a, i + half, j + half] = b
        table[a, half, half] = a
    return table


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 3),
    st.sampled_from([1, 3, 5, 7]),
    st.floats(0, 0.25),
    st.floats(-9, 9),
    st.booleans(),
    st.integers(0, 999),
)
def test_windows_on_lattices_are_those_of_a_literal_loop(kind, n_sections, width, holes, degrees, with_array, seed):
    """Sections share their coordinates, each has its own holes, rows are shuffled."""
    rng = np.random.default_rng(seed)
    n_sections = 1 if width == 7 else n_sections
    one, array = upright(kind, 8, 8)
    one = (one + rng.normal(0, 0.03, one.shape)) @ turned(degrees)
    xy, section = np.tile(one, (n_sections, 1)), np.repeat(5 * np.arange(n_sections) - 2, len(one))
    kept = rng.permutation(len(xy))[: round(len(xy) * (1 - holes))]
    xy, section, array = xy[kept], section[kept], np.tile(array, (n_sections, 1))[kept]
    table = window_table(xy, section, width, array if with_array else None)
    assert table.dtype == np.int32
    np.testing.assert_array_equal(table, literal_on_lattice(xy, section, width, kind, degrees))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 3),
    st.sampled_from([1, 3, 5, 7]),
    st.sampled_from(["even", "clumps", "few places", "line"]),
    st.integers(0, 999),
)
def test_free_windows_are_those_of_a_literal_loop(n, n_sections, width, how, seed):
    rng = np.random.default_rng(seed)
    xy, section = rng.random((n, 2)), rng.integers(0, n_sections, n)
    if how == "clumps":
        xy = xy**4
    elif how == "few places":
        xy = xy[rng.integers(0, n, n)]
    elif how == "line":
        xy[:, 1] = 0.3 * xy[:, 0]
    xy[rng.random(n) < 0.05] = np.nan
    lattices = section_lattices(xy, section)
    # of some dozen places at random, five in a thousand look like a lattice
    assume({found.kind for found in lattices.values()} == {"free"})
    spacing = {code: np.nan_to_num(found.spacing, nan=1.0) for code, found in lattices.items()}
    expected = literal_free(xy, section, width, spacing)
    np.testing.assert_array_equal(window_table(xy, section, width, lattices=lattices), expected)
    np.testing.assert_array_equal(window_table(xy, section, width), expected)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([*KINDS, "free"]), st.integers(0, 999), st.sampled_from([3, 5]))
def test_order_of_rows_unit_and_shift_do_not_matter(kind, seed, width):
    rng = np.random.default_rng(seed)
    xy = rng.random((200, 2)) * 14 if kind == "free" else upright(kind, 14, 14)[0] + rng.normal(0, 0.05, (196, 2))
    section = rng.integers(0, 2, len(xy))
    xy[rng.random(len(xy)) < 0.02] = np.nan
    table = window_table(xy, section, width)
    order = rng.permutation(len(xy))
    rank = np.append(np.argsort(order), -1)  # -1 stays -1
    for scale, shift in ((1, 0), (1e-6, 0), (0.2125, 1e3), (1e7, -5e8)):
        other = window_table((scale * xy + shift)[order], section[order], width)
        np.testing.assert_array_equal(other, rank[table][order])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_section_has_the_same_neighbours(kind, degrees):
    xy, _ = upright(kind, 9, 9)
    section = np.zeros(len(xy), int)
    own, other = (window_table(places, section, 3) for places in (xy, xy @ turned(degrees)))
    if kind == "square":
        np.testing.assert_array_equal(np.sort(own.reshape(-1, 9)), np.sort(other.reshape(-1, 9)))
    else:  # the two corners of the window lie elsewhere, the six neighbours are in both
        near = [cKDTree(xy).query_ball_point(place, 1.1) for place in xy]
        assert all(set(rows) <= set(table[a].ravel()) for table in (own, other) for a, rows in enumerate(near))


@pytest.mark.parametrize("width", [3, 5, 7, 9])
def test_hexagonal_windows_are_compact_and_symmetric(width):
    half = width // 2
    row, column = cells_of_window("hexagonal", half)
    places = np.stack([row, column], -1) @ np.array([[0.5, np.sqrt(0.75)], [1, 0]])
    np.testing.assert_allclose(places, -places[::-1, ::-1], atol=1e-12)
    distance = np.linalg.norm(places, axis=-1)
    # neighbours in the window are neighbours on the tissue
    for axis in (0, 1):
        np.testing.assert_allclose(np.linalg.norm(np.diff(places, axis=axis), axis=-1), 1)
    i, j = np.mgrid[-half : half + 1, -half : half + 1]
    axial = np.sqrt(i**2 + j**2 + i * j).mean()
    by_parity = np.hypot(j + i % 2 / 2, np.sqrt(0.75) * i).mean()
    assert distance.mean() <= min(axial, by_parity) + 1e-12
    if width == 5:
        assert (distance.mean().round(2), axial.round(2)) == (1.77, 1.84)


def test_who_shares_a_cell_has_a_window_and_is_in_no_other():
    xy, _ = upright("square", 6, 6)
    xy = np.concatenate([xy, xy[14:15]])
    section = np.zeros(len(xy), int)
    table = window_table(xy, section, 3)
    np.testing.assert_array_equal(np.flatnonzero(doubled(section, section_lattices(xy, section))), [36])
    assert (table == 36).sum() == 1
    expected = table[14].copy()
    expected[1, 1] = 36
    np.testing.assert_array_equal(table[36], expected)
    far = np.concatenate([section[:-1], [1]])
    assert not doubled(far, section_lattices(xy, far)).any()
    assert (window_table(xy, far, 3)[36] >= 0).sum() == 1


def test_observations_without_coordinates_and_sections_of_one():
    xy, _ = upright("hexagonal", 6, 6)
    xy, section = np.concatenate([xy, [[np.nan, 1], [2, 2], [0, 0], [0, 7]]]), np.array([0] * 37 + [1, 9, 9])
    table = window_table(xy, section, 5)
    own = np.full((5, 5), -1)
    for row in (36, 37):
        own[2, 2] = row
        np.testing.assert_array_equal(table[row], own)
    own[2, 2], own[3, 2] = 38, 39
    np.testing.assert_array_equal(table[38], own)
    assert not np.isin(table[:36], range(36, 40)).any()


def test_nobody():
    assert window_table(np.empty((0, 2)), np.empty(0, int), 3).shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("size", "error", "words"),
    [
        (4, ValueError, "must be odd"),
        (0, ValueError, "at least 1"),
        (-3, ValueError, "at least 1"),
        (3.0, TypeError, "whole"),
    ],
)
def test_windows_without_a_middle_are_refused(size, error, words):
    with pytest.raises(error, match=f"window_size must be .*{words.removeprefix('must be ')}"):
        window_table(np.zeros((3, 2)), np.zeros(3, int), size)


def test_cortex(shared_data):
    """All six neighbours of a spot inside of the tissue are in its window of 3, with array positions and without."""
    adata = read_h5ad(shared_data / "dlpfc" / "dlpfc_151673.h5ad")
    xy, section = adata.obsm["spatial"], np.zeros(adata.n_obs, int)
    array = adata.obs[["array_row", "array_col"]].to_numpy()
    tables = [window_table(xy, section, 5, given_array) for given_array in (None, array)]
    np.testing.assert_array_equal(*tables)
    distance, near = cKDTree(xy).query(xy, k=7)
    inside = distance[:, 6] < 1.3 * np.median(distance[:, 1])
    assert inside.mean() > 0.9
    small = tables[0][:, 1:4, 1:4].reshape(-1, 9)
    assert all(set(near[a]) <= set(small[a]) for a in np.flatnonzero(inside))
    assert (small[inside] >= 0).mean() > 0.99
    assert (tables[0] >= 0).mean() > 0.95
    # the naive match of array positions
    places = {tuple(place) for place in array}
    naive = [(r + i, c + j) in places for r, c in array for i, j in product(range(-2, 3), repeat=2)]
    assert np.mean(naive) < 0.53


@pytest.mark.parametrize("name", ["A1", "B4"])
def test_breast_on_a_square_lattice(shared_data, name):
    adata = read_h5ad(shared_data / "her2st" / f"her2st_{name}.h5ad")
    xy, array = adata.obsm["spatial"], adata.obs[["array_x", "array_y"]].to_numpy()
    table = window_table(xy, np.zeros(adata.n_obs, int), 3)
    rows = {tuple(place): row for row, place in enumerate(array.tolist())}
    expected = [[[rows.get((x + j, y + i), -1) for j in (-1, 0, 1)] for i in (-1, 0, 1)] for x, y in array.tolist()]
    np.testing.assert_array_equal(table, expected)
    interior = (table[:, [0, 1, 1, 2], [1, 0, 2, 1]] >= 0).all(axis=1)
    assert (table[interior] >= 0).mean() > 0.95


def test_cells_of_a_tumour(shared_data):
    adata = read_h5ad(shared_data / "xenium_breast_17k.h5ad")
    xy = adata.obsm["spatial"]
    table = window_table(xy, np.zeros(adata.n_obs, int), 5)
    assert (table >= 0).mean() > 0.6
    sorted_rows = np.sort(table.reshape(len(table), -1), axis=1)
    assert not ((sorted_rows[:, 1:] == sorted_rows[:, :-1]) & (sorted_rows[:, 1:] >= 0)).any()
    some = np.arange(0, len(xy), 2000)
    spacing = section_lattices(xy, np.zeros(len(xy), int))[0].spacing
    for a in some:
        around = np.flatnonzero((np.abs(xy - xy[a]) < 2.6 * spacing).all(axis=1))
        at = int(np.flatnonzero(around == a)[0])
        expected = literal_free(xy[around], np.zeros(len(around), int), 5, {0: spacing})[at]
        np.testing.assert_array_equal(table[a], np.append(around, -1)[expected])
