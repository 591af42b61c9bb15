"""Harmony, on complete rows."""

from __future__ import annotations

import numpy as np
import pandas as pd

OBSERVATIONS_A_CLUSTER = 30
MOST_CLUSTERS = 100
SEEDS = 2**31  # harmonypy's generator takes 31 bits


def harmony(values: np.ndarray, batch: np.ndarray, *, theta: float, seed: int) -> np.ndarray:
    """Correct n x d features for ``batch`` (codes); float64, n x d."""
    from harmonypy import run_harmony

    n_obs = len(values)
    # as harmonypy chooses, but never none
    n_clusters = max(1, min(round(n_obs / OBSERVATIONS_A_CLUSTER), MOST_CLUSTERS))
    found = run_harmony(
        values.T,  # told apart from n x d by its second length, which an n x n array would not do
        pd.DataFrame({"batch": batch}),
        "batch",
        theta=theta,
        nclust=n_clusters,
        random_state=seed % SEEDS,
        verbose=False,
    ).Z_corr
    corrected = np.asarray(found)
    if corrected.shape != values.shape:
        raise RuntimeError(
            f"harmonypy gave back {corrected.shape}, where {values.shape} was expected: install harmonypy 2 or newer."
        )
    return corrected
