"""Semi-paired probabilistic CCA: the linear anchor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from stfuse._check import check_flag, check_number
from stfuse._log import warn
from stfuse._views import Views
from stfuse.model._anchored import Coordinates, anchor_data, anchor_sizes, anchored_codes, empty_anchor
from stfuse.model._base import Codes, FusionModel, masked
from stfuse.module.anchor import OTHER, LinearAnchor, fit_anchor

UNSTABLE = 10


def check_private_dim(private_dim: int | None) -> None:
    """Refuse a negative width."""
    if private_dim is not None and (not isinstance(private_dim, int | np.integer) or private_dim < 0):
        raise ValueError(f"private_dim must be None (all that is not shared) or a number >= 0, got {private_dim!r}.")


def check_widths(n_components: int, rank: int | None) -> None:
    """Refuse an empty fit."""
    check_number("n_components", n_components, least=1, whole=True)
    check_number("rank", rank, least=1, whole=True, optional=True)


def check_flags(scale: bool | None, **flags: bool) -> None:
    """Refuse "no" and the like, which Python takes for true."""
    for name, value in flags.items():
        check_flag(name, value)
    check_flag("scale", scale, optional=True)


class PCCA(FusionModel):
    """Semi-paired probabilistic canonical correlation analysis of two views.

    Two views of the same spots are seen as noisy linear pictures of a few shared factors. Pairs give a first estimate by
    shrinkage CCA; observations of which only one view is used, or of which the partner is unknown, then refine it by
    expectation-maximisation with a soft matching. Rank, neighbour context and matching are chosen on held-out pairs. It fits in
    about a second and is the floor that every network of this package has to beat.

    Parameters
    ----------
    adata
        Data registered with `setup_anndata`.
    registry
        Record of a set-up, in place of data (`load` passes it).
    n_components
        Principal components of each view that are looked at.
    rank
        Components that enter the correlation. None = by cross-validation on the pairs.
    context
        Whether the mean of the six nearest spots of the section may be used beside each spot (needs `obsm["spatial"]`).
    matching
        Whether unpaired observations may be used through soft matching.
    private_dim
        Private columns a view in the fused code. None = all that is not shared, 0 = none.
    scale
        Whether features are standardised first. None = yes, unless they are uncorrelated already (principal components keep
        their variances).

    Notes
    -----
    Bach and Jordan (2005), A probabilistic interpretation of canonical correlation analysis. The soft matching is a Sinkhorn
    plan (Cuturi 2013).

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, seed=1)
    >>> stfuse.model.PCCA.setup_anndata(adata)
    >>> model = stfuse.model.PCCA(adata)
    >>> model.train()
    >>> model.get_latent_representation(view="image").shape[0]
    300
    """

    _method = "pcca"
    module: LinearAnchor | None

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_components: int = 50,
        rank: int | None = None,
        context: bool = True,
        matching: bool = True,
        private_dim: int | None = None,
        scale: bool | None = None,
    ) -> None:
        check_private_dim(private_dim)
        check_widths(n_components, rank)
        check_flags(scale, context=context, matching=matching)
        super().__init__(
            adata,
            registry,
            n_components=n_components,
            rank=rank,
            context=context,
            matching=matching,
            private_dim=private_dim,
            scale=scale,
        )

    def train(self, *, seed: int = 0, progress: bool | None = None) -> None:
        """Fit.

        Parameters
        ----------
        seed
            Seed of the cross-validation folds and of the pools of the matching.
        progress
            Whether to show a bar. None = in a terminal or notebook, after two seconds.

        Raises
        ------
        ValueError
            If there are fewer than two pairs.
        """
        views = self._begin(seed)
        check_pairs(views, 2, "PCCA")
        options = {k: v for k, v in self.params_.items() if k != "private_dim"}
        data = anchor_data(views, np.flatnonzero(views.paired))
        anchor, report = fit_anchor(data, **options, seed=seed, progress=progress)
        self.report_ = report
        self._finish(anchor, pd.DataFrame([report], index=pd.RangeIndex(1, 2, name="epoch")))

    @torch.no_grad()
    def _codes(self, views: Views) -> Codes:
        anchor = self._anchor()
        where = Coordinates(anchor, views)
        codes = {name: anchor.code(name, where.z[name], where.near[name]) for name in OTHER}
        translated = {OTHER[name]: anchor.expected(codes[name], OTHER[name]) for name in OTHER}
        return anchored_codes(anchor, views, where, codes, translated, self.params_["private_dim"])

    @torch.no_grad()
    def _translate(self, views: Views, source: str) -> np.ndarray:
        anchor = self._anchor()
        where = Coordinates(anchor, views)
        scaler = anchor.view(OTHER[source]).scaler
        out = scaler.inverse(anchor.translate(source, where.z[source], where.near[source]) * scaler.sd)
        return masked(out, views.has_image if source == "image" else views.has_rna)

    def _anchor(self) -> LinearAnchor:
        if self.module is None:
            raise RuntimeError("PCCA is not trained yet: call .train() first.")
        return self.module

    def _architecture(self) -> dict[str, Any]:
        return anchor_sizes(self._anchor())

    def _build(self, architecture: dict[str, Any]) -> LinearAnchor:
        return empty_anchor(architecture)


def check_pairs(views: Views, least: int, name: str) -> None:
    """Refuse data with fewer pairs than a method needs."""
    n = views.counts()
    if n["paired"] >= least:
        if n["paired"] < UNSTABLE:
            warn(
                f"{name} stands on {n['paired']} pairs: with fewer than {UNSTABLE} its result varies from draw to draw."
            )
        return
    why = (
        f"{n['both']} observations have both views and {n['paired']} of them may be used as pairs"
        if n["both"]
        else f"{n['image']} observations have an image and {n['rna']} have RNA, but none has both: do the obs_names of the two "
        "modalities agree"
    )
    raise ValueError(
        f"{name} needs at least {least} observations with both views as pairs: {why}. "
        "Check paired_key, the NaN rows of the views, or use stfuse.tl.cameo(..., faithful=True), which trains without pairs."
    )
