"""What the baselines share: balanced principal components of both views side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stfuse._views import Views
from stfuse.model._base import Codes, FusionModel
from stfuse.module.scaling import ViewScaler, whiten_rows


class ComponentModel(FusionModel):
    """Principal components of each view, divided by the view's size; the fused code is made of blocks, image first."""

    module: nn.ModuleDict | None

    def _fit_components(self, views: Views) -> None:
        parts = {}
        for name, x, has in both(views):
            rows = np.flatnonzero(has)
            parts[name] = ViewScaler.fit(x, rows, self.params_["n_components"], self.params_["scale"])
        self._finish(nn.ModuleDict(parts))

    @torch.no_grad()
    def _blocks(self, views: Views) -> list[np.ndarray]:
        """Balanced components of each view, n x p; a missing view is replaced by its mean, zeros."""
        module = self._components()
        blocks = []
        for name, x, has in both(views):
            scaler = module[name]
            if not isinstance(scaler, ViewScaler):
                raise TypeError(name)
            block: Tensor = torch.zeros(views.n_obs, scaler.sd.numel())
            if x.shape[1]:
                size = scaler.sd.square().sum().sqrt()
                block = torch.where(torch.from_numpy(has)[:, None], whiten_rows(scaler, x) * scaler.sd / size, block)
            blocks.append(block.numpy())
        return blocks

    def _codes(self, views: Views) -> Codes:
        fused = np.hstack(self._blocks(views)).astype(np.float32)
        fused[~(views.has_image | views.has_rna)] = np.nan
        return Codes(fused=fused)

    def _components(self) -> nn.ModuleDict:
        if self.module is None:
            raise RuntimeError(f"{type(self).__name__} is not trained yet: call .train() first.")
        return self.module

    def _architecture(self) -> dict[str, Any]:
        shapes = {name: part.get_buffer("components").shape for name, part in self._components().items()}
        return {name: [int(n) for n in shape] for name, shape in shapes.items()}

    def _build(self, architecture: dict[str, Any]) -> nn.ModuleDict:
        return nn.ModuleDict({name: ViewScaler(*shape) for name, shape in architecture.items()})


def both(views: Views) -> tuple[tuple[str, np.ndarray, np.ndarray], ...]:
    """Name, features and mask of each view, in the order of the code."""
    return ("image", views.image, views.has_image), ("rna", views.rna, views.has_rna)
