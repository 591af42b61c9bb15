"""Features of tiles that are larger than memory: they stay on disk, and what a step asks for is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stfuse._disk import chunk_rows, read_rows


@dataclass(frozen=True)
class DiskTiles:
    """N x d features behind a zarr or dask array, indexed like a tensor; rows arrive on ``device``."""

    array: Any
    device: torch.device = torch.device("cpu")

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of tiles and of features."""
        return tuple(self.array.shape)

    @property
    def chunk(self) -> int:
        """Tiles that are read at once."""
        return chunk_rows(self.array)

    def to(self, device: torch.device) -> DiskTiles:
        """Let rows arrive elsewhere."""
        return replace(self, device=torch.device(device))

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Rows as a tensor."""
        if dim != 0:
            raise ValueError(f"Tiles are picked by row, not along dimension {dim}.")
        return torch.from_numpy(read_rows(self.array, rows.cpu().numpy())).to(self.device)
