"""Bags of tiles, as ragged as slides are: tiles lie where they lie, a bag is a range of a list of their rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stfuse.train._disk_tiles import DiskTiles

KEY_BITS = 40  # of a random key; the rest tells the slides apart
PLACES = 8  # from which tiles of a slide on disk are read, at least


@dataclass(frozen=True)
class Bags:
    """Tiles of s slides.

    ``features`` are all tiles as they lie in memory or on disk (N x d), ``rows`` the rows of the usable ones, slide after slide, and
    ``offsets`` (s + 1) where each slide begins in it. Offsets stay on the CPU, so that a GPU is never asked how long a bag is.
    """

    features: Tensor | DiskTiles
    rows: Tensor
    offsets: Tensor

    @classmethod
    def make(cls, features: Tensor | DiskTiles, slide: np.ndarray, n_slides: int) -> Bags:
        """Sort tiles by slide; a tile of slide -1 is in no bag."""
        rows = np.argsort(slide, kind="stable")[np.count_nonzero(slide < 0) :]
        sizes = np.bincount(slide[rows], minlength=n_slides)
        return cls(features, torch.from_numpy(rows), torch.from_numpy(np.r_[0, np.cumsum(sizes)]))

    @property
    def sizes(self) -> Tensor:
        """Number of tiles of each slide."""
        return self.offsets.diff()

    def to(self, device: torch.device) -> Bags:
        """Move the tiles to a device."""
        return replace(self, features=self.features.to(device), rows=self.rows.to(device))

    def select(self, slides: Tensor) -> Bags:
        """Bags of some slides, in that order; the features are shared."""
        rows, offsets = self.draw(slides, None)
        return replace(self, rows=rows, offsets=offsets)

    def take(self, rows: Tensor) -> Tensor:
        """Features of some tiles."""
        return self.features.index_select(0, rows).float()

    def draw(
        self, slides: Tensor, n_tiles: int | None, generator: torch.Generator | None = None, *, fill: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Rows of up to ``n_tiles`` tiles of each slide, drawn without replacement, and their offsets (on the CPU).

        The generator is one of the tiles' device. Without a number, or where no slide has more, all tiles are taken. With ``fill``
        a slide that has fewer gives as many, drawn with replacement. Of tiles on disk whole runs are drawn, as they are read.
        """
        sizes = self.sizes[slides]
        positions = ranges(self.offsets[slides], sizes, self.rows.device)
        if n_tiles is None:
            return self.rows[positions], _offsets(sizes)
        if fill:
            return self._filled(slides, n_tiles, generator)
        if bool((sizes > n_tiles).any()):
            # shuffle all tiles within their slides by one sort, then take the first ones of each slide
            bag = torch.repeat_interleave(sizes.to(positions.device), output_size=positions.numel())
            chance = self._chance(positions, bag, n_tiles, generator)
            positions = positions[((bag << KEY_BITS) + chance).argsort(stable=True)]
            positions = positions[self._window(sizes, n_tiles, generator)]
            sizes = sizes.clamp(max=n_tiles)
        return self.rows[positions], _offsets(sizes)

    def _window(self, sizes: Tensor, n_tiles: int, generator: torch.Generator | None) -> Tensor:
        """Places of the tiles that are kept: the first of each slide, of runs so many in a circle from a random place on.

        A run is cut where the number is full, which may be anywhere in it, so that no tile of it is taken more often than another.
        """
        device, first, kept = self.rows.device, sizes.cumsum(0) - sizes, sizes.clamp(max=n_tiles)
        if self._run(n_tiles) == 1:
            return ranges(first, kept, device)
        turn = torch.rand(sizes.numel(), generator=generator, device=device, dtype=torch.float64)
        bag = torch.repeat_interleave(kept.to(device), output_size=int(kept.sum()))
        sizes, first = sizes.to(device), first.to(device)
        within = ranges(torch.zeros_like(kept), kept, device) + (turn * sizes).long()[bag]
        return first[bag] + within % sizes[bag]

    def _run(self, n_tiles: int) -> int:
        """Tiles that are drawn together."""
        return min(self.features.chunk, -(-n_tiles // PLACES)) if isinstance(self.features, DiskTiles) else 1

    def _chance(self, positions: Tensor, bag: Tensor, n_tiles: int, generator: torch.Generator | None) -> Tensor:
        """Random key of each tile, on disk the same for a run of tiles of a slide that lie in one chunk."""
        run = self._run(n_tiles)
        if run == 1:
            return torch.randint(1 << KEY_BITS, (positions.numel(),), generator=generator, device=positions.device)
        block = self.rows[positions] // run
        new = torch.ones_like(block, dtype=torch.bool)
        new[1:] = (block[1:] != block[:-1]) | (bag[1:] != bag[:-1])
        number = new.cumsum(0) - 1
        chance = torch.randint(1 << KEY_BITS, (int(number[-1]) + 1,), generator=generator, device=positions.device)
        return chance[number]

    def _filled(self, slides: Tensor, n_tiles: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Rows of exactly so many tiles of each slide that has any, of too small ones with replacement."""
        small = slides[(self.sizes[slides] < n_tiles) & (self.sizes[slides] > 0)]
        device = self.rows.device
        size, start = self.sizes[small].to(device)[:, None], self.offsets[small].to(device)[:, None]
        again = torch.rand((small.numel(), n_tiles), generator=generator, device=device, dtype=torch.float64)
        positions = (start + (again * size).long()).flatten()
        large = slides[self.sizes[slides] >= n_tiles]
        rows, _ = self.draw(large, n_tiles, generator)
        pool = torch.cat([self.rows[positions], rows])
        # back to the order of the slides
        place = torch.empty(slides.numel(), dtype=torch.long)
        filled = self.sizes[slides] > 0
        is_small = filled & (self.sizes[slides] < n_tiles)
        place[is_small] = torch.arange(small.numel())
        place[filled & ~is_small] = small.numel() + torch.arange(large.numel())
        sizes = filled.long() * n_tiles
        return pool[ranges(place[filled] * n_tiles, sizes[filled], device)], _offsets(sizes)


def _offsets(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def ranges(starts: Tensor, sizes: Tensor, device: torch.device) -> Tensor:
    """Ranges of these starts and lengths, one after another."""
    total = int(sizes.sum())
    shift = (starts - (sizes.cumsum(0) - sizes)).to(device)
    bag = torch.repeat_interleave(sizes.to(device), output_size=total)
    return torch.arange(total, device=device) + shift[bag]


class BagBatches:
    """Shuffled slides of an epoch in batches of nearly equal size, and tiles drawn anew of each; processes take turns.

    A batch holds ``slides`` (b), ``rows`` of the tiles drawn and their ``offsets`` (b + 1), all on the device.
    """

    def __init__(
        self, bags: Bags, slides: Tensor, batch_size: int, n_tiles: int | None, seed: int, *, fill: bool = False
    ) -> None:
        self.bags, self.slides, self.batch_size, self.n_tiles, self.seed = bags, slides, batch_size, n_tiles, seed
        self.fill = fill
        self.n_batches = -(-slides.numel() // batch_size)
        self.epoch, self.rank, self.world = 0, 0, 1

    def to(self, device: torch.device) -> None:
        """Move the tiles to a device."""
        self.bags = self.bags.to(device)

    def split(self, rank: int, world: int) -> None:
        """Take one process's share of each epoch."""
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-self.n_batches // self.world)

    def deal(self, slides: Tensor, seed: int) -> dict[str, Tensor]:
        """Batch of some slides; the same seed draws the same tiles, whichever process asks."""
        device = self.bags.rows.device
        rows, offsets = self.bags.draw(slides, self.n_tiles, torch.Generator(device).manual_seed(seed), fill=self.fill)
        return {"slides": slides.to(device), "rows": rows, "offsets": offsets.to(device)}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        seed = self.seed * 1_000_003 + self.epoch * 7919
        self.epoch += 1
        order = self.slides[torch.randperm(self.slides.numel(), generator=torch.Generator().manual_seed(seed))]
        parts = order.tensor_split(self.n_batches)
        for step in range(len(self) * self.world):
            if step % self.world == self.rank:
                yield self.deal(parts[step % self.n_batches], seed + 104_729 * (step + 1))
