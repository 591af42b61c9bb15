"""MIRROR: slides and RNA in one space, each kept from losing what is its own (Wang et al. 2025)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stfuse._keys import VIEWS
from stfuse.module.abmil import SlideEncoder, StandardFeatures
from stfuse.module.losses import MAX_LOG_SCALE
from stfuse.module.retention import (
    BagRetention,
    Perceptron,
    TokenRetention,
    VectorRetention,
    hide_entries,
    mask_within,
    masked_error,
)
from stfuse.module.style import StyleClusters
from stfuse.module.transmil import TransMIL

MAX_HEADS = 12
DEPTH = 2
MLP_RATIO = 4
DROPOUT = 0.1
START_GAIN = 0.1  # of what a network adds to components


def heads_of(dim: int) -> int:
    """Largest number of heads, up to twelve, that divides the width."""
    return max(n for n in range(1, MAX_HEADS + 1) if dim % n == 0)


class PartsLayer(nn.Module):
    """Pre-norm transformer layer on one vector a sample: its parts, one a head, are the tokens that attend to each other."""

    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.n_heads = heads_of(dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.feed = Perceptron(dim, MLP_RATIO * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors b x dim."""
        q, k, v = self.qkv(self.norm(x)).unflatten(1, (3, self.n_heads, -1)).unbind(1)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return self.feed(x + self.out((weights @ v).flatten(1)))


class RnaEncoder(nn.Module):
    """Genes to one vector: a perceptron, a learnt vector added to it, and two transformer layers."""

    def __init__(self, n_genes: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(n_genes, 2 * dim), nn.GELU(), nn.LayerNorm(2 * dim), nn.Linear(2 * dim, dim)
        )
        self.gene_vector = nn.Parameter(torch.zeros(1, dim))
        self.layers = nn.Sequential(*(PartsLayer(dim, dropout) for _ in range(DEPTH)), nn.LayerNorm(dim, eps=1e-6))
        nn.init.trunc_normal_(self.gene_vector, std=0.02)

    def forward(self, genes: Tensor) -> Tensor:
        """Code of each sample, b x dim."""
        return self.layers(self.embed(genes) + self.gene_vector)


class Beside(nn.Module):
    """Principal components of features, which stay as they are, and what a network that sees them adds.

    A few hundred slides do not teach a network what components tell at once; beside them it need not.
    """

    weights: Tensor

    def __init__(self, n_features: int, dim: int, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(n_features, dim))
        self.gain = nn.Parameter(torch.tensor(START_GAIN))
        self.net = net

    @torch.no_grad()
    def fit(self, rows: Tensor, seed: int) -> None:
        """Take components of centred rows, scaled alike so that they have a mean variance of one."""
        from sklearn.decomposition import PCA

        k = min(self.weights.shape[1], rows.shape[1], rows.shape[0] - 1)
        self.weights.zero_()
        if k < 1:
            return
        found = PCA(k, random_state=seed).fit(rows.numpy())
        scale = math.sqrt(max(float(found.explained_variance_.mean()), 1e-12))
        # the sign of a component is arbitrary: make its largest entry positive, so that runs agree
        axes = (
            found.components_ * np.sign(found.components_[np.arange(k), np.abs(found.components_).argmax(1)])[:, None]
        )
        self.weights[:, :k] = torch.from_numpy(axes.T / scale)

    def forward(self, rows: Tensor) -> Tensor:
        """Code of each row, n x dim."""
        code = rows @ self.weights
        return code + self.gain * self.net(code)


class Genes(StandardFeatures):
    """RNA to one vector a sample: standardised, and encoded as published or beside its components."""

    def __init__(self, n_genes: int, dim: int, linear_start: bool) -> None:
        super().__init__(n_genes)
        self.encode: nn.Module = (
            Beside(n_genes, dim, RnaEncoder(dim, dim)) if linear_start else RnaEncoder(n_genes, dim)
        )

    def forward(self, genes: Tensor) -> Tensor:
        """Code of each sample, b x dim."""
        return self.encode(self.standard(genes))


