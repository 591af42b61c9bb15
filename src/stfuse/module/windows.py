"""Windows of spots, gathered from a neighbour table when they are needed and never kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 4_096  # rows whose windows are made at a time where no gradient is wanted


@dataclass
class WindowData:
    """Features of all rows and what a window needs beside them.

    ``features`` is n x d, RNA first and then the image, ``n_rna`` the number of the former; ``table`` (n x cells) names the
    row in each cell of each window, -1 = none; ``has`` (n x 2) tells which rows have RNA and image; ``fill`` (n x d) is what stands in a
    window's cells that are not there.
    """

    features: Tensor
    n_rna: int
    table: Tensor
    has: Tensor
    fill: Tensor

    @classmethod
    def make(
        cls, features: np.ndarray, n_rna: int, table: np.ndarray, has: np.ndarray, typical: np.ndarray
    ) -> WindowData:
        """Lay the arrays out and find the fillings; what ``has`` marks as missing is not read."""
        fill = fillings(features, n_rna, table, has, typical)
        clean = np.concatenate(
            [np.where(has[:, [0]], features[:, :n_rna], 0), np.where(has[:, [1]], features[:, n_rna:], 0)], axis=1
        )
        return cls(
            torch.from_numpy(clean.astype(np.float32)),
            n_rna,
            torch.from_numpy(table),
            torch.from_numpy(has),
            torch.from_numpy(fill),
        )

    def to(self, device: torch.device) -> WindowData:
        """Move everything to a device."""
        return WindowData(
            self.features.to(device), self.n_rna, self.table.to(device), self.has.to(device), self.fill.to(device)
        )

    def windows(self, rows: Tensor) -> Tensor:
        """Windows of some rows, rows x cells x features."""
        table = self.table[rows].long()
        at = table.clamp(min=0)
        out = self.features[at]
        for view, columns in enumerate((slice(0, self.n_rna), slice(self.n_rna, None))):
            absent = (table < 0) | ~self.has[at, view]
            # few windows have holes: those alone are touched
            row, cell = torch.nonzero(absent, as_tuple=True)
            part = out[..., columns]
            part[row, cell] = self.fill[rows[row]][:, columns]
        return out


def fillings(features: np.ndarray, n_rna: int, table: np.ndarray, has: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """What fills the holes of each window (n x d): the median of each feature over the window's cells that are there.

    A window without any gets the ``typical`` value of each feature.
    """
    out = np.zeros(features.shape, dtype=np.float32)
    for view, columns in enumerate((slice(0, n_rna), slice(n_rna, None))):
        there = has[:, view]
        x = features[:, columns].astype(np.float32)
        holes = np.flatnonzero(((table < 0) | ~there[np.maximum(table, 0)]).any(1))
        for start in range(0, holes.size, BLOCK):
            rows = holes[start : start + BLOCK]
            cells = table[rows]
            present = (cells >= 0) & there[np.maximum(cells, 0)]
            values = np.where(present[..., None], x[np.maximum(cells, 0)], np.inf)
            values.sort(axis=1)
            out[rows, columns] = np.where(present.any(1)[:, None], _middle(values, present.sum(1)), typical[columns])
    return out


def _middle(ordered: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Median of the first ``count`` of each row's ordered values."""
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, ordered.shape[1] - 1)
    row = np.arange(len(ordered))
    with np.errstate(invalid="ignore"):
        return 0.5 * (ordered[row, low] + ordered[row, high])
