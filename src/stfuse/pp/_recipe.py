"""The plain expression view: principal components of log-normalised counts."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse

from stfuse import _keys, _read, _record
from stfuse._check import check_number, check_target
from stfuse._log import warn

# With fewer observations the trend of a batch's variances on its means can't be fitted.
MIN_BATCH = 10
BLOCK = 1 << 18  # values that are looked at together
MEND = "Expression features are made from raw counts: put them into X or a layer, or name features with rna_key=."


N_TOP_GENES = 2000


def rna_features(
    data: Any,
    *,
    n_comps: int = 30,
    n_top_genes: int = N_TOP_GENES,
    batch_key: str | None = None,
    layer: str | None = None,
    reference: AnnData | None = None,
    key_added: str = _keys.RNA,
    table_key: str | None = None,
    copy: bool = False,
) -> Any:
    """Describe the expression by principal components: the plain RNA view.

    The usual recipe in one call, on a copy of the counts: genes are chosen by their variance
    (`seurat_v3`, if there are more than `n_top_genes`), counts are scaled to 10,000 an observation and
    log1p-transformed, and the principal components are taken. It is what a fusion method makes where no RNA
    view is there. Better views (scVI, Harmony-corrected components) go into `obsm` under a key of their own.

    Parameters
    ----------
    data
        AnnData or SpatialData with raw counts; of a MuData pass the modality, `mdata["rna"]`.
    n_comps
        Number of components; fewer where there are fewer genes or observations.
    n_top_genes
        Number of genes that are used.
    batch_key
        Column of `obs` within whose groups gene variances are ranked.
    layer
        Layer that holds the counts. None = `X`.
    reference
        AnnData on which this function was called before, under the same `key_added`: its genes and components are used, so that
        a model trained there can code these observations. `n_comps`, `n_top_genes` and `batch_key` are the reference's then.
    key_added
        Key of the result in `obsm` and of its record in `uns`.
    table_key
        SpatialData: which table.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the changed copy. Written are

    - `obsm[key_added]`: n x n_comps, float32. A row of NaN = an observation without any count
    - `uns[key_added]`: the parameters, and `"loadings"`: a DataFrame, genes x (`mean` and one column a component), by which
      components become log-normalised expression again, `scores @ loadings.iloc[:, 1:].T + loadings["mean"]`

    `X` and the layers stay as they are.

    Raises
    ------
    ValueError
        If there are negative, infinite or missing values, fewer than two genes, fewer than two observations with
        counts, or fewer than half of the reference's genes.
    KeyError
        If the layer or the column is missing, or the reference has no such record.

    Warns
    -----
    UserWarning
        If observations have no counts, with their number, if the values are not whole numbers, or if genes of the reference
        are missing (they count as average).

    Notes
    -----
    The steps are those of `scanpy.pp.highly_variable_genes`, `normalize_total`, `log1p` and `pca`; the size of an
    observation is its sum over all genes.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.pp.rna_features(adata)
    >>> adata.obsm["X_pca"].shape
    (1627, 30)
    """
    _keys.slots(key_added)  # refuses a key that h5ad can't hold
    table: Any = _read.container(data, table_key)
    if _read.is_mudata(table):
        raise TypeError('rna_features takes AnnData or SpatialData: pass the modality, for example mdata["rna"].')
    inputs, slots = {"coordinates": _keys.SPATIAL}, ("obsm", "uns")
    check_target(table, "key_added", key_added, slots=slots, mark="n_top_genes", inputs=inputs, default=_keys.RNA)
    if reference is None:
        scores, loadings = rna_pca(table, n_comps, n_top_genes, batch_key, layer)
    else:
        loadings = _loadings_of(reference, key_added)
        scores = _project(table, loadings, layer)
    record = pca_record(scores, loadings, n_top_genes, batch_key, layer, reference is not None)
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm={key_added: scores}, uns={key_added: record}, table_key=table_key)
    return target if copy else None


def pca_record(
    scores: np.ndarray,
    loadings: pd.DataFrame,
    n_top_genes: int = N_TOP_GENES,
    batch_key: str | None = None,
    layer: str | None = None,
    reference: bool = False,
) -> dict[str, Any]:
    """What is kept of components in an object."""
    record = {"n_comps": scores.shape[1], "n_top_genes": n_top_genes, "batch_key": batch_key, "layer": layer}
    return record | {"reference": reference, "loadings": loadings}


def rna_pca(
    adata: AnnData,
    n_comps: int = 30,
    n_top_genes: int = N_TOP_GENES,
    batch_key: str | None = None,
    layer: str | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Compute what `rna_features` writes, scores and loadings, and change nothing."""
    check_number("n_comps", n_comps, least=1, whole=True)
    check_number("n_top_genes", n_top_genes, least=2, whole=True)
    counts, total, present = present_counts(adata, layer)
    batch = None if batch_key is None else _read.read_column(adata, batch_key)[present]
    genes = np.arange(adata.n_vars)
    if adata.n_vars > n_top_genes:
        genes = variable_genes(counts, n_top_genes, batch)
    normalised = log_normalise(counts[:, genes], total)
    found, axes = gene_components(normalised, n_comps)
    width = found.shape[1]
    scores = np.full((adata.n_obs, width), np.nan, dtype=np.float32)
    scores[present] = found
    loadings = pd.DataFrame(axes.T, index=adata.var_names[genes], columns=[f"PC{i + 1}" for i in range(width)])
    loadings.insert(0, "mean", np.asarray(normalised.mean(axis=0)).ravel())
    return scores, loadings.astype(np.float32)


