"""Training data on the device; a batch is an index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor


@dataclass
class ViewTensors:
    """Rows of both views and which of them may be used.

    ``image`` and ``rna`` hold all rows as they lie in memory (a row of a missing view is never indexed);
    ``rows_image`` and ``rows_rna`` list the rows that have the view, ``pairs`` those used as pairs, ``held_out`` pairs kept
    for validation.
    """

    image: Tensor
    rna: Tensor
    rows_image: Tensor
    rows_rna: Tensor
    pairs: Tensor
    held_out: Tensor

    def to(self, device: torch.device) -> ViewTensors:
        """Move everything to a device; on the same device nothing is copied."""
        return ViewTensors(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def rows(self, view: str) -> Tensor:
        """Rows that have a view."""
        return self.rows_image if view == "image" else self.rows_rna

    def of(self, view: str) -> Tensor:
        """Rows of a view."""
        return self.image if view == "image" else self.rna


class Paired(Protocol):
    """Data that is dealt by pairs alone: rows of ``pairs``."""

    @property
    def pairs(self) -> Tensor:
        """Rows of the pairs."""

    def to(self, device: torch.device) -> Paired:
        """Move everything to a device."""


class Batches(Protocol):
    """Index batches of an epoch over data that can be moved to a device; processes take turns."""

    def to(self, device: torch.device) -> None:
        """Move the data to a device."""

    def split(self, rank: int, world: int) -> None:
        """Take one process's share of each epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Tensor]]: ...


MIN_STEPS = 4  # an epoch of a small tissue is more than one look at it


class StepBatches:
    """Index batches of an epoch: pairs, image rows and RNA rows are drawn independently of each other.

    Image and RNA rows are shuffled and dealt out in full batches (the last one is filled up from the next shuffle); pairs are
    dealt likewise, all of them in every step while they fit into one batch. No row stands twice in a batch. Several processes
    deal the same hands and take turns, so that together they see what one would. With ``pairs_only`` they share every batch
    instead, equally many pairs each: contrastive losses compare all pairs of a step, on whatever device they lie.
    """

    def __init__(
        self, data: ViewTensors | Paired, batch_size: int, seed: int, *, pairs_only: bool = False
    ) -> None:  # fmt: skip
        self.data = cast("Any", data)
        self.batch_size, self.seed, self.pairs_only = batch_size, seed, pairs_only
        self.epoch, self.rank, self.world = 0, 0, 1
        longest = data.pairs.numel()
        if not pairs_only:
            longest = max(rows.numel() for rows in (self.data.rows_image, self.data.rows_rna))
        self.steps = max(MIN_STEPS, -(-longest // batch_size))

    def to(self, device: torch.device) -> None:
        """Move the data to a device."""
        self.data = self.data.to(device)

    def split(self, rank: int, world: int) -> None:
        """Take one process's share of each epoch."""
        if self.pairs_only and self._size(self.data.pairs) < world:
            raise ValueError(
                f"{self._size(self.data.pairs)} pairs a step are too few to be shared by {world} devices: use fewer devices, or a "
                "larger batch_size."
            )
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.steps if self.pairs_only else -(-self.steps // self.world)

    def _size(self, rows: Tensor) -> int:
        return min(self.batch_size, rows.numel())

    def _deal(self, rows: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        n, size = rows.numel(), self._size(rows)
        if n == 0:
            while True:
                yield rows
        order = torch.randperm(n, generator=generator)
        while True:
            if order.numel() < size:
                # a row must not stand twice in one batch: contrastive losses would call it its own negative
                fresh = torch.randperm(n, generator=generator)
                again = torch.isin(fresh, order)
                order = torch.cat([order, fresh[~again], fresh[again]])
            yield rows[order[:size].to(rows.device)]
            order = order[size:]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch * 7919)
        self.epoch += 1
        pairs = self._deal(self.data.pairs, generator)
        if self.pairs_only:
            share = (
                self._size(self.data.pairs) // self.world * self.world
            )  # codes are gathered, which takes equal parts
            for _ in range(self.steps):
                yield {"pairs": next(pairs)[:share][self.rank :: self.world]}
            return
        image = self._deal(self.data.rows_image, generator)
        rna = self._deal(self.data.rows_rna, generator)
        for step in range(len(self) * self.world):
            batch = {"pairs": next(pairs), "image": next(image), "rna": next(rna)}
            if step % self.world == self.rank:
                yield batch
