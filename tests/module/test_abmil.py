"""The slide encoder beside a loop over slides that spells out the formula of Ilse et al."""

import numpy as np
import pytest
import torch

from stfuse.module.abmil import ABMIL, SlideEncoder

SIZES = (5, 1, 12, 3)
OFFSETS = torch.tensor(np.r_[0, np.cumsum(SIZES)])


@pytest.fixture
def tiles():
    return torch.from_numpy(np.random.default_rng(0).normal(2, 3, (sum(SIZES), 6)).astype(np.float32))


@pytest.fixture
def encoder(tiles):
    torch.manual_seed(1)
    encoder = SlideEncoder(6, n_hidden=5, n_attention=4).eval()
    encoder.fit_moments(tiles)
    return encoder


def literal(encoder, tiles):
    """One slide: z = sum a_k h_k, a = softmax(w (tanh(V h) * sigm(U h)))."""
    linear = {
        "W": encoder.project[0],
        "V": encoder.attend.branch[0],
        "U": encoder.attend.gate[0],
        "w": encoder.attend.score,
    }
    p = {name: (m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for name, m in linear.items()}
    x = (tiles.double().numpy() - encoder.mean.double().numpy()) / encoder.scale.double().numpy()
    h = np.maximum(x @ p["W"][0].T + p["W"][1], 0)
    v, u = (h @ p[name][0].T + p[name][1] for name in "VU")
    s = (np.tanh(v) / (1 + np.exp(-u))) @ p["w"][0][0] + p["w"][1]
    a = np.exp(s) / np.exp(s).sum()
    return a @ h, a


def test_embedding_and_attention_of_each_slide(encoder, tiles):
    embedding, attention = encoder(tiles, OFFSETS)
    for i, part in enumerate(tiles.split(SIZES)):
        z, a = literal(encoder, part)
        np.testing.assert_allclose(embedding[i].detach(), z, atol=1e-6)
        np.testing.assert_allclose(attention.split(SIZES)[i].detach(), a, atol=1e-6)


@pytest.mark.parametrize("part", [1, 4, 7, 1000])
def test_in_parts_is_the_same(encoder, tiles, part):
    with torch.no_grad():
        encoder.attend.score.weight.mul_(60)  # scores so far apart that sums of one part are nothing beside the next
    embedding, attention = encoder(tiles, OFFSETS)
    asked = []
    found = encoder.in_parts(lambda a, b: asked.append(b - a) or tiles[a:b], OFFSETS, part)
    np.testing.assert_allclose(found[0], embedding.detach(), atol=1e-5)
    np.testing.assert_allclose(found[1], attention.detach(), atol=1e-5)
    assert max(asked) <= part and sum(asked) == len(tiles)


def test_a_slide_without_tiles_has_no_embedding(encoder, tiles):
    offsets = torch.tensor([0, 5, 5, 21])
    embedding, attention = encoder.in_parts(lambda a, b: tiles[a:b], offsets, 4)
    assert embedding[1].isnan().all() and embedding[[0, 2]].isfinite().all() and attention.isfinite().all()


def test_moments_are_those_of_the_tiles(tiles):
    encoder = SlideEncoder(6)
    tiles[:, 2] = 7.3
    encoder.fit_moments(tiles)
    np.testing.assert_allclose(encoder.mean, tiles.mean(0), rtol=1e-5)
    keep = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(encoder.scale[keep], tiles.std(0, correction=0)[keep], rtol=1e-5)
    assert encoder.scale[2] == 1


def test_every_weight_learns(tiles):
    torch.manual_seed(0)
    module = ABMIL(6, 3, n_hidden=5, n_attention=4, dropout=0.0)
    torch.nn.functional.cross_entropy(module(tiles, OFFSETS), torch.tensor([0, 1, 2, 0])).backward()
    # the last bias moves all scores of a slide alike, which changes nothing
    still = [name for name, p in module.named_parameters() if not p.grad.abs().max() > 1e-8]
    assert still == ["encoder.attend.score.bias"]
