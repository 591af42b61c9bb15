"""Concatenation of balanced components: the baseline without alignment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from stfuse._views import Views
from stfuse.model._base import Codes, FusionModel
from stfuse.model._pcca import check_flags, check_widths
from stfuse.module.scaling import ViewScaler, whiten_rows


class Concat(FusionModel):
    """Principal components of both views side by side, each view divided by its size.

    Nothing is aligned and nothing is shared, which is hard to beat when every observation has both views. A missing view is
    replaced by its mean.

    Parameters
    ----------
    adata
        Data registered with `setup_anndata`.
    registry
        Record of a set-up, in place of data (`load` passes it).
    n_components
        Principal components of each view.
    scale
        Whether features are standardised first. None = yes, unless they are uncorrelated already.

    Notes
    -----
    The baseline "Concat" of the CAMEO paper (appendix E.2.1) concatenates raw embeddings; components and balance keep a view
    with more or larger features from drowning the other one.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(200)
    >>> stfuse.model.Concat.setup_anndata(adata)
    >>> model = stfuse.model.Concat(adata, n_components=10)
    >>> model.train()
    >>> model.get_latent_representation().shape
    (200, 20)
    """

    _method = "concat"
    module: nn.ModuleDict | None

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_components: int = 30,
        scale: bool | None = None,
    ) -> None:
        check_widths(n_components, None)
        check_flags(scale)
        super().__init__(adata, registry, n_components=n_components, scale=scale)

    def train(self, *, seed: int = 0) -> None:
        """Fit the components.

        Parameters
        ----------
        seed
            Kept for the record; nothing here is random.
        """
        views = self._begin(seed)
        parts = {}
        for name, x, has in (("image", views.image, views.has_image), ("rna", views.rna, views.has_rna)):
            rows = np.flatnonzero(has)
            parts[name] = ViewScaler.fit(x, rows, self.params_["n_components"], self.params_["scale"])
        self._finish(nn.ModuleDict(parts))

    @torch.no_grad()
    def _codes(self, views: Views) -> Codes:
        if self.module is None:
            raise RuntimeError("Concat is not trained yet: call .train() first.")
        blocks = []
        for name, x, has in (("image", views.image, views.has_image), ("rna", views.rna, views.has_rna)):
            scaler = self.module[name]
            if not isinstance(scaler, ViewScaler):
                raise TypeError(name)
            block: Tensor = torch.zeros(views.n_obs, scaler.sd.numel())
            if x.shape[1]:
                size = scaler.sd.square().sum().sqrt()
                block = torch.where(torch.from_numpy(has)[:, None], whiten_rows(scaler, x) * scaler.sd / size, block)
            blocks.append(block.numpy())
        fused = np.hstack(blocks).astype(np.float32)
        fused[~(views.has_image | views.has_rna)] = np.nan
        return Codes(fused=fused)

    def _architecture(self) -> dict[str, Any]:
        if self.module is None:
            raise RuntimeError("Concat is not trained yet: call .train() first.")
        shapes = {name: self.module[name].get_buffer("components").shape for name in self.module}
        return {name: [int(n) for n in shape] for name, shape in shapes.items()}

    def _build(self, architecture: dict[str, Any]) -> nn.ModuleDict:
        return nn.ModuleDict({name: ViewScaler(*shape) for name, shape in architecture.items()})
