"""SIGMMA on cells and their tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read, _record
from stfuse._cell_graph import SCALES, Scale
from stfuse._check import check_flag, check_seed, check_text
from stfuse._log import logger, warn
from stfuse._slides import column_of
from stfuse.pp._cell_graph import build, check_free
from stfuse.pp._cell_tables import Tables, find_tables

if TYPE_CHECKING:
    from torch import nn

METHOD = "sigmma"  # by which the records of this function are told
IMAGE, GRAPH = "X_image_grid", "cell_graph"
RECIPE: dict[str, Any] = {
    "tile_size": None,
    "n_blocks": 4,
    "mode": "knn",
    "n_neighbors": 6,
    "radius": None,
    "max_pairs": 1024,
    "library_key": None,
    "spatial_key": _keys.SPATIAL,
    "seed": 0,
}


def sigmma(
    cells: Any,
    tiles: AnnData | None = None,
    *,
    tile_key: str,
    image_key: str = IMAGE,
    rna_key: str = _keys.RNA,
    graph_key: str = GRAPH,
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

    a contrastive loss (InfoNCE) at each scale. Tiles get codes by which images find expression; cells get codes of their surroundings at
    three reaches, from which :func:`stfuse.tl.domains` makes microenvironments and niches.

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
        `"sage"` (mean of neighbours, GraphSAGE) or `"gatv2"` (attention).
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
        With `finetune_image`: a :class:`torch.nn.Module` from crops (n x channels x size x size; bytes become 0 to 1) to n x any
        width. It stays as it is, a copy is trained.
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
        - `uns["sigmma"]`: parameters, history, seed, versions, counts

        Written into the cells:

        - `obsm["X_sigmma_micro"]`, `obsm["X_sigmma_meso"]`, `obsm["X_sigmma_macro"]`: codes of the cells, n x n_hidden; a row
          of NaN = in no tile, or without features
        - `obsp["sigmma_micro_connectivities"]`, `..._meso_...`, `..._macro_...`: graph of each scale (CSR, float32), each within the next;
          1 for edges of the smallest blocks, for added ones their probability. squidpy takes `connectivity_key="sigmma_macro"`
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
    128), temperatures (0.5 for edges; losses start at 0.07 and learn it), optimiser and epochs. The paper trains the image encoder too.

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
    from stfuse.model._sigmma_parts import check_architecture
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
        "device": device,
    }
    # arguments are checked before data
    model_params = check_architecture(model_params, image_encoder)
    tables = find_tables(cells, tiles, tile_key, table_key, tiles_table, need_tiles=True)
    if copy:
        _record.check_copy(tables.cells)
        _record.check_copy(tables.tiles)
    _check_names(tables, key_added)
    private_cells, private_tiles, made = _private(cells, tables, keys, finetune_image)
    SIGMMA.setup_anndata(private_cells, **keys)
    model = SIGMMA(private_cells, private_tiles, image_encoder=image_encoder, **model_params)
    model.train(seed=seed, progress=progress, **train_params)
    params = keys | model_params | train_params | {"finetune_image": finetune_image}
    params["image_encoder"] = None if image_encoder is None else type(image_encoder).__name__
    to_cells, to_tiles = _results(model, key_added, {"method": METHOD, "params": params, "seed": seed}, made)
    return _write(cells, tables, to_cells, to_tiles, copy, model if return_model else None)


def _check_names(tables: Tables, key: str) -> None:
    """Refuse names under which something else is kept."""
    _keys.slots(key)
    for where, table in (("cells", tables.cells), ("tiles", tables.tiles)):
        record: Any = table.uns.get(key) if table is not None else None
        own = isinstance(record, Mapping) and record.get("method") == METHOD
        if table is None or own:
            continue
        foreign = [f"uns[{key!r}]"] if record is not None else []
        foreign += [f"obsm[{k!r}]" for k in table.obsm if k == f"X_{key}" or k.startswith(f"X_{key}_")]
        foreign += [f"obsp[{k!r}]" for k in table.obsp if k in {f"{key}_{s}_connectivities" for s in SCALES}]
        if foreign:
            raise ValueError(
                f"key_added={key!r} would overwrite {where}.{foreign[0]}, which this function did not write: choose another "
                "name, or delete it first."
            )


def _private(
    data: Any, tables: Tables, keys: dict[str, Any], crops: bool
) -> tuple[AnnData, AnnData, dict[str, dict[str, Any]]]:
    """Small copies with what is read, made where a default is missing: scvi-tools leaves its bookkeeping in them."""
    cells, tiles = tables.cells, tables.tiles
    if tiles is None:
        raise ValueError("tiles= is missing.")
    made: dict[str, dict[str, Any]] = {"cells": {}, "tiles": {}}
    column = column_of(cells, "cells", "tile_key", keys["tile_key"])
    few_cells = AnnData(obs=pd.DataFrame({keys["tile_key"]: column}))
    few_cells.obsm[keys["rna_key"]], loadings = _rna(cells, keys["rna_key"])
    if loadings is not None:
        made["cells"] |= {
            "obsm": {keys["rna_key"]: few_cells.obsm[keys["rna_key"]]},
            "uns": {keys["rna_key"]: loadings},
        }
    if keys["graph_key"] == GRAPH and GRAPH not in cells.uns:
        check_free(cells, GRAPH, keys["tile_key"])
        logger.info("%r is made by stfuse.pp.cell_graph", GRAPH)
        graph = build(data, tables, keys["tile_key"], GRAPH, **RECIPE)
        for slot, entries in graph.items():
            made["cells"][slot] = made["cells"].get(slot, {}) | entries
    source = made["cells"].get("obsp", cells.obsp)
    for name in ("connectivities", *SCALES[1:]):
        key = f"{keys['graph_key']}_{name}"
        if key in source:
            few_cells.obsp[key] = source[key]
    record = made["cells"].get("uns", {}).get(keys["graph_key"], cells.uns.get(keys["graph_key"]))
    if record is not None:
        few_cells.uns[keys["graph_key"]] = record
    few_tiles = AnnData(obs=pd.DataFrame(index=tiles.obs_names))
    if keys["paired_key"] is not None:
        few_tiles.obs[keys["paired_key"]] = _read.read_column(tiles, keys["paired_key"])
    _image(data, tables, few_tiles, keys["image_key"], crops, made["tiles"])
    return few_cells, few_tiles, made


def _rna(cells: AnnData, key: str) -> tuple[np.ndarray, dict[str, Any] | None]:
    if key in cells.obsm or key != _keys.RNA:
        return _read.read_rep(cells, key), None
    from stfuse.pp._default_views import make_view

    return make_view(cells, "rna", key, None, None)


def _image(data: Any, tables: Tables, few: AnnData, key: str, crops: bool, made: dict[str, Any]) -> None:
    tiles: Any = tables.tiles
    if key not in tiles.obsm and key == IMAGE and not crops:
        from stfuse.pp._image_features import image_features

        has_image = bool(tiles.uns.get("spatial")) or (_read.is_spatialdata(data) and len(data.images) > 0)
        if not has_image:
            raise KeyError(
                f"There is no tiles.obsm[{key!r}] and no image to make it from: call stfuse.pp.image_features(tiles, image=, "
                "grid=[1, 2, 4]), or name features of crops with image_key=."
            )
        logger.info("tiles.obsm[%r] is made by stfuse.pp.image_features(tiles, grid=[1, 2, 4])", key)
        changed = image_features(data, grid=[1, 2, 4], table_key=tables.tiles_name, copy=True) if _read.is_spatialdata(data) else image_features(tiles, grid=[1, 2, 4], copy=True)  # fmt: skip
        table: Any = _read.container(changed, tables.tiles_name)
        made |= {"obsm": {key: table.obsm[key]}, "uns": {key: table.uns[key]}}
        tiles = table
    if key not in tiles.obsm:
        return  # the model says what is missing
    few.obsm[key] = tiles.obsm[key]
    if key in tiles.uns:
        few.uns[key] = tiles.uns[key]


def _results(
    model: Any, key: str, record: dict[str, Any], made: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that is written into the cells and into the tiles, by slot."""
    from stfuse.model._sigmma_codes import beside

    codes = model.codes()
    data = model._data(model.adata, model.tiles, training=True)
    _tell(data)
    record |= {"versions": _record.versions(), "n_obs": data.counts(), "report": dict(model.report_)}
    to_cells: dict[str, Any] = {
        "obsm": {f"X_{key}_{scale}": code for scale, code in codes.cells.items()},
        "obsp": {f"{key}_{scale}_connectivities": edges for scale, edges in codes.edges.items()},
        "uns": {key: record},
    }
    all_scales = beside(codes)
    obsm = {f"X_{key}": all_scales["fused"], f"X_{key}_image": all_scales["image"], f"X_{key}_rna": all_scales["rna"]}
    for scale in codes.image:
        slots = _keys.slots(f"{key}_{scale}")
        obsm |= {slots.fused: codes.fused[scale], slots.image: codes.image[scale], slots.rna: codes.rna[scale]}
    history = pd.concat(list(model.history_.values()), axis=1) if model.history_ else None
    to_tiles: dict[str, Any] = {"obsm": obsm, "uns": {key: record | {"history": history}}}
    for target, name in ((to_cells, "cells"), (to_tiles, "tiles")):
        for slot, entries in made[name].items():
            target[slot] = entries | target.get(slot, {})
    return to_cells, to_tiles


