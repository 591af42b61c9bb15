import numpy as np
import pytest
import torch
from torch import nn

from stfuse.module.cameo import CLIP, SLOPE, Critic, PublishedTranslator, Widths
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
