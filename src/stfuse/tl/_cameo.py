"""Fuse by CAMEO."""

from __future__ import annotations

from typing import Any, Literal

from stfuse import _keys
from stfuse.tl._fuse import run


def cameo(
    data: Any,
    *,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    batch_key: str | None = None,
    library_key: str | None = None,
    paired_key: str | None = None,
    table_key: str | None = None,
    key_added: str = "cameo",
    max_epochs: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: str = "auto",
    faithful: bool = False,
    private_dim: int | None = None,
    critic: Literal["wgan", "wgan-gp", "gan"] | None = None,
    n_critic: int | None = None,
    lr: float | None = None,
    lr_critic: float | None = None,
    weight_decay: float | None = None,
    lambda_cycle: float | None = None,
    lambda_adversarial: float | None = None,
    lambda_align: float | None = None,
    lambda_contrastive: float | None = None,
    lambda_translation: float | None = None,
    validation_fraction: float = 0.2,
    patience: int | None = None,
    n_hidden: int = 128,
    dropout: float = 0.4,
    n_components: int = 50,
    rank: int | None = None,
    context: bool = True,
    matching: bool = True,
    scale: bool | None = None,
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    """Fuse image and RNA from few pairs, by translation and adversaries (CAMEO).

    What the two views share is brought into one space, what each has of its own is kept beside it, and a view that an observation
    lacks is predicted from the other. Observations with both views teach the translation, all others help: use it where pairs are
    few, and as the default fusion otherwise. It starts from the linear maps of :func:`stfuse.tl.pcca` and keeps its network only
    where that retrieves held-out pairs better, so it is never a gamble against them.

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
        Epochs at most. None = 200 with `faithful`, else 100; 0 = the linear start alone.
    batch_size
        Observations of each view, and pairs, a step.
    seed
        Seed: the same data, arguments and machine give the same codes.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    faithful
        The published network and losses to the letter, see :class:`stfuse.model.CAMEO`.
    private_dim
        Private columns a view in the fused code. None = all that is not shared (0 with `faithful`), 0 = none.
    critic, n_critic, lr, lr_critic, weight_decay
        Kind of critic (Wasserstein with clipping, with gradient penalty, or standard GAN) and optimisation. None = the value of
        the chosen network, see :meth:`stfuse.model.CAMEO.train`.
    lambda_cycle, lambda_adversarial, lambda_align, lambda_contrastive, lambda_translation
        Weights of the losses. None = the value of the chosen network.
    validation_fraction
        Fraction of the pairs (2,000 at most) held out, on whose retrieval training stops and is judged. 0 = none: then nothing can
        judge the network, and the linear start is the result (the published network trains to the end).
    patience
        Epochs without better retrieval after which training stops. None = 30 with `faithful`, else 12.
    n_hidden, dropout
        Of the residual networks.
    n_components, rank, context, matching, scale
        Of the linear start, see :func:`stfuse.tl.pcca`.
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained model.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_cameo"]`: fused code [shared image, shared RNA, private image, private RNA]; a rotation of the balanced components
      of both views, so Euclidean distances mean something as they are. A missing view is replaced by its translation
    - `obsm["X_cameo_private_image"]`, `obsm["X_cameo_private_rna"]`: what a view does not share, largest variance first
    - `obsm["X_cameo_image"]`, `obsm["X_cameo_rna"]`: shared code of each view, equal width, comparable by cosine; NaN where the
      view is missing
    - `uns["cameo"]`: parameters, history, seed, versions, how many observations had each view

    With `faithful` the fused code is [shared image, shared RNA] as published and there are no private codes.

    Raises
    ------
    KeyError
        If a named key is not there.
    ValueError
        If a view has partly missing rows, infinite values or only constant features, if obs_names are not unique, if there are fewer than two pairs (without `faithful`), or if an
        argument is out of range. Nothing is written then.

    Notes
    -----
    Learning multimodal representations from partially paired, small-scale data (CAMEO), sections 3.3 and 3.4: adversarial,
    cycle and alignment loss; appendix E: architecture and training.

    Examples
    --------
    >>> import numpy as np
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(400, missing_image=0.2, seed=1)
    >>> stfuse.tl.cameo(adata, max_epochs=5)
    >>> adata.obsm["X_cameo_image"].shape == adata.obsm["X_cameo_rna"].shape
    True
    >>> bool(np.isfinite(adata.obsm["X_cameo"]).all())
    True
    """
    return run(
        "cameo",
        data,
        keys={
            "image_key": image_key,
            "rna_key": rna_key,
            "batch_key": batch_key,
            "library_key": library_key,
            "paired_key": paired_key,
        },
        model_params={
            "faithful": faithful,
            "private_dim": private_dim,
            "n_hidden": n_hidden,
            "dropout": dropout,
            "n_components": n_components,
            "rank": rank,
            "context": context,
            "matching": matching,
            "scale": scale,
        },
        train_params={
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "critic": critic,
            "n_critic": n_critic,
            "lr": lr,
            "lr_critic": lr_critic,
            "weight_decay": weight_decay,
            "lambda_cycle": lambda_cycle,
            "lambda_adversarial": lambda_adversarial,
            "lambda_align": lambda_align,
            "lambda_contrastive": lambda_contrastive,
            "lambda_translation": lambda_translation,
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
