"""Code expression by graph attention over neighbours in space."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read
from stfuse._check import check_text
from stfuse.pp._recipe import raw_counts
from stfuse.tl._encoded import check_common, open_table, write_codes


def gat(
    data: Any,
    *,
    layer: str | None = None,
    n_top_genes: int | None = 2000,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
    key_added: str = "gat",
    n_neighbors: int = 6,
    n_latent: int = 128,
    n_hidden: int = 128,
    n_heads: int = 4,
    n_layers: int = 2,
    dropout: float = 0.1,
    mask_fraction: float = 0.4,
    loss: Literal["mse", "nb"] = "mse",
    max_epochs: int | None = None,
    batch_size: int = 1024,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    gradient_clip: float | None = 1.0,
    validation_fraction: float = 0.1,
    patience: int | None = 200,
    seed: int = 0,
    device: str = "auto",
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    """Code expression by graph attention over neighbours in space: an RNA view for the fusion methods.

    Each observation attends to itself and its nearest neighbours in the section; the network learns by predicting expression
    values that are hidden from it. So its codes know what lies around an observation: they tell layers and regions better than
    principal components do. They go to the fusion methods as `rna_key="X_gat"`.

    Parameters
    ----------
    data
        AnnData or SpatialData with raw counts and coordinates; of a MuData pass the modality, `mdata["rna"]`.
    layer
        Layer that holds the counts. None = `X`.
    n_top_genes
        Number of genes that are used, those that vary most for their mean, ranked within each section. None = all.
    library_key
        Column of `obs` that tells sections apart; neighbours are of the same section. None = the column whose values are the
        sections in `uns["spatial"]`, or one section.
    spatial_key
        Key of the coordinates in `obsm`.
    table_key
        SpatialData: which table.
    key_added
        Name under which everything is written.
    n_neighbors
        Nearest neighbours that an observation attends to beside itself.
    n_latent, n_hidden
        Width of the code and of the hidden layers.
    n_heads
        Heads of the attention; `n_hidden` is divided among them.
    n_layers
        Layers of attention: how many steps away an observation sees.
    dropout
        Fraction dropped before each layer of attention in training.
    mask_fraction
        Fraction of the expression values that are hidden in each step.
    loss
        `"mse"`: squared error of log-normalised values, each gene in units of its own spread. `"nb"`: negative binomial
        likelihood of counts, which have to be whole numbers.
    max_epochs
        Epochs at most. None = as many as make 3,000 steps, 20 at least and 1,000 at most.
    batch_size
        Observations a step, in compact patches; their neighbours come along. All at once where there are no more.
    lr, weight_decay
        Of AdamW.
    gradient_clip
        Largest norm of the gradient. None = not clipped.
    validation_fraction
        Fraction of the observations (500 at most) whose own values are never predicted in training; the epoch that predicts
        them best is kept. They are seen, partly hidden, as neighbours.
    patience
        Epochs without improvement there after which training stops. None = no stop, and the last epoch is kept.
    seed
        Seed: the same data, arguments and machine give the same codes.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained model, which codes new sections.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_gat"]`: n x n_latent, float32; a row of NaN = an observation without any count
    - `uns["gat"]`: parameters, history (error at hidden values in training, and at those held out), the genes that are used,
      seed, versions, how many observations had counts

    Raises
    ------
    KeyError
        If the layer, the column or the coordinates are not there.
    ValueError
        If values are negative, missing, infinite or (with `loss="nb"`) no whole numbers; if an observation with counts has no
        coordinates; if no observation has a neighbour; if an argument is out of range; or if `key_added` is the name of something
        else. Nothing is written then.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If observations have no counts, values are no whole numbers, an observation is alone in its section, or what counts as
        one section looks like several.

    Notes
    -----
    The graph encoder of the CAMEO paper (appendix E.5: 40 % hidden, learning rate 0.001, patience 200, gradient clip 1), with
    attention of the second kind (Brody, Alon and Yahav 2022), a linear layer before it and skip connections around it.

    Counts stay sparse. A step makes the rows of one block dense: `batch_size` observations and those within `n_layers` steps of
    them, together about 1.5 times as many, times the number of genes; that is 13 MB with 2,000 genes, and some times as much for
    what is computed from it. 100,000 observations x 2,000 genes, 200 of them non-zero in each, take 1.5 GB beside their counts
    and half a minute an epoch on one core.

    It is one of several roads to an RNA view. Codes of models that were trained elsewhere (scGPT, Nicheformer, CellPLM, novae)
    need no function here: put them into `obsm` and name them, `stfuse.tl.cameo(adata, rna_key="X_scGPT")`; a row of NaN marks an
    observation without one. :func:`stfuse.tl.scvi`, :func:`stfuse.tl.visiumformer` and :func:`stfuse.pp.rna_features` make others.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.tl.gat(adata, library_key="section", n_hidden=32, max_epochs=2)
    >>> adata.obsm["X_gat"].shape
    (1627, 128)
    """
    model_params: dict[str, Any] = {
        "n_top_genes": n_top_genes,
        "n_neighbors": n_neighbors,
        "n_latent": n_latent,
        "n_hidden": n_hidden,
        "n_heads": n_heads,
        "n_layers": n_layers,
        "dropout": dropout,
        "loss": loss,
    }
    train_params: dict[str, Any] = {
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "mask_fraction": mask_fraction,
        "lr": lr,
        "weight_decay": weight_decay,
        "gradient_clip": gradient_clip,
        "validation_fraction": validation_fraction,
        "patience": patience,
        "device": device,
    }
    for name, key in (("layer", layer), ("library_key", library_key)):
        check_text(name, key, optional=True)
    check_text("spatial_key", spatial_key)
    check_common(seed=seed, device=device, progress=progress, copy=copy, return_model=return_model)
    from stfuse.model._gat import GAT, check_model, check_run

    check_model(**model_params)
    check_run(**train_params, seed=seed)
    table = open_table(data, "gat", key_added, table_key=table_key, copy=copy, inputs=[spatial_key])
    library_key = library_key or _read.find_library_key(data, table_key)
    keys: dict[str, Any] = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key}
    private = _private(data, table, keys, table_key, whole=loss == "nb")
    GAT.setup_anndata(private, **keys)
    model = GAT(private, **model_params)
    model.train(**train_params, seed=seed, progress=progress)
    history = pd.concat(list(model.history_.values()), axis=1)
    return write_codes(
        data,
        model.get_latent_representation(),
        method="gat",
        key_added=key_added,
        table_key=table_key,
        copy=copy,
        model=model if return_model else None,
        params=keys | model_params | train_params,
        seed=seed,
        history=history,
        report=dict(model.report_),
        genes=np.asarray(model.genes_, dtype=str),
        packages=["torch-geometric"],
    )


def _private(data: Any, table: AnnData, keys: dict[str, Any], table_key: str | None, *, whole: bool) -> AnnData:
    """Counts, coordinates and sections in an AnnData of its own, where scvi-tools leaves its bookkeeping; counts are shared."""
    from stfuse.model._gat_input import MEND, read_places

    layer, library_key, spatial_key = keys["layer"], keys["library_key"], keys["spatial_key"]
    places = read_places(data, spatial_key, table_key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the model warns, once
        counts = raw_counts(table, layer, mend=MEND, whole=whole)
        obs, var = pd.DataFrame(index=table.obs_names), pd.DataFrame(index=table.var_names)
        private = AnnData(counts if layer is None else None, obs=obs, var=var)
    if layer is not None:
        private.layers[layer] = counts
    private.obsm[spatial_key] = places
    if library_key is not None:
        codes, names = _read.read_sections(data, library_key, table_key)
        private.obs[library_key] = pd.Categorical.from_codes(codes, names)
    return private
