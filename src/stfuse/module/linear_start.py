"""Linear maps of two views into one space from their pairs: where a network on few pairs may well begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stfuse.module.pcca import Canonical, solve_cca
from stfuse.module.scaling import looks_rotated, varies

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # times the mean variance of a view's components
DEFAULT_PENALTY = 1.0  # where there are too few pairs to choose
MAX_ROWS, MAX_CHOICE = 20_000, 3_000
N_NEAREST, N_TARGETS = 50, 10


@dataclass(frozen=True)
class LinearMap:
    """Features to shared code: (x - mean) @ weights, with weights d x k."""

    mean: np.ndarray
    weights: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Code of features, n x k."""
        return (x - self.mean) @ self.weights


def components(x: np.ndarray, rows: np.ndarray, widths: Sequence[int]) -> LinearMap:
    """Principal components of blocks of columns of equal width, as many of each as ``widths`` says.

    Features are standardised first, unless those of the first block are uncorrelated already: their variances carry meaning.
    """
    d = x.shape[1] // len(widths)
    mean, weights, scaled = np.empty(x.shape[1]), [], None
    for i, k in enumerate(widths):
        block = slice(i * d, (i + 1) * d)
        values = x[rows, block].astype(np.float64)
        mean[block] = values.mean(axis=0)
        values -= mean[block]
        covariance = values.T @ values / len(values)
        sd = np.sqrt(np.clip(np.diag(covariance), 0, None))
        usable = varies(mean[block], sd)
        if scaled is None:
            scaled = not looks_rotated(covariance[np.ix_(usable, usable)])
        # a feature that does not vary where the fit looks may do so elsewhere, and means nothing there
        scale = np.where(usable, 1 / np.where(usable & scaled, sd, 1), 0)
        eigenvalues, axes = np.linalg.eigh(covariance * np.outer(scale, scale))
        kept = min(k, len(values) - 1, max(int((eigenvalues > 1e-9 * eigenvalues[-1]).sum()), 1))
        padded = np.zeros((x.shape[1], kept))
        padded[block] = scale[:, None] * axes[:, ::-1][:, :kept]
        weights.append(padded)
    return LinearMap(mean, np.hstack(weights))


def ridge_cca(a: np.ndarray, b: np.ndarray, penalty: float) -> Canonical:
    """CCA of centred columns that are not whitened, with a multiple of their mean variance added to each variance."""
    n = len(a)
    cx, cy = a.T @ a / n, b.T @ b / n
    for c in (cx, cy):
        c[np.diag_indices_from(c)] += penalty * np.trace(c) / len(c) + 1e-12
    return solve_cca(cx, cy, a.T @ b / n)


def choose_penalty(a: np.ndarray, b: np.ndarray, fold: np.ndarray) -> dict[float, float]:
    """Error of each penalty, relative to that of the mean, when each fold's RNA components are predicted from its image.

    The prediction is that of the task: a mean over the pairs whose RNA codes are most similar to the image code. How well
    partners retrieve each other would choose too small a penalty, for neighbours give each other away.
    """
    error, floor = np.zeros(len(PENALTIES)), 0.0
    for held in np.unique(fold):
        test, rest = fold == held, fold != held
        center_a, center_b = a[rest].mean(axis=0), b[rest].mean(axis=0)
        known, truth = b[rest][:, :N_TARGETS], b[test][:, :N_TARGETS]
        floor += np.square(truth - known.mean(axis=0)).sum()
        for i, penalty in enumerate(PENALTIES):
            fit = ridge_cca(a[rest] - center_a, b[rest] - center_b, penalty)
            query = (a[test] - center_a) @ (fit.u * fit.rho)
            pool = (b[rest] - center_b) @ (fit.v * fit.rho)
            error[i] += np.square(truth - nearest_mean(query, pool, known)).sum()
    return dict(zip(PENALTIES, (error / max(floor, 1e-300)).tolist(), strict=True))


def nearest_mean(query: np.ndarray, pool: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of the values of the nearest by cosine, weighted by it."""
    k = min(N_NEAREST, max(len(pool) // 3, 1))
    similarity = _unit(query) @ _unit(pool).T
    index = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    weights = np.clip(np.take_along_axis(similarity, index, axis=1), 1e-6, None)
    return np.einsum("ik,ikd->id", weights / weights.sum(axis=1, keepdims=True), values[index])


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def linear_maps(
    x: Mapping[str, np.ndarray],
    has: Mapping[str, np.ndarray],
    pairs: np.ndarray,
    widths: Mapping[str, Sequence[int]],
    penalty: float,
    seed: int,
) -> dict[str, LinearMap]:
    """Maps of both views: components of all rows, and of these the directions that correlate in pairs, times how much."""
    rng = np.random.default_rng(seed)
    pcs = {v: components(x[v], at_most(np.flatnonzero(has[v]), MAX_ROWS, rng), widths[v]) for v in x}
    used = at_most(pairs, MAX_ROWS, rng)
    codes = {v: pcs[v](x[v][used]) for v in x}
    center = {v: code.mean(axis=0) for v, code in codes.items()}
    fit = ridge_cca(codes["image"] - center["image"], codes["rna"] - center["rna"], penalty)
    maps = {}
    for view, directions in (("image", fit.u), ("rna", fit.v)):
        weights = pcs[view].weights @ (directions * fit.rho)
        maps[view] = LinearMap(x[view][used].mean(axis=0, dtype=np.float64), weights)
    return maps


def penalties(
    x: Mapping[str, np.ndarray],
    has: Mapping[str, np.ndarray],
    pairs: np.ndarray,
    fold: np.ndarray,
    widths: Mapping[str, Sequence[int]],
    seed: int,
) -> dict[float, float]:
    """Held-out error of each penalty; ``fold`` numbers the folds of the pairs."""
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.permutation(pairs.size)[:MAX_CHOICE])
    codes = {}
    for view in x:
        rows = at_most(np.flatnonzero(has[view]), MAX_ROWS, rng)
        codes[view] = components(x[view], rows, widths[view])(x[view][pairs[kept]])
    return choose_penalty(codes["image"], codes["rna"], fold[kept])


def at_most(rows: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Rows, or a random part of them."""
    return rows if rows.size <= limit else np.sort(rng.choice(rows, limit, replace=False))
