"""Sums and softmax over ragged rows: segment i holds the rows offsets[i] to offsets[i + 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def segment_ids(offsets: Tensor, n_rows: int) -> Tensor:
    """Segment of each row."""
    # told how many there will be, a GPU need not wait for its answer
    return torch.repeat_interleave(offsets.diff(), output_size=n_rows)


def segment_sum(rows: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted sum of the rows of each segment, s x d; zeros for an empty one."""
    if not rows.shape[0]:
        return rows.new_zeros(offsets.numel() - 1, rows.shape[1])
    # unlike index_add it adds in the same order every time, on a GPU too
    every = torch.arange(rows.shape[0], device=rows.device)
    return F.embedding_bag(every, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def segment_max(values: Tensor, offsets: Tensor, start: Tensor) -> Tensor:
    """Largest value of each segment and of its entry in ``start``."""
    return start.scatter_reduce(0, segment_ids(offsets, values.numel()), values, "amax")


def segment_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Softmax of the scores (one a row) within each segment."""
    segment = segment_ids(offsets, scores.numel())
    start = scores.new_full((offsets.numel() - 1,), -torch.inf)
    # the largest only keeps exp in range; it takes no part in the gradient
    top = segment_max(scores.detach(), offsets, start)
    raised = (scores - top[segment]).exp()
    return raised / segment_sum(raised[:, None], offsets)[segment, 0]
