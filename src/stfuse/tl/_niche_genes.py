"""Genes that set domains apart, in scanpy's own layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _read
from stfuse._log import warn
from stfuse.tl._predictors_expression import read_expression


def rank_genes(
    data: Any,
    groupby: str,
    codes: np.ndarray,
    names: list[str],
    *,
    layer: str | None,
    n_genes: int | None,
    table_key: Any,
) -> dict[str, Any]:
    """Rank the genes of each domain against all other cells with a domain, by scanpy on an object of its own.

    ``codes`` are the domains of all cells, -1 where there is none.
    """
    import scanpy as sc

    expression = read_expression(data, layer, table_key=table_key, who="object")
    rows = np.flatnonzero((codes >= 0) & expression.has)
    sizes = np.bincount(codes[rows], minlength=len(names))
    tested = [name for name, size in zip(names, sizes, strict=True) if size > 1]
    if len(tested) < 2:
        raise ValueError(
            f"{len(tested)} domain(s) of obs[{groupby!r}] have two cells with expression: two at least are needed to compare "
            "their genes. genes=False leaves these out."
        )
    # a name without any cell stands for those that were left out
    used = np.bincount(codes[codes >= 0], minlength=len(names)) > 0
    lonely = [name for name, size, there in zip(names, sizes, used, strict=True) if there and size < 2]
    if lonely:
        warn(f"Domains with fewer than two cells with expression have no differential genes: {_read.listing(lonely)}.")
    labels = pd.Categorical.from_codes(codes[rows], names).remove_unused_categories()
    obs = pd.DataFrame({groupby: labels}, index=pd.RangeIndex(len(rows)).astype(str))
    small = AnnData(expression.values[rows], obs=obs, var=pd.DataFrame(index=expression.var.index))
    sc.tl.rank_genes_groups(
        small, groupby, groups=tested, use_raw=False, method="wilcoxon", n_genes=n_genes, key_added="genes"
    )
    found = dict(small.uns["genes"])
    found["params"] = {**found["params"], "layer": layer}
    return found
