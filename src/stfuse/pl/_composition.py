"""Draw what domains are made of: a heat map of domains by cell types."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter

from stfuse._check import check_number, check_text
from stfuse.pl._layout import TEXT, TITLE, check_drawing, save_figure, text_width
from stfuse.pl._pathway_matrix import Matrix, draw_key, draw_marks, matrix_axes, order_alike, shorten, width_of
from stfuse.pl._pathways import check_map
from stfuse.tl._niche_tables import Niches, read_niches

CELL = (0.26, 0.5), (0.25, 0.36)  # smallest and largest width and height of a cell in inches
ROOM = 4.6, 2.4  # width and height of a matrix whose cells have neither
ROW_NAME, COLUMN_NAME = 32, 30  # characters
BARS, BAR_GAP, ABOVE = 0.55, 0.08, 0.24  # inches: the longest bar, before the bars, and their heading
HALF = 0.5  # largest end of a scale of fractions that is chosen
COUNT = "#8d99a6"
LABELS = {"fraction": "cells of the domain", "enrichment": "log2 fold over chance"}


class _Names(NamedTuple):
    """Names of rows and columns as they are drawn, and the room that they take."""

    rows: list[str]
    columns: list[str]
    tilted: bool
    left: float
    above: float
    below: float


def composition(
    cells: Any,
    key: str = "niches",
    *,
    values: Literal["fraction", "enrichment"] = "fraction",
    max_padj: float = 0.05,
    min_fold: float = 1.0,
    cluster: bool = True,
    cmap: str | None = None,
    vmax: float | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    table_key: str | None = None,
) -> Axes:
    """Draw what each domain is made of: a row for each domain, a column for each cell type, and how many cells there are.

    A dot marks a type that is enriched in a domain.

    Parameters
    ----------
    cells
        AnnData, MuData or SpatialData with the tables of :func:`stfuse.tl.niches`.
    key
        Key of these in `uns`.
    values
        `"fraction"`: of the cells of a domain, those of a type. `"enrichment"`: log2 of the count over the one expected by chance.
    max_padj
        Largest adjusted p-value that is marked.
    min_fold
        Smallest log2 fold that is marked; 1 = twice as many cells as expected.
    cluster
        Whether domains that are made alike stand together, and types in the order of the domains that have most of them. False: the
        order of the columns of `obs`.
    cmap
        Colour map. None: one that runs one way for fractions, one that diverges for folds.
    vmax
        End of the colour scale; that of folds begins at `-vmax`. None: the largest fraction, but at most one half, so that one large
        one doesn't make the others fade; the largest fold, but at least 1.
    figsize
        Size of the figure in inches. None: what is drawn needs.
    ax
        Axes to draw the matrix into; the bars and the key stand to the right of them.
    save
        File to save the figure to.
    table_key
        Which table of a SpatialData.

    Returns
    -------
    matplotlib.axes.Axes
        The axes of the matrix. Names that are very long lose their middle.

    Raises
    ------
    KeyError
        If there are no niches under the key.
    ValueError
        If `values` or `cmap` is unknown, or if a number is out of range.
    TypeError
        If an argument is of the wrong type.
    FileNotFoundError
        If there is no folder to save the figure in.

    See Also
    --------
    stfuse.pl.niche_map : the same beside the domains on the tissue

    Examples
    --------
    >>> import stfuse
    >>> cells = stfuse.datasets.synthetic_tissue(600)
    >>> stfuse.tl.niches(cells, "domain", cell_type_key="class_rna", genes=False)
    >>> matrix = stfuse.pl.composition(cells)
    >>> matrix.get_xlabel(), matrix.get_ylabel()
    ('class_rna', 'domain')
    """
    if values not in LABELS:
        raise ValueError(f"values must be 'fraction' or 'enrichment', got {values!r}.")
    check_text("key", key)
    check_number("max_padj", max_padj, least=0, most=1)
    check_number("min_fold", min_fold)
    check_number("vmax", vmax, above=0, optional=True)
    check_drawing(None, {}, 1, {"cluster": cluster}, figsize, save)
    cmap = ("YlGnBu" if values == "fraction" else "RdBu_r") if cmap is None else cmap
    check_map(cmap)
    niches = read_niches(cells, key, table_key)
    if cluster:
        niches = arranged(niches)
    marked = (niches.padj.to_numpy() < max_padj) & (niches.enrichment.to_numpy() > min_fold)
    times = f"{2**min_fold:.3g}"
    matrix = Matrix(
        niches.composition if values == "fraction" else niches.enrichment,
        ranked=marked,
        sure=marked,
        keys={f"more than {times} times\nthe number expected,\npadj < {max_padj:g}": True},
    )
    ax = _draw(matrix, niches, _scale(matrix.mean, values, cmap, vmax), LABELS[values], figsize, ax)
    if save is not None:
        save_figure(ax, save)
    return ax


def arranged(niches: Niches) -> Niches:
    """Put domains that are made alike together, and types in the order of the domains that they are most enriched in."""
    rows = order_alike(niches.composition.to_numpy()) if len(niches.composition) > 2 else np.arange(2)
    fold = niches.enrichment.to_numpy()[rows]
    columns = np.lexsort((-fold.max(axis=0), fold.argmax(axis=0)))
    tables = {name: getattr(niches, name).iloc[rows, columns] for name in ("composition", "enrichment", "padj")}
    return niches._replace(**tables, n_cells=niches.n_cells.iloc[rows])


def _scale(table: pd.DataFrame, values: str, cmap: str, vmax: float | None) -> ScalarMappable:
    found = table.to_numpy()
    if values == "fraction":
        return ScalarMappable(Normalize(0, min(float(found.max()), HALF) if vmax is None else vmax), colormaps[cmap])
    limit = max(1.0, float(found.max())) if vmax is None else vmax
    return ScalarMappable(Normalize(-limit, limit), colormaps[cmap])


def _draw(
    matrix: Matrix,
    niches: Niches,
    scale: ScalarMappable,
    label: str,
    figsize: tuple[float, float] | None,
    ax: Axes | None,
) -> Axes:
    """Draw into the axes given, or into a figure that has the room that the names, the bars and the key need."""
    n_rows, n_columns = matrix.mean.shape
    width, height = (
        n * float(np.clip(room / n, *ends)) for n, room, ends in zip((n_columns, n_rows), ROOM, CELL, strict=True)
    )
    names = _names(matrix, niches, width if ax is None else width_of(ax), height)
    counts = niches.n_cells.sum(axis=1).to_numpy()
    side = BAR_GAP + BARS + max(text_width(f"{count:,}", TEXT - 1) for count in counts) + 0.1
    if ax is None:
        ax = matrix_axes((width, height), names.left, names.below, matrix, figsize, above=names.above, side=side)
    norm: Any = scale.norm
    ax.imshow(matrix.mean.to_numpy(), cmap=scale.cmap, norm=norm, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(n_columns), names.columns, fontsize=TEXT)
    ax.set_yticks(range(n_rows), names.rows, fontsize=TEXT)
    if names.tilted:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlabel(niches.cell_type_key, fontsize=TEXT)
    ax.set_ylabel(niches.groupby, fontsize=TEXT)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    draw_marks(ax, matrix, scale)
    _draw_counts(ax, counts, side)
    bar = draw_key(ax, matrix, scale, label, side)
    if label == LABELS["fraction"]:
        bar.formatter = FuncFormatter(lambda value, _: f"{100 * value:g}%")
        bar.update_ticks()
    return ax


def _names(matrix: Matrix, niches: Niches, width: float, height: float) -> _Names:
    rows = [shorten(str(name), ROW_NAME) for name in matrix.mean.index]
    columns = [shorten(str(name), COLUMN_NAME) for name in matrix.mean.columns]
    cell = width / len(columns)
    across = [text_width(name) for name in columns]
    tilted = max(across) > cell - 0.05
    left = max(map(text_width, rows)) + TITLE
    if tilted:  # names reach to the left of their columns
        left = max(left, *(wide * math.sqrt(0.5) - (i + 0.5) * cell for i, wide in enumerate(across)))
    left = max(left, (text_width(niches.cell_type_key) - width) / 2)
    below = TITLE + 0.1 + (max(across) * math.sqrt(0.5) + 0.1 if tilted else 0.1)
    # the name of the column of domains runs upwards, and may be longer than the matrix is high
    over = (text_width(niches.groupby) - height) / 2
    return _Names(rows, columns, tilted, left, max(ABOVE, over), max(below, over))


def _draw_counts(ax: Axes, counts: np.ndarray, side: float) -> None:
    """Draw the number of cells of each row as a bar to the right of it."""
    width = width_of(ax)
    inset = ax.inset_axes((1 + BAR_GAP / width, 0, (side - BAR_GAP) / width, 1))
    rows = np.arange(len(counts))
    inset.barh(rows, counts, height=0.62, color=COUNT)
    # the longest bar leaves room for its number
    inset.set(xlim=(0, counts.max() * (side - BAR_GAP) / BARS), ylim=ax.get_ylim(), xticks=[], yticks=[])
    for row, count in zip(rows, counts, strict=True):
        inset.annotate(
            f"{count:,}", (count, row), (2, 0), textcoords="offset points", va="center_baseline", fontsize=TEXT - 1
        )
    inset.set_title("cells", fontsize=TEXT, loc="left", pad=3)
    inset.set_facecolor("none")
    inset.spines[:].set_visible(False)
