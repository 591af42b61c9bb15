"""Features of one view to whitened principal components and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

CHUNK = 16_384
CLIP = 3.0


def _moments(
    x: np.ndarray, rows: np.ndarray, transform: Callable[[Tensor], Tensor] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the given (transformed) rows in float64, a block at a time (no copy of the data)."""

    def take(index: np.ndarray) -> np.ndarray:
        block = np.ascontiguousarray(x[index], np.float32)
        return (block if transform is None else transform(torch.from_numpy(block)).numpy()).astype(np.float64)

    d = x.shape[1]
    total, gram = np.zeros(d), np.zeros((d, d))
    # shifting by one row keeps the sums small when features have large means
    shift = take(rows[:1])[0]
    for start in range(0, rows.size, CHUNK):
        block = take(rows[start : start + CHUNK]) - shift
        total += block.sum(0)
        gram += block.T @ block
    mean = total / rows.size
    return mean + shift, gram / rows.size - np.outer(mean, mean)


def varies(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Whether features vary by more than the rounding of their own float32 values; their unit does not matter."""
    return sd > 1e-6 * np.abs(mean)


def looks_rotated(covariance: np.ndarray) -> bool:
    """Whether columns are already uncorrelated, as principal components are: their variances carry meaning then."""
    sd = np.sqrt(np.clip(np.diag(covariance), 0, None))
    keep = sd > 0
    if keep.sum() < 2:
        return True
    r = covariance[np.ix_(keep, keep)] / np.outer(sd[keep], sd[keep])
    np.fill_diagonal(r, 0.0)
    return bool(np.sqrt((r**2).sum() / (keep.sum() * (keep.sum() - 1))) < 0.1)


def signal_rank(variances: np.ndarray, n: int, d: int) -> int:
    """Count components above the optimal hard threshold of Gavish and Donoho (2014), noise unknown."""
    beta = min(n, d) / max(n, d)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    sv = np.sqrt(np.clip(variances, 0, None))
    return int((sv > omega * np.median(sv[: min(n, d)])).sum())


class ViewScaler(nn.Module):
    """Affine map of one view onto principal components, kept as buffers.

    ``components`` is d x p with orthonormal columns, applied to centred and, where they are not components already,
    standardised features, which are clipped to three standard deviations: a few torn or folded spots would otherwise own the
    leading components. ``clip`` is that limit or infinity, ``middle`` the mean after clipping; ``sd`` are the standard
    deviations of the p components, ``rank`` how many of them rise above noise.
    """

    mean: Tensor
    scale: Tensor
    components: Tensor
    sd: Tensor
    clip: Tensor
    middle: Tensor
    meta: Tensor

    def __init__(self, n_features: int, n_components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.register_buffer("components", torch.zeros(n_features, n_components))
        self.register_buffer("sd", torch.ones(n_components))
        self.register_buffer("clip", torch.tensor(torch.inf))
        self.register_buffer("middle", torch.zeros(n_features))
        self.register_buffer("meta", torch.zeros(2))

    @property
    def rank(self) -> int:
        """Components above noise."""
        return int(self.meta[0])

    @property
    def total_variance(self) -> float:
        """Variance of the (scaled) features, all components together."""
        return float(self.meta[1])

    @classmethod
    def fit(cls, x: np.ndarray, rows: np.ndarray, max_components: int, scale: bool | None = None) -> ViewScaler:
        """Fit on the given rows; ``scale=None`` standardises features unless they are uncorrelated already."""
        mean, covariance = _moments(x, rows)
        sd = np.sqrt(np.clip(np.diag(covariance), 0, None))
        usable = varies(mean, sd)
        if scale is None:
            scale = not looks_rotated(covariance[np.ix_(usable, usable)])
        out = cls(x.shape[1], 1)
        out.mean.copy_(torch.from_numpy(mean))
        if scale:
            out.scale.copy_(torch.from_numpy(np.where(usable, sd, 1.0)))
            out.clip.fill_(CLIP)
            middle, covariance = _moments(x, rows, out.standard)
            out.middle.copy_(torch.from_numpy(middle))
        covariance[~usable] = 0
        covariance[:, ~usable] = 0
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
        p = int(min(max_components, rows.size - 1, (values > 1e-9 * max(values[0], 1e-300)).sum()))
        p = max(p, 1)
        # the sign of an eigenvector is arbitrary: make its largest entry positive, so that runs agree
        vectors = vectors[:, :p] * np.sign(vectors[np.abs(vectors[:, :p]).argmax(0), np.arange(p)])
        out.components = torch.from_numpy(vectors.astype(np.float32))
        # a view without any variance has one component, zero everywhere
        out.sd = torch.from_numpy(np.sqrt(np.where(values[:p] > 0, values[:p], 1.0)).astype(np.float32))
        rank = signal_rank(values, rows.size, int(usable.sum()))
        out.meta.copy_(torch.tensor([rank, values.sum()]))
        return out

    def standard(self, x: Tensor) -> Tensor:
        """Features to what the components are taken of."""
        return ((x - self.mean) / self.scale).clamp(-self.clip, self.clip) - self.middle

    def forward(self, x: Tensor) -> Tensor:
        """Features to principal components, n x p."""
        return self.standard(x) @ self.components

    def whiten(self, x: Tensor) -> Tensor:
        """Features to principal components of unit variance."""
        return self(x) / self.sd

    def inverse(self, pcs: Tensor) -> Tensor:
        """Principal components back to features."""
        return (pcs @ self.components.T + self.middle) * self.scale + self.mean


def whiten_rows(scaler: ViewScaler, x: np.ndarray) -> Tensor:
    """Features (numpy, NaN rows allowed) to whitened components on the scaler's device, block by block."""
    device = scaler.mean.device
    out = torch.empty((x.shape[0], scaler.sd.numel()), device=device)
    for start in range(0, x.shape[0], CHUNK):
        block = torch.from_numpy(np.ascontiguousarray(x[start : start + CHUNK], np.float32)).to(device)
        out[start : start + CHUNK] = scaler.whiten(block)
    return out


class StandardViews(nn.Module):
    """Mean and standard deviation of each feature of both views, kept as buffers."""

    def __init__(self, n_image: int, n_rna: int) -> None:
        super().__init__()
        for view, width in (("image", n_image), ("rna", n_rna)):
            self.register_buffer(f"mean_{view}", torch.zeros(width))
            self.register_buffer(f"sd_{view}", torch.ones(width))
            self.register_buffer(f"varies_{view}", torch.ones(width))

    @torch.no_grad()
    def fit_moments(self, view: str, x: np.ndarray, rows: np.ndarray) -> None:
        """Take mean and standard deviation from the given rows; a feature that is constant there counts nowhere."""
        total, square = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        shift = x[rows[0]].astype(np.float64)
        for start in range(0, rows.size, CHUNK):
            block = x[rows[start : start + CHUNK]].astype(np.float64) - shift
            total += block.sum(0)
            square += (block**2).sum(0)
        mean = total / rows.size
        sd = np.sqrt(np.clip(square / rows.size - mean**2, 0, None))
        mean += shift
        self.get_buffer(f"mean_{view}").copy_(torch.from_numpy(mean))
        used = varies(mean, sd)
        self.get_buffer(f"sd_{view}").copy_(torch.from_numpy(np.where(used, sd, 1.0)))
        self.get_buffer(f"varies_{view}").copy_(torch.from_numpy(used))

    def standard(self, view: str, x: Tensor) -> Tensor:
        """Standardised features."""
        scaled = (x - self.get_buffer(f"mean_{view}")) / self.get_buffer(f"sd_{view}")
        return scaled * self.get_buffer(f"varies_{view}")

    def features(self, view: str, t: Tensor) -> Tensor:
        """Standardised rows back to features."""
        return t * self.get_buffer(f"sd_{view}") + self.get_buffer(f"mean_{view}")
