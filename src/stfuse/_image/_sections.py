"""The one reader of images: which image each observation lies on, where, and how large things are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anndata import AnnData

from stfuse import _read
from stfuse._check import check_number, check_text
from stfuse._image._elements import sections_of_spatialdata
from stfuse._image._legacy import sections_of_anndata
from stfuse._image._section import Choice, Section


def find_sections(data: Any, choice: Choice) -> list[Section]:
    """Read the image of each section that has one, and where its observations lie on it."""
    _check(data, choice)
    if _read.is_spatialdata(data) and (len(data.images) or choice.shapes is not None):
        return sections_of_spatialdata(data, choice)
    if choice.shapes is not None or choice.coordinate_system is not None:
        raise ValueError("shapes= and coordinate_system= name parts of a SpatialData, and this is none with images.")
    table = _read.container(data, choice.table_key)
    if not isinstance(table, AnnData):
        raise TypeError('Images are read from AnnData or SpatialData: pass the modality, for example mdata["image"].')
    return sections_of_anndata(table, choice)


def _check(data: Any, choice: Choice) -> None:
    if _read.is_mudata(data):
        raise TypeError('Images are read from AnnData or SpatialData: pass the modality, for example mdata["image"].')
    if not isinstance(data, AnnData) and not _read.is_spatialdata(data):
        raise TypeError(f"Expected AnnData or SpatialData, got {type(data).__name__}.")
    for name in ("library_key", "table_key", "shapes", "coordinate_system"):
        check_text(name, getattr(choice, name), optional=True)
    if isinstance(choice.mpp, Mapping):
        for name, value in choice.mpp.items():
            check_number(f"mpp[{name!r}]", value, above=0)
    else:
        check_number("mpp", choice.mpp, above=0, optional=True)
