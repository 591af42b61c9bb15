"""Cells of all tiles as one disjoint graph on a device, of which some tiles are taken at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from stfuse.module.messages import Messages
from stfuse.module.sigmma import Graph, Pairs
from stfuse.train._bags import ranges


@dataclass(frozen=True)
class Links:
    """Messages sorted by the cell they reach: ``source`` and ``reverse`` (m), ``offsets`` by cell (n + 1) and by tile (t + 1, on the CPU)."""

    source: Tensor
    reverse: Tensor
    offsets: Tensor
    of_tiles: Tensor

    def to(self, device: torch.device) -> Links:
        """Move everything to a device but what says where tiles begin."""
        source, reverse, offsets = (tensor.to(device) for tensor in (self.source, self.reverse, self.offsets))
        return Links(source, reverse, offsets, self.of_tiles)


@dataclass(frozen=True)
class PairLinks:
    """Pairs that a scale may join, sorted by tile (``ends``, p x 2; ``of_tiles`` offsets), as ``links`` both ways with their ``pair``."""

    ends: Tensor
    of_tiles: Tensor
    links: Links
    pair: Tensor

    def to(self, device: torch.device) -> PairLinks:
        """Move everything to a device but what says where tiles begin."""
        return PairLinks(self.ends.to(device), self.of_tiles, self.links.to(device), self.pair.to(device))


@dataclass(frozen=True)
class TileGraphs:
    """Image of t tiles (pooled features t x scales x d, or crops), their cells' features sorted by tile, and graphs.

    ``offsets`` (t + 1, on the CPU) are those of the cells of each tile. ``pairs`` are the tiles to train on, ``held_out`` those that
    are not.
    """

    image: Tensor
    features: Tensor
    offsets: Tensor
    edges: Links
    added: tuple[PairLinks, ...]
    pairs: Tensor
    held_out: Tensor

    def to(self, device: torch.device) -> TileGraphs:
        """Move everything to a device but what says where tiles begin."""
        return replace(
            self,
            image=self.image.to(device),
            features=self.features.to(device),
            edges=self.edges.to(device),
            added=tuple(pairs.to(device) for pairs in self.added),
            pairs=self.pairs.to(device),
        )

    def take(self, tiles: Tensor) -> tuple[Tensor, Graph]:
        """Features of the cells of some tiles, and their graph; no cell of another tile is in it."""
        device, tiles = self.features.device, tiles.cpu()
        sizes = self.offsets.diff()[tiles]
        start = sizes.cumsum(0) - sizes
        rows = ranges(self.offsets[tiles], sizes, device)
        # numbers of cells shift from those of all to those of the batch
        shift = start - self.offsets[tiles]
        edges, _ = _taken(self.edges, tiles, rows, shift)
        added = []
        for pairs in self.added:
            numbers = pairs.of_tiles.diff()[tiles]
            first = numbers.cumsum(0) - numbers
            ends = pairs.ends[ranges(pairs.of_tiles[tiles], numbers, device)].long()
            ends = ends + _spread(shift, numbers, device)[:, None]
            messages, which = _taken(pairs.links, tiles, rows, shift)
            lengths = pairs.links.of_tiles.diff()[tiles]
            pair = pairs.pair[which].long() + _spread(first - pairs.of_tiles[tiles], lengths, device)
            added.append(Pairs(ends, messages, pair))
        bounds = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).to(device)
        return self.features[rows], Graph(bounds, edges, tuple(added))


def _spread(values: Tensor, sizes: Tensor, device: torch.device) -> Tensor:
    return torch.repeat_interleave(values.to(device), sizes.to(device), output_size=int(sizes.sum()))


def _taken(links: Links, tiles: Tensor, rows: Tensor, shift: Tensor) -> tuple[Messages, Tensor]:
    """Messages within some tiles, in the batch's numbers, and which they are of all."""
    lengths = links.of_tiles.diff()[tiles]
    which = ranges(links.of_tiles[tiles], lengths, rows.device)
    source = links.source[which].long() + _spread(shift, lengths, rows.device)
    moved = lengths.cumsum(0) - lengths - links.of_tiles[tiles]
    reverse = links.reverse[which].long() + _spread(moved, lengths, rows.device)
    heard = links.offsets[rows + 1] - links.offsets[rows]
    return Messages(source, torch.cat([heard.new_zeros(1), heard.cumsum(0)]), reverse), which


def sort_graph(edges: csr_matrix, added: Sequence[csr_matrix], order: np.ndarray, offsets: np.ndarray) -> tuple[
    Links, tuple[PairLinks, ...]
]:  # fmt: skip
    """Bring matrices of all cells into the order in which cells stand by tile (``order``), with the offsets of the tiles."""
    n_all = edges.shape[0]
    place = np.full(n_all, -1, np.int32)
    place[order] = np.arange(order.size, dtype=np.int32)
    one, other = (place[numbers] for numbers in edges.nonzero())
    both = (one >= 0) & (other >= 0)
    links, _ = _links(one[both], other[both], np.zeros(int(both.sum()), np.int32), offsets)
    return links, tuple(_pair_links(matrix, place, offsets) for matrix in added)


def _pair_links(matrix: csr_matrix, place: np.ndarray, offsets: np.ndarray) -> PairLinks:
    ends = np.stack([place[numbers] for numbers in matrix.nonzero()], axis=1)
    ends = ends[(ends >= 0).all(axis=1)]
    # in the order of tiles, whatever that of the rows of the object
    ends = ends[np.lexsort((ends.max(axis=1), ends.min(axis=1)))]
    numbers = np.arange(len(ends), dtype=np.int32)
    links, pair = _links(np.r_[ends[:, 0], ends[:, 1]], np.r_[ends[:, 1], ends[:, 0]], np.r_[numbers, numbers], offsets)
    of_tiles = np.searchsorted(ends.min(axis=1), offsets)
    return PairLinks(torch.from_numpy(ends), torch.from_numpy(of_tiles), links, torch.from_numpy(pair))


def _links(target: np.ndarray, source: np.ndarray, label: np.ndarray, offsets: np.ndarray) -> tuple[Links, np.ndarray]:
    """Sort messages by the cell they reach, and of one cell by where they come from."""
    n = int(offsets[-1])
    order = np.lexsort((source, target))
    source, target = source[order], target[order]
    # sorted by source and then target they stand as the messages the other way do
    reverse = np.lexsort((target, source)).astype(np.int32)
    by_cell = np.r_[0, np.cumsum(np.bincount(target, minlength=n))]
    links = Links(*(torch.from_numpy(values) for values in (source, reverse, by_cell, by_cell[offsets])))
    return links, label[order]
