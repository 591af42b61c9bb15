"""Pixels of any depth and number of channels as uint8 RGB, decided once for an image and then applied to its parts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_RGB = ({"r", "g", "b"}, {"r", "g", "b", "a"}, {"red", "green", "blue"}, {"red", "green", "blue", "alpha"})
_DARK = 0.25  # of the range: a section on glass is brighter than that, fluorescence on black is not


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
        many = len(shape) == 3 and shape[2] > 4 and 0 not in shape
        mend = (
            " That many channels are immunofluorescence or a spectral image; encoders of H&E see red, green and blue. "
            "Choose another image, or make one of three channels."
            if many
            else ""
        )
        raise ValueError(f"{name} must be height x width (x 1, 3 or 4 channels), but has the shape {shape}.{mend}")


def check_channels(names: list[Any], name: str) -> None:
    """Refuse named channels that are not those of a colour image."""
    words = {str(n).lower() for n in names}
    plain = all(str(n).lstrip("-").isdigit() for n in names) or words in _RGB
    if not plain and not (len(names) == 1 and words <= {"gray", "grey", "grayscale", "intensity", "l"}):
        raise ValueError(
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
    """Refuse fluorescence: one channel, or 16 bits, on black; and four channels of 16 bits, which no alpha has."""
    if sample.shape[2] == 4 and sample.dtype == np.uint16:
        what = "four channels of 16 bits"
    elif (sample.shape[2] == 1 or sample.dtype == np.uint16) and np.median(form.to_rgb(sample)) < 255 * _DARK:
        what = f"{sample.shape[2]} channel{'s' if sample.shape[2] > 1 else ''} on a dark background"
    else:
        return
    raise ValueError(
        f"{name} has {what}: this is fluorescence (for example DAPI), and encoders of H&E see red, green and blue on a "
        "bright one. Choose another image with image=."
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
    if sample.dtype.kind == "f" and low >= 0 and high <= 1:
        return ColorFormat(factor=255)
    if sample.dtype == np.uint16 and high > 255:
        # cameras of 10, 12 or 14 bits leave the upper ones empty; the background of a stained section is bright
        return ColorFormat(shift=next(bits for bits in (10, 12, 14, 16) if high < 2**bits) - 8)
    if low >= 0 and high <= 255:
        return ColorFormat()
    raise ValueError(f"{name} must lie in 0..1 (floats) or 0..255, but reaches from {low} to {high}.")
