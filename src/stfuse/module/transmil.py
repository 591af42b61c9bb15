"""Slides by transformers whose attention is approximated (TransMIL, Shao et al. 2021; Nystrom attention, Xiong et al. 2021)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stfuse.module.abmil import StandardFeatures

N_HEADS = 8
PINV_ITERATIONS = 6
KERNEL = 33  # of the convolution along the tokens
GRIDS = (7, 5, 3)  # kernels of the position encoding


def pseudo_inverse(a: Tensor, iterations: int = PINV_ITERATIONS) -> Tensor:
    """Moore-Penrose inverse of each of many square matrices by iterations of third order (Razavi et al. 2014)."""
    size = a.abs()
    z = a.mT / (size.sum(-1).amax(-1) * size.sum(-2).amax(-1))[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z


def landmarks_of(tokens: Tensor, n: int) -> Tensor:
    """Means of n runs of tokens of nearly equal length, b x heads x n x d; all tokens where there are not more."""
    if tokens.shape[-2] <= n:
        return tokens
    return F.adaptive_avg_pool1d(tokens.flatten(0, 1).mT, n).mT.unflatten(0, tokens.shape[:2])


def nystrom(
    q: Tensor, k: Tensor, v: Tensor, n_landmarks: int, iterations: int = PINV_ITERATIONS
) -> tuple[Tensor, Tensor]:
    """Attention through landmarks, of cost linear in the tokens, and its first row (b x heads x n).

    q (scaled), k and v are b x heads x n x d. With as many landmarks as tokens it is exact attention, up to the inverse.
    """
    ql, kl = landmarks_of(q, n_landmarks), landmarks_of(k, n_landmarks)
    to_landmarks = (q @ kl.mT).softmax(-1)
    from_landmarks = (ql @ k.mT).softmax(-1)
    inverse = pseudo_inverse((ql @ kl.mT).softmax(-1), iterations)
    # the first row alone: all rows would take n x n
    first = to_landmarks[..., :1, :] @ inverse @ from_landmarks
    return to_landmarks @ (inverse @ (from_landmarks @ v)), first.squeeze(-2)


class NystromLayer(nn.Module):
    """Pre-norm residual layer of Nystrom attention, with a convolution of the values along the tokens."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.n_landmarks = max(1, dim // 2)
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.along = nn.Conv2d(N_HEADS, N_HEADS, (KERNEL, 1), padding=(KERNEL // 2, 0), groups=N_HEADS, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (b x n x dim) after the layer, and attention of the first one to all (b x n, mean of heads)."""
        b, n, dim = tokens.shape
        q, k, v = self.qkv(self.norm(tokens)).view(b, n, 3, N_HEADS, dim // N_HEADS).permute(2, 0, 3, 1, 4)
        mixed, first = nystrom(q / math.sqrt(dim // N_HEADS), k, v, self.n_landmarks)
        mixed = (mixed + self.along(v)).transpose(1, 2).reshape(b, n, dim)
        return tokens + self.out(mixed), first.mean(1)


class GridPositions(nn.Module):
    """Pyramid position encoding: tokens laid out as a square, convolved channel by channel at three sizes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim) for k in GRIDS)

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        """Tokens b x side^2 x dim."""
        grid = tokens.mT.unflatten(-1, (side, side))
        for convolve in self.convolutions:
            # of the tokens themselves each time, as published
            tokens = tokens + convolve(grid).flatten(2).mT
        return tokens


class TransMIL(StandardFeatures):
    """A class token and all tiles of a slide through two layers of Nystrom attention, with a position encoding between them."""

    def __init__(self, n_features: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__(n_features)
        self.n_hidden = dim
        self.project = nn.Sequential(nn.Linear(n_features, dim), nn.ReLU())
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.layers = nn.ModuleList(NystromLayer(dim, dropout) for _ in range(2))
        self.positions = GridPositions(dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.cls, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _equal(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class tokens, tokens and attention of slides with n tiles each, b x n x features."""
        b, n, _ = tiles.shape
        tokens = self.project(self.standard(tiles))
        side = math.ceil(math.sqrt(n))
        # the square is filled up with tokens from the start
        filled = tokens[:, torch.arange(side * side, device=tokens.device) % n]
        tokens = torch.cat([self.cls.expand(b, -1, -1), filled], dim=1)
        tokens, _ = self.layers[0](tokens)
        tokens = torch.cat([tokens[:, :1], self.positions(tokens[:, 1:], side)], dim=1)
        tokens, first = self.layers[1](tokens)
        tokens = self.norm(tokens)
        # a tile that stands twice has the attention of both places
        attention = first.new_zeros(b, n).index_add(1, torch.arange(side * side, device=first.device) % n, first[:, 1:])
        return tokens[:, 0], tokens[:, 1 : n + 1], attention

    def forward(self, tiles: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding of each slide (zeros without tiles), tokens of all tiles and attention of each (of any sign, scaled to sum one).

        Slides of one size go through together, so that none is padded to the length of another.
        """
        sizes = offsets.diff().cpu()
        order, parts = [], []
        embedding = tiles.new_zeros(sizes.numel(), self.n_hidden)
        for n in sizes.unique().tolist():
            if n == 0:
                continue
            slides = (sizes == n).nonzero()[:, 0]
            rows = (offsets.cpu()[slides][:, None] + torch.arange(n)).flatten().to(tiles.device)
            cls, tokens, attention = self._equal(tiles.index_select(0, rows).unflatten(0, (-1, n)))
            embedding = embedding.index_copy(0, slides.to(tiles.device), cls.to(embedding.dtype))
            order.append(rows)
            parts.append((tokens.flatten(0, 1), attention.flatten()))
        if not parts:
            return embedding, tiles.new_zeros(0, self.n_hidden), tiles.new_zeros(0)
        back = torch.cat(order).argsort()
        tokens, attention = (torch.cat(column)[back] for column in zip(*parts, strict=True))
        return embedding, tokens, attention
