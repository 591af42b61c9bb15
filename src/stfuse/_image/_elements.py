"""Sections of a SpatialData: images and the elements that a table annotates, joined by their transformations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse._image._color import check_channels, in_order
from stfuse._image._microns import microns_from_spots
from stfuse._image._pyramid import Pyramid, pyramid
from stfuse._image._section import Choice, Section, of_section
from stfuse._log import logger
from stfuse._places import affine, places_of, regions_of, systems_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

# What readers call a coordinate system whose unit is a micron.
MICRON_SYSTEMS = {"microns", "micron", "um", "µm", "micrometer", "micrometers"}
_TILE = 100  # full-resolution pixels that a tile has at least
_SQUARE = 1e-3  # by which sides of tiles may differ, of a side


def sections_of_spatialdata(sdata: SpatialData, choice: Choice) -> list[Section]:
    """Read the image under each element that the table annotates, and where its instances lie on it."""
    table = annotating_table(sdata, choice)
    regions, region_key, instance_key = annotation(table, choice)
    column = table.obs[region_key].astype(str).to_numpy()
    sections, without = [], []
    for region in regions:
        rows = np.flatnonzero(column == region)
        if not len(rows):
            continue
        if region not in sdata and (region == choice.shapes or len(regions) == 1):
            raise KeyError(f"The table annotates {region!r}, which is no element of the SpatialData.")
        if region not in sdata or _has_no_image(sdata, region, choice):
            without.append(region)
            continue
        sections.append(_section(sdata, table, region, rows, pd.Index(table.obs[instance_key].iloc[rows]), choice))
    if not sections and without:
        element_image(
            sdata, next((name for name in without if name in sdata), without[0]), choice
        )  # says what is missing
    return sections


def _section(
    sdata: SpatialData, table: AnnData, region: str, rows: np.ndarray, instances: pd.Index, choice: Choice
) -> Section:
    element = sdata[region]
    system, image = element_image(sdata, region, choice)
    to_system, own = affine(sdata.images[image], image, system), affine(element, region, system)
    to_pixels = np.linalg.inv(to_system)
    places = places_of(element, region, instances, system)
    centers = places @ to_pixels[:2, :2].T + to_pixels[:2, 2]
    # how far a circle of one unit of the element reaches along x and along y, in pixels
    unit = np.linalg.norm((to_pixels @ own)[:2, :2], axis=1)
    spot = _size(element)
    step = np.linalg.norm(to_system[:2, :2], axis=0)  # of one pixel along x and along y, in units of the system
    said = of_section(choice.mpp, region, "mpp")
    if said is not None:
        mpp: tuple[float, float] | None = (float(said), float(said * step[1] / step[0]))
    else:
        across = None if spot is None else spot * float(np.sqrt(abs(np.linalg.det(own[:2, :2]))))
        mpp = microns_of(sdata.images[image], image, places, across, step)
    units = (float(unit[0]), float(unit[1]))
    tiles = "tile_size" in table.obs or _are_tiles(element, spot, units)
    return Section(region, element_pyramid(sdata, image), rows, centers, units, spot, mpp, tiles)


def _has_no_image(sdata: SpatialData, region: str, choice: Choice) -> bool:
    """Tell a region whose observations simply have no image, of several regions of which others have one."""
    if isinstance(choice.image, Mapping):
        return region not in choice.image
    own = set(systems_of(sdata[region]))
    images = sdata.images if choice.image is None else [n for n in sdata.images if n == choice.image]
    return bool(len(images)) and not any(own & set(systems_of(sdata.images[name])) for name in images)


def annotating_table(sdata: SpatialData, choice: Choice) -> AnnData:
    """Find the table: the one named, else the one that annotates the shapes, else the only one."""
    key = choice.table_key
    if key is None and choice.shapes is not None and len(sdata.tables) != 1:
        fits = [n for n, t in sdata.tables.items() if choice.shapes in regions_of(t)]
        if len(fits) != 1:
            what = "No table annotates" if not fits else f"Several tables ({', '.join(fits)}) annotate"
            mend = (
                "make one with spatialdata.models.TableModel.parse(..., region=)"
                if not fits
                else "name one with table_key="
            )
            raise KeyError(f"{what} {choice.shapes!r}: {mend}. Tables there: {', '.join(sdata.tables) or 'none'}.")
        key = fits[0]
    table: Any = _read.container(sdata, key)
    return table


def table_name(sdata: SpatialData, table: AnnData) -> str:
    """Name of a table in its SpatialData."""
    return next(name for name, other in sdata.tables.items() if other is table)


def annotation(table: AnnData, choice: Choice) -> tuple[list[str], str, str]:
    """Elements that a table annotates (or the one asked for), and its columns of regions and instances."""
    attrs = table.uns.get("spatialdata_attrs")
    if not isinstance(attrs, Mapping) or "region" not in attrs:
        raise ValueError(
            "The table annotates no element (it has no uns['spatialdata_attrs']), so its observations have no place on an "
            "image: make it with spatialdata.models.TableModel.parse(adata, region=, region_key=, instance_key=)."
        )
    regions = regions_of(table)
    if choice.shapes is not None:
        if choice.shapes not in regions:
            raise KeyError(
                f"The table does not annotate {choice.shapes!r}.{did_you_mean(choice.shapes, regions)} It annotates: "
                f"{', '.join(regions)}."
            )
        regions = [choice.shapes]
    return regions, str(attrs["region_key"]), str(attrs["instance_key"])


def element_image(sdata: SpatialData, region: str, choice: Choice) -> tuple[str, str]:
    """Name a coordinate system that an element and its image share, and the image."""
    wanted = of_section(choice.image, region, "image")
    if wanted is not None and not isinstance(wanted, str):
        raise TypeError(f"image must be the name of an image of the SpatialData, got {type(wanted).__name__}.")
    if wanted is not None and wanted not in sdata.images:
        there = ", ".join(sdata.images) or "none"
        raise KeyError(
            f"No image {wanted!r} in the SpatialData.{did_you_mean(wanted, sdata.images)} Images there: {there}."
        )
    own = list(systems_of(sdata[region]))
    if choice.coordinate_system is not None:
        if choice.coordinate_system not in own:
            raise KeyError(
                f"{region!r} is not in the coordinate system {choice.coordinate_system!r}. It is in: {', '.join(own)}."
            )
        own = [choice.coordinate_system]
    candidates = [wanted] if wanted is not None else _originals(sdata)
    shared = {n: [s for s in own if s in systems_of(sdata.images[n])] for n in candidates}
    shared = {name: systems for name, systems in shared.items() if systems}
    if not shared:
        raise ValueError(
            f"{'No image shares a' if wanted is None else f'The image {wanted!r} shares no'} coordinate system with "
            f"{region!r} ({', '.join(own)}): add a transformation with spatialdata.transformations.set_transformation."
        )
    name = next(iter(shared)) if len(shared) == 1 else _sharpest(list(shared))
    return shared[name][0], name


def _sharpest(names: list[str]) -> str:
    """Of the images that Visium readers keep of one section, take the largest."""
    for ending in ("full_image", "hires_image", "lowres_image"):
        fits = [name for name in names if name.endswith(ending)]
        if len(fits) == 1 and all(name.endswith(("full_image", "hires_image", "lowres_image")) for name in names):
            return fits[0]
    raise ValueError(
        f"Several images lie under the observations ({', '.join(names)}): name one with image=, or one for each element "
        "that the table annotates, image={element: image}."
    )


def _originals(sdata: SpatialData) -> list[str]:
    """Images other than those that `normalize_stain` has made of them."""
    holders = [sdata.attrs, *(table.uns for table in sdata.tables.values())]
    records = [r for h in holders for key, r in h.items() if str(key).startswith("stain_") and isinstance(r, Mapping)]
    made = {str(name) for record in records for name in record.get("written", ())}
    return [name for name in sdata.images if name not in made] or list(sdata.images)


def _size(element: Any) -> float | None:
    """Diameter of spots or side of square tiles, where all have the same; cells have none."""
    if not hasattr(element, "geometry"):
        return None
    if "radius" in element.columns:
        radii = element["radius"].to_numpy(dtype=float)
        return 2 * float(np.median(radii)) if np.ptp(radii) <= _SQUARE * np.max(radii) else None
    bounds = element.bounds.to_numpy()
    sides = np.column_stack([bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]])
    side = float(np.median(sides))
    square = np.allclose(sides, side, rtol=_SQUARE) and np.allclose(element.area, side**2, rtol=2 * _SQUARE)
    return side if square else None


def _are_tiles(element: Any, side: float | None, unit: tuple[float, float]) -> bool:
    """Tell tiles from the bins of Visium HD, which are squares too, but of a few pixels."""
    return side is not None and "radius" not in element.columns and side * min(unit) >= _TILE


def element_pyramid(sdata: SpatialData, name: str) -> Pyramid:
    """Open an image element, with all its scales, lazily."""
    element: Any = sdata.images[name]
    where = f"sdata.images[{name!r}]"
    scales = [element] if hasattr(element, "dims") and not hasattr(element, "children") else []
    scales = scales or [next(iter(node.ds.values())) for node in element.children.values()]
    if "z" in scales[0].dims:
        raise ValueError(f"{where} is a volume; a plane of y and x is needed.")
    channels = list(scales[0].coords["c"].values) if "c" in scales[0].coords else [0]
    check_channels(channels, where)
    order = in_order(channels)
    arrays = [scale.transpose("y", "x", "c").data for scale in scales]
    if order != list(range(len(channels))):
        arrays = [array[:, :, order] for array in arrays]
    return pyramid(arrays, name=where, kind=name)


def microns_of(
    element: Any, name: str, places: np.ndarray, spot: float | None, step: np.ndarray
) -> tuple[float, float] | None:
    """Microns per pixel along x and y: from a coordinate system in microns, or from the spacing of spots."""
    for system in systems_of(element):
        if system.lower() in MICRON_SYSTEMS:
            x, y = np.linalg.norm(affine(element, name, system)[:2, :2], axis=0)
            return float(x), float(y)
    per_unit = microns_from_spots(places, spot)
    if per_unit is None:
        return None
    found = per_unit * float(step[0]), per_unit * float(step[1])
    logger.info("image %r: mpp=%.4g, from the spacing of the spots, taken for Visium's 100 µm", name, found[0])
    return found
