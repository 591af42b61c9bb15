"""MIRROR on slides and their tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from anndata import AnnData

from stfuse import _keys, _record
from stfuse._check import check_flag, check_seed, check_text
from stfuse.tl._mirror_tables import METHOD, check_names, find_slides, private_slides, private_tiles, results, tell
from stfuse.tl._write_both import write_both


def mirror(
    slides: Any,
    tiles: AnnData | None = None,
    *,
    slide_key: str,
    image_key: str = _keys.IMAGE,
    rna_key: str | None = None,
    mask_var: str | None = None,
    groups: str | None = None,
    paired_key: str | None = None,
    slides_table: str | None = None,
    tiles_table: str | None = None,
    slide_encoder: Literal["abmil", "transmil"] | None = None,
    n_tiles: int | None = 2048,
    dim: int | None = None,
    n_prototypes: int = 3000,
    mask_ratio: float = 0.75,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    detach: bool | None = None,
    faithful: bool = False,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    validation_fraction: float | None = None,
    patience: int = 10,
    key_added: str = "mirror",
    seed: int = 0,
    device: str = "auto",
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    r"""Give slides one code from their tiles and their bulk RNA, aligned without losing what is their own (MIRROR).

    For cohorts of slides with RNA of the same patients, or regions of sections (:func:`stfuse.pp.pseudobulk`), where subtype or survival
    is asked for: :func:`stfuse.tl.probe` and :func:`stfuse.tl.survival` work on the code, and no label is needed to learn it. What both views
    tell is aligned by a contrastive loss; what each tells alone would be lost by that, and is retained by losses on each view:

    .. math:: L = w_1 L_{align} + w_2 L_{retain}^{image} + w_3 L_{retain}^{rna} + w_4 L_{style} + w_5 L_{cluster} .

    Retention hides most tokens of a slide, and most entries of the RNA code, and has them reconstructed. Style squeezes both codes through a
    small normal distribution, from which pairs have to agree on prototypes. A slide with one view takes part in retention and style.

    Parameters
    ----------
    slides
        AnnData with one row a patient, slide or region, log expression in `X`; or a SpatialData or MuData that holds slides and tiles.
        A row of NaN = no RNA.
    tiles
        AnnData with one row a tile, of any number a slide, as :func:`stfuse.pp.tessellate` makes them; spots are tiles too.
    slide_key
        Column of `tiles.obs` with the name of each tile's slide, a name in `slides.obs_names`.
    image_key
        Key of the features in `tiles.obsm`, n x d; where `"X_image"` is missing and the tiles have an image, :func:`stfuse.pp.image_features` makes it.
        A row of NaN = the tile is left out. A zarr or dask array (`anndata.experimental.read_lazy`) is
        read as it is needed, so that features may be larger than memory.
    rna_key
        Key of the RNA in `slides.obsm`, s x g. None = `slides.X`.
    mask_var
        Boolean column of `slides.var`: which genes of `X` are used, as :func:`stfuse.pp.select_genes` writes it. None = all.
    groups
        Column of `slides.obs` whose values, usually patients, are held out together where training is watched.
    paired_key
        Boolean column of `slides.obs`: which slides with both views may be used as pairs. All are coded.
    slides_table, tiles_table
        SpatialData, MuData: the tables or modalities of slides and of tiles. None = tiles are those with the column `slide_key`, slides
        those whose names it holds.
    slide_encoder
        `"abmil"`: gated attention over tiles, of cost linear in their number. `"transmil"`: transformer with Nystrom attention and position
        encoding, as published; a slide's tiles are coded all at once. None = `"abmil"`, with `faithful` `"transmil"`.
    n_tiles
        Tiles of a slide in a step, at most, drawn anew each time. None = all. Codes always come from all.
    dim
        Width of each view's code, a multiple of 8. None = 256, with `faithful` 768.
    n_prototypes
        Number of prototypes.
    mask_ratio
        Share of a slide's tokens, and of the entries of the RNA code, that is hidden for retention.
    weights
        Weights of `align`, `retain_image`, `retain_rna`, `style`, `cluster`: five numbers, or a dict of some. None = 0.5, 0.15, 0.15, 0.1, 0.1.
    detach
        Whether retention takes what it reconstructs as it is. False = it can also make it easier, as published. None = True, with
        `faithful` False.
    faithful
        Take every published choice that is not given, see Notes.
    max_epochs
        Epochs at most. None = 30, with `faithful` 100.
    batch_size
        Slides a step. None = 32, with `faithful` 16.
    lr, weight_decay
        Of AdamW. None = 1e-3 and 0.01, with `faithful` 2e-5 and 0.
    validation_fraction
        Fraction of the pairs held out to stop on. 0 = train blindly. None = 0.1, with `faithful` 0.
    patience
        Epochs after which training stops, if held-out slides do not find their partners better. The best epoch is kept.
    key_added
        Name under which everything is written.
    seed
        Seed: the same data, arguments and machine give the same codes.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    copy
        Whether to leave both objects alone and return changed copies.
    return_model
        Whether to return the trained :class:`stfuse.model.MIRROR`.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    None; with `copy` or `return_model` `(slides, tiles)`, of a SpatialData or MuData one object, the model, or all of them as a tuple.
        Written into the slides, for `key_added="mirror"`:

        - `obsm["X_mirror"]`: the fused code, all of the following side by side, s x 4 dim (with `faithful` the private ones, s x 2 dim), each part of mean
          zero and mean variance one; of a missing view what the other tells of it (aligned: the other's code; private: ridge regression
          on pairs)
        - `obsm["X_mirror_image"]`, `obsm["X_mirror_rna"]`: what both views are compared by, of unit length, s x dim; a row of NaN = the view is
          missing
        - `obsm["X_mirror_private_image"]`, `obsm["X_mirror_private_rna"]`: what each encoder gives, s x dim
        - `obs["mirror_prototype"]`: the likest prototype of each slide, categorical
        - `uns["mirror"]`: parameters, seed, versions, counts; `history`, the losses and `held_out_rank` (how many of the other slides are nearer
          than the partner of a held-out one, mean logarithm of the share; lower is better); `report`

        Written into the tiles:

        - `obs["mirror_attention"]`: how much each tile counts, of sum one within a slide; NaN for tiles without features or of unknown slides
        - `uns["mirror"]`: parameters, seed, versions, counts

    Raises
    ------
    KeyError
        If a key, a column or a table is not there.
    ValueError
        If names of slides do not match, fewer than four slides have both views, features hold infinite values or NaN beside values, an argument is out of
        range, or a name is taken. Nothing is written then.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If slides have no tiles or no RNA, tiles are of unknown slides, or `X` looks like counts.

    Notes
    -----
    Chosen here, for cohorts of hundreds of slides: both encoders add to principal components, which stay as they are; gated attention; a narrower
    code; retention of tiles from the slide's code and the tiles that are seen, which is all that a bag without order tells; codes compared by
    cosine; training that stops on held-out pairs. `faithful=True` takes the published choices: TransMIL, width 768, networks on
    features as they are, aligned codes that are not brought to unit length, `n_tiles` of every slide (some twice where there are fewer), targets that
    are not detached, Adam at 2e-5 for 100 epochs of batches of 16. Half precision is `precision="16-mixed"` of the model's `train`.

    Nothing here sees a label. A code learnt on all slides and probed on folds of them has seen the test slides' tiles and RNA, though; to keep
    folds apart altogether, train on the slides of a fold and code the rest with the returned model, as :func:`stfuse.tl.compare_slides` does.

    Wang et al. (2025), MIRROR: Multi-modal pathological self-supervised representation learning via modality alignment and retention,
    section III; attention of Ilse et al. (2018), TransMIL of Shao et al. (2021), Nystrom attention of Xiong et al. (2021).

    Examples
    --------
    >>> import stfuse
    >>> slides, tiles = stfuse.datasets.synthetic_slides(40, seed=1)
    >>> stfuse.tl.mirror(slides, tiles, slide_key="slide", dim=32, max_epochs=2)
    >>> slides.obsm["X_mirror"].shape, "mirror_attention" in tiles.obs
    ((40, 128), True)
    """
    from stfuse.model._mirror import MIRROR
    from stfuse.model._mirror_settings import check_architecture, check_run
    from stfuse.train._fit import resolve_device

    keys: dict[str, str | None] = {
        "slide_key": slide_key,
        "image_key": image_key,
        "rna_key": rna_key,
        "mask_var": mask_var,
        "groups": groups,
        "paired_key": paired_key,
    }
    for name, key in keys.items():
        check_text(name, key, optional=name not in {"slide_key", "image_key"})
    check_seed(seed)
    for name, flag in (("copy", copy), ("return_model", return_model)):
        check_flag(name, flag)
    check_flag("progress", progress, optional=True)
    resolve_device(device)
    architecture: dict[str, Any] = {
        "slide_encoder": slide_encoder,
        "dim": dim,
        "n_prototypes": n_prototypes,
        "mask_ratio": mask_ratio,
        "weights": weights,
        "detach": detach,
        "n_tiles": n_tiles,
        "faithful": faithful,
    }
    training: dict[str, Any] = {
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "validation_fraction": validation_fraction,
        "patience": patience,
    }
    # arguments are checked before data
    architecture = check_architecture(architecture)
    training = check_run(training, faithful)
    tables = find_slides(slides, tiles, slide_key, slides_table, tiles_table)
    check_names(tables, key_added, keys)
    if copy:
        _record.check_copy(tables.slides)
        _record.check_copy(tables.tiles)
    private = private_slides(tables.slides, keys)
    of_tiles, made = private_tiles(slides, tables, slide_key, image_key)
    MIRROR.setup_anndata(private, **keys)  # type: ignore[arg-type]
    model = MIRROR(private, of_tiles, **architecture)
    views = model._data(private, of_tiles, training=True)
    tell(views, rna_key)
    model.train(seed=seed, device=device, progress=progress, **training)
    params = keys | architecture | training | {"device": device}
    written = results(model, views, key_added, {"method": METHOD, "params": params, "seed": seed}, tables, made)
    return write_both(slides, written, copy, model if return_model else None)
