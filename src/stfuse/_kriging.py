"""What of each feature is shared with its surroundings: kriging over windows of neighbours.

A feature is taken as a spatial signal plus independent noise. The signal's covariance falls exponentially with distance and
is estimated from the data, so a feature of wide domains is smoothed widely, one of thin layers hardly, and one
that neighbours do not share shrinks towards its mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Lengths that are tried, in spacings of the lattice. Shorter ones can't be told from noise by neighbours one spacing apart.
LENGTHS = np.geomspace(1.0, 12.0, 20)
LEAST_NOISE = 0.02  # of a feature's variance: keeps the equations well posed
BLOCK = 2_000_000  # numbers in a batch of equations


@dataclass(frozen=True)
class Kriging:
    """Spatial signal of each of d features: ``mean``, ``signal`` and ``noise`` variance, and ``length`` in spacings."""

    mean: np.ndarray
    signal: np.ndarray
    noise: np.ndarray
    length: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, has: np.ndarray, windows: list[tuple[np.ndarray, np.ndarray]]) -> Kriging:
        """Estimate from the rows of ``x`` (n x d) that ``has`` marks.

        ``windows`` are neighbour tables (rows x cells, -1 = none) of groups of observations, each with the places of its
        cells (cells x 2) in spacings; the first column of a table holds the observations themselves.
        """
        there = x[has].astype(np.float64)
        mean, variance = there.mean(0), there.var(0)
        distance, weight, covariance = _covariances(np.where(has[:, None], x - mean, 0.0), has, windows)
        signal, length = np.zeros_like(variance), np.ones_like(variance)
        error = np.full(variance.shape, np.inf)
        for candidate in LENGTHS if distance.size else ():
            shape = np.exp(-distance / candidate)
            fitted = (weight * shape) @ covariance / (weight @ shape**2)
            fitted = np.clip(fitted, 0.0, variance)
            wrong = weight @ (covariance - np.outer(shape, fitted)) ** 2
            better = wrong < error
            error = np.where(better, wrong, error)
            signal, length = np.where(better, fitted, signal), np.where(better, candidate, length)
        noise = np.maximum(variance - signal, LEAST_NOISE * variance)
        return cls(mean, signal, noise, length)

    def __call__(self, x: np.ndarray, has: np.ndarray, windows: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Signal (n x d, float32) of each observation, from all of its window that ``has`` marks; NaN elsewhere."""
        out = np.full(x.shape, np.nan, dtype=np.float32)
        centred = np.where(has[:, None], x - self.mean, 0.0).astype(np.float32)
        for table, places in windows:
            inside = table[has[table[:, 0]]]
            present = (inside >= 0) & has[np.maximum(inside, 0)]
            # windows with the same cells present have the same weights
            patterns, which = _unique_rows(present)
            distance = np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))
            step = max(1, BLOCK // (distance.size * 2))
            for feature in range(x.shape[1]):
                if self.signal[feature] == 0:
                    out[inside[:, 0], feature] = self.mean[feature]
                    continue
                weights = np.concatenate(
                    [self._weights(feature, distance, patterns[i : i + step]) for i in range(0, len(patterns), step)]
                )
                values = centred[np.maximum(inside, 0), feature]
                found = np.einsum("nc,nc->n", weights[which], np.where(present, values, 0.0))
                out[inside[:, 0], feature] = found + self.mean[feature]
        return out

    def _weights(self, feature: int, distance: np.ndarray, patterns: np.ndarray) -> np.ndarray:
        """Weights of the cells for the signal in the first one; 0 for cells that are not there."""
        covariance = self.signal[feature] * np.exp(-distance / self.length[feature])
        both = patterns[:, :, None] & patterns[:, None, :]
        system = np.where(both, covariance, 0.0)
        cells = np.arange(distance.shape[0])
        system[:, cells, cells] = covariance[0, 0] + self.noise[feature]
        return np.linalg.solve(system, np.where(patterns, covariance[0], 0.0)[..., None])[..., 0].astype(np.float32)


def _covariances(
    centred: np.ndarray, has: np.ndarray, windows: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, numbers of pairs at each, and the mean product of both ends of a pair (distances x d)."""
    counts: dict[float, int] = {}
    sums: dict[float, np.ndarray] = {}
    for table, places in windows:
        start = table[:, 0]
        for cell in range(1, table.shape[1]):
            other = table[:, cell]
            pair = (other >= 0) & has[start] & has[np.maximum(other, 0)]
            away = round(float(np.hypot(*(places[cell] - places[0]))), 6)
            counts[away] = counts.get(away, 0) + int(pair.sum())
            product = np.einsum("nd,nd->d", centred[start[pair]], centred[other[pair]])
            sums[away] = sums.get(away, 0.0) + product
    distance = np.array([away for away in sorted(counts) if counts[away]])
    weight = np.array([counts[away] for away in distance], dtype=np.float64)
    covariance = np.array([sums[away] / counts[away] for away in distance]).reshape(distance.size, centred.shape[1])
    return distance, weight, covariance


def _unique_rows(present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different rows of a table of truth values, and which of them each row is."""
    packed = np.packbits(present, axis=1)
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return present[first], which
