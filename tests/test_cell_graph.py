from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay
from sklearn.neighbors import NearestNeighbors

from stfuse import _cell_graph
from stfuse._cell_graph import Placed, block_ids, candidate_pairs, edges_within, groups, unique_pairs

MODES = ("knn", "radius", "delaunay")


def as_set(pairs):
    return {(int(a), int(b)) for a, b in pairs}


def connect(cells, block, mode, *, k=6, radius=None, section=None, spatial=None):
    """Edges, in ascending order, of cells that by default lie in one section without tiles' corners."""
    section = np.zeros(len(block), int) if section is None else section
    spatial = cells.local if spatial is None else spatial
    found = edges_within(cells, block, mode, n_neighbors=k, radius=radius, section=section, spatial=spatial)
    assert found.shape[1] == 2 and (found[:, 0] < found[:, 1]).all()
    assert found.tolist() == sorted(map(list, as_set(found)))
    return found


def literal_candidates(cells, fine, coarse):
    """Walk over all pairs of cells."""
    n = len(fine)
    return {
        (i, j)
        for i in range(n)
        for j in range(i + 1, n)
        if cells.tile[i] == cells.tile[j] and coarse[i] == coarse[j] and fine[i] != fine[j]
    }


def scatter(n, n_tiles=3, seed=0, side=10.0):
    rng = np.random.default_rng(seed)
    return Placed(rng.integers(0, n_tiles, n), rng.random((n, 2)) * side, np.full(n, side))


@pytest.fixture
def drawn():
    r"""Two tiles cut into 4 x 4; the second is ten times as large and holds one cell, h.

    ::

        +---+---+---+---+
        |a e| b |   | c |    micro blocks 0, 1, 3
        +---+---+---+---+
        | d |   |   |   |    4
        +---+---+---+---+
        |   |   |   |   |
        +---+---+---+---+
        |   |   | g | f |    14, 15
        +---+---+---+---+
    """
    names = "abcdefgh"
    places = [(0.2, 0.5), (1.5, 0.5), (3.5, 0.5), (0.6, 1.5), (0.8, 0.5), (3.5, 3.5), (2.5, 3.5), (35, 5)]
    cells = Placed(np.array([0] * 7 + [1]), np.array(places), np.array([4.0] * 7 + [40.0]))
    return names, cells


# blocks


def test_blocks_of_a_drawn_tile(drawn):
    names, cells = drawn
    block = dict(zip(names, block_ids(cells, 4).tolist(), strict=True))
    assert block == {
        "a": [0, 0, 0],
        "b": [1, 0, 0],
        "c": [3, 1, 0],
        "d": [4, 0, 0],
        "e": [0, 0, 0],
        "f": [15, 3, 0],
        "g": [14, 3, 0],
        "h": [3, 1, 0],
    }


def test_cells_on_borders_count_right_and_below_and_those_beyond_to_the_nearest_block():
    places = np.array([(0, 0), (1, 0), (2, 2), (4, 4), (4, 0), (-0.5, 1), (9, -3), (-1e9, 1e9), (2, 3.999999)])
    cells = Placed(np.zeros(9, int), places, np.full(9, 4.0))
    assert block_ids(cells, 4).tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [10, 3, 0],
        [15, 3, 0],
        [3, 1, 0],
        [4, 0, 0],
        [3, 1, 0],
        [12, 2, 0],
        [14, 3, 0],
    ]


