"""Draw survival by groups: Kaplan-Meier curves with the numbers at risk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from stfuse import _keys, _read
from stfuse._check import check_flag, check_number, check_text, did_you_mean
from stfuse._survival import check_event_value, need_sksurv, outcome, read_survival
from stfuse.pl._color import PALETTE, Color, Palette, read_groups
from stfuse.pl._layout import (
    MARGIN,
    ROW,
    TEXT,
    TITLE,
    check_drawing,
    draw_legend,
    height_of,
    legend_width,
    save_figure,
    text_width,
)

PANEL = 3.9, 2.7  # inches
BELOW = 0.46  # inches: numbers and name of the axis of time
RISK = {"low": PALETTE[0], "high": PALETTE[3]}  # colours of groups that tl.survival made
BAND = 0.16  # opacity
LEFT = 0.5  # inches: numbers and name of the other axis
HEADING, NAME_GAP = "at risk", 0.28  # of the table below, and inches between its names and the axis


class _Group(NamedTuple):
    """Time and event of the members of a group, its colour, and what the legend calls it."""

    name: str
    time: np.ndarray
    event: np.ndarray
    color: str


def survival(
    data: Any,
    key: str = "mirror_survival",
    *,
    time_key: str | None = None,
    event_key: str | None = None,
    event_value: Any = True,
    group_key: str | None = None,
    conf_int: bool = True,
    at_risk: bool = True,
    max_time: float | None = None,
    palette: Palette = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    table_key: str | None = None,
) -> Axes:
    """Draw the share of patients without the event against time, a Kaplan-Meier curve for each group.

    Ticks on a curve are censored patients, bands are 95 % confidence intervals of each time (log-log). The p-value above is that of
    the log-rank test that all groups are the same; below stands how many of each group are still under observation and without the
    event.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData.
    key
        Name under which :func:`stfuse.tl.survival` wrote: draws its groups of low and high risk, with the time and event that it
        used.
    time_key, event_key
        Columns of `obs` with the time and with the event. None: those of the record `key`. Where one is missing the row is left
        out.
    event_value
        Value of `event_key` that means that the event happened, everything else is censored. Without `event_key` that of the record.
    group_key
        Column of `obs` with other groups, two or more or one. None: those of `key`. `"unassigned"` and missing ones are left out.
    conf_int
        Whether to draw the bands.
    at_risk
        Whether to write the numbers at risk below the axis. With `ax` they need room there.
    max_time
        Right end of the axis, such as where few are left. The test uses all times. None: the last time of all.
    palette
        Colours of the groups: name of a colour map, list, or dict by group. None: blue and red for groups of risk, else those kept in
        `uns` or our own.
    figsize
        Size of the figure in inches. None: what is drawn needs.
    ax
        Axes to draw into.
    save
        File to save the figure to.
    table_key
        Which table of a SpatialData.

    Returns
    -------
    matplotlib.axes.Axes
        The axes of the curves.

    Raises
    ------
    KeyError
        If a column, or the record of :func:`stfuse.tl.survival` that is to name it, is not there.
    ValueError
        If no row has time, event and group, if there are no events, if a time is not above 0, or if a number is out of range.
    TypeError
        If an argument is of the wrong type.
    ImportError
        If scikit-survival is not installed (`pip install 'stfuse[survival]'`).
    FileNotFoundError
        If there is no folder to save the figure in.

    Warns
    -----
    UserWarning
        If more than 95 % are events, as when the column says who was censored.

    Notes
    -----
    Risk of :func:`stfuse.tl.survival` is out of fold and so is its cut: the p-value is not that of a model tested on what it was
    trained on. It takes rows for independent, which several slides of one patient are not.

    Examples
    --------
    >>> import numpy as np, stfuse
    >>> slides = stfuse.datasets.synthetic_tissue(200, seed=1)
    >>> rng = np.random.default_rng(0)
    >>> hidden = rng.exponential(np.exp(-slides.obsm["X_pca"][:, 0] / 2)) * 20 + 0.1
    >>> slides.obs["months"], slides.obs["died"] = np.minimum(hidden, 30), hidden < 30
    >>> scores = stfuse.tl.survival(slides, time_key="months", event_key="died", use_rep="X_pca")
    >>> stfuse.pl.survival(slides, "pca_survival").get_xlabel()
    'months'
    >>> ax = stfuse.pl.survival(slides, group_key="domain", time_key="months", event_key="died")
    """
    check_text("key", key)
    for name, text in (("time_key", time_key), ("event_key", event_key), ("group_key", group_key)):
        check_text(name, text, optional=True)
    check_event_value(event_value)
    check_number("max_time", max_time, above=0, optional=True)
    check_flag("conf_int", conf_int)
    check_drawing(None, {}, 1, {"at_risk": at_risk}, figsize, save)
    need_sksurv()
    box: Any = _read.container(data, table_key)
    params = _params_of(box, key) if None in (time_key, event_key) or group_key is None else {}
    if event_key is None:
        event_key, event_value = params["event_key"], params["event_value"]
    time_key = params["time_key"] if time_key is None else time_key
    group_key = f"{key}_group" if group_key is None else group_key
    groups = _read_members(data, str(time_key), str(event_key), event_value, group_key, palette, table_key)
    ax = _draw(groups, str(time_key), conf_int, at_risk, max_time, figsize, ax)
    if save is not None:
        save_figure(ax, save)
    return ax


def _params_of(box: Any, key: str) -> Mapping[str, Any]:
    """Arguments of the call of `tl.survival` that wrote under ``key``."""
    record = box.uns.get(key)
    params = record.get("params") if isinstance(record, Mapping) else None
    if not isinstance(params, Mapping) or "event_key" not in params:
        made = [k for k, v in box.uns.items() if isinstance(v, Mapping) and "convention" in v]
        raise KeyError(
            f"No record of stfuse.tl.survival in uns[{key!r}].{did_you_mean(key, made)} There is {_read.listing(made)}. Name one as "
            "key, or name time_key=, event_key= and group_key=."
        )
    return params


def _read_members(
    data: Any, time_key: str, event_key: str, event_value: Any, group_key: str, palette: Palette, table_key: str | None
) -> list[_Group]:
    column = _read.read_column(data, group_key, table_key)
    if palette is None and set(column.dropna().unique()) <= {*RISK, _keys.UNASSIGNED}:
        palette = RISK
    color = read_groups(data, group_key, palette=palette, table_key=table_key)
    known = read_survival(data, time_key, event_key, event_value, table_key)
    values: Any = color.values
    groups = []
    for code, name in enumerate(values.categories):
        rows = known.known & (values.codes == code)
        if name != _keys.UNASSIGNED and rows.any():
            groups.append(_Group(str(name), known.time[rows], known.event[rows], color.colors[str(name)]))
    if not any(group.event.any() for group in groups):
        there = "no event" if groups else f"no time and event in obs[{time_key!r}] and obs[{event_key!r}]"
        raise ValueError(f"The groups of obs[{group_key!r}] have {there}: there is no curve to draw.")
    return groups


def log_rank(groups: list[_Group]) -> float:
    """P-value of the log-rank test; NaN where a group is alone or was never at risk when an event happened."""
    from sksurv.compare import compare_survival

    if len(groups) < 2:
        return float("nan")
    y = outcome(np.concatenate([g.time for g in groups]), np.concatenate([g.event for g in groups]))
    try:
        return float(compare_survival(y, np.repeat(np.arange(len(groups)), [len(g.time) for g in groups]))[1])
    except np.linalg.LinAlgError:
        return float("nan")


def _draw(
    groups: list[_Group],
    time_key: str,
    conf_int: bool,
    at_risk: bool,
    max_time: float | None,
    figsize: tuple[float, float] | None,
    ax: Axes | None,
) -> Axes:
    names = [f"{group.name}, {group.event.sum()} events" for group in groups]
    legend = Color("", pd.Categorical(names, names), {n: g.color for n, g in zip(names, groups, strict=True)})
    if ax is None:
        ax = _axes(groups, legend_width(legend, PANEL[1], None), at_risk, figsize)
    for group in groups:
        _draw_curve(ax, group, conf_int)
    end = max(group.time.max() for group in groups) if max_time is None else max_time
    ticks = np.asarray(MaxNLocator(6, steps=[1, 2, 3, 4, 5, 6, 10]).tick_values(0, end))
    ticks = ticks[(ticks >= 0) & (ticks <= end)]
    ax.set(xticks=ticks, yticks=np.linspace(0, 1, 6), xlim=(0, end), ylim=(0, 1.02))
    ax.set_xlabel(time_key, fontsize=TEXT)
    ax.set_ylabel("without event", fontsize=TEXT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=TEXT - 1)
    p = log_rank(groups)
    if np.isfinite(p):
        ax.set_title(f"log-rank p {'< 0.0001' if p < 1e-4 else f'= {p:.2g}'}", fontsize=TEXT, loc="left", pad=5)
    draw_legend(ax, legend, height_of(ax), None, None)
    if at_risk:
        _draw_numbers(ax, groups, ticks)
    return ax


def _axes(groups: list[_Group], legend: float, at_risk: bool, figsize: tuple[float, float] | None) -> Axes:
    """Make a figure with the room that the legend and the numbers at risk take."""
    width, height = PANEL
    left = MARGIN + LEFT
    below = MARGIN + BELOW
    if at_risk:
        left = max(left, MARGIN + NAME_GAP + max(text_width(name) for name in (HEADING, *(g.name for g in groups))))
        below += (len(groups) + 1) * ROW
    total = left + width + max(legend, MARGIN) + 0.1, below + height + TITLE
    figure = plt.figure(figsize=figsize or total)
    return figure.add_axes((left / total[0], below / total[1], width / total[0], height / total[1]))


def _draw_curve(ax: Axes, group: _Group, conf_int: bool) -> None:
    """Draw a Kaplan-Meier curve from 1 at time 0, its band, and a tick where someone was censored."""
    from sksurv.nonparametric import kaplan_meier_estimator

    time, share, band = kaplan_meier_estimator(group.event, group.time, conf_type="log-log")
    steps = np.r_[0, time]
    ax.step(steps, np.r_[1, share], where="post", color=group.color, lw=1.6, label=group.name)
    if conf_int:
        low, high = (np.r_[1, end] for end in band)
        ax.fill_between(steps, low, high, step="post", color=group.color, alpha=BAND, lw=0)
    censored = np.unique(group.time[~group.event])
    at = share[np.searchsorted(time, censored)]
    ax.plot(censored, at, ls="", marker="|", ms=5, mew=0.8, color=group.color)


def _draw_numbers(ax: Axes, groups: list[_Group], ticks: np.ndarray) -> None:
    """Write below the axis how many of each group are under observation and without the event just before each tick."""
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": TEXT, "annotation_clip": False}
    first = -72 * (BELOW + ROW / 2)
    ax.annotate(HEADING, (0, 0), (-72 * NAME_GAP, first), xycoords="axes fraction", ha="right", **style)
    for row, group in enumerate(groups, start=1):
        y = first - 72 * ROW * row
        where = (-72 * NAME_GAP, y)
        ax.annotate(group.name, (0, 0), where, xycoords="axes fraction", ha="right", color=group.color, **style)
        for tick in ticks:
            there = int((group.time >= tick).sum())
            ax.annotate(f"{there}", (tick, 0), (0, y), xycoords=("data", "axes fraction"), ha="center", **style)
