"""Fuse by alignment of pairs: adapters on frozen features, or encoders trained end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from stfuse import _keys
from stfuse._raw import check_crops
from stfuse._read import container
from stfuse.tl._fuse import run

if TYPE_CHECKING:
    from torch import nn


def umpire(
    data: Any,
    *,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    batch_key: str | None = None,
    library_key: str | None = None,
    paired_key: str | None = None,
    table_key: str | None = None,
    key_added: str = "umpire",
    mode: Literal["adapter", "linear", "finetune"] = "adapter",
    objective: Literal["contrastive", "reconstruction", "infonce", "one-sided", "bleep"] = "contrastive",
    embed_dim: int = 512,
    adapter_dim: int = 128,
    adapter_weight: float = 0.2,
    temperature: float = 0.2,
    init: Literal["linear", "random"] = "linear",
    context: bool = True,
    tokens_key: str | None = None,
    image_encoder: nn.Module | None = None,
    gene_encoder: Any = None,
    max_epochs: int | None = None,
    batch_size: int = 256,
    lr: float | None = None,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
    validation_fraction: float = 0.2,
    patience: int = 15,
    seed: int = 0,
    device: str = "auto",
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    """Align images and expression by their pairs (UMPIRE).

    Both views get a code in one space, in which the image of a spot finds its expression: what
    :func:`stfuse.tl.retrieve` and :func:`stfuse.tl.predict_expression` search in.

    Parameters
    ----------
    data
        AnnData, MuData (modalities `image` and `rna`, whose observations may differ) or SpatialData (see `table_key`).
    image_key, rna_key
        Keys of the two views in `obsm`, n x d each. A row of NaN = that view is missing there. A default key that is not
        there is made: image features by :func:`stfuse.pp.image_features`, expression features by
        :func:`stfuse.pp.rna_features`; it is written too. With an `image_encoder`, `obsm[image_key]` holds crops: n x channels x
        height x width, uint8 or floats (NaN where there is no image).
    batch_key
        Column of `obs`: features are centred within each batch first. Crops and tokens are not.
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
    mode
        `"adapter"`: residual adapters on the frozen features, then a projection each. `"linear"`: the projections alone.
        `"finetune"`: `image_encoder` and `gene_encoder` are trained end to end with projections on top; a view without an encoder
        is features and a projection.
    objective
        What is asked of pairs; see Notes.
    embed_dim
        Width of the shared code of each view.
    adapter_dim, adapter_weight
        Width of the bottleneck of the adapters, and the share w of what they add: (1 - w) x + w ReLU(W2 ReLU(W1 x)).
    temperature
        Where the learnt temperature of the contrastive losses starts; it stays above 0.01.
    init
        Where training starts. `"linear"`: at a linear solution, a canonical correlation of each view's principal components, regularised
        by a penalty that predicts held-out sections or blocks of tissue best; training has to beat it on held-out pairs, else it is the
        result. `"random"`: at random weights. Always random with encoders.
    context
        Whether the mean of each view over an observation and its six nearest in the section is read beside it. Not without
        coordinates for every observation in `obsm["spatial"]`, nor with encoders.
    tokens_key
        Key of gene tokens in `obsm` (:func:`stfuse.pp.rank_tokens`), n x length, 0 fills up; they take the place of
        `obsm[rna_key]` and are read by `gene_encoder`. A row of zeros = no RNA there.
    image_encoder
        With `mode="finetune"`: a `torch.nn.Module` from crops (floats; bytes become 0 to 1, and any other preparation is the
        module's own) to n x any width. A copy is trained.
    gene_encoder
        With `mode="finetune"`: a `torch.nn.Module` from tokens to n x any width, called by its method `encode` where it has one,
        or a trained :class:`stfuse.model.Visiumformer`. A copy is trained.
    max_epochs
        Epochs at most. None = 100, or 20 where there are too few pairs to hold some out.
    batch_size
        Pairs a step, on all devices together. A contrastive loss compares all of them.
    lr
        Highest learning rate of AdamW. None = 0.001, or 0.0001 where encoders are trained.
    weight_decay
        Of AdamW.
    warmup
        Fraction of all steps over which the learning rate rises; over the rest it falls to zero as a cosine.
    validation_fraction
        Fraction of the pairs (2,000 at most) held out. With `init="linear"` a round piece of each section (random pairs, without
        coordinates), of which the epoch is kept that predicts expression best, if it is better than the start by three standard
        errors; else, and where fewer than ten pairs can be held out, the start is. With `init="random"` random pairs, and the
        epoch that retrieves them best. 0 = all epochs are run, and the last is kept.
    patience
        Epochs without improvement after which training stops.
    seed
        Seed: the same data, arguments and machine give the same codes.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained model.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_umpire"]`: [image code, RNA code], each of unit length; a missing view takes the other one's code
    - `obsm["X_umpire_image"]`, `obsm["X_umpire_rna"]`: shared code of each view, n x `embed_dim`, of unit length, comparable by
      cosine; NaN where the view is missing
    - `uns["umpire"]`: parameters, history, seed, versions, how many observations had each view

    Raises
    ------
    KeyError
        If a named key is not there.
    ValueError
        If a view has partly missing rows, infinite values or only constant features, if obs_names are not unique, if there are
        fewer than four pairs, if crops, tokens and encoders do not go together, or if an argument is out of range. Nothing is
        written then.

    Notes
    -----
    The objectives, for codes h of images and g of expression, with a learnt temperature, clamped at 0.01, where there is one:

    - `"contrastive"`: cross-entropy of finding g_i among all g by h_i, and h_i among all h by g_i; the mean of both.
    - `"infonce"`: the first half of it, from image to expression (van den Oord et al.).
    - `"one-sided"`: squared distance of pairs, plus the squared shortfall of all others from a distance of one (Hadsell et al.). The
      paper calls this ablation unilateral in its text and cites Hadsell et al. in its appendix, which is followed here.
    - `"bleep"`: the contrastive loss with soft targets softmax((h h' + g g') / 2 / temperature), so that spots that look alike are no
      negatives. The targets' rows add up to one in both directions; in the published code those of the second do not, nor are
      its codes of unit length or its temperature learnt.
    - `"reconstruction"`: a two-layer network predicts the standardised features in `obsm[rna_key]` (expression of variable genes, if
      they hold that) from h, by mean squared error. g learns to point where h of its pair points, and does not move h.

    Published settings: AdamW with a learning rate of 1e-4 and a weight decay of 1e-3; alignment of 697,000 pairs in 10 epochs of
    batches of 512 with 5,000 steps of warm-up; on a single data set 50 epochs without warm-up and a patience of 5. The defaults
    here are for hundreds to thousands of pairs. On several devices (`strategy="ddp"` of :meth:`stfuse.model.UMPIRE.train`) codes are
    gathered with their gradients, so that the loss is that of one device with the whole batch.

    Han et al., Towards unified molecule-enhanced pathology image representation learning via integrating spatial
    transcriptomics (UMPIRE). Xie et al. (2023), Spatially resolved gene expression prediction from histology images via
    bi-modal contrastive learning (BLEEP).

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, seed=1)
    >>> stfuse.tl.umpire(adata, embed_dim=64, max_epochs=3)
    >>> adata.obsm["X_umpire"].shape
    (300, 128)
    """
    if image_encoder is not None:
        check_crops(container(data, table_key), image_key)
    return run(
        "umpire",
        data,
        keys={
            "image_key": image_key,
            "rna_key": rna_key,
            "batch_key": batch_key,
            "library_key": library_key,
            "paired_key": paired_key,
            "tokens_key": tokens_key,
        },
        model_params={
            "mode": mode,
            "objective": objective,
            "embed_dim": embed_dim,
            "adapter_dim": adapter_dim,
            "adapter_weight": adapter_weight,
            "temperature": temperature,
            "init": init,
            "context": context,
            "image_encoder": image_encoder,
            "gene_encoder": gene_encoder,
        },
        train_params={
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "lr": lr,
            "weight_decay": weight_decay,
            "warmup": warmup,
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
