"""The window network against the same layers written out one by one."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stfuse.module.aestetik import WindowAutoencoder, _MedianOfThree, kernel_size

FEATURES, HIDDEN, LATENT = 5, 6, 4
SIZES = [1, 3, 5, 7, 9, 11]


class Encoder(nn.Module):
    """Convolution, normalisation, dropout of channels, rectifier, pooling, linear."""

    def __init__(self, window, ceil, n_latent=LATENT, dropout=0.0):
        super().__init__()
        k = 3 if window > 3 else max(window - 1, 1)
        self.conv, self.norm = nn.Conv2d(FEATURES, HIDDEN, k), nn.BatchNorm2d(HIDDEN)
        self.drop, self.pool = nn.Dropout2d(dropout), nn.MaxPool2d(k, stride=3, ceil_mode=ceil)
        n_conv = window - k + 1
        self.pooled = self.pool(torch.zeros(1, n_conv, n_conv)).shape[1]
        self.head = nn.Linear(HIDDEN * self.pooled**2, n_latent)

    def forward(self, x):
        return self.head(self.pool(self.drop(self.norm(self.conv(x))).relu()).flatten(1))


class Decoder(nn.Module):
    """Linear, rectifier, nearest upsampling, dropout of channels, transposed convolution, normalisation, sigmoid."""

    def __init__(self, window, pooled, n_input=LATENT, dropout=0.0):
        super().__init__()
        k = 3 if window > 3 else max(window - 1, 1)
        self.pooled, self.stem = pooled, nn.Linear(n_input, HIDDEN * pooled**2)
        self.up, self.drop = nn.Upsample(size=(window - k + 1,) * 2, mode="nearest"), nn.Dropout2d(dropout)
        self.conv, self.norm = nn.ConvTranspose2d(HIDDEN, FEATURES, k), nn.BatchNorm2d(FEATURES)

    def forward(self, code):
        h = self.stem(code).relu().reshape(-1, HIDDEN, self.pooled, self.pooled)
        return self.norm(self.conv(self.drop(self.up(h)))).sigmoid()


class Literal(nn.Module):
    """Members one by one, and their median."""

    def __init__(self, window, *, truncate=True, members=3, dropout=0.0, n_batches=0):
        super().__init__()
        self.encoders = nn.ModuleList(Encoder(window, not truncate, dropout=dropout) for _ in range(members))
        pooled = self.encoders[0].pooled
        self.decoders = nn.ModuleList(
            Decoder(window, pooled, LATENT + n_batches, dropout=dropout) for _ in range(members)
        )

    def forward(self, x, told=None):
        code = torch.stack([encoder(x) for encoder in self.encoders]).median(0).values
        told = code if told is None else torch.cat([code, told], 1)
        return code, torch.stack([decoder(told) for decoder in self.decoders]).median(0).values


def pairs(ours, literal):
    """Parameters and moments of both networks that mean the same; ours in slices where it joins members."""
    for e, (encoder, decoder) in enumerate(zip(literal.encoders, literal.decoders, strict=True)):
        part = slice(e * HIDDEN, (e + 1) * HIDDEN)
        for name in ("weight", "bias"):
            yield getattr(ours.encoder.conv, name), part, getattr(encoder.conv, name)
            yield getattr(ours.encoder.heads[e], name), slice(None), getattr(encoder.head, name)
            yield getattr(ours.decoder.stems[e], name), slice(None), getattr(decoder.stem, name)
            yield getattr(ours.decoder.convs[e], name), slice(None), getattr(decoder.conv, name)
        for name in ("weight", "bias", "running_mean", "running_var"):
            yield getattr(ours.encoder.norm, name), part, getattr(encoder.norm, name)
            yield getattr(ours.decoder.norms[e], name), slice(None), getattr(decoder.norm, name)


def both(window, *, truncate=True, members=3, dropout=0.0, n_batches=0, seed=0):
    """The network and its literal version, with the same random weights and moments."""
    torch.manual_seed(seed)
    ours = WindowAutoencoder(
        FEATURES,
        window,
        n_latent=LATENT,
        n_members=members,
        n_hidden=HIDDEN,
        dropout=dropout,
        n_batches=n_batches,
        truncate=truncate,
    ).double()
    literal = Literal(window, truncate=truncate, members=members, dropout=dropout, n_batches=n_batches).double()
    with torch.no_grad():
        for norm in (m for m in ours.modules() if isinstance(m, nn.BatchNorm1d)):
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(norm, name)
                value.copy_(
                    torch.rand_like(value) + 0.5 if name in ("weight", "running_var") else torch.randn_like(value)
                )
        for mine, part, theirs in pairs(ours, literal):
            theirs.copy_(mine[part])
    return ours, literal


def laid_out(windows):
    """Batch x cells x features to batch x features x side x side."""
    side = round(windows.shape[1] ** 0.5)
    return windows.transpose(1, 2).reshape(len(windows), -1, side, side)


def some_windows(window, n=7, seed=1):
    return torch.rand(n, window**2, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("truncate", [True, False], ids=["truncated", "whole"])
@pytest.mark.parametrize("window", SIZES)
def test_codes_windows_gradients_and_moments_are_those_of_the_layers(window, truncate, training):
    ours, literal = both(window, truncate=truncate)
    ours.train(training), literal.train(training)
    x = some_windows(window).requires_grad_()
    y = x.detach().clone().requires_grad_()
    code, rebuilt = ours(x)
    expected_code, expected = literal(laid_out(y))
    torch.testing.assert_close(code, expected_code, rtol=0, atol=1e-10)
    torch.testing.assert_close(laid_out(rebuilt), expected, rtol=0, atol=1e-10)

    weights = torch.randn(rebuilt.shape, dtype=torch.float64)
    ((rebuilt * weights).sum() + code.square().sum()).backward()
    ((expected * laid_out(weights)).sum() + expected_code.square().sum()).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-9)
    for mine, part, theirs in pairs(ours, literal):
        torch.testing.assert_close(mine.detach()[part], theirs.detach(), rtol=0, atol=1e-10)
        if theirs.requires_grad:
            torch.testing.assert_close(mine.grad[part], theirs.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("members", [1, 2, 4, 5])
def test_other_numbers_of_members(members):
    ours, literal = both(5, members=members)
    x = some_windows(5)
    for mine, theirs in zip(ours(x), literal(laid_out(x)), strict=True):
        torch.testing.assert_close(mine if mine.ndim == 2 else laid_out(mine), theirs, rtol=0, atol=1e-10)


def test_single_precision():
    ours, literal = both(5)
    x = some_windows(5).float()
    with torch.no_grad():
        code, rebuilt = ours.float()(x)
        expected_code, expected = literal.float()(laid_out(x))
    torch.testing.assert_close(code, expected_code, rtol=0, atol=1e-5)
    torch.testing.assert_close(laid_out(rebuilt), expected, rtol=0, atol=1e-5)


def test_the_decoder_is_told_the_batch():
    ours, literal = both(3, n_batches=3)
    x, batch = some_windows(3), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    code, rebuilt = ours(x, batch)
    expected_code, expected = literal(laid_out(x), torch.eye(3, dtype=torch.float64)[batch])
    torch.testing.assert_close(code, expected_code, rtol=0, atol=1e-10)
    torch.testing.assert_close(laid_out(rebuilt), expected, rtol=0, atol=1e-10)
    # the code knows nothing of it
    torch.testing.assert_close(ours(x, batch.flip(0))[0], code, rtol=0, atol=0)
    assert (ours(x, batch.flip(0))[1] - rebuilt).abs().max() > 1e-3


# -- which cells are seen --------------------------------------------------------------------------------------------


def seen(window, truncate):
    """Cells of the window whose values reach the code."""
    torch.manual_seed(0)
    network = WindowAutoencoder(FEATURES, window, n_hidden=32, truncate=truncate).eval()
    x = some_windows(window, n=64).float().requires_grad_()
    network.encoder(x).square().sum().backward()
    return (x.grad.abs().sum((0, 2)) > 0).reshape(window, window).numpy()


@pytest.mark.parametrize(("window", "n_seen"), [(1, 1), (3, 3), (5, 5), (7, 5), (9, 8), (11, 11)])
def test_the_published_pooling_does_not_see_the_last_rows_and_columns(window, n_seen):
    expected = np.zeros((window, window), dtype=bool)
    expected[:n_seen, :n_seen] = True
    np.testing.assert_array_equal(seen(window, truncate=True), expected)
    assert seen(window, truncate=False).all()


def test_sizes():
    assert [kernel_size(window) for window in SIZES] == [1, 2, 3, 3, 3, 3]
    # the published network of 20 + 20 features, windows of 5 and of 7
    for window in (5, 7):
        network = WindowAutoencoder(40, window, n_latent=16, n_members=3, n_hidden=64, truncate=True)
        assert sum(p.numel() for p in network.parameters()) == 145_560


def test_nothing_of_the_geometry_is_saved():
    """So that weights trained before do not depend on how it is tabulated."""
    names = {name.split(".")[1] for name in WindowAutoencoder(FEATURES, 5).state_dict()}
    assert names == {"conv", "norm", "heads", "stems", "convs", "norms"}


# -- the median ------------------------------------------------------------------------------------------------------


def test_median_of_three():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(40, 7, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(3)]
    others = [part.detach().clone().requires_grad_() for part in parts]
    found, expected = _MedianOfThree.apply(*parts), torch.stack(others).median(0).values
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weights = torch.randn(40, 7, dtype=torch.float64, generator=generator)
    (found * weights).sum().backward(), (expected * weights).sum().backward()
    for part, other in zip(parts, others, strict=True):
        torch.testing.assert_close(part.grad, other.grad, rtol=0, atol=0)
    assert torch.autograd.gradcheck(_MedianOfThree.apply, tuple(part[:4] for part in parts))


@pytest.mark.parametrize("values", [(1, 1, 2), (2, 1, 1), (1, 2, 1), (3, 3, 3)])
def test_median_of_equals(values):
    """The whole gradient goes to one of those that are the median."""
    parts = [torch.tensor([float(v)], requires_grad=True) for v in values]
    found = _MedianOfThree.apply(*parts)
    assert found.item() == np.median(values)
    (5 * found).sum().backward()
    grads = [part.grad.item() for part in parts]
    assert sorted(grads) == [0, 0, 5] and values[int(np.argmax(grads))] == np.median(values)


# -- dropout ---------------------------------------------------------------------------------------------------------


def drop(monkeypatch, masks):
    """Let the literal version drop the channels that ours dropped."""
    masks = iter(masks)
    monkeypatch.setattr(nn.Dropout2d, "forward", lambda _, x: x * next(masks)[:, :, None, None])


def test_dropped_are_whole_channels_before_rectifier_and_pooling(monkeypatch):
    ours, literal = both(7, truncate=False, dropout=0.4)
    ours.train(), literal.train()
    x = some_windows(7)
    real, masks = F.dropout, []

    def keep(value, p, training):
        masks.append(real(value, p, training))
        return masks[-1]

    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", keep)
        code, rebuilt = ours(x)
    # one mask for the encoder's members together, one for each member of the decoder
    assert [mask.shape for mask in masks] == [(7, 3 * HIDDEN, 1)] + 3 * [(7, HIDDEN, 1)]
    drop(monkeypatch, [*masks[0][..., 0].split(HIDDEN, 1), *(mask[..., 0] for mask in masks[1:])])
    expected_code, expected = literal(laid_out(x))
    torch.testing.assert_close(code, expected_code, rtol=0, atol=1e-10)
    torch.testing.assert_close(laid_out(rebuilt), expected, rtol=0, atol=1e-10)


def test_share_of_dropped_channels():
    """Each row, channel and member for itself; what is kept is enlarged so that the mean stays."""
    torch.manual_seed(0)
    n, p, members = 3_000, 0.3, 3
    network = WindowAutoencoder(FEATURES, 7, n_latent=HIDDEN * 4, n_members=1, n_hidden=HIDDEN, dropout=p)
    encoder = network.encoder.train()
    with torch.no_grad():
        encoder.heads[0].weight.copy_(torch.eye(HIDDEN * 4))
        encoder.heads[0].bias.zero_()
        pooled = torch.rand(n, HIDDEN, 4) + 0.5
        out = torch.stack([encoder.code(pooled) for _ in range(members)]).reshape(members, n, HIDDEN, 4)
    kept = out > 0
    assert (kept.all(3) == kept.any(3)).all()
    torch.testing.assert_close(out[kept], (pooled / (1 - p)).expand_as(out)[kept])
    kept = kept[..., 0].double()
    error = (p * (1 - p) / (n * members)) ** 0.5
    assert ((kept.mean((0, 1)) - (1 - p)).abs() < 5 * error).all()
    # channels do not fall together
    together = torch.corrcoef(kept.reshape(-1, HIDDEN).T) - torch.eye(HIDDEN)
    assert together.abs().max() < 5 / (n * members) ** 0.5
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval().code(pooled), pooled.flatten(1))
