"""Retrieval when the views come from different observations: every spot that is no pair has one view only.

Run ``python benchmarks/disjoint.py``; it prints the table of README.md.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from data import LEVELS, Task, bulb, hide, synthetic

import stfuse
from stfuse.metrics import recall_at_percent

METHODS = {
    "pcca": {},
    "pcca, matching=False": {"matching": False},
    "pcca, context=False": {"context": False},
    "clip": {},
}


def take_views(task: Task) -> None:
    """Of the spots that are no pairs, a random half loses the image and the other half the RNA."""
    alone = np.flatnonzero(~task.train.obs["paired"].to_numpy())
    lot = np.random.default_rng(task.seed).permutation(alone)
    for key, rows in (("X_image", lot[::2]), ("X_pca", lot[1::2])):
        task.train.obsm[key] = np.array(task.train.obsm[key], dtype=np.float32)
        task.train.obsm[key][rows] = np.nan


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    rows = []
    for kind in ("base", "weak shared", "noisy", "MOB"):
        for seed in (0, 1, 2):
            for level in LEVELS[1:]:
                task = bulb(seed) if kind == "MOB" else synthetic(kind, seed)
                hide(task, level, seed)
                take_views(task)
                keys = {"library_key": task.library_key, "batch_key": task.library_key}
                for method, options in METHODS.items():
                    function = getattr(stfuse.tl, method.split(",")[0])
                    model = function(task.train, **keys, **options, seed=seed, progress=False, return_model=True)
                    codes = model.codes(task.test)
                    recall = 0.5 * (
                        recall_at_percent(codes.image, codes.rna) + recall_at_percent(codes.rna, codes.image)
                    )
                    rows.append({"tissue": kind, "method": method, "level": level, "recall": recall})
    table = pd.DataFrame(rows).groupby(["tissue", "method", "level"], sort=False)["recall"].agg(["mean", "std"])
    print("| tissue | method | " + " | ".join(f"{100 * level:.0f} % pairs" for level in LEVELS[1:]) + " |")
    print("|-|-|" + "-|" * len(LEVELS[1:]))
    for (kind, method), part in table.groupby(level=[0, 1], sort=False):
        print(f"| {kind} | {method} | " + " | ".join(f"{m:.2f} ± {s:.2f}" for m, s in part.to_numpy()) + " |")


if __name__ == "__main__":
    main()
