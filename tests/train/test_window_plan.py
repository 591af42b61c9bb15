"""Training on windows: each is encoded once, and the loss is the one of the published way, triplet by triplet."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stfuse.module.aestetik import WindowAutoencoder
from stfuse.module.losses import SAMPLE, batch_discrepancy
from stfuse.module.triplets import draw_triplets
from stfuse.module.windows import WindowData
from stfuse.train._fit import fit
from stfuse.train._window_plan import (
    WindowBatches,
    WindowPlan,
    WindowSettings,
    WindowTargets,
    reconstruction,
)

N_RNA, N_IMAGE = 4, 3


def some_data(n=60, missing=0.0, seed=0):
    rng = np.random.default_rng(seed)
    has = rng.random((n, 2)) >= missing
    features = rng.random((n, N_RNA + N_IMAGE)).astype(np.float32)
    table = rng.integers(-1, n, (n, 9)).astype(np.int32)
    table[:, 4] = np.arange(n)
    clusters = np.where(has, rng.integers(0, 4, (n, 2)), -1)
    data = WindowData.make(features, N_RNA, table, has, features.mean(0))
    return data, WindowTargets(torch.from_numpy(clusters), torch.from_numpy(rng.integers(0, 3, n)))


def some_plan(data, targets, settings, *, n_batches=0, seed=5, **network):
    torch.manual_seed(seed)
    module = WindowAutoencoder(
        N_RNA + N_IMAGE, 3, n_latent=4, n_members=3, n_hidden=6, dropout=0.0, n_batches=n_batches, **network
    )
    plan = WindowPlan(module.eval(), settings, seed)
    plan.batches = WindowBatches(data, targets, torch.arange(len(data.features)), 32, 0)
    return plan


def literal_loss(plan, rows, n_repeats, loss, weights):
    """Windows of every anchor, positive and negative encoded anew, rebuilt windows of the anchors: as published."""
    data, clusters = plan.batches.data, plan.batches.targets.clusters
    generator = torch.Generator().manual_seed(5)
    windows = data.windows(rows)
    rebuilt = plan.module.decoder(plan.module.encoder(windows))
    total = torch.zeros(())
    parts = (slice(0, N_RNA), slice(N_RNA, None))
    for view, (columns, weight) in enumerate(zip(parts, weights, strict=True)):
        triplets = draw_triplets(clusters[rows, view], n_repeats, generator)
        a, p, n = (plan.module.encoder(data.windows(rows[part])) for part in triplets)
        hinges = (F.pairwise_distance(a, p) - F.pairwise_distance(a, n) + 1).clamp(min=0)
        apart = rebuilt[..., columns] - windows[..., columns]
        apart = apart[data.has[rows, view]]
        error = apart.abs().mean() if loss == "l1" else apart.square().mean()
        total = total + weight * (error + hinges.mean())
    return total


@pytest.mark.parametrize(
    ("loss", "n_repeats", "missing"), [("l1", 1, 0.0), ("mse", 2, 0.0), ("l1", 1, 0.25)], ids=["l1", "mse", "missing"]
)
def test_encoding_once_is_encoding_triplet_by_triplet(loss, n_repeats, missing):
    """Same batch, same triplets: the same loss and the same gradient."""
    data, targets = some_data(missing=missing)
    settings = WindowSettings(1.3, 1.7, loss=loss, n_repeats=n_repeats)
    plan = some_plan(data, WindowTargets(targets.clusters, None), settings)
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:40]
    ours = plan.training_step({"rows": rows}, 0)
    expected = literal_loss(plan, rows, n_repeats, loss, (1.3, 1.7))
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    parameters = list(plan.module.parameters())
    for one, two in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_view_without_weight_has_no_loss():
    data, targets = some_data()
    plan = some_plan(data, targets, WindowSettings(3.0, 0.0, lambda_batch=0.0), n_batches=3)
    loss = plan.training_step({"rows": torch.arange(60)}, 0)
    assert set(plan._sums) == {"reconstruction_rna", "triplet_rna"}
    assert loss.item() == pytest.approx(3 * sum(float(value) for value in plan._sums.values()), rel=1e-6)


def test_rows_without_a_view_do_not_count_for_it():
    data, targets = some_data(missing=0.3)
    plan = some_plan(data, targets, WindowSettings(1.5, 1.5))
    absent = torch.nonzero(~data.has[:, 1]).flatten()
    rows = torch.cat([torch.nonzero(data.has[:, 1]).flatten()[:20], absent])
    plan.training_step({"rows": rows}, 0)
    before = float(plan._sums["reconstruction_image"])
    # other windows in the rows without an image: nothing of the image's loss moves
    plan = some_plan(data, targets, WindowSettings(1.5, 1.5))
    plan.training_step({"rows": rows[:20]}, 0)
    assert float(plan._sums["reconstruction_image"]) == pytest.approx(before, abs=1e-6)


def test_reconstruction():
    a, b = torch.rand(4, 9, 2, requires_grad=True), torch.rand(4, 9, 2)
    has = torch.tensor([True, False, True, False])
    assert reconstruction(a, b, has, "l1").item() == pytest.approx((a - b)[has].abs().mean().item())
    assert reconstruction(a, b, ~has | has, "mse").item() == pytest.approx(((a - b) ** 2).mean().item())
    nothing = reconstruction(a, b, has & ~has, "l1")
    nothing.backward()
    assert nothing.item() == 0 and not a.grad.any()


# -- batches ---------------------------------------------------------------------------------------------------------


def dealt(n, batch_size, *, epochs=1, rank=0, world=1, seed=0):
    data, targets = some_data(max(n, 2))
    batches = WindowBatches(data, targets, torch.arange(n), batch_size, seed)
    batches.split(rank, world)
    return [[batch["rows"] for batch in batches] for _ in range(epochs)], batches


@pytest.mark.parametrize("batch_size", [2, 3, 7, 100])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9, 50])
def test_each_row_once_an_epoch_and_never_one_alone(n, batch_size):
    (first, second), batches = dealt(n, batch_size, epochs=2)
    for epoch in (first, second):
        assert len(epoch) == len(batches)
        np.testing.assert_array_equal(torch.cat(epoch).sort().values, np.arange(n))
        sizes = [len(rows) for rows in epoch]
        assert min(sizes) >= 2 and max(sizes) - min(sizes) <= 1
        assert max(sizes) <= max(batch_size, 3)
    if n > 8:
        assert not torch.equal(torch.cat(first), torch.cat(second))


def test_only_the_rows_given():
    data, targets = some_data(30)
    rows = torch.tensor([3, 5, 8, 13, 21])
    batches = WindowBatches(data, targets, rows, 2, 0)
    assert sorted(torch.cat([batch["rows"] for batch in batches]).tolist()) == rows.tolist()


def test_batches_follow_the_seed():
    (one, two), (same, _), (other, _) = (dealt(50, 10, epochs=2, seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(torch.cat(one), torch.cat(same)) and not torch.equal(torch.cat(one), torch.cat(other))
    assert not torch.equal(torch.cat(one), torch.cat(two))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_take_turns(world):
    whole = dealt(50, 8)[0][0]
    shares = [dealt(50, 8, rank=rank, world=world)[0][0] for rank in range(world)]
    assert len({len(share) for share in shares}) == 1  # all wait for each other after a step
    in_turn = [rows for step in zip(*shares, strict=True) for rows in step]
    for step, rows in enumerate(in_turn):
        assert torch.equal(rows, whole[step % len(whole)])
    assert len(in_turn) >= len(whole)


# -- codes that do not tell the batches apart ------------------------------------------------------------------------


def literal_discrepancy(codes, batch):
    """Squared maximum mean discrepancy of each batch to all rows, kernel by kernel and pair by pair."""
    x = codes.double().numpy()
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    kernel = np.mean([np.exp(-distance / (f * distance.mean())) for f in (0.25, 0.5, 1, 2, 4)], axis=0)
    parts = []
    for name in np.unique(batch):
        own = np.flatnonzero(batch == name)
        parts.append(kernel[np.ix_(own, own)].mean() - 2 * kernel[own].mean() + kernel.mean())
    return np.mean(parts)


def test_discrepancy_is_the_literal_one():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(70, 5, generator=generator)
    batch = torch.randint(3, (70,), generator=generator) * 2  # names need not be in a row
    assert batch_discrepancy(codes, batch).item() == pytest.approx(literal_discrepancy(codes, batch.numpy()), abs=1e-6)
    assert batch_discrepancy(codes, torch.zeros(70, dtype=torch.int64)).item() == pytest.approx(0, abs=1e-6)
    # unit and shift of the code do not matter
    moved = batch_discrepancy(codes * 100 + 7, batch).item()
    assert moved == pytest.approx(batch_discrepancy(codes, batch).item(), rel=1e-3)


def test_discrepancy_grows_with_what_batches_differ_in():
    generator = torch.Generator().manual_seed(0)
    codes, batch = torch.randn(400, 3, generator=generator), torch.arange(400) % 2
    found = [batch_discrepancy(codes + shift * batch[:, None], batch).item() for shift in (0, 0.5, 1, 2)]
    assert found == sorted(found) and found[0] < 0.005 < 0.05 < found[-1]
    # means and scatter of single features alike: only their relation differs
    twisted = codes.clone()
    twisted[:, 1] = torch.where(batch == 0, codes[:, 0], -codes[:, 0])
    assert batch_discrepancy(twisted, batch).item() > 5 * found[0]


def test_discrepancy_of_equal_codes_and_of_many():
    assert batch_discrepancy(torch.ones(10, 2), torch.arange(10) % 2).item() == pytest.approx(0, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    codes, batch = torch.randn(5 * SAMPLE, 3, generator=generator), torch.arange(5 * SAMPLE) % 2
    codes = (codes + batch[:, None]).requires_grad_()
    found = batch_discrepancy(codes, batch, torch.Generator().manual_seed(1))
    found.backward()
    assert (codes.grad.abs().sum(1) > 0).sum() == SAMPLE
    assert found.item() == pytest.approx(batch_discrepancy(codes[:SAMPLE], batch[:SAMPLE]).item(), rel=0.3)


def test_the_loss_against_batches_is_added():
    data, targets = some_data()
    rows = torch.arange(60)
    losses = {}
    for weight in (0.0, 2.0):
        plan = some_plan(data, targets, WindowSettings(1.5, 1.5, lambda_batch=weight), n_batches=3)
        losses[weight] = plan.training_step({"rows": rows}, 0).item()
        assert ("batch" in plan._sums) == (weight > 0)
    told = batch_discrepancy(plan.module.encoder(data.windows(rows)), targets.batch).item()
    assert losses[2.0] - losses[0.0] == pytest.approx(2 * told, abs=1e-5)


# -- the whole -------------------------------------------------------------------------------------------------------


def test_training_lowers_every_loss():
    data, targets = some_data(200)
    plan = some_plan(data, targets, WindowSettings(1.5, 1.5, lambda_batch=1.0, lr=1e-2), n_batches=3)
    batches = WindowBatches(data, targets, torch.arange(200), 64, 0)
    history, keep = fit(plan, max_epochs=15, batches=batches, device="cpu", progress=False)
    assert keep is None and list(history.index) == list(range(1, 16))
    assert list(history) == ["reconstruction_rna", "triplet_rna", "reconstruction_image", "triplet_image", "batch"]
    assert (history.iloc[-1, :4] < history.iloc[0, :4]).all()
    assert not plan.module.training


def test_the_optimiser_is_the_published_one():
    data, targets = some_data()
    optimizer = some_plan(data, targets, WindowSettings(1.5, 1.5)).configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    group = optimizer.param_groups[0]
    assert group["amsgrad"] and group["lr"] == 1e-3 and group["weight_decay"] == 1e-6
