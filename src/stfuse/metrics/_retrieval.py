"""Does a code find its partner in the other view?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np

# One block of similarities; large enough for BLAS, small enough for any machine.
_BLOCK_BYTES = 128 * 2**20
# Equal vectors may differ in their last digits after a matrix product: these still count as ties.
_TIE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}


def _unit_rows(codes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    codes = codes.astype(dtype)
    # a row scaled by its largest entry first: squares of very large or small codes would over- or underflow
    codes /= np.maximum(np.abs(codes).max(1, keepdims=True), np.finfo(dtype).tiny)
    return codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), np.finfo(dtype).tiny)


def retrieval_ranks(query: np.ndarray, reference: np.ndarray) -> np.ndarray:
    r"""Rank of every query's own partner among all references, by cosine similarity.

    Row :math:`i` of `query` belongs to row :math:`i` of `reference`. With similarities :math:`s_{ij}` the rank is

    .. math:: r_i = \#\{j : s_{ij} \ge s_{ii}\},

    so 1 is best, and ties count against the method: a code that is the same everywhere gets the last rank, not the
    first. Similarities are computed block by block, so 100,000 x 100,000 needs about 200 MB.

    Parameters
    ----------
    query, reference
        Codes, n x d each. Pairs in which either row holds NaN are left out. A row of zeros has similarity 0 to all.

    Returns
    -------
    numpy.ndarray
        Integer ranks, 1 to n', one for each of the n' complete pairs.

    Raises
    ------
    ValueError
        If the shapes differ, or no pair is complete, or a value is infinite.

    Examples
    --------
    >>> import numpy as np, stfuse
    >>> stfuse.metrics.retrieval_ranks(np.eye(3), np.eye(3)[[0, 2, 1]])
    array([1, 3, 3])
    """
    query, reference = np.asarray(query), np.asarray(reference)
    if query.ndim != 2 or query.shape != reference.shape:
        raise ValueError(
            f"query and reference must be matrices of one shape (row i belongs to row i), got {query.shape} "
            f"and {reference.shape}."
        )
    complete = ~(np.isnan(query).any(1) | np.isnan(reference).any(1))
    if not complete.any():
        raise ValueError("No observation has both codes: every pair has a NaN row.")
    query, reference = query[complete], reference[complete]
    if not (np.isfinite(query).all() and np.isfinite(reference).all()):
        raise ValueError("The codes hold infinite values.")
    dtype = np.dtype(np.float32 if query.dtype == reference.dtype == np.float32 else np.float64)
    query, reference = _unit_rows(query, dtype), _unit_rows(reference, dtype)
    n = len(query)
    step = max(1, _BLOCK_BYTES // (n * dtype.itemsize))
    ranks = np.empty(n, dtype=np.int64)
    for start in range(0, n, step):
        similarity = query[start : start + step] @ reference.T
        rows = np.arange(len(similarity))
        own = similarity[rows, start + rows] - _TIE[dtype]
        ranks[start : start + step] = np.count_nonzero(similarity >= own[:, None], axis=1)
    return ranks


@overload
def recall_at_percent(query: np.ndarray, reference: np.ndarray, percent: float = ...) -> float: ...
@overload
def recall_at_percent(query: np.ndarray, reference: np.ndarray, percent: Sequence[float]) -> np.ndarray: ...
def recall_at_percent(
    query: np.ndarray, reference: np.ndarray, percent: float | Sequence[float] = 5.0
) -> float | np.ndarray:
    r"""Fraction of queries whose own partner is among the nearest `percent` % of references.

    Chance level is about `percent` / 100 whatever the number of observations, which makes sections of different size
    comparable. Swap the arguments for the other direction. Among :math:`N` complete pairs, the nearest
    :math:`k = \max(1, \lceil pN/100 \rceil)` references by cosine similarity count; ties count against the method.

    Parameters
    ----------
    query, reference
        Codes, n x d each; row i of one belongs to row i of the other. Pairs with a NaN row are left out.
    percent
        One percentage, or several (the similarities are then computed once).

    Returns
    -------
    float or numpy.ndarray
        Recall between 0 and 1; an array when `percent` is a sequence.

    Raises
    ------
    ValueError
        If the shapes differ, no pair is complete, or a percentage is not in (0, 100].

    References
    ----------
    Recall@5/10/15 % as in SIGMMA.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(400, n_factors=(6, 0, 0), n_classes=(3, 1, 1))
    >>> shared = adata.obsm["shared"]
    >>> stfuse.metrics.recall_at_percent(shared, shared)
    1.0
    """
    wanted = np.atleast_1d(np.asarray(percent, dtype=float))
    if not ((wanted > 0) & (wanted <= 100)).all():
        raise ValueError(f"percent must lie in (0, 100], got {percent!r}.")
    ranks = retrieval_ranks(query, reference)
    # 5 % of 60 is 3 and not 4: the product is rounded before it is cut up
    k = [max(1, math.ceil(round(p * len(ranks) / 100, 9))) for p in wanted]
    recall = np.array([np.mean(ranks <= limit) for limit in k])
    return float(recall[0]) if np.ndim(percent) == 0 else recall
