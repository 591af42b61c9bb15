"""The loss of TANGLE is symmetric contrast at a fixed temperature."""

import numpy as np
import pytest
import torch

from stfuse.module.losses import info_nce
from stfuse.module.tangle import Tangle


def test_loss_is_contrast_at_the_published_temperature():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    net = Tangle(5, 3, dim=4)
    found = float(net.loss(torch.from_numpy(a), torch.from_numpy(b)))
    # written out
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    logits = unit[0] @ unit[1].T / 0.01
    rows = [np.log(np.exp(m - m.max(1, keepdims=True)).sum(1)) + m.max(1) - np.diag(m) for m in (logits, logits.T)]
    assert found == pytest.approx(np.mean(rows), rel=1e-5)
    scale = torch.tensor(np.log(100.0))
    assert found == pytest.approx(float(info_nce(torch.from_numpy(a), torch.from_numpy(b), scale)), rel=1e-5)


def test_temperature_is_not_learnt():
    net = Tangle(5, 3, dim=4)
    assert "log_scale" not in dict(net.named_parameters())
    code, attention = net.slides(torch.randn(7, 5), torch.tensor([0, 3, 7]))
    assert code.shape == net.genes(torch.randn(2, 3)).shape == (2, 4)
    torch.testing.assert_close(attention[:3].sum(), torch.tensor(1.0))