@settings(max_examples=60, deadline=None)
@given(
    n_blocks=st.sampled_from([4, 6, 8, 10, 22, 64]),
    side=st.floats(1e-3, 1e6),
    places=st.lists(st.tuples(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2)), max_size=30),
)
def test_small_blocks_lie_in_large_ones(n_blocks, side, places):
    edge = np.repeat(np.arange(n_blocks + 1) / n_blocks, 2).reshape(-1, 2)
    places = (
        np.concatenate([np.array(places).reshape(-1, 2), edge, np.nextafter(edge, 0), np.nextafter(edge, 1)]) * side
    )
    block = block_ids(Placed(np.zeros(len(places), int), places, np.full(len(places), side)), n_blocks)
    assert block.min() >= 0 and (block.max(axis=0) < [n_blocks**2, 4, 1]).all()
    row, column = np.divmod(block[:, 0], n_blocks)
    np.testing.assert_array_equal(row // (n_blocks // 2) * 2 + column // (n_blocks // 2), block[:, 1])


def test_groups_number_combinations_in_their_order():
    assert groups(np.array([2, 0, 2, 2]), np.array([0, 5, 1, 0])).tolist() == [1, 0, 2, 1]
    assert groups(np.array([7, 7, 3])).tolist() == [1, 1, 0]
    assert groups(np.empty(0, int), np.empty(0, int)).tolist() == []


# edges


def test_edges_of_a_drawn_tile(drawn):
    names, cells = drawn
    block = block_ids(cells, 4)
    for mode in MODES:
        for scale, expected in ((0, {"ae"}), (1, {"ab", "ad", "ae", "be", "de", "bd", "fg"})):
            pairs = connect(cells, block[:, scale], mode, radius=3.0)
            found = {"".join(sorted(names[i] for i in pair)) for pair in pairs}
            # in the triangulation a, e and b lie on one line, e in the middle
            assert found == (expected - {"ab"} if mode == "delaunay" else expected), (mode, scale)
    assert "".join(names[i] for i in connect(cells, block[:, 1], "knn", k=1).ravel()) == "aebedefg"


@pytest.mark.parametrize("k", [1, 3, 500])
def test_nearest_neighbors_are_those_of_sklearn_in_each_block(k):
    cells = scatter(250)
    block = block_ids(cells, 4)[:, 0]
    expected = set()
    for tile in range(3):
        for number in range(16):
            rows = np.flatnonzero((cells.tile == tile) & (block == number))
            if len(rows) < 2:
                continue
            model = NearestNeighbors(n_neighbors=min(k, len(rows) - 1)).fit(cells.local[rows])
            for i, near in enumerate(model.kneighbors(return_distance=False)):
                expected |= {tuple(sorted((int(rows[i]), int(rows[j])))) for j in near}
    assert as_set(connect(cells, block, "knn", k=k)) == expected


@pytest.mark.parametrize("radius", [0.01, 0.7, 1.5, 1e6])
def test_radius_finds_what_brute_force_finds(radius):
    cells = scatter(300)
    block = block_ids(cells, 4)[:, 0]
    expected = {
        (i, j)
        for i, j in combinations(range(300), 2)
        if cells.tile[i] == cells.tile[j]
        and block[i] == block[j]
        and np.linalg.norm(cells.local[i] - cells.local[j]) <= radius
    }
    assert as_set(connect(cells, block, "radius", radius=radius)) == expected


def test_a_distance_of_exactly_the_radius_counts():
    cells = Placed(np.zeros(3, int), np.array([(0.25, 0.25), (0.5, 0.25), (0.25, 0.5078125)]), np.full(3, 4.0))
    assert connect(cells, np.zeros(3, int), "radius", radius=0.25).tolist() == [[0, 1]]


def test_delaunay_is_the_triangulation_of_each_section_cut_at_borders():
    """Two sections with the same coordinates, each of 2 x 2 tiles."""
    rng = np.random.default_rng(0)
    section, spatial = np.repeat([0, 1], [250, 150]), rng.random((400, 2)) * 20
    place = np.floor(spatial / 10).astype(int)
    cells = Placed(section * 4 + place @ [1, 2], spatial - place * 10.0, np.full(400, 10.0))
    block = block_ids(cells, 4)[:, 0]
    expected = set()
    for code in (0, 1):
        rows = np.flatnonzero(section == code)
        for simplex in Delaunay(spatial[rows]).simplices:
            for i, j in combinations(sorted(rows[simplex].tolist()), 2):
                if cells.tile[i] == cells.tile[j] and block[i] == block[j]:
                    expected.add((i, j))
    assert as_set(connect(cells, block, "delaunay", section=section, spatial=spatial)) == expected


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_cells_on_a_line_are_joined_along_it(degrees):
    rng = np.random.default_rng(0)
    along = rng.permutation(12).astype(float)
    spatial = along[:, None] * [np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))]
    spatial += rng.choice([0.0, 1e-16], spatial.shape)  # as rounding leaves it
    cells = Placed(np.zeros(12, int), spatial, np.full(12, 20.0))
    block = (along >= 5).astype(int)
    pairs = connect(cells, block, "delaunay")
    assert sorted(sorted(pair) for pair in along[pairs].tolist()) == [[i, i + 1] for i in range(11) if i != 4]


