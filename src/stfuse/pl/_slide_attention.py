"""How much the tiles of a slide counted, drawn over its tissue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from stfuse import _keys, _read
from stfuse._check import check_number, did_you_mean
from stfuse._image._section import Choice, Section, read_places
from stfuse._slides import column_of
from stfuse.pl import _tissue
from stfuse.pl._attention_panels import EVEN, NARROW, ROOM, WIDE, draw_scales, scale_bar, traced
from stfuse.pl._color import MISSING, Color, Limit, n_missing, number_scale
from stfuse.pl._layout import TEXT, Block, draw_title, place, save_figure
from stfuse.pl._spatial import RASTERIZE
from stfuse.pp._seen_crops import table_of

THUMBNAIL = 4_096  # pixels a side of the image of a whole slide, of which a panel may show a part
HALO = 2.6  # points of the line around a tile, with its white rim
FAINT = 0.6  # opacity of tissue under spots
OFF_GRID = 0.05  # of a tile's side: places that lie nearer to a square grid are squares


type Thumbnail = tuple[np.ndarray | None, float]  # pixels, and how many there are to a unit of the coordinates


class Piece(NamedTuple):
    """Tiles of a slide on one image: where they lie, and how much each counted (1 = as much as all on average)."""

    section: _tissue.Section
    values: np.ndarray
    square: bool
    mpp: float | None


class Look(NamedTuple):
    """How it is drawn."""

    cmap: str
    alpha: float
    vmin: Limit
    vmax: Limit
    ncols: int
    figsize: tuple[float, float] | None
    save: str | Path | None


def slide_attention(
    data: Any, slides: list[str], attention_key: str, slide_key: str, top: int | None, choice: Choice, look: Look
) -> list[Axes]:
    """Draw attention that is kept in ``obs``, beside the image where there is one; returns the panels of each slide in turn."""
    check_number("top", top, least=1, whole=True, optional=True)
    table = table_of(data, choice)
    values = _read_values(table, attention_key)
    pieces = _pieces(data, table, slides, (attention_key, slide_key), values, choice)
    sections = [piece.section for piece in pieces]
    frames, ratio = _tissue.windows(sections)
    drawn = np.concatenate([piece.values for piece in pieces])
    highest = max(float(np.nanmax(drawn)), EVEN) if look.vmax is None else look.vmax
    scale: Any = number_scale(Color("attention", drawn, {}), np.arange(drawn.size), look.cmap, look.vmin, highest)

    each = 2 if any(section.image is not None for section in sections) else 1
    width = WIDE if len(pieces) == 1 else NARROW
    columns = look.ncols if each == 1 else max(2, look.ncols - look.ncols % 2)  # an image and its map stay together
    (axes,) = place([Block(each * len(pieces), ROOM)], (width, width * ratio), columns, look.figsize)
    for number, (piece, frame) in enumerate(zip(pieces, frames, strict=True)):
        *beside, over = axes[number * each : (number + 1) * each]
        for ax in beside:
            _draw_image(ax, piece, frame)
            _draw_top(ax, piece, top)
        _draw_map(over, piece, frame, scale, look.alpha)
        _draw_top(over, piece, top)
        draw_title((beside or [over])[0], piece.section.name)
        if beside:
            draw_title(over, f"{attention_key} of {piece.values.size:,} tiles")
    edge = axes[min(columns, len(axes)) - 1]
    draw_scales(edge, width, scale, look.alpha, None, None)
    if n_missing(scale):
        _name_missing(edge)
    if look.save is not None:
        save_figure(axes[0], look.save)
    return axes


# -- what is read -----------------------------------------------------------------------------------------------------


def _read_values(table: AnnData, key: str) -> np.ndarray:
    """Attention as it is kept."""
    column = column_of(table, "tiles", "attention_key", key)
    if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        raise ValueError(f"obs[{key!r}] (attention_key) must hold numbers, its dtype is {column.dtype}.")
    values = column.to_numpy(dtype=float, na_value=np.nan)
    if np.isinf(values).any() or (values < 0).any():
        row = int(np.flatnonzero(np.isinf(values) | (values < 0))[0])
        raise ValueError(
            f"obs[{key!r}] (attention_key) is {values[row]:g} in row {row}: attention is a share of its slide, at least 0. "
            "stfuse.tl.mirror writes 'mirror_attention', stfuse.tl.mil 'mil_attention'."
        )
    return values


def _slide_rows(table: AnnData, slides: list[str], slide_key: str) -> list[np.ndarray]:
    """Tiles of each slide that is named; a number in the column is the name that reads like it."""
    column = column_of(table, "tiles", "slide_key", slide_key)
    if pd.api.types.is_float_dtype(column.dtype) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    categories = pd.Categorical(column)
    names = [str(name) for name in categories.categories]
    missing = [name for name in slides if name not in names]
    if missing:
        raise KeyError(
            f"No slide {missing[0]!r} in obs[{slide_key!r}] (slide_key).{did_you_mean(missing[0], names)} There is "
            f"{_read.listing(names)}."
        )
    return [np.flatnonzero(categories.codes == names.index(name)) for name in slides]


def _relative(values: np.ndarray, slide: str, key: str) -> np.ndarray:
    """Attention times the number of tiles that have some, where it sums to one."""
    known = np.isfinite(values)
    if not known.any():
        raise ValueError(f"No tile of slide {slide!r} has a value in obs[{key!r}] (attention_key).")
    mean = values[known].mean()
    if mean == 0:
        raise ValueError(f"obs[{key!r}] (attention_key) is 0 in all tiles of slide {slide!r}.")
    relative: np.ndarray = values / mean
    return relative


def _few(table: AnnData, rows: list[np.ndarray], slides: list[str], slide_key: str, choice: Choice) -> AnnData:
    """Tiles of the slides that are drawn, one slide after another, with what tells where they lie."""
    places = read_places(table, choice.spatial_key)
    all_rows = np.concatenate(rows)
    whole: Any = table.obs  # a table that is read from disk as it is needed has columns of xarray
    obs = (
        (whole if isinstance(whole, pd.DataFrame) else whole.to_memory())
        .iloc[all_rows]
        .set_axis([str(i) for i in range(all_rows.size)])
    )
    obs[slide_key] = pd.Categorical(np.repeat(slides, [len(own) for own in rows]))
    few = AnnData(obs=obs, obsm={_keys.SPATIAL: places[all_rows]})
    if table.uns.get("spatial"):
        few.uns["spatial"] = table.uns["spatial"]
    return few


def _grounds(data: Any, table: AnnData, slides: list[str], slide_key: str, choice: Choice) -> list[Section]:
    """Images that tiles lie on; none where there are none. Images that are named as the slides are theirs."""
    from stfuse._image._sections import find_sections

    held = table.uns.get("spatial")
    of_elements = _read.is_spatialdata(data) and len(data.images) > 0 and "spatialdata_attrs" in table.uns
    if choice.image is None and not held and not of_elements:
        return []
    named = {str(name) for name in (choice.image if isinstance(choice.image, Mapping) else held or ())}
    if choice.library_key is None and not of_elements and named & set(slides):
        choice = replace(choice, library_key=slide_key)
        if held:
            table.uns["spatial"] = {name: entry for name, entry in held.items() if str(name) in slides}
    return find_sections(data, choice)


def _pieces(
    data: Any, table: AnnData, slides: list[str], keys: tuple[str, str], values: np.ndarray, choice: Choice
) -> list[Piece]:
    """Tiles of each slide, apart where they lie on several images."""
    attention_key, slide_key = keys
    rows_of = _slide_rows(table, slides, slide_key)
    shown = [_relative(values[rows], slide, attention_key) for slide, rows in zip(slides, rows_of, strict=True)]
    if not _read.is_spatialdata(data):
        data = table = _few(table, rows_of, slides, slide_key, choice)
        rows_of = np.split(np.arange(table.n_obs), np.cumsum([len(rows) for rows in rows_of])[:-1])
        choice = replace(choice, spatial_key=_keys.SPATIAL)
    grounds = _grounds(data, table, slides, slide_key, choice)
    places, ground, names = _places(data, table, grounds, choice)

    @cache  # slides may lie on one image
    def thumbnail(number: int) -> Thumbnail:
        pixels, step = grounds[number].image.thumbnail(THUMBNAIL)
        return pixels, 1 / float(np.mean(step))

    pieces = []
    for slide, rows, own in zip(slides, rows_of, shown, strict=True):
        placed = np.isfinite(places[rows]).all(1)
        if not placed.any():
            raise ValueError(f"No tile of slide {slide!r} has coordinates.")
        here = np.unique(ground[rows[placed]])
        for number in here:
            inside = placed & (ground[rows] == number)
            on, image = (grounds[number], thumbnail(number)) if number < len(grounds) else (None, (None, 1.0))
            name = slide if here.size == 1 else f"{slide}, {names[number]}"
            pieces.append(_piece(name, table, rows[inside], places[rows[inside]], own[inside], on, image))
    return _sized(pieces)


def _places(
    data: Any, table: AnnData, grounds: list[Section], choice: Choice
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Where tiles lie, the number of the image (or of the section, after all images) each lies on, and their names."""
    found = _read.read_coordinates(data, choice.spatial_key, choice.table_key)
    if found is None and not grounds:
        raise KeyError(_read.no_coordinates(data, choice.spatial_key, choice.table_key))
    places = np.full((table.n_obs, 2), np.nan) if found is None else found.astype(float)
    codes, names = np.zeros(table.n_obs, int), [""]
    if choice.library_key is not None:
        codes, names = _read.read_sections(data, choice.library_key, choice.table_key)
    ground = len(grounds) + codes
    for number, section in enumerate(grounds):
        places[section.rows], ground[section.rows] = section.centers, number
    return places, ground, [*(section.name for section in grounds), *names]


