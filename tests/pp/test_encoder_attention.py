import copy
import math

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from stfuse.pp._encoders import get_encoder
from stfuse.pp._encoders._attention import class_attention
from stfuse.pp._encoders._conch import ConchTower
from stfuse.pp._encoders._timm import ClassAndPatches

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
HF = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32}


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def crops():
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def vit(img_size=32, **kwargs):
    network = VisionTransformer(img_size=img_size, **SMALL, **kwargs)
    for block in network.blocks:  # far from uniform
        nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return network


def tensor(crops):
    return torch.tensor(crops).permute(0, 3, 1, 2).float() / 255


def by_hand(network, images, layer):
    """Attention of a timm block, from its own weights: softmax of q k / sqrt(d), head by head, token by token."""
    network = copy.deepcopy(network).eval()
    inputs = []
    network.blocks[layer].norm1.register_forward_hook(lambda _, __, output: inputs.append(output))
    with torch.no_grad():
        network(images)
        attention = network.blocks[layer].attn
        weight, bias = attention.qkv.weight.double(), attention.qkv.bias.double()
        x = inputs[0].double()
        heads, width = attention.num_heads, weight.shape[1] // attention.num_heads
        out = np.empty((len(x), heads, x.shape[1], x.shape[1]))
        for i in range(len(x)):
            for head in range(heads):
                rows = slice(head * width, (head + 1) * width)
                after = slice(weight.shape[1] + head * width, weight.shape[1] + (head + 1) * width)
                q = attention.q_norm.double()(x[i] @ weight[rows].T + bias[rows])
                k = attention.k_norm.double()(x[i] @ weight[after].T + bias[after])
                for t in range(x.shape[1]):
                    scores = (k @ q[t]).numpy() / math.sqrt(width)
                    out[i, head, t] = np.exp(scores) / np.exp(scores).sum()
    return out


def n_hooks(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


# arithmetic


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize(
    ("kwargs", "prefix"),
    [
        ({}, 1),
        ({"reg_tokens": 4, "init_values": 0.1}, 5),
        ({"qk_norm": True}, 1),
        ({"no_embed_class": True, "dynamic_img_size": True}, 1),
    ],
)
def test_timm_by_hand(crops, kwargs, prefix, layer):
    network = vit(**kwargs)
    found = class_attention(get_encoder(network), crops, layer=layer)
    expected = by_hand(network, tensor(crops), layer)
    np.testing.assert_allclose(found.weights, expected[:, :, 0, prefix:].reshape(2, 3, 4, 4), atol=1e-5)
    np.testing.assert_allclose(found.prefix, expected[:, :, 0, :prefix].sum(-1), atol=1e-5)
    np.testing.assert_allclose(found.weights.sum((2, 3)) + found.prefix, 1, atol=1e-5)
    assert found.class_token
    assert found.n_blocks == 3
    assert found.weights.dtype == np.float32
    np.testing.assert_allclose(found.relative, found.weights * 16)


@pytest.mark.parametrize(("pool", "class_token"), [("avg", True), ("avg", False), ("map", False)])
def test_features_without_class_token(crops, pool, class_token):
    network = vit(global_pool=pool, class_token=class_token)
    found = class_attention(get_encoder(network), crops)
    expected = by_hand(network, tensor(crops), -1)
    n = int(class_token)
    np.testing.assert_allclose(found.weights.reshape(2, 3, 16), expected[:, :, n:, n:].mean(2), atol=1e-5)
    np.testing.assert_allclose(found.weights.sum((2, 3)) + found.prefix, 1, atol=1e-5)
    assert not found.class_token


@pytest.mark.parametrize("kwargs", [{}, {"qkv_fused": False, "swiglu_mlp": True, "num_reg_tokens": 2}])
def test_rotary_positions(crops, kwargs):
    network = Eva(img_size=32, use_rot_pos_emb=True, global_pool="token", **SMALL, **kwargs)
    found = class_attention(get_encoder(network), crops)
    slow = copy.deepcopy(network).eval()
    seen = []
    for block in slow.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        slow(tensor(crops))
    n = network.num_prefix_tokens
    np.testing.assert_allclose(found.weights.reshape(2, 3, 16), seen[-1][:, :, 0, n:], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "config", "n_prefix"),
    [
        ("ViTModel", "ViTConfig", 1),
        ("ViTForImageClassification", "ViTConfig", 1),
        ("Dinov2Model", "Dinov2Config", 1),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", 5),
        ("DINOv3ViTModel", "DINOv3ViTConfig", 1),
        ("CLIPVisionModel", "CLIPVisionConfig", 1),
        ("SiglipVisionModel", "SiglipVisionConfig", 0),
    ],
)
@pytest.mark.parametrize("layer", [1, -1])
def test_transformers(crops, kind, config, n_prefix, layer):
    network = getattr(transformers, kind)(getattr(transformers, config)(**HF, patch_size=8))
    before = network.config._attn_implementation
    found = class_attention(get_encoder(network), crops, layer=layer)
    assert network.config._attn_implementation == before != "eager"
    assert n_hooks(network) == 0
    slow = copy.deepcopy(network).eval()
    slow.set_attn_implementation("eager")
    with torch.no_grad():
        expected = slow(tensor(crops), output_attentions=True).attentions[layer]
    row = expected[:, :, 0] if n_prefix else expected.mean(2)
    np.testing.assert_allclose(found.weights.reshape(2, 4, 16), row[:, :, n_prefix:], atol=1e-6)
    np.testing.assert_allclose(found.prefix, row[:, :, :n_prefix].sum(-1), atol=1e-6)
    assert found.class_token == bool(n_prefix)
    assert found.n_blocks == 3


