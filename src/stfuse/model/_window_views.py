"""From the two views to what a window network reads: components, smoothed in space, between 0 and 1."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from stfuse._kriging import Kriging
from stfuse._lattice import as_array
from stfuse._views import Views
from stfuse._windows import cells_of_window, doubled, section_lattices, window_table
from stfuse.model._window_clusters import ViewFeatures
from stfuse.module.scaling import CHUNK, ViewScaler

KRIGING = ("mean", "signal", "noise", "length")
WIDEST = 7  # window of kriging: equations grow with the cube of its cells, and the outer ones tell little


class Windows:
    """Neighbour tables of a set of observations, and where the cells of a window lie."""

    def __init__(self, views: Views, window_size: int, *, believe_array: bool = False) -> None:
        """``believe_array`` takes places on the array as cells, whatever lattice they form, as the published package does."""
        half = window_size // 2
        self.section = views.section
        self.doubled, self.placed = np.zeros(views.n_obs, dtype=bool), np.ones(views.n_obs, dtype=bool)
        if window_size == 1 or views.places is None:
            self.table = np.arange(views.n_obs, dtype=np.int32)[:, None]
            self.ring = self.table[:, :0]
            self.groups: list[tuple[np.ndarray, np.ndarray]] = []
            return
        if believe_array and views.array is not None:
            self.lattices = {code: as_array(views.array[views.section == code]) for code in np.unique(views.section)}
        else:
            self.lattices = section_lattices(views.places, views.section, views.array)
        self.doubled = doubled(views.section, self.lattices)
        for code, lattice in self.lattices.items():
            self.placed[views.section == code] = lattice.placed
        square = window_table(views.places, views.section, window_size, views.array, lattices=self.lattices)
        self.table = square.reshape(views.n_obs, -1)
        # the cells next to the middle
        self.ring = np.delete(square[:, half - 1 : half + 2, half - 1 : half + 2].reshape(views.n_obs, 9), 4, axis=1)
        # itself first, as kriging wants it, and then the nearest rings
        reach = np.abs(np.mgrid[-half : half + 1, -half : half + 1]).max(0).ravel()
        order = np.argsort(reach, kind="stable")[: min(window_size, WIDEST) ** 2]
        self.groups = []
        for kind in dict.fromkeys(lattice.kind for lattice in self.lattices.values()):
            codes = [code for code, lattice in self.lattices.items() if lattice.kind == kind]
            row, column = (part.ravel()[order].astype(float) for part in cells_of_window(kind, half))
            x, y = (column + row / 2, row * np.sqrt(0.75)) if kind == "hexagonal" else (column, row)
            self.groups.append((self.table[np.isin(views.section, codes)][:, order], np.column_stack([x, y])))


class ViewInput(nn.Module):
    """One view on its way into a window network, all that was estimated kept as buffers.

    Components where the view is wider than ``n_comps``, kriging where it is ``smoothed``, then each feature's range in the training data
    (before smoothing) to 0..1: a feature that neighbours do not share keeps little of it.
    """

    low: Tensor
    span: Tensor
    typical: Tensor

    def __init__(self, n_features: int, n_comps: int | None, n_out: int, *, smoothed: bool) -> None:
        super().__init__()
        self.smoothed = smoothed
        self.scaler = ViewScaler(n_features, n_out) if n_comps is not None and n_features > n_comps else None
        self.register_buffer("low", torch.zeros(n_out))
        self.register_buffer("span", torch.ones(n_out))
        self.register_buffer("typical", torch.zeros(n_out))
        for name in KRIGING if smoothed else ():
            self.register_buffer(name, torch.zeros(n_out, dtype=torch.float64))

    @classmethod
    def fit(
        cls, x: np.ndarray, has: np.ndarray, windows: Windows, n_comps: int | None, *, smoothed: bool
    ) -> tuple[ViewInput, ViewFeatures, np.ndarray]:
        """Estimate on the training data; return also its components, and the features scaled to 0..1."""
        scaler = None
        if n_comps is not None and x.shape[1] > n_comps:
            scaler = ViewScaler.fit(x, np.flatnonzero(has), n_comps)
        width = x.shape[1] if scaler is None else scaler.sd.numel()
        out = cls(x.shape[1], n_comps, width, smoothed=smoothed)
        out.scaler = scaler
        raw = values = out._components(x, has)
        low, high = values[has].min(0), values[has].max(0)
        out.low.copy_(torch.from_numpy(low))
        out.span.copy_(torch.from_numpy(np.where(high > low, high - low, 1.0)))
        if smoothed:
            kriging = Kriging.fit(values, has, windows.groups)
            for name in KRIGING:
                out.get_buffer(name).copy_(torch.from_numpy(getattr(kriging, name)))
            values = out._smooth(values, has, windows)
        scaled = out._scaled(values)
        out.typical.copy_(torch.from_numpy(np.median(scaled[has], axis=0)))
        return out, ViewFeatures(raw, values, has), scaled

    def _components(self, x: np.ndarray, has: np.ndarray) -> np.ndarray:
        if self.scaler is None:
            return np.ascontiguousarray(x, dtype=np.float32)
        out = np.full((len(x), self.low.numel()), np.nan, dtype=np.float32)
        rows = np.flatnonzero(has)
        for start in range(0, rows.size, CHUNK):
            part = rows[start : start + CHUNK]
            out[part] = self.scaler(torch.from_numpy(np.ascontiguousarray(x[part], dtype=np.float32))).numpy()
        return out

    def _smooth(self, values: np.ndarray, has: np.ndarray, windows: Windows) -> np.ndarray:
        kriging = Kriging(*(self.get_buffer(name).numpy() for name in KRIGING))
        return kriging(values, has, windows.groups)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return (values - self.low.numpy()) / self.span.numpy()

    def signal_share(self) -> float:
        """Share of the features' variance that they have in common with their surroundings."""
        signal, noise = self.get_buffer("signal"), self.get_buffer("noise")
        total = float((signal + noise).sum())
        return float(signal.sum()) / total if total > 0 else 0.0

    @torch.no_grad()
    def transform(self, x: np.ndarray, has: np.ndarray, windows: Windows) -> np.ndarray:
        """Features of new observations, on the scale of the training data; NaN where the view is missing."""
        if not has.any():
            return np.full((len(x), self.low.numel()), np.nan, dtype=np.float32)
        values = self._components(x, has)
        return self._scaled(self._smooth(values, has, windows) if self.smoothed else values)
