"""Arrays that stay on disk (zarr, or dask that reads zarr or HDF5), read some rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from stfuse import _read

BLOCK = 16_000_000  # values read at once while an array is looked through


def lies_on_disk(values: Any) -> bool:
    """Whether an array is read piece by piece: one of zarr, or of dask."""
    return hasattr(values, "chunks") and hasattr(values, "shape") and not isinstance(values, np.ndarray)


def chunk_rows(array: Any) -> int:
    """Rows that are read at once, whether they are wanted or not."""
    first = array.chunks[0]
    return int(first[0] if isinstance(first, tuple) else first)


def read_rows(array: Any, rows: np.ndarray) -> np.ndarray:
    """Rows in any order, some perhaps twice, as float32; each chunk is read once."""
    wanted, back = np.unique(rows, return_inverse=True)
    if not wanted.size:
        return np.empty((0, array.shape[1]), np.float32)
    if wanted[-1] - wanted[0] + 1 == wanted.size:
        found = array[int(wanted[0]) : int(wanted[-1]) + 1]
    else:
        found = array.oindex[wanted] if hasattr(array, "oindex") else array[wanted]
    found = np.asarray(found.compute() if hasattr(found, "compute") else found, np.float32)
    return found if np.array_equal(back, np.arange(rows.size)) else found[back]


def usable_rows(array: Any, what: str) -> np.ndarray:
    """Which rows are there, as `_read.check_values` tells of what lies in memory, block after block."""
    if len(array.shape) != 2:
        raise ValueError(
            f"{what} must be two-dimensional (observations x features), its shape is {tuple(array.shape)}."
        )
    if not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{what} must hold numbers, its dtype is {array.dtype}.")
    n, width = array.shape
    # whole chunks, so that none is read twice
    chunk = chunk_rows(array)
    step = max(1, BLOCK // max(1, width) // chunk) * chunk
    has = np.empty(n, dtype=bool)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        has[rows] = _read.check_values(read_rows(array, rows), what, first=start)
    return has
