"""Fuse by semi-paired probabilistic CCA."""

from __future__ import annotations

from typing import Any

from stfuse import _keys
from stfuse.tl._fuse import run


def pcca(
    data: Any,
    *,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    batch_key: str | None = None,
    library_key: str | None = None,
    paired_key: str | None = None,
    table_key: str | None = None,
    key_added: str = "pcca",
    seed: int = 0,
    n_components: int = 50,
    rank: int | None = None,
    context: bool = True,
    matching: bool = True,
    private_dim: int | None = None,
    scale: bool | None = None,
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    """Fuse image and RNA by semi-paired probabilistic canonical correlation: linear, in about a second.

    Pairs give the shared directions, unpaired observations refine them through a soft matching, and the mean of each spot's
    neighbours is used beside the spot itself; held-out pairs decide about all of it. Its codes are the floor that every network
    of this package has to beat, and often the best choice.

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
        Seed of the cross-validation folds and of the pools of the matching.
    n_components
        Principal components of each view that are looked at.
    rank
        Components that enter the correlation. None = by cross-validation on the pairs.
    context
        Whether the mean of the six nearest spots of the section may be used beside each spot (needs `obsm["spatial"]`; switch
        it off when the two views do not lie on the same spots).
    matching
        Whether unpaired observations may be used through soft matching.
    private_dim
        Private columns a view in the fused code. None = all that is not shared, 0 = none.
    scale
        Whether features are standardised first. None = yes, unless they are uncorrelated already.
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained model.
    progress
        Whether to show a bar. None = in a terminal or notebook, after two seconds.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_pcca"]`: fused code [shared image, shared RNA, private image, private RNA]; a rotation of the balanced components
      of both views, so Euclidean distances mean something as they are. A missing view is replaced by its translation
    - `obsm["X_pcca_private_image"]`, `obsm["X_pcca_private_rna"]`: what a view does not share, largest variance first
    - `obsm["X_pcca_image"]`, `obsm["X_pcca_rna"]`: shared code of each view, equal width, comparable by cosine; NaN where the
      view is missing
    - `uns["pcca"]`: parameters, history, seed, versions, how many observations had each view

    Raises
    ------
    KeyError
        If a named key is not there.
    ValueError
        If a view has partly missing rows, infinite values or only constant features, if obs_names are not unique, if there are fewer than two pairs, or if an
        argument is out of range. Nothing is written then.

    Notes
    -----
    Bach and Jordan (2005), A probabilistic interpretation of canonical correlation analysis; Cuturi (2013), Sinkhorn distances.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(400, seed=1)
    >>> stfuse.pp.hide_pairs(adata, 0.9)
    >>> stfuse.tl.pcca(adata, paired_key="paired")
    >>> adata.uns["pcca"]["n_obs"]["paired"]
    40
    """
    return run(
        "pcca",
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
            "rank": rank,
            "context": context,
            "matching": matching,
            "private_dim": private_dim,
            "scale": scale,
        },
        train_params={
            "seed": seed,
            "progress": progress,
        },
        table_key=table_key,
        key_added=key_added,
        copy=copy,
        return_model=return_model,
    )
