"""Cross-validation of survival: whole groups are held out, and each slide is predicted by heads that have not seen it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from stfuse._folds import stratified_group_folds
from stfuse._log import warn
from stfuse._progress import progress
from stfuse._shots import check_shots, draw_shots
from stfuse._survival import bin_edges, bins_of, concordance
from stfuse.tl._survival_heads import Patients, SurvivalHead, fit_head

DRAWS = 1000  # of shots, before giving up to find an event among them


class Shots(NamedTuple):
    """How many slides of each bin a head sees (None = all), and how often these are drawn."""

    k: int | None
    n_draws: int


class Told(NamedTuple):
    """Risk of slides, in spreads around the mean of those that the head could learn from, and the median of these."""

    risk: np.ndarray
    median: np.ndarray


class Validated(NamedTuple):
    """What is said of slides held out, and of those of which nothing is known; scores, and edges and penalty of each fold."""

    held_out: Told
    unknown: Told
    scores: pd.DataFrame
    edges: dict[str, np.ndarray]
    penalties: list[float]


def assign_folds(event: np.ndarray, groups: np.ndarray, n_splits: int, seed: int, unit: str) -> np.ndarray:
    """Fold of each slide: whole groups, events spread evenly; each fold has an event."""
    n_groups, with_event = np.unique(groups).size, np.unique(groups[event]).size
    least = min(n_groups, with_event)
    if least < n_splits:
        what = f"{n_groups} {unit}(s)" if n_groups < n_splits else f"{with_event} {unit}(s) with an event"
        mend = f"use n_splits={least} or fewer" if least > 1 else "there is none to hold out, add more"
        raise ValueError(f"There are {what} and a code, fewer than n_splits={n_splits}: {mend}.")
    fold = stratified_group_folds(event.astype(np.int64), groups, n_splits, seed)
    without = np.setdiff1d(np.arange(n_splits), fold[event])
    if without.size:
        raise ValueError(
            f"Fold {without[0]} of {n_splits} has no events among its {(fold == without[0]).sum()} slide(s), so that nothing can be "
            "scored there: use fewer folds, or another seed."
        )
    return fold


def edges_of_folds(slides: Patients, fold: np.ndarray, n_bins: int) -> list[np.ndarray]:
    """Edges of the bins of time of each fold, from the events that it trains on."""
    edges = [bin_edges(slides.time[fold != i], slides.event[fold != i], n_bins) for i in range(fold.max() + 1)]
    fewest = min(map(len, edges)) + 1
    if fewest < n_bins:
        warn(
            f"There are too few different times of events for n_bins={n_bins}: in some folds time has {fewest} bin(s), each with at "
            "least one event."
        )
    return edges


def cross_validate(
    slides: Patients, fold: np.ndarray, unknown: np.ndarray, edges: list[np.ndarray], head: SurvivalHead, shots: Shots
) -> Validated:
    """Train a head for each fold, or one for each draw of shots.

    What is kept of slides is what the first draw said; scores are means over draws.
    """
    n_splits = int(fold.max()) + 1
    rows = [_rows_of(slides, fold, i, edges[i], shots, head.seed) for i in range(n_splits)]
    n_draws = len(rows[0])
    risk, c_index = np.empty((n_draws, len(fold))), np.empty((n_draws, n_splits))
    median = np.empty(len(fold))
    of_unknown, penalties = [], []
    for i in progress(range(n_splits), desc="survival"):
        test = fold == i
        for draw, chosen in enumerate(rows[i]):
            fitted = fit_head(head, slides.take(chosen), edges[i])
            among = fitted.risk(slides.x[~test])
            middle, spread = among.mean(), among.std() or 1.0
            risk[draw, test] = (fitted.risk(slides.x[test]) - middle) / spread
            c_index[draw, i] = concordance(slides.time[test], slides.event[test], risk[draw, test])
            if draw == 0:
                median[test] = (np.median(among) - middle) / spread
                of_unknown.append((fitted.risk(unknown) - middle) / spread)
                penalties.append(fitted.penalty)
    medians = [median[fold == i][0] for i in range(n_splits)]
    return Validated(
        Told(risk[0], median),
        Told(np.mean(of_unknown, axis=0), np.full(len(unknown), np.mean(medians))),
        _scores(slides, fold, risk, c_index),
        {str(i): values for i, values in enumerate(edges)},
        penalties,
    )


def _rows_of(
    slides: Patients, fold: np.ndarray, i: int, edges: np.ndarray, shots: Shots, seed: int
) -> list[np.ndarray]:
    """Rows that the heads of a fold are trained on, one after another."""
    train = np.flatnonzero(fold != i)
    if shots.k is None:
        return [train]
    bins = bins_of(slides.time[train], edges)
    check_shots(bins, [f"bin {b} of time" for b in range(len(edges) + 1)], shots.k, i)
    rng = np.random.default_rng([seed, i])
    return [_draw(slides, train, bins, shots.k, rng) for _ in range(shots.n_draws)]


def _draw(slides: Patients, train: np.ndarray, bins: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draw shots until there is an event among them: nothing is learnt from censored slides alone."""
    for _ in range(DRAWS):
        chosen = train[draw_shots(bins, k, rng, slides.groups[train])]
        if slides.event[chosen].any():
            return chosen
    raise ValueError(f"No event among shots={k} slide(s) of each bin, in {DRAWS} draws: use more shots.")


def _scores(slides: Patients, fold: np.ndarray, risk: np.ndarray, c_index: np.ndarray) -> pd.DataFrame:
    rows = [(str(i), fold == i, float(np.mean(c_index[:, i]))) for i in range(fold.max() + 1)]
    every = np.ones(len(fold), dtype=bool)
    pooled = [concordance(slides.time, slides.event, drawn) for drawn in risk]
    found = c_index[:, ~np.isnan(c_index).any(0)]
    rows.append(("mean", every, float(found.mean()) if found.size else float("nan")))
    rows.append(("pooled", every, float(np.mean(pooled))))
    return pd.DataFrame(
        [
            {"fold": name, "n_slides": int(of.sum()), "n_events": int(slides.event[of].sum()), "c_index": c}
            for name, of, c in rows
        ]
    )
