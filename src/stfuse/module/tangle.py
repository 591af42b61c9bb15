"""Slides and RNA made alike by contrast alone (TANGLE, Jaume et al. 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stfuse.module.abmil import SlideEncoder, StandardFeatures
from stfuse.module.losses import info_nce

TEMPERATURE = 0.01
TILE_DROPOUT, ATTENTION_DROPOUT, GENE_DROPOUT = 0.1, 0.25, 0.2


class GenePerceptron(StandardFeatures):
    """Standardised genes through two hidden layers to a code."""

    def __init__(self, n_genes: int, dim: int) -> None:
        super().__init__(n_genes)
        widths = [n_genes, dim, dim]
        layers = [
            layer
            for n, m in zip(widths[:-1], widths[1:], strict=True)
            for layer in (nn.Linear(n, m), nn.LayerNorm(m), nn.ReLU(), nn.Dropout(GENE_DROPOUT))
        ]
        self.net = nn.Sequential(*layers, nn.Linear(dim, dim))

    def forward(self, genes: Tensor) -> Tensor:
        """Code of each sample, b x dim."""
        return self.net(self.standard(genes))


class Tangle(nn.Module):
    """Gated attention over projected tiles, a perceptron on genes, and pairs that find each other at a fixed temperature."""

    log_scale: Tensor

    def __init__(self, n_image: int, n_rna: int, dim: int = 256, n_attention: int = 128) -> None:
        super().__init__()
        project = nn.Sequential(
            *(
                layer
                for n in (n_image, dim)
                for layer in (nn.Linear(n, dim), nn.LayerNorm(dim), nn.GELU(), nn.Dropout(TILE_DROPOUT))
            )
        )
        self.slides = SlideEncoder(n_image, dim, n_attention, ATTENTION_DROPOUT, project)
        self.genes = GenePerceptron(n_rna, dim)
        self.register_buffer("log_scale", torch.tensor(-math.log(TEMPERATURE)))

    def loss(self, image: Tensor, rna: Tensor) -> Tensor:
        """Symmetric contrastive loss of pairs of codes, compared by cosine."""
        return info_nce(image, rna, self.log_scale)
