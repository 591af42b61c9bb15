import numpy as np
import pytest
from anndata import read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st

import stfuse
from stfuse._lattice import lattice

AXES = {"square": np.array([[0, 1.0], [1, 0]]), "hexagonal": np.array([[0.5, np.sqrt(0.75)], [1, 0]])}


def turned(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, s], [-s, c]])


def grid(kind, n_rows, n_columns, *, holes=0.0, jitter=0.0, degrees=0.0, scale=1.0, seed=0):
    """Coordinates and true cells (row, column; axial if hexagonal) of a rectangle of tissue, rows shuffled."""
    rng = np.random.default_rng(seed)
    row, column = (a.ravel() for a in np.mgrid[:n_rows, :n_columns])
    cells = np.column_stack([row, column - row // 2 if kind == "hexagonal" else column])
    cells = rng.permutation(cells)[: max(1, round(len(cells) * (1 - holes)))]
    xy = cells @ AXES[kind] + rng.normal(0, jitter, cells.shape)
    return scale * xy @ turned(degrees), cells


def assert_same_lattice(cells, true):
    """The cells are the true ones after a shift and a change to other axes of the same lattice."""
    design = np.column_stack([true, np.ones(len(true))])
    change = np.linalg.lstsq(design, cells.astype(float), rcond=None)[0]
    np.testing.assert_allclose(design @ change, cells, atol=1e-6)
    np.testing.assert_allclose(change[:2], change[:2].round(), atol=1e-6)
    assert abs(np.linalg.det(change[:2])) == pytest.approx(1)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["square", "hexagonal"]),
    st.integers(8, 40),
    st.integers(8, 40),
    st.floats(0, 0.3),
    st.floats(0, 0.06),
    st.floats(0, 360),
    st.sampled_from([1e-6, 0.37, 1.0, 140.0, 1e7]),
    st.integers(0, 999),
)
def test_a_lattice_is_found_in_coordinates(kind, n_rows, n_columns, holes, jitter, degrees, scale, seed):
    """However it is turned, with holes and jitter, in any unit and far from the origin."""
    xy, true = grid(kind, n_rows, n_columns, holes=holes, jitter=jitter, degrees=degrees, scale=scale, seed=seed)
    found = lattice(xy + 1e4 * scale)
    assert found.kind == kind
    assert found.spacing == pytest.approx(scale, rel=0.05)
    assert_same_lattice(found.cells, true)
    assert found.placed.all()
    assert found.holds.all()


def test_a_large_lattice_does_not_slip():
    """A stretch that each step hardly shows is many spacings over the section."""
    xy, true = grid("hexagonal", 300, 300, holes=0.1, jitter=0.08, degrees=12)
    assert_same_lattice(lattice(xy * [1, 1.08]).cells, true)


@pytest.mark.parametrize(("kind", "upright"), [("square", 0), ("square", 45), ("hexagonal", 0), ("hexagonal", 90)])
def test_sections_that_lie_a_little_differently_have_the_same_axes(kind, upright):
    first = None
    for degrees in (-8, -2, 0, 2, 8):
        xy, _ = grid(kind, 20, 20, jitter=0.03, degrees=upright + degrees)
        cells = lattice(xy).cells
        axes = np.linalg.lstsq(np.column_stack([cells, np.ones(len(cells))]), xy, rcond=None)[0][:2]
        row, column = np.rad2deg(np.arctan2(axes[:, 1], axes[:, 0]))
        assert column == pytest.approx(column if first is None else first + degrees + 8, abs=1)
        first = column if first is None else first
        assert -31 < column < 61
        assert row - column == pytest.approx({"square": 90, "hexagonal": 60}[kind], abs=2)


def test_upright_lattices_have_rows_along_y_and_columns_along_x():
    for kind in ("square", "hexagonal"):
        xy, true = grid(kind, 12, 9)
        cells = lattice(xy).cells
        np.testing.assert_array_equal(cells - cells[0], true - true[0])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["square", "hexagonal", "free"]), st.integers(0, 99), st.booleans())
