"""Agreement of domains with labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score


def domain_scores(labels_true: np.ndarray, labels_pred: np.ndarray) -> dict[str, float]:
    """Agreement of two partitions of the same observations, whatever the names of their groups.

    Parameters
    ----------
    labels_true, labels_pred
        Labels of n observations. Observations with a missing label (NaN, None) on either side are left out.

    Returns
    -------
    dict
        `ari`, the adjusted Rand index (0 = chance, 1 = same partition), `nmi`, the normalised mutual information
        (0 to 1), and `n_obs`, the number of observations compared.

    Raises
    ------
    ValueError
        If the lengths differ or nothing is left to compare.

    Examples
    --------
    >>> import stfuse
    >>> stfuse.metrics.domain_scores(["a", "a", "b"], ["1", "1", "0"])
    {'ari': 1.0, 'nmi': 1.0, 'n_obs': 3}
    """
    true, pred = pd.Series(np.asarray(labels_true, dtype=object)), pd.Series(np.asarray(labels_pred, dtype=object))
    if len(true) != len(pred):
        raise ValueError(f"labels_true has {len(true)} entries, labels_pred {len(pred)}.")
    known = (true.notna() & pred.notna()).to_numpy()
    if not known.any():
        raise ValueError("No observation has both labels.")
    a, b = pd.factorize(true[known])[0], pd.factorize(pred[known])[0]
    return {
        "ari": float(adjusted_rand_score(a, b)),
        "nmi": float(normalized_mutual_info_score(a, b)),
        "n_obs": int(known.sum()),
    }
