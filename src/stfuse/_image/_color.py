"""Pixels of any depth and number of channels as uint8 RGB, decided once for an image and then applied to its parts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_RGB = ({"r", "g", "b"}, {"r", "g", "b", "a"}, {"red", "green", "blue"}, {"red", "green", "blue", "alpha"})
_DARK = 64  # of 255: half of the pixels are darker in fluorescence
_GLASS = 128  # of 255: glass is brighter than that in all colours, whatever frame is around it
_ENOUGH = 250_000  # pixels to tell fluorescence by
_OVERSHOOT = 0.25  # by which interpolation leaves 0..1


class NotRgbError(ValueError):
    """An image that shows no red, green and blue."""


@dataclass(frozen=True)
class ColorFormat:
    """How the values of one image become uint8 RGB."""

    factor: float = 1.0  # of floats and booleans
    shift: int = 0  # bits to drop of 16-bit values

    def to_rgb(self, pixels: np.ndarray) -> np.ndarray:
        """Turn h x w x (1, 3 or 4) values into h x w x 3 of uint8; alpha is laid on white."""
        if self.shift:
            pixels = np.minimum(pixels >> self.shift, 255).astype(np.uint8)
        elif pixels.dtype != np.uint8:
            pixels = np.clip(np.rint(pixels * np.float32(self.factor)), 0, 255).astype(np.uint8)
        if pixels.shape[2] == 4:
            alpha = pixels[:, :, 3:].astype(np.float32) / 255
            pixels = np.rint(pixels[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Refuse what is no image of 1, 3 or 4 channels, in the order height x width x channels."""
    if len(shape) != 3 or shape[2] not in (1, 3, 4) or 0 in shape:
        first = len(shape) == 3 and shape[0] in (3, 4) and 0 not in shape
        many = len(shape) == 3 and shape[2] > 4 and not first and 0 not in shape
        mend = (
            " That many channels are immunofluorescence or a spectral image; encoders of H&E see red, green and blue. "
            "Choose another image, or make one of three channels."
            if many
            else " Its channels seem to come first: numpy.moveaxis(image, 0, -1) puts them last."
            if first
            else ""
        )
        raise ValueError(f"{name} must be height x width (x 1, 3 or 4 channels), but has the shape {shape}.{mend}")


def in_order(names: list[Any]) -> list[int]:
    """Positions of red, green, blue (and alpha) among named channels; as they are where the names say nothing."""
    first = [str(n).lower()[:1] for n in names]
    return [first.index(c) for c in "rgba" if c in first] if {"r", "g", "b"} <= set(first) else list(range(len(names)))


def check_channels(names: list[Any], name: str) -> None:
    """Refuse named channels that are not those of a colour image."""
    words = {str(n).lower() for n in names}
    plain = all(str(n).lstrip("-").isdigit() for n in names) or words in _RGB
    if not plain and not (len(names) == 1 and words <= {"gray", "grey", "grayscale", "intensity", "l"}):
        raise NotRgbError(
            f"{name} has the channels {', '.join(map(repr, map(str, names)))}: this is no H&E photograph but "
            "fluorescence or a spectral image, and encoders of H&E see red, green and blue. Choose another image with "
            "image=, or make one of three channels."
        )


def color_format(sample: np.ndarray, name: str) -> ColorFormat:
    """Decide how an image is read from its pixels, or of a lazy image from those of its coarsest level.

    Floats must lie in 0..1 or 0..255. Of 16-bit images the highest value tells how many bits were used.
    """
    if sample.dtype == np.uint8:
        form = ColorFormat()
    elif sample.dtype == bool:
        form = ColorFormat(factor=255)
    elif sample.dtype.kind not in "uif":
        raise ValueError(f"{name} must hold numbers, but has the dtype {sample.dtype}.")
    else:
        form = _scaled(sample, name)
    return form


def check_bright(sample: np.ndarray, form: ColorFormat, name: str) -> None:
    """Refuse fluorescence: most of it is dark, and nothing is bright in all colours; and 16 bits of alpha."""
    if sample.shape[2] == 4 and sample.dtype == np.uint16:
        what = "four channels of 16 bits"
    else:
        step = max(1, int(np.sqrt(sample.shape[0] * sample.shape[1] / _ENOUGH)))
        rgb = form.to_rgb(sample[::step, ::step]).reshape(-1, 3)
        glass = sample.shape[2] > 1 and np.quantile(rgb.min(axis=1), 0.95) >= _GLASS
        if np.median(rgb.max(axis=1)) >= _DARK or glass:
            return
        what = "a dark background and no glass"
    raise ValueError(
        f"{name} has {what}: this looks like fluorescence (for example DAPI), and encoders of H&E see red, green and blue "
        "on a bright ground. Choose another image with image=."
    )


def as_rgb(image: Any, name: str) -> np.ndarray:
    """Give an image in memory as h x w x 3 of uint8."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    check_shape(pixels.shape, name)
    return color_format(pixels, name).to_rgb(pixels)


def _scaled(sample: np.ndarray, name: str) -> ColorFormat:
    low, high = sample.min(), sample.max()
    # A comparison with NaN is false, so this refuses it too.
    if sample.dtype.kind == "f" and low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        return ColorFormat(factor=255)
    if sample.dtype == np.uint16 and high > 255:
        # cameras of 10, 12 or 14 bits leave the upper ones empty; the background of a stained section is bright
        return ColorFormat(shift=next(bits for bits in (10, 12, 14, 16) if high < 2**bits) - 8)
    if low >= 0 and (2 if sample.dtype.kind == "f" else 0) <= high <= 255:
        return ColorFormat()
    raise ValueError(f"{name} must lie in 0..1 (floats) or 0..255, but reaches from {low} to {high}.")
