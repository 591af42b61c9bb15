"""Cross-validation of slides: whole patients are held out, and each labelled slide is predicted by a model that has not seen it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys
from stfuse._folds import stratified_group_folds
from stfuse._log import warn
from stfuse._progress import progress
from stfuse.metrics import balanced_accuracy, macro_f1

if TYPE_CHECKING:
    from stfuse.model import ABMIL
    from stfuse.model._abmil import BagCodes

SLIDE, LABEL = "slide", "label"  # columns of the private table of tiles
WATCHED = 5  # one of so many parts of the training slides is watched
NETWORK = ("n_hidden", "n_attention", "dropout")
TRAINING = ("max_epochs", "batch_size", "n_tiles", "lr", "weight_decay", "class_weight", "seed", "device")


@dataclass(frozen=True)
class LabelledSlides:
    """Slides with label and tiles: their ``rows`` among all slides, class, and group; ``unit`` is what a group is called."""

    rows: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    classes: list[str]
    unit: str


class Predictions:
    """What the models say of all slides and tiles; NaN where none was asked."""

    def __init__(self, names: pd.Index, slide: np.ndarray, classes: list[str]) -> None:
        self.names, self.slide, self.classes = names, slide, classes
        self.proba = np.full((len(names), len(classes)), np.nan, np.float32)
        self.attention = np.full(slide.size, np.nan, np.float32)
        self.embedding = np.empty((len(names), 0), np.float32)

    def take(self, codes: BagCodes, asked: np.ndarray) -> None:
        """Take over what a model says of the slides it was asked about; a class it has not seen has no probability."""
        told = codes.proba.reindex(columns=self.classes, fill_value=0).reindex(self.names)
        self.proba[asked] = told.to_numpy()[asked]
        tiles = np.append(asked, False)[self.slide]  # the last one is that of tiles without a slide
        self.attention[tiles] = codes.attention[tiles]


def assign_folds(labelled: LabelledSlides, n_slides: int, n_splits: int, seed: int, label_key: str) -> np.ndarray:
    """Fold of each slide, -1 for those that nothing is learnt from."""
    found, counts = np.unique(labelled.labels, return_counts=True)
    if found.size < 2:
        there = f"one class ({labelled.classes[found[0]]!r})" if found.size else "no class"
        raise ValueError(
            f"slides.obs[{label_key!r}] has {there} among the slides with tiles: at least two are needed. Add slides of another "
            "class, or name another label_key."
        )
    n_groups = np.unique(labelled.groups).size
    least = min(n_groups, int(counts.max()))
    if least < n_splits:
        what = f"{n_groups} {labelled.unit}(s)" if n_groups == least else f"{least} slides of the commonest class"
        mend = f"use n_splits={least} or fewer" if least > 1 else "add more, there is nothing to hold out"
        raise ValueError(f"There are {what} with label and tiles, fewer than n_splits={n_splits}: {mend}.")
    part = stratified_group_folds(labelled.labels, labelled.groups, n_splits, seed)
    _check_folds(labelled, part, n_splits)
    fold = np.full(n_slides, -1)
    fold[labelled.rows] = part
    return fold


def _check_folds(labelled: LabelledSlides, part: np.ndarray, n_splits: int) -> None:
    unseen = set()
    for i in range(n_splits):
        train, test = labelled.labels[part != i], labelled.labels[part == i]
        if not test.size or np.unique(train).size < 2:
            raise ValueError(
                f"Cut into n_splits={n_splits}, fold {i} has {test.size} slide(s) to predict and {np.unique(train).size} class(es) "
                f"to train on: a class has too few {labelled.unit}s. Use fewer folds, or add slides."
            )
        unseen |= set(np.setdiff1d(test, train))
    if unseen:
        names = [labelled.classes[code] for code in sorted(unseen)]
        warn(
            f"{len(unseen)} class(es), for example {names[0]!r}, occur in one fold only, so that the model that predicts it has not "
            "seen them and is wrong there: leave them out, or add slides."
        )


def cross_validate(
    tiles: AnnData, labelled: LabelledSlides, fold: np.ndarray, run: Mapping[str, Any], show: bool | None
) -> tuple[Predictions, pd.DataFrame, ABMIL]:
    """Train a model for each fold and one on all labelled slides, which codes all and predicts those without a label."""
    from stfuse.model import ABMIL

    ABMIL.setup_anndata(tiles, slide_key=SLIDE, label_key=LABEL, image_key=_keys.IMAGE)
    slide = tiles.obs[SLIDE].cat
    found = Predictions(slide.categories, slide.codes.to_numpy(), labelled.classes)
    part = fold[labelled.rows]
    last = int(fold.max()) + 1
    for i in progress(range(last + 1), desc="mil", show=show):
        model = _train(tiles, labelled, part != i, run)
        asked = fold == (i if i < last else -1)
        codes = model.codes(slides=slide.categories[asked] if i < last else None, device=run["device"])
        found.take(codes, asked)
    found.embedding = codes.embedding.to_numpy()
    return found, _scores(labelled, part, found.proba[labelled.rows]), model


def _train(tiles: AnnData, labelled: LabelledSlides, train: np.ndarray, run: Mapping[str, Any]) -> ABMIL:
    from stfuse.model import ABMIL

    names = tiles.obs[SLIDE].cat.categories[labelled.rows]
    watch = np.zeros_like(train)
    patience = {}
    if run["patience"] is not None:
        watch[train] = watched_part(labelled, train, run["seed"])
        patience = {"patience": run["patience"], "held_out": list(names[watch])}
    model = ABMIL(tiles, **{name: run[name] for name in NETWORK})
    settings = {name: run[name] for name in TRAINING}
    model.train(slides=list(names[train & ~watch]), progress=False, **patience, **settings)
    return model


def watched_part(labelled: LabelledSlides, train: np.ndarray, seed: int) -> np.ndarray:
    """Choose which of the training slides are watched for early stopping: whole groups, without which no class is lost."""
    labels, groups = labelled.labels[train], labelled.groups[train]
    if min(np.unique(groups).size, int(np.bincount(labels).max())) >= WATCHED:
        part = stratified_group_folds(labels, groups, WATCHED, seed)
        for i in range(WATCHED):
            if (part == i).any() and np.isin(labels, labels[part != i]).all():
                return part == i
    raise ValueError(
        f"{labels.size} training slides of {np.unique(groups).size} {labelled.unit}(s) are too few to hold a fifth out, as patience= "
        "needs, without losing a class: leave patience=None."
    )


def _scores(labelled: LabelledSlides, part: np.ndarray, proba: np.ndarray) -> pd.DataFrame:
    table = []
    for name, rows in [*((str(i), part == i) for i in range(part.max() + 1)), ("pooled", part >= 0)]:
        true, told = labelled.labels[rows], proba[rows]
        predicted = told.argmax(1)
        table.append(
            {
                "fold": name,
                "n_slides": int(rows.sum()),
                "auroc": auroc(true, told),
                "balanced_accuracy": balanced_accuracy(true, predicted),
                "macro_f1": macro_f1(true, predicted),
            }
        )
    return pd.DataFrame(table)


def auroc(true: np.ndarray, proba: np.ndarray) -> float:
    """Area under the ROC curve, of several classes the mean of one against the rest; NaN where there is only one class."""
    from sklearn.metrics import roc_auc_score

    if np.unique(true).size < 2:
        return float("nan")
    if proba.shape[1] == 2:
        return float(roc_auc_score(true == 1, proba[:, 1]))
    present = np.unique(true)
    return float(np.mean([roc_auc_score(true == code, proba[:, code]) for code in present]))