def test_cells_in_one_place():
    apart = np.array([(1.0, 1), (3, 1), (1, 3), (3.5, 3.5)])
    cells = Placed(np.zeros(7, int), np.concatenate([apart, apart[[0, 0, 3]]]), np.full(7, 4.0))
    for mode in MODES:
        found = as_set(connect(cells, np.zeros(7, int), mode, k=2, radius=1e-9))
        assert (3, 6) in found
        # the three in one place are joined, if not each with each
        assert len({(0, 4), (0, 5), (4, 5)} & found) >= 2, mode
    stacked = Placed(np.zeros(9, int), np.ones((9, 2)), np.full(9, 4.0))
    assert len(connect(stacked, np.zeros(9, int), "radius", radius=0.1)) == 36
    degree = np.bincount(connect(stacked, np.zeros(9, int), "knn", k=3).ravel(), minlength=9)
    assert degree.min() >= 3
    assert np.bincount(connect(stacked, np.zeros(9, int), "delaunay").ravel(), minlength=9).min() >= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_hardly_any_cells(mode, n):
    rng = np.random.default_rng(0)
    cells = Placed(np.zeros(n, int), rng.random((n, 2)), np.ones(n))
    assert len(connect(cells, np.zeros(n, int), mode, radius=2.0)) == n * (n - 1) // 2
    assert len(connect(cells, np.arange(n), mode, radius=2.0)) == 0


# places in eighths of a tile: many on borders, some in one place, some beyond
spot = st.one_of(st.sampled_from([-0.25, 0.0, 0.125, 0.25, 0.5, 0.625, 0.75, 1.0, 1.25]), st.floats(0, 1))


@st.composite
def tissues(draw):
    n = draw(st.integers(0, 40))
    tile = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), int)
    local = np.array(draw(st.lists(st.tuples(spot, spot), min_size=n, max_size=n))).reshape(-1, 2)
    if draw(st.booleans()):  # all on one line
        local[:, 1] = local[:, 0] * draw(st.sampled_from([0.0, 1.0, 0.3]))
    side = np.array([1.0, 64.0, 0.1])[tile]
    return Placed(tile, local * side[:, None], side)


@settings(max_examples=100, deadline=None)
@given(cells=tissues(), mode=st.sampled_from(MODES), k=st.integers(1, 8), n_blocks=st.sampled_from([4, 6]))
def test_nothing_crosses_tiles_or_blocks_that_do_not_merge(cells, mode, k, n_blocks):
    block = block_ids(cells, n_blocks)
    spatial = cells.local + np.array([[0.0, 0], [1, 0], [0, 64]])[cells.tile]
    radius = 0.3
    edges = connect(cells, block[:, 0], mode, k=k, radius=radius, spatial=spatial)
    one, other = edges.T
    assert (cells.tile[one] == cells.tile[other]).all() and (block[one, 0] == block[other, 0]).all()
    made = set(as_set(edges))
    for fine, coarse in ((0, 1), (1, 2)):
        found = candidate_pairs(cells, block[:, fine], block[:, coarse], 10_000, 0)
        expected = literal_candidates(cells, block[:, fine], block[:, coarse])
        assert as_set(found.pairs) == expected and found.n_all == len(found.pairs) == len(expected)
        assert not made & expected  # each pair is of one scale
        made |= expected
    distance = np.linalg.norm(cells.local[:, None] - cells.local, axis=2)
    group = groups(cells.tile, block[:, 0])
    inside = (group[:, None] == group) & ~np.eye(len(group), dtype=bool)
    joined = np.zeros(inside.shape, bool)
    joined[one, other] = joined[other, one] = True
    if mode == "radius":
        far = np.abs(distance - radius) > 1e-12  # where rounding does not decide
        np.testing.assert_array_equal(joined[far], (inside & (distance <= radius))[far])
    if mode == "knn":
        # nearer than the k-th of its block is a neighbour, farther from both ends than their k-th is none
        last = np.array(
            [np.inf if row.sum() < k else np.sort(d[row])[k - 1] for d, row in zip(distance, inside, strict=True)]
        )
        assert joined[inside & (distance < last[:, None] - 1e-12)].all()
        assert not joined[inside & (distance > np.maximum(last[:, None], last) + 1e-12)].any()
        assert (joined.sum(axis=1) >= np.minimum(inside.sum(axis=1), k)).all()


