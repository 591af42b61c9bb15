"""The values of a table: X, or a layer by its name."""

from __future__ import annotations

from typing import Any

from anndata import AnnData

from stfuse._check import did_you_mean
from stfuse._read import listing


def values_of(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """Values as they lie there, and how to call them in a message; refuses what is not there or empty."""
    there = [str(name) for name in adata.layers.keys() if name is not None]  # None stands for X
    if layer is not None and layer not in there:
        raise KeyError(f"No layer {layer!r}.{did_you_mean(layer, there)} There is {listing(there)}.")
    values: Any = adata.X if layer is None else adata.layers[layer]
    where = "X" if layer is None else f"layers[{layer!r}]"
    if values is None or 0 in values.shape:
        raise ValueError(f"{where} is empty. Layers: {listing(there)}.")
    return values, where
