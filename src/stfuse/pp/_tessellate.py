"""Niches: non-overlapping tiles over the tissue, each the sum of the cells inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from anndata import AnnData

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_target, check_text
from stfuse._image._section import Choice
from stfuse._image._tiles import Tiles
from stfuse._log import warn
from stfuse.pp._tile_elements import (
    INSTANCE,
    MARK,
    REGION,
    annotate,
    cell_table,
    existing_tiles,
    grounds,
    image_features_of,
    is_tile_table,
    tile_shapes,
)
from stfuse.pp._tile_grid import Plan, frames_of_anndata, lay_tiles
from stfuse.pp._tile_reach import reaching, squares
from stfuse.pp._tile_table import COLUMNS, build_table, carry_over, read_labels, read_matrix, tile_of_cells

if TYPE_CHECKING:
    from spatialdata import SpatialData

_DEFAULT = "tiles"


def tessellate(
    data: AnnData | SpatialData,
    *,
    image: str | Path | np.ndarray | Mapping[str, Any] | None = None,
    tile_um: float | None = None,
    tile_px: float | None = None,
    min_tissue: float | None = 0.5,
    partial: bool = False,
    label_key: str | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    spatial_key: str | tuple[str, str] = _keys.SPATIAL,
    table_key: str | None = None,
    shapes: str | None = None,
    coordinate_system: str | None = None,
    mpp: float | Mapping[str, float] | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | tuple[AnnData, AnnData] | SpatialData | None:
    """Cut tissue into niches: square tiles, each with the image below it and the sum of the cells inside.

    A grid of squares that don't overlap is laid over each section, from the upper left corner of its image. A tile is kept
    when enough of it is tissue, told from glass by Otsu's threshold on the colourfulness of the image; gaps in the tissue of
    less than half a tile (air in the lung, fat cells, vessels) are part of it. A cell belongs to the tile that holds its
    centre, with all of its counts. What comes out is a table of tiles, a new data set for
    `pp.image_features` and every fusion method. Spots or bins are summed in the same way.

    Parameters
    ----------
    data
        AnnData of cells, or SpatialData with a table that annotates them. A SpatialData without cells, a bare slide, gives
        tiles without genes.
    image
        AnnData: key of an image in `uns["spatial"][section]["images"]`, path of an image file of full resolution, an array,
        or one of them for each section (a dict). Files and arrays are not kept with the tiles: give them again to
        `pp.image_features` and `datasets.export_tiles`. SpatialData: name of the image, needed where several lie under the
        cells or on a bare slide, for example before and after `pp.normalize_stain`. None = the one that is there.
    tile_um
        Side of a tile in microns. None = 112, which are 224 pixels of half a micron, unless `tile_px` is given.
    tile_px
        Side of a tile in full-resolution pixels (of coordinates without image: in their unit), instead of `tile_um`.
    min_tissue
        Share of a tile's area that is tissue at least, 0 to 1. None = every tile with at least one cell is kept; no image is
        needed then.
    partial
        SpatialData: whether a cell whose outline overlaps several tiles counts, whole, in each of them, as in the data of
        CAMEO. False = only in the one that holds its centre.
    label_key
        Column of `obs` with the cell types (categories, text or whole numbers; missing = not known).
    layer
        Layer to sum. None = `X`.
    library_key
        AnnData: column of `obs` that names the section of each cell. None = found when one column fits `uns["spatial"]`.
    spatial_key
        AnnData: key of the coordinates in `obsm` (x and y in pixels of the full image), or two columns of `obs` (x, y).
    table_key
        SpatialData: the table of the cells. None = the only one that is no table of tiles.
    shapes
        SpatialData: tiles that are there already (polygons, for example those of LazySlide or sopa), to use as they are
        instead of a grid; `image`, `tile_um`, `tile_px` and `min_tissue` play no part then. Where they overlap, a cell counts
        in each; on a border that they share, in the next to the right or below.
    coordinate_system
        SpatialData: where cells, images and tiles meet. None = one that they share.
    mpp
        Microns per full-resolution pixel (without image: per unit of the coordinates), or one for each section. None = from
        the image file, the scale factors (`microns_per_pixel`), a coordinate system in microns, or the lattice of a known
        array of spots.
    key_added
        Name of the tiles, see Returns. None = `"tiles"`, or `shapes` where it is given.
    copy
        Whether to leave `data` as it is and return a changed copy too.

    Returns
    -------
    Of an AnnData the table of tiles, of `copy=True` the table and the changed copy of the cells. Of a SpatialData None, or
    the changed copy. The table of tiles, in a SpatialData `tables["rna_<key_added>"]`, holds

    - `X`: sum of the cells inside (CSR; whole numbers as int64, floats as they are), `var` as the cells'
    - `obs[["tile_x", "tile_y", "tile_size"]]`: corner with the smallest x and y and side, in the unit of `obsm["spatial"]`
    - `obs["n_cells"]`: number of cells inside, 0 where there is tissue without a cell
    - `obs["tissue"]`: share of the area that is tissue (not with `min_tissue=None` or `shapes`)
    - `obs[library_key]` and every column of the cells that says the same of all cells of a section (patient, condition)
    - `obsm["spatial"]`: centres of the tiles; of an AnnData in its pixels, of a SpatialData in pixels of the image, or the
      own coordinates of `shapes`
    - with `label_key`: `obsm["composition"]` (DataFrame, tiles x cell types, fractions of the cells with a type; NaN where
      there are none), `obs[label_key]` (the most frequent type, of equal ones the first; `"unassigned"` where there is none)
      and `obs["<label_key>_purity"]` (its fraction)
    - `uns["spatial"]` of an AnnData: the images of the cells, not copied, with the tile as the size of a spot
    - `obsm["X_image"]` with `shapes`: the features in the table that annotates the tiles; where there are several such
      tables `obsm["X_<model>"]` of each. NaN where a tile has none
    - `uns[key_added]`: parameters, side and microns per pixel of each section, the path or name that was given as its image,
      versions

    The names of tiles are `<section>_<row>_<column>`; existing ones keep theirs. Written into the cells are
    `obs[key_added]` (categorical: the tile of each cell, `"unassigned"` outside of all of them; of overlapping tiles the
    first) and the record `uns[key_added]`. Into a SpatialData goes also `shapes[key_added]`, or, of several sections,
    `shapes["<key_added>_<section>"]`: squares in the pixels of the image and with its transformations. The table annotates
    them through `obs["region"]` and `obs["tile_id"]`.

    Raises
    ------
    KeyError
        If an image, coordinates, a column, a layer, a table or an element is not there.
    ValueError
        If both sizes are given, nothing tells the size of a pixel, a tile is larger than its image, no tile is kept, a name
        is taken by something else, a number is out of range, no id of a table of features is a tile of `shapes`, or `copy=True`
        is asked of cells that are backed by a file.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If a section gets no tile, cells lie outside of all images or are no instances of their element, or a table has
        features of some tiles of `shapes` only.

    Notes
    -----
    The recipe is that of the data of CAMEO: 224 x 224 pixels, no overlap, at least half of it tissue. There, a cell that
    reaches into several tiles is counted in each (`partial=True`). Strips at the right and lower border that are
    narrower than a tile are left out, and so are their cells. Sides in pixels need not be whole.

    Examples
    --------
    >>> import stfuse
    >>> spots = stfuse.datasets.mob()
    >>> tiles = stfuse.pp.tessellate(spots, tile_um=400, label_key="layer", library_key="section")
    >>> tiles.shape, int(tiles.obs["n_cells"].sum())
    ((205, 1000), 1505)
    >>> tiles.obsm["composition"].columns.tolist()
    ['ONL', 'GL', 'MCL', 'GCL']
    >>> int(spots.obs["tiles"].isin(tiles.obs_names).sum())
    1505
    """
    check_flag("copy", copy)
    check_flag("partial", partial)
    for name, text in (("label_key", label_key), ("layer", layer), ("shapes", shapes), ("key_added", key_added)):
        check_text(name, text, optional=True)
    params = _record.params_of(locals(), "image", "name", "text")
    params["image"] = image if image is None or isinstance(image, str | Path) else type(image).__name__
    plan = Plan.read(tile_um, tile_px, min_tissue)
    key = key_added if key_added is not None else shapes or _DEFAULT
    choice = Choice(image, library_key, spatial_key, table_key, None, coordinate_system, mpp)
    call = _Call(plan, choice, shapes, partial, label_key, layer, key, params, copy)
    if _read.is_spatialdata(data):
        return _of_spatialdata(data, call)
    if not isinstance(data, AnnData):
        raise TypeError(f"tessellate takes AnnData or SpatialData, got {type(data).__name__}.")
    if shapes is not None or coordinate_system is not None or partial:
        raise ValueError(
            "shapes=, coordinate_system= and partial= are about elements of a SpatialData, and this is an AnnData."
        )
    return _of_anndata(data, call)


@dataclass(frozen=True)
class _Call:
    """The arguments of a call."""

    plan: Plan
    choice: Choice
    shapes: str | None
    partial: bool
    label_key: str | None
    layer: str | None
    key: str
    params: dict[str, Any]
    copy: bool


def _of_anndata(cells: AnnData, call: _Call) -> AnnData | tuple[AnnData, AnnData]:
    if call.copy:
        _record.check_copy(cells)
    section_key = call.choice.library_key or _read.find_library_key(cells)
    _check_names(cells, call, section_key)
    matrix = read_matrix(cells, call.layer)
    frames = frames_of_anndata(cells, call.choice, call.plan.min_tissue)
    tiles = lay_tiles(frames, call.plan)
    _warn_outside(cells, frames)
    rows = {frame.name: frame.rows for frame in frames}
    table = _table(cells, tiles, matrix, call, section_key, rows, {call.key})
    record = _describe(tiles, call)
    spatial = _images(cells, tiles)
    if spatial:
        table.uns["spatial"] = spatial
    target = cells.copy() if call.copy else cells
    _record.write(table, uns={call.key: record})
    _record.write(target, obs={call.key: tile_of_cells(tiles, cells.n_obs)}, uns={call.key: record})
    return (table, target) if call.copy else table


def _check_names(cells: AnnData, call: _Call, section_key: str | None) -> None:
    inputs = {"label_key": call.label_key, "library_key": section_key}
    check_target(cells, "key_added", call.key, slots=("obs", "uns"), mark=MARK, inputs=inputs, default=_DEFAULT)
    if call.label_key is not None:
        read_labels(cells, call.label_key)
        if call.label_key in {*COLUMNS, REGION, INSTANCE}:
            raise ValueError(f"label_key={call.label_key!r} is a column that tiles have of their own: rename it.")


def _table(
    cells: AnnData,
    tiles: list[Tiles],
    matrix: Any,
    call: _Call,
    section_key: str | None,
    rows: Mapping[str, np.ndarray],
    skip: set[str],
) -> AnnData:
    table = build_table(cells, tiles, matrix, call.label_key, section_key)
    here = [rows[part.section] for part in tiles]
    carry_over(table, cells, here, [len(part.names) for part in tiles], skip | set(COLUMNS))
    return table


def _describe(tiles: list[Tiles], call: _Call) -> dict[str, Any]:
    image = call.choice.image
    given = {part.section: image.get(part.section) if isinstance(image, Mapping) else image for part in tiles}
    return {
        "params": call.params,
        "image": {section: str(held) for section, held in given.items() if isinstance(held, str | Path)},
        MARK: {part.section: float(np.median(part.sides)) for part in tiles},
        "mpp": {part.section: part.mpp for part in tiles if part.mpp is not None},
        "n_tiles": {part.section: len(part.names) for part in tiles},
        "versions": _record.versions(),
    }


def _images(cells: AnnData, tiles: list[Tiles]) -> dict[str, Any]:
    """Take over the images of the cells; what is drawn or cut by the size of a spot gets that of a tile."""
    held = cells.uns.get("spatial")
    spatial = {str(name): entry for name, entry in held.items()} if isinstance(held, Mapping) else {}
    found = {}
    for part in tiles:
        if part.section in spatial:
            entry = spatial[part.section]
            factors = {**(entry.get("scalefactors") or {}), "spot_diameter_fullres": float(part.sides[0])}
            if part.mpp is not None:
                factors["microns_per_pixel"] = part.mpp
            found[part.section] = {**_own(entry), "scalefactors": factors}
    return found


def _own(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Copy dictionaries within dictionaries, but no arrays: what is added to one object must not show up in another."""
    return {key: _own(value) if isinstance(value, Mapping) else value for key, value in entry.items()}


