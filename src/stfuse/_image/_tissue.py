"""Where on an image there is tissue: Otsu's threshold on the colourfulness of a small copy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stfuse._image._pyramid import Pyramid

MASK_SIDE = 2048
# Stain above that of the glass, in parts of the full range: where a section is pale or fills the image, Otsu's threshold
# alone would part nuclei from stroma, and where there is nothing it would part noise from noise.
_LEAST, _MOST = 0.03, 0.05
_GLASS = 0.08  # the most colour that glass has; more is a section without glass around it
_DENSER = 0.02  # optical density of the palest tissue above that of glass
_BLACK = 1.5  # optical density of what is no glass and no tissue, but the frame of a turned image
_SPECK = 1e-4  # of the image: smaller islands are dust, smaller holes are part of the tissue


class Tissue(NamedTuple):
    """A mask of tissue on a small copy of an image."""

    mask: np.ndarray  # h x w, bool
    step: tuple[float, float]  # full-resolution pixels per pixel of the mask (x, y)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Tell which n x 2 points (x, y in full-resolution pixels) lie on tissue; False outside of the image."""
        index = np.floor(points / self.step)
        inside = (index >= 0).all(axis=1) & (index < self.mask.shape[::-1]).all(axis=1)
        found = np.zeros(len(points), dtype=bool)
        columns, rows = index[inside].astype(np.int64).T
        found[inside] = self.mask[rows, columns]
        return found

    def fraction(self, origins: np.ndarray, side: tuple[float, float]) -> np.ndarray:
        """Share of tissue in n rectangles of one size, from n x 2 upper left corners in full-resolution pixels."""
        # the integral image, looked up between its points, so that parts of mask pixels count
        total = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1))
        total[1:, 1:] = self.mask.cumsum(axis=0).cumsum(axis=1)
        low = origins / self.step
        high = (origins + side) / self.step
        area = np.prod(high - low, axis=1)
        corners = [(high, high, 1), (low, high, -1), (high, low, -1), (low, low, 1)]
        inside = sum(sign * _bilinear(total, x[:, 0], y[:, 1]) for x, y, sign in corners)
        return np.asarray(inside) / area


def _bilinear(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from scipy.ndimage import map_coordinates

    return map_coordinates(table, [y, x], order=1, mode="nearest")


def density(rgb: np.ndarray) -> np.ndarray:
    """Mean optical density of the three colours against white, h x w."""
    table = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
    # colour by colour: numpy is slow along an axis of three
    red, green, blue = (table[rgb[..., i]] for i in range(3))
    return np.asarray((red + green + blue) / np.float32(3))


def find_tissue(image: Pyramid, max_side: int = MASK_SIDE) -> Tissue:
    """Find tissue on a copy of an image of at most ``max_side`` pixels; where there is none the mask is empty."""
    return tissue_of(*image.thumbnail(max_side))


def tissue_of(small: np.ndarray, step: tuple[float, float]) -> Tissue:
    """Find tissue on a small copy, h x w x 3 of uint8, each of whose pixels is ``step`` full-resolution pixels."""
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    optical = density(small)
    frame = optical > _BLACK
    red, green, blue = np.moveaxis(small, 2, 0)
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    stain = (highest - lowest) / np.float32(255)
    if stain[~frame].max(initial=0) < _LEAST:  # a gray photograph
        stain = np.minimum(optical, _BLACK)
    stain = gaussian(np.where(frame, 0, stain), sigma=1)
    seen = stain[~frame]
    if not seen.size or np.ptp(seen) < _LEAST:
        return Tissue(np.zeros(frame.shape, dtype=bool), step)
    otsu = threshold_otsu(seen)
    clear = (stain <= otsu) & ~frame
    glass = float(np.median(stain[clear]))
    mask = (stain > np.clip(otsu, min(glass, _GLASS) + _LEAST, min(glass, _GLASS) + _MOST)) & ~frame
    if glass <= _GLASS:  # a smear of dye has colour and no density
        mask &= gaussian(optical, sigma=1) > np.median(optical[clear]) + _DENSER
    speck = max(1, int(_SPECK * frame.size))
    mask = remove_small_objects(mask, max_size=speck)
    return Tissue(remove_small_holes(mask, max_size=speck), step)
