"""Which donors a combination is chosen on, and which it is tested on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stfuse._folds import group_folds

TASKS = ("multi-donor", "single-donor")


@dataclass(frozen=True)
class Fold:
    """Rows on which a combination is chosen, and the sets of rows on which it is tested, each set on its own."""

    name: str
    tuning: np.ndarray
    tests: list[np.ndarray]


def donor_folds(donor: np.ndarray, names: list[str], groups: str, task: str, n_splits: int | None) -> list[Fold]:
    """Part donors (codes of ``names``); a donor is never on both sides of a fold."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(map(repr, TASKS))}, got {task!r}.")
    n = len(names)
    if n < 2:
        raise ValueError(
            f"obs[{groups!r}] (groups) has one donor only, {names[0]!r}: tuning chooses on some donors and tests on others, it "
            "needs two or more."
        )
    rows = [np.flatnonzero(donor == code) for code in range(n)]
    if task == "single-donor":
        if n_splits is not None:
            raise ValueError(
                'n_splits belongs to task="multi-donor"; with "single-donor" each donor is the tuning set once.'
            )
        return [Fold(str(i), rows[i], rows[:i] + rows[i + 1 :]) for i in range(n)]
    if n_splits is not None and n_splits > n:
        raise ValueError(
            f"n_splits={n_splits} is more than the {n} donors of obs[{groups!r}] (groups): use at most {n}."
        )
    # of n folds over n donors each holds one; numbered by donor, not by size
    fold = donor if n_splits is None else group_folds(donor, n_splits)
    return [Fold(str(i), np.flatnonzero(fold != i), [np.flatnonzero(fold == i)]) for i in range(int(fold.max()) + 1)]
