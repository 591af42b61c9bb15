"""Place panels and their legends, in inches, so that nothing overlaps and nothing is squeezed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.cm import ScalarMappable
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from stfuse._check import check_flag, check_number
from stfuse.pl._color import MISSING, Color, n_missing

TITLE, GAP, MARGIN = 0.34, 0.14, 0.12
TEXT, TITLE_SIZE = 9, 10.5
ROW = 0.215  # one line of a legend
BAR = 0.85  # a colour bar with its numbers


class Block(NamedTuple):
    """Panels that share one legend."""

    n_panels: int
    legend: float


def text_width(text: str, size: float = TEXT) -> float:
    """Width of a text in inches."""
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72 if text.strip() else 0.0


def draw_title(ax: Axes, text: str) -> None:
    """Put a title above a panel; one wider than the panel is set smaller, and then loses its middle."""
    width = float(ax.get_window_extent().width / ax.figure.dpi)
    size = min(TITLE_SIZE, max(TEXT - 1.5, TITLE_SIZE * width / max(text_width(text, TITLE_SIZE), 1e-6)))
    shown, keep = text, len(text)
    # names of sections differ at their ends
    while text_width(shown, size) > width and keep > 4:
        keep -= 1
        shown = f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
    ax.set_title(shown, fontsize=size, pad=5)


def legend_names(color: Color) -> list[str]:
    """Categories that occur, in their order, and "missing" where a label is."""
    values: Any = color.values
    used = np.unique(values.codes)
    names = [str(values.categories[code]) for code in used if code >= 0]
    return [*names, "missing"] if used[0] < 0 else names


def legend_columns(n: int, height: float) -> int:
    """Columns that a legend of ``n`` names needs beside a panel of this height."""
    return math.ceil(n / max(1, int((height - ROW) / ROW)))


def legend_width(color: Color, height: float, title: str | None, mappable: ScalarMappable | None = None) -> float:
    """Inches that the legend takes."""
    if not color.categorical:
        return max(BAR, text_width("missing") + 0.5) if n_missing(mappable) else BAR
    names = legend_names(color)
    columns = legend_columns(len(names), height)
    width = columns * (max(map(text_width, names), default=0) + 0.38)
    return max(width, text_width(title or "") + 0.1) + 0.12


def place(
    blocks: Sequence[Block],
    panel: tuple[float, float],
    ncols: int,
    figsize: Any,
    labels: float = 0.0,
    names: float = 0.0,
) -> list[list[Axes]]:
    """Make a figure with the axes of each block.

    Blocks of one panel stand side by side, others below each other. ``panel`` is width and height of each,
    ``labels`` the room that the names of its axes take, ``names`` that of the name of a row, on the left of a block.
    """
    width, height = panel
    single = all(b.n_panels == 1 for b in blocks)
    per_line = min(ncols, len(blocks)) if single else 1
    inside = 1 if single else min(ncols, max(b.n_panels for b in blocks))
    rows = 1 if single else math.ceil(max(b.n_panels for b in blocks) / inside)
    # legends that stand below each other are as wide as the widest
    legends = [max(b.legend for b in blocks[i::per_line]) for i in range(per_line)]
    cells = [names + inside * (labels + width) + (inside - 1) * GAP + legend for legend in legends]
    starts = MARGIN + np.concatenate([[0], np.cumsum(np.array(cells) + GAP)])
    line_height = rows * (TITLE + height + labels) + (rows - 1) * GAP
    n_lines = math.ceil(len(blocks) / per_line)
    total = (starts[-1] - GAP + MARGIN, MARGIN + n_lines * line_height + (n_lines - 1) * GAP)
    figure = plt.figure(figsize=figsize or total)
    axes = []
    for i, block in enumerate(blocks):
        line, cell = divmod(i, per_line)
        top = total[1] - line * (line_height + GAP)
        made = []
        for row, column in (divmod(k, inside) for k in range(block.n_panels)):
            x = starts[cell] + names + labels + column * (labels + width + GAP)
            y = top - row * (TITLE + height + labels + GAP) - TITLE - height
            made.append(figure.add_axes((x / total[0], y / total[1], width / total[0], height / total[1])))
        axes.append(made)
    return axes


def height_of(ax: Axes) -> float:
    """Height of axes in inches."""
    return float(ax.get_window_extent().height / ax.figure.dpi)


def check_drawing(
    size: Any, alphas: dict[str, Any], ncols: Any, flags: dict[str, Any], figsize: Any, save: str | Path | None
) -> None:
    """Refuse, before anything is read or drawn, what no figure can have."""
    check_number("size", size, above=0, optional=True)
    for name, alpha in alphas.items():
        check_number(name, alpha, least=0, most=1)
    check_number("ncols", ncols, least=1, whole=True)
    for name, flag in flags.items():
        check_flag(name, flag)
    if figsize is not None:
        if isinstance(figsize, str) or not hasattr(figsize, "__len__") or len(figsize) != 2:
            raise TypeError(f"figsize must be (width, height) in inches, got {figsize!r}.")
        for length in figsize:
            check_number("figsize", length, above=0)
    check_save(save)


def check_save(path: str | Path | None) -> None:
    """Refuse, before anything is drawn, a file that can't be written."""
    if path is None:
        return
    if not isinstance(path, str | PathLike):
        raise TypeError(f"save must be a path or None, got {path!r}.")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save={str(path)!r}: there is no folder {str(path.parent)!r}. Make it first.")
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in kinds:
        raise ValueError(f"save={str(path)!r}: figures are saved as {', '.join(sorted(kinds))}.")


def save_figure(ax: Axes, path: str | Path) -> None:
    """Save the figure that the axes lie in, with everything that stands around them."""
    figure: Any = ax.figure
    figure.figure.savefig(path, dpi=200, bbox_inches="tight")  # of a part of a figure: all of it


def draw_legend(ax: Axes, color: Color, height: float, mappable: ScalarMappable | None, title: str | None) -> None:
    """Put the legend or the colour bar to the right of a panel."""
    where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    if mappable is None:
        names = legend_names(color)
    else:
        missing = n_missing(mappable)
        if missing < np.ma.asarray(mappable.get_array()).size:
            _draw_bar(ax, height, mappable, title)
            title = None
        if not missing:
            return
        names, where = ["missing"], {"loc": "lower left", "bbox_to_anchor": (1.0, -0.02)}
    tint = {**color.colors, "missing": color.colors.get("missing", MISSING)}
    handles = [Line2D([], [], marker="o", ls="", ms=6.5, mec="none", color=tint[name], label=name) for name in names]
    ax.legend(
        handles=handles,
        ncols=legend_columns(len(names), height),
        frameon=False,
        fontsize=TEXT,
        title=title,
        title_fontsize=TEXT,
        alignment="left",
        handletextpad=0.3,
        columnspacing=0.8,
        labelspacing=0.45,
        borderaxespad=0.3,
        **where,
    )


def _draw_bar(ax: Axes, height: float, mappable: ScalarMappable, title: str | None) -> None:
    inset = ax.inset_axes((1.04, 0.14, min(0.045, 0.14 / height), 0.72))
    bar: Any = ax.figure.colorbar(mappable, cax=inset)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TEXT - 1, length=2)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    if title:
        bar.ax.set_title(title, fontsize=TEXT, loc="left", pad=6)
