"""A matrix of mean activities, pathways by groups, with marks and a key."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stfuse.pl._layout import MARGIN, TEXT, TITLE, height_of, text_width
from stfuse.tl._rank_pathways import REST, params_key

CELL = 0.235  # height of a row in inches
BAR_WIDTH, BAR_HEIGHT = 0.13, (1.35, 2.2)
LONGEST = 44  # characters of a name
INK, PAPER = "#1d2733", "#ffffff"


class Matrix(NamedTuple):
    """Mean activity, pathways x groups, and where it is marked: ``sure`` cells have a dot, others that are ``ranked`` a cross."""

    mean: pd.DataFrame
    ranked: np.ndarray
    sure: np.ndarray
    keys: dict[str, bool]  # what the marks mean: text and whether it is filled


def order_alike(values: np.ndarray) -> np.ndarray:
    """Order rows so that neighbours are alike."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    return leaves_list(linkage(values, "average", optimal_ordering=True))


def find_ranking(box: Any, rank_key: str, score_key: str, groupby: str) -> pd.DataFrame | None:
    """Find the ranking of these scores and groups; none by another name than the default is an error."""
    table, record = box.uns.get(rank_key), box.uns.get(params_key(rank_key))
    made_of = record.get("params", {}) if isinstance(record, Mapping) else {}
    if isinstance(table, pd.DataFrame) and (made_of.get("score_key"), made_of.get("groupby")) == (score_key, groupby):
        return table
    if rank_key == "rank_pathways":
        return None
    raise KeyError(
        f"uns[{rank_key!r}] is no ranking of obsm[{score_key!r}] by obs[{groupby!r}]: call stfuse.tl.rank_pathways(data, "
        f"{groupby!r}, score_key={score_key!r}, key_added={rank_key!r}), or leave the marks out by rank_key=None."
    )


def marked(mean: pd.DataFrame, table: pd.DataFrame | None, max_padj: float) -> Matrix:
    """Say which cells are marked, and what the marks mean; without a ranking none is."""
    if table is None:
        none = np.zeros(mean.shape, dtype=bool)
        return Matrix(mean, none, none, {})
    several = "n_sections" in table
    significant = table["padj"] < max_padj
    sure = significant & (table["n_sections_agreeing"] == table["n_sections"]) if several else significant
    flags = table.assign(ranked=significant, sure=sure).astype({"pathway": str, "group": str})
    parts = [
        flags.pivot(index="pathway", columns="group", values=name)
        .reindex(index=mean.index, columns=mean.columns)
        .eq(True)
        for name in ("ranked", "sure")
    ]
    reference = str(table["reference"].iloc[0])
    against = "the rest" if reference == REST else shorten(reference, 28)
    first = f"padj < {max_padj:g}\nagainst {against}"
    keys = {f"{first},\nsame sign in every section": True, "sections disagree": False} if several else {first: True}
    return Matrix(mean, parts[0].to_numpy(), parts[1].to_numpy(), keys)


def shorten(text: str, longest: int = LONGEST) -> str:
    """Leave out the middle of a long name: names of pathways differ at both ends."""
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest - longest // 2 - 1) :]}"


def _row_names(names: Sequence[str]) -> list[str]:
    shared = os.path.commonprefix(list(names)) if len(names) > 1 else ""
    start = shared.rfind("_") + 1
    return [shorten(name[start:]) for name in names]


def draw_matrix(
    matrix: Matrix, groupby: str, cmap: str, vmax: float | None, figsize: tuple[float, float] | None, ax: Axes | None
) -> Axes:
    """Draw into the axes given, or into a figure that has the room that the names and the key need."""
    values = matrix.mean.to_numpy()
    n_rows, n_columns = values.shape
    rows, columns = _row_names(list(matrix.mean.index)), [shorten(str(name), 28) for name in matrix.mean.columns]
    across = max(map(text_width, columns))
    cell = float(np.clip(4.2 / n_columns, 0.3, 0.62))
    tilted = across > cell - 0.05
    if ax is None:
        below = TITLE + (across * math.sqrt(0.5) + 0.15 if tilted else 0.15)
        ax = matrix_axes((cell * n_columns, CELL * n_rows), max(map(text_width, rows)) + 0.15, below, matrix, figsize)
    else:
        tilted = across > width_of(ax) / n_columns - 0.05
    limit = limit_of(values) if vmax is None else vmax
    norm = Normalize(-limit, limit)
    scale = ScalarMappable(norm, colormaps[cmap])
    ax.imshow(values, cmap=scale.cmap, norm=norm, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(n_columns), columns, fontsize=TEXT)
    ax.set_yticks(range(n_rows), rows, fontsize=TEXT)
    if tilted:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlabel(groupby, fontsize=TEXT)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    draw_marks(ax, matrix, scale)
    draw_key(ax, matrix, scale, "mean activity (SD)")
    return ax


