"""Choose the genes of slides: those by which classes are told apart, and those that somebody chose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _read, _record
from stfuse._check import check_flag, check_number, check_seed, check_target, check_text
from stfuse._log import logger, warn
from stfuse._slides import check_anndata
from stfuse.pp._gene_blocks import Genes
from stfuse.pp._gene_list import columns_of, read_genes
from stfuse.pp._rfe import cross_validate, eliminate, gram
from stfuse.pp._seen_slides import SeenSlides, inner_folds, read_expression, read_slides

type Method = Literal["rfe", "curated"]

MARK = "n_selected"  # the entry of a record by which a result of this function is told


class _Found(NamedTuple):
    """Rank of each gene (1 = selected), and what is told of how it came about."""

    ranking: np.ndarray
    record: dict[str, Any]


def select_genes(
    slides: AnnData,
    label_key: str | None = None,
    *,
    method: Literal["rfe", "curated"] = "rfe",
    curated: Sequence[str] | str | Path | None = None,
    groups: str | None = None,
    train_key: str | None = None,
    n_genes: int | None = None,
    step: float = 0.05,
    n_splits: int = 5,
    scale: bool = True,
    layer: str | None = None,
    key_added: str = "selected",
    seed: int = 0,
    copy: bool = False,
) -> AnnData | None:
    r"""Select the genes of slides by recursive feature elimination, and unite them with a list of one's own.

    A linear support vector machine is trained to tell the classes apart, the genes with the smallest squared weights are
    taken away, and so on. How many genes stay is chosen by cross-validation; then the elimination is done once more with all
    slides it may see. Genes of known importance are added whether or not the data ask for them.

    Selection is training. A test score on slides whose labels chose the genes is far too good, even on noise: name with
    `train_key` the slides that may be seen, once a fold.

    Parameters
    ----------
    slides
        AnnData, a row a slide or patient, log-normalised or otherwise comparable expression. A row of NaN = no RNA: such a
        slide is not used.
    label_key
        Column of `obs` with classes (subtypes); a slide where it is missing is not used. Not read with `method="curated"`, as are
        all other arguments about slides.
    method
        `"rfe"`: recursive elimination, united with `curated` if given. `"curated"`: only those.
    curated
        List of genes as they stand in `var_names`, or a file: of GMT all sets; of CSV or TSV the column of gene symbols
        (`Gene Symbol` of the Cancer Gene Census, `Hugo Symbol`, ...), and where there is no such column all columns, under their
        headers (one signature each); of plain text a gene a line. The Cancer Gene Census and the list of functional signatures
        (`"functional"`) may not be handed on: download your own copy and pass its path.
    groups
        Column of `obs` with the patient, whose slides the inner cross-validation does not tear apart.
    train_key
        Boolean column of `obs`: slides that selection may see. Neither labels nor expression of the others are read. None = all.
    n_genes
        Number of genes that elimination keeps. None = the number with the best mean accuracy in the inner folds, the lowest of
        equally good ones.
    step
        Share of all genes that goes in each round. It is also how finely the number is chosen.
    n_splits
        Folds of the inner cross-validation, stratified by class.
    scale
        Whether genes are standardised first (with mean and spread of the slides seen), as Guyon et al. do: the weight of a gene
        depends on its unit. False = as in the published code of MIRROR: genes with a large spread come first.
    layer
        Layer with the expression. None = `X`.
    key_added
        Name of the columns in `var` and of the record in `uns`.
    seed
        Seed of the inner folds.
    copy
        Whether to return a changed copy instead of changing `slides`.

    Returns
    -------
    None, or the changed copy. Written are

    - `var[key_added]`: boolean, to be passed on as `mask_var=key_added`
    - `var[key_added + "_by"]`: categorical, `"rfe"`, `"curated"` or `"both"`; missing for genes that are not selected
    - `var[key_added + "_rank"]`: rank of the elimination: 1 = kept, 2 = went in the last round, and so on; genes that do not
      vary come last. Not with `method="curated"`
    - `uns[key_added]`: parameters, versions, numbers of genes and slides, and of the elimination `"classes"`, `"n_genes"` and, where
      the number was chosen, `"curve"`: a DataFrame with `n_genes`, `accuracy` (mean over the folds) and its `sd`; `"accuracy"` of
      the chosen number, and `"largest_class"`, the accuracy of naming always that

    Raises
    ------
    KeyError
        If a column or layer is missing.
    ValueError
        If there is one class, hardly two slides in each, fewer patients or slides than folds, an inner fold without a second
        class to train on, values that are missing in part of a row or infinite, duplicated gene names, no gene that
        varies, fewer genes than `n_genes`, no curated gene among the genes, or if a number is out of range.
    FileNotFoundError
        If `curated` names a file that is not there.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If the values look like raw counts, if a class is missing from the training part of an inner fold, if no number of genes
        is better than naming always the largest class, or if curated genes are not in `var_names`.

    Notes
    -----
    The machine is scikit-learn's `SVC` with a linear kernel and C = 1, for several classes one a pair whose squared weights are
    summed; ranks and the chosen number are those of `sklearn.feature_selection.RFECV` with it. The accuracy in the record is that of
    the number that was chosen for it, so it is too good by a little: report the accuracy on slides outside `train_key`.

    With far fewer slides than genes the machine needs only the inner products of slides, from which eliminated genes are
    subtracted. Beside the matrix that is some n x n numbers and a block of genes (8 MB): 950 slides x
    60,000 genes take 40 s on one core and a fifth of the matrix. Backed and Dask matrices are loaded once.

    MIRROR eliminates with scikit-learn's `LinearSVC` (squared hinge loss).

    References
    ----------
    Guyon et al. (2002), Gene selection for cancer classification using support vector machines, Machine Learning 46. MIRROR,
    sections III.A.2 and IV.B.1.

    See Also
    --------
    stfuse.pp.pseudobulk : make slides from spots or cells.

    Examples
    --------
    >>> import scanpy as sc
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> slides = stfuse.pp.pseudobulk(adata, ["section", "layer"])
    >>> sc.pp.normalize_total(slides)
    >>> sc.pp.log1p(slides)
    >>> stfuse.pp.select_genes(slides, "layer", n_genes=50, curated=["Doc2g", "Penk"])
    >>> slides.var["selected_by"].value_counts().to_dict()
    {'rfe': 50, 'curated': 2, 'both': 0}
    """
    _check_arguments(label_key, method, curated, n_genes, step, n_splits, scale, layer, seed, copy)
    for name, key in (("groups", groups), ("train_key", train_key)):
        check_text(name, key, optional=True)
    check_anndata("slides", slides)
    _check_key(slides, key_added)
    if copy:
        _record.check_copy(slides)
    _read.check_genes(slides.var_names, "slides")
    known, record = _read_curated(curated, slides.var_names)
    eliminated = np.zeros(slides.n_vars, dtype=bool)
    ranking = None
    if method == "rfe":
        seen = read_slides(slides, str(label_key), groups, train_key)
        genes, varies, seen = read_expression(slides, layer, seen, scale)
        found = _recursive_elimination(genes, seen, n_genes, step, n_splits, seed)
        ranking = np.full(slides.n_vars, found.ranking.max() + 1, dtype=np.int64)
        ranking[varies] = found.ranking
        eliminated = ranking == 1
        record |= found.record | {"n_constant_genes": int((~varies).sum()), "n_slides": seen.counts}
        _say(found.record, train_key, seen)
    selected = eliminated | known
    by = np.where(eliminated & known, 2, np.where(known, 1, np.where(eliminated, 0, -1)))
    names = ["rfe", "curated", "both"]
    columns: dict[str, Any] = {"": selected, "_by": pd.Categorical.from_codes(by, names)}
    if ranking is not None:
        columns["_rank"] = ranking
    local = {"label_key": label_key, "method": method, "groups": groups, "train_key": train_key, "n_genes": n_genes}
    params = local | {"step": step, "n_splits": n_splits, "scale": scale, "layer": layer, "seed": seed}
    record = {MARK: int(selected.sum()), "params": params, "versions": _record.versions(), **record}
    target = slides.copy() if copy else slides
    _write(target, key_added, columns, record)
    return target if copy else None


def _check_arguments(
    label_key: Any, method: Any, curated: Any, n_genes: Any, step: Any, n_splits: Any, *rest: Any
) -> None:
    scale, layer, seed, copy = rest
    methods = get_args(Method.__value__)
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, got {method!r}.")
    check_text("label_key", label_key, optional=method == "curated")
    if method == "curated" and curated is None:
        raise ValueError("method='curated' needs genes: pass a list or the path of a file with curated=.")
    check_number("n_genes", n_genes, least=1, whole=True, optional=True)
    check_number("step", step, above=0, most=0.5)
    check_number("n_splits", n_splits, least=2, whole=True)
    check_flag("scale", scale)
    check_text("layer", layer, optional=True)
    check_seed(seed)
    check_flag("copy", copy)


def _columns(key: str) -> list[str]:
    return [key, f"{key}_by", f"{key}_rank"]


def _check_key(slides: AnnData, key: str) -> None:
    check_target(slides, "key_added", key, slots=("var", "uns"), mark=MARK, inputs={})
    taken = [name for name in _columns(key) if name in slides.var]
    if taken and key not in slides.uns:
        raise ValueError(
            f"key_added={key!r} would overwrite var[{taken[0]!r}], which this function did not write: choose another name, or "
            "delete it first."
        )


def _read_curated(curated: Any, names: pd.Index) -> tuple[np.ndarray, dict[str, Any]]:
    """Mark curated genes, and tell which are not there."""
    if curated is None:
        return np.zeros(len(names), dtype=bool), {}
    genes = read_genes(curated)
    found, lost = columns_of(genes, names)
    if lost:
        warn(f"{len(lost)} of {len(genes)} curated genes are not in var_names (for example {_read.listing(lost[:3])}).")
    source = Path(curated).name if isinstance(curated, str | Path) else "list"
    told = {"source": source, "n_genes": len(genes), "n_missing": len(lost), "missing": lost[:10]}
    return names.isin(found), {"curated": told}


def _recursive_elimination(
    genes: Genes, seen: SeenSlides, n_genes: int | None, share: float, n_splits: int, seed: int
) -> _Found:
    """Choose the number of genes by cross-validation, unless it is given, and eliminate with all slides."""
    n = genes.n_genes
    if n_genes is not None and n_genes > n:
        raise ValueError(f"n_genes={n_genes} is more than the {n} genes that differ between the slides seen.")
    fold = inner_folds(seen, n_splits, seed) if n_genes is None else None
    step = max(1, int(share * n))
    kernel = gram(genes, np.arange(n))
    members = np.bincount(seen.labels, minlength=len(seen.classes))
    record: dict[str, Any] = {"classes": dict(zip(seen.classes, members.tolist(), strict=True))}
    if fold is not None:
        sizes, accuracy = cross_validate(genes, kernel, seen.labels, fold, step=step)
        # the sum over folds and the first of equals, as in scikit-learn
        best = int(np.argmax(accuracy.sum(axis=0)))
        n_genes = int(sizes[best])
        mean, sd = accuracy.mean(axis=0), accuracy.std(axis=0)
        record["curve"] = pd.DataFrame({"n_genes": sizes, "accuracy": mean, "sd": sd}, index=sizes.astype(str))
        largest = seen.labels == members.argmax()
        naive = float(np.mean([largest[fold == i].mean() for i in range(n_splits)]))
        record |= {"accuracy": float(mean[best]), "largest_class": naive}
        if mean[best] <= naive + 1e-9:
            warn(
                f"With no number of genes are held-out slides told apart better (accuracy {mean[best]:.3f}) than by naming always the "
                f"largest class ({naive:.3f}): the {n_genes} genes kept say nothing. Give n_genes= or curated=."
            )
    everything = np.arange(len(seen.rows))
    n_keep = int(n_genes) if n_genes is not None else n
    found = eliminate(genes, kernel, seen.labels, everything, n_keep=n_keep, step=step)
    return _Found(found.ranking, record | {"n_genes": n_keep})


def _say(record: dict[str, Any], train_key: str | None, seen: SeenSlides) -> None:
    how = f", accuracy {record['accuracy']:.3f} in the inner folds" if "accuracy" in record else ""
    logger.info("elimination keeps %d genes (%d slides seen%s)", record["n_genes"], len(seen.rows), how)
    if train_key is None:
        logger.info(
            "all labelled slides were seen: a test score on any of them is too good. train_key= keeps a test fold out"
        )


def _write(slides: AnnData, key: str, columns: dict[str, Any], record: dict[str, Any]) -> None:
    safe = _record.h5ad_safe(record)
    var: Any = slides.var
    earlier = [name for name in _columns(key) if name in var]
    slides.var = var.drop(columns=earlier).assign(**{f"{key}{suffix}": values for suffix, values in columns.items()})
    slides.uns[key] = safe
