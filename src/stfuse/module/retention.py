"""Retention (MIRROR, equations 10 to 14): what a view encoded must tell of itself where most of it is hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stfuse.module.segments import segment_ids, segment_sum
from stfuse.module.transmil import NystromLayer


def mask_within(offsets: Tensor, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Which rows of each segment are hidden: a random share of them, rounded down so that one is left, n booleans."""
    n = int(offsets[-1])
    segment = segment_ids(offsets, n)
    chance = torch.rand(n, generator=generator, device=offsets.device, dtype=torch.float64)
    # place of each row in its segment, in random order
    order = (segment + chance).argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(n, device=order.device) - offsets[segment[order]]
    return place < (offsets.diff() * ratio).long()[segment]


def hide_entries(code: Tensor, ratio: float) -> Tensor:
    """Which entries of each row are hidden: a random share of them, b x d booleans."""
    n = code.shape[1]
    place = torch.rand(code.shape, device=code.device).argsort(dim=1)
    return place < int(n * ratio)


def masked_error(target: Tensor, predicted: Tensor, hidden: Tensor) -> Tensor:
    """Squared error of the hidden rows, mean over columns and rows; zero without any."""
    rows = hidden.nonzero()[:, 0]
    error = (target.index_select(0, rows) - predicted.index_select(0, rows)).square().mean(1)
    return error.sum() / max(rows.numel(), 1)


class Decoder(nn.Module):
    """Residual layer, norm and a linear map."""

    def __init__(self, dim: int, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm, self.out = layer, nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Prediction of the same shape."""
        return self.out(self.norm(self.layer(x)))


class Perceptron(nn.Module):
    """Pre-norm residual layer of two linear maps."""

    def __init__(self, dim: int, n_hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, n_hidden), nn.GELU(), nn.Linear(n_hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return x + self.net(x)


class BagRetention(nn.Module):
    """Hidden tiles from the slide's embedding and the mean of those that are seen.

    A bag has no order: nothing tells one hidden tile from another, so that every decoder that treats tiles alike predicts the
    same for all hidden tiles of a slide. It is made once a slide.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.of_slide, self.of_seen = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.decode = Decoder(dim, Perceptron(dim, 2 * dim))

    def forward(self, embedding: Tensor, tokens: Tensor, hidden: Tensor, offsets: Tensor) -> Tensor:
        """Prediction for each token, n x dim; those of hidden ones count."""
        seen = (~hidden).to(tokens.dtype)
        count = segment_sum(seen[:, None], offsets).clamp(min=1)
        mean = segment_sum(tokens, offsets, seen) / count
        told = self.decode(self.of_slide(embedding) + self.of_seen(mean))
        return told.index_select(0, segment_ids(offsets, tokens.shape[0]))


class TokenRetention(nn.Module):
    """Hidden tokens from all others by Nystrom attention, with learnt positions, as published; each slide by itself."""

    def __init__(self, dim: int, n_positions: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.mask = nn.Parameter(torch.zeros(1, dim))
        self.positions = nn.Parameter(torch.zeros(1 + n_positions, dim))
        self.layer, self.norm, self.out = NystromLayer(dim, dropout), nn.LayerNorm(dim), nn.Linear(dim, dim)
        for start in (self.mask, self.positions):
            nn.init.normal_(start, std=0.02)

    def forward(self, embedding: Tensor, tokens: Tensor, hidden: Tensor, offsets: Tensor) -> Tensor:
        """Prediction for each token, n x dim; those of hidden ones count."""
        sizes = offsets.diff().cpu()
        start = offsets.cpu()
        shown = torch.where(hidden[:, None], self.mask, self.project(tokens))
        cls = self.project(embedding)
        order, parts = [], []
        for n in sizes.unique().tolist():
            if n == 0:
                continue
            slides = (sizes == n).nonzero()[:, 0]
            rows = (start[slides][:, None] + torch.arange(n)).flatten().to(tokens.device)
            bags = shown.index_select(0, rows).unflatten(0, (-1, n))
            own = cls.index_select(0, slides.to(cls.device))[:, None]
            x, _ = self.layer(torch.cat([own, bags], dim=1) + self.positions[: n + 1])
            order.append(rows)
            parts.append(self.out(self.norm(x[:, 1:])).flatten(0, 1))
        return torch.cat(parts)[torch.cat(order).argsort()] if parts else tokens


class VectorRetention(nn.Module):
    """Hidden entries of one vector a sample from the others, by a transformer layer over its parts."""

    def __init__(self, dim: int, layer: nn.Module) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.mask = nn.Parameter(torch.zeros(1))
        self.positions = nn.Parameter(torch.zeros(1, dim))
        self.decode = Decoder(dim, layer)
        for start in (self.mask, self.positions):
            nn.init.normal_(start, std=0.02)

    def forward(self, code: Tensor, hidden: Tensor) -> Tensor:
        """Prediction of each entry, b x dim; those of hidden ones count."""
        return self.decode(torch.where(hidden, self.mask, self.project(code)) + self.positions)