def _loadings_of(reference: AnnData, key: str) -> pd.DataFrame:
    if not isinstance(reference, AnnData):
        raise TypeError(f"reference must be an AnnData, got {type(reference).__name__}.")
    record = reference.uns.get(key)
    found = record.get("loadings") if isinstance(record, Mapping) else None
    if not isinstance(found, pd.DataFrame):
        raise KeyError(
            f"The reference has no uns[{key!r}]['loadings']: call stfuse.pp.rna_features(reference, key_added={key!r}) before "
            "a model is trained on it."
        )
    return found


def _project(adata: AnnData, loadings: pd.DataFrame, layer: str | None) -> np.ndarray:
    """Components of new observations along the reference's axes."""
    counts, total, present = present_counts(adata, layer)
    _read.check_genes(adata.var_names, "the data")
    where = adata.var_names.get_indexer(loadings.index)
    known = where >= 0
    if 2 * known.sum() < known.size:
        raise ValueError(
            f"Only {known.sum()} of the reference's {known.size} genes are in var_names (missing for example "
            f"{loadings.index[~known][0]!r}): do both name genes in the same way?"
        )
    if not known.all():
        warn(f"{(~known).sum()} of the reference's {known.size} genes are not in var_names: they count as average.")
    kept = loadings[known].to_numpy(dtype=np.float64)
    normalised = log_normalise(counts[:, where[known]], total)
    scores = np.full((adata.n_obs, kept.shape[1] - 1), np.nan, dtype=np.float32)
    scores[present] = normalised @ kept[:, 1:] - kept[:, 0] @ kept[:, 1:]
    return scores


def present_counts(
    adata: AnnData, layer: str | None, *, mend: str = MEND, whole: bool = False
) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Counts and their sums of the observations that have any, and which those are.

    ``mend`` says in messages what to do, ``whole`` refuses values that are no whole numbers instead of warning.
    """
    counts = raw_counts(adata, layer, mend=mend, whole=whole)
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    present = total > 0
    if present.sum() < 2:
        raise ValueError(
            f"Only {present.sum()} of {adata.n_obs} observations have counts: there is nothing to compare."
        )
    if not present.all():
        warn(
            f"{(~present).sum()} of {adata.n_obs} observations have no counts: their expression features are NaN, "
            "that is, missing."
        )
    return counts[present], total[present], present


def log_normalise(counts: csr_matrix, total: np.ndarray) -> csr_matrix:
    """Counts scaled to 10,000 an observation, log1p."""
    normalised = csr_matrix(counts, dtype=np.float32, copy=True)
    normalised.data *= np.repeat((1e4 / total).astype(np.float32), np.diff(normalised.indptr))
    np.log1p(normalised.data, out=normalised.data)
    return normalised


def gene_components(matrix: csr_matrix | np.ndarray, n_comps: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of observations x genes: scores, and axes as rows. Fewer where there are fewer genes."""
    import scanpy as sc

    width = min(n_comps, min(matrix.shape) - 1)
    # In small data a dense decomposition is exact and needs no start vector.
    values: Any = matrix
    if issparse(values) and min(values.shape) <= 50:
        values = values.toarray()
    found = sc.pp.pca(values, n_comps=width, random_state=0, return_info=True)
    return found[0], found[1]


