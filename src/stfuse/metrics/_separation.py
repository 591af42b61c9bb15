"""How well groups of observations stand apart in a code."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import davies_bouldin_score, silhouette_score

from stfuse._check import check_seed
from stfuse.metrics._integration import SAMPLE, complete_codes, group_codes


def davies_bouldin(codes: np.ndarray, labels: np.ndarray) -> float:
    r"""Davies-Bouldin index: how wide groups are, relative to how far they lie apart; lower is better.

    With :math:`\sigma_i` the mean distance of group :math:`i`'s observations from its centre :math:`c_i`,

    .. math:: \text{DB} = \frac{1}{K} \sum_i \max_{j \ne i} \frac{\sigma_i + \sigma_j}{\lVert c_i - c_j \rVert}.

    It takes time in proportion to the number of observations, so all of them count.

    Parameters
    ----------
    codes
        Code of n observations, n x d. Rows of NaN are left out.
    labels
        Group of each observation; those with a missing one (NaN, None) are left out.

    Returns
    -------
    float
        0 or more.

    Raises
    ------
    ValueError
        If the lengths differ, a row of the code has NaN in part, or there are not at least two groups and fewer groups than
        observations.

    Notes
    -----
    scikit-learn's `davies_bouldin_score`. The scale of the code does not matter, but that of its columns against each
    other does: compare codes of one making.

    Examples
    --------
    Both groups are 1 wide to each side of their centres, which are 10 apart: (1 + 1) / 10.

    >>> import stfuse
    >>> stfuse.metrics.davies_bouldin([[0.0], [2.0], [10.0], [12.0]], ["a", "a", "b", "b"])
    0.2
    """
    return float(davies_bouldin_score(*_grouped(codes, labels)))


def silhouette(codes: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> float:
    r"""Mean silhouette width: whether observations lie nearer to their own group than to the next; higher is better.

    With :math:`a_i` the mean distance to the others of the own group and :math:`b_i` that to the nearest other group,

    .. math:: s = \frac{1}{n} \sum_i \frac{b_i - a_i}{\max(a_i, b_i)},

    where an observation that is alone in its group counts as 0.

    Parameters
    ----------
    codes
        Code of n observations, n x d, compared by Euclidean distance. Rows of NaN are left out.
    labels
        Group of each observation; those with a missing one (NaN, None) are left out.
    seed
        Seed of the sample: the time grows with the square of the observations, so of more than 20,000 a random 20,000 are scored.

    Returns
    -------
    float
        Between -1 and 1; about 0 where groups overlap. The silhouette of :func:`stfuse.metrics.integration_scores` is
        (s + 1) / 2.

    Raises
    ------
    ValueError
        If the lengths differ, a row of the code has NaN in part, or there are not at least two groups and fewer groups than
        observations.

    Notes
    -----
    scikit-learn's `silhouette_score`.

    Examples
    --------
    The inner two have a = 2 and b = 9, the outer two b = 11: the mean of 7/9 and 9/11.

    >>> import stfuse
    >>> round(stfuse.metrics.silhouette([[0.0], [2.0], [10.0], [12.0]], ["a", "a", "b", "b"]), 3)
    0.798
    """
    check_seed(seed)
    codes, groups = _grouped(codes, labels)
    if len(codes) > SAMPLE:
        rows = np.random.default_rng(seed).choice(len(codes), SAMPLE, replace=False)
        codes, groups = codes[rows], groups[rows]
        _check_groups(groups)
    return float(silhouette_score(codes, groups))


def _grouped(codes: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes and groups of the observations that have both."""
    codes = complete_codes(codes)
    groups = group_codes(labels, "labels", len(codes))
    known = (groups >= 0) & ~np.isnan(codes).any(axis=1)
    _check_groups(groups[known])
    return codes[known], groups[known]


def _check_groups(groups: np.ndarray) -> None:
    n_groups = len(np.unique(groups))
    if not 2 <= n_groups < len(groups):
        raise ValueError(
            f"{len(groups)} observation(s) with a code and a label make {n_groups} group(s): there must be at least two "
            "groups, and fewer groups than observations."
        )
