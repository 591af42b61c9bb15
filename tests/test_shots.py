"""Shots of each class."""

import numpy as np
import pytest

from stfuse._shots import check_shots, draw_shots


def test_so_many_of_each_class_and_none_twice():
    labels = np.repeat([0, 1, 2], [50, 8, 5])
    for seed in range(20):
        rows = draw_shots(labels, 5, np.random.default_rng(seed))
        assert len(set(rows)) == 15
        np.testing.assert_array_equal(np.bincount(labels[rows]), 5)


def test_every_member_has_the_same_chance():
    counts = np.zeros(10)
    for seed in range(2000):
        counts[draw_shots(np.zeros(10, int), 3, np.random.default_rng(seed))] += 1
    assert abs(counts / 2000 - 0.3).max() < 0.05


def test_of_different_groups_as_long_as_there_are_so_many():
    labels, groups = np.repeat([0, 1], 40), np.tile(np.repeat(np.arange(8), 5), 2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = draw_shots(labels, 8, rng, groups)
        assert all(len(set(groups[rows][labels[rows] == c])) == 8 for c in (0, 1))
        more = draw_shots(labels, 11, rng, groups)
        assert all(len(set(groups[more][labels[more] == c])) == 8 for c in (0, 1))
        assert len(set(more)) == 22
    assert len({tuple(draw_shots(labels, 8, np.random.default_rng(s), groups)) for s in range(20)}) > 15


def test_too_few():
    check_shots(np.array([0, 0, 1, 1]), ["class 'a'", "class 'b'"], 2, 0)
    with pytest.raises(ValueError, match="Where fold 3 is held out, class 'b' has 1.*fewer than shots=2: use shots=1"):
        check_shots(np.array([0, 0, 1]), ["class 'a'", "class 'b'"], 2, 3)
    with pytest.raises(ValueError, match="class 'c' has 0.*leave shots= away"):
        check_shots(np.array([0, 0, 1, 1]), ["class 'a'", "class 'b'", "class 'c'"], 2, 3)
