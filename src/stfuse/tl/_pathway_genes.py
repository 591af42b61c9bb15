"""Expression by gene symbol, block by block: what pathway scores are computed from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse._log import logger, warn

BLOCK = 8_000_000  # values of a dense block; decoupler needs about five times its size
LOGGED_UP_TO = 30  # no logarithm of expression is larger


@dataclass(frozen=True)
class Expression:
    """Expression of named genes: ``columns`` of a matrix that may lie on disk, ``genes`` are their names."""

    matrix: Any
    columns: np.ndarray
    genes: pd.Index
    counts: bool
    where: str

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give rows and their dense log-normalised values, a block after the other; rows without expression are left out."""
        for start, block in row_blocks(self.matrix):
            if self.counts:
                total = np.asarray(block.sum(axis=1), dtype=np.float64).reshape(-1, 1)
                scale = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)
                block = csr_matrix(csr_matrix(block).multiply(scale)).log1p()
            part = block[:, self.columns]
            dense = np.asarray(part.toarray() if issparse(part) else part, dtype=np.float64)
            present = (dense != 0).any(axis=1)
            if present.any():
                yield start + np.flatnonzero(present), dense[present]


def row_blocks(matrix: Any) -> Iterator[tuple[int, Any]]:
    """Read a matrix in memory, on disk or of Dask in blocks of rows: sparse by rows, or an array."""
    if issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()
    step = max(1, BLOCK // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], step):
        block = matrix[start : start + step]
        for load in ("to_memory", "compute"):
            block = getattr(block, load)() if hasattr(block, load) else block
        block = csr_matrix(block) if issparse(block) else np.asarray(block)
        yield start, block.astype(np.float32) if block.dtype == np.float16 else block


def read_expression(adata: AnnData, layer: str | None, gene_key: str | None) -> Expression:
    """Check expression and names, and choose the columns that count: named, expressed, each name once."""
    where = "X" if layer is None else f"layers[{layer!r}]"
    if layer is not None and layer not in adata.layers:
        there = [name for name in adata.layers.keys() if name is not None]
        raise KeyError(f"No layer {layer!r}.{did_you_mean(layer, there)} There is {_read.listing(there)}.")
    matrix: Any = adata.X if layer is None else adata.layers[layer]
    if matrix is None or 0 in matrix.shape:
        raise ValueError(
            f"{where} is empty: pathways are scored from expression, name the layer that holds it (layer=)."
        )
    if matrix.dtype.kind not in "biuf":
        raise ValueError(f"{where} must hold numbers, its dtype is {matrix.dtype}.")
    names = read_names(adata, gene_key)
    seen, size, counts = _survey(matrix, where)
    if not seen.any():
        raise ValueError(f"{where} is zero throughout: there is no expression to score pathways from.")
    columns = _one_each(names, seen, size)
    if counts:
        logger.info(
            "%s holds counts: pathways are scored from log1p of 10,000 x share, %s stays as it is", where, where
        )
    return Expression(matrix, columns, pd.Index(names[columns]), counts, where)


def read_names(adata: AnnData, gene_key: str | None) -> np.ndarray:
    """Read the names of genes as text, "" where there is none."""
    if gene_key is None:
        return adata.var_names.to_numpy(dtype=object).astype(str)
    if gene_key not in adata.var:
        there = list(adata.var.columns)
        raise KeyError(
            f"No var column {gene_key!r} (gene_key).{did_you_mean(gene_key, there)} There is {_read.listing(there)}."
        )
    column: pd.Series = adata.var[gene_key].astype(object)
    return column.where(column.notna(), "").to_numpy(dtype=object).astype(str)


def _survey(matrix: Any, where: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Which genes are expressed at all, the sum of each, and whether the values are counts."""
    seen, size = np.zeros(matrix.shape[1], dtype=bool), np.zeros(matrix.shape[1])
    whole, least, largest = True, 0.0, 0.0
    for start, block in row_blocks(matrix):
        values = block.data if issparse(block) else block
        if not np.isfinite(values).all():
            raise ValueError(
                f"{where} has missing or infinite values (in rows {start} to {start + block.shape[0] - 1}): pathways are "
                "scored from expression without gaps, fill them or leave out the observations or genes."
            )
        if values.size:
            least, largest = min(least, float(values.min())), max(largest, float(values.max()))
        whole = whole and bool((values == np.rint(values)).all() if values.dtype.kind == "f" else True)
        seen |= np.asarray((block != 0).sum(axis=0)).ravel() > 0
        size += np.asarray(block.sum(axis=0), dtype=np.float64).ravel()
    if least < 0:
        warn(
            f"{where} has negative values (scaled?): a score then compares an observation with the average one, not the "
            "genes within it. Counts or log-normalised expression score the observation itself: name their layer (layer=)."
        )
    elif not whole and largest > LOGGED_UP_TO:
        warn(
            f"{where} reaches {largest:.0f} and is not whole: it looks normalised but not log-transformed, so a few genes "
            "decide the scores. Give counts, or call scanpy.pp.log1p first."
        )
    return seen, size, whole and least >= 0


def _one_each(names: np.ndarray, seen: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Choose columns that are expressed and have a name; of several with one name the most expressed."""
    usable = np.flatnonzero(seen & (names != ""))
    order = usable[np.argsort(-size[usable], kind="stable")]
    _, first = np.unique(names[order], return_index=True)
    columns = np.sort(order[first])
    nameless, twice = int((names == "").sum()), len(usable) - len(columns)
    for n, what in (
        (nameless, "have no name"),
        (int((~seen).sum()), "are zero throughout"),
        (twice, "share the name of a more expressed one"),
    ):
        if n:
            logger.info("%d of %d genes %s and are left out", n, len(names), what)
    return columns


def what_fits_better(adata: AnnData, gene_key: str | None, targets: pd.Index, known: int, organism: str | None) -> str:
    """Say which call finds more targets than the ``known`` ones, as a sentence with a space before it; else nothing."""
    best, found = None, max(2 * known, 3)
    columns = [c for c in adata.var.columns if not pd.api.types.is_numeric_dtype(adata.var[c].dtype)]
    for key in (None, *columns):
        if key != gene_key and (n := int(targets.isin(read_names(adata, key)).sum())) > found:
            best, found = (key,), n
    if best is not None:
        place, call = (
            ("var_names", "gene_key=None") if best[0] is None else (f"var[{best[0]!r}]", f"gene_key={best[0]!r}")
        )
        return f" {place} has {found} of them: {call}."
    names = pd.Index(read_names(adata, gene_key))
    alike = targets[targets.str.lower().isin(names.str.lower())]
    if len(alike) <= found:
        return ""
    here = next(name for name in names if name.lower() == alike[0].lower())
    other = {"human": "mouse", "mouse": "human"}.get(organism or "")
    call = f"organism={other!r}" if other else "give gene sets of this organism"
    return f" {len(alike)} differ in upper and lower case only ({alike[0]} in the sets, {here} in the data): {call}."
