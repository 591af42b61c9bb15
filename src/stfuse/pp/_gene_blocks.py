"""Genes of slides, read in blocks: checked, and standardised on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csc_matrix, issparse

BLOCK = 1 << 20  # values that are unpacked together


@dataclass(frozen=True)
class Genes:
    """Samples x genes, of which some ``rows`` and ``columns`` count, less ``shift`` and divided by ``scale`` where they are read."""

    matrix: np.ndarray | csc_matrix
    rows: np.ndarray
    columns: np.ndarray
    shift: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray | csc_matrix, rows: np.ndarray) -> Genes:
        """Take all genes of some samples as they are."""
        n = matrix.shape[1]
        return cls(matrix, rows, np.arange(n), np.zeros(n), np.ones(n))

    @property
    def n_rows(self) -> int:
        """Number of samples."""
        return len(self.rows)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.columns)

    def standardised(self, found: Moments, scale: bool) -> Genes:
        """Keep the genes that vary, centred, and with ``scale`` of unit spread."""
        kept = found.varies
        spread = found.sd[kept] if scale else np.ones(kept.sum())
        return Genes(self.matrix, self.rows, self.columns[kept], found.mean[kept], spread)

    def blocks(self, chosen: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Go over some genes: which of them, and their values in double precision."""
        width = max(1, BLOCK // max(1, self.matrix.shape[0]))
        for start in range(0, len(chosen), width):
            part = slice(start, min(start + width, len(chosen)))
            yield part, self._read(chosen[part])

    def _read(self, chosen: np.ndarray) -> np.ndarray:
        at = self.columns[chosen]
        run = at[-1] - at[0] + 1 == len(at)  # a slice is a view; columns here and there are copied
        values: Any = self.matrix[:, slice(at[0], at[-1] + 1) if run else at]
        values = values.toarray() if issparse(values) else values
        out: np.ndarray = (values if self.n_rows == len(values) else values[self.rows]).astype(np.float64)
        out -= self.shift[chosen]
        out /= self.scale[chosen]
        return out


class Moments(NamedTuple):
    """Of each gene the mean, the spread (1 where it is the same everywhere) and whether it varies; NaN of each sample."""

    mean: np.ndarray
    sd: np.ndarray
    varies: np.ndarray
    n_nan: np.ndarray
    counts: bool  # whether all values are whole numbers and none is negative


def moments(genes: Genes, what: str) -> Moments:
    """Look at all values once; infinite ones are refused."""
    n = genes.n_genes
    mean, sd, varies = np.empty(n), np.ones(n), np.empty(n, dtype=bool)
    n_nan, counts = np.zeros(genes.n_rows, dtype=np.int64), True
    for part, block in genes.blocks(np.arange(n)):
        if np.isinf(block).any():
            row, column = np.argwhere(np.isinf(block))[0]
            raise ValueError(
                f"{what} holds infinite values (first in row {genes.rows[row]}, column {part.start + column}): clean them first."
            )
        nan = np.isnan(block)
        n_nan += nan.sum(axis=1)
        counts = counts and bool((block >= 0).all() and (block == np.rint(block)).all())
        mean[part] = block.mean(axis=0)
        varies[part] = np.ptp(block, axis=0) > 0
        sd[part] = block.std(axis=0)
    sd[~varies] = 1
    return Moments(mean, sd, varies, n_nan, counts)


def in_memory(values: Any) -> np.ndarray | csc_matrix:
    """Load what lies on disk or is yet to be computed; sparse values by columns, dense ones as they are."""
    for load in ("to_memory", "compute"):
        values = getattr(values, load)() if hasattr(values, load) else values
    return csc_matrix(values) if issparse(values) else np.asarray(values)
