"""Draw where niches lie, and beside it what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from stfuse import _keys, _read
from stfuse._check import check_number, check_text
from stfuse.pl._color import MISSING, Color, Palette, keep_colors, named_colors, read_groups
from stfuse.pl._layout import (
    GAP,
    ROW,
    TEXT,
    TITLE,
    TITLE_SIZE,
    Block,
    check_drawing,
    draw_title,
    legend_columns,
    legend_names,
    place,
    save_figure,
    text_width,
)
from stfuse.pl._pathway_matrix import INK, PAPER, shorten, width_of
from stfuse.pl._spatial import NARROW, WIDE, chosen_sections, draw_circles
from stfuse.pl._tissue import Section, draw_section, read_tissue, windows
from stfuse.tl._niche_tables import Niches, read_niches

# Soft colours, so that no type is taken for a domain: ColorBrewer's Set3 without its grey and its palest, and its Pastel1.
SOFT = (
    *("#8dd3c7", "#fdb462", "#bebada", "#fb8072", "#80b1d3", "#b3de69", "#fccde5", "#bc80bd", "#ccebc5", "#ffed6f"),
    *("#decbe4", "#e5d8bd", "#b3cde3", "#fed9a6"),
)
OTHER = "#eceff1"
ROW_HEIGHT = 0.21, 0.36  # smallest and largest row of bars in inches
BARS, AXIS = 3.1, 0.42  # inches: width of the bars, and what their axis takes below
NAME = 30  # characters of a name
SMALL = 7  # points of a name in a bar
TALLEST = 17  # lines of a legend for which the map is made higher
DOT = 0.2  # inches before a bar, for the colour of its domain


class _Bars(NamedTuple):
    """Rows of bars, types that have a colour of their own, and the inches that all of it takes to the right of the map."""

    rows: list[str]
    shares: pd.DataFrame
    counts: pd.Series
    colors: dict[str, str]
    before: float
    after: float


def niche_map(
    cells: Any,
    groupby: str | None = None,
    key: str = "niches",
    *,
    n_types: int = 14,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = False,
    alpha_img: float = 0.5,
    size: float = 1.0,
    alpha: float = 1.0,
    palette: Palette = None,
    type_palette: Palette = None,
    ncols: int = 2,
    figsize: tuple[float, float] | None = None,
    save: str | Path | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
) -> list[Axes]:
    """Draw domains on the tissue, and beside the map the cell types that each is made of.

    The bars are the legend of the map: the colour of a domain stands beside its name.

    Parameters
    ----------
    cells
        AnnData, MuData or SpatialData with the tables of :func:`stfuse.tl.niches` and with coordinates.
    groupby
        Column of `obs` with the domains, the one that the tables are of. None: that one.
    key
        Key of the tables in `uns`.
    n_types
        Cell types with a colour of their own: those that make up most of a domain on average. The others are drawn together.
    library_key
        Column of `obs` with the section. None: the column whose values are the sections of `uns["spatial"]`, where it has several;
        else all are one section.
    library_id
        Sections to draw. None: all. The bars are of all sections together.
    img
        Whether to draw the image below.
    alpha_img
        Opacity of the image.
    size
        Diameter of the circles relative to a spot's, or else to the distance between neighbours.
    alpha
        Opacity of the circles.
    palette
        Colours of the domains, as in :func:`stfuse.pl.spatial`, which are kept in `uns["<groupby>_colors"]`.
    type_palette
        Colours of the cell types. None: `uns["<cell_type_key>_colors"]` where it is there, else soft ones.
    ncols
        Sections in a row.
    figsize
        Size of the figure in inches. None: what is drawn needs.
    save
        File to save the figure to.
    spatial_key
        Key of the coordinates in `obsm`.
    table_key
        Which table of a SpatialData.

    Returns
    -------
    list of matplotlib.axes.Axes
        The axes of each section, and last those of the bars.

    Raises
    ------
    KeyError
        If there are no niches under the key, or none of `groupby`, or if the coordinates or a section are not there.
    ValueError
        If a palette is too short, or if a number is out of range.
    TypeError
        If an argument is of the wrong type.
    FileNotFoundError
        If there is no folder to save the figure in.

    Warns
    -----
    UserWarning
        If what counts as one section has cells in the same place (a forgotten `library_key`).

    See Also
    --------
    stfuse.pl.composition : all types, and which are enriched

    Examples
    --------
    >>> import stfuse
    >>> cells = stfuse.datasets.synthetic_tissue(600, n_sections=2)
    >>> stfuse.tl.niches(cells, "domain", cell_type_key="class_rna", library_key="section", genes=False)
    >>> *panels, bars = stfuse.pl.niche_map(cells, library_key="section")
    >>> len(panels)
    2
    """
    check_text("groupby", groupby, optional=True)
    check_text("key", key)
    check_number("n_types", n_types, least=1, whole=True)
    check_number("size", size, above=0)
    check_drawing(size, {"alpha": alpha, "alpha_img": alpha_img}, ncols, {"img": img}, figsize, save)
    niches = read_niches(cells, key, table_key)
    if groupby is not None and groupby != niches.groupby:
        raise KeyError(
            f"uns[{key!r}] has niches of obs[{niches.groupby!r}], not of {groupby!r}: call stfuse.tl.niches(data, {groupby!r}, "
            f"cell_type_key={niches.cell_type_key!r}, key_added=...) and name its key."
        )
    color = read_groups(cells, niches.groupby, palette=palette, table_key=table_key)
    sections = chosen_sections(read_tissue(cells, library_key, spatial_key, table_key, img, crop=True), library_id)
    bars = _read_bars(cells, niches, color, n_types, type_palette, table_key)

    panels, beside, height = _axes(sections, bars, ncols, figsize)
    frames, _ = windows(sections)
    for section, frame, panel in zip(sections, frames, panels, strict=True):
        draw_section(panel, section, frame, alpha_img)
        draw_circles(panel, section, color, None, size=size, alpha=alpha)
        draw_title(panel, section.name if len(sections) > 1 else color.name)
    _draw_bars(beside, bars, color)
    _draw_types(beside, bars, niches.cell_type_key, height)
    keep_colors(cells, [color], table_key)
    if save is not None:
        save_figure(beside, save)
    return [*panels, beside]


def _read_bars(
    cells: Any, niches: Niches, color: Color, n_types: int, palette: Palette, table_key: str | None
) -> _Bars:
    rows = legend_names(color)
    table = niches.composition
    counts = niches.n_cells.sum(axis=1)
    largest = table.mean().sort_values(ascending=False, kind="stable").index[:n_types]
    total = table[largest].mul(counts, axis=0).sum().sort_values(ascending=False, kind="stable")
    shares = table[total.index].copy()
    colors = _type_colors(cells, niches.cell_type_key, list(shares.columns), palette, table_key)
    if table.shape[1] > shares.shape[1]:
        rest = table.shape[1] - shares.shape[1]
        other = f"{rest} other{'s' if rest > 1 else ''}"
        shares[other] = 1 - shares.sum(axis=1)
        colors[other] = OTHER
    before = max(text_width(shorten(name, NAME)) for name in rows) + DOT + 0.3
    after = max(text_width(f"{count:,}", TEXT - 1) for count in counts) + 0.15
    return _Bars(rows, shares, counts, colors, before, after)


def _type_colors(cells: Any, key: str, shown: list[str], palette: Palette, table_key: str | None) -> dict[str, str]:
    """Use the palette given or the colours kept in ``uns``, else soft ones."""
    if palette is None and f"{key}_colors" not in _read.container(cells, table_key).uns:
        colors = named_colors(shown, SOFT if len(shown) <= len(SOFT) else None)
    else:
        colors = read_groups(cells, key, palette=palette, table_key=table_key).colors
    return {name: colors[name] for name in shown}


def _axes(sections: list[Section], bars: _Bars, ncols: int, figsize: Any) -> tuple[list[Axes], Axes, float]:
    """Place the sections, and the bars to their right; return both, and the inches from the top of the bars to the end."""
    _, ratio = windows(sections)
    columns = min(ncols, len(sections))
    lines = -(-len(sections) // columns)
    width = WIDE if len(sections) == 1 else NARROW
    least = max(AXIS + ROW_HEIGHT[0] * len(bars.rows), ROW * min(len(bars.colors) + 1.1, TALLEST))
    height = max(width * ratio, (least - (lines - 1) * TITLE) / lines)
    whole = lines * height + (lines - 1) * (TITLE + GAP)
    room = bars.before + BARS + bars.after + _legend_width(bars, whole)
    panels = place([Block(len(sections), room)], (width, height), columns, figsize)[0]
    # whatever size the figure has, the bars take their part of it
    figure: Any = panels[0].figure
    first, corner = panels[0].get_position(original=True), panels[columns - 1].get_position(original=True)
    wide, high = first.width / width, first.height / height
    tall = min(whole - AXIS, ROW_HEIGHT[1] * len(bars.rows))
    where = (corner.x1 + bars.before * wide, corner.y1 - tall * high, BARS * wide, tall * high)
    return panels, figure.add_axes(where), whole


def _legend_width(bars: _Bars, height: float) -> float:
    widest = max(text_width(shorten(name, NAME)) for name in bars.colors)
    return legend_columns(len(bars.colors), height) * (widest + 0.5) + 0.1


def _draw_bars(ax: Axes, bars: _Bars, color: Color) -> None:
    """Draw a stacked bar for each domain on the map, with its colour before it and its cells behind."""
    place_of = {name: row for row, name in enumerate(bars.rows)}
    made = bars.shares.reindex([name for name in bars.rows if name in bars.shares.index])
    rows = np.array([place_of[name] for name in made.index])
    left = np.zeros(len(made))
    for name in made.columns:
        ax.barh(rows, made[name], left=left, height=0.74, color=bars.colors[name], edgecolor="white", linewidth=0.5)
        _name_segments(ax, name, rows, left, made[name].to_numpy(), bars.colors[name])
        left += made[name].to_numpy()
    ax.set(xlim=(0, 1), ylim=(len(bars.rows) - 0.5, -0.5))
    ax.set_yticks(range(len(bars.rows)), [shorten(name, NAME) for name in bars.rows], fontsize=TEXT)
    ax.set_xticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100 %"], fontsize=TEXT - 1)
    ax.tick_params(axis="y", length=0, pad=72 * DOT + 2)
    ax.tick_params(axis="x", length=2)
    ax.spines[["left", "right", "top"]].set_visible(False)
    width = width_of(ax)
    tint = [color.colors.get(name, MISSING) for name in bars.rows]
    ax.scatter(np.full(len(tint), -0.6 * DOT / width), range(len(tint)), s=58, c=tint, clip_on=False)
    for name, row in place_of.items():
        known = name in made.index
        text, x = (f"{bars.counts[name]:,}", 1.0) if known else ("no cell types", 0.0)
        ax.annotate(
            text, (x, row), (4, 0), textcoords="offset points", va="center_baseline", fontsize=TEXT - 1, color=INK
        )
    ax.set_title("cell types and cells of each domain", fontsize=TITLE_SIZE, pad=5, loc="left")


def _name_segments(ax: Axes, name: str, rows: np.ndarray, left: np.ndarray, share: np.ndarray, color: str) -> None:
    """Write the name of a type into the segments that have room for it."""
    ink = INK if np.dot(to_rgb(color), [0.299, 0.587, 0.114]) > 0.5 else PAPER
    for row in np.flatnonzero(share * width_of(ax) > text_width(name, SMALL) + 0.06):
        middle = left[row] + share[row] / 2
        ax.text(middle, rows[row], name, ha="center", va="center_baseline", fontsize=SMALL, color=ink)


def _draw_types(ax: Axes, bars: _Bars, title: str, height: float) -> None:
    """Put the legend of the cell types behind the bars."""
    handles = [Patch(color=tint, label=shorten(name, NAME)) for name, tint in bars.colors.items()]
    ax.legend(
        handles=handles,
        ncols=legend_columns(len(handles), height),
        loc="upper left",
        bbox_to_anchor=(1 + bars.after / width_of(ax), 1.0),
        frameon=False,
        fontsize=TEXT,
        title=shorten(title, NAME),
        title_fontsize=TEXT,
        alignment="left",
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=0.8,
        labelspacing=0.45,
        borderaxespad=0.0,
    )
