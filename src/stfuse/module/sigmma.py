"""Cells of a tile as a graph that grows from scale to scale, and crops of its image at the same scales (SIGMMA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stfuse.module.abmil import GatedAttention
from stfuse.module.losses import info_nce
from stfuse.module.messages import Messages
from stfuse.module.segments import segment_max, segment_softmax, segment_sum

EdgeAddition = Literal["sampled", "all", "none"]
Layer = Literal["sage", "gatv2"]
NEGATIVE_SLOPE = 0.2  # of the attention's LeakyReLU
LIKELY = 1.0  # logit of an edge at the start: of few edges drawn at random a mean tells less than of all of them
START = 2.6593  # log of the inverse of 0.07, where the temperatures of the losses start


@dataclass(frozen=True)
class Pairs:
    """Pairs of cells that a scale may join (p x 2), the messages both ways along them, and the row of the pair of each message."""

    ends: Tensor
    messages: Messages
    pair: Tensor


@dataclass(frozen=True)
class Graph:
    """Cells of some tiles: ``tiles`` (t + 1) are offsets of the cells of each, ``edges`` messages inside the smallest blocks.

    ``added`` holds the pairs of each larger scale.
    """

    tiles: Tensor
    edges: Messages
    added: tuple[Pairs, ...]


class SageLayer(nn.Module):
    """A cell and the weighted mean of its neighbours, mixed linearly; LayerNorm, ReLU and a skip connection."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.own, self.near = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, cells: Tensor, messages: Sequence[Messages]) -> Tensor:
        """New codes of n cells."""
        out = self.own(cells)
        if messages:
            total = torch.stack([m.gather(cells) for m in messages]).sum(0)
            size = torch.stack([m.total(cells) for m in messages]).sum(0)
            out = out + self.near(total / size.clamp(min=1e-6)[:, None])
        return cells + self.dropout(F.relu(self.norm(out)))


