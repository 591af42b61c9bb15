"""What PCCA and CAMEO share: codes, fused code and translations of a model that stands on a linear anchor."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stfuse._log import logger
from stfuse._views import Views
from stfuse.model._base import Codes, fill_other, masked
from stfuse.module.anchor import AnchorData, LinearAnchor, Sizes, neighbor_means


def anchor_data(views: Views, pairs: np.ndarray) -> AnchorData:
    """Hand the views to the anchor's fit."""
    return AnchorData(views.image, views.rna, views.has_image, views.has_rna, pairs, views.section, views.spatial)


def anchor_sizes(anchor: LinearAnchor) -> dict[str, Any]:
    """Sizes of an anchor as plain numbers."""
    return asdict(anchor.sizes)


def empty_anchor(sizes: dict[str, Any]) -> LinearAnchor:
    """An anchor of the stored sizes, to load weights into."""
    return LinearAnchor(Sizes(**sizes))


class Coordinates:
    """Whitened components and neighbour means of both views, computed once a call."""

    def __init__(self, anchor: LinearAnchor, views: Views) -> None:
        self.z: dict[str, Tensor] = {}
        self.near: dict[str, Tensor | None] = {}
        for name, x, has in (("image", views.image, views.has_image), ("rna", views.rna, views.has_rna)):
            if not x.shape[1]:
                x = np.full((views.n_obs, anchor.view(name).scaler.mean.numel()), np.nan, np.float32)
            self.z[name] = anchor.whiten(name, x)
            self.near[name] = None
            if anchor.sizes.context:
                if views.spatial is None:
                    raise ValueError(
                        "The model was trained with neighbour context, so it needs obsm['spatial'] of the data to code. "
                        "Add the coordinates, or train with context=False."
                    )
                self.near[name] = neighbor_means(self.z[name], has, views.spatial, views.section)


def fused_codes(
    anchor: LinearAnchor,
    views: Views,
    z: dict[str, Tensor],
    translated: dict[str, Tensor],
    private_dim: int | None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Build the fused code [shared image, shared rna, private image, private rna] and the private codes.

    It is a rotation of the balanced components of both views, so distances stay what they were; a missing view is replaced by
    its translation first. ``private_dim`` keeps that many leading private columns of each view, None keeps all.
    """
    k = anchor.sizes.n_shared
    shared, private, own = [], [], {}
    for name, has in (("image", views.has_image), ("rna", views.has_rna)):
        rows = torch.where(torch.from_numpy(has)[:, None], z[name], translated[name])
        block = anchor.view(name).balanced(rows).numpy()
        keep = block.shape[1] if private_dim is None else min(k + private_dim, block.shape[1])
        shared.append(block[:, :k])
        private.append(block[:, k:keep])
        own[name] = np.where(has[:, None], private[-1], np.nan).astype(np.float32)
    fused = np.hstack([*shared, *private]).astype(np.float32)
    fused[~(views.has_image | views.has_rna)] = np.nan
    return fused, own


def anchored_codes(
    anchor: LinearAnchor,
    views: Views,
    where: Coordinates,
    codes: dict[str, Tensor],
    translated: dict[str, Tensor],
    private_dim: int | None,
) -> Codes:
    """All codes of an anchored model."""
    fused, own = fused_codes(anchor, views, where.z, translated, private_dim)
    if not fused.shape[1]:
        logger.warning(
            "no dimension is shared well enough for a fused code without private parts: shared codes are used"
        )
        own_codes = {
            name: masked(codes[name], has) for name, has in (("image", views.has_image), ("rna", views.has_rna))
        }
        fused = np.hstack(fill_other(own_codes["image"], own_codes["rna"], views))
    private = {name: block if block.shape[1] else None for name, block in own.items()}
    return Codes(
        fused=fused,
        image=masked(codes["image"], views.has_image),
        rna=masked(codes["rna"], views.has_rna),
        private_image=private["image"],
        private_rna=private["rna"],
    )