def test_unit_shift_and_order_of_rows_change_nothing(kind, seed, with_array):
    rng = np.random.default_rng(seed)
    if kind == "free":
        xy, array = rng.random((300, 2)), rng.integers(0, 30, (300, 2))
    else:
        xy, array = grid(kind, 15, 18, holes=0.2, jitter=0.05, degrees=seed, seed=seed)
        xy = np.concatenate([xy, xy[:5] + 0.1, xy[7:9], [[np.nan, 0.0]]])  # some share a cell, some a place
        array = np.concatenate([array, array[:5], array[7:9], [[0, 0]]])
    array = array if with_array else None
    base = lattice(xy, array)
    order = rng.permutation(len(xy))
    other = lattice(0.2125 * xy[order] - 35.5, None if array is None else array[order])
    assert (other.kind, base.kind) == (kind, kind)
    assert other.spacing == pytest.approx(0.2125 * base.spacing)
    if kind == "free":
        return
    np.testing.assert_array_equal(other.cells, base.cells[order])
    # which of two in exactly one place holds it is a matter of the order
    apart = np.ones(len(xy), dtype=bool)
    apart[[7, 8, -3, -2]] = False
    np.testing.assert_array_equal(other.holds[apart[order]], base.holds[order][apart[order]])
    assert base.doubled.sum() == other.doubled.sum() == 7


def visium(n_rows=14, n_columns=12, **options):
    xy, cells = grid("hexagonal", n_rows, n_columns, **options)
    row = cells[:, 0]
    return xy, cells, np.column_stack([row, 2 * cells[:, 1] + row])


def test_array_positions_of_visium_become_dense():
    xy, true, array = visium(holes=0.2, seed=3)
    assert set(array.sum(axis=1) % 2) == {0}
    for given_array in (array, array[:, ::-1], array * [1, -1], array.astype(float), array + 1001):
        found = lattice(xy, given_array)
        assert found.kind == "hexagonal"
        assert found.spacing == pytest.approx(1)
        np.testing.assert_array_equal(found.cells - found.cells[0], true - true[0])


def test_array_positions_help_where_coordinates_are_bent_or_few():
    xy, true, array = visium(30, 30)
    bent = xy + np.column_stack([2.5 * np.sin(xy[:, 1] / 8), 2 * np.cos(xy[:, 0] / 9)])
    assert_same_lattice(lattice(bent, array).cells, true)
    few = np.flatnonzero((np.abs(true - [5, 5]) <= 1).all(axis=1))[:5]
    assert lattice(xy[few]).kind == "free"
    assert lattice(xy[few], array[few]).kind == "hexagonal"


@pytest.mark.parametrize("wrong", ["shuffled", "one column", "not whole", "missing", "one wrong", "too large"])
def test_array_positions_that_do_not_fit_are_not_believed(wrong):
    xy, true, array = visium(holes=0.1)
    array = array.astype(float)
    if wrong == "shuffled":
        array = np.random.default_rng(0).permutation(array)
    elif wrong == "one column":
        array[:, 1] = 0
    elif wrong == "not whole":
        array += np.random.default_rng(0).random(array.shape)
    elif wrong == "missing":
        array[3] = np.nan
    elif wrong == "too large":
        array[3] = 1e300
    else:
        array[3, 0] += 1
    found = lattice(xy, array)
    np.testing.assert_array_equal(found.cells - found.cells[0], true - true[0])


def test_array_positions_alone_as_coordinates():
    """Visium's columns are twice as close as its rows then: a square lattice on its corner, without holes."""
    _, true, array = visium()
    found = lattice(array.astype(float))
    assert found.kind == "square"
    assert_same_lattice(found.cells, true)


@pytest.mark.parametrize("how", ["random", "apart", "whole pixels"])
def test_cells_lie_freely_about_one_to_a_square(how):
    rng = np.random.default_rng(0)
    xy = 100 * rng.random((3000, 2))
    if how == "apart":
        kept = [xy[0]]
        for place in xy[1:]:
            if np.linalg.norm(np.array(kept) - place, axis=1).min() > 1.5:
                kept.append(place)
        xy = np.array(kept)
    elif how == "whole pixels":
        xy = np.unique((10 * xy).round(), axis=0) / 10
    found = lattice(xy)
    assert found.kind == "free"
    assert found.cells is None
    assert found.spacing**2 * len(xy) / 100**2 == pytest.approx(1, abs=0.15)


def test_holes_in_the_tissue_do_not_change_the_spacing_of_cells():
    xy = 100 * np.random.default_rng(0).random((4000, 2))
    hole = (np.abs(xy - 50) < 30).all(axis=1)
    assert lattice(xy[~hole]).spacing == pytest.approx(lattice(xy).spacing, rel=0.06)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e7])
