"""Slides and RNA fused by all products of their features (Pathomic Fusion, Chen et al. 2020; PORPOISE, Chen et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stfuse.module.abmil import SlideEncoder, StandardFeatures


class SelfNormalising(StandardFeatures):
    """Standardised genes through two layers whose output keeps mean zero and variance one by itself (Klambauer et al. 2017)."""

    def __init__(self, n_genes: int, n_hidden: int, dropout: float) -> None:
        super().__init__(n_genes)
        self.net = nn.Sequential(
            *(
                layer
                for n in (n_genes, n_hidden)
                for layer in (nn.Linear(n, n_hidden), nn.SELU(), nn.AlphaDropout(dropout))
            )
        )
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                # a variance of one over the inputs is what keeps that of the output
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
                nn.init.zeros_(layer.bias)

    def forward(self, genes: Tensor) -> Tensor:
        """Features of each sample, b x hidden."""
        return self.net(self.standard(genes))


class GatedFeatures(nn.Module):
    """Few features of one view, each let through as far as both views say."""

    def __init__(self, n_own: int, n_both: int, n_gated: int, dropout: float) -> None:
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(n_own, n_gated), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(n_both, n_gated), nn.Sigmoid())
        self.out = nn.Sequential(nn.Linear(n_gated, n_gated), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, own: Tensor, both: Tensor) -> Tensor:
        """Gated features, b x gated."""
        return self.out(self.gate(both) * self.feature(own))


def products(a: Tensor, b: Tensor) -> Tensor:
    """Kronecker product of each row of ``a`` with that of ``b``, a one at the end of both, so that each also stands alone.

    Of p and q columns come (p + 1)(q + 1).
    """
    one = a.new_ones(a.shape[0], 1)
    a, b = torch.cat([a, one], 1), torch.cat([b, one], 1)
    return (a[:, :, None] * b[:, None, :]).flatten(1)


class Bilinear(nn.Module):
    """Gated attention over tiles, self-normalising layers on genes, products of their gated features, and a dense head."""

    def __init__(
        self,
        n_image: int,
        n_rna: int,
        n_out: int,
        n_hidden: int = 256,
        n_attention: int = 128,
        n_gated: int = 32,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.encoder = SlideEncoder(n_image, n_hidden, n_attention, dropout)
        self.genes = SelfNormalising(n_rna, n_hidden, dropout)
        self.gated_image = GatedFeatures(n_hidden, 2 * n_hidden, n_gated, dropout)
        self.gated_rna = GatedFeatures(n_hidden, 2 * n_hidden, n_gated, dropout)
        self.multiplied = nn.Sequential(
            nn.Dropout(dropout), nn.Linear((n_gated + 1) ** 2, n_hidden), nn.ReLU(), nn.Dropout(dropout)
        )
        # gated features also go past the products, of which there are many
        self.fuse = nn.Sequential(nn.Linear(n_hidden + 2 * n_gated, n_hidden), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(n_hidden, n_out)

    def join(self, image: Tensor, rna: Tensor) -> Tensor:
        """Logits from the embedding of each slide's tiles and the features of its genes, s x out."""
        both = torch.cat([image, rna], 1)
        a, b = self.gated_image(image, both), self.gated_rna(rna, both)
        return self.head(self.fuse(torch.cat([self.multiplied(products(a, b)), a, b], 1)))

    def forward(self, tiles: Tensor, offsets: Tensor, genes: Tensor) -> Tensor:
        """Logits of each slide, s x out."""
        image, _ = self.encoder(tiles, offsets)
        return self.join(image, self.genes(genes))
