"""Cluster complete codes; three methods with one shape: codes in, integer labels out."""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData

from stfuse._log import logger
from stfuse._progress import progress
from stfuse.tl._graph import Graph

# K-means from ten starts up to here; above, three starts end within a thousandth of the same inertia.
MANY = 200_000
MIXTURE_SAMPLE = 20_000
BISECTION_STEPS = 24


def kmeans(codes: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Cluster by K-means, exact Lloyd iterations from several k-means++ starts."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    n_init = 10 if len(codes) <= MANY else 3
    with warnings.catch_warnings():
        # fewer distinct codes than clusters: the caller sees the empty clusters and says so in our own words
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(n_clusters, n_init=n_init, random_state=seed).fit_predict(codes)


def gmm(codes: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Cluster by a Gaussian mixture with one covariance for all components.

    One covariance is what some hundred observations can carry in some hundred dimensions. A small multiple of the
    mean variance on its diagonal keeps it invertible whatever the scale of the code. Of more than 20,000 observations
    a random 20,000 fit the mixture, which then places all.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    values = codes.astype(np.float64)
    sample = values
    if len(values) > MIXTURE_SAMPLE:
        sample = values[np.random.default_rng(seed).choice(len(values), MIXTURE_SAMPLE, replace=False)]
    ridge = 1e-3 * float(values.var(axis=0).mean()) + np.finfo(float).eps
    model = GaussianMixture(n_clusters, covariance_type="tied", n_init=3, reg_covar=ridge, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(sample).predict(values)


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
