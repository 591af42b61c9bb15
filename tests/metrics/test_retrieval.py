import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stfuse.metrics import _retrieval, recall_at_percent, retrieval_ranks


def slow_ranks(query, reference):
    """Word for word: how many references are at least as similar as the partner?"""
    ranks = []
    for i, q in enumerate(query):
        similarity = [q @ r / (np.linalg.norm(q) * np.linalg.norm(r)) for r in reference]
        ranks.append(sum(s >= similarity[i] - 1e-12 for s in similarity))
    return np.array(ranks)


def test_against_the_literal_version_in_one_and_in_many_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    query, reference = rng.normal(size=(90, 5)), rng.normal(size=(90, 5))
    expected = slow_ranks(query, reference)
    np.testing.assert_array_equal(retrieval_ranks(query, reference), expected)
    monkeypatch.setattr(_retrieval, "_BLOCK_BYTES", 90 * 8 * 7)  # seven rows at once
    np.testing.assert_array_equal(retrieval_ranks(query, reference), expected)


def test_by_hand():
    query = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    reference = np.array([[1.0, 0.1], [1.0, 0.0], [1.0, 0.9]])
    # the first finds its partner second, the second last, the third first
    np.testing.assert_array_equal(retrieval_ranks(query, reference), [2, 3, 1])
    assert recall_at_percent(query, reference, 100 / 3) == pytest.approx(1 / 3)
    assert recall_at_percent(query, reference, 50) == pytest.approx(2 / 3)
    np.testing.assert_allclose(recall_at_percent(query, reference, [5, 50, 100]), [1 / 3, 2 / 3, 1])


def test_ties_count_against_the_method():
    same = np.ones((40, 3), dtype=np.float32)
    assert recall_at_percent(same, same, 50) == 0
    rng = np.random.default_rng(0)
    row = rng.normal(size=(1, 37)).astype(np.float32)
    assert (retrieval_ranks(np.repeat(row, 61, 0), np.repeat(row, 61, 0)) == 61).all()
    assert recall_at_percent(np.zeros((20, 3)), np.zeros((20, 3))) == 0


def test_number_of_references_is_rounded_up_but_not_by_float_error(monkeypatch):
    monkeypatch.setattr(_retrieval, "retrieval_ranks", lambda query, reference: np.arange(1, 1001))
    # 1.1 * 1000 / 100 is 11.000000000000002 in floats, which is still 11 references
    np.testing.assert_allclose(recall_at_percent(None, None, [0.01, 1.1, 1.11, 5]), [0.001, 0.011, 0.012, 0.05])


def test_nan_pairs_are_left_out():
    rng = np.random.default_rng(1)
    query = rng.normal(size=(30, 4))
    reference = query + rng.normal(size=(30, 4))
    expected = retrieval_ranks(query[5:25], reference[5:25])
    query[:5], reference[25:] = np.nan, np.nan
    np.testing.assert_array_equal(retrieval_ranks(query, reference), expected)


def test_chance_level():
    rng = np.random.default_rng(2)
    recall = recall_at_percent(rng.normal(size=(4000, 8)), rng.normal(size=(4000, 8)), [5, 10])
    np.testing.assert_allclose(recall, [0.05, 0.10], atol=0.015)


@settings(deadline=None, max_examples=30)
@given(arrays(np.float64, (12, 3), elements=st.floats(-5, 5)), st.floats(0.1, 50))
def test_scale_does_not_matter_and_more_percent_never_hurts(codes, scale):
    codes = codes + 0.1
    reference = codes[::-1] + 1
    np.testing.assert_array_equal(retrieval_ranks(codes, reference), retrieval_ranks(codes, reference * scale))
    recalls = recall_at_percent(codes, reference, [1, 10, 30, 60, 100])
    assert (np.diff(recalls) >= 0).all()
    assert recalls[-1] == 1


def test_very_large_and_small_codes():
    rng = np.random.default_rng(3)
    codes = rng.normal(size=(50, 4)).astype(np.float32)
    expected = retrieval_ranks(codes, codes + 0.5)
    np.testing.assert_array_equal(
        retrieval_ranks(codes * np.float32(1e30), (codes + 0.5) * np.float32(1e-30)), expected
    )


@pytest.mark.parametrize(
    ("query", "reference", "percent", "match"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), 5, "one shape"),
        (np.ones(3), np.ones(3), 5, "matrices"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), 5, "every pair"),
        (np.full((3, 2), np.inf), np.ones((3, 2)), 5, "infinite"),
        (np.ones((3, 2)), np.ones((3, 2)), 0, "percent"),
        (np.ones((3, 2)), np.ones((3, 2)), [5, 101], "percent"),
    ],
)
def test_bad_input(query, reference, percent, match):
    with pytest.raises(ValueError, match=match):
        recall_at_percent(query, reference, percent)