def _warn_outside(cells: AnnData, frames: Any) -> None:
    seen = sum(len(frame.rows) for frame in frames)
    outside = cells.n_obs - seen
    for frame in frames:
        if frame.image is not None and len(frame.rows):
            outside += int((~((frame.places >= 0) & (frame.places < frame.image.size)).all(axis=1)).sum())
    if outside:
        warn(f"{outside} of {cells.n_obs} cells lie on no image, or have no coordinates: they are in no tile.")


def _of_spatialdata(sdata: SpatialData, call: _Call) -> SpatialData | None:
    table_name = f"rna_{call.key}"
    found = cell_table(sdata, call.choice.table_key, call.shapes)
    cells_name, cells = found if found is not None else (None, AnnData(np.empty((0, 0), dtype=np.float32)))
    call = replace(call, choice=replace(call.choice, table_key=cells_name))
    if call.label_key is not None or found is not None:
        _check_names(cells, call, None)
    matrix = read_matrix(cells, call.layer)
    laid = (_existing if call.shapes is not None else _grid)(sdata, call, cells if found is not None else None)
    stale = _check_elements(sdata, [*laid.elements, table_name], call.key, table_name)
    attrs = cells.uns.get("spatialdata_attrs", {})
    skip = {call.key, REGION, INSTANCE, *(str(attrs[k]) for k in ("region_key", "instance_key") if k in attrs)}
    table = _table(cells, laid.tiles, matrix, call, None, laid.rows, skip)
    if call.shapes is not None:
        for name, values in image_features_of(sdata, call.shapes, cells_name).items():
            table.obsm[name] = values
    record = _describe(laid.tiles, call)
    _record.write(table, uns={call.key: record})
    table = annotate(table, laid.names, [len(part.names) for part in laid.tiles], laid.instances)

    target: Any = sdata
    if call.copy:
        target = _record.copy_of(sdata, cells_name) if cells_name is not None else _shallow(sdata)
    if cells_name is not None:
        column = tile_of_cells(laid.tiles, cells.n_obs)
        _record.write(target, obs={call.key: column}, uns={call.key: record}, table_key=cells_name)
    for name in stale:
        del target[name]
    for name, element in {**laid.elements, table_name: table}.items():
        target[name] = element
    return target if call.copy else None


