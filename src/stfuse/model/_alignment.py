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
from stfuse.train._fit import KeepBest, StopAfter, fit
from stfuse.train._plans import CHUNK, ENCODED, JointPlan

if TYPE_CHECKING:
    from stfuse.model._base import FusionModel
    from stfuse.model._linear_start import LinearStart
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


@dataclass
class Run:
    """One training on pairs, which may be repeated on others."""

    model: FusionModel
    views: Views
    settings: Alignment
    seed: int
    device: str
    progress: bool | None
    trainer_kwargs: dict[str, Any]
    start: LinearStart | None = None
    targets: np.ndarray | None = None

    def fresh(self, pairs: np.ndarray) -> Any:
        """A module that knows the moments of the features, and where it starts if not at random."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            module: Any = self.model._build(self.model._architecture())
        x, has = inputs(self.views), presence(self.views)
        for view in _keys.VIEWS:
            if view not in self.views.raw:
                module.standard.fit_moments(view, x[view], np.flatnonzero(has[view]))
        if self.start is not None:
            self.start.put(module, pairs)
        return module

    def fit(
        self, pairs: np.ndarray, held_out: np.ndarray, stop: int | None = None
    ) -> tuple[Any, pd.DataFrame, KeepBest | None]:
        """Train on pairs, watched on those held out, or for so many epochs as ``stop`` says of a schedule of all."""
        module, s, x = self.fresh(pairs), self.settings, inputs(self.views)
        image, rna = (torch.from_numpy(x[view]) for view in _keys.VIEWS)
        tensors = tensors_of(image, rna, self.views, pairs, held_out)
        options: dict[str, Any] = {"objective": s.objective, "warmup": s.warmup, "targets": self.targets}
        epochs = EPOCHS if held_out.size or stop else EPOCHS_BLIND
        kwargs = dict(self.trainer_kwargs)
        if stop is not None:
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), StopAfter(stop)]
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            history, keep = fit(
                JointPlan(module, tensors, self.seed, s.lr, s.weight_decay, **options),
                max_epochs=s.max_epochs if s.max_epochs is not None else epochs,
                batch_size=s.batch_size,
                device=self.device,
                seed=self.seed,
                patience=s.patience,
                pairs_only=True,
                progress=self.progress,
                desc=type(self.model).__name__ + (", all pairs" if stop else ""),
                trainer_kwargs=kwargs,
            )
        return module, history, keep


def align(run: Run) -> tuple[Any, pd.DataFrame]:
    """Train a fresh module of the model on the pairs; return the one of the best epoch, and the history.

    With targets pieces of tissue are held out, of which the image has to predict them; without, random pairs, which have to find
    each other. A linear start is returned as it is, of all pairs, where no epoch beats it clearly or too few pairs could judge;
    else it is trained again on all pairs for as many epochs.
    """
    fraction, seed = run.settings.validation_fraction, run.seed
    piece = None
    if run.targets is None:
        pairs, held_out = split_pairs(run.views.paired, fraction, seed)
    else:
        pairs, held_out, piece = split_tissue(run.views, fraction, seed)
    everything = np.union1d(pairs, held_out)
    if run.start is not None and fraction and held_out.size < MIN_HELD_OUT:
        return run.fresh(everything), pd.DataFrame()
    module, history, keep = run.fit(pairs, held_out)
    if run.start is None or keep is None:
        if keep is not None and keep.state is not None:
            module.load_state_dict(keep.state)
        return module, history
    epochs = verdict(keep, run.model.report_, piece)
    return run.fit(everything, held_out[:0], epochs)[0] if epochs else run.fresh(everything), history


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
