"""Codes of slides by a trained MIRROR, from all of their tiles, in memory that does not grow with a slide where it need not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from stfuse._keys import VIEWS
from stfuse.model._slide_views import SlideViews
from stfuse.model._tile_bags import encode_bags
from stfuse.module.mirror import Mirror
from stfuse.module.transmil import TransMIL
from stfuse.train._bags import Bags

SLIDES = 1_024  # of RNA coded at once


@dataclass(frozen=True)
class MirrorCodes:
    """What a model says of s slides (``names``) and n tiles; NaN where a view is missing.

    ``image`` and ``rna`` are what both views are compared by, of unit length; ``private_image`` and ``private_rna`` what the encoders give;
    ``fused`` holds these and, but for a faithful model, those before, scaled, where a view is missing as the other tells it. ``prototype``
    is the number of the prototype that is likest (-1 = none), ``attention`` how much each tile counts in its slide.
    """

    names: pd.Index
    image: np.ndarray
    rna: np.ndarray
    fused: np.ndarray
    private_image: np.ndarray
    private_rna: np.ndarray
    prototype: np.ndarray
    attention: np.ndarray


@torch.no_grad()
def code_slides(module: Mirror, views: SlideViews, device: str) -> MirrorCodes:
    """Code everything that is there."""
    own = {"image": torch.full((len(views.names), module.dim), torch.nan), "rna": torch.full((len(views.names), module.dim), torch.nan)}  # fmt: skip
    attention = np.full(views.slide.size, np.nan, np.float32)
    rows = {"image": np.flatnonzero(views.has_image), "rna": np.flatnonzero(views.has_rna)}
    if rows["image"].size:
        bags = views.bags.select(torch.from_numpy(rows["image"]))
        own["image"][rows["image"]], weights = encode_slides(module, bags, device)
        attention[bags.rows.numpy()] = weights
    for some in np.array_split(rows["rna"], -(-rows["rna"].size // SLIDES)) if rows["rna"].size else []:
        own["rna"][some] = module.genes(torch.from_numpy(views.genes[some]))
    shared = {view: module.shared(view, code) for view, code in own.items()}
    return MirrorCodes(
        views.names,
        F.normalize(shared["image"], dim=1).numpy(),
        F.normalize(shared["rna"], dim=1).numpy(),
        _fused(module, shared, own).numpy(),
        own["image"].numpy(),
        own["rna"].numpy(),
        _prototypes(module, own, rows).numpy(),
        attention,
    )


def encode_slides(module: Mirror, bags: Bags, device: str) -> tuple[Tensor, np.ndarray]:
    """Code of each slide, all of which have tiles, and attention of the tiles, of sum one within a slide."""
    if not isinstance(module.slides, TransMIL):
        return encode_bags(module.slides, bags, device)
    return encode_bags_whole(module.slides, bags, device)


def encode_bags_whole(encoder: TransMIL, bags: Bags, device: str) -> tuple[Tensor, np.ndarray]:
    """One slide after another: a transformer has to see all of its tiles at once."""
    from stfuse.model._umpire_encoders import torch_device

    place = torch.device(torch_device(device))
    codes, weights = [], []
    try:
        encoder.to(place)
        for start, stop in zip(bags.offsets[:-1].tolist(), bags.offsets[1:].tolist(), strict=True):
            tiles = bags.take(bags.rows[start:stop]).to(place)
            code, _, attention = encoder(tiles, torch.tensor([0, stop - start]))
            # the approximation may come out a little below zero
            positive = attention.double().clamp(min=0)
            codes.append(code.cpu())
            weights.append((positive / positive.sum().clamp(min=1e-300)).cpu().numpy())
    finally:
        encoder.to("cpu")
    return torch.cat(codes), np.concatenate(weights)


def _fused(module: Mirror, shared: dict[str, Tensor], own: dict[str, Tensor]) -> Tensor:
    """All codes, of a missing view what the other tells of it."""
    shared, own = dict(shared), dict(own)
    for view, other in (VIEWS, VIEWS[::-1]):
        missing = own[view].isnan().any(1, keepdim=True) & ~own[other].isnan().any(1, keepdim=True)
        own[view] = torch.where(missing, module.translate(view, own[other]), own[view])
        shared[view] = torch.where(missing, module.shared(other, own[other]), shared[view])
    return module.fuse(shared, own)


def _prototypes(module: Mirror, own: dict[str, Tensor], rows: dict[str, np.ndarray]) -> Tensor:
    """Likest prototype by the mean log probability of the views that are there."""
    n = own["image"].shape[0]
    total, known = torch.zeros(n, module.style.prototypes.out_features), torch.zeros(n, dtype=torch.bool)
    for view, some in rows.items():
        if some.size:
            total[some] += module.style(own[view][some], draw=False)[2]
            known[some] = True
    return torch.where(known, total.argmax(1), -1)
