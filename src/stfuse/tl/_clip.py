"""Fuse by contrastive alignment."""

from __future__ import annotations

from typing import Any

from stfuse import _keys
from stfuse.tl._fuse import run


def clip(
    data: Any,
    *,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    batch_key: str | None = None,
    library_key: str | None = None,
    paired_key: str | None = None,
    table_key: str | None = None,
    key_added: str = "clip",
    max_epochs: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: str = "auto",
    n_latent: int = 32,
    n_hidden: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    validation_fraction: float = 0.2,
    patience: int = 15,
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    """Align image and RNA contrastively (CLIP): the field's usual baseline.

    Two small encoders bring pairs together and all else in the batch apart. It learns from pairs only and keeps only what the
    views share; it is here to be compared with.

    Parameters
    ----------
    data
        AnnData, MuData (modalities `image` and `rna`, whose observations may differ) or SpatialData (see `table_key`).
    image_key, rna_key
        Keys of the two views in `obsm`, n x d each. A row of NaN = that view is missing there. A default key that is not
        there is made: image features by :func:`stfuse.pp.image_features`, expression features by
        :func:`stfuse.pp.rna_features`; it is written too.
    batch_key
        Column of `obs`: features are centred within each batch first.
    library_key
        Column of `obs` that tells sections apart. None = the column whose values are the sections in `uns["spatial"]`, or one
        section.
    paired_key
        Boolean column of `obs`: which observations with both views may be used as pairs in training (see
        :func:`stfuse.pp.hide_pairs`). None = all of them. Coding uses every view an observation has.
    table_key
        SpatialData: which table.
    key_added
        Name under which everything is written.
    max_epochs
        Epochs at most. None = 100, or 20 where there are too few pairs to hold some out.
    batch_size
        Observations of each view, and pairs, a step.
    seed
        Seed: the same data, arguments and machine give the same codes.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    n_latent, n_hidden
        Width of the shared code of each view, and of the hidden layer.
    lr, weight_decay
        Of AdamW.
    validation_fraction
        Fraction of the pairs (2,000 at most) held out; the epoch that retrieves them best is kept.
    patience
        Epochs without improvement after which training stops.
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained model.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_clip"]`: [image code, RNA code], each of unit length; a missing view takes the other one's code
    - `obsm["X_clip_image"]`, `obsm["X_clip_rna"]`: shared code of each view, equal width, comparable by cosine; NaN where the
      view is missing
    - `uns["clip"]`: parameters, history, seed, versions, how many observations had each view

    Raises
    ------
    KeyError
        If a named key is not there.
    ValueError
        If a view has partly missing rows, infinite values or only constant features, if obs_names are not unique, if there are fewer than four pairs, or if an
        argument is out of range. Nothing is written then.

    Notes
    -----
    Radford et al. (2021), Learning transferable visual models from natural language supervision.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, seed=1)
    >>> stfuse.tl.clip(adata, max_epochs=3)
    >>> adata.obsm["X_clip"].shape
    (300, 64)
    """
    return run(
        "clip",
        data,
        keys={
            "image_key": image_key,
            "rna_key": rna_key,
            "batch_key": batch_key,
            "library_key": library_key,
            "paired_key": paired_key,
        },
        model_params={
            "n_latent": n_latent,
            "n_hidden": n_hidden,
        },
        train_params={
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "lr": lr,
            "weight_decay": weight_decay,
            "validation_fraction": validation_fraction,
            "patience": patience,
            "seed": seed,
            "device": device,
            "progress": progress,
        },
        table_key=table_key,
        key_added=key_added,
        copy=copy,
        return_model=return_model,
    )
