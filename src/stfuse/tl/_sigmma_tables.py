"""What SIGMMA reads from cells and tiles, made where a default is missing, and what it writes into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read, _record
from stfuse._cell_graph import SCALES
from stfuse._check import did_you_mean
from stfuse._log import logger, warn
from stfuse._slides import column_of
from stfuse.pp._cell_graph import build, check_free, default_options
from stfuse.pp._cell_tables import Tables
from stfuse.tl._write_both import Written, write_both

METHOD = "sigmma"  # by which the records of this function are told


def check_names(tables: Tables, key: str, keys: Mapping[str, str | None]) -> None:
    """Refuse names under which something else is kept, or that the call reads or makes."""
    _keys.slots(key)
    read = {_keys.SPATIAL, *keys.values(), f"{keys['graph_key']}_neighbors"}
    if key in read:
        raise ValueError(f"key_added={key!r} would overwrite what is read under that name: choose another one.")
    codes = {f"X_{key}{scale}{view}" for scale in ("", *(f"_{s}" for s in SCALES)) for view in ("", "_image", "_rna")}
    graphs = {f"{key}_{scale}_connectivities" for scale in SCALES}
    for where, table in (("cells", tables.cells), ("tiles", tables.tiles)):
        record: Any = table.uns.get(key) if table is not None else None
        own = isinstance(record, Mapping) and record.get("method") == METHOD
        if table is None or own:
            continue
        foreign = [f"uns[{key!r}]"] if record is not None else []
        foreign += [f"obsm[{k!r}]" for k in table.obsm if k in codes]
        foreign += [f"obsp[{k!r}]" for k in table.obsp if k in graphs]
        if foreign:
            raise ValueError(
                f"key_added={key!r} would overwrite {where}.{foreign[0]}, which this function did not write: choose another "
                "name, or delete it first."
            )


def private_tables(
    data: Any, tables: Tables, keys: dict[str, Any], crops: bool
) -> tuple[AnnData, AnnData, dict[str, dict[str, Any]]]:
    """Small objects with what is read, made where a default is missing: scvi-tools leaves its bookkeeping in them."""
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
    if keys["graph_key"] == _keys.CELL_GRAPH and _keys.CELL_GRAPH not in cells.uns:
        check_free(cells, _keys.CELL_GRAPH, keys["tile_key"])
        logger.info("%r is made by stfuse.pp.cell_graph", _keys.CELL_GRAPH)
        graph = build(data, tables, keys["tile_key"], _keys.CELL_GRAPH, **default_options())
        for slot, entries in graph.items():
            made["cells"][slot] = made["cells"].get(slot, {}) | entries
    source = made["cells"].get("obsp", cells.obsp)
    for name in ("connectivities", *SCALES[1:]):
        key = f"{keys['graph_key']}_{name}"
        if key in source:
            few_cells.obsp[key] = source[key]
    blocks = f"{keys['graph_key']}_blocks"
    for held in (made["cells"].get("obsm", {}), cells.obsm):
        if blocks in held and blocks not in few_cells.obsm:
            few_cells.obsm[blocks] = held[blocks]
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
    if key not in tiles.obsm and key == _keys.IMAGE_GRID and not crops:
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
        mend = "name tiles' pixels, t x channels x height x width" if crops else f"make it by stfuse.pp.image_features(tiles, grid=[1, 2, 4], key_added={key!r})"  # fmt: skip
        raise KeyError(
            f"No tiles.obsm[{key!r}] (image_key).{did_you_mean(key, tiles.obsm)} There is {_read.listing(tiles.obsm.keys())}: {mend}."
        )
    few.obsm[key] = tiles.obsm[key]
    if key in tiles.uns:
        few.uns[key] = tiles.uns[key]


def results(
    model: Any, key: str, record: dict[str, Any], made: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that is written into the cells and into the tiles, by slot."""
    from stfuse.model._sigmma_codes import beside

    codes = model.codes()
    data = model._data(model.adata, model.tiles, training=True)
    _tell(data)
    report = dict(model.report_) | _kept(codes.edges, data)
    record |= {"versions": _record.versions(), "n_obs": data.counts(), "report": report}
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


def _kept(edges: Mapping[str, Any], data: Any) -> dict[str, float]:
    """Share of the listed pairs that became edges at each scale but the first."""
    found, scales = {}, list(edges)
    for scale, smaller, pairs in zip(scales[1:], scales, data.cells.added, strict=False):
        # every edge stands twice in a graph, every pair once
        found[f"pairs_kept_{scale}"] = (edges[scale].nnz - edges[smaller].nnz) / 2 / max(pairs.nnz, 1)
    return found


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


def write(data: Any, tables: Tables, to_cells: dict[str, Any], to_tiles: dict[str, Any], copy: bool, model: Any) -> Any:
    """Write into both tables, or into copies of them, and give back what was asked for; entries of an earlier run go."""
    written = []
    for table, entries in ((tables.cells, to_cells), (tables.tiles, to_tiles)):
        key = next(k for k, v in entries["uns"].items() if isinstance(v, Mapping) and v.get("method") == METHOD)
        stale_obsm = [f"X_{key}_{scale}{view}" for scale in SCALES for view in ("", "_image", "_rna")]
        stale_obsp = [f"{key}_{scale}_connectivities" for scale in SCALES]
        written.append(Written(table, entries, {"obsm": stale_obsm, "obsp": stale_obsp}))
    written[0].name, written[1].name = tables.cells_name, tables.tiles_name
    return write_both(data, written, copy, model)
