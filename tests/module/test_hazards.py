"""Hazards in discrete time."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from stfuse.module.hazards import hazard_nll, risk_of


@pytest.fixture
def slides():
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, 4)) * 2, rng.integers(0, 4, 50), rng.random(50) < 0.4


def nll(logits, bins, event):
    return hazard_nll(torch.tensor(logits), torch.tensor(bins), torch.tensor(event)).numpy()


def test_nll_is_a_literal_loop(slides):
    logits, bins, event = slides
    hazard = 1 / (1 + np.exp(-logits))
    expected = []
    for h, last, died in zip(hazard, bins, event, strict=True):
        total = sum(np.log(1 - h[t]) for t in range(last))
        total += np.log(h[last]) if died else np.log(1 - h[last])
        expected.append(-total)
    np.testing.assert_allclose(nll(*slides), expected, rtol=1e-10)


def test_nll_is_the_log_loss_of_the_bins_gone_through(slides):
    logits, bins, event = slides
    seen = [(logits[i, t], event[i] and t == bins[i]) for i in range(50) for t in range(bins[i] + 1)]
    logit, died = np.array(seen).T
    assert nll(*slides).sum() == pytest.approx(log_loss(died, 1 / (1 + np.exp(-logit)), normalize=False))


def test_nll_stays_finite_and_has_a_slope_where_hazards_are_0_or_1():
    logits = torch.tensor([[-800.0, 800.0], [900.0, -900.0]], requires_grad=True)
    loss = hazard_nll(logits, torch.tensor([1, 0]), torch.tensor([False, True]))
    np.testing.assert_allclose(loss.detach(), [800.0, 0.0], atol=1e-6)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] == 1 and logits.grad[1, 1] == 0  # the second bin of the second slide was never reached


def test_gradients_are_exact():
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    bins, event = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 0, 1, 0, 1, 0])
    assert torch.autograd.gradcheck(lambda z: hazard_nll(z, bins, event), (logits,))
    assert torch.autograd.gradcheck(risk_of, (logits,))


def test_risk_by_hand():
    hazard = torch.tensor([[0.5, 0.2], [0.0001, 0.0001], [0.9999, 0.5]], dtype=torch.float64)
    risk = risk_of(torch.logit(hazard))
    assert risk[0].item() == pytest.approx(-(0.5 + 0.5 * 0.8))
    assert -2 <= risk[1] < -1.99 and -0.01 < risk[2] <= 0
