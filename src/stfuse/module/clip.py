"""Two small encoders that meet in one space: the contrastive baseline."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stfuse.module.scaling import StandardViews


class TwoTowers(nn.Module):
    """linear - GELU - linear per view on standardised features; a learnable temperature."""

    def __init__(self, n_image: int, n_rna: int, n_latent: int = 32, n_hidden: int = 128) -> None:
        super().__init__()
        width = {"image": n_image, "rna": n_rna}
        self.towers = nn.ModuleDict(
            {
                v: nn.Sequential(nn.Linear(w, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_latent))
                for v, w in width.items()
            }
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.standard = StandardViews(n_image, n_rna)

    def native(self, view: str, x: Tensor) -> Tensor:
        """Standardised features."""
        return self.standard.standard(view, x)

    def encode(self, view: str, t: Tensor) -> Tensor:
        """Shared code of standardised rows."""
        return self.towers[view](t)
