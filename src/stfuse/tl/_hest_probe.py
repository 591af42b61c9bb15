"""The linear probe of the HEST benchmark: how much expression can be read off image features?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse import _keys
from stfuse._check import check_flag, check_number, check_seed, check_text
from stfuse._folds import group_folds
from stfuse._progress import progress as show_progress
from stfuse._read import check_names, check_values, container, find_library_key, read_codes, read_column, read_rep
from stfuse.metrics import gene_pearson
from stfuse.tl._predictors_expression import read_expression
from stfuse.tl._predictors_ridge import Ridge, check_penalty, component_scaler, penalty_of

# Probes that are no genes, by a part of their name, as the benchmark leaves them out.
CONTROLS = ("BLANK", "Control")


def hest_probe(
    data: Any,
    *,
    use_rep: str = _keys.IMAGE,
    groups: str | None = None,
    n_splits: int | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 50,
    min_fraction: float = 0.1,
    n_comps: int | None = 256,
    alpha: float | None = None,
    fit_intercept: bool = True,
    normalize: bool = False,
    layer: str | None = None,
    table_key: str | None = None,
    seed: int = 1,
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Predict expression from image features by ridge regression, as the HEST benchmark does, on patients left out.

    Features are standardised, reduced to principal components, and regressed on with the penalty
    :math:`\alpha = 100 / (d\, n_{genes})`, :math:`d` the number of components; all of it on the training patients. It is the field's yardstick
    for image encoders. As a predictor it is under-regularised: see `method="ridge"` of :func:`stfuse.tl.predict_expression`.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData with codes and expression.
    use_rep
        Key of the features in `obsm`, n x d. Rows of NaN are left out.
    groups
        Column of `obs` with patient or section. None = the column whose values are the sections in `uns["spatial"]`.
    n_splits
        Number of folds of whole groups. None = each group is held out once.
    genes
        Names of the genes. None = the `n_genes` most variable ones of each fold's training part.
    n_genes
        Number of genes that are chosen, by scanpy's `highly_variable_genes` (dispersion for the mean). Probes with `BLANK` or `Control`
        in their name are left out.
    min_fraction
        A gene is only chosen if it is expressed in this fraction of the observations of every training group.
    n_comps
        Number of principal components; fewer where there are fewer observations or features. None = all features, standardised: the
        benchmark's paper has that too, and it ranks encoders differently.
    alpha
        Penalty. None = :math:`100 / (d\, n_{genes})`.
    fit_intercept
        Whether the mean of the training expression is added. The benchmark's code (False) does not: correlations are the same, squared
        errors larger by about the squared mean.
    normalize
        Whether counts are scaled to 10,000 an observation before log1p. The benchmark takes log1p of the counts as they are.
    layer
        Layer with the expression. None = `X`. Values that are no counts are taken as they are.
    table_key
        SpatialData: which table.
    seed
        Seed of the components.
    progress
        Whether to show a bar over folds. None = in a terminal or notebook.

    Returns
    -------
    pandas.DataFrame
        A row for each fold and gene: `fold` (the group held out, or the number of the fold), `gene`, `pearson` (over the held-out
        observations together; NaN for a gene that is constant there) and `mse`. The benchmark's figure is
        `scores.groupby("fold")["pearson"].mean().mean()`.

    Raises
    ------
    KeyError
        If a key, a layer or a gene is not there.
    ValueError
        If there are fewer than two groups, too few genes to choose from, no expression, or an argument is out of range.

    Notes
    -----
    The benchmark chooses genes on all samples, those held out included; here they are chosen on the training part, unless given. It solves the
    regression iteratively (LSQR), here it is solved exactly.

    References
    ----------
    Jaume et al. (2024), HEST-1k: a dataset for spatial transcriptomics and histology image analysis.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(400, n_sections=2, seed=1)
    >>> scores = stfuse.tl.hest_probe(adata, groups="section", n_genes=20)
    >>> list(scores.columns), len(scores)
    (['fold', 'gene', 'pearson', 'mse'], 40)
    """
    check_text("use_rep", use_rep)
    check_text("groups", groups, optional=True)
    for name, number in (("n_splits", n_splits), ("n_comps", n_comps)):
        check_number(name, number, least=2 if name == "n_splits" else 1, whole=True, optional=True)
    check_number("n_genes", n_genes, least=1, whole=True)
    check_number("min_fraction", min_fraction, least=0, most=1)
    if alpha is not None:
        check_penalty(alpha, ())
    check_flag("fit_intercept", fit_intercept)
    check_flag("normalize", normalize)
    check_seed(seed)
    check_names(container(data, table_key).obs_names, "the data")
    features = read_rep(data, use_rep, table_key)
    has = check_values(features, f"obsm[{use_rep!r}]")
    expression = read_expression(data, layer, genes, table_key=table_key, who="data", scale=normalize)
    rows = np.flatnonzero(has & expression.has)
    if not rows.size:
        raise ValueError(f"No observation has both features in obsm[{use_rep!r}] and expression.")
    group, names = _groups(data, groups, table_key, rows)
    fold = group if n_splits is None else group_folds(group, n_splits)
    x, y = features[rows].astype(np.float64), expression.rows(rows)
    tables = []
    for held in show_progress(np.unique(fold), desc="hest_probe", show=progress):
        test = fold == held
        chosen = np.arange(y.shape[1])
        if genes is None:
            chosen = variable_in_training(y[~test], expression.var.index, group[~test], n_genes, min_fraction)
        true = _dense(y[test][:, chosen])
        scale = component_scaler(x[~test], n_comps, seed)
        inputs = scale.transform(x[~test])
        penalty = penalty_of("hest" if alpha is None else alpha, inputs.shape[1], len(chosen))
        weights, offset = Ridge(inputs, y[~test][:, chosen], fit_intercept).solve(penalty)
        predicted = scale.transform(x[test]) @ weights + offset
        tables.append(
            pd.DataFrame(
                {
                    "fold": names[held] if n_splits is None else str(held),
                    "gene": expression.var.index[chosen],
                    "pearson": gene_pearson(true, predicted),
                    "mse": np.square(true - predicted).mean(axis=0),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _groups(data: Any, groups: str | None, table_key: str | None, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    key = groups or find_library_key(data, table_key)
    if key is None:
        raise ValueError("Name the obs column with patients or sections, of which each is held out: groups=.")
    codes, names = read_codes(read_column(data, key, table_key), key, "groups")
    found = np.unique(codes[rows])
    if found.size < 2:
        raise ValueError(
            f"obs[{key!r}] (groups) has one group with features and expression, {names[found[0]]!r}: one is held out and others "
            "are trained on, so that two are needed."
        )
    return codes[rows], names


def variable_in_training(
    values: csr_matrix | np.ndarray, names: pd.Index, group: np.ndarray, n_genes: int, min_fraction: float
) -> np.ndarray:
    """Columns of the most variable genes of log-transformed values, among those expressed in enough of every group."""
    import scanpy as sc

    common = np.ones(values.shape[1], bool)
    for code in np.unique(group):
        rows = group == code
        common &= np.asarray((values[rows] != 0).sum(axis=0)).ravel() >= min_fraction * rows.sum()
    for control in CONTROLS:
        common &= ~names.str.contains(control, regex=False)
    columns = np.flatnonzero(common)
    if columns.size < n_genes:
        raise ValueError(
            f"{columns.size} gene(s) are expressed in {min_fraction:.0%} of the observations of every training group, fewer than "
            f"n_genes={n_genes}: ask for fewer, lower min_fraction, or name genes=."
        )
    table = sc.pp.highly_variable_genes(AnnData(values[:, columns]), n_top_genes=n_genes, inplace=False)
    # of genes alone in their bin all have the same dispersion: `highly_variable` marks more than asked for then
    order = np.argsort(-table["dispersions_norm"].to_numpy(), kind="stable")
    return columns[np.sort(order[:n_genes])]


def _dense(values: csr_matrix | np.ndarray) -> np.ndarray:
    return values.toarray() if isinstance(values, csr_matrix) else np.asarray(values)
