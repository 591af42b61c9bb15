"""The record of niches: tables of domains by cell types, in a form that h5ad can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse.tl._niche_null import Enrichment

MARK = "composition"  # the entry of a record by which a result of this function is told
TABLES = ("composition", "enrichment", "zscore", "pvalue", "padj")
RESERVED = ("", ".", "..", "_index")  # no names of a column in h5ad


class Niches(NamedTuple):
    """Tables of domains x types with the names as they are, cells (domains x sections), and the columns they are of."""

    composition: pd.DataFrame
    enrichment: pd.DataFrame
    padj: pd.DataFrame
    n_cells: pd.DataFrame
    groupby: str
    cell_type_key: str


def tables_of(
    counts: np.ndarray, found: Enrichment, domains: list[str], cell_types: list[str], sections: list[str]
) -> dict[str, Any]:
    """Lay results out as tables; ``counts`` are sections x domains x types."""
    total = counts.sum(axis=0)
    fraction = total / total.sum(axis=1, keepdims=True)
    values = (fraction, found.fold, found.z, found.p, found.padj)
    columns = column_names(cell_types)
    tables = {
        name: pd.DataFrame(table, index=pd.Index(domains), columns=columns)
        for name, table in zip(TABLES, values, strict=True)
    }
    n_cells = pd.DataFrame(counts.sum(axis=2).T, index=pd.Index(domains), columns=column_names(sections))
    return {**tables, "n_cells": n_cells, "cell_types": cell_types, "sections": sections}


def column_names(names: Sequence[str]) -> list[str]:
    """Names that h5ad takes for columns: a slash becomes an underscore, and more of them where two would be one."""
    taken = {name for name in names if _stays(name)}
    found = []
    for name in names:
        safe = name
        if not _stays(name):
            safe = name.replace("/", "_")
            while safe in taken or not _stays(safe):
                safe += "_"
            taken.add(safe)
        found.append(safe)
    return found


def _stays(name: str) -> bool:
    return "/" not in name and name not in RESERVED


def is_niches(record: Any) -> bool:
    """Tell a record of niches from whatever else lies under a key."""
    return isinstance(record, Mapping) and MARK in record


def read_niches(data: Any, key: str, table_key: str | None) -> Niches:
    """Read the record under a key, with the names of types and sections as they are."""
    box: Any = _read.container(data, table_key)
    record = box.uns.get(key)
    if not is_niches(record):
        there = [name for name in box.uns if is_niches(box.uns[name])]
        raise KeyError(
            f"No uns[{key!r}] with niches.{did_you_mean(key, there)} There is {_read.listing(there)}. "
            "stfuse.tl.niches(data, groupby, cell_type_key=...) writes them."
        )
    types, sections = ([str(name) for name in record[which]] for which in ("cell_types", "sections"))
    composition, enrichment, padj = (
        record[name].set_axis(types, axis=1) for name in ("composition", "enrichment", "padj")
    )
    params = record["params"]
    n_cells = record["n_cells"].set_axis(sections, axis=1)
    return Niches(composition, enrichment, padj, n_cells, str(params["groupby"]), str(params["cell_type_key"]))
