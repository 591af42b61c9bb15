"""Triplets drawn from clusters: rows by number, so that each window is encoded once and triplets index its code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MARGIN = 1.0


class Triplets(NamedTuple):
    """Rows of a batch: the anchor, one of its own cluster, one of another."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


def draw_triplets(labels: Tensor, n_repeats: int, generator: torch.Generator | None = None) -> Triplets:
    """Draw for each row and each cluster that is not its own ``n_repeats`` positives and as many negatives.

    ``labels`` are 0..k-1, -1 = in no cluster: such rows are in no triplet. Rows are drawn with replacement and a positive may be the anchor itself. With
    fewer than two clusters there are no triplets.
    """
    known = torch.nonzero(labels >= 0).flatten()
    # rows sorted by cluster, and where each cluster begins
    order = known[labels[known].argsort(stable=True)]
    names, sizes = labels[order].unique_consecutive(return_counts=True)
    n_clusters = names.numel()
    if n_clusters < 2:
        empty = labels.new_zeros(0)
        return Triplets(empty, empty, empty)
    starts = sizes.cumsum(0) - sizes
    own = torch.repeat_interleave(torch.arange(n_clusters, device=labels.device), sizes)
    # each row meets every cluster but its own
    others = torch.arange(n_clusters - 1, device=labels.device).repeat(own.numel(), 1)
    others = others + (others >= own[:, None])
    others = others.repeat(1, n_repeats)
    anchor = order[:, None].expand_as(others)
    draws = torch.rand((2, *others.shape), generator=generator).to(labels.device)
    positive = order[starts[own][:, None] + (draws[0] * sizes[own][:, None]).long()]
    negative = order[starts[others] + (draws[1] * sizes[others]).long()]
    return Triplets(anchor.flatten(), positive.flatten(), negative.flatten())


def triplet_loss(codes: Tensor, triplets: Triplets) -> Tensor:
    """Mean over triplets of how much nearer than the margin asks the negative is; zero where there are none."""
    if triplets.anchor.numel() == 0:
        return codes.sum() * 0
    anchor, positive, negative = (codes[rows] for rows in triplets)
    return F.triplet_margin_loss(anchor, positive, negative, margin=MARGIN)
