"""Cohort, folds and shots of a comparison of methods on slides, the same for all methods, and what is learnt from labels in each fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _read
from stfuse._labels import read_classes
from stfuse._shots import check_shots, draw_shots
from stfuse._slides import column_of
from stfuse._survival import read_survival
from stfuse.model._slide_views import SlideViews
from stfuse.tl._mil_folds import LabelledSlides
from stfuse.tl._mil_folds import assign_folds as folds_of_classes
from stfuse.tl._slide_heads import ClassTarget, SurvivalTarget, Target
from stfuse.tl._survival_folds import assign_folds as folds_of_events
from stfuse.tl._survival_folds import edges_of_folds
from stfuse.tl._survival_heads import Patients

DRAWS = 1000  # of shots, before giving up to find something to learn from
SELECTED, LABEL, GROUP, SEEN = "selected", "label", "group", "seen"


class Question(NamedTuple):
    """What slides are asked for: a class, or time and event."""

    label_key: str | None
    time_key: str | None
    event_key: str | None
    event_value: Any
    n_bins: int


@dataclass(frozen=True)
class Comparison:
    """Slides in folds (-1 = not compared), their target, and the rows that heads of each fold are trained on, draw after draw.

    There is a list of draws for each number of shots (None = all slides).
    """

    target: Target
    fold: np.ndarray
    draws: list[dict[int | None, list[np.ndarray]]]

    @property
    def n_splits(self) -> int:
        """Number of folds."""
        return len(self.draws)

    @property
    def compared(self) -> np.ndarray:
        """Slides that are held out once."""
        return np.flatnonzero(self.fold >= 0)

    def test(self, i: int) -> np.ndarray:
        """Slides that are held out in a fold."""
        return np.flatnonzero(self.fold == i)

    def outside(self, i: int) -> np.ndarray:
        """Mark slides that share no group with those held out, compared or not."""
        return ~np.isin(self.target.groups, self.target.groups[self.fold == i])


def read_groups(slides: AnnData, groups: str | None) -> tuple[np.ndarray, str]:
    """Group of each slide, numbered by name, and what a group is called."""
    if groups is None:
        return pd.factorize(slides.obs_names, sort=True)[0], "slide"
    column = column_of(slides, "slides", "groups", groups)
    return _read.read_codes(column, groups, "groups")[0], f"group in {groups!r}"


def read_comparison(
    slides: AnnData,
    paired: np.ndarray,
    question: Question,
    groups: str | None,
    n_splits: int,
    shots: Sequence[int | None],
    n_draws: int,
    seed: int,
) -> Comparison:
    """Read what is asked for, and cut the slides with both views (``paired``) into folds."""
    group, unit = read_groups(slides, groups)
    if question.label_key is not None:
        column = column_of(slides, "slides", "label_key", question.label_key)
        codes, classes = read_classes(column.where(pd.Series(paired, column.index)), question.label_key)
        rows = np.flatnonzero(codes >= 0)
        labelled = LabelledSlides(rows, codes[rows], group[rows], classes, unit)
        fold = folds_of_classes(labelled, slides.n_obs, n_splits, seed, question.label_key)
        target: Target = ClassTarget(codes, group, classes)
    else:
        known = read_survival(slides, str(question.time_key), str(question.event_key), question.event_value, None)
        rows = np.flatnonzero(known.known & paired)
        event = known.event & paired
        part = folds_of_events(event[rows], group[rows], n_splits, seed, unit)
        compared = Patients(np.empty((rows.size, 0)), known.time[rows], event[rows], group[rows])
        fold = np.full(slides.n_obs, -1)
        fold[rows] = part
        target = SurvivalTarget(event, group, known.time, edges_of_folds(compared, part, question.n_bins))
    train = [np.flatnonzero((fold >= 0) & (fold != i)) for i in range(n_splits)]
    draws = [{k: _draws(target, rows, i, k, n_draws, seed) for k in shots} for i, rows in enumerate(train)]
    return Comparison(target, fold, draws)


def _draws(
    target: Target, train: np.ndarray, fold: int, shots: int | None, n_draws: int, seed: int
) -> list[np.ndarray]:  # fmt: skip
    """Rows that heads of a fold are trained on: all, or shots of each class or bin, of which something can be learnt."""
    if shots is None:
        return [train]
    strata, names = target.shots(train, fold)
    check_shots(strata, names, shots, fold)
    rng = np.random.default_rng([seed, fold])
    found: list[np.ndarray] = []
    for _ in range(DRAWS * n_draws):
        chosen = train[draw_shots(strata, shots, rng, target.groups[train])]
        if target.teaches(chosen):
            found.append(chosen)
        if len(found) == n_draws:
            return found
    raise ValueError(f"Hardly ever is there an event among shots={shots} slide(s) of each bin of time: use more shots.")


def choose_genes(
    views: SlideViews,
    genes: pd.Index,
    slides: AnnData,
    options: Mapping[str, Any],
    groups: np.ndarray,
    outside: np.ndarray,
    seed: int,
) -> SlideViews:
    """Views with the genes that `pp.select_genes` chooses, which sees the slides outside alone."""
    from stfuse.pp import select_genes

    rest = dict(options)
    label_key = rest.pop("label_key")
    table = {GROUP: groups, SEEN: outside}
    by_label = rest.get("method") != "curated"
    if by_label:
        table[LABEL] = column_of(slides, "slides", "label_key", label_key).array
    few = AnnData(views.genes, obs=pd.DataFrame(table, views.names), var=pd.DataFrame(index=genes))
    label = LABEL if by_label else None
    select_genes(few, label, groups=GROUP, train_key=SEEN, seed=seed, key_added=SELECTED, **rest)
    return replace(views, genes=np.ascontiguousarray(views.genes[:, few.var[SELECTED].to_numpy()]))
