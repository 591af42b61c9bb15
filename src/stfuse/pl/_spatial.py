"""Draw observations where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba_array

from stfuse import _keys
from stfuse._check import check_number, check_text, did_you_mean
from stfuse.pl._color import MISSING, Color, Palette, color_keys, face_colors, keep_colors, number_scale, read_color
from stfuse.pl._layout import Block, check_drawing, draw_legend, draw_title, height_of, legend_width, place, save_figure
from stfuse.pl._tissue import Section, draw_section, read_tissue, windows

WIDE, NARROW = 4.2, 2.9  # inches of a panel alone, and among others
RASTERIZE = 5_000  # more circles than this are pixels even in a PDF


def spatial(
    data: Any,
    color: str | Sequence[str] | None = None,
    *,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = True,
    img_key: str | None = None,
    alpha_img: float = 1.0,
    crop: bool = True,
    size: float = 1.0,
    alpha: float = 1.0,
    layer: str | None = None,
    palette: Palette = None,
    cmap: str = "viridis",
    vmin: float | str | None = None,
    vmax: float | str | None = None,
    ncols: int = 4,
    title: str | Sequence[str] | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
) -> Axes | list[Axes]:
    """Draw observations in space: on the image where there is one, a panel for every section and colour.

    Spots have their true size. All sections share one colour scale and one legend, and those of about one size are
    drawn at one scale. The y axis points down, as in the image.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData (its table, and images in the table's `uns["spatial"]`).
    color
        What to draw, one or several of: a column of `obs` (of a MuData also `"rna:column"`), a gene, or a column of `obsm` written as `"key:column"`
        (`"X_cameo:0"`; for a DataFrame the name of the column, `"score_ulm:Hypoxia"`). None draws the tissue alone.
    library_key
        Column of `obs` with the section. None: the column whose values are the sections of `uns["spatial"]`, where it
        has several; else all are one section.
    library_id
        Sections to draw. None: all.
    img
        Whether to draw the image of `uns["spatial"][section]`, hires or else lowres, each with its own scale factor.
    img_key
        Which image, for example `"hires_macenko"` (:func:`stfuse.pp.normalize_stain`). None = hires, else lowres.
    alpha_img
        Opacity of the image; less makes the spots stand out.
    crop
        Whether to show only the part of the image with observations.
    size
        Diameter of the circles relative to a spot's (`spot_diameter_fullres`, or else the distance between neighbours).
    alpha
        Opacity of the circles.
    layer
        Layer to take genes from. None: `X`.
    palette
        Colours of categories: a list, a dict, or the name of a colour map. None: `uns["<color>_colors"]` where it is
        there, else colours that colour-blind people can tell apart.
    cmap
        Colour map of numbers.
    vmin, vmax
        Ends of the colour scale: numbers, or percentiles such as `"p99"`. None: smallest and largest value in the
        sections drawn.
    ncols
        Panels in a row.
    title
        Title of each panel. None: name of the section, or of the colour where there is one section.
    legend
        Whether to draw legends and colour bars.
    figsize
        Size of the figure in inches. None: what the panels need.
    ax
        Axes to draw one panel into.
    save
        File to save the figure to.
    spatial_key
        Key of the coordinates in `obsm`.
    table_key
        Which table of a SpatialData.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One panel: its axes. Several: a list, all sections of the first colour, then of the next.
        Colours of categories are kept in `uns["<color>_colors"]`, as scanpy does.

    Raises
    ------
    KeyError
        If a colour, the coordinates, a section or the scale factor of an image is not there.
    ValueError
        If `ax` is given for several panels, a palette is too short, or a number is out of range.
    TypeError
        If an argument is of the wrong type.
    FileNotFoundError
        If there is no folder to save the figure in.

    Warns
    -----
    UserWarning
        If what counts as one section has observations in the same place (a forgotten `library_key`).

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(400, n_sections=2)
    >>> panels = stfuse.pl.spatial(adata, color=["domain", "X_pca:0"], library_key="section")
    >>> len(panels)
    4
    """
    check_text("img_key", img_key, optional=True)
    flags = {"img": img, "crop": crop, "legend": legend}
    check_number("size", size, above=0)
    check_drawing(size, {"alpha": alpha, "alpha_img": alpha_img}, ncols, flags, figsize, save)
    keys = color_keys(color)
    if not keys:
        raise ValueError("color is an empty list: name at least one column, gene or 'key:column' of obsm.")
    sections = chosen_sections(
        read_tissue(data, library_key, spatial_key, table_key, (img_key or True) if img else False, crop), library_id
    )
    colors = [
        None if k is None else read_color(data, k, palette=palette, layer=layer, table_key=table_key) for k in keys
    ]
    n_panels = len(sections) * len(colors)
    titles = _titles(title, sections, colors)
    frames, ratio = windows(sections)
    shown = np.concatenate([s.rows for s in sections])
    # before there is a figure, which an unknown colour map would leave open
    scales = [number_scale(c, shown, cmap, vmin, vmax) for c in colors]

    width = WIDE if n_panels == 1 else NARROW
    height = width * ratio
    if ax is not None and n_panels > 1:
        raise ValueError(
            f"ax= takes one panel, but {len(colors)} colour(s) x {len(sections)} section(s) make {n_panels}."
        )
    if ax is not None:
        groups = [[ax]]
        height = height_of(ax)
    else:
        names = [_legend_title(c, sections) for c in colors]
        needs = [
            legend_width(c, height, n, scale) if c and legend else 0.0
            for c, n, scale in zip(colors, names, scales, strict=True)
        ]
        groups = place([Block(len(sections), need) for need in needs], (width, height), ncols, figsize)

    style = {"size": size, "alpha": alpha}
    for color_read, mappable, panels in zip(colors, scales, groups, strict=True):
        for section, frame, panel in zip(sections, frames, panels, strict=True):
            draw_section(panel, section, frame, alpha_img)
            draw_circles(panel, section, color_read, mappable, **style)
            draw_title(panel, next(titles))
        if legend and color_read is not None:
            beside = panels[min(ncols, len(panels)) - 1]
            draw_legend(beside, color_read, height, mappable, _legend_title(color_read, sections))
    keep_colors(data, colors, table_key)
    axes = [panel for panels in groups for panel in panels]
    if save is not None:
        save_figure(axes[0], save)
    return axes[0] if len(axes) == 1 else axes


def chosen_sections(sections: list[Section], library_id: str | Sequence[str] | None) -> list[Section]:
    """Keep the sections that were named, in the order of their names; all where none was."""
    if library_id is None:
        return sections
    # sections of a column of numbers are named by their text
    wanted = [library_id] if isinstance(library_id, str) else [str(name) for name in library_id]
    by_name = {s.name: s for s in sections}
    missing = [name for name in wanted if name not in by_name]
    if missing or not wanted:
        hint = did_you_mean(missing[0], by_name) if missing else ""
        raise KeyError(
            f"No section {', '.join(map(repr, missing)) or 'named'}.{hint} There is {', '.join(map(repr, by_name))}."
        )
    return [by_name[name] for name in wanted]


def _titles(title: str | Sequence[str] | None, sections: list[Section], colors: list[Color | None]) -> Any:
    n = len(sections) * len(colors)
    if title is not None:
        given = [title] * n if isinstance(title, str) else list(title)
        if len(given) != n:
            raise ValueError(f"title has {len(given)} entries for {n} panels.")
        return iter(given)
    if len(sections) > 1:
        return iter([s.name for _ in colors for s in sections])
    return iter([sections[0].name if c is None else c.name for c in colors])


def _legend_title(color: Color | None, sections: list[Section]) -> str | None:
    """Name the colour beside the panels where their titles name sections."""
    return color.name if color is not None and len(sections) > 1 else None


def draw_circles(
    ax: Axes, section: Section, color: Color | None, mappable: ScalarMappable | None, *, size: float, alpha: float
) -> None:
    """Draw the observations of one section, in grey where there is neither a colour nor an image."""
    if color is None and section.image is not None:
        return
    xy = section.xy
    if color is None:
        rgba = np.tile(to_rgba_array(MISSING), (len(xy), 1))
    else:
        rgba, known = face_colors(color, section.rows, mappable)
        order = np.argsort(known, kind="stable")  # what is missing lies below
        xy, rgba = xy[order], rgba[order]
    rgba[:, 3] = alpha
    diameter = [section.diameter * size]
    circles = EllipseCollection(
        diameter, diameter, [0], units="xy", offsets=xy, offset_transform=ax.transData, facecolors=rgba, linewidths=0
    )
    circles.set_rasterized(len(xy) > RASTERIZE)
    ax.add_collection(circles, autolim=False)
