"""One image and the observations on it, and what a call may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from stfuse import _read
from stfuse._check import check_text, did_you_mean
from stfuse._image._microns import microns_from_spots
from stfuse._image._pyramid import Pyramid
from stfuse._log import logger


@dataclass(frozen=True)
class Section:
    """One image and the observations on it. Lengths along x and y, as an affine map may stretch them differently."""

    name: str
    image: Pyramid
    rows: np.ndarray  # observations of the table that belong to this section
    centers: np.ndarray  # their x, y in full-resolution pixels; NaN = not known
    unit: tuple[
        float, float
    ]  # full-resolution pixels per unit of the coordinates (of an AnnData, of the coordinate system)
    spot: float | None  # diameter of a spot, or side of a tile, in units of the coordinates
    mpp: tuple[float, float] | None  # microns per full-resolution pixel
    tiles: bool = False  # whether ``spot`` is the side of square tiles

    @property
    def inside(self) -> np.ndarray:
        """Which of ``rows`` have their centre on the image."""
        return ((self.centers >= 0) & (self.centers < self.image.size)).all(axis=1)


@dataclass(frozen=True)
class Choice:
    """Which images and which coordinates a call asks for; the same arguments in every function that reads images."""

    image: Any = None
    library_key: str | None = None
    spatial_key: Any = "spatial"
    table_key: str | None = None
    shapes: str | None = None
    coordinate_system: str | None = None
    mpp: Any = None


def read_places(table: AnnData, spatial_key: Any) -> np.ndarray:
    """Read n x 2 coordinates from ``obsm``, or from two columns of ``obs`` when their names are given (x, then y)."""
    if isinstance(spatial_key, list | tuple):
        if len(spatial_key) != 2:
            raise ValueError(f"spatial_key must be one key of obsm or two columns of obs (x, y), got {spatial_key!r}.")
        columns = [_read.read_column(table, name) for name in spatial_key]
        try:
            return np.column_stack([column.to_numpy(dtype=np.float64, na_value=np.nan) for column in columns])
        except (TypeError, ValueError):
            raise ValueError(f"The obs columns {spatial_key!r} must hold numbers (x and y).") from None
    check_text("spatial_key", spatial_key)
    places = _read.read_coordinates(table, spatial_key)
    if places is None:
        there = f"{did_you_mean(spatial_key, table.obsm)} There is: {', '.join(table.obsm) or 'nothing'}."
        listed = ", ".join(map(str, table.obs.columns)) or "nothing"
        raise KeyError(
            f"No obsm[{spatial_key!r}].{there} Name it with spatial_key=, or name two columns of obs (x, y): "
            f'spatial_key=("x", "y"). obs has: {listed}.'
        )
    return places


def of_section(value: Any, name: str, argument: str) -> Any:
    """Pick what belongs to a section from one value for all, or from a mapping by section."""
    if not isinstance(value, Mapping):
        return value
    if name not in value:
        there = ", ".join(repr(str(key)) for key in value)
        raise KeyError(f"{argument} has nothing for section {name!r}.{did_you_mean(name, value)} It has: {there}.")
    return value[name]


def microns(
    mpp: float | None,
    image: Pyramid,
    scale_factors: Mapping[str, Any],
    places: np.ndarray,
    spot: float | None,
    section: str,
) -> tuple[float, float] | None:
    """Microns per full-resolution pixel (x, y): what the user says, the scale factors, the file, or the spots' spacing."""
    if mpp is not None:
        return float(mpp), float(mpp)
    written = scale_factors.get("microns_per_pixel")
    if written is not None and np.isfinite(written) and written > 0:
        return float(written), float(written)
    if image.mpp is not None:
        return image.mpp
    guessed = microns_from_spots(places, spot)
    if guessed is None:
        return None
    logger.info("section %r: mpp=%.4g, from the spacing of its spots, taken for Visium's 100 µm", section, guessed)
    return guessed, guessed
