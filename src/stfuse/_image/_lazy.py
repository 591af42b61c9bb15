"""Lazy arrays are computed in threads of this process, also where a cluster is connected, unless it holds their pixels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def compute_all(parts: Sequence[Any]) -> list[Any]:
    """Compute lazy arrays together, so that what they share is read once."""
    from dask.base import compute

    return list(compute(*parts, scheduler=holder(parts[0]) or "threads")) if len(parts) else []


def holder(array: Any) -> Any:
    """Find the client of the dask cluster that holds the pixels of an array (`client.persist`); None where none does."""
    distributed = sys.modules.get("distributed")
    if distributed is None or not hasattr(array, "dask"):
        return None
    for layer in array.dask.layers.values():
        if layer.is_materialized():
            value = next(iter(layer.values()), None)
            if isinstance(getattr(value, "value", value), distributed.Future):
                return distributed.default_client()
    return None
