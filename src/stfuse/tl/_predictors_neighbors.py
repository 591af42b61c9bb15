"""Expression as the weighted mean of the nearest observations of the reference."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from stfuse._log import warn
from stfuse._read import check_values, read_rep
from stfuse._topk import Nearest, top_k
from stfuse.tl._predictors_task import Prediction, Task

WEIGHTS = ("cosine", "softmax", "uniform")
# Expression of the neighbours of one block of observations, in double precision.
BLOCK_BYTES = 128 * 2**20


def average_neighbors(task: Task, query: np.ndarray, reference: np.ndarray) -> Prediction:
    """Average the expression of the nearest codes: n x d each, NaN where there is none."""
    if query.shape[1] != reference.shape[1]:
        raise ValueError(
            f"The codes of the query have {query.shape[1]} columns, those of the reference {reference.shape[1]}: they are not of one "
            "method and one training."
        )
    has = np.isfinite(query).all(axis=1)
    rows = np.flatnonzero(np.isfinite(reference).all(axis=1) & task.expression.has)
    asked = task.neighbors
    for what, n in (("of the query has a code", has.sum()), ("of the reference has a code and expression", rows.size)):
        if not n:
            raise ValueError(f"No observation {what}.")
    check_enough(asked.n_neighbors, rows.size)
    near = top_k(
        query[has],
        reference[rows],
        asked.n_neighbors,
        device=torch_device(task.device),
        approximate=asked.approximate,
        seed=task.seed,
    )
    weights, unmatched = neighbor_weights(near.similarity, asked.weights, asked.temperature)
    if unmatched.any() and asked.weights == "cosine":
        warn(
            f"{int(unmatched.sum())} of {int(has.sum())} observations of the query have no neighbour with a positive similarity: "
            "their prediction is the plain mean of the nearest, and they are marked."
        )
    where = Nearest(near.similarity, rows[near.index])
    mean, std, uncertainty = _moments(task, where, weights)
    lonely = np.zeros(has.size, bool)
    lonely[has] = unmatched
    note = {"n_reference": int(rows.size), "mean_similarity": float(near.similarity.mean())}
    return Prediction(
        _laid_out(mean, has), None if std is None else _laid_out(std, has), _laid_out(uncertainty, has), lonely, note
    )


def check_enough(n_neighbors: int, n_reference: int) -> None:
    """Refuse more neighbours than there can be."""
    if n_neighbors > n_reference:
        raise ValueError(
            f"n_neighbors={n_neighbors} is more than the {n_reference} observations of the reference that have a code and expression: "
            "use fewer."
        )


def neighbor_weights(similarity: np.ndarray, kind: str, temperature: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Weights that sum to 1 (n x k), and which rows have no positive similarity; these are averaged plainly by "cosine"."""
    unmatched = (similarity <= 0).all(axis=1)
    if kind == "cosine":
        weights = np.maximum(similarity, 0, dtype=np.float64)
        weights[unmatched] = 1
    elif kind == "softmax":
        scaled = similarity.astype(np.float64) / temperature
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    else:
        weights = np.ones(similarity.shape)
    return weights / weights.sum(axis=1, keepdims=True), unmatched


def _moments(task: Task, near: Nearest, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Weighted mean, standard deviation (if asked for) and its root mean square over genes, of each row's neighbours."""
    expression = task.expression
    n, k = weights.shape
    n_genes = len(expression.var)
    mean, uncertainty = np.empty((n, n_genes), np.float32), np.empty(n, np.float32)
    std = np.empty_like(mean) if task.std else None
    stored = expression.values.nnz / expression.has.size if isinstance(expression.values, csr_matrix) else n_genes
    step = max(1, int(BLOCK_BYTES / 8 / (k * stored + 3 * n_genes)))
    for start in range(0, n, step):
        block = slice(start, start + step)
        rows, column = np.unique(near.index[block], return_inverse=True)
        values = expression.rows(rows)
        squares = values.multiply(values).tocsr() if isinstance(values, csr_matrix) else values**2
        starts = np.arange(0, column.size + 1, k)
        share = csr_matrix((weights[block].ravel(), column.ravel(), starts), shape=(len(starts) - 1, rows.size))
        found = _dense(share @ values)
        mean[block] = found
        # the sum over genes of E[x^2] - E[x]^2 needs the squares only summed
        total = share @ np.asarray(squares.sum(axis=1)).ravel() - np.einsum("ig,ig->i", found, found)
        uncertainty[block] = np.sqrt(np.maximum(total, 0) / n_genes)
        if std is not None:
            std[block] = np.sqrt(np.maximum(_dense(share @ squares) - found**2, 0))
    return mean, std, uncertainty


def _dense(values: csr_matrix | np.ndarray) -> np.ndarray:
    return values.toarray() if isinstance(values, csr_matrix) else values


def _laid_out(values: np.ndarray, has: np.ndarray) -> np.ndarray:
    out = np.full((has.size, *values.shape[1:]), np.nan, np.float32)
    out[has] = values
    return out


def torch_device(device: str) -> str:
    """Name of a device as torch knows it, of what the user asks for."""
    from stfuse.train._fit import resolve_device

    kind, which = resolve_device(device)
    return kind if kind != "gpu" else f"cuda:{which[0]}" if isinstance(which, list) else "cuda"


def named_codes(task: Task, use_rep: str | tuple[str, str]) -> Prediction:
    """Use codes that both objects hold: one name, or the query's and the reference's."""
    names = (use_rep, use_rep) if isinstance(use_rep, str) else tuple(use_rep)
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise ValueError(f"use_rep must be a key of obsm, or the query's and the reference's key, got {use_rep!r}.")
    codes = []
    for who, data, name in zip(("query", "reference"), (task.query, task.reference), names, strict=True):
        try:
            values = read_rep(data, name, task.table_key)
        except KeyError as error:
            raise KeyError(f"The {who} lacks a code. {error.args[0]}") from None
        has = check_values(values, f"obsm[{name!r}] of the {who}")
        codes.append(np.where(has[:, None], values, np.nan))
    return average_neighbors(task, codes[0], codes[1])


def image_knn(task: Task, *, n_comps: int | None = 50) -> Prediction:
    """Nearest in the image features themselves: standardised, and reduced to components of the reference."""
    from stfuse.tl._predictors_ridge import image_components

    query, reference = image_components(task, n_comps)
    return average_neighbors(task, query, reference)