def _piece(
    name: str,
    table: AnnData,
    rows: np.ndarray,
    xy: np.ndarray,
    values: np.ndarray,
    ground: Section | None,
    thumbnail: Thumbnail,
) -> Piece:
    """One panel's tiles; of one whose size nothing tells it is NaN."""
    if ground is not None and ground.spot is not None:
        side, square = ground.spot * float(np.mean(ground.unit)), ground.tiles
    elif "tile_size" in table.obs:
        side, square = float(np.nanmedian(np.asarray(table.obs["tile_size"], dtype=float)[rows])), True
    else:
        side = _tissue.neighbor_distance(xy)
        steps = (xy - xy.min(0)) / side
        square = bool(np.isnan(side) or (np.abs(steps - steps.round()) < OFF_GRID).all())
        side = side if square else _tissue.TOUCHING * side
    mpp = None if ground is None or ground.mpp is None else float(np.mean(ground.mpp))
    return Piece(_tissue.Section(name, rows, xy, side, *thumbnail, xy.min(0), xy.max(0)), values, square, mpp)


def _sized(pieces: list[Piece]) -> list[Piece]:
    """Give a single tile the size of the others, and room around all."""
    sides = np.array([piece.section.diameter for piece in pieces])
    usual = float(np.median(sides[np.isfinite(sides)])) if np.isfinite(sides).any() else 1.0
    made = []
    for piece, side in zip(pieces, np.where(np.isfinite(sides), sides, usual).tolist(), strict=True):
        section, border = piece.section, _tissue.BORDER * side
        section = section._replace(diameter=side, low=section.low - border, high=section.high + border)
        made.append(piece._replace(section=section))
    return made