@settings(max_examples=40, deadline=None)
@given(
    cells=tissues(),
    mode=st.sampled_from(["knn", "radius"]),
    most=st.sampled_from([1, 5, 10_000]),
    seed=st.integers(0, 99),
)
def test_the_order_of_cells_changes_nothing(cells, mode, most, seed):
    _, first = np.unique(np.column_stack([cells.tile, cells.local]), axis=0, return_index=True)
    cells = Placed(*(part[first] for part in cells))  # those in one place can't be told apart
    shuffled = np.random.default_rng(seed).permutation(len(cells.tile))
    moved = Placed(*(part[shuffled] for part in cells))
    block, other = block_ids(cells, 4), block_ids(moved, 4)
    found = connect(cells, block[:, 0], mode, k=2, radius=0.3)
    again = connect(moved, other[:, 0], mode, k=2, radius=0.3)
    assert as_set(found) == as_set(np.sort(shuffled[again], axis=1))
    for fine, coarse in ((0, 1), (1, 2)):
        found = candidate_pairs(cells, block[:, fine], block[:, coarse], most, seed)
        again = candidate_pairs(moved, other[:, fine], other[:, coarse], most, seed)
        assert as_set(found.pairs) == as_set(np.sort(shuffled[again.pairs], axis=1)) and found.n_all == again.n_all


def test_the_order_of_cells_does_not_change_the_triangulation():
    cells = scatter(200)
    shuffled = np.random.default_rng(0).permutation(200)
    moved = Placed(*(part[shuffled] for part in cells))
    found = connect(cells, block_ids(cells, 4)[:, 1], "delaunay")
    again = connect(moved, block_ids(moved, 4)[:, 1], "delaunay")
    assert len(found) > 100 and as_set(found) == as_set(np.sort(shuffled[again], axis=1))


# candidates


def test_candidates_of_a_drawn_tile(drawn):
    names, cells = drawn
    block = block_ids(cells, 4)
    meso = candidate_pairs(cells, block[:, 0], block[:, 1], 1000, 0)
    macro = candidate_pairs(cells, block[:, 1], block[:, 2], 1000, 0)
    for found, expected in (
        (meso, "ab ad be bd de fg"),
        (macro, "ac bc cd ce af bf df ef ag bg dg eg cf cg"),
    ):
        assert {"".join(sorted(names[i] for i in pair)) for pair in found.pairs} == set(expected.split())
        assert found.n_all == len(found.pairs) == len(expected.split())


def test_below_the_cap_all_candidates_are_listed():
    cells = scatter(150)
    block = block_ids(cells, 4)
    for fine, coarse in ((0, 1), (1, 2)):
        expected = literal_candidates(cells, block[:, fine], block[:, coarse])
        found = candidate_pairs(cells, block[:, fine], block[:, coarse], len(expected), 5)
        assert len(found.pairs) == len(expected) and as_set(found.pairs) == expected
        assert (found.pairs[:, 0] < found.pairs[:, 1]).all()


def test_above_the_cap_each_tile_has_exactly_as_many_different_ones():
    cells = scatter(120, n_tiles=4, seed=1)
    cells = cells._replace(tile=np.where(np.arange(120) < 4, 9, cells.tile))  # a small tile, and numbers without cells
    block = block_ids(cells, 4)
    everything = literal_candidates(cells, block[:, 1], block[:, 2])
    total = np.bincount([cells.tile[i] for i, _ in everything], minlength=10)
    for most in (1, 7, 50, int(total.max()) - 1):
        found = candidate_pairs(cells, block[:, 1], block[:, 2], most, 3)
        listed = as_set(found.pairs)
        assert len(listed) == len(found.pairs) and listed <= everything and found.n_all == len(everything)
        np.testing.assert_array_equal(np.bincount(cells.tile[found.pairs[:, 0]], minlength=10), np.minimum(total, most))


