"""Bags of tiles: what a step draws of each slide."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from stfuse.train._bags import BagBatches, Bags

SIZES = (7, 1, 30, 0, 12)


def some_bags(sizes=SIZES, seed=0, extra=4):
    """Tiles of all slides and of none, in disorder; the first feature is the tile's own row."""
    slide = np.random.default_rng(seed).permutation(np.r_[np.repeat(np.arange(len(sizes)), sizes), np.full(extra, -1)])
    features = torch.arange(slide.size).float()[:, None] * torch.tensor([[1.0, -1.0]])
    return Bags.make(features, slide, len(sizes)), slide


def drawn(bags, slides, n_tiles, seed=0):
    rows, offsets = bags.draw(torch.as_tensor(slides, dtype=torch.int64), n_tiles, torch.Generator().manual_seed(seed))
    return [part.tolist() for part in rows.split(offsets.diff().tolist())]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=7), st.one_of(st.none(), st.integers(1, 10)), st.integers(0, 99)
)
def test_a_draw_is_of_the_slide_and_without_replacement(sizes, n_tiles, seed):
    bags, slide = some_bags(sizes, seed)
    slides = np.random.default_rng(seed).permutation(len(sizes))[: 1 + seed % len(sizes)]
    for code, rows in zip(slides, drawn(bags, slides, n_tiles, seed), strict=True):
        assert len(rows) == (sizes[code] if n_tiles is None else min(n_tiles, sizes[code]))
        assert len(set(rows)) == len(rows) and (slide[rows] == code).all()


def test_every_tile_is_drawn_as_often():
    """A slide may stand in a batch many times, each with a draw of its own."""
    bags, slide = some_bags()
    counts = np.bincount(np.concatenate(drawn(bags, [2, 0, 4] * 3000, 5)), minlength=slide.size)
    for code, size in ((2, 30), (0, 7), (4, 12)):
        found = counts[slide == code]
        assert found.sum() == 3000 * 5 and found.size == size
        # drawn without replacement they vary less than a multinomial; an unequal chance would still show
        assert chisquare(found).pvalue > 1e-3
    assert not counts[(slide == 1) | (slide == -1)].any()


def test_the_mean_of_drawn_tiles_is_that_of_the_slide():
    """What a step sees of a slide is unbiased, whatever the other slides of the batch are."""
    bags, slide = some_bags()
    draws = drawn(bags, [1, 2] * 2000, 6)
    assert set(map(tuple, draws[::2])) == {tuple(np.flatnonzero(slide == 1))}
    own = np.flatnonzero(slide == 2)
    assert np.mean(draws[1::2]) == pytest.approx(own.mean(), abs=4 * own.std() / np.sqrt(6 * 2000))
    # pairs of tiles too: no two go together more often than others
    together = np.zeros((slide.size, slide.size))
    for rows in draws[1::2]:
        together[np.ix_(rows, rows)] += 1
    pairs = together[np.ix_(own, own)][np.triu_indices(own.size, 1)]
    assert abs(pairs / pairs.mean() - 1).max() < 0.5


def test_features_of_what_was_drawn():
    bags, _ = some_bags()
    rows, _ = bags.draw(torch.tensor([2, 4]), 3, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(bags.take(rows)[:, 0], rows)
    assert bags.take(rows).dtype == torch.float32


def test_selected_slides_share_the_features():
    bags, slide = some_bags()
    chosen = bags.select(torch.tensor([4, 1]))
    assert chosen.features is bags.features and chosen.sizes.tolist() == [12, 1]
    np.testing.assert_array_equal(slide[chosen.rows], [4] * 12 + [1])


def epoch(batches):
    return [(b["slides"].tolist(), b["rows"].tolist(), b["offsets"].tolist()) for b in batches]


def test_an_epoch_deals_every_slide_once_and_the_next_one_others_tiles():
    bags, _ = some_bags()
    batches = BagBatches(bags, torch.tensor([0, 1, 2, 4]), 3, 5, seed=1)
    first, second = epoch(batches), epoch(batches)
    assert len(batches) == len(first) == 2 and sorted(sum((s for s, _, _ in first), [])) == [0, 1, 2, 4]
    assert first != second
    assert epoch(BagBatches(bags, torch.tensor([0, 1, 2, 4]), 3, 5, seed=1)) == first
    assert epoch(BagBatches(bags, torch.tensor([0, 1, 2, 4]), 3, 5, seed=2)) != first


def test_processes_together_see_what_one_sees():
    bags, _ = some_bags()
    one = epoch(BagBatches(bags, torch.tensor([0, 1, 2, 4]), 1, 5, seed=1))
    shares = []
    for rank in range(2):
        batches = BagBatches(bags, torch.tensor([0, 1, 2, 4]), 1, 5, seed=1)
        batches.split(rank, 2)
        shares.append(epoch(batches))
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == one
