import numpy as np
import pytest
import torch
from torch import nn

import stfuse
from stfuse.module.anchor import AnchorData, fit_anchor
from stfuse.module.cameo import CLIP, SLOPE, AnchoredTranslator, Critic, PublishedTranslator, Widths
from stfuse.module.clip import TwoTowers


def _linears(module):
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def test_published_widths():
    """Appendix E.3: d = min of the views; d -> d -> d/2, d/2 -> d/4 and back, critic d -> d/4 -> 1."""
    module = PublishedTranslator(1024, 128)
    d = 128
    assert Widths(1024, 128).d == d
    assert _linears(module.encoders["image"]) == [(1024, d), (d, d // 2)]
    assert _linears(module.encoders["rna"]) == [(d, d), (d, d // 2)]
    assert _linears(module.shared_encoder) == [(d // 2, d // 4)]
    assert _linears(module.shared_decoder) == [(d // 4, d // 2)]
    assert _linears(module.decoders["image"]) == [(d // 2, d), (d, 1024)]
    assert _linears(module.decoders["rna"]) == [(d // 2, d), (d, d)]
    assert _linears(module.critics["rna"]) == [(d, d // 4), (d // 4, 1)]
    assert module.n_code == d // 4


def test_published_layers_are_batchnorm_and_leaky_relu():
    module = PublishedTranslator(64, 32)
    for part in (*module.encoders.values(), module.shared_encoder, module.shared_decoder):
        kinds = [type(m) for m in part]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU] * (len(kinds) // 3)
    slopes = {m.negative_slope for m in module.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {SLOPE} == {0.2}
    assert isinstance(module.decoders["image"][-1], nn.Linear)


@pytest.mark.parametrize(("n_image", "n_rna"), [(1, 1), (2, 9), (5, 5), (100, 7)])
def test_published_works_on_narrow_views(n_image, n_rna):
    module = PublishedTranslator(n_image, n_rna)
    t = torch.randn(6, n_image)
    assert module.translate("image", t).shape == (6, n_rna)
    assert module.cycle("image", t, module.encode("image", t), module.translate("image", t)).ndim == 0


def test_cycle_is_the_papers():
    module = PublishedTranslator(8, 8).eval()
    t = torch.randn(5, 8)
    there = module.translate("image", t)
    back = module.translate("rna", there)
    assert module.cycle("image", t, module.encode("image", t), there).item() == pytest.approx(
        np.abs(back.detach().numpy() - t.numpy()).mean(), rel=1e-5
    )


def test_joint_batch_shows_a_shift_and_separate_batches_hide_it():
    torch.manual_seed(0)
    critic = Critic(16, 8, norm=True)
    for layer in (critic.first, critic.last):
        nn.init.constant_(layer.weight, 0.1)
    real = torch.randn(500, 16)
    fake = real + 0.5
    joint = critic.joint(real, fake)
    np.testing.assert_allclose(torch.cat(joint).detach(), critic(torch.cat([real, fake])).detach())
    apart = critic(real), critic(fake)
    assert abs(apart[0].mean() - apart[1].mean()) < 1e-4
    assert abs(joint[0].mean() - joint[1].mean()) > 0.1


def test_clip_leaves_the_gains_of_batchnorm():
    critic = Critic(16, 8, norm=True)
    with torch.no_grad():
        critic.norm.weight.fill_(1.5)
        critic.first.weight[0, 0] = 5
        critic.last.bias.fill_(-3)
    critic.clip()
    assert (critic.norm.weight == 1.5).all()
    for layer in (critic.first, critic.last):
        assert max(layer.weight.abs().max(), layer.bias.abs().max()) <= CLIP == 0.01


def test_generator_parameters_leave_out_the_critics():
    module = PublishedTranslator(8, 6)
    generator, critics = module.generator_parameters(), list(module.critics.parameters())
    assert len(generator) + len(critics) == len(list(module.parameters()))
    assert not {id(p) for p in generator} & {id(p) for p in critics}


def test_two_towers_shapes_and_temperature():
    towers = TwoTowers(10, 6, n_latent=4, n_hidden=7)
    assert towers.encode("image", torch.randn(3, 10)).shape == towers.encode("rna", torch.randn(3, 6)).shape == (3, 4)
    assert towers.log_scale.exp().item() == pytest.approx(1 / 0.07)


def _anchored(seed=0):
    """A small anchored network whose residuals are not zero."""
    adata = stfuse.datasets.synthetic_tissue(300, seed=seed)
    x, y = adata.obsm["X_image"], adata.obsm["X_pca"]
    has = np.ones(300, bool)
    data = AnchorData(x, y, has, has, np.arange(200), np.zeros(300, int), None)
    anchor, _ = fit_anchor(data, n_components=10)
    torch.manual_seed(seed)
    module = AnchoredTranslator(anchor, 16, 0.0).eval()
    native = {"image": anchor.whiten("image", x), "rna": anchor.whiten("rna", y)}
    return module, native


@torch.no_grad()
def test_network_starts_as_the_anchor():
    module, native = _anchored()
    for source, target in (("image", "rna"), ("rna", "image")):
        expected = module.anchor.translate(source, native[source], None)
        torch.testing.assert_close(module.components(source, native[source]), expected)
        torch.testing.assert_close(
            module.encode(source, native[source]), module.anchor.code(source, native[source], None)
        )
        assert module.split(target, module.translate(source, native[source]))[0].shape == expected.shape


@torch.no_grad()
def test_trust_is_the_least_squares_step_less_its_error():
    module, native = _anchored()
    for parameter in module.decoders.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    rows = torch.arange(200, 300)
    linear, network = module._translations("image", native["image"][rows])
    # the truth lies half-way for the first component, at the anchor for the second, beyond the network for the third
    truth = native["rna"].clone()
    truth[rows] = linear
    truth[rows, 0] = 0.5 * (linear + network)[:, 0]
    truth[rows, 2] = (linear + 3 * (network - linear))[:, 2]
    truth[rows, 3] = (linear - (network - linear))[:, 3]
    module.fit_trust({"image": native["image"], "rna": truth}, rows)
    np.testing.assert_allclose(module.get_buffer("trust_rna")[:4], [0.5, 0, 1, 0], atol=1e-5)
    # noise around the half-way point takes its standard error away
    noise = torch.randn(100, generator=torch.Generator().manual_seed(1)) * 0.3
    truth[rows, 0] += noise
    step, miss = (network - linear)[:, 0].numpy(), (truth[rows] - linear)[:, 0].numpy()
    slope = step @ miss / (step @ step)
    error = np.sqrt(((miss - slope * step) ** 2).sum() / 99 / (step @ step))
    module.fit_trust({"image": native["image"], "rna": truth}, rows)
    np.testing.assert_allclose(module.get_buffer("trust_rna")[0], np.clip(slope - error, 0, 1), atol=1e-5)
    mixed = module.components("image", native["image"][rows])
    np.testing.assert_allclose(
        mixed[:, 0], (linear + module.get_buffer("trust_rna")[0] * (network - linear))[:, 0], atol=1e-5
    )