def _tell(data: Any) -> None:
    """Warn of what takes no part."""
    counts = data.counts()
    few = int(((data.sizes > 0) & ~data.has_rna).sum())
    empty = int((data.sizes == 0).sum())
    found = [f"{n} {what}" for n, what in ((empty, "without a cell"), (few, "with fewer than three")) if n]
    if found:
        warn(
            f"Of {counts['total']} tiles there are {' and '.join(found)}: they have no code of expression, and their fused code is that "
            "of the image."
        )
    if counts["image"] < counts["total"]:
        warn(
            f"{counts['total'] - counts['image']} of {counts['total']} tile(s) have no image: they are not trained on."
        )
    if counts["cells_without_features"]:
        warn(f"{counts['cells_without_features']} cell(s) of tiles have no features: they are left out.")


def _write(
    data: Any, tables: Tables, to_cells: dict[str, Any], to_tiles: dict[str, Any], copy: bool, model: Any
) -> Any:
    targets: list[Any]
    if _read.is_spatialdata(data):
        target = data
        if copy:
            target = _record.copy_of(_record.copy_of(data, tables.cells_name), tables.tiles_name)
        _put(target, to_cells, tables.cells_name)
        _put(target, to_tiles, tables.tiles_name)
        targets = [target]
    else:
        targets = [tables.cells.copy(), tables.tiles.copy()] if copy else [tables.cells, tables.tiles]  # type: ignore[union-attr]
        _put(targets[0], to_cells, None)
        _put(targets[1], to_tiles, None)
    given = [*(targets if copy else []), *([model] if model is not None else [])]
    return None if not given else given[0] if len(given) == 1 else tuple(given)


def _put(target: Any, written: dict[str, Any], table_key: str | None) -> None:
    """Write; entries of an earlier run at scales that this one does not have go."""
    box: Any = _read.container(target, table_key)
    key = next(k for k, v in written["uns"].items() if isinstance(v, Mapping) and v.get("method") == METHOD)
    stale = [f"X_{key}_{scale}{view}" for scale in SCALES for view in ("", "_image", "_rna")]
    for scale in SCALES:
        name = f"{key}_{scale}_connectivities"
        if name in box.obsp and name not in written.get("obsp", {}):
            del box.obsp[name]
    _record.write(target, **written, drop_obsm=tuple(stale), table_key=table_key)