class Mirror(nn.Module):
    """Both encoders, a head each that aligns them, retention on both sides, and style.

    ``linear_start`` puts both encoders beside principal components; ``unit`` brings aligned codes to unit length once more after
    their head, and into the fused code, which the published network does not. ``n_positions`` is the largest number of tiles a slide in a step.
    """

    middle: Tensor
    spread: Tensor

    def __init__(
        self,
        n_image: int,
        n_rna: int,
        *,
        slide_encoder: str = "abmil",
        dim: int = 256,
        n_prototypes: int = 3000,
        n_positions: int = 2048,
        linear_start: bool = True,
        unit: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.unit = dim, unit
        self.slides: SlideEncoder | TransMIL
        self.retain_image: BagRetention | TokenRetention
        if slide_encoder == "transmil":
            self.slides, self.retain_image = TransMIL(n_image, dim), TokenRetention(dim, n_positions)
        else:
            beside = Beside(n_image, dim, Perceptron(dim, dim)) if linear_start else None
            self.slides = SlideEncoder(n_image, dim, max(8, dim // 2), DROPOUT, beside)
            self.retain_image = BagRetention(dim)
        self.genes = Genes(n_rna, dim, linear_start)
        self.retain_rna = VectorRetention(dim, PartsLayer(dim))
        self.align = nn.ModuleDict({view: nn.Linear(dim, dim) for view in VIEWS})
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.style = StyleClusters(dim, n_prototypes)
        # of the fused code: mean of each of its parts, and one scale for all entries of a part
        self.register_buffer("middle", torch.zeros(2 * len(VIEWS), dim))
        self.register_buffer("spread", torch.ones(2 * len(VIEWS)))
        # code of one view from that of the other, for the fused code where one is missing; the last row is added
        for view in VIEWS:
            self.register_buffer(f"other_{view}", torch.zeros(dim + 1, dim))

    def encode_tiles(self, tiles: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Code of each slide (b x dim), tokens of its tiles (n x dim) and their attention (n)."""
        if isinstance(self.slides, TransMIL):
            return self.slides(tiles, offsets)
        tokens = self.slides.tokens(tiles)
        code, attention = self.slides.pool(tokens, offsets.to(tokens.device))
        return code, tokens, attention

    def shared(self, view: str, code: Tensor) -> Tensor:
        """What both views are compared by."""
        aligned = self.align[view](F.normalize(code, dim=1))
        return F.normalize(aligned, dim=1) if self.unit else aligned

    def alignment_loss(self, image: Tensor, rna: Tensor) -> Tensor:
        """Contrastive loss of pairs (equation 8, with its second denominator mended)."""
        scale = self.log_scale.clamp(max=MAX_LOG_SCALE) if self.unit else self.log_scale
        logits = scale.exp() * self.shared("image", image) @ self.shared("rna", rna).T
        own = torch.arange(logits.shape[0], device=logits.device)
        return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))

    def retain_tiles(self, code: Tensor, tokens: Tensor, offsets: Tensor, ratio: float, detach: bool) -> Tensor:
        """Error of hidden tokens as the others tell them, mean over columns (equation 14)."""
        offsets = offsets.to(tokens.device)
        hidden = mask_within(offsets, ratio)
        told = self.retain_image(code, tokens, hidden, offsets)
        return masked_error(tokens.detach() if detach else tokens, told, hidden)

    def retain_genes(self, code: Tensor, ratio: float, detach: bool) -> Tensor:
        """Error of hidden entries of the RNA code."""
        hidden = hide_entries(code, ratio)
        told = self.retain_rna(code, hidden)
        error = ((code.detach() if detach else code) - told).square() * hidden
        return error.sum() / hidden.sum().clamp(min=1)

    @torch.no_grad()
    def fit_fusion(self, own: dict[str, Tensor], pairs: dict[str, Tensor]) -> None:
        """Take scales of the fused code from codes of all that was trained on, and how one view's code tells the other's from pairs."""
        from sklearn.linear_model import RidgeCV

        shared = [self.shared(view, own[view]) for view in VIEWS]
        for number, part in enumerate([*shared, *(own[view] for view in VIEWS)]):
            self.middle[number] = part.mean(0)
            self.spread[number] = part.var(0, correction=0).mean().sqrt().clamp(min=1e-6)
        for view, other in (VIEWS, VIEWS[::-1]):
            fit = RidgeCV(np.logspace(-2, 4, 13)).fit(pairs[other].double().numpy(), pairs[view].double().numpy())
            map_ = np.vstack([np.atleast_2d(fit.coef_).T, fit.intercept_])
            self.get_buffer(f"other_{view}").copy_(torch.from_numpy(map_))

    def translate(self, view: str, code: Tensor) -> Tensor:
        """Code of a view as that of the other tells it."""
        map_ = self.get_buffer(f"other_{view}")
        return code @ map_[:-1] + map_[-1]

    def fuse(self, shared: dict[str, Tensor], own: dict[str, Tensor]) -> Tensor:
        """Aligned codes and those of the encoders side by side, each of mean zero and mean variance one; or the encoders' alone."""
        parts = [*(shared[view] for view in VIEWS), *(own[view] for view in VIEWS)]
        scaled = [(part - m) / s for part, m, s in zip(parts, self.middle, self.spread, strict=True)]
        return torch.cat(scaled if self.unit else scaled[len(VIEWS) :], dim=1)
