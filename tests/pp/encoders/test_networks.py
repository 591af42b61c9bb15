"""The networks with random weights: their embeddings against independent implementations."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import swin_t
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from stfuse.pp._encoders import _get, get_encoder
from stfuse.pp._encoders._load import build
from stfuse.pp._encoders._table import ROWS

TABLE = {row.name: row for row in ROWS}
CROPS = np.random.default_rng(0).integers(0, 256, (2, 60, 70, 3), dtype=np.uint8)


def shorten(name, monkeypatch, depth):
    """Let a network have few blocks; its width and everything else stays."""
    row = TABLE[name]
    short = dataclasses.replace(row, kwargs={**row.kwargs, "depth": depth})
    monkeypatch.setattr(_get, "ROWS", tuple(short if r is row else r for r in ROWS))
    return short


def random_file(row, path, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    state = build(row).state_dict()
    save_file({k: (torch.randn(v.shape, generator=generator) * 0.05).to(dtype) for k, v in state.items()}, path)
    return path


def tokens(network, encode):
    with torch.inference_mode():
        return network.eval().forward_features(encode.prepare(CROPS))


@pytest.mark.parametrize("name", ["uni", "uni2-h", "virchow", "virchow2", "h-optimus-0", "h-optimus-1"])
def test_embeddings_of_timm_networks(name, monkeypatch, tmp_path):
    row = shorten(name, monkeypatch, depth=1)
    path = random_file(row, tmp_path / "x.safetensors")
    encode = get_encoder(name, checkpoint=path, device="cpu")
    features = encode(CROPS)
    assert features.shape == (2, TABLE[name].dimension) and encode.n_features == TABLE[name].dimension

    swiglu = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU} if row.swiglu else {}
    network = timm.create_model(row.architecture, img_size=224, num_classes=0, **row.kwargs, **swiglu)
    timm.models.load_checkpoint(network, str(path))
    every = tokens(network, encode)
    registers = {"virchow": 0, "virchow2": 4, "uni": 0, "uni2-h": 8}.get(name, 4)
    grid = 14 if name == "uni" else 16
    assert every.shape[1] == 1 + registers + grid**2
    expected = every[:, 0]
    if name.startswith("virchow"):
        expected = torch.cat([expected, every[:, 1 + registers :].mean(dim=1)], dim=1)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-4)


def as_released(model, path):
    """What transformers writes has the names of the released files, whatever its own modules are called."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.eval().save_pretrained(path)
    return path / "model.safetensors"


@pytest.mark.parametrize("name", ["phikon", "phikon-v2", "hibou-b", "hibou-l"])
def test_embeddings_equal_those_of_transformers(name, monkeypatch, tmp_path):
    shorten(name, monkeypatch, depth=2)
    base = name in {"phikon", "hibou-b"}
    size = {"hidden_size": 768 if base else 1024, "num_attention_heads": 12 if base else 16, "num_hidden_layers": 2}
    if name == "phikon":
        model = ViTModel(ViTConfig(**size, image_size=224, patch_size=16, layer_norm_eps=1e-6), add_pooling_layer=False)
    elif name == "phikon-v2":
        model = Dinov2Model(Dinov2Config(**size, image_size=224, patch_size=16))
    else:
        registers = {"image_size": 224, "patch_size": 14, "num_register_tokens": 4, "use_swiglu_ffn": True}
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**size, **registers))
    path = as_released(model, tmp_path)
    encode = get_encoder(name, checkpoint=path, device="cpu")
    with torch.inference_mode():
        expected = model(encode.prepare(CROPS)).last_hidden_state[:, 0]
    np.testing.assert_allclose(encode(CROPS), expected.numpy(), atol=1e-4)
    assert encode.n_features == expected.shape[1] == TABLE[name].dimension


@pytest.mark.parametrize("name", ["phikon", "hibou-b"])
def test_full_size(name, tmp_path):
    row = TABLE[name]
    size = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "image_size": 224}
    if name == "phikon":
        model = ViTModel(ViTConfig(**size, patch_size=16), add_pooling_layer=False)
    else:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**size, patch_size=14, use_swiglu_ffn=True))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    encode = get_encoder(name, checkpoint=tmp_path / "model.safetensors", device="cpu")
    assert encode(CROPS[:1]).shape == (1, row.dimension)


@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "ctranspath", "conch"])
def test_full_size_of_other_networks(name, tmp_path):
    row = TABLE[name]
    state = build(row).to_empty(device="cpu") if name != "ctranspath" else build(row)
    own = {
        k: torch.zeros_like(v) if "running_mean" in k else torch.ones_like(v) * 0.01
        for k, v in state.state_dict().items()
    }
    own |= {"fc.weight": torch.zeros(3, 3), "AuxLogits.fc.weight": torch.zeros(3, 3)}
    save_file(own, tmp_path / "x.safetensors")
    encode = get_encoder(name, checkpoint=tmp_path / "x.safetensors", device="cpu")
    assert encode(CROPS[:1]).shape == (1, row.dimension)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uni", "uni2-h", "virchow2", "h-optimus-0", "phikon-v2"])
def test_full_size_of_large_networks(name, tmp_path):
    row = TABLE[name]
    path = tmp_path / "x.safetensors"
    random_file(dataclasses.replace(row, layout="timm"), path, torch.bfloat16)
    encode = get_encoder(name, checkpoint=path, device="cpu")
    assert encode(CROPS[:1]).shape == (1, row.dimension)
    path.unlink()