def limit_of(values: np.ndarray) -> float:
    """End of the scale: the largest mean, unless a small extreme group would make all others fade."""
    largest, usual = (float(np.quantile(np.abs(values), q)) for q in (1.0, 0.9))
    limit = min(largest, 2 * usual) or largest
    return limit if limit > 1e-6 else 1.0  # what is left of rounding is no activity


def beyond(values: np.ndarray, norm: Any) -> str:
    """Name the ends of a colour bar at which means lie off the scale."""
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
        (values.min() < norm.vmin, values.max() > norm.vmax), "neither"
    )


def matrix_axes(
    panel: tuple[float, float],
    left: float,
    below: float,
    matrix: Matrix,
    figsize: Any,
    *,
    above: float = 0.0,
    side: float = 0.0,
) -> Axes:
    """Make a figure that holds the panel, the names at its sides and the key to its right, ``side`` inches from it."""
    width, height = panel
    key = max([0.75, *(text_width(line) + 0.5 for text in matrix.keys for line in text.split("\n"))])
    tall = max(height + below, BAR_HEIGHT[0] + _key_height(matrix))
    total = (MARGIN + left + width + side + 0.18 + key + MARGIN, MARGIN + above + tall + MARGIN)
    figure = plt.figure(figsize=figsize or total)
    return figure.add_axes(
        ((MARGIN + left) / total[0], 1 - (MARGIN + above + height) / total[1], width / total[0], height / total[1])
    )


def _key_height(matrix: Matrix) -> float:
    return 0.17 * sum(text.count("\n") + 1 for text in matrix.keys) + 0.25 if matrix.keys else 0.0


def width_of(ax: Axes) -> float:
    """Width of axes in inches."""
    return float(ax.get_window_extent().width / ax.figure.dpi)


def draw_marks(ax: Axes, matrix: Matrix, scale: ScalarMappable) -> None:
    """Put a dot into the cells of a matrix that stand out, in ink that can be seen on their colour."""
    shade = scale.to_rgba(matrix.mean.to_numpy())[..., :3] @ [0.299, 0.587, 0.114]
    for cells, filled in ((matrix.sure, True), (matrix.ranked & ~matrix.sure, False)):
        if not np.any(cells):
            continue
        y, x = np.nonzero(cells)
        ink = [PAPER if dark else INK for dark in shade[y, x] < 0.5]
        # a cross, as a ring on a dark cell and a light dot look alike
        ax.scatter(x, y, s=13, c=ink, marker="o" if filled else "x", linewidths=0.8)


def draw_key(ax: Axes, matrix: Matrix, scale: ScalarMappable, label: str, side: float = 0.0) -> Any:
    """Put the colour bar to the right, and what the marks mean below it; lengths in inches, whatever the panel."""
    width, height = width_of(ax), height_of(ax)
    bar_height = float(np.clip(0.5 * height, *BAR_HEIGHT))
    inset = ax.inset_axes((1 + (0.18 + side) / width, 1 - bar_height / height, BAR_WIDTH / width, bar_height / height))
    bar: Any = ax.figure.colorbar(scale, cax=inset, extend=beyond(matrix.mean.to_numpy(), scale.norm))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TEXT - 1, length=2)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    bar.set_label(label, fontsize=TEXT)
    if not matrix.keys:
        return bar
    handles = [
        Line2D([], [], marker="o" if filled else "x", ls="", ms=3.6, mew=0.8, color=INK, label=text)
        for text, filled in matrix.keys.items()
    ]
    place = (1 + (0.1 + side) / width, 1 - (bar_height + 0.12) / height)
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=place,
        frameon=False,
        fontsize=TEXT - 0.5,
        handletextpad=0.2,
        borderaxespad=0,
    )
    return bar
