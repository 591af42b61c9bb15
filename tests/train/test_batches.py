from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stfuse.train._batches import MIN_STEPS, StepBatches, ViewTensors


def _tensors(n_image=20, n_rna=13, n_pairs=5, n=40):
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(n, 2)
    return ViewTensors(x, x, rows[:n_image], rows[-n_rna:], rows[:n_pairs], rows[:0])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30), st.integers(2, 45), st.integers(0, 5))
def test_every_row_once_an_epoch_and_never_twice_in_a_batch(n_image, n_rna, n_pairs, size, seed):
    data = _tensors(n_image, n_rna, n_pairs)
    batches = StepBatches(data, size, seed)
    epoch = list(batches)
    assert len(epoch) == len(batches) == max(MIN_STEPS, -(-max(n_image, n_rna) // size))
    for name, rows in (("image", data.rows_image), ("rna", data.rows_rna), ("pairs", data.pairs)):
        for batch in epoch:
            assert batch[name].numel() == min(size, rows.numel())
            assert batch[name].unique().numel() == batch[name].numel()
        dealt = torch.cat([batch[name] for batch in epoch])
        assert torch.isin(dealt, rows).all()
        # the deck is dealt through before it is dealt again
        for start in range(0, dealt.numel() - rows.numel() + 1, max(1, rows.numel())):
            if start == 0 and rows.numel():
                assert dealt[: rows.numel()].unique().numel() == rows.numel()
        if name != "pairs" and len(epoch) * size >= rows.numel():
            assert torch.equal(dealt.unique(), rows.unique())


def test_views_are_drawn_independently():
    data = _tensors(30, 30, 10, n=30)
    for batch in StepBatches(data, 10, 0):
        assert not torch.equal(batch["image"], batch["rna"])


def test_epochs_differ_and_seeds_repeat():
    data = _tensors()
    one, two, other = StepBatches(data, 8, 1), StepBatches(data, 8, 1), StepBatches(data, 8, 2)
    first, second = list(one), list(one)
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, two, strict=True))
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(first, other, strict=True))


def test_large_seeds():
    assert len(list(StepBatches(_tensors(), 8, 2**32 - 1))) == MIN_STEPS


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_the_steps(world):
    data = _tensors(40, 20, 7)
    whole = StepBatches(data, 5, 3)
    shares = []
    for rank in range(world):
        part = StepBatches(data, 5, 3)
        part.split(rank, world)
        share = list(part)
        assert len(share) == len(part) == -(-len(whole) // world)  # as many each, or the others would wait for ever
        shares.append(share)
    turns = [batch for turn in zip(*shares, strict=True) for batch in turn]
    for alone, together in zip(whole, turns, strict=False):
        for name in alone:
            assert torch.equal(alone[name], together[name])


def test_pairs_only():
    batches = StepBatches(_tensors(n_pairs=20), 6, 0, pairs_only=True)
    epoch = list(batches)
    assert len(epoch) == 4
    assert all(set(batch) == {"pairs"} for batch in epoch)
    assert torch.cat([b["pairs"] for b in epoch]).unique().numel() == 20


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_batch_of_pairs(world):
    """Together they see the batch of one process, less what does not divide; each sees as much as the others."""
    data = _tensors(n_pairs=20)
    whole = list(StepBatches(data, 8, 3, pairs_only=True))
    shares = []
    for rank in range(world):
        part = StepBatches(data, 8, 3, pairs_only=True)
        part.split(rank, world)
        shares.append(list(part))
        assert len(part) == len(shares[-1]) == len(whole)
    for step, batch in enumerate(whole):
        parts = [share[step]["pairs"] for share in shares]
        assert {p.numel() for p in parts} == {8 // world}
        together = torch.cat(parts)
        assert torch.isin(together, batch["pairs"]).all() and together.unique().numel() == 8 // world * world


def test_too_few_pairs_for_so_many_processes():
    batches = StepBatches(_tensors(n_pairs=3), 8, 0, pairs_only=True)
    batches.split(0, 3)
    with pytest.raises(ValueError, match="3 pairs a step are too few to be shared by 4 devices"):
        batches.split(0, 4)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(islice(StepBatches(_tensors(), 4, 0), 3))
    assert torch.equal(before, torch.get_rng_state())


def test_tensors_on_their_device_are_not_copied():
    data = _tensors()
    assert data.to(torch.device("cpu")).image.data_ptr() == data.image.data_ptr()
    assert data.rows("image") is data.rows_image and data.rows("rna") is data.rows_rna
    assert data.of("image") is data.image and data.of("rna") is data.rna
