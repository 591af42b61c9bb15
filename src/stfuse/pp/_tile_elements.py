"""Tiles of a SpatialData: their shapes element, existing tiles of other packages, and the features that annotate them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read
from stfuse._check import did_you_mean
from stfuse._image._elements import (
    MICRON_SYSTEMS,
    annotation,
    element_image,
    element_pyramid,
    microns_of,
    sections_of_spatialdata,
)
from stfuse._image._section import Choice, of_section
from stfuse._image._tiles import Tiles
from stfuse._log import warn
from stfuse._places import affine, places_of, regions_of, systems_of
from stfuse.pp._tile_grid import Frame
from stfuse.pp._tile_inside import inside_polygons
from stfuse.pp._tile_reach import reaching, squares, to_frame

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

MARK = "tile_size"  # an entry of the record by which a table of ours is told
REGION, INSTANCE = "region", "tile_id"


@dataclass(frozen=True)
class Ground:
    """A section and the transformations of the frame that its tiles are laid in."""

    frame: Frame
    transformations: Mapping[str, Any]
    move: np.ndarray | None = None  # from the own coordinates of the cells to the frame


def is_tile_table(table: AnnData, key: str | None = None) -> bool:
    """Tell a table that tessellate wrote, or the one that it wrote under a name."""
    keys = list(table.uns) if key is None else [key]
    found = (table.uns.get(k) for k in keys)
    return "tile_x" in table.obs and any(isinstance(r, Mapping) and MARK in r for r in found)


def cell_table(sdata: SpatialData, table_key: str | None, shapes: str | None) -> tuple[str, AnnData] | None:
    """Find the table of the cells: the one named, or the only one that is no table of tiles; None of a bare slide."""
    if table_key is not None:
        named: Any = _read.container(sdata, table_key)
        return table_key, named
    candidates = []
    for name, table in sdata.tables.items():
        regions = regions_of(table)
        # a graph of tiles has no genes and annotates nothing
        if not is_tile_table(table) and (shapes is None or shapes not in regions) and (regions or table.n_vars):
            candidates.append(name)
    if len(candidates) > 1:
        raise ValueError(
            f"The SpatialData has {len(candidates)} tables ({', '.join(candidates)}): name the cells' with table_key=."
        )
    return (candidates[0], sdata.tables[candidates[0]]) if candidates else None


def grounds(sdata: SpatialData, choice: Choice, cells: AnnData | None, min_tissue: float | None) -> list[Ground]:
    """Read the sections that get a grid."""
    from spatialdata.transformations import Identity, get_transformation

    if cells is None:
        return [_bare_slide(sdata, choice)]
    if not len(sdata.images):
        if min_tissue is not None or choice.image is not None:
            raise KeyError(
                "The SpatialData has no image, so nothing tells where there is tissue: add one, or take every tile with "
                "at least one cell by min_tissue=None."
            )
        return [_without_image(sdata, choice, cells, region, Identity()) for region in annotation(cells, choice)[0]]
    found = []
    for section in sections_of_spatialdata(sdata, choice):
        system, image = element_image(sdata, section.name, choice)
        moves: Any = get_transformation(sdata.images[image], get_all=True)
        move = to_frame(sdata, section.name, system, sdata.images[image], image)
        found.append(Ground(Frame.of(section), dict(moves), move))
    return found


def _bare_slide(sdata: SpatialData, choice: Choice) -> Ground:
    from spatialdata.transformations import get_transformation

    images = list(sdata.images)
    name = of_section(choice.image, images[0], "image") if len(images) == 1 else choice.image
    if name is None and len(images) == 1:
        name = images[0]
    if name is None:
        what = f"several images ({', '.join(images)}) and" if images else "no image and"
        raise ValueError(f"The SpatialData has {what} no table of cells: name the slide with image=.")
    if not isinstance(name, str) or name not in images:
        raise KeyError(f"No image {name!r} in the SpatialData.{did_you_mean(name, images)} Images there: {images}.")
    moves: Any = get_transformation(sdata.images[name], get_all=True)
    said = of_section(choice.mpp, name, "mpp")
    mpp = float(said) if said is not None else _microns_per_unit(sdata.images[name], name)
    nowhere = np.empty(0, dtype=np.int64)
    frame = Frame(name, nowhere, np.empty((0, 2)), element_pyramid(sdata, name), mpp)
    return Ground(frame, dict(moves))


def _without_image(sdata: SpatialData, choice: Choice, cells: AnnData, region: str, identity: Any) -> Ground:
    """Lay tiles in a coordinate system that the cells are in."""
    systems = list(systems_of(sdata[region])) if region in sdata else []
    micron = [system for system in systems if system.lower() in MICRON_SYSTEMS]
    system = choice.coordinate_system or (micron or systems or ["global"])[0]
    rows, places = _cells_of(sdata, cells, choice, region, system)
    said = of_section(choice.mpp, region, "mpp")
    mpp = float(said) if said is not None else (1.0 if system in micron else None)
    move = to_frame(sdata, region, system, None, region)
    return Ground(Frame(region, rows, places, None, mpp), {system: identity}, move)


def _cells_of(
    sdata: SpatialData, cells: AnnData, choice: Choice, region: str, system: str
) -> tuple[np.ndarray, np.ndarray]:
    _, region_key, instance_key = annotation(cells, choice)
    if region not in sdata:
        raise KeyError(f"The table annotates {region!r}, which is no element of the SpatialData.")
    rows = np.flatnonzero((cells.obs[region_key].astype(str) == region).to_numpy())
    return rows, places_of(sdata[region], region, pd.Index(cells.obs[instance_key].iloc[rows]), system)


def existing_tiles(sdata: SpatialData, choice: Choice, cells: AnnData | None, shapes: str, partial: bool) -> Tiles:
    """Read tiles that are there, in their own coordinates, with the cells inside."""
    element = _tile_shapes(sdata, shapes)
    bounds = element.bounds.to_numpy(dtype=np.float64)
    names = element.index.astype(str).to_numpy(dtype=object)
    if len(set(names)) < len(names):
        raise ValueError(f"The index of shapes[{shapes!r}] is not unique, so its tiles can't be told apart.")
    regions = {} if cells is None else _regions_on(sdata, choice, cells, shapes, element)
    found = [] if cells is None else _in_tiles(sdata, choice, cells, shapes, regions)
    rows, tile = (np.concatenate(part) for part in zip(*found, strict=True)) if found else (np.empty(0, np.int64),) * 2
    sides = (bounds[:, 2:] - bounds[:, :2]).max(axis=1)
    said = of_section(choice.mpp, shapes, "mpp")
    mpp = float(said) if said is not None else _microns_per_unit(element, shapes)
    tiles = Tiles(shapes, names, bounds[:, :2], sides, rows, tile, None, mpp)
    if not partial or cells is None:
        return tiles
    for region, system in regions.items():
        move = to_frame(sdata, region, system, element, shapes)
        tiles = reaching(tiles, element.geometry.to_numpy(), sdata, cells, choice, region, move)
    return tiles


def _microns_per_unit(element: Any, name: str) -> float | None:
    found = microns_of(element, name, np.empty((0, 2)), None, np.ones(2))
    return None if found is None else float(np.sqrt(found[0] * found[1]))


def _tile_shapes(sdata: SpatialData, shapes: str) -> GeoDataFrame:
    if shapes not in sdata.shapes:
        there = ", ".join(sdata.shapes) or "none"
        raise KeyError(f"No shapes {shapes!r}.{did_you_mean(shapes, sdata.shapes)} Shapes there: {there}.")
    element = sdata.shapes[shapes]
    if not len(element):
        raise ValueError(f"shapes[{shapes!r}] is empty: there are no tiles to aggregate into.")
    if not element.geom_type.isin(["Polygon", "MultiPolygon"]).all():
        raise ValueError(f"shapes[{shapes!r}] holds {element.geom_type.iloc[0]}s; tiles are polygons.")
    return element


def _regions_on(
    sdata: SpatialData, choice: Choice, cells: AnnData, shapes: str, element: GeoDataFrame
) -> dict[str, str]:
    """Name the elements of cells that share a coordinate system with the tiles, and that system."""
    own = list(systems_of(element)) if choice.coordinate_system is None else [choice.coordinate_system]
    found = {}
    for region in annotation(cells, choice)[0]:
        shared = [system for system in own if region in sdata and system in systems_of(sdata[region])]
        if shared:
            found[region] = shared[0]
    if not found:
        raise ValueError(
            f"shapes[{shapes!r}] shares no coordinate system with the cells ({', '.join(own)}): add a transformation with "
            "spatialdata.transformations.set_transformation."
        )
    return found


def _in_tiles(
    sdata: SpatialData, choice: Choice, cells: AnnData, shapes: str, regions: Mapping[str, str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    element, found = sdata.shapes[shapes], []
    for region, system in regions.items():
        rows, places = _cells_of(sdata, cells, choice, region, system)
        nowhere = int(np.isnan(places).any(axis=1).sum())
        if nowhere:
            warn(f"{nowhere} of {len(rows)} cells of {region!r} have no instance there: they are in no tile.")
        to_own = np.linalg.inv(affine(element, shapes, system))
        which, tile = inside_polygons(places @ to_own[:2, :2].T + to_own[:2, 2], element.geometry.to_numpy())
        found.append((rows[which], tile))
    return found


def image_features_of(sdata: SpatialData, shapes: str, cells: str | None) -> dict[str, np.ndarray]:
    """Read the tables of features that LazySlide, sopa or others made of the tiles, as entries of ``obsm``."""
    found = {}
    element = sdata.shapes[shapes]
    for name, table in sdata.tables.items():
        if name == cells or shapes not in regions_of(table) or not table.n_vars or is_tile_table(table):
            continue
        attrs = table.uns["spatialdata_attrs"]
        mine = np.flatnonzero((table.obs[attrs["region_key"]].astype(str) == shapes).to_numpy())
        # LazySlide keeps the ids in a column of the shapes; elsewhere they are the index
        key = attrs["instance_key"]
        ids = pd.Index(element[key]) if key in element.columns else element.index
        features = _read.as_matrix(table.X, f"tables[{name!r}].X").astype(np.float32)
        rows = _rows_of(ids, pd.Index(table.obs[key].iloc[mine]), name, shapes)
        values = np.full((len(element), table.n_vars), np.nan, dtype=np.float32)
        values[rows >= 0] = features[mine[rows[rows >= 0]]]
        found[_model_name(name, table, shapes)] = values
    if len(found) == 1:
        return {_keys.IMAGE: next(iter(found.values()))}
    return {f"X_{model}": values for model, values in found.items()}


def _rows_of(ids: pd.Index, there: pd.Index, name: str, shapes: str) -> np.ndarray:
    """Find the row of features of each tile, -1 where there is none; ids of different types are compared as text."""
    ids, there = ids.infer_objects(), there.infer_objects()
    if pd.api.types.is_numeric_dtype(ids.dtype) != pd.api.types.is_numeric_dtype(there.dtype):
        ids, there = ids.astype(str), there.astype(str)
    if not there.is_unique:
        example = there[there.duplicated()][0]
        raise ValueError(
            f"tables[{name!r}] has several rows for the tile {str(example)!r} of {shapes!r}: leave one of them."
        )
    rows = there.get_indexer(ids)
    found = int((rows >= 0).sum())
    if not found:
        raise ValueError(
            f"tables[{name!r}] annotates shapes[{shapes!r}], but none of its {len(there)} ids ({_first(there)}) is a tile "
            f"there ({_first(ids)}): correct the column that names the tiles, or delete the table."
        )
    if found < len(rows):
        warn(f"tables[{name!r}] has features of {found} of the {len(rows)} tiles in {shapes!r}; the others get NaN.")
    return rows


def _first(ids: pd.Index) -> str:
    return f"such as {str(ids[0])!r}" if len(ids) else "none"


def _model_name(name: str, table: AnnData, shapes: str) -> str:
    """Name the encoder: sopa records it, LazySlide puts it before the name of the tiles."""
    config = table.uns.get("embedding_config")
    if isinstance(config, Mapping) and config.get("model_name"):
        return str(config["model_name"])
    return name.removesuffix(f"_{shapes}").removesuffix("_embeddings")


def tile_shapes(tiles: Tiles, transformations: Mapping[str, Any]) -> Any:
    """Make the shapes element of tiles."""
    import geopandas
    from spatialdata.models import ShapesModel

    frame = geopandas.GeoDataFrame({"geometry": squares(tiles)}, index=pd.Index(tiles.names.astype(str), dtype=object))
    return ShapesModel.parse(frame, transformations=dict(transformations))


def annotate(table: AnnData, element_names: list[str], n_tiles: list[int], instances: np.ndarray | pd.Index) -> AnnData:
    """Let the table annotate its tiles."""
    from spatialdata.models import TableModel

    table.obs[REGION] = pd.Categorical.from_codes(np.repeat(np.arange(len(n_tiles)), n_tiles), element_names)
    table.obs[INSTANCE] = np.asarray(instances)
    region: Any = element_names[0] if len(element_names) == 1 else element_names
    parsed: AnnData = TableModel.parse(table, region=region, region_key=REGION, instance_key=INSTANCE)
    return parsed