def test_transformers_in_a_module(crops):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = transformers.ViTModel(transformers.ViTConfig(**HF, patch_size=8))

        def forward(self, images):
            return self.vit(pixel_values=(images - 0.5) / 0.5).pooler_output

    network = Pooled()
    found = class_attention(get_encoder(network), crops)
    direct = class_attention(get_encoder(nn.Sequential(network.vit)), crops)
    assert not np.allclose(found.weights, direct.weights)  # the module normalises colours first
    network.vit.set_attn_implementation("eager")
    with torch.no_grad():
        expected = network.vit.eval()((tensor(crops) - 0.5) / 0.5, output_attentions=True).attentions[-1]
    np.testing.assert_allclose(found.weights.reshape(2, 4, 16), expected[:, :, 0, 1:], atol=1e-6)


@pytest.mark.parametrize("layer", [0, -1])
def test_torchvision(crops, layer):
    network = torchvision.models.VisionTransformer(32, 8, 3, 4, 64, 64)
    found = class_attention(get_encoder(network), crops, layer=layer)
    assert n_hooks(network) == 0
    slow = copy.deepcopy(network).eval()
    with torch.no_grad():
        tokens = slow._process_input(tensor(crops))
        tokens = torch.cat([slow.class_token.expand(2, -1, -1), tokens], dim=1) + slow.encoder.pos_embedding
        seen = []
        for block in slow.encoder.layers:
            x = block.ln_1(tokens)
            seen.append(block.self_attention(x, x, x, need_weights=True, average_attn_weights=False)[1])
            tokens = block(tokens)
    np.testing.assert_allclose(found.weights.reshape(2, 4, 16), seen[layer][:, :, 0, 1:], atol=1e-6)


# where it lies


