"""Stains as Macenko et al. (2009): two directions in optical density, and how much of each there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stfuse._image._stain_density import LOG, in_blocks, optical_density

# Optical density (natural logarithm), mean of the colours, below which a pixel tells nothing of stains. The published
# implementation asks it of every colour and so drops pure eosin, which lets red light through.
_BETA = 0.15
_ALPHA = 1  # per cent of the angles left out at either end
_MAXIMUM = 99  # percentile that counts as the maximum of a stain
_LEAST_PIXELS = 100
_LEAST_ANGLE = 7.0  # degrees between two stains: noise spreads one stain over less, and real pairs have 15 or more
# Hematoxylin and eosin of Ruifrok and Johnston (2001), by which the two directions are told apart.
_KNOWN = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])


@dataclass(frozen=True, eq=False)
class MacenkoFit:
    """What is known of the stains of one image."""

    stains: np.ndarray  # 2 x 3: hematoxylin and eosin as unit vectors of optical density of red, green and blue
    maxima: np.ndarray  # 2: how much of each there is at most
    white: np.ndarray  # 3: the colour of glass

    def to_dict(self) -> dict[str, Any]:
        """Give the fit as what h5ad can hold."""
        return {"method": "macenko", "stains": self.stains, "maxima": self.maxima, "white": self.white}


# The reference of the published implementation (Veta, 2013); glass becomes white.
REFERENCE = MacenkoFit(
    np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]), np.array([1.9705, 1.0308]), np.full(3, 255.0)
)


def fit_macenko(rgb: np.ndarray, white: np.ndarray, name: str) -> MacenkoFit:
    """Find the two stains of n x 3 tissue pixels; ``name`` says in messages whose they are."""
    density = optical_density(rgb, white)
    density = density[density.mean(axis=1) >= _BETA]
    if len(density) < _LEAST_PIXELS:
        raise ValueError(
            f"{name} has {len(density)} pixels of stained tissue, too few to find its stains ({_LEAST_PIXELS} are "
            'needed): choose another image with image=, or use method="reinhard".'
        )
    stains = _directions(density)
    angle = float(np.degrees(np.arccos(np.clip(stains[0] @ stains[1], -1, 1))))
    maxima = np.percentile(density @ np.linalg.pinv(stains), _MAXIMUM, axis=0)
    if angle < _LEAST_ANGLE or (maxima <= 0).any():
        raise ValueError(
            f"{name} shows no two stains (their directions are {angle:.1f} degrees apart): it is gray or has one stain "
            'only, and "macenko" separates hematoxylin from eosin. Choose another image with image=, or use '
            'method="reinhard".'
        )
    return MacenkoFit(stains, maxima, np.asarray(white, dtype=np.float64))


def _directions(density: np.ndarray) -> np.ndarray:
    """Extreme directions in the plane of the two largest eigenvectors, hematoxylin first."""
    # not centred: the plane of the stains holds the origin, and tissue of one strength has no second direction about a mean
    plane = np.linalg.eigh(density.T @ density)[1][:, :0:-1]
    plane *= np.where(density.mean(axis=0) @ plane < 0, -1, 1)  # so that no angle lies near the jump at 180 degrees
    across = density @ plane
    angles = np.percentile(np.arctan2(across[:, 1], across[:, 0]), [_ALPHA, 100 - _ALPHA])
    found = np.column_stack([np.cos(angles), np.sin(angles)]) @ plane.T
    alike = found @ (_KNOWN / np.linalg.norm(_KNOWN, axis=1, keepdims=True)).T
    return found if alike[0, 0] + alike[1, 1] >= alike[0, 1] + alike[1, 0] else found[::-1]


@dataclass(frozen=True, eq=False)
class MacenkoTransform:
    """Pixels with the stains of one fit, in the colours and strength of another: one linear map of optical density."""

    log: np.ndarray  # 256: logarithms of values plus one
    matrix: np.ndarray  # 3 x 3, applied from the left
    gain: np.ndarray  # 3 x 1: what the glass of source and target comes to

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Turn ... x 3 of uint8 into the same."""
        return in_blocks(self._block, pixels)

    def _block(self, rgb: np.ndarray) -> np.ndarray:
        made = self.matrix @ self.log.take(rgb, mode="clip")  # no value is out of range: it spares the check
        np.exp(made, out=made)
        made *= self.gain
        made -= 1
        return made


def macenko_transform(source: MacenkoFit, target: MacenkoFit) -> MacenkoTransform:
    """Fold separation, change of strength and mixing into one matrix."""
    matrix = np.linalg.pinv(source.stains) @ ((target.maxima / source.maxima)[:, None] * target.stains)
    gain = (target.white + 1) * np.exp(-np.log(source.white + 1) @ matrix)
    return MacenkoTransform(LOG.astype(np.float32), matrix.T.astype(np.float32), gain[:, None].astype(np.float32))
