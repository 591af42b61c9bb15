"""Nystrom attention beside exact attention and loops, and TransMIL beside one slide at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stfuse.module.transmil import GridPositions, NystromLayer, TransMIL, landmarks_of, nystrom, pseudo_inverse

B, H, N, D = 2, 3, 12, 5


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(3, B, H, N, D, dtype=torch.float64).unbind(0)


def test_with_as_many_landmarks_as_tokens_it_is_exact_attention(qkv):
    q, k, v = qkv
    found, first = nystrom(q, k, v, N, iterations=60)
    exact = (q @ k.mT).softmax(-1)
    np.testing.assert_allclose(found, F.scaled_dot_product_attention(q, k, v, scale=1.0), atol=1e-8)
    np.testing.assert_allclose(first, exact[:, :, 0], atol=1e-8)


def test_six_iterations_come_near_the_exact_inverse_of_what_is_well_conditioned(qkv):
    q, k, v = qkv
    near, _ = nystrom(3 * q, 3 * q, v, N)
    exact = F.scaled_dot_product_attention(3 * q, 3 * q, v, scale=1.0)
    assert (near - exact).abs().mean() < 0.02


@pytest.mark.parametrize("n", [3, 4, 5])
def test_fewer_landmarks_beside_a_loop(qkv, n):
    q, k, v = qkv
    found, first = nystrom(q, k, v, n, iterations=60)
    for b in range(B):
        for h in range(H):
            at = [(math.floor(i * N / n), math.ceil((i + 1) * N / n)) for i in range(n)]
            ql, kl = (np.stack([x[b, h, i:j].mean(0) for i, j in at]) for x in (q, k))

            def soft(x):
                e = np.exp(x - x.max(1, keepdims=True))
                return e / e.sum(1, keepdims=True)

            to, middle, back = soft(q[b, h].numpy() @ kl.T), soft(ql @ kl.T), soft(ql @ k[b, h].numpy().T)
            whole = to @ np.linalg.pinv(middle) @ back
            np.testing.assert_allclose(found[b, h], whole @ v[b, h].numpy(), atol=1e-6)
            np.testing.assert_allclose(first[b, h], whole[0], atol=1e-6)


def test_inverse_is_that_of_each_matrix_whatever_stands_beside_it():
    torch.manual_seed(1)
    a = torch.randn(4, 7, 7, dtype=torch.float64).softmax(-1)
    alone = torch.cat([pseudo_inverse(a[i : i + 1], 6) for i in range(4)])
    np.testing.assert_allclose(pseudo_inverse(a, 6), alone, atol=1e-12)
    np.testing.assert_allclose(pseudo_inverse(a, 60), np.linalg.inv(a), rtol=1e-6, atol=1e-6)


def test_few_tokens_are_their_own_landmarks(qkv):
    assert landmarks_of(qkv[0], N) is qkv[0] and landmarks_of(qkv[0], 99) is qkv[0]


def test_a_layer_is_attention_plus_a_convolution_of_the_values():
    torch.manual_seed(0)
    layer = NystromLayer(16, 0.1).double().eval()
    tokens = torch.randn(2, 6, 16, dtype=torch.float64)
    found, first = layer(tokens)
    q, k, v = (layer.norm(tokens) @ layer.qkv.weight.T).chunk(3, dim=-1)
    q, k, v = (x.view(2, 6, 8, 2).transpose(1, 2) for x in (q, k, v))
    mixed, row = nystrom(q / math.sqrt(2), k, v, 8)
    half = 33 // 2
    for b in range(2):
        for h in range(8):
            kernel = layer.along.weight[h, 0, :, 0]
            for i in range(6):
                for j in range(6):
                    mixed[b, h, i] = mixed[b, h, i] + kernel[j - i + half] * v[b, h, j]
    expected = tokens + layer.out[0](mixed.transpose(1, 2).reshape(2, 6, 16))
    np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-10)
    np.testing.assert_allclose(first.detach(), row.mean(1).detach(), atol=1e-12)


def test_positions_are_the_sum_of_three_convolutions_of_the_square():
    torch.manual_seed(0)
    positions, tokens = GridPositions(4), torch.randn(3, 9, 4)
    square = tokens.transpose(1, 2).reshape(3, 4, 3, 3)
    expected = square + sum(
        F.conv2d(square, c.weight, c.bias, padding=c.padding, groups=4) for c in positions.convolutions
    )
    np.testing.assert_allclose(positions(tokens, 3).detach(), expected.flatten(2).transpose(1, 2).detach(), atol=1e-5)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TransMIL(6, 16).eval()


def test_slides_of_any_size_as_if_alone(encoder):
    sizes = (5, 1, 5, 0, 12)
    tiles = torch.randn(sum(sizes), 6)
    offsets = torch.tensor(np.r_[0, np.cumsum(sizes)])
    embedding, tokens, attention = encoder(tiles, offsets)
    for i, n in enumerate(sizes):
        if n == 0:
            assert not embedding[i].any()
            continue
        rows = slice(int(offsets[i]), int(offsets[i + 1]))
        alone = encoder(tiles[rows], torch.tensor([0, n]))
        for whole, part in zip((embedding[i : i + 1], tokens[rows], attention[rows]), alone, strict=True):
            np.testing.assert_allclose(whole.detach(), part.detach(), atol=1e-5)


def test_it_follows_the_literal_network(encoder):
    """Five tiles: the square of nine is filled from the start."""
    tiles = torch.randn(5, 6)
    x = F.relu(tiles @ encoder.project[0].weight.T + encoder.project[0].bias)
    x = torch.cat([encoder.cls[0], x[[0, 1, 2, 3, 4, 0, 1, 2, 3]]])[None]
    x, _ = encoder.layers[0](x)
    x = torch.cat([x[:, :1], encoder.positions(x[:, 1:], 3)], dim=1)
    x, first = encoder.layers[1](x)
    x = encoder.norm(x)[0]
    embedding, tokens, attention = encoder(tiles, torch.tensor([0, 5]))
    np.testing.assert_allclose(embedding[0].detach(), x[0].detach(), atol=1e-6)
    np.testing.assert_allclose(tokens.detach(), x[1:6].detach(), atol=1e-6)
    own = first[0, 1:]
    np.testing.assert_allclose(attention.detach()[:4], (own[:4] + own[5:]).detach(), atol=1e-6)
    np.testing.assert_allclose(attention.detach()[4], own[4].detach(), atol=1e-6)


def test_every_weight_learns(encoder):
    encoder.train()
    embedding, tokens, _ = encoder(torch.randn(20, 6), torch.tensor([0, 8, 20]))
    (embedding.square().sum() + tokens.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_attention_takes_no_square_of_the_tokens(encoder):
    """Twenty thousand tiles at once would take 1.6 GB a head as a matrix."""
    with torch.no_grad():
        embedding, _, attention = encoder(torch.randn(20_000, 6), torch.tensor([0, 20_000]))
    assert embedding.isfinite().all() and attention.shape == (20_000,)
