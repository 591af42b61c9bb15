"""Colours as Reinhard et al. (2001): mean and standard deviation in the decorrelated space of Ruderman et al. (1998)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stfuse._image._stain_density import LOG, in_blocks, optical_density

_CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_OPPONENT = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3.0], [6.0], [2.0]])
# Mean optical density (natural logarithm): below the first a pixel is glass, above the second tissue, between them it
# changes smoothly from one to the other.
_CLEAR, _STAINED = 0.03, 0.15
_LEAST_PIXELS = 100
_LEAST_SD = 1e-3


@dataclass(frozen=True, eq=False)
class ReinhardFit:
    """What is known of the colours of the tissue on one image."""

    means: np.ndarray  # 3: of l, alpha, beta, from natural logarithms of values of 0..255
    sds: np.ndarray  # 3
    white: np.ndarray  # 3: the colour of glass

    def to_dict(self) -> dict[str, Any]:
        """Give the fit as what h5ad can hold."""
        return {"method": "reinhard", "means": self.means, "sds": self.sds, "white": self.white}


# A breast carcinoma of TCGA (A2-A3XS-DX1, Amgad et al. 2019), the standard of HistomicsTK; glass becomes white.
REFERENCE = ReinhardFit(
    np.array([8.74108109, -0.12440419, 0.0444982]), np.array([0.6135447, 0.10989545, 0.0286032]), np.full(3, 255.0)
)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Turn n x 3 values of 0..255 into l, alpha and beta."""
    return np.log(np.maximum(rgb @ _CONES.T, 1)) @ _OPPONENT.T


def fit_reinhard(rgb: np.ndarray, white: np.ndarray, name: str) -> ReinhardFit:
    """Describe the colours of n x 3 tissue pixels; ``name`` says in messages whose they are."""
    rgb = rgb[optical_density(rgb, white).mean(axis=1) >= _STAINED]
    if len(rgb) < _LEAST_PIXELS:
        raise ValueError(
            f"{name} has {len(rgb)} pixels of stained tissue, too few to describe its colours ({_LEAST_PIXELS} are "
            "needed): choose another image with image=."
        )
    lab = to_lab(rgb.astype(np.float64))
    sds = lab.std(axis=0)
    if (sds < _LEAST_SD).any():
        raise ValueError(
            f"{name} has no range of colours (standard deviations of l, alpha, beta: {np.array2string(sds, precision=4)}"
            "): it is gray or of one colour, and stains can't be told in it. Choose another image with image=."
        )
    return ReinhardFit(lab.mean(axis=0), sds, np.asarray(white, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class ReinhardTransform:
    """Tissue with the mean and deviation of one fit, given those of another; glass in the colour of the other's glass."""

    log: np.ndarray  # 256: a third of the logarithms of values plus one
    clear: float  # their sum over the colours of glass
    cones: np.ndarray  # 3 x 3, applied from the left as all of them
    matrix: np.ndarray  # between logarithms of cone responses
    shift: np.ndarray  # 3 x 1
    back: np.ndarray
    glass: np.ndarray  # 3 x 1: factor of the colours of glass

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ... x 3 of uint8 into the same."""
        return in_blocks(self._block, pixels)

    def _block(self, rgb: np.ndarray) -> np.ndarray:
        values = rgb.astype(np.float32)
        tissue = self.cones @ values
        np.log(np.maximum(tissue, 1, out=tissue), out=tissue)
        tissue = self.matrix @ tissue
        tissue += self.shift
        tissue = self.back @ np.exp(tissue, out=tissue)
        share = (self.clear - self.log.take(rgb, mode="clip").sum(axis=0) - _CLEAR) / (_STAINED - _CLEAR)
        np.clip(share, 0, 1, out=share)
        share *= share * (3 - 2 * share)
        values *= self.glass
        tissue -= values
        tissue *= share
        tissue += values
        return tissue


def reinhard_transform(source: ReinhardFit, target: ReinhardFit) -> ReinhardTransform:
    """Fold the way to l, alpha, beta, the change there and the way back into one affine map of logarithms."""
    ratio = target.sds / source.sds
    back = np.linalg.inv(_OPPONENT)
    matrix = back @ (ratio[:, None] * _OPPONENT)
    shift = back @ (target.means - ratio * source.means)
    glass = target.white / source.white
    parts = [LOG / 3, _CONES, matrix, shift[:, None], np.linalg.inv(_CONES), glass[:, None]]
    log, cones, matrix, shift, back, glass = (part.astype(np.float32) for part in parts)
    return ReinhardTransform(log, float(np.log(source.white + 1).mean()), cones, matrix, shift, back, glass)
