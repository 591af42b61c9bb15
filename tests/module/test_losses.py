import math

import numpy as np
import pytest
import torch
from torch import nn

from stfuse.module.losses import (
    MAX_LOG_SCALE,
    alignment,
    critic_loss,
    generator_loss,
    gradient_penalty,
    info_nce,
    one_way_nce,
    pair_margin,
    soft_target_nce,
)


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


# three pairs on the unit circle, at angles that give simple cosines; rows of another length are the same codes
IMAGE = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], dtype=torch.float64)
GENES = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, -1.0]], dtype=torch.float64)
COSINES = [[1.0, 0.6, 0.0], [0.0, 0.8, -1.0], [-1.0, -0.6, 0.0]]


def _cross_entropy(rows, targets):
    return -sum(
        t * (row[j] - math.log(sum(map(math.exp, row))))
        for row, target in zip(rows, targets, strict=True)
        for j, t in enumerate(target)
    ) / len(rows)


def _softmax(row):
    total = sum(map(math.exp, row))
    return [math.exp(v) / total for v in row]


def _scaled(rows, scale):
    return [[scale * v for v in row] for row in rows]


ONE_HOT = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_three_pairs_by_hand():
    there, back = _scaled(COSINES, 2), _scaled(zip(*COSINES, strict=True), 2)
    log_scale = torch.tensor(math.log(2.0))
    forth = _cross_entropy(there, ONE_HOT)
    assert info_nce(IMAGE, GENES, log_scale).item() == pytest.approx((forth + _cross_entropy(back, ONE_HOT)) / 2)
    assert one_way_nce(IMAGE, GENES, log_scale).item() == pytest.approx(forth)
    # the first image: e^2 against e^2, e^1.2 and 1
    first = math.log(1 + math.exp(-0.8) + math.exp(-2))
    assert one_way_nce(IMAGE[:1], GENES[:1], log_scale) == 0
    assert -math.log(_softmax(there[0])[0]) == pytest.approx(first)


def test_soft_targets_by_hand():
    own_image = [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]
    own_genes = [[1, 0.6, 0], [0.6, 1, -0.8], [0, -0.8, 1]]
    mean = [[(a + b) / 2 for a, b in zip(*rows, strict=True)] for rows in zip(own_image, own_genes, strict=True)]
    targets = [_softmax(row) for row in _scaled(mean, 2)]
    assert all(sum(row) == pytest.approx(1) for row in targets)
    there, back = _scaled(COSINES, 2), _scaled(zip(*COSINES, strict=True), 2)
    expected = (_cross_entropy(there, targets) + _cross_entropy(back, targets)) / 2
    assert soft_target_nce(IMAGE, GENES, torch.tensor(math.log(2.0))).item() == pytest.approx(expected)


def test_margin_by_hand():
    # squared distances are 2 - 2 cosine; only (0, 1) is nearer than one, at the root of 0.8
    expected = (0 + 0.4 + 2) / 3 + (1 - math.sqrt(0.8)) ** 2 / 6
    assert pair_margin(IMAGE, GENES).item() == pytest.approx(expected)


def test_margin_of_equal_codes_has_a_slope():
    a = torch.ones(4, 3, requires_grad=True)
    pair_margin(a, torch.ones(4, 3)).backward()
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("loss", [info_nce, one_way_nce, soft_target_nce])
def test_the_temperature_stays_above_a_hundredth(loss):
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    assert loss(a, b, torch.tensor(50.0)) == loss(a, b, torch.tensor(MAX_LOG_SCALE))
    assert loss(a, b, torch.tensor(MAX_LOG_SCALE)) != loss(a, b, torch.tensor(MAX_LOG_SCALE - 1))
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(100, rel=1e-4)
