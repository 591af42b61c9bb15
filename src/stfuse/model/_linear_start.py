"""Where training on pairs begins, and what its held-out pairs are to predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stfuse import _keys
from stfuse._folds import tissue_folds
from stfuse._views import Views
from stfuse.module.linear_start import DEFAULT_PENALTY, MAX_ROWS, N_TARGETS, at_most, components, linear_maps, penalties
from stfuse.module.umpire import AlignedViews

N_COMPONENTS = {"image": (50, 30), "rna": (30, 30)}  # of an observation, of the mean around it
N_FOLDS, MIN_CHOICE = 4, 20


def targets_of(views: Views, context: bool) -> np.ndarray:
    """Leading components of the RNA features, n x 10 at most, which images are to predict."""
    own = views.rna[:, : views.rna.shape[1] // (1 + context)]
    rows = at_most(np.flatnonzero(views.has_rna), MAX_ROWS, np.random.default_rng(0))
    return components(own, rows, (N_TARGETS,))(own)


@dataclass
class LinearStart:
    """Where training on pairs begins: ridge-regularised CCA, its penalty chosen on folds of tissue."""

    views: Views
    seed: int
    context: bool
    penalty: float
    report: dict[str, float]

    @classmethod
    def of(cls, views: Views, context: bool, seed: int) -> LinearStart:
        """Choose the penalty, on all pairs."""
        start = cls(views, seed, context, DEFAULT_PENALTY, {})
        pairs = np.flatnonzero(views.paired)
        if pairs.size >= MIN_CHOICE:
            spatial = None if views.spatial is None else views.spatial[pairs]
            fold = tissue_folds(views.section[pairs], spatial, N_FOLDS, seed)
            errors = penalties(*start._inputs(), pairs, fold, start._widths(), seed)
            start.penalty = min(errors, key=lambda p: errors[p])
            start.report = {"penalty": start.penalty, "held_out_error": errors[start.penalty]}
        return start

    def put(self, module: AlignedViews, pairs: np.ndarray) -> None:
        """Let a module begin at the maps that these pairs give."""
        for view, found in linear_maps(*self._inputs(), pairs, self._widths(), self.penalty, self.seed).items():
            module.start_at(view, torch.from_numpy(found.mean).float(), torch.from_numpy(found.weights).float())

    def _inputs(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        v = self.views
        return {"image": v.image, "rna": v.rna}, {"image": v.has_image, "rna": v.has_rna}

    def _widths(self) -> dict[str, tuple[int, ...]]:
        return {view: N_COMPONENTS[view][: 1 + self.context] for view in _keys.VIEWS}
