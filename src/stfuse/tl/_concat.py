"""Concatenate the views."""

from __future__ import annotations

from typing import Any

from stfuse import _keys
from stfuse.tl._fuse import run


def concat(
    data: Any,
    *,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    batch_key: str | None = None,
    library_key: str | None = None,
    paired_key: str | None = None,
    table_key: str | None = None,
    key_added: str = "concat",
    seed: int = 0,
    n_components: int = 30,
    scale: bool | None = None,
    copy: bool = False,
    return_model: bool = False,
) -> Any:
    """Put balanced principal components of image and RNA side by side: the baseline without alignment.

    Each view is reduced to its components, which keep their variances, and divided by its size, so that none drowns the other.
    Where every observation has both views this is hard to beat.

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
    seed
        Kept for the record; nothing here is random.
    n_components
        Principal components of each view.
    scale
        Whether features are standardised first. None = yes, unless they are uncorrelated already.
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained model.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_concat"]`: [image components, RNA components]; a missing view is replaced by its mean, zeros
    - `uns["concat"]`: parameters, history, seed, versions, how many observations had each view

    Raises
    ------
    KeyError
        If a named key is not there.
    ValueError
        If a view has partly missing rows, infinite values or only constant features, if obs_names are not unique, or if an
        argument is out of range. Nothing is written then.

    Notes
    -----
    "Concat" of the CAMEO paper (appendix E.2.1) concatenates raw embeddings; components and balance are ours.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(200)
    >>> stfuse.tl.concat(adata, n_components=10)
    >>> adata.obsm["X_concat"].shape
    (200, 20)
    """
    return run(
        "concat",
        data,
        keys={
            "image_key": image_key,
            "rna_key": rna_key,
            "batch_key": batch_key,
            "library_key": library_key,
            "paired_key": paired_key,
        },
        model_params={
            "n_components": n_components,
            "scale": scale,
        },
        train_params={
            "seed": seed,
        },
        table_key=table_key,
        key_added=key_added,
        copy=copy,
        return_model=return_model,
    )