def test_every_candidate_is_drawn_with_the_same_chance():
    cells = scatter(40, n_tiles=1)
    block = block_ids(cells, 4)
    everything = sorted(literal_candidates(cells, block[:, 1], block[:, 2]))
    most, n_seeds = 60, 1500
    assert len(everything) > 5 * most
    number = {pair: i for i, pair in enumerate(everything)}
    count, shares = np.zeros(len(everything)), []
    for seed in range(n_seeds):
        pairs = candidate_pairs(cells, block[:, 1], block[:, 2], most, seed).pairs
        count[[number[pair] for pair in as_set(pairs)]] += 1
        shares.append(np.bincount(pairs.ravel(), minlength=40))
    chance = most / len(everything)
    deviation = (count - n_seeds * chance) / np.sqrt(n_seeds * chance * (1 - chance))
    assert count.sum() == n_seeds * most
    assert np.abs(deviation).max() < 4.5 and 0.7 < deviation.std() < 1.3
    # in each draw every cell has about its share of partners, where chance alone would leave some with hardly one
    expected = np.bincount(np.ravel(everything), minlength=40) * chance
    by_chance = expected * (1 - chance)
    assert np.var(shares, axis=0).mean() < by_chance.mean()


def test_seeds_decide():
    cells = scatter(100, n_tiles=2)
    block = block_ids(cells, 4)
    one, same, other = (candidate_pairs(cells, block[:, 1], block[:, 2], 20, seed).pairs for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert as_set(one) != as_set(other)


def test_pairs_made_in_parts_are_those_made_at_once(monkeypatch):
    cells = scatter(200, n_tiles=12)
    block = block_ids(cells, 4)
    for most in (30, 10_000):
        whole = candidate_pairs(cells, block[:, 1], block[:, 2], most, 0)
        for size in (1, 29, 100):
            monkeypatch.setattr(_cell_graph, "CHUNK", size)
            parts = candidate_pairs(cells, block[:, 1], block[:, 2], most, 0)
            np.testing.assert_array_equal(parts.pairs, whole.pairs)
            assert parts.n_all == whole.n_all
        monkeypatch.undo()


def test_no_cells_have_no_pairs():
    nothing = Placed(np.empty(0, int), np.empty((0, 2)), np.empty(0))
    found = candidate_pairs(nothing, np.empty(0, int), np.empty(0, int), 5, 0)
    assert found.pairs.shape == (0, 2) and found.n_all == 0
    alone = Placed(np.arange(3), np.ones((3, 2)), np.full(3, 4.0))
    found = candidate_pairs(alone, np.zeros(3, int), np.zeros(3, int), 5, 0)
    assert found.pairs.shape == (0, 2) and found.n_all == 0


def test_unique_pairs():
    assert unique_pairs(np.array([[4, 1], [1, 4], [0, 2], [2, 0], [4, 1]]), 5).tolist() == [[0, 2], [1, 4]]
    assert unique_pairs(np.empty((0, 2), int), 0).shape == (0, 2)


def test_pairs_of_a_tile_do_not_depend_on_other_tiles():
    rng = np.random.default_rng(0)
    tile = np.repeat(np.arange(4), 40)
    cells = Placed(tile, rng.random((160, 2)) * 10, np.full(160, 10.0))
    block = block_ids(cells, 4)
    names = pd.Index(["a", "b", "c", "d"], dtype=object)

    def drawn(rows, numbers, names):
        part = Placed(numbers, cells.local[rows], cells.side[rows])
        found = candidate_pairs(part, block[rows, 1], block[rows, 2], 30, 1, names).pairs
        return {tuple(pair) for pair in np.sort(rows[found]).tolist() if tile[pair[0]] == 2}

    rows = np.arange(160)
    some = rows[tile >= 2]
    assert (
        drawn(rows, tile, names) == drawn(some, 3 - tile[some], names[[3, 2]]) and len(drawn(rows, tile, names)) == 30
    )
