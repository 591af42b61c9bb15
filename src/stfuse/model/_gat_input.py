"""What a graph encoder reads: counts of its genes, where observations lie, and who their neighbours are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse import _read
from stfuse._log import warn
from stfuse._neighbors import section_neighbors
from stfuse.pp._recipe import log_normalise, present_counts, variable_genes
from stfuse.train._gat_plan import ExpressionGraph, compact_order

MEND = "stfuse.tl.gat starts from raw counts: put them into X, or name the layer that holds them with layer=."


@dataclass(frozen=True)
class GraphInput:
    """Counts (all genes) of the observations that have any (``present``, of all), and where those lie."""

    counts: csr_matrix
    total: np.ndarray
    present: np.ndarray
    genes: pd.Index
    spatial: np.ndarray
    section: np.ndarray
    sections: list[str]

    def top_genes(self, n_top_genes: int | None) -> pd.Index:
        """Names of the genes that vary most for their mean, ranked within each section; all of them where None."""
        if n_top_genes is None or n_top_genes >= len(self.genes):
            return self.genes
        section = pd.Series(np.asarray(self.sections, dtype=object)[self.section])
        return self.genes[variable_genes(self.counts, n_top_genes, section if len(self.sections) > 1 else None)]

    def graph(self, genes: pd.Index, n_neighbors: int, *, with_counts: bool) -> tuple[ExpressionGraph, np.ndarray]:
        """Make the graph with the values of ``genes``; also tell which of them are not there (their values are 0)."""
        where = self.genes.get_indexer(genes)
        missing = where < 0
        chosen = _columns(self.counts, where)
        table = section_neighbors(self.spatial, self.section, n_neighbors)
        table[table == np.arange(len(table))[:, None]] = -1  # padding
        graph = ExpressionGraph(
            values=log_normalise(chosen, self.total),
            counts=chosen.astype(np.float32) if with_counts else None,
            neighbors=table,
            order=compact_order(self.spatial, self.section),
        )
        return graph, missing


def read_input(
    adata: AnnData, *, layer: str | None, library_key: str | None, spatial_key: str, whole: bool
) -> GraphInput:
    """Read and check everything; ``whole`` refuses values that are no whole numbers instead of warning."""
    if adata.n_obs == 0:
        raise ValueError("There are no observations.")
    _read.check_names(adata.obs_names, "the data")
    _read.check_genes(adata.var_names, "the data")
    places = read_places(adata, spatial_key)
    section, sections = _read.read_sections(adata, library_key)
    counts, total, present = present_counts(adata, layer, mend=MEND, whole=whole)
    lost = ~np.isfinite(places[present]).all(axis=1)
    if lost.any():
        raise ValueError(
            f"{lost.sum()} observation(s) have no coordinates in obsm[{spatial_key!r}], so their neighbours are not known: add "
            "them, or drop these observations."
        )
    _read.warn_if_stacked(places[present], len(sections), library_key)
    _check_sections(section[present], sections, library_key)
    return GraphInput(counts, total, present, adata.var_names, places[present], section[present], sections)


def read_places(data: Any, spatial_key: str, table_key: str | None = None) -> np.ndarray:
    """Coordinates, n x 2; without any there is no graph."""
    places = _read.read_coordinates(data, spatial_key, table_key)
    if places is None:
        raise KeyError(
            f"{_read.no_coordinates(data, spatial_key, table_key)} A graph encoder needs to know which observations are "
            "neighbours: name the coordinates with spatial_key=, or use stfuse.pp.rna_features, which needs none."
        )
    return places


def _check_sections(section: np.ndarray, sections: list[str], library_key: str | None) -> None:
    """Refuse data without a neighbour anywhere, warn of observations that are alone."""
    sizes = np.bincount(section, minlength=len(sections))
    alone = np.flatnonzero(sizes == 1)
    if (sizes <= 1).all():
        raise ValueError(
            f"Each of the {len(section)} observations with counts is alone in its section (library_key={library_key!r}), so "
            "none has a neighbour: name the column that says which section an observation lies in."
        )
    if alone.size:
        warn(
            f"{alone.size} section(s) have one observation with counts (for example {sections[alone[0]]!r}): it has no "
            "neighbours, and its code tells of itself alone."
        )


def _columns(counts: csr_matrix, where: np.ndarray) -> csr_matrix:
    """Columns in a new order; -1 is a column of zeros."""
    if (where >= 0).all():
        return counts[:, where]
    known = np.flatnonzero(where >= 0)
    chosen = counts[:, where[known]]
    return csr_matrix((chosen.data, known[chosen.indices], chosen.indptr), shape=(counts.shape[0], len(where)))
