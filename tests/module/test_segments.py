"""Ragged sums and softmax, beside a loop over the segments."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stfuse.module.segments import segment_max, segment_softmax, segment_sum


def ragged(sizes, width=3, seed=0):
    rng = np.random.default_rng(seed)
    offsets = torch.tensor(np.r_[0, np.cumsum(sizes)], dtype=torch.int64)
    rows = torch.from_numpy(rng.normal(size=(int(sum(sizes)), width)))
    return rows, offsets, torch.from_numpy(rng.normal(size=int(sum(sizes))) * 5)


def parts(values, offsets):
    return [values[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 99))
def test_each_segment_is_as_if_it_were_alone(sizes, seed):
    rows, offsets, scores = ragged(sizes, seed=seed)
    soft = segment_softmax(scores, offsets)
    np.testing.assert_allclose(soft, torch.cat([part.softmax(0) for part in parts(scores, offsets)]), atol=1e-12)
    literal = torch.stack(
        [(w[:, None] * r).sum(0) for w, r in zip(parts(soft, offsets), parts(rows, offsets), strict=True)]
    )
    np.testing.assert_allclose(segment_sum(rows, offsets, soft), literal, atol=1e-12)
    np.testing.assert_allclose(
        segment_sum(rows, offsets), torch.stack([r.sum(0) for r in parts(rows, offsets)]), atol=1e-12
    )


def test_gradients_are_those_of_the_loop():
    rows, offsets, scores = ragged([4, 1, 0, 7])
    target = torch.randn(4, 3, dtype=torch.float64)

    def gradients(pooled):
        r, s = rows.clone().requires_grad_(), scores.clone().requires_grad_()
        return torch.autograd.grad((pooled(r, s) * target).sum(), (r, s))

    ours = gradients(lambda r, s: segment_sum(r, offsets, segment_softmax(s, offsets)))
    loop = gradients(
        lambda r, s: torch.stack([p.softmax(0) @ q for p, q in zip(parts(s, offsets), parts(r, offsets), strict=True)])
    )
    for a, b in zip(ours, loop, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_scores_do_not_overflow(shift):
    _, offsets, scores = ragged([5, 3])
    np.testing.assert_allclose(segment_softmax(scores + shift, offsets), segment_softmax(scores, offsets), atol=1e-9)


def test_the_largest_of_each_segment_and_of_what_was_there():
    values, offsets = torch.tensor([1.0, 5.0, -2.0]), torch.tensor([0, 2, 2, 3])
    assert segment_max(values, offsets, torch.tensor([3.0, 0.5, -3.0])).tolist() == [5.0, 0.5, -2.0]
