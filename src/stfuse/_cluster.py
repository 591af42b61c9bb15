"""Cluster complete rows: rows in, integer labels out."""

from __future__ import annotations

import warnings

import numpy as np

# K-means from ten starts up to here; above, three starts end within a thousandth of the same inertia.
MANY = 200_000
MIXTURE_SAMPLE = 20_000


def kmeans(codes: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Cluster by K-means, exact Lloyd iterations from several k-means++ starts."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    n_init = 10 if len(codes) <= MANY else 3
    with warnings.catch_warnings():
        # fewer distinct codes than clusters: the caller sees the empty clusters and says so in our own words
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(n_clusters, n_init=n_init, random_state=seed).fit_predict(codes)


def gmm(codes: np.ndarray, n_clusters: int, seed: int, n_init: int = 3) -> np.ndarray:
    """Cluster by a Gaussian mixture with one covariance for all components.

    One covariance is what some hundred observations can carry in some hundred dimensions. A small multiple of the
    mean variance on its diagonal keeps it invertible whatever the scale of the code. Of more than 20,000 observations
    a random 20,000 fit the mixture, which then places all.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    values = _centred(codes)
    sample = values
    if len(values) > MIXTURE_SAMPLE:
        sample = values[np.random.default_rng(seed).choice(len(values), MIXTURE_SAMPLE, replace=False)]
    ridge = 1e-3 * float(values.var(axis=0).mean()) + np.finfo(float).eps
    model = GaussianMixture(n_clusters, covariance_type="tied", n_init=n_init, reg_covar=ridge, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(sample).predict(values)


def bayesian_mixture(codes: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Cluster by a Bayesian Gaussian mixture with one covariance, ten random starts, as the published AESTETIK does."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import BayesianGaussianMixture

    model = BayesianGaussianMixture(
        n_components=n_clusters,
        covariance_type="tied",
        init_params="random",
        max_iter=1000,
        n_init=10,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit_predict(_centred(codes))


def _centred(codes: np.ndarray) -> np.ndarray:
    """Rows in double precision around their mean: one covariance is computed from squares, which large means would drown."""
    values = codes.astype(np.float64)
    return values - values.mean(axis=0)
