import numpy as np
import pytest
import torch
from torch import nn

from stfuse.module.losses import alignment, critic_loss, generator_loss, gradient_penalty, info_nce


def _literal_info_nce(a, b, scale):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    n, total = len(a), 0.0
    for i in range(n):
        forth = np.array([scale * (a[i] @ b[j]) for j in range(n)])
        back = np.array([scale * (a[j] @ b[i]) for j in range(n)])
        total += -forth[i] + np.log(np.exp(forth).sum()) - back[i] + np.log(np.exp(back).sum())
    return total / (2 * n)


@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_info_nce_is_the_literal_loop(scale):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    ours = info_nce(torch.from_numpy(a), torch.from_numpy(b), torch.tensor(np.log(scale)))
    assert ours.item() == pytest.approx(_literal_info_nce(a, b, scale))


def test_info_nce_scale_stops_at_100():
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    assert info_nce(a, b, torch.tensor(50.0)) == info_nce(a, b, torch.tensor(4.6052))


def test_alignment_does_not_depend_on_the_width():
    a, b = torch.randn(7, 3), torch.randn(7, 3)
    assert alignment(a, b).item() == pytest.approx(((a - b) ** 2).sum(1).mean().item() / 3)
    assert alignment(a.repeat(1, 4), b.repeat(1, 4)).item() == pytest.approx(alignment(a, b).item())


@pytest.mark.parametrize("kind", ["wgan", "wgan-gp"])
def test_wasserstein_signs(kind):
    real, fake = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 2.0])
    assert critic_loss(kind, real, fake) == 1.5 - 4  # the critic raises real and lowers generated scores
    assert generator_loss(kind, fake) == -1.5


def test_gan_is_binary_cross_entropy():
    real, fake = torch.randn(6), torch.randn(6)
    bce = nn.BCEWithLogitsLoss()
    one, zero = torch.ones(6), torch.zeros(6)
    torch.testing.assert_close(critic_loss("gan", real, fake), bce(real, one) + bce(fake, zero))
    torch.testing.assert_close(generator_loss("gan", fake), bce(fake, one))


def test_gradient_penalty_is_the_literal_one():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    real, fake = torch.randn(4, 3), torch.randn(4, 3)
    ours = gradient_penalty(lambda x: net(x).squeeze(1), real, fake, torch.Generator().manual_seed(3))
    mix = torch.rand(4, 1, generator=torch.Generator().manual_seed(3))
    total = 0.0
    for i in range(4):
        point = (mix[i] * real[i] + (1 - mix[i]) * fake[i]).requires_grad_(True)
        net(point).backward()
        total += (point.grad.norm() - 1) ** 2
        net.zero_grad()
    assert ours.item() == pytest.approx(total.item() / 4, rel=1e-5)
    ours.backward()
    assert net[0].weight.grad.abs().sum() > 0


def test_gradient_penalty_of_a_unit_slope_is_zero():
    direction = torch.tensor([0.6, 0.8])
    ours = gradient_penalty(
        lambda x: x @ direction, torch.randn(5, 2), torch.randn(5, 2), torch.Generator().manual_seed(0)
    )
    assert ours.item() == pytest.approx(0, abs=1e-10)
