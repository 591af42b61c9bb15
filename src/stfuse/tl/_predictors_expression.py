"""The expression of a reference: which values are predicted, and in which unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, issparse

from stfuse._check import did_you_mean
from stfuse._log import warn
from stfuse._read import Container, check_genes, container, is_mudata, listing
from stfuse.metrics._expression import holds_counts
from stfuse.pp._recipe import log_normalise

LOG_NORMALISED = "log1p of counts scaled to 10,000 an observation"
# log1p of 10,000 is 9.2, and of a million 13.8
LARGEST_LOG = 20


@dataclass(frozen=True)
class Expression:
    """Values of all observations (n x genes; zeros where there are none), which have any, the genes, and the unit."""

    values: csr_matrix | np.ndarray
    has: np.ndarray
    var: pd.DataFrame
    unit: str

    def rows(self, which: np.ndarray) -> csr_matrix | np.ndarray:
        """Values of some observations, in double precision."""
        return self.values[which].astype(np.float64)


def read_expression(
    data: Any,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    *,
    table_key: str | None = None,
    who: str = "reference",
    scale: bool = True,
) -> Expression:
    """Read expression; counts are log-normalised over all genes (without ``scale`` log1p only), anything else is taken as it is."""
    box = container(data, table_key)
    source = _source(box, who)
    where = "X" if layer is None else f"layers[{layer!r}]"
    check_genes(source.var_names, f"the {who}")
    columns = _columns(source.var_names, genes, who)
    values = _load(source, layer, who)
    values = _checked(values, where, who)
    unit = f"values of {where}"
    if holds_counts(values):
        values, unit = _from_counts(values, scale)
    elif float(values.min()) < 0:
        warn(
            f"{where} of the {who} holds negative values, as scaled expression does: they are taken as they are. Name the layer with counts "
            "or log-normalised values with layer=."
        )
    elif (largest := float(values.max())) > LARGEST_LOG:
        warn(
            f"{where} of the {who} holds values up to {largest:.4g} that are no counts: they are taken as they are, though it "
            "looks as if they were not on a logarithmic scale. Put counts there, or name the layer that has them with layer=."
        )
    has = np.asarray((values != 0).sum(axis=1)).ravel() > 0
    if not has.any():
        raise ValueError(f"No observation of the {who} has expression: {where} is empty or zero everywhere.")
    if columns is not None:
        values = values[:, columns]
    var = source.var if columns is None else source.var.iloc[columns]
    values = values.astype(np.float32) if isinstance(values, csr_matrix) else np.ascontiguousarray(values, np.float32)
    if is_mudata(box):
        to = box.obs_names.get_indexer(source.obs_names)
        place = csr_matrix((np.ones(to.size, np.float32), (to, np.arange(to.size))), (box.n_obs, to.size))
        values, has = place @ values, (place @ has.astype(np.float32)) > 0
    return Expression(values, has, var.copy(), unit)


def _source(box: Container, who: str) -> Any:
    if not is_mudata(box):
        return box
    if "rna" not in box.mod:
        raise KeyError(f"The {who} has no modality 'rna', which holds the expression; it has {listing(box.mod)}.")
    return box.mod["rna"]


def _columns(names: pd.Index, genes: Sequence[str] | None, who: str) -> np.ndarray | None:
    if genes is None:
        return None
    if isinstance(genes, str):
        raise TypeError(f"genes must be a list of names, got the text {genes!r}: use [{genes!r}].")
    wanted = pd.Index(list(genes))
    if not len(wanted):
        raise ValueError("genes is empty: name at least one gene, or leave it None for all.")
    if not wanted.is_unique:
        raise ValueError(f"genes names {str(wanted[wanted.duplicated()][0])!r} more than once.")
    found = names.get_indexer(wanted)
    absent = wanted[found < 0]
    if len(absent):
        raise KeyError(
            f"{len(absent)} of {len(wanted)} genes are not in var_names of the {who} (for example {str(absent[0])!r})."
            f"{did_you_mean(absent[0], names)} There is for example {listing(names[:3])}."
        )
    return found


def _load(source: Any, layer: str | None, who: str) -> csr_matrix | np.ndarray:
    layers = [str(name) for name in source.layers.keys() if name is not None]
    if layer is not None and layer not in layers:
        raise KeyError(f"The {who} has no layer {layer!r}. There is {listing(layers)}.")
    values: Any = source.X if layer is None else source.layers[layer]
    if values is None or 0 in values.shape:
        raise ValueError(
            f"The {who} has no expression: {'X' if layer is None else f'layers[{layer!r}]'} is empty. Layers there: {listing(layers)}."
        )
    # a backed matrix is read here, one of Dask computed
    for load in ("to_memory", "compute"):
        values = getattr(values, load)() if hasattr(values, load) else values
    return csr_matrix(values) if issparse(values) else np.asarray(values)


def _checked(values: csr_matrix | np.ndarray, where: str, who: str) -> csr_matrix | np.ndarray:
    """Refuse what is no expression; in a dense matrix rows of NaN, which are missing, become zeros."""
    flat = values.data if isinstance(values, csr_matrix) else values
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        missing = np.isnan(values).all(axis=1)
        if missing.any():
            flat = values = np.where(missing[:, None], 0, values)
    if not np.isfinite(flat).all():
        raise ValueError(
            f"{where} of the {who} has missing or infinite values. Only a whole row of NaN is allowed, in a dense matrix: it "
            "means that the observation has no expression."
        )
    whole = flat.dtype.kind in "biu" or bool((flat == np.rint(flat)).all())
    if whole and (flat < 0).any():
        raise ValueError(
            f"{where} of the {who} holds negative whole numbers, which are neither counts nor normalised expression: name the layer "
            "with counts or log-normalised values with layer=."
        )
    return values


def _from_counts(values: csr_matrix | np.ndarray, scale: bool) -> tuple[csr_matrix, str]:
    counts = csr_matrix(values)
    if not scale:
        return counts.astype(np.float32).log1p(), "log1p of counts"
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    return log_normalise(counts, np.where(total > 0, total, 1)), LOG_NORMALISED
