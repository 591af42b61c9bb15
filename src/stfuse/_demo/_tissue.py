"""Pictures of tissue for the demo, drawn by ``stfuse.pl.spatial``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from stfuse import _keys, pl
from stfuse._demo._tour import LAYER, LOGGED, SECTION, partners, within_sections

if TYPE_CHECKING:
    from stfuse._demo._tour import Query, Tour

# Okabe and Ito's colours that stay visible on haematoxylin and eosin; the first is the innermost layer
PALETTE = ("#0072B2", "#56B4E9", "#F0E442", "#D55E00", "#009E73", "#E69F00", "#000000", "#999999")
RING = "#00e5ff"
LEFT_OVER = "left over"
# circles a little larger than spots, and not quite opaque: domains read as areas, the tissue stays visible
CIRCLES: dict[str, Any] = {"library_key": SECTION, "size": 1.25, "alpha": 0.88}


def palette(names: Sequence[str]) -> dict[str, str]:
    """Give names colours in their order."""
    return {str(name): PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def domain_colours(tour: Tour) -> dict[str, str]:
    """Give each fused domain the colour of its layer, and those left over colours of their own."""
    partner = tour.partner
    alone = [name for name in tour.domains.cat.categories if name not in partner]
    colour = palette([*tour.layer_order, *alone])
    return {name: colour[partner.get(name, name)] for name in tour.domains.cat.categories}


def sections(adata: AnnData) -> list[str]:
    """Names of the sections in order."""
    return sorted(adata.obs[SECTION].astype(str).unique())


def bare(adata: AnnData, columns: pd.DataFrame) -> AnnData:
    """Give the tissue of an object other columns, so that drawing leaves the object as it is."""
    obs = columns.assign(**{SECTION: adata.obs[SECTION]})
    return AnnData(obs=obs, obsm={_keys.SPATIAL: adata.obsm[_keys.SPATIAL]}, uns={"spatial": adata.uns["spatial"]})


def figure_of(axes: Axes | list[Axes]) -> Figure:
    """Return the figure that holds the panels."""
    first: Any = axes[0] if isinstance(axes, list) else axes
    return first.figure


def key_below(figure: Figure, colour: dict[str, str]) -> None:
    """Put one key below all panels."""
    handles = [Line2D([], [], marker="o", ls="", ms=8, color=tint, label=name) for name, tint in colour.items()]
    figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.02),
        ncols=len(handles),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.2,
    )


def domain_key(tour: Tour) -> dict[str, str]:
    """Colours of the domains under names that hold their layers."""
    return {tour.label(name): tint for name, tint in domain_colours(tour).items()}


def before_after(tour: Tour, section: str) -> Figure:
    """Show the photograph of a section, and the fused domains on it."""
    titles, colours = [f"{section}: H&E", "fused domains"], [None, tour.slots.domain]
    palette = domain_colours(tour)
    axes = pl.spatial(tour.adata, colours, library_id=section, palette=palette, title=titles, legend=False, **CIRCLES)
    key_below(figure_of(axes), domain_key(tour))
    return figure_of(axes)


def rivals(tour: Tour) -> Figure:
    """Show one section under every way of finding domains, and its known layers."""
    section, order, known = sections(tour.adata)[0], tour.layer_order, tour.adata.obs[LAYER].astype(str)
    names = list(tour.rivals)
    # renamed after the layers that they match, so that one colour means one layer in every panel
    matched = {name: partners(tour.rivals[name], known, order) for name in names}
    columns = {name: tour.rivals[name].astype(str).map(matched[name]).fillna(LEFT_OVER) for name in names}
    shown = bare(tour.adata, pd.DataFrame(columns | {"known layers": known}).astype("category"))
    colour = palette([*order, LEFT_OVER])
    titles, keys = [f"{section}: H&E", *map(tour.shown, columns), "known layers"], [None, *columns, "known layers"]
    two_rows = -(-len(keys) // 2)
    axes = pl.spatial(
        shown, keys, library_id=section, palette=colour, title=titles, ncols=two_rows, legend=False, **CIRCLES
    )
    used = [*order, LEFT_OVER] if tour.spare > 0 else order
    key_below(figure_of(axes), {name: colour[name] for name in used})
    return figure_of(axes)


def everywhere(tour: Tour, pathway: str) -> Figure:
    """Show the activity of a pathway on every section, all on one scale."""
    z = within_sections(tour.activity[[pathway]], tour.adata.obs[SECTION])
    low, high = np.nanquantile(z, [0.02, 0.98])
    return figure_of(
        pl.spatial(bare(tour.adata, z), pathway, vmin=float(low), vmax=float(high), ncols=2, alpha_img=0.5, **CIRCLES)
    )


def markers(tour: Tour) -> Figure:
    """Show the domains of one section, and the first marker gene of each."""
    first = tour.markers.groupby("group", observed=True).first()["names"]
    axes = pl.spatial(
        tour.adata,
        [tour.slots.domain, *first],
        layer=LOGGED,
        library_id=sections(tour.adata)[0],
        palette=domain_colours(tour),
        title=["fused domains", *(f"{gene}, marks {tour.label(str(domain))}" for domain, gene in first.items())],
        ncols=3,
        legend=False,
        alpha_img=0.5,
        **CIRCLES,
    )
    key_below(figure_of(axes), domain_key(tour))
    return figure_of(axes)


def search(tour: Tour, query: Query) -> Figure:
    """Show an image patch beside a map of where RNA resembles it in another section."""
    adata = tour.adata
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.8), layout="constrained", width_ratios=(1, 1.35))
    patch(axes[0], adata, query)
    axes[0].set_title(f"patch in {tour.label(query.domain)}, {query.section}")
    similarity = query.similarity.reindex(adata.obs_names).rename("similarity")
    shown = bare(adata, similarity.to_frame())
    low, high = np.nanquantile(similarity, [0.02, 0.98])
    pl.spatial(
        shown,
        "similarity",
        library_id=query.target,
        cmap="magma",
        vmin=float(low),
        vmax=float(high),
        title=f"RNA of {query.target}",
        legend=False,
        ax=axes[1],
        **CIRCLES,
    )
    x, y = np.asarray(adata.obsm[_keys.SPATIAL])[adata.obs_names.get_indexer(query.found), :2].T
    axes[1].scatter(x, y, s=34, facecolors="none", edgecolors=RING, lw=1.6)
    return figure


def patch(ax: Axes, adata: AnnData, query: Query) -> None:
    """Show the surroundings of a query spot with the patch that was encoded framed."""
    library = adata.uns["spatial"][query.section]
    image, scale = library["images"]["hires"], library["scalefactors"]["tissue_hires_scalef"]
    side = library["scalefactors"]["spot_diameter_fullres"] * scale * float(adata.uns[_keys.IMAGE]["crop_scale"])
    row = adata.obs_names.get_loc(query.spot)
    x, y = np.asarray(adata.obsm[_keys.SPATIAL])[row, :2] * scale
    half = 1.5 * side
    left, top = max(0, int(x - half)), max(0, int(y - half))
    part = image[top : int(y + half) + 1, left : int(x + half) + 1]
    ax.imshow(part, extent=(left - 0.5, left + part.shape[1] - 0.5, top + part.shape[0] - 0.5, top - 0.5))
    ax.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, ec=RING, lw=2))
    ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
