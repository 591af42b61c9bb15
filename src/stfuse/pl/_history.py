"""Draw how training went."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from stfuse import _read
from stfuse._check import check_number, check_text, did_you_mean
from stfuse.pl._layout import check_save, save_figure

TRAIN, HELD_OUT = "#0072B2", "#D55E00"
# Columns whose own names are too short to tell what they are: title and label of the axis.
_WORDS = {"held_out_rank": ("held-out pairs (lower is better)", "mean log rank fraction")}
_SMALL: dict[str, Any] = {"textcoords": "offset points", "va": "top", "fontsize": 8, "color": "#555555"}
_PART = re.compile(r"(?:^|_)(train|validation|val|held_out)(?=_|$)")


def history(
    data: Any,
    key: str = "cameo",
    *,
    ncols: int = 3,
    figsize: tuple[float, float] | None = None,
    save: str | Path | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes]:
    """Draw the losses of a training against its epochs, a small panel each.

    Curves of one loss on training and on held-out observations (`loss_train`, `loss_validation`) share a panel. A
    training that goes well falls and levels off; one whose held-out curve rises again has begun to memorise. Losses of
    an adversarial game need not fall. Where held-out pairs chose an epoch, a line marks it.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData after a call of `stfuse.tl.<method>`.
    key
        Name of the record in `uns`, the method's `key_added`.
    ncols
        Panels in a row.
    figsize
        Size of the figure in inches. None: what the panels need.
    save
        File to save the figure to.
    table_key
        Which table of a SpatialData.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One panel: its axes. Several: a list.

    Raises
    ------
    KeyError
        If there is no such record.
    ValueError
        If the method has no epochs, such as one in closed form, or only one. What was measured instead is in
        `uns[key]["report"]`.

    Examples
    --------
    >>> import pandas as pd, stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(100)
    >>> adata.uns["mine"] = {"history": pd.DataFrame({"loss_train": [3, 2, 1.5], "loss_validation": [3, 2.5, 2.4]})}
    >>> stfuse.pl.history(adata, "mine").get_title()
    'loss'
    """
    check_text("key", key)
    check_number("ncols", ncols, least=1, whole=True)
    check_save(save)
    curves, kept = _history_of(data, key, table_key)
    panels = _group(curves)
    ncols = max(1, min(ncols, len(panels)))
    nrows = -(-len(panels) // ncols)
    size = figsize or (3.1 * ncols + 0.3, 2.3 * nrows + 0.2)
    figure, grid = plt.subplots(nrows, ncols, figsize=size, squeeze=False, layout="constrained")
    for ax in grid.flat[len(panels) :]:
        ax.remove()
    axes = list(grid.flat[: len(panels)])
    for i, (ax, (name, parts)) in enumerate(zip(axes, panels.items(), strict=True)):
        for part, column in parts.items():
            values = curves[column].dropna()
            marker = "o" if len(values) == 1 else None
            ax.plot(
                values.index, values, color=HELD_OUT if part == "held out" else TRAIN, lw=1.6, marker=marker, label=part
            )
        title, label = _WORDS.get(next(iter(parts.values())), (name if "training" in parts else f"held-out {name}", ""))
        ax.set_title(title, fontsize=10)
        ax.set_ylabel(label, fontsize=9)
        if kept:
            ax.axvline(kept, color="#777777", lw=1, ls="--", zorder=0)
            ax.annotate("kept", (kept, 1), (2, -2), xycoords=("data", "axes fraction"), **_SMALL)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        ax.margins(x=0.02)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if i + ncols >= len(panels):
            ax.set_xlabel("epoch", fontsize=9)
        if len(parts) > 1:
            ax.legend(frameon=False, fontsize=8)
    if save is not None:
        save_figure(axes[0], save)
    return axes[0] if len(axes) == 1 else axes


def _history_of(data: Any, key: str, table_key: str | None) -> tuple[pd.DataFrame, int]:
    """Read the curves, and the epoch that was kept (0: none, or not known)."""
    box: Any = _read.container(data, table_key)
    if key not in box.uns or not hasattr(box.uns[key], "get"):
        records = [k for k, v in box.uns.items() if hasattr(v, "get") and "history" in v]
        there = f"{did_you_mean(key, records)} There is {', '.join(map(repr, records)) or 'none'}."
        raise KeyError(f"No record of a training in uns[{key!r}].{there}")
    record = box.uns[key]
    found, report = record.get("history"), record.get("report")
    report = report if hasattr(report, "get") and len(report) else {}
    instead = f" What was measured instead is in uns[{key!r}]['report']." if report else ""
    if found is None or len(found) == 0:
        raise ValueError(
            f"uns[{key!r}] has no history: the method is computed in closed form, without epochs.{instead}"
        )
    if isinstance(found, pd.DataFrame):
        curves = found
    else:  # a dict of arrays, or of one-column tables as scvi-tools keeps them
        curves = pd.DataFrame({name: pd.Series(np.asarray(values, float).ravel()) for name, values in found.items()})
    numbers = curves.select_dtypes("number").dropna(axis=1, how="all")
    numbers = numbers.loc[:, numbers.columns != "epoch"].set_axis(numbers["epoch"]) if "epoch" in numbers else numbers
    if numbers.shape[1] == 0:
        raise ValueError(f"The history in uns[{key!r}] holds no numbers.")
    if len(numbers) < 2:
        raise ValueError(
            f"The history in uns[{key!r}] is one row, from a method in closed form or a training of one epoch: there is "
            f"no curve to draw.{instead}"
        )
    return numbers, int(report.get("epochs_kept", 0))


def _group(curves: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Sort columns by loss: name -> part ("training", "held out") -> column."""
    panels: dict[str, dict[str, str]] = {}
    for column in map(str, curves.columns):
        bare = re.sub(r"_(epoch|step)$", "", column)
        match = _PART.search(bare)
        name = (bare[: match.start()] + bare[match.end() :]).strip("_") if match else bare
        part = "held out" if match and match[1] != "train" else "training"
        panel = panels.setdefault((name or "loss").replace("_", " "), {})
        panel.setdefault(part, column)
    return panels