def test_few_observations_and_lines(scale):
    for n in (0, 1):
        alone = lattice(np.full((n, 2), scale))
        assert np.isnan(alone.spacing)
        assert alone.holds.all()
    pair = lattice(scale * np.array([[0, 0], [3, 4.0]]), np.array([[0, 0], [1, 1]]))
    assert (pair.kind, pair.spacing) == ("free", pytest.approx(5 * scale))
    line = lattice(scale * np.outer(np.arange(50), [1, 0.3]), np.outer(np.arange(50), [1, 0]))
    assert (line.kind, line.spacing) == ("free", pytest.approx(scale * np.hypot(1, 0.3)))


def test_many_in_one_place():
    found = lattice(np.zeros((20, 2)))
    np.testing.assert_array_equal(found.holds, np.arange(20) == 0)
    np.testing.assert_array_equal(found.doubled, np.arange(20) > 0)


def test_missing_and_absurd_coordinates_do_not_disturb():
    xy, true = grid("hexagonal", 15, 15)
    xy = np.concatenate([xy, [[np.nan, np.nan], [3.0, np.inf], [1e15, 0.0]]])
    found = lattice(xy)
    assert found.kind == "hexagonal"
    np.testing.assert_array_equal(found.placed, np.arange(len(xy)) < len(true))
    np.testing.assert_array_equal(found.cells[: len(true)] - found.cells[0], true - true[0])
    assert not found.holds[len(true) :].any()
    assert not lattice(np.full((30, 2), np.nan)).placed.any()


def test_the_nearest_to_the_centre_holds_a_cell():
    """Whatever its row: the whole section tells where the centre of a cell is."""
    xy, _ = grid("square", 10, 10)
    xy = np.concatenate([xy[:1] + [0.2, 0], xy, xy[5:6] + [0.3, 0.1], xy[5:6] - [0.1, 0]])
    np.testing.assert_array_equal(np.flatnonzero(lattice(xy).doubled), [0, 101, 102])


def test_two_sections_in_one_place_are_doubled():
    xy, true = grid("hexagonal", 12, 12)
    found = lattice(np.concatenate([xy, xy]))
    assert_same_lattice(found.cells, np.concatenate([true, true]))
    np.testing.assert_array_equal(found.doubled, np.arange(len(xy) * 2) >= len(xy))


def test_the_olfactory_bulb_lies_on_diagonals():
    adata = stfuse.datasets.mob()
    for section in adata.obs["section"].cat.categories:
        part = adata[adata.obs["section"] == section]
        array = part.obs[["array_x", "array_y"]].to_numpy()
        found = [lattice(part.obsm["spatial"], given_array) for given_array in (None, array)]
        # its photographs are stretched by a tenth
        assert [f.kind for f in found] == ["square", "square"]
        assert [f.spacing for f in found] == pytest.approx([32.3, 32.3], rel=0.005)
        np.testing.assert_array_equal(*(f.cells - f.cells[0] for f in found))
        x, y = (array - array[0]).T
        # on the diagonals of the array, columns to +x +y and rows to -x +y
        np.testing.assert_array_equal(found[0].cells - found[0].cells[0], np.column_stack([y - x, x + y]) // 2)
        assert not found[0].doubled.any()


@pytest.mark.parametrize(
    ("file", "columns", "kind", "spacing"),
    [
        ("dlpfc/dlpfc_151673.h5ad", ["array_row", "array_col"], "hexagonal", 138),
        ("her2st/her2st_A1.h5ad", ["array_x", "array_y"], "square", 218),
        ("her2st/her2st_B4.h5ad", ["array_x", "array_y"], "square", 291),
        ("xenium_breast_17k.h5ad", None, "free", 2.59),
        ("starmap/20180417_BZ5_control.h5ad", None, "free", 278),
    ],
)
def test_real_sections(shared_data, file, columns, kind, spacing):
    adata = read_h5ad(shared_data / file)
    found = lattice(adata.obsm["spatial"])
    assert found.kind == kind
    assert found.spacing == pytest.approx(spacing, rel=0.01)
    if columns is not None:
        array = adata.obs[columns].to_numpy()
        by_array = lattice(adata.obsm["spatial"], array)
        np.testing.assert_array_equal(by_array.cells - by_array.cells[0], found.cells - found.cells[0])
        assert not found.doubled.any()
