"""Attention over the tiles of a slide (Ilse et al. 2018): each tile says what it shows and how much that counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stfuse.module.scaling import varies
from stfuse.module.segments import segment_ids, segment_max, segment_softmax, segment_sum

LOWEST = -1e30  # below any score, and finite: the difference of two infinities is no number


class GatedAttention(nn.Module):
    """Score of each row: a linear form of a tanh branch times a sigmoid branch."""

    def __init__(self, n_input: int, n_attention: int, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(n_input, n_attention), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(n_input, n_attention), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(n_attention, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Scores of n rows."""
        return self.score(self.branch(rows) * self.gate(rows)).squeeze(1)


class StandardFeatures(nn.Module):
    """Mean and standard deviation of features, kept as buffers; they change nothing until they are fitted."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    @torch.no_grad()
    def fit_moments(self, rows: Tensor) -> None:
        """Take mean and standard deviation of the features from some rows; a constant feature keeps the scale one."""
        variance, mean = torch.var_mean(rows.double(), 0, correction=0)
        sd = variance.sqrt()
        usable = torch.from_numpy(varies(mean.numpy(), sd.numpy()))
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(usable, sd, 1.0))

    def standard(self, rows: Tensor) -> Tensor:
        """Standardised rows."""
        return (rows - self.mean) / self.scale


class SlideEncoder(StandardFeatures):
    """Standardised tiles, projected and averaged by their attention: one embedding a slide, of any number of tiles."""

    def __init__(
        self,
        n_features: int,
        n_hidden: int = 256,
        n_attention: int = 128,
        dropout: float = 0.25,
        project: nn.Module | None = None,
    ) -> None:
        super().__init__(n_features)
        self.n_hidden = n_hidden
        default = nn.Sequential(nn.Linear(n_features, n_hidden), nn.ReLU(), nn.Dropout(dropout))
        self.project = default if project is None else project
        self.attend = GatedAttention(n_hidden, n_attention, dropout)

    def tokens(self, tiles: Tensor) -> Tensor:
        """Projection of each tile, n x hidden."""
        return self.project(self.standard(tiles))

    def pool(self, tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding of each slide (s x hidden) and attention of each token (n, of sum one in a slide)."""
        attention = segment_softmax(self.attend(tokens), offsets)
        return segment_sum(tokens, offsets, attention), attention

    def forward(self, tiles: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding of each slide and attention of each tile; slide i has the tiles offsets[i] to offsets[i + 1]."""
        return self.pool(self.tokens(tiles), offsets)

    @torch.no_grad()
    def in_parts(self, take: Callable[[int, int], Tensor], offsets: Tensor, part: int) -> tuple[Tensor, Tensor]:
        """What `forward` gives, with no more than ``part`` tiles in memory at once, however large a slide is.

        ``take`` gives the tiles from one position to another. Rows of slides without tiles are NaN.
        """
        n_slides, n_tiles, device = offsets.numel() - 1, int(offsets[-1]), self.mean.device
        offsets = offsets.to(device)
        scores = torch.empty(n_tiles, device=device)
        # sums so far, relative to the largest score so far
        top = torch.full((n_slides,), LOWEST, device=device)
        total = torch.zeros(n_slides, 1, device=device)
        embedding = torch.zeros(n_slides, self.n_hidden, device=device)
        for start in range(0, n_tiles, part):
            stop = min(start + part, n_tiles)
            inside = offsets.clamp(start, stop) - start
            tokens = self.tokens(take(start, stop).to(device))
            scores[start:stop] = self.attend(tokens)
            higher = segment_max(scores[start:stop], inside, top)
            shrink = (top - higher).exp()[:, None]
            weights = (scores[start:stop] - higher[segment_ids(inside, stop - start)]).exp()
            total = total * shrink + segment_sum(weights[:, None], inside)
            embedding = embedding * shrink + segment_sum(tokens, inside, weights)
            top = higher
        segment = segment_ids(offsets, n_tiles)
        return embedding / total, (scores - top[segment]).exp() / total[segment, 0]


class ABMIL(nn.Module):
    """Slide encoder and a linear head."""

    def __init__(
        self, n_features: int, n_classes: int, n_hidden: int = 256, n_attention: int = 128, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.encoder = SlideEncoder(n_features, n_hidden, n_attention, dropout)
        self.head = nn.Linear(n_hidden, n_classes)

    def forward(self, tiles: Tensor, offsets: Tensor) -> Tensor:
        """Logits of each slide, s x classes."""
        embedding, _ = self.encoder(tiles, offsets)
        return self.head(embedding)
