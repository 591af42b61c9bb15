"""Sections of an AnnData: images in ``uns["spatial"]``, in files, or given as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse._image._files import PLAIN, TIFF, names_file, open_image
from stfuse._image._pyramid import Pyramid, pyramid
from stfuse._image._section import Choice, Section, microns, of_section, read_places

_KINDS = ("hires", "lowres")


def sections_of_anndata(table: AnnData, choice: Choice) -> list[Section]:
    """Read the image of each section that has one, and where its observations lie on it."""
    spatial = _spatial(table)
    places = read_places(table, choice.spatial_key)
    codes, names = _read.read_sections(table, choice.library_key)
    chosen = _images(spatial, names, choice)
    side = np.asarray(table.obs["tile_size"], dtype=np.float64) if "tile_size" in table.obs else None
    sections = []
    for name, (image, factors) in chosen.items():
        rows = np.flatnonzero(codes == names.index(name))
        spot = _spot(factors, name)
        if side is not None and len(rows):
            spot = float(np.nanmedian(side[rows]))
        mpp = microns(of_section(choice.mpp, name, "mpp"), image, factors, places[rows], spot, name)
        tiles = side is not None
        sections.append(Section(name, image, rows, places[rows], (1.0, 1.0), spot, mpp, tiles))
    return sections


def stored_images(table: AnnData, kind: str | None = None) -> dict[str, Pyramid]:
    """Read the stored image of every section: the one named, else hires, else lowres."""
    return {name: _stored(entry, name, kind) for name, entry in _spatial(table).items()}


def _spatial(table: AnnData) -> dict[str, Mapping[str, Any]]:
    spatial = table.uns.get("spatial")
    return {str(name): entry for name, entry in spatial.items()} if isinstance(spatial, Mapping) else {}


def _images(
    spatial: dict[str, Mapping[str, Any]], names: list[str], choice: Choice
) -> dict[str, tuple[Pyramid, Mapping[str, Any]]]:
    """Images and scale factors of the sections that have an image."""
    image = choice.image
    if isinstance(image, Mapping):
        strange = [str(key) for key in image if str(key) not in names]
        if strange:
            there = ", ".join(map(repr, names))
            told = " Which column tells sections apart? library_key=." if choice.library_key is None else ""
            raise KeyError(
                f"image names {strange[0]!r}, which is no section.{did_you_mean(strange[0], names)} There is: {there}.{told}"
            )
        image = {str(key): value for key, value in image.items()}
        return {n: (_given(image[n], n, spatial), _factors(spatial, n)) for n in names if n in image}
    if image is not None and not isinstance(image, str) or names_file(image):
        if len(names) > 1:
            raise ValueError(
                f"One image is given and there are {len(names)} sections ({', '.join(names)}): give one for each, "
                f"image={{{names[0]!r}: ..., {names[1]!r}: ...}}."
            )
        return {names[0]: (_given(image, names[0], spatial), _factors(spatial, names[0]))}
    if not spatial and image is not None:
        raise KeyError(
            f"image={image!r} is neither a stored image, as uns['spatial'] has none, nor the name of an image file "
            f"({', '.join((*PLAIN, *TIFF))})."
        )
    if not spatial:
        raise KeyError(
            "uns['spatial'] has no image. Name a file of full resolution with image=, or load the section with its image "
            "(squidpy.read.visium)."
        )
    with_image = [name for name in names if name in spatial]
    if not with_image:
        where = "" if choice.library_key is None else f" in obs[{choice.library_key!r}]"
        raise ValueError(
            f"None of the sections{where} ({', '.join(names)}) has an image in uns['spatial'] "
            f"({', '.join(spatial)}): rename one or the other, or name another column with library_key=."
        )
    return {name: (_stored(spatial[name], name, image), _factors(spatial, name)) for name in with_image}


def _given(image: Any, name: str, spatial: Mapping[str, Mapping[str, Any]]) -> Pyramid:
    """Take a file, an array, or the key of a stored image."""
    if isinstance(image, Pyramid):
        return image
    if names_file(image):
        return open_image(image)
    if isinstance(image, str):
        if name not in spatial:
            raise KeyError(f"uns['spatial'] has no section {name!r}, so there is no image {image!r} of it.")
        return _stored(spatial[name], name, image)
    if hasattr(image, "dims") and hasattr(image, "transpose") and {"y", "x"} <= set(image.dims):
        image = image.transpose("y", "x", ...).data
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise TypeError(
            f"image must be a key, a path or an array of height x width x colours, got {type(image).__name__}."
        )
    return pyramid([image], name=f"the image of section {name!r}", kind="array")


def _factors(spatial: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    return spatial.get(name, {}).get("scalefactors") or {}


def _stored(entry: Mapping[str, Any], library: str, kind: str | None) -> Pyramid:
    """Read an image of ``uns["spatial"]``: the one named, else hires, else lowres, each with its own scale factor."""
    images = entry.get("images") or {}
    where = f"uns['spatial'][{library!r}]"
    there = ", ".join(images) or "nothing"
    if kind is None:
        kind = next((k for k in _KINDS if k in images), None)
        if kind is None:
            raise KeyError(f"{where}['images'] has neither 'hires' nor 'lowres'. There is: {there}.")
    if kind not in images:
        raise KeyError(f"{where}['images'] has no {kind!r}.{did_you_mean(kind, images)} There is: {there}.")
    factors = entry.get("scalefactors") or {}
    scale = _positive(factors, f"tissue_{kind}_scalef", library)
    if scale is None:
        raise KeyError(
            f"{where}['scalefactors'] has no {f'tissue_{kind}_scalef'!r}, which says where spots lie on the image. There "
            f"is: {', '.join(factors) or 'nothing'}. Set it: pixels of the image per pixel of the full image."
        )
    return pyramid([images[kind]], name=f"{where}['images'][{kind!r}]", kind=kind, downsample=1 / scale)


def _spot(factors: Mapping[str, Any], library: str) -> float | None:
    return _positive(factors, "spot_diameter_fullres", library)


def _positive(factors: Mapping[str, Any], name: str, library: str) -> float | None:
    if factors.get(name) is None:
        return None
    try:
        value = float(factors[name])
    except (TypeError, ValueError):
        value = np.nan
    if not (np.isfinite(value) and value > 0):
        raise ValueError(
            f"uns['spatial'][{library!r}]['scalefactors'][{name!r}] must be a positive number, but is {factors[name]!r}."
        )
    return value
