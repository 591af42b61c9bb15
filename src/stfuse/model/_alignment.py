"""What CLIP and UMPIRE share: training on pairs, and codes of unit length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from stfuse import _keys
from stfuse._views import Views
from stfuse.model._base import Codes, fill_other, masked
from stfuse.model._training import MIN_HELD_OUT, split_pairs, split_tissue, tensors_of, verdict
from stfuse.train._fit import fit
from stfuse.train._plans import CHUNK, ENCODED, JointPlan

if TYPE_CHECKING:
    from stfuse.model._base import FusionModel
    from stfuse.model._context import LinearStart
    from stfuse.module.clip import TwoTowers
    from stfuse.module.umpire import AlignedViews, Objective

EPOCHS, EPOCHS_BLIND = 100, 20  # with pairs held out to stop on, and without


@dataclass(frozen=True)
class Alignment:
    """Settings of a training on pairs."""

    max_epochs: int | None
    batch_size: int
    lr: float
    weight_decay: float
    validation_fraction: float
    patience: int
    objective: Objective = "contrastive"
    warmup: float | None = None

    def __post_init__(self) -> None:
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(f"max_epochs must be None or at least 1, got {self.max_epochs}.")


def inputs(views: Views) -> dict[str, np.ndarray]:
    """What a model reads of each view: crops or tokens where there are any, else features."""
    return {view: views.raw.get(view, getattr(views, view)) for view in _keys.VIEWS}


def presence(views: Views) -> dict[str, np.ndarray]:
    """Which observations have each view."""
    return {"image": views.has_image, "rna": views.has_rna}


def align(
    model: FusionModel,
    views: Views,
    settings: Alignment,
    seed: int,
    device: str,
    progress: bool | None,
    trainer_kwargs: dict[str, Any],
    start: LinearStart | None = None,
    targets: np.ndarray | None = None,
) -> tuple[Any, pd.DataFrame]:
    """Train a fresh module of the model on the pairs; return the one of the best epoch, and the history.

    With ``targets`` (n x t) blocks of tissue are held out, of which the image has to predict them; without, random pairs, which
    have to find each other. A linear start that no epoch beats clearly, or that too few pairs could judge, is what is returned,
    of all pairs.
    """
    split = split_pairs if targets is None else split_tissue
    pairs, held_out = split(views, settings.validation_fraction, seed)
    x = inputs(views)
    if start is not None and settings.validation_fraction and held_out.size < MIN_HELD_OUT:
        # nothing can tell whether training is better than its start
        return _start_of_all(model, views, pairs, held_out, start, seed), pd.DataFrame()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _fresh(model, views, pairs, start)
        image, rna = (torch.from_numpy(x[view]) for view in _keys.VIEWS)
        plan = JointPlan(
            module,
            tensors_of(image, rna, views, pairs, held_out),
            seed,
            settings.lr,
            settings.weight_decay,
            objective=settings.objective,
            warmup=settings.warmup,
            targets=targets,
        )
        epochs = EPOCHS if held_out.size else EPOCHS_BLIND
        history, keep = fit(
            plan,
            max_epochs=settings.max_epochs if settings.max_epochs is not None else epochs,
            batch_size=settings.batch_size,
            device=device,
            seed=seed,
            patience=settings.patience,
            pairs_only=True,
            progress=progress,
            desc=type(model).__name__,
            trainer_kwargs=trainer_kwargs,
        )
    if start is not None and keep is not None and not verdict(keep, model.report_):
        module = _start_of_all(model, views, pairs, held_out, start, seed)
    elif keep is not None and keep.state is not None:
        module.load_state_dict(keep.state)
    return module, history


def _start_of_all(
    model: FusionModel, views: Views, pairs: np.ndarray, held_out: np.ndarray, start: LinearStart, seed: int
) -> Any:
    """The start on all pairs, as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _fresh(model, views, np.union1d(pairs, held_out), start)


def _fresh(model: FusionModel, views: Views, pairs: np.ndarray, start: LinearStart | None) -> Any:
    """A module that knows the moments of the features, and where it starts if not at random."""
    module: Any = model._build(model._architecture())
    x, has = inputs(views), presence(views)
    for view in _keys.VIEWS:
        if view not in views.raw:
            module.standard.fit_moments(view, x[view], np.flatnonzero(has[view]))
    if start is not None:
        start.put(module, pairs)
    return module


@torch.no_grad()
def unit_codes(module: TwoTowers | AlignedViews, views: Views, width: int, device: str = "cpu") -> Codes:
    """Code of each view, of unit length, and the two side by side."""
    code = {}
    x, has = inputs(views), presence(views)
    module.to(device)
    try:
        for view in _keys.VIEWS:
            out = np.full((views.n_obs, width), np.nan, np.float32)
            rows = np.flatnonzero(has[view])
            chunk = ENCODED if view in views.raw else CHUNK
            for start in range(0, rows.size, chunk):
                index = rows[start : start + chunk]
                t = module.native(view, torch.from_numpy(x[view][index]).to(device))
                out[index] = F.normalize(module.encode(view, t), dim=1).cpu().numpy()
            code[view] = masked(out, has[view])
    finally:
        module.to("cpu")
    fused = np.hstack(fill_other(code["image"], code["rna"], views))
    return Codes(fused=fused, image=code["image"], rna=code["rna"])