class AttentionLayer(nn.Module):
    """The same, neighbours weighed by attention (GATv2, Brody et al. 2022); an edge's weight multiplies its attention."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.source, self.target = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, cells: Tensor, messages: Sequence[Messages]) -> Tensor:
        """New codes of n cells."""
        out = self.own(cells)
        if messages:
            sent, wanted = self.source(cells), self.target(cells)
            scores = [self._scores(sent, wanted, m) for m in messages]
            # each cell's largest only keeps exp in range; it takes no part in the gradient
            top = cells.new_full((len(cells),), -torch.inf)
            for m, s in zip(messages, scores, strict=True):
                top = segment_max(s.detach(), m.offsets, top)
            parts = [
                replace(m, weight=(s - top[m.target]).exp() * (1.0 if m.weight is None else m.weight))
                for m, s in zip(messages, scores, strict=True)
            ]
            total = torch.stack([m.gather(sent) for m in parts]).sum(0)
            size = torch.stack([m.total(cells) for m in parts]).sum(0)
            out = out + total / size.clamp(min=1e-12)[:, None]
        return cells + self.dropout(F.relu(self.norm(out)))

    def _scores(self, sent: Tensor, wanted: Tensor, messages: Messages) -> Tensor:
        # the gradient of an index in brackets takes twenty times as long on a CPU
        both = sent.index_select(0, messages.source) + wanted.index_select(0, messages.target)
        both = F.leaky_relu(both, NEGATIVE_SLOPE)
        return self.score(both).squeeze(1)


class PairScorer(nn.Module):
    """Logit of an edge from the codes of its two ends, the same in both orders.

    A network of one hidden layer on [u, v]: its first map is a sum of one map of each end, so that pairs cost an addition.
    """

    def __init__(self, width: int, n_hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, n_hidden), nn.Linear(width, n_hidden, bias=False)
        self.out = nn.Linear(n_hidden, 1)
        nn.init.constant_(self.out.bias, LIKELY)

    def forward(self, cells: Tensor, ends: Tensor) -> Tensor:
        """Logits of p pairs."""
        one, other = self.first(cells), self.second(cells)
        u, v = ends.T.contiguous()
        # the gradient of an index in brackets takes twenty times as long on a CPU
        forth = F.relu(one.index_select(0, u) + other.index_select(0, v))
        hidden = forth + F.relu(one.index_select(0, v) + other.index_select(0, u))
        return self.out(0.5 * hidden).squeeze(1)


def sample_edges(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """0 or 1 a pair, drawn by its logit, with the gradient of the relaxed draw (straight-through Gumbel-softmax of two classes)."""
    chance = torch.rand(logits.shape, generator=generator, device=logits.device).clamp(1e-6, 1 - 1e-6)
    soft = ((logits + chance.logit()) / temperature).sigmoid()
    return (soft > 0.5).to(soft.dtype) + soft - soft.detach()


class CellGraphEncoder(nn.Module):
    """Codes of cells at each scale: a layer on the smallest blocks, then edges are added and a layer more, twice.

    Which of the pairs that a larger block adds become edges is drawn by a learnt score while training; coding takes those with a
    probability above one half. With ``edge_addition`` "all" or "none" all of them or none do, and without ``graph`` there are no
    messages at all.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        n_features: int,
        n_hidden: int = 128,
        *,
        n_scales: int = 3,
        layer: Layer = "sage",
        edge_addition: EdgeAddition = "sampled",
        graph: bool = True,
        gumbel_temperature: float = 0.5,
        dropout: float = 0.0,
        n_score: int = 32,
    ) -> None:
        super().__init__()
        self.edge_addition, self.graph, self.gumbel_temperature = edge_addition, graph, gumbel_temperature
        self.n_hidden = n_hidden
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.embed = nn.Linear(n_features, n_hidden)
        kind = SageLayer if layer == "sage" else AttentionLayer
        self.layers = nn.ModuleList(kind(n_hidden, dropout) for _ in range(n_scales))
        sampled = graph and edge_addition == "sampled"
        self.scorers = nn.ModuleList(PairScorer(n_hidden, n_score) for _ in range(n_scales - 1) if sampled)

    def fit_moments(self, mean: Tensor, scale: Tensor) -> None:
        """Take mean and spread of the features; one that does not vary stays at zero."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))

    def forward(
        self, features: Tensor, graph: Graph, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Codes of n cells at each scale, and the weight of each pair at each but the first (empty where nothing is scored)."""
        cells = self.embed((features - self.mean) / self.scale)
        messages = [graph.edges] if self.graph else []
        codes, weights = [], []
        for number, layer in enumerate(self.layers):
            if number and self.graph and self.edge_addition != "none":
                pairs = graph.added[number - 1]
                weight = self._weights(number - 1, cells, pairs, generator)
                weights.append(weight)
                messages = [*messages, replace(pairs.messages, weight=weight.index_select(0, pairs.pair))]
            cells = layer(cells, messages)
            codes.append(cells)
        return codes, weights

    def _weights(self, number: int, cells: Tensor, pairs: Pairs, generator: torch.Generator | None) -> Tensor:
        if self.edge_addition == "all":
            return cells.new_ones(len(pairs.ends))
        logits = self.scorers[number](cells, pairs.ends)
        if self.training:
            return sample_edges(logits, self.gumbel_temperature, generator)
        return (logits > 0).to(logits.dtype)

    @torch.no_grad()
    def probabilities(self, codes: Sequence[Tensor], graph: Graph) -> list[Tensor]:
        """Probability of each pair's edge at each scale but the first, from the codes of the scale before."""
        return [
            scorer(cells, pairs.ends).sigmoid()
            for scorer, cells, pairs in zip(self.scorers, codes, graph.added, strict=False)
        ]


