"""Draw the activity of pathways: groups side by side, or where it lies in the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes

from stfuse import _keys, _read
from stfuse._check import check_flag, check_number, check_text, did_you_mean
from stfuse._log import warn
from stfuse.pl._layout import check_drawing, save_figure
from stfuse.pl._pathway_matrix import draw_matrix, find_ranking, marked, order_alike
from stfuse.pl._spatial import spatial
from stfuse.pl._tissue import libraries_of
from stfuse.tl._pathway_scores import Activity, read_activity
from stfuse.tl._rank_pathways import read_groups

ON_TISSUE = 6  # pathways drawn on tissue when none is named


def pathways(
    data: Any,
    score_key: str = "score_progeny",
    groupby: str | None = None,
    *,
    pathways: str | Sequence[str] | None = None,
    library_key: str | None = None,
    rank_key: str | None = "rank_pathways",
    max_padj: float = 0.05,
    cluster: bool | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = True,
    alpha_img: float = 0.5,
    size: float = 1.0,
    ncols: int = 4,
    cmap: str = "RdBu_r",
    vmax: float | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
) -> Axes | list[Axes]:
    """Draw the activity of pathways: a matrix of groups with `groupby`, on tissue without.

    Either way activity is what :func:`stfuse.tl.pathways` wrote, in standard deviations from the mean of the section, so that
    sections and pathways share one colour scale, white at zero.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData with scores of pathways.
    score_key
        Key in `obsm` of the scores, a DataFrame.
    groupby
        Column of `obs` with groups, such as domains: draws the mean of each group, a row for each pathway and a column for each
        group. None: draws each observation where it lies, a panel for each section and pathway.
    pathways
        Pathways to draw, in this order. None: all in the matrix; on tissue the six whose scores vary most within sections.
    library_key
        Column of `obs` with the section. None: the column whose values are the sections of `uns["spatial"]`, where it has several;
        else all are one section.
    rank_key
        Matrix: key in `uns` of the table of :func:`stfuse.tl.rank_pathways`, if it was made from the same scores and groups. A
        filled dot then marks where `padj` is below `max_padj` and, with several sections, the difference has one sign in all of
        them; a cross where they don't agree. None: no marks.
    max_padj
        Matrix: largest adjusted p-value that is marked.
    cluster
        Matrix: whether pathways that behave alike stand together. None: where `pathways` names none. Groups keep the order of
        the column.
    library_id
        Tissue: sections to draw. None: all.
    img
        Tissue: whether to draw the image below.
    alpha_img
        Tissue: opacity of the image; less makes the spots stand out.
    size
        Tissue: diameter of the circles relative to a spot's.
    ncols
        Tissue: panels in a row.
    cmap
        Colour map, one that diverges.
    vmax
        End of the colour scale, which goes from `-vmax` to `vmax`. None: in the matrix the largest mean, but at most twice the
        90th percentile, so that a small extreme group doesn't make the others fade; on tissue the 99th percentile.
    figsize
        Size of the figure in inches. None: what is drawn needs.
    ax
        Axes to draw the matrix, or a single panel, into.
    save
        File to save the figure to.
    spatial_key
        Tissue: key of the coordinates in `obsm`.
    table_key
        Which table of a SpatialData.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        The axes of the matrix, or of the panels as :func:`stfuse.pl.spatial` returns them.

    Raises
    ------
    KeyError
        If the scores, a pathway, a column, the coordinates or a section are not there.
    ValueError
        If no observation has a score and a group, if the scores have no names, if `ax` is given for several panels, or if a
        number is out of range.
    TypeError
        If an argument is of the wrong type.
    FileNotFoundError
        If there is no folder to save the figure in.

    Warns
    -----
    UserWarning
        If there is one group only, whose mean is zero by its making where it is all of the section.

    Notes
    -----
    The beginning that the names of all pathways share up to an underscore (`HALLMARK_`) is left out of the matrix.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.tl.pathways(adata, organism="mouse")
    >>> stfuse.tl.rank_pathways(adata, "layer", library_key="section")
    >>> matrix = stfuse.pl.pathways(adata, groupby="layer", library_key="section")
    >>> [text.get_text() for text in matrix.get_xticklabels()]
    ['ONL', 'GL', 'MCL', 'GCL']
    >>> panels = stfuse.pl.pathways(adata, pathways="Hypoxia", library_key="section")
    >>> len(panels)
    4
    """
    check_text("score_key", score_key)
    for name, text in (("groupby", groupby), ("library_key", library_key), ("rank_key", rank_key)):
        check_text(name, text, optional=True)
    check_number("max_padj", max_padj, least=0, most=1)
    check_number("vmax", vmax, above=0, optional=True)
    check_number("size", size, above=0)
    check_flag("cluster", cluster, optional=True)
    check_drawing(size, {"alpha_img": alpha_img}, ncols, {"img": img}, figsize, save)
    check_map(cmap)
    activity = read_activity(data, score_key, library_key, table_key)
    chosen = _chosen(activity, pathways, score_key)
    if groupby is None:
        return _on_tissue(
            data,
            activity,
            _most_varying(activity, chosen) if pathways is None else chosen,
            library_key,
            spatial_key,
            table_key,
            vmax=vmax,
            library_id=library_id,
            img=img,
            alpha_img=alpha_img,
            size=size,
            ncols=ncols,
            cmap=cmap,
            figsize=figsize,
            ax=ax,
            save=save,
        )
    box: Any = _read.container(data, table_key)
    mean = _means(data, activity.z[chosen], groupby, table_key)
    if (pathways is None if cluster is None else cluster) and len(mean) > 2:
        mean = mean.iloc[order_alike(mean.to_numpy())]
    table = None if rank_key is None else find_ranking(box, rank_key, score_key, groupby)
    matrix = marked(mean, table, max_padj)
    axes = draw_matrix(matrix, groupby, cmap, vmax, figsize, ax)
    if save is not None:
        save_figure(axes, save)
    return axes


def check_map(cmap: Any) -> None:
    """Refuse a colour map that matplotlib has not."""
    check_text("cmap", cmap)
    if cmap not in colormaps:
        raise ValueError(f"cmap={cmap!r} is not a colour map of matplotlib.{did_you_mean(cmap, colormaps)}")


def _chosen(activity: Activity, wanted: str | Sequence[str] | None, score_key: str) -> list[str]:
    there = list(activity.z.columns)
    if wanted is None:
        return there
    names = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    missing = [name for name in names if name not in there]
    if missing or not names:
        hint = did_you_mean(missing[0], there) if missing else ""
        raise KeyError(
            f"obsm[{score_key!r}] has no pathway {', '.join(map(repr, missing)) or 'named'}.{hint} There is {_read.listing(there)}."
        )
    return names


# on tissue


def _most_varying(activity: Activity, names: list[str]) -> list[str]:
    """Scores are t-values, with a spread of about one where a pathway does not vary."""
    spread = activity.raw[names].groupby(activity.section).std().mean()
    return list(spread.sort_values(ascending=False, kind="stable").index[:ON_TISSUE])


def _on_tissue(
    data: Any,
    activity: Activity,
    names: list[str],
    library_key: str | None,
    spatial_key: str,
    table_key: str | None,
    *,
    vmax: float | None,
    **drawing: Any,
) -> Axes | list[Axes]:
    """Draw with the package's own map, from a small object of its own."""
    box: Any = _read.container(data, table_key)
    places = _read.read_coordinates(data, spatial_key, table_key)
    if places is None:
        raise KeyError(
            _read.no_coordinates(data, spatial_key, table_key) + " groupby= draws a matrix, which needs none."
        )
    _read.warn_if_stacked(places, len(activity.sections), library_key)
    obs = activity.z[names].add_suffix(" (SD)")
    obs["section"] = pd.Categorical.from_codes(activity.section, activity.sections)
    small = AnnData(obs=obs, uns={"spatial": libraries_of(box)})
    small.obsm[_keys.SPATIAL] = places
    values = np.abs(activity.z[names].to_numpy())
    limit = float(np.nanpercentile(values, 99)) or 1.0 if vmax is None else vmax
    return spatial(small, [f"{name} (SD)" for name in names], library_key="section", vmin=-limit, vmax=limit, **drawing)


# groups


def _means(data: Any, z: pd.DataFrame, groupby: str, table_key: str | None) -> pd.DataFrame:
    groups = read_groups(data, groupby, z, table_key)
    if not groups.names:
        raise ValueError(f"No observation has both a score and a group of obs[{groupby!r}].")
    if len(groups.names) == 1:
        warn(f"obs[{groupby!r}] has one group with scores, {groups.names[0]!r}: there is none to compare it with.")
    labels = pd.Categorical.from_codes(groups.codes, groups.names)
    return z.iloc[groups.rows].groupby(labels, observed=True).mean().T
