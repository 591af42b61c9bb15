"""Slides and their tiles, two objects that a column of the second joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse._disk import lies_on_disk, usable_rows


@dataclass(frozen=True)
class Cohort:
    """Slides by name, features of all tiles (N x d; which of them ``has``), and the slide of each tile (-1 = not among them).

    Features may be an array on disk.
    """

    names: pd.Index
    features: Any
    has: np.ndarray
    slide: np.ndarray

    @property
    def n_tiles(self) -> np.ndarray:
        """Usable tiles of each slide."""
        return np.bincount(self.slide[self.has & (self.slide >= 0)], minlength=len(self.names))

    def counts(self) -> dict[str, int]:
        """How many there are of what, for the record."""
        unknown = self.slide < 0
        return {
            "slides": len(self.names),
            "slides_without_tiles": int((self.n_tiles == 0).sum()),
            "tiles": int((self.has & ~unknown).sum()),
            "tiles_without_features": int((~self.has & ~unknown).sum()),
            "tiles_of_unknown_slides": int(unknown.sum()),
        }


def check_anndata(name: str, value: Any) -> None:
    """Refuse what is no AnnData; a table of something larger is one."""
    if not isinstance(value, AnnData):
        raise TypeError(
            f"{name} must be an AnnData, got {type(value).__name__}: of a SpatialData pass sdata.tables[...], of a MuData "
            "mdata.mod[...]."
        )


def column_of(adata: AnnData, name: str, argument: str, key: str) -> pd.Series:
    """Read a column of ``obs`` of one of two objects, and say which where it is not there."""
    if key not in adata.obs:
        raise KeyError(
            f"No column {key!r} ({argument}) in {name}.obs.{did_you_mean(key, adata.obs.columns)} There is "
            f"{_read.listing(adata.obs.columns)}."
        )
    column = adata.obs[key]
    # an object that is read from disk as it is needed has columns of xarray
    return column if isinstance(column, pd.Series) else column.to_series()


def slide_names(tiles: AnnData, slide_key: str, name: str = "tiles") -> tuple[pd.Categorical, list[str]]:
    """Slide of each tile, and the names of slides as text; a number is the name that reads like it."""
    values = column_of(tiles, name, "slide_key", slide_key)
    if pd.api.types.is_float_dtype(values.dtype) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")  # whole numbers, which a missing one turned into such with a point
    column = pd.Categorical(values)
    return column, [str(slide) for slide in column.categories]


def read_cohort(
    slides: AnnData, tiles: AnnData, slide_key: str, image_key: str, *, stream: bool = False
) -> Cohort:  # fmt: skip
    """Read the tiles' features, and find the slide of each by name. With ``stream`` features on disk stay there."""
    _read.check_names(slides.obs_names, "slides")
    # names are compared and not tiles, of which there may be millions
    column, names = slide_names(tiles, slide_key)
    rows = np.append(slides.obs_names.get_indexer(pd.Index(names, dtype=object)), -1)
    slide = rows[column.codes]
    if (slide < 0).all():
        there = f"such as {names[0]!r}" if names else "which is empty"
        raise ValueError(
            f"No tile's tiles.obs[{slide_key!r}], {there}, is a name of slides.obs_names"
            f"{f', such as {slides.obs_names[0]!r}' if slides.n_obs else ''}: name the column that holds slide names, or "
            "rename the slides."
        )
    if image_key not in tiles.obsm:
        raise KeyError(
            f"No tiles.obsm[{image_key!r}].{did_you_mean(image_key, tiles.obsm.keys())} There is "
            f"{_read.listing(tiles.obsm.keys())}. stfuse.pp.image_features makes features of tiles."
        )
    what = f"tiles.obsm[{image_key!r}]"
    features: Any = tiles.obsm[image_key]
    if stream and lies_on_disk(features):
        has = usable_rows(features, what)
    else:
        features = _read.as_matrix(features, what)
        has = _read.check_values(features, what)
    if not (has & (slide >= 0)).any():
        raise ValueError(f"No tile of a slide has features: all rows of {what} are NaN there.")
    return Cohort(slides.obs_names, features, has, slide)