class Sigmma(nn.Module):
    """Both encoders with a projection for each scale, and a learnt temperature for each.

    Without an ``image_encoder`` the image is features; for one, ``crop_sides`` says how many crops lie along a side at each scale, and
    ``crop_size`` to which size they are brought.
    """

    image_mean: Tensor
    image_scale: Tensor

    def __init__(
        self,
        n_image: int,
        n_features: int,
        *,
        scales: Sequence[int] = (0, 1, 2),
        embed_dim: int = 128,
        n_hidden: int = 128,
        layer: Layer = "sage",
        edge_addition: EdgeAddition = "sampled",
        graph: bool = True,
        gumbel_temperature: float = 0.5,
        dropout: float = 0.0,
        image_encoder: nn.Module | None = None,
        crop_sides: Sequence[int] = (),
        crop_size: int = 0,
    ) -> None:
        super().__init__()
        self.scales, self.embed_dim = tuple(scales), embed_dim
        self.image_encoder, self.crop_sides, self.crop_size = image_encoder, crop_sides, crop_size
        self.cells = CellGraphEncoder(
            n_features,
            n_hidden,
            n_scales=max(self.scales) + 1,
            layer=layer,
            edge_addition=edge_addition,
            graph=graph,
            gumbel_temperature=gumbel_temperature,
            dropout=dropout,
        )
        self.attend = nn.ModuleList(GatedAttention(n_hidden, n_hidden, 0.0) for _ in self.scales)
        self.rna = nn.ModuleList(nn.Linear(n_hidden, embed_dim) for _ in self.scales)
        self.image = nn.ModuleList(
            nn.Sequential(nn.Dropout(dropout), nn.Linear(n_image, embed_dim)) for _ in self.scales
        )
        self.register_buffer("image_mean", torch.zeros(len(self.scales), n_image))
        self.register_buffer("image_scale", torch.ones(len(self.scales), n_image))
        self.log_scale = nn.Parameter(torch.full((len(self.scales),), START))

    def fit_image_moments(self, mean: Tensor, scale: Tensor) -> None:
        """Take mean and spread of the pooled features of each scale (scales x d); one that does not vary stays at zero."""
        self.image_mean.copy_(mean)
        self.image_scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))

    def encode_image(self, image: Tensor) -> list[Tensor]:
        """Code of each scale from pooled features, t x scales x d, or from whole tiles where there is an encoder."""
        pooled = image if self.image_encoder is None else self._encode_crops(image)
        pooled = (pooled - self.image_mean) / self.image_scale
        return [project(pooled[:, i]) for i, project in enumerate(self.image)]

    def _encode_crops(self, tiles: Tensor) -> Tensor:
        """Crops of t tiles (t x channels x height x width) through the image encoder, pooled: t x scales x d."""
        tiles = tiles.float() / 255 if tiles.dtype == torch.uint8 else tiles
        crops = crops_of(tiles, self.crop_sides, self.crop_size)
        t, n = crops.shape[:2]
        encoder = cast("nn.Module", self.image_encoder)
        return pool_crops(encoder(crops.flatten(0, 1)).reshape(t, n, -1), self.crop_sides)

    def encode_rna(
        self, features: Tensor, graph: Graph, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Code of t tiles at each scale asked for, codes of their cells at all scales, and weights of pairs."""
        cells, weights = self.cells(features, graph, generator)
        tiles = []
        for number, (attend, project) in zip(self.scales, zip(self.attend, self.rna, strict=True), strict=True):
            share = segment_softmax(attend(cells[number]), graph.tiles)
            tiles.append(project(segment_sum(cells[number], graph.tiles, share)))
        return tiles, cells, weights

    def losses(self, image: Sequence[Tensor], rna: Sequence[Tensor]) -> list[Tensor]:
        """Contrastive loss of each scale, both ways."""
        return [info_nce(a, b, t) for a, b, t in zip(image, rna, self.log_scale.unbind(), strict=True)]


def crops_of(tiles: Tensor, per_side: Sequence[int], size: int) -> Tensor:
    """Crops of t tiles (t x channels x h x w) at several scales, resized: t x crops x channels x size x size, row by row.

    ``per_side`` says how many crops lie along a side at each scale.
    """
    t, channels = tiles.shape[:2]
    found = []
    for n in per_side:
        height, width = tiles.shape[2] // n, tiles.shape[3] // n
        cut = tiles[:, :, : n * height, : n * width].reshape(t, channels, n, height, n, width)
        cut = cut.permute(0, 2, 4, 1, 3, 5).reshape(t * n * n, channels, height, width)
        if (height, width) != (size, size):
            cut = F.interpolate(cut, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        found.append(cut.reshape(t, n * n, channels, size, size))
    return torch.cat(found, dim=1)


def pool_crops(crops: Tensor, per_side: Sequence[int]) -> Tensor:
    """Mean over the crops of each scale: t x crops x d becomes t x scales x d."""
    return torch.stack([part.mean(1) for part in crops.split([n * n for n in per_side], dim=1)], dim=1)
