"""Lay a grid of tiles over each section: how large they are, which lie on tissue, which cells they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from anndata import AnnData

from stfuse import _read
from stfuse._check import check_number
from stfuse._image._pyramid import Pyramid
from stfuse._image._section import Choice, Section, of_section, read_places
from stfuse._image._sections import find_sections
from stfuse._image._tiles import Tiles, assign, occupied_tiles, whole_tiles
from stfuse._image._tissue import Tissue, find_tissue
from stfuse._log import warn

DEFAULT_UM = 112.0  # 224 pixels of half a micron, what pathology encoders take
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Plan:
    """How large tiles are, and how much tissue they need; None = at least one cell."""

    um: float | None
    px: float | None
    min_tissue: float | None

    @classmethod
    def read(cls, tile_um: float | None, tile_px: float | None, min_tissue: float | None) -> Plan:
        """Check the arguments of a call."""
        check_number("tile_um", tile_um, above=0, optional=True)
        check_number("tile_px", tile_px, above=0, optional=True)
        check_number("min_tissue", min_tissue, least=0, most=1, optional=True)
        if tile_um is not None and tile_px is not None:
            raise ValueError("Give the side of tiles once: tile_um= (microns) or tile_px= (full-resolution pixels).")
        return cls(DEFAULT_UM if tile_um is None and tile_px is None else tile_um, tile_px, min_tissue)

    def side(self, frame: Frame) -> float:
        """Side of a tile in units of the frame."""
        if self.px is not None:
            return float(self.px)
        if frame.mpp is None:
            raise ValueError(
                f"tile_um={self.um:g} needs the size of a pixel, and nothing tells it for section {frame.name!r}: neither "
                "the image file, nor the scale factors (microns_per_pixel), nor a coordinate system in microns, nor spots "
                "on the lattice of a known array. Give microns per full-resolution pixel (of coordinates without image: "
                "per unit), mpp=, or the side in pixels, tile_px=."
            )
        return float(self.um or DEFAULT_UM) / frame.mpp


@dataclass(frozen=True)
class Frame:
    """One section in pixels of its image; without image, in units of its coordinates."""

    name: str
    rows: np.ndarray  # observations of the table
    places: np.ndarray  # where they lie, n x 2
    image: Pyramid | None
    mpp: float | None

    @classmethod
    def of(cls, section: Section) -> Frame:
        """Read the frame of a section with an image. Squares stay squares where pixels are stretched, of the same area."""
        mpp = None if section.mpp is None else float(np.sqrt(section.mpp[0] * section.mpp[1]))
        return cls(section.name, section.rows, section.centers, section.image, mpp)


def frames_of_anndata(table: AnnData, choice: Choice, min_tissue: float | None) -> list[Frame]:
    """Read the sections of an AnnData: those with an image, or, where no tissue is asked for and there is none, all."""
    if min_tissue is not None or choice.image is not None or table.uns.get("spatial"):
        return [Frame.of(section) for section in find_sections(table, choice)]
    check_number("mpp", choice.mpp if not isinstance(choice.mpp, dict) else None, above=0, optional=True)
    places = read_places(table, choice.spatial_key)
    codes, names = _read.read_sections(table, choice.library_key)
    _read.warn_if_stacked(places, len(names), choice.library_key)
    frames = []
    for code, name in enumerate(names):
        rows = np.flatnonzero(codes == code)
        said = of_section(choice.mpp, name, "mpp")
        frames.append(Frame(name, rows, places[rows], None, None if said is None else float(said)))
    return frames


def lay_tiles(frames: Sequence[Frame], plan: Plan) -> list[Tiles]:
    """Lay the tiles of all sections; sections without a tile are left out, with a warning."""
    laid = [_lay(frame, plan) for frame in frames]
    empty = [tiles.section for tiles in laid if not len(tiles.names)]
    if len(empty) == len(laid):
        why = (
            "no cell has a place inside of a whole tile"
            if plan.min_tissue is None
            else f"no tile has at least {plan.min_tissue:g} of its area on tissue. Look at the image (wrong one, or all "
            "background?), lower min_tissue=, or take every tile with a cell by min_tissue=None"
        )
        raise ValueError(f"There are no tiles in {', '.join(map(repr, empty)) or 'the data'}: {why}.")
    if empty:
        warn(f"No tiles in {', '.join(map(repr, empty))}: nothing there is tissue enough.")
    return [tiles for tiles in laid if len(tiles.names)]


def _lay(frame: Frame, plan: Plan) -> Tiles:
    side = plan.side(frame)
    tissue = None
    if frame.image is None:
        grid = occupied_tiles(frame.places, side)
    else:
        grid = whole_tiles(frame.image.size, side)
        if not len(grid):
            width, height = frame.image.size
            raise ValueError(
                f"Tiles of {side:.4g} pixels a side are larger than the image of section {frame.name!r}, which has "
                f"{width:.0f} x {height:.0f} full-resolution pixels: make them smaller, or check mpp=."
            )
        if plan.min_tissue is None:
            grid = grid[np.unique(assign(frame.places, grid, side)[1])]
        else:
            tissue = _tissue(frame.image, side).fraction(grid * side, (side, side))
            kept = tissue >= plan.min_tissue - _ROUNDING
            grid, tissue = grid[kept], np.clip(tissue[kept], 0, 1)
    which, tile = assign(frame.places, grid, side)
    names = np.array([f"{frame.name}_{row}_{column}" for column, row in grid.tolist()], dtype=object)
    sides = np.full(len(grid), side)
    return Tiles(frame.name, names, grid * side, sides, frame.rows[which], tile, tissue, frame.mpp)


def _tissue(image: Pyramid, side: float) -> Tissue:
    """Find tissue; gaps in it of less than half a tile (air in the lung, fat cells, vessels) are part of it."""
    found = find_tissue(image)
    return found._replace(mask=_close(found.mask, found.step, side / 4))


def _close(mask: np.ndarray, step: tuple[float, float], radius: float) -> np.ndarray:
    """Morphological closing by a disk: grow by its radius, then shrink again."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any() or mask.all():
        return mask
    pixel = step[::-1]
    margin = [int(np.ceil(radius / length)) + 1 for length in pixel]
    padded = np.pad(mask, [(m, m) for m in margin])
    grown = distance_transform_edt(~padded, sampling=pixel) <= radius
    closed = distance_transform_edt(grown, sampling=pixel) > radius if not grown.all() else grown
    return np.asarray(closed[margin[0] : -margin[0], margin[1] : -margin[1]]) | mask
