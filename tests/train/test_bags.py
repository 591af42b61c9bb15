"""Bags of tiles: what a step draws of each slide."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from stfuse.train._bags import BagBatches, Bags
from stfuse.train._disk_tiles import DiskTiles

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


def filled(bags, slides, n_tiles, seed=0):
    slides = torch.as_tensor(slides, dtype=torch.int64)
    rows, offsets = bags.draw(slides, n_tiles, torch.Generator().manual_seed(seed), fill=True)
    return [part.tolist() for part in rows.split(offsets.diff().tolist())]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 10), st.integers(0, 99))
def test_filled_slides_give_so_many_and_one_twice_only_where_there_are_fewer(sizes, n_tiles, seed):
    bags, slide = some_bags(sizes, seed)
    slides = np.random.default_rng(seed).integers(0, len(sizes), 5)  # some stand in the batch twice
    for code, rows in zip(slides, filled(bags, slides, n_tiles, seed), strict=True):
        assert len(rows) == (n_tiles if sizes[code] else 0)
        assert (slide[rows] == code).all()
        assert len(set(rows)) == n_tiles or sizes[code] < n_tiles


def test_filling_takes_every_tile_as_often():
    bags, slide = some_bags()
    parts = filled(bags, [0, 2, 1, 3] * 2000, 10)
    # drawn anew each time: seven tiles that fill ten places leave some out by chance
    few, many, one, none = (np.concatenate(parts[i::4]).astype(int) for i in range(4))
    for code, rows in ((0, few), (2, many)):
        assert chisquare(np.bincount(rows, minlength=slide.size)[slide == code]).pvalue > 1e-3
    assert set(one) == set(np.flatnonzero(slide == 1)) and one.size == 20_000 and not none.size
    assert len(set(map(tuple, parts[::4]))) > 1990


def test_batches_that_are_filled_hold_slides_of_one_size():
    bags, slide = some_bags()
    batches = BagBatches(bags, torch.tensor([0, 1, 2, 4]), 4, 9, seed=1, fill=True)
    (batch,) = batches
    assert batch["offsets"].tolist() == [0, 9, 18, 27, 36]
    np.testing.assert_array_equal(slide[batch["rows"].numpy()], np.repeat(batch["slides"].numpy(), 9))


def on_disk(sizes, chunk, mixed=False, seed=0):
    """Features in a zarr array, slides in runs, or with their tiles among each other."""
    zarr = pytest.importorskip("zarr")
    slide = np.repeat(np.arange(len(sizes)), sizes)
    slide = np.random.default_rng(seed).permutation(slide) if mixed else slide
    values = np.arange(slide.size, dtype=np.float32)[:, None] * np.array([1, -1], np.float32)
    array = zarr.create_array({}, data=values, chunks=(chunk, 2))
    return Bags.make(DiskTiles(array), slide, len(sizes)), slide


@pytest.mark.parametrize("mixed", [False, True])
def test_draws_from_disk_are_of_the_slide_and_without_replacement(mixed):
    sizes = (70, 3, 0, 200, 33)
    bags, slide = on_disk(sizes, 16, mixed)
    for seed in range(30):
        for code, rows in zip((3, 0, 2, 4, 1), drawn(bags, [3, 0, 2, 4, 1], 32, seed), strict=True):
            assert len(rows) == len(set(rows)) == min(sizes[code], 32) and (slide[rows] == code).all()


def test_draws_from_disk_come_in_runs():
    """Tiles of a run lie in one chunk, so that a step reads few of them; and they are from several places of the slide."""
    bags, _ = on_disk((40, 4000, 4000), 64)
    for rows in drawn(bags, [1, 2, 1], 128):
        rows = np.sort(rows)
        breaks = 1 + np.count_nonzero(np.diff(rows) > 1)
        assert 5 <= breaks <= 11 and len(np.unique(rows // 64)) <= 11
        assert rows.max() - rows.min() > 1000
    # in memory the same tiles come one by one
    memory, _ = some_bags((40, 4000), extra=0)
    assert np.count_nonzero(np.diff(np.sort(memory.rows.argsort()[drawn(memory, [1], 128)[0]])) > 1) > 100


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("n_tiles", [20, 24, 37])
def test_every_tile_on_disk_is_drawn_as_often(mixed, n_tiles):
    """Wherever it lies in its run, and however long that is."""
    n = 12_000
    bags, slide = on_disk((7, 53, 61), 5, mixed)
    parts = drawn(bags, [1, 2] * n, n_tiles)
    for code, size, own in ((1, 53, parts[::2]), (2, 61, parts[1::2])):
        counts = np.bincount(np.concatenate(own), minlength=slide.size)[slide == code]
        chance = n_tiles / size
        spread = np.sqrt(n * chance * (1 - chance))
        assert counts.sum() == n * n_tiles and np.abs(counts - n * chance).max() < 4.5 * spread


def test_the_mean_of_tiles_drawn_from_disk_is_that_of_the_slide():
    bags, slide = on_disk((10, 90), 8)
    draws = np.array(drawn(bags, [1] * 8000, 20))
    own, means = np.flatnonzero(slide == 1), draws.mean(1)
    assert means.mean() == pytest.approx(own.mean(), abs=4 * means.std() / np.sqrt(8000))


def test_features_come_from_disk_as_from_memory():
    bags, slide = on_disk((7, 30, 12), 4, mixed=True)
    rows, _ = bags.draw(torch.tensor([2, 1]), 5, torch.Generator().manual_seed(0))
    taken = bags.take(rows)
    assert taken.dtype == torch.float32 and bags.features.shape == (49, 2) and bags.features.chunk == 4
    np.testing.assert_array_equal(taken[:, 0], rows)
    assert bags.to(torch.device("cpu")).features.device == torch.device("cpu")
    with pytest.raises(ValueError, match="by row"):
        bags.features.index_select(1, rows)
