"""Nearest-neighbour graph of codes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix

# Up to here the exact search is quick; beyond, its quadratic cost shows.
EXACT_SEARCH = 30_000


class Graph(NamedTuple):
    """Graph as :func:`scanpy.pp.neighbors` makes it, and the record scanpy keeps with it."""

    connectivities: csr_matrix
    distances: csr_matrix
    params: dict[str, Any]


def _approximate_search(n_neighbors: int, seed: int) -> Any:
    """Make a pynndescent searcher whose result scanpy can read.

    scanpy 1.12 asks for a sparse matrix, pynndescent 0.7 gives a sparse array.
    """
    from pynndescent import PyNNDescentTransformer

    class Search(PyNNDescentTransformer):
        def fit_transform(self, X: np.ndarray, y: None = None, **kwargs: Any) -> csr_matrix:
            return csr_matrix(super().fit_transform(X, y, **kwargs))

    return Search(n_neighbors=n_neighbors, random_state=seed)


def code_graph(codes: np.ndarray, *, n_neighbors: int, seed: int, use_rep: str) -> Graph:
    """Build the graph of complete codes with scanpy, on a private object."""
    import scanpy as sc

    small = AnnData(np.zeros((len(codes), 0), dtype=np.float32))
    small.obsm[use_rep] = codes
    n_neighbors = min(n_neighbors, max(2, len(codes) - 1))
    search = "sklearn" if len(codes) <= EXACT_SEARCH else _approximate_search(n_neighbors, seed)
    sc.pp.neighbors(small, n_neighbors, use_rep=use_rep, transformer=search, random_state=seed, key_added="graph")
    return Graph(
        csr_matrix(small.obsp["graph_connectivities"]),
        csr_matrix(small.obsp["graph_distances"]),
        {"n_neighbors": n_neighbors, "method": "umap", "metric": "euclidean", "random_state": seed, "use_rep": use_rep},
    )


def spread(matrix: csr_matrix, rows: np.ndarray, n: int) -> csr_matrix:
    """Lay a graph of some observations out among all ``n``; the others get empty rows."""
    if rows.size == n:
        return matrix
    coo = matrix.tocoo()
    return csr_matrix((coo.data, (rows[coo.row], rows[coo.col])), shape=(n, n))
