"""Average the views over neighbours in space."""

from __future__ import annotations

from typing import Any

from stfuse import _keys
from stfuse.tl._fuse import run


def neighbor_mean(
    data: Any,
    *,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    batch_key: str | None = None,
    library_key: str | None = None,
    paired_key: str | None = None,
    table_key: str | None = None,
    key_added: str = "neighbor_mean",
    seed: int = 0,
    n_components: int = 30,
    scale: bool | None = None,
    n_neighbors: int = 10,
    copy: bool = False,
    return_model: bool = False,
) -> Any:
    """Average balanced principal components of image and RNA over neighbours in space: the baseline for domains.

    Components of both views side by side (:func:`stfuse.tl.concat`), each view averaged over the observation and its nearest
    neighbours in the section. The mean removes noise, fills gaps of one view and blurs borders. It takes a second, and a
    method for spatial domains has to do better than that.

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
        Column of `obs`: features are centred within each batch first.
    library_key
        Column of `obs` that tells sections apart; neighbours are of the same section. None = the column whose values are the
        sections in `uns["spatial"]`, or one section.
    paired_key
        Boolean column of `obs`; counted for the record only, as nothing is learnt from pairs.
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
    n_neighbors
        Nearest neighbours that have the view, averaged with the observation itself.
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained model.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_neighbor_mean"]`: [image components, RNA components], averaged. A missing view is the mean of its neighbours, zeros
      where its section has none; NaN where both views are missing
    - `uns["neighbor_mean"]`: parameters, history, seed, versions, how many observations had each view

    Raises
    ------
    KeyError
        If a named key is not there.
    ValueError
        If there are no coordinates, or not for every observation, if a view has partly missing rows, infinite values or only
        constant features, if obs_names are not unique, or if an argument is out of range. Nothing is written then.

    Warns
    -----
    UserWarning
        If what counts as one section has observations in the same place (a forgotten `library_key`), or if a section has no
        more than `n_neighbors` + 1 observations.

    See Also
    --------
    stfuse.pp.neighbor_mean : averages one view and nothing else.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(200)
    >>> stfuse.tl.neighbor_mean(adata, n_components=10)
    >>> adata.obsm["X_neighbor_mean"].shape
    (200, 20)
    """
    return run(
        "neighbor_mean",
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
            "n_neighbors": n_neighbors,
        },
        train_params={
            "seed": seed,
        },
        table_key=table_key,
        key_added=key_added,
        copy=copy,
        return_model=return_model,
    )
