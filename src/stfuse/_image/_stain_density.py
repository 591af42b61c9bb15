"""Optical density against glass, and maps of many pixels block by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LOG = np.log(np.arange(256) + 1.0)  # of a value plus one, so that black has one too
_BLOCK = 16_384  # pixels: what is made of them on the way stays in the processor's cache


def optical_density(rgb: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Natural logarithm of the glass over the pixel, n x 3, from n x 3 of uint8."""
    return np.log(white + 1) - LOG[rgb]


def in_blocks(function: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """Apply a map of 3 x n of uint8 to 3 x n floats to pixels of any shape ... x 3, and round to uint8."""
    flat = pixels.reshape(-1, 3)
    out = np.empty(flat.shape, dtype=np.uint8)
    for start in range(0, len(flat), _BLOCK):
        # colours first: numpy's loops are long then
        made = function(np.ascontiguousarray(flat[start : start + _BLOCK].T))
        np.rint(made, out=made)
        out[start : start + _BLOCK] = np.clip(made, 0, 255, out=made).astype(np.uint8).T
    return out.reshape(pixels.shape)
