"""The crops that an encoder sees of chosen observations, and where they lie in their image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse._image._bands import read_crops
from stfuse._image._elements import annotating_table
from stfuse._image._section import Choice
from stfuse.pp._feature_job import Request, make_plan


@dataclass(frozen=True)
class SeenCrop:
    """The crop of one observation, as the encoder gets it."""

    name: str
    image: str  # what its image is called
    pixels: np.ndarray  # h x w x 3, uint8
    first: np.ndarray  # x, y of its upper left pixel, in pixels of the level it was cut from
    downsample: np.ndarray  # full-resolution pixels per pixel, along x and along y
    mpp: tuple[float, float] | None  # microns per full-resolution pixel

    def place(self, centers: np.ndarray) -> np.ndarray:
        """Turn n x 2 places (x, y) in full-resolution pixels into pixels of the crop; its corner is 0, 0."""
        return centers / self.downsample - self.first

    @property
    def width_um(self) -> float | None:
        """Width in microns."""
        return None if self.mpp is None else self.pixels.shape[1] * float(self.downsample[0]) * self.mpp[0]


def table_of(data: Any, choice: Choice) -> AnnData:
    """Find the table of the observations."""
    if _read.is_mudata(data):
        raise TypeError('Images are read from AnnData or SpatialData: pass the modality, for example mdata["image"].')
    table: Any = annotating_table(data, choice) if _read.is_spatialdata(data) else _read.container(data)
    return table


def rows_of(table: AnnData, names: Sequence[str]) -> np.ndarray:
    """Find observations by their names."""
    _read.check_names(table.obs_names, "tiles")
    rows = table.obs_names.get_indexer(list(names))
    if (rows < 0).any():
        missing = names[int(np.flatnonzero(rows < 0)[0])]
        few = ", ".join(map(repr, table.obs_names[:3]))
        raise KeyError(
            f"No tile {missing!r} among the {table.n_obs} obs_names ({few}...).{did_you_mean(missing, table.obs_names)}"
        )
    return rows


def seen_crops(data: Any, table: AnnData, rows: np.ndarray, request: Request, encoder: Any) -> list[SeenCrop]:
    """Cut the crops of some rows just as `pp.image_features` would for this request and encoder."""
    plan = make_plan(data, table.n_obs, request, encoder)
    found: dict[int, SeenCrop] = {}
    for section in plan.sections:
        work = plan.works[section.name]
        (part,) = work.parts  # without a grid there is one crop for each observation
        level = work.image.levels[part.level]
        which = np.flatnonzero(np.isin(part.slots, rows))
        group = part.group.subset(which)
        for _, members, crops in read_crops(work.image, part.level, [group], [len(which) or 1]):
            stained = crops if work.stain is None else work.stain(crops)
            for member, pixels in zip(members, stained, strict=True):
                row = int(part.slots[which[member]])
                first, downsample = group.first[member], np.asarray(level.downsample)
                found[row] = SeenCrop(
                    str(table.obs_names[row]), work.image.kind, pixels, first, downsample, section.mpp
                )
    for row in rows:
        if int(row) not in found:
            raise ValueError(
                f"Tile {table.obs_names[row]!r} has no image: its centre lies outside of it or is not known, or its section "
                "has none (give it with image=)."
            )
    return [found[int(row)] for row in rows]
