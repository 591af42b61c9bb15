"""Code spatial windows of both views."""

from __future__ import annotations

from typing import Any, Literal

from stfuse import _keys
from stfuse.tl._fuse import run


def aestetik(
    data: Any,
    *,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    batch_key: str | None = None,
    library_key: str | None = None,
    paired_key: str | None = None,
    table_key: str | None = None,
    key_added: str = "aestetik",
    n_clusters: int = 8,
    image_weight: float | None = None,
    window_size: int = 5,
    loss: Literal["l1", "mse"] = "l1",
    n_encoders: int = 3,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    n_comps: int | None = 20,
    smooth: bool = True,
    clustering: Literal["judged", "gmm", "kmeans"] = "judged",
    n_latent: int = 16,
    n_hidden: int = 64,
    dropout: float = 0.3,
    mc_passes: int | None = None,
    n_repeats: int = 1,
    lambda_batch: float = 1.0,
    lr: float = 1e-3,
    weight_decay: float = 1e-6,
    reference: bool = False,
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    """Code each observation with its surroundings, for domains that hold across sections and patients (AESTETIK).

    An autoencoder reads windows of both views around each observation; its code keeps apart what the clusters of either view keep apart.
    It is made for spatial domains of cohorts: correct the views first (:func:`stfuse.pp.recipe_cross_sample`), or give a `batch_key` and let the
    model do it, then call :func:`stfuse.tl.domains` on the code.

    Parameters
    ----------
    data
        AnnData, MuData (modalities `image` and `rna`, whose observations may differ) or SpatialData (see `table_key`), with
        coordinates in `obsm["spatial"]`.
    image_key, rna_key
        Keys of the two views in `obsm`, n x d each. A row of NaN = that view is missing there. A default key that is not
        there is made: image features by :func:`stfuse.pp.image_features`, expression features by
        :func:`stfuse.pp.rna_features`; it is written too.
    batch_key
        Column of `obs`: features are centred within each batch, the decoder is told the batch, and codes of different batches are kept alike.
        None, as in the paper, takes views that are corrected already.
    library_key
        Column of `obs` that tells sections apart; windows never reach into another one. None = the column whose values are
        the sections in `uns["spatial"]`, or one section.
    paired_key
        Boolean column of `obs`; counted for the record only, as nothing is learnt from pairs.
    table_key
        SpatialData: which table.
    key_added
        Name under which everything is written.
    n_clusters
        Clusters of each view that the code keeps apart: about the number of domains looked for.
    image_weight
        Weight of the image in the loss, 0 to 3; RNA has the rest of 3. The published package calls it `morphology_weight` and sets 1.5. None = the
        data say: 1.5 times the share of what clusters tell of the neighbours' expression that the image's clusters reach
        (`uns["aestetik"]["report"]["image_weight"]`).
    window_size
        Side of the window in observations, odd; 1 = no surroundings. Time and memory grow with its square.
    loss
        Error of the rebuilt windows: `"l1"` (as the published package) or `"mse"` (as its paper).
    n_encoders
        Members of the network, whose median counts.
    max_epochs
        Number of epochs. None = 100.
    batch_size
        Windows a step. None = 1,024; with `reference` 8,192.
    seed
        Seed: the same data, arguments and machine give the same codes.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    n_comps
        A view of more features is reduced to so many principal components. None = as it is.
    smooth
        Whether each feature is first reduced to what it shares with its surroundings, as far as the data say that it does (kriging).
    clustering
        How the clusters are found: `"gmm"` (Gaussian mixture with one covariance) or `"kmeans"` of each view; `"judged"`: mixtures
        of the RNA or of both views, whichever predict the neighbours' expression best, and of the image.
    n_latent, n_hidden, dropout
        Width of the code, channels of each member's convolution, fraction of them dropped in training.
    mc_passes
        Mean of so many passes with dropout in place of one without. None = 0; with `reference` 1,000.
    n_repeats
        Triplets of each observation with each other cluster, in each view.
    lambda_batch
        Weight of what keeps codes of different batches alike (maximum mean discrepancy), where there is a `batch_key`.
    lr, weight_decay
        Of Adam.
    reference
        Whether to follow the published package in all it does, for comparison (see :class:`stfuse.model.AESTETIK`).
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained model, which codes and groups new sections: `model.predict(other)`.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_aestetik"]`: n x n_latent; NaN where both views are missing
    - `uns["aestetik"]`: parameters, history, seed, versions, how many observations had each view

    Raises
    ------
    KeyError
        If a named key is not there.
    ValueError
        If there are no coordinates, if observations lie in the same places without a `library_key` (sections on one lattice), if a view has fewer observations than clusters, if a
        view has partly missing rows, infinite values or only constant features, if obs_names are not unique, or if an argument is out of range. Nothing is
        written then.

    Warns
    -----
    UserWarning
        If observations have no coordinates (their windows hold nothing but themselves) or share a place on the lattice, if batches are
        sections, or if a view falls into a single cluster.

    Notes
    -----
    Windows follow the lattice of each section, which is found from the coordinates and the places on the array in `obs` (`array_row` and
    `array_col`): squares of Spatial Transcriptomics, hexagons of Visium; free coordinates, as of cells, get squares that hold about
    one of them. Their unit does not matter. A place without an observation, or without that view, holds the median of the window.

    Dai, Nonchev et al. 2026, Towards cross-sample alignment for multi-modal representation learning in spatial transcriptomics, equation 5;
    Nonchev et al. 2024 for the network. Smoothing, mixture clusters, one pass without dropout and the batches inside the model are ours.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, seed=1)
    >>> stfuse.tl.aestetik(adata, n_clusters=4, max_epochs=5)
    >>> adata.obsm["X_aestetik"].shape
    (300, 16)
    >>> stfuse.tl.domains(adata, use_rep="X_aestetik", n_clusters=4)
    """
    return run(
        "aestetik",
        data,
        keys={
            "image_key": image_key,
            "rna_key": rna_key,
            "batch_key": batch_key,
            "library_key": library_key,
            "paired_key": paired_key,
        },
        model_params={
            "n_clusters": n_clusters,
            "image_weight": image_weight,
            "window_size": window_size,
            "n_comps": n_comps,
            "smooth": smooth,
            "clustering": clustering,
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_encoders": n_encoders,
            "dropout": dropout,
            "mc_passes": mc_passes,
            "reference": reference,
        },
        train_params={
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "loss": loss,
            "n_repeats": n_repeats,
            "lambda_batch": lambda_batch,
            "lr": lr,
            "weight_decay": weight_decay,
            "seed": seed,
            "device": device,
            "progress": progress,
        },
        table_key=table_key,
        key_added=key_added,
        copy=copy,
        return_model=return_model,
    )
