"""Tissues on which methods are compared: synthetic kinds with a known truth, and the bundled mouse olfactory bulb."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from anndata import AnnData

import stfuse

KINDS: dict[str, dict] = {
    "base": {"n_obs": 2000},
    "small": {"n_obs": 500},
    "weak shared": {"n_obs": 2000, "shared_strength": 0.55},
    "strong private": {"n_obs": 2000, "private_strength": 2.0},
    "noisy": {"n_obs": 2000, "noise": 1.8},
    "nonlinear": {"n_obs": 4000, "nonlinearity": 1.0, "noise": 1.5, "shared_strength": 0.7},
}
LEVELS = (1.0, 0.4, 0.1, 0.02)


@dataclass
class Task:
    """A training and a test part of one tissue, and the column with the labels."""

    name: str
    seed: int
    train: AnnData
    test: AnnData
    label: str
    library_key: str | None


def synthetic(kind: str, seed: int) -> Task:
    """A random third of the spots is the test part; its views are never seen in training."""
    adata = stfuse.datasets.synthetic_tissue(seed=seed, **KINDS[kind])
    order = np.random.default_rng(1000 + seed).permutation(adata.n_obs)
    cut = adata.n_obs // 3
    test, train = (adata[np.sort(part)].copy() for part in (order[:cut], order[cut:]))
    return Task(kind, seed, train, test, "domain", None)


def bulb(fold: int) -> Task:
    """One section of the mouse olfactory bulb is the test part."""
    adata = stfuse.datasets.mob()
    stfuse.pp.image_features(adata, library_key="section")
    stfuse.pp.rna_features(adata)
    held = adata.obs["section"].cat.categories[fold % 4]
    test = adata.obs["section"] == held
    return Task("MOB", fold, adata[~test].copy(), adata[test].copy(), "layer", "section")


def hide(task: Task, level: float, seed: int) -> None:
    """Leave a fraction of the pairs of the training part; all rows keep both views."""
    n = task.train.n_obs
    keep = max(4, round(level * n))
    paired = np.zeros(n, dtype=bool)
    paired[np.random.default_rng(7 * seed + 13).permutation(n)[:keep]] = True
    task.train.obs["paired"] = paired
