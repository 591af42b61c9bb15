"""Genes of each observation in descending order of their value, on blocks of sparse rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse import csr_matrix

from stfuse._tokens import PAD

TARGET = 1e4  # counts of an observation after scaling
KEYS = 1 << 17  # that are sorted at a time: they stay in the cache
THREADS = 4  # at most: numpy works on blocks at the same time
ENTRIES = 1 << 20  # that are summed at a time
LAST = 0xFFFFFFFF << 32  # upper half that sorts after every value above zero


def nonzero_means(counts: csr_matrix) -> np.ndarray:
    """Mean of each gene over the observations that have any of it, counts scaled to 10,000 an observation; NaN where none has.

    ``counts`` must hold neither duplicate entries nor zeros.
    """
    n_genes = counts.shape[1]
    total, seen, ones = np.zeros(n_genes), np.zeros(n_genes), np.ones(n_genes)
    for part in _parts(counts):
        size = part @ ones
        total += part.T @ np.divide(TARGET, size, out=np.zeros_like(size), where=size > 0)
        seen += np.bincount(part.indices, minlength=n_genes)
    return np.divide(total, seen, out=np.full_like(total, np.nan), where=seen > 0)


def ranked(counts: csr_matrix, means: np.ndarray, tokens: np.ndarray, n_tokens: int) -> np.ndarray:
    """Tokens of each observation, n x n_tokens; ``means`` and ``tokens`` are those of the columns, tokens ascending.

    An observation's size does not change the order within it, so counts are divided by the means as they are. ``counts`` must
    hold neither duplicate entries nor zeros.
    """
    out = np.full((counts.shape[0], n_tokens), PAD, dtype=np.int32)
    # one column more stands for no gene
    table = np.append(tokens, PAD).astype(np.int32)

    def rank(rows: np.ndarray) -> None:
        keys = _keys(counts, rows, means)
        if n_tokens < keys.shape[1]:
            keys.partition(n_tokens - 1, axis=1)
            keys = keys[:, :n_tokens].copy()
        keys.sort(axis=1)
        # the lower half of a key
        out[rows, : keys.shape[1]] = table.take(keys.astype(np.uint32), mode="clip")

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(rank, _of_like_length(np.diff(counts.indptr))):
            pass
    return out


def _keys(counts: csr_matrix, rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Rows of integers that sort as values descend, and as columns ascend where values are equal; filled up with a last one.

    The bits of a positive number in single precision ascend with it: inverted they are the upper half, the column is the lower.
    """
    start, end = counts.indptr[rows, None], counts.indptr[rows + 1, None]
    width = int((end - start).max())
    # rows are windows into the entries, which reach into their neighbours'; the last ones begin before their row
    first = np.minimum(start, counts.nnz - width)
    column = sliding_window_view(counts.indices, width)[first[:, 0]].astype(np.intp)
    count = sliding_window_view(counts.data, width)[first[:, 0]]
    place = np.arange(width, dtype=np.int32)
    foreign = place >= (end - first).astype(np.int32)
    if (first < start).any():
        foreign |= place < (start - first).astype(np.int32)
    value = means.take(column, mode="clip")
    np.divide(count, value, out=value)
    bits = value.astype(np.float32).view(np.uint32)
    keys = value.view(np.uint64)
    np.invert(bits, out=bits)
    np.copyto(keys, bits)
    keys <<= np.uint64(32)
    keys |= column.view(np.uint64)
    np.putmask(keys, foreign, np.uint64(LAST | counts.shape[1]))
    return keys


def _parts(counts: csr_matrix) -> Iterator[csr_matrix]:
    """Rows one after the other, with about `ENTRIES` entries together; memory is shared."""
    ends = np.searchsorted(counts.indptr, np.arange(ENTRIES, int(counts.indptr[-1]), ENTRIES))
    ends = np.unique(np.append(ends, counts.shape[0]))
    for start, stop in zip(np.append(0, ends[:-1]), ends, strict=True):
        low, high = counts.indptr[start], counts.indptr[stop]
        content = counts.data[low:high], counts.indices[low:high], counts.indptr[start : stop + 1] - low
        yield csr_matrix(content, shape=(stop - start, counts.shape[1]))


def _of_like_length(length: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of about the same number of entries together, so that little is filled up; those without any are left out."""
    order = np.argsort(-length, kind="stable")[: np.count_nonzero(length)]
    start = 0
    while start < len(order):
        stop = start + max(1, KEYS // int(length[order[start]]))
        yield order[start:stop]
        start = stop
