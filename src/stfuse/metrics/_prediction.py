"""Scores of predictions against truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, r2_score, recall_score


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

    Raises
    ------
    ValueError
        If the lengths differ, labels are missing, or text is compared with numbers.

    Examples
    --------
    >>> import stfuse
    >>> stfuse.metrics.macro_f1(["a", "a", "b"], ["a", "a", "a"])
    0.4
    """
    return float(f1_score(*_labels(labels_true, labels_pred), average="macro", zero_division=0))


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

    Raises
    ------
    ValueError
        If the lengths differ, labels are missing, or text is compared with numbers.

    Examples
    --------
    >>> import stfuse
    >>> stfuse.metrics.micro_f1(["a", "a", "b", "b"], ["a", "a", "a", "b"])
    0.75
    """
    return float(f1_score(*_labels(labels_true, labels_pred), average="micro", zero_division=0))


def weighted_f1(labels_true: np.ndarray, labels_pred: np.ndarray) -> float:
    r"""Mean of the F1 scores of the classes, each weighted by how often it occurs.

    With :math:`n_c` of the n observations truly of class :math:`c`,

    .. math:: F = \sum_c \frac{n_c}{n} \, \frac{2\,\text{TP}_c}{2\,\text{TP}_c + \text{FP}_c + \text{FN}_c}.

    Parameters
    ----------
    labels_true, labels_pred
        Labels of n observations. A class that was predicted but never occurs has no weight.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the lengths differ, labels are missing, or text is compared with numbers.

    Examples
    --------
    F1 is 2 / 3 for a, of three observations, and 0.5 for b, of two.

    >>> import stfuse
    >>> round(stfuse.metrics.weighted_f1(["a", "a", "a", "b", "b"], ["a", "a", "b", "a", "b"]), 3)
    0.6
    """
    return float(f1_score(*_labels(labels_true, labels_pred), average="weighted", zero_division=0))


def balanced_accuracy(labels_true: np.ndarray, labels_pred: np.ndarray) -> float:
    r"""Mean over classes of the share of their observations that was found; chance is one over the number of classes.

    .. math:: A = \frac{1}{C} \sum_c \frac{\text{TP}_c}{\text{TP}_c + \text{FN}_c}

    over the C classes that occur.

    Parameters
    ----------
    labels_true, labels_pred
        Labels of n observations. A class that was predicted but never occurs is no class of its own.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the lengths differ, labels are missing, or text is compared with numbers.

    Examples
    --------
    All of a is found, but nothing of b:

    >>> import stfuse
    >>> stfuse.metrics.balanced_accuracy(["a", "a", "a", "b"], ["a", "a", "a", "a"])
    0.5
    """
    true, pred = _labels(labels_true, labels_pred)
    # scikit-learn's own function warns of classes that were only predicted
    return float(recall_score(true, pred, labels=np.unique(true), average="macro"))


def _labels(labels_true: Any, labels_pred: Any) -> tuple[np.ndarray, np.ndarray]:
    """Number the classes of both, after a check that they can be compared."""
    columns = {"labels_true": labels_true, "labels_pred": labels_pred}
    series = {name: pd.Series(np.asarray(labels, dtype=object)) for name, labels in columns.items()}
    sizes = [len(labels) for labels in series.values()]
    if sizes[0] != sizes[1] or not sizes[0]:
        raise ValueError(f"labels_true has {sizes[0]} entries, labels_pred {sizes[1]}: they must be as many, and some.")
    for name, labels in series.items():
        if labels.isna().any():
            raise ValueError(f"{name} has {int(labels.isna().sum())} missing value(s): leave these observations out.")
    text = {name: pd.api.types.infer_dtype(labels) == "string" for name, labels in series.items()}
    if text["labels_true"] != text["labels_pred"]:
        named = [f"{name} holds {'text' if is_text else 'no text'}" for name, is_text in text.items()]
        raise ValueError(f"{' and '.join(named)}, so that no two labels can be equal: call .astype(str) on both.")
    codes = pd.factorize(pd.concat(series.values()))[0]
    return codes[: sizes[0]], codes[sizes[0] :]


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
