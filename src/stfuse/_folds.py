"""Cut observations into folds that say something about new tissue."""

from __future__ import annotations

import warnings

import numpy as np

from stfuse._log import logger


def random_folds(labels: np.ndarray | None, n: int, n_splits: int, seed: int) -> np.ndarray:
    """Random folds, stratified by class where there are classes."""
    from sklearn.model_selection import KFold, StratifiedKFold

    if n_splits > n:
        raise ValueError(f"n_splits={n_splits} is more than the {n} observations to split.")
    if labels is None or np.bincount(labels).max() < n_splits:
        return _number(KFold(n_splits, shuffle=True, random_state=seed).split(np.zeros(n)), n)
    rare = int((np.bincount(labels) < n_splits).sum())
    if rare:
        logger.info("%d class(es) have fewer members than n_splits=%d: some folds are without them", rare, n_splits)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return _number(StratifiedKFold(n_splits, shuffle=True, random_state=seed).split(np.zeros(n), labels), n)


def group_folds(groups: np.ndarray, n_splits: int) -> np.ndarray:
    """Whole groups (patients, sections) stay together."""
    from sklearn.model_selection import GroupKFold

    n_groups = len(np.unique(groups))
    if n_groups < 2:
        raise ValueError(
            "There is only one group with code and label, so that no other is left to train on: leave groups= away and use "
            'splits="spatial" for blocks inside a section.'
        )
    if n_groups < n_splits:
        raise ValueError(
            f"There are {n_groups} groups, fewer than n_splits={n_splits}: use n_splits={n_groups} or fewer, or leave "
            "groups= away for other splits."
        )
    return _number(GroupKFold(n_splits).split(np.zeros(len(groups)), groups=groups), len(groups))


def stratified_group_folds(labels: np.ndarray, groups: np.ndarray, n_splits: int, seed: int) -> np.ndarray:
    """Whole groups stay together, and each fold gets about the same share of every class."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    # scikit-learn walks over groups in Python, which where each is alone takes a second and says nothing
    alone = np.unique(groups).size == len(labels)
    folds = (StratifiedKFold if alone else StratifiedGroupKFold)(n_splits, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        if not alone:
            return _number(folds.split(labels, labels, groups), len(labels))
        # by group, so that the order of the rows says nothing
        order = np.argsort(groups, kind="stable")
        fold = np.empty(len(labels), dtype=np.int64)
        fold[order] = _number(folds.split(labels[order], labels[order]), len(labels))
        return fold


def spatial_folds(spatial: np.ndarray, section: np.ndarray, n_splits: int, seed: int) -> np.ndarray:
    """Each section falls into ``n_splits`` compact blocks; a fold is one block of every section.

    Neighbouring spots are alike, so random folds let a classifier recognise the neighbourhood; blocks do not.
    """
    from sklearn.cluster import KMeans

    fold = np.empty(len(spatial), dtype=np.int64)
    for code in np.unique(section):
        rows = np.flatnonzero(section == code)
        distinct = len(np.unique(spatial[rows], axis=0))
        if distinct < n_splits:
            raise ValueError(
                f"A section has {distinct} distinct position(s) with code and label, fewer than n_splits={n_splits}."
            )
        blocks = KMeans(n_splits, n_init=5, random_state=seed).fit(spatial[rows])
        # from left to right, so that the folds do not depend on the order in which K-means found the blocks
        order = np.argsort(blocks.cluster_centers_[:, 0], kind="stable")
        fold[rows] = np.argsort(order)[blocks.labels_]
    return fold


def tissue_folds(section: np.ndarray, spatial: np.ndarray | None, n_splits: int, seed: int) -> np.ndarray:
    """Whole sections where there are several; else blocks of the tissue, or anything where nothing says where it lies."""
    n_sections = len(np.unique(section))
    if n_sections > 1:
        return group_folds(section, min(n_splits, n_sections))
    n_splits = min(n_splits, len(section))
    if spatial is not None and np.isfinite(spatial).all() and len(np.unique(spatial, axis=0)) >= n_splits:
        return spatial_folds(spatial, section, n_splits, seed)
    return random_folds(None, len(section), n_splits, seed)


def _number(splits: object, n: int) -> np.ndarray:
    fold = np.empty(n, dtype=np.int64)
    for i, (_, test) in enumerate(splits):  # type: ignore[arg-type, var-annotated]
        fold[test] = i
    return fold
