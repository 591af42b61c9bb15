"""Few shots: a handful of observations of each class, to learn from them alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_shots(labels: np.ndarray, k: int, rng: np.random.Generator, groups: np.ndarray | None = None) -> np.ndarray:
    """Draw the rows of ``k`` observations of each class, none of them twice; `check_shots` sees to it that there are so many.

    Those of a class are of different ``groups`` (patients) as far as it has so many: only then does one give a second.
    """
    chosen = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if groups is not None:
            # the first one of each group, in the order drawn, stands before the second one of any
            first = np.sort(np.unique(groups[rows], return_index=True)[1])
            rows = np.concatenate([rows[first], np.delete(rows, first)])
        chosen.append(rows[:k])
    return np.sort(np.concatenate(chosen))


def check_shots(labels: np.ndarray, names: Sequence[str], k: int, fold: int) -> None:
    """Refuse more shots than a class has among the observations that one fold trains on."""
    counts = np.bincount(labels, minlength=len(names))
    rarest = int(counts.argmin())
    if counts[rarest] < k:
        mend = f"use shots={counts[rarest]} or fewer" if counts[rarest] else "use other splits, or leave shots= away"
        raise ValueError(
            f"Where fold {fold} is held out, {names[rarest]} has {counts[rarest]} observation(s) to draw from, fewer than "
            f"shots={k}: {mend}."
        )
