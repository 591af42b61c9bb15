"""Pictures of tissue for the demo: a photograph, with or without coloured spots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from stfuse import _keys

if TYPE_CHECKING:
    from anndata import AnnData

    from stfuse._demo._pipeline import Query, Tour

# Okabe and Ito's colours that stay visible on haematoxylin and eosin; the first is the innermost group
PALETTE = ("#0072B2", "#56B4E9", "#F0E442", "#D55E00", "#009E73", "#E69F00", "#000000", "#999999")
RING = "#00e5ff"
PANEL = 3.1


def palette(names: Sequence[str]) -> dict[str, str]:
    """Give names colours in their order."""
    return {str(name): PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def sections(adata: AnnData) -> list[str]:
    """Names of the sections in order."""
    return sorted(adata.obs["section"].astype(str).unique())


def window(adata: AnnData, section: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the spots of a section in its photograph (n x 2) and the corners of the window around them."""
    scale = adata.uns["spatial"][section]["scalefactors"]["tissue_hires_scalef"]
    xy = np.asarray(adata.obsm[_keys.SPATIAL])[(adata.obs["section"].astype(str) == section).to_numpy(), :2] * scale
    margin = 2 * diameter(adata, section)
    return xy, xy.min(axis=0) - margin, xy.max(axis=0) + margin


def photograph(ax: Axes, adata: AnnData, section: str, title: str = "") -> np.ndarray:
    """Show a section's photograph, cut to its spots; return where the spots lie in it, n x 2."""
    xy, low, high = window(adata, section)
    show(ax, adata.uns["spatial"][section]["images"]["hires"], low, high, title)
    return xy


def show(ax: Axes, image: np.ndarray, low: np.ndarray, high: np.ndarray, title: str) -> None:
    """Show the part of an image between two corners (x, y); drawing all of it would take ten times as long."""
    left, top = np.clip(np.floor(low).astype(int), 0, None)
    right, bottom = np.minimum(np.ceil(high).astype(int), [image.shape[1], image.shape[0]])
    ax.imshow(image[top:bottom, left:right], extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5))
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)


def diameter(adata: AnnData, section: str) -> float:
    """Diameter of a spot in pixels of the section's photograph."""
    factors = adata.uns["spatial"][section]["scalefactors"]
    return float(factors["spot_diameter_fullres"] * factors["tissue_hires_scalef"])


def spots(
    ax: Axes, adata: AnnData, section: str, values: pd.Series, colours: Mapping[str, str] | None, title: str
) -> None:
    """Draw the spots of a section over its photograph, coloured by category (``colours``) or by number."""
    xy = photograph(ax, adata, section, title)
    inside = values[(adata.obs["section"].astype(str) == section).to_numpy()]
    size = [1.25 * diameter(adata, section)]
    style = {"facecolors": [colours[str(v)] for v in inside]} if colours else {"array": inside.to_numpy(float)}
    limits = {} if colours else {"cmap": "viridis", "clim": np.nanquantile(inside, [0.02, 0.98])}
    circles = EllipseCollection(
        size, size, [0], units="xy", offsets=xy, offset_transform=ax.transData, alpha=0.88, lw=0, **style, **limits
    )
    ax.add_collection(circles)


def name_colours(figure: Figure, colours: Mapping[str, str]) -> None:
    """Put one legend for all panels below them."""
    handles = [Line2D([], [], marker="o", ls="", color=c, label=name, markersize=8) for name, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False)