def test_conch_pools_by_attention(monkeypatch, tmp_path):
    """Against attention written out head by head; the released file holds a text tower and other heads besides."""
    row = shorten("conch", monkeypatch, depth=2)
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) * 0.05 for k, v in build(row).state_dict().items()}
    released = {f"visual.{k}": v for k, v in state.items()} | {
        "logit_scale": torch.ones(()),
        "text.token_embedding.weight": torch.zeros(4, 4),
        "text_decoder.text_projection": torch.zeros(4, 4),
        "visual.proj_contrast": torch.zeros(512, 512),
        "visual.attn_pool_caption.query": torch.zeros(256, 768),
        "visual.ln_caption.weight": torch.zeros(768),
    }
    torch.save(released, tmp_path / "pytorch_model.bin")
    encode = get_encoder("conch", checkpoint=tmp_path / "pytorch_model.bin", allow_pickle=True, device="cpu")
    assert encode.input_size == 448

    trunk = timm.models.VisionTransformer(img_size=448, patch_size=16, num_classes=0, depth=2)
    trunk.load_state_dict({k.removeprefix("trunk."): v for k, v in state.items() if k.startswith("trunk.")})
    x = tokens(trunk, encode)
    pool = {k.removeprefix("attn_pool_contrast."): v for k, v in state.items()}
    norm = nn.functional.layer_norm
    keys = norm(x, (768,), pool["ln_k.weight"], pool["ln_k.bias"])
    query = norm(pool["query"], (512,), pool["ln_q.weight"], pool["ln_q.bias"])
    bias = pool["attn.in_proj_bias"].split(512)
    q = query @ pool["attn.q_proj_weight"].T + bias[0]
    k = keys @ pool["attn.k_proj_weight"].T + bias[1]
    v = keys @ pool["attn.v_proj_weight"].T + bias[2]
    heads = []
    for h in range(8):
        part = slice(64 * h, 64 * (h + 1))
        attention = (q[:, part] @ k[..., part].transpose(1, 2) / 8).softmax(dim=-1)
        heads.append((attention @ v[..., part])[:, 0])
    pooled = torch.cat(heads, dim=1) @ pool["attn.out_proj.weight"].T + pool["attn.out_proj.bias"]
    expected = norm(pooled, (512,), state["ln_contrast.weight"], state["ln_contrast.bias"])
    np.testing.assert_allclose(encode(CROPS), expected.numpy(), atol=1e-4)


PARTS = {  # of a block: as torchvision calls it, as old timm does
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
}


def test_ctranspath_reads_files_of_old_timm(tmp_path):
    """Against torchvision's Swin behind a stem written out; the file is nested and named as the released one."""
    torch.manual_seed(0)
    swin = swin_t(weights=None)
    stem = nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 96, 1),
    )
    with torch.no_grad():
        for parameter in [*swin.parameters(), *stem.parameters()]:
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
        stem[1].running_mean.normal_()
        stem[4].running_var.uniform_(0.5, 2)
    theirs = swin.state_dict()
    old = {f"patch_embed.proj.{k}": v for k, v in stem.state_dict().items()}
    for leaf in ("weight", "bias"):
        old[f"patch_embed.norm.{leaf}"] = theirs[f"features.0.2.{leaf}"]
        old[f"norm.{leaf}"] = theirs[f"norm.{leaf}"]
    for stage, depth in enumerate((2, 2, 6, 2)):
        for block in range(depth):
            here, there = f"layers.{stage}.blocks.{block}", f"features.{2 * stage + 1}.{block}"
            for part, name in PARTS.items():
                for leaf in ("weight", "bias"):
                    old[f"{here}.{name}.{leaf}"] = theirs[f"{there}.{part}.{leaf}"]
            old[f"{here}.attn.relative_position_bias_table"] = theirs[f"{there}.attn.relative_position_bias_table"]
            old[f"{here}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
            if block % 2 and stage < 3:
                old[f"{here}.attn_mask"] = torch.zeros(1, 49, 49)
        if stage < 3:
            merge = f"features.{2 * stage + 2}"
            old |= {
                f"layers.{stage}.downsample.{k}": theirs[f"{merge}.{k}"] for k in ("reduction.weight", "norm.weight")
            }
            old[f"layers.{stage}.downsample.norm.bias"] = theirs[f"{merge}.norm.bias"]
    torch.save({"model": old}, tmp_path / "ctranspath.pth")
    encode = get_encoder("ctranspath", checkpoint=tmp_path / "ctranspath.pth", allow_pickle=True, device="cpu")

    swin.eval(), stem.eval()
    with torch.inference_mode():
        x = stem(encode.prepare(CROPS)).permute(0, 2, 3, 1)
        x = swin.norm(swin.features[1:](swin.features[0][2](x)))
        expected = x.mean(dim=(1, 2)).numpy()
    features = encode(CROPS)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(features, expected, atol=1e-4)

    # the names of newer timm are read as well
    new = {k: v.contiguous() for k, v in encode.module.state_dict().items()}
    assert any(k.startswith("layers.1.downsample") for k in new) and not any(k.startswith("layers.0.down") for k in new)
    save_file(new, tmp_path / "new.safetensors")
    again = get_encoder("ctranspath", checkpoint=tmp_path / "new.safetensors", device="cpu")
    np.testing.assert_array_equal(again(CROPS), features)
