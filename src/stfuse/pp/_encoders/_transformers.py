"""Weights of vision transformers as the transformers library stores them, for the same networks of timm."""

import torch
from torch import Tensor

_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_BLOCK = {  # ViT and DINOv2 have different names for some parts
    "norm1": "norm1",
    "norm2": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_QUERY = "attention.attention.query."
_UNUSED = ("embeddings.mask_token", "pooler.")


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename ViT, DINOv2 and DINOv2-with-registers weights; what has no counterpart keeps its name."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(_UNUSED):
            continue
        layer, _, part = key.removeprefix("encoder.layer.").partition(".")
        if not key.startswith("encoder.layer."):
            renamed[_rename(key, _TOP)] = tensor
        elif part.startswith(_QUERY):
            parts = [state.get(key.replace(".query.", f".{other}.")) for other in ("query", "key", "value")]
            found = [each for each in parts if each is not None]
            renamed[f"blocks.{layer}.attn.qkv.{part.removeprefix(_QUERY)}"] = torch.cat(found)
        elif not part.startswith(("attention.attention.key.", "attention.attention.value.")):
            renamed[f"blocks.{layer}.{_rename(part, _BLOCK)}"] = tensor
    if "reg_token" in renamed and {"pos_embed", "cls_token"} <= renamed.keys():
        # With registers, timm has positions of patches alone: that of the class token is a constant added to it.
        position = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + position[:, :1]
        renamed["pos_embed"] = position[:, 1:]
    return renamed


def _rename(key: str, names: dict[str, str]) -> str:
    if key in names:
        return names[key]
    stem, _, leaf = key.rpartition(".")
    return f"{names[stem]}.{leaf}" if stem in names else key
