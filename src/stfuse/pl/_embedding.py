"""Draw codes in two dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from stfuse import _read
from stfuse._check import check_number, check_seed, check_text
from stfuse.pl._color import MISSING, Color, Palette, color_keys, face_colors, keep_colors, number_scale, read_color
from stfuse.pl._layout import Block, check_drawing, draw_legend, draw_title, height_of, legend_width, place, save_figure
from stfuse.pl._spatial import RASTERIZE

SIDE = 3.4


def embedding(
    data: Any,
    use_rep: str | Sequence[str] = "X_cameo",
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
    ncols: int = 4,
    title: str | Sequence[str] | None = None,
    legend: bool = True,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    seed: int = 0,
    table_key: str | None = None,
) -> Axes | list[Axes]:
    """Draw a code in two dimensions, coloured by labels, genes or other codes; several codes side by side.

    Shows at a glance whether sections mix and domains separate. With several codes, such as the image features before and after
    alignment (`["X_image", "X_clip_image"]`), each colour is a row of panels with one scale and one legend. The picture is computed for the drawing and not kept;
    to keep it, call :func:`scanpy.tl.umap` with `neighbors_key="<m>_neighbors"` and give `use_rep="X_umap"` here.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData.
    use_rep
        Key of the code in `obsm`, or several keys. A code of two columns is drawn as it is. Rows of NaN are left out.
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
        Title of each panel. None: name of the colour, or of the code where there are several.
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
        One panel: its axes. Several: a list, all codes in the first colour, then in the next.

    Raises
    ------
    KeyError
        If the code or a colour is not there.
    ValueError
        If no code is named, the method is unknown, fewer than 4 observations have a code, `ax` is given for several panels, or a number
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
    >>> panels = stfuse.pl.embedding(adata, ["X_image", "X_pca"], "domain", method="pca")
    >>> [panel.get_title() for panel in panels]
    ['X_image', 'X_pca']
    """
    if method not in ("umap", "pca"):
        raise ValueError(f'method must be "umap" or "pca", got {method!r}.')
    check_number("n_neighbors", n_neighbors, least=2, whole=True)
    check_seed(seed)
    reps = [use_rep] if isinstance(use_rep, str) else list(use_rep) if isinstance(use_rep, Sequence) else [use_rep]
    if not reps:
        raise ValueError("use_rep is an empty list: name at least one code in obsm.")
    for rep in reps:
        check_text("use_rep", rep)
    check_drawing(size, {"alpha": alpha}, ncols, {"legend": legend}, figsize, save)
    keys = color_keys(color)
    n_panels = len(reps) * len(keys)
    if ax is not None and n_panels != 1:
        raise ValueError(f"ax= takes one panel, but {len(keys)} colour(s) x {len(reps)} code(s) make {n_panels}.")
    codes = [_codes(data, rep, table_key) for rep in reps]
    colors = [
        None if k is None else read_color(data, k, palette=palette, layer=layer, table_key=table_key) for k in keys
    ]
    titles = _titles(title, reps, colors)
    shown = np.unique(np.concatenate([rows for rows, _ in codes]))
    # before there is a figure, which an unknown colour map would leave open
    scales = [number_scale(c, shown, cmap, vmin, vmax) for c in colors]
    clouds = [
        _cloud(rows, values, rep, method, n_neighbors, seed) for rep, (rows, values) in zip(reps, codes, strict=True)
    ]

    names = [c.name if c is not None and len(reps) > 1 else None for c in colors]
    if ax is not None:
        groups, side = [[ax]], height_of(ax)
    else:
        side = SIDE
        needs = [
            legend_width(c, SIDE, name, scale) if c and legend else 0.0
            for c, name, scale in zip(colors, names, scales, strict=True)
        ]
        groups = place([Block(len(reps), need) for need in needs], (SIDE, SIDE), ncols, figsize, labels=0.2)
    for panels, read, mappable, name in zip(groups, colors, scales, names, strict=True):
        for panel, cloud in zip(panels, clouds, strict=True):
            _draw_points(panel, cloud, read, mappable, size, alpha)
            draw_title(panel, next(titles))
        if legend and read is not None:
            draw_legend(panels[min(ncols, len(panels)) - 1], read, side, mappable, name)
    keep_colors(data, colors, table_key)
    axes = [panel for panels in groups for panel in panels]
    if save is not None:
        save_figure(axes[0], save)
    return axes[0] if len(axes) == 1 else axes


def _codes(data: Any, use_rep: str, table_key: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Read which observations have a code, and their codes."""
    codes = _read.read_rep(data, use_rep, table_key)
    rows = np.flatnonzero(_read.check_values(codes, f"obsm[{use_rep!r}]"))
    if rows.size < 4:
        raise ValueError(f"obsm[{use_rep!r}] has {rows.size} row(s) with a code: too few to draw.")
    return rows, codes[rows]


def _titles(title: str | Sequence[str] | None, reps: list[str], colors: list[Color | None]) -> Iterator[str]:
    n = len(reps) * len(colors)
    if title is not None:
        given = [title] * n if isinstance(title, str) else list(title)
        if len(given) != n:
            raise ValueError(f"title has {len(given)} entries for {n} panels.")
        return iter(given)
    if len(reps) > 1:
        return iter(reps * len(colors))
    return iter([c.name if c else "" for c in colors])


class _Cloud(NamedTuple):
    """Points of one code, in the order in which they are drawn."""

    rows: np.ndarray
    points: np.ndarray
    labels: tuple[str, str]


def _cloud(rows: np.ndarray, codes: np.ndarray, use_rep: str, method: str, n_neighbors: int, seed: int) -> _Cloud:
    points, labels = _flatten(codes, use_rep, method, n_neighbors, seed)
    # in their own order the last section would cover the others
    shuffled = np.random.default_rng(seed).permutation(rows.size)
    return _Cloud(rows[shuffled], points[shuffled], labels)


def _draw_points(
    ax: Axes, cloud: _Cloud, color: Color | None, mappable: ScalarMappable | None, size: float | None, alpha: float
) -> None:
    rows, points, labels = cloud
    area = size if size is not None else float(np.clip(24_000 / rows.size, 0.5, 40))
    faces = np.tile([MISSING], rows.size) if color is None else face_colors(color, rows, mappable)[0]
    ax.scatter(points[:, 0], points[:, 1], s=area, c=faces, alpha=alpha, lw=0, rasterized=rows.size > RASTERIZE)
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(labels[0], fontsize=9)
    ax.set_ylabel(labels[1], fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)


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
