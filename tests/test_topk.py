import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stfuse import _topk
from stfuse._topk import top_k

# Unit vectors whose products are exact, so that ties are ties.
SIGNS = st.sampled_from([-1.0, 1.0])


def literal(query, reference, k):
    """Every similarity, and a stable sort of all of them."""
    unit = [np.array([row / (np.linalg.norm(row) or 1) for row in codes.astype(float)]) for codes in (query, reference)]
    similarity = unit[0] @ unit[1].T
    index = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, index, 1), index


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(_topk, "QUERIES", 3)
    monkeypatch.setattr(_topk, "REFERENCES", 8)
    monkeypatch.setattr(_topk, "GROUP", 2)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 8), m=st.integers(1, 60), group=st.sampled_from([2, 4, 32]))
def test_ties_go_to_the_lower_row_in_any_blocks(data, n, m, group):
    query = data.draw(arrays(np.float32, (n, 4), elements=SIGNS))
    reference = data.draw(arrays(np.float32, (m, 4), elements=SIGNS))
    k = data.draw(st.integers(1, m))
    similarity, index = literal(query, reference, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_topk, "QUERIES", data.draw(st.integers(1, 9)))
        patch.setattr(_topk, "REFERENCES", data.draw(st.integers(1, 70)))
        patch.setattr(_topk, "GROUP", group)
        found = top_k(query, reference, k)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.similarity, similarity)


@pytest.mark.parametrize(("n", "m", "k"), [(7, 300, 5), (40, 33, 33), (5, 20_011, 50), (1030, 70, 3)])
def test_is_what_a_full_sort_gives(n, m, k):
    rng = np.random.default_rng(n)
    query, reference = rng.normal(size=(n, 16)), rng.normal(size=(m, 16)) * rng.uniform(0.01, 100, (m, 1))
    similarity, index = literal(query, reference, k)
    found = top_k(query, reference, k)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)
    # where neighbours in the ranking differ by more than rounding
    gap = np.abs(np.diff(literal(query, reference, min(k + 1, m))[0], axis=1)) > 1e-5
    clear = np.ones((n, k), bool)
    clear[:, 1:] &= gap[:, : k - 1]
    clear[:, : gap.shape[1]] &= gap[:, :k]
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.index[clear], index[clear])
    assert found.index.dtype == np.int64


def test_blocks_change_nothing(small_blocks):
    rng = np.random.default_rng(0)
    query, reference = rng.normal(size=(20, 6)), rng.normal(size=(100, 6))
    similarity, index = literal(query, reference, 10)
    found = top_k(query, reference, 10)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)


def test_all_the_same(small_blocks):
    found = top_k(np.ones((4, 2)), np.ones((30, 2)), 12)
    np.testing.assert_array_equal(found.index, np.tile(np.arange(12), (4, 1)))


def test_zeros_and_extreme_sizes():
    reference = np.array([[0, 0], [1e30, 0], [0, -1e-30], [-1, 0]])
    found = top_k(np.array([[1e-20, 0], [0, 0]]), reference, 4)
    np.testing.assert_array_equal(found.index, [[1, 0, 2, 3], [0, 1, 2, 3]])
    np.testing.assert_array_equal(found.similarity, [[1, 0, 0, -1], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("query", "reference", "k", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 2)), 1, r"equal width, their shapes are \(2, 3\) and \(4, 2\)"),
        (np.ones(3), np.ones((4, 3)), 1, "must be matrices"),
        (np.ones((2, 3)), np.ones((4, 3)), 5, "k=5 is more than the 4 references"),
        (np.ones((2, 3)), np.ones((4, 3)), 0, "k must be a whole number of at least 1"),
        (np.full((2, 3), np.nan), np.ones((4, 3)), 1, "codes of query hold missing"),
        (np.ones((2, 3)), np.full((4, 3), np.inf), 1, "codes of reference hold missing or infinite"),
    ],
)
def test_bad_input(query, reference, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(query, reference, k)


@pytest.mark.slow
def test_index_finds_nearly_all(monkeypatch):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(3000, 3)) @ rng.normal(size=(3, 10)) + 0.1 * rng.normal(size=(3000, 10))
    query = reference[:200] + 0.01 * rng.normal(size=(200, 10))
    exact = top_k(query, reference, 10, approximate=False)
    found = top_k(query, reference, 10, approximate=True)
    hits = np.mean([np.isin(a, b).mean() for a, b in zip(found.index, exact.index, strict=True)])
    assert hits > 0.95
    same = found.index == exact.index
    np.testing.assert_allclose(found.similarity[same], exact.similarity[same], atol=1e-6)
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    again = top_k(query, reference, 10, approximate=True)
    np.testing.assert_array_equal(found.index, again.index)
    # codes without structure, the hardest case
    query, reference = rng.normal(size=(100, 64)), rng.normal(size=(3000, 64))
    pairs = zip(top_k(query, reference, 5, approximate=True).index, top_k(query, reference, 5).index, strict=True)
    assert np.mean([np.isin(a, b).mean() for a, b in pairs]) > 0.75
    query, reference = reference[:200], reference
    found = top_k(query, reference, 10, approximate=True)
    # the index is what very many references are looked up in, unless told otherwise
    monkeypatch.setattr(_topk, "MANY", 2999)
    np.testing.assert_array_equal(top_k(query, reference, 10).index, found.index)
