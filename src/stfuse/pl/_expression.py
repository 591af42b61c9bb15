"""Draw predicted beside true expression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from scipy.sparse import issparse

from stfuse import _keys, _read
from stfuse._check import check_number, check_text, did_you_mean
from stfuse._log import logger
from stfuse.metrics._expression import gene_pearson, holds_counts
from stfuse.pl._color import Color, number_scale
from stfuse.pl._layout import (
    TITLE_SIZE,
    Block,
    check_drawing,
    draw_legend,
    draw_title,
    legend_width,
    place,
    save_figure,
)
from stfuse.pl._spatial import NARROW, chosen_sections, draw_circles
from stfuse.pl._tissue import Section, draw_section, read_tissue, windows

NAME = 0.24  # inches for the name of a row
LOG = "log1p"
FEW = 3  # genes of one section
TALL, SMALLEST = 11, 0.6  # inches of all rows, above which panels shrink, to this share of their width at most


class Pair(NamedTuple):
    """One gene: what was measured and what was predicted, each with its colour scale and the unit, where it is known."""

    gene: str
    values: tuple[Color, Color]
    scales: tuple[ScalarMappable, ScalarMappable]
    units: tuple[str | None, str | None]


def expression(
    query: Any,
    genes: str | Sequence[str],
    *,
    truth_layer: str | None = None,
    predicted_layer: str = "predicted",
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    scale: Literal["shared", "free"] = "shared",
    img: bool = True,
    img_key: str | None = None,
    alpha_img: float = 1.0,
    size: float = 1.0,
    alpha: float = 1.0,
    cmap: str = "viridis",
    vmin: float | str | None = None,
    vmax: float | str | None = None,
    ncols: int = 4,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    save: str | Path | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
) -> list[Axes]:
    """Draw true and predicted expression on the tissue, and write how well they correlate.

    One section: truth on the left and prediction on the right, a row for each gene or, of more than three, two genes in a row. Several
    sections stand side by side, with two rows for each gene, truth above prediction. The title of each prediction is its gene's Pearson correlation over the
    observations drawn in that section, not defined where the truth is constant.

    Counts (whole numbers, none negative) are drawn as log1p of 10,000 an observation, whichever of the two holds them, and the colour
    bar says `log1p`; everything else is drawn as it is.

    Parameters
    ----------
    query
        AnnData, MuData or SpatialData with both.
    genes
        Gene or genes to draw.
    truth_layer
        Layer with the true expression. None: `X`.
    predicted_layer
        Layer with the predicted expression.
    library_key
        Column of `obs` with the section. None: the column whose values are the sections of `uns["spatial"]`, where it
        has several; else all are one section.
    library_id
        Sections to draw. None: all.
    scale
        `"shared"`: truth and prediction of a gene have one colour scale, so that colours can be compared; predictions vary less than the truth
        and look paler. `"free"`: each has its own, which compares patterns.
    img
        Whether to draw the image below.
    img_key
        Which image. None = hires, else lowres.
    alpha_img
        Opacity of the image; less makes the spots stand out.
    size
        Diameter of the circles relative to a spot's.
    alpha
        Opacity of the circles.
    cmap
        Colour map.
    vmin, vmax
        Ends of the colour scales: numbers, or percentiles such as `"p99"`. None: smallest and largest value in the
        sections drawn.
    ncols
        Panels in a row.
    legend
        Whether to draw colour bars.
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
        For each gene the truth in all sections, then the prediction in all sections.

    Raises
    ------
    KeyError
        If a gene, a layer, the coordinates or a section is not there.
    ValueError
        If a gene has no predicted value, `scale` is unknown, or a number is out of range.
    TypeError
        If an argument is of the wrong type.
    FileNotFoundError
        If there is no folder to save the figure in.

    Warns
    -----
    UserWarning
        If what counts as one section has observations in the same place (a forgotten `library_key`).

    See Also
    --------
    stfuse.metrics.gene_pearson : the correlation of all genes

    Examples
    --------
    >>> import numpy as np, stfuse
    >>> adata = stfuse.datasets.mob()
    >>> adata.layers["predicted"] = np.log1p(adata.X.toarray() + 1.0)
    >>> panels = stfuse.pl.expression(adata, ["Penk", "Doc2g"], library_key="section")
    >>> len(panels)
    16
    """
    check_text("predicted_layer", predicted_layer)
    check_text("truth_layer", truth_layer, optional=True)
    check_text("img_key", img_key, optional=True)
    if scale not in ("shared", "free"):
        raise ValueError(f'scale must be "shared" or "free", got {scale!r}.')
    check_number("size", size, above=0)
    check_drawing(size, {"alpha": alpha, "alpha_img": alpha_img}, ncols, {"img": img, "legend": legend}, figsize, save)
    names = [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise ValueError("genes is an empty list: name at least one gene.")
    sections = chosen_sections(
        read_tissue(query, library_key, spatial_key, table_key, (img_key or True) if img else False, crop=True),
        library_id,
    )
    holder = _holder(query, predicted_layer, table_key)
    (truth, true_unit), (predicted, unit) = (
        _columns(query, holder, names, layer, table_key) for layer in (truth_layer, predicted_layer)
    )
    shown = np.concatenate([s.rows for s in sections])
    _check_predicted(predicted[shown], names, predicted_layer)
    units = (true_unit, unit)
    pairs = [
        _pair(name, (truth[:, i], predicted[:, i]), units, shown, scale, cmap, vmin, vmax)
        for i, name in enumerate(names)
    ]
    correlations = np.array([gene_pearson(truth[s.rows], predicted[s.rows]) for s in sections])

    figure = _Figure(sections, pairs, correlations, ncols, scale == "shared", legend)
    axes = figure.draw(figsize, alpha_img, {"size": size, "alpha": alpha})
    if save is not None:
        save_figure(axes[0], save)
    return axes


# values


def _holder(query: Any, predicted_layer: str, table_key: str | None) -> AnnData:
    """Find the table with the prediction: the object itself, or a modality of it."""
    box: Any = _read.container(query, table_key)
    parts = list(box.mod.values()) if _read.is_mudata(box) else [box]
    holders = [part for part in parts if predicted_layer in part.layers]
    if len(holders) == 1:
        return holders[0]
    if holders:
        raise KeyError(f"{len(holders)} modalities have a layer {predicted_layer!r}: pass the one you want.")
    raise KeyError(_no_layer(predicted_layer, [name for part in parts for name in part.layers]))


def _no_layer(layer: str, there: Sequence[Any]) -> str:
    named = [name for name in there if name is not None]  # None stands for X
    return (
        f"No layer {layer!r}.{did_you_mean(layer, named)} There is {_read.listing(named)}. Predictions are written by "
        "stfuse.tl.predict_expression(query, reference); without genes of the query's own, draw what that returns by stfuse.pl.spatial."
    )


def _columns(
    query: Any, holder: AnnData, names: list[str], layer: str | None, table_key: str | None
) -> tuple[np.ndarray, str | None]:
    """Read genes of a layer as n x genes, NaN where the modality lacks an observation; counts log-normalised, which the unit says."""
    _read.check_genes(holder.var_names, "the data")
    columns = holder.var_names.get_indexer(names)
    if (columns < 0).any():
        missing = [name for name, column in zip(names, columns, strict=True) if column < 0]
        hint = did_you_mean(missing[0], holder.var_names)
        raise KeyError(f"No gene {', '.join(map(repr, missing))} in var_names.{hint}")
    if layer is not None and layer not in holder.layers:
        raise KeyError(_no_layer(layer, list(holder.layers)))
    matrix: Any = holder.X if layer is None else holder.layers[layer]
    if matrix is None:
        raise KeyError("X is empty: name the layer with the true expression with truth_layer=.")
    # a backed matrix is read here, one of Dask computed
    for load in ("to_memory", "compute"):
        matrix = getattr(matrix, load)() if hasattr(matrix, load) else matrix
    matrix = matrix if issparse(matrix) else np.asarray(matrix)
    values = matrix[:, columns]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float64)
    # a part tells most matrices apart, before all of a large one is read
    unit = LOG if holds_counts(values) and holds_counts(matrix) else None
    if unit is not None:
        where = "X" if layer is None else f"layers[{layer!r}]"
        logger.info("%s holds counts: log1p of 10,000 an observation is drawn", where)
        total = np.asarray(matrix.sum(axis=1), dtype=np.float64).reshape(-1, 1)
        values = np.log1p(values * np.divide(1e4, total, out=np.full_like(total, np.nan), where=total > 0))
    box = _read.container(query, table_key)
    if not _read.is_mudata(box):
        return values, unit
    name = next(name for name, part in box.mod.items() if part is holder)
    return _read.spread(box, name, values), unit


def _check_predicted(predicted: np.ndarray, names: list[str], layer: str) -> None:
    empty = [name for name, values in zip(names, predicted.T, strict=True) if not np.isfinite(values).any()]
    if empty:
        raise ValueError(
            f"layers[{layer!r}] has no value for {', '.join(map(repr, empty))} in what is drawn: was the gene in the "
            "reference, and had the observations an image?"
        )


def _pair(
    gene: str,
    both: tuple[np.ndarray, np.ndarray],
    units: tuple[str | None, str | None],
    shown: np.ndarray,
    scale: str,
    cmap: str,
    vmin: float | str | None,
    vmax: float | str | None,
) -> Pair:
    values = Color(gene, both[0], {}), Color(gene, both[1], {})
    if scale == "free":
        made = [number_scale(color, shown, cmap, vmin, vmax) for color in values]
    else:
        joined = Color(gene, np.concatenate([part[shown] for part in both]), {})
        made = [number_scale(joined, np.arange(len(joined.values)), cmap, vmin, vmax)] * 2
    first, second = (mappable for mappable in made if mappable is not None)
    return Pair(gene, values, (first, second), units)


# panels


class _Figure:
    """Rows of panels: sections on lines of at most ``ncols``, and below each line of truth its prediction."""

    def __init__(
        self,
        sections: list[Section],
        pairs: list[Pair],
        correlations: np.ndarray,
        ncols: int,
        shared: bool,
        legend: bool,
    ) -> None:
        self.sections, self.pairs, self.correlations = sections, pairs, correlations
        self.alone = len(sections) == 1
        self.lines = [range(start, min(start + ncols, len(sections))) for start in range(0, len(sections), ncols)]
        self.ncols = ncols
        if self.alone:
            # truth and prediction stay beside each other; a few genes stand below each other
            self.ncols = max(ncols - ncols % 2, 2) if len(pairs) > FEW else 2
        # truth and prediction on one scale need one bar
        self.bars = (legend and not (shared and self.alone), legend and (self.alone or not shared))

    def draw(self, figsize: Any, alpha_img: float, style: dict[str, float]) -> list[Axes]:
        """Draw all; the axes of each gene's truth come before those of its prediction."""
        frames, ratio = windows(self.sections)
        n_rows = -(-2 * len(self.pairs) // self.ncols) if self.alone else 2 * len(self.pairs) * len(self.lines)
        width = NARROW * min(1, max(SMALLEST, TALL / (n_rows * NARROW * ratio)))
        height = width * ratio
        rows = [(number, line, kind) for number in range(len(self.pairs)) for line in self.lines for kind in (0, 1)]
        blocks = [Block(len(line), self._room(number, kind, height)) for number, line, kind in rows]
        groups = place(blocks, (width, height), self.ncols, figsize, names=0.0 if self.alone else NAME)
        ordered: dict[tuple[int, int], list[Axes]] = {}
        for (number, line, kind), panels in zip(rows, groups, strict=True):
            pair = self.pairs[number]
            for i, panel in zip(line, panels, strict=True):
                draw_section(panel, self.sections[i], frames[i], alpha_img)
                draw_circles(panel, self.sections[i], pair.values[kind], pair.scales[kind], **style)
                draw_title(panel, self._title(number, i, kind))
            if not self.alone:
                panels[0].set_ylabel("predicted" if kind else pair.gene, fontsize=TITLE_SIZE, labelpad=3)
                panels[0].yaxis.label.set_fontweight("normal" if kind else "bold")
            if self.bars[kind]:
                draw_legend(panels[-1], pair.values[kind], height, pair.scales[kind], self._unit(pair, kind))
            ordered.setdefault((number, kind), []).extend(panels)
        return [panel for panels in ordered.values() for panel in panels]

    def _unit(self, pair: Pair, kind: int) -> str | None:
        """What the bar of a panel says above it: one bar for truth and prediction only if both are in that unit."""
        first, second = pair.units
        return pair.units[kind] if self.bars[1 - kind] else first if first == second else None

    def _room(self, number: int, kind: int, height: float) -> float:
        pair = self.pairs[number]
        return legend_width(pair.values[kind], height, None, pair.scales[kind]) if self.bars[kind] else 0.0

    def _title(self, number: int, section: int, kind: int) -> str:
        if not kind:
            return self.pairs[number].gene if self.alone else self.sections[section].name
        r = self.correlations[section, number]
        words = "r not defined" if np.isnan(r) else f"r = {r:.2f}"
        return f"predicted, {words}" if self.alone else words
