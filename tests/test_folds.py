"""Folds of tissue: sections, blocks, or anything."""

import numpy as np

from stfuse._folds import stratified_group_folds, tissue_folds


def test_sections_stay_whole():
    section = np.repeat([0, 1, 2], 20)
    fold = tissue_folds(section, np.random.default_rng(0).random((60, 2)), 5, 0)
    assert len(np.unique(fold)) == 3
    assert all(len(np.unique(fold[section == s])) == 1 for s in range(3))


def test_one_section_falls_into_blocks():
    xy = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2)
    fold = tissue_folds(np.zeros(100, int), xy, 4, 0)
    sizes = [np.ptp(xy[fold == f], axis=0).max() for f in range(4)]
    assert len(np.unique(fold)) == 4 and max(sizes) < 9


def test_without_places_anything():
    for xy in (None, np.full((30, 2), np.nan), np.zeros((30, 2))):
        fold = tissue_folds(np.zeros(30, int), xy, 5, 0)
        assert sorted(np.bincount(fold)) == [6] * 5


def test_the_order_of_rows_says_nothing_where_each_is_its_own_group():
    rng = np.random.default_rng(0)
    labels, groups, order = rng.integers(0, 2, 60), rng.permutation(60), rng.permutation(60)
    fold = stratified_group_folds(labels, groups, 4, 0)
    np.testing.assert_array_equal(stratified_group_folds(labels[order], groups[order], 4, 0), fold[order])
    counts = np.array([np.bincount(labels[fold == i], minlength=2) for i in range(4)])
    assert (np.ptp(counts, axis=0) <= 1).all()