class _Laid(NamedTuple):
    """Tiles of all sections, what belongs to them, and the elements to write."""

    tiles: list[Tiles]
    rows: Mapping[str, np.ndarray]  # cells of each section
    names: list[str]  # of the elements
    instances: np.ndarray  # index of the tiles in them
    elements: Mapping[str, Any]


def _existing(sdata: SpatialData, call: _Call, cells: AnnData | None) -> _Laid:
    shapes = str(call.shapes)
    tiles = existing_tiles(sdata, call.choice, cells, shapes, call.partial)
    rows = {shapes: np.unique(tiles.cells)}
    return _Laid([tiles], rows, [shapes], np.asarray(sdata.shapes[shapes].index), {})


def _grid(sdata: SpatialData, call: _Call, cells: AnnData | None) -> _Laid:
    sections = {g.frame.name: g for g in grounds(sdata, call.choice, cells, call.plan.min_tissue)}
    frames = [ground.frame for ground in sections.values()]
    tiles = lay_tiles(frames, call.plan)
    if cells is not None:
        _warn_outside(cells, frames)
    if call.partial and cells is not None:
        moves = {name: ground.move for name, ground in sections.items() if ground.move is not None}
        tiles = [reaching(t, squares(t), sdata, cells, call.choice, t.section, moves[t.section]) for t in tiles]
    names = [call.key if len(sections) == 1 else f"{call.key}_{part.section}" for part in tiles]
    elements = {n: tile_shapes(t, sections[t.section].transformations) for n, t in zip(names, tiles, strict=True)}
    instances = np.concatenate([part.names for part in tiles]).astype(str)
    return _Laid(tiles, {frame.name: frame.rows for frame in frames}, names, instances, elements)


def _shallow(sdata: SpatialData) -> SpatialData:
    elements = {name: element for _, name, element in sdata.gen_elements()}
    return type(sdata).init_from_elements(elements, attrs=dict(sdata.attrs))


def _check_elements(sdata: SpatialData, names: list[str], key: str, table_name: str) -> list[str]:
    """Refuse to write over elements that are no tiles of ours; name those of an earlier run."""
    stale = set()
    earlier = sdata.tables.get(table_name)
    if earlier is not None and is_tile_table(earlier, key):
        ours = earlier.uns[key]["params"].get("shapes") is None  # else the shapes are another's
        stale = {table_name} | ({str(region) for region in np.unique(earlier.obs[REGION])} if ours else set())
    there = {str(name).lower(): str(name) for _, name, _ in sdata.gen_elements()}
    taken = [there[name.lower()] for name in names if name.lower() in there and there[name.lower()] not in stale]
    if taken:
        mend = f" To sum the cells in these tiles, name them: shapes={taken[0]!r}." if taken[0] in sdata.shapes else ""
        raise ValueError(
            f"The SpatialData has an element {taken[0]!r}, which this function did not write: choose another name with "
            f"key_added=, or delete it first.{mend}"
        )
    return [name for name in there.values() if name in stale]