def raw_counts(adata: AnnData, layer: str | None, *, mend: str, whole: bool) -> csr_matrix:
    """Counts as rows, sharing memory where they are such rows already; what cannot be counts is refused or warned of."""
    where = "X" if layer is None else f"layers[{layer!r}]"
    layers = [str(name) for name in adata.layers.keys() if name is not None]
    if layer is not None and layer not in layers:
        raise KeyError(f"No layer {layer!r}. There is: {', '.join(layers) or 'nothing'}.")
    values: Any = adata.X if layer is None else adata.layers[layer]
    if values is None or 0 in values.shape:
        raise ValueError(
            f"{where} is empty: there are no counts to make expression features from. Layers: {', '.join(layers) or 'none'}."
        )
    if values.shape[1] < 2:
        raise ValueError(f"{where} has one gene: shares of a total need at least two genes.")
    # a backed matrix is read here, one of Dask computed
    for load in ("to_memory", "compute"):
        values = getattr(values, load)() if hasattr(values, load) else values
    values = values if issparse(values) else np.asarray(values)
    counts = csr_matrix(values.astype(np.float32) if values.dtype == np.float16 else values)
    # extremes tell of all values without an array of their size
    low, high = (counts.data.min(), counts.data.max()) if counts.data.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{where} has missing or infinite values. {mend}")
    if low < 0:
        raise ValueError(f"{where} has negative values, so it holds no counts (scaled data?). {mend}")
    if not _whole_numbers(counts.data):
        if whole:
            raise ValueError(f"{where} has values that are not whole numbers, so it holds no counts. {mend}")
        warn(
            f"{where} has values that are not whole numbers: if it is normalised already, the features are distorted. "
            + mend
        )
    return counts


def _whole_numbers(values: np.ndarray) -> bool:
    if values.dtype.kind != "f":
        return True
    blocks = (values[start : start + BLOCK] for start in range(0, values.size, BLOCK))
    return all(np.array_equal(block, np.rint(block)) for block in blocks)


def variable_genes(counts: csr_matrix, n_top_genes: int, batch: pd.Series | None) -> np.ndarray:
    """Columns of the genes that vary most for their mean, ranked within each batch (`seurat_v3`)."""
    import scanpy as sc

    # The trend of variance on mean can't be fitted to genes that never occur.
    seen = np.flatnonzero(np.bincount(counts.indices, weights=counts.data, minlength=counts.shape[1]) > 0)
    if len(seen) <= n_top_genes:
        return seen
    obs = pd.DataFrame(index=pd.RangeIndex(counts.shape[0]).astype(str))
    if batch is not None:
        obs["batch"] = pd.Categorical(batch.astype(str).to_numpy())
        obs = _rankable(obs)
    small = AnnData(counts[obs.index.astype(int)][:, seen].astype(np.float32), obs=obs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that values are no integers was said above
        try:
            table = sc.pp.highly_variable_genes(
                small,
                flavor="seurat_v3",
                n_top_genes=n_top_genes,
                batch_key="batch" if "batch" in obs else None,
                inplace=False,
            )
        except ValueError as error:
            raise ValueError(
                f"The variances of genes could not be ranked ({error}): there are too few observations with counts in a "
                f"batch, or too few different means. n_top_genes={counts.shape[1]} uses all genes."
            ) from error
    return seen[table["highly_variable"].to_numpy()]


def _rankable(obs: pd.DataFrame) -> pd.DataFrame:
    """Leave batches out that are too small to rank genes in; rank over all where every batch is."""
    sizes = obs["batch"].value_counts()
    tiny = sizes.index[sizes < MIN_BATCH]
    if not len(tiny):
        return obs
    named = ", ".join(repr(str(name)) for name in tiny[:5]) + (", ..." if len(tiny) > 5 else "")
    if len(tiny) == len(sizes):
        warn(
            f"Every batch has fewer than {MIN_BATCH} observations with counts: genes are ranked over all batches together."
        )
        return obs[[]]
    warn(
        f"{len(tiny)} of {len(sizes)} batches have fewer than {MIN_BATCH} observations with counts ({named}): genes are "
        "ranked without them."
    )
    kept = obs[~obs["batch"].isin(tiny)]
    return kept.assign(batch=kept["batch"].cat.remove_unused_categories())