# -- what is drawn ----------------------------------------------------------------------------------------------------


def _draw_image(ax: Axes, piece: Piece, frame: tuple[np.ndarray, np.ndarray]) -> None:
    """Show the tissue, with a scale bar where its size is known."""
    _tissue.draw_section(ax, piece.section, frame, 1.0)
    if piece.section.image is not None and piece.mpp is not None:
        scale_bar(ax, float(frame[1][0] - frame[0][0]) * piece.mpp)


def _draw_map(ax: Axes, piece: Piece, frame: tuple[np.ndarray, np.ndarray], scale: Any, alpha: float) -> None:
    """Colour the tiles, under the tissue in grey; spots, between which it is seen, over it."""
    _tissue.draw_section(ax, piece.section, frame, 1.0)
    for image in ax.images:  # of the part that is seen
        image.set(data=traced(np.asarray(image.get_array())), zorder=1, alpha=1.0 if piece.square else FAINT)
    known = np.isfinite(piece.values)
    rgba = np.empty((known.size, 4))
    rgba[known] = scale.to_rgba(piece.values[known])
    rgba[~known] = to_rgba(MISSING)
    rgba[:, 3] = alpha
    tiles = _outlines(ax, piece, np.arange(known.size), 0.0, facecolors=rgba, linewidths=0)
    # between tiles that touch there is to be no line
    tiles.set(zorder=0 if piece.square else 2, antialiased=not piece.square, rasterized=known.size > RASTERIZE)


def _draw_top(ax: Axes, piece: Piece, top: int | None) -> None:
    """Outline the most attended tiles, from outside: of a small tile a line within it would leave no colour."""
    if top is None:
        return
    points = float(ax.get_window_extent().width / ax.figure.dpi * 72)
    halo = HALO * float(np.ptp(ax.get_xlim())) / points
    order = np.argsort(-np.nan_to_num(piece.values, nan=-1), kind="stable")[: min(top, np.isfinite(piece.values).sum())]
    rings = _outlines(ax, piece, order, halo, facecolors="none", edgecolors="black", linewidths=1.1)
    rings.set(zorder=3, path_effects=[withStroke(linewidth=HALO, foreground="white")])


def _outlines(ax: Axes, piece: Piece, which: np.ndarray, wider: float, **style: Any) -> Collection:
    """Squares or circles of some tiles, by so much larger than they are."""
    xy, side = piece.section.xy[which], piece.section.diameter + wider
    shapes: Collection
    if piece.square:
        corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * side
        shapes = PolyCollection(xy[:, None] + corners, **style)
    else:
        shapes = EllipseCollection([side], [side], [0], units="xy", offsets=xy, offset_transform=ax.transData, **style)
    ax.add_collection(shapes, autolim=False)
    return shapes


def _name_missing(ax: Axes) -> None:
    """Say what grey is."""
    handle = Line2D([], [], marker="s", ls="", ms=6.5, mec="none", color=MISSING, label="missing")
    ax.legend(
        handles=[handle],
        frameon=False,
        fontsize=TEXT,
        handletextpad=0.3,
        borderaxespad=0.3,
        loc="lower left",
        bbox_to_anchor=(1.0, -0.02),
    )
