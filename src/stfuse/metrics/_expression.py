"""How well expression is predicted, and the genes to judge that by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from stfuse._check import check_number
from stfuse.metrics._integration import group_codes

# One block of rows in double precision; a few of its size are held at a time.
_BLOCK_BYTES = 32 * 2**20
# Values that differ by less than so many roundings of their type are all the same.
_ROUNDINGS = 4


def gene_pearson(values_true: Any, values_pred: Any, *, groups: Any = None) -> np.ndarray:
    r"""Correlate predicted with true expression, gene by gene.

    With :math:`t_{ig}` the true and :math:`p_{ig}` the predicted expression of gene :math:`g` in observation :math:`i`, and
    means over the observations of one slide,

    .. math::

        r_g = \frac{\sum_i (t_{ig} - \bar t_g)(p_{ig} - \bar p_g)}
        {\sqrt{\sum_i (t_{ig} - \bar t_g)^2 \, \sum_i (p_{ig} - \bar p_g)^2}}.

    With `groups` it is the mean of the slides' :math:`r_g`, in which differences between slides do not count: over all
    slides together a prediction of nothing but each slide's mean could correlate well.

    Parameters
    ----------
    values_true
        True expression, observations x genes, usually log-normalised: an array, a DataFrame, or a sparse matrix, which is
        read in blocks of rows (CSR is fastest).
    values_pred
        Predicted expression of the same shape.
    groups
        Slide of each observation. None: all are of one slide.

    Returns
    -------
    numpy.ndarray
        A correlation for each gene, -1 to 1. A gene whose truth is constant in a slide has none there: the slide is left out
        of its mean, and the gene is NaN where no slide is left. A prediction that is constant (up to rounding) where the
        truth varies has found nothing and counts as 0.

    Raises
    ------
    ValueError
        If the shapes differ, two data frames have other rows or columns, values are infinite, or groups are missing.

    Notes
    -----
    Where either value is NaN, the observation is left out for that gene. Sums are merged block by block in double
    precision, so that a matrix of 100,000 x 2,000 needs some 150 MB beside itself. The mean over chosen genes, which papers
    report, is `np.nanmean(r[genes])` with `genes` of :func:`stfuse.metrics.top_genes`, chosen on the training data.

    Examples
    --------
    The first gene is predicted in its order, the second not at all, the third never varies:

    >>> import stfuse
    >>> true = [[1, 1, 5], [2, 3, 5], [3, 2, 5]]
    >>> predicted = [[2.0, 4.0, 1.0], [4.0, 4.0, 2.0], [6.0, 4.0, 3.0]]
    >>> stfuse.metrics.gene_pearson(true, predicted)
    array([ 1.,  0., nan])
    """
    _check_labels(values_true, values_pred)
    true, pred = _rows_of(values_true, "values_true"), _rows_of(values_pred, "values_pred")
    if true.shape != pred.shape:
        raise ValueError(
            f"values_true and values_pred must have one shape (observations x genes), got {tuple(true.shape)} and "
            f"{tuple(pred.shape)}."
        )
    if groups is None:
        return _pearson(true, pred, None)
    codes = group_codes(groups, "groups", true.shape[0], of="values_true")
    slides = np.array([_pearson(true, pred, np.flatnonzero(codes == code)) for code in range(codes.max() + 1)])
    known = ~np.isnan(slides)
    return np.divide(
        np.where(known, slides, 0).sum(0), known.sum(0), out=np.full(true.shape[1], np.nan), where=known.any(0)
    )


def top_genes(
    expression: Any, n_genes: int = 50, kind: Literal["hvg", "heg"] = "hvg", *, batch: Any = None
) -> np.ndarray:
    r"""Choose the genes by which predictions of expression are judged: highly variable or highly expressed ones.

    With :math:`x_{ig}` the log-normalised expression, genes are ranked by its variance (`"hvg"`) or its mean (`"heg"`)
    over the observations; where `batch` is given, by the average of that over the batches.

    Choose them on the training data. Chosen with the test data, they favour genes whose variation there is known to be
    large.

    Parameters
    ----------
    expression
        Observations x genes: an array, a DataFrame or a sparse matrix. Counts (whole numbers, none negative) are scaled to
        10,000 an observation and log1p-transformed, and observations without counts left out; anything else is
        taken as it is.
    n_genes
        How many genes to choose.
    kind
        `"hvg"`: highest variance. `"heg"`: highest mean.
    batch
        Batch (slide, patient) of each observation: variances are then taken within batches.

    Returns
    -------
    numpy.ndarray
        Column numbers, best first, so that the first 50 of 100 are the best 50. Of equal genes the first comes first.

    Raises
    ------
    ValueError
        If there are fewer genes than asked for, values are missing or infinite, no batch has two observations, or `kind` is
        unknown.

    Notes
    -----
    The plain variance, and not one that is corrected for the mean as scanpy's `seurat_v3`: correlation is measured on these very
    values, and in 15,000 genes of a few hundred spots the corrected ranking prefers rare genes whose variation is mostly noise. Chosen on
    one half of the HER2 tumour section A1, the correlation of its genes with their neighbours' mean in the other half is 0.02 for
    `seurat_v3` and 0.16 for the plain variance; in 1,000 genes of the olfactory bulb both give 0.55. It also gives the same
    genes for counts and for their log-normalised values.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> genes = stfuse.metrics.top_genes(adata.X, 3, "heg", batch=adata.obs["section"])
    >>> list(adata.var_names[genes])
    ['mt-Rnr1', 'mt-Rnr2', 'mt-Cytb']
    """
    check_number("n_genes", n_genes, least=1, whole=True)
    if kind not in ("hvg", "heg"):
        raise ValueError(f'kind must be "hvg" (highly variable) or "heg" (highly expressed), got {kind!r}.')
    values = _rows_of(expression, "expression")
    if n_genes > values.shape[1]:
        raise ValueError(f"n_genes={n_genes}, but expression has {values.shape[1]} gene(s).")
    codes = np.zeros(values.shape[0], dtype=np.int64)
    if batch is not None:
        codes = group_codes(batch, "batch", len(codes), of="expression")
    counts = holds_counts(values)
    found = [_spread_and_mean(values, np.flatnonzero(codes == code), counts) for code in range(codes.max() + 1)]
    scores = [(spread if kind == "hvg" else mean) for n, spread, mean in found if n > 1]
    if not scores:
        raise ValueError("No batch has two observations with expression: there is nothing to rank genes by.")
    return np.argsort(-np.mean(scores, axis=0), kind="stable")[:n_genes]


def holds_counts(values: Any) -> bool:
    """Tell counts, whole numbers none of which is negative, from expression that was transformed."""
    parts = [values.data] if issparse(values) else _blocks(values, None)
    return all(_whole(part) for part in parts)


def _whole(values: np.ndarray) -> bool:
    step = 1_000_000  # of the entries of a sparse matrix; log-normalised ones are told by the first
    flat = values.reshape(-1)
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        if (part < 0).any() or (part != np.rint(part)).any():
            return False
    return True


def _check_labels(true: Any, pred: Any) -> None:
    """Refuse data frames of which rows or columns stand for something else at the same place."""
    if not (isinstance(true, pd.DataFrame) and isinstance(pred, pd.DataFrame)) or true.shape != pred.shape:
        return
    for axis, what in (("columns", "genes"), ("index", "observations")):
        if not getattr(true, axis).equals(getattr(pred, axis)):
            raise ValueError(
                f"values_true and values_pred are data frames with different {what} ({axis}), or in another order: call "
                "values_pred.loc[values_true.index, values_true.columns]."
            )


def _rows_of(values: Any, name: str) -> Any:
    """Take a matrix of numbers of which rows can be read."""
    if hasattr(values, "compute"):
        values = values.compute()
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    elif issparse(values):
        values = values.tocsr()
    elif not hasattr(values, "shape"):
        values = np.asarray(values)
    if len(values.shape) != 2 or 0 in values.shape:
        raise ValueError(f"{name} must be a matrix of observations x genes, its shape is {tuple(values.shape)}.")
    if values.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold numbers, its dtype is {values.dtype}.")
    return values


def _blocks(values: Any, rows: np.ndarray | None) -> Iterator[np.ndarray]:
    """Rows of a matrix, dense and in double precision, so many at a time as fit a block."""
    n = values.shape[0] if rows is None else rows.size
    step = max(1, _BLOCK_BYTES // (8 * values.shape[1]))
    for start in range(0, n, step):
        part = values[slice(start, min(start + step, n)) if rows is None else rows[start : start + step]]
        yield np.array(part.toarray() if hasattr(part, "toarray") else part, dtype=np.float64)


def _pearson(true: Any, pred: Any, rows: np.ndarray | None) -> np.ndarray:
    """Correlate over some rows: moments of each block are merged (Chan, Golub and LeVeque), which keeps large means exact."""
    n_genes = true.shape[1]
    n, mean, moments = np.zeros(n_genes), np.zeros((2, n_genes)), np.zeros((3, n_genes))
    for t, p in zip(_blocks(true, rows), _blocks(pred, rows), strict=True):
        m, center, products = _block_moments(t, p)
        total = n + m
        share = m / np.maximum(total, 1)
        step = center - mean
        moments += products + n * share * np.stack([step[0] ** 2, step[1] ** 2, step[0] * step[1]])
        mean += step * share
        n = total
    spread_true, spread_pred, both = moments
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip(both / (np.sqrt(spread_true) * np.sqrt(spread_pred)), -1, 1)
    r[_constant(spread_pred, mean[1], n, pred.dtype)] = 0
    r[_constant(spread_true, mean[0], n, true.dtype) | (n < 2)] = np.nan
    return r


def _block_moments(t: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, means (2 x genes) and centred sums of squares and products (3 x genes) of one block, which is used up."""
    if np.isinf(t).any() or np.isinf(p).any():
        raise ValueError(f"{'values_true' if np.isinf(t).any() else 'values_pred'} holds infinite values.")
    missing = np.isnan(t) | np.isnan(p)
    some = bool(missing.any())
    m = len(t) - missing.sum(0)
    first = missing.argmin(0), np.arange(t.shape[1])
    center = np.empty((2, t.shape[1]))
    for row, block in enumerate((t, p)):
        # measured from a value of its own, a gene that is constant is so exactly
        start = np.where(m > 0, block[first], 0)
        block -= start
        if some:
            block[missing] = 0
        shift = block.sum(0) / np.maximum(m, 1)
        block -= shift
        if some:
            block[missing] = 0
        center[row] = start + shift
    return m, center, np.stack([np.einsum("ig,ig->g", a, b) for a, b in ((t, t), (p, p), (t, p))])


def _constant(spread: np.ndarray, mean: np.ndarray, n: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Genes whose values differ by no more than their rounding."""
    epsilon = np.finfo(dtype if dtype.kind == "f" else np.float64).eps
    return np.sqrt(spread) <= _ROUNDINGS * epsilon * np.abs(mean) * np.sqrt(n)


def _spread_and_mean(values: Any, rows: np.ndarray, counts: bool) -> tuple[int, np.ndarray, np.ndarray]:
    """Count the observations in ``rows`` with expression, and take each gene's variance and mean over them."""
    from sklearn.preprocessing import StandardScaler

    moments, n = StandardScaler(), 0
    for block in _blocks(values, rows):
        if not np.isfinite(block).all():
            raise ValueError("expression has missing or infinite values: leave these observations out.")
        if counts:
            total = block.sum(1)
            block = np.log1p(block[total > 0] * (1e4 / total[total > 0])[:, None])
        if len(block):
            moments.partial_fit(block)
            n += len(block)
    return n, np.asarray(getattr(moments, "var_", 0.0)), np.asarray(getattr(moments, "mean_", 0.0))
