"""Communities of a graph of codes."""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData

from stfuse._log import logger
from stfuse._progress import progress
from stfuse.tl._graph import Graph

BISECTION_STEPS = 24


def leiden(graph: Graph, resolution: float, seed: int) -> np.ndarray:
    """Cluster a graph of codes by Leiden."""
    import scanpy as sc

    small = AnnData(np.zeros((graph.connectivities.shape[0], 0), dtype=np.float32))
    sc.tl.leiden(
        small,
        resolution=resolution,
        adjacency=graph.connectivities,
        flavor="igraph",
        n_iterations=2,
        directed=False,
        random_state=seed,
    )
    return small.obs["leiden"].cat.codes.to_numpy().astype(np.int64)


def leiden_with(graph: Graph, n_clusters: int, seed: int) -> tuple[np.ndarray, float]:
    """Find a resolution that gives ``n_clusters`` by bisection of its logarithm; returns labels and resolution.

    The number of clusters grows with the resolution, though not strictly. Where the wanted number is jumped over, the
    nearest is returned with a warning.
    """
    low, high = -3.0, 2.0
    best: tuple[int, np.ndarray, float] | None = None
    for _ in progress(range(BISECTION_STEPS), total=BISECTION_STEPS, desc="resolution"):
        middle = (low + high) / 2
        labels = leiden(graph, 10**middle, seed)
        found = int(labels.max()) + 1
        if best is None or abs(found - n_clusters) < abs(best[0] - n_clusters):
            best = (found, labels, 10**middle)
        if found == n_clusters:
            break
        low, high = (middle, high) if found < n_clusters else (low, middle)
    found, labels, resolution = best  # type: ignore[misc]
    if found != n_clusters:
        warnings.warn(
            f"No resolution of Leiden gives n_clusters={n_clusters} on this graph; the nearest number, {found}, is "
            'used. method="kmeans" gives exactly as many as asked for.',
            UserWarning,
            stacklevel=4,
        )
    logger.info("leiden: resolution %.4g gives %d clusters", resolution, found)
    return labels, resolution
