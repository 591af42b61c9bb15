"""Crops around observations, cut out of an image all at once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class LibraryImage(NamedTuple):
    """The image of one section and how coordinates map to it."""

    pixels: np.ndarray  # h x w x 3, uint8
    scale: float  # image pixels per unit of the coordinates
    spot_diameter: float  # in units of the coordinates
    kind: str  # "hires" or "lowres"


def library_image(spatial: Mapping[str, Any], library: str) -> LibraryImage:
    """Read the hires image of a section, or else the lowres one, each with its own scale factor."""
    entry = spatial[library]
    images = entry.get("images") or {}
    where = f"uns['spatial'][{library!r}]"
    kind = next((k for k in ("hires", "lowres") if k in images), None)
    if kind is None:
        raise KeyError(
            f"{where}['images'] has neither 'hires' nor 'lowres'. There is: {', '.join(images) or 'nothing'}."
        )
    factors = entry.get("scalefactors") or {}
    values: dict[str, float] = {}
    for name in (f"tissue_{kind}_scalef", "spot_diameter_fullres"):
        if name not in factors:
            raise KeyError(
                f"{where}['scalefactors'] has no {name!r}, which the size of a crop needs. There is: "
                f"{', '.join(factors) or 'nothing'}. Set it (both are in pixels of the full image: the scale from them "
                "to the image, and the diameter of a spot)."
            )
        value = float(factors[name])
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{where}['scalefactors'][{name!r}] must be a positive number, but is {factors[name]!r}.")
        values[name] = value
    pixels = as_uint8_rgb(images[kind], f"{where}['images'][{kind!r}]")
    return LibraryImage(pixels, values[f"tissue_{kind}_scalef"], values["spot_diameter_fullres"], kind)


def as_uint8_rgb(image: Any, name: str) -> np.ndarray:
    """Give an image as h x w x 3 of uint8: gray is repeated, alpha is laid on white, floats in [0, 1] are scaled.

    Of 16-bit images the highest value tells how many bits were used (10, 12, 14 or 16).
    """
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(f"{name} must be height x width (x 1, 3 or 4 channels), but has the shape {pixels.shape}.")
    if pixels.dtype != np.uint8:
        pixels = _to_uint8(pixels, name)
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:].astype(np.float32) / 255
        pixels = np.rint(pixels[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _to_uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"{name} must hold numbers, but has the dtype {pixels.dtype}.")
    low, high = pixels.min(), pixels.max()
    # A comparison with NaN is false, so this refuses it too.
    if pixels.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(pixels * 255).astype(np.uint8)
    if low >= 0 and high <= 255:
        return np.rint(pixels).astype(np.uint8)
    if pixels.dtype == np.uint16:
        # cameras of 10, 12 or 14 bits leave the upper ones empty; the background of a stained section is bright
        depth = next(bits for bits in (10, 12, 14, 16) if high < 2**bits)
        return (pixels >> (depth - 8)).astype(np.uint8)
    raise ValueError(f"{name} must lie in 0..1 (floats) or 0..255, but reaches from {low} to {high}.")


def gather_crops(pixels: np.ndarray, centers: np.ndarray, side: int) -> np.ndarray:
    """Cut b x side x side x 3 crops around n x 2 centers (x, y in pixels); the image is mirrored at its borders."""
    # A pixel covers [i, i + 1): the crop begins half its side before the center, at the nearest whole pixel.
    first = np.floor(centers - side / 2 + 0.5).astype(np.int64)
    span = np.arange(side)
    columns = _mirror(first[:, :1] + span, pixels.shape[1])
    rows = _mirror(first[:, 1:] + span, pixels.shape[0])
    return pixels[rows[:, :, None], columns[:, None, :]]


def _mirror(index: np.ndarray, n: int) -> np.ndarray:
    """Bring indices into 0..n-1 by mirroring at the first and last pixel, as numpy.pad's "reflect" does."""
    if n == 1:
        return np.zeros_like(index)
    index = np.abs(index) % (2 * (n - 1))
    return np.minimum(index, 2 * (n - 1) - index)
