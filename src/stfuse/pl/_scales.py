"""Draw the domains of several scales side by side, in colours that go with each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from scipy.optimize import linear_sum_assignment

from stfuse import _keys
from stfuse._check import check_number, check_text
from stfuse.pl._color import PALETTE, UNASSIGNED, Color, Palette, read_groups
from stfuse.pl._layout import (
    TITLE_SIZE,
    Block,
    check_drawing,
    draw_legend,
    draw_title,
    height_of,
    legend_width,
    place,
    save_figure,
    text_width,
)
from stfuse.pl._pathway_matrix import shorten
from stfuse.pl._spatial import NARROW, chosen_sections, draw_circles
from stfuse.pl._tissue import draw_section, read_tissue, windows

SCALES = ("sigmma_micro_domain", "sigmma_meso_domain", "sigmma_macro_domain")
LEAST = 0.1  # of the cells of two domains together, those that they share at least if they have one colour
NAME = 0.3  # inches for the name of a row


def scales(
    cells: Any,
    groupby: Sequence[str] = SCALES,
    *,
    titles: Sequence[str] | None = None,
    match: bool = True,
    palette: Palette = None,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = False,
    alpha_img: float = 0.5,
    size: float = 1.0,
    alpha: float = 1.0,
    ncols: int = 4,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    save: str | Path | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
) -> list[Axes]:
    """Draw the domains of several scales side by side: what of a coarse domain is one at a finer scale, and what is several.

    Numbers of domains mean nothing from one scale to the next, so colours are matched: a domain has the colour of the one
    that it shares most cells with at the scale before.

    Parameters
    ----------
    cells
        AnnData, MuData or SpatialData with domains and coordinates.
    groupby
        Columns of `obs` with the domains, one a scale, two at least; from fine to coarse, or the other way.
    titles
        Name of each scale. None: what the names of the columns do not share, `"micro"` of `"sigmma_micro_domain"`.
    match
        Whether to match the colours. False: those of each column by itself, as :func:`stfuse.pl.spatial` draws them.
    palette
        Colours of the first scale, or without `match` of each. None: `uns["<column>_colors"]` where it is there, else colours that
        colour-blind people can tell apart.
    library_key
        Column of `obs` with the section. None: the column whose values are the sections of `uns["spatial"]`, where it has several;
        else all are one section.
    library_id
        Sections to draw. None: all.
    img
        Whether to draw the image below.
    alpha_img
        Opacity of the image.
    size
        Diameter of the circles relative to a spot's, or else to the distance between neighbours.
    alpha
        Opacity of the circles.
    ncols
        Panels in a row: scales of one section, or sections, which stand in a row for each scale.
    legend
        Whether to draw legends.
    figsize
        Size of the figure in inches. None: what the panels need.
    save
        File to save the figure to.
    spatial_key
        Key of the coordinates in `obsm`.
    table_key
        Which table of a SpatialData.

    Returns
    -------
    list of matplotlib.axes.Axes
        All sections of the first scale, then of the next. The matched colours are drawn only, nothing is kept in `uns`.

    Raises
    ------
    KeyError
        If a column, the coordinates or a section are not there.
    ValueError
        If there are fewer than two columns, if one is named twice or holds measurements, if `titles` has another length, if a
        palette is too short, or if a number is out of range.
    TypeError
        If an argument is of the wrong type.
    FileNotFoundError
        If there is no folder to save the figure in.

    Warns
    -----
    UserWarning
        If what counts as one section has cells in the same place (a forgotten `library_key`).

    Notes
    -----
    Each domain goes with at most one of the scale before, such that as many cells as possible keep their colour
    (:func:`scipy.optimize.linear_sum_assignment`). Two that share less than a tenth of their cells together are not taken for the same; what
    goes with none gets a colour that no scale before it has.

    See Also
    --------
    stfuse.tl.domains : makes them

    Examples
    --------
    >>> import stfuse
    >>> cells = stfuse.datasets.synthetic_tissue(600)
    >>> for n, scale in ((9, "micro"), (5, "meso"), (3, "macro")):
    ...     stfuse.tl.domains(cells, use_rep="X_pca", n_clusters=n, key_added=f"sigmma_{scale}_domain", neighbors=False)
    >>> [panel.get_title() for panel in stfuse.pl.scales(cells)]
    ['micro', 'meso', 'macro']
    """
    keys = _checked(groupby)
    names = _titles(titles, keys)
    check_number("size", size, above=0)
    flags = {"img": img, "match": match, "legend": legend}
    check_drawing(size, {"alpha": alpha, "alpha_img": alpha_img}, ncols, flags, figsize, save)
    colors = [
        read_groups(cells, key, palette=None if match and i else palette, table_key=table_key)
        for i, key in enumerate(keys)
    ]
    sections = chosen_sections(read_tissue(cells, library_key, spatial_key, table_key, img, crop=True), library_id)
    if match:
        colors = matched(colors)

    frames, ratio = windows(sections)
    height = NARROW * ratio
    several = len(sections) > 1
    blocks = [Block(len(sections), legend_width(color, height, None) if legend else 0.0) for color in colors]
    groups = place(blocks, (NARROW, height), ncols, figsize, names=NAME if several else 0.0)
    for color, name, panels in zip(colors, names, groups, strict=True):
        for section, frame, panel in zip(sections, frames, panels, strict=True):
            draw_section(panel, section, frame, alpha_img)
            draw_circles(panel, section, color, None, size=size, alpha=alpha)
            draw_title(panel, section.name if several else name)
        if several:
            # bold letters are a little wider
            fits = int(0.85 * len(name) * height_of(panels[0]) / text_width(name, TITLE_SIZE)) if name.strip() else 0
            panels[0].set_ylabel(shorten(name, max(fits, 3)), fontsize=TITLE_SIZE, fontweight="bold", labelpad=3)
        if legend:
            draw_legend(panels[min(ncols, len(panels)) - 1], color, height, None, None)
    axes = [panel for panels in groups for panel in panels]
    if save is not None:
        save_figure(axes[0], save)
    return axes


def matched(colors: Sequence[Color]) -> list[Color]:
    """Give the domains of each scale the colours of those of the scale before that they share most cells with."""
    found = [colors[0]]
    used = list(colors[0].colors.values())
    for color in colors[1:]:
        domains: Any = color.values
        pairs = partners(found[-1].values, domains)
        tints = {_keys.UNASSIGNED: to_hex(UNASSIGNED)}
        for name in map(str, domains.categories):
            if name in pairs:
                tints[name] = found[-1].colors[pairs[name]]
            elif name != _keys.UNASSIGNED:
                tints[name] = _unlike(used)
                used.append(tints[name])
        found.append(color._replace(colors=tints))
    return found


def partners(before: Any, after: Any) -> dict[str, str]:
    """Find for domains of one scale (categoricals of the same cells) the one of the scale before that each goes with."""
    old, new = (
        values.remove_categories([_keys.UNASSIGNED]) if _keys.UNASSIGNED in values.categories else values
        for values in (before, after)
    )
    shape = len(old.categories), len(new.categories)
    both = (old.codes >= 0) & (new.codes >= 0)
    cell = np.ravel_multi_index((old.codes[both], new.codes[both]), shape)
    shared = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    rows, columns = linear_sum_assignment(shared, maximize=True)
    together = shared.sum(axis=1)[rows] + shared.sum(axis=0)[columns] - shared[rows, columns]
    alike = shared[rows, columns] >= LEAST * np.maximum(together, 1)
    return {str(new.categories[j]): str(old.categories[i]) for i, j in zip(rows[alike], columns[alike], strict=True)}


def _unlike(used: Sequence[str]) -> str:
    """Choose the colour that is least like those in use."""
    from scanpy.plotting.palettes import default_28

    there = np.array([to_rgb(color) for color in [*used, UNASSIGNED, "white"]])
    free = [to_hex(color) for color in (*PALETTE, *default_28)]
    free = [color for color in free if color not in used] or [
        to_hex(color) for color in colormaps["gist_rainbow"](np.linspace(0, 1, 500))
    ]
    apart = np.linalg.norm(np.array([to_rgb(color) for color in free])[:, None] - there, axis=-1).min(axis=1)
    return free[int(apart.argmax())]


def _checked(groupby: Any) -> list[str]:
    if isinstance(groupby, str) or not hasattr(groupby, "__iter__"):
        raise TypeError(f"groupby must be a list of columns of obs, one a scale, got {groupby!r}.")
    keys = list(groupby)
    for key in keys:
        check_text("groupby", key)
    if len(keys) < 2:
        raise ValueError(
            f"groupby names {len(keys)} column(s), two at least are compared: stfuse.pl.spatial draws a single one."
        )
    if len(set(keys)) < len(keys):
        raise ValueError(f"groupby names {next(k for k in keys if keys.count(k) > 1)!r} more than once.")
    return keys


def _titles(titles: Sequence[str] | None, keys: list[str]) -> list[str]:
    """Names given, or the part of each column's name that differs, in whole words."""
    if titles is not None:
        given = [titles] if isinstance(titles, str) else list(titles)
        if len(given) != len(keys):
            raise ValueError(f"titles has {len(given)} entries for {len(keys)} scales.")
        return [str(name) for name in given]
    words = [key.split("_") for key in keys]
    start = len(os.path.commonprefix(words))
    end = len(os.path.commonprefix([word[start:][::-1] for word in words]))
    short = ["_".join(word[start : len(word) - end]) for word in words]
    return short if all(short) else keys
