"""The slides that a selection of genes may see: labels, patients, expression, and folds of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _read
from stfuse._folds import random_folds, stratified_group_folds
from stfuse._labels import read_classes
from stfuse._log import warn
from stfuse._slides import column_of
from stfuse.pp._gene_blocks import Genes, in_memory, moments
from stfuse.pp._layer import values_of


class SeenSlides(NamedTuple):
    """Slides that the elimination sees: rows, class of each with the names, patient of each where there are any."""

    rows: np.ndarray
    labels: np.ndarray
    classes: list[str]
    patients: np.ndarray | None
    counts: dict[str, int]


def read_slides(slides: AnnData, label_key: str, groups: str | None, train_key: str | None) -> SeenSlides:
    """Find the slides that may be seen and have a class; labels of the others are not looked at."""
    allowed = np.ones(slides.n_obs, dtype=bool)
    if train_key is not None:
        column = column_of(slides, "slides", "train_key", train_key)
        if not pd.api.types.is_bool_dtype(column.dtype) or column.isna().any():
            raise ValueError(
                f"slides.obs[{train_key!r}] (train_key) must be boolean without missing values, its dtype is {column.dtype}: True = "
                "may be seen."
            )
        allowed = column.to_numpy(dtype=bool)
    column = column_of(slides, "slides", "label_key", label_key)[allowed]
    codes, classes = read_classes(column, label_key)
    rows = np.flatnonzero(allowed)[codes >= 0]
    counts = {"total": slides.n_obs, "outside_train": int((~allowed).sum()), "without_label": int((codes < 0).sum())}
    patients = None
    if groups is not None:
        patient = column_of(slides, "slides", "groups", groups).iloc[rows]
        if patient.isna().any():
            raise ValueError(
                f"slides.obs[{groups!r}] (groups) has {int(patient.isna().sum())} missing value(s): fill them first, each with a name of its own "
                "if nothing is known."
            )
        patients = pd.factorize(patient)[0]
    return SeenSlides(rows, codes[codes >= 0], classes, patients, counts)


def read_expression(
    slides: AnnData, layer: str | None, seen: SeenSlides, scale: bool
) -> tuple[Genes, np.ndarray, SeenSlides]:
    """Check the expression of the slides seen, leave those without any out, and mark the genes that vary."""
    _check_classes(seen)
    values, where = values_of(slides, layer)
    if not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"{where} must hold numbers, its dtype is {values.dtype}.")
    values = in_memory(values)
    n_genes = values.shape[1]
    genes = Genes.of(values, seen.rows)
    found = moments(genes, where)
    partly = np.flatnonzero((found.n_nan > 0) & (found.n_nan < n_genes))
    if partly.size:
        raise ValueError(
            f"{where} has missing values in part of {partly.size} slide(s) (first: {slides.obs_names[seen.rows[partly[0]]]!r}, "
            f"{found.n_nan[partly[0]]} of {n_genes} genes). Only a whole row of NaN is allowed and means that there is no RNA: impute the "
            "values, or leave those genes out."
        )
    has = found.n_nan == 0
    counts = seen.counts | {"without_rna": int((~has).sum()), "seen": int(has.sum())}
    patients = None if seen.patients is None else seen.patients[has]
    seen = SeenSlides(seen.rows[has], seen.labels[has], seen.classes, patients, counts)
    _check_classes(seen)
    if not has.all():
        genes = Genes.of(values, seen.rows)
        found = moments(genes, where)
    if found.counts:
        warn(
            f"{where} holds whole numbers only, which look like raw counts: the depth of each slide weighs more than its subtype then. "
            "Call sc.pp.normalize_total and sc.pp.log1p first."
        )
    if not found.varies.any():
        raise ValueError(f"{where} has no gene that differs between the {len(seen.rows)} slides seen.")
    return genes.standardised(found, scale), found.varies, seen


def _check_classes(seen: SeenSlides) -> None:
    present = np.unique(seen.labels)
    n = len(seen.rows)
    if len(present) < 2:
        there = f"only the class {seen.classes[int(present[0])]!r}" if len(present) else "no class"
        raise ValueError(
            f"The {n} slides that selection may see, with label and RNA, have {there}: there is nothing to tell apart."
        )
    if len(present) > max(2, n / 2):
        raise ValueError(
            f"There are {len(present)} classes in {n} slides, which are hardly classes: group the values, with pandas.cut "
            "for example."
        )


def inner_folds(seen: SeenSlides, n_splits: int, seed: int) -> np.ndarray:
    """Folds of the inner cross-validation; each must leave two classes to train on."""
    mend = "choose fewer with n_splits=, or give the number of genes with n_genes=, which needs no folds"
    units, name = (
        (len(seen.rows), "slides") if seen.patients is None else (len(np.unique(seen.patients)), "patients (groups)")
    )
    if units < n_splits:
        raise ValueError(f"There are {units} {name} with label and RNA to see, fewer than n_splits={n_splits}: {mend}.")
    members = np.bincount(seen.labels)
    if members.max() < n_splits:
        raise ValueError(
            f"No class has as many slides as n_splits={n_splits}, the largest has {members.max()}: {mend}."
        )
    if seen.patients is None:
        fold = random_folds(seen.labels, len(seen.rows), n_splits, seed)
    else:
        fold = stratified_group_folds(seen.labels, seen.patients, n_splits, seed)
    lost: dict[str, int] = {}
    for i in range(n_splits):
        left = np.unique(seen.labels[fold != i])
        if len(left) < 2 or not (fold == i).any():
            raise ValueError(
                f"Inner fold {i + 1} of {n_splits} leaves slides of one class to train on, or none to test: the classes go along with the "
                f"groups, or are too rare; {mend}."
            )
        for code in np.setdiff1d(np.unique(seen.labels), left):
            lost[seen.classes[int(code)]] = lost.get(seen.classes[int(code)], 0) + 1
    if lost:
        warn(
            f"The classes {_read.listing(lost)} are missing from the training part of inner folds, where they can't be "
            "predicted: they have too few slides or patients. Set the label of rare classes to missing to leave them out."
        )
    return fold
