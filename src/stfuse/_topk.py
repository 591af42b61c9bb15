"""The nearest references of many queries by cosine similarity, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stfuse._check import check_number

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# One block of similarities, 1,024 x 16,384 in single precision, is 64 MB.
QUERIES, REFERENCES = 1024, 16_384
# So many references are judged by their maximum first.
GROUP = 32
# Above so many references an index that may miss a few is used on a CPU, unless told otherwise.
MANY = 1_000_000
# The index is asked for so many times the neighbours that are wanted; the best by exact similarity are kept.
WIDER = 4


@dataclass(frozen=True)
class Nearest:
    """Cosine similarity and row of the nearest references, n_queries x k each, best first; of equals the lower row first."""

    similarity: np.ndarray
    index: np.ndarray


def top_k(
    query: np.ndarray,
    reference: np.ndarray,
    k: int,
    *,
    device: str = "cpu",
    approximate: bool | None = None,
    seed: int = 0,
) -> Nearest:
    """Find the ``k`` references nearest to each query; rows need not be of unit length, a row of zeros is similar to none.

    ``device`` is a device of torch. Exact, by products of blocks, unless ``approximate``; None = above a million references on a
    CPU. Similarities that differ only by rounding are no ties.
    """
    query, reference = np.asarray(query), np.asarray(reference)
    if query.ndim != 2 or reference.ndim != 2 or query.shape[1] != reference.shape[1]:
        raise ValueError(
            f"query and reference must be matrices of equal width, their shapes are {query.shape} and {reference.shape}."
        )
    check_number("k", k, least=1, whole=True)
    if k > len(reference):
        raise ValueError(f"k={k} is more than the {len(reference)} references there are.")
    for name, codes in (("query", query), ("reference", reference)):
        if not all(np.isfinite(codes[i : i + REFERENCES]).all() for i in range(0, len(codes), REFERENCES)):
            raise ValueError(f"The codes of {name} hold missing or infinite values.")
    if approximate is None:
        approximate = device == "cpu" and len(reference) > MANY
    return _indexed(query, reference, k, seed) if approximate else _exact(query, reference, k, device)


def _exact(query: np.ndarray, reference: np.ndarray, k: int, device: str) -> Nearest:
    """References block by block outside, so that each is scaled once; the best so far of every query is kept."""
    import torch

    best = torch.full((len(query), k), -torch.inf)
    index = torch.zeros((len(query), k), dtype=torch.int64)
    with torch.inference_mode():
        for first in range(0, len(reference), REFERENCES):
            block = unit_rows(reference[first : first + REFERENCES], device)
            for start in range(0, len(query), QUERIES):
                rows = slice(start, start + QUERIES)
                similarity, found = _best(unit_rows(query[rows], device) @ block.T, min(k, len(block)))
                # earlier references come first and the sort is stable: of equals the lower row stays first
                both = torch.cat([best[rows], similarity.cpu()], 1)
                both, order = both.sort(dim=1, descending=True, stable=True)
                best[rows] = both[:, :k]
                index[rows] = torch.cat([index[rows], found.cpu() + first], 1).gather(1, order[:, :k])
    return Nearest(best.numpy(), index.numpy())


def unit_rows(codes: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """Rows of unit length on a device, single precision; a row of zeros stays one."""
    import torch

    rows = torch.from_numpy(np.ascontiguousarray(codes))
    rows = rows.to(device, torch.float64 if rows.dtype == torch.float64 and str(device) != "mps" else torch.float32)
    # scaled by the largest entry first: squares of very large or small codes would over- or underflow
    tiny = torch.finfo(rows.dtype).tiny
    rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=tiny)
    return (rows / rows.norm(dim=1, keepdim=True).clamp(min=tiny)).float()


def _best(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of every row and their columns, of equals the lower column first."""
    values, columns = _largest(similarity, min(k + 1, similarity.shape[1]))
    tied = values[:, k - 1] == values[:, k] if values.shape[1] > k else None
    values, columns = values[:, :k], columns[:, :k]
    if tied is not None and tied.any():
        rows = similarity[tied]
        columns[tied] = _first_of_equals(rows, values[tied, -1:], k)
        values[tied] = rows.gather(1, columns[tied])
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of every row, of equals any: they lie in the ``k`` groups with the largest maxima."""
    import torch

    n, width = similarity.shape
    whole = width // GROUP
    if whole < 2 * k:
        return similarity.topk(k, dim=1)
    groups = similarity[:, : whole * GROUP].view(n, whole, GROUP)
    chosen = groups.amax(2).topk(k, dim=1).indices
    values = groups.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    # the columns that fill no group are looked at all
    values, place = torch.cat([values, similarity[:, whole * GROUP :]], 1).topk(k, dim=1)
    inside = place < k * GROUP
    group = chosen.gather(1, (place // GROUP).clamp(max=k - 1))
    columns = place.where(~inside, group * GROUP + place % GROUP)
    return values, columns.where(inside, place - k * GROUP + whole * GROUP)


def _first_of_equals(rows: Tensor, least: Tensor, k: int) -> Tensor:
    """Columns of the ``k`` largest of rows whose ``k``-th value, ``least``, occurs again: the lowest columns of it."""
    equal, larger = rows == least, rows > least
    missing = k - larger.sum(1, keepdim=True)
    return (larger | (equal & (equal.cumsum(1) <= missing))).nonzero()[:, 1].view(-1, k)


def _indexed(query: np.ndarray, reference: np.ndarray, k: int, seed: int) -> Nearest:
    """Nearest neighbours of a pynndescent index, their similarities computed exactly."""
    from pynndescent import NNDescent

    references = unit_rows(reference).numpy()
    index = NNDescent(references, metric="cosine", n_neighbors=max(30, k), random_state=seed)
    # more than are asked for, as many of the nearest are found late
    found, _ = index.query(unit_rows(query).numpy(), k=min(WIDER * k, len(reference)), epsilon=0.2)
    similarity = np.empty(found.shape, np.float32)
    step = max(1, QUERIES * GROUP // found.shape[1])
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        near = references[np.maximum(found[rows], 0)]
        similarity[rows] = np.einsum("qd,qkd->qk", unit_rows(query[rows]).numpy(), near)
    similarity[found < 0] = -np.inf
    order = np.lexsort((found, -similarity), axis=1)[:, :k]
    nearest = Nearest(np.take_along_axis(similarity, order, 1), np.take_along_axis(found, order, 1).astype(np.int64))
    short = np.flatnonzero((found >= 0).sum(1) < k)
    if short.size:  # the index found fewer than k
        exact = _exact(query[short], reference, k, "cpu")
        nearest.similarity[short], nearest.index[short] = exact.similarity, exact.index
    return nearest
