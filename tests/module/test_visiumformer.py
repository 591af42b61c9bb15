"""The transformer of gene tokens against torch's, padding against none, and hidden genes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stfuse.module.visiumformer import PRESETS, Visiumformer, hide, masked_loss, mean_of_genes

SIZES = {"d_model": 16, "n_layers": 3, "n_heads": 4, "d_ff": 24, "context": 12}
GENES = 30


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Visiumformer(GENES, **SIZES).eval()


def some_tokens(*lengths, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), width, dtype=torch.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randperm(GENES, generator=generator)[:length] + 2
    return tokens


def reference(module):
    """torch's own encoder with the same weights."""
    layer = nn.TransformerEncoderLayer(
        16, 4, 24, dropout=0.0, activation="relu", layer_norm_eps=1e-12, batch_first=True, norm_first=False
    )
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    encoder.load_state_dict({f"layers.{name}": value for name, value in module.layers.state_dict().items()})
    return encoder.eval()


def test_is_the_encoder_of_torch(module):
    tokens = some_tokens(12, 12, 5, 1, 9)
    x = module.embedding(tokens) + module.positions(torch.arange(12))
    for encoder in (reference(module), reference(module).train()):  # the fast path, and the usual one
        expected = encoder(x, src_key_padding_mask=tokens == 0)
        there = tokens != 0
        torch.testing.assert_close(module.hidden(tokens)[there], expected[there], rtol=1e-5, atol=1e-5)
    whole = tokens[:2]
    torch.testing.assert_close(module.hidden(whole), reference(module)(x[:2]), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_torch(module):
    tokens, torchs = some_tokens(12, 4), reference(module).train()
    x = (module.embedding(tokens) + module.positions(torch.arange(12))).detach()
    there = tokens != 0
    module.attend(x, there[:, None, None, :])[there].square().sum().backward()
    torchs(x, src_key_padding_mask=~there)[there].square().sum().backward()
    for name, value in torchs.layers.named_parameters():
        ours = module.layers.get_parameter(name).grad
        torch.testing.assert_close(ours, value.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_padding_changes_nothing(module):
    tokens = some_tokens(12, 7, 3, 1)
    together = module.encode(tokens)
    for row, length, code in zip(tokens, (12, 7, 3, 1), together, strict=True):
        torch.testing.assert_close(module.encode(row[None, :length])[0], code, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.encode(F.pad(tokens[1:, :7], (0, 5))), together[1:], rtol=1e-5, atol=1e-6)


def test_the_code_is_the_mean_over_genes(module):
    hidden = torch.arange(24.0).reshape(2, 3, 4)
    hidden[1, 1:] = torch.nan
    mean = mean_of_genes(hidden, torch.tensor([[5, 4, 3], [5, 0, 0]]))
    torch.testing.assert_close(mean, torch.tensor([[4.0, 5, 6, 7], [12, 13, 14, 15]]))
    tokens = some_tokens(6, 12)
    torch.testing.assert_close(module.encode(tokens)[0], module.hidden(tokens)[0, :6].mean(0))


def test_a_row_without_genes_has_no_code(module):
    codes = module.encode(some_tokens(4, 0, 12))
    assert torch.isfinite(codes[[0, 2]]).all() and torch.isnan(codes[1]).all()


def test_no_more_than_the_context_is_read(module):
    tokens = some_tokens(20, 14, width=20)
    torch.testing.assert_close(module.encode(tokens), module.encode(tokens[:, :12]))


def test_the_order_counts(module):
    tokens = some_tokens(8, width=8)
    assert (module.encode(tokens) - module.encode(tokens.flip(1))).abs().max() > 1e-2


def test_published_sizes():
    """25.23 M parameters in the layers, 0.77 M in the positions, and 512 + 1 a gene in the head."""
    with torch.device("meta"):
        base = Visiumformer(20_310, **PRESETS["base"])
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in base.named_children()}
    assert sizes["positions"] == 1500 * 512 and sizes["head"] == 20_310 * 513
    assert sizes["layers"] == 12 * (4 * 512 * 512 + 4 * 512 + 2 * 512 * 1024 + 1024 + 512 + 4 * 512)
    assert round(sizes["layers"] / 1e6, 2) == 25.23


def test_which_genes_are_hidden():
    tokens = some_tokens(*([12, 6] * 3000))
    generator = torch.Generator().manual_seed(1)
    changed, chosen = hide(tokens, GENES, 0.15, generator)
    there = tokens != 0
    assert changed.dtype == tokens.dtype and not (chosen & ~there).any()
    assert torch.equal(changed[~chosen], tokens[~chosen])
    assert chosen[there].float().mean().item() == pytest.approx(0.15, abs=0.007)
    now = changed[chosen]
    shares = [(now == 1).float().mean(), (now == tokens[chosen]).float().mean()]
    # one of the genes drawn at random is the same by chance
    assert shares[0].item() == pytest.approx(0.8, abs=0.02)
    assert shares[1].item() == pytest.approx(0.1 + 0.1 / GENES, abs=0.015)
    drawn = now[(now != 1) & (now != tokens[chosen])]
    assert set(drawn.tolist()) == set(range(2, GENES + 2))
    again = hide(tokens, GENES, 0.15, torch.Generator().manual_seed(1))
    assert torch.equal(again[0], changed) and torch.equal(again[1], chosen)


def test_one_gene_at_least_is_guessed():
    tokens = some_tokens(1, 2)
    for seed in range(20):
        changed, chosen = hide(tokens, GENES, 1e-6, torch.Generator().manual_seed(seed))
        assert chosen.sum() == 1 and (tokens[chosen] != 0).all()
        assert torch.equal(changed, tokens)


def test_the_loss_is_that_of_the_chosen_genes(module):
    tokens, hidden = some_tokens(12, 5), torch.randn(2, 12, 16)
    chosen = torch.zeros(2, 12, dtype=torch.bool)
    chosen[0, 3] = chosen[1, 4] = True
    logits = module.head(hidden).log_softmax(-1)
    expected = -(logits[0, 3, tokens[0, 3] - 2] + logits[1, 4, tokens[1, 4] - 2]) / 2
    torch.testing.assert_close(masked_loss(module, hidden, tokens, chosen), expected)


def test_linear_maps_begin_as_published(module):
    weights = [module.head.weight, module.layers[0].linear1.weight, module.layers[1].self_attn.in_proj_weight]
    for weight in weights:
        expected = np.sqrt(2 / sum(weight.shape))
        assert weight.std().item() == pytest.approx(expected, rel=0.15)
    assert not any(p.any() for name, p in module.named_parameters() if name.endswith("bias") and "norm" not in name)
