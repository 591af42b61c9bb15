"""Counts as sentences: the genes of each observation, ranked by how far they are above their mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_number, check_target, check_text
from stfuse._log import warn
from stfuse._tokens import FIRST, TOKENS, Vocabulary
from stfuse.pp._recipe import raw_counts
from stfuse.pp._token_ranks import nonzero_means, ranked

MARK = "vocabulary"  # the entry of a record by which a result of this function is told
N_TOKENS = 1500
MEND = "Tokens are ranked from raw counts: put them into X, or name the layer that holds them with layer=."


def rank_tokens(
    data: Any,
    *,
    n_tokens: int = N_TOKENS,
    layer: str | None = None,
    gene_means: pd.Series | AnnData | None = None,
    rounded: bool = False,
    key_added: str = TOKENS,
    table_key: str | None = None,
    copy: bool = False,
) -> Any:
    """Turn counts into gene tokens, ranked by expression: what a transformer reads.

    Counts are scaled to 10,000 an observation and divided by the gene's mean over the observations that have any of it, so that
    genes stand in front which are high for themselves, and not those that are high everywhere. Genes with counts are
    written in descending order; only their order is kept, the values are not.

    Parameters
    ----------
    data
        AnnData or SpatialData with raw counts; of a MuData pass the modality, `mdata["rna"]`.
    n_tokens
        Length of the row of tokens: so many genes, those with the highest values.
    layer
        Layer that holds the counts. None = `X`.
    gene_means
        Means by which to divide. None = those of these data. New data get the tokens that a model knows by the AnnData it was
        trained on (its record under the same `key_added` is used), or by a Series of means by gene name (`model.gene_means`):
        the genes and their order are taken from there, too.
    rounded
        Whether means are rounded to whole numbers, at least 1, as the published tokens are. Many genes are equal then, and
        their order is that of the vocabulary.
    key_added
        Key of the tokens in `obsm` and of their record in `uns`.
    table_key
        SpatialData: which table.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the changed copy. Written are

    - `obsm[key_added]`: n x n_tokens, int32. `i + 2` stands for gene `i` of the vocabulary; `0` fills up the rows of
      observations with fewer genes; `1` never occurs, it hides genes in training
    - `uns[key_added]`: `"vocabulary"` (gene names) and `"means"` (their means), parameters, versions, and the numbers of
      observations with and without tokens

    Raises
    ------
    ValueError
        If there are negative, missing or infinite values or ones that are no whole numbers (log-normalised data), no counts at all,
        duplicate var_names, fewer than half of the reference's genes, or if `key_added` is the name of something else.
    KeyError
        If the layer is missing, or the reference has no such record.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If observations get no token, if genes are not in the reference's vocabulary and hence get none, or if genes of the vocabulary are not
        in the data; with their numbers.

    Notes
    -----
    Values are compared in single precision; equal ones stand in the order of the vocabulary, so that the same counts always
    give the same tokens. An observation's size does not change its own order: it enters the means only. Genes without any
    count have no mean and are not in the vocabulary.

    The tokens of Visiumformer, the RNA encoder of UMPIRE, which go back to Geneformer (Theodoris et al. 2023) and Nicheformer.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.pp.rank_tokens(adata, n_tokens=256)
    >>> adata.obsm["tokens"].shape
    (1627, 256)
    >>> genes = adata.uns["tokens"]["vocabulary"]
    >>> genes[adata.obsm["tokens"][0, :3] - 2].shape
    (3,)
    """
    check_number("n_tokens", n_tokens, least=1, whole=True)
    check_text("layer", layer, optional=True)
    check_flag("rounded", rounded)
    check_flag("copy", copy)
    _keys.slots(key_added)  # refuses a key that h5ad can't hold
    table: Any = _read.container(data, table_key)
    if _read.is_mudata(table):
        raise TypeError('rank_tokens takes AnnData or SpatialData: pass the modality, for example mdata["rna"].')
    inputs, slots = {"coordinates": _keys.SPATIAL}, ("obsm", "uns")
    check_target(table, "key_added", key_added, slots=slots, mark=MARK, inputs=inputs)
    if copy:
        _record.check_copy(data)
    reference = None if gene_means is None else reference_vocabulary(gene_means, key_added)
    tokens, record = make_tokens(table, n_tokens, layer=layer, reference=reference, rounded=rounded)
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm={key_added: tokens}, uns={key_added: record}, table_key=table_key)
    return target if copy else None


def make_tokens(
    adata: AnnData,
    n_tokens: int = N_TOKENS,
    *,
    layer: str | None = None,
    reference: Vocabulary | None = None,
    rounded: bool = False,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Compute what `rank_tokens` writes, tokens and their record, and change nothing."""
    _read.check_genes(adata.var_names, "the data")
    counts = _distinct(raw_counts(adata, layer, mend=MEND, whole=True))
    vocabulary = _own_vocabulary(counts, adata.var_names) if reference is None else reference
    if rounded:
        vocabulary = Vocabulary(vocabulary.genes, np.maximum(1.0, np.rint(vocabulary.means)))
    place = vocabulary.genes.get_indexer(adata.var_names)
    if reference is not None:
        _check_shared(place, len(vocabulary), adata.var_names, vocabulary.genes)
    known = np.flatnonzero(place >= 0)
    known = known[np.argsort(place[known])]
    if reference is not None and not np.array_equal(known, np.arange(adata.n_vars)):
        counts = counts[:, known]
    else:
        known = np.arange(adata.n_vars)  # columns without a token hold no counts
    # the place of a gene that never occurs is never looked up
    tokens = ranked(counts, vocabulary.means[place[known]], place[known] + FIRST, n_tokens)
    return tokens, _record_of(tokens, vocabulary, {"n_tokens": n_tokens, "layer": layer, "rounded": rounded})