@pytest.mark.parametrize("place", [(1, 4), (2, 0), (0, 0)])
def test_planted_patch(place):
    """Keys are how red a patch is; head 0 asks for red and head 1 for nothing."""
    network = VisionTransformer(img_size=(24, 40), patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.patch_embed.proj.weight[0, 0] = 1 / 64  # mean of red
        network.blocks[0].norm1 = nn.Identity()
        network.blocks[0].attn.qkv.weight[8, 0] = 10.0  # key of head 0
        network.blocks[0].attn.qkv.bias[0] = 2.0  # query of head 0, of all tokens
    crop = np.zeros((1, 24, 40, 3), dtype=np.uint8)
    row, column = place
    crop[0, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8, 0] = 255
    found = class_attention(get_encoder(network), crop)
    assert found.weights.shape == (1, 2, 3, 5)
    red = math.exp(10 * 2 / math.sqrt(4))
    expected = np.full((3, 5), 1 / (red + 15))  # 14 other patches and the class token have a score of 0
    expected[place] = red / (red + 15)
    np.testing.assert_allclose(found.weights[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(found.weights[0, 1], 1 / 16, rtol=1e-6)
    np.testing.assert_allclose(found.relative[0, 1], 15 / 16, rtol=1e-6)


def test_crops_of_any_size():
    crops = np.random.default_rng(1).integers(0, 256, (1, 30, 45, 3), dtype=np.uint8)
    padded = class_attention(get_encoder(vit(dynamic_img_size=True, dynamic_img_pad=True)), crops)
    assert padded.weights.shape == (1, 3, 4, 6)
    assert padded.covered == pytest.approx((48 / 45, 32 / 30))

    class Dino(nn.Module):
        def __init__(self):
            super().__init__()
            self.dino = transformers.Dinov2Model(transformers.Dinov2Config(**HF, patch_size=8))

        def forward(self, images):
            return self.dino(images).last_hidden_state[:, 0]

    cut = class_attention(get_encoder(Dino()), crops)
    assert cut.weights.shape == (1, 4, 3, 5)
    assert cut.covered == pytest.approx((40 / 45, 24 / 30))


def test_input_size_of_a_module(crops):
    network = vit(img_size=64)
    network.input_size = 64
    found = class_attention(get_encoder(network), crops)
    assert found.weights.shape == (2, 3, 8, 8)
    assert found.covered == (1, 1)


def test_named_encoder(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    encoder = get_encoder("vit_tiny_patch16_224", checkpoint=tmp_path / "weights.safetensors", device="cpu")
    crops = np.random.default_rng(2).integers(0, 256, (1, 50, 50, 3), dtype=np.uint8)
    before = encoder(crops)
    found = class_attention(encoder, crops, layer=2)
    assert found.weights.shape == (1, 3, 14, 14)
    assert found.n_blocks == 12
    resized = torch.nn.functional.interpolate(
        torch.tensor(crops).permute(0, 3, 1, 2), (224, 224), mode="bicubic", antialias=True, align_corners=False
    )
    expected = by_hand(network, (resized.float() / 255 - 0.5) / 0.5, 2)
    np.testing.assert_allclose(found.weights.reshape(1, 3, 196), expected[:, :, 0, 1:], atol=1e-5)
    np.testing.assert_array_equal(encoder(crops), before)


@pytest.mark.parametrize("tower", [ClassAndPatches, lambda trunk: ConchTower(trunk, 16)])
def test_towers_of_the_table(crops, tower):
    trunk = vit(global_pool="", reg_tokens=1)
    found = class_attention(get_encoder(tower(trunk)), crops)
    expected = by_hand(trunk, tensor(crops), -1)
    np.testing.assert_allclose(found.weights.reshape(2, 3, 16), expected[:, :, 0, 2:], atol=1e-5)


# nothing is left behind


def test_network_is_as_before(crops):
    network = vit(reg_tokens=2).train()
    network.blocks[1].eval()
    modes = [part.training for part in network.modules()]
    weights = copy.deepcopy(network.state_dict())
    encoder = get_encoder(network)
    before = encoder(crops)
    class_attention(encoder, crops)
    assert n_hooks(network) == 0
    assert [part.training for part in network.modules()] == modes
    assert all(block.attn.fused_attn for block in network.blocks)
    assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    np.testing.assert_array_equal(encoder(crops), before)


@pytest.mark.parametrize("family", ["timm", "torchvision", "transformers"])
def test_network_is_as_before_an_error(crops, family):
    network = {
        "timm": lambda: vit(img_size=64),
        "torchvision": lambda: torchvision.models.VisionTransformer(64, 8, 3, 4, 64, 64),
        "transformers": lambda: transformers.ViTModel(transformers.ViTConfig(**{**HF, "image_size": 64}, patch_size=8)),
    }[family]().train()
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        class_attention(get_encoder(network), crops)  # of the wrong size
    assert n_hooks(network) == 0
    assert all(part.training for part in network.modules())
    if family == "timm":
        assert all(block.attn.fused_attn for block in network.blocks)
    if family == "transformers":
        assert network.config._attn_implementation != "eager"


def test_own_hooks_stay(crops):
    network = vit()
    calls = []
    network.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    class_attention(get_encoder(network), crops)
    assert len(calls) == 2
    assert n_hooks(network) == 1


# what is refused


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torchvision.models.mobilenet_v3_small(), "No vision transformer in encoder 'MobileNetV3'"),
        (lambda: timm.create_model("resnet18", num_classes=0), "ResNet of Conv2d"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "No vision transformer in encoder 'SwinTr"),
        (lambda: timm.create_model("xcit_nano_12_p16_224"), "not attention of all tokens to all others"),
        (lambda: nn.Sequential(vit(), vit()), "holds 2 vision transformers"),
        (lambda: lambda images: images.mean((2, 3)), "no network .function.*torch.nn.Module around it"),
        (lambda: "texture", "'texture' is no network .TextureEncoder.*Possible are"),
    ],
)
def test_no_such_network(make, words):
    encoder = get_encoder(make())
    crop = np.zeros((1, 224, 224, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=words):
        class_attention(encoder, crop)


def test_windows_of_transformers(crops):
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=2
    )
    with pytest.raises(ValueError, match="not attention of all tokens to all others"):
        class_attention(get_encoder(transformers.SwinModel(config)), crops)


def test_part_of_a_network_that_is_never_called(crops):
    class Bypass(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = vit()

        def forward(self, images):
            return images.mean((2, 3))

    with pytest.raises(ValueError, match="did not show"):
        class_attention(get_encoder(Bypass()), crops)


@pytest.mark.parametrize("layer", [3, -4])
def test_layer_out_of_range(crops, layer):
    with pytest.raises(ValueError, match=rf"layer={layer}: 'VisionTransformer' has 3 blocks, 0 to 2"):
        class_attention(get_encoder(vit()), crops, layer=layer)
