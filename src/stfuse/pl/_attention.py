"""Where an image encoder looks on a tile of tissue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.axes import Axes

from stfuse import _keys
from stfuse._check import check_number, check_text, did_you_mean
from stfuse._image._crop_size import CropSize
from stfuse._image._section import Choice
from stfuse.pl._attention_cells import choose_cells
from stfuse.pl._attention_panels import EVEN, NARROW, ROOM, WIDE, draw_cells, draw_crop, draw_map, draw_scales
from stfuse.pl._color import Color, Limit, Palette, keep_colors, number_scale
from stfuse.pl._layout import Block, check_drawing, draw_title, legend_width, place, save_figure
from stfuse.pl._slide_attention import Look, slide_attention
from stfuse.pp._encode import EncoderCall
from stfuse.pp._feature_job import Request
from stfuse.pp._seen_crops import SeenCrop, rows_of, seen_crops, table_of

if TYPE_CHECKING:
    from spatialdata import SpatialData
    from torch import nn

    from stfuse.pp._encoders._attention import PatchAttention


def attention(
    tiles: AnnData | SpatialData,
    tile: str | Sequence[str],
    *,
    encoder: str | nn.Module | Callable[..., Any] | None = None,
    attention_key: str | None = None,
    slide_key: str | None = None,
    top: int | None = None,
    image: Any = None,
    cells: AnnData | str | None = None,
    tile_key: str | None = None,
    color: str | None = None,
    heads: str | int = "mean",
    layer: int = -1,
    crop_um: float | None = None,
    crop_px: float | None = None,
    crop_scale: float | None = None,
    scale: str | int = "auto",
    stain: str | None = None,
    stain_target: Any = None,
    mpp: float | Mapping[str, float] | None = None,
    shapes: str | None = None,
    table_key: str | None = None,
    coordinate_system: str | None = None,
    library_key: str | None = None,
    spatial_key: str | Sequence[str] = _keys.SPATIAL,
    checkpoint: str | PathLike[str] | None = None,
    allow_pickle: bool = False,
    device: str = "auto",
    palette: Palette = None,
    cmap: str = "YlOrRd",
    alpha: float = 0.9,
    vmin: Limit = 0.0,
    vmax: Limit = None,
    size: float | None = None,
    ncols: int = 4,
    figsize: tuple[float, float] | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    r"""Draw where a vision transformer looks on tiles of tissue, or which tiles of a slide a model looked at.

    Beside the crop of each tile, as the encoder sees it, stands the attention of its class token to the patches of the
    crop: the softmax of :math:`q_{class} k_j^T / \sqrt d` in one block, times the number of patches. 1 is what every
    patch has when all get the same, so that values of several tiles can be compared; a patch of 3 gets three times as
    much. All maps share one colour scale.

    With `attention_key` instead of `encoder` it is attention that :func:`stfuse.tl.mirror` or :func:`stfuse.tl.mil` has written, drawn over
    the tissue of whole slides: each tile in its place and of its size, beside the image of the slide where there is one. Values are again times the
    number of tiles: 1 is what every tile has when all count the same.

    Where features are an average over patches (`global_pool="avg"` in timm, or a network without class token), it is the
    attention that each patch receives, on average over all patches; the title says so.

    Parameters
    ----------
    tiles
        Tiles of :func:`stfuse.pp.tessellate`, spots, or other observations with an image: what
        :func:`stfuse.pp.image_features` takes.
    tile
        Name of a tile in `obs_names`, or several; with `attention_key` of a slide, or several.
    encoder
        As in :func:`stfuse.pp.image_features`: a name or a `torch.nn.Module`. It must be, or hold, one vision transformer of
        timm, torchvision or transformers whose tokens all attend to each other (ViT, DeiT, DINOv2, EVA, CLIP...). Exactly one of this and
        `attention_key` is given.
    attention_key
        Column of `obs` with the attention of each tile, such as `"mirror_attention"` or `"mil_attention"`.
    slide_key
        With `attention_key`: column of `obs` with the slide of each tile.
    top
        With `attention_key`: so many tiles of each slide, the most attended ones, are outlined. None = none.
    image
        Image file, array, key or element, as in :func:`stfuse.pp.image_features`. Images named as the slides are theirs.
    cells
        Cells to draw over the map: an AnnData with coordinates in the same pixels as those of the tiles; with a SpatialData,
        its table of cells, or the name of that.
    tile_key
        Column of `cells.obs` that names the tile of each cell. None = `"tiles"`, as :func:`stfuse.pp.tessellate` calls it.
    color
        Column of `obs` or gene of the cells to colour them by.
    heads
        `"mean"` over heads, `"all"` of them one by one, or the number of one, from 0.
    layer
        Block of the network, from 0 at its input; -1 = the last.
    crop_um, crop_px, crop_scale, scale, stain, stain_target, mpp
        Size, level and staining of the crops: give what you gave to :func:`stfuse.pp.image_features`, so that the encoder
        sees the same.
    shapes, table_key, coordinate_system, library_key
        Which parts of the object are meant, as in :func:`stfuse.pp.image_features`.
    spatial_key
        Key of the coordinates in `obsm`, of tiles and of cells, or two columns of `obs` (x, y).
    checkpoint, allow_pickle, device
        Weights of a named encoder and where it runs, as in :func:`stfuse.pp.image_features`.
    palette
        Colours of categories of cells: a list, a dict, or the name of a colour map. None = `uns["<color>_colors"]` of the
        cells, else colours that colour-blind people can tell apart.
    cmap
        Colour map of attention. Numbers of cells are drawn in viridis.
    alpha
        Opacity of the map. The tissue lies over it in grey.
    vmin, vmax
        Ends of the scale of attention: numbers, or percentiles such as `"p99"`. vmax=None is the largest value drawn, but at
        least 2, so that attention that is nearly uniform looks so.
    size
        Diameter of the cells in points. None = by their number.
    ncols
        Panels in a row.
    figsize
        Size of the figure in inches. None = what the panels need.
    save
        File to save the figure to.

    Returns
    -------
    list of matplotlib.axes.Axes
        Of each tile in turn: its crop, then its map or maps. With `attention_key` of each slide its image, where one has any, and its map; a
        slide that lies on several images has each of them.
        Colours of categories are kept in `uns["<color>_colors"]` of the cells, as scanpy does.

    Raises
    ------
    KeyError
        If a tile, a column, a gene, coordinates or an image is not there.
    ValueError
        If `encoder` and `attention_key` are both given or neither, an argument belongs to the other, attention is negative or missing in a whole slide,
        a tile has no image, the encoder is no such transformer (a convolutional network, `"texture"`, attention within
        windows), a block or head is out of range, no cell names a tile, or a number is out of range.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If all cells of a tile lie outside of its crop.

    Notes
    -----
    The softmax also covers the class token itself and registers, which are not drawn: a map with a mean below 1 shows that
    they take the rest. Attention says from where a block collects, not what the feature depends on (Jain and Wallace
    2019), and single background patches of high attention are a known artefact of large networks without registers
    (Darcet et al. 2024). Where the features come from a part above the class token, as in CONCH, the map is that of the
    transformer below.

    References: Dosovitskiy et al. (2021), ViT; Caron et al. (2021), maps of single heads.

    Examples
    --------
    >>> import stfuse
    >>> from timm.models import VisionTransformer
    >>> spots = stfuse.datasets.mob()
    >>> spots = spots[spots.obs["section"] == "MOB1"].copy()
    >>> tiles = stfuse.pp.tessellate(spots, tile_um=400)
    >>> network = VisionTransformer(img_size=96, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    >>> network.input_size = 96
    >>> panels = stfuse.pl.attention(tiles, tiles.obs_names[:2], encoder=network, cells=spots, color="layer")
    >>> len(panels)
    4

    >>> slides, tiles = stfuse.datasets.synthetic_slides(20, seed=1)
    >>> stfuse.tl.mirror(slides, tiles, slide_key="slide", dim=16, max_epochs=1)
    >>> panels = stfuse.pl.attention(tiles, ["slide3", "slide4"], attention_key="mirror_attention", slide_key="slide")
    >>> len(panels)
    2
    """
    choice = Choice(image, library_key, spatial_key, table_key, shapes, coordinate_system, mpp)
    names = _names(tile)
    check_drawing(size, {"alpha": alpha}, ncols, {}, figsize, save)
    of_cells = {"cells": cells, "tile_key": tile_key, "color": color, "palette": palette, "size": size}
    of_crops = {
        "crop_um": crop_um,
        "crop_px": crop_px,
        "crop_scale": crop_scale,
        "stain": stain,
        "checkpoint": checkpoint,
    }
    _check_source(encoder, {"attention_key": attention_key, "slide_key": slide_key, "top": top}, of_cells | of_crops)
    _check_cmap(cmap)
    if attention_key is not None and slide_key is not None:
        look = Look(cmap, alpha, vmin, vmax, ncols, figsize, save)
        return slide_attention(tiles, names, attention_key, slide_key, top, choice, look)
    request = Request(
        call=EncoderCall(encoder, checkpoint, allow_pickle, device),
        choice=choice,
        size=CropSize(crop_um, crop_px, crop_scale),
        scale=scale,
        stain=stain,
        stain_target=stain_target,
    )
    request.check()
    _check_choices(heads, layer, cells, {"tile_key": tile_key, "color": color})

    table = table_of(tiles, request.choice)
    rows = rows_of(table, names)
    chosen = choose_cells(tiles, cells, tile_key, color, palette, all_tiles=table.obs_names, names=names)

    made = request.call.make()
    crops = seen_crops(tiles, table, rows, request, made)
    chosen = chosen.placed(tiles, crops, request.choice)
    dots = [chosen.of(crop) for crop in crops]
    seen = [_attention_of(made, crop, layer) for crop in crops]
    maps = [_maps(each, heads) for each in seen]
    values = np.concatenate([panels.ravel() for panels in maps])
    highest = max(float(values.max()), EVEN) if vmax is None else vmax
    bar: Any = number_scale(Color("attention", values, {}), np.arange(len(values)), cmap, vmin, highest)

    titles, legend = _titles(seen[0], heads, layer), chosen.legend
    side = WIDE if len(names) == 1 and len(titles) == 1 else NARROW
    need = ROOM if legend is None else ROOM + legend_width(legend, side, legend.name, chosen.scale)
    axes, edge = _panels(len(names), len(titles), side, need, ncols, figsize)
    for crop, each, panels, held, (first, *others) in zip(crops, seen, maps, dots, axes, strict=True):
        draw_crop(first, crop.pixels, crop.width_um)
        draw_title(first, crop.name)
        for ax, panel, title in zip(others, panels, titles, strict=True):
            draw_map(ax, crop.pixels, panel, each.covered, bar, alpha)
            draw_title(ax, title)
            draw_cells(ax, held, size)
    draw_scales(edge, side, bar, alpha, legend, chosen.scale)
    if chosen.table is not None:
        keep_colors(chosen.table, [chosen.color], None)
    flat = [ax for panels in axes for ax in panels]
    if save is not None:
        save_figure(flat[0], save)
    return flat


def _names(tile: Any) -> list[str]:
    names = [tile] if isinstance(tile, str) or not hasattr(tile, "__iter__") else list(tile)
    if not names:
        raise ValueError("tile is an empty list: name at least one tile of obs_names.")
    for name in names:
        check_text("tile", name)
    return [str(name) for name in names]


def _check_source(encoder: Any, recorded: dict[str, Any], of_tiles: dict[str, Any]) -> None:
    """Refuse two sources of attention, none, and what belongs to the other one."""
    key, slide_key = recorded["attention_key"], recorded["slide_key"]
    if (encoder is None) == (key is None):
        raise ValueError(
            "Give exactly one of encoder (where it looks within tiles) and attention_key (which tiles of a slide counted, a column of obs)."
        )
    for name in ("attention_key", "slide_key"):
        check_text(name, recorded[name], optional=True)
    if key is not None and slide_key is None:
        raise ValueError(
            "slide_key= is missing: with attention_key= it names the column of obs with the slide of each tile."
        )
    strange = {k: v for k, v in (recorded if key is None else of_tiles).items() if v is not None}
    if strange:
        name, value = next(iter(strange.items()))
        raise ValueError(f"{name}={value!r} goes with {'attention_key' if key is None else 'encoder'}=: leave it out.")


def _check_cmap(cmap: Any) -> None:
    check_text("cmap", cmap)
    if cmap not in colormaps:
        raise ValueError(f"cmap={cmap!r} is not a colour map of matplotlib.{did_you_mean(cmap, colormaps)}")


def _check_choices(heads: Any, layer: Any, cells: Any, of_cells: dict[str, Any]) -> None:
    """Refuse, before weights are loaded, what no network could mend."""
    if isinstance(heads, str):
        if heads not in {"mean", "all"}:
            raise ValueError(f"heads must be 'mean', 'all' or the number of a head, got {heads!r}.")
    else:
        check_number("heads", heads, least=0, whole=True)
    check_number("layer", layer, whole=True)
    for name, value in of_cells.items():
        check_text(name, value, optional=True)
        if value is not None and cells is None:
            raise ValueError(f"{name}={value!r} is about cells: pass them, cells=.")


def _attention_of(encoder: Any, crop: SeenCrop, layer: int) -> PatchAttention:
    from stfuse.pp._encoders._attention import class_attention

    return class_attention(encoder, crop.pixels[None], layer=layer)


def _maps(seen: PatchAttention, heads: str | int) -> np.ndarray:
    """Take the heads that are asked for: maps x rows x columns."""
    relative = seen.relative[0]
    if heads == "mean":
        return relative.mean(axis=0, keepdims=True)
    if heads == "all":
        return relative
    head = int(heads)
    if head >= len(relative):
        raise ValueError(f"heads={head}: a block has {len(relative)} heads, 0 to {len(relative) - 1}.")
    return relative[head : head + 1]


def _titles(seen: PatchAttention, heads: str | int, layer: int) -> list[str]:
    """Say who attends, in which block where it is not the last, and which heads."""
    n = seen.weights.shape[1]
    who = "class token" if seen.class_token else "received by patches"
    block = layer % seen.n_blocks
    where = who if block == seen.n_blocks - 1 else f"{who}, block {block}"
    if heads == "mean":
        return [f"{where}, mean of {n} heads" if n > 1 else where]
    return [f"{where}, head {head}" for head in (range(n) if heads == "all" else [int(heads)])]


def _panels(
    n_tiles: int, n_maps: int, side: float, need: float, ncols: int, figsize: Any
) -> tuple[list[list[Axes]], Axes]:
    """Make the axes of each tile, and say which of them stands at the right end of the first row."""
    each = 1 + n_maps
    if n_maps > 1:
        axes = place([Block(each, need)] * n_tiles, (side, side), ncols, figsize)
        return axes, axes[0][min(ncols, each) - 1]
    columns = max(2, ncols - ncols % 2)  # a crop and its map stay together
    (flat,) = place([Block(n_tiles * each, need)], (side, side), columns, figsize)
    return [flat[i : i + each] for i in range(0, len(flat), each)], flat[min(columns, len(flat)) - 1]
