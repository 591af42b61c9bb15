import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from torch import nn

from stfuse.module.triplets import draw_triplets, triplet_loss


def drawn(labels, n_repeats=1, seed=0):
    return draw_triplets(torch.as_tensor(labels), n_repeats, torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 6), max_size=40), st.integers(1, 3), st.integers(0, 99))
def test_each_row_meets_each_other_cluster(labels, n_repeats, seed):
    labels = np.array(labels, dtype=np.int64)
    triplets = drawn(labels, n_repeats, seed)
    names = sorted(set(labels[labels >= 0]))
    anchor, positive, negative = (rows.numpy() for rows in triplets)
    met = np.zeros((len(labels), 7), dtype=int)
    np.add.at(met, (anchor, labels[negative]), 1)
    for row, label in enumerate(labels):
        for cluster in range(7):
            wanted = label >= 0 and len(names) > 1 and cluster in names and cluster != label
            assert met[row, cluster] == n_repeats * wanted
    np.testing.assert_array_equal(labels[positive], labels[anchor])
    assert (labels[negative] != labels[anchor]).all() and (labels[np.r_[anchor, positive, negative]] >= 0).all()


@pytest.mark.parametrize("labels", [[], [-1, -1], [2, 2, 2], [-1, 4, 4]])
def test_fewer_than_two_clusters(labels):
    triplets = drawn(np.array(labels, dtype=np.int64))
    assert all(rows.shape == (0,) and rows.dtype == torch.int64 for rows in triplets)
    codes = torch.randn(len(labels), 3, requires_grad=True)
    loss = triplet_loss(codes, triplets)
    loss.backward()
    assert loss.item() == 0 and not codes.grad.any()


def test_draws_are_uniform():
    """Every row of a cluster as often as the others, whatever the anchor."""
    labels = np.array([0] * 5 + [1] * 3 + [-1] * 2 + [2] * 7)
    np.random.default_rng(0).shuffle(labels)
    anchor, positive, negative = (rows.numpy() for rows in drawn(labels, 400))
    for cluster in range(3):
        rows = np.flatnonzero(labels == cluster)
        for found, wanted in ((positive, labels[anchor] == cluster), (negative, labels[negative] == cluster)):
            counts = np.bincount(found[wanted], minlength=len(labels))
            assert counts[labels != cluster].sum() == 0 and chisquare(counts[rows]).pvalue > 1e-3
    # positives and negatives of one anchor are drawn apart from each other
    one = np.flatnonzero(labels == 0)[0]
    pairs = np.zeros((len(labels), len(labels)))
    np.add.at(pairs, (positive[anchor == one], negative[anchor == one]), 1)
    pairs = pairs[np.ix_(labels == 0, labels > 0)]
    assert chi2_contingency(pairs).pvalue > 1e-3
    assert (positive == anchor).any()  # drawn with replacement, itself included


def test_positives_come_from_other_sections_too():
    """Clusters are those of all sections pooled."""
    section = np.arange(200) // 100
    triplets = drawn(np.arange(200) % 4)
    anchor, positive, negative = (section[rows] for rows in triplets)
    assert 0.4 < (anchor != positive).mean() < 0.6 and 0.4 < (anchor != negative).mean() < 0.6


def test_a_generator_decides():
    labels = np.arange(50) % 5
    for a, b in zip(drawn(labels, seed=3), drawn(labels, seed=3), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(drawn(labels, seed=3).positive, drawn(labels, seed=4).positive)
    state = torch.get_rng_state()
    drawn(labels)
    assert torch.equal(state, torch.get_rng_state())


def test_a_draw_next_to_one_stays_in_its_cluster(monkeypatch):
    largest = np.nextafter(np.float32(1), np.float32(0))
    monkeypatch.setattr(torch, "rand", lambda size, generator=None: torch.full(size, float(largest)))
    for sizes in ([1, 3], [4, 5], [1023, 1025], [4097, 70_001]):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        anchor, positive, negative = (labels[rows.numpy()] for rows in drawn(labels))
        assert (anchor == positive).all() and (anchor != negative).all()


def test_loss_is_that_of_a_loop():
    codes = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    triplets = drawn(np.arange(30) % 3, 2)
    loss = triplet_loss(codes, triplets)
    (grad,) = torch.autograd.grad(loss, codes)
    x = codes.detach().numpy()
    wanted = [
        max(np.linalg.norm(x[a] - x[p]) - np.linalg.norm(x[a] - x[n]) + 1, 0)
        for a, p, n in zip(*(rows.tolist() for rows in triplets), strict=True)
    ]
    assert loss.item() == pytest.approx(np.mean(wanted), abs=1e-5)
    published = nn.TripletMarginLoss(margin=1, p=2)(*(codes[rows] for rows in triplets))
    torch.testing.assert_close(grad, torch.autograd.grad(published, codes)[0])
