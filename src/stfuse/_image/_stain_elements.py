"""Image elements of a SpatialData with other colours, as lazy as they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stfuse._image._color import ColorFormat
from stfuse._image._stain import Transform


@dataclass(frozen=True)
class _Recolor:
    """Channels first in, channels first out."""

    color: ColorFormat
    transform: Transform

    def __call__(self, block: np.ndarray) -> np.ndarray:
        return np.moveaxis(self.transform(self.color.to_rgb(np.moveaxis(block, 0, 2))), 2, 0)


def recolored(element: Any, color: ColorFormat, transform: Transform) -> Any:
    """Copy an image element, with all its scales, coordinates and transformations, and map its colours when asked."""
    recolor = _Recolor(color, transform)
    if not hasattr(element, "children"):
        return _scale(element, recolor)
    from xarray import Dataset, DataTree

    scales = {}
    for scale, node in element.children.items():
        scales[scale] = Dataset({name: _scale(array, recolor) for name, array in node.ds.items()}, attrs=node.ds.attrs)
    return DataTree.from_dict(scales, name=element.name)


def _scale(array: Any, recolor: _Recolor) -> Any:
    from xarray import DataArray

    array = array.transpose("c", "y", "x")
    names = list(array.coords["c"].values)[:3] if "c" in array.coords else [0, 1, 2]
    if array.sizes["c"] == 1:
        names = ["r", "g", "b"]
    whole = array.data.rechunk({0: -1})
    pixels = whole.map_blocks(
        recolor, dtype=np.uint8, chunks=((3,), *whole.chunks[1:]), meta=np.empty((0, 0, 0), np.uint8)
    )
    coords = {name: array.coords[name] for name in ("y", "x") if name in array.coords}
    # a transformation that is set on one element later must not move the other
    attrs = {key: dict(value) if isinstance(value, dict) else value for key, value in array.attrs.items()}
    return DataArray(pixels, dims=("c", "y", "x"), coords={"c": names, **coords}, attrs=attrs)
