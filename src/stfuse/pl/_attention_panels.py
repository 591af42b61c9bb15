"""The panels of `pl.attention`: a crop, the attention under it in grey, cells, scale bar and legends."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from stfuse.pl._attention_cells import Cells
from stfuse.pl._color import Color
from stfuse.pl._layout import TEXT, draw_legend

LEAST_DOT, LARGEST_DOT = 3.0, 7.0  # diameter of a cell in points
FILLED = 0.35  # of the distance between cells that lie evenly, so that the map shows between them
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # how bright red, green and blue look
INK = 0.65  # how dark the darkest tissue of a crop is over a map; its brightest is clear, as on tracing paper
CONTRAST = 64  # brightness, of 255, between the two at least: noise of an empty crop is no tissue
WIDE, NARROW = 3.6, 2.7  # inches of a panel of one tile or slide, and of many
EVEN = 2.0  # the scale reaches at least so far: attention that is nearly uniform is to look so
ROOM = 0.88  # inches of the colour bar with its numbers and words


def draw_crop(ax: Axes, pixels: np.ndarray, width_um: float | None) -> None:
    """Show a crop, with a scale bar where its size is known. Crops are square tissue whatever their pixels."""
    _prepare(ax, pixels)
    if width_um is not None:
        scale_bar(ax, width_um)


def draw_map(
    ax: Axes, pixels: np.ndarray, values: np.ndarray, covered: tuple[float, float], scale: ScalarMappable, alpha: float
) -> None:
    """Lay attention (rows x columns of patches) under a crop in grey; ``covered`` is how much of it the patches cover."""
    height, width = pixels.shape[:2]
    extent = (0, width * covered[0], height * covered[1], 0)
    look: dict[str, Any] = {"cmap": scale.get_cmap(), "norm": scale.norm, "alpha": alpha, "interpolation": "nearest"}
    ax.imshow(values, extent=extent, zorder=0, **look)
    _prepare(ax, traced(pixels))


def traced(pixels: np.ndarray) -> np.ndarray:
    """Turn a crop into black ink, thicker where it is darker: RGBA."""
    bright = pixels.astype(np.float32) @ LUMA
    dark, clear = np.percentile(bright, [1, 90])
    ink = np.zeros((*bright.shape, 4), dtype=np.float32)
    ink[:, :, 3] = INK * np.clip((clear - bright) / max(clear - dark, CONTRAST), 0, 1)
    return ink


def draw_cells(ax: Axes, cells: Cells, size: float | None) -> PathCollection:
    """Draw cells as circles with a white rim, which stand out from every colour of a map."""
    width = float(ax.get_window_extent().width / ax.figure.dpi * 72)
    dot = size or float(np.clip(FILLED * width / np.sqrt(max(len(cells.xy), 1)), LEAST_DOT, LARGEST_DOT))
    return ax.scatter(
        cells.xy[:, 0], cells.xy[:, 1], s=dot**2, c=cells.rgba, edgecolors="white", linewidths=0.12 * dot, zorder=3
    )


def _prepare(ax: Axes, pixels: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    ax.imshow(pixels, extent=(0, width, height, 0), zorder=1)
    # a map may reach beyond the crop, and a square of tissue need not have square pixels
    ax.set(xticks=[], yticks=[], aspect="auto", xlim=(0, width), ylim=(height, 0))
    ax.set_box_aspect(1)
    ax.spines[:].set_visible(False)


def scale_bar(ax: Axes, width_um: float) -> None:
    """Draw the longest round length that takes no more than a third of the crop."""
    power = 10.0 ** np.floor(np.log10(width_um / 3))
    length = max(step for step in (1, 2, 5) if step * power <= width_um / 3 * (1 + 1e-9)) * power
    share, left, low = length / width_um, 0.05, 0.05
    halo = [withStroke(linewidth=4.5, foreground="white")]
    inside: dict[str, Any] = {"transform": ax.transAxes, "zorder": 4}
    ax.plot([left, left + share], [low, low], color="black", lw=2.2, path_effects=halo, clip_on=False, **inside)
    halo = [withStroke(linewidth=2.2, foreground="white")]
    ax.text(
        left + share / 2,
        low + 0.025,
        f"{length:g} µm",
        ha="center",
        va="bottom",
        fontsize=TEXT - 1,
        path_effects=halo,
        **inside,
    )


def draw_scales(
    ax: Axes, side: float, scale: ScalarMappable, alpha: float, color: Color | None, dots: ScalarMappable | None
) -> None:
    """Put the colour bar of attention, and the legend of the cells, to the right of a panel of so many inches."""
    inset = ax.inset_axes((1 + 0.12 / side, 0.14, 0.13 / side, 0.72))
    bar: Any = ax.figure.colorbar(scale, cax=inset, alpha=alpha)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TEXT - 1, length=2)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    bar.set_label("attention (1 = uniform)", fontsize=TEXT)
    if color is not None:
        beyond = ax.inset_axes((1, 0, ROOM / side, 1))
        beyond.set_axis_off()
        draw_legend(beyond, color, side, dots, color.name)
