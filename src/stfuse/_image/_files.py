"""Image files: PNG and JPEG at once, TIFF, OME-TIFF and SVS lazily with their pyramids."""

from __future__ import annotations

import os
import re
import weakref
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from stfuse._image._color import NotRgbError, check_channels
from stfuse._image._pyramid import Pyramid, pyramid

TIFF = (".tif", ".tiff", ".svs", ".btf", ".ndpi", ".scn")
PLAIN = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MICRONS = {"µm": 1, "um": 1, "μm": 1, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400}
_COLOURS = {"MINISBLACK", "RGB", "YCBCR"}  # how the numbers of a TIFF may be meant
_CHUNK = 1024  # pixels read at once of a file whose own tiles or strips are smaller


def names_file(value: Any) -> bool:
    """Tell a path, or the name of an image file, from the key of an image."""
    if isinstance(value, str):
        return value.lower().endswith((*TIFF, *PLAIN)) or os.path.sep in value
    return isinstance(value, os.PathLike)


def open_image(path: str | os.PathLike[str]) -> Pyramid:
    """Open an image file; pixels of TIFFs are read when they are needed."""
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder, not an image file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"The image {str(path)!r} {what} (current folder: {Path.cwd()}).")
    return _open_tiff(path) if path.suffix.lower() in TIFF else _open_plain(path)


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}-{stat.st_size}-{stat.st_mtime_ns}"


def _open_plain(path: Path) -> Pyramid:
    from PIL import Image, UnidentifiedImageError

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a slide is larger than any photograph
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image if image.mode in {"L", "RGB", "RGBA", "I;16", "I", "F", "1"} else _in_rgb(image))
    except UnidentifiedImageError:
        raise ValueError(
            f"{str(path)!r} is no image that can be read. Known are {', '.join((*PLAIN, *TIFF))}."
        ) from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"The image {str(path)!r} is damaged or truncated: {error}.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if pixels.dtype == np.int32:  # how Pillow gives 16-bit PNGs
        pixels = pixels.astype(np.uint16)
    return pyramid([pixels], name=f"the image {str(path)!r}", kind=path.name, token=_stamp(path))


def _in_rgb(image: Any) -> Any:
    transparent = image.mode in {"LA", "PA"} or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _open_tiff(path: Path) -> Pyramid:
    import dask.array as da

    name = f"the image {str(path)!r}"
    try:
        series, mpp = _describe(path)
    except NotRgbError:
        raise
    except Exception as error:
        raise ValueError(f"{name} is damaged, truncated or no TIFF: {error}.") from error
    arrays = []
    for level, (shape, dtype, chunks, axes) in enumerate(series):
        source = TiffLevel(str(path), level, shape, dtype)
        meta = np.empty((0,) * len(shape), dtype)
        lazy = da.from_array(source, chunks=chunks, asarray=False, meta=meta, name=f"{_stamp(path)}-{level}")
        arrays.append(_channels_last(lazy, axes, name))
    return pyramid(arrays, name=name, kind=path.name, mpp=mpp, token=_stamp(path))


def _describe(
    path: Path,
) -> tuple[list[tuple[tuple[int, ...], np.dtype, tuple[int, ...], str]], tuple[float, float] | None]:
    """Read shapes, types, chunks and axes of the levels of the largest image of a file, and its pixel size."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        main = max(file.series, key=lambda s: int(np.prod(s.shape)))
        levels = []
        for level in main.levels:
            axes = level.axes.replace("I", "C").replace("Q", "C")
            levels.append((tuple(level.shape), np.dtype(level.dtype), _chunks(level, axes), axes))
        meaning = getattr(main.keyframe.photometric, "name", str(main.keyframe.photometric))
        if meaning not in _COLOURS:
            raise NotRgbError(
                f"The colours of the image {str(path)!r} are stored as {meaning}, and read are "
                f"{', '.join(sorted(_COLOURS))}: save it as RGB."
            )
        return levels, _microns(file, main)


def _chunks(level: Any, axes: str) -> tuple[int, ...]:
    """Multiples of the file's own tiles of about a thousand pixels a side."""
    page = level.keyframe
    tile = {"Y": page.tilelength or page.rowsperstrip or _CHUNK, "X": page.tilewidth or level.shape[axes.index("X")]}
    return tuple(
        min(n, tile[axis] * max(1, _CHUNK // tile[axis])) if axis in tile else n
        for axis, n in zip(axes, level.shape, strict=True)
    )


def _channels_last(array: Any, axes: str, name: str) -> Any:
    colours = [axis for axis in axes if axis in "SC" and array.shape[axes.index(axis)] > 1]
    stacks = [axis for axis in axes if axis not in "SCYX" and array.shape[axes.index(axis)] > 1]
    if "Y" not in axes or "X" not in axes or len(colours) > 1 or stacks:
        raise ValueError(
            f"{name} has the axes {axes} ({' x '.join(map(str, array.shape))}): a plane of Y and X with at most one axis "
            "of colours is needed. Save the plane that shows the tissue as a file of its own."
        )
    keep = ["Y", "X", *colours]
    array = array[tuple(slice(None) if axis in keep else 0 for axis in axes)]
    left = [axis for axis in axes if axis in keep]
    return array.transpose([left.index(axis) for axis in keep])


def _microns(file: Any, series: Any) -> tuple[float, float] | None:
    """Microns per pixel (x, y) as the scanner wrote them; resolution tags of plain TIFFs are too often made up."""
    if file.is_ome and file.ome_metadata:
        images = ElementTree.fromstring(file.ome_metadata).findall(".//{*}Pixels")
        index = next(i for i, other in enumerate(file.series) if other is series)
        if index < len(images):
            pixels = images[index]
            check_channels(_channel_names(pixels), f"the image {file.filename!r}")
            x, y = (_length(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit", "µm")) for a in "XY")
            return None if x is None else (x, x if y is None else y)
    if file.is_svs:
        found = re.search(r"\bMPP\s*=\s*([0-9.,eE+-]+)", series.keyframe.description)
        size = _length(found.group(1).replace(",", "."), "µm") if found else None
        return None if size is None else (size, size)
    return None


def _length(text: str | None, unit: str) -> float | None:
    """Read a length in microns; None where there is none, or where it says nothing (0, pixels, other units)."""
    try:
        length = float(text or "nan") * _MICRONS.get(unit, np.nan)
    except ValueError:
        return None
    return length if np.isfinite(length) and length > 0 else None


def _channel_names(pixels: Any) -> list[str]:
    names = [channel.get("Name") for channel in pixels.findall("{*}Channel")]
    return [name for name in names if name] if len(names) > 1 else []


class TiffLevel:
    """One level of a TIFF as an array that is read from the file when it is sliced, and that can be sent elsewhere."""

    ndim: int

    def __init__(self, path: str, level: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.level, self.shape, self.dtype = path, level, shape, dtype
        self.ndim = len(shape)
        self._array: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_array": None}

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            if self._array is None:
                self._array = self._open()
            return np.asarray(self._array[key])
        except Exception as error:
            raise ValueError(
                f"The image {self.path!r} can't be read there, it is damaged or truncated: {error or type(error).__name__}."
            ) from error

    def _open(self) -> Any:
        import tifffile
        import zarr

        file = tifffile.TiffFile(self.path)
        weakref.finalize(self, file.close)
        main = max(file.series, key=lambda s: int(np.prod(s.shape)))
        return zarr.open_array(main.aszarr(level=self.level), mode="r")
