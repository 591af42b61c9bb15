"""Activities of pathways from expression."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import false_discovery_control

from stfuse import _read, _record
from stfuse._check import check_flag, check_number, check_target, check_text
from stfuse._log import logger, warn
from stfuse.tl._pathway_genes import Expression, read_expression, what_fits_better
from stfuse.tl._pathway_nets import Net, read_net

METHODS = ("ulm", "mlm")


def pathways(
    data: Any,
    net: Literal["progeny", "hallmark"] | str | Path | pd.DataFrame = "progeny",
    *,
    organism: str = "human",
    method: Literal["ulm", "mlm"] = "ulm",
    layer: str | None = None,
    gene_key: str | None = None,
    tmin: int = 5,
    key_added: str | None = None,
    table_key: str | None = None,
    copy: bool = False,
) -> Any:
    r"""Score the activity of pathways in every observation.

    A score tells whether the genes of a pathway are higher, in one observation, than its other genes. It turns thousands of
    noisy genes into a few numbers that can be named, mapped (:func:`stfuse.pl.pathways`) and compared between domains
    (:func:`stfuse.tl.rank_pathways`).

    Parameters
    ----------
    data
        AnnData, MuData (its modality `"rna"`) or SpatialData (its table) with expression.
    net
        Pathways and their genes.

        - `"progeny"`: 14 signalling pathways with 100 weighted genes each; comes with the package
          (:func:`stfuse.datasets.progeny`)
        - `"hallmark"`: the 50 hallmark gene sets of MSigDB, downloaded by decoupler
        - the path of a GMT file, plain or gzipped
        - a DataFrame with the columns `source` (the pathway), `target` (the gene) and, if known, `weight`
    organism
        Whose gene symbols to use for `"progeny"` (`"human"` or `"mouse"`) and `"hallmark"` (any that decoupler translates to).
        A file or a DataFrame is used as it is.
    method
        `"ulm"`: each pathway by itself. `"mlm"`: all pathways in one model, so that a pathway is only credited with what the
        others don't explain; overlapping pathways then compete.
    layer
        Layer that holds the expression. None = `X`. Counts (whole numbers) are log-normalised on the way; what is normalised
        already is used as it is.
    gene_key
        Column of `var` with gene symbols. None = `var_names`.
    tmin
        Fewest genes of a pathway that must be measured; pathways with fewer are left out.
    key_added
        Name of the result. None: `"progeny"`, `"hallmark"`, the file's name without its ending, or `"pathways"` for a DataFrame.
        An earlier result of this name is replaced.
    table_key
        Which table of a SpatialData.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None or a copy of `data`
        Sets, for `net="progeny"`:

        - `obsm["score_progeny"]`: DataFrame, n x pathways, t-values. NaN where an observation has no expression
        - `obsm["padj_progeny"]`: DataFrame of the same shape, p-values of the scores, adjusted (Benjamini and Hochberg) over the
          pathways of an observation
        - `uns["score_progeny"]`: parameters, versions, what the expression was, and `"targets"`: a DataFrame that tells for each
          pathway how many genes it has, how many are measured, and whether it was scored

        A slash in the name of a pathway becomes an underscore, because h5ad can't hold it. `X` and the layers stay as they are.

    Raises
    ------
    KeyError
        If the layer, the column of `var` or the modality `"rna"` is missing.
    FileNotFoundError
        If `net` is a name that is neither known nor a file.
    ConnectionError
        If the hallmarks can't be downloaded.
    ValueError
        If no pathway has `tmin` measured genes (with what would find more: another column of gene symbols, the other organism),
        if the expression has missing or infinite values or none above zero, if the table or the file has another form, if
        pathways can't be told apart by `method="mlm"`, or if `key_added` is the name of something else.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If observations have no expression, if the expression is negative (scaled) or not on a log scale, or if far more genes
        would be found under another name.

    Notes
    -----
    For one observation, :math:`y` is its expression over all genes :math:`g`, and :math:`x` the weight of each gene in the pathway
    (1 for a member of a set, 0 for the others). The score is the t-value of the slope,

    .. math:: y_g = \beta_0 + \beta_1 x_g + \varepsilon_g, \qquad t = \hat\beta_1 / \mathrm{se}(\hat\beta_1),

    as computed by :func:`decoupler.mt.ulm`; :func:`decoupler.mt.mlm` has one slope for each pathway in a common model. [1]_ Genes
    without expression in any observation are left out, and of several with one name the most expressed is used.

    As genes differ in their usual expression, a score has an offset of its own: compare observations, or domains, within a
    pathway, rather than pathways within an observation. Negative (scaled) expression is allowed: the score then tells how the
    observation differs from the average one.

    Expression is read in blocks of observations, so that a large or backed matrix is never dense as a whole.

    References
    ----------
    .. [1] Badia-i-Mompel et al., decoupleR: ensemble of computational methods to infer biological activities from omics data,
       Bioinformatics Advances (2022).

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.tl.pathways(adata, organism="mouse")
    >>> adata.obsm["score_progeny"].columns.tolist()
    ['Androgen', 'EGFR', 'Hypoxia', 'MAPK']
    """
    _check_arguments(organism, method, layer, gene_key, tmin, copy)
    if copy:
        _record.check_copy(data)
    box: Any = _read.container(data, table_key)
    adata = _with_expression(box)
    _read.check_names(box.obs_names, "the object")
    if key_added is not None:
        _check_key(box, key_added, default=None)
    read = read_net(net, organism)
    key = read.name if key_added is None else key_added
    _check_key(box, key, default=read.name)

    expression = read_expression(adata, layer, gene_key)
    targets = _measured(read, expression, tmin)
    genes = pd.Index(read.table["target"].unique())
    known = int(genes.isin(expression.genes).sum())
    hint = what_fits_better(adata, gene_key, genes, known, read.organism)
    _check_names_fit(read, targets, expression, hint, tmin)
    used = read.table[read.table["source"].isin(targets.index[targets["scored"]])]
    used = used[used["target"].isin(expression.genes)]
    if method == "mlm":
        _check_independent(used, expression)
    score, padj = _score(expression, used, method, adata.obs_names)

    scored = score.notna().any(axis=1)
    if not scored.all():
        warn(f"{int((~scored).sum())} of {len(scored)} observations have no expression to score: their rows are NaN.")
    record = {
        "params": {
            "net": read.origin,
            "organism": read.organism,
            "method": method,
            "layer": layer,
            "gene_key": gene_key,
            "tmin": tmin,
        },
        "expression": f"log1p of 10,000 x share of the counts in {expression.where}"
        if expression.counts
        else expression.where,
        "targets": targets,
        "n_genes": len(expression.genes),
        "n_obs": {"total": box.n_obs, "scored": int(scored.sum())},
        "versions": _record.versions() | {"decoupler": version("decoupler")},
    }
    obsm: Any = {f"score_{key}": score.reindex(box.obs_names), f"padj_{key}": padj.reindex(box.obs_names)}
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm=obsm, uns={f"score_{key}": record}, table_key=table_key)
    return target if copy else None


def _check_arguments(organism: Any, method: Any, layer: Any, gene_key: Any, tmin: Any, copy: Any) -> None:
    check_text("organism", organism)
    check_text("layer", layer, optional=True)
    check_text("gene_key", gene_key, optional=True)
    check_number("tmin", tmin, least=1, whole=True)
    check_flag("copy", copy)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")


def _with_expression(box: Any) -> AnnData:
    if not _read.is_mudata(box):
        return box
    if "rna" not in box.mod:
        raise KeyError(
            f"The MuData has no modality 'rna', whose expression is scored. There is {_read.listing(box.mod)}: pass the one that "
            "holds it."
        )
    return box.mod["rna"]


def _check_key(box: Any, key: str, default: str | None) -> None:
    check_target(box, "key_added", key, slots=(), mark="", inputs={})
    record = box.uns.get(f"score_{key}")
    if key == default or (isinstance(record, Mapping) and "targets" in record):
        return
    for slot, name in (("obsm", f"score_{key}"), ("obsm", f"padj_{key}"), ("uns", f"score_{key}")):
        if name in getattr(box, slot):
            raise ValueError(
                f"key_added={key!r} would overwrite {slot}[{name!r}], which this function did not write: choose another "
                "name, or delete it first."
            )


def _measured(net: Net, expression: Expression, tmin: int) -> pd.DataFrame:
    """Tell for each pathway how many genes it has, how many are measured, and whether it can be scored."""
    table = net.table.assign(measured=net.table["target"].isin(expression.genes))
    targets = table.groupby("source").agg(in_net=("target", "size"), measured=("measured", "sum"))
    weights = table[table["measured"]].groupby("source")["weight"].nunique().reindex(targets.index, fill_value=0)
    # with one weight for every gene there is nothing to compare them with
    everything = (targets["measured"] == len(expression.genes)) & (weights == 1)
    few = targets["measured"] < tmin
    targets["scored"] = ~few & ~everything
    for names, why in (
        (targets.index[everything], "hold every gene measured, with one weight,"),
        (targets.index[few], f"have fewer than tmin={tmin} measured genes"),
    ):
        if len(names):
            found = ", ".join(f"{name} ({targets.at[name, 'measured']})" for name in names)
            logger.info("%d of %d pathways %s and are left out: %s", len(names), len(targets), why, found)
    return targets.rename_axis("pathway")


def _check_names_fit(net: Net, targets: pd.DataFrame, expression: Expression, hint: str, tmin: int) -> None:
    """Refuse, or warn of, gene names that are written in another way than those of the data."""
    genes = pd.Index(net.table["target"].unique())
    said = (
        f"{genes.isin(expression.genes).sum()} of the {len(genes)} genes of {net.name!r} are among the "
        f"{len(expression.genes)} genes with expression."
    )
    if targets["scored"].any():
        if hint:
            warn(f"Only {said}{hint}")
        return
    most = targets["measured"].idxmax()
    n = int(targets.at[most, "measured"])
    if n >= tmin:
        reason = (
            f" {most!r} holds all of them, with one weight: give expression of more genes than those of the pathways."
        )
    elif n > 0:
        reason = f" {most!r} has the most, {n}: tmin={n} would keep it."
    else:
        reason = " Do both name genes in the same way?"
    raise ValueError(f"No pathway can be scored with tmin={tmin} genes: {said}{hint or reason}")


def _check_independent(used: pd.DataFrame, expression: Expression) -> None:
    """Refuse pathways of which one is a sum of others: a common model can't tell them apart."""
    import decoupler as dc
    from scipy.linalg import qr

    names, _, weights = dc.pp.adjmat(expression.genes.to_numpy(), used)
    n_genes, n_sets = weights.shape
    if n_genes < n_sets + 2:
        raise ValueError(
            f'method="mlm" needs at least {n_sets + 2} genes with expression for {n_sets} pathways, there are {n_genes}: use '
            'method="ulm".'
        )
    centred = weights - weights.mean(axis=0)
    _, r, order = qr(centred / np.linalg.norm(centred, axis=0), mode="economic", pivoting=True)
    dependent = order[np.abs(np.diag(r)) < 1e-8]
    if dependent.size:
        raise ValueError(
            f'method="mlm" can\'t tell pathways apart that have the same measured genes as others, alone or together: '
            f'{", ".join(sorted(names[dependent]))}. Leave them out of net, or use method="ulm".'
        )


def _score(
    expression: Expression, net: pd.DataFrame, method: str, obs_names: pd.Index
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run decoupler block by block."""
    import decoupler as dc

    run = {"ulm": dc.mt.ulm, "mlm": dc.mt.mlm}[method]
    names = sorted(net["source"].unique())
    score = np.full((len(obs_names), len(names)), np.nan)
    padj = score.copy()
    for rows, block in expression.blocks():
        # an observation without any spread has no slope: 0 / 0
        with np.errstate(invalid="ignore", divide="ignore"):
            found, p = run(pd.DataFrame(block, columns=expression.genes), net, tmin=1, empty=False)
        score[rows], padj[rows] = found[names], p[names]
    known = np.isfinite(score).all(axis=1)
    score[~known] = padj[~known] = np.nan
    if method == "mlm" and known.any():  # decoupler adjusts those of its other methods
        padj[known] = false_discovery_control(padj[known], axis=1)
    frames = [pd.DataFrame(values, index=obs_names, columns=names) for values in (score, padj)]
    return frames[0], frames[1]
