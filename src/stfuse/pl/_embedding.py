"""Draw codes in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from stfuse import _read
from stfuse._check import check_number, check_seed, check_text
from stfuse.pl._color import MISSING, Palette, color_keys, face_colors, keep_colors, number_scale, read_color
from stfuse.pl._layout import Block, check_drawing, draw_legend, draw_title, height_of, legend_width, place, save_figure
from stfuse.pl._spatial import RASTERIZE

SIDE = 3.4


def embedding(
    data: Any,
    use_rep: str = "X_cameo",
    color: str | Sequence[str] | None = None,
    *,
    method: Literal["umap", "pca"] = "umap",
    n_neighbors: int = 15,
    layer: str | None = None,
    palette: Palette = None,
    cmap: str = "viridis",
    vmin: float | str | None = None,
    vmax: float | str | None = None,
    size: float | None = None,
    alpha: float = 0.9,
    ncols: int = 3,
    title: str | Sequence[str] | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    seed: int = 0,
    table_key: str | None = None,
) -> Axes | list[Axes]:
    """Draw a code in two dimensions, coloured by labels, genes or other codes.

    Shows at a glance whether sections mix and domains separate. The picture is computed for the drawing and not kept;
    to keep it, call :func:`scanpy.tl.umap` with `neighbors_key="<m>_neighbors"` and give `use_rep="X_umap"` here.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData.
    use_rep
        Key of the code in `obsm`. A code of two columns is drawn as it is. Rows of NaN are left out.
    color
        One or several of: a column of `obs`, a gene, a column of `obsm` as `"key:column"`. None draws grey points.
    method
        `"umap"`: scanpy's UMAP of the nearest-neighbour graph. `"pca"`: the first two principal components, which is
        quick and keeps distances.
    n_neighbors
        Neighbours in the graph of UMAP.
    layer
        Layer to take genes from. None: `X`.
    palette
        Colours of categories, as in :func:`stfuse.pl.spatial`.
    cmap
        Colour map of numbers.
    vmin, vmax
        Ends of the colour scale: numbers, or percentiles such as `"p99"`.
    size
        Area of a point in square points. None: smaller the more points there are.
    alpha
        Opacity of the points.
    ncols
        Panels in a row.
    title
        Title of each panel. None: name of the colour.
    legend
        Whether to draw legends and colour bars.
    figsize
        Size of the figure in inches.
    ax
        Axes to draw one panel into.
    save
        File to save the figure to.
    seed
        Seed of UMAP and of the order in which points are drawn.
    table_key
        Which table of a SpatialData.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One panel: its axes. Several: a list, one for each colour.

    Raises
    ------
    KeyError
        If the code or a colour is not there.
    ValueError
        If the method is unknown, fewer than 4 observations have a code, `ax` is given for several panels, or a number
        is out of range.
    TypeError
        If an argument is of the wrong type.
    FileNotFoundError
        If there is no folder to save the figure in.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300)
    >>> stfuse.pl.embedding(adata, "X_pca", color="domain", method="pca").get_xlabel()
    'PC 1'
    """
    if method not in ("umap", "pca"):
        raise ValueError(f'method must be "umap" or "pca", got {method!r}.')
    check_number("n_neighbors", n_neighbors, least=2, whole=True)
    check_seed(seed)
    check_text("use_rep", use_rep)
    check_drawing(size, {"alpha": alpha}, ncols, {"legend": legend}, figsize, save)
    keys = color_keys(color)
    if ax is not None and len(keys) != 1:
        raise ValueError(f"ax= takes one panel, but {len(keys)} colours were given.")
    codes = _read.read_rep(data, use_rep, table_key)
    rows = np.flatnonzero(_read.check_values(codes, f"obsm[{use_rep!r}]"))
    if rows.size < 4:
        raise ValueError(f"obsm[{use_rep!r}] has {rows.size} row(s) with a code: too few to draw.")
    colors = [
        None if k is None else read_color(data, k, palette=palette, layer=layer, table_key=table_key) for k in keys
    ]
    titles = [title] * len(keys) if title is None or isinstance(title, str) else list(title)
    if len(titles) != len(keys):
        raise ValueError(f"title has {len(titles)} entries for {len(keys)} panels.")
    # before there is a figure, which an unknown colour map would leave open
    scales = [number_scale(c, rows, cmap, vmin, vmax) for c in colors]
    points, labels = _flatten(codes[rows], use_rep, method, n_neighbors, seed)
    # in their own order the last section would cover the others
    shuffled = np.random.default_rng(seed).permutation(rows.size)
    points, rows = points[shuffled], rows[shuffled]

    if ax is not None:
        panels, side = [ax], height_of(ax)
    else:
        side = SIDE
        needs = [
            legend_width(c, SIDE, None, scale) if c and legend else 0.0 for c, scale in zip(colors, scales, strict=True)
        ]
        groups = place([Block(1, need) for need in needs], (SIDE, SIDE), ncols, figsize, labels=0.2)
        panels = [group[0] for group in groups]
    area = size if size is not None else float(np.clip(24_000 / rows.size, 0.5, 40))
    for panel, read, mappable, heading in zip(panels, colors, scales, titles, strict=True):
        faces = np.tile([MISSING], rows.size) if read is None else face_colors(read, rows, mappable)[0]
        panel.scatter(points[:, 0], points[:, 1], s=area, c=faces, alpha=alpha, lw=0, rasterized=rows.size > RASTERIZE)
        panel.set(xticks=[], yticks=[])
        panel.set_xlabel(labels[0], fontsize=9)
        panel.set_ylabel(labels[1], fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        draw_title(panel, heading if heading is not None else read.name if read else "")
        if legend and read is not None:
            draw_legend(panel, read, side, mappable, None)
    keep_colors(data, colors, table_key)
    if save is not None:
        save_figure(panels[0], save)
    return panels[0] if len(panels) == 1 else panels


def _flatten(
    codes: np.ndarray, use_rep: str, method: str, n_neighbors: int, seed: int
) -> tuple[np.ndarray, tuple[str, str]]:
    name = use_rep.removeprefix("X_")
    if codes.shape[1] == 2:
        return codes, (f"{name} 1", f"{name} 2")
    if method == "pca" or codes.shape[1] < 2:
        from sklearn.decomposition import PCA

        wide = codes if codes.shape[1] > 1 else np.column_stack([codes, np.zeros(len(codes))])
        return PCA(2, random_state=seed).fit_transform(wide), ("PC 1", "PC 2")
    import scanpy as sc

    from stfuse.tl._graph import code_graph

    graph = code_graph(codes, n_neighbors=n_neighbors, seed=seed, use_rep="X_code")
    small = AnnData(np.zeros((len(codes), 0), dtype=np.float32))
    small.obsm["X_code"] = codes
    small.obsp["connectivities"], small.obsp["distances"] = graph.connectivities, graph.distances
    keys = {"connectivities_key": "connectivities", "distances_key": "distances"}
    small.uns["neighbors"] = {**keys, "params": graph.params}
    sc.tl.umap(small, random_state=seed)
    return np.asarray(small.obsm["X_umap"]), ("UMAP 1", "UMAP 2")
