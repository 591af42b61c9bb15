"""What is hidden, what counts of it, and what the decoders may look at."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stfuse.module.mirror import PartsLayer
from stfuse.module.retention import (
    BagRetention,
    TokenRetention,
    VectorRetention,
    hide_entries,
    mask_within,
    masked_error,
)

SIZES = (7, 1, 0, 12)
OFFSETS = torch.tensor(np.r_[0, np.cumsum(SIZES)])
DIM = 16


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.floats(0.05, 0.95))
def test_a_share_of_each_slide_is_hidden_and_one_tile_left(sizes, ratio):
    offsets = torch.tensor(np.r_[0, np.cumsum(sizes)])
    hidden = mask_within(offsets, ratio)
    for part, n in zip(hidden.split(sizes), sizes, strict=True):
        assert int(part.sum()) == int(n * ratio) and (n == 0 or not part.all())


def test_every_tile_is_hidden_as_often():
    torch.manual_seed(0)
    share = torch.stack([mask_within(OFFSETS, 0.75) for _ in range(2000)]).double().mean(0)
    np.testing.assert_allclose(share[:7], 5 / 7, atol=0.05)
    np.testing.assert_allclose(share[8:], 9 / 12, atol=0.05)
    assert share[7] == 0  # the only tile of a slide


def test_entries_of_each_sample_are_hidden_by_themselves():
    hidden = hide_entries(torch.zeros(50, 20), 0.75)
    assert (hidden.sum(1) == 15).all() and len(torch.unique(hidden, dim=0)) > 40


def test_the_error_touches_hidden_positions_only():
    torch.manual_seed(0)
    target, told = torch.randn(20, 4), torch.randn(20, 4, requires_grad=True)
    hidden = mask_within(OFFSETS, 0.75)
    error = masked_error(target, told, hidden)
    assert float(error.detach()) == pytest.approx(float(((target - told.detach()) ** 2)[hidden].mean()), rel=1e-6)
    error.backward()
    assert (told.grad[~hidden] == 0).all() and (told.grad[hidden] != 0).all()
    assert masked_error(target, told, torch.zeros(20, dtype=torch.bool)) == 0


@pytest.mark.parametrize("kind", ["bag", "tokens"])
def test_hidden_tiles_are_not_looked_at(kind):
    torch.manual_seed(0)
    decode = (BagRetention(DIM) if kind == "bag" else TokenRetention(DIM, 30)).eval()
    tokens, hidden = torch.randn(20, DIM), mask_within(OFFSETS, 0.75)
    told = decode(torch.randn(4, DIM), tokens, hidden, OFFSETS)
    torch.manual_seed(0)
    code = torch.randn(4, DIM)
    told, other = (decode(code, x, hidden, OFFSETS) for x in (tokens, torch.where(hidden[:, None], 9.0, tokens)))
    np.testing.assert_allclose(told.detach(), other.detach(), atol=1e-6)
    # what is seen tells of its own slide alone
    changed = tokens.clone()
    changed[(~hidden).nonzero()[0, 0]] += 1
    moved = (decode(code, changed, hidden, OFFSETS) - told).abs().sum(1) > 1e-6
    assert moved[:7].any() and not moved[7:].any()


def test_all_hidden_tiles_of_a_bag_are_told_alike():
    decode = BagRetention(DIM).eval()
    told = decode(torch.randn(4, DIM), torch.randn(20, DIM), mask_within(OFFSETS, 0.75), OFFSETS)
    for part in told.split(SIZES):
        assert part.shape[0] == 0 or torch.equal(part, part[:1].expand_as(part))


def test_slides_of_unlike_size_are_decoded_as_if_alone():
    torch.manual_seed(0)
    decode = TokenRetention(DIM, 30).eval()
    code, tokens, hidden = torch.randn(4, DIM), torch.randn(20, DIM), mask_within(OFFSETS, 0.75)
    told = decode(code, tokens, hidden, OFFSETS)
    for i, n in enumerate(SIZES):
        rows = slice(int(OFFSETS[i]), int(OFFSETS[i + 1]))
        alone = decode(code[i : i + 1], tokens[rows], hidden[rows], torch.tensor([0, n]))
        np.testing.assert_allclose(told[rows].detach(), alone.detach(), atol=1e-5)


def test_hidden_entries_of_a_vector_are_not_looked_at_but_by_their_projection():
    torch.manual_seed(0)
    decode = VectorRetention(DIM, PartsLayer(DIM)).eval()
    shown = decode.project(torch.randn(3, DIM))
    hidden = hide_entries(shown, 0.75)
    # entries are hidden after a projection, as tokens are: set what the projection gives
    decode.project = torch.nn.Identity()
    one = decode(shown, hidden)
    other = decode(torch.where(hidden, -5.0, shown), hidden)
    np.testing.assert_allclose(one.detach(), other.detach(), atol=1e-6)


def test_parts_of_a_vector_attend_to_each_other():
    """Sixteen entries are eight heads of two, and eight tokens."""
    torch.manual_seed(0)
    layer, x = PartsLayer(DIM).eval(), torch.randn(3, DIM)
    q, k, v = (layer.norm(x) @ layer.qkv.weight.T + layer.qkv.bias).chunk(3, dim=1)
    rows = []
    for b in range(3):
        parts = [z[b].view(8, 2) for z in (q, k, v)]
        weights = (parts[0] @ parts[1].T / np.sqrt(2)).softmax(1)
        rows.append((weights @ parts[2]).flatten())
    y = x + layer.out[0](torch.stack(rows))
    np.testing.assert_allclose(layer(x).detach(), layer.feed(y).detach(), atol=1e-5)
