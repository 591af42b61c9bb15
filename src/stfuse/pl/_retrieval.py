"""Draw how well codes find their partner in the other view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from stfuse import _keys, _read
from stfuse._cell_graph import SCALES
from stfuse._check import check_number, check_text, did_you_mean
from stfuse._registry import METHODS
from stfuse.metrics import recall_at_percent
from stfuse.pl._color import Palette, named_colors
from stfuse.pl._layout import TEXT, check_drawing, draw_title, save_figure, text_width

SIDE = 3.1  # inches of a panel
LINE = 0.17  # inches between the names of two curves
CHANCE = "#777777"
READABLE = 0.64  # brightness of the lightest text on white
# sections of fewer observations find a partner among the nearest few % by chance
FEWEST = 2
BAND = 0.25  # opacity
_TITLES = {"image": "image finds expression", "rna": "expression finds image"}

type Curves = dict[str, np.ndarray]  # method -> objects or sections x percentages


def retrieval(
    data: Any,
    *,
    methods: str | Sequence[str] | None = None,
    query: Literal["both", "image", "rna"] = "both",
    library_key: str | None = None,
    max_percent: float = 50.0,
    palette: Palette = None,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes]:
    """Draw how often the code of one view finds its own partner in the other: recall against the share of references looked at.

    A curve for each method, from the codes in `obsm["X_<m>_image"]` and `obsm["X_<m>_rna"]`, by
    :func:`stfuse.metrics.recall_at_percent`. Chance is the dotted diagonal. Give observations whose pairs the methods have not
    been trained on, such as a held-out section: on training pairs a method that memorises them looks perfect.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData with codes, or a list of them, such as the test sections of several folds. Of several the mean
        is drawn, and a band from the lowest to the highest.
    methods
        Methods to draw, by their `key_added`. None: all whose codes of both views are there.
    query
        `"image"`: images look for expression. `"rna"`: expression looks for images. `"both"`: a panel for each.
    library_key
        Column of `obs` with the section: each is then searched by itself, and the mean over sections drawn with a band from the lowest
        to the highest. None: all observations of an object are references.
    max_percent
        Largest share of the references on the axis, in %.
    palette
        Colours of the methods: a list, a dict, or the name of a colour map. None: colours that colour-blind people can tell
        apart.
    title
        Title of each panel. None: which view looks for which.
    figsize
        Size of the figure in inches. None: what the panels need.
    ax
        Axes to draw one panel into.
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
        If codes of a method, or the column with sections, are not there.
    ValueError
        If no observation has both codes, `query` is unknown, a palette is too short, a number is out of range, or `ax` is given for
        two panels.
    TypeError
        If an argument is of the wrong type.
    FileNotFoundError
        If there is no folder to save the figure in.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(400, 2)
    >>> stfuse.tl.pcca(adata, library_key="section")
    >>> panels = stfuse.pl.retrieval(adata, library_key="section")
    >>> [panel.get_title() for panel in panels]
    ['image finds expression', 'expression finds image']
    """
    if query not in ("both", *_keys.VIEWS):
        raise ValueError(f'query must be "both", "image" or "rna", got {query!r}.')
    check_number("max_percent", max_percent, above=0, most=100)
    check_text("library_key", library_key, optional=True)
    check_drawing(None, {}, 1, {}, figsize, save)
    directions = list(_keys.VIEWS) if query == "both" else [query]
    if ax is not None and len(directions) > 1:
        raise ValueError('ax= takes one panel, but query="both" makes two: name "image" or "rna".')
    titles = (
        [_TITLES[view] for view in directions] if title is None else [title] if isinstance(title, str) else [*title]
    )
    if len(titles) != len(directions):
        raise ValueError(f"title has {len(titles)} entries for {len(directions)} panels.")
    objects = list(data) if isinstance(data, list | tuple) else [data]
    if not objects:
        raise ValueError("data is an empty list: give at least one object with codes.")
    names = _names(objects, methods, table_key)
    colors = named_colors(names, palette)
    percent = np.linspace(max_percent / 50, max_percent, 50)
    curves = _curves(objects, names, directions, library_key, percent, table_key)

    words = {name: _title(name) for name in names}
    panels = [ax] if ax is not None else _panels(len(directions), words.values(), figsize)
    for panel, view, heading in zip(panels, directions, titles, strict=True):
        _draw(panel, percent, {words[name]: curves[view][name] for name in names}, [colors[name] for name in names])
        draw_title(panel, heading)
    if save is not None:
        save_figure(panels[0], save)
    return panels[0] if len(panels) == 1 else panels


def _title(name: str) -> str:
    """A method by its title, a scale of one by title and scale, anything else as it is called."""
    method, _, scale = name.rpartition("_")
    if scale in SCALES and method in METHODS:
        return f"{METHODS[method].title} {scale}"
    return METHODS[name].title if name in METHODS else name


# codes and curves


def _names(objects: list[Any], methods: str | Sequence[str] | None, table_key: str | None) -> list[str]:
    """Name the methods to draw, after a check that each object has their codes."""
    there = [_methods_in(_keys_of(data, table_key)) for data in objects]
    common = [name for name in there[0] if all(name in found for found in there)]
    if methods is None:
        if not common:
            raise KeyError(
                "No codes of both views: there is no pair of obsm['X_<m>_image'] and obsm['X_<m>_rna']"
                f"{' that all objects have' if len(objects) > 1 else ''}. Methods that write them are "
                f"{', '.join(f'stfuse.tl.{m.name}' for m in METHODS.values() if m.shared)}."
            )
        return common
    names = [methods] if isinstance(methods, str) else list(dict.fromkeys(methods))
    if not names:
        raise ValueError("methods is an empty list: name at least one, or leave it None.")
    for name in names:
        check_text("methods", name)
        slots = _keys.slots(name)
        if name not in common:
            lacking = "" if len(objects) == 1 else f" in object {next(i for i, t in enumerate(there) if name not in t)}"
            raise KeyError(
                f"No codes of both views of {name!r}, obsm[{slots.image!r}] and obsm[{slots.rna!r}]{lacking}."
                f"{did_you_mean(name, common)} There is {_read.listing(common)}."
            )
    return names


def _keys_of(data: Any, table_key: str | None) -> list[str]:
    box: Any = _read.container(data, table_key)
    parts = [box, *box.mod.values()] if _read.is_mudata(box) else [box]
    return list(dict.fromkeys(key for part in parts for key in part.obsm))


def _methods_in(keys: Iterable[str]) -> list[str]:
    keys = set(keys)
    found = [
        key.removeprefix("X_").removesuffix("_image") for key in keys if key.startswith("X_") and key.endswith("_image")
    ]
    private = "_private"  # codes of what the views do not share have no partner
    found = [name for name in found if name and not name.endswith(private) and _keys.slots(name).rna in keys]
    registered = list(METHODS)
    return sorted(found, key=lambda name: (registered.index(name) if name in METHODS else len(registered), name))


def _curves(
    objects: list[Any],
    names: list[str],
    directions: Sequence[str],
    library_key: str | None,
    percent: np.ndarray,
    table_key: str | None,
) -> Mapping[str, Curves]:
    """Recall of each direction and method, objects or sections x percentages."""
    found: dict[str, dict[str, list[np.ndarray]]] = {view: {name: [] for name in names} for view in directions}
    for data in objects:
        parts = _parts(data, library_key, table_key)
        for name in names:
            codes = {v: _read.read_rep(data, getattr(_keys.slots(name), v), table_key) for v in _keys.VIEWS}
            both = ~(np.isnan(codes["image"]).any(1) | np.isnan(codes["rna"]).any(1))
            kept = [part[both[part]] for part in parts]
            # one pair is its own nearest
            kept = [part for part in kept if part.size >= FEWEST]
            if not kept:
                raise ValueError(
                    f"Codes of {name!r}: too few observations have both, so that there is nothing to find."
                )
            for view in directions:
                other = "rna" if view == "image" else "image"
                found[view][name] += [
                    recall_at_percent(codes[view][r], codes[other][r], percent.tolist()) for r in kept
                ]
    return {view: {name: np.array(curves) for name, curves in by.items()} for view, by in found.items()}


def _parts(data: Any, library_key: str | None, table_key: str | None) -> list[np.ndarray]:
    if library_key is None:
        return [np.arange(_read.container(data, table_key).n_obs)]
    codes, names = _read.read_sections(data, library_key, table_key)
    return [np.flatnonzero(codes == code) for code in range(len(names))]


# panels


def _panels(n: int, words: Iterable[str], figsize: Any) -> list[Axes]:
    """Make panels with room for the names of curves on the right of each."""
    left, bottom, top, gap = 0.55, 0.5, 0.34, 0.1
    right = max(text_width(word) for word in [*words, "chance"]) + 0.3
    width, height = n * (left + SIDE + right) + gap, bottom + SIDE + top
    figure = plt.figure(figsize=figsize or (width, height))
    starts = left + np.arange(n) * (left + SIDE + right)
    return [figure.add_axes((x / width, bottom / height, SIDE / width, SIDE / height)) for x in starts]


def _draw(ax: Axes, percent: np.ndarray, curves: Curves, colors: list[str]) -> None:
    end = percent[-1]
    ax.plot([0, end], [0, end / 100], color=CHANCE, lw=1.2, ls=":", label="chance")
    for (word, values), color in zip(curves.items(), colors, strict=True):
        if len(values) > 1:
            ax.fill_between(percent, values.min(0), values.max(0), color=color, alpha=BAND, lw=0)
        # a recall of 1 lies on the edge, which would cut the line in half
        ax.plot(percent, values.mean(0), color=color, lw=1.8, label=word, clip_on=False)
    ax.set(xlim=(0, end), ylim=(0, 1))
    ax.set_xlabel("nearest references looked at (%)", fontsize=TEXT)
    ax.set_ylabel("recall", fontsize=TEXT)
    several = max(len(values) for values in curves.values())
    if several > 1:
        words = f"mean of {several}, band: lowest to highest"
        ax.text(0.98, 0.03, words, ha="right", fontsize=TEXT - 1, color=CHANCE, transform=ax.transAxes)
    ax.tick_params(labelsize=TEXT - 1)
    ax.spines[["top", "right"]].set_visible(False)
    means = [np.array([0.0, end / 100]), *(values.mean(0) for values in curves.values())]
    _label(ax, ["chance", *curves], means, [CHANCE, *colors])


def _label(ax: Axes, words: list[str], curves: list[np.ndarray], colors: list[str]) -> None:
    """Write the name of each curve beside its end; names that would overlap move apart, and a line leads to each."""
    line = LINE / float(ax.get_window_extent().height / ax.figure.dpi)
    # of curves that end alike, the higher one has its name above
    order = np.lexsort([[curve.mean() for curve in curves], [curve[-1] for curve in curves]])
    ends = np.array([curves[i][-1] for i in order])
    for i, end, place in zip(order, ends, spread(ends, line), strict=True):
        ax.plot([1, 1.035], [end, place], color=colors[i], lw=0.8, transform=ax.transAxes, clip_on=False)
        ax.text(1.05, place, words[i], color=_ink(colors[i]), fontsize=TEXT, va="center", transform=ax.transAxes)


def _ink(color: str) -> tuple[float, ...]:
    """Darken a colour that is too light to be read as text."""
    rgb = np.array(to_rgb(color))
    brightness = float(rgb @ [0.299, 0.587, 0.114])
    return tuple(rgb * min(1.0, READABLE / max(brightness, READABLE)))


def spread(wanted: np.ndarray, least: float) -> np.ndarray:
    """Move places, in ascending order, to ``least`` apart by the smallest squares, within 0 to 1 where there is room."""
    from sklearn.isotonic import isotonic_regression

    steps = least * np.arange(len(wanted))
    # with the steps taken out, to lie apart is to lie in order
    return isotonic_regression(wanted - steps, y_min=0.0, y_max=max(1 - steps[-1], 0.0)) + steps
