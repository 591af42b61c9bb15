"""Scores of predictions against truth."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score, r2_score


def macro_f1(labels_true: np.ndarray, labels_pred: np.ndarray) -> float:
    """Mean of the F1 scores of the classes: every class counts the same, however rare.

    Parameters
    ----------
    labels_true, labels_pred
        Labels of n observations. A class that was predicted but never occurs has F1 = 0 and counts.

    Returns
    -------
    float
        Between 0 and 1.

    Examples
    --------
    >>> import stfuse
    >>> stfuse.metrics.macro_f1(["a", "a", "b"], ["a", "a", "a"])
    0.4
    """
    return float(f1_score(labels_true, labels_pred, average="macro", zero_division=0))


def micro_f1(labels_true: np.ndarray, labels_pred: np.ndarray) -> float:
    """F1 over all observations together, which is the accuracy: every observation counts the same.

    Parameters
    ----------
    labels_true, labels_pred
        Labels of n observations.

    Returns
    -------
    float
        Between 0 and 1.

    Examples
    --------
    >>> import stfuse
    >>> stfuse.metrics.micro_f1(["a", "a", "b", "b"], ["a", "a", "a", "b"])
    0.75
    """
    return float(f1_score(labels_true, labels_pred, average="micro", zero_division=0))


def r2(values_true: np.ndarray, values_pred: np.ndarray) -> float:
    """Share of the variance explained, averaged over columns; 0 is as good as the mean, below 0 worse.

    Parameters
    ----------
    values_true, values_pred
        n values, or n x targets.

    Returns
    -------
    float
        At most 1. NaN for fewer than two observations.

    Examples
    --------
    >>> import stfuse
    >>> stfuse.metrics.r2([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    1.0
    """
    if len(values_true) < 2:
        return float("nan")
    return float(r2_score(values_true, values_pred, multioutput="uniform_average"))
