"""Style and prototypes beside torch's distributions."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from stfuse.module.style import StyleClusters, cluster_loss, style_loss


@pytest.fixture
def style():
    torch.manual_seed(0)
    return StyleClusters(24, 10)


def test_divergence_from_the_standard_normal_is_the_closed_form():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(6, 4), torch.randn(6, 4)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1).mean()
    assert float(style_loss(mean, log_variance)) == pytest.approx(float(expected), rel=1e-5)
    assert style_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def test_agreement_is_half_of_both_divergences():
    torch.manual_seed(0)
    one, other = torch.randn(2, 5, 7).log_softmax(-1)
    p, q = Categorical(logits=one), Categorical(logits=other)
    expected = 0.5 * (kl_divergence(p, q) + kl_divergence(q, p)).mean()
    assert float(cluster_loss(one, other)) == pytest.approx(float(expected), rel=1e-5)
    assert float(cluster_loss(one, one)) == pytest.approx(0, abs=1e-7)


def test_no_prototype_so_unlikely_that_agreement_is_not_finite():
    one = torch.tensor([[500.0, 0.0, -500.0]]).log_softmax(1)
    assert cluster_loss(one, one.flip(1)).isfinite()


@pytest.mark.parametrize("n", [10, 24, 100])
def test_prototypes_begin_orthonormal_and_stay_of_unit_length(n):
    torch.manual_seed(0)
    style = StyleClusters(24, n)
    rows = style.prototypes.weight.detach()
    np.testing.assert_allclose(rows.norm(dim=1), 1, rtol=1e-5)
    if n <= 24:
        np.testing.assert_allclose(rows @ rows.T, np.eye(n), atol=1e-5)
    else:  # no more than 24 of them can be; their columns are
        gram = rows.T @ rows
        np.testing.assert_allclose(gram, torch.eye(24) * n / 24, atol=0.75 * n / 24)
    optimizer = torch.optim.AdamW(style.parameters(), lr=0.1)
    for _ in range(3):
        style.normalize()
        np.testing.assert_allclose(style.prototypes.weight.detach().norm(dim=1), 1, rtol=1e-5)
        mean, log_variance, likeness = style(torch.randn(8, 24))
        (style_loss(mean, log_variance) - likeness[:, 0].mean()).backward()
        optimizer.step()


def test_a_draw_has_the_mean_and_variance_it_is_told(style):
    code = torch.randn(1, 24)
    mean, log_variance, _ = style(code)
    style.decode = torch.nn.Identity()
    style.prototypes = torch.nn.Identity()
    torch.manual_seed(1)
    drawn = torch.cat([style(code.expand(2000, -1))[2]])
    z = drawn - drawn.logsumexp(1, keepdim=True)
    # log_softmax shifts every row alike: differences of entries tell
    spread = (z[:, :1] - z[:, 1:2]).var()
    expected = log_variance.exp()[0, :2].sum()
    assert float(spread) == pytest.approx(float(expected), rel=0.1)
    assert torch.equal(style(code, draw=False)[0], mean)


def test_without_a_draw_it_is_the_same_twice(style):
    code = torch.randn(3, 24)
    assert torch.equal(style(code, draw=False)[2], style(code, draw=False)[2])
    np.testing.assert_allclose(style(code)[2].exp().sum(1).detach(), 1, rtol=1e-5)
