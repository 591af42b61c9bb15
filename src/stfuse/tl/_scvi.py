"""Code expression by scVI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse import _read
from stfuse._check import check_number, check_text
from stfuse.pp._recipe import present_counts, variable_genes
from stfuse.tl._encoded import check_common, open_table, write_codes

MEND = "scVI starts from raw counts: put them into X, or name the layer that holds them with layer=."


def scvi(
    data: Any,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    n_top_genes: int | None = None,
    table_key: str | None = None,
    key_added: str = "scVI",
    n_latent: int = 10,
    n_layers: int = 1,
    n_hidden: int = 128,
    max_epochs: int | None = None,
    seed: int = 0,
    device: str = "auto",
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    """Code expression by scVI, a variational model of counts: an RNA view for the fusion methods.

    A short road to :class:`scvi.model.SCVI`, with nothing of scvi-tools left in `data`. The codes go to the fusion methods as
    `rna_key="X_scVI"`. To correct a view that is there already, see :func:`stfuse.pp.correct_batch`.

    Parameters
    ----------
    data
        AnnData or SpatialData with raw counts; of a MuData pass the modality, `mdata["rna"]`.
    layer
        Layer that holds the counts. None = `X`.
    batch_key
        Column of `obs` with what should not be in the codes, such as the section or the donor. None = nothing.
    n_top_genes
        Number of genes that are used, those that vary most for their mean, ranked within each batch. None = all.
    table_key
        SpatialData: which table.
    key_added
        Name under which everything is written.
    n_latent, n_layers, n_hidden
        Width of the codes, hidden layers of encoder and decoder, and their width.
    max_epochs
        Number of epochs. None = scvi-tools decides: 400, and fewer with more than 20,000 observations.
    seed
        Seed: the same data, arguments and machine give the same codes.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained :class:`scvi.model.SCVI`. It holds on to the counts of its genes.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_scVI"]`: n x n_latent, float32; a row of NaN = no counts (of the genes that are used)
    - `uns["scVI"]`: parameters, loss of each epoch, the genes that are used, seed, versions, how many observations had counts

    Raises
    ------
    KeyError
        If the layer or the column is not there.
    ValueError
        If values are negative, missing or no whole numbers, fewer than three observations have counts, an argument is out of range, or
        `key_added` is the name of something else. Nothing is written then.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If observations have no counts.

    Notes
    -----
    Lopez et al. (2018), Deep generative modeling for single-cell transcriptomics.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.tl.scvi(adata, batch_key="section", max_epochs=2)
    >>> adata.obsm["X_scVI"].shape
    (1627, 10)
    """
    sizes = {"n_latent": n_latent, "n_layers": n_layers, "n_hidden": n_hidden}
    for name, value in sizes.items():
        check_number(name, value, least=1, whole=True)
    check_number("n_top_genes", n_top_genes, least=2, whole=True, optional=True)
    check_number("max_epochs", max_epochs, least=1, whole=True, optional=True)
    for name, key in (("layer", layer), ("batch_key", batch_key)):
        check_text(name, key, optional=True)
    check_common(seed=seed, device=device, progress=progress, copy=copy, return_model=return_model)
    from stfuse.pp._correct._scvi import train_scvi

    table = open_table(data, "scvi", key_added, table_key=table_key, copy=copy)
    private, rows = _private(table, layer, batch_key, n_top_genes)
    latent, history, model = train_scvi(
        private, batch_key, **sizes, max_epochs=max_epochs, seed=seed, device=device, progress=progress, layer=layer, keep=return_model
    )  # fmt: skip
    codes = np.full((table.n_obs, n_latent), np.nan, dtype=np.float32)
    codes[rows] = latent
    params = {"layer": layer, "batch_key": batch_key, "n_top_genes": n_top_genes, **sizes, "device": device}
    return write_codes(
        data,
        codes,
        method="scvi",
        key_added=key_added,
        table_key=table_key,
        copy=copy,
        model=model if return_model else None,
        params=params | {"max_epochs": len(history)},
        seed=seed,
        history=history,
        genes=np.asarray(private.var_names, dtype=str),
    )


def _private(
    table: AnnData, layer: str | None, batch_key: str | None, n_top_genes: int | None
) -> tuple[AnnData, np.ndarray]:
    """Counts of the chosen genes in an AnnData of its own, and the rows of ``table`` that it holds."""
    _read.check_names(table.obs_names, "the data")
    _read.check_genes(table.var_names, "the data")
    batch = None
    if batch_key is not None:
        codes, names = _read.read_codes(_read.read_column(table, batch_key), batch_key, "batch_key")
        batch = pd.Series(pd.Categorical.from_codes(codes, names), index=table.obs_names)
    counts, _, present = present_counts(table, layer, mend=MEND, whole=True)
    genes = np.arange(table.n_vars)
    if n_top_genes is not None and n_top_genes < genes.size:
        genes = variable_genes(counts, n_top_genes, None if batch is None else batch[present])
        counts = csr_matrix(counts[:, genes])
    # without any of its genes scVI knows no size
    some = np.asarray(counts.sum(axis=1)).ravel() > 0
    rows = np.flatnonzero(present)[some]
    obs = pd.DataFrame(index=table.obs_names[rows])
    if batch is not None:
        obs[batch_key] = batch.iloc[rows].cat.remove_unused_categories()
    chosen = counts[some].astype(np.float32)
    private = AnnData(chosen if layer is None else None, obs=obs, var=pd.DataFrame(index=table.var_names[genes]))
    if layer is not None:
        private.layers[layer] = chosen
    return private, rows
