"""One section: where its observations lie, how large they are, and the image below them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy.spatial import cKDTree

from stfuse import _read
from stfuse._check import did_you_mean

# Of the distance between neighbours: circles of this diameter nearly touch.
TOUCHING = 0.92
# In spot diameters, around the observations.
BORDER = 1.5
# A panel is at least so many diameters wide: a few spots are not blown up to fill it.
LEAST_SPAN = 8


class Section(NamedTuple):
    """A section ready to be drawn; lengths in the units of the coordinates."""

    name: str
    rows: np.ndarray
    xy: np.ndarray
    diameter: float
    image: np.ndarray | None
    scale: float  # image pixels per unit
    low: np.ndarray
    high: np.ndarray


def read_tissue(
    data: Any, library_key: str | None, spatial_key: str, table_key: str | None, img: bool | str, crop: bool
) -> list[Section]:
    """Read all sections that have observations with coordinates."""
    box: Any = _read.container(data, table_key)
    spatial = _read.read_coordinates(data, spatial_key, table_key)
    if spatial is None:
        raise KeyError(_read.no_coordinates(data, spatial_key, table_key))
    codes, names = _read.read_sections(data, library_key, table_key)
    _read.warn_if_stacked(spatial, len(names), library_key)
    libraries = libraries_of(box)
    placed = np.isfinite(spatial).all(1)
    rows = {name: np.flatnonzero((codes == code) & placed) for code, name in enumerate(names)}
    rows = {name: here for name, here in rows.items() if here.size}
    if not rows:
        raise ValueError(f"No observation has coordinates: obsm[{spatial_key!r}] is NaN throughout.")
    diameters = np.array([_diameter(spatial[here], libraries.get(name, {})) for name, here in rows.items()])
    # a single spot takes its size from the other sections
    usual = np.median(diameters[np.isfinite(diameters)]) if np.isfinite(diameters).any() else 1.0
    diameters[np.isnan(diameters)] = usual
    return [
        _section(name, here, spatial[here], float(diameter), libraries.get(name, {}), img, crop)
        for (name, here), diameter in zip(rows.items(), diameters, strict=True)
    ]


def _diameter(xy: np.ndarray, library: Any) -> float:
    """Diameter of a spot; NaN where there is only one place and nothing says it."""
    factors = library.get("scalefactors") or {}
    return float(factors.get("spot_diameter_fullres") or 0) or TOUCHING * neighbor_distance(xy)


def libraries_of(box: Any) -> dict[str, Any]:
    """Images and scale factors of each section, by its name, from wherever the object keeps them."""
    found: dict[str, Any] = {}
    for part in (*box.mod.values(), box) if _read.is_mudata(box) else (box,):
        held = part.uns.get("spatial", {})
        found |= {str(k): v for k, v in held.items()} if hasattr(held, "items") else {}
    return found


def _section(
    name: str, rows: np.ndarray, xy: np.ndarray, diameter: float, library: Any, img: bool | str, crop: bool
) -> Section:
    image, scale = _image(name, library, img) if img else (None, 1.0)
    low, high = xy.min(0) - BORDER * diameter, xy.max(0) + BORDER * diameter
    if image is not None and not crop:
        low, high = np.zeros(2), np.array(image.shape[1::-1]) / scale
    return Section(name, rows, xy, diameter, image, scale, low, high)


def _image(name: str, library: Any, wanted: bool | str) -> tuple[np.ndarray | None, float]:
    """Find the image named, or the hires image, or else the lowres one, each with its own scale factor."""
    from stfuse._image._color import as_rgb

    images, factors = library.get("images") or {}, library.get("scalefactors") or {}
    if isinstance(wanted, str) and wanted not in images:
        there = f"{did_you_mean(wanted, images)} There is: {', '.join(images) or 'nothing'}."
        raise KeyError(f"uns['spatial'][{name!r}]['images'] has no {wanted!r}.{there}")
    kind = wanted if isinstance(wanted, str) else next((k for k in ("hires", "lowres") if k in images), None)
    if kind is None:
        return None, 1.0
    slot = f"tissue_{kind}_scalef"
    if slot not in factors:
        raise KeyError(
            f"uns['spatial'][{name!r}]['scalefactors'] has no {slot!r}, so that the image cannot be placed: set it "
            "(image pixels per unit of the coordinates), or draw without the image by img=False."
        )
    return as_rgb(images[kind], f"uns['spatial'][{name!r}]['images'][{kind!r}]"), float(factors[slot])


def neighbor_distance(xy: np.ndarray) -> float:
    """Median distance to the nearest other place, NaN where there is none."""
    places = np.unique(xy, axis=0)
    if len(places) < 2:
        return np.nan
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1]))


def windows(sections: list[Section]) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """Corners of what each panel shows, and height over width of all panels.

    Sections of about one size are shown at one scale; the others fill their panels.
    """
    spans = np.array([np.maximum(s.high - s.low, LEAST_SPAN * s.diameter) for s in sections])
    middles = [(s.high + s.low) / 2 for s in sections]
    if (spans.max(0) <= 1.7 * spans.min(0)).all():
        spans[:] = spans.max(0)
    ratio = float(np.clip(np.median(spans[:, 1] / spans[:, 0]), 0.3, 2.5))
    # grow the shorter side, so that every panel has the shape of its axes
    width = np.maximum(spans[:, 0], spans[:, 1] / ratio)
    halves = np.column_stack([width, width * ratio]) / 2
    return [(m - h, m + h) for m, h in zip(middles, halves, strict=True)], ratio


def draw_section(ax: Axes, section: Section, window: tuple[np.ndarray, np.ndarray], alpha: float) -> None:
    """Prepare the axes of a section: image, window, y downwards, no ticks."""
    low, high = window
    if section.image is not None:
        height, width = section.image.shape[:2]
        left, top = np.clip(np.floor(low * section.scale).astype(int), 0, [width, height])
        right, bottom = np.clip(np.ceil(high * section.scale).astype(int), 0, [width, height])
        if right > left and bottom > top:  # only what is seen: scaling all of a large image takes long
            extent = np.array([left, right, bottom, top]) - 0.5
            ax.imshow(section.image[top:bottom, left:right], extent=tuple(extent / section.scale), alpha=alpha)
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[], aspect="equal")
    ax.set_facecolor("none")
    ax.spines[:].set_visible(False)
