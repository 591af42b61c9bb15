import math

import numpy as np
import pytest
import torch
from scipy.stats import nbinom

from stfuse.module.gat import GraphAttention, Hop, negative_binomial

NEIGHBORS = {0: [1, 2], 1: [0], 2: [0, 1, 3], 3: []}  # who sends messages to whom
HEADS = 2


def _network(seed=0, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"n_latent": 3, "n_hidden": 8, "n_heads": HEADS, "n_layers": 2}
        module = GraphAttention(5, **(sizes | kwargs)).eval()
        # what is zero or one at the start would hide a mistake
        for p in module.parameters():
            p.data += 0.3 * torch.randn_like(p)
        module.fit_moments(torch.randn(5), torch.rand(5) + 0.5)
        return module


def _hops(n_layers=2):
    pairs = [(j, i) for i, near in NEIGHBORS.items() for j in [i, *near]]
    return [Hop(torch.tensor(pairs).T, len(NEIGHBORS))] * n_layers


def _gelu(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]).reshape(x.shape)


def _literal(module, values):
    """One observation, one head, one neighbour at a time."""
    p = {name: value.detach().double().numpy() for name, value in module.state_dict().items()}
    h = (values - p["mean"]) / p["scale"]
    own = h = _gelu(h @ p["embed.weight"].T + p["embed.bias"])
    for layer in range(len(module.layers)):
        w = {k.removeprefix(f"layers.{layer}."): v for k, v in p.items() if k.startswith(f"layers.{layer}.")}
        sent = h @ w["lin_l.weight"].T + w["lin_l.bias"]
        asked = h @ w["lin_r.weight"].T + w["lin_r.bias"]
        width = sent.shape[1] // HEADS
        out = np.zeros_like(sent)
        for i, near in NEIGHBORS.items():
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                scores = []
                for j in [i, *near]:
                    sum_ = sent[j, part] + asked[i, part]
                    scores.append(float((np.where(sum_ > 0, sum_, 0.2 * sum_) * w["att"][0, head]).sum()))
                weights = np.exp(scores) / np.exp(scores).sum()
                for weight, j in zip(weights, [i, *near], strict=True):
                    out[i, part] += weight * sent[j, part]
        h = _gelu(out + h @ w["res.weight"].T + w["bias"])
    return np.hstack([own, h]) @ p["code.weight"].T + p["code.bias"]


def test_codes_are_those_of_attention_by_hand():
    module, values = _network(), np.random.default_rng(0).normal(size=(4, 5))
    with torch.no_grad():
        found = module.encode(torch.from_numpy(values).float(), _hops())
    np.testing.assert_allclose(found, _literal(module, values), atol=1e-5)


def test_hops_into_fewer_and_fewer_rows():
    """Only what reaches the first row is computed, and it is the same."""
    module, values = _network(), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    first = [(j, i) for i in (0, 1, 2) for j in [i, *NEIGHBORS[i]]]
    second = [(j, 0) for j in [0, *NEIGHBORS[0]]]
    with torch.no_grad():
        found = module.encode(values, [Hop(torch.tensor(first).T, 3), Hop(torch.tensor(second).T, 1)])
        np.testing.assert_allclose(found, module.encode(values, _hops())[:1], atol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "nb"])
def test_hidden_values_are_predicted_without_being_seen(loss):
    module, rng = _network(loss=loss), np.random.default_rng(0)
    counts = torch.from_numpy(rng.poisson(3, (4, 5))).float()
    values, hidden = torch.log1p(counts), torch.from_numpy(rng.random((4, 5)) < 0.4)
    with torch.no_grad():
        codes = module.encode(values, _hops(), hidden)
        errors = module.errors(codes, values, counts, hidden)
        assert errors.shape == (hidden.sum(),) and errors.isfinite().all()
        changed = torch.where(hidden, values + 5, values)
        assert torch.equal(module.encode(changed, _hops(), hidden), codes)
        assert not torch.equal(module.encode(torch.where(hidden, values, values + 5), _hops(), hidden), codes)
        # what is not hidden is no target
        assert torch.equal(module.errors(codes, torch.where(hidden, values, values + 5), counts, hidden), errors)
        more = torch.where(hidden, counts + torch.tensor(1.0), counts)
        moved = module.errors(codes, changed, more, hidden)
        assert (moved != errors).all()


def test_squared_error_is_that_of_standardised_values():
    module = _network()
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    hidden = torch.zeros(4, 5, dtype=torch.bool)
    hidden[1, 2] = hidden[3, 0] = True
    with torch.no_grad():
        codes = module.encode(values, _hops(), hidden)
        out = module.decoder(codes)
        expected = [(out[i, g] - (values[i, g] - module.mean[g]) / module.scale[g]) ** 2 for i, g in ((1, 2), (3, 0))]
        np.testing.assert_allclose(module.errors(codes, values, None, hidden), expected, rtol=1e-5)


def test_negative_binomial_is_scipys():
    rng = np.random.default_rng(0)
    counts, mean, dispersion = rng.poisson(4, 50), rng.gamma(2, 3, 50), rng.gamma(2, 1, 50)
    found = negative_binomial(
        *(torch.from_numpy(np.asarray(x, float)) for x in (counts, np.log(mean), np.log(dispersion)))
    )
    expected = -nbinom.logpmf(counts, dispersion, dispersion / (dispersion + mean))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_means_of_the_negative_binomial_add_up_to_the_counts_of_an_observation(monkeypatch):
    module, seen = _network(loss="nb"), {}

    def spy(counts, log_mean, log_dispersion):
        seen["mean"] = log_mean.exp()
        return -log_mean

    monkeypatch.setattr("stfuse.module.gat.negative_binomial", spy)
    counts = torch.tensor([[1.0, 2, 0, 4, 0], [0, 0, 0, 0, 0]])
    with torch.no_grad():
        module.errors(torch.randn(2, 3), torch.log1p(counts), counts, torch.ones(2, 5, dtype=torch.bool))
    np.testing.assert_allclose(seen["mean"].reshape(2, 5).sum(1), [7, 1], rtol=1e-5)


def test_a_gene_that_does_not_vary_stays_finite():
    module = _network()
    module.fit_moments(torch.full((5,), 2.0), torch.zeros(5))
    assert torch.equal(module.standard(torch.full((1, 5), 2.0)), torch.zeros(1, 5))