def grid(
    adata: AnnData, names: Sequence[str], rows: int, columns: int, extra: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """Make a grid of panels in the shape of the sections that they are for."""
    corners = [window(adata, name)[1:] for name in names]
    shape = max((high - low)[1] / (high - low)[0] for low, high in corners)
    size = (PANEL * columns, (PANEL * shape + 0.3) * rows + extra)
    return plt.subplots(rows, columns, figsize=size, squeeze=False)


def before_after(tour: Tour, section: str) -> Figure:
    """Show the photograph of a section, and the fused domains on it."""
    figure, axes = grid(tour.adata, [section], 1, 2, extra=0.4)
    colours = palette(tour.domains.cat.categories)
    photograph(axes[0, 0], tour.adata, section, f"{section}: H&E")
    spots(axes[0, 1], tour.adata, section, tour.domains, colours, "fused domains")
    name_colours(figure, colours)
    return figure


def rivals(tour: Tour) -> Figure:
    """Show one section under every way of finding domains, and its known layers."""
    section = sections(tour.adata)[0]
    figure, axes = grid(tour.adata, [section], 2, 3, extra=0.4)
    domains, layers = list(tour.domains.cat.categories), tour.layer_order
    photograph(axes[0, 0], tour.adata, section, f"{section}: H&E")
    for ax, name in zip(axes.flat[1:5], ["Image alone", "RNA alone", "Side by side", "Fused (CAMEO)"], strict=True):
        spots(ax, tour.adata, section, tour.rivals[name], palette(domains), name)
    spots(axes.flat[5], tour.adata, section, tour.adata.obs["layer"], palette(layers), "known layers")
    matched = zip(domains, layers, strict=True) if len(domains) == len(layers) else None
    name_colours(figure, palette([f"{d} / {l}" for d, l in matched] if matched else domains))
    return figure


def everywhere(tour: Tour, values: pd.Series, label: str) -> Figure:
    """Show a number on the spots of every section, two sections a row."""
    names = sections(tour.adata)
    columns = min(2, len(names))
    figure, axes = grid(tour.adata, names, -(-len(names) // columns), columns)
    for ax, name in zip(axes.flat, names, strict=False):
        spots(ax, tour.adata, name, values, None, name)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    # each section has its own limits, so that the bar can only say low and high
    bar = figure.colorbar(axes.flat[0].collections[0], ax=axes, shrink=0.5, pad=0.02, ticks=[])
    bar.set_label(f"{label}: low to high in each section")
    bar.outline.set_visible(False)
    return figure


def markers(tour: Tour) -> Figure:
    """Show the first marker gene of every domain on one section."""
    from scanpy.get import obs_df

    section = sections(tour.adata)[0]
    first = tour.markers.groupby("group", observed=True).first()
    expression = obs_df(tour.adata, list(first["names"].unique()), layer="log1p")
    figure, axes = grid(tour.adata, [section], -(-len(first) // 2), 2)
    for ax, (domain, row) in zip(axes.flat, first.iterrows(), strict=False):
        spots(ax, tour.adata, section, expression[row["names"]], None, f"{row['names']} (marks {domain})")
    for ax in axes.flat[len(first) :]:
        ax.set_axis_off()
    return figure


def search(adata: AnnData, query: Query) -> Figure:
    """Show an image patch beside a map of where RNA resembles it in another section."""
    figure, axes = grid(adata, [query.target], 1, 2)
    patch(axes[0, 0], adata, query)
    ax = axes[0, 1]
    spots(ax, adata, query.target, query.similarity.reindex(adata.obs_names), None, f"RNA of {query.target}")
    circles = ax.collections[0]
    circles.set_cmap("magma")
    best = np.argsort(-query.similarity.to_numpy(), kind="stable")[:10]
    ax.scatter(*circles.get_offsets()[best].T, s=34, facecolors="none", edgecolors=RING, lw=1.6)
    return figure


def patch(ax: Axes, adata: AnnData, query: Query) -> None:
    """Show the surroundings of a query spot with the patch that was encoded framed."""
    library = adata.uns["spatial"][query.section]
    side = diameter(adata, query.section) * float(adata.uns[_keys.IMAGE]["crop_scale"])
    row = adata.obs_names.get_loc(query.spot)
    centre = np.asarray(adata.obsm[_keys.SPATIAL])[row, :2] * library["scalefactors"]["tissue_hires_scalef"]
    show(
        ax,
        library["images"]["hires"],
        centre - 1.5 * side,
        centre + 1.5 * side,
        f"patch in {query.domain}, {query.section}",
    )
    ax.add_patch(Rectangle(centre - side / 2, side, side, fill=False, ec=RING, lw=2))
