"""All figures of the demo, one PNG each, and those that are charts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from stfuse._demo import _tissue
from stfuse._demo._methods import route
from stfuse._demo._tour import FUSED
from stfuse._demo._words import signed

if TYPE_CHECKING:
    from stfuse._demo._tour import Tour

STYLE: Any = {
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
QUIET, LOUD = "#9aa7b5", "#b4235a"


def draw_all(tour: Tour, out: Path) -> dict[str, Path]:
    """Draw and save every figure; names are file stems."""
    plans: dict[str, Callable[[], Figure]] = {
        f"tissue_{name}": partial(_tissue.before_after, tour, name) for name in _tissue.sections(tour.adata)
    }
    plans |= {
        "rivals": partial(_tissue.rivals, tour),
        "comparison": partial(comparison, tour),
        "history": partial(route(tour).history, tour),
        "neighbours": partial(enrichment, tour),
        "pathways": partial(pathway_matrix, tour),
        "top_pathway": partial(_tissue.everywhere, tour, tour.top_pathway),
        "markers": partial(_tissue.markers, tour),
    }
    plans |= {f"search_{query.domain}": partial(_tissue.search, tour, query) for query in tour.queries}
    # an earlier run in this folder may have searched for more domains, or by another method
    for old in out.glob("search_D*.png"):
        old.unlink()
    paths = {}
    with mpl.rc_context(STYLE):
        for name, plan in plans.items():
            figure = plan()
            paths[name] = out / f"{name}.png"
            figure.savefig(paths[name], facecolor="white", bbox_inches="tight")
            plt.close(figure)
    return paths


def comparison(tour: Tour) -> Figure:
    """Draw both scores of every way of finding domains, best at the top."""
    scores = tour.comparison.sort_values("ARI")
    labels = scores.index.map(tour.shown)
    size, layout = (7.6, 0.5 * len(scores) + 0.9), ConstrainedLayoutEngine(wspace=0.08)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout=layout)
    titles = {"ARI": "Adjusted Rand index", "NMI": "Normalised mutual information"}
    for ax, (score, title) in zip(axes, titles.items(), strict=True):
        colours = [LOUD if name == FUSED else QUIET for name in scores.index]
        bars = ax.barh(labels, scores[score], color=colours, height=0.62)
        ax.bar_label(bars, fmt="%.2f", padding=4)
        ax.set(xlim=(0, 1), title=title)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    return figure


def enrichment(tour: Tour) -> Figure:
    """Draw squidpy's enrichment z-scores, blue apart and red together."""
    zscore = tour.enrichment.rename(index=tour.label, columns=tour.label)
    side = 0.8 * len(zscore) + 1.6
    figure, ax = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    heat(ax, zscore, "z-score against shuffled domains", digits=0)
    ax.set(xlabel="domain of the neighbour", ylabel="domain of the spot")
    return figure


def pathway_matrix(tour: Tour) -> Figure:
    """Draw mean activity by domain; a star where every section that has the domain agrees on the sign."""
    mean = tour.pathways.T.rename(columns=tour.label)
    figure, ax = plt.subplots(figsize=(0.9 * mean.shape[1] + 2.8, 0.36 * len(mean) + 1.2), layout="constrained")
    heat(ax, mean, "mean activity (standard deviations)", digits=1, star=tour.unanimous.T.to_numpy())
    ax.set_yticks(range(len(mean)), [f"{name} ({tour.targets[name]} genes)" for name in mean.index])
    return figure


def heat(ax: Axes, table: pd.DataFrame, label: str, digits: int, star: np.ndarray | None = None) -> None:
    """Draw a table as a heat map that diverges at zero, with its numbers."""
    values = table.to_numpy(float)
    limit = float(np.nanmax(np.abs(values))) or 1.0
    shown = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set_xticks(range(table.shape[1]), table.columns)
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(values):
        mark = "*" if star is not None and star[i, j] else ""
        dark = abs(value) > 0.6 * limit
        ax.text(
            j,
            i,
            signed(value, digits) + mark,
            ha="center",
            va="center",
            color="white" if dark else "#1d2733",
        )
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.85, pad=0.03)
    bar.set_label(label)
    bar.outline.set_visible(False)
