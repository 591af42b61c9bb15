"""Weighted sums over the neighbours of each cell, forth and back, without a copy of every message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stfuse.module.segments import segment_ids, segment_sum

CHUNK = 8192  # messages looked at once on a CPU, so that both of their ends stay in its cache


@dataclass(frozen=True)
class Messages:
    """Messages between n cells, both directions of each edge, sorted by the cell that they reach.

    ``source`` is the cell a message comes from, ``offsets`` (n + 1) where those that reach a cell begin, ``reverse`` the number of the
    message the other way, and ``weight`` one number each (None = one).
    """

    source: Tensor
    offsets: Tensor
    reverse: Tensor
    weight: Tensor | None = None

    def gather(self, cells: Tensor) -> Tensor:
        """Weighted sum of what each cell hears, n x d."""
        if not self.source.numel():
            return torch.zeros_like(cells)
        return cast("Tensor", _Gather.apply(cells, self.weight, self.source, self.offsets, self.reverse))

    def total(self, like: Tensor) -> Tensor:
        """Sum of the weights of what each cell hears."""
        if self.weight is None:
            return self.offsets.diff().to(like.dtype)
        return segment_sum(self.weight[:, None], self.offsets)[:, 0]

    @property
    def target(self) -> Tensor:
        """The cell that each message reaches."""
        return segment_ids(self.offsets, self.source.numel())


def _bag(cells: Tensor, weight: Tensor | None, source: Tensor, offsets: Tensor) -> Tensor:
    # it never holds the messages themselves, and adds in the same order every time, on a GPU too
    return F.embedding_bag(source, cells, offsets, mode="sum", per_sample_weights=weight, include_last_offset=True)


class _Gather(torch.autograd.Function):
    """A sum over neighbours, whose gradient is the same sum along the messages the other way.

    torch's own gradient of weighted bags takes some hundred times as long on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, cells: Tensor, weight: Tensor | None, source: Tensor, offsets: Tensor, reverse: Tensor
    ) -> Tensor:
        ctx.save_for_backward(cells, weight, source, offsets, reverse)
        return _bag(cells, weight, source, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        cells, weight, source, offsets, reverse = ctx.saved_tensors
        to_cells = to_weight = None
        if ctx.needs_input_grad[0]:
            back = None if weight is None else weight.index_select(0, reverse)
            to_cells = _bag(grad.contiguous(), back, source, offsets)
        if weight is not None and ctx.needs_input_grad[1]:
            to_weight = _dots(grad, cells, segment_ids(offsets, source.numel()), source)
        return to_cells, to_weight, None, None, None


def _dots(one: Tensor, other: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Products of rows of one matrix with rows of another."""
    size = CHUNK if one.device.type == "cpu" else rows.numel()
    parts = [
        torch.linalg.vecdot(one.index_select(0, a), other.index_select(0, b))
        for a, b in zip(rows.split(size), others.split(size), strict=True)
    ]
    return torch.cat(parts)
