"""The image tower of CONCH (Lu et al. 2024): a ViT-B/16 whose tokens one learned query attends to."""

import torch
from torch import Tensor, nn

from stfuse.pp._encoders._table import Row
from stfuse.pp._encoders._weights import import_extra

_OWN = ("trunk.", "attn_pool_contrast.", "ln_contrast.")


class AttentionPool(nn.Module):
    """Multi-head attention of one learned query to all tokens."""

    def __init__(self, dimension: int, width: int, heads: int = 8) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dimension))
        self.attn = nn.MultiheadAttention(dimension, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_q = nn.LayerNorm(dimension)
        self.ln_k = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens (b x t x width) into b x dimension."""
        tokens = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)
        return self.attn(query, tokens, tokens, need_weights=False)[0][:, 0]


class ConchTower(nn.Module):
    """Trunk, attention pool and layer norm: what comes before the projection into the space shared with text."""

    def __init__(self, trunk: nn.Module, dimension: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionPool(dimension, int(trunk.num_features))  # type: ignore[arg-type]
        self.ln_contrast = nn.LayerNorm(dimension)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images into features."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk(images)))


def build(row: Row) -> nn.Module:
    """Build the tower without weights."""
    timm = import_extra("timm")
    kwargs = {"img_size": row.input_size, "num_classes": 0, "global_pool": "", **row.kwargs}
    with torch.device("meta"):
        return ConchTower(timm.create_model(row.architecture, **kwargs), row.dimension)


def image_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the image tower's part of the released weights, which hold text tower, captioning and projection too."""
    visual = {key.removeprefix("visual."): tensor for key, tensor in state.items() if key.startswith("visual.")}
    return {key: tensor for key, tensor in visual.items() if key.startswith(_OWN)} if visual else state