def reference_vocabulary(gene_means: Any, key: str) -> Vocabulary:
    """Read the vocabulary of a Series of means, or of an AnnData with tokens under ``key``."""
    if isinstance(gene_means, AnnData):
        found = Vocabulary.of_record(gene_means.uns.get(key))
        if found is None:
            raise KeyError(
                f"The reference has no uns[{key!r}] with a vocabulary: call stfuse.pp.rank_tokens(reference, key_added={key!r}) "
                "first."
            )
        return found
    if not isinstance(gene_means, pd.Series):
        raise TypeError(f"gene_means must be a Series, an AnnData or None, got {type(gene_means).__name__}.")
    if gene_means.empty or not gene_means.index.is_unique:
        raise ValueError("gene_means must have one mean a gene: it is empty, or names a gene twice.")
    if not pd.api.types.is_numeric_dtype(gene_means):
        raise ValueError(f"gene_means must hold numbers, its dtype is {gene_means.dtype}.")
    means = gene_means.to_numpy(dtype=np.float64)
    wrong = ~(np.isfinite(means) & (means > 0))
    if wrong.any():
        raise ValueError(
            f"gene_means has {wrong.sum()} mean(s) that are not above zero and finite (first: {gene_means.index[wrong][0]!r}): "
            "leave such genes out."
        )
    return Vocabulary(pd.Index(gene_means.index.astype(str)), means)


def _distinct(counts: csr_matrix) -> csr_matrix:
    """Counts with one entry for each gene that an observation has, and none for others."""
    if counts.has_canonical_format and (not counts.data.size or counts.data.min() > 0):
        return counts
    counts = counts.copy()  # the memory is the user's
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _own_vocabulary(counts: csr_matrix, names: pd.Index) -> Vocabulary:
    means = nonzero_means(counts)
    seen = np.isfinite(means)
    if not seen.any():
        raise ValueError(f"There are no counts: all {counts.shape[0]} observations are empty. {MEND}")
    return Vocabulary(pd.Index(names[seen].astype(str)), means[seen])


def _check_shared(place: np.ndarray, size: int, names: pd.Index, genes: pd.Index) -> None:
    shared = int((place >= 0).sum())
    if 2 * shared < size:
        raise ValueError(
            f"Only {shared} of the vocabulary's {size} genes are in var_names (the vocabulary has for example {genes[0]!r}, var_names "
            f"{names[0]!r}): do both name genes in the same way?"
        )
    if shared < size:
        warn(f"{size - shared} of the vocabulary's {size} genes are not in var_names: they count as not expressed.")
    if shared < len(names):
        warn(f"{len(names) - shared} of {len(names)} genes are not in the vocabulary: they get no token.")


def _record_of(tokens: np.ndarray, vocabulary: Vocabulary, params: dict[str, Any]) -> dict[str, Any]:
    empty = int((tokens[:, 0] == 0).sum())
    if empty:
        warn(f"{empty} of {len(tokens)} observations have no counts of these genes: their tokens are all padding.")
    return {
        **vocabulary.record(),
        "params": params,
        "versions": _record.versions(),
        "n_obs": {"total": len(tokens), "tokens": len(tokens) - empty},
    }
