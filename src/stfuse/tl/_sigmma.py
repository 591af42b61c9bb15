"""SIGMMA on cells and their tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from anndata import AnnData

from stfuse import _keys, _record
from stfuse._cell_graph import SCALES, Scale
from stfuse._check import check_flag, check_seed, check_text
from stfuse.pp._cell_tables import find_tables
from stfuse.tl._sigmma_tables import METHOD, check_names, private_tables, results, write

if TYPE_CHECKING:
    from torch import nn


def sigmma(
    cells: Any,
    tiles: AnnData | None = None,
    *,
    tile_key: str,
    image_key: str = _keys.IMAGE_GRID,
    rna_key: str = _keys.RNA,
    graph_key: str = _keys.CELL_GRAPH,
    paired_key: str | None = None,
    table_key: str | None = None,
    tiles_table: str | None = None,
    scales: Sequence[Scale] = SCALES,
    graph: bool = True,
    edge_addition: Literal["sampled", "all", "none"] = "sampled",
    layer: Literal["sage", "gatv2"] = "sage",
    embed_dim: int = 128,
    n_hidden: int = 128,
    gumbel_temperature: float = 0.5,
    dropout: float = 0.1,
    finetune_image: bool = False,
    image_encoder: nn.Module | None = None,
    crop_size: int | None = None,
    max_epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    validation_fraction: float = 0.2,
    patience: int = 20,
    key_added: str = "sigmma",
    seed: int = 0,
    device: str = "auto",
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    r"""Align tiles of histology with the graphs of the cells in them, at three scales (SIGMMA).

    For data of single cells, such as Xenium: what a tile shows is not only which cells there are but how they lie. A network sends messages
    between neighbouring cells of small blocks (*micro*), learns which edges to add inside blocks four times as large (*meso*), and then
    in the whole tile (*macro*). At each scale attention pools the cells to a code of the tile, and image crops of the same size are averaged and
    projected. Codes of a tile have to find each other among those of other tiles:

    .. math:: L = \sum_{s} \tfrac{1}{2} \left[ L^s_{I \to S} + L^s_{S \to I} \right],

    a contrastive loss (InfoNCE) at each scale. Tiles get codes by which images find expression; cells get codes of themselves in their
    surroundings at three reaches. :func:`stfuse.tl.domains` makes microenvironments of them; for niches in tissue where types are mixed
    average them first (:func:`stfuse.pp.neighbor_mean`), as a code keeps much of the cell itself.

    Parameters
    ----------
    cells
        AnnData of cells, or SpatialData with the tables of cells and of tiles. Spots in tiles of spots work too.
    tiles
        AnnData of tiles, as :func:`stfuse.pp.tessellate` makes it.
    tile_key
        Column of the cells' `obs` with the name of the tile of each, a name in `tiles.obs_names`; `"unassigned"` or missing = in none.
    image_key
        Key in the tiles' `obsm` of image features, t x crops x d: the tile, its quarters and its sixteenths
        (:func:`stfuse.pp.image_features` with `grid=[1, 2, 4]`, which is called where the default key is missing). A row of NaN =
        no image. With `finetune_image` the tiles' pixels, t x channels x height x width.
    rna_key
        Key in the cells' `obsm` of expression features, n x d; `"X_pca"` is made from counts where it is missing. A row of NaN = the cell
        is left out.
    graph_key
        Name of the cells' graph. `"cell_graph"` is made by :func:`stfuse.pp.cell_graph` where it is missing.
    paired_key
        Boolean column of the tiles' `obs`: which may be trained on. All are coded.
    table_key, tiles_table
        SpatialData: the tables of cells and of tiles. None = `"rna_<tile_key>"` for the tiles, and the other one.
    scales
        Scales at which tiles are aligned. `("macro",)` compares whole tiles only.
    graph
        Whether cells hear of each other. False = a tile is a bag of cells.
    edge_addition
        `"sampled"`: edges of larger blocks are drawn by a score learnt from both ends (straight-through Gumbel-softmax), and coding takes
        those with a probability above one half. `"all"`: every pair becomes an edge. `"none"`: none does. With `graph` and `scales` this
        repeats the paper's ablation.
    layer
        `"sage"` (mean of neighbours, GraphSAGE) or `"gatv2"` (attention, two to four times as slow).
    embed_dim
        Width of a tile's code at each scale.
    n_hidden
        Width of a cell's code at each scale.
    gumbel_temperature
        Temperature of the relaxed draw; lower is harder.
    dropout
        Fraction dropped in graph layers and before the projection of the image.
    finetune_image
        Whether to train `image_encoder` with the rest, on 21 crops a tile: a matter of hours on a GPU for a real encoder. False = image
        features stay as they are.
    image_encoder
        With `finetune_image`: a :class:`torch.nn.Module` from crops (n x channels x size x size; bytes become 0 to 1, and nothing else is
        done to them: what a network wants subtracted and divided belongs into the module) to n x any width. It stays as it is, a copy is
        trained: `model.module.image_encoder` of the returned model.
    crop_size
        With `finetune_image`: pixels to which every crop is brought. None = the size of a tile.
    max_epochs
        Epochs at most. None = 200, or 50 where there are too few tiles to hold some out.
    batch_size
        Tiles a step; all of them when there are fewer.
    lr, weight_decay
        Of AdamW.
    warmup
        Fraction of all steps over which the learning rate rises; over the rest it falls to zero as a cosine.
    validation_fraction
        Fraction of the tiles with both views held out to stop on. 0 = train blindly.
    patience
        Epochs after which training stops, if held-out tiles do not find their partners better. The best epoch is kept.
    key_added
        Name under which everything is written.
    seed
        Seed: the same data, arguments and machine give the same codes.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    copy
        Whether to leave both objects alone and return changed copies.
    return_model
        Whether to return the trained :class:`stfuse.model.SIGMMA`.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    None; with `copy` or `return_model` `(cells, tiles)`, of a SpatialData one object, the model, or all of them as a tuple.
        Written into the tiles, for `key_added="sigmma"` and the scales asked for:

        - `obsm["X_sigmma_image"]`, `obsm["X_sigmma_rna"]`: codes of all scales side by side, of unit length, t x (scales x
          embed_dim); a row of NaN = no image, or fewer than three cells
        - `obsm["X_sigmma"]`: both side by side, a missing one filled by the other
        - `obsm["X_sigmma_micro_image"]`, `obsm["X_sigmma_micro_rna"]`, `obsm["X_sigmma_micro"]`: the same of one scale, likewise
          `meso` and `macro`. Functions that take the name of a method take `"sigmma_micro"`
        - `uns["sigmma"]`: parameters, seed, versions, counts; `history`, the loss of each scale and `held_out_rank` (how many of the other
          tiles are nearer than the partner of a held-out one, mean logarithm of the share; lower is better); `report`, the epochs kept and the
          share of pairs that became edges at each scale

        Written into the cells:

        - `obsm["X_sigmma_micro"]`, `obsm["X_sigmma_meso"]`, `obsm["X_sigmma_macro"]`: codes of the cells, n x n_hidden; a row
          of NaN = in no tile, or without features
        - `obsp["sigmma_micro_connectivities"]`, `..._meso_...`, `..._macro_...`, with `graph`: graph of each scale (CSR, float32), each
          within the next; 1 for edges of the smallest blocks, for added ones their probability. squidpy takes `connectivity_key="sigmma_macro"`
        - `uns["sigmma"]`: parameters, seed, versions, counts

    Raises
    ------
    KeyError
        If a key, a column, a table or an image is not there.
    ValueError
        If names of tiles do not match, fewer than four tiles have both views, an argument is out of range, or a name is taken.
        Nothing is written then.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If tiles have no image, no or fewer than three cells, or cells lie in no tile that is there.

    Notes
    -----
    Not given in the paper, and chosen here: node features (components), neighbours (6 nearest in a block), layers (one a scale, width
    128), temperatures (0.5 for edges; losses start at 0.07 and learn it), where scores start (every pair an edge with a probability of
    0.73: of few edges drawn at random the mean tells less), optimiser and epochs. The paper trains the image encoder too.

    Jeong et al. (2025), SIGMMA: Hierarchical graph-based multi-scale multi-modal contrastive alignment of histopathology image and
    spatial transcriptome, sections 4 and 5.

    Examples
    --------
    >>> import stfuse
    >>> cells, tiles = stfuse.datasets.synthetic_cells(40)
    >>> stfuse.tl.sigmma(cells, tiles, tile_key="tile", max_epochs=2)
    >>> tiles.obsm["X_sigmma_image"].shape, cells.obsm["X_sigmma_meso"].shape[1]
    ((40, 384), 128)
    """
    from stfuse.model._sigmma import SIGMMA
    from stfuse.model._sigmma_parts import check_architecture, check_run
    from stfuse.train._fit import resolve_device

    keys: dict[str, Any] = {"tile_key": tile_key, "image_key": image_key, "rna_key": rna_key, "graph_key": graph_key}
    for name, key in keys.items():
        check_text(name, key)
    check_text("paired_key", paired_key, optional=True)
    check_seed(seed)
    for name, flag in (("finetune_image", finetune_image), ("copy", copy), ("return_model", return_model)):
        check_flag(name, flag)
    check_flag("progress", progress, optional=True)
    resolve_device(device)
    if finetune_image != (image_encoder is not None):
        raise ValueError(
            "finetune_image=True and image_encoder= go together: one says that, the other what is trained."
        )
    if crop_size is not None and image_encoder is None:
        raise ValueError("crop_size= is about crops for an image_encoder, and there is none.")
    keys["paired_key"] = paired_key
    model_params: dict[str, Any] = {
        "scales": scales,
        "graph": graph,
        "edge_addition": edge_addition,
        "layer": layer,
        "embed_dim": embed_dim,
        "n_hidden": n_hidden,
        "gumbel_temperature": gumbel_temperature,
        "dropout": dropout,
        "crop_size": crop_size,
    }
    train_params: dict[str, Any] = {
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "validation_fraction": validation_fraction,
        "patience": patience,
    }
    # arguments are checked before data
    model_params = check_architecture(model_params, image_encoder)
    check_run(**train_params)
    train_params["device"] = device
    tables = find_tables(cells, tiles, tile_key, table_key, tiles_table, need_tiles=True)
    if copy:
        _record.check_copy(tables.cells)
        _record.check_copy(tables.tiles)
    check_names(tables, key_added, keys)
    private_cells, private_tiles, made = private_tables(cells, tables, keys, finetune_image)
    SIGMMA.setup_anndata(private_cells, **keys)
    model = SIGMMA(private_cells, private_tiles, image_encoder=image_encoder, **model_params)
    model.train(seed=seed, progress=progress, **train_params)
    params = keys | model_params | train_params | {"finetune_image": finetune_image}
    params["image_encoder"] = None if image_encoder is None else type(image_encoder).__name__
    to_cells, to_tiles = results(model, key_added, {"method": METHOD, "params": params, "seed": seed}, made)
    return write(cells, tables, to_cells, to_tiles, copy, model if return_model else None)
